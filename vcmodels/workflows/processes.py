"""Other processes of this program: one after the other or some at once, stopped together."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Thread

import vcmodels
from vcmodels.stopping import StopSignals

POLL_S = 0.1


class Child:
    """A running `vcmodels` command.

    Args:
        words: what stands behind `vcmodels`.
        environment: variables beside, or instead of, those of this process.
        say: gets its lines, stdout and stderr; when None it writes where this process does.
    """

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        say: Callable[[str], None] | None,
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vcmodels", *words],
            env={**os.environ, **_same_package(), **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if say else None,
            stderr=subprocess.STDOUT if say else None,
            text=True,
            errors="replace",
        )
        self._listener = Thread(target=self._listen, args=(say,), daemon=True) if say else None
        if self._listener:
            self._listener.start()

    def _listen(self, say: Callable[[str], None]) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                say(line.rstrip("\n"))

    def ended(self) -> int | None:
        """Its exit code, 128 + signal when one killed it; None while it runs."""
        code = self.process.poll()
        if code is not None and self._listener:
            self._listener.join()
        return 128 - code if code is not None and code < 0 else code


def run_all(
    starts: Mapping[int, Callable[[int], Child]], jobs: int, stop: StopSignals
) -> dict[int, int]:
    """Run children, at most `jobs` at once; after a signal, which they get too, start no more.

    Args:
        starts: by number, what starts the child in the place that it is given, 0 to `jobs` - 1.
        jobs: how many run at once.
        stop: active, and deferred.

    Returns:
        The exit codes by number, of those that were started.
    """
    waiting, places = list(starts), list(range(jobs))
    running: dict[int, tuple[int, Child]] = {}
    codes: dict[int, int] = {}
    has_told = False
    try:
        while running or (waiting and not stop.is_stopped()):
            while waiting and places and not stop.is_stopped():
                place = places.pop(0)
                number = waiting.pop(0)
                running[number] = place, starts[number](place)
            if stop.received is not None and not has_told:
                has_told = True
                for _, child in running.values():
                    child.process.send_signal(stop.received)
            for number, (place, child) in list(running.items()):
                code = child.ended()
                if code is not None:
                    codes[number] = code
                    del running[number]
                    places.append(place)
            time.sleep(POLL_S)
    finally:
        for _, child in running.values():  # only after a failure of our own
            child.process.terminate()
            child.process.wait()
    return codes


def _same_package() -> dict[str, str]:
    """Variables by which a child finds this package, whatever lies in the working directory."""
    package = str(Path(vcmodels.__file__).parents[1])
    others = os.environ.get("PYTHONPATH")
    path = f"{package}{os.pathsep}{others}" if others else package
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
