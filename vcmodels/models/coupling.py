"""Which channels of a network go together: those that one cannot remove without the others.

Removing a channel removes the filter that makes it, its entries of norms and gates, and the slices of
all weights that read it; where two tensors are added, the channel of one goes with that of the other
(Fang et al. 2023, "DepGraph", arXiv:2301.12900). The groups are found in a pass on the meta device,
where every tensor carries the numbers of its channels, and each operation says what becomes of them.
An operation that is not known here is refused, so that no network is cut in a wrong place.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vcmodels.errors import FaultError
from vcmodels.geometry.boxes import Shape

Channels = np.ndarray
"""(n,) int64: a number for each channel along one axis of a tensor."""


def unfit(found: str) -> FaultError:
    """The error of a network that cannot be pruned, and why."""
    return FaultError(found, "make a smaller one by model_config and train it from the start")


class Side(NamedTuple):
    """One axis of one weight."""

    weight: str
    axis: int


@dataclass(frozen=True)
class Coupling:
    """The channels of a network, numbered so that those which go together have one number."""

    sides: Mapping[Side, Channels]
    """By axis of a weight; axes that are not listed, those of kernels, have no channels."""
    makers: frozenset[Side]
    """The axes along which a weight makes channels."""
    readers: frozenset[Side]
    """The axes along which a weight reads channels."""
    fixed: frozenset[int]
    """The channels of the image and of the logits."""


def coupling_of(network: nn.Module, in_channels: int, patch: Shape) -> Coupling:
    """The coupling of a network.

    Args:
        network: on the meta device; a `Model` says what its forward is.
        in_channels: channels of the image.
        patch: length along (z, y, x).

    Raises:
        FaultError: it does something that cannot be followed; says what.
    """
    tracer = _Tracer({id(weight): name for name, weight in network.named_parameters()})
    image = torch.empty(1, in_channels, *patch, device="meta")
    tracer.mark(image, tracer.new(in_channels))
    network.eval()
    with tracer:
        logits = network(image)
    fixed = [tracer.of(image), *(tracer.of(x) for maps in logits.values() for x in maps)]
    roots = {side: tracer.roots(channels) for side, channels in tracer.sides.items()}
    return Coupling(
        roots,
        frozenset(tracer.makers),
        frozenset(tracer.readers),
        frozenset(int(n) for channels in fixed for n in tracer.roots(channels)),
    )


_ELEMENTWISE = {
    "add", "add_", "__iadd__", "sub", "sub_", "mul", "mul_", "__imul__", "div", "addcmul",
}  # fmt: skip
"""Operations of several tensors, whose channels then go together."""
_SAME = {
    "float", "to", "contiguous", "clone", "dropout", "dropout3d", "rsqrt", "sqrt", "sigmoid",
    "relu", "relu_", "leaky_relu", "leaky_relu_", "elu", "gelu", "silu", "prelu", "avg_pool3d",
    "avg_pool2d", "max_pool3d", "max_pool2d", "interpolate", "pad", "mean", "var_mean",
}  # fmt: skip
"""Operations of which each result has the channels of what they are given, along axis 1."""


class _Tracer(TorchFunctionMode):
    """Follows the channels of all tensors, along their axis 1, through a pass."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__()
        self.names = names
        self.sides: dict[Side, Channels] = {}
        self.makers: set[Side] = set()
        self.readers: set[Side] = set()
        self._parents: list[int] = []
        self._marked: dict[int, tuple[Tensor, Channels]] = {}  # alive, so that no id comes twice

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        """Run an operation, and mark what it gives."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = [one for one in _listed(result) if isinstance(one, Tensor)]
        name = func.__name__
        if not made:
            return result
        rule = _RULES.get(name)
        if rule is None:
            raise unfit(f"it has an operation {name}, whose channels cannot be followed")
        channels = rule(self, made[0], *args, **kwargs)
        for one in made:
            self.mark(one, channels)
        return result

    def new(self, count: int) -> Channels:
        """Channels that go with no others yet."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return np.arange(start, start + count)

    def mark(self, x: Tensor, channels: Channels) -> None:
        """Say which channels a tensor has along axis 1."""
        if x.ndim < 2 or x.shape[1] != len(channels):
            raise unfit("it moves channels in a way that cannot be followed")
        self._marked[id(x)] = (x, channels)

    def of(self, x: Tensor) -> Channels:
        """The channels of a tensor along axis 1."""
        if id(x) not in self._marked:
            raise unfit("it makes features of something other than the image")
        return self._marked[id(x)][1]

    def has(self, x: object) -> bool:
        """Whether something is a tensor whose channels are known."""
        return isinstance(x, Tensor) and id(x) in self._marked

    def side(self, weight: Tensor, axis: int) -> tuple[Side, Channels]:
        """One axis of a weight, and its channels: the same ones each time."""
        if id(weight) not in self.names:
            raise unfit("it computes some of its weights")
        side = Side(self.names[id(weight)], axis)
        if side not in self.sides:
            self.sides[side] = self.new(weight.shape[axis])
        return side, self.sides[side]

    def is_weight(self, x: object) -> bool:
        """Whether something is a weight of the network."""
        return isinstance(x, Tensor) and id(x) in self.names

    def made_by(self, weight: Tensor, bias: Tensor | None, axis: int) -> Channels:
        """The channels that a weight makes along an axis."""
        side, channels = self.side(weight, axis)
        self.makers.add(side)
        if bias is not None:
            self.join(self.side(bias, 0)[1], channels)
        return channels

    def read_by(self, weight: Tensor, axis: int, channels: Channels) -> None:
        """Say which channels a weight reads along an axis."""
        side, own = self.side(weight, axis)
        self.readers.add(side)
        self.join(own, channels)

    def join(self, some: Channels, others: Channels) -> None:
        """Say that channels go together, each with the one of its place."""
        for a, b in zip(some, others, strict=True):
            a, b = self.root(int(a)), self.root(int(b))
            self._parents[max(a, b)] = min(a, b)

    def root(self, channel: int) -> int:
        """The number of a channel for all that go with it."""
        while self._parents[channel] != channel:
            channel = self._parents[channel]
        return channel

    def roots(self, channels: Channels) -> Channels:
        """The same of several."""
        return np.array([self.root(int(n)) for n in channels], np.int64)


def _listed(value: object) -> Sequence[object]:
    return value if isinstance(value, tuple | list) else [value]


def _same(tracer: _Tracer, made: Tensor, *args: object, **kwargs: object) -> Channels:
    """Elementwise, or along axes of space: what is not broadcast has the same channels, together."""
    found: Channels | None = None
    for x in (*args, *kwargs.values()):
        if tracer.has(x):
            channels = tracer.of(x)  # pyright: ignore[reportArgumentType]
        elif tracer.is_weight(x):  # of a norm, or of a rectifier
            channels = tracer.side(x, 0)[1]  # pyright: ignore[reportArgumentType]
        else:
            continue
        if len(channels) != made.shape[1]:  # one for all
            continue
        if found is None:
            found = channels
        tracer.join(found, channels)
    if found is None:
        raise unfit("it makes features of something other than the image")
    return found


def _convolution(
    tracer: _Tracer,
    made: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: object = 1,
    padding: object = 0,
    dilation: object = 1,
    groups: int = 1,
) -> Channels:
    if groups == 1:
        tracer.read_by(weight, 1, tracer.of(x))
        return tracer.made_by(weight, bias, 0)
    return _by_channel(tracer, made, x, weight, bias, groups)


def _transposed(
    tracer: _Tracer,
    made: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: object = 1,
    padding: object = 0,
    output_padding: object = 0,
    groups: int = 1,
    dilation: object = 1,
) -> Channels:
    if groups == 1:
        tracer.read_by(weight, 0, tracer.of(x))
        return tracer.made_by(weight, bias, 1)
    return _by_channel(tracer, made, x, weight, bias, groups)


def _by_channel(
    tracer: _Tracer, made: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, groups: int
) -> Channels:
    """A convolution of each channel by itself."""
    if not groups == x.shape[1] == made.shape[1]:
        raise unfit("its convolutions have groups of channels")
    channels = tracer.of(x)
    for one in (weight, bias):
        if one is not None:
            tracer.join(tracer.side(one, 0)[1], channels)
    return channels


def _linear(
    tracer: _Tracer, made: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Channels:
    if x.ndim != 2:
        raise unfit("it has products of matrices, whose channels cannot be followed")
    tracer.read_by(weight, 1, tracer.of(x))
    return tracer.made_by(weight, bias, 0)


def _normed(
    tracer: _Tracer,
    made: Tensor,
    x: Tensor,
    running_mean: object = None,
    running_var: object = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *options: object,
    **more: object,
) -> Channels:
    if running_mean is not None or running_var is not None:
        raise unfit("its norms keep statistics")
    return _same(tracer, made, x, weight, bias)


def _grouped_norm(
    tracer: _Tracer,
    made: Tensor,
    x: Tensor,
    groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Channels:
    if groups != x.shape[1]:
        raise unfit("its norms take statistics of several channels together")
    return _same(tracer, made, x, weight, bias)


def _joined(tracer: _Tracer, made: Tensor, parts: Sequence[Tensor], dim: int = 0) -> Channels:
    if dim != 1:
        raise unfit("it moves channels in a way that cannot be followed")
    return np.concatenate([tracer.of(part) for part in parts])


def _chosen(tracer: _Tracer, made: Tensor, x: Tensor, index: object) -> Channels:
    """New axes behind the channels, or a part of the axes of space."""
    items = list(_listed(index))
    if items[:1] == [Ellipsis]:
        items = [slice(None)] * (x.ndim - len(items) + 1) + items[1:]
    if len(items) < 2 or any(item != slice(None) for item in items[:2]):
        raise unfit("it takes channels apart")
    return tracer.of(x)


def _elementwise(tracer: _Tracer, made: Tensor, *args: object, **kwargs: object) -> Channels:
    """As `_same`; torch pairs a weight of one axis with the last axis of what it meets."""
    given = (*args, *kwargs.values())
    if made.ndim != 2 and any(tracer.is_weight(x) for x in given):
        raise unfit("it moves channels in a way that cannot be followed")
    return _same(tracer, made, *given)


_RULES: Mapping[str, Callable[..., Channels]] = {
    **dict.fromkeys(_SAME, _same),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "conv3d": _convolution,
    "conv2d": _convolution,
    "conv_transpose3d": _transposed,
    "conv_transpose2d": _transposed,
    "linear": _linear,
    "instance_norm": _normed,
    "group_norm": _grouped_norm,
    "cat": _joined,
    "__getitem__": _chosen,
}
