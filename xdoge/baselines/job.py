"""One run of a baseline: its logging, its checkpoints, its end, and the trajectory of the weights."""

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
    """One run of a baseline, with its folder and its callbacks."""

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
        """Delete the rows of metrics.jsonl after `step`, return the others, and set the clock to the last of them."""
        self.run.rewind_metrics(step)
        rows = read_rows(self.run.metrics)
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        self.began = time.perf_counter()
        return rows

    def log(self, row: MetricsRow) -> None:
        """Write a row of metrics.jsonl, with the seconds since the run began, and report it as progress."""
        row["seconds"] = round(self.elapsed, 3)
        self.run.log(row)
        event = Event("step", self.settings.method, done=row["step"], total=self.settings.n_rows, unit="steps", row=row)
        self.on_progress(event)

    def stop_if_asked(self, done: int, what: str) -> None:
        """Raise Interrupted if a signal asked to stop."""
        if self.stop:
            total = self.settings.n_rows
            raise Interrupted(
                self.stop[0], f"stopped after {what} {done} of {total}; {argument('resume', True)} continues"
            )

    def finish(
        self, weights: Floats, *, tokens: int, floor: float = 0.0, about: Mapping[str, Any] | None = None
    ) -> WeightSet:
        """Write weights.json, the last file of a run, and return its weight set; see `learned_weights`."""
        settings = self.settings
        method = {"baseline": settings.method, **settings.model_dump(mode="json")}
        answer = learned_weights(
            weights, self.store, settings, self.recipe, method=method, floor=floor, tokens=tokens, proxy=about
        )
        answer.save(self.run.weights)
        return answer


class Trajectory:
    """The weights over the steps of one proxy: their present values, their mean and their history."""

    def __init__(self, k: int, columns: tuple[str, ...]) -> None:
        self.now: Floats = np.full(k, 1 / k)
        self.total: Floats = np.zeros(k)
        self.history = {name: History(k) for name in ("weight", *columns)}

    @property
    def mean(self) -> Floats:
        """The mean of the weights over the steps, (k,): the result of the baseline."""
        return self.total / len(self.history["weight"])

    def move(self, weights: Floats, **columns: Floats) -> None:
        """Add the weights after a step, with the values for the other columns of the trajectory."""
        self.now, self.total = weights, self.total + weights
        for name, values in {"weight": weights, **columns}.items():
            self.history[name].append(values)

    def write(self, run: RunFolder, sources: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """Write trajectory.parquet, and return the arrays for a checkpoint."""
        if len(self.history["weight"]):
            run.write_trajectory({name: np.array(values) for name, values in self.history.items()}, sources)
        return {"weights_now": self.now, "weights_total": self.total}

    def load(self, run: RunFolder, step: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Restore the state after `step` steps."""
        self.now, self.total = arrays["weights_now"], arrays["weights_total"]
        self.history = run.read_trajectory(step, tuple(self.history), len(self.now))


def follow(
    job: Job[Any], rows: Iterable[MetricsRow], proxy: BaselineProxy, state: Callable[[], ProxyState], *, before: int = 0
) -> None:
    """Run the steps of one proxy: log each, and evaluate and save at the intervals of the settings.

    Args:
        job: the run.
        rows: yields a row of metrics after each step of the proxy.
        proxy: the proxy that the steps train.
        state: returns the content of a checkpoint.
        before: number of rows of metrics.jsonl that belong to earlier models.
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
    """Return the sequences in each of `parts` parts of a batch, equal to within one."""
    return np.array(largest_remainder([1.0] * parts, settings.batch_size))


def means(losses: torch.Tensor, counts: NDArray[np.int64]) -> torch.Tensor:
    """Return the mean loss of each source, (k,), from losses sorted by source, (B, T - 1)."""
    return torch.stack([part.mean() for part in torch.split(losses, counts.tolist())])
