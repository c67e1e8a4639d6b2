"""The user is told early that a training takes days, and which proxy takes hours."""

from __future__ import annotations

import pytest
import torch

from xdoge.fit.settings import FitSettings
from xdoge.models.recipes import load_recipe
from xdoge.progress import Event, silent
from xdoge.training import pace
from xdoge.training.pace import DAY, Pace


class Clock:
    """A clock that stands still until a test advances it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr("time.monotonic", clock := Clock())
    return clock


def pace_of(store, notes, proxy="125m", **options):
    settings = FitSettings.for_store(store, {"proxy": proxy, "sequence_length": 16, **options})
    return Pace(settings.learning_flops(load_recipe(settings.proxy), store), store, silent, notes.append)


def run(pace, clock, *, seconds, steps, total, done=0):
    for step in range(done + 1, done + steps + 1):
        clock.now += seconds
        pace.show(Event("step", "fit", done=step, total=total, unit="steps"))


@pytest.mark.parametrize("done", [0, 500])
def test_days_are_told_once_after_a_few_steps_with_a_smaller_proxy(store, clock, done):
    notes = []
    run(pace_of(store, notes), clock, seconds=20.0, steps=10, total=20_000, done=done)
    assert len(notes) == 1
    assert notes[0].startswith("note: this takes about 5 days here; a smaller proxy, 7m with its recipe's steps, takes")


def test_trainings_of_less_than_a_day_are_not_reported(store, clock):
    notes = []
    run(pace_of(store, notes), clock, seconds=1.0, steps=10, total=20_000)
    assert notes == []


def test_the_first_step_does_not_count_unless_it_takes_minutes(store, clock):
    notes = []
    slow = pace_of(store, notes)
    run(slow, clock, seconds=50.0, steps=1, total=10_000)
    run(slow, clock, seconds=1.0, steps=5, total=10_000, done=1)
    assert notes == []
    run(pace_of(store, notes), clock, seconds=2000.0, steps=2, total=10_000)
    assert "about 231 days" in notes[0]


def test_runs_that_end_whole_count_with_all_their_steps(store, clock):
    notes = []
    pace = pace_of(store, notes)
    for done in (1000, 2000, 3000):
        clock.now += 90.0
        pace.show(Event("step", "swarm", done=done, total=29_000, unit="steps"))
    assert notes == []


def test_every_event_is_passed_on(store, clock):
    seen = []
    slow = pace_of(store, [])
    slow.on_progress = seen.append
    run(slow, clock, seconds=2000.0, steps=4, total=10_000)
    assert [event.done for event in seen] == [1, 2, 3, 4]


def test_a_proxy_far_too_large_for_a_cpu_is_named_before_its_first_step(store, monkeypatch):
    monkeypatch.setattr(pace, "matrix_flops_per_second", lambda: 5e10)
    notes = []
    large = pace_of(store, notes, sequence_length=64)
    large.expect(torch.device("cpu"))
    assert f"at least {large.flops / 5e10 / DAY:.0f} days" in notes[0]
    assert "smaller proxy" in notes[0]
    large.expect(torch.device("cuda"))
    pace_of(store, notes, proxy="1m", steps=10).expect(torch.device("cpu"))
    assert len(notes) == 1


@pytest.mark.parametrize(
    ("flops", "options"), [(10**12, {"proxies": 100}), (10**18, {"proxies": 100, "from_scratch": False})]
)
def test_without_a_smaller_proxy_the_advice_is_to_train_less(store, clock, flops, options):
    """No smaller proxy is fast enough, or a pre-trained model is continued."""
    notes = []
    run(Pace(flops, store, silent, notes.append, **options), clock, seconds=100.0, steps=5, total=100_000)
    assert "116 days here; take fewer steps" in notes[0]


def test_a_matrix_product_measures_some_speed():
    assert pace.matrix_flops_per_second(size=64) > 1e6
