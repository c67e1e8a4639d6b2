"""Read data sets of the Hugging Face Hub, and local folders with the same layout. `datasets` lists their files.

Local files in a format that `readers.files` knows are read there, which parses only the text. Others are streamed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from xdoge.corpus.paths import text_format
from xdoge.corpus.readers.blocks import Block
from xdoge.corpus.readers.columns import Columns, check_column, check_names, keys_of
from xdoge.corpus.readers.files import BLOCK_ROWS, array_blocks
from xdoge.corpus.readers.inputs import Input, hashed, relative
from xdoge.corpus.spec import Source
from xdoge.errors import Interrupted, MissingExtraError, XDogeError

_PLAIN = {
    "Json": {".json", ".jsonl"},
    "Csv": {".csv"},
    "Parquet": {".parquet"},
    "Text": {".txt"},
    "Arrow": {".arrow"},
}
"""Builders of `datasets` with the extensions that `readers.files` reads instead, if their settings are the defaults."""
_OWN_KEYS = {"name", "version", "data_dir", "data_files", "description"}
"""Settings of a builder that do not affect how a file is parsed."""


@dataclass(frozen=True)
class HubData:
    """A data set opened for streaming. Only its metadata has been read.

    Attributes:
        where: name of the data set, for messages.
        inputs: its files.
        rows: number of rows, None if unknown.
        stream: iterable data set of `datasets`.
        columns: columns of the text.
    """

    where: str
    inputs: tuple[Input, ...]
    rows: int | None
    stream: Any
    columns: Columns

    def blocks(self) -> Iterator[Block]:
        """Yield the rows in order, as blocks.

        Raises:
            XDogeError: the data set cannot be read.
        """
        with _hub_errors(self.where):
            batches = self.stream.iter(batch_size=BLOCK_ROWS)
            yield from array_blocks(self.where, batches, self.columns)


def dataset_files(source: Source) -> tuple[Path, ...]:
    """Return the files of a local data set if `readers.files` reads them exactly as `datasets` does, else ().

    Raises:
        XDogeError: the folder is not a data set, or does not have the config or the split.
    """
    if source.dataset is None or not Path(source.dataset).is_dir():
        return ()
    with _hub_errors(_where(source)):
        builder = _builder(source)
        files = tuple(Path(file) for file in _data_files(builder, source))
        settings, plain = vars(builder.config), vars(type(builder.config)())
        declared = any(settings[key] != plain[key] for key in plain.keys() - _OWN_KEYS)
    # `datasets` may use a subclass of the builder with another name.
    readable = next((_PLAIN[kind.__name__] for kind in type(builder).__mro__ if kind.__name__ in _PLAIN), set())
    try:
        plain_files = all(file.is_file() and text_format(file)[0] in readable for file in files)
    except XDogeError:
        return ()
    if source.spec.document != "line" and not (plain_files and readable == _PLAIN["Text"]):
        raise XDogeError(f"document: {source.spec.document} is only for .txt files, and this data set has none.")
    return files if plain_files and not declared else ()


def open_dataset(source: Source, folder: Path) -> HubData:
    """Open a data set of the Hugging Face Hub, or a local folder with the same layout.

    The URLs of files on the Hub include the revision. Files of a local folder are hashed.

    Raises:
        XDogeError: the data set, config, split or column does not exist, or there is no network.
    """
    spec = source.spec
    where = _where(source)
    if spec.document != "line":
        raise XDogeError(f"{where}: document: {spec.document} is only for local .txt files.")
    with _hub_errors(where):
        builder = _builder(source)
        stream = builder.as_streaming_dataset(split=spec.split)
        schema = stream.features.arrow_schema if stream.features is not None else _first_schema(stream)
        is_csv = hasattr(builder.config, "usecols")
        if is_csv:
            check_names(schema.names, spec.text, where=where)
        else:
            check_column(schema, spec.text, where=where)
        keys = keys_of(schema, spec.text)
        if hasattr(builder.config, "columns"):  # Parquet: fetch only the text, and allow files without rows
            builder = _builder(source, columns=keys, batch_size=BLOCK_ROWS)
            stream = builder.as_streaming_dataset(split=spec.split)
        if is_csv:  # pandas would make numbers and nulls of texts such as 007 and NA
            as_text = dict.fromkeys(keys, str)
            builder = _builder(source, usecols=keys, converters=as_text, keep_default_na=False)
            stream = builder.as_streaming_dataset(split=spec.split)
        inputs = tuple(_dataset_input(file, folder) for file in _data_files(builder, source))
        known = builder.info.splits or {}
        counts = [known[split].num_examples for split in _splits(builder, source) if split in known]
        complete = len(counts) == len(_splits(builder, source))
    return HubData(
        where=where,
        inputs=inputs,
        rows=sum(counts) if complete else None,
        stream=stream.select_columns(keys).with_format("arrow"),
        columns=spec.text,
    )


def local_files(source: Source, folder: Path) -> list[str] | None:
    """Return the current files of a local data set, relative to `folder`. None for a data set on the Hub.

    Raises:
        XDogeError: the folder is no longer a data set, or does not have the config or the split.
    """
    if source.dataset is None or not Path(source.dataset).is_dir():
        return None
    with _hub_errors(_where(source)):
        files = _data_files(_builder(source), source)
    return [_dataset_name(file, folder) for file in files]


def _where(source: Source) -> str:
    return f"{source.spec.dataset}" + (f" config {source.spec.config}" if source.spec.config else "")


def _builder(source: Source, **options: Any) -> Any:
    import datasets

    spec = source.spec
    return datasets.load_dataset_builder(
        source.dataset, name=spec.config, data_dir=spec.data_dir, revision=spec.revision, **options
    )


def _splits(builder: Any, source: Source) -> list[str]:
    """Return the splits that the setting `split` names: one, several joined by +, or `all`."""
    known, split = [str(name) for name in builder.config.data_files], source.spec.split
    splits = [split] if split in known else known if split == "all" else [part.strip() for part in split.split("+")]
    if missing := [part for part in splits if part not in known]:
        advice = " A part of a split cannot be read; use max_tokens." if "[" in split else ""
        raise XDogeError(f"{_where(source)} has no split {missing[0]!r}; it has {', '.join(known)}.{advice}")
    if len(set(splits)) < len(splits):
        raise XDogeError(f"{_where(source)}: the split {split!r} names one of its splits twice.")
    return splits


def _data_files(builder: Any, source: Source) -> list[str]:
    return [str(file) for split in _splits(builder, source) for file in builder.config.data_files[split]]


def _first_schema(stream: Any) -> pa.Schema:
    first = next(iter(stream.with_format("arrow").iter(batch_size=1)), None)
    if first is None:
        raise ValueError("it has no rows")
    return first.schema


def _dataset_name(file: str, folder: Path) -> str:
    return relative(Path(file), folder) if Path(file).is_file() else file  # or a URL that includes the revision


def _dataset_input(file: str, folder: Path) -> Input:
    name = _dataset_name(file, folder)
    return hashed(Path(file), name=name) if Path(file).is_file() else Input(name)


@contextlib.contextmanager
def _hub_errors(where: str) -> Iterator[None]:
    try:
        import datasets  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("datasets", "proxy") from error

    try:
        yield
    except (XDogeError, Interrupted):
        raise
    except Exception as error:  # `datasets` and its readers raise many kinds
        message = " ".join(str(error).split()) or type(error).__name__
        raise XDogeError(f"{where} cannot be read: {message[:300]}") from error
