import json
from collections import Counter
from itertools import product

import numpy as np
import pytest
import torch

from vcmodels.errors import OutputError, RunError
from vcmodels.geometry.boxes import coarse_extent, level_factors
from vcmodels.geometry.grid import tiles
from vcmodels.inference import Part, predict
from vcmodels.inference.locks import LockedHold
from vcmodels.inference.network import Uncertainty
from vcmodels.inference.pyramid import halve
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.targets.normals import NormalsTarget
from vcmodels.targets.regression import RegressionTarget
from vcmodels.volumes import open_volume

FACTORS = [(2, 2, 2), (1, 2, 2), (2, 1, 1)]


def noise(shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


def groups(stored, factor):
    """For each voxel of the coarser level, the voxels under it: (S, n)."""
    shape = coarse_extent(stored.shape[1:], factor)
    for index in product(*map(range, shape)):
        where = tuple(slice(i * f, (i + 1) * f) for i, f in zip(index, factor, strict=True))
        yield index, stored[(slice(None), *where)].reshape(len(stored), -1)


def root_of(work):
    return work.folder / "out" / "net.zarr"


def read(work, level, target="value"):
    place = root_of(work) / target / str(level)
    volume = open_volume(str(place), key="out", channels="any")
    return volume.read(volume.box)


@pytest.mark.parametrize("factor", FACTORS)
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_probabilities_are_averaged_and_rounded_once(factor, dtype):
    stored = (noise((1, 5, 7, 8)) * (1 if dtype == "float32" else np.iinfo(dtype).max)).astype(
        dtype
    )
    stored[:, :2, :2, :2] = stored.max()  # sums must not overflow
    half = halve(BinaryTarget(), stored, factor)
    assert (half.dtype, half.shape[1:]) == (stored.dtype, coarse_extent((5, 7, 8), factor))
    for (z, y, x), voxels in groups(stored, factor):
        mean = voxels.astype(float).mean()
        if dtype == "float32":
            assert half[0, z, y, x] == pytest.approx(mean, abs=1e-6)
        else:
            assert half[0, z, y, x] == np.round(mean)  # half to even


@pytest.mark.parametrize("factor", FACTORS)
def test_classes_keep_the_most_frequent_and_of_equals_the_lowest_value(factor):
    stored = np.random.default_rng(0).choice([40, 7, 200], (1, 5, 7, 9)).astype(np.uint8)
    target = MulticlassTarget(channels=3, label_values=[40, 7, 200])
    half = halve(target, stored, factor)
    ties = 0
    for (z, y, x), voxels in groups(stored, factor):
        counts = Counter(voxels[0].tolist())
        most = max(counts.values())
        winners = sorted(value for value, count in counts.items() if count == most)
        ties += len(winners) > 1
        assert half[0, z, y, x] == winners[0]
    assert ties > 5


@pytest.mark.parametrize("orientation", ["oriented", "axial"])
@pytest.mark.parametrize(("dtype", "degrees"), [("uint8", 0.7), ("float32", 0.1)])
def test_normals_get_their_length_back_and_axes_have_no_sign(orientation, dtype, degrees):
    rng = np.random.default_rng(0)
    target = NormalsTarget(orientation=orientation)
    vectors = np.float32([3, 1, -2]).reshape(3, 1, 1, 1) + rng.normal(size=(3, 5, 7, 8))
    if orientation == "axial":
        vectors *= rng.choice([-1, 1], vectors.shape[1:])
    vectors[:, 2:4, 2:4, 2:4] = 0  # nothing predicted there
    stored = target.encode(torch.from_numpy(vectors.astype(np.float32)), np.dtype(dtype))
    half = halve(target, stored, (2, 2, 2))
    assert half.dtype == stored.dtype
    assert (half[:, 1, 1, 1] == 0).all()
    got, decoded = target.decode(half), target.decode(stored).astype(float)
    for (z, y, x), voxels in groups(decoded, (2, 2, 2)):
        if (z, y, x) == (1, 1, 1):
            continue
        expected = voxels.mean(axis=1)
        if orientation == "axial":
            expected = np.linalg.eigh(voxels @ voxels.T)[1][:, -1]
            expected *= np.sign(expected @ got[:, z, y, x])
        assert np.linalg.norm(got[:, z, y, x]) == pytest.approx(1, abs=0.01)
        cosine = expected @ got[:, z, y, x] / np.linalg.norm(expected)
        cosine /= np.linalg.norm(got[:, z, y, x])
        assert np.degrees(np.arccos(min(cosine, 1))) < degrees


def test_a_signed_value_is_averaged_as_a_value_and_not_as_a_code():
    target = RegressionTarget(output_range=[-4, 4])
    stored = target.encode(torch.tensor([-4.0, 4.0, 4.0, 4.0]).view(1, 1, 2, 2), np.dtype("uint8"))
    assert target.decode(halve(target, stored, (1, 2, 2))).item() == pytest.approx(2, abs=0.02)


def test_deviations_are_averaged_as_squares():
    target = Uncertainty(BinaryTarget())
    stored = np.float32([0.3, 0.4, 0, 0]).reshape(1, 1, 2, 2)
    assert halve(target, stored, (1, 2, 2)).item() == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("extent", "spacing", "count", "factors"),
    [
        ((20, 40, 30), (1, 1, 1), None, [(1, 1, 1), (2, 2, 2), (4, 4, 4), (8, 8, 8)]),
        ((20, 40, 30), (1, 1, 1), 1, [(1, 1, 1), (2, 2, 2)]),
        ((20, 40, 30), (1, 1, 1), 0, [(1, 1, 1)]),
        ((20, 40, 30), (4, 1, 1), 3, [(1, 1, 1), (1, 2, 2), (1, 4, 4), (2, 8, 8)]),
        ((20, 40, 30), (0.6, 0.3, 0.3), 2, [(1, 1, 1), (1, 2, 2), (2, 4, 4)]),
        ((1, 40, 3), (1, 1, 1), 3, [(1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 4)]),
        ((1, 2, 1), (9, 1, 1), 5, [(1, 1, 1), (1, 2, 1)]),
        ((8, 8, 8), (1, 1, 1), None, [(1, 1, 1)]),
    ],
)
def test_thin_sections_wait_until_the_other_axes_are_as_coarse(extent, spacing, count, factors):
    assert level_factors(extent, spacing, (8, 8, 8), count) == tuple(factors)


def holed(shape=(37, 30, 41)):
    values = noise(shape)
    values[8:16] = 0
    values[:, 16:, 16:] = 0
    return values


@pytest.mark.parametrize("layout", [{}, {"output_zarr_format": 3, "output_shards": [16, 16, 16]}])
def test_every_level_is_the_mean_of_the_one_before_and_holes_stay_holes(workplace, layout):
    work = workplace(holed())
    work.run(pyramid="auto", **layout)
    for level, shape in enumerate([(37, 30, 41), (19, 15, 21), (10, 8, 11), (5, 4, 6)]):
        assert read(work, level).shape[1:] == shape
    for level in (1, 2, 3):
        fine, coarse = read(work, level - 1), read(work, level)
        for (z, y, x), voxels in groups(fine, (2, 2, 2)):
            assert coarse[0, z, y, x] == pytest.approx(voxels.mean(), abs=1e-6)
    coarse = open_volume(str(root_of(work) / "value" / "1"), key="out")
    assert coarse.shards == (layout.get("output_shards") and (16, 16, 16))
    blocks = list(tiles(coarse.box, coarse.storage_unit))
    full = [b for b in blocks if read(work, 1)[(slice(None), *b.slices())].any()]
    assert list(coarse.stored_blocks()) == full
    assert layout or len(full) < len(blocks)


def test_a_build_that_was_stopped_anywhere_goes_on_to_the_same_bytes(workplace):
    values = holed((17, 30, 33))
    reference = workplace(values)
    reference.run(pyramid="auto", num_dataloader_workers=0)
    total = 0
    for stop_at in (3, 29):
        work = workplace(values)
        asked = []

        def stop(asked=asked, stop_at=stop_at):
            asked.append(1)
            return len(asked) > stop_at

        options = {"should_stop": stop}
        report = work.run(pyramid="auto", num_dataloader_workers=0, options=options)
        while not report.is_complete:
            total += 1
            assert not report.is_through
            asked.clear()
            report = work.run(pyramid="auto", num_dataloader_workers=3, options=options)
            stop_at += 12
            options["should_stop"] = lambda asked=asked, n=stop_at: (
                asked.append(1) or len(asked) > n
            )
        assert work.hashes() == reference.hashes()
        assert not (root_of(work) / ".vcmodels").exists()
    assert total > 3, "it was stopped while predicting and while building"


def test_the_last_of_several_parts_builds_it(workplace):
    whole = workplace(noise((20, 18, 17)))
    whole.run(pyramid="auto")
    parts = workplace(noise((20, 18, 17)))
    for index in (1, 2, 0):
        report = parts.run(pyramid="auto", options={"part": Part(index, 3)})
        assert report.is_complete == (index == 0)
    assert parts.hashes() == whole.hashes()


def test_who_lost_the_output_writes_no_block_of_a_level(workplace, monkeypatch):
    work, build, is_lost = workplace(noise((20, 18, 17))), predict.build_pyramid, []

    def check(_hold):
        if is_lost:
            raise RunError("out", "another may have taken over", "run the same command again")

    monkeypatch.setattr(LockedHold, "check", check)
    monkeypatch.setattr(predict, "build_pyramid", lambda *given: is_lost.append(1) or build(*given))
    with pytest.raises(RunError, match="taken over"):
        work.run(pyramid=1)
    assert (read(work, 0) != 0).any()
    assert not list(open_volume(str(root_of(work) / "value" / "1"), key="out").stored_blocks())


def test_levels_are_verified_too(workplace):
    work = workplace(noise((20, 18, 17)))
    work.run(pyramid="auto")
    before = work.hashes()
    level = root_of(work) / "value" / "1"
    chunks = sorted(path for path in level.rglob("*") if path.is_file() and path.name[0] != ".")
    chunks[0].unlink()
    with pytest.raises(OutputError, match=r"value/1.* is finished, but 7 chunks .* were 8"):
        work.run(pyramid="auto")
    chunks[1].write_bytes(chunks[1].read_bytes()[:-3])
    report = work.run(pyramid="auto", options={"verify": True})
    assert (report.is_complete, report.patches) == (True, 0)
    assert work.hashes() == before


@pytest.mark.parametrize("version", [2, 3])
def test_metadata_place_the_centres_of_the_voxels(workplace, version):
    work = workplace(noise((9, 33, 34)))
    store = json.loads((work.folder / "input.zarr" / "raw" / ".zattrs").read_text())
    store |= {"resolution": [5.0, 2.0, 1.0], "offset": [10.0, 20.0, 30.0], "units": "um"}
    (work.folder / "input.zarr" / "raw" / ".zattrs").write_text(json.dumps(store))
    work.run(pyramid="auto", output_zarr_format=version)
    expected = [
        ((5, 2, 1), (10, 20, 30)),
        ((5, 2, 2), (10, 20, 30.5)),
        ((5, 4, 4), (10, 21, 31.5)),
        ((10, 8, 8), (12.5, 23, 33.5)),
    ]
    group = str(root_of(work) / "value")
    for level, (spacing, offset) in enumerate(expected):
        by_group = open_volume(group, key="x", level=level)
        by_array = open_volume(f"{group}/{level}", key="x")
        assert by_group.spacing == by_array.spacing == spacing
        assert by_group.offset == by_array.offset == offset
        assert by_group.unit == "micrometer"


def test_while_it_is_unfinished_no_coarser_level_is_shown(workplace):
    work = workplace(noise((20, 18, 17)))
    asked = []
    work.run(pyramid="auto", options={"should_stop": lambda: asked.append(1) or len(asked) > 2})
    attributes = json.loads((root_of(work) / "value" / ".zattrs").read_text())
    assert len(attributes["multiscales"][0]["datasets"]) == 1
    work.run(pyramid="auto")
    attributes = json.loads((root_of(work) / "value" / ".zattrs").read_text())
    assert [d["path"] for d in attributes["multiscales"][0]["datasets"]] == ["0", "1", "2"]


def test_another_number_of_levels_is_another_result(workplace):
    work = workplace(noise((20, 18, 17)))
    work.run(pyramid=1)
    assert work.run(pyramid=1).was_complete
    with pytest.raises(OutputError, match="pyramid was 1, is 0"):
        work.run()
