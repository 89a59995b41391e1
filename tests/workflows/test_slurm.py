"""Scripts are read by bash itself, and run with programs that stand in for SLURM's."""

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from vcmodels.cli import main
from vcmodels.config import load_task
from vcmodels.errors import RefusedError
from vcmodels.runs.run import add_start, end_start, fold_name
from vcmodels.volumes.places import write_json
from vcmodels.workflows.slurm import MOST_REQUEUES, Resources, batch_script

NASTY = 'it\'s "a" $HOME `id` $(id) * \\ \n#SBATCH --wrap=x'

FAKES = {
    # As srun: its own options first, then a command, to which signals go.
    "srun": 'echo "$*" > "$FAKE/srun"; while [ "${1#--}" != "$1" ]; do shift; done; exec "$@"',
    "scontrol": """case "$1 $2" in
"show hostnames") printf '%s\\n' node7 node8;;
"show job") echo "JobId=1 JobState=$STATE Reason=None";;
*) echo "$*" >> "$FAKE/requeued";;
esac""",
    # As python: leaves its arguments, and what a training does when it is told to stop.
    "python": """[ "$3" != runs ] || { echo "$5" > "$FAKE/looked"; cat "$FAKE/runs.json"; exit; }
printf '%s\\0' "$@" > "$FAKE/arguments.part"; pwd > "$FAKE/folder"
trap 'echo saved > "$FAKE/saved"; exit $STOPPED' TERM
mv "$FAKE/arguments.part" "$FAKE/arguments"
[ -z "$CODE" ] || exit "$CODE"
sleep 30 > /dev/null 2>&1 & wait""",
}


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """A folder of programs that comes first on the PATH; holds what they were told."""
    folder = tmp_path / "fake programs"
    folder.mkdir()
    for name, text in FAKES.items():
        program = folder / name
        program.write_text(f"#!/bin/bash\n{text}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


@pytest.fixture
def run(fake, tmp_path):
    """Runs a script as SLURM would, job 2 of an array; may send it TERM. Returns the process."""

    def start(text, *, terms=0, code="", stopped=143, state="RUNNING", restarts=0):
        script = tmp_path / "job.sh"
        script.write_text(text)
        slurm = {
            "SLURM_JOB_ID": "45", "SLURM_ARRAY_JOB_ID": "41", "SLURM_ARRAY_TASK_ID": "2",
            "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_RESTART_COUNT": str(restarts),
            "FAKE": str(fake), "STATE": state, "CODE": str(code), "STOPPED": str(stopped),
        }  # fmt: skip
        process = subprocess.Popen(
            ["bash", str(script)], env=os.environ | slurm, stdout=subprocess.PIPE, text=True
        )
        for number in range(terms):
            end = time.monotonic() + 30
            while not (fake / "arguments").exists() and time.monotonic() < end:
                time.sleep(0.02)
            time.sleep(0.02 * number)
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
        return process

    return start


def script(fake, words=("train", "t.json"), resources=None, **options):
    given = {"name": "tiny", "folder": "/", "python": str(fake / "python"), "run": "/a run"}
    return batch_script(list(words), resources or Resources(), **{**given, **options})


def told(fake):
    return (fake / "arguments").read_text().split("\0")[:-1]


def requeued(fake):
    path = fake / "requeued"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize("gpus", [0, 1, 3])
@pytest.mark.parametrize("option", [None, "--fold {i}", "--part {i}/7"])
def test_every_word_reaches_the_program_as_it_was(fake, run, tmp_path, nodes, gpus, option):
    folder = tmp_path / NASTY.replace("/", "")
    folder.mkdir()
    words = ["train", f"{folder}/{NASTY}.json", "--set", f"a={NASTY}", "--set", "b=-1", "--flag"]
    text = script(
        fake, words, Resources(gpus=gpus, nodes=nodes, cpus=4), folder=str(folder),
        option=option, tasks=None if option is None else 7,
    )  # fmt: skip
    process = run(text, code=0)
    assert process.returncode == 0
    expected = ["-m", "vcmodels"]
    if max(gpus, 1) * nodes > 1:
        expected = [
            "-m", "torch.distributed.run", "--nnodes", str(nodes),
            "--nproc-per-node", str(max(gpus, 1)), "--rdzv-backend", "c10d",
            "--rdzv-endpoint", "node7:20045", "--rdzv-id", "45", "-m", "vcmodels",
        ]  # fmt: skip
    tail = {None: [], "--fold {i}": ["--fold", "2"], "--part {i}/7": ["--part", "2/7"]}
    assert told(fake) == [*expected, *words, *tail[option]]
    assert (fake / "folder").read_text() == f"{folder}\n"
    assert (fake / "srun").read_text().startswith("--kill-on-bad-exit=1 --cpus-per-task=4 ")
    headers = [line for line in text.split("\n\n")[0].splitlines() if line.startswith("#SBATCH")]
    assert ("#SBATCH --array=0-6" in headers) == (option is not None)
    assert (f"#SBATCH --gpus-per-node={gpus}" in headers) == (gpus > 0)
    assert {"#SBATCH --requeue", "#SBATCH --signal=B:TERM@120"} < set(headers)
    assert requeued(fake) == []


@pytest.mark.parametrize(
    ("manner", "code", "is_requeued"),
    [
        ({"terms": 1}, 143, True),  # the time limit
        ({"terms": 1, "stopped": 130}, 130, True),
        ({"terms": 1, "stopped": 1}, 1, False),  # it failed while it stopped
        ({"terms": 1, "stopped": 137}, 137, False),
        ({"terms": 3}, 143, True),  # as often as SLURM likes
        ({"terms": 1, "stopped": 0}, 0, False),  # it had come to its end
        ({"code": 143}, 143, True),  # preempted: the signal went to the program alone
        ({"code": 1}, 1, False),
        ({"code": 2}, 2, False),
        ({"code": 0}, 0, False),
        ({"terms": 1, "state": "CANCELLED"}, 143, False),
        ({"terms": 1, "state": "COMPLETING"}, 143, False),
        ({"terms": 1, "restarts": MOST_REQUEUES}, 143, False),
    ],
    ids=str,
)
def test_a_stopped_job_goes_back_into_the_queue_and_no_other(fake, run, manner, code, is_requeued):
    """By array and task: the number of one job of an array can be that of the whole array."""
    process = run(script(fake, option="--fold {i}", tasks=3), **manner)
    assert process.returncode == code
    assert (fake / "saved").exists() == ("terms" in manner)
    assert requeued(fake) == (["requeue 41_2"] if is_requeued else [])


@pytest.mark.parametrize(
    ("outcome", "manner", "is_requeued"),
    [
        ("stopped", {"terms": 1}, True),
        ("failed: disk full", {"terms": 1}, False),
        ("", {"terms": 1}, False),  # killed while it saved
        ("stopped", {"code": 1}, False),  # by an earlier signal
        ("failed: x", {"terms": 1, "stopped": 143}, True),  # before torchrun listened
    ],
    ids=str,
)
def test_under_torchrun_the_run_tells_whether_its_state_was_saved(
    fake, run, tmp_path, outcome, manner, is_requeued, capsys
):
    """It ends with 1 whatever its processes do."""
    folder = tmp_path / "my runs" / fold_name(2)
    write_json(folder / "task.json", {"tr_params": {"model_name": "m"}})
    for ended in ("stopped", outcome):
        add_start(folder, {})
        if ended:
            end_start(folder, ended)
    assert main(["runs", "--json", str(folder)]) == 0
    (fake / "runs.json").write_text(capsys.readouterr().out)
    text = script(
        fake, resources=Resources(gpus=2), run=str(folder.parent), option="--fold {i}", tasks=3
    )
    run(text, **{"stopped": 1, **manner})
    assert requeued(fake) == (["requeue 41_2"] if is_requeued else [])
    if (fake / "looked").exists():
        assert (fake / "looked").read_text() == f"{folder}\n"


def test_a_single_job_is_requeued_by_its_own_number(fake, run):
    assert run(script(fake), terms=1).returncode == 143
    assert requeued(fake) == ["requeue 45"]


def test_a_folder_that_is_gone_ends_the_job(fake, run):
    assert run(script(fake, folder="/not there")).returncode == 2
    assert not (fake / "arguments").exists()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"time": "1h"}, r"--time: found '1h'; give it as in 12:00:00"),
        ({"partition": "a\n#SBATCH --wrap=x"}, "--partition: found"),
        ({"account": "a b"}, "--account: found"),
        ({"mem": "64 G"}, "--mem: found"),
        ({"options": ("--qos=a\nrm -rf",)}, "--sbatch: found"),
        ({"options": ("qos",)}, "--sbatch: found"),
    ],
)
def test_values_that_would_be_another_line_are_refused(given, match):
    with pytest.raises(RefusedError, match=match):
        Resources(**given)


@pytest.mark.parametrize("time", ["30", "12:00", "12:00:00", "2-00", "2-12:00", "2-12:00:00"])
def test_times_as_sbatch_takes_them(time):
    assert f"#SBATCH --time={time}" in Resources(time=time).lines("n", None)


def test_options_that_are_given_come_last(fake):
    lines = Resources(options=("--signal=B:TERM@600", "--qos=high")).lines("n", 4)
    assert lines[-2:] == ["#SBATCH --signal=B:TERM@600", "#SBATCH --qos=high"]


@pytest.fixture
def submit(sheet_task, task_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def call(*options, code=0):
        assert main(["submit", str(task_file(sheet_task)), *options]) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    return call


def test_the_command_prints_a_script_that_bash_can_read(submit, tmp_path):
    for options in ([], ["--folds", "3", "--gpus", "2"], ["--infer", "--parts", "4"]):
        text = submit(*options, "--set", "tr_params.seed=3", "--partition", "gpu")
        done = subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"    {tmp_path}/task.json\n" in text
        assert "    --set tr_params.seed=3\n" in text
        assert f"cd {tmp_path} || exit 2" in text
    assert '    --part "$SLURM_ARRAY_TASK_ID/4"\n)' in text
    assert "-m vcmodels infer\n" in text


def test_folds_of_the_task_are_an_array_and_one_of_them_is_none(submit, sheet_task):
    assert "--array" not in submit()
    sheet_task["tr_params"]["folds"] = {"count": 7}
    text = submit()
    assert "#SBATCH --array=0-6\n" in text
    assert '    --fold "$SLURM_ARRAY_TASK_ID"\n' in text
    sheet_task["tr_params"]["folds"]["index"] = 2
    assert "--array" not in submit()


def test_folds_that_would_each_plan_their_sizes_are_told_of(submit, sheet_task):
    options = ("--folds", "3", "--output", "job.sh")
    assert "vcmodels plan" not in submit(*options)
    del sheet_task["tr_params"]["patch_size"], sheet_task["tr_params"]["batch_size"]
    assert "vcmodels plan" in submit(*options)
    assert "vcmodels plan" not in submit("--output", "job.sh")
    assert "vcmodels plan" not in submit(*options, "--infer")
    given = ["tr_params.patch_size=[8,8,8]", "tr_params.folds.count=3"]
    begun = load_task(Path("task.json"), given).task.fold(1)
    write_json(begun.run_dir / "task.json", begun.to_json())
    assert "vcmodels plan" not in submit(*options)  # the others take its sizes


def test_what_is_predicted_is_divided_by_parts_or_devices(submit):
    assert "    --devices 0,1,2\n" in submit("--infer", "--gpus", "3")
    assert "--gpus: one part is" in submit("--infer", "--gpus", "3", "--parts", "2", code=2)
    assert "--nodes: one part is" in submit("--infer", "--nodes", "2", code=2)
    assert "--parts: is for --infer" in submit("--parts", "2", code=2)


def test_a_script_replaces_a_script_and_nothing_else(submit, tmp_path):
    place = tmp_path / "job.sh"
    assert submit("--output", "job.sh") == "wrote job.sh\n"
    first = place.read_text()
    submit("--output", "job.sh", "--gpus", "2")
    assert place.read_text() != first
    place.write_text("mine")
    assert "was not written by submit" in submit("--output", "job.sh", code=2)
    assert place.read_text() == "mine"


def test_submit_hands_the_script_to_sbatch(submit, fake, tmp_path):
    assert "--submit: sbatch is not on the PATH" in submit("--submit", code=2)
    sbatch = fake / "sbatch"
    sbatch.write_text(f'#!/bin/bash\ncat ${{1:+"$1"}} > "{fake}/got"; echo Submitted batch job 9\n')
    sbatch.chmod(0o755)
    assert submit("--submit") == "Submitted batch job 9\n"
    assert (fake / "got").read_text().startswith("#!/bin/bash\n#SBATCH --job-name=tiny\n")
    submit("--submit", "--output", "other.sh", "--gpus", "0")
    assert (fake / "got").read_text() == (tmp_path / "other.sh").read_text()
    sbatch.write_text("#!/bin/bash\necho 'sbatch: error: no such partition' >&2; exit 1\n")
    assert main(["submit", str(tmp_path / "task.json"), "--submit"]) == 1
