"""Read a mixture with Lightning: a StatefulDataLoader for each rank's view, and `use_distributed_sampler=False`.

With two or more ranks, Lightning by default wraps the sampler of a loader in a DistributedSampler. That would divide
the sequences of each rank again. The state of a StatefulDataLoader is saved in the checkpoint, so that `ckpt_path`
resumes at the next sequence. A plain DataLoader would start again from the first. Lightning saves only the loader state
of rank 0. That is enough, because the sampler's position counts the sequences of all ranks. The whole run is one epoch.

    torchrun --nproc-per-node 2 with_lightning.py STORE MIXTURE OUT
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import lightning
import torch
from common import arguments, compare
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.nn import Embedding, Linear
from torch.nn.functional import cross_entropy
from torchdata.stateful_dataloader import StatefulDataLoader

from xdoge.corpus.store import TokenStore
from xdoge.mixtures.mixture import Mixture
from xdoge.sampling import MixtureDataset, MixtureSampler


class Bigram(lightning.LightningModule):
    """A minimal language model. `seen` has the batches on which this rank was trained."""

    def __init__(self, store: TokenStore, sampler: MixtureSampler, *, length: int, batch_size: int) -> None:
        super().__init__()
        self.store, self.sampler, self.length, self.batch_size = store, sampler, length, batch_size
        self.embedding, self.head = Embedding(store.vocab_size, 8), Linear(8, store.vocab_size)
        self.seen: list[torch.Tensor] = []

    def train_dataloader(self) -> StatefulDataLoader:
        """Return the loader of this rank."""
        world_size = self.trainer.world_size
        sampler = self.sampler.shard(world_size=world_size, rank=self.trainer.global_rank)
        dataset = MixtureDataset(self.store, sampler, self.length)
        return StatefulDataLoader(dataset, batch_size=self.batch_size // world_size, sampler=sampler, drop_last=True)

    def training_step(self, batch: dict[str, torch.Tensor], _: int) -> torch.Tensor:
        """Return the mean loss, nats per token."""
        self.seen.append(batch["input_ids"])
        logits = self.head(self.embedding(batch["input_ids"][:, :-1]))
        return cross_entropy(logits.flatten(0, 1), batch["labels"][:, 1:].flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def train(model: Bigram, folder: Path, *, steps: int, checkpoint: Path | None) -> torch.Tensor:
    """Return the token ids on which all ranks trained the model, in the order of their positions."""
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = lightning.Trainer(
        use_distributed_sampler=False,
        max_epochs=1,
        max_steps=2 * steps,
        accelerator="cpu",
        devices=ranks,
        strategy="ddp" if ranks > 1 else "auto",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(
                folder, filename="{step}", every_n_train_steps=steps, save_top_k=-1, enable_version_counter=False
            )
        ],
    )
    trainer.fit(model, ckpt_path=checkpoint)
    rows = trainer.strategy.all_gather(torch.cat(model.seen))
    return rows.transpose(0, 1).flatten(0, 1) if ranks > 1 else rows


def main(argv: Sequence[str] | None = None) -> bool:
    """Return whether all streams are as expected."""
    args = arguments(__doc__, argv, out=True)
    store, mixture = TokenStore.open(args.store), Mixture.load(args.mixture)
    length, lengths = args.sequence_length, store.sequence_counts(args.sequence_length)

    def fresh() -> Bigram:
        sampler = MixtureSampler(mixture, lengths, batch_size=args.batch_size, sequence_length=length)
        return Bigram(store, sampler, length=length, batch_size=args.batch_size)

    half = args.steps * args.batch_size
    model = fresh()
    expected = MixtureDataset(store, model.sampler, length)[: 2 * half]["input_ids"]
    folder = Path(args.out)
    whole = train(model, folder, steps=args.steps, checkpoint=None)
    resumed = train(fresh(), folder, steps=args.steps, checkpoint=folder / f"step={args.steps}.ckpt")
    equal = [
        compare("trained on", whole, expected),
        compare("resumed from a checkpoint", resumed, whole[half:]),
    ]
    return all(equal)


if __name__ == "__main__":
    sys.exit(not main())
