import numpy as np
import pytest

from vcmodels.data.volumes import open_volumes
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.patches.find import PatchCriteria, search_patches, survey
from vcmodels.patches.index_build import Indexer
from vcmodels.reporting import Silent
from vcmodels.volumes import create_array


@pytest.fixture
def entry(store, blobs):
    image = np.random.default_rng(1).normal(size=blobs.shape).astype(np.float32)
    return {
        "input": store("raw", image),
        "sheet": store("sheet", blobs, chunks=(8, 9, 10)),
        "ref_label": "sheet",
    }


def plain_loop(labels, patch, stride, tail, share, ratio, of):
    """The slow obvious finder: look at the voxels of each candidate."""
    found = []
    axes = [
        sorted({*range(0, n - p + 1, s), t})
        for n, p, s, t in zip(labels.shape, patch, stride, tail, strict=True)
    ]
    for z in axes[0]:
        for y in axes[1]:
            for x in axes[2]:
                part = labels[z : z + patch[0], y : y + patch[1], x : x + patch[2]] != 0
                inside = np.argwhere(part)
                if not len(inside):
                    continue
                box = np.prod(np.ptp(inside, axis=0) + 1)
                whole = box if of == "box" else part.size
                if box / part.size >= share and len(inside) / whole >= ratio:
                    found.append([0, z, y, x])
    return found


@pytest.mark.parametrize("of", ["box", "patch"])
def test_patches_equal_those_of_a_loop_over_the_voxels(make_task, entry, blobs, of):
    task = make_task(
        [entry],
        patch_size=[8, 6, 12],
        dataset={
            "min_bbox_percent": 0.2,
            "min_labeled_ratio": 0.1,
            "labeled_ratio_of": of,
            "patch_stride": [4, 3, 6],
        },
    )
    found = search_patches(task, open_volumes(task))
    wanted = plain_loop(blobs, (8, 6, 12), (4, 3, 6), (12, 18, 18), 0.2, 0.1, of)
    assert len(wanted) > 3
    assert found.rows.tolist() == wanted


def test_without_a_reference_label_every_patch_is_used(make_task, entry):
    del entry["ref_label"]
    task = make_task([entry], patch_size=[10, 12, 16])
    assert len(search_patches(task, open_volumes(task)).rows) == 3 * 3 * 2


def test_a_volume_thinner_than_the_patch_gives_one_padded_patch(make_task, entry):
    task = make_task([entry], patch_size=[32, 32, 32], dataset={"min_bbox_percent": 0.5})
    assert search_patches(task, open_volumes(task)).rows.tolist() == [[0, 0, 0, 0]]


def test_patches_of_a_bbox_are_those_of_the_volume_and_one_at_each_end(make_task, entry):
    entry["bbox"] = [[3, 17], [5, 25], [1, 30]]
    everything = {"min_bbox_percent": 0.0, "min_labeled_ratio": 0.0, "patch_stride": [4, 8, 8]}
    task = make_task([entry], dataset=everything)
    rows = search_patches(task, open_volumes(task)).rows[:, 1:]
    found = [sorted(set(rows[:, axis].tolist())) for axis in range(3)]
    assert found == [[4, 8], [8, 16], [8, 16]]  # cells of (4, 8, 8)


def test_a_bbox_in_which_no_patch_of_whole_cells_fits_counts_from_its_own_start(
    make_task, entry, blobs
):
    entry["bbox"] = [[3, 14], [5, 25], [1, 30]]
    some = {"min_bbox_percent": 0.01, "min_labeled_ratio": 0.0}
    task = make_task([entry], patch_size=[16, 16, 16], dataset=some)
    rows = search_patches(task, open_volumes(task)).rows
    part = blobs[3:14, 5:25, 1:30]
    found = [[0, 3, y + 5, x + 1] for y in (0,) for x in (0, 8) if part[:, :16, x : x + 16].any()]
    assert rows.tolist() == found


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ((0.99, 0.0), r"min_bbox_percent: no patch qualifies; the best, at \(z, y, x\) = .* of "),
        ((0.0, 0.999), r"min_labeled_ratio: no patch qualifies; the best, .* of 0\.\d+"),
    ],
)
def test_the_blocking_threshold_is_named(make_task, entry, thresholds, message):
    share, ratio = thresholds
    thresholds = {"min_bbox_percent": share, "min_labeled_ratio": ratio}
    task = make_task([entry], patch_size=[16, 16, 16], dataset=thresholds)
    with pytest.raises(TaskError, match=message):
        search_patches(task, open_volumes(task))


def test_an_empty_label_is_an_error_that_says_so(make_task, entry, store, blobs):
    entry["sheet"] = store("empty", np.zeros_like(blobs))
    task = make_task([entry])
    with pytest.raises(TaskError, match="hold no labelled voxel; check ref_label"):
        search_patches(task, open_volumes(task))


def test_ignored_values_are_not_labelled(make_task, entry, store, blobs):
    entry["sheet"] = store("ignored", np.where(blobs == 0, 255, 0).astype(np.uint8))
    task = make_task([entry], ignore_label=255)
    with pytest.raises(TaskError, match="no labelled voxel"):
        search_patches(task, open_volumes(task))


def test_a_volume_without_patches_is_told(make_task, entry, store, blobs):
    other = dict(entry, sheet=store("none", np.zeros_like(blobs)), name="bare")
    task, reporter = make_task([entry, other]), Silent()
    search_patches(task, open_volumes(task), reporter)
    assert "no patch qualifies in 1 of 2 volumes: bare" in reporter.lines


def test_more_than_the_machine_can_hold_is_refused(make_task, entry, monkeypatch):
    monkeypatch.setattr("vcmodels.patches.find.machine_bytes", lambda: 24 * 1000)
    volumes = open_volumes(make_task([entry]))
    search_patches(make_task([entry]), volumes)  # 20 x 25 x 31 voxels in cells of 4: 280
    thin = make_task([entry], dataset={"patch_stride": [1, 1, 1]})
    with pytest.raises(
        TaskError, match=r"volume_paths\.0\.bbox: finding patches in \(20, 25, 31\)"
    ):
        search_patches(thin, volumes)


def covered(shape, rows, patch):
    mask = np.zeros(shape, bool)
    for origin in rows[:, 1:].tolist():
        mask[tuple(slice(o, o + n) for o, n in zip(origin, patch, strict=True))] = True
    return mask


@pytest.mark.parametrize("bricks", [True, False])
@pytest.mark.parametrize("thresholds", [(0.3, 0.1), (0.9, 0.02), (0.99, 0.9)])
def test_labelled_voxels_in_no_patch_are_counted(make_task, entry, blobs, thresholds, bricks, monkeypatch):  # fmt: skip
    if bricks:
        monkeypatch.setattr("vcmodels.patches.index.BRICK_SIDE", 12)
        monkeypatch.setattr("vcmodels.patches.density._BLOCK_CELLS", 3)
    share, ratio = thresholds
    data = {"min_bbox_percent": share, "min_labeled_ratio": ratio, "use_cache": False}
    task = make_task([entry], patch_size=[6, 8, 10], dataset=data)
    criteria = PatchCriteria.of(task)
    (found,) = survey(open_volumes(task), criteria, Indexer(None, Silent()))
    rows = np.insert(found.chosen(criteria), 0, 0, axis=1)
    outside = (blobs > 0) & ~covered(blobs.shape, rows, (6, 8, 10))
    assert (found.labelled, found.missed) == (np.count_nonzero(blobs), outside.sum())


def slab(shape, low, high):
    labels = np.zeros(shape, np.uint8)
    labels[low:high] = 1
    return labels


def test_a_stride_that_steps_over_the_labels_is_named_with_what_a_finer_one_gives(make_task, store):
    """A slab from 5 to 15: patches of 8 that start at 0, 4, 8, 12 fill it by 3, 7 and 7 planes."""
    shape = (24, 20, 22)
    entry = {"input": store("raw", np.zeros(shape, np.uint8)), "ref_label": "sheet"}
    entry["sheet"] = store("sheet", slab(shape, 5, 15))
    data = {"min_bbox_percent": 0.95, "min_labeled_ratio": 0.5}
    task = make_task([entry], dataset=data)
    with pytest.raises(TaskError, match=r"patch_stride \[2, 2, 2\] gives \d+") as error:
        search_patches(task, open_volumes(task))
    count = int(str(error.value).rpartition(" ")[2])
    task = make_task([entry], dataset={**data, "patch_stride": [2, 2, 2]})
    reporter = Silent()
    assert len(search_patches(task, open_volumes(task), reporter).rows) == count
    share = "20% of the labelled voxels lie in no patch that qualifies"
    assert f"{share}; patch_stride [1, 1, 1] gives" in reporter.lines[-1]
    assert reporter.lines[-1].endswith("and leaves out 0%")
    lower = make_task([entry], dataset={"min_bbox_percent": 0.8, "min_labeled_ratio": 0.5})
    assert len(search_patches(lower, open_volumes(lower)).rows)


def test_labels_that_no_stride_reaches_are_reported_with_the_thresholds(make_task, store):
    shape = (32, 20, 24)
    labels = slab(shape, 0, 8) | slab(shape, 20, 24)  # the second is half as thick as a patch
    entry = {"input": store("raw", np.zeros(shape, np.uint8)), "ref_label": "sheet"}
    entry["sheet"] = store("sheet", labels)
    task = make_task([entry], dataset={"min_bbox_percent": 0.95, "min_labeled_ratio": 0.5})
    reporter = Silent()
    search_patches(task, open_volumes(task), reporter)
    assert reporter.lines[-1] == (
        "33% of the labelled voxels lie in no patch that qualifies; lower min_bbox_percent or "
        "min_labeled_ratio to train on them"
    )


def test_another_stride_is_not_tried_on_more_than_is_read_quickly(make_task, store, monkeypatch):
    shape = (24, 20, 22)
    entry = {"input": store("raw", np.zeros(shape, np.uint8)), "ref_label": "sheet"}
    entry["sheet"] = store("sheet", slab(shape, 5, 15))
    task = make_task([entry], dataset={"min_bbox_percent": 0.95})
    monkeypatch.setattr("vcmodels.patches.find.FEW_VOXELS", 1000)
    with pytest.raises(TaskError, match=r"no patch qualifies.*lower it, or choose a smaller"):
        search_patches(task, open_volumes(task))


def test_a_finer_stride_is_found_where_little_of_a_huge_label_is_stored(make_task, tmp_path):
    shape = (40_000, 30_000, 50_000)
    for name in ("raw", "sheet"):
        array = create_array(str(tmp_path / "huge.zarr"), name, shape=shape, chunks=(16, 16, 16), dtype=np.dtype("u1"))  # fmt: skip
        array.write(Box((20_005, 16_000, 32_000), (10, 16, 16)), np.ones((1, 10, 16, 16), np.uint8))
    entry = {name: str(tmp_path / "huge.zarr" / name) for name in ("sheet",)}
    entry |= {"input": str(tmp_path / "huge.zarr" / "raw"), "ref_label": "sheet"}
    task = make_task([entry], dataset={"min_bbox_percent": 0.95, "use_cache": False})
    with pytest.raises(TaskError, match=r"patch_stride \[2, 2, 2\] gives 25$"):
        search_patches(task, open_volumes(task))
