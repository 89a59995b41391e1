"""`dataset_config.sampling`: which patches of the list are drawn how often."""

from typing import Annotated, Literal

from pydantic import Field

from vcmodels.section import Fraction, Section

ClassWeight = Annotated[float, Field(ge=0, le=1e6)]


class SamplingConfig(Section):
    """How often a training draws which patches; every patch of a volume equally when left out."""

    foreground: Fraction = 0.33
    """Share of the draws that are made for what they hold, with `classes`, or any label; the others
    take every patch of the list alike."""
    classes: Literal["balanced"] | dict[str, ClassWeight] | None = None
    """How those draws divide among the labelled values: `balanced`, or as {value: weight}. A patch
    is drawn for a value in proportion to its voxels of it."""
    label: str | None = None
    """The label whose values are meant; each volume's `ref_label` when null."""
