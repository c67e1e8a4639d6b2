"""Allocation of budgets: known answers, a generic solver, and invariants."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize

from xdoge.errors import XDogeError
from xdoge.mixtures.allocation import allocate, allocate_by_language, epoch_cap, least_max_epochs, unimax


def published_unimax(counts, budget, max_epochs):
    """Algorithm 1 of arXiv:2304.09151 as printed, with exact fractions."""
    left, shares = Fraction(budget), {}
    order = sorted(counts, key=counts.get)
    for turn, name in enumerate(order):
        shares[name] = min(left / (len(order) - turn), Fraction(counts[name]) * max_epochs)
        left -= shares[name]
    return shares


@pytest.mark.parametrize(
    ("budget", "epochs", "expected"),
    [
        (3000, 4, {"en": 1300, "es": 1300, "eu": 400}),  # eu is exhausted, the others share the rest
        (3000, 1, {"en": 1900, "es": 1000, "eu": 100}),
        (300, 1, {"en": 100, "es": 100, "eu": 100}),  # the equal share is just the smallest corpus
        (11_100, 1, {"en": 10_000, "es": 1000, "eu": 100}),  # everything once
        (44_400, 4, {"en": 40_000, "es": 4000, "eu": 400}),
    ],
)
def test_unimax_on_worked_examples(budget, epochs, expected):
    assert unimax({"en": 10_000, "es": 1000, "eu": 100}, budget_tokens=budget, max_epochs=epochs).counts == expected


sizes = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 10**12), min_size=1)


@given(sizes, st.floats(0.001, 1), st.integers(1, 8))
def test_unimax_is_the_published_algorithm_if_the_budget_can_be_spent(counts, part, epochs):
    budget = max(1, int(part * epochs * sum(counts.values())))
    counted = unimax(counts, budget_tokens=budget, max_epochs=epochs).counts
    for name, share in published_unimax(counts, budget, epochs).items():
        assert abs(counted[name] - share) < 1


def test_a_budget_above_all_caps_is_refused_with_the_smallest_sufficient_cap():
    with pytest.raises(
        XDogeError,
        match=r"6,000 cannot be spent: 2 languages at max_epochs 4 give 5,640\. Raise max_epochs to 4\.256 or lower",
    ):
        unimax({"es": 1000, "eu": 410}, budget_tokens=6000, max_epochs=4)
    assert sum(unimax({"es": 1000, "eu": 410}, budget_tokens=6000, max_epochs=4.256).counts.values()) == 6000
    with pytest.raises(XDogeError, match="cannot be spent"):
        unimax({"es": 1000, "eu": 410}, budget_tokens=6000, max_epochs=4.255)
    with pytest.raises(XDogeError, match="eu has 0 tokens"):
        unimax({"es": 10, "eu": 0}, budget_tokens=5, max_epochs=1)
    for counts, epochs in (({}, 1), ({"es": 10}, math.inf), ({"es": 10}, -1)):
        with pytest.raises(XDogeError, match="languages at max_epochs"):
            unimax(counts, budget_tokens=5, max_epochs=epochs)


def problem(seed, k=6):
    """Random weights, caps and floors, with a budget that they allow."""
    rng = np.random.default_rng(seed)
    names = [f"s{i}" for i in range(k)]
    weights = dict(zip(names, rng.dirichlet(np.full(k, 0.7)).tolist(), strict=True))
    budget = 10**7
    floors = dict(zip(names, rng.integers(0, budget // (2 * k), k).tolist(), strict=True))
    caps = {name: floors[name] + int(rng.integers(budget // (4 * k), budget)) for name in names}
    return weights, budget, caps, floors


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("divergence", ["kl", "chi_square"])
def test_a_generic_convex_solver_finds_the_same(seed, divergence):
    """The point within caps and floors that minimises a divergence from α."""
    weights, budget, caps, floors = problem(seed)
    alpha = np.array(list(weights.values()))

    def kl(x):
        return float(np.sum(x * np.log(x / alpha))), np.log(x / alpha) + 1

    def chi_square(x):
        return float(np.sum((x - alpha) ** 2 / alpha)), 2 * (x - alpha) / alpha

    low = np.maximum(np.array(list(floors.values())) / budget, 1e-9)
    high = np.array([caps[name] for name in weights]) / budget
    start = low + (high - low) * (1 - low.sum()) / (high - low).sum()
    solved = minimize(
        {"kl": kl, "chi_square": chi_square}[divergence],
        start,
        jac=True,
        bounds=list(zip(low, high, strict=True)),
        constraints=[{"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like}],
        method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 1000},
    )
    shares = np.array(list(allocate(weights, budget, caps=caps, floors=floors).counts.values())) / budget
    np.testing.assert_allclose(shares, solved.x, atol=2e-5)


@st.composite
def cases(draw):
    """Weights down to 1e-9 and counts up to 10^16, with a budget that can be spent."""
    k = draw(st.integers(1, 12))
    weights = draw(st.lists(st.floats(1e-9, 1) | st.just(0.0), min_size=k, max_size=k).filter(any))
    floors = draw(st.lists(st.integers(0, 10**6), min_size=k, max_size=k))
    room = draw(st.lists(st.integers(0, 10**16), min_size=k, max_size=k))
    low = sum(floors)
    high = sum(floor + (extra if weight else 0) for floor, extra, weight in zip(floors, room, weights, strict=True))
    budget = draw(st.integers(low, high))
    names = [f"l{i % 3}/s{i}" for i in range(k)]
    caps = {name: floor + extra for name, floor, extra in zip(names, floors, room, strict=True)}
    return dict(zip(names, weights, strict=True)), budget, caps, dict(zip(names, floors, strict=True))


@given(cases())
@pytest.mark.parametrize("solve", [allocate, allocate_by_language])
def test_counts_sum_to_the_budget_within_caps_and_floors(solve, case):
    weights, budget, caps, floors = case
    allocation = solve(weights, budget, caps=caps, floors=floors)
    assert list(allocation.counts) == list(weights)
    assert sum(allocation.counts.values()) == budget
    for name, count in allocation.counts.items():
        assert floors[name] <= count <= caps[name]
    for name in allocation.capped:
        assert allocation.counts[name] == caps[name]


@given(cases())
def test_counts_without_a_binding_cap_or_floor_are_proportional_to_the_weights(case):
    weights, budget, caps, floors = case
    counts = allocate(weights, budget, caps=caps, floors=floors).counts
    free = [name for name in weights if weights[name] and floors[name] < counts[name] < caps[name]]
    for name in free:
        for other in free:  # both are λ α to within 1
            a, b = Fraction(weights[name]), Fraction(weights[other])
            assert abs(counts[name] * b - counts[other] * a) <= a + b


@given(cases(), st.randoms(use_true_random=False))
def test_order_matters_only_for_the_last_unit_of_ties(case, random):
    weights, budget, caps, floors = case
    names = list(weights)
    random.shuffle(names)
    counts = allocate(weights, budget, caps=caps, floors=floors).counts
    shuffled = allocate({name: weights[name] for name in names}, budget, caps=caps, floors=floors).counts
    assert all(abs(counts[name] - shuffled[name]) <= 1 for name in weights)


@pytest.mark.parametrize("budget", [1, 7, 10**16])
def test_any_scale_is_exact(budget):
    weights = {"a": 1e-9, "b": 1 / 3, "c": 2 / 3}
    counts = allocate(weights, budget).counts
    assert sum(counts.values()) == budget
    exact = {name: Fraction(weight) * budget / sum(map(Fraction, weights.values())) for name, weight in weights.items()}
    assert all(abs(counts[name] - exact[name]) < 1 for name in weights)


def test_tokens_that_a_cap_cuts_go_to_all_or_to_the_same_language_first():
    weights = {"es/web": 0.3, "es/wiki": 0.2, "eu/web": 0.1, "eu/wiki": 0.4}
    caps = {"eu/wiki": 100}
    flat = allocate(weights, 1000, caps=caps)
    assert flat.counts == {"es/web": 450, "es/wiki": 300, "eu/web": 150, "eu/wiki": 100}
    nested = allocate_by_language(weights, 1000, caps=caps)
    assert nested.counts == {"es/web": 300, "es/wiki": 200, "eu/web": 400, "eu/wiki": 100}
    assert flat.capped == nested.capped == {"eu/wiki"}
    caps = {"eu/wiki": 100, "eu/web": 200}
    nested = allocate_by_language(weights, 1000, caps=caps)
    assert nested.counts == {"es/web": 420, "es/wiki": 280, "eu/web": 200, "eu/wiki": 100}
    assert nested.capped == {"eu/web", "eu/wiki"}


def test_a_source_that_exactly_reaches_its_cap_is_not_capped():
    assert allocate({"a": 1, "b": 1}, 10, caps={"a": 5}).capped == frozenset()
    assert allocate({"a": 1, "b": 1}, 10, caps={"a": 4}).capped == {"a"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"caps": {"a": 3, "b": 4}}, "budget 10 cannot be spent: 2 caps give 7"),
        ({"floors": {"a": 6, "b": 5}}, "budget 10 is less than the floors, which sum to 11"),
        ({"caps": {"c": 5}}, "c has a cap or a floor, but no weight"),
        ({"floors": {"a": 6}, "caps": {"a": 5}}, "a: the floor 6 must be >= 0 and at most the cap 5"),
    ],
)
def test_impossible_allocations_are_refused(arguments, message):
    with pytest.raises(XDogeError, match=message):
        allocate({"a": 0.5, "b": 0.5}, 10, **arguments)
    with pytest.raises(XDogeError, match="shares must be finite and >= 0"):
        allocate({"a": math.nan, "b": 0.5}, 10)


def test_an_epoch_cap_is_the_decimal_as_written():
    assert epoch_cap(10, 0.3) == 3  # 0.3 * 10 in floats is a little less
    assert epoch_cap(10**16 + 1, 4) == 4 * (10**16 + 1)
    assert epoch_cap(7, 1.5) == 10


@given(sizes, st.integers(1, 10**13), st.integers(0, 10**12), st.integers(0, 10**6))
def test_the_least_epoch_cap_is_enough_and_a_thousandth_less_is_not(available, budget, spent, fixed):
    before = dict.fromkeys(available, spent)
    least = least_max_epochs(available, budget, spent=before, fixed=fixed)

    def spendable(epochs):
        return fixed + sum(max(0, epoch_cap(count, epochs) - spent) for count in available.values())

    assert spendable(least) >= budget
    assert least == 0.001 or spendable(round(least - 0.001, 3)) < budget
