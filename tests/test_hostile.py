"""Foreign or damaged files are either read, or refused with one line that names the file."""

from __future__ import annotations

import json
import os
import shutil
import time

import pytest
import yaml
from hostile import changed, cut_up, text_of
from hypothesis import given, settings
from hypothesis import strategies as st

from xdoge import Mixture, WeightSet
from xdoge.analysis.inputs import read_all
from xdoge.corpus import TokenStore
from xdoge.corpus.spec import Corpus
from xdoge.errors import XDogeError
from xdoge.eval.results import Results, Row
from xdoge.io import read_json
from xdoge.mixtures.mixture import Share


def save_mixture(path, mixture):
    mixture.save(path)
    assert Mixture.load(path) == mixture
    repr((mixture, mixture.warnings()))


def save_weights(path, weights):
    weights.save(path)
    assert WeightSet.load(path) == weights
    repr((weights, weights._repr_html_(), weights.languages))


def save_results(path, results):
    results.save(path)
    assert Results.load(path) == results


def read_store(path, store):
    repr((store, store.sequence_counts(4)))
    for source in store.sources:
        assert len(store.flat(source)) == store.document_bounds(source)[-1] == store.tokens()[source]


READERS = {
    "weights.json": (WeightSet.load, save_weights),
    "mixture.json": (Mixture.load, save_mixture),
    "results.json": (Results.load, save_results),
    "store.json": (lambda path: TokenStore.open(path.parent), read_store),
    "corpus.yaml": (Corpus.load, lambda path, corpus: repr(corpus)),
}
ABOUT = {
    "method": {"steps": 40, "nested": [[1, {"a": None}]]},
    "proxy": {"name": "125m", "parameters": 10, "tokens_seen": 20},
    "corpus": {"name": "tiny", "sha256": "ab"},
    "spread": {
        "sets": 2,
        "standard_deviation": {"es/web": 0.1, "es/wiki": 0.1, "eu/wiki": 0.0},
        "languages": {"standard_deviation": {"es": 0.1, "eu": 0.0}},
    },
}
OUTCOME = {"task": "xnli", "outcome": "ran", "language": "eu", "metric": "acc", "n": 40, "prompts": "ab"}
SETTINGS = {
    "perplexity": {"125m": {"tokenizer": "ab", "text": {"es/web": {"sha256": "ab"}}}},
    "benchmarks": {"iberobench": {"125m": {"outcomes": [OUTCOME]}}},
}
every_file = pytest.mark.parametrize("name", READERS)


@pytest.fixture(scope="module")
def files(store, corpus, tmp_path_factory):
    """A folder for each kind of file, with a good file and the files that it needs."""
    folder = tmp_path_factory.mktemp("hostile")
    shutil.copytree(corpus.parent, folder / "corpus.yaml")
    shutil.copytree(store.path, folder / "store.json")
    for name in ("weights.json", "mixture.json", "results.json"):
        (folder / name).mkdir()
    weights = WeightSet("125m", {"es/web": 0.5, "es/wiki": 0.2, "eu/wiki": 0.3}, floor=0.01, **ABOUT)
    mixture = Mixture.plan(weights, available_tokens=dict.fromkeys(weights.sources, 9_000), budget_tokens=40_000)
    row = Row("125m", "es", "perplexity", "bits_per_byte", 1.25, 0.01, 40, False)
    table = Results.of([row, Row("125m", "eu", "xnli", "acc", 0.5, None, 40, True)], settings=SETTINGS)
    for name, value in (("weights.json", weights), ("mixture.json", mixture), ("results.json", table)):
        value.save(folder / name / name)
    return {name: (folder / name / name, (folder / name / name).read_bytes()) for name in READERS}


def attempt(files, name, content):
    """Read content as a file of that kind, use it and write it again. Return the error if there is one."""
    path, good = files[name]
    path.write_bytes(content)
    load, use = READERS[name]
    try:
        use(path, load(path))
        if name in ("weights.json", "mixture.json", "results.json"):
            read_all([("another", path)])
    except XDogeError as error:
        message = str(error)
        assert "\n" not in message
        assert str(path.parent) in message
        return message
    finally:
        path.write_bytes(good)
    return None


@every_file
def test_a_good_file_is_read(files, name):
    assert attempt(files, name, files[name][1]) is None


@every_file
@settings(max_examples=80)
@given(data=st.data())
def test_values_that_were_changed_are_read_or_refused(files, name, data):
    value = changed(yaml.safe_load(files[name][1]), data)
    attempt(files, name, text_of(name, value))


@every_file
@settings(max_examples=60)
@given(data=st.data())
def test_bytes_that_were_changed_are_read_or_refused(files, name, data):
    attempt(files, name, cut_up(files[name][1], data))


@every_file
@settings(max_examples=20)
@given(content=st.binary(max_size=200))
def test_any_bytes_are_refused(files, name, content):
    assert attempt(files, name, content)


@every_file
def test_a_line_given_twice_is_refused(files, name):
    lines = files[name][1].splitlines(keepends=True)
    for number, line in enumerate(lines):
        if b'": ' in line or line.startswith(b"name:"):
            assert attempt(files, name, b"".join([*lines[:number], line.rstrip(b",\n") + b",\n", *lines[number:]]))


# --- cases suggested by reading the code -----------------------------------------------------------------------------


@every_file
def test_a_folder_in_place_of_a_file_is_refused(files, name):
    path, good = files[name]
    path.unlink()
    path.mkdir()
    with pytest.raises(XDogeError, match=str(path.parent)):
        READERS[name][0](path)
    path.rmdir()
    path.symlink_to(path)
    with pytest.raises(XDogeError, match=str(path.parent)):
        READERS[name][0](path)
    path.unlink()
    path.write_bytes(good)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "is not JSON: 'c' is given twice"),
        ('{"a": NaN}', "is not JSON: NaN is not a number"),
        ('{"a": [-Infinity]}', "is not JSON: -Infinity is not a number"),
        ('{"a": 1e999}', "is not JSON: Out of range float values"),
        ('{"a": ' + "9" * 5000 + "}", "is not JSON: a number has at most"),
        ('{"a": "\\ud800"}', "is not JSON: .* surrogates not allowed"),
        ('{"a\\nb": 1}', r"is not JSON: the key 'a\\nb' holds a control character"),
        ('{"a": ' + "[" * 100_000, "is not JSON: maximum recursion depth exceeded"),
    ],
)
def test_json_says_what_is_wrong_with_it(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(XDogeError, match=f"a.json {message}"):
        read_json(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system [touch hacked]", "is not YAML: could not determine a constructor"),
        ("a: !!timestamp x", "is not YAML"),
        ('a: "\\e[31m"', r"line 1: '\\x1b' is a control character"),
        ("a: 0x" + "f" * 5000, "line 1: a number has at most 40 digits"),
        ("a: " + "[" * 2000, "is not YAML: maximum recursion depth exceeded"),
        ("a: &a [*a]", "a is not a known key"),
        ("a: &a {b: 1}\nc: {<<: [*a, *a]}", "is not YAML"),
        ("".join(f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(30)), "is not YAML"),
        ("a0: &a0 x\n" + "".join(f"a{n + 1}: &a{n + 1} [*a{n}, *a{n}]\n" for n in range(50)), "is not a known key"),
    ],
)
def test_yaml_says_what_is_wrong_with_it(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "corpus.yaml"
    path.write_text(text + "\n")
    with pytest.raises(XDogeError, match=f"corpus.yaml.*{message}"):
        Corpus.load(path)
    assert os.listdir(tmp_path) == ["corpus.yaml"]


ODD = ("es", "/web", "es/", "es//web", "../web", "es/../../web", "es/./web", "еs/web")


@pytest.mark.parametrize("source", [*ODD, "es/web\u202e", "es/\nweb", "es/w\0"])
def test_an_unusual_name_is_not_a_valid_source(source):
    with pytest.raises(XDogeError, match=r"weights\['.*'\]: a source is named language/source, as in 'eu/wikipedia'"):
        WeightSet("x", {source: 1.0})
    with pytest.raises(XDogeError, match="a source is named language/source"):
        Mixture("x", 5, None, 0, {source: Share(1.0, 1.0, 5, 5)})


@pytest.mark.parametrize("name", ["..", "a/b", "a\\b", ".hidden", "wеb", "", "a" * 101])
def test_a_name_that_would_leave_its_folder_is_not_allowed_in_a_corpus(files, name):
    good = yaml.safe_load(files["corpus.yaml"][1])
    sources = good["languages"]["es"]["sources"]
    good["languages"]["es"]["sources"] = {name: sources["web"]}
    assert "cannot be a name" in attempt(files, "corpus.yaml", text_of("corpus.yaml", good))


@pytest.mark.slow
def test_time_grows_in_proportion_to_the_number_of_sources(tmp_path):
    path = tmp_path / "weights.json"
    languages = {f"l{number}": 1e-5 for number in range(10**5)}
    sources = {f"{name}/web": weight for name, weight in languages.items()}
    value = {"schema": "xdoge.weights/1", "name": "x", "sources": sources, "languages": languages}
    path.write_text(json.dumps(value))
    begin = time.process_time()
    assert len(WeightSet.load(path).sources) == 10**5
    path.write_text(json.dumps(value | {"languages": languages | {"l7": 0.5}}))
    with pytest.raises(XDogeError, match=r"languages\['l7'\] is 0.5, but its sources sum to 1e-05"):
        WeightSet.load(path)
    assert time.process_time() - begin < 60  # nested loops would take hours
