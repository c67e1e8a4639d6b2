"""The model that training starts from: a recipe with random weights, or a pre-trained causal language model."""

from __future__ import annotations

import difflib
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdoge.errors import XDogeError, argument
from xdoge.models.flops import training_flops
from xdoge.models.recipes import Recipe, load_recipe, recipe_names
from xdoge.models.resolver import CausalModel, parameter_count
from xdoge.models.tokenizers import check_tokenizer
from xdoge.models.weight_files import foreign_errors

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
"""Peak learning rate by number of parameters, as for GPT-3 (Brown et al. 2020, arXiv:2005.14165, table 2.1)."""

REWARM = 0.5
"""Peak learning rate of continual pre-training, as a share of the peak in pre-training.

A new warm-up and cosine decay follow Ibrahim et al. 2024 (arXiv:2403.08763). They and Gupta et al. 2023
(arXiv:2308.04014) find that a higher peak adapts more and forgets more. One half is our choice, to forget less.
"""


@dataclass(frozen=True)
class InitialModel:
    """The model that training starts from. Either `recipe` or `model` is set.

    Attributes:
        name: name that the user gave.
        recipe: recipe of a new model.
        model: pre-trained causal language model.
    """

    name: str
    recipe: Recipe | None = None
    model: CausalModel | None = None

    @classmethod
    def find(cls, name: str) -> InitialModel:
        """Return the recipe or the model of a name. No weights are loaded yet.

        Raises:
            XDogeError: the name is neither a recipe nor a causal language model that can be trained.
        """
        if name in recipe_names() or Path(name).suffix in (".yaml", ".yml"):
            return cls(name, recipe=load_recipe(name))
        recipe = f"a recipe ({', '.join(recipe_names())}, or a .yaml file)"
        if not Path(name).exists() and (near := difflib.get_close_matches(name, recipe_names(), n=1)):
            raise XDogeError(f"model {name!r} is not {recipe} or a folder; did you mean {near[0]}?")
        model = CausalModel.find(name, kinds=f"{recipe}, ")
        if getattr(model.config, "quantization_config", None):
            raise XDogeError(f"model {name!r} is quantised; train the one in full precision that it was made from.")
        return cls(name, model=model)

    def defaults(self) -> dict[str, Any]:
        """Return default settings for training this model."""
        if self.model is None:
            return {key: getattr(self.recipe, key) for key in ("sequence_length", "batch_size", "learning_rate")}
        return {
            "sequence_length": self.model.default_length,
            "batch_size": 32,
            "learning_rate": REWARM * peak_learning_rate(self._parameters()),
            "warmup": 0.01,  # from 0 to 2 % made no lasting difference (Gupta et al. 2023, section 4.1)
        }

    def training_flops(self, tokens: int, *, sequence_length: int, vocab_size: int) -> int:
        """Return the FLOPs of training on `tokens` tokens: exact for a Llama, 6 N per token for other models.

        Args:
            tokens: all tokens of all sequences.
            sequence_length: T, tokens per sequence.
            vocab_size: vocabulary of the store's tokenizer, for a recipe. A pre-trained model has its own.
        """
        if self.model is None:
            assert self.recipe is not None
            return training_flops(self.recipe, tokens, sequence_length=sequence_length, vocab_size=vocab_size)
        config = self.model.config.get_text_config()
        if config.model_type != "llama":
            return 6 * self._parameters() * tokens
        return training_flops(config, tokens, sequence_length=sequence_length, vocab_size=config.vocab_size)

    def _parameters(self) -> int:
        assert self.model is not None
        with foreign_errors(f"the model that {self.name}/config.json describes cannot be made"):
            return parameter_count(self.model.config)

    def check(self, store: TokenStore, sequence_length: int) -> None:
        """Raise an error if a pre-trained model cannot be trained on a store.

        Raises:
            XDogeError: the store has another tokenizer or a larger vocabulary, or `sequence_length` is too long.
        """
        if self.model is None:
            return
        self.model.check_length("sequence_length", sequence_length)
        name = self.model.name
        advice = f"Prepare the text again with `tokenizer: {{huggingface: {name}}}` in corpus.yaml."
        check_tokenizer(store, name, advice=advice)
        size = self.model.config.get_text_config().vocab_size
        if store.vocab_size > size:
            raise XDogeError(
                f"{name} has an embedding for {size:,} tokens, but its tokenizer makes "
                f"{store.vocab_size:,}; enlarge it with resize_token_embeddings of transformers."
            )

    def build(self, store: TokenStore, *, sequence_length: int, seed: int) -> Any:
        """Return the model to train, on the CPU in float32.

        Args:
            store: store to train on, whose vocabulary a new model gets.
            sequence_length: T, tokens per sequence.
            seed: seed of a new model's random weights.

        Raises:
            XDogeError: the weights cannot be loaded, or are not those of a causal language model.
        """
        if self.model:
            return self.model.load(length=sequence_length)
        assert self.recipe is not None
        recipe = self.recipe.model_copy(update={"sequence_length": sequence_length})
        model = recipe.build(vocab_size=store.vocab_size, seed=seed)
        model.config.eos_token_id = model.generation_config.eos_token_id = store.end_of_document
        return model

    def to_config(self) -> dict[str, Any]:
        """Return the entry for config.yaml."""
        if self.recipe:
            return self.recipe.model_dump(mode="json")
        return {"architecture": self.model.config.model_type} if self.model else {}

    def pin(self) -> dict[str, Any]:
        """Return what identifies a pre-trained model's weights: SHA-256 of its files, or its commit on the Hub."""
        return self.model.pin() if self.model else {}


def peak_learning_rate(parameters: int) -> float:
    """Return the peak learning rate of the nearest size in `PEAKS`."""
    return PEAKS[min(PEAKS, key=lambda size: abs(math.log(parameters / size)))]


def freeze(model: torch.nn.Module, train_only: str | None) -> tuple[int, int]:
    """Freeze all parameters whose names do not match a pattern. Return the numbers of trained and frozen parameters.

    Args:
        model: model to change.
        train_only: regular expression that is searched in the names. None trains all parameters.

    Raises:
        XDogeError: the pattern is not a regular expression, or matches no name.
    """
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):  # tied parameters have two names
        names.setdefault(id(parameter), []).append(name)
    if train_only is not None:
        try:
            pattern = re.compile(train_only)
        except re.error as error:
            raise XDogeError(
                f"{argument('train_only')} {train_only!r} is not a valid regular expression: {error}."
            ) from error
        for parameter in model.parameters():
            parameter.requires_grad_(any(pattern.search(name) for name in names[id(parameter)]))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if not trained:
        sample = [spellings[0] for spellings in names.values()]
        raise XDogeError(
            f"{argument('train_only')} {train_only!r} matches no parameter name, such as {', '.join(sample[:3])}."
        )
    return trained, sum(parameter.numel() for parameter in model.parameters()) - trained


def layers_trained(model: torch.nn.Module) -> tuple[int, int]:
    """Return the number of layers with a trained parameter, and the number of all layers."""
    layers: dict[str, bool] = {}
    for name, parameter in model.named_parameters():
        if layer := re.match(r".*?\.\d+\.", name):
            layers[layer[0]] = layers.get(layer[0], False) or parameter.requires_grad
    return sum(layers.values()), len(layers)
