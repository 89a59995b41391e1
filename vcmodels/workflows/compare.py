"""Networks or settings against each other: each trained on one split, with several seeds or folds."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from vcmodels.config import Task, load_task
from vcmodels.errors import OutputError, RefusedError
from vcmodels.patches.cache import load_or_find_patches
from vcmodels.patches.resolve import resolve
from vcmodels.patches.split import split_patches
from vcmodels.reporting import Reporter, StopSignals
from vcmodels.runs.run import SPLITS, Run, fold_name
from vcmodels.runs.survey import RunStatus, read_status
from vcmodels.volumes.places import read_json, write_json
from vcmodels.workflows.cascade import find_regions
from vcmodels.workflows.cross_validation import Child, run_all, training_shares
from vcmodels.workflows.fold_report import Figures

PLAN = "comparison.json"
"""In the folder of a comparison: what is compared."""


@dataclass(frozen=True)
class Variant:
    """One network, or one choice of settings."""

    name: str
    """Of its folder, and in the table."""
    task: str
    """The task file."""
    overrides: tuple[str, ...]
    """`dotted.key=value` lines."""

    @cached_property
    def loaded(self) -> Task:
        """Its task.

        Raises:
            TaskError: it is not valid.
        """
        return self.with_lines()

    def with_lines(self, *more: str) -> Task:
        """Its task with more overrides.

        Raises:
            TaskError: it is not valid.
        """
        return load_task(self.task, [*self.overrides, *more]).task


def variants_of(
    tasks: Sequence[str], over: Sequence[str], overrides: Sequence[str]
) -> list[Variant]:
    """All combinations of task files and of the values of keys.

    Args:
        tasks: files.
        over: lines `dotted.key=value1,value2`; commas inside of brackets do not divide.
        overrides: for all of them.

    Raises:
        RefusedError: a line has no two values, or two variants would have one name.
    """
    choices = [_choices(line) for line in over]
    found: dict[str, Variant] = {}
    for task, chosen in product(tasks, product(*choices)):
        stems = [Path(task).stem] if len(tasks) > 1 or not over else []
        name = ",".join([*stems, *(f"{key.rpartition('.')[2]}={value}" for key, value in chosen)])
        name = _file_name(name)
        lines = (*overrides, *(f"{key}={value}" for key, value in chosen))
        if name in found:
            remedy = "give the task files, or the values, names that differ"
            raise RefusedError("compare", f"two variants are called {name}", remedy)
        found[name] = Variant(name, task, lines)
    return list(found.values())


def _choices(line: str) -> list[tuple[str, str]]:
    key, sign, text = line.partition("=")
    values = _divided(text)
    if not sign or not key.strip() or len(values) < 2:
        remedy = "give a key and its values, as in tr_params.initial_lr=1e-3,1e-4"
        raise RefusedError("--over", f'found "{line}"', remedy)
    return [(key.strip(), value) for value in values]


def _divided(text: str) -> list[str]:
    """The parts between commas that are in no brackets."""
    parts, depth = [""], 0
    for sign in text:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return [part.strip() for part in parts if part.strip()]


def _file_name(text: str) -> str:
    """The text as the name of a folder."""
    name = "".join(sign if sign.isalnum() or sign in "._-" else "_" for sign in text)[:64]
    return name.strip("._-") or "variant"


@dataclass(frozen=True)
class Training:
    """One run of a comparison."""

    variant: Variant
    label: str
    """`seed_0` or `fold_0`."""
    folder: Path
    words: tuple[str, ...]
    """Arguments of `vcmodels`."""

    @property
    def is_complete(self) -> bool:
        """Whether it has ended."""
        return Run(self.folder).is_begun() and read_status(self.folder).state == "complete"


def plan_trainings(
    variants: Sequence[Variant], seeds: int, output: Path, split: Path
) -> list[Training]:
    """The runs of a comparison; those with one seed, or of one fold, after each other.

    Args:
        variants: what is compared.
        seeds: how many seeds each is trained with; a task with folds is trained on each of them.
        output: folder of all runs.
        split: a `splits.json` that all without folds take.
    """
    found: list[tuple[int, Training]] = []
    for variant in variants:
        task, home = variant.loaded, output / variant.name
        folds = task.tr_params.folds
        lines = list(variant.overrides)
        if folds is not None:
            lines.append(f'tr_params.ckpt_out_base="{home}"')
            for index in range(folds.count):
                words = _words(variant.task, lines, "--fold", str(index))
                label = fold_name(index)
                found.append((index, Training(variant, label, home / label, words)))
            continue
        for seed in range(task.tr_params.seed, task.tr_params.seed + seeds):
            label = f"seed_{seed}"
            own = [f'tr_params.ckpt_out_base="{home / label}"', f"tr_params.seed={seed}"]
            words = _words(variant.task, [*lines, *own, f'tr_params.split_from="{split}"'])
            found.append((seed, Training(variant, label, home / label, words)))
    return [training for _, training in sorted(found, key=lambda pair: pair[0])]


def _words(task: str, lines: Sequence[str], *more: str) -> tuple[str, ...]:
    settings = (word for line in lines for word in ("--set", line))
    return ("train", str(Path(task).absolute()), *settings, *more)


def compare(
    variants: Sequence[Variant], seeds: int, output: Path, *, jobs: int, reporter: Reporter
) -> int:
    """Train what is compared, or continue it.

    Each run is one command in a process of its own; one that fails does not stop the others. All
    hold out the same voxels: the split is made once, of the first variant.

    Args:
        variants: what is compared.
        seeds: how many seeds each is trained with.
        output: folder of all runs.
        jobs: how many are trained at once.
        reporter: told which begin, and which failed.

    Returns:
        0, 1 when one failed, or 128 + signal after one.

    Raises:
        RefusedError: a task or its volumes are not valid, or the folder holds something else.
    """
    _require_comparable(variants, seeds)
    _claim(output, variants, seeds)
    split = _split_of(variants[0], output, reporter)
    waiting = [t for t in plan_trainings(variants, seeds, output, split) if not t.is_complete]
    environments, shares = training_shares(variants[0].loaded.tr_params, jobs)

    def start(training: Training) -> Callable[[int], Child]:
        def begin(place: int) -> Child:
            name = f"{training.variant.name}, {training.label}"
            reporter.say(f"{name}: {training.folder}")
            say = (lambda line: reporter.say(f"{name}: {line}")) if jobs > 1 else None
            more = [word for line in shares for word in ("--set", f"tr_params.{line}")]
            return Child([*training.words, *more], environments[place], say)

        return begin

    with StopSignals() as stop:
        stop.defer()
        codes = run_all({n: start(t) for n, t in enumerate(waiting)}, jobs, stop)
    if stop.is_stopped():
        reporter.say("stopped; the same command continues")
        return stop.exit_code
    failed = [waiting[number] for number, code in sorted(codes.items()) if code]
    for one in failed:
        again = shlex.join(["vcmodels", *one.words])
        reporter.say(f"{one.variant.name}, {one.label} failed; by itself: {again}")
    return 1 if failed else 0


def _require_comparable(variants: Sequence[Variant], seeds: int) -> None:
    """Refuse one variant, variants that are held out differently, and seeds of folds.

    Raises:
        RefusedError: naming what.
    """
    if len(variants) < 2:
        remedy = "give two task files, or --over KEY=VALUE,VALUE"
        raise RefusedError("compare", "there is nothing to compare", remedy)
    first = variants[0].loaded
    if first.tr_params.folds is not None and seeds > 1:
        found = f"is {seeds}, and the tasks have folds: each is trained once"
        raise RefusedError("--seeds", found, "leave it out, or set tr_params.folds to null")
    if first.tr_params.folds is None and first.tr_params.split_mode == "random":
        found = f'is "random" in {variants[0].name}: training and validation share voxels'
        raise RefusedError("tr_params.split_mode", found, 'use "spatial"')
    for variant in variants[1:]:
        task = variant.loaded
        if (task.tr_params.folds is None) != (first.tr_params.folds is None):
            found = f"{variant.name} and {variants[0].name}: only one of them has folds"
            raise RefusedError("tr_params.folds", found, "give both the same, or none")
        if task.tr_params.folds != first.tr_params.folds:
            found = f"{variant.name} and {variants[0].name} have other folds"
            raise RefusedError("tr_params.folds", found, "give all the same")


def _claim(output: Path, variants: Sequence[Variant], seeds: int) -> None:
    """Note in the folder what is compared.

    Raises:
        OutputError: something else is, or cannot be.
    """
    plan = {"seeds": seeds, "variants": [[v.name, v.task, list(v.overrides)] for v in variants]}
    place = output / PLAN
    try:
        before = read_json(place) if place.exists() else None
        if before is None and output.is_dir() and any(output.iterdir()):
            found = "holds other files, and no comparison"
            raise OutputError(str(output), found, "name another folder")
        if before is not None and before != plan:
            found = "holds a comparison of other variants, or with other seeds"
            raise OutputError(str(output), found, "name another folder, or repeat its command")
        output.mkdir(parents=True, exist_ok=True)
        write_json(place, plan)
    except (OSError, ValueError) as error:
        found = f"cannot be used ({error})"
        raise OutputError(str(output), found, "name another folder") from error


def _split_of(variant: Variant, output: Path, reporter: Reporter) -> Path:
    """The `splits.json` for all runs; made of a variant where there is none."""
    run = Run(output, "split")
    task = variant.loaded
    if run.splits() is None and task.tr_params.folds is None:
        find_regions(task, reporter)
        cache = f'dataset_config.cache_file="{output / "patches.json"}"'
        resolved = resolve(variant.with_lines(cache), reporter)
        patches = load_or_find_patches(resolved.task, resolved.volumes, reporter)
        split = split_patches(resolved.task.tr_params, resolved.volumes, patches, reporter)
        run.write_splits(split.to_dict())
    return output / SPLITS


@dataclass(frozen=True)
class ComparedRow:
    """What one variant reached."""

    name: str
    runs: int
    """That have begun."""
    figures: Mapping[str, Figures]
    """At the best epoch, by target and metric, such as `sheet dice`."""
    minutes: Figures

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        figures = {name: one.to_json() for name, one in self.figures.items()}
        return {
            "name": self.name, "runs": self.runs, "figures": figures,
            "minutes": self.minutes.to_json(),
        }  # fmt: skip


def compared_rows(variants: Sequence[Variant], seeds: int, output: Path) -> Iterator[ComparedRow]:
    """The figures of each variant over its seeds or folds, in the order of the variants."""
    trainings = plan_trainings(variants, seeds, output, output / SPLITS)
    for variant in variants:
        mine = [one for one in trainings if one.variant == variant]
        found = [read_status(t.folder) if Run(t.folder).is_begun() else None for t in mine]
        keys = dict.fromkeys(
            (name, one.metric) for run in found if run for name, one in run.figures.items()
        )
        figures = {
            f"{name} {metric}": Figures(tuple(_best(run, name) for run in found))
            for name, metric in keys
        }
        figures["val loss"] = Figures(tuple(run and run.best_loss for run in found))
        minutes = Figures(tuple(run and run.minutes for run in found))
        yield ComparedRow(variant.name, sum(run is not None for run in found), figures, minutes)


def _best(run: RunStatus | None, name: str) -> float | None:
    figure = run.figures.get(name) if run else None
    return figure.best if figure else None
