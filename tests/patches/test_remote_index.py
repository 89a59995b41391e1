"""Label indexes of stores that cannot be listed (http) and of those that can (memory)."""

import functools
import http.server
import shutil
import threading
from collections import Counter
from pathlib import Path

import fsspec
import numpy as np
import pytest

from tests.patches.test_index_store import ask, totals
from vcmodels.errors import RunError
from vcmodels.volumes import remote

asked: Counter[tuple[str, str]] = Counter()
failing: set[str] = set()


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        self.answer(super().do_GET)

    def do_HEAD(self):
        self.answer(super().do_HEAD)

    def answer(self, normally):
        asked[self.command, self.path] += 1
        if self.path in failing:
            self.send_error(500)
        else:
            normally()

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch):
    monkeypatch.setattr(remote, "PAUSES_S", (0.01, 0.02))


@pytest.fixture
def server(tmp_path):
    asked.clear()
    failing.clear()
    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


@pytest.fixture
def labels():
    rng = np.random.default_rng(0)
    array = rng.integers(0, 3, (20, 25, 31)).astype(np.uint8)
    array[5:15, :, 14:] = 0
    return array


def chunks(location):
    return {str(p.relative_to(location)) for p in Path(location, "c").rglob("*") if p.is_file()}


def test_a_store_that_cannot_be_listed_is_asked_and_each_chunk_read_once(
    store, labels, server, tmp_path
):
    location = store("label", labels)
    url = f"{server}/data.zarr/label"
    first = ask(url, tmp_path / "index")
    assert first[0] == totals(labels)
    read = {path: n for (command, path), n in asked.items() if command == "GET" and "/c/" in path}
    for chunk in chunks(location):
        assert read.pop(f"/data.zarr/label/{chunk}") == 1
    assert len(read) == 4 * 5 * 5 - len(chunks(location))  # fsspec asks twice for what is absent
    asked.clear()
    assert ask(url, tmp_path / "index") == first
    assert not any(n for (c, p), n in asked.items() if c == "GET" and p[18:] in chunks(location))


def test_a_changed_chunk_behind_http_is_noticed(store, labels, server, tmp_path):
    location = store("label", labels)
    url = f"{server}/data.zarr/label"
    ask(url, tmp_path / "index")
    shutil.rmtree(Path(location, "c", "0"))
    labels[:5] = 0
    assert ask(url, tmp_path / "index")[0] == totals(labels)


def test_a_server_that_fails_is_no_absent_chunk(store, labels, server):
    store("label", labels)
    failing.add("/data.zarr/label/c/0/0/1")
    with pytest.raises(RunError, match=r"c/0/0/1: cannot be asked for .*500"):
        ask(f"{server}/data.zarr/label", None)


def test_a_remote_store_that_can_be_listed_is(store, labels, tmp_path):
    location = store("label", labels)
    memory = fsspec.filesystem("memory")
    memory.put(location, "/bucket/label", recursive=True)
    try:
        assert ask("memory://bucket/label", tmp_path / "index")[0] == totals(labels)
    finally:
        memory.rm("/bucket", recursive=True)


def test_an_index_of_labels_on_s3_is_made_and_kept(store, labels, s3, tmp_path):
    location = store("label", labels)
    s3.upload(location, f"{s3.bucket}/label")
    url = f"s3://{s3.bucket}/label"
    assert ask(url, tmp_path / "index")[0] == totals(labels)
    read = {path for method, path in s3.asked if method == "GET" and "/c/" in path}
    assert len(read) == len(chunks(location))
    s3.reset()
    assert ask(url, tmp_path / "index")[0] == totals(labels)
    assert not any("/c/" in path for _, path in s3.asked)
