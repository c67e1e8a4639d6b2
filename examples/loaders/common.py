"""Code that the example scripts share: command-line arguments, and the comparison of two streams of sequences."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence

import torch


def arguments(description: str, argv: Sequence[str] | None, *, out: bool = False) -> argparse.Namespace:
    """Return the command-line arguments. If `out` is true, there is also a folder for checkpoints."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("store", help="folder that xdoge prepare wrote")
    parser.add_argument("mixture", help="mixture.json that xdoge mix wrote")
    if out:
        parser.add_argument("out", help="folder for checkpoints, one that every process sees")
    parser.add_argument("--sequence-length", type=int, default=128, help="tokens of a sequence (128)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences of the global batch, a multiple of 4 (8)")
    parser.add_argument("--steps", type=int, default=4, help="batches before the run stops, and after it resumes (4)")
    return parser.parse_args(argv)


def compare(what: str, stream: torch.Tensor, expected: torch.Tensor) -> bool:
    """Print the digests of two streams of token ids. Return whether the streams are equal."""
    equal = torch.equal(stream, expected)
    print(f"{what}: {digest(stream)}, expected {digest(expected)}, equal: {equal}")
    return equal


def digest(stream: torch.Tensor) -> str:
    """Return a short hash of all tokens and their order, in hexadecimal."""
    return hashlib.sha256(stream.contiguous().numpy().tobytes()).hexdigest()[:12]
