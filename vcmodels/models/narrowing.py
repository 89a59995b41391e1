"""The weights of a narrower network, cut out of those of a wide one.

The narrower network is one that the same model builds with smaller widths. Every group of channels
keeps as many as it has there: those that matter most, in their order.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vcmodels.models.coupling import Channels, Coupling, unfit

Scores = np.ndarray
"""(n,) float64: by number of a channel, how much it matters."""


def narrower(features: int, share: float) -> int:
    """How many features are left of some, at least one."""
    return max(round(features * share), 1)


def first_order(network: nn.Module, coupling: Coupling) -> Scores:
    """How the loss would fall if a channel were taken away, by the gradients of one batch.

    The first order of Taylor's series in a factor of the channel, which is 1 (Molchanov et al. 2019,
    arXiv:1906.10771, section 3.1). The derivative by that factor is the sum, over all weights that
    read the channel, of each weight times its gradient. The mean of its squares over batches is the score: the size of
    a filter would say nothing, as the norm that follows makes it one.

    Args:
        network: with gradients of a loss; a weight without one has no part in that loss.
        coupling: of the same network.
    """
    weights = dict(network.named_parameters())
    scores = np.zeros(1 + max(int(channels.max()) for channels in coupling.sides.values()))
    for side in coupling.readers:
        weight = weights[side.weight]
        if weight.grad is not None:
            change = (
                (weight.detach() * weight.grad).double().movedim(side.axis, 0).flatten(1).sum(1)
            )
            np.add.at(scores, coupling.sides[side], change.cpu().numpy())
    return scores


def narrowed_weights(
    network: nn.Module, coupling: Coupling, smaller: nn.Module, scores: Scores
) -> dict[str, Tensor]:
    """The weights of a narrower network, as its `load_state_dict` takes them.

    Args:
        network: the wide one.
        coupling: of the wide one.
        smaller: the narrower one, which may be on the meta device.
        scores: how much each channel of the wide one matters.

    Raises:
        FaultError: the narrower network is not the wide one with fewer channels.
    """
    weights, wanted = network.state_dict(), smaller.state_dict()
    if weights.keys() != wanted.keys():
        other = min(weights.keys() ^ wanted.keys())
        raise unfit(f"with fewer channels it has other weights, such as {other}")
    kept = kept_channels(coupling, {name: x.shape for name, x in wanted.items()}, scores)
    first = {id(weight): name for name, weight in network.named_parameters()}
    names = dict(network.named_parameters(remove_duplicate=False))  # blocks may be there twice
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        own = first[id(names[name])] if name in names else name
        cut = _cut(weight, {s.axis: kept[c] for s, c in coupling.sides.items() if s.weight == own})
        if cut.shape != wanted[name].shape:
            raise unfit(f"its channels cannot be removed group by group, as of {name}")
        found[name] = cut
    return found


def _cut(weight: Tensor, kept: Mapping[int, np.ndarray]) -> Tensor:
    """A copy of a weight with what is kept along each of some axes."""
    cut = weight.detach().clone()
    for axis, stays in kept.items():
        cut = cut.index_select(axis, torch.from_numpy(np.flatnonzero(stays)).to(cut.device))
    return cut


def kept_channels(
    coupling: Coupling, shapes: Mapping[str, Sequence[int]], scores: Scores
) -> np.ndarray:
    """(n,) bool: which channels stay, by number.

    Args:
        coupling: of the wide network.
        shapes: of the weights of the narrower one, by name.
        scores: how much each channel matters; of equal ones the first stay.

    Raises:
        FaultError: channels of the image or of the logits would have to go, or groups overlap.
    """
    kept = np.ones(len(scores), bool)
    for channels, count in _groups(coupling, shapes):
        if count < len(channels):
            if coupling.fixed.intersection(channels.tolist()):
                raise unfit("it adds the image itself to features")
            order = np.argsort(-scores[channels], kind="stable")
            kept[channels[order[count:]]] = False
    return kept


def _groups(coupling: Coupling, shapes: Mapping[str, Sequence[int]]) -> list[tuple[Channels, int]]:
    """The channels from which some are chosen together, and how many of them are to stay."""
    found: dict[int, tuple[Channels, int]] = {}
    for name, axis in sorted(coupling.makers):
        channels = np.unique(coupling.sides[name, axis])  # pyright: ignore[reportArgumentType]
        count = shapes[name][axis]
        same = {id(found[n]): found[n] for n in channels.tolist() if n in found}
        for others, of_others in same.values():
            if of_others != count or not np.array_equal(others, channels):
                raise unfit(f"the channels of {name} are those of others in part")
        if not same:
            found |= dict.fromkeys(channels.tolist(), (channels, count))
    return list({id(group): group for group in found.values()}.values())
