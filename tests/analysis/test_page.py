"""The page of a report: all text is escaped, and a browser without a network draws every chart."""

from __future__ import annotations

import json
import shlex
from html.parser import HTMLParser
from pathlib import Path

import altair as alt
import pandas as pd
import pytest
from browser import browse

from xdoge import Mixture, WeightSet, compare
from xdoge.analysis.page import Figure, Section, render
from xdoge.analysis.report import _commands
from xdoge.analysis.tables import TextTable

HOSTILE = "</script><script>alert('x')</script><b>&amp;"


def chart(name="a"):
    frame = pd.DataFrame({"language": [name, "eu"], "weight": [0.25, 0.75]})
    drawn = alt.Chart(frame, description="A describes it.").mark_bar()
    return drawn.encode(x="language", y="weight", tooltip=["language", "weight"])


class Outline(HTMLParser):
    """Tags, and the text of headings, captions and cells."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.headings, self.labels = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        if tag == "th":
            assert values["scope"] in ("col", "row")
        if values.get("role") == "img":
            self.labels.append(values["aria-label"])

    def handle_data(self, data):
        if self.tags and self.tags[-1] in ("h1", "h2") and data.strip():
            self.headings.append(data)


def page(*figures):
    table = TextTable("Weights", ("language", "weight"), [("eu", "0.75"), (HOSTILE, "0.25")])
    section = Section(HOSTILE, (HOSTILE,), (HOSTILE,), figures, (table,), (f"xdoge compare {HOSTILE}",))
    return render("Title", HOSTILE, [section, Section("Second")])


def test_text_is_escaped_wherever_it_stands():
    outline = Outline(page())
    assert "script" not in outline.tags
    assert "b" not in outline.tags
    assert outline.headings == ["Title", HOSTILE, "Second"]
    assert outline.tags.count("th") == 4
    assert outline.tags.count("td") == 2


def test_text_of_a_chart_cannot_end_the_script():
    text = page(Figure(chart(HOSTILE), "caption"))
    outline = Outline(text)
    assert outline.tags.count("script") == 3  # the library, the charts as data, ours
    assert outline.labels == ["A describes it."]
    assert "<script>alert" not in text


def test_a_page_without_charts_has_no_library():
    assert len(page()) < 20_000


def test_nothing_is_fetched():
    text = page(Figure(chart(), "caption"))
    own = text.split("<script>")[0]
    assert "src=" not in own.replace("default-src", "")
    assert "<link" not in own
    assert len(text) < 10_000_000


@pytest.mark.parametrize("options", [(), ("--force-dark-mode", "--blink-settings=preferredColorScheme=0")])
def test_a_browser_draws_every_chart(tmp_path, options):
    path = tmp_path / "page.html"
    path.write_text(page(Figure(chart(), "one"), Figure(chart(HOSTILE), "two")), encoding="utf-8")
    document, errors = browse(path, *options)
    assert errors == []
    assert document.count('data-drawn="yes"') == 2


def test_a_chart_that_fails_is_noticed(tmp_path):
    path = tmp_path / "page.html"
    broken = page(Figure(chart(), "one")).replace('"mark": {"type": "bar"}', '"mark": {"type": "no such"}')
    path.write_text(broken, encoding="utf-8")
    document, errors = browse(path)
    assert 'data-drawn="yes"' not in document
    assert "chart 0" in errors[0]


def test_the_report_of_a_comparison_is_drawn_and_says_how_to_repeat_it(xdoge, tmp_path):
    sizes = {"es/web": 40_000, "eu/web": 3_000}
    for name, share in (("uniform", 0.5), ("learned", 0.7)):
        weights = WeightSet(name, {"es/web": share, "eu/web": 1 - share})
        weights.save(tmp_path / f"{name}-weights.json")
        planned = Mixture.plan(weights, available_tokens=sizes, budget_tokens=40_000, max_epochs=4)
        planned.save(tmp_path / f"{name}.json")
    files = [tmp_path / f"{name}{end}.json" for name in ("uniform", "learned") for end in ("-weights", "")]
    out = tmp_path / "report.html"
    status, printed, err = xdoge("compare", *files, "--html", out)
    assert (status, printed.splitlines()[-1]) == (0, str(out)), err
    assert xdoge("compare", *files, "--html", out)[::2] == (
        1, f"error: {out} exists; name another file, or replace it with --force.\n",
    )  # fmt: skip
    text = out.read_text(encoding="utf-8")
    outline = Outline(text)
    *parts, how, files_and_hashes, repeat = outline.headings[1:]
    assert parts == ["Conclusion", "Warnings", "Weights", "Mixtures"]
    assert "equal shares" in text.partition("Warnings</h2>")[0]  # the conclusion in words, and the best chart with it
    assert text.partition("Warnings</h2>")[0].count("<figure") == 1
    assert (how, files_and_hashes, repeat) == ("How to read the differences", "Files", "Commands to repeat it")
    assert all(file.sha256 in text for file in compare(files).files)
    assert f"xdoge compare {files[0]}" in text
    assert "xdoge mix uniform --store STORE --budget 40000 --max-epochs 4 --level sources --seed 0" in text
    assert "xdoge mix WEIGHTS.json --store STORE --budget 40000 --max-epochs 4 --level sources --seed 0" in text
    assert "# learned, which follows learned" in text
    charts = len(compare(files).charts)
    assert text.count("<figure") == charts >= 4
    document, errors = browse(out)
    assert errors == []
    assert document.count('data-drawn="yes"') == charts


def test_the_commands_to_repeat_the_runs_repeat_them(xdoge, store, recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = ["learning_rate=0.00001", "targets={es/web: 1, eu/wiki: 2}", "gram_every=0", "device=cpu"]
    chosen = [word for value in values for word in ("--set", value)]
    options = ["--proxy", recipe, "--steps", 3, "--seed", 5]
    assert xdoge("fit-weights", store.path, "--out", "fit run", *options, "--floor", 0.01, *chosen)[0] == 0
    assert xdoge("baseline", "doge", store.path, "--out", "doge", *options, "--set", "sequence_length=12")[0] == 0
    mixing = ["--store", store.path, "--budget", 1280, "--max-epochs", "none", "--out", "mixture.json"]
    assert xdoge("mix", "fit run", *mixing)[0] == 0
    size = ["--steps", 2, "--batch-size", 4, "--seed", 3, "--set", "sequence_length=16", "--set", "clip=0.5"]
    assert xdoge("train", "mixture.json", "--store", store.path, "--out", "trained", "--model", recipe, *size)[0] == 0
    lines = _commands(compare(["fit run", "doge", "trained"]), "")
    assert [line.split()[1] for line in lines] == ["fit-weights", "baseline", "train"]
    keys = {word.partition("=")[0] for word in shlex.split(lines[0], comments=True) if "=" in word}
    typed = {"floor", *(value.partition("=")[0] for value in values)}
    assert typed <= keys <= typed | {"eval_every", "eval_sequences"}  # the schedule depends on the validation text
    for line in lines:
        status, _, err = xdoge(*shlex.split(line, comments=True)[1:])
        assert status == 0, err
    for name, file in (("fit run", "weights.json"), ("doge", "weights.json"), ("trained", "train.json")):
        first, second = (json.loads(Path(folder, file).read_text()) for folder in (name, f"{name}-again"))
        for changing in ("created", "seconds", "tokens_per_second", "validation_share"):
            first.pop(changing, None), second.pop(changing, None)
        assert first == second
