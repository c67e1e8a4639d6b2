"""The chart of a study: the difference of each strategy in each language, with its interval over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from xdoge.analysis.charts.drawing import AVERAGE, INK, HConcatChart, beside, by_language, data
from xdoge.analysis.shares import union

NAMED = {"macro": AVERAGE, "worst": AVERAGE}
"""Measures that are not languages; they are drawn in the colour of averages."""

COLUMNS = 4


def seed_differences(rows: Sequence[Mapping[str, Any]], *, title: str, relative_to: str) -> HConcatChart:
    """Draw differences of bits per byte as dots with their intervals, a panel for each language.

    A dot is filled if the difference is significant (its whole interval lies on one side of 0), and hollow otherwise.

    Args:
        rows: `strategy`, `measure` (a language, "macro" or "worst"), `mean`, `low` and `high` (None without an
            interval), strategies in the order to show.
        title: title of the chart.
        relative_to: strategy with which all others are compared.
    """
    strategies, measures = union([row["strategy"]] for row in rows), union([row["measure"]] for row in rows)
    drawn = [
        {
            **row,
            "language": NAMED.get(row["measure"], row["measure"]),
            "sure": row["low"] is not None and (row["low"] > 0 or row["high"] < 0),
            "zero": 0,
        }
        for row in rows
    ]
    ends = [row[key] for row in drawn for key in ("mean", "low", "high") if row[key] is not None]
    low, high = min(0.0, *ends), max(0.0, *ends)
    margin = 0.04 * (high - low) or 1.0
    scale = alt.Scale(domain=[low - margin, high + margin], nice=False)
    colour = by_language(union([row["language"]] for row in drawn))
    panels = []
    for number, measure in enumerate(measures):
        own = [row for row in drawn if row["measure"] == measure]
        first = number % COLUMNS == 0
        panels.append(_panel(own, strategies, scale, colour, named=first, title=measure))
    lines = [
        alt.HConcatChart(hconcat=panels[start : start + COLUMNS], spacing=12)
        for start in range(0, len(panels), COLUMNS)
    ]
    listed = "; ".join(
        f"{row['strategy']} {row['measure']} {row['mean']:+.3f}"
        for row in drawn
        if row["measure"] in ("macro", "worst")
    )
    return beside(
        [alt.VConcatChart(vconcat=lines, spacing=16)],
        title=title,
        subtitle=[
            f"bits per byte; a dot left of 0 is better than {relative_to}; line: 95 % interval",
            "filled dot: significant, the whole interval lies on one side of 0",
        ],
        description=f"Difference of bits per byte to {relative_to}: {listed}.",
    )


def _panel(
    rows: Sequence[Mapping[str, Any]],
    strategies: Sequence[str],
    scale: alt.Scale,
    colour: alt.Color,
    *,
    named: bool,
    title: str,
) -> alt.LayerChart:
    axis = alt.Axis(labelLimit=200) if named else alt.Axis(labels=False, ticks=False)
    y = alt.Y("strategy:N", sort=list(strategies), title=None, axis=axis)

    ticks = alt.Axis(format="+~g", tickCount=3, labelFlush=False, labelExpr="datum.value == 0 ? '0' : datum.label")

    def x(name: str) -> alt.X:
        return alt.X(f"{name}:Q", title=None, scale=scale, axis=ticks)

    base = alt.Chart(data(rows))
    wide = alt.Chart(data([row for row in rows if row["low"] is not None]))
    zero = alt.Chart(data([{"zero": 0}])).mark_rule(color=INK).encode(x=x("zero"))
    numbers = (alt.Tooltip(f"{name}:Q", format="+.4f") for name in ("mean", "low", "high"))
    tooltip: list[Any] = ["strategy:N", "measure:N", *numbers, "n:Q"]
    line = wide.mark_rule(strokeWidth=1.5).encode(x=x("low"), x2="high:Q", y=y, color=colour)
    dot = base.mark_point(size=60, opacity=1, strokeWidth=1.5).encode(
        x=x("mean"),
        y=y,
        color=colour,
        fill=alt.condition(
            "datum.sure", alt.Fill("language:N", scale=colour["scale"], legend=None), alt.value("white")
        ),
        tooltip=tooltip,
    )
    return alt.LayerChart(
        layer=[zero, line, dot],
        width=170,
        height=20 * len(strategies),
        title=alt.TitleParams(title, fontSize=12),
    )
