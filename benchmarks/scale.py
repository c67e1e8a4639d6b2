"""What the sampler and a store cost a run of 10^13 tokens on 10^4 ranks: simulated, since the sampler needs no data.

1,000 sources whose sizes spread over six orders of magnitude, at most 4 passes over any, sequences of 4,096 tokens,
four of them for each rank and step. Measured are the sampler of one rank: build to the first draws, a rank's own draws
of a step, resume in the middle of the run, bytes of state and of memory; and whether what the ranks draw adds up: at
several steps all 10,000 ranks' draws together must be the block as one process draws it, each sequence once. For the
store, the time to open store.json with 1,000 sources, which is all that a rank reads before its first sequence. Times
are processor times of one thread. The last line is one JSON object.

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
    """Return a plan of 10^13 tokens, and the sequences of each source."""
    sizes = np.exp(np.random.default_rng(0).uniform(np.log(1e6), np.log(1e12), SOURCES))
    sizes *= TOKENS / 2 / sizes.sum()  # half of what is read is there: repetition matters
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
    """Measure and print."""
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
    found = {
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
    for name, value in found.items():
        print(f"{name:>14}  {value:,.3f}" if isinstance(value, float) else f"{name:>14}  {value:,}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
