"""A region as a volume of 0 and 1, which is computed where it is read."""

import hashlib
import json
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np

from vcmodels.geometry.boxes import Box
from vcmodels.regions.base import Region
from vcmodels.volumes import Volume
from vcmodels.volumes.listing import Listing


@dataclass(frozen=True)
class RegionMask(Volume):
    """1 in a region of a volume, on its grid."""

    region: Region = field(kw_only=True)

    @classmethod
    def of(cls, region: Region, image: Volume) -> "RegionMask":
        """The mask of a region.

        Args:
            region: on the grid of the image.
            image: whose grid and place it takes.
        """
        given = {f.name: getattr(image, f.name) for f in fields(Volume)}
        changed = {"channels": 1, "dtype": np.dtype(np.uint8), "fill_value": 0.0}
        return cls(**given | changed, region=region)

    @cached_property
    def listing(self) -> Listing | None:
        """None: there is no store to list."""
        return None

    def fingerprint(self) -> str:
        """A sha256 of the region."""
        parts = [self.extent, self.region.to_json() | {"source": None}]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def _read_inside(self, box: Box) -> np.ndarray[Any, Any]:
        return self.region.mask(box)[None].astype(np.uint8)
