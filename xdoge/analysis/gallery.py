"""Which charts a comparison can fill."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from xdoge.analysis import charts
from xdoge.errors import XDogeError

if TYPE_CHECKING:
    import altair as alt

    from xdoge.analysis.comparison import Comparison
    from xdoge.mixtures.weights import WeightSet


def charts_of(compared: Comparison) -> dict[str, alt.TopLevelMixin]:
    """Return every chart that the files can fill, by name, in the order in which they are looked at.

    Of several fits, mixtures or models there are several, named "trajectory: NAME" and so on.
    """
    given = compared.inputs
    found: dict[str, alt.TopLevelMixin] = {}
    if compared.sets:
        found["weights"] = charts.weights_by_language(_bars(compared))
    for name, fit in given.fits.items():
        found[f"trajectory: {name}"] = charts.trajectory(fit)
        if (fit / "gram.parquet").exists():
            found[f"transfer: {name}"] = charts.transfer(fit)
    for name, mixture in given.mixtures.items():
        found[f"planned: {name}"] = charts.planned_shares(mixture)
    if given.mixtures:
        mixture = next(iter(given.mixtures.values()))
        available = {source: share.available_tokens for source, share in mixture.sources.items()}
        found["unimax"] = charts.unimax_and_temperature(available, budget_tokens=mixture.budget_tokens)
    model, run = compared.baseline_of(compared.models), compared.baseline_of(given.runs)
    builders: dict[str, Callable[[], alt.TopLevelMixin]] = {
        "perplexity_change": lambda: charts.perplexity_change(given.results, baseline=model or ""),
        "validation_change": lambda: charts.validation_change(given.runs, baseline=run or ""),
        "improvement": lambda: charts.improvement(given.runs, baseline=run or ""),
    }
    for name, build in builders.items():
        with contextlib.suppress(XDogeError):  # nothing of the kind compares; the notes say why
            found[name] = build()
    return found


def _bars(compared: Comparison) -> dict[str, WeightSet | list[WeightSet]]:
    """Return the sets that are drawn as one bar each: those of one proxy together, and all others."""
    bars: dict[str, WeightSet | list[WeightSet]] = {}
    groups = [group for group in compared.groups if group.name != "all"]
    for name, one in compared.sets.items():
        group = next((group for group in groups if name in group.sets), None)
        if group is None:
            bars[name] = one
        else:
            bars[f"proxy {group.name}, mean of {len(group.sets)}"] = list(group.sets.values())
    return bars
