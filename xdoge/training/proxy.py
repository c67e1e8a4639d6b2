"""A proxy model in training, with its optimiser, validation losses and checkpoint tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from xdoge.corpus.store import TokenStore
from xdoge.distributed import ALONE, Processes
from xdoge.models.initial_model import InitialModel
from xdoge.models.loss import sequence_nats
from xdoge.models.recipes import Recipe
from xdoge.training.optim import autocasting, learning_rate_ratio, make_optimiser, pick_autocast, pick_device
from xdoge.training.proxy_settings import ProxySettings
from xdoge.training.validation import validation_losses

EVAL_ROWS = 16
"""Sequences per forward pass in an evaluation."""


class Proxy:
    """A proxy model and its optimiser. Every process has an identical copy.

    Args:
        store: token store of the training.
        settings: settings of the training.
        start: recipe of a new model, or the model to continue from.
        processes: processes of the job.
    """

    def __init__(
        self, store: TokenStore, settings: ProxySettings, start: Recipe | InitialModel, *, processes: Processes = ALONE
    ) -> None:
        self.store, self.settings, self.processes = store, settings, processes
        self.device = pick_device(settings.device if processes.world_size == 1 else processes.device)
        self.autocast = pick_autocast(settings.precision, self.device)
        self.recipe = start if isinstance(start, Recipe) else start.recipe
        if isinstance(start, Recipe):
            model = start.build(vocab_size=store.vocab_size, seed=settings.seed)
        else:
            model = start.build(store, sequence_length=settings.sequence_length, seed=settings.seed)
        self.model = model.to(self.device).train()  # type: ignore[arg-type]
        self.optimiser = make_optimiser(self.model, settings)

    def clip_gradients(self) -> float:
        """Scale the gradients down to the norm `clip` if it is exceeded. Return their norm before scaling."""
        return float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip))

    def update(self, step: int) -> float:
        """Update the parameters with the learning rate of `step`, clear the gradients, and return the learning rate."""
        rate = self.settings.learning_rate * learning_rate_ratio(step, self.settings)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        return rate

    @torch.no_grad()
    def validation_losses(self) -> dict[str, float]:
        """Return the validation loss, nats per token, of each source that has validation sequences."""
        self.model.eval()
        losses = validation_losses(
            self.nats,
            self.store,
            self.settings.sequence_length,
            most=self.settings.eval_sequences,
            rows=EVAL_ROWS,
            rank=self.processes.rank,
            world_size=self.processes.world_size,
            gather=self.processes.all_gather,
        )
        self.model.train()
        return losses

    def nats(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the next-token cross-entropy in nats, summed over each sequence of (B, T) token ids: (B,)."""
        with autocasting(self.device, self.autocast):
            return sequence_nats(self.model, rows.to(self.device))

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the parameters and the optimiser's moments by name, for a checkpoint."""
        moments = {
            f"optimiser.{index}.{name}": value
            for index, values in self.optimiser.state_dict()["state"].items()
            for name, value in values.items()
        }
        return {f"model.{name}": value.detach() for name, value in self.model.named_parameters()} | moments

    def load_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Restore the parameters and the optimiser's moments that `tensors` returned."""
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            kind, index, *rest = key.split(".")
            if kind == "optimiser":
                moments.setdefault(int(index), {})[".".join(rest)] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": moments})
