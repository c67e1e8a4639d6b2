"""Counts at any position are exact, monotone and near their target, for large and uneven quotas too."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdoge.sampling.quotas import MOST, Quotas, Stage

counts_of_any_size = st.lists(
    st.one_of(st.integers(0, 5), st.integers(0, 10**6), st.integers(0, 10**12), st.integers(0, 2**52)),
    min_size=1,
    max_size=20,
).filter(lambda counts: sum(counts) > 0)


def recursive(counts, t):
    """The definition in quotas.py, with Python's integers and without a stored tree."""
    out = [0] * len(counts)

    def split(members, t):
        if len(members) == 1:
            out[members[0]] = t
        if len(members) < 2:
            return
        total = sum(counts[i] for i in members)
        cut = min(range(1, len(members)), key=lambda c: (abs(2 * sum(counts[i] for i in members[:c]) - total), c))
        left = sum(counts[i] for i in members[:cut])
        share = (t * left + total // 2) // total
        split(members[:cut], share)
        split(members[cut:], t - share)

    split(sorted((i for i, count in enumerate(counts) if count), key=lambda i: (-counts[i], i)), t)
    return out


@given(counts_of_any_size, st.data())
def test_counts_are_those_of_exact_arithmetic(counts, data):
    quotas = Quotas(counts)
    positions = data.draw(st.lists(st.integers(0, quotas.total), min_size=1, max_size=6))
    counted = quotas.before(np.array(positions)).T.tolist()
    assert counted == [recursive(counts, t) for t in positions]


@given(counts_of_any_size, st.data())
def test_counts_sum_to_the_position_and_lie_within_two_of_their_target(counts, data):
    quotas = Quotas(counts)
    positions = np.array(data.draw(st.lists(st.integers(0, quotas.total), min_size=1, max_size=30)))
    counted = quotas.before(positions)
    assert counted.sum(axis=0).tolist() == positions.tolist()
    for count, row in zip(counts, counted.tolist(), strict=True):
        for t, value in zip(positions.tolist(), row, strict=True):
            assert 0 <= value <= count
            assert abs(value - Fraction(t * count, quotas.total)) < 2
    assert quotas.before(np.array([quotas.total]))[:, 0].tolist() == counts


@given(st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(any))
def test_each_position_adds_one_to_one_source(counts):
    quotas = Quotas(counts)
    steps = np.diff(quotas.before(np.arange(quotas.total + 1)), axis=1)
    assert steps.min() >= 0
    assert (steps.sum(axis=0) == 1).all()


def test_the_largest_plan_is_exact_and_a_larger_one_is_refused():
    counts = [MOST - 10**9, 10**9 - 2, 1]
    quotas = Quotas(counts)
    for t in (1, MOST // 3, MOST - 2, MOST - 1):
        assert quotas.before(np.array([t]))[:, 0].tolist() == recursive(counts, t)
    with pytest.raises(ValueError, match="more than 2\\^56"):
        Quotas([MOST])


def test_ten_thousand_sources_from_one_sequence_to_a_trillion():
    rng = np.random.default_rng(0)
    counts = (10 ** rng.uniform(0, 12, 10_000)).astype(int).tolist()
    quotas = Quotas(counts)
    for t in (1, 10**9 + 7, quotas.total // 2, quotas.total - 1):
        counted = quotas.before(np.array([t]))[:, 0].tolist()
        assert sum(counted) == t
        worst = max(
            abs(value - Fraction(t * count, quotas.total)) for value, count in zip(counted, counts, strict=True)
        )
        assert worst < 2


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any), st.integers(1, 30), st.integers(0, 2**32))
def test_each_block_has_the_counts_for_any_order_of_positions(counts, block, key):
    """Positions give the same draws all at once, shuffled and one by one. Every sequence of a source is drawn once."""
    quotas = Quotas(counts)
    carried, sizes = np.arange(len(counts)), np.arange(len(counts)) * 3 + 1
    stage = Stage(7, 7 + quotas.total, quotas, carried, sizes, block, np.array([key], dtype=np.uint64))
    positions = np.arange(7, 7 + quotas.total)
    source, read = stage.locate(positions)
    for i, count in enumerate(counts):
        mine = read[source == i]
        assert sorted(mine.tolist()) == list(range(i, i + count))
        assert (np.diff(mine // sizes[i]) >= 0).all()  # an epoch is over before the next begins
    for begin in range(0, quotas.total, block):
        end = min(begin + block, quotas.total)
        held = np.bincount(source[begin:end], minlength=len(counts))
        before, after = quotas.before(np.array([begin, end])).T
        assert held.tolist() == (after - before).tolist()
    shuffled = np.random.default_rng(0).permutation(positions)
    for t in positions[:: max(1, len(positions) // 5)].tolist():
        before, begin = stage.read_before(t)
        assert t - block < begin <= t
        assert before.tolist() == (carried + np.bincount(source[: begin - 7], minlength=len(counts))).tolist()
    again = stage.locate(shuffled)
    assert (again[0] == source[shuffled - 7]).all()
    assert (again[1] == read[shuffled - 7]).all()
    last = stage.locate(positions[-1:])
    assert (last[0][0], last[1][0]) == (source[-1], read[-1])
