"""Post-processing: from predictions to masks and objects, out of core, exact for any blocks."""

from typing import Annotated

from pydantic import Field

from vcmodels.postprocess.base import Form, LocalStep, Role, Step, kinds_of_outputs
from vcmodels.postprocess.components import Components
from vcmodels.postprocess.site import Site, Source, StoppedError

AnyStep = Annotated[Components, Field(discriminator="name")]

__all__ = [
    "AnyStep",
    "Components",
    "Form",
    "LocalStep",
    "Role",
    "Site",
    "Source",
    "Step",
    "StoppedError",
    "kinds_of_outputs",
]
