"""Learn how much of each language a multilingual language model should be trained on.

The names below are light: they need NumPy and nothing else. What trains, reads or tokenises lives in
`xdoge.corpus` and `xdoge.proxy` and imports its libraries when it is used.
"""

from xdoge.errors import XDogeError
from xdoge.mixtures.weights import WeightSet

__version__ = "0.1.0"

__all__ = ["WeightSet", "XDogeError", "__version__"]
