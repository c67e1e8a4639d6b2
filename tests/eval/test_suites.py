"""Suites: those of xdoge agree with the published tables, and users can extend them."""

from __future__ import annotations

import csv
import itertools
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xdoge.errors import XDogeError
from xdoge.eval.suite import HarnessSettings, Suite, SuiteTask, suite_names

real = pytest.mark.skipif("XDOGE_REAL_DATA" not in os.environ, reason="XDOGE_REAL_DATA names no folder of real text")


def suite(*tasks, name="mine", **fields):
    return Suite.parse({"name": name, "tasks": list(tasks), **fields}, where="mine.yaml")


def table(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_that_ships_loads(name):
    loaded = Suite.find(name)
    assert loaded.name == name
    assert loaded.num_fewshot == 5
    assert {task.language for task in loaded.tasks} <= {"en", "es", "ca", "gl", "eu", "pt"}
    for task in loaded.tasks:
        assert task.guessing == 0 or task.output_type == "multiple_choice"
        assert 0 <= task.guessing < task.max


def test_the_derived_suites_are_parts_of_iberobench():
    whole = {task.task: task for task in Suite.find("iberobench").tasks}
    parts = {name: Suite.find(name).tasks for name in suite_names() if name != "iberobench"}
    assert all(whole[task.task] == task for tasks in parts.values() for task in tasks)
    assert {task.language for task in parts["belebele"]} == {"en", "es", "ca", "gl", "eu", "pt"}
    assert all(task.output_type == "multiple_choice" for task in parts["iberobench-mc"])
    iberian = ["es", "ca", "gl", "eu", "pt"]
    pairs = {"-".join(pair) for pair in itertools.permutations(iberian, 2)}
    assert {task.task.rpartition("_")[2] for task in parts["flores-iberian"]} == pairs
    assert len(parts["flores-iberian"]) == 2 * len(pairs)  # each pair is listed in both languages


@real
def test_every_task_of_the_published_tables_is_there():
    folder = Path(os.environ["XDOGE_REAL_DATA"]) / "iberobench"
    details = {(row["language"], row["name_in_paper"]): row for row in table(folder / "TASKS_DETAILS.csv")}
    shipped = Suite.find("iberobench").tasks
    seen, other_chance = set(), []
    for row in table(folder / "TASKS.csv"):
        name, language = row["lm_eval_task"], row["language"]
        if row["output_type"] == "group":  # spanish_bench and its like: the tasks are rows of their own
            continue
        if name == "missing in lm-eval":
            name = f"veritasqa_{row['name_in_paper'].partition('-')[2].lower()}_{language}"
        tasks = [task for task in shipped if name in (task.task, task.group)]
        assert tasks, name
        for task in tasks:
            assert (task.language, task.metric, task.output_type) == (language, row["metric"], row["output_type"])
            assert task.name == row["name_in_paper"] or task.group == name
            seen.add(task.task)
            chance = details[language, row["name_in_paper"]]["bsc_random_baseline"]
            if chance and task.guessing / task.max != pytest.approx(float(chance) / 100, abs=1e-3):
                other_chance.append(task.task)
    assert seen == {task.task for task in shipped}
    # the tables use a chance of 1/3 for ASSIN, although its tasks have two answers
    assert other_chance == ["assin_entailment", "assin_paraphrase"]


@given(
    chance=st.floats(0, 0.9),
    top=st.sampled_from([1.0, 100.0]),
    scores=st.lists(st.floats(-1, 1), min_size=2, max_size=2, unique=True),
)
def test_normalised_scores_have_chance_at_0_the_best_at_100_and_keep_the_order(chance, top, scores):
    task = SuiteTask(task="t", language="eu", chance=chance * top, max=top)
    assert task.normalised(task.guessing) == 0
    assert task.normalised(top) == pytest.approx(100)
    low, high = sorted(score * top for score in scores)
    assert task.normalised(low) <= task.normalised(high)
    assert (task.normalised(low) < 0) == (low < task.guessing)
    assert task.normalised(high) - task.normalised(low) == pytest.approx(task.per_unit * (high - low))


def test_chance_follows_from_the_number_of_choices():
    chances = {n: SuiteTask(task="t", language="eu", choices=n).guessing * 100 for n in (2, 3, 4)}
    assert chances == pytest.approx({2: 50, 3: 100 / 3, 4: 25})
    assert SuiteTask(task="t", language="eu", metric="mcc").normalised(-0.25) == -25
    assert SuiteTask(task="t", language="eu", choices=4).normalised(0.1) == pytest.approx(-20)


def test_a_users_suite_can_extend_another(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "name: base\nnum_fewshot: 3\ntasks:\n"
        "  - {task: a_eu, language: eu, choices: 2}\n"
        "  - {task: b_eu, language: eu, metric: bleu, output_type: generate_until, max: 100}\n"
        "  - {task: a_gl, language: gl, choices: 2}\n"
    )
    (tmp_path / "mine.yaml").write_text(
        "name: mine\nextends: base.yaml\nonly: {task: [a_*, c_*], language: eu}\n"
        "tasks: [{task: c, language: en, chance: 0.1}]\n"
    )
    mine = Suite.find(str(tmp_path / "mine.yaml"))
    assert [task.task for task in mine.tasks] == ["a_eu", "c"]
    assert (mine.name, mine.num_fewshot) == ("mine", 3)
    (tmp_path / "few.yaml").write_text("extends: iberobench-mc\nonly: {language: gl}\nnum_fewshot: 0\n")
    mine = Suite.find(str(tmp_path / "few.yaml"))
    assert {(task.language, task.output_type) for task in mine.tasks} == {("gl", "multiple_choice")}
    assert (mine.name, mine.num_fewshot) == ("few", 0)


def test_a_misspelt_suite_is_named_with_those_that_exist():
    with pytest.raises(XDogeError, match=r"iberobnch .*belebele, flores-iberian, .* did you mean iberobench\?$"):
        Suite.find("iberobnch")
    with pytest.raises(XDogeError, match="nowhere.yaml does not exist."):
        Suite.find("nowhere.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: a\nextends: a.yaml\n", "a.yaml: suites extend each other in a circle"),
        ("name: a\nextends: belebele\nonly: {lang: eu}\n", "a.yaml: only has lang, .* task, "),
        ("name: a\nextends: belebele\nonly: eu\n", "a.yaml: only is not a mapping"),
        ("name: a\nextends: belebele\nonly: {language: fr}\n", "no task of belebele .*{'language': 'fr'}"),
        ("name: a\nextends: belebel\n", "belebel is unknown.* did you mean belebele"),
        ("name: a\ntasks: []\n", "a.yaml: tasks: "),
        ("name: a\ntasks: [{task: t}]\n", "a.yaml: tasks.0.language is missing"),
        ("extends: belebele\ntasks: [{task: t}]\n", "a.yaml: tasks.0.language is missing"),  # as the file counts
        ("name: perplexity\ntasks: [{task: t, language: eu, choices: 2}]\n", "name: 'perplexity' cannot be a name"),
        ("name: a\ntasks: [{task: t, language: eu, metrc: f1}]\n", "a.yaml: tasks.0.metrc is not a known key"),
        ("tasks: [truthfulqa]", "tasks.0 is 'truthfulqa'; write it as {task: NAME"),
        ("tasks: [{task: t, language: gl}]", "t is multiple choice: give choices, or chance"),
    ],
)
def test_what_is_wrong_with_a_suite_is_one_line(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(text)
    with pytest.raises(XDogeError, match=message):
        Suite.find("a.yaml")


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([{"task": "t", "language": "eu"}] * 2, "t is listed twice"),
        ([{"task": "mine", "language": "eu"}], "mine is the name of the suite and of one of its tasks"),
        ([{"task": "t", "language": "eu", "group": "mine"}], "mine is the name of the suite and of one of its tasks"),
        ([{"task": "t", "language": "eu", "choices": 2, "chance": 0.5}], "t has both choices and chance"),
        ([{"task": "t", "language": "eu", "chance": 1}], "t has chance 1, which is not below max 1"),
        ([{"task": "../t", "language": "eu"}], "'../t' cannot be a name"),
        ([{"task": "t", "language": "*"}], "'\\*' cannot be a name"),
        (
            [{"task": "a", "language": "eu", "group": "g"}, {"task": "b", "language": "gl", "group": "g"}],
            "the tasks of g have several languages or metrics",
        ),
        (
            [{"task": "a", "language": "eu", "group": "g"}, {"task": "g", "language": "eu"}],
            "g is both a task and a group of others",
        ),
    ],
)
def test_tasks_with_the_same_row_in_tables_are_refused(tasks, message):
    tasks = [task if task.keys() & {"choices", "chance"} else {**task, "choices": 2} for task in tasks]
    with pytest.raises(XDogeError, match=message):
        suite(*tasks)


def test_every_setting_says_what_it_is_for():
    assert all(field.description for field in HarnessSettings.model_fields.values())
    with pytest.raises(XDogeError, match="limit: it must be above 0"):
        HarnessSettings.parse({"limit": 0}, where="settings")


def test_a_suite_of_published_tasks_only_needs_their_names(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("tasks: [{task: qnlieu, num_fewshot: 0}, {task: cola}, {task: xquad_ca}]")
    suite, published = Suite.find(str(path)), {task.task: task for task in Suite.find("iberobench").tasks}
    assert suite.name == "mine"
    assert suite.tasks[0] == published["qnlieu"].model_copy(update={"num_fewshot": 0})
    assert suite.tasks[1:] == (published["cola"], published["xquad_ca"])


def test_another_scale_replaces_the_published_one(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("tasks: [{task: qnlieu, chance: 0.4}]")
    assert Suite.find(str(path)).tasks[0].guessing == 0.4
