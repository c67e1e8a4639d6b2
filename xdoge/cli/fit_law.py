"""`xdoge fit-law`: fit a law that predicts the losses of a mixture from runs on other mixtures."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table as Drawn

from xdoge.cli import options
from xdoge.cli.app import app, refuse_taken, stdout
from xdoge.cli.options import Force, Json
from xdoge.config import parse_count
from xdoge.errors import XDogeError, argument

if TYPE_CHECKING:
    from xdoge.laws.law import LawSettings, MixtureLaw
    from xdoge.laws.problem import Floats
    from xdoge.laws.swarm_plan import HeldOut
    from xdoge.mixtures.csv_files import Table

_HELP = """Fit a mixture law: a function from the shares of a mixture to the loss on each evaluation.

First train small models on some mixtures, with `xdoge swarm` or on your own. `fit-law` learns to predict the losses of
other mixtures. `xdoge predict` and `xdoge optimize` use the law. Give the folder of a swarm, or for your own runs two
CSV files: --mixtures with the shares and --losses with the losses, in any unit. Their first column is the run's id.

**Names.** An evaluation is a column of losses, such as the loss on one language. It belongs to the source of the same
name; prefixes and suffixes that all names of a file share are ignored. An evaluation `eu` also belongs to the sources
`eu/...`. Use --own for other names. Evaluations without a source and sources without an evaluation are allowed.

**How many runs?** At least 8, and at least as many as sources; three per source are a good start. A law from 48 runs on
17 sources ranked 256 new mixtures with a rank correlation of 0.98 (docs/explanation/law.md).

**Forms.** `effective` models how sources help each other and how repetition loses its value. Only this form can predict
another budget. `process` is a Gaussian process, `log-linear` is that of Olmix, `lightgbm` that of RegMix, and `linear`
a linear regression. `auto`, the default, is the mean of the first three, with the weights that predict best in
cross-validation.

**Repetition.** A law knows how often each source is repeated if it is fitted to a swarm, or with --tokens and --budget.
Otherwise it cannot cap epochs.

**What it prints.** For each form, how well it predicts runs that it was not fitted to. For each evaluation, what a
token of the most helpful other sources is worth, in tokens of the evaluation's own text.

**Examples**

- `xdoge fit-law swarm --out law.json`

- `xdoge fit-law --mixtures mixtures.csv --losses losses.csv --out law.json`

- `xdoge fit-law --mixtures m.csv --losses l.csv --tokens counts.csv --budget 1B --out law.json`, for a law that knows
how often sources are repeated

- `xdoge fit-law --mixtures m.csv --losses l.csv --own english=en/web --form effective --out law.json`

- `xdoge fit-law --mixtures m.csv --losses l.csv --also m60.csv l60.csv --out law60.json`, for models of another size
"""


@app.command(name="fit-law", help=_HELP)
def fit_law(  # one parameter for each option
    out: Annotated[Path, typer.Option(metavar="LAW.json", help="File to write.", show_default=False)],
    swarm: Annotated[
        Path | None, typer.Argument(metavar="SWARM", help="Folder of `xdoge swarm`.", show_default=False)
    ] = None,
    mixtures: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Shares of your own runs: the run's id, then one column per source."),
    ] = None,
    losses: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Losses of your own runs: the run's id, then one column per evaluation."),
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EVALUATION=SOURCE",
            help="Source to which an evaluation belongs; may be repeated. For CSV files only.",
        ),
    ] = None,
    form: Annotated[
        str,
        typer.Option(
            help="Form of the law: auto, effective, process, log-linear, lightgbm or linear.", show_default=True
        ),
    ] = "auto",
    tokens: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Unique tokens of each source, in lines SOURCE,TOKENS; requires --budget."),
    ] = None,
    budget_tokens: Annotated[
        str | None,
        typer.Option(
            "--budget", metavar="TOKENS", help="Training tokens of each of your runs, such as 500M; requires --tokens."
        ),
    ] = None,
    also: Annotated[
        tuple[Path, Path] | None,
        typer.Option(
            metavar="MIXTURES LOSSES",
            help="CSV files of at least 3 runs with models of another size, better 8; the law then predicts that size.",
        ),
    ] = None,
    affinity: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Run folder of `xdoge fit-weights`; its gradients are used if they lower the error of the law.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            parser=options.count(),
            metavar="S",
            help="Seed of the cross-validation folds. For CSV files only.",
            show_default="0",
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    from xdoge.cli.progress import Display
    from xdoge.laws.law import MixtureLaw
    from xdoge.laws.swarm_plan import Swarm
    from xdoge.laws.transfer import read_affinity
    from xdoge.mixtures.csv_files import align, read_mixtures, read_table

    refuse_taken(out, force)
    csv_options = (mixtures, losses, tokens, budget_tokens)
    if (swarm is None) == (mixtures is None and losses is None) or (swarm is not None and any(csv_options)):
        raise XDogeError(f"give either the folder of a swarm, or {argument('mixtures')} and {argument('losses')}.")
    if swarm is not None and (own or seed is not None):
        name = "own" if own else "seed"
        raise XDogeError(f"{argument(name)} is for CSV files only; leave it out with the folder of a swarm.")
    notes: list[str] = []
    held_out = None
    others = None if also is None else (read_mixtures(also[0]), read_table(also[1]))
    with Display() as display:
        if swarm is not None:
            plan = Swarm.load(swarm)
            adapting = _aligned(also, others, (plan.units, plan.languages))
            law = plan.fit(form=form, affinity=affinity, on_progress=display.show)
            held_out = plan.validate(law)
            notes += plan.notes()
        else:
            if mixtures is None or losses is None:
                missing = argument("losses") if losses is None else argument("mixtures")
                raise XDogeError(f"{missing} is missing; a law needs both shares and losses.")
            shares, measured = read_mixtures(mixtures), read_table(losses)
            adapting = _aligned(also, others, (shares.names, measured.names))
            law = MixtureLaw.fit(
                *align(shares, measured, (str(mixtures), str(losses))),
                sources=shares.names,
                evaluations=measured.names,
                own=[_pair(text) for text in own or []],
                form=form,
                settings=replace(
                    _settings(tokens, budget_tokens, seed or 0, shares.names),
                    affinity=None if affinity is None else read_affinity(affinity, shares.names, measured.names, None),
                ),
                on_progress=display.show,
            )
            notes += shares.notes
    error = None
    if adapting is not None and others is not None:
        law, error = law.adapt(*adapting)
        notes += others[0].notes
    law.save(out)
    for note in (*notes, *law.notes):
        print(f"note: {note}", file=sys.stderr)
    if as_json:
        print(json.dumps(_summary(law, error, held_out), indent=2))
        return
    print_scores(law)
    print_transfer(law)
    if error is not None:
        print(f"at the other size: root mean squared error {error:.4f} (leave-one-out)")
    if held_out is not None:
        print_held_out(held_out)
    print(out)
    best = law.validation[form]
    print(
        f"On runs that it was not fitted to, the law has a rank correlation of {best.rank_evaluations:.3f}, "
        f"and {best.coverage:.0%} of the losses lie inside their 90 % intervals."
    )


def _aligned(
    also: tuple[Path, Path] | None, others: tuple[Table, Table] | None, names: tuple[Sequence[str], Sequence[str]]
) -> tuple[Floats, Floats] | None:
    """Return shares and losses of the runs of another size, after a check of their columns; None without any."""
    from xdoge.mixtures.csv_files import align

    if also is None or others is None:
        return None
    for expected, other, path in zip(names, others, also, strict=True):
        if tuple(expected) != tuple(other.names):
            raise XDogeError(f"{path} must have the columns {', '.join(expected[:8])}, in this order.")
    if len(others[0].runs) < 3:
        raise XDogeError(
            f"{also[0]} has {len(others[0].runs)} runs; {argument('also')} needs at least 3, and 8 are better."
        )
    return align(*others, (str(also[0]), str(also[1])))


def _settings(tokens: Path | None, budget_tokens: str | None, seed: int, sources: Sequence[str]) -> LawSettings:
    from xdoge.laws.law import LawSettings
    from xdoge.mixtures.csv_files import read_counts

    counts = None if tokens is None else read_counts(tokens, sources)
    budget = None if budget_tokens is None else as_count(budget_tokens, "--budget")
    return LawSettings(tokens=counts, budget_tokens=budget, seed=seed)


def print_held_out(held_out: HeldOut) -> None:
    """Print the scores of the law on the held-out runs of the swarm."""
    scores = held_out.scores
    noise = "" if held_out.noise is None else f", {scores.rmse_mean / held_out.noise:.1f} times the noise between seeds"
    print(
        f"on the {held_out.runs} held-out runs: root mean squared error {scores.rmse:.4f} by language, "
        f"{scores.rmse_mean:.4f} of the mean{noise}; rank correlation {scores.rank_evaluations:.3f} by language, "
        f"{scores.rank_mean:.3f} of the mean; {scores.coverage:.0%} of the losses inside their 90 % intervals; "
        f"regret {scores.regret:.4f}"
    )


def as_count(text: str, option: str) -> int:
    """Return a number of tokens, from a text such as 500M.

    Raises:
        XDogeError: the text is not a whole number. The message names the option.
    """
    try:
        return parse_count(text)
    except ValueError as error:
        raise XDogeError(f"{option}: {error}.") from error


def _pair(text: str) -> tuple[str, str]:
    evaluation, equals, source = text.partition("=")
    if not equals or not evaluation or not source:
        raise XDogeError(f"--own {text}: write it as EVALUATION=SOURCE.")
    return evaluation, source


def _summary(law: MixtureLaw, error: float | None, held_out: HeldOut | None) -> dict[str, object]:
    intervals = law.transfer_intervals
    return {
        "form": law.form,
        "runs": len(law.shares),
        "weights": dict(law.weights),
        "validation": {name: scores.to_dict() for name, scores in law.validation.items()},
        "transfer": law.transfer,
        "transfer_90": {
            evaluation: dict(zip(law.problem.sources, zip(low, high, strict=True), strict=True))
            for evaluation, low, high in zip(
                law.problem.evaluations, intervals.low.tolist(), intervals.high.tolist(), strict=True
            )
        },
        "four_epochs_90": intervals.four_epochs,
        "notes": list(law.notes),
        "decay": law.effective.decay if law.tokens is not None else None,
        "rmse_also": error,
        "held_out": None if held_out is None else asdict(held_out),
    }


def print_scores(law: MixtureLaw) -> None:
    """Print the scores of each form on runs that it was not fitted to."""
    parts = " + ".join(f"{weight:.2f} {name}" for name, weight in law.weights.items())
    named = law.form if len(law.weights) == 1 else f"{law.form} ({parts})"
    print(
        f"{named}, fitted to {len(law.shares)} runs. Errors on runs that a form was not fitted to (cross-validation):"
    )
    drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("form", "ρ by evaluation", "ρ of mean", "RMSE", "RMSE / SD", "regret", "inside 90 %"):
        drawn.add_column(head, justify="left" if head == "form" else "right")
    for name, scores in law.validation.items():
        drawn.add_row(
            name,
            f"{scores.rank_evaluations:.3f}",
            f"{scores.rank_mean:.3f}",
            f"{scores.rmse:.4f}",
            f"{scores.relative:.3f}",
            f"{scores.regret:.4f}",
            "" if scores.coverage is None else f"{scores.coverage:.1%}",
            style="bold" if name == law.form else "",
        )
    stdout.print(drawn)
    print(
        "ρ: Spearman rank correlation of predicted and measured losses, by evaluation (mean) and of the mean loss; "
        "RMSE: root mean squared error, in the unit of the losses; SD: standard deviation of the losses; regret: "
        "measured mean loss of the run that is predicted to be best, minus the lowest one; inside 90 %: losses inside "
        "their 90 % intervals"
    )


def print_transfer(law: MixtureLaw) -> None:
    """Print the sources that help each evaluation most, except its own."""
    print("value of a token of another source to each evaluation, in tokens of its own text (the three highest):")
    own = dict(zip(law.problem.evaluations, law.problem.own, strict=True))
    intervals = law.transfer_intervals
    for number, (evaluation, row) in enumerate(law.transfer.items()):
        mine = {law.problem.sources[i] for i in own[evaluation]}
        best = sorted(((value, name) for name, value in row.items() if name not in mine), reverse=True)[:3]
        unit = "" if mine else " (has no source of its own; compare within this line only)"
        cells = []
        for value, name in best:
            column = law.problem.sources.index(name)
            ends = f"{intervals.low[number, column]:.2g} to {intervals.high[number, column]:.2g}"
            noise = ", noise" if intervals.is_noise[number, column] else ""
            cells.append(f"{name} {value:.2g} ({ends}{noise})")
        print(f"  {evaluation}{unit}: " + ", ".join(cells))
    print("in parentheses: 90 % intervals; noise: not significantly different from 0")
    if intervals.four_epochs is not None:
        import numpy as np

        from xdoge.laws.effective import epoch_value

        worth = float(epoch_value(np.array([4.0]), law.effective.decay)[0][0])
        low, high = intervals.four_epochs
        print(f"four epochs of a source are worth {worth:.2f} epochs of new text ({low:.2f} to {high:.2f})")
