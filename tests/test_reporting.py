import signal
import subprocess
import sys
import time

import pytest

from vcmodels.reporting import StopSignals, duration

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


def test_a_signal_inside_a_destructor_is_not_lost():
    class Dying:
        def __del__(self):
            signal.raise_signal(signal.SIGTERM)

    def work():
        Dying()
        time.sleep(20)

    with pytest.raises(SystemExit, match="143"), StopSignals():
        work()


def test_what_is_left_is_reported_only_when_a_signal_ends_the_work_early():
    said = []
    with pytest.raises(SystemExit), StopSignals(lambda: said.append("left")):
        signal.raise_signal(signal.SIGINT)
    assert said == ["left"]
    with StopSignals(lambda: said.append("again")) as stop:
        stop.defer()
        signal.raise_signal(signal.SIGINT)
    assert said == ["left"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "2 h"), (4e5, "5 days")],
)
def test_a_duration_has_the_unit_that_people_say(seconds, words):
    assert duration(seconds) == words
