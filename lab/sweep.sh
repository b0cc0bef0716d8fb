#!/usr/bin/env bash
#
# The runs behind the findings in lab/README.md, on toy worlds of their own.
#
#   bash lab/sweep.sh                          all runs
#   bash lab/sweep.sh --headline               k = 1, 4, 16, 64 and i.i.d., in three worlds
#   bash lab/sweep.sh --seeds "21 22"          all runs, of other seeds
#   bash lab/sweep.sh --list                   print the jobs, and make nothing
#
# A job is a pretraining with its probes and fine-tunings, and has a core to itself. Each finished
# run becomes a row of lab/findings.json, with the commit, the processor and the versions that it
# was made with. A run whose row is there is not made again; of one that was interrupted, the same
# command resumes. Each run writes runs/sweep/NAME/ and runs/sweep/NAME.log; of one that fails, the
# last line of its log is printed. A world takes 1.1 GB in datasets/sweep/.

set -euo pipefail
shopt -s nullglob
cd "$(dirname "$0")/.."
cores=$(nproc) # which counts threads where OMP_NUM_THREADS is set
export OMP_NUM_THREADS=1
# glibc would give each large tensor back to the kernel, and a training step would then spend a
# quarter of its time on faulting 80,000 pages in again.
export MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_MAX_=0

export ROWS=lab/findings.json
export EPOCHS=2
export WIDTH=8
export SETTINGS="--toy --workers 1 --keep --epochs $EPOCHS --width $WIDTH --measure-every 0.25"
headline_seeds="11 12 13 14 15"
other_seeds="11 12 13"
only_headline=
list=

# refuse MESSAGE: end with the one line that says what is wrong and what would be right.
refuse() {
  echo "sweep.sh: error: $1" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case $1 in
    --headline)
      only_headline=1
      shift
      ;;
    --list)
      list=1
      shift
      ;;
    --seeds)
      [ $# -gt 1 ] || refuse '--seeds: name one or more of them, such as --seeds "11 12"'
      headline_seeds=$2
      other_seeds=$2
      shift 2
      ;;
    *)
      refuse "$1: must be --headline, --list, or --seeds with a list, such as --seeds \"11 12\""
      ;;
  esac
done

# make_world WORLD SEED: render datasets/sweep/WORLD-SEED, unless it is there. Titles are many more
# than the 64 places of a minibatch. `films` and `tv` differ in the strength of what betrays a
# title, `films` and `shows` in that a title has four files. Each has 24,576 snippets.
make_world() {
  local world=$1 seed=$2
  local folder=datasets/sweep/$world-$seed
  local flags
  case $world in
    films) flags="--artefacts 0.5 --titles 256 --snippets 96" ;;
    tv) flags="--artefacts 0.7 --titles 256 --snippets 96" ;;
    shows) flags="--artefacts 0.5 --titles 96 --snippets 64 --episodes 4" ;;
  esac
  # Two jobs may want the same world at the same time. A word of $flags is a flag.
  # shellcheck disable=SC2086
  (
    flock 9
    [ -e "$folder" ] || python -m media toy "$folder" --seed "$seed" $flags > "$folder.log" 2>&1 ||
      tail -n 1 "$folder.log"
  ) 9> "$folder.lock"
}

# has_row NAME: whether a run has its row.
has_row() {
  [ -e "$ROWS" ] && grep -q "\"run\": \"$1\"" "$ROWS"
}

# make_run NAME COMMAND...: a run in runs/sweep/NAME, and its row.
make_run() {
  local name=$1
  local out=runs/sweep/$name
  shift
  if [ ! -e "$out/result.json" ] && ! "$@" --out "$out" > "$out.log" 2>&1 < /dev/null; then
    echo "$name: $(tail -n 1 "$out.log")"
    return 1
  fi
  python -m lab.compare --add "$ROWS" "$out"
}

# list_tests KIND: a line for each run that tests a network: what it is called after the network,
# the labelled set, the file with the weights, and flags.
list_tests() {
  local task epoch
  local probe="--probe --split all --shots 1 2 5"
  for task in action sound; do
    case $1 in
      probe)
        echo "$task $task checkpoint.pt $probe"
        ;;
      curve)
        echo "$task $task checkpoint.pt $probe"
        for ((epoch = 1; epoch < EPOCHS; epoch++)); do
          echo "epoch$epoch-$task $task epoch$epoch.pt $probe"
        done
        ;;
      tune)
        echo "$task-tuned $task checkpoint.pt"
        echo "$task-tuned5 $task checkpoint.pt --shots 5"
        ;;
    esac
  done
}

# do_job SEED WORLD NETWORK KIND FLAGS...: pretrain a network and test it. A run with a row is not
# made again; but a test needs the weights, so a pretraining may be.
do_job() {
  local seed=$1 world=$2 network=$3 kind=$4
  shift 4
  local name=$world-$seed-$network
  local films=datasets/sweep/$world-$seed
  local test task weights flags
  pretrain() {
    [ "$network" = untrained ] && return
    [ -e "runs/sweep/$name/result.json" ] && has_row "$name" && return
    make_world "$world" "$seed"
    # shellcheck disable=SC2086  # A word of $SETTINGS is a flag.
    make_run "$name" python pretrain.py $SETTINGS --data "$films/films" --seed "$seed" "$@"
  }
  has_row "$name" || [ "$network" = untrained ] || pretrain "$@" || return 0
  list_tests "$kind" | while read -r test task weights flags; do
    has_row "$name-$test" && continue
    make_world "$world" "$seed"
    pretrain "$@" || return 0
    if [ "$network" = untrained ]; then
      flags+=" --width $WIDTH"
    else
      flags+=" --ckpt runs/sweep/$name/$weights"
    fi
    # shellcheck disable=SC2086  # A word of $flags is a flag.
    make_run "$name-$test" python finetune.py --task "toy-$task" --workers 1 \
      --data "$films/$task" --seed "$seed" $flags || true
  done
}

# list_headline SEED: in three worlds, each k, shuffled snippets, and no pretraining.
list_headline() {
  local world
  for world in films tv shows; do
    echo "$1 $world k1 curve --k 1"
    echo "$1 $world k16 curve --k 16"
    echo "$1 $world iid curve --sampling iid"
    echo "$1 $world k4 probe --k 4"
    echo "$1 $world k64 probe --k 64"
    echo "$1 $world untrained probe"
  done
}

# list_others SEED: windows, scenes, colour jitter, temperatures, twice the length, and fine-tuning,
# on films.
list_others() {
  local k w tau
  for k in 4 16 64; do
    echo "$1 films k$k-w$k probe --k $k --w $k"
  done
  for w in 8 16; do
    echo "$1 films k4-w$w probe --k 4 --w $w"
  done
  for w in 32 64 scene; do
    echo "$1 films k16-w$w probe --k 16 --w $w"
  done
  echo "$1 films k1-jitter1 probe --k 1 --jitter 1"
  for tau in 0.07 0.3; do
    echo "$1 films k16-tau$tau probe --k 16 --tau $tau"
  done
  for k in 1 16; do
    echo "$1 films k$k-long probe --k $k --epochs $((2 * EPOCHS))"
  done
  echo "$1 films k1 tune --k 1"
  echo "$1 films k16 tune --k 16"
  echo "$1 films untrained tune"
}

list_jobs() {
  local seed
  for seed in $headline_seeds; do
    list_headline "$seed"
  done
  [ -z "$only_headline" ] || return 0
  for seed in $other_seeds; do
    list_others "$seed"
  done
}

if [ "$list" ]; then
  list_jobs
  exit
fi
mkdir -p runs/sweep datasets/sweep
export -f make_world has_row make_run list_tests do_job
list_jobs | xargs -P "$cores" -I{} bash -c "do_job {}"
python -m lab.findings "$ROWS"
