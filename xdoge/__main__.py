"""The command `xdoge`, also run as `python -m xdoge`. Without the extra `cli` it says what to install."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading


def main() -> None:
    """Run the command line in this process, and exit."""
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:  # a background job ignores SIGINT; leave that
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # during imports no work has begun, so exit at once
    for name in ("stdin", "stdout", "stderr"):  # if one is closed, the next opened file would get its descriptor
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))  # noqa: SIM115
    from xdoge.errors import MissingExtraError, require

    try:
        require("cli", "typer", "rich", "pydantic", "yaml", "pyarrow", "scipy")
    except MissingExtraError as error:
        sys.exit(f"error: {error}")
    from xdoge.cli import main as run

    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    except SystemExit as stop:
        _leave_encoders(stop)
        raise


def _leave_encoders(stop: SystemExit) -> None:
    """Exit without waiting for threads that still encode. They write nothing, and a long document can take a minute."""
    from xdoge.errors import ABANDONED

    if isinstance(stop.code, int) and any(thread.name.startswith(ABANDONED) for thread in threading.enumerate()):
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(stop.code)


if __name__ == "__main__":
    main()
