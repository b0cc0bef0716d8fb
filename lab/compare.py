"""Finished runs compared: Figures 1 to 3, Tables 1 and 2.

    python -m lab.compare runs/*                         pictures, a table, findings.json
    python -m lab.compare lab/findings.json --out DIR    the same again, from their rows

Runs that differ in nothing but their seed are one row of the table and one curve. A RUN is the
folder of a finished run of pretrain.py or finetune.py, or a findings.json, which has a row for
each run that was compared.
"""

# A row is what findings.json keeps of a run: `run` (the name of its folder), `seed` and
# `arguments`, and of newer runs `versions`; of pretrain.py also `curves` and `final`
# (harness/curves.py); of finetune.py also `task`, `pretraining` (the run that its weights are
# from, or None) and `accuracy` (from 0 to 1).
#
#     label     what sets a run apart from the others on its collection: "k = 16, w = 32"
#     groups    {label: {seed: row of pretrain.py}} of one collection
#     results   {task: {label, or "none" for no pretraining: {seed: row of finetune.py}}}
#
# Of two rows that are the same run, or the same label and seed, the first one counts.

import collections
import json
from functools import partial
from pathlib import Path

import numpy as np

from harness.curves import draw, legend_below
from harness.errors import BadInput, make_parser, one_line_errors, printable
from harness.files import atomic_write
from loss import MEASURES
from media.collection import collection_name

SIGNS = {"w": "w", "jitter": "σ", "tau": "τ"}  # Arguments that a label names where they are set.
UNTRAINED = "none"  # The label of a network that was not pretrained.
MARKERS = "v*osD^"  # One for each task.


# --------------------------------------------------------------------------------------------------
# From folders to rows
# --------------------------------------------------------------------------------------------------


def read_runs(paths):
    """Return a row for each run: `paths` are folders of finished runs, or findings.json files.

    What is skipped is printed. Raises BadInput for a file that is something else, and where no run
    of pretrain.py is left.
    """
    rows = {}
    for path in map(Path, paths):
        for row in read_rows(path):
            if row["run"] in rows:
                print(f"{printable(row['run'])}: given twice, the first one counts")
                continue
            rows[row["run"]] = row
    pretrained = {name for name, row in rows.items() if "final" in row}
    if not pretrained:
        given = " ".join(map(str, paths))
        raise BadInput(
            f"{given}: no finished run of pretrain.py among them; name folders with a result.json"
        )
    for name, row in rows.items():
        pretraining = row.get("pretraining")
        if pretraining and pretraining not in pretrained:
            print(f"{printable(name)}: fine-tuned from {pretraining}, which is not among the runs")
    return [rows[name] for name in sorted(rows)]


def read_rows(path):
    """Return the rows of one folder, or of one findings.json: none where no run is finished."""
    try:
        if path.suffix != ".json":
            return [read_run(path)]
        rows = json.loads(path.read_text())
        if not all({"run", "seed", "arguments"} <= set(row) for row in rows):
            raise ValueError("a row lacks its run, seed or arguments")
        return rows
    except (FileNotFoundError, NotADirectoryError):
        print(f"{printable(path)}: no finished run, skipped")
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        writers = "pretrain.py, finetune.py or lab.compare"
        raise BadInput(f"{path}: not what {writers} writes ({error}); leave it out") from error


def read_run(path):
    """Return the row of a run's folder, from its result.json."""
    result = json.loads((path / "result.json").read_text())
    if "accuracy" in result:
        result = downstream_row(result)
    return {"run": path.name, "seed": result["arguments"]["seed"], **result}


def downstream_row(result):
    """Of a result.json of finetune.py, what a row keeps."""
    arguments = result["settings"]
    how = "probe" if arguments["probe"] else "fine-tuned"
    row = {"task": f"{arguments['task']}, {how}, split {arguments['split']}", "pretraining": None}
    if arguments["ckpt"]:
        row["pretraining"] = Path(arguments["ckpt"]).resolve().parent.name
    row["accuracy"] = result["accuracy"]
    row["arguments"] = arguments
    if "versions" in result:
        row["versions"] = result["versions"]
    return row


# --------------------------------------------------------------------------------------------------
# From rows to groups
# --------------------------------------------------------------------------------------------------


def group(rows):
    """Sort rows of pretrain.py into {collection: groups}.

    Toy worlds that differ in nothing but their seed count as one collection.
    """
    groups_of = {}
    for row in sorted(rows, key=sort_key):
        # The world of seed 2 is films-2, and its collection films.
        world = collection_name(row["arguments"]["data"])
        collection = world.removesuffix(f"-{row['seed']}")
        groups = groups_of.setdefault(collection, {})
        label = label_of(row["arguments"])
        add_seed(groups.setdefault(label, {}), row)
    return groups_of


def sort_key(row):
    """Order by k, after the shuffled baseline; then the whole title, windows from the widest to
    the narrowest, and scenes; then the rest.
    """
    args = row["arguments"]
    # Three cases: the whole title, first; a window of w snippets, by -w; a scene, last.
    if args["w"] is None:
        window = (0, 0)
    elif args["w"] == "scene":
        window = (2, 0)
    else:
        window = (1, -args["w"])
    k = 0 if is_iid(args) else args["k"]
    return k, window, args["jitter"], args["tau"] or 0, args["seed"]


def label_of(args):
    """Name k, or the shuffled baseline, and what else is not the default."""
    parts = ["i.i.d." if is_iid(args) else f"k = {args['k']}"]
    parts += [f"{sign} = {args[name]}" for name, sign in SIGNS.items() if args[name]]
    return ", ".join(parts)


def is_iid(args):
    """Runs made before there was a choice have no such argument."""
    return args.get("sampling") == "iid"


def add_seed(seeds, row):
    """Add a row to {seed: row}, unless that seed has one: the first one counts."""
    first = seeds.setdefault(row["seed"], row)
    if first is not row:
        same = f"{printable(first['run'])} in neither k, w, jitter, tau, task nor seed"
        print(f"{printable(row['run'])}: differs from {same}, skipped")


def sweeps(groups):
    """Return {name of a sweep: its labels}, of those sweeps that have two labels or more.

    k           the whole title as window (Figures 1a and 3a)
    w           at the k that has most windows (Figures 1b and 3b)
    jitter-tau  colour jitter or a temperature, beside neither of them (Figure 2, Table 2)
    """
    args = {label: arguments_of(seeds) for label, seeds in groups.items()}
    changed = [label for label in groups if args[label]["jitter"] or args[label]["tau"]]
    plain = [label for label in groups if label not in changed]
    whole = [label for label in plain if args[label]["w"] is None]
    found = {"k": whole}
    with_k = [label for label in plain if not is_iid(args[label])]
    if with_k:
        ks = collections.Counter(args[label]["k"] for label in with_k)
        k, _ = ks.most_common(1)[0]
        found["w"] = [label for label in with_k if args[label]["k"] == k]
    if changed:
        changed_ks = {args[label]["k"] for label in changed}
        beside = [label for label in whole if label in with_k and args[label]["k"] in changed_ks]
        found["jitter-tau"] = beside + changed
    return {name: labels for name, labels in found.items() if len(labels) > 1}


def arguments_of(seeds):
    """The arguments of the first of a label's runs: in what a label names, all of them agree."""
    first = min(seeds)
    return seeds[first]["arguments"]


def downstream(rows, groups):
    """Return the results of the runs in `groups`, and of untrained networks on the same data."""
    label_of_run = {None: UNTRAINED}
    for label, seeds in groups.items():
        for row in seeds.values():
            label_of_run[row["run"]] = label
    tested = [row for row in rows if "task" in row and row["pretraining"] in label_of_run]
    # An untrained network counts where a pretrained one was tested in the same way.
    tests_of_pretrained = {test_of(row) for row in tested if row["pretraining"]}
    results = {}
    for row in tested:
        if test_of(row) in tests_of_pretrained:
            seeds_of = results.setdefault(row["task"], {})
            label = label_of_run[row["pretraining"]]
            add_seed(seeds_of.setdefault(label, {}), row)
    return results


def test_of(row):
    return row["task"], row["arguments"]["data"]


# --------------------------------------------------------------------------------------------------
# From groups to pictures and tables
# --------------------------------------------------------------------------------------------------


def compare(paths, out):
    """Write findings.json and a picture of each sweep; print a table of each collection."""
    rows = read_runs(paths)
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row) for row in rows)
    findings = f"[\n{lines}\n]\n"
    atomic_write(out / "findings.json", partial(Path.write_text, data=findings))
    groups_of = group([row for row in rows if "final" in row])
    results_of = {name: downstream(rows, groups) for name, groups in groups_of.items()}
    all_labels = distinct(label for groups in groups_of.values() for label in groups)
    all_tasks = distinct(task for results in results_of.values() for task in results)
    for collection, groups in groups_of.items():
        results = results_of[collection]
        for sweep, labels in sweeps(groups).items():
            picture = out / f"{collection}-{sweep}.png"
            swept = {label: groups[label] for label in labels}
            draw_sweep(picture, swept, results, all_labels, all_tasks)
            print(picture)
        print_table(collection, groups, results)
    print()
    print(f"{out}/findings.json, {len(rows)} runs")


def distinct(names):
    return list(dict.fromkeys(names))


def draw_sweep(path, groups, results, all_labels, all_tasks):
    """Draw the curves of a sweep, and what it gives downstream.

    all_labels, all_tasks  those of all pictures, so that each looks the same in all of them
    """
    compared = {}
    for task, seeds_of in results.items():
        if len(seeds_of.keys() & groups.keys()) > 1:
            compared[task] = seeds_of
    last_panel = None
    if compared:
        labels = [UNTRAINED, *groups]
        last_panel = partial(draw_downstream, results=compared, labels=labels, tasks=all_tasks)
    if any("w =" in label for label in groups):
        groups = {with_window(label): seeds for label, seeds in groups.items()}
        all_labels = [with_window(label) for label in all_labels]
    draw(path, groups, MEASURES, last_panel, all_labels, loss_title="training loss (Equation 1)")


def with_window(label):
    if "w =" in label:
        return label
    return f"{label}, w = $M_n$"


def draw_downstream(axes, results, labels, tasks):
    """Fill a panel with mean and range of the accuracy: a column a label, a marker a task.

    The tasks are grey, because colours stand for the labels.
    """
    for i, (task, seeds_of) in enumerate(results.items()):
        tested = [label for label in labels if label in seeds_of]
        percent = {label: 100 * accuracies(seeds_of[label]) for label in tested}
        means = np.array([percent[label].mean() for label in tested])
        lowest = np.array([percent[label].min() for label in tested])
        highest = np.array([percent[label].max() for label in tested])
        grey = f"{0.7 * i / len(results):.2f}"
        marker = MARKERS[tasks.index(task) % len(MARKERS)]
        # Each task is a little to the right of the one before it.
        x = np.array([labels.index(label) for label in tested]) + 0.08 * i
        lengths = (means - lowest, highest - means)
        axes.errorbar(x, means, lengths, ls="", label=task, color=grey, marker=marker)
        if UNTRAINED in percent:
            axes.axhline(percent[UNTRAINED].mean(), ls=":", lw=0.8, color=grey)
    axes.set(title="downstream (none: without pretraining)", ylabel="top-1 %")
    axes.set_xticks(range(len(labels)), [label.replace(", ", "\n") for label in labels])
    legend_below(axes)


def accuracies(seeds):
    return np.array([row["accuracy"] for row in seeds.values()])


def print_table(collection, groups, results):
    """Print mean ± standard deviation over the seeds, a row a label, in Markdown (Table 1)."""
    measures = {"loss": "loss", **MEASURES}
    heads = [collection, "seeds", *measures.values(), *results]
    print()
    print(table_row(heads))
    print("|---" * len(heads) + "|")
    labels = list(groups)
    if any(UNTRAINED in seeds_of for seeds_of in results.values()):
        labels.append(UNTRAINED)
    for label in labels:
        seeds = groups.get(label, {})
        finals = [row["final"] for row in seeds.values()]
        cells = [label, len(seeds) if seeds else ""]
        for name in measures:
            cells.append(spread([final[name] for final in finals if name in final]))
        for seeds_of in results.values():
            cells.append(spread(100 * accuracies(seeds_of.get(label, {}))))
        print(table_row(cells))


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
    parser.add_argument("--out", default="runs/compare", help="the folder to write to")
    return parser.parse_args(argv)


if __name__ == "__main__":
    with one_line_errors("python -m lab.compare", interrupted="run the same command again"):
        args = parse_args()
        compare(args.runs, args.out)
