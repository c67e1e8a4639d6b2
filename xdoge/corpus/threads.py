"""Threads that encode, which a process that stops does not wait for.

The libraries of tokenizers run code in C++ that heeds no signal, for a minute where a document is long. The main thread
therefore waits for another one, and leaves it behind when a signal comes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from xdoge.errors import ABANDONED, XDogeError, argument


def worker_count(workers: int | None) -> int:
    """Return how many threads to start: one per core that this process may use when None.

    Raises:
        XDogeError: `workers` is below 1.
    """
    workers = len(os.sched_getaffinity(0)) if workers is None else workers
    if workers < 1:
        raise XDogeError(f"{argument('workers')} is {workers}; it must be at least 1.")
    return workers


@contextlib.contextmanager
def encoders(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield threads that encode. Nobody waits for them after an error or a signal: a document may be very long."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix=ABANDONED)
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Keep `tokenizers` from starting threads of its own inside each of ours; it reads this variable at every call."""
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = before
