"""`xdoge fit-weights`: learn one weight per source with a small proxy model."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from xdoge.cli import options
from xdoge.cli.app import app, is_first, one_voice, run_settings, stdout
from xdoge.cli.prepare import prepare_store
from xdoge.cli.tables import empty_table, print_files, print_pace, print_weights
from xdoge.config import settings_help
from xdoge.corpus.store import TokenStore
from xdoge.errors import XDogeError
from xdoge.fit.result import FitResult
from xdoge.fit.settings import SAVES_MEMORY, FitSettings
from xdoge.models.recipes import load_recipe
from xdoge.names import by_language
from xdoge.training.proxy_settings import ELASTIC

if TYPE_CHECKING:
    from xdoge.fit.affinity import LanguageCosines

_FIT_HELP = f"""Learn one weight per source with a small proxy model.

The weight of a source is its share of the training tokens. A proxy model trains on all sources. At each step every
source gets a score: how much a gradient step on this source lowers the losses of the targets. Sources with a high score
gain weight: each weight is multiplied by exp(η score / μ), where η is proportional to the learning rate and sums to 1
over the fit. No weight falls below the floor. The result is the mean of the weights over the steps.

By default every language starts with the same weight. Within a language the sources start in proportion to their
tokens, so splitting a source in two does not raise its language. `--set initial=sources` starts every source with the
same weight, and `--set initial=FILE` starts with the weights of an earlier fit.

**Targets.** By default the loss of every language counts equally. Related languages then raise each other's weights,
and an isolated language can lose. With `--targets sources` the loss of every source counts equally. With `--targets
robust` the languages whose losses fall slowest, compared with training on that language alone, count more.

With `--no-worse-than uniform:1%` the loss of no language may end more than 1 % above its loss with uniform weights. The
fit can only estimate these losses: models trained on such weights ended 2.7 and 4.0 % above. So train on both mixtures
and compare.

With `--target-budget 100B` the proxy repeats each source as often as a run of 100B tokens will. Text that the model
overfits in that run is then overfitted in the fit, too.

**What it reads.** A store made by `xdoge prepare`. It also takes a corpus.yaml, and prepares it into RUN/store first.

**What it writes** into RUN: `weights.json`, the result; `config.yaml`, all settings; `metrics.jsonl`, one row per step;
`trajectory.parquet` with step, source, weight, score, loss and grad_norm; `gram.parquet`, the inner products of the
sources' gradients; `checkpoints/`; and `proxy/`, the trained proxy, which transformers can load.

**What it prints.** A table of the weights beside the shares of the corpus, a table of the cosines between the
languages' gradients with standard errors, and a verdict. The verdict says how far to trust the weights and what to do
next. It warns about weights that still moved at the end, a proxy that trained on few tokens, sources without validation
text, and weights far above a source's share of the corpus.

**Time.** If a fit will take more than a day, a message says so after a few steps and names a smaller proxy. On a CPU
the message comes before the first step.

**Stopping.** Ctrl-C and SIGTERM end the running step, write a checkpoint and exit with status 130 or 143. Run the same
command with `--resume` to continue, also after a kill. On the same machine, with the same versions and threads, a
resumed fit on a CPU ends with exactly the same weights; on a GPU they may differ by rounding. `--resume` keeps the
settings of the run. You may change only these: {", ".join((*ELASTIC, *SAVES_MEMORY))}. A job that a
script starts with `&` ignores Ctrl-C; stop it with `kill`, which sends SIGTERM.

**Several GPUs.** Run `torchrun --nproc-per-node 8 -m xdoge fit-weights STORE ...`, or `accelerate launch --multi_gpu
--num_processes 8 -m xdoge fit-weights STORE ...`. All nodes must see the same folders. Each process computes its part
of every batch. Results match a single-process fit up to floating-point rounding. A long fit amplifies this rounding,
but less than a change of seed. If a process dies or hangs, the others stop after at most `timeout` seconds. The
launchers have exit statuses of their own.

**Settings** for `--set KEY=VALUE` and for the YAML file of `--config`. The options at the end override them:

{settings_help(FitSettings)}

**Examples**

- `xdoge fit-weights store --out runs/60m --proxy 60m --floor 0.002`

- `xdoge fit-weights store --out runs/robust --proxy 60m --targets robust --target-budget 100B`

- `xdoge fit-weights store --out runs/gl --set targets="{{gl/wikipedia: 1}}" --set held_out="[gl/wikipedia]"`, for the
weights that help most on a source that the proxy never trains on

- `xdoge fit-weights store --out runs/60m --proxy 60m --floor 0.002 --resume`
"""


@app.command(name="fit-weights", help=_FIT_HELP)
def fit_weights(
    corpus: Annotated[
        Path, typer.Argument(metavar="STORE|CORPUS.yaml", help="Token store, or a corpus to prepare into RUN/store.")
    ],
    out: options.RunPath,
    proxy: options.Proxy = None,
    floor: Annotated[
        float | None,
        typer.Option(
            parser=options.number,
            metavar="G",
            help="Minimum weight of each source; below 1/k for k sources.",
            show_default="1/(20 k)",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(parser=options.count(), metavar="N", help="Optimiser steps.", show_default="the recipe's"),
    ] = None,
    seed: options.ProxySeed = None,
    targets: Annotated[
        str | None,
        typer.Option(metavar="WHOM", help="Whose loss counts: languages, sources or robust.", show_default="languages"),
    ] = None,
    no_worse_than: Annotated[
        str | None,
        typer.Option(
            metavar="REF:PERCENT",
            help="Limit on each language's estimated final loss, such as uniform:1%.",
            show_default="no limit",
        ),
    ] = None,
    target_budget: Annotated[
        str | None,
        typer.Option(
            metavar="TOKENS",
            help="Repeat sources as often as a run of this many tokens, such as 100B.",
            show_default="use all text",
        ),
    ] = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    resume: options.Resume = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Check the SHA-256 of every file of the store before the fit.")
    ] = False,
    workers: options.Workers = None,
    as_json: options.Json = False,
) -> None:
    from xdoge.corpus.spec import Corpus

    where = str(config) if config else "settings"
    flags = {
        "proxy": proxy,
        "floor": floor,
        "steps": steps,
        "seed": seed,
        "targets": targets,
        "no_worse_than": no_worse_than,
        "target_budget": target_budget,
    }
    with one_voice():
        chosen = run_settings(out, config, assignments, flags, resume=resume)
        if corpus.suffix in (".yaml", ".yml"):  # preparing may take hours, so check everything else first
            if os.environ.get("WORLD_SIZE", "1") != "1":
                raise XDogeError(f"{corpus}: several processes need a token store; make one with xdoge prepare first.")
            languages = by_language(source.name for source in Corpus.load(corpus).sources)
            FitSettings.for_sources(languages, chosen, where=where)
            store = prepare_store(corpus, out / "store", workers=workers)
        else:
            store = TokenStore.open(corpus)
        if verify:  # in all processes, so that none waits for another
            store.verify()
        result = run_fit(store, FitSettings.for_store(store, chosen, where=where), out, resume=resume)
    if is_first():
        print_fit(result, store, as_json=as_json)


def run_fit(store: TokenStore, settings: FitSettings, out: Path, *, resume: bool = False) -> FitResult:
    from transformers.utils.logging import disable_progress_bar

    from xdoge.cli.progress import Display
    from xdoge.fit.trainer import fit

    disable_progress_bar()  # type: ignore[no-untyped-call]
    if not resume and is_first():
        shape = load_recipe(settings.proxy).model_dump(mode="json", exclude={"about", *FitSettings.model_fields})
        config = {"settings": settings.model_dump(mode="json"), "recipe": shape}
        print(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), file=sys.stderr)
    with Display() as display:
        return fit(store, settings, out=out, resume=resume, on_progress=display.show, on_note=display.note)


def print_fit(result: FitResult, store: TokenStore, *, as_json: bool) -> None:
    """Print the weights with the shares of the corpus, the cosines, the paths of the files, and a verdict."""
    weights, out, cosines = result.weights, result.path, _cosines(store, result.path)
    if as_json:
        answer = {
            "languages": weights.languages,
            "sources": dict(weights.sources),
            "cosines": None if cosines is None else cosines.to_dict(),
            "verdict": " ".join(result.verdict),
        }
        print(json.dumps(answer, indent=2))
        return
    print(f"{weights.name}: learned shares of training tokens (mean over {weights.method['steps']} steps)")
    print_weights(weights, store)
    if excess := weights.method.get("excess"):
        ends = (f"{name} " + ("?" if value is None else f"{value:+.2%}") for name, value in excess.items())
        print(
            f"estimated final loss against that of no_worse_than {weights.method['no_worse_than']}: {', '.join(ends)}"
        )
    if cosines is not None:
        _print_cosines(cosines)
    print_pace(out, weights.proxy["tokens_seen"])
    print_files(out, "weights.json", "trajectory.parquet", "metrics.jsonl", "gram.parquet", "config.yaml", "proxy")
    print(f"verdict: {' '.join(result.verdict)}")


def _cosines(store: TokenStore, out: Path) -> LanguageCosines | None:
    """Return the cosines between the languages' gradients over the fit; None if they were not measured."""
    from xdoge.fit.affinity import LanguageCosines
    from xdoge.training.run_folder import RunFolder

    path = RunFolder(out).gram
    return LanguageCosines.read(path, store.languages, store.sources) if path.exists() else None


def _print_cosines(cosines: LanguageCosines) -> None:
    """Print the cosine of the loss gradients of each pair of languages, with its standard error."""
    print("Cosines of the languages' loss gradients ± standard error; above 0, training on one lowers the other's loss")
    table = empty_table(("",), cosines.languages)
    for i, language in enumerate(cosines.languages):
        cells = []
        for j in range(len(cosines.languages)):
            value, error = cosines.cosines[i, j], cosines.errors[i, j]
            text = f"{value:.2f}" + ("" if math.isnan(error) or i == j else f" ±{error:.2f}")
            cells.append("–" if math.isnan(value) else f"({text})" if cosines.noise[i, j] else text)
        table.add_row(language, *cells)
    stdout.print(table)
    print("in brackets: not significantly different from 0; –: not measurable")
