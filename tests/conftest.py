"""What all tests share."""

from __future__ import annotations

from hypothesis import settings

# The same examples every time, and no deadline: a busy machine is no bug.
settings.register_profile("xdoge", deadline=None, derandomize=True)
settings.load_profile("xdoge")
