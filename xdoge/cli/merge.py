"""`xdoge merge`: the mean of the weights of several fits, with their spread."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from xdoge.analysis.shares import group_of, order_rows, question_notes, summary_rows
from xdoge.analysis.tables import stability, summary_table
from xdoge.analysis.verdicts import UNSETTLED, moves
from xdoge.cli import options
from xdoge.cli.app import app, refuse_taken
from xdoge.cli.tables import print_table
from xdoge.errors import MOST_NAMES, XDogeError
from xdoge.mixtures.weights import WeightSet

NO_NUMBER = ("timeout", "microbatches", "checkpoint_every", "keep_checkpoints", "eval_every", "eval_sequences")
"""Settings that change weights by rounding only. Fits that differ only in these settings count as the same fit."""

_MERGE_HELP = f"""Average the weights of several fits, and show how much the fits differ.

Fits with different seeds give different weights. Fit at least three seeds, and proxies of several sizes if you can.
`xdoge mix` reads their average like the weights of one fit.

**Runs** are run folders of `fit-weights`, or weights.json files. They must be fits on one corpus (by the SHA-256 of its
store) with one floor. All count equally. A run is refused if it is unfinished, if it is an average already, or if
another run has the same settings and seed.

**What it prints.** The mean, standard deviation, minimum and maximum weight of every language, and with --sources of
every source. It says how many pairs of languages change their order between fits, and which fit is furthest from the
mean or, for two fits, their distance. Distances are total variations: the share of the tokens that would have to move.
`xdoge compare` shows the fits side by side.

**What it writes.** With --out, a weights.json with the mean and the settings that all fits share. Its `spread` holds
the statistics by language and source, and the name and SHA-256 of each fit.

**Warnings.** One warning names the languages whose weight is expected to change by more than {UNSETTLED:.0%} with one
more fit (standard deviation / √(n (n + 1)) for n fits). Another says if some proxies have more fits than others,
because these proxies count more. A third names settings that differ between the fits and change what they optimise,
such as `targets` or `mu`.

**Examples**

- `xdoge merge runs/125m-seed0 runs/125m-seed1 runs/125m-seed2 --out weights.json`

- `xdoge merge runs/*-seed* --sources`

- `xdoge mix weights.json --store store --budget 100B --out mixture.json`, to plan a mixture with the average
"""


@app.command(help=_MERGE_HELP)
def merge(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN", help="Run folders of fits, or weights.json files.", show_default=False),
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="WEIGHTS.json", help="File to write; without it the mean is only printed.")
    ] = None,
    sources: Annotated[bool, typer.Option("--sources", help="Also show every source.")] = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    refuse_taken(out, force)
    fits = _fits(runs)
    proxies = Counter(str(fit.proxy.get("name")) for fit in fits.values())
    first = next(iter(fits.values()))
    method = [first.method["baseline"]] if "baseline" in first.method else []
    name = "-".join([str(first.corpus.get("name")), *method, "+".join(proxies), f"mean-of-{len(fits)}"])
    mean = WeightSet.average(list(fits.values()), name=name)
    if out is not None:
        mean.save(out)
    if as_json:
        print(json.dumps(mean.to_dict(), indent=2))
    else:
        print_mean(mean, fits, sources=sources)
    for line in _warnings(fits, proxies):
        print(f"warning: {line}", file=sys.stderr)
    if out is None:
        print("nothing was written; add --out WEIGHTS.json to write the mean.", file=sys.stderr)
    elif not as_json:
        print(out)


def _fits(runs: list[Path]) -> dict[str, WeightSet]:
    """Return the weights of each run, by its path as the user wrote it.

    Raises:
        XDogeError: the files are not fits on one corpus.
    """
    if len(runs) < 2:
        raise XDogeError(f"{runs[0]} is a single run; name at least two.")
    fits: dict[str, WeightSet] = {}
    for run in runs:
        fit = WeightSet.load(run)
        if fit.spread is not None:
            raise XDogeError(f"{run} is an average already; name the fits that it was made from.")
        if not (fit.method and fit.proxy and fit.corpus.get("sha256")):
            raise XDogeError(f"{run} does not name its settings, proxy and corpus, so it is not the result of a fit.")
        for path, other in fits.items():
            if fit.corpus["sha256"] != other.corpus["sha256"]:
                raise XDogeError(
                    f"{path} and {run} were learned on different corpora: {_corpus(other)} and {_corpus(fit)}. "
                    "Fit both on one store."
                )
            if (_decided(fit), fit.proxy) == (_decided(other), other.proxy):
                raise XDogeError(
                    f"{path} and {run} are the same fit: they have the same seed and settings. Leave one out."
                )
            if fit.floor != other.floor:
                raise XDogeError(
                    f"{path} has floor {other.floor:g} and {run} has floor {fit.floor:g}; fit both with the same floor."
                )
        fits[str(run)] = fit
    return fits


def _decided(fit: WeightSet) -> dict[str, object]:
    return {key: value for key, value in fit.method.items() if key not in NO_NUMBER}


def _corpus(fit: WeightSet) -> str:
    return f"{fit.corpus.get('name')} (SHA-256 {fit.corpus['sha256'][:12]})"


def print_mean(mean: WeightSet, fits: Mapping[str, WeightSet], *, sources: bool) -> None:
    """Print mean and spread, whether the fits order the languages equally, and the fit furthest from the mean."""
    all_fits = group_of(fits)
    rows = [row for row in summary_rows(all_fits) if sources or row["level"] == "language"]
    print_table(summary_table(all_fits, rows))
    print(stability(all_fits, order_rows(all_fits)))
    distances = {path: mean.distance(fit) for path, fit in fits.items()}
    if len(fits) == 2:  # both are equally far from their mean
        print(f"the two fits differ in {2 * max(distances.values()):.1%} of the tokens (total variation).")
    else:
        furthest = max(distances, key=lambda path: distances[path])
        print(f"furthest from the mean: {furthest}, in {distances[furthest]:.1%} of the tokens (total variation).")


def _warnings(fits: Mapping[str, WeightSet], proxies: Mapping[str, int]) -> list[str]:
    lines, moved = [], moves(group_of(fits))
    if unsettled := sorted((name for name in moved if moved[name] > UNSETTLED), key=lambda name: -moved[name]):
        named = ", ".join(f"{name} by {moved[name]:.0%}" for name in unsettled[:MOST_NAMES])
        more = f" and {len(unsettled) - MOST_NAMES} more" * (len(unsettled) > MOST_NAMES)
        lines.append(f"one more fit is expected to move the weight of {named}{more}; fit another seed.")
    if len(set(proxies.values())) > 1:
        counts = ", ".join(f"{proxy} {count}" for proxy, count in proxies.items())
        lines.append(f"the proxies have different numbers of fits ({counts}); a proxy with more fits counts more.")
    return [*lines, *question_notes(fits)]
