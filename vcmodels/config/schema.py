"""The JSON Schema of the task file."""

import copy
import functools
from typing import Any, get_args

from vcmodels.augment import Augmentation
from vcmodels.config.task import Scheme, Task

_LABEL = {
    "type": "string",
    "minLength": 1,
    "maxLength": 4096,
    "description": "Under the name of a target: its label array. A volume may lack some targets. "
    "Under a name that a target has as `derive`: what that one is computed from.",
}


def task_schema() -> dict[str, Any]:
    """The schema that `vcmodels schema` prints and that editors complete from."""
    return copy.deepcopy(_schema())


@functools.cache
def _schema() -> dict[str, Any]:
    schema = Task.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    volume, dataset = definitions["VolumeEntry"], definitions["DatasetConfig"]
    del volume["properties"]["labels"]
    volume["additionalProperties"] = _LABEL
    normalization = dataset["properties"]["normalization"]
    by_name = {"enum": [*get_args(Scheme), "ct_normalization"], "type": "string"}
    normalization["anyOf"] = [by_name, {"$ref": normalization.pop("$ref")}]
    normalization["default"] = "zscore"
    _accept_names(schema)
    _describe_inherited(definitions)
    schema["required"] = ["tr_params"]
    for section in (schema, *definitions.values()):
        if section.get("additionalProperties") is False:
            section["patternProperties"] = {"^_comment": {}}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "vcmodels task"
    return schema


def _describe_inherited(definitions: dict[str, Any]) -> None:
    """A member that only changes the default of a key of its base loses the text beside it."""
    texts = {"p": Augmentation.model_fields["p"].description, "name": "Which one it is."}
    for section in definitions.values():
        for key, value in section.get("properties", {}).items():
            if key in texts:
                value.setdefault("description", texts[key])


def _accept_names(schema: dict[str, Any]) -> None:
    """What the file may hold at its top level beside the sections."""
    dataset = schema["$defs"]["DatasetConfig"]
    inside = {key: dataset["properties"][key] for key in ("volume_paths", "targets")}
    for key, value in inside.items():
        also = f"The same as dataset_config.{key}."
        schema["properties"][key] = {**value, "description": also}
    del dataset["required"]
    schema["properties"]["$schema"] = {
        "type": "string",
        "description": "Where an editor finds this schema; not read.",
    }
