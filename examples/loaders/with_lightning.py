"""Lightning: a StatefulDataLoader over this rank's view, and `use_distributed_sampler=False`.

As soon as there are two ranks Lightning wraps the sampler of a loader in a DistributedSampler of its own, unless told
not to, and would deal out this rank's sequences once more. A StatefulDataLoader travels in the checkpoint: `ckpt_path`
resumes in the middle of the run at the next sequence, where a plain DataLoader begins again at the first. Of the
loaders' states Lightning keeps that of rank 0 alone, and that is enough: the sampler's position counts the sequences
of all ranks. The run is one epoch, as long as the plan.

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
    """The smallest language model; `seen` keeps what this rank was trained on."""

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
    """Return the token ids that the model was trained on, those of all ranks in the order of their positions."""
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
    """Return whether every stream was the one expected."""
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
