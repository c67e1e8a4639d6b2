"""`xdoge optimize`: the best mixture under a law, with its gain and a recommendation."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich import box
from rich.table import Table as Drawn

from xdoge.cli import options
from xdoge.cli.app import app, refuse_taken, stdout
from xdoge.cli.fit_law import as_count
from xdoge.cli.options import Force, Json
from xdoge.errors import XDogeError

if TYPE_CHECKING:
    from xdoge.laws.law import MixtureLaw
    from xdoge.laws.optimize import Optimum

_HELP = """Find the mixture with the lowest predicted loss.

**Objective.** `--objective mean` minimises the mean loss over the evaluations, and `--objective worst` the highest loss
of any evaluation. With `--no-worse-than uniform:1%` the loss of no evaluation may be more than 1 % above its loss at
equal shares. --mean-no-worse-than limits the mean loss only. A limit refers to uniform or, if the law knows token
counts, to proportional or unimax. --max-epochs caps the repetition of every source; it needs token counts, too.

**Range.** Each share stays between its lowest and its highest value in the runs. --anywhere lifts this limit.

**How far to trust it.** The predicted loss of an optimum is too low on average, because the search favours mixtures
whose loss the law underestimates. `optimize` measures this optimism on simulated swarms and subtracts it from the gain.
If the 90 % interval of the gain over equal shares includes 0, the verdict is "keep equal shares". --out then writes
equal shares, unless you give --force-optimum. If equal shares break --max-epochs, UniMax shares take their place.

**What it prints.** The share of each source, and the predicted loss of each evaluation. The gains say how much lower
the loss is than with simple mixtures, with 90 % intervals. If a cap holds a share down, its price says what a higher
cap would gain.

**What it writes.** FILE.json is a weights.json for `xdoge mix`; its sources must be named language/source. FILE.csv
holds shares of sources with any names, for `xdoge predict` and `xdoge mix`.

**Examples**

- `xdoge optimize law.json --objective mean --out weights.json`

- `xdoge optimize law.json --objective worst --no-worse-than uniform:1% --max-epochs 8`

- `xdoge optimize law.json --objective worst --mean-no-worse-than uniform:0%`, to keep the mean loss

- `xdoge optimize law.json --budget 100B --max-epochs 4 --out weights.json`, for another budget than the law's
"""


@app.command(help=_HELP)
def optimize(
    law: Annotated[
        Path, typer.Argument(metavar="LAW.json", help="Law to use, written by `xdoge fit-law`.", show_default=False)
    ],
    objective: Annotated[str, typer.Option(help="Loss to minimise: mean, or worst for the highest.")] = "mean",
    no_worse_than: Annotated[
        str | None,
        typer.Option(
            metavar="MIXTURE:PERCENT", help="Limit for every evaluation, such as uniform:1%.", show_default="no limit"
        ),
    ] = None,
    mean_no_worse_than: Annotated[
        str | None,
        typer.Option(
            metavar="MIXTURE:PERCENT", help="Limit for the mean loss, such as uniform:0%.", show_default="no limit"
        ),
    ] = None,
    max_epochs: Annotated[
        float | None,
        typer.Option(parser=options.number, metavar="N", help="Maximum epochs of any source.", show_default="no limit"),
    ] = None,
    budget_tokens: Annotated[
        str | None,
        typer.Option(
            "--budget", metavar="TOKENS", help="Training tokens to predict for: 500M, 2T.", show_default="the law's"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="File to write: .json for weights, .csv for shares. Without it nothing is written."
        ),
    ] = None,
    anywhere: Annotated[
        bool, typer.Option("--anywhere", help="Allow shares outside the range of the runs, where the law extrapolates.")
    ] = False,
    force_optimum: Annotated[
        bool, typer.Option("--force-optimum", help="Write the optimum even if the verdict is to keep equal shares.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    from xdoge.laws.law import MixtureLaw
    from xdoge.laws.optimize import at_budget, parse_limit, unseen_epochs

    refuse_taken(out, force)
    fitted = MixtureLaw.load(law)
    if out is not None:
        _refuse_names(fitted, out)
    budget = None if budget_tokens is None else as_count(budget_tokens, "--budget")
    optimum = fitted.optimize(
        objective,
        no_worse_than=parse_limit("no_worse_than", no_worse_than),
        mean_no_worse_than=parse_limit("mean_no_worse_than", mean_no_worse_than),
        max_epochs=max_epochs,
        budget_tokens=budget,
        anywhere=anywhere,
    )
    best = np.array(list(optimum.shares.values()))
    for line in unseen_epochs(at_budget(fitted, budget), fitted, {"the optimum": best}):
        print(f"warning: {line}", file=sys.stderr)
    shares = fitted.source_weights(optimum.shares if force_optimum else optimum.recommended)
    if out is not None:
        _write(out, law, optimum, dict(shares))
    if as_json:
        print(json.dumps(optimum.to_dict() | {"written": dict(shares)}, indent=2))
    else:
        print_optimum(fitted, optimum)
    if out is not None:
        print(out, file=sys.stderr if as_json else sys.stdout)
    if not as_json:
        print(f"verdict: {optimum.verdict}")
        if out is not None and optimum.uses_fallback:
            kept = "equal shares; add --force-optimum to write the optimum of the table"
            print(f"{out} holds {'the optimum of the table' if force_optimum else kept}")


def _refuse_names(law: MixtureLaw, out: Path) -> None:
    plain = [] if law.members else [name for name in law.problem.sources if "/" not in name]
    if out.suffix not in (".json", ".csv"):
        raise XDogeError(f"{out}: name a file that ends in .json (weights) or .csv (shares).")
    if out.suffix == ".json" and plain:
        raise XDogeError(
            f"{out}: weights need sources named language/source, but the law has {plain[0]!r}; use --out FILE.csv."
        )


def _write(out: Path, law: Path, optimum: Optimum, shares: dict[str, float]) -> None:
    from xdoge.io import write_text
    from xdoge.mixtures.weights import WeightSet

    name = f"law-{optimum.objective}"
    if out.suffix == ".csv":
        file = io.StringIO()
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", *shares])
        writer.writerow([name, *shares.values()])
        write_text(out, file.getvalue())
        return
    gain = optimum.gains["uniform"]
    method = {
        "baseline": "law",
        "law": str(law),
        "objective": optimum.objective,
        "verdict": optimum.verdict,
        "gain_over_uniform": [gain.corrected, gain.low, gain.high],
    }
    WeightSet(name=name, sources=shares, method=method).save(out)


def print_optimum(law: MixtureLaw, optimum: Optimum) -> None:
    """Print the shares with their caps, the losses with their gains, and the gains over simple mixtures."""
    from xdoge.laws.optimize import reference_mixtures

    drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False)
    priced = bool(optimum.shadow_prices)
    for head in ("source", "share", "× equal share", *(["price of its cap"] * priced)):
        drawn.add_column(head, justify="left" if head == "source" else "right", overflow="fold")
    equal = dict(zip(law.problem.sources, reference_mixtures(law)["uniform"], strict=True))
    for name, share in sorted(optimum.shares.items(), key=lambda item: -item[1]):
        price = f"{optimum.shadow_prices[name]:.4f}" if name in optimum.shadow_prices else ""
        drawn.add_row(name, f"{share:.4f}", f"{share / equal[name]:.2f}", *([price] * priced))
    stdout.print(drawn)
    if priced:
        print("price of a cap: how much the objective would fall if --max-epochs allowed a share higher by 0.01")
    drawn = Drawn(box=box.SIMPLE_HEAD, pad_edge=False)
    drawn.add_column("evaluation", overflow="fold")
    drawn.add_column("predicted", justify="right")
    for name in optimum.gains:
        drawn.add_column(f"gain over {name} (90 % interval)", justify="right")
    for evaluation, loss in optimum.predicted.items():
        cells = [gain.evaluations[evaluation] for gain in optimum.gains.values()]
        drawn.add_row(evaluation, f"{loss:.4f}", *(f"{a:+.4f} ({b:+.4f} to {c:+.4f})" for a, b, c in cells))
    what = "mean" if optimum.objective == "mean" else "worst"
    cells = [(gain.corrected, gain.low, gain.high) for gain in optimum.gains.values()]
    drawn.add_row(
        what, f"{optimum.value:.4f}", *(f"{a:+.4f} ({b:+.4f} to {c:+.4f})" for a, b, c in cells), style="bold"
    )
    stdout.print(drawn)
    print("A positive gain is a lower loss. The estimated optimism of the optimum is subtracted from each gain.")
