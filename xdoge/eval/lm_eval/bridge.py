"""Stand-ins for modules and functions that some tasks of the harness import but current libraries no longer have.

lm-eval 0.4.13 builds a task by running the Python files beside its YAML file. Three imports in these files break whole
families of tasks, whatever the data:

    transformers.data.metrics.squad_metrics   gone in transformers 5; the helpers of xquad_*, Spanish, Catalan, Galician
    datasets.load_metric                      gone in datasets 3; the helper of BasqueGLUE
    evaluate.load("rouge")                    downloads code from the Hub and runs it; XLSum, cocoteros, caBREU

`bridged` installs stand-ins while tasks are built, and removes them afterwards. The first two are installed only if the
real ones are missing. The files of the tasks keep the functions that they imported.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import string
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any
from unittest import mock

from xdoge.errors import XDogeError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return an answer in lower case, without ASCII punctuation, English articles and extra spaces, as in SQuAD."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def compute_exact(gold: str, predicted: str) -> int:
    """Return 1 if both answers are the same after normalisation, else 0."""
    return int(normalize_answer(gold) == normalize_answer(predicted))


def compute_f1(gold: str, predicted: str) -> float:
    """Return the harmonic mean of precision and recall over words. An empty answer matches only another empty answer.

    Source: Rajpurkar et al. 2016, SQuAD, arXiv:1606.05250, section 6.1; 2018, arXiv:1806.03822, for empty answers.
    """
    wanted, answered = normalize_answer(gold).split(), normalize_answer(predicted).split()
    if not wanted or not answered:
        return float(wanted == answered)
    common = (Counter(wanted) & Counter(answered)).total()
    return 2 * common / (len(wanted) + len(answered))


class _F1:
    """The part of `load_metric("f1")` that BasqueGLUE uses."""

    def compute(self, *, references: Sequence[Any], predictions: Sequence[Any], **options: Any) -> dict[str, Any]:
        from sklearn.metrics import f1_score  # type: ignore[import-untyped]

        return {"f1": f1_score(references, predictions, **options)}


class _Rouge:
    """The part of `evaluate.load("rouge")` that tasks with summaries use: the mean F of shared words, from 0 to 1.

    `evaluate` returns the median of the means of a thousand resamples instead, which varies around this value.
    """

    def compute(self, *, predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]

        scorer = RougeScorer(["rouge1"])
        pairs = zip(references, predictions, strict=True)
        scores = [scorer.score(wanted, answer)["rouge1"].fmeasure for wanted, answer in pairs]
        return {"rouge1": sum(scores) / len(scores)}


def load_metric(name: str) -> Any:
    """Return a metric by name.

    Raises:
        XDogeError: no task of the harness uses a metric of this name.
    """
    if name not in ("f1", "rouge"):
        raise XDogeError(
            f"a task needs the metric {name!r} of `evaluate`, whose code would be downloaded from the Hub."
        )
    return _F1() if name == "f1" else _Rouge()


@contextlib.contextmanager
def bridged() -> Iterator[None]:
    """Install the stand-ins for imports inside the block."""
    import datasets
    import transformers.data  # the parent of the module that may be missing  # noqa: F401

    modules = {"evaluate": _module("evaluate", load=load_metric)}
    if importlib.util.find_spec("transformers.data.metrics") is None:
        squad = _module(
            "transformers.data.metrics.squad_metrics",
            normalize_answer=normalize_answer,
            compute_exact=compute_exact,
            compute_f1=compute_f1,
        )
        parent = _module("transformers.data.metrics", squad_metrics=squad)
        modules |= {parent.__name__: parent, squad.__name__: squad}
    before = {name: sys.modules.get(name) for name in modules}
    with contextlib.ExitStack() as stack:
        if not hasattr(datasets, "load_metric"):
            stack.enter_context(mock.patch.object(datasets, "load_metric", load_metric, create=True))
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name, module in before.items():
                if module is None:
                    del sys.modules[name]
                else:
                    sys.modules[name] = module


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    for key, value in members.items():
        setattr(module, key, value)
    return module
