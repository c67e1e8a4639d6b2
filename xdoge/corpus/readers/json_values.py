"""The values of a .json file one by one, from chunks of bytes that may be cut anywhere."""

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
"""Characters: more than `-Infinity` or an escape such as `\\u00e9` has, so a cut one begins this near to the end."""


def one_object_a_line(head: bytes) -> bool:
    """Say whether a .json file has one object a line by its first chunk; else it is an array, or objects as they come.

    What has one a line can be parsed by many threads; both ways give the same documents.
    """
    first = head.removeprefix(codecs.BOM_UTF8).lstrip().split(b"\n", 1)[0]
    try:
        return isinstance(json.loads(first), dict)
    except ValueError:
        return False


def json_values(path: Readable, chunks: Iterator[bytes]) -> Iterator[Any]:
    """Yield JSON values as they come, holding a chunk of the file, or one value when that is longer.

    They stand in one array, or one after the other.

    Raises:
        XDogeError: a value is broken; nothing is read on to find that out.
    """
    parse, decoder = json.JSONDecoder(object_pairs_hook=Pairs).raw_decode, codecs.getincrementaldecoder("utf-8-sig")()
    row, parts, wanted, in_array = 1, [""], 0, None
    for chunk in itertools.chain(chunks, [b""]):  # the empty one: nothing comes after
        parts.append(decoder.decode(chunk, final=not chunk))
        if chunk and sum(map(len, parts)) < wanted:
            continue
        rest, at, wanted = "".join(parts), 0, 0
        while (at := _GAP.match(rest, at).end()) < len(rest):  # type: ignore[union-attr]  # it matches anything
            if in_array is None:
                in_array = rest[at] == "["
                at += in_array
                continue
            if rest[at] == "]" and in_array:
                at += 1
                continue
            try:
                value, end = parse(rest, at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(rest) - _LONGEST_WORD
                if chunk and cut:
                    wanted = 2 * (len(rest) - at)  # so that a long value is not parsed once for every chunk of it
                    break
                raise XDogeError(f"{path}: row {row} is not JSON ({error.msg}).") from error
            at = end
            yield value
            row += 1
        parts = [rest[at:]]
