"""The small types of the task file: names, locations, boxes, numbers in a range."""

import re
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, Field

from vcmodels.errors import FaultError
from vcmodels.volumes.axes import axis_name

KeyValue = TypeVar("KeyValue")
ChannelLists = list[int] | list[list[int]]

NAME_PATTERN = r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]{0,63}"
NAME_RULE = '1 to 64 letters, digits, "_", "-" and ".", not starting with "." or "-"'
DEVICE_PATTERN = r"^(auto|cpu|cuda(:\d{1,4})?)$"
DEVICE_RULE = '"auto", "cpu" or "cuda:0"'
AXES_PATTERN = "^[a-z]{3,8}$"
AXES_RULE = 'a letter for each stored axis, such as "tczyx"'

VOLUME_KEYS = (
    "input", "pseudo", "ref_label", "bbox", "split", "weight", "name", "group", "cohort", "level",
    "channel_axis", "axes", "channels", "index", "spacing",
)  # fmt: skip
"""Keys of a volume entry that can therefore name no target."""
INSIDE_DATASET = ("volume_paths", "targets")
"""Keys of `dataset_config` that may also stand at the top level of the file."""

_RESERVED = {
    # Device names of Windows, with any extension: such a file cannot be copied there.
    *("con", "prn", "aux", "nul", "conin$", "conout$"),
    *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)),
}
_MODULE_ATTRIBUTES = {
    "T_destination", "add_module", "apply", "bfloat16", "buffers", "call_super_init",
    "children", "clear", "compile", "cpu", "cuda", "double", "dump_patches", "eval",
    "extra_repr", "float", "forward", "get_buffer", "get_extra_state", "get_parameter",
    "get_submodule", "half", "ipu", "items", "keys", "load_state_dict", "modules", "mtia",
    "named_buffers", "named_children", "named_modules", "named_parameters", "parameters",
    "pop", "register_backward_hook", "register_buffer", "register_forward_hook",
    "register_forward_pre_hook", "register_full_backward_hook",
    "register_full_backward_pre_hook", "register_load_state_dict_post_hook",
    "register_load_state_dict_pre_hook", "register_module", "register_parameter",
    "register_state_dict_post_hook", "register_state_dict_pre_hook", "requires_grad_",
    "set_extra_state", "set_submodule", "share_memory", "state_dict", "to", "to_empty",
    "train", "training", "type", "update", "values", "xpu", "zero_grad",
}  # fmt: skip
"""The attributes of an `nn.ModuleDict`, without those that start with an underscore.

Written out, so that a task file is read without torch.
"""
_RESERVED_TARGETS = {
    *VOLUME_KEYS,
    "labels",
    "cases",
    "bids",
    "all",
    "zarr.json",
    "attributes",
    "metadata",
}


def check_name(name: str) -> str:
    """Return a name that is safe as a file name everywhere.

    Raises:
        FaultError: it is not.
    """
    if not re.fullmatch(NAME_PATTERN, name) or name.endswith("."):
        raise FaultError("the name is not safe as a file name", f"use {NAME_RULE}")
    if name.split(".")[0].lower() in _RESERVED or name.lower() == "zarr.json":
        found = "the name is reserved by the file system or the store"
        raise FaultError(found, "choose another")
    return name


def check_new_name(name: str) -> None:
    """Refuse a name that older runs may have, but that no file and no array should get.

    Raises:
        FaultError: it starts with a hyphen.
    """
    if name.startswith("-"):
        found = f'"{name}" starts with "-", like an option, and no array can be named so'
        raise FaultError(found, f"use {NAME_RULE}")


def check_target_name(name: str) -> str:
    """Return a name that is also no key of a volume entry, and fits a Zarr store and a network.

    Raises:
        FaultError: it is not.
    """
    if name.lower() in _RESERVED_TARGETS:
        raise FaultError("the name is reserved, it has another meaning", "choose another")
    check_name(name)
    if "." in name or _is_attribute(name):
        raise FaultError("torch cannot name a part of a network so", "choose another")
    return name


def _is_attribute(name: str) -> bool:
    """Whether torch has a use of its own for this name of a part of a network."""
    if not name.startswith("_"):
        return name in _MODULE_ATTRIBUTES
    from torch import nn  # late: takes a second, and hardly any name starts so

    return hasattr(nn.ModuleDict(), name)


Interval = tuple[Annotated[int, Field(ge=0, le=2**40)], Annotated[int, Field(ge=1, le=2**40)]]
"""[start, end), in voxels."""


def check_bbox(bbox: tuple[Interval, Interval, Interval]) -> tuple[Interval, Interval, Interval]:
    """Return a box that is not empty.

    Raises:
        FaultError: an axis ends before it starts.
    """
    for axis, (start, end) in zip("zyx", bbox, strict=True):
        if start >= end:
            raise FaultError(f"[{start}, {end}) is empty along {axis}", "give start < end")
    return bbox


def check_axes(letters: str) -> str:
    """Return letters of axes, each once, with z, y and x among them.

    Raises:
        FaultError: they are not.
    """
    if len({*letters}) != len(letters) or not {*"zyx"} <= {*letters}:
        found = f'"{letters}" does not hold z, y and x, and each letter once'
        raise FaultError(found, 'give a letter for each stored axis, as in "tczyx"')
    return letters


def check_channels(channels: ChannelLists) -> ChannelLists:
    """Return numbers of channels, or lists of them, with no number twice in a list.

    Raises:
        FaultError: one stands twice.
    """
    lists = [each for each in channels if isinstance(each, list)] or [channels]
    for each in lists:
        if len({*map(str, each)}) != len(each):
            raise FaultError(f"{each} names a channel twice", "name each once")
    return channels


def check_index(index: dict[str, KeyValue]) -> dict[str, KeyValue]:
    """Return positions by axis, the axes by the name that they have here.

    Raises:
        FaultError: an axis is spatial, or stands twice.
    """
    named = {axis_name(name): at for name, at in index.items()}
    if {"z", "y", "x", ""} & named.keys() or len(named) != len(index):
        found = f"{', '.join(index)} are not axes, each once, other than z, y and x"
        raise FaultError(found, 'name axes such as "t"; bbox cuts along z, y, x')
    return named


SafeName = Annotated[str, Field(max_length=64, pattern=f"^{NAME_PATTERN}$")]
FileName = Annotated[SafeName, AfterValidator(check_name)]
TargetName = Annotated[str, AfterValidator(check_target_name)]
VolumeName = Annotated[str, Field(min_length=1, max_length=1024)]
VolumeChoice = Literal["val", "test", "all"] | Annotated[list[VolumeName], Field(min_length=1)]
"""Some of the labelled volumes of a task."""
Location = Annotated[str, Field(min_length=1, max_length=4096)]
Locations = Location | Annotated[list[Location], Field(min_length=1)]
BoundingBox = Annotated[tuple[Interval, Interval, Interval], AfterValidator(check_bbox)]
"""[[z0, z1], [y0, y1], [x0, x1]], in voxels of the level that is read; ends excluded."""
Letters = Annotated[str, Field(pattern=AXES_PATTERN), AfterValidator(check_axes)]
StoredAxes = Letters | dict[str, Letters]
ChannelNumbers = Annotated[list[Annotated[int, Field(ge=0, le=65535)]], Field(min_length=1)]
ChannelChoice = Annotated[
    ChannelNumbers | Annotated[list[ChannelNumbers], Field(min_length=1)],
    AfterValidator(check_channels),
]
Position = Annotated[int, Field(ge=0, le=2**40)]
AxisIndex = Annotated[dict[str, Position | dict[str, Position]], AfterValidator(check_index)]
VoxelSide = Annotated[float, Field(gt=0, le=1e12)]
VoxelSize = tuple[VoxelSide, VoxelSide, VoxelSide]
"""Along (z, y, x)."""
OverlapShare = Annotated[float, Field(ge=0, lt=1)]
Overlap = OverlapShare | tuple[OverlapShare, OverlapShare, OverlapShare]
Device = Annotated[str, Field(pattern=DEVICE_PATTERN)] | Annotated[int, Field(ge=-1, le=1023)]
Compile = Literal["auto"] | bool
WorkerCount = Annotated[int, Field(ge=0, le=256)]
BatchSize = Annotated[int, Field(ge=1, le=4096)]
Steps = Annotated[int, Field(ge=1, le=10_000_000)]
IgnoreLabel = int | list[int]
