"""Importing is light, quiet and lists what is public."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import xdoge

HEAVY = ("torch", "transformers", "datasets", "lm_eval", "pandas", "altair", "sentencepiece", "pyarrow", "pydantic")


def fresh(code: str) -> object:
    kept = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # nobody compiles what was imported before
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept)
    return json.loads(out.stdout)


def test_importing_the_light_names_brings_in_nothing_heavy():
    names = "import json, sys; from xdoge import WeightSet;"
    code = f"{names} print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    assert fresh(code) == []


def test_importing_takes_less_than_a_third_of_a_second():
    """Of processor time, in the best of five fresh interpreters, since the machine may be busy."""
    code = "import time; a = time.process_time(); import xdoge; print(time.process_time() - a)"
    assert min(fresh(code) for _ in range(5)) < 0.3


def test_the_command_line_and_the_corpus_load_without_torch():
    code = (
        "import json, sys, xdoge.cli, xdoge.corpus.store, xdoge.corpus.spec, xdoge.fit.settings;"
        "print(json.dumps([m for m in ('torch', 'transformers', 'datasets') if m in sys.modules]))"
    )
    assert fresh(code) == []


def test_exported_names_exist_and_are_sorted():
    assert list(xdoge.__all__) == sorted(xdoge.__all__)
    for name in xdoge.__all__:
        assert hasattr(xdoge, name)
