"""Distance between the weights of different seeds, for both scores and for 1, 2, 4 and 8 sequences per source.

    python benchmarks/scores.py STORE OUT [--seeds 0,1,2] [--steps 40] [--sequences 1,2,4,8]

Every fit has a run folder in OUT. When the benchmark is started again, it keeps finished fits and resumes the others.
Several processes can run in parallel with different --seeds. Run it with all seeds afterwards to get the table. The
last line of output is one JSON object.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from xdoge import WeightSet
from xdoge.corpus.store import TokenStore
from xdoge.fit.settings import FitSettings

SEQUENCE_LENGTH = 32
LAST_STEPS = 20
"""The noise share is averaged over this many steps at the end, because it grows as the gradients shrink."""


def run(store: TokenStore, out: Path, *, score: str, sequences: int, seed: int, steps: int) -> Path:
    """Run a fit, or resume it if it was stopped. Return the run folder."""
    from xdoge.fit.trainer import fit

    path = out / f"{score}-{sequences}-seed{seed}"
    settings = FitSettings.for_store(
        store,
        {
            "proxy": "1m",
            "steps": steps,
            "seed": seed,
            "floor": 0.002,
            "score": score,
            "batch_size": sequences * len(store.sources),
            "sequence_length": SEQUENCE_LENGTH,
            "eval_every": steps,
        },
    )
    fit(store, settings, out=path, resume=(path / "config.yaml").exists())
    return path


def measure(paths: list[Path]) -> dict[str, float]:
    """Return the distances between the weights of several seeds, and the share of noise in the paper's score."""
    weights = [WeightSet.load(path / "weights.json") for path in paths]
    pairs = list(itertools.combinations(weights, 2))
    late = []
    for path in paths:
        rows = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        late += [row["noise_share"] for row in rows[-LAST_STEPS:] if row["noise_share"] is not None]
        losses = list(rows[-1]["validation"].values())
    mean = WeightSet.average(weights)
    return {
        "sources_apart": float(np.mean([a.distance(b) for a, b in pairs])),
        "languages_apart": float(np.mean([a.distance(b, level="languages") for a, b in pairs])),
        "from_uniform": mean.distance(
            WeightSet("uniform", dict.fromkeys(mean.sources, 1 / len(mean.sources)), floor=0.002)
        ),
        "noise_share": float(np.mean(late)) if late else float("nan"),
        "validation": float(np.mean(losses)),
    }


def order_kept(paths: list[Path], best: list[Path]) -> float:
    """Return the mean rank correlation of each seed's weights with the mean weights of the other seeds in `best`."""
    from scipy.stats import spearmanr  # type: ignore[import-untyped]

    learned, reference = (
        np.array([list(WeightSet.load(path / "weights.json").sources.values()) for path in group])
        for group in (paths, best)
    )
    others = [np.delete(reference, seed, axis=0).mean(axis=0) for seed in range(len(paths))]
    return float(np.mean([spearmanr(a, b).statistic for a, b in zip(learned, others, strict=True)]))


def main(
    store: Path,
    out: Path,
    seeds: Annotated[str, typer.Option(help="Seeds, with commas.")] = "0,1,2",
    sequences: Annotated[str, typer.Option(help="Sequences per source, with commas.")] = "1,2,4,8",
    steps: int = 40,
) -> None:
    """Fit for every score, batch size and seed, and print the table."""
    opened = TokenStore.open(store)
    names = ("sources apart", "languages apart", "from uniform", "noise share", "validation", "order kept")
    table = Table("score", "sequences", *names)
    results: dict[str, dict[str, float]] = {}
    runs: dict[tuple[str, int], list[Path]] = {}
    for count in map(int, sequences.split(",")):
        for score in ("paper", "unbiased"):
            if score == "unbiased" and count < 2:
                continue  # needs two independent halves
            runs[score, count] = [
                run(opened, out, score=score, sequences=count, seed=seed, steps=steps)
                for seed in map(int, seeds.split(","))
            ]
    best = list(runs.values())[-1]  # the unbiased score with the most sequences
    for (score, count), paths in runs.items():
        if len(paths) > 1:
            numbers = measure(paths) | {"order_kept": order_kept(paths, best)}
            results[f"{score}-{count}"] = numbers
            table.add_row(score, str(count), *(f"{value:.4f}" for value in numbers.values()))
    Console(width=120).print(table)
    print(json.dumps(results))


if __name__ == "__main__":
    typer.run(main)
