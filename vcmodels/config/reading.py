"""From the bytes of a task file to plain values, refusing all that is ambiguous.

The standard reader keeps the last of two equal keys, takes NaN, and gives up on deep nesting with a
RecursionError; a task file must do none of that quietly.
"""

from pathlib import Path
from typing import Any, cast

from vcmodels.config.json_text import parse_json
from vcmodels.config.yaml_text import parse_yaml
from vcmodels.errors import TaskError

MAX_BYTES = 16 * 2**20
MAX_YAML_BYTES = 2**20  # PyYAML reads a few hundred kB a second


def read_task_file(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or in a YAML one if its name ends in `.yaml` or `.yml`.

    Raises:
        TaskError: the file cannot be read or is no such object; the message has line and column.
    """
    is_yaml = path.suffix.lower() in (".yaml", ".yml")
    text = _decode(_read_bytes(path, MAX_YAML_BYTES if is_yaml else MAX_BYTES), path)
    if not text.strip():
        raise TaskError(str(path), "the file is empty", "write a task into it")
    value = parse_yaml(text, str(path)) if is_yaml else parse_json(text, str(path))
    if not isinstance(value, dict):
        raise TaskError(
            str(path), "this is no object", "put the sections of the task between { and }"
        )
    return cast(dict[str, Any], value)


def _read_bytes(path: Path, most: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(most + 1)
    except FileNotFoundError as error:
        raise TaskError(str(path), "no such file", "check the path of the task file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = error.strerror if isinstance(error, OSError) else error
        raise TaskError(str(path), f"cannot be read ({reason})", "check its permissions") from error
    if len(content) > most:
        raise TaskError(
            str(path), f"is larger than {most // 2**20} MiB", "name a task file, not a data file"
        )
    return content


def _decode(content: bytes, path: Path) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in content[:64]:
        raise TaskError(str(path), "is not UTF-8 (it looks like UTF-16)", "save it as UTF-8")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        found = f"byte 0x{content[error.start]:02x} in line {line} is not UTF-8"
        raise TaskError(str(path), found, "save the file as UTF-8") from error
