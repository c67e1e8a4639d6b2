"""Turn a corpus into a token store: read, tokenise, split, count, write.

The main thread divides the inputs into blocks of text, in order. A pool of threads parses and tokenises the blocks, for
which Python's global lock is released. The main thread takes the results in order and appends them to temporary files.
At the end of a source, these become one Arrow file per split, and a marker is written. A later run resumes after the
last marker.
"""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from xdoge._callable import make_callable
from xdoge.corpus.encoding import Encoded, encode
from xdoge.corpus.in_place import refer
from xdoge.corpus.manifest import (
    MARKER,
    SPOOL,
    check_folder,
    claimed,
    current_marker,
    marker_path,
    remove_marker,
    reporting_unfinished,
    token_file,
    write_manifest,
)
from xdoge.corpus.readers.blocks import TokenBlock
from xdoge.corpus.remote import forget, local
from xdoge.corpus.spec import Corpus, Source, naming
from xdoge.corpus.spool import Spool
from xdoge.corpus.store import SHARDS, SPLITS, TokenStore
from xdoge.corpus.threads import encoders, one_thread_each, worker_count
from xdoge.corpus.tokenizer import (
    Tokenizer,
    level,
    load_tokenizer,
    sample,
    saved,
    sentencepiece_model,
    train,
)
from xdoge.corpus.work import Work, refuse_moving, refuse_same_bytes, scan_all
from xdoge.errors import XDogeError, argument
from xdoge.io import disk_errors, write_json
from xdoge.progress import Event, OnProgress, silent

make_callable(__name__, __name__)

BLOCKS_PER_WORKER = 4
"""Blocks in flight per thread. No thread waits while another has a long document, and memory stays small."""
SAMPLE_READ = 4
"""To sample text for a tokenizer from a data set on a server, only this many times the sample's size is read."""


def prepare(
    corpus: Path | str,
    out: Path | str,
    *,
    workers: int | None = None,
    refresh: bool = False,
    on_progress: OnProgress = silent,
) -> TokenStore:
    """Tokenise a corpus into a token store, with all cores and little memory.

    All inputs are checked before anything is written. If a run is stopped or killed, or fails at a bad row, make the
    same call again. It continues with the unfinished source, and the final files have the same bytes.

    A finished store can still be opened in its old state while a later run adds sources. With `refresh`, it can be
    opened until a changed tokenizer is saved or the first changed source has been tokenised. From then on, the store is
    unfinished until the run ends. If the run fails in this time, its error says so.

    Memory use is a few blocks per thread and the longest rows. For Parquet files it includes a row group.

    Args:
        corpus: path of corpus.yaml.
        out: folder of the store, either a new one or one that `prepare` wrote.
        workers: threads that encode. None means one for each core that this process may use.
        refresh: tokenise sources again if their files or settings changed since they were finished.
        on_progress: called after every block.

    Returns:
        The finished store. Its `warnings` should be shown to the user.

    Raises:
        XDogeError: the corpus, an input file or the tokenizer is not valid. Or a finished source changed while
            `refresh` is false, `out` contains something else, or the disk is full. Messages about an input begin with
            its place in corpus.yaml.
    """
    loaded, out = Corpus.load(corpus), Path(out)
    check_folder(out)
    if (out / SHARDS).exists():
        raise XDogeError(
            f"{out} holds parts of a store; join them with {argument('join', True)}, or delete {out / SHARDS}."
        )
    workers = worker_count(workers)
    with encoders(workers) as pool, one_thread_each():
        tokenizer = known_tokenizer(loaded, out)
        markers = {source: current_marker(source, loaded, out, tokenizer, refresh) for source in loaded.sources}
        works = [Work(source, loaded) for source, marker in markers.items() if marker is None]
        scan_all(works, tokenizer, pool, on_progress)
        refuse_same_bytes(loaded, markers, works)
        with claimed(out), reporting_unfinished(out):
            if tokenizer is None:
                tokenizer = train_tokenizer(loaded, works, pool, on_progress)
            save_tokenizer(tokenizer, loaded, out)
            report_kept(markers, on_progress)
            tokenise(works, tokenizer, out, pool, workers, on_progress)
            return write_manifest(loaded, out, tokenizer)


def report_kept(markers: Mapping[Source, dict[str, Any] | None], on_progress: OnProgress) -> None:
    """Report each source that an earlier run finished as a "skip" event."""
    for source, marker in markers.items():
        if marker is not None:
            on_progress(Event("skip", source.name))


# --- the tokenizer ---------------------------------------------------------------------------------------------------


def known_tokenizer(corpus: Corpus, out: Path) -> Tokenizer | None:
    """Return the tokenizer that the corpus names or an earlier run trained. None means that it must be trained."""
    spec = corpus.spec.tokenizer
    if spec.train is None:
        (kind,) = _tokenizer_settings(corpus)
        with naming(f"{corpus.path}: tokenizer.{kind}"):
            return load_tokenizer(spec, corpus.folder)
    note = saved(out / "tokenizer")
    if note is None or note["settings"] != _tokenizer_settings(corpus):
        return None
    return Tokenizer.load(out / "tokenizer")


def _tokenizer_settings(corpus: Corpus) -> dict[str, Any]:
    return corpus.spec.tokenizer.model_dump(mode="json", exclude_none=True)


def save_tokenizer(tokenizer: Tokenizer, corpus: Corpus, out: Path) -> None:
    """Write the tokenizer into the store, unless the same one is there already."""
    note, settings = saved(out / "tokenizer"), _tokenizer_settings(corpus)
    if note is None or (note["settings"], note["fingerprint"]) != (settings, tokenizer.fingerprint):
        (out / "store.json").unlink(missing_ok=True)  # it names the old tokenizer
        tokenizer.save(out / "tokenizer", settings=settings)


def train_tokenizer(
    corpus: Corpus, works: Sequence[Work], pool: ThreadPoolExecutor, on_progress: OnProgress
) -> Tokenizer:
    """Train the tokenizer that corpus.yaml asks for, and return it."""
    spec = corpus.spec.tokenizer.train
    if spec is None:
        raise ValueError("there is no tokenizer to train")
    where = f"{corpus.path}: tokenizer.train"
    most = spec.characters_per_language
    on_progress(Event("tokenizer", f"sampling up to {most:,} characters of each language to train the tokenizer"))
    rows = [work.rows for work in works]
    total = None if None in rows else sum(row or 0 for row in rows)
    read = 0

    def count(documents: int) -> None:
        nonlocal read
        read += documents
        on_progress(Event("source", "text for the tokenizer", read, total))

    texts: list[str] = []
    for language in corpus.spec.languages:
        samples = [
            sample(
                _documents(work, SAMPLE_READ * most, count),
                characters=most,
                seed=spec.seed,
            )
            for work in works
            if work.source.language == language
        ]
        texts.extend(itertools.chain.from_iterable(level(samples, characters=most)))
    n_bytes = sum(len(text.encode("utf-8")) for text in texts)
    on_progress(Event("tokenizer", f"training a tokenizer of {spec.vocab_size:,} pieces on {n_bytes:,} bytes of text"))
    began = time.monotonic()
    model = pool.submit(train, texts, spec, where=where).result()  # in a thread, so that signals are handled at once
    on_progress(Event("tokenizer", f"trained the tokenizer in {time.monotonic() - began:,.0f} seconds"))
    return sentencepiece_model(model, where=where)


def _documents(work: Work, characters: int, on_documents: Callable[[int], None]) -> Iterator[str]:
    read = 0
    for split, block in work.blocks():
        if split != "train" or (work.hub is not None and read >= characters):
            break
        if isinstance(block, TokenBlock):
            raise TypeError("a tokenizer cannot be trained on tokens")
        with naming(work.source.field(split)):
            texts = block.texts(work.source.spec.text)
        read += sum(map(len, texts))
        yield from texts
        on_documents(len(texts))


# --- the sources ---------------------------------------------------------------------------------------------------


def tokenise(
    works: Sequence[Work],
    tokenizer: Tokenizer,
    out: Path,
    pool: ThreadPoolExecutor,
    workers: int,
    on_progress: OnProgress,
) -> None:
    """Write the tokens and the marker of each source into `out`."""
    pending: deque[tuple[Work, str, Future[Encoded] | None]] = deque()  # None: the source ends here
    finishing: deque[tuple[Work, Future[None]]] = deque()

    def settle() -> None:
        work, split, future = pending.popleft()
        if future is None:
            for spool in work.spools.values():
                spool.close()
            finishing.append((work, finisher.submit(_finish_source, work, tokenizer, out)))
        else:
            with naming(work.source.field(split)):
                work.take(split, future.result())
            on_progress(work.event("source"))
        while finishing and finishing[0][1].done():
            settle_finishing()

    def settle_finishing() -> None:
        work, future = finishing.popleft()
        future.result()
        on_progress(work.event("done"))

    # A separate thread assembles finished sources, because it mostly waits for the disk.
    with (
        disk_errors(out),
        contextlib.ExitStack() as spools,
        ThreadPoolExecutor(1, thread_name_prefix="finish") as finisher,
    ):
        for work in works:
            if work.source.in_place:
                pending.append((work, "", None))
                continue
            work.spools = {split: Spool(out / SPOOL / work.source.name, split, tokenizer.letters) for split in SPLITS}
            for spool in work.spools.values():
                spools.callback(spool.drop)
            for _ in work.joined():
                on_progress(work.event("source"))
            for split, blocks in work.groups():
                while len(pending) >= BLOCKS_PER_WORKER * workers:
                    settle()
                column, fraction = work.source.spec.text, work.fraction
                pending.append((work, split, pool.submit(encode, tokenizer, blocks, column, fraction)))
            pending.append((work, "", None))
        while pending:
            settle()
        while finishing:
            settle_finishing()


def _finish_source(work: Work, tokenizer: Tokenizer, out: Path) -> None:
    source, files = work.source, {split: token_file(work.source, split) for split in SPLITS}
    refuse_moving(work)
    if not source.in_place:
        parts = _assemble(work, files, tokenizer, out)
    else:
        entries = zip(
            map(local, (*source.files, *source.validation)), (*work.inputs, *work.validation_inputs), strict=True
        )
        remove_marker(out, source)
        parts = refer(source, out, inputs=dict(entries), files=files, fraction=work.fraction, tokenizer=tokenizer)
        work.seen, work.tokens = (sum(parts[split][key] for split in SPLITS) for key in ("documents", "tokens"))
    marker = {
        "schema": f"{MARKER}/1",
        "source": source.name,
        "settings": work.settings,
        "tokenizer": tokenizer.fingerprint,
        "inputs": [vars(entry) for entry in work.inputs],
        "validation_inputs": [vars(entry) for entry in work.validation_inputs],
        "skipped": work.skipped,
        "repeated": int(work.repeated.sum()),
        "notes": work.row_tokens.notes() if work.row_tokens is not None else [],
        **parts,
    }
    if source.whole is not None:
        marker |= {"held_out": len(work.held_out), "repeated_documents": work.repeated.nonzero()[0].tolist()}
    write_json(marker_path(out, source), marker)
    forget((*source.files, *source.validation))


def _assemble(work: Work, files: dict[str, str], tokenizer: Tokenizer, out: Path) -> dict[str, dict[str, Any]]:
    spools = work.spools
    if spools["train"].documents == 0 and work.source.whole is None:
        why = (
            "every document was assigned to validation" if spools["validation"].documents else "all its rows are empty"
        )
        raise XDogeError(f"{work.source.field('train')}: no document to train on: {why}.")
    remove_marker(out, work.source)
    parts = {
        split: {"file": file, **spools[split].assemble(out / file, tokenizer.dtype)} for split, file in files.items()
    }
    if work.row_tokens is not None:
        parts["train"] |= work.row_tokens.habits()
    shutil.rmtree(out / SPOOL / work.source.name, ignore_errors=True)  # a shard without documents has no such folder
    return parts
