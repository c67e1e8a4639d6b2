"""Small corpora for tests of `prepare`, and comparison of folders."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

WORDS = ["etxea", "mendia", "casa", "monte", "día", "noite", "house", "river", "night", "ura", "auga", "water"]


def documents(seed: int, count: int, words: int = 12) -> list[str]:
    draw = random.Random(seed)
    return [f"{n} " + " ".join(draw.choices(WORDS, k=draw.randint(1, words))) for n in range(count)]


def write_documents(path: Path, texts: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")


def write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(yaml.safe_dump(value, sort_keys=False), encoding="utf-8")


def edit(corpus: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = yaml.safe_load(corpus.read_text())
    change(value)
    write(corpus, value)


def contents(folder: Path) -> dict[str, str]:
    """Return a hash of every file in a folder, for store.json without its date."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        data = path.read_bytes() if path.is_file() else b"folder"
        if path.name == "store.json":
            data = json.dumps({**json.loads(data), "created": None}).encode()
        hashes[str(path.relative_to(folder))] = hashlib.sha256(data).hexdigest()
    return hashes


def held_out(text: str, fraction: float) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64 < fraction
