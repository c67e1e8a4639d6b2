"""Perplexity per token and word, and bits per byte, of a causal language model.

Each document has one token before it that is not scored. It is the model's beginning-of-text token. A model without one
gets the end-of-document token, which comes before every document in training. Every token of the text is scored. So
models with any tokenizer predict the same bytes, and bits per byte compares them.

A document longer than the window is read in several windows. Each scores the next `stride` tokens, with at least
window - stride tokens before each of them. If the stride equals the window and the text is tokenised without special
tokens, this is lm-eval's rolling log-likelihood.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from xdoge.config import Config, Seed
from xdoge.corpus.store import TokenStore
from xdoge.distributed import Processes
from xdoge.errors import NonFiniteLossError, XDogeError, argument
from xdoge.eval.document_scores import SUMS, SourceScores
from xdoge.eval.documents import FileText, StoreText, Text
from xdoge.eval.results import ALL, Row
from xdoge.eval.scoring import LoadedModel, load_on
from xdoge.io import read_json, sha256_json, write_json
from xdoge.models.resolver import CausalModel
from xdoge.names import by_language, language_of, split_source
from xdoge.progress import Event, OnProgress, silent
from xdoge.sampling.permutation import derive_key

SCHEMA = "xdoge.perplexity"
TASK = "perplexity"
RELATIVE = "bits_relative_to_"
"""Prefix of the name of the metric for parallel text; the code of the reference language follows."""

Floats = NDArray[np.float64]


class PerplexitySettings(Config):
    """Every setting of the perplexity of a model.

    The model and the machine decide the values that are None. Square brackets in a description contain these defaults.
    """

    window: int | None = Field(None, ge=2, description="tokens the model sees at once [its context, at most 2048]")
    stride: int | None = Field(
        None, ge=1, description="tokens that are scored in each further window of a long document [half the window]"
    )
    max_documents: int | None = Field(
        None,
        gt=0,
        description="maximum number of documents per source; a hash of their id or number chooses them, so that "
        "translations are chosen together [all]",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="precision of the model; auto is bfloat16 on a GPU that supports it, else float32"
    )
    device: Literal["auto", "cpu", "split"] = Field(
        "auto", description="device to compute on; split spreads the layers of a model over all GPUs"
    )
    batch_tokens: int | None = Field(
        None, gt=0, description="tokens per batch, including padding [2048 on a CPU, 16384 on a GPU]"
    )
    reference: str = Field(
        "en",
        description="language that parallel text is compared with: the bits of a document are divided by those of its "
        "translation in this language",
    )
    resamples: int = Field(
        1000, ge=2, lt=10**6, description="number of bootstrap resamples of the documents, for standard errors"
    )
    seed: Seed = Field(0, description="seed of the bootstrap")


@dataclass(frozen=True)
class Estimate:
    """A metric, with its values on resampled documents.

    Attributes:
        n: number of documents.
        value: the metric over all documents.
        spread: (resamples,) the metric over documents drawn with replacement. Two models with the same documents have
            the same draws.
    """

    n: int
    value: float
    spread: Floats

    @property
    def stderr(self) -> float | None:
        """Standard error of the metric; None for a single document, or if all resamples are equal."""
        return _stderr(self.spread)

    def stderr_of_difference(self, other: Estimate) -> float | None:
        """Return the standard error of the difference to another model on the same documents; 0 if both are equal."""
        same = np.array_equal(self.spread, other.spread) and np.ptp(self.spread) > 0
        return 0.0 if same else _stderr(self.spread - other.spread)


@dataclass(frozen=True)
class Measured:
    """The scores of one model on the documents of all sources.

    Attributes:
        model: name of the model in tables.
        sources: scores by "language/source".
        settings: the settings, with their final values.
        about: everything else that the scores depend on: the model, its tokenizer, the text.
        not_measured: sources without a document.
    """

    model: str
    sources: Mapping[str, SourceScores]
    settings: PerplexitySettings
    about: Mapping[str, Any]
    not_measured: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the entry of the measurement in results.json."""
        return {
            "settings": self.settings.model_dump(mode="json"),
            **self.about,
            "sources": {
                source: {
                    "documents": len(scores.totals),
                    **dict(zip(SUMS, scores.totals.sum(0).tolist(), strict=True)),
                }
                for source, scores in self.sources.items()
            },
            "not_measured": list(self.not_measured),
        }

    def rows(self) -> list[Row]:
        """Return the metrics as rows of results.json.

        There are rows for each language (task "perplexity"), for each of its sources (task "perplexity/SOURCE"), and
        for the average over languages (language `ALL`). A language's value is that of the text of all its sources
        together. In the average, all languages have equal weight. Perplexities have no average, since it can rise while
        the mean of bits per byte falls.

        `n` is the number of documents. The standard error comes from a bootstrap over documents. It draws within each
        source, and draws translations together. It is None for a single document. A perplexity too large for a float
        has no row. This happens with words in a language that does not separate them.
        """
        return [
            Row(self.model, *key, estimate.value, estimate.stderr, estimate.n, False)
            for key, estimate in self.estimates.items()
        ]

    @functools.cached_property
    def estimates(self) -> dict[tuple[str, str, str], Estimate]:
        """Each metric by language, task and name."""
        totals = {source: scores.totals for source, scores in self.sources.items()}
        ids = {source: scores.ids for source, scores in self.sources.items()}
        reference, metric = self.settings.reference, RELATIVE + self.settings.reference
        # parallel text: nats of the documents that the reference language has too, divided by its nats for them
        pairs = {s: self._pairs(s, reference + s[len(language_of(s)) :]) for s in totals if language_of(s) != reference}
        common = {source: names for source, (names, _) in pairs.items() if names}
        nats = {source: pairs[source][1] for source in common}
        numbers = itertools.chain(
            self._estimates(METRICS, _metrics, totals, ids), self._estimates((metric,), _ratio, nats, common)
        )
        return {key: estimate for key, estimate in numbers if math.isfinite(estimate.value)}

    def _estimates(
        self,
        metrics: Sequence[str],
        compute: Callable[[Floats], Floats],
        totals: Mapping[str, Floats],
        ids: Mapping[str, Sequence[str | None]],
    ) -> Iterator[tuple[tuple[str, str, str], Estimate]]:
        """Yield the metrics of languages, sources and their average, by language, task and name.

        Args:
            metrics: names of the metrics.
            compute: returns metrics, (..., metrics), from sums over documents, (..., m).
            totals: the sums of each document by source, (D, m).
            ids: ids of the documents by source.
        """
        resampled = {source: self._resample(source, totals[source], ids[source]) for source in totals}
        averages: list[tuple[int, Floats, Floats]] = []
        languages = by_language(totals)
        for language, sources in languages.items():
            parts = [(TASK, sources), *((f"{TASK}/{short}", [s]) for s in sources if (short := split_source(s)[1]))]
            for task, members in parts:
                n = sum(len(totals[source]) for source in members)
                value = compute(np.sum([totals[source].sum(0) for source in members], axis=0))
                spread = compute(np.sum([resampled[source] for source in members], axis=0))  # (resamples, metrics)
                yield from _named(language, task, n, metrics, value, spread)
                if task == TASK:
                    averages.append((n, value, spread))
        kept = [n for n, metric in enumerate(metrics) if metric not in PERPLEXITIES]
        if len(languages) > 1:
            counts, values, spreads = zip(*averages, strict=True)
            average, spread = np.mean(values, axis=0)[kept], np.mean(spreads, axis=0)[:, kept]
            yield from _named(ALL, TASK, sum(counts), [metrics[n] for n in kept], average, spread)

    def _pairs(self, source: str, other: str) -> tuple[list[str], Floats]:
        """Return the ids of the documents that both sources have, and their nats in both, (pairs, 2).

        An id that several documents of a source share is left out.
        """
        if other not in self.sources:
            return [], np.empty((0, 2))
        nats = [self.sources[name].nats_by_id() for name in (source, other)]
        common = [name for name in nats[0] if name in nats[1]]
        return common, np.array([[nats[0][name], nats[1][name]] for name in common]).reshape(-1, 2)

    def _resample(self, source: str, totals: Floats, ids: Sequence[str | None]) -> Floats:
        """Return sums over D documents drawn with replacement, (resamples, m), from the documents' own, (D, m).

        Sources with the same ids draw the same documents. A text that is hard to predict in one language is hard in
        others. So an average over translations has a larger error than one over as many independent texts.
        """
        drawn_by, named = source, [name for name in ids if name is not None]
        if len(named) == len(ids):
            totals, drawn_by = totals[np.argsort(named, kind="stable")], sha256_json({"ids": sorted(named)})
        generator = np.random.default_rng(derive_key("bootstrap", self.settings.seed, drawn_by))
        count = len(totals)
        draws = (generator.integers(count, size=count) for _ in range(self.settings.resamples))
        return np.stack([np.bincount(drawn, minlength=count) @ totals for drawn in draws])


PERPLEXITIES = ("perplexity_per_token", "perplexity_per_word")
"""Metrics that are not averaged over languages."""

METRICS = (*PERPLEXITIES, "bits_per_byte")


def _metrics(totals: Floats) -> Floats:
    """Return the three metrics, (..., 3), from sums of nats, tokens, words and bytes, (..., 4)."""
    nats, tokens, words, n_bytes = np.moveaxis(totals, -1, 0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return np.stack([np.exp(nats / tokens), np.exp(nats / words), nats / n_bytes / math.log(2)], axis=-1)


def _ratio(totals: Floats) -> Floats:
    """Return the first of two sums divided by the second, (..., 1), from (..., 2)."""
    return totals[..., :1] / totals[..., 1:]


def _named(
    language: str, task: str, n: int, metrics: Sequence[str], value: Floats, spread: Floats
) -> Iterator[tuple[tuple[str, str, str], Estimate]]:
    for metric, number, numbers in zip(metrics, value.tolist(), spread.T, strict=True):
        yield (language, task, metric), Estimate(n, number, numbers)


def _stderr(drawn: Floats) -> float | None:
    if np.ptp(drawn) == 0 or not np.isfinite(drawn).all():
        return None
    return float(np.std(drawn, ddof=1))


def measure(
    model: str,
    text: TokenStore | Mapping[str, Text],
    *,
    settings: PerplexitySettings | None = None,
    name: str | None = None,
    partial: Path | None = None,
    on_progress: OnProgress = silent,
) -> Measured:
    """Return the negative log-likelihood of every document under a model.

    Under torchrun or `accelerate launch`, every process calls this function, scores its part of each source, and
    returns the same result.

    Args:
        model: folder, run folder or name on the Hub of a causal language model.
        text: a token store whose validation split is read, if it has the tokenizer of the model; or text files by
            "language/source" or language.
        settings: by default all defaults.
        name: name of the model in tables; by default `model`.
        partial: folder that stores each source as soon as it is finished. Sources that it has for the same model, text
            and settings are not measured again.
        on_progress: called after every batch and source, in the first process.

    Raises:
        XDogeError: the model or the text cannot be read, the store has another tokenizer, or a setting does not fit the
            model.
        NonFiniteLossError: the model predicts NaN.
    """
    causal = CausalModel.find(model)
    feed = StoreText(text, causal.name) if isinstance(text, TokenStore) else FileText(text, causal.name)
    if not feed.sources:
        raise XDogeError(f"there is no validation text to measure {model} on.")
    processes = Processes.join(cpu=(settings or PerplexitySettings()).device == "cpu")
    settings = resolved(settings or PerplexitySettings(), causal, processes)
    begin = feed.end_of_document if causal.begin is None else causal.begin
    about = {"model": causal.identity(), "tokenizer": feed.fingerprint, "before_document": begin}
    loaded: LoadedModel | None = None
    texts, sources = {source: feed.identity(source) for source in feed.sources}, {}
    if processes.world_size > 1:  # hashing a model takes time
        own = {"text": texts, "settings": settings.model_dump(mode="json")}
        processes.refuse_differences({**about, "model": causal.pin(), **own})
    for source in feed.sources:
        keys = ("window", "stride", "precision", "max_documents")
        key = {**about, "text": texts[source], **{name: getattr(settings, name) for name in keys}}
        file = partial / f"{source.replace('/', '.')}-{sha256_json(key)[:16]}.json" if partial else None
        scores = processes.broadcast(_load(file) if processes.is_first else None)
        if scores is None:
            documents = feed.read(source).some(settings.max_documents)
            report = on_progress if processes.is_first else silent
            if loaded is None:
                weights = load_on(processes, causal, settings.precision, settings.device, settings.window)
                loaded = LoadedModel(causal.name, weights)
            nats = _nats(loaded, documents.tokens, settings, begin, processes, source, report)
            tokens = [len(document) for document in documents.tokens]
            totals = np.stack([nats, np.array(tokens, dtype=float), documents.words, documents.n_bytes], axis=1)
            scores = SourceScores(totals, tuple(documents.ids))
            if file and processes.is_first:
                kept = {"totals": scores.totals.tolist(), "ids": list(scores.ids)}
                write_json(file, {"schema": f"{SCHEMA}/1", "key": key, "source": source, **kept})
        elif processes.is_first:
            on_progress(Event("skip", source))
        sources[source] = scores
    about = {"path": causal.name, **about, "text": texts}
    return Measured(name or model, sources, settings, about, tuple(feed.empty))


def resolved(settings: PerplexitySettings, causal: CausalModel, processes: Processes) -> PerplexitySettings:
    """Return the settings with all defaults filled in.

    Raises:
        XDogeError: the window is longer than the model's context, or shorter than the stride.
    """
    window = settings.window or causal.default_length
    causal.check_length("window", window)
    stride = settings.stride or window // 2
    if stride > window:
        raise XDogeError(
            f"{argument('stride')} {stride:,} is longer than the window, {window:,}; some tokens would not be scored."
        )
    update = {
        "window": window,
        "stride": stride,
        "batch_tokens": settings.batch_tokens or (2048 if processes.device == "cpu" else 16384),
        "precision": settings.precision if settings.precision != "auto" else processes.precision(),
    }
    return settings.model_copy(update=update)


def _nats(
    model: LoadedModel,
    documents: Sequence[NDArray[Any]],
    settings: PerplexitySettings,
    begin: int,
    processes: Processes,
    source: str,
    report: OnProgress,
) -> Floats:
    """Return the nats of each document, (D,), the same in every process."""
    total, count = sum(map(len, documents)), len(documents)

    def on_batch(tokens: int) -> None:
        done = count * tokens // max(1, total)  # the longest come first, so count tokens
        report(Event("source", source, done=done, total=count, tokens=tokens))

    nats = model.nats(
        documents,
        begin=begin,
        window=settings.window or 0,  # resolved, and so never 0
        stride=settings.stride or 0,
        batch_tokens=settings.batch_tokens or 0,
        share=(processes.rank, processes.world_size),
        on_batch=on_batch,
    )
    nats = processes.all_reduce(nats)
    for number, value in enumerate(nats.tolist()):
        if not math.isfinite(value):
            raise NonFiniteLossError(f"{model.name} gives document {number} of {source} a loss of {value}.")
    report(Event("done", source, done=count, total=count, tokens=total))
    return nats


def _load(file: Path | None) -> SourceScores | None:
    """Return what an earlier run stored. The name of the file identifies the model, the text and the settings."""
    if file is None or not file.is_file():
        return None
    value = read_json(file, schema=SCHEMA, version=1)
    return SourceScores(np.array(value["totals"]).reshape(-1, 4), tuple(value["ids"]))
