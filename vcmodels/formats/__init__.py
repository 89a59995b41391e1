"""Extension point: files that are no Zarr, one file a format. Everything reads Zarr; these become one first."""
