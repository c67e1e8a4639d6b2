"""Synthetic swarms whose law is known."""

from __future__ import annotations

import numpy as np

from xdoge.laws.effective import Effective
from xdoge.laws.problem import Problem

NAMES = ("en", "es", "gl", "eu")


def known_law(*, passes=None, transfer=None, seed=0) -> Effective:
    """Return a law of four languages, in which Spanish helps Galician more than Galician helps Spanish."""
    k = len(NAMES)
    generator = np.random.default_rng(seed)
    table = np.array([[1, 0.1, 0.01, 0.01], [0.1, 1, 0.3, 0.01], [0.05, 0.6, 1, 0.01], [0.02, 0.02, 0.02, 1]])
    return Effective(
        problem=Problem(NAMES, NAMES, tuple((i,) for i in range(k)), passes),
        floor=generator.uniform(1.0, 1.3, k),
        level=generator.normal(-0.8, 0.1, k),
        exponent=generator.uniform(0.25, 0.45, k),
        offset=np.full(k, 0.02),
        harm=np.full(k, 0.1 if passes else 0.0),
        transfer=table if transfer is None else transfer,
        decay=1 / 15,
        noise=np.zeros(k),
    )


def runs(law: Effective, n: int, *, noise: float = 0.0, seed: int = 0):
    """Return shares (n, k), the first of them equal, and losses (n, L) with noise that is partly common to a run."""
    k = len(law.problem.sources)
    generator = np.random.default_rng(seed)
    shares = np.vstack([np.full(k, 1 / k), generator.dirichlet(np.ones(k), n - 1)])
    common, single = generator.standard_normal((n, 1)), generator.standard_normal((n, len(law.problem.evaluations)))
    return shares, law.predict(shares) + noise * (0.6 * common + 0.8 * single)
