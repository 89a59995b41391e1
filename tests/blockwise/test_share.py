import itertools
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.blockwise import Crew, Part, Threads, share_blocks
from vcmodels.blockwise.record import BlockRecord
from vcmodels.errors import OutputError
from vcmodels.geometry.boxes import Box
from vcmodels.geometry.grid import blocks_of

BLOCKS = list(blocks_of(Box((0, 0, 0), (9, 13, 7)), (4, 5, 6)))
IDENTITY = {"of": "a test"}


class Counted:
    """Work that says which blocks it was asked for."""

    def __init__(self, fails_at=None):
        self.asked, self.fails_at, self.lock = [], fails_at, threading.Lock()

    def __call__(self, box):
        with self.lock:
            self.asked.append(box)
            if len(self.asked) == self.fails_at:
                raise OSError("the disk is gone")
        return {"voxels": np.array([box.voxels]), "at": np.array(box.origin)}


def share(work, folder, part=None, *, identity=IDENTITY, most=None):
    asked = itertools.count()
    crew = Crew(
        Threads(1),
        part or Part(0, 1),
        should_stop=lambda: most is not None and next(asked) >= most,
    )
    return share_blocks(work, BLOCKS, folder, identity, crew, "work")


def require_all(measured):
    found = list(measured.parts())
    assert [box for box, _ in found] == BLOCKS
    assert [tuple(part["at"]) for _, part in found] == [box.origin for box in BLOCKS]


def test_parts_come_back_in_the_order_of_the_blocks(tmp_path):
    measured = share(Counted(), tmp_path)
    require_all(measured)
    assert [set(part) for _, part in measured.parts("vo")] == [{"xels"}] * len(BLOCKS)


@pytest.mark.parametrize("most", [2, 3, 5])
def test_after_a_stop_only_what_is_left_is_done(tmp_path, most):
    first, second = Counted(), Counted()
    assert share(first, tmp_path, most=most) is None
    require_all(share(second, tmp_path))
    assert 0 < len(first.asked) < len(BLOCKS)
    assert sorted(first.asked + second.asked) == sorted(BLOCKS)


def test_after_a_failure_only_what_is_left_is_done(tmp_path):
    first, second = Counted(fails_at=4), Counted()
    with pytest.raises(OSError, match="disk is gone"):
        share(first, tmp_path)
    require_all(share(second, tmp_path))
    assert len(second.asked) < len(BLOCKS)
    assert set(first.asked[:3]).isdisjoint(second.asked)


@settings(max_examples=15, deadline=None)
@given(count=st.integers(2, 6), data=st.data())
def test_of_processes_that_are_gone_the_others_do_the_rest(tmp_path_factory, count, data):
    folder, done = tmp_path_factory.mktemp("share"), []
    for index in range(count - 1):  # each stops somewhere, or does everything that is left
        work = Counted()
        share(work, folder, Part(index, count), most=data.draw(st.integers(1, 12)))
        done += work.asked
    last = Counted()
    require_all(share(last, folder, Part(count - 1, count)))
    assert sorted(done + last.asked) == sorted(BLOCKS)


def test_a_process_does_its_own_share_first_and_then_what_is_left(tmp_path):
    work = Counted()
    require_all(share(work, tmp_path, Part(1, 2)))
    own = BLOCKS[1::2]
    assert work.asked[: len(own)] == own
    assert sorted(work.asked) == sorted(BLOCKS)


def test_what_was_made_of_something_else_is_made_again(tmp_path):
    share(Counted(), tmp_path)
    again = Counted()
    require_all(share(again, tmp_path, identity={"of": "another"}))
    assert sorted(again.asked) == sorted(BLOCKS)


def test_two_processes_of_one_part_are_refused_with_what_to_do(tmp_path):
    with BlockRecord(tmp_path / "0-of-1.blocks", IDENTITY):
        found = r"another process works in it as part 0/1; wait for it, or .* --part I/N"
        with pytest.raises(OutputError, match=found):
            share(Counted(), tmp_path)


def test_processes_at_once_do_all_of_it_together(tmp_path):
    works, found = [Counted() for _ in range(3)], {}

    def run(index):
        found[index] = share(works[index], tmp_path, Part(index, 3))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(3):
        require_all(found[index])
    assert {box for work in works for box in work.asked} == set(BLOCKS)
