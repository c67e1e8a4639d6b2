"""Data sets of the Hugging Face Hub, and local folders laid out like one, streamed through `datasets`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from xdoge.corpus.readers.files import BLOCK_ROWS, Block, Input, array_blocks, check_column, hashed, relative
from xdoge.corpus.spec import Source
from xdoge.errors import MissingExtraError, XDogeError


@dataclass(frozen=True)
class HubData:
    """A data set opened for streaming: nothing of it has been read but its metadata."""

    where: str
    inputs: tuple[Input, ...]
    rows: int | None
    stream: Any
    column: str

    def blocks(self) -> Iterator[Block]:
        """Yield its rows in order.

        Raises:
            XDogeError: it cannot be read.
        """
        with _hub_errors(self.where):
            batches = self.stream.iter(batch_size=BLOCK_ROWS)
            yield from array_blocks(self.where, batches, self.column)


def open_dataset(source: Source, folder: Path) -> HubData:
    """Open a data set of the Hugging Face Hub, or a local folder laid out like one.

    The data files it resolves to name the revision on the Hub; files of a local folder are hashed like any other.

    Raises:
        XDogeError: no such data set, config or split, no network, or no such column of text.
    """
    spec = source.spec
    where = _where(source)
    with _hub_errors(where):
        builder = _builder(source)
        stream = builder.as_streaming_dataset(split=spec.split)
        schema = stream.features.arrow_schema if stream.features is not None else _first_schema(stream)
        check_column(schema, spec.text, where=where)
        if hasattr(builder.config, "columns"):  # Parquet: fetch no column but the text
            builder = _builder(source, columns=[spec.text])
            stream = builder.as_streaming_dataset(split=spec.split)
    inputs = tuple(_dataset_input(str(file), folder) for file in builder.config.data_files[spec.split])
    split = (builder.info.splits or {}).get(spec.split)
    return HubData(
        where=where,
        inputs=inputs,
        rows=split.num_examples if split else None,
        stream=stream.select_columns([spec.text]).with_format("arrow"),
        column=spec.text,
    )


def local_files(source: Source, folder: Path) -> list[str] | None:
    """Return the files a local data set consists of now, relative to `folder`; None for one on the Hub.

    Raises:
        XDogeError: it is no longer a data set, or lacks the config or the split.
    """
    if source.dataset is None or not Path(source.dataset).is_dir():
        return None
    with _hub_errors(_where(source)):
        files = _builder(source).config.data_files[source.spec.split]
    return [_dataset_name(str(file), folder) for file in files]


def _where(source: Source) -> str:
    return f"{source.spec.dataset}" + (f" config {source.spec.config}" if source.spec.config else "")


def _builder(source: Source, **options: Any) -> Any:
    import datasets

    spec = source.spec
    return datasets.load_dataset_builder(
        source.dataset, name=spec.config, data_dir=spec.data_dir, revision=spec.revision, **options
    )


def _first_schema(stream: Any) -> pa.Schema:
    first = next(iter(stream.with_format("arrow").iter(batch_size=1)), None)
    if first is None:
        raise ValueError("it has no rows")
    return first.schema


def _dataset_name(file: str, folder: Path) -> str:
    return relative(Path(file), folder) if Path(file).is_file() else file  # else a URL with the revision in it


def _dataset_input(file: str, folder: Path) -> Input:
    name = _dataset_name(file, folder)
    return hashed(Path(file), name=name) if Path(file).is_file() else Input(name)


@contextlib.contextmanager
def _hub_errors(where: str) -> Iterator[None]:
    try:
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise MissingExtraError("datasets", "proxy") from error

    try:
        yield
    except (DatasetsError, OSError, ValueError, KeyError, RuntimeError, pa.ArrowException) as error:
        raise XDogeError(f"{where} cannot be read: {' '.join(str(error).split())[:300]}") from error
