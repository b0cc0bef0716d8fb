"""Tests of the table of the three papers, on made-up rows."""

import pytest

from lab.siblings import ACCURACIES, COSTS, hours_of_film, print_papers

TELEVISION = {"w": None, "jitter": 0.0, "tau": None}
NETWORKS = {  # what sets a run apart: (its paper, its arguments)
    "iid": (None, {**TELEVISION, "sampling": "iid", "k": 1}),
    "k1": (None, {**TELEVISION, "k": 1}),
    "k16": (None, {**TELEVISION, "k": 16}),
    "k16-w32": (None, {**TELEVISION, "k": 16, "w": 32}),
    "avts": ("AVTS", {"hard_share": 0.25}),
    "avts-easy": ("AVTS", {"hard_share": 0.0}),
    "temporal": ("Temporal", {"speeds": "1,2,4/1,2", "tasks": "speed,direction,order"}),
    "temporal-none": ("Temporal", {"speeds": "1,2,4/1,2", "tasks": "none"}),
}
SNIPPET = {"frames": 8, "fps": 5.0, "batch_size": 64}
TASK = "toy-action, probe, split all"


def pretraining(name, seed, seconds, snippets=45000):
    paper, arguments = NETWORKS[name]
    row = {
        "run": f"time-{seed}-{name}",
        "seed": seed,
        "arguments": {"data": f"datasets/sweep/time-{seed}/films", **SNIPPET, **arguments},
        "final": {"loss": 1.0},
        "done": {"snippets": snippets, "bad": 0, "skipped": 0},
        "training_seconds": seconds,
    }
    return row if paper is None else {**row, "paper": paper}


def probe(name, seed, accuracy):
    """Of a network with this name; None: one that was not pretrained."""
    arguments = {"task": "toy-action", "data": f"datasets/sweep/time-{seed}/action", "probe": True}
    arguments |= {"split": "all", "shots": [1]}
    pretrained = None if name is None else f"time-{seed}-{name}"
    return {
        "run": f"time-{seed}-{name or 'untrained'}-action",
        "seed": seed,
        "task": TASK,
        "pretraining": pretrained,
        "accuracy": accuracy,
        "accuracy_of_shots": {"1": accuracy / 2},
        "arguments": arguments,
    }


def made_up_rows():
    rows = []
    for place, name in enumerate([*NETWORKS, None]):
        for seed in (11, 12):
            if name is not None:
                rows.append(pretraining(name, seed, seconds=600 + 10 * seed))
            rows.append(probe(name, seed, accuracy=0.1 * place + 0.02 * (seed - 11)))
    return rows


def tables_of(rows, capsys):
    """The tables that are printed, each as {label: {column: cell}}."""
    print_papers(rows)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    tables = []
    for line in lines:
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if cells[:2] == ["", "seeds"]:
            heads = cells
            tables.append({})
        elif cells[0] != "---":
            tables[-1][cells[0]] = dict(zip(heads, cells))
    return tables


def test_each_way_to_pretrain_has_a_row_in_both_tables(capsys):
    uses, costs = tables_of(made_up_rows(), capsys)
    labels = ["i.i.d.", "k = 1", "k = 16", "AVTS", "Temporal"]
    assert list(uses) == [*labels, "none"] and list(costs) == labels
    assert all(uses[label]["seeds"] == costs[label]["seeds"] == "2" for label in labels)
    # 0.2 and 0.22, 0.4 and 0.42: of the base of each paper, not of its variants.
    assert uses["k = 16"]["action, 1"] == "10.5 ± 0.71"
    assert uses["AVTS"]["action, 1"] == "20.5 ± 0.71"
    assert uses["none"]["action, 1"] == "40.5 ± 0.71"
    assert uses["AVTS"]["retrieval, R@1"] == ""  # not measured
    assert costs["AVTS"]["snippets"] == "45000"
    assert costs["AVTS"]["seconds of training"] == "715 ± 7"


def test_each_accuracy_and_each_cost_has_a_column_of_its_own(capsys):
    uses, costs = tables_of(made_up_rows(), capsys)
    assert list(uses["k = 16"]) == ["", "seeds", *ACCURACIES]
    assert list(costs["k = 16"]) == ["", "seeds", *(cost.name for cost in COSTS)]
    [column] = [name for name, task in ACCURACIES.items() if task == TASK]
    assert uses["k = 16"][column] == "21 ± 1.4"


def test_hours_of_film_count_the_speeds():
    for name, hours in (("k1", (20, 20)), ("temporal", (20 * 7 / 3, 20 * 1.5))):
        row = pretraining(name, 11, 700)
        assert [hours_of_film(row, part) for part in (0, 1)] == pytest.approx(hours)


def test_without_runs_on_the_world_of_the_papers_there_is_no_table(capsys):
    elsewhere = pretraining("k1", 11, 700)
    elsewhere["arguments"]["data"] = "datasets/sweep/films-11/films"
    assert tables_of([elsewhere], capsys) == []
