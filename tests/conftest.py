import json
import os
import signal
import uuid
from importlib import import_module
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from vcmodels.boards import EventWriter
from vcmodels.phantom import write_phantom
from vcmodels.reporting import STOP_SIGNALS
from vcmodels.symmetry.follow import findings_of, question_of

# Threads wait for each other on volumes this small: two take longer than one.
torch.set_num_threads(1)
# A busy machine is no failure: a whole test has its limit in pyproject.toml.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


@pytest.fixture(scope="session", autouse=True)
def _no_test_waits_for_the_disk():
    """`os.fsync` checks its handle and goes on: no test here cuts the power.

    It is the real one in the processes that tests start as a user would.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: os.fstat(handle) and None)
        yield


draw_network = EventWriter._draw_network


@pytest.fixture(scope="session", autouse=True)
def _no_graphs():
    """TensorBoard gets no graph of a network, a quarter of a short training: see `graphs`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EventWriter, "_draw_network", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def graphs():
    """TensorBoard gets the graph of a network, as users have it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EventWriter, "_draw_network", draw_network)
        yield


@pytest.fixture(scope="session", autouse=True)
def _symmetry_is_found_once():
    """Trainings look once for the symmetry of the same patches of the same data, a fifth of each.

    What is found follows from these, see `findings_of`; the commands look each time.
    """
    known = {}

    def remembered(resolved, rows, regions, **options):
        task, spacings = resolved.task, [volume.spacing for volume in resolved.volumes]
        asked = (
            options["data_sha256"], question_of(task), task.dataset_config.model_dump_json(),
            task.tr_params.patch_size, task.tr_params.seed, rows.tobytes(), *regions, *spacings,
        )  # fmt: skip
        if asked not in known:
            known[asked] = findings_of(resolved, rows, regions, **options)
        return known[asked]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("vcmodels.training.train"), "findings_of", remembered)
        yield


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory, monkeypatch) -> Path:
    """Where label indexes are kept: not in the home of who runs the tests."""
    path = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(path))
    return path


@pytest.fixture(autouse=True)
def _signals_are_put_back():
    """`main` sets handlers for its process; one that is forked later would not end by SIGTERM."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def phantom(tmp_path_factory) -> Path:
    """A small scroll with `ct`, `sheet` and `normals`; never written to by a test."""
    path = tmp_path_factory.mktemp("phantom") / "scroll.zarr"
    write_phantom(str(path), shape=(24, 96, 56), seed=0, chunks=(16, 16, 16))
    return path


@pytest.fixture(scope="session")
def s3_server():
    """moto's S3 server; imported when a test asks for it, which takes a second."""
    from tests.s3 import Server

    with Server().running() as server:
        yield server


@pytest.fixture
def s3(s3_server, monkeypatch):
    """The S3 server, with an empty bucket of the test's own in `bucket`, tried again at once."""
    import fsspec

    from vcmodels.volumes import remote

    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(remote, "PAUSES_S", (0.01, 0.02))
    s3_server.reset()
    s3_server.bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    fsspec.filesystem("s3", use_listings_cache=False).mkdir(s3_server.bucket)
    return s3_server


@pytest.fixture
def sheet_task(phantom, tmp_path) -> dict:
    """A task that trains in seconds: two targets, a 16-voxel patch, a two-level network."""
    return {
        "tr_params": {
            "model_name": "tiny",
            "patch_size": [16, 16, 16],
            "batch_size": 2,
            "tr_val_split": 0.7,
            "max_steps_per_epoch": 3,
            "max_val_steps_per_epoch": 1,
            "max_epoch": 2,
            "num_dataloader_workers": 0,
            "ckpt_out_base": str(tmp_path / "run"),
            "amp": "off",
            "compile": False,
            "warmup_steps": 1,
        },
        "model_config": {"name": "residual_unet", "f_maps": [4, 8], "num_levels": 2},
        "inference_params": {
            "input_path": str(phantom / "ct"),
            "output_dir": str(tmp_path / "out"),
        },
        "dataset_config": {
            "min_bbox_percent": 0.1,
            "min_labeled_ratio": 0.01,
            "volume_paths": [
                {
                    "input": str(phantom / "ct"),
                    "sheet": str(phantom / "sheet"),
                    "normals": str(phantom / "normals"),
                    "ref_label": "sheet",
                }
            ],
            "targets": {
                "sheet": {"channels": 1, "activation": "sigmoid", "ignore_label": 2},
                "normals": {"channels": 3, "activation": "none"},
            },
        },
    }


@pytest.fixture
def task_file(tmp_path):
    """Writes a task to `task.json` and returns its path."""

    def write(task: dict, name: str = "task.json") -> Path:
        path = tmp_path / name
        path.write_text(json.dumps(task))
        return path

    return write
