"""A study as a script for Slurm: an array of fits, then an array of models, then the report."""

from __future__ import annotations

import functools
import shlex
from collections.abc import Sequence
from pathlib import Path

from xdoge.study.plan import StudyPlan

_SCRIPT = """\
#!/usr/bin/env bash
# Written by `xdoge study --slurm`. Submit it with `bash @NAME@ [OPTIONS OF SBATCH]`, such as --account=A --partition=P,
# from the folder in which it was written. Submitted again, what is finished ends at once and what was stopped goes on.
#SBATCH --job-name=xdoge-study
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@120
set -f -euo pipefail # the names of a task's runs are patterns of xdoge, not of the shell

study=(@STUDY@)
out=@OUT@

# What learns weights: fits and baselines, each in a task; and all that laws need, from the swarm on, in one.
weights=(
@WEIGHTS@)

# What is trained and measured, each on its own mixture.
models=(
@MODELS@)

case "${1:-}" in
  weights) only=${weights[SLURM_ARRAY_TASK_ID]} ;;
  models) only="*/${models[SLURM_ARRAY_TASK_ID]}" ;;
  report) exec "${study[@]}" --report ;;
  *) # on the login node: submit all of it
    mkdir -p "$out/logs"
    submit() { # its options, then the stage
      sbatch --parsable --output="$out/logs/%x-%j.log" "${@:2}" "$0" "$1" | cut -d ';' -f 1
    }
    after=()
    if [ "${#weights[@]}" -gt 0 ]; then
      after=(--dependency="afterany:$(submit weights --array="0-$((${#weights[@]} - 1))" "$@")")
    fi
    trained=$(submit models --array="0-$((${#models[@]} - 1))" ${after[@]+"${after[@]}"} "$@")
    report=$(submit report --dependency="afterany:$trained" "$@")
    echo "models $trained, report $report; logs in $out/logs"
    exit
    ;;
esac

# srun does not hand the CPUs of the job on by itself.
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
status=0
srun "${study[@]}" --only $only || status=$?
if [ "$status" = 143 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then # time was up: back into the queue
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
"""


def script(study: StudyPlan, out: Path, command: Sequence[str], *, name: str) -> str:
    """Return the script that submits a study.

    A task runs `xdoge study --only`, which continues a run that was started before. So tasks may be stopped and
    requeued. Models wait for the weights of all strategies. If some weights failed, only the models that need them
    fail.

    Args:
        study: the plan to run.
        out: the study's folder.
        command: `xdoge study ...` as the user typed it, without --slurm.
        name: file name of the script.
    """
    learned = [name for name, run in study.runs(out).items() if name.startswith("weights/") and not run.needs]
    laws = [run.name for run in study.law_runs(out)]
    learned += [" --only ".join(laws)] if laws else []
    parts = {
        "@NAME@": shlex.quote(name),
        "@STUDY@": shlex.join(command),
        "@OUT@": shlex.quote(str(out)),
        "@WEIGHTS@": "".join(f"  {shlex.quote(run)}\n" for run in learned),
        "@MODELS@": "".join(f"  {shlex.quote(trial.name)}\n" for trial in study.trials()),
    }
    return functools.reduce(lambda text, part: text.replace(*part), parts.items(), _SCRIPT)
