"""Strategies × seeds: weights, mixture, training and perplexity of each, as commands of xdoge, and one table of it all.

spec.py        what a study.yaml says, and what its strategies are and cost
plan.py        the commands, and what each needs: `Study`
runner.py      runs them, several at once
findings.py    what they found: `Findings`
intervals.py   paired differences over seeds
report.py      tables and the page
slurm.py       the same for a cluster
"""

from xdoge.study.findings import Findings
from xdoge.study.plan import Run, Study, Trial
from xdoge.study.spec import StudySpec

__all__ = ["Findings", "Run", "Study", "StudySpec", "Trial"]
