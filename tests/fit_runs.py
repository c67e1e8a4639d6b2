"""Read and compare run folders of fits and baselines."""

from __future__ import annotations

import json


def same_run(first, second):
    """Assert that two run folders have bit-identical results, except for dates and times."""
    a, b = (json.loads((run / "weights.json").read_text()) for run in (first, second))
    a.pop("created"), b.pop("created")
    assert a == b
    for name in ("trajectory.parquet", "gram.parquet", "proxy/model.safetensors"):
        assert (first / name).exists() == (second / name).exists()
        if (first / name).exists():
            assert (first / name).read_bytes() == (second / name).read_bytes()
    times = {"seconds": 0, "validation_seconds": 0}
    assert [row | times for row in metrics(first)] == [row | times for row in metrics(second)]


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
