"""Connected components, as ids."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from vcmodels.errors import TaskError
from vcmodels.fields.components import Connectivity
from vcmodels.geometry.boxes import Spacing
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess.base import IDS, IDS_FORM, VALUES, Form, Role, Step
from vcmodels.postprocess.lengths import in_micrometers, require_package
from vcmodels.postprocess.numbering import numbered
from vcmodels.postprocess.pieces import Decided, EqualMarks, PieceMeasure, Pieces
from vcmodels.postprocess.site import Site, Source
from vcmodels.postprocess.sizing import SizeKeys, kept_of
from vcmodels.postprocess.threshold import check_threshold
from vcmodels.postprocess.tuning import THRESHOLDS, Tuned, number
from vcmodels.postprocess.voxels import CLASSES, FieldFill, Marks, MaskRule


class ComponentsStep(SizeKeys, Step):
    """Each connected region of a mask, a class or an object becomes one object."""

    name: Literal["components"] = "components"
    """Each connected region becomes one object. Of ids, an object in several parts becomes several."""
    threshold: float | Tuned | None = None
    """A voxel belongs to the mask from this value on: a probability, a distance in the unit of the
    spacing, ...; 0.5 for probabilities when left out."""
    below: bool = False
    """The mask is where values are less than the threshold, as in a cell within its boundary."""
    connectivity: Connectivity = 26
    """Which neighbours are connected: by faces (6), also by edges (18), also by corners (26)."""
    by_class: bool = False
    """Of classes: regions of different classes are different objects though they touch, and
    `min_size` and `largest` hold for each class by itself."""

    roles: ClassVar[Mapping[str, Role]] = {"mask": Role(VALUES | {CLASSES, IDS})}
    grid: ClassVar[Mapping[str, tuple[float, ...]]] = {"threshold": THRESHOLDS}

    def output_kind(self, kinds: Mapping[str, str]) -> str:
        del kinds
        return IDS

    def form(self, sources: Mapping[str, Source]) -> Form:
        del sources
        return IDS_FORM

    def check(self, sources: Mapping[str, Source], spacing: Spacing, unit: str | None) -> None:
        """Refuse keys that have no effect on the kind of the source, and lengths without a unit."""
        del spacing
        require_package("cc3d", self.name)
        self.check_units(unit)
        source = sources["mask"]
        if source.kind in VALUES:
            check_threshold("threshold", self.threshold, source)
        elif used := self.model_fields_set & {"threshold", "below"}:
            found = f'it has no effect: "{source.name}" has no values to compare ({source.kind})'
            raise TaskError(min(used), found, "leave it out")
        if self.by_class and source.kind != CLASSES:
            found = f'"{source.name}" has no classes ({source.kind})'
            raise TaskError("by_class", found, "leave it out")

    def run(self, site: Site) -> None:
        """In two passes: regions are measured, then written."""
        division = EqualMarks(self._marks(site), self.connectivity)
        measured = site.measure("label", PieceMeasure(division, site.box))
        spacing_um = in_micrometers(site.spacing, site.unit)

        def number() -> BlockPart:
            pieces = Pieces.join(measured, self.connectivity)
            values = pieces.values
            groups = values if self.by_class else (values != 0).astype(np.uint8)
            kept = kept_of(pieces, groups, lambda _: self, spacing_um)
            objects = np.where(kept[pieces.objects], pieces.objects, 0)
            ids = numbered(objects, pieces.measures["firsts"])
            return {"values": ids, "offsets": pieces.offsets}

        field = Decided.of(division, site.once("ids", number), measured)
        site.write("write", FieldFill(field, IDS_FORM))

    def _marks(self, site: Site) -> Marks:
        source = site.source("mask")
        if source.kind in VALUES:
            cut = MaskRule(number(self.threshold, 0.5), self.below)
            return Marks(source, site.box, cut)
        is_split = self.by_class or source.kind == IDS
        return Marks(source, site.box, None, is_mask=not is_split)
