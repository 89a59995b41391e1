import numpy as np
import pytest

from vcmodels.data.volumes import open_volumes
from vcmodels.geometry.boxes import Box
from vcmodels.patches import class_counts
from vcmodels.patches.class_counts import count_classes
from vcmodels.patches.index_build import Indexer
from vcmodels.reporting import Silent
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.targets.stored import LabelError


@pytest.fixture
def volumes(make_task, store):
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 3, 7, 255], (20, 25, 31), p=[0.7, 0.2, 0.05, 0.05]).astype(np.uint8)
    labels[:10] = 0  # chunks that are not stored
    entry = {"input": store("raw", labels.astype(np.float32)), "organ": store("organ", labels)}
    bare = {"input": entry["input"], "sheet": entry["organ"], "name": "without"}
    organ = {"kind": "multiclass", "channels": 3, "label_values": [0, 3, 7]}
    targets = {"organ": organ, "sheet": {"kind": "binary"}}
    return open_volumes(make_task([entry, bare], targets)), labels


@pytest.mark.parametrize("region", [Box((3, 4, 5), (15, 20, 19)), Box((0, 0, 0), (20, 25, 31)),
                                    Box((2, 7, 14), (18, 18, 17)), Box((17, 1, 1), (1, 1, 1))], ids=str)  # fmt: skip
@pytest.mark.parametrize("is_indexed", [False, True])
def test_classes_are_counted_over_the_regions_without_ignored_voxels(
    volumes, region, is_indexed, monkeypatch, tmp_path
):
    monkeypatch.setattr(class_counts, "CELL", (4, 5, 3))
    indexer = Indexer(tmp_path / "index", Silent()) if is_indexed else None
    opened, labels = volumes
    target = MulticlassTarget(channels=3, label_values=[0, 3, 7], ignore_label=255)
    part = labels[region.slices()]
    wanted = [(part == value).sum() for value in (0, 3, 7)]
    found = count_classes(opened, [region, opened[1].region], "organ", target, indexer)
    assert found.tolist() == wanted
    assert found.dtype == np.int64


def test_a_volume_without_region_adds_nothing(volumes):
    opened, _ = volumes
    target = MulticlassTarget(channels=3, label_values=[0, 3, 7], ignore_label=255)
    assert count_classes(opened, [None, None], "organ", target).tolist() == [0, 0, 0]


def test_a_value_that_is_no_class_is_refused(volumes):
    opened, _ = volumes
    target = MulticlassTarget(channels=3, label_values=[0, 3, 7])
    with pytest.raises(LabelError, match="255"):
        count_classes(opened, [opened[0].region, None], "organ", target)


def test_chunks_that_are_not_stored_count_as_the_fill_value(make_task, store, tmp_path):
    labels = np.full((20, 25, 31), 255, np.uint8)
    labels[3:9, 4:8, 5:9] = 1
    entry = {"input": store("raw", labels.astype(np.float32))}
    entry["organ"] = store("organ", labels, fill_value=255)
    targets = {"organ": {"kind": "multiclass", "channels": 2}}
    (volume,) = open_volumes(make_task([entry], targets, ignore_label=255))
    target = MulticlassTarget(channels=2, ignore_label=255)
    for indexer in (None, Indexer(tmp_path / "index", Silent())):
        found = count_classes([volume], [volume.region], "organ", target, indexer)
        assert found.tolist() == [0, 96]
