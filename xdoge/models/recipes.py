"""Recipes of proxy models: small Llamas whose gradients determine the weights.

A recipe is a YAML file with the shape of a Llama, and training settings for its size. xdoge has its own recipes in
`recipes/`, and users can write more. Intermediate sizes are 8/3 of the width, rounded up to a multiple of 16, 32 or 64.
With SwiGLU this gives as many parameters as an MLP of four times the width (Shazeer 2020, arXiv:2002.05202).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Self

from pydantic import Field, model_validator

from xdoge.config import Config
from xdoge.errors import XDogeError, importing

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

_FOLDER = Path(__file__).with_name("recipes")


class Recipe(Config):
    """The shape of a proxy model, and training settings for its size."""

    name: str
    about: str = ""
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    layers: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int | None = Field(
        default=None, gt=0, description="number of key/value heads; if left out, as many as heads"
    )
    tie_embeddings: bool = True
    rope_theta: float = Field(default=10_000.0, gt=0)
    sequence_length: int = Field(ge=2, description="tokens per sequence")
    batch_size: int = Field(gt=0, description="sequences per step")
    steps: int = Field(gt=0)
    learning_rate: float = Field(gt=0, description="peak")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.hidden_size % self.heads or (self.hidden_size // self.heads) % 2:
            raise ValueError(
                f"hidden_size {self.hidden_size} over {self.heads} heads is not an even number, which "
                "rotary positions need"
            )
        if self.heads % (self.kv_heads or self.heads):
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        return self

    @property
    def non_embedding_parameters(self) -> int:
        """Number of parameters in all layers and norms, without the embedding and the head."""
        head_size = self.hidden_size // self.heads
        attention = 2 * self.hidden_size * head_size * (self.heads + (self.kv_heads or self.heads))
        mlp = 3 * self.hidden_size * self.intermediate_size
        return self.layers * (attention + mlp + 2 * self.hidden_size) + self.hidden_size

    def parameters(self, vocab_size: int) -> int:
        """Return the number of all parameters. An embedding that is tied to the head counts once."""
        embedding = vocab_size * self.hidden_size
        return self.non_embedding_parameters + embedding * (1 if self.tie_embeddings else 2)

    def build(self, *, vocab_size: int, seed: int) -> LlamaForCausalLM:
        """Return a new model with random weights, on the CPU in float32. torch's global generator is not changed."""
        with importing("proxy"):
            import torch
            from transformers import LlamaConfig, LlamaForCausalLM
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads or self.heads,
            max_position_embeddings=self.sequence_length,
            tie_word_embeddings=self.tie_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return LlamaForCausalLM(config)


def recipe_names() -> list[str]:
    """Return the names of xdoge's recipes, smallest first."""
    return sorted((path.stem for path in _FOLDER.glob("*.yaml")), key=lambda name: int(name.removesuffix("m")))


def load_recipe(name: str) -> Recipe:
    """Return one of xdoge's recipes by its name, or the recipe in a YAML file.

    Raises:
        XDogeError: there is no such recipe or file, or the file is not a recipe.
    """
    if name in recipe_names():
        return Recipe.load(_FOLDER / f"{name}.yaml")
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        raise XDogeError(
            f"recipe {name!r} is unknown; the recipes are {', '.join(recipe_names())}, or name a .yaml file."
        )
    return Recipe.load(path)
