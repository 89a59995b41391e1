import numpy as np
import pytest

from vcmodels.augment import DEFAULT_AUGMENTATIONS
from vcmodels.data.normalization import fit_normalization
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import TaskError
from vcmodels.patches.find import search_patches
from vcmodels.patches.folds import _cuts, divide
from vcmodels.patches.resolve import Resolved, resolve
from vcmodels.patches.split import load_or_split
from vcmodels.reporting import Silent
from vcmodels.runs.run import Run
from vcmodels.samples.training_set import augmented_set
from vcmodels.volumes import Volume
from vcmodels.volumes.places import read_json


@pytest.fixture
def labels():
    """Denser towards one end."""
    rng = np.random.default_rng(0)
    return (rng.random((22, 24, 90)) < np.linspace(0.1, 0.6, 90)).astype(np.uint8)


@pytest.fixture
def entry(store, labels):
    image = store("raw", np.zeros(labels.shape, np.float32))
    return {"input": image, "sheet": store("sheet", labels), "ref_label": "sheet", "name": "v"}


def fold_task(make_task, entries, tmp_path, split_guard=None, **folds):
    run = str(tmp_path / f"run{folds.get('index', 0)}")
    return make_task(entries, folds=folds, ckpt_out_base=run, split_guard=split_guard)


def marked(shape, boxes):
    mask = np.zeros(shape, np.uint8)
    for box in boxes:
        mask[box.slices()] += 1
    return mask


@pytest.mark.parametrize("bbox", [None, [[1, 21], [3, 24], [5, 88]]])
def test_slabs_share_no_voxel_and_all_are_validated_on_once(
    make_task, entry, labels, tmp_path, bbox
):
    entry["bbox"] = bbox
    region = open_volumes(make_task([entry]))[0].region
    validated, sums = np.zeros(labels.shape, np.uint8), []
    for index in range(4):
        task = fold_task(make_task, [entry], tmp_path, count=4, index=index)
        parts = resolve(task).volumes
        train, val = ([p.region for p in parts if p.split == side] for side in ("train", "val"))
        on_train, on_val = marked(labels.shape, train), marked(labels.shape, val)
        assert on_train.max() == on_val.max() == 1
        assert not (on_train & on_val).any()
        xs = [np.flatnonzero(mask.any(axis=(0, 1))) for mask in (on_train, on_val)]
        assert np.abs(xs[0][:, None] - xs[1][None]).min() > 8  # a patch lies between
        validated += on_val
        sums.append(labels[on_val > 0].sum())
    np.testing.assert_array_equal(validated, marked(labels.shape, [region]))
    layer = labels.sum(axis=(0, 1)).max()
    assert max(sums) - min(sums) <= 9 * layer  # two cells of four layers, and one


def test_no_read_for_training_reaches_a_voxel_of_validation(
    make_task, entry, labels, tmp_path, monkeypatch
):
    for index in range(3):
        task = fold_task(make_task, [entry], tmp_path, count=3, index=index)
        volumes = resolve(task).volumes
        split = load_or_split(
            Run(task.run_dir), task.tr_params, volumes, search_patches(task, volumes)
        )
        normalization = fit_normalization(
            task.dataset_config.normalization, volumes, split.train_regions
        )
        held = marked(labels.shape, [box for box in split.val_regions if box])
        touched = np.zeros(labels.shape, bool)
        read = Volume._read_inside

        def recording(self, box, touched=touched, read=read):
            touched[box.slices()] = True
            return read(self, box)

        with monkeypatch.context() as patch:
            patch.setattr(Volume, "_read_inside", recording)
            rotated = task.model_copy(update={"augment": list(DEFAULT_AUGMENTATIONS)})
            resolved = Resolved(rotated, volumes)
            dataset = augmented_set(resolved, split.train, split.train_regions, normalization)
            for draw in range(40):
                dataset[draw]
        assert touched.any()
        assert not (touched & (held > 0)).any()
        assert read_json(task.run_dir / "splits.json")["folds"]["index"] == index


def test_whole_volumes_are_divided_by_their_labels(make_task, store, labels, tmp_path):
    image = store("raw", np.zeros(labels.shape, np.float32))
    entries = [
        {
            "input": image,
            "sheet": store(
                f"sheet{n}", labels * (np.random.default_rng(n).random(labels.shape) < keep)
            ),
            "ref_label": "sheet",
            "name": f"v{n}",
        }
        for n, keep in enumerate((1.0, 0.5, 0.5, 0.3, 0.3, 0.4))
    ]
    seen = []
    for index in range(3):
        task = fold_task(make_task, entries, tmp_path, count=3, index=index)
        volumes = resolve(task).volumes
        assert [v.name for v in volumes] == [f"v{n}" for n in range(6)]
        assert {v.split for v in volumes} == {"train", "val"}
        seen += [v.name for v in volumes if v.split == "val"]
    assert sorted(seen) == [f"v{n}" for n in range(6)]


def test_volumes_with_a_split_of_their_own_stay(make_task, entry, tmp_path):
    own = {**entry, "split": "train", "name": "own"}
    task = fold_task(make_task, [own, entry], tmp_path, count=2, index=0)
    first = resolve(task).volumes[0]
    assert (first.name, first.split, first.region) == ("own", "train", first.inputs[0].box)


def test_the_largest_go_to_the_emptiest_fold():
    sizes = {0: 9, 1: 5, 2: 4, 3: 1, 4: 0, 5: 0}
    found = divide(sizes, 3, seed=0)
    assert [sum(sizes[n] for n, f in found.items() if f == i) for i in range(3)] == [9, 5, 5]
    equal = dict.fromkeys(range(8), 1)
    assert divide(equal, 4, seed=0) == divide(equal, 4, seed=0) != divide(equal, 4, seed=1)


def test_cuts_are_the_nearest_between_layers():
    rng = np.random.default_rng(0)
    for _ in range(50):
        profile, count = rng.integers(1, 100, 30).astype(float), int(rng.integers(2, 5))
        cuts = _cuts(5, 123, profile, 4, count)  # the first layer from 4 on
        assert (cuts[0], cuts[-1]) == (5, 123)
        for k, cut in enumerate(cuts[1:-1], 1):
            errors = [abs(profile[:n].sum() / profile.sum() - k / count) for n in range(31)]
            assert errors[(cut - 4) // 4] == pytest.approx(min(errors))


def test_what_cannot_be_cut_is_refused(make_task, entry, tmp_path):
    task = fold_task(make_task, [entry], tmp_path, count=20, index=0)
    with pytest.raises(TaskError, match=r"folds.count: volume v .* 20 slabs .*most 11$"):
        resolve(task)
    resolve(fold_task(make_task, [entry], tmp_path, count=11, index=0))
    task = fold_task(make_task, [entry], tmp_path, count=2, index=0, by="volume")
    with pytest.raises(TaskError, match="1 volumes cannot be divided into 2 folds"):
        resolve(task)


def test_the_guard_of_slabs_is_what_fits_and_one_that_is_given_is_strict(
    make_task, store, tmp_path
):
    """Two slabs of 12 voxels: a patch of 8 leaves a band of 4, the half of one."""
    ones = store("short", np.ones((9, 10, 24), np.uint8))
    short = {"input": ones, "sheet": ones, "ref_label": "sheet", "name": "v"}
    reporter = Silent()
    for index in range(2):
        parts = resolve(
            fold_task(make_task, [short], tmp_path, count=2, index=index), reporter
        ).volumes
        train, val = ([p.region for p in parts if p.split == side] for side in ("train", "val"))
        ends = sorted([*train, *val], key=lambda box: box.origin)
        assert [box.shape[2] for box in train + val] == [8, 12]
        assert ends[1].origin[2] - ends[0].end[2] == 4
    assert "no room for a guard band of a patch (8 voxels along x): 4 voxels" in reporter.lines[0]
    task = fold_task(make_task, [short], tmp_path, split_guard=5, count=2, index=0)
    with pytest.raises(TaskError, match=r"split_guard: 5 leaves a fold .* at most 4, or null"):
        resolve(task)
    resolve(fold_task(make_task, [short], tmp_path, split_guard=4, count=2, index=0))


@pytest.mark.parametrize(("count", "extent"), [(3, 27), (3, 24), (4, 37), (2, 17)])
@pytest.mark.parametrize("dense", ["low", "high"])
def test_slabs_move_to_leave_a_patch_in_each_where_there_is_room(
    make_task, store, tmp_path, count, extent, dense
):
    """Labels at one end would make slabs of a few voxels there."""
    labels = np.ones((9, 10, extent), np.uint8)
    labels[:, :, 6:] *= np.arange(extent - 6) % 8 == 0
    labels = labels[:, :, ::-1] if dense == "high" else labels
    image = store("raw", np.zeros(labels.shape, np.uint8))
    uneven = {"input": image, "sheet": store("uneven", labels), "ref_label": "sheet", "name": "v"}
    validated = np.zeros(labels.shape, np.uint8)
    for index in range(count):
        parts = resolve(fold_task(make_task, [uneven], tmp_path, count=count, index=index)).volumes
        train, val = ([p.region for p in parts if p.split == side] for side in ("train", "val"))
        assert all(box.shape[2] >= 8 for box in train + val)
        assert train
        assert not (marked(labels.shape, train) & marked(labels.shape, val)).any()
        validated += marked(labels.shape, val)
    assert (validated == 1).all()
