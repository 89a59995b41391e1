import json
import re
from pathlib import Path

import pytest

from vcmodels.config import load_task, task_schema
from vcmodels.config.schema import loss_page, task_page

ROOT = Path(__file__).parents[2]


def test_the_documentation_is_current():
    page = (ROOT / "docs" / "task-file.md").read_text(encoding="utf-8")
    assert page == task_page(task_schema()), "run: vcmodels schema --markdown > docs/task-file.md"


def test_the_page_of_losses_is_current():
    page = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    assert page == loss_page(), "run: vcmodels schema --losses > docs/losses.md"


def test_every_key_is_documented():
    page = task_page(task_schema())
    assert "|  |\n" not in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 100
    assert all(re.search(r"\| .{4,} \|$", row) for row in rows)


@pytest.mark.parametrize("path", sorted((ROOT / "tasks").glob("*.json")), ids=lambda p: p.name)
def test_the_tasks_that_come_along_are_valid(path):
    loaded = load_task(path)
    assert loaded.notes == []
    assert loaded.task.inference_params.output_dir


def keys_of(value, schema, root, path=""):
    """Check that a value has only keys that the schema knows; a small validator of its own."""
    if "$ref" in schema:
        return keys_of(value, root["$defs"][schema["$ref"].split("/")[-1]], root, path)
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return any(keys_of(value, option, root, path) for option in options)
    if isinstance(value, dict) and schema.get("type") == "object":
        known, extra = schema.get("properties", {}), schema.get("additionalProperties")
        return all(
            keys_of(inner, known.get(key, extra), root, f"{path}.{key}")
            for key, inner in value.items()
            if not any(re.search(p, key) for p in schema.get("patternProperties", {}))
            and (key in known or extra not in (None, False) or pytest.fail(f"{path}.{key}"))
        )
    if "const" in schema or "enum" in schema:
        return value in schema.get("enum", [schema.get("const")])
    types = {"object": dict, "array": list, "string": str, "null": type(None), "boolean": bool}
    numbers = {"integer": int, "number": (int, float)}
    return isinstance(value, {**types, **numbers}.get(schema.get("type"), object))


def test_the_schema_takes_what_the_loader_takes(good, original):
    schema = task_schema()
    good["_comment"] = good["tr_params"]["_comment"] = "text"
    good["$schema"] = "x"
    assert keys_of(good, schema, schema)
    good["dataset_config"]["normalization"] = "ct_normalization"
    good["targets"] = good["dataset_config"].pop("targets")
    assert keys_of(good, schema, schema)


def test_the_schema_is_json_and_every_call_gives_its_own():
    first = task_schema()
    json.dumps(first, allow_nan=False)
    first["properties"].clear()
    assert task_schema()["properties"]
