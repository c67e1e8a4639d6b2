"""Time and memory of one pass for all sources' gradient products, relative to a plain training step on the same batch.

Three contestants run on one core in float32, without the optimiser's update, which is the same for all:

    plain      model(input_ids, labels=input_ids).loss.backward(), transformers' own loss
    one pass   GradientEngine.backward of xdoge.fit.gradients: gradient, scores, norms, products between halves
    reference  a backward pass per source into a k × P matrix, then scores and training gradient from the matrix

The contestants take turns within each repetition. Each figure is the median over repetitions of the ratio to plain in
the same repetition, with minimum and maximum. CPU time of one thread is measured, because it does not include other
work of the machine. Peak memory is measured in new processes, relative to the memory before the first step
(interpreter, libraries, weights). The last line of output is one JSON object.

    python benchmarks/step.py        about six minutes on an idle machine, 17 GB of memory
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

from xdoge.fit.gradients.engine import GradientEngine
from xdoge.fit.gradients.products import SourceBatch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from reference_gradients import source_gradients

MODELS: dict[str, dict[str, int]] = {
    "7M": {"vocab_size": 16384, "hidden_size": 192, "intermediate_size": 512, "num_attention_heads": 6},
    "42M": {"vocab_size": 32768, "hidden_size": 512, "intermediate_size": 1408, "num_attention_heads": 8},
}


@dataclass(frozen=True)
class Case:
    """One batch on one model."""

    name: str
    model: str
    n_sources: int
    rows_each: int
    n_tokens: int
    repetitions: int

    def __str__(self) -> str:
        batch = f"{self.n_sources * self.rows_each} × {self.n_tokens} tokens"
        return f"{self.name:>10}  {self.model:>3}  k = {self.n_sources:<3} {batch:<16}"


MAIN = [
    Case("k12", "7M", 12, 2, 256, 3),
    Case("k24", "42M", 24, 1, 64, 3),
    Case("k96", "42M", 96, 1, 32, 2),
]
HALVES = Case("k24 halves", "42M", 24, 2, 64, 1)  # two rows per source, for two halves
GROWTH = [Case("growth", "7M", k, 192 // k, 32, 1) for k in (6, 12, 24, 48, 96)]  # at least two rows per source

Step = Callable[[], object]


def build(case: Case) -> tuple[LlamaForCausalLM, SourceBatch]:
    """Return a new model with tied embeddings, and a batch of random tokens."""
    torch.manual_seed(0)
    config = LlamaConfig(**MODELS[case.model], num_hidden_layers=8, tie_word_embeddings=True)
    input_ids = torch.randint(0, config.vocab_size, (case.n_sources * case.rows_each, case.n_tokens))
    return LlamaForCausalLM(config), SourceBatch(input_ids, (case.rows_each,) * case.n_sources)


def contestants(case: Case, *, touch_matrix: bool = False) -> tuple[LlamaForCausalLM, dict[str, Step]]:
    """Return the model and each contestant's step."""
    model, batch = build(case)
    weights = np.random.default_rng(0).dirichlet(np.ones(case.n_sources))
    targets = np.ones(case.n_sources)

    def plain() -> None:
        model(input_ids=batch.input_ids, labels=batch.input_ids).loss.backward()

    matrix = torch.empty(case.n_sources, sum(p.numel() for p in model.parameters()))  # needs memory only when written
    if touch_matrix:
        matrix.zero_()

    def reference() -> torch.Tensor:
        grads = source_gradients(model, batch, out=matrix)[1]
        direction = torch.from_numpy(targets).float() @ grads
        trained = torch.from_numpy(weights).float() @ grads
        parameters = list(model.parameters())
        for parameter, grad in zip(parameters, trained.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = grad.view_as(parameter)
        return torch.stack([grads @ direction, torch.linalg.vector_norm(grads, dim=1) ** 2])

    one_pass = partial(GradientEngine(model, case.n_sources).backward, batch, weights=weights, targets=targets)
    return model, {
        "plain": plain,
        "one pass": one_pass,
        "without halves": partial(one_pass, halves=False),
        "reference": reference,
    }


def ratios(case: Case, names: list[str]) -> dict[str, list[float]]:
    """Return the ratio of each contestant's time to plain in the same repetition, and the seconds of plain."""
    # A fit would allocate the matrix only once, so its allocation is not timed.
    model, steps = contestants(case, touch_matrix="reference" in names)
    seconds: dict[str, list[float]] = {name: [] for name in ["plain", *names]}
    for _ in range(case.repetitions):
        for name, taken in seconds.items():
            model.zero_grad(set_to_none=True)
            gc.collect()
            start = time.process_time()
            steps[name]()
            taken.append(time.process_time() - start)
    over = {name: [t / p for t, p in zip(seconds[name], seconds["plain"], strict=True)] for name in names}
    return {"plain": seconds["plain"], **over}


def report(case: Case, names: list[str]) -> dict[str, float]:
    """Measure a case, print its line and return the medians."""
    measured = ratios(case, names)
    cells = [
        f"{name} {np.median(values):5.2f} ({min(values):.2f}–{max(values):.2f})"
        for name, values in measured.items()
        if name != "plain"
    ]
    print(f"{case}  plain {np.median(measured['plain']):5.2f} s   " + "   ".join(cells), flush=True)
    return {name: round(float(np.median(values)), 3) for name, values in measured.items()}


def status_bytes(path: str, key: str) -> int:
    """Return an entry of a Linux status file, in bytes."""
    line = next(line for line in Path(path).read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024


def peak_in_this_process(case: Case, name: str) -> int:
    """Return the peak memory of two steps in bytes, relative to the memory before the first step."""
    model, steps = contestants(case)
    before = status_bytes("/proc/self/status", "VmRSS")
    for _ in range(2):
        steps[name]()
        model.zero_grad(set_to_none=False)  # gradients stay allocated, as in training
    return status_bytes("/proc/self/status", "VmHWM") - before  # ru_maxrss would include the parent's peak


def peak(case: Case, name: str) -> int:
    """Return the peak memory of a contestant, measured in a new process."""
    command = [sys.executable, __file__, "--peak", case.name, name]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def main() -> None:
    """Measure everything, then print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peak", nargs=2, metavar=("CASE", "CONTESTANT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    if arguments.peak:
        case_name, name = arguments.peak
        print(peak_in_this_process(next(case for case in MAIN if case.name == case_name), name))
        return

    result: dict[str, Any] = {"reference": {}}
    for size in MODELS:
        model, _ = build(next(case for case in MAIN if case.model == size))
        print(f"{size}: Llama, 8 layers, {sum(p.numel() for p in model.parameters()):,} parameters, {MODELS[size]}")
    contestants(GROWTH[0])[1]["plain"]()  # warms up the libraries
    print("time over a plain training step: median (least–greatest)")
    for case in MAIN:
        names = ["one pass", "reference"] + (["without halves"] if case.rows_each > 1 else [])
        needed = case.n_sources * sum(p.numel() for p in build(case)[0].parameters()) * 4
        if needed > 0.8 * status_bytes("/proc/meminfo", "MemAvailable"):
            print(f"{case}  reference left out: its matrix takes {needed / 2**30:.1f} GiB, more than is free")
            names.remove("reference")
        measured = report(case, names)
        result[f"{case.name}_time"] = measured["one pass"]
        result["reference"][f"{case.name}_time"] = measured.get("reference")
    report(HALVES, ["one pass"])
    print("growth with k, 192 rows in all, halves included")
    for case in GROWTH:
        report(case, ["one pass"])

    case = MAIN[1]
    peaks = {name: peak(case, name) for name in ("plain", "one pass", "reference")}
    extra = {name: round(value / peaks["plain"] - 1, 3) for name, value in peaks.items()}
    print("peak memory of a step, fresh processes")
    for name, value in peaks.items():
        print(f"{case}  {name:<10} {value / 2**20:6.0f} MiB  {extra[name]:+.1%}")
    result["k24_memory"], result["reference"]["k24_memory"] = extra["one pass"], extra["reference"]
    print(json.dumps(result))


if __name__ == "__main__":
    main()
