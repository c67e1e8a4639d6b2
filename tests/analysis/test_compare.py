"""Comparisons: numbers agree with SciPy and with values computed by hand, and errors name the input."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import kendalltau, spearmanr

from xdoge import Mixture, WeightSet, XDogeError, compare
from xdoge.analysis.shares import agreement
from xdoge.analysis.statistics import exceeds, rank_correlations
from xdoge.eval.results import ALL, Results, Row

AVAILABLE = {"es/web": 6_000, "es/wiki": 2_000, "eu/wiki": 1_000, "gl/wiki": 1_000}


def weights(name, *shares, corpus="a" * 64, seed=0, proxy="60m", **rest):
    sources = dict(zip(AVAILABLE, shares, strict=True))
    return WeightSet(
        name, sources, method={"seed": seed, "mu": 0.1}, proxy={"name": proxy}, corpus={"sha256": corpus}, **rest
    )


FIRST = weights("first", 0.3, 0.1, 0.35, 0.25)
SECOND = weights("second", 0.3, 0.2, 0.2, 0.3, seed=1)


def mixture(shares, *, name=None, budget=4_000, **settings):
    return Mixture.plan(shares, available_tokens=AVAILABLE, budget_tokens=budget, name=name, **settings)


def results(*rows, tokenizers=None, texts=None, **settings):
    """Return a table from rows, or from (model, language, value, stderr) with the task perplexity."""
    made = [
        row
        if isinstance(row, Row)
        else Row(row[0], row[1], "perplexity", "perplexity_per_token", row[2], row[3], 10, False)
        for row in rows
    ]
    models = dict.fromkeys(row.model for row in made)
    about = {
        model: {"tokenizer": (tokenizers or {}).get(model, "t"), "text": (texts or {}).get(model, {"es": "x"})}
        for model in models
    }
    return Results.of(made, settings={"perplexity": about, **settings})


def training(folder, losses, *, steps=4, finished=True, tokens=256, store="s", **more):
    """Write the files of a training run, with a validation every two steps."""
    folder.mkdir(parents=True)
    settings = {"model": "tiny", "steps": steps, "batch_size": 8, "sequence_length": tokens // 8, **more}
    config = {"store": {"sha256": store}, "mixture": {"name": "m", "sha256": "0"}, "settings": settings}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = [
        {"step": 2 * i, "tokens": 2 * i * tokens, "validation_by_language": loss, "epochs": {"es/web": 0.1 * i}}
        for i, loss in enumerate(losses)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if finished:
        seen = steps * tokens
        summary = {"tokens_seen": seen, "epochs": {"es/web": 0.5}, "tokens_by_source": {"es/web": seen}}
        (folder / "train.json").write_text(json.dumps({"schema": "xdoge.train/1", **summary}))
    return folder


def row_of(rows, **wanted):
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def note_of(compared):
    (note,) = compared.notes
    return note


# Numbers


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_rank_correlations_are_those_of_scipy_with_ties(pairs):
    x, y = zip(*pairs, strict=True)
    assume(len(set(x)) > 1 and len(set(y)) > 1)
    tau, rho = rank_correlations(x, y)
    assert tau == pytest.approx(kendalltau(x, y).statistic, abs=1e-12)
    assert rho == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)


def test_equal_weights_have_no_order_to_correlate():
    assert rank_correlations([0.5, 0.5], [0.1, 0.9]) == (None, None)
    assert rank_correlations([1 / 3 + 1e-9, 1 / 3, 1 / 3], [0.1, 0.2, 0.7]) == (None, None)  # rounding is no order


def test_a_difference_exceeds_its_errors_by_the_stated_rule():
    error, beyond = exceeds(1.0, 0.3, 0.4)
    assert (error, beyond) == (0.5, True)  # 1.96 · 0.5 = 0.98
    assert exceeds(-0.97, 0.3, 0.4) == (0.5, False)
    assert exceeds(1.0, None, 0.4) == (None, None)


@given(*[st.lists(st.floats(0.01, 1), min_size=4, max_size=4)] * 2)
def test_distances_are_those_of_scipy(p, q):
    p, q = np.array(p) / sum(p), np.array(q) / sum(q)
    rows = compare([weights("p", *p.tolist()), weights("q", *q.tolist())]).rows["distances"]
    value = {row["metric"]: row for row in rows if row["level"] == "source"}
    assert value["total_variation"]["value"] == pytest.approx(np.abs(p - q).sum() / 2, abs=1e-12)
    assert value["jensen_shannon"]["value"] == pytest.approx(jensenshannon(p, q, base=2) ** 2, abs=1e-9)
    assert value["jensen_shannon"]["unit"] == "bits"
    assert [row["value"] for row in rows if row["metric"] == "total_variation" and row["level"] == "language"] == [
        pytest.approx((abs(p[0] + p[1] - q[0] - q[1]) + abs(p[2] - q[2]) + abs(p[3] - q[3])) / 2, abs=1e-12)
    ]


def test_weights_stand_side_by_side_with_differences_to_the_baseline():
    rows = compare([FIRST, SECOND]).rows["weights"]  # the first is the baseline
    spanish = row_of(rows, set="second", level="language", language="es")
    assert (spanish["weight"], spanish["baseline"]) == (0.5, "first")
    assert spanish["difference"] == pytest.approx(0.1)
    assert row_of(rows, set="second", source="eu/wiki")["difference"] == pytest.approx(-0.15)
    assert len(rows) == 2 * (3 + 4)
    other = compare([FIRST, SECOND], baseline="second").rows["weights"]
    assert row_of(other, set="first", source="eu/wiki")["difference"] == pytest.approx(0.15)


def test_planned_shares_stand_beside_the_learned_weights():
    plan = mixture(FIRST, max_epochs=1, level="sources")
    compared = compare([FIRST, plan])
    assert list(compared.sets) == ["first", "first (planned)"]
    capped = row_of(compared.rows["weights"], set="first (planned)", source="eu/wiki")
    assert (capped["weight"], capped["difference"]) == (0.25, pytest.approx(-0.1))  # 1,000 of 4,000 tokens
    assert row_of(compared.rows["mixtures"], mixture="first", source="eu/wiki")["epochs"] == 1.0
    assert compared.notes == tuple(f"first: {line}" for line in plan.warnings())
    (table,) = [table for table in compared.tables if table.caption.startswith("Mixtures")]
    assert next(row for row in table.rows if row[0] == "eu")[3] == "1.00*"


def test_several_fits_are_summarised_and_their_order_is_compared():
    third = weights("third", 0.2, 0.1, 0.3, 0.4, seed=2)
    compared = compare([FIRST, SECOND, third])
    (group,) = compared.groups
    assert (group.name, list(group.sets), group.differ) == ("proxy 60m", ["first", "second", "third"], ("seed",))
    basque = row_of(compared.rows["summary"], language="eu", level="language")
    assert basque["mean"] == pytest.approx(0.85 / 3)
    assert basque["standard_deviation"] == pytest.approx(np.std([0.35, 0.2, 0.3], ddof=1))
    assert (basque["least"], basque["greatest"], basque["sets"]) == (0.2, 0.35, 3)
    order = {(row["language"], row["other"]): row for row in compared.rows["order"]}
    assert set(order) == {("es", "gl"), ("es", "eu"), ("gl", "eu")}  # means 0.4, 0.317, 0.283
    galician = order["gl", "eu"]
    assert (galician["sets_above"], galician["sets_below"], galician["swaps"]) == (2, 1, True)
    assert galician["mean_difference"] == pytest.approx((-0.1 + 0.1 + 0.1) / 3)
    assert [pair for pair, row in order.items() if row["swaps"]] == [("es", "gl"), ("gl", "eu")]  # es and eu only tie
    languages = [np.round(list(weights.languages.values()), 9) for weights in (FIRST, SECOND, third)]
    taus = [kendalltau(languages[i], languages[j]).statistic for i, j in ((0, 1), (0, 2), (1, 2))]
    assert agreement(group) == pytest.approx(np.mean(taus))
    assert compared.remarks[0].startswith("3 fits, proxy 60m: ")
    assert compared.remarks[0].endswith("they differ in seed.")


def test_sources_in_another_order_make_the_same_comparison():
    turned = replace(SECOND, sources=dict(reversed(SECOND.sources.items())))
    straight, other = compare([FIRST, SECOND]), compare([FIRST, turned])
    assert straight.rows["distances"] == other.rows["distances"]
    assert straight.rows["order"] == other.rows["order"]
    assert straight.remarks == other.remarks


def test_fits_are_grouped_by_proxy_and_together_and_only_on_one_corpus():
    larger = weights("larger", 0.3, 0.2, 0.2, 0.3, proxy="125m")
    elsewhere = weights("elsewhere", 0.3, 0.2, 0.2, 0.3, corpus="b" * 64)
    averaged = WeightSet.average([FIRST, SECOND], name="mean")
    compared = compare([FIRST, SECOND, larger, elsewhere, averaged])
    assert [(group.name, list(group.sets)) for group in compared.groups] == [
        ("proxy 60m, corpus 1 (aaaaaaaaaaaa)", ["first", "second"]),
        ("all proxies, corpus 1 (aaaaaaaaaaaa)", ["first", "second", "larger"]),
    ]
    assert compared.groups[1].differ == ("seed", "name")
    assert "elsewhere: store bbbbbbbbbbbb" in note_of(compared)
    of_average = [row for row in compared.rows["weights"] if row["set"] == "mean" and row["language"] == "eu"]
    assert [row["standard_deviation"] for row in of_average] == pytest.approx([0.15 / math.sqrt(2)] * 2)


def test_fits_of_one_proxy_on_two_corpora_are_summarised_separately():
    other = [weights(f"other{seed}", 0.7, 0.1, 0.1, 0.1, corpus="b" * 64, seed=seed) for seed in (0, 1)]
    compared = compare([FIRST, SECOND, *other])
    means = [row["mean"] for row in compared.rows["summary"] if row["language"] == "eu" and row["level"] == "language"]
    assert means == pytest.approx([0.275, 0.1])
    shown = [table.rows for table in compared.tables if table.caption.startswith("Weights of 2 fits")]
    assert [next(row[1] for row in rows if row[0] == "eu") for rows in shown] == ["0.2750", "0.1000"]
    assert len({group.name for group in compared.groups}) == 2


def test_a_missing_rank_correlation_says_which_weights_have_no_order():
    flat = weights("flat", 1 / 6, 1 / 6, 1 / 3, 1 / 3)
    assert "languages have the same weight in flat" in compare([FIRST, flat]).remarks[-1]
    assert not any(line.startswith("–") for line in compare([FIRST, SECOND]).remarks)


def test_sets_of_other_sources_have_no_distance_but_a_dash():
    other = WeightSet("other", {"es/web": 0.5, "fr/web": 0.5})
    compared = compare([FIRST, other])
    assert "distances" not in compared.rows
    assert row_of(compared.rows["weights"], set="other", language="fr", level="language")["difference"] is None
    table = compared.tables[0]
    assert next(row for row in table.rows if row[0] == "fr") == ["fr", "–", "0.5000", "–"]
    assert "the weight sets name different sources" in compared.notes[0]


# Models


def test_changes_of_perplexity_with_errors_against_the_baseline():
    table = results(
        ("uniform", "es", 20.0, 0.3),
        ("learned", "es", 18.0, 0.4),
        ("uniform", "eu", 30.0, 1.0),
        ("learned", "eu", 29.0, None),
    )
    compared = compare([table], baseline="uniform")
    row = row_of(compared.rows["scores"], model="learned", language="es")
    assert (row["difference"], row["change"], row["difference_stderr"]) == (-2.0, -0.1, 0.5)
    assert (row["exceeds"], row["better"]) == (True, True)
    unknown = row_of(compared.rows["scores"], model="learned", language="eu")
    assert (unknown["exceeds"], unknown["difference_stderr"]) == (None, None)
    assert row_of(compared.rows["scores"], model="uniform", language="es")["difference"] is None
    (scores,) = compared.tables
    assert scores.rows[0] == ["es", "20.00 ± 0.30", "18.00 ± 0.40", "-10.0% ± 4.9%*"]
    assert scores.rows[1] == ["eu", "30.00 ± 1.00", "29.00", "-3.3%"]
    assert "|Δ| > 1.96" in compared.remarks[0]


def test_perplexity_per_token_of_two_tokenizers_is_not_compared_but_bits_per_byte_is():
    rows = [
        Row(model, "es", "perplexity", metric, value, 0.01, 10, False)
        for model, values in (("one", (20.0, 1.0)), ("two", (10.0, 0.9)))
        for metric, value in zip(("perplexity_per_token", "bits_per_byte"), values, strict=True)
    ]
    compared = compare([results(*rows, tokenizers={"one": "a", "two": "b"})])
    per_token = row_of(compared.rows["scores"], model="two", metric="perplexity_per_token")
    assert per_token["difference"] is None
    assert row_of(compared.rows["scores"], model="two", metric="bits_per_byte")["change"] == pytest.approx(-0.1)
    (table,) = compared.tables
    assert table.caption.startswith("bits per byte")
    assert "between tokenizers" in note_of(compared)


def test_numbers_of_different_text_or_questions_are_not_compared():
    table = results(("one", "es", 20.0, 0.1), ("two", "es", 10.0, 0.1), texts={"two": {"es": "y"}})
    compared = compare([table])
    assert row_of(compared.rows["scores"], model="two")["change"] is None
    assert note_of(compared).startswith("two against one: perplexity")
    fewer = [Row(model, "es", "xnli_es", "acc", 0.5, 0.1, n, True) for model, n in (("one", 100), ("two", 50))]
    assert "different numbers of documents" in note_of(compare([results(*fewer)]))


@pytest.mark.parametrize("other", [{"num_fewshot": 5}, {"prompts": "b"}, {"outcome": "failed"}])
def test_benchmarks_of_other_prompts_and_averages_over_other_tasks_are_not_compared(other):
    ran = {"task": "xnli_es", "language": "es", "metric": "acc", "outcome": "ran", "num_fewshot": 0, "prompts": "a"}
    same = {**ran, "task": "xquad_es"}
    outcomes = {name: {"outcomes": [same, {**ran, **more}]} for name, more in (("one", {}), ("two", other))}
    rows = [
        Row(model, language, task, metric, 0.5, 0.1, n, True)
        for model in ("one", "two")
        for language, task, metric, n in (
            ("es", "xnli_es", "acc", 9),
            ("es", "xquad_es", "acc", 9),
            ("es", "suite", "normalised", 1),
            (ALL, "suite", "normalised", 1),
        )
    ]
    compared = compare([results(*rows, benchmarks={"suite": outcomes})])
    differences = {(row["task"], row["difference"]) for row in compared.rows["scores"] if row["model"] == "two"}
    assert differences == {("xnli_es", None), ("xquad_es", 0.0), ("suite", None)}
    assert "benchmarks" in note_of(compared)


def test_normalised_scores_of_other_chances_are_not_compared():
    def table(model, chance):
        task = {"task": "t", "language": "es", "metric": "acc", "outcome": "ran", "prompts": "a", "max": 1.0}
        rows = [Row(model, "es", "t", metric, 0.6, 0.1, 9, True) for metric in ("acc", "normalised")]
        return results(*rows, benchmarks={"s": {model: {"outcomes": [{**task, "chance": chance}]}}})

    scores = compare([table("one", 0.5), table("two", 0.25)]).rows["scores"]
    differences = {row["metric"]: row["difference"] for row in scores if row["model"] == "two"}
    assert differences == {"acc": 0.0, "normalised": None}


def test_other_windows_are_compared_with_a_warning():
    def table(model, window):
        about = {"tokenizer": "t", "text": {"es": "x"}, "settings": {"window": window, "stride": window // 2}}
        return replace(results((model, "es", 20.0, 0.1)), settings={"perplexity": {model: about}})

    compared = compare([table("one", 2048), table("two", 512)])
    assert row_of(compared.rows["scores"], model="two")["difference"] == 0.0
    assert all(number in note_of(compared) for number in ("512", "256", "2,048", "1,024"))
    assert compare([table("one", 512), table("two", 512)]).notes == ()


def test_a_baseline_no_better_than_chance_gives_points_and_not_per_cent():
    scores = {"one": -1.0, "two": 4.0}
    rows = [Row(model, ALL, "suite", "normalised", value, 1.0, 9, True) for model, value in scores.items()]
    compared = compare([results(*rows, benchmarks={"suite": {}})])
    assert row_of(compared.rows["scores"], model="two")["change"] is None
    assert compared.tables[0].rows == [["average", "-1.000 ± 1.000", "4.000 ± 1.000", "+5.0 ± 2.8 points*"]]


def test_tables_of_several_files_are_one_and_contradictions_are_refused(tmp_path):
    first, second = results(("one", "es", 20.0, 0.1)), results(("two", "es", 10.0, 0.1))
    first.save(tmp_path / "a.json")
    second.save(tmp_path / "b.json")
    compared = compare([tmp_path / "a.json", tmp_path / "b.json"])
    assert row_of(compared.rows["scores"], model="two")["change"] == -0.5
    results(("one", "es", 21.0, 0.1)).save(tmp_path / "c.json")
    with pytest.raises(XDogeError, match=r"a.json and .*c.json .*perplexity"):
        compare([tmp_path / "a.json", tmp_path / "c.json"])
    named = compare([tmp_path / "a.json", ("later", tmp_path / "c.json")])
    assert named.models == ["one", "later"]
    assert row_of(named.rows["scores"], model="later")["change"] == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("language", "value", "how", "what"),
    [
        ("es", 19.0, {"texts": {"one": {"es": "y"}}}, "another text"),
        ("eu", 19.0, {"tokenizers": {"one": "u"}}, "another tokenizer"),
    ],
)
def test_one_model_measured_in_two_ways_is_refused_with_both_files(tmp_path, language, value, how, what):
    results(("one", "es", 20.0, 0.1)).save(tmp_path / "a.json")
    results(("one", language, value, 0.1), **how).save(tmp_path / "b.json")
    with pytest.raises(XDogeError, match=f"a.json and .*b.json have different numbers for one .*{what}"):
        compare([tmp_path / "a.json", tmp_path / "b.json"])
    assert compare([f"first={tmp_path / 'a.json'}", tmp_path / "b.json"]).models == ["first", "one"]


# Training runs


def test_training_runs_are_compared_where_they_have_read_as_much(tmp_path):
    losses = [{"es": 4.0, "eu": 5.0}, {"es": 3.0, "eu": 4.0}, {"es": 2.0, "eu": 3.0}]
    better = [{"es": 4.0, "eu": 5.0}, {"es": 2.9, "eu": 4.1}, {"es": 1.8, "eu": 3.1}]
    training(tmp_path / "uniform", losses)
    training(tmp_path / "learned", better)
    compared = compare([tmp_path / "uniform", tmp_path / "learned"])
    last = row_of(compared.rows["validation"], run="learned", language="es", step=4)
    assert last["difference"] == pytest.approx(-0.2)
    assert last["change"] == pytest.approx(math.exp(-0.2) - 1)
    assert (last["tokens"], last["perplexity"]) == (1024, pytest.approx(math.exp(1.8)))
    table = compared.tables[0]
    assert table.rows[0] == ["es", "7.39", "6.05", "-18.1%"]
    assert compared.notes == ()
    assert row_of(compared.rows["reading"], run="learned")["tokens_seen"] == 1024


def test_runs_of_unequal_budgets_or_text_or_unfinished_ones_get_no_change(tmp_path):
    losses = [{"es": 4.0}, {"es": 3.0}]
    training(tmp_path / "uniform", losses)
    training(tmp_path / "longer", losses, steps=6)
    training(tmp_path / "elsewhere", losses, store="t")
    training(tmp_path / "apart", losses, documents="separate")
    training(tmp_path / "running", losses, finished=False)
    compared = compare([tmp_path / name for name in ("uniform", "longer", "elsewhere", "apart", "running")])
    changes = {row["run"]: row["change"] for row in compared.rows["validation"]}
    assert changes == {"uniform": None, "longer": None, "elsewhere": None, "apart": None, "running": 0.0}
    assert compared.notes[0] == "running is not finished: step 2 of 4."
    assert compared.notes[1].startswith("elsewhere, apart cannot be compared with uniform")
    assert "have seen different numbers of tokens and cannot be compared" in compared.notes[2]
    assert row_of(compared.rows["reading"], run="running")["finished"] is False


# Names and files


def test_every_kind_of_input_is_recognised_with_its_origin(tmp_path):
    (tmp_path / "fit").mkdir()
    FIRST.save(tmp_path / "fit" / "weights.json")
    mixture(SECOND, name="plan").save(tmp_path / "mixture.json")
    results(("one", "es", 20.0, 0.1)).save(tmp_path / "results.json")
    training(tmp_path / "run", [{"es": 1.0}])
    paths = [tmp_path / name for name in ("fit", "mixture.json", "results.json", "run")]
    compared = compare(paths)
    assert [(file.kind, file.path) for file in compared.files] == [
        (kind, str(path)) for kind, path in zip(("weights", "mixture", "results", "run"), paths, strict=True)
    ]
    assert all(len(file.sha256) == 64 for file in compared.files)
    assert compare({"mine": tmp_path / "fit"}).sets["mine"].sources == FIRST.sources
    assert compare(tmp_path / "fit").sets["fit"] == replace(FIRST, name="fit")
    assert set(compared.frames) == {"weights", "distances", "mixtures", "scores", "validation", "reading"}
    assert compared.frames["weights"]["weight"].sum() == pytest.approx(4)  # two sets, by language and by source


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to compare"),
        (["missing.json"], "missing.json"),
        (["other.json"], "other.json cannot be compared"),
        (["run/train.json"], "name its folder, .*run"),
        (["empty"], "empty has no weights.json"),
        (["fit", "fit/weights.json"], "fit: .*fit and .*weights.json"),
    ],
)
def test_inputs_that_cannot_be_compared_are_refused_by_name(tmp_path, arguments, message):
    (tmp_path / "fit").mkdir()
    (tmp_path / "empty").mkdir()
    FIRST.save(tmp_path / "fit" / "weights.json")
    training(tmp_path / "run", [{"es": 1.0}])
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(XDogeError, match=message):
        compare([tmp_path / argument for argument in arguments])


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["runs/60m/weights.json", "runs/125m", "w.json"], ["60m", "125m", "w"]),
        (["a/60m", "b/60m", "c/weights.json"], ["a/60m", "b/60m", "c"]),
        (["a/x/weights.json", "a/y/weights.json", "weights.json"], ["x", "y", "weights"]),
        (["a/x/w", "b/x/w", "a/y/w"], ["a/x/w", "b/x/w", "y/w"]),
        (["mine=a/60m", "60m"], ["mine", "60m"]),
    ],
)
def test_an_input_has_the_users_name_or_the_end_of_its_path(tmp_path, monkeypatch, paths, names):
    monkeypatch.chdir(tmp_path)
    for path in (path.rpartition("=")[2] for path in paths):
        FIRST.save(path if path.endswith(".json") else f"{path}/weights.json")
    assert list(compare(paths).sets) == names


def test_a_name_before_the_file_is_read_in_python_as_in_the_shell(tmp_path):
    FIRST.save(tmp_path / "w.json")
    assert list(compare([f"u={tmp_path / 'w.json'}"]).sets) == ["u"]
    assert list(compare(f"u={tmp_path / 'w.json'}").sets) == ["u"]
    with pytest.raises(XDogeError, match="w.json has no name"):
        compare(f"={tmp_path / 'w.json'}")


def test_an_unknown_baseline_is_refused_with_the_names_that_exist():
    with pytest.raises(XDogeError, match="baseline=unifrom"):
        compare([FIRST, SECOND], baseline="unifrom")


def test_a_baseline_of_one_kind_leaves_the_others_without_differences():
    table = results(("uniform", "es", 2.0, 0.1), ("learned", "es", 1.0, 0.1))
    compared = compare([FIRST, SECOND, table], baseline="uniform")
    assert row_of(compared.rows["weights"], set="second", language="eu", level="language")["difference"] is None
    assert row_of(compared.rows["scores"], model="learned")["change"] == -0.5


# The command


def test_the_command_prints_tables_and_json(xdoge, tmp_path):
    FIRST.save(tmp_path / "a.json")
    SECOND.save(tmp_path / "b.json")
    status, out, err = xdoge("compare", tmp_path / "a.json", f"mine={tmp_path / 'b.json'}")
    assert (status, err) == (0, "")
    assert "Weights: share of training tokens" in out
    assert "2 fits, proxy 60m: " in out
    line = next(line for line in out.splitlines() if line.strip().startswith("eu"))
    assert line.split() == ["eu", "0.3500", "0.2000", "-0.1500"]
    status, out, err = xdoge("compare", tmp_path / "a.json", tmp_path / "b.json", "--json", "--baseline", "b")
    value = json.loads(out)
    assert value["schema"] == "xdoge.comparison/1"
    assert [file["name"] for file in value["files"]] == ["a", "b"]
    assert row_of(value["weights"], set="a", source="eu/wiki")["difference"] == pytest.approx(0.15)


def test_the_command_warns_on_stderr_and_refuses_in_one_line(xdoge, tmp_path):
    shares = {"es/web": 0.1, "es/wiki": 0.1, "eu/wiki": 0.7, "gl/wiki": 0.1}
    mixture(shares, name="basque", max_epochs=2).save(tmp_path / "basque.json")
    status, _, err = xdoge("compare", tmp_path / "basque.json")
    assert (status, err) == (0, "warning: basque: caps cut the weight by more than 25%: eu by 29%.\n")
    status, out, err = xdoge("compare", tmp_path / "none.json")
    assert (status, out, err) == (1, "", f"error: {tmp_path / 'none.json'} does not exist.\n")
    shutil.copy(tmp_path / "basque.json", tmp_path / "a=b.json")
    assert xdoge("compare", tmp_path / "a=b.json")[0] == 0  # a path that exists has no name before it


def test_names_are_text_and_not_markup(xdoge, tmp_path):
    weights("x", 0.3, 0.1, 0.35, 0.25).save(tmp_path / "a.json")
    assert "[red]x[/red]" in xdoge("compare", f"[red]x[/red]={tmp_path / 'a.json'}")[1]


def test_fits_with_other_targets_are_not_treated_as_draws_of_one():
    fits = [weights(f"fit{n}", 0.25 + n / 10, 0.25, 0.25, 0.25 - n / 10, seed=n) for n in range(2)]
    assert not [line for line in compare(fits).notes if "targets" in line]
    robust = replace(fits[1], method={**fits[1].method, "targets": "robust"})
    (note,) = (line for line in compare([fits[0], robust]).notes if "targets" in line)
    assert note.startswith("fit0, fit1 differ in targets")
