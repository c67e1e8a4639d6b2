"""Charts of mixture laws: their data are the values of the law, and a comparison accepts a law."""

from __future__ import annotations

import numpy as np
import pytest
from chart_rows import values
from law_swarms import NAMES, known_law, runs

from xdoge import Mixture, WeightSet, XDogeError, compare
from xdoge.analysis import charts
from xdoge.laws.law import LawSettings, MixtureLaw

SOURCES = ("en/web", "es/web", "es/wiki", "gl/web", "eu/web")
COUNTS = {"en": 90_000, "es": 40_000, "gl": 6_000, "eu": 5_000}


@pytest.fixture(scope="module")
def law():
    """A law over languages that knows token counts."""
    shares, losses = runs(known_law(), 24, noise=0.01)
    settings = LawSettings(tokens=COUNTS, budget_tokens=20_000, validate_rivals=False)
    return MixtureLaw.fit(shares, losses, sources=NAMES, evaluations=NAMES, form="effective", settings=settings)


@pytest.fixture(scope="module")
def weights():
    return WeightSet("learned", dict(zip(SOURCES, (0.4, 0.1, 0.1, 0.2, 0.2), strict=True)))


def drawn(chart, key):
    """Return the rows of a chart that have a key, without the repetitions in several layers."""
    rows = [row for row in values(chart.to_dict()) if key in row]
    return list({tuple(row.items()): row for row in rows}.values())


def test_predicted_against_measured_has_every_run_with_its_cross_validated_prediction(law):
    rows = drawn(charts.predicted_against_measured(law), "inside")
    assert len(rows) == law.losses.size
    for place, name in enumerate(NAMES):
        own = [row for row in rows if row["language"] == name]
        assert [row["measured"] for row in own] == law.losses[:, place].tolist()
        assert [row["predicted"] - row["measured"] for row in own] == pytest.approx(law.residuals[:, place].tolist())
    assert all(row["inside"] == (row["low"] <= row["measured"] <= row["high"]) for row in rows)


def test_intervals_of_the_chart_hold_about_nine_in_ten_runs(law):
    rows = drawn(charts.predicted_against_measured(law), "inside")
    assert 0.8 <= np.mean([row["inside"] for row in rows]) <= 1


def test_a_line_along_a_share_is_what_the_law_predicts_with_the_others_in_proportion(law):
    at = {"en": 0.5, "es": 0.2, "gl": 0.2, "eu": 0.1}
    rows = drawn(charts.loss_along_share(law, "es", at=at), "extrapolated")
    column = law.shares[:, 1]
    shares = [row["share"] for row in rows if row["language"] == "gl"]
    assert (min(shares), max(shares)) == pytest.approx((column.min(), column.max()))
    for row in rows[:: len(shares) // 3]:
        rest = (1 - row["share"]) / 0.8
        mixture = {"en": 0.5 * rest, "es": row["share"], "gl": 0.2 * rest, "eu": 0.1 * rest}
        prediction, place = law.predict([mixture]), NAMES.index(row["language"])
        for key in ("predicted", "low", "high"):
            assert row[key] == pytest.approx(getattr(prediction, key)[0, place])


@pytest.mark.parametrize(("source", "at", "word"), [("pt", "uniform", "pt"), ("es", {"fr": 1.0}, "fr")])
def test_a_line_along_a_share_refuses_other_sources(law, source, at, word):
    with pytest.raises(XDogeError, match=word):
        charts.loss_along_share(law, source, at=at)


def test_the_transfer_map_has_tau_without_own_sources_and_is_not_symmetric(law):
    rows = drawn(charts.transfer_map(law), "worth")
    worth = {(row["evaluation"], row["source"]): row["worth"] for row in rows}
    assert len(worth) == 12
    assert all(worth[cell] == law.transfer[cell[0]][cell[1]] for cell in worth)
    assert worth["gl", "es"] > worth["es", "gl"]


def test_no_mixture_beats_the_trade_off_curve_in_both(law):
    rows = drawn(charts.trade_off(law), "worst")
    curve = [(row["mean"], row["worst"]) for row in rows if row["mixture"] == "one of the best"]
    ends = {row["mixture"]: (row["mean"], row["worst"]) for row in rows}
    assert {"equal shares", "proportional", "UniMax", "best mean", "best worst", "run"} <= set(ends)
    equal = law.losses_at(np.full((1, 4), 0.25))[0]
    assert ends["equal shares"] == pytest.approx((equal.mean(), equal.max()))
    assert ends["best mean"][0] == pytest.approx(law.optimize("mean", bootstrap=2).value, abs=1e-5)
    assert ends["best worst"][1] == pytest.approx(law.optimize("worst", bootstrap=2).value, abs=1e-4)
    losses = law.losses_at(np.random.default_rng(0).dirichlet(np.ones(4), 500))
    for weight in (0.0, 0.25, 1.0):
        of_curve = min((1 - weight) * mean + weight * worst for mean, worst in curve)
        assert of_curve <= ((1 - weight) * losses.mean(axis=1) + weight * losses.max(axis=1)).min() + 1e-4


def test_a_law_of_one_evaluation_has_no_trade_off(law):
    shares, losses = law.shares, law.losses[:, :1]
    single = MixtureLaw.fit(shares, losses, sources=NAMES, evaluations=NAMES[:1], form="linear",
                            settings=LawSettings(validate_rivals=False))  # fmt: skip
    with pytest.raises(XDogeError, match="one evaluation"):
        charts.trade_off(single)


# Comparisons


def test_a_comparison_predicts_every_set_and_mixture_by_each_law(law, weights, tmp_path):
    law.save(tmp_path / "law.json")
    counts = {"en/web": 90_000, "es/web": 30_000, "es/wiki": 10_000, "gl/web": 6_000, "eu/web": 5_000}
    mixture = Mixture.plan(weights, available_tokens=counts, budget_tokens=30_000, name="planned")
    compared = compare([weights, mixture, tmp_path / "law.json"])
    rows = {(row["mixture"], row["evaluation"]): row for row in compared.rows["predictions"]}
    prediction = law.predict([{"en": 0.4, "es": 0.2, "gl": 0.2, "eu": 0.2}])
    equal = law.predict(np.full((1, 4), 0.25))
    for place, name in enumerate(NAMES):
        row = rows["learned", name]
        assert row["predicted"] == pytest.approx(prediction.predicted[0, place])
        assert row["difference"] == pytest.approx(prediction.predicted[0, place] - equal.predicted[0, place])
    assert rows["learned", "mean"]["predicted"] == pytest.approx(prediction.mean[0])
    worst = rows["learned", "worst"]
    assert worst["predicted"] == prediction.predicted.max()
    assert worst["largest"] == NAMES[prediction.predicted[0].argmax()]
    assert worst["low"] <= worst["predicted"] <= worst["high"]
    assert ("planned", "mean") in rows
    (budget,) = [line for line in compared.notes if "20,000" in line]
    assert "planned for 30,000" in budget
    assert compared.to_dict()["predictions"] == compared.rows["predictions"]
    assert "Mixture laws" in compared.parts


def test_a_set_over_other_sources_gets_no_prediction_and_a_note(law):
    compared = compare([WeightSet("other", {"fr/web": 0.5, "en/web": 0.5}), law])
    assert "predictions" not in compared.rows
    (note,) = compared.notes
    assert "other" in note
    assert "fr" in note


def test_a_mixture_far_from_all_runs_is_marked(law):
    single = WeightSet("single", {"en/web": 0, "es/web": 0, "gl/web": 0, "eu/web": 1.0})
    compared = compare([single, law])
    far = all(row["extrapolated"] for row in compared.rows["predictions"])
    assert far == any("far from all runs" in note for note in compared.notes)
    assert far == bool(law.predict([{"en": 0, "es": 0, "gl": 0, "eu": 1.0}]).extrapolated[0])
    assert far


def test_a_comparison_of_a_law_offers_its_charts_and_its_page_shows_them(law):
    compared = compare({"swarm": law})
    of_shares = [f"loss_along_share-swarm-{name}" for name in NAMES]
    assert list(compared.charts) == [
        "predicted_against_measured-swarm", "transfer_map-swarm", "trade_off-swarm", *of_shares
    ]  # fmt: skip
    for name, chart in compared.charts.items():
        spec = chart.to_dict()
        assert spec["title"]["text"], name
        assert len(spec["description"]) > 40, name
    page = compared.to_html()
    for words in ("Mixture laws", "trust the law", "swarm, gl"):
        assert words in page
