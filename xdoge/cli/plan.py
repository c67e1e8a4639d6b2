"""`xdoge plan`: what the runs will cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from xdoge.cli.app import AsJson, app, stdout


@app.command()
def plan(
    path: Annotated[Path, typer.Argument(metavar="PLAN.yaml", help="Hardware and runs.")],
    as_json: AsJson = False,
) -> None:
    """Say what proxy fits and training runs cost before anyone books a cluster: FLOPs, hours, node-hours.

    PLAN.yaml names the hardware and the runs:

        hardware: {achieved: 365T, gpus_per_node: 4}     # FLOP/s of one GPU; or {peak: 989T, utilisation: 0.4, ...}

        vocab_size: 256000                               # for rows that name a recipe

        runs:

          proxies: {model: 125m, nodes: 0.25, runs: 5}   # one GPU of a node's four

          targets: {parameters: 7B, tokens: 2T, nodes: 8, runs: 4}

          evaluations: {hours: 8, runs: 32}

    FLOPs are counted twice: as 6 N D, and exactly, with attention and the head, where a recipe gives the shape; hours
    come from the exact count where there is one. FLOPs, tokens and hours are those of one run. See examples/cluster.
    """
    from xdoge.models.costs import costs_to_dict, costs_to_table, read_costs

    costs = read_costs(path)
    if as_json:
        print(json.dumps(costs_to_dict(costs), indent=2))
    else:
        stdout.print(costs_to_table(costs))
