"""The formats that a mixture can be exported to, and the function that writes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from xdoge.errors import XDogeError
from xdoge.export.csv_table import csv
from xdoge.export.grain import grain
from xdoge.export.huggingface import axolotl, datasets, llamafactory
from xdoge.export.megatron import megatron, megatron_json
from xdoge.export.mosaicml import mosaicml, mosaicml_proportion
from xdoge.export.olmo_core import olmo_core
from xdoge.export.request import Export, Paths, Request
from xdoge.export.torchtitan import torchtitan
from xdoge.mixtures.mixture import Mixture

FORMATS: Mapping[str, Callable[[Request], Export]] = MappingProxyType(
    {
        "megatron": megatron,
        "megatron-json": megatron_json,
        "torchtitan": torchtitan,
        "grain": grain,
        "mosaicml": mosaicml,
        "mosaicml-proportion": mosaicml_proportion,
        "olmo-core": olmo_core,
        "datasets": datasets,
        "llamafactory": llamafactory,
        "axolotl": axolotl,
        "csv": csv,
    }
)
"""Formats that `export` can write, by name. The docstring of each function is the manual of its format."""


def export(
    mixture: Mixture,
    to: str,
    *,
    paths: Paths | None = None,
    documents: Mapping[str, int] | None = None,
    sequence_length: int | None = None,
) -> Export:
    """Return a mixture in the format of another trainer, with warnings about differences in that trainer's behaviour.

    Args:
        mixture: the mixture. Sources from which it reads no tokens are left out.
        to: name of the format, one of `FORMATS`.
        paths: location of each source for the trainer. This is a template such as "data/{language}/{source}", or a
            mapping from source to path. In a template, {name} stands for "language/source". The default depends on the
            format.
        documents: training documents per source, for example `TokenStore.documents()`. A trainer that draws documents
            needs weights in proportion to token share / mean document length.
        sequence_length: T, tokens per sequence, if the trainer's rows are sequences. It takes precedence over
            `documents`.

    Returns:
        Content of the file, its suffix, and the warnings.

    Raises:
        XDogeError: the format is unknown, paths or documents do not cover all sources, or the format cannot express
            the mixture.
    """
    if to not in FORMATS:
        raise XDogeError(f"format {to!r} is unknown; known: {', '.join(FORMATS)}.")
    request = Request(mixture, paths, documents, sequence_length)
    written = FORMATS[to](request)
    if to == "csv":
        return written
    return Export(written.text, written.suffix, (*_general_warnings(request), *written.warnings))


def _general_warnings(request: Request) -> list[str]:
    """Return the warnings that apply to every other trainer."""
    lines = []
    if unread := [source for source in request.mixture.sources if source not in request.shares]:
        lines.append(f"left out, because the mixture reads 0 tokens of them: {', '.join(unread)}.")
    before = {source: share.read_before for source, share in request.shares.items() if share.read_before}
    if before:
        most = max(before, key=lambda source: before[source])
        lines.append(
            f"earlier phases read {sum(before.values()):,} tokens, {before[most]:,} of them from {most}. "
            "The exported run starts every source from the beginning, so text that was not read yet does "
            "not come first."
        )
    return lines
