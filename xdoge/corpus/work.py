"""The sources that `prepare` must tokenise: checks of their inputs, and the state of the work."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xdoge.corpus.encoding import Encoded, hashes_of
from xdoge.corpus.in_place import scan as scan_in_place
from xdoge.corpus.manifest import source_settings
from xdoge.corpus.readers.blocks import Block, TokenBlock
from xdoge.corpus.readers.files import BLOCK_BYTES, file_blocks
from xdoge.corpus.readers.hub import HubData, dataset_files, open_dataset
from xdoge.corpus.readers.inputs import Input, refuse_empty, relatives, scan_files
from xdoge.corpus.remote import File, local
from xdoge.corpus.spec import Corpus, Source, naming
from xdoge.corpus.spool import Spool
from xdoge.corpus.store import SPLITS, map_tokens
from xdoge.corpus.token_paths import is_side
from xdoge.corpus.token_rows import RowTokens, Tally, scan_rows
from xdoge.corpus.tokenizer import Tokenizer
from xdoge.errors import XDogeError
from xdoge.progress import Event, OnProgress

GROUP_BYTES = 1 << 18
"""Bytes of small files that form one task of a thread. With a task per file, each file would cost 0.1 ms more."""
GROUP_FILES = 256
"""Most files of such a task."""
JOINED_AT_ONCE = 1 << 12
"""Documents of a shard that are copied at once."""


class Work:
    """One source that must be tokenised, with its inputs, its temporary files and its counts."""

    def __init__(self, source: Source, corpus: Corpus) -> None:
        with naming(source.field("train")):
            self.source = replace(source, files=source.files or dataset_files(source))
        self.folder = corpus.folder
        self.settings = source_settings(source, corpus)
        self.fraction: float = self.settings["validation fraction"] or 0.0
        self.hub: HubData | None = None
        self.inputs: tuple[Input, ...] = ()
        self.validation_inputs: tuple[Input, ...] = ()
        self.rows: int | None = None
        self.pieces: list[tuple[Path, dict[str, Any]]] = []
        self.spools: dict[str, Spool] = {}
        self.tokens = 0
        self.seen = 0
        self.skipped = 0
        self.full = False
        self.overlap = corpus.spec.validation.overlap
        self.held_out = np.zeros(0, dtype=np.uint64)
        self.repeated = np.zeros(0, dtype=bool)
        self.row_tokens: RowTokens | None = None

    def blocks(self) -> Iterator[tuple[str, Block | TokenBlock]]:
        """Yield (split, block) in the order of the files, until `full` is set. If there are pieces, yield nothing."""
        if self.pieces:
            return
        with naming(self.source.field("train")):
            for block in self.hub.blocks() if self.hub is not None else self.file_blocks(self.source.files):
                if self.full:
                    break
                yield "train", block
        with naming(self.source.field("validation")):
            for block in self.file_blocks(self.source.validation):
                yield "validation", block

    def groups(self) -> Iterator[tuple[str, list[Block | TokenBlock]]]:
        """Yield the blocks of `blocks`, with small blocks of text grouped."""
        group: list[Block | TokenBlock] = []
        split, size = "", 0
        for here, block in self.blocks():
            n_bytes = BLOCK_BYTES if isinstance(block, TokenBlock) else block.n_bytes()
            if group and (here != split or size + n_bytes > BLOCK_BYTES or len(group) == GROUP_FILES):
                yield split, group
                group, size = [], 0
            group.append(block)
            split, size = here, size + n_bytes
        if group:
            yield split, group

    def file_blocks(self, files: Sequence[File]) -> Iterator[Block | TokenBlock]:
        """Return an iterator over the blocks of files, which contain text or tokens."""
        if self.row_tokens is not None:
            return self.row_tokens.blocks([local(file) for file in files])
        spec = self.source.spec
        return itertools.chain.from_iterable(file_blocks(file, spec.text, spec.csv, spec.document) for file in files)

    def hold_out(self) -> None:
        """Store the hashes of the validation files' documents, to recognise them among training documents."""
        files = (self.source.whole or self.source).validation
        hashes = (hashes_of(block, self.source.spec.text) for block in self.file_blocks(files))
        self.held_out = np.unique(np.concatenate([self.held_out, *hashes]))
        self.repeated = np.zeros(len(self.held_out), dtype=bool)

    def _refuse_repeated(self, encoded: Encoded) -> None:
        at = np.searchsorted(self.held_out, encoded.hashes)
        inside = at < len(self.held_out)
        at, hashes = at[inside], encoded.hashes[inside]
        self.repeated[at[self.held_out[at] == hashes]] = True
        self._check_overlap(len(self.held_out))

    def _check_overlap(self, held_out: int) -> None:
        if (count := int(self.repeated.sum())) > self.overlap * held_out:
            raise XDogeError(
                f"{count:,} of the {held_out:,} documents of its validation files are among its training "
                f"documents, more than {self.overlap:.0%}. Remove them, or raise validation: {{overlap}}."
            )

    def add_piece(self, home: Path, marker: dict[str, Any]) -> None:
        """Add the part of this source that a shard prepared. Parts are added in the order of the files.

        Args:
            home: folder of the shard, which has the tokens.
            marker: marker of the source in the shard.
        """
        self.pieces.append((home, marker))
        self.inputs += tuple(Input(**entry) for entry in marker["inputs"])
        self.validation_inputs += tuple(Input(**entry) for entry in marker["validation_inputs"])
        self.skipped += marker["skipped"]
        if held_out := marker["held_out"]:
            self.repeated = self.repeated if len(self.repeated) else np.zeros(held_out, dtype=bool)
            self.repeated[marker["repeated_documents"]] = True
            with naming(self.source.field("train")):
                self._check_overlap(held_out)

    def joined(self) -> Iterator[None]:
        """Copy the tokens of all pieces. Yield after each group of documents."""
        for home, marker in self.pieces:
            for split, spool in self.spools.items():
                tokens, bounds = map_tokens(home / marker[split]["file"])
                for start in range(0, len(bounds) - 1, JOINED_AT_ONCE):
                    here = bounds[start : start + JOINED_AT_ONCE + 1]
                    spool.add(tokens[here[0] : here[-1]], np.diff(here), 0)
                    self.seen += len(here) - 1
                    yield
                spool.n_bytes += marker[split]["n_bytes"]

    def event(self, kind: Literal["source", "done"]) -> Event:
        """Return a progress event with the documents and tokens so far. For "done", only kept documents count."""
        spools = self.spools.values()
        tokens = sum(spool.tokens for spool in spools) if self.spools else self.tokens
        done = sum(spool.documents for spool in spools) if self.spools and kind == "done" else self.seen
        return Event(kind, self.source.name, done, self.rows, tokens)

    def take(self, split: str, encoded: Encoded) -> None:
        """Append encoded documents to the temporary files of their splits, until max_tokens is reached."""
        if split == "train" and self.full:
            return  # was read ahead; how far depends on the number of threads, and must not matter
        self.seen += encoded.rows
        self.skipped += encoded.rows - len(encoded.lengths)
        if split == "train":
            limit = self.source.spec.max_tokens
            if limit is not None:
                encoded = encoded.until(limit - self.spools["train"].tokens)
                self.full = self.spools["train"].tokens + encoded.train_tokens() >= limit
            self._refuse_repeated(encoded)
            if self.row_tokens is not None:
                self.row_tokens.look_at(encoded)
        if split == "validation" or not encoded.held_out.any():
            self.spools[split].add(encoded.tokens, encoded.lengths, int(encoded.n_bytes.sum()))
            return
        for name, chosen in (("train", ~encoded.held_out), ("validation", encoded.held_out)):
            tokens = encoded.tokens[np.repeat(chosen, encoded.lengths)]
            self.spools[name].add(tokens, encoded.lengths[chosen], int(encoded.n_bytes[chosen].sum()))


def scan_all(
    works: Sequence[Work], tokenizer: Tokenizer | None, pool: ThreadPoolExecutor, on_progress: OnProgress
) -> None:
    """Check every input once, in parallel, before anything is written. The results are stored in `works`."""

    def submit(files: Sequence[File], work: Work) -> Iterator[Future[list[tuple[Input, Tally | None]]]]:
        spec, names = work.source.spec, relatives(files, work.folder)
        if tokenizer is not None and spec.has_tokens:
            for file, name in zip(files, names, strict=True):
                yield pool.submit(_scan_tokens, local(file), work.source, tokenizer, name)
            return
        for group in _groups(files):
            yield pool.submit(_scan_text, group, work.source, names[: len(group)])
            names = names[len(group) :]

    jobs = [[list(submit(files, work)) for files in (work.source.files, work.source.validation)] for work in works]
    total, done = sum(len(work.source.files) + len(work.source.validation) for work in works), 0
    for work, job in zip(works, jobs, strict=True):
        scanned: list[list[Input]] = [[], []]
        tallies: list[Tally] = []
        for inputs, groups, split in zip(scanned, job, SPLITS, strict=True):
            for future in groups:
                with naming(work.source.field(split)):
                    results = future.result()
                inputs += [entry for entry, _ in results]
                tallies += [tally for _, tally in results if tally is not None]
                done += len(results)
                on_progress(Event("scan", done=done, total=total))
            if work.source.whole is None:
                with naming(work.source.field(split)):
                    refuse_empty(inputs)
        work.inputs, work.validation_inputs = tuple(scanned[0]), tuple(scanned[1])
        if tokenizer is not None and tallies:
            with naming(work.source.field("train")):
                work.row_tokens = RowTokens(tallies, tokenizer, work.source.spec.column)
        if not work.source.in_place:
            with naming(work.source.field("validation")):
                work.hold_out()
        if work.source.dataset is not None and not work.source.files:
            with naming(work.source.field("train")):
                work.hub = open_dataset(work.source, work.folder)
            work.inputs = work.hub.inputs
        counts = [entry.rows for entry in (*work.inputs, *work.validation_inputs)]
        if work.hub is not None:
            counts = [work.hub.rows, *(entry.rows for entry in work.validation_inputs)]
        known = [count for count in counts if count is not None]
        packed = work.row_tokens is not None and work.row_tokens.kind == "packed"
        work.rows = sum(known) if len(known) == len(counts) and not packed else None


def _scan_tokens(file: Path, source: Source, tokenizer: Tokenizer, name: str) -> list[tuple[Input, Tally | None]]:
    if source.in_place:
        return [(scan_in_place(file, tokenizer, name=name, dtype=source.spec.dtype), None)]
    return [scan_rows(file, tokenizer, column=source.spec.column, name=name)]


def _scan_text(files: Sequence[File], source: Source, names: Sequence[str]) -> list[tuple[Input, Tally | None]]:
    spec = source.spec
    return [(entry, None) for entry in scan_files(files, spec.text, names=names, csv=spec.csv, document=spec.document)]


def _groups(files: Sequence[File]) -> Iterator[list[File]]:
    """Yield the files in order, with small files grouped."""
    group: list[File] = []
    size = 0
    for file in files:
        if group and (size >= GROUP_BYTES or len(group) == GROUP_FILES):
            yield group
            group, size = [], 0
        group.append(file)
        size += file.stat().st_size if isinstance(file, Path) else GROUP_BYTES  # one download per task
    if group:
        yield group


def refuse_same_bytes(corpus: Corpus, markers: Mapping[Source, dict[str, Any] | None], works: Sequence[Work]) -> None:
    """Raise XDogeError if two files have the same content. The check of corpus.yaml compares only names."""
    inputs = {work.source.name: [work.inputs, work.validation_inputs] for work in works}
    for source, marker in markers.items():
        if marker is not None:
            parts = (marker[key] for key in ("inputs", "validation_inputs"))
            inputs[source.name] = [tuple(Input(**entry) for entry in part) for part in parts]
    seen: dict[str, str] = {}
    for source in corpus.sources:
        for split, entries in zip(SPLITS, inputs[source.name], strict=True):
            for entry in entries:
                if entry.sha256 is None or entry.rows == 0 or is_side(entry.path):
                    continue
                if entry.sha256 in seen:
                    raise XDogeError(
                        f"{source.field(split)}: {entry.path} has the same bytes as {seen[entry.sha256]}; "
                        "leave one out."
                    )
                seen[entry.sha256] = f"{entry.path} of {source.name} ({split})"


def refuse_moving(work: Work) -> None:
    """Raise XDogeError if an input changed since its checksum was computed."""
    for split, entries in zip(SPLITS, (work.inputs, work.validation_inputs), strict=True):
        for entry in entries:
            with naming(work.source.field(split)):
                if entry.mtime_ns is not None and not entry.same_time(work.folder):
                    raise XDogeError(f"{entry.path} changed while it was being read; run again.")
