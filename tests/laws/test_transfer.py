"""Transfer: its intervals contain the true values, and affinity is used only if it helps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from law_swarms import NAMES, known_law, runs

from xdoge.errors import XDogeError
from xdoge.fit.affinity import GradientAffinity
from xdoge.laws.effective import fit_effective
from xdoge.laws.law import LawSettings, MixtureLaw
from xdoge.laws.transfer import read_affinity, transfer_intervals

PASSES = (0.5, 3.0, 20.0, 60.0)


@pytest.mark.parametrize("passes", [None, PASSES])
def test_intervals_hold_the_true_transfer(passes):
    inside, is_noise = [], []
    for seed in range(6):
        truth = known_law(passes=passes, seed=seed)
        shares, losses = runs(truth, 40, noise=0.01, seed=seed)
        intervals = transfer_intervals(fit_effective(truth.problem, shares, losses), shares, losses)
        others = ~truth.problem.is_own
        inside.append(((intervals.low <= truth.transfer) & (truth.transfer <= intervals.high))[others])
        is_noise.append(intervals.is_noise)
        assert (intervals.four_epochs is None) == (passes is None)
    assert np.mean(inside) > 0.85
    gl, es, eu = (NAMES.index(name) for name in ("gl", "es", "eu"))
    assert not np.array(is_noise)[:, gl, es].any()
    assert np.array(is_noise)[:, gl, eu].mean() > 0.4


def save_gram(folder, sources, gram):
    products = SimpleNamespace(gram=np.array(gram), half_products=np.full(len(sources), np.nan))
    table = GradientAffinity.empty(len(sources)).add(products, step=1, steps=10).to_table(sources, steps=10)
    pq.write_table(table, folder / "gram.parquet")
    return folder


def test_affinity_is_measured_in_gradients_of_the_evaluation(tmp_path):
    gram = [[4.0, 1.0, -1.0], [1.0, 1.0, 0.0], [-1.0, 0.0, 2.0]]
    save_gram(tmp_path, ["en/web", "es/web", "eu/web"], gram)
    for sources in (("en/web", "es/web", "eu/web"), ("en", "es", "eu")):
        logs = read_affinity(tmp_path, sources, ("en", "es", "fr"), None)
        # en gains 1/4 of a step from es, and es gains a whole step from en. Both gain least from eu.
        assert logs[0, 1] - logs[1, 0] == pytest.approx(np.log(0.25))
        assert logs[0, 2] - logs[1, 0] == pytest.approx(np.log(0.01))
        assert logs[2].tolist() == [0, 0, 0]
    with pytest.raises(XDogeError, match="gl/web"):
        read_affinity(tmp_path, ("en/web", "es/web", "gl/web"), ("en",), None)
    with pytest.raises(XDogeError, match="nowhere"):
        read_affinity(tmp_path / "nowhere", ("en",), ("en",), None)


@pytest.mark.slow
@pytest.mark.parametrize("true", [True, False])
def test_affinity_is_used_only_if_it_lowers_the_error(true):
    truth = known_law()
    shares, losses = runs(truth, 12, noise=0.005, seed=3)
    logs = np.log(truth.transfer)
    if not true:
        logs = np.random.default_rng(1).permuted(logs)
    logs = np.where(truth.problem.is_own, 0.0, logs - logs[~truth.problem.is_own].mean())
    settings = LawSettings(validate_rivals=False, affinity=logs)
    law = MixtureLaw.fit(shares, losses, sources=NAMES, evaluations=NAMES, form="effective", settings=settings)
    assert (law.problem.affinity is not None) == true
    assert ("helped" in law.notes[-1]) == true
