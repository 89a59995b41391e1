"""What `evaluate --watch` does on the command line."""

from typing import TYPE_CHECKING

from vcmodels.cli.console import Console

if TYPE_CHECKING:
    from vcmodels.config import Task

INTERVAL_S, KEEP = 30.0, 3


def watch_run(
    task: "Task",
    metric: str | None,
    keep: int | None,
    device: str | None,
    interval: float | None,
    console: Console,
    *,
    once: bool,
) -> int:
    """Follow the run of a task until it is complete and scored; returns the exit code."""
    from vcmodels.reporting import StopSignals
    from vcmodels.workflows.watch import WatchOptions, watch

    options = WatchOptions(metric, keep or KEEP, device, interval or INTERVAL_S, once)
    with StopSignals() as stop:
        is_over = watch(task, options, console, stop.should_stop)
    if not is_over:
        console.say("stopped; the same command continues")
    return stop.exit_code
