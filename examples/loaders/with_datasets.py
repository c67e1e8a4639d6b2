"""Read a mixture with Hugging Face datasets, either exactly by indices or approximately by probabilities.

By indices: the files of the store become data sets of sequences without a copy. `select` puts the sequences into the
order of the mixture (8 bytes per sequence), so that row t is the sequence at position t. Give the result to a loader
that does not shuffle.

By probabilities, with `interleave_datasets`: every row is drawn at random. The counts therefore deviate from the plan
by about the square root of the number of draws. There are no epoch caps, and every epoch of a source has the same
order. "first_exhausted" stops when the first source ends. "all_exhausted" stops when every source was read once, and
repeats small sources until then. The rows here are sequences of equal length, so the probability of a row is a share of
tokens. If your rows are documents, divide each weight by the source's mean document length first.

    python with_datasets.py STORE MIXTURE
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from common import arguments, compare
from datasets import Dataset, concatenate_datasets, interleave_datasets
from datasets.table import InMemoryTable

from xdoge.corpus.store import TokenStore
from xdoge.mixtures.mixture import Mixture
from xdoge.sampling import MixtureDataset, MixtureSampler


def sequences(store: TokenStore, source: str, length: int) -> Dataset:
    """Return the sequences of a source as a data set that uses the store's file without a copy."""
    flat = store.flat(source)
    tokens = pa.array(flat[: len(flat) // length * length])  # shares the mapped memory; a spawned worker gets a copy
    return Dataset(InMemoryTable(pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(tokens, length)})))


def main(argv: Sequence[str] | None = None) -> bool:
    """Return whether the rows of the data set are those of the mixture."""
    args = arguments(__doc__, argv)
    store, mixture = TokenStore.open(args.store), Mixture.load(args.mixture)
    length, lengths = args.sequence_length, store.sequence_counts(args.sequence_length)
    sampler = MixtureSampler(mixture, lengths, batch_size=args.batch_size, sequence_length=length)

    parts = [sequences(store, source, length) for source in sampler.sources]
    begins = np.cumsum([0, *(len(part) for part in parts)])
    draws = sampler.draws(0, len(sampler))
    rows = concatenate_datasets(parts).select(begins[draws.source] + draws.index).with_format("torch")
    count = 2 * args.steps * args.batch_size
    expected = MixtureDataset(store, sampler, length)[:count]["input_ids"]
    equal = compare("as indices", rows[:count]["input_ids"].to(torch.int64), expected)

    named = [
        part.add_column("source", [source] * len(part)) for source, part in zip(sampler.sources, parts, strict=True)
    ]
    probabilities = [mixture.sources[source].weight for source in sampler.sources]
    for strategy in ("first_exhausted", "all_exhausted"):
        drawn = interleave_datasets(named, probabilities=probabilities, seed=0, stopping_strategy=strategy)
        counts = Counter(drawn["source"])
        print(f"as probabilities, {strategy}: {len(drawn):,} rows where the plan has {sampler.total:,}")
        for source in sampler.sources:
            print(
                f"  {source}: {counts[source]:,} rows, {counts[source] / lengths[source]:.2f} epochs, planned "
                f"{sampler.quotas[source]:,}, {sampler.quotas[source] / lengths[source]:.2f}"
            )
    return equal


if __name__ == "__main__":
    sys.exit(not main())
