"""Find files on servers by URL or pattern with fsspec, and download them when they are read.

fsspec supports s3://, gs://, hf://, https:// and many other protocols. Each protocol has its own library, which finds
the credentials by itself. A download is kept until its source is finished. An interrupted download continues where it
stopped, if the server gives a version that shows that the file has not changed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from xdoge.errors import Interrupted, MissingExtraError, XDogeError
from xdoge.io import disk_errors, sync_folder

PIECE = 1 << 23
"""Bytes per request."""
TRIES = 4
"""Attempts without progress before the download fails, with pauses of 1, 2 and 4 seconds between them."""
AT_ONCE = 16
"""Concurrent requests for sizes and versions."""
VERSIONS = ("ETag", "etag", "md5Hash", "blob_id", "sha", "Content-MD5", "Digest", "checksum")
"""Names that the file systems of fsspec give to the hash of a file."""
TIMES = ("Last-Modified", "LastModified", "last_modified", "mtime", "updated", "modified", "created")
"""Names that they give to the time of the last change. It is used if there is no hash."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_RUN = uuid.uuid4().hex
"""Version of files whose server gives none. It differs between runs, so that every run downloads them again."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on a server.

    Attributes:
        url: URL with its protocol, such as s3://bucket/data/a.jsonl.
        n_bytes: size, None if the server does not give it.
        version: hash or time of the last change, None if the server gives neither.
    """

    url: str
    n_bytes: int | None
    version: str | None

    def __str__(self) -> str:
        """Return the URL."""
        return self.url

    @property
    def name(self) -> str:
        """The last part of the path, whose extensions give the format."""
        path = re.split(r"[?#]", self.url)[0] if self.url.startswith("http") else self.url
        return path.rstrip("/").rpartition("/")[2]


@dataclass(frozen=True)
class UnpackedFile:
    """A file from an archive, unpacked to a temporary file.

    Attributes:
        path: path of the temporary file.
        shown: name in messages, such as data.zip/a.jsonl.
    """

    path: Path
    shown: str

    def __str__(self) -> str:
        """Return the name of the archive and the name in the archive."""
        return self.shown

    @property
    def name(self) -> str:
        """The last part of the name, whose extensions give the format."""
        return self.shown.rpartition("/")[2]


File = Path | RemoteFile
"""A file that corpus.yaml names."""
Readable = File | UnpackedFile
"""A file that readers can read."""


def is_remote(path: str) -> bool:
    """Whether a path in corpus.yaml is a URL."""
    return bool(_SCHEME.match(path))


def find_remote(pattern: str) -> tuple[str, list[RemoteFile]]:
    """Return the files that a URL or pattern names, sorted, and the URL of the folder with which it begins.

    Args:
        pattern: URL of a file or a folder, or a pattern with `*`, `**`, `?` or `[...]`.

    Returns:
        URL of the folder (or the file), and the files.

    Raises:
        XDogeError: it does not exist, the server refuses access, or the library of the protocol is not installed.
    """
    if re.match(r"[^/]+://[^/@]*:[^/@]*@", pattern) or "::" in pattern:
        raise XDogeError(
            f"{pattern.partition('://')[0]}://...: a URL may not contain a password or '::'. Give "
            "credentials in the environment, or in the configuration files of the protocol's library."
        )
    with remote_errors(pattern):
        system, path = _system(pattern)
        system.invalidate_cache()  # a listing that an earlier call in this process keeps may be out of date
        root = path
        matches: Mapping[str, Mapping[str, Any]] = {}
        if "*" not in path:
            try:
                matches = {path: system.info(path)}
            except FileNotFoundError:
                if not re.search(r"[?[]", path):
                    raise
        if not matches:
            root = re.split(r"[*?[]", path)[0].rpartition("/")[0]
            matches = system.glob(path, detail=True)
        elif pattern.endswith("/") or matches[path]["type"] == "directory":
            matches = system.find(path, detail=True)
        files = {name: info for name, info in matches.items() if info["type"] == "file" and not name.endswith("/")}
        with ThreadPoolExecutor(AT_ONCE) as pool:
            remote = list(pool.map(lambda name: _remote(system, name, files[name]), sorted(files)))
        return system.unstrip_protocol(root).rstrip("/"), remote


def local(file: Readable) -> Path:
    """Return the local path of a file. A file on a server is downloaded first.

    Raises:
        XDogeError: the server does not answer, or the file changed or has another size than the server stated.
    """
    if isinstance(file, Path):
        return file
    if isinstance(file, UnpackedFile):
        return file.path
    folder = _folder(file)
    path = folder / hashlib.sha256((file.version or _RUN).encode()).hexdigest()[:16]
    part = path.with_suffix(".part")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists():
            return path
        for old in folder.iterdir():
            if old.stem != path.name:  # another version
                old.unlink(missing_ok=True)
    with disk_errors(part), part.open("ab") as out:
        fcntl.flock(out, fcntl.LOCK_EX)  # another thread or process may be downloading it
        if path.exists():
            return path
        _download(file, out)
        os.fsync(out.fileno())
        os.replace(part, path)
        sync_folder(folder)
    return path


def size_of(file: File) -> int:
    """Return the size of a file in bytes, 0 if its server does not give it."""
    return file.n_bytes or 0 if isinstance(file, RemoteFile) else local(file).stat().st_size


def forget(files: Iterable[File]) -> None:
    """Delete the downloaded copies of files."""
    for file in files:
        if isinstance(file, RemoteFile):
            shutil.rmtree(_folder(file), ignore_errors=True)


@contextlib.contextmanager
def remote_errors(url: str) -> Iterator[None]:
    """Turn all exceptions of fsspec and its libraries into an XDogeError that begins with the URL."""
    try:
        yield
    except (XDogeError, Interrupted):
        raise
    except FileNotFoundError as error:
        cause = f" ({_line(error.__cause__)})" if error.__cause__ else ""
        raise XDogeError(f"{url} does not exist or cannot be reached{cause}.") from error
    except PermissionError as error:
        raise XDogeError(f"{url}: the server refuses access ({_line(error)}); check your credentials.") from error
    except Exception as error:
        raise XDogeError(f"{url} cannot be read: {_line(error)}") from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _folder(file: RemoteFile) -> Path:
    cache = os.environ.get("XDOGE_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "xdoge")
    return Path(cache).expanduser() / hashlib.sha256(file.url.encode()).hexdigest()[:32]


def _system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it."""
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise MissingExtraError("fsspec", "proxy") from error
    protocol = url.partition("://")[0].lower()
    options: dict[str, Any] = {}
    if protocol in ("http", "https"):
        with _library(protocol):
            import aiohttp

            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)}
    with _library(protocol):
        system, path = fsspec.core.url_to_fs(url, **options)
    return system, path


@contextlib.contextmanager
def _library(protocol: str) -> Iterator[None]:
    """Turn an unknown protocol or a missing library into an XDogeError that says what to use or to install."""
    from fsspec.registry import known_implementations

    try:
        yield
    except ImportError as error:
        library = str(getattr(error.__cause__ or error, "name", None) or "the library of its protocol")
        raise XDogeError(f"{protocol}:// needs {library}, which is not installed: pip install {library}.") from error
    except ValueError as error:
        if protocol in known_implementations:
            raise
        raise XDogeError(f"{protocol}:// is not a protocol that fsspec knows; use s3, gs, hf or https.") from error


def _remote(system: Any, path: str, info: Mapping[str, Any]) -> RemoteFile:
    if info.get("size") is None or not any(info.get(key) for key in VERSIONS):  # a listing may have fewer fields
        info = system.info(path)
    version = next((str(info[key]) for key in (*VERSIONS, *TIMES) if info.get(key)), None)
    return RemoteFile(system.unstrip_protocol(path), info.get("size"), version)


def _download(file: RemoteFile, out: IO[bytes]) -> None:
    with remote_errors(file.url):
        system, path = _system(file.url)
        ranges, tries, most = file.version is not None, 0, 0
        problem: Exception
        while True:
            if not ranges:
                out.truncate(0)
            start = out.seek(0, os.SEEK_END)
            try:
                for piece in _pieces(system, path, start, ranges):
                    with disk_errors(Path(out.name)):
                        out.write(piece)
                if out.tell() >= (file.n_bytes or 0):
                    break
                problem = EOFError(f"it ended after {out.tell():,} of {file.n_bytes:,} bytes")
            except (XDogeError, Interrupted, PermissionError):
                raise
            except FileNotFoundError as error:  # with HTTP, also raised for a broken connection
                if error.__cause__ is None or hasattr(error.__cause__, "status"):
                    raise
                problem = error
            except ValueError:  # raised by fsspec if the server does not support byte ranges
                if not ranges:
                    raise
                ranges = False
                continue
            except Exception as error:  # a broken connection; every library has its own exceptions
                problem = error
            tries, most = 1 if out.tell() > most else tries + 1, max(most, out.tell())
            if tries >= TRIES:
                raise problem
            time.sleep(2 ** (tries - 1))
        system.invalidate_cache()
        now = _remote(system, path, {})
    if (now.n_bytes, now.version) != (file.n_bytes, file.version) or file.n_bytes not in (None, out.tell()):
        out.truncate(0)
        raise XDogeError(f"{file.url} changed while it was being downloaded; run again.")


def _pieces(system: Any, path: str, start: int, ranges: bool) -> Iterator[bytes]:
    """Yield the bytes of a file from `start` on. If `ranges` is false, `start` must be 0."""
    with system.open(path, "rb", cache_type="none", block_size=PIECE if ranges else 0) as stream:
        if start:
            stream.seek(start)
        while piece := stream.read(PIECE):
            yield piece
