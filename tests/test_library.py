"""The library: its names, what importing it costs, and the page that shows it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import vcmodels
from vcmodels.phantom import write_phantom

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
NAMES = [
    "CheckpointError", "OutputError", "Predictor", "RefusedError", "RunError", "TaskError",
    "VcmodelsError", "VolumeError", "evaluate", "find_patches", "load_predictor", "load_task",
    "open_volume", "predict_volume", "sample", "score", "train", "training_set",
]  # fmt: skip


def test_the_names_of_the_library_are_pinned():
    assert vcmodels.__all__ == NAMES
    assert set(NAMES) <= set(dir(vcmodels))
    for name in NAMES:
        assert getattr(vcmodels, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        vcmodels.trian  # noqa: B018


def test_importing_the_package_imports_nothing_else():
    program = (
        "import sys, json, vcmodels; vcmodels.VcmodelsError;"
        "print(json.dumps([m for m in ('torch', 'numpy', 'zarr', 'pydantic') if m in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert json.loads(done.stdout) == []


def test_type_checkers_see_the_types_of_the_package():
    assert (Path(vcmodels.__file__).parent / "py.typed").exists()


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the blocks of the page leave behind, run in their order in an empty folder."""
    folder = tmp_path_factory.mktemp("page")
    write_phantom(str(folder / "scroll.zarr"), shape=(32, 96, 64), seed=0, chunks=(16, 32, 32))
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.M | re.S)
    names: dict = {"__name__": "page"}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in blocks:
            exec(compile(block, "docs/python.md", "exec"), names)
    return names


def test_the_page_trains_and_predicts_the_same_numbers_from_arrays_and_files(page):
    assert page["run"].best.exists()
    assert page["run"].log.read_text().count("\n") == 2
    probability, stored = page["probability"], page["stored"]
    assert (probability.dtype, probability.shape) == (np.float32, (32, 96, 64))
    codes = page["predictor"].predict(page["array"], encoded=True)["sheet"]
    np.testing.assert_array_equal(codes, stored.read(stored.box)[0])
    assert page["finer"]["sheet"].shape == probability.shape


def test_the_page_scores_and_iterates(page):
    truth = page["label"].read(page["label"].box)[0]
    counts, found = truth != 2, page["stored"].read(page["stored"].box)[0] >= 128
    overlap = (
        2 * (found & (truth == 1) & counts).sum() / ((found & counts).sum() + (truth == 1).sum())
    )
    assert page["scores"]["dice"] == pytest.approx(overlap, abs=1e-9)
    assert page["image"].shape == (2, 1, 32, 32, 32)
    assert page["one"].image.shape == (1, 32, 32, 32)
    assert len(page["dataset"]) <= len(page["patches"].rows)


def test_notes_on_how_a_task_is_read_are_warnings(sheet_task):
    sheet_task["model_config"] = {"f_maps": [4, 8], "n_levels": 2}
    with pytest.warns(UserWarning, match="n_levels"):
        task = vcmodels.load_task(sheet_task)
    assert task.model.num_levels == 2


def test_a_script_that_trains_runs_once_and_not_in_its_workers(tmp_path):
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "own_loop.py")],
        capture_output=True, text=True, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = [float(text) for text in re.findall(r"own loop, epoch \d: loss (\S+)", done.stdout)]
    assert len(losses) == 2
    assert "'dice': " in done.stdout


def test_an_array_that_holds_nothing_is_warned_of(page):
    with pytest.warns(UserWarning, match="channel 0"):
        page["predictor"].predict(np.zeros_like(page["array"]))


def test_a_predictor_of_nothing_is_refused():
    with pytest.raises(vcmodels.CheckpointError, match="got no checkpoint; name one"):
        vcmodels.load_predictor()
