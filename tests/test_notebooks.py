"""The notebooks run from top to bottom, and their committed output is what they print today."""

from __future__ import annotations

import re
from pathlib import Path

import nbclient
import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "examples" / "notebooks"
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*")


def shown(notebook):
    """Return for each code cell its text output without progress bars, and whether it drew a picture."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [
        (
            "".join(
                output.get("text", "") + output.get("data", {}).get("text/plain", "")
                for output in cell.outputs
                if output.get("name") != "stderr"
            ),
            any("image/png" in output.get("data", {}) for output in cell.outputs),
        )
        for cell in cells
    ]


def agree(new, old):
    """Whether two outputs have the same words, and numbers that are equal up to differences between processors."""
    if NUMBER.sub("#", new).split() != NUMBER.sub("#", old).split():
        return False
    pairs = zip(NUMBER.findall(new), NUMBER.findall(old), strict=True)
    values = [(float(a.replace(",", "")), float(b.replace(",", ""))) for a, b in pairs]
    return all(abs(a - b) <= max(1, 0.2 * abs(b)) for a, b in values)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_notebook_runs_and_prints_what_is_committed(path):
    notebook = nbformat.read(path, as_version=4)
    committed = shown(notebook)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    for number, (new, old) in enumerate(zip(shown(notebook), committed, strict=True)):
        assert new[1] == old[1], f"code cell {number}: a picture came or went; make notebooks"
        assert agree(new[0], old[0]), f"code cell {number} is stale; make notebooks. It prints:\n{new[0]}"


def test_a_stale_output_is_noticed():
    assert agree("es 0.21, 1,234 tokens", "es 0.22, 1,230 tokens")
    assert not agree("es 0.21", "gl 0.21")
    assert not agree("1,234 tokens", "2,234 tokens")
    assert not agree("a 1 2", "a 1")
