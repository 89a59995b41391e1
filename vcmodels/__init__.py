"""vcmodels: multi-task 3D networks for huge, sparsely labelled Zarr volumes."""

import os

# Tensors from 2 MB on in huge pages, where Linux grants them: torch reads this at its first
# allocation. Faulting in the pages of its activations takes a fifth of a 128^3 forward pass on a CPU.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

__version__ = "0.1.0"
