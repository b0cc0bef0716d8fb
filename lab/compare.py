"""Finished runs compared: Figures 1 to 3, Tables 1 and 2, and our rows of Table 5.

    python -m lab.compare runs/*                         pictures, a table, findings.json
    python -m lab.compare lab/findings.json --out DIR    the same again, from their rows
    python -m lab.compare --add FILE.json runs/NAME      nothing but one more row in FILE.json
    python -m lab.compare --against FILE.json OTHER.json whether runs came out the same again

Runs that differ in nothing but their seed are one row of the table and one curve. Runs that
differ in any other argument are told apart by their labels. Each sweep of a collection is a
picture, COLLECTION-SWEEP.png; `sweeps` below lists them, and which figure each repeats. It is of
the seeds that all its labels have, since another seed may be another collection. Where
checkpoints inside runs (pretrain.py --keep) were tested, COLLECTION-learning.png shows how they
do. A RUN is the folder of a finished run of pretrain.py, of a file of papers/, of finetune.py or of
lab.evaluate, or a findings.json, which has a row for each run that was compared.
"""

# A row is what findings.json keeps of a run: `run` (the name of its folder), `seed` and
# `arguments`, and of newer runs `versions`. Of a pretraining it also keeps `curves` and `final`
# (harness/curves.py), of newer runs `done` (counts of what was trained on) and `training_seconds`,
# and if it is of a file of papers/, `paper` ("AVTS"). Of finetune.py it also keeps `task`,
# `pretraining` (the run that its weights are from, or None) and `accuracy` (from 0 to 1), and where
# there are any `pretraining_step` (the step of that run after which it had these weights) and
# `accuracy_of_shots` ({labelled files of each class: accuracy} of a probe). Of lab.evaluate it
# keeps the same, but `accuracies` ({task: accuracy}) in place of `accuracy`, and `untrained` (those
# of an untrained network) where the run had one beside it.
#
#     base      {argument: its most common value} of the runs of one paper on one collection, of
#               each argument in which they differ and which a label names only where it has
#               another value
#     label     what sets a run apart from the others on its collection: "k = 16, w = 32",
#               "k = 16, batch size = 128"; a base label names k, w, σ and τ only. That of a run of
#               a sibling paper begins with its name: "AVTS, hard share = 0.0", base label "AVTS"
#     groups    {label: {seed: row of a pretraining}} of one collection
#     test      a row of finetune.py or lab.evaluate, beside the label of the run that its weights
#               are from
#     inside    of a checkpoint that was written before its run ended: no result of that run
#     results   {task: {label, or "none" for no pretraining: {seed: accuracy from 0 to 1}}}
#
# Of two rows that are the same run, or the same label and seed, the first one counts.

import collections
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from harness.curves import (
    LINES,
    ROW,
    draw,
    draw_curve,
    draw_legend,
    looks_of,
    make_panels,
    was_measured,
)
from harness.errors import BadInput, make_parser, one_line_errors, printable
from harness.files import atomic_write, one_at_a_time
from loss import CHANCE, MEASURES
from media.collection import collection_name

MAIN = "Watching Too Much Television"  # The paper of pretrain.py, and of a row that names none.
SIGNS = {"w": "w", "jitter": "σ", "tau": "τ"}  # Arguments that a label names where they are set.
# Arguments that are never compared with the base: those that every label of pretrain.py names by
# itself, ...
NAMED = {"sampling", "k", *SIGNS}
# ... those that say which run it is, or stand for others, and those that change nothing trained.
NOT_COMPARED = {"data", "out", "seed", "toy", "workers", "max_bad", "measure_every"}
NOT_COMPARED |= {"processes", "compile", "save_minutes", "save_every", "keep"}
# The value of arguments in runs that were made before they existed.
BEFORE = {"sampling": "hierarchical", "title": "show", "precision": "bf16"}
# {paper: the title and the unit of its loss in a picture}.
LOSSES = {MAIN: ("training loss (Equation 1)", "nats")}
# A picture is crowded if it has more labels than these, or a label of more characters.
FEW_LABELS = 5
SHORT_LABEL = len("k = 16, epochs = 4")
BY_MACHINE = {"versions", "training_seconds"}  # What a run made again need not repeat.
RETRIEVED = ("1", "5")  # Those K of R@K that are compared.
# {what result.json of a synchronisation has: whose sounds a video is compared with}.
SYNCHRONISED = {
    "sync_same": "same title",
    "sync_same_shot": "same shot",
    "sync_same_scene": "another shot of the scene",
    "sync_other_scene": "another scene",
    "sync_other": "other titles",
}
UNTRAINED = "none"  # The label of a network that was not pretrained.
MARKER = 0.07  # Height of a marker, in inches.
MARKER_OF_LINE = dict(zip(LINES, "os^v"))  # What a kind of line is in a panel without lines.


# --------------------------------------------------------------------------------------------------
# From folders to rows
# --------------------------------------------------------------------------------------------------


def read_runs(paths):
    """Return a row for each run: `paths` are folders of finished runs, or findings.json files.

    What is skipped is printed. Raises BadInput for a file that is something else, and where no
    pretraining is left.
    """
    rows = {}
    for path in map(Path, paths):
        try:
            found = read_rows(path)
        except FileNotFoundError:
            print(f"{printable(path)}: no finished run, skipped")
            continue
        except NotCompared:
            print(f"{printable(path)}: a run of lab.evaluate without a row, skipped")
            continue
        for row in found:
            if row["run"] in rows:
                print(f"{printable(row['run'])}: given twice, the first one counts")
                continue
            rows[row["run"]] = row
    pretrained = {name for name, row in rows.items() if "final" in row}
    if not pretrained:
        given = " ".join(map(str, paths))
        raise BadInput(
            f"{given}: no finished run of pretrain.py or papers/ among them; name folders with a "
            "result.json"
        )
    for name, row in rows.items():
        pretraining = row.get("pretraining")
        if pretraining and pretraining not in pretrained:
            print(f"{printable(name)}: of {pretraining}, which is not among the runs")
    return [rows[name] for name in sorted(rows)]


class NotCompared(BadInput):
    """A run is of a kind that has no row."""


def read_rows(path, remedy="leave it out"):
    """Return the rows of one folder, or of one findings.json.

    Raises FileNotFoundError where no run is finished, NotCompared for an evaluation that has no
    row, and BadInput, with a remedy, for a file of something else.
    """
    try:
        if path.suffix != ".json":
            return [read_run(path)]
        rows = json.loads(path.read_text())
        if not all({"run", "seed", "arguments"} <= set(row) for row in rows):
            raise ValueError("a row lacks its run, seed or arguments")
        return rows
    except (FileNotFoundError, NotCompared):
        raise
    except NotADirectoryError as error:
        raise FileNotFoundError(path) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        writers = "pretrain.py, papers/, finetune.py, lab.evaluate or lab.compare"
        raise BadInput(f"{path}: not what {writers} writes ({error}); {remedy}") from error


def read_run(path):
    """Return the row of a run's folder, from its result.json."""
    result = json.loads((path / "result.json").read_text())
    if "evaluation" in result:
        result = evaluation_row(result, path)
    elif "accuracy" in result:
        result = downstream_row(result)
    name = Path(os.path.abspath(path)).name  # The folder "." has a name, too.
    return {"run": name, "seed": result["arguments"]["seed"], **result}


def downstream_row(result):
    """Of a result.json of finetune.py, what a row keeps."""
    arguments = result["settings"]
    shots = None
    if arguments.get("shots") and not arguments["probe"]:
        [shots] = arguments["shots"]  # A network is fine-tuned on one number of them.
    row = {"task": task_of(arguments, shots), **weights_of(result), "accuracy": result["accuracy"]}
    if arguments["probe"] and result.get("accuracy_of_shots"):
        row["accuracy_of_shots"] = result["accuracy_of_shots"]
    return {**row, **conditions_of(result)}


def weights_of(result):
    """Of a result.json of a test, what a row keeps of the weights that were tested."""
    weights = {"pretraining": None}
    if result["settings"]["ckpt"]:
        weights["pretraining"] = Path(result["settings"]["ckpt"]).resolve().parent.name
    if result.get("pretraining_step") is not None:
        weights["pretraining_step"] = result["pretraining_step"]
    return weights


def conditions_of(result):
    """Of a result.json of a test, what a row keeps of how it was made."""
    conditions = {"arguments": result["settings"]}
    if "versions" in result:
        conditions["versions"] = result["versions"]
    return conditions


def evaluation_row(result, path):
    """Of a result.json of lab.evaluate, what a row keeps. Raises NotCompared for any other kind."""
    arguments = result["settings"]
    untrained = {}
    if result["evaluation"] == "svm":
        task = f"{arguments['task']}, SVM"
        accuracies = {task: result["accuracy"]}
    elif result["evaluation"] == "retrieve":
        task = f"{arguments['task']}, retrieval, split {arguments['split']}"
        accuracies = {
            f"{arguments['task']}, R@{K}, split {arguments['split']}": recall
            for K, recall in result["recall"].items()
            if K in RETRIEVED
        }
    elif result["evaluation"] == "fingerprint":
        task = f"fingerprint of {collection_of(arguments['data'], arguments['seed'])}"
        accuracies = fingerprint_recalls(task, result["recall"]["checkpoint"])
        untrained = fingerprint_recalls(task, result["recall"]["untrained"])
    elif result["evaluation"] == "sync":
        task = f"synchronisation of {collection_of(arguments['data'], arguments['seed'])}"
        accuracies = {
            f"{task}, {words}": result[name]
            for name, words in SYNCHRONISED.items()
            if name in result
        }
    else:
        raise NotCompared(f"{path}: a run of lab.evaluate without a row; leave it out")
    row = {"task": task, **weights_of(result), "accuracies": accuracies}
    if untrained:
        row["untrained"] = untrained
    return {**row, **conditions_of(result)}


def fingerprint_recalls(task, recall_of):
    """{task: R@1} in the mean of the distortions: by sight, by sound, and by both."""
    return {f"{task}, R@1 mean, {part}": recall["mean"]["1"] for part, recall in recall_of.items()}


def task_of(arguments, shots=None):
    """Name what a run of finetune.py tests: "toy-action, probe, 1 shot, split all".

    shots  labelled files of each class; None for all that there are
    """
    words = [arguments["task"], "probe" if arguments["probe"] else "fine-tuned"]
    if shots is not None:
        words.append("1 shot" if shots == 1 else f"{shots} shots")
    return ", ".join([*words, f"split {arguments['split']}"])


def add_rows(file, paths):
    """Add the rows of finished runs to a findings.json, sorted by run; make it where it is missing.

    A run that has a row there keeps it. Several processes may add rows to one file at a time.
    Raises BadInput if a run is not finished, after the others are added.
    """
    file = Path(file)
    if file.suffix != ".json":
        raise BadInput(
            f"--add {file}: must be the name of a findings.json, to which rows are added"
        )
    found, unfinished = [], []
    for path in map(Path, paths):
        try:
            found += read_rows(path)
        except FileNotFoundError:
            unfinished.append(str(path))
    if found:
        merge_rows(file, found)
    if unfinished:
        names = " ".join(unfinished)
        raise BadInput(f"{names}: no finished run; name folders with a result.json")


def merge_rows(file, found):
    """Add those of these rows whose runs have none in the file, and report what was added."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(file.parent):
        there = read_rows(file, "name another file") if file.exists() else []
        rows = {row["run"]: row for row in there}
        for row in found:
            rows.setdefault(row["run"], row)
        added = len(rows) - len(there)
        if added > 0:
            write_rows(file, [rows[name] for name in sorted(rows)])
    print(f"{printable(file)}: {added} added, {len(rows)} in all")


def write_rows(path, rows):
    """Write a findings.json, with one row a line, whole or not at all."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    atomic_write(path, partial(Path.write_text, data=f"[\n{lines}\n]\n"))


def compare_again(file, paths):
    """Print which of these runs came out otherwise than those of the same names in a findings.json.

    Arguments and results are compared, to the last digit; the versions and the seconds of training
    are not. An older row lacks an argument that is newer, and agrees with one that was not given,
    and with any digest of the weights. Returns how many runs differ. Raises BadInput if no run has
    a namesake.
    """
    before = {row["run"]: row for row in read_rows(Path(file), "name another file")}
    again = [row for path in map(Path, paths) for row in read_rows(path) if row["run"] in before]
    if not again:
        raise BadInput(
            f"--against {file}: has none of these runs; name a file with runs made again"
        )
    differing = 0
    for row in again:
        first, second = comparable(before[row["run"]]), comparable(row)
        first.setdefault("argument digest", second.get("argument digest"))
        differ = [
            name for name in distinct([*first, *second]) if first.get(name) != second.get(name)
        ]
        if differ:
            differing += 1
            print(f"{printable(row['run'])}: differs in {', '.join(differ)}")
    print(f"{len(again)} runs made again, {differing} of them with another result")
    return differing


def comparable(row):
    """{what a run made again has to repeat: its value}, with a name for each argument."""
    kept = {name: value for name, value in row.items() if name not in BY_MACHINE}
    arguments = kept.pop("arguments", {})
    return kept | {f"argument {name}": value for name, value in arguments.items()}


# --------------------------------------------------------------------------------------------------
# From rows to groups
# --------------------------------------------------------------------------------------------------


def group(rows):
    """Sort rows of pretrainings into {collection: groups}, each with its labels in order."""
    groups_of = {}
    for collection, members in by_collection(rows).items():
        bases = bases_of(members)
        groups = {}
        for row in members:
            paper = paper_of(row)
            label = label_of(settings_of(row), bases[paper], paper)
            add_seed(groups.setdefault(label, {}), row)
        in_order = sorted(groups, key=lambda label: label_key(label, groups[label]))
        groups_of[collection] = {label: groups[label] for label in in_order}
    return groups_of


def by_collection(rows):
    """Sort rows of pretrainings into {collection: rows}.

    Toy worlds that differ in nothing but their seed count as one collection.
    """
    rows_of = {}
    for row in sorted(rows, key=lambda row: (paper_key(row), row["seed"])):
        rows_of.setdefault(collection_of(row["arguments"]["data"], row["seed"]), []).append(row)
    return rows_of


def collection_of(data, seed):
    """The collection that a run has its data from: the world of seed 2 is films-2, and it films."""
    return collection_name(data).removesuffix(f"-{seed}")


def paper_of(row):
    return row.get("paper", MAIN)


def settings_of(row):
    """The arguments of a run, with those that did not exist yet when it was made."""
    args = {**BEFORE, **row["arguments"]}
    if "share" not in args and "batch_size" in args:
        args["share"] = args["batch_size"] // args.get("processes", 1)
    return args


def sort_key(args):
    """Order by k, after the shuffled baseline; then the whole title, windows from the widest to
    the narrowest, and scenes; then by colour jitter and temperature.
    """
    # Three cases: the whole title, first; a window of w snippets, by -w; a scene, last.
    if args["w"] is None:
        window = (0, 0)
    elif args["w"] == "scene":
        window = (2, 0)
    else:
        window = (1, -args["w"])
    k = 0 if is_iid(args) else args["k"]
    return k, window, args["jitter"], args["tau"] or 0


def paper_key(row):
    """Order the runs of pretrain.py by `sort_key`, and those of sibling papers behind them."""
    paper = paper_of(row)
    if paper == MAIN:
        return 0, "", sort_key(settings_of(row))
    return 1, paper, ()


def label_key(label, seeds):
    """Order labels by `paper_key`. Of those it leaves equal, the base label is the shortest."""
    return paper_key(first_row(seeds)), len(label), label


def bases_of(rows):
    """Return {paper: the base of its runs} of rows of one collection."""
    rows_of = {}
    for row in rows:
        rows_of.setdefault(paper_of(row), []).append(row)
    return {paper: base_of(own) for paper, own in rows_of.items()}


def base_of(rows):
    """Return {argument: its most common value}, of the arguments in which these runs differ.

    All runs are of one paper: two papers mean different things by an argument of one name.

    Of values that are equally common, the base has that of the run with the shortest name, since
    a run is named after its flags; of equally short names, the first in alphabetical order.
    """
    rows = sorted(rows, key=lambda row: (len(row["run"]), row["run"]))
    settings = [settings_of(row) for row in rows]
    base = {}
    for name in argument_names(rows):
        counts = collections.Counter(args[name] for args in settings if name in args)
        if len(counts) > 1:
            base[name], _ = counts.most_common(1)[0]
    return base


def argument_names(rows):
    """The arguments that may differ from the base, in the order in which their script has them.

    That is the order of the newest run, the one with the most arguments.
    """
    newest_first = sorted(rows, key=lambda row: -len(row["arguments"]))
    names = distinct(name for row in newest_first for name in row["arguments"])
    left_out = set(NOT_COMPARED)
    if paper_of(rows[0]) == MAIN:
        left_out |= NAMED
    return [name for name in names if name not in left_out]


def label_of(args, base=None, paper=MAIN):
    """Name k, or the shuffled baseline; w, σ and τ where they are set; and what is not at the base.

    A label of a sibling paper has its name in place of all that stands before the last. Without a
    base, this is the base label. A run that lacks an argument counts as at the base.
    """
    parts = [paper]
    if paper == MAIN:
        parts = ["i.i.d." if is_iid(args) else f"k = {args['k']}"]
        parts += [f"{sign} = {args[name]}" for name, sign in SIGNS.items() if args[name]]
    for name, value in (base or {}).items():
        if args.get(name, value) != value:
            parts.append(in_words(name, args[name]))
    return ", ".join(parts)


def in_words(name, value):
    """Write an argument as a label has it: "short side = 224", "gather", "no gather"."""
    words = SIGNS.get(name, name.replace("_", " "))
    if value is True:
        return words
    if value is False or value is None:
        return f"no {words}"
    return f"{words} = {value}"


def is_iid(args):
    return args["sampling"] == "iid"


def add_seed(seeds, row):
    """Add a row to {seed: row}, unless that seed has one: the first one counts."""
    first = seeds.setdefault(row["seed"], row)
    if first is not row:
        print_repeated(row, first, "arguments and seed")


def print_repeated(row, first, agreement):
    """Report a row that does not count, since another one has the same `agreement`, in words."""
    run, first_run = printable(row["run"]), printable(first["run"])
    print(f"{run}: the same {agreement} as {first_run}, skipped")


def sweeps(groups):
    """Return {name of a sweep: its labels}, of those sweeps that have two labels or more.

    k           the whole title as window (Figures 1a and 3a)
    w           at the k that has most windows (Figures 1b and 3b)
    w-is-k      adjacent snippets, at two k > 1 or more, beside k = 1 (Figures 1c and 3c)
    k-w         k and w, where several k have windows, as on TV (Figure 1d)
    jitter-tau  colour jitter or a temperature, beside neither of them (Figure 2, Table 2)
    settings    any other argument, beside the base label of the same k, w, σ and τ
    papers      the base labels of sibling papers, beside i.i.d., k = 1 and k = 16
    avts        the labels of a sibling paper, each paper in a sweep that has its name

    Up to jitter-tau they have base labels only. At k = 1 all w are the same, so it stands beside
    w = k.
    """
    labels_of = {}
    for label, seeds in groups.items():
        labels_of.setdefault(paper_of(first_row(seeds)), []).append(label)
    own = labels_of.pop(MAIN, [])
    found = sweeps_of_television({label: arguments_of(groups[label]) for label in own})
    if labels_of:
        found["papers"] = [label for label in ("i.i.d.", "k = 1", "k = 16") if label in own]
    for paper, labels in labels_of.items():
        found["papers"] += [label for label in labels if label == paper]
        found[paper.lower()] = labels
    return {name: labels for name, labels in found.items() if len(labels) > 1}


def sweeps_of_television(args):
    """Those of `sweeps` that have runs of pretrain.py only: args {label: arguments}."""
    base = [label for label in args if label == label_of(args[label])]
    changed = [label for label in base if args[label]["jitter"] or args[label]["tau"]]
    plain = [label for label in base if label not in changed]
    found = sweeps_of_k_and_w({label: args[label] for label in plain})
    if changed:
        changed_ks = {args[label]["k"] for label in changed}
        whole = [label for label in plain if args[label]["w"] is None]
        with_k = [label for label in whole if not is_iid(args[label])]
        beside = [label for label in with_k if args[label]["k"] in changed_ks]
        found["jitter-tau"] = beside + changed
    others = [label for label in args if label not in base]
    beside = {label_of(args[label]) for label in others}
    found["settings"] = [label for label in args if label in others or label in beside]
    return found


def sweeps_of_k_and_w(args):
    """Those of `sweeps` that have neither jitter nor a temperature: args {label: arguments}."""
    k_of = {label: args[label]["k"] for label in args if not is_iid(args[label])}
    whole = [label for label in args if args[label]["w"] is None]
    adjacent = [label for label in k_of if args[label]["w"] == k_of[label]]
    neither = [label for label in k_of if label not in whole and label not in adjacent]
    windowed = [label for label in neither if args[label]["w"] != "scene"]
    found = {"k": whole}
    if k_of:
        k, _ = collections.Counter(k_of.values()).most_common(1)[0]
        found["w"] = [label for label in k_of if k_of[label] == k]
    if len({k_of[label] for label in adjacent} - {1}) > 1:
        ones = [label for label in whole if k_of.get(label) == 1]
        found["w-is-k"] = distinct(ones + adjacent)
    if len({k_of[label] for label in windowed}) > 1:
        found["k-w"] = [label for label in args if label in whole or label in windowed]
    return found


def first_row(seeds):
    """The row of the first of a label's runs: in what a label names, all of them agree."""
    return seeds[min(seeds)]


def arguments_of(seeds):
    return settings_of(first_row(seeds))


class Test(NamedTuple):
    """A row of finetune.py or lab.evaluate, and whose weights it tested.

    label      that of the pretraining, or "none"
    step       after which that run had these weights; 0 without pretraining, None if unknown
    is_inside  whether that is before the run ended
    """

    row: dict
    label: str
    step: int | None
    is_inside: bool

    @property
    def place(self):
        """Two networks that are tested in the same way have the same place."""
        return self.row["task"], self.row["arguments"]["data"]


def tests_of(rows, groups):
    """Return all tests of the runs in `groups`, and of untrained networks."""
    label_of_run, pretraining_of_run = {None: UNTRAINED}, {None: None}
    for label, seeds in groups.items():
        for row in seeds.values():
            label_of_run[row["run"]] = label
            pretraining_of_run[row["run"]] = row
    tests = []
    for row in rows:
        if "task" in row and row["pretraining"] in label_of_run:
            step, is_inside = step_of(row, pretraining_of_run[row["pretraining"]])
            tests.append(Test(row, label_of_run[row["pretraining"]], step, is_inside))
    return tests


def step_of(row, pretraining):
    """Return (the step of the weights that were tested, whether their run went on after it).

    pretraining  the row of that run, or None for an untrained network

    A row that names no step is older, and of the end of its run.
    """
    if pretraining is None:
        return 0, False
    last = last_step(pretraining)
    if last is None:
        return None, False
    step = row.get("pretraining_step", last)
    return step, step < last


def last_step(row):
    """Return how many steps a pretraining had, or None if its row does not tell."""
    if "done" in row:
        done = row["done"]
        return done["snippets"] // row["arguments"]["batch_size"] + done["skipped"]
    # An older row has no counts. But what is measured at all was measured after the last step.
    measured, _ = row.get("curves", {}).get("gap", ([], []))
    return measured[-1] if measured else None


def downstream(rows, groups):
    """Return the `results` of the runs in `groups`, and of untrained networks on the same data.

    That is {task: {label, or "none": {seed: accuracy from 0 to 1}}}. Checkpoints inside runs are
    not among them.
    """
    return results_of(final_tests(rows, groups))


def learning_curves(rows, groups):
    """Return {task: {label: {seed: ([step], [accuracy from 0 to 1])}}}, steps in ascending order.

    A curve begins with the untrained network at step 0, where one was tested with the same seed
    on the same data, and ends with the end of the run, where that was tested. A run of which only
    one checkpoint was tested has no curve.
    """
    tests = tests_of(rows, groups)
    inside = first_of_each([test for test in tests if test.is_inside], "label, task, seed and step")
    final = [test for test in tests if not test.is_inside]
    points_of = {}  # {(task, data, seed, label): {step: accuracy}}
    run_of = {}  # {the same: the run that this curve is of}
    # Of two runs with one label and seed, `downstream` has the first that was tested at its end.
    for test in [*final, *inside]:
        data, seed, run = test.row["arguments"]["data"], test.row["seed"], test.row["pretraining"]
        for task, accuracy in accuracies_of(test.row).items():
            key = task, data, seed, test.label
            if run_of.setdefault(key, run) == run:
                points_of.setdefault(key, {}).setdefault(test.step, accuracy)
    curves = {}
    for (task, data, seed, label), points in points_of.items():
        if len(points) > 1:
            points = points_of.get((task, data, seed, UNTRAINED), {}) | points
            steps = sorted(points)
            accuracies = [points[step] for step in steps]
            curves.setdefault(task, {}).setdefault(label, {})[seed] = steps, accuracies
    return curves


def final_tests(rows, groups):
    """Return the tests that `results` are made of: no two of one label, task and seed."""
    final = [test for test in tests_of(rows, groups) if not test.is_inside]
    # An untrained network counts where a pretrained one was tested in the same way.
    places_of_pretrained = {test.place for test in final if test.label != UNTRAINED}
    compared = [test for test in final if test.place in places_of_pretrained]
    return first_of_each(compared, "label, task and seed")


def first_of_each(tests, agreement):
    """Return these tests without those that repeat one; the first one counts.

    agreement  what a test and the one that it repeats have in common, in words
    """
    firsts = {}
    for test in tests:
        step = test.step if test.is_inside else None
        first = firsts.setdefault((test.label, test.row["task"], test.row["seed"], step), test)
        if first is not test:
            print_repeated(test.row, first.row, agreement)
    return list(firsts.values())


def results_of(tests):
    """Sort the accuracies of these tests into `results`."""
    results = {}
    for test in tests:
        for task, accuracy in accuracies_of(test.row).items():
            accuracy_of_seed = results.setdefault(task, {}).setdefault(test.label, {})
            accuracy_of_seed[test.row["seed"]] = accuracy
        for task, accuracy in test.row.get("untrained", {}).items():
            accuracy_of_seed = results[task].setdefault(UNTRAINED, {})
            accuracy_of_seed.setdefault(test.row["seed"], accuracy)
    # An untrained network may have been tested with a number of shots of its own.
    return {task: found for task, found in results.items() if found.keys() != {UNTRAINED}}


def accuracies_of(row):
    """Return {task: accuracy} of a test: of a probe first of all labelled files, then of few."""
    if "accuracies" in row:
        return row["accuracies"]
    accuracies = {row["task"]: row["accuracy"]}
    for shots in shots_of(row):
        name = task_of(row["arguments"], int(shots))
        accuracies[name] = row["accuracy_of_shots"][shots]
    return accuracies


def shots_of(row):
    """The numbers of labelled files of each class that a probe also had, in ascending order."""
    return sorted(row.get("accuracy_of_shots", {}), key=int)


# --------------------------------------------------------------------------------------------------
# From groups to pictures and tables
# --------------------------------------------------------------------------------------------------


def compare(paths, out):
    """Write findings.json and a picture of each sweep; print a table of each collection."""
    rows = read_runs(paths)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_rows(out / "findings.json", rows)
    pretrained = [row for row in rows if "final" in row]
    bases_in = {name: bases_of(rows) for name, rows in by_collection(pretrained).items()}
    groups_of = group(pretrained)
    tests_in = {name: final_tests(rows, groups) for name, groups in groups_of.items()}
    results_in = {name: results_of(tests) for name, tests in tests_in.items()}
    # Those without further arguments come first, since they are in most pictures.
    all_labels = distinct(label for groups in groups_of.values() for label in groups)
    all_labels.sort(key=lambda label: ", " in label)
    for collection, groups in groups_of.items():
        results = results_in[collection]
        for sweep, labels in sweeps(groups).items():
            picture = out / f"{collection}-{sweep}.png"
            swept = {label: groups[label] for label in labels}
            in_common = of_common_seeds(swept)
            few_shots = few_shot_tasks(tests_in[collection])
            draw_sweep(picture, in_common, results, few_shots, all_labels)
            print(f"{picture}{without_seeds(swept, in_common)}")
        curves = learning_curves(rows, groups)
        if curves:
            picture = out / f"{collection}-learning.png"
            draw_learning(picture, curves, groups, all_labels)
            print(picture)
        print()
        print("\n".join(table_of_means(collection, groups, results)))
        print_bases(bases_in[collection])
        tested = [test.row for test in tests_in[collection]]
        print_processors([row for seeds in groups.values() for row in seeds.values()] + tested)
    print()
    print(f"{out}/findings.json, {len(rows)} runs")


def distinct(names):
    return list(dict.fromkeys(names))


def of_common_seeds(groups):
    """Return {label: {seed: ...}} with the seeds that all labels share; unchanged if none is."""
    common = set.intersection(*(set(seeds) for seeds in groups.values()))
    return of_seeds(groups, common) if common else groups


def of_seeds(groups, seeds):
    """Return {label: {seed: ...}} with these seeds alone, and without labels that have none."""
    kept = {}
    for label, of_seed in groups.items():
        if of_label := {seed: value for seed, value in of_seed.items() if seed in seeds}:
            kept[label] = of_label
    return kept


def without_seeds(groups, kept):
    """Say which seeds a picture leaves out, if any."""
    left_out = set().union(*groups.values()) - set().union(*kept.values())
    words = ", ".join(map(str, sorted(left_out)))
    return f" (without seeds that not all runs have: {words})" if left_out else ""


def few_shot_tasks(tests):
    """Return {task of a probe: {labelled files of each class, or "all": its name with so many}}."""
    names_of = {}
    for test in tests:
        for shots in shots_of(test.row):
            name = task_of(test.row["arguments"], int(shots))
            names_of.setdefault(test.row["task"], {})[shots] = name
    tasks = {}
    for task, names in names_of.items():
        tasks[task] = {shots: names[shots] for shots in sorted(names, key=int)} | {"all": task}
    return tasks


def draw_sweep(path, groups, results, few_shots, all_labels):
    """Draw the curves of a sweep, and what it gives downstream.

    few_shots   as `few_shot_tasks` returns them: each has a panel of its own
    all_labels  those of all pictures, so that each looks the same in all of them
    """
    drawn = set().union(*groups.values())
    compared = {}
    for task, seeds_of in results.items():
        seeds_of = of_seeds(seeds_of, drawn)
        if len(seeds_of.keys() & groups.keys()) > 1:
            compared[task] = seeds_of
    probes = []
    looks = looks_of(groups, all_labels)
    for task, names in few_shots.items():
        by_shots = {shots: compared[name] for shots, name in names.items() if name in compared}
        if len(by_shots) > 1:
            for shots in by_shots:
                del compared[names[shots]]
            probes.append(partial(draw_few_shots, title=task, by_shots=by_shots, looks=looks))
    last_panel = None
    last_height = 0
    if compared:
        last_panel = partial(draw_rows, results=compared, looks=looks)
        last_height = len(compared) * max(ROW, MARKER * len(looks)) + 4 * ROW
    if any(has_window(label) for label in groups):
        groups = {with_window(label): seeds for label, seeds in groups.items()}
        all_labels = [with_window(label) for label in all_labels]
    papers = distinct(paper_of(row) for seeds in groups.values() for row in seeds.values())
    if len(papers) > 1:
        groups = without_loss(groups)
    loss_title, loss_unit = LOSSES.get(papers[0], (f"training loss of {papers[0]}", ""))
    draw(
        path,
        groups,
        MEASURES,
        last_panel,
        all_labels,
        loss_title=loss_title,
        loss_unit=loss_unit,
        chance=CHANCE,
        crowded=has_many_labels(groups),
        last_height=last_height,
        extra_panels=probes,
    )


def without_loss(groups):
    """Groups without the curves of the loss, since the losses of two papers cannot be compared."""
    without = {}
    for label, seeds in groups.items():
        without[label] = {}
        for seed, row in seeds.items():
            curves = {name: curve for name, curve in row["curves"].items() if name != "loss"}
            without[label][seed] = {**row, "curves": curves}
    return without


def has_many_labels(labels):
    return len(labels) > FEW_LABELS or max(map(len, labels)) > SHORT_LABEL


def draw_learning(path, curves, groups, all_labels):
    """Draw `learning_curves`, a panel a task: mean and range over the seeds.

    all_labels  as in `draw_sweep`
    """
    labels = [label for label in groups if any(label in curves[task] for task in curves)]
    looks = looks_of(labels, all_labels)
    names = {label: label for label in labels}
    if any(has_window(label) for label in labels):
        names = {label: with_window(label) for label in labels}
    crowded = has_many_labels(labels)
    figure, panels = make_panels(len(curves) + 1 if crowded else len(curves))
    for (task, seeds_of), axes in zip(curves.items(), panels):
        for label in labels:
            colour, line = looks[label]
            draw_curve(axes, [], names[label], colour, "." + line)  # for the legend
            batch_size = arguments_of(groups[label])["batch_size"]
            for steps, percents in by_steps(seeds_of.get(label, {})).items():
                snippets = batch_size * np.array(steps)
                seeds = [(snippets, values) for values in percents]
                draw_curve(axes, seeds, None, colour, "." + line)
        axes.set(title=task, xlabel="snippets seen", ylabel=unit_of([task]))
        axes.locator_params(axis="x", nbins=5)  # Numbers of five digits would run together.
    if crowded:
        draw_legend(panels[-1], panels[0])
    else:
        panels[0].legend()
    lengths = {last_step(row) for label in labels for row in groups[label].values()} - {None}
    shortest, longest = min(lengths), max(lengths)
    schedule = f"{shortest}" if shortest == longest else f"{shortest} to {longest}"
    figure.suptitle(f"runs of {schedule} steps; points before the end are checkpoints inside a run")
    figure.savefig(path, dpi=110, format="png")


def by_steps(curve_of_seed):
    """Return {steps: the percents of each seed whose curve has just these steps}.

    Only those have a mean: at other steps a seed was not tested.
    """
    percents_at = {}
    for steps, accuracies in curve_of_seed.values():
        percents_at.setdefault(tuple(steps), []).append(100 * np.array(accuracies))
    return percents_at


def has_untrained(results):
    return any(UNTRAINED in seeds_of for seeds_of in results.values())


def has_window(label):
    return ", w = " in label


def with_window(label):
    """Name the window of a label that leaves it out, after k. The shuffled baseline has none."""
    if has_window(label) or not label.startswith("k ="):
        return label
    k, *others = label.split(", ")
    return ", ".join([k, "w = $M_n$", *others])


def draw_rows(axes, results, looks):
    """Fill a wide panel with mean and range of each accuracy: a row a task, a colour a label.

    looks  {label: its colour and its kind of line}; a row has the labels in this order, from top
           to bottom
    """
    for row, seeds_of in enumerate(results.values()):
        tested = [label for label in looks if label in seeds_of]
        for i, label in enumerate(tested):
            height = row + 0.8 * ((i + 0.5) / len(tested) - 0.5)
            values = percents(seeds_of[label])
            mean = values.mean()
            lengths = [[mean - values.min()], [values.max() - mean]]
            colour, line = looks[label]
            marker = MARKER_OF_LINE[line]
            axes.errorbar(mean, height, xerr=lengths, color=colour, marker=marker, ms=4)
        if UNTRAINED in seeds_of:
            mean = percents(seeds_of[UNTRAINED]).mean()
            axes.vlines(mean, row - 0.4, row + 0.4, color="grey", ls=":")
        axes.axhline(row + 0.5, lw=0.5, color="lightgrey")
    axes.set_title("downstream")
    if has_untrained(results):
        axes.set_title("downstream (dotted: without pretraining)")
    axes.set(xlabel=unit_of(results), ylim=(len(results) - 0.5, -0.5))
    axes.set_yticks(range(len(results)), results, fontsize=8)


def draw_few_shots(axes, title, by_shots, looks):
    """Fill a panel with mean and range of a probe's accuracy against the labelled files it had.

    by_shots  {labelled files of each class, or "all": {label: {seed: accuracy from 0 to 1}}}
    looks     {label: its colour and its kind of line}
    """
    for label, (colour, line) in {**looks, UNTRAINED: ("grey", ":")}.items():
        percents_at = {
            place: percents(seeds_of[label])
            for place, seeds_of in enumerate(by_shots.values())
            if label in seeds_of
        }
        if percents_at:
            legend = "without pretraining" if label == UNTRAINED else None
            places = list(percents_at)
            means = [values.mean() for values in percents_at.values()]
            lowest = [values.min() for values in percents_at.values()]
            highest = [values.max() for values in percents_at.values()]
            axes.plot(places, means, "." + line, color=colour, label=legend)
            axes.fill_between(places, lowest, highest, alpha=0.15, facecolor=colour)
            if legend:
                axes.legend()
    axes.set(title=title, xlabel="labelled files of each class", ylabel=unit_of([title]))
    axes.set_xticks(range(len(by_shots)), by_shots)


def unit_of(tasks):
    """The unit of these tasks: recall and synchronisation give no file a label."""
    if any("R@" in task or "synchronisation" in task for task in tasks):
        return "%"
    return "top-1 %"


def percents(accuracy_of_seed):
    return 100 * np.array(list(accuracy_of_seed.values()))


def table_of_means(collection, groups, results):
    """Return the lines of a table in Markdown: mean ± standard deviation over the seeds (Table 1).

    A label has a row; what was never measured gets no column.
    """
    measures = {"loss": "loss"}
    for name, (caption, _) in MEASURES.items():
        if was_measured(name, groups):
            measures[name] = caption
    lines = table_head([collection, "seeds", *measures.values(), *results])
    labels = list(groups)
    if has_untrained(results):
        labels.append(UNTRAINED)
    for label in labels:
        seeds = groups.get(label, {})
        finals = [row["final"] for row in seeds.values()]
        cells = [label, len(seeds) if seeds else ""]
        for name in measures:
            cells.append(spread([final[name] for final in finals if name in final]))
        for seeds_of in results.values():
            cells.append(spread(percents(seeds_of.get(label, {}))))
        lines.append(table_row(cells))
    return lines


def print_bases(bases):
    """Print what holds of the runs whose label names no other value."""
    for paper, base in bases.items():
        if base:
            whose = "a label" if paper == MAIN else f"a label of {paper}"
            words = ", ".join(in_words(name, value) for name, value in base.items())
            print()
            print(f"Unless {whose} says otherwise: {words}.")
    if len(bases) > 1:
        print()
        print("The losses of different papers cannot be compared.")


def print_processors(rows):
    """Print how many of these runs each kind of processor computed, if there are several kinds.

    Another kind adds up in another order, which changes a result as another seed does.
    """
    counts = collections.Counter()
    for row in rows:
        counts[row.get("versions", {}).get("processor", "not recorded")] += 1
    if len(counts) > 1:
        kinds = "; ".join(f"{kind}: {count}" for kind, count in sorted(counts.items()))
        print()
        print(f"Runs on each kind of processor: {kinds}.")


def table_head(heads):
    """The first two lines of a table in Markdown."""
    return [table_row(heads), "|---" * len(heads) + "|"]


def table_row(cells):
    return f"| {' | '.join(map(str, cells))} |"


def spread(values):
    """Write "mean ± standard deviation"; of one value the mean alone, of none nothing."""
    if len(values) == 0:
        return ""
    mean = f"{np.mean(values):.3g}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {np.std(values, ddof=1):.2g}"


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


def parse_args(argv=None):
    parser = make_parser(__doc__, "python -m lab.compare")
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="the folder of a run, or a findings.json"
    )
    what_to_do = parser.add_mutually_exclusive_group()
    what_to_do.add_argument("--out", default="runs/compare", help="the folder to write to")
    what_to_do.add_argument(
        "--add",
        metavar="FILE",
        help="add the rows of the runs to this findings.json, and do nothing else; it is made "
        "where it is missing, and a run that has a row there keeps it",
    )
    what_to_do.add_argument(
        "--against",
        metavar="FILE",
        help="say which runs came out otherwise than those of the same names in this "
        "findings.json, and do nothing else; the exit status is 1 if any did",
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    with one_line_errors("python -m lab.compare", interrupted="run the same command again"):
        args = parse_args()
        if args.add is not None:
            add_rows(args.add, args.runs)
        elif args.against is not None:
            sys.exit(1 if compare_again(args.against, args.runs) else 0)
        else:
            compare(args.runs, args.out)
