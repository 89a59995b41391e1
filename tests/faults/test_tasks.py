"""10,000 mutated task files in full: each is read or refused in one line that names it."""

import copy
import json
import random
from pathlib import Path

import pytest

from vcmodels.config import load_task
from vcmodels.errors import TaskError

GOOD = json.loads((Path(__file__).parents[1] / "config" / "good.json").read_text())
ODD = [
    None, True, 0, -1, 10**30, 0.5, -0.0, "", " ", "auto", "../x", "a/b", "\x00", "nan", [], [[]],
    {}, {"a": 1}, [1, 2, 3], [None], "x" * 5000, {"": {}},
]  # fmt: skip


def places(value, path=()):
    """Every (block, key) below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield value, key
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def mutated(rng: random.Random) -> bytes:
    """The good task with one or two faults: in its values, its keys or its bytes."""
    task = copy.deepcopy(GOOD)
    for _ in range(rng.randint(1, 2)):
        block, key = rng.choice(list(places(task)))
        match rng.randrange(5):
            case 0:
                block[key] = copy.deepcopy(rng.choice(ODD))
            case 1:
                del block[key]
            case 2:  # a value from elsewhere
                other, name = rng.choice(list(places(task)))
                block[key] = copy.deepcopy(other[name])
            case 3 if isinstance(block, dict):
                block[rng.choice(["", "x", key + "_", key[::-1], key.upper()])] = block.pop(key)
            case _:
                pass
    text = json.dumps(task).encode()
    match rng.randrange(8):
        case 0:
            return text[: rng.randrange(len(text))]
        case 1:
            at = rng.randrange(len(text))
            return text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :]
        case 2:
            at = rng.randrange(len(text))
            return (
                text[:at]
                + rng.choice([b"NaN", b"1e999", b"[" * 3000, b'"', b"\xff", b"//"])
                + text[at:]
            )
        case _:
            return text


def refusal(file: Path) -> str | None:
    try:
        load_task(file)
    except TaskError as error:
        return str(error)
    return None


def test_a_mutated_task_is_read_or_refused_in_one_line(tmp_path, count):
    rng = random.Random(0)
    file = tmp_path / "task.json"
    refused = 0
    for number in range(count(10_000)):
        file.write_bytes(mutated(rng))
        if (message := refusal(file)) is not None:
            assert "\n" not in message, number
            assert len(message) < 900, (number, message)
            refused += 1
    assert list(tmp_path.iterdir()) == [file]
    assert refused > count(10_000) // 2


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"tr_params": 1}'])
def test_what_is_no_task_is_refused(tmp_path, text):
    file = tmp_path / "task.json"
    file.write_text(text)
    with pytest.raises(TaskError, match=r"^[^\n]+$"):
        load_task(file)
