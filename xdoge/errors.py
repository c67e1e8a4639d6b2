"""The exceptions that xdoge raises on purpose.

    XDogeException              all of them
    ├── XDogeError              the user can put it right: the thing, the value, what is allowed, the way out
    │   ├── MissingExtraError   an optional library is not installed
    │   ├── FolderInUseError    another process holds the folder
    │   ├── NonFiniteLossError  a training diverged
    │   ├── TaskError           a benchmark cannot run; the others do (xdoge.eval.lm_eval.catalogue)
    │   └── RankLocalError      of several processes, perhaps only this one sees it
    │       ├── LostProcessError    another process of the job died
    │       └── MemoryFullError     a device has too little memory
    └── Interrupted             SIGINT or SIGTERM came, and what is needed to continue was written

`except XDogeError` leaves Interrupted alone, so that no loop over runs, tasks or files goes on after Ctrl-C.
Bugs of our own stay plain Python exceptions, with their tracebacks.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

MOST_NAMES = 5
"""Named in one message; more would hide what it says."""

ABANDONED = "xdoge-encode"
"""A thread whose name begins so writes nothing, and a process that stops does not wait for it."""

_ARGUMENT = re.compile("\ufdd0(\\w+)(?:=([^\ufdd1]*))?\ufdd1")
"""An argument inside a message: Unicode's noncharacters, which no text holds, stand around it."""


def argument(name: str, value: object = None) -> str:
    """Return how a message names an argument or a setting of the function that the user called.

    Python shows `resume=True`. The command line shows `--resume`, since it knows which option sets the argument.

    For messages of exceptions only: what `on_note` and `warnings.warn` are given is shown as it is.

    Args:
        name: of the argument or setting, as Python spells it.
        value: what the user should give, None to name the argument alone.
    """
    return f"\ufdd0{name}\ufdd1" if value is None else f"\ufdd0{name}={value}\ufdd1"


def _in_python(name: str, value: str | None) -> str:
    return name if value is None else f"{name}={value}"


class XDogeException(Exception):
    """The base of all: an exception with one line of text.

    Attributes:
        message: the text with its arguments marked (see `argument`). A message that quotes another error quotes this,
            where `str(error)` would fix the spelling of Python.
    """

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(self.spelled(_in_python))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), self.args), self.__dict__

    def spelled(self, spell: Callable[[str, str | None], str]) -> str:
        """Return the text with `spell(name, value)` in the place of each argument; value may be None."""
        return _ARGUMENT.sub(lambda match: spell(match[1], match[2]), self.message)


def _unpickled(kind: type[XDogeException], args: tuple[str, ...]) -> XDogeException:
    """Return an exception without __init__, which may take other arguments than the text."""
    return kind.__new__(kind, *args)


class XDogeError(XDogeException):
    """Something the user can put right; the command line prints it as one line and exits with 1."""


class MissingExtraError(XDogeError):
    """An optional library is missing."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed; this needs pip install 'xdoge[{extra}]'.")


class FolderInUseError(XDogeError):
    """Another process holds the folder."""


class NonFiniteLossError(XDogeError):
    """A loss became NaN or infinite, so nothing that follows could be trusted."""


class RankLocalError(XDogeError):
    """Of several processes perhaps only this one sees it, so it speaks for itself."""


class LostProcessError(RankLocalError):
    """Another process of the same job died or no longer answers; every process that is left says so."""


class MemoryFullError(RankLocalError):
    """A device has too little memory; of several processes, perhaps only this one's."""


class Interrupted(XDogeException):
    """A signal asked to stop, and everything needed to continue was written."""

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


def require(extra: str, *libraries: str) -> None:
    """Refuse at once what would fail after a while without an optional library.

    Args:
        extra: of xdoge that brings the libraries, such as "proxy".
        libraries: names of top-level modules; they are looked up, not imported.

    Raises:
        MissingExtraError: one is not installed.
    """
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            raise MissingExtraError(library, extra)


@contextlib.contextmanager
def importing(extra: str) -> Iterator[None]:
    """Turn a missing library, where the block imports it, into the extra of xdoge that brings it.

    Raises:
        MissingExtraError: a library is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "xdoge":
            raise
        raise MissingExtraError(error.name, extra) from error


SYNONYMS = {
    "batch": ("batch_size",),
    "block_size": ("sequence_length",),
    "bs": ("batch_size",),
    "budget": ("budget_tokens", "target_budget"),
    "column": ("text",),
    "context": ("window", "sequence_length"),
    "context_length": ("window", "sequence_length"),
    "dtype": ("precision",),
    "epochs": ("max_epochs",),
    "eval_interval": ("eval_every",),
    "eval_steps": ("eval_every",),
    "few_shot": ("num_fewshot",),
    "field": ("text",),
    "file": ("files",),
    "grad_accum": ("accumulation",),
    "grad_clip": ("clip",),
    "gradient_accumulation_steps": ("accumulation",),
    "gradient_checkpointing": ("activation_checkpointing",),
    "iterations": ("steps",),
    "iters": ("steps",),
    "log_to": ("report_to",),
    "lr": ("learning_rate",),
    "max_grad_norm": ("clip",),
    "max_length": ("sequence_length", "window"),
    "max_lr": ("learning_rate",),
    "max_samples": ("max_documents",),
    "micro_batch_size": ("per_device_batch_size", "microbatches"),
    "min_lr": ("final_learning_rate",),
    "min_weight": ("floor",),
    "num_workers": ("workers",),
    "path": ("files",),
    "per_device_train_batch_size": ("per_device_batch_size",),
    "random_seed": ("seed",),
    "save_interval": ("checkpoint_every",),
    "save_steps": ("checkpoint_every",),
    "save_total_limit": ("keep_checkpoints",),
    "seq_len": ("sequence_length",),
    "shots": ("num_fewshot",),
    "tokens": ("budget_tokens", "max_tokens"),
    "vocab": ("vocab_size",),
    "wd": ("weight_decay",),
}
"""What other tools call a setting, with what xdoge calls it."""


def likely_name(name: str, known: Iterable[str]) -> str:
    """Return which of the `known` names was probably meant, or a few of them, as the end of a sentence."""
    names, key = list(dict.fromkeys(known)), name.lower().replace("-", "_")
    meant = [other for other in SYNONYMS.get(key, ()) if other in names] or difflib.get_close_matches(key, names, n=1)
    if meant:
        return f"; did you mean {meant[0]}?"
    return f"; known are {', '.join(names)}" if 0 < len(names) <= 2 * MOST_NAMES else ""


def names_that_differ(here: str, mine: Iterable[str], there: str, theirs: Iterable[str]) -> str:
    """Return which names only one of two things has, as the end of a sentence; empty if they have the same.

    A few of each are named, with what was probably meant where a name is nearly one of the other's.
    """
    parts = []
    for where, some, others in ((here, set(mine), set(theirs)), (there, set(theirs), set(mine))):
        if only := sorted(some - others):
            near = difflib.get_close_matches(only[0], sorted(others - some), n=1, cutoff=0.7)
            hint = f" (did you mean {near[0]}?)" if near else ""
            more = f" and {len(only) - MOST_NAMES} more" if len(only) > MOST_NAMES else ""
            parts.append(f"only in {where}: {', '.join(only[:MOST_NAMES])}{more}{hint}")
    return "; ".join(parts)
