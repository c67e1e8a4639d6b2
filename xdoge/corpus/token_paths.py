"""Find the files of token ids that a path or pattern in corpus.yaml names."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from xdoge.corpus.paths import alternatives
from xdoge.corpus.remote import is_remote
from xdoge.errors import XDogeError
from xdoge.io import read_json

ROWS = (".arrow", ".parquet")
"""Formats with rows of ids, which are copied into the store."""
FLAT = (".npy", ".ds", ".bin")
"""Formats with consecutive ids, which are read in place."""
SIDES = (".idx", ".index")
"""Extensions of index files, which give the documents of another file."""


def is_side(file: Path | str) -> bool:
    """Whether a file is an index of other files."""
    return str(file).endswith((*SIDES, "/index.json")) or file == "index.json"


def find_tokens(patterns: Iterable[str], folder: Path, *, where: str) -> tuple[Path, ...]:
    """Return the files of tokens that patterns name, each followed by its index file if it has one.

    Folders can be those that `datasets` (save_to_disk) or MosaicML's streaming wrote.

    Raises:
        XDogeError: a pattern matches nothing, or a file or folder is of another kind.
    """
    files: list[Path] = []
    for named in patterns:
        expanded = os.path.expanduser(os.path.expandvars(named)).removeprefix("file://")
        if is_remote(expanded):
            raise XDogeError(f"{where}: {named}: tokens are read in place, so they must be local; copy them to a disk.")
        for pattern in [expanded] if (folder / expanded).exists() else alternatives(expanded):
            matches = [folder / pattern]
            if not matches[0].exists():
                matches = [Path(match) for match in sorted(glob.glob(str(folder / pattern), recursive=True))]
                matches = [match for match in matches if match.suffix in (*ROWS, *FLAT) or _is_saved(match)]
            if not matches:
                raise XDogeError(f"{where}: {pattern!r} matches no file of tokens in {folder.resolve()}.")
            for match in matches:
                files += _of_folder(match, where=where) if match.is_dir() else _of_file(match, where=where)
    kinds = {file.suffix in ROWS or ".mds" in file.suffixes for file in files if not is_side(file)}
    if len(kinds) > 1:
        raise XDogeError(
            f"{where}: {' and '.join(ROWS)} cannot be mixed with other formats of tokens; name two sources."
        )
    return tuple(files)


def _is_saved(path: Path) -> bool:
    return any((path / name).is_file() for name in ("state.json", "index.json"))


def _of_file(file: Path, *, where: str) -> Iterator[Path]:
    if file.suffix not in (*ROWS, *FLAT):
        raise XDogeError(f"{where}: {file} is not a file of tokens; use {', '.join((*FLAT, *ROWS))} or a folder.")
    if file.suffix == ".bin" and file.with_suffix(".idx").exists():
        raise XDogeError(
            f"{where}: {file} has an .idx file, so it is a Megatron-LM data set; write megatron: {file.stem}."
        )
    yield file
    if file.suffix == ".ds":
        yield (side := file.with_name(f"{file.name}.index"))
        if not side.is_file():
            raise XDogeError(f"{where}: {side} does not exist, and {file.name} cannot be read without it.")


def shard_names(shard: dict[str, Any]) -> list[str]:
    """Return the possible file names of a shard of MosaicML's streaming, the uncompressed one first."""
    return [shard[key]["basename"] for key in ("raw_data", "zip_data") if shard.get(key)]


def _read(file: Path, where: str) -> dict[str, Any]:
    try:
        return read_json(file)
    except XDogeError as error:
        raise XDogeError(f"{where}: {error.message}") from error


def _of_folder(folder: Path, *, where: str) -> Iterator[Path]:
    names: list[Any]
    try:
        if (folder / "state.json").is_file():
            names = [entry["filename"] for entry in _read(folder / "state.json", where)["_data_files"]]
        elif (folder / "index.json").is_file():
            names = ["index.json"]
            for shard in _read(folder / "index.json", where)["shards"]:
                possible = shard_names(shard)
                names.append(next((name for name in possible if (folder / name).is_file()), possible[0]))
        elif (folder / "dataset_dict.json").is_file():
            splits = _read(folder / "dataset_dict.json", where)["splits"]
            raise XDogeError(f"{where}: {folder} has the splits {', '.join(splits)}; name one, {folder}/{splits[0]}.")
        else:
            raise XDogeError(
                f"{where}: {folder} is a folder, but neither save_to_disk nor streaming wrote it; name "
                f"its files, such as {folder}/*.parquet."
            )
    except (KeyError, TypeError, IndexError) as error:
        raise XDogeError(f"{where}: {folder} has a damaged state.json, index.json or dataset_dict.json.") from error
    for name in names:
        file = folder / str(name)
        if file.parent != folder or not file.is_file():
            raise XDogeError(f"{where}: {file} does not exist, and the folder is incomplete without it.")
        yield file
