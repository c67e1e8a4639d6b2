"""The public `Study`: a plan that can be run, and whose results can be read."""

from __future__ import annotations

from pathlib import Path

from xdoge.progress import OnNote, silent
from xdoge.study.findings import Findings
from xdoge.study.plan import StudyPlan
from xdoge.study.runner import run_all


class Study(StudyPlan):
    """Strategies × seeds: `Study.load("study.yaml").run("studies/first").to_frame()`."""

    def run(self, out: Path | str, *, jobs: int = 1, on_note: OnNote = silent) -> Findings:
        """Run what is left, `jobs` commands at once, and return the findings, failed runs included.

        Raises:
            XDogeError: the folder belongs to another study, or another process runs this one.
            Interrupted: SIGINT or SIGTERM came. Every command that ran wrote what it needs to continue.
        """
        run_all(self.begin(out).values(), Path(out), jobs=jobs, on_note=on_note)
        return self.findings(out)

    def findings(self, out: Path | str) -> Findings:
        """Return what was found so far, without running anything."""
        return Findings.read(self, Path(out))
