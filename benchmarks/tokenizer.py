"""Processor time of training a tokenizer on a sample of the text, relative to training it on more of it.

    python benchmarks/tokenizer.py [--corpus CORPUS.yaml] [--pieces 1000 16000] [--characters 6000000 1000000 ...]

Every training runs as in `prepare`: the documents are read and sampled, and SentencePiece is trained on them. The table
has the processor time of this, and the bytes per token of the validation text. `default` marks the sample that
`prepare` takes without `characters_per_language`. The first of `--characters` is the reference for the ratios. A
positive `longer` means more tokens than the reference for the same text.

Without --corpus, the corpus is that of XDOGE_REAL_DATA, or the built-in sample at 28 times its size. The last line of
output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from prepare import SAMPLE_SCALE

from xdoge.corpus import Corpus
from xdoge.corpus.prepare import train_tokenizer
from xdoge.corpus.readers.files import file_blocks
from xdoge.corpus.sample import write_sample
from xdoge.corpus.spec import TokenizerSpec
from xdoge.corpus.work import Work

REFERENCE = 6_000_000  # characters per language, the most that `prepare` takes by default


def spent() -> float:
    """Return the processor time of this process, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def validation_texts(corpus: Corpus) -> list[str]:
    """Return every validation document of the corpus."""
    return [
        text
        for source in corpus.sources
        for file in source.validation
        for block in file_blocks(file, source.spec.text)
        for text in block.texts(source.spec.text)
        if text and not text.isspace()
    ]


def measured(corpus: Corpus, settings: dict[str, int], texts: list[str]) -> dict[str, Any]:
    """Return the processor seconds of one training, its sample, and its bytes per token on `texts`."""
    spec = corpus.spec.model_copy(update={"tokenizer": TokenizerSpec.model_validate({"train": settings})})
    corpus = replace(corpus, spec=spec)
    start = spent()
    with ThreadPoolExecutor(1) as pool:
        works = [Work(source, corpus) for source in corpus.sources]
        tokenizer = train_tokenizer(corpus, works, pool, lambda event: None)
    seconds = spent() - start
    n_tokens = int(tokenizer.encode(texts)[1].sum()) - len(texts)  # without the ends of documents
    n_bytes = sum(len(text.encode("utf-8")) for text in texts)
    characters = spec.tokenizer.train.characters_per_language
    row = {"characters_per_language": characters, "seconds": seconds, "bytes_per_token": n_bytes / n_tokens}
    return {**settings, **row}


def main() -> None:
    """Train every tokenizer, then print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--pieces", type=int, nargs="+", default=[1_000, 16_000])
    parser.add_argument("--characters", type=int, nargs="+", default=[REFERENCE, 3_000_000, 2_000_000, 1_000_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        path = options.corpus
        if path is None and "XDOGE_REAL_DATA" in os.environ:
            path = Path(os.environ["XDOGE_REAL_DATA"]) / "corpus" / "corpus.yaml"
        if path is None:
            path = write_sample(Path(name) / "sample", scale=SAMPLE_SCALE)
        corpus = Corpus.load(path)
        texts = validation_texts(corpus)
        rows = []
        for pieces in options.pieces:
            default = TokenizerSpec.model_validate({"train": {"vocab_size": pieces}}).train
            first = None
            for characters in options.characters:
                settings = {"vocab_size": pieces, "characters_per_language": characters}
                row = measured(corpus, settings, texts)
                first = first or row
                row["ratio"] = row["seconds"] / first["seconds"]
                row["longer"] = first["bytes_per_token"] / row["bytes_per_token"] - 1
                mark = "  default" if characters == default.characters_per_language else ""
                print(
                    f"{pieces:>7,} pieces, {characters:>10,} characters per language: {row['seconds']:6.1f} s, "
                    f"ratio {row['ratio']:.2f}, {row['bytes_per_token']:.4f} bytes per token, "
                    f"longer {row['longer']:+.2%}{mark}",
                    flush=True,
                )
                rows.append(row)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
