"""Code that tests of the command line share."""

from __future__ import annotations


def one_line(err):
    """Return the error message, after checking that it is one line without a traceback."""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]
