"""Post-processing: from predictions to masks and objects, out of core, exact for any blocks."""

from typing import Annotated

from pydantic import Field

from vcmodels.postprocess.agglomerate import AgglomerateStep
from vcmodels.postprocess.base import Form, LocalStep, Role, Step, kinds_of_outputs
from vcmodels.postprocess.components import Components
from vcmodels.postprocess.site import Site, Source, StoppedError
from vcmodels.postprocess.watershed import WatershedStep

AnyStep = Annotated[Components | WatershedStep | AgglomerateStep, Field(discriminator="name")]

__all__ = [
    "AgglomerateStep",
    "AnyStep",
    "Components",
    "Form",
    "LocalStep",
    "Role",
    "Site",
    "Source",
    "Step",
    "StoppedError",
    "WatershedStep",
    "kinds_of_outputs",
]
