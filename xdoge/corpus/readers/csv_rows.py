"""Read the rows of a CSV file with Python's csv module in strict mode.

Values are not converted. These are errors, since each of them can move text from one document to another: a misplaced
quote, a row whose length differs from the header, and a file that ends inside quotes.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import IO

from xdoge.corpus.paths import text_format
from xdoge.corpus.remote import Readable
from xdoge.corpus.spec import CsvSpec
from xdoge.errors import XDogeError

LONGEST_VALUE = (1 << 31) - 1
"""Most characters of one value."""


def csv_rows(path: Readable, stream: IO[bytes], spec: CsvSpec) -> Iterator[list[str]]:
    """Yield the header, then the rows. Empty lines are skipped.

    Raises:
        XDogeError: a row is not valid. The message names its last line.
    """
    csv.field_size_limit(LONGEST_VALUE)
    header: list[str] = []
    with io.TextIOWrapper(stream, encoding="utf-8", newline="") as text:
        tabs = text_format(path)[0] == ".tsv" and spec.delimiter == ","
        delimiter = "\t" if tabs else spec.delimiter
        lines = (line.lstrip("\ufeff") for line in text)  # byte order marks of concatenated files
        rows = csv.reader(
            lines,
            delimiter=delimiter,
            escapechar=spec.escape,
            quotechar=spec.quote,
            quoting=csv.QUOTE_MINIMAL if spec.quote else csv.QUOTE_NONE,
            strict=True,
        )
        try:
            for row in rows:
                if not row:
                    continue
                header = header or row
                if len(row) != len(header):
                    raise csv.Error(f"it has {len(row)} values, but the header has {len(header)}")
                yield row
        except csv.Error as error:
            raise XDogeError(
                f"{path}: the row that ends in line {rows.line_num} is not CSV ({error}). "
                'Its dialect can be declared, such as csv: {escape: "\\\\", delimiter: ";", quote: null}.'
            ) from error
