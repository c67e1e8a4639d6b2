"""Small Megatron-LM data sets for tests."""

from __future__ import annotations

import struct
from itertools import accumulate, pairwise

import numpy as np
import yaml

from xdoge.corpus.prepare import prepare

INDEX = struct.Struct("<9sQBQQ")

VOCABULARY, END = 40, 2


CODES = {np.uint8: 1, np.int8: 2, np.int16: 3, np.int32: 4, np.int64: 5, np.uint16: 8}
"""Types of ids with their codes in the index."""


WORDS = "etxea mendia itsasoa eguna gaua lagun handia txikia"
TEN = [[n + 5, 7, 8, END] for n in range(10)]
"""Ten documents of four tokens."""


def write(path, documents=TEN, dtype=np.uint16, *, sentences=1, modes=b""):
    """Write documents as path.bin and path.idx, each document as several sequences. Return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    cuts = [[len(document) * n // sentences for n in range(sentences + 1)] for document in documents]
    lengths = [end - begin for each in cuts for begin, end in pairwise(each)]
    tokens = np.array([token for document in documents for token in document], dtype)
    pointers = np.array([0, *accumulate(lengths)][:-1], np.int64) * tokens.itemsize
    begins = np.arange(len(documents) + 1) * sentences
    path.with_suffix(".bin").write_bytes(tokens.tobytes())
    with path.with_suffix(".idx").open("wb") as file:
        file.write(INDEX.pack(b"MMIDIDX\0\0", 1, CODES[dtype], len(lengths), len(begins)))
        file.write(np.array(lengths, np.int32).tobytes() + pointers.tobytes() + begins.tobytes() + modes)
    return path


def make(folder, model, sources, *, fraction=0.0, refresh=False, out="store"):
    """Prepare a corpus with sources of the language `eu`, and return its store."""
    (folder / "t.model").write_bytes(model)
    content = {
        "name": "tiny",
        "tokenizer": {"sentencepiece": "t.model"},
        "validation": {"fraction": fraction},
        "languages": {"eu": {"sources": sources}},
    }
    (folder / "corpus.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return prepare(folder / "corpus.yaml", folder / out, workers=1, refresh=refresh)


def documents_of(store, source="eu/wiki", split="train"):
    flat, bounds = store.flat(source, split), store.document_bounds(source, split)
    return [flat[begin:end].tolist() for begin, end in pairwise(bounds.tolist())]
