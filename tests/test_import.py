"""Importing is light and quiet; the public names are there in whatever order modules are imported."""

from __future__ import annotations

import ast
import inspect
import json
import os
import pickle
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import xdoge

HEAVY = ("torch", "transformers", "datasets", "lm_eval", "pandas", "altair", "sentencepiece", "pyarrow", "pydantic")


def fresh(code: str) -> object:
    kept = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}  # nobody compiles what was imported before
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=kept)
    return json.loads(out.stdout)


def test_importing_the_light_names_brings_in_nothing_heavy():
    names = "import json, sys; from xdoge import Mixture, MixtureSampler, WeightSet, export, fit, train;"
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


def test_the_list_of_public_names_is_sorted_and_each_is_there():
    assert list(xdoge.__all__) == sorted(xdoge.__all__)
    for name in xdoge.__all__:
        assert getattr(xdoge, name) is not None
        assert name in dir(xdoge)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = xdoge.no_such_name


def test_type_checkers_see_the_names_that_python_has():
    """What `if TYPE_CHECKING` imports is what `__getattr__` returns, and README shows each name."""
    tree = ast.parse(Path(xdoge.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {alias.name: node.module for node in block.body for alias in node.names}
    assert {*typed, "__version__"} == set(xdoge.__all__)
    for name, home in typed.items():
        function = getattr(import_module(home), name)
        assert inspect.unwrap(getattr(xdoge, name)) is function
    readme = Path(xdoge.__file__).parents[1].joinpath("README.md").read_text(encoding="utf-8")
    assert [name for name in typed if f"`{name}`" not in readme] == []


@pytest.mark.parametrize(
    "first", ["", "import xdoge.{0}", "from xdoge import {0}", "import xdoge; xdoge.{0}", "import xdoge.{0}.{1}"]
)
@pytest.mark.parametrize(("name", "module"), [("fit", "settings"), ("export", "request"), ("train", "settings")])
def test_a_package_that_is_called_is_one_object_whatever_was_imported_before(first, name, module):
    code = f"""{first.format(name, module)}
import json, sys, xdoge
from xdoge import {name}
import xdoge.{name}.{module}
same = xdoge.{name} is {name} is sys.modules["xdoge.{name}"]
print(json.dumps([callable({name}), same, "torch" in sys.modules]))
"""
    assert fresh(code) == [True, True, False]


def test_a_package_that_is_called_goes_to_its_function():
    from xdoge.fit.trainer import fit

    with pytest.raises(TypeError, match=r"fit\(\) missing"):
        xdoge.fit()
    assert inspect.signature(xdoge.fit) == inspect.signature(fit)
    assert pickle.loads(pickle.dumps(xdoge.fit)) is xdoge.fit
