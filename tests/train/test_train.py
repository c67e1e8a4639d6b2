"""Training target models: the same sequences after any interruption, and one line for each error."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate import FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file
from tiny_models import save_byte_tokenizer, save_llama
from transformers import AutoModelForCausalLM
from typer.main import get_command

from xdoge.cli import app
from xdoge.errors import Interrupted, MemoryFullError, NonFiniteLossError, XDogeError
from xdoge.io import sha256_file
from xdoge.mixtures.mixture import Mixture
from xdoge.models import loss
from xdoge.models.initial_model import InitialModel, freeze, layers_trained, peak_learning_rate
from xdoge.models.loss import document_positions, sequence_nats
from xdoge.sampling.dataset import MixtureDataset
from xdoge.sampling.sampler import MixtureSampler
from xdoge.train import mixture_trainer
from xdoge.train import trainer as training
from xdoge.train.mixture_trainer import MixtureTrainer
from xdoge.train.run_log import RunLog, beyond_plan, common_budget, passes
from xdoge.train.settings import ELASTIC, BatchSplit, TrainSettings, TrainValues
from xdoge.train.trainer import train
from xdoge.training.optim import learning_rate_ratio
from xdoge.training.run_folder import RunFolder
from xdoge.training.validation import by_language, validation_losses

LENGTH, BATCH = 16, 8
TIMES = ("seconds", "validation_seconds", "tokens_per_second")
QUICK = {"steps": 6, "batch_size": BATCH, "eval_every": 3, "checkpoint_every": 2, "eval_sequences": 4}


@pytest.fixture(scope="module")
def mixture(store):
    """Unequal shares of 160 sequences."""
    weights = dict(zip(store.sources, (0.4, 0.1, 0.2, 0.3), strict=True))
    corpus = {"name": store.name, "sha256": store.sha256}
    return Mixture.plan(
        weights, available_tokens=store.tokens(), budget_tokens=160 * LENGTH, name="unequal", corpus=corpus
    )


def settings_for(mixture, store, model, **values):
    return TrainSettings.for_run(mixture, store, {**QUICK, "model": str(model), **values})


def test_settings_are_made_of_single_values(mixture, store, recipe, finished, tmp_path):
    result = train(mixture, store, out=tmp_path / "run", model=recipe, **QUICK)
    assert (result.ended, result.folder, result.steps) == ("trained", tmp_path / "run", 6)
    assert result.to_dict()["validation"] == result.validation == finished[2]["validation"]
    again = train(mixture, store, out=tmp_path / "run", resume=True)
    assert again == replace(result, ended="finished before")
    with pytest.raises(XDogeError, match="learning_rat"):
        train(mixture, store, out=tmp_path / "new", model=recipe, learning_rat=0.1)
    with pytest.raises(XDogeError, match="model"):
        train(mixture, store, out=tmp_path / "new", steps=3)
    with pytest.raises(XDogeError, match="steps"):
        train(mixture, store, settings_for(mixture, store, recipe), out=tmp_path / "new", steps=3)


def test_every_setting_can_be_named_in_the_call():
    assert set(TrainValues.__annotations__) == set(TrainSettings.model_fields)


def expected(mixture, store, count):
    """Return the first sequences of the plan, (count, T)."""
    sampler = MixtureSampler(mixture, store.sequence_counts(LENGTH), batch_size=BATCH, sequence_length=LENGTH)
    return MixtureDataset(store, sampler, LENGTH)[:count]["input_ids"]


@pytest.fixture
def stream(monkeypatch):
    """A list to which every training batch, (B, T), is appended."""
    seen = []
    step = MixtureTrainer.training_step

    def record(self, model, inputs, *rest):
        seen.append(inputs["input_ids"])
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(MixtureTrainer, "training_step", record)
    return seen


@pytest.fixture(scope="module")
def finished(mixture, store, recipe, tmp_path_factory):
    """A run folder, its metrics and its summary. Tests must not change it."""
    run, rows = tmp_path_factory.mktemp("train") / "run", []
    result = train(
        mixture, store, settings_for(mixture, store, recipe), out=run, on_progress=lambda event: rows.append(event.row)
    )
    return run, rows, result.to_dict()


def metrics(run):
    """Return the rows without measured times."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{key: row[key] for key in row if key not in TIMES} for row in rows]


def weights(run):
    return load_file(run / "model" / "model.safetensors")


def same_weights(run, other, **tolerance):
    left, right = weights(run), weights(other)
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], **tolerance)


def signalled_after(step, number=signal.SIGTERM):
    """Return an `on_progress` that sends this process a signal after a step. The next step is then the last."""
    events = []

    def stop(event):
        if event.done == step and not events:
            events.append(event)
            os.kill(os.getpid(), number)

    return stop


def config_of(run):
    return yaml.safe_load((run / "config.yaml").read_text())


def test_a_run_writes_everything_it_promises(finished, mixture, store):
    run, rows, summary = finished
    assert json.loads((run / "train.json").read_text()) == summary
    assert summary["schema"] == "xdoge.train/1"
    assert summary["tokens_seen"] == 6 * BATCH * LENGTH
    assert summary["mixture"]["sha256"] == sha256_file(run / "mixture.json")
    assert summary["store"]["sha256"] == store.sha256
    assert summary["store"]["tokenizer_fingerprint"] == store.tokenizer_fingerprint
    assert summary["model"]["base"] == config_of(run)["model"]
    assert summary["repeated_beyond_plan"] == {}
    assert Mixture.load(run / "mixture.json") == mixture
    config = config_of(run)
    assert config["settings"]["batch_size"] == BATCH
    assert config["model"]["hidden_size"] == 16
    assert "torch" in config["versions"]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    assert [row["step"] for row in rows if "validation" in row] == [0, 3, 6]
    assert (run / "model" / "tokenizer.model").exists()
    assert AutoModelForCausalLM.from_pretrained(run / "model").config.eos_token_id == store.end_of_document
    assert not any(path.suffix == ".bin" for path in (run / "model").iterdir())


def test_tokens_and_epochs_are_those_of_the_sequences_read(finished, mixture, store):
    sampler = MixtureSampler(mixture, store.sequence_counts(LENGTH), batch_size=BATCH, sequence_length=LENGTH)
    read = [draw.source for draw, _ in zip(sampler, range(6 * BATCH), strict=False)]
    for source, epochs in finished[2]["epochs"].items():
        assert epochs == read.count(source) * LENGTH / store.tokens()[source]
        assert finished[2]["tokens_by_source"][source] == read.count(source) * LENGTH
    evaluations = [row for row in finished[1] if "validation" in row]
    assert [sum(row["tokens_by_source"].values()) for row in evaluations] == [0, 3 * BATCH * LENGTH, 6 * BATCH * LENGTH]


def test_the_sequences_that_the_loader_returns_are_counted(mixture, store, recipe, monkeypatch, tmp_path):
    read = mixture_trainer._Labelled.__getitems__
    monkeypatch.setattr(
        mixture_trainer._Labelled, "__getitems__", lambda self, positions: read(self, [0] * len(positions))
    )
    result = train(mixture, store, settings_for(mixture, store, recipe, steps=2), out=tmp_path / "run")
    source = MixtureSampler(mixture, store.sequence_counts(LENGTH), batch_size=BATCH, sequence_length=LENGTH)[0].source
    assert {name: count for name, count in result.tokens_by_source.items() if count} == {source: 2 * BATCH * LENGTH}
    assert set(result.repeated_beyond_plan) == {source}
    assert result.epochs[source] == 2 * BATCH * LENGTH / store.tokens()[source]


def test_the_validation_loss_is_that_of_transformers(finished, store):
    run, _, summary = finished
    model = AutoModelForCausalLM.from_pretrained(run / "model").eval().requires_grad_(False)
    counts = store.sequence_counts(LENGTH, split="validation")
    losses = validation_losses(lambda rows: sequence_nats(model, rows), store, LENGTH, most=4, rows=3)
    assert losses == pytest.approx(summary["validation_by_source"], rel=1e-5)
    whole = validation_losses(lambda rows: sequence_nats(model, rows), store, LENGTH, most=10**6, rows=5)
    for source, count in counts.items():
        rows = torch.tensor(store.sequences(source, range(count), LENGTH, split="validation").astype("int64"))
        assert whole[source] == pytest.approx(float(model(input_ids=rows, labels=rows).loss), rel=1e-5)
    spanish = {source: counts[source] for source in store.languages["es"]}
    mean = sum(whole[source] * n for source, n in spanish.items()) / sum(spanish.values())
    assert by_language(whole, store, LENGTH)["es"] == pytest.approx(mean)


def test_validation_keeps_documents_apart_as_training_does(finished, mixture, store):
    model = AutoModelForCausalLM.from_pretrained(finished[0] / "model").eval().requires_grad_(False)

    def nats(*batch):
        return sequence_nats(model, *batch)

    losses = validation_losses(nats, store, LENGTH, most=5, rows=3, documents="separate")
    assert losses.keys() == store.sequence_counts(LENGTH, split="validation").keys()
    for source, count in store.sequence_counts(LENGTH, split="validation").items():
        assert count >= 2
        bounds, total, scored = store.document_bounds(source, "validation"), 0.0, 0
        all_of_it = validation_losses(nats, store, LENGTH, most=10**6, rows=7, documents="separate")[source]
        for begin in range(0, count * LENGTH, LENGTH):
            edges = [begin, *[int(b) for b in bounds if begin < b < begin + LENGTH], begin + LENGTH]
            for start, stop in itertools.pairwise(edges):
                if stop - start > 1:
                    piece = torch.tensor(store.flat(source, "validation")[start:stop].astype("int64"))[None]
                    total += float(model(input_ids=piece, labels=piece).loss) * (stop - start - 1)
                    scored += stop - start - 1
        assert all_of_it == pytest.approx(total / scored, rel=1e-5)
        assert losses[source] != pytest.approx(finished[2]["validation_by_source"][source], rel=1e-6)
    sampler = MixtureSampler(mixture, store.sequence_counts(LENGTH), batch_size=BATCH, sequence_length=LENGTH)
    rows = MixtureDataset(store, sampler, LENGTH, documents="separate")[:40]["position_ids"].tolist()
    for draw, row in zip(sampler, rows, strict=False):
        assert document_positions(store.document_bounds(draw.source), draw.index * LENGTH, LENGTH).tolist() == row


def test_separate_documents_are_validated_separately_by_the_trainer(mixture, store, recipe, tmp_path):
    """The loss after training is that of its model on separate documents."""
    result = train(
        mixture, store, settings_for(mixture, store, recipe, documents="separate", steps=1), out=tmp_path / "run"
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").eval().requires_grad_(False)
    losses = validation_losses(
        lambda *batch: sequence_nats(model, *batch), store, LENGTH, most=4, rows=3, documents="separate"
    )
    assert losses == pytest.approx(result.validation_by_source, rel=1e-5)


def test_the_losses_of_a_batch_are_computed_in_parts(monkeypatch):
    sizes, cross_entropy = [], loss.F.cross_entropy
    monkeypatch.setattr(
        loss.F,
        "cross_entropy",
        lambda part, *rest, **more: sizes.append(len(part)) or cross_entropy(part, *rest, **more),
    )
    rows = torch.randint(0, 9, (5, 101))
    logits = torch.randn(5, 100, 9)
    nats = sequence_nats(lambda **values: SimpleNamespace(logits=logits), rows)
    assert sizes == [loss.LOGIT_ROWS, 500 - loss.LOGIT_ROWS]
    whole = cross_entropy(logits.transpose(1, 2), rows[:, 1:], reduction="none").sum(-1)
    torch.testing.assert_close(nats, whole.double(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("world_size", "rows"), [(2, 3), (3, 1), (5, 4)])
def test_processes_that_share_the_validation_find_the_same_losses(store, world_size, rows):
    def nats(batch):
        calls.append(len(batch))
        return batch.double().sum(-1)

    calls: list[int] = []
    alone = validation_losses(nats, store, LENGTH, most=7, rows=4)
    parts: list[torch.Tensor] = []
    called = []
    for rank in range(world_size):
        calls.clear()

        def keep(sums):
            parts.append(sums)
            return torch.cat([sums] * world_size)

        kept = {"most": 7, "rows": rows, "rank": rank, "world_size": world_size}
        validation_losses(nats, store, LENGTH, **kept, gather=keep)
        called.append(list(calls))
    assert all(call == called[0] for call in called)  # otherwise sharded models would wait forever
    together = validation_losses(nats, store, LENGTH, **kept, gather=lambda _: torch.cat(parts))
    assert together == pytest.approx(alone)


def test_training_reads_the_plan_in_its_order(mixture, store, recipe, stream, tmp_path):
    train(mixture, store, settings_for(mixture, store, recipe, workers=0), out=tmp_path / "run")
    assert torch.equal(torch.cat(stream), expected(mixture, store, 6 * BATCH))


@pytest.mark.parametrize("documents", ["ignore", "separate"])
def test_accumulation_changes_nothing_but_rounding(mixture, store, recipe, stream, tmp_path, documents):
    values = {"documents": documents, "steps": 3}
    train(mixture, store, settings_for(mixture, store, recipe, **values), out=tmp_path / "one")
    accumulated = settings_for(mixture, store, recipe, **values, per_device_batch_size=2)
    train(mixture, store, accumulated, out=tmp_path / "four")
    assert [len(batch) for batch in stream] == [8] * 3 + [2] * 12
    same_weights(tmp_path / "one", tmp_path / "four", atol=1e-4, rtol=1e-3)
    losses = [[row["loss"] for row in metrics(tmp_path / run) if "loss" in row] for run in ("one", "four")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_the_rate_follows_the_schedule_from_the_first_step(finished, mixture, store, recipe):
    settings = settings_for(mixture, store, recipe)
    rates = [row["learning_rate"] for row in finished[1] if "learning_rate" in row]
    assert rates == pytest.approx([0.01 * learning_rate_ratio(step, settings) for step in range(1, 7)])
    assert rates[0] > 0


@pytest.mark.parametrize("step", [1, 3, 4])
def test_a_stopped_and_resumed_run_is_the_same(mixture, store, recipe, finished, stream, tmp_path, step):
    settings, notes = settings_for(mixture, store, recipe), []
    with pytest.raises(Interrupted, match=rf"stopped after step {step} of 6; resume=True continues") as stopped:
        train(mixture, store, settings, out=tmp_path / "run", on_progress=signalled_after(step - 1))
    assert stopped.value.exit_code == 143
    assert [row["step"] for row in metrics(tmp_path / "run") if "validation" in row] == [0, 3][: 1 + (step > 3)]
    (tmp_path / "run" / "mixture.json").unlink()  # as after a kill just after config.yaml
    train(mixture, store, settings, out=tmp_path / "run", resume=True, on_note=notes.append)
    assert Mixture.load(tmp_path / "run" / "mixture.json") == mixture
    assert f"resuming after step {step} of 6" in notes
    assert torch.equal(torch.cat(stream), expected(mixture, store, 6 * BATCH))
    same_weights(tmp_path / "run", finished[0], atol=0, rtol=0)
    assert metrics(tmp_path / "run") == metrics(finished[0])


def test_a_run_killed_between_checkpoints_continues_from_the_last_complete_one(
    mixture, store, recipe, finished, stream, tmp_path
):
    class Killed(Exception):
        pass

    def kill(event):
        if event.done == 5:
            raise Killed

    settings, run = settings_for(mixture, store, recipe), tmp_path / "run"
    with pytest.raises(Killed):
        train(mixture, store, settings, out=run, on_progress=kill)
    broken = run / "checkpoints" / "checkpoint-5"  # as after a kill while writing
    shutil.copytree(run / "checkpoints" / "checkpoint-4", broken)
    (broken / "trainer_state.json").write_text('{"global_step": 5')
    stream.clear()
    train(mixture, store, settings, out=run, resume=True)
    assert torch.equal(torch.cat(stream), expected(mixture, store, 6 * BATCH)[4 * BATCH :])
    same_weights(run, finished[0], atol=0, rtol=0)
    assert metrics(run) == metrics(finished[0])
    assert not broken.exists()


def test_runs_resume_with_another_number_of_processes(mixture, store, recipe, finished, stream, tmp_path):
    settings, run = settings_for(mixture, store, recipe), tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped after step 2 of 6") as stopped:
        train(mixture, store, settings, out=run, on_progress=signalled_after(1, signal.SIGINT))
    assert stopped.value.exit_code == 130
    mixture.save(tmp_path / "mixture.json")
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, signal, sys, torch\n"
        "import xdoge.cli.train\n"
        "from xdoge.cli import main\n"
        "from xdoge.train.mixture_trainer import MixtureTrainer as T\n"
        "folder, step = sys.argv.pop(1), T.training_step\n"
        "def record(self, model, inputs, *rest):\n"
        "    torch.save(inputs['input_ids'], f'{folder}/{self.state.global_step}-{self.args.process_index}.pt')\n"
        "    if (self.state.global_step, self.args.process_index) == (3, 1):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return step(self, model, inputs, *rest)\n"
        "T.training_step = record\n"
        "main()\n"
    )
    (tmp_path / "seen").mkdir()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv = [
        "train",
        "mixture.json",
        "--store",
        store.path,
        "--out",
        run,
        "--resume",
        "--json",
    ]
    done = subprocess.run(
        [*torchrun, script, tmp_path / "seen", *map(str, argv)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr  # torchrun's own
    assert done.stderr.count("stopped after step 4 of 6; --resume continues") == 1, done.stderr
    assert "4 sequences at once × 2 processes" in done.stderr
    shared = [torch.load(tmp_path / "seen" / f"{step}-{rank}.pt") for step in (2, 3) for rank in (0, 1)]
    result = train(mixture, store, settings, out=run, resume=True)
    assert torch.equal(torch.cat([*stream[:2], *shared, *stream[2:]]), expected(mixture, store, 6 * BATCH))
    assert result.tokens_by_source == finished[2]["tokens_by_source"]
    assert [row["step"] for row in metrics(run)] == [row["step"] for row in metrics(finished[0])]
    same_weights(run, finished[0], atol=1e-4, rtol=1e-3)


def test_only_parameters_of_the_pattern_move(mixture, store, finished, tmp_path):
    run, notes = tmp_path / "run", []
    settings = settings_for(mixture, store, finished[0] / "model", train_only=r"layers\.(1)\.", steps=2)
    train(mixture, store, settings, out=run, on_note=notes.append)
    before, after = weights(finished[0]), weights(run)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if "layers.1." in name}
    trained = sum(before[name].numel() for name in moved)
    frozen = sum(tensor.numel() for tensor in before.values()) - trained
    layers = "(train_only is found in 1 of 2 layers)"
    assert any(f"{trained:,} parameters are trained, {frozen:,} frozen {layers}" in note for note in notes)
    pinned = {name: sha256_file(finished[0] / "model" / name) for name in ("config.json", "model.safetensors")}
    base = json.loads((run / "train.json").read_text())["model"]["base"]
    assert base == {"architecture": "llama", "sha256": pinned}
    values = {"train_only": r"layers\.(1)\.", "steps": 2, "activation_checkpointing": True}
    train(mixture, store, settings_for(mixture, store, finished[0] / "model", **values), out=tmp_path / "recomputed")
    same_weights(run, tmp_path / "recomputed", atol=0, rtol=0)


def test_a_pattern_that_is_found_nowhere_is_refused(recipe):
    model = InitialModel.find(recipe).recipe.build(vocab_size=300, seed=0)
    with pytest.raises(XDogeError, match=r"train_only 'layer9' matches no parameter name, such as model\."):
        freeze(model, "layer9")
    with pytest.raises(XDogeError, match=r"train_only 'layers\(' is not a valid regular expression"):
        freeze(model, "layers(")
    assert freeze(model, "lm_head")[0] == 300 * 16  # tied to the embedding, under another name
    assert layers_trained(model) == (0, 2)


def test_a_pre_trained_model_uses_its_own_context_and_half_the_peak_of_its_size(mixture, store, finished):
    settings = settings_for(mixture, store, finished[0] / "model")
    assert (settings.sequence_length, settings.warmup) == (LENGTH, 0.01)
    assert settings.learning_rate == peak_learning_rate(10_000) / 2 == 3e-4
    assert peak_learning_rate(7 * 10**9) == 1.2e-4


def test_continued_training_begins_where_the_model_was(mixture, store, finished, tmp_path):
    train(mixture, store, settings_for(mixture, store, finished[0] / "model", steps=1), out=tmp_path / "run")
    first = metrics(tmp_path / "run")[0]
    assert first["step"] == 0
    assert first["validation"] == pytest.approx(finished[2]["validation_by_source"], rel=1e-5)


def model_folder(source, target, **changes):
    """Copy a model with a changed configuration."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))
    return target


def test_a_model_that_does_not_fit_the_store_is_refused(mixture, store, finished, tmp_path):
    model = finished[0] / "model"

    def refused(folder, message, **values):
        with pytest.raises(XDogeError, match=message) as error:
            train(mixture, store, settings_for(mixture, store, folder, **values), out=tmp_path / "run")
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()

    refused(model, r"sequence_length 32 is longer than the context of .*model, 16", sequence_length=32, batch_size=2)
    refused(model, r"sequence_length 9,999 is longer than the context of .*model, 16", sequence_length=9999)
    bare = model_folder(model, tmp_path / "bare")
    for path in [*bare.glob("token*"), *bare.glob("xdoge*")]:
        path.unlink()
    refused(bare, r"bare has no tokenizer; copy")
    narrow = model_folder(model, tmp_path / "narrow", vocab_size=200)
    refused(narrow, r"narrow has an embedding for 200 tokens, but its tokenizer makes 300")
    other = tmp_path / "other"
    save_llama(other, vocab_size=400, max_position_embeddings=LENGTH)
    save_byte_tokenizer(other)
    refused(other, r"another tokenizer \(\w{12}\) than .*other \(\w{12}\).*`tokenizer: \{huggingface: .*other\}`")
    (tmp_path / "vision").mkdir()
    (tmp_path / "vision" / "config.json").write_text(json.dumps({"model_type": "vit"}))
    refused(tmp_path / "vision", r"is a vit, which is not a causal language model")
    quantised = model_folder(model, tmp_path / "quantised", quantization_config={"quant_method": "gptq", "bits": 4})
    refused(quantised, r"quantised' is quantised; train the one in full precision")
    refused(tmp_path / "nothing", r"^model '.*nothing' does not exist\.$")
    shutil.copytree(model, tmp_path / "models" / "inside")
    refused(tmp_path / "models", r"models' is not a model: it has no config.json; .*models/inside\.$")
    assert settings_for(mixture, store, model.parent).sequence_length == LENGTH  # a run folder stands for its model


def test_a_misspelt_recipe_is_told_its_name_without_asking_the_hub(monkeypatch):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda name, **_: pytest.fail("asked the Hub"))
    with pytest.raises(XDogeError, match=r"^model '125' is not a recipe \(1m, .*; did you mean 125m\?$"):
        InitialModel.find("125")


def test_messages_of_the_hub_are_shortened_without_cutting_urls(monkeypatch):
    def fail(name, **_):
        raise OSError(f"{name} is not a local folder. See " + "it or " * 28 + "https://huggingface.co/models for more")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    with pytest.raises(XDogeError, match=r"^model 'a/b' is not a recipe .* a model on the Hub: a/b is") as error:
        InitialModel.find("a/b")
    assert "http" not in str(error.value)


def test_a_mixture_that_does_not_fit_the_store_is_refused(mixture, store, recipe):
    def refused(changed, message, **values):
        with pytest.raises(XDogeError, match=message):
            settings_for(changed, store, recipe, **values)

    other = replace(mixture, corpus={"name": "elsewhere", "sha256": "f" * 64})
    refused(other, r"'unequal' was planned for the store 'elsewhere' with SHA-256 f{12}, but .* has \w{12};")
    shares = dict(mixture.sources)
    renamed = replace(mixture, sources={("pt/wiki" if s == "gl/wiki" else s): shares[s] for s in shares})
    refused(renamed, r"have different sources; only in one of them: gl/wiki, pt/wiki")
    larger = {s: replace(share, available_tokens=share.available_tokens + 1) for s, share in shares.items()}
    refused(replace(mixture, sources=larger), r"expects es/web to have [\d,]+ tokens, but .* has [\d,]+")
    refused(mixture, r"steps 21 × batch_size 8 are 168 sequences of .* than the 160 .* at most 20 steps", steps=21)
    refused(mixture, r"'unequal' has 160 sequences of 16 tokens, less than one batch_size of 161", batch_size=161)


def test_settings_are_refused_by_name(mixture, store, recipe, monkeypatch):
    for values, message in [
        ({"lerning_rate": 1}, "settings: lerning_rate is not a known key; did you mean learning_rate?"),
        ({"batch_size": 0}, "settings: batch_size: "),
        ({"sequence_length": "long"}, "settings: sequence_length: "),
        ({"steps": 2.5}, "settings: steps: "),
        ({"report_to": ["wandb"]}, "report_to names wandb, which is not installed; pip install wandb"),
    ]:
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(XDogeError, match=f"^{message.replace('?', '[?]')}"):
            settings_for(mixture, store, recipe, **values)


@pytest.mark.parametrize(
    ("processes", "values", "layout"),
    [
        (1, {}, (1, 8, 1)),
        (2, {}, (2, 4, 1)),
        (2, {"per_device_batch_size": 1}, (2, 1, 4)),
        (1, {"accumulation": 4}, (1, 2, 4)),
        (3, {}, "2 × 3 processes × accumulation 1 = 6, but batch_size is 8; they must be equal: start a number"),
        (2, {"per_device_batch_size": 3}, "3 × 2 processes .* is 8; .*: choose per_device_batch_size .* product is 4"),
        (16, {}, "per_device_batch_size 1 × 16 processes × accumulation 1 = 16, but batch_size is 8.* that divides"),
    ],
)
def test_the_processes_make_up_the_global_batch_or_are_refused(
    mixture, store, recipe, monkeypatch, processes, values, layout
):
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    settings = settings_for(mixture, store, recipe, **values)
    if isinstance(layout, tuple):
        assert BatchSplit.of(settings) == BatchSplit(*layout)
    else:
        with pytest.raises(XDogeError, match=layout):
            BatchSplit.of(settings)


def test_a_folder_with_something_in_it_is_refused(mixture, store, recipe, finished, tmp_path):
    settings = settings_for(mixture, store, recipe)
    with pytest.raises(XDogeError, match=r"run is not empty. Continue that run with resume=True"):
        train(mixture, store, settings, out=finished[0])
    with pytest.raises(XDogeError, match=r"holds no run to resume"):
        train(mixture, store, settings, out=tmp_path / "nothing", resume=True)


def test_resuming_with_other_settings_is_refused_but_not_with_another_layout(mixture, store, recipe, finished):
    run, _, summary = finished
    with pytest.raises(XDogeError, match=r"cannot be resumed with other settings: settings.clip was 1.0, is now 2.0"):
        train(mixture, store, settings_for(mixture, store, recipe, clip=2.0), out=run, resume=True)
    with pytest.raises(XDogeError, match=r"mixture.plan was '\w+', is now '\w+'"):
        train(replace(mixture, seed=1), store, settings_for(mixture, store, recipe), out=run, resume=True)
    notes = []
    again = settings_for(
        mixture, store, recipe, per_device_batch_size=1, checkpoint_every=5, activation_checkpointing=True
    )
    remade = replace(mixture, created="2031-01-01T00:00:00+00:00")
    assert train(remade, store, again, out=run, resume=True, on_note=notes.append).to_dict() == summary
    assert "is finished already" in notes[-1]


def test_a_loss_that_is_not_finite_stops_before_a_checkpoint_is_written(mixture, store, recipe, tmp_path, monkeypatch):
    step = MixtureTrainer.training_step

    def spoil(self, model, inputs, *rest):
        loss = step(self, model, inputs, *rest)
        return loss * float("nan") if self.state.global_step == 3 else loss

    monkeypatch.setattr(MixtureTrainer, "training_step", spoil)
    with pytest.raises(NonFiniteLossError, match=r"^step 4: loss is nan. .*checkpoint-2\. "):
        train(mixture, store, settings_for(mixture, store, recipe), out=tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints" / "checkpoint-4").exists()
    monkeypatch.undo()
    good = tmp_path / "run" / "checkpoints" / "checkpoint-2"  # the advice of the message
    train(mixture, store, settings_for(mixture, store, good, learning_rate=1e-4, steps=1), out=tmp_path / "calmer")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA"), RuntimeError("alloc: can't allocate memory: you")])
def test_too_little_memory_is_one_line_with_advice(mixture, store, recipe, tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(MixtureTrainer, "training_step", fail)
    message = r"^out of memory with 8 sequences at once; lower per_device_batch_size .*activation_checkpointing=True"
    with pytest.raises(MemoryFullError, match=message):
        train(mixture, store, settings_for(mixture, store, recipe), out=tmp_path / "run")
    settings = settings_for(mixture, store, recipe, steps=1, per_device_batch_size=2, activation_checkpointing=True)
    monkeypatch.undo()
    with pytest.raises(XDogeError, match="settings.steps was 6, is now 1"):
        train(mixture, store, settings, out=tmp_path / "run", resume=True)


def test_accelerates_own_precision_does_not_overrule_the_setting(mixture, store, recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    message = r"^accelerate is set to mixed_precision bf16 .* but precision float32 is float32"
    with pytest.raises(XDogeError, match=message):
        train(mixture, store, settings_for(mixture, store, recipe, precision="float32"), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    training.refuse_other_precision(settings_for(mixture, store, recipe, precision="bfloat16"))


def test_diverged_weights_are_noticed_in_the_validation_loss(mixture, store, recipe, tmp_path, monkeypatch):
    def spoiled(*args, **kwargs):
        return {"es/web": float("inf")}

    monkeypatch.setattr(mixture_trainer, "validation_losses", spoiled)
    with pytest.raises(NonFiniteLossError, match=r"^step 0: es/web is inf. Last good checkpoint: none yet"):
        train(mixture, store, settings_for(mixture, store, recipe), out=tmp_path / "run")


def test_bfloat16_and_recomputed_activations_train_too(mixture, store, recipe, finished, tmp_path):
    values = {"precision": "bfloat16", "activation_checkpointing": True, "device": "cpu", "steps": 2}
    result = train(mixture, store, settings_for(mixture, store, recipe, **values), out=tmp_path / "run")
    assert {tensor.dtype for tensor in weights(tmp_path / "run").values()} == {torch.float32}
    at_two = [row["loss"] for row in finished[1] if "loss" in row][1]
    assert metrics(tmp_path / "run")[2]["loss"] == pytest.approx(at_two, rel=0.02)
    assert result.steps == 2


def test_the_mixtures_sequence_length_is_the_default_and_no_other_is_taken(store, recipe):
    weights = dict.fromkeys(store.sources, 1 / len(store.sources))
    planned = Mixture.plan(
        weights, available_tokens=store.tokens(), budget_tokens=160 * 8, sequence_length=8, max_epochs=None
    )
    assert settings_for(planned, store, recipe).sequence_length == 8
    with pytest.raises(XDogeError, match=r"sequence_length is 16, but 'weights' was planned for whole sequences of 8"):
        settings_for(planned, store, recipe, sequence_length=16)


def test_a_folder_named_like_a_recipe_is_reported(mixture, store, tmp_path, monkeypatch):
    class Enough(Exception):
        pass

    def stop(*args, **values):
        raise Enough

    (tmp_path / "1m").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(InitialModel, "build", stop)
    settings, notes = settings_for(mixture, store, "1m", sequence_length=LENGTH), []
    with pytest.raises(Enough):
        train(mixture, store, settings, out=tmp_path / "run", on_note=notes.append)
    assert "note: 1m is read as the name of a recipe; write ./1m for the folder of that name" in notes


def test_a_tracker_may_be_named_without_a_list(mixture, store, recipe, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert settings_for(mixture, store, recipe, report_to="wandb").report_to == ("wandb",)


@pytest.mark.filterwarnings("ignore:.*is drawn less than once")
def test_tokens_moved_by_caps_in_whole_sequences_are_no_repetition():
    """Small sources lose 36 of 100 tokens, which fill no sequence. The large one is read more than planned."""
    lengths = {"es/web": 10_000} | {f"eu/s{number}": 1 for number in range(20)}
    available = {source: 64 * length + 36 * (length == 1) for source, length in lengths.items()}
    weights = {source: 0.8 if source == "es/web" else 0.01 for source in lengths}
    plan = Mixture.plan(weights, available_tokens=available, budget_tokens=500 * 64, max_epochs=4)
    sampler = MixtureSampler(plan, lengths, batch_size=50, sequence_length=64)
    read = passes(plan, sampler.counts(sampler.total), 64)
    assert read["es/web"] > plan.sources["es/web"].epochs + 2 * 64 / available["es/web"]
    assert beyond_plan(passes(plan, sampler.quotas, 64), read) == {}


def test_runs_of_other_budgets_are_not_compared(finished, tmp_path):
    run, _, summary = finished
    (tmp_path / "longer").mkdir()
    (tmp_path / "longer" / "train.json").write_text(json.dumps(summary | {"tokens_seen": 9999}))
    assert common_budget([run, run]) == 768
    with pytest.raises(XDogeError, match=r"different numbers of tokens and cannot be .*run 768, .*longer 9,999"):
        common_budget([run, tmp_path / "longer"])
    with pytest.raises(XDogeError, match=r"train.json does not exist"):
        common_budget([run, tmp_path])


def test_the_command_trains_resumes_and_prints_its_results(xdoge, mixture, store, recipe, tmp_path, monkeypatch):
    mixture.save(tmp_path / "mixture.json")
    (tmp_path / "train.yaml").write_text("steps: 9\nclip: 0.5\neval_sequences: 2\neval_every: 9\n")
    command = ["train", tmp_path / "mixture.json", "--store", store.path, "--out", tmp_path / "run"]
    options = ["--config", tmp_path / "train.yaml", "--set", "clip=0.7", "--set", "steps=8", "--steps", 4]
    write = RunLog.write

    def stop(self, step, values):
        write(self, step, values)
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(mixture_trainer.Trainer, "log", lambda *_: print("a tracker prints"))
    with monkeypatch.context() as patched:
        patched.setattr(RunLog, "write", stop)
        status, _, err = xdoge(*command, "--model", recipe, "--batch-size", 8, *options)
    assert (status, "stopped after step 2 of 4; --resume continues" in err) == (143, True)
    assert "clip: 0.7" in err
    status, out, err = xdoge(*command, "--resume")
    assert status == 0, err
    assert "resuming after step 2 of 4" in err
    assert "step 4/4" in err
    assert "ETA" in err
    for word in (
        "on unequal: 512 tokens, 4 steps",
        "validation loss",
        "without that token",
        "epochs",
        "gl",
        str(tmp_path / "run" / "model"),
    ):
        assert word in out
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["settings"]
    assert (settings["steps"], settings["clip"], settings["eval_sequences"]) == (4, 0.7, 2)
    assert json.loads(xdoge(*command, "--resume", "--json")[1])["steps"] == 4


def test_settings_that_may_differ_are_kept_for_a_resume_all_the_same(xdoge, mixture, store, recipe, tmp_path):
    mixture.save(tmp_path / "mixture.json")
    command = ["train", tmp_path / "mixture.json", "--store", store.path, "--out", tmp_path / "run"]
    options = ["--steps", 1, "--batch-size", 8, "--set", "per_device_batch_size=2", "--set", "keep_checkpoints=1"]
    status, _, err = xdoge(*command, "--model", recipe, *options)
    assert (status, "2 sequences at once × 1 processes × 4 accumulated" in err) == (0, True), err
    kept = RunFolder(tmp_path / "run").settings()
    assert (kept["per_device_batch_size"], kept["keep_checkpoints"], kept["steps"]) == (2, 1, 1)
    (tmp_path / "run" / "train.json").unlink()
    status, _, err = xdoge(*command, "--resume")
    assert (status, "2 sequences at once × 1 processes × 4 accumulated" in err) == (0, True), err


def test_settings_that_resume_keep_the_schedule_of_the_run_where_they_choose_none(mixture, store, recipe, tmp_path):
    chosen = {"model": str(recipe), "steps": 4, "batch_size": BATCH, "workers": 0, "device": "cpu"}
    begun = TrainSettings.for_run(mixture, store, chosen | {"eval_every": 4, "eval_sequences": 5})
    with pytest.raises(Interrupted):
        train(mixture, store, begun, out=tmp_path / "run", on_progress=signalled_after(1))
    often = TrainSettings.for_run(mixture, store, chosen | {"eval_every": 2})
    assert often.eval_sequences != 5
    train(mixture, store, often, out=tmp_path / "run", resume=True)
    assert [row["step"] for row in metrics(tmp_path / "run") if "validation" in row][-2:] == [2, 4]


def test_checkpoints_follow_the_setting_of_the_resume(mixture, store, recipe, tmp_path):
    run, settings = tmp_path / "run", settings_for(mixture, store, recipe, keep_checkpoints=9)
    with pytest.raises(Interrupted, match="stopped after step 2"):
        train(mixture, store, settings, out=run, on_progress=signalled_after(1))
    again = settings_for(mixture, store, recipe, keep_checkpoints=9, checkpoint_every=1)
    train(mixture, store, again, out=run, resume=True)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [f"checkpoint-{n}" for n in range(2, 7)]


@pytest.mark.parametrize(("rank", "says"), [("0", True), ("1", False)])
def test_one_of_several_processes_reports_errors_that_all_see(xdoge, mixture, store, tmp_path, monkeypatch, rank, says):
    mixture.save(tmp_path / "mixture.json")
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.setenv(name, rank)
    command = ["train", tmp_path / "mixture.json", "--out", tmp_path / "run", "--store", store.path]
    status, _, err = xdoge(*command)
    assert (status, err.startswith("error: --model is missing")) == (1, says)
    monkeypatch.setattr("xdoge.cli.train.run_training", lambda *_, **__: _raise(MemoryFullError("out of memory")))
    assert xdoge(*command, "--model", "1m")[0::2] == (1, "error: out of memory\n")  # perhaps only its own
    monkeypatch.setattr("xdoge.cli.train.run_training", lambda *_, **__: _raise(Interrupted(15, "stopped")))
    assert xdoge(*command, "--model", "1m")[0::2] == (143, "stopped\n" if says else "")


def _raise(error):
    raise error


def test_help_teaches(xdoge):
    status, out, _ = xdoge("train", "--help")
    assert status == 0
    for word in ("From scratch", "Continual pre-training", "2403.08763", "Several GPUs", "Settings", "learning_rate"):
        assert word in out
    assert f"change only these: {', '.join(ELASTIC)}." in " ".join(out.split())
    assert r"'layers\.(0|1|22|23)\.'" in " ".join(out.split())


@pytest.mark.parametrize("key", ["steps", "batch_size", "sequence_length"])
def test_counts_that_are_not_whole_are_refused_before_the_run(store, mixture, recipe, key):
    for value in (8.5, "eight", True):
        with pytest.raises(XDogeError, match=f"settings: {key}.* not a "):
            TrainSettings.for_run(mixture, store, {"model": recipe, key: value})


EXAMPLE = Path(__file__).parents[2] / "examples" / "cpt"


def test_the_commands_of_the_example_are_ones_that_there_are():
    """Each command is parsed with all its options. Commands that need the network are not run."""
    blocks = re.findall(r"```sh\n(.*?)```", (EXAMPLE / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    subprocess.run(["bash", "-n"], input="\n".join(blocks), text=True, check=True)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line)[1:] for line in lines if line.startswith("xdoge")]
    assert [command[0] for command in commands] == ["prepare", "mix", "train"]
    for name, *arguments in commands:
        get_command(app).commands[name].make_context(name, arguments)
    sets = [value for option, value in itertools.pairwise(commands[-1]) if option == "--set"]
    assert {assignment.partition("=")[0] for assignment in sets} <= set(TrainSettings.model_fields)


def test_the_example_of_sharding_is_what_accelerate_reads():
    config = load_config_from_file(str(EXAMPLE / "fsdp2.yaml"))
    assert (config.distributed_type, config.mixed_precision) == ("FSDP", "bf16")
    assert config.fsdp_config["fsdp_state_dict_type"] == "FULL_STATE_DICT"
    known = {field.name for field in fields(FullyShardedDataParallelPlugin)}
    assert {key.removeprefix("fsdp_") for key in config.fsdp_config} - {"version"} <= known


def test_the_converter_of_the_example_says_how_it_is_used(capsys):
    specification = importlib.util.spec_from_file_location("gguf_to_model", EXAMPLE / "gguf_to_model.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert module.main([]) == 2
    assert "python gguf_to_model.py SmolLM2" in capsys.readouterr().err
