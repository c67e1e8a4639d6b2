"""`xdoge compare`: weight sets, mixtures, training runs and results side by side."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from xdoge.analysis.comparison import compare as compare_files
from xdoge.cli import options
from xdoge.cli.app import app, refuse_taken
from xdoge.cli.tables import print_table, print_verdict
from xdoge.errors import require
from xdoge.io import write_text

_COMPARE_HELP = """Compare weight sets, mixtures, training runs, evaluation results and mixture laws.

**Files** are weights.json, mixture.json, results.json (of `eval`), law.json, and run folders of `fit-weights` and
`train`, in any order. `NAME=FILE` sets the name in tables. The default name is the end of the path, long enough to be
unique: `60m` for runs/60m/weights.json, but `a/60m` and `b/60m` for two runs called 60m. For a results.json with one
model, `NAME=FILE` names this model. With several models, it puts NAME/ before each name.

**Weights.** One table shows the weights of languages and sources, learned or planned, and their differences to the
baseline. A second table shows the distance of every two sets: total variation (the share of tokens that would have to
move), Jensen–Shannon divergence in bits, and the rank correlations Kendall's τ-b and Spearman's ρ. Several fits on one
corpus are summarised: mean, standard deviation, and which pairs of languages change their order.

**Models** are compared by the numbers of results.json: change in per cent ± 1.96 standard errors, with a star if the
change is significant: it exceeds this error. Models measured on the same documents are compared document by document,
if the .documents.parquet file is beside results.json. Without this file, and for benchmarks, errors are treated as
independent. Numbers on different text, per token of different tokenizers, or on different questions are not compared; a
warning says why. Training runs are compared by their validation perplexity after equal numbers of tokens.

**Laws** are files written by `fit-law`; --law LAW.json is the same as naming the file. Each law predicts the losses of
all weight sets and mixtures, and their differences to equal shares with 90 % intervals. Mixtures with other sources
than the law get no prediction; a warning says so. If the law has shares of languages, those of a language's sources are
added up.

**The verdict** says which differences are significant and what to do next. Fits that differ only in the seed or the
proxy are not reliable if their weights differ in more than 10 % of the tokens. If the caps decide a mixture, its
weights do not matter.

**--html** writes one page with the verdict and its best chart, warnings, tables, interactive charts, and the files and
commands to repeat the comparison. It needs no network. Without JavaScript it shows tables and static pictures.

**Examples**

- `xdoge compare runs/60m-seed0 runs/60m-seed1 runs/125m-seed0`

- `xdoge compare runs/60m uniform.json learned.json --baseline uniform`

- `xdoge compare uniform=runs/uniform learned=runs/learned results.json --baseline uniform --html report.html`

- `xdoge compare uniform.json learned.json --law law.json --html report.html`
"""


@app.command(name="compare", help=_COMPARE_HELP)
def compare(
    files: Annotated[
        list[str],
        typer.Argument(metavar="[NAME=]FILE", help="Files and run folders to compare.", show_default=False),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Item to which the others are compared.", show_default="the first of each kind"
        ),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="REPORT.html", help="HTML page to write, with tables, charts and warnings.")
    ] = None,
    law: options.Law = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    refuse_taken(html, force)
    if html is not None:
        require("analysis", "altair", "vl_convert", "pandas")
    files += [] if law is None else [str(law)]
    compared = compare_files(files, baseline=baseline)
    if as_json:
        print(json.dumps(compared.to_dict(), indent=2))
    else:
        for table in compared.tables:
            print_table(table)
        for line in compared.remarks:
            print(line)
        print_verdict(compared.verdict)
    for line in compared.notes:
        print(f"warning: {line}", file=sys.stderr)
    if html is not None:
        command = shlex.join(["xdoge", "compare", *files, *(["--baseline", baseline] if baseline else [])])
        write_text(html, compared.to_html(f"{command} --html {shlex.quote(str(html))}"))
        print(html, file=sys.stderr if as_json else sys.stdout)
