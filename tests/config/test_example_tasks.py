from itertools import combinations
from pathlib import Path

import pytest

from vcmodels.config import load_task
from vcmodels.geometry.boxes import Box

TASKS = sorted((Path(__file__).parents[2] / "tasks").glob("*.json"))


@pytest.mark.parametrize("path", TASKS, ids=lambda path: path.stem)
def test_entries_of_one_volume_share_no_voxel(path):
    for one, other in combinations(load_task(path).task.dataset_config.volume_paths, 2):
        if one.input == other.input:
            first, second = (
                Box.between([a for a, _ in entry.bbox], [b for _, b in entry.bbox])
                for entry in (one, other)
            )
            assert first.intersect(second).voxels == 0
