"""The command `region`."""

import typer

from vcmodels.cli.arguments import Debug, Overrides, TaskFile, load
from vcmodels.cli.console import Console, narrow_table, write_table
from vcmodels.errors import RefusedError


def region(
    context: typer.Context, task: TaskFile, set_: Overrides = None, debug: Debug = False
) -> None:
    """Find the region of every volume of a task, and say where each is and what found it."""
    from vcmodels.workflows.cascade import find_regions

    console = Console()
    context.obj.begin()
    loaded = load(task, set_, console)
    if loaded.dataset_config.region is None:
        raise RefusedError("dataset_config.region", "is not set", "see docs/cascade.md")
    table = narrow_table("volume", "from", "box [z, y, x]", "line, mm")
    for name, found in find_regions(loaded, console).items():
        box = "x".join(f"[{a}, {b}]" for a, b in zip(found.box.origin, found.box.end, strict=True))
        length = f"{found.tube.line.length:.0f}" if found.tube else ""
        table.add_row(name, found.source, box, length)
    write_table(table, console)
