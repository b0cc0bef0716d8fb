"""Three papers under one budget: the same films, networks and number of snippets.

    python -m lab.siblings lab/findings.json       the table of lab/README.md, in Markdown

Each row is a way to pretrain, each column what it is good for: the mean ± standard deviation over
the seeds. Only runs of one kind of processor are in it. `bash lab/sweep.sh --papers` makes them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from harness.errors import BadInput, make_parser, one_line_errors, printable
from lab.compare import UNTRAINED, downstream, group, percents, read_runs, spread, table_row
from lab.findings import of_one_processor

WORLD = "time"
LABELS = ("i.i.d.", "k = 1", "k = 16", "AVTS", "Temporal", UNTRAINED)

# {what a column is called: the task whose accuracy it has, in %}. Chance is 10 % for a probe and 50
# % for synchronisation.
ACCURACIES = {
    "action, 1 clip a class": "toy-action, probe, 1 shot, split all",
    "5": "toy-action, probe, 5 shots, split all",
    "all": "toy-action, probe, split all",
    "sound, 1 clip a class": "toy-sound, probe, 1 shot, split all",
    "5 ": "toy-sound, probe, 5 shots, split all",
    "all ": "toy-sound, probe, split all",
    "sync, same title": "synchronisation of unseen, same title",
    "other titles": "synchronisation of unseen, other titles",
    "retrieval, R@1": "toy-action, R@1, split all",
    "fingerprint, R@1": "fingerprint of unseen, R@1 mean, both",
}


class Cost(NamedTuple):
    """What a pretraining takes: the name of its column, its value for a row, and its decimals."""

    name: str
    value_of: Callable
    decimals: int = 0


def hours_of_film(row, part):
    """How many hours of film a run has seen (part 0) or heard (part 1), by its snippets.

    A snippet that is played p times as fast shows p times as much; each speed is equally likely.
    """
    arguments = row["arguments"]
    hours = row["done"]["snippets"] * arguments["frames"] / arguments["fps"] / 3600
    if "speeds" in arguments:  # "1,2,4/1,2": those of the sight, and those of the sound
        speeds = arguments["speeds"].split("/")[part].split(",")
        hours *= np.mean([int(speed) for speed in speeds])
    return hours


COSTS = (
    Cost("snippets", lambda row: row["done"]["snippets"]),
    Cost("hours seen", lambda row: hours_of_film(row, part=0), decimals=1),
    Cost("hours heard", lambda row: hours_of_film(row, part=1), decimals=1),
    Cost("seconds of training", lambda row: row["training_seconds"]),
)


def make_table(rows):
    """Return the lines of the table, of rows as `lab.compare` reads them.

    Raises BadInput where no run is on the world of the three papers.
    """
    groups = group([row for row in rows if "final" in row]).get(WORLD, {})
    labels = [label for label in LABELS if label in groups]
    if not labels:
        raise BadInput(
            f"no pretraining on a world {WORLD!r} among them; `bash lab/sweep.sh --papers` makes "
            "them"
        )
    results = downstream(rows, groups)
    if any(UNTRAINED in accuracy_of_label for accuracy_of_label in results.values()):
        labels.append(UNTRAINED)
    heads = ["", "seeds", *ACCURACIES, *(cost.name for cost in COSTS)]
    lines = [table_row(head.strip() for head in heads), "|---" * len(heads) + "|"]
    for label in labels:
        runs = list(groups.get(label, {}).values())
        cells = [label, len(runs) or ""]
        for task in ACCURACIES.values():
            cells.append(spread(percents(results.get(task, {}).get(label, {}))))
        for cost in COSTS:
            cells.append(in_words(cost, runs))
        lines.append(table_row(cells))
    return lines


def in_words(cost, runs):
    """Write the mean of a cost, and ± its standard deviation unless all runs have the same."""
    values = [cost.value_of(row) for row in runs]
    if not values:
        return ""
    words = f"{np.mean(values):.{cost.decimals}f}"
    if min(values) < max(values):
        words += f" ± {np.std(values, ddof=1):.{cost.decimals}f}"
    return words


def print_table(path):
    rows, kind, others = of_one_processor(read_runs([path]))
    print("\n".join(make_table(rows)))
    print()
    print(f"Runs on {printable(kind)}.")
    for other, count in others.items():
        print(f"Left out: {count} runs on {printable(other)}.")


def parse_args(argv=None):
    parser = make_parser(__doc__, "python -m lab.siblings")
    parser.add_argument("findings", metavar="FILE", help="a findings.json of lab.compare")
    return parser.parse_args(argv)


if __name__ == "__main__":
    with one_line_errors("python -m lab.siblings", interrupted="run the same command again"):
        print_table(parse_args().findings)
