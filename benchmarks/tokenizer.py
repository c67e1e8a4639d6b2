"""Processor time of training a tokenizer as `prepare` does, relative to SentencePiece's own defaults on more text.

    python benchmarks/tokenizer.py [--corpus CORPUS.yaml] [--pieces 1000 16000]

Three trainings are compared for each vocabulary. The first has SentencePiece's defaults and 6 million characters of
each language, as `prepare` once had. The second has the settings of xdoge and the same text. The third also has xdoge's
default sample, if that is smaller. Reading and sampling count. `ratio` is the time relative to the first training. A
positive `more tokens` means that the validation text has more tokens than with the first.

Without --corpus, the corpus is that of XDOGE_REAL_DATA, or the built-in sample at 28 times its size. The last line of
output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from prepare import SAMPLE_SCALE, texts_of

from xdoge.corpus import Corpus
from xdoge.corpus.prepare import train_tokenizer
from xdoge.corpus.sample import write_sample
from xdoge.corpus.spec import CHARACTERS_PER_PIECE, MOST_CHARACTERS, TokenizerSpec
from xdoge.corpus.work import Work

SENTENCEPIECE = {"LEAST_SEED": 1_000_000, "SHRINKING": 0.75, "SUB_ITERATIONS": 2}  # its defaults


def measured(corpus: Corpus, settings: dict[str, int], texts: list[str]) -> dict[str, Any]:
    """Return the processor seconds of one training, and its bytes per token on `texts`."""
    tokenizer = TokenizerSpec.model_validate({"train": settings})
    corpus = replace(corpus, spec=corpus.spec.model_copy(update={"tokenizer": tokenizer}))
    start = time.process_time()
    with ThreadPoolExecutor(1) as pool:
        trained = train_tokenizer(corpus, [Work(source, corpus) for source in corpus.sources], pool, lambda event: None)
    seconds = time.process_time() - start
    n_tokens = int(trained.encode(texts)[1].sum()) - len(texts)  # without the ends of documents
    n_bytes = sum(len(text.encode("utf-8")) for text in texts)
    return {
        "pieces": tokenizer.train.vocab_size,
        "characters": tokenizer.train.characters_per_language,
        "seconds": seconds,
        "bytes_per_token": n_bytes / n_tokens,
    }


def main() -> None:
    """Train every tokenizer, then print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--pieces", type=int, nargs="+", default=[1_000, 16_000])
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as name:
        path = options.corpus
        if path is None and "XDOGE_REAL_DATA" in os.environ:
            path = Path(os.environ["XDOGE_REAL_DATA"]) / "corpus" / "corpus.yaml"
        if path is None:
            path = write_sample(Path(name) / "sample", scale=SAMPLE_SCALE)
        corpus = Corpus.load(path)
        texts = texts_of(corpus, ["validation"])
        for pieces in options.pieces:
            most = {"vocab_size": pieces, "characters_per_language": MOST_CHARACTERS}
            with patch.multiple("xdoge.corpus.tokenizer", **SENTENCEPIECE):
                first = {"settings": "SentencePiece", **measured(corpus, most, texts)}
            rows = [first, {"settings": "xdoge", **measured(corpus, most, texts)}]
            if CHARACTERS_PER_PIECE * pieces < MOST_CHARACTERS:
                rows.append({"settings": "xdoge", **measured(corpus, {"vocab_size": pieces}, texts)})
            for row in rows:
                row["ratio"] = row["seconds"] / first["seconds"]
                row["more_tokens"] = first["bytes_per_token"] / row["bytes_per_token"] - 1
                print(
                    f"{pieces:>7,} pieces, {row['characters']:>9,} characters a language, {row['settings']:<13} "
                    f"{row['seconds']:6.1f} s, ratio {row['ratio']:.2f}, {row['bytes_per_token']:.4f} bytes per token, "
                    f"more tokens {row['more_tokens']:+.2%}",
                    flush=True,
                )
            results += rows
    print(json.dumps(results))


if __name__ == "__main__":
    main()
