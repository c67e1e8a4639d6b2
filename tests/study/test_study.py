"""`xdoge study`: its commands, the order of its runs, its tables, and studies that are stopped or have failed runs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace

import forked
import numpy as np
import pandas as pd
import pytest
import yaml
from browser import browse
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from xdoge import XDogeError
from xdoge.baselines import METHODS, learn
from xdoge.errors import Interrupted, MissingExtraError
from xdoge.eval.document_scores import SUMS, SourceScores
from xdoge.eval.results import Results, Row
from xdoge.io import locked
from xdoge.mixtures.weights import WeightSet
from xdoge.models.recipes import load_recipe
from xdoge.study import Study, report, runner, slurm
from xdoge.study.attempts import failed_runs, note_attempt
from xdoge.study.findings import Findings, TrialResult, _notes
from xdoge.study.intervals import paired
from xdoge.study.plan import Run, Trial
from xdoge.study.verdict import verdict

EXAMPLE = Path(__file__).parents[2] / "examples/study/study.yaml"
TRAINING = {"eval_sequences": 2}


def write(folder, tokens, recipe, **changes):
    """Write a study.yaml with three strategies and two seeds, and with changes. A key with None is left out."""
    value = {
        "store": str(tokens.path),
        "proxy": recipe,
        "model": recipe,
        "seeds": [0, 1],
        "steps": 4,
        "learning": {"steps": 3, "checkpoint_every": 1},
        "training": TRAINING,
        "evaluation": {"max_documents": 3},
        "strategies": {
            "uniform": {"kind": "uniform"},
            "sources": {"kind": "uniform", "level": "sources", "max_epochs": "none"},
            "learned": {"kind": "fit", "targets": "languages"},
        },
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({key: part for key, part in value.items() if part is not None}, sort_keys=False))
    return path


@pytest.fixture
def study(tmp_path, store, recipe):
    return Study.load(write(tmp_path, store, recipe))


@pytest.fixture
def processes(monkeypatch):
    """Run commands in forked processes that have imported everything, and return a list of those started."""
    started = []

    def start(run, log, environment):
        started.append(run.name)
        log.parent.mkdir(parents=True, exist_ok=True)
        process = forked.start(*runner.arguments_now(run), printed=log)
        process.poll, process.wait = lambda: process.exitcode, process.join  # as of subprocess.Popen
        return process

    monkeypatch.setattr(runner, "start", start)
    return started


GOLDEN = """\
xdoge fit-weights STORE --out OUT/weights/learned/seed-0 --proxy TINY --seed 0 --set steps=3 --set checkpoint_every=1 --set targets=languages
xdoge fit-weights STORE --out OUT/weights/learned/seed-1 --proxy TINY --seed 1 --set steps=3 --set checkpoint_every=1 --set targets=languages
xdoge mix OUT/weights/uniform/weights.json --store STORE --budget 768 --max-epochs 4 --level languages --sequence-length 16 --seed 0 --out OUT/mixtures/uniform/4-steps/seed-0.json
xdoge train OUT/mixtures/uniform/4-steps/seed-0.json --store STORE --out OUT/train/uniform/4-steps/seed-0 --model TINY --steps 4 --batch-size 12 --seed 0 --set sequence_length=16 --set eval_every=4 --set eval_sequences=2
xdoge eval uniform/4-steps/seed-0=OUT/train/uniform/4-steps/seed-0 --store STORE --out OUT/results/uniform/4-steps/seed-0.json --set max_documents=3
xdoge mix OUT/weights/sources/weights.json --store STORE --budget 768 --max-epochs none --level sources --sequence-length 16 --seed 0 --out OUT/mixtures/sources/4-steps/seed-0.json
xdoge train OUT/mixtures/sources/4-steps/seed-0.json --store STORE --out OUT/train/sources/4-steps/seed-0 --model TINY --steps 4 --batch-size 12 --seed 0 --set sequence_length=16 --set eval_every=4 --set eval_sequences=2
xdoge eval sources/4-steps/seed-0=OUT/train/sources/4-steps/seed-0 --store STORE --out OUT/results/sources/4-steps/seed-0.json --set max_documents=3
xdoge mix OUT/weights/learned/seed-0/weights.json --store STORE --budget 768 --max-epochs 4 --sequence-length 16 --seed 0 --out OUT/mixtures/learned/4-steps/seed-0.json
xdoge train OUT/mixtures/learned/4-steps/seed-0.json --store STORE --out OUT/train/learned/4-steps/seed-0 --model TINY --steps 4 --batch-size 12 --seed 0 --set sequence_length=16 --set eval_every=4 --set eval_sequences=2
xdoge eval learned/4-steps/seed-0=OUT/train/learned/4-steps/seed-0 --store STORE --out OUT/results/learned/4-steps/seed-0.json --set max_documents=3
xdoge mix OUT/weights/uniform/weights.json --store STORE --budget 1344 --max-epochs 4 --level languages --sequence-length 16 --seed 0 --out OUT/mixtures/uniform/7-steps/seed-0.json
xdoge train OUT/mixtures/uniform/7-steps/seed-0.json --store STORE --out OUT/train/uniform/7-steps/seed-0 --model TINY --steps 7 --batch-size 12 --seed 0 --set sequence_length=16 --set eval_every=7 --set eval_sequences=2
"""  # noqa: E501


def test_a_study_is_these_commands(study, recipe):
    text = "\n".join(study.commands("OUT")).replace(str(study.store.path), "STORE").replace(recipe, "TINY")
    commands = text.splitlines()
    assert commands[:13] == GOLDEN.splitlines()
    assert len(commands) == 2 + 3 * 5 * 2  # fits; mix, train and eval of five models with two seeds
    assert len(set(commands)) == len(commands)


def test_settings_are_written_to_the_command_line_unchanged(tmp_path, store, recipe):
    odd = {"targets": {"gl/wiki": 1.0}, "held_out": ["gl/wiki"], "mu": 1e-05, "no_worse_than": None, "batch": "sampled"}
    path = write(tmp_path, store, recipe, strategies={"uniform": {"kind": "uniform"}, "odd": {"kind": "fit", **odd}})
    arguments = Study.load(path).runs("OUT")["weights/odd/seed-1"].arguments
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    assert {key: yaml.safe_load(value) for key, value in options.items()} == {"steps": 3, "checkpoint_every": 1, **odd}


def test_at_equal_flops_no_strategy_has_a_whole_step_left(tmp_path, store, recipe):
    kinds = {name: {"kind": name} for name in ("uniform", "fit", "doremi", "doge")}
    regmix = {"kind": "regmix", "runs": 10, "regressor": "linear"}
    changes = {"strategies": {**kinds, "regmix": regmix}, "learning": {"steps": 3}, "max_epochs": "none"}
    study = Study.load(write(tmp_path, store, recipe, **changes))
    step = study.training_flops(study.tokens_per_step)
    for name, strategy in study.strategies.items():
        spent = strategy.flops + study.steps("flops", name) * step
        assert study.total_flops - step < spent <= study.total_flops, name
        assert study.steps("tokens", name) == 4
    assert min(study.steps("flops", name) for name in study.strategies) == 4
    assert study.strategies["uniform"].flops == 0
    assert study.steps("flops", "uniform") == max(study.steps("flops", name) for name in study.strategies)


@pytest.mark.parametrize(
    ("written", "compared"), [("both", ("tokens", "flops")), ("tokens", ("tokens",)), (["flops"], ("flops",))]
)
def test_compare_can_be_written_as_in_the_help(tmp_path, store, recipe, written, compared):
    assert Study.load(write(tmp_path, store, recipe, compare=written)).spec.compare == compared


@pytest.mark.parametrize("kind", METHODS)
def test_the_planned_cost_of_learning_is_that_in_weights_json(kind, tmp_path, store, recipe):
    extra = {"regmix": {"runs": 10, "simulations": 200, "best": 5, "regressor": "linear", "eval_sequences": 3}}
    settings = METHODS[kind].for_store(store, {"proxy": recipe, "steps": 1, **extra.get(kind, {})})
    weights = learn(kind, store, settings, out=tmp_path / "run").weights
    assert settings.learning_flops(load_recipe(recipe), store) == weights.proxy["flops"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [0]}, "did you mean seeds?"),
        ({"seeds": [1, 1]}, "seeds: 1 is given twice"),
        ({"seeds": [0, -1]}, "seeds"),
        ({"compare": ["hours"]}, "compare.0"),
        ({"compare": "hours"}, "compare.0"),
        ({"model": "2m"}, "model: model '2m' is not a recipe"),
        ({"store": "nowhere"}, "nowhere"),
        ({"relative_to": "unimax"}, "relative_to is 'unimax'"),
        ({"steps": 10**6}, "strategies.uniform, equal tokens: budget 192,000,000"),
        ({"training": {"seed": 1}}, "training sets seed"),
        ({"training": {"rate": 1}}, "training: rate"),
        ({"evaluation": {"window": 17}}, "evaluation: window 17"),
        ({"evaluation": {"strid": 1}}, "did you mean stride?"),
        ({"strategies": {"a/b": {"kind": "unimax"}}}, "'a/b'"),
        ({"strategies": {"x": {"kind": "dooge"}}}, "strategies.x: kind is 'dooge'"),
        ({"strategies": {"x": {"kind": "fit", "target": "robust"}}}, "did you mean targets?"),
        ({"strategies": {"x": {"kind": "doremi", "seed": 3}}}, "setting seed"),
        ({"strategies": {"x": {"kind": "doge", "batch_size": 2}}}, "strategies.x: batch_size 2"),
        ({"strategies": {"x": {"kind": "unimax", "temperature": 3}}}, "strategies.x: temperature"),
        ({"strategies": {"x": {"kind": "unimax", "max_epochs": 0}}}, "strategies.x: max_epochs"),
    ],
)
def test_errors_are_reported_before_anything_runs(changes, message, tmp_path, store, recipe, xdoge):
    path = write(tmp_path, store, recipe, **changes)
    status, out, err = xdoge("study", path, "--out", tmp_path / "out")
    assert (status, out) == (1, "")
    assert err.startswith("error: ")
    assert message in err
    assert "study.yaml" in err or "nowhere" in err
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_files_named_in_a_study_cannot_change_after_its_start(tmp_path, store, recipe, monkeypatch):
    """The files are the proxy's recipe and reference weights, with paths relative to the study.yaml."""
    proxy, reference, out = tmp_path / "proxy.yaml", tmp_path / "reference.json", tmp_path / "out"
    shutil.copy(recipe, proxy)
    weights = WeightSet(name="r", sources=dict.fromkeys(store.sources, 1 / len(store.sources)))
    weights.save(reference)
    learned = {"kind": "fit", "no_worse_than": "reference.json:1%"}
    strategies = {"uniform": {"kind": "uniform"}, "learned": learned}
    path = write(tmp_path, store, recipe, strategies=strategies, proxy="proxy.yaml")
    Study.load(path).begin(out)
    monkeypatch.chdir(tmp_path)
    Study.load(path.name).begin(out)
    changed = dict(zip(store.sources, [0.4, 0.3, 0.2, 0.1], strict=True))
    WeightSet(name="r", sources=changed).save(reference)
    with pytest.raises(XDogeError, match=r"reference weights.* strategies\.learned"):
        Study.load(path).begin(out)
    weights.save(reference)
    proxy.write_text(yaml.safe_dump(yaml.safe_load(proxy.read_text()) | {"learning_rate": 0.5}))
    with pytest.raises(XDogeError, match=r"recipe .* strategies\.learned"):
        Study.load(path).begin(out)


def test_a_study_cannot_drop_or_change_what_it_planned_but_can_grow(tmp_path, store, recipe):
    out = tmp_path / "out"
    Study.load(write(tmp_path, store, recipe)).begin(out)
    Study.load(write(tmp_path, store, recipe)).begin(out)
    with pytest.raises(XDogeError, match="weights/learned/seed-1"):
        Study.load(write(tmp_path, store, recipe, seeds=[0])).begin(out)
    with pytest.raises(XDogeError, match="weights/learned/seed-0 .*steps=3 .*steps=2"):
        Study.load(write(tmp_path, store, recipe, learning={"steps": 2, "checkpoint_every": 1})).begin(out)
    Study.load(write(tmp_path, store, recipe, seeds=[0, 1, 2])).begin(out)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(XDogeError, match="other holds"):
        Study.load(write(tmp_path, store, recipe)).begin(tmp_path / "other")


def test_a_run_that_failed_may_get_other_settings(tmp_path, store, recipe, xdoge):
    out, learned = tmp_path / "out", [f"weights/learned/seed-{seed}" for seed in (0, 1)]
    Study.load(write(tmp_path, store, recipe)).begin(out)
    for name in learned:
        note_attempt(out, name, status=1, seconds=1.0, last_line="error: no.")
        (out / name / "checkpoints").mkdir(parents=True)
    path = write(tmp_path, store, recipe, learning={"steps": 2, "checkpoint_every": 1})
    status, printed, _ = xdoge("study", path, "--out", out, "--dry-run")
    assert (status, printed.startswith(f"# 0 of 32 runs in {out} are finished")) == (0, True)
    assert printed.splitlines()[0].endswith(f"changed settings: {', '.join(learned)}.")
    assert (out / learned[0]).exists()
    runs = Study.load(path).begin(out)
    assert "steps=2" in runs[learned[0]].command
    assert not (out / learned[0]).exists()
    Study.load(path).begin(out)
    (out / learned[0]).mkdir()
    (out / learned[0] / "weights.json").touch()
    with pytest.raises(XDogeError, match="weights/learned/seed-0 .*steps=2 .*steps=1"):
        Study.load(write(tmp_path, store, recipe, learning={"steps": 1, "checkpoint_every": 1})).begin(out)
    assert xdoge("study", write(tmp_path, store, recipe, steps=3), "--out", out, "--dry-run")[0] == 1


# Who runs when


class Stub:
    """A process that ends after some polls. It then has written its file, or it fails."""

    running: list[str] = []
    most = 0

    def __init__(self, run, log, fails):
        self.run, self.looks, self.fails = run, 3, run.name in fails
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("step 1\nerror: the reason.\n\n" if self.fails else "fine\n")
        assert all(Path(f"{log.parents[1]}/{name}").exists() for name in run.needs)
        Stub.running.append(run.name)
        Stub.most = max(Stub.most, len(Stub.running))

    def poll(self):
        self.looks -= 1
        if self.looks:
            return None
        Stub.running.remove(self.run.name)
        if not self.fails:
            self.run.file.touch()
        return int(self.fails)


def line_of_three(out, count):
    """Return runs a0 → b0 → c0, a1 → b1 → c1 and so on."""
    names = [(f"{letter}{i}", f"{before}{i}") for i in range(count) for before, letter in ("_a", "ab", "bc")]
    return [
        Run(name, (name,), out / name, None, () if before.startswith("_") else (before,), 1) for name, before in names
    ]


def test_one_line_says_what_a_failed_run_keeps_from_starting(tmp_path, monkeypatch):
    Stub.running, said = [], []
    monkeypatch.setattr(runner, "POLL", 0)
    monkeypatch.setattr(runner, "start", lambda run, log, environment: Stub(run, log, {"b"}))
    runs = [
        Run(name, (name,), tmp_path / name, None, tuple(need), 1)
        for name, need in zip("abcde", ("", *"abcd"), strict=True)
    ]
    assert runner.run_all(runs, tmp_path, on_note=said.append) == ["b", "c", "d", "e"]
    assert said[1:] == [
        "b failed (1): error: the reason; 1 of 5",
        "c and 2 more not started: they need b, which is not finished",
    ]


def test_models_that_miss_for_one_reason_have_one_row_and_one_mention():
    results = {
        Trial(name, 2, 0): TrialResult(Trial(name, 2, 0), "failed", f"{why}: error: no.", {}, {})
        for name, why in {"mean": "swarm", "worst": "swarm", "learned": "weights/learned/seed-0"}.items()
    }
    assert report.missing_table(SimpleNamespace(results=results)).rows == [
        ["mean/2-steps/seed-0, worst/2-steps/seed-0", "failed", "swarm: error: no."],
        ["learned/2-steps/seed-0", "failed", "weights/learned/seed-0: error: no."],
    ]
    study = SimpleNamespace(spec=SimpleNamespace(seeds=(0, 1), evaluation={}), strategies={})
    note = _notes(study, results, {})[0]
    assert note.endswith(": swarm: error: no; weights/learned/seed-0: error: no")


@pytest.mark.parametrize("jobs", [1, 3])
def test_runs_wait_for_their_needs_and_a_failed_run_stops_only_its_dependents(jobs, tmp_path, monkeypatch):
    Stub.running, Stub.most = [], 0
    monkeypatch.setattr(runner, "POLL", 0)
    monkeypatch.setattr(runner, "start", lambda run, log, environment: Stub(run, log, {"b1"}))
    runs, said = line_of_three(tmp_path, 4), []
    (tmp_path / "a3").touch()
    assert runner.run_all(runs, tmp_path, jobs=jobs, on_note=said.append) == ["b1", "c1"]
    assert Stub.most == jobs
    assert {run.name for run in runs if not run.finished} == {"b1", "c1"}
    assert not any(line.startswith("a3") for line in said)
    assert any(line.startswith("b1 failed (1): error: the reason; ") for line in said)
    assert "c1 not started: it needs b1, which is not finished" in said
    rows = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [row["last_line"] for row in rows if row["status"]] == ["error: the reason."]
    assert len(rows) == 10
    counts = [int(line.partition("; ")[2].partition(" of ")[0]) for line in said if " finished in " in line]
    assert counts == list(range(2, len(counts) + 2))  # a3 was finished before
    monkeypatch.setattr(runner, "start", lambda run, log, environment: Stub(run, log, ()))
    during = []
    monkeypatch.setattr(Stub, "poll", watched(Stub.poll, lambda: during.append(failed_runs(tmp_path))))
    assert runner.run_all(runs, tmp_path, jobs=jobs) == []
    assert during
    assert not any(during)  # "b1" runs again


def test_after_a_while_without_a_note_the_last_line_of_a_running_command_is_shown(tmp_path, monkeypatch):
    Stub.running = []
    monkeypatch.setattr(runner, "POLL", 0)
    monkeypatch.setattr(runner, "start", lambda run, log, environment: Stub(run, log, ()))
    said = []
    assert runner.run_all(line_of_three(tmp_path, 1), tmp_path, on_note=said.append) == []
    assert not any(line.startswith("a0: ") for line in said)
    for path in tmp_path.glob("?0"):
        path.unlink()
    monkeypatch.setattr(runner, "QUIET", 0)
    assert runner.run_all(line_of_three(tmp_path, 1), tmp_path, on_note=said.append) == []
    assert any(line.startswith("a0: ") for line in said)


def watched(function, look):
    def looked(self):
        look()
        return function(self)

    return looked


def test_each_of_several_calls_starts_only_its_own_runs(tmp_path, monkeypatch):
    Stub.running = []
    monkeypatch.setattr(runner, "POLL", 0)
    monkeypatch.setattr(runner, "start", lambda run, log, environment: Stub(run, log, ()))
    runs = line_of_three(tmp_path, 2)
    assert runner.run_all(runs, tmp_path, only={"b0", "c0"}.__contains__) == ["b0", "c0"]
    assert runner.run_all(runs, tmp_path, only={"a0", "b0", "c0"}.__contains__) == []
    assert [run.name for run in runs if run.finished] == ["a0", "b0", "c0"]


# What is found


def write_results(study, out, bits, *, without=(), documents=None):
    """Write the results of a study from bits[model's name][language], with one failed model.

    If documents[model's name][language] has the bits of D documents of one byte each, their file is written too.
    """
    study.begin(out)
    for trial in study.trials():
        if trial.name in without:
            continue
        rows = [
            Row(trial.name, language, task, "bits_per_byte", value, 0.1, 9, False)
            for language, value in bits[trial.name].items()
            for task in ("perplexity", "perplexity/wiki")
        ]
        rows.append(Row(trial.name, "*", "perplexity", "bits_per_byte", 9.9, 0.1, 9, False))
        settings, scores = {}, {}
        if documents:
            scores = {f"{language}/wiki": scored(values) for language, values in documents[trial.name].items()}
            sums = {name: dict(zip(SUMS, scores[name].totals.sum(0).tolist(), strict=True)) for name in scores}
            settings = {"perplexity": {trial.name: {"tokenizer": "t", "text": {"es": "x"}, "sources": sums}}}
        file = out / f"results/{trial.name}.json"
        Results.of(rows, settings=settings, documents={trial.name: scores} if scores else {}).save(file)
    with (out / "runs.jsonl").open("a") as file:
        for name in without:
            row = {"run": f"train/{name}", "status": 1, "seconds": 1, "last_line": "error: no."}
            file.write(json.dumps(row) + "\n")
            mixture = out / f"mixtures/{name}.json"
            mixture.parent.mkdir(parents=True, exist_ok=True)
            mixture.touch()


def scored(bits):
    ones = np.ones_like(bits)
    return SourceScores(np.column_stack([bits * np.log(2), ones, ones, ones]), (None,) * len(bits))


def some_bits(study, seed=0):
    generator = np.random.default_rng(seed)
    return {trial.name: {language: 2 + generator.random() for language in study.languages} for trial in study.trials()}


def test_the_table_agrees_with_plain_means_and_scipy(tmp_path, store, recipe):
    study, out = Study.load(write(tmp_path, store, recipe, seeds=[0, 1, 2, 5])), tmp_path / "out"
    bits, failed = some_bits(study), "sources/4-steps/seed-1"
    write_results(study, out, bits, without=[failed])
    findings = study.findings(out)
    seeds = {"uniform": [0, 1, 2, 5], "sources": [0, 2, 5], "learned": [0, 1, 2, 5]}
    rows = {row["strategy"]: row for row in findings.rows("tokens")}
    measures = {language: itemgetter(language) for language in study.languages}
    measures |= {"macro": lambda values: np.mean(list(values.values())), "worst": lambda values: max(values.values())}
    for name, row in rows.items():
        assert row["seeds"] == seeds[name]
        for measure, of in measures.items():
            mine = [of(bits[f"{name}/4-steps/seed-{seed}"]) for seed in seeds[name]]
            theirs = [of(bits[f"uniform/4-steps/seed-{seed}"]) for seed in seeds[name]]
            value = row[measure] if measure in ("macro", "worst") else row["languages"][measure]
            assert value == pytest.approx(np.mean(mine))
            if name == "uniform":
                continue
            low, high = stats.ttest_rel(mine, theirs).confidence_interval(0.95)
            interval = row["differences"][measure]
            assert (interval["low"], interval["high"]) == pytest.approx((low, high))
            assert interval["n"] == len(mine)
    assert list(rows) == sorted(rows, key=lambda name: rows[name]["differences"].get("macro", {"mean": 0})["mean"])
    for measure in ("macro", "worst"):
        above = {name: row["differences"].get(measure, {"mean": 0})["mean"] for name, row in rows.items()}
        regret = {name: row["regret"][measure] for name, row in rows.items()}
        assert regret == pytest.approx({name: value - min(above.values()) for name, value in above.items()})
    # every output has the failed model, by name and with its message
    assert findings.notes[0] == f"1 of 20 models failed and are missing from the means: train/{failed}: error: no"
    table = report.comparison_tables(findings, "tokens")[0]
    assert {row[0]: row[1] for row in table.rows} == {"uniform": "4 of 4", "sources": "3 of 4", "learned": "4 of 4"}
    assert report.missing_table(findings).rows == [[failed, "failed", f"train/{failed}: error: no."]]
    (row,) = [row for row in findings.to_dict()["models"] if (row["run"], row["comparison"]) == (failed, "tokens")]
    assert (row["state"], row["languages"]) == ("failed", {})


def test_a_missing_seed_does_not_improve_a_rank_and_the_worst_language_is_named(study, tmp_path):
    """Seed 0 is easy and seed 1 is hard. `sources` is worse with both seeds, and lacks the hard one."""
    out, bits = tmp_path / "out", {}
    for trial in study.trials():
        values = dict.fromkeys(study.languages, 1.0 + 2 * trial.seed + 0.1 * (trial.strategy == "sources"))
        values[study.languages[trial.seed if trial.strategy == "learned" else 0]] += 0.01
        bits[trial.name] = values
    write_results(study, out, bits, without=["sources/4-steps/seed-1"])
    rows = {row["strategy"]: row for row in study.findings(out).rows("tokens")}
    assert list(rows)[-1] == "sources"
    assert rows["sources"]["macro"] < rows["uniform"]["macro"]
    assert [rows[name]["worst_language"] for name in ("uniform", "learned")] == [study.languages[0], None]
    table = {row[0]: row for row in report.comparison_tables(study.findings(out), "tokens")[0].rows}
    assert table["sources"][3] == "+0.100 (n = 1)"
    assert table["learned"][4].startswith("varies ")


def test_a_deleted_result_is_not_a_failure(study, tmp_path):
    out = tmp_path / "out"
    write_results(study, out, some_bits(study), without=[])
    with (out / "runs.jsonl").open("a") as file:
        file.write(json.dumps({"run": "results/uniform/4-steps/seed-0", "status": 0, "seconds": 1, "last_line": "x"}))
    (out / "results/uniform/4-steps/seed-0.json").unlink()
    trial = next(trial for trial in study.trials() if trial.name == "uniform/4-steps/seed-0")
    assert study.findings(out).results[trial].state == "waiting"  # of all runs only the results are there


def test_study_json_has_every_number_of_the_table(study, tmp_path):
    write_results(study, tmp_path / "out", some_bits(study))
    value = json.loads(json.dumps(study.findings(tmp_path / "out").to_dict()))
    assert value["schema"] == "xdoge.study/1"
    for comparison, strategy in itertools.product(("tokens", "flops"), study.strategies):
        models = [m for m in value["models"] if (m["comparison"], m["strategy"]) == (comparison, strategy)]
        (row,) = [row for row in value["tables"][comparison] if row["strategy"] == strategy]
        assert len(models) == 2
        assert row["macro"] == pytest.approx(np.mean([list(m["languages"].values()) for m in models]))
        assert row["worst"] == pytest.approx(np.mean([max(m["languages"].values()) for m in models]))
        assert row["share_of_training"] == models[0]["learning_flops"] / models[0]["training_flops"]
        if comparison == "flops":
            total = models[0]["learning_flops"] + models[0]["training_flops"]
            assert 0 <= value["total_flops"] - total < models[0]["training_flops"] / models[0]["training_steps"]
    frame = study.findings(tmp_path / "out").to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert len(frame) == 2 * 3 * 2 * (len(study.languages) + 2)
    assert frame.bits_per_byte.notna().all()


def test_a_language_is_named_better_only_if_its_whole_interval_is(study, tmp_path):
    bits = some_bits(study)
    for seed, (gl, eu) in enumerate([(-0.1, 0.2), (-0.1001, 0.2001)]):
        base = bits[f"uniform/4-steps/seed-{seed}"]
        bits[f"learned/4-steps/seed-{seed}"] = {"es": base["es"] + seed, "gl": base["gl"] + gl, "eu": base["eu"] + eu}
    write_results(study, tmp_path / "out", bits)
    rows = {row["strategy"]: row for row in study.findings(tmp_path / "out").rows("tokens")}
    assert (rows["learned"]["better"], rows["learned"]["worse"]) == (["gl"], ["eu"])


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=9))
def test_intervals_are_those_of_scipy(values):
    interval, error = paired(values), stats.sem(values)
    half = stats.t.ppf(0.975, len(values) - 1) * error
    assert interval.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert (interval.low, interval.high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=1e-9)


def test_one_seed_has_no_interval():
    interval = paired([0.5], np.array([[0.4, 0.6]]), documents=9)
    assert (interval.mean, interval.low, interval.high, interval.n) == (0.5, None, None, 1)
    assert (interval.sign, interval.more_seeds) == (0, None)


TRUE = 0.3


def simulated(generator, n, documents, seed, document, interaction, *, true=TRUE):
    """Return differences of n seeds on D documents, and on 300 resamples, from the standard deviation of each cause."""
    shape = (n, documents)
    parts = ((seed, (n, 1)), (document, (1, documents)), (interaction, shape))
    values = true + sum(deviation * generator.normal(size=size) for deviation, size in parts)
    drawn = generator.multinomial(documents, np.full(documents, 1 / documents), size=300) / documents
    return values.mean(axis=1).tolist(), values @ drawn.T


@pytest.mark.parametrize(
    ("n", "causes"),
    [(2, (0.1, 3, 2)), (3, (0.5, 3, 2)), (3, (0.5, 0, 3)), (5, (0.5, 0, 0)), (5, (0.5, 3, 2)), (5, (0, 3, 0.5))],
)
def test_intervals_cover_the_true_difference_whatever_causes_the_spread(n, causes):
    """In simulations, 95 % intervals rarely miss the true difference. Intervals over seeds alone miss it too often."""
    generator, alone, both = np.random.default_rng(n), 0, 0
    for _ in range(300):
        differences, resampled = simulated(generator, n, 40, *causes)
        intervals = paired(differences), paired(differences, resampled, documents=40)
        inside = [interval.low <= TRUE <= interval.high for interval in intervals]
        alone, both = alone + inside[0] / 300, both + inside[1] / 300
    assert 0.91 <= both <= 0.985
    if causes[1]:
        assert alone < both + 0.02
    if n == 5 and causes[1]:
        assert alone < 0.85


def test_the_advised_number_of_seeds_decides_in_four_of_five_cases():
    """The difference over 10 seeds is undecided. The advised number of seeds is added, and decisions are counted."""
    generator = np.random.default_rng(1)
    spread = 0.5 * np.sqrt((10 - 1) / 10)
    differences = TRUE + spread * stats.zscore(generator.normal(size=10)) * np.sqrt(10 / 9)
    interval = paired(differences.tolist())
    assert interval.sign == 0
    n = 10 + interval.more_seeds
    decided = [paired((TRUE + spread * generator.normal(size=n)).tolist()).sign == 1 for _ in range(500)]
    assert 0.7 < np.mean(decided) < 0.9
    assert paired([1.0, 1.1]).more_seeds is None  # decided
    assert paired([1.0, -0.999]).more_seeds is None  # 100 would not do


def test_no_number_of_seeds_replaces_more_documents():
    resampled = np.linspace(-1, 1.2, 100) * np.ones((3, 1))
    interval = paired([0.1, 0.11, 0.1], resampled, documents=100)
    assert paired([0.1, 0.11, 0.1]).sign == 1
    assert (interval.sign, interval.more_seeds) == (0, None)


def study_of_documents(tmp_path, store, recipe, *, seeds=4, spread=0.02, shift=-0.2, count=40):
    """Return a study with document scores. Its fit is better by `shift` in the first language and worse in the last."""
    study = Study.load(write(tmp_path, store, recipe, seeds=list(range(seeds)), compare=["tokens"]))
    generator, bits, documents = np.random.default_rng(0), {}, {}
    texts = {language: 2 + generator.random(count) for language in study.languages}
    for trial in study.trials():
        moved = dict.fromkeys(study.languages, 0.0)
        if trial.strategy == "learned":
            moved |= {study.languages[0]: shift, study.languages[-1]: 0.1}
        documents[trial.name] = {
            language: text + moved[language] + spread * generator.normal(size=count) + spread * generator.normal()
            for language, text in texts.items()
        }
        bits[trial.name] = {language: values.mean() for language, values in documents[trial.name].items()}
    write_results(study, tmp_path / "out", bits, documents=documents)
    return study, documents


def test_models_of_a_study_are_paired_by_document(tmp_path, store, recipe):
    study, documents = study_of_documents(tmp_path, store, recipe)
    row = {row["strategy"]: row for row in study.findings(tmp_path / "out").rows("tokens")}["learned"]
    for language in study.languages:
        pairs = [(f"learned/4-steps/seed-{seed}", f"uniform/4-steps/seed-{seed}") for seed in range(4)]
        each = np.array([documents[a][language] - documents[b][language] for a, b in pairs])
        interval = row["differences"][language]
        assert interval["seed_stderr"] == pytest.approx(stats.sem(each.mean(axis=1)))
        interaction = each - each.mean(axis=0) - each.mean(axis=1)[:, None] + each.mean()
        expected = each.mean(axis=0).var(ddof=1) / 40 - (interaction**2).sum() / (3 * 39) / 160
        assert interval["document_stderr"] == pytest.approx(max(0, expected) ** 0.5, abs=0.001)
        assert interval["documents"] == (40 if interval["document_stderr"] is not None else 0)
    file = tmp_path / "out/results/learned/4-steps/seed-2.documents.parquet"
    file.unlink()
    row = {row["strategy"]: row for row in study.findings(tmp_path / "out").rows("tokens")}["learned"]
    assert row["differences"]["macro"]["document_stderr"] is None  # a model without the file: seeds alone


def test_the_verdict_says_what_is_real_and_what_to_do(tmp_path, store, recipe):
    study, _ = study_of_documents(tmp_path, store, recipe)
    text = " ".join(study.findings(tmp_path / "out").verdict("tokens"))
    first, last = study.languages[0], study.languages[-1]
    assert f"learned is better in {first} and worse in {last}" in text
    assert "significantly better: learned (−0.0" in text
    assert text.endswith(f"Next: use learned, unless {last} matters more to you than the mean.")
    assert json.loads(json.dumps(study.findings(tmp_path / "out").to_dict()))["verdict"] == {"tokens": text}


def test_the_verdict_does_not_judge_a_strategy_with_the_models_of_the_reference():
    rows = [{"strategy": name, "better": [], "worse": []} for name in ("uniform", "unimax")]
    text = " ".join(
        verdict(rows, {"uniform": None, "unimax": paired([0.0, 0.0, 0.0])}, reference="uniform", languages=2)
    )
    assert "the same models: unimax" in text
    assert "undecided" not in text


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"spread": 0.3, "shift": -0.6, "seeds": 3}, "more seeds would decide"),
        ({"seeds": 1}, "one seed"),
    ],
)
def test_the_verdict_says_what_would_decide(settings, said, tmp_path, store, recipe, xdoge, monkeypatch):
    monkeypatch.setattr(report, "page", no_altair)
    study, _ = study_of_documents(tmp_path, store, recipe, **settings)
    assert said in " ".join(study.findings(tmp_path / "out").verdict("tokens"))
    status, printed, _ = xdoge("study", study.path, "--out", tmp_path / "out", "--report")
    assert status == 0
    (line,) = [line for line in printed.splitlines() if line.startswith("verdict, equal tokens: ")]
    assert said in line


# For real


def no_altair(findings, command):
    raise MissingExtraError("altair", "analysis")


def test_a_study_can_be_stopped_and_continued_and_shows_failed_runs(
    tmp_path, store, recipe, processes, xdoge, monkeypatch
):
    strategies = {"uniform": {"kind": "uniform"}, "learned": {"kind": "fit"}}
    path, out = write(tmp_path, store, recipe, strategies=strategies, compare=["tokens"]), tmp_path / "out"
    study, said = Study.load(path), []
    blocked = out / "train/learned/4-steps/seed-1"

    def stop_once(line):
        said.append(line)
        if line.startswith("results/uniform/4-steps/seed-0 finished"):
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=r"\d+ of 14 runs"):
        study.run(out, jobs=2, on_note=stop_once)
    finished = {run.name for run in study.runs(out).values() if run.finished}
    assert "results/uniform/4-steps/seed-0" in finished
    assert len(finished) < 14
    times = {name: study.runs(out)[name].file.stat().st_mtime_ns for name in finished}
    processes.clear()

    blocked.mkdir(parents=True, exist_ok=True)
    (blocked / "notes.txt").touch()
    with monkeypatch.context() as patch:
        patch.setattr(report, "page", no_altair)
        status, printed, err = xdoge("study", path, "--out", out, "--jobs", 2)
    assert status == 1
    assert "warning: no report.html: altair is not installed; this needs pip install 'xdoge[analysis]'.\n" in err
    assert not finished & set(processes)
    assert {name: study.runs(out)[name].file.stat().st_mtime_ns for name in finished} == times
    assert f"train/learned/4-steps/seed-1 failed (1): error: {blocked} is not empty" in err
    assert "results/learned/4-steps/seed-1 not started: it needs train/learned/4-steps/seed-1" in err
    last = err.splitlines()[-1]
    assert last.startswith("error: 1 run failed (train/learned/4-steps/seed-1) and 1 run that needs others")
    assert f"{out}/logs" in last
    assert str(path) in last
    assert "1 of 2" in printed
    assert not (out / "report.html").exists()
    assert not list(out.rglob("checkpoints"))

    shutil.rmtree(blocked)
    processes.clear()
    status, printed, err = xdoge("study", path, "--out", out, "--json")
    assert status == 0, err
    assert processes == ["train/learned/4-steps/seed-1", "results/learned/4-steps/seed-1"]
    value = json.loads(printed)
    assert value == {**json.loads((out / "study.json").read_text()), "created": value["created"]}
    assert [model["state"] for model in value["models"]] == ["finished"] * 4
    assert value["notes"] == []  # so the fits cost what was planned for them
    assert 0 < {row["strategy"]: row for row in value["stability"]}["learned"]["sources"] < 1
    document, errors = browse(out / "report.html")
    assert errors == []
    assert document.count('data-drawn="yes"') == 1


def test_plans_are_shown_without_running_and_a_report_needs_a_study(tmp_path, store, recipe, xdoge):
    path, out = write(tmp_path, store, recipe), tmp_path / "out"
    status, printed, err = xdoge("study", path, "--out", out, "--dry-run")
    assert (status, len(printed.splitlines())) == (0, 33)
    assert "training steps at equal flops: uniform 7, sources 7, learned 4" in err
    assert not out.exists()
    status, _, err = xdoge("study", path, "--out", out, "--report")
    assert (status, err.startswith(f"error: {out} has no study")) == (1, True)
    Study.load(path).begin(out)
    status, printed, err = xdoge("study", path, "--out", out, "--report")
    assert status == 0
    assert "warning: 10 of 10 models are not finished" in err
    status, _, err = xdoge("study", path, "--out", out, "--only", "trian/*")
    assert (status, "--only trian/*" in err) == (1, True)


def test_the_script_for_slurm_submits_arrays_and_each_task_runs_its_own(tmp_path, store, recipe, xdoge):
    path, out, file = write(tmp_path, store, recipe), tmp_path / "out", tmp_path / "study.sbatch"
    assert xdoge("study", path, "--out", out, "--slurm", file)[:2] == (0, f"{file}\n")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {
        "sbatch": f'echo "$@" >>{tmp_path}/jobs; echo "$(wc -l <{tmp_path}/jobs);cluster"',
        "srun": f'echo "$@" >>{tmp_path}/steps; exit "${{STATUS:-0}}"',
        "scontrol": f'echo "$@" >>{tmp_path}/requeued',
    }.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"}

    def run(*arguments, **more):
        return subprocess.run(
            ["bash", file, *arguments], env={**environment, **more}, capture_output=True, text=True, check=False
        )

    submitted = run("--account=a")
    assert submitted.returncode == 0, submitted.stderr
    log = f"--parsable --output={out}/logs/%x-%j.log"
    assert (tmp_path / "jobs").read_text().splitlines() == [
        f"{log} --array=0-1 --account=a {file} weights",
        f"{log} --array=0-9 --dependency=afterany:1 --account=a {file} models",
        f"{log} --dependency=afterany:2 --account=a {file} report",
    ]
    assert run("weights", SLURM_ARRAY_TASK_ID="1").returncode == 0
    stopped = run("models", SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_JOB_ID="7", STATUS="143")
    assert stopped.returncode == 143
    assert (tmp_path / "requeued").read_text() == "requeue 7_2\n"
    study = Study.load(path)
    steps = (tmp_path / "steps").read_text().splitlines()
    assert steps == [
        f"xdoge study {path} --out {out} --only weights/learned/seed-1",
        f"xdoge study {path} --out {out} --only */learned/4-steps/seed-0",
    ]
    learned = [name for name in study.runs(out) if name.startswith("weights/")]
    models = [trial.name for trial in study.trials()]
    text = slurm.script(study, out, ["xdoge"], name="x")
    assert all(f"  {name}\n" in text for name in [*learned, *models])


def test_the_example_has_every_strategy_and_loads(tmp_path, store, recipe):
    value = yaml.safe_load(EXAMPLE.read_text())
    kinds = [
        (settings["kind"], settings.get("level", "languages"), settings.get("score"), settings.get("targets"))
        for settings in value["strategies"].values()
    ]
    assert len(value["seeds"]) >= 3
    for kind in (
        ("uniform", "sources"), ("uniform", "languages"), ("proportional",), ("temperature",), ("unimax",), ("doremi",),
        ("regmix",), ("doge",), ("fit", "languages", "paper"), ("fit", "languages", None, "sources"),
        ("fit", "languages", None, "robust"),
    ):  # fmt: skip
        assert any(other[: len(kind)] == kind for other in kinds), kind
    value["evaluation"] |= {"window": 16, "stride": 16}
    value |= {"steps": 2, "batch_size": 8, "sequence_length": 16, "max_epochs": "none", "store": str(store.path)}
    value["learning"] = {"steps": 2, "batch_size": 12, "sequence_length": 16}
    for strategy in value["strategies"].values():
        for key in ("steps", "batch_size", "sequence_length", "max_epochs", "target_budget"):
            strategy.pop(key, None)
    for name in {value["proxy"], value["model"]}:
        shutil.copy(EXAMPLE.parent / name, tmp_path)
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(value))
    study = Study.load(tmp_path / "study.yaml")
    assert isinstance(study.findings(tmp_path / "nothing"), Findings)


@pytest.mark.parametrize("name", ["study.yaml", "continual.yaml", "quarter.yaml"])
def test_the_examples_with_uneven_languages_load(name, tmp_path, store):
    folder = shutil.copytree(EXAMPLE.parent / "uneven", tmp_path / "uneven")
    value = yaml.safe_load((folder / name).read_text())
    short = {"steps": 2, "batch_size": 12, "sequence_length": 16}
    value |= {**short, "store": str(store.path), "model": "model.yaml"}
    value["evaluation"] |= {"window": 16, "stride": 16}
    if "learning" in value:
        value["learning"] |= {
            key: short.get(key, 1_000_000) for key in ("target_budget", *short) if key in value["learning"]
        }
    value["swarm"] |= {**short, "proxy": "proxy.yaml"}
    for strategy in value["strategies"].values():
        strategy |= {"target_budget": 1_000_000} if "target_budget" in strategy else {}
        strategy |= short if strategy["kind"] == "doremi" else {}
    (folder / name).write_text(yaml.safe_dump(value))
    study = Study.load(folder / name)
    assert {"uniform", "law-mean", "law-fair"} <= study.strategies.keys()
    assert len(study.spec.seeds) >= 6


def test_a_failed_fit_may_get_another_recipe_and_a_finished_one_may_not(tmp_path, store, recipe):
    shutil.copy(recipe, tmp_path / "proxy.yaml")
    path, out, run = write(tmp_path, store, recipe, proxy="proxy.yaml"), tmp_path / "out", "weights/learned/seed-0"
    Study.load(path).begin(out)
    note_attempt(out, run, status=1, seconds=1.0, last_line="no memory")
    (tmp_path / "proxy.yaml").write_text(Path(recipe).read_text().replace("layers: 2", "layers: 1"))
    Study.load(path).begin(out)
    note_attempt(out, run, status=0, seconds=1.0, last_line="done")
    (tmp_path / "proxy.yaml").write_text(Path(recipe).read_text())
    with pytest.raises(XDogeError, match=r"another recipe of the proxy.* strategies\.learned"):
        Study.load(path).begin(out)


def test_a_folder_named_like_a_recipe_is_not_taken_for_the_model(tmp_path, store, recipe):
    (tmp_path / "1m").mkdir()
    path = write(tmp_path, store, recipe, model="1m", sequence_length=16, batch_size=8, steps=2)
    assert Study.load(path).initial.recipe.name == "1m"


def test_a_command_of_a_killed_study_is_waited_for(tmp_path):
    """Its command still has the lock of the folder. After its end, the checkpoints are deleted."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    run = Run("run", ("no such command",), folder / "weights.json", folder, (), 1)

    def orphan():
        with locked(folder):
            started.set()
            time.sleep(0.5)
            run.file.touch()

    started, thread = threading.Event(), threading.Thread(target=orphan)
    thread.start()
    started.wait()
    assert runner.run_all([run], tmp_path) == []
    thread.join()
    assert not (folder / "checkpoints").exists()
