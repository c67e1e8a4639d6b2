"""Load the tokenizer of a model, and check whether a token store was made with it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from xdoge.corpus.tokenizer import Tokenizer, huggingface, sentencepiece_model
from xdoge.errors import XDogeError
from xdoge.io import sha256_file

if TYPE_CHECKING:
    from xdoge.corpus.store import TokenStore


def model_file(model: str, name: str) -> Path | None:
    """Return the local path of a model's file, None if there is no such file. A file on the Hub is downloaded."""
    if Path(model).is_dir():
        path = Path(model) / name
        return path if path.is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(model, name))
    except (EntryNotFoundError, OSError):  # does not exist, or no network and not in the cache
        return None


def model_tokenizer(model: str) -> Tokenizer:
    """Return the tokenizer of a model, which is given by its folder or name on the Hub.

    If there is a SentencePiece file and no tokenizer.json, the file is loaded with SentencePiece itself. transformers
    5.23 converts such a file to a tokenizer with different results.

    Raises:
        XDogeError: the model has no tokenizer, or it cannot be read.
    """
    path = model_file(model, "tokenizer.model")
    if path is not None and model_file(model, "tokenizer.json") is None:
        return sentencepiece_model(path.read_bytes(), where=str(path))
    return _transformers_tokenizer(model)


def check_tokenizer(store: TokenStore, model: str, *, advice: str) -> None:
    """Raise an error if a store was made with another tokenizer than a model's.

    The store fits if it was prepared from the model's SentencePiece file, or with the tokenizer that transformers loads
    for the model.

    Args:
        store: token store.
        model: folder, or name on the Hub.
        advice: last sentence of the message.

    Raises:
        XDogeError: the store was prepared with another tokenizer, or the model has none.
    """
    stored, path = store.tokenizer_fingerprint, model_file(model, "tokenizer.model")
    if path is not None and sha256_file(path) == stored:
        return
    own = _transformers_tokenizer(model).fingerprint
    if own != stored:
        raise XDogeError(
            f"{store.path} was prepared with another tokenizer ({stored[:12]}) than that of {model} "
            f"({own[:12]}), so the model would misread its tokens. {advice}"
        )


def _transformers_tokenizer(model: str) -> Tokenizer:
    if Path(model).is_dir() and not any(
        re.search(r"^(tokenizer|vocab|tiktoken)|\.model$", child.name) for child in Path(model).iterdir()
    ):
        raise XDogeError(
            f"{model} has no tokenizer; copy the files of the tokenizer that it was trained with into that folder."
        )
    return huggingface(model)
