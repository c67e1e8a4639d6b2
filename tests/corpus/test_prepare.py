from __future__ import annotations

import errno
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from corpora import contents, documents, edit, held_out, write, write_documents

from xdoge.cli.progress import Display
from xdoge.corpus import Tokenizer, TokenStore, prepare
from xdoge.corpus.manifest import claimed
from xdoge.corpus.spec import TrainTokenizer
from xdoge.corpus.tokenizer import sentencepiece_model, train
from xdoge.errors import Interrupted, XDogeError
from xdoge.io import locked
from xdoge.names import split_source
from xdoge.progress import Event

SOURCES = ("eu/wiki", "eu/web", "gl/web", "en/web")


@pytest.fixture(scope="module")
def model() -> bytes:
    return train(documents(9, 500), TrainTokenizer(vocab_size=320), where="here")


@pytest.fixture
def corpus(tmp_path: Path, model: bytes) -> Path:
    """Four sources in three languages, and a tokenizer."""
    folder = tmp_path / "corpus"
    for number, source in enumerate(SOURCES):
        write_documents(folder / f"{source}.jsonl", documents(number, 150 * (number + 1)))
    (folder / "tokenizer.model").write_bytes(model)
    languages: dict[str, Any] = {}
    for source in SOURCES:
        language, name = split_source(source)
        entry = languages.setdefault(language, {"family": f"family of {language}", "sources": {}})
        entry["sources"][name] = {"files": f"{source}.jsonl"}
    value = {"name": "tiny", "tokenizer": {"sentencepiece": "tokenizer.model"}, "languages": languages}
    write(folder / "corpus.yaml", value)
    return folder / "corpus.yaml"


def texts_of(store: TokenStore, source: str, split: Any = "train") -> list[list[int]]:
    flat, bounds = store.flat(source, split), store.document_bounds(source, split)
    return [flat[start:end].tolist() for start, end in itertools.pairwise(bounds)]


def encoded(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [tokenizer.encode([text])[0].tolist() for text in texts]


def test_a_store_holds_every_document_once_in_order(corpus: Path, tmp_path: Path) -> None:
    edit(corpus, lambda value: value.update(validation={"fraction": 0.1}))
    store = prepare(corpus, tmp_path / "store", workers=2)
    assert store.sources == SOURCES
    assert store.languages == {"eu": ("eu/wiki", "eu/web"), "gl": ("gl/web",), "en": ("en/web",)}
    for number, source in enumerate(SOURCES):
        texts = documents(number, 150 * (number + 1))
        for split, wanted in (("train", False), ("validation", True)):
            part = [text for text in texts if held_out(text, 0.1) is wanted]
            assert len(part) > 5
            assert texts_of(store, source, split) == encoded(store.tokenizer(), part)
            assert store.documents(split)[source] == len(part)
            assert store.tokens(split)[source] == len(store.flat(source, split))
            assert store.n_bytes(split)[source] == sum(len(text.encode()) for text in part)
    assert store.warnings == ()
    store.verify()
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [
        ".lock",
        "corpus.yaml",
        "sources",
        "store.json",
        "tokenizer",
        "tokens",
    ]


def test_datasets_reads_the_token_files(corpus: Path, tmp_path: Path) -> None:
    import datasets

    store = prepare(corpus, tmp_path / "store", workers=2)
    theirs = datasets.Dataset.from_file(str(tmp_path / "store/tokens/gl/web.train.arrow"))
    assert theirs["input_ids"][:] == texts_of(store, "gl/web")
    assert theirs[3]["input_ids"][-1] == store.end_of_document


def test_the_number_of_workers_changes_no_byte(corpus: Path, tmp_path: Path) -> None:
    texts = ["" if n % 3 else text for n, text in enumerate(documents(5, 90_000, words=50))]
    write_documents(corpus.parent / "gl/web.jsonl", texts)
    edit(corpus, _set("languages", "gl", "sources", "web", "max_tokens", to="20K"))
    for workers in (1, 3):
        prepare(corpus, tmp_path / str(workers), workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")
    with pytest.raises(XDogeError, match="workers is 0; it must be at least 1"):
        prepare(corpus, tmp_path / "0", workers=0)


def test_a_validation_file_leaves_training_whole(corpus: Path, tmp_path: Path) -> None:
    held = documents(77, 20)
    write_documents(corpus.parent / "held.jsonl", held)
    edit(corpus, lambda value: value["languages"]["eu"]["sources"]["wiki"].update(validation="held.jsonl"))
    store = prepare(corpus, tmp_path / "store", workers=2)
    assert texts_of(store, "eu/wiki") == encoded(store.tokenizer(), documents(0, 150))
    assert texts_of(store, "eu/wiki", "validation") == encoded(store.tokenizer(), held)
    entry = json.loads((tmp_path / "store/store.json").read_text())["sources"]["eu/wiki"]
    assert [file["path"] for file in entry["validation_inputs"]] == ["held.jsonl"]


def test_the_same_text_under_two_names_is_refused(corpus: Path, tmp_path: Path) -> None:
    folder, source = corpus.parent, yaml.safe_load(corpus.read_text())["languages"]["gl"]["sources"]["web"]
    (folder / "gl/web (1).jsonl").write_bytes((folder / "gl/web.jsonl").read_bytes())
    for settings in ({"validation": "gl/web (1).jsonl"}, {"files": "gl/web*.jsonl"}):
        edit(corpus, _set("languages", "gl", "sources", "web", to={**source, **settings}))
        with pytest.raises(
            XDogeError, match=r"gl\.sources\.web\.\w+: gl/web( \(1\))?\.jsonl has the same bytes as .*gl/web"
        ):
            prepare(corpus, tmp_path / "store", workers=2)
        assert not (tmp_path / "store").exists()
    edit(corpus, _set("languages", "gl", "sources", "web", to=source))
    prepare(corpus, tmp_path / "store", workers=2)
    edit(corpus, _set("languages", "gl", "sources", "more", to={"files": "gl/web (1).jsonl"}))
    with pytest.raises(XDogeError, match=r"gl\.sources\.more\.files: .* of gl/web \(train\)"):
        prepare(corpus, tmp_path / "store", workers=2)


def test_validation_files_may_repeat_a_stated_share_of_the_training_documents(corpus: Path, tmp_path: Path) -> None:
    held = [*documents(2, 450)[::15], *documents(77, 170)]  # 30 of 200 are training documents
    write_documents(corpus.parent / "held.jsonl", held + held[:50])
    edit(corpus, _set("languages", "gl", "sources", "web", "validation", to="held.jsonl"))
    with pytest.raises(XDogeError, match=r"gl\.sources\.web.*\d+ of the 200 documents .* more than 10%"):
        prepare(corpus, tmp_path / "store", workers=2)
    edit(corpus, _set("validation", to={"overlap": 0.15}))
    for workers in (1, 3):
        store = prepare(corpus, tmp_path / str(workers), workers=workers)
        assert "gl/web: 30 documents of its validation files are training documents too." in store.warnings
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_validation_text_that_differs_from_training_text_in_white_space_only_is_recognised(
    corpus: Path, tmp_path: Path
) -> None:
    spaced = ["  " + text.replace(" ", "\r\n ") + "\n" for text in documents(2, 450)[::15]]
    write_documents(corpus.parent / "held.jsonl", [*spaced, *documents(77, 170)])
    edit(corpus, _set("languages", "gl", "sources", "web", "validation", to="held.jsonl"))
    with pytest.raises(XDogeError, match=r"gl\.sources\.web.*\d+ of the 200 documents .* more than 10%"):
        prepare(corpus, tmp_path / "store", workers=2)


def test_a_language_that_the_tokenizer_does_not_know_is_warned_of(corpus: Path, tmp_path: Path) -> None:
    greek = [f"{n} γειά σου κόσμε {text}" for n, text in enumerate(documents(3, 100))]
    write_documents(corpus.parent / "gl/web.jsonl", greek)
    for fallback, kind, share in ((False, "<unk>", (0.05, 0.5)), (True, "single bytes", (0.2, 0.9))):
        spec = TrainTokenizer(vocab_size=300 if fallback else 90, byte_fallback=fallback)
        (corpus.parent / "tokenizer.model").write_bytes(train(documents(9, 500), spec, where="here"))
        store = prepare(corpus, tmp_path / kind, workers=2)
        (warning,) = (line for line in store.warnings if kind in line)
        assert warning.startswith("gl/web: ")
        assert share[0] < float(warning.split()[1].removesuffix("%")) / 100 < share[1]
        ids, unknown = store.flat("gl/web"), {row.source: row.unknown_share for row in store.table()}
        assert unknown["gl/web"] == pytest.approx(float((ids == 0).mean()))
        assert unknown["en/web"] == 0


def test_metadata_files_of_spark_are_not_read_as_text(corpus: Path, tmp_path: Path) -> None:
    (corpus.parent / "gl/web.jsonl").rename(corpus.parent / "gl/part-1.jsonl")
    for name in ("_SUCCESS", "._SUCCESS.crc", ".part-1.jsonl.crc", "_committed_12", "_temporary/0/part-9.jsonl"):
        (corpus.parent / "gl" / name).parent.mkdir(parents=True, exist_ok=True)
        (corpus.parent / "gl" / name).write_text("{}")
    (corpus.parent / "gl/part-2.jsonl").write_bytes(b"")
    for pattern in ("gl/*", "gl/**", "gl/**/*"):
        edit(corpus, _set("languages", "gl", "sources", "web", to={"files": pattern}))
        store = prepare(corpus, tmp_path / pattern.replace("/", "").replace("*", "+"), workers=2)
        assert store.documents()["gl/web"] + store.documents("validation")["gl/web"] == 450
        assert "gl/web: 1 of 2 files have no rows, such as gl/part-2.jsonl." in store.warnings
    (corpus.parent / "gl/_extra.jsonl").write_text('{"text": "kept"}')
    store = prepare(corpus, tmp_path / "again", workers=2)
    assert store.documents()["gl/web"] + store.documents("validation")["gl/web"] == 451


def test_many_small_files_are_one_text_and_a_bad_one_is_named(corpus: Path, tmp_path: Path) -> None:
    texts, folder = documents(7, 450), corpus.parent / "gl/small"
    for number in range(150):
        write_documents(folder / f"{number:03}.jsonl", texts[3 * number : 3 * number + 3])
    write_documents(corpus.parent / "gl/web.jsonl", texts)
    together = prepare(corpus, tmp_path / "one", workers=2)
    edit(corpus, _set("languages", "gl", "sources", "web", to={"files": "gl/small/*.jsonl"}))
    many = prepare(corpus, tmp_path / "many", workers=2)
    for split in ("train", "validation"):
        assert texts_of(many, "gl/web", split) == texts_of(together, "gl/web", split)
    assert [entry["rows"] for entry in json.loads((many.path / "sources/gl/web.json").read_text())["inputs"]] == [
        3
    ] * 150
    middle, next_one = (folder / f"07{number}.jsonl" for number in (0, 1))
    late = "\n" * 150  # after the rows that are checked in advance
    for content, after, message in (
        ('{"text": "a"}\n{"text": 3}\n', "", r"small/070\.jsonl: line 2: 'text' is '3'"),
        ('{"title": "a"}\n', "", r"small/070\.jsonl has no column 'text'; it has title"),
        ('{"text": "a"\n', '}\n{"text": "b"}\n', r"small/070\.jsonl: line 1 is not JSON"),
        ('{"text": "a"}' + late + '{"text": {"b": 1}}\n', "", r"small/070\.jsonl: line 151: 'text' is"),
        (
            '{"text": "a"}' + late + '{"text": "b"',
            '}\n{"text": "b"}\n',
            r"small/07[01]\.jsonl: line 1(51)? is not JSON",
        ),
    ):
        middle.write_text(content)
        next_one.write_text(after or '{"text": "b"}\n')
        with pytest.raises(XDogeError, match=r"gl\.sources\.web\.files: .*" + message):
            prepare(corpus, tmp_path / "bad", workers=2)


FEW_FILES = """
import resource, sys
from xdoge.corpus import prepare
resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))
print(len(prepare(sys.argv[1], sys.argv[2], workers=8).sources))
"""


def test_many_sources_need_few_open_files(corpus: Path, tmp_path: Path) -> None:
    sources = {}
    for number in range(60):
        write_documents(corpus.parent / f"gl/{number}.jsonl", documents(100 + number, 4))
        sources[f"s{number}"] = {"files": f"gl/{number}.jsonl"}
    edit(corpus, _set("languages", "gl", "sources", to=sources))
    command = [sys.executable, "-c", FEW_FILES, str(corpus), str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("63\n", "")


SLOW = """
import os, sys, time
from xdoge.__main__ import main
from xdoge.corpus.tokenizer import Tokenizer
def encode(self, texts):
    os.write(1, b"encoding\\n")  # at once, since two threads encode
    time.sleep(120)
Tokenizer.encode = encode
sys.argv[1:] = ["prepare", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_obeyed_during_a_long_document(corpus: Path, tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-c", SLOW, str(corpus), "--out", str(tmp_path / "store")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "encoding\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert err.splitlines()[-1].endswith("Run the same command again to continue.")
    assert not (tmp_path / "store/.spool").exists()
    prepare(corpus, tmp_path / "store", workers=2)


def test_max_tokens_ends_with_the_document_that_reaches_it(corpus: Path, tmp_path: Path) -> None:
    write_documents(corpus.parent / "en/web.jsonl", texts := documents(5, 60_000))
    assert (corpus.parent / "en/web.jsonl").stat().st_size > 6 * 2**19  # so that reading, too, can stop early
    edit(corpus, lambda value: value["languages"]["en"]["sources"]["web"].update(max_tokens="20K"))
    seen: list[Event] = []
    store = prepare(corpus, tmp_path / "store", workers=1, on_progress=seen.append)
    got = texts_of(store, "en/web")
    train = [text for text in texts if not held_out(text, 0.005)]
    assert got == encoded(store.tokenizer(), train[: len(got)])
    assert store.tokens()["en/web"] - len(got[-1]) < 20_000 <= store.tokens()["en/web"]
    assert texts_of(store, "en/web", "validation") == encoded(
        store.tokenizer(), [text for text in texts[: texts.index(train[len(got) - 1])] if held_out(text, 0.005)]
    )
    assert max(event.done for event in seen if event.name == "en/web") < 50_000


def test_rows_without_text_are_left_out_and_counted(corpus: Path, tmp_path: Path) -> None:
    with (corpus.parent / "gl/web.jsonl").open("a") as file:
        file.write('{"text": ""}\n{"text": " \\n"}\n{"text": null}\n{"id": 4}\n\n')
    store = prepare(corpus, tmp_path / "store", workers=2)
    assert store.documents()["gl/web"] + store.documents("validation")["gl/web"] == 450
    assert store.warnings[0] == "gl/web: 4 empty rows left out."


def test_a_source_without_validation_is_warned_of(corpus: Path, tmp_path: Path) -> None:
    edit(corpus, lambda value: value.update(validation={"fraction": 0}))
    store = prepare(corpus, tmp_path / "store", workers=2)
    assert store.warnings[0] == (
        "eu/wiki: every document was assigned to training, so its validation loss cannot be measured."
    )
    assert len(store.flat("eu/wiki", "validation")) == 0
    assert store.document_bounds("eu/wiki", "validation").tolist() == [0]
    assert store.sequence_counts(4, "validation")["eu/wiki"] == 0


def test_a_source_of_empty_rows_is_an_error(corpus: Path, tmp_path: Path) -> None:
    write_documents(corpus.parent / "gl/web.jsonl", ["", " "])
    with pytest.raises(XDogeError, match=r"gl\.sources\.web\.files: no document to train on: all its rows are empty"):
        prepare(corpus, tmp_path / "store", workers=2)
    assert not list((tmp_path / "store").rglob("gl*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda folder: (folder / "eu/web.jsonl").write_bytes(b""),
            r"eu\.sources\.web\.files: .*eu/web\.jsonl is empty",
        ),
        (
            lambda folder: (folder / "en/web.jsonl").write_bytes(b'{"text": "a"}\n{"text": "\xff"}\n'),
            r"en\.sources\.web\.files: .*en/web\.jsonl: line 2 is not UTF-8",
        ),
        (
            lambda folder: (folder / "gl/web.jsonl").write_bytes(b'{"body": "a"}\n'),
            r"gl\.sources\.web\.files: .*gl/web\.jsonl has no column 'text'; it has body",
        ),
        (
            lambda folder: (
                edit(
                    folder / "corpus.yaml", _set("languages", "gl", "sources", "web", "validation", to=["en/held.txt"])
                )
                or (folder / "en/held.txt").write_bytes(b"\n")
            ),
            r"gl\.sources\.web\.validation: .*en/held\.txt is empty",
        ),
        (
            lambda folder: edit(
                folder / "corpus.yaml",
                _set("languages", "gl", "sources", "web", to={"dataset": "eu", "config": "news"}),
            ),
            r"gl\.sources\.web\.dataset: eu config news cannot be read",
        ),
        (
            lambda folder: (folder / "tokenizer.model").write_bytes(b"x"),
            r"tokenizer\.sentencepiece: .*tokenizer\.model is not a SentencePiece",
        ),
        (
            lambda folder: edit(folder / "corpus.yaml", _set("tokenizer", to={"huggingface": "eu"})),
            r"tokenizer\.huggingface: .*eu cannot be read as a Hugging Face tokenizer",
        ),
        (lambda folder: (folder / "en/web.jsonl").unlink(), r"en\.sources\.web\.files: .*web\.jsonl does not exist"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    corpus: Path, tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    change(corpus.parent)
    with pytest.raises(XDogeError, match=rf"^{re.escape(str(corpus))}: (languages\.)?{message}") as caught:
        prepare(corpus, tmp_path / "store", workers=2)
    assert "\n" not in str(caught.value)
    assert str(caught.value).count("corpus.yaml") == 1
    assert not (tmp_path / "store").exists()


def spoil(path: Path) -> None:
    """Add a bad row after the part of the file that is checked in advance."""
    with path.open("a") as file:
        file.write('{"text": "' + "palabra " * 100_000 + '"}\n{"text": 7}\n')


@pytest.mark.parametrize("tokenizer", [{"sentencepiece": "tokenizer.model"}, {"train": {"vocab_size": 310}}])
@pytest.mark.parametrize("field", ["files", "validation"])
def test_a_row_that_turns_out_bad_names_source_file_and_line(
    corpus: Path, tmp_path: Path, tokenizer: dict[str, Any], field: str
) -> None:
    edit(corpus, _set("tokenizer", to=tokenizer))
    spoil(corpus.parent / "gl/web.jsonl")
    if field == "validation":
        edit(corpus, _set("languages", "gl", "sources", "web", to={"files": "gl/new.jsonl", field: "gl/web.jsonl"}))
        write_documents(corpus.parent / "gl/new.jsonl", documents(66, 40))
    where = rf"^{re.escape(str(corpus))}: languages\.gl\.sources\.web\.{field}: .*gl/web\.jsonl: line 452: "
    with pytest.raises(XDogeError, match=where + "'text' is '7', which is not text.$"):
        prepare(corpus, tmp_path / "store", workers=2)
    if field == "files":
        with pytest.raises(XDogeError, match=r"store is not finished; run the same xdoge prepare again"):
            TokenStore.open(tmp_path / "store")
    else:  # read before anything is written
        assert not (tmp_path / "store").exists()
    assert not (tmp_path / "store/.spool").exists()


KILLED = """
import os, signal, sys
from xdoge.corpus import prepare
def kill(event):
    first_is_finished = os.path.exists(sys.argv[2] + "/sources/eu/wiki.json")
    if (event.kind, event.name) == ("source", "gl/web") and first_is_finished:
        os.kill(os.getpid(), signal.SIGKILL)
prepare(sys.argv[1], sys.argv[2], workers=2, on_progress=kill)
"""


def test_a_killed_run_continues_and_ends_with_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    write_documents(corpus.parent / "gl/web.jsonl", documents(6, 30_000))
    whole = prepare(corpus, tmp_path / "whole", workers=2)
    tokens, lengths = whole.tokenizer().encode([t for t in documents(6, 30_000) if not held_out(t, 0.005)])
    assert np.array_equal(whole.flat("gl/web"), tokens)
    assert np.array_equal(whole.document_bounds("gl/web")[1:], np.cumsum(lengths))
    command = [sys.executable, "-c", KILLED, str(corpus), str(tmp_path / "killed")]
    assert subprocess.run(command, check=False).returncode == -9
    assert (tmp_path / "killed/.spool/gl/web/train.tokens").exists()
    assert not (tmp_path / "killed/store.json").exists()
    assert not (tmp_path / "killed/sources/gl/web.json").exists()
    (tmp_path / "killed/tokens/eu/.web.train.arrow.1.tmp").write_bytes(b"half")  # if it was writing at that moment
    seen: list[Event] = []
    store = prepare(corpus, tmp_path / "killed", workers=2, on_progress=seen.append)
    skipped = [event.name for event in seen if event.kind == "skip"]
    assert skipped == list(SOURCES[: len(skipped)])
    assert "eu/wiki" in skipped
    assert [event.name for event in seen if event.kind == "done"] == list(SOURCES[len(skipped) :])
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert store.tokens() == whole.tokens()


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), Interrupted(15, "terminated")])
@pytest.mark.parametrize("moment", [("scan", ""), ("tokenizer", ""), ("source", "gl/web"), ("done", "eu/wiki")])
def test_an_interrupted_run_cleans_up_and_continues(
    corpus: Path, tmp_path: Path, stop: BaseException, moment: tuple[str, str]
) -> None:
    edit(corpus, _set("tokenizer", to={"train": {"vocab_size": 310}}))

    def interrupt(event: Event) -> None:
        if (event.kind, event.name if moment[1] else "") == moment:
            raise stop

    with pytest.raises(type(stop)):
        prepare(corpus, tmp_path / "store", workers=2, on_progress=interrupt)
    assert not (tmp_path / "store/.spool").exists()
    assert not list(tmp_path.rglob("*.tmp"))
    prepare(corpus, tmp_path / "store", workers=2)
    prepare(corpus, tmp_path / "whole", workers=2)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


@pytest.mark.parametrize("where", ["spool", "token file", "marker"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    from xdoge.corpus.spool import Spool

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    original = os.fsync

    def full_for(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        if ("web.train.arrow" if where == "token file" else "web.json") in name:
            full()
        original(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(*((Spool, "add", full) if where == "spool" else (os, "fsync", full_for)))
        with pytest.raises(XDogeError, match="the disk is full; nothing was left half-written. Free space"):
            prepare(corpus, tmp_path / "store", workers=2)
    assert not list((tmp_path / "store").rglob("*.tmp"))
    assert not (tmp_path / "store/.spool").exists()
    assert not (tmp_path / "store/sources/eu/web.json").exists()
    prepare(corpus, tmp_path / "store", workers=2)
    prepare(corpus, tmp_path / "whole", workers=2)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_an_input_that_vanishes_is_named(corpus: Path, tmp_path: Path) -> None:
    def vanish(event: Event) -> None:
        if event.kind == "scan" and event.done == event.total:
            (corpus.parent / "gl/web.jsonl").unlink()

    with pytest.raises(XDogeError, match=r"gl\.sources\.web\.files: .*gl/web\.jsonl (was removed|cannot be read)"):
        prepare(corpus, tmp_path / "store", workers=1, on_progress=vanish)


def test_training_a_tokenizer_says_how_far_it_is_and_on_how_much_text(corpus: Path, tmp_path: Path) -> None:
    edit(corpus, _set("tokenizer", to={"train": {"vocab_size": 310}}))
    seen: list[Event] = []
    prepare(corpus, tmp_path / "store", workers=1, on_progress=seen.append)
    read = [event for event in seen if event.name == "text for the tokenizer"]
    assert read[-1].done == read[-1].total
    said = [event.name for event in seen if event.kind == "tokenizer"]
    assert [line.split()[0] for line in said] == ["sampling", "training", "trained"]
    assert "bytes of text" in said[1]


def test_a_finished_store_is_left_as_it_is(corpus: Path, tmp_path: Path) -> None:
    first = prepare(corpus, tmp_path / "store", workers=2)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert prepare(corpus, tmp_path / "store", workers=2).sha256 == first.sha256
    assert times == {path: path.stat().st_mtime_ns for path in times}


def test_a_changed_input_is_noticed_and_refreshed_alone(corpus: Path, tmp_path: Path) -> None:
    store = prepare(corpus, tmp_path / "store", workers=2)
    file = corpus.parent / "gl/web.jsonl"
    os.utime(file)  # another time of change, the same bytes
    assert prepare(corpus, tmp_path / "store", workers=2).sha256 == store.sha256
    data = file.read_bytes()
    file.write_bytes(data.replace(b"casa", b"auga", 1))
    with pytest.raises(
        XDogeError, match=r"sources\.web: gl/web\.jsonl changed since it was prepared in .*; add refresh=True"
    ):
        prepare(corpus, tmp_path / "store", workers=2)
    TokenStore.open(tmp_path / "store").verify()  # the old store is whole
    seen: list[Event] = []
    fresh = prepare(corpus, tmp_path / "store", workers=2, refresh=True, on_progress=seen.append)
    assert [event.name for event in seen if event.kind == "done"] == ["gl/web"]
    assert fresh.sha256 != store.sha256
    prepare(corpus, tmp_path / "again", workers=2)
    assert contents(tmp_path / "store") == contents(tmp_path / "again")
    file.unlink()
    with pytest.raises(XDogeError, match=r"gl/web\.jsonl does not exist"):
        prepare(corpus, tmp_path / "store", workers=2)


def _set(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        for key in keys[:-1]:
            value = value[key]
        value[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            _set("validation", to={"fraction": 0.2}),
            r"eu\.sources\.wiki: validation fraction changed from 0\.005 to 0\.2 since it was prepared",
        ),
        (
            _set("languages", "en", "sources", "web", "max_tokens", to=9),
            r"en\.sources\.web: max_tokens changed from None to 9 since it",
        ),
        (
            _set("languages", "eu", "sources", "wiki", "files", to=["eu/wiki.jsonl", "more.jsonl"]),
            r"eu\.sources\.wiki: more\.jsonl was added since it was prepared",
        ),
        (
            _set("languages", "eu", "sources", "wiki", "files", to="more.jsonl"),
            r"eu\.sources\.wiki: eu/wiki\.jsonl was removed since it was prepared",
        ),
        (
            _set("languages", "eu", "sources", "wiki", "validation", to="more.jsonl"),
            r"validation fraction changed from 0\.005 to None since it",
        ),
        (_set("tokenizer", to={"train": {"vocab_size": 310}}), r"eu\.sources\.wiki: the tokenizer changed since it"),
        (_set("tokenizer", to={"sentencepiece": "other.model"}), r"eu\.sources\.wiki: the tokenizer changed since it"),
    ],
)
def test_changed_settings_are_noticed(
    corpus: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    write_documents(corpus.parent / "more.jsonl", documents(55, 30))
    other = train(documents(8, 300), TrainTokenizer(vocab_size=315), where="here")
    (corpus.parent / "other.model").write_bytes(other)
    prepare(corpus, tmp_path / "store", workers=2)
    edit(corpus, change)
    with pytest.raises(XDogeError, match=message):
        prepare(corpus, tmp_path / "store", workers=2)
    prepare(corpus, tmp_path / "store", workers=2, refresh=True)
    prepare(corpus, tmp_path / "again", workers=2)
    assert contents(tmp_path / "store") == contents(tmp_path / "again")


def test_settings_that_affect_no_token_can_change(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "store", workers=2)
    write_documents(corpus.parent / "eu/new.jsonl", documents(66, 40))
    edit(corpus, _set("languages", "eu", "family", to="isolate"))
    edit(corpus, _set("languages", "eu", "sources", "new", to={"files": "eu/new.jsonl", "license": "cc0"}))
    seen: list[Event] = []
    store = prepare(corpus, tmp_path / "store", workers=2, on_progress=seen.append)
    assert [event.name for event in seen if event.kind == "done"] == ["eu/new"]
    assert store.families["eu"] == "isolate"
    assert store.languages["eu"] == ("eu/wiki", "eu/web", "eu/new")


def test_an_old_store_stays_whole_when_an_added_source_fails(corpus: Path, tmp_path: Path) -> None:
    before = prepare(corpus, tmp_path / "store", workers=2)
    write_documents(corpus.parent / "eu/new.jsonl", documents(66, 40))
    edit(corpus, _set("languages", "eu", "sources", "new", to={"files": "eu/new.jsonl"}))
    spoil(corpus.parent / "eu/new.jsonl")
    with pytest.raises(XDogeError, match=r"eu/new\.jsonl: line 42: .*which is not text\.$"):
        prepare(corpus, tmp_path / "store", workers=2)
    old = TokenStore.open(tmp_path / "store")
    old.verify()
    assert (old.sha256, old.sources) == (before.sha256, SOURCES)
    write_documents(corpus.parent / "eu/new.jsonl", documents(66, 40))
    assert "eu/new" in prepare(corpus, tmp_path / "store", workers=2).sources


def test_an_old_store_stays_whole_until_a_file_of_it_is_replaced(corpus: Path, tmp_path: Path) -> None:
    before = prepare(corpus, tmp_path / "store", workers=2)
    web = corpus.parent / "gl/web.jsonl"
    good, time = web.read_bytes(), web.stat().st_mtime_ns
    spoil(corpus.parent / "gl/web.jsonl")
    with pytest.raises(XDogeError, match=r"gl/web\.jsonl: line 452: .*which is not text\.$"):
        prepare(corpus, tmp_path / "store", workers=2, refresh=True)
    TokenStore.open(tmp_path / "store").verify()
    assert TokenStore.open(tmp_path / "store").sha256 == before.sha256
    write_documents(corpus.parent / "eu/wiki.jsonl", documents(7, 90))  # comes first, and is replaced
    with pytest.raises(XDogeError, match=r"which is not text\. .*store is unfinished; .*run the same"):
        prepare(corpus, tmp_path / "store", workers=2, refresh=True)
    with pytest.raises(XDogeError, match=r"store is not finished; run the same xdoge prepare again"):
        TokenStore.open(tmp_path / "store")
    web.write_bytes(good)
    os.utime(web, ns=(time, time))
    seen: list[Event] = []
    prepare(corpus, tmp_path / "store", workers=2, refresh=True, on_progress=seen.append)
    assert [event.name for event in seen if event.kind == "done"] == []  # eu/wiki was finished by the run that failed
    prepare(corpus, tmp_path / "again", workers=2)
    assert contents(tmp_path / "store") == contents(tmp_path / "again")


def test_a_damaged_token_file_is_made_again(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "store", workers=2)
    before = contents(tmp_path / "store")
    file = tmp_path / "store/tokens/gl/web.train.arrow"
    file.write_bytes(file.read_bytes()[:-8])
    prepare(corpus, tmp_path / "store", workers=2)
    assert contents(tmp_path / "store") == before


def test_folders_with_other_content_are_refused(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    with pytest.raises(XDogeError, match=r"mine is not empty and not a token store; name another folder"):
        prepare(corpus, tmp_path / "mine", workers=2)
    with pytest.raises(XDogeError, match=r"thesis\.txt is a file; out "):
        prepare(corpus, tmp_path / "mine/thesis.txt", workers=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/.preparing.json.1.tmp").write_text("")  # killed at its very first file
    prepare(corpus, tmp_path / "empty", workers=2)


def test_a_file_that_changes_while_it_is_read_is_refused(corpus: Path, tmp_path: Path) -> None:
    file = corpus.parent / "gl/web.jsonl"

    def append(event: Event) -> None:
        if (event.kind, event.name) == ("source", "eu/wiki"):
            file.write_bytes(file.read_bytes() + b'{"text": "berria"}\n')

    with pytest.raises(
        XDogeError, match=r"gl\.sources\.web\.files: gl/web\.jsonl changed while it was being read; run"
    ):
        prepare(corpus, tmp_path / "store", workers=2, on_progress=append)
    assert not (tmp_path / "store/sources/gl/web.json").exists()


def test_two_at_once_do_not_share_a_folder(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    with locked(tmp_path / "store"), pytest.raises(XDogeError, match="store is in use by another process; wait for"):
        prepare(corpus, tmp_path / "store", workers=2)


def test_one_of_two_runs_that_start_at_the_same_time_is_refused(tmp_path: Path) -> None:
    for number in range(50):
        out, barrier, outcomes = tmp_path / str(number), threading.Barrier(2), []

        def begin(out: Path = out, barrier: threading.Barrier = barrier, outcomes: list[str] = outcomes) -> None:
            barrier.wait()
            try:
                with claimed(out):
                    outcomes.append("claimed")
                    barrier.wait()
            except XDogeError as error:
                outcomes.append(str(error))
                barrier.wait()

        threads = [threading.Thread(target=begin) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == sorted(["claimed", f"{out} is in use by another process; wait for it or stop it."])


def test_a_marker_that_is_damaged_is_named(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "store", workers=2)
    marker = tmp_path / "store/sources/eu/wiki.json"
    for damage in ({"train": 3}, {"inputs": None}):
        marker.write_text(json.dumps(json.loads(marker.read_text()) | damage))
        with pytest.raises(XDogeError, match=r"eu/wiki\.json is damaged; delete it to tokenise eu/wiki"):
            prepare(corpus, tmp_path / "store", workers=2)
    marker.unlink()
    prepare(corpus, tmp_path / "store", workers=2)


def test_a_trained_tokenizer_is_the_same_everywhere_and_kept(corpus: Path, tmp_path: Path) -> None:
    settings = {"train": {"vocab_size": 310, "characters_per_language": 5_000}}
    edit(corpus, _set("tokenizer", to=settings))
    first = prepare(corpus, tmp_path / "one", workers=2)
    assert first.vocab_size == 310
    assert contents(tmp_path / "one") == contents(prepare(corpus, tmp_path / "two", workers=1).path)
    write_documents(corpus.parent / "eu/new.jsonl", documents(66, 40))
    edit(corpus, _set("languages", "eu", "sources", "new", to={"files": "eu/new.jsonl"}))
    seen: list[Event] = []
    second = prepare(corpus, tmp_path / "one", workers=2, on_progress=seen.append)
    assert second.tokenizer_fingerprint == first.tokenizer_fingerprint  # finished tokens stay valid
    assert not [event for event in seen if event.kind == "tokenizer"]
    edit(corpus, _set("tokenizer", to={"train": {"vocab_size": 90_000}}))
    with pytest.raises(
        XDogeError, match=r"corpus\.yaml: tokenizer\.train: vocab_size 90000 is more than .* at most \d+"
    ):
        prepare(corpus, tmp_path / "three", workers=2)


def test_training_hears_every_language_and_source_alike(corpus: Path, tmp_path: Path) -> None:
    # "zz" is only in the smallest source; a sample in proportion to size would hardly have it
    write_documents(corpus.parent / "eu/wiki.jsonl", ["zzzz zzzz zzzz zzzz"] * 60)
    write_documents(corpus.parent / "en/web.jsonl", documents(3, 20_000))
    settings = {"train": {"vocab_size": 310, "characters_per_language": 2_000}}
    edit(corpus, _set("tokenizer", to=settings))
    store = prepare(corpus, tmp_path / "store", workers=2)
    assert len(store.tokenizer().encode(["zzzz zzzz"])[0]) <= 4


def test_progress_tells_scan_sources_and_totals(corpus: Path, tmp_path: Path) -> None:
    seen: list[Event] = []
    store = prepare(corpus, tmp_path / "store", workers=2, on_progress=seen.append)
    assert [(e.done, e.total) for e in seen if e.kind == "scan"] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    ends = [event for event in seen if event.kind == "done"]
    assert [(e.name, e.done, e.total) for e in ends] == [
        (source, 150 * (n + 1), 150 * (n + 1)) for n, source in enumerate(SOURCES)
    ]
    counts = [store.tokens(split) for split in ("train", "validation")]
    assert [event.tokens for event in ends] == [sum(split[source] for split in counts) for source in SOURCES]


def test_without_a_terminal_progress_is_plain_lines(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with Display() as display:
        prepare(corpus, tmp_path / "store", workers=2, on_progress=display.show)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("eu/wiki: 150 documents, ")
    with Display() as display:
        prepare(corpus, tmp_path / "store", workers=2, on_progress=display.show)
    assert capsys.readouterr().err.splitlines()[0] == "eu/wiki: already finished, kept"
    monkeypatch.setattr("xdoge.cli.progress.LINE_SECONDS", 0.0)
    with Display() as display:
        display.show(Event("scan", done=1, total=2))
        display.show(Event("source", "eu/web", 500, 1_000, 9_000))
    first, second = capsys.readouterr().err.splitlines()
    assert first == "reading files: 1 of 2"
    assert second.startswith("eu/web: 500 of 1,000 documents, 9,000 tokens, ETA unknown")


def test_on_a_terminal_every_source_has_a_bar(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    with Display() as display:
        prepare(corpus, tmp_path / "store", workers=2, on_progress=display.show)
    shown = capsys.readouterr().err
    for source in SOURCES:
        assert source in shown
    assert "600/600" in shown


def test_the_tokenizer_lies_in_the_store(corpus: Path, tmp_path: Path, model: bytes) -> None:
    store = prepare(corpus, tmp_path / "store", workers=2)
    assert (tmp_path / "store/tokenizer/tokenizer.model").read_bytes() == model
    assert store.tokenizer().fingerprint == sentencepiece_model(model, where="").fingerprint
    assert (tmp_path / "store/corpus.yaml").read_text() == corpus.read_text()


@pytest.mark.skipif("XDOGE_REAL_DATA" not in os.environ, reason="needs the real corpus: XDOGE_REAL_DATA=FOLDER")
def test_the_real_corpus_has_the_tokens_it_is_known_to_have(tmp_path: Path) -> None:
    folder = Path(os.environ["XDOGE_REAL_DATA"])
    known = json.loads((folder / "tokenizer/iberian-16k.tokens.json").read_text())
    documents = json.loads((folder / "corpus/counts.json").read_text())
    store = prepare(folder / "corpus/corpus.yaml", tmp_path / "store")
    assert len(store.sources) == 28
    for split, theirs in (("train", "train"), ("validation", "valid")):
        for source in store.sources:
            count = store.documents(split)[source]
            assert count == documents[f"{source}/{theirs}"]["documents"]
            # the known counts are without end-of-document tokens
            assert store.tokens(split)[source] - count == known[f"{source}/{theirs}"]
            ends = store.document_bounds(source, split)[1:] - 1
            assert np.all(store.flat(source, split)[ends] == store.end_of_document)
