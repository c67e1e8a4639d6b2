"""The Gaussian process: exact gradients of its posterior and of its predictions."""

from __future__ import annotations

import numpy as np
import pytest
from law_swarms import known_law, runs

from xdoge.laws.process import _Posterior, features, fit_process


def test_the_gradient_of_the_posterior_agrees_with_finite_differences():
    law = known_law()
    shares, losses = runs(law, 10, noise=0.02)
    posterior = _Posterior(law.problem, features(shares), (losses - losses.mean(axis=0)) / losses.std(axis=0))
    theta = posterior.start() + 0.1 * np.random.default_rng(0).standard_normal(len(posterior.start()))
    gradient, step = posterior(theta)[1], 1e-6
    for i in range(len(theta)):
        move = np.zeros_like(theta)
        move[i] = step
        numeric = (posterior(theta + move)[0] - posterior(theta - move)[0]) / (2 * step)
        assert gradient[i] == pytest.approx(numeric, rel=1e-5, abs=1e-5)


def test_slopes_agree_with_finite_differences():
    law = known_law()
    process = fit_process(law.problem, *runs(law, 25, noise=0.02))
    share = np.array([0.4, 0.3, 0.2, 0.1])
    slopes = process.slopes(share)[1]
    for j in range(4):
        move = np.zeros(4)
        move[j] = 1e-6
        numeric = (process.predict((share + move)[None]) - process.predict((share - move)[None]))[0] / 2e-6
        assert slopes[:, j] == pytest.approx(numeric, rel=1e-4, abs=1e-5)


def test_a_refit_to_the_same_losses_gives_the_same_law():
    law = known_law()
    shares, losses = runs(law, 25, noise=0.02)
    process = fit_process(law.problem, shares, losses)
    assert process.refit(losses).predict(shares) == pytest.approx(process.predict(shares), abs=1e-9)
