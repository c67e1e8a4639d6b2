"""The scripts in examples/loaders run, and detect differences."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from xdoge.mixtures.mixture import Mixture
from xdoge.sampling.sampler import MixtureSampler

LOADERS = Path(__file__).parents[2] / "examples/loaders"
SCRIPTS = sorted(path.stem for path in LOADERS.glob("with_*.py"))
CHECKS = {"accelerate": 4, "datasets": 1, "lightning": 2, "pytorch": 4, "torchdata": 3, "transformers": 2}
WITH_CHECKPOINTS = ("with_lightning", "with_transformers")

OTHERS = pytest.mark.filterwarnings(
    # of torch 2.13, about torchdata 0.11 and lightning 2.6
    "ignore:'set_vital' is deprecated:UserWarning:torchdata",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning:lightning",
    # of lightning, about the machine and the folder
    "ignore:The 'train_dataloader' does not have many workers",
    "ignore:Checkpoint directory .* exists and is not empty",
    # of Python 3.12 and newer, about the workers of every PyTorch loader
    "ignore:This process .* is multi-threaded, use of fork:DeprecationWarning",
)


@pytest.fixture(scope="module")
def mixture(store, tmp_path_factory):
    """Path of a mixture.json with unequal shares, of 160 sequences of 16 tokens."""
    weights = dict(zip(store.sources, (0.4, 0.1, 0.2, 0.3), strict=True))
    path = tmp_path_factory.mktemp("mixture") / "mixture.json"
    Mixture.plan(weights, available_tokens=store.tokens(), budget_tokens=160 * 16).save(path)
    return path


def command(script, store, mixture, tmp_path):
    out = [str(tmp_path)] if script in WITH_CHECKPOINTS else []
    return [str(store.path), str(mixture), *out, "--sequence-length", "16"]


def run(script, monkeypatch, argv):
    monkeypatch.syspath_prepend(LOADERS)
    return importlib.import_module(script).main(argv)


def test_every_script_is_tested():
    assert [f"with_{library}" for library in CHECKS] == SCRIPTS


@OTHERS
@pytest.mark.parametrize("script", SCRIPTS)
def test_the_stream_is_the_same_after_a_resume(script, store, mixture, tmp_path, monkeypatch, capsys):
    assert run(script, monkeypatch, command(script, store, mixture, tmp_path)) is True
    out = capsys.readouterr().out
    assert out.count("equal: True") == CHECKS[script.removeprefix("with_")]
    assert "equal: False" not in out


@pytest.mark.parametrize("script", ["with_accelerate", "with_transformers"])
def test_two_processes_train_on_the_plan_together(script, store, mixture, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    argv = [*torchrun, str(LOADERS / f"{script}.py"), *command(script, store, mixture, tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "equal: True" in done.stdout
    assert "equal: False" not in done.stdout


@OTHERS
@pytest.mark.parametrize("script", ["with_lightning", "with_pytorch", "with_torchdata"])
def test_resuming_without_the_position_is_detected(script, store, mixture, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(MixtureSampler, "load_state_dict", lambda *_: None)
    assert run(script, monkeypatch, command(script, store, mixture, tmp_path)) is False
    assert "equal: False" in capsys.readouterr().out
