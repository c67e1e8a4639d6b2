"""Read a mixture with accelerate, which distributes batches to the processes itself.

Give it a data set with all positions and no sampler. `prepare` gives process r of W the batches r, r + W, ... of the
loader. With `split_batches`, it gives each process a part of every batch. With `dispatch_batches`, process 0 reads and
sends the batches. In all cases, the W processes together train on the next `batch_size` positions in every step. Do not
use the view of one rank: accelerate would divide it again, and part of it would never be read.

Set `drop_last`. Otherwise `even_batches` fills a short last batch with the first sequences of the run.
`use_seedable_sampler` and `data_seed` affect only PyTorch's RandomSampler, so they have no effect here.

To resume, leave out the positions that training has consumed. `skip_first_batches` skips batches one by one. With
`dispatch_batches` and without `split_batches`, it counts the batches of single processes, and a step has W of them.

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
    """Return whether all streams are as expected."""
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
