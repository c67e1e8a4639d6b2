"""The validation schedule stays within its share of the time, and does not depend on when it is computed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdoge.training.eval_schedule import EVAL_COST, EVAL_SHARE, EVALUATIONS, eval_schedule

FEW = {"steps": 15, "batch_size": 8, "available": [100] * 12, "most": 64, "on_start": True}


@given(
    steps=st.integers(1, 3000),
    batch_size=st.integers(1, 600),
    available=st.lists(st.integers(0, 500), min_size=1, max_size=40),
    most=st.integers(1, 128),
    on_start=st.booleans(),
)
def test_validation_takes_its_share_or_one_sequence_of_each_source_at_the_end(
    steps, batch_size, available, most, on_start
):
    values = eval_schedule({}, steps=steps, batch_size=batch_size, available=available, most=most, on_start=on_start)
    times = -(-steps // values["eval_every"]) + values["eval_on_start"]
    read = times * sum(min(count, values["eval_sequences"]) for count in available) * EVAL_COST
    share = read / (read + steps * batch_size)
    assert share <= EVAL_SHARE + 1e-9 or (times, values["eval_sequences"]) == (1, 1)
    assert times <= EVALUATIONS + values["eval_on_start"]
    assert 1 <= values["eval_sequences"] <= most


def test_a_long_training_is_measured_ten_times_on_all_that_is_asked():
    values = eval_schedule({}, steps=1000, batch_size=512, available=[1000] * 28, most=64, on_start=True)
    assert values == {"eval_every": 100, "eval_sequences": 64, "eval_on_start": True}


def test_a_short_training_is_measured_on_less():
    assert eval_schedule({}, **FEW) == {"eval_every": 15, "eval_sequences": 1, "eval_on_start": True}
    assert eval_schedule({}, **FEW | {"steps": 2}) == {"eval_every": 2, "eval_sequences": 1, "eval_on_start": False}


@pytest.mark.parametrize(
    ("chosen", "filled"),
    [
        ({"eval_every": 1}, {"eval_sequences": 1, "eval_on_start": False}),
        ({"eval_sequences": 64}, {"eval_every": 15, "eval_on_start": False}),
        ({"eval_every": 1, "eval_sequences": 64}, {"eval_on_start": True}),
        ({"eval_on_start": True}, {"eval_every": 15, "eval_sequences": 1}),
        ({"eval_every": 1, "eval_sequences": 2, "eval_on_start": True}, {}),
    ],
)
def test_chosen_settings_are_kept(chosen, filled):
    assert eval_schedule(chosen, **FEW) == filled
