"""The small types of the task file: names, locations, boxes, overlaps, the `wandb` block."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from torch import nn

from vcmodels.errors import FaultError
from vcmodels.section import Section

NAME_PATTERN = r"[A-Za-z0-9_\-][A-Za-z0-9_.\-]{0,63}"
NAME_RULE = '1 to 64 letters, digits, "_", "-" and ".", not starting with "."'
DEVICE_PATTERN = r"^(auto|cpu|cuda(:\d{1,4})?)$"
DEVICE_RULE = '"auto", "cpu" or "cuda:0"'

VOLUME_KEYS = (
    "input", "pseudo", "ref_label", "bbox", "split", "weight", "name", "group", "level",
    "channel_axis", "spacing",
)  # fmt: skip
"""Keys of a volume entry that can therefore name no target."""

_RESERVED = {
    # Device names of Windows, with any extension: such a file cannot be copied there.
    *("con", "prn", "aux", "nul", "conin$", "conout$"),
    *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10)),
}
_RESERVED_TARGETS = {*VOLUME_KEYS, "labels", "all", "zarr.json", "attributes", "metadata"}


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


def check_target_name(name: str) -> str:
    """Return a name that is also no key of a volume entry, and fits a Zarr store and a network.

    Raises:
        FaultError: it is not.
    """
    if name.lower() in _RESERVED_TARGETS:
        raise FaultError("the name is reserved, it has another meaning", "choose another")
    check_name(name)
    if "." in name or hasattr(nn.ModuleDict(), name):
        raise FaultError("torch cannot name a part of a network so", "choose another")
    return name


Pair = tuple[Annotated[int, Field(ge=0, le=2**40)], Annotated[int, Field(ge=1, le=2**40)]]
"""[start, end), in voxels."""


def check_bbox(bbox: tuple[Pair, Pair, Pair]) -> tuple[Pair, Pair, Pair]:
    """Return a box that is not empty.

    Raises:
        FaultError: an axis ends before it starts.
    """
    for axis, (start, end) in zip("zyx", bbox, strict=True):
        if start >= end:
            raise FaultError(f"[{start}, {end}) is empty along {axis}", "give start < end")
    return bbox


SafeName = Annotated[str, Field(max_length=64, pattern=f"^{NAME_PATTERN}$")]
FileName = Annotated[SafeName, AfterValidator(check_name)]
TargetName = Annotated[str, AfterValidator(check_target_name)]
Location = Annotated[str, Field(min_length=1, max_length=4096)]
Locations = Location | Annotated[list[Location], Field(min_length=1)]
BoundingBox = Annotated[tuple[Pair, Pair, Pair], AfterValidator(check_bbox)]
"""[[z0, z1], [y0, y1], [x0, x1]], in voxels of the level that is read; ends excluded."""
Share = Annotated[float, Field(ge=0, lt=1)]
Overlap = Share | tuple[Share, Share, Share]
Device = Annotated[str, Field(pattern=DEVICE_PATTERN)] | Annotated[int, Field(ge=-1, le=1023)]
Amp = Literal["auto", "off", "bf16", "fp16"]
Compile = Literal["auto"] | bool
Workers = Annotated[int, Field(ge=0, le=256)]
BatchSize = Annotated[int, Field(ge=1, le=4096)]
Steps = Annotated[int, Field(ge=1, le=10_000_000)]
IgnoreLabel = int | list[int]


Name = Annotated[str, Field(min_length=1, max_length=128)]


class WandbConfig(Section):
    """Send what TensorBoard shows to Weights & Biases, too; needs the package `wandb`."""

    project: Name
    """The project there; it is made if it is missing."""
    entity: Name | None = None
    """User or team that it belongs to; your default one when null."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes into the run folder, for `wandb sync` to send later."""
