"""The files that describe the content of a store: store.json, and a marker for each finished source.

`prepare` writes the tokens of a source first, and then its marker `sources/<language>/<source>.json`. The marker has
the inputs with size, time and SHA-256, the settings and the counts. A later run keeps a source if its marker is still
valid. store.json is written last, from all markers.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from xdoge._version import __version__
from xdoge.corpus.readers.hub import local_files
from xdoge.corpus.readers.inputs import Input, relatives
from xdoge.corpus.remote import File, RemoteFile, forget
from xdoge.corpus.spec import PLAIN_CSV, Corpus, CsvSpec, Source, naming
from xdoge.corpus.store import PREPARING, SCHEMA, SPLITS, TokenStore
from xdoge.corpus.tokenizer import Tokenizer
from xdoge.errors import XDogeError, argument
from xdoge.io import LOCK, disk_errors, locked, read_json, sha256_file, write_json, write_text

MARKER = "xdoge.source"
UNKNOWN = (
    ("unknown", 0.01, "<unk>, letters or words that the tokenizer does not know"),
    ("single_bytes", 0.1, "single bytes of letters that the tokenizer does not know"),
)
"""Key of a count, share of the tokens from which it causes a warning, and text of the warning."""
SPOOL = ".spool"
"""Folder in the store for the tokens of unfinished sources."""


def check_folder(out: Path) -> None:
    """Raise an error if `out` is a file, or a folder with something else than a finished or unfinished store.

    Raises:
        XDogeError: `out` cannot be used for a store.
    """
    if out.exists() and not out.is_dir():
        raise XDogeError(f"{out} is a file; {argument('out')} must be a folder.")
    ours = (out / "store.json").is_file() or (out / PREPARING).is_file()
    begun = LOCK, f".{PREPARING}."
    held = out.is_dir() and any(not path.name.startswith(begun) for path in out.iterdir())
    if held and not ours:
        raise XDogeError(f"{out} is not empty and not a token store; name another folder.")


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Mark `out` as an unfinished store, and lock it against a second `prepare`."""
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    path = out / PREPARING
    with locked(out):
        write_json(path, {"schema": "xdoge.preparing/1", "xdoge_version": __version__})
        for left in [out / SPOOL, *out.rglob(".*.tmp")]:  # left by a killed run
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink(missing_ok=True)
        try:
            yield
            path.unlink()
        finally:
            shutil.rmtree(out / SPOOL, ignore_errors=True)


@contextlib.contextmanager
def reporting_unfinished(out: Path) -> Iterator[None]:
    """Extend an error message if the store was finished before, and is unfinished now."""
    before = (out / "store.json").is_file()
    try:
        yield
    except XDogeError as error:
        if before and not (out / "store.json").is_file():
            raise XDogeError(
                f"{error.message} {out} is unfinished; fix this and run the same command again to continue."
            ) from error
        raise


def remove_marker(out: Path, source: Source) -> None:
    """Delete the marker of a source whose token files will be replaced.

    If there are token files already, delete store.json too, because it describes them.
    """
    if any((out / token_file(source, split)).exists() for split in SPLITS):
        (out / "store.json").unlink(missing_ok=True)
    marker_path(out, source).unlink(missing_ok=True)


def marker_path(out: Path, source: Source) -> Path:
    """Return the path of a source's marker."""
    return out / "sources" / f"{source.name}.json"


def token_file(source: Source, split: str) -> str:
    """Return the path of a token file, relative to the store."""
    return f"tokens/{source.name}.{split}.arrow"


def source_settings(source: Source, corpus: Corpus) -> dict[str, Any]:
    """Return the settings that a source's tokens depend on, except its inputs and the tokenizer."""
    spec = source.spec
    return {
        "text": spec.text if isinstance(spec.text, str) else list(spec.text),
        "document": None if spec.document == "line" else spec.document,
        "csv": None if spec.csv == PLAIN_CSV else _csv_settings(spec.csv),
        "max_tokens": spec.max_tokens,
        "validation fraction": None if spec.validation else corpus.spec.validation.fraction,
        "dataset": spec.dataset,
        "config": spec.config,
        "split": spec.split,
        "revision": spec.revision,
        "data_dir": spec.data_dir,
        "column": spec.column,
        "dtype": spec.dtype,
    }


def _csv_settings(csv: CsvSpec) -> dict[str, Any]:
    settings = csv.model_dump()
    if csv.quote == PLAIN_CSV.quote:
        del settings["quote"]  # stores of earlier versions do not have it
    return settings


def current_marker(
    source: Source, corpus: Corpus, out: Path, tokenizer: Tokenizer | None, refresh: bool
) -> dict[str, Any] | None:
    """Return the marker of a source if it is still valid, None if the source must be tokenised.

    Raises:
        XDogeError: an input, a setting or the tokenizer changed, and `refresh` is false.
    """
    path = marker_path(out, source)
    if not path.is_file():
        return None
    try:
        marker = read_json(path, schema=MARKER)
        for split in SPLITS:
            file = out / marker[split]["file"]
            if not file.is_file() or file.stat().st_size != marker[split]["size"]:
                return None
            if not all((out / raw["file"]).is_file() for raw in marker[split].get("raw", ())):
                return None  # the store was moved, but not the files it refers to
        with naming(source.field("train")):
            change = _change(source, corpus, tokenizer, marker)
    except (KeyError, TypeError, AttributeError) as error:
        raise XDogeError(f"{path} is damaged; delete it to tokenise {source.name} again.") from error
    if change is None:
        return marker
    if refresh:
        return None
    raise XDogeError(
        f"{source.where}: {change} since it was prepared in {out}; add {argument('refresh', True)} to tokenise it "
        "again, or name another folder."
    )


def _change(source: Source, corpus: Corpus, tokenizer: Tokenizer | None, marker: dict[str, Any]) -> str | None:
    if tokenizer is None or tokenizer.fingerprint != marker["tokenizer"]:
        return "the tokenizer changed"
    for key, value in source_settings(source, corpus).items():
        if marker["settings"].get(key) != value:
            return f"{key} changed from {marker['settings'].get(key)} to {value}"
    files, held_out = (relatives(part, corpus.folder) for part in (source.files, source.validation))
    inputs = files if source.dataset is None else local_files(source, corpus.folder)
    for kind, now in (("inputs", inputs), ("validation_inputs", held_out)):
        before = {entry["path"]: entry for entry in marker[kind]}
        if now is not None:  # None for a data set on the Hub, whose revision is checked instead
            current = set(now)
            for path in [*before, *now]:
                if path not in before or path not in current:
                    return f"{path} was {'removed' if path in before else 'added'}"
            if now != list(before):
                return "the order of its files changed"
        remote = {str(file): file for file in (*source.files, *source.validation) if isinstance(file, RemoteFile)}
        for path, entry in before.items():
            file: File = remote.get(path) or corpus.folder / path
            if entry["sha256"] is not None and _file_changed(Input(**entry), file):
                return f"{path} changed"
    return None


def _file_changed(entry: Input, file: File) -> bool:
    if isinstance(file, Path) and not file.is_file():
        return True
    if changed := entry.changed(file):
        return changed
    forget([file])
    return False


def _habits(sources: dict[str, dict[str, Any]]) -> Iterator[str]:
    """Yield a warning for each source whose documents begin or end differently from those of other sources."""
    habits = {
        name: (entry["train"].get("begin"), entry["train"].get("end_twice", False)) for name, entry in sources.items()
    }
    for name, (begin, end_twice) in habits.items():
        other = next((other for other, habit in habits.items() if habit != habits[name]), None)
        if other is not None and (begin is not None or end_twice):
            ways = ["begin with the special token " + str(begin)] * (begin is not None)
            ways += ["end with two end-of-document tokens"] * end_twice
            yield f"{name}: all its documents {' and '.join(ways)}, unlike those of {other}."


def write_manifest(corpus: Corpus, out: Path, tokenizer: Tokenizer) -> TokenStore:
    """Write store.json from the markers of all sources, unless it would not change. Return the opened store."""
    sources, warnings = {}, []
    for source in corpus.sources:
        marker = read_json(marker_path(out, source), schema=MARKER)
        sources[source.name] = {
            "language": source.language,
            "family": source.family,
            "license": source.spec.license,
            **{key: marker[key] for key in ("inputs", "validation_inputs", *SPLITS)},
        }
        files = [*marker["inputs"], *marker["validation_inputs"]]
        if empty := [entry["path"] for entry in files if entry["rows"] == 0]:
            warnings.append(f"{source.name}: {len(empty):,} of {len(files):,} files have no rows, such as {empty[0]}.")
        tokens, decoded = (marker["train"].get(key) for key in ("tokens", "decoded"))
        if marker["skipped"]:
            warnings.append(f"{source.name}: {marker['skipped']:,} empty rows left out.")
        for kind, least, what in UNKNOWN:
            if marker["train"].get(kind, 0) >= least * tokens:
                warnings.append(f"{source.name}: {marker['train'][kind] / tokens:.1%} of its tokens are {what}.")
        warnings.extend(f"{source.name}: {note}" for note in marker.get("notes", ()))
        if left_out := sum(marker[split].get("left_out", 0) for split in SPLITS):
            warnings.append(f"{source.name}: {left_out:,} tokens after the last end-of-document token were left out.")
        if repeated := marker.get("repeated"):
            warnings.append(
                f"{source.name}: {repeated:,} documents of its validation files are training documents too."
            )
        if decoded is not None and decoded < tokens:
            warnings.append(f"{source.name}: its bytes are estimated from {decoded:,} of {tokens:,} tokens.")
        if marker["validation"]["documents"] == 0:
            warnings.append(
                f"{source.name}: every document was assigned to training, so its validation loss cannot be measured."
            )
    warnings.extend(_habits(sources))
    content = {
        "schema": f"{SCHEMA}/1",
        "name": corpus.spec.name,
        "corpus": {"file": "corpus.yaml", "sha256": sha256_file(corpus.path)},
        "tokenizer": {
            "kind": tokenizer.kind,
            "fingerprint": tokenizer.fingerprint,
            "vocab_size": tokenizer.vocab_size,
            "end_of_document": tokenizer.end_of_document,
        },
        "dtype": tokenizer.dtype.name,
        "sources": sources,
        "warnings": warnings,
        "xdoge_version": __version__,
    }
    path = out / "store.json"
    before = read_json(path) if path.is_file() else {}
    if {key: value for key, value in before.items() if key != "created"} != content:
        write_text(out / "corpus.yaml", corpus.path.read_text(encoding="utf-8"))
        write_json(path, {**content, "created": datetime.now(UTC).isoformat(timespec="seconds")})
    return TokenStore.open(out)
