"""The checks, in the order of their findings; a new one is a file and a line here."""

from vcmodels.audit import (
    duplicates,
    images,
    intensities,
    labels,
    layout,
    opening,
    shift,
    spacing,
    stored,
)
from vcmodels.audit.base import Check

CHECKS: tuple[Check, ...] = (
    opening.CHECK,
    spacing.CHECK,
    layout.CHECK,
    stored.CHECK,
    images.CHECK,
    intensities.CHECK,
    labels.CHECK,
    shift.CHECK,
    duplicates.CHECK,
)
