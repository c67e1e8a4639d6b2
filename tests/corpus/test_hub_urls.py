"""hf:// URLs, with a server on this machine that imitates the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import pytest
from file_servers import MODEL, Handler, Server, corpus, inputs, rows, served, tokens

from xdoge.corpus import prepare, remote
from xdoge.corpus.paths import find
from xdoge.corpus.remote import find_remote, local
from xdoge.errors import XDogeError

REPOSITORY = "datasets/team/texts"
FILES = f"/{REPOSITORY}/resolve/main/"


class HubHandler(Handler):
    """Answers the requests of HfFileSystem for one data set: its existence, its tree, and ranges of its files."""

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if not path.startswith("/api/"):
            super().do_GET()
            return
        self.server.requests.append((self.command, path, None))
        if path in (f"/api/{REPOSITORY}", f"/api/{REPOSITORY}/revision/main"):
            self._answer(200, {"id": "team/texts", "sha": "0" * 40})
        elif path.startswith(tree := f"/api/{REPOSITORY}/tree/main"):
            entries = self._tree(path.removeprefix(tree).strip("/"))
            self._answer(200 if entries else 404, entries, code="EntryNotFound")
        else:
            self._answer(401, {}, code="RepoNotFound")

    def _tree(self, folder: str) -> list[dict[str, Any]]:
        recursive = "recursive=true" in self.path.lower()
        entries: dict[str, dict[str, Any]] = {}
        for url, data in self.server.files.items():
            name = PurePosixPath(url.removeprefix(FILES))
            for part in (name, *name.parents[:-1]):
                if folder in map(str, part.parents if recursive else [part.parent]) or (
                    not folder and (recursive or len(part.parts) == 1)
                ):
                    sha = hashlib.sha1(data).hexdigest()
                    kind = {"type": "file", "size": len(data)} if part == name else {"type": "directory", "size": 0}
                    entries[str(part)] = {"path": str(part), "oid": sha, **kind}
        return list(entries.values())

    def _answer(self, status: int, value: object, *, code: str = "") -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        if status != 200:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    from huggingface_hub import HfFileSystem, constants

    monkeypatch.setenv("XDOGE_CACHE", str(tmp_path / "cache"))
    with served(Server(HubHandler)) as server:
        for name in ("HUGGINGFACE_CO_URL_TEMPLATE", "ENDPOINT"):  # what HF_ENDPOINT sets at import
            monkeypatch.setattr(constants, name, getattr(constants, name).replace(constants.ENDPOINT, server.url))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        names = ("a.jsonl", "b.jsonl", "deep/c.jsonl", ".hidden.jsonl", "README.md")
        server.files = {f"{FILES}data/{name}": rows(number) for number, name in enumerate(names)}
        server.files |= {f"{FILES}README.md": b"# Texts\n", f"{FILES}tokenizer.model": MODEL}
        yield server
        HfFileSystem.clear_instance_cache()


def test_patterns_of_a_data_set_on_the_hub_name_its_files(hub: Server, tmp_path: Path) -> None:
    root = f"hf://{REPOSITORY}/data"
    for pattern, names in (
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "deep/c.jsonl"]),
        ("{b,deep/c}.jsonl", ["b.jsonl", "deep/c.jsonl"]),
        ("[ab].jsonl", ["a.jsonl", "b.jsonl"]),
        ("", ["a.jsonl", "b.jsonl", "deep/c.jsonl"]),
    ):
        assert [str(file) for file in find([f"{root}/{pattern}"], tmp_path)] == [f"{root}/{name}" for name in names]
    for pattern in ("none.jsonl", "none*.jsonl"):
        with pytest.raises(XDogeError, match="none"):
            find([f"{root}/{pattern}"], tmp_path)
    with pytest.raises(XDogeError, match=r"hf://datasets/team/other/a\.jsonl"):
        find(["hf://datasets/team/other/a.jsonl"], tmp_path)


def test_a_store_of_files_on_the_hub_is_that_of_local_ones(hub: Server, tmp_path: Path) -> None:
    (tmp_path / "local").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / "local" / name).write_bytes(hub.files[f"{FILES}data/{name}"])
    here = prepare(corpus(tmp_path / "local", "*.jsonl"), tmp_path / "a", workers=1)
    path = corpus(
        tmp_path / "remote",
        f"hf://{REPOSITORY}/data/*.jsonl",
        tokenizer=f"hf://{REPOSITORY}/tokenizer.model",
    )
    there = prepare(path, tmp_path / "b", workers=1)
    assert tokens(there) == tokens(here)
    blobs = [hashlib.sha1(hub.files[f"{FILES}data/{name}"]).hexdigest() for name in ("a.jsonl", "b.jsonl")]
    assert [entry["version"] for entry in inputs(there)] == blobs
    hub.requests.clear()
    prepare(path, tmp_path / "b", workers=1)
    assert not [name for _, name, _ in hub.requests if "/resolve/" in name and name.endswith(".jsonl")]
    hub.files[f"{FILES}data/b.jsonl"] = rows(9)
    with pytest.raises(XDogeError, match=r"hf://datasets/team/texts/data/b\.jsonl changed"):
        prepare(path, tmp_path / "b", workers=1)


def test_a_download_from_the_hub_comes_in_pieces(hub: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PIECE", 1000)
    _, (file,) = find_remote(f"hf://{REPOSITORY}/data/a.jsonl")
    assert local(file).read_bytes() == rows(0)
    assert [asked for _, name, asked in hub.requests if "/resolve/" in name][:2] == ["bytes=0-999", "bytes=1000-1999"]
