import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vcmodels.reporting import StopSignals, duration, list_some

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


def saved_and_left(stop):
    stop.defer()
    signal.raise_signal(signal.SIGINT)
    raise SystemExit(stop.exit_code)


def test_what_is_left_is_reported_only_when_a_signal_ends_the_work_early():
    said = []
    with pytest.raises(SystemExit), StopSignals(lambda: said.append("left")):
        signal.raise_signal(signal.SIGINT)
    assert said == ["left"]
    with pytest.raises(SystemExit), StopSignals(lambda: said.append("again")) as stop:
        saved_and_left(stop)
    assert said == ["left"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "2 h"), (4e5, "5 days")],
)
def test_a_duration_has_the_unit_that_people_say(seconds, words):
    assert duration(seconds) == words


@given(st.lists(st.integers(0, 99)), st.integers(1, 6), st.sampled_from([", ", "; ", " | "]))
def test_some_words_and_the_number_of_the_others_are_all_of_them(words, most, between):
    text = list_some(words, most, between=between)
    shown, _, rest = text.partition("and ")
    kept = [word for word in shown.strip(" ;|").split(between) if word]
    assert kept == [str(word) for word in words[:most]]
    assert len(kept) + int(rest.removesuffix(" more") or 0) == len(words)


def test_words_are_listed_as_a_person_would():
    assert list_some("abcd", 2) == "a, b and 2 more"
    assert list_some("abcd", 2, between="; ") == "a; b; and 2 more"
    assert list_some("ab", 2) == "a, b"
    assert list_some((), 2) == ""
