"""The command `submit`."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vcmodels.cli.arguments import Debug, FoldCount, Overrides, TaskFile, load, with_folds
from vcmodels.cli.console import Console, Errors
from vcmodels.errors import RefusedError

if TYPE_CHECKING:
    from vcmodels.config import Task
    from vcmodels.workflows.slurm import Resources


def submit(
    context: typer.Context,
    task: TaskFile,
    set_: Overrides = None,
    folds: FoldCount = None,
    infer: Annotated[bool, typer.Option("--infer", help="Predict instead of training.")] = False,
    parts: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="With --infer: N jobs share the volume.")
    ] = None,
    gpus: Annotated[int, typer.Option(min=0, metavar="N", help="GPUs on each node.")] = 1,
    nodes: Annotated[int, typer.Option(min=1, metavar="M", help="Nodes of each job.")] = 1,
    cpus: Annotated[int | None, typer.Option(min=1, metavar="N", help="On each node.")] = None,
    mem: Annotated[str | None, typer.Option(help="On each node, as in 64G.")] = None,
    time: Annotated[str | None, typer.Option(help="Limit of each job, as in 1-00:00:00.")] = None,
    partition: Annotated[str | None, typer.Option(help="Where to run.")] = None,
    account: Annotated[str | None, typer.Option(help="Who pays.")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="OPTION", help='Any other option of sbatch, as in "--qos=high".'),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="SCRIPT", help="Write it here instead of printing it.")
    ] = None,
    now: Annotated[bool, typer.Option("--submit", help="Hand it to sbatch.")] = False,
    debug: Debug = False,
) -> int:
    """Write a batch script for SLURM that trains (an array over folds) or predicts."""
    from vcmodels.workflows.slurm import Resources

    console = Console()
    context.obj.begin()
    overrides = with_folds(set_, folds)
    notes = console if output or now else Errors()
    loaded = load(task, overrides, notes)
    options = tuple(sbatch or ())
    asked = Resources(gpus, nodes, cpus, mem, time, partition, account, options)
    words = [str(task.absolute()), *(w for o in overrides for w in ("--set", o))]
    if parts is not None and not infer:
        raise RefusedError("--parts", "is for --infer", "leave it out: folds are the jobs")
    if infer:
        text = _predicting(loaded, words, asked, parts)
    else:
        text = _training(loaded, words, asked, notes)
    if output is not None:
        _write(output, text)
        console.say(f"wrote {output}")
    elif not now:
        console.write(text)
    return _hand_over(text, output, console) if now else 0


def _training(task: "Task", words: list[str], asked: "Resources", console: Console) -> str:
    from vcmodels.training.other_folds import begun_folds
    from vcmodels.workflows.slurm import batch_script

    every = task.is_cross_validation
    if every and task.tr_params.given_patch_size is None and not any(begun_folds(task.run_dir)):
        console.say(
            "note: each fold plans its sizes, and on unlike GPUs they differ: then all but the "
            "first are refused. Run `vcmodels plan` and write patch_size and batch_size in"
        )
    return batch_script(
        ["train", *words],
        asked,
        name=task.tr_params.model_name,
        folder=str(Path.cwd()),
        python=sys.executable,
        run=str(task.run_dir),
        option="--fold {i}" if every else None,
        tasks=task.tr_params.folds.count if every and task.tr_params.folds else None,
    )


def _predicting(task: "Task", words: list[str], asked: "Resources", parts: int | None) -> str:
    from vcmodels.workflows.slurm import batch_script

    if asked.nodes > 1 or (parts is not None and asked.gpus > 1):
        found = "one part is predicted by one GPU of one node"
        raise RefusedError("--gpus" if asked.nodes == 1 else "--nodes", found, "give more --parts")
    if asked.gpus > 1:
        words = [*words, "--devices", ",".join(map(str, range(asked.gpus)))]
    return batch_script(
        ["infer", *words],
        asked,
        name=f"{task.tr_params.model_name}-infer",
        folder=str(Path.cwd()),
        python=sys.executable,
        run=None,
        option=None if parts is None else f"--part {{i}}/{parts}",
        tasks=parts,
    )


def _write(path: Path, text: str) -> None:
    """Write the script, over an earlier one but over nothing else.

    Raises:
        RefusedError: another file is there.
    """
    from vcmodels.volumes.places import refuse_in_store, write_atomic
    from vcmodels.workflows.slurm import MARK

    refuse_in_store("--output", path)
    if path.exists() and (not path.is_file() or MARK.encode() not in path.read_bytes()):
        found = "is there, and was not written by submit"
        raise RefusedError(str(path), found, "choose another --output")
    write_atomic(path, text.encode())


def _hand_over(text: str, path: Path | None, console: Console) -> int:
    """Give the script to sbatch and report its answer; returns the exit code.

    Raises:
        RefusedError: there is no sbatch.
    """
    program = shutil.which("sbatch")
    if program is None:
        remedy = "use a login node of the cluster, or copy the script there"
        raise RefusedError("--submit", "sbatch is not on the PATH", remedy)
    words = [program] if path is None else [program, str(path.absolute())]
    done = subprocess.run(
        words, input=text if path is None else None, capture_output=True, text=True, check=False
    )
    for line in (done.stdout + done.stderr).splitlines():
        console.say(line)
    return 1 if done.returncode else 0
