"""`xdoge predict`: the losses of mixtures under a law, with 90 % intervals."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich import box
from rich.table import Table as Drawn

from xdoge.cli import options
from xdoge.cli.app import app, refuse_taken, stdout
from xdoge.cli.fit_law import as_count
from xdoge.cli.options import Force, Json
from xdoge.errors import XDogeError, names_that_differ

if TYPE_CHECKING:
    from xdoge.laws.law import MixtureLaw, Prediction

_HELP = """Predict the losses of mixtures with a law that `xdoge fit-law` fitted.

**Mixtures** are mixture.json or weights.json files, run folders, CSV files with the shares of one mixture (as
`optimize` writes), or the word uniform. If the law knows token counts, the words proportional and unimax (at most 4
epochs) work as well. --mixtures takes a CSV file with many mixtures: the run's id, then one column per source, as for
`fit-law`.

**Another budget.** --budget predicts for another number of training tokens than the law's. The law must know token
counts. The form effective is then used alone, since only this form models repetition. No run measured its error at that
budget.

**What it prints.** Each predicted loss with half of its 90 % interval, in the unit of the runs. With more than four
mixtures, the losses alone. For larger models trust the order of the mixtures, not the losses.

**What it writes.** With --out, a CSV file with the columns run, evaluation, predicted, low and high. For mixtures like
those of the runs, nine of ten losses lie between low and high. A warning names mixtures far from all runs.

**Examples**

- `xdoge predict law.json uniform weights.json mixture.json`

- `xdoge predict law.json --mixtures candidates.csv --out predictions.csv`

- `xdoge predict law.json uniform weights.json --budget 100B`, for another budget than the law's

- `xdoge predict law.json uniform --json`
"""


@app.command(help=_HELP)
def predict(
    law: Annotated[
        Path, typer.Argument(metavar="LAW.json", help="Law to use, written by `xdoge fit-law`.", show_default=False)
    ],
    mixtures_: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MIXTURE",
            help="mixture.json, weights.json, shares.csv, run folder, or uniform.",
            show_default=False,
        ),
    ] = None,
    mixtures: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="CSV file with many mixtures: the run's id, then one column per source."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="CSV", help="File to write; without it the losses are only printed.")
    ] = None,
    max_epochs: Annotated[
        float | None,
        typer.Option(
            parser=options.number,
            metavar="N",
            help="Refuse mixtures that read a source more than N times.",
            show_default="no limit",
        ),
    ] = None,
    budget_tokens: Annotated[
        str | None,
        typer.Option(
            "--budget", metavar="TOKENS", help="Training tokens to predict for: 500M, 2T.", show_default="the law's"
        ),
    ] = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    from xdoge.io import write_text
    from xdoge.laws.law import MixtureLaw
    from xdoge.laws.optimize import at_budget, unseen_epochs

    refuse_taken(out, force)
    if out is not None and out.suffix != ".csv":
        raise XDogeError(
            f"{out}: predictions are written as CSV; name a file that ends in .csv, or print JSON with --json."
        )
    loaded = MixtureLaw.load(law)
    fitted = at_budget(loaded, None if budget_tokens is None else as_count(budget_tokens, "--budget"))
    names, shares, notes = _mixtures(fitted, mixtures_ or [], mixtures)
    _refuse_epochs(fitted, names, shares, max_epochs)
    prediction = fitted.predict(shares)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    far = [name for name, outside in zip(names, prediction.extrapolated, strict=True) if outside]
    if far:
        more = f" and {len(far) - 5} more" if len(far) > 5 else ""
        print(
            f"warning: far from all runs, so the intervals may be too narrow: {', '.join(far[:5])}{more}",
            file=sys.stderr,
        )
    for line in unseen_epochs(fitted, loaded, dict(zip(names, shares, strict=True))):
        print(f"warning: {line}", file=sys.stderr)
    if out is not None:
        write_text(out, tidy(names, prediction))
    if as_json:
        print(json.dumps(_rows(names, prediction), indent=2))
    elif out is not None and mixtures is not None:
        print(out)
    else:
        print_prediction(fitted, names, prediction)
        if out is not None:
            print(out)
    budget = ""
    if fitted.budget_tokens is not None:
        other = loaded.budget_tokens != fitted.budget_tokens
        whose = f"; the runs had {loaded.budget_tokens:,}" if other else ", the law's budget"
        budget = f" Predicted for {fitted.budget_tokens:,} tokens{whose}."
    print(f"For other models or budgets, trust the order of the mixtures, not the losses.{budget}", file=sys.stderr)


def _refuse_epochs(law: MixtureLaw, names: list[str], shares: Any, max_epochs: float | None) -> None:
    if max_epochs is None:
        return
    from xdoge.laws.optimize import check_epochs

    check_epochs(max_epochs)
    if law.problem.passes is None:
        raise XDogeError("--max-epochs needs a law that knows token counts; fit the law with --tokens and --budget.")
    epochs = shares * np.array(law.problem.passes)
    over = np.argwhere(epochs > max_epochs * (1 + 1e-6))
    if len(over):
        row, column = over[0]
        raise XDogeError(
            f"{names[row]} reads {law.problem.sources[column]} {epochs[row, column]:.3g} times, more than --max-epochs "
            f"{max_epochs:g}; lower its share to {max_epochs / law.problem.passes[column]:.4g} or raise the cap."
        )


def _mixtures(law: MixtureLaw, words: list[str], table: Path | None) -> tuple[list[str], Any, list[str]]:
    from xdoge.mixtures.csv_files import read_mixtures

    if not words and table is None:
        raise XDogeError("nothing to predict; name mixtures, or a CSV file with --mixtures.")
    names: list[str] = []
    rows: list[Any] = []
    notes: list[str] = []
    for word in words:
        names.append(word)
        rows.append(law.shares_of(word))
    if table is not None:
        read = read_mixtures(table)
        if differing := names_that_differ(str(table), read.names, "the law", law.problem.sources):
            raise XDogeError(f"mixtures and law name different sources; {differing}.")
        order = [read.names.index(source) for source in law.problem.sources]
        names.extend(read.runs)
        rows.extend(read.values[:, order])
        notes.extend(read.notes)
    return names, np.array(rows, dtype=np.float64), notes


def tidy(names: list[str], prediction: Prediction) -> str:
    """Return predictions as CSV with the columns run, evaluation, predicted, low and high."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["run", "evaluation", "predicted", "low", "high"])
    columns = (prediction.predicted.tolist(), prediction.low.tolist(), prediction.high.tolist())
    for name, *rows in zip(names, *columns, strict=True):
        writer.writerows([name, *cells] for cells in zip(prediction.evaluations, *rows, strict=True))
    return file.getvalue()


def _rows(names: list[str], prediction: Prediction) -> list[dict[str, Any]]:
    return [
        {
            "run": name,
            "mean": float(prediction.mean[i]),
            "mean_half": float(prediction.mean_half[i]),
            "extrapolated": bool(prediction.extrapolated[i]),
            "evaluations": {
                evaluation: {
                    "predicted": float(prediction.predicted[i, j]),
                    "low": float(prediction.low[i, j]),
                    "high": float(prediction.high[i, j]),
                }
                for j, evaluation in enumerate(prediction.evaluations)
            },
        }
        for i, name in enumerate(names)
    ]


def print_prediction(law: MixtureLaw, names: list[str], prediction: Prediction) -> None:
    """Print a table with a row per evaluation and a column per mixture. Many mixtures have a row each instead."""
    drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False)
    few = len(names) <= 4
    drawn.add_column("evaluation" if few else "mixture", overflow="fold")
    for head in names if few else ("mean", *prediction.evaluations):
        drawn.add_column(head, justify="right", overflow="fold")
    half = prediction.high - prediction.predicted
    if few:
        for j, evaluation in enumerate(prediction.evaluations):
            cells = [f"{prediction.predicted[i, j]:.4f} ± {half[i, j]:.4f}" for i in range(len(names))]
            drawn.add_row(evaluation, *cells)
        drawn.add_row(
            "mean",
            *(f"{mean:.4f} ± {half:.4f}" for mean, half in zip(prediction.mean, prediction.mean_half, strict=True)),
            style="bold",
        )
    else:
        for i, name in enumerate(names):
            drawn.add_row(name, f"{prediction.mean[i]:.4f}", *(f"{value:.4f}" for value in prediction.predicted[i]))
    stdout.print(drawn)
