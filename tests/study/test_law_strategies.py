"""Strategies that use the best mixture under a law: they share one swarm, and each has its cost."""

from __future__ import annotations

import json
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import yaml
from command_line import one_line

from xdoge import WeightSet
from xdoge.errors import XDogeError
from xdoge.laws.swarm_plan import Noise, Swarm
from xdoge.mixtures.mixture import Mixture
from xdoge.mixtures.strategies import strategy_weights
from xdoge.study import Study, report, runner, slurm
from xdoge.study.plan import Run
from xdoge.study.predictions import predictions
from xdoge.train.trainer import train

SWARM = {"runs": 11, "seeds": [0, 1], "max_epochs": "none"}
STRATEGIES = {
    "uniform": {"kind": "uniform"},
    "mean": {"kind": "law", "form": "effective", "force_optimum": True},
    "worst": {"kind": "law", "form": "log-linear", "objective": "worst", "mean_no_worse_than": "uniform:0%"},
}


def write(folder, tokens, recipe, **changes):
    """Write a study.yaml with two laws and one seed."""
    value = {
        "store": str(tokens.path),
        "proxy": recipe,
        "model": recipe,
        "seeds": [0],
        "steps": 8,
        "max_epochs": "none",
        "training": {"eval_sequences": 2},
        "evaluation": {"max_documents": 3},
        "swarm": SWARM,
        "strategies": STRATEGIES,
        **changes,
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(value, sort_keys=False))
    return path


@pytest.fixture
def started(monkeypatch, xdoge):
    """Run commands in this process, ignoring the noise of the swarm, and return a list of them."""
    names = []
    monkeypatch.setattr(Noise, "suffices", property(lambda noise: True))  # languages of the tiny store are similar

    def start(run, log, environment):
        names.append(run.name)
        status, _, err = xdoge(*runner.arguments_now(run))
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(err)
        return SimpleNamespace(poll=lambda: status, wait=lambda: status, terminate=lambda: None, kill=lambda: None)

    monkeypatch.setattr(runner, "start", start)
    return names


def test_laws_share_one_swarm_one_law_per_form_and_every_seed(tmp_path, store, recipe):
    strategies = {**STRATEGIES, "other": {"kind": "law", "form": "effective", "max_epochs": 2, "objective": "worst"}}
    study = Study.load(write(tmp_path, store, recipe, strategies=strategies, seeds=[0, 1], steps=4))
    commands = [command.replace(str(store.path), "STORE").replace(recipe, "TINY") for command in study.commands("OUT")]
    assert commands[:6] == [
        "xdoge swarm STORE --out OUT/swarm --proxy TINY --budget 768 --max-epochs none --set runs=11 "
        "--set 'seeds=[0, 1]'",
        "xdoge fit-law OUT/swarm --form effective --out OUT/laws/effective.json",
        "xdoge fit-law OUT/swarm --form log-linear --out OUT/laws/log-linear.json",
        "xdoge optimize OUT/laws/effective.json --objective mean --force-optimum --out OUT/weights/mean/weights.json",
        "xdoge optimize OUT/laws/log-linear.json --objective worst --mean-no-worse-than uniform:0% "
        "--out OUT/weights/worst/weights.json",
        "xdoge optimize OUT/laws/effective.json --objective worst --max-epochs 2 --out OUT/weights/other/weights.json",
    ]
    mixtures = [command for command in commands if command.startswith("xdoge mix OUT/weights/mean/weights.json")]
    assert len(mixtures) == 2  # two seeds, one file of weights
    assert all("--level languages" in command for command in mixtures)


def test_every_law_has_the_cost_of_the_whole_swarm(tmp_path, store, recipe):
    study = Study.load(write(tmp_path, store, recipe))
    swarm = Swarm.plan(store, study.swarm, None)
    assert study.swarm.budget_tokens == 8 * study.tokens_per_step
    assert study.strategies["mean"].flops == study.strategies["worst"].flops == swarm.flops() == study.learning_flops
    assert study.steps("flops", "mean") == study.steps("tokens", "mean") == 8
    assert study.steps("flops", "uniform") == 8 + swarm.flops() // study.training_flops(study.tokens_per_step)
    assert sum(run.name == "swarm" for run in study.runs("OUT").values()) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"swarm": {"rnus": 3}}, ("swarm", "rnus", "runs?")),
        ({"swarm": {"runs": 3}}, ("swarm", "runs", "3")),
        ({"strategies": {"x": {"kind": "law", "form": "cubic"}}}, ("strategies.x", "form")),
        ({"strategies": {"x": {"kind": "law", "objective": "median"}}}, ("strategies.x", "objective")),
        ({"strategies": {"x": {"kind": "law", "no_worse_than": "uniform"}}}, ("strategies.x", "uniform:1%")),
        ({"strategies": {"x": {"kind": "law", "steps": 4}}}, ("strategies.x", "steps")),
    ],
)
def test_wrong_settings_are_one_line(changes, words, tmp_path, store, recipe, xdoge):
    status, _, err = xdoge("study", write(tmp_path, store, recipe, **changes), "--out", tmp_path / "out")
    assert status == 1
    assert all(word in one_line(err) for word in words)
    assert not (tmp_path / "out").exists()


def test_a_dry_run_shows_what_the_swarm_costs_and_a_script_runs_it_in_one_task(tmp_path, store, recipe, xdoge):
    path, out = write(tmp_path, store, recipe), tmp_path / "out"
    status, printed, err = xdoge("study", path, "--out", out, "--dry-run")
    assert status == 0
    assert sum(line.startswith("xdoge swarm") for line in printed.splitlines()) == 1
    assert "swarm: 11 trainings of 1,536 tokens" in err
    assert "charged in full to mean and worst" in err
    script = slurm.script(Study.load(path), out, ["xdoge", "study"], name="x")
    chain = "swarm --only laws/effective --only laws/log-linear --only weights/mean --only weights/worst"
    assert f"weights=(\n  '{chain}'\n)" in script


def test_a_swarm_uses_all_jobs(tmp_path, monkeypatch):
    runs = [Run(f"{name}", (name,), tmp_path / name, None, (), 1, parallel=name == "b") for name in "abc"]
    running, most = [], []

    def start(run, log, environment):
        log.parent.mkdir(exist_ok=True)
        running.append(run.name)
        most.append((sorted(running), run.arguments))
        looks = iter([None, None, 0])

        def poll():
            if (status := next(looks)) == 0:
                running.remove(run.name)
                run.file.touch()
            return status

        return SimpleNamespace(poll=poll, wait=lambda: 0, terminate=lambda: None, kill=lambda: None)

    monkeypatch.setattr(runner, "start", start)
    monkeypatch.setattr(runner, "POLL", 0)
    assert runner.run_all(runs, tmp_path, jobs=2) == []
    assert most == [(["a"], ("a",)), (["a", "c"], ("c",)), (["b"], ("b", "--jobs", "2"))]


@pytest.mark.slow
def test_a_study_whose_swarm_is_stopped_continues_and_compares_predictions(
    tmp_path, store, recipe, xdoge, started, monkeypatch
):
    path, out = write(tmp_path, store, recipe, compare=["tokens"]), tmp_path / "out"
    save, saved = Swarm.save, []

    def stop_once(swarm):
        save(swarm)
        saved.append(swarm)
        if len(saved) == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Swarm, "save", stop_once)
        findings = Study.load(path).run(out)
    results = {trial.strategy: result for trial, result in findings.results.items()}
    assert (results["uniform"].state, results["mean"].state) == ("finished", "failed")
    assert results["mean"].why.startswith("swarm: ")
    assert not (out / "swarm" / "summary.json").exists()
    before = {file: file.stat().st_mtime_ns for file in out.glob("swarm/runs/*/result.json")}
    assert before

    started.clear()
    status, _, err = xdoge("study", path, "--out", out)
    assert status == 0, err
    assert started[:5] == ["swarm", "laws/effective", "laws/log-linear", "weights/mean", "weights/worst"]
    assert {file: file.stat().st_mtime_ns for file in before} == before
    value = json.loads((out / "study.json").read_text())
    assert [model["state"] for model in value["models"]] == ["finished"] * 3
    assert ["one seed" in note for note in value["notes"]] == [True]
    weights = {name: WeightSet.load(out / f"weights/{name}/weights.json") for name in ("mean", "worst")}
    assert all(set(each.sources) == set(store.sources) for each in weights.values())

    study = Study.load(path)
    rows = {(row["form"], row["strategy"]): row for row in predictions(study.findings(out))}
    assert rows.keys() == {(form, name) for form in ("effective", "log-linear") for name in STRATEGIES}
    row = rows["effective", "mean"]
    assert row["predicted_difference"]["macro"] == pytest.approx(
        row["predicted"]["macro"] - rows["effective", "uniform"]["predicted"]["macro"]
    )
    table = next(row for row in value["tables"]["tokens"] if row["strategy"] == "mean")
    assert row["measured"]["macro"] == pytest.approx(table["macro"])
    assert row["measured_difference"]["macro"] == table["differences"]["macro"]
    assert value["predictions"] == json.loads(json.dumps(list(rows.values())))
    assert "Predicted by the law effective" in (out / "report.html").read_text()
    captions = [table.caption for table in report.tables(study.findings(out))]
    assert sum(caption.startswith("Predicted by the law") for caption in captions) == 2


def test_a_study_continues_from_a_trained_model_and_so_does_its_swarm(tmp_path, store, recipe):
    weights = strategy_weights("proportional", store.tokens())
    mixture = Mixture.plan(weights, available_tokens=store.tokens(), budget_tokens=8 * 12 * 16, max_epochs=None)
    train(mixture, store, out=tmp_path / "base", model=recipe)
    swarm = {**SWARM, "proxy": "base", "steps": 2, "learning_rate": 0.01}
    path = write(tmp_path, store, recipe, model="base", swarm=swarm, batch_size=12, sequence_length=16)
    study = Study.load(path)
    runs = study.runs(tmp_path / "out").values()
    base = str(tmp_path / "base")
    assert all(base in run.arguments for run in runs if run.arguments[0] in ("train", "swarm"))
    assert study.training_flops(960) > 0
    study.begin(tmp_path / "out")
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    (tmp_path / "base" / "model" / "config.json").write_text(
        (tmp_path / "base" / "model" / "config.json").read_text() + "\n"
    )
    with pytest.raises(XDogeError, match="model"):
        Study.load(path).begin(tmp_path / "out")
    with pytest.raises(XDogeError, match="steps is missing"):
        Study.load(write(tmp_path, store, recipe, model="copy", steps=None))
