"""Hundreds of faults put into a good file: each is refused, by its key, with nothing else raised."""

import copy
import json
import random

import pytest

from vcmodels.config import load_task
from vcmodels.errors import TaskError


def leaves(value, path=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, (*path, index))
    else:
        yield path, value


def keys(value, path=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            yield from keys(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from keys(inner, (*path, index))


def parent(task, path):
    for part in path[:-1]:
        task = task[part]
    return task


def wrong_values(value):
    """Values of another type or far out of range."""
    always = [{"a": {}}, [[[]]], float("nan"), float("inf"), 10**30]
    if isinstance(value, bool):
        return [*always, str(value), 2.5, -7]
    if isinstance(value, int | float):
        return [*always, str(value), -(10**13), "", "False"]
    return [*always, 3.5]


def is_legal(path, value):
    """The one mutation that a person could have meant: any integer is a label."""
    return "ignore_label" in path and value == -(10**13)


def named(path):
    """The part of the path that a message must hold: its last key."""
    return str([part for part in path if isinstance(part, str)][-1])


@pytest.fixture
def refused(tmp_path):
    path = tmp_path / "task.json"

    def check(text, key):
        path.write_text(text)
        with pytest.raises(TaskError, match=r"^[^\n]*$") as caught:
            pytest.fail(f"accepted {key}: {load_task(path).task!r}"[:200])
        assert key in str(caught.value), (key, str(caught.value))
        assert len(str(caught.value)) < 900

    return check


def test_every_leaf_of_a_wrong_type_or_range_is_named(good, refused):
    for path, value in leaves(good):
        for wrong in wrong_values(value):
            if is_legal(path, wrong):
                continue
            task = copy.deepcopy(good)
            parent(task, path)[path[-1]] = wrong
            refused(json.dumps(task), named(path))


def misspellings(key, rng):
    index = rng.randrange(len(key))
    other = rng.randrange(len(key))
    swapped = list(key)
    swapped[index], swapped[other] = swapped[other], swapped[index]
    yield key + "x"
    yield key[:index] + key[index + 1 :] or "q"
    yield "".join(swapped)
    yield key.upper()


def test_every_misspelt_key_is_named_as_it_was_written(good, refused):
    rng = random.Random(0)
    for path in keys(good):
        if path[:-1] == ("dataset_config", "targets"):
            continue  # a name that is free to choose; the volumes then have a label too many
        if path[:-1] == ("tr_params", "ignore_label"):
            expected = "ignore_label"
        else:
            expected = None
        for typo in misspellings(path[-1], rng):
            if typo in parent(good, path):
                continue
            task = copy.deepcopy(good)
            block = parent(task, path)
            block[typo] = block.pop(path[-1])
            refused(json.dumps(task), expected or typo)


def test_every_duplicate_key_is_named(good, refused):
    text = json.dumps(good, indent=1)
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if line.strip().startswith('"') and '":' in line:
            key = line.split('"')[1]
            doubled = [*lines[:number], f'"{key}": 1,', *lines[number:]]
            refused(
                "\n".join(doubled), f"{key}: stands twice, in lines {number + 1} and {number + 2}"
            )


REQUIRED = [
    ("tr_params",), ("tr_params", "model_name"), ("dataset_config",),
    ("dataset_config", "volume_paths"), ("dataset_config", "targets"),
    ("dataset_config", "volume_paths", 0, "input"),
]  # fmt: skip


@pytest.mark.parametrize("path", REQUIRED, ids=lambda path: ".".join(map(str, path)))
@pytest.mark.parametrize("is_null", [False, True])
def test_every_required_key_is_named_when_it_is_gone(good, refused, path, is_null):
    block = parent(good, path)
    if is_null:
        block[path[-1]] = None
    else:
        del block[path[-1]]
    refused(json.dumps(good), path[-1])


def test_every_optional_key_may_be_left_out(good, tmp_path):
    file = tmp_path / "task.json"
    for path in keys(good):
        is_target = path[:-1] == ("dataset_config", "targets") or path[-1] in ("sheet", "normals")
        if path in REQUIRED or is_target or path[-1] in ("input", "attribute", "name"):
            continue
        task = copy.deepcopy(good)
        del parent(task, path)[path[-1]]
        file.write_text(json.dumps(task))
        load_task(file)
