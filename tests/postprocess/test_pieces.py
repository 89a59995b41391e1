"""The machinery of steps on whole objects: a kill in the middle, and several at work."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from tests.postprocess.places import run_step, source_of, step_of
from vcmodels.blockwise import Crew, Part, Threads
from vcmodels.postprocess.site import Source
from vcmodels.postprocess.sizes import SizesStep

SHAPE = (9, 14, 11)
BLOCK = (4, 5, 6)
STEP = step_of(SizesStep, "mask", min_size=4, max_hole=6)


class _TornError(Exception):
    """The process dies."""


class _Fragile:
    """Decodes so many times."""

    def __init__(self, count):
        self.left = count

    def __call__(self, stored):
        if self.left == 0:
            raise _TornError
        self.left -= 1
        return stored


@pytest.fixture
def source() -> Source:
    mask = np.random.default_rng(0).random(SHAPE) < 0.6
    return source_of(np.where(mask, 255, 0).astype(np.uint8), "binary")


@pytest.mark.parametrize("after", [3, 14, 25, 33, 50])
def test_what_was_done_before_a_kill_is_used(tmp_path, source, after):
    expected = run_step(STEP, {"objects": source}, tmp_path / "whole")
    torn = replace(source, decode=_Fragile(after))
    with pytest.raises(_TornError):
        run_step(STEP, {"objects": torn}, tmp_path, BLOCK, crew=Crew(Threads(1)))
    rest = replace(source, decode=_Fragile(3 * 18 - after + 4))  # those at work are done again
    found = run_step(STEP, {"objects": rest}, tmp_path, BLOCK)
    np.testing.assert_array_equal(found, expected)


def test_two_at_work_make_what_one_makes(tmp_path, source):
    expected = run_step(STEP, {"objects": source}, tmp_path / "whole")
    folder = tmp_path / "both"
    run_step(step_of(SizesStep, "mask", largest=1), {"objects": source}, folder, BLOCK)
    with ThreadPoolExecutor(2) as pool:
        crews = [Crew(Threads(1), Part(index, 2)) for index in range(2)]
        made = [
            pool.submit(run_step, STEP, {"objects": source}, folder, BLOCK, crew=crew)
            for crew in crews
        ]
    for one in made:
        np.testing.assert_array_equal(one.result(), expected)
