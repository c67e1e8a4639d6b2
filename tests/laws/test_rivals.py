"""Regressions of other methods: recovery of known functions, and the same trees as in LightGBM."""

from __future__ import annotations

import numpy as np
import pytest
from law_swarms import known_law, runs

from xdoge.laws.rivals import BOOSTING, ROUNDS, fit_linear, fit_log_linear, fit_trees
from xdoge.laws.stack import stack_weights

PROBLEM = known_law().problem


def test_a_linear_function_is_recovered():
    shares, _ = runs(known_law(), 40)
    losses = 2 + shares @ np.array([[1.0, 2, 3, 4], [0, 1, 0, 1], [2, 2, 0, 0], [1, 0, 0, 0]]).T
    assert fit_linear(PROBLEM, shares, losses).predict(shares) == pytest.approx(losses, abs=2e-3)


def test_a_log_linear_function_is_recovered():
    shares, _ = runs(known_law(), 60)
    losses = 1.5 + np.exp(shares @ np.array([[-2.0, 0, 0, 0.5], [0, -1, 0, 0], [0, 0, -1, 0], [0, 0, 0.3, -1]]).T)
    assert fit_log_linear(PROBLEM, shares, losses).predict(shares) == pytest.approx(losses, abs=2e-2)


def test_trees_in_numpy_predict_what_lightgbm_predicts():
    lightgbm = pytest.importorskip("lightgbm")
    shares, losses = runs(known_law(), 40, noise=0.05)
    data = lightgbm.Dataset(shares, losses[:, 2], params={"min_data_in_bin": 1, "verbosity": -1})
    theirs = lightgbm.train(BOOSTING | {"seed": 0}, data, ROUNDS)
    test, _ = runs(known_law(), 300, seed=5)
    ours = fit_trees(PROBLEM, shares, losses).predict(test)[:, 2]
    assert ours == pytest.approx(theirs.predict(test), abs=1e-12)


def test_the_stack_takes_the_better_form_and_sums_to_one():
    generator = np.random.default_rng(0)
    losses = generator.standard_normal((50, 3))
    predictions = {"good": losses + 0.1 * generator.standard_normal((50, 3)), "bad": np.zeros((50, 3))}
    weights = stack_weights(predictions, losses)
    assert weights["good"] > 0.9
    assert sum(weights.values()) == pytest.approx(1)
