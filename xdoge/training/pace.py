"""Tell the user early that a training will take days on this machine, and suggest a smaller proxy."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from xdoge.models.flops import training_flops
from xdoge.models.recipes import load_recipe, recipe_names
from xdoge.progress import Event, OnNote, OnProgress

if TYPE_CHECKING:
    import torch

    from xdoge.corpus.store import TokenStore

DAY = 24 * 3600.0
"""Seconds. The user is told about trainings that take longer."""

STEPS = 3
"""Number of steps that are timed, after a first step to warm up."""

PATIENCE = 60.0
"""Seconds. After this time, fewer steps are enough for an estimate."""

SLOWEST = 1e9
"""FLOP/s that every CPU achieves. A training that takes less than a day at this speed is not estimated in advance."""


class Pace:
    """Tells the user once, as early as possible, that a training takes more than a day on this machine."""

    def __init__(
        self,
        flops: int,
        store: TokenStore,
        on_progress: OnProgress,
        on_note: OnNote,
        *,
        proxies: float = 1,
        from_scratch: bool = True,
    ) -> None:
        """Prepare the estimate.

        Args:
            flops: FLOPs of the whole training, over all models that it trains.
            store: token store of the training.
            on_progress: called with every event.
            on_note: called once with the line for the user.
            proxies: number of proxies that are trained.
            from_scratch: whether a smaller proxy can be suggested.
        """
        self.flops, self.store, self.proxies, self.from_scratch = flops, store, proxies, from_scratch
        self.on_progress, self.on_note = on_progress, on_note
        self.first: int | None = None
        self.since = 0.0
        self.told = False

    def expect(self, device: torch.device) -> None:
        """Tell the user at once if the training takes more than a day even at the CPU's speed of matrix products."""
        if device.type == "cpu" and self.flops > SLOWEST * DAY:
            self._tell(self.flops / matrix_flops_per_second(), "at least")

    def show(self, event: Event) -> None:
        """Pass an event on to `on_progress`. After a few steps, estimate the time of all steps and tell the user."""
        self.on_progress(event)
        if self.told or event.kind != "step" or not event.total:
            return
        now = time.monotonic()
        if self.first is None:
            self.first, self.since = event.done, now
        steps, seconds = event.done - self.first, now - self.since
        if steps < 1 or (steps < STEPS and seconds < PATIENCE):
            return
        self._tell(seconds / steps * event.total, "about")
        self.told = True

    def _tell(self, seconds: float, how: str) -> None:
        if seconds < DAY:
            return
        self.told = True
        self.on_note(f"note: this takes {how} {duration(seconds)} here; {self._way_out(seconds)}")

    def _way_out(self, seconds: float) -> str:
        """Return advice: the largest proxy that takes at most half a day according to its FLOPs, or the smallest."""
        times: dict[str, float] = {}
        for name in recipe_names() if self.from_scratch else ():
            smaller = load_recipe(name)
            tokens = smaller.steps * max(smaller.batch_size, 2 * len(self.store.sources)) * smaller.sequence_length
            flops = training_flops(
                smaller, tokens, sequence_length=smaller.sequence_length, vocab_size=self.store.vocab_size
            )
            if self.proxies * flops < self.flops / 2:
                times[name] = seconds * self.proxies * flops / self.flops
        if not times:
            return "take fewer steps, or a faster machine"
        name = max((name for name in times if times[name] <= DAY / 2), key=times.__getitem__, default=next(iter(times)))
        return f"a smaller proxy, {name} with its recipe's steps, takes about {duration(times[name])}"


def matrix_flops_per_second(size: int = 1024) -> float:
    """Return the FLOP/s of this CPU for the product of two square float32 matrices, the best of three measurements."""
    import torch

    matrix = torch.ones(size, size)
    times = []
    for _ in range(3):
        before = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - before)
    return 2 * size**3 / min(times)


def duration(seconds: float) -> str:
    """Return a time as text in days, hours, minutes or seconds: the largest unit of which it has at least two."""
    for size, unit in ((DAY, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{max(2, seconds):.0f} seconds"
