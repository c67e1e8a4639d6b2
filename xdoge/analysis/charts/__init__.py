"""Functions that return charts, such as `planned_shares(mixture)`.

They are Altair charts. `chart.save("x.svg")` (or .png, .pdf, .html) works without a network, and Jupyter shows them.
"""

from xdoge.errors import importing

with importing("analysis"):
    import altair  # noqa: F401

from xdoge.analysis.charts.fits import targets, trajectory, transfer
from xdoge.analysis.charts.laws import loss_along_share, predicted_against_measured, trade_off, transfer_map
from xdoge.analysis.charts.models import improvement, perplexity_change, validation_change
from xdoge.analysis.charts.shares import planned_shares, unimax_and_temperature, weights_by_language

__all__ = [
    "improvement",
    "loss_along_share",
    "perplexity_change",
    "planned_shares",
    "predicted_against_measured",
    "targets",
    "trade_off",
    "trajectory",
    "transfer",
    "transfer_map",
    "unimax_and_temperature",
    "validation_change",
    "weights_by_language",
]
