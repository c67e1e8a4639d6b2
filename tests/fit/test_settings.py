"""Settings of a fit: defaults from recipe and corpus, and errors before long work."""

from __future__ import annotations

import json

import numpy as np
import pytest

from xdoge import WeightSet
from xdoge.config import settings_help
from xdoge.errors import XDogeError
from xdoge.fit.settings import FitSettings
from xdoge.train.settings import TrainSettings


def test_defaults_come_from_recipe_and_corpus(store, recipe):
    settings = FitSettings.for_store(store, {"proxy": recipe, "steps": 100})
    assert (settings.steps, settings.sequence_length, settings.batch_size) == (100, 16, 12)
    assert settings.floor == pytest.approx(1 / 80)
    assert (settings.eval_every, settings.checkpoint_every) == (20, 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"floor": 0.25}, "floor 0.25 .* below 1/4"),
        ({"floor": -0.1}, "s: floor"),
        ({"steps": 0}, "s: steps"),
        ({"steps": "many"}, "s: steps: .*many"),
        ({"stepz": 5}, "s: stepz"),
        ({"mu": 0}, "s: mu"),
        ({"mu": float("inf")}, "s: mu"),
        ({"learning_rate": float("inf")}, "s: learning_rate"),
        ({"score": "best"}, "s: score: .*'unbiased' or 'paper'"),
        ({"batch_size": 7}, "batch_size 7 .* need 8"),
        ({"batch_size": 3, "score": "paper"}, "batch_size 3 .* need 4"),
        ({"sequence_length": 2000}, "es/web is too short: .* 1 sequences of 2000"),
        ({"targets": {"eu/web": 1}}, "targets names 'eu/web'"),
        ({"targets": {"eu/wikis": 1}}, r"targets names 'eu/wikis', .*did you mean eu/wiki\?"),
        ({"targets": {"es": 1, "es/web": 1}}, "es/web and its language"),
        ({"targets": {"eu/wiki": 0}}, "not all zero"),
        ({"targets": {"eu/wiki": -1, "es/web": 1}}, "must be >= 0"),
        ({"targets": {"eu/wiki": float("nan")}}, "s: targets.*eu/wiki"),
        ({"targets": "both"}, "s: targets: .*'sources', 'languages' or 'robust'"),
        ({"held_out": ["gl/web"]}, "held_out names 'gl/web'"),
        ({"held_out": ["eu/wiki"], "targets": {"es/web": 1}}, "held_out names 'eu/wiki'"),
        ({"held_out": ["es/web", "es/wiki", "gl/wiki", "eu/wiki"]}, "held_out leaves no source"),
        ({"held_out": ["eu/wiki", "gl/wiki"], "batch": "sampled", "batch_size": 4}, "batch_size 4 .*held_out"),
        ({"proxy": "2m"}, "'2m'"),
        ({"initial": "langauges"}, "initial is 'langauges'; .*languages, sources"),
    ],
)
def test_settings_that_cannot_work_are_refused(store, recipe, options, message):
    with pytest.raises(XDogeError, match=message):
        FitSettings.for_store(store, {"proxy": recipe} | options, where="s")


def test_settings_that_fit_no_store_are_refused_without_a_store(recipe):
    languages = {"es": ["es/web"], "eu": ["eu/web", "eu/wiki"]}
    with pytest.raises(XDogeError, match="floor 0.9 .* 3 sources"):
        FitSettings.for_sources(languages, {"proxy": recipe, "floor": 0.9})
    assert FitSettings.for_sources(languages, {"proxy": recipe, "steps": 10}).floor == pytest.approx(1 / 60)


def test_few_sequences_and_rare_scores_are_noted(store, recipe):
    few = FitSettings.for_store(store, {"proxy": recipe, "sequence_length": 60})
    assert "few sequences" in few.notes(store)[0]
    assert "gl/wiki (19)" in few.notes(store)[0]
    options = {"proxy": recipe, "batch": "sampled", "sequence_length": 4, "floor": 0.01}
    assert "batch: stratified" in FitSettings.for_store(store, options).notes(store)[0]
    assert FitSettings.for_store(store, {"proxy": recipe, "sequence_length": 4}).notes(store) == []


@pytest.mark.parametrize(
    ("targets", "tau"),
    [
        ("sources", [1, 1, 1, 1]),
        ("languages", [0.5, 0.5, 1, 1]),
        ({"eu/wiki": 2.0}, [0, 0, 0, 2]),
        ({"es": 2, "gl/wiki": 1}, [1, 1, 1, 0]),
    ],
)
def test_targets_become_tau_in_the_stores_order(store, recipe, targets, tau):
    assert store.sources == ("es/web", "es/wiki", "gl/wiki", "eu/wiki")
    settings = FitSettings.for_store(store, {"proxy": recipe, "targets": targets})
    np.testing.assert_array_equal(settings.rule(store.languages).targets, tau)


@pytest.mark.parametrize(("initial", "shares"), [("languages", "size"), ("sources", "alike")])
def test_a_fit_starts_at_equal_languages_or_sources(store, recipe, initial, shares):
    tokens = store.tokens()
    web = tokens["es/web"] / (tokens["es/web"] + tokens["es/wiki"])
    expected = {"size": [web / 3, (1 - web) / 3, 1 / 3, 1 / 3], "alike": [0.25] * 4}[shares]
    settings = FitSettings.for_store(store, {"proxy": recipe, "initial": initial})
    np.testing.assert_allclose(settings.initial_weights(store), expected)


def test_a_held_out_source_starts_at_0_and_a_small_one_at_the_floor(store, recipe):
    options = {"proxy": recipe, "targets": {"gl/wiki": 1}, "held_out": ["gl/wiki"], "floor": 0.2}
    settings = FitSettings.for_store(store, options)
    assert FitSettings.model_fields["initial"].default == settings.initial == "languages"
    web = store.tokens()["es/web"] / (store.tokens()["es/web"] + store.tokens()["es/wiki"])
    assert 1 - web < 0.4
    expected = [0.8 * web / (web + 1), 0.2, 0, 0.8 / (web + 1)]  # es/wiki would have less than the floor
    np.testing.assert_allclose(settings.initial_weights(store), expected)


def test_a_fit_starts_at_the_weights_of_a_file(store, recipe, tmp_path):
    def start(sources, **options):
        WeightSet("mine", sources).save(tmp_path / "mine.json")
        options = {"proxy": recipe, "initial": str(tmp_path / "mine.json"), "floor": 0.05} | options
        return FitSettings.for_store(store, options).initial_weights(store)

    file = {"eu/wiki": 0.6, "es/web": 0.2, "es/wiki": 0.0, "gl/wiki": 0.2}
    np.testing.assert_allclose(start(file), [0.19, 0.05, 0.19, 0.57])
    held = {"targets": {"eu/wiki": 1}, "held_out": ["eu/wiki"]}
    np.testing.assert_allclose(start(file, **held), [0.475, 0.05, 0.475, 0])
    with pytest.raises(XDogeError, match=r"mine\.json gives es/wiki no weight.*floor"):
        start(file, floor=0)
    with pytest.raises(XDogeError, match=r"initial=.*only in the fit: es/wiki"):
        start({"eu/wiki": 0.6, "es/web": 0.2, "gl/wiki": 0.2})


def test_a_fit_starts_at_plain_weights_as_mix_takes_them(store, recipe, tmp_path):
    web = store.tokens()["es/web"] / (store.tokens()["es/web"] + store.tokens()["es/wiki"])
    by_source = {"eu/wiki": 0.5, "es/web": 0.5 * web, "es/wiki": 0.5 * (1 - web), "gl/wiki": 0.0}
    written = {
        "sources.json": json.dumps(by_source),
        "languages.json": json.dumps({"es": 0.5, "gl": 0, "eu": 0.5}),
        "one.csv": "\n".join([",".join(["run", *by_source]), ",".join(["best", *map(str, by_source.values())])]),
    }
    for name, text in written.items():
        (tmp_path / name).write_text(text)
        options = {"proxy": recipe, "initial": str(tmp_path / name), "floor": 0.02}
        settings = FitSettings.for_store(store, options)
        np.testing.assert_allclose(settings.initial_weights(store), [0.49 * web, 0.49 * (1 - web), 0.02, 0.49])
        assert f"{name} below the floor were raised: gl/wiki from 0 to 0.02" in settings.notes(store)[-1]
    for text, word in (('{"es": 1.0, "gl": 0}', "eu"), ('{"es": 1.0, "gl": 1, "eu": 0}', "sum to 2")):
        (tmp_path / "sources.json").write_text(text)
        with pytest.raises(XDogeError, match=rf"sources\.json.*{word}"):
            FitSettings.for_store(store, options | {"initial": str(tmp_path / "sources.json")}).initial_weights(store)


def test_the_weights_of_a_file_belong_to_the_sources_that_are_trained_on(store, recipe, tmp_path):
    held = {"proxy": recipe, "targets": {"es/web": 1, "gl/wiki": 1}, "held_out": ["es/web"], "floor": 0.02}
    (tmp_path / "languages.json").write_text(json.dumps({"es": 0.5, "gl": 0.5, "eu": 0.0}))
    settings = FitSettings.for_store(store, held | {"initial": str(tmp_path / "languages.json")})
    np.testing.assert_allclose(settings.initial_weights(store), [0, 0.49, 0.49, 0.02])
    assert "eu/wiki from 0 to 0.02" in settings.notes(store)[-1]
    (tmp_path / "sources.json").write_text(json.dumps({"es/wiki": 0.5, "gl/wiki": 0.5, "eu/wiki": 0.0}))
    settings = FitSettings.for_store(store, held | {"initial": str(tmp_path / "sources.json")})
    assert "eu/wiki from 0 to 0.02" in settings.notes(store)[-1]
    (tmp_path / "languages.json").write_text(json.dumps({"es": 0.5, "gl": 0.25, "eu": 0.25}))
    settings = FitSettings.for_store(store, held | {"no_worse_than": f"{tmp_path / 'languages.json'}:5%"})
    np.testing.assert_allclose(settings.target_rule(store).reference, [0, 0.5, 0.25, 0.25])


def test_a_folder_named_like_a_recipe_does_not_hide_it(store, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1m").mkdir()
    assert FitSettings.for_store(store, {"proxy": "1m", "sequence_length": 16}).proxy == "1m"


def test_a_trained_model_is_no_proxy_of_a_fit(store, tmp_path):
    for model in (str(tmp_path), "org/model"):
        with pytest.raises(XDogeError, match=f"{model}.*from scratch.*swarm"):
            FitSettings.for_store(store, {"proxy": model})


def test_help_names_every_setting_with_its_default():
    text = settings_help(FitSettings)
    for name in FitSettings.model_fields:
        assert f"- `{name}`:" in text
    assert "sampled: sources are drawn by weight [default: stratified]" in text
    assert "device to compute on; one of auto, cpu [default: auto]" in settings_help(TrainSettings)
