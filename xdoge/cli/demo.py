"""`xdoge demo`: the whole way on the built-in sample."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml

from xdoge.cli import options
from xdoge.cli.app import app
from xdoge.cli.fit_law import print_transfer
from xdoge.cli.prepare import prepare_store, print_store
from xdoge.cli.study import print_plan
from xdoge.cli.tables import print_table
from xdoge.cli.train import print_run, run_training
from xdoge.errors import Interrupted, XDogeError, require
from xdoge.io import write_text
from xdoge.mixtures.mixture import Mixture
from xdoge.mixtures.strategies import strategy_weights

if TYPE_CHECKING:
    from xdoge.corpus.store import TokenStore
    from xdoge.study import Findings

RECIPE = {
    "name": "demo",
    "about": "For the demo only: trains in seconds on one core.",
    "hidden_size": 32,
    "intermediate_size": 88,
    "layers": 2,
    "heads": 2,
    "sequence_length": 64,
    "batch_size": 16,
    "steps": 400,
    "learning_rate": 1.0e-2,
}
"""The base model, and the proxy of the fit."""

STRATEGIES = {
    "uniform": {"kind": "uniform"},
    "fit": {"kind": "fit"},
    "law": {"kind": "law", "force_optimum": True},  # also where it may gain nothing, so that the demo can show it
}

RUNS, JOBS = 20, 2
SEEDS = [0, 1, 2]
RATE = 3.0e-3
STEPS, BASE_STEPS = 80, 5
"""Steps of a training that continues from the base model, and how many times as many the base model has. From scratch,
200 steps left two seeds of equal shares 0.2 to 0.4 bits per byte apart, and the swarm refused to go on."""

LIMITS = (
    "The text of the sample is synthetic and the models are tiny. The demo shows how the tools work and what a result "
    "looks like. Its shares mean nothing for real text."
)


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder to write. A demo that was stopped in this folder continues.")
    ] = Path("demo"),
    steps: Annotated[
        int,
        typer.Option(
            parser=options.count(2),
            metavar="N",
            help=f"Steps of every training after the base model, which trains {BASE_STEPS} times as many.",
        ),
    ] = STEPS,
) -> None:
    """Run all steps on the built-in sample; takes a few minutes on two cores.

    The sample has synthetic sentences in six languages. English has much text; Basque and Galician have little.
    Galician, Portuguese, Spanish and Catalan are related. Basque is not.

    The demo prepares the text and trains a small base model, on which every language has a share in proportion to its
    size. The question is on which shares this model should be trained further. The demo compares three answers: equal
    shares, the weights of `xdoge fit-weights`, and the best mixture under a mixture law, which it fits to 20 short
    trainings. It continues the base model on each mixture with three seeds, and measures the results. It ends with a
    conclusion: which shares were best, by how much, and whether the difference is significant.

    **What it writes** into DIR: `sample/` (the text), `store/` (its tokens), `base/` (the base model), `study.yaml`
    and `recipe.yaml` (the settings), `study/` (every run; `study/logs` has what each command printed), and
    `report.html`.

    **Stopping.** After Ctrl-C or a kill, run the same command again to continue.

    **Next.** `xdoge study DIR/study.yaml --out DIR/study --dry-run` lists the commands of the demo. Run the same
    commands on your own text.
    """
    from xdoge.corpus.sample import write_sample
    from xdoge.study import Study
    from xdoge.study import report as study_report

    require("proxy", "torch", "transformers", "sentencepiece", "accelerate")
    require("analysis", "altair", "vl_convert", "pandas")
    _begin(out, steps)
    corpus = out / "sample" / "corpus.yaml"
    if not corpus.exists():  # it is written last
        write_sample(out / "sample")
    print(f"the sample, synthetic text in six languages: {corpus}", file=sys.stderr)
    store = prepare_store(corpus, out / "store")
    print_store(store)
    _train_base(store, out, BASE_STEPS * steps)
    study = Study.load(out / "study.yaml")
    print_plan(study)
    findings = study.run(out / "study", jobs=JOBS, on_note=lambda text: print(text, file=sys.stderr, flush=True))
    for table in study_report.comparison_tables(findings, "tokens"):
        print_table(table)
    law = study.law_file(out / "study", "auto")
    if law.exists():
        from xdoge.laws.law import MixtureLaw

        print_transfer(MixtureLaw.load(law))
    concluded = conclusion(findings)
    command = f"xdoge demo --out {out} --steps {steps}"
    write_text(out / "report.html", study_report.page(findings, command, conclusion=concluded))
    print(f"conclusion: {' '.join(concluded)}")
    print("Next: run the same commands on your own text; see README.md.", file=sys.stderr)
    print(out / "report.html")
    if missing := sum(result.state != "finished" for result in findings.results.values()):
        raise XDogeError(f"{missing} models have no result; the logs are in {out}/study/logs.")


def _begin(out: Path, steps: int) -> None:
    """Write the study's settings into a new folder, or check that the folder holds a demo with these settings."""
    recipe = {**RECIPE, "steps": BASE_STEPS * steps}
    study = {
        "store": "store",
        "proxy": "recipe.yaml",
        "model": "base",
        "seeds": SEEDS,
        "steps": steps,
        "batch_size": 16,
        "sequence_length": 64,
        "max_epochs": "none",
        "compare": "tokens",
        # Two sequences of each of the 12 sources, so that every source has a gradient in every step.
        "learning": {"steps": steps, "batch_size": 24, "sequence_length": 32, "eval_sequences": 4, "gram_every": 0},
        "swarm": {"proxy": "base", "steps": steps, "batch_size": 16, "sequence_length": 64, "runs": RUNS}
        | {"seeds": [0, 1], "eval_sequences": 48, "learning_rate": RATE},
        "training": {"eval_sequences": 1, "learning_rate": RATE},
        "evaluation": {"window": 64, "stride": 64, "max_documents": 24},
        "strategies": STRATEGIES,
    }
    files = {out / "recipe.yaml": recipe, out / "study.yaml": study}
    texts = {path: yaml.safe_dump(value, sort_keys=False) for path, value in files.items()}
    if out.is_dir() and any(out.iterdir()):
        if not all(path.exists() for path in files):
            raise XDogeError(f"{out} is not empty; remove it, or name another with --out (make demo DEMO_OUT=...).")
        if changed := [path for path, text in texts.items() if path.read_text(encoding="utf-8") != text]:
            raise XDogeError(f"{out} holds another demo: {changed[0].name} differs. Name another folder with --out.")
    for path, text in texts.items():
        write_text(path, text)


def _train_base(store: TokenStore, out: Path, steps: int) -> None:
    """Train the base model in proportion to the sizes, or go on with it."""
    folder, tokens = out / "base", store.tokens()
    if (folder / "train.json").exists():
        return
    mixture = Mixture.plan(
        strategy_weights("proportional", tokens),
        available_tokens=tokens,
        budget_tokens=steps * 16 * 64,
        max_epochs=None,
        sequence_length=64,
        name="base",
    )
    chosen = {"model": str(out / "recipe.yaml"), "steps": steps, "eval_every": steps, "eval_sequences": 4}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # small languages are drawn less than once in a batch
        try:
            trained = run_training(mixture, store, chosen, folder, resume=(folder / "config.yaml").exists())
        except Interrupted as stop:  # its message names --resume, which the demo does not have
            raise Interrupted(
                stop.exit_code - 128, f"{folder} stopped; run the same command again to continue"
            ) from stop
    print_run(trained, mixture)


def conclusion(findings: Findings) -> list[str]:
    """Return sentences: how much each mixture changes the loss, whether that is significant, and the demo's limits."""
    rows = [row for row in findings.rows("tokens") if row["macro"] is not None]
    reference = findings.study.spec.relative_to
    equal = next((row["macro"] for row in rows if row["strategy"] == reference), None)
    sentences = []
    if equal is not None:
        store = findings.study.store
        sizes = {name: sum(store.tokens()[source] for source in sources) for name, sources in store.languages.items()}
        smallest = min(sizes, key=sizes.__getitem__)
        tokens = findings.study.own_steps * findings.study.tokens_per_step
        sentences.append(
            f"With equal shares of {len(sizes)} languages, the models read the text of the smallest one, {smallest}, "
            f"{tokens / len(sizes) / sizes[smallest]:.1f} times. They end at {equal:.3f} bits per byte, averaged over "
            "the languages."
        )
    for row in rows:
        difference = findings.difference("tokens", row["strategy"], "macro")
        if difference is None or equal is None:
            continue
        word = "lower" if difference.mean < 0 else "higher"
        half = "" if difference.high is None else f" ± {difference.high - difference.mean:.3f}"
        what = (
            f"With the shares of {row['strategy']}, they end {abs(difference.mean):.3f}{half} bits per byte "
            f"{word} ({abs(difference.mean) / equal:.1%})"
        )
        told = {-1: "significantly better than", 1: "significantly worse than", 0: "not significantly different from"}
        sentences.append(f"{what}: {told[difference.sign]} equal shares.")
        if changed := [f"{word} in {', '.join(row[word])}" for word in ("better", "worse") if row[word]]:
            sentences.append(f"By language, {row['strategy']} is significantly {' and '.join(changed)}.")
    if len(rows) < len(STRATEGIES):
        missing = [name for name in STRATEGIES if name not in {row["strategy"] for row in rows}]
        sentences.append(f"There is no result of {', '.join(missing)}, since its runs failed.")
    half = f"± is half of a 95 % interval over {len(SEEDS)} seeds and the documents."
    return [*sentences, half, "A difference is significant if its whole interval lies above 0 or below 0.", LIMITS]
