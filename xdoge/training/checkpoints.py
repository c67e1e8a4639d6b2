"""Checkpoints with checksums: write the checksums, check them, and find the newest undamaged checkpoint."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from xdoge.errors import XDogeError, argument
from xdoge.io import replacing_folder, sha256_file, write_text
from xdoge.progress import OnNote

SUMS = "SHA256SUMS"
"""File with the SHA-256 of each file of a checkpoint, in the format of `sha256sum -c`. It is written last."""


@contextlib.contextmanager
def saving_tensors(path: Path) -> Iterator[Path]:
    """Like `replacing_folder`, but treat safetensors' errors about the disk as `disk_errors` treats OSErrors."""
    from safetensors import SafetensorError

    with replacing_folder(path) as folder:
        try:
            yield folder
            for file in folder.iterdir():  # safetensors makes its files readable only by the owner
                file.chmod(folder.stat().st_mode & 0o666)
        except SafetensorError as error:
            if number := re.search(r"\(os error (\d+)\)", str(error)):
                raise OSError(int(number[1]), str(error)) from error
            raise


def seal(folder: Path) -> None:
    """Flush all files of a checkpoint to the disk and write their checksums, which completes the checkpoint."""
    lines = []
    for file in _contents(folder):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        lines.append(f"{sha256_file(file)}  {file.relative_to(folder)}\n")
    write_text(folder / SUMS, "".join(lines))


def damage(folder: Path) -> str | None:
    """Return a description of the damage to a checkpoint, None if all files match their checksums."""
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        for file in _contents(folder):
            if (name := str(file.relative_to(folder))) not in sums:
                return f"{name} is not in {SUMS}"
        for name, expected in sums.items():
            if sha256_file(folder / name) != expected:
                return f"{name} is not what was written"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except (OSError, ValueError) as error:
        return f"{SUMS} or a file that it names cannot be read: {error}"
    return None


def newest_whole(checkpoints: Sequence[Path], on_note: OnNote) -> Path | None:
    """Return the newest undamaged checkpoint, None if there is no checkpoint. Report and remove damaged newer ones.

    Args:
        checkpoints: complete checkpoints, oldest first.
        on_note: called with a line for each damaged checkpoint.

    Raises:
        XDogeError: all checkpoints are damaged.
    """
    damaged: dict[Path, str] = {}
    for folder in reversed(checkpoints):
        if what := damage(folder):
            damaged[folder] = what
            continue
        for later, what in damaged.items():
            on_note(f"{later} is damaged: {what}; using the previous checkpoint instead")
            shutil.rmtree(later)
        return folder
    if damaged:
        raise XDogeError(
            f"every checkpoint is damaged: {'; '.join(f'{folder}: {what}' for folder, what in damaged.items())}. Put "
            f"back a copy of one, or remove {checkpoints[0].parent} and start again with {argument('resume', True)}."
        )
    return None


def _contents(folder: Path) -> list[Path]:
    """Return the files of a checkpoint, without the checksums and hidden files."""
    shown = (path for path in folder.rglob("*") if not path.name.startswith("."))
    return sorted(path for path in shown if path.is_file() and path.name != SUMS)
