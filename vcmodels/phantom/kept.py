"""Whether what lies at a path is the phantom that is asked for."""

from collections.abc import Mapping
from typing import Any

from vcmodels.errors import OutputError
from vcmodels.volumes.nodes import read_node


def require_about(path: str, wanted: Mapping[str, Any], name: str) -> None:
    """Refuse what is at a path unless its group says these attributes.

    Args:
        path: a store.
        wanted: `phantom`, its kind, and what determined it.
        name: of the kind, in words.

    Raises:
        OutputError: it is another phantom, or none.
    """
    node, remedy = read_node(path, path), "remove it, or name another store"
    there = {} if node is None else node.attributes
    if there.get("phantom") != wanted["phantom"]:
        raise OutputError(path, f"is there already and is no phantom of {name}", remedy)
    for key, value in wanted.items():
        if there.get(key) != value:
            raise OutputError(path, f"is a phantom of {key} {there.get(key)}, not {value}", remedy)
