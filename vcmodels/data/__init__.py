"""Volumes, patches, splits, normalisation and samples: what a network is fed with."""
