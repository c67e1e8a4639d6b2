"""A swarm plans its mixtures, trains each once, and can be stopped and resumed."""

from __future__ import annotations

import csv
import math
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils.logging import enable_progress_bar

from xdoge.errors import Interrupted, MemoryFullError, NonFiniteLossError, XDogeError
from xdoge.io import locked
from xdoge.laws import swarm as swarm_module
from xdoge.laws import swarm_run
from xdoge.laws.law import MixtureLaw
from xdoge.laws.swarm import begin, run_swarm, work, worker_environments
from xdoge.laws.swarm_plan import Noise, Swarm
from xdoge.laws.swarm_run import RunResult, Training, bits_per_byte
from xdoge.laws.swarm_settings import SwarmSettings
from xdoge.mixtures.mixture import Mixture
from xdoge.mixtures.strategies import strategy_weights
from xdoge.models.initial_model import REWARM, peak_learning_rate
from xdoge.train.trainer import train

LENGTH = 16


def settings_for(store, recipe, **values):
    complete = {"proxy": recipe, "budget_tokens": 12_000, "max_epochs": None, "runs": 11, "seeds": [0, 1], **values}
    return SwarmSettings.for_store(store, complete)


@pytest.fixture
def quiet(monkeypatch):
    """Ignore the noise. The languages of the tiny store are similar, so its mixtures hardly differ."""
    monkeypatch.setattr(Noise, "suffices", property(lambda noise: True))


@pytest.fixture(scope="module")
def trained(store, recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("swarm") / "swarm"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Noise, "suffices", property(lambda noise: True))
        return run_swarm(store, settings_for(store, recipe), out)


def losses_of(swarm):
    return {name: dict(result.losses) for name, result in swarm.results().items()}


def test_a_swarm_trains_every_planned_mixture_once(store, trained):
    assert len(trained.runs) == 11
    assert [run.name for run in trained.runs[:5]] == [
        "uniform-0",
        "uniform-1",
        "proportional-0",
        "proportional-1",
        "temperature-0",
    ]
    assert losses_of(trained).keys() == {run.name for run in trained.runs}
    assert all(losses.keys() == store.languages.keys() for losses in losses_of(trained).values())


def test_the_files_hold_the_runs_for_other_programs(trained):
    tables = {}
    for name in ("mixtures", "losses", "held_out_mixtures", "held_out_losses"):
        with (trained.path / f"{name}.csv").open() as file:
            tables[name] = list(csv.DictReader(file))
    for prefix, held_out in (("", False), ("held_out_", True)):
        names = [run.name for run in trained.runs if run.held_out == held_out]
        assert [row["run"] for row in tables[f"{prefix}mixtures"]] == names
        assert [row["run"] for row in tables[f"{prefix}losses"]] == names
    for row in tables["mixtures"]:
        assert math.fsum(float(row[unit]) for unit in trained.units) == pytest.approx(1)


def test_a_fifth_of_the_runs_is_held_out_and_no_anchor(trained):
    held = [run for run in trained.runs if run.held_out]
    assert len(held) == round(0.2 * len(trained.runs))
    assert all(run.stage != "anchors" for run in held)
    mixtures, _ = trained.table()
    assert not {run.name for run in held} & mixtures.keys()


def test_a_share_repeats_its_text_as_often_as_in_the_target_run(store, recipe):
    settings = settings_for(store, recipe, steps=30, budget_tokens=24_000)
    seen = settings.sequences_seen(store)
    for source, tokens in store.tokens().items():
        target = settings.budget_tokens / tokens
        assert settings.proxy_tokens / (seen[source] * LENGTH) == pytest.approx(target, rel=0.1)


def test_a_batch_holds_only_the_part_of_the_text_that_all_runs_see(store, recipe):
    settings = settings_for(store, recipe, steps=30, budget_tokens=24_000)
    swarm = Swarm.plan(store, settings, None)
    seen = {}
    for run in (swarm.runs[0], swarm.runs[-1]):
        training = Training(store, settings, swarm.weights(run), run.seed)
        rows = set()
        for step in range(settings.steps):
            training.step = step
            rows |= {tuple(row) for row in training.batch().tolist()}
        seen[run.name] = rows
    both = set.union(*seen.values())
    assert len(both) <= sum(settings.sequences_seen(store).values())


def test_bits_per_byte_are_those_of_the_text(store, trained):
    torch.manual_seed(0)
    losses = dict.fromkeys(store.sources, 1.5)
    for language, sources in store.languages.items():
        tokens = sum(store.tokens("validation")[source] for source in sources)
        n_bytes = sum(store.n_bytes("validation")[source] for source in sources)
        assert bits_per_byte(losses, store)[language] == pytest.approx(1.5 / math.log(2) * tokens / n_bytes)


def test_a_swarm_that_was_stopped_ends_with_the_same_losses(quiet, store, recipe, trained, tmp_path):
    settings, out, steps = settings_for(store, recipe), tmp_path / "swarm", []

    def stop(event):
        steps.append(event)
        if len(steps) in (11, 37):
            os.kill(os.getpid(), signal.SIGTERM)

    for resume in (False, True):
        with pytest.raises(Interrupted):
            run_swarm(store, settings, out, resume=resume, on_progress=stop)
    again = run_swarm(store, settings, out, resume=True, on_progress=steps.append)
    assert losses_of(again) == losses_of(trained)
    assert len(steps) == settings.runs * settings.steps  # nothing was trained twice


def test_a_finished_swarm_trains_nothing_more(quiet, store, recipe, trained, tmp_path):
    shutil.copytree(trained.path, tmp_path / "swarm")
    steps = []
    run_swarm(store, settings_for(store, recipe), tmp_path / "swarm", resume=True, on_progress=steps.append)
    assert steps == []


def test_noise_above_the_spread_of_mixtures_stops_the_swarm_after_the_anchors(store, recipe, tmp_path):
    with pytest.raises(XDogeError, match="learning_rate"):
        run_swarm(store, settings_for(store, recipe, steps=2, seeds=[0, 1, 2], runs=13), tmp_path / "swarm")
    swarm = Swarm.load(tmp_path / "swarm")
    assert {run.name for run in swarm.runs if run.stage == "anchors"} == swarm.results().keys()
    swarm.noise = Noise(0.0123, 0.0)
    assert swarm.describe_noise().endswith("first mixtures differ by no more than that")
    swarm.noise = Noise(0.0123, 0.0045)
    assert "0.0123 bits per byte from seed to seed, and by 0.0045 between" in swarm.describe_noise()


@pytest.mark.parametrize(
    ("device", "count", "visible", "expected"),
    [
        ("auto", 2, None, ["0", "1", "0"]),
        ("auto", 2, "4,GPU-7", ["4", "GPU-7", "4"]),
        ("auto", 1, "3", [None] * 3),
        ("auto", 0, None, [None] * 3),
        ("cuda:1", 2, None, [None] * 3),
    ],
)
def test_workers_share_the_visible_gpus(device, count, visible, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    environments = worker_environments(3, device=device)
    assert [environment.get("CUDA_VISIBLE_DEVICES") for environment in environments] == expected


def test_a_run_that_diverges_is_kept_and_left_out(quiet, store, recipe, tmp_path, monkeypatch):
    steps, notes = Training.steps, []

    def diverge(training):
        if training.sampler.quotas != first:
            yield from steps(training)
        raise NonFiniteLossError("the loss is nan")

    swarm = Swarm.plan(store, settings := settings_for(store, recipe), tmp_path / "swarm")
    run = next(run for run in swarm.runs if run.name == "eu-rich")
    first = Training(store, settings, swarm.weights(run), run.seed).sampler.quotas
    monkeypatch.setattr(swarm_run.Training, "steps", lambda t: diverge(t) if t.sampler.quotas == first else steps(t))
    swarm = run_swarm(store, settings, tmp_path / "swarm", on_note=notes.append)
    assert swarm.results()["eu-rich"].diverged == "the loss is nan"
    assert "eu-rich" not in swarm.table()[0] | swarm.table(held_out=True)[0]
    assert any("eu-rich" in note and "not used" in note for note in notes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"runs": 8}, "runs"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": [1]}, "seeds"),
        ({"max_epochs": 0.5}, "max_epochs"),
        ({"budget": 5}, "budget"),
        ({"held_out": 0.5}, "held_out"),
        ({"max_epochs": 0.9, "budget_tokens": 1_000_000}, "max_epochs"),
        ({"sequence_length": 4000}, "sequence_length"),
    ],
)
def test_impossible_settings_are_refused(store, recipe, tmp_path, values, message):
    with pytest.raises(XDogeError, match=message):
        run_swarm(store, settings_for(store, recipe, **values), tmp_path / "swarm")
    assert not (tmp_path / "swarm").exists()


def test_a_swarm_is_resumed_with_its_own_settings_and_store_only(quiet, store, recipe, trained, tmp_path):
    with pytest.raises(XDogeError, match="steps was 8, is now 9"):
        run_swarm(store, settings_for(store, recipe, steps=9, checkpoint_every=1), trained.path, resume=True)
    with pytest.raises(XDogeError, match="resume=True"):
        run_swarm(store, settings_for(store, recipe), trained.path)


def test_sizes_that_hardly_differ_get_a_contrast_for_an_anchor(store, recipe, tmp_path):
    swarm = Swarm.plan(store, settings_for(store, recipe), tmp_path)
    swarm.tokens = dict.fromkeys(swarm.tokens, 1000)
    swarm.members = {unit: {f"{unit}/web": 1.0} for unit in swarm.units}
    anchors = {run.name.rpartition("-")[0]: run.shares for run in swarm._anchors()}
    assert anchors.keys() == {"uniform", "temperature", "contrast"}
    assert np.ptp(anchors["contrast"]) > 0.1


def pretend(monkeypatch, swarm, mean_losses):
    """Give the anchors these mean losses as results; None for an anchor that diverged."""
    results = {
        run.name: RunResult({}, {"eu": loss} if loss else {}, None if loss else "the loss is nan", 1.0)
        for run, loss in zip(swarm.runs, mean_losses, strict=False)
    }
    monkeypatch.setattr(swarm, "results", lambda: results)


def test_anchors_that_diverged_are_named_and_no_noise_is_stored(store, recipe, tmp_path, monkeypatch):
    swarm = Swarm.plan(store, settings_for(store, recipe), tmp_path)
    pretend(monkeypatch, swarm, [None, None, None, None, 1.0])
    with pytest.raises(XDogeError, match="uniform-1 .*learning_rate"):
        swarm.advance()
    assert swarm.noise is None


def test_the_spread_of_mixtures_leaves_out_what_seeds_add(store, recipe, tmp_path, monkeypatch):
    swarm = Swarm.plan(store, settings_for(store, recipe), tmp_path)
    pretend(monkeypatch, swarm, [1.0, 1.2, 2.0, 2.2, 3.1])
    noise = swarm.measure_noise()
    assert noise.repeats**2 == pytest.approx(0.02)
    assert noise.mixtures**2 == pytest.approx(1 - 0.02 * (1 / 2 + 1 / 2 + 1) / 3)


def test_too_few_runs_for_a_law_are_followed_by_points_of_the_design(quiet, store, recipe, tmp_path, monkeypatch):
    swarm, notes = Swarm.plan(store, settings_for(store, recipe, runs=16), tmp_path), []
    monkeypatch.setattr(swarm, "table", lambda **_: ({}, {}))
    monkeypatch.setattr(swarm, "results", dict)
    before = len(swarm.runs)
    swarm.plan_optimum(notes.append)
    assert before < len(swarm.runs) == 16
    assert {(run.stage, run.held_out) for run in swarm.runs[before:]} == {("design", False)}
    assert len({run.name for run in swarm.runs}) == 16
    assert "no law" in notes[0]


def test_a_law_is_fitted_with_the_passes_of_the_proxies_and_predicts_with_those_of_the_target(store, recipe, trained):
    seen = trained.settings.sequences_seen(store)
    law = trained.fit(form="effective", validate_rivals=False)
    for number, unit in enumerate(trained.units):
        sequences = sum(seen[source] for source in store.languages[unit])
        made = trained.settings.proxy_tokens / (sequences * trained.settings.sequence_length)
        assert law.run_passes[number] == law.of_runs.effective.problem.passes[number] == pytest.approx(made)
        assert law.problem.passes[number] == pytest.approx(12_000 / trained.tokens[unit])
    law.save(trained.path.parent / "law.json")
    again = MixtureLaw.load(trained.path.parent / "law.json")
    assert again.run_passes == law.run_passes
    assert (again.losses_at(law.shares) == law.losses_at(law.shares)).all()


def test_passes_of_proxies_are_those_of_the_target_where_sequences_are_many(store, recipe, tmp_path):
    swarm = Swarm.plan(store, settings_for(store, recipe, steps=30, budget_tokens=24_000), tmp_path)
    assert swarm.passes_of_proxies == pytest.approx(swarm.passes, rel=0.05)


def test_a_resumed_swarm_clears_what_a_killed_process_left_and_notes_other_versions(
    quiet, store, recipe, trained, tmp_path
):
    out, notes = tmp_path / "swarm", []
    shutil.copytree(trained.path, out)
    (out / ".swarm.json.1.tmp").write_text("half")
    (out / "runs" / "uniform-0" / "checkpoints" / "step-000000001").mkdir(parents=True)
    swarm = Swarm.load(out)
    swarm.versions["numpy"] = "0.1"
    swarm.save()
    run_swarm(store, settings_for(store, recipe), out, resume=True, on_note=notes.append)
    assert not (out / ".swarm.json.1.tmp").exists()
    assert any("numpy 0.1" in note for note in notes)


def test_a_run_that_was_killed_after_its_result_loses_its_checkpoint(store, recipe, trained, tmp_path):
    run, folder = trained.runs[0], tmp_path / "run"
    shutil.copytree(trained.folder(run), folder)
    (folder / "checkpoints" / "step-000000001").mkdir(parents=True)
    swarm_run.train_run(store, trained.settings, {}, folder, seed=0, stop=[], on_progress=None, on_note=None)
    assert not (folder / "checkpoints").exists()


def test_a_taken_folder_can_be_waited_for_and_interrupted_or_is_refused(store, recipe, trained, tmp_path):
    with locked(trained.path):
        with pytest.raises(Interrupted):
            work(store, trained.path, stop=[signal.SIGTERM], on_progress=None, on_note=None)
        with pytest.raises(XDogeError):
            begin(store, settings_for(store, recipe), trained.path, resume=False)


def test_a_swarm_that_waits_writes_its_files_once(quiet, store, trained, monkeypatch):
    saved = []
    waiting = iter([[trained.runs[0]], [trained.runs[0]], []])
    monkeypatch.setattr(Swarm, "save", lambda swarm: saved.append(swarm))
    monkeypatch.setattr(Swarm, "advance", lambda *_: next(waiting))
    monkeypatch.setattr(swarm_module, "WAIT", 0)
    with locked(trained.folder(trained.runs[0])):
        work(store, trained.path, stop=[], on_progress=None, on_note=None)
    assert len(saved) == 1


@pytest.fixture(scope="module")
def base(store, recipe, tmp_path_factory):
    """Folder of a training run of eight steps, on all text in proportion to its size."""
    out = tmp_path_factory.mktemp("base") / "run"
    weights = strategy_weights("proportional", store.tokens())
    mixture = Mixture.plan(weights, available_tokens=store.tokens(), budget_tokens=8 * 12 * LENGTH, max_epochs=None)
    train(mixture, store, out=out, model=recipe, seed=7)
    return str(out)


def test_every_run_of_a_swarm_continues_from_the_trained_model(store, recipe, base, capsys):
    enable_progress_bar()
    settings = settings_for(store, base, steps=2)
    uniform = strategy_weights("uniform", store.tokens()).sources
    first, other = (Training(store, settings, uniform, seed) for seed in (0, 1))
    saved = load_file(Path(base) / "model" / "model.safetensors")
    for training in (first, other):
        own = training.tensors()
        assert all(torch.equal(own[f"model.{name}"], value) for name, value in saved.items() if f"model.{name}" in own)
        assert len(saved) <= sum(name.startswith("model.") for name in own)
    fresh = Training(store, settings_for(store, recipe, steps=2), uniform, 0)
    assert "Loading" not in capsys.readouterr().err
    losses = [sum(training.validation_losses().values()) for training in (first, fresh)]
    assert losses[0] < losses[1]


def test_a_swarm_from_a_trained_model_has_the_settings_of_continual_training(store, base):
    settings = settings_for(store, base, steps=2)
    parameters = sum(value.numel() for value in load_file(Path(base) / "model" / "model.safetensors").values())
    assert (settings.learning_rate, settings.warmup) == (REWARM * peak_learning_rate(parameters), 0.01)
    assert settings.flops(store.vocab_size) > 0
    with pytest.raises(XDogeError, match="steps"):
        settings_for(store, base)


def test_a_swarm_from_a_trained_model_resumes_to_the_same_losses(quiet, store, base, tmp_path):
    settings = settings_for(store, base, steps=2, checkpoint_every=1)
    whole = losses_of(run_swarm(store, settings, tmp_path / "whole"))
    events = []

    def interrupt(event):
        events.append(event)
        if len(events) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        run_swarm(store, settings, tmp_path / "stopped", on_progress=interrupt)
    assert losses_of(run_swarm(store, settings, tmp_path / "stopped", resume=True)) == whole


def test_a_trained_model_with_another_tokenizer_is_refused(store, base, tmp_path):
    folder = Path(shutil.copytree(base, tmp_path / "run")) / "model"
    (folder / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(XDogeError, match="tokenizer"):
        settings_for(store, str(folder), steps=2)


def test_a_swarm_is_not_resumed_from_another_model(quiet, store, base, tmp_path):
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    settings = settings_for(store, str(copy), steps=2)
    begin(store, settings, tmp_path / "out", resume=False)
    begin(store, settings, tmp_path / "out", resume=True)
    weights = load_file(copy / "model" / "model.safetensors")
    save_file({name: value * 0.5 for name, value in weights.items()}, copy / "model" / "model.safetensors")
    with pytest.raises(XDogeError, match="proxy"):
        begin(store, settings, tmp_path / "out", resume=True)


def test_a_swarm_without_enough_memory_says_so_in_one_line(store, recipe, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(swarm_run, "train_run", fail)
    with pytest.raises(
        MemoryFullError, match=r"^out of memory with 12 sequences of 16 tokens at once; lower batch_size"
    ):
        run_swarm(store, settings_for(store, recipe), tmp_path / "swarm")
