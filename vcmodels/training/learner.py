"""The trained state (network, average, optimiser, step) and the one step that changes it."""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vcmodels.checkpoint import load_weights, refuse_not_finite, strip_prefixes
from vcmodels.config import TrainingParams
from vcmodels.devices import CompiledOrEager, autocast, choose_amp, place
from vcmodels.errors import CheckpointError
from vcmodels.models.base import Logits, part_names, part_of, target_of
from vcmodels.samples.loader import Batch
from vcmodels.samples.order import draws_of_step
from vcmodels.targets import AnyTarget
from vcmodels.training.optimiser import (
    LossBalance,
    average_weights,
    build_optimizer,
    freezing_of,
    load_slots,
    rate_factor,
    set_rate,
)
from vcmodels.training.step import (
    PendingResult,
    draw_mix,
    mean_over_targets,
    partners,
    sample_losses,
    voxel_counts,
    weighted_sums,
)
from vcmodels.training.teachers import Lesson
from vcmodels.training.world import World

SHOWN = 3


def take_weights(
    networks: Iterable[nn.Module],
    state: Mapping[str, Any],
    source: str,
    targets: Iterable[str],
    *,
    partial: bool = False,
) -> "Transfer":
    """As `transfer`, of the best weights of a state.

    Raises:
        CheckpointError: they do not fit.
    """
    every = {*targets, *state.get("heads", ())}
    return transfer(networks, state.get("ema") or state["model"], source, every, partial=partial)


@dataclass(frozen=True)
class Transfer:
    """Names of weights, each in one of three lists."""

    taken: list[str]
    fresh: list[str]
    """Of the network, not in the file or of another shape there."""
    unused: list[str]
    """Of the file, not in the network."""

    def __str__(self) -> str:
        """In words, by parts of the network."""
        whole = part_names(self.taken)
        torn = set(whole) & set(part_names(self.fresh))
        marked = (f"{part} (in part)" if part in torn else part for part in whole)
        texts = [f"taken: {', '.join(marked)}"]
        if self.fresh:
            texts.append(f"new and random: {', '.join(part_names(self.fresh))}")
        if unused := [part for part in part_names(self.unused) if part not in whole]:
            texts.append(f"not used: {', '.join(unused)}")
        return "; ".join(texts)


def transfer(
    networks: Iterable[nn.Module],
    weights: Mapping[str, Tensor],
    source: str,
    targets: Collection[str],
    *,
    partial: bool = False,
) -> Transfer:
    """Copy the weights that fit into `networks`, which are alike.

    Heads and decoders of targets are taken over one by one, those whose tensors all are in the file
    in the same shape. Everything else is shared by all targets and must fit, or with `partial` is
    taken over tensor by tensor.

    Args:
        networks: to be changed, unless they are on the meta device; their other weights stay.
        weights: tensors by name.
        source: where they come from, for messages.
        targets: of the network and of the file: whose heads and decoders may differ.
        partial: take whatever fits.

    Raises:
        CheckpointError: a shared part does not fit, nothing fits, or a value is not finite. Nothing
            was changed.
    """
    networks, given = list(networks), strip_prefixes(weights)
    refuse_not_finite(given, source)
    wanted = networks[0].state_dict()
    misfits = [n for n in wanted if n not in given or given[n].shape != wanted[n].shape]
    if partial:
        fresh = set(misfits)
    else:
        own = {part for part in part_names([*wanted, *given]) if target_of(part) in targets}
        _refuse_shared(given, wanted, misfits, own, source)
        torn = set(part_names(misfits))
        fresh = {name for name in wanted if part_of(name) in torn}
    taken = {name: given[name] for name in wanted if name not in fresh}
    if not taken:
        raise CheckpointError(
            source, "no weight fits the network", "use the model_config that it was trained with"
        )
    for network in networks:
        if not next(network.parameters()).is_meta:
            network.load_state_dict(taken, strict=False)
    return Transfer(list(taken), sorted(fresh), [name for name in given if name not in taken])


def _refuse_shared(
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    misfits: list[str],
    own: Collection[str],
    source: str,
) -> None:
    """Refuse weights of another network, of which only heads and decoders would be left out."""
    extra = [name for name in given if name not in wanted]
    wrong = [name for name in [*misfits, *extra] if part_of(name) not in own]
    if wrong:
        shown = "; ".join(
            f"{n} {_shape(n, given)}, here {_shape(n, wanted)}" for n in wrong[:SHOWN]
        )
        raise CheckpointError(
            source,
            f"{len(wrong)} tensors that all targets share do not fit the network: {shown}",
            "use the model_config and input channels that it was trained with, or set "
            'tr_params.load_weights_only to "partial"',
        )


def _shape(name: str, tensors: Mapping[str, Tensor]) -> str:
    return f"is {list(tensors[name].shape)}" if name in tensors else "is missing"


class Learner:
    """Owns everything that a step changes and a checkpoint must hold.

    Dropout and the like draw from a generator seeded with (seed, step) at each step, so a resumed
    run continues as if it had never stopped.

    In a world of several processes each has a learner with the same state, and takes its share of
    the samples of a step; the gradient is the mean over all.

    Args:
        network: with a head for each target.
        targets: what is learnt, by name.
        settings: how.
        device: where.
        world: the processes of this training; this one only when None.
        measures_samples: whether to report the loss of each sample.

    Attributes:
        lessons: what is learnt besides the labels; given before the first step.
    """

    def __init__(
        self,
        network: nn.Module,
        targets: Mapping[str, AnyTarget],
        settings: TrainingParams,
        device: torch.device,
        world: World | None = None,
        *,
        measures_samples: bool = False,
    ) -> None:
        self.targets: dict[str, AnyTarget] = dict(targets)
        self.settings, self.device = settings, device
        self.total_steps = settings.max_epoch * settings.max_steps_per_epoch
        self.world = world or World()
        self.network = place(network, device)
        self.freezing = freezing_of(self.network, settings)
        self.freezing.apply(0)
        self.averaged = copy.deepcopy(self.network).eval() if settings.ema_decay else None
        self.tell_eager: Callable[[str], None] | None = None
        self._prepare()
        self.measures_samples = measures_samples
        weights = {name: target.weight for name, target in self.targets.items()}
        self.balance = LossBalance(weights, settings.loss_balance).to(device)
        self.trained = nn.ModuleList([self.network, self.balance])
        self.optimizer = build_optimizer(
            settings.optimizer,
            self.trained,
            settings.initial_lr,
            settings.weight_decay,
            settings.momentum,
        )
        self.amp = choose_amp(settings.amp, device)
        # Only fp16 underflows; a disabled scaler passes everything through.
        self.scaler = torch.amp.GradScaler(device.type, enabled=self.amp == torch.float16)
        self.step = 0
        self.lessons: Sequence[Lesson] = ()

    def compile(self, say: Callable[[str], None]) -> None:
        """Train through `torch.compile` from now on, eagerly if it fails here."""
        self.tell_eager = say
        self.forward = CompiledOrEager(self.parallel or self.network, say)

    def _prepare(self) -> None:
        """Wrap the network for its steps; again when other weights learn than before.

        In a world of several, its gradients are averaged while they are computed.
        """
        self.parallel: DistributedDataParallel | None = None
        if self.world.size > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(self.network, ids, gradient_as_bucket_view=True)
        self.forward: nn.Module = self.parallel or self.network
        if self.tell_eager is not None:
            self.compile(self.tell_eager)

    @property
    def best_network(self) -> nn.Module:
        """The averaged network if there is one: what is validated and predicts."""
        return self.averaged if self.averaged is not None else self.network

    def train_step(self, batches: Sequence[Batch], *, stops: bool = False) -> PendingResult:
        """One optimiser step on the mean over the samples of all micro-batches and processes.

        Samples count by their valid voxels. Nothing here waits for the device: the result is read
        when it is wanted, and a gradient that is not finite is left out by the optimiser itself.

        Args:
            batches: this process' share of the samples, one micro-batch at least.
            stops: whether this process wants to stop; reported to all with the result.
        """
        rate = self._begin_step()
        counts = [voxel_counts(batch) for batch in batches]
        totals = self._totals(counts)
        losses, of_samples = self._backward(batches, counts, totals)
        self.world.average_gradients(self.balance.parameters())
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(
            self.trained.parameters(), self.settings.gradient_clip
        ).detach()
        # Made there: a number that is sent to a device waits for all that it has to do.
        stopping = torch.full((1,), float(stops), device=self.device)
        sums = self.world.sum(torch.cat([losses, stopping]))
        self._apply(sums[0].isfinite() & norm.isfinite())
        self.step += 1
        return PendingResult(
            step=self.step,
            rate=rate,
            names=list(self.targets),
            taught=[curve for curve, _, _ in self._taught()],
            scaler=self.scaler,
            figures=torch.cat(
                [sums, norm[None], torch.stack(list(totals.values())), self.balance.factors()]
            ),
            sample_losses=self._of_all(of_samples),
        )

    def _begin_step(self) -> float:
        """Set everything to what this step is to find; returns its learning rate."""
        settings, world = self.settings, self.world
        torch.manual_seed((settings.seed << 32) + self.step * world.size + world.rank)
        self.network.train()
        if self.freezing.apply(self.step):
            self._prepare()
        rate = settings.initial_lr * rate_factor(
            settings.scheduler, self.step, self.total_steps, settings.warmup_steps
        )
        set_rate(self.optimizer, rate)
        self.optimizer.zero_grad(set_to_none=True)
        return rate

    def _backward(
        self,
        batches: Sequence[Batch],
        counts: Sequence[Mapping[str, Tensor]],
        totals: Mapping[str, Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """Add up the gradients of the micro-batches.

        Returns:
            (1 + T + L,) this process' share of the loss, of the loss of each target and of those that
            need no label, and the losses of its samples, if they are wanted.
        """
        share = 1 / (len(batches) * self.world.size)
        taught = self._taught()
        figures = torch.zeros(1 + len(self.targets) + len(taught), device=self.device)
        of_samples: list[Tensor] = []
        for number, (batch, count) in enumerate(zip(batches, counts, strict=True)):
            with self._syncing(number == len(batches) - 1):
                found, sums, lessons = self._losses(batch, count, number)
                parts = {name: sums[name] / totals[name].clamp(min=1) for name in self.targets}
                loss = self.balance(parts, totals, share)
                for curve, target, weight in taught:
                    loss = loss + weight * self.targets[target].weight * lessons[curve]
                # The gradient of the world is the mean over its processes, the loss their sum.
                self.scaler.scale(loss * self.world.size).backward()
            figures = figures + torch.stack([loss, *parts.values(), *lessons.values()]).detach()
            if self.measures_samples:
                of_samples.append(mean_over_targets(self.targets, found, count))
        return figures, of_samples

    def _losses(
        self, batch: Batch, count: Mapping[str, Tensor], number: int
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """The losses of a micro-batch.

        Returns:
            By target (B,) of each sample, and their weighted sum; by curve this micro-batch' share of
            what needs no label, a mean over the samples of the step.
        """
        settings, levels = self.settings, getattr(self.network, "encoder_levels", 0)
        mix = draw_mix(settings.mixup, levels, seed=settings.seed, step=self.step, number=number)
        seen = batch if mix is None else mix.batch(batch)
        outputs = self.run(self.forward if mix is None else mix.through(self.forward), seen)
        found, taught = sample_losses(self.targets, outputs, batch), self._learnt(seen, outputs)
        if mix is None:
            return found, weighted_sums(found, count), taught
        others = partners(batch)
        of_others = weighted_sums(
            sample_losses(self.targets, outputs, others), voxel_counts(others)
        )
        return found, mix.mean(weighted_sums(found, count), of_others), taught

    def _taught(self) -> list[tuple[str, str, float]]:
        """The curve, the target and the factor of each loss that needs no label."""
        return [
            (f"{lesson.name}_{target}", target, lesson.weight(self.step))
            for lesson in self.lessons
            for target in lesson.targets
        ]

    def _learnt(self, seen: Batch, outputs: Logits) -> dict[str, Tensor]:
        """The losses that need no label, of a micro-batch as the network has seen it."""
        samples = draws_of_step(self.settings)
        return {
            f"{lesson.name}_{target}": found.sum() / samples
            for lesson in self.lessons
            for target, found in lesson.losses(seen, outputs).items()
        }

    def _totals(self, counts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Per target, how many voxels of the whole step count, over micro-batches and processes."""
        mine = [torch.cat([count[name] for count in counts]).sum() for name in self.targets]
        return dict(zip(self.targets, self.world.sum(torch.stack(mine)).unbind(), strict=True))

    def _of_all(self, of_samples: Sequence[Tensor]) -> Tensor | None:
        """The losses of all samples of the step, in the order of their draws; None without any."""
        if not of_samples:
            return None
        mine = torch.cat(list(of_samples))
        found = mine.new_zeros(self.settings.batch_size * self.settings.gradient_accumulation)
        share = self.world.share(range(len(found)))
        found[share.start : share.stop] = mine
        return self.world.sum(found)

    def _syncing(self, is_last: bool) -> AbstractContextManager[None]:
        """Gradients travel only with the last micro-batch."""
        return nullcontext() if self.parallel is None or is_last else self.parallel.no_sync()

    def _apply(self, is_finite: Tensor) -> None:
        """Change the weights, if the gradient is finite, and move their average towards them."""
        if self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
        else:
            # How a scaler makes fused optimisers do nothing, without waiting for the device.
            setattr(self.optimizer, "found_inf", (~is_finite).float())  # noqa: B010
            self.optimizer.step()
        self.scaler.update()
        if self.averaged is not None:
            assert self.settings.ema_decay is not None
            learns = [parameter.requires_grad for parameter in self.network.parameters()]
            average_weights(
                compress(self.averaged.parameters(), learns),
                compress(self.network.parameters(), learns),
                self.settings.ema_decay,
                self.step,
            )

    def run(self, network: Callable[[Tensor], Logits], batch: Batch) -> Logits:
        """The logits of all heads, in the precision of the run."""
        with autocast(self.device, self.amp):
            return network(batch.image.contiguous(memory_format=torch.channels_last_3d))

    def state(self) -> dict[str, Any]:
        """What `restore` needs, besides the task."""
        return {
            "model": self.network.state_dict(),
            "ema": self.averaged.state_dict() if self.averaged is not None else None,
            "balance": self.balance.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
        }

    def take_weights(
        self, state: Mapping[str, Any], source: str, *, partial: bool = False
    ) -> Transfer:
        """Start at step 0 from the best weights of `state`, as far as they fit: see `transfer`."""
        networks = [self.network] if self.averaged is None else [self.network, self.averaged]
        return take_weights(networks, state, source, self.targets, partial=partial)

    def restore(self, state: Mapping[str, Any], source: str) -> None:
        """Continue from `state`."""
        load_weights(self.network, state["model"], source)
        if self.averaged is not None:
            load_weights(self.averaged, state.get("ema") or state["model"], source)
        # Older files have none: all weights were fixed.
        load_weights(self.balance, state.get("balance", {}), source)
        load_slots(self.optimizer, state["optimizer"], source)
        if state["scaler"]:  # empty when the run was not in fp16 before
            _load_scaler(self.scaler, state["scaler"], source)
        self.step = state["step"]


def _load_scaler(scaler: torch.amp.GradScaler, state: Mapping[str, float], source: str) -> None:
    """Continue with the scale of a checkpoint.

    Raises:
        CheckpointError: it lacks keys, or a number that no scaler has.
    """
    if not scaler.is_enabled():
        return
    wanted, counted = scaler.state_dict().keys(), ("_growth_tracker", "growth_interval")
    if state.keys() < wanted or any(
        value < 0 or (value == 0 and name not in counted) for name, value in state.items()
    ):
        raise CheckpointError(source, f"scaler is {dict(state)}", "use another checkpoint")
    scaler.load_state_dict({name: state[name] for name in wanted})
