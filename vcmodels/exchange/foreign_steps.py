"""Steps before a network, as packages of others name them, made into our normalisation.

Each step is a function of the values of a channel. Lines with ends (`data.rules.Line`) join to one; a
step that measures the image comes before them; what is no line, such as a sigmoid, comes last and is
left to the network. Anything in another order is refused by its name: it is never nearly done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from vcmodels.data.normalization import Normalization
from vcmodels.data.rules import LARGEST, Line, Rule
from vcmodels.errors import CheckpointError

Elementwise = Callable[[Tensor], Tensor]
"""(B, C, Z, Y, X) float32 -> the same shape."""


@dataclass(frozen=True)
class Steps:
    """The steps so far; each method returns them with one more.

    `path` is of the package, for messages; `lines` are of the channels.
    """

    path: str
    lines: tuple[Line, ...]
    rule: Rule | None = None
    per_channel: bool = True
    percentiles: tuple[float, float] = (0.0, 100.0)
    last: tuple[Elementwise, ...] = ()
    is_cut: bool = False
    """Whether it ends with a cut at percentiles, which a measure must follow."""

    @classmethod
    def of(cls, path: str, channels: int) -> "Steps":
        """No step, for so many channels."""
        return cls(path, (Line(),) * channels)

    def scaled(self, name: str, gains: Sequence[float], offsets: Sequence[float]) -> "Steps":
        """Multiply and add, one number for each channel or one for all.

        Raises:
            CheckpointError: a gain is not positive, or there are numbers for other channels.
        """
        self._require_lines(name)
        gains, offsets = (self._of_channels(name, one) for one in (gains, offsets))
        if any(gain <= 0 for gain in gains):
            raise self.refused(name, f"with gain {min(gains):g}")
        pairs = zip(self.lines, gains, offsets, strict=True)
        return replace(self, lines=tuple(line.scaled(g, o) for line, g, o in pairs))

    def clipped(self, name: str, low: float | None, high: float | None) -> "Steps":
        """Cut values at ends.

        Raises:
            CheckpointError: another kind of step was there before.
        """
        self._require_lines(name)
        ends = (-LARGEST if low is None else low, LARGEST if high is None else high)
        return replace(self, lines=tuple(line.clipped(*ends) for line in self.lines))

    def measured(
        self,
        name: str,
        rule: Rule,
        *,
        per_channel: bool,
        percentiles: tuple[float, float] = (0.0, 100.0),
    ) -> "Steps":
        """Measure the image.

        Raises:
            CheckpointError: after another step.
        """
        is_joint = not per_channel and len(self.lines) > 1
        if self.is_cut and percentiles == (0.0, 100.0) and is_joint != self.per_channel:
            return replace(self, rule=replace(rule, clips=True), is_cut=False)
        if self.rule or self.last or any(line != Line() for line in self.lines):
            raise self.refused(name, "after another step")
        return replace(self, rule=rule, per_channel=not is_joint, percentiles=percentiles)

    def cut(self, name: str, low: float, high: float, *, per_channel: bool) -> "Steps":
        """Cut values at percentiles of the image.

        Raises:
            CheckpointError: after another step.
        """
        rule = Rule("range", clips=True)
        found = self.measured(name, rule, per_channel=per_channel, percentiles=(low, high))
        return replace(found, is_cut=True)

    def elementwise(self, step: Elementwise) -> "Steps":
        """Anything else that looks at one voxel."""
        if self.is_cut:
            raise self.refused("clip", "by percentiles without a measure")
        return replace(self, last=(*self.last, step))

    def normalization(self) -> Normalization:
        """Our record that does the same as all steps but the `last`.

        Raises:
            CheckpointError: channels of one image go different ways after it was measured.
        """
        if self.is_cut:
            raise self.refused("clip", "by percentiles without a measure")
        if self.rule is None:
            if all(line == Line() for line in self.lines):
                return Normalization("none")
            scheme = "ct" if any(line.has_ends for line in self.lines) else "zscore"
            return Normalization(scheme, channels=tuple(one.statistics() for one in self.lines))
        after = self.lines[0]
        if any(line != after for line in self.lines):
            raise self.refused("preprocessing", "that differs by channel after a measure")
        if self.rule.counted == "nonzero" and after != Line():
            raise self.refused("preprocessing", "after NormalizeIntensity with nonzero")
        rule = replace(self.rule, after=after)
        return Normalization("ct", "volume", self.per_channel, self.percentiles, rule=rule)

    def refused(self, name: str, how: str = "") -> CheckpointError:
        """The error of a step that has no exact counterpart."""
        found = (
            f"has the step {name}{f' {how}' if how else ''}, which has no exact counterpart here"
        )
        return CheckpointError(self.path, found, "run it with its own program")

    def _require_lines(self, name: str) -> None:
        if self.last or self.is_cut:
            raise self.refused(name, "after a step that is no line")

    def _of_channels(self, name: str, numbers: Sequence[float]) -> list[float]:
        if len(numbers) not in (1, len(self.lines)):
            raise self.refused(name, f"with {len(numbers)} numbers for {len(self.lines)} channels")
        return [float(one) for one in numbers] * (len(self.lines) if len(numbers) == 1 else 1)
