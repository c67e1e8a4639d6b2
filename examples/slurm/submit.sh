#!/usr/bin/env bash
# Submit all jobs, each after the jobs whose results it reads. Options of sbatch are passed on to every job, and must
# have the form --name=value: ./submit.sh --account=a --partition=gpu. The settings of the jobs are in settings.sh.
# If you submit again, finished commands end at once and stopped ones continue.
# shellcheck source=settings.sh
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
source "$here/settings.sh"

fail() {
  echo "submit.sh: $1" >&2
  exit 2
}

# Report mistakes before any job is submitted.
for option in "$@"; do
  case $option in
    -h | --help)
      sed -n '2,4p' "$0"
      exit 0
      ;;
    --array* | --dependency* | --output* | --parsable*) fail "$option is set by submit.sh itself; leave it out." ;;
    --[a-z]* | -[A-Za-z]?*) ;;
    *) fail "'$option' is not an option of sbatch; write --name=value, such as --partition=gpu." ;;
  esac
done
command -v sbatch >/dev/null || fail "sbatch was not found; run this script on the login node of a Slurm cluster."
[[ $SEEDS =~ ^[1-9][0-9]*$ ]] || fail "SEEDS=$SEEDS is not a number of seeds; set it to 1 or more."
[ -n "${SIZES// /}" ] || fail "SIZES is empty; name a proxy, such as SIZES=60m."

# The login node has a network. The other nodes have none.
if [ -n "$SUITE" ]; then
  $XDOGE eval --prefetch --suite "$SUITE"
fi
mkdir -p "$RUNS/logs"

# Submit a script and print the number of its job. Slurm cancels the job if one before it fails.
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
