"""`vcmodels view`: what it serves, to whom, and what it refuses."""

import json
import socket
import urllib.error
import urllib.request
from importlib import import_module

import numpy as np
import pytest

from vcmodels.cli import main
from vcmodels.volumes import open_volume

pytest.importorskip("neuroglancer")
view = import_module("vcmodels.cli.view")  # the name is that of the command, too


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read()


@pytest.fixture
def visit(monkeypatch, capsys):
    """Runs the command, and while it serves calls a function with the address of the page."""

    def run(words, look):
        def wait():
            lines = capsys.readouterr().out.splitlines()
            (address,) = (line for line in lines if line.startswith("http"))
            seen.append(address)
            look(address)
            raise SystemExit(130)  # as Ctrl-C ends it

        seen: list[str] = []
        monkeypatch.setattr(view, "wait", wait)
        with pytest.raises(SystemExit):
            main(["view", *words, "--no-browser"])
        with pytest.raises(urllib.error.URLError):
            get(seen[0])

    return run


def test_it_serves_the_page_and_the_voxels_to_those_who_know_the_address(
    visit, phantom, sheet_task, task_file
):
    def look(address):
        assert address.startswith("http://127.0.0.1:")
        page = get(address)
        assert b"neuroglancer" in page.lower()
        server, _, token = address.rstrip("/").rpartition("/v/")
        layers = f"{server}/layers/{token}"
        level = json.loads(get(f"{layers}/0/0/zarr.json"))
        chunk = level["chunk_grid"]["configuration"]["chunk_shape"]
        found = np.frombuffer(get(f"{layers}/0/0/c/0/1/0"), np.uint8).reshape(chunk)
        z, y, x = chunk
        np.testing.assert_array_equal(found, ct[:z, y : 2 * y, :x])
        for wrong in (f"{server}/layers/other/0/zarr.json", f"{layers}/0/0/c/99/0/0",
                      f"{layers}/../../etc/passwd", f"{layers}/0/%2e%2e/zarr.json"):  # fmt: skip
            with pytest.raises(urllib.error.HTTPError, match="404"):
                get(wrong)

    volume = open_volume(str(phantom / "ct"), key="x")
    ct = volume.read(volume.box)[0]
    visit([str(task_file(sheet_task))], look)


def test_who_has_the_address_gets_no_tokens_of_this_user(visit, phantom):
    def look(address):
        url = address.replace("/v/", "/credentials/").rstrip("/")
        body = json.dumps({"key": "gcs"}).encode()
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get(urllib.request.Request(url, body))

    visit([str(phantom / "ct")], look)


def test_an_address_of_ipv6_can_be_opened(visit, phantom):
    if not has_ipv6():
        pytest.skip("this machine has no IPv6")

    def look(address):
        assert address.startswith("http://[::1]:")
        assert b"neuroglancer" in get(address).lower()

    visit([str(phantom / "ct"), "--host", "::1"], look)


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as trial:
            trial.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_a_port_that_is_taken_is_refused(visit, phantom, capsys):
    def look(address):
        port = address.partition("127.0.0.1:")[2].partition("/")[0]
        assert main(["view", str(phantom / "ct"), "--port", port, "--no-browser"]) == 2
        assert f"--port: 127.0.0.1:{port} cannot be listened on" in capsys.readouterr().err

    visit([str(phantom / "ct")], look)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["TASK", "--image", "a.zarr"], "--image: is not for a task"),
        (["ARRAY", "--volume", "a"], "--volume: is not for an array"),
        (["ARRAY", "--set", "a.b=1"], "--set: is not for an array"),
        (["TASK", "--channel-axis", "last"], "--channel-axis: is not for a task"),
        (["ARRAY", "--channel-axis", "middle"], "--channel-axis: found"),
        (["absent.zarr"], "absent.zarr"),
        (["ARRAY", "--points", "absent.csv"], "--points: absent.csv cannot be read"),
        (["ARRAY", "--napari"], "the package napari is not installed; pip install"),
    ],
)
def test_what_does_not_fit_is_refused(
    words, found, phantom, sheet_task, task_file, capsys, monkeypatch
):
    places = {"TASK": str(task_file(sheet_task)), "ARRAY": str(phantom / "ct")}
    real = view.find_spec
    monkeypatch.setattr(view, "find_spec", lambda name: None if name == "napari" else real(name))
    assert main(["view", *(places.get(word, word) for word in words)]) == 2
    assert found in capsys.readouterr().err


def test_without_neuroglancer_it_says_what_to_install(phantom, capsys, monkeypatch):
    monkeypatch.setattr(view, "find_spec", lambda name: None)
    assert main(["view", str(phantom / "ct")]) == 2
    assert 'neuroglancer is not installed; pip install "vcmodels[view]"' in capsys.readouterr().err
