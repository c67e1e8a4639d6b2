"""`xdoge baseline`: weights by DoReMi, RegMix or DoGE, with the same store, proxies and training as a fit."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
import yaml

from xdoge.baselines import METHODS, BaselineSettings, check_method, learn
from xdoge.cli import options
from xdoge.cli.app import app, run_settings
from xdoge.cli.tables import print_files, print_pace, print_weights
from xdoge.config import read_yaml, settings_help
from xdoge.corpus.store import TokenStore
from xdoge.errors import XDogeError
from xdoge.fit.result import FitResult

_REGMIX_PROXY = METHODS["regmix"].model_fields["proxy"].default


def _only(method: str) -> str:
    """Return the help for the settings of a method that the other methods do not have."""
    lines = settings_help(METHODS[method]).split("\n\n")
    common = settings_help(BaselineSettings).split("\n\n")
    return "\n\n".join(line for line in lines if line not in common)


_BASELINE_HELP = f"""Learn weights with another method (DoReMi, RegMix or DoGE), for comparison.

The store, proxy recipes, optimiser, batches and output files are those of `xdoge fit-weights`; only the method differs.
weights.json holds the cost as `proxy: flops`, the exact FLOPs of all models it trained or ran.

- `doremi` (Xie et al. 2023) trains a reference model on fixed weights. Then it trains a proxy whose loss gives more
weight to the sources where the proxy is furthest behind the reference. The result is the mean of these weights. It
costs as many FLOPs as 2.3 trainings of the proxy.

- `regmix` (Liu et al. 2024) trains many tiny models on random mixtures and fits a regression of their validation loss
on the weights. The result is the mean of the mixtures with the lowest predicted loss. It costs `runs` trainings of the
tiny model. It needs pip install 'xdoge[baselines]', or `--set regressor=linear`.

- `doge` (Fan et al. 2023) computes what the code of its authors computes. It costs about one training of the proxy.
docs/explanation/method.md says where fit-weights differs.

Weights that need no proxy (uniform, proportional, temperature, unimax) are strategies of `xdoge mix`. `xdoge
fit-weights --set score=paper` scores sources as in the XDoGE paper.

**What it writes** into RUN: `weights.json`, the result; `config.yaml`, all settings; `metrics.jsonl`, one row per step
(regmix: per tiny model); for doremi and doge also `trajectory.parquet` and `checkpoints/`.

**Stopping.** Ctrl-C and SIGTERM end the running step and write a checkpoint; regmix restarts the running model. Run the
same command with `--resume` to continue, also after a kill. On a CPU, with the same machine and versions, the weights
are then exactly the same. Baselines run in a single process.

**Examples**

- `xdoge baseline doremi store --out runs/doremi --proxy 60m --steps 2000`

- `xdoge baseline regmix store --out runs/regmix --steps 200 --set runs=128`

- `xdoge mix runs/doremi/weights.json --store store --budget 100B --out mixture.json`, to plan a mixture with the
weights

**Settings of all methods**, for `--set KEY=VALUE` and for the YAML file of `--config`:

{settings_help(BaselineSettings)}

**Settings of doremi only:**

{_only("doremi")}

**Settings of regmix only**, whose default proxy is {_REGMIX_PROXY}:

{_only("regmix")}

**Settings of doge only:**

{_only("doge")}
"""


@app.command(help=_BASELINE_HELP)
def baseline(
    method: Annotated[str, typer.Argument(metavar="METHOD", help=f"Method: {', '.join(METHODS)}.")],
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Token store made by `xdoge prepare`.")],
    out: options.RunPath,
    proxy: Annotated[str | None, options.proxy(f"{options.PROXY}, for regmix {_REGMIX_PROXY}")] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            parser=options.count(), metavar="N", help="Optimiser steps of each proxy.", show_default="the recipe's"
        ),
    ] = None,
    seed: options.ProxySeed = None,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    resume: options.Resume = False,
    as_json: options.Json = False,
) -> None:
    check_method(method)
    flags = {"proxy": proxy, "steps": steps, "seed": seed}
    chosen = run_settings(out, config, assignments, flags, resume=resume)
    if resume and (before := read_yaml(out / "config.yaml").get("baseline", "fit-weights")) != method:
        raise XDogeError(f"{out} holds a run of {before}, not of {method}.")
    tokens = TokenStore.open(store)
    settings = METHODS[method].for_store(tokens, chosen, where=str(config) if config else "settings")
    print_baseline(run_baseline(method, tokens, settings, out, resume=resume), tokens, as_json=as_json)


def run_baseline(
    method: str, store: TokenStore, settings: BaselineSettings, out: Path, *, resume: bool = False
) -> FitResult:
    from xdoge.cli.progress import Display

    if not resume:
        print(yaml.safe_dump({"settings": settings.model_dump(mode="json")}, sort_keys=False), file=sys.stderr)
    with Display() as display:
        return learn(method, store, settings, out=out, resume=resume, on_progress=display.show, on_note=display.note)


def print_baseline(result: FitResult, store: TokenStore, *, as_json: bool) -> None:
    """Print the weights with the shares of the corpus, their cost, the paths of the files, and a verdict."""
    weights, out, verdict = result.weights, result.path, " ".join(result.verdict)
    flops = weights.proxy["flops"]
    if as_json:
        answer = {"languages": weights.languages, "sources": dict(weights.sources), "flops": flops, "verdict": verdict}
        print(json.dumps(answer, indent=2))
        return
    print(f"{weights.name}: learned shares of training tokens; cost {flops:.3g} FLOPs")
    print_weights(weights, store)
    print_pace(out, weights.proxy["tokens_seen"])
    print_files(out, "weights.json", "trajectory.parquet", "metrics.jsonl", "config.yaml")
    print(f"verdict: {verdict}")
