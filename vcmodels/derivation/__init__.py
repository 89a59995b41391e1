"""Labels that follow from other labels, written out for whole volumes."""

from vcmodels.derivation.labels import derive

__all__ = ["derive"]
