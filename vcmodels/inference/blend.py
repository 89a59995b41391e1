"""Sums of weighted patches, kept only as long as a later patch can still change them.

Patches arrive in (z, y, x) order. All patches of one row (equal z and y origin) are summed in a row
buffer as large as one patch by the width of the column. When the row is done, its voxels that no
later row reaches are final and leave; those that the next row of the layer shares stay in the
buffer; those that only the next layer shares go to a carry as deep as the overlap along z. So the
memory is `overlap x height x width`, not `patch x height x width`.

Rows without a patch are passed over: what lies there is not wanted, or a patch would touch it.

Every voxel's float32 sum is formed in the one order of its patches on the global grid, with separate
multiplication and addition (a fused one rounds differently in the vector and in the tail part of
a loop), so that the bits do not depend on how the volume is divided.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import Index, PatchGrid, axis_weights

FinalVoxels = tuple[Box, Tensor]
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
        self.window = _Window(grid, device)

    def add(self, index: Index, values: Sequence[Tensor]) -> Iterator[FinalVoxels]:
        """Add one patch and give out what is final before it.

        Args:
            index: of the patch; later in (z, y, x) order than all before.
            values: the averageable values of each target, (A, *patch) float32.
        """
        row = index[0], index[1]
        if row != self.row:
            assert self.row is None or row > self.row, f"patch row {row} comes after {self.row}"
            yield from self.finish()
            self._open(row)
        weight = self.window(index)
        first = 0
        for part in values:
            torch.mul(part, weight, out=self.product[first : first + len(part)])
            first += len(part)
        origin = self.grid.origin(index)[2]
        start = max(origin, self.core.origin[2])
        end = min(origin + self.grid.patch[2], self.core.end[2])
        mine = slice(start - self.core.origin[2], end - self.core.origin[2])
        self.sums[..., mine].add_(self.product[..., start - origin : end - origin])

    def finish(self) -> Iterator[FinalVoxels]:
        """Close the row that is open; after the last patch, this gives out what is left."""
        if self.row is not None:
            yield from self._close(*self.row)

    def _open(self, row: tuple[int, int]) -> None:
        """Fill the row buffer with what the row and the layer before left at its voxels."""
        layer, line = row
        oz, oy = self.grid.origins[0][layer], self.grid.origins[1][line]
        height = self.grid.patch[1]
        kept = 0
        if self.row == (layer, line - 1):
            shift = oy - self.grid.origins[1][line - 1]
            kept = height - shift
            tail = self.sums[:, :, shift:]
            self.sums[:, :, :kept] = tail.clone() if kept > shift else tail
        self.sums[:, :, kept:] = 0
        self.row = row
        if layer == self.layers.start:
            return
        depth = self.grid.origins[0][layer - 1] + self.grid.patch[0] - oz
        start, end = max(oy + kept, self.core.origin[1]), min(oy + height, self.core.end[1])
        if depth > 0 and end > start:
            y0 = self.core.origin[1]
            self.sums[:, :depth, start - oy : end - oy] = self.carry[
                :, :depth, start - y0 : end - y0
            ]

    def _close(self, layer: int, line: int) -> Iterator[FinalVoxels]:
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


class _Window:
    """The weights of a patch; the last ones are kept, for the next patch often has the same."""

    def __init__(self, grid: PatchGrid, device: torch.device) -> None:
        self.axes, self.kinds = window_weights(grid, device)
        self.weight = torch.empty(grid.patch, device=device)
        self.kind: tuple[int, ...] = ()

    def __call__(self, index: Index) -> Tensor:
        """(Z, Y, X) float32, valid until the next call."""
        kind = tuple(kinds[i] for kinds, i in zip(self.kinds, index, strict=True))
        if kind != self.kind:
            z, y, x = (axis[i] for axis, i in zip(self.axes, index, strict=True))
            torch.mul(z[:, None, None], y[:, None] * x, out=self.weight)
            self.kind = kind
        return self.weight


@lru_cache(maxsize=4)
def window_weights(
    grid: PatchGrid, device: torch.device
) -> tuple[tuple[Tensor, ...], tuple[tuple[int, ...], ...]]:
    """Along (z, y, x): weights, (patches on the axis, patch) float32; and which of them are equal.

    Patches of one axis with the same weights have the same number in the second.
    """
    weights, kinds = [], []
    for origins, patch in zip(grid.origins, grid.patch, strict=True):
        axis = axis_weights(origins, patch, grid.window)
        first = {row.tobytes(): i for i, row in reversed(list(enumerate(axis)))}
        weights.append(torch.from_numpy(axis).to(device))
        kinds.append(tuple(first[row.tobytes()] for row in axis))
    return tuple(weights), tuple(kinds)
