"""How well a causal language model predicts text: perplexity per token and word, and bits per byte.

Before a document stands one token that is given and not scored: the model's beginning-of-text token, or the
end-of-document token, which comes before every document in training, where the model has none. Every token of the
text is scored, so models of any tokenizer are charged for the same bytes, and bits per byte compares them. A document
longer than the window is read in windows that each score the next `stride` tokens, with at least window - stride
tokens before each. That is lm-eval's rolling log-likelihood where the stride is the window, and the text tokenised
without special tokens.
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
"""Begins the name of the metric of parallel text; the reference language ends it."""

Floats = NDArray[np.float64]


class PerplexitySettings(Config):
    """Every setting of a measurement; what is None is filled in from the model and the machine."""

    window: int | None = Field(None, ge=2, description="tokens the model sees at once [its context, at most 2048]")
    stride: int | None = Field(None, ge=1, description="tokens that a window of a long document scores [half of it]")
    max_documents: int | None = Field(
        None, gt=0, description="documents per source at most, drawn by a hash that draws translations together"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field("auto", description="auto: bfloat16 where the GPU has it")
    device: Literal["auto", "cpu", "split"] = Field(
        "auto", description="what to compute on; split: the layers over all GPUs, for a model too large for one"
    )
    batch_tokens: int | None = Field(
        None, gt=0, description="tokens in one batch, padding included [2048 on a CPU, 16384 on a GPU]"
    )
    reference: str = Field("en", description="language that the bits of parallel text are relative to")
    resamples: int = Field(1000, ge=2, description="of the documents, for standard errors")
    seed: Seed = Field(0, description="of the resamples")


@dataclass(frozen=True)
class Estimate:
    """A number, and what it is on documents drawn with replacement.

    Attributes:
        n: documents behind it.
        value: the number.
        spread: (resamples,) of it; two models of the same documents have drawn the same ones.
    """

    n: int
    value: float
    spread: Floats

    @property
    def stderr(self) -> float | None:
        """Standard error of the number; None for a single document, or if all documents agree."""
        return _stderr(self.spread)

    def stderr_of_difference(self, other: Estimate) -> float | None:
        """Standard error of the difference to another model on the same documents; 0 if there is no difference."""
        same = np.array_equal(self.spread, other.spread) and np.ptp(self.spread) > 0
        return 0.0 if same else _stderr(self.spread - other.spread)


@dataclass(frozen=True)
class Measured:
    """What was measured of one model.

    Attributes:
        model: what to call it in tables.
        sources: by "language/source".
        settings: all of them resolved.
        about: what the numbers depend on beside the settings: the model, its tokenizer, the text.
        not_measured: sources without a document.
    """

    model: str
    sources: Mapping[str, SourceScores]
    settings: PerplexitySettings
    about: Mapping[str, Any]
    not_measured: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return what results.json says about the measurement."""
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
        """Return the numbers as rows of results.json.

        Of each language (task "perplexity"), of each of its sources (task "perplexity/SOURCE"), and of the average
        over languages (language `ALL`), all of equal weight whatever their text. Perplexities have no average, since
        that can rise where the mean of bits per byte falls. A language's number is that of all
        its sources' text together. `n` counts documents. The standard error is that of a bootstrap over documents,
        drawn within each source, translations together; None for a single document. A perplexity too large for a
        float, as of words in a language that does not separate them, has no row.
        """
        return [
            Row(self.model, *key, estimate.value, estimate.stderr, estimate.n, False)
            for key, estimate in self.estimates.items()
        ]

    @functools.cached_property
    def estimates(self) -> dict[tuple[str, str, str], Estimate]:
        """Each number by language, task and metric."""
        totals = {source: scores.totals for source, scores in self.sources.items()}
        ids = {source: scores.ids for source, scores in self.sources.items()}
        reference, metric = self.settings.reference, RELATIVE + self.settings.reference
        # of parallel text: nats of the documents that the reference language has too, over its nats for them
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
        """Yield the numbers of languages, sources and average.

        `compute` takes sums, (..., m) to (..., metrics). `totals` are those of each document by source, (D, m).
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
        """Ids of the documents that both sources have, and the nats of each, (pairs, 2).

        Ids that name several documents name none.
        """
        if other not in self.sources:
            return [], np.empty((0, 2))
        nats = [self.sources[name].nats_by_id() for name in (source, other)]
        common = [name for name in nats[0] if name in nats[1]]
        return common, np.array([[nats[0][name], nats[1][name]] for name in common]).reshape(-1, 2)

    def _resample(self, source: str, totals: Floats, ids: Sequence[str | None]) -> Floats:
        """Sums over as many documents drawn with replacement: (D, m) to (resamples, m).

        Sources of the same ids draw the same ones each time: what is hard to say in one language is hard in others, so
        that an average over translations is less sure than one over as many texts.
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
    """Return the three metrics of sums of nats, tokens, words and bytes: (..., 4) to (..., 3)."""
    nats, tokens, words, n_bytes = np.moveaxis(totals, -1, 0)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return np.stack([np.exp(nats / tokens), np.exp(nats / words), nats / n_bytes / math.log(2)], axis=-1)


def _ratio(totals: Floats) -> Floats:
    """Return the first of two sums over the second: (..., 2) to (..., 1)."""
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
    """Return what every document costs a model.

    Under torchrun or `accelerate launch` every process calls it, scores its part of each source, and returns the same.

    Args:
        model: folder, run folder or name on the Hub of a causal language model.
        text: a token store, whose validation split is read, if the model's tokenizer made it; or text files by
            "language/source" or language.
        settings: all defaults if left out.
        name: what to call the model in tables; `model` if left out.
        partial: folder that keeps each source as it is finished. What lies there of the same model, text and settings
            is not measured again.
        on_progress: called after every batch and source, in the first process.

    Raises:
        XDogeError: the model or the text cannot be read, the store is of another tokenizer, or a setting does not fit.
        NonFiniteLossError: the model predicts nan.
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
    if processes.world_size > 1:  # the hash of a model is not free
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
    """Return the settings with nothing left open.

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
    """Return what each document costs, (D,), the same in every process."""
    total, count = sum(map(len, documents)), len(documents)

    def on_batch(tokens: int) -> None:
        done = count * tokens // max(1, total)  # the longest come first; by tokens it foretells the time
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
    """Read what an earlier run finished; the name of the file says that it is of the same model, text and settings."""
    if file is None or not file.is_file():
        return None
    value = read_json(file, schema=SCHEMA, version=1)
    return SourceScores(np.array(value["totals"]).reshape(-1, 4), tuple(value["ids"]))
