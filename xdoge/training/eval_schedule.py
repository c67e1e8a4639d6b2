"""Choose how often a training validates, so that validation takes a limited share of its time.

The schedule is computed from numbers of sequences and not from measured time. A repeated or resumed run therefore has
the same schedule.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from xdoge.config import Config

Settings = TypeVar("Settings", bound="Config")

EVAL_SHARE = 0.1
"""Default limit of the share of a run's time that validation takes."""

EVAL_COST = 0.5
"""Assumed time of a validation sequence, relative to a training sequence.

Its forward pass has a third of the FLOPs. One half leaves room for other work.
"""

EVALUATIONS = 10
"""Default limit of the number of evaluations, not counting the one before the first step."""

SCHEDULE = ("eval_every", "eval_sequences", "eval_on_start")
"""Settings whose defaults `eval_schedule` computes."""


def eval_schedule(
    chosen: Mapping[str, Any],
    *,
    steps: int,
    batch_size: int,
    available: Collection[int],
    most: int,
    on_start: bool = False,
) -> dict[str, int | bool]:
    """Return values of `eval_every`, `eval_sequences` and `eval_on_start` that the user did not set.

    They keep validation within `EVAL_SHARE`. If it would take longer, the number of evaluations is reduced first. Then
    the number of sequences is reduced. At last, the evaluation before the first step is left out. The last step is
    always evaluated, on at least one sequence of each source. If the user sets both `eval_every` and `eval_sequences`,
    there is no limit.

    Args:
        chosen: settings of the user.
        steps: steps of the training.
        batch_size: training sequences per step.
        available: number of validation sequences of each source.
        most: `eval_sequences`, the user's value or the default.
        on_start: default of `eval_on_start`.
    """
    allowed = EVAL_SHARE / (1 - EVAL_SHARE) * steps * batch_size / EVAL_COST  # sequences over all evaluations

    def measured(sequences: int) -> int:
        return max(1, sum(min(count, sequences) for count in available))

    every = chosen.get("eval_every")
    times = -(-steps // every) if every else 1
    wanted = {"eval_every", "eval_sequences"} <= chosen.keys()  # then there is no limit
    on_start = chosen.get("eval_on_start", on_start)
    fitting = (n for n in range(most, 0, -1) if (times + on_start) * measured(n) <= allowed)
    sequences = most if "eval_sequences" in chosen else next(fitting, 1)
    if not wanted and "eval_on_start" not in chosen and (times + 1) * measured(sequences) > allowed:
        on_start = False
    if not every:
        times = max(1, min(EVALUATIONS, int(allowed // measured(sequences)) - on_start))
        every = -(-steps // times)
    schedule = {"eval_every": every, "eval_sequences": sequences, "eval_on_start": on_start}
    return {key: value for key, value in schedule.items() if key not in chosen}


def with_schedule(settings: Settings, schedule: Mapping[str, Any]) -> Settings:
    """Return settings with a computed schedule.

    Its fields are not in `model_fields_set`, because the user did not set them.
    """
    filled = {key: value for key, value in schedule.items() if key in type(settings).model_fields}
    settings = settings.model_copy(update=filled)
    settings.model_fields_set.difference_update(filled)
    return settings


def with_schedule_of_run(settings: Settings, earlier: Mapping[str, Any]) -> Settings:
    """Return settings in which the schedule of the resumed run replaces values that the user did not set.

    Args:
        settings: settings of the call that resumes.
        earlier: settings with which the run was started.
    """
    keys = [key for key in SCHEDULE if key in earlier and key not in settings.model_fields_set]
    return with_schedule(settings, {key: earlier[key] for key in keys})
