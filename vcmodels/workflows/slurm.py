"""A batch script for SLURM that people read, keep and edit."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from vcmodels.errors import RefusedError

MARK = "# Written by vcmodels submit"
"""In the first lines of every script; a file that has it may be written over."""
SECONDS_BEFORE_END = 120
"""Enough to end a step and write the checkpoint of a large network on a slow file system."""
MOST_REQUEUES = 100

_TIME = r"(\d+-)?\d+(:\d+){0,2}"
_NAME = r"[A-Za-z0-9_.,@+-]+"
_MEMORY = r"\d+[KMGT]?"


@dataclass(frozen=True)
class Resources:
    """What a job asks SLURM for.

    Raises:
        RefusedError: a value that SLURM would not take, or that would become another line.
    """

    gpus: int = 1
    """On each node; one process is started for each."""
    nodes: int = 1
    cpus: int | None = None
    """On each node."""
    mem: str | None = None
    """On each node, such as `64G`."""
    time: str | None = None
    """`d-hh:mm:ss`, or another form that sbatch takes."""
    partition: str | None = None
    account: str | None = None
    options: tuple[str, ...] = ()
    """Further options of sbatch, as they are."""

    def __post_init__(self) -> None:
        for option, text, pattern, remedy in (
            ("--time", self.time, _TIME, "give it as in 12:00:00 or 2-00:00:00"),
            ("--partition", self.partition, _NAME, "give its name"),
            ("--account", self.account, _NAME, "give its name"),
            ("--mem", self.mem, _MEMORY, "give it as in 64G"),
        ):
            if text is not None and not re.fullmatch(pattern, text, re.ASCII):
                raise RefusedError(option, f"found {text!r}", remedy)
        for text in self.options:
            if not re.fullmatch(r"-[^\x00-\x1f\x7f]+", text):
                raise RefusedError("--sbatch", f"found {text!r}", 'give one as in "--qos=high"')

    @property
    def processes(self) -> int:
        """On each node."""
        return max(self.gpus, 1)

    def lines(self, name: str, tasks: int | None) -> list[str]:
        """The `#SBATCH` lines; of several values for one option the last counts."""
        given = {
            "--job-name": name,
            "--array": None if tasks is None else f"0-{tasks - 1}",
            "--nodes": self.nodes,
            "--ntasks-per-node": 1,
            "--gpus-per-node": self.gpus or None,
            "--cpus-per-task": self.cpus,
            "--mem": self.mem,
            "--time": self.time,
            "--partition": self.partition,
            "--account": self.account,
            "--signal": f"B:TERM@{SECONDS_BEFORE_END}",
            "--open-mode": "append",
        }
        lines = [f"{option}={value}" for option, value in given.items() if value is not None]
        return [f"#SBATCH {line}" for line in (*lines, "--requeue", *self.options)]


def batch_script(
    words: Sequence[str],
    resources: Resources,
    *,
    name: str,
    folder: str,
    python: str,
    run: str | None,
    option: str | None = None,
    tasks: int | None = None,
) -> str:
    """The script of one job, or of an array of them.

    Args:
        words: the arguments of `vcmodels`.
        resources: what is asked for.
        name: of the job.
        folder: what relative paths of the task are relative to.
        python: the interpreter that has this program.
        run: the run folder of a training, which several GPUs or nodes share through torchrun; with
            an `option` the folder of all folds. None for what they do not share.
        option: what differs between the jobs of an array, with `{i}` for the number of the job, as
            in `--fold {i}`.
        tasks: jobs in the array; None for a single job.
    """
    lines = [f"{shlex.quote(python)} -m vcmodels {words[0]}"]
    start = "srun --kill-on-bad-exit=1"
    if resources.cpus is not None:  # srun does not take it from sbatch
        start += f" --cpus-per-task={resources.cpus}"
    parts = [
        "#!/bin/bash",
        *resources.lines(name, tasks),
        "",
        f"{MARK}. Start it with sbatch; scancel stops it for good.",
        "",
        "set -u",
        f"cd {shlex.quote(folder)} || exit 2",
        "export PYTHONSAFEPATH=1  # the program that is installed, not one in this folder",
        "",
    ]
    stopped = _STOPPED
    if run is not None and resources.processes * resources.nodes > 1:
        parts += _MEETING.splitlines()
        folder = shlex.quote(run) + ('/fold_"$SLURM_ARRAY_TASK_ID"' if option else "")
        stopped = _STOPPED_TOGETHER.format(python=shlex.quote(python), run=folder)
        lines = [
            f"{shlex.quote(python)} -m torch.distributed.run",
            f"--nnodes {resources.nodes} --nproc-per-node {resources.processes}",
            '--rdzv-backend c10d --rdzv-endpoint "$host:$port" --rdzv-id "$SLURM_JOB_ID"',
            f"-m vcmodels {words[0]}",
        ]
    lines += _lines_of(words[1:])
    if option is not None:
        key, _, value = option.partition(" ")
        lines.append(f'{key} "{value.format(i="$SLURM_ARRAY_TASK_ID")}"')
    parts += ["command=(", *(f"    {line}" for line in lines), ")", ""]
    job = "$SLURM_JOB_ID" if tasks is None else "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
    return "\n".join(parts) + _RUN.format(start=start, job=job, most=MOST_REQUEUES, stopped=stopped)


def _lines_of(words: Sequence[str]) -> list[str]:
    """Words as the shell reads them; an option and its value share a line."""
    lines: list[str] = []
    for word in words:
        quoted = shlex.quote(word)
        if lines and lines[-1].startswith("--") and not word.startswith("--"):
            lines[-1] += f" {quoted}"
        else:
            lines.append(quoted)
    return lines


_MEETING = f"""\
# The processes of all nodes meet at the first one.
host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={SECONDS_BEFORE_END - 20}  # after 30 s torchrun would kill

"""

_STOPPED = """\
is_stopped() {
    [ "$code" -eq 130 ] || [ "$code" -eq 143 ]
}"""

_STOPPED_TOGETHER = """\
is_stopped() {{  # torchrun ends with 1 however its processes end; the run itself says
    [ "$code" -eq 130 ] || [ "$code" -eq 143 ] ||
        {{ [ "$code" -eq 1 ] && [ "$signals" -gt 0 ] &&
            {python} -m vcmodels runs --json {run} | grep -q '"state": "stopped"'; }}
}}"""

_RUN = """
# Some time before the limit SLURM sends TERM to this shell only. It is passed on: the state is saved.
signals=0 child=
trap 'signals=$((signals + 1)); [ "$signals" -gt 1 ] || [ -z "$child" ] || kill -TERM "$child"' TERM
{start} "${{command[@]}}" &
child=$!
seen=-1
while [ "$seen" -ne "$signals" ]; do  # a signal interrupts the waiting
    seen=$signals
    wait "$child"
    code=$?
done

# Stopped by a signal, not finished and not failed.
{stopped}

# Back into the queue then, unless somebody cancelled the job.
job="{job}"
if is_stopped &&
    [ "${{SLURM_RESTART_COUNT:-0}}" -lt {most} ] &&
    scontrol show job "$job" | grep -q "JobState=RUNNING"; then
    echo "stopped with its state saved: requeue of job $job"
    scontrol requeue "$job"
fi
exit "$code"
"""
