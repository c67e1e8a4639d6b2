"""Read the data out of charts."""

from __future__ import annotations


def values(spec):
    """Return the rows of data in a chart's specification."""
    if isinstance(spec, list):
        return [row for child in spec for row in values(child)]
    if not isinstance(spec, dict):
        return []
    own = spec.get("values", []) if isinstance(spec.get("values"), list) else []
    return [row for row in own if isinstance(row, dict)] + values(list(spec.values()))
