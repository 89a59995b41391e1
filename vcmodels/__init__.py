"""vcmodels: multi-task 3D networks for huge, sparsely labelled Zarr volumes."""

__version__ = "0.1.0"
