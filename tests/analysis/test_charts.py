"""Charts: all are valid Vega-Lite, are drawn without a network, and give a language the same colour."""

from __future__ import annotations

import html
import itertools
import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from chart_rows import values
from hypothesis import given
from hypothesis import strategies as st

from xdoge import Mixture, WeightSet, XDogeError, compare
from xdoge.analysis import charts
from xdoge.analysis.chart_set import ComparisonChart, charts_by_name
from xdoge.analysis.charts import colours
from xdoge.analysis.charts.drawing import spread_out
from xdoge.eval.results import ALL, Results, Row
from xdoge.fit.affinity import GradientAffinity, language_cosines, read_products
from xdoge.fit.settings import FitSettings
from xdoge.fit.trainer import fit
from xdoge.mixtures.allocation import unimax
from xdoge.mixtures.strategies import strategy_weights
from xdoge.train.settings import TrainSettings
from xdoge.train.trainer import train

AVAILABLE = {"en/web": 900, "es/web": 500, "es/wiki": 100, "eu/wiki": 50, "nl/wiki": 10}

# Machado, Oliveira and Fernandes 2009, A physiologically-based model for simulation of color vision deficiency, full
# severity; linear RGB.
SIGHT = {
    "full": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(colour):
    """SRGB "#RRGGBB" to linear RGB, (3,)."""
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def luminance(colour):
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def lab(rgb):
    """Linear RGB to CIELAB for daylight, (3,)."""
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(rgb, 0, 1)
    x, y, z = np.cbrt(np.maximum(xyz / [0.9505, 1.0, 1.089], 0.008856))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.fixture(scope="module")
def runs(store, recipe, tmp_path_factory):
    """Folders of a fit and of two training runs, as the commands leave them; read only."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {"proxy": recipe, "steps": 6, "gram_every": 1, "eval_every": 3}
    learned = fit(store, FitSettings.for_store(store, settings), out=folder / "fit").weights
    corpus = {"name": store.name, "sha256": store.sha256}
    for weights in (strategy_weights("uniform", store.tokens()), replace(learned, name="learned")):
        mixture = Mixture.plan(
            weights, available_tokens=store.tokens(), budget_tokens=1_280, max_epochs=None, corpus=corpus
        )
        settings = {"model": recipe, "steps": 4, "batch_size": 8, "sequence_length": 16, "eval_every": 2}
        train(mixture, store, TrainSettings.for_run(mixture, store, settings), out=folder / mixture.name)
        mixture.save(folder / f"{mixture.name}.json")
    return folder


def results():
    rows = [
        Row(model, language, "perplexity", "bits_per_byte", value * factor, 0.4, 10, False)
        for model, factor in (("uniform", 1.0), ("learned", 0.95))
        for language, value in (("es", 20.0), ("eu", 40.0), (ALL, 30.0))
    ]
    about = {"tokenizer": "t", "text": {}}
    return Results.of(rows, settings={"perplexity": {"uniform": about, "learned": about}})


@pytest.fixture(scope="module")
def drawn(runs):
    """Every chart of a comparison of all kinds of inputs."""
    files = [runs / name for name in ("fit", "uniform.json", "learned.json", "uniform", "learned")]
    return compare([*files, results()], baseline="uniform").charts


def test_a_comparison_of_everything_fills_every_chart(drawn, runs):
    of_weights = ["weights", "trajectory-fit", "transfer-fit", "planned-uniform", "planned-learned", "unimax"]
    assert list(drawn) == [*of_weights, "perplexity_change", "validation_change", "improvement"]


def test_names_of_charts_can_be_those_of_files_and_each_has_its_own():
    drawn = [ComparisonChart("trajectory", of, of) for of in ("a/60m", "a 60m", "größe", "")]
    assert charts_by_name(drawn) == {
        "trajectory-a-60m": "a/60m",
        "trajectory-a-60m-2": "a 60m",
        "trajectory-größe": "größe",
        "trajectory": "",
    }


def test_every_chart_is_valid_has_a_title_and_units_and_says_in_words_what_it_shows(drawn):
    for name, chart in drawn.items():
        spec = chart.to_dict()  # validates
        assert spec["title"]["text"], name
        assert len(spec["description"]) > 40, name
        assert "http" not in str({key: value for key, value in spec.items() if key != "$schema"}), name


def test_charts_are_saved_without_network(drawn, tmp_path, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a chart asked the network"))
    for number, chart in enumerate(drawn.values()):
        chart.save(tmp_path / f"{number}.svg")
        assert (tmp_path / f"{number}.svg").read_text().startswith("<svg")
    chart = drawn["weights"]
    chart.save(str(tmp_path / "x.png"))
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    chart.save(tmp_path / "x.html")
    page = (tmp_path / "x.html").read_text()
    assert not re.search(r"<script[^>]+src=", page)
    assert "vega" in page


def test_colours_of_the_reference_languages_differ_for_all_kinds_of_vision_and_print_on_white():
    for matrix in SIGHT.values():
        seen = {language: lab(np.array(matrix) @ linear(colour)) for language, colour in colours.FIXED.items()}
        assert min(np.linalg.norm(first - second) for first, second in itertools.combinations(seen.values(), 2)) > 15
    assert all(1.05 / (luminance(colour) + 0.05) > 3 for colour in (*colours.FIXED.values(), *colours.OTHERS))
    assert len({colours.dash(language) for language in colours.FIXED}) == len(colours.FIXED)


def test_a_language_has_the_same_colour_in_every_chart_whatever_else_is_shown(drawn):
    def shades(node):
        if isinstance(node, dict):
            domain, colour = node.get("domain"), node.get("range")
            if isinstance(colour, list) and str(colour[0]).startswith("#"):
                yield from zip(domain, colour, strict=True)
            node = list(node.values())
        for child in node if isinstance(node, list) else ():
            yield from shades(child)

    for name, chart in drawn.items():
        shown = {(language, shade) for language, shade in shades(chart.to_dict()) if language in colours.FIXED}
        expected = {(language, colours.FIXED[language]) for language in ("es", "gl", "eu")}
        assert shown <= expected, name
        assert shown or name.startswith(("transfer", "unimax")), name
    assert colours.colour("nl") == colours.colour("nl") in colours.OTHERS
    assert colours.colour("es") == "#B5341A"


def test_weights_of_several_fits_are_one_bar_with_their_spread():
    sets = [WeightSet(f"s{i}", {"es/web": w, "eu/web": 1 - w}) for i, w in enumerate((0.4, 0.6))]
    rows = values(charts.weights_by_language({"learned": sets, "one": sets[0]}).to_dict())
    spread = next(row for row in rows if row.get("label", "").startswith("learned") and row["language"] == "es")
    assert (spread["mean"], spread["label"]) == (pytest.approx(0.5), "learned 0.500 ± 0.141")
    assert spread["high"] - spread["low"] == pytest.approx(2 * np.std([0.4, 0.6], ddof=1))
    dots = {(row["fit"], row["weight"]) for row in rows if "fit" in row and row["language"] == "es"}
    assert dots == {("s0", 0.4), ("s1", 0.6)}


def test_the_trajectory_ends_where_the_fit_ended_and_marks_the_learned_weights(runs, drawn):
    weights = WeightSet.load(runs / "fit")
    table = pq.read_table(runs / "fit" / "trajectory.parquet").to_pandas()
    last = table[table["step"] == 6].groupby(table["source"].astype(str).str[:2])["weight"].sum()
    rows = values(drawn["trajectory-fit"].to_dict())
    for language in weights.languages:
        marks = [row["weight"] for row in rows if (row.get("step"), row["language"]) == (6, language)]
        assert marks == [pytest.approx(last[language]), pytest.approx(weights.languages[language])]


def test_a_long_fit_is_thinned_and_one_without_weights_ends_with_the_last_step(tmp_path):
    from xdoge.training.run_folder import RunFolder

    weights = np.linspace([0.5, 0.5], [0.2, 0.8], 5_000)
    RunFolder(tmp_path).write_trajectory({"weight": weights}, ("es/a", "eu/a"))
    spec = charts.trajectory(tmp_path).to_dict()
    assert spec["layer"][0]["encoding"]["x"]["axis"]["tickMinStep"] == 1
    rows, text = values(spec), str(spec)
    steps = [row["step"] for row in rows if row.get("language") == "es" and "step" in row]
    assert (len(steps), steps[0], steps[-1]) == (400, 1, 5_000)
    assert "eu 0.800" in text


def test_the_map_of_transfer_is_that_of_the_gram_matrix_with_families_together(runs, store):
    languages = {"eu": ["eu/wiki"], "gl": ["gl/wiki"], "es": ["es/web", "es/wiki"]}
    families = {"es": "romance/iberian", "eu": None, "gl": "romance/iberian"}
    spec = charts.transfer(runs / "fit", families=families).to_dict()
    rows, text = values(spec), str(spec)
    expected = language_cosines(read_products(runs / "fit" / "gram.parquet", store.sources), languages, store.sources)
    cells = {(row["language"], row["other"]): row["cosine"] for row in rows if "cosine" in row}
    for (i, language), (j, other) in itertools.product(enumerate(languages), repeat=2):
        value = cells[language, other]
        assert value == (None if np.isnan(expected[i, j]) else pytest.approx(expected[i, j]))
    order = sorted({(row["top"], row["language"]) for row in rows if "cosine" in row and row["top"] == int(row["top"])})
    assert [language for _, language in order] == ["es", "gl", "eu"]
    assert "romance/iberian" in text
    assert "romance" not in str(charts.transfer(runs / "fit").to_dict())  # the tiny corpus names no families


def test_unimax_and_temperature_have_the_shares_of_the_algorithms():
    rows = values(charts.unimax_and_temperature(AVAILABLE, budget_tokens=1_000, max_epochs=(0.1, 1)).to_dict())
    sizes = {"en": 900, "es": 600, "eu": 50, "nl": 10}
    counts = unimax(sizes, budget_tokens=1_000, max_epochs=1).counts
    assert {row["method"] for row in rows} == {
        "UniMax, ≤ 1 epoch",
        "temperature τ = 1 (proportional)",
        "temperature τ = 3.33",
        "temperature τ = 100",
    }  # 0.1 epochs cannot spend the budget
    for row in rows:
        if row["method"].startswith("UniMax"):
            assert row["probability"] == counts[row["language"]] / 1_000
            assert row["epochs"] == pytest.approx(counts[row["language"]] / sizes[row["language"]])
        if row["method"].endswith("(proportional)"):
            assert row["probability"] == pytest.approx(sizes[row["language"]] / 1_560)
    assert [row["language"] for row in sorted(rows, key=lambda row: row["rank"])][:: len(rows) // 4] == list(sizes)


def test_planned_shares_show_where_the_cap_decided():
    weights = {"en/web": 0.2, "es/web": 0.3, "es/wiki": 0.1, "eu/wiki": 0.3, "nl/wiki": 0.1}
    mixture = Mixture.plan(weights, available_tokens=AVAILABLE, budget_tokens=800, max_epochs=2, name="m")
    rows = values(charts.planned_shares(mixture).to_dict())
    basque = next(row for row in rows if row["source"] == "eu/wiki")
    assert (basque["weight"], basque["planned"], basque["cap"]) == (0.3, 0.125, 0.125)  # 100 of 800 tokens
    assert (basque["capped"], basque["label"]) == (True, "capped at 2 epochs")
    description = charts.planned_shares(mixture).to_dict()["description"]
    assert description == "epoch caps decide the share of 2 of 5 sources: eu/wiki, nl/wiki."


def test_changes_against_the_baseline_have_the_errors_of_the_rule(drawn):
    rows = values(drawn["perplexity_change"].to_dict())
    bars = {row["language"]: row for row in rows if "label" in row}
    assert bars["es"]["change"] == pytest.approx(-0.05)
    error = 1.96 * np.hypot(0.4, 0.4) / 20
    assert (bars["es"]["low"], bars["es"]["high"]) == (pytest.approx(-0.05 - error), pytest.approx(-0.05 + error))
    assert (bars["es"]["sure"], bars["eu"]["sure"], bars["average"]["sure"]) == (False, True, True)
    with pytest.raises(XDogeError, match="nobody"):
        charts.perplexity_change(results(), baseline="nobody")


def test_improvement_over_tokens_is_that_of_the_runs(runs, drawn):
    frame = compare([runs / "uniform", runs / "learned"]).frames["validation"]
    rows = values(drawn["improvement"].to_dict())
    last = frame[(frame["run"] == "learned") & (frame["step"] == 4)].set_index("language")["change"]
    shown = {row["language"]: row["improvement"] for row in rows if row.get("tokens") == 4 * 8 * 16}
    assert shown == pytest.approx((-last).to_dict())
    assert charts.improvement([runs / "uniform", runs / "learned"], baseline="uniform").to_dict()
    with pytest.raises(XDogeError, match="baseline=other"):
        charts.improvement([runs / "uniform", runs / "learned"], baseline="other")
    with pytest.raises(XDogeError, match="uniform.*same token budget"):
        charts.validation_change([runs / "uniform"], baseline="uniform")


@pytest.mark.parametrize("build", [charts.trajectory, charts.transfer])
def test_charts_of_a_fit_say_what_is_missing(build, tmp_path):
    with pytest.raises(XDogeError, match=rf"{tmp_path.name} has no (trajectory|gram)\.parquet"):
        build(tmp_path)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=12), st.floats(0.01, 0.5))
def test_labels_keep_order_and_distance_and_move_as_little_as_possible(where, gap):
    placed = spread_out(where, gap)
    order = sorted(range(len(where)), key=lambda i: where[i])
    in_order = [placed[i] for i in order]
    assert all(b - a >= gap - 1e-9 for a, b in itertools.pairwise(in_order))
    assert np.mean(placed) == pytest.approx(np.mean(where), abs=1e-9)
    spaced = [2 * gap * i for i in range(len(where))]
    assert spread_out(spaced, gap) == pytest.approx(spaced)


def test_a_language_named_like_an_expression_is_text_on_the_map(tmp_path):
    sources = ("a'\"]+1/x", "eu/x")
    gram = SimpleNamespace(gram=np.eye(2), half_products=np.ones(2))
    affinity = GradientAffinity.empty(2).add(gram, step=1, steps=1)
    pq.write_table(affinity.to_table(sources, steps=1), tmp_path / "gram.parquet")
    charts.transfer(tmp_path).save(tmp_path / "map.svg")
    assert "a'\"]+1" in html.unescape((tmp_path / "map.svg").read_text())


def test_a_missing_chart_is_refused_with_the_names_of_all_charts():
    charts = compare([results()], baseline="uniform").charts
    assert list(charts) == ["perplexity_change"]
    with pytest.raises(XDogeError, match="'improvement'.*perplexity_change"):
        charts["improvement"]
