"""YAML under the same strict rules as JSON."""

# PyYAML has hardly any types.
# pyright: standard

import re

import yaml

from vcmodels.config.json_text import repeated
from vcmodels.config.messages import KeyPath
from vcmodels.config.plain import MAX_DEPTH, BadNumber, integer, real
from vcmodels.errors import TaskError

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_SCALARS = (
    ("null", r"null|~|", "n~"),
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?\d+", "-+0123456789"),
    ("float", _NUMBER, "-+.0123456789"),
    ("float", r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+."),
)
"""Tag, pattern and first characters of the scalars that are not text."""


class _Composer(yaml.SafeLoader):
    """Tells scalars apart as JSON does: `1e-3` is a number, `off` and dates are text.

    YAML 1.1, which PyYAML follows, reads `1e-3` as text and `off` as false.
    """

    yaml_implicit_resolvers = {}  # noqa: RUF012 -- that is how PyYAML keeps them


for _tag, _pattern, _first in _SCALARS:
    # "" is where PyYAML looks for the resolvers of an empty scalar.
    _Composer.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, ""]
    )


def parse_yaml(text: str, source: str) -> object:
    """Parse one YAML document under the same rules as `parse_json`; tags run no code.

    Raises:
        TaskError: it is not YAML, nested too deeply, or a key stands twice in one mapping.
    """
    try:
        node = yaml.compose(text, _Composer)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise TaskError(source, f"{place}{error.problem}", "correct the YAML there") from error
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise TaskError(source, f"not YAML: {reason}", "correct the YAML there") from error
    except RecursionError as error:
        raise TaskError(source, "nested too deeply", "no key of a task needs that") from error
    return None if node is None else _Plain(source).value(node, ())


class _Plain:
    """Turns the nodes of a document into plain values."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.seen: set[int] = set()

    def value(self, node: yaml.Node, path: KeyPath) -> object:
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node)
        if id(node) in self.seen:  # each may hold others: ten lines can spell billions of values
            raise self._error(node, "an alias (*name) for a list or an object", "write it out")
        self.seen.add(id(node))
        if len(path) > MAX_DEPTH:
            raise self._error(
                node, f"nested deeper than {MAX_DEPTH}", "no key of a task needs that"
            )
        self._check_tag(node, ("map", "seq"))
        if isinstance(node, yaml.SequenceNode):
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._mapping(node, path)

    def _mapping(self, node: yaml.Node, path: KeyPath) -> dict[str, object]:
        result: dict[str, object] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key = self.value(key_node, path)
            line = key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise self._error(key_node, "a key that is not text", "put it in quotes")
            if key in lines:
                raise repeated((*path, key), lines[key], line)
            lines[key] = line
            result[key] = self.value(value_node, (*path, key))
        return result

    def _scalar(self, node: yaml.ScalarNode) -> object:
        self._check_tag(node, ("str", "null", "bool", "int", "float"))
        tag, text = node.tag.rpartition(":")[2], str(node.value)
        if tag == "int":
            return integer(text) if re.fullmatch(r"[-+]?\d+", text) else BadNumber(text)
        if tag == "float":
            return real(text) if re.fullmatch(_NUMBER, text) else BadNumber(text)
        return {"str": text, "null": None, "bool": text == "true"}[tag]

    def _check_tag(self, node: yaml.Node, known: tuple[str, ...]) -> None:
        if node.tag not in [f"tag:yaml.org,2002:{tag}" for tag in known]:
            raise self._error(node, f"the tag {node.tag} is not taken", "remove it")

    def _error(self, node: yaml.Node, found: str, remedy: str) -> TaskError:
        return TaskError(self.source, f"line {node.start_mark.line + 1}: {found}", remedy)
