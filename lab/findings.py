"""What the paper finds, asked of runs on the toy world. README.md has the verdicts.

    python -m lab.findings lab/findings.json              every verdict, with its margins
    python -m lab.findings runs/compare/findings.json     the same for your own runs

A finding is a list of margins, arrays over the seeds, each of which should be above 0. They
were written down before a result was seen. Three things changed while the runs were made:
the size of a discrepancy counts and not its sign; w = k is held against w = M_n as well; a
third, weaker world for finding 4 was given up before it was seen.

`figures` is {(collection, label, name): (seeds,)}, see `figures_of`.
"""

import argparse

import numpy as np

from harness.errors import one_line_errors, refuse
from lab.compare import downstream, group, read_runs
from loss import MEASURES

DISCREPANCIES = ("kl_same_other", "gap")
PROBED = {"action": "toy-action, probe, split all", "sound": "toy-sound, probe, split all"}
TUNED = {
    "action tuned": "toy-action, fine-tuned, split 1",
    "sound tuned": "toy-sound, fine-tuned, split 1",
}


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

    1 where no run is the worst in every seed, -1 where one is.
    """
    margins = []
    for task in PROBED:
        labels = ("k = 16", "k = 16, τ = 0.07", "k = 16, τ = 0.3")
        accuracies = [figures["films", label, task] for label in labels]
        worst = np.argmin(accuracies, axis=0)  # (seeds,)
        several = len(set(worst)) > 1
        margins.append(np.array([1.0 if several else -1.0]))
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
    """By how much each label on `films` is above the one before it, in size, for each name."""
    margins = []
    for low, high in zip(labels, labels[1:]):
        for name in names:
            sizes = [np.abs(figures["films", label, name]) for label in (low, high)]
            margins.append(sizes[1] - sizes[0])
    return margins


def gain(figures, collection, task):
    return figures[collection, "k = 16", task] - figures[collection, "k = 1", task]


# --------------------------------------------------------------------------------------------------
# From runs to verdicts
# --------------------------------------------------------------------------------------------------


def figures_of(path):
    """Return {(collection, label, name): (seeds,)} of a findings.json, in the order of the seeds.

    A name is "loss", one of loss.MEASURES, or an accuracy (0 to 1): one of PROBED or of TUNED.
    A figure that some seed lacks is not there.
    """
    rows = read_runs([path])
    seeds = sorted({row["seed"] for row in rows})
    found = {}
    for collection, groups in group([row for row in rows if "final" in row]).items():
        for label, runs in groups.items():
            for name in ("loss", *MEASURES):
                finals = {seed: row["final"].get(name) for seed, row in runs.items()}
                found[collection, label, name] = finals
        results = downstream(rows, groups)
        for name, task in {**PROBED, **TUNED}.items():
            for label, runs in results.get(task, {}).items():
                accuracies = {seed: row["accuracy"] for seed, row in runs.items()}
                found[collection, label, name] = accuracies
    figures = {}
    for which, of_seed in found.items():
        values = [of_seed.get(seed) for seed in seeds]
        if None not in values:
            figures[which] = np.array(values)
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
            print(f"{number}  not asked: {path} has no {error} of each seed")
            continue
        in_each_seed = [margin.round(3).tolist() for margin in margins]
        print(f"{number}  {verdict(margins):20} margins in each seed: {in_each_seed}")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        "python -m lab.findings",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = refuse
    parser.add_argument("findings", metavar="FILE", help="a findings.json of lab.compare")
    return parser.parse_args(argv)


if __name__ == "__main__":
    with one_line_errors("python -m lab.findings", interrupted="run the same command again"):
        print_verdicts(parse_args().findings)
