"""Compare with megatron-core itself, in a file of its own because its import takes seconds."""

from __future__ import annotations

import importlib
import warnings
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from megatron_files import CODES, END, TEN, documents_of, make, write


@pytest.fixture(scope="module")
def core():
    """The module of megatron-core that reads and writes the files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("megatron", exc_type=ImportError)
        return importlib.import_module("megatron.core.datasets.indexed_dataset")


@pytest.fixture(scope="module")
def model(store):
    """A SentencePiece model of 300 pieces."""
    return (store.path / "tokenizer/tokenizer.model").read_bytes()


@settings(max_examples=60)
@given(
    documents=st.lists(st.lists(st.integers(0, 99), max_size=6), max_size=8),
    dtype=st.sampled_from(list(CODES)),
    sentences=st.integers(1, 3),
    multimodal=st.booleans(),
)
def test_the_files_of_these_tests_are_those_of_megatron_core(
    core, tmp_path_factory, documents, dtype, sentences, multimodal
):
    folder = tmp_path_factory.mktemp("core")
    builder = core.IndexedDatasetBuilder(str(folder / "theirs.bin"), dtype=dtype, multimodal=multimodal)
    for document in documents:
        lengths = [b - a for a, b in pairwise(len(document) * n // sentences for n in range(sentences + 1))]
        builder.add_document(np.array(document), lengths, [0] * sentences if multimodal else None)
    builder.finalize(str(folder / "theirs.idx"))
    modes = bytes(sentences * len(documents)) if multimodal else b""
    write(folder / "ours", documents, dtype, sentences=sentences, modes=modes)
    for ending in (".bin", ".idx"):
        assert (folder / f"ours{ending}").read_bytes() == (folder / f"theirs{ending}").read_bytes()


@pytest.mark.parametrize("dtype", CODES)
def test_ids_have_the_type_and_documents_the_bounds_that_megatron_core_reads(core, model, tmp_path, dtype):
    path = write(tmp_path / "w", dtype=dtype, sentences=2)
    store, reference = make(tmp_path, model, {"wiki": {"megatron": "w"}}), core.IndexedDataset(str(path))
    flat = store.flat("eu/wiki")
    assert flat.dtype == reference.index.dtype == dtype
    assert flat.tolist() == np.concatenate(reference[:]).tolist()
    ends = np.cumsum([0, *reference.sequence_lengths])[reference.document_indices]
    assert store.document_bounds("eu/wiki").tolist() == ends.tolist()
    assert documents_of(store) == TEN


@pytest.mark.parametrize(("split", "fraction"), [("995,5,0", 0.005), ("9,1,0", 0.1), ("2,1,0", 1 / 3)])
@pytest.mark.parametrize("count", [1, 50, 99, 100, 101, 300, 1_000])
def test_a_fraction_holds_out_what_megatrons_own_split_does(core, model, tmp_path, split, fraction, count):
    config = importlib.import_module("megatron.core.datasets.blended_megatron_dataset_config")
    matrix = config.convert_split_vector_to_split_matrix(config.parse_and_normalize_split(split))
    every = [[5 + n % 30, 5 + n // 30, END] for n in range(count)]
    write(tmp_path / "w", every)
    store = make(tmp_path, model, {"wiki": {"megatron": "w"}}, fraction=fraction)
    assert documents_of(store) == every[: round(matrix[0][1] * count)]
    assert documents_of(store, split="validation") == every[round(matrix[1][0] * count) :]
