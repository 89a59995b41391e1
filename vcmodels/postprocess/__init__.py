"""Post-processing: from predictions to masks and objects, out of core, exact for any blocks."""

from typing import Annotated

from pydantic import Field

from vcmodels.postprocess.base import Form, LocalStep, Role, Step, kinds_of_outputs
from vcmodels.postprocess.close import CloseStep, OpenStep
from vcmodels.postprocess.components import ComponentsStep
from vcmodels.postprocess.crop import CropStep
from vcmodels.postprocess.relabel import RelabelStep
from vcmodels.postprocess.site import Site, Source, StoppedError
from vcmodels.postprocess.sizes import SizesStep
from vcmodels.postprocess.smooth import SmoothStep
from vcmodels.postprocess.thin import ThinStep
from vcmodels.postprocess.threshold import ThresholdStep

AnyStep = Annotated[
    CloseStep
    | ComponentsStep
    | CropStep
    | OpenStep
    | RelabelStep
    | SizesStep
    | SmoothStep
    | ThinStep
    | ThresholdStep,
    Field(discriminator="name"),
]

__all__ = [
    "AnyStep",
    "CloseStep",
    "ComponentsStep",
    "CropStep",
    "Form",
    "LocalStep",
    "OpenStep",
    "RelabelStep",
    "Role",
    "Site",
    "SizesStep",
    "SmoothStep",
    "Source",
    "Step",
    "StoppedError",
    "ThinStep",
    "ThresholdStep",
    "kinds_of_outputs",
]
