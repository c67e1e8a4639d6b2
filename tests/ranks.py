"""What the processes of tests/test_ranks.py do; importable without pytest, so that a fork server holds it ready."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from xdoge.corpus.store import TokenStore
from xdoge.distributed import Processes
from xdoge.fit.gradients.engine import GradientEngine
from xdoge.fit.gradients.placement import Placement, place
from xdoge.fit.gradients.products import SourceBatch, SourceProducts
from xdoge.fit.settings import FitSettings
from xdoge.fit.trainer import fit

VOCABULARY, LENGTH = 61, 9
WEIGHTS = np.array([0.1, 0.2, 0.3, 0.15, 0.25])
TARGETS = np.array([1.0, 1.0, 2.0, 0.5, 0.0])


def build(kind: str, dtype: torch.dtype) -> torch.nn.Module:
    """Return the same small model in every process."""
    torch.manual_seed(1)
    if kind == "gpt2":  # with dropout off, biases, positions looked up, a tied head
        none = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
        config: Any = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, n_positions=32, **none)
        return GPT2LMHeadModel(config).to(dtype)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=kind == "tied",
    )
    return LlamaForCausalLM(config).to(dtype)


def rows_of(counts: tuple[int, ...]) -> list[torch.Tensor]:
    """Return the rows of each source, (n_j, T). There are so few tokens that processes look up different ones."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, VOCABULARY, (n, LENGTH), generator=generator) for n in counts]


def run(case: dict[str, Any], processes: Processes, placement: Placement) -> tuple[SourceProducts, torch.Tensor]:
    """Return the products that one process computes, and the gradient that it gets."""
    model = build(case["model"], case["dtype"])
    start, own = placement.before(processes.rank), placement.rows[processes.rank]
    rows = [part[a : a + n] for part, a, n in zip(rows_of(case["counts"]), start, own, strict=True)]
    engine = GradientEngine(model, len(own), processes=processes, chunk_bytes=case.get("chunk_bytes", 4096))
    products = engine.backward(
        SourceBatch(torch.cat(rows), tuple(own.tolist())),
        weights=WEIGHTS,
        targets=TARGETS,
        placement=placement,
        **case.get("how", {}),
    )
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return products, torch.cat([grad.flatten() for grad in grads])


def fit_twice(rank: int, count: int, port: int, store: str, recipe: str, folder: str) -> None:
    """Run two fits one after the other in the same process, as in a script that torchrun started."""
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()})
    opened = TokenStore.open(store)
    settings = FitSettings.for_store(opened, {"proxy": recipe, "steps": 2})
    for run in ("first", "second"):
        fit(opened, settings, out=Path(folder, run))


def work(rank: int, count: int, cases: list[dict[str, Any]], folder: str) -> None:
    """Run every case as one of `count` processes, and write the results."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=rank,
        world_size=count,
        timeout=datetime.timedelta(seconds=60),
    )
    processes = Processes(rank, count, "cpu")
    for number, case in enumerate(cases):
        placement = place(np.array(case["counts"]), count)
        torch.save(run(case, processes, placement), Path(folder, f"{number}-{rank}.pt"))
    processes.end_group_at_exit()
