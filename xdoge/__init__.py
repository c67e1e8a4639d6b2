"""Learn how much of each language a multilingual language model should be trained on.

`import xdoge` loads nothing heavy. Each name below is imported when it is first used. If that needs a library that is
not installed, the error names the extra to install.
"""

from __future__ import annotations

from importlib import import_module

from xdoge._version import __version__

TYPE_CHECKING = False  # not from `typing`: Ctrl-C during its import would print a traceback
if TYPE_CHECKING:
    from typing import Any

    from xdoge.analysis.comparison import compare
    from xdoge.corpus.prepare import prepare
    from xdoge.corpus.store import TokenStore
    from xdoge.errors import Interrupted, XDogeError
    from xdoge.eval.evaluate import evaluate
    from xdoge.export import export
    from xdoge.fit.trainer import fit
    from xdoge.laws.law import MixtureLaw
    from xdoge.mixtures.mixture import Mixture
    from xdoge.mixtures.weights import WeightSet
    from xdoge.sampling.dataset import MixtureDataset
    from xdoge.sampling.sampler import Draw, Draws, MixtureSampler
    from xdoge.study import Study
    from xdoge.train.trainer import train

__all__ = [
    "Draw",
    "Draws",
    "Interrupted",
    "Mixture",
    "MixtureDataset",
    "MixtureLaw",
    "MixtureSampler",
    "Study",
    "TokenStore",
    "WeightSet",
    "XDogeError",
    "__version__",
    "compare",
    "evaluate",
    "export",
    "fit",
    "prepare",
    "train",
]

_HOMES = {
    "Draw": "sampling.sampler",
    "Draws": "sampling.sampler",
    "Interrupted": "errors",
    "Mixture": "mixtures.mixture",
    "MixtureDataset": "sampling.dataset",
    "MixtureLaw": "laws.law",
    "MixtureSampler": "sampling.sampler",
    "Study": "study",
    "TokenStore": "corpus.store",
    "WeightSet": "mixtures.weights",
    "XDogeError": "errors",
    "compare": "analysis.comparison",
    "evaluate": "eval.evaluate",
    "prepare": "corpus.prepare",
}
_CALLABLE_PACKAGES = ("export", "fit", "train")  # see xdoge/_callable.py


def __getattr__(name: str) -> Any:
    if name in _CALLABLE_PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from xdoge.errors import importing

    with importing("cli" if _HOMES[name].startswith(("corpus", "laws")) else "proxy"):
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
