"""Renders sections as one self-contained HTML page. It needs no network; without JavaScript, charts are pictures."""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from xdoge._version import __version__
from xdoge.analysis.tables import TextTable
from xdoge.errors import importing

if TYPE_CHECKING:
    import altair as alt


_SNIPPET = "window.vegaEmbed = vegaEmbed;"
"""Makes the bundled library available to the script of the page."""


@dataclass(frozen=True)
class Figure:
    """A chart and the caption below it. Screen readers read the chart's description, which has its main numbers."""

    chart: alt.TopLevelMixin
    caption: str


@dataclass(frozen=True)
class Section:
    """A heading and its content, in the order of the fields. If `lead` is true, its paragraphs have larger type."""

    title: str
    paragraphs: Sequence[str] = ()
    warnings: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[TextTable] = ()
    commands: Sequence[str] = ()
    lead: bool = False


@functools.cache
def _library() -> str:
    """Return the JavaScript library that draws the charts. Bundling it takes seconds."""
    import vl_convert

    library: str = vl_convert.javascript_bundle(_SNIPPET)
    return library


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the page as HTML, with version and time below the title. All text is escaped.

    Each chart is a picture. JavaScript replaces it by an interactive chart.
    """
    with importing("analysis"):
        import vl_convert
        from jinja2 import Environment
        from markupsafe import Markup, escape
    specs: list[dict[str, Any]] = []
    filled = []
    for section in sections:
        figures = []
        for figure in section.figures:
            specs.append(figure.chart.to_dict())
            svg = vl_convert.vegalite_to_svg(specs[-1])
            drawn = {"svg": Markup(svg), "width": _width(svg), "description": specs[-1]["description"]}
            figures.append({"caption": figure.caption, "number": len(specs) - 1, **drawn})
        filled.append({**vars(section), "figures": figures})
    made = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="minutes")
    environment = Environment(autoescape=True)
    environment.filters["words"] = lambda text: Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))
    template = environment.from_string((files("xdoge.analysis") / "page.html").read_text("utf-8"))
    return template.render(
        title=title,
        subtitle=f"{subtitle} Made by xdoge {__version__} at {made}.",
        sections=filled,
        library=Markup(_library()) if specs else "",
        specs=Markup(json.dumps(specs).replace("<", "\\u003c")),  # so that no text of a chart can end the script
    )


def _width(svg: str) -> int:
    """Return the width of a picture in pixels. At this width, its text has the intended size."""
    match = re.search(r'<svg[^>]*\bwidth="([\d.]+)"', svg)
    return round(float(match[1])) if match else 600
