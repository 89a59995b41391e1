"""The regular grids of patches that cover a volume, one axis at a time."""


def patch_origins(extent: int, patch: int, stride: int) -> tuple[int, ...]:
    """Origins, along one axis, of the patches that cover `extent` voxels.

    The last one is moved back to end with the volume; a short volume gets one patch, which the
    reader pads. The result is a function of the three numbers alone, so that any part of a volume
    is cut into the same patches as the whole.

    Raises:
        ValueError: `stride` is outside [1, patch].
    """
    if not 1 <= stride <= patch:
        raise ValueError(f"stride must lie in [1, patch], got stride={stride} with patch={patch}")
    last = max(extent - patch, 0)
    return (*range(0, last, stride), last)
