# Read by submit.sh and by every job. Edit it, or set any of these in the environment of submit.sh.
# shellcheck shell=bash disable=SC2034  # they are used by the files that read this one

STORE=${STORE:-store}                      # what xdoge prepare wrote; paths lead from where submit.sh is started
RUNS=${RUNS:-runs}                         # everything is written here; a file system that all nodes see
XDOGE=${XDOGE:-xdoge}                      # the command, such as .venv/bin/xdoge

SIZES=${SIZES:-60m 125m 250m 500m}         # proxies: recipes, or YAML files of your own
SEEDS=${SEEDS:-5}                          # fits of each size, with the seeds 0, 1, ...
FIT_OPTIONS=${FIT_OPTIONS:---floor 0.002}  # of xdoge fit-weights; --config FILE for more than a few

BUDGET=${BUDGET:-10B}                      # tokens of a target's training
BASELINE=${BASELINE:-unimax}               # what the learned weights are to beat: a strategy or a weights.json
MIX_OPTIONS=${MIX_OPTIONS:---max-epochs 4 --sequence-length 2048}

TARGET=${TARGET:-500m}                     # a recipe, or a model to go on with
TRAIN_OPTIONS=${TRAIN_OPTIONS:-}
SUITE=${SUITE-iberobench}                  # benchmarks; empty for perplexity alone
EVAL_OPTIONS=${EVAL_OPTIONS:-}

MOST_REQUEUES=${MOST_REQUEUES:-20}         # of one job that its time limit stops

if [ -n "${SLURM_JOB_ID:-}" ]; then # in a job
  # The nodes have no network: what is not in the cache is an error at once, and not after minutes of waiting.
  export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 HF_EVALUATE_OFFLINE=1 TRANSFORMERS_OFFLINE=1 WANDB_MODE=offline
  # srun does not hand the CPUs of the job on by itself.
  export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
fi

# torchrun kills what it has told to stop after so many seconds, 30 unless told: less than the 120 that Slurm leaves.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=110

# The run folder of a proxy and a seed.
run_of() {
  echo "$RUNS/$(basename "$1" .yaml)-seed$2"
}

# Run a command as a step of the job. If it was told to stop, put the job back into the queue, where it resumes.
#
# Before the time limit Slurm sends SIGTERM to the step and not to this shell (--signal=TERM@120); xdoge writes a
# checkpoint and ends with 143. scancel ends this shell too, so that what you cancel stays cancelled.
step() {
  local status=0 job=${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}
  srun "$@" || status=$?
  # torchrun ends with 1 whether it was stopped or failed, and a failure is tried again as well.
  if [ "$status" = 143 ] || { [ "$status" != 0 ] && [ "$1" = torchrun ]; }; then
    if [ "${SLURM_RESTART_COUNT:-0}" -lt "$MOST_REQUEUES" ]; then
      scontrol requeue "$job"
    else
      echo "stopped $MOST_REQUEUES times and not finished; raise --time or MOST_REQUEUES and submit again." >&2
    fi
  fi
  return "$status"
}
