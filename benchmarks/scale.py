"""Cost of the sampler in a run of 10^13 tokens on 10^4 ranks. The run is simulated, since the sampler needs no data.

There are 1,000 sources, whose sizes span six orders of magnitude, with at most 16 passes over any of them. Sequences
have 4,096 tokens, and each rank reads four per step. For one rank, the benchmark measures the time to build the sampler
and make the first draws. It also measures the time of a step's draws, and the bytes of state and memory. It also checks
at several steps that the draws of all 10,000 ranks together are the block that a single process draws. Times are
processor times of one thread. The last line of output is one JSON object.

    python benchmarks/scale.py        about a minute, 1 GB
"""

from __future__ import annotations

import json
import pickle
import statistics
import time
import tracemalloc

import numpy as np

from xdoge.mixtures.mixture import Mixture
from xdoge.sampling.sampler import MixtureSampler

TOKENS, RANKS, SOURCES, LENGTH, EACH = 10**13, 10**4, 1000, 4096, 4


def mixture() -> tuple[Mixture, dict[str, int]]:
    """Return a mixture of 10^13 tokens, and the number of sequences of each source."""
    sizes = np.exp(np.random.default_rng(0).uniform(np.log(1e6), np.log(1e12), SOURCES))
    sizes *= TOKENS / 2 / sizes.sum()  # the run reads twice the available tokens, so sources repeat
    available = {f"l{i % 50:02}/s{i:04}": max(1, int(size) // LENGTH) * LENGTH for i, size in enumerate(sizes)}
    weights = {source: n**0.5 for source, n in available.items()}
    total = sum(weights.values())
    plan = Mixture.plan(
        {source: weight / total for source, weight in weights.items()},
        available_tokens=available,
        budget_tokens=TOKENS // (RANKS * EACH * LENGTH) * RANKS * EACH * LENGTH,
        max_epochs=16,
        sequence_length=LENGTH,
    )
    return plan, {source: n // LENGTH for source, n in available.items()}


def main() -> None:
    """Measure and check, then print the figures and one JSON object."""
    plan, lengths = mixture()

    def build(rank: int) -> MixtureSampler:
        return MixtureSampler(
            plan, lengths, batch_size=RANKS * EACH, sequence_length=LENGTH, world_size=RANKS, rank=rank
        )

    def spent(run: object) -> float:
        began = time.process_time()
        assert callable(run)
        run()
        return 1000 * (time.process_time() - began)

    tracemalloc.start()
    sampler = build(0)
    sampler.draws(0, EACH)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    first = [spent(lambda: build(7).draws(0, EACH)) for _ in range(5)]
    steps = len(sampler) // EACH
    middle = steps // 2
    own = [spent(lambda i=i: sampler.draws((middle + i) * EACH, (middle + i + 1) * EACH)) for i in range(500)]
    state = sampler.state_dict()
    figures = {
        "tokens": plan.budget_tokens,
        "steps": steps,
        "build_ms": statistics.median(first),
        "step_ms": statistics.fmean(own),
        "state_bytes": len(pickle.dumps(state)),
        "memory_bytes": memory,
    }
    whole = MixtureSampler(plan, lengths, batch_size=RANKS * EACH, sequence_length=LENGTH)
    ranks = [whole.shard(world_size=RANKS, rank=rank) for rank in range(RANKS)]
    for step in (0, middle, steps - 1):
        block = whole.draws(step * RANKS * EACH, (step + 1) * RANKS * EACH)
        parts = [rank.draws(step * EACH, (step + 1) * EACH) for rank in ranks]
        for name in ("source", "epoch", "index"):
            together = np.sort(np.concatenate([getattr(part, name) for part in parts]))
            assert np.array_equal(together, np.sort(getattr(block, name))), (step, name)
    for name, value in figures.items():
        print(f"{name:>14}  {value:,.3f}" if isinstance(value, float) else f"{name:>14}  {value:,}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
