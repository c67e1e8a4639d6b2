"""Read a mixture with torchdata's StatefulDataLoader. Its state includes the sampler's state at the last batch.

The state is therefore exact even if workers read ahead, and you need not count steps. The loader can only be resumed
with the same number of workers. To change it, resume from the sampler's own state as in with_pytorch.py. The sampler's
position counts the sequences of all ranks together. The state of one rank is therefore valid for every rank, and also
for another number of ranks.

    python with_torchdata.py STORE MIXTURE
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice

import torch
from common import arguments, compare
from torchdata.stateful_dataloader import StatefulDataLoader

from xdoge.corpus.store import TokenStore
from xdoge.mixtures.mixture import Mixture
from xdoge.sampling import MixtureDataset, MixtureSampler


def main(argv: Sequence[str] | None = None) -> bool:
    """Return whether all streams are as expected."""
    args = arguments(__doc__, argv)
    store, mixture = TokenStore.open(args.store), Mixture.load(args.mixture)
    length, batch, steps = args.sequence_length, args.batch_size, args.steps
    lengths = store.sequence_counts(length)

    def make(*, workers: int, world_size: int = 1, rank: int = 0) -> StatefulDataLoader:
        sampler = MixtureSampler(
            mixture, lengths, batch_size=batch, sequence_length=length, world_size=world_size, rank=rank
        )
        dataset = MixtureDataset(store, sampler, length)
        return StatefulDataLoader(dataset, batch_size=batch // world_size, sampler=sampler, num_workers=workers)

    def read(loader: StatefulDataLoader, *, steps: int) -> torch.Tensor:
        return torch.cat([rows["input_ids"] for rows in islice(loader, steps)])

    whole = read(make(workers=0), steps=2 * steps)
    equal = []
    for workers in (0, 2):
        stopped = make(workers=workers)
        head = read(stopped, steps=steps)
        state = stopped.state_dict()
        resumed = make(workers=workers)
        resumed.load_state_dict(state)
        tail = read(resumed, steps=steps)
        equal.append(compare(f"resumed, {workers} workers", torch.cat([head, tail]), whole))

    ranks = []
    for rank in range(2):
        resumed = make(workers=workers, world_size=2, rank=rank)
        resumed.load_state_dict(state)
        ranks.append(read(resumed, steps=steps))
    tail = torch.stack(ranks, dim=1).flatten(0, 1)  # positions 0, 1, 2, ... from ranks 0, 1, 0, ...
    equal.append(compare("resumed on two ranks", torch.cat([head, tail]), whole))
    return all(equal)


if __name__ == "__main__":
    sys.exit(not main())
