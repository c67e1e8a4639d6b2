"""RegMix: it trains tiny models on random mixtures and fits a regression of their loss on the weights.

The result is the mean of the mixtures with the lowest predicted loss. `docs/explanation/method.md`, "RegMix", has our
choices where the paper and its code leave them open.

Source: Liu et al. 2024, arXiv:2407.01492, and github.com/sail-sg/regmix.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from xdoge.baselines.job import Job
from xdoge.baselines.options import RegmixSettings
from xdoge.baselines.training import BaselineProxy, train_on
from xdoge.fit.result import language_weights
from xdoge.mixtures.simplex import Floats
from xdoge.mixtures.weights import WeightSet
from xdoge.training.run_folder import MetricsRow

STRENGTHS = 15
"""Number of concentrations for random mixtures. Their logarithms are evenly spaced from the least to the greatest."""

HELD_OUT = 0.2
"""Share of the tiny models that the regressor is not fitted to. They are the last ones. They decide when boosting ends,
and they check the predictions."""

FAIR = 0.5
"""Rank correlation below which the user is warned. We chose this value; the authors report 0.9 and more."""

BOOSTING = {"objective": "regression", "metric": "l2", "learning_rate": 0.01, "verbosity": -1}
"""The authors' settings of LightGBM. They also fit at most 1,000 trees, and end after 3 trees that do not lower the
loss on the held-out models."""


def regmix(job: Job[RegmixSettings]) -> WeightSet:
    """Train the remaining tiny models, fit the regression, and return the mean of the best mixtures."""
    store, settings = job.store, job.settings
    settings.require_libraries()
    tokens = np.array([store.tokens()[source] for source in store.sources], dtype=np.float64)
    shares = tokens / tokens.sum()
    generator = np.random.default_rng(settings.seed)
    planned = mixtures(shares, settings.runs, generator, settings)
    simulated = mixtures(shares, settings.simulations, generator, settings)
    done = job.rewind(settings.runs)
    targets = settings.target_weights(store)
    for index in range(len(done), settings.runs):
        # all models start from the same parameters and read the text in the same order
        proxy = BaselineProxy(store, settings, job.recipe)
        row: MetricsRow = {}
        for last in train_on(planned[index], proxy):
            job.stop_if_asked(index, "run")
            row = last
        validation = proxy.finite_validation_losses()
        row |= {
            "step": index + 1,
            "target_loss": sum(weight * validation[source] for source, weight in targets.items()),
            "tokens": (index + 1) * proxy.tokens,
            "languages": language_weights(job.store, planned[index]),
            "sources": dict(zip(store.sources, planned[index].tolist(), strict=True)),
            "validation": validation,
        }
        done.append(row)
        job.log(row)
    tried = np.array([[row["sources"][source] for source in store.sources] for row in done])  # (runs, k)
    losses = np.array([row["target_loss"] for row in done])
    weights, correlation = best_mixture(tried, losses, simulated, settings)
    advice = "" if correlation >= FAIR else "; so low, the weights say little: take more runs or more steps"
    job.on_note(f"rank correlation of predicted and true loss over the held-out runs: {correlation:.2f}{advice}")
    about = {"held_out_rank_correlation": None if np.isnan(correlation) else correlation}
    return job.finish(weights, tokens=done[-1]["tokens"], about=about)


def mixtures(shares: Floats, count: int, generator: np.random.Generator, settings: RegmixSettings) -> Floats:
    """Return random weights around the shares of the corpus: (count, k).

    Each row is drawn from a Dirichlet distribution. Its mean is the shares to the power `temperature`, normalised. Its
    concentration is random. Small concentrations give mixtures of few sources, and large ones mixtures of all sources.
    """
    centre = shares**settings.temperature / (shares**settings.temperature).sum()
    strengths = np.geomspace(settings.least_strength, settings.greatest_strength, STRENGTHS)
    drawn = generator.integers(STRENGTHS, size=count)
    drawn_weights = np.empty((count, shares.size))
    for index, strength in enumerate(strengths):
        chosen = drawn == index
        drawn_weights[chosen] = generator.dirichlet(centre * strength, size=int(chosen.sum()))
    return drawn_weights


def best_mixture(tried: Floats, losses: Floats, simulated: Floats, settings: RegmixSettings) -> tuple[Floats, float]:
    """Return the mean of the simulated mixtures with the best predictions, and the rank correlation of predictions.

    Args:
        tried: (n, k) weights of the runs.
        losses: (n,) losses of the runs.
        simulated: (m, k) weights to choose from.
        settings: the regressor, and how many of the best mixtures are averaged.

    Returns:
        Weights, (k,), and Spearman's rank correlation over the held-out runs; NaN if all predictions are equal.
    """
    cut = len(losses) - max(2, round(HELD_OUT * len(losses)))
    fit = _linear if settings.regressor == "linear" else _lightgbm
    predict = fit(tried[:cut], losses[:cut], tried[cut:], losses[cut:], settings.seed)
    order = np.argsort(predict(simulated), kind="stable")[: settings.best]
    mean: Floats = simulated[order].mean(axis=0)
    return mean / mean.sum(), rank_correlation(predict(tried[cut:]), losses[cut:])


def _linear(x: Floats, y: Floats, x_held: Floats, y_held: Floats, seed: int) -> Callable[[Floats], Floats]:
    """Return a least-squares fit. It has no intercept, since weights that sum to 1 include one."""
    coefficients = np.linalg.lstsq(x, y, rcond=None)[0]
    return lambda weights: weights @ coefficients


def _lightgbm(x: Floats, y: Floats, x_held: Floats, y_held: Floats, seed: int) -> Callable[[Floats], Floats]:
    from xdoge.laws.rivals import boost

    options = {
        **BOOSTING,
        "seed": seed,
        "min_data_in_leaf": max(1, min(20, len(y) // 10)),  # with few runs, the default of 20 allows no split
        "deterministic": True,
        "force_row_wise": True,
        "num_threads": 1,
    }
    model = boost(x, y, options, 1000, held_out=(x_held, y_held))

    def predict(weights: Floats) -> Floats:
        return np.asarray(model.predict(weights, num_iteration=model.best_iteration), dtype=np.float64)

    return predict


def rank_correlation(predicted: Floats, true: Floats) -> float:
    """Return Spearman's rank correlation; NaN if either series is constant."""
    from scipy.stats import spearmanr

    return float("nan") if np.ptp(predicted) == 0 or np.ptp(true) == 0 else float(spearmanr(predicted, true).statistic)
