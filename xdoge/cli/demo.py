"""`xdoge demo`: all commands on the built-in sample."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from xdoge.cli import options
from xdoge.cli.app import app
from xdoge.cli.eval import print_results, run_evaluation
from xdoge.cli.fit_weights import print_fit, run_fit
from xdoge.cli.mix import print_mixtures
from xdoge.cli.prepare import prepare_store, print_store
from xdoge.cli.train import print_run, run_training
from xdoge.errors import XDogeError, require
from xdoge.io import write_text
from xdoge.mixtures.mixture import Mixture
from xdoge.mixtures.strategies import strategy_weights

SIZE: dict[str, Any] = {"sequence_length": 64, "batch_size": 48, "eval_sequences": 16}


@app.command()
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; must be new or empty.")] = Path("demo"),
    steps: Annotated[
        int,
        typer.Option(
            parser=options.count(1),
            metavar="N",
            help="Steps of the fit; each target model trains for a quarter of them.",
        ),
    ] = 120,
) -> None:
    """Run all steps on the built-in sample; takes a few minutes on two cores.

    Prepares the text, fits weights, plans two mixtures (learned and uniform), trains a small model on each, measures
    their perplexity and writes a report that compares them.

    The sample is synthetic: sentences in six languages made from word lists. Its numbers mean nothing. It shows which
    files a real run writes.
    """
    from xdoge.analysis.comparison import compare
    from xdoge.corpus.sample import write_sample
    from xdoge.fit.settings import FitSettings

    if out.is_dir() and any(out.iterdir()):
        raise XDogeError(f"{out} is not empty; remove it, or name another with --out (make demo DEMO_OUT=...).")
    require("proxy", "torch", "transformers", "sentencepiece", "accelerate")
    require("analysis", "altair", "vl_convert", "pandas")
    corpus = write_sample(out / "sample")
    print(f"wrote the synthetic sample: {corpus}", file=sys.stderr)
    store = prepare_store(corpus, out / "store")
    print_store(store)
    every = max(1, steps // 4)
    settings = FitSettings.for_store(store, {"proxy": "1m", "steps": steps, "eval_every": every, **SIZE})
    result = run_fit(store, settings, out / "run")
    print_fit(result, store, as_json=False)

    tokens = store.tokens()
    common: dict[str, Any] = {
        "available_tokens": tokens,
        "budget_tokens": 2 * sum(tokens.values()),
        "corpus": {"name": store.name, "sha256": store.sha256},
        "sequence_length": SIZE["sequence_length"],
    }
    mixtures = {
        "uniform": Mixture.plan(strategy_weights("uniform", tokens), name="uniform", **common),
        "learned": Mixture.plan(result.weights, name="learned", **common),
    }
    print_mixtures(list(mixtures.values()))
    for name, mixture in mixtures.items():
        mixture.save(out / f"{name}.json")
        print(out / f"{name}.json")
        chosen = {"model": "1m", "steps": every, "eval_every": every, **SIZE}
        trained = run_training(mixture, store, chosen, out / name, resume=False)
        print_run(trained, mixture)

    results = run_evaluation(
        {name: out / name for name in mixtures}, store=store, out=out / "results.json", max_documents=20
    )
    print_results(results, baseline="uniform")
    files = [out / "run", *(out / f"{name}.json" for name in mixtures), *(out / name for name in mixtures)]
    compared = compare([*files, out / "results.json"], baseline="uniform")
    write_text(out / "report.html", compared.to_html(f"xdoge demo --out {out} --steps {steps}"))
    print("Next: run the same commands on your own text; see README.md.", file=sys.stderr)
    print(out / "report.html")
