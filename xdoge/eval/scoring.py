"""What each document costs a causal language model: windows, batches of like length, and the sums of all processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from xdoge.distributed import Processes
from xdoge.errors import MissingExtraError, XDogeError
from xdoge.models.memory import memory_errors

if TYPE_CHECKING:
    import torch


class Window(NamedTuple):
    """Inputs [start, end) of a document that its begin token stands before; the last `scored` of them predict."""

    document: int
    start: int
    end: int
    scored: int

    @property
    def length(self) -> int:
        """Number of inputs."""
        return self.end - self.start


def windows(document: int, tokens: int, *, window: int, stride: int) -> Iterator[Window]:
    """Yield the windows that score each of a document's tokens once, in order.

    The first scores as many as fit, each further one the next `stride`, or what is left; all but the first are
    `window` long.
    """
    done, end = 0, min(window, tokens)
    while done < tokens:
        yield Window(document, max(0, end - window), end, end - done)
        done, end = end, min(end + stride, tokens)


def batches(found: Sequence[Window], *, batch_tokens: int) -> Iterator[list[Window]]:
    """Yield windows in groups of like length, longest first, each of at most `batch_tokens` with its padding.

    A window longer than that is a batch of its own.
    """
    ordered = sorted(found, key=lambda one: -one.length)
    start = 0
    while start < len(ordered):
        rows = max(1, batch_tokens // ordered[start].length)
        yield ordered[start : start + rows]
        start += rows


@dataclass(frozen=True)
class CausalModel:
    """A causal language model by its folder or its name on the Hub, with the configuration transformers reads."""

    name: str
    config: Any

    @classmethod
    def find(cls, name: str) -> Self:
        """Return the model of that name; no weights are loaded yet.

        Raises:
            XDogeError: it cannot be read, or is no causal language model.
        """
        try:
            from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
        except ImportError as error:
            raise MissingExtraError("transformers", "proxy") from error
        if not Path(name).exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
            raise XDogeError(f"{name} does not exist.")
        if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
            inside = [str(file.parent) for file in sorted(Path(name).glob("*/config.json"))]
            hint = f"; a model lies in {' and '.join(inside)}" if inside else ""
            raise XDogeError(f"{name} is no model: it has no config.json{hint}.")
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            message = " ".join(str(error).split())[:200]
            raise XDogeError(f"model {name!r} cannot be read as a folder or a name on the Hub: {message}") from error
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise XDogeError(f"model {name!r} is a {config.model_type}, which is no causal language model.")
        return cls(name, config)

    @property
    def context(self) -> int | None:
        """Longest sequence the model takes; None where it has no limit."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None)

    @property
    def begin(self) -> int | None:
        """The token that begins a text; None where the model has none."""
        return getattr(self.config.get_text_config(), "bos_token_id", None)

    def identity(self) -> dict[str, Any]:
        """Return what shows that the model changed: sizes and times of its files, or the commit on the Hub."""
        if not Path(self.name).is_dir():
            return {"name": self.name, "commit": getattr(self.config, "_commit_hash", None)}
        files = [file for file in sorted(Path(self.name).iterdir()) if file.suffix in (".safetensors", ".bin", ".json")]
        return {"files": {file.name: [file.stat().st_size, file.stat().st_mtime_ns] for file in files}}

    def load(self, processes: Processes, precision: str, *, split: bool) -> LoadedModel:
        """Return the model with its weights, on this process's device or, to `split`, over all GPUs.

        Raises:
            XDogeError: the weights cannot be loaded.
            MemoryFullError: the device has no room for them.
        """
        from pickle import UnpicklingError

        import torch
        from transformers import AutoModelForCausalLM

        options = {"device_map": "auto"} if split else {}
        way_out = "split spreads it over the GPUs of one process (--set device=split), and bfloat16 halves it"
        try:
            with memory_errors(f"while loading {self.name}; {way_out}"):
                model: Any = AutoModelForCausalLM.from_pretrained(
                    self.name, dtype=getattr(torch, precision), trust_remote_code=False, **options
                )
                model = (model if split else model.to(processes.device)).eval()
        except (OSError, ValueError, RuntimeError, UnpicklingError) as error:
            message = " ".join(str(error).split())[:200]
            raise XDogeError(f"the weights of {self.name} cannot be loaded: {message}") from error
        return LoadedModel(self.name, model)


class LoadedModel:
    """A causal language model with its weights, ready to score."""

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
            documents: tokens of each.
            begin: token that stands before each document.
            window: tokens the model sees at once.
            stride: tokens scored by each window of a document but its first.
            batch_tokens: tokens in a batch, at most.
            share: rank and count: only every count-th batch is scored, the others add 0.
            on_batch: called with the tokens scored so far, by all processes if they go at the same pace.

        Raises:
            XDogeError: a token is not in the model's vocabulary.
            MemoryFullError: a batch is too large for the device.
        """
        import torch

        largest = max((int(document.max()) for document in documents if len(document)), default=0)
        size = self.model.get_input_embeddings().weight.shape[0]
        if max(begin, largest) >= size:
            raise XDogeError(
                f"{self.name} has an embedding for {size:,} tokens, and its tokenizer made the token "
                f"{max(begin, largest):,}; these are not the files of one model."
            )
        found = [
            one
            for number, document in enumerate(documents)
            for one in windows(number, len(document), window=window, stride=stride)
        ]
        rank, count = share
        nats, done = np.zeros(len(documents)), 0
        limits = memory_errors(f"while scoring {batch_tokens:,} tokens at once with {self.name}; lower batch_tokens")
        with torch.inference_mode(), limits:
            for turn, batch in enumerate(batches(found, batch_tokens=batch_tokens)):
                done += sum(one.scored for one in batch)
                if turn % count == rank:
                    owners, losses = self._losses(*_tensors(documents, batch, begin))
                    nats += np.bincount(np.array([one.document for one in batch])[owners], losses, len(nats))
                    on_batch(done)
        return nats

    def _losses(self, ids: torch.Tensor, targets: torch.Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return row and cross-entropy of every target that is not -1, from (B, T) inputs and targets: (n,), (n,)."""
        from xdoge.models.loss import plain_head, token_nats

        device = self.model.device
        # right of a row's inputs is padding; a mask costs time, and few batches of like length need one
        padded = bool((ids == -1).any())
        options = {"attention_mask": (ids != -1).long().to(device)} if padded else {}
        keep = targets != -1  # (B, T)
        ids = ids.clamp(min=0).to(device)
        if not self._tried:  # once: then the head is applied to the scored positions alone
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
    """Return inputs and targets of a batch, (B, T) each; -1 where there is none."""
    import torch

    ids = np.full((len(batch), max(one.length for one in batch)), -1)
    targets = ids.copy()
    for row, one in enumerate(batch):
        document = documents[one.document]
        first = max(0, one.start - 1)
        ids[row, one.length - (one.end - 1 - first) : one.length] = document[first : one.end - 1]
        if one.start == 0:
            ids[row, 0] = begin
        targets[row, one.length - one.scored : one.length] = document[one.end - one.scored : one.end]
    return torch.from_numpy(ids), torch.from_numpy(targets)
