"""`evaluate`: perplexity and benchmarks of one or several models, in one table."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from xdoge.config import Config
from xdoge.corpus.store import TokenStore
from xdoge.distributed import Processes
from xdoge.errors import XDogeError, argument
from xdoge.eval.document_scores import SourceScores, documents_file
from xdoge.eval.documents import FileText, StoreText, Text
from xdoge.eval.perplexity import PerplexitySettings, measure
from xdoge.eval.results import Results, Row, by_reason
from xdoge.eval.suite import HarnessSettings, Suite
from xdoge.io import disk_errors, locked
from xdoge.models.resolver import CausalModel
from xdoge.names import language_of
from xdoge.progress import OnNote, OnProgress, silent


class EvalValues(TypedDict, total=False):
    """The settings that `evaluate` takes by name. `PerplexitySettings` and `HarnessSettings` describe them."""

    window: int | None
    stride: int | None
    max_documents: int | None
    batch_tokens: int | None
    reference: str
    resamples: int
    num_fewshot: int | None
    limit: int | None
    batch_size: int | None
    precision: Literal["auto", "float32", "bfloat16"]
    device: Literal["auto", "cpu", "split"]
    seed: int


def evaluate(
    models: str | Path | Sequence[str | Path] | Mapping[str, str | Path],
    *,
    store: TokenStore | None = None,
    text: Mapping[str, Text] | None = None,
    suites: Sequence[Suite | str] = (),
    local_data: Path | str | None = None,
    out: Path | str | None = None,
    on_progress: OnProgress = silent,
    on_note: OnNote = silent,
    **values: Unpack[EvalValues],
) -> Results:
    """Return the perplexity and the benchmark scores of models, as one table.

    Perplexity has three metrics: bits per UTF-8 byte, perplexity per token and perplexity per word.

    Under torchrun or `accelerate launch`, every process calls this function and returns the same table. The first
    process writes the files and reports. With `out`, each source and task is stored in OUT.partial as soon as it is
    finished. If the process is killed, the same call continues from there.

    Args:
        models: run folders, folders of causal language models, or names on the Hub. The keys of a mapping are the names
            of the models in tables.
        store: token store whose validation split is read, for models that were trained with its tokenizer.
        text: text files by "language/source" or language. Each model reads them with its own tokenizer.
        suites: benchmarks to run: names of suites that xdoge includes, YAML files, or `Suite` objects.
        local_data: folder with the questions of the benchmarks, as TASK/SPLIT.jsonl; by default they come from the Hub.
        out: results.json to write. It is replaced if it exists. A Parquet file with the documents is written beside it.
            None to write nothing.
        on_progress: called after every batch, source and task.
        on_note: called with each sentence that the user should read.
        **values: fields of `PerplexitySettings` and `HarnessSettings`, such as `max_documents=100` and `limit=200`. A
            field that both have, such as `device`, applies to both.

    Returns:
        A row for each model, language, task and metric. Benchmark scores are raw and normalised.

    Raises:
        XDogeError: a setting is wrong, a model or a text cannot be read, or no task ran.
        NonFiniteLossError: a model predicts NaN.
        MemoryFullError: a device has too little memory.
    """
    from huggingface_hub.utils import logging as hub
    from transformers.utils.logging import disable_progress_bar

    perplexity, harness = split_settings(values)
    folder, target = None if local_data is None else Path(local_data), None if out is None else Path(out)
    read = [Suite.find(suite) if isinstance(suite, str) else suite for suite in suites]
    content = _content(store, text, read, reference=perplexity.reference if "reference" in values else None)
    if folder is not None and not folder.is_dir():
        raise XDogeError(f"{argument('local_data')} {folder} is not a folder.")
    named = {name: CausalModel.find(str(model)).name for name, model in named_models(models).items()}
    disable_progress_bar()  # type: ignore[no-untyped-call]
    hub.set_verbosity_error()  # type: ignore[no-untyped-call]  # a task without data has an outcome that says so
    if read:  # find all errors that can be found before the first model is measured
        from xdoge.eval.lm_eval import benchmarks

        benchmarks.check(read, harness)
    for model in named.values() if content is not None else ():  # both raise if the model cannot read the text
        StoreText(content, model) if isinstance(content, TokenStore) else FileText(content or {}, model)
    rows: dict[Row, None] = {}  # a dict, since two suites that share a task give the same rows
    settings: dict[str, Any] = {}
    documents: dict[str, Mapping[str, SourceScores]] = {}
    first, partial = os.environ.get("RANK", "0") == "0", partial_folder(target) if target else None
    with _kept(partial, target, on_note) if first and partial and target else contextlib.nullcontext():
        for name, model in named.items():
            show = _labelled(on_progress, name) if len(named) > 1 else on_progress
            options: dict[str, Any] = {"name": name, "partial": partial, "on_progress": show if first else silent}
            if content is not None:
                measured = measure(model, content, settings=perplexity, **options)
                rows |= dict.fromkeys(measured.rows())
                documents[name] = measured.sources
                settings.setdefault("perplexity", {})[name] = measured.to_dict()
            for suite in read:
                scored = benchmarks.run_suite(model, suite, settings=harness, local_data=folder, **options)
                rows |= dict.fromkeys(scored.rows())
                settings.setdefault("benchmarks", {}).setdefault(suite.name, {})[name] = scored.to_dict()
    Processes.join(cpu=perplexity.device == "cpu").end_group_at_exit()
    results = Results.of(rows, settings=settings, documents=documents)
    if first and target and rows:
        results.save(target)
    if first and partial:
        shutil.rmtree(partial, ignore_errors=True)
    if not rows:
        tasks = results.task_outcomes()
        reasons = "; ".join(by_reason((task["outcome"], task["reason"], task["task"]) for task in tasks))
        raise XDogeError(f"none of the {len(tasks):,} tasks ran, and no results are written: {reasons}.")
    return results


def named_models(models: str | Path | Sequence[str | Path] | Mapping[str, str | Path]) -> dict[str, str | Path]:
    """Return the models by their names in tables, from the user or from their paths.

    Raises:
        XDogeError: there is no model, or two models have the same name.
    """
    if isinstance(models, Mapping):
        named = dict(models)
    else:
        listed = [models] if isinstance(models, str | Path) else list(models)
        names = [str(model).rstrip("/") for model in listed]
        if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise XDogeError(f"model {twice[0]} is named twice; name it once.")
        named = dict(zip(names, listed, strict=True))
    if not named:
        raise XDogeError("name at least one model: a run folder, the folder of a model, or its name on the Hub.")
    return named


def partial_folder(out: Path) -> Path:
    """Return the folder in which finished sources and tasks are stored until `out` is written.

    Raises:
        XDogeError: `out` is a folder.
    """
    if out.is_dir():
        raise XDogeError(f"{out} is a folder; name a file.")
    return out.with_name(out.name + ".partial")


def _content(
    store: TokenStore | None, text: Mapping[str, Text] | None, suites: Sequence[Suite], *, reference: str | None
) -> TokenStore | Mapping[str, Text] | None:
    """Return the text that perplexity is measured on. `reference` is a language that the user named, or None."""
    if store is not None and text:
        raise XDogeError(f"{argument('store')} and {argument('text')} both name the text; give only one of them.")
    content = store or text or None
    if content is None and not suites:
        raise XDogeError(
            f"nothing to measure: give {argument('store')} or {argument('text')} for perplexity, {argument('suites')} "
            "for benchmarks."
        )
    if content is not None and reference is not None:
        sources = content if isinstance(content, Mapping) else content.sources
        languages = dict.fromkeys(map(language_of, sources))
        if reference not in languages:
            raise XDogeError(f"reference {reference} is not one of the languages of the text: {', '.join(languages)}.")
    return content


_Settings = TypeVar("_Settings", bound=Config)


def split_settings(values: Mapping[str, Any], *, where: str = "settings") -> tuple[PerplexitySettings, HarnessSettings]:
    """Return the settings of perplexity and of benchmarks. A setting that both have, such as device, goes to both.

    Raises:
        XDogeError: a setting is unknown or not allowed. `where` is the name of the settings in the message.
    """

    def of(kind: type[_Settings], other: type[Config]) -> _Settings:
        own = {key: value for key, value in values.items() if key in kind.model_fields or key not in other.model_fields}
        return kind.parse(own, where=where)

    return of(PerplexitySettings, HarnessSettings), of(HarnessSettings, PerplexitySettings)


def _labelled(on_progress: OnProgress, model: str) -> OnProgress:
    """Return a function that passes events on, with the model's name before their own names."""
    return lambda event: on_progress(replace(event, name=f"{model}: {event.name}"))


@contextlib.contextmanager
def _kept(partial: Path, out: Path, on_note: OnNote) -> Iterator[None]:
    """Store finished parts in `partial` and lock it against other processes. Note earlier parts."""
    before = partial.is_dir()
    with disk_errors(partial):
        partial.mkdir(parents=True, exist_ok=True)
    with locked(partial):
        for name in (out.name, documents_file(out).name):
            for unfinished in out.parent.glob(f".{glob.escape(name)}.*.tmp"):  # of a process killed while writing
                unfinished.unlink()
        if before:
            on_note(f"continuing with the results in {partial}")
        yield
