"""`xdoge plan`: the cost of planned runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from xdoge.cli import options
from xdoge.cli.app import app, stdout
from xdoge.cli.tables import empty_table
from xdoge.models.costs import Cost, costs_to_dict, read_costs, totals


@app.command()
def plan(
    path: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="YAML file with hardware and runs.")],
    as_json: options.Json = False,
) -> None:
    """Estimate the cost of proxy fits and training runs: FLOPs, hours and node-hours.

    PLAN.yaml lists the hardware and the runs:

        hardware: {achieved: 365T, gpus_per_node: 4}

        vocab_size: 256000

        runs:

          proxies: {model: 125m, nodes: 0.25, runs: 5}

          targets: {parameters: 7B, tokens: 2T, nodes: 8, runs: 4}

          evaluations: {hours: 8, runs: 32}

    `achieved` is the speed of one GPU in FLOP/s. In its place you may give `peak: 989T` and `utilisation: 0.4`. A row
    of `runs` has a recipe (`model`), or `parameters` and `tokens`, or the `hours` of one run. `nodes` is the number of
    nodes of one run (0.25 is one GPU of four), and `runs` the number of such runs; both are 1 by default. A recipe also
    needs `vocab_size`. examples/cluster/README.md explains all keys.

    FLOPs are counted as 6 N D for N parameters and D tokens. For a recipe they are also counted exactly, with attention
    and the head, and the hours follow from the exact count. FLOPs, tokens and hours in the table are those of one run;
    node-hours are those of all runs of a row. The table rounds hours, --json does not.
    """
    costs = read_costs(path)
    if as_json:
        print(json.dumps(costs_to_dict(costs), indent=2))
    else:
        stdout.print(costs_to_table(costs))


def costs_to_table(costs: Sequence[Cost]) -> Table:
    """Return the costs and their totals as a table. FLOPs, tokens and hours are those of one run."""
    numbers = ("N", "tokens", "6 N D", "exact FLOP", "TFLOP/s", "hours", "nodes", "runs", "node-hours")
    table = empty_table(("run", "model"), numbers)
    shown = [cost.rounded() for cost in costs]
    for cost in shown:
        table.add_row(
            cost.name,
            cost.model or "–",
            _short(cost.parameters),
            _short(cost.tokens),
            _scientific(cost.flops_6nd),
            _scientific(cost.flops_exact),
            "–" if cost.flops_per_gpu is None else f"{cost.flops_per_gpu / 1e12:,.4g}",
            _plain(cost.hours),
            f"{cost.nodes:g}",
            f"{cost.runs:,}",
            _plain(cost.node_hours),
        )
    total = totals(shown)
    table.add_row("all", *[""] * 8, f"{total['runs']:,}", _plain(total["node_hours"]), style="bold")
    return table


def _short(value: int | None) -> str:
    """Return a count with three digits and a unit, such as 494M or 2T."""
    if value is None:
        return "–"
    rounded = float(f"{value:.3g}")
    unit, size = next(((u, s) for u, s in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)) if rounded >= s), ("", 1))
    return f"{rounded / size:.12g}{unit}"


def _scientific(value: int | None) -> str:
    return "–" if value is None else f"{value:.2e}".replace("e+", "e")


def _plain(value: float) -> str:
    """Return hours with at most two decimals, without trailing zeros."""
    return f"{value:,.2f}".removesuffix("0").removesuffix("0").removesuffix(".")
