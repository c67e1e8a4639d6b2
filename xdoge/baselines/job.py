"""One run of a baseline: its folder and callbacks, how it is logged, stopped and finished, and its trajectory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from xdoge.baselines.options import BaselineSettings
from xdoge.baselines.training import BaselineProxy, ProxyState
from xdoge.corpus.store import TokenStore
from xdoge.errors import Interrupted, argument
from xdoge.fit.result import learned_weights
from xdoge.io import read_rows
from xdoge.mixtures.simplex import Floats, largest_remainder
from xdoge.mixtures.weights import WeightSet
from xdoge.models.recipes import Recipe
from xdoge.progress import Event, OnNote, OnProgress
from xdoge.training.run_folder import History, MetricsRow, RunFolder

Settings = TypeVar("Settings", bound=BaselineSettings)


@dataclass
class Job(Generic[Settings]):
    """One run of a baseline."""

    store: TokenStore
    settings: Settings
    recipe: Recipe
    run: RunFolder
    stop: list[int]
    on_progress: OnProgress
    on_note: OnNote
    seconds: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    @property
    def elapsed(self) -> float:
        """Seconds since the run began, over all calls."""
        return self.seconds + time.perf_counter() - self.began

    def rewind(self, step: int) -> list[MetricsRow]:
        """Drop the rows of metrics.jsonl after `step` and return those that stay; the clock goes on from the last."""
        self.run.rewind_metrics(step)
        rows = read_rows(self.run.metrics)
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        self.began = time.perf_counter()
        return rows

    def log(self, row: MetricsRow) -> None:
        """Write a row of metrics.jsonl, with the seconds since the run began, and show it."""
        row["seconds"] = round(self.elapsed, 3)
        self.run.log(row)
        event = Event("step", self.settings.method, done=row["step"], total=self.settings.n_rows, unit="steps", row=row)
        self.on_progress(event)

    def stop_if_asked(self, done: int, what: str) -> None:
        """End here if a signal asked for it."""
        if self.stop:
            total = self.settings.n_rows
            raise Interrupted(
                self.stop[0], f"stopped after {what} {done} of {total}; {argument('resume', True)} continues"
            )

    def finish(
        self, weights: Floats, *, tokens: int, floor: float = 0.0, about: Mapping[str, Any] | None = None
    ) -> WeightSet:
        """Write weights.json, the last file of a run, and return what it holds; see `learned_weights`."""
        settings = self.settings
        method = {"baseline": settings.method, **settings.model_dump(mode="json")}
        answer = learned_weights(
            weights, self.store, settings, self.recipe, method=method, floor=floor, tokens=tokens, proxy=about
        )
        answer.save(self.run.weights)
        return answer


class Trajectory:
    """The weights along the steps of one proxy: those now, their mean, and the record of how they moved."""

    def __init__(self, k: int, columns: tuple[str, ...]) -> None:
        self.now: Floats = np.full(k, 1 / k)
        self.total: Floats = np.zeros(k)
        self.history = {name: History(k) for name in ("weight", *columns)}

    @property
    def mean(self) -> Floats:
        """The mean of the weights after each step: the answer."""
        return self.total / len(self.history["weight"])

    def move(self, weights: Floats, **columns: Floats) -> None:
        """Go on to the weights after a step, with what else the trajectory shows of it."""
        self.now, self.total = weights, self.total + weights
        for name, values in {"weight": weights, **columns}.items():
            self.history[name].append(values)

    def write(self, run: RunFolder, sources: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Write trajectory.parquet, and return the arrays that a checkpoint keeps."""
        if len(self.history["weight"]):
            run.write_trajectory({name: np.array(values) for name, values in self.history.items()}, sources)
        return {"weights_now": self.now, "weights_total": self.total}

    def load(self, run: RunFolder, step: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Put everything back as it was after `step` steps."""
        self.now, self.total = arrays["weights_now"], arrays["weights_total"]
        self.history = run.read_trajectory(step, tuple(self.history), len(self.now))


def follow(
    job: Job[Any], rows: Iterable[MetricsRow], proxy: BaselineProxy, state: Callable[[], ProxyState], *, before: int = 0
) -> None:
    """Run the steps of one proxy: each is evaluated and logged, and now and then everything is saved.

    Args:
        job: whose settings say how often.
        rows: yields a row of metrics after each step of the proxy.
        proxy: that the steps train.
        state: returns what a checkpoint holds.
        before: rows of metrics.jsonl that belong to models before this one.
    """
    settings = job.settings
    for row in rows:
        done = row["step"]
        if done % settings.eval_every == 0 or done == settings.steps:
            began = time.perf_counter()
            row["validation"] = proxy.finite_validation_losses()
            row["validation_seconds"] = round(time.perf_counter() - began, 3)
        job.log({**row, "step": before + done})
        if done % settings.checkpoint_every == 0 or done == settings.steps or job.stop:
            arrays, tensors = state()
            keep = settings.keep_checkpoints
            job.run.save_checkpoint(before + done, numbers={}, arrays=arrays, tensors=tensors, keep=keep)
        job.stop_if_asked(before + done, "step")


def equal_parts(settings: BaselineSettings, parts: int) -> NDArray[np.int64]:
    """Return the sequences in each of some equal parts of a batch, one more or less."""
    return np.array(largest_remainder([1.0] * parts, settings.batch_size))


def means(losses: torch.Tensor, counts: NDArray[np.int64]) -> torch.Tensor:
    """Return the mean loss of each source from (B, T - 1) losses sorted by source: (k,)."""
    return torch.stack([part.mean() for part in torch.split(losses, counts.tolist())])
