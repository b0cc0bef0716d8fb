"""What the paper finds, asked of runs on the toy world. lab/README.md has the verdicts.

    python -m lab.findings lab/findings.json              every verdict, with its margins
    python -m lab.findings runs/compare/findings.json     the same for your own runs

A finding has margins, numbers for each seed, and holds where all of them are above 0. What
each finding asks was written down before a result was looked at. Three things changed later:
the size of a discrepancy counts, and not its sign; w = k is also compared with the whole
title; a third, weaker world for finding 4 was given up before it was run.
"""

# Each function that asks a finding takes the `figures` of `figures_of`,
# {(collection, label, name): (seeds,)}, and returns a list of margins, arrays (seeds,).

import itertools

import numpy as np

from harness.errors import make_parser, one_line_errors
from lab.compare import downstream, group, read_runs
from loss import MEASURES

DISCREPANCIES = ("kl_same_other", "gap")
# {name of an accuracy: the task whose accuracy it is}
PROBED = {"action": "toy-action, probe, split all", "sound": "toy-sound, probe, split all"}
TUNED = {
    "action tuned": "toy-action, fine-tuned, split 1",
    "sound tuned": "toy-sound, fine-tuned, split 1",
}
TASKS = {**PROBED, **TUNED}


# --------------------------------------------------------------------------------------------------
# The findings
# --------------------------------------------------------------------------------------------------


def discrepancies_shrink_as_k_grows(figures):
    """Figure 1a: both discrepancies shrink; at k = 1 KL(S⁻‖S⁺) < KL(S≠‖S⁺)."""
    same = figures["films", "k = 1", "kl_same_match"]
    other = figures["films", "k = 1", "kl_other_match"]
    shrinking = ascending(figures, DISCREPANCIES, "k = 64", "k = 16", "k = 4", "k = 1")
    return [other - same, *shrinking]


def discrepancies_shrink_with_the_window(figures):
    """Figure 1b: at fixed k a smaller w shrinks both."""
    return ascending(figures, DISCREPANCIES, "k = 16, w = 32", "k = 16")


def adjacent_snippets_cost_accuracy(figures):
    """Figure 1c, Table 1: w = k shrinks both discrepancies most, and costs accuracy."""
    against_window = ascending(figures, DISCREPANCIES, "k = 16, w = 16", "k = 16, w = 32")
    names = (*DISCREPANCIES, *PROBED)
    against_whole_title = ascending(figures, names, "k = 16, w = 16", "k = 16")
    return against_window + against_whole_title


def several_snippets_a_title_help(figures):
    """Table 1: k > 1 beats k = 1 downstream, and by more on TV than on films."""
    margins = []
    for k in (4, 16, 64):
        margins += ascending(figures, PROBED, "k = 1", f"k = {k}")
    for task in PROBED:
        margins.append(gain(figures, "tv", task) - gain(figures, "films", task))
    return margins


def the_loss_grows_with_difficulty(figures):
    """Figure 3: it is higher for larger k, for smaller w, and highest for w = k."""
    larger_k = ascending(figures, ["loss"], "k = 1", "k = 4", "k = 16", "k = 64")
    smaller_w = ascending(figures, ["loss"], "k = 16", "k = 16, w = 32", "k = 16, w = 16")
    highest = ascending(figures, ["loss"], "k = 64", "k = 16, w = 16")
    return larger_k + smaller_w + highest


def jitter_shrinks_discrepancies_less_than_k(figures):
    """Figure 2: colour jitter shrinks the discrepancies of k = 1, less than k does."""
    return ascending(figures, DISCREPANCIES, "k = 16", "k = 1, σ = 1.0", "k = 1")


def no_temperature_is_a_clear_loser(figures):
    """Table 2: unnormalised embeddings, or normalised ones over one of two temperatures.

    A clear loser is the worst of the three in every seed. That is no difference of two figures,
    so a task has one margin for all seeds: -1 if it has a clear loser, and else 1.
    """
    labels = ("k = 16", "k = 16, τ = 0.07", "k = 16, τ = 0.3")
    margins = []
    for task in PROBED:
        accuracies = [figures["films", label, task] for label in labels]
        worst = np.argmin(accuracies, axis=0)  # (seeds,) indices of labels
        margin = 1.0
        if len(set(worst)) == 1:
            margin = -1.0
        margins.append(np.array([margin]))
    return margins


def pretraining_beats_none(figures):
    """Not in the paper: k = 16 beats training from scratch, and untrained features in a probe."""
    tuned = ascending(figures, TUNED, "none", "k = 16")
    probed = ascending(figures, PROBED, "none", "k = 16")
    return tuned + probed


FINDINGS = {
    1: discrepancies_shrink_as_k_grows,
    2: discrepancies_shrink_with_the_window,
    3: adjacent_snippets_cost_accuracy,
    4: several_snippets_a_title_help,
    5: the_loss_grows_with_difficulty,
    6: jitter_shrinks_discrepancies_less_than_k,
    7: no_temperature_is_a_clear_loser,
    8: pretraining_beats_none,
}


def ascending(figures, names, *labels):
    """Return how much larger the figure of each label is than that of the label before it.

    For each of these names, on `films`, in absolute value.
    """
    margins = []
    for low, high in itertools.pairwise(labels):
        for name in names:
            lower = np.abs(figures["films", low, name])
            higher = np.abs(figures["films", high, name])
            margins.append(higher - lower)
    return margins


def gain(figures, collection, task):
    """Return how much k = 16 is above k = 1."""
    return figures[collection, "k = 16", task] - figures[collection, "k = 1", task]


# --------------------------------------------------------------------------------------------------
# From runs to verdicts
# --------------------------------------------------------------------------------------------------


def figures_of(path):
    """Return {(collection, label, name): (seeds,)} of a findings.json, in the order of the seeds.

    A name is "loss", one of loss.MEASURES, or an accuracy (0 to 1): one of TASKS. A figure
    that some seed lacks is not there.
    """
    rows = read_runs([path])
    pretrained = [row for row in rows if "final" in row]
    by_seed = {}  # {(collection, label, name): {seed: value}}
    for collection, groups in group(pretrained).items():
        for label, runs in groups.items():
            for name in ("loss", *MEASURES):
                finals = {seed: row["final"].get(name) for seed, row in runs.items()}
                by_seed[collection, label, name] = finals
        results = downstream(rows, groups)
        for name, task in TASKS.items():
            for label, accuracies in results.get(task, {}).items():
                by_seed[collection, label, name] = accuracies
    seeds = sorted({row["seed"] for row in rows})
    figures = {}
    for figure, value_of_seed in by_seed.items():
        values = [value_of_seed.get(seed) for seed in seeds]
        if None not in values:
            figures[figure] = np.array(values)
    return figures


def verdict(margins):
    """Say whether each margin is above 0: in each seed, in the mean of the seeds, or in part."""
    if all((margin > 0).all() for margin in margins):
        return "holds"
    right = sum(margin.mean() > 0 for margin in margins)
    if right == len(margins):
        return "holds in the mean"
    if right > 0:
        return f"in part, {right} of {len(margins)}"
    return "does not hold"


def print_verdicts(path):
    figures = figures_of(path)
    for number, ask in FINDINGS.items():
        try:
            margins = ask(figures)
        except KeyError as error:
            collection, label, name = error.args[0]
            missing = f'"{name}" of "{label}" on "{collection}"'
            print(f"{number}  not asked: {path} lacks {missing} in one seed or more")
            continue
        in_each_seed = [margin.round(3).tolist() for margin in margins]
        print(f"{number}  {verdict(margins):20} margins in each seed: {in_each_seed}")


def parse_args(argv=None):
    parser = make_parser(__doc__, "python -m lab.findings")
    parser.add_argument("findings", metavar="FILE", help="a findings.json of lab.compare")
    return parser.parse_args(argv)


if __name__ == "__main__":
    with one_line_errors("python -m lab.findings", interrupted="run the same command again"):
        print_verdicts(parse_args().findings)
