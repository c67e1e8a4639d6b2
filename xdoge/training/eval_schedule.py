"""How often a training validates, such that validation takes a bounded share of its time.

The schedule follows from counts of sequences, never from a clock: a run that is repeated or resumed keeps it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

EVAL_SHARE = 0.1
"""Largest share of a run's time that validation takes by default."""

EVAL_COST = 0.5
"""Time of a validation sequence, in those of training.

Its forward pass is a third of the FLOPs of a training step; one half leaves room for whatever else it needs.
"""

EVALUATIONS = 10
"""Evaluations after the first step, at most, by default."""


def eval_schedule(
    chosen: Mapping[str, Any],
    *,
    steps: int,
    batch_size: int,
    available: Collection[int],
    most: int,
    on_start: bool = False,
) -> dict[str, int | bool]:
    """Return `eval_every`, `eval_sequences` and `eval_on_start` where they are not chosen, within `EVAL_SHARE`.

    Evaluations are given up first, then sequences, then the start. The last step is always measured, on one sequence
    of each source at least. Whoever chooses `eval_every` and `eval_sequences` gets both, at the start too.

    Args:
        chosen: the user's settings.
        steps: of the training.
        batch_size: sequences of training in a step.
        available: validation sequences of each source.
        most: `eval_sequences`, as chosen or by default.
        on_start: whether the method validates before the first step.
    """
    allowed = EVAL_SHARE / (1 - EVAL_SHARE) * steps * batch_size / EVAL_COST  # sequences of all evaluations

    def measured(sequences: int) -> int:
        return max(1, sum(min(count, sequences) for count in available))

    every = chosen.get("eval_every")
    times = -(-steps // every) if every else 1
    wanted = {"eval_every", "eval_sequences"} <= chosen.keys()  # all of it, whatever it takes
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
