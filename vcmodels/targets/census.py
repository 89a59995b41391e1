"""What a stored label holds, in figures, and what is wrong with it: before a voxel of it is learnt.

The label index counts values; of the voxels that it cannot count one by one (fractions, vectors, more
values than classes have) it keeps `Figures`, which add up and have a bounded size.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from vcmodels.geometry.boxes import triple
from vcmodels.reporting import list_some
from vcmodels.targets.stored import any_channel, known

ValueCounts = tuple[int, int, int]

FEW = 20
"""Values that a label of masks or classes has at most; with more it may be a probability or ids."""
MOST_CONSTANTS = 8
MOST_SAMPLED = 64
SAMPLED_CHANNELS = 3
_LOOKED_AT = 2**14
_LONGEST_LINE = 1024
_LEAST_SHARE = 0.02
"""Of what is looked at in a piece, which a value fills at least to be taken for a constant."""
SENTINELS = frozenset({-1, -99, -100, -128, -999, -1000, -9999, -32768, 127, 255, 32767, 65535})
"""What other programs write where nothing is known, besides the limits of the dtype."""


@dataclass(frozen=True)
class ValueFigures:
    """Of voxels that are not zero in all channels: numbers that add up over pieces of a label."""

    voxels: int = 0
    """That are not ignored."""
    ignored: int = 0
    unknown: int = 0
    """NaN or infinite."""
    fractions: int = 0
    """With a value that is no whole number."""
    low: float = np.inf
    """The least value of those that are not ignored."""
    high: float = -np.inf
    pairs: ValueCounts = (0, 0, 0)
    """Along z, y, x, neighbours with values far from both ends of a dtype of 8 or 16 bits."""
    equal: ValueCounts = (0, 0, 0)
    """Of these, those with one value: ids have many along each axis, probabilities few along one."""
    constants: Mapping[float, int] | None = None
    """Voxels of the values, the same in all channels, that are held most often."""
    sample: np.ndarray | None = None
    """(n, 3) float64: stored values of some voxels, NaN for channels that there are not."""

    @classmethod
    def of(cls, stored: np.ndarray, ignored: Sequence[int], *, is_counted: bool = False) -> Self:
        """Of a piece (S, Z, Y, X); `is_counted` when its values are counted one by one, too.

        How many voxels there are is exact, and what range they span; the rest is looked at in lines
        of voxels that are spread over the piece, as long as a pass over it takes.
        """
        looked = _looked_at(stored)
        scale = stored[0].size / looked[0].size
        valid = any_channel(looked != 0) & known(looked, ignored)
        values = looked[:, valid[0]]
        ends = float(stored.min()), float(stored.max())
        nonzero, skipped, unknown = _numbers(stored, ignored, bool(np.isfinite(ends).all()))
        if unknown or set(ends) & set(
            ignored
        ):  # of those that are outside of the range of the rest
            ends = (float(values.min()), float(values.max())) if values.size else (np.inf, -np.inf)
        codes = {float(v): n for v, n in zip(ignored, skipped, strict=True) if v}
        return cls(
            0 if is_counted else nonzero - unknown - sum(codes.values()),
            0 if is_counted else sum(codes.values()),
            unknown,
            round(scale * _fractions(values)),
            *ends,
            *_pairs(looked, valid),
            _most({**_constants(values, scale), **codes}, ignored),
            _sample(values),
        )

    @classmethod
    def counted(cls, counts: Mapping[int, int], ignored: Sequence[int]) -> Self:
        """Of voxels that were counted by value."""
        valid = {value: count for value, count in counts.items() if value not in ignored}
        total = sum(counts.values())
        return cls(
            voxels=sum(valid.values()),
            ignored=total - sum(valid.values()),
            low=min(valid, default=np.inf),
            high=max(valid, default=-np.inf),
            constants=_most(counts, ignored),
        )

    def __add__(self, other: "ValueFigures") -> "ValueFigures":
        """Of both."""
        both = dict(self.constants or {})
        for value, count in (other.constants or {}).items():
            both[value] = both.get(value, 0) + count
        samples = [part for part in (self.sample, other.sample) if part is not None]
        return ValueFigures(
            self.voxels + other.voxels,
            self.ignored + other.ignored,
            self.unknown + other.unknown,
            self.fractions + other.fractions,
            min(self.low, other.low),
            max(self.high, other.high),
            _sum(self.pairs, other.pairs),
            _sum(self.equal, other.equal),
            _most(both, ()),
            _thinned(np.concatenate(samples)) if samples else None,
        )

    def to_array(self) -> np.ndarray:
        """As (WIDTH,) float64, to be stored."""
        found = np.full(WIDTH, np.nan)
        numbers = (1, self.voxels, self.ignored, self.unknown, self.fractions)
        found[:_CONSTANTS_AT] = (*numbers, self.low, self.high, *self.pairs, *self.equal)
        constants = np.array(list((self.constants or {}).items()), np.float64).reshape(-1)
        found[_CONSTANTS_AT:][: len(constants)] = constants
        sample = np.zeros(0) if self.sample is None else self.sample.reshape(-1)
        found[_SAMPLE_AT:][: len(sample)] = sample
        return found

    @classmethod
    def from_array(cls, stored: np.ndarray) -> Self | None:
        """What `to_array` gave; None of anything else."""
        if stored.shape != (WIDTH,) or stored[0] != 1 or not np.isfinite(stored[1:5]).all():
            return None
        voxels, ignored, unknown, fractions = map(int, stored[1:5])
        counted = stored[_CONSTANTS_AT:_SAMPLE_AT].reshape(-1, 2)
        constants = {float(v): int(n) for v, n in counted if np.isfinite(v) and np.isfinite(n)}
        sample = stored[_SAMPLE_AT:].reshape(-1, SAMPLED_CHANNELS)
        sample = sample[~np.isnan(sample).all(axis=1)]
        low, high = stored[5:7].tolist()
        pairs, equal = (triple(map(int, stored[at : at + 3])) for at in (7, 10))
        counts = voxels, ignored, unknown, fractions
        return cls(*counts, low, high, pairs, equal, constants, sample)


_CONSTANTS_AT = 13
_SAMPLE_AT = _CONSTANTS_AT + 2 * MOST_CONSTANTS
WIDTH = _SAMPLE_AT + MOST_SAMPLED * SAMPLED_CHANNELS
"""How many numbers stored figures are."""


def _fractions(values: np.ndarray) -> int:
    """Of (S, n) finite values, how many voxels have one that is no whole number."""
    if values.dtype.kind != "f":
        return 0
    return int(np.count_nonzero((np.trunc(values) != values).any(axis=0)))


def _numbers(
    stored: np.ndarray, ignored: Sequence[int], is_finite: bool
) -> tuple[int, list[int], int]:
    """Voxels that are not zero, those of each ignored value, and those that are not finite."""
    count = np.count_nonzero
    nonzero = int(count(any_channel(stored != 0)))
    skipped = [int(count((stored == value).all(axis=0))) for value in ignored]
    return nonzero, skipped, 0 if is_finite else int(stored[0].size - count(known(stored, ())))


def _looked_at(stored: np.ndarray) -> np.ndarray:
    """A piece, or lines along x in pairs of planes and rows that are spread over a large one."""
    if stored[0].size <= _LOOKED_AT:
        return stored
    line = stored[..., :_LONGEST_LINE]
    pairs = max(1, int((_LOOKED_AT / line.shape[3] / 4) ** 0.5))
    planes, rows = (_paired(n, pairs) for n in line.shape[1:3])
    return line[:, planes][:, :, rows]


def _paired(length: int, pairs: int) -> np.ndarray:
    """Numbers below a length, in pairs of neighbours; all of them if they are few."""
    if length <= 2 * pairs:
        return np.arange(length)
    first = np.linspace(0, length - 2, pairs).astype(np.int64)
    return np.unique(np.stack([first, first + 1], axis=1), axis=0).ravel()


def _pairs(stored: np.ndarray, valid: np.ndarray) -> tuple[ValueCounts, ValueCounts]:
    """Along z, y, x, neighbours that are both far from the ends of the dtype; those that are equal."""
    most = _full_scale(stored)
    if most is None:
        return (0, 0, 0), (0, 0, 0)
    between = (stored > most // 16) & (stored < most - most // 16) & valid
    pairs, equal = [0, 0, 0], [0, 0, 0]
    for axis in range(3):
        ends = (np.s_[: stored.shape[axis + 1] // 2 * 2 : 2], np.s_[1::2])
        one, other = ((slice(None),) * (axis + 1) + (end,) for end in ends)
        both = between[one] & between[other]
        pairs[axis] = int(np.count_nonzero(both))
        equal[axis] = int(np.count_nonzero(both & (stored[one] == stored[other])))
    return triple(pairs), triple(equal)


def _full_scale(stored: np.ndarray) -> int | None:
    """What stands for a probability of 1; None of fractions, and of numbers beyond 16 bits."""
    if stored.dtype.kind in "iu" and stored.dtype.itemsize <= 2:
        return int(np.iinfo(stored.dtype).max)
    high = stored.max(initial=0, where=np.isfinite(stored))
    return 255 if 1 < high <= 255 else 65535 if 255 < high <= 65535 else None


def _sum(one: ValueCounts, other: ValueCounts) -> ValueCounts:
    return triple(a + b for a, b in zip(one, other, strict=True))


def _constants(values: np.ndarray, scale: float) -> dict[float, int]:
    """Voxels by value, of those that fill a part of (S, n) valid values, times a scale."""
    alike = values[0, (values == values[:1]).all(axis=0)]
    found, counts = np.unique(alike, return_counts=True)
    often = counts >= max(2, _LEAST_SHARE * values.shape[1])
    pairs = zip(found[often].tolist(), counts[often].tolist(), strict=True)
    return {float(value): round(scale * count) for value, count in pairs}


def _most(
    counts: Mapping[int, int] | Mapping[float, int], kept: Iterable[float]
) -> dict[float, int]:
    """The largest counts, those of some values in any case; ascending by value."""
    always = set(map(float, kept))
    rows = [(float(value), count) for value, count in counts.items() if count]
    rows.sort(key=lambda row: (row[0] not in always, -row[1], row[0]))
    return dict(sorted(rows[:MOST_CONSTANTS]))


def _sample(values: np.ndarray) -> np.ndarray:
    """Some of the voxels (S, n): (m, 3) float64."""
    few = _thinned(values[:SAMPLED_CHANNELS].T)
    found = np.full((len(few), SAMPLED_CHANNELS), np.nan)
    found[:, : few.shape[1]] = few
    return found


def _thinned(rows: np.ndarray) -> np.ndarray:
    """At most `MOST_SAMPLED` rows, spread evenly."""
    if len(rows) <= MOST_SAMPLED:
        return rows
    return rows[np.linspace(0, len(rows) - 1, MOST_SAMPLED).astype(np.int64)]


@dataclass(frozen=True)
class Census:
    """What a label holds in the region that is used."""

    dtype: np.dtype
    channels: int
    counts: Mapping[int, int]
    """Voxels by value, 0 and ignored ones too; those that are counted one by one."""
    together: int
    """Labelled voxels that are not."""
    figures: ValueFigures
    """Of these; and of some others, but for the numbers of voxels."""
    is_whole: bool
    """Whether all that is stored was looked at."""
    knows_foreground: bool = False
    """Whether `together` are the voxels where the target's `foreground` holds."""

    @property
    def voxels(self) -> int:
        """How many were looked at."""
        return sum(self.counts.values()) + self.figures.voxels + self.figures.ignored

    def positive(self, ignored: Sequence[int]) -> list[int]:
        """The values above 0 that are counted and not ignored, ascending."""
        return sorted(v for v, n in self.counts.items() if v > 0 and n and v not in ignored)

    def constants(self, ignored: Sequence[int]) -> dict[float, int]:
        """Voxels by value, of the values but 0 that fill some of the label and are not ignored."""
        found = {float(v): n for v, n in self.counts.items()}
        for value, count in (self.figures.constants or {}).items():
            found[value] = max(found.get(value, 0), count)
        least = max(2.0, SENTINEL_SHARE * self.voxels)
        return {v: n for v, n in found.items() if v and v not in ignored and n >= least}

    def sentinels(self, ignored: Sequence[int]) -> dict[float, int]:
        """Of the `constants`, those that other programs write where nothing is known."""
        codes = set(SENTINELS)
        if self.dtype.kind in "iu":
            limits = np.iinfo(self.dtype)
            codes |= {int(limits.min), int(limits.max)}
        return {v: n for v, n in self.constants(ignored).items() if v in codes}

    def range(self, ignored: Sequence[int]) -> tuple[float, float]:
        """The least and the largest value that is not ignored, 0 too where it occurs."""
        counted = [v for v, n in self.counts.items() if n and v not in ignored]
        low, high = min(counted, default=np.inf), max(counted, default=-np.inf)
        return min(low, self.figures.low), max(high, self.figures.high)

    def share(self, count: int) -> str:
        """Voxels in words, with their share of all."""
        part = count / max(self.voxels, 1)
        voxels = f"{count:,} voxel{'s' if count != 1 else ''}"
        return f"{voxels} ({part:.0%})" if part >= 0.005 else voxels


SENTINEL_SHARE = 0.001
"""Of a region, which a constant fills at least to be spoken of."""


@dataclass(frozen=True)
class Misfit:
    """What a label holds that cannot be, or is hardly meant."""

    found: str
    remedy: str
    is_fatal: bool = True
    """Whether training would fail, or learn what nobody wants."""
    value: float | None = None
    """The one that it is about; a place of it is named, and where there is none it is forgotten."""


def unstorable(values: Iterable[int], dtype: np.dtype) -> dict[int, int]:
    """Of some values those that an integer dtype cannot hold, each with what it becomes there."""
    if dtype.kind == "b":
        return {value: 1 for value in values if value not in (0, 1)}
    if dtype.kind not in "iu":
        return {}
    limits = np.iinfo(dtype)
    span = int(limits.max) - int(limits.min) + 1
    return {
        value: (value - int(limits.min)) % span + int(limits.min)
        for value in values
        if not limits.min <= value <= limits.max
    }


def isolated(census: Census, ignored: Sequence[int]) -> dict[float, int]:
    """Of the sentinels those that lie apart from other values, as no saturated image does."""
    sample = np.zeros(0) if census.figures.sample is None else census.figures.sample.ravel()
    found: dict[float, int] = {}
    for value, count in census.sentinels(ignored).items():
        others = sample[~np.isnan(sample) & (sample != value)]
        if len(others) and count >= ISOLATED_SHARE * census.voxels:
            gap, span = np.abs(others - value).min(), np.ptp(others)
            if gap > span / 4 or (value < 0 <= others.min()):
                found[value] = count
    return found


ISOLATED_SHARE = 0.01
_FEWEST_PAIRS = 8


def mask_misfits(
    census: Census, ignored: Sequence[int], foreground: str | None
) -> Iterator[Misfit]:
    """What cannot be read as a mask, or as ids, where nothing says which values are foreground."""
    low, high = census.range(ignored)
    if foreground is not None or not np.isfinite(high):
        return
    above = "every value above 0 would be foreground"
    if census.figures.fractions:
        middle = "> 0" if low < 0 else _half(high)
        found = f"holds fractions, from {low:.4g} to {high:.4g}; {above}"
        learnt = 'or learn them by kind "regression" with "activation": "sigmoid"'
        yield Misfit(found, f'give "foreground": "{middle}", {learnt}')
    elif low < 0:
        found = f"holds {low:g}; a mask or ids are 0 or more"
        remedy = f'give "ignore_label": {low:g} to skip it, or "foreground": "> 0"'
        yield Misfit(found, remedy, value=low)
    elif _is_gradual(census, ignored):
        found = f"holds values from {low:g} to {high:g} as a probability does; {above}"
        remedy = f'give "foreground": "{_half(high)}", or "> 0" if it holds ids'
        yield Misfit(found, remedy)


def mask_suspects(
    census: Census, ignored: Sequence[int], foreground: str | None
) -> dict[float, int]:
    """Sentinels next to other values of a mask; of one of 0 and 255 none is left out."""
    values = census.positive(ignored)
    if foreground is not None or census.together or not 2 <= len(values) <= FEW:
        return {}
    return {v: n for v, n in census.sentinels(ignored).items() if v > 1}


def several_values(census: Census, ignored: Sequence[int]) -> Iterator[Misfit]:
    """A word on a mask of a few different values, of which each is foreground."""
    values = census.positive(ignored)
    if 2 <= len(values) <= FEW and not census.together:
        shown = list_some(values, 5)
        remedy = f'give "foreground": "== {values[0]}" or "> 0", or "ignore_label"'
        yield Misfit(f"holds {shown}, all of them foreground", remedy, is_fatal=False)


def _is_gradual(census: Census, ignored: Sequence[int]) -> bool:
    """Whether values rise and fall from voxel to voxel, as those of a picture do and ids do not."""
    figures, size = census.figures, census.dtype.itemsize
    is_many = census.together > 0 or len(census.positive(ignored)) > FEW
    if not is_many:
        return False
    if max(figures.pairs) < _FEWEST_PAIRS:  # ids in 8 bits would have many
        return size == 1 and census.channels == 1
    pairs = zip(figures.pairs, figures.equal, strict=True)
    return any(n >= _FEWEST_PAIRS and same < n / 2 for n, same in pairs)


def _half(high: float) -> str:
    """The comparison with half of what probabilities up to this value are stored as."""
    if high <= 1:
        return ">= 0.5" if high > 0.5 else f">= {high / 2:.3g}"
    return f">= {(int(high) + 1) // 2}"
