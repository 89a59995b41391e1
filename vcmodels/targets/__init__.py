"""Target kinds: one file each, and `AnyTarget`, the union that the task file is parsed into."""

from vcmodels.targets.binary import BinaryTarget
from vcmodels.targets.kind import infer_kind
from vcmodels.targets.multiclass import MulticlassTarget
from vcmodels.targets.normals import NormalsTarget
from vcmodels.targets.regression import RegressionTarget
from vcmodels.targets.union import KINDS, AnyTarget

__all__ = [
    "KINDS",
    "AnyTarget",
    "BinaryTarget",
    "MulticlassTarget",
    "NormalsTarget",
    "RegressionTarget",
    "infer_kind",
]
