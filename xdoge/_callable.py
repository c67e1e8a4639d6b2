"""Packages and modules that are called like the function they are named after.

`xdoge.fit` is both a function that people call and a package in which `xdoge.fit.trainer` lies. Python sets the
attribute `xdoge.fit` to the package as soon as anything imports `xdoge.fit.trainer`, whatever it was before. So the
package itself can be called, and `xdoge.fit` is the same object at all times. `xdoge.corpus.prepare` is a module of the
same kind.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from xdoge.errors import importing


def make_callable(package: str, home: str) -> None:
    """Let calls of a package or module go to the function of its name.

    Type checkers see the function itself: `xdoge/__init__.py` imports it for them under the same name.

    Args:
        package: `__name__` of the package that calls this.
        home: module that defines the function; it is imported at the first call.
    """

    class CallablePackage(ModuleType):
        @property
        def __wrapped__(self) -> Any:  # by which `help` and `inspect.signature` find the arguments
            with importing("proxy"):
                return getattr(import_module(home), package.rpartition(".")[2])

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.__wrapped__(*args, **kwargs)

        def __reduce__(self) -> tuple[Any, ...]:  # so that it goes to another process as a function does
            return import_module, (package,)

    sys.modules[package].__class__ = CallablePackage
