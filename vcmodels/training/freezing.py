"""Parts of a network that do not learn, or not yet."""

from collections.abc import Iterable, Sequence

from torch import nn

from vcmodels.config.parameters import TrainingParams
from vcmodels.errors import TaskError

KEY = "tr_params.freeze"


class Freezing:
    """Holds parts of a network fixed until a step.

    A frozen weight gets no gradient, so optimisers leave it alone, decay included, and its average
    stays where it is. Frozen modules run as in prediction: a batch norm keeps its statistics and
    nothing is dropped out.
    """

    def __init__(self, network: nn.Module, parts: Sequence[str], until: int | None) -> None:
        """Find the parts.

        Args:
            network: whose parameters are meant.
            parts: beginnings of their names, of whole words between the dots.
            until: the step (0-based) at which they begin to learn; never when None.

        Raises:
            TaskError: a part is not in the network, or nothing is left that learns.
        """
        self.until = until
        names = [name for name, _ in network.named_parameters()]
        for part in parts:
            if not any(lies_in(name, part) for name in names):
                known = ", ".join(part_names(names))
                raise TaskError(KEY, f'"{part}" is no part of the network', f"parts are {known}")
        frozen = {name for name in names if any(lies_in(name, part) for part in parts)}
        if len(frozen) == len(names):
            raise TaskError(KEY, "names the whole network", "leave something that learns")
        self.parameters = [p for name, p in network.named_parameters() if name in frozen]
        self.modules = [
            module
            for name, module in network.named_modules()
            if any(lies_in(name, part) for part in parts)
        ]

    def holds(self, step: int) -> bool:
        """Whether anything is frozen at the 0-based `step`."""
        return bool(self.parameters) and (self.until is None or step < self.until)

    def apply(self, step: int) -> bool:
        """Freeze or release for the 0-based `step`, of a network that is in training mode.

        Returns:
            Whether other weights learn than before.
        """
        is_frozen = self.holds(step)
        if is_frozen:
            for module in self.modules:
                module.eval()
        changes = any(parameter.requires_grad == is_frozen for parameter in self.parameters)
        for parameter in self.parameters:
            parameter.requires_grad_(not is_frozen)
        return changes


def freezing_of(network: nn.Module, settings: TrainingParams) -> Freezing:
    """What a task freezes of its network, and for how long.

    Raises:
        TaskError: as `Freezing`.
    """
    epochs = settings.freeze_epochs
    until = None if epochs is None else epochs * settings.max_steps_per_epoch
    return Freezing(network, settings.freeze, until)


def lies_in(name: str, part: str) -> bool:
    """Whether the dotted `name` is `part` or inside of it."""
    return name == part or name.startswith(f"{part}.")


def part_of(name: str) -> str:
    """The part of a network to which a dotted name belongs: `encoder`, `heads.sheet`.

    Heads and decoders are parts of one target each (see `vcmodels.models.base`).
    """
    words = name.split(".")
    return ".".join(words[: 2 if words[0] in ("heads", "decoders") else 1])


def part_names(names: Iterable[str]) -> list[str]:
    """The parts that some dotted names belong to, each once, in their order."""
    return list(dict.fromkeys(part_of(name) for name in names))
