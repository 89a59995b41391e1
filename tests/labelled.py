"""Fixtures of all tests on labelled volumes: stores, tasks over them, a sparse mask."""

import copy

import numpy as np
import pytest

from vcmodels.config import parse_task
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import Grid, Storage, create_array


@pytest.fixture
def store(tmp_path):
    """Writes an array to `<tmp>/data.zarr/<name>` and returns its location."""

    def write(name, array, chunks=(5, 6, 7), shards=None, fill_value=0, version=3, spacing=None):
        lead = (array.shape[0],) if array.ndim == 4 else ()
        written = create_array(
            str(tmp_path / "data.zarr"),
            name,
            shape=array.shape,
            chunks=lead + chunks,
            dtype=array.dtype,
            grid=Grid(spacing) if spacing else None,
            storage=Storage(
                version, shards=lead + shards if shards else None, fill_value=fill_value
            ),
        )
        written.write(Box((0, 0, 0), array.shape[-3:]), array if lead else array[None])
        return written.location

    return write


@pytest.fixture
def make_task(tmp_path):
    """A parsed task over the given volume entries; keyword sections are merged in."""

    def build(volumes, targets=None, augment=(), dataset=None, **tr_params):
        data = {
            "tr_params": {
                "model_name": "test",
                "patch_size": [8, 8, 8],
                "num_dataloader_workers": 0,
                "ckpt_out_base": str(tmp_path / "run"),
                **tr_params,
            },
            "model_config": {"name": "residual_unet", "f_maps": [4, 8], "num_levels": 2},
            "augment": copy.deepcopy(list(augment)),
            "dataset_config": {
                "volume_paths": volumes,
                "targets": targets or {"sheet": {"kind": "binary"}},
                "min_bbox_percent": 0.1,
                "min_labeled_ratio": 0.01,
                **(dataset or {}),
            },
        }
        return parse_task(data, "test")[0]

    return build


@pytest.fixture
def blobs():
    """A sparse mask of unequal extents: (20, 25, 31) uint8."""
    rng = np.random.default_rng(0)
    labels = np.zeros((20, 25, 31), np.uint8)
    for _ in range(6):
        z, y, x = (int(rng.integers(0, n - 6)) for n in labels.shape)
        labels[z : z + 5, y : y + 6, x : x + 6] = rng.random((5, 6, 6)) < 0.5
    return labels
