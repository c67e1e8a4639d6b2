"""Read the sequences of a mixture in a reproducible order, with any data loader.

Each name is imported when it is first used. `MixtureSampler` needs only NumPy, and `MixtureDataset` needs PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xdoge.errors import importing

if TYPE_CHECKING:
    from xdoge.sampling.dataset import MixtureDataset
    from xdoge.sampling.sampler import Draw, Draws, MixtureSampler

__all__ = ["Draw", "Draws", "MixtureDataset", "MixtureSampler"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with importing("proxy"):
        return getattr(import_module(f"{__name__}.{'dataset' if name == 'MixtureDataset' else 'sampler'}"), name)
