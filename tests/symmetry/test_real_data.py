"""The two real data sets of known symmetry; they lie where $VCMODELS_DATA says."""

import os
from pathlib import Path

import pytest

from vcmodels.config import load_task
from vcmodels.geometry.symmetries import IDENTITY
from vcmodels.patches.cache import load_or_find_patches
from vcmodels.patches.resolve import resolve
from vcmodels.patches.split import split_patches
from vcmodels.symmetry.follow import findings_of

TASKS = Path(__file__).parents[2] / "tasks"


def found_in(name, tmp_path):
    if "VCMODELS_DATA" not in os.environ:
        pytest.skip("needs the data sets: set VCMODELS_DATA")
    places = {"tr_params.ckpt_out_base": tmp_path / "run", "dataset_config.index_dir": tmp_path}
    task = load_task(TASKS / name, [f"{key}={path}" for key, path in places.items()]).task
    resolved = resolve(task)
    patches = load_or_find_patches(resolved.task, resolved.volumes)
    split = split_patches(resolved.task.tr_params, resolved.volumes, patches)
    return findings_of(resolved, split.train, split.train_regions)


def test_a_hippocampus_has_no_mirror(tmp_path):
    assert found_in("hippocampus.json", tmp_path).group == (IDENTITY,)


def test_tissue_has_no_side(tmp_path):
    assert len(found_in("flyem_membrane.json", tmp_path).group) == 48
