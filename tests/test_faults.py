"""Realistic faults: kills, full disks, damaged files, a second process, and signals of a scheduler.

"The same files" means that the final files have the same bytes. The comparison leaves out the lock, the checkpoints,
and dates and times (`TIMES` in JSON).
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import forked
import numpy as np
import pytest
from conftest import RECIPE, WORDS

KILLS = int(os.environ.get("XDOGE_KILLS", "6"))
"""Number of kills of each of four commands at random moments. One more kill always comes in the middle of the work."""
TIMES = ("created", "seconds", "tokens_per_second", "validation_seconds", "validation_share")
GRACE = 30
"""Default seconds from SIGTERM to SIGKILL in Slurm and Kubernetes."""
SOURCES = [f"{language}/s{number}" for language in WORDS for number in range(4)]


@dataclass(frozen=True)
class Command:
    """A command that runs in a folder of its own."""

    where: Path
    arguments: tuple[object, ...]
    out: str
    again: str | None  # the option for continuing, if there is one
    continued: str  # printed when it continues with something finished
    begun: str  # files that exist in the middle of its work

    @property
    def path(self) -> Path:
        return self.where / self.out

    @property
    def log(self) -> Path:
        return self.where.with_name(f"{self.where.name}.log")  # not on the full disk

    def at(self, where: Path) -> Command:
        where.mkdir(exist_ok=True)
        return Command(where, self.arguments, self.out, self.again, self.continued, self.begun)

    def start(self, *options: object, again: bool = False) -> BaseProcess:
        again = again and self.again is not None and (self.path / "config.yaml").exists()
        options = (*options, self.again) if again else options
        return forked.start(*self.arguments, *options, "--out", self.path, printed=self.log)

    def run(self, *options: object, again: bool = False) -> tuple[int | None, str]:
        """Run until the end. Return the exit code and all output so far."""
        process = self.start(*options, again=again)
        process.join(120)
        return process.exitcode, self.log.read_text()

    def finish(self, *options: object) -> None:
        """Resume the command and run it until the end."""
        status, printed = self.run(*options, again=True)
        assert status == 0, printed

    def in_the_middle(self, *, again: bool = False) -> BaseProcess:
        """Start the command, and return when some of its work is done and some is not."""
        process = self.start(again=again)
        while len(list(self.where.glob(self.begun))) < 2:
            assert process.exitcode is None, self.log.read_text()
            time.sleep(0.005)
        return process

    def files(self) -> dict[str, object]:
        """Return the content of the final files, without times."""
        contents: dict[str, object] = {}
        for path in sorted(self.where.rglob("*")):
            name = path.relative_to(self.where).as_posix()
            if path.is_file() and path.name != ".lock" and "/checkpoints/" not in name:
                rows = path.suffix == ".jsonl"
                if rows or path.suffix == ".json":
                    text = path.read_text().replace(str(self.where), "WHERE")
                    contents[name] = [without_times(json.loads(row)) for row in (text.splitlines() if rows else [text])]
                else:
                    contents[name] = path.read_bytes().replace(str(self.where).encode(), b"WHERE")
        return contents


def without_times(value: dict[str, object]) -> dict[str, object]:
    return {key: inside for key, inside in value.items() if key not in TIMES}


pytestmark = pytest.mark.slow  # all tests start from complete runs of each command


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, tuple[Command, float]]:
    """Each command after an undisturbed run, and its seconds of work. Later ones read the files of earlier ones."""
    at = tmp_path_factory.mktemp("whole")
    assert forked_run("--version", printed=at / "version.log") == 0  # so that no command waits for the imports
    (at / "tiny.yaml").write_text(RECIPE.replace("batch_size: 12", "batch_size: 24"))
    (at / "corpus").mkdir()
    for source in SOURCES:
        generator, words = random.Random(source), WORDS[source[:2]].split()
        lines = [json.dumps({"text": " ".join(generator.choices(words, k=40))}) for _ in range(800)]
        (at / "corpus" / f"{source.replace('/', '-')}.jsonl").write_text("\n".join(lines) + "\n")
    listed = "".join(
        f"  {language}: {{sources: {{{', '.join(f's{n}: {{files: {language}-s{n}.jsonl}}' for n in range(4))}}}}}\n"
        for language in WORDS
    )
    corpus = at / "corpus" / "corpus.yaml"
    tokenizer = "{train: {vocab_size: 300, characters_per_language: 5000}}"
    corpus.write_text(
        f"name: twelve\ntokenizer: {tokenizer}\nvalidation: {{fraction: 0.1}}\nlanguages:\n{listed}", encoding="utf-8"
    )
    store, weights, mixture = at / "prepare" / "out", at / "fit-weights" / "out", at / "mixture.json"
    target = at / "train" / "out"
    common = ["--set", "checkpoint_every=1", "--set", "eval_every=10", "--set", "eval_sequences=2"]
    fit = ("fit-weights", store, "--proxy", at / "tiny.yaml", "--steps", 16, *common)
    train = ("train", mixture, "--store", store, "--model", at / "tiny.yaml", "--steps", 16, *common)
    train += ("--set", "workers=1")  # signals reach it too, and it outlives a kill for a while
    evaluate = ("eval", weights, target, "--store", store, "--max-documents", 6)
    commands = {
        "prepare": (("prepare", corpus, "--workers", 1), "out", None, "already finished, kept", "out/sources/*/*.json"),
        "fit-weights": (fit, "out", "--resume", "resuming after step", "out/checkpoints/step-*"),
        "train": (train, "out", "--resume", "resuming after step", "out/checkpoints/checkpoint-*/SHA256SUMS"),
        "eval": (evaluate, "out.json", None, "already finished, kept", "out.json.partial/*.json"),
    }
    done = {}
    for name, arguments in commands.items():
        if name == "train":
            mix = ("mix", weights, "--store", store, "--budget", 20_000, "--sequence-length", 16)
            assert forked_run(*mix, "--out", mixture, printed=at / "mix.log") == 0
        command = Command(at, *arguments).at(at / name)
        process = command.start()
        done[name] = command, work(process)
        assert process.exitcode == 0, command.log.read_text()
    return done


def forked_run(*arguments: object, printed: Path) -> int | None:
    process = forked.start(*arguments, printed=printed)
    process.join(120)
    return process.exitcode


def work(process: BaseProcess, most: float = float("inf")) -> float:
    """Wait until a process ends or has worked for `seconds`, scaled for a busy machine. Return the seconds of work."""
    seconds = 0.0
    while process.exitcode is None and seconds < most:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
            seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        time.sleep(0.005)
    return seconds


COMMANDS = ("prepare", "fit-weights", "train", "eval")


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_that_is_killed_repeatedly_and_resumed_gives_the_same_files(whole, name, tmp_path):
    undisturbed, seconds = whole[name]
    command = undisturbed.at(tmp_path / "run")
    generator, kills = np.random.default_rng(KILLS), 0
    while kills < KILLS:
        process = command.start(again=True)
        work(process, generator.uniform(0, 0.75 * seconds))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
            if (
                name == "eval" and command.path.exists()
            ):  # killed at its very end: the table exists, so it refuses to run
                assert command.files()["out.json"] == undisturbed.files()["out.json"]
                shutil.rmtree(command.where)
                command = command.at(command.where)
        else:  # it finished before the last kill
            assert process.exitcode == 0, command.log.read_text()
            assert command.files() == undisturbed.files()
            shutil.rmtree(command.where)
            command = command.at(command.where)
    process = command.in_the_middle(again=True)
    process.kill()
    process.join()
    command.finish()
    assert command.files() == undisturbed.files()
    printed = command.log.read_text()
    assert "xdoge/cli/__init__.py" not in printed  # only a worker whose process was killed may print a traceback
    assert "damaged" not in printed
    assert printed.replace("resuming after step 0", "").count(undisturbed.continued) >= 1


def flip(path: Path, bit: int | None = None) -> None:
    """Flip one bit of a file, by default in the middle."""
    content = bytearray(path.read_bytes())
    bit = 4 * len(content) if bit is None else bit
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def cut(path: Path) -> None:
    """Truncate a file to half of its size."""
    os.truncate(path, path.stat().st_size // 2)


def line_of(printed: str) -> str:
    """Return the error message, after checking that it is the last line and the only one."""
    assert "Traceback" not in printed
    assert printed.count("error: ") == 1
    return printed.splitlines()[-1]


@pytest.fixture
def disk(tmp_path):
    """A separate disk, and a function that fills it except for a number of bytes."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs the right to mount one")

    def fill(room: int) -> None:
        with (path / "filler").open("wb") as file, contextlib.suppress(OSError):
            while file.write(bytes(65536)):
                file.flush()
        os.truncate(path / "filler", os.path.getsize(path / "filler") - room)

    yield path, fill
    subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize(
    ("name", "room"), [("prepare", 900_000), ("fit-weights", 380_000), ("train", 700_000), ("eval", 40_000)]
)
def test_a_full_disk_is_one_line_and_the_run_continues_when_there_is_room(whole, name, room, disk):
    path, fill = disk
    undisturbed, _ = whole[name]
    command = undisturbed.at(path / "run")
    fill(room)
    status, printed = command.run()
    assert (status, "the disk is full" in line_of(printed)) == (1, True), printed
    assert not list(command.where.rglob("*.tmp"))
    assert list(command.where.glob(command.begun))  # finished parts are kept
    (path / "filler").unlink()
    command.log.unlink()
    command.finish()
    assert command.files() == undisturbed.files()
    printed = command.log.read_text()
    assert undisturbed.continued in printed.replace("resuming after step 0", "")
    assert "damaged" not in printed


DAMAGE = {
    "cut": lambda folder: cut(largest(folder)),
    "flipped": lambda folder: flip(largest(folder)),
    "without a file": lambda folder: largest(folder).unlink(),
    "without its state": lambda folder: next(folder.glob("*state.json")).unlink(),
    "with cut checksums": lambda folder: cut(folder / "SHA256SUMS"),
    "with flipped checksums": lambda folder: flip(folder / "SHA256SUMS"),
}


def largest(folder: Path) -> Path:
    return max(folder.iterdir(), key=lambda path: path.stat().st_size)


def unfinished(whole, name: str, where: Path) -> tuple[Command, list[Path]]:
    """Return a run that was killed near its end, and its checkpoints, oldest first."""
    shutil.copytree(whole[name][0].where, where)
    command = whole[name][0].at(where)
    for file in ("weights.json", "train.json"):
        (command.path / file).unlink(missing_ok=True)
    return command, sorted(command.path.glob("checkpoints/*"))


@pytest.mark.parametrize(
    ("name", "damage"), [*(("fit-weights", damage) for damage in DAMAGE), ("train", "cut"), ("train", "flipped")]
)
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(whole, name, damage, tmp_path):
    command, checkpoints = unfinished(whole, name, tmp_path / "run")
    DAMAGE[damage](checkpoints[-1])
    command.finish()
    printed = command.log.read_text()
    assert f"{checkpoints[-1]} is damaged: " in printed
    assert "; using the previous checkpoint instead" in printed
    assert "resuming after step 15 of 16" in printed
    assert command.files() == whole[name][0].files()
    assert sorted(command.path.glob("checkpoints/*")) == checkpoints


@pytest.mark.parametrize("name", ["fit-weights", "train"])
def test_when_every_checkpoint_is_damaged_nothing_is_deleted(whole, name, tmp_path):
    command, checkpoints = unfinished(whole, name, tmp_path / "run")
    for checkpoint in checkpoints:
        flip(largest(checkpoint))
    status, printed = command.run(again=True)
    assert status == 1
    line = line_of(printed)
    assert all(f"{path}: {largest(path).name} is not what was written" in line for path in checkpoints)
    assert f"remove {command.path / 'checkpoints'}" in line
    assert "--resume" in line
    assert sorted(command.path.glob("checkpoints/*")) == checkpoints


def test_a_damaged_trajectory_is_one_line(whole, tmp_path):
    command, _ = unfinished(whole, "fit-weights", tmp_path / "run")
    flip(command.path / "trajectory.parquet")
    status, printed = command.run(again=True)
    assert (status, "trajectory.parquet is damaged" in line_of(printed)) == (1, True)


def test_sha256sum_can_check_a_checkpoint(whole):
    for folder in (path.parent for name in COMMANDS for path in whole[name][0].where.rglob("SHA256SUMS")):
        done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True, check=True)
        assert len(done.stdout.splitlines()) == len(list(folder.iterdir())) - 1


@pytest.mark.parametrize("name", COMMANDS)
def test_a_second_process_is_kept_out_and_sigterm_ends_the_first_in_good_order(whole, name, tmp_path):
    """SIGTERM as a scheduler sends it: to every process of the group, including loader workers, with time to end."""
    undisturbed, _ = whole[name]
    command = undisturbed.at(tmp_path / "run")
    process = command.in_the_middle()
    os.kill(process.pid, signal.SIGSTOP)
    status, printed = command.run(again=True)
    assert status == 1
    assert "is in use by another process; wait" in printed
    os.kill(process.pid, signal.SIGCONT)
    os.killpg(process.pid, signal.SIGTERM)
    process.join(GRACE)
    printed = command.log.read_text()
    assert process.exitcode == 143, printed
    assert "Traceback" not in printed
    assert ("stopped after step" if command.again else "terminated; no file is half-written") in printed
    command.finish()
    assert command.files() == undisturbed.files()
    assert undisturbed.continued in command.log.read_text().replace("resuming after step 0", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_exits_with_130(whole, name, tmp_path):
    command = whole[name][0].at(tmp_path / "run")
    process = command.in_the_middle()
    os.killpg(process.pid, signal.SIGINT)
    process.join(GRACE)
    assert process.exitcode == 130, command.log.read_text()
    assert "Traceback" not in command.log.read_text()


@pytest.fixture
def shard(whole, tmp_path):
    """A copy of the store, one of its token files, and a function that runs a fit on it."""
    store = tmp_path / "store"
    shutil.copytree(whole["prepare"][0].path, store)
    fit = whole["fit-weights"][0]

    def run(*options: object) -> str:
        (tmp_path / "log").unlink(missing_ok=True)
        arguments = ("fit-weights", store, *fit.arguments[2:], *options, "--out", tmp_path / "run")
        assert forked_run(*arguments, printed=tmp_path / "log") == 1
        return line_of((tmp_path / "log").read_text())

    return store, store / "tokens" / "gl" / "s1.train.arrow", run


def test_a_truncated_or_changed_shard_is_named_and_prepare_repairs_it(whole, shard, tmp_path):
    store, file, run = shard
    flip(file)
    line = run("--verify")
    assert f"{file} is not what prepare wrote: its SHA-256 differs from store.json; delete it and run xdoge" in line
    cut(file)
    line = run()
    assert f"{file} has " in line
    assert "it was cut or changed: delete it and run xdoge prepare again" in line
    assert not (tmp_path / "run").exists()
    prepare = whole["prepare"][0]
    assert forked_run(*prepare.arguments, "--out", store, printed=tmp_path / "log") == 0
    assert file.read_bytes() == (prepare.path / "tokens" / "gl" / "s1.train.arrow").read_bytes()


@pytest.mark.parametrize(
    ("name", "split"),
    [("fit-weights", "train"), ("fit-weights", "validation"), ("train", "train"), ("eval", "validation")],
)
def test_an_invalid_token_is_one_line(whole, name, split, tmp_path):
    """Flipped bits that do not change the size of a file are found by --verify, or if they give an invalid token."""
    from xdoge.corpus import TokenStore

    good, bad = whole["prepare"][0].path, tmp_path / "store"
    shutil.copytree(good, bad)
    tokens = TokenStore.open(good).flat("gl/s1", split)
    file = bad / "tokens" / "gl" / f"s1.{split}.arrow"
    changed = tokens.copy()
    changed[::8] ^= 1 << 15
    file.write_bytes(file.read_bytes().replace(tokens.tobytes(), changed.tobytes()))
    arguments = [bad if argument == good else argument for argument in whole[name][0].arguments]
    status = forked_run(*arguments, "--out", tmp_path / "out", printed=tmp_path / "log")
    line = line_of((tmp_path / "log").read_text())
    assert (status, f"{file} is damaged: it gives the token id " in line) == (1, True), line
