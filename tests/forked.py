"""Run commands in new processes that start fast, because they are forked from one that has imported everything."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import MappingProxyType

IMPORTED = (
    "pytest",  # which every process looks up again, for it is what the tests are started with
    "torchdata.stateful_dataloader",
    "transformers.models.llama.modeling_llama",
    "xdoge.cli",
    "xdoge.corpus.prepare",
    "xdoge.eval.lm_eval.benchmarks",
    "xdoge.eval.perplexity",
    "xdoge.fit.trainer",
    "xdoge.train.trainer",
)


def context() -> ForkServerContext:
    """Return the context for starting processes. All tests share its server, so all must name the same modules."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


def start(*arguments: object, printed: Path, environment: Mapping[str, str] = MappingProxyType({})) -> BaseProcess:
    """Start an xdoge command in a new process group. Its output is appended to a file."""
    words = [str(argument) for argument in arguments]
    process = context().Process(target=_command, args=(words, printed, dict(environment)))
    process.start()
    return process


def _command(arguments: list[str], printed: Path, environment: dict[str, str]) -> None:
    multiprocessing.set_start_method("fork", force=True)  # of loaders' workers, as in a process that nobody forked
    os.setpgrp()
    os.environ.update(environment)
    file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = ["xdoge", *arguments]
    from xdoge.__main__ import main

    main()
