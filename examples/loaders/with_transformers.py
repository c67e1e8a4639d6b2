"""Read a mixture with transformers' Trainer and `train_sampling_strategy="sequential"`.

By default Trainer shuffles, which would destroy the order of the mixture. accelerate distributes the batches to the
processes (see with_accelerate.py), so the data set must have all positions. Make the sampler with batch_size =
per_device_train_batch_size * gradient_accumulation_steps * processes. Then each step trains on one block of the
sampler. A run that is resumed from a checkpoint continues at the right sequence. The model keeps documents apart with
the position ids of the data set, and needs nothing else.

Set `dataloader_drop_last`. Otherwise a short last batch is filled with the first sequences of the run. Keep the other
defaults. `dataloader_in_order=False` changes the order of the workers' batches. `split_batches` in accelerator_config
makes per_device_train_batch_size the batch of all processes. With `dispatch_batches` and several processes, accelerate
1.15 resumes too early and repeats sequences. `seed`, `data_seed` and `use_seedable_sampler` have no effect on the
order.

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
    """Return the token ids on which all processes trained a tiny model."""
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
    """Return whether all streams are as expected."""
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
