"""The floored KL projection and the rounding of shares."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from xdoge.errors import XDogeError
from xdoge.mixtures.simplex import largest_remainder, project

masses = st.lists(st.floats(0, 1e6) | st.just(0.0), min_size=1, max_size=40).filter(lambda q: max(q) > 0)
positive = st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=40)


@given(masses, st.floats(0, 0.999))
def test_projection_lies_on_the_floored_simplex(q, part):
    floor = part / len(q)
    p = project(q, floor=floor)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert (p >= floor).all()


@given(positive, st.floats(0, 0.999))
def test_sources_above_the_floor_keep_their_proportions(q, part):
    floor = part / len(q)
    p = project(q, floor=floor)
    above = p > floor
    ratios = p[above] / np.array(q)[above]
    np.testing.assert_allclose(ratios, ratios[0] if ratios.size else 0, rtol=1e-9)
    if above.any():
        assert (ratios[0] * np.array(q)[~above] <= floor * (1 + 1e-9)).all()


@given(positive, st.floats(0, 0.999), st.randoms(use_true_random=False))
def test_permuted_sources_give_permuted_weights(q, part, random):
    order = list(range(len(q)))
    random.shuffle(order)
    floor = part / len(q)
    np.testing.assert_allclose(project(np.array(q)[order], floor=floor), project(q, floor=floor)[order], rtol=1e-12)


@given(positive, st.floats(0, 0.999))
def test_projecting_twice_changes_nothing(q, part):
    floor = part / len(q)
    once = project(q, floor=floor)
    np.testing.assert_allclose(project(once, floor=floor), once, rtol=1e-9)


def test_projection_agrees_with_a_generic_convex_solver():
    rng = np.random.default_rng(0)
    for k in (2, 3, 7):
        for _ in range(5):
            q = rng.dirichlet(np.full(k, 0.3)) + 1e-4
            q /= q.sum()
            floors = rng.uniform(0, 1 / k, size=k)
            solved = minimize(
                lambda p, q=q: np.sum(p * np.log(p / q)),
                x0=np.full(k, 1 / k),
                jac=lambda p, q=q: np.log(p / q) + 1,
                bounds=[(max(floor, 1e-9), 1) for floor in floors],
                constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
                method="SLSQP",
                options={"ftol": 1e-12, "maxiter": 500},
            )
            np.testing.assert_allclose(project(q, floor=floors), solved.x, atol=2e-5)


def test_a_worked_example():
    np.testing.assert_allclose(project([1, 2, 3, 0], floor=0.1), [0.15, 0.3, 0.45, 0.1], rtol=1e-15)


def test_mixing_is_not_the_projection():
    """DoGE's code lifts small weights by (1 - ε) α + ε / k, which also taxes the sources far above the floor."""
    q, k, floor = np.array([0.001, 0.333, 0.666]), 3, 0.05
    mixed = (1 - floor * k) * q + floor
    projected = project(q, floor=floor)
    assert projected[1] / projected[2] == pytest.approx(0.5)
    assert mixed[1] / mixed[2] != pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("floor", [1 / 3, 0.5])
def test_a_floor_of_one_kth_is_refused(floor):
    with pytest.raises(XDogeError, match=r"floors sum to 1.* sum to less than 1 .*below 1/3"):
        project([1, 1, 1], floor=floor)


@pytest.mark.parametrize("q", [[], [0, 0], [1, -1], [1, np.nan], [1, np.inf]])
def test_invalid_masses_are_refused(q):
    with pytest.raises(XDogeError, match="masses must be finite, >= 0 and not all zero"):
        project(q)


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=30).filter(any), st.integers(0, 10**18))
def test_counts_sum_exactly_and_stay_within_one_of_their_quota(shares, total):
    counts = largest_remainder(shares, total)
    assert sum(counts) == total
    whole = sum(map(Fraction, shares))
    for count, share in zip(counts, shares, strict=True):
        assert abs(count - Fraction(share) * total / whole) < 1


def test_remaining_units_go_to_the_largest_remainders_and_ties_to_the_first():
    assert largest_remainder([5, 3, 1], 4) == [2, 1, 1]  # quotas 2.22, 1.33, 0.44
    assert largest_remainder([1, 1, 1], 10) == [4, 3, 3]


def test_invalid_shares_are_refused():
    with pytest.raises(XDogeError, match="shares must be finite"):
        largest_remainder([0.0, 0.0], 3)
