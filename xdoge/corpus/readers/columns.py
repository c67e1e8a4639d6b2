"""Get the text of a document from its row. It can be one column or several, nested, or a list of paragraphs.

`data.text` is the field `text` of the object in `data`, unless there is a key with that whole name. A field of a list
of objects is a list. The parts of lists and of several columns are joined with a blank line between them. Parts that
are null, empty or only white space are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from xdoge.errors import XDogeError

Columns = str | tuple[str, ...]
"""The column of the text, or several columns whose texts are joined."""
JOIN = "\n\n"
NAMES_SHOWN = 300
"""Most characters of column names in a message. In a CSV file without a header, a document stands in their place."""
TEXT_TYPES = (
    *(pa.string(), pa.large_string(), pa.string_view()),
    *(pa.binary(), pa.large_binary(), pa.binary_view()),
)
"""Arrow types that a column of text can have. Impala and old versions of Spark write UTF-8 as binary."""


class Pairs(dict[str, Any]):
    """A JSON object.

    Attributes:
        repeated: keys that occur more than once in the object.
    """

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        counts = Counter(key for key, _ in pairs) if len(self) < len(pairs) else {}
        self.repeated = {key for key, count in counts.items() if count > 1}


def names_of(columns: Columns) -> tuple[str, ...]:
    """Return the names of the columns as a tuple."""
    return (columns,) if isinstance(columns, str) else columns


def split_name(names: Collection[str], name: str) -> tuple[str, str]:
    """Return the longest of `names` with which a dotted name begins, and the rest. The first is "" if none fits."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        key = ".".join(parts[:count])
        if key in names:
            return key, ".".join(parts[count:])
    return "", name


def join_parts(parts: Iterable[str | None]) -> str:
    """Return the parts joined with blank lines. Parts that are null, empty or only white space are left out."""
    return JOIN.join(part for part in parts if part and not part.isspace())


def text_of(row: object, columns: Columns, *, where: str) -> str:
    """Return the document in a row, "" if it is empty or null.

    Args:
        row: parsed row.
        columns: columns of the text.
        where: file and row, for messages.

    Raises:
        XDogeError: the row is not an object, a column is not text, or the column's key occurs twice.
    """
    if not isinstance(row, Mapping):
        raise XDogeError(f"{where} is a JSON {type(row).__name__}, not an object with a {names_of(columns)[0]!r}.")
    texts = [_text(_value(row, name, where=where), where=f"{where}: {name!r}") for name in names_of(columns)]
    return texts[0] if len(texts) == 1 else join_parts(texts)


def _value(row: Any, name: str, *, where: str) -> Any:
    if isinstance(row, list):
        return [_value(item, name, where=where) for item in row]
    if row is None or not name:
        return row
    if not isinstance(row, Mapping):
        raise XDogeError(f"{where}: {str(row)[:40]!r} has no field {name!r}, because it is not an object.")
    key, rest = split_name(row, name)
    if key in getattr(row, "repeated", ()):
        raise XDogeError(f"{where} has {key!r} twice; remove one of them.")
    return _value(row[key], rest, where=where) if key else None


def _text(value: object, *, where: str) -> str:
    if isinstance(value, list):
        return join_parts(_text(part, where=where) for part in value)
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise XDogeError(f"{where} is {str(value)[:40]!r}, which is not text.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise XDogeError(f"{where} has half a surrogate pair, which is not a character.") from error
    return value


# --- tables ----------------------------------------------------------------------------------------------------------


def select(table: pa.RecordBatch | pa.Table, columns: Columns) -> pa.Array:
    """Return the columns of a table as an array, or as a struct array if there are several."""
    arrays = [_array(table, name) for name in names_of(columns)]
    if len(arrays) == 1:
        return arrays[0]
    return pa.StructArray.from_arrays(arrays, names=[str(number) for number in range(len(arrays))])


def _array(table: pa.RecordBatch | pa.Table, name: str) -> pa.Array:
    key, rest = split_name(table.schema.names, name)
    array = table.column(key)
    array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
    while rest and pa.types.is_struct(array.type):
        key, rest = split_name([field.name for field in array.type], rest)
        array = pc.struct_field(array, [array.type.get_field_index(key)])
    if not rest:
        return array
    values = (_value(value, rest, where=name) for value in array.to_pylist())  # fields of a list of objects
    return pa.array([_text(value, where=name) for value in values], pa.large_string())


def texts_of(array: pa.Array) -> Iterator[str]:
    """Yield the documents in an array that `select` returned, "" for empty rows and null.

    Raises:
        UnicodeDecodeError: binary text is not UTF-8.
    """
    for value in array.to_pylist():
        if isinstance(value, dict):
            yield join_parts(_text(part, where="") for part in value.values())
        else:
            yield value if isinstance(value, str) else _text(value, where="")


def check_column(schema: pa.Schema, columns: Columns, *, where: str) -> None:
    """Raise an error if a table lacks a column, or the column is not text.

    Raises:
        XDogeError: a column is missing or not text. The message lists the columns of the table.
    """
    for name in names_of(columns):
        kind = _type(schema, name, where=where)
        if kind is None:
            raise _missing(name, _leaves(schema), where=where)
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        if kind not in (*TEXT_TYPES, pa.null()):  # null: no row of this file has text
            raise XDogeError(f"{where}: the column {name!r} is {str(kind)[:80]}, not text.")


def paths_of(schema: pa.Schema, columns: Columns) -> list[str]:
    """Return the columns, or fields of columns, to read from a Parquet file. A path ends at the first list."""
    return [_path(schema, name) for name in names_of(columns)]


def keys_of(schema: pa.Schema, columns: Columns) -> list[str]:
    """Return the top-level columns of a table that contain `columns`."""
    return list(dict.fromkeys(split_name(schema.names, name)[0] for name in names_of(columns)))


def _path(fields: pa.Schema | pa.DataType, name: str) -> str:
    key, rest = split_name([field.name for field in fields], name)
    kind = fields.field(key).type
    return f"{key}.{_path(kind, rest)}" if rest and pa.types.is_struct(kind) else key


def _type(fields: pa.Schema | pa.DataType, name: str, *, where: str) -> pa.DataType | None:
    """Return the type of the field that a dotted name leads to, None if there is no such field.

    For lists it is the type of their items.
    """
    fields = _items(fields) if isinstance(fields, pa.DataType) else fields
    if not name:
        return fields
    if isinstance(fields, pa.DataType) and not pa.types.is_struct(fields):
        return None
    names = [field.name for field in fields]
    key, rest = split_name(names, name)
    _refuse_repeated(names, key, where=where)
    return _type(fields.field(key).type, rest, where=where) if key else None


def _items(kind: pa.DataType) -> pa.DataType:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_list_view)
    while any(is_list(kind) for is_list in lists):
        kind = kind.value_type
    return kind


def _leaves(fields: pa.Schema | pa.DataType, before: str = "") -> list[str]:
    names = []
    for field in fields:
        kind, name = _items(field.type), f"{before}{field.name}"
        names += _leaves(kind, f"{name}.") if pa.types.is_struct(kind) else [name]
    return names


# --- messages --------------------------------------------------------------------------------------------------------


def check_names(names: Sequence[str], columns: Columns, *, where: str) -> None:
    """Raise an error if a header lacks a column or has it twice.

    Raises:
        XDogeError: a column is missing or repeated. The message lists the columns of the header.
    """
    for name in names_of(columns):
        _refuse_repeated(names, name, where=where)
        if name not in names:
            raise _missing(name, names, where=where)


def check_rows(rows: Sequence[object], columns: Columns, *, where: str) -> None:
    """Raise an error if none of some JSON rows has a column.

    Raises:
        XDogeError: a column is missing from all rows. The message lists the fields of the rows.
    """
    objects = [row for row in rows if isinstance(row, dict) and row]
    for name in names_of(columns):
        if objects and not any(_has(row, name) for row in objects):
            raise _missing(name, dict.fromkeys(field for row in objects for field in _fields(row)), where=where)


def _has(row: Any, name: str) -> bool:
    """Whether a dotted name exists in a row. Its value may be null."""
    if isinstance(row, list):
        return not row or any(_has(item, name) for item in row)
    if row is None or not name:
        return True
    key, rest = split_name(row, name) if isinstance(row, dict) else ("", name)
    return bool(key) and _has(row[key], rest)


def _fields(row: Any, before: str = "") -> Iterator[str]:
    for key, value in row.items():
        inner = next(iter(value), None) if isinstance(value, list) else value
        if isinstance(inner, dict) and inner:
            yield from _fields(inner, f"{before}{key}.")
        else:
            yield f"{before}{key}"


def _refuse_repeated(names: Sequence[str], column: str, *, where: str) -> None:
    if (count := names.count(column)) > 1:
        raise XDogeError(f"{where} has {count} columns {column!r}; rename all but one.")


def _missing(column: str, columns: Iterable[str], *, where: str) -> XDogeError:
    names = ", ".join(columns)
    names = names if len(names) <= NAMES_SHOWN else f"{names[:NAMES_SHOWN]}..."
    return XDogeError(f"{where} has no column {column!r}; it has {' '.join(names.split())}. Set text: COLUMN.")
