"""Target kinds: one file each, and `AnyTarget`, the union that the task file is parsed into."""

from vcmodels.targets.affinities import AffinitiesTarget
from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.boundary import BoundaryTarget
from vcmodels.targets.centres import CentresTarget
from vcmodels.targets.distance import DistanceTarget
from vcmodels.targets.kinds import KINDS, AnyTarget
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.targets.normals import NormalsTarget
from vcmodels.targets.regression import RegressionTarget
from vcmodels.targets.vector import VectorTarget

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
