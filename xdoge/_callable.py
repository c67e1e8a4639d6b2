"""Make a package or module callable, for example `xdoge.fit`.

`xdoge.fit` is both a function that users call and the package that contains `xdoge.fit.trainer`. When anything imports
`xdoge.fit.trainer`, Python sets the attribute `xdoge.fit` to the package. A function of that name would be overwritten.
We therefore make the package itself callable, so that `xdoge.fit` is always the same object. The module
`xdoge.corpus.prepare` works in the same way.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from xdoge.errors import importing


def make_callable(package: str, home: str) -> None:
    """Make a package or module call the function that has the same name.

    Type checkers see the function itself, because `xdoge/__init__.py` imports it for them under the same name.

    Args:
        package: `__name__` of the package or module that calls this.
        home: module that defines the function. It is imported at the first call.
    """

    class CallablePackage(ModuleType):
        @property
        def __wrapped__(self) -> Any:  # `help` and `inspect.signature` read the arguments from it
            with importing("proxy"):
                return getattr(import_module(home), package.rpartition(".")[2])

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return self.__wrapped__(*args, **kwargs)

        def __reduce__(self) -> tuple[Any, ...]:  # pickled by name, as functions are
            return import_module, (package,)

    sys.modules[package].__class__ = CallablePackage
