"""Which axes of a stored array are (z, y, x) and which one, if any, holds channels."""

from typing import Any, Literal

import numpy as np

from vcmodels.errors import VolumeError

ChannelAxis = Literal["first", "last"]
Channels = int | Literal["any"] | None


def find_channel_axis(
    shape: tuple[int, ...],
    axes: tuple[str, ...] | None,
    channels: Channels,
    declared: ChannelAxis | None,
    *,
    key: str,
) -> ChannelAxis | None:
    """Where the channels of an array are; None for a plain (Z, Y, X) array. Never guessed.

    Args:
        shape: of the stored array.
        axes: names of its axes, as stored with it, if they are.
        channels: how many are wanted; None for no channel axis at all, "any" for whatever is there.
        declared: what the task says, which goes before what the store says.
        key: the dotted task key, for messages.

    Raises:
        VolumeError: not 3 or 4 axes, another order than z, y, x, the wrong number of channels, or
            a shape that can be read both ways.
    """
    _check_order(shape, axes, key)
    if len(shape) == 3:
        if channels not in (None, 1, "any"):
            found = f"shape {shape} has no channel axis"
            raise VolumeError(key, found, f"expected {channels} channels: (c, z, y, x)")
        return None
    if len(shape) != 4 or channels is None:
        wanted = "3 axes (z, y, x)"
        if channels is not None:
            wanted = f"{wanted} or 4, with channels first or last"
        raise VolumeError(key, f"shape {shape} has {len(shape)} axes", f"expected {wanted}")
    if declared is None:
        declared = _stored_axis(axes)
    if declared is None:
        declared = _only_reading(shape, channels, key)
    count = shape[0] if declared == "first" else shape[3]
    if channels not in ("any", count):
        found = f"shape {shape} has {count} channels on its {declared} axis"
        raise VolumeError(key, found, f"expected {channels}")
    return declared


def channel_last_to_first(block: np.ndarray[Any, Any], axis: ChannelAxis | None) -> np.ndarray:
    """Bring what was read into the form (C, Z, Y, X)."""
    if axis is None:
        return block[None]
    return np.moveaxis(block, 3, 0) if axis == "last" else block


def _check_order(shape: tuple[int, ...], axes: tuple[str, ...] | None, key: str) -> None:
    """Refuse stores that say their spatial axes are in another order."""
    if axes is None or len(axes) != len(shape) or not {"z", "y", "x"} <= set(axes):
        return
    spatial = [name for name in axes if name in "zyx"]
    if spatial != ["z", "y", "x"]:
        found = f"the store names its axes ({', '.join(axes)})"
        raise VolumeError(key, found, "expected the order z, y, x; transpose the array")


def _stored_axis(axes: tuple[str, ...] | None) -> ChannelAxis | None:
    if axes is None or len(axes) != 4:
        return None
    if axes[1:] == ("z", "y", "x"):
        return "first"
    return "last" if axes[:3] == ("z", "y", "x") else None


def _only_reading(shape: tuple[int, ...], channels: Channels, key: str) -> ChannelAxis:
    """The side on which the number of channels fits, when it fits on one side only."""
    fits: list[ChannelAxis] = []
    if channels in ("any", shape[0]):
        fits.append("first")
    if channels in ("any", shape[3]):
        fits.append("last")
    if len(fits) == 1:
        return fits[0]
    if not fits:
        found = f"shape {shape} has no axis of {channels} channels, neither first nor last"
        raise VolumeError(key, found, f"expected ({channels}, z, y, x) or (z, y, x, {channels})")
    found = (
        f"shape {shape} can be read as {shape[0]} channels of {shape[1:]} "
        f"or as {shape[3]} channels of {shape[:3]}"
    )
    raise VolumeError(key, found, 'say which with "channel_axis": "first" or "last"')
