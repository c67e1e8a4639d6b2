"""Negative log-likelihoods of documents under a causal language model: windows, batches and sums over processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from xdoge.distributed import Processes
from xdoge.errors import XDogeError, argument
from xdoge.models.memory import memory_errors
from xdoge.models.resolver import CausalModel

if TYPE_CHECKING:
    import torch


PADDING = 32
"""The padding of a batch is at most `batch_tokens` / PADDING tokens."""


class Window(NamedTuple):
    """The inputs [start, end) of a document with its begin token in front. The last `scored` predictions count."""

    document: int
    start: int
    end: int
    scored: int

    @property
    def length(self) -> int:
        """The number of inputs."""
        return self.end - self.start


def windows(document: int, tokens: int, *, window: int, stride: int) -> Iterator[Window]:
    """Yield the windows that score each token of a document once, in order.

    The first window scores as many tokens as fit. Each further window has `window` inputs and scores the next `stride`
    tokens, or those that are left.
    """
    done, end = 0, min(window, tokens)
    while done < tokens:
        yield Window(document, max(0, end - window), end, end - done)
        done, end = end, min(end + stride, tokens)


def batches(parts: Sequence[Window], *, batch_tokens: int) -> Iterator[list[Window]]:
    """Yield batches of windows of similar length, the longest first, each of at most `batch_tokens` with its padding.

    A batch ends when its padding would exceed a part of `batch_tokens`. Padding takes as much time as tokens, and a
    further batch takes little. A window longer than `batch_tokens` has its own batch.
    """
    group: list[Window] = []
    tokens = 0
    for part in sorted(parts, key=lambda part: -part.length):
        if group:
            full = (len(group) + 1) * group[0].length
            if full > batch_tokens or full - tokens - part.length > batch_tokens // PADDING:
                yield group
                group, tokens = [], 0
        group.append(part)
        tokens += part.length
    if group:
        yield group


def load_on(processes: Processes, model: CausalModel, precision: str, device: str, length: int | None = None) -> Any:
    """Return the transformers model on this process's device or, if `device` is "split", over all GPUs.

    `length` is the number of tokens that the model will see at once; by default its context.

    Raises:
        XDogeError: the weights cannot be loaded, or are not those of a causal language model.
        MemoryFullError: the device has too little memory for the weights.
    """
    advice = f"{argument('device', 'split')} spreads it over the GPUs of one process, and precision bfloat16 halves it"
    return model.load(
        length=length, precision=precision, device=processes.device, split=device == "split", advice=advice
    )


class LoadedModel:
    """A causal language model with loaded weights."""

    def __init__(self, name: str, model: Any) -> None:
        self.name, self.model = name, model
        self._head: Any = None
        self._tried = False

    def nats(
        self,
        documents: Sequence[NDArray[Any]],
        *,
        begin: int,
        window: int,
        stride: int,
        batch_tokens: int,
        share: tuple[int, int] = (0, 1),
        on_batch: Callable[[int], None] = lambda tokens: None,
    ) -> NDArray[np.float64]:
        """Return the nats of each document, summed over its tokens, (D,).

        Args:
            documents: token ids of each document.
            begin: token before each document.
            window: number of tokens that the model sees at once.
            stride: number of tokens that each window of a document scores, except the first.
            batch_tokens: most tokens in a batch.
            share: (rank, count); only every count-th batch is scored, and the others add 0.
            on_batch: called with an estimate of the tokens that all processes have scored so far.

        Raises:
            XDogeError: a token id is not in the model's vocabulary.
            MemoryFullError: a batch is too large for the device.
        """
        import torch

        largest = max((int(document.max()) for document in documents if len(document)), default=0)
        size = self.model.get_input_embeddings().weight.shape[0]
        if max(begin, largest) >= size:
            raise XDogeError(
                f"{self.name} has an embedding for {size:,} tokens, but its tokenizer produced the token "
                f"{max(begin, largest):,}; these are not the files of one model."
            )
        parts = [
            part
            for number, document in enumerate(documents)
            for part in windows(number, len(document), window=window, stride=stride)
        ]
        rank, count = share
        nats, done = np.zeros(len(documents)), 0
        limits = memory_errors(
            f"while scoring {batch_tokens:,} tokens at once with {self.name}; lower {argument('batch_tokens')}"
        )
        with torch.inference_mode(), limits:
            for turn, batch in enumerate(batches(parts, batch_tokens=batch_tokens)):
                done += sum(part.scored for part in batch)
                if turn % count == rank:
                    owners, losses = self._losses(*_tensors(documents, batch, begin))
                    nats += np.bincount(np.array([part.document for part in batch])[owners], losses, len(nats))
                    on_batch(done)
        return nats

    def _losses(self, ids: torch.Tensor, targets: torch.Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return the row and the cross-entropy, both (n,), of the n targets that are not -1.

        `ids` and `targets` are (B, T).
        """
        from xdoge.models.loss import plain_head, token_nats

        device = self.model.device
        # Padding is to the right of the inputs. A mask takes time, and few batches of similar length need one.
        padded = bool((ids == -1).any())
        options = {"attention_mask": (ids != -1).long().to(device)} if padded else {}
        keep = targets != -1  # (B, T)
        ids = ids.clamp(min=0).to(device)
        if not self._tried:  # the first time; afterwards the head runs on the scored positions only
            self._tried, self._head = True, plain_head(self.model)
        if self._head is None:
            outputs = self.model(input_ids=ids, use_cache=False, **options).logits  # (B, T, V)
        else:
            outputs = self.model.base_model(input_ids=ids, use_cache=False, **options).last_hidden_state  # (B, T, H)
        outputs = outputs[keep.to(outputs.device)]  # (n, V or H)
        losses = token_nats(outputs, targets[keep], self._head)
        return keep.nonzero()[:, 0].numpy(), losses.double().cpu().numpy()


def _tensors(
    documents: Sequence[NDArray[Any]], batch: Sequence[Window], begin: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets of a batch, (B, T) each. The target is -1 where nothing is scored."""
    import torch

    ids = np.full((len(batch), max(part.length for part in batch)), -1)
    targets = ids.copy()
    for row, part in enumerate(batch):
        document = documents[part.document]
        first = max(0, part.start - 1)
        ids[row, part.length - (part.end - 1 - first) : part.length] = document[first : part.end - 1]
        if part.start == 0:
            ids[row, 0] = begin
        targets[row, part.length - part.scored : part.length] = document[part.end - part.scored : part.end]
    return torch.from_numpy(ids), torch.from_numpy(targets)
