"""The sources that `prepare` is to tokenise: their inputs, checked before the work, and what became of them so far."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from xdoge.corpus.encoding import Encoded, hashes_of
from xdoge.corpus.manifest import source_settings
from xdoge.corpus.megatron import scan as scan_in_place
from xdoge.corpus.readers.blocks import Block, TokenBlock
from xdoge.corpus.readers.files import file_blocks
from xdoge.corpus.readers.hub import HubData, dataset_files, open_dataset
from xdoge.corpus.readers.inputs import Input, refuse_empty, relative, scan
from xdoge.corpus.spec import Corpus, Source, naming
from xdoge.corpus.spool import Spool
from xdoge.corpus.store import SPLITS
from xdoge.corpus.token_paths import is_side
from xdoge.corpus.token_rows import RowTokens, Tally, scan_rows
from xdoge.corpus.tokenizer import Tokenizer
from xdoge.errors import XDogeError
from xdoge.progress import Event, OnProgress


class Work:
    """One source that is to be tokenised."""

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
        """Yield (split, block) in the order of the files; stops early once `full`."""
        with naming(self.source.field("train")):
            for block in self.hub.blocks() if self.hub is not None else self.file_blocks(self.source.files):
                if self.full:
                    break
                yield "train", block
        with naming(self.source.field("validation")):
            for block in self.file_blocks(self.source.validation):
                yield "validation", block

    def file_blocks(self, files: Sequence[Path]) -> Iterator[Block | TokenBlock]:
        if self.row_tokens is not None:
            return self.row_tokens.blocks(files)
        spec = self.source.spec
        return itertools.chain.from_iterable(file_blocks(file, spec.text, spec.csv, spec.document) for file in files)

    def hold_out(self) -> None:
        """Remember the documents of the validation files, to find them among those of training."""
        hashes = (hashes_of(block, self.source.spec.text) for block in self.file_blocks(self.source.validation))
        self.held_out = np.unique(np.concatenate([self.held_out, *hashes]))
        self.repeated = np.zeros(len(self.held_out), dtype=bool)

    def _refuse_repeated(self, encoded: Encoded) -> None:
        at = np.searchsorted(self.held_out, encoded.hashes)
        inside = at < len(self.held_out)
        at, hashes = at[inside], encoded.hashes[inside]
        self.repeated[at[self.held_out[at] == hashes]] = True
        if (count := int(self.repeated.sum())) > self.overlap * len(self.held_out):
            raise XDogeError(
                f"{count:,} of the {len(self.held_out):,} documents of its validation files are among its training "
                f"documents, more than {self.overlap:.0%}. Remove them, or raise validation: {{overlap}}."
            )

    def event(self, kind: Literal["source", "done"]) -> Event:
        """Return how far it is: documents of both splits, and their tokens; at the end those that were kept."""
        spools = self.spools.values()
        tokens = sum(spool.tokens for spool in spools) if self.spools else self.tokens
        done = sum(spool.documents for spool in spools) if self.spools and kind == "done" else self.seen
        return Event(kind, self.source.name, done, self.rows, tokens)

    def take(self, split: str, encoded: Encoded) -> None:
        """Add the documents of one block, up to max_tokens."""
        if split == "train" and self.full:
            return  # read ahead, further than another number of threads would have
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
    """Look at every input once, in parallel, before anything is written."""

    def submit(file: Path, work: Work) -> Future[Input] | Future[tuple[Input, Tally]]:
        name = relative(file, work.folder)
        spec = work.source.spec
        if tokenizer is not None and work.source.in_place:
            return pool.submit(scan_in_place, file, tokenizer, name=name)
        if tokenizer is not None and spec.has_tokens:
            return pool.submit(scan_rows, file, tokenizer, column=spec.column, name=name)
        return pool.submit(scan, file, spec.text, name=name, csv=spec.csv, document=spec.document)

    jobs = [
        [[submit(file, work) for file in files] for files in (work.source.files, work.source.validation)]
        for work in works
    ]
    total, done = sum(len(files) for job in jobs for files in job), 0
    for work, job in zip(works, jobs, strict=True):
        scanned: list[list[Input]] = [[], []]
        tallies: list[Tally] = []
        for inputs, files, split in zip(scanned, job, SPLITS, strict=True):
            for future in files:
                with naming(work.source.field(split)):
                    result = future.result()
                inputs.append(result if isinstance(result, Input) else result[0])
                tallies += [] if isinstance(result, Input) else [result[1]]
                done += 1
                on_progress(Event("scan", done=done, total=total))
            with naming(work.source.field(split)):
                refuse_empty(inputs)
        work.inputs, work.validation_inputs = tuple(scanned[0]), tuple(scanned[1])
        if tokenizer is not None and tallies:
            with naming(work.source.field("train")):
                work.row_tokens = RowTokens(tallies, tokenizer, work.source.spec.column)
        if not work.source.in_place:
            with naming(work.source.field("validation")):
                work.hold_out()
        if not work.source.files:
            with naming(work.source.field("train")):
                work.hub = open_dataset(work.source, work.folder)
            work.inputs = work.hub.inputs
        counts = [entry.rows for entry in (*work.inputs, *work.validation_inputs)]
        if work.hub is not None:
            counts = [work.hub.rows, *(entry.rows for entry in work.validation_inputs)]
        known = [count for count in counts if count is not None]
        packed = work.row_tokens is not None and work.row_tokens.kind == "packed"
        work.rows = sum(known) if len(known) == len(counts) and not packed else None


def refuse_same_bytes(corpus: Corpus, markers: Mapping[Source, dict[str, Any] | None], works: Sequence[Work]) -> None:
    """Refuse text that is there twice under two names; the check of corpus.yaml knows names only."""
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
                        f"{source.field(split)}: {entry.path} has the bytes of {seen[entry.sha256]}; leave one out."
                    )
                seen[entry.sha256] = f"{entry.path} of {source.name} ({split})"


def refuse_moving(work: Work) -> None:
    """Raise XDogeError if an input changed since its checksum was taken."""
    for split, entries in zip(SPLITS, (work.inputs, work.validation_inputs), strict=True):
        for entry in entries:
            if entry.mtime_ns is not None and not entry.same_time(work.folder):
                raise XDogeError(
                    f"{work.source.field(split)}: {entry.path} changed while it was being read; run again."
                )
