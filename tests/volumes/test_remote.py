"""Stores behind a real HTTP server on this machine, and in fsspec's memory file system."""

import builtins
import functools
import http.server
import importlib
import multiprocessing
import socket
import sys
import threading
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

from vcmodels.errors import RunError, VolumeError
from vcmodels.geometry.boxes import Box
from vcmodels.volumes import Reading, open_volume, remote


class Handler(http.server.SimpleHTTPRequestHandler):
    status: dict[str, list[int | str]] = {}  # noqa: RUF012 - shared by all requests on purpose

    def do_GET(self):
        planned = self.status.get(self.path)
        action = planned.pop(0) if planned else "send"
        if isinstance(action, int):
            self.send_error(action)
        elif action == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
        elif action == "silence":
            time.sleep(1)
        else:
            self._send_file(self.headers.get("Range", ""), is_cut=action == "cut")

    def _send_file(self, wanted, is_cut):
        """A file or a part of it; http.server itself knows no ranges, which shards need."""
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        total = len(data)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        if wanted:
            start = int(first) if first else total - int(last)
            end = int(last) + 1 if first and last else total
            data = data[start:end]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(data)))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{start + len(data) - 1}/{total}")
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if is_cut else data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path):
    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        Handler.status = {}
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES_S", (0.01, 0.02))


@pytest.mark.parametrize("layout", ["v2 dot", "v3 slash", "v3 sharded"])
def test_an_array_behind_http_reads_the_same(tmp_path, stores, server, layout):
    data = stores.numbers()
    stores.write_group(
        tmp_path / "a.zarr", {"resolution": [1, 2, 3]}, stores.layouts[layout]["zarr_format"]
    )
    stores.write(tmp_path / "a.zarr" / "raw", data, **stores.layouts[layout])
    volume = open_volume(f"{server}/a.zarr/raw", key="input")
    np.testing.assert_array_equal(volume.read(volume.box)[0], data)
    assert volume.spacing == (1, 2, 3)
    assert len(list(volume.stored_blocks())) == (8 if volume.shards else 27)
    assert volume.is_stored(volume.box)
    assert volume.missing_blocks() == 0
    assert len(volume.fingerprint()) == 64


def test_of_a_chosen_time_behind_http_only_its_own_files_are_asked_for(tmp_path, stores, server):
    data = stores.numbers((3, 2, 6, 7, 8))
    stores.write(tmp_path / "a", data, chunks=(1, 1, 2, 7, 8), dimension_names=[*"tczyx"])
    reading = Reading(channels=(1,), index={"t": 2})
    volume = open_volume(f"{server}/a", key="input", channels="any", reading=reading)
    np.testing.assert_array_equal(volume.read(volume.box), data[2, 1:])
    files = list(volume.stored_files((range(1, 3), range(1), range(1))))
    assert [(unit, file.name) for unit, file in files] == [
        ((1, 0, 0), "c/2/1/1/0/0"),
        ((2, 0, 0), "c/2/1/2/0/0"),
    ]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_child_that_inherits_a_connection_makes_its_own(tmp_path, stores, server):
    data = stores.numbers()
    stores.write(tmp_path / "a.zarr", data, zarr_format=2)
    volume = open_volume(f"{server}/a.zarr", key="input")
    volume.read(volume.box)
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=lambda: results.put(volume.read(volume.box)), daemon=True)
    child.start()
    np.testing.assert_array_equal(results.get(timeout=30)[0], data)
    child.join()


PASSING = [500, 503, 429, "drop", "cut", "silence"]


@pytest.fixture
def behind_http(tmp_path, stores, server, monkeypatch):
    monkeypatch.setattr(remote, "SILENCE_S", 0.3)
    data = stores.numbers()
    stores.write(tmp_path / "a.zarr", data, zarr_format=2)
    return open_volume(f"{server}/a.zarr", key="input"), data


@pytest.mark.parametrize("answer", PASSING)
def test_what_passes_is_tried_again(behind_http, answer):
    volume, data = behind_http
    Handler.status["/a.zarr/0.0.0"] = [answer, answer]
    np.testing.assert_array_equal(volume.read(volume.box)[0], data)
    Handler.status["/a.zarr/.zarray"] = [answer, answer]
    assert open_volume(volume.location, key="input").extent == volume.extent


@pytest.mark.parametrize("answer", PASSING)
def test_what_stays_names_the_object_in_one_line(behind_http, answer):
    volume, _ = behind_http
    Handler.status["/a.zarr/0.0.1"] = [answer] * 20
    expected = r"^http://.*/a\.zarr/0\.0\.1: cannot be read \(.* 3 times\); check the address"
    with pytest.raises(RunError, match=expected) as caught:
        volume.read(volume.box)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("answer", [401, 403])
def test_a_refusal_is_not_repeated(behind_http, answer):
    volume, _ = behind_http
    Handler.status["/a.zarr/0.0.1"] = [answer] * 20
    volume.handle.array()
    Handler.status["/a.zarr/.zarray"] = [answer] * 20
    with pytest.raises(RunError, match=rf"0\.0\.1: .*{answer}.*; check the credentials"):
        volume.read(volume.box)
    assert len(Handler.status["/a.zarr/0.0.1"]) == 19


class Blind(Handler):
    """A bucket that may be read but not listed: what is absent is refused."""

    absent = 403

    def send_error(self, code, *_):
        self.send_response(self.absent if code == 404 else code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@pytest.fixture
def blind(tmp_path, monkeypatch):
    monkeypatch.setattr(Handler, "status", {})
    handler = functools.partial(Blind, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("layout", "absent"), [("v2 dot", 403), ("v3 sharded", 403), ("v2 slash", 410)]
)
def test_what_a_bucket_without_listing_refuses_is_absent(
    tmp_path, stores, blind, layout, absent, monkeypatch
):
    monkeypatch.setattr(Blind, "absent", absent)
    data, options = stores.numbers(), stores.layouts[layout]
    stores.write_group(tmp_path / "a.zarr", {"resolution": [1, 2, 3]}, options["zarr_format"])
    stores.write(tmp_path / "a.zarr" / "raw", data, fill_value=9, **options)
    volume = open_volume(f"{blind}/a.zarr/raw", key="input")
    np.testing.assert_array_equal(volume.read(volume.box)[0], data)
    assert volume.spacing == (1, 2, 3)
    unit = volume.storage_unit
    (tmp_path / "a.zarr" / "raw" / volume.names.name((0, 0, 0))).unlink()
    data[: unit[0], : unit[1], : unit[2]] = 9
    np.testing.assert_array_equal(volume.read(volume.box)[0], data)
    assert "cannot be listed: chunks that the server does not have" in volume.oddity
    with pytest.raises(VolumeError, match=r"that are not stored: 1, the first \(0, 0, 0\)"):
        volume.require_stored(volume.box, "the key")
    every = tuple(range(n) for n in volume.names.counts)
    stored = {index for index, _ in volume.stored_files(every)}
    assert stored == set(np.ndindex(*volume.names.counts)) - {(0, 0, 0)}


def test_a_bucket_that_refuses_all_is_refused_and_one_that_begins_to_ends_the_read(
    tmp_path, stores, blind
):
    with pytest.raises(VolumeError, match=r"input: .*/zarr.json cannot be read .*403.*; check the"):
        open_volume(f"{blind}/nothing.zarr", key="input")
    stores.write(tmp_path / "a.zarr", stores.numbers(), zarr_format=2)
    volume = open_volume(f"{blind}/a.zarr", key="input")
    volume.read(Box((0, 0, 0), (1, 1, 1)))
    (tmp_path / "a.zarr").rename(tmp_path / "b.zarr")  # as if the credentials had run out
    with pytest.raises(RunError, match=r"0\.0\.0: cannot be read .*403.*; check the cred"):
        volume.read(Box((0, 0, 0), (1, 1, 1)))
    with pytest.raises(RunError, match=r"0\.0\.0: cannot be asked for .*403.*; check the cred"):
        list(volume.stored_files((range(3),) * 3))


@pytest.mark.parametrize("passing", [503, 429, "drop"])
def test_metadata_that_shows_a_refused_chunk_to_be_absent_is_waited_for(
    tmp_path, stores, blind, passing
):
    data = stores.numbers()
    stores.write(tmp_path / "a.zarr", data, zarr_format=2, fill_value=9)
    volume = open_volume(f"{blind}/a.zarr", key="input")
    (tmp_path / "a.zarr" / "0.0.0").unlink()
    data[:2, :3, :3] = 9
    Handler.status["/a.zarr/.zarray"] = [passing]  # what the chunk's refusal is judged by
    np.testing.assert_array_equal(volume.read(volume.box)[0], data)
    assert not Handler.status["/a.zarr/.zarray"]


def test_a_missing_chunk_behind_http_reads_as_the_fill_value(tmp_path, stores, server):
    stores.write(tmp_path / "a.zarr", stores.numbers(), zarr_format=2, fill_value=9)
    (tmp_path / "a.zarr" / "0.0.0").unlink()
    volume = open_volume(f"{server}/a.zarr", key="input")
    assert (volume.read(Box((0, 0, 0), (2, 3, 3))) == 9).all()


def test_unreachable_stores_are_refused(tmp_path, stores, server):
    with pytest.raises(VolumeError, match="input: no zarr metadata found at http"):
        open_volume(f"{server}/nothing.zarr", key="input")
    Handler.status["/a.zarr/zarr.json"] = [403] * 2
    with pytest.raises(VolumeError, match=r"input: .*/zarr.json cannot be read .*403"):
        open_volume(f"{server}/a.zarr", key="input")
    with pytest.raises(VolumeError, match=r"input: .* cannot be read"):
        open_volume("http://127.0.0.1:9/a.zarr", key="input")


def test_a_server_that_never_answers_does_not_hang_us(monkeypatch):
    monkeypatch.setattr(remote, "SILENCE_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/a.zarr"
        with pytest.raises(VolumeError, match=r"cannot be read .*Timeout"):
            open_volume(url, key="input")


def test_a_missing_driver_names_the_extra(monkeypatch):
    def without(real):
        def guarded(name, *arguments, **options):
            if name.split(".")[0] in ("s3fs", "aiohttp"):
                raise ImportError(name)
            return real(name, *arguments, **options)

        return guarded

    monkeypatch.setattr(builtins, "__import__", without(builtins.__import__))
    monkeypatch.setattr(importlib, "import_module", without(importlib.import_module))
    loaded = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(loaded, "s3", raising=False)
    with pytest.raises(VolumeError, match=r'input: .*; pip install "vcmodels\[remote\]"'):
        open_volume("s3://bucket/a.zarr", key="input")
    with pytest.raises(VolumeError, match="gopher:// cannot be opened"):
        open_volume("gopher://bucket/a.zarr", key="input")


def test_a_store_that_lists_is_listed(tmp_path, stores):
    data = stores.numbers()
    data[:2, :3, :3] = 0
    stores.write(tmp_path / "a.zarr", data, zarr_format=2)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "a.zarr"), "/bucket/a.zarr", recursive=True)
    volume = open_volume("memory://bucket/a.zarr", key="input")
    np.testing.assert_array_equal(volume.read(volume.box)[0], data)
    assert volume.missing_blocks() == 1
    assert not volume.is_stored(Box((0, 0, 0), (2, 3, 3)))
    before = volume.fingerprint()
    memory.rm("/bucket/a.zarr/0.0.1")
    assert open_volume("memory://bucket/a.zarr", key="input").fingerprint() != before


def test_a_wrong_separator_behind_a_url_shows_when_it_is_listed(tmp_path, stores):
    stores.write(tmp_path / "a.zarr", stores.numbers(), zarr_format=2)
    stores.edit(tmp_path / "a.zarr" / ".zarray", dimension_separator="/")
    fsspec.filesystem("memory").put(str(tmp_path / "a.zarr"), "/wrong/a.zarr", recursive=True)
    volume = open_volume("memory://wrong/a.zarr", key="input")
    with pytest.raises(VolumeError, match=r"input: 0 of 27 chunks found .* look like \d\.\d\.\d"):
        volume.missing_blocks()
