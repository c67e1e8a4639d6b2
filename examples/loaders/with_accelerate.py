"""accelerate: it deals out the batches to the processes itself, so it gets the whole view and no sampler.

`prepare` gives process r of W every batch r, r + W, ... of the loader (or, with `split_batches`, its piece of every
batch; with `dispatch_batches`, process 0 reads and sends). Each way the W processes together train on the next
`batch_size` positions at every step. A rank's own view would be dealt out a second time, and half of it never read.
Without `drop_last`, `even_batches` fills up a short last batch with the first sequences of the run again.
`use_seedable_sampler` and `data_seed` concern PyTorch's RandomSampler only, so they change nothing here.

To resume, leave out the positions consumed. `skip_first_batches` does the same one by one, but with `dispatch_batches`
and without `split_batches` it counts the batches of single processes, of which a step takes W.

    torchrun --nproc-per-node 2 with_accelerate.py STORE MIXTURE
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import islice, product

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from common import arguments, compare
from torch.utils.data import DataLoader, Subset

from xdoge.corpus.store import TokenStore
from xdoge.mixtures.mixture import Mixture
from xdoge.sampling import MixtureDataset, MixtureSampler


def main(argv: Sequence[str] | None = None) -> bool:
    """Return whether every stream was the one expected."""
    args = arguments(__doc__, argv)
    store, mixture = TokenStore.open(args.store), Mixture.load(args.mixture)
    length, lengths = args.sequence_length, store.sequence_counts(args.sequence_length)
    sampler = MixtureSampler(mixture, lengths, batch_size=args.batch_size, sequence_length=length)
    dataset = MixtureDataset(store, sampler, length)
    half = args.steps * args.batch_size
    whole = dataset[: 2 * half]["input_ids"]
    rest = Subset(dataset, range(half, len(dataset)))

    equal = []
    for split, dispatch in product((False, True), repeat=2):
        configuration = DataLoaderConfiguration(split_batches=split, dispatch_batches=dispatch)
        accelerator = Accelerator(cpu=True, dataloader_config=configuration)

        batch = args.batch_size if split else args.batch_size // accelerator.num_processes
        stream = []
        for part in (dataset, rest):
            loader = accelerator.prepare(DataLoader(part, batch_size=batch, drop_last=True))
            stream += [accelerator.gather(rows["input_ids"]) for rows in islice(loader, args.steps)]
        if accelerator.is_main_process:
            what = f"{accelerator.num_processes} processes, split_batches={split}, dispatch_batches={dispatch}"
            equal.append(compare(what, torch.cat(stream), whole))
    accelerator.end_training()
    return all(equal)


if __name__ == "__main__":
    sys.exit(not main())
