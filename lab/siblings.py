"""Three papers under one budget: the same films and networks, and about as many snippets.

`python -m lab.findings` prints two tables: what each way to pretrain is good for, and what it
takes, as the mean ± standard deviation over the seeds. `bash lab/sweep.sh --papers` makes the runs.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lab.compare import (
    UNTRAINED,
    downstream,
    group,
    has_untrained,
    percents,
    spread,
    table_head,
    table_row,
)

WORLD = "time"
LABELS = ("i.i.d.", "k = 1", "k = 16", "AVTS", "Temporal")

USES = """\
Linear probes of actions and of sounds have 1, 5 and all labelled clips of each class.
Synchronisation is how often a video is closer to its own sound than to another's, or a sound to its
own video. With fingerprints a distorted clip searches for its original by sight, by sound, or by
both, and the mean is over the distortions, most of which change only one of them. All of this is in
%: chance is 10 for probes and for retrieval, and 50 for synchronisation. Synchronisation and
fingerprints are of films that no network was trained on. Probes and retrieval show 8 frames at 5
fps to each network, also to Temporal, which was trained on 16 at 10 fps; each hears them as it was
trained to, which for Temporal is at half of the rate. `none` is an untrained network; with
fingerprints it sees and hears as AVTS does, and not as Temporal does."""
TAKES = """\
A run had a core to itself; its seconds of training depend much on what ran beside it."""
# {what a column is called: the task whose accuracy it has}
ACCURACIES = {
    "action, 1": "toy-action, probe, 1 shot, split all",
    "action, 5": "toy-action, probe, 5 shots, split all",
    "action, all": "toy-action, probe, split all",
    "sound, 1": "toy-sound, probe, 1 shot, split all",
    "sound, 5": "toy-sound, probe, 5 shots, split all",
    "sound, all": "toy-sound, probe, split all",
    "synchronisation, same title": "synchronisation of unseen, same title",
    "other titles": "synchronisation of unseen, other titles",
    "retrieval, R@1": "toy-action, R@1, split all",
    "fingerprint by sight": "fingerprint of unseen, R@1 mean, sight",
    "by sound": "fingerprint of unseen, R@1 mean, sound",
    "by both": "fingerprint of unseen, R@1 mean, both",
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


def print_papers(rows):
    """Print both tables in Markdown, or nothing if no run is on the papers' world.

    rows  as `lab.compare` reads them
    """
    groups = group([row for row in rows if "final" in row]).get(WORLD, {})
    labels = [label for label in LABELS if label in groups]
    if not labels:
        return
    print()
    print("## Three papers under one budget")
    print()
    print("### What they are good for")
    print()
    print(USES)
    print()
    print("\n".join(table_of_uses(labels, groups, downstream(rows, groups))))
    print()
    print("### What they take")
    print()
    print(TAKES)
    print()
    print("\n".join(table_of_costs(labels, groups)))


def table_of_uses(labels, groups, results):
    """Return the lines of a table of accuracies in %: one row for each label, and the untrained.

    groups, results  of `lab.compare.group` and `lab.compare.downstream`
    """
    lines = table_head(["", "seeds", *ACCURACIES])
    if has_untrained(results):
        labels = [*labels, UNTRAINED]
    for label in labels:
        cells = [label, len(groups[label]) if label in groups else ""]
        for task in ACCURACIES.values():
            cells.append(spread(percents(results.get(task, {}).get(label, {}))))
        lines.append(table_row(cells))
    return lines


def table_of_costs(labels, groups):
    """Return the lines of a table of what the pretrainings took: one row for each label."""
    lines = table_head(["", "seeds", *(cost.name for cost in COSTS)])
    for label in labels:
        runs = list(groups[label].values())
        costs = [cost_in_words(cost, runs) for cost in COSTS]
        lines.append(table_row([label, len(runs), *costs]))
    return lines


def cost_in_words(cost, runs):
    """Write the mean of a cost, and ± its standard deviation unless all runs have the same."""
    values = [cost.value_of(row) for row in runs]
    words = f"{np.mean(values):.{cost.decimals}f}"
    if min(values) < max(values):
        words += f" ± {np.std(values, ddof=1):.{cost.decimals}f}"
    return words
