"""Commands on foreign files exit with 0, 1 or 2, and print one line for an error, never a traceback.

`XDOGE_EXAMPLES=1000` runs a thousand examples of each command instead of a dozen.
"""

from __future__ import annotations

import json
import os
import shutil
import sys

import pytest
import yaml
from conftest import write_corpus
from hostile import changed, cut_up, text_of
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from law_swarms import known_law, runs
from tiny_models import save_byte_tokenizer, save_llama

from xdoge import Mixture, WeightSet, cli
from xdoge.errors import XDogeError
from xdoge.eval.results import Results, Row
from xdoge.export import FORMATS

EXAMPLES = int(os.environ.get("XDOGE_EXAMPLES", "12"))
PROGRESS = ("warning: ", "note: ", "sampling ", "training a tokenizer ", "trained the tokenizer ")
SOURCES = ("en/web", "es/web", "gl/web", "eu/web")
EVAL = "eval model --text es/web=es-web.jsonl --out new.json --force"
COMMANDS = {
    "mix": ("weights.json", "mix weights.json --tokens counts.json --budget 40000"),
    "mix by size": ("counts.json", "mix unimax --tokens counts.json --budget 40000 --max-epochs 4,none"),
    "mix again": ("mixture.json", "mix weights.json --tokens counts.json --budget 4000 --after mixture.json"),
    **{
        f"export {name}": ("mixture.json", f"export mixture.json --to {name}")
        for name in FORMATS
        if name != "llamafactory"
    },
    "compare weights": ("weights.json", "compare weights.json second.json --json"),
    "compare mixtures": ("mixture.json", "compare weights.json mixture.json"),
    "compare results": ("results.json", "compare results.json"),
    "card": ("mixture.json", "card mixture.json --weights weights.json"),
    "card of weights": ("weights.json", "card mixture.json --weights weights.json"),
    "merge": ("weights.json", "merge weights.json second.json"),
    "plan": ("plan.yaml", "plan plan.yaml"),
    "predict": ("law.json", "predict law.json uniform weights.json"),
    "predict weights": ("weights.json", "predict law.json weights.json"),
    "optimize": ("law.json", "optimize law.json"),
    "fit-law": (
        "losses.csv",
        "fit-law --mixtures mixtures.csv --losses losses.csv --form linear --out new.json --force",
    ),
    "fit-weights": ("fit.yaml", "fit-weights store --out run --config fit.yaml"),
    "prepare": ("corpus.yaml", "prepare corpus.yaml --out new --workers 1"),
    "store": ("copy/store.json", "mix uniform --store copy --budget 4000"),
    "compare laws": ("law.json", "compare law.json --json"),
    "baseline doremi": ("baseline.yaml", "baseline doremi store --out run --config baseline.yaml"),
    "swarm": ("swarm.yaml", "swarm store --out new --config swarm.yaml --dry-run"),
    "study": ("study.yaml", "study study.yaml --out new --dry-run"),
    "train": ("train.yaml", "train mixture.json --store store --out new --config train.yaml"),
    "eval": ("eval.yaml", f"{EVAL} --config eval.yaml"),
    **{
        f"eval of {name}": (f"model/{name}", f"{EVAL} --max-documents 1")
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    },
}


@pytest.fixture(scope="module")
def folder(store, recipe, tmp_path_factory):
    """A folder with a good file of each kind."""
    at = tmp_path_factory.mktemp("commands")
    about = {"method": {"steps": 40}, "proxy": {"name": "125m", "parameters": 10, "tokens_seen": 20}}
    about["corpus"] = {"name": "tiny", "sha256": "ab"}
    shares = dict(zip(SOURCES, (0.4, 0.3, 0.2, 0.1), strict=True))
    weights = WeightSet("125m", shares, floor=0.01, **about)
    weights.save(at / "weights.json")
    about["method"] = {"steps": 40, "seed": 1}
    WeightSet("other", {**shares, "en/web": 0.3, "eu/web": 0.2}, floor=0.01, **about).save(at / "second.json")
    available = dict.fromkeys(SOURCES, 9_000)
    (at / "counts.json").write_text(json.dumps(available))
    Mixture.plan(weights, available_tokens=available, budget_tokens=20_000).save(at / "mixture.json")
    rows = [Row(name, "es", "perplexity", "bits_per_byte", 1.25, 0.01, 40, False) for name in ("125m", "60m")]
    Results.of(rows, settings={"perplexity": {"125m": {"tokenizer": "ab"}}}).save(at / "results.json")
    plan = {"hardware": {"peak": "989T", "utilisation": 0.4, "gpus_per_node": 4}, "vocab_size": 256000}
    plan["runs"] = {"a": {"model": "125m", "nodes": 0.25, "runs": 5}, "b": {"parameters": "7B", "tokens": "2T"}}
    (at / "plan.yaml").write_text(yaml.safe_dump(plan))
    table, losses = runs(known_law(), 12, noise=0.01)
    for name, header, values in (("mixtures", SOURCES, table), ("losses", SOURCES, losses)):
        lines = [",".join(["run", *header]), *(f"r{n}," + ",".join(map(str, row)) for n, row in enumerate(values))]
        (at / f"{name}.csv").write_text("\n".join(lines) + "\n")
    files = ["--mixtures", at / "mixtures.csv", "--losses", at / "losses.csv", "--out", at / "law.json"]
    sys.argv = ["xdoge", "fit-law", *map(str, files), "--form", "effective"]
    with pytest.raises(SystemExit):
        cli.main()
    write_corpus(at)
    os.symlink(store.path, at / "store")
    values = {"floor": 0.01, "steps": 4, "seed": 3, "targets": "languages", "mu": 0.5, "learning_rate": 0.01}
    (at / "fit.yaml").write_text(yaml.safe_dump({"proxy": recipe, **values}))
    shutil.copytree(store.path, at / "copy")
    save_llama(at / "model", vocab_size=258, max_position_embeddings=32)
    save_byte_tokenizer(at / "model")
    training = {"model": recipe, "steps": 4, "batch_size": 4, "learning_rate": 0.01, "seed": 3, "accumulation": 1}
    strategies = {"uniform": {"kind": "uniform"}, "fit": {"kind": "fit", "mu": 0.5}}
    strategies["law"] = {"kind": "law", "form": "linear"}
    study = {"store": "store", "proxy": recipe, "model": recipe, "seeds": [0, 1], "max_epochs": 9}
    study |= {
        "strategies": strategies,
        "training": {"eval_sequences": 1},
        "learning": {"steps": 8},
        "evaluation": {"max_documents": 2},
    }
    settings_of = {
        "baseline": {"proxy": recipe, "steps": 4, "seed": 3},
        "swarm": {"budget_tokens": 20_000, "proxy": recipe, "runs": 12, "steps": 4, "seeds": [0, 1]},
        "study": study,
        "train": training,
        "eval": {"max_documents": 2, "window": 32, "stride": 16},
    }
    for name, content in settings_of.items():
        (at / f"{name}.yaml").write_text(yaml.safe_dump(content))
    return at


@pytest.fixture
def here(folder, monkeypatch):
    """The folder as the working directory. Fits raise an error instead of starting."""

    def begin(*_, **__):
        raise XDogeError("settings are good")

    monkeypatch.chdir(folder)
    monkeypatch.setattr("xdoge.cli.fit_weights.run_fit", begin)
    monkeypatch.setattr("xdoge.laws.law.MixtureLaw.fit", begin)
    monkeypatch.setattr("xdoge.cli.baseline.run_baseline", begin)
    monkeypatch.setattr("xdoge.cli.train.run_training", begin)
    return folder


def call(words, capsys):
    """Run a command line in this process. Fail unless it ends properly."""
    sys.argv = ["xdoge", *words]
    try:
        cli.main()
    except SystemExit as stop:
        status = stop.code or 0
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith(PROGRESS)]
    assert status in (0, 1, 2), err
    if status == 1 and "settings are good" not in err:
        assert [line[:7] for line in lines] == ["error: "], err
    assert "Traceback" not in err
    return status, out, err


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_reads_any_file_or_refuses_it_in_one_line(name, here, capsys, monkeypatch):
    file, command = COMMANDS[name]
    path, words = here / file, command.split()
    good = path.read_bytes()
    monkeypatch.setattr(sys, "argv", [])
    status, _, err = call(words, capsys)
    assert status == 0 or "settings are good" in err

    @settings(max_examples=EXAMPLES, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def check(data):
        if data.draw(st.booleans()) and not file.endswith(".csv"):
            content = text_of(file, changed(yaml.safe_load(good), data))
        else:
            content = cut_up(good, data)
        path.write_bytes(content)
        try:
            call(words, capsys)
        finally:
            path.write_bytes(good)
            for left in here.glob("new*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    check()


TAGS = ("floor=!!python/object/apply:os.system [ls]", "floor=!!timestamp x", "floor=!!int ''", "mu=\0")
DEEP = ("floor=" + "[" * 2000, "floor=" + "{a: " * 2000)
KINDS = ("held_out=5", "targets={a: " + "1" * 401 + "}", "seed=" + "1" * 401, "floor=1e308", "mu=[]", "targets=[]")


@pytest.mark.parametrize("setting", [*TAGS, *DEEP, *KINDS])
def test_a_setting_of_the_wrong_kind_is_one_line(setting, here, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    status, _, err = call(["fit-weights", "store", "--out", "run", "--config", "fit.yaml", "--set", setting], capsys)
    assert (status, "settings are good" in err) == (1, False)
    assert len(err) < 600


@pytest.mark.parametrize("content", ["settings: []", "settings: 5", "[]", "[" * 2000, "a: !!python/name:os.system"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_file_of_settings_of_the_wrong_kind_is_one_line(content, encoding, here, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    (here / "odd.yaml").write_bytes(content.encode(encoding))
    for command in ("fit-weights store --out run --config odd.yaml", "plan odd.yaml", "prepare odd.yaml --out new"):
        status, _, err = call(command.split(), capsys)
        assert (status, "odd.yaml" in err) == (1, True)


@pytest.mark.parametrize("number", [10**400, 2**40, 2**64])
@pytest.mark.parametrize("key", ["vocab_size", "end_of_document"])
def test_counts_of_a_store_beyond_any_tokenizer_are_one_line(number, key, store, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", [])
    copy = shutil.copytree(store.path, tmp_path / "copy")
    content = json.loads((copy / "store.json").read_text())
    content["tokenizer"][key] = number
    (copy / "store.json").write_text(json.dumps(content))
    status, _, err = call(["mix", "uniform", "--store", str(copy), "--budget", "100"], capsys)
    assert (status, "store.json" in err) == (1, True)
