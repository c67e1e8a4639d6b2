"""The hierarchy of exceptions, and messages that name arguments in the spelling of Python or the command line."""

from __future__ import annotations

import pickle

import pytest

from xdoge import errors
from xdoge.errors import (
    Interrupted,
    MissingExtraError,
    XDogeError,
    XDogeException,
    argument,
    names_that_differ,
    require,
)


def test_handlers_of_errors_do_not_swallow_an_interruption():
    assert not issubclass(Interrupted, XDogeError)
    assert issubclass(Interrupted, XDogeException)
    assert issubclass(XDogeError, XDogeException)


def test_the_drawn_hierarchy_names_every_exception():
    classes = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert [cls.__name__ for cls in classes if cls.__name__ not in (errors.__doc__ or "")] == []


def test_an_interruption_has_the_exit_status_of_its_signal():
    assert Interrupted(15, "terminated").exit_code == 143


def test_python_names_an_argument_as_python_spells_it():
    assert str(XDogeError(f"Raise {argument('max_epochs')}.")) == "Raise max_epochs."
    assert str(Interrupted(2, f"{argument('resume', True)} continues")) == "resume=True continues"


def test_a_front_end_spells_the_arguments_of_a_quoted_message():
    inner = XDogeError(f"Raise {argument('max_epochs', 3)}.")
    outer = XDogeError(f"m.json: {inner.message}")
    assert outer.spelled(lambda name, value: f"<{name}|{value}>") == "m.json: Raise <max_epochs|3>."


def test_a_missing_library_is_named_with_its_extra():
    require("proxy", "json")
    with pytest.raises(MissingExtraError, match=r"no_such_library.*xdoge\[proxy\]"):
        require("proxy", "json", "no_such_library")


def test_names_that_differ_are_few_and_guess_what_was_meant():
    text = names_that_differ("a", ["es/web", "x", *"pqrst"], "b", ["es/webb", "x"])
    assert "only in a: es/web, p, q, r, s and 1 more (did you mean es/webb?)" in text
    assert names_that_differ("a", ["x"], "b", ["x"]) == ""


@pytest.mark.parametrize(
    "error", [MissingExtraError("torch", "proxy"), Interrupted(15, "stopped; use \ufdd0resume\ufdd1")]
)
def test_every_error_survives_pickle(error):
    """Errors of worker processes are pickled."""
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
