"""What text there is, and its tokens on disk.

`Corpus` and `CorpusSpec` are corpus.yaml, `xdoge.corpus.prepare.prepare` turns one into a token store, and
`TokenStore` opens that. Each name is imported when it is used, so that a loader's worker which opens a store needs
NumPy and pyarrow and nothing else.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xdoge.corpus.spec import Corpus, CorpusSpec
    from xdoge.corpus.store import TokenStore
    from xdoge.corpus.tokenizer import Tokenizer

__all__ = ["Corpus", "CorpusSpec", "TokenStore", "Tokenizer"]

_HOMES = {"Corpus": "spec", "CorpusSpec": "spec", "TokenStore": "store", "Tokenizer": "tokenizer"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
