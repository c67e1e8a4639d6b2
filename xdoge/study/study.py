"""The public `Study`: a plan that can be run, and whose results can be read."""

from __future__ import annotations

from pathlib import Path

from xdoge.progress import OnNote, silent
from xdoge.study.findings import Findings
from xdoge.study.plan import StudyPlan
from xdoge.study.runner import run_all


class Study(StudyPlan):
    """Several strategies with several seeds each. A strategy is a way to choose the mixture, such as "uniform".

    Example:
        ```python
        Study.load("study.yaml").run("studies/first").to_frame()
        ```
    """

    def run(self, out: Path | str, *, jobs: int = 1, on_note: OnNote = silent) -> Findings:
        """Run the commands that are not finished, and return the findings. A failed command does not stop the others.

        Args:
            out: folder of the study. It is new, or this study began in it.
            jobs: number of commands that run at the same time.
            on_note: called with a line for each command that ends.

        Raises:
            XDogeError: the folder belongs to another study, or another process runs this one.
            Interrupted: SIGINT or SIGTERM stopped the study. The same call continues it.
        """
        run_all(self.begin(out).values(), Path(out), jobs=jobs, on_note=on_note)
        return self.findings(out)

    def findings(self, out: Path | str) -> Findings:
        """Return the findings so far, from the study's folder. This starts no command."""
        return Findings.read(self, Path(out))
