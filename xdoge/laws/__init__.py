"""Mixture laws, which predict the loss of a mixture before anyone trains on it.

Each name is imported when it is first used. `MixtureLaw` needs NumPy and SciPy; `run_swarm` trains, and needs PyTorch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from xdoge.errors import importing

if TYPE_CHECKING:
    from xdoge.laws.law import LawSettings, MixtureLaw, OptimizeSettings
    from xdoge.laws.swarm import run_swarm
    from xdoge.laws.swarm_plan import Swarm
    from xdoge.laws.swarm_settings import SwarmSettings

__all__ = ["LawSettings", "MixtureLaw", "OptimizeSettings", "Swarm", "SwarmSettings", "run_swarm"]

_HOMES = {"Swarm": "swarm_plan", "SwarmSettings": "swarm_settings", "run_swarm": "swarm"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with importing("proxy" if name in _HOMES else "cli"):
        return getattr(import_module(f"{__name__}.{_HOMES.get(name, 'law')}"), name)
