"""What the sibling papers measure beside fine-tuning, on the features of a frozen network.

    python -m lab.evaluate svm --task toy-sound --ckpt runs/toy-k16/checkpoint.pt
    python -m lab.evaluate svm --task esc50 --ckpt FILE        5 folds, 10 sub-clips of 2 s
    python -m lab.evaluate svm --task dcase2014 --ckpt FILE    60 sub-clips of 2 s
    python -m lab.evaluate svm --task dcase2014                an untrained network
    python -m lab.evaluate retrieve --task ucf101 --ckpt FILE       also hmdb51, esc50, the toy's
    python -m lab.evaluate retrieve --task toy-action --split all --ckpt FILE
    python -m lab.evaluate fingerprint --data FOLDER --ckpt FILE    lab/fingerprint.py says how
    python -m lab.evaluate sync --data FOLDER --ckpt FILE           lab/sync.py says how

`svm` is how AVTS (Korbar, Tran and Torresani, 2018) tests its audio network, as we remember it and
have not verified: a one-vs-all linear SVM on features of equally spaced sub-clips of each file,
whose scores are averaged over the file, with C by cross-validation over the training files. Our
choices are the features (the last map, averaged, then standardised by the training files), the
squared hinge, free biases, the grid of C, and the parts of the cross-validation. There is public
code that reports the C which does best on the test files. We do not: no label of a test file is
looked at before C is chosen and the SVM is fitted, once.

`retrieve` is named in the abstract of the Temporal paper (Jenni, Black and Collomosse, 2023), and
its details are not known to us: each test file of a split queries the training files, and R@K is
the share of the queries that find a file of their class among the K most similar ones. Our choices
are the features (the last map, averaged, as for `finetune.py --probe`, then averaged over the
views with which fine-tuning tests a file: 10 clips, of a video in 3 crops), cosine similarity, and
that a tie counts against the network.

A run is a folder: last.pt (the splits that are done), result.json, and of fingerprint a picture.
The same command resumes after the last of these splits, and computes the features again.

V views of a file, its sub-clips or their crops; N files; D features; C the constant of an SVM.
"""

import argparse
import itertools
import math
from functools import partial

import torch
from torch import nn
from tqdm import tqdm

import finetune
from data import AudioFrontEnd, VideoFrontEnd
from finetune import (
    MAY_CHANGE,
    PAPER,
    TOO_LARGE,
    TOY,
    Source,
    check_length,
    embed,
    fit_linear,
    make_set,
    measure_sound,
    name_of_weights,
    read_lists,
    repeat_exactly,
    set_sizes,
    unique_items,
    views_of,
)
from harness.errors import add_command, make_parser, one_line_errors
from harness.flags import check_rules, names_of_flags
from harness.run import Processes, Run
from lab.fingerprint import add_fingerprint_flags, run_fingerprint
from lab.nearest import cosine_similarity, rank_of_match
from lab.sync import add_sync_flags, run_sync
from media.collection import collection_name
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
    add_source_flags(add)
    add("--clips", type=int, help="sub-clips of a file: 10 of ESC-50, 60 of DCASE2014; toy: 5")
    add("--seconds", type=float, help="of a sub-clip: 2; toy: 1.6")
    add_run_flags(add)


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


def svm_of_split(features, split, sets, device):
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


def finish_svm(args, source, splits, sets):
    """What result.json has of the splits, and the lines to print."""
    mean = sum(found["accuracy"] for found in splits.values()) / len(splits)
    lines = [line_of(args, source, split, sets, found) for split, found in splits.items()]
    if len(splits) > 1:
        lines.append(f"{args.task}: {100 * mean:.1f} %, the mean of {len(splits)} splits")

    def of_split(name):
        return {split: found[name] for split, found in splits.items()}

    result = {
        "accuracy": mean,
        "accuracy_of_split": of_split("accuracy"),
        "C_of_split": of_split("C"),
        "accuracy_in_validation_of_split": of_split("accuracy_in_validation"),
    }
    return result, lines


def run_svm(args):
    task = TASKS[args.task]
    source = Source(args, task)
    args.width = source.width
    check_svm_args(args, source.front_end)
    fmt = format_of(args, source, task)
    sets = read_sets(args, task, fmt, range(1, task["splits"] + 1))
    settings = {**vars(args), "grid": GRID}
    run_splits(args, source, fmt, sets, settings, svm_of_split, report_svm, finish_svm)


# -------------------------------------------------------------------------------------------------
# retrieve: the files of a class, found by one of them
#
# Tasks, their sizes and their views are those of finetune.py.
# -------------------------------------------------------------------------------------------------

KS = (1, 5, 10, 20, 50)  # K of R@K


def add_retrieve_flags(parser):
    add = parser.add_argument
    add("--task", required=True, choices=finetune.TASKS, help="as in finetune.py")
    add_source_flags(add)
    splits = "1, or all: the mean of 3 splits or 5 folds (our choice: 1)"
    add("--split", default="1", help=splits)
    add("--frames", type=int, help="of a clip, 32; frames / fps is the length of a sound")
    add("--fps", type=float, help="10")
    add("--crop", type=int, help="default the checkpoint's own")
    short_side = "shorter side, 190 pixels; default in proportion to --crop"
    add("--short-side", type=int, help=short_side)
    clips = "10 of a file, each of a video in 3 crops, as fine-tuning tests it; the toy's 2"
    add("--clips", type=int, help=clips)
    network = "the untrained network of videos, as models.py names it; default R(2+1)D-18"
    add("--network", choices=("r2plus1d_18", "mc3_18"), help=network)
    add_run_flags(add)


def check_retrieve_args(args, task):
    """Raise BadInput for what can be told from the flags and the checkpoint."""
    splits = [str(split) for split in range(1, task["splits"] + 1)]
    sees = task["layout"] not in SOUNDS
    rules = [
        ("split", args.split in ["all", *splits], f"1 to {task['splits']}, or all"),
        ("frames", args.frames >= 1, "1 or more"),
        ("fps", args.fps >= 0.1, "0.1 or more"),
        ("crop", args.crop >= 1, "1 or more"),
        ("short_side", args.crop <= args.short_side, f"--crop {args.crop} or more"),
        ("clips", args.clips >= 1, "1 or more"),
        ("width", args.width >= 8 and args.width % 8 == 0, "a multiple of 8"),
        ("network", args.network is None or args.ckpt is None, "left out: --ckpt names its own"),
        ("network", args.network is None or sees, "left out: it sees no sound"),
        ("seed", args.seed >= 0, "0 or more"),
        ("workers", args.workers >= 0, "0 or more"),
    ]
    check_rules(args, rules)


def recall_of_chance(gallery_labels, labels, K):
    """R@K of a gallery in random order: the mean over queries of 1 - P(no match among K)."""
    N = len(gallery_labels)
    found = 0.0
    for label in labels:
        others = N - gallery_labels.count(label)
        found += 1 - math.comb(others, K) / math.comb(N, K)
    return found / len(labels)


def retrieval_of_split(features, split, sets, device):
    """Let the test files of a split query its training files: {K: R@K}, and that of chance."""
    train, test, _ = sets[split]

    def mean_features(files):
        return torch.stack([features[path].mean(0) for path, _ in files.items]).to(device)

    similarity = cosine_similarity(mean_features(test), mean_features(train))  # (Q, N)
    labels = [label for _, label in test.items]
    gallery_labels = [label for _, label in train.items]
    is_match = torch.tensor(labels)[:, None] == torch.tensor(gallery_labels)[None, :]
    ranks = rank_of_match(similarity, is_match.to(device))
    ks = ks_of(sets)
    return {
        "recall": {K: (ranks <= K).double().mean().item() for K in ks},
        "chance": {K: recall_of_chance(gallery_labels, labels, K) for K in ks},
    }


def ks_of(sets):
    """Those of KS for which every split has enough files to train on."""
    smallest = min(len(train) for train, _, _ in sets.values())
    return [K for K in KS if K <= smallest]


def report_retrieve(args, source, sets, run, processes):
    """Print what is done, before it begins."""
    report = processes.report
    *_, names = next(iter(sets.values()))
    number = len(unique_items(sets))
    report(f"{args.task}: {len(names)} classes, {number} {views_of(args, source)}")
    report(f"weights: {source.describe()}; frozen")
    report("recipe: test files query training files; cosine similarity of the mean of the views")
    too_many = [K for K in KS if K not in ks_of(sets)]
    for K in too_many:
        report(f"skipped: R@{K}, since a split has fewer than {K} files to train on")
    report(f"run: {run.out}, on {processes.world_size} x {processes.device.type}")


def recalls_in_words(recall):
    """{K: share} -> "R@1 25.0 %, R@5 60.5 %"."""
    return ", ".join(f"R@{K} {100 * share:.1f} %" for K, share in recall.items())


def finish_retrieve(args, source, splits, sets):
    """What result.json has of the splits, and the lines to print."""
    lines = []
    for split, found in splits.items():
        train, test, _ = sets[split]
        files = f"{len(test)} {views_of(args, source)} among {len(train)}"
        lines.append(f"{args.task} split {split}: {recalls_in_words(found['recall'])}; {files}")

    def mean_of(name):
        ks = ks_of(sets)
        return {K: sum(found[name][K] for found in splits.values()) / len(splits) for K in ks}

    recall, chance = mean_of("recall"), mean_of("chance")
    if len(splits) > 1:
        mean = f"the mean of {len(splits)} splits"
        lines.append(f"{args.task}: {recalls_in_words(recall)}, {mean}")
    lines.append(f"{args.task} in random order: {recalls_in_words(chance)}")
    result = {
        "recall": recall,
        "recall_of_split": {split: found["recall"] for split, found in splits.items()},
        "chance": chance,
        "gallery_of_split": {split: len(sets[split][0]) for split in splits},
    }
    return result, lines


def run_retrieve(args):
    task = finetune.TASKS[args.task]
    source = Source(args, task)
    args.width = source.width
    args.scale = None  # `set_sizes` fills in the scale of training, too, and nothing is trained.
    set_sizes(args, task, source.front_end)
    check_retrieve_args(args, task)
    sound = {name: source.front_end[name] for name in task["sound"]}
    fmt = Format(args.frames, args.fps, args.short_side, args.crop, **sound)
    check_length(task, fmt)
    splits = [args.split]
    if args.split == "all":
        splits = range(1, task["splits"] + 1)
    sets = read_sets(args, task, fmt, map(int, splits))
    settings = dict(vars(args))
    run_splits(
        args, source, fmt, sets, settings, retrieval_of_split, report_retrieve, finish_retrieve
    )


# -------------------------------------------------------------------------------------------------
# What both share: flags, files, the frozen network, and the run
# -------------------------------------------------------------------------------------------------


def add_source_flags(add):
    ckpt = "written by pretrain.py or one of papers/; default: an untrained network"
    add("--ckpt", metavar="FILE", help=ckpt)
    add("--data", metavar="DIR", help="the set as its authors publish it; default in datasets/")


def add_run_flags(add):
    width = "of an untrained network: 64, toy 16; default otherwise the checkpoint's"
    add("--width", type=int, help=width)
    precision = "of the network on a GPU; on a CPU it has fp32 (our choice)"
    add("--precision", choices=("bf16", "fp32"), default="bf16", help=precision)
    add("--out", metavar="DIR", help="default runs/COMMAND-TASK-NAME, as finetune.py does")
    add("--seed", type=int, default=0, help="of an untrained network")
    add("--workers", type=int, default=2, help="processes that read, for each process")


def read_sets(args, task, fmt, splits):
    """{split: (training set, test set, class names)} of these splits of a task."""
    sets = {}
    for split in splits:
        train, test, names = read_lists(args.data, task["layout"], split)
        sets[split] = (make_set(train, fmt, args, task), make_set(test, fmt, args, task), names)
    return sets


def frozen_network(args, source, fmt, files, device):
    """The network with the weights of `source`, and the front-end that it is used to."""
    train, *_ = files
    state = source.front_end
    if source.backbone == "video":
        front_end = VideoFrontEnd(mean=state["video_mean"], std=state["video_std"])
    else:
        front_end = AudioFrontEnd(fmt, mean=state["log_mel_mean"], std=state["log_mel_std"])
    if source.standardise:
        measure_sound(front_end, train, args.seed)
    torch.manual_seed(args.seed)
    net = source.make_network()
    if source.weights:
        net.load_state_dict(source.weights)
    return net.to(device), front_end.to(device)


def run_splits(args, source, fmt, sets, settings, of_split, report, finish):
    """Evaluate each split that is not done yet, and write result.json.

    settings  what makes this another run
    of_split  (features, split, sets, device) -> the result of a split, on rank 0
    report    (args, source, sets, run, processes): prints what is done, before it begins
    finish    (args, source, results, sets) -> what result.json has of them, and the lines to print
    """
    # Processes, and the folder of the run.
    processes = Processes(args.precision)
    task = tasks_of(args.command)[args.task]
    settings |= {"weights": source.describe(), "processes": processes.world_size}
    older = {"digest": source.digest()}  # What the settings of an older run lack.
    settings |= older
    repeat_exactly()
    processes.start()
    run = Run(
        args.out, processes, settings, MAY_CHANGE, lambda _: older, file="last.pt", foreign="*"
    )
    state = {"splits": {}} | (run.checkpoint or {})
    if state.get("summary"):
        processes.report("\n".join([f"{args.out} was finished before", *state["summary"]]))
        processes.end()
        return
    run.begin()
    run.save(state)  # From here on the folder is this run's.
    report(args, source, sets, run, processes)

    features = None
    all_files = make_set(unique_items(sets), fmt, args, task)
    for split in sets:
        if split in state["splits"]:
            continue
        # Features {path: (V, D)}. From scratch, those of sounds depend on the files to train on.
        if features is None or source.standardise:
            net, front_end = frozen_network(args, source, fmt, sets[split], processes.device)
            features = embed(net, front_end, all_files, processes, args.workers)
        # Answers.
        work = partial(of_split, features, split, sets, processes.device)
        state["splits"][split] = processes.on_rank_0(work)
        run.save(state)

    if processes.rank == 0:
        result, lines = finish(args, source, state["splits"], sets)
        common = {
            "evaluation": args.command,
            "task": args.task,
            "tests_of_split": {split: len(sets[split][1]) for split in state["splits"]},
            "summary": lines,
            "weights": source.describe(),
            "pretraining_epoch": source.epoch,
            "pretraining_step": source.step,
            "settings": run.settings,
        }
        run.finish({**common, **result})
        run.save({**state, "summary": lines})
        run.checkpoint_before.unlink(missing_ok=True)
        processes.report("\n".join(lines))
    processes.end()


# -------------------------------------------------------------------------------------------------
# Command line
# -------------------------------------------------------------------------------------------------

COMMANDS = {
    "svm": (run_svm, add_svm_flags, "a linear SVM on frozen features of sounds, as AVTS has it"),
    "retrieve": (
        run_retrieve,
        add_retrieve_flags,
        "files of the same class, by the similarity of frozen features",
    ),
    "fingerprint": (
        run_fingerprint,
        add_fingerprint_flags,
        "clips that are found again when they are distorted",
    ),
    "sync": (run_sync, add_sync_flags, "whether the sound of a snippet is most like its video"),
}


def tasks_of(command):
    if command == "svm":
        return TASKS
    return finetune.TASKS


def parse_args(argv=None):
    parser = make_parser(__doc__, "python -m lab.evaluate")
    commands = parser.add_subparsers(dest="command", required=True)
    parser_of = {}
    for name, (_, add_flags, words) in COMMANDS.items():
        parser_of[name] = add_command(commands, name, words)
        add_flags(parser_of[name])
    known, _ = parser.parse_known_args(argv)
    command = parser_of[known.command]
    has_task = "task" in vars(known)
    if has_task:
        flags = tasks_of(known.command)[known.task]["flags"]
        command.set_defaults(**{name: flags[name] for name in flags if name in vars(known)})
    args = parser.parse_args(argv)
    if args.out is None:
        if has_task:
            subject, elsewhere = args.task, ("command", "task", "ckpt")
        else:
            subject, elsewhere = collection_name(args.data), ("command", "data", "ckpt")
        name = f"{args.command}-{subject}-{name_of_weights(args.ckpt)}"
        name += names_of_flags(args, command, (*elsewhere, *MAY_CHANGE))
        args.out = f"runs/{name}"
    return args


if __name__ == "__main__":
    resumes = "the same command resumes after the last split that was done, if there are splits"
    with one_line_errors("python -m lab.evaluate", interrupted=resumes, hints=TOO_LARGE):
        args = parse_args()
        work, *_ = COMMANDS[args.command]
        work(args)
