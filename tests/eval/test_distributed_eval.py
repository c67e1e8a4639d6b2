"""Evaluation on several processes: the same values as on one, and a failure in one process fails in all."""

from __future__ import annotations

import json
import socket

import forked
import numpy as np
import pytest
from eval_ranks import ask, work
from tiny_models import save_llama

TEXT = {
    "gl": ["O can dorme.", "Unha casa verde a carón da auga", "Non, grazas", "Terra e mar, " * 9],
    "eu": ["Txakurra lo dago.", "Ur ondoko etxe berde bat", "Ez, eskerrik asko", "Lurra eta itsasoa, " * 9],
}


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def asked(store, tmp_path_factory):
    """Folder of a small model, the folder of some questions, and text files by language."""
    folder = tmp_path_factory.mktemp("asked")
    shape = {"vocab_size": store.vocab_size, "max_position_embeddings": 512}
    save_llama(folder / "model", factor=1, **shape, bos_token_id=None, eos_token_id=None, use_cache=False)
    store.tokenizer().export(folder / "model")
    words = [f"{word} berde {n}" for n, word in enumerate(("etxe", "ur", "bide", "mahai", "liburu", "katu", "lur"))]
    nli = [{"question": word, "sentence": f"{word} bat", "label": n % 2} for n, word in enumerate(words)]
    lines(folder / "data/qnlieu/test.jsonl", nli)
    lines(folder / "data/qnlieu/validation.jsonl", nli[::-1])
    lines(folder / "data/escola/validation.jsonl", [{"Sentence": word, "Label": n % 2} for n, word in enumerate(words)])
    pairs = [{"sentence1": word, "sentence2": f"{word} da", "label": n % 2} for n, word in enumerate(words)]
    lines(folder / "data/wnli_eu/validation.jsonl", pairs)
    lines(folder / "data/bec2016eu/test.jsonl", [{"text": word, "label": n % 3} for n, word in enumerate(words)])
    text = {
        name: lines(folder / f"{name}.jsonl", [{"text": document, "id": n} for n, document in enumerate(documents)])
        for name, documents in TEXT.items()
    }
    return str(folder / "model"), folder / "data", text


@pytest.fixture(scope="module")
def ended(asked, tmp_path_factory):
    """Folder with the files of two processes. The second fails in two tasks, and then dies."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    ranks = [forked.context().Process(target=work, args=(rank, address, folder, *asked)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(300)
        assert not process.is_alive()
    return folder


def test_several_processes_give_the_same_numbers(asked, ended):
    first, second = (json.loads((ended / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first == second
    alone = ask(*asked, None)
    for source, totals in alone["totals"].items():
        np.testing.assert_allclose(first["totals"][source], totals, rtol=1e-6)
    for task in ("qnlieu", "bec2016eu"):
        _, _, value, prompts = alone["outcomes"][task]
        assert first["outcomes"][task] == ["ran", "", pytest.approx(value), prompts]


def test_a_task_that_fails_in_one_process_fails_in_all_and_the_next_runs(ended):
    outcomes = json.loads((ended / "rank0.json").read_text())["outcomes"]
    assert outcomes["escola"][:2] == ["failed", "RuntimeError: CUDA out of memory"]
    assert outcomes["wnli_eu"][:2] == ["no data", "not on this machine"]
    assert outcomes["bec2016eu"][0] == "ran"
    kept = sorted(file.name.rpartition("-")[0] for file in (ended / "partial").iterdir())
    assert kept == ["bec2016eu", "eu", "gl", "qnlieu"]


def test_a_process_that_dies_stops_the_others_in_a_line_that_names_it(ended):
    assert (ended / "rank1.end").read_text() == "RuntimeError: a bug of ours"
    said = (ended / "rank0.end").read_text()
    assert said.startswith("LostProcessError: process 1 of 2 (numbered from 0) died or no longer answers")
