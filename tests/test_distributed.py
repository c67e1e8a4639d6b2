"""A step on several processes has exactly the results of one process on the same batch, for any placement of rows."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import forked
import numpy as np
import pytest
import ranks
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from xdoge.distributed import ALONE, Processes
from xdoge.errors import XDogeError
from xdoge.fit.gradients.placement import SLACK, Placement, place
from xdoge.fit.gradients.products import SourceProducts

CASES: list[dict[str, Any]] = [
    {"model": model, "counts": counts, "how": how, "dtype": torch.float64}
    for model, counts in (
        ("tied", (4, 4, 4, 4, 4)),  # on 2 processes a source is split
        ("untied", (6, 2, 2, 2, 0)),  # no source is split on 2
        ("gpt2", (3, 0, 1, 9, 2)),
        ("tied", (1, 1, 1, 1, 1)),
        ("untied", (0, 0, 23, 0, 1)),  # on 4, three have rows of a single source
    )
    for how in ({}, {"gram": True}, {"halves": False}, {"microbatches": 3})
]
CASES += [case | {"dtype": torch.float32} for case in CASES[::4]]
CASES += [case | {"dtype": torch.float32, "how": {"autocast": torch.bfloat16}} for case in CASES[:20:4]]


def spawn(count: int, cases: list[dict[str, Any]], folder: Any) -> list[list[tuple[SourceProducts, torch.Tensor]]]:
    """Return the results of each process in each case."""
    context = forked.context()
    started = [context.Process(target=ranks.work, args=(rank, count, cases, str(folder))) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(100)
    assert [process.exitcode for process in started] == [0] * count
    return [
        [torch.load(folder / f"{number}-{rank}.pt", weights_only=False) for rank in range(count)]
        for number in range(len(cases))
    ]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_several_processes_find_what_a_single_one_finds(count, tmp_path):
    for case, results in zip(CASES, spawn(count, CASES, tmp_path), strict=True):
        expected, gradient = ranks.run(case, ALONE, Placement(np.array([case["counts"]])))
        tolerance = 1e-12 if case["dtype"] is torch.float64 else 1e-2 if "autocast" in case["how"] else 1e-6
        for products, own in results:
            assert torch.equal(own, results[0][1])  # otherwise the proxies would diverge
            assert (own - gradient).norm() <= tolerance * gradient.norm(), case
            for field in fields(products):
                ours, theirs = getattr(products, field.name), getattr(expected, field.name)
                if theirs is None:
                    assert ours is None
                    continue
                assert np.array_equal(np.isnan(ours), np.isnan(theirs)), (case, field.name)
                assert np.array_equal(ours, getattr(results[0][0], field.name), equal_nan=True)
                scale = np.linalg.norm(theirs[~np.isnan(theirs)])
                assert np.linalg.norm((ours - theirs)[~np.isnan(theirs)]) <= tolerance * scale, (case, field.name)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=30), st.integers(1, 12), st.booleans())
def test_every_row_has_one_place_and_processes_have_equal_work(counts, processes, even):
    counts = np.array([20] * len(counts) if even else counts)
    if counts.sum() < processes:
        counts[0] += processes
    placement = place(counts, processes)
    assert placement.counts.tolist() == counts.tolist()
    loads = placement.rows.sum(1)
    assert loads.min() >= 1
    assert loads.max() <= max(SLACK * loads.mean(), -(-counts.sum() // processes))
    assert placement.split.sum() < processes


def test_sources_that_fit_stay_whole():
    assert not place(np.array([2] * 28), 2).split.any()
    assert not place(np.array([9, 7, 6, 5, 5, 4, 4]), 2).split.any()
    assert place(np.array([30, 1, 1]), 2).split.tolist() == [True, False, False]


def test_a_single_process_returns_the_result_or_raises_the_error():
    alone = Processes(0, 1, "cpu")
    assert alone.on_first(lambda: 7) == 7
    with pytest.raises(XDogeError, match="taken"):
        alone.on_first(lambda: _raise(XDogeError("taken")))


def test_all_processes_raise_the_error_of_the_first_one(monkeypatch):
    said = []
    monkeypatch.setattr(Processes, "broadcast", lambda self, value: said.append(value) or said[0])
    for rank in range(2):
        with pytest.raises(XDogeError, match="taken"):
            Processes(rank, 2, "cpu").on_first(lambda: _raise(XDogeError("taken")))
    assert said[1] == (None, None)


def _raise(error):
    raise error
