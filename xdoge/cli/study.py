"""`xdoge study`: a comparison of strategies over seeds, from weights to perplexity."""

from __future__ import annotations

import fnmatch
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from xdoge.cli import options
from xdoge.cli.app import app
from xdoge.cli.tables import print_table, print_verdict
from xdoge.config import settings_help
from xdoge.errors import MissingExtraError, XDogeError, few
from xdoge.io import write_json, write_text
from xdoge.study import Findings, Study, StudySpec
from xdoge.study import report as study_report
from xdoge.study.attempts import failed_runs
from xdoge.study.predictions import predictions
from xdoge.study.spec import KINDS

_STUDY_HELP = f"""Compare strategies: train the same model on the mixture of each, over several seeds.

For every strategy and seed, the study makes weights, plans a mixture, trains a model on it, and measures its bits per
byte on the whole validation text of the store. Each step is a command of xdoge with its own folder in OUT.

**Two comparisons.** At equal tokens, all models train on the same number of tokens. At equal FLOPs, the cost of
learning the weights counts, too. The most costly strategy trains on that number of tokens; strategies that spend less
on learning train for longer.

**What it prints.** Bits per byte by language, their mean (macro) and the worst language. Differences to the strategy
`relative_to` (Δ), paired by seed and document, ± half of a 95 % interval over both. The regret: how much higher a
strategy is than the best one. The cost of the weights, and the distance between the weights of two seeds. A verdict
says which differences are significant, how many more seeds would decide the others, and what to do next. OUT/study.json
has every number, and OUT/report.html is a page with charts.

**Failed runs.** The report counts every planned model, and names those that failed. If a run fails, the others
continue. The last line of its log is shown, the log is in OUT/logs, and the exit status is 1.

**Changes.** You can add seeds and strategies to a study that has begun. You cannot remove any, nor change a run, so
that no result is left out. Only a run that failed without a result may get other settings; its old files, except the
log, are then removed.

**Stopping.** Ctrl-C and SIGTERM stop all commands, which write what they need to continue. Run the same command again
to continue, also after a kill; failed runs are tried again. Checkpoints of finished runs are removed.

**On a cluster.** `--slurm FILE` writes a script that submits all runs as Slurm arrays: first the weights, then the
models, then the report.

**Laws.** Strategies of kind `law` share one swarm, which is trained once. At equal FLOPs, each of these strategies is
charged for the whole swarm. Their settings are options of `xdoge optimize` and `xdoge fit-law`: `objective: mean` or
`worst`, `no_worse_than`, `mean_no_worse_than`, `force_optimum: true` and `form` (`log-linear` as in Olmix, `lightgbm`
as in RegMix).

**STUDY.yaml.** The kinds of strategies are {", ".join(KINDS)}. `fit` takes the settings of `xdoge fit-weights`;
`doremi`, `regmix` and `doge` take those of `xdoge baseline`. The first four kinds are those of `xdoge mix`. They take
`level: languages` or `sources`: what gets equal or proportional shares. `temperature` also takes `temperature`, the τ
of `xdoge mix`. All kinds take `max_epochs`. The keys of the file are:

{settings_help(StudySpec)}

**Examples**

- `xdoge study study.yaml --out studies/first --dry-run`

- `xdoge study study.yaml --out studies/first --jobs 2`

- `xdoge study study.yaml --out studies/first --slurm study.sbatch && bash study.sbatch --partition=GPU`
"""


@app.command(help=_STUDY_HELP)
def study(
    path: Annotated[
        Path, typer.Argument(metavar="STUDY.yaml", help="YAML file of the study: strategies, seeds and training.")
    ],
    out: Annotated[Path, typer.Option(help="Folder OUT of all runs. An unfinished study in it continues.")],
    store: Annotated[
        Path | None, typer.Option(help="Token store to use instead of that in STUDY.yaml.", show_default=False)
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(
            parser=options.count(1, options.MOST_WORKERS),
            metavar="N",
            help="Number of commands that run at once; they share the cores.",
        ),
    ] = 1,
    only: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN",
            help="Run only runs with such names, for example 'train/*', and print no table; may be repeated.",
        ),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Run nothing; report the results so far.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check OUT and print the commands and their cost; run nothing.")
    ] = False,
    slurm: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a Slurm script; run nothing.", show_default=False)
    ] = None,
    as_json: options.Json = False,
) -> None:
    from xdoge.study.runner import run_all

    planned = Study.load(path, store=store)
    command = ["xdoge", "study", str(path), "--out", str(out), *(["--store", str(store)] if store else [])]
    if dry_run:
        anew, runs = planned.check(out), planned.runs(out)
        finished = sum(run.finished for run in runs.values())
        if finished or anew:
            again = f" These runs failed and will restart with changed settings: {', '.join(anew)}." if anew else ""
            print(f"# {finished} of {len(runs)} runs in {out} are finished and will be kept.{again}")
        print(f"# Strategies that learn nothing write their weights first, to {out}/weights/NAME/weights.json.")
        print("\n".join(planned.commands(out)))
        print_plan(planned)
        return
    if slurm is not None:
        from xdoge.study.slurm import script

        if slurm.exists():
            raise XDogeError(f"{slurm} exists; remove it, or name another file.")
        planned.begin(out)
        write_text(slurm, script(planned, out, command, name=str(slurm)))
        print_plan(planned)
        print(slurm)
        return
    if report and not (out / "plan.json").exists():
        raise XDogeError(f"{out} has no study; leave out --report to start one.")
    failed: list[str] = []
    runs = planned.begin(out)
    if only:
        chosen = {name for name in runs for pattern in only if fnmatch.fnmatch(name, pattern)}
        if not chosen:
            raise XDogeError(f"--only {' '.join(only)} matches no run; --dry-run lists all runs.")
        failed = run_all(runs.values(), out, jobs=jobs, only=chosen.__contains__, on_note=_say)
    else:
        if not report:
            print_plan(planned)
            failed = run_all(runs.values(), out, jobs=jobs, on_note=_say)
        print_findings(planned.findings(out), out, " ".join(command), as_json=as_json)
    if failed:
        raise XDogeError(_of_failed(failed, planned, out))


def _of_failed(names: list[str], planned: Study, out: Path) -> str:
    """Return what to say of runs that failed, or were not started since another run failed."""
    tried = failed_runs(out)
    failed = [name for name in names if name in tried]
    idle = len(names) - len(failed)
    parts = [f"{len(failed)} run{'s' * (len(failed) != 1)} failed ({few(failed)})"] if failed else []
    if idle:
        were = "runs that need others were" if idle > 1 else "run that needs others was"
        parts.append(f"{idle} {were} not started")
    return (
        f"{' and '.join(parts)}; the logs are in {out}/logs. If settings are the cause, change them in "
        f"{planned.path}. Then run the same command again."
    )


def print_plan(planned: Study) -> None:
    """Print the number of runs and their cost on stderr."""
    for comparison in planned.spec.compare:
        steps = {name: planned.steps(comparison, name) for name in planned.strategies}
        listed = ", ".join(f"{name} {count:,}" for name, count in steps.items())
        _say(f"training steps at equal {comparison}: {listed}")
    costs = ", ".join(
        f"{strategy.name} {strategy.flops:.2g}" for strategy in planned.strategies.values() if strategy.flops
    )
    if planned.swarm:
        swarm, laws = planned.swarm, [strategy for strategy in planned.strategies.values() if strategy.law]
        _say(
            f"swarm: {swarm.runs} trainings of {swarm.proxy_tokens:,} tokens, {laws[0].flops:.2g} FLOPs. It runs once; "
            f"at equal FLOPs it is charged in full to {' and '.join(strategy.name for strategy in laws)}"
        )
    once = planned.training_flops(planned.steps("tokens", planned.spec.relative_to) * planned.tokens_per_step)
    total = sum(run.flops for run in planned.runs("OUT").values())
    _say(f"FLOPs: one training at equal tokens {once:.2g}; learning weights: {costs or 'none'}; all runs {total:.2g}")


def print_findings(findings: Findings, out: Path, command: str, *, as_json: bool) -> None:
    """Print the tables, and write study.json and report.html."""
    value = findings.to_dict() | {"predictions": predictions(findings)}
    write_json(out / "study.json", value)
    if as_json:
        print(json.dumps(value, indent=2))
    else:
        for table in study_report.tables(findings):
            print_table(table)
        for comparison in findings.study.spec.compare:
            print_verdict(findings.verdict(comparison), f"equal {comparison}")
    for line in findings.notes:
        _say(f"warning: {line}.")
    written = [out / "study.json"]
    try:
        write_text(out / "report.html", study_report.page(findings, command))
        written.append(out / "report.html")
    except MissingExtraError as error:
        _say(f"warning: no report.html: {error}")
    for file in written if not as_json else ():
        print(file)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
