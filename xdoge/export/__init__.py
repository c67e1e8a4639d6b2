"""A mixture as the mixers of other trainers read it.

`MixtureSampler` reads exactly what a mixture says. `export` writes what a trainer's own mixer wants, and warns where
that mixer does something else. The docstring of each function of `FORMATS` is the manual of one format: it says what
the weights mean and what happens at the end of a source. docs/reference/exports.md compares the formats in one table.
"""

from xdoge._callable import make_callable
from xdoge.export.formats import FORMATS, export
from xdoge.export.request import Export

__all__ = ["FORMATS", "Export", "export"]

make_callable(__name__, "xdoge.export.formats")
