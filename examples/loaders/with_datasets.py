"""Hugging Face datasets: the mixture as a list of indices, which keeps its promise, and as probabilities, which do not.

As indices: the store's files become data sets of sequences without a copy, `select` puts them in the mixture's order
(8 bytes a sequence), and row t is the sequence at position t. Give the result to a loader that does not shuffle.

As probabilities for `interleave_datasets`: every row is drawn at random, so counts stray from the plan by about the
square root of the draws, no cap on epochs is known, and every epoch of a source has the same order. "first_exhausted"
ends with the first source that runs out; "all_exhausted" goes on until the last has, repeating small sources as
often as that takes. The rows here are sequences of one length, so a row's probability is a share of tokens. Where rows
are documents, divide each weight by the source's mean document length first.

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
    """Return the sequences of a source as a data set over the store's own file."""
    flat = store.flat(source)
    tokens = pa.array(
        flat[: len(flat) // length * length]
    )  # shares the mapped memory; a spawned worker would get a copy
    return Dataset(InMemoryTable(pa.table({"input_ids": pa.FixedSizeListArray.from_arrays(tokens, length)})))


def main(argv: Sequence[str] | None = None) -> bool:
    """Return whether the data set's rows were the mixture's."""
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
