"""FLOPs of training a Llama, and of the inner products of its sources' gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xdoge.errors import XDogeError
from xdoge.models.recipes import Recipe

if TYPE_CHECKING:
    from transformers import LlamaConfig


def training_flops(model: Recipe | LlamaConfig, tokens: int, *, sequence_length: int, vocab_size: int) -> int:
    """Return the FLOPs of training on `tokens` tokens, forward and backward, counted exactly.

    Each weight of a matrix costs 6 FLOPs per token: 2 in the forward pass, and 2 each for the gradients of the input
    and of the weight. The two products of attention, QKᵀ and scores × V, cost 6 T each per channel of all heads. With L
    layers of width d, MLP width f, H heads and K key/value heads of size h, and a vocabulary of V:

        per token   6 (L (2 d h (H + K) + 3 d f) + V d) + 12 L H h T

    The head costs V d whether it is tied or not, and the embedding look-up costs nothing. Attention is counted over all
    T tokens, although some kernels skip the masked half. Norms, activations, rotary positions, softmax, the loss, the
    optimiser and recomputation are left out. `torch.utils.flop_counter.FlopCounterMode` gives the same count with eager
    attention. Hoffmann et al. 2022 (appendix F) also count softmax, and the embedding look-up as a product. Kaplan et
    al. 2020 (eq. 2.2) count half of the attention.

    A step of `fit-weights` costs this too. `product_flops` counts the additional FLOPs of its inner products.

    Args:
        model: a recipe, or the configuration of a Llama in transformers.
        tokens: D, all tokens of all sequences.
        sequence_length: T, tokens per sequence.
        vocab_size: V.

    Raises:
        XDogeError: the configuration is not that of a Llama.
    """
    if isinstance(model, Recipe):
        layers, d, f, heads = model.layers, model.hidden_size, model.intermediate_size, model.heads
        kv_heads, head_size = model.kv_heads or heads, d // heads
    elif model.model_type == "llama":
        layers, d, f = model.num_hidden_layers, model.hidden_size, model.intermediate_size
        heads = model.num_attention_heads
        kv_heads, head_size = model.num_key_value_heads or heads, model.head_dim or d // heads
    else:
        raise XDogeError(f"the FLOPs of a {model.model_type} model are not known, only those of a llama.")
    weights = layers * (2 * d * head_size * (heads + kv_heads) + 3 * d * f) + vocab_size * d
    return tokens * (6 * weights + 12 * layers * heads * head_size * sequence_length)


def product_flops(
    parameters: int, *, sources: int, steps: int, halves: bool = True, directions: int = 2, maps: int = 0
) -> int:
    """Return the FLOPs of the inner products between the sources' gradients. They do not depend on the batch size.

    For each gradient of P parameters and each direction, the product of the two and adding the gradient to the
    direction cost 4 P. In steps that measure all inner products between sources, each costs 2 P. `FlopCounterMode`
    agrees within 20 % for the recipe `1m`.

    Args:
        parameters: P, all parameters of the proxy.
        sources: k, number of sources.
        steps: steps of the fit.
        halves: whether each source has two gradients, one for each half of its sequences.
        directions: number of weighted sums of gradients with which products are computed. These can be the training
            gradient, the targets and reference weights.
        maps: number of steps that measure all inner products between sources (`gram_every`).
    """
    gradients = sources * (1 + halves)
    return parameters * (4 * gradients * directions * steps + 2 * gradients**2 * maps)
