"""A labelled volume of a task, as everything after its opening sees it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from vcmodels.config.slices import SliceStack, network_channels
from vcmodels.config.task import (
    SplitName,
)
from vcmodels.data.labels import Label, StoredLabel
from vcmodels.data.scans import share_voxels
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.gridmap import GridMap
from vcmodels.prepare.section import Prepare
from vcmodels.targets import AnyTarget
from vcmodels.targets.stored import ForegroundRule
from vcmodels.volumes import Volume


@dataclass(frozen=True)
class TaskVolume:
    """One labelled volume: all its arrays have the same extent."""

    name: str
    """Unique among the volumes of the task."""
    key: str
    """The dotted key of its entry."""
    inputs: tuple[Volume, ...]
    """Stacked as channels, in this order."""
    labels: Mapping[str, Volume]
    """By name, of targets and of what they are derived from; a target whose label is missing here
    gets no loss from this volume."""
    ref: Volume | None
    """The label that decides which patches are used; None: all of them."""
    ref_target: str | None
    """Whose `ignore_label` is about that label: its own target, or one that is derived from it."""
    region: Box
    """The part that is used."""
    split: SplitName | None
    """Of its own; volumes of `test` are in no training, see `trained_on`."""
    weight: float
    spacing: tuple[float, float, float]
    """In the unit of the first volume that trains, if both have one; 1 where it is not known."""
    unit: str | None
    pseudo: Mapping[str, float] = field(default_factory=dict)
    """Targets whose label here is a pseudo-label, and how much it counts in the loss."""
    pseudo_in_val: bool = field(default=False, kw_only=True)
    """Whether it counts as much in a validation; else not at all."""
    group: str | None = None
    """Volumes of one group are all of one split."""
    ref_ignored: tuple[int, ...] = ()
    """Stored values of `ref` that count as unlabelled, besides 0."""
    ref_foreground: ForegroundRule | None = None
    """Which other values of `ref` are labelled; all when None."""
    scan: int = -1
    """Equal for volumes that show the same voxels where they meet, see `scans`."""
    has_spacing: bool = True
    """Whether the voxel size is known."""
    own: frozenset[str] | None = None
    """Names of the labels that are not only pseudo-labels; all when None."""
    stack: SliceStack | None = None
    """Which slices are channels of the network."""
    coordinates: bool = False
    """Whether the positions of voxels are channels of the network, too."""
    cohort: str | None = None
    """Where it is from; a cohort may be on both sides of a split."""
    preparation: "Preparation | None" = None
    """What was done to the arrays before anything else; None: they are as they are stored."""

    @property
    def as_stored(self) -> "TaskVolume":
        """The volume before it was prepared."""
        return self.preparation.stored if self.preparation else self

    def box_as_stored(self, box: Box) -> Box:
        """A box of this volume in voxels as they are stored; all of it stands for all that is used."""
        if self.preparation is None:
            return box
        if box == self.region:
            return self.preparation.stored.region
        return self.preparation.grid.inverse().holding(box)

    def label(self, name: str, target: AnyTarget, region: Box) -> Label | None:
        """The label of a target, as far as a region goes; None if this volume lacks it."""
        array = self.labels.get(target.derive or name)
        if array is None:
            return None
        return Label(target, StoredLabel(self.name, array, region), self.spacing)

    @property
    def own_labels(self) -> list[Volume]:
        """The labels that a target is validated against."""
        return [
            label for name, label in self.labels.items() if self.own is None or name in self.own
        ]

    @property
    def grid(self) -> GridMap:
        """From the grid of its arrays to that on which they are stored."""
        if self.preparation is None:
            return GridMap.identity(self.inputs[0].extent)
        return self.preparation.grid

    def is_twin(self, other: "TaskVolume") -> bool:
        """Whether it shows the very voxels of another."""
        same = self.scan == other.scan >= 0 and self.grid == other.grid
        return same and self.region == other.region

    def meets(self, region: Box, other: "TaskVolume", other_region: Box) -> bool:
        """Whether a region of this volume shares voxels with one of another."""
        if not self.scan == other.scan >= 0:
            return False
        one, two = self, other
        if self.grid != other.grid:  # such as two crops of one scan: only what is stored compares
            region = self.grid.inverse().holding(region)
            other_region = other.grid.inverse().holding(other_region)
            one, two = self.as_stored, other.as_stored
        return share_voxels(region, one.inputs[0].extent, other_region, two.inputs[0].extent)

    @property
    def scored_with(self) -> str | None:
        """What its scores have a mean with: its cohort, or else its group."""
        return self.cohort or self.group

    @property
    def stored_channels(self) -> int:
        """Of all inputs together."""
        return sum(volume.channels for volume in self.inputs)

    @property
    def channels(self) -> int:
        """Those of the network: each stored one, or its slices, and perhaps coordinates."""
        stored, has_coordinates = self.stored_channels, self.coordinates
        return network_channels(stored, self.stack, has_coordinates=has_coordinates)


@dataclass(frozen=True)
class Preparation:
    """What was done to the arrays of a volume."""

    stored: TaskVolume
    """The volume before."""
    grid: GridMap
    """To its grid."""
    prepare: Prepare
    """Settled."""
