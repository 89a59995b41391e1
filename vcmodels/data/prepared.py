"""The arrays of one labelled volume on its prepared grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vcmodels.errors import TaskError
from vcmodels.geometry.gridmap import GridMap
from vcmodels.prepare.contents import content_of
from vcmodels.prepare.derived import DerivedVolume, kept, report_making
from vcmodels.prepare.plan import KEY, notes_of, plan_of
from vcmodels.prepare.section import Prepare
from vcmodels.reporting import Reporter
from vcmodels.targets.base import Target
from vcmodels.volumes import Volume


@dataclass(frozen=True)
class PreparedArrays:
    """What becomes of the arrays of a volume."""

    grid: GridMap
    """To the grid on which they are stored."""
    inputs: tuple[Volume, ...]
    labels: Mapping[str, Volume]


def prepared_arrays(
    prepare: Prepare,
    inputs: Sequence[Volume],
    labels: Mapping[str, Volume],
    readers: Mapping[str, Target],
    unit: str | None,
    reporter: Reporter,
) -> PreparedArrays:
    """The arrays in the cache, which are made where they are not there.

    Args:
        prepare: settled.
        inputs: stacked as channels.
        labels: by name, of the same extent.
        readers: what reads each label.
        unit: that the voxel size of `prepare` is in.
        reporter: told what is made.

    Raises:
        VolumeError, TaskError: as `plan_of`; a label cannot be brought to another grid.
        OutputError: the cache cannot be written.
    """
    plan = plan_of(prepare, inputs, unit)
    for name, reader in readers.items():
        _require_movable(name, reader, plan.grid)
    images = plan.images(inputs)
    moved = {
        name: DerivedVolume.of(
            label, plan.grid, content_of(label, readers[name], prepare.order.labels)
        )
        for name, label in labels.items()
    }
    report_making([*images, *moved.values()], reporter)
    notes = notes_of(prepare)
    return PreparedArrays(
        plan.grid,
        tuple(kept(image, notes, reporter) for image in images),
        {name: kept(label, notes, reporter) for name, label in moved.items()},
    )


def _require_movable(name: str, reader: Target, grid: GridMap) -> None:
    if reader.turns_freely or (grid.is_exact and grid.symmetry.is_identity):
        return
    found = f"labels of kind {reader.kind_name} are of pairs of voxels, which another grid has not"
    remedy = f"derive them from ids, or leave orientation and spacing out of {KEY}"
    raise TaskError(f"dataset_config.targets.{name}", found, remedy)
