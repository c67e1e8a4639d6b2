"""Learn how much of each language a multilingual language model should be trained on.

The names below are light: they need NumPy and nothing else. What trains, reads or tokenises lives in
`xdoge.corpus` and `xdoge.proxy` and imports its libraries when it is used. `compare` is loaded when first asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from xdoge._version import __version__
from xdoge.errors import XDogeError
from xdoge.mixtures.mixture import Mixture
from xdoge.mixtures.weights import WeightSet
from xdoge.sampling.sampler import Draw, Draws, MixtureSampler

if TYPE_CHECKING:
    from xdoge.analysis.comparison import compare

__all__ = ["Draw", "Draws", "Mixture", "MixtureSampler", "WeightSet", "XDogeError", "__version__", "compare"]


def __getattr__(name: str) -> Any:
    if name == "compare":
        from xdoge.analysis.comparison import compare

        return compare
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
