#!/usr/bin/env bash
# Submit all jobs, each after those it reads from. Options go to every sbatch: ./submit.sh --account=a --partition=gpu
# They are options of sbatch, written --name=value. The settings of the jobs stand in settings.sh.
# Submitted again, what is finished ends at once and what was stopped goes on.
# shellcheck source=settings.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/settings.sh"

fail() {
  echo "submit.sh: $1" >&2
  exit 2
}

# Whatever can be wrong is said before anything is submitted.
for option in "$@"; do
  case $option in
    -h | --help)
      sed -n '2,4p' "$0"
      exit 0
      ;;
    --array* | --dependency* | --output* | --parsable*) fail "$option is set by submit.sh itself; leave it out." ;;
    --[a-z]* | -[A-Za-z]?*) ;;
    *) fail "'$option' is no option of sbatch; write --name=value, such as --partition=gpu." ;;
  esac
done
command -v sbatch >/dev/null || fail "there is no sbatch here; run it on the login node of a Slurm cluster."
[[ $SEEDS =~ ^[1-9][0-9]*$ ]] || fail "SEEDS=$SEEDS is no number of seeds; set it to 1 or more."
[ -n "${SIZES// /}" ] || fail "SIZES is empty; name a proxy, such as SIZES=60m."

# The login node has a network, the others have none.
if [ -n "$SUITE" ]; then
  $XDOGE eval --prefetch --suite "$SUITE"
fi
mkdir -p "$RUNS/logs"

# Print the number of the job that runs a script; what is left of a chain that broke is cancelled.
submit() {
  local script=$1 && shift
  sbatch --parsable --kill-on-invalid-dep=yes --output="$RUNS/logs/%x-%j.log" "$@" \
    "$here/$script" "$here/settings.sh" | cut -d ';' -f 1
}

read -ra sizes <<<"$SIZES"
fits=$(submit fit-array.sbatch --array="0-$((${#sizes[@]} * SEEDS - 1))" "$@")
merged=$(submit merge.sbatch --dependency="afterok:$fits" "$@")
trained=$(submit train-array.sbatch --dependency="afterok:$merged" --array=0-1 "$@")
evaluated=$(submit eval.sbatch --dependency="afterok:$trained" "$@")
echo "fits $fits, merge and mix $merged, train $trained, eval $evaluated; logs in $RUNS/logs"
