"""Which charts a comparison can fill."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xdoge.analysis import charts
from xdoge.errors import XDogeError

if TYPE_CHECKING:
    import altair as alt

    from xdoge.analysis.comparison import Comparison
    from xdoge.mixtures.weights import WeightSet


@dataclass(frozen=True)
class Drawn:
    """A chart of a comparison.

    Attributes:
        kind: what it shows, such as "trajectory".
        of: the fit or mixture that it shows; empty where it shows all.
        chart: it.
    """

    kind: str
    of: str
    chart: alt.TopLevelMixin


def named(drawn: Iterable[Drawn]) -> dict[str, alt.TopLevelMixin]:
    """Return charts by names that can be those of files, such as "trajectory-60m"."""
    found: dict[str, alt.TopLevelMixin] = {}
    for one in drawn:
        name = plain = re.sub(r"[^\w.-]+", "-", f"{one.kind}-{one.of}" if one.of else one.kind)
        number = 2
        while name in found:  # "a/b" and "a b" are both "a-b"
            name, number = f"{plain}-{number}", number + 1
        found[name] = one.chart
    return found


def charts_of(compared: Comparison) -> list[Drawn]:
    """Return every chart that the files can fill, in the order in which they are looked at."""
    given = compared.inputs
    found: list[Drawn] = []
    if compared.sets:
        found.append(Drawn("weights", "", charts.weights_by_language(_bars(compared))))
    for name, fit in given.fits.items():
        found.append(Drawn("trajectory", name, charts.trajectory(fit)))
        with contextlib.suppress(XDogeError):  # of most fits they stay as they are
            found.append(Drawn("targets", name, charts.targets(fit)))
        if (fit / "gram.parquet").exists():
            found.append(Drawn("transfer", name, charts.transfer(fit)))
    found += [Drawn("planned", name, charts.planned_shares(mixture)) for name, mixture in given.mixtures.items()]
    if given.mixtures:
        mixture = next(iter(given.mixtures.values()))
        available = {source: share.available_tokens for source, share in mixture.sources.items()}
        curves = charts.unimax_and_temperature(available, budget_tokens=mixture.budget_tokens)
        found.append(Drawn("unimax", "", curves))
    model, run = compared.baseline_of(compared.models), compared.baseline_of(given.runs)
    builders: dict[str, Callable[[], alt.TopLevelMixin]] = {
        "perplexity_change": lambda: charts.perplexity_change(given.results, baseline=model or ""),
        "validation_change": lambda: charts.validation_change(given.runs, baseline=run or ""),
        "improvement": lambda: charts.improvement(given.runs, baseline=run or ""),
    }
    for name, build in builders.items():
        with contextlib.suppress(XDogeError):  # nothing of the kind compares; the notes say why
            found.append(Drawn(name, "", build()))
    return found


def _bars(compared: Comparison) -> dict[str, WeightSet | list[WeightSet]]:
    """Return the sets that are drawn as one bar each: those of one proxy together, and all others."""
    bars: dict[str, WeightSet | list[WeightSet]] = {}
    groups = [group for group in compared.groups if not group.of_all]
    for name, one in compared.sets.items():
        group = next((group for group in groups if name in group.sets), None)
        if group is None:
            bars[name] = one
        else:
            bars[f"{group.name}, mean of {len(group.sets)}"] = list(group.sets.values())
    return bars
