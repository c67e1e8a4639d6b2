"""Speed of xdoge's perplexity, relative to lm-eval's rolling log-likelihood with the same model and text.

    python benchmarks/perplexity.py [--model FOLDER] [--text FILE.jsonl ...] [--documents 96] [--threads 1]

Both tokenise the texts and return the nats of each document. The nats are compared first. Loading is not timed. The
harness runs with 16 rows at a time and with its default of one. xdoge uses its own batches, and a stride that gives the
same windows as the harness.

The contestants take turns within each repetition. Each figure is the median over repetitions of the ratio within a
repetition, with minimum and maximum. With one thread on a CPU, CPU time is measured, because it does not include other
work of the machine. Otherwise wall-clock time is measured.

Without --model, the model is a new proxy with a context of 512 and a byte-pair tokenizer of 16,000 tokens. Without
--text, the text is the built-in sample in six languages. It is cut into documents whose lengths have the distribution
of real pages. The last line of output is one JSON object. `ratio` is relative to the harness with 16 rows,
`ratio_one_row` to the harness with one row.

`even lengths` is xdoge on the same number of tokens in documents of equal length, which fill batches without padding.
No batching of uneven documents can be faster. `limit_one_row` is its speed relative to the harness with one row.

With many rows, the harness loses time to padding. With one row, it loses time to the small matrices of short documents.
A CPU multiplies small matrices almost as fast as large ones. So one row is the fastest choice for the harness on a CPU,
but not on a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from transformers.utils import logging

from xdoge.corpus.readers.files import file_blocks
from xdoge.corpus.sample import SAMPLE_BYTES, generate
from xdoge.distributed import Processes
from xdoge.eval.scoring import LoadedModel
from xdoge.models.recipes import load_recipe
from xdoge.models.resolver import CausalModel
from xdoge.models.tokenizers import model_tokenizer

CONTEXT = 512
BATCH_TOKENS = {"cpu": 2048, "cuda": 16384}
ROWS = (16, 1)
EVEN = "even lengths"
MEDIAN, SIGMA = 370, 1.1
"""Median length of documents in characters, and standard deviation of its logarithm.

Measured on 2,999 validation pages and messages of software documentation in six languages: 367 and 1.08.
"""


def sample_texts(documents: int) -> list[str]:
    """Return documents that are cut from the built-in sample, from each language and source in turn."""
    streams = [
        itertools.cycle("\n".join(itertools.islice(generate(language, source), 300)).split("\n"))
        for language, sources in SAMPLE_BYTES.items()
        for source in sources
    ]
    lengths = np.random.default_rng(0).lognormal(np.log(MEDIAN), SIGMA, size=documents)
    texts = []
    for number, length in enumerate(lengths.tolist()):
        text = ""
        while len(text) < length:
            text += next(streams[number % len(streams)]) + "\n"
        texts.append(text[: max(20, int(length))].rstrip())
    return texts


def fresh_model(folder: Path, recipe: str) -> None:
    """Write a proxy with random weights, and a tokenizer trained on the sample."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=16_000,
        special_tokens=["<s>", "</s>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(sample_texts(1200), trainer)
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    shape = load_recipe(recipe).model_copy(update={"sequence_length": CONTEXT})
    model = shape.build(vocab_size=16_000, seed=0)
    model.config.bos_token_id, model.config.eos_token_id = 0, 1
    model.save_pretrained(folder)


def contestants(folder: str, texts: list[str]) -> tuple[int, dict[str, Callable[[], list[float]]]]:
    """Return the number of tokens, and for each contestant a function that returns the nats of each document."""
    causal, processes = CausalModel.find(folder), Processes.join(cpu=False)
    window = min(causal.context or CONTEXT, CONTEXT)
    batch = BATCH_TOKENS[processes.device]
    loaded = LoadedModel(folder, causal.load(precision=processes.precision(), device=processes.device))
    tokenizer = model_tokenizer(folder)
    begin = tokenizer.end_of_document if causal.begin is None else causal.begin

    def ours() -> list[float]:
        flat, lengths = tokenizer.encode(texts)
        ends = np.cumsum(lengths).tolist()
        documents = [flat[end - n : end - 1] for end, n in zip(ends, lengths.tolist(), strict=True)]
        nats = loaded.nats(documents, begin=begin, window=window, stride=window, batch_tokens=batch)
        return [float(value) for value in nats]

    def even() -> list[float]:
        flat, lengths = tokenizer.encode(texts)
        documents = np.array_split(flat[: int(lengths.sum()) - len(texts)], len(texts))
        loaded.nats(documents, begin=begin, window=window, stride=window, batch_tokens=batch)
        return nats

    nats = ours()

    def theirs(rows: int) -> Callable[[], list[float]]:
        harness = HFLM(
            pretrained=loaded.model,
            tokenizer=folder,
            max_length=window,
            batch_size=rows,
            device=processes.device,
            add_bos_token=False,
            prefix_token_id=begin,
        )

        def run() -> list[float]:
            requests = [Instance("loglikelihood_rolling", {}, (text,), n) for n, text in enumerate(texts)]
            with contextlib.redirect_stderr(io.StringIO()):  # hides a progress bar per batch
                return [-float(value) for value in harness.loglikelihood_rolling(requests, disable_tqdm=True)]

        return run

    tokens = int(tokenizer.encode(texts)[1].sum()) - len(texts)
    return tokens, {"xdoge": ours, EVEN: even, **{f"harness, {n} row{'s' * (n > 1)}": theirs(n) for n in ROWS}}


def main() -> None:
    """Measure, then print a table and one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="folder of a causal language model with a tokenizer.json")
    parser.add_argument("--recipe", default="7m", help="of the fresh proxy, without --model")
    parser.add_argument("--text", nargs="+", type=Path, help="files with a column `text`")
    parser.add_argument("--documents", type=int, default=96, help="in all; evenly from the files of --text")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    clock = time.perf_counter if torch.cuda.is_available() or arguments.threads > 1 else time.process_time
    texts = sample_texts(arguments.documents)
    if arguments.text:
        each = -(-arguments.documents // len(arguments.text))
        files = [(row for block in file_blocks(file, "text") for row in block.texts("text")) for file in arguments.text]
        texts = [text for rows in files for text in itertools.islice(filter(None, rows), each)]
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.model:
            fresh_model(Path(folder), arguments.recipe)
        tokens, runs = contestants(arguments.model or folder, texts)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        nats = {name: run() for name, run in runs.items()}  # also warms up the libraries
        for _ in range(arguments.repetitions):
            for name, run in runs.items():
                start = clock()
                run()
                seconds[name].append(clock() - start)
    lengths = [len(text.encode()) for text in texts]
    print(f"{len(texts)} documents of {min(lengths):,} to {max(lengths):,} bytes, {tokens:,} tokens")
    ratios = {}
    for name, taken in seconds.items():
        difference = max(abs(a - b) / b for a, b in zip(nats[name], nats["xdoge"], strict=True))
        ratio = [t / own for t, own in zip(taken, seconds["xdoge"], strict=True)]
        ratios[name] = round(statistics.median(ratio), 3)
        speed = f"{tokens / statistics.median(taken):8,.0f} tokens/s"
        spread = f"({min(ratio):.2f}–{max(ratio):.2f})"
        print(f"{name:<18} {speed}   xdoge's are {ratios[name]:.2f} × that {spread}   nats differ by {difference:.0e}")
        if difference > 1e-3:
            sys.exit(f"{name} finds other nats.")
    ratio, ratio_one_row = (ratios[name] for name in ratios if name not in ("xdoge", EVEN))
    limit = round(ratio_one_row / ratios[EVEN], 3)
    result = {"ratio": ratio, "ratio_one_row": ratio_one_row, "limit_one_row": limit}
    print(json.dumps({**result, "tokens": tokens, "threads": arguments.threads}))


if __name__ == "__main__":
    main()
