"""`xdoge swarm`: small trainings on designed mixtures, from which `xdoge fit-law` learns a mixture law."""

from __future__ import annotations

import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from xdoge.cli import options
from xdoge.cli.app import app, chosen_settings, stdout
from xdoge.cli.options import Assignments, ConfigFile, Json
from xdoge.cli.tables import empty_table
from xdoge.config import parse_count, settings_help
from xdoge.errors import XDogeError, argument, require
from xdoge.io import write_text
from xdoge.laws.swarm_settings import SwarmSettings

if TYPE_CHECKING:
    from xdoge.corpus.store import TokenStore
    from xdoge.laws.swarm_plan import Swarm

_SWARM_HELP = f"""Train a swarm: many small proxies on different mixtures, each measured on every language.

`xdoge fit-law SWARM` then learns how the losses depend on the mixture. `--budget` is the number of training tokens of
the large run that you plan. Each proxy trains on a part of each source, small enough that it repeats this part as often
as the large run will repeat the source.

**Which mixtures?** The first runs train equal, proportional and temperature shares. Two of these mixtures are trained
with several seeds, to measure the noise between seeds. If seeds differ more than mixtures, the swarm stops. Then each
language gets a high share once and a low share once. The next mixtures are those that determine the law best (D-optimal
design). The last ones lie near the optimum of a law that is fitted to the earlier runs, without the held-out ones. In
designed mixtures a source may be read up to twice as often as `--max-epochs` allows, so that the optimum is inside
their range. One fifth of the runs is held out: no law is fitted to them, and they measure the error of the law.

**What it writes** into SWARM: `swarm.json`, settings and mixtures; `mixtures.csv` and `losses.csv`, shares and
validation losses in bits per byte; `held_out_mixtures.csv` and `held_out_losses.csv`, the same for the held-out runs;
`runs/`, a folder for each run; and `summary.json`, at the end.

**Stopping.** After Ctrl-C or a kill, run the same command with `--resume` to train the missing runs. Several processes
may train one swarm at the same time, each started with `--resume`.

**Settings** for `--set KEY=VALUE` and for the YAML file of `--config`. The options at the end override them:

{settings_help(SwarmSettings)}

**Examples**

- `xdoge swarm store --budget 100B --proxy 15m --out swarm --dry-run`

- `xdoge swarm store --budget 100B --proxy 15m --out swarm --jobs 4`

- `xdoge swarm store --budget 100B --proxy 15m --out swarm --slurm swarm.sh`

- `xdoge swarm store --budget 10B --proxy base/ --steps 500 --out swarm`, where every run continues from the model base/
"""


@app.command(help=_SWARM_HELP)
def swarm(  # one parameter for each option
    store: Annotated[Path, typer.Argument(metavar="STORE", help="Token store made by `xdoge prepare`.")],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="SWARM", help="Folder of the swarm; must be new or empty, except with --resume."),
    ],
    budget_tokens: Annotated[
        str | None,
        typer.Option(
            "--budget",
            metavar="TOKENS",
            help="Training tokens of the large run, such as 100B; required for a new swarm.",
        ),
    ] = None,
    proxy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE|MODEL",
            help="Proxy recipe, or a trained model that every run continues from.",
            show_default=options.PROXY,
        ),
    ] = None,
    runs: Annotated[
        int | None,
        typer.Option(
            parser=options.count(1),
            metavar="N",
            help="Number of trainings.",
            show_default="9 + 5 × number of shares",
        ),
    ] = None,
    max_epochs: Annotated[
        str | None,
        typer.Option(metavar="N", help="Maximum epochs of a source in the large run, or none.", show_default="8"),
    ] = None,
    level: Annotated[
        str | None,
        typer.Option(
            metavar="languages|sources",
            help="Vary the shares of languages or those of sources.",
            show_default="languages",
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(metavar="A,B,...", help="Seeds of the proxies.", show_default="0,1,2,3")
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            parser=options.count(1),
            metavar="N",
            help="Steps of each training; required if they continue from a model.",
            show_default="the recipe's",
        ),
    ] = None,
    affinity: Annotated[
        str | None,
        typer.Option(
            metavar="RUN",
            help="Run folder of `xdoge fit-weights`; its gradients tell the law beforehand which source helps which "
            "language.",
        ),
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            parser=options.count(1, options.MOST_WORKERS),
            metavar="N",
            help="Number of trainings that run at once; they share the cores.",
        ),
    ] = 1,
    target_parameters: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="With --dry-run: parameters of the large model, such as 7B, to show the swarm's part of its cost.",
        ),
    ] = None,
    slurm: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a Slurm script with --jobs tasks, at least 2; train nothing."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the mixtures and their cost; train nothing.")
    ] = False,
    config: ConfigFile = None,
    assignments: Assignments = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the swarm in SWARM, with its settings.")] = False,
    as_json: Json = False,
) -> None:
    require("proxy", "torch", "transformers")
    from xdoge.cli.progress import Display
    from xdoge.corpus.store import TokenStore
    from xdoge.laws.swarm import begin, run_swarm
    from xdoge.laws.swarm_plan import Swarm

    flags: dict[str, Any] = {
        "budget_tokens": budget_tokens,
        "proxy": proxy,
        "runs": runs,
        "level": level,
        "steps": steps,
        "affinity": affinity,
    }
    if max_epochs is not None:
        flags["max_epochs"] = None if max_epochs == "none" else max_epochs
    values = chosen_settings(config, assignments, flags)
    if max_epochs == "none":
        values["max_epochs"] = None
    if seeds is not None:
        values["seeds"] = _seeds(seeds)
    tokens = TokenStore.open(store)
    if resume:
        values = Swarm.load(out).settings.model_dump(mode="json") | values
    if "budget_tokens" not in values:
        raise XDogeError(
            f"{argument('budget_tokens')} is missing; give the tokens of the run that the law is for, such as 100B."
        )
    settings = SwarmSettings.for_store(tokens, values, where=str(config) if config else "settings")
    if dry_run:
        print_plan(Swarm.plan(tokens, settings, out), tokens, target_parameters, as_json=as_json)
        return
    if slurm is not None:
        if slurm.exists():
            raise XDogeError(f"{slurm} exists; remove it, or name another file.")
        begin(tokens, settings, out, resume=resume)
        command = ["xdoge", "swarm", str(store.resolve()), "--out", str(out.resolve()), "--resume"]
        write_text(slurm, slurm_script(command, tasks=max(jobs, 2), out=out.resolve()))
        print(f"{slurm}: {max(jobs, 2)} tasks that share {out}; submit them with: sbatch {slurm}")
        return
    if not resume:
        print(yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False), file=sys.stderr)
    with Display() as display:
        trained = run_swarm(
            tokens, settings, out, resume=resume, jobs=jobs, on_progress=display.show, on_note=display.note
        )
    print_swarm(trained, as_json=as_json)


def _seeds(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise XDogeError(
            f"{argument('seeds')} {text!r}: write whole numbers separated by commas, such as 0,1,2,3."
        ) from error


def print_plan(planned: Swarm, store: TokenStore, target_parameters: str | None, *, as_json: bool) -> None:
    """Print the mixtures that are known before any training, and the cost of the swarm."""
    from xdoge.training.pace import duration

    settings = planned.settings
    if not as_json:
        _print_mixtures(planned)
    print(f"timing a few steps of {settings.proxy} here ...", file=sys.stderr)
    seconds = time_steps(planned, store)
    flops, hours = planned.flops(), seconds * settings.steps * settings.runs / 3600
    target = None if target_parameters is None else 6 * parse_count(target_parameters) * settings.budget_tokens
    if as_json:
        rows = [{"run": run.name, "stage": run.stage, "held_out": run.held_out} for run in planned.runs]
        mixtures = [dict(zip(planned.units, run.shares, strict=True)) for run in planned.runs]
        value = {
            "runs": [row | {"shares": mixture} for row, mixture in zip(rows, mixtures, strict=True)],
            "trainings": settings.runs,
            "flops": flops,
            "hours": hours,
            "share_of_target": None if target is None else flops / target,
        }
        print(json.dumps(value, indent=2))
        return
    print(
        f"{settings.runs} trainings of {settings.proxy_tokens:,} tokens: {flops:.2e} FLOP, "
        f"about {duration(hours * 3600)} here, one after the other (estimated from a few steps)"
    )
    if target is not None:
        print(f"this is {flops / target:.2%} of the training of the target model (6 N D = {target:.2e} FLOP)")
    for line in settings.notes(store):
        print(f"note: {line}", file=sys.stderr)


def _print_mixtures(planned: Swarm) -> None:
    table = empty_table(("run",), (*planned.units, "most epochs"))
    for run in planned.runs:
        epochs = max(share * planned.passes[unit] for unit, share in zip(planned.units, run.shares, strict=True))
        cells = [f"{share:.3f}" for share in run.shares]
        table.add_row(run.name + (" (held out)" if run.held_out else ""), *cells, f"{epochs:.1f}")
    stdout.print(table)
    more = planned.settings.runs - len(planned.runs)
    if more:
        print(f"{more} more runs near the optimum will be planned when these have finished")


def time_steps(planned: Swarm, store: TokenStore) -> float:
    """Return the seconds of one training step on this machine: the fastest of three, after one to warm up."""
    import itertools

    from xdoge.laws.swarm_run import Training

    run = planned.runs[0]
    steps = Training(store, planned.settings, planned.weights(run), run.seed).steps()
    times = []
    for _ in itertools.islice(iter(lambda: next(steps), None), min(4, planned.settings.steps)):
        times.append(time.perf_counter())
    return min((b - a for a, b in itertools.pairwise(times)), default=0.0)


def print_swarm(trained: Swarm, *, as_json: bool) -> None:
    """Print the loss of every run, the noise, and what to do next."""
    results = trained.results()
    if as_json:
        print((trained.path / "swarm.json").read_text(encoding="utf-8"))
        return
    print("validation loss in bits per byte")
    table = empty_table(("run",), (*trained.languages, "mean", "worst"))
    for run in trained.runs:
        losses = results[run.name].losses
        if results[run.name].diverged is not None:
            table.add_row(run.name, *["–"] * (len(trained.languages) + 2))
            continue
        numbers = [losses[language] for language in trained.languages]
        cells = [f"{number:.3f}" for number in (*numbers, sum(numbers) / len(numbers), max(numbers))]
        table.add_row(run.name + (" (held out)" if run.held_out else ""), *cells)
    stdout.print(table)
    print(trained.describe_noise() if trained.noise else "The noise between seeds was not measured.")
    print(f"next: xdoge fit-law {shlex.quote(str(trained.path))} --out law.json")


def slurm_script(command: list[str], *, tasks: int, out: Path) -> str:
    """Return a script of `tasks` array tasks that share the swarm's folder."""
    return f"""#!/usr/bin/env bash
# Written by `xdoge swarm --slurm`. Each task trains runs that no other task is training, until all are finished.
#SBATCH --job-name=xdoge-swarm
#SBATCH --array=1-{tasks}
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
#SBATCH --output={shlex.quote(f"{out}/slurm-%a.log")}
set -euo pipefail
export OMP_NUM_THREADS=${{SLURM_CPUS_PER_TASK:-1}} SRUN_CPUS_PER_TASK=${{SLURM_CPUS_PER_TASK:-1}}
srun {shlex.join(command)}
"""
