"""The networks. A new one is a file here and its section in `AnyModel`."""

from vcmodels.models.base import Model, NetworkSummary
from vcmodels.models.residual_unet import ResidualUNet

AnyModel = ResidualUNet
"""The `model_config` block of a task file; a union told apart by `name` once there are two."""

__all__ = ["AnyModel", "Model", "NetworkSummary", "ResidualUNet"]
