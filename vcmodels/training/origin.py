"""What a training starts from: its own last checkpoint, one that the task names, or nothing."""

import math
from dataclasses import dataclass
from pathlib import Path

from vcmodels.checkpoint import Checkpoint, load_checkpoint
from vcmodels.config import Task
from vcmodels.config.parameters import TrainingParams
from vcmodels.errors import CheckpointError, TaskError
from vcmodels.reporting import Reporter
from vcmodels.training.changes import changes_since, listed_changes
from vcmodels.training.counters import Counters
from vcmodels.training.early_stopping import EarlyStop
from vcmodels.training.facts import versions
from vcmodels.training.learner import Learner
from vcmodels.training.run_folder import RunFolder
from vcmodels.volumes import expand_location


@dataclass(frozen=True)
class Origin:
    """The checkpoints that a training may start from, one of them at most."""

    resumed: Checkpoint | None
    """The newest of this run."""
    given: Checkpoint | None
    """The file that `checkpoint_path` names, for a run that has none yet."""
    weights_only: bool
    """Whether the given one has no more to give than its weights."""

    @classmethod
    def of(cls, task: Task, run: RunFolder, *, restart: bool) -> "Origin":
        """Load what there is; with `restart` the run's own is left out.

        Raises:
            CheckpointError: a checkpoint cannot be read.
            TaskError: the run was trained with other values of keys that must not change.
        """
        settings = task.tr_params
        resumed = None if restart else run.newest_checkpoint()
        path = settings.checkpoint_path if resumed is None else None
        given = None if path is None else load_checkpoint(Path(expand_location(path)))
        return cls(resumed, given, bool(settings.load_weights_only))

    @property
    def source(self) -> Checkpoint | None:
        """Where weights come from."""
        return self.resumed or self.given

    @property
    def continued(self) -> Checkpoint | None:
        """Whose training goes on."""
        return self.resumed or (None if self.weights_only else self.given)


def completion(task: Task, origin: Origin) -> str | None:
    """In words, why the run has ended for good; None if it goes on."""
    if origin.resumed is None:
        return None
    settings, counters = task.tr_params, Counters(**origin.resumed.state["counters"])
    if counters.epoch >= settings.max_epoch:
        return f"{settings.max_epoch} epochs"
    early = EarlyStop.of(settings, task.dataset_config.targets)
    return early.reason(counters) if early is not None and early.is_over(counters) else None


def start(learner: Learner, task: Task, origin: Origin, reporter: Reporter) -> Counters:
    """Give the learner the state that it starts from.

    Raises:
        CheckpointError: the checkpoint does not fit the network.
        TaskError: it was trained with other optimiser or epochs, or as long as this run shall last.
    """
    resumed, given = origin.resumed, origin.given
    if given is not None and origin.weights_only:
        path, partial = str(given.path), learner.settings.load_weights_only == "partial"
        taken = learner.take_weights(given.state, path, partial=partial)
        reporter.say(f"weights of {path}: {taken}")
        return Counters()
    if given is not None:
        require_continuable(given, learner)
    resumed = resumed or given
    if resumed is None:
        if learner.freezing.holds(0):
            parts = ", ".join(learner.settings.freeze)
            reporter.say(f"{parts}: frozen with random weights, as there is no checkpoint_path")
        return Counters()
    learner.restore(resumed.state, str(resumed.path))
    counters = Counters(**resumed.state["counters"])
    if resumed is given:  # of another folder, where its best checkpoint stays
        counters.best, counters.watched = math.inf, ""
    reporter.say(f"continuing {resumed.path} at epoch {counters.epoch + 1}, step {learner.step}")
    if resumed is given and (changed := changes_since(resumed, task)):
        reporter.say(f"other than there: {listed_changes(changed, len(changed))}")
    before, now = resumed.state["versions"], versions(learner)
    updates = [
        f"{name} {value} instead of {before.get(name)}"
        for name, value in now.items()
        if value != before.get(name)
    ]
    if updates:
        reporter.say(f"{', '.join(updates)}: may no longer be bit-identical")
    return counters


def require_continuable(given: Checkpoint, learner: Learner) -> None:
    """Refuse to take more than the weights of a checkpoint that has nothing more to give.

    Raises:
        CheckpointError: it holds no state of a training.
        TaskError: its optimiser is another, or it has all epochs already.
    """
    settings, state, remedy = learner.settings, given.state, "set load_weights_only"
    lacking = {"optimizer", "scaler", "counters", "versions"} - state.keys()
    if lacking:
        raise CheckpointError(str(given.path), f"lacks {', '.join(sorted(lacking))}", remedy)
    for key in ("optimizer", "loss_balance", "max_steps_per_epoch"):
        default = TrainingParams.model_fields[key].default  # for a key that is newer
        before, now = state["task"]["tr_params"].get(key, default), getattr(settings, key)
        if before != now:
            found = f"is {now}, {given.path} was trained with {before}"
            raise TaskError(f"tr_params.{key}", found, f"change it back, or {remedy}")
    if state["epoch"] >= settings.max_epoch:
        found = f"is {settings.max_epoch}, {given.path} has {state['epoch']} epochs already"
        raise TaskError("tr_params.max_epoch", found, f"raise it, or {remedy}")
