"""Basins and their graph over blocks, against Kruskal's algorithm on all voxels."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.forests import in_order, kruskal, without_unseeded
from tests.postprocess.places import run_step, source_of, step_of
from vcmodels.blockwise import Crew
from vcmodels.errors import RunError
from vcmodels.fields.forest import by_depth, by_seeds, cut
from vcmodels.fields.watershed import NOTHING, SEED
from vcmodels.geometry.boxes import Box
from vcmodels.postprocess.base import Role
from vcmodels.postprocess.basins import (
    BYTES_PER_BASIN,
    basin_edges,
    find_basins,
    merged_edges,
)
from vcmodels.postprocess.site import Source
from vcmodels.postprocess.watershed import ObjectFill, WatershedStep, object_ids
from vcmodels.reporting import Silent

SHAPE = (9, 14, 11)


@dataclass(frozen=True)
class Stored:
    """Heights as they are in a source."""

    source: Source
    within: Box

    def heights(self, box):
        return self.source.read(box, self.within)[0].astype(np.int32)


class Trees(WatershedStep):
    """A watershed of whole numbers, by depth or, with `depth` 3, by seeds."""

    name: Literal["watershed"] = "watershed"
    roles: ClassVar = {"heights": Role(frozenset({"regression"}))}

    def run(self, site):
        basins = find_basins(site, Stored(site.source("heights"), site.box))
        edges = basin_edges(site, basins)

        def part():
            lowest = basins.tables["lowest"]
            forest = merged_edges(edges).forest(len(lowest) - 1)
            trees = cut(forest, lowest, by_seeds if self.depth == 3 else by_depth(2))
            if self.depth == 3:
                trees = np.where(lowest[trees] == SEED, trees, 0)
            return {"ids": object_ids(trees, basins.tables, 1)}

        site.write("write", ObjectFill(basins, site.once("objects", part)))


@settings(max_examples=8)
@given(
    seed=st.integers(0, 10**6),
    block=st.tuples(*(st.integers(4, 15),) * 3),
    levels=st.sampled_from([1, 4, 10**6]),
    by=st.sampled_from(["depth", "seeds"]),
    empty=st.sampled_from([0.0, 0.3]),
)
def test_trees_are_those_of_all_voxels_for_any_blocks(
    tmp_path_factory, seed, block, levels, by, empty
):
    rng = np.random.default_rng(seed)
    heights = rng.integers(1, 1 + levels, SHAPE).astype(np.int32)
    if by == "seeds":
        heights[rng.random(SHAPE) < 0.02] = SEED
    heights[rng.random(SHAPE) < empty] = NOTHING
    step = step_of(Trees, "heights", depth=3.0 if by == "seeds" else 1.0)
    sources = {"heights": source_of(heights, "regression")}
    found = run_step(step, sources, tmp_path_factory.mktemp("b"), block)
    if by == "seeds":
        expected = without_unseeded(kruskal(heights, by_seeds), heights)
    else:
        expected = kruskal(heights, by_depth(2))
    np.testing.assert_array_equal(found, in_order(expected))


def test_a_box_that_begins_in_the_middle_of_blocks(tmp_path):
    heights = np.random.default_rng(1).integers(1, 9, SHAPE).astype(np.int32)
    box = Box((2, 3, 1), (6, 9, 8))
    step = step_of(Trees, "heights", depth=1.0)
    sources = {"heights": source_of(heights, "regression")}
    found = run_step(step, sources, tmp_path, (4, 5, 3), box=box)
    expected = np.zeros(SHAPE, np.uint64)
    expected[box.slices()] = in_order(kruskal(heights[box.slices()], by_depth(2)))
    np.testing.assert_array_equal(found, expected)


class StopError(Exception):
    """As a kill."""


def test_a_kill_in_any_pass_changes_nothing(tmp_path, monkeypatch):
    heights = np.random.default_rng(2).integers(1, 9, SHAPE).astype(np.int32)
    step = step_of(Trees, "heights", depth=1.0)
    sources = {"heights": source_of(heights, "regression")}
    expected = run_step(step, sources, tmp_path / "whole", (5, 7, 6))
    for name in ("_Heights", "_BasinPieces", "_Links", "_Edges"):
        work = getattr(__import__("vcmodels.postprocess.basins", fromlist=[name]), name)
        calls, whole = [], work.__call__

        def dying(self, box, calls=calls, whole=whole):
            calls.append(box)
            if len(calls) == 5:
                raise StopError
            return whole(self, box)

        with monkeypatch.context() as patch:
            patch.setattr(work, "__call__", dying)
            with pytest.raises(StopError):
                run_step(step, sources, tmp_path / name, (5, 7, 6))
            found = run_step(step, sources, tmp_path / name, (5, 7, 6))
        np.testing.assert_array_equal(found, expected)


def test_more_basins_than_memory_holds_are_refused_before_they_are_joined(tmp_path, monkeypatch):
    heights = np.random.default_rng(2).integers(1, 9, SHAPE).astype(np.int32)
    step = step_of(Trees, "heights", depth=1.0)
    sources = {"heights": source_of(heights, "regression")}
    with monkeypatch.context() as patch:
        patch.setattr("vcmodels.postprocess.basins.machine_bytes", lambda: 100 * BYTES_PER_BASIN)
        with pytest.raises(RunError, match=r"joining 1\d\d basins takes .* give a larger"):
            run_step(step, sources, tmp_path, (5, 7, 6))
    assert not (tmp_path / "scratch" / "edges").exists()
    monkeypatch.setattr("vcmodels.postprocess.basins.MANY", 100)
    reporter = Silent()
    found = run_step(step, sources, tmp_path, (5, 7, 6), crew=Crew(reporter=reporter))
    np.testing.assert_array_equal(found, in_order(kruskal(heights, by_depth(2))))
    assert [line.split(" takes ")[0][-10:] for line in reporter.lines] == ["164 basins"]
