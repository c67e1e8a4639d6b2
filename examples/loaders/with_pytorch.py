"""Read a mixture with PyTorch's DataLoader, and resume with another number of workers and ranks.

The sampler yields `Draw`s, and the data set reads them. Each rank constructs the sampler with `world_size` and `rank`,
without a DistributedSampler. Of two ranks, one reads the even and the other the odd positions.

Workers read ahead of training. Therefore save the state for the sequences that training has consumed (steps times the
global batch), not for those that the sampler has yielded. For the same reason, set the sampler's state
before you iterate over a loader a second time.

There are two ways to read the same sequences: with `sampler=sampler`, or by position. By position, the workers compute
the draws themselves, and each batch is created as one tensor. This is faster.

    python with_pytorch.py STORE MIXTURE
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice

import torch
from common import arguments, compare
from torch.utils.data import BatchSampler, DataLoader

from xdoge.corpus.store import TokenStore
from xdoge.mixtures.mixture import Mixture
from xdoge.sampling import MixtureDataset, MixtureSampler


def main(argv: Sequence[str] | None = None) -> bool:
    """Return whether all streams are as expected."""
    args = arguments(__doc__, argv)
    store, mixture = TokenStore.open(args.store), Mixture.load(args.mixture)
    length, batch, steps = args.sequence_length, args.batch_size, args.steps
    lengths = store.sequence_counts(length)

    def view(world_size: int = 1, rank: int = 0) -> MixtureSampler:
        return MixtureSampler(
            mixture, lengths, batch_size=batch, sequence_length=length, world_size=world_size, rank=rank
        )

    def read(sampler: MixtureSampler, *, steps: int, workers: int) -> torch.Tensor:
        dataset = MixtureDataset(store, sampler, length)
        loader = DataLoader(dataset, batch_size=batch // sampler.world_size, sampler=sampler, num_workers=workers)
        return torch.cat([rows["input_ids"] for rows in islice(loader, steps)])

    whole = read(view(), steps=2 * steps, workers=0)
    equal = [compare("2 workers instead of none", read(view(), steps=2 * steps, workers=2), whole)]

    stopped = view()
    head = read(stopped, steps=steps, workers=2)
    print(f"the workers were given {stopped.position:,} sequences, training consumed {steps * batch:,}")
    state = stopped.state_dict(position=steps * batch)

    resumed = view()
    resumed.load_state_dict(state)
    tail = read(resumed, steps=steps, workers=0)
    equal.append(compare("resumed without workers", torch.cat([head, tail]), whole))

    ranks = []
    for rank in range(2):
        resumed = view(world_size=2, rank=rank)
        resumed.load_state_dict(state)
        ranks.append(read(resumed, steps=steps, workers=2))
    tail = torch.stack(ranks, dim=1).flatten(0, 1)  # positions 0, 1, 2, ... from ranks 0, 1, 0, ...
    equal.append(compare("resumed on two ranks", torch.cat([head, tail]), whole))

    dataset = MixtureDataset(store, view(), length)
    positions = range(steps * batch, len(dataset))  # can start anywhere
    batches = BatchSampler(positions, batch, drop_last=True)
    loader = DataLoader(dataset, batch_size=None, sampler=batches, num_workers=2)
    tail = torch.cat([rows["input_ids"] for rows in islice(loader, steps)])
    equal.append(compare("resumed by position", torch.cat([head, tail]), whole))
    return all(equal)


if __name__ == "__main__":
    sys.exit(not main())
