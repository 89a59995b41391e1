"""One step of post-processing on its way: its output, its passes, its coarser levels, its end."""

import glob
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np

import vcmodels
from vcmodels.blockwise import Crew, share_blocks
from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box, coarse_extent, divide
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess import AnyStep, Form, Site, Source, StoppedError
from vcmodels.postprocess.base import IDS
from vcmodels.postprocess.site import write_once
from vcmodels.results import (
    KEY,
    METADATA,
    census,
    discard_output,
    is_complete,
    is_discarded,
    is_of_step,
    our_attributes,
)
from vcmodels.volumes import (
    OME,
    Description,
    ListedImage,
    Place,
    Storage,
    Volume,
    WritableArray,
    coarse_grid,
    create_array,
    image_label,
    is_array,
    open_volume,
    write_collection,
    write_multiscale_group,
)
from vcmodels.volumes.backend import ArrayHandle
from vcmodels.volumes.locks import FileLock
from vcmodels.volumes.multiscale import CoarserLevel, mean_of, most_frequent
from vcmodels.volumes.world import place_notes
from vcmodels.workflows.ground import Ground

FOLDER = ".postprocess"
"""In the group, what is needed until a step is done."""

AGAIN = "vcmodels postprocess with --overwrite makes it again"


def require_ours(place: Place) -> None:
    """Refuse an output where something stands that no step has written.

    Raises:
        OutputError: naming it.
    """
    if place.names() - METADATA and not is_of_step(our_attributes(place)):
        found = "exists and is no output of post-processing"
        raise OutputError(str(place), found, "give the step another output")


@dataclass(frozen=True)
class StepWork:
    """One step on its way: its output, its passes, its levels, its end."""

    step: AnyStep
    ground: Ground
    folder: Path
    crew: Crew

    @property
    def place(self) -> Place:
        """The group of the output."""
        return self.ground.root / self.step.output

    @property
    def sources(self) -> dict[str, Source]:
        """What is read, by role."""
        return {role: self.ground.sources[name] for role, name in self.step.sources.items()}

    @property
    def form(self) -> Form:
        """What is written."""
        return self.step.form(self.sources)

    @property
    def identity(self) -> dict[str, Any]:
        """All that determines the output, as JSON values."""
        return {
            "step": self.step.model_dump(mode="json", exclude={"tune_for", "tune_by"}),
            "made_of": {
                role: {
                    "name": one.name,
                    "content": one.volume.fingerprint(),
                    "kind": one.kind,
                    "encoding": dict(one.encoding),
                }
                for role, one in self.sources.items()
            },
            "box": [self.ground.box.origin, self.ground.box.end],
            "spacing": self.ground.spacing,
            "unit": self.ground.grid.unit,
            "schema": 1,
        }

    def do(self, *, overwrite: bool) -> bool:
        """Make the output; False if it was there.

        Raises:
            StoppedError: the crew was asked to stop.
            OutputError: it was made of something else, and `overwrite` is not given.
        """
        present = self._enter()
        try:
            with self._alone():
                if self._begin(overwrite=overwrite, is_sole=present.is_sole()):
                    return False
            self.step.run(self._site(self._open(0)))
            for level in range(1, len(self.ground.factors)):
                self._coarsen(level)
            with self._alone():
                self._describe(is_complete=True)
                list_images(self.ground)
            return True
        finally:
            with self._alone():  # of two that end together one sees that it is the last
                is_last = present.is_sole() and is_complete(our_attributes(self.place))
                present.close()
                if is_last:
                    self._leave()
            if is_last:
                self._sweep()
                with suppress(OSError):  # another step is at work there
                    self.folder.parent.rmdir()

    def _enter(self) -> FileLock:
        """Hold the folder, so that nobody who ends deletes it.

        Another process that ends may delete it before it is held: then it is made again.
        """
        while True:
            with suppress(FileNotFoundError):
                self.folder.mkdir(parents=True, exist_ok=True)
                with self._alone():
                    self._sweep()
                    return FileLock(self.folder / "present.lock", shared=True)

    def _leave(self) -> None:
        """Take the name from the folder, in one step: nobody can enter what is being deleted."""
        with suppress(OSError):  # what is done stays done, with a folder next to it
            self.folder.rename(self.folder.with_name(f".{self.folder.name}.{uuid4().hex}.old"))

    def _sweep(self) -> None:
        """Delete folders that have lost their name, of processes that were killed as well."""
        for path in self.folder.parent.glob(f".{glob.escape(self.folder.name)}.*.old"):
            shutil.rmtree(path, ignore_errors=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Other processes wait while the context lasts."""
        lock = FileLock(self.folder / "setup.lock", waits=True)
        try:
            yield
        finally:
            lock.close()

    def _begin(self, *, overwrite: bool, is_sole: bool) -> bool:
        """Make the arrays that are not there; True if the output is complete already.

        Raises:
            OutputError: something else stands there, or what was made of something else and may
                not be deleted, or not while another process works on it.
        """
        require_ours(self.place)
        noted, reporter = our_attributes(self.place), self.crew.reporter
        if is_discarded(noted):  # by who was killed then: nobody works on it
            discard_output(self.place)
            _clear(self.folder)
            noted = {}
        if noted and noted.get("identity_sha256") != _digest(self.identity):
            changed = _changes(noted, self.identity)
            if not overwrite:
                raise OutputError(str(self.place), f"was made of something else: {changed}", AGAIN)
            if not is_sole:
                found, remedy = "another process works on it", "wait for it"
                raise OutputError(str(self.place), found, remedy)
            reporter.say(f"{self.place}: made again: {changed}")
            discard_output(self.place)
            _clear(self.folder)
            noted = {}
        if is_complete(noted):
            reporter.say(f"{self.place}: already complete")
            return True
        self._describe(is_complete=False)  # before any array: what is ours says so
        for level in range(len(self.ground.factors)):
            if not is_array(self.place / str(level)):
                self._create(level)
        return False

    def _site(self, output: WritableArray) -> Site:
        ground = self.ground
        return Site(
            self.sources,
            ground.box,
            ground.block,
            ground.spacing,
            ground.grid.unit,
            output,
            self.folder,
            self.identity,
            self.crew,
        )

    def _create(self, level: int) -> None:
        ground, form = self.ground, self.form
        lead = () if form.channels is None else (form.channels,)
        extent = coarse_extent(ground.extent, ground.factors[level])
        spacing, offset = coarse_grid(ground.spacing, ground.grid.offset, ground.factors[level])
        create_array(
            str(ground.root),
            f"{self.step.output}/{level}",
            shape=(*lead, *extent),
            chunks=(*lead, *(min(pair) for pair in zip(ground.chunks, extent, strict=True))),
            dtype=form.dtype,
            grid=replace(ground.grid, spacing=spacing, offset=offset),
            storage=Storage(ground.zarr_format),
        )

    def _open(self, level: int) -> WritableArray:
        return WritableArray(
            ArrayHandle(str(self.place / str(level)), self.ground.zarr_format, "r+")
        )

    def _coarsen(self, level: int) -> None:
        """Write one level from the one before: ids, masks and classes by majority, values by mean."""
        factors = self.ground.factors
        fine, coarse = (
            open_volume(str(self.place / str(n)), key="output", channels="any")
            for n in (level - 1, level)
        )
        halve = most_frequent if self.form.is_categorical else mean_of
        below = CoarserLevel(fine, coarse, divide(factors[level], factors[level - 1]), halve)
        work = _Coarser(below, self._open(level))
        name = f"level {level}"
        identity = {**self.identity, "pass": name}
        folder = self.folder / name.replace(" ", "-")
        if share_blocks(work, below.blocks(), folder, identity, self.crew, name) is None:
            raise StoppedError(str(self.place), "stopped", "the same command continues")

    def _describe(self, *, is_complete: bool) -> None:
        """Write what the output is, what it was made of, and whether all of it is there."""
        form, ground = self.form, self.ground
        notes: dict[str, Any] = {
            "target": self.step.output,
            "kind": form.kind,
            **({"encoding": dict(form.encoding)} if form.encoding else {}),
            **self.identity,
            "identity_sha256": _digest(self.identity),
            "versions": _versions(),
            "complete": is_complete,
            **place_notes(next(iter(ground.sources.values())).volume),
        }
        factors = ground.factors if is_complete else ground.factors[:1]
        if is_complete:
            notes["stored_chunks"] = {
                str(level): census(self._volume(level)) for level in range(len(factors))
            }
        lead = () if form.channels is None else ("c",)
        shown = image_label({}, ground.zarr_format) if form.kind == IDS else {}
        write_multiscale_group(
            str(self.place),
            replace(ground.grid, axes=(*lead, "z", "y", "x")),
            Description(self.step.output, {KEY: notes}, shown),
            levels={str(level): factor for level, factor in enumerate(factors)},
            zarr_format=ground.zarr_format,
        )

    def _volume(self, level: int) -> Volume:
        return open_volume(str(self.place / str(level)), key="output", channels="any")


@dataclass(frozen=True)
class _Coarser:
    """The work on a block of a coarser level."""

    level: CoarserLevel
    array: WritableArray

    def __call__(self, block: Box) -> BlockPart:
        write_once(self.array, block, self.level.values(block))
        return {}


def list_images(ground: Ground) -> None:
    """Name all images of a group in its collection, so that viewers find them from the top."""
    root = ground.root
    if OME in ground.sources:  # a target has the place of the list
        return
    members = [
        ListedImage(
            name, one.extent, one.channels, one.dtype, replace(ground.grid, axes=("z", "y", "x"))
        )
        for name, one in images_in(root)
    ]
    write_collection(str(root), members, {}, zarr_format=ground.zarr_format)


def images_in(root: Place) -> Iterator[tuple[str, Volume]]:
    """The images of a group that vcmodels wrote, by name, the finest level of each."""
    for name in sorted(root.names() - {FOLDER, OME}):
        place = root / name
        noted = our_attributes(place)
        if noted and not is_discarded(noted) and is_array(place / "0"):  # others may be making it
            yield name, open_volume(str(place / "0"), key=str(place), channels="any")


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _changes(noted: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, in words: keys of the step, or what it was made of."""
    before, step = noted.get("step"), now["step"]
    if not isinstance(before, dict):
        return "its notes are damaged"
    keys = [k for k in {**before, **step} if before.get(k) != step.get(k)]
    changed = [f"{k} was {before.get(k)}, is {step.get(k)}" for k in keys]
    made = noted.get("made_of")
    roles = now["made_of"]
    if isinstance(made, dict):
        changed += [f"{r} has changed" for r in roles if made.get(r) != roles[r]]
    return "; ".join(changed) or "the part of the volume"


def _versions() -> dict[str, str]:
    found = {"vcmodels": vcmodels.__version__, "numpy": np.__version__}
    return found | {name: version(name) for name in ("scipy", "scikit-image")}


def _clear(folder: Path) -> None:
    """Remove what an earlier way of making an output has left, but for the locks that are held."""
    for path in folder.iterdir():
        if path.suffix != ".lock":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
