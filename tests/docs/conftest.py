"""The files that the pages' commands read: a small store, mixtures, short fits, tiny trained models, results."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import law_swarms
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
WORDS = {
    "en": "house dog cat green book table water earth road city river bread light stone morning",
    "es": "casa perro gato verde libro mesa agua tierra camino ciudad río pan luz piedra mañana",
    "gl": "casa can gato verde libro mesa auga terra camiño cidade río pan luz pedra mañá",
    "eu": "etxe txakur katu berde liburu mahai ur lur bide hiri ibai ogi argi harri goiz",
}
DOCUMENTS = {"en/web": 6000, "en/wikipedia": 2000, "es/web": 3000, "es/wikipedia": 1500, "gl/web": 1000}
DOCUMENTS |= {"gl/wikipedia": 700, "eu/web": 800, "eu/wikipedia": 900}
RECIPE = """
name: tiny
hidden_size: 16
intermediate_size: 32
layers: 2
heads: 2
sequence_length: 16
batch_size: 16
steps: 8
learning_rate: 0.01
"""
STUDY = """
store: store
model: tiny.yaml
proxy: tiny.yaml
seeds: [0, 1]
steps: 4
training: {eval_sequences: 2}
evaluation: {max_documents: 3}
strategies:
  uniform: {kind: uniform}
  proportional: {kind: proportional}
"""


def write_corpus(folder: Path) -> Path:
    """Write sources of uneven sizes in four languages, and their corpus.yaml; return its path."""
    lines = ["name: small", "tokenizer: {train: {vocab_size: 320}}", "validation: {fraction: 0.1}", "languages:"]
    (folder / "text").mkdir()
    for source, count in DOCUMENTS.items():
        language, _, name = source.partition("/")
        generator = random.Random(source)
        file = f"text/{language}-{name}.jsonl"
        texts = [" ".join(generator.choices(WORDS[language].split(), k=20)) for _ in range(count)]
        (folder / file).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        if f"  {language}:" not in lines:
            lines += [f"  {language}:", "    sources:"]
        lines.append(f"      {name}: {{files: {file}}}")
    path = folder / "corpus.yaml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that a page may read."""
    from xdoge import Mixture, TokenStore, WeightSet, evaluate, fit, prepare, train
    from xdoge.mixtures.strategies import strategy_weights

    folder = tmp_path_factory.mktemp("workspace")
    store: TokenStore = prepare(write_corpus(folder), folder / "store", workers=1)
    (folder / "tiny.yaml").write_text(RECIPE)
    (folder / "study.yaml").write_text(STUDY)
    (folder / "examples").symlink_to(ROOT / "examples")

    recipe = str(folder / "tiny.yaml")
    for seed in (0, 1):
        fit(store, proxy=recipe, seed=seed, out=folder / f"runs/60m-seed{seed}")
        shutil.copytree(folder / f"runs/60m-seed{seed}", folder / f"runs/125m-seed{seed}")
    shutil.copytree(folder / "runs/60m-seed0", folder / "runs/60m")
    shutil.copytree(folder / "runs/60m-seed1", folder / "runs/125m")
    shutil.copy(folder / "runs/125m/weights.json", folder)

    tokens = store.tokens()
    common = {"available_tokens": tokens, "corpus": {"name": store.name, "sha256": store.sha256}, "max_epochs": None}
    plans = {"mixture": (21_000_000, 2048), "phase2": (6_000_000, 2048), "uniform": (100_000, 128)}
    for name, (budget, length) in plans.items():
        mixture = Mixture.plan(
            strategy_weights("uniform", tokens), name=name, budget_tokens=budget, sequence_length=length, **common
        )
        mixture.save(folder / f"{name}.json")
    learned = Mixture.plan(
        WeightSet.load(folder / "runs/125m"), name="learned", budget_tokens=100_000, sequence_length=128, **common
    )
    learned.save(folder / "learned.json")
    for name in ("uniform", "learned"):
        train(mixture, store, model=recipe, steps=2, eval_sequences=2, out=folder / f"runs/{name}")
    models = {name: folder / f"runs/{name}" for name in ("uniform", "learned")}
    evaluate(models, store=store, out=folder / "results.json", max_documents=3)

    shares, losses = law_swarms.runs(law_swarms.known_law(), 40, noise=0.002)
    for file, rows in {"mixtures.csv": shares, "losses.csv": losses}.items():
        np.savetxt(
            folder / file,
            np.column_stack([np.arange(len(rows)), rows]),
            delimiter=",",
            header=",".join(["run", *law_swarms.NAMES]),
            comments="",
            fmt=["%d", *["%.17g"] * rows.shape[1]],
        )
    return folder


@pytest.fixture
def folder_with(workspace: Path, tmp_path: Path) -> Callable[[list[str]], Path]:
    """A function that returns a new folder with copies of the workspace's files: NAME, or NAME=ITS NAME THERE."""

    def made(names: list[str]) -> Path:
        for entry in names:
            place_name, _, other = entry.partition("=")
            name, place = other or place_name, tmp_path / place_name
            place.parent.mkdir(parents=True, exist_ok=True)
            if (workspace / name).is_dir() and not (workspace / name).is_symlink():
                shutil.copytree(workspace / name, place)
            else:
                shutil.copy(workspace / name, place, follow_symlinks=False)
        return tmp_path

    return made
