"""Threads that encode text. A process that stops does not wait for them.

Tokenizer libraries run C++ or Rust code that does not react to signals, for up to a minute if a document is long.
Therefore this code runs in other threads, and the main thread can stop at a signal without waiting for them.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from xdoge.errors import ABANDONED, XDogeError, argument


def worker_count(workers: int | None) -> int:
    """Return the number of threads to start. None means one for each core that this process may use.

    Raises:
        XDogeError: `workers` is below 1.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise XDogeError(f"{argument('workers')} is {workers}; it must be at least 1.")
    return workers


@contextlib.contextmanager
def encoders(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool of threads that encode. After an error or a signal, their work is not awaited."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix=ABANDONED)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep `tokenizers` from starting more threads inside each of ours. It reads the variable at every call."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
