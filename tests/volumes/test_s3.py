"""Volumes in an S3 store (moto's server on this machine), read as local ones are."""

import logging
import socket

import fsspec
import numpy as np
import pytest
from moto.s3.models import get_canned_acl

from tests import s3 as support
from vcmodels.errors import RunError, VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import ChunkError, open_volume, remote


@pytest.fixture
def upload(s3):
    def put(local):
        place = f"{s3.bucket}/{local.name}"
        s3.upload(local, place)
        return f"s3://{place}"

    return put


@pytest.fixture
def volume(upload, stores, tmp_path):
    """An array of 27 chunks, of which two are not stored, and what it holds."""
    data = stores.numbers()
    data[:2, :3, :3] = data[4:, 6:, 6:] = 0
    stores.write(tmp_path / "a.zarr", data, zarr_format=2)
    return open_volume(upload(tmp_path / "a.zarr"), key="input"), data


def test_any_layout_reads_the_same(upload, stores, tmp_path, any_layout):
    data = stores.numbers()
    stores.write_group(tmp_path / "a.zarr", {"resolution": [1, 2, 3]}, any_layout["zarr_format"])
    stores.write(tmp_path / "a.zarr" / "raw", data, **any_layout)
    found = open_volume(f"{upload(tmp_path / 'a.zarr')}/raw", key="input")
    np.testing.assert_array_equal(found.read(found.box)[0], data)
    assert found.spacing == (1, 2, 3)
    assert found.missing_blocks() == 0


def test_one_listing_tells_what_is_stored(s3, volume):
    found, data = volume
    s3.reset()
    assert found.missing_blocks() == 2
    assert not found.is_stored(Box((0, 0, 0), (2, 3, 3)))
    assert len(list(found.stored_blocks())) == 25
    assert len(found.fingerprint()) == 64
    assert sum(s3.asked.values()) == 1
    s3.reset()
    np.testing.assert_array_equal(found.read(found.box)[0], data)
    # One request for each chunk, and not one more for its size.
    assert {n for (method, path), n in s3.asked.items() if path.endswith("0.0.1")} == {1}
    assert {method for method, _ in s3.asked} == {"GET"}


def test_a_listing_of_many_pages_is_whole(s3, stores, upload, tmp_path):
    data = np.arange(1, 1 + 11 * 11 * 10, dtype=np.uint16).reshape(11, 11, 10)
    stores.write(tmp_path / "a.zarr", data, chunks=(1, 1, 1), zarr_format=2)
    found = open_volume(upload(tmp_path / "a.zarr"), key="input")
    assert found.missing_blocks() == 0
    assert len(list(found.stored_blocks())) == 1210


def test_a_replaced_or_deleted_chunk_changes_the_fingerprint(s3, volume):
    found, _ = volume
    files = fsspec.filesystem("s3", use_listings_cache=False)
    prints = {found.fingerprint()}
    for change in (
        lambda place: files.pipe_file(place, b"another"),
        lambda place: files.rm(place),
    ):
        change(f"{s3.bucket}/a.zarr/0.0.1")
        prints.add(open_volume(found.location, key="input").fingerprint())
    assert len(prints) == 3


@pytest.mark.parametrize("answer", [500, 503, 429, "reset"])
def test_what_passes_is_tried_again(s3, volume, answer):
    found, data = volume
    s3.fail("GET", f"/{s3.bucket}/a.zarr/1.1.1", answer, answer)
    s3.fail("GET", f"/{s3.bucket}", answer, answer)
    np.testing.assert_array_equal(found.read(found.box)[0], data)
    assert found.missing_blocks() == 2
    s3.fail("GET", f"/{s3.bucket}/a.zarr/.zarray", answer)
    assert open_volume(found.location, key="input").extent == (6, 7, 8)


def test_what_stays_names_the_object_in_one_line(s3, volume):
    found, _ = volume
    s3.fail("GET", f"/{s3.bucket}/a.zarr/1.1.1", *[500] * 99)
    with pytest.raises(
        RunError, match=r"^s3://.*/a\.zarr/1\.1\.1: cannot be read \(.*500.* 3 times"
    ):
        found.read(found.box)
    assert s3.asked["GET", f"/{s3.bucket}/a.zarr/1.1.1"] == 3
    s3.fail("GET", f"/{s3.bucket}", *[503] * 99)
    with pytest.raises(
        VolumeError, match=r"^input: s3://.*a\.zarr cannot be listed \(.*503"
    ) as caught:
        found.missing_blocks()
    assert "\n" not in str(caught.value)


def test_a_server_that_is_silent_ends_it(s3, volume, monkeypatch):
    monkeypatch.setattr(remote, "SILENCE_S", 0.2)
    monkeypatch.setattr(support, "SILENCE_S", 1.0)
    found = open_volume(volume[0].location, key="input")
    s3.fail("GET", f"/{s3.bucket}/a.zarr/1.1.1", *["silence"] * 99)
    with pytest.raises(RunError, match=r"a\.zarr/1\.1\.1: cannot be read \(ReadTimeout.* 3 times"):
        found.read(Box((2, 3, 3), (1, 1, 1)))
    assert s3.asked["GET", f"/{s3.bucket}/a.zarr/1.1.1"] == 3


def test_refusals_are_not_repeated_and_say_what_to_do(s3, volume):
    found, _ = volume
    s3.fail("GET", f"/{s3.bucket}/a.zarr/1.1.1", *[403] * 9)
    with pytest.raises(RunError, match=r"1\.1\.1: .*403.*; check the credentials"):
        found.read(found.box)
    assert s3.asked["GET", f"/{s3.bucket}/a.zarr/1.1.1"] == 1
    with pytest.raises(
        VolumeError, match=r"^input: s3://no-such-bucket/a.* check the name of the b"
    ):
        open_volume("s3://no-such-bucket/a.zarr", key="input")
    with pytest.raises(
        VolumeError, match=r"^input: no zarr metadata found at s3://.*nothing\.zarr"
    ):
        open_volume(f"s3://{s3.bucket}/nothing.zarr", key="input")


def test_without_credentials_it_says_how_to_give_them(s3, volume, monkeypatch, tmp_path):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(remote, "SILENCE_S", 7.0)  # another file system: this one has its keys
    with pytest.raises(VolumeError, match=r"Unable to locate credentials.*; set AWS_PROFILE"):
        open_volume(volume[0].location, key="input")
    for name in s3.objects(f"{s3.bucket}/a.zarr"):
        s3.backend.put_object_acl(s3.bucket, f"a.zarr/{name}", get_canned_acl("public-read"))
    monkeypatch.setitem(fsspec.config.conf, "s3", {"anon": True})
    np.testing.assert_array_equal(
        open_volume(volume[0].location, key="input").read(Box((0, 0, 0), (1, 1, 1))), 0
    )


def test_what_the_user_configured_stays(s3, volume, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        wrong = f"http://127.0.0.1:{nobody.getsockname()[1]}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", wrong)
    configured = {"endpoint_url": s3.url, "config_kwargs": {"user_agent_extra": "mine"}}
    monkeypatch.setitem(fsspec.config.conf, "s3", configured)
    found = open_volume(volume[0].location, key="input")
    assert found.missing_blocks() == 2
    assert remote.remote_files("s3://a").config_kwargs["user_agent_extra"] == "mine"


def test_a_damaged_chunk_is_named(s3, volume):
    found, _ = volume
    files = fsspec.filesystem("s3", use_listings_cache=False)
    files.pipe_file(f"{s3.bucket}/a.zarr/1.1.1", b"noise")
    with pytest.raises(ChunkError, match=r"chunk \(1, 1, 1\): s3://.*/a\.zarr/1\.1\.1 cannot be"):
        found.read(found.box)


def test_keys_are_in_no_message_and_in_no_log(s3, volume, caplog):
    found, _ = volume
    with caplog.at_level(logging.INFO):
        s3.fail("GET", f"/{s3.bucket}/a.zarr/1.1.1", *[403] * 9)
        with pytest.raises(RunError) as caught:
            found.read(found.box)
    for told in (str(caught.value), repr(caught.value.__cause__), caplog.text):
        assert support.KEY not in told
        assert support.SECRET not in told


def test_a_bucket_that_may_be_read_but_not_listed_reads_as_a_server_does(s3, volume):
    found, data = volume
    s3.fail("GET", f"/{s3.bucket}", *[403] * 99)  # the listing, and what is absent
    for index in ("0.0.0", "2.2.2"):
        s3.fail("GET", f"/{s3.bucket}/a.zarr/{index}", *[403] * 99)
    blind = open_volume(found.location, key="input")
    assert blind.listing is None
    np.testing.assert_array_equal(blind.read(blind.box)[0], data)
