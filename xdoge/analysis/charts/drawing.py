"""Functions that all charts share: saving without a network, type sizes for print, and labels that do not overlap."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import altair as alt

from xdoge.analysis.charts import colours

PNG_SCALE = 2.0
"""Pixels of a PNG per pixel of the chart. With this scale, it prints sharply at a width of 8 cm."""

SHARE = alt.Axis(format=".0%", labelFlush=False)
TOKENS = alt.Axis(format="~s", tickCount=6, labelFlush=False, labelExpr="datum.value == 0 ? '0' : datum.label")
CHANGE = alt.Axis(format="+~%", labelFlush=False, labelExpr="datum.value == 0 ? '0%' : datum.label")
AVERAGE = "average"
"""Label of the average over languages."""

QUIET, INK = "#6B6B6B", "#222222"

_CONFIG: dict[str, Any] = {
    "background": "white",
    "font": "Arial, Helvetica, Liberation Sans, sans-serif",
    "view": {"stroke": None},
    "axis": {
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelColor": INK,
        "titleColor": INK,
        "gridColor": "#E4E4E4",
        "domainColor": "#8A8A8A",
        "tickColor": "#8A8A8A",
    },
    "legend": {"labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "symbolSize": 90},
    "title": {"fontSize": 14, "anchor": "start", "subtitleFontSize": 12, "subtitleColor": QUIET, "offset": 10},
    "text": {"fontSize": 12, "color": INK},
}


class _Offline(alt.TopLevelMixin):
    """A chart whose HTML contains the libraries that draw it, so that it needs no network."""

    def save(self, fp: str | Path | IO[Any], format: Any = None, *places: Any, **options: Any) -> None:
        """Write the chart as .svg, .png, .pdf, .html or .json. The file name or `format` decides the format."""
        kind = format or str(fp).rpartition(".")[2].lower()
        if kind == "html":
            options.setdefault("inline", True)
        if kind == "png" and "ppi" not in options:
            options.setdefault("scale_factor", PNG_SCALE)
        super().save(fp, format, *places, **options)


class LayerChart(_Offline, alt.LayerChart):
    """Marks on the same axes."""


class HConcatChart(_Offline, alt.HConcatChart):
    """Panels side by side."""


def data(rows: Sequence[Mapping[str, Any]]) -> alt.Data:
    """Return rows as data inside the chart itself."""
    inline: alt.Data = alt.Data(values=[dict(row) for row in rows])  # type: ignore[no-untyped-call]
    return inline


def layered(
    layers: Sequence[alt.Chart], *, title: str, subtitle: str | Sequence[str], description: str, **size: Any
) -> LayerChart:
    """Return marks on the same axes, with a title and a description in words."""
    heading = alt.TitleParams(title, subtitle=subtitle)
    return LayerChart(layer=list(layers), title=heading, description=description, config=_config(), **size)


def beside(panels: Sequence[Any], *, title: str, subtitle: str | Sequence[str], description: str) -> HConcatChart:
    """Return panels side by side under one title, with a description in words."""
    heading = alt.TitleParams(title, subtitle=subtitle)
    return HConcatChart(hconcat=list(panels), title=heading, description=description, config=_config(), spacing=30)


def _config() -> alt.Config:
    return alt.Config(**_CONFIG)


def spread_out(values: Sequence[float], gap: float) -> list[float]:
    """Return positions of labels, each as near to its value as a minimum distance of `gap` allows.

    Neighbours that are too near form a block around their mean. Blocks that touch are joined.
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    blocks: list[list[float]] = []  # [sum of values minus offsets, number of labels]
    for i in order:
        blocks.append([values[i], 1])
        while len(blocks) > 1 and _start(blocks[-1], gap) < _start(blocks[-2], gap) + blocks[-2][1] * gap:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    placed = [_start(block, gap) + gap * j for block in blocks for j in range(int(block[1]))]
    where = dict(zip(order, placed, strict=True))
    return [where[i] for i in range(len(values))]


def _start(block: Sequence[float], gap: float) -> float:
    """Return the lowest position of a block of labels that is centred on the mean of its values."""
    total, count = block
    return total / count - gap * (count - 1) / 2


def by_language(languages: Sequence[str]) -> alt.Color:
    """Return the encoding of languages as colours. It has no legend, since lines and bars have labels."""
    shades = [colours.NEUTRAL if language == AVERAGE else colours.colour(language) for language in languages]
    return alt.Color("language:N", scale=alt.Scale(domain=list(languages), range=shades), legend=None)


def lines(
    rows: Sequence[Mapping[str, Any]], languages: Sequence[str], x: alt.X, y: alt.Y, tooltip: list[Any]
) -> alt.Chart:
    """Return a line for each language, in its colour and dash."""
    dashes = alt.Scale(domain=list(languages), range=[list(colours.dash(language)) for language in languages])
    drawn: alt.Chart = (
        alt.Chart(data(rows))
        .mark_line(strokeWidth=2)
        .encode(
            x=x,
            y=y,
            color=by_language(languages),
            strokeDash=alt.StrokeDash("language:N", scale=dashes, legend=None),
            tooltip=tooltip,
        )
    )
    return drawn


def end_labels(
    ends: Mapping[str, float], texts: Mapping[str, str], x: float, y: alt.Y, *, spread: Sequence[float]
) -> alt.Chart:
    """Return a label at the end of each line, moved up or down if labels would overlap."""
    gap = (max(spread) - min(spread)) * 0.055 or 1.0
    places = spread_out(list(ends.values()), gap)
    rows = [
        {"language": language, "x": x, "place": place, "text": texts[language]}
        for language, place in zip(ends, places, strict=True)
    ]
    drawn: alt.Chart = (
        alt.Chart(data(rows))
        .mark_text(align="left", dx=10, fontWeight="bold", clip=False)
        .encode(x="x:Q", y=alt.Y("place:Q", title=y["title"]), text="text:N", color=by_language(list(ends)))
    )
    return drawn
