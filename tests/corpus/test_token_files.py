"""Files of consecutive token ids: .npy of OLMo, .ds of datatrove, .bin of nanoGPT and llm.c."""

from __future__ import annotations

import json
import struct
from functools import partial
from itertools import accumulate, pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from megatron_files import END, TEN, VOCABULARY, WORDS, documents_of, write

from xdoge import XDogeError
from xdoge.corpus import TokenStore, in_place, token_files
from xdoge.corpus.in_place import scan
from xdoge.corpus.token_files import find_documents, open_ids

FLAT = [token for document in TEN for token in document]


def olmo(path, ids=FLAT, dtype=np.uint8):
    """Write only ids, as numpy.memmap does in mode "w+"."""
    written = np.memmap(path, dtype, "w+", shape=(len(ids),))
    written[:] = ids
    written.flush()


def datatrove(path, documents=TEN, letter="H"):
    """Write the same files as datatrove's TokenizedFile, with the same calls of struct."""
    path.write_bytes(b"".join(struct.pack(f"<{len(document)}{letter}", *document) for document in documents))
    ends = list(accumulate(map(len, documents)))
    path.with_name(f"{path.name}.index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))


def llm_c(path, ids=FLAT, magic=20240520, version=1, dtype=np.uint16, count=None):
    """Write a header of llm.c, then ids."""
    header = np.zeros(256, np.int32)
    header[:3] = magic, version, len(ids) if count is None else count
    path.write_bytes(header.tobytes() + np.array(ids, dtype).tobytes())


def write_all(folder):
    """Return the entry of each file for corpus.yaml."""
    olmo(folder / "a.npy")
    olmo(folder / "b.npy", dtype=np.uint32)
    np.save(folder / "c.npy", np.array(FLAT, np.int32))
    datatrove(folder / "d.ds")
    datatrove(folder / "e.ds", letter="I")
    olmo(folder / "f.bin", dtype=np.uint16)
    llm_c(folder / "g.bin")
    llm_c(folder / "h.bin", [END, *FLAT[:-1]], 20240801, 7, np.uint32)  # documents begin with the token
    return {
        **{name: {"tokens": name} for name in ("a.npy", "c.npy", "d.ds", "d*", "e.ds", "f.bin", "g.bin")},
        "b.npy": {"tokens": "b.npy", "dtype": "uint32"},
        "h.bin": {"tokens": "h.bin"},
    }


def test_all_formats_hold_the_same_documents_in_place(tmp_path, made):
    sources = write_all(tmp_path)
    for name, source in sources.items():
        store = made({"wiki": source}, refresh=True)
        expected = TEN[:-1] if name == "h.bin" else TEN  # its last document has no end
        assert documents_of(store) == expected, name
        assert ("3 tokens after the last end" in " ".join(store.warnings)) == (name == "h.bin")
        texts = store.tokenizer().decode([document[:-1] for document in expected])
        assert store.n_bytes() == {"eu/wiki": sum(len(text.encode()) for text in texts)}
        assert not store.flat("eu/wiki").flags.writeable
        store.verify()
        assert sum(file.stat().st_size for file in (tmp_path / "store/tokens").rglob("*.arrow")) < 2_000
        assert store.sequence("eu/wiki", 1, 8).tolist() == FLAT[8:16]


def test_several_files_are_one_source_and_its_last_documents_are_held_out(tmp_path, made):
    for n in range(4):
        olmo(tmp_path / f"a{n}.npy", [n + 3, *FLAT])
    datatrove(tmp_path / "v.ds", [[9, END]])
    store = made({"wiki": {"tokens": ["a[01].npy", "a{2,3}.npy"]}}, fraction=0.25)
    assert store.documents() == {"eu/wiki": 30}
    assert store.documents("validation") == {"eu/wiki": 10}
    store = made({"wiki": {"tokens": "a0.npy", "validation": "v.ds", "max_tokens": 6}}, refresh=True)
    assert documents_of(store) == [[3, *TEN[0]], TEN[1]]
    assert documents_of(store, split="validation") == [[9, END]]


def test_a_store_can_move_with_its_files_and_misses_what_changed(tmp_path, made):
    (tmp_path / "d").mkdir()
    olmo(tmp_path / "d/a.npy")
    made({"wiki": {"tokens": "d/a.npy"}})
    olmo(tmp_path / "d/a.npy", [*FLAT[:-2], 9, END])
    store = TokenStore.open(tmp_path / "store")
    with pytest.raises(XDogeError, match=r"a\.npy is not what prepare read"):
        store.verify()
    olmo(tmp_path / "d/a.npy", FLAT[:-4])
    with pytest.raises(XDogeError, match=r"a\.npy has 36 bytes where store\.json says 40"):
        TokenStore.open(tmp_path / "store")


@settings(max_examples=30)
@given(
    ids=st.lists(st.sampled_from([END, END, 5, 6, 7, 0]), min_size=1, max_size=40),
    size=st.sampled_from([2, 4, 16, 1 << 23]),
    header=st.booleans(),
)
@example(ids=[END, END, 5, END, END, 6], size=2, header=True)
def test_documents_end_at_the_token_wherever_blocks_are_cut(tmp_path_factory, ids, size, header):
    path = tmp_path_factory.mktemp("any") / "a.bin"
    (llm_c if header else partial(olmo, dtype=np.uint16))(path, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_files, "AT_ONCE", size)
        index = find_documents(open_ids(path, VOCABULARY, None), END)
    flat = np.memmap(path, np.uint16, "r")
    documents = [flat[a:b].tolist() for a, b in pairwise(index.bounds.tolist())]
    text = "".join(
        chr(token) for token in ids
    )  # an independent split with Python's str, where consecutive ends count as one
    parts = text.lstrip(chr(END)).split(chr(END))
    assert ["".join(map(chr, document)).rstrip(chr(END)) for document in documents] == [
        part for part in parts[:-1] if part
    ]
    assert index.left_out == len(parts[-1])


@pytest.mark.parametrize("chunk", [2, 8, 1 << 24])
@pytest.mark.parametrize(
    ("write", "more", "match"),
    [
        (partial(olmo, dtype=np.uint16), {}, "every second id is 0.*set dtype: uint16"),
        (partial(olmo, dtype=np.uint32), {"dtype": "uint16"}, None),
        (partial(olmo, ids=[*FLAT, VOCABULARY]), {}, f"token id {VOCABULARY}, .* Set dtype"),
        (partial(olmo, ids=[5, 6, 7]), {}, "has no end-of-document token, 2; .* Set dtype"),
        (partial(olmo, ids=FLAT[:-1]), {"dtype": "uint16"}, "not a whole number of uint16 ids"),
        (partial(olmo, ids=FLAT), {"dtype": "int32"}, "token id 34,080,517"),
    ],
)
def test_ids_of_another_type_or_tokenizer_are_refused(tmp_path, tokenizer, monkeypatch, chunk, write, more, match):
    monkeypatch.setattr(in_place, "CHUNK", chunk * 4)
    write(tmp_path / "a.npy")
    if match is None:  # a dtype in corpus.yaml is not checked
        assert scan(tmp_path / "a.npy", tokenizer, name="a", **more).rows == 10
        return
    with pytest.raises(XDogeError, match=match) as error:
        scan(tmp_path / "a.npy", tokenizer, name="a", **more)
    assert "\n" not in str(error.value)


def damage(folder):
    """Yield the entry of each damaged file for corpus.yaml, and the expected message."""
    datatrove(folder / "a.ds")
    (folder / "a.ds").write_bytes((folder / "a.ds").read_bytes()[:-1])
    yield "a.ds", "79 bytes where a.ds.index says 40"
    datatrove(folder / "b.ds")
    (folder / "b.ds.index").write_bytes((folder / "b.ds.index").read_bytes()[:-3])
    yield "b.ds", "77 bytes"
    datatrove(folder / "c.ds")
    (folder / "c.ds.index").write_bytes(struct.pack("<3Q", 8, 4, 40))
    yield "c.ds", "do not increase"
    datatrove(folder / "d.ds")
    (folder / "d.ds.index").write_bytes(struct.pack("<3Q", 4, 7, 40))
    yield "d.ds", "document 1 ends with token 8, not with the tokenizer's end-of-document token, 2"
    datatrove(folder / "e.ds", [])
    yield "e.ds", "damaged or empty"
    datatrove(folder / "f.ds")
    (folder / "f.ds.index").unlink()
    yield "f.ds", r"f\.ds\.index does not exist"
    olmo(folder / "g.bin", FLAT, np.uint16)
    (folder / "g.bin").write_bytes((folder / "g.bin").read_bytes()[:-1])
    yield "g.bin", "not a whole number of uint16 ids"
    llm_c(folder / "h.bin", count=39)
    yield "h.bin", "not hold as many ids as its header says"
    llm_c(folder / "i.bin", [*FLAT, VOCABULARY, END])
    yield "i.bin", f"token id {VOCABULARY}"
    np.save(folder / "j.npy", np.ones((4, 4), np.uint16))
    yield "j.npy", r"shape \(4, 4\)"
    np.save(folder / "k.npy", np.ones(4))
    yield "k.npy", "<f8"
    np.save(folder / "l.npy", np.array(FLAT, ">u2"))
    yield "l.npy", ">u2"
    np.save(folder / "m.npy", np.array([{}], object), allow_pickle=True)
    yield "m.npy", "damaged header of NumPy"
    np.save(folder / "n.npy", np.array(FLAT))
    (folder / "n.npy").write_bytes((folder / "n.npy").read_bytes()[:-8])
    yield "n.npy", "cannot be read|damaged header"
    (folder / "o.npy").write_bytes(b"")
    yield "o.npy", "is empty"
    (folder / "p.bin").write_bytes(b"")
    (folder / "p.idx").write_bytes(b"")
    yield "p.bin", "write megatron: p"
    (folder / "q.npy").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    yield "q.npy", "Git LFS"


def test_damaged_files_are_refused_in_one_line(tmp_path, made):
    for name, match in damage(tmp_path):
        with pytest.raises(XDogeError, match=match) as error:
            made({"wiki": {"tokens": name}})
        assert "\n" not in str(error.value)
        assert str(error.value).startswith(f"{tmp_path}/corpus.yaml: languages.eu.sources.wiki.tokens: ")
    assert not (tmp_path / "store").exists()


def test_a_dtype_that_contradicts_the_file_is_refused(tmp_path, made):
    np.save(tmp_path / "a.npy", np.array(FLAT, np.uint16))
    with pytest.raises(XDogeError, match="holds uint16 ids .*dtype is uint32"):
        made({"wiki": {"tokens": "a.npy", "dtype": "uint32"}})
    with pytest.raises(XDogeError, match="other formats of tokens"):
        (tmp_path / "b.parquet").touch()
        made({"wiki": {"tokens": ["a.npy", "b.parquet"]}})


def test_documents_that_begin_or_end_in_another_way_beside_text_are_warned_of(tmp_path, made):
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"text": f"{w} {n}"}) + "\n" for n, w in enumerate(WORDS)))
    olmo(tmp_path / "a.npy", [token for document in TEN for token in (1, *document, END)])
    store = made({"wiki": {"tokens": "a.npy"}, "web": {"files": "b.jsonl"}})
    assert store.documents()["eu/wiki"] == 10
    assert "begin with the special token 1 and end with two end-of-document" in " ".join(store.warnings)


@pytest.mark.parametrize("name", ["m.ds.index", "m.idx", "saved/state.json", "streamed/index.json"])
def test_a_git_lfs_pointer_beside_tokens_is_named(tmp_path, made, name):
    datatrove(tmp_path / "m.ds")
    write(tmp_path / "m")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4665a5ea\nsize 1\n")
    source = {"m.ds.index": {"tokens": "m.ds"}, "m.idx": {"megatron": "m"}}.get(name, {"tokens": name.split("/")[0]})
    with pytest.raises(XDogeError, match=rf"corpus\.yaml: .*{name} is a Git LFS pointer"):
        made({"wiki": source})


def test_files_of_tokens_may_be_file_urls(tmp_path, made):
    olmo(tmp_path / "a.npy")
    assert documents_of(made({"wiki": {"tokens": f"file://{tmp_path}/a.npy"}})) == TEN
