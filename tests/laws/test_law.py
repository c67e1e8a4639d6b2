"""`MixtureLaw`: fitting, predictions, files, errors, and the accuracy on published runs."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from law_swarms import NAMES, known_law, runs

from xdoge.errors import XDogeError
from xdoge.laws.law import LawSettings, MixtureLaw
from xdoge.laws.scores import score

QUICK = LawSettings(validate_rivals=False)


@pytest.fixture(scope="module")
def law():
    shares, losses = runs(known_law(), 30, noise=0.01)
    return MixtureLaw.fit(shares, losses, sources=NAMES, evaluations=NAMES, settings=QUICK)


def test_intervals_hold_most_losses_of_new_mixtures(law):
    shares, losses = runs(known_law(), 200, noise=0.01, seed=3)
    prediction = law.predict(shares)
    assert 0.8 <= ((prediction.low <= losses) & (losses <= prediction.high)).mean() <= 0.98
    assert score(prediction.predicted, losses).rank_evaluations > 0.97


def test_a_law_is_loaded_exactly(law, tmp_path):
    law.save(tmp_path / "law.json")
    copy = MixtureLaw.load(tmp_path / "law.json")
    shares, _ = runs(known_law(), 20, seed=4)
    assert (copy.predict(shares).low == law.predict(shares).low).all()
    assert copy.to_dict() == law.to_dict()


def test_a_law_of_a_newer_schema_is_refused(law, tmp_path):
    (tmp_path / "law.json").write_text(json.dumps(law.to_dict() | {"schema": "xdoge.law/2"}))
    with pytest.raises(XDogeError, match="xdoge.law"):
        MixtureLaw.load(tmp_path / "law.json")


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("problem", "own", 0, 0), True),
        (("problem", "own", 0, 0), 4),
        (("problem", "evaluations", 0), "gl"),
        (("validation",), {}),
        (("parts", "effective", "decay"), -5.0),
        (("weights",), {}),
        (("budget_tokens",), 7),
        (("notes",), [1]),
    ],
)
def test_a_value_of_a_law_that_cannot_be_is_refused_in_one_line(way, value, law, tmp_path):
    content = json.loads(json.dumps(law.to_dict()))
    parent = content
    for key in way[:-1]:
        parent = parent[key]
    parent[way[-1]] = value
    (tmp_path / "law.json").write_text(json.dumps(content))
    with pytest.raises(XDogeError, match=r"law\.json is damaged"):
        MixtureLaw.load(tmp_path / "law.json")


def test_counts_of_any_kind_of_number_are_saved_and_loaded(tmp_path):
    shares, losses = runs(known_law(), 12, noise=0.01)
    counts = dict(zip(NAMES, (5e3, np.int64(6_000), 7_000, 8_000), strict=True))
    settings = LawSettings(tokens=counts, budget_tokens=1e4, validate_rivals=False)
    MixtureLaw.fit(shares, losses, sources=NAMES, evaluations=NAMES, form="linear", settings=settings).save(
        tmp_path / "law.json"
    )
    assert MixtureLaw.load(tmp_path / "law.json").tokens == dict(zip(NAMES, (5_000, 6_000, 7_000, 8_000), strict=True))
    with pytest.raises(XDogeError, match="budget_tokens"):
        LawSettings(tokens=counts, budget_tokens=1.5)


def test_names_and_members_that_a_law_could_not_load_are_refused_by_its_fit():
    shares, losses = runs(known_law(), 12, noise=0.01)
    for sources, settings in ((("en", "es", "gl", "gl"), QUICK), (("en", "es", "gl", ""), QUICK)):
        with pytest.raises(XDogeError, match="name"):
            MixtureLaw.fit(shares, losses, sources=sources, evaluations=NAMES, form="linear", settings=settings)
    members = LawSettings(members={"en": {"en/web": 1.0}}, validate_rivals=False)
    with pytest.raises(XDogeError, match="members"):
        MixtureLaw.fit(shares, losses, sources=NAMES, evaluations=NAMES, form="linear", settings=members)


def lists(value, at=()):
    """Yield the path of keys to every list that is not empty."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(inner, list) and inner:
            yield (*at, key)
        yield from lists(inner, (*at, key))


@pytest.mark.parametrize("form", ["effective", "process", "log-linear", "lightgbm", "linear"])
def test_a_list_of_a_law_that_is_too_short_is_refused_in_one_line(form, tmp_path):
    if form == "lightgbm":
        pytest.importorskip("lightgbm")
    shares, losses = runs(known_law(), 12, noise=0.01)
    fitted = MixtureLaw.fit(shares, losses, sources=NAMES, evaluations=NAMES, form=form, settings=QUICK)
    good = json.dumps(fitted.to_dict() | {"notes": []})
    ways = [way for way in lists(json.loads(good)) if way[-2] not in ("own", "forests")]  # of any length
    for *way, last in ways[:: len(ways) // 50 + 1]:
        value = json.loads(good)
        parent = value
        for key in way:
            parent = parent[key]
        del parent[last][-1]
        (tmp_path / "law.json").write_text(json.dumps(value))
        with pytest.raises(XDogeError, match="damaged"):
            MixtureLaw.load(tmp_path / "law.json")


def test_a_mixture_far_from_all_runs_is_marked(law):
    prediction = law.predict([{"en": 1.0, "es": 0, "gl": 0, "eu": 0}, dict.fromkeys(NAMES, 0.25)])
    assert prediction.extrapolated.tolist() == [True, False]


def test_a_mixture_over_other_sources_is_refused(law):
    with pytest.raises(XDogeError, match="pt"):
        law.predict([{"en": 0.5, "es": 0.5, "gl": 0, "pt": 0}])


def test_adapting_to_another_size_learns_offset_and_factor(law):
    shares, losses = runs(known_law(), 8, seed=6)
    adapted, error = law.adapt(shares, 0.5 + 0.7 * losses)
    assert error < 0.03
    test, truth = runs(known_law(), 50, seed=7)
    assert np.abs(adapted.predict(test).predicted - 0.5 - 0.7 * truth).mean() < 0.03


def broken(column, value):
    shares, losses = runs(known_law(), 20)
    losses[column] = value
    return shares, losses


@pytest.mark.parametrize(
    ("shares", "losses", "word"),
    [
        (*(array[:6] for array in runs(known_law(), 20)), "6 runs"),
        (*broken((3, 1), np.nan), "es"),
        (*broken((slice(None), 2), 1.0), "gl"),
        (np.full((20, 4), 0.25), runs(known_law(), 20)[1], "en"),
        (np.full((20, 4), 0.3), runs(known_law(), 20)[1], "1.2"),
    ],
)
def test_runs_that_cannot_be_fitted_are_refused(shares, losses, word):
    with pytest.raises(XDogeError, match=word):
        MixtureLaw.fit(shares, losses, sources=NAMES, evaluations=NAMES, settings=QUICK)


@pytest.mark.slow
def test_published_runs_are_ordered_as_well_as_documented():
    folder = Path(os.environ.get("XDOGE_REAL_DATA", "nowhere")) / "swarms/regmix-pile"
    if not folder.is_dir():
        pytest.skip("XDOGE_REAL_DATA is not set")
    from xdoge.mixtures.csv_files import align, read_mixtures, read_table

    shares, losses = read_mixtures(folder / "train_mixture_1m.csv"), read_table(folder / "train_pile_loss_1m.csv")
    x, y = align(shares, losses, ("mixtures", "losses"))
    chosen = np.random.default_rng(0).choice(len(x), 48, replace=False)
    law = MixtureLaw.fit(x[chosen], y[chosen], sources=shares.names, evaluations=losses.names, settings=QUICK)
    assert all(len(columns) == 1 for columns in law.problem.own)
    test, truth = read_mixtures(folder / "test_mixture_1m.csv"), read_table(folder / "test_pile_loss_1m.csv")
    x, y = align(test, truth, ("mixtures", "losses"))
    prediction = law.predict(x)
    scores = score(prediction.predicted, y, prediction.high - prediction.predicted)
    assert scores.rank_evaluations > 0.97
    assert scores.rank_mean > 0.965
    assert 0.8 < scores.coverage < 0.98
