"""Several checkpoints on what a task holds out: each by itself, together in every way, and without each.

Each member predicts each volume once; all ways to put them together are read from what is stored, box
by box, so that memory does not grow with their number.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from vcmodels.checkpoint import TrainedNetwork
from vcmodels.config import Task
from vcmodels.config.task import volume_metrics
from vcmodels.devices import choose_device
from vcmodels.errors import RefusedError
from vcmodels.evaluation.evaluate import ScoredRegion
from vcmodels.evaluation.fused import FusedPrediction, Fusion, fitted_weights
from vcmodels.evaluation.report import Report
from vcmodels.evaluation.scoring import score_volumes
from vcmodels.evaluation.side_by_side import write_comparison
from vcmodels.evaluation.task import ScoredPart, TaskScores, about_task, scored_part
from vcmodels.inference.ensemble import find_checkpoints, load_networks
from vcmodels.inference.network import uncertainty_name
from vcmodels.inference.predict import predict_request
from vcmodels.inference.request import RunOptions, require_same_inputs
from vcmodels.inference.views import choose_views, wanted_tta
from vcmodels.metrics.base import Sense
from vcmodels.reporting import Reporter, Silent
from vcmodels.results import file_name, open_prediction
from vcmodels.targets import AnyTarget, MulticlassTarget
from vcmodels.volumes import Volume, open_volume
from vcmodels.volumes.places import write_atomic, write_json
from vcmodels.workflows.cohort_scores import HeldOutCohort
from vcmodels.workflows.whole_volumes import PredictedPart, clear

TABLE, PAGE, PREDICTIONS = "fuse.json", "fuse.html", "predictions"
FITTED = "fitted"
NOTE = (
    "the weights of this row were fitted to the labels that it is scored on: what it gains is an "
    "upper bound"
)


@dataclass(frozen=True)
class FuseReport:
    """What members reach alone and together."""

    members: tuple[str, ...]
    reports: Mapping[str, Report]
    """By way: members, `mean` and so on."""
    weights: Mapping[str, Mapping[str, tuple[float, ...]]]
    """By way and target, of each member."""
    main: Mapping[str, tuple[str, Sense]]
    """By target, the figure that counts most, and whether less or more of it is better."""

    def figure(self, way: str, target: str) -> float:
        """The main figure of a target."""
        return TaskScores(self.reports[way])[target].get(self.main[target][0], float("nan"))

    def gains(self, target: str) -> dict[str, float]:
        """By member, by how much the mean of all is better than that of the others; above 0 helps."""
        sign = 1 if self.main[target][1] == "max" else -1
        mean = self.figure("mean", target)
        return {one: sign * (mean - self.figure(without(one), target)) for one in self.members}

    def to_json(self) -> dict[str, Any]:
        """As JSON values; unknown figures are null."""
        ways: dict[str, Any] = {}
        for way, report in self.reports.items():
            figures = {target: _known(found) for target, found in TaskScores(report).items()}
            ways[way] = {
                "figures": figures,
                "weights": {n: list(one) for n, one in self.weights[way].items()},
                **({"note": NOTE} if way == FITTED else {}),
            }
        helps = {target: _known(self.gains(target)) for target in self.main}
        main = {target: {"figure": f, "better": sense} for target, (f, sense) in self.main.items()}
        return {"members": list(self.members), "main": main, "ways": ways, "gains": helps}


def without(member: str) -> str:
    """The name of the mean of the others."""
    return f"mean without {member}"


def _known(figures: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if isfinite(value) else None for name, value in figures.items()}


@dataclass(frozen=True)
class _Members:
    """The networks of a report, and what they have predicted."""

    names: tuple[str, ...]
    networks: tuple[TrainedNetwork, ...]
    cohort: HeldOutCohort
    targets: Mapping[str, AnyTarget]
    """As they are stored, for scores."""
    views: int
    """Of each patch, the same for all members; 1 where they are not."""
    folder: Path

    @property
    def task(self) -> Task:
        """With targets as they are stored."""
        return self.cohort.task.with_values(dataset_config={"targets": dict(self.targets)})

    def part(self, member: int, part: PredictedPart) -> ScoredPart:
        """A part and the result of one member for it."""
        return part.scored(self.folder / PREDICTIONS / file_name(self.names[member]))

    def stored(self, part: PredictedPart, target: str) -> list[Volume]:
        """The predictions of all members of one target."""
        roots = [self.part(n, part).root for n in range(len(self.names))]
        return [open_prediction(root, target, self.targets[target]) for root in roots]

    def spreads(self, part: PredictedPart, target: str) -> list[Volume]:
        """Their uncertainties; none where each patch was seen once."""
        if self.views < 2:
            return []
        roots = [self.part(n, part).root / uncertainty_name(target) for n in range(len(self.names))]
        return [open_volume(str(root), key=str(root)) for root in roots]


def fuse(
    checkpoints: Sequence[str],
    task: str,
    overrides: Sequence[str],
    output: Path,
    *,
    weights: Sequence[float] | None = None,
    reporter: Reporter,
    should_stop: Callable[[], bool] = lambda: False,
) -> FuseReport | None:
    """Score checkpoints alone and together on what a task holds out, or continue; None after a stop.

    Args:
        checkpoints: two or more files, or run folders for the best in each; the networks may differ in
            anything but the targets.
        task: the task file.
        overrides: for it.
        output: folder for the report; predictions lie in it until it is written.
        weights: of each checkpoint, for the row `weighted`.
        reporter: gets the progress.
        should_stop: asked several times a second.

    Raises:
        RefusedError: the task, a volume or a checkpoint does not fit.
        RunError: a prediction failed; the same call continues.
    """
    members = _members(checkpoints, task, overrides, output, weights, reporter)
    if not _predict(members, reporter, should_stop):
        return None
    fitted = _fitted(members, should_stop)
    if fitted is None:
        return None
    reports: dict[str, Report] = {}
    ways = _ways(members, fitted, weights)
    for name, fusions in ways.items():
        reporter.say(f"scoring {name}")
        report = _report(members, fusions, name, reporter, should_stop)
        if report is None:
            return None
        reports[name] = report
    used = {way: {t: one.weights for t, one in found.items()} for way, found in ways.items()}
    scored = {t for report in reports.values() for t in report.targets}
    main: dict[str, tuple[str, Sense]] = {
        name: (target.metric, target.figures[target.metric])
        for name, target in members.targets.items()
        if name in scored
    }
    found = FuseReport(members.names, reports, used, main)
    _write(found, output)
    clear(output / PREDICTIONS)
    return found


def _members(
    checkpoints: Sequence[str],
    path: str,
    overrides: Sequence[str],
    output: Path,
    weights: Sequence[float] | None,
    reporter: Reporter,
) -> _Members:
    paths = [found for one in checkpoints for found in find_checkpoints(one)]
    if len(paths) < 2:
        raise RefusedError("--fuse", "there is one checkpoint", "give two or more")
    if weights is not None and (len(weights) != len(paths) or min(weights) < 0 or not sum(weights)):
        found = f"{list(weights)} for {len(paths)} checkpoints"
        raise RefusedError("--weights", found, "give one of 0 or more for each, in their order")
    networks = load_networks(paths)
    first, *others = networks
    for other in others:
        if other.sha256 in [one.sha256 for one in networks if one is not other]:
            raise RefusedError(str(other.path), "is given twice", "name each checkpoint once")
    cohort = HeldOutCohort.of(path, overrides, first, reporter)
    require_same_inputs(cohort.task.dataset_config, networks)
    targets = {
        name: one.changed(output="probabilities") if isinstance(one, MulticlassTarget) else one
        for name, one in cohort.task.dataset_config.targets.items()
    }
    return _Members(_names(paths), networks, cohort, targets, _views(cohort, networks), output)


def _names(paths: Sequence[Path]) -> tuple[str, ...]:
    """Short names that differ: of the files, of their folders, or both; else numbers go before."""
    for name in (lambda p: p.stem, lambda p: p.parent.name, lambda p: f"{p.parent.name}/{p.stem}"):
        found = [name(path.absolute()) for path in paths]
        if len(set(found)) == len(found):
            return tuple(found)
    return tuple(f"{n}: {path.absolute().parent.name}" for n, path in enumerate(paths, 1))


def _views(cohort: HeldOutCohort, networks: Sequence[TrainedNetwork]) -> int:
    """How often each member sees a patch; 1 where they differ in it."""
    params, counts = cohort.task.inference_params, set[int]()
    for network in networks:
        tta = wanted_tta(params.tta, [network], Silent())
        patch = params.patch_size or network.patch
        spacings = (cohort.parts[0].volume.spacing, network.spacing)
        counts.add(len(choose_views(tta, patch, spacings, Silent(), network.targets)))
    return counts.pop() if len(counts) == 1 else 1


def _predict(members: _Members, reporter: Reporter, should_stop: Callable[[], bool]) -> bool:
    """Predict all parts with each member; False after a stop."""
    task, options = members.task, RunOptions(reporter=reporter, should_stop=should_stop)
    device = choose_device(task.inference_params.device, "inference_params.device")
    for number, network in enumerate(members.networks):
        for part in members.cohort.parts:
            reporter.say(f"{members.names[number]}: {part.volume.name}")
            place = members.folder / PREDICTIONS / file_name(members.names[number])
            request = part.request(task, network, device, place)
            request = request.with_params(output_type="float32", uncertainty=members.views > 1)
            if not predict_request(request, options).is_through:
                return False
    return True


def _fitted(
    members: _Members, should_stop: Callable[[], bool]
) -> dict[str, tuple[float, ...]] | None:
    """The weights of each target that fit the labels best; None after a stop."""
    found: dict[str, tuple[float, ...]] = {}
    for name, target in members.targets.items():
        parts = [
            (label, members.stored(part, name), part.box)
            for part in members.cohort.parts
            if (label := ScoredRegion(part.volume, part.box).label(name, target)) is not None
        ]
        weights = fitted_weights(parts, should_stop) if parts else (1.0,) * len(members.names)
        if weights is None:
            return None
        found[name] = weights
    return found


def _ways(
    members: _Members,
    fitted: Mapping[str, tuple[float, ...]],
    given: Sequence[float] | None,
) -> dict[str, dict[str, Fusion]]:
    """By name of the way and target, how members are put together."""
    count = len(members.names)
    same = (1 / count,) * count

    def every(name: str, weights: Sequence[float], **options: Any) -> dict[str, Fusion]:  # noqa: ANN401
        return {t: Fusion(name, tuple(weights), **options) for t in members.targets}

    alone = [tuple(float(n == m) for n in range(count)) for m in range(count)]
    ways = {name: every(name, one) for name, one in zip(members.names, alone, strict=True)}
    ways["mean"] = every("mean", same)
    if given is not None:
        ways["weighted"] = every("weighted", [one / sum(given) for one in given])
    ways[FITTED] = {name: Fusion(FITTED, fitted[name]) for name in members.targets}
    if members.views > 1:
        ways["variance"] = every("variance", same, by_spread=members.views)
    votes = {
        name: Fusion("vote", same, is_vote=True)
        for name, target in members.targets.items()
        if target.predicts in ("masks", "classes") and getattr(target, "activation", "") != "none"
    }
    ways |= {"vote": votes} if votes else {}
    for number, name in enumerate(members.names):
        ways[without(name)] = every(without(name), [float(n != number) for n in range(count)])
    return ways


def _report(
    members: _Members,
    fusions: Mapping[str, Fusion],
    way: str,
    reporter: Reporter,
    should_stop: Callable[[], bool],
) -> Report | None:
    """The scores of one way; None after a stop."""
    task = members.task
    targets = {name: one for name, one in members.targets.items() if name in fusions}
    metrics = volume_metrics(task.dataset_config.targets, task.evaluation)
    volumes = []
    for part in members.cohort.parts:
        labelled = {n: t for n, t in targets.items() if part.region.label(n, t)}
        predictions: dict[str, Volume] = {
            name: FusedPrediction.of(
                members.stored(part, name), target, fusions[name], members.spreads(part, name)
            )
            for name, target in labelled.items()
        }
        one = scored_part(members.part(0, part), predictions, labelled, metrics)
        volumes.append(replace(one, prediction=way))
    weights = {name: list(one.weights) for name, one in fusions.items()}
    about = {**about_task(task), "members": list(members.names), "weights": weights}
    about |= {"note": NOTE} if way == FITTED else {}
    return score_volumes(volumes, provenance=about, reporter=reporter, should_stop=should_stop)


def _write(found: FuseReport, output: Path) -> None:
    """Write the table, the report of each way, and the page that compares them with the mean."""
    output.mkdir(parents=True, exist_ok=True)
    for way, report in found.reports.items():
        place = output / "reports" / f"{file_name(way)}.json"
        place.parent.mkdir(exist_ok=True)
        write_atomic(place, report.to_text().encode())
    write_json(output / TABLE, found.to_json())
    others = {way: one for way, one in found.reports.items() if way not in ("mean", "vote")}
    shown = {"mean": found.reports["mean"], **others}
    votes = found.reports.get("vote")
    if votes is not None and votes.targets == shown["mean"].targets:
        shown["vote"] = votes
    write_comparison(shown, output / PAGE)
