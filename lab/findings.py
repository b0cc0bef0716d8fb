"""What the papers find, asked of runs on the toy world. lab/findings.md has what came out.

    python -m lab.findings lab/findings.json              every verdict: it prints findings.md
    python -m lab.findings runs/compare/findings.json     the same for your own runs

A finding is a list of comparisons. A comparison says that one figure is above another one, and is
made within each seed, between runs on one world: what is printed is the mean of the differences,
their standard deviation, and the difference of each seed. Then come what three papers are good for
in one world (lab/siblings.py), and the means of all runs.

A verdict is given twice where runs of pretrain.py never began to match moments, which is to say
that their KL(S⁻‖S⁺) ended below 0.1: with all runs, and without these. The second says what a
setting gives to those that it does not keep from learning.

Runs on GPUs, in bf16, are not compared with runs on CPUs, in fp32. Another kind of CPU adds up
numbers in another order, so that a run there differs from ours as if its seed were another one,
and not in one direction. A difference between two kinds counts, and is marked with †.

What each finding asks was written down before a run of seeds 11 to 15 was made; from finding 14
on, which is of the sibling papers, before a run of these seeds was made on their world, `time`.
Two things changed later. When `time` had one seed, findings 16 and 17 began to take synchronisation
from one test for both papers, on films that neither was trained on; before, each run was tested on
held-out snippets of its own. After 541 runs the sweep came to another kind of CPU. Until then only
runs of the most common kind were to be compared; this changed before a run on the new one ended.
"""

import itertools
from collections import Counter
from typing import NamedTuple

import numpy as np

from harness.errors import make_parser, one_line_errors, printable
from lab.compare import (
    UNTRAINED,
    bases_of,
    by_collection,
    downstream,
    final_tests,
    group,
    learning_curves,
    print_bases,
    read_runs,
    table_head,
    table_of_means,
    table_row,
    tests_of,
)
from lab.siblings import print_papers
from loss import MEASURES

ENOUGH = 3  # seeds for a verdict
BEGAN = 0.1  # KL(S⁻‖S⁺), in nats, of a run that began to tell moments of a title apart
WORLDS = ("films", "tv", "shows")

# Names of figures. Those of discrepancies are sizes: their signs do not count.
DISCREPANCIES = ("kl_same_other", "gap")
# {name of an accuracy: the task whose accuracy it is}. With one labelled clip of each class a probe
# is far from its ceiling, which with all of them every pretraining reaches in time.
PROBED = {
    "action": "toy-action, probe, 1 shot, split all",
    "sound": "toy-sound, probe, 1 shot, split all",
}
TUNED = {
    "action tuned": "toy-action, fine-tuned, 5 shots, split 1",
    "sound tuned": "toy-sound, fine-tuned, 5 shots, split 1",
}
# What lab.evaluate tests. The last two are of films that no network was trained on.
EVALUATED = {
    "retrieval": "toy-action, R@1, split all",
    "fingerprint": "fingerprint of unseen, R@1 mean, both",
    "synchronisation": "synchronisation of unseen, same title",
}
HALF_WAY = {f"{name} half-way": task for name, task in PROBED.items()}
BEGINS = "begins"  # the fraction of the training after which a run began; 1 if it never did
AVTS = ("sync_same", *PROBED)  # What AVTS learns, and what that is good for.
AVTS_AND_OTHERS = ("synchronisation", *PROBED)
TEMPORAL = ("action", "retrieval", "fingerprint")  # What it is tested on, beside fine-tuning.
NATS = ("loss", "kl_same_other", "kl_same_match", "kl_other_match", "gap")
ABOUT_RUNS = """\
A row of that file is a run, with its command's flags, its seed, its curves, and the commit, the
processor and the versions that it was made with. `bash lab/sweep.sh --list` prints the jobs of the
sweep (seed, world, network, tests, flags); lab/README.md says how to make those of one seed again.
A run is called WORLD-SEED-NETWORK, and one that tests a network has the name of the test after
that."""
ABOUT_VERDICTS = """\
A comparison is made within each seed. *Holds*: each comparison of a finding comes out right in each
seed. *Holds in the mean*: each does in the mean of the seeds. *In part, a of b*: a of its b
comparisons do in the mean. *Does not hold*: none does. A comparison is *asked* once any seed has
its runs. A verdict needs three seeds of each comparison; until then *so far* says what the seeds
show that are there. A run of pretrain.py that never began to tell moments of a title apart ended
with KL(S⁻‖S⁺) below 0.1. Without such runs there is a second verdict."""
ABOUT_COMPARISONS = """\
Below are the mean ± standard deviation of the differences, and the difference of each seed, in
parentheses if one of its runs never began, and with a † if its runs were made on more than one kind
of processor. Differences of divergences and of losses are in nats, and all others in percentage
points: of accuracy, of P(sᵢᵢ > sᵢⱼ), of the steps until a run begins."""
MEANS = """\
Mean ± standard deviation over the seeds, of each world. Divergences are in nats, and of held-out
titles; P(sᵢᵢ > sᵢⱼ) is a fraction of the pairs, and all accuracies are in %. `loss` is the mean of
the last tenth of the steps. `none` is an untrained network under a probe, and training from scratch
in fine-tuning. Two labels with other numbers of seeds had other worlds, too: compare them by the
differences above, which are within a seed."""


class Figure(NamedTuple):
    """One number of each seed: the figure `name` of the runs with this label on a world."""

    world: str
    label: str
    name: str


class Comparison(NamedTuple):
    """Holds in a seed where the sum of the `higher` figures is above that of the `lower` ones."""

    words: str
    higher: tuple
    lower: tuple


class Answer(NamedTuple):
    """What came out of the comparisons of a finding.

    margins      of each comparison {seed: how much `higher` is above `lower`}
    without      the same without the runs that never began
    never_began  these runs, as (world, label, seed)
    mixed        of each comparison the seeds whose runs are of more than one kind of processor
    """

    comparisons: list
    margins: list
    without: list
    never_began: set
    mixed: list


# --------------------------------------------------------------------------------------------------
# The findings: each function returns the comparisons that a finding consists of
# --------------------------------------------------------------------------------------------------


def discrepancies_shrink_as_k_grows():
    """Figure 1a: both discrepancies shrink; at k = 1 KL(S⁻‖S⁺) < KL(S≠‖S⁺)."""
    baseline = above("films", "k = 1", "kl_other_match", "kl_same_match")
    return [baseline, *ascending("films", DISCREPANCIES, "k = 64", "k = 16", "k = 4", "k = 1")]


def discrepancies_shrink_with_the_window():
    """Figure 1b: at fixed k a smaller w shrinks both; w is 2 k, 4 k and M_n."""
    of_4 = ascending("films", DISCREPANCIES, "k = 4, w = 8", "k = 4, w = 16", "k = 4")
    of_16 = ascending("films", DISCREPANCIES, "k = 16, w = 32", "k = 16, w = 64", "k = 16")
    return of_4 + of_16


def adjacent_snippets_cost_accuracy():
    """Figure 1c, Table 1: at each k, w = k shrinks both discrepancies, and costs accuracy."""
    comparisons = []
    for k in (4, 16, 64):
        comparisons += ascending(
            "films", (*DISCREPANCIES, *PROBED), f"k = {k}, w = {k}", f"k = {k}"
        )
    return comparisons


def several_snippets_a_title_help():
    """Table 1: k > 1 beats k = 1 downstream, and by more on TV than on films."""
    comparisons = []
    for k in (4, 16, 64):
        comparisons += ascending("films", PROBED, "k = 1", f"k = {k}")
    for world, name in itertools.product(("tv", "shows"), PROBED):
        comparisons.append(larger_gain(world, "films", name))
    return comparisons


def the_loss_grows_with_difficulty():
    """Figure 3: the loss is higher for larger k, for smaller w, and highest for w = k."""
    larger_k = ascending("films", ["loss"], "k = 1", "k = 4", "k = 16", "k = 64")
    of_4 = ascending("films", ["loss"], "k = 4", "k = 4, w = 16", "k = 4, w = 8", "k = 4, w = 4")
    of_16 = ascending(
        "films", ["loss"], "k = 16", "k = 16, w = 64", "k = 16, w = 32", "k = 16, w = 16"
    )
    of_64 = ascending("films", ["loss"], "k = 64", "k = 64, w = 64")
    return larger_k + of_4 + of_16 + of_64


def jitter_shrinks_discrepancies_less_than_k():
    """Figure 2: colour jitter shrinks the discrepancies of k = 1, less than k does."""
    return ascending("films", DISCREPANCIES, "k = 16", "k = 1, σ = 1.0", "k = 1")


def normalised_embeddings_cost_accuracy():
    """4.2: normalised embeddings, over τ, are worse on actions, and no better on sounds."""
    comparisons = []
    for tau in (0.07, 0.3):
        comparisons += ascending("films", PROBED, f"k = 16, τ = {tau}", "k = 16")
    return comparisons


def pretraining_beats_none():
    """Not in the paper: k = 16 beats training from scratch, and untrained features in a probe."""
    comparisons = []
    for world in WORLDS:
        comparisons += ascending(world, PROBED, UNTRAINED, "k = 16")
    return comparisons + ascending("films", TUNED, UNTRAINED, "k = 16")


def scenes_beat_windows():
    """Not in the paper, which leaves scenes to the future (4.2): they beat w = 32, and w = M_n."""
    against_window = ascending("films", PROBED, "k = 16, w = 32", "k = 16, w = scene")
    return against_window + ascending("films", PROBED, "k = 16", "k = 16, w = scene")


def several_snippets_beat_shuffled_ones():
    """Section 3: k = 16 beats snippets drawn i.i.d., in each world."""
    comparisons = []
    for world in WORLDS:
        comparisons += ascending(world, PROBED, "i.i.d.", "k = 16")
    return comparisons


def several_snippets_learn_sooner():
    """Not in the paper: half-way k = 16 is ahead of k = 1, and begins earlier."""
    comparisons = []
    for world in WORLDS:
        comparisons += ascending(world, HALF_WAY, "k = 1", "k = 16")
        comparisons += ascending(world, [BEGINS], "k = 16", "k = 1")
    return comparisons


def several_snippets_learn_more():
    """Table 1: at the end k = 16 is ahead of k = 1; on films at twice the length, too."""
    comparisons = []
    for world in WORLDS:
        comparisons += ascending(world, PROBED, "k = 1", "k = 16")
    return comparisons + ascending("films", PROBED, "k = 1, epochs = 4", "k = 16, epochs = 4")


def several_snippets_tell_moments_apart():
    """Not in the paper: k = 16 tells two moments of one title apart more often than k = 1."""
    comparisons = []
    for world in WORLDS:
        comparisons += ascending(world, ["sync_same"], "k = 1", "k = 16")
    return comparisons


def a_curriculum_beats_its_parts():
    """AVTS, as remembered: the curriculum beats easy negatives, hard ones, and both throughout."""
    comparisons = []
    for kind in ("hard share = 0.0", "hard share = 1.0, hard after = 0.0", "hard after = 0.0"):
        comparisons += ascending("time", AVTS, f"AVTS, {kind}", "AVTS")
    return comparisons


def overlapping_negatives_do_not_help():
    """AVTS, as remembered: hard negatives beat super-hard ones, which overlap with their video."""
    return ascending("time", AVTS, "AVTS, superhard", "AVTS")


def hard_negatives_beat_those_of_other_titles():
    """Not in the papers: AVTS beats k = 1, whose negatives are all of other titles."""
    return ascending("time", AVTS_AND_OTHERS, "k = 1", "AVTS")


def several_snippets_beat_hard_negatives():
    """Table 5, of other data, and there not on UCF101: k = 16 beats AVTS."""
    return ascending("time", AVTS_AND_OTHERS, "AVTS", "k = 16")


def tasks_help_the_contrast():
    """Temporal: the three tasks beside the contrast beat the contrast alone."""
    return ascending("time", TEMPORAL, "Temporal, tasks = none", "Temporal")


def tasks_help_one_another():
    """Temporal: the three tasks beside the contrast beat each one of them beside it."""
    comparisons = []
    for task in ("speed", "direction", "order"):
        comparisons += ascending("time", TEMPORAL, f"Temporal, tasks = {task}", "Temporal")
    return comparisons


def mined_pairs_help():
    """Temporal: pairs that are mined from the last embeddings beat the usual ones alone."""
    return ascending("time", TEMPORAL, "Temporal, bank = 0", "Temporal")


FINDINGS = {
    1: discrepancies_shrink_as_k_grows,
    2: discrepancies_shrink_with_the_window,
    3: adjacent_snippets_cost_accuracy,
    4: several_snippets_a_title_help,
    5: the_loss_grows_with_difficulty,
    6: jitter_shrinks_discrepancies_less_than_k,
    7: normalised_embeddings_cost_accuracy,
    8: pretraining_beats_none,
    9: scenes_beat_windows,
    10: several_snippets_beat_shuffled_ones,
    11: several_snippets_learn_sooner,
    12: several_snippets_learn_more,
    13: several_snippets_tell_moments_apart,
    14: a_curriculum_beats_its_parts,
    15: overlapping_negatives_do_not_help,
    16: hard_negatives_beat_those_of_other_titles,
    17: several_snippets_beat_hard_negatives,
    18: tasks_help_the_contrast,
    19: tasks_help_one_another,
    20: mined_pairs_help,
}


def ascending(world, names, *labels):
    """Expect that these figures rise from each label to the next: from the lowest to the highest.

    Two neighbours are a comparison, for each of the names.
    """
    comparisons = []
    for low, high in itertools.pairwise(labels):
        for name in names:
            words = f"{world}, {caption_of(name)}: {high} > {low}"
            higher = (Figure(world, high, name),)
            lower = (Figure(world, low, name),)
            comparisons.append(Comparison(words, higher, lower))
    return comparisons


def above(world, label, high, low):
    """Expect that of two figures of the same runs `high` is above `low`."""
    words = f"{world}, {label}: {caption_of(high)} > {caption_of(low)}"
    return Comparison(words, (Figure(world, label, high),), (Figure(world, label, low),))


def larger_gain(high, low, name):
    """Expect that k = 16 is further above k = 1 in the world `high` than in the world `low`."""
    words = f"{caption_of(name)}: k = 16 − k = 1 on {high} > on {low}"
    higher = (Figure(high, "k = 16", name), Figure(low, "k = 1", name))
    lower = (Figure(high, "k = 1", name), Figure(low, "k = 16", name))
    return Comparison(words, higher, lower)


def caption_of(name):
    """What pictures and tables call a figure, if it is one of theirs."""
    caption, _ = MEASURES.get(name, (name, None))
    return caption


# --------------------------------------------------------------------------------------------------
# From runs to figures
# --------------------------------------------------------------------------------------------------


def figures_of(rows):
    """Return {Figure: {seed: value}} of rows, as `lab.compare` reads them.

    A name is "loss", one of loss.MEASURES, BEGINS, or an accuracy from 0 to 1: one of PROBED,
    TUNED, EVALUATED and HALF_WAY.
    """
    pretrained = [row for row in rows if "final" in row]
    figures = {}
    for world, groups in group(pretrained).items():
        for label, seeds in groups.items():
            for seed, row in seeds.items():
                for name, value in figures_of_run(row).items():
                    figures.setdefault(Figure(world, label, name), {})[seed] = value
        results = downstream(rows, groups)
        for name, task in {**PROBED, **TUNED, **EVALUATED}.items():
            for label, accuracy_of_seed in results.get(task, {}).items():
                figures[Figure(world, label, name)] = dict(accuracy_of_seed)
        curves = learning_curves(rows, groups)
        for name, task in HALF_WAY.items():
            for label, curve_of_seed in curves.get(task, {}).items():
                half_way = {seed: middle_of(curve) for seed, curve in curve_of_seed.items()}
                figures[Figure(world, label, name)] = half_way
    return figures


def figures_of_run(row):
    """Return {name: value} of one pretraining."""
    figures = {}
    for name in ("loss", *MEASURES):
        if name in row["final"]:
            figures[name] = row["final"][name]
    if "gap" in figures:
        figures["gap"] = abs(figures["gap"])
    if "kl_same_match" in row.get("curves", {}):
        figures[BEGINS] = fraction_until_it_begins(*row["curves"]["kl_same_match"])
    return figures


def fraction_until_it_begins(steps, divergences):
    """Return the fraction of the training after which KL(S⁻‖S⁺) first reached BEGAN, or 1.

    Between two measurements it is taken to be linear.
    """
    pairs = itertools.pairwise(zip(steps, divergences))
    for (step_before, before), (step, divergence) in pairs:
        if divergence >= BEGAN:
            part = (BEGAN - before) / (divergence - before) if before < BEGAN else 0
            return (step_before + part * (step - step_before)) / steps[-1]
    return 1.0


def middle_of(curve):
    """Return the accuracy of a learning curve at half of its steps, or between the two nearest."""
    steps, accuracies = curve
    return float(np.interp(steps[-1] / 2, steps, accuracies))


def never_began(figures):
    """Return the (world, label, seed) of runs that never told moments of a title apart."""
    runs = set()
    for figure, value_of_seed in figures.items():
        if figure.name == "kl_same_match":
            for seed, value in value_of_seed.items():
                if value < BEGAN:
                    runs.add((figure.world, figure.label, seed))
    return runs


def of_one_device(rows):
    """Return (the rows of the most common device, "CPU" or "GPU", {the other: how many rows})."""
    devices = Counter(device_of(row) for row in rows)
    # Of two that are equally common, the first in alphabetical order.
    device = min(devices, key=lambda device: (-devices[device], device))
    others = {other: count for other, count in sorted(devices.items()) if other != device}
    kept = [row for row in rows if device_of(row) == device]
    return kept, device, others


def device_of(row):
    """Return "CPU" or "GPU"; rows that are older than this field are all of CPUs."""
    return "GPU" if row.get("versions", {}).get("device") == "cuda" else "CPU"


def processors_of(rows):
    """Return {(world, label, seed): the kinds of processor that made this run and its tests}."""
    kinds = {}
    for world, groups in group([row for row in rows if "final" in row]).items():
        for label, seeds in groups.items():
            for seed, row in seeds.items():
                kinds[world, label, seed] = {processor_of(row)}
        inside = [test for test in tests_of(rows, groups) if test.is_inside]
        for test in [*final_tests(rows, groups), *inside]:
            run = world, test.label, test.row["seed"]
            kinds.setdefault(run, set()).add(processor_of(test.row))
    return kinds


def processor_of(row):
    return row.get("versions", {}).get("processor", "not recorded")


# --------------------------------------------------------------------------------------------------
# From figures to verdicts
# --------------------------------------------------------------------------------------------------


def margins_of(comparison, figures, left_out=()):
    """Return {seed: how much `higher` is above `lower`}, of the seeds that have all figures.

    left_out  (world, label, seed) of runs that do not count
    """
    involved = [*comparison.higher, *comparison.lower]
    seeds = set.intersection(*(set(figures.get(figure, {})) for figure in involved))
    margins = {}
    for seed in sorted(seeds):
        runs = {(figure.world, figure.label, seed) for figure in involved}
        if runs.isdisjoint(left_out):
            high = sum(figures[figure][seed] for figure in comparison.higher)
            low = sum(figures[figure][seed] for figure in comparison.lower)
            margins[seed] = high - low
    return margins


def verdict(margins):
    """Say whether each comparison comes out: in each seed, in the mean of the seeds, or in part.

    margins  {seed: value} of each comparison; one without a seed is not asked, and named so
    """
    asked = [np.array(list(of_seed.values())) for of_seed in margins if of_seed]
    if not asked:
        return "not asked"
    right = sum(values.mean() > 0 for values in asked)
    if all((values > 0).all() for values in asked):
        found = "holds"
    elif right == len(asked):
        found = "holds in the mean"
    elif right > 0:
        found = f"in part, {right} of {len(asked)}"
    else:
        found = "does not hold"
    if len(asked) < len(margins):
        found += f" ({len(asked)} of {len(margins)} asked)"
    return found


def ask(finding, figures, processors):
    """Return the Answer of a finding to what `figures_of` and `processors_of` return."""
    comparisons = finding()
    involved = set()
    for comparison in comparisons:
        for figure in (*comparison.higher, *comparison.lower):
            involved.add((figure.world, figure.label))
    left_out = {run for run in never_began(figures) if run[:2] in involved}
    margins = [margins_of(comparison, figures) for comparison in comparisons]
    without = [margins_of(comparison, figures, left_out) for comparison in comparisons]
    mixed = [mixed_seeds(*pair, processors) for pair in zip(comparisons, margins)]
    return Answer(comparisons, margins, without, left_out, mixed)


def mixed_seeds(comparison, margins, processors):
    """Return the seeds in which the runs of a comparison are of more than one kind of processor."""
    mixed = set()
    for seed in margins:
        kinds = set()
        for figure in (*comparison.higher, *comparison.lower):
            kinds |= processors[figure.world, figure.label, seed]
        if len(kinds) > 1:
            mixed.add(seed)
    return mixed


# --------------------------------------------------------------------------------------------------
# The page
# --------------------------------------------------------------------------------------------------


def print_page(path):
    """Print, in Markdown, all verdicts and comparisons, what is of three papers, and means."""
    rows, device, others = of_one_device(read_runs([path]))
    figures, processors = figures_of(rows), processors_of(rows)
    answers = {number: ask(finding, figures, processors) for number, finding in FINDINGS.items()}
    print("# The findings")
    print()
    print(f"By `python -m lab.findings {printable(path)}`: {len(rows)} runs on a {device}.")
    for other, count in others.items():
        print(f"Left out: {count} runs on a {other}.")
    print_origins(rows)
    print()
    print(ABOUT_RUNS)
    print()
    print(ABOUT_VERDICTS)
    print()
    print_verdicts(answers)
    print()
    print(ABOUT_COMPARISONS)
    for number, answer in answers.items():
        if any(answer.margins):
            print()
            print(f"## {number}. {FINDINGS[number].__doc__}")
            print()
            print_comparisons(answer)
    print_papers(rows)
    print()
    print("## The means")
    print()
    print(MEANS)
    pretrained = [row for row in rows if "final" in row]
    rows_of = by_collection(pretrained)
    for world, groups in group(pretrained).items():
        print()
        print("\n".join(table_of_means(world, groups, downstream(rows, groups))))
        print_bases(bases_of(rows_of[world]))


def print_origins(rows):
    """Print how many runs are of each seed, commit, kind of processor, and version of torch."""
    versions = [row.get("versions", {}) for row in rows]
    print(f"Seeds: {counts_in_words(str(row['seed']) for row in rows)}.")
    print(f"Commits: {counts_in_words(short(version.get('commit')) for version in versions)}.")
    for name, what in (
        ("processor", "Processors"),
        ("torch", "torch"),
        ("threads", "Threads of a run"),
    ):
        counts = counts_in_words(str(version.get(name, "not recorded")) for version in versions)
        print(f"{what}: {counts}.")


def short(commit):
    """The first 12 digits of a commit, and "+changes" if its code had been changed."""
    if commit is None:
        return "not recorded"
    digits, plus, changes = commit.partition("+")
    return digits[:12] + plus + changes


def counts_in_words(names):
    """Say how many runs each name has: "11 (92 runs), 12 (40 runs)"."""
    counts = Counter(names)
    return ", ".join(f"{printable(name)} ({counts[name]} runs)" for name in sorted(counts))


def print_verdicts(answers):
    """Print a table of what `ask` has returned for each finding."""
    heads = ["", "asked", "all runs", "seeds", "without runs that never began"]
    print("\n".join(table_head(heads)))
    for number, answer in answers.items():
        of_the_others = ""
        left_out = f"{len(answer.never_began)} left out"
        if answer.never_began and not any(answer.without):
            of_the_others = f"no seed is left ({left_out})"
        elif answer.never_began:
            seeds_left = seeds_in_words(answer.without)
            of_the_others = f"{verdict_if_enough(answer.without)} ({left_out}; seeds: {seeds_left})"
        found = verdict_if_enough(answer.margins)
        seeds = seeds_in_words(answer.margins)
        print(table_row([number, FINDINGS[number].__doc__, found, seeds, of_the_others]))


def verdict_if_enough(margins):
    """The verdict, or what the seeds show that are there if a comparison has fewer than ENOUGH."""
    found = verdict(margins)
    if any(margins) and min(map(len, margins)) < ENOUGH:
        return f"no verdict yet; so far {found}"
    return found


def seeds_in_words(margins):
    """How many seeds the comparisons have: "5", or "3 to 5"."""
    low, high = min(map(len, margins)), max(map(len, margins))
    return f"{high}" if low == high else f"{low} to {high}"


def print_comparisons(answer):
    """Print a table of the differences that an answer has: their mean, and that of each seed."""
    seeds = sorted(set().union(*answer.margins))
    heads = ["", "mean", *seeds]
    if answer.never_began:
        heads.append("mean without ( )")
    print("\n".join(table_head(heads)))
    parts = zip(answer.comparisons, answer.margins, answer.without, answer.mixed)
    for comparison, margins, without, mixed in parts:
        name = comparison.higher[0].name
        cells = [comparison.words, mean_in_words(margins, name)]
        for seed in seeds:
            cell = in_units(margins[seed], name) if seed in margins else ""
            if seed in margins and seed not in without:
                cell = f"({cell})"
            if seed in mixed:
                cell += " †"
            cells.append(cell)
        if answer.never_began:
            cells.append(mean_in_words(without, name) if without.keys() != margins.keys() else "")
        print(table_row(cells))


def mean_in_words(margins, name):
    """Write the mean of {seed: difference} ± its standard deviation: "+12.3 ± 4.5"."""
    if not margins:
        return "no seed has both"
    values = list(margins.values())
    mean = in_units(np.mean(values), name)
    if len(values) == 1:
        return mean
    deviation = in_units(np.std(values, ddof=1), name)
    return f"{mean} ± {deviation.removeprefix('+')}"


def in_units(difference, name):
    """Write a difference of the figure `name`: in nats, or in percentage points."""
    return f"{difference:+.3f}" if name in NATS else f"{100 * difference:+.1f}"


def parse_args(argv=None):
    parser = make_parser(__doc__, "python -m lab.findings")
    parser.add_argument("findings", metavar="FILE", help="a findings.json of lab.compare")
    return parser.parse_args(argv)


if __name__ == "__main__":
    with one_line_errors("python -m lab.findings", interrupted="run the same command again"):
        print_page(parse_args().findings)
