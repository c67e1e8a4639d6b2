"""What can go wrong and be put right by the user.

    XDogeError              one line that names the thing, the value got, what is allowed, the way out
    ├── MissingExtraError   an optional library is not installed
    └── NonFiniteLossError  training diverged
    Interrupted             SIGINT or SIGTERM came, and what is needed to continue was written

Bugs of our own stay plain Python exceptions, with their tracebacks.
"""

from __future__ import annotations


class XDogeError(Exception):
    """Something the user can put right; the command line prints it as one line and exits with 1."""


class MissingExtraError(XDogeError):
    """An optional library is missing."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed; this needs pip install 'xdoge[{extra}]'.")


class NonFiniteLossError(XDogeError):
    """A loss became NaN or infinite, so nothing that follows could be trusted."""


class Interrupted(Exception):
    """A signal asked to stop, and everything needed to continue was written."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal
