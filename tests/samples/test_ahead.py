"""A thread that works one item ahead: order, errors, and that nothing is left of it."""

import os
import signal
import threading
import time

import pytest

from vcmodels.samples.loader import one_ahead


def numbers(count, seen, fail_at=None):
    for number in range(count):
        if number == fail_at:
            raise LookupError(f"no {number}")
        seen.append((number, threading.current_thread()))
        yield number


def threads():
    return [t for t in threading.enumerate() if t.name.startswith("ahead")]


def test_items_come_in_order_from_one_other_thread():
    seen = []
    assert list(one_ahead(numbers(50, seen), lambda: None)) == list(range(50))
    assert len({thread for _, thread in seen}) == 1
    assert seen[0][1] is not threading.current_thread()
    assert not threads()


def test_just_one_item_is_made_ahead():
    seen = []
    made = one_ahead(numbers(9, seen), lambda: None)
    for used in range(5):
        assert next(made) == used
        time.sleep(0.02)
        assert len(seen) == used + 2
    made.close()


def test_the_next_item_is_made_while_the_last_one_is_in_use():
    started, finished = threading.Event(), threading.Event()

    def waiting():
        yield 0
        started.set()
        assert finished.wait(10)
        yield 1

    made = one_ahead(waiting(), finished.set)
    assert next(made) == 0
    assert started.wait(10)  # nobody asked for it yet
    finished.set()
    assert next(made) == 1
    made.close()


def test_an_error_comes_with_its_type_and_place_after_what_was_made():
    made = one_ahead(numbers(9, [], fail_at=2), lambda: None)
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(LookupError, match="no 2") as caught:
        next(made)
    assert caught.traceback[-1].name == "numbers"
    assert not threads()


def test_closing_stops_a_generator_that_waits():
    stopping, waits, left = threading.Event(), threading.Event(), []

    def waiting():
        try:
            yield 0
            waits.set()
            assert stopping.wait(290)
            raise InterruptedError
        finally:
            left.append(threading.current_thread())

    made = one_ahead(waiting(), stopping.set)
    next(made)
    assert waits.wait(100)
    began = time.monotonic()
    made.close()
    assert time.monotonic() - began < 100
    assert len(left) == 1
    assert not threads()


def test_an_error_of_the_user_leaves_no_thread():
    def use():
        for number in one_ahead(numbers(9, []), lambda: None):
            assert 1 / number

    with pytest.raises(ZeroDivisionError, match="by zero"):
        use()
    assert not threads()


def test_signals_are_left_to_the_main_thread():
    masks, handled = [], []

    def looking():
        masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        yield 0

    before = signal.signal(signal.SIGTERM, lambda number, _: handled.append(number))
    try:
        for _ in one_ahead(looking(), lambda: None):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert {signal.SIGINT, signal.SIGTERM} <= masks[0]
    assert handled == [signal.SIGTERM]
