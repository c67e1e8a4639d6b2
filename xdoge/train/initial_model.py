"""Where training starts: a recipe's fresh weights, or a causal language model that was trained before."""

from __future__ import annotations

import difflib
import inspect
import math
import re
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

from xdoge.corpus.tokenizer import huggingface
from xdoge.errors import MissingExtraError, XDogeError
from xdoge.io import sha256_file
from xdoge.models.recipes import Recipe, load_recipe, recipe_names

if TYPE_CHECKING:
    import torch

    from xdoge.corpus.store import TokenStore

PEAKS = {
    125e6: 6.0e-4,
    350e6: 3.0e-4,
    760e6: 2.5e-4,
    1.3e9: 2.0e-4,
    2.7e9: 1.6e-4,
    6.7e9: 1.2e-4,
    13e9: 1.0e-4,
    175e9: 0.6e-4,
}
"""Peak learning rate by parameters, as GPT-3 was trained (Brown et al. 2020, arXiv:2005.14165, table 2.1)."""

REWARM = 0.5
"""Share of the peak that continual pre-training re-warms to.

Warm-up and cosine decay anew are those of Ibrahim et al. 2024 (arXiv:2403.08763), who find that a higher peak adapts
more and forgets more, as Gupta et al. 2023 (arXiv:2308.04014) did before. Half is a choice of ours, on the side of
forgetting less.
"""

CONTEXT = 2048
"""Tokens per sequence of continual pre-training, where the model's context is not shorter."""


@dataclass(frozen=True)
class Start:
    """A recipe, or a model by its folder or its name on the Hub with the configuration that `transformers` reads."""

    name: str
    recipe: Recipe | None = None
    config: Any = None

    @classmethod
    def find(cls, name: str) -> Start:
        """Return the start of that name; no weights are loaded yet.

        Raises:
            XDogeError: it is no recipe, and no causal language model that can be trained.
        """
        if name in recipe_names() or Path(name).suffix in (".yaml", ".yml"):
            return cls(name, recipe=load_recipe(name))
        folder = Path(name)
        if folder.is_dir() and not (folder / "config.json").is_file():
            inside = [str(file.parent) for file in sorted(folder.glob("*/config.json"))]
            hint = f"; a model lies in {' and '.join(inside)}" if inside else ""
            raise XDogeError(f"model {name!r} is no model: it has no config.json{hint}.")
        if not folder.exists() and (name.startswith((".", "/", "~")) or name.count("/") > 1):
            raise XDogeError(f"model {name!r} does not exist.")
        recipes = f"is no recipe ({', '.join(recipe_names())}, or a .yaml file), no folder"
        if not folder.exists() and (near := difflib.get_close_matches(name, recipe_names(), n=1)):
            raise XDogeError(f"model {name!r} {recipes}; did you mean {near[0]}?")
        try:
            from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig
        except ImportError as error:
            raise MissingExtraError("transformers", "proxy") from error
        try:
            config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        except (OSError, ValueError) as error:
            what = (
                "is a folder that cannot be read as a model" if folder.is_dir() else f"{recipes}, no model on the Hub"
            )
            raise XDogeError(f"model {name!r} {what}: {shorten(str(error), 200)}") from error
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise XDogeError(f"model {name!r} is a {config.model_type}, which is no causal language model.")
        if getattr(config, "quantization_config", None):
            raise XDogeError(f"model {name!r} is quantised; train the one in full precision that it was made from.")
        return cls(name, config=config)

    @property
    def context(self) -> int | None:
        """Longest sequence that a trained model takes; None where it has no limit, as for a recipe."""
        return getattr(self.config.get_text_config(), "max_position_embeddings", None) if self.config else None

    def defaults(self) -> dict[str, Any]:
        """Return the settings that suit this start."""
        if self.recipe:
            return {key: getattr(self.recipe, key) for key in ("sequence_length", "batch_size", "learning_rate")}
        return {
            "sequence_length": min(self.context or CONTEXT, CONTEXT),
            "batch_size": 32,
            "learning_rate": REWARM * peak_learning_rate(self._parameters()),
            "warmup": 0.01,  # from 0 to 2 % made no lasting difference (Gupta et al. 2023, section 4.1)
        }

    def _parameters(self) -> int:
        import torch
        from transformers import AutoModelForCausalLM

        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(self.config)  # type: ignore[no-untyped-call]
        return sum(parameter.numel() for parameter in model.parameters())

    def check_context(self, sequence_length: int) -> None:
        """Refuse sequences that a trained model cannot take.

        Raises:
            XDogeError: they are longer than its context.
        """
        if self.context is not None and sequence_length > self.context:
            raise XDogeError(
                f"sequence_length {sequence_length:,} is longer than the context of {self.name}, {self.context:,}; "
                "lower it or leave it out."
            )

    def check(self, store: TokenStore, sequence_length: int) -> None:
        """Refuse a store that a trained model cannot go on with.

        Raises:
            XDogeError: its tokens are another tokenizer's, do not fit the vocabulary, or sequences are too long.
        """
        if self.recipe:
            return
        self.check_context(sequence_length)
        fingerprint = self._tokenizer_fingerprint(store.tokenizer_fingerprint)
        if fingerprint != store.tokenizer_fingerprint:
            raise XDogeError(
                f"{store.path} was prepared with another tokenizer ({store.tokenizer_fingerprint[:12]}) than that of "
                f"{self.name} ({fingerprint[:12]}), so its tokens mean something else to the model. Prepare the text "
                f"again with `tokenizer: {{huggingface: {self.name}}}` in corpus.yaml."
            )
        size = self.config.get_text_config().vocab_size
        if store.vocab_size > size:
            raise XDogeError(
                f"{self.name} has an embedding for {size:,} tokens, and its tokenizer makes {store.vocab_size:,}; "
                "resize_token_embeddings of transformers enlarges it."
            )

    def _tokenizer_fingerprint(self, wanted: str) -> str:
        """Return the fingerprint of the model's tokenizer, by its SentencePiece model if that is the one wanted."""
        folder = Path(self.name)
        if folder.is_dir():
            files = [path.name for path in folder.iterdir()]
            if not any(re.search(r"^(tokenizer|vocab|tiktoken)|\.model$", name) for name in files):
                raise XDogeError(
                    f"{self.name} has no tokenizer, so nothing says whether the store's tokens are its own; copy the "
                    "files of the tokenizer that it was trained with into that folder."
                )
            model = folder / "tokenizer.model"
            if model.is_file() and sha256_file(model) == wanted:
                return wanted
        return huggingface(self.name).fingerprint

    def build(self, store: TokenStore, *, sequence_length: int, seed: int) -> Any:
        """Return the model to train, on the CPU in float32.

        Raises:
            XDogeError: its weights cannot be loaded.
        """
        if self.recipe:
            recipe = self.recipe.model_copy(update={"sequence_length": sequence_length})
            model = recipe.build(vocab_size=store.vocab_size, seed=seed)
            model.config.eos_token_id = model.generation_config.eos_token_id = store.end_of_document
            return model
        from pickle import UnpicklingError

        import torch
        from transformers import AutoModelForCausalLM

        try:
            return AutoModelForCausalLM.from_pretrained(self.name, dtype=torch.float32, trust_remote_code=False)
        except (OSError, ValueError, RuntimeError, UnpicklingError) as error:
            message = " ".join(str(error).split())[:200]
            raise XDogeError(f"the weights of {self.name} cannot be loaded: {message}") from error

    def to_config(self) -> dict[str, Any]:
        """Return what config.yaml keeps of it."""
        return self.recipe.model_dump(mode="json") if self.recipe else {"architecture": self.config.model_type}

    def pin(self) -> dict[str, Any]:
        """Return what identifies the weights of a trained model: SHA-256 of its files, or the commit on the Hub."""
        if self.recipe:
            return {}
        if not Path(self.name).is_dir():
            return {"commit": getattr(self.config, "_commit_hash", None)}
        names = re.compile(r"config\.json|.*\.safetensors|pytorch_model.*\.bin")
        files = [path for path in sorted(Path(self.name).iterdir()) if names.fullmatch(path.name)]
        return {"sha256": {path.name: sha256_file(path) for path in files}}


def peak_learning_rate(parameters: int) -> float:
    """Return the peak of pre-training at the nearest size of `PEAKS`."""
    return PEAKS[min(PEAKS, key=lambda size: abs(math.log(parameters / size)))]


def check_documents(model: torch.nn.Module, documents: str) -> None:
    """Refuse documents apart where the model has no notion of positions to tell them by.

    Raises:
        XDogeError: it takes no position_ids.
    """
    if documents == "separate" and "position_ids" not in inspect.signature(model.forward).parameters:
        raise XDogeError(
            f"documents=separate needs a model that takes position_ids, and {type(model).__name__} does not; "
            "use documents=ignore."
        )


def freeze(model: torch.nn.Module, train_only: str | None) -> tuple[int, int]:
    """Freeze every parameter without a name in which the pattern is found; return how many are trained and frozen.

    Raises:
        XDogeError: the pattern is no regular expression, or is found in no name.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):  # tied ones have two
        names.setdefault(id(parameter), []).append(name)
    if train_only is not None:
        try:
            pattern = re.compile(train_only)
        except re.error as error:
            raise XDogeError(f"train_only {train_only!r} is no regular expression: {error}.") from error
        for parameter in model.parameters():
            parameter.requires_grad_(any(pattern.search(name) for name in names[id(parameter)]))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if not trained:
        some = [found[0] for found in names.values()]
        raise XDogeError(f"train_only {train_only!r} is found in no parameter's name, such as {', '.join(some[:3])}.")
    return trained, sum(parameter.numel() for parameter in model.parameters()) - trained


def layers_trained(model: torch.nn.Module) -> tuple[int, int]:
    """Return in how many layers a parameter is trained, and how many there are."""
    layers: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        if found := re.match(r".*?\.\d+\.", name):
            layers[found[0]] = layers.get(found[0], False) or parameter.requires_grad
    return sum(layers.values()), len(layers)
