"""Volumes whose values are of another scale than those of most others."""

from collections.abc import Iterator, Sequence

from vcmodels.audit.base import AuditScene, Check, Finding, listed
from vcmodels.data.choice import AIR, Choice
from vcmodels.data.intensities import ChannelValues

Named = Sequence[tuple[str, ChannelValues]]


def _find(scene: AuditScene) -> Iterator[Finding]:
    channels = max((len(look.channels) for look in scene.looks), default=0)
    per = _per(scene)
    for number in range(channels):
        named = [
            (look.name, values)
            for look in scene.looks
            if (values := look.channels[number].values) and values.minimum < values.maximum
        ]
        yield from _raw_among_calibrated(named)
        yield from _other_scales(named, number, per)


def _per(scene: AuditScene) -> str:
    """Whose statistics normalise: what the task says, or its `auto` would choose of this sample."""
    wanted = scene.task.dataset_config.normalization
    if wanted.scheme == "none" or wanted.per != "auto":
        return "none" if wanted.scheme == "none" else wanted.per
    moments = {
        look.name: [(c.values.mean, c.values.sd) for c in look.channels if c.values]
        for look in scene.looks
    }
    whole = {
        name: found for name, found in moments.items() if len(found) == scene.volumes[0].channels
    }
    return Choice.of(whole, None).per


def _raw_among_calibrated(named: Named) -> Iterator[Finding]:
    """Raw values of a CT where the other volumes are in Hounsfield units."""
    calibrated = [name for name, v in named if AIR[0] <= v.minimum <= AIR[1] and v.maximum > 0]
    raw = [(name, v) for name, v in named if v.minimum >= 0 and v.maximum > -AIR[1]]
    if raw and len(calibrated) > len(raw):
        values = raw[0][1]
        found = (
            f"{listed(name for name, _ in raw)}: no value is below 0 (up to {values.maximum:.6g}), "
            f"and {len(calibrated)} other volumes begin at air, about -1000"
        )
        remedy = "apply the rescale slope and intercept of the scan, or leave it out"
        yield Finding(
            "warning", "dataset_config.volume_paths", found, remedy, {"volumes": len(raw)}
        )


def _other_scales(named: Named, number: int, per: str) -> Iterator[Finding]:
    if len(named) < 2:
        return
    others = [[n for n, v in named if v.is_other_scale(one)] for _, one in named]
    # The volume that most are like; of several the first.
    first = min(range(len(named)), key=lambda n: len(others[n]))
    odd = others[first]
    if not odd:
        return
    values = dict(named)
    like, (low, high) = named[first][0], named[first][1].range
    least, most = values[odd[0]].range
    found = (
        f"channel {number}: values of {len(odd)} of {len(named)} volumes are of another scale: "
        f"{listed(odd)}; {odd[0]} has {least:.4g} to {most:.4g}, {like} {low:.4g} to {high:.4g}"
    )
    figures = {"volumes": odd, "like": like, "range": [low, high], "range_of_first": [least, most]}
    if per in ("volume", "patch"):
        remedy = f"normalization takes statistics of each {per}, which undoes that"
        yield Finding("note", "dataset_config.normalization", found, remedy, figures)
    else:
        remedy = 'give "per": "volume", or convert these volumes to the scale of the others'
        yield Finding("warning", "dataset_config.normalization", found, remedy, figures)


CHECK = Check("intensities", "Intensities between volumes", _find)
