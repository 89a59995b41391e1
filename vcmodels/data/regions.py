"""The region of a volume, as it is found and as it is kept."""

from collections.abc import Mapping
from pathlib import Path

from vcmodels.regions.base import Region
from vcmodels.regions.find import SearchedVolume, Segment, find_region
from vcmodels.regions.section import RegionConfig
from vcmodels.reporting import Reporter
from vcmodels.volumes import Volume, expand_location
from vcmodels.volumes.places import cache_folder


def regions_folder() -> Path:
    """Where what was found is kept, for all tasks and runs."""
    return Path(expand_location(cache_folder())) / "regions"


def region_of(
    config: RegionConfig,
    name: str,
    inputs: tuple[Volume, ...],
    labels: Mapping[str, Volume],
    reporter: Reporter,
    segment: Segment | None = None,
) -> Region:
    """The region of a volume.

    Args:
        config: how it is found.
        name: of the volume, for messages and for `{name}` in locations.
        inputs: as they are stored.
        labels: likewise, by name.
        reporter: told when a source fails.
        segment: runs networks; None where that may not be, and only what was found before is known.

    Raises:
        RefusedError: as for `find_region`.
    """
    scan = SearchedVolume(name, inputs[0].key, inputs, labels)
    return find_region(config, scan, known=regions_folder(), reporter=reporter, segment=segment)
