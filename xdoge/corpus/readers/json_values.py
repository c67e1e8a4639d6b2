"""Read the values of a .json file one at a time, from chunks of bytes."""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

from xdoge.corpus.readers.columns import Pairs
from xdoge.corpus.remote import Readable
from xdoge.errors import XDogeError

_GAP = re.compile(r"[\s,\ufeff]*")
_LONGEST_WORD = 16
"""Characters. `-Infinity` and escapes such as `\\u00e9` are shorter. So if the end of a chunk cuts one of them, the
parser fails within this distance of the end."""


def one_object_a_line(head: bytes) -> bool:
    """Whether a .json file has one object per line, judged by its first chunk.

    Otherwise it is an array or consecutive objects. A file with one object per line can be parsed by several threads.
    Both ways give the same documents.
    """
    first = head.removeprefix(codecs.BOM_UTF8).lstrip().split(b"\n", 1)[0]
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def json_values(path: Readable, chunks: Iterator[bytes]) -> Iterator[Any]:
    """Yield the JSON values in an array, or consecutive values. Memory holds one chunk, or one value if it is longer.

    Raises:
        XDogeError: a value is not valid, or the array has no end. An invalid value is reported at once, without reading
            the rest of the file.
    """
    parse, decoder = json.JSONDecoder(object_pairs_hook=Pairs).raw_decode, codecs.getincrementaldecoder("utf-8-sig")()
    row, parts, least, in_array = 1, [""], 0, None  # least: characters to collect before parsing
    for chunk in itertools.chain(chunks, [b""]):  # the empty chunk marks the end
        parts.append(decoder.decode(chunk, final=not chunk))
        if chunk and sum(map(len, parts)) < least:
            continue
        rest, at, least = "".join(parts), 0, 0
        while (at := _GAP.match(rest, at).end()) < len(rest):  # type: ignore[union-attr]  # always matches
            if in_array is None:
                in_array = rest[at] == "["
                at += in_array
                continue
            if rest[at] == "]" and in_array:
                at, in_array = at + 1, False
                continue
            try:
                value, end = parse(rest, at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(rest) - _LONGEST_WORD
                if chunk and cut:
                    least = 2 * (len(rest) - at)  # avoids parsing a long value again for each chunk
                    break
                raise XDogeError(f"{path}: row {row} is not JSON ({error.msg}).") from error
            at = end
            yield value
            row += 1
        parts = [rest[at:]]
    if in_array:
        raise XDogeError(f"{path} was cut: its array does not end after row {row - 1}.")
