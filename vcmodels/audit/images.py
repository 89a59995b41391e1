"""Images that cannot be read, hold no numbers, one value, few values, or are cut off at the top."""

from collections.abc import Iterator

import numpy as np

from vcmodels.audit.base import AuditScene, Check, Finding
from vcmodels.audit.looks import ChannelLook

FEW_LEVELS = 16
"""Of a scan there are usually more than 100; fewer come of a wrong conversion, or of a mask."""
SATURATED = 0.02
"""Of the voxels, at the largest value: a usual window cuts 0.1 to 0.5 % off."""


def _find(scene: AuditScene) -> Iterator[Finding]:
    for look in scene.looks:
        subject = f"{look.key}.input"
        for line in look.damage[:1]:
            more = f" (and {len(look.damage) - 1} more)" if len(look.damage) > 1 else ""
            found = f"{look.name} cannot be read: {line}{more}"
            yield Finding("error", subject, found, "restore the file from its source")
        for channel in look.channels:
            yield from _of_channel(subject, look.name, channel)


def _of_channel(subject: str, volume: str, channel: ChannelLook) -> Iterator[Finding]:
    about = f"{volume}, {channel.name}"
    strange = channel.nan + channel.infinite
    if channel.infinite or (channel.nan and not channel.is_nan_void):
        what = "NaN" if not channel.infinite else "infinite" if not channel.nan else "not finite"
        found = f"{about}: {strange / channel.looked_at:.2%} of the voxels looked at are {what}"
        remedy = "NaN is read as no value; write numbers there, or leave such parts out by bbox"
        figures = {"nan": channel.nan, "infinite": channel.infinite, "of": channel.looked_at}
        yield Finding("error" if channel.infinite else "warning", subject, found, remedy, figures)
    values = channel.values
    if values is None:
        if channel.looked_at:
            remedy = "check the path and the level; else leave the volume out"
            yield Finding("error", subject, f"{about}: there is no finite value", remedy)
        return
    if values.minimum == values.maximum:
        found = f"{about}: all {values.values} voxels looked at are {values.minimum:.6g}"
        remedy = "check the path, the level and the bbox; nothing can be learnt from it"
        yield Finding("error", subject, found, remedy, {"value": values.minimum})
    elif channel.levels < FEW_LEVELS:
        low, high = values.reach
        found = (
            f"{about}: there are only {channel.levels} different values, {low:.6g} to {high:.6g}"
        )
        remedy = "check that it is the scan and no mask, and convert it again with its full range"
        yield Finding("warning", subject, found, remedy, {"levels": channel.levels})
    elif channel.at_top >= SATURATED:
        share = f"{channel.at_top:.1%} of the voxels are {values.maximum:.6g}, the largest value"
        remedy = "what lies above was cut off: convert it again with a wider window"
        figures = {"share": round(channel.at_top, 5), "value": values.maximum}
        is_end = (
            np.dtype(values.dtype).kind in "iu" and values.maximum == np.iinfo(values.dtype).max
        )
        yield Finding(
            "warning" if is_end else "note", subject, f"{about}: {share}", remedy, figures
        )


CHECK = Check("images", "Images", _find)
