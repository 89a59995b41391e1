import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from vcmodels.volumes import content, open_volume
from vcmodels.volumes.content import content_of, difference

SHAPE = (12, 20, 28)


@pytest.fixture(params=[2, 3])
def array(request, tmp_path):
    """An uncompressed array of 3 x 5 x 7 chunks, so that sizes never change."""
    options = {"chunks": (4, 4, 4), "compressors": None, "zarr_format": request.param}
    store = tmp_path / "a.zarr"
    values = np.random.default_rng(0).integers(1, 255, SHAPE, np.uint8)
    zarr.create_array(str(store), shape=SHAPE, dtype="u1", fill_value=0, **options)[...] = values
    return store


def now(store):
    """As it comes back out of a file."""
    return json.loads(json.dumps(content_of(open_volume(str(store)))))


def chunks(store):
    return [p for p in sorted(store.rglob("*")) if p.is_file() and p.stat().st_size == 64]


def touch_all(store):
    for path in chunks(store):
        os.utime(path, ns=(1, 1))


def invert(store):
    opened = zarr.open_array(str(store), mode="r+")
    opened[...] = 255 - opened[...]


def edit_one(store):
    zarr.open_array(str(store), mode="r+")[5, 6, 7] ^= 1


def edit_metadata(store, **changes):
    path = next(p for n in ("zarr.json", ".zarray") if (p := store / n).exists())
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (invert, "the bytes of its chunks differ"),
        (edit_one, "the bytes of its chunks differ"),
        (lambda store: chunks(store)[3].unlink(), "105 stored chunks, now 104"),
        (lambda store: edit_metadata(store, fill_value=1), "fill_value was 0.0, is 1.0"),
        (lambda store: chunks(store)[0].write_bytes(b"0" * 65), "6720 stored bytes, now 6721"),
    ],
)
def test_what_has_changed_is_said(array, change, words):
    before = now(array)
    change(array)
    assert difference(before, now(array)) == words


def test_chunks_that_change_their_sizes_are_noticed(array):
    before = now(array)
    first, second = chunks(array)[:2]
    first.write_bytes(b"0" * 63)
    second.write_bytes(b"0" * 65)
    assert difference(before, now(array)) == "its chunks have other names or sizes"


def test_the_same_bytes_are_the_same_wherever_and_whenever(array, tmp_path):
    before = now(array)
    touch_all(array)
    zarr.open_array(str(array), mode="r+").attrs["note"] = "seen"
    assert difference(before, now(array)) == ""
    copy = tmp_path / "elsewhere" / "b.zarr"
    shutil.copytree(array, copy, copy_function=shutil.copyfile)
    assert difference(before, now(copy)) == ""


def test_a_large_array_is_a_copy_only_if_all_its_chunks_are(array, monkeypatch):
    monkeypatch.setattr(content, "WHOLE_FILES", 10)
    before = now(array)
    read = []
    original = Path.open
    monkeypatch.setattr(
        Path, "open", lambda p, *a, **k: (read.append(p.name), original(p, *a, **k))[1]
    )
    touch_all(array)
    assert difference(before, now(array)) == ""
    assert len({name for name in read if name[0].isdigit()}) <= 64
    again = now(array)
    os.utime(chunks(array)[52], ns=(2, 2))
    assert difference(again, now(array)) == "some of its chunks were written again"


def test_only_the_ends_of_large_files_are_read(array, monkeypatch):
    monkeypatch.setattr(content, "WHOLE_BYTES", 100)
    monkeypatch.setattr(content, "SAMPLED_BYTES", 8)
    before = now(array)
    for path in chunks(array):
        data = path.read_bytes()
        path.write_bytes(data[:-4] + b"abcd")
    assert difference(before, now(array)) == "the bytes of its chunks differ"


def test_a_chunk_that_cannot_be_read_is_other_content(array):
    before = now(array)
    path = chunks(array)[0]
    path.unlink()
    path.symlink_to("nowhere")
    assert difference(before, now(array)) != ""
