"""Boxes, grids, windows and symmetries: NumPy only, no knowledge of storage or networks."""
