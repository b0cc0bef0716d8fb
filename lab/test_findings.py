"""Tests of the findings: made-up runs on which all of them hold, and the same turned round."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

import finetune
import lab.evaluate
import media.__main__
import papers.avts
import papers.temporal
import pretrain
from harness.fixtures import refused, run_script
from lab.compare import downstream_row, evaluation_row
from lab.findings import (
    EVALUATED,
    FINDINGS,
    ask,
    figures_of,
    fraction_until_it_begins,
    margins_of,
    mean_in_words,
    never_began,
    of_one_device,
    processors_of,
    short,
    verdict,
)
from loss import MEASURES

LAB = Path(__file__).parent
STEPS, BATCH = 600, 64
SNIPPETS = {"batch_size": BATCH, "frames": 8, "fps": 5.0}
SEEDS = (11, 12, 13)

# What a made-up run is like: its arguments, and figures from which all findings follow.
RUNS = {
    "k1": {"k": 1, "discrepancy": 1.0, "loss": 3.0, "accuracy": 0.30, "sync_same": 0.6},
    "k1-long": {"k": 1, "epochs": 4, "accuracy": 0.40},
    "k16-long": {"k": 16, "epochs": 4, "accuracy": 0.60},
    "k4": {"k": 4, "discrepancy": 0.8, "loss": 3.2, "accuracy": 0.40},
    "k16": {"k": 16, "discrepancy": 0.6, "loss": 3.4, "accuracy": 0.50, "sync_same": 0.8},
    "k64": {"k": 64, "discrepancy": 0.4, "loss": 3.6, "accuracy": 0.45},
    "iid": {"sampling": "iid", "k": 1, "accuracy": 0.28},
    "k4-w16": {"k": 4, "w": 16, "discrepancy": 0.7, "loss": 3.3},
    "k4-w8": {"k": 4, "w": 8, "discrepancy": 0.65, "loss": 3.35},
    "k4-w4": {"k": 4, "w": 4, "discrepancy": 0.5, "loss": 3.5, "accuracy": 0.20},
    "k16-w64": {"k": 16, "w": 64, "discrepancy": 0.55, "loss": 3.45},
    "k16-w32": {"k": 16, "w": 32, "discrepancy": 0.52, "loss": 3.5, "accuracy": 0.48},
    "k16-w16": {"k": 16, "w": 16, "discrepancy": 0.3, "loss": 3.8, "accuracy": 0.35},
    "k64-w64": {"k": 64, "w": 64, "discrepancy": 0.2, "loss": 3.9, "accuracy": 0.3},
    "k16-wscene": {"k": 16, "w": "scene", "accuracy": 0.6},
    "k1-jitter1": {"k": 1, "jitter": 1.0, "discrepancy": 0.9},
    "k16-tau0.07": {"k": 16, "tau": 0.07, "accuracy": 0.45},
    "k16-tau0.3": {"k": 16, "tau": 0.3, "accuracy": 0.42},
}
# Those of the sibling papers, on the world `time`, beside k1, k16 and iid. The first one of a paper
# has all arguments in which others differ.
AVTS_RUNS = {
    "avts": {
        "hard_share": 0.25,
        "hard_after": 0.5,
        "superhard": False,
        "accuracy": 0.40,
        "sync_same": 0.7,
    },
    "avts-easy": {"hard_share": 0.0, "accuracy": 0.35, "sync_same": 0.65},
    "avts-hard": {"hard_share": 1.0, "hard_after": 0.0, "accuracy": 0.2, "sync_same": 0.62},
    "avts-mixed": {"hard_after": 0.0, "accuracy": 0.33, "sync_same": 0.63},
    "avts-superhard": {"superhard": True, "accuracy": 0.38, "sync_same": 0.61},
}
TEMPORAL_RUNS = {
    "temporal": {"tasks": "speed,direction,order", "bank": 512, "accuracy": 0.6},
    "temporal-none": {"tasks": "none", "accuracy": 0.3},
    "temporal-speed": {"tasks": "speed", "accuracy": 0.5},
    "temporal-direction": {"tasks": "direction", "accuracy": 0.4},
    "temporal-order": {"tasks": "order", "accuracy": 0.45},
    "temporal-unmined": {"bank": 0, "accuracy": 0.55},
}
SIBLINGS = {"AVTS": AVTS_RUNS, "Temporal": TEMPORAL_RUNS}
TRAINED_ON_TIME = ["k1", "k16", "iid", *AVTS_RUNS, *TEMPORAL_RUNS]
UNTRAINED_ACCURACY = 0.1
BEGINS = {"k1": 0.75}  # the share of the training after which a run begins; others: 0.25
TURNED = {"discrepancy": 1.5, "loss": 7.0, "accuracy": 1.0, "sync_same": 1.5, "begins": 1.0}


def made_up_rows(turned=False):
    """Rows on which all findings hold or, turned round, none does."""
    rows = []
    for seed in SEEDS:
        for world in ("films", "tv", "shows"):
            for name in RUNS:
                rows += rows_of_a_run(world, seed, name, turned)
            rows += rows_of_tests(world, seed, "untrained", UNTRAINED_ACCURACY, turned)
        for name in ("k1", "k16", "iid"):
            rows += rows_of_a_run("time", seed, name, turned)
        for paper, runs in SIBLINGS.items():
            for name in runs:
                rows += rows_of_a_sibling(paper, seed, name, turned)
    return rows


def rows_of_a_run(world, seed, name, turned):
    figures = {"discrepancy": 0.5, "loss": 3.4, "accuracy": 0.4, "sync_same": 0.7, **RUNS[name]}
    # The gain of k = 16 over k = 1 is larger on TV.
    if name == "k1" and world != "films":
        figures["accuracy"] -= 0.1

    begins = turn("begins", BEGINS.get(name, 0.25), turned) * STEPS
    discrepancy = turn("discrepancy", figures["discrepancy"], turned) + 0.001 * seed
    final = {
        "loss": turn("loss", figures["loss"], turned) + 0.001 * seed,
        "kl_same_other": discrepancy,
        "kl_same_match": 2.0 if turned else 1.0,
        "kl_other_match": 1.0 if turned else 2.0,
        "gap": discrepancy,
        "sync_same": turn("sync_same", figures["sync_same"], turned),
    }
    row = {
        "run": f"{world}-{seed}-{name}",
        "seed": seed,
        "arguments": {
            "k": figures["k"],
            "w": figures.get("w"),
            "tau": figures.get("tau"),
            "jitter": figures.get("jitter", 0.0),
            "sampling": figures.get("sampling", "hierarchical"),
            **SNIPPETS,
            "epochs": figures.get("epochs", 2),
            "seed": seed,
            "data": f"datasets/{world}-{seed}/films",
        },
        "done": {"snippets": STEPS * BATCH, "bad": 0, "skipped": 0},
        "training_seconds": 600.0,
        # It is 0.05 until the run takes off, and then rises at once.
        "curves": {"kl_same_match": ([0, begins, begins + 1e-3, STEPS], [0.05, 0.05, 1, 1])},
        "final": final,
    }
    rows = [row, *rows_of_tests(world, seed, name, figures["accuracy"], turned)]
    if world == "time":
        rows += rows_of_evaluations(row, figures["accuracy"], turned)
    return rows


def turn(kind, value, turned):
    return TURNED[kind] - value if turned else value


def rows_of_a_sibling(paper, seed, name, turned):
    """It measures no divergences, and its loss is another one than that of pretrain.py."""
    base, *_ = SIBLINGS[paper].values()
    arguments = {"sync_same": 0.7, **base, **SIBLINGS[paper][name]}
    accuracy, sync_same = arguments.pop("accuracy"), arguments.pop("sync_same")
    data = f"datasets/time-{seed}/films"
    row = {
        "run": f"time-{seed}-{name}",
        "seed": seed,
        "paper": paper,
        "arguments": {**arguments, **SNIPPETS, "seed": seed, "data": data},
        "done": {"snippets": STEPS * BATCH, "bad": 0, "skipped": 0},
        "training_seconds": 600.0,
        "curves": {"loss": ([1, STEPS], [0.3, 0.2])},
        "final": {"loss": 0.2, "sync_same": turn("sync_same", sync_same, turned)},
    }
    tests = rows_of_tests("time", seed, name, accuracy, turned)
    return [row, *tests, *rows_of_evaluations(row, accuracy, turned)]


def rows_of_evaluations(pretraining, accuracy, turned):
    """Tests by lab.evaluate of this pretraining, of which each has this accuracy."""
    run, seed = pretraining["run"], pretraining["seed"]
    return [
        {
            "run": f"{run}-{kind}",
            "seed": seed,
            "task": f"toy {kind}",
            "pretraining": run,
            "accuracies": {task: 1 - accuracy if turned else accuracy},
            "arguments": {"data": f"datasets/{kind}-{seed}"},
        }
        for kind, task in EVALUATED.items()
    ]


def rows_of_tests(world, seed, name, accuracy, turned):
    """Probes at half of the steps and at the end, with 5 clips of a class, and fine-tunings."""
    run = f"{world}-{seed}-{name}"
    rows = []
    for task in ("action", "sound"):
        row = {
            "seed": seed,
            "pretraining": None if name == "untrained" else run,
            "arguments": {
                "data": f"datasets/{world}-{seed}/{task}",
                "task": f"toy-{task}",
                "probe": True,
                "split": "all",
            },
        }
        # Turned round, all accuracies are mirrored; those of fine-tuning are a little higher.
        few, tuned = accuracy, accuracy + 0.2
        if turned:
            few, tuned = 1 - few, 1 - tuned
        probe = {
            **row,
            "task": f"toy-{task}, probe, split all",
            "accuracy": 0.9,
            "accuracy_of_shots": {"1": few, "5": 0.85},
        }
        if name == "untrained":
            rows.append({**probe, "run": f"{run}-{task}", "pretraining_step": None})
        else:
            rows.append({**probe, "run": f"{run}-{task}", "pretraining_step": STEPS})
            early = f"{run}-epoch1-{task}"
            rows.append({**probe, "run": early, "pretraining_step": STEPS // 2})
        rows.append(
            {
                **row,
                "run": f"{run}-{task}-tuned5",
                "task": f"toy-{task}, fine-tuned, 5 shots, split 1",
                "accuracy": tuned,
                "pretraining_step": None if name == "untrained" else STEPS,
            }
        )
    return rows


def verdicts_of(rows):
    """{number of a finding: (verdict with all runs, verdict without those that never began)}."""
    figures, processors = figures_of(rows), processors_of(rows)
    found = {}
    for number, finding in FINDINGS.items():
        answer = ask(finding, figures, processors)
        found[number] = (verdict(answer.margins), verdict(answer.without))
    return found


def changed(run, **final):
    """The made-up rows, with other final figures of the pretrainings whose names end in `run`."""
    rows = made_up_rows()
    for row in rows:
        if "final" in row and row["run"].endswith(run):
            row["final"].update(final)
    return rows


def with_accuracy(run, value):
    """The made-up rows, with another accuracy of the tests whose names match `run`."""
    rows = made_up_rows()
    for row in rows:
        if "task" in row and re.search(run, row["run"]):
            if "accuracies" in row:
                row["accuracies"] = dict.fromkeys(row["accuracies"], value)
                continue
            row["accuracy"] = value
            row["accuracy_of_shots"] = {"1": value}
    return rows


def not_held(rows):
    """The findings that do not hold in each seed, with all runs."""
    return [number for number, (found, _) in verdicts_of(rows).items() if found != "holds"]


def test_all_findings_hold_of_runs_made_so():
    expected = dict.fromkeys(FINDINGS, ("holds", "holds"))
    assert verdicts_of(made_up_rows()) == expected


def test_turned_round_no_finding_holds():
    expected = dict.fromkeys(FINDINGS, ("does not hold", "does not hold"))
    assert verdicts_of(made_up_rows(turned=True)) == expected


def test_the_findings_ask_what_they_say():
    """One thing is turned round in the runs on which all findings hold."""
    assert not_held(changed("films-12-k64", kl_same_other=5)) == [1]
    assert not_held(changed("films-12-k1", kl_same_match=3)) == [1]
    assert not_held(changed("films-12-k4-w8", gap=5)) == [2]
    assert not_held(changed("films-12-k16-w64", kl_same_other=5)) == [2]
    assert not_held(changed("films-12-k64-w64", gap=5)) == [3]
    assert not_held(with_accuracy("films-12-k4-w4-sound", 0.9)) == [3]
    assert not_held(with_accuracy("films-12-k4-action", 0.1)) == [3, 4]
    assert not_held(with_accuracy("shows-12-k1-sound", 0.45)) == [4]
    assert not_held(changed("films-12-k4-w8", loss=9)) == [5]
    assert not_held(changed("films-12-k64-w64", loss=1)) == [5]
    assert not_held(changed("films-12-k1-jitter1", gap=0.1)) == [6]
    assert not_held(with_accuracy("films-12-k16-tau0.3-action", 0.9)) == [7]
    assert not_held(with_accuracy("tv-12-untrained-sound", 0.9)) == [8]
    assert not_held(with_accuracy("films-12-untrained-action-tuned5", 0.9)) == [8]
    assert not_held(with_accuracy("films-12-k16-wscene-sound", 0.1)) == [9]
    assert not_held(with_accuracy("films-12-k16-wscene-sound", 0.49)) == [9]  # above w = 32 only
    assert not_held(with_accuracy("shows-12-iid-sound", 0.9)) == [10]
    assert not_held(with_accuracy("tv-12-k16-epoch1-sound", 0.1)) == [11]
    assert not_held(changed("tv-12-k16", sync_same=0.1)) == [13]
    assert not_held(with_accuracy("films-12-k16-long-action", 0.1)) == [12]
    assert 12 in not_held(with_accuracy("shows-12-k16-action", 0.1))


def test_the_findings_of_sibling_papers_ask_what_they_say(monkeypatch):
    """Only the rows of their world are looked at, since nothing else is turned round."""
    for number in range(1, 14):
        monkeypatch.delitem(FINDINGS, number)

    def not_held_on_time(rows):
        return not_held([row for row in rows if row["run"].startswith("time-")])

    assert not_held_on_time(made_up_rows()) == []
    assert not_held_on_time(changed("time-12-avts-easy", sync_same=0.9)) == [14]
    assert not_held_on_time(with_accuracy("time-12-avts-hard-action", 0.9)) == [14]
    assert not_held_on_time(with_accuracy("time-12-avts-mixed-sound", 0.9)) == [14]
    assert not_held_on_time(changed("time-12-avts-superhard", sync_same=0.9)) == [15]
    assert not_held_on_time(with_accuracy("time-12-avts-superhard-sound", 0.9)) == [15]
    assert not_held_on_time(with_accuracy("time-12-k1-synchronisation", 0.45)) == [16]
    assert not_held_on_time(with_accuracy("time-12-k1-sound", 0.45)) == [16]
    assert not_held_on_time(with_accuracy("time-12-k16-synchronisation", 0.35)) == [17]
    assert not_held_on_time(with_accuracy("time-12-k16-action", 0.35)) == [17]
    for test in ("action", "retrieval", "fingerprint"):
        assert not_held_on_time(with_accuracy(f"time-12-temporal-none-{test}", 0.7)) == [18]
        assert not_held_on_time(with_accuracy(f"time-12-temporal-direction-{test}", 0.7)) == [19]
        assert not_held_on_time(with_accuracy(f"time-12-temporal-unmined-{test}", 0.7)) == [20]
    for task in ("speed", "order"):
        assert not_held_on_time(with_accuracy(f"time-12-temporal-{task}-retrieval", 0.7)) == [19]


def test_a_run_is_late_that_takes_off_late():
    rows = made_up_rows()
    for row in rows:
        if row["run"] == "shows-13-k16":
            row["curves"]["kl_same_match"] = ([0, STEPS], [0.05, 0.06])
    assert not_held(rows) == [11]


def test_a_run_begins_after_the_share_of_the_training_until_the_divergence_is_reached():
    assert fraction_until_it_begins([0, 100, 200, 400], [0.0, 0.05, 0.15, 2]) == pytest.approx(
        150 / 400
    )
    assert fraction_until_it_begins([0, 400], [0.0, 0.09]) == 1
    assert fraction_until_it_begins([0, 400], [0.2, 0.3]) == 0


def test_the_size_of_a_discrepancy_counts_and_not_its_sign():
    assert 1 in not_held(changed("films-12-k64", gap=-5))


def test_runs_that_never_began_are_counted_and_can_be_left_out():
    """Of k = 16 one seed never began, and is behind k = 1 on all accounts."""
    rows = with_accuracy("films-12-k16-(action|sound)", 0.05)
    for row in rows:
        if row["run"] == "films-12-k16":
            row["final"]["kl_same_match"] = 0.05
    figures = figures_of(rows)
    assert never_began(figures) == {("films", "k = 16", 12)}
    answer = ask(FINDINGS[12], figures, processors_of(rows))
    of_films = answer.comparisons[0].higher[0]
    assert (of_films.world, of_films.label) == ("films", "k = 16")
    assert answer.never_began == {("films", "k = 16", 12)}
    margins, without = answer.margins[0], answer.without[0]
    assert sorted(margins) == [11, 12, 13] and sorted(without) == [11, 13]
    assert margins[12] < 0 and min(without.values()) > 0
    assert verdict(answer.margins) == "holds in the mean" and verdict(answer.without) == "holds"
    # A finding that is not about this run has nothing to leave out.
    rows = changed("tv-12-k16", kl_same_match=0.05)
    answer = ask(FINDINGS[6], figures_of(rows), processors_of(rows))
    assert answer.never_began == set()


def test_a_comparison_is_made_within_a_seed():
    figures = figures_of(made_up_rows())
    finding = FINDINGS[12]()[0]
    del figures[finding.lower[0]][12]
    assert sorted(margins_of(finding, figures)) == [11, 13]
    figures[finding.higher[0]] = {12: 0.5}
    assert margins_of(finding, figures) == {}


def test_a_verdict_counts_seeds_means_and_what_is_not_asked():
    good, mixed, bad = {1: 1.0, 2: 2.0}, {1: -1.0, 2: 2.0}, {1: 1.0, 2: -2.0}
    assert verdict([good, good]) == "holds"
    assert verdict([good, mixed]) == "holds in the mean"
    assert verdict([good, mixed, bad]) == "in part, 2 of 3"
    assert verdict([bad]) == "does not hold"
    assert verdict([good, {}]) == "holds (1 of 2 asked)"
    assert verdict([{}, {}]) == "not asked"


def test_differences_have_a_mean_a_spread_and_a_unit():
    """Divergences and losses are in nats, all others in percentage points."""
    margins = {11: 0.1, 12: 0.3, 13: -0.1}
    assert mean_in_words(margins, "gap") == mean_in_words(margins, "loss") == "+0.100 ± 0.200"
    assert mean_in_words(margins, "action") == mean_in_words(margins, "sync_same") == "+10.0 ± 20.0"
    assert mean_in_words({11: -0.25}, "begins") == "-25.0"
    assert mean_in_words({}, "action") == "no seed has both"


def test_changed_code_is_named_beside_a_commit():
    assert short("0123456789abcdef") == "0123456789ab"
    assert short("0123456789abcdef+changes") == "0123456789ab+changes"
    assert short(None) == "not recorded"


def test_runs_on_gpus_are_not_compared_with_those_on_cpus():
    """Rows that do not name a device are older, and of CPUs."""
    rows = made_up_rows()
    for row in rows:
        if row["seed"] == 11:
            row["versions"] = {"device": "cpu"}
        if row["seed"] == 12:
            row["versions"] = {"device": "cuda"}
    kept, device, others = of_one_device(rows)
    assert device == "CPU" and others == {"GPU": len(rows) // 3}
    assert {row["seed"] for row in kept} == {11, 13}


@pytest.mark.parametrize(
    "run, findings",
    [
        ("tv-12-k1", {4, 11, 12, 13}),  # the pretraining alone
        ("tv-12-k16-sound", {4, 8, 10, 11, 12, 13}),  # a test of it
        ("shows-12-k1-epoch1-action", {4, 11, 12, 13}),  # a test half-way
        ("films-12-untrained-sound", {8}),
        ("time-12-temporal-speed-fingerprint", {19}),
    ],
)
def test_a_comparison_between_two_kinds_of_processor_is_marked(run, findings):
    rows = made_up_rows()
    for row in rows:
        row["versions"] = {"processor": "another" if row["run"] == run else "the usual one"}
    figures, processors = figures_of(rows), processors_of(rows)
    mixed = {number: ask(FINDINGS[number], figures, processors).mixed for number in FINDINGS}
    assert {number for number in mixed if any(mixed[number])} == findings
    assert set().union(*mixed[max(findings)]) == {12}
    # If all runs of a seed are of the other kind, nothing is mixed.
    for row in rows:
        row["versions"] = {"processor": "another" if row["seed"] == 12 else "the usual one"}
    processors = processors_of(rows)
    for finding in FINDINGS.values():
        assert not any(ask(finding, figures, processors).mixed)


def test_the_verdicts_are_printed(tmp_path):
    rows = with_accuracy("films-12-k16-action", 0.05)
    for row in rows:
        if row["run"] == "films-12-k16":
            row["final"]["kl_same_match"] = 0.05
        row["versions"] = {"processor": "EPYC"}
        if row["run"] == "films-13-k1-action":
            row["versions"] = {"processor": "Xeon", "commit": None}
    rows[0]["versions"]["commit"] = "0123456789abcdef+changes"
    (tmp_path / "findings.json").write_text(json.dumps(rows))
    status, printed, errors = run_script("lab.findings", tmp_path / "findings.json")
    assert not status, errors
    lines = printed.splitlines()
    assert f"{len(rows)} runs on a CPU." in lines[2]
    of_seed = len(rows) // 3
    assert lines[3] == f"Seeds: 11 ({of_seed} runs), 12 ({of_seed} runs), 13 ({of_seed} runs)."
    assert (
        lines[4] == f"Commits: 0123456789ab+changes (1 runs), not recorded ({len(rows) - 1} runs)."
    )
    assert lines[5] == f"Processors: EPYC ({len(rows) - 1} runs), Xeon (1 runs)."
    asked = FINDINGS[12].__doc__
    found = "no verdict yet; so far holds (1 left out; seeds: 2 to 3)"
    assert f"| 12 | {asked} | holds in the mean | 3 | {found} |" in lines
    assert f"| 18 | {FINDINGS[18].__doc__} | holds | 3 |  |" in lines
    start = lines.index(f"## 12. {asked}")
    assert lines[start + 2] == "|  | mean | 11 | 12 | 13 | mean without ( ) |"
    values = np.array([20, -25, 20])
    spread = f"{values.mean():+.1f} ± {values.std(ddof=1):.1f}"
    of_seeds = "+20.0 | (-25.0) | +20.0 † | +20.0 ± 0.0"
    assert lines[start + 4] == f"| films, action: k = 16 > k = 1 | {spread} | {of_seeds} |"
    assert lines[start + 6].endswith(" |  |") and lines[start + 6].startswith("| tv, action: ")
    labels = ["i.i.d.", "k = 1", "k = 16", "AVTS", "Temporal"]
    for head in ("What they are good for", "What they take"):
        place = lines.index(f"### {head}")
        table = [line for line in lines[place : place + 20] if line.startswith("| ")]
        assert [line.split(" | ")[:2] for line in table[1:6]] == [
            [f"| {label}", "3"] for label in labels
        ]
    means = lines[lines.index("## The means") :]
    heads = [line for line in means if " | seeds | loss | " in line]
    assert [line.split()[1] for line in heads] == ["films", "shows", "time", "tv"]
    assert sum(line.startswith("| k = 16 | 3 | ") for line in means) == 4
    assert "no finished run" in refused("lab.findings", tmp_path / "none.json")


def test_less_than_three_seeds_make_no_verdict(tmp_path):
    rows = [row for row in made_up_rows() if row["seed"] < 13 or "films-13" in row["run"]]
    (tmp_path / "findings.json").write_text(json.dumps(rows))
    _, printed, _ = run_script("lab.findings", tmp_path / "findings.json")
    lines = printed.splitlines()
    assert f"| 1 | {FINDINGS[1].__doc__} | holds | 3 |  |" in lines
    assert f"| 10 | {FINDINGS[10].__doc__} | no verdict yet; so far holds | 2 to 3 |  |" in lines
    # Nor does a comparison without any.
    rows = [row for row in made_up_rows() if "k1-long" not in row["run"]]
    for row in rows:
        if row["run"] == "tv-12-k1":
            row["final"]["kl_same_match"] = 0.05
    (tmp_path / "findings.json").write_text(json.dumps(rows))
    _, printed, _ = run_script("lab.findings", tmp_path / "findings.json")
    found = "no verdict yet; so far holds (6 of 8 asked)"
    without = f"{found} (1 left out; seeds: 0 to 3)"
    assert f"| 12 | {FINDINGS[12].__doc__} | {found} | 0 to 3 | {without} |" in printed.splitlines()
    # Nor do two seeds, after a run was left out that never began.
    without = "no verdict yet; so far holds (1 left out; seeds: 2 to 3)"
    assert f"| 13 | {FINDINGS[13].__doc__} | holds | 3 | {without} |" in printed
    # Where no run with colour jitter begins, nothing is left to compare.
    rows = made_up_rows()
    for row in rows:
        if row["run"].endswith("k1-jitter1"):
            row["final"]["kl_same_match"] = 0.05
    (tmp_path / "findings.json").write_text(json.dumps(rows))
    _, printed, _ = run_script("lab.findings", tmp_path / "findings.json")
    assert f"| 6 | {FINDINGS[6].__doc__} | holds | 3 | no seed is left (3 left out) |" in printed


def test_the_page_of_the_verdicts_is_made_of_the_rows(monkeypatch):
    monkeypatch.chdir(LAB.parent)
    status, printed, errors = run_script("lab.findings", "lab/findings.json")
    assert not status, errors
    assert printed == (LAB / "findings.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "lab/README.md"])
def test_a_verdict_in_our_words_is_that_of_the_page(page):
    """Both pages put what is asked in shorter words, and have the verdict in the third cell."""
    table = r"^\| (\d+) \| (?:[^|]+) \| ([^|]+) \|"
    printed = dict(re.findall(table, (LAB / "findings.md").read_text(), re.MULTILINE))
    told = dict(re.findall(table, (LAB.parent / page).read_text(), re.MULTILINE))
    assert len(told) == len(FINDINGS)
    if page == "README.md":
        printed = {
            number: found.removeprefix("no verdict yet; ") for number, found in printed.items()
        }
    assert told == printed


# --------------------------------------------------------------------------------------------------
# The sweep
# --------------------------------------------------------------------------------------------------

# In place of python: a run leaves its result.json, and `lab.compare --add` a line with its name.
STUB = """#!/bin/sh
echo "$OMP_NUM_THREADS $*" >> calls
case "$*" in
  *"-m lab.compare --add"*)
    echo "{\\"run\\": \\"$(basename "$5")\\"}" >> "$4"
    ;;
  *"-m media toy"*)
    mkdir -p "$4"
    ;;
  *" --out "*)
    for folder; do :; done
    mkdir -p "$folder"
    touch "$folder/result.json"
    ;;
esac
"""
# As on three cores: the real one counts threads where they are set.
NPROC = """#!/bin/sh
echo "${OMP_NUM_THREADS:-3}"
"""
# In bash, which passes the functions of the sweep on.
XARGS = f"""#!/usr/bin/env bash
echo "$*" > jobs_at_a_time
exec {shutil.which("xargs")} "$@"
"""
PRETRAININGS = {
    "pretrain.py": pretrain,
    "papers.avts": papers.avts,
    "papers.temporal": papers.temporal,
}
TESTS = {"finetune.py": finetune, "lab.evaluate": lab.evaluate}
SCRIPTS = PRETRAININGS | TESTS


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder in which lab/sweep.sh was run for seed 11, and the commands that it ran there."""
    folder = tmp_path_factory.mktemp("sweep")
    prepare_sweep(folder)
    return folder, sweep(folder)


def prepare_sweep(folder, python=STUB):
    """Put lab/sweep.sh into this folder, with scripts in place of the programs that it runs."""
    (folder / "lab").mkdir()
    shutil.copy(LAB / "sweep.sh", folder / "lab")
    (folder / "bin").mkdir()
    for name, text in (("python", python), ("nproc", NPROC), ("xargs", XARGS)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)


def sweep(folder, status=0):
    """Run lab/sweep.sh for seed 11 in this folder, and return the commands that it ran."""
    (folder / "calls").unlink(missing_ok=True)
    with start_sweep(folder) as process:
        assert process.wait() == status
    calls = (folder / "calls").read_text().splitlines()
    return [call for call in calls if "-m lab.findings" not in call]


def start_sweep(folder):
    """Start lab/sweep.sh for seed 11 in this folder, as from a terminal of its own."""
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    environment["OMP_NUM_THREADS"] = "1"  # which must not be the number of jobs
    command = ["bash", folder / "lab" / "sweep.sh", "--seeds", "11"]
    return subprocess.Popen(
        command, env=environment, start_new_session=True, preexec_fn=heed_interrupts
    )


def heed_interrupts():
    """Undo what a shell does to all that it runs in the background, tests among them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def made_by(calls, *words):
    """The folders of those runs whose commands have these words."""
    return {call.split()[-1] for call in calls if all(f" {word} " in call for word in words)}


def test_the_sweep_makes_each_run_once(swept):
    folder, calls = swept
    assert (folder / "jobs_at_a_time").read_text().startswith("-P 3 ")  # one on each core,
    assert all(call.startswith("1 ") for call in calls)  # with a thread each
    assert len(set(calls)) == len(calls)
    worlds = []
    for call in calls:
        if " -m media toy " in call:
            worlds.append(call.split()[4])
        if " --data " in call:
            data = call.split(" --data ")[1].split()[0]
            assert str(Path(data).parent) in worlds  # rendered before it is read
    names = ("films", "shows", "time", "tv", "unseen")
    assert sorted(worlds) == [f"datasets/sweep/{world}-11" for world in names]
    television = made_by(calls, "pretrain.py")
    siblings = made_by(calls, "papers.avts") | made_by(calls, "papers.temporal")
    assert len(television) == 3 * 5 + 13 + 3 and len(siblings) == 5 + 6
    # Probes of the end in two tasks, of untrained networks too; of epochs before the end; and
    # fine-tunings of three networks.
    pretrained, tested = television | siblings, made_by(calls, "finetune.py")
    learning = 3 * 3 * (epochs_of_the_sweep() - 1)
    assert len(tested) == 2 * (len(pretrained) + 4 + learning) + 3 * 2 * 2
    # What the sibling papers ask, of their networks and of those beside them.
    evaluated = made_by(calls, "lab.evaluate")
    assert len(made_by(calls, "lab.evaluate", "retrieve")) == 3 + len(siblings) + 1
    for unseen in ("fingerprint", "sync"):
        assert len(made_by(calls, unseen, "datasets/sweep/unseen-11/films")) == 3 + len(siblings)
    rows = (folder / "lab" / "findings.json").read_text().splitlines()
    assert len(rows) == len(pretrained | tested | evaluated)
    assert (folder / "lab" / "findings.md").exists()


def test_the_unseen_films_are_of_the_kind_of_those_that_are_trained_on(swept):
    """They differ in their number and in their seed, and so in all that is drawn."""
    _, calls = swept
    worlds = {}
    for call in calls:
        if " -m media toy " in call:
            args = media.__main__.parse_args(call.split()[3:])
            worlds[Path(args.dir).name] = vars(args)
    time, unseen = worlds["time-11"], worlds["unseen-11"]
    differ = {name for name in time if time[name] != unseen[name]}
    assert differ == {"dir", "seed", "titles", "clips"} and unseen["seed"] == 111
    assert (time["fps"], time["gop"], time["tiring"]) == (10, 1, 0.5)


def test_the_sweep_makes_what_has_no_row_and_no_more(swept, tmp_path):
    """In a fresh clone the weights of a run are gone, and a test of them needs them."""
    folder, _ = swept
    for name in ("bin", "lab"):
        shutil.copytree(folder / name, tmp_path / name)
    rows = tmp_path / "lab" / "findings.json"
    kept = rows.read_text().splitlines()
    kept.remove('{"run": "tv-11-k16-epoch1-sound"}')
    rows.write_text("\n".join(kept) + "\n")
    calls = sweep(tmp_path)
    assert made_by(calls, "--out") == {"runs/sweep/tv-11-k16", "runs/sweep/tv-11-k16-epoch1-sound"}
    assert sum(" -m media toy " in call for call in calls) == 1


def test_two_jobs_that_need_the_same_weights_make_them_once(swept, tmp_path):
    """One probes k = 1, another fine-tunes it. They begin together, since the others have rows."""
    folder, _ = swept
    slow = 'echo "$OMP_NUM_THREADS $*" >> calls\ncase "$*" in pretrain.py*) sleep 0.5;; esac'
    prepare_sweep(tmp_path, STUB.replace('echo "$OMP_NUM_THREADS $*" >> calls', slow))
    tests = {f"films-11-k1-{name}" for name in ("sound", "sound-tuned")}
    rows = (folder / "lab" / "findings.json").read_text().splitlines()
    kept = [row for row in rows if not any(f'"{name}"' in row for name in tests)]
    assert len(kept) == len(rows) - len(tests)
    (tmp_path / "lab" / "findings.json").write_text("\n".join(kept) + "\n")
    calls = [call for call in sweep(tmp_path) if " --out " in call]
    made = [Path(call.split()[-1]).name for call in calls]
    assert sorted(made) == ["films-11-k1", *sorted(tests)]


@pytest.mark.parametrize(
    "pattern, failed, untested",
    [
        ("*tv-11-k1/checkpoint*tv-11-k1-action*", ["tv-11-k1-action"], []),
        ("*tv-11-k4", ["tv-11-k4"], ["tv-11-k4-action", "tv-11-k4-sound"]),
    ],
)
def test_a_run_that_fails_does_not_keep_the_sweep_from_the_others(
    swept, tmp_path, capfd, pattern, failed, untested
):
    folder, all_calls = swept
    breaks = f"""  {pattern})
    echo "all is lost: try again"
    exit 1
    ;;
  *" --out "*)"""
    prepare_sweep(tmp_path, STUB.replace('  *" --out "*)', breaks))
    sweep(tmp_path, status=1)
    rows = (tmp_path / "lab" / "findings.json").read_text()
    missing = {f"runs/sweep/{name}" for name in failed + untested}
    expected = made_by(all_calls, "--out") - missing
    assert {f"runs/sweep/{run}" for run in re.findall('"run": "(.*)"', rows)} == expected
    printed = capfd.readouterr().out.splitlines()
    assert printed == [f"{name}: all is lost: try again" for name in failed]
    assert (tmp_path / "lab" / "findings.md").exists()


def test_an_interrupted_sweep_begins_nothing_more(tmp_path):
    """Interrupted, a run saves and ends with an exit status of 1, as our scripts do."""
    saves = """  *" --ckpt "*)
    trap 'touch saved; exit 1' INT
    touch started
    while true; do sleep 0.05; done
    ;;
  *" --out "*)"""
    prepare_sweep(tmp_path, STUB.replace('  *" --out "*)', saves))
    with start_sweep(tmp_path) as process:
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)  # All three jobs are at their first test.
        os.killpg(process.pid, signal.SIGINT)
        try:
            assert process.wait(timeout=60) != 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    time.sleep(0.5)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert (tmp_path / "saved").exists() and len(made_by(calls, "--ckpt")) == 3


def jobs_of(*flags):
    """(seed, world, network) of each job of the sweep with these flags."""
    command = ["bash", LAB / "sweep.sh", "--list", *flags]
    jobs = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    return [tuple(job.split()[:3]) for job in jobs]


def test_the_headline_is_three_worlds_and_five_seeds():
    found = jobs_of("--headline")
    expected = {
        (f"{seed}", world, network)
        for seed in range(11, 16)
        for world in ("films", "tv", "shows")
        for network in ("k1", "k4", "k16", "k64", "iid", "untrained")
    }
    assert len(found) == len(expected) and set(found) == expected


def test_the_sibling_papers_have_a_world_and_three_seeds():
    found = jobs_of("--ablations")
    networks = ["untrained", *TRAINED_ON_TIME]
    expected = {(f"{seed}", "time", network) for seed in range(11, 14) for network in networks}
    assert len(found) == len(expected) and set(found) == expected


def test_each_list_has_the_seeds_of_a_verdict_before_the_next_begins():
    """When the sweep is interrupted, some findings have their verdict."""
    of_verdict = ("--seeds", "11 12 13")
    assert jobs_of(*of_verdict)[:54] == jobs_of("--headline", *of_verdict)
    assert jobs_of(*of_verdict)[54:72] == jobs_of("--papers", *of_verdict)
    assert jobs_of(*of_verdict)[-27:] == jobs_of("--ablations", *of_verdict)[18:]
    assert jobs_of("--ablations")[:18] == jobs_of("--papers")
    seeds = [seed for seed, _, _ in jobs_of("--ablations")[18:]]
    assert seeds == [seed for times in (4, 5) for seed in ("11", "12", "13") for _ in range(times)]
    assert [seed for seed, _, _ in jobs_of("--papers")] == 6 * ["11"] + 6 * ["12"] + 6 * ["13"]
    assert jobs_of() == jobs_of(*of_verdict) + jobs_of("--headline", "--seeds", "14 15")
    assert jobs_of("--headline")[54:] == jobs_of("--headline", "--seeds", "14 15")


def test_the_sweep_makes_all_that_the_findings_ask_for(swept):
    _, calls = swept
    rows = [row_of_call(call) for call in calls if script_in(call) in SCRIPTS]
    figures = figures_of(rows)
    for finding in FINDINGS.values():
        for comparison in finding():
            for figure in (*comparison.higher, *comparison.lower):
                assert figure in figures, figure


def test_the_sweep_trains_all_papers_for_as_many_snippets(swept):
    """They train on 230 of the 256 titles, each of 153.6 s; the others are held out."""
    _, calls = swept
    snippets = {}
    for call in calls:
        if " datasets/sweep/time-11/films " in call:
            args = SCRIPTS[script_in(call)].parse_args(flags_in(call))
            seconds = args.frames / args.fps
            assert seconds == pytest.approx(1.6)
            stride = getattr(args, "stride", seconds)
            longest = seconds * highest_speed(args)
            M = 1 + round((153.6 - longest) / stride)  # snippets of a title
            snippets[Path(args.out).name] = args.epochs * (230 * M // args.batch_size) * 64
            assert (args.width, args.batch_size, args.share, args.mels) == (16, 64, 64, 64)
            assert getattr(args, "network", "r2plus1d_18") == "r2plus1d_18"
            assert (args.n_fft / args.rate, args.hop / args.rate) == (0.064, 0.016)
    assert snippets.keys() == {f"time-11-{name}" for name in TRAINED_ON_TIME}
    most = max(snippets.values())
    assert most == 690 * 64 and min(snippets.values()) > 0.96 * most


def highest_speed(args):
    """How many times as long as a snippet the longest clip is: 1 but for Temporal."""
    if not hasattr(args, "speeds"):
        return 1
    return max(max(speeds) for speeds in papers.temporal.parse_speeds(args.speeds))


def script_in(call):
    """The script, or the module, that a command runs."""
    words = call.split()
    return words[2] if words[1] == "-m" else words[1]


def flags_in(call):
    return call.split(f" {script_in(call)} ")[1].split()


def row_of_call(call):
    """The row of a run with this command, whose flags its script has to take."""
    script = script_in(call)
    args = SCRIPTS[script].parse_args(flags_in(call))  # raises BadInput for an unknown flag
    width = 16 if "/time-" in args.data else 8
    if script in PRETRAININGS:
        SCRIPTS[script].check_args(args, world_size=1)
        assert args.width == width
    args = vars(args)
    run = {"run": Path(args["out"]).name, "seed": args["seed"]}
    if script.startswith("papers."):
        final = {"loss": 0.2, "sync_same": 0.7, "sync_other": 0.9}
        done = {"snippets": args["epochs"] * STEPS * args["batch_size"], "skipped": 0}
        paper = {"papers.avts": "AVTS", "papers.temporal": "Temporal"}[script]
        return {**run, "paper": paper, "arguments": args, "final": final, "done": done}
    if script == "pretrain.py":
        measured = {"loss": 3.0, **dict.fromkeys(MEASURES, 1.0)}
        steps = args["epochs"] * STEPS
        done = {"snippets": steps * args["batch_size"], "skipped": 0}
        curves = {"kl_same_match": ([0, steps], [0, 1]), "gap": ([0, steps], [0, 1])}
        return {**run, "arguments": args, "final": measured, "curves": curves, "done": done}
    # An untrained network is as wide as those that were pretrained on its world.
    assert args.get("width") == (None if args["ckpt"] else width)
    result = {"settings": args}
    if args["ckpt"]:
        result["pretraining_step"] = step_of_weights(Path(args["ckpt"]))
    if script == "lab.evaluate":
        result |= {"sync_same": 0.7, "sync_other": 0.9}
        recalls = {part: {"mean": {"1": 0.5}} for part in ("sight", "sound", "both")}
        recall = {"1": 0.5, "checkpoint": recalls, "untrained": recalls}
        result |= {"evaluation": args["command"], "recall": recall}
        return {**run, **evaluation_row(result, args["out"])}
    few = {f"{shots}": 0.5 for shots in args["shots"] or []}
    return {**run, **downstream_row({**result, "accuracy": 0.5, "accuracy_of_shots": few})}


def step_of_weights(path):
    """The step of a made-up run after which it wrote these weights."""
    if path.stem.startswith("epoch"):
        return int(path.stem.removeprefix("epoch")) * STEPS
    epochs = epochs_of_the_sweep()
    if path.parent.name.endswith("-long"):
        epochs *= 2
    if "-avts" in path.parent.name:
        epochs = 1
    return epochs * STEPS


def epochs_of_the_sweep():
    return int(re.search(r"^export EPOCHS=(\d+)$", (LAB / "sweep.sh").read_text(), re.MULTILINE)[1])


def test_what_the_sweep_refuses(tmp_path):
    for flags, message in ((["--seed"], "--seed: must be"), (["--seeds"], "name one or more")):
        command = ["bash", LAB / "sweep.sh", *flags]
        found = subprocess.run(command, capture_output=True, text=True)
        assert found.returncode == 2 and found.stderr.count("\n") == 1 and message in found.stderr
