"""Every causal architecture of transformers that can be built tiny gives exact results, or an error in one line.

`python tests/models/test_every_architecture.py` (with tests/ in PYTHONPATH) writes the table of
docs/reference/models.md again.
"""

from __future__ import annotations

import re
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_architectures import build
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from xdoge.errors import XDogeError
from xdoge.eval.scoring import LoadedModel
from xdoge.fit.gradients.engine import GradientEngine
from xdoge.fit.gradients.products import SourceBatch
from xdoge.models.probes import refuse_future, refuse_leaks, refuse_other_loss

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "models.md"
LENGTH = 24
YES, NO = "exact", "refused"


def measured(model: Any) -> None:
    """Perplexity equals that of one forward pass per document."""
    refuse_future(model, "model", length=LENGTH)
    documents = [np.arange(5, 5 + n) % 55 + 5 for n in (20, 7, 13)]
    nats = LoadedModel("model", model).nats(documents, begin=3, window=LENGTH, stride=12, batch_tokens=64)
    for document, ours in zip(documents, nats, strict=True):
        ids = torch.tensor([3, *document])[None]
        with torch.no_grad():
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0].float()
        theirs = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum")
        assert ours == pytest.approx(float(theirs), rel=1e-4)


def trained(model: Any) -> None:
    """The loss that Trainer minimises is the next-token loss, with one part and with four parts per step."""
    refuse_future(model, "model", length=LENGTH)
    for parts in (1, 4):
        refuse_other_loss(model, "model", parts=parts)


def separate(model: Any) -> None:
    """Documents are kept apart."""
    trained(model)
    refuse_leaks(model)


def fitted(model: Any) -> None:
    """The engine's training gradient equals that of autograd."""
    rows = torch.randint(5, 60, (5, 12), generator=torch.Generator().manual_seed(1))
    counts, weights = (2, 3), np.array([0.3, 0.7])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of slow modules
        engine = GradientEngine(model, 2)
    engine.backward(SourceBatch(rows, counts), weights=weights, targets=np.array([0.5, 0.5]))
    ours = [None if each.grad is None else each.grad.clone() for each in model.parameters()]
    model.zero_grad(set_to_none=True)
    for weight, part in zip(weights, rows.split(list(counts)), strict=True):
        logits = model(input_ids=part, use_cache=False).logits[:, :-1].float()
        (weight * torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())).backward()
    wrong = total = 0.0
    for gradient, parameter in zip(ours, model.parameters(), strict=True):
        if parameter.grad is not None:
            other = torch.zeros_like(parameter) if gradient is None else gradient
            wrong += float((other - parameter.grad).double().square().sum())
            total += float(parameter.grad.double().square().sum())
    assert wrong <= 1e-8 * total


COLUMNS: dict[str, Callable[[Any], None]] = {
    "eval": measured,
    "train": trained,
    "train, `documents: separate`": separate,
    "gradients of a fit": fitted,
}


def outcome(model: Any, check: Callable[[Any], None]) -> str:
    """Return whether the results are exact or the model is refused. Any other error fails the test."""
    try:
        check(model)
    except XDogeError as error:
        assert "\n" not in str(error)  # noqa: PT017 (no error is right too)
        return NO
    finally:
        model.zero_grad(set_to_none=True)
    return YES


def line(kind: str) -> str | None:
    """Return the row of the table, None if the architecture cannot be built tiny."""
    model = build(kind)
    if model is None:
        return None
    return " | ".join(["| " + kind, *(outcome(model, check) for check in COLUMNS.values())]) + " |"


@pytest.mark.slow
def test_every_architecture_is_exact_or_refused_as_the_documentation_says():
    documented = dict(re.findall(r"^(?=(\| [\w-]+ ))(\|.*(?:exact|refused) \|)$", PAGE.read_text(), flags=re.MULTILINE))
    if f"transformers {transformers.__version__}" not in PAGE.read_text():
        pytest.skip("the table is of another version of transformers")
    lines = [line(kind) for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    assert sorted(filter(None, lines)) == sorted(documented.values())


def _write() -> None:
    """Replace the table of the page."""
    rows = {kind: line(kind) for kind in sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}
    untried = ", ".join(kind for kind, row in rows.items() if row is None)
    head = " | ".join(["| Model type", *COLUMNS]) + " |\n" + "| --- " * (1 + len(COLUMNS)) + "|"
    table = "\n".join([head, *filter(None, rows.values())])
    text = PAGE.read_text().partition("<!-- table -->\n")[0]
    version = f"This is the table of transformers {transformers.__version__}."
    named = textwrap.fill(f"The test could not build a tiny one of these: {untried}.", 118, break_on_hyphens=False)
    PAGE.write_text(f"{text}<!-- table -->\n{version}\n\n{table}\n\n{named}\n")


if __name__ == "__main__":
    _write()
