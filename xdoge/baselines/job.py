"""What one call of `learn` works with: the run folder, who listens, and how a run is logged, stopped and finished."""

from __future__ import annotations

import datetime
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from xdoge._version import __version__
from xdoge.baselines.options import BaselineSettings
from xdoge.baselines.training import Proxy, Row
from xdoge.corpus.store import TokenStore
from xdoge.errors import Interrupted
from xdoge.mixtures.simplex import Floats, largest_remainder
from xdoge.mixtures.weights import WeightSet
from xdoge.models.recipes import Recipe
from xdoge.training.run_folder import History, RunFolder

Settings = TypeVar("Settings", bound=BaselineSettings)


@dataclass
class Job(Generic[Settings]):
    """One run of a baseline."""

    store: TokenStore
    settings: Settings
    recipe: Recipe
    run: RunFolder
    stop: list[int]
    on_step: Callable[[Row], None]
    on_note: Callable[[str], None]
    seconds: float = 0.0
    began: float = field(default_factory=time.perf_counter)

    @property
    def parameters(self) -> int:
        """All parameters of a proxy."""
        embedding = self.store.vocab_size * self.recipe.hidden_size
        return self.recipe.non_embedding_parameters + embedding * (1 if self.recipe.tie_embeddings else 2)

    def rewind(self, step: int) -> list[Row]:
        """Drop the rows of metrics.jsonl after `step` and return those that stay; the clock goes on from the last."""
        self.run.rewind_metrics(step)
        text = self.run.metrics.read_text(encoding="utf-8") if self.run.metrics.exists() else ""
        rows = [json.loads(line) for line in text.splitlines()]
        self.seconds = rows[-1]["seconds"] if rows else 0.0
        self.began = time.perf_counter()
        return rows

    def log(self, row: Row) -> None:
        """Write a row of metrics.jsonl, with the seconds since the run began, and show it."""
        row["seconds"] = round(self.seconds + time.perf_counter() - self.began, 3)
        self.run.log(row)
        self.on_step(row)

    def refuse_to_go_on(self, done: int, what: str) -> None:
        """End here if a signal asked for it."""
        if self.stop:
            total = self.settings.n_rows
            raise Interrupted(self.stop[0], f"stopped after {what} {done} of {total}; --resume continues")

    def by_language(self, weights: Floats) -> dict[str, float]:
        """Return the sum of the weights of each language's sources."""
        sources = self.store.sources
        return {
            language: math.fsum(float(weights[sources.index(source)]) for source in members)
            for language, members in self.store.languages.items()
        }

    def finish(
        self, weights: Floats, *, flops: int, tokens: int, floor: float = 0.0, about: Mapping[str, Any] | None = None
    ) -> WeightSet:
        """Write weights.json, the last file of a run, and return what it holds.

        Args:
            weights: (k,) the answer.
            flops: of all models that were run to learn it, exactly.
            tokens: that they were trained on.
            floor: least weight that a source could have.
            about: what else to keep beside the proxy.
        """
        store, recipe, method = self.store, self.recipe, self.settings.method
        answer = WeightSet(
            name=f"{store.name}-{method}-{recipe.name}-seed{self.settings.seed}",
            sources=dict(zip(store.sources, weights.tolist(), strict=True)),
            floor=floor,
            method={"baseline": method, **self.settings.model_dump(mode="json")},
            proxy={
                **recipe.model_dump(mode="json", exclude={"about"}),
                "non_embedding_parameters": recipe.non_embedding_parameters,
                "parameters": self.parameters,
                "tokens_seen": tokens,
                "flops": flops,
                **(about or {}),
            },
            corpus={"name": store.name, "sha256": store.sha256, "tokens": store.tokens()},
            xdoge_version=__version__,
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
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


def follow(job: Job[Any], rows: Iterable[Row], proxy: Proxy, save: Callable[[], None], *, before: int = 0) -> None:
    """Run the steps of one proxy: each is evaluated and logged, and now and then everything is saved.

    Args:
        job: whose settings say how often.
        rows: yields a row of metrics after each step of the proxy.
        proxy: that the steps train.
        save: writes a checkpoint.
        before: rows of metrics.jsonl that belong to models before this one.
    """
    settings = job.settings
    for row in rows:
        done = row["step"]
        if done % settings.eval_every == 0 or done == settings.steps:
            row["validation"] = proxy.evaluate()
        job.log({**row, "step": before + done})
        if done % settings.checkpoint_every == 0 or done == settings.steps or job.stop:
            save()
        job.refuse_to_go_on(before + done, "step")


def equal_parts(settings: BaselineSettings, parts: int) -> NDArray[np.int64]:
    """Return the sequences in each of some equal parts of a batch, one more or less."""
    return np.array(largest_remainder([1.0] * parts, settings.batch_size))


def means(losses: torch.Tensor, counts: NDArray[np.int64]) -> torch.Tensor:
    """Return the mean loss of each source from (B, T - 1) losses sorted by source: (k,)."""
    return torch.stack([part.mean() for part in torch.split(losses, counts.tolist())])
