"""Answers through memory that is used again and again."""

import gc
import os

import numpy as np
import pytest
import torch

from vcmodels.samples import workers
from vcmodels.samples.workers import Slots, pack

SHAPES = [(1, 6, 7, 8), (3, 6, 7, 8), (2, 3), ()]


@pytest.fixture(autouse=True)
def fresh_worker():
    workers._mapped.clear()
    yield
    workers._mapped.clear()


def answer(seed=0):
    rng = np.random.default_rng(seed)
    drawn = [torch.from_numpy(np.asarray(rng.normal(size=shape))) for shape in SHAPES]
    mixed = drawn[0] > 0
    return {"drawn": drawn, "mixed": mixed, "true": drawn[1] > -99, "text": ("a", 1), "no": None}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert (one["text"], one["no"]) == (other["text"], other["no"])
    for name in ("mixed", "true"):
        assert torch.equal(one[name], other[name])
    for a, b in zip(one["drawn"], other["drawn"], strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def sent(pool, slot, seed):
    return pool.unpack(pack(answer(seed), slot and slot.address), slot)


def test_answers_arrive_as_they_were_first_by_themselves_then_through_a_slot():
    pool = Slots()
    assert pool.take() is None
    assert_equal(sent(pool, None, 1), answer(1))
    slot = pool.take()
    assert slot.address.size == pool.size >= sum(8 * np.prod(s) for s in SHAPES)
    packed = pack(answer(2), slot.address)
    assert packed.parts is None
    assert len(packed.rest) < 1500  # all numbers are in the slot
    assert_equal(pool.unpack(packed, slot), answer(2))


def test_a_slot_is_used_again_and_another_while_it_is_taken():
    pool = Slots()
    sent(pool, None, 0)
    first, second = pool.take(), pool.take()
    assert first.address.number != second.address.number
    one, two = sent(pool, first, 1), sent(pool, second, 2)
    assert_equal(one, answer(1))
    assert_equal(two, answer(2))
    pool.give(first)
    assert pool.take() is first
    sent(pool, first, 3)
    assert_equal(one, answer(3))  # as announced: the arrays are those of the slot
    assert_equal(two, answer(2))
    assert len(workers._mapped) == 2


def test_an_answer_that_does_not_fit_comes_by_itself_and_slots_grow():
    pool = Slots()
    pool.unpack(pack(torch.zeros(10), None), None)
    small = pool.take()
    assert_equal(sent(pool, small, 1), answer(1))
    pool.give(small)
    large = pool.take()
    assert large.address.size > small.address.size
    assert_equal(sent(pool, large, 2), answer(2))
    assert list(workers._mapped) == [large.address.number]


def test_a_slot_that_a_worker_may_not_open_is_done_without(monkeypatch):
    pool = Slots()
    sent(pool, None, 0)
    slot = pool.take()

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(workers.os, "open", refuse)
    assert pack(answer(1), slot.address).parts is not None
    assert_equal(sent(pool, slot, 1), answer(1))


def test_arrays_are_aligned_and_a_mask_that_is_all_true_takes_no_memory():
    pool = Slots()
    sent(pool, None, 0)
    slot = pool.take()
    found = sent(pool, slot, 4)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in found["drawn"])
    assert found["true"].stride() == (0, 0, 0, 0)
    assert found["true"].all()


def test_a_slot_that_is_let_go_leaves_no_file_behind():
    def ours():
        names = (f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd"))  # noqa: PTH208
        return [n for n in names if os.path.lexists(n) and "vcmodels-patch" in os.readlink(n)]  # noqa: PTH115

    before = ours()
    pool = Slots()
    sent(pool, None, 0)
    slot = pool.take()
    kept = sent(pool, slot, 1)
    assert len(ours()) > len(before)
    workers._mapped.clear()
    del slot, pool
    gc.collect()
    assert_equal(kept, answer(1))  # what is in use stays
    del kept
    gc.collect()
    assert ours() == before
