"""Labels that hold something where no chunk of the image is stored."""

from collections.abc import Iterator
from itertools import islice

from vcmodels.audit.base import AuditScene, Check, Finding
from vcmodels.data.task_volume import TaskVolume
from vcmodels.geometry.boxes import Box, cut_block
from vcmodels.volumes import Volume

MOST_BLOCKS = 4096
"""Stored blocks of a label that are compared with the image."""
MOST_READ = 64
"""Blocks that are read, to see whether they hold a label."""


def _find(scene: AuditScene) -> Iterator[Finding]:
    for volume in scene.volumes:
        for name, label in volume.labels.items():
            missing = [image for image in volume.inputs if image.listing and image.missing_blocks()]
            for image in missing[:1] if label.listing else []:
                yield from _compared(volume, name, label, image)


def _compared(volume: TaskVolume, name: str, label: Volume, image: Volume) -> Iterator[Finding]:
    blocks = islice(label.stored_blocks(volume.region), MOST_BLOCKS)
    lacking = [block for block in blocks if not image.is_stored(block)]
    held = [block for block in lacking[:MOST_READ] if _holds_label(label, block)]
    if held:
        found = (
            f"{volume.name}: {len(held)} of {min(len(lacking), MOST_READ)} blocks of {name} that were "
            f"read lie where no chunk of the image is stored, and hold labels; the first at "
            f"(z, y, x) = {held[0].origin}"
        )
        remedy = "copy the image again, or leave these parts out by bbox"
        yield Finding("warning", f"{volume.key}.{name}", found, remedy, {"blocks": len(held)})


def _holds_label(label: Volume, block: Box) -> bool:
    return any(label.read(piece).any() for piece in cut_block(block, label.chunks))


CHECK = Check("stored", "What is stored", _find)
