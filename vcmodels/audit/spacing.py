"""Voxel sizes that are unknown, or so different that objects have other sizes for the network."""

from collections.abc import Iterator

from vcmodels.audit.base import AuditScene, Check, Finding, listed
from vcmodels.data.volumes import spacing_text

FACTOR = 1.5
"""Between the voxel sizes of two volumes: random scaling of usual augmentation covers less."""


def _find(scene: AuditScene) -> Iterator[Finding]:
    volumes = scene.volumes
    unknown = [volume for volume in volumes if not volume.has_spacing]
    known = [volume for volume in volumes if volume.has_spacing]
    if unknown:
        which = "all volumes" if not known else listed(volume.name for volume in unknown)
        found = f"the voxel size of {which} is unknown; one voxel counts as a length of 1"
        severity = "warning" if known else "note"
        remedy = f'give "spacing" to the volume, as {unknown[0].key}.spacing'
        yield Finding(severity, unknown[0].key, found, remedy, {"volumes": len(unknown)})
    for volume in known[1:]:
        first = known[0]
        pairs = zip(volume.spacing, first.spacing, strict=True)
        factors = [max(a / b, b / a) for a, b in pairs]
        if volume.unit == first.unit and max(factors) >= FACTOR:
            found = (
                f"a voxel of {volume.name} is {spacing_text(volume)}, one of {first.name} "
                f"{spacing_text(first)}: objects differ by {max(factors):.3g} times in voxels"
            )
            remedy = "resample it, read a level of nearer size, or widen the scaling of augment"
            yield Finding("warning", f"{volume.key}.spacing", found, remedy, {"factors": factors})
            return


CHECK = Check("spacing", "Voxel sizes", _find)
