"""Weight sets: errors, round trips and properties."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdoge import WeightSet, XDogeError
from xdoge.mixtures.simplex import project

THREE = {"es/web": 0.5, "es/wiki": 0.2, "eu/wiki": 0.3}


def weights(sources=THREE, **more):
    return WeightSet(name="three", sources=sources, **more)


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=30))
def test_a_round_trip_loses_nothing(tmp_path_factory, masses):
    path = tmp_path_factory.mktemp("weights") / "weights.json"
    sources = {f"l{i % 3}/s{i}": weight for i, weight in enumerate(project(masses).tolist())}
    original = weights(
        sources,
        floor=1 / 3,
        method={"mu": 0.1, "steps": 3},
        proxy={"name": "1m"},
        corpus={"sha256": "ab"},
        spread={"sets": 2},
        xdoge_version="1",
        created="2026-01-01T00:00:00+00:00",
    )
    original.save(path)
    assert WeightSet.load(path) == original


def test_the_weight_of_a_language_is_the_sum_over_its_sources():
    assert weights().languages == {"es": pytest.approx(0.7), "eu": 0.3}
    assert weights().nested == {"es": {"web": 0.5, "wiki": 0.2}, "eu": {"wiki": 0.3}}
    assert weights()["es"] == pytest.approx(0.7)
    assert weights()["eu/wiki"] == 0.3
    with pytest.raises(KeyError, match="'gl'; known: es, eu, es/web"):
        weights()["gl"]


def test_nothing_in_a_set_can_be_changed():
    original = weights(method={"mu": 1})
    with pytest.raises(dataclasses.FrozenInstanceError):
        original.name = "other"
    with pytest.raises(TypeError, match="does not support item assignment"):
        original.sources["es/web"] = 1.0
    with pytest.raises(TypeError, match="does not support item assignment"):
        original.method["mu"] = 2
    with pytest.raises(TypeError, match="does not support item assignment"):
        weights(method={"targets": {"es/web": 1}}).method["targets"]["es/web"] = 2


def test_a_set_can_be_copied_pickled_and_be_a_key():
    original = weights(method={"targets": {"es/web": 1.0}, "held_out": ["gl/web"]}, spread={"sets": 2})
    for other in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        assert other == original
        assert {original: 1}[other] == 1


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"es/web": 0.5, "eu/wiki": 0.4}, r"sum to 0\.9; they must sum to 1 within 1e-05\. Divide each by 0\.9"),
        ({"es/web": 1.02, "gl/web": -0.02}, r"weights\['gl/web'\] is -0\.02; weights must be >= 0 and sum to 1"),
        ({"es/web": math.nan}, r"weights\['es/web'\] is nan"),
        ({"es/web": "1"}, r"weights\['es/web'\] is '1', not a number"),
        ({"es/web": True}, r"weights\['es/web'\] is True, not a number"),
        ({"web": 1.0}, r"weights\['web'\]: a source is named language/source"),
        ({}, "name no source"),
    ],
)
def test_invalid_weights_are_refused(sources, message):
    with pytest.raises(XDogeError, match=message):
        weights(sources)


def test_six_decimals_are_near_enough_to_one_and_are_not_rescaled():
    original = weights({"es/web": 0.333333, "eu/web": 0.333333, "gl/web": 0.333333})
    assert original.sources["es/web"] == 0.333333


def test_a_file_that_contradicts_itself_is_refused(tmp_path):
    path = tmp_path / "weights.json"
    weights().save(path)
    value = json.loads(path.read_text())
    value["languages"]["es"] = 0.6
    path.write_text(json.dumps(value))
    with pytest.raises(XDogeError, match=r"weights.json: languages\['es'\] is 0.6, but its sources sum to 0.7"):
        WeightSet.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "xdoge.weights/2"}, "newer than xdoge.weights/1 of this xdoge; pip install --upgrade xdoge"),
        ({"schema": "xdoge.mixture/1"}, "this is another kind of file"),
        ({"surprise": 1}, "is not a weight set"),
        ({"languages": [1]}, "is not a weight set"),
        ({"languages": {"es": "x"}}, "is not a weight set"),
        ({"languages": {}}, r"languages\['es'\] is 0.0, but its sources sum to 0.7"),
        ({"floor": "x"}, "floor is 'x', which has"),
        ({"floor": 1.5}, "floor is 1.5; it must be >= 0 and below 1"),
        ({"name": 5}, "name is 5, which has"),
        ({"method": None}, "method is None, which has"),
        ({"sources": {"es/web": 0.9}}, "weights.json: weights 'three' sum to 0.9"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path, change, message):
    path = tmp_path / "weights.json"
    weights().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(XDogeError, match=message):
        WeightSet.load(path)


def test_norwegian_stays_norwegian(tmp_path):
    norwegian = weights({"no/web": 1.0})
    norwegian.save(tmp_path / "w.json")
    assert WeightSet.load(tmp_path / "w.json").languages == {"no": 1.0}


def test_distances_of_a_worked_example():
    p, q = weights(), weights({"eu/wiki": 0.5, "es/wiki": 0.2, "es/web": 0.3})
    assert p.distance(q) == pytest.approx(0.2)
    assert p.distance(q, metric="kl") == pytest.approx(0.5 * math.log(5 / 3) + 0.3 * math.log(3 / 5))
    middle = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.4)
    assert p.distance(q, metric="jensen_shannon") == pytest.approx(middle)
    assert p.distance(q, level="languages") == pytest.approx(0.2)


@given(*[st.lists(st.floats(0.01, 1), min_size=3, max_size=3)] * 2)
def test_distances_are_zero_only_to_oneself_and_symmetric_where_they_should_be(a, b):
    p, q = (weights(dict(zip(THREE, project(masses).tolist(), strict=True))) for masses in (a, b))
    for metric in ("total_variation", "kl", "jensen_shannon"):
        assert p.distance(p, metric=metric) == 0
        assert p.distance(q, metric=metric) >= 0
    for metric in ("total_variation", "jensen_shannon"):
        assert p.distance(q, metric=metric) == pytest.approx(q.distance(p, metric=metric))
    assert p.distance(q, metric="jensen_shannon") <= math.log(2)


def test_kl_to_a_set_without_the_source_is_infinite():
    q = weights({"es/web": 0.7, "es/wiki": 0.3, "eu/wiki": 0.0})
    assert weights().distance(q, metric="kl") == math.inf
    assert q.distance(weights(), metric="kl") < math.inf


def test_sets_with_different_sources_are_not_compared():
    with pytest.raises(
        XDogeError, match="different sources; only in three: es/web, es/wiki, eu/wiki; only in three: gl/web"
    ):
        weights().distance(weights({"gl/web": 1.0}))
    with pytest.raises(XDogeError, match="metric is 'euclid'"):
        weights().distance(weights(), metric="euclid")


def test_an_average_describes_the_spread_of_its_sets():
    p = weights(method={"seed": 0, "mu": 1})
    q = weights({"eu/wiki": 0.5, "es/wiki": 0.2, "es/web": 0.3}, method={"seed": 1, "mu": 1})
    mean = WeightSet.average([p, q], name="both")
    assert dict(mean.sources) == pytest.approx({"es/web": 0.4, "es/wiki": 0.2, "eu/wiki": 0.4})
    assert mean.spread["sets"] == 2
    assert mean.spread["standard_deviation"] == pytest.approx(
        {"es/web": math.sqrt(0.02), "es/wiki": 0, "eu/wiki": math.sqrt(0.02)}
    )
    assert dict(mean.method) == {"mu": 1}


@pytest.mark.parametrize("where", ["spread", "spread.languages"])
@pytest.mark.parametrize("deviation", [[0.1], {"es/web": 0.1}, {"es": "wide", "eu": 0.1}])
def test_a_deviation_that_does_not_match_the_weights_is_refused(where, deviation):
    spread = (
        {"standard_deviation": deviation} if where == "spread" else {"languages": {"standard_deviation": deviation}}
    )
    with pytest.raises(XDogeError, match=f"weights 'w': {where}.standard_deviation is not one number for each of its"):
        WeightSet("w", {"es/web": 0.5, "eu/web": 0.5}, spread=spread)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], "no weight set to average"),
        ([weights(), weights({"gl/web": 1.0})], "different sources"),
        ([weights(), weights(corpus={"sha256": "other"})], "differ in corpus or floor"),
    ],
)
def test_incompatible_sets_are_not_averaged(others, message):
    with pytest.raises(XDogeError, match=message):
        WeightSet.average(others)


def test_repr_and_html_show_languages_largest_first():
    assert repr(weights()) == "WeightSet('three', 3 sources: es 0.700, eu 0.300)"
    page = weights({"es/<b>": 0.4, "eu/w": 0.6})._repr_html_()
    assert page.index("eu") < page.index("es/&lt;b&gt;")
    assert "<b>" not in page


def test_a_frame_has_a_row_per_source():
    frame = WeightSet.average([weights(), weights()]).to_frame()
    assert list(frame.columns) == ["language", "source", "weight", "language_weight", "standard_deviation"]
    assert frame["weight"].sum() == pytest.approx(1)
    np.testing.assert_array_equal(frame["language"], ["es", "es", "eu"])
