"""Metrics as sums that add over patches, blocks and ranks, and the figures made of them."""
