"""One run of a swarm: a proxy trained on one mixture, and its loss on every language."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from xdoge.corpus.store import TokenStore
from xdoge.errors import Interrupted, NonFiniteLossError, argument
from xdoge.io import read_json, write_json
from xdoge.mixtures.mixture import Mixture
from xdoge.models.initial_model import InitialModel
from xdoge.progress import Event, OnNote, OnProgress
from xdoge.sampling.permutation import derive_key, permute
from xdoge.sampling.sampler import MixtureSampler
from xdoge.training.optim import autocasting
from xdoge.training.proxy import Proxy
from xdoge.training.run_folder import MetricsRow, RunFolder

if TYPE_CHECKING:
    from xdoge.laws.swarm_settings import SwarmSettings

SCHEMA = "xdoge.swarm-run"


@dataclass(frozen=True)
class RunResult:
    """The result of one run.

    Attributes:
        shares: share of each source in the tokens that were trained on, in whole sequences.
        losses: bits per byte of each language; empty if the run diverged.
        diverged: why the run has no losses; None if it has losses.
        seconds: duration of training and validation.
    """

    shares: Mapping[str, float]
    losses: Mapping[str, float]
    diverged: str | None
    seconds: float

    @classmethod
    def load(cls, folder: Path) -> RunResult | None:
        """Return the result in a run's folder; None if the run has not ended."""
        if not (folder / "result.json").exists():
            return None
        value = read_json(folder / "result.json", schema=SCHEMA)
        return cls(value["shares"], value["losses"], value["diverged"], value["seconds"])

    def save(self, folder: Path) -> None:
        """Write result.json, the last file of a run."""
        value = {**asdict(self), "seconds": round(self.seconds, 1)}
        write_json(folder / "result.json", {"schema": f"{SCHEMA}/1", **value})


def train_run(
    store: TokenStore,
    settings: SwarmSettings,
    weights: Mapping[str, float],
    folder: Path,
    *,
    seed: int,
    stop: list[int],
    on_progress: OnProgress,
    on_note: OnNote,
) -> RunResult:
    """Train a proxy on a mixture, measure its losses, and write the run's result.json.

    A run that was stopped continues from its last checkpoint and ends with the same losses.

    Args:
        store: the token store.
        settings: settings of the swarm.
        weights: share of each source in the tokens.
        folder: folder of this run.
        seed: seed of the initial proxy and of the order of the text.
        stop: a list that receives the number of a signal that asks to stop.
        on_progress: called after each step.
        on_note: called with a sentence if a damaged checkpoint is skipped.

    Raises:
        Interrupted: a signal stopped the run. Every finished step is in a checkpoint.
    """
    run = RunFolder(folder)
    with run.claimed():
        if result := RunResult.load(folder):
            run.forget_checkpoints()  # a process may have been killed before it did this
            return result
        began = time.perf_counter()
        try:
            training = Training(store, settings, weights, seed)
            training.resume(run, on_note)
            for row in training.steps():
                run.log(row)
                on_progress(Event("step", folder.name, row["step"], settings.steps, row["tokens"], "steps", row))
                if stop or (row["step"] % settings.checkpoint_every == 0 and row["step"] < settings.steps):
                    training.save(run)
                if stop:
                    resume = argument("resume", True)
                    raise Interrupted(
                        stop[0],
                        f"{folder.name} stopped after step {row['step']} of {settings.steps}; {resume} continues",
                    )
            result = RunResult(training.shares, training.evaluate(), None, time.perf_counter() - began)
        except NonFiniteLossError as error:
            result = RunResult({}, {}, str(error), time.perf_counter() - began)
        result.save(folder)
        run.forget_checkpoints()
        return result


class Training(Proxy):
    """A proxy, the order of its text, and the mean of its last weights."""

    def __init__(self, store: TokenStore, settings: SwarmSettings, weights: Mapping[str, float], seed: int) -> None:
        start = InitialModel.find(settings.proxy)
        super().__init__(store, settings.model_copy(update={"seed": seed}), start.recipe or start)
        self.swarm, length = settings, settings.sequence_length
        self.available, self.seen = store.sequence_counts(length), settings.sequences_seen(store)
        lengths = {source: self.seen[source] for source, weight in weights.items() if weight > 0}
        mixture = Mixture.plan(
            {source: weights[source] for source in lengths},
            available_tokens={source: count * length for source, count in lengths.items()},
            budget_tokens=settings.proxy_tokens,
            max_epochs=None,
            sequence_length=length,
            name="run",
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a source may be drawn less than once in a batch
            self.sampler = MixtureSampler(mixture, lengths, batch_size=settings.batch_size, seed=seed)
        self.step, self.averaged = 0, 0
        self.mean: dict[str, torch.Tensor] = {}

    @property
    def shares(self) -> dict[str, float]:
        """Share of each source in the tokens of the training, in whole sequences."""
        return {source: count / self.sampler.total for source, count in self.sampler.quotas.items()}

    def batch(self) -> torch.Tensor:
        """Return the token ids of the next step, (B, T), rows sorted by source."""
        size = self.settings.batch_size
        draws = self.sampler.draws(self.step * size, (self.step + 1) * size)
        rows = []
        for number, source in enumerate(draws.sources):
            indices = draws.index[draws.source == number]
            if not len(indices):
                continue
            if self.seen[source] < self.available[source]:  # the same part of the source for all runs
                indices = permute(indices, self.available[source], derive_key(self.swarm.seed, source, "seen"))
            rows.append(self.store.sequences(source, indices, self.settings.sequence_length))
            self.store.check_ids(source, rows[-1])
        return torch.from_numpy(np.concatenate(rows).astype(np.int64)).to(self.device)

    def steps(self) -> Iterator[MetricsRow]:
        """Train to the end, and yield the row of metrics.jsonl of each step.

        Raises:
            NonFiniteLossError: the loss or the gradient is not finite.
        """
        settings = self.settings
        last = max(1, round(self.swarm.averaging * settings.steps))
        while self.step < settings.steps:
            rows = self.batch()
            with autocasting(self.device, self.autocast):
                logits = self.model(input_ids=rows[:, :-1], use_cache=False).logits  # (B, T - 1, V)
            loss = F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            norm = self.clip_gradients()
            for what, value in (("loss", loss.item()), ("gradient norm", norm)):
                if not math.isfinite(value):
                    raise NonFiniteLossError(f"step {self.step + 1}: the {what} is {value}")
            self.step += 1
            rate = self.update(self.step)
            if self.step > settings.steps - last:
                self._average()
            tokens = self.step * settings.batch_size * settings.sequence_length
            yield {"step": self.step, "loss": loss.item(), "grad_norm": norm, "learning_rate": rate, "tokens": tokens}

    @torch.no_grad()
    def _average(self) -> None:
        """Update the running mean of the parameters."""
        self.averaged += 1
        for name, value in self.model.named_parameters():
            if self.averaged == 1:
                self.mean[name] = value.detach().clone()
            else:
                self.mean[name].lerp_(value, 1 / self.averaged)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return bits per byte of each language's validation text, for the mean of the last parameters.

        Afterwards, the proxy has this mean as its parameters.

        Raises:
            NonFiniteLossError: a loss is not finite.
        """
        for name, value in self.model.named_parameters():
            value.copy_(self.mean[name])
        losses = self.validation_losses()
        for source, loss in losses.items():
            if not math.isfinite(loss):
                raise NonFiniteLossError(f"the validation loss of {source} is {loss}")
        return bits_per_byte(losses, self.store)

    def save(self, run: RunFolder) -> None:
        """Write a checkpoint."""
        tensors = self.tensors() | {f"mean.{name}": value for name, value in self.mean.items()}
        run.save_checkpoint(self.step, numbers={"averaged": self.averaged}, arrays={}, tensors=tensors, keep=1)

    def resume(self, run: RunFolder, on_note: OnNote) -> None:
        """Load the newest checkpoint, if there is one."""
        if checkpoint := run.good_checkpoint(on_note):
            numbers, _, tensors = run.load_checkpoint(checkpoint)
            self.step, self.averaged = numbers["step"], numbers["averaged"]
            self.load_tensors(tensors)
            self.mean = {name.removeprefix("mean."): t for name, t in tensors.items() if name.startswith("mean.")}
        run.rewind_metrics(self.step)


def bits_per_byte(losses: Mapping[str, float], store: TokenStore) -> dict[str, float]:
    """Return bits per byte of each language from nats per token of its sources' validation text.

    A language's value is the total of its bits divided by the total of its bytes. So sources count in proportion to the
    length of their validation text.
    """
    tokens, n_bytes = store.tokens("validation"), store.n_bytes("validation")
    result = {}
    for language, sources in store.languages.items():
        measured = [source for source in sources if source in losses]
        if measured:
            bits = sum(losses[source] * tokens[source] for source in measured) / math.log(2)
            result[language] = bits / sum(n_bytes[source] for source in measured)
    return result
