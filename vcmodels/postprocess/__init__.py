"""Post-processing: from predictions to masks and objects, out of core, exact for any blocks."""

from typing import Annotated

from pydantic import Field

from vcmodels.postprocess.base import Form, LocalStep, Role, Step
from vcmodels.postprocess.components import ComponentsStep
from vcmodels.postprocess.site import Site, Source, StoppedError

AnyStep = Annotated[ComponentsStep, Field(discriminator="name")]

__all__ = [
    "AnyStep",
    "ComponentsStep",
    "Form",
    "LocalStep",
    "Role",
    "Site",
    "Source",
    "Step",
    "StoppedError",
]
