"""Archives give the same text as plain files, and samples of WebDataset give the same text as `datasets`."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as parquet
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from xdoge.corpus.paths import find
from xdoge.corpus.readers.files import file_blocks
from xdoge.corpus.readers.inputs import scan
from xdoge.errors import XDogeError

TEXTS = ["Kaixo, mundua!", "Ola, «mundo»", 'a "cita"', "NA", "日本語 😀"]
Columns = str | tuple[str, ...]
plain = st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), max_size=20)


def zipped(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def tarred(files: Mapping[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


MAKERS: dict[str, Callable[[Mapping[str, bytes]], bytes]] = {
    "a.zip": zipped,
    "b.zip": lambda files: zipped(files, zipfile.ZIP_LZMA),
    "a.tar": tarred,
    "b.tar": lambda files: tarred(files, tarfile.PAX_FORMAT),
    "a.tar.gz": lambda files: gzip.compress(tarred(files)),
    "a.tgz": lambda files: gzip.compress(tarred(files)),
    "a.tar.xz": lambda files: lzma.compress(tarred(files)),
    "a.tar.bz2": lambda files: bz2.compress(tarred(files)),
    "a.tar.zst": lambda files: zstandard.ZstdCompressor().compress(tarred(files)),
}


def table(kind: str) -> bytes:
    out, rows = io.BytesIO(), pa.table({"text": TEXTS})
    if kind == "parquet":
        parquet.write_table(rows, out)
    else:
        with pa.ipc.new_stream(out, rows.schema) as writer:
            writer.write_table(rows)
    return out.getvalue()


def separated(delimiter: str) -> bytes:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter).writerows([["id", "text"], *enumerate(TEXTS)])
    return out.getvalue().encode()


JSONL = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()
FILES = {
    "jsonl": JSONL,
    "ndjson.gz": gzip.compress(JSONL),
    "json": json.dumps([{"text": text} for text in TEXTS], indent=1).encode(),
    "csv": separated(","),
    "tsv.xz": lzma.compress(separated("\t")),
    "txt.bz2": bz2.compress("\n".join(TEXTS).encode()),
    "parquet": table("parquet"),
    "arrow": table("arrow"),
}


def read(path: Path, data: bytes | None = None, columns: Columns = "text", **settings: Any) -> list[str]:
    if data is not None:
        path.write_bytes(data)
    rows = scan(path, columns, name=path.name, **settings).rows
    texts = [text for block in file_blocks(path, columns, **settings) for text in block.texts(columns)]
    assert rows in (None, len(texts))
    return texts


@pytest.mark.parametrize("ending", FILES)
@pytest.mark.parametrize("name", MAKERS)
def test_an_archive_is_the_files_in_it(tmp_path: Path, name: str, ending: str) -> None:
    files = {f"deep/{'long ' * 30}é.{ending}": FILES[ending], f"b.{ending}": FILES[ending]}
    extra = {"README.md": b"x", "_SUCCESS": b"", ".hidden.txt": b"x", "__MACOSX/._b.jsonl": b"x", "deep/LICENSE": b"x"}
    assert read(tmp_path / name, MAKERS[name]({**files, **extra})) == 2 * TEXTS
    assert find([name], tmp_path) == (tmp_path / name,)


@settings(max_examples=12)
@given(
    parts=st.lists(
        st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff\r\n"), max_size=9), min_size=1),
        min_size=1,
        max_size=4,
    ),
    name=st.sampled_from(["a.zip", "a.tar", "a.tar.gz"]),
)
def test_archives_give_what_their_files_give(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[str]], name: str
) -> None:
    folder = tmp_path_factory.mktemp("generated")
    files = {f"{n}.txt": "".join(text + "\n" for text in part).encode() for n, part in enumerate(parts)}
    (folder / name).write_bytes(MAKERS[name](files))
    texts = []
    for file, data in files.items():
        (folder / file).write_bytes(data)
        texts += [text for block in file_blocks(folder / file, "text") for text in block.texts("text")]
    there = [text for block in file_blocks(folder / name, "text") for text in block.texts("text")]
    assert there == texts == [text for part in parts for text in part]
    whole = [text for block in file_blocks(folder / name, "text", document="file") for text in block.texts("text")]
    assert whole == [data.decode() for data in files.values()]


def refused(path: Path, data: bytes, told: str, columns: Columns = "text") -> None:
    with pytest.raises(XDogeError, match=told) as caught:
        read(path, data, columns)
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_no_flipped_bit_and_no_cut_of_an_archive_loses_text(tmp_path: Path, name: str) -> None:
    files = {"a.txt": b"etxea\nmendia\n", "b.txt": b"ura\n"}
    path, data = tmp_path / name, MAKERS[name](files)
    texts = ["etxea", "mendia", "ura"]
    end = len(data) if name == "a.zip" else 4 * 512 + 512  # two headers, two blocks of text, a block of zeros
    for length in range(0, end, 3 if name == "a.zip" else 199):
        refused(path, data[:length], "a\\.")
    for at in range(0, len(data), 1 if name == "a.zip" else 31):
        flipped = bytearray(data)
        flipped[at] ^= 1 << at % 8
        try:
            result = read(path, bytes(flipped))
        except XDogeError:
            continue
        if name == "a.zip":  # times, attributes etc. may change
            assert result == texts
        else:  # text in a .tar has no checksum
            assert result == texts or at // 512 in (1, 3)


def test_damage_and_what_is_no_text_is_refused(tmp_path: Path) -> None:
    good, tar = {"a.jsonl": JSONL}, tmp_path / "a.tar"
    refused(tar, tarred(good) + tarred(good), "another archive")
    refused(tmp_path / "a.tar.gz", gzip.compress(tarred(good))[:-1], "ends before")
    refused(tmp_path / "a.tar.gz", gzip.compress(tarred(good)[:-9300]), "end of data")
    refused(tmp_path / "a.tar.gz", gzip.compress(tarred(good)[:1024]), "was cut")
    refused(tar, tarred({"a.jsonl": JSONL, "a.csv": b"text\n"}), "two formats")
    refused(tar, tarred({"a.jsonl": JSONL, "b.jpg": b"x"}), "b.jpg.*text: txt")
    refused(tar, tarred({"a.zip": zipped(good)}), "archive a.zip")
    refused(tar, tarred({"a.jsonl": b'{"body": 1}\n'}), "a.tar/a.jsonl has no column")
    refused(tar, tarred({"a.jsonl": b"\xff\n"}), "a.tar/a.jsonl: line 1 is not UTF-8")
    refused(tmp_path / "a.zip", zipped({"a.jsonl.gz": gzip.compress(JSONL)[:-3]}), "a.zip/a.jsonl.gz cannot be read")
    refused(tmp_path / "a.zip", b"PK", "a.zip cannot be read")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        info = tarfile.TarInfo("b.jsonl")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(info)
    refused(tar, out.getvalue(), "b.jsonl in it is a link")
    twice = io.BytesIO()
    with zipfile.ZipFile(twice, "w") as pair:
        pair.writestr("a.jsonl", JSONL)
        with pytest.warns(UserWarning, match="Duplicate"):
            pair.writestr("a.jsonl", JSONL)
    refused(tmp_path / "a.zip", twice.getvalue(), "a.jsonl twice")
    locked = bytearray(zipped(good, zipfile.ZIP_STORED))
    locked[6] |= 1  # the flags of encryption
    locked[locked.index(b"PK\x01\x02") + 8] |= 1
    refused(tmp_path / "a.zip", bytes(locked), "encrypted")
    assert read(tar, tarred({})) == []


@pytest.mark.slow
@settings(max_examples=5)
@given(
    samples=st.lists(
        st.tuples(
            st.text(st.characters(codec="utf-8", exclude_characters="\0\ufeff"), max_size=20), st.text(max_size=5)
        ),
        min_size=1,
        max_size=6,
    )
)
def test_samples_of_webdataset_are_read_as_datasets_does(
    tmp_path_factory: pytest.TempPathFactory, samples: list[tuple[str, str]]
) -> None:
    import datasets

    folder = tmp_path_factory.mktemp("samples")
    files: dict[str, bytes] = {}
    for n, (text, title) in enumerate(samples):
        files[f"shard/{n:04}.json"] = json.dumps({"title": title, "text": text}).encode()
        files[f"shard/{n:04}.bin"] = b"\xff\0"
        files[f"shard/{n:04}.txt"] = text.encode()
    path = folder / "a.tar"
    path.write_bytes(tarred(files))
    theirs = datasets.load_dataset(
        "webdataset", data_files=str(path), split="train", streaming=True, cache_dir=str(folder / "cache")
    )
    rows = list(theirs)
    assert read(path, columns="txt") == [row["txt"] for row in rows]
    assert read(path, columns="json.text") == [row["json"]["text"] for row in rows] == [text for text, _ in samples]
    for text, (want, title) in zip(read(path, columns=("json.title", "txt")), samples, strict=True):
        assert text == "\n\n".join(part for part in (title, want) if part.strip())


def test_bad_samples_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    refused(path, tarred({"1.txt": b"\xff"}), "a.tar/1.txt is not UTF-8", "txt")
    refused(path, tarred({"1.txt": b"a\0b"}), "a.tar/1.txt holds a zero byte", "txt")
    refused(path, tarred({"1.json": b"{"}), "a.tar/1.json is not JSON", "json.text")
    refused(path, tarred({"1.json": b'{"body": "x"}', "1.cls": b"3"}), "json.text", "json.text")
    refused(path, tarred({"1.jpg": b"x"}), "no file that ends in .txt", "txt")
    assert read(path, tarred({"1.txt": b"a", "1.json": b"{}", "2.txt": b"b", "x/2.txt": b"c"}), "txt") == [
        "a",
        "b",
        "c",
    ]
