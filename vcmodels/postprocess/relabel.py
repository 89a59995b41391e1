"""Ids without gaps."""

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np

from vcmodels.geometry.boxes import Spacing
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess.base import IDS, IDS_FORM, Form, Role, Step
from vcmodels.postprocess.lengths import require_package
from vcmodels.postprocess.numbering import numbered
from vcmodels.postprocess.pieces import Decided, EqualMarks, PieceMeasure, Pieces
from vcmodels.postprocess.site import Site, Source
from vcmodels.postprocess.sizing import by_size
from vcmodels.postprocess.voxels import FieldFill, Marks


class RelabelStep(Step):
    """The same objects with the ids 1, 2, 3, ..."""

    name: Literal["relabel"] = "relabel"
    """The same objects with the ids 1, 2, 3, ..."""
    by: Literal["place", "size"] = "place"
    """In which order: of their first voxels, x fastest and z slowest; or the largest first."""

    roles: ClassVar[Mapping[str, Role]] = {"ids": Role(frozenset({IDS}))}

    def output_kind(self, kinds: Mapping[str, str]) -> str:
        del kinds
        return IDS

    def form(self, sources: Mapping[str, Source]) -> Form:
        del sources
        return IDS_FORM

    def check(self, sources: Mapping[str, Source], spacing: Spacing, unit: str | None) -> None:
        """Refuse to begin without the library."""
        del sources, spacing, unit
        require_package("fastremap", self.name)

    def run(self, site: Site) -> None:
        """In two passes: objects are measured, then written."""
        division = EqualMarks(Marks(site.source("ids"), site.box, None), None)
        measured = site.measure("ids", PieceMeasure(division, site.box))

        def number() -> BlockPart:
            pieces = Pieces.join(measured, None)
            if self.by == "place":
                ids = numbered(pieces.objects, pieces.measures["firsts"])
                return {"values": ids, "offsets": pieces.offsets}
            ids = np.zeros(pieces.count + 1, np.uint64)
            order = by_size(pieces.voxels[1:], pieces.firsts[1:])
            ids[1:][order] = np.arange(1, len(order) + 1, dtype=np.uint64)
            return pieces.tables(ids)

        field = Decided.of(division, site.once("numbers", number), measured)
        site.write("write", FieldFill(field, IDS_FORM))
