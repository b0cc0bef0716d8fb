#!/usr/bin/env bash
#
# The runs behind lab/findings.md, on toy worlds of their own.
#
#   bash lab/sweep.sh                          all runs
#   bash lab/sweep.sh --headline               k = 1, 4, 16, 64 and i.i.d., in three worlds
#   bash lab/sweep.sh --papers                 three papers, in a world of their own
#   bash lab/sweep.sh --ablations              the same, and parts of two of these papers left out
#   bash lab/sweep.sh --seeds "21 22"          all runs, of other seeds
#   bash lab/sweep.sh --list                   print the jobs, and make nothing
#
# A job is a pretraining with its probes and fine-tunings, and has a core to itself. Each finished
# run becomes a row of lab/findings.json, with the commit, the processor and the versions that it
# was made with. A run whose row is there is not made again, unless a test of it has none and needs
# the weights; of one that was interrupted, the same command resumes. Each run writes
# runs/sweep/NAME/ and runs/sweep/NAME.log. Of one that fails, the last line of its log is printed;
# the others are made all the same, and the exit status is 1. At the end lab/findings.md gets the
# verdicts on the rows that are there. A world takes 1.1 to 1.2 GB in datasets/sweep/.

set -euo pipefail
cd "$(dirname "$0")/.."
cores=$(env -u OMP_NUM_THREADS nproc) # Where it is set, nproc prints it in place of the cores.
export OMP_NUM_THREADS=1
# glibc would give each large tensor back to the kernel, and a training step would then spend a
# quarter of its time on faulting 80,000 pages in again.
export MALLOC_TRIM_THRESHOLD_=8000000000 MALLOC_MMAP_MAX_=0

export ROWS=lab/findings.json
export EPOCHS=2
export SETTINGS="--toy --workers 1 --keep --epochs $EPOCHS --measure-every 0.25"
# The sibling papers have the same networks, and about as many steps of 64 snippets as the 690 of
# pretrain.py. AVTS has a snippet every 0.8 s, so that one epoch is 686 steps. From half-way on some
# of its negatives are hard.
export AVTS="--toy --workers 1 --keep --epochs 1 --measure-every 0.125"
AVTS+=" --network r2plus1d_18 --frames 8 --n-fft 1024 --hop 256 --mels 64"
AVTS+=" --warmup 0.5 --hard-after 0.5"
# Temporal needs room for the highest speed at each place, and so has 668 steps. Its sound is heard
# at half of the rate of the files, so that no speed lacks high frequencies; its windows are as long
# in seconds.
export TEMPORAL="--toy --workers 1 --keep --epochs $EPOCHS --measure-every 0.25"
TEMPORAL+=" --n-fft 512 --hop 128 --mels 64"
seeds="11 12 13"
more_seeds_of_headline="14 15"
lists="headline papers others avts temporal"
list=

# refuse MESSAGE: end with the one line that says what is wrong and what would be right.
refuse() {
  echo "sweep.sh: error: $1" >&2
  exit 2
}

while [ $# -gt 0 ]; do
  case $1 in
    --headline | --papers)
      lists=${1#--}
      shift
      ;;
    --ablations) # Labels name what differs from the most common run, so the papers' are made too.
      lists="papers avts temporal"
      shift
      ;;
    --list)
      list=1
      shift
      ;;
    --seeds)
      [ $# -gt 1 ] || refuse '--seeds: name one or more of them, such as --seeds "11 12"'
      seeds=$2
      more_seeds_of_headline=
      shift 2
      ;;
    *)
      refuse "$1: must be --headline, --papers, --ablations, --list, or --seeds \"11 12\""
      ;;
  esac
done

# make_world WORLD SEED: render datasets/sweep/WORLD-SEED, unless it is there. Titles are more than
# the 64 places of a minibatch. `films` and `tv` differ in the strength of what betrays a title;
# `shows` has fewer and longer titles than `films`, of four files each. `time` is `tv` with an arrow
# of time, and with frames that can be played faster and backward. Each has 24,576 snippets.
# `unseen` has other films of the kind of `time`, from another seed, that no network is trained on.
make_world() {
  local world=$1 seed=$2
  local folder=datasets/sweep/$world-$seed
  local of_time="--artefacts 0.7 --snippets 96 --fps 10 --gop 1 --tiring 0.5"
  local flags
  case $world in
    films) flags="--artefacts 0.5 --titles 256 --snippets 96" ;;
    tv) flags="--artefacts 0.7 --titles 256 --snippets 96" ;;
    shows) flags="--artefacts 0.5 --titles 96 --snippets 64 --episodes 4" ;;
    time) flags="$of_time --titles 256" ;;
    unseen)
      flags="$of_time --titles 24 --clips 1 1"
      seed=$((seed + 100))
      ;;
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

# list_tests KIND WORLD UNSEEN: a line for each run that tests a network: what it is called after
# the network, the file with the weights, and the command. WORLD and UNSEEN are folders.
#   probe     linear probes of both tasks
#   curve     the same, also of the weights of each epoch
#   tune      both tasks fine-tuned, with all labelled clips and with 5 of each class
#   retrieve  probes, and retrieval of clips of the same action
#   papers    the same, and what needs a network of sight and one of sound: clips of unseen films
#             that are found again when they are distorted, and synchronisation on these films
list_tests() {
  local kind=$1 world=$2 unseen=$3
  local task epoch tune probe
  for task in action sound; do
    tune="finetune.py --task toy-$task --data $world/$task"
    probe="$tune --probe --split all --shots 1 2 5"
    if [ "$kind" = tune ]; then
      echo "$task-tuned checkpoint.pt $tune"
      echo "$task-tuned5 checkpoint.pt $tune --shots 5"
    else
      echo "$task checkpoint.pt $probe"
    fi
    if [ "$kind" = curve ]; then
      for ((epoch = 1; epoch < EPOCHS; epoch++)); do
        echo "epoch$epoch-$task epoch$epoch.pt $probe"
      done
    fi
  done
  local retrieve="retrieve --task toy-action --split all --data $world/action"
  if [ "$kind" = retrieve ] || [ "$kind" = papers ]; then
    echo "retrieval checkpoint.pt -m lab.evaluate $retrieve"
  fi
  if [ "$kind" = papers ]; then
    echo "fingerprint checkpoint.pt -m lab.evaluate fingerprint --data $unseen/films"
    echo "sync checkpoint.pt -m lab.evaluate sync --data $unseen/films"
  fi
}

# width_of WORLD: the width of the networks. On `time`, where three papers are compared, it is that
# of --toy; elsewhere half of it, with which a run takes half of the time.
width_of() {
  case $1 in
    time) echo 16 ;;
    *) echo 8 ;;
  esac
}

# script_of NETWORK: the script that pretrains it, and the settings of all of its kind.
script_of() {
  case $1 in
    avts*) echo "-m papers.avts $AVTS" ;;
    temporal*) echo "-m papers.temporal $TEMPORAL" ;;
    *) echo "pretrain.py $SETTINGS" ;;
  esac
}

# do_job SEED WORLD NETWORK KIND FLAGS...: pretrain a network and test it. A run with a row is not
# made again; but a test needs the weights, so a pretraining may be. Fails if a run did.
do_job() {
  trap 'exit 255' INT # Then xargs begins no other job.
  local seed=$1 world=$2 network=$3 kind=$4
  shift 4
  local name=$world-$seed-$network
  local folder=datasets/sweep/$world-$seed
  local unseen=datasets/sweep/unseen-$seed
  local failed=0
  local width test weights command flags
  width=$(width_of "$world")
  pretrain() {
    [ "$network" = untrained ] && return
    # Two jobs may need the same weights at the same time.
    (
      flock 9
      [ -e "runs/sweep/$name/result.json" ] && has_row "$name" && exit
      make_world "$world" "$seed"
      settings="--data $folder/films --seed $seed --width $width"
      # shellcheck disable=SC2046,SC2086  # A word of them is a flag.
      make_run "$name" python $(script_of "$network") $settings "$@"
    ) 9> "runs/sweep/$name.lock"
  }
  has_row "$name" || pretrain "$@" || return 1
  while read -r test weights command; do
    has_row "$name-$test" && continue
    make_world "$world" "$seed"
    [ "$kind" != papers ] || make_world unseen "$seed"
    pretrain "$@" || return 1
    flags="--ckpt runs/sweep/$name/$weights"
    [ "$network" != untrained ] || flags="--width $width"
    # shellcheck disable=SC2086  # A word of $command or $flags is a word of the command.
    make_run "$name-$test" python $command --workers 1 --seed "$seed" $flags || failed=1
  done < <(list_tests "$kind" "$folder" "$unseen")
  return $failed
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

# list_papers SEED: AVTS with its curriculum and Temporal with all tasks, beside k = 1, k = 16 and
# i.i.d., on a world for all three papers.
list_papers() {
  echo "$1 time k1 papers --k 1"
  echo "$1 time k16 papers --k 16"
  echo "$1 time iid papers --sampling iid"
  echo "$1 time untrained retrieve"
  echo "$1 time avts papers"
  echo "$1 time temporal papers"
}

# list_avts SEED: easy negatives alone, hard ones alone, both from the start, and overlapping
# snippets in place of hard negatives.
list_avts() {
  echo "$1 time avts-easy papers --hard-share 0"
  echo "$1 time avts-hard papers --hard-share 1 --hard-after 0"
  echo "$1 time avts-mixed papers --hard-after 0"
  echo "$1 time avts-superhard papers --superhard"
}

# list_temporal SEED: the contrast alone, one task beside it, and all tasks without mined pairs.
list_temporal() {
  local task
  echo "$1 time temporal-none papers --tasks none"
  for task in speed direction order; do
    echo "$1 time temporal-$task papers --tasks $task"
  done
  echo "$1 time temporal-unmined papers --bank 0"
}

# Three seeds make a verdict: each list gets them before the next one begins.
list_jobs() {
  local list seed
  for list in $lists; do
    for seed in $seeds; do
      "list_$list" "$seed"
    done
  done
  if [[ $lists == *headline* ]]; then
    for seed in $more_seeds_of_headline; do
      list_headline "$seed"
    done
  fi
}

if [ "$list" ]; then
  list_jobs
  exit
fi
mkdir -p runs/sweep datasets/sweep
export -f make_world has_row make_run list_tests width_of script_of do_job
status=0
list_jobs | xargs -P "$cores" -I{} bash -c "do_job {}" || status=1
python -m lab.findings "$ROWS" > lab/findings.md.part
mv lab/findings.md.part lab/findings.md
exit $status
