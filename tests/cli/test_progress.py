"""The display of long commands: lines without a terminal, bars with one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from xdoge.cli.progress import Display
from xdoge.progress import Event


def step(number, row, total=9):
    return Event("step", "fit", number, total, unit="steps", row={"step": number, **row})


@pytest.fixture
def display():
    with Display(Console(file=io.StringIO(), width=200)) as display:
        yield display


def lines(display):
    return display.console.file.getvalue().splitlines()


def test_a_step_of_a_fit_shows_the_loss_of_the_targets_and_the_weights(display):
    display.show(step(2, {"loss": 1.5, "target_loss": 1.25, "languages": {"eu": 1.0}, "validation": {"eu/a": 3.0}}))
    assert lines(display) == [
        "step 2/9, loss 1.250 nats/token, validation 3.000 at step 2, weights eu 1.000, ETA unknown"
    ]


def test_a_step_of_a_training_shows_speed_and_the_losses_that_were_measured_last(display):
    row = {"loss": 1.5, "tokens_per_second": 12345.6}
    display.show(step(2, row))
    display.show(step(3, {"validation": {"eu/a": 2.0}, "validation_by_language": {"eu": 2.0}}))
    display.last_line = 0.0
    display.show(step(4, row))
    first, measured, last = lines(display)
    assert first == "step 2/9, loss 1.500 nats/token, 12,346 tokens/s, ETA unknown"
    assert measured == "step 3/9, validation loss, nats/token: eu 2.000"
    assert last.startswith(
        "step 4/9, loss 1.500 nats/token, 12,346 tokens/s, validation loss at step 3 eu 2.000, ETA 0:"
    )


def test_steps_without_any_numbers_show_how_far_a_swarm_is(display):
    display.show(Event("step", "swarm", 10, 40, unit="steps"))
    assert lines(display) == ["step 10/40, ETA unknown"]


def test_without_a_terminal_a_line_comes_from_time_to_time_and_at_the_end(display):
    for done in range(5):
        display.show(Event("source", "eu/[/x]", done, 5, tokens=10 * done))
    display.show(Event("done", "eu/[/x]", 5, 5, tokens=50))
    assert lines(display) == ["eu/[/x]: 5 documents, 50 tokens"]


def test_on_a_terminal_every_name_has_a_bar_and_every_language_one_below():
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    with Display(console) as display:
        display.show(Event("source", "eu/[/x]", 500, 1_000, tokens=9_000))
        display.note("a [note]")
        display.live.refresh()
        shown = console.file.getvalue()
        for text in ("eu/[/x]", "500/1000", "9,000 tokens", "a [note]"):
            assert text in shown
        display.show(step(3, {"loss": 1.5, "languages": {"gl": 0.25, "eu": 0.75}}))
        display.live.refresh()
        shown = console.file.getvalue()
        for text in ("weights", "█" * 40, "3/9", "loss 1.500"):
            assert text in shown
