"""Small real stores, written with zarr itself and not with the code under test."""

import json

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.storage import LocalStore

SHAPE = (6, 7, 8)

LAYOUTS = {
    "v2 dot": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "."}},
    "v2 slash": {"zarr_format": 2, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v3 slash": {"zarr_format": 3},
    "v3 dot": {"zarr_format": 3, "chunk_key_encoding": {"name": "default", "separator": "."}},
    "v3 with v2 names": {"zarr_format": 3, "chunk_key_encoding": {"name": "v2", "separator": "/"}},
    "v3 sharded": {"zarr_format": 3, "shards": (4, 6, 6)},
}


def numbers(shape=SHAPE, dtype="uint16"):
    return np.random.default_rng(0).integers(1, 100, size=shape).astype(dtype)


def write(path, data, *, chunks=(2, 3, 3), **options):
    options.setdefault("zarr_format", 3)
    array = zarr.create_array(
        LocalStore(path), shape=data.shape, dtype=data.dtype, chunks=chunks, **options
    )
    array[...] = data
    return str(path)


def write_group(path, attributes, zarr_format=2):
    zarr.create_group(LocalStore(path), zarr_format=zarr_format, attributes=attributes)
    return str(path)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def stores():
    """Helpers: numbers, write, write_group, edit, layouts."""

    class Stores:
        pass

    Stores.numbers, Stores.write = staticmethod(numbers), staticmethod(write)
    Stores.write_group, Stores.edit = staticmethod(write_group), staticmethod(edit)
    Stores.layouts, Stores.shape, Stores.numcodecs = LAYOUTS, SHAPE, numcodecs
    return Stores


@pytest.fixture(params=LAYOUTS, ids=lambda name: name.replace(" ", "-"))
def any_layout(request):
    """Options of one of the six layouts that must read the same."""
    return LAYOUTS[request.param]
