import errno
import os
import signal
import stat
import subprocess
import sys
import time

import pytest

from vcmodels.volumes.places import read_json, sweep_temporaries, write_atomic, write_json


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    write_json(path, {"ü": [1, None, 2.5]})
    assert read_json(path) == {"ü": [1, None, 2.5]}
    write_atomic(path, b"[]")
    assert path.read_bytes() == b"[]"
    assert names(path.parent) == ["a.json"]


def test_a_new_file_has_the_mode_that_open_would_give(tmp_path):
    write_atomic(tmp_path / "a", b"")
    (tmp_path / "b").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "ab"}
    assert len(modes) == 1


def test_a_failed_write_keeps_the_old_file_and_leaves_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    write_atomic(path, b"old")

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vcmodels.volumes.places.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.json"]


def test_nan_is_not_written_as_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", [float("nan")])
    assert not (tmp_path / "a.json").exists()


def test_a_kill_at_any_instant_leaves_a_whole_file(tmp_path):
    path = tmp_path / "a.bin"
    code = (
        "import sys\nfrom vcmodels.volumes.places import write_atomic\n"
        "print(flush=True)\n"
        "while True:\n    for b in (b'0', b'1'): write_atomic(sys.argv[1], b * 2_000_000)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        time.sleep(0.25)
        child.send_signal(signal.SIGKILL)
    data = path.read_bytes()
    assert len(data) == 2_000_000
    assert len(set(data)) == 1
    (tmp_path / ".decoy-not-ours").touch()
    sweep_temporaries(tmp_path)
    assert names(tmp_path) == [".decoy-not-ours", "a.bin"]


def test_a_full_disk_names_the_file_and_leaves_the_old_one(tmp_path, monkeypatch):
    def full(_handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    monkeypatch.setattr("vcmodels.volumes.places.os.fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.bin'"):
        write_atomic(path, b"new")
    assert (names(tmp_path), path.read_bytes()) == (["a.bin"], b"old")
