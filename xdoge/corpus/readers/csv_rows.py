"""The rows of a CSV file, through Python's csv module in strict mode.

Every value stays the text that it is. A quote that stands where none may, a row of another length than the header and
a file that ends within quotes are errors, since each of them moves text from one document to another.
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
"""Characters of one value."""


def csv_rows(path: Readable, stream: IO[bytes], spec: CsvSpec) -> Iterator[list[str]]:
    """Yield the header, then each row that is not an empty line.

    Raises:
        XDogeError: a row is broken; the message names its last line.
    """
    csv.field_size_limit(LONGEST_VALUE)
    header: list[str] = []
    with io.TextIOWrapper(stream, encoding="utf-8", newline="") as text:
        tabs = text_format(path)[0] == ".tsv" and spec.delimiter == ","
        delimiter = "\t" if tabs else spec.delimiter
        lines = (line.lstrip("\ufeff") for line in text)  # marks stand where files were joined to one
        rows = csv.reader(lines, delimiter=delimiter, escapechar=spec.escape, strict=True)
        try:
            for row in rows:
                if not row:
                    continue
                header = header or row
                if len(row) != len(header):
                    raise csv.Error(f"it has {len(row)} values, and the header {len(header)}")
                yield row
        except csv.Error as error:
            raise XDogeError(
                f"{path}: the row that ends in line {rows.line_num} is not CSV ({error}). "
                'Its dialect can be declared, such as csv: {escape: "\\\\", delimiter: ";"}.'
            ) from error
