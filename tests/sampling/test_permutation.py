"""The permutation that is computed on demand."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdoge.sampling import permutation as shuffle
from xdoge.sampling.permutation import Permutations, derive_key, mix, permute

GOLDEN = [0, 6, 1, 7, 9, 5, 3, 4, 8, 2]
GOLDEN_LARGE = [250430713107, 830753868060, 90317639054]


@given(st.integers(1, 3000), st.integers(0, 2**32))
@settings(max_examples=60)
def test_every_item_comes_exactly_once(n, seed):
    assert sorted(permute(np.arange(n), n, derive_key(seed, "es/web", 0)).tolist()) == list(range(n))


def test_the_order_is_fixed_for_all_time():
    """A change of these numbers changes the data order of every run, so it is a breaking change."""
    key = derive_key(0, "es/web", 0)
    assert permute(np.arange(10), 10, key).tolist() == GOLDEN
    assert permute([0, 1, 10**12 - 1], 10**12, key).tolist() == GOLDEN_LARGE


def test_seeds_sources_and_epochs_have_different_orders():
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


def test_a_single_position_gives_the_same_as_many_at_once():
    key = derive_key(7, "gl/wiki", 3)
    whole = permute(np.arange(100_003), 100_003, key)
    assert permute(54_321, 100_003, key) == whole[54_321]
    assert permute(np.array([[5], [7]]), 100_003, key).tolist() == [[whole[5]], [whole[7]]]


def pairs(order, lag=1, cells=16):
    """Chi-square test of independence for the cells of an item and of the item `lag` positions later."""
    n = len(order)
    part = order * cells // n
    grid = np.zeros((cells, cells))
    np.add.at(grid, (part[:-lag], part[lag:]), 1)
    expected = (n - lag) / cells**2
    return float(((grid - expected) ** 2 / expected).sum())


def places_of_items(orders, cells=16):
    """Sum over several orders of the chi-square for the cells of a position and of its item."""
    n = len(orders[0])
    grid = np.zeros((cells, cells))
    for order in orders:
        np.add.at(grid, (np.arange(n) * cells // n, order * cells // n), 1)
    expected = len(orders) * n / cells**2
    return float(((grid - expected) ** 2 / expected).sum())


def shuffles(n, count):
    return [permute(np.arange(n), n, derive_key(0, "s", epoch)) for epoch in range(count)]


@pytest.mark.parametrize(("n", "orders"), [(1_000, 200), (1_024, 200), (65_536, 20), (1_000_003, 6)])
def test_shuffles_are_as_random_as_numpys(n, orders):
    """The mean chi-squares of pairs and places are within four standard errors of those of NumPy's permutations."""
    rng = np.random.default_rng(0)
    ours, theirs = shuffles(n, orders), [rng.permutation(n) for _ in range(orders)]
    error = np.sqrt(2 * 225 / orders)  # of a mean of chi-squares with 15² degrees of freedom
    for lag in (1, 2, 1 << (n - 1).bit_length() // 2):  # the last: a row of the table apart
        means = [np.mean([pairs(order, lag) for order in some]) for some in (ours, theirs)]
        assert abs(means[0] - means[1]) < 4 * np.sqrt(2) * error
    assert abs(places_of_items(ours) - places_of_items(theirs)) < 4 * np.sqrt(2 * 2 * 225)


def test_four_rounds_would_be_too_few(monkeypatch):
    """This shows that the statistic above can detect dependence: here items one row apart are not independent."""
    monkeypatch.setattr(shuffle, "MULTIPLIERS", shuffle.MULTIPLIERS[:4])
    n, orders = 1_000_003, 6
    means = [np.mean([pairs(order, lag) for order in shuffles(n, orders)]) for lag in (1, 1024)]
    assert max(means) > 225 + 4 * np.sqrt(2 * 225 / orders)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_every_order_of_a_few_items_is_about_as_frequent(n):
    """With 200 keys per order, no order is a quarter more or less frequent than expected, beyond chance."""
    keys = 200 * math.factorial(n)
    orders = Counter(tuple(permute(np.arange(n), n, derive_key("few", key)).tolist()) for key in range(keys))
    assert len(orders) == math.factorial(n)
    assert min(orders.values()) > 130
    assert max(orders.values()) < 270


@given(st.integers(1, 2**62), st.integers(0, 2**32), st.data())
def test_an_inverse_undoes_the_permutation(n, seed, data):
    x = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=20)), dtype=np.uint64)
    key = np.array([derive_key(seed)], dtype=np.uint64)
    shuffle_it = Permutations([n])
    there = shuffle_it(x, 0, key).view(np.uint64)
    assert shuffle_it(there, 0, key, inverse=True).tolist() == x.tolist()


def test_neighbours_among_few_items_are_as_random_as_numpys():
    """Chi-square of the pairs (item, next item) over 4,000 permutations, within four standard deviations."""
    keys = mix(np.zeros(1, dtype=np.uint64), np.arange(4000))
    for n in (2, 3, 5, 8, 12, 16, 24, 40, 64):
        columns = [Permutations([n])(np.full(4000, j, dtype=np.uint64), 0, keys) for j in range(n)]
        grid = np.zeros((n, n))
        for here, after in itertools.pairwise(columns):
            np.add.at(grid, (here, after), 1)
        expected = 4000 / n
        off = ~np.eye(n, dtype=bool)
        statistic, freedom = ((grid[off] - expected) ** 2 / expected).sum(), n * (n - 1) - 1
        assert statistic < freedom + 4 * np.sqrt(2 * freedom) + 4


def test_several_sizes_and_keys_at_once_give_the_same_as_one_by_one():
    sizes = [1, 2, 7, 1000, 10**12, 2**62]
    rng = np.random.default_rng(0)
    which = rng.integers(0, len(sizes), 500)
    x = np.array([int(rng.integers(0, sizes[i])) for i in which], dtype=np.uint64)
    keys = rng.integers(0, 2**63, 500).astype(np.uint64)
    together = Permutations(sizes)(x, which, keys)
    alone = [int(permute(int(v), sizes[i], int(key))) for v, i, key in zip(x, which, keys, strict=True)]
    assert together.tolist() == alone
