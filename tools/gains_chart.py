"""Draw docs/images/gains.svg, the chart of the README, from the tables of docs/experiments.md.

Run `python tools/gains_chart.py` after the tables change.
"""

from __future__ import annotations

import re
from pathlib import Path

import altair as alt

DOCS = Path(__file__).parents[1] / "docs"
CHART = DOCS / "images/gains.svg"
HEADING = "**Continual pre-training.** One swarm"
MIXTURES = {
    "proportional": "sizes of the corpus",
    "uniform": "equal shares",
    "law-fair": "mixture law",
}
COLOURS = ["#9AA0A6", "#22336B", "#CC7F00"]
LANGUAGES = {"en": "English", "es": "Spanish", "pt": "Portuguese", "gl": "Galician", "ca": "Catalan", "eu": "Basque"}
MEAN = "mean"
TITLE = "bits per byte of held-out text (lower is better)"


def measured(text: str) -> list[dict[str, str | float]]:
    """Return a row per mixture and language of the study of continual pre-training: bits per byte, and their mean."""
    table = text[text.index(HEADING) :].split("\n\n")[1].splitlines()
    columns = [cell.strip() for cell in table[0].strip("|").split("|")]
    lines = [dict(zip(columns, map(str.strip, line.strip("|").split("|")), strict=True)) for line in table[2:]]
    by_name = {line[""]: line for line in lines}
    return [
        {"mixture": title, "language": language, "bits": float(re.sub("[↓↑]", "", by_name[name][column]))}
        for name, title in MIXTURES.items()
        for column, language in {**LANGUAGES, "macro": MEAN}.items()
    ]


def chart(rows: list[dict[str, str | float]]) -> alt.LayerChart:
    """Return the chart: a line per language, a point per mixture."""
    data = alt.Data(values=rows)
    language = alt.Y("language:N", sort=[*LANGUAGES.values(), MEAN], title=None)
    bits = alt.X("bits:Q", scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=8), title=TITLE)
    colour = alt.Color(
        "mixture:N",
        scale=alt.Scale(domain=list(MIXTURES.values()), range=COLOURS),
        legend=alt.Legend(orient="top", title=None, columnPadding=40),
    )
    shape = alt.Shape(
        "mixture:N", scale=alt.Scale(domain=list(MIXTURES.values()), range=["circle", "square", "diamond"])
    )
    lines = alt.Chart(data).mark_rule(color="#D0D0D0").encode(y=language, x="min(bits):Q", x2="max(bits):Q")
    points = (
        alt.Chart(data)
        .mark_point(filled=True, size=120, opacity=1)
        .encode(x=bits, y=language, color=colour, shape=shape)
    )
    return (
        (lines + points)
        .properties(width=600, height=210)
        .configure(
            background="white",
            padding={"left": 30, "right": 40, "top": 5, "bottom": 5},
            font="Helvetica, Arial, sans-serif",
        )
        .configure_axis(labelFontSize=13, titleFontSize=13, titleFontWeight="normal", gridColor="#EEEEEE")
        .configure_legend(labelFontSize=13)
        .configure_view(stroke=None)
    )


if __name__ == "__main__":
    chart(measured((DOCS / "experiments.md").read_text(encoding="utf-8"))).save(str(CHART))
