from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from vcmodels.samples.order import DrawOrder, LossWeightedOrder, hardness

LENGTH = 12
losses_and_weights = st.lists(
    st.tuples(
        st.one_of(st.just(np.nan), st.sampled_from([-1.0, 0.5, 2.0]), st.floats(0, 9, width=32)),
        st.floats(0.01, 10),
    ),
    min_size=1,
    max_size=20,
)


def order_of(losses, weights=None, share=0.5, length=LENGTH, seed=3):
    """An order that knows these losses."""
    losses = np.array(losses, np.float32)
    order = LossWeightedOrder(
        seed, np.ones(len(losses)) if weights is None else weights, share, length
    )
    none = torch.zeros(0)
    order.restore({"losses": torch.from_numpy(losses), "new_rows": none.long(), "new_losses": none})
    return order


def drawn(order, epoch=0):
    return [order.row(epoch * order.length + i) for i in range(order.length)]


@given(rows=losses_and_weights)
def test_hardness_is_exponential_in_the_rank_and_neutral_for_the_unknown(rows):
    losses, weights = (np.array(column) for column in zip(*rows, strict=True))
    losses = losses.astype(np.float32)
    found, known = hardness(losses, weights), np.isfinite(losses)
    assert np.all(found[~known] == 1)
    assert np.average(found, weights=weights) == pytest.approx(1)
    if known.any():
        assert np.average(found[known], weights=weights[known]) == pytest.approx(1)
    if known.sum() > 1:
        ranks = (rankdata(losses[known]) - 1) / (known.sum() - 1)
        np.testing.assert_allclose(np.log(found[known] / found[known][0]) / np.log(100), ranks - ranks[0], atol=1e-9)  # fmt: skip


def test_neither_scale_nor_an_outlier_of_the_losses_matters():
    losses, weights = np.array([3, 1, 2, np.nan], np.float32), np.array([1.0, 2, 3, 4])
    np.testing.assert_array_equal(hardness(losses, weights), hardness(100 * losses, weights))
    outlier = np.array([1e30, 1, 2, np.nan], np.float32)
    np.testing.assert_array_equal(hardness(losses, weights), hardness(outlier, weights))


@given(rows=losses_and_weights, share=st.floats(0, 1), seed=st.integers(0, 9))
def test_rows_come_floor_or_ceil_of_their_share_in_each_epoch(rows, share, seed):
    losses, weights = (np.array(column) for column in zip(*rows, strict=True))
    order = order_of(losses, weights, share, 50, seed)
    wanted = weights * (1 - share + share * hardness(order.losses, weights))
    wanted *= 50 / wanted.sum()
    for epoch in range(2):
        found = Counter(drawn(order, epoch))
        for row, count in enumerate(wanted):
            assert np.floor(count - 1e-6) <= found[row] <= np.ceil(count + 1e-6)


def test_the_hardest_tenth_takes_more_than_a_third_of_the_hard_draws():
    """The closed form: (100 - 100^0.9) / 99 = 0.37; the easier half (10 - 1) / 99 = 0.09."""
    order = order_of(np.arange(1000), share=1.0, length=100_000)
    rows = np.array(drawn(order))
    assert np.mean(rows >= 900) == pytest.approx(0.373, abs=0.002)
    assert np.mean(rows < 500) == pytest.approx(0.091, abs=0.002)


def test_without_losses_the_weights_alone_decide():
    weights = np.array([1.0, 2, 3, 4])
    order, plain = LossWeightedOrder(7, weights, 0.5, LENGTH), DrawOrder(7, weights, LENGTH)
    assert [order.row(k) for k in range(36)] == [plain.row(k) for k in range(36)]


def test_losses_count_from_the_next_epoch_on_and_the_last_one_does():
    order = LossWeightedOrder(0, np.ones(6), 1.0, 60)
    before = drawn(order)
    order.take(0, [float(row == 4) for row in before[:30]])
    order.take(30, [9.0 + (row == 4) for row in before[30:]])
    assert drawn(order) == before
    order.end_epoch()
    np.testing.assert_array_equal(order.losses, [9, 9, 9, 9, 10, 9])
    assert Counter(drawn(order, 1))[4] > 30


def test_losses_that_are_not_finite_change_nothing():
    order = order_of([1, 2, 3])
    order.take(0, [np.nan, np.inf, -np.inf] * 4)
    order.end_epoch()
    np.testing.assert_array_equal(order.losses, [1, 2, 3])


@pytest.mark.parametrize("taken", [0, 5, LENGTH])
def test_a_restored_order_continues_in_and_between_epochs(taken):
    rng = np.random.default_rng(0)
    losses = rng.random((3, LENGTH)).tolist()

    def epochs(order, first):
        found = []
        for epoch in range(first, 3):
            start = taken if epoch == first else 0
            order.take(epoch * LENGTH + start, losses[epoch][start:])
            order.end_epoch()
            found.append(drawn(order, epoch + 1))
        return found

    one = order_of([1, np.nan, 3, 2, np.nan])
    one.take(0, losses[0])
    one.end_epoch()
    one.take(LENGTH, losses[1][:taken])
    state = {key: value.clone() for key, value in one.state().items()}
    whole = epochs(one, 1)
    other = LossWeightedOrder(3, np.ones(5), 0.5, LENGTH)
    other.restore(state)
    assert epochs(other, 1) == whole


def test_the_state_is_small():
    state = LossWeightedOrder(0, np.ones(1000), 0.5, LENGTH).state()
    assert sum(value.nbytes for value in state.values()) == 4000
