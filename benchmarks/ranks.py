"""Tokens per second and bytes sent in a step of a fit, on one process and on several.

Each process has one thread and computes its part of the same global batch (strong scaling). gloo sends the messages
over the loopback interface. The contestants take turns within each repetition. Each time is the wall-clock time of the
slowest process, as the median over repetitions. Ratios are relative to the first number of processes.

    data parallel   plain training: a backward pass, then an all-reduce of all gradients
    fit             xdoge.fit.gradients.engine.GradientEngine.backward
    fit, gram       the same with all inner products between sources

The bytes sent are those that enter all-reduces. A ring sends each of them 2 (R - 1) / R times. The last line of output
is one JSON object.

    python benchmarks/ranks.py [RECIPE] [PROCESSES ...]     default: 1m 1 2, about a minute
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import time
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM

from xdoge.distributed import Processes
from xdoge.fit.gradients.engine import GradientEngine
from xdoge.fit.gradients.placement import place
from xdoge.fit.gradients.products import SourceBatch
from xdoge.models.recipes import load_recipe

SOURCES, ROWS, TOKENS, VOCABULARY, REPETITIONS = 28, 2, 64, 16384, 3


def work(rank: int, count: int, port: int, recipe: str, queue: Any) -> None:
    """Time steps as one of `count` processes. Rank 0 reports the times of the slowest process."""
    torch.set_num_threads(1)
    if count > 1:
        address = f"tcp://127.0.0.1:{port}"
        torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=count)
    processes = Processes(rank, count, "cpu")
    model = load_recipe(recipe).build(vocab_size=VOCABULARY, seed=0)
    counts = np.full(SOURCES, ROWS)
    placement = place(counts, count)
    own = placement.rows[rank]
    ids = torch.randint(0, VOCABULARY, (int(own.sum()), TOKENS), generator=torch.Generator().manual_seed(rank))
    engine, batch = GradientEngine(model, SOURCES, processes=processes), SourceBatch(ids, tuple(own.tolist()))
    alpha, tau = np.full(SOURCES, 1 / SOURCES), np.ones(SOURCES)
    steps = {
        "data parallel": lambda: plain(model, ids, processes),
        "fit": lambda: engine.backward(batch, weights=alpha, targets=tau, placement=placement),
        "fit, gram": lambda: engine.backward(batch, weights=alpha, targets=tau, placement=placement, gram=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    sent = {"data parallel": 4 * sum(p.numel() for p in model.parameters())}
    for repetition in range(REPETITIONS + 1):
        for name, step in steps.items():
            model.zero_grad(set_to_none=True)
            processes.all_reduce_max(0)
            began = time.perf_counter()
            step()
            taken = processes.all_reduce_max(int(1e6 * (time.perf_counter() - began))) / 1e6
            sent.setdefault(name, engine.message_bytes)
            if repetition:
                seconds[name].append(taken)
    if rank == 0:
        split = int(placement.split.sum())
        queue.put({"seconds": seconds, "sent": sent, "split": split, "parameters": sent["data parallel"] // 4})
    processes.end_group_at_exit()


def plain(model: LlamaForCausalLM, ids: torch.Tensor, processes: Processes) -> None:
    """Run a plain data-parallel step with one all-reduce of all gradients."""
    model(input_ids=ids, labels=ids).loss.backward()
    if processes.world_size > 1:
        flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        processes.wait(processes.all_reduce_async(flat))


def measure(count: int, recipe: str) -> dict[str, Any]:
    """Return the measurements of a group of processes."""
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    jobs = [context.Process(target=work, args=(rank, count, port, recipe, queue)) for rank in range(count)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    measured: dict[str, Any] = queue.get()
    return measured


def main() -> None:
    """Measure, then print a table and one JSON object."""
    recipe = sys.argv[1] if len(sys.argv) > 1 else "1m"
    counts = [int(text) for text in sys.argv[2:]] or [1, 2]
    measured = {count: measure(count, recipe) for count in counts}
    tokens = SOURCES * ROWS * TOKENS
    print(f"{recipe}, {measured[counts[0]]['parameters']:,} parameters; k = {SOURCES}, {tokens:,} tokens a step")
    alone = measured[counts[0]]["seconds"]
    for count, result in measured.items():
        for name, taken in result["seconds"].items():
            seconds = statistics.median(taken)
            ratio = statistics.median(alone[name]) / seconds
            sent = result["sent"][name] / result["parameters"] / 4 if count > 1 else 0
            print(
                f"{count} processes  {name:>13}  {tokens / seconds:9,.0f} tokens/s  × {ratio:.2f}  "
                f"sent {sent:.2f} × parameters"
            )
    print(json.dumps({"recipe": recipe, "tokens": tokens, "processes": measured}))


if __name__ == "__main__":
    main()
