"""What a network can predict: one kind of target a file, their union, and the kinds by name."""

from collections.abc import Mapping
from typing import Annotated, get_args

from pydantic import Field

from vcmodels.targets.affinities import AffinitiesTarget
from vcmodels.targets.base import Target
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.boundary import BoundaryTarget
from vcmodels.targets.centres import CentresTarget
from vcmodels.targets.distance import DistanceTarget
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.targets.normals import NormalsTarget
from vcmodels.targets.regression import RegressionTarget
from vcmodels.targets.vector import VectorTarget

AnyTarget = Annotated[
    BinaryTarget
    | MulticlassTarget
    | RegressionTarget
    | NormalsTarget
    | VectorTarget
    | CentresTarget
    | DistanceTarget
    | BoundaryTarget
    | AffinitiesTarget,
    Field(discriminator="kind"),
]

KINDS: Mapping[str, type[Target]] = {
    kind.model_fields["kind"].default: kind for kind in get_args(get_args(AnyTarget)[0])
}

__all__ = [
    "KINDS",
    "AffinitiesTarget",
    "AnyTarget",
    "BinaryTarget",
    "BoundaryTarget",
    "CentresTarget",
    "DistanceTarget",
    "MulticlassTarget",
    "NormalsTarget",
    "RegressionTarget",
    "VectorTarget",
]
