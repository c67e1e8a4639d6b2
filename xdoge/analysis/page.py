"""One self-contained page: headings, tables and charts that need no network, and tables that need no JavaScript."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from xdoge.errors import MissingExtraError

if TYPE_CHECKING:
    import altair as alt


_SNIPPET = "window.vegaEmbed = vegaEmbed;"
"""What the page's own script takes from the bundled library."""


@dataclass(frozen=True)
class TableOf:
    """A table of text.

    Attributes:
        caption: what it shows, with units.
        header: name of each column; the first is that of the rows' names.
        rows: as many cells each as the header has.
        text_columns: columns aligned to the left, by their place.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: Sequence[int] = (0,)


@dataclass(frozen=True)
class Figure:
    """A chart, with what it shows in words for those who do not see it.

    Attributes:
        chart: an Altair chart.
        caption: what it shows, below it.
        description: the same for a screen reader, with the numbers that matter.
    """

    chart: alt.TopLevelMixin
    caption: str
    description: str


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order."""

    title: str
    paragraphs: Sequence[str] = ()
    warnings: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[TableOf] = ()
    commands: Sequence[str] = ()


@functools.cache
def _library() -> str:
    """Return what draws the charts, as JavaScript; bundling it takes seconds."""
    import vl_convert

    library: str = vl_convert.javascript_bundle(_SNIPPET)
    return library


def render(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """Return the page as HTML; all text is escaped.

    Each chart stands there as a still picture, which JavaScript replaces by the same chart with hover.
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
