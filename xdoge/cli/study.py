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

_STUDY_HELP = f"""Train the same model on the mixtures of several strategies, over seeds, and say whom each one helps.

**Every strategy** gets weights with every seed, from them a mixture, on that a model, and of that the bits per byte of
the store's whole validation text. All are commands of xdoge, and each writes into a folder of its own in OUT.

**Two comparisons.** Equal tokens: all models train alike. Equal total FLOPs: learning the weights counts. All have what
the dearest strategy needs at equal tokens, and those that learn for less, or not at all, train for longer.

**What it prints**: bits per byte by language, their mean (macro) and the worst language, with differences to
`relative_to`, paired by seed and document, and their 95 % intervals over both; what the weights cost; and how far the
weights of two seeds lie apart. It ends with a verdict: which differences are real, how many more seeds would decide the
others, and what to do next. OUT/study.json has every number, OUT/report.html a page with charts.

**No cherry-picking.** Every model that was planned is counted, failed ones by name. A run that fails stops no other;
its last line is shown, the whole log is in OUT/logs, and the exit status is 1. To a study that has begun, seeds and
strategies can be added, as long as no run of before changes; none can be taken away. Only a run that failed and has no
result may get other settings; what it had written, other than its log, is removed.

**Stopping.** Ctrl-C and SIGTERM are passed on, and every command writes what it needs. The same command goes on, after
a kill too, and tries again what failed. Checkpoints of a finished run are removed.

**On a cluster**: `--slurm FILE` writes a script that submits all of it as arrays: weights, models, report.

**Laws.** Strategies of kind `law` share one swarm, which the study trains once. At equal FLOPs each is charged all of
it. Their settings are options of `xdoge optimize` and `xdoge fit-law`: `objective: mean` or `worst`, `no_worse_than`,
`mean_no_worse_than`, `force_optimum: true` and `form`, which is `log-linear` for Olmix and `lightgbm` for RegMix.

**STUDY.yaml**; kinds of strategies are {", ".join(KINDS)}. `fit` takes the settings of `xdoge fit-weights`, the last
three those of `xdoge baseline`; sizes alone decide the others, with `level: languages` or `sources` and, for
temperature, `temperature`. All take `max_epochs`:

{settings_help(StudySpec)}

**Examples**

- `xdoge study study.yaml --out studies/first --dry-run`

- `xdoge study study.yaml --out studies/first --jobs 2`

- `xdoge study study.yaml --out studies/first --slurm study.sbatch && bash study.sbatch --partition=GPU`
"""


@app.command(help=_STUDY_HELP)
def study(
    path: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="Strategies, seeds and training.")],
    out: Annotated[Path, typer.Option(help="Folder of all runs; one that this study began goes on.")],
    store: Annotated[
        Path | None, typer.Option(help="Token store, in place of the study's.", show_default=False)
    ] = None,
    jobs: Annotated[
        int,
        typer.Option(parser=options.count(1), metavar="N", help="Commands at once, each with that part of the cores."),
    ] = 1,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Start runs of these names only, as 'train/*', and print no table."),
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Run nothing; show what is finished so far.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the commands and what they cost; check OUT.")
    ] = False,
    slurm: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a script for Slurm instead.", show_default=False)
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
            again = f" These failed and begin anew, since their settings changed: {', '.join(anew)}." if anew else ""
            print(f"# {finished} of {len(runs)} runs are finished in {out} and stay as they are.{again}")
        print(f"# Weights of strategies that learn nothing, {out}/weights/NAME/weights.json, are written at the start.")
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
        raise XDogeError(f"{out} holds no study; without --report it begins.")
    failed: list[str] = []
    runs = planned.begin(out)
    if only:
        chosen = {name for name in runs for pattern in only if fnmatch.fnmatch(name, pattern)}
        if not chosen:
            raise XDogeError(f"--only {' '.join(only)} fits none of the runs; --dry-run lists what they write.")
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
        f"{' and '.join(parts)}; the logs are in {out}/logs. The same command tries again; change the settings of what "
        f"failed in {planned.path} before."
    )


def print_plan(planned: Study) -> None:
    """Print the number of runs and their cost on stderr."""
    for comparison in planned.spec.compare:
        steps = {name: planned.steps(comparison, name) for name in planned.strategies}
        told = ", ".join(f"{name} {count:,}" for name, count in steps.items())
        _say(f"equal {comparison}, steps of training: {told}")
    told = ", ".join(
        f"{strategy.name} {strategy.flops:.2g}" for strategy in planned.strategies.values() if strategy.flops
    )
    if planned.swarm:
        swarm, laws = planned.swarm, [strategy for strategy in planned.strategies.values() if strategy.law]
        _say(
            f"swarm: {swarm.runs} trainings of {swarm.proxy_tokens:,} tokens, {laws[0].flops:.2g} FLOPs, run once; at "
            f"equal FLOPs each of {', '.join(strategy.name for strategy in laws)} is charged all of it"
        )
    once = planned.training_flops(planned.steps("tokens", planned.spec.relative_to) * planned.tokens_per_step)
    total = sum(run.flops for run in planned.runs("OUT").values())
    _say(f"FLOPs: a training at equal tokens {once:.2g}; learning {told or 'nothing'}; all runs {total:.2g}")


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
