"""Starting from the weights of another task: what is taken over, and what starts anew."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vcmodels.checkpoint import refuse_not_finite, strip_prefixes
from vcmodels.errors import CheckpointError
from vcmodels.training.freezing import part_names, part_of

SHOWN = 3


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
        texts = [f"taken: {', '.join(_marked(part, torn) for part in whole)}"]
        if self.fresh:
            texts.append(f"new and random: {', '.join(part_names(self.fresh))}")
        if unused := [part for part in part_names(self.unused) if part not in whole]:
            texts.append(f"not used: {', '.join(unused)}")
        return "; ".join(texts)


def _marked(part: str, torn: Collection[str]) -> str:
    return f"{part} (in part)" if part in torn else part


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
        networks: to be changed; their other weights stay.
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
        own = {part for part in part_names([*wanted, *given]) if _target(part) in targets}
        _refuse_shared(given, wanted, misfits, own, source)
        torn = set(part_names(misfits))
        fresh = {name for name in wanted if part_of(name) in torn}
    taken = {name: given[name] for name in wanted if name not in fresh}
    if not taken:
        raise CheckpointError(
            source, "no weight fits the network", "use the model_config that it was trained with"
        )
    for network in networks:
        network.load_state_dict(taken, strict=False)
    return Transfer(list(taken), sorted(fresh), [name for name in given if name not in taken])


def _refuse_shared(
    given: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    misfits: list[str],
    own: Collection[str],
    source: str,
) -> None:
    """Refuse weights of another network, of which heads and decoders alone would be left out."""
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


def _target(part: str) -> str | None:
    """The target to which a part belongs, if it is of one alone."""
    _, _, target = part.partition(".")
    return target or None


def _shape(name: str, tensors: Mapping[str, Tensor]) -> str:
    return f"is {list(tensors[name].shape)}" if name in tensors else "is missing"
