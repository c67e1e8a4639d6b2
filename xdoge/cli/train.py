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

The model reads the sequences of the mixture in the order of its sampler: every step is one block of it, in which each
language has its share. AdamW warms up and decays along a cosine. The validation loss of every source and language is
measured before the first step and on a schedule.

**From scratch**: --model is a recipe, one that ships or a YAML file, and gives shape, batch, sequence length and rate.
A mixture planned with `xdoge mix --sequence-length` gives the sequence length instead.

**Continual pre-training**: --model is the folder of a causal language model, or its name on the Hub. The store must
have been prepared with its tokenizer: `tokenizer: {{huggingface: MODEL}}` in corpus.yaml. The rate re-warms over 1 % of
the steps and re-decays to a tenth, which with some of the old text in the mixture was enough to match training anew on
both (Ibrahim et al. 2024, arXiv:2403.08763). The peak, half of GPT-3's at that size, is a cautious choice of ours; if
the model's own is known, set half of that with `--set learning_rate=`. A higher one learns more of the new text and
forgets more of the old. `--train-only 'layers\\.(0|1|22|23)\\.'` updates those layers and freezes all else.

**What it writes** into RUN: `model/`, which transformers loads; `train.json` with tokens seen, validation by language,
tokens and epochs by source; `metrics.jsonl`, a row a step; `config.yaml`, every setting as resolved; `mixture.json`;
and `checkpoints/`, the latest two, each with the optimiser's state and so three times as large as the model. Once
`train.json` is there, they may be deleted.

**Several GPUs**: `torchrun --nproc-per-node 8 -m xdoge train ...`, or `accelerate launch --config_file FSDP.yaml -m
xdoge train ...` for a model that one GPU cannot hold. batch_size is that of all processes together, and must be
per_device_batch_size × processes × accumulation. Out of memory, lower per_device_batch_size: by default a device takes
its part of the batch at once.

**Stopping.** Ctrl-C and SIGTERM end the running step, write a checkpoint and exit with 130 and 143 (torchrun and
accelerate exit with a status of their own). After that, or after a kill at any moment, the same command with `--resume`
goes on with the very next sequence, on as many processes or others. It takes the settings of the run; these alone may
differ: {", ".join(ELASTIC)}.

**Settings**, for `--set KEY=VALUE` and for the YAML file of `--config`; the options above it win:

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
    mixture: Annotated[Path, typer.Argument(metavar="MIXTURE.json", help="What xdoge mix wrote.")],
    store: Annotated[Path, typer.Option(help="Token store that the mixture was planned for.")],
    out: options.RunPath,
    model: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="A recipe, or a model to go on with.", show_default=False)
    ] = None,
    steps: Annotated[int | None, typer.Option(parser=options.count(), metavar="N", help="Optimiser steps.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(parser=options.count(), metavar="B", help="Sequences per step, of all processes together."),
    ] = None,
    train_only: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Train only parameters whose names match; freeze the others.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(parser=options.count(), metavar="S", help="Seed of a recipe's initial weights.")
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
    print(f"{name} on {mixture.name}: {result.tokens_seen:,} tokens, {result.steps:,} steps")
    print_pace(result.folder, result.tokens_seen)
    measured = _validations(result.folder)
    first = measured[0][1] if len(measured) > 1 else {}
    table = empty_table(("language",), ("first loss", "validation loss", "perplexity of sequences", "epochs"))
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
    print(
        f"loss and perplexity: per token of validation sequences of {result.summary['sequence_length']:,} tokens, with "
        "end-of-document tokens. xdoge eval scores whole documents without that token, so its perplexity differs."
    )
    if beyond := result.repeated_beyond_plan:
        print(f"warning: repeated more often than planned, a bug: {', '.join(beyond)}", file=sys.stderr)
    print_files(result.folder, "train.json", "model", "metrics.jsonl", "config.yaml", "mixture.json")


def _validations(out: Path) -> list[tuple[int, dict[str, float]]]:
    """Return step and validation losses by language, for each evaluation of a run so far, in order."""
    rows = read_rows(out / "metrics.jsonl")
    return [(row["step"], row["validation_by_language"]) for row in rows if row.get("validation_by_language")]
