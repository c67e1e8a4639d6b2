"""A store that several processes prepare is the one that a single process makes."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from command_line import one_line
from corpora import contents, documents, edit, write, write_documents

from xdoge.corpus import TokenStore, prepare
from xdoge.corpus.shards import Shard, ShardCounts, join_shards, prepare_shard
from xdoge.corpus.spec import TrainTokenizer
from xdoge.corpus.tokenizer import train
from xdoge.errors import XDogeError
from xdoge.progress import Event

TRAINED = {"train": {"vocab_size": 310, "characters_per_language": 5_000}}


@pytest.fixture(scope="module")
def model() -> bytes:
    return train(documents(9, 500), TrainTokenizer(vocab_size=320), where="here")


@pytest.fixture
def corpus(tmp_path: Path, model: bytes) -> Path:
    """Many small files, validation files, a source with max_tokens, a data set, and files in several formats."""
    folder = tmp_path / "corpus"
    for number in range(20):
        write_documents(folder / f"eu/many/{number:02}.jsonl", documents(number, 3 + number % 4))
    for number in range(3):
        texts = documents(50 + number, 40)
        write_documents(folder / f"eu/web/{number}.jsonl", texts)
        write_documents(folder / f"eu/held/{number}.jsonl", documents(70 + number, 10) + texts[:1])
    write_documents(folder / "gl/cut.jsonl", documents(90, 200))
    write_documents(folder / "gl/cut2.jsonl", documents(91, 200))
    write_documents(folder / "gl/set/train.jsonl", documents(92, 50))
    (folder / "en").mkdir()
    (folder / "en/a.txt").write_text("\n".join(documents(93, 60)) + "\n\n")
    (folder / "en/b.csv").write_text("text\n" + "".join(f'"{text}"\n' for text in documents(94, 60)))
    (folder / "en/empty.txt").write_text("")
    (folder / "tokenizer.model").write_bytes(model)
    languages = {
        "eu": {
            "many": {"files": "eu/many/*.jsonl"},
            "web": {"files": "eu/web/*.jsonl", "validation": "eu/held/*.jsonl"},
        },
        "gl": {"cut": {"files": ["gl/cut.jsonl", "gl/cut2.jsonl"], "max_tokens": 2_000}, "set": {"dataset": "gl/set"}},
        "en": {"web": {"files": ["en/a.txt", "en/empty.txt", "en/b.csv"]}},
    }
    value = {
        "name": "tiny",
        "tokenizer": {"sentencepiece": "tokenizer.model"},
        "validation": {"fraction": 0.1},
        "languages": {name: {"sources": sources} for name, sources in languages.items()},
    }
    write(folder / "corpus.yaml", value)
    return folder / "corpus.yaml"


def prepare_all(corpus: Path, out: Path, count: int) -> list[ShardCounts]:
    return [prepare_shard(corpus, out, Shard(number, count), workers=2) for number in range(count, 0, -1)]


@pytest.mark.parametrize("count", [2, 5, 60])
def test_a_joined_store_has_the_bytes_that_one_process_makes(corpus: Path, tmp_path: Path, count: int) -> None:
    whole = prepare(corpus, tmp_path / "whole", workers=2)
    shards = prepare_all(corpus, tmp_path / "store", count)
    with pytest.raises(XDogeError, match="store holds parts .* --join"):
        TokenStore.open(tmp_path / "store")
    store = join_shards(corpus, tmp_path / "store", workers=2)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")
    assert store.warnings == whole.warnings
    assert any("eu/web: 3 documents of its validation files" in line for line in store.warnings)
    assert sum(shard.files for shard in shards) == 20 + 6 + 2 + 1 + 3
    every = [store.tokens(split) for split in ("train", "validation")]
    assert sum(shard.tokens for shard in shards) == sum(sum(split.values()) for split in every)
    assert max(shard.files for shard in shards) < sum(shard.files for shard in shards)
    assert prepare(corpus, tmp_path / "store", workers=2).sha256 == store.sha256


KILLED = """
import os, signal, sys
from xdoge.corpus.shards import Shard, join_shards, prepare_shard
def kill(event):
    if (event.kind, event.name) == ("done", sys.argv[4]):
        os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "join":
    join_shards(*sys.argv[1:3], on_progress=kill)
else:
    prepare_shard(*sys.argv[1:3], Shard.parse(sys.argv[3]), on_progress=kill)
"""


def test_a_killed_shard_and_a_killed_join_continue(corpus: Path, tmp_path: Path) -> None:
    prepare(corpus, tmp_path / "whole", workers=2)
    out = tmp_path / "store"
    prepare_shard(corpus, out, Shard(2, 2), workers=2)
    for what, source, folder in (("1/2", "eu/many", out / "shards/1-of-2"), ("join", "eu/web", out)):
        command = [sys.executable, "-c", KILLED, str(corpus), str(out), what, source]
        assert subprocess.run(command, check=False).returncode == -9
        assert (folder / f"sources/{source}.json").exists()
        assert not (folder / "sources/en/web.json").exists()
        seen: list[Event] = []
        if what == "join":
            join_shards(corpus, out, workers=2, on_progress=seen.append)
        else:
            with pytest.raises(XDogeError, match=r"of its 2 shards, 1 is not finished; run shard=1/2 again"):
                join_shards(corpus, out, workers=2)
            prepare_shard(corpus, out, Shard(1, 2), workers=2, on_progress=seen.append)
        assert source in {event.name for event in seen if event.kind == "skip"}
    assert contents(out) == contents(tmp_path / "whole")


def test_shards_at_once_share_one_trained_tokenizer(corpus: Path, tmp_path: Path) -> None:
    edit(corpus, lambda value: value.update(tokenizer=TRAINED))
    prepare(corpus, tmp_path / "whole", workers=2)
    threads = [
        threading.Thread(target=prepare_shard, args=(corpus, tmp_path / "store", Shard(number, 3)))
        for number in (1, 2, 3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    join_shards(corpus, tmp_path / "store", workers=2)
    assert contents(tmp_path / "store") == contents(tmp_path / "whole")


def test_changes_between_shards_are_detected(corpus: Path, tmp_path: Path, model: bytes) -> None:
    prepare_all(corpus, tmp_path / "store", 2)
    file = corpus.parent / "eu/many/03.jsonl"
    before = file.read_bytes()
    file.write_bytes(before.replace(b"0 ", b"1 ", 1))
    with pytest.raises(XDogeError, match=r"eu\.sources\.many: eu/many/03\.jsonl changed since it was prepared"):
        join_shards(corpus, tmp_path / "store", workers=2)
    file.write_bytes(before)
    other = train(documents(8, 500), TrainTokenizer(vocab_size=320), where="here")
    (corpus.parent / "tokenizer.model").write_bytes(other)
    with pytest.raises(XDogeError, match="tokenizer: it differs from that of the other shards"):
        prepare_shard(corpus, tmp_path / "store", Shard(1, 2), workers=2)
    with pytest.raises(XDogeError, match="the tokenizer changed"):
        join_shards(corpus, tmp_path / "store", workers=2)
    (corpus.parent / "tokenizer.model").write_bytes(model)
    edit(corpus, lambda value: value["validation"].update(fraction=0.2))
    with pytest.raises(XDogeError, match=r"validation fraction changed from 0\.1 to 0\.2"):
        join_shards(corpus, tmp_path / "store", workers=2)
    edit(corpus, lambda value: value["validation"].update(fraction=0.1, overlap=0.05))
    with pytest.raises(XDogeError, match=r"eu\.sources\.web\.files: 3 of the 33 documents of its validation files"):
        join_shards(corpus, tmp_path / "store", workers=2)


def test_incompatible_settings_are_refused(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    for text in ("3", "0/4", "5/4", "1/0", "a/b", "-1/4", "1/4/4", ""):
        with pytest.raises(XDogeError, match="shard is "):
            Shard.parse(text)
    with pytest.raises(XDogeError, match="store holds no shard to join"):
        join_shards(corpus, out, workers=2)
    prepare_shard(corpus, out, Shard(2, 3), workers=2)
    with pytest.raises(XDogeError, match=r"of its 3 shards, 1, 3 are not finished; run shard=1/3 again"):
        join_shards(corpus, out, workers=2)
    with pytest.raises(XDogeError, match="store holds shards K/3, but shard is 1/4"):
        prepare_shard(corpus, out, Shard(1, 4), workers=2)
    with pytest.raises(XDogeError, match=r"store holds parts .* join=True, or delete .*shards"):
        prepare(corpus, out, workers=2)
    prepare(corpus, tmp_path / "finished", workers=2)
    with pytest.raises(XDogeError, match="finished holds a finished store"):
        prepare_shard(corpus, tmp_path / "finished", Shard(1, 3), workers=2)


def test_a_source_without_text_is_refused_when_its_shards_are_joined(corpus: Path, tmp_path: Path) -> None:
    for file in (corpus.parent / "eu/many").iterdir():
        write_documents(file, ["", " " * (1 + int(file.stem))])
    prepare_all(corpus, tmp_path / "store", 3)
    with pytest.raises(XDogeError, match=r"eu\.sources\.many\.files: no document to train on: all its rows"):
        join_shards(corpus, tmp_path / "store", workers=2)


def test_slurm_says_which_part_it_is(xdoge, corpus, tmp_path, monkeypatch):
    out = tmp_path / "store"
    for name, value in {"COUNT": "3", "MIN": "10", "STEP": "2"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    for task in (10, 12, 14):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(task))
        status, said, err = xdoge("prepare", corpus, "--out", out, "--workers", 1)
        assert status == 0, err
        assert f"part {(task - 8) // 2}/3 (from SLURM_ARRAY_TASK_ID={task}" in err
        assert f"xdoge prepare {corpus} --out {out} --join" in said
    _, said, err = xdoge("prepare", corpus, "--out", out, "--workers", 1, "--shard", "2/3", "--json")
    assert json.loads(said)["shard"] == "2/3"
    assert "SLURM" not in err
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "7")
    status, _, err = xdoge("prepare", corpus, "--out", out, "--workers", 1)
    assert status == 1
    assert "SLURM_ARRAY_TASK_ID=7" in one_line(err)
    assert xdoge("prepare", corpus, "--out", out, "--join")[0] == 0
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "10")
    status, _, err = xdoge("prepare", corpus, "--out", out)
    assert (status, "SLURM" in err) == (0, False)
    assert xdoge("prepare", corpus, "--out", tmp_path / "whole", "--shard", "1/1")[0] == 0
    assert contents(out) == contents(tmp_path / "whole")
    for wrong, word in (
        (["--shard", "4/3"], "--shard is 4/3"),
        (["--join", "--shard", "1/3"], "--join cannot be used with"),
        (["--join", "--refresh"], "--join cannot be used with"),
    ):
        status, _, err = xdoge("prepare", corpus, "--out", tmp_path / "more", *wrong)
        assert status == 1
        assert word in one_line(err)
