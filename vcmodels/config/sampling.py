"""Blocks on which patches train: `dataset_config.sampling` and `tr_params.folds`."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

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
    hard: Fraction = 0.0
    """Share of all draws that prefers the patches whose last loss was high; `foreground`, `classes`
    and the weights of volumes hold among those, too."""
    label: str | None = None
    """The label whose values are meant; each volume's `ref_label` when null."""


class FoldConfig(Section):
    """A cross-validation, or one fold of it, in place of `tr_val_split`."""

    count: Annotated[int, Field(ge=2, le=100)] = 5
    """How many folds there are."""
    index: Annotated[int, Field(ge=0, le=99)] | None = None
    """The one fold that this run is: it validates on it, and trains on the others. When null, each
    fold is a run in a folder `fold_<index>` of `ckpt_out_base`."""
    by: Literal["volume", "group", "slab"] | None = None
    """Divide whole volumes (those of one `group` stay together), groups, or each volume into slabs
    with a guard band (`split_guard`) between, so that the folds hold about equally many labelled
    voxels. When null: whole ones if there are enough."""

    @model_validator(mode="after")
    def _check_index(self) -> Self:
        if self.index is not None and self.index >= self.count:
            raise ValueError(f"index must be below count {self.count}, got {self.index}")
        return self
