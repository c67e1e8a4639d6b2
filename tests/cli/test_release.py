"""The wheel and the sdist hold what an installation needs, and work in an environment of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml

from xdoge import __version__
from xdoge.cli.demo import LIMITS, STRATEGIES

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CODE = """
from xdoge import Mixture, MixtureSampler, WeightSet, __version__
weights = WeightSet(name="w", sources={"es/web": 0.75, "eu/web": 0.25})
mixture = Mixture.plan(weights, available_tokens={"es/web": 1_000, "eu/web": 500}, budget_tokens=1_200)
sampler = MixtureSampler(mixture, {"es/web": 100, "eu/web": 50}, batch_size=8)
print(__version__, len(sampler), sorted({sampler[t].source for t in range(8)}))
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command without the checkout in its path, and return what it prints."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


def wheel_of(dist: Path) -> Path:
    (wheel,) = dist.glob("*.whl")
    return wheel


def environment(folder: Path, wheel: Path, site_packages: list[str]) -> Path:
    """Make an environment with the wheel and what lies in `site_packages`; return its folder of programs."""
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    (place,) = folder.glob("lib/python*/site-packages")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--no-index")
    run(*pip, "--prefix", folder, "--ignore-installed", wheel, cwd=folder.parent)
    (place / "borrowed.pth").write_text("".join(f"{path}\n" for path in site_packages), encoding="utf-8")
    return folder / "bin"


@pytest.fixture(scope="module")
def bare(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of an environment with the wheel and NumPy, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    borrowed = folder / "numpy-only"
    borrowed.mkdir()
    home = Path(np.__file__).parents[1]
    for part in ("numpy", "numpy.libs"):
        if (home / part).exists():
            (borrowed / part).symlink_to(home / part)
    return environment(folder / "env", wheel_of(dist), [str(borrowed)])


@pytest.fixture(scope="module")
def full(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of an environment with the wheel and every library of the environment that runs the tests."""
    borrowed = [sysconfig.get_path("purelib")]
    return environment(tmp_path_factory.mktemp("full") / "env", wheel_of(dist), borrowed)


def tracked() -> list[str]:
    """Paths of the files that the repository holds."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a checkout: git does not list its files")
    return [path for path in listed.stdout.split("\0") if path and (ROOT / path).exists()]


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(dist: Path) -> None:
    names = set(zipfile.ZipFile(wheel_of(dist)).namelist())
    package = {path for path in tracked() if path.startswith("xdoge/")}
    assert any(path.endswith(".yaml") and "/recipes/" in path for path in package)
    assert package <= names
    assert {name for name in names - package if ".dist-info/" not in name} == set()


def test_the_sdist_holds_what_its_tests_and_its_site_need(dist: Path) -> None:
    (archive,) = dist.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    left_out = {path for path in tracked() if not path.startswith((".ci/", ".github/"))} - names
    assert left_out == set()


def test_the_wheel_says_where_the_project_lives_and_which_python_it_needs(dist: Path) -> None:
    with zipfile.ZipFile(wheel_of(dist)) as wheel:
        (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = wheel.read(path).decode("utf-8")
    assert f"\nVersion: {__version__}\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata
    assert "\nLicense-Expression: Apache-2.0\n" in metadata
    for name, url in PROJECT["urls"].items():
        assert f"\nProject-URL: {name}, {url}\n" in metadata


def test_links_and_pictures_of_the_description_work_outside_the_repository(dist: Path) -> None:
    with zipfile.ZipFile(wheel_of(dist)) as wheel:
        (path,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        description = wheel.read(path).decode("utf-8").partition("\n\n")[2]
    targets = re.findall(r"(!?)\[[^]]*\]\(([^)\s]+)\)", description)
    assert targets
    assert [target for _, target in targets if not target.startswith("https://")] == []
    pictures = {target for mark, target in targets if mark}
    assert pictures == {
        f"https://raw.githubusercontent.com/xdoge/xdoge/main/docs/images/{name}.svg" for name in ("flow", "gains")
    }


def test_the_versions_of_python_are_those_that_the_workflow_tests() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text(encoding="utf-8"))
    tested = workflow["jobs"]["test"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: "
    named = [item.removeprefix(prefix) for item in PROJECT["classifiers"] if re.fullmatch(prefix + r"3\.\d+", item)]
    assert tested == named == ["3.11", "3.12", "3.13"]


def test_the_citation_names_this_version_and_both_papers() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == PROJECT["license"]
    papers = [paper["url"].rpartition("/")[2] for paper in citation["references"]]
    assert papers == ["2512.10545", "2310.15393"]


def test_numpy_is_all_that_the_sampler_of_the_wheel_needs(bare: Path, tmp_path: Path) -> None:
    said = run(bare / "python", "-I", "-c", CODE, cwd=tmp_path)
    assert said.split(maxsplit=2) == [__version__, "120", "['es/web', 'eu/web']\n"]


def test_without_the_extra_the_program_of_the_wheel_names_it(bare: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [bare / "python", "-I", bare / "xdoge", "--version"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "xdoge[cli]" in done.stderr


def test_the_program_of_the_wheel_runs_with_the_extras(full: Path, tmp_path: Path) -> None:
    where = run(full / "python", "-c", "import xdoge; print(xdoge.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(full.parent)
    assert __version__ in run(full / "xdoge", "--version", cwd=tmp_path)


@pytest.mark.slow
def test_the_demo_of_the_wheel_goes_the_whole_way_and_goes_on_with_the_same_settings_alone(
    full: Path, tmp_path: Path
) -> None:
    def demo(steps: int) -> tuple[int, str, str]:
        command = [full / "xdoge", "demo", "--out", "demo", "--steps", str(steps)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    folder = tmp_path / "demo"
    status, out, err = demo(20)
    assert status == 0, err
    assert out.splitlines()[-1] == "demo/report.html"
    assert "conclusion: With equal shares" in out
    assert LIMITS in out
    assert "value of a token of another source" in out
    assert " left" in err
    assert "synthetic" in err
    assert LIMITS in (folder / "report.html").read_text()
    for name in STRATEGIES:
        assert f"With the shares of {name}, they end" in out or name == "uniform"
        trained = folder / "study" / "train" / name / "20-steps"
        assert sorted(path.name for path in trained.iterdir()) == ["seed-0", "seed-1", "seed-2"]
    weights = json.loads((folder / "study/weights/fit/seed-0/weights.json").read_text())
    assert len(weights["sources"]) == 12
    assert len(list((folder / "study/swarm/runs").iterdir())) == 20
    assert yaml.safe_load((folder / "study.yaml").read_text())["strategies"] == STRATEGIES

    status, again, err = demo(20)
    assert (status, again[again.index("Equal tokens") :]) == (0, out[out.index("Equal tokens") :])
    assert "finished in" not in err
    status, _, err = demo(30)
    assert (status, "another demo" in err) == (1, True)
