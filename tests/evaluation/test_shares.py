"""Shares of pairs: looked up, whoever asked first, and equal to measuring every voxel."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vcmodels.evaluation.shares import PairShares

KEYS = [(code, label) for code in range(5) for label in (0, 7, -3)]


def share_of(pair):
    code, label = pair
    return {"a": torch.tensor([1.0 * code, label, code * label]).double(), "b": torch.tensor(2.5)}


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.lists(st.lists(st.sampled_from(KEYS), min_size=1, unique=True), max_size=5),
    slices=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_sums_of_slices_are_those_of_their_voxels_and_each_pair_is_asked_about_once(
    blocks, slices, seed
):
    rng, shares, asked = np.random.default_rng(seed), PairShares(), []
    for pairs in blocks:

        def share(number, pairs=pairs):
            asked.append(pairs[number])
            return share_of(pairs[number])

        counts = rng.integers(0, 9, (slices, len(pairs)))
        found = shares.sums(pairs, torch.from_numpy(counts), share)
        for name in ("a", "b"):
            one_by_one = torch.stack([share_of(pair)[name].double() for pair in pairs])
            wanted = np.tensordot(counts, one_by_one.numpy(), axes=1)
            np.testing.assert_array_equal(found[name].numpy(), wanted, strict=True)
    assert len(asked) == len({*asked})


def test_what_another_thread_finds_meanwhile_does_no_harm():
    shares, counts = PairShares(), torch.eye(2, dtype=torch.int64)

    def share(number):  # Another one knows its pairs before this one does.
        if number == 0:
            shares.sums([(4, 7), (3, 0)], counts, lambda n: share_of([(4, 7), (3, 0)][n]))
        return share_of([(1, 0), (3, 0)][number])

    found = shares.sums([(1, 0), (3, 0)], counts, share)
    assert found["a"].tolist() == [[1, 0, 0], [3, 0, 0]]
    again = shares.sums([(4, 7), (3, 0)], counts, lambda n: share_of([(4, 7), (3, 0)][n]))
    assert again["a"].tolist() == [[4, 7, 28], [3, 0, 0]]
