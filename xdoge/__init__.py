"""Learn how much of each language a multilingual language model should be trained on.

The names below are light: they need NumPy and nothing else. What trains, reads or tokenises lives in
`xdoge.corpus` and `xdoge.proxy` and imports its libraries when it is used.
"""

from xdoge.errors import XDogeError
from xdoge.mixtures.plan import Mixture
from xdoge.mixtures.sampler import Draw, Draws, MixtureSampler
from xdoge.mixtures.weights import WeightSet

__version__ = "0.1.0"

__all__ = ["Draw", "Draws", "Mixture", "MixtureSampler", "WeightSet", "XDogeError", "__version__"]
