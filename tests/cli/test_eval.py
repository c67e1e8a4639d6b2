"""`xdoge eval`: the command, its table, and errors before long work."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from command_line import one_line
from typer.testing import CliRunner

from xdoge import cli, compare
from xdoge.analysis.models import measures, score_rows
from xdoge.analysis.tables import not_run, results_tables
from xdoge.cli.eval import print_results
from xdoge.errors import XDogeError
from xdoge.eval.lm_eval.catalogue import TaskError, offline
from xdoge.eval.perplexity import Measured, PerplexitySettings, SourceScores
from xdoge.eval.results import ALL, Results, Row
from xdoge.models.recipes import load_recipe


@pytest.fixture(scope="module")
def models(store, recipe, tmp_path_factory):
    """Folders of two models with the store's tokenizer."""
    folder = tmp_path_factory.mktemp("models")
    for seed in (0, 1):
        load_recipe(recipe).build(vocab_size=store.vocab_size, seed=seed).save_pretrained(folder / f"m{seed}")
        store.tokenizer().export(folder / f"m{seed}")
    return folder


def row(model, language, value, *, task="perplexity", metric="perplexity_per_token", stderr=None, higher=False):
    return Row(model, language, task, metric, value, stderr, 10, higher)


def results(*rows, tokenizers=("a", "a")):
    about = {f"m{number}": {"tokenizer": name} for number, name in enumerate(tokenizers)}
    return Results.of(rows, settings={"perplexity": about})


def test_two_models_on_a_store_in_one_table(xdoge, store, models, tmp_path):
    out = tmp_path / "results.json"
    status, printed, err = xdoge(
        "eval", f"one={models / 'm0'}", f"two={models / 'm1'}", "--store", store.path, "--baseline", "one", "--out", out
    )
    assert status == 0, err
    table = Results.load(out)
    assert {row.model for row in table.rows} == {"one", "two"}
    languages = [line.split()[0] for line in printed.splitlines() if line.count("±") > 1]
    assert languages == ["es", "gl", "eu", "average", "es", "gl", "eu"]
    assert "one: es/web: " in err
    assert "two: es/web: " in err
    tables, verdict, _ = printed.rpartition("verdict: ")
    assert tables.count("%") == 14  # a change for each line of the second model
    assert "two against one" in printed.removeprefix(tables + verdict)
    assert str(out) in printed
    assert "same documents for both" in printed
    assert {row["paired"] for row in score_rows(table, baseline="one")} == {None, True}
    assert not (tmp_path / "results.json.partial").exists()
    value = next(row.value for row in table.rows if row.key == ("two", "gl", "perplexity", "perplexity_per_token"))
    assert f"{value:.2f}" in printed or f"{value:.3f}" in printed


def test_json_is_the_file_and_the_verdict(xdoge, store, models, tmp_path):
    out = tmp_path / "results.json"
    status, printed, _ = xdoge("eval", models / "m0", "--store", store.path, "--out", out, "--json")
    assert status == 0
    value = json.loads(printed)
    assert "least certain" in value.pop("verdict")
    assert value == json.loads(out.read_text())


def test_finished_parts_of_a_killed_evaluation_are_not_measured_again(xdoge, store, models, tmp_path, monkeypatch):
    from xdoge.eval import scoring

    out, calls = tmp_path / "results.json", []
    nats = scoring.LoadedModel.nats

    def counted(self, *arguments, **options):
        calls.append(1)
        if len(calls) == 3:
            raise XDogeError("the third source fails.")
        return nats(self, *arguments, **options)

    monkeypatch.setattr(scoring.LoadedModel, "nats", counted)
    command = ("eval", models / "m0", "--store", store.path, "--out", out)
    status, _, err = xdoge(*command)
    assert (status, err.splitlines()[-1]) == (1, "error: the third source fails.")
    assert not out.exists()
    status, _, err = xdoge(*command)
    assert status == 0
    assert len(calls) == 3 + len(store.sources) - 2
    assert f"continuing with the results in {out}.partial" in err
    assert "es/web: already finished, kept" in err


def test_text_files_by_name_column_and_corpus(xdoge, models, tmp_path):
    lines = [json.dumps({"gl": f"casa verde {n}", "text": f"casa {n}", "id": n}) for n in range(5)]
    file = tmp_path / "a.jsonl"
    file.write_text("\n".join(lines))
    out = tmp_path / "results.json"
    status, _, err = xdoge(
        "eval", models / "m0", "--text", f"es={file}", "--text", f"gl={file}:gl", "--set", "reference=es", "--out", out
    )
    assert status == 0, err
    rows = {row.key[1:]: row for row in Results.load(out).rows}
    assert rows["gl", "perplexity", "bits_relative_to_es"].value > 1
    assert rows["es", "perplexity", "bits_per_byte"].n == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name at least one model: a run folder, the folder of a model, or its name on the Hub."),
        (["M"], "--out is missing"),
        (["M", "--out", "r.json"], "nothing to measure: give --store or --text"),
        (["M", "M", "--store", "S", "--out", "r.json"], "two models are called M; write NAME=M to tell them apart."),
        (["M", "--store", "S", "--baseline", "uniform", "--out", "r.json"], "--baseline uniform is not among"),
        (["M", "--store", "S", "--set", "windw=3", "--out", "r.json"], "did you mean window?"),
        (["M", "--text", "es", "--out", "r.json"], "--text es: write it as SOURCE=FILE, or name a corpus.yaml."),
        (["M", "--text", "es=a.txt", "--limit", "3", "--out", "r.json"], "--limit is only for benchmarks"),
        (["M", "--text", "es=a.jsonl:x", "--text", "es=b.jsonl:y", "--out", "r.json"], "columns x and y"),
        (["M", "--text", "es=a.txt", "--set", "reference=fr", "--out", "r.json"], "reference fr is not one"),
        (["=M", "--text", "es=a.txt", "--out", "r.json"], "=M has no name"),
        (["--prefetch"], "--prefetch needs --suite"),
        (["M", "--local-data", "nowhere", "--out", "r.json"], "--local-data nowhere is not a folder."),
    ],
)
def test_wrong_use_is_one_line(xdoge, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    texts = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "a.txt")]
    for text in texts:
        text.write_text('{"x": "a", "y": "a"}\n')
    status, out, err = xdoge("eval", *arguments)
    assert (status, out) == (1, "")
    assert message in one_line(err)
    assert sorted(tmp_path.iterdir()) == sorted(texts)


def test_results_are_not_written_over(xdoge, store, models, tmp_path):
    out = tmp_path / "results.json"
    out.write_text("mine")
    status, _, err = xdoge("eval", models / "m0", "--store", store.path, "--out", out)
    assert status == 1
    assert f"{out} exists; name another file, or replace it with --force." in err
    assert out.read_text() == "mine"


def test_the_second_model_is_refused_before_the_first_is_measured(xdoge, store, models, tmp_path):
    status, _, err = xdoge("eval", models / "m0", tmp_path, "--store", store.path, "--out", tmp_path / "r.json")
    assert (status, err) == (1, f"error: model '{tmp_path}' is not a model: it has no config.json.\n")


def test_a_run_that_is_not_finished_is_refused_as_a_model(xdoge, store, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("a: 1")
    status, _, err = xdoge("eval", tmp_path / "run", "--store", store.path, "--out", tmp_path / "r.json")
    assert (status, err) == (1, f"error: {tmp_path}/run is a run that is not finished; resume it first.\n")


def test_a_run_folder_stands_for_its_model(xdoge, store, models, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "train.json").write_text("{}")
    (run / "model").symlink_to(models / "m0")
    status, _, err = xdoge("eval", run, "--store", store.path, "--out", tmp_path / "r.json")
    assert status == 0, err
    assert Results.load(tmp_path / "r.json").rows[0].model == str(run)


def test_different_tokenizers_have_no_column_per_token():
    rows = [row(f"m{n}", "gl", 30.0 + n) for n in range(2)]
    rows += [row(f"m{n}", "gl", 1.0 + n, metric="bits_per_byte") for n in range(2)]
    assert [measure.metric for measure in measures(results(*rows))] == ["bits_per_byte", "perplexity_per_token"]
    assert [measure.metric for measure in measures(results(*rows, tokenizers=("a", "b")))] == ["bits_per_byte"]


def test_the_table_says_so(capsys):
    rows = [row(f"m{n}", "gl", 1.0 + n, metric="bits_per_byte") for n in range(2)]
    print_results(results(*rows, tokenizers=("a", "b")))
    assert "The models have different tokenizers" in capsys.readouterr().out


def test_the_best_is_bold_and_the_change_is_against_the_baseline():
    rows = [
        row("m0", "gl", 40.0, stderr=0.5), row("m1", "gl", 30.0), row("m0", "eu", 50.0), row("m1", "eu", 55.0),
        row("m0", ALL, 45.0), row("m1", ALL, 42.5),
    ]  # fmt: skip
    rows = [replace(row, metric="bits_per_byte") for row in rows]
    table = results(*rows)
    (shown,) = results_tables(table, score_rows(table, baseline="m0"), baseline="m0")
    assert shown.rows == [
        ["gl", "40.00 ± 0.50", "30.00", "-25.0%"],
        ["eu", "50.00", "55.00", "+10.0%"],
        ["average", "45.00", "42.50", "-5.6%"],
    ]
    assert shown.bold == {(0, 2), (1, 1), (2, 2)}


def of_documents(nats, ids=None):
    """Return results of models with these nats of each of the documents of two languages."""
    rows, about, documents = [], {}, {}
    for model, by_language in nats.items():
        sources = {
            language: SourceScores(
                np.stack([values, *np.full((3, len(values)), 100.0)], axis=1), ids or (None,) * len(values)
            )
            for language, values in by_language.items()
        }
        measured = Measured(model, sources, PerplexitySettings(), {"tokenizer": "a", "text": {"eu": 1, "gl": 1}})
        rows, about[model] = [*rows, *measured.rows()], measured.to_dict()
        documents[model] = sources
    return Results.of(rows, settings={"perplexity": about}, documents=documents)


@pytest.fixture
def paired():
    """Results of two models. One is better by about 1 % on each document, and documents differ by 20 %."""
    generator = np.random.default_rng(0)
    nats = {"m0": {language: generator.normal(300, 60, size=50) for language in ("eu", "gl")}}
    nats["m1"] = {language: values - generator.normal(3, 2, size=50) for language, values in nats["m0"].items()}
    nats["same"] = nats["m0"]
    return of_documents(nats), nats


def difference(table, model="m1", language="eu", metric="bits_per_byte"):
    rows = score_rows(table, baseline="m0")
    return next(row for row in rows if (row["model"], row["language"], row["metric"]) == (model, language, metric))


def test_models_on_the_same_documents_are_paired(paired):
    table, nats = paired
    row = difference(table)
    differences = (nats["m1"]["eu"] - nats["m0"]["eu"]) / 100 / np.log(2)
    assert row["difference_stderr"] == pytest.approx(differences.std(ddof=1) / np.sqrt(50), rel=0.1)
    assert (row["paired"], row["exceeds"]) == (True, True)
    assert difference(table, language=ALL)["difference_stderr"] < row["difference_stderr"]
    for metric in ("perplexity_per_token", "perplexity_per_word"):
        assert difference(table, metric=metric)["exceeds"] is True
    same = difference(table, "same")
    assert (same["difference"], same["difference_stderr"], same["exceeds"]) == (0.0, 0.0, False)


def test_without_the_documents_errors_are_independent_and_a_note_says_so(paired, tmp_path, capsys):
    table, _ = paired
    table.save(tmp_path / "results.json")
    assert difference(Results.load(tmp_path / "results.json")) == difference(table)
    print_results(table, baseline="m0")
    assert "same documents for both" in capsys.readouterr().out
    (tmp_path / "results.documents.parquet").unlink()
    row = difference(alone := Results.load(tmp_path / "results.json"))
    assert (row["paired"], row["exceeds"]) == (False, False)
    print_results(alone, baseline="m0")
    assert "without a file of document scores" in capsys.readouterr().out


def test_documents_of_another_measurement_are_not_used_and_damaged_ones_are_refused(paired, tmp_path):
    table, nats = paired
    table.save(tmp_path / "results.json")
    of_documents({model: {"eu": by["eu"] + 1, "gl": by["gl"]} for model, by in nats.items()}).save(tmp_path / "o.json")
    (tmp_path / "o.documents.parquet").rename(tmp_path / "results.documents.parquet")
    assert Results.load(tmp_path / "results.json").documents == {}
    (tmp_path / "results.documents.parquet").write_bytes(b"PAR1")
    with pytest.raises(XDogeError, match="results.documents.parquet"):
        Results.load(tmp_path / "results.json")


def test_damaged_sums_in_the_settings_are_refused(paired, tmp_path):
    table, _ = paired
    table.save(tmp_path / "results.json")
    content = json.loads((tmp_path / "results.json").read_text())
    for sums in (["eu"], {"eu": 3}, {"eu": {"nats": "many"}}):
        content["settings"]["perplexity"]["m1"]["sources"] = sums
        (tmp_path / "results.json").write_text(json.dumps(content))
        with pytest.raises(XDogeError, match="settings: perplexity.m1.sources"):
            Results.load(tmp_path / "results.json")


def test_other_documents_are_not_paired(paired):
    _, nats = paired
    ids = tuple(map(str, range(51)))
    first = of_documents({"m0": nats["m0"]}, ids=ids[:50])
    second = of_documents({"m1": nats["m1"]}, ids=ids[1:])
    for other, expected in ((second, {None, False}), (of_documents({"m1": nats["m1"]}, ids=ids[:50]), {None, True})):
        assert {row["paired"] for row in compare([first, other]).rows["scores"]} == expected


def test_there_is_only_one_average_over_languages(capsys):
    """A token has 2 bytes in Basque and 5 in Galician, so means over tokens and over bytes differ in sign."""
    nats = {"m0": {"eu": 300.0, "gl": 300.0}, "m1": {"eu": 310.0, "gl": 285.0}}
    rows = []
    for model, totals in nats.items():
        sources = {
            language: SourceScores(np.array([[total, 100, 50, {"eu": 200, "gl": 500}[language]]]), (None,))
            for language, total in totals.items()
        }
        rows += Measured(model, sources, PerplexitySettings(), {}).rows()
    older = [Row(model, ALL, "perplexity", "perplexity_per_token", value, None, 2, False) for model, value in
             (("m0", 20.1), ("m1", 19.8))]  # fmt: skip
    print_results(results(*rows, *older), baseline="m0")
    averages = [line.split() for line in capsys.readouterr().out.splitlines() if line.split()[:1] == ["average"]]
    assert averages == [["average", "1.515", "1.529", "+1.0%"]]


def test_models_measured_with_other_windows_are_noted(capsys):
    about = {f"m{n}": {"tokenizer": "a", "settings": {"window": 64 << n, "stride": 32 << n}} for n in range(2)}
    table = Results.of([row("m0", "gl", 2.0), row("m1", "gl", 3.0)], settings={"perplexity": about})
    print_results(table)
    assert "windows of 128 tokens" in capsys.readouterr().out


def test_a_baseline_no_better_than_chance_has_changes_in_points():
    rows = [
        row(f"m{n}", "eu", value, task="mc", metric="normalised", higher=True) for n, value in enumerate((-2.0, 3.5))
    ]
    table = Results.of(rows, settings={"benchmarks": {"mc": {}}})
    assert [measure.task for measure in measures(table)] == ["mc"]
    (shown,) = results_tables(table, score_rows(table, baseline="m0"), baseline="m0")
    assert shown.rows == [["eu", "-2.000", "3.500", "+5.5 points"]]
    assert shown.bold == {(0, 2)}


def test_tasks_that_did_not_run_are_listed_by_reason():
    outcomes = [
        {"task": "a", "language": "eu", "outcome": "no data", "reason": "nothing in DIR/a"},
        {"task": "b", "language": "eu", "outcome": "no data", "reason": "nothing in DIR/a"},
        {"task": "c", "language": "eu", "outcome": "broken upstream", "reason": "needs a loading script"},
        {"task": "d", "language": "eu", "outcome": "ran", "reason": ""},
    ]
    table = Results.of([], settings={"benchmarks": {"s": {"m": {"outcomes": outcomes}}}})
    assert not_run(table) == [
        "no data: 2 tasks (nothing in DIR/a): a, b",
        "broken upstream: 1 task (needs a loading script): c",
    ]


SUITE = "tasks: [{task: qnlieu}, {task: xnli_eu}]"


def test_a_table_in_which_nothing_ran_is_not_written(xdoge, models, tmp_path):
    (tmp_path / "mine.yaml").write_text(SUITE)
    out = tmp_path / "results.json"
    with offline():
        status, printed, err = xdoge("eval", models / "m0", "--suite", tmp_path / "mine.yaml", "--out", out)
    assert (status, printed) == (1, "")
    reason = "no data: 2 tasks (neither among the local data nor in the cache of the Hub): qnlieu, xnli_eu"
    assert err.splitlines()[-1] == f"error: none of the 2 tasks ran, and no results are written: {reason}."
    assert [file.name for file in tmp_path.iterdir()] == ["mine.yaml"]


def test_the_reason_for_missing_questions_is_shown_once(xdoge, tmp_path, monkeypatch):
    monkeypatch.setattr("xdoge.eval.lm_eval.catalogue.TaskData.load", without_network)
    (tmp_path / "mine.yaml").write_text(SUITE)
    status, printed, _ = xdoge("eval", "--prefetch", "--suite", tmp_path / "mine.yaml")
    assert status == 0
    assert printed.count("not here") == 1
    assert printed.splitlines()[-2:] == [
        "missing: 2 tasks (not here): qnlieu, xnli_eu",
        "The questions of 0 of 2 tasks are available here.",
    ]


def without_network(self):
    raise TaskError("no data", "not here")


def test_a_misspelt_task_is_refused_before_the_model_is_loaded(xdoge, models, store, tmp_path):
    (tmp_path / "mine.yaml").write_text("tasks: [{task: xnli_euu, language: eu, choices: 3}]")
    command = ("eval", models / "m0", "--store", store.path, "--suite", tmp_path / "mine.yaml")
    status, _, err = xdoge(*command, "--out", tmp_path / "results.json")
    assert (status, len(err.splitlines())) == (1, 1)
    assert err.endswith("has no task xnli_euu; did you mean xnli_eu?\n")


def test_help_names_every_setting():
    help_text = CliRunner().invoke(cli.app, ["eval", "--help"], env={"COLUMNS": "200"}).output
    for word in ("--store", "--suite", "--local-data", "--prefetch", "window", "batch_tokens", "iberobench-mc"):
        assert word in help_text


def test_a_long_list_of_tasks_is_cut_short():
    outcomes = [{"task": f"t{n}", "outcome": "no data", "reason": "none"} for n in range(20)]
    table = Results.of([], settings={"benchmarks": {"s": {"m": {"outcomes": outcomes}}}})
    assert not_run(table) == ["no data: 20 tasks (none): t0, t1, t2, t3, t4, t5, t6, t7, …"]
