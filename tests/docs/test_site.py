"""The site builds without warnings, links to what exists, and asks for nothing from other servers."""

from __future__ import annotations

import html
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/**/*.md")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site. `strict` in mkdocs.yml turns every warning and broken link into an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_has_the_help_of_every_command_and_the_docstring_of_every_public_name(site: Path) -> None:
    import xdoge
    from xdoge.cli import app

    commands = (site / "reference/commands/index.html").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert command.callback is not None
        name = command.name or command.callback.__name__.replace("_", "-")
        assert f'id="xdoge-{name}"' in commands
    assert "--max-epochs" in commands
    pages = "".join(path.read_text(encoding="utf-8") for path in (site / "reference/api").rglob("index.html"))
    documented = set(re.findall(r'<h2 id="xdoge[\w.]*?\.(\w+)"', pages))
    assert {name for name in xdoge.__all__ if name != "__version__"} <= documented


def test_the_site_describes_every_setting_of_a_fit_and_of_a_training(site: Path) -> None:
    from xdoge.fit.settings import FitSettings
    from xdoge.train.settings import TrainSettings

    for page, settings in (("weights", FitSettings), ("models", TrainSettings)):
        text = (site / "reference/api" / page / "index.html").read_text(encoding="utf-8")
        shown = html.unescape(re.sub(r"<[^>]+>", "", text)).replace("’", "'")
        missing = [
            name
            for name, field in settings.model_fields.items()
            if str(field.description).replace("`", "") not in shown or f".{settings.__name__}.{name}" not in text
        ]
        assert missing == [], page


def test_the_site_fetches_nothing_from_other_servers(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r'<(?:script|img|iframe|source)[^>]*?src="(https?:[^"]*)"', text)
        fetched += re.findall(r'<link[^>]*rel="(?:stylesheet|preconnect|preload)"[^>]*href="(https?:[^"]*)"', text)
        assert fetched == [], page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files_of_the_repository(page: Path) -> None:
    """MkDocs checks links within docs/; this test checks links to the rest of the repository, and the other pages."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = target.partition("#")
        inside = re.fullmatch(r"https://github\.com/xdoge/xdoge/(?:tree|blob)/main/(.+)", path)
        if inside:
            linked = ROOT / inside[1]
        elif re.match(r"https?:|mailto:", path):
            continue
        elif path == "reference/commands.md" or path.endswith("/reference/commands.md"):
            continue  # written when the site is built
        else:
            linked = page.parent / path if path else page
        assert linked.exists(), f"{page.relative_to(ROOT)} links to {target}"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{page.relative_to(ROOT)} links to {target}"


def test_pages_that_the_code_mentions_exist() -> None:
    mentions = {
        (path.relative_to(ROOT), page)
        for folder in ("xdoge", "tests", "benchmarks", "examples")
        for path in (ROOT / folder).rglob("*.py")
        for page in re.findall(r"docs/[\w/-]+\.md", path.read_text(encoding="utf-8"))
    }
    assert mentions
    assert [(str(path), page) for path, page in mentions if not (ROOT / page).exists()] == []


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def test_the_chart_of_the_readme_shows_the_numbers_of_the_experiments() -> None:
    gains_chart = runpy.run_path(str(ROOT / "tools/gains_chart.py"))
    rows = gains_chart["measured"]((ROOT / "docs/experiments.md").read_text(encoding="utf-8"))
    svg = gains_chart["CHART"].read_text(encoding="utf-8")
    drawn = set(re.findall(r'aria-label="[^":]*: ([\d.]+); language: ([^;"]+); mixture: ([^"]+)"', svg))
    assert drawn == {(f"{row['bits']:g}", row["language"], row["mixture"]) for row in rows}


def test_the_readme_fits_on_two_screens() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) < 1_000
    prose = [line for line in text.splitlines() if not line.startswith(("|", "<!--")) and "](" not in line]
    assert max(map(len, prose)) <= 100
