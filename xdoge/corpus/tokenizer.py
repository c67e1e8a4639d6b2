"""Tokenizers: a SentencePiece model, a Hugging Face tokenizer, or a SentencePiece model trained on the corpus.

xdoge adds the end-of-document token after every document, and no other special token. Encoding releases Python's global
lock, so threads can share one tokenizer and use all cores.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import heappop, heappush
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from xdoge.corpus.remote import find_remote, is_remote, local
from xdoge.corpus.spec import TokenizerSpec, TrainTokenizer
from xdoge.errors import Interrupted, MissingExtraError, XDogeError
from xdoge.io import read_json, read_regular, refuse_pointer, replacing_folder, write_json

SCHEMA = "xdoge.tokenizer"
UNKNOWN, BEGIN, END, PAD = 0, 1, 2, 3
"""Ids of the special tokens in models that xdoge trains, as in the Llama family."""
TRAINING_THREADS = 4
"""Fixed, because another number of threads adds numbers in another order and gives another model."""
LEAST_SEED, SEED_EACH, MOST_SEED = 100_000, 6, 1_000_000
"""Pieces with which the training of a unigram model begins: 6 for each piece of the vocabulary, within limits.

SentencePiece begins with a million. With this, `SHRINKING` and `SUB_ITERATIONS`, training takes half the time.
"""
SHRINKING = 0.5
"""Share of the pieces that each round of the training keeps; 0.75 in SentencePiece."""
SUB_ITERATIONS = 1
"""Steps of expectation maximisation in each round; 2 in SentencePiece."""
LONGEST_LINE = 1 << 16
"""Bytes. SentencePiece skips longer lines, so they are divided. Its default of 4,192 would lose long paragraphs."""

PIECE = 5_000
"""Characters of the pieces into which a longer line is divided."""

JSON_FILES = (
    "added_tokens.json",
    "config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
"""Files of a Hugging Face tokenizer, or of the model beside it, that must be JSON objects."""

UNKNOWN_LETTER, PART_OF_LETTER = 1, 2
BYTE_PIECES = {f"<0x{byte:02X}>" for byte in range(0x80, 0x100)}
"""SentencePiece's pieces for single bytes of characters that have no piece of their own."""
BYTE_LEVEL = {chr(code) for code in (*range(0xA1, 0xAD), *range(0xAE, 0x100), *range(290, 324))}
"""The same bytes in the alphabet of byte-level BPE."""

Lengths = npt.NDArray[np.int64]
_Encoder = Callable[[Sequence[str]], list[Any]]
_Decoder = Callable[[Sequence[list[int]]], list[str]]


class Tokenizer:
    """Encodes and decodes documents. Each encoded document ends with the end-of-document id.

    Attributes:
        kind: library of the tokenizer.
        vocab_size: size of the vocabulary. All ids are smaller.
        end_of_document: the end-of-sentence id of the model.
        fingerprint: SHA-256 of the SentencePiece model or of tokenizer.json.
        dtype: type of the ids: uint16 if all fit, else uint32.
        letters: (vocab_size,) UNKNOWN_LETTER for <unk>, PART_OF_LETTER for a single byte of a character, else 0.
    """

    def __init__(
        self,
        kind: Literal["sentencepiece", "huggingface"],
        *,
        encoder: _Encoder,
        decoder: _Decoder,
        vocab_size: int,
        end_of_document: int,
        fingerprint: str,
        write: Callable[[Path], object],
        unknown: int | None = None,
        vocabulary: Mapping[str, int] | None = None,
    ) -> None:
        self.kind = kind
        self.vocab_size = vocab_size
        self.end_of_document = end_of_document
        self.fingerprint = fingerprint
        self.dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self.letters = _letters(vocabulary or {}, unknown if unknown != end_of_document else None, vocab_size)
        self._encoder = encoder
        self._decoder = decoder
        self._write = write

    def __repr__(self) -> str:
        """Return the kind, the size of the vocabulary and the beginning of the fingerprint."""
        return f"Tokenizer({self.kind}, vocab_size={self.vocab_size:,}, fingerprint={self.fingerprint[:12]})"

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[Any], Lengths]:
        """Return the tokens of all texts, and the number of tokens of each text.

        Each text ends with the end-of-document id, which is counted.

        Returns:
            (tokens,) concatenated tokens of type `dtype`, and (texts,) lengths.
        """
        encoded = self._encoder(texts)
        lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded)) + 1  # (texts,)
        flat = np.empty(int(lengths.sum()), dtype=self.dtype)
        ends = np.cumsum(lengths) - 1
        flat[ends] = self.end_of_document
        inside = np.ones(len(flat), dtype=bool)
        inside[ends] = False
        if encoded and isinstance(encoded[0], np.ndarray):
            flat[inside] = np.concatenate(encoded)
        else:
            flat[inside] = np.fromiter(chain.from_iterable(encoded), dtype=self.dtype)
        return flat, lengths

    def decode(self, documents: Sequence[list[int]]) -> list[str]:
        """Return the text of each document. Special tokens are skipped."""
        return self._decoder(documents)

    def export(self, folder: Path) -> None:
        """Write the files of the tokenizer's library into an existing folder, for example that of a model."""
        self._write(folder)

    def save(self, folder: Path, *, settings: dict[str, Any] | None = None) -> None:
        """Write the files of the tokenizer's library, and xdoge.json for `load`.

        Args:
            folder: folder to write. It is replaced if it exists.
            settings: origin of the tokenizer. `saved` returns it.
        """
        shutil.rmtree(folder, ignore_errors=True)
        with replacing_folder(folder) as temporary:
            self.export(temporary)
            meta = {
                "schema": f"{SCHEMA}/1",
                "kind": self.kind,
                "vocab_size": self.vocab_size,
                "end_of_document": self.end_of_document,
                "fingerprint": self.fingerprint,
                "settings": settings,
            }
            write_json(temporary / "xdoge.json", meta)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Return the tokenizer that `save` wrote. A fast Hugging Face tokenizer is loaded without `transformers`.

        Raises:
            XDogeError: there is no tokenizer, or it is damaged.
        """
        meta = read_json(folder / "xdoge.json", schema=SCHEMA)
        if meta["kind"] == "sentencepiece":
            return _of_model_file(folder / "tokenizer.model", str(folder / "tokenizer.model"))
        if not (folder / "tokenizer.json").is_file():
            return huggingface(str(folder))
        try:
            from tokenizers import Tokenizer as Backend
        except ModuleNotFoundError as error:
            raise MissingExtraError("tokenizers", "proxy") from error
        content = (folder / "tokenizer.json").read_bytes()
        with _huggingface_errors(str(folder)):
            backend = Backend.from_buffer(content)
        config = read_json(folder / "tokenizer_config.json")
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None  # stores of earlier versions kept it
        backend.encode_special_tokens = True  # see `huggingface`
        return cls(
            "huggingface",
            encoder=_encoder_of(backend),
            decoder=backend.decode_batch,
            vocab_size=meta["vocab_size"],
            end_of_document=meta["end_of_document"],
            fingerprint=hashlib.sha256(content).hexdigest(),
            unknown=backend.token_to_id(_content(config.get("unk_token"))),
            vocabulary=backend.get_vocab(),
            write=lambda target: shutil.copytree(folder, target, dirs_exist_ok=True),
        )


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token or "")


def _letters(vocabulary: Mapping[str, int], unknown: int | None, vocab_size: int) -> npt.NDArray[np.int8]:
    letters = np.zeros(vocab_size, dtype=np.int8)
    parts = BYTE_LEVEL if BYTE_LEVEL.issubset(vocabulary) else BYTE_PIECES.intersection(vocabulary)
    letters[[vocabulary[part] for part in parts]] = PART_OF_LETTER
    if unknown is not None:
        letters[unknown] = UNKNOWN_LETTER
    return letters


def saved(folder: Path) -> dict[str, Any] | None:
    """Return the content of the xdoge.json that `save` wrote into `folder`, None if there is no tokenizer."""
    return read_json(folder / "xdoge.json", schema=SCHEMA) if (folder / "xdoge.json").is_file() else None


def load_tokenizer(spec: TokenizerSpec, folder: Path) -> Tokenizer:
    """Return the tokenizer that a corpus names. Relative paths refer to `folder`.

    Raises:
        XDogeError: it does not exist, is not a tokenizer, or has no end-of-sentence token.
    """
    if spec.sentencepiece is not None:
        return _of_model_file(*_model_file(spec.sentencepiece, folder))
    if spec.huggingface is None:
        raise ValueError("a tokenizer to be trained cannot be loaded")
    name = spec.huggingface
    return huggingface(str(folder / name) if (folder / name).exists() else name)


def _model_file(name: str, folder: Path) -> tuple[Path, str]:
    """Return the local path of a SentencePiece model, and its name for messages."""
    if not is_remote(name):
        return folder / name, str(folder / name)
    _, files = find_remote(name)
    if len(files) != 1:
        raise XDogeError(f"{name} names {len(files):,} files, not one tokenizer.")
    return local(files[0]), name


def _of_model_file(path: Path, name: str) -> Tokenizer:
    try:
        refuse_pointer(path, name=name)
        return sentencepiece_model(path.read_bytes(), where=name)
    except OSError as error:
        raise XDogeError(f"{name}: {str(error.strerror).lower()}.") from error


def sentencepiece_model(model: bytes, *, where: str) -> Tokenizer:
    """Return a tokenizer from the bytes of a SentencePiece model.

    Raises:
        XDogeError: the bytes are not a SentencePiece model, or the model has no end-of-sentence piece.
    """
    try:
        import sentencepiece
    except ModuleNotFoundError as error:
        raise MissingExtraError("sentencepiece", "proxy") from error
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise XDogeError(f"{where} is not a SentencePiece model.") from error
    if processor.vocab_size() == 0:
        raise XDogeError(f"{where} is not a SentencePiece model: it has no pieces.")
    if processor.eos_id() < 0:
        raise XDogeError(f"{where} has no end-of-sentence piece to end documents with; use a model trained with one.")

    def encode(texts: Sequence[str]) -> list[Any]:
        arrays: list[Any] = processor.encode(list(texts), num_threads=1, return_type="numpy")
        return arrays

    return Tokenizer(
        "sentencepiece",
        encoder=encode,
        decoder=lambda documents: processor.decode(documents, num_threads=1),
        vocab_size=processor.vocab_size(),
        end_of_document=processor.eos_id(),
        fingerprint=hashlib.sha256(model).hexdigest(),
        unknown=processor.unk_id(),
        vocabulary={piece: processor.piece_to_id(piece) for piece in BYTE_PIECES},  # the id of <unk> if there is none
        write=lambda folder: (folder / "tokenizer.model").write_bytes(model),
    )


def huggingface(name: str) -> Tokenizer:
    """Return the tokenizer that `AutoTokenizer` loads for a name on the Hub or a local folder.

    It adds no special tokens, and encodes the name of one inside a text, such as "</s>", like any other text.

    Raises:
        XDogeError: it cannot be loaded, or has no end-of-sentence token.
    """
    try:
        from transformers import AutoTokenizer
    except ModuleNotFoundError as error:
        raise MissingExtraError("transformers", "proxy") from error
    for file in sorted(Path(name).glob("*")) if Path(name).is_dir() else ():
        if file.is_file():
            refuse_pointer(file)
        if file.name in JSON_FILES:
            _refuse_wrong_json(file)
    with _huggingface_errors(name):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    if tokenizer.eos_token_id is None:
        raise XDogeError(
            f"{name} has no end-of-sentence token to end documents with; set eos_token in its tokenizer_config.json."
        )
    if (getattr(tokenizer, "sp_model_kwargs", None) or {}).get("enable_sampling"):
        raise XDogeError(f"{name} encodes with random sampling; remove enable_sampling from its tokenizer_config.json.")
    vocabulary = tokenizer.get_vocab()
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        if getattr(backend.model, "dropout", None):
            backend.model.dropout = None  # random encodings for training, with which every store would differ
        backend.encode_special_tokens = True  # text that contains "</s>" must not become two documents
        content = backend.to_str(pretty=True).encode("utf-8")
        encoder, decoder = _encoder_of(backend), backend.decode_batch
    else:
        content = json.dumps([type(tokenizer).__name__, sorted(vocabulary.items())]).encode("utf-8")

        def encoder(texts: Sequence[str]) -> list[Any]:
            ids: list[Any] = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True, verbose=False)[
                "input_ids"
            ]
            return ids

        def decoder(documents: Sequence[list[int]]) -> list[str]:
            texts: list[str] = tokenizer.batch_decode(
                list(documents), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            return texts

    def write(folder: Path) -> None:
        tokenizer.save_pretrained(folder)
        if tokenizer.is_fast:
            (folder / "tokenizer.json").write_bytes(content)  # exactly the bytes that were hashed

    return Tokenizer(
        "huggingface",
        encoder=encoder,
        decoder=decoder,
        vocab_size=max(len(tokenizer), max(vocabulary.values()) + 1),  # ids may have gaps
        end_of_document=tokenizer.eos_token_id,
        fingerprint=hashlib.sha256(content).hexdigest(),
        unknown=tokenizer.unk_token_id,
        vocabulary=vocabulary,
        write=write,
    )


def _refuse_wrong_json(file: Path) -> None:
    """Raise XDogeError if a file is not a JSON object. `read_json` would refuse names of tokens that are allowed."""
    try:
        value = json.loads(read_regular(file, "JSON"))
    except (ValueError, RecursionError) as error:
        raise XDogeError(f"{file} is not JSON: {error}.") from error
    if not isinstance(value, dict):
        raise XDogeError(f"{file} holds a JSON {type(value).__name__}, not an object.")


def _encoder_of(backend: Any) -> _Encoder:
    def encode(texts: Sequence[str]) -> list[Any]:
        return [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

    return encode


@contextlib.contextmanager
def _huggingface_errors(where: str) -> Iterator[None]:
    try:
        yield
    except Interrupted:
        raise
    except Exception as error:  # `tokenizers` raises bare Exception
        message = " ".join(str(error).split())[:200]
        raise XDogeError(f"{where} cannot be read as a Hugging Face tokenizer: {message}") from error


def sample(documents: Iterable[str], *, characters: int, seed: int) -> list[str]:
    """Return a random sample of documents with about `characters` in total. It does not depend on their order.

    The documents with the smallest keyed hashes are kept. Every document thus has the same probability, one pass is
    enough, and only the sample is in memory.
    """
    key = seed.to_bytes(8, "little")
    heap: list[tuple[int, str]] = []  # the largest hash on top
    held = 0
    for text in documents:
        rank = -int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8, key=key).digest(), "big")
        if held >= characters and rank <= heap[0][0]:
            continue
        heappush(heap, (rank, text))
        held += len(text)
        while held - len(heap[0][1]) >= characters:
            held -= len(heappop(heap)[1])
    return [text for _, text in sorted(heap, reverse=True)]


def level(samples: Sequence[list[str]], *, characters: int) -> list[list[str]]:
    """Reduce the samples of a language's sources to `characters` in total, as evenly as small samples allow."""
    chosen: list[list[str]] = [[] for _ in samples]
    sizes = [sum(map(len, texts)) for texts in samples]
    left = characters
    for turn, index in enumerate(sorted(range(len(samples)), key=sizes.__getitem__)):
        share = min(left / (len(samples) - turn), sizes[index])
        taken = 0
        for text in samples[index]:
            if taken >= share:
                break
            chosen[index].append(text)
            taken += len(text)
        left = max(0, left - taken)
    return chosen


def _cut(line: str) -> list[str]:
    """Return a line in pieces that are short enough for SentencePiece. This splits at most one word per piece."""
    if len(line.encode("utf-8")) <= LONGEST_LINE:
        return [line]
    return [line[start : start + PIECE] for start in range(0, len(line), PIECE)]


def train(texts: Iterable[str], spec: TrainTokenizer, *, where: str) -> bytes:
    """Return a SentencePiece model trained on `texts`. The same texts and settings give the same bytes.

    Raises:
        XDogeError: there is too little text for the vocabulary, or the vocabulary is too small for the alphabet.
    """
    try:
        import sentencepiece
    except ModuleNotFoundError as error:
        raise MissingExtraError("sentencepiece", "proxy") from error
    model = io.BytesIO()
    stop: BaseException | None = None

    def lines() -> Iterator[str]:
        nonlocal stop
        try:
            yield from (piece for text in texts for line in text.split("\n") if line.strip() for piece in _cut(line))
        except BaseException as error:  # SentencePiece turns any exception into a RuntimeError
            stop = error
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(),
            model_writer=model,
            vocab_size=spec.vocab_size,
            model_type=spec.model_type,
            byte_fallback=spec.byte_fallback,
            character_coverage=spec.character_coverage,
            max_sentence_length=LONGEST_LINE,
            shuffle_input_sentence=False,
            num_threads=TRAINING_THREADS,
            seed_sentencepiece_size=min(max(LEAST_SEED, SEED_EACH * spec.vocab_size), MOST_SEED),
            shrinking_factor=SHRINKING,
            num_sub_iterations=SUB_ITERATIONS,
            unk_id=UNKNOWN,
            bos_id=BEGIN,
            eos_id=END,
            pad_id=PAD,
            minloglevel=2,
        )
    except RuntimeError as error:
        if stop is not None:
            raise stop from None
        message = " ".join(str(error).split())
        if match := re.search(r"too high.*<= (\d+)", message):
            raise XDogeError(
                f"{where}: vocab_size {spec.vocab_size} is more than the text gives; at most {match[1]} works."
            ) from error
        if match := re.search(r"required_chars\. \d+ vs (\d+)", message):
            raise XDogeError(
                f"{where}: vocab_size {spec.vocab_size} cannot hold the letters of the text; use more than "
                f"{match[1]}, or lower character_coverage."
            ) from error
        raise XDogeError(f"{where}: SentencePiece cannot train: {message}") from error
    return model.getvalue()
