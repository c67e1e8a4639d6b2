"""Moving targets: robust targets agree with linear programming, and the guard keeps losses near the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fit_runs import metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from xdoge import XDogeError
from xdoge.analysis import charts
from xdoge.fit import reweight
from xdoge.fit.gradients.products import SourceProducts
from xdoge.fit.reweight import Rule
from xdoge.fit.settings import FitSettings
from xdoge.fit.targets import TargetRule, TargetState, advance, language_shares
from xdoge.fit.trainer import fit

STEPS = 1500
MEMBERS = [[0], [1, 2], [3, 4, 5]]


def gradients(seed, kinds=MEMBERS, relatives=0.6, lengths=(1, 1, 1, 1, 1)):
    """Return k gradients, (k, P). All languages but the first are similar, and sources of one language even more so."""
    generator = np.random.default_rng(seed)
    grads = np.zeros((sum(map(len, kinds)), 40))
    common = generator.normal(size=40)
    for language, members in enumerate(kinds):
        own = generator.normal(size=40) + (relatives * common if language else 0)
        for source in members:
            grads[source] = lengths[language] * (own + 0.5 * generator.normal(size=40))
    return grads / np.sqrt(40)


def products(gradients, alpha, tau, reference=None):
    gram = gradients @ gradients.T
    return SourceProducts(
        losses=np.full(len(gram), 5.0),
        scores=gram @ tau,
        square_norms=np.diag(gram),
        half_products=np.diag(gram),
        gram=None,
        progress=gram @ alpha,
        reference=None if reference is None else gram @ reference,
    )


def play(gradients, target_rule, rule, steps=STEPS, losses=None):
    """Return the mean weights and the state of the targets after a fit with constant gradients."""
    weights, state = (
        reweight.Weights.start(rule.trained / rule.trained.sum()),
        TargetState.start(len(target_rule.shares)),
    )
    for step in range(steps):
        tau = state.targets(target_rule)
        seen = products(gradients, weights.now, tau, target_rule.reference)
        if losses is not None:
            seen = replace(seen, losses=losses(step, weights.now))
        now, alpha = replace(rule, targets=tau, masses=state.masses(target_rule)), weights.now
        weights, _ = reweight.step(weights, seen, rule=now, eta=1 / steps)
        state, _ = advance(state, seen, alpha, target_rule=target_rule, rule=now, eta=1 / steps)
    return weights.average, state


def both_rules(k, members=MEMBERS, mu=0.01, **options):
    base = np.zeros(k)
    for sources in members:
        base[sources] = 1 / len(sources)
    shares = language_shares(members, base)
    rule = Rule(
        base, np.ones(k, dtype=bool), 0.0, mu, score="unbiased", normalise="mean_square", shares=shares.mean(axis=0)
    )
    return TargetRule(shares=shares, base=base, robust=True, mu=mu, **options), rule


def relative_progress(gradients, target_rule):
    """Return A with A @ alpha the relative progress of each language, (L, k)."""
    gram = gradients @ gradients.T
    return target_rule.shares @ gram / (target_rule.shares @ np.diag(gram))[:, None]


@pytest.mark.parametrize("mu", [0.01, 0.1])
@pytest.mark.parametrize("lengths", [(1, 1, 1), (1, 3, 3), (1, 10, 10), (10, 1, 1)])
@pytest.mark.parametrize("seed", range(2))
def test_robust_targets_maximise_the_least_progress(seed, lengths, mu):
    grads = gradients(seed, lengths=lengths)
    target_rule, rule = both_rules(len(grads), mu=mu)
    alpha, _ = play(grads, target_rule, rule)
    matrix = relative_progress(grads, target_rule)
    best = linprog(  # maximise v with A α ≥ v on the simplex
        [0] * len(grads) + [-1],
        A_ub=np.c_[-matrix, np.ones(len(matrix))],
        b_ub=np.zeros(len(matrix)),
        A_eq=[[1] * len(grads) + [0]],
        b_eq=[1],
        bounds=[(0, None)] * len(grads) + [(None, None)],
    )
    regret = rule.mu * np.log(len(grads) * len(target_rule.shares)) + 1 / (2 * rule.mu * STEPS)  # of both players
    assert -best.fun >= (matrix @ alpha).min() >= -best.fun - regret
    assert (matrix @ alpha).min() > (matrix @ np.full(len(grads), 1 / len(grads))).min()


def test_robust_targets_protect_a_language_without_relatives():
    members = [[0], [1], [2], [3], [4]]
    grads = gradients(0, members, relatives=2.0)
    target_rule, rule = both_rules(5, members)
    robust, _ = play(grads, target_rule, rule)
    votes, _ = play(grads, replace(target_rule, robust=False), rule)
    matrix = relative_progress(grads, target_rule)
    assert (matrix @ votes)[0] < 0.02 < 0.2 < (matrix @ robust)[0]
    assert (matrix @ robust).min() > (matrix @ votes).min()


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-6, 1e6), st.integers(0, 10))
def test_the_scale_of_the_losses_does_not_change_the_weights(scale, seed):
    grads = gradients(seed)
    target_rule, rule = both_rules(len(grads), mu=0.1)
    ours, state = play(scale * grads, target_rule, rule, steps=20)
    theirs, other = play(grads, target_rule, rule, steps=20)
    np.testing.assert_allclose(ours, theirs, rtol=1e-9)
    np.testing.assert_allclose(state.tau, other.tau, rtol=1e-9)


def test_a_guard_keeps_a_language_near_the_reference():
    """The losses fall as the gradients predict: 10 − Σ_t P_ℓ / steps."""
    members = [[0], [1], [2], [3], [4]]
    grads = gradients(0, members, relatives=2.0)
    gram, uniform, start = grads @ grads.T, np.full(5, 0.2), np.full(5, 10.0)
    target_rule, rule = both_rules(5, members, mu=0.1, reference=uniform, allowance=0.005)
    target_rule = replace(target_rule, robust=False)

    def losses_with(target_rule):
        fallen = np.zeros(5)

        def losses(step, alpha):
            nonlocal fallen
            now = start - fallen
            fallen = fallen + gram @ alpha / STEPS
            return now

        _, state = play(grads, target_rule, rule, losses=losses)
        return (start - fallen) / (start - gram @ uniform) - 1, state

    free, _ = losses_with(replace(target_rule, reference=None))
    kept, state = losses_with(target_rule)
    assert free[0] > 0.02
    assert kept.max() < 0.005
    assert state.multiplier[0] > 0
    np.testing.assert_allclose(state.excess(), kept, atol=1e-3)


def test_a_language_without_any_progress_gets_the_largest_multiplier():
    """Two languages hinder each other: text that helps one raises the loss of the other."""
    grads = np.array([[1.0, 0.0], [-0.5, 1.0]])
    target_rule, rule = both_rules(2, [[0], [1]], mu=0.1, reference=np.full(2, 0.5))
    target_rule, alpha, state = replace(target_rule, robust=False), np.array([0.2, 0.8]), TargetState.start(2)
    for _ in range(40):
        shown = products(grads, alpha, state.targets(target_rule), target_rule.reference)
        state, _ = advance(state, shown, alpha, target_rule=target_rule, rule=rule, eta=1 / 40)
    assert state.progress[0] < 0 < state.reference_progress[0]
    assert np.isnan(state.excess()[0])
    assert state.multiplier.tolist() == [100.0, 0.0]


def test_a_loss_that_has_risen_does_not_move_its_multiplier():
    """Otherwise, more progress of the reference would count as a higher loss of the reference."""
    grads = np.eye(2)
    target_rule, rule = both_rules(2, [[0], [1]], mu=0.1, reference=np.full(2, 0.5))
    target_rule, alpha, state = replace(target_rule, robust=False), np.array([0.1, 0.9]), TargetState.start(2)
    state = replace(state, multiplier=np.array([7.0, 0.0]))
    for step in range(40):
        shown = products(grads, alpha, state.targets(target_rule), target_rule.reference)
        shown = replace(shown, losses=np.full(2, 5 + step / 80))
        state, _ = advance(state, shown, alpha, target_rule=target_rule, rule=rule, eta=1 / 40)
    assert np.isnan(state.excess()).all()
    assert state.multiplier.tolist() == [7.0, 0.0]


def test_the_guard_also_covers_a_language_without_targets():
    shares = language_shares([[0], [1, 2]], np.array([1.0, 0.0, 0.0]))
    assert shares.tolist() == [[1, 0, 0], [0, 0.5, 0.5]]


def test_a_language_that_is_not_in_the_batch_keeps_its_target():
    grads = gradients(0)
    target_rule, rule = both_rules(len(grads), mu=0.1)
    state = TargetState.start(3)
    shown = products(grads, np.full(6, 1 / 6), rule.targets)
    state, _ = advance(state, shown, np.full(6, 1 / 6), target_rule=target_rule, rule=rule, eta=0.1)
    hidden = replace(shown, half_products=np.array([np.nan, *shown.half_products[1:]]))
    after, progress = advance(state, hidden, np.full(6, 1 / 6), target_rule=target_rule, rule=rule, eta=0.1)
    assert np.isnan(progress).tolist() == [True, False, False]
    assert after.tau[0] == pytest.approx(state.tau[0], rel=1e-12)
    assert after.own_progress[0] == pytest.approx(state.own_progress[0], rel=1e-12)


def test_the_proxy_repeats_text_as_often_as_the_target_run(store, recipe):
    options = {"proxy": recipe, "steps": 50}
    whole = FitSettings.for_store(store, options)
    part = FitSettings.for_store(store, options | {"target_budget": 3 * whole.proxy_tokens})
    counts, seen = whole.sequences_seen(store), part.sequences_seen(store)
    assert counts == store.sequence_counts(whole.sequence_length)
    assert seen == {source: max(2, round(n / 3)) for source, n in counts.items()}
    held = FitSettings.for_store(store, part.model_dump() | {"held_out": ["eu/wiki"]})
    assert held.sequences_seen(store) == seen | {"eu/wiki": counts["eu/wiki"]}
    with pytest.raises(XDogeError, match="target_budget"):
        FitSettings.for_store(store, options | {"target_budget": whole.proxy_tokens})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"no_worse_than": "uniform"}, "'uniform' must be REFERENCE:PERCENT"),
        ({"no_worse_than": "uniform:much%"}, "REFERENCE:PERCENT"),
        ({"no_worse_than": "uniform:0.0%"}, "REFERENCE:PERCENT, above 0"),
        ({"no_worse_than": "unifrom:1%"}, "'unifrom'"),
        ({"targets": "robust", "batch": "sampled", "score": "paper"}, "batch sampled"),
        ({"targets": "robust", "normalise": "none"}, "normalise none"),
    ],
)
def test_targets_that_cannot_work_are_refused(store, recipe, options, message):
    with pytest.raises(XDogeError, match=message):
        FitSettings.for_store(store, {"proxy": recipe} | options)


def test_a_fit_logs_progress_targets_and_excess_of_languages(store, recipe, tmp_path):
    options = {"proxy": recipe, "steps": 6, "targets": "robust", "no_worse_than": "uniform:0.001%"}
    notes: list[str] = []
    weights = fit(store, FitSettings.for_store(store, options), out=tmp_path / "run", on_note=notes.append).weights
    rows = metrics(tmp_path / "run")
    for row in rows:
        assert sum(row["targets"].values()) == pytest.approx(1)
        assert row["progress"].keys() == row["excess"].keys() == row["multipliers"].keys() == store.languages.keys()
    mean = {language: np.mean([row["targets"][language] for row in rows]) for language in store.languages}
    assert weights.method["mean_targets"] == pytest.approx(mean)
    assert weights.method["excess"] == rows[-1]["excess"]
    worse = [language for language, excess in rows[-1]["excess"].items() if excess > 1e-5]
    assert [f"warning: the loss of {language} is" in "\n".join(notes) for language in worse] == [True] * len(worse)
    assert worse
    spec = charts.targets(tmp_path / "run").to_dict()
    assert spec["title"]["text"] == "Targets over the fit"
    with pytest.raises(XDogeError, match=r"has no moving targets in metrics\.jsonl"):
        charts.targets(tmp_path)
