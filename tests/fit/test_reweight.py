"""The outer step: scores, their normalisation, and the mirror step on the floored simplex."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from xdoge.fit.reweight import DECAY, LEAST_SIGNAL, Rule, Weights, mirror_step, raw_scores, step
from xdoge.fit.targets import language_shares
from xdoge.mixtures.simplex import project


def products(gram, half=None, losses=None):
    """Return products of a batch with this Gram matrix and all τ = 1. NaN on its diagonal marks an absent source."""
    gram = np.array(gram, dtype=float)
    own = np.diag(gram)
    absent = np.isnan(own)
    scores = np.where(absent, np.nan, np.nansum(gram, axis=1))
    return SimpleNamespace(
        losses=np.where(absent, np.nan, 5.0) if losses is None else losses,
        scores=scores,
        square_norms=own,
        half_products=own if half is None else np.asarray(half, dtype=float),
        gram=None,
    )


def rule(k, **changes):
    settings = {
        "targets": np.ones(k),
        "trained": np.ones(k, dtype=bool),
        "floor": 0.01,
        "mu": 0.1,
        "score": "paper",
        "normalise": "mean_square",
    }
    return Rule(**(settings | changes))


weights = st.lists(st.floats(0.01, 1), min_size=2, max_size=12).map(lambda q: project(q, floor=0.01))
exponents = st.lists(st.floats(-50, 50), min_size=12, max_size=12)


@given(weights, exponents)
def test_weights_stay_on_the_floored_simplex(alpha, x):
    after = mirror_step(alpha, np.array(x[: alpha.size]), floor=0.01)
    assert after.sum() == pytest.approx(1, abs=1e-12)
    assert (after >= 0.01).all()


@given(weights, st.floats(-50, 50))
def test_equal_scores_do_not_change_the_weights(alpha, score):
    np.testing.assert_allclose(mirror_step(alpha, np.full(alpha.size, score), floor=0.01), alpha, rtol=1e-9)


@given(weights, exponents, st.randoms(use_true_random=False))
def test_permuted_sources_give_permuted_weights(alpha, x, random):
    order = list(range(alpha.size))
    random.shuffle(order)
    x = np.array(x[: alpha.size])
    after = mirror_step(alpha[order], x[order], floor=0.01)
    np.testing.assert_allclose(after, mirror_step(alpha, x, floor=0.01)[order], rtol=1e-9)


def test_the_step_solves_its_optimisation_problem():
    """A generic solver gives the same argmax ⟨α, x⟩ - KL(α ‖ α_t) over α ≥ γ, Σα = 1."""
    alpha, x, floor = np.array([0.5, 0.3, 0.15, 0.05]), np.array([-1.0, 0.4, 0.1, -2.0]), 0.04
    solved = minimize(
        lambda a: np.sum(a * np.log(a / alpha)) - a @ x,
        x0=np.full(4, 0.25),
        jac=lambda a: np.log(a / alpha) + 1 - x,
        bounds=[(floor, 1)] * 4,
        constraints={"type": "eq", "fun": lambda a: a.sum() - 1, "jac": np.ones_like},
        method="SLSQP",
        options={"ftol": 1e-14},
    )
    np.testing.assert_allclose(mirror_step(alpha, x, floor=floor), solved.x, atol=1e-6)


def test_a_negative_score_lowers_a_weight():
    gram = [[1.0, -0.9, 0], [-0.9, 1.0, -0.5], [0, -0.5, 1.0]]
    after, scores = step(Weights.start(np.full(3, 1 / 3)), products(gram), rule=rule(3), eta=1.0)
    assert scores[1] < 0
    assert after.now[1] < 1 / 3 < after.now[2]


def test_a_weight_at_its_floor_can_grow_again():
    """Without a floor, a weight of zero would stay zero with any score."""
    state = Weights(now=np.array([0.99, 0.01]), total=np.zeros(2))
    after, _ = step(state, products([[0.1, 0.5], [0.5, 9.0]]), rule=rule(2), eta=0.1)
    assert after.now[1] > 0.02


@given(weights, exponents, st.integers(0, 11))
def test_a_source_that_was_not_scored_keeps_its_share(alpha, x, missing):
    x = np.array(x[: alpha.size]) / 50
    missing %= alpha.size
    x[missing] = np.nan
    after = mirror_step(alpha, x, floor=0.0)
    if alpha.size > 1:
        assert after[missing] == pytest.approx(alpha[missing], rel=1e-9)


def test_without_any_score_the_weights_stay_the_same():
    alpha = np.array([0.2, 0.8])
    np.testing.assert_array_equal(mirror_step(alpha, np.full(2, np.nan), floor=0.1), alpha)


def test_the_unbiased_score_replaces_only_the_product_of_a_source_with_itself():
    gram = np.array([[4.0, 1.0, -1.0], [1.0, 9.0, 2.0], [-1.0, 2.0, 16.0]])
    half = np.array([1.0, 2.0, 3.0])
    targets = np.array([1.0, 0.5, 0.0])
    batch = products(gram, half)
    batch.scores = gram @ targets
    np.testing.assert_allclose(raw_scores(batch, rule(3, targets=targets)), batch.scores)
    np.fill_diagonal(gram, half)
    np.testing.assert_allclose(raw_scores(batch, rule(3, targets=targets, score="unbiased")), gram @ targets)


def test_a_target_with_one_sequence_is_not_scored():
    batch = products(np.eye(2), half=[np.nan, np.nan])
    scores = raw_scores(batch, rule(2, score="unbiased", targets=np.array([1.0, 0.0])))
    assert np.isnan(scores[0])
    assert np.isfinite(scores[1])


def test_a_normalised_score_does_not_depend_on_the_scale_of_gradients():
    """Gradients that are c times as long give the same step, so one μ serves every size of proxy."""
    gram, state = np.array([[4.0, 1.0], [1.0, 2.0]]), Weights.start(np.full(2, 1 / 2))
    short, long = (step(state, products(gram * c**2), rule=rule(2), eta=1)[1] for c in (1.0, 10.0))
    np.testing.assert_allclose(short, long)


def test_scores_are_divided_by_a_running_mean_that_starts_unbiased():
    state = Weights.start(np.full(2, 1 / 2))
    state, first = step(state, products(np.eye(2) * 4.0), rule=rule(2), eta=0.0)
    np.testing.assert_allclose(first, 0.5)  # |g|² over its own mean, over two targets
    _, second = step(state, products(np.eye(2) * 2.0), rule=rule(2), eta=0.0)
    mean = (DECAY * 4 + 2) / (DECAY + 1)
    np.testing.assert_allclose(second, 2 / mean / 2)


def test_one_step_with_very_large_gradients_does_not_decide_the_fit():
    """In a fit of 60 steps, two of twelve sources had huge gradients in one step, which moved a third of all weight."""
    state = Weights.start(np.full(2, 1 / 2))
    for _ in range(50):
        state, _ = step(state, products(np.eye(2)), rule=rule(2), eta=0.01)
    _, scores = step(state, products(np.diag([100.0, 1.0])), rule=rule(2), eta=0.01)
    assert scores[0] <= 1.0
    leap = np.array([[200.0, 20.0], [20.0, 4.0]])  # one noisy sequence: long gradient, no more signal
    _, scores = step(state, products(leap, half=[1.0, 1.0]), rule=rule(2, score="unbiased"), eta=0.01)
    assert abs(scores).max() < 1.0


def test_the_unbiased_score_is_normalised_without_noise():
    """The noise in |g|² depends on the sequences per source. The length from halves does not, nor does μ."""
    gram, half = np.eye(2) * 10.0 + 1.0, np.array([3.0, 1.0])
    state = Weights.start(np.full(2, 1 / 2))
    _, scores = step(state, products(gram, half), rule=rule(2, score="unbiased"), eta=0)
    np.testing.assert_allclose(scores, (half + 1.0) / 2.0 / 2)


@pytest.mark.parametrize("half", [[0.0, 0.0], [-5.0, 1.0], [np.nan, np.nan]])
def test_a_length_hidden_by_noise_does_not_make_scores_huge(half):
    gram = np.full((2, 2), 0.5) + np.eye(2) * 10
    held = rule(2, score="unbiased", targets=np.array([1.0, 0.0]))
    _, scores = step(Weights.start(np.full(2, 1 / 2)), products(gram, half), rule=held, eta=0)
    assert abs(scores[1]) <= 11 / (LEAST_SIGNAL * 10.5)


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3))
def test_any_exponent_gives_valid_weights(x):
    """With a floor of 0, a weight may become very small but stays valid."""
    after = mirror_step(np.array([1e-300, 1.0 - 1e-12, 0.0]), np.array(x), floor=0.0)
    assert np.isfinite(after).all()
    assert after.sum() == pytest.approx(1)
    assert after[2] == 0


def test_a_held_out_target_steers_and_is_never_trained_on():
    trained = np.array([True, True, False])
    gram = [[1.0, 0.0, 0.9], [0.0, 1.0, -0.9], [0.9, -0.9, 1.0]]
    held = rule(3, trained=trained, targets=np.array([0.0, 0.0, 1.0]))
    state = Weights.start(trained / trained.sum())
    np.testing.assert_array_equal(state.now, [0.5, 0.5, 0.0])
    part = products(gram)
    part.scores = np.array(gram)[:, 2]
    after, _ = step(state, part, rule=held, eta=1.0)
    assert after.now[2] == 0
    assert after.now[0] > after.now[1]


def test_learned_weights_are_the_mean_over_the_steps_after_burn_in():
    state, seen = Weights.start(np.full(2, 1 / 2)), []
    for number, own in enumerate((4.0, 1.0, 5.0, 2.0)):
        gram = [[own, 0.0], [0.0, 3.0]]
        state, _ = step(state, products(gram), rule=rule(2), eta=0.2, counts=number > 0)
        seen.append(state.now)
    np.testing.assert_allclose(state.average, np.mean(seen[1:], axis=0))


def test_an_absent_source_does_not_lose_to_others_with_positive_scores():
    gram = np.array([[1.0, 0.5, np.nan], [0.5, 1.0, np.nan], [np.nan, np.nan, np.nan]])
    after, scores = step(Weights.start(np.full(3, 1 / 3)), products(gram), rule=rule(3), eta=1.0)
    assert np.isnan(scores[2])
    assert after.now[2] == pytest.approx(1 / 3)


@given(
    arrays(np.float64, (3, 6), elements=st.floats(-3, 3)).filter(lambda grads: (np.abs(grads).sum(axis=1) > 0.1).all()),
    st.floats(0.05, 0.95),
    st.sampled_from(["unbiased", "paper"]),
)
def test_splitting_a_source_in_two_does_not_change_the_weights_of_languages(grads, part, score):
    """Three languages have a source each. The first source and its weight are split in two parts of any size."""
    grads = grads + np.array([1.0, 0, 0, 0, 0, 0])
    whole, cut = np.array([0.4, 0.35, 0.25]), np.array([0.4 * part, 0.4 * (1 - part), 0.35, 0.25])
    of_cut = grads[[0, 0, 1, 2]]

    def three_steps(gradients, languages, weights):
        targets = np.concatenate([np.full(len(members), 1 / len(members)) for members in languages])
        shares = language_shares(languages, targets).mean(axis=0)
        of_languages = rule(len(weights), targets=targets, shares=shares, score=score, floor=1e-9)
        seen = products(gradients @ gradients.T)
        seen.scores = gradients @ (targets @ gradients)
        state = Weights.start(weights)
        for _ in range(3):
            state, _ = step(state, seen, rule=of_languages, eta=0.1)
        return state.now

    before, after = three_steps(grads, [[0], [1], [2]], whole), three_steps(of_cut, [[0, 1], [2], [3]], cut)
    np.testing.assert_allclose([after[0] + after[1], after[2], after[3]], before, rtol=1e-6)
    np.testing.assert_allclose(after[0] / after[1], part / (1 - part), rtol=1e-6)
