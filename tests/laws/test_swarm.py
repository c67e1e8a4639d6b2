"""A swarm plans its mixtures, trains each once, and survives being stopped."""

from __future__ import annotations

import csv
import math
import os
import shutil
import signal

import numpy as np
import pytest
import torch

from xdoge.errors import Interrupted, NonFiniteLossError, XDogeError
from xdoge.laws import swarm_run
from xdoge.laws.swarm import run_swarm
from xdoge.laws.swarm_plan import Noise, Swarm
from xdoge.laws.swarm_run import Training, bits_per_byte
from xdoge.laws.swarm_settings import SwarmSettings

LENGTH = 16


def settings_for(store, recipe, **values):
    complete = {"proxy": recipe, "budget_tokens": 12_000, "max_epochs": None, "runs": 11, "seeds": [0, 1], **values}
    return SwarmSettings.for_store(store, complete)


@pytest.fixture
def quiet(monkeypatch):
    """Languages of the tiny store are alike, so its mixtures hardly differ: take the noise for small enough."""
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
    with (trained.path / "mixtures.csv").open() as file:
        mixtures = list(csv.DictReader(file))
    with (trained.path / "losses.csv").open() as file:
        losses = list(csv.DictReader(file))
    assert [row["run"] for row in mixtures] == [row["run"] for row in losses]
    assert len(mixtures) == len(trained.runs)
    for row in mixtures:
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
    assert any("eu-rich" in note and "left out" in note for note in notes)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"runs": 8}, "runs"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"seeds": [1]}, "seeds"),
        ({"max_epochs": 0.5}, "max_epochs"),
        ({"budget": 5}, "budget"),
        ({"sequence_length": 4000}, "sequence_length"),
    ],
)
def test_settings_that_cannot_be_are_refused(store, recipe, tmp_path, values, message):
    with pytest.raises(XDogeError, match=message):
        run_swarm(store, settings_for(store, recipe, **values), tmp_path / "swarm")
    assert not (tmp_path / "swarm").exists()


def test_a_swarm_is_resumed_with_its_own_settings_and_store_only(quiet, store, recipe, trained, tmp_path):
    with pytest.raises(XDogeError, match="steps was 8, is now 9"):
        run_swarm(store, settings_for(store, recipe, steps=9, checkpoint_every=1), trained.path, resume=True)
    with pytest.raises(XDogeError, match="not empty"):
        run_swarm(store, settings_for(store, recipe), trained.path)


def test_sizes_that_hardly_differ_get_a_contrast_for_an_anchor(store, recipe, tmp_path):
    swarm = Swarm.plan(store, settings_for(store, recipe), tmp_path)
    swarm.tokens = dict.fromkeys(swarm.tokens, 1000)
    swarm.members = {unit: {f"{unit}/web": 1.0} for unit in swarm.units}
    anchors = {run.name.rpartition("-")[0]: run.shares for run in swarm._anchors()}
    assert anchors.keys() == {"uniform", "temperature", "contrast"}
    assert np.ptp(anchors["contrast"]) > 0.1
