"""`xdoge demo`: it goes the whole way, goes on after a stop, and says what came out."""

from __future__ import annotations

from types import SimpleNamespace

from command_line import one_line

from xdoge.cli.demo import LIMITS, conclusion
from xdoge.study.intervals import Interval

SOURCES = ("es/web", "eu/web")


def findings(**differences: Interval | None) -> SimpleNamespace:
    """Return findings of two languages in which equal shares end at 2 bits per byte."""
    rows = [{"strategy": "uniform", "macro": 2.0, "better": [], "worse": []}]
    for name, interval in differences.items():
        macro = None if interval is None else 2.0 + interval.mean
        rows.append({"strategy": name, "macro": macro, "better": ["es"], "worse": []})
    store = SimpleNamespace(tokens=lambda: dict(zip(SOURCES, (900, 100), strict=True)))
    store.languages = {"es": SOURCES[:1], "eu": SOURCES[1:]}
    spec = SimpleNamespace(relative_to="uniform")
    study = SimpleNamespace(spec=spec, store=store, own_steps=10, tokens_per_step=200)
    return SimpleNamespace(
        study=study, rows=lambda kind: rows, difference=lambda kind, name, measure: differences.get(name)
    )


def test_the_conclusion_says_which_differences_are_significant():
    better, worse = Interval(-0.1, -0.15, -0.05, 3), Interval(0.1, 0.05, 0.15, 3)
    text = " ".join(conclusion(findings(law=better, fit=worse)))
    assert "eu, 10.0 times" in text
    assert "law, they end 0.100 ± 0.050 bits per byte lower (5.0%): significantly better than equal shares." in text
    assert "fit, they end 0.100 ± 0.050 bits per byte higher (5.0%): significantly worse than equal shares." in text
    assert "law is significantly better in es." in text
    assert text.endswith(LIMITS)


def test_the_conclusion_does_not_praise_what_chance_may_explain():
    text = " ".join(conclusion(findings(law=Interval(-0.1, -0.25, 0.05, 3), fit=Interval(0.0, -0.1, 0.1, 3))))
    assert text.count("not significantly different") == 2


def test_the_conclusion_names_a_mixture_without_a_result():
    text = " ".join(conclusion(findings(law=None, fit=Interval(0.0, -0.1, 0.1, 3))))
    assert "no result of law" in text


def test_a_folder_that_holds_something_else_is_refused(xdoge, tmp_path):
    out = tmp_path / "demo"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    status, _, err = xdoge("demo", "--out", out)
    assert (status, "is not empty; remove it, or name another" in one_line(err)) == (1, True)
    assert [path.name for path in out.iterdir()] == ["thesis.tex"]
