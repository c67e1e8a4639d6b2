"""Describe a corpus in corpus.yaml, tokenise it, and read the tokens.

`CorpusSpec` is the content of corpus.yaml. `Corpus` adds the files that it names on this machine. `prepare` turns a
corpus into a token store, and `TokenStore` opens the store. Each name is imported when it is first used. A data
loader's worker that opens a store therefore imports only NumPy and pyarrow.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xdoge.corpus.prepare import prepare
    from xdoge.corpus.spec import Corpus, CorpusSpec
    from xdoge.corpus.store import TokenStore
    from xdoge.corpus.tokenizer import Tokenizer

__all__ = ["Corpus", "CorpusSpec", "TokenStore", "Tokenizer", "prepare"]

_HOMES = {"Corpus": "spec", "CorpusSpec": "spec", "TokenStore": "store", "Tokenizer": "tokenizer"}


def __getattr__(name: str) -> Any:
    if name == "prepare":
        return import_module(f"{__name__}.prepare")  # a callable module, see xdoge/_callable.py
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
