"""Export a mixture for other trainers.

`MixtureSampler` reads exactly what a mixture states. `export` writes the configuration of another trainer's own mixer,
and warns if that mixer deviates from the mixture. The docstring of each function in `FORMATS` is the manual of that
format. It explains what the weights mean and what happens at the end of a source. docs/reference/exports.md compares
the formats in one table.
"""

from xdoge._callable import make_callable
from xdoge.export.formats import FORMATS, export
from xdoge.export.request import Export

__all__ = ["FORMATS", "Export", "export"]

make_callable(__name__, "xdoge.export.formats")
