"""The proxy of a baseline, which is trained exactly like the proxy of a fit, and training on fixed weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from xdoge.baselines.options import BaselineSettings
from xdoge.corpus.store import TokenStore
from xdoge.errors import NonFiniteLossError
from xdoge.fit.batches import Counts, draw
from xdoge.mixtures.simplex import Floats
from xdoge.models.recipes import Recipe
from xdoge.training.optim import autocasting
from xdoge.training.proxy import Proxy
from xdoge.training.run_folder import MetricsRow

ProxyState = tuple[dict[str, NDArray[Any]], dict[str, torch.Tensor]]
"""Arrays and tensors by name."""


class BaselineProxy(Proxy):
    """A proxy that counts its steps and the sequences that it has read."""

    def __init__(self, store: TokenStore, settings: BaselineSettings, recipe: Recipe) -> None:
        super().__init__(store, settings, recipe)
        self.step = 0
        self.read: Counts = np.zeros(len(store.sources), dtype=np.int64)

    def draw(self, counts: Counts) -> torch.Tensor:
        """Return the next sequences of each source, rows sorted by source: (B, T)."""
        rows = draw(self.store, self.read, counts, settings=self.settings)
        self.read = self.read + counts
        return torch.from_numpy(rows).to(self.device)

    def losses(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the next-token cross-entropy of token ids (B, T), in nats: (B, T - 1)."""
        with autocasting(self.device, self.autocast):
            logits = self.model(input_ids=rows[:, :-1], use_cache=False).logits  # (B, T - 1, V)
        targets = rows[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)

    def train_step(self, loss: float) -> MetricsRow:
        """Clip the parameters' gradients, take a step, and return its row of metrics.jsonl.

        Raises:
            NonFiniteLossError: the loss or a gradient is not finite. The parameters are then unchanged.
        """
        step, norm = self.step + 1, self.clip_gradients()
        for what, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise NonFiniteLossError(f"step {step}: the {what} is {value}. Lower learning_rate or clip.")
        learning_rate = self.update(step)
        self.step = step
        return {
            "step": step,
            "loss": loss,
            "target_loss": None,
            "grad_norm": norm,
            "learning_rate": learning_rate,
            "tokens": self.tokens,
            "languages": {},
        }

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return int(self.read.sum()) * self.settings.sequence_length

    def finite_validation_losses(self) -> dict[str, float]:
        """Return the validation loss, nats per token, of each source that has validation sequences.

        Raises:
            NonFiniteLossError: a loss is not finite.
        """
        losses = self.validation_losses()
        for source, loss in losses.items():
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"step {self.step}: the validation loss of {source} is {loss}. Lower learning_rate or clip."
                )
        return losses

    def state(self) -> ProxyState:
        """Return everything that the next step depends on, except its number: arrays and tensors by name."""
        return {"read": self.read}, self.tensors()

    def load(self, step: int, arrays: Mapping[str, NDArray[Any]], tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore what `state` returned after `step` steps."""
        self.step, self.read = step, arrays["read"]
        self.load_tensors(tensors)


def train_on(weights: Floats, proxy: BaselineProxy) -> Iterator[MetricsRow]:
    """Train a proxy on fixed weights of the sources, and yield the row of metrics of each step.

    The source of every sequence in a batch is drawn from the weights. The loss is the mean over the batch.
    """
    settings = proxy.settings
    while proxy.step < settings.steps:
        generator = np.random.Generator(np.random.Philox(key=[settings.seed, proxy.step + 1]))
        counts = generator.multinomial(settings.batch_size, weights)
        loss = proxy.losses(proxy.draw(counts)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        yield proxy.train_step(loss.item())
