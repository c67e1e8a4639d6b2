"""Read files strictly, and write files that are never incomplete.

Every file is written under a temporary name in the same folder, flushed to the disk and renamed. A process that is
killed at any moment leaves either the old file or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from xdoge.errors import FolderInUseError, XDogeError
from xdoge.names import CONTROLS, shown

_UNWRITABLE = (
    errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT, errno.ENAMETOOLONG, errno.ELOOP
)  # fmt: skip


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn OS errors that the user can fix, such as a full disk, into an XDogeError that names `path`."""
    _written.append(path)
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise XDogeError(
                f"{path}: the disk is full; nothing was left half-written. Free space, run again."
            ) from error
        if error.errno == errno.EFBIG:
            raise XDogeError(f"{path} would be larger than the limit on file size; see ulimit -f.") from error
        if error.errno in _UNWRITABLE:
            raise XDogeError(f"{path} cannot be written: {os.strerror(error.errno).lower()}.") from error
        raise
    finally:
        _written.remove(path)


_written: list[Path] = []


def writing() -> bool:
    """Whether this process is writing a file at the moment, which can take long on a slow disk."""
    return bool(_written)


LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def refuse_pointer(path: Path, *, name: str | None = None) -> None:
    """Raise an error if the file is a Git LFS pointer, which a clone without LFS has in place of a large file.

    Args:
        path: file to check.
        name: what the message calls the file, by default its path.

    Raises:
        XDogeError: the file is a pointer.
    """
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise XDogeError(f"{name or path} is a Git LFS pointer, not the file itself; run: git lfs pull")


LONGEST_NUMBER = 40
"""Most digits of a whole number in a file. No real number needs more, and Python can still print and convert these."""

LOCK = ".lock"
"""Name of the lock file in a folder to which only one process at a time may write.

The file is never removed: if another process removed or replaced it, two processes could hold the lock.
"""


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on `folder`. The operating system releases it when the process ends.

    Args:
        folder: folder to lock.
        wait: wait for another process that holds the lock, instead of raising an error.

    Raises:
        FolderInUseError: another process holds the lock, and `wait` is false.
    """
    with contextlib.ExitStack() as stack:
        with disk_errors(folder):
            file = stack.enter_context((folder / LOCK).open("a"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderInUseError(f"{folder} is in use by another process; wait for it or stop it.") from error
        os.register_at_fork(after_in_child=file.close)  # a forked loader worker can outlive us
        yield


def in_use(folder: Path) -> bool:
    """Whether any process holds the lock of `folder`."""
    if not (folder / LOCK).exists():
        return False
    with (folder / LOCK).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a temporary file that replaces `path` if the block succeeds, and is removed if it raises."""
    refuse_device(path)
    if path.is_dir():
        raise XDogeError(f"{path} is a folder; name a file.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):  # do not hide the error from above
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` if the block succeeds. `path` must not exist."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        with disk_errors(path):
            temporary.mkdir(parents=True)
            yield temporary
            for child in (*temporary.rglob("*"), temporary):
                if child.is_dir():
                    sync_folder(child)
                else:
                    with child.open("rb") as file:
                        os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Flush `folder` to the disk, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def refuse_device(path: Path) -> None:
    """Raise an error if `path` is a device or a pipe, since writing would replace it by a file.

    Raises:
        XDogeError: `path` is a device or a pipe.
    """
    with disk_errors(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            raise XDogeError(f"{path} is a device or a pipe and cannot be replaced; name a file.")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8. An error or a kill leaves the old file.

    Raises:
        XDogeError: the file cannot be written, or the text has no UTF-8 encoding.
    """
    try:
        content = text.encode("utf-8")
    except UnicodeEncodeError as error:
        odd = shown(text[error.start : error.end])
        raise XDogeError(
            f"{path} would contain {odd}, which is not valid text; perhaps the name of a file is not UTF-8."
        ) from error
    with replacing(path) as file:
        file.write(content)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the JSON objects in a .jsonl file that xdoge wrote.

    Reading stops at the first line that is not a JSON object, since a killed process can leave an incomplete line.
    """
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            break
        if not isinstance(row, dict):
            break
        rows.append(row)
    return rows


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as indented JSON. An error or a kill leaves the old file. Floats keep all their digits."""
    write_text(path, _json_text(value))


def _json_text(value: Mapping[str, Any]) -> str:
    return _indented(value, "\n") + "\n"


def _indented(value: Any, line: str) -> str:
    """Return the same text as `json.dumps(value, indent=2)`, but several times as fast for long lists.

    Python's fast encoder, which is written in C, cannot indent. Here it encodes the values of each innermost object,
    with separators that start a new line.
    """
    if not isinstance(value, dict | list | tuple) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    inner = line + "  "
    children = value.values() if isinstance(value, dict) else value
    if not any(isinstance(child, dict | list | tuple) for child in children):
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(f",{inner}", ": "))
        return f"{text[0]}{inner}{text[1:-1]}{line}{text[-1]}"
    if isinstance(value, dict):
        keys = (json.dumps({key: 0}, ensure_ascii=False)[1:-4] for key in value)  # as JSON writes a key
        parts = (f"{key}: {_indented(child, inner)}" for key, child in zip(keys, children, strict=True))
        return f"{{{inner}{f',{inner}'.join(parts)}{line}}}"
    return f"[{inner}{f',{inner}'.join(_indented(child, inner) for child in value)}{line}]"


def sha256_json(value: Mapping[str, Any]) -> str:
    """Return the SHA-256 of the file that `write_json` would write, in hexadecimal."""
    return hashlib.sha256(_json_text(value).encode("utf-8")).hexdigest()


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield a pair for every leaf of nested mappings: its path, such as "a.b.c", and its value."""
    if isinstance(value, Mapping) and value:
        for key, child in value.items():
            yield from flatten(child, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def read_regular(path: Path, kind: str) -> bytes:
    """Return the bytes of a regular file.

    Args:
        path: file to read.
        kind: what the error message calls such a file, for example "JSON".

    Raises:
        XDogeError: the file is missing, cannot be read, or is a folder, a pipe, a device or a Git LFS pointer.
    """
    try:
        if not stat.S_ISREG(mode := path.stat().st_mode) and not stat.S_ISDIR(mode):
            raise XDogeError(f"{path} is a pipe or a device, not a file.")
        refuse_pointer(path)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise XDogeError(f"{path} does not exist.") from error
    except IsADirectoryError as error:
        raise XDogeError(f"{path} is a folder, not a {kind} file.") from error
    except OSError as error:
        raise XDogeError(f"{path} cannot be read: {error.strerror}.") from error


def read_json(path: Path, *, schema: str | None = None, version: int = 1) -> dict[str, Any]:
    """Return the JSON object in a file, after checking its "schema".

    Args:
        path: file to read.
        schema: kind of file that is expected, such as "xdoge.weights". None skips the check.
        version: newest schema version that this xdoge can read.

    Raises:
        XDogeError: the file is missing, is not a JSON object, has another schema, or has a newer one. Duplicate keys,
            NaN and lone surrogates, which `write_json` never writes, are errors too.
    """
    content = read_regular(path, "JSON")
    try:
        text = content.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant, parse_int=_int)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise XDogeError(f"{path} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise XDogeError(f"{path} holds a JSON {type(value).__name__}, not an object.")
    if schema is not None:
        check_schema(str(path), value.get("schema"), schema=schema, version=version)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"{shown(twice)} is given twice")
    if odd := next(filter(CONTROLS.search, value), None):
        raise ValueError(f"the key {shown(odd)} holds a control character")
    return value


def _int(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number has at most {LONGEST_NUMBER} digits")
    return int(digits)


def _constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def check_schema(where: str, value: object, *, schema: str, version: int) -> None:
    """Raise XDogeError if a file is of another kind, or was written with a newer schema version."""
    number = re.fullmatch(f"{schema}/([0-9]{{1,9}})", str(value))
    if number is None:
        raise XDogeError(
            f'{where}: "schema" is {shown(value)}, not "{schema}/{version}"; this is another kind of file.'
        )
    if int(number[1]) > version:
        raise XDogeError(
            f"{where}: written with schema {value}, newer than {schema}/{version} of this xdoge; "
            "pip install --upgrade xdoge to read it."
        )


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
