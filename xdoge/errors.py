"""The exceptions that xdoge raises on purpose.

    XDogeException              base class
    ├── XDogeError              the user can fix it; the message names the thing, its value, what is allowed and the fix
    │   ├── MissingExtraError   an optional library is not installed
    │   ├── FolderInUseError    another process holds the lock of the folder
    │   ├── NonFiniteLossError  a training diverged
    │   ├── TaskError           a benchmark cannot run, while others can (xdoge.eval.lm_eval.catalogue)
    │   └── RankLocalError      perhaps raised on only one of several processes
    │       ├── LostProcessError    another process of the job died
    │       └── MemoryFullError     a device has too little memory
    └── Interrupted             SIGINT or SIGTERM arrived, and the run can be resumed

`except XDogeError` does not catch Interrupted, so that loops over runs, tasks or files end at Ctrl-C.
A bug in xdoge raises a plain Python exception with its traceback.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

MOST_NAMES = 5
"""A message names at most this many things. More would hide what it says."""

ABANDONED = "xdoge-encode"
"""Prefix of the names of threads that write nothing. A process that stops does not wait for them."""

_ARGUMENT = re.compile("\ufdd0(\\w+)(?:=([^\ufdd1]*))?\ufdd1")
"""An argument inside a message. It stands between two Unicode noncharacters, which do not occur in text."""


def argument(name: str, value: object = None) -> str:
    """Return an argument's or setting's name, marked for use in the message of an exception.

    Python shows such an argument as `resume=True`, and the command line as `--resume`. Use it only in exceptions:
    `on_note` and `warnings.warn` show their text unchanged.

    Args:
        name: Python name of the argument or setting.
        value: value that the user should give. None names only the argument.
    """
    return f"\ufdd0{name}\ufdd1" if value is None else f"\ufdd0{name}={value}\ufdd1"


def _in_python(name: str, value: str | None) -> str:
    return name if value is None else f"{name}={value}"


class XDogeException(Exception):
    """Base class of xdoge's exceptions, whose text is one line.

    Attributes:
        message: the text with its arguments marked (see `argument`). To quote an error in another error, use this
            instead of `str(error)`, which has already turned the arguments into Python's spelling.
    """

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(self.spelled(_in_python))

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (type(self), self.args), self.__dict__

    def spelled(self, spell: Callable[[str, str | None], str]) -> str:
        """Return the text, with each marked argument replaced by `spell(name, value)`. `value` may be None."""
        return _ARGUMENT.sub(lambda match: spell(match[1], match[2]), self.message)


def _unpickled(kind: type[XDogeException], args: tuple[str, ...]) -> XDogeException:
    """Return an exception without calling `__init__`, whose arguments differ between the classes."""
    return kind.__new__(kind, *args)


class XDogeError(XDogeException):
    """An error that the user can fix. The command line prints it as one line and exits with status 1."""


class MissingExtraError(XDogeError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str) -> None:
        super().__init__(f"{library} is not installed; this needs pip install 'xdoge[{extra}]'.")


class FolderInUseError(XDogeError):
    """Another process holds the lock of the folder."""


class NonFiniteLossError(XDogeError):
    """A loss became NaN or infinite."""


class RankLocalError(XDogeError):
    """An error that perhaps only one of several processes raises, so that each process reports its own."""


class LostProcessError(RankLocalError):
    """Another process of the same job died or no longer answers. Every remaining process raises this."""


class MemoryFullError(RankLocalError):
    """The device of this process has too little memory."""


class Interrupted(XDogeException):
    """SIGINT or SIGTERM stopped a run, after everything that is needed to resume it was written.

    Attributes:
        exit_code: status with which the command line exits, 128 plus the number of the signal.
    """

    def __init__(self, signal: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal


def require(extra: str, *libraries: str) -> None:
    """Raise an error now if optional libraries that are needed later are not installed.

    Args:
        extra: extra of xdoge that installs the libraries, such as "proxy".
        libraries: names of top-level modules. They are looked up, not imported.

    Raises:
        MissingExtraError: a library is not installed.
    """
    for library in libraries:
        if importlib.util.find_spec(library) is None:
            raise MissingExtraError(library, extra)


@contextlib.contextmanager
def importing(extra: str) -> Iterator[None]:
    """Turn a failed import inside the block into an error that names the extra to install.

    Args:
        extra: extra of xdoge that installs the library, such as "proxy".

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
"""Names that other tools give to a setting, each with the names that xdoge gives it."""


def few(names: Sequence[str], *, between: str = ", ") -> str:
    """Return the first names, and the number of further ones, as text."""
    more = f" and {len(names) - MOST_NAMES} more" * (len(names) > MOST_NAMES)
    return between.join(names[:MOST_NAMES]) + more


def likely_name(name: str, known: Iterable[str]) -> str:
    """Return a suggestion for a misspelt name, as the end of a sentence.

    It names the most similar of the `known` names. If none is similar, it lists all of them unless they are many.
    """
    names, key = list(dict.fromkeys(known)), name.lower().replace("-", "_")
    meant = [other for other in SYNONYMS.get(key, ()) if other in names] or difflib.get_close_matches(key, names, n=1)
    if meant:
        return f"; did you mean {meant[0]}?"
    return f"; known are {', '.join(names)}" if 0 < len(names) <= 2 * MOST_NAMES else ""


def names_that_differ(here: str, mine: Iterable[str], there: str, theirs: Iterable[str]) -> str:
    """Return which names only one of two collections has, as the end of a sentence. It is empty if they are equal.

    At most `MOST_NAMES` of each side are listed. A similar name of the other side is suggested.

    Args:
        here: what the message calls the first collection.
        mine: names of the first collection.
        there: what the message calls the second collection.
        theirs: names of the second collection.
    """
    parts = []
    for where, some, others in ((here, set(mine), set(theirs)), (there, set(theirs), set(mine))):
        if only := sorted(some - others):
            near = difflib.get_close_matches(only[0], sorted(others - some), n=1, cutoff=0.7)
            hint = f" (did you mean {near[0]}?)" if near else ""
            more = f" and {len(only) - MOST_NAMES} more" if len(only) > MOST_NAMES else ""
            parts.append(f"only in {where}: {', '.join(only[:MOST_NAMES])}{more}{hint}")
    return "; ".join(parts)
