"""Prepare a store with several processes or nodes. Each tokenises a share of the files, and one joins the results.

`prepare_shard` writes a small store without a manifest into the folder `shards/K-of-N` of the store. A killed shard can
therefore resume as `prepare` does. `join_shards` copies the tokens of all shards, in the order of the files. The store
then has the same bytes as one that a single `prepare` wrote.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xdoge._version import __version__
from xdoge.corpus.manifest import check_folder, claimed, current_marker, reporting_unfinished, write_manifest
from xdoge.corpus.prepare import known_tokenizer, report_kept, save_tokenizer, tokenise, train_tokenizer
from xdoge.corpus.readers.inputs import refuse_empty
from xdoge.corpus.remote import File, size_of
from xdoge.corpus.spec import Corpus, Source, naming
from xdoge.corpus.store import PREPARING, SHARDS, SPLITS, TokenStore
from xdoge.corpus.threads import encoders, one_thread_each, worker_count
from xdoge.corpus.tokenizer import Tokenizer, saved
from xdoge.corpus.work import Work, refuse_same_bytes, scan_all
from xdoge.errors import XDogeError, argument
from xdoge.io import disk_errors, in_use, locked, write_json
from xdoge.progress import Event, OnProgress, silent


@dataclass(frozen=True)
class Shard:
    """One of several shards.

    Attributes:
        number: number of the shard, from 1.
        count: number of shards.

    Raises:
        XDogeError: `number` is not from 1 to `count`.
    """

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise XDogeError(f"{argument('shard')} is {self}; in K/N, K must be from 1 to N, such as 3/16.")

    def __str__(self) -> str:
        """Return the shard as the user writes it, such as 3/16."""
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Return the shard that a text such as "3/16" names.

        Raises:
            XDogeError: the text does not have this form, or the number is out of range.
        """
        if (match := re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)) is None:
            raise XDogeError(f"{argument('shard')} is {text!r}; write K/N, such as 3/16.")
        return cls(int(match[1]), int(match[2]))

    @property
    def folder(self) -> str:
        """Path of the shard's folder, relative to the store."""
        return f"{SHARDS}/{self.number}-of-{self.count}"


@dataclass(frozen=True)
class ShardCounts:
    """Numbers of files, documents and tokens in a finished shard, over both splits."""

    files: int
    documents: int
    tokens: int


def prepare_shard(
    corpus: Path | str,
    out: Path | str,
    shard: Shard,
    *,
    workers: int | None = None,
    refresh: bool = False,
    on_progress: OnProgress = silent,
) -> ShardCounts:
    """Tokenise one shard of a corpus: a contiguous range of its files with about 1/N of their bytes.

    Hub data sets and sources with max_tokens are not divided. One shard reads all of each. Sources that are tokens
    already are left to `join_shards`. If a tokenizer must be trained, the shard that starts first trains it on the
    whole corpus, and the others wait. A killed shard continues with its unfinished source when it runs again.

    Args:
        corpus: path of corpus.yaml.
        out: folder of the store. It must be the same for all shards, on a shared file system.
        shard: the shard to tokenise.
        workers: threads that encode. None means one for each core that this process may use.
        refresh: tokenise sources again if their files or settings changed since they were finished.
        on_progress: called after every block.

    Returns:
        Files, documents and tokens of the shard.

    Raises:
        XDogeError: as for `prepare`. Or `out` has a finished store, or shards of another number or tokenizer.
    """
    loaded, out = Corpus.load(corpus), Path(out)
    workers = worker_count(workers)
    check_folder(out)
    if (out / "store.json").is_file():
        raise XDogeError(f"{out} holds a finished store; prepare shards in another folder.")
    part, home = _part(loaded, shard), out / shard.folder
    with encoders(workers) as pool, one_thread_each():
        tokenizer = _shared_tokenizer(loaded, out, shard, pool, on_progress)
        markers = {source: current_marker(source, loaded, home, tokenizer, refresh) for source in part.sources}
        works = [Work(source, loaded) for source, marker in markers.items() if marker is None]
        scan_all(works, tokenizer, pool, on_progress)
        refuse_same_bytes(part, markers, works)
        with claimed(home):
            report_kept(markers, on_progress)
            tokenise(works, tokenizer, home, pool, workers, on_progress)
    finished = [current_marker(source, loaded, home, tokenizer, False) or {} for source in part.sources]
    return ShardCounts(
        files=sum(len(marker["inputs"]) + len(marker["validation_inputs"]) for marker in finished),
        documents=sum(marker[split]["documents"] for marker in finished for split in SPLITS),
        tokens=sum(marker[split]["tokens"] for marker in finished for split in SPLITS),
    )


def join_shards(
    corpus: Path | str, out: Path | str, *, workers: int | None = None, on_progress: OnProgress = silent
) -> TokenStore:
    """Join all shards in `out` to a store, and delete them.

    Args:
        corpus: path of the corpus.yaml from which the shards were prepared.
        out: folder of the store.
        workers: threads that check sources of tokens. None means one for each core that this process may use.
        on_progress: called while documents are copied.

    Returns:
        The finished store.

    Raises:
        XDogeError: a shard is missing or not finished. Or an input, a setting or the tokenizer changed since.
    """
    loaded, out = Corpus.load(corpus), Path(out)
    workers = worker_count(workers)
    check_folder(out)
    count = _count(out)
    tokenizer = known_tokenizer(loaded, out)
    if tokenizer is None or count is None:
        raise XDogeError(
            f"{out} holds no shard to join; first prepare some with {argument('shard', '1/16')} and so on."
        )
    with encoders(workers) as pool, one_thread_each():
        markers = {source: current_marker(source, loaded, out, tokenizer, False) for source in loaded.sources}
        works = [Work(source, loaded) for source, marker in markers.items() if marker is None]
        _add_pieces({work.source.name: work for work in works}, loaded, out, count, tokenizer)
        scan_all([work for work in works if not work.pieces], tokenizer, pool, on_progress)
        refuse_same_bytes(loaded, markers, works)
        with claimed(out), reporting_unfinished(out):
            report_kept(markers, on_progress)
            tokenise(works, tokenizer, out, pool, workers, on_progress)
            store = write_manifest(loaded, out, tokenizer)
            shutil.rmtree(out / SHARDS)
    return store


def _part(corpus: Corpus, shard: Shard) -> Corpus:
    """Return the corpus with only the files of one shard.

    A file belongs to the shard in whose share of all bytes its middle byte lies.
    """
    items = list(_items(corpus))
    total = sum(size for _, _, size in items)
    before, chosen = 0, dict[str, set[File]]()
    for source, files, size in items:
        if (2 * before + size) * shard.count // (2 * total) == shard.number - 1:
            chosen.setdefault(source.name, set()).update(files)
        before += size
    sources = (
        replace(
            source,
            files=tuple(file for file in source.files if file in chosen[source.name]),
            validation=tuple(file for file in source.validation if file in chosen[source.name]),
            whole=source,
        )
        for source in corpus.sources
        if source.name in chosen
    )
    return replace(corpus, sources=tuple(sources))


def _items(corpus: Corpus) -> Iterator[tuple[Source, tuple[File, ...], int]]:
    """Yield the units that are assigned to shards, in order: a source, files of it, and their size in bytes, > 0.

    A unit is a file, or a whole source that is not divided.
    """
    for source in corpus.sources:
        files = (*source.files, *source.validation)
        if source.spec.has_tokens:
            continue
        if source.dataset is not None or source.spec.max_tokens is not None:
            yield source, files, 1 + sum(map(size_of, files))
        else:
            yield from ((source, (file,), 1 + size_of(file)) for file in files)


def _count(out: Path) -> int | None:
    """Return the number N of the shards K-of-N in `out`, None if there are no shards.

    Raises:
        XDogeError: there are shards with different N.
    """
    names = (re.fullmatch(r"[0-9]+-of-([0-9]+)", path.name) for path in out.glob(f"{SHARDS}/*"))
    counts = {int(name[1]) for name in names if name}
    if len(counts) > 1:
        several = " and ".join(map(str, sorted(counts)))
        raise XDogeError(f"{out / SHARDS} holds shards of {several}; delete those that you do not want.")
    return counts.pop() if counts else None


def _shared_tokenizer(
    corpus: Corpus, out: Path, shard: Shard, pool: ThreadPoolExecutor, on_progress: OnProgress
) -> Tokenizer:
    """Return the tokenizer of all shards. The shard that starts first saves it, and trains it if necessary."""
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    if corpus.spec.tokenizer.train is not None and in_use(out):
        on_progress(Event("tokenizer", "waiting for the shard that trains the tokenizer"))
    with locked(out, wait=True):
        if (count := _count(out)) not in (None, shard.count):
            raise XDogeError(
                f"{out} holds shards K/{count}, but {argument('shard')} is {shard}; name another folder "
                f"or delete {out / SHARDS}."
            )
        tokenizer, note = known_tokenizer(corpus, out), saved(out / "tokenizer")
        if note is not None and (tokenizer is None or tokenizer.fingerprint != note["fingerprint"]):
            raise XDogeError(f"{corpus.path}: tokenizer: it differs from that of the other shards in {out}.")
        if note is None:
            write_json(out / PREPARING, {"schema": "xdoge.preparing/1", "xdoge_version": __version__})
        if tokenizer is None:
            works = [Work(source, corpus) for source in corpus.sources]
            scan_all(works, None, pool, on_progress)
            tokenizer = train_tokenizer(corpus, works, pool, on_progress)
        save_tokenizer(tokenizer, corpus, out)
        (out / shard.folder).mkdir(parents=True, exist_ok=True)
    return tokenizer


def _add_pieces(works: Mapping[str, Work], corpus: Corpus, out: Path, count: int, tokenizer: Tokenizer) -> None:
    missing = []
    for number in range(1, count + 1):
        shard = Shard(number, count)
        home, pieces = out / shard.folder, list[tuple[Work, dict[str, Any] | None]]()
        for source in _part(corpus, shard).sources:
            if source.name in works:
                pieces.append((works[source.name], current_marker(source, corpus, home, tokenizer, False)))
        if any(marker is None for _, marker in pieces) or (home.is_dir() and in_use(home)):
            missing.append(number)
        for work, marker in pieces:
            if marker is not None:
                try:
                    work.add_piece(home, marker)
                except (KeyError, IndexError, TypeError) as error:
                    raise XDogeError(
                        f"{home}: a marker is damaged; delete that folder, and run {shard} again."
                    ) from error
    if missing:
        first, more = ", ".join(map(str, missing[:10])), f" and {len(missing) - 10} more" * (len(missing) > 10)
        raise XDogeError(
            f"{out}: of its {count} shards, {first}{more} {'is' if len(missing) == 1 else 'are'} not finished; "
            f"run {argument('shard', Shard(missing[0], count))} again."
        )
    for work in works.values():
        for split, inputs in zip(SPLITS, (work.inputs, work.validation_inputs), strict=True):
            with naming(work.source.field(split)):
                refuse_empty(inputs)
