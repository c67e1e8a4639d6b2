# submit.sh and every job read this file. Edit it, or set any of these variables in the environment of submit.sh.
# shellcheck shell=bash disable=SC2034  # the scripts that read this file use the variables

STORE=${STORE:-store}                      # folder that xdoge prepare wrote; relative to where you run submit.sh
RUNS=${RUNS:-runs}                         # folder for all results, on a file system that all nodes see
XDOGE=${XDOGE:-xdoge}                      # command to run, such as .venv/bin/xdoge

SIZES=${SIZES:-60m 125m 250m 500m}         # proxies: recipes, or YAML files of your own
SEEDS=${SEEDS:-5}                          # number of fits per size, with seeds 0, 1, ...
FIT_OPTIONS=${FIT_OPTIONS:---floor 0.002}  # options of xdoge fit-weights; use --config FILE for many

BUDGET=${BUDGET:-10B}                      # training tokens of a target
BASELINE=${BASELINE:-unimax}               # strategy or weights.json to compare with the learned weights
MIX_OPTIONS=${MIX_OPTIONS:---max-epochs 4 --sequence-length 2048}

TARGET=${TARGET:-500m}                     # a recipe, or a model to continue from
TRAIN_OPTIONS=${TRAIN_OPTIONS:-}
SUITE=${SUITE-iberobench}                  # benchmarks; empty for perplexity only
EVAL_OPTIONS=${EVAL_OPTIONS:-}

MOST_REQUEUES=${MOST_REQUEUES:-20}         # most restarts of a job that its time limit stops

if [ -n "${SLURM_JOB_ID:-}" ]; then # in a job
  # The nodes have no network. With these settings, a file that is not in the cache is an error at once.
  export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_EVALUATE_OFFLINE=1 TRANSFORMERS_OFFLINE=1 WANDB_MODE=offline
  # srun does not pass on the job's number of CPUs by itself.
  export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
fi

# Seconds after which torchrun kills stopping processes, by default 30. It must be less than the 120 that Slurm leaves.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110

# Print the run folder of a proxy and a seed.
run_of() {
  echo "$RUNS/$(basename "$1" .yaml)-seed$2"
}

# Run a command as a step of the job. If a signal stopped it, put the job back into the queue, where it resumes.
#
# Before the time limit, Slurm sends SIGTERM to the step but not to this shell (--signal=TERM@120). xdoge writes a
# checkpoint and exits with 143. scancel also ends this shell, so that a cancelled job is not put back.
step() {
  local status=0 job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
  srun "$@" || status=$?
  # torchrun exits with 1 if it was stopped and also if it failed, so failures are retried too.
  if [ "$status" = 143 ] || { [ "$status" != 0 ] && [ "$1" = torchrun ]; }; then
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "$MOST_REQUEUES" ]; then
      scontrol requeue "$job"
    else
      echo "stopped $MOST_REQUEUES times and not finished; raise --time or MOST_REQUEUES and submit again." >&2
    fi
  fi
  return "$status"
}
