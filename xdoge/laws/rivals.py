"""Regressions that other methods use for mixtures: linear, log-linear (Olmix) and LightGBM (RegMix).

They are fitted to the same runs as the law and compared with it. Only the fit needs LightGBM: the trees are kept as
arrays, and NumPy evaluates them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from xdoge.errors import importing
from xdoge.laws.problem import Floats, Problem, are_indices, array_of

RIDGE = 1e-3
"""Penalty on the squared coefficients of standardised losses. It matters only for coefficients that the runs leave
open."""

LEAVES = 8
"""Most leaves of a tree: the bits of a byte, in which `_tree` marks the leaves that remain."""
BOOSTING = {
    "objective": "regression",
    "learning_rate": 0.05,
    "num_leaves": LEAVES,
    "min_data_in_leaf": 3,
    "min_data_in_bin": 1,
    "lambda_l2": 0.1,
    "verbosity": -1,
    "num_threads": 1,
    "deterministic": True,
}
"""Settings for tens to hundreds of runs. RegMix's own settings (31 leaves of at least 20 runs) need more runs.

These were the best of ten settings at 48 runs. Sampling of rows or columns was worse (docs/experiments.md)."""
ROUNDS = 400


@dataclass(frozen=True)
class Linear:
    """Loss as a linear function of the shares.

    Attributes:
        problem: names.
        constant: shape (L,).
        coefficients: shape (L, k), loss per share.
    """

    problem: Problem
    constant: Floats
    coefficients: Floats

    smooth = True
    convex = True

    def predict(self, shares: Floats) -> Floats:
        """Return losses, shape (m, L), for shares of shape (m, k)."""
        return self.constant + shares @ self.coefficients.T

    def slopes(self, share: Floats) -> tuple[Floats, Floats]:
        """Return losses, shape (L,), and their derivatives by the shares, shape (L, k), at one mixture."""
        return self.predict(share[None])[0], self.coefficients

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"constant": self.constant.tolist(), "coefficients": self.coefficients.tolist()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], problem: Problem) -> Linear:
        """Read what `to_dict` wrote."""
        return cls(problem, *_row_and_table(problem, value["constant"], value["coefficients"]))


def fit_linear(problem: Problem, shares: Floats, losses: Floats, seed: int = 0) -> Linear:
    """Return the ridge regression of the losses on the shares."""
    centre = losses.mean(axis=0)
    middle = shares.mean(axis=0)
    x = shares - middle
    coefficients = np.linalg.solve(x.T @ x + RIDGE * np.eye(shares.shape[1]), x.T @ (losses - centre)).T
    return Linear(problem, centre - coefficients @ middle, coefficients)


@dataclass(frozen=True)
class LogLinear:
    """Loss as a constant plus the exponential of a linear function of the shares.

    Attributes:
        problem: names.
        floor: c, shape (L,).
        coefficients: A, shape (L, k). The shares sum to 1, so A includes a constant.

    Source: Olmix, arXiv:2602.12237: c + exp(A w).
    """

    problem: Problem
    floor: Floats
    coefficients: Floats

    smooth = True
    convex = True

    def predict(self, shares: Floats) -> Floats:
        """Return losses, shape (m, L), for shares of shape (m, k)."""
        return self.floor + np.exp(np.minimum(shares @ self.coefficients.T, 50.0))

    def slopes(self, share: Floats) -> tuple[Floats, Floats]:
        """Return losses, shape (L,), and their derivatives by the shares, shape (L, k), at one mixture."""
        excess = np.exp(np.minimum(self.coefficients @ share, 50.0))
        return self.floor + excess, excess[:, None] * self.coefficients

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"floor": self.floor.tolist(), "coefficients": self.coefficients.tolist()}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], problem: Problem) -> LogLinear:
        """Read what `to_dict` wrote."""
        return cls(problem, *_row_and_table(problem, value["floor"], value["coefficients"]))


def fit_log_linear(problem: Problem, shares: Floats, losses: Floats, seed: int = 0) -> LogLinear:
    """Return the least-squares fit of c + exp(A w), with a small ridge on A.

    Source: Olmix, arXiv:2602.12237.
    """
    k = shares.shape[1]
    deviation, best = losses.std(axis=0), losses.min(axis=0)
    targets = (losses - best) / deviation
    count = losses.shape[1]

    def objective(theta: Floats) -> tuple[float, Floats]:
        rows = theta.reshape(count, k + 1)
        below, a = np.exp(np.minimum(rows[:, k], 5.0)), rows[:, :k]
        excess = np.exp(np.clip(shares @ a.T, -50.0, 50.0))
        residuals = excess - below - targets
        by_excess = residuals * excess
        gradient = np.hstack([by_excess.T @ shares + RIDGE * a, (-residuals.sum(axis=0) * below)[:, None]])
        gradient[:, k] += RIDGE * rows[:, k]
        value = 0.5 * float((residuals**2).sum()) + 0.5 * RIDGE * float((rows**2).sum())
        return value, gradient.ravel()

    start = np.tile(np.concatenate([np.zeros(k), [-1.0]]), count)
    result = minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 1000, "maxcor": 20})
    rows = result.x.reshape(count, k + 1)
    floor = best - deviation * np.exp(np.minimum(rows[:, k], 5.0))
    return LogLinear(problem, floor, rows[:, :k] + np.log(deviation)[:, None])


@dataclass(frozen=True)
class Trees:
    """Boosted regression trees per evaluation, as arrays.

    Attributes:
        problem: names.
        forests: per evaluation, LightGBM's trees as columns feature, threshold, left, right and value. Node i sends a
            mixture to the left if the share of its feature is at most the threshold. A child >= 0 is a node, and ~child
            is a leaf.
    """

    problem: Problem
    forests: tuple[tuple[dict[str, list[Any]], ...], ...]

    smooth = False
    convex = False

    def predict(self, shares: Floats) -> Floats:
        """Return losses, shape (m, L), for shares of shape (m, k).

        Each node is tested for all mixtures at once.
        """
        out = np.zeros((len(shares), len(self.forests)))
        columns = np.ascontiguousarray(shares.T)
        for row, forest in enumerate(self.forests):
            for tree in forest:
                out[:, row] += _tree(tree, columns)
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"forests": [list(forest) for forest in self.forests]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any], problem: Problem) -> Trees:
        """Read what `to_dict` wrote."""
        if len(value["forests"]) != len(problem.evaluations):
            raise ValueError(f"there are {len(value['forests'])} forests for {len(problem.evaluations)} evaluations")
        for tree in itertools.chain.from_iterable(value["forests"]):
            _check_tree(tree, len(problem.sources))
        return cls(problem, tuple(tuple(forest) for forest in value["forests"]))


def _row_and_table(problem: Problem, row: Any, table: Any) -> tuple[Floats, Floats]:
    """Return numbers of a file as arrays of shape (L,) and (L, k)."""
    rows, columns = len(problem.evaluations), len(problem.sources)
    return array_of(row, rows), array_of(table, rows, columns)


def _check_tree(tree: Mapping[str, list[Any]], sources: int) -> None:
    """Raise ValueError or another error if a tree of a file cannot be evaluated."""
    nodes = len(tree["feature"])
    array_of(tree["threshold"], nodes)
    array_of(tree["value"], nodes + 1)
    if not nodes:
        return
    children = [(parent, child) for side in ("left", "right") for parent, child in enumerate(tree[side])]
    every = [*range(-nodes - 1, 0), *range(1, nodes)]  # every leaf, and every node but the root, has one parent
    forward = all(type(child) is int and (child < 0 or parent < child) for parent, child in children)
    if not forward or sorted(child for _, child in children) != every:
        raise ValueError("the nodes of a tree do not form a tree")
    if nodes >= LEAVES or not are_indices(tree["feature"], sources):
        raise ValueError("a tree has too many nodes, or a feature that is no source")


_FIRST = np.array([(code & -code).bit_length() - 1 if code else 0 for code in range(256)])
"""Position of the lowest set bit of each byte."""


def _tree(tree: Mapping[str, list[Any]], columns: Floats) -> Floats:
    """Return the values of one tree for all mixtures, shape (m,); `columns` has shape (k, m).

    Leaves are numbered from left to right. A test that fails excludes the leaves on its left. So a mixture reaches the
    first leaf that no failed test excludes (QuickScorer, Lucchese et al. 2015).
    """
    leaves = np.array(tree["value"])
    if not tree["feature"]:
        return np.full(columns.shape[1], leaves[0])
    ruled_out = np.zeros(columns.shape[1], dtype=np.uint8)
    for feature, threshold, kept in zip(tree["feature"], tree["threshold"], _kept_leaves(tree), strict=True):
        ruled_out |= (columns[feature] > threshold).view(np.uint8) * np.uint8(255 - kept)
    table = leaves[np.minimum(_FIRST, len(leaves) - 1)]
    return np.asarray(table[255 - ruled_out])


def _kept_leaves(tree: Mapping[str, list[Any]]) -> list[int]:
    """Return for each node the leaves that remain if its test fails, as a bit mask."""
    kept = [0] * len(tree["feature"])

    def under(child: int) -> int:
        if child < 0:
            return 1 << ~child
        left, right = under(tree["left"][child]), under(tree["right"][child])
        kept[child] = 255 & ~left
        return left | right

    under(0)
    return kept


def fit_trees(problem: Problem, shares: Floats, losses: Floats, seed: int = 0) -> Trees:
    """Return boosted trees for each evaluation.

    Raises:
        MissingExtraError: LightGBM is not installed.

    Source: RegMix, arXiv:2407.01492, with `BOOSTING` for fewer runs.
    """
    forests = []
    for row in range(losses.shape[1]):
        model = boost(shares, losses[:, row], BOOSTING | {"seed": seed}, ROUNDS)
        forests.append(tuple(_flat(tree["tree_structure"]) for tree in model.dump_model()["tree_info"]))
    return Trees(problem, tuple(forests))


def boost(
    shares: Floats,
    losses: Floats,
    options: Mapping[str, Any],
    rounds: int,
    *,
    held_out: tuple[Floats, Floats] | None = None,
) -> Any:
    """Return LightGBM's model of one loss. The RegMix baseline uses it too.

    Args:
        shares: shape (n, k).
        losses: shape (n,).
        options: parameters of LightGBM.
        rounds: largest number of trees.
        held_out: shares and losses of other runs. Boosting ends after 3 trees that do not improve on them.

    Raises:
        MissingExtraError: LightGBM is not installed.
    """
    with importing("baselines"):
        import lightgbm
    data = lightgbm.Dataset(shares, losses, params=dict(options))
    if held_out is None:
        return lightgbm.train(dict(options), data, rounds)
    held = lightgbm.Dataset(*held_out, reference=data, params=dict(options))
    stop = lightgbm.early_stopping(3, verbose=False)
    return lightgbm.train(dict(options), data, rounds, valid_sets=[held], callbacks=[stop])


def _flat(root: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Return one tree of LightGBM's dump as columns; see `Trees.forests`."""
    tree: dict[str, list[Any]] = {"feature": [], "threshold": [], "left": [], "right": [], "value": []}

    def place(node: Mapping[str, Any]) -> int:
        if "split_feature" not in node:
            tree["value"].append(float(node["leaf_value"]))
            return ~(len(tree["value"]) - 1)
        index = len(tree["feature"])
        tree["feature"].append(int(node["split_feature"]))
        tree["threshold"].append(float(node["threshold"]))
        tree["left"].append(0)
        tree["right"].append(0)
        tree["left"][index] = place(node["left_child"])
        tree["right"][index] = place(node["right_child"])
        return index

    place(root)
    return tree


@functools.cache
def has_lightgbm() -> bool:
    """Return whether LightGBM can be imported."""
    import importlib.util

    return importlib.util.find_spec("lightgbm") is not None
