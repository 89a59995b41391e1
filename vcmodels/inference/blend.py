"""Sums of weighted patches, kept only as long as a later patch can still change them.

Patches arrive in (z, y, x) order. All patches of one row (equal z and y origin) are summed in a row
buffer as large as one patch by the width of the column. When the row is done, its voxels that no
later row reaches are final and leave; those that the next row of the layer shares stay in the
buffer; those that only the next layer shares go to a carry as deep as the overlap along z. So the
memory is `overlap x height x width`, not `patch x height x width`.

Every voxel's float32 sum is formed in the one order of its patches on the global grid, with separate
multiplication and addition (a fused one rounds differently in the vector and in the tail part of
a loop), so that the bits do not depend on how the volume is divided.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache

import torch
from torch import Tensor

from vcmodels.geometry.blocks import Index, PatchGrid
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.windows import axis_weights

Finished = tuple[Box, Tensor]
"""Voxels that no later patch reaches: where they lie, and (A, z, y, x) float32 averages."""


class Blender:
    """Averages the patches that touch `core`, a part of the volume that is done as a whole.

    Args:
        grid: the global grid.
        core: the voxels to predict; patches may stick out, what does is dropped.
        channels: how many channels are averaged, all targets together.
        device: where the sums are kept.
    """

    def __init__(self, grid: PatchGrid, core: Box, channels: int, device: torch.device) -> None:
        self.grid, self.core = grid, core
        self.layers, self.rows, _ = grid.touching(core)
        self.row: tuple[int, int] | None = None
        _, height, width = core.shape
        carried = (channels, grid.most_shared(0), height, width)
        self.carry = torch.zeros(carried, device=device)
        self.sums = torch.zeros((channels, *grid.patch[:2], width), device=device)
        self.product = torch.empty((channels, *grid.patch), device=device)
        self.weights = window_weights(grid, device)

    def add(self, index: Index, patch: Mapping[str, Tensor]) -> Iterator[Finished]:
        """Add one patch and give out what is final before it.

        Args:
            index: of the patch; later in (z, y, x) order than all before.
            patch: the averageable values by target, each (A, *patch) float32; targets stay in order.
        """
        yield from self._advance((index[0], index[1]))
        first = 0
        weight = self._weight(index)
        for values in patch.values():
            torch.mul(values, weight, out=self.product[first : first + len(values)])
            first += len(values)
        origin = self.grid.origin(index)[2]
        start, end = (
            max(origin, self.core.origin[2]),
            min(origin + self.grid.patch[2], self.core.end[2]),
        )
        mine = slice(start - self.core.origin[2], end - self.core.origin[2])
        self.sums[..., mine] += self.product[..., start - origin : end - origin]

    def finish(self) -> Iterator[Finished]:
        """Give out all that is left; the blender cannot be used again."""
        yield from self._advance(None)

    def _advance(self, row: tuple[int, int] | None) -> Iterator[Finished]:
        """Close rows up to `row`, the one that the next patch belongs to (None: all)."""
        while self.row != row:
            if self.row is not None:
                yield from self._close(*self.row)
            following = self._following(self.row)
            if following is None:
                assert row is None, f"patch row {row} comes after the end, or out of order"
                return
            self._open(*following)
            self.row = following

    def _following(self, row: tuple[int, int] | None) -> tuple[int, int] | None:
        if row is None:
            return self.layers.start, self.rows.start
        layer, line = row
        if line + 1 < self.rows.stop:
            return layer, line + 1
        return (layer + 1, self.rows.start) if layer + 1 < self.layers.stop else None

    def _weight(self, index: Index) -> Tensor:
        z, y, x = (axis[i] for axis, i in zip(self.weights, index, strict=True))
        return z[:, None, None] * (y[:, None] * x)

    def _open(self, layer: int, line: int) -> None:
        """Fill the row buffer with what earlier rows and layers left at its voxels."""
        oz, oy = self.grid.origins[0][layer], self.grid.origins[1][line]
        height = self.grid.patch[1]
        kept = 0
        if line > self.rows.start:
            shift = oy - self.grid.origins[1][line - 1]
            kept = height - shift
            tail = self.sums[:, :, shift:]
            self.sums[:, :, :kept] = tail.clone() if kept > shift else tail
        self.sums[:, :, kept:] = 0
        if layer == self.layers.start:
            return
        depth = self.grid.origins[0][layer - 1] + self.grid.patch[0] - oz
        start, end = max(oy + kept, self.core.origin[1]), min(oy + height, self.core.end[1])
        if depth > 0 and end > start:
            y0 = self.core.origin[1]
            self.sums[:, :depth, start - oy : end - oy] = self.carry[
                :, :depth, start - y0 : end - y0
            ]

    def _close(self, layer: int, line: int) -> Iterator[Finished]:
        """Give out the row's final voxels and carry those that the next layer shares."""
        oz, oy = self.grid.origins[0][layer], self.grid.origins[1][line]
        start = max(oy, self.core.origin[1])
        end = self._next_origin(1, line, self.rows)
        final = self._next_origin(0, layer, self.layers)
        if end <= start:
            return
        mine = self.sums[:, :, start - oy : end - oy]
        shared = mine[:, final - oz :]
        if layer + 1 < self.layers.stop and shared.shape[1]:
            y0 = self.core.origin[1]
            self.carry[:, : shared.shape[1], start - y0 : end - y0] = shared
        top = max(oz, self.core.origin[0])
        if final > top:
            box = Box.between((top, start, self.core.origin[2]), (final, end, self.core.end[2]))
            yield box, mine[:, top - oz : final - oz].clone()

    def _next_origin(self, axis: int, index: int, used: range) -> int:
        """Where the next patch along an axis begins; the end of the core after the last."""
        if index + 1 < used.stop:
            return min(self.grid.origins[axis][index + 1], self.core.end[axis])
        return self.core.end[axis]


@lru_cache(maxsize=4)
def window_weights(grid: PatchGrid, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Weights along (z, y, x): (patches on the axis, patch) float32 each."""
    z, y, x = (
        torch.from_numpy(axis_weights(origins, patch)).to(device)
        for origins, patch in zip(grid.origins, grid.patch, strict=True)
    )
    return z, y, x
