"""`xdoge eval`: perplexity by language and benchmarks of one or several models, in one table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from xdoge.analysis.inputs import check_baseline
from xdoge.analysis.models import coverage_notes, score_notes, score_rows, tokenizers, window_notes
from xdoge.analysis.tables import exceeding_rule, not_run, results_tables
from xdoge.analysis.verdicts import scores_verdict
from xdoge.cli import options
from xdoge.cli.app import app, chosen_settings, is_first, one_voice, refuse_taken, stdout
from xdoge.cli.progress import Display
from xdoge.cli.tables import empty_table, print_table, print_verdict
from xdoge.config import settings_help
from xdoge.corpus.store import TokenStore
from xdoge.errors import XDogeError, require
from xdoge.eval.documents import Text, validation_texts
from xdoge.eval.evaluate import evaluate as measure_all
from xdoge.eval.evaluate import named_models, partial_folder, split_settings
from xdoge.eval.perplexity import PerplexitySettings
from xdoge.eval.results import Results, by_reason
from xdoge.eval.suite import HarnessSettings, Suite

_EVAL_HELP = f"""Measure perplexity by language and benchmarks of one or more models.

**Models** are run folders of `xdoge train` or `xdoge fit-weights`, folders of causal language models, or names on the
Hugging Face Hub. `NAME=MODEL` sets the name of a model in tables.

**Perplexity.** --store measures the validation split of a token store, for models that use its tokenizer. --text
measures text files, which each model reads with its own tokenizer. Every token of a document is scored given the
tokens before it in the document, except the end-of-document token. `xdoge train` validates on sequences that cross
document boundaries, so its perplexity differs.

The results are perplexity per token and per word, and bits per UTF-8 byte, by source and by language. Standard errors
come from a bootstrap over documents. Bits per byte can be compared between models with different tokenizers. Only they
are averaged over languages, because a mean of perplexities can fall although most languages got worse. If documents
have an `id` that their translations share, their bits are also given relative to English (`--set reference=es` takes
Spanish).

**Differences** to --baseline are shown ± 1.96 standard errors; a star marks significant ones, which exceed this error.
Models are compared on the same documents: RESULTS.documents.parquet, beside RESULTS.json, holds the loss of each model
on each document. The verdict says which differences are significant, and how much more text or how many more questions
would decide the others.

**Benchmarks** (--suite): `iberobench`, all tasks of the published tables; `iberobench-mc`, its multiple-choice tasks,
which are fast; `belebele`; `flores-iberian`; or your own YAML file. lm-eval runs the tasks. The suite sets the number
of examples in the prompt; `--num-fewshot` overrides it. `--limit N` uses only the first N questions. Tables show the
raw score and the normalised score, (score - chance) / (best - chance) × 100: 0 for guessing, 100 for the best possible
score. The normalised scores of a language are averaged if at least half of its tasks ran. Tasks that did not run are
listed with the reason.

**Without network.** `--local-data DIR` reads the questions of each task from DIR/TASK/SPLIT.jsonl. Other questions are
read from the cache of the Hugging Face Hub. To fill the cache, run `xdoge eval --prefetch --suite iberobench` on a
machine with network. With HF_DATASETS_OFFLINE=1 in the environment, the same command only lists which questions are
present and which are missing.

**Stopping.** The results of each source and task are kept in RESULTS.json.partial/ as soon as they are finished. Run
the same command again to continue. The folder is removed at the end.

**Several GPUs.** Run `torchrun --nproc-per-node 8 -m xdoge eval ...`. If a model does not fit on one GPU, `--set
device=split` spreads its layers over all GPUs.

**Settings of perplexity** for `--set KEY=VALUE` and for the YAML file of `--config`:

{settings_help(PerplexitySettings)}

**Settings of the benchmarks**:

{settings_help(HarnessSettings)}

**Examples**

- `xdoge eval uniform=runs/uniform learned=runs/learned --store store --baseline uniform --out results.json`

- `xdoge eval runs/learned HuggingFaceTB/SmolLM2-135M --text corpus.yaml --out results.json`

- `xdoge eval runs/learned --text gl=flores.jsonl:sentence_glg_Latn --text en=flores.jsonl:sentence_eng_Latn
  --out flores.json`

- `xdoge eval runs/learned --suite iberobench-mc --local-data benchmarks --limit 200 --out results.json`
"""


@app.command(name="eval", help=_EVAL_HELP)
def evaluate(  # an option for each setting that users change most often
    models: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME=]MODEL", help="Models to measure.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="RESULTS.json", help="File to write; required except with --prefetch.", show_default=False
        ),
    ] = None,
    store: Annotated[Path | None, typer.Option(help="Token store whose validation split is measured.")] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CORPUS.yaml|SOURCE=FILE[:COLUMN]",
            help="Text to measure: the validation files that a corpus names, or a file of a source; may be repeated.",
        ),
    ] = None,
    suites: Annotated[
        list[str] | None, typer.Option("--suite", metavar="NAME|FILE", help="Benchmarks to run; may be repeated.")
    ] = None,
    local_data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of benchmark questions, DIR/TASK/SPLIT.jsonl.")
    ] = None,
    num_fewshot: Annotated[
        int | None,
        typer.Option(parser=options.count(), metavar="K", help="Examples in every prompt.", show_default="the suite's"),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            parser=options.count(), metavar="N", help="Use only the first N questions of each task.", show_default="all"
        ),
    ] = None,
    max_documents: Annotated[
        int | None,
        typer.Option(
            parser=options.count(), metavar="N", help="Maximum number of documents per source.", show_default="all"
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Model to which the others are compared.",
            show_default="none in the tables; the first in the verdict",
        ),
    ] = None,
    prefetch: Annotated[
        bool,
        typer.Option(
            "--prefetch", help="Download the questions of the suites into the cache of the Hub, list them, and stop."
        ),
    ] = False,
    config: options.ConfigFile = None,
    assignments: options.Assignments = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    with one_voice():
        benchmarks = [Suite.find(name) for name in suites or []]
        if local_data is not None and not local_data.is_dir():
            raise XDogeError(f"--local-data {local_data} is not a folder.")
        if benchmarks:
            require("eval", "lm_eval")
        if prefetch:
            _prefetch(benchmarks, local_data, as_json=as_json)
            return
        require("proxy", "torch", "transformers")
        flags = {"num_fewshot": num_fewshot, "limit": limit, "max_documents": max_documents}
        chosen = chosen_settings(config, assignments, flags)
        split_settings(chosen, where=str(config) if config else "settings")
        named = named_models(_models(models or []))
        check_baseline(list(named), baseline)
        if out is None:
            raise XDogeError("--out is missing; name the results.json to write.")
        of_benchmarks = {"--num-fewshot": num_fewshot, "--limit": limit, "--local-data": local_data}
        if not benchmarks and (idle := [option for option, value in of_benchmarks.items() if value is not None]):
            raise XDogeError(f"{idle[0]} is only for benchmarks; name a suite with --suite, or leave it out.")
        refuse_taken(out, force or partial_folder(out).is_dir())  # the folder is left if the process was killed
        what = {"store": TokenStore.open(store) if store else None, "text": _texts(text or []), "suites": benchmarks}
        results = run_evaluation(named, **what, local_data=local_data, out=out, **chosen)
    if not is_first():
        return
    if as_json:
        verdict = " ".join(scores_verdict(results, baseline=baseline))
        print(json.dumps(results.to_dict() | {"verdict": verdict}, indent=2))
    else:
        print_results(results, baseline=baseline)
        print(out)


def print_results(results: Results, *, baseline: str | None = None) -> None:
    """Print languages × models, the raw scores of the tasks, and the tasks that did not run with the reasons."""
    scores = score_rows(results, baseline=baseline)
    for table in results_tables(results, scores, baseline=baseline):
        print_table(table)
    if len(tokenizers(results)) > 1:
        print("The models have different tokenizers: bits per byte are comparable, perplexities per token are not.")
    for line in (
        *exceeding_rule(scores),
        *score_notes(scores, baseline=baseline),
        *window_notes(results, baseline=baseline),
        *coverage_notes(results),
        *not_run(results),
    ):
        print(line)
    if benchmarks := results.task_outcomes():
        ran = sum(outcome["outcome"] == "ran" for outcome in benchmarks)
        print(f"{ran:,} of {len(benchmarks):,} tasks ran; results.json lists the outcome of each.")
        if cut := {outcome["task"]: None for outcome in benchmarks if outcome.get("truncated")}:
            print(f"Some prompts are longer than the context and were cut at the beginning: {', '.join(cut)}.")
    print_verdict(scores_verdict(results, baseline=baseline))


def run_evaluation(models: Mapping[str, str | Path], **values: Any) -> Results:
    """Return the results of `evaluate`, and show its progress."""
    with Display() as display:
        return measure_all(models, on_progress=display.show, on_note=display.note, **values)


def _prefetch(suites: Sequence[Suite], local_data: Path | None, *, as_json: bool) -> None:
    """Download and list the data sets of the suites."""
    from xdoge.eval.lm_eval.prefetch import prefetch

    if not suites:
        raise XDogeError("--prefetch needs --suite, the benchmarks whose questions to download.")
    with Display() as display:
        listed = [task for suite in suites for task in prefetch(suite, local_data, on_progress=display.show)]
    if as_json:
        print(json.dumps([asdict(task) for task in listed], indent=2))
        return
    table = empty_table(("task", "data set", "where"))
    for task in listed:
        table.add_row(task.task, task.dataset, task.where)
    stdout.print(table)
    for line in by_reason((task.where, task.note, task.task) for task in listed if task.note):
        print(line)
    missing = sum(task.where == "missing" for task in listed)
    print(f"The questions of {len(listed) - missing} of {len(listed)} tasks are available here.")


def _models(arguments: Sequence[str]) -> dict[str, str | Path]:
    """Return the folder or the name on the Hub of every [NAME=]MODEL, by its name in tables."""
    named: dict[str, str | Path] = {}
    for written in arguments:
        name, equals, path = written.rpartition("=")
        if not equals or Path(written).exists():
            name, path = written.rstrip("/"), written
        elif not name.strip():
            raise XDogeError(f"{written} has no name before the equals sign; write NAME=MODEL, or the model alone.")
        if name in named:
            raise XDogeError(f"two models are called {name}; write NAME={name} to tell them apart.")
        named[name] = path
    return named


def _texts(arguments: Sequence[str]) -> dict[str, Text] | None:
    """Return the texts of all --text options, by source; None without any."""
    from xdoge.corpus import Corpus
    from xdoge.corpus.paths import find
    from xdoge.corpus.remote import is_remote

    texts: dict[str, Text] = {}
    for argument in arguments:
        if argument.endswith((".yaml", ".yml")):
            new = validation_texts(Corpus.load(argument))
        else:
            source, equals, file = argument.partition("=")
            if not equals:
                raise XDogeError(f"--text {argument}: write it as SOURCE=FILE, or name a corpus.yaml.")
            path, colon, column = file.rpartition(":")
            if colon and not Path(file).exists() and not (is_remote(file) and "/" in column):
                text = Text(find([path], Path()), column)
            else:
                text = Text(find([file], Path()))
            new = {source: text}
        for source, text in new.items():
            before = texts.get(source)
            if before and replace(before, files=()) != replace(text, files=()):
                raise XDogeError(
                    f"--text {source}: all files of a source must be read in the same way, here from the columns "
                    f"{before.column} and {text.column}; name two sources, such as {source.partition('/')[0]}/more."
                )
            texts[source] = replace(text, files=(*before.files, *text.files)) if before else text
    return texts or None
