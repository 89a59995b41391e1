"""The networks. A new one is a class with a `name` and `build`, and an entry of `MODELS`."""

import json
from typing import Annotated

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, SchemaValidator, core_schema

from vcmodels.models.base import Model, NetworkSummary
from vcmodels.models.medpatchnet import MedPatchNet
from vcmodels.models.monai import (
    UNETR,
    AttentionUNet,
    DynUNet,
    MedNeXt,
    MonaiNetwork,
    SegResNet,
    SwinUNETR,
    UNetEncoder,
    VNet,
)
from vcmodels.models.nnunet import NnUNet
from vcmodels.models.unet import PlainUNet, ResidualUNet

MODELS: dict[str, type[Model]] = {
    "residual_unet": ResidualUNet,
    "plain_unet": PlainUNet,
    "medpatchnet": MedPatchNet,
    "segresnet": SegResNet,
    "dynunet": DynUNet,
    "vnet": VNet,
    "attention_unet": AttentionUNet,
    "swin_unetr": SwinUNETR,
    "unetr": UNETR,
    "mednext": MedNeXt,
    "unet_encoder": UNetEncoder,
    "monai_network": MonaiNetwork,
    "nnunet": NnUNet,
}
"""By the `name` in `model_config`. An entry that is added from outside the package,
`MODELS["my_net"] = MyNet`, is a network like the others from then on."""
DEFAULT_MODEL = "residual_unet"
"""Where a task names none."""


class _ByName:
    """Reads a `model_config` block as the class that has its `name` in `MODELS`, whatever is there.

    A union of pydantic's own is fixed when the task's class is made.
    """

    def __get_pydantic_core_schema__(
        self, _source: type[Model], _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.with_info_plain_validator_function(_read)

    def __get_pydantic_json_schema__(
        self, _schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        return handler(_union())


AnyModel = Annotated[Model, _ByName()]
"""The `model_config` block of a task file: one of `MODELS`, told apart by `name`."""


def _read(block: object, info: ValidationInfo) -> Model:
    union = SchemaValidator(_union())
    if info.mode == "json":  # where a list stands for a tuple, which `block` no longer says
        return union.validate_json(json.dumps(block))
    return union.validate_python(block)


def _union() -> CoreSchema:
    members = {name: model.__pydantic_core_schema__ for name, model in MODELS.items()}
    return core_schema.tagged_union_schema(members, "name")


__all__ = [
    "DEFAULT_MODEL",
    "MODELS",
    "AnyModel",
    "MedPatchNet",
    "Model",
    "NetworkSummary",
    "NnUNet",
    "PlainUNet",
    "ResidualUNet",
]
