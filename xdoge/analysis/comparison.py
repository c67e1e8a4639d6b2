"""The public `compare`. It returns a `Comparison` with rows, data frames, tables, charts and an HTML page."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from xdoge.analysis.comparison_data import ComparisonData
from xdoge.analysis.inputs import Comparable, check_baseline, read_all
from xdoge.analysis.shares import union
from xdoge.errors import XDogeError

if TYPE_CHECKING:
    import altair as alt


class Charts(dict[str, "alt.TopLevelMixin"]):
    """Charts by name. A missing name raises XDogeError with the names that exist."""

    def __missing__(self, name: str) -> alt.TopLevelMixin:
        there = f"there are {', '.join(self)}" if self else "none of them has a chart"
        raise XDogeError(f"there is no chart {name!r} of these inputs: {there}.")


class Comparison(ComparisonData):
    """Weight sets, mixtures, training runs, results and laws side by side. `compare` makes one."""

    @functools.cached_property
    def charts(self) -> Charts:
        """Every Altair chart that the inputs have data for, by name, such as "weights" or "trajectory-60m"."""
        from xdoge.analysis.chart_set import charts_by_name, charts_of

        return Charts(charts_by_name(charts_of(self)))

    def to_html(self, command: str = "") -> str:
        """Return a self-contained HTML page: conclusion, charts, tables, files and the commands to repeat it.

        Args:
            command: the command that made the page; empty to show none.
        """
        from xdoge.analysis.report import comparison_page

        return comparison_page(self, command)


def compare(
    inputs: Iterable[Comparable | tuple[str | None, Comparable]] | Mapping[str, Comparable],
    *,
    baseline: str | None = None,
) -> Comparison:
    """Compare weights.json, mixture.json, results.json and law.json files and run folders, in any combination.

    Args:
        inputs: paths, or objects read from them (`WeightSet`, `Mixture`, `Results`, `MixtureLaw`). A string
            "NAME=FILE", a pair or a mapping gives an input a name. Otherwise, a path is named by its last parts, as
            many as make the name unique.
        baseline: name of the weight set, mixture, run or model with which all others of its kind are compared. The
            default is the first of each kind. A kind without this name shows no differences.

    Raises:
        XDogeError: a file is missing or of another kind, two inputs have the same name, or no input has the name
            `baseline`.
    """
    items = list(inputs.items()) if isinstance(inputs, Mapping) else inputs
    comparison = Comparison(read_all([items] if isinstance(items, str | Path) else items), baseline)
    check_baseline(union([comparison.sets, comparison.inputs.runs, comparison.models]), baseline)
    return comparison
