"""Test a model on a few tokens before it is trained or evaluated.

The configuration of a model does not say whether its predictions depend on later tokens, or whether it keeps documents
apart. A forward pass over a dozen tokens shows both.
"""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch
from torch.nn.functional import embedding
from torch.overrides import TorchFunctionMode

from xdoge.errors import XDogeError, argument
from xdoge.models.loss import evaluating, sequence_nats
from xdoge.models.weight_files import foreign_errors

TOKENS = 12
"""Tokens of a test: enough for two documents, and cheap even for a large model."""

TOLERANCE = 1e-4
"""Allowed change of logits that should not change, in standard deviations of all logits, for float32.

Measured with random weights: the logits of causal models changed by at most 7e-7, those of other models by at least
5e-3.
"""

_NAMES_TOKEN = re.compile(r"_token_(id|index)$")


def refuse_future(model: Any, name: str, *, length: int = TOKENS) -> None:
    """Raise an error if a model's logits depend on later tokens, or it has fewer than `length` positions.

    Args:
        model: model of transformers, or any module that maps (B, T) token ids to logits.
        name: name of the model in messages.
        length: tokens of the longest sequence that it will read.

    Raises:
        XDogeError: the logits depend on later tokens, the model has too few positions, or it fails on a few tokens.
    """
    ids, others = _tokens(model, min(length, TOKENS))
    cuts = range(1, len(ids), 2)  # odd, to detect attention within blocks of even size
    rows = torch.stack([ids, *(torch.cat([ids[:cut], others[cut:]]) for cut in cuts)])
    positions = _PositionTables(len(ids))
    with foreign_errors(f"{name} fails on {len(ids)} tokens"), evaluating(model), positions:
        logits = _logits(model, rows)
    if logits.isnan().any():
        raise XDogeError(
            f"{name} computes NaN on {len(ids)} tokens; its weights are damaged, or overflow {logits.dtype}."
        )
    moves = [_distance(logits[row, :cut], logits[0, :cut], logits) for row, cut in enumerate(cuts, start=1)]
    if sorted(moves)[len(moves) // 2] > _tolerance(logits):  # median: rounding may route a token to another expert
        config = getattr(model, "config", None)
        hint = " Set is_decoder to true in its config.json." if getattr(config, "is_decoder", True) is False else ""
        raise XDogeError(
            f"{name} ({type(model).__name__}) sees the future: its logits depend on later tokens, so its "
            f"losses would be meaningless. Only causal language models can be trained and measured.{hint}"
        )
    if positions.most is not None and positions.most < length:
        raise XDogeError(
            f"{name} has {positions.most:,} positions, but sequences of {length:,} tokens are requested; "
            "use shorter sequences."
        )


def refuse_leaks(model: Any, *, length: int = TOKENS) -> None:
    """Raise an error if a model does not keep documents apart when it gets their position_ids.

    Args:
        model: model of transformers.
        length: tokens of the sequences that it will read.

    Raises:
        XDogeError: the model takes no position_ids, or its predictions depend on earlier documents.
    """
    advice = f"{argument('documents', 'separate')} needs a model that keeps documents apart, and {type(model).__name__}"
    if "position_ids" not in inspect.signature(model.forward).parameters:
        raise XDogeError(f"{advice} takes no position_ids; use {argument('documents', 'ignore')}.")
    ids, _ = _tokens(model, min(max(3, length), TOKENS))
    start = len(ids) // 2 + 1
    positions = torch.cat([torch.arange(start), torch.arange(len(ids) - start)]).to(ids.device)[None]
    with foreign_errors(f"{type(model).__name__} fails on two documents"), evaluating(model):
        packed = model(input_ids=ids[None], position_ids=positions, use_cache=False).logits[0, start:]
        alone = _logits(model, ids[None, start:])[0]
    if not _distance(packed, alone, alone) <= _tolerance(alone):  # NaN is no distance
        raise XDogeError(
            f"{advice} does not: the previous document changes its predictions. Use {argument('documents', 'ignore')}."
        )


def refuse_other_loss(model: Any, name: str, *, parts: int, length: int = TOKENS) -> None:
    """Raise an error if a model's own loss is not the mean next-token cross-entropy.

    transformers' Trainer minimises the model's own loss, and adds the losses of all parts of a step. Each must be its
    share of the mean over the whole step.

    Args:
        model: model of transformers.
        name: name of the model in messages.
        parts: parts of a step: processes × backward passes.
        length: tokens of the sequences that it will read.

    Raises:
        XDogeError: the loss is another one, or an auxiliary loss of routers would be added once for each part.
    """
    ids = _tokens(model, min(length, TOKENS))[0][None]
    scored = ids.shape[1] - 1
    options = {"num_items_in_batch": parts * scored} if takes_number_of_items(model) else {}
    with foreign_errors(f"{name} fails on labels"), evaluating(model):
        loss = float(model(input_ids=ids, labels=ids, use_cache=False, **options).loss) / (1 if options else parts)
        expected = float(sequence_nats(model, ids)) / scored / parts
    if abs(loss - expected) <= 1e-3 * expected:
        return
    if not getattr(model.config.get_text_config(), "output_router_logits", False):
        raise XDogeError(
            f"{name} ({type(model).__name__}) computes {loss * parts:.4g} as its loss, but its next-token "
            f"loss is {expected * parts:.4g}; transformers would train it on something else."
        )
    if parts > 1:
        raise XDogeError(
            f"{name} has output_router_logits: transformers would add the auxiliary loss of its routers "
            f"once for each of the {parts} parts of a step (processes × {argument('accumulation')}). Set "
            "output_router_logits to false in its config.json, or train in one part."
        )


def takes_number_of_items(model: Any) -> bool:
    """Whether transformers' Trainer passes the number of tokens of a step, by which the model divides its loss."""
    parameters = inspect.signature(model.forward).parameters.values()
    return bool(getattr(model, "accepts_loss_kwargs", any(each.kind is each.VAR_KEYWORD for each in parameters)))


def _tokens(model: Any, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two rows of tokens, (T,) each, that differ at every position and contain no special tokens."""
    table = _table(model)
    config = getattr(model, "config", None)
    parts = () if config is None else (config, config.get_text_config())
    special = {
        value for part in parts for key, value in vars(part).items() if _NAMES_TOKEN.search(key) and type(value) is int
    }
    sizes = [len(table), *(part.vocab_size for part in parts if isinstance(getattr(part, "vocab_size", None), int))]
    usable = [token for token in range(min(4096, *sizes)) if token not in special] or [0]
    places = torch.arange(length) * 7 + 3
    tokens = torch.tensor(usable, device=table.device)
    return tokens[places % len(usable)], tokens[(places + (len(usable) + 1) // 2) % len(usable)]


def _table(model: Any) -> torch.Tensor:
    if hasattr(model, "get_input_embeddings"):
        return model.get_input_embeddings().weight  # type: ignore[no-any-return]
    return next(module.weight for module in model.modules() if isinstance(module, torch.nn.Embedding))


def _logits(model: Any, rows: torch.Tensor) -> torch.Tensor:
    output = model(input_ids=rows, use_cache=False) if hasattr(model, "config") else model(rows)
    logits: torch.Tensor = output if isinstance(output, torch.Tensor) else output.logits
    return logits


def _distance(logits: torch.Tensor, others: torch.Tensor, scale: torch.Tensor) -> float:
    """Return the largest difference, in standard deviations of `scale`.

    A model may rule tokens out with infinities, which are equal or infinitely far.
    """
    moved = torch.where(logits == others, 0, logits - others).abs()
    return float(moved.max() / scale[scale.isfinite()].float().std())


def _tolerance(logits: torch.Tensor) -> float:
    return max(TOLERANCE, 4 * torch.finfo(logits.dtype).eps)


class _PositionTables(TorchFunctionMode):
    """Observes look-ups of consecutive positions in embedding tables, to find the size of the smallest table.

    Attributes:
        most: number of positions in the smallest table, None if there was no such look-up.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self.most: int | None = None
        self._length = length

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is embedding and self._length > 1:
            indices, table = args[0], args[1]
            if indices.dim() and indices.shape[-1] == self._length and bool((indices.diff(dim=-1) == 1).all()):
                rows = len(table) - int(indices.flatten()[0])
                self.most = rows if self.most is None else min(self.most, rows)
        return function(*args, **(kwargs or {}))
