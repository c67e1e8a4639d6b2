"""Files on servers: HTTP and S3 servers on this machine, and fsspec's file system in memory."""

from __future__ import annotations

import gzip
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from file_servers import MODEL, Handler, Server, corpus, inputs, rows, served, tokens

from xdoge.cli.eval import _texts
from xdoge.corpus import prepare, remote
from xdoge.corpus.paths import find
from xdoge.corpus.remote import RemoteFile, find_remote, local
from xdoge.errors import XDogeError


@pytest.fixture
def server() -> Iterator[Server]:
    with served(Server(Handler)) as server:
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDOGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        system = fsspec.filesystem("s3")
        system.mkdir("bucket")
        yield system
        type(system).clear_instance_cache()
    server.stop()


def test_a_store_of_remote_files_is_that_of_local_ones(tmp_path: Path, server: Server, cache: Path) -> None:
    parts = {"a.jsonl": rows(1), "b.jsonl.gz": gzip.compress(rows(2)), "c.jsonl": rows(3)}
    server.files = {f"/data/{name}": data for name, data in parts.items()}
    server.files |= {"/held.jsonl": rows(4, 20), "/t/tokenizer.model": MODEL}
    (tmp_path / "local").mkdir()
    for name, data in (parts | {"held.jsonl": rows(4, 20)}).items():
        (tmp_path / "local" / name).write_bytes(data)
    names = [*parts]
    here = prepare(corpus(tmp_path / "local", names, validation="held.jsonl"), tmp_path / "a", workers=1)
    patterns = f"{server.url}/data/*.jsonl*", f"{server.url}/data/", f"{server.url}/data/{{a.jsonl,b.jsonl.gz,c.jsonl}}"
    for number, files in enumerate(patterns):
        held_out, tokenizer = f"{server.url}/held.jsonl?key=1", f"{server.url}/t/tokenizer.model"
        path = corpus(tmp_path / "remote", files, validation=held_out, tokenizer=tokenizer)
        there = prepare(path, tmp_path / str(number), workers=1)
        assert tokens(there) == tokens(here)
        assert [entry["path"] for entry in inputs(there)] == [f"{server.url}/data/{name}" for name in names]
        for key in ("sha256", "n_bytes", "rows"):
            assert [entry[key] for entry in inputs(there)] == [entry[key] for entry in inputs(here)]
        assert len(list(cache.iterdir())) == 1  # the tokenizer: downloads of a finished source are deleted
    server.requests.clear()
    prepare(path, tmp_path / "2", workers=1)
    assert "GET" not in {method for method, name, _ in server.requests if name in server.files}


@pytest.mark.parametrize("version", [True, False])
def test_a_file_that_changes_on_the_server_is_noticed(tmp_path: Path, server: Server, version: bool) -> None:
    server.tell_version = version
    server.files["/a.jsonl"] = rows(1)
    path = corpus(tmp_path / "c", f"{server.url}/a.jsonl")
    first = tokens(prepare(path, tmp_path / "s", workers=1))
    server.tags["/a.jsonl"] = '"another"'
    assert tokens(prepare(path, tmp_path / "s", workers=1)) == first  # another version of the same bytes
    server.files["/a.jsonl"] = rows(1).replace(b' 7"', b' 8"')
    server.tags["/a.jsonl"] = '"a third"'
    assert len(server.files["/a.jsonl"]) == len(rows(1))
    with pytest.raises(XDogeError, match=rf"{server.url}/a.jsonl changed"):
        prepare(path, tmp_path / "s", workers=1)
    assert tokens(prepare(path, tmp_path / "s", workers=1, refresh=True)) != first


def test_a_download_continues_where_it_stopped(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PIECE", 1000)
    data = server.files["/a.jsonl"] = rows(1)
    _, (file,) = find_remote(f"{server.url}/a.jsonl")
    serve = Handler.do_GET

    def serve_six(self: Handler) -> None:
        if len(server.requests) < 6:
            serve(self)
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    monkeypatch.setattr(Handler, "do_GET", serve_six)
    with pytest.raises(XDogeError, match=r"a\.jsonl"):
        local(file)
    (part,) = cache.rglob("*.part")
    assert 0 < part.stat().st_size < len(data)
    assert data.startswith(part.read_bytes())
    monkeypatch.setattr(Handler, "do_GET", serve)
    server.requests.clear()
    begun = part.stat().st_size
    assert local(file).read_bytes() == data
    assert next(asked for _, _, asked in server.requests if asked) == f"bytes={begun}-{begun + 999}"


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("version", [True, False])
@pytest.mark.parametrize("size", [True, False])
def test_servers_may_give_no_size_or_version(
    server: Server, monkeypatch: pytest.MonkeyPatch, ranges: bool, version: bool, size: bool
) -> None:
    monkeypatch.setattr(remote, "PIECE", 1000)
    server.ranges, server.tell_version, server.tell_size = ranges, version, size
    server.files["/a.jsonl"] = rows(1)
    _, (file,) = find_remote(f"{server.url}/a.jsonl")
    assert (file.version is not None, file.n_bytes) == (version, len(rows(1)) if size else None)
    assert local(file).read_bytes() == rows(1)


def test_a_transfer_that_ends_early_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/a.jsonl"] = rows(1)
    for server.ranges in (True, False):
        for server.tell_version in (True, False):
            server.cut = {"/a.jsonl": 500}
            _, (file,) = find_remote(f"{server.url}/a.jsonl")
            with pytest.raises(XDogeError, match=r"a\.jsonl"):
                local(file)
            server.cut = {}
            assert local(file).read_bytes() == rows(1)
            remote.forget([file])
    _, (file,) = find_remote(f"{server.url}/a.jsonl")
    server.files["/a.jsonl"] = rows(1)[:500]
    with pytest.raises(XDogeError, match=r"ended after 500|changed"):
        local(file)


def test_an_unreachable_file_is_one_line(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for library in ("gcsfs", "paramiko"):
        monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    for url, told in (
        (f"{server.url}/none.jsonl", "404"),
        ("http://127.0.0.1:9/a.jsonl", "Cannot connect"),
        ("http://user:word@127.0.0.1/a.jsonl", "password"),
        ("zip://a::http://127.0.0.1/a.zip", "'::'"),
        ("nothing://a", "nothing:// is not a protocol"),
        ("gs://bucket/a.jsonl", "pip install gcsfs"),
        ("sftp://host/a.jsonl", "pip install paramiko"),
        ("memory://none/a.jsonl", "does not exist"),
    ):
        with pytest.raises(XDogeError, match=told) as caught:
            find([url], Path())
        assert "\n" not in str(caught.value)
        assert "word@" not in str(caught.value)
    with pytest.raises(XDogeError, match=r"none\*' matches no file|matches no file"):
        find([f"{server.url}/none*.jsonl"], Path())


def check_store(system: Any, protocol: str, tmp_path: Path) -> None:
    """Check patterns, changes and errors on an object store with a bucket named "bucket"."""
    for number, name in enumerate(("a.jsonl", "b.jsonl", "deep/c.jsonl", "_SUCCESS", ".hidden.jsonl", "README.md")):
        system.pipe(f"bucket/data/{name}", rows(number) if name.endswith("l") else b"")
    root = f"{protocol}://bucket/data"
    for pattern, names in (
        ("*.jsonl", ["a.jsonl", "b.jsonl"]),
        ("**/*.jsonl", ["a.jsonl", "b.jsonl", "deep/c.jsonl"]),
        ("{b,deep/c}.jsonl", ["b.jsonl", "deep/c.jsonl"]),
        ("[ab].jsonl", ["a.jsonl", "b.jsonl"]),
        ("", ["a.jsonl", "b.jsonl", "deep/c.jsonl"]),
    ):
        assert [str(file) for file in find([f"{root}/{pattern}"], tmp_path)] == [f"{root}/{name}" for name in names]
    assert len(find([root], tmp_path)) == 3
    path = corpus(tmp_path / "c", f"{root}/**/*.jsonl")
    first = tokens(prepare(path, tmp_path / "s", workers=1))
    system.pipe("bucket/data/b.jsonl", rows(9))
    with pytest.raises(XDogeError, match=rf"{root}/b\.jsonl changed"):
        prepare(path, tmp_path / "s", workers=1)
    assert tokens(prepare(path, tmp_path / "s", workers=1, refresh=True)) != first
    with pytest.raises(XDogeError, match=rf"{protocol}://bucket/none.jsonl does not exist"):
        find([f"{protocol}://bucket/none.jsonl"], tmp_path)
    with pytest.raises(XDogeError, match=rf"{protocol}://no-such-bucket"):
        find([f"{protocol}://no-such-bucket/*.jsonl"], tmp_path)


@pytest.mark.slow
def test_s3_is_read_with_patterns_and_credentials_from_the_environment(tmp_path: Path, s3: Any, cache: Path) -> None:
    check_store(s3, "s3", tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Google's libraries
def test_gs_is_read_with_patterns(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gcsfs")
    emulator = pytest.importorskip("gcp_storage_emulator.server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    try:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
        system = fsspec.filesystem("gs")
        check_store(system, "gs", tmp_path)
        type(system).clear_instance_cache()
    finally:
        server.stop()


@pytest.mark.slow
def test_an_object_that_is_replaced_while_it_is_downloaded_is_refused(
    s3: Any, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PIECE", 1000)
    s3.pipe("bucket/moving.jsonl", rows(1))
    _, (file,) = find_remote("s3://bucket/moving.jsonl")
    pieces = remote._pieces

    def moving(*arguments: Any) -> Iterator[bytes]:
        for number, piece in enumerate(pieces(*arguments)):
            yield piece
            if number == 1:
                s3.pipe("bucket/moving.jsonl", rows(2))

    monkeypatch.setattr(remote, "_pieces", moving)
    with pytest.raises(XDogeError, match="moving.jsonl"):
        local(file)
    monkeypatch.setattr(remote, "_pieces", pieces)
    _, (file,) = find_remote("s3://bucket/moving.jsonl")
    assert local(file).read_bytes() == rows(2)


def test_any_protocol_of_fsspec_and_file_urls_are_read(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/c/a.jsonl", rows(1))
    memory.pipe("/c/b.jsonl", rows(2))
    (tmp_path / "c.jsonl").write_bytes(rows(3))
    path = corpus(tmp_path, ["memory://c/*.jsonl", f"file://{tmp_path}/c.jsonl"])
    assert prepare(path, tmp_path / "s", workers=1).documents("train")["eu/web"] > 500
    memory.rm("/c", recursive=True)


def test_the_same_remote_file_twice_and_remote_tokens_are_refused(tmp_path: Path, server: Server) -> None:
    server.files = {"/a.jsonl": rows(1), "/b.jsonl": rows(1), "/t.bin": b"", "/t.idx": b""}
    url = server.url
    for files, told in (([f"{url}/a.jsonl", f"{url}/*.jsonl"], "again"), (f"{url}/*.jsonl", "has the same bytes as")):
        with pytest.raises(XDogeError, match=told):
            prepare(corpus(tmp_path, files), tmp_path / "s", workers=1)
    for kind, files in (("megatron", f"{url}/t"), ("tokens", f"{url}/t.bin")):
        path = corpus(tmp_path, files)
        path.write_text(path.read_text().replace("files", kind))
        with pytest.raises(XDogeError, match=rf"{url}/t.bin.*copy them to a disk"):
            prepare(path, tmp_path / "s", workers=1)


def test_a_damaged_remote_file_is_named_by_its_url(tmp_path: Path, server: Server) -> None:
    for name, data in (
        ("a.jsonl", b'{"text": 1}\n'),
        ("a.parquet", b"PAR1"),
        ("a.jsonl.gz", b"x"),
        ("a.csv", b"id\n1\n"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\n"),
        ("a.txt", b"\xff\n"),
    ):
        server.files = {f"/{name}": data}
        with pytest.raises(XDogeError, match=rf"files: {server.url}/{name}"):
            prepare(corpus(tmp_path, f"{server.url}/{name}"), tmp_path / "s", workers=1)


def test_eval_reads_remote_files_and_patterns(server: Server) -> None:
    server.files = {"/a.jsonl": rows(1), "/b.jsonl": rows(2).replace(b'"text"', b'"body"')}
    texts = _texts([f"eu={server.url}/a*.jsonl", f"gl={server.url}/b.jsonl:body"])
    assert texts is not None
    assert [(str(text.files[0]), text.column) for text in texts.values()] == [
        (f"{server.url}/a.jsonl", "text"),
        (f"{server.url}/b.jsonl", "body"),
    ]
    for text in texts.values():
        assert (text.scan(text.files[0]).rows, len(text.rows(text.files[0]))) == (200, 200)


def test_a_name_with_a_query_has_the_format_of_its_path() -> None:
    assert RemoteFile("https://host/a.jsonl.gz?download=true&x=/b.csv", 1, None).name == "a.jsonl.gz"
    assert RemoteFile("s3://bucket/a?b.csv", 1, None).name == "a?b.csv"
