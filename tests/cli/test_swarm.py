"""`xdoge swarm` on the command line, from planned mixtures to an optimum."""

from __future__ import annotations

import json
import subprocess

import pytest
from command_line import one_line

from xdoge import Mixture, WeightSet
from xdoge.laws.swarm_plan import Noise

SETTINGS = ("--budget", "12K", "--max-epochs", "none", "--runs", "14", "--seeds", "0,1")


@pytest.fixture
def swarm(store, recipe):
    """The command line of a swarm on the tiny store."""
    return ("swarm", store.path, "--proxy", recipe, *SETTINGS)


def test_a_dry_run_shows_mixtures_and_cost_and_writes_nothing(xdoge, swarm, tmp_path):
    out = tmp_path / "swarm"
    status, printed, _ = xdoge(*swarm, "--out", out, "--dry-run", "--target-parameters", "7B")
    assert status == 0
    assert all(word in printed for word in ("uniform-0", "eu-rich", "FLOP", "seconds here", "%"))
    assert not out.exists()
    status, printed, _ = xdoge(*swarm, "--out", out, "--dry-run", "--json")
    plan = json.loads(printed)
    assert plan["trainings"] == 14
    assert plan["flops"] > 0


def test_a_slurm_script_names_the_folder_and_is_a_script(xdoge, swarm, tmp_path):
    out = tmp_path / "my swarm"
    status, _, _ = xdoge(*swarm, "--out", out, "--slurm", tmp_path / "swarm.sh", "--jobs", 3)
    assert status == 0
    script = (tmp_path / "swarm.sh").read_text()
    assert "--array=1-3" in script
    assert "--resume" in script
    assert subprocess.run(["bash", "-n", tmp_path / "swarm.sh"], check=False).returncode == 0
    assert f"#SBATCH --output='{out}/slurm-%a.log'" in script
    assert (out / "swarm.json").exists()


def test_an_existing_file_is_not_overwritten_by_the_slurm_script(xdoge, swarm, tmp_path):
    (tmp_path / "swarm.sh").write_text("mine")
    status, _, err = xdoge(*swarm, "--out", tmp_path / "out", "--slurm", tmp_path / "swarm.sh")
    assert (status, "swarm.sh" in err) == (1, True)
    assert (tmp_path / "swarm.sh").read_text() == "mine"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_from_a_swarm_to_the_mixture_that_its_law_finds(xdoge, swarm, store, tmp_path, monkeypatch):
    monkeypatch.setattr(Noise, "suffices", property(lambda noise: True))  # languages of the tiny store are similar
    out, law, weights = tmp_path / "swarm", tmp_path / "law.json", tmp_path / "weights.json"
    status, printed, _ = xdoge(*swarm, "--out", out)
    assert status == 0
    assert "next: xdoge fit-law" in printed
    status, printed, _ = xdoge("fit-law", out, "--out", law)
    assert status == 0
    assert "held-out runs" in printed
    status, printed, _ = xdoge("optimize", law, "--max-epochs", "8", "--force-optimum", "--out", weights)
    assert status == 0
    assert "verdict" in printed
    assert WeightSet.load(weights).sources.keys() == set(store.sources)
    mixture = tmp_path / "mixture.json"
    assert xdoge("mix", weights, "--store", store.path, "--budget", "4K", "--out", mixture)[0] == 0
    status, printed, _ = xdoge("predict", law, mixture, weights, "uniform", "--json")
    assert status == 0
    assert len(json.loads(printed)) == 3
    assert Mixture.load(mixture).budget_tokens == 4000


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (("--budget", "soon"), "soon"),
        (("--seeds", "a,b"), "a,b"),
        (("--runs", "3"), "--runs"),
        (("--level", "words"), "level"),
        (("--set", "budget=5"), "budget"),
    ],
)
def test_wrong_options_are_one_line(xdoge, swarm, tmp_path, options, word):
    status, _, err = xdoge(*swarm, *options, "--out", tmp_path / "swarm")
    assert status == 1
    assert word in one_line(err)
    assert not (tmp_path / "swarm").exists()


def test_a_missing_budget_or_swarm_is_named(xdoge, store, recipe, tmp_path):
    status, _, err = xdoge("swarm", store.path, "--proxy", recipe, "--out", tmp_path / "swarm")
    assert (status, "--budget" in one_line(err)) == (1, True)
    status, _, err = xdoge("fit-law", tmp_path, "--out", tmp_path / "law.json")
    assert (status, "swarm.json" in one_line(err)) == (1, True)
    status, _, err = xdoge("fit-law", "--out", tmp_path / "law.json")
    assert (status, "--mixtures" in one_line(err)) == (1, True)
