"""What lies outside of a mask becomes background."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from vcmodels.geometry.boxes import Box
from vcmodels.metrics.base import BlockPart
from vcmodels.postprocess.base import IDS, MASK, VALUES, Form, Role, Step
from vcmodels.postprocess.site import Site, Source
from vcmodels.postprocess.voxels import CLASSES, marked, same_form

MASKS = frozenset({MASK, CLASSES, IDS})


class CropStep(Step):
    """Ids, classes, masks or values, 0 outside of a mask."""

    name: Literal["crop"] = "crop"
    """What lies outside of a mask becomes 0; the rest stays as it is."""

    roles: ClassVar[Mapping[str, Role]] = {
        "values": Role(VALUES | MASKS),
        "mask": Role(MASKS),
    }

    def output_kind(self, kinds: Mapping[str, str]) -> str:
        return kinds["values"]

    def form(self, sources: Mapping[str, Source]) -> Form:
        source = sources["values"]
        if source.kind in (CLASSES, IDS):
            return same_form(source)
        return Form(source.kind, source.volume.dtype, source.encoding)

    def run(self, site: Site) -> None:
        """In one pass."""
        source, form = site.source("values"), self.form(site.sources)
        site.write("write", _Crop(source, marked(site.source("mask")), site.box, form))


@dataclass(frozen=True)
class _Crop:
    values: Source
    mask: Source
    within: Box
    form: Form

    def __call__(self, box: Box) -> tuple[np.ndarray, BlockPart]:
        nothing = np.full(box.shape, code_of_zero(self.form), self.form.dtype)
        inside = self.mask.read(box, self.within)[0] != 0
        if not inside.any():
            return nothing, {}
        return np.where(inside, self._read(box).astype(self.form.dtype, copy=False), nothing), {}

    def _read(self, box: Box) -> np.ndarray:
        """(Z, Y, X): classes, or what is stored."""
        if self.values.kind == CLASSES:
            return marked(self.values).read(box, self.within)[0]
        return self.values.volume.read(box, self.within)[0]


def code_of_zero(form: Form) -> int:
    """What stands for the value 0: value = stored * scale + offset; the nearest code there is."""
    scale, offset = form.encoding.get("scale", 1.0), form.encoding.get("offset", 0.0)
    if form.dtype.kind == "f" or not offset:
        return 0
    limits = np.iinfo(form.dtype)
    return int(np.clip(round(-offset / scale), limits.min, limits.max))
