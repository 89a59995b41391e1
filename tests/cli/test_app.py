import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import zarr

import vcmodels.evaluation
import vcmodels.inference
import vcmodels.training
from vcmodels.cli import Session, main
from vcmodels.cli.console import Console
from vcmodels.errors import RunError, TaskError
from vcmodels.volumes import create_array, open_volume

ROOT = Path(__file__).parents[2]


def files_under(folder):
    return sorted(str(path) for path in folder.rglob("*"))


def run_python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=800, **options
    )


@pytest.fixture
def refused(capsys):
    """Runs a command that must be refused; returns its one line on stderr."""

    def run(*arguments, code=2):
        assert main([str(argument) for argument in arguments]) == code
        captured = capsys.readouterr()
        assert captured.err.startswith("error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return run


@pytest.mark.parametrize("command", ["train", "infer", "check", "patches", "evaluate", "preview"])
def test_a_fault_in_the_task_is_one_line_and_exit_2(
    refused, task_file, sheet_task, tmp_path, command
):
    sheet_task["tr_params"]["batch_sise"] = 2
    path = task_file(sheet_task)
    before = files_under(tmp_path)
    line = refused(command, path)
    assert line == 'error: tr_params.batch_sise: unknown key; did you mean "batch_size"?\n'
    assert files_under(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "error: vcmodels train: Missing argument 'TASK'; see vcmodels train --help\n"),
        (["bogus"], "error: vcmodels: No such command 'bogus'; see vcmodels --help\n"),
        (["train", "x", "--bogus"], "No such option: --bogus"),
        (["train", "none.json"], "error: none.json: no such file; check the path"),
        (["phantom", "x", "--shape", "1,2"], 'error: --shape: found "1,2"; give three numbers'),
        (["phantom", "x", "--shape", "0,2,3"], "error: --shape: "),
        (["phantom", "x", "--zarr-format", "4"], "Invalid value for '--zarr-format'"),
        (["phantom", "x", "--spacing", "2"], 'error: --spacing: found "2"; give two numbers'),
        (["phantom", "x", "--spacing", "1,6"], "error: --spacing: found 1 and 6; give two numbers"),
    ],
)
def test_wrong_arguments_are_one_line_and_exit_2(refused, arguments, message):
    assert message in refused(*arguments)


def test_debug_shows_where_an_error_came_from(tmp_path):
    with pytest.raises(TaskError, match="no such file"):
        main(["check", str(tmp_path / "none.json"), "--debug"])


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RunError("volume a", "chunk 0.0.0 is damaged", "restore it"), 1, "volume a: chunk"),
        (OSError(28, "No space left on device", "run/last.pth"), 1, "run/last.pth: No space left"),
        (FileNotFoundError(2, "No such file", "a"), 1, "a: No such file"),
        (MemoryError(), 1, "memory: "),
        (torch.OutOfMemoryError("CUDA out of memory"), 1, "memory: there is not enough; free"),
        (TaskError("a", "line 1\nline 2"), 2, "a: line 1 line 2"),
    ],
)
def test_failures_while_running_are_one_line(
    refused, task_file, sheet_task, monkeypatch, error, code, message
):
    def fail(*_arguments, **_options):
        raise error

    monkeypatch.setattr(vcmodels.training, "train", fail)
    assert message in refused("train", task_file(sheet_task), code=code)


def test_the_exit_code_of_a_training_is_passed_on(task_file, sheet_task, monkeypatch):
    seen = {}

    def train(task, **options):
        seen.update(options, task=task)
        return 143

    monkeypatch.setattr(vcmodels.training, "train", train)
    path = str(task_file(sheet_task))
    assert main(["train", path, "--restart", "--set", "tr_params.batch_size=7"]) == 143
    assert seen["restart"] is True
    assert seen["task"].tr_params.batch_size == 7
    assert seen["task"].overrides == ["tr_params.batch_size=7"]


def test_a_quiet_training_says_errors_alone(task_file, sheet_task, capsys):
    sheet_task["tr_params"] |= {"max_epoch": 1, "max_steps_per_epoch": 1}
    path = str(task_file(sheet_task))
    assert main(["train", path, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert main(["train", path, "--quiet", "--set", "tr_params.initial_lr=7"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def replace_prediction(monkeypatch, predict_request):
    """Put a function in the place of the prediction; the request that it gets says where it goes.

    Returns:
        A list of the checkpoints that are loaded for it.
    """
    loaded = []

    def load_predictor(*paths, **_):
        loaded.extend(paths)
        return SimpleNamespace(networks=())

    monkeypatch.setattr("vcmodels.inference.ensemble.choose_checkpoints", chosen_checkpoints)
    monkeypatch.setattr(vcmodels.inference, "load_predictor", load_predictor)
    monkeypatch.setattr(
        vcmodels.inference,
        "request_of",
        lambda task, *_, **__: SimpleNamespace(
            output_dir=task.inference_params.output_dir, params=task.inference_params, steps=()
        ),
    )
    monkeypatch.setattr(vcmodels.inference, "predict_request", predict_request)
    return loaded


def chosen_checkpoints(_task, named=None, **_options):
    return [Path.cwd() / name for name in named or ["best.pth"]]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_inference_says_so_and_exits_by_the_signal(
    task_file, sheet_task, monkeypatch, capsys, number
):
    def predict_request(_request, options):
        assert not options.should_stop()
        os.kill(os.getpid(), number)
        assert options.should_stop()
        return vcmodels.inference.InferenceReport(Path("out"), is_through=False)

    replace_prediction(monkeypatch, predict_request)
    assert main(["infer", str(task_file(sheet_task))]) == 128 + number
    assert "stopped; the same command continues" in capsys.readouterr().out


def test_a_signal_before_the_first_prediction_leaves_at_once(task_file, sheet_task, monkeypatch):
    def predict_request(_request, _options):
        os.kill(os.getpid(), signal.SIGTERM)
        pytest.fail("the process should have left")

    replace_prediction(monkeypatch, predict_request)
    with pytest.raises(SystemExit, match="143"):
        main(["infer", str(task_file(sheet_task))])


def test_infer_passes_its_options_on(task_file, sheet_task, monkeypatch, capsys):
    seen = []

    def predict_request(request, options):
        seen.append((request, options))
        return vcmodels.inference.InferenceReport(Path("o"), {"sheet": Path("o/sheet")}, 5)

    loaded = replace_prediction(monkeypatch, predict_request)
    path = str(task_file(sheet_task))
    assert main(["infer", path, "--checkpoint", "c.pth", "--overwrite", "--dry-run"]) == 0
    assert loaded == [Path.cwd() / "c.pth"]
    (request, options), *_ = seen
    assert (request.output_dir, options.overwrite, options.dry_run) == (
        sheet_task["inference_params"]["output_dir"], True, True,
    )  # fmt: skip
    assert "sheet: o/sheet" in capsys.readouterr().out
    assert main(["infer", path, "--checkpoint", "c.pth", "--part", "2/3"]) == 0
    assert seen[1][1].part == vcmodels.inference.Part(2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--part", "3/3"], '--part: found "3/3"; give I/N with I from 0 to N-1'),
        (["--part", "1"], '--part: found "1"'),
        (["--devices", "cpu", "--dry-run"], "--devices: goes with none of"),
        (["--dask", "local:2", "--devices", "cpu"], "--dask: goes with none of --devices, --part"),
        (["--dask", "tcp://127.0.0.1:9"], "no Dask scheduler answers at tcp://127.0.0.1:9"),
        (["--devices", "cpu,tpu"], '--devices: found "tpu"'),
    ],
)
def test_parts_and_devices_that_make_no_sense_are_refused(
    task_file, sheet_task, monkeypatch, capsys, options, message
):
    assert main(["infer", str(task_file(sheet_task)), *options]) == 2
    assert message in capsys.readouterr().err


def test_check_prints_the_plan_and_writes_nothing(task_file, sheet_task, tmp_path, capsys):
    path = str(task_file(sheet_task))
    before = files_under(tmp_path)
    assert main(["check", path, "--set", "tr_params.batch_size=3"]) == 0
    out = capsys.readouterr().out
    for text in ("24 x 96 x 56", "uint8", "16 x 16 x 16", "sheet (ref)", "3 of 24 x 96 x 56",
                 "patches: not found yet", "residual_unet", "parameters", " GB", "3 patches of"):  # fmt: skip
        assert text in out
    assert files_under(tmp_path) == before


def test_check_says_how_intensities_are_measured_and_what_an_input_would_change(
    task_file, sheet_task, tmp_path, capsys
):
    config, inference = sheet_task["dataset_config"], sheet_task["inference_params"]
    raw = open_volume(inference["input_path"])
    rng, images = np.random.default_rng(0), {}
    for name, gain in (("b", 1.0), ("c", 1.0), ("d", 0.5)):
        noisy = raw.read(raw.box) * gain + rng.integers(0, 3, raw.extent)
        array = create_array(
            str(tmp_path / "more.zarr"), name, shape=raw.extent, chunks=raw.chunks, dtype="u1"
        )
        array.write(raw.box, noisy.astype(np.uint8))
        images[name] = array.location
    path = str(task_file(sheet_task))
    assert main(["check", path]) == 0
    one = "normalization: zscore per volume: one training volume does not show whether"
    assert one in capsys.readouterr().out
    entry = config["volume_paths"][0]
    config["volume_paths"] += [entry | {"input": images[name]} for name in ("b", "c")]
    for name, line in (("b", None), ("d", '"per": "volume", and it is "global": 4 training')):
        inference["input_path"] = images[name]
        assert main(["check", str(task_file(sheet_task))]) == 0
        out = capsys.readouterr().out
        assert "normalization: zscore per global: 3 training volumes agree: means by up" in out
        assert ("note: " in out) == (line is not None)
        assert line is None or line in out
    config["normalization"] = {"per": "volume"}
    assert main(["check", str(task_file(sheet_task))]) == 0
    assert "normalization" not in capsys.readouterr().out


def test_patches_are_found_once(task_file, sheet_task, capsys):
    path = str(task_file(sheet_task))
    assert main(["patches", path]) == 0
    first = capsys.readouterr().out
    assert "finding patches" in first
    assert main(["patches", path]) == 0
    again = capsys.readouterr().out
    assert "finding patches" not in again
    assert main(["check", path]) == 0
    count = first.splitlines()[-1].split()[-2]
    assert f"patches: {count} in " in capsys.readouterr().out
    assert main(["check", path, "--set", "dataset_config.min_labeled_ratio=0.02"]) == 0
    assert "will be found anew" in capsys.readouterr().out


def test_notes_tell_how_old_spellings_are_read(task_file, sheet_task, capsys):
    sheet_task["model_config"]["n_levels"] = sheet_task["model_config"].pop("num_levels")
    assert main(["check", str(task_file(sheet_task))]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("note: model_config.n_levels is read as num_levels\n")
    assert captured.err == ""


def small_task(sheet_task, shape, folder, labels, **settings):
    """The task on one volume of its own."""
    for name, array in (("image", np.zeros(shape, np.uint8)), ("label", labels)):
        zarr.create_array(folder / "small.zarr" / name, data=array, chunks=(8, 8, 8))
    entry = {"input": str(folder / "small.zarr/image"), "sheet": str(folder / "small.zarr/label")}
    sheet_task["dataset_config"] |= {
        "volume_paths": [{**entry, "ref_label": "sheet"}],
        "targets": {"sheet": {"kind": "binary"}},
        "index_dir": str(folder / "index"),
    }
    sheet_task["tr_params"] |= settings
    sheet_task["inference_params"] = {}
    return sheet_task


def mostly_foreground(shape):
    labels = np.ones(shape, np.uint8)
    labels[0, 0] = 0
    return labels


@pytest.mark.parametrize("command", ["check", "train"])
def test_what_cannot_be_divided_is_refused_before_anything_is_written(
    command, sheet_task, task_file, tmp_path, capsys
):
    shape = (18, 28, 22)
    task = small_task(sheet_task, shape, tmp_path, mostly_foreground(shape))
    path = task_file(task)
    assert main([command, str(path)]) == 2
    error = capsys.readouterr().err
    assert "holds no two patches of 16 x 16 x 16" in error
    assert "give 14 along y" in error
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "index").exists()
    task["tr_params"]["patch_size"] = [16, 14, 16]
    assert main(["check", str(task_file(task))]) == 0


def test_check_says_how_patches_are_divided_and_writes_nothing(
    sheet_task, task_file, tmp_path, capsys
):
    shape = (17, 33, 20)
    labels = mostly_foreground(shape)
    path = task_file(small_task(sheet_task, shape, tmp_path, labels))
    assert main(["check", str(path)]) == 0
    said = capsys.readouterr().out
    assert "no room for a guard band of a patch (16 x 16 x 16)" in said
    assert "1 training and 1 validation patches" in said
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small.zarr", "task.json"]


def test_check_refuses_thresholds_that_no_patch_meets(sheet_task, task_file, tmp_path, capsys):
    shape = (18, 40, 22)
    task = small_task(
        sheet_task, shape, tmp_path, np.eye(40, 22, dtype=np.uint8)[None].repeat(18, 0)
    )
    task["dataset_config"]["min_labeled_ratio"] = 0.9
    assert main(["check", str(task_file(task))]) == 2
    assert "min_labeled_ratio: no patch qualifies" in capsys.readouterr().err


def test_schema_is_json_or_the_documentation(capsys):
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["properties"]["tr_params"]
    assert main(["schema", "--markdown"]) == 0
    page = (ROOT / "docs" / "task-file.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == page


def test_a_phantom_is_written_once(tmp_path, capsys, refused):
    path = str(tmp_path / "a.zarr")
    size = ["--shape", "8,16,24", "--chunks", "8,8,8"]
    assert main(["phantom", path, *size, "--zarr-format", "3"]) == 0
    assert (tmp_path / "a.zarr" / "ct" / "zarr.json").exists()
    before = files_under(tmp_path)
    capsys.readouterr()
    assert main(["phantom", path, *size, "--keep"]) == 0
    assert "exists already" in refused("phantom", path, *size)
    keep = ("phantom", path, *size, "--keep")
    assert "is a phantom of seed 0, not 3; remove it" in refused(*keep, "--seed", "3")
    assert "of spacing loose, not [2.0, 6.0]" in refused(*keep, "--spacing", "2,6")
    assert "of shape [8, 16, 24], not [160, 224, 224]" in refused("phantom", path, "--keep")
    assert "is there already and is no phantom" in refused("phantom", f"{path}/ct", "--keep")
    assert files_under(tmp_path) == before


def test_plan_says_what_fits_and_why_and_writes_nothing(task_file, sheet_task, tmp_path, capsys):
    del sheet_task["tr_params"]["patch_size"], sheet_task["tr_params"]["batch_size"]
    path = str(task_file(sheet_task))
    before = files_under(tmp_path)
    assert main(["plan", path, "--set", "tr_params.memory_gb=0.02"]) == 0
    out = capsys.readouterr().out
    for text in ("too large", "planned", "memory 0.02 GB: tr_params.memory_gb", "patch_size [",
                 "along y", "batch_size 2: memory goes to the patch", "chunks of 16 x 16 x 16"):  # fmt: skip
        assert text in out
    sizes = out.splitlines()[-1]
    assert main(["check", path, "--set", "tr_params.memory_gb=0.02"]) == 0
    assert sizes.replace('"', "").replace(": ", " ") in capsys.readouterr().out
    assert files_under(tmp_path) == before
    assert main(["plan", path, "--set", "tr_params.memory_gb=1e-6"]) == 2
    assert "tr_params.memory_gb" in capsys.readouterr().err


def test_check_does_not_wait_for_a_pipe(task_file, sheet_task, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    sheet_task["dataset_config"]["cache_file"] = str(tmp_path / "pipe")
    assert main(["check", str(task_file(sheet_task))]) == 0
    assert "pipe is not a file" in capsys.readouterr().out


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from vcmodels.cli import main; code = main(['train', '--help']);"
        "print([m for m in ('torch', 'zarr', 'numpy', 'vcmodels.config') if m in sys.modules], code)"
    )
    done = run_python("-c", code, cwd=ROOT)
    assert done.stdout.endswith("[] 0\n")
    assert "--restart" in done.stdout


@pytest.mark.parametrize("door", [["train.py"], ["infer.py"], ["-m", "vcmodels", "check"]])
def test_the_doors_lead_to_the_commands(door):
    done = run_python(*door, cwd=ROOT)
    assert done.returncode == 2
    assert "Missing argument 'TASK" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error():
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as stdout:
        done = subprocess.run(
            [sys.executable, "-m", "vcmodels", "schema"],
            stdout=stdout, stderr=subprocess.PIPE, cwd=ROOT, timeout=800,
        )  # fmt: skip
    assert done.returncode == 0
    assert done.stderr == b""


@pytest.mark.parametrize(("arguments", "code"), [("schema", 0), ("bogus", 2)])
def test_closed_streams_change_nothing(arguments, code):
    command = f"'{sys.executable}' -m vcmodels {arguments} <&- >&- 2>&-"
    assert subprocess.run(command, shell=True, cwd=ROOT, timeout=800).returncode == code


def test_a_bare_environment_and_an_odd_name_are_no_error(task_file, sheet_task):
    path = task_file(sheet_task, "tâche ☃.json")
    environment = {"LANG": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = run_python("-m", "vcmodels", "check", str(path), cwd=ROOT, env=environment)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_working_directory_that_is_gone_is_said(tmp_path):
    code = (
        "import os, sys; from vcmodels.cli import main; os.rmdir(os.getcwd());"
        "sys.exit(main(['check', 'a.json']))"
    )
    gone = tmp_path / "gone"
    gone.mkdir()
    done = run_python("-c", code, cwd=gone, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 2
    assert done.stderr == "error: the working directory: is gone; cd to one that is there\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.1, 0.5, 1.0])
def test_a_signal_while_modules_are_imported_leaves_quietly(number, delay):
    code = (
        "import sys; from vcmodels.cli import main; print('ready', flush=True);"
        "sys.exit(main(['train', 'none.json']))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=800)
    assert process.returncode == 128 + number or (
        process.returncode == 2 and stderr.startswith(b"error: none.json")
    )
    assert b"Traceback" not in stderr


def test_a_signal_ends_the_process_at_once_until_all_is_imported(monkeypatch):
    session, exits = Session("vcmodels"), []
    monkeypatch.setattr(os, "_exit", exits.append)
    with pytest.raises(SystemExit, match="130"):  # what follows where _exit does not end it
        session.stop(signal.SIGINT, None)
    assert exits == [130]
    session.begin()
    with pytest.raises(SystemExit, match="143"):
        session.stop(signal.SIGTERM, None)
    assert exits == [130]


def test_preview_draws_into_the_folder_that_is_asked_for(task_file, sheet_task, tmp_path, capsys):
    path = str(task_file(sheet_task | {"augment": [{"name": "flip"}]}))
    assert main(["preview", path, "--output", str(tmp_path / "p"), "--samples", "1"]) == 0
    assert f"2 pictures in {tmp_path / 'p'}" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == ["01_flip.png", "all_1.png"]


def test_evaluate_scores_the_part_that_is_asked_for(task_file, sheet_task, monkeypatch, refused):
    seen = {}

    def evaluate(_task, **given):
        seen.update(given)
        return SimpleNamespace(failures=())

    monkeypatch.setattr(vcmodels.evaluation, "evaluate", evaluate)
    path = str(task_file(sheet_task))
    assert main(["evaluate", path, "--bbox", "0:8,16:96,0:56", "--overlay", "o.png"]) == 0
    assert seen["bbox"] == [(0, 8), (16, 96), (0, 56)]
    assert seen["overlay"] == Path("o.png")
    for wrong in ("0:8,0:8", "0:8,8:8,0:8", "0:8,0:8,a:8", "-1:8,0:8,0:8", "0:8,0:8,0:8,0:8"):
        assert "--bbox: found" in refused("evaluate", path, f"--bbox={wrong}")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_bars_are_drawn_on_a_terminal_only(monkeypatch, capsys):
    console = Console()
    with console.bar("finding", 10) as advance:
        advance(3, "text")
        console.say("a line")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("a line\n", "")

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with console.bar("finding", 10) as advance, console.bar("inner", 5) as inner:
        advance(3, "text")
        inner(1, "more")
        console.say("a line")
    assert capsys.readouterr().out == "a line\n"
    assert "finding" in terminal.getvalue()
    assert "inner" in terminal.getvalue()


def test_a_terminal_shows_at_once_that_a_command_is_imported(monkeypatch, tmp_path):
    def written(*words):
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        main(words)
        return terminal.getvalue()

    gone = "\r\x1b[K"
    assert written("runs", str(tmp_path)).startswith(f"runs: importing ...{gone}")
    assert written("train", "none.json").startswith(f"train: importing ...{gone}error: none.json")
    assert written("train", "--none").startswith(f"train: importing ...{gone}error: ")
    assert written("train", "none.json", "--quiet").startswith("error: none.json")
    assert written("train", "--help") == ""


def test_a_signal_before_the_work_says_that_nothing_was_done(capfd, monkeypatch):
    monkeypatch.setattr(os, "_exit", lambda _code: None)
    for words in (["train", "t.json"], ["train", "t.json", "--quiet"]):
        with pytest.raises(SystemExit):
            Session("vcmodels", words).stop(signal.SIGINT, None)
    assert capfd.readouterr().err == "stopped before anything was done\n"


def test_infer_names_the_command_that_scores_only_what_has_labels(
    task_file, sheet_task, monkeypatch, capsys
):
    def predict_request(_request, _options):
        return vcmodels.inference.InferenceReport(Path("out"), {"sheet": Path("out/sheet")})

    replace_prediction(monkeypatch, predict_request)
    path = str(task_file(sheet_task))
    scoring = f"next: vcmodels evaluate {path} --overlay tiny.png\n"
    for words, has_labels in (([], True), (["--output", "other"], False)):
        assert main(["infer", path, *words]) == 0
        said = capsys.readouterr().out
        assert "sheet: out/sheet\neach is an OME-Zarr image" in said
        assert (scoring in said) is has_labels
    sheet_task["inference_params"]["input_path"] = "elsewhere.zarr"
    assert main(["infer", str(task_file(sheet_task))]) == 0
    assert "next:" not in capsys.readouterr().out


def test_a_signal_before_the_first_prediction_says_so(task_file, sheet_task, monkeypatch, capsys):
    replace_prediction(monkeypatch, lambda _request, _options: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit, match="130"):
        main(["infer", str(task_file(sheet_task))])
    assert "stopped before the first patch: nothing was predicted" in capsys.readouterr().out


def test_an_overlay_that_is_no_png_is_refused_before_anything_is_read(capsys):
    assert main(["evaluate", "none.json", "--overlay", "a.txt"]) == 2
    assert (
        capsys.readouterr().err
        == 'error: --overlay: found "a.txt"; name a PNG, as in overlay.png\n'
    )
