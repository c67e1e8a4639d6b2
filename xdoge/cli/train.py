"""`xdoge train`: a target model trained on a mixture, from scratch or continued."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from xdoge.cli import options
from xdoge.cli.app import app, is_first, one_voice, run_settings, stdout
from xdoge.cli.tables import empty_table, print_files, print_pace
from xdoge.config import settings_help
from xdoge.corpus.store import TokenStore
from xdoge.io import read_rows
from xdoge.mixtures.mixture import Mixture
from xdoge.names import language_of
from xdoge.train.result import TrainResult
from xdoge.train.settings import ELASTIC, TrainSettings

_TRAIN_HELP = f"""Train a target model on a mixture, from scratch or by continual pre-training.

The model reads the sequences in the order of the mixture's sampler. In every step each language has its share. AdamW
warms up and decays along a cosine. The validation loss of every source and language is measured about ten times, or
less often to keep validation below 10 % of the time.

**From scratch.** --model is a recipe: a name such as 125m, or a YAML file. The recipe sets the shape, batch size,
sequence length and learning rate. If the mixture was planned with `xdoge mix --sequence-length`, its length is used.

**Continual pre-training.** --model is the folder of a causal language model, or its name on the Hub. The store must
have been prepared with the tokenizer of this model: `tokenizer: {{huggingface: MODEL}}` in corpus.yaml. The learning
rate warms up again over 1 % of the steps and decays to a tenth of its peak. With some of the old text in the mixture,
this matched training anew on the old and new text (Ibrahim et al. 2024, arXiv:2403.08763). The default peak is half of
GPT-3's at that size, a cautious choice. If you know the peak of the model's own training, set half of it with `--set
learning_rate=RATE`. A higher rate learns more of the new text and forgets more of the old. `--train-only
'layers\\.(0|1|22|23)\\.'` updates only those layers.

**What it writes** into RUN: `model/`, which transformers can load; `train.json` with tokens seen, validation by
language, and tokens and epochs by source; `metrics.jsonl`, one row per step; `config.yaml`, all settings;
`mixture.json`; and `checkpoints/`, the latest two. A checkpoint is three times as large as the model, because it
includes the state of the optimiser. When `train.json` exists, you can delete the checkpoints.

**Several GPUs.** Run `torchrun --nproc-per-node 8 -m xdoge train ...`. For a model that does not fit on one GPU, run
`accelerate launch --config_file FSDP.yaml -m xdoge train ...`. batch_size counts the sequences of all processes; it
must be per_device_batch_size × processes × accumulation. By default each device computes its part of the batch at once.
If memory runs out, lower per_device_batch_size.

**Stopping.** Ctrl-C and SIGTERM end the running step, write a checkpoint and exit with status 130 or 143 (torchrun and
accelerate have their own statuses). Run the same command with `--resume` to continue with the next sequence, also after
a kill and on another number of processes. `--resume` keeps the settings of the run. You may change only these:
{", ".join(ELASTIC)}.

**Settings** for `--set KEY=VALUE` and for the YAML file of `--config`. The options at the end override them:

{settings_help(TrainSettings)}

**Examples**

- `xdoge train mixture.json --store store --model 125m --out runs/125m`

- `xdoge train mixture.json --store store --model HuggingFaceTB/SmolLM2-135M --out runs/cpt --set learning_rate=1e-4`

- `xdoge train mixture.json --store store --model smollm2 --out runs/ends --train-only 'layers\\.(0|1|28|29)\\.'`

- `xdoge train mixture.json --store store --model 125m --out runs/125m --set per_device_batch_size=16`

- `xdoge train mixture.json --store store --model 125m --out runs/125m --resume --set report_to=tensorboard`
"""


@app.command(help=_TRAIN_HELP)
def train(  # an option for each setting that users change most often
    mixture: Annotated[Path, typer.Argument(metavar="MIXTURE.json", help="Mixture written by `xdoge mix`.")],
    store: Annotated[Path, typer.Option(help="Token store for which the mixture was planned.")],
    out: options.RunPath,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|PATH", help="Recipe, or a model to continue from; required for a new run.", show_default=False
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            parser=options.count(), metavar="N", help="Optimiser steps.", show_default="all tokens of the mixture"
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            parser=options.count(),
            metavar="B",
            help="Sequences per step, over all processes.",
            show_default="the recipe's; 32 for continual pre-training",
        ),
    ] = None,
    train_only: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Train only the parameters whose names contain a match.",
            show_default="all parameters",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            parser=options.count(),
            metavar="S",
            help="Seed of a recipe's initial weights and of dropout.",
            show_default="0",
        ),
    ] = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    resume: options.Resume = False,
    as_json: options.Json = False,
) -> None:
    flags = {"model": model, "steps": steps, "batch_size": batch_size, "train_only": train_only, "seed": seed}
    with one_voice():
        chosen = run_settings(out, config, assignments, flags, resume=resume)
        opened, planned = TokenStore.open(store), Mixture.load(mixture)
        result = run_training(planned, opened, chosen, out, resume=resume, where=str(config) if config else "settings")
    if not is_first():
        return
    if as_json:
        print(json.dumps(result.to_dict(), indent=2))
    else:
        print_run(result, planned)


def run_training(
    mixture: Mixture, store: TokenStore, chosen: dict[str, Any], out: Path, *, resume: bool, where: str = "settings"
) -> TrainResult:
    from xdoge.cli.progress import Display
    from xdoge.train.trainer import train

    settings = TrainSettings.for_run(mixture, store, chosen, where=where)
    if not resume and is_first():
        print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True), file=sys.stderr)
    with Display() as display, contextlib.redirect_stdout(sys.stderr):  # trackers print
        for step, losses in _validations(out)[-1:] if resume else ():
            display.validated(step, losses)
        return train(mixture, store, settings, out=out, resume=resume, on_progress=display.show, on_note=display.note)


def print_run(result: TrainResult, mixture: Mixture) -> None:
    """Print the validation loss and the tokens read of each language, and the paths of the files."""
    name = result.summary["model"]["from"]
    print(f"{name}, trained on {mixture.name}: {result.tokens_seen:,} tokens, {result.steps:,} steps")
    print_pace(result.folder, result.tokens_seen)
    measured = _validations(result.folder)
    first = measured[0][1] if len(measured) > 1 else {}
    table = empty_table(("language",), ("initial loss", "validation loss", "perplexity", "epochs"))
    for language, share in mixture.languages.items():
        sources = [source for source in mixture.sources if language_of(source) == language]
        available = {source: mixture.sources[source].available_tokens for source in sources}
        epochs = sum(result.epochs[source] * available[source] for source in sources) / share.available_tokens
        loss = result.validation.get(language)
        numbers = ("–", "–", "–")
        if loss is not None:
            began = f"{first[language]:.4f}" if language in first else "–"
            numbers = (began, f"{loss:.4f}", f"{math.exp(loss):.2f}")
        table.add_row(language, *numbers, f"{epochs:.3f}")
    stdout.print(table)
    length = result.summary["sequence_length"]
    print(
        f"Loss (nats) and perplexity are per token of validation sequences of {length:,} tokens, including "
        "end-of-document tokens. xdoge eval scores documents without that token, so its numbers differ."
    )
    if beyond := result.repeated_beyond_plan:
        print(
            f"warning: these sources were repeated more often than planned (a bug): {', '.join(beyond)}",
            file=sys.stderr,
        )
    print_files(result.folder, "train.json", "model", "metrics.jsonl", "config.yaml", "mixture.json")


def _validations(out: Path) -> list[tuple[int, dict[str, float]]]:
    """Return step and validation losses by language, for each evaluation of a run so far, in order."""
    rows = read_rows(out / "metrics.jsonl")
    return [(row["step"], row["validation_by_language"]) for row in rows if row.get("validation_by_language")]
