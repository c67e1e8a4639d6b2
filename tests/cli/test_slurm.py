"""The scripts of examples/slurm, run with stand-ins for sbatch, srun and scontrol."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
from multiprocessing.connection import Listener
from pathlib import Path

import forked
import pytest

from xdoge import Mixture, WeightSet
from xdoge.io import sha256_file

SLURM = Path(__file__).parents[2] / "examples/slurm"
SCRIPTS = sorted(path.name for path in SLURM.iterdir() if path.suffix in (".sh", ".sbatch"))
pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")

EVALUATION = ("eval", "compare")

# Runs a job at once: the tasks of its array one after the other, and again after a requeue. It does not run the job if
# a job that it depends on has failed. It refuses options that Slurm does not have, also in #SBATCH lines.
SBATCH = """
import argparse, json, os, pathlib, subprocess, sys
parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("job-name", "nodes", "ntasks", "cpus-per-task", "gpus-per-node", "time", "open-mode", "signal", "array",
             "dependency", "output", "kill-on-invalid-dep", "account"):
    parser.add_argument("--" + name)
for name in ("requeue", "parsable"):
    parser.add_argument("--" + name, action="store_true")
parser.add_argument("script")
parser.add_argument("arguments", nargs="*")
script = parser.parse_args().script
written = [line.split()[1] for line in open(script) if line.startswith("#SBATCH")]
job = parser.parse_args(written + sys.argv[1:])
state = pathlib.Path(os.environ["STATE"])
number = 1 + len(list(state.glob("job-*")))
(state / f"job-{number}").write_text(json.dumps(vars(job)))
ok = not job.dependency or (state / ("ok-" + job.dependency.removeprefix("afterok:"))).exists()
first, last = map(int, job.array.split("-")) if job.array else (0, 0)
for task in range(first, last + 1) if ok else ():
    environment = {**os.environ, "SLURM_JOB_ID": str(number), "SLURM_CPUS_PER_TASK": "1"}
    if job.array:
        environment |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
    name = f"{number}_{task}" if job.array else str(number)
    for restart in range(9):
        environment["SLURM_RESTART_COUNT"] = str(restart)
        with open(job.output.replace("%x", job.job_name).replace("%j", name), "a") as log:
            done = subprocess.run(["bash", script, *job.arguments], env=environment, stdout=log, stderr=log)
        if not (state / f"requeue-{name}").exists():
            break
        (state / f"requeue-{name}").unlink()
    ok &= done.returncode == 0
if ok:
    (state / f"ok-{number}").touch()
print(f"{number};cluster")
"""

# Runs the command of a step. The first command with STOP among its arguments gets SIGTERM once metrics are written.
SRUN = """
import os, pathlib, subprocess, sys, time
stop, mark = os.environ.get("STOP"), pathlib.Path(os.environ["STATE"], "stopped")
step = subprocess.Popen(sys.argv[1:])
if stop in sys.argv and not mark.exists():
    mark.touch()
    while not pathlib.Path(stop, "metrics.jsonl").exists() and step.poll() is None:
        time.sleep(0.02)
    step.terminate()
sys.exit(step.wait())
"""

SCONTROL = """
import os, pathlib, sys
assert sys.argv[1] == "requeue"
pathlib.Path(os.environ["STATE"], "requeue-" + sys.argv[2]).touch()
"""

# Records its arguments. A run named in STOPS ends with status 143 once, and one named in FAILS with status 1 once.
# Commands named in REAL are run by the thread of `serve`, in a process that has imported everything.
XDOGE = """
import multiprocessing.connection, os, pathlib, signal, sys
command, *arguments = sys.argv[1:]
state, name = pathlib.Path(os.environ["STATE"]), command
with (state / "commands").open("a") as file:
    print("offline" if "HF_HUB_OFFLINE" in os.environ else "online", *sys.argv[1:], file=file)
if command in os.environ.get("REAL", "").split():
    with multiprocessing.connection.Client(str(state / "server")) as server:
        server.send((sys.argv[1:], os.readlink("/proc/self/fd/1")))
        process = server.recv()
        signal.signal(signal.SIGTERM, lambda number, frame: os.kill(process, number))
        sys.exit(server.recv())
if command in ("fit-weights", "train"):
    run = pathlib.Path(arguments[arguments.index("--out") + 1])
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.yaml").touch()
    for which, status in (("STOPS", 143), ("FAILS", 1)):
        mark = state / f"{which}-{run.name}"
        if run.name in os.environ.get(which, "").split() and not mark.exists():
            mark.touch()
            sys.exit(status)
"""


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """A working folder, with the stand-ins on the PATH."""
    for name, code in (("sbatch", SBATCH), ("srun", SRUN), ("scontrol", SCONTROL), ("xdoge", XDOGE)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!{sys.executable} -S\n{code}")
        path.chmod(0o755)
    (tmp_path / "state").mkdir()
    for name in [name for name in os.environ if name.startswith(("SLURM_", "HF_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def serve(listener):
    """Run the commands that the stand-in for xdoge requests, until the listener is closed."""
    with contextlib.suppress(OSError):
        while True:
            with listener.accept() as caller:
                arguments, printed = caller.recv()
                process = forked.start(*arguments, printed=Path(printed))
                caller.send(process.pid)
                process.join()
                caller.send(process.exitcode)


@pytest.fixture
def server(cluster):
    """A server through which the stand-in for xdoge runs xdoge itself, with absolute paths."""
    with Listener(str(cluster / "state/server")) as listener:
        threading.Thread(target=serve, args=[listener], daemon=True).start()
        yield


def bash(*arguments, **environment):
    return subprocess.run(["bash", *arguments], env=os.environ | environment, capture_output=True, text=True)


def submit(**settings):
    """Run submit.sh with these settings; return the last line that it printed, and the new commands of xdoge."""
    commands = Path("state/commands")
    before = len(commands.read_text().splitlines()) if commands.exists() else 0
    done = bash(SLURM / "submit.sh", "--account=me", **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1], commands.read_text().splitlines()[before:]


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_shell_can_read_each_script(script):
    subprocess.run(["bash", "-n", SLURM / script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", "-x", script], cwd=SLURM, check=True)


def test_all_jobs_run_in_order_and_what_is_stopped_resumes(cluster):
    said, commands = submit(SEEDS="2", STOPS="125m-seed1 target-learned")
    assert said == "fits 1, merge and mix 2, train 3, eval 4; logs in runs/logs"
    runs = [f"runs/{size}-seed{seed}" for size in ("60m", "125m", "250m", "500m") for seed in (0, 1)]
    fits = [
        f"fit-weights store --out {run} --proxy {run[5:-6]} --seed {run[-1]} --floor 0.002{again}"
        for run in runs
        for again in ("", " --resume")
        if not again or run == "runs/125m-seed1"
    ]
    mix = "--store store --budget 10B --max-epochs 4 --sequence-length 2048 --out runs"
    train = "--store store --model 500m --out runs"
    targets = "learned=runs/target-learned baseline=runs/target-baseline"
    assert commands == [
        "online eval --prefetch --suite iberobench",
        *(f"offline {fit}" for fit in fits),
        f"offline merge {' '.join(runs)} --out runs/weights.json --force",
        f"offline compare {' '.join(runs)}",
        f"offline mix runs/weights.json {mix}/learned.json --force",
        f"offline mix unimax {mix}/baseline.json --force",
        f"offline train runs/learned.json {train}/target-learned",
        f"offline train runs/learned.json {train}/target-learned --resume",
        f"offline train runs/baseline.json {train}/target-baseline",
        f"offline eval {targets} --store store --suite iberobench --baseline baseline --out runs/results.json --force",
        "offline compare runs/weights.json learned=runs/learned.json baseline=runs/baseline.json "
        f"{targets} runs/results.json --baseline baseline --html runs/report.html --force",
    ]
    jobs = [json.loads(Path(f"state/job-{number}").read_text()) for number in (1, 2, 3, 4)]
    assert [job["array"] for job in jobs] == ["0-7", None, "0-1", None]
    assert [job["signal"] for job in jobs] == ["TERM@120", None, "TERM@120", "TERM@120"]
    assert all(job["requeue"] and job["account"] == "me" for job in jobs)


def test_a_failure_cancels_what_follows_and_a_second_submission_completes_it(cluster):
    settings = {"SIZES": "60m", "SEEDS": "2", "SUITE": "", "FAILS": "60m-seed0"}
    _, commands = submit(**settings)
    assert [line.split()[1] for line in commands] == ["fit-weights", "fit-weights"]
    _, commands = submit(**settings)
    assert [line.endswith("--resume") for line in commands[:2]] == [True, True]
    assert [line.split()[1] for line in commands[2:]] == ["merge", "compare", *["mix"] * 2, *["train"] * 2, *EVALUATION]
    assert "--suite" not in commands[-2]


@pytest.mark.parametrize(
    ("command", "restarts", "requeued"),
    [
        ("exit 0", 0, False),
        ("exit 1", 0, False),
        ("exit 143", 0, True),
        ("exit 143", 19, True),
        ("exit 143", 20, False),
        ("torchrun", 0, True),
        ("torchrun", 20, False),
    ],
)
def test_a_step_that_was_stopped_is_requeued_a_limited_number_of_times(cluster, command, restarts, requeued):
    torchrun = cluster / "bin/torchrun"
    torchrun.write_text("#!/bin/sh\nexit 1\n")
    torchrun.chmod(0o755)
    words = "torchrun -m xdoge" if command == "torchrun" else f"bash -c '{command}'"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    script = f"set -eu; source {SLURM / 'settings.sh'}; step {words}"
    done = bash("-c", script, **slurm, SLURM_RESTART_COUNT=str(restarts))
    assert done.returncode == (int(command.split()[1]) if command.startswith("exit") else 1)
    assert (cluster / "state/requeue-7_3").exists() == requeued
    assert ("raise --time or MOST_REQUEUES" in done.stderr) == (restarts == 20)


@pytest.mark.slow
def test_fits_end_as_one_weight_set_although_one_is_stopped(cluster, server, store, recipe):
    """Commands up to the mixtures run xdoge itself."""
    _, commands = submit(
        STORE=str(store.path),
        SIZES=recipe,
        SEEDS="2",
        FIT_OPTIONS="--steps 60 --set eval_every=60",
        BUDGET="10K",
        MIX_OPTIONS="--sequence-length 16",
        SUITE="",
        RUNS=str(cluster / "runs"),
        STOP=str(cluster / "runs/tiny-seed1"),
        REAL="fit-weights merge compare mix",
    )
    log = Path("runs/logs/xdoge-fit-1_1.log").read_text()
    assert "--resume continues" in log
    assert "resuming after step" in log
    steps = [json.loads(line)["step"] for line in Path("runs/tiny-seed1/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))
    weights = WeightSet.load("runs/weights.json")
    assert (weights.name, weights.spread["sets"]) == ("tiny-tiny-mean-of-2", 2)
    learned = Mixture.load("runs/learned.json")
    assert learned.weights["sha256"] == sha256_file(Path("runs/weights.json"))
    assert Mixture.load("runs/baseline.json").name == "unimax"
    assert "mean Kendall" in Path("runs/logs/xdoge-merge-2.log").read_text()
    assert [line.split()[1] for line in commands[-4:]] == ["train", "train", *EVALUATION]


@pytest.mark.parametrize(
    ("arguments", "settings", "said"),
    [
        (["gpu"], {}, "'gpu'"),
        (["--account=me", "-p", "gpu"], {}, "'-p'"),
        (["--array=0-3"], {}, "--array=0-3"),
        ([], {"SEEDS": "none"}, "SEEDS=none"),
        ([], {"SIZES": " "}, "SIZES"),
    ],
)
def test_submit_refuses_what_it_cannot_pass_on(tmp_path, arguments, settings, said):
    (tmp_path / "sbatch").write_text(f"#!/bin/sh\ntouch {tmp_path}/submitted\n")
    (tmp_path / "sbatch").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SUITE": "", **settings}
    done = subprocess.run(
        ["bash", SLURM / "submit.sh", *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, len(done.stderr.splitlines()), said in done.stderr) == (2, 1, True)
    assert not (tmp_path / "submitted").exists()
