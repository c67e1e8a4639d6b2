"""The set of charts that a comparison can fill, and their names."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xdoge.analysis import charts
from xdoge.analysis.comparison_data import ComparisonData
from xdoge.errors import XDogeError

if TYPE_CHECKING:
    import altair as alt

    from xdoge.laws.law import MixtureLaw
    from xdoge.mixtures.weights import WeightSet

MOST_SOURCES = 8
"""Most sources of a law with a chart of their own. They are those whose share varied most over the runs."""


@dataclass(frozen=True)
class ComparisonChart:
    """A chart of a comparison.

    Attributes:
        kind: kind of chart, such as "trajectory".
        subject: name of the fit or mixture in the chart; empty if it shows all inputs.
        chart: the Altair chart.
    """

    kind: str
    subject: str
    chart: alt.TopLevelMixin


def charts_by_name(drawn: Iterable[ComparisonChart]) -> dict[str, alt.TopLevelMixin]:
    """Return charts by names that are also valid file names, such as "trajectory-60m"."""
    by_name: dict[str, alt.TopLevelMixin] = {}
    for item in drawn:
        name = plain = re.sub(r"[^\w.-]+", "-", f"{item.kind}-{item.subject}" if item.subject else item.kind)
        number = 2
        while name in by_name:  # "a/b" and "a b" are both "a-b"
            name, number = f"{plain}-{number}", number + 1
        by_name[name] = item.chart
    return by_name


def charts_of(compared: ComparisonData) -> list[ComparisonChart]:
    """Return every chart that the inputs can fill, in reading order."""
    inputs = compared.inputs
    drawn: list[ComparisonChart] = []
    if compared.sets:
        drawn.append(ComparisonChart("weights", "", charts.weights_by_language(_bars(compared))))
    for name, fit in inputs.fits.items():
        drawn.append(ComparisonChart("trajectory", name, charts.trajectory(fit)))
        with contextlib.suppress(XDogeError):  # in most fits, the targets do not move
            drawn.append(ComparisonChart("targets", name, charts.targets(fit)))
        if (fit / "gram.parquet").exists():
            drawn.append(ComparisonChart("transfer", name, charts.transfer(fit)))
    drawn += [
        ComparisonChart("planned", name, charts.planned_shares(mixture)) for name, mixture in inputs.mixtures.items()
    ]
    if inputs.mixtures:
        mixture = next(iter(inputs.mixtures.values()))
        available = {source: share.available_tokens for source, share in mixture.sources.items()}
        curves = charts.unimax_and_temperature(available, budget_tokens=mixture.budget_tokens)
        drawn.append(ComparisonChart("unimax", "", curves))
    for name, law in inputs.laws.items():
        drawn += _of_law(name, law)
    model, run = compared.baseline_of(compared.models), compared.baseline_of(inputs.runs)
    builders: dict[str, Callable[[], alt.TopLevelMixin]] = {
        "perplexity_change": lambda: charts.perplexity_change(inputs.results, baseline=model or ""),
        "validation_change": lambda: charts.validation_change(inputs.runs, baseline=run or ""),
        "improvement": lambda: charts.improvement(inputs.runs, baseline=run or ""),
    }
    for name, build in builders.items():
        with contextlib.suppress(XDogeError):  # nothing to compare; the notes say why
            drawn.append(ComparisonChart(name, "", build()))
    return drawn


def _of_law(name: str, law: MixtureLaw) -> Iterator[ComparisonChart]:
    yield ComparisonChart("predicted_against_measured", name, charts.predicted_against_measured(law))
    yield ComparisonChart("transfer_map", name, charts.transfer_map(law))
    with contextlib.suppress(XDogeError):  # a law of one evaluation has no trade-off
        yield ComparisonChart("trade_off", name, charts.trade_off(law))
    ranges = law.shares.max(axis=0) - law.shares.min(axis=0)
    widest = sorted((-ranges).argsort()[:MOST_SOURCES])
    for source in (law.problem.sources[place] for place in widest):
        yield ComparisonChart("loss_along_share", f"{name}, {source}", charts.loss_along_share(law, source))


def _bars(compared: ComparisonData) -> dict[str, WeightSet | list[WeightSet]]:
    """Return the weight sets of each bar: the sets of one proxy share a bar, and every other set has its own."""
    bars: dict[str, WeightSet | list[WeightSet]] = {}
    groups = [group for group in compared.groups if not group.of_all]
    for name, weights in compared.sets.items():
        group = next((group for group in groups if name in group.sets), None)
        if group is None:
            bars[name] = weights
        else:
            bars[f"{group.name}, mean of {len(group.sets)}"] = list(group.sets.values())
    return bars
