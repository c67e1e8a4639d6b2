"""Speed of `prepare`, relative to the tokenizer's own batch encoding on the same number of cores.

    python benchmarks/prepare.py [--corpus CORPUS.yaml] [--repeat 4] [--rounds 5] [--workers N]

The tokenizer alone runs `SentencePieceProcessor.encode(texts, num_threads=workers)` with all texts in memory. It
returns the tokens as Python lists (the default), and in a second measurement as NumPy arrays. `prepare` runs in a new
Python process that imports xdoge, scans, reads, tokenises, counts, hashes and writes the whole store. Its wall-clock
time is measured from start to exit. Both take turns, and the medians are compared.

Without --corpus, the corpus is that of XDOGE_REAL_DATA, or the built-in sample at 28 times its size. The text of every
file is repeated `--repeat` times. Starting Python and importing xdoge takes 0.4 s, which --repeat 1 makes visible. The
last line of output is one JSON object.

    python benchmarks/prepare.py --small-files 10000 [--corpus CORPUS.yaml] [--rounds 5] [--workers N]

This compares one file with 10,000 files of four documents each. The documents are the same, cut to 1,500 characters.
The benchmark checks that both stores have the same tokens.
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
from collections.abc import Sequence
from pathlib import Path

import sentencepiece
import yaml

from xdoge.corpus import Corpus, prepare
from xdoge.corpus.readers.files import file_blocks
from xdoge.corpus.sample import write_sample
from xdoge.names import split_source

SAMPLE_SCALE = 28
DOCUMENTS_A_FILE = 4
COMMAND = "import sys; from xdoge.corpus import prepare; prepare(sys.argv[1], sys.argv[2], workers=int(sys.argv[3]))"


def repeated(path: Path, folder: Path, *, repeat: int) -> Corpus:
    """Return the corpus with every file `repeat` times as long, and with its tokenizer as a model file.

    If the corpus asks to train a tokenizer, it is trained first and not timed.
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
            for file in files:
                copy = folder / "copies" / source.name / kind / file.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes() * repeat)  # JSONL and gzip may be concatenated
            if files:
                entry[kind] = [f"copies/{source.name}/{kind}/{file.name}" for file in files]
    (folder / "corpus.yaml").write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")
    return Corpus.load(folder / "corpus.yaml")


def texts_of(corpus: Corpus, splits: Sequence[str] = ("files", "validation")) -> list[str]:
    """Return every document of the corpus, or of some of its splits."""
    return [
        text
        for source in corpus.sources
        for split in splits
        for file in getattr(source, split)
        for block in file_blocks(file, source.spec.text)
        for text in block.texts(source.spec.text)
        if text and not text.isspace()
    ]


def small_files(path: Path, folder: Path, *, count: int, rounds: int, workers: int) -> None:
    """Print the time of `prepare` for many small files, relative to one file with the same documents."""
    texts = texts_of(repeated(path, folder, repeat=1))
    wanted = DOCUMENTS_A_FILE * count
    lines = [json.dumps({"text": f"{texts[n % len(texts)][:1500]} {n}"}) + "\n" for n in range(wanted)]
    (folder / "many").mkdir()
    (folder / "one.jsonl").write_text("".join(lines), encoding="utf-8")
    for number in range(count):
        part = lines[DOCUMENTS_A_FILE * number : DOCUMENTS_A_FILE * (number + 1)]
        (folder / f"many/{number:06}.jsonl").write_text("".join(part), encoding="utf-8")
    seconds: dict[str, list[float]] = {"one": [], "many": []}
    for name, files in (("one", "one.jsonl"), ("many", "many/*.jsonl")):
        languages = {"xx": {"sources": {"web": {"files": files}}}}
        value = {"name": name, "tokenizer": {"sentencepiece": "tokenizer.model"}, "languages": languages}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(value), encoding="utf-8")
    for _ in range(rounds):
        stores = set()
        for name, values in seconds.items():
            values.append(timed(folder / f"{name}.yaml", out := folder / "store", workers))
            stores.add((out / "tokens/xx/web.train.arrow").read_bytes())
            shutil.rmtree(out)
        if len(stores) > 1:
            sys.exit("The two stores have different tokens.")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, values in seconds.items():
        print(f"  {name:<5} {medians[name]:6.2f} s ({min(values):.2f} to {max(values):.2f})")
    ratio = round(medians["many"] / medians["one"], 2)
    print(json.dumps({"files": count, "documents": wanted, "small_files_ratio": ratio, "rounds": rounds}))


def timed(corpus: Path, out: Path, workers: int) -> float:
    """Return the seconds that a new Python process takes to prepare a corpus, from start to exit."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", COMMAND, str(corpus), str(out), str(workers)], check=True)
    return time.perf_counter() - start


def main() -> None:
    """Run the rounds, then print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--small-files", type=int, metavar="N", help="compare N files of four documents with one")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = arguments.corpus
        if path is None and "XDOGE_REAL_DATA" in os.environ:
            path = Path(os.environ["XDOGE_REAL_DATA"]) / "corpus" / "corpus.yaml"
        if path is None:
            path = write_sample(folder / "sample", scale=SAMPLE_SCALE)
        if arguments.small_files:
            small_files(path, folder, count=arguments.small_files, rounds=arguments.rounds, workers=arguments.workers)
            return
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
            seconds["prepare"].append(timed(corpus.path, out, arguments.workers))
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
