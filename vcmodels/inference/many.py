"""Many volumes, one after another: which they are, where each result goes, and what became of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import InferenceParams, Task
from vcmodels.config.reading import expand_together, keys_of_input
from vcmodels.data.selection import choose_volumes, result_names
from vcmodels.data.task_volume import TaskVolume
from vcmodels.data.volumes import open_volumes
from vcmodels.errors import RefusedError, RunError, TaskError, VcmodelsError
from vcmodels.inference.cost import Estimate, add_estimates
from vcmodels.inference.ensemble import choose_checkpoints, load_networks
from vcmodels.inference.predict import InferenceReport, predict_request
from vcmodels.inference.preview import preview_path
from vcmodels.inference.request import Request, RunOptions, request_of
from vcmodels.reporting import Reporter, list_some
from vcmodels.results import volume_root, volumes_folder
from vcmodels.runs.run import Run
from vcmodels.volumes import Place

SECTION = "inference_params"
MOST_NAMED = 5


@dataclass(frozen=True)
class NamedInput:
    """One of many volumes."""

    name: str
    output: Place
    """The group of its result."""
    changes: dict[str, Any]
    """`inference_params` that name it alone."""

    def request(
        self, task: Task, networks: tuple[TrainedNetwork, ...], reporter: Reporter | None = None
    ) -> Request:
        """What is to be predicted; metadata of the volume is read, and a file is imported.

        Raises:
            RefusedError: as for `request_of`.
        """
        one = task.with_values(inference_params={"volumes": None, **self.changes})
        return request_of(one, networks, self.output, reporter, name=self.name)


def named_inputs(task: Task) -> list[NamedInput]:
    """The volumes that `input_path` expands to, or that `volumes` chooses; at least one.

    Raises:
        TaskError: there are none, two would share a result, or no output is named.
        VolumeError: nothing matches a pattern, or a labelled volume cannot be opened.
    """
    params = task.inference_params
    return list(_chosen(task) if params.volumes is not None else _expanded(task, params))


def _expanded(task: Task, params: InferenceParams) -> Iterator[NamedInput]:
    mask = params.skip.mask
    others = {"skip.mask": mask} if mask is not None and "*" in mask else {}
    for stem, inputs, found in expand_together(params.input_paths, others, SECTION, "input_path"):
        changes: dict[str, Any] = {"input_path": _one_or_all(inputs)}
        if others.keys() - found.keys():
            remedy = "add it, or move the input away"
            raise TaskError(f"{SECTION}.skip.mask", f"there is none for '*' = {stem}", remedy)
        if others:
            changes["skip"] = params.skip.changed(mask=found["skip.mask"])
        yield NamedInput(stem, volume_root(_folder(task), stem), changes)


def _chosen(task: Task) -> Iterator[NamedInput]:
    params, volumes = task.inference_params, open_volumes(task)
    names = result_names(volumes)
    assert params.volumes is not None
    if params.volumes == "val" and task.is_cross_validation:
        found = 'is "val", and each fold holds out other volumes'
        remedy = "give --fold I, or use vcmodels cv evaluate, which predicts them all"
        raise TaskError(f"{SECTION}.volumes", found, remedy)
    run = Run(task.run_dir, task.tr_params.model_name)
    chosen = choose_volumes(volumes, params.volumes, run, key=f"{SECTION}.volumes")
    for volume in {names[v.name]: v.as_stored for v in (one.volume for one in chosen)}.values():
        name = names[volume.name]
        yield NamedInput(name, volume_root(_folder(task), name), input_keys(task, volume))


def input_keys(task: Task, volume: TaskVolume) -> dict[str, Any]:
    """The `inference_params` with which the inputs of a labelled volume are read as its entry says."""
    entry = task.dataset_config.volume_paths[int(volume.key.rpartition(".")[2])]
    reset = {key: InferenceParams.model_fields[key].get_default() for key in READING}
    keys = keys_of_input(entry, volume.inputs[0])
    # The path names the array itself.
    own = {"level": 0, "input_path": _one_or_all([image.shown for image in volume.inputs])}
    return {**reset, "index": {}, **keys, **own}


READING = ("channel_axis", "axes", "channels", "spacing")
"""Keys that say how an input is read, and are None where it says so itself."""


def _one_or_all(paths: Sequence[str]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else list(paths)


def run_inference(
    task: Task, checkpoint: str | Sequence[str] | None = None, options: RunOptions | None = None
) -> InferenceReport:
    """Predict what `inference_params` name with a checkpoint, or continue doing so.

    Args:
        task: its `inference_params` say what and how.
        checkpoint: a file, or several, to use instead of `checkpoint_path`; by default the run's
            best.
        options: how the run is done.

    Returns:
        Of many volumes, all together: each output is named `<volume>/<target>`.

    Raises:
        RefusedError: the task, input, checkpoint or output do not fit; nothing was written.
        RunError: a failure on the way; the same command continues. Places and volumes that cannot be
            predicted are left out and named at the end, when all others are.
    """
    options = options or RunOptions()
    networks = load_networks(choose_checkpoints(task, checkpoint, reporter=options.reporter))
    if not task.inference_params.is_many:
        return predict_request(request_of(task, networks, reporter=options.reporter), options)
    inputs = named_inputs(task)

    def predict(one: NamedInput) -> InferenceReport:
        preview = options.preview and preview_path(options.preview, one.name)
        request = one.request(task, networks, options.reporter)
        return predict_request(request, replace(options, preview=preview))

    every = predict_each(task, inputs, predict, options.reporter, options.should_stop)
    every.require_all()
    return every.combined()


@dataclass
class ManyReports:
    """What became of many volumes."""

    folder: Place
    """Where their results are."""
    reports: dict[str, InferenceReport] = field(default_factory=dict)
    """By name, of those that were predicted or complete."""
    failures: dict[str, VcmodelsError] = field(default_factory=dict)
    is_through: bool = True
    """False after a stop: the same command continues."""

    @property
    def estimate(self) -> Estimate | None:
        """With `dry_run`: what would be done for all of them."""
        found = [one.estimate for one in self.reports.values() if one.estimate is not None]
        return add_estimates(found) if found else None

    def combined(self) -> InferenceReport:
        """All together, as of one result."""
        found = list(self.reports.values())
        return InferenceReport(
            root=self.folder,
            outputs={
                f"{name}/{target}": place
                for name, report in self.reports.items()
                for target, place in report.outputs.items()
            },
            patches=sum(report.patches for report in found),
            seconds=sum(report.seconds for report in found),
            is_through=self.is_through,
            is_complete=self.is_through and all(report.is_complete for report in found),
            was_complete=self.is_through and all(report.was_complete for report in found),
            estimate=self.estimate,
        )

    def require_all(self) -> None:
        """Refuse to call it done where a volume failed; after a stop it is not called done anyway.

        Raises:
            RefusedError: each of them was refused, and nothing was written.
            RunError: some failed; the others are done.
        """
        if not self.failures or not self.is_through:
            return
        first = next(iter(self.failures.values()))
        if not self.reports and all(isinstance(e, RefusedError) for e in self.failures.values()):
            raise first
        names = [*self.failures]
        total = len(self.reports) + len(names)
        found = f"{len(names)} of {total} volumes failed: {list_some(names, MOST_NAMED)}"
        remedy = "fix these and run the same command again: it skips what is complete"
        raise RunError(str(self.folder), f"{found} (the first: {first})", remedy)


def predict_each(
    task: Task,
    inputs: Sequence[NamedInput],
    predict: Callable[[NamedInput], InferenceReport],
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
) -> ManyReports:
    """Predict volumes one after another; one that fails does not stop the others.

    Args:
        task: that they are of.
        inputs: as from `named_inputs`.
        predict: makes the result of one, or continues it.
        reporter: told which volume it is, and what failed.
        should_stop: asked before each.
    """
    every = ManyReports(_folder(task))
    for number, one in enumerate(inputs, 1):
        if should_stop():
            every.is_through = False
            return every
        reporter.say(f"volume {number} of {len(inputs)}: {one.name}")
        try:
            report = predict(one)
        except VcmodelsError as error:
            every.failures[one.name] = error
            reporter.say(f"{one.name} failed: {error}")
            continue
        every.reports[one.name] = report
        if not report.is_through:
            every.is_through = False
            return every
    return every


def _folder(task: Task) -> Place:
    return volumes_folder(task.inference_params.output_dir, task.tr_params.model_name)
