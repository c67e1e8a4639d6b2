"""The effective-data law: convexity, exact gradients, independence of order, and recovery from its own losses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from law_swarms import NAMES, known_law, runs

from xdoge.laws.effective import Effective, _Posterior, epoch_value, fit_effective
from xdoge.laws.problem import Problem

PASSES = (0.5, 3.0, 20.0, 60.0)


def test_four_epochs_are_worth_less_than_four_and_more_than_three_and_a_half():
    """Muennighoff et al. 2023 report 3.73."""
    assert epoch_value(np.array([4.0]), 1 / 15)[0][0] == pytest.approx(3.73, abs=0.02)


@given(st.integers(0, 10**6), st.booleans())
def test_each_loss_is_convex_in_the_mixture(seed, repeats):
    law = known_law(passes=PASSES if repeats else None, seed=seed)
    a, b = np.random.default_rng(seed).dirichlet(np.full(4, 0.5), 2)
    ends, middle = law.predict(np.stack([a, b])), law.predict((a + b)[None] / 2)[0]
    assert (middle <= ends.mean(axis=0) + 1e-9).all()


@pytest.mark.parametrize("passes", [None, PASSES])
def test_the_gradient_of_the_posterior_agrees_with_finite_differences(passes):
    law = known_law(passes=passes)
    shares, losses = runs(law, 12, noise=0.02)
    posterior = _Posterior(law.problem, shares, losses, 0.1)
    generator = np.random.default_rng(0)
    theta = posterior.start() + 0.1 * generator.standard_normal(len(posterior.start()))
    gradient, step = posterior(theta)[1], 1e-6
    for i in range(len(theta)):
        move = np.zeros_like(theta)
        move[i] = step
        numeric = (posterior(theta + move)[0] - posterior(theta - move)[0]) / (2 * step)
        assert gradient[i] == pytest.approx(numeric, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("passes", [None, PASSES])
def test_slopes_agree_with_finite_differences(passes):
    law = known_law(passes=passes)
    share = np.array([0.4, 0.3, 0.2, 0.1])
    slopes = law.slopes(share)[1]
    for j in range(4):
        move = np.zeros(4)
        move[j] = 1e-7
        numeric = (law.predict((share + move)[None]) - law.predict((share - move)[None]))[0] / 2e-7
        assert slopes[:, j] == pytest.approx(numeric, rel=1e-5, abs=1e-6)


def test_permuted_sources_give_the_same_predictions():
    law = known_law()
    shares, losses = runs(law, 30, noise=0.01)
    order = [2, 0, 3, 1]
    permuted = Problem(tuple(NAMES[i] for i in order), NAMES, tuple((order.index(i),) for i in range(4)))
    a = fit_effective(law.problem, shares, losses).predict(shares)
    b = fit_effective(permuted, shares[:, order], losses).predict(shares[:, order])
    assert a == pytest.approx(b, abs=2e-3)


def test_a_known_law_is_recovered_and_its_transfer_is_not_symmetric():
    law = known_law()
    shares, losses = runs(law, 60)
    fitted = fit_effective(law.problem, shares, losses)
    test, truth = runs(law, 200, seed=9)
    assert np.sqrt(((fitted.predict(test) - truth) ** 2).mean()) < 0.01
    es, gl = NAMES.index("es"), NAMES.index("gl")
    assert fitted.transfer[gl, es] > 1.3 * fitted.transfer[es, gl]
    assert fitted.transfer[gl, es] > 5 * fitted.transfer[gl, NAMES.index("eu")]


def test_a_law_survives_json():
    law = known_law(passes=PASSES)
    copy = Effective.from_dict(law.to_dict(), law.problem)
    shares, _ = runs(law, 5)
    assert (copy.predict(shares) == law.predict(shares)).all()
