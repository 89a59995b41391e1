import signal
import subprocess
import sys

import pytest

from vcmodels.reporting import StopSignals

SIGNALLED = """
import os, signal
from vcmodels import reporting
reporting.ECHO_SECONDS = {echo}
with reporting.StopSignals() as stop:
    stop.defer()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.kill(os.getpid(), number)
print("saved", stop.exit_code)
"""


def run(echo):
    return subprocess.run(
        [sys.executable, "-c", SIGNALLED.format(echo=echo)], capture_output=True, text=True
    )


def test_the_same_signal_from_several_senders_leaves_time_to_save():
    ended = run(2.0)
    assert (ended.returncode, ended.stdout) == (0, "saved 143\n")


def test_a_later_signal_ends_the_process_at_once():
    ended = run(-1)
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGINT, "")


def test_before_there_is_anything_to_save_the_first_signal_unwinds():
    with pytest.raises(SystemExit, match="143"), StopSignals():
        signal.raise_signal(signal.SIGTERM)
