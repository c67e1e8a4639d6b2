"""A tiny tokenizer, and stores of the tokens that it made."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest
from megatron_files import VOCABULARY, WORDS, make

from xdoge.corpus.spec import TrainTokenizer
from xdoge.corpus.tokenizer import sentencepiece_model, train


@pytest.fixture(scope="session")
def model():
    """A SentencePiece model of 40 pieces."""
    texts = [f"{n} {word} {other}" for n in range(20) for word, other in pairwise(WORDS.split())]
    return train(texts, TrainTokenizer(vocab_size=VOCABULARY, byte_fallback=False), where="here")


@pytest.fixture(scope="session")
def tokenizer(model):
    return sentencepiece_model(model, where="here")


@pytest.fixture
def made(tmp_path, model):
    """`make` in the folder of the test."""
    return partial(make, tmp_path, model)
