"""Transfer between sources: its intervals, and a prior for it from the gradients of a fit.

The Gram matrix of a fit compares a small step on source j with a step on evaluation l's own text, by their effects on
the loss of l: t_lj = <g_j, grad l_l> / |grad l_l|². Inner products of gradients are symmetric and describe one step.
Transfer is not symmetric, and it acts over a whole run. So t only moves the prior mean of ln τ, to c0 + c1 ln t, where
c0 and c1 are fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xdoge.errors import XDogeError, argument, names_that_differ
from xdoge.laws.effective import DECAY_DEVIATION, PRIOR_DEVIATIONS, Effective, epoch_value, jacobian, regressors
from xdoge.laws.problem import Floats, Problem
from xdoge.names import language_of

LEAST_AFFINITY = 0.01
"""Lower bound on t. Gradients that oppose each other count as no transfer."""
DEVIATIONS = (0.5, 1.0, 1.5)
"""Values tried for σ of the prior. The last is σ of the prior without gradients."""
WORTH_IT = 0.99
"""The prior is used if it lowers the cross-validated error to this part of the error without it."""
Z = 1.645


@dataclass(frozen=True)
class TransferIntervals:
    """90 % intervals of the transfer and of the value of repetition.

    Attributes:
        low: lower ends, shape (L, k); 1 for an evaluation's own sources.
        high: upper ends, shape (L, k); 1 for an evaluation's own sources.
        is_noise: True where the transfer may be 0, shape (L, k).
        four_epochs: lower and upper end of the value of four epochs, in epochs of new text; None if token counts are
            unknown.
    """

    low: Floats
    high: Floats
    is_noise: NDArray[np.bool_]
    four_epochs: tuple[float, float] | None


def transfer_intervals(law: Effective, shares: Floats, losses: Floats) -> TransferIntervals:
    """Return 90 % intervals of the transfer and of the value of repetition.

    They come from Laplace's approximation at the fitted law, with the Gauss-Newton curvature of the posterior. The
    evaluations share only the parameter λ.

    Args:
        law: the law that is fitted to these runs.
        shares: shape (n, k).
        losses: shape (n, L).
    """
    k = shares.shape[1]
    slopes = jacobian(law, shares)  # (n, L, k + 5)
    slopes[:, :, k + 2] *= np.maximum(losses.min(axis=0) - law.floor, 1e-12)
    values, by_decay, _ = regressors(law.problem, shares, law.decay)
    losses_above = law.predict(shares) - law.floor
    by_effective = -losses_above * law.exponent / (values @ law.transfer.T + law.offset)
    by_log_decay = by_effective * (by_decay @ law.transfer.T)  # (n, L)
    spread = np.concatenate([np.full(k, PRIOR_DEVIATIONS[0]), PRIOR_DEVIATIONS[1:], [3.0, 1.0]])
    if law.problem.transfer_deviation is not None:
        spread[:k] = law.problem.transfer_deviation
    scaled, decay = slopes / law.noise[:, None], by_log_decay / law.noise
    covariance = np.linalg.inv(np.diag(1 / spread**2) + np.einsum("nlp,nlq->lpq", scaled, scaled))
    shared = np.einsum("nlp,nl->lp", scaled, decay)
    moved = np.einsum("lpq,lq->lp", covariance, shared)
    information = 1 / DECAY_DEVIATION**2 + float((decay**2).sum()) - float((shared * moved).sum())
    variance = np.einsum("lpp->lp", covariance)[:, :k] + moved[:, :k] ** 2 / information
    error = np.where(law.problem.is_own, 0.0, np.sqrt(variance))
    four = None
    if law.problem.passes is not None:
        ends = law.decay * np.exp(np.array([Z, -Z]) / np.sqrt(information))
        four = (float(epoch_value(np.array([4.0]), ends[0])[0][0]), float(epoch_value(np.array([4.0]), ends[1])[0][0]))
    # Shares sum to 1, so a little more transfer from every source has the same effect as a larger offset d.
    width = np.where(law.problem.is_own, 0.0, law.offset[:, None])
    low = np.maximum(law.transfer * np.exp(-Z * error) - width, 0.0)
    high = law.transfer * np.exp(Z * error) + width
    return TransferIntervals(low, high, (low <= 0) | (error * Z > 1), four)


def read_affinity(
    run: Path | str,
    sources: Sequence[str],
    evaluations: Sequence[str],
    members: Mapping[str, Mapping[str, float]] | None,
) -> Floats:
    """Return ln t of each evaluation and source, minus the mean of all, shape (L, k); 0 where it is unknown.

    Args:
        run: folder of a fit, with gram.parquet.
        sources: names of the shares: the sources of the fit, or its languages.
        evaluations: L names. An evaluation that is not named like a language of the fit has no gradient.
        members: for shares of languages, the sources of each share with their parts of it.

    Raises:
        XDogeError: the folder has no gram.parquet, or the fit had other sources.
    """
    from pyarrow import parquet

    from xdoge.fit.affinity import read_products

    path = Path(run) / "gram.parquet"
    if not path.exists():
        raise XDogeError(f"{argument('affinity')}: {path} does not exist; name the folder of a fit.")
    names: list[str] = parquet.read_table(path, columns=["source"])["source"].unique().to_pylist()
    if members is None:
        plain = {language: [name for name in names if language_of(name) == language] for language in sources}
        members = (
            {name: {name: 1.0} for name in sources}
            if set(sources) & set(names)
            else {language: dict.fromkeys(group, 1 / max(1, len(group))) for language, group in plain.items()}
        )
    wanted = [name for parts in members.values() for name in parts]
    if (differing := names_that_differ("the fit", names, "the law", wanted)) or not all(members.values()):
        raise XDogeError(f"{path} and the law name different sources; {differing or 'a language has none'}.")
    parts = np.array([[members[unit].get(name, 0.0) for name in names] for unit in sources])  # (k, K)
    rows = np.array([[float(language_of(name) == evaluation) for name in names] for evaluation in evaluations])
    rows = (rows * parts.sum(axis=0)) / np.maximum((rows * parts.sum(axis=0)).sum(axis=1, keepdims=True), 1e-12)
    products = np.nan_to_num(read_products(path, names))
    own = np.einsum("li,ij,lj->l", rows, products, rows)
    known = own > 0
    ratio = rows @ products @ parts.T / np.where(known, own, 1.0)[:, None]
    logs = np.log(np.clip(ratio, LEAST_AFFINITY, 1.0))
    others = known[:, None] & ~np.array([[language_of(name) == e for name in sources] for e in evaluations])
    centre = logs[others].mean() if others.any() else 0.0
    return np.asarray(np.where(others, logs - centre, 0.0))


def candidates_of_prior(problem: Problem, affinity: Floats) -> list[Problem]:
    """Return the problem with each σ that is tried, both without and with the affinity.

    A narrower prior alone may lower the error, and this should not count in favour of the gradients.
    """
    rows: Any = tuple(tuple(row) for row in affinity.tolist())
    narrower = [replace(problem, transfer_deviation=deviation) for deviation in DEVIATIONS]
    return [*narrower, *(replace(candidate, affinity=rows) for candidate in narrower)]
