"""Labels that follow from other labels, written out for whole volumes."""

from vcmodels.derivation.run import derive

__all__ = ["derive"]
