"""Find the files that a path, folder or pattern in corpus.yaml names, and tell their format from their names."""

from __future__ import annotations

import functools
import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import NoReturn

from xdoge.corpus.remote import File, Readable, find_remote, is_remote
from xdoge.errors import XDogeError

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt")
ARCHIVES = (".zip", ".tar")
COMPRESSED = (".gz", ".zst", ".zstd", ".xz", ".bz2")
"""Compressions of .tar and text formats. The other formats have compression of their own."""
MARK_FOLDERS = frozenset({"_temporary", "_delta_log", "_spark_metadata", "__MACOSX"})
"""Folders in which Spark, Delta Lake and macOS store metadata."""

_SAME = {".ndjson": ".jsonl", ".zstd": ".zst"}
_SHORT = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz", ".tzst": ".tar.zst"}
_INSIDE = (".parquet", ".arrow", ".zip")
_NOTE = re.compile(r"(?i)(readme|license|licence)(\.\w+)?|(md5|sha\d+)sums?(\.txt)?|.*\.(md5|sha\d+|crc)")
"""Files that describe the other files of a folder, such as READMEs and checksums."""
_MOST_ALTERNATIVES = 100_000


def text_format(path: Readable | str) -> tuple[str, str]:
    """Return the format and compression that a file name's extensions give, such as (".jsonl", ".gz") or (".csv", "").

    Raises:
        XDogeError: the format cannot be read.
    """
    name = (os.path.basename(path) if isinstance(path, str | Path) else path.name).lower()
    kind, compression = _format_of(".".join(["", *name.split(".")[1:][-2:]]))
    if not kind:
        raise XDogeError(
            f"{path}: not a format that can be read; use {', '.join((*FORMATS, *ARCHIVES))}; all but "
            f"{', '.join(_INSIDE)} may also end in {' or '.join(COMPRESSED)}."
        )
    return kind, compression


@functools.lru_cache  # many files have few different endings
def _format_of(endings: str) -> tuple[str, str]:
    """Return the format and compression for endings such as ".jsonl.gz". The format is "" if it is unknown."""
    short = next((ending for ending in _SHORT if endings.endswith(ending)), "")
    endings = endings.removesuffix(short) + _SHORT.get(short, "")
    compression = next((ending for ending in COMPRESSED if endings.endswith(ending)), "")
    stem = endings.removesuffix(compression)
    kind = next((ending for ending in (*FORMATS, *ARCHIVES) if stem.endswith(ending)), "")
    if compression and kind in _INSIDE:
        kind = ""
    return _SAME.get(kind, kind), _SAME.get(compression, compression)


def find(patterns: Iterable[str], folder: Path) -> tuple[File, ...]:
    """Return the files that patterns match, sorted within each pattern.

    Args:
        patterns: paths, folders, glob patterns or URLs. `~`, `$VARIABLE` and `{a,b}` are expanded first.
        folder: folder to which relative paths refer.

    Raises:
        XDogeError: a pattern matches no file.
    """
    files: list[File] = []
    for named in patterns:
        matched: dict[File, None] = {}
        expanded = os.path.expanduser(os.path.expandvars(named)).removeprefix("file://")
        whole = not is_remote(expanded) and (folder / expanded).exists()  # a name with {braces} in it
        for pattern in [expanded] if whole else alternatives(expanded):
            matches = _remote(pattern) if is_remote(pattern) else _local(pattern, folder)
            if not matches:
                part = f" ({pattern!r} of it)" if pattern != expanded else ""
                place = "" if is_remote(pattern) else f" in {folder.resolve()}"
                raise XDogeError(f"{named!r}{part} matches no file{place}.")
            matched |= dict.fromkeys(matches)
        files.extend(matched)
    return tuple(files)


def alternatives(pattern: str) -> list[str]:
    """Return the patterns that result from expanding {a,b} and {000..127} as a shell does."""
    done: list[str] = []
    left = [pattern]
    while left:
        if len(done) + len(left) > _MOST_ALTERNATIVES:
            raise XDogeError(f"{pattern!r} has more than {_MOST_ALTERNATIVES:,} alternatives.")
        current = left.pop(0)
        match = re.search(r"\{([^{}]*,[^{}]*)\}|\{(\d+)\.\.(\d+)\}", current)
        if match is None:
            done.append(current)
            continue
        left[:0] = [current[: match.start()] + part + current[match.end() :] for part in _parts(match)]
    return list(dict.fromkeys(done))


def _parts(match: re.Match[str]) -> Iterator[str]:
    if match[1] is not None:
        yield from match[1].split(",")
        return
    first, last = int(match[2]), int(match[3])
    padded = any(len(number) > 1 and number[0] == "0" for number in (match[2], match[3]))
    width = max(len(match[2]), len(match[3])) if padded else 0
    step = 1 if last >= first else -1
    for number in range(first, last + step, step):
        yield f"{number:0{width}}"


def _local(pattern: str, folder: Path) -> Sequence[File]:
    path = folder / pattern
    if path.is_dir():
        return _inside(path)
    if path.exists():  # a name with [brackets] in it
        return [path] if path.is_file() else []
    if not glob.has_magic(pattern):
        raise XDogeError(f"{path} does not exist.")
    named = frozenset(PurePath(pattern).parts)
    files: dict[File, None] = {}
    for match in sorted(glob.glob(str(path), recursive=True)):
        if "/_" in f"/{match}" and _is_mark(_below(Path(match), folder), named):
            continue
        if os.path.isfile(match):
            files[Path(match)] = None
        elif os.path.islink(match) and not os.path.exists(match):
            _refuse_link(Path(match))
        elif os.path.isdir(match) and _has_format(Path(match)):  # Spark writes folders such as part.parquet
            files |= dict.fromkeys(_inside(Path(match)))
    return list(files)


def _inside(folder: Path) -> list[Path]:
    inside = [Path(match) for match in sorted(glob.glob(f"{glob.escape(str(folder))}/**", recursive=True))]
    names = [file.relative_to(folder) for file in inside if file.is_file() or not file.exists()]
    files = [folder / name for name in data_files(names, where=str(folder))]
    for file in files:
        if not file.exists():
            _refuse_link(file)
    return files


def _refuse_link(file: Path) -> NoReturn:
    raise XDogeError(f"{file} is a link to {os.readlink(file)}, which does not exist; remove the link or get the file.")


def _below(file: Path, folder: Path) -> Path:
    return file.relative_to(folder) if file.is_relative_to(folder) else file


def _remote(pattern: str) -> Sequence[File]:
    root, files = find_remote(pattern)
    names = {PurePosixPath(file.url.removeprefix(root).lstrip("/")): file for file in files}
    if re.search(r"[*[]", pattern):
        marks = frozenset(PurePosixPath(pattern).parts)
        return [file for name, file in names.items() if not _is_hidden(name) and not _is_mark(name, marks)]
    if len(files) == 1 and files[0].url == root:
        return files
    return [names[PurePosixPath(name)] for name in data_files(list(names), where=pattern)]


def data_files(names: Sequence[PurePath], *, where: str) -> list[PurePath]:
    """Return the files of a folder that contain text.

    Hidden files, metadata of other tools, and files that describe the folder are left out.

    Raises:
        XDogeError: no file is left, a format cannot be read, or the files have different formats.
    """
    data = [name for name in names if is_data(name)]
    first: dict[str, PurePath] = {}
    for name in data:
        check_format(name, first, where=where)
    if not data:
        raise XDogeError(f"{where} has no file of text.")
    return data


def is_data(name: PurePath) -> bool:
    """Whether a file of a folder or an archive should contain text, judged by its name.

    Hidden files, metadata of other tools, and files that describe other files should not.
    """
    return not (_is_hidden(name) or _is_mark(name, frozenset()) or _NOTE.fullmatch(name.name))


def check_format(name: PurePath, first: dict[str, PurePath], *, where: str, advice: str = "") -> None:
    """Raise an error if a file's format cannot be read, or differs from that of the other files.

    Args:
        name: name of the file.
        first: first file of each format so far. This file is added to it.
        where: folder or archive, for the message.
        advice: end of the message, by default the advice for a folder.

    Raises:
        XDogeError: the format cannot be read, or is not the same as that of the other files.
    """
    if not _has_format(name):
        advice = advice or "name the files, such as *.jsonl"
        raise XDogeError(f"{where} holds {name}, which is not in a format that can be read; {advice}.")
    first.setdefault(text_format(str(name))[0], name)
    if len(first) > 1:
        a, b, *_ = first.values()
        advice = advice or f"name the files of one, such as *{next(iter(first))}"
        raise XDogeError(f"{where} holds {a} and {b}, which may be the same text in two formats; {advice}.")


def _is_hidden(name: PurePath) -> bool:
    return any(part.startswith(".") for part in name.parts)


def _is_mark(file: PurePath, named: frozenset[str]) -> bool:
    """Whether a file is metadata that another tool left, such as _SUCCESS of Spark.

    A folder in `named`, which the user's pattern names, does not count as metadata.
    """
    if MARK_FOLDERS.intersection(file.parts) - named:
        return True
    return file.name.startswith("_") and not _has_format(file)


def _has_format(file: PurePath) -> bool:
    try:
        return bool(text_format(str(file)))
    except XDogeError:
        return False
