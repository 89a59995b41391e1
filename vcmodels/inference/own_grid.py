"""A prediction on a prepared grid, and its way back to the grid of the input.

A network that was trained with `dataset_config.prepare` sees inputs as its training volumes were made.
Its result lies on that grid in a hidden group next to the output while it is made; then each block of
the output is interpolated from it. Both have journals, so that the same command continues after a
kill, whatever it was at.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from vcmodels.blockwise import Threads
from vcmodels.config import InferenceParams
from vcmodels.data.prepared import mask_of
from vcmodels.data.regions import region_of as find_region_of
from vcmodels.data.volumes import metadata_notes
from vcmodels.errors import TaskError
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import PatchGrid, tiles
from vcmodels.geometry.gridmap import GridMap
from vcmodels.inference.claim import claim, drop_lost
from vcmodels.inference.job import checked_patch, layout_of, output_specs, region_of
from vcmodels.inference.journal import Journal, Manifest
from vcmodels.inference.locks import setting_up, working_on
from vcmodels.inference.network import OutputSpec
from vcmodels.inference.output import Layout, make_manifest, make_provenance
from vcmodels.inference.pyramid import build_pyramid
from vcmodels.inference.request import (
    Request,
    RunOptions,
    check_inputs,
    choose_targets,
    require_storable,
    with_section,
)
from vcmodels.inference.units import Mask, open_mask
from vcmodels.inference.writing import Output
from vcmodels.machine import usable_cores
from vcmodels.metrics.base import BlockPart
from vcmodels.prepare.contents import Classes, turned_values, with_outside
from vcmodels.prepare.derived import DerivedVolume, kept, report_making
from vcmodels.prepare.kernels import Order, Orders, outside, pick, resample, window
from vcmodels.prepare.plan import KEY, Filled, notes_of, plan_of
from vcmodels.prepare.section import AS_IT_IS
from vcmodels.regions.base import Region
from vcmodels.regions.find import KEY as REGION
from vcmodels.regions.find import Segment
from vcmodels.reporting import Reporter, Silent
from vcmodels.results import our_attributes
from vcmodels.targets import AnyTarget
from vcmodels.targets.base import Target
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.volumes import Place, Volume, open_volume, place_at

ON_PREPARED_GRID = "prepared_grid"
"""In the provenance, the manifest of the prediction on the prepared grid."""
READ_HERE = {"level": 0, "channel_axis": None, "axes": None, "channels": None, "index": {}}
"""Keys that say how inputs are read, which has been done."""


@dataclass(frozen=True)
class OwnGrid:
    """What is predicted on the prepared grid, and what is made of it."""

    inner: Request
    """The prediction on the prepared grid."""
    back: GridMap
    """From the grid of the input to the prepared one, or to its `core`."""
    filled: Filled | None
    """Where zeros stand around what is made of the input."""
    order: Order | Orders
    """How values on the input's grid are found."""
    wanted: Box
    """What is asked for of the input's grid."""
    region: Region | None
    """On the input's grid; nothing is predicted outside of it."""
    layout: Layout
    specs: Mapping[str, OutputSpec]
    manifest: Manifest
    provenance: Mapping[str, Any]

    @classmethod
    def of(cls, request: Request, reporter: Reporter, segment: Segment | None) -> "OwnGrid":
        """Check a request, find its region, and prepare its inputs, which are kept in the cache.

        Args:
            request: with `prepare`, `region` or both.
            reporter: told what is found and made.
            segment: runs the networks that find regions; None takes what they found before.

        Raises:
            RefusedError: whatever a user can fix; nothing was written but to the cache.
        """
        params, network = request.params, request.networks[0]
        prepare = request.prepare or AS_IT_IS
        targets = choose_targets(request.targets, network, params)
        require_storable(targets, params.dtype)
        layout, first = layout_of(request), request.inputs[0]
        check_inputs(request.inputs, network, Silent())
        for note in (note for volume in request.inputs for note in metadata_notes(volume)):
            reporter.say(note)
        wanted, mask = region_of(params, first), open_mask(params, first, reporter)
        if params.on_missing == "error":
            for volume in request.inputs:
                volume.require_stored(wanted, "inference_params.on_missing")
        region = request.region and find_region_of(
            request.region, request.shown, request.inputs, {}, reporter, segment
        )
        plan = plan_of(prepare, request.inputs, network.unit, region and region.box)
        notes, within = notes_of(prepare), mask_of(region, first)
        derived = plan.images(request.inputs, within)
        report_making(derived, reporter)
        images = tuple(kept(one, notes, reporter) for one in derived)
        back = plan.grid.inverse()
        inner_params = params.changed(
            **_on_prepared_grid(params, back, wanted, request.targets.values()),
            skip=params.skip.changed(mask=_prepared_mask(mask, within, plan.grid, notes)),
        )
        inner = replace(
            request,
            inputs=images,
            output=_beside(request.output),
            params=inner_params,
            targets={name: _in_shares(target) for name, target in request.targets.items()},
            record=with_section(request.record, inner_params),
            steps=(),
            prepare=None,
            region=None,
        )
        specs = output_specs(targets, params)
        patch = checked_patch(params.patch_size, network)
        patches = PatchGrid.covering(plan.grid.shape, patch, params.overlaps, params.window)
        manifest = make_manifest(params, network, request.inputs, specs, patches, layout, mask)
        manifest |= {
            "prepare": {**notes["prepare"], "grid": plan.grid.to_json()},
            "prepared_input": [image.fingerprint() for image in images],
            "averaged": _averaged(request),
        }
        if region is not None:
            manifest["region"] = region.to_json()
        provenance = make_provenance(request.record, request.networks)
        own = (inner, plan.back, plan.filled, plan.orders_back(first), wanted, region)
        return cls(*own, layout, specs, manifest, provenance)

    @property
    def root(self) -> Place:
        """The output group."""
        return self.layout.root

    @property
    def places(self) -> dict[str, Place]:
        """The group of each target."""
        return {name: self.root / name for name in self.specs}

    def find_complete(self, options: RunOptions) -> bool:
        """Look at what stands at the output; whether it is this result, and whole.

        Another one is deleted where `overwrite` says so.

        Raises:
            OutputError: another run's result, or something that is not ours.
        """
        is_alone = options.part.count == 1
        with (
            working_on(self.root, alone=is_alone, reporter=options.reporter),
            setting_up(self.root, options.reporter),
        ):
            state = claim(self.layout, self.specs, self.manifest, overwrite=options.overwrite)
        if state == "complete":
            options.reporter.say(f"{self.root}: already complete")
            self.inner.output.remove()  # what a kill may have left
        return state == "complete"

    def write(self, options: RunOptions) -> bool:
        """Make the output of the prediction, which is complete; whether that came to its end.

        Raises:
            RunError: the disk is full, or a chunk is damaged; the same command continues.
        """
        reporter, layout, specs = options.reporter, self.layout, self.specs
        with working_on(self.root, alone=True, reporter=reporter) as hold:
            journal = Journal(self.root, hold.check, layout.measure(specs))
            with setting_up(self.root, reporter):
                state = claim(layout, specs, self.manifest)
                if state == "new":
                    journal.begin(self.manifest)
                provenance = self._full_provenance()
                layout.note(specs, self.manifest, provenance, is_complete=False)
                layout.clean(specs)
                outputs = layout.open_arrays(specs, self.manifest)
                if state == "resume":
                    drop_lost(layout, journal, specs, reporter)
            if not self._fill(outputs, journal, options):
                return False
            stop, cores = options.should_stop, usable_cores()
            if not build_pyramid(layout, specs, journal, cores, reporter, stop):
                return False
            with setting_up(self.root, reporter):
                for name, spec in specs.items():
                    layout.describe(name, spec, self.manifest, is_complete=True)
                layout.note(specs, self.manifest, provenance, is_complete=True)
                journal.remove()
        self._warn(reporter)
        self.inner.output.remove()
        return True

    def _warn(self, reporter: Reporter) -> None:
        """Say where what was found comes to the border of the region: it may go on there."""
        for name, spec in self.specs.items():
            if self.region is not None and spec.kind in ("binary", "multiclass"):
                for line in _touched(self.region, _opened(self.root / name), spec):
                    reporter.say(f"note: {name} comes to the border of the region: {line}")

    def _full_provenance(self) -> dict[str, Any]:
        """With what the prediction on the prepared grid was made from, and in which manner."""
        inner = our_attributes(self.inner.output)["manifest"]
        return {**self.provenance, ON_PREPARED_GRID: inner}

    def _fill(self, outputs: Mapping[str, Output], journal: Journal, options: RunOptions) -> bool:
        """Write the blocks that are not there yet."""
        every = list(tiles(self.wanted, self.layout.block))
        blocks = sorted({*every} - {*journal.done()})
        work = _Undoing(self._undone(), outputs)
        with options.reporter.bar("to the input's grid", self.wanted.voxels) as advance:
            advance(self.wanted.voxels - sum(box.voxels for box in blocks), "")
            for box, _ in Threads().run(work, blocks, options.should_stop):
                journal.mark(box)
                advance(box.voxels, "")
        return {*every} <= {*journal.done()}

    def _undone(self) -> dict[str, "Undone"]:
        """What each output is made of."""
        request, dtype = self.inner, self.layout.dtype
        targets = choose_targets(request.targets, request.networks[0], request.params)
        inner, root = output_specs(targets, request.params), request.output
        return {
            name: Undone(
                spec,
                inner[name],
                self._cored(root / name),
                self.back,
                dtype,
                self.region,
                self.filled and self.filled.crop,
                self.order,
            )
            for name, spec in self.specs.items()
        }

    def _cored(self, place: Place) -> Volume:
        """A prediction on the prepared grid, without what was filled up."""
        stored = _opened(place)
        if self.filled is None:
            return stored
        core = GridMap.identity(stored.extent).cropped(self.filled.core)
        return DerivedVolume.of(stored, core, Classes())


@dataclass(frozen=True)
class Undone:
    """One output on the input's grid, made of a prediction on the prepared grid."""

    spec: OutputSpec
    """As it is written."""
    inner: OutputSpec
    """As it was predicted."""
    stored: Volume
    back: GridMap
    dtype: np.dtype
    region: Region | None = None
    crop: Box | None = None
    """The part of the input that was seen; nothing is outside of it."""
    order: Order | Orders = "linear"

    def codes(self, box: Box) -> np.ndarray | None:
        """(S, *box.shape), encoded; 0 outside of what was predicted. None: nothing was."""
        if not _reaches(self.back, box):
            return None
        inside = None if self.region is None else self.region.mask(box)
        if inside is not None and not inside.any():
            return None
        near = window(self.back, box, self.order).intersect(self.stored.box)
        if not near.voxels or not self.stored.is_stored(near):
            return None
        codes = self.spec.encode(self._prediction(box), self.dtype)
        codes = with_outside(codes, self.back, box, 0)
        if self.crop is not None:
            codes = _only_in(self.crop, codes, box)
        if inside is not None:
            codes[:, ~inside] = 0
        return codes

    def _prediction(self, box: Box) -> torch.Tensor:
        """(P, *box.shape): averaged, decoded and turned."""

        def averageable(part: Box) -> np.ndarray:
            decoded = torch.from_numpy(self.inner.decode(self.stored.read(part)))
            return self.inner.averageable(decoded).numpy()

        if self.back.is_exact:
            found = pick(averageable, self.back, box)
        else:
            found = resample(averageable, self.back, box, self.order, "edge")
        values = self.inner.unblend(torch.from_numpy(found))
        if not isinstance(self.inner, Target):  # an uncertainty has no direction
            return values
        everywhere = torch.ones((1, *box.shape), dtype=torch.bool)
        return turned_values(self.inner, values, everywhere, self.back)[0]


def _only_in(part: Box, codes: np.ndarray, box: Box) -> np.ndarray:
    """The codes of a box, (S, *box.shape), and 0 outside of a part."""
    found, shared = np.zeros_like(codes), part.intersect(box)
    if shared.voxels:
        at = (slice(None), *shared.slices(box))
        found[at] = codes[at]
    return found


@dataclass(frozen=True)
class _Undoing:
    """The work on a block of all outputs."""

    undone: Mapping[str, Undone]
    outputs: Mapping[str, Output]

    def __call__(self, box: Box) -> BlockPart:
        for name, one in self.undone.items():
            codes = one.codes(box)
            if codes is not None:
                self.outputs[name].write(box, codes)
                self.outputs[name].array.sync(box)
        return {}


def _touched(region: Region, stored: Volume, spec: OutputSpec) -> Iterator[str]:
    """In words, the borders of a region that a mask comes to, and where."""
    found: dict[str, list[np.ndarray]] = defaultdict(list)
    for box in filter(stored.is_stored, tiles(region.box, stored.chunks)):
        for where, on_it in region.borders(box, stored.extent):
            if on_it.any():
                values = spec.decode(stored.read(box))
                share = values[0] if spec.kind == "binary" else 1 - values[0]
                index = np.argwhere(on_it & (share >= 0.5))
                found[where] += [index + box.origin] if len(index) else []
    for where, parts in found.items():
        if parts:
            middle = np.median(np.concatenate(parts), axis=0).astype(int)
            yield f"{where}, about voxel {tuple(middle.tolist())}"


def _opened(place: Place) -> Volume:
    return open_volume(str(place / "0"), key=str(place), channels="any")


def _beside(root: Place) -> Place:
    """The hidden group next to a result, for its prediction on the prepared grid."""
    folder, _, name = str(root).rpartition("/")
    return place_at(f"{folder}/.{name}.prepared")


def _on_prepared_grid(
    params: InferenceParams, back: GridMap, region: Box, targets: Iterable[AnyTarget]
) -> dict[str, Any]:
    """Keys of the prediction on the prepared grid."""
    if not _reaches(back, region):
        found = f"nothing of it is left by {KEY}.crop or {REGION}"
        raise TaskError("inference_params.bbox", found, "give another")
    around = window(back, region, "linear").intersect(Box((0, 0, 0), back.source))
    is_fine = params.dtype.itemsize == 4 or params.dtype.name == "uint16"
    # The logarithm of a small probability needs its exponent.
    is_fine |= any(getattr(target, "averages", None) == "logits" for target in targets)
    return {
        **READ_HERE,
        "spacing": None,
        "bbox": tuple(zip(around.origin, around.end, strict=True)),
        "pyramid": 0,
        "output_type": "float32" if is_fine else "float16",
        "output_chunks": None,
        "output_shards": None,
        "on_missing": "fill",
    }


def _reaches(back: GridMap, box: Box) -> bool:
    """Whether anything of a box of the input's grid lies in the prepared one."""
    ends = enumerate(zip(box.origin, box.shape, strict=True))
    return not any(outside(back, axis, *end).all() for axis, end in ends)


def _in_shares(target: AnyTarget) -> AnyTarget:
    """The target with what can be interpolated: shares of classes, not the likeliest one."""
    if isinstance(target, MulticlassTarget) and target.is_categorical:
        return target.changed(output="probabilities")
    return target


def _prepared_mask(
    mask: Mask | None, within: Volume | None, grid: GridMap, notes: Mapping[str, Any]
) -> str | None:
    """Where the mask of what is wanted is on the prepared grid; that of the region if none is given.

    Raises:
        TaskError: it is coarser than the input.
    """
    if mask is None:
        return within and kept(DerivedVolume.of(within, grid, Classes()), notes).location
    if mask.factor != (1, 1, 1):
        found = f"{mask.volume.shown} is coarser than the input, which goes with no {KEY}"
        raise TaskError("inference_params.skip.mask", found, "give one of the input's shape")
    return kept(DerivedVolume.of(mask.volume, grid, Classes()), notes).location


def _averaged(request: Request) -> dict[str, Any]:
    """What is averaged, for the manifest."""
    params = request.params.model_dump(mode="json", include={"tta", "ensemble"})
    return {**params, "checkpoints": [network.sha256 for network in request.networks]}
