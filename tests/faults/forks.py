"""Forks workers and sends each a signal after a while, so that a kill falls anywhere in its work.

The process that forks imports the work once, and what the work imports late (`LATE` of its module);
what is killed begins at once.
"""

import atexit
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from vcmodels.errors import VcmodelsError


@contextmanager
def forks(work: Callable[..., Any]) -> Iterator["Forks"]:
    """Workers that call a function of a module, with arguments that JSON holds.

    What forks them stays for the next test that asks for the same module: its imports take seconds.
    """
    surroundings = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    idle = _IDLE[work.__module__, tuple(sorted(surroundings.items()))]
    process = idle.pop() if idle else _started(work.__module__)
    yield Forks(process, work.__qualname__)
    idle.append(process)  # one whose test has failed may be at work still


_IDLE: dict[tuple[object, ...], list[subprocess.Popen[str]]] = defaultdict(list)
"""Processes that fork, by module and environment."""


def _started(module: str) -> subprocess.Popen[str]:
    """A process that forks, until this one ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.forks", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.wait()
    process.stdout.close()


class Forks:
    """Starts workers one after the other."""

    def __init__(self, process: subprocess.Popen[str], work: str) -> None:
        self._process, self._work = process, work

    def run(
        self, arguments: Mapping[str, Any], seconds: float, number: int = signal.SIGKILL
    ) -> int:
        """Start a worker, send it a signal after so long, and wait for it.

        Returns:
            Its exit code; minus the number of the signal that ended it.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {
            "work": self._work, "arguments": dict(arguments), "seconds": seconds, "number": int(number),
        }  # fmt: skip
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return os.waitstatus_to_exitcode(int(self._process.stdout.readline()))

    def kill(self, arguments: Mapping[str, Any], seconds: float) -> bool:
        """Kill a worker after so long; whether it was still at work."""
        code = self.run(arguments, seconds)
        assert code in (0, -signal.SIGKILL), code
        return code != 0


def end_of(child: int, seconds: float, number: int) -> int:
    """The wait status of a child, which gets a signal if it is still there after so long."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(min(left, 0.002))
    os.kill(child, number)
    return os.waitpid(child, 0)[1]


def main() -> None:
    module = importlib.import_module(sys.argv[1])
    for late in getattr(module, "LATE", ()):
        importlib.import_module(late)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # of a child, too, until the work takes it
    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if child == 0:
            code: Any = 99
            try:
                os.setpgid(0, 0)
                sys.stdout = sys.stderr
                code = getattr(module, order["work"])(**order["arguments"]) or 0
            except VcmodelsError as error:
                code = error.exit_code
            except SystemExit as leaving:
                code = leaving.code
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                os._exit(code)
        print(end_of(child, order["seconds"], order["number"]), flush=True)  # noqa: T201 - an answer


if __name__ == "__main__":
    main()
