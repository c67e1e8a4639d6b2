"""The command `xdoge`, also as `python -m xdoge`; without the extra `cli` it says what to install."""

from __future__ import annotations

import sys

from xdoge.errors import MissingExtraError, require


def main() -> None:
    """Run the command line."""
    try:
        require("cli", "typer", "rich", "pydantic", "yaml", "pyarrow", "scipy")
    except MissingExtraError as error:
        sys.exit(f"error: {error}")
    from xdoge.cli import main as run

    run()


if __name__ == "__main__":
    main()
