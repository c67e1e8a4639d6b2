"""Studies: learn weights and train and measure a model for each strategy and seed, and compare the results.

study.py       the public `Study`: loads a study.yaml, runs it, reads its findings
spec.py        the settings of a study.yaml, and its strategies with their costs
plan.py        the commands of a study, and which runs each of them needs
runner.py      runs the commands, several at once
findings.py    the results: `Findings`
intervals.py   paired differences over seeds
report.py      tables and the HTML page of the findings
slurm.py       a script that runs the study on a cluster
"""

from xdoge.study.findings import Findings
from xdoge.study.plan import Run, Trial
from xdoge.study.spec import StudySpec
from xdoge.study.study import Study

__all__ = ["Findings", "Run", "Study", "StudySpec", "Trial"]
