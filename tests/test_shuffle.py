"""The stateless permutation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdoge.mixtures.shuffle import derive_key, permute

GOLDEN = [9, 7, 5, 0, 2, 4, 3, 1, 8, 6]
GOLDEN_LARGE = [25950756233, 639992752460, 408351241764]


@given(st.integers(1, 3000), st.integers(0, 2**32))
@settings(max_examples=60)
def test_every_item_comes_exactly_once(n, seed):
    assert sorted(permute(np.arange(n), n, derive_key(seed, "es/web", 0)).tolist()) == list(range(n))


def test_the_order_is_fixed_for_all_time():
    """A change here changes every run's data order, and is breaking."""
    key = derive_key(0, "es/web", 0)
    assert permute(np.arange(10), 10, key).tolist() == GOLDEN
    assert permute([0, 1, 10**12 - 1], 10**12, key).tolist() == GOLDEN_LARGE


def test_other_seeds_sources_and_epochs_are_other_orders():
    keys = [
        derive_key(0, "es/web", 0),
        derive_key(1, "es/web", 0),
        derive_key(0, "es/wiki", 0),
        derive_key(0, "es/web", 1),
    ]
    orders = [permute(np.arange(1000), 1000, key) for key in keys]
    for i in range(len(orders)):
        for j in range(i):
            assert (orders[i] == orders[j]).sum() < 10  # one is expected


def test_a_position_alone_is_what_it_is_among_others():
    key = derive_key(7, "gl/wiki", 3)
    whole = permute(np.arange(100_003), 100_003, key)
    assert permute(54_321, 100_003, key) == whole[54_321]
    assert permute(np.array([[5], [7]]), 100_003, key).tolist() == [[whole[5]], [whole[7]]]


@pytest.mark.parametrize("n", [1_000, 1_000_003])
def test_neighbours_are_as_independent_as_numpys(n):
    """Chi-square over a grid of (item here, item next) within what 200 random permutations give."""
    cells = 16

    def statistic(order):
        grid = np.zeros((cells, cells))
        part = order * cells // n
        np.add.at(grid, (part[:-1], part[1:]), 1)
        expected = (n - 1) / cells**2
        return float(((grid - expected) ** 2 / expected).sum())

    rng = np.random.default_rng(0)
    random = [statistic(rng.permutation(n)) for _ in range(40)]
    ours = [statistic(permute(np.arange(n), n, derive_key(0, "s", epoch))) for epoch in range(10)]
    assert abs(np.mean(ours) - np.mean(random)) < 4 * np.std(random) / np.sqrt(len(ours))
