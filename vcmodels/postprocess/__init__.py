"""Post-processing: from predictions to masks and objects, out of core, exact for any blocks."""

from typing import Annotated

from pydantic import Field

from vcmodels.postprocess.agglomerate import AgglomerateStep
from vcmodels.postprocess.base import Form, LocalStep, Role, Step, kinds_of_outputs
from vcmodels.postprocess.close import CloseStep, OpenStep
from vcmodels.postprocess.components import ComponentsStep
from vcmodels.postprocess.crop import CropStep
from vcmodels.postprocess.follow import FollowStep
from vcmodels.postprocess.relabel import RelabelStep
from vcmodels.postprocess.site import Site, Source, StoppedError
from vcmodels.postprocess.sizes import SizesStep
from vcmodels.postprocess.smooth import SmoothStep
from vcmodels.postprocess.thin import ThinStep
from vcmodels.postprocess.threshold import ThresholdStep
from vcmodels.postprocess.watershed import WatershedStep

AnyStep = Annotated[
    ThresholdStep
    | ComponentsStep
    | SizesStep
    | WatershedStep
    | AgglomerateStep
    | FollowStep
    | ThinStep
    | SmoothStep
    | CloseStep
    | OpenStep
    | CropStep
    | RelabelStep,
    Field(discriminator="name"),
]

__all__ = [
    "AgglomerateStep",
    "AnyStep",
    "CloseStep",
    "ComponentsStep",
    "CropStep",
    "FollowStep",
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
    "WatershedStep",
    "kinds_of_outputs",
]
