"""The block `wandb`, of a training and of an inference."""

from typing import Annotated, Literal

from pydantic import Field

from vcmodels.section import Section

WandbName = Annotated[str, Field(min_length=1, max_length=128)]


class WandbConfig(Section):
    """Send what TensorBoard shows to Weights & Biases, too; needs the package `wandb`."""

    project: WandbName
    """The project there; it is made if it is missing."""
    entity: WandbName | None = None
    """User or team that it belongs to; your default one when null."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes into the run folder, or next to the result, for `wandb sync` to send later."""
