#!/usr/bin/env bash
#
# The runs behind the findings in lab/README.md, on the toy world, and their comparison.
#
#   bash lab/sweep.sh                    36 pretrainings, 102 downstream runs: 2 h 18 min
#   bash lab/sweep.sh --headline         k = 1, 4, 16 and 64 with their probes, seed 1: 11 min
#   bash lab/sweep.sh --seeds "4 5 6"    all runs, of other seeds
#
# The times are of two cores. Two runs go side by side, with a core each. Each run writes
# runs/NAME/ and runs/NAME.log; of one that fails, the last line of its log is printed. After an
# interruption the same command continues: a finished run is not repeated, any other resumes
# from its last checkpoint. The comparison is written to runs/compare.

set -euo pipefail
shopt -s nullglob
cd "$(dirname "$0")/.."
export OMP_NUM_THREADS=1

seeds="1 2 3"
job_limit=1000

# refuse MESSAGE: end with the one line that says what is wrong and what would be right.
refuse() {
  echo "sweep.sh: error: $1" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case $1 in
    --headline)
      seeds=1
      job_limit=4
      shift
      ;;
    --seeds)
      [ $# -gt 1 ] || refuse '--seeds: name one or more of them, such as --seeds "1 2 3"'
      seeds=$2
      shift 2
      ;;
    *)
      refuse "$1: must be --headline, or --seeds with a list, such as --seeds \"1 2 3\""
      ;;
  esac
done

# make_world NAME ARTEFACTS SEED: render a toy world, unless it is there.
make_world() {
  local name=$1 artefacts=$2 seed=$3
  local world=datasets/$name-$seed
  [ -e "$world" ] || python -m media toy "$world" --seed "$seed" --artefacts "$artefacts"
}

# logged OUT COMMAND...: run a command with its output in OUT.log.
logged() {
  local out=$1
  shift
  "$@" > "$out.log" 2>&1 || { tail -n 1 "$out.log"; return 1; }
}

# pretrain SEED NAME FLAGS...: one pretraining, and a linear probe of its video and of its audio.
pretrain() {
  local seed=$1 name=$2
  shift 2
  local world=$name-$seed
  local word task out=runs/$world
  for word in "$@"; do
    out+=${word/#--/-}
  done
  logged "$out" python pretrain.py --toy --workers 1 --data "datasets/$world/films" \
    --seed "$seed" "$@" --out "$out" || return 0
  for task in action sound; do
    tune "$seed" "$world" "$task" "$out-$task" --ckpt "$out/checkpoint.pt" --probe --split all
  done
}

# tune SEED WORLD TASK OUT FLAGS...: one fine-tuning, or one probe.
tune() {
  local seed=$1 world=$2 task=$3 out=$4
  shift 4
  logged "$out" python finetune.py --task "toy-$task" --workers 1 --data "datasets/$world/$task" \
    --seed "$seed" "$@" --out "$out" || true
}

# Print all jobs, a line each, and for each flags a line for each seed. The headline has one
# seed, so its jobs, the four values of k, are the first four lines.
list_jobs() {
  local seed task name k flags
  for flags in \
    "films --k 1" "films --k 4" "films --k 16" "films --k 64" \
    "films --w 32" "films --w 16" "films --w scene" \
    "films --k 1 --jitter 1" "films --tau 0.07" "films --tau 0.3" \
    "tv --k 1" "tv --k 16"
  do
    for seed in $seeds; do
      echo "pretrain $seed $flags"
    done
  done
  for seed in $seeds; do
    for task in action sound; do
      for name in films tv; do
        echo "tune $seed $name-$seed $task runs/$name-$seed-untrained-$task --probe --split all"
      done
      echo "tune $seed films-$seed $task runs/films-$seed-scratch-$task-tuned"
      for k in 1 16; do
        echo "tune $seed films-$seed $task runs/films-$seed-k$k-$task-tuned" \
          "--ckpt runs/films-$seed-k$k/checkpoint.pt"
      done
    done
  done
}

mkdir -p runs
for seed in $seeds; do
  make_world films 0.5 "$seed"
  make_world tv 0.7 "$seed"
done
export -f logged pretrain tune
list_jobs | awk -v limit="$job_limit" 'NR <= limit' | xargs -P 2 -I{} bash -c {}
python -m lab.compare runs/{films,tv}-*/
