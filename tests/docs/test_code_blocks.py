"""Every block of shell or Python in the README and on the site runs, or says in a comment why it does not.

The comment stands on the line before the block: `<!-- not run: needs a cluster -->`. Blocks of one page run in order,
in one folder and, for Python, in one namespace. `FILES` says what lies in that folder. The text is run as it stands.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/**/*.md")))]
FENCE = re.compile(r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\S*)\n(?P<text>.*?)^```$", re.M | re.S)
RECORDS = "docs/experiments.md"
"""Its commands are indented: they are the record of past measurements, which take hours."""

FILES: dict[str, list[str]] = {
    "README.md": ["store", "mixture.json"],
    "docs/tutorial.md": [],
    "docs/how-to/prepare.md": ["corpus.yaml", "text"],
    "docs/how-to/cluster.md": ["corpus.yaml", "text"],
    "docs/how-to/fit-weights.md": ["store", "runs/125m-seed0", "runs/125m-seed1"],
    "docs/how-to/mix.md": ["store", "runs/125m"],
    "docs/how-to/sampler.md": ["store", "mixture.json", "phase2.json"],
    "docs/how-to/export.md": ["mixture.json"],
    "docs/how-to/train.md": ["store", "mixture.json=uniform.json"],
    "docs/how-to/costs.md": ["examples"],
    "docs/how-to/mixture-law.md": ["store", "mixtures.csv", "losses.csv", "weights.json"],
    "docs/how-to/evaluate.md": ["store", "runs/uniform", "runs/learned"],
    "docs/how-to/study.md": ["store", "study.yaml", "tiny.yaml"],
    "docs/how-to/compare.md": [
        *("store", "runs/60m-seed0", "runs/60m-seed1", "runs/125m", "mixture.json=learned.json", "uniform.json"),
        "results.json",
    ],
    "docs/reference/exports.md": ["store", "mixture.json"],
    "docs/reference/api/index.md": ["store", "runs/125m", "runs/60m"],
}
"""Page -> files and folders that its blocks read, out of the workspace."""

SLOW = {"docs/tutorial.md", "docs/how-to/study.md", "docs/how-to/train.md", "docs/how-to/fit-weights.md"}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    reason: str | None
    line: int


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of shell and Python on a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    all_blocks = [
        Block(match["language"], match["text"], match["reason"], text[: match.start("language")].count("\n") + 1)
        for match in FENCE.finditer(text)
    ]
    return [block for block in all_blocks if block.language in ("sh", "python")]


def runnable(page: str) -> bool:
    return any(block.reason is None for block in blocks(page))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_names_its_language_and_commands_stand_in_blocks(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(FENCE.findall(text)), "a fence that is indented or not closed"
    assert {match["language"] for match in FENCE.finditer(text)} <= {"sh", "python", "yaml", "text", "json"}
    if page != RECORDS:
        outside = FENCE.sub("", text)
        assert re.findall(r"^ {4}(?:\$ )?(?:xdoge|pip|torchrun) .*", outside, flags=re.M) == []


def test_files_are_listed_for_the_pages_that_run() -> None:
    assert {page for page in PAGES if runnable(page)} == set(FILES)


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page for page in PAGES if runnable(page)]
)
def test_the_blocks_of_a_page_run(
    page: str, folder_with: Callable[[list[str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_with(FILES[page])
    monkeypatch.chdir(folder)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "default"}
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        where = f"{page}:{block.line}"
        if block.reason is not None:
            continue
        if block.language == "python":
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(block.text, where, "exec"), namespace)
        else:
            script = ["bash", "-euo", "pipefail", "-c", block.text]
            done = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{where}\n{block.text}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
