"""A trained network with fewer channels: cut, measured, and trained on for a while.

Whole channels are removed and the widths of the smaller network stand in its `model_config`, so that
what is saved is an ordinary checkpoint, and the training that follows an ordinary training.
"""

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vcmodels import training
from vcmodels.checkpoint import (
    Checkpoint,
    TrainedNetwork,
    build_network,
    load_checkpoint,
    save_checkpoint,
)
from vcmodels.config import Task, parse_task
from vcmodels.config.load import anchor
from vcmodels.devices import autocast, choose_amp, choose_device, place
from vcmodels.errors import CheckpointError, FaultError, OutputError, RefusedError
from vcmodels.exchange import form_of
from vcmodels.inference.ensemble import find_checkpoints
from vcmodels.models.base import Model
from vcmodels.models.coupling import Coupling, coupling_of
from vcmodels.models.fused import fused
from vcmodels.models.narrowing import Scores, first_order, narrowed_weights
from vcmodels.patches.cache import load_or_find_patches
from vcmodels.patches.resolve import resolve
from vcmodels.patches.split import split_patches
from vcmodels.reporting import Reporter, Silent
from vcmodels.runs.run import PRUNED, Run, starting_folder
from vcmodels.samples.dataset import PatchDataset
from vcmodels.samples.loader import Batch, batches
from vcmodels.training.feed import weighted_targets
from vcmodels.training.learner import Learner
from vcmodels.training.start import StartingPoint
from vcmodels.training.step import sample_losses, voxel_counts, weighted_sums
from vcmodels.training.train import DataSummary, datasets, normalize, validation_patches
from vcmodels.training.validation import validate
from vcmodels.volumes.places import obstacle, refuse_in_store, write_json
from vcmodels.workflows.whole_volumes import WholeVolumes

FINE_TUNE = "fine_tune.json"
"""The task file of the training that follows."""
RATE = 0.5
"""Of the learning rate of the run, for the training that follows. Low rates, as of the end of a
schedule, bring back less of what was lost (Renda et al. 2020, arXiv:2003.02389)."""
PATCHES = 32
"""Training patches by which channels are judged."""
REPEATS = 5
"""Windows that are timed, of which the quickest counts."""
_KEPT = (
    "schema", "heads", "in_channels", "patch_size", "spacing", "unit", "normalization",
    "intensities", "split", "class_counts", "data", "symmetry", "stages",
)  # fmt: skip
"""What the pruned checkpoint has of the one that it was made of."""


@dataclass(frozen=True)
class PruneOptions:
    """What is asked of a pruning."""

    amount: float
    """Share of the channels of each level that is removed, in (0, 1)."""
    output: Path
    """The new run folder."""
    minutes: float | None = None
    """How long to train on; not at all when None."""
    patches: int = PATCHES
    """Training patches by which channels are judged."""
    overrides: Sequence[str] = ()
    """Lines `dotted.key=value` for the task of the new run."""


@dataclass(frozen=True)
class Measured:
    """What a network costs and how good it is."""

    name: str
    parameters: int
    products: float
    """Multiplications with a weight for each voxel of a patch."""
    window_s: float
    """Seconds of the quickest pass over one patch, as predictions run it."""
    scores: Mapping[str, float]
    """By target and its main metric, on the validation patches."""


@dataclass(frozen=True)
class Plan:
    """A trained network, and the narrower one that it is to become."""

    checkpoint: Checkpoint
    trained: TrainedNetwork
    model: Model
    """The narrower one."""
    coupling: Coupling
    task: Task
    """Of the new run."""

    @classmethod
    def of(cls, source: Path, options: PruneOptions) -> "Plan":
        """Load the network, and try on shapes without values whether it can be pruned.

        Raises:
            CheckpointError: it is no checkpoint of ours, or its network cannot be pruned.
            TaskError: an override is not valid.
        """
        checkpoint = load_checkpoint(_only_checkpoint(source))
        trained = build_network(checkpoint)
        size = (trained.patch, trained.spacing)
        try:
            model = trained.task.model.narrowed(1 - options.amount, *size)
            outline = _outline(trained, trained.task.model)
            coupling = coupling_of(outline, trained.in_channels, trained.patch)
            narrowed_weights(outline, coupling, _outline(trained, model), no_scores(coupling))
        except FaultError as error:
            found = f"{trained.task.model.name} cannot be pruned so: {error.found}"
            raise CheckpointError(str(checkpoint.path), found, error.remedy) from error
        return cls(checkpoint, trained, model, coupling, _new_task(checkpoint, model, options))

    def network(self, scores: Scores) -> nn.Module:
        """The narrower network, with what the scores leave of the weights."""
        trained, heads = self.trained, _heads(self.trained)
        size = (trained.in_channels, heads, trained.patch, trained.spacing)
        smaller = self.model.build(*size)
        smaller.load_state_dict(narrowed_weights(trained.module, self.coupling, smaller, scores))
        return smaller.eval()


def no_scores(coupling: Coupling) -> Scores:
    """Scores by which all channels matter alike."""
    return np.zeros(1 + max(int(channels.max()) for channels in coupling.sides.values()))


def _heads(trained: TrainedNetwork) -> dict[str, int]:
    return {name: target.channels for name, target in trained.targets.items()}


def _outline(trained: TrainedNetwork, model: Model) -> nn.Module:
    return model.outline(trained.in_channels, _heads(trained), trained.patch, trained.spacing)


def _only_checkpoint(source: Path) -> Path:
    """The checkpoint at a path, or the best one of a run folder.

    Raises:
        CheckpointError: there is none, several, or a model in a form of other programs.
    """
    found = find_checkpoints(source)
    if len(found) > 1:
        raise CheckpointError(str(source), f"holds {len(found)} checkpoints", f"name {found[0]}")
    if (form := form_of(found[0])) is not None:
        what = f"is a model in the form of {form.name}, which cannot be trained on"
        raise CheckpointError(str(source), what, "give the checkpoint that it was made of")
    return found[0]


def _new_task(checkpoint: Checkpoint, model: Model, options: PruneOptions) -> Task:
    """The task of the new run: that of the old one, its paths absolute, with the smaller network."""
    recorded, _ = parse_task(checkpoint.state["task"], str(checkpoint.path), is_record=True)
    document, name = recorded.to_json(), recorded.tr_params.model_name
    if (origin := starting_folder(checkpoint.path.parent)) is not None:
        anchor(document, origin)
    folder, settings = options.output.absolute(), document["tr_params"]
    document["model_config"] = model.model_dump(mode="json")
    settings |= {
        "checkpoint_path": str(pruned_file(folder, name)),
        "load_weights_only": True,
        "ckpt_out_base": str(folder),
        "tensorboard_log_dir": None,
        "initial_lr": RATE * settings["initial_lr"],
        "max_minutes": options.minutes,
        "freeze": [],
    }
    document["inference_params"] |= {
        "checkpoint_path": str(Run(folder, name).best),
        "output_dir": str(folder / "predictions"),
    }
    return parse_task(document, str(checkpoint.path), options.overrides, is_record=True)[0]


def pruned_file(folder: Path, name: str) -> Path:
    """Where the pruned network lies in its run folder, before it is trained on."""
    return folder / f"{name}_pruned.pth"


def require_new(output: Path) -> None:
    """Refuse a run folder that is there, or cannot be.

    Raises:
        OutputError: saying why.
    """
    refuse_in_store("-o", output)
    if output.exists():
        raise OutputError("-o", f"{output} is there already", "name another, or remove it")
    if found := obstacle(output.absolute().parent):
        raise OutputError("-o", found, "choose a writable folder")


def require_share(amount: float) -> None:
    """Refuse an amount that is no share of the channels.

    Raises:
        RefusedError: naming it.
    """
    if not 0 < amount < 1:
        found = f"{amount:g} is no share of the channels"
        raise RefusedError("--amount", found, "give one between 0 and 1, such as .5")


def prune(
    source: Path, options: PruneOptions, reporter: Reporter, show: Callable[[list[Measured]], None]
) -> int:
    """Prune a checkpoint, save it in a new run folder, and train it on.

    Args:
        source: a checkpoint, or a run folder for its best one.
        options: what is asked.
        reporter: shows what is done.
        show: gets what is measured: the network before and after, at the end once more with what
            was trained on.

    Returns:
        The exit code: 128 + signal where the training was stopped; `vcmodels train` continues it.

    Raises:
        RefusedError: the amount, the checkpoint, the folder or the data do not allow it.
    """
    require_share(options.amount)
    require_new(options.output)
    plan = Plan.of(source, options)
    run = PatchRun.of(plan.checkpoint, plan.task, reporter)
    reporter.say(f"judging channels by {options.patches} training patches")
    smaller = plan.network(run.importance(plan, options.patches))
    measured = run.measure({"before": plan.trained.module, "pruned": smaller}, plan.trained)
    save(plan, smaller, options)
    show(measured)
    task_file = options.output / FINE_TUNE
    if options.minutes is None:
        reporter.say(f"wrote {options.output}; train it on: vcmodels train {task_file}")
        return 0
    code = training.train(plan.task, reporter=reporter, whole_volumes=WholeVolumes)
    best = Run(options.output, plan.task.tr_params.model_name).best
    if code or not best.exists():
        why = "stopped" if code else f"no epoch ended in {options.minutes:g} minutes"
        reporter.say(f"{why}; vcmodels train {task_file} continues")
        return code
    final = build_network(load_checkpoint(best)).module
    networks = {"before": plan.trained.module, "pruned": smaller, "trained on": final}
    show(run.measure(networks, plan.trained))
    return 0


def save(plan: Plan, smaller: nn.Module, options: PruneOptions) -> None:
    """Write the pruned checkpoint and the task file into the new run folder."""
    state, name = plan.checkpoint.state, plan.task.tr_params.model_name
    options.output.mkdir(parents=True)
    write_json(options.output / FINE_TUNE, plan.task.to_json())
    save_checkpoint(
        pruned_file(options.output, name),
        {
            **{key: state[key] for key in _KEPT if key in state},
            "task": plan.task.to_json(),
            "versions": state.get("versions", {}),
            "epoch": 0,
            "step": 0,
            "model": smaller.state_dict(),
            "ema": None,
            PRUNED: provenance(plan, smaller, options),
        },
    )


def provenance(plan: Plan, smaller: nn.Module, options: PruneOptions) -> dict[str, Any]:
    """What a checkpoint says of its pruning, as JSON values."""
    before = plan.checkpoint.state.get(PRUNED)
    return {
        "amount": options.amount,
        "from": str(plan.checkpoint.path.absolute()),
        "from_sha256": plan.checkpoint.sha256,
        "model_config": plan.trained.task.model.model_dump(mode="json"),
        "parameters": [parameters(plan.trained.module), parameters(smaller)],
        "importance": "taylor, first order",
        "patches": options.patches,
        **({"before": before} if before else {}),
    }


def parameters(network: nn.Module) -> int:
    """How many there are."""
    return sum(parameter.numel() for parameter in network.parameters())


@dataclass(frozen=True)
class PatchRun:
    """The patches of a trained network, by which it and others are judged."""

    task: Task
    training: PatchDataset
    validation: PatchDataset | None
    class_counts: dict[str, list[int]]
    device: torch.device

    @classmethod
    def of(cls, checkpoint: Checkpoint, task: Task, reporter: Reporter | None = None) -> "PatchRun":
        """Find them, divided as in its training.

        Args:
            checkpoint: whose normalisation is used.
            task: with its volumes.
            reporter: shows what is found.

        Raises:
            RefusedError: a volume is missing, or does not fit.
        """
        reporter = reporter or Silent()
        if task.dataset_config.cache_file is None:  # else one appears in the new run folder
            task = task.with_values(dataset_config={"use_cache": False})
        resolved = resolve(task, reporter, recorded=None)
        patches = load_or_find_patches(resolved.task, resolved.volumes, reporter)
        settings = resolved.task.tr_params
        split = split_patches(settings, resolved.volumes, patches, reporter)
        counts = checkpoint.state.get("class_counts", {})
        origin, config = StartingPoint(None, checkpoint, True), task.dataset_config
        normalization = normalize(
            config.normalization, origin, resolved.volumes, split.train_regions, Silent()
        )
        seen = validation_patches(settings, None)
        summary = DataSummary(split, normalization, counts, [], seen)
        device = choose_device(settings.device, "tr_params.device")
        return cls(resolved.task, *datasets(resolved, summary), counts, device)

    def first(self, dataset: PatchDataset, count: int, size: int = 1) -> Iterator[Batch]:
        """The first draws of a set, in batches; of a validation at most all."""
        count = count if dataset is self.training else min(count, len(dataset))
        draws = list(range(count))
        groups = [draws[n : n + size] for n in range(0, count, size)]
        return batches(dataset, groups, workers=0, device=self.device)

    def learner(self, network: nn.Module) -> Learner:
        """What runs a network in the precision of the run, and knows the losses of its targets."""
        settings = self.task.tr_params.changed(ema_decay=None, freeze=[])
        targets = dict(self.task.dataset_config.targets)
        targets |= weighted_targets(targets, self.class_counts, Silent())
        return Learner(network, targets, settings, self.device)

    def importance(self, plan: Plan, patches: int) -> Scores:
        """The mean of `first_order` squared over batches of training patches, as they are drawn."""
        learner = self.learner(plan.trained.module)
        network, total = learner.network.eval(), no_scores(plan.coupling)
        size = min(self.task.tr_params.batch_size, patches)
        for batch in self.first(self.training, patches, size):
            network.zero_grad(set_to_none=True)
            counts = voxel_counts(batch)
            losses = sample_losses(learner.targets, learner.run(network, batch), batch)
            sums = weighted_sums(losses, counts)
            loss = sum(
                target.weight * sums[name] / counts[name].sum().clamp(min=1)
                for name, target in learner.targets.items()
            )
            assert isinstance(loss, torch.Tensor)
            loss.backward()
            total += first_order(network, plan.coupling) ** 2
        network.zero_grad(set_to_none=True)
        return total

    def measure(self, networks: Mapping[str, nn.Module], trained: TrainedNetwork) -> list[Measured]:
        """What each of some networks costs, and its scores on the validation patches."""
        times = self.window_times(networks, trained)
        return [
            Measured(
                name,
                parameters(network),
                products(network, trained) / np.prod(trained.patch),
                times[name],
                self.scores(network),
            )
            for name, network in networks.items()
        ]

    def scores(self, network: nn.Module) -> dict[str, float]:
        """By target and its main metric, on the validation patches; {} without any."""
        if self.validation is None:
            return {}
        learner = self.learner(network)
        found = validate(learner, self.first(self.validation, len(self.validation))).metrics
        metrics = {name: target.metric for name, target in learner.targets.items()}
        return {f"{n} {m}": found[n][m] for n, m in metrics.items() if m in found.get(n, {})}

    def window_times(
        self, networks: Mapping[str, nn.Module], trained: TrainedNetwork
    ) -> dict[str, float]:
        """Seconds of the quickest pass over one patch, taken in turn, as predictions run it."""
        is_cpu = self.device.type == "cpu"
        amp = None if is_cpu else choose_amp("auto", self.device)
        image = torch.randn(1, trained.in_channels, *trained.patch, device=self.device)
        image = image.contiguous(memory_format=torch.channels_last_3d)
        placed = {name: place(network.eval(), self.device) for name, network in networks.items()}
        ready = {name: fused(one) if is_cpu else one for name, one in placed.items()}
        best = dict.fromkeys(networks, float("inf"))
        with torch.inference_mode(), autocast(self.device, amp):
            for turn in range(REPEATS + 1):
                for name, network in ready.items():
                    begun = time.perf_counter()
                    network(image)
                    if not is_cpu:
                        torch.cuda.synchronize(self.device)
                    if turn:  # the first prepares
                        best[name] = min(best[name], time.perf_counter() - begun)
        return best


def products(network: nn.Module, trained: TrainedNetwork) -> int:
    """Multiplications with a weight in a pass over one patch."""
    image = torch.empty(1, trained.in_channels, *trained.patch, device="meta")
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        copy.deepcopy(network).to("meta")(image)
    return counter.get_total_flops() // 2
