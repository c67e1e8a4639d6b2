"""Tokens per second of `prepare` over those of the bare tokenizer's batch encoding, on as many cores.

    python benchmarks/prepare.py [--corpus CORPUS.yaml] [--repeat 4] [--rounds 5] [--workers N]

Bare: `SentencePieceProcessor.encode(texts, num_threads=workers)`, the texts already in memory, its tokens left as
Python lists (its default) and, beside it, as NumPy arrays. Prepare: a fresh `python` that imports xdoge, scans,
reads, tokenises, counts, hashes and writes the whole store; its wall time is counted from start to exit. Both take
turns in one run, and the medians are compared. Without --corpus it is the corpus of XDOGE_REAL_DATA, or the built-in
sample made eight times as large. Every file is read `--repeat` times, as copies: starting Python and importing takes
0.4 s, which no corpus worth preparing notices, and --repeat 1 shows. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import sentencepiece
import yaml

from xdoge.corpus import Corpus, prepare
from xdoge.corpus.readers.files import file_blocks
from xdoge.corpus.sample import write_sample
from xdoge.names import split_source

SAMPLE_SCALE = 8
COMMAND = "import sys; from xdoge.corpus import prepare; prepare(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]))"


def repeated(path: Path, folder: Path, *, repeat: int) -> Corpus:
    """Return the corpus with `repeat` copies of every file, and its tokenizer as a model file.

    A tokenizer that is to be trained is trained first, which is not timed.
    """
    corpus = Corpus.load(path)
    model = corpus.spec.tokenizer.sentencepiece
    if model is not None:
        shutil.copy(corpus.folder / model, folder / "tokenizer.model")
    elif corpus.spec.tokenizer.train is not None:
        print("training the tokenizer first (not timed)", file=sys.stderr)
        shutil.copy(prepare(path, folder / "first").path / "tokenizer/tokenizer.model", folder)
    else:
        sys.exit("The benchmark compares with SentencePiece: the corpus has to name a model or train one.")
    value = corpus.spec.model_dump(mode="json", exclude_none=True)
    value["tokenizer"] = {"sentencepiece": "tokenizer.model"}
    for source in corpus.sources:
        if source.dataset is not None:
            sys.exit(f"{source.name} is a data set; the benchmark wants files.")
        language, name = split_source(source.name)
        entry = value["languages"][language]["sources"][name]
        for kind, files in (("files", source.files), ("validation", source.validation)):
            copies = [Path("copies") / str(n) / source.name / kind / file.name for n in range(repeat) for file in files]
            for copy, file in zip(copies, files * repeat, strict=True):
                (folder / copy).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, folder / copy)
            if files:
                entry[kind] = [str(copy) for copy in copies]
    (folder / "corpus.yaml").write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return Corpus.load(folder / "corpus.yaml")


def texts_of(corpus: Corpus) -> list[str]:
    """Return every document of the corpus, training and validation."""
    return [
        text
        for source in corpus.sources
        for file in (*source.files, *source.validation)
        for block in file_blocks(file, source.spec.text)
        for text in block.texts(source.spec.text)
        if text and not text.isspace()
    ]


def main() -> None:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = arguments.corpus
        if path is None and "XDOGE_REAL_DATA" in os.environ:
            path = Path(os.environ["XDOGE_REAL_DATA"]) / "corpus" / "corpus.yaml"
        if path is None:
            path = write_sample(folder / "sample", scale=SAMPLE_SCALE)
        corpus = repeated(path, folder, repeat=arguments.repeat)
        processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        texts = texts_of(corpus)
        tokens = sum(map(len, processor.encode(texts, num_threads=arguments.workers, return_type="numpy")))
        seconds: dict[str, list[float]] = {"bare, lists": [], "bare, NumPy": [], "prepare": []}
        for number in range(arguments.rounds):
            start = time.perf_counter()
            processor.encode(texts, num_threads=arguments.workers)
            seconds["bare, lists"].append(time.perf_counter() - start)
            start = time.perf_counter()
            processor.encode(texts, num_threads=arguments.workers, return_type="numpy")
            seconds["bare, NumPy"].append(time.perf_counter() - start)
            out = folder / f"store-{number}"
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", COMMAND, str(corpus.path), str(out), str(arguments.workers)], check=True
            )
            seconds["prepare"].append(time.perf_counter() - start)
            shutil.rmtree(out)
    medians = {what: statistics.median(values) for what, values in seconds.items()}
    print(f"{corpus.spec.name}: {len(texts):,} documents, {tokens:,} tokens, {arguments.workers} threads")
    for what, values in seconds.items():
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"  {what:<12} {medians[what]:6.2f} s ({spread})  {tokens / medians[what]:>11,.0f} tokens/s")
    result = {
        "ratio": round(medians["bare, lists"] / medians["prepare"], 3),
        "ratio_numpy": round(medians["bare, NumPy"] / medians["prepare"], 3),
        "tokens_per_second": round(tokens / medians["prepare"]),
        "bare_tokens_per_second": round(tokens / medians["bare, lists"]),
        "tokens": tokens,
        "cores": arguments.workers,
        "repeat": arguments.repeat,
        "rounds": arguments.rounds,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
