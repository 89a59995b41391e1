import numpy as np
import pytest

from vcmodels.data.class_counts import count_classes
from vcmodels.data.volumes import open_volumes
from vcmodels.geometry.boxes import Box
from vcmodels.targets.labels import LabelError
from vcmodels.targets.multiclass import MulticlassTarget


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


def test_classes_are_counted_over_the_regions_without_ignored_voxels(volumes):
    opened, labels = volumes
    region = Box((3, 4, 5), (15, 20, 19))
    target = MulticlassTarget(channels=3, label_values=[0, 3, 7], ignore_label=255)
    part = labels[region.slices()]
    wanted = [(part == value).sum() for value in (0, 3, 7)]
    found = count_classes(opened, [region, opened[1].region], "organ", target)
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
