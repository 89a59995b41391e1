"""Target kinds: one file each, and `AnyTarget`, the union that the task file is parsed into."""

from typing import Annotated

from pydantic import Field

from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.kind import infer_kind
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.targets.normals import NormalsTarget
from vcmodels.targets.regression import RegressionTarget

AnyTarget = Annotated[
    BinaryTarget | MulticlassTarget | RegressionTarget | NormalsTarget,
    Field(discriminator="kind"),
]

__all__ = [
    "AnyTarget",
    "BinaryTarget",
    "MulticlassTarget",
    "NormalsTarget",
    "RegressionTarget",
    "infer_kind",
]
