"""The JSON Schema of the task file; `python -m vcmodels.config.schema` prints it as markdown."""

import copy
import functools
import sys
from typing import Any, get_args

from vcmodels.config.markdown import document
from vcmodels.config.task import Scheme, Task

_LABEL = {
    "type": "string",
    "minLength": 1,
    "maxLength": 4096,
    "description": "Under the name of a target: its label array. A volume may lack some targets.",
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
    schema["required"] = ["tr_params"]
    for section in (schema, *definitions.values()):
        if section.get("additionalProperties") is False:
            section["patternProperties"] = {"^_comment": {}}
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "vcmodels task"
    return schema


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


if __name__ == "__main__":
    sys.stdout.write(document(task_schema()))
