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

_COMPARE_HELP = """Set weight sets, mixtures, training runs and results side by side, with differences.

**Files** are weights.json, mixture.json, results.json, law.json, and run folders of `fit-weights` and `train`, in any
mix and order; `NAME=FILE` says what to call one in tables. Without it one is called by the end of its path, as long as
it takes to tell it from the others: `60m` for runs/60m/weights.json, `a/60m` and `b/60m` for two. Of the models in a
results.json, `NAME=FILE` renames the one, or puts NAME/ before each of several.

**Weights** of languages and sources, learned or planned, stand in one table with their differences to the baseline.
Distances between every two: total variation, the share of tokens that would have to move; Jensen–Shannon divergence in
bits; and how far the orders agree, Kendall's τ-b and Spearman's ρ. Several fits on one corpus, of other seeds or
proxies, are summarised: mean, standard deviation, and which pairs of languages swap.

**Models** are compared by the numbers of results.json: the change in per cent ± 1.96 standard errors, starred where it
exceeds them. Models on the same documents are paired by document, from the .documents.parquet beside results.json;
without it, and for benchmarks, the errors count as independent. Numbers that do not compare (of different text, of
different tokenizers per token, of another number of questions) get no difference, and a line on stderr says why.
Training runs are compared by the perplexity of their validation text where they have read as many tokens.

**Laws** are files of `fit-law`; --law LAW.json does the same as naming it among the files. Each law predicts the losses
of all weight sets and mixtures, and their differences to equal shares with 90 % intervals. A mixture over other sources
than the law's gets no prediction, and a line on stderr says why. A law over languages takes the sum of a language's
sources.

**The verdict** says which differences are real and what to do next: models differ really where the change exceeds its
errors; fits of one question that lie more than 10 % of the tokens apart are noise; and mixtures that the caps decide
do not depend on their weights.

**--html** writes one page: the verdict with its best chart, warnings, tables, charts with hover, and last the files and
the commands to repeat it. It needs no network, and shows tables and still pictures without JavaScript.

**Examples**

- `xdoge compare runs/60m-seed0 runs/60m-seed1 runs/125m-seed0`

- `xdoge compare runs/60m uniform.json learned.json --baseline uniform`

- `xdoge compare uniform=runs/uniform learned=runs/learned results.json --baseline uniform --html report.html`

- `xdoge compare uniform.json learned.json --law law.json --html report.html`
"""


@app.command(name="compare", help=_COMPARE_HELP)
def compare(
    files: Annotated[list[str], typer.Argument(metavar="[NAME=]FILE...", help="What to compare.", show_default=False)],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What differences are taken against.", show_default="the first of each kind"),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="REPORT.html", help="Write tables, charts and warnings as one page.")
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
