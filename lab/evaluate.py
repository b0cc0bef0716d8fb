"""What the sibling papers measure beside fine-tuning, on the features of a frozen network.

    python -m lab.evaluate svm --task toy-sound --ckpt runs/toy-k16/checkpoint.pt
    python -m lab.evaluate svm --task esc50 --ckpt FILE        5 folds, 10 sub-clips of 2 s
    python -m lab.evaluate svm --task dcase2014 --ckpt FILE    60 sub-clips of 2 s
    python -m lab.evaluate svm --task dcase2014                an untrained network

`svm` is how AVTS (Korbar, Tran and Torresani, 2018) tests its audio network, as we remember it and
have not verified: a one-vs-all linear SVM on features of equally spaced sub-clips of each file,
whose scores are averaged over the file, with C by cross-validation over the training files. Our
choice are the features (the last map, averaged, then standardised by the training files), the
squared hinge, free biases, the grid of C, and the parts of the cross-validation. There is public
code that reports the C which does best on the test files. We do not: no label of a test file is
looked at before C is chosen and the SVM is fitted, once.

A run is a folder: last.pt (the splits that are done), result.json. The same command resumes after
the last of these splits, and computes the features again.

V sub-clips of a file; N files; D features; C the constant of an SVM.
"""

import argparse
import itertools
import math
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

import finetune
from data import AudioFrontEnd
from finetune import (
    MAY_CHANGE,
    PAPER,
    TOY,
    Source,
    embed,
    fit_linear,
    make_set,
    measure_sound,
    name_of_weights,
    read_lists,
    repeat_exactly,
    unique_items,
    views_of,
)
from harness.errors import add_command, make_parser, one_line_errors
from harness.flags import check_rules, names_of_flags
from harness.run import Processes, Run
from media.format import Format
from media.labels import SOUNDS

# -------------------------------------------------------------------------------------------------
# svm: the sound protocol of AVTS
#
# Tasks are as in finetune.py: a row of defaults, which flags override.
# -------------------------------------------------------------------------------------------------

TASKS = {
    "esc50": {
        **PAPER,
        "layout": "esc50",
        "splits": 5,
        "flags": {"data": "datasets/esc50", "clips": 10, "seconds": 2.0},
    },
    "dcase2014": {
        **PAPER,
        "layout": "dcase2014",
        "splits": 1,
        "flags": {"data": "datasets/dcase2014", "clips": 60, "seconds": 2.0},
    },
    "toy-sound": {
        **TOY,
        "layout": "esc50",
        "splits": 5,
        "flags": {"data": "datasets/toy/sound", "clips": 5, "seconds": 1.6},
    },
}

GRID = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]  # of C, ascending (our choice)
PARTS = 3  # of the training files, for cross-validation, where a task has one split


def add_svm_flags(parser):
    add = parser.add_argument
    add(
        "--task",
        required=True,
        type=task_of_sounds,
        metavar="{" + ",".join(TASKS) + "}",
        help="all splits of it; toy-sound is our choice",
    )
    ckpt = "written by pretrain.py or one of papers/; default: an untrained network"
    add("--ckpt", metavar="FILE", help=ckpt)
    add("--data", metavar="DIR", help="the set as its authors publish it; default in datasets/")
    add("--clips", type=int, help="sub-clips of a file: 10 of ESC-50, 60 of DCASE2014; toy: 5")
    add("--seconds", type=float, help="of a sub-clip: 2; toy: 1.6")
    width = "of an untrained network: 64, toy 16; default otherwise the checkpoint's"
    add("--width", type=int, help=width)
    precision = "of the network on a GPU; on a CPU it has fp32 (our choice)"
    add("--precision", choices=("bf16", "fp32"), default="bf16", help=precision)
    add("--out", metavar="DIR", help="default runs/svm-TASK-NAME, as finetune.py names it")
    add("--seed", type=int, default=0, help="of an untrained network")
    add("--workers", type=int, default=2, help="processes that read, for each process")


def task_of_sounds(name):
    """The name of a task, for argparse. Raises an error that says what else there is."""
    if name in TASKS:
        return name
    tasks = f"svm has the tasks {', '.join(TASKS)}"
    if name in finetune.TASKS and finetune.TASKS[name]["layout"] not in SOUNDS:
        command = f"python finetune.py --task {name} --probe"
        tasks = f"its files are videos, and {tasks}; for frozen features of videos, use {command}"
    raise argparse.ArgumentTypeError(f"{name}: {tasks}")


def check_svm_args(args, front_end):
    """Raise BadInput for what can be told from the flags and the checkpoint."""
    window = front_end["n_fft"] / front_end["rate"]
    rules = [
        ("clips", args.clips >= 1, "1 or more"),
        ("seconds", window <= args.seconds < math.inf, f"{window:.3g} (an FFT window) or more"),
        ("width", args.width >= 8 and args.width % 8 == 0, "a multiple of 8"),
        ("seed", args.seed >= 0, "0 or more"),
        ("workers", args.workers >= 0, "0 or more"),
    ]
    check_rules(args, rules)


def format_of(args, source, task):
    """Of a Format, a sound needs its length, and the settings that the network is used to."""
    sound = {name: source.front_end[name] for name in task["sound"]}
    return Format(frames=1, fps=1 / args.seconds, **sound)


def read_sets(args, task, fmt):
    """{split: (training set, test set, class names)} of all splits of a task."""
    sets = {}
    for split in range(1, task["splits"] + 1):
        train, test, names = read_lists(args.data, task["layout"], split)
        sets[split] = (make_set(train, fmt, args, task), make_set(test, fmt, args, task), names)
    return sets


def parts_of(split, sets):
    """The training files of a split in parts for cross-validation: a list of [(path, label)].

    Of several splits the parts are the published folds, but for the one to test on. Otherwise
    they are thirds of each class, in the order of names, so that neighbours stay together: those
    may be of one recording (our choice).
    """
    train, _, names = sets[split]
    if len(sets) > 1:
        parts = [test.items for fold, (_, test, _) in sets.items() if fold != split]
    else:
        parts = [[] for _ in range(PARTS)]
        for label in range(len(names)):
            files = [item for item in train.items if item[1] == label]
            for i, item in enumerate(files):
                parts[PARTS * i // len(files)].append(item)
    assert sorted(itertools.chain(*parts)) == sorted(train.items), "parts are not the training set"
    return parts


def frozen_network(args, source, fmt, files, device):
    """The audio network with the weights of `source`, and the front-end that it is used to."""
    train, *_ = files
    state = source.front_end
    front_end = AudioFrontEnd(fmt, mean=state["log_mel_mean"], std=state["log_mel_std"])
    if source.standardise:
        measure_sound(front_end, train, args.seed)
    torch.manual_seed(args.seed)
    net = source.make_network()
    if source.weights:
        net.load_state_dict(source.weights)
    return net.to(device), front_end.to(device)


def squared_hinge(scores, labels):
    """The mean over views of the sum over classes of max(0, 1 - y * score)^2; y is 1 or -1.

    scores (N * V, classes); labels (N * V,)
    """
    y = 2 * nn.functional.one_hot(labels, scores.shape[1]) - 1
    return (1 - y * scores).clamp(min=0).square().sum(1).mean()


def fit_svm(features, items, C, classes, device):
    """One-vs-all linear SVMs of these files, [(path, label)]: a layer from D features to scores.

    Each class minimises |w|^2 / 2 + C * (the sum over sub-clips of the squared hinge), on
    standardised features. Since classes share nothing, one L-BFGS fits all of them.
    """
    path, _ = items[0]
    views, width = features[path].shape
    svm = nn.Linear(width, classes, device=device)
    fit_linear(svm, features, items, squared_hinge, size=C * len(items) * views)
    return svm


@torch.no_grad()
def count_right(svm, features, items):
    """How many of these files get their label: the class of the highest score, averaged over V."""
    right = 0
    for path, label in items:
        scores = svm(features[path].to(svm.weight.device)).mean(0)  # (V, classes) -> (classes,)
        right += int(scores.argmax() == label)
    return right


def cross_validate(features, parts, classes, device):
    """{C: training files that get their label}, of each part from an SVM of the other parts."""
    right = dict.fromkeys(GRID, 0)
    for i, C in tqdm(list(itertools.product(range(len(parts)), GRID)), "C", mininterval=1):
        others = list(itertools.chain(*parts[:i], *parts[i + 1 :]))
        svm = fit_svm(features, others, C, classes, device)
        right[C] += count_right(svm, features, parts[i])
    return right


def best_c(right):
    """The C with the most right answers, the smallest of equals."""
    return max(right, key=lambda C: (right[C], -C))


def evaluate_split(features, split, sets, device):
    """Choose C, fit the SVM to all training files, and look at the test files, once."""
    train, test, names = sets[split]
    right = cross_validate(features, parts_of(split, sets), len(names), device)
    C = best_c(right)
    svm = fit_svm(features, train.items, C, len(names), device)
    return {
        "C": C,
        "accuracy": count_right(svm, features, test.items) / len(test),
        "accuracy_in_validation": {str(C): count / len(train) for C, count in right.items()},
    }


def report_svm(args, source, sets, run, processes):
    """Print what is done, before it begins."""
    report = processes.report
    *_, names = sets[1]
    number = len(unique_items(sets))
    spaced = f"of {args.seconds:g} s, equally spaced"
    report(f"{args.task}: {len(names)} classes, {number} {views_of(args, source)} {spaced}")
    report(f"weights: {source.describe()}; frozen")
    parts = "the other folds" if len(sets) > 1 else "thirds of each class"
    grid = f"C of {GRID[0]:g} to {GRID[-1]:g}, by tens"
    report(f"recipe: one-vs-all linear SVM; {grid}, by cross-validation of {parts} to train on")
    report(f"run: {run.out}, on {processes.world_size} x {processes.device.type}")


def line_of(args, source, split, sets, found):
    """The result of a split, in words."""
    _, test, _ = sets[split]
    percent = f"{100 * found['accuracy']:.1f} % top-1"
    tested = f"{len(test)} {views_of(args, source)}"
    return f"{args.task} split {split}: {percent} of {tested}, C {found['C']:g}"


def finish_svm(args, source, state, sets, run):
    """Write result.json, and return the lines to print."""
    splits = state["splits"]
    mean = sum(found["accuracy"] for found in splits.values()) / len(splits)
    lines = [line_of(args, source, split, sets, found) for split, found in splits.items()]
    if len(splits) > 1:
        lines.append(f"{args.task}: {100 * mean:.1f} %, the mean of {len(splits)} splits")

    def of_split(name):
        return {split: found[name] for split, found in splits.items()}

    run.finish(
        {
            "evaluation": "svm",
            "task": args.task,
            "accuracy": mean,
            "accuracy_of_split": of_split("accuracy"),
            "C_of_split": of_split("C"),
            "accuracy_in_validation_of_split": of_split("accuracy_in_validation"),
            "tests_of_split": {split: len(sets[split][1]) for split in splits},
            "summary": lines,
            "weights": source.describe(),
            "pretraining_epoch": source.epoch,
            "pretraining_step": source.step,
            "settings": run.settings,
        }
    )
    run.save({**state, "summary": lines})
    return lines


def run_svm(args):
    # Arguments. Every process checks all of them before any work.
    processes = Processes(args.precision)
    task = TASKS[args.task]
    source = Source(args, task)
    args.width = source.width
    check_svm_args(args, source.front_end)
    fmt = format_of(args, source, task)
    sets = read_sets(args, task, fmt)
    settings = {**vars(args), "grid": GRID, "weights": source.describe()}
    settings["processes"] = processes.world_size

    # Processes, and the folder of the run.
    repeat_exactly()
    processes.start()
    run = Run(args.out, processes, settings, MAY_CHANGE, file="last.pt", foreign="*")
    state = {"splits": {}} | (run.checkpoint or {})
    if state.get("summary"):
        processes.report("\n".join([f"{args.out} was finished before", *state["summary"]]))
        processes.end()
        return
    run.begin()
    run.save(state)  # From here on the folder is this run's.
    report_svm(args, source, sets, run, processes)

    features = None
    all_files = make_set(unique_items(sets), fmt, args, task)
    for split in sets:
        if split in state["splits"]:
            continue
        # Features {path: (V, D)}. From scratch, they depend on the files to train on.
        if features is None or source.standardise:
            net, front_end = frozen_network(args, source, fmt, sets[split], processes.device)
            features = embed(net, front_end, all_files, processes, args.workers)
        # Answers.
        work = partial(evaluate_split, features, split, sets, processes.device)
        state["splits"][split] = processes.on_rank_0(work)
        run.save(state)

    if processes.rank == 0:
        processes.report("\n".join(finish_svm(args, source, state, sets, run)))
    processes.end()


# -------------------------------------------------------------------------------------------------
# Command line
# -------------------------------------------------------------------------------------------------

COMMANDS = {"svm": run_svm}


def parse_args(argv=None):
    parser = make_parser(__doc__, "python -m lab.evaluate")
    commands = parser.add_subparsers(dest="command", required=True)
    svm = add_command(commands, "svm", "a linear SVM on frozen features of sounds, as AVTS has it")
    add_svm_flags(svm)
    known, _ = parser.parse_known_args(argv)
    svm.set_defaults(**TASKS[known.task]["flags"])
    args = parser.parse_args(argv)
    if args.out is None:
        flags = names_of_flags(args, svm, ("command", "task", "ckpt", *MAY_CHANGE))
        args.out = f"runs/svm-{args.task}-{name_of_weights(args.ckpt)}{flags}"
    return args


if __name__ == "__main__":
    resumes = "the same command resumes after the last split that was done"
    with one_line_errors("python -m lab.evaluate", interrupted=resumes):
        args = parse_args()
        COMMANDS[args.command](args)
