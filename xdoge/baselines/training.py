"""A proxy model of a baseline: trained exactly as a fit trains its own, and plain training on fixed weights."""

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
from xdoge.fit.state import from_tensors, to_tensors
from xdoge.mixtures.simplex import Floats
from xdoge.models.flops import training_flops
from xdoge.models.loss import sequence_nats
from xdoge.models.recipes import Recipe
from xdoge.training.optim import autocasting, learning_rate_ratio, make_optimiser, pick_autocast, pick_device
from xdoge.training.validation import validation_losses

EVAL_ROWS = 16
"""Sequences per forward pass of an evaluation, as in a fit."""

Row = dict[str, Any]


class Proxy:
    """A proxy model, its optimiser, and how far it has read and been trained."""

    def __init__(self, store: TokenStore, settings: BaselineSettings, recipe: Recipe) -> None:
        self.store, self.settings, self.recipe = store, settings, recipe
        self.device = pick_device(settings.device)
        self.autocast = pick_autocast(settings.precision, self.device)
        model = recipe.build(vocab_size=store.vocab_size, seed=settings.seed)
        self.model = model.to(self.device).train()  # type: ignore[arg-type]
        self.optimiser = make_optimiser(self.model, settings)
        self.step = 0
        self.read: Counts = np.zeros(len(store.sources), dtype=np.int64)

    def draw(self, counts: Counts) -> torch.Tensor:
        """Return the next sequences of each source, rows sorted by source: (B, T)."""
        rows = draw(self.store, self.read, counts, settings=self.settings)
        self.read = self.read + counts
        return torch.from_numpy(rows).to(self.device)

    def losses(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the next-token cross-entropy of (B, T) token ids, nats: (B, T - 1)."""
        with autocasting(self.device, self.autocast):
            logits = self.model(input_ids=rows[:, :-1], use_cache=False).logits  # (B, T - 1, V)
        targets = rows[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction="none").view(targets.shape)

    def descend(self, loss: float) -> Row:
        """Take a step along the gradients that lie in the parameters, clipped, and return its row of metrics.jsonl.

        Raises:
            NonFiniteLossError: the loss or a gradient is not finite; the parameters are as they were.
        """
        settings, step = self.settings, self.step + 1
        ratio = learning_rate_ratio(step, settings)
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip))
        for what, value in (("loss", loss), ("gradient norm", norm)):
            if not math.isfinite(value):
                raise NonFiniteLossError(f"step {step}: the {what} is {value}. Lower learning_rate or clip.")
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * ratio
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step = step
        return {
            "step": step,
            "loss": loss,
            "target_loss": None,
            "grad_norm": norm,
            "learning_rate": settings.learning_rate * ratio,
            "tokens": self.tokens,
            "languages": {},
        }

    @property
    def tokens(self) -> int:
        """Tokens trained on so far."""
        return int(self.read.sum()) * self.settings.sequence_length

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Return the validation loss, nats per token, of each source that has validation sequences."""
        self.model.eval()
        losses = validation_losses(
            self._nats, self.store, self.settings.sequence_length, most=self.settings.eval_sequences, rows=EVAL_ROWS
        )
        self.model.train()
        for source, loss in losses.items():
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"step {self.step}: the validation loss of {source} is {loss}. Lower learning_rate or clip."
                )
        return losses

    def _nats(self, rows: torch.Tensor) -> torch.Tensor:
        with autocasting(self.device, self.autocast):
            return sequence_nats(self.model, rows.to(self.device))

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, torch.Tensor]]:
        """Return everything that the next step depends on but the step's number: arrays and tensors by name."""
        return {"read": self.read}, to_tensors(self.model, self.optimiser)

    def load(self, step: int, arrays: Mapping[str, NDArray[Any]], tensors: Mapping[str, torch.Tensor]) -> None:
        """Put everything back as `state` found it."""
        self.step, self.read = step, arrays["read"]
        from_tensors(self.model, self.optimiser, tensors)


def train_on(weights: Floats, proxy: Proxy) -> Iterator[Row]:
    """Train a proxy on fixed weights of the sources to the end of its steps; each step yields its row of metrics.

    Every sequence of a batch is of a source drawn from the weights, and the loss is the mean over the batch.
    """
    settings = proxy.settings
    while proxy.step < settings.steps:
        generator = np.random.Generator(np.random.Philox(key=[settings.seed, proxy.step + 1]))
        counts = generator.multinomial(settings.batch_size, weights)
        loss = proxy.losses(proxy.draw(counts)).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        yield proxy.descend(loss.item())


def flops(store: TokenStore, settings: BaselineSettings, recipe: Recipe, *, trained: int, forward: int = 0) -> int:
    """Return the exact FLOPs of training on some tokens and running the model forward only on others.

    Forward is a third of training: a product in forward is followed by two of its size in backward.
    """

    def count(tokens: int) -> int:
        return training_flops(recipe, tokens, sequence_length=settings.sequence_length, vocab_size=store.vocab_size)

    return count(trained) + count(forward) // 3
