import json
import subprocess

from vcmodels.training.start import commit, environment


def test_the_environment_is_json_and_names_what_matters():
    found = json.loads(json.dumps(environment(), allow_nan=False))
    for key in ("command", "vcmodels", "python", "torch", "numpy", "zarr", "cpu", "cpus", "gpus"):
        assert found[key] is not None
    assert found["cpus"] >= 1


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_of_a_checkout_is_told_and_no_other(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-q", "-m", "first")
    git(tmp_path, "tag", "v1")
    head = git(tmp_path, "rev-parse", "HEAD")
    assert commit(tmp_path) == head
    (tmp_path / "file").write_text("2")
    assert commit(tmp_path) == f"{head}-dirty"
    (tmp_path / "installed").mkdir()
    assert commit(tmp_path / "installed") is None
