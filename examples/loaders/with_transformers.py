"""transformers' Trainer: `train_sampling_strategy="sequential"`, and the data set is read in the mixture's order.

Trainer's default is to shuffle, which would undo the mixture. Its batches are dealt out to the processes by accelerate
(see with_accelerate.py), so the data set has the whole view. Each step trains on one block of the sampler if that is
made with batch_size = per_device_train_batch_size * gradient_accumulation_steps * processes. A checkpoint goes on at
its step by itself. The model keeps documents apart: it needs nothing but the position ids of the data set.

`dataloader_drop_last` keeps a short last batch from being filled up with the first sequences again. Leave the rest as
it is: `dataloader_in_order=False` mixes up the workers' batches; `split_batches` in accelerator_config makes
per_device_train_batch_size the batch of all processes; with `dispatch_batches` and several processes, accelerate 1.15
resumes too early, and trains on sequences again. `seed`, `data_seed` and `use_seedable_sampler` have no part in it.

    torchrun --nproc-per-node 2 with_transformers.py STORE MIXTURE OUT
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import torch
from common import arguments, compare
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from xdoge.corpus.store import TokenStore
from xdoge.mixtures.mixture import Mixture
from xdoge.sampling import MixtureDataset, MixtureSampler


def train(dataset: MixtureDataset, settings: TrainingArguments, *, checkpoint: str | None) -> torch.Tensor:
    """Return the token ids that a tiny model was trained on, those of all processes."""
    config = LlamaConfig(
        vocab_size=dataset.store.vocab_size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=dataset.sequence_length,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=dataset.store.end_of_document,
    )
    model = LlamaForCausalLM(config)
    seen: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    trainer = Trainer(model, settings, train_dataset=dataset)
    trainer.train(resume_from_checkpoint=checkpoint)
    batches = trainer.accelerator.gather(torch.stack(seen)[None])  # (processes, batches, B, T)
    return batches.transpose(0, 1).flatten(0, 2)


def main(argv: Sequence[str] | None = None) -> bool:
    """Return whether every stream was the one expected."""
    args = arguments(__doc__, argv, out=True)
    store, mixture = TokenStore.open(args.store), Mixture.load(args.mixture)
    length, lengths = args.sequence_length, store.sequence_counts(args.sequence_length)
    sampler = MixtureSampler(mixture, lengths, batch_size=args.batch_size, sequence_length=length)
    dataset = MixtureDataset(store, sampler, length, documents="separate")
    half = args.steps * args.batch_size
    processes, accumulation = int(os.environ.get("WORLD_SIZE", "1")), 2
    settings = TrainingArguments(
        output_dir=args.out,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=args.batch_size // (processes * accumulation),
        gradient_accumulation_steps=accumulation,
        dataloader_drop_last=True,
        max_steps=2 * args.steps,
        save_steps=args.steps,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    whole = train(dataset, settings, checkpoint=None)
    resumed = train(dataset, settings, checkpoint=f"{args.out}/checkpoint-{args.steps}")
    equal = [
        compare("trained on", whole, dataset[: 2 * half]["input_ids"]),
        compare("resumed from a checkpoint", resumed, whole[half:]),
    ]
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return all(equal)


if __name__ == "__main__":
    sys.exit(not main())
