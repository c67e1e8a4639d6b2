"""Estimated cost of a swarm on a node of 8 GPUs: kernels, bytes and FLOPs of a training step, and hours.

    python benchmarks/swarm.py [--flops 600e12] [--bandwidth 3.0e12] [--launch 6e-6]

Nothing runs on a GPU. One training step of a swarm runs on tensors without data. Every operation that is not a view
counts as one kernel, with the bytes of the tensors that it reads and writes. Attention counts as one kernel that reads
its inputs and writes its outputs. The device needs FLOPs / rate + bytes / bandwidth, assuming that the two do not
overlap. The host needs kernels × launch. A step takes the longer of both times.

If M models were stacked along a leading dimension, their step would launch as many kernels as one model, and move the
bytes of all. A model's part of the step would then be the device's time, or the host's divided by M. The last line of
output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from xdoge.models.flops import training_flops
from xdoge.models.recipes import load_recipe


class Count(TorchDispatchMode):
    """Counts kernels, and the bytes that they read and write."""

    kernels, moved = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        out = func(*args, **(kwargs or {}))
        is_view = any(part.alias_info and not part.alias_info.is_write for part in func._schema.returns)
        tensors = [part for part in tree_leaves((args, kwargs, out)) if isinstance(part, torch.Tensor)]
        if not is_view and tensors and "detach" not in str(func) and "empty" not in str(func):
            self.kernels += 1
            self.moved += sum(part.numel() * part.element_size() for part in tensors)
        return out


class Attention(torch.autograd.Function):
    """A stand-in for fused attention: reads q, k and v and writes as much as q, likewise in the backward pass."""

    @staticmethod
    def forward(ctx: Any, q: Any, k: Any, v: Any) -> Any:
        """Return a tensor with the shape of q."""
        return torch.ops.aten.addcmul(q, k, v)

    @staticmethod
    def backward(ctx: Any, grad: Any) -> Any:
        """Return three gradients."""
        return torch.ops.aten.addcmul(grad, grad, grad), torch.ops.aten.mul(grad, grad), torch.ops.aten.mul(grad, grad)


def step(recipe_name: str, vocab_size: int) -> dict[str, float]:
    """Return kernels, bytes and FLOPs of one step, and its tokens."""
    recipe = load_recipe(recipe_name)
    batch, length = recipe.batch_size, recipe.sequence_length
    with torch.device("meta"):
        model = recipe.build(vocab_size=vocab_size, seed=0).to("meta", torch.bfloat16)
        rows = torch.zeros((batch, length), dtype=torch.int64)
        mask = torch.ones((1, 1, length - 1, length - 1), dtype=torch.bool)  # else the model computes one from data
    F.scaled_dot_product_attention = lambda q, k, v, **_: Attention.apply(q, k, v)  # type: ignore[assignment]
    with Count() as count:
        logits = model(input_ids=rows[:, :-1], attention_mask=mask, use_cache=False).logits
        F.cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten()).backward()
    tokens = batch * length
    flops = training_flops(recipe, tokens, sequence_length=length, vocab_size=vocab_size)
    moved = count.moved + 40 * sum(part.numel() for part in model.parameters())  # AdamW in float32
    return {"kernels": count.kernels, "bytes": moved, "flops": flops, "tokens": tokens, "steps": recipe.steps}


def main() -> None:
    """Count, then print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flops", type=float, default=600e12, help="of a GPU, where matrices are large")
    parser.add_argument("--bandwidth", type=float, default=3.0e12, help="bytes/s of its memory")
    parser.add_argument("--launch", type=float, default=6e-6, help="seconds of the host for a kernel")
    options = parser.parse_args()
    results = []
    for name in ("15m", "60m"):
        for vocab_size in (32_000, 128_000):
            row: dict[str, Any] = {"proxy": name, "vocab_size": vocab_size, **step(name, vocab_size)}
            computing, moving = row["flops"] / options.flops, row["bytes"] / options.bandwidth
            host = row["kernels"] * options.launch
            row |= {"computing_ms": 1e3 * computing, "moving_ms": 1e3 * moving, "host_ms": 1e3 * host}
            seconds = max(computing + moving, host)
            row["tflops"] = row["flops"] / seconds / 1e12
            row["gain_of_batching"] = seconds / (computing + moving)
            row["hours_40"], row["hours_64"] = (row["steps"] * seconds * -(-runs // 8) / 3600 for runs in (40, 64))
            print(", ".join(f"{key} {value:,.4g}" if key != "proxy" else value for key, value in row.items()))
            results.append(row)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
