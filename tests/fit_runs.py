"""What a fit's run folder holds, and whether two are the same."""

from __future__ import annotations

import json


def same_run(one, other):
    """Assert that two run folders hold the same run, to the bit, but for dates and times."""
    a, b = (json.loads((run / "weights.json").read_text()) for run in (one, other))
    a.pop("created"), b.pop("created")
    assert a == b
    for name in ("trajectory.parquet", "gram.parquet"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    assert (one / "proxy" / "model.safetensors").read_bytes() == (other / "proxy" / "model.safetensors").read_bytes()
    assert [row | {"seconds": 0} for row in metrics(one)] == [row | {"seconds": 0} for row in metrics(other)]


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
