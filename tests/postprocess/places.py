"""Sites for tests of steps: arrays in memory, an output in a folder, blocks of any shape."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vcmodels.blockwise import Crew
from vcmodels.geometry.boxes import Box
from vcmodels.postprocess.base import Step
from vcmodels.postprocess.site import Site, Source
from vcmodels.volumes import ArrayVolume, create_array, open_volume

SPACING = (1.0, 1.0, 1.0)


def source_of(values: np.ndarray, kind: str, name="source", spacing=SPACING, **keys) -> Source:
    return Source(name, ArrayVolume.of(values, spacing, name), kind, **keys)


def step_of(kind: type[Step], sources: str | Mapping[str, str], **keys) -> Step:
    """A step as a task file names it."""
    return kind.model_validate({"output": "made", "from": sources, **keys})


def run_step(
    step: Step,
    sources: Mapping[str, Source],
    folder: Path,
    block: Sequence[int] = (64, 64, 64),
    *,
    box: Box | None = None,
    spacing=SPACING,
    crew: Crew | None = None,
    unit: str | None = None,
) -> np.ndarray:
    """What a step writes, (Z, Y, X) or (C, Z, Y, X)."""
    first = next(iter(sources.values())).volume
    form, block = step.form(sources), tuple(block)
    folder.mkdir(parents=True, exist_ok=True)
    lead = () if form.channels is None else (form.channels,)
    place = folder / "out.zarr"
    if not place.exists():
        create_array(
            str(folder),
            "out.zarr",
            shape=(*lead, *first.extent),
            chunks=(*lead, *block),
            dtype=form.dtype,
        )
    from vcmodels.volumes import WritableArray
    from vcmodels.volumes.backend import ArrayHandle

    site = Site(
        sources=sources,
        box=box or first.box,
        block=block,
        spacing=spacing,
        unit=unit,
        output=WritableArray(ArrayHandle(str(place), 2, "r+")),
        folder=folder / "scratch",
        identity={"step": step.model_dump(mode="json")},
        crew=crew or Crew(),
    )
    step.run(site)
    written = open_volume(str(place), key="out", channels="any")
    values = written.read(written.box)
    return values if form.channels is not None else values[0]
