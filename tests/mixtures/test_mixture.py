"""Mixtures: invariants, errors and warnings of `plan`, and the file."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdoge import Mixture, WeightSet, XDogeError
from xdoge.io import sha256_file
from xdoge.mixtures.strategies import STRATEGIES, strategy_weights

AVAILABLE = {"en/web": 100_000, "es/web": 20_000, "es/wiki": 5_000, "eu/wiki": 1_000}
LEARNED = {"en/web": 0.4, "es/web": 0.25, "es/wiki": 0.15, "eu/wiki": 0.2}


def plan(weights=LEARNED, **more):
    return Mixture.plan(weights, **{"available_tokens": AVAILABLE, "budget_tokens": 40_000, **more})


def test_tokens_follow_the_weights_and_capped_tokens_go_to_other_sources():
    mixture = plan()
    assert {source: share.tokens for source, share in mixture.sources.items()} == {
        "en/web": 18_000,
        "es/web": 11_250,
        "es/wiki": 6_750,
        "eu/wiki": 4_000,
    }
    basque = mixture.sources["eu/wiki"]
    assert (basque.capped, basque.epochs, basque.weight, basque.learned_weight) == (True, 4.0, 0.1, 0.2)
    assert mixture.sources["en/web"].unread == pytest.approx(0.82)
    assert basque.moved == pytest.approx(-0.1)
    assert mixture.languages["es"].tokens == 18_000
    assert mixture.languages["es"].learned_weight == pytest.approx(0.4)
    assert sum(language.weight for language in mixture.languages.values()) == pytest.approx(1)


def test_languages_first_keeps_what_a_source_loses_within_its_language():
    weights = {"en/web": 0.5, "es/web": 0.1, "es/wiki": 0.4, "eu/wiki": 0.0}
    flat, nested = plan(weights, max_epochs=1), plan(weights, max_epochs=1, level="languages")
    assert flat.sources["es/wiki"].tokens == nested.sources["es/wiki"].tokens == 5_000
    assert nested.languages["es"].tokens == 20_000
    assert flat.languages["es"].tokens < 11_000


def test_weights_by_language_share_by_size_within_a_language():
    mixture = plan({"en": 0.5, "es": 0.4, "eu": 0.1}, name="hand")
    assert (mixture.name, mixture.level) == ("hand", "languages")
    assert mixture.sources["es/web"].tokens == 4 * mixture.sources["es/wiki"].tokens == 12_800
    assert mixture.languages["eu"].tokens == 4_000


@pytest.mark.parametrize(
    "weights",
    [
        {"en": 0.25, "eu": 0.75},
        {"en/web": 0.25, "eu/wiki": 0.75},
        WeightSet(name="some", sources={"en/web": 0.25, "eu/wiki": 0.75}),
    ],
)
def test_sources_without_a_weight_are_left_out_on_request(weights):
    mixture = plan(weights, rest_zero=True, max_epochs=None)
    tokens = {source: share.tokens for source, share in mixture.sources.items()}
    assert tokens == {"en/web": 10_000, "es/web": 0, "es/wiki": 0, "eu/wiki": 30_000}


def test_caps_of_single_sources_and_languages_replace_the_general_cap():
    mixture = plan(caps={"eu/wiki": 6, "es": 0.5}, max_epochs=None)
    assert mixture.sources["eu/wiki"].tokens == 6_000
    assert mixture.sources["es/wiki"].tokens == 2_500
    assert mixture.sources["es/web"].tokens == 10_000
    assert mixture.sources["en/web"].max_epochs is None


def test_tokens_read_in_earlier_phases_count_towards_the_cap():
    mixture = plan(read_before={"eu/wiki": 3_000, "en/web": 500_000})
    assert mixture.sources["eu/wiki"].tokens == 1_000
    assert mixture.sources["eu/wiki"].epochs == 4.0
    assert mixture.sources["en/web"].tokens == 0  # five times already: nothing left
    with pytest.raises(XDogeError, match="less the 3,000 tokens read before, give 501,000. Raise max_epochs to 4.008"):
        plan(budget_tokens=502_000, read_before={"eu/wiki": 3_000})


def test_a_minimum_share_is_kept_if_the_cap_allows_it():
    weights = {"en/web": 0.98, "es/web": 0.01, "es/wiki": 0.01, "eu/wiki": 0.0}
    mixture = plan(weights, min_share=0.05, max_epochs=1)
    assert mixture.sources["es/web"].tokens == 2_000
    assert mixture.sources["eu/wiki"].tokens == 0  # has weight 0
    small = plan({**weights, "eu/wiki": 0.001, "en/web": 0.979}, min_share=0.05, max_epochs=1)
    assert small.sources["eu/wiki"].tokens == 1_000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"budget_tokens": 600_000},
            r"budget 600,000 cannot be spent: 4 sources at max_epochs 4 give 504,000\. Raise max_",
        ),
        ({"budget_tokens": 0}, "budget_tokens is 0; it must be a whole number >= 1"),
        ({"budget_tokens": 1e9}, "budget_tokens is 1000000000.0; it must be a whole number"),
        ({"max_epochs": 0}, "max_epochs is 0; it must be a number above 0"),
        ({"max_epochs": math.nan}, "max_epochs is nan"),
        ({"caps": {"eu/web": 2}}, "caps names 'eu/web'; did you mean es/web"),
        ({"caps": {"eu": -1}}, r"caps of 'eu' is -1"),
        ({"read_before": {"eu": 2}}, "read_before names 'eu'"),
        ({"read_before": {"eu/wiki": -2}}, r"read_before\['eu/wiki'\] is -2"),
        ({"min_share": 1}, "min_share is 1; for 4 sources it must be 0 to 1/4 = 0.25"),
        ({"max_epochs": "4"}, "max_epochs is '4'; it must be a number above 0"),
        ({"caps": {"eu": None}}, r"caps of 'eu' is None"),
        ({"budget_tokens": True}, "budget_tokens is True"),
        ({"sequence_length": 1001}, "eu/wiki has 1,000 tokens, less than one sequence of 1,001; use shorter"),
        ({"level": "both"}, "level is 'both'; it must be languages or sources"),
        ({"weights": {"en": 1.0}}, "name different languages; only in the token counts: es, eu.*rest_zero=True"),
        ({"weights": {"en": 0.5, "xx": 0.5}}, "only in the weights: xx; only in the token counts: es, eu.$"),
        ({"weights": {"en": 0.5, "xx": 0.5}, "rest_zero": True}, "only in the weights: xx.$"),
        ({"weights": {"en/web": 1.0}}, "name different sources; only in the token counts: es/web, es/wiki, eu/wiki"),
        ({"available_tokens": {**AVAILABLE, "eu/wiki": 0}}, "eu/wiki has weight 0.2 and no tokens"),
        ({"available_tokens": {**AVAILABLE, "eu/wiki": 1.5}}, r"available_tokens\['eu/wiki'\] is 1.5"),
        (
            {"caps": {"en": 1, "es": 1, "eu": 1}, "budget_tokens": 200_000},
            r"4 sources at caps of their own give 126,000\. Raise the caps or lower the budget",
        ),
    ],
)
def test_impossible_plans_are_refused(change, message):
    with pytest.raises(XDogeError, match=message):
        plan(**change)


@given(st.integers(1, 5000), st.floats(0.2, 4))
def test_the_least_max_epochs_that_an_error_names_works_and_a_little_less_does_not(scale, epochs):
    available = {source: count * scale + 1 for source, count in AVAILABLE.items()}
    budget = int(sum(available.values()) * epochs) + 10
    with pytest.raises(XDogeError, match="Raise max_epochs to") as error:
        plan(available_tokens=available, budget_tokens=budget, max_epochs=epochs)
    least = float(str(error.value).split("Raise max_epochs to ")[1].split(" ")[0])
    mixture = plan(available_tokens=available, budget_tokens=budget, max_epochs=least)
    assert all(share.epochs <= least for share in mixture.sources.values())
    with pytest.raises(XDogeError, match="cannot be spent"):
        plan(available_tokens=available, budget_tokens=budget, max_epochs=round(least - 0.001, 3))


def test_warnings_name_problems_with_their_numbers():
    assert plan({"en": 0.8, "es": 0.17, "eu": 0.03}).warnings() == []
    assert plan(budget_tokens=1_000_000, max_epochs=None, caps={"eu": 1.5}).warnings()[0] == (
        "read more than 4 times; repeated text is then worth much less than new text: "
        "es/wiki 37.4 times, es/web 15.6 times, en/web 5.0 times."
    )
    assert plan(budget_tokens=100).warnings() == [
        "less than 1% of the text is read: en/web 0.04%, es/web 0.12%, es/wiki 0.30%."
    ]
    assert plan().warnings() == ["caps cut the weight by more than 25%: eu by 50%."]
    floored = plan({**LEARNED, "en/web": 0.58, "eu/wiki": 0.02}, min_share=0.11)
    assert "a cap allows less than min_share 0.11: eu/wiki 0.1." in floored.warnings()
    bent = plan({**LEARNED, "en/web": 0.1, "eu/wiki": 0.5})
    assert bent.warnings()[0] == "caps overrule the weights for more than 25% of the budget: in total 40.0%."
    tiny = {**LEARNED, "en/web": 0.4 - 1e-7, "eu/wiki": 1e-7, "es/web": 0.45}
    assert "gets no token: eu/wiki weight 1e-07." in plan(tiny).warnings()


def test_a_round_trip_loses_nothing(tmp_path):
    weights = WeightSet(name="w", sources=LEARNED, method={"mu": 0.1})
    mixture = plan(weights, seed=5, max_epochs=3.7, corpus={"name": "c", "sha256": "ab"})
    mixture.save(tmp_path / "mixture.json")
    assert Mixture.load(tmp_path / "mixture.json") == mixture
    weights.save(tmp_path / "weights.json")
    assert mixture.weights == {"name": "w", "sha256": sha256_file(tmp_path / "weights.json")}
    value = json.loads((tmp_path / "mixture.json").read_text())
    assert value["schema"] == "xdoge.mixture/1"
    assert value["sources"]["eu/wiki"]["tokens"] == 3_700
    assert value["languages"]["es"]["tokens"] == sum(value["sources"][s]["tokens"] for s in ("es/web", "es/wiki"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "xdoge.mixture/2"}, "newer than xdoge.mixture/1 of this xdoge; pip install --upgrade xdoge"),
        ({"schema": "xdoge.weights/1"}, "another kind of file"),
        ({"budget_tokens": 41_000}, "the sources' tokens sum to 40,000, not to budget_tokens 41,000"),
        ({"budget_tokens": "40k"}, "budget_tokens is '40k'; it must be a whole number >= 1"),
        ({"sources": {}}, "sum to 0, not to budget_tokens 40,000"),
        ({"sources": []}, "is not a mixture"),
        ({"languages": {"es": {"tokens": 3}}}, "languages are not the sums over the sources"),
        ({"languages": None}, "languages are not the sums over the sources"),
        ({"seed": "x"}, "seed is 'x'; a seed"),
        ({"level": "both"}, "level is 'both'; it must be languages or sources"),
        ({"max_epochs": "4"}, "max_epochs is '4'; it must be a number"),
        ({"name": 5}, "name is 5; it must be text on one line"),
        ({"surprise": 1}, "is not a mixture"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, change, message):
    path = tmp_path / "mixture.json"
    plan().save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(XDogeError, match=message) as error:
        Mixture.load(path)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("weight", 0.3, r"sources\['eu/wiki'\]\.weight is 0\.3, but the tokens make it 0\.1"),
        ("epochs", 3, r"sources\['eu/wiki'\]\.epochs is 3, but the tokens make it 4\.0"),
        ("tokens", -4000, r"sources\['eu/wiki'\]\.tokens is -4000; it must be a whole number"),
        ("tokens", True, r"sources\['eu/wiki'\]\.tokens is True"),
        ("available_tokens", 0, r"sources\['eu/wiki'\] has no tokens, but 4,000 are to be read"),
        ("max_epochs", "four", r"sources\['eu/wiki'\]\.max_epochs is 'four'"),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(tmp_path, key, value, message):
    path = tmp_path / "mixture.json"
    plan().save(path)
    content = json.loads(path.read_text())
    content["sources"]["eu/wiki"][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(XDogeError, match=message):
        Mixture.load(path)


def test_a_mixture_cannot_be_changed_and_can_be_copied_and_pickled():
    mixture = plan()
    with pytest.raises(dataclasses.FrozenInstanceError):
        mixture.name = "other"
    with pytest.raises(TypeError, match="does not support item assignment"):
        mixture.sources["en/web"] = None
    assert copy.deepcopy(mixture) == pickle.loads(pickle.dumps(mixture)) == mixture


def test_repr_and_frame_show_shares():
    assert repr(plan()) == "Mixture('weights', 40,000 tokens: en 0.450, es 0.450, eu 0.100)"
    frame = plan().to_frame()
    assert list(frame["source"]) == list(AVAILABLE)
    assert frame["tokens"].sum() == 40_000
    assert frame.set_index("source")["unread"]["en/web"] == pytest.approx(0.82)


def test_strategies_follow_their_definitions():
    weights = {name: strategy_weights(name, AVAILABLE) for name in STRATEGIES}
    assert weights["uniform"].languages == pytest.approx({"en": 1 / 3, "es": 1 / 3, "eu": 1 / 3})
    assert weights["unimax"].languages == pytest.approx(weights["uniform"].languages)
    assert weights["uniform"]["es/web"] == pytest.approx(4 * weights["uniform"]["es/wiki"])
    assert dict(weights["proportional"].sources) == pytest.approx({s: n / 126_000 for s, n in AVAILABLE.items()})
    heat = weights["temperature"].languages
    assert heat["en"] / heat["eu"] == pytest.approx(100**0.3)
    by_source = strategy_weights("temperature", AVAILABLE, level="sources", temperature=2)
    assert by_source["en/web"] / by_source["eu/wiki"] == pytest.approx(10)
    assert by_source.method == {"strategy": "temperature", "level": "sources", "temperature": 2}
    assert strategy_weights("uniform", AVAILABLE, level="sources")["eu/wiki"] == pytest.approx(0.25)
    assert strategy_weights("temperature", AVAILABLE, temperature=1).languages == pytest.approx(
        weights["proportional"].languages
    )


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("doge", {}, "strategy 'doge' is unknown; the strategies are uniform, proportional, temperature, unimax"),
        ("temperature", {"temperature": 0.5}, "temperature is 0.5; it must be at least 1"),
        ("uniform", {"temperature": 2}, "temperature is for the strategy temperature, not for uniform"),
    ],
)
def test_an_unknown_strategy_is_refused(name, arguments, message):
    with pytest.raises(XDogeError, match=message):
        strategy_weights(name, AVAILABLE, **arguments)
    with pytest.raises(XDogeError, match="es has no tokens"):
        strategy_weights("uniform", {"es/web": 0})
