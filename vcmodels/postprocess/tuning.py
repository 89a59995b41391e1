"""Keys of steps that are chosen on validation volumes: which they are, what is tried, what was found.

A key is `"tuned"` in the task file. `vcmodels.workflows.tuning` tries the values of the step's `grid`
and keeps those that are best; a step works only once numbers stand in their place.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

from vcmodels.errors import TaskError
from vcmodels.metrics.base import Curve
from vcmodels.volumes.places import read_json

if TYPE_CHECKING:
    from vcmodels.postprocess.base import Step

TUNED = "tuned.json"
"""In the run folder: the values that were chosen, and all that was tried."""
Tuned = Literal["tuned"]
"""In the place of a number: it is chosen on the validation volumes."""
THRESHOLDS = tuple(round(0.05 * n, 2) for n in range(1, 20))
"""Of probabilities: 0.05, 0.1 ... 0.95."""
TunedValues = Mapping[str, float]
"""Of the tuned keys of a step, by key."""
AnyOfSteps = TypeVar("AnyOfSteps", bound="Step")


def number(value: "float | Tuned | None", default: float) -> float:
    """The number of a key that may be left out, once nothing is to be chosen any more."""
    assert value != "tuned", "a number stands there by now"
    return default if value is None else value


def tuned_keys(step: "Step") -> tuple[str, ...]:
    """The keys of a step that are still to be chosen."""
    return tuple(key for key in step.grid if getattr(step, key) == "tuned")


def candidates(step: "Step") -> Iterator[dict[str, float]]:
    """All combinations of values that are tried for a step, in a fixed order."""
    keys = tuned_keys(step)
    for values in product(*(step.grid[key] for key in keys)):
        yield dict(zip(keys, values, strict=True))


def with_values(step: AnyOfSteps, values: TunedValues) -> AnyOfSteps:
    """The step with numbers in the place of its tuned keys."""
    return step.changed(**{key: values[key] for key in tuned_keys(step)})


def with_tuned(
    steps: Iterable[AnyOfSteps], found: Mapping[str, TunedValues]
) -> tuple[AnyOfSteps, ...]:
    """Steps with the values that were found for them.

    Args:
        steps: in order.
        found: by output of the step.

    Raises:
        TaskError: a key is tuned, and nothing was found for it.
    """
    given = tuple(steps)
    for at, step in enumerate(given):
        for key in tuned_keys(step):
            if key not in found.get(step.output, {}):
                text = 'is "tuned", and no value was chosen yet for these steps'
                remedy = (
                    "run vcmodels tune TASK and predict with the best checkpoint, or give a number"
                )
                raise TaskError(f"postprocess.{at}.{key}", text, remedy)
    return tuple(with_values(step, found.get(step.output, {})) for step in given)


@dataclass(frozen=True)
class Trial:
    """What came out with some values."""

    values: TunedValues
    score: float
    """Mean over the volumes that were tried."""
    volumes: int
    """Fewer than all where the rest could not have made it the best."""


@dataclass(frozen=True)
class TunedStep:
    """The values that were chosen for a step, and why."""

    output: str
    figure: str
    sense: Literal["min", "max"]
    trials: tuple[Trial, ...]
    """In the order of the grid."""

    @property
    def best(self) -> Trial:
        """The best of those that saw all volumes; of equals the first."""
        known = [trial for trial in self.trials if trial.score == trial.score]
        most = max(trial.volumes for trial in known)
        whole = [trial for trial in known if trial.volumes == most]
        key = (lambda t: t.score) if self.sense == "min" else (lambda t: -t.score)
        return min(whole, key=key)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "output": self.output,
            "figure": self.figure,
            "sense": self.sense,
            "values": dict(self.best.values),
            "trials": [
                {"values": dict(one.values), "score": one.score, "volumes": one.volumes}
                for one in self.trials
                if one.score == one.score
            ],
        }

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave."""
        trials = tuple(Trial(o["values"], o["score"], o["volumes"]) for o in found["trials"])
        return cls(found["output"], found["figure"], found["sense"], trials)


def tuning_curves(step: TunedStep) -> dict[str, Curve]:
    """The score over the values of each key, by title; with several keys the best of the others.

    TunedValues that were left early are not drawn: their score is of other volumes.
    """
    most = max(trial.volumes for trial in step.trials)
    pick = min if step.sense == "min" else max
    found: dict[str, Curve] = {}
    for key in step.best.values:
        scores: dict[float, list[float]] = {}
        for trial in step.trials:
            if trial.volumes == most:
                scores.setdefault(trial.values[key], []).append(trial.score)
        values = tuple(sorted(scores))
        best = tuple(pick(scores[value]) for value in values)
        found[f"Tuning of {key}"] = Curve(values, best, key, f"{step.figure}, validation")
    return found


def read_tuned(folder: Path) -> tuple[TunedStep, ...]:
    """What was chosen for the run in a folder; nothing where nothing was."""
    path = folder / TUNED
    return tuple(map(TunedStep.from_json, read_json(path)["steps"])) if path.exists() else ()


def as_asked(steps: Iterable["Step"]) -> list[Any]:
    """The steps as JSON values, by which it is seen whether values were chosen for them."""
    return [step.model_dump(mode="json") for step in steps]


def values_for(steps: Iterable["Step"], kept: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What a checkpoint or a run keeps of values, if they were chosen for these steps.

    Args:
        steps: of the task.
        kept: `wanted` as from `as_asked`, and `values` by output and key; or nothing.
    """
    return dict(kept["values"]) if kept.get("wanted") == as_asked(steps) else {}


def chosen_values(steps: Sequence[TunedStep]) -> dict[str, dict[str, float]]:
    """The values of all tuned steps, by output."""
    return {step.output: dict(step.best.values) for step in steps}
