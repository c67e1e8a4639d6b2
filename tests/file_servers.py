"""An HTTP server on this machine, and corpora whose files are on servers."""

from __future__ import annotations

import contextlib
import json
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from xdoge.corpus import TokenStore
from xdoge.corpus.spec import TrainTokenizer
from xdoge.corpus.tokenizer import train

WORDS = ["etxea", "mendia", "ura", "kalea", "haizea", "eguzkia", "itsasoa", "basoa", "herria", "zubia"]


def rows(seed: int, count: int = 200) -> bytes:
    draw = random.Random(seed)
    texts = (" ".join(draw.choices(WORDS, k=9)) + f" {seed} {n}" for n in range(count))
    return b"".join(json.dumps({"text": text}).encode() + b"\n" for text in texts)


class Server(ThreadingHTTPServer):
    """Serves `files`. Tests can make it fail in several ways."""

    daemon_threads = True

    def __init__(self, handler: type[Handler]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.files: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.ranges = self.tell_version = self.tell_size = True
        self.cut: dict[str, int] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        server.requests.append((self.command, path, self.headers.get("Range")))
        if path.endswith("/"):
            names = "".join(f'<a href="{name}">x</a>' for name in server.files if name.startswith(path))
            data, status = names.encode(), 200
        elif path not in server.files:
            self.send_error(404)
            return
        else:
            data, status = server.files[path], 200
        size = len(data)
        asked = self.headers.get("Range") if server.ranges else None
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            data, status = data[int(first) : int(last) + 1], 206
        self.send_response(status)
        if server.tell_size:
            self.send_header("Content-Length", str(len(data)))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        if server.tell_version and path in server.files:
            self.send_header("ETag", server.tags.get(path, f'"{hash(server.files[path])}"'))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[: server.cut.get(path, len(data))])

    def log_message(self, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def served(server: Server) -> Iterator[Server]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


MODEL = train([json.loads(line)["text"] for line in rows(0).splitlines()], TrainTokenizer(vocab_size=300), where="here")


def corpus(folder: Path, files: Any, *, tokenizer: str = "tokenizer.model", **source: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(MODEL)
    path = folder / "corpus.yaml"
    sources = {"web": {"files": files, **source}}
    path.write_text(
        json.dumps({"name": "x", "tokenizer": {"sentencepiece": tokenizer}, "languages": {"eu": {"sources": sources}}})
    )
    return path


def inputs(store: TokenStore) -> list[dict[str, Any]]:
    manifest = json.loads((store.path / "store.json").read_text())
    return list(manifest["sources"]["eu/web"]["inputs"])


def tokens(store: TokenStore) -> list[list[int]]:
    return [store.flat("eu/web", split)[:].tolist() for split in ("train", "validation")]
