"""Render sections as one self-contained HTML page that needs no network; without JavaScript, charts are still."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from xdoge.analysis.tables import TextTable
from xdoge.errors import MissingExtraError

if TYPE_CHECKING:
    import altair as alt


_SNIPPET = "window.vegaEmbed = vegaEmbed;"
"""Makes the bundled library visible to the script of the page."""


@dataclass(frozen=True)
class Figure:
    """A chart, and in words what it shows.

    Attributes:
        chart: an Altair chart.
        caption: stands below the chart.
        description: for screen readers; has the most important numbers.
    """

    chart: alt.TopLevelMixin
    caption: str
    description: str


@dataclass(frozen=True)
class Section:
    """A heading and its content, in the order of the fields."""

    title: str
    paragraphs: Sequence[str] = ()
    warnings: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[TextTable] = ()
    commands: Sequence[str] = ()


@functools.cache
def _library() -> str:
    """Return the JavaScript library that draws the charts; bundling it takes seconds."""
    import vl_convert

    library: str = vl_convert.javascript_bundle(_SNIPPET)
    return library


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the page as HTML; all text is escaped.

    Each chart is a still picture, which JavaScript replaces by the same chart with hover.
    """
    try:
        import vl_convert
        from jinja2 import Environment
        from markupsafe import Markup
    except ImportError as error:
        raise MissingExtraError(error.name or "altair", "analysis") from error
    specs: list[dict[str, Any]] = []
    filled = []
    for section in sections:
        figures = []
        for figure in section.figures:
            specs.append(figure.chart.to_dict())
            still = Markup(vl_convert.vegalite_to_svg(specs[-1]))
            figures.append({**vars(figure), "number": len(specs) - 1, "svg": still})
        filled.append({**vars(section), "figures": figures})
    template = Environment(autoescape=True).from_string((files("xdoge.analysis") / "page.html").read_text("utf-8"))
    return template.render(
        title=title,
        subtitle=subtitle,
        sections=filled,
        library=Markup(_library()) if specs else "",
        specs=Markup(json.dumps(specs).replace("<", "\\u003c")),  # no text of a chart ends the script
    )
