"""The mixtures that a swarm trains on: anchors, contrasts, and the points of a D-optimal design.

*Anchors* are common mixtures: equal shares, proportional shares and a temperature between them. Two of them are trained
with several seeds, which measures the repeat noise. *Contrasts* give each language a large share once and a small share
once. All other points are chosen one by one from random candidates. Each is the candidate that raises the determinant
of the information matrix most, given all points chosen before (D-optimal design).
"""

from __future__ import annotations

import math

import numpy as np

from xdoge.laws.effective import NOISE, PRIOR_DEVIATIONS, PRIOR_MEANS, SLOPE_MEAN, Effective, jacobian
from xdoge.laws.problem import Floats, Problem

CANDIDATES = 10_000
"""Number of random mixtures from which the points are chosen."""
STRENGTHS = (1.0, 8.0)
"""Range of the Dirichlet parameter of each share. Small values give mixtures near the corners of the simplex, and large
values give mixtures near equal shares."""
RICH, POOR = 4.0, 0.1
"""Large and small share of a contrast, as multiples of the equal share 1 / k."""
RICHEST = 0.7
"""Upper bound on the large share of a contrast, so that the other languages are still trained."""
NEAR = 60.0
"""Sum of the Dirichlet parameters for candidates near an optimum. Their shares deviate from it by about a fifth."""


def within(shares: Floats, most: Floats) -> Floats:
    """Return shares cut to `most`. What is cut goes to the other shares, in proportion to them.

    Args:
        shares: shape (..., k), rows sum to 1.
        most: shape (k,), largest share of each; its sum is at least 1.
    """
    bounded = np.minimum(shares, most)
    for _ in range(shares.shape[-1]):
        left = 1.0 - bounded.sum(axis=-1, keepdims=True)
        if (left < 1e-12).all():
            break
        room = np.where(bounded < most, np.maximum(bounded, 1e-9), 0.0)
        total = room.sum(axis=-1, keepdims=True)
        bounded = np.minimum(bounded + np.divide(room * left, total, out=np.zeros_like(room), where=total > 0), most)
    return np.asarray(bounded / bounded.sum(axis=-1, keepdims=True))


def contrasts(k: int, most: Floats) -> Floats:
    """Return 2 k mixtures, shape (2 k, k): first each share large once, then each small once. The others are equal."""
    rows = []
    for share in (min(RICHEST, RICH / k), POOR / k):
        for j in range(k):
            row = np.full(k, (1 - share) / (k - 1))
            row[j] = share
            rows.append(row)
    return within(np.array(rows), most)


def candidates(k: int, most: Floats, *, seed: int, count: int = CANDIDATES) -> Floats:
    """Return random mixtures around equal shares, within `most`: shape (count, k)."""
    generator = np.random.Generator(np.random.Philox(key=[seed, 1]))
    strengths = np.exp(generator.uniform(math.log(STRENGTHS[0]), math.log(STRENGTHS[1]), size=(count, 1)))
    draws = generator.gamma(np.broadcast_to(strengths, (count, k))) + 1e-12
    return within(draws / draws.sum(axis=1, keepdims=True), most)


def candidates_near(optimum: Floats, most: Floats, *, seed: int, count: int = CANDIDATES) -> Floats:
    """Return random mixtures around an optimum, shape (k,), within `most`: shape (count, k)."""
    generator = np.random.Generator(np.random.Philox(key=[seed, 2]))
    draws = generator.gamma(NEAR * (optimum + 0.1 / len(optimum)), size=(count, len(optimum))) + 1e-12
    return within(draws / draws.sum(axis=1, keepdims=True), most)


def prior_law(problem: Problem, affinity: Floats | None = None) -> Effective:
    """Return the effective-data law at the means of its priors, for losses with a standard deviation of 1.

    Args:
        problem: names, own sources and passes.
        affinity: from `xdoge.laws.transfer.read_affinity`, shape (L, k). It changes the transfer. None for none.
    """
    rows, k = len(problem.evaluations), len(problem.sources)
    moved = np.zeros((rows, k)) if affinity is None else SLOPE_MEAN * affinity
    return Effective(
        problem=problem,
        floor=np.zeros(rows),
        level=np.zeros(rows),
        exponent=np.full(rows, np.exp(PRIOR_MEANS[1])),
        offset=np.full(rows, np.exp(PRIOR_MEANS[2])),
        harm=np.full(rows, 0.05 if problem.passes else 0.0),
        transfer=np.where(problem.is_own, 1.0, np.exp(PRIOR_MEANS[0] + moved)),
        decay=1 / 15,
        noise=np.full(rows, NOISE),
    )


def most_informative(law: Effective, chosen: Floats, pool: Floats, count: int) -> Floats:
    """Return the `count` mixtures of a pool that add most information about the law, shape (count, k).

    Greedy D-optimal design: each pick maximises Σ_l ln det(J_l'J_l / σ² + prior). J_l has a row for each mixture in
    `chosen` and for each pick so far.

    Args:
        law: the law at whose parameters the information is computed.
        chosen: shape (n, k), mixtures that are trained anyway.
        pool: shape (m, k), candidates.
        count: how many to pick.

    Source: Fedorov 1972, Theory of Optimal Experiments; the prior makes it a Bayesian design (Chaloner and Verdinelli
    1995).
    """
    k = pool.shape[1]
    spread = np.concatenate([np.full(k, PRIOR_DEVIATIONS[0]), PRIOR_DEVIATIONS[1:], [3.0, 1.0]])
    scale = law.noise[None, :, None]
    known, unknown = jacobian(law, chosen) / scale, jacobian(law, pool) / scale
    information = np.diag(1 / spread**2) + np.einsum("nlp,nlq->lpq", known, known)
    covariance = np.linalg.inv(information)  # (L, p, p)
    picks: list[int] = []
    for _ in range(count):
        moved = np.einsum("lpq,mlq->mlp", covariance, unknown)
        gain = np.einsum("mlp,mlp->ml", unknown, moved)
        information_gain = np.log1p(gain).sum(axis=1)
        information_gain[picks] = -np.inf  # each mixture once: its two runs could be in different folds
        pick = int(information_gain.argmax())
        picks.append(pick)
        column = moved[pick]  # (L, p)
        covariance -= np.einsum("lp,lq->lpq", column, column) / (1 + gain[pick])[:, None, None]
    return pool[picks]
