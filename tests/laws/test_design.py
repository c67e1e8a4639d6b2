"""Mixtures of a swarm: they keep their caps, and each adds most information about the law."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdoge.laws.design import candidates, candidates_near, contrasts, jacobian, most_informative, prior_law, within
from xdoge.laws.effective import NOISE, PRIOR_DEVIATIONS
from xdoge.laws.problem import Problem

PROBLEM = Problem(("en", "es", "gl"), ("en", "es", "gl"), ((0,), (1,), (2,)), (1.0, 4.0, 20.0))


@st.composite
def shares_and_caps(draw):
    k = draw(st.integers(2, 8))
    weights = np.array(draw(st.lists(st.floats(1e-6, 1.0), min_size=k, max_size=k)))
    caps = np.array(draw(st.lists(st.floats(0.01, 1.0), min_size=k, max_size=k)))
    return weights / weights.sum(), np.minimum(1.0, caps / min(1.0, caps.sum()) * 1.05)


@given(shares_and_caps())
def test_cut_shares_keep_the_caps_and_sum_to_one(case):
    shares, most = case
    cut = within(shares, most)
    assert cut.sum() == pytest.approx(1.0, abs=1e-9)
    assert (cut <= most + 1e-9).all()
    if (shares <= most).all():
        np.testing.assert_allclose(cut, shares, atol=1e-12)


@given(shares_and_caps())
def test_cutting_shares_does_not_depend_on_their_order(case):
    shares, most = case
    np.testing.assert_allclose(within(shares[::-1], most[::-1])[::-1], within(shares, most), atol=1e-9)


def test_contrasts_give_each_share_a_large_and_a_small_value_once():
    rows = contrasts(4, np.ones(4))
    assert rows.shape == (8, 4)
    assert (rows[:4].argmax(axis=1) == np.arange(4)).all()
    assert (rows[4:].argmin(axis=1) == np.arange(4)).all()


def test_candidates_repeat_with_their_seed_and_stay_within_the_caps():
    most = np.array([1.0, 0.5, 0.2])
    pool = candidates(3, most, seed=5, count=200)
    np.testing.assert_array_equal(pool, candidates(3, most, seed=5, count=200))
    assert (pool <= most + 1e-9).all()
    assert not np.array_equal(pool, candidates(3, most, seed=6, count=200))


def test_candidates_near_an_optimum_have_this_mean():
    optimum = np.array([0.5, 0.3, 0.2])
    pool = candidates_near(optimum, np.ones(3), seed=0, count=4000)
    np.testing.assert_allclose(pool.mean(axis=0), optimum, atol=0.03)


def test_the_jacobian_is_that_of_the_prediction():
    law = prior_law(PROBLEM)
    shares = candidates(3, np.ones(3), seed=1, count=5)
    slopes, step = jacobian(law, shares), 1e-6
    moves = {
        0: {"transfer": lambda size: law.transfer * np.exp(size * np.eye(3)[0] * ~PROBLEM.is_own)},
        2: {"transfer": lambda size: law.transfer * np.exp(size * np.eye(3)[2] * ~PROBLEM.is_own)},
        3: {"exponent": lambda size: law.exponent * np.exp(size)},
        4: {"offset": lambda size: law.offset * np.exp(size)},
        5: {"floor": lambda size: law.floor - size},
        6: {"level": lambda size: law.level + size},
        7: {"harm": lambda size: law.harm * np.exp(size)},
    }
    for column, move in moves.items():
        ((name, at),) = move.items()
        ahead, back = (replace(law, **{name: at(size)}).predict(shares) for size in (step, -step))
        np.testing.assert_allclose(slopes[:, :, column], (ahead - back) / (2 * step), atol=1e-7)


def test_each_pick_raises_the_information_most():
    law = prior_law(PROBLEM)
    chosen, pool = np.full((1, 3), 1 / 3), candidates(3, np.ones(3), seed=2, count=30)
    picks = most_informative(law, chosen, pool, 3)
    spread = np.concatenate([np.full(3, PRIOR_DEVIATIONS[0]), PRIOR_DEVIATIONS[1:], [3.0, 1.0]])

    def information(rows):
        slopes = jacobian(law, rows) / NOISE
        matrices = np.einsum("nlp,nlq->lpq", slopes, slopes) + np.diag(1 / spread**2)
        return sum(np.linalg.slogdet(matrix)[1] for matrix in matrices)

    known = chosen
    for pick in picks:
        values = [information(np.vstack([known, row])) for row in pool]
        np.testing.assert_allclose(pick, pool[int(np.argmax(values))])
        known = np.vstack([known, pick])
