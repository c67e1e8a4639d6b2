"""Models and tokenizers that are small enough for tests."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def sharpened(model, factor=8):
    """Fresh weights predict all tokens alike; larger ones leave something to be wrong about."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(factor)
    return model


def save_llama(folder, *, factor=8, **config):
    """Save a Llama with random weights."""
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    sharpened(LlamaForCausalLM(LlamaConfig(**shape | config)), factor).save_pretrained(folder)


def save_byte_tokenizer(folder, **options):
    """Save a tokenizer whose tokens are <s>, </s> and the 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", **options).save_pretrained(folder)
