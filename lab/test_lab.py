"""Tests of lab/: looking at files, runs compared, the findings, and the notebook of them."""

import json
import os
import re
import shlex
import shutil
import subprocess
import types
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from matplotlib.figure import Figure

import finetune
import lab.bench
import lab.compare
import lab.findings
import lab.sampling
import lab.show
import pretrain
from data import Titles
from harness.curves import draw, draw_histograms, summarise
from harness.fixtures import (
    fine_tune,
    pretraining_flags,
    read_log,
    refused,
    run_script,
    write_film,
)
from lab.compare import compare, group, read_runs, sweeps
from lab.findings import FINDINGS, PROBED, TUNED, figures_of, verdict
from loss import MEASURES
from media.format import Format

LAB = Path(__file__).parent
NOTEBOOK = (LAB / "README.md").read_text()
TOY_SIZES = """
    --frames 8 --short-side 34 --crop 28 --rate 16000 --n-fft 1024 --hop 256 --mels 64
""".split()


def contrast(path):
    """How much the pixels of a picture differ: 0 for a blank one."""
    return torchvision.io.decode_image(str(path)).float().std()


def cells_of(line):
    """The cells of a row of a Markdown table."""
    return [cell.strip() for cell in line.split("|")[1:-1]]


# --------------------------------------------------------------------------------------------------
# Looking at files, and timing
# --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("films") / "film.mp4", seconds=40, size=(160, 120))


def test_a_snippet_is_drawn(film, tmp_path):
    picture = tmp_path / "snippet.png"
    status, printed, errors = run_script("lab.show", film, "--at", "00:00:10", "--out", picture)
    assert not status, errors
    assert str(picture) in printed and contrast(picture) > 10


def test_what_showing_a_snippet_refuses(film, tmp_path):
    assert "--at 39 s: must be from 0 to 36.8 s" in refused("lab.show", film, "--at", 39)
    assert "must be a time such as 00:31:00" in refused("lab.show", film, "--at", "xx")
    crop_too_large = refused("lab.show", film, "--short-side", 100)
    assert "--crop 158: must be --short-side (100) or less" in crop_too_large
    assert "--fps 0.0: must be above 0" in refused("lab.show", film, "--fps", 0)
    missing = tmp_path / "none" / "x.png"
    assert "none/x.png" in refused("lab.show", film, "--out", missing)
    silent = write_film(tmp_path / "silent.mp4", seconds=4, audio=None)
    assert "no audio in it" in refused("lab.show", silent)
    assert "nope: no such file or folder; name a media file" in refused("lab.show", "nope")
    folder = refused("lab.show", film.parent)
    assert "name one file of it, or add --scenes" in folder


def test_the_scenes_of_a_file_are_drawn(toy, tmp_path):
    film = toy / "films" / "film000.mp4"
    picture = tmp_path / "scenes.png"
    status, _, errors = run_script("lab.show", film, "--scenes", *TOY_SIZES, "--out", picture)
    assert not status, errors
    assert contrast(picture) > 10
    text = tmp_path / "text.mp4"
    text.write_text("not a film")
    assert "not a media file" in refused("lab.show", text, "--scenes")
    short = write_film(tmp_path / "short.mp4", seconds=2)
    assert "shorter than a snippet of 3.2 s" in refused("lab.show", short, "--scenes")


def true_boundaries(world):
    """{(title, snippet)} with which a scene begins, but for the first of each film.

    Written apart from lab.show.true_boundaries on purpose, because it checks what that prints.
    """
    boundaries = set()
    title_before, scene_before = None, None
    for line in (world / "truth.csv").read_text().splitlines()[1:]:
        title, snippet, scene, *_ = line.split(",")
        if title == title_before and scene != scene_before:
            boundaries.add((int(title), int(snippet)))
        title_before, scene_before = title, scene
    return boundaries


def test_the_scenes_of_a_collection_are_printed_and_compared_with_the_truth(toy):
    status, printed, errors = run_script("lab.show", toy / "films", "--scenes", *TOY_SIZES)
    assert not status, errors
    titles = Titles(toy / "films", Format.of(lab.show.parse_args(["", *TOY_SIZES])), scenes=True)
    found = set()
    for n, lengths in enumerate(titles.scenes):
        mean = 24 / len(lengths)
        assert f"{len(lengths):7}     24 {mean:6.1f}  film00{n}.mp4\n" in printed
        found.update((n, int(m)) for m in np.cumsum(lengths)[:-1])
    scenes = len(found) + 8
    mean = 192 / scenes
    assert f"192 snippets of 1.6 s; {scenes} scenes of {mean:.1f} snippets on average" in printed
    true = true_boundaries(toy)
    right = len(found & true)
    assert 0 < right < len(true) and right < len(found)
    counts = f"{len(found)} found of {len(true)}, {right} of them right"
    shares = f"precision {right / len(found):.3f}, recall {right / len(true):.3f}"
    assert f"boundaries: {counts}: {shares}" in printed


def test_scenes_of_other_snippets_are_not_compared_with_the_truth(toy):
    sizes = [*TOY_SIZES, "--frames", 16]
    status, printed, errors = run_script("lab.show", toy / "films", "--scenes", *sizes)
    assert not status, errors
    assert "not compared; those of the toy world need --frames 8 --fps 5" in printed


def test_reading_is_timed(film):
    sizes = ["--short-side", 60, "--crop", 48, "--snippets", 16]
    status, printed, errors = run_script("lab.bench", "read", film.parent, *sizes)
    assert not status, errors
    assert "decode video" in printed and printed.count("snippets/s") == 2
    assert "--workers 0: must be above 0" in refused(
        "lab.bench", "read", film.parent, "--workers", 0
    )
    assert "no such folder" in refused("lab.bench", "read", film.parent / "none")


def test_a_training_step_is_timed(monkeypatch, capsys):
    """At width 8, on a small product; the full width takes a minute."""
    monkeypatch.setattr(lab.bench, "MATRIX_SIDE", 256)
    lab.bench.main(lab.bench.parse_args("step --batch 1 --width 8".split()))
    printed = capsys.readouterr().out
    assert re.search(r"\d+\.\d\d snippets/s of a limit of \d+\.\d\d: \d+%", printed)
    assert "--batch 0: must be above 0" in refused("lab.bench", "step", "--batch", 0)


def test_the_gpu_memory_of_a_step_is_printed(monkeypatch, capsys):
    """With made-up readings, because tests use no GPU."""
    gpu = types.SimpleNamespace(total_memory=80e9)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 33e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: gpu)
    lab.bench.print_gpu_memory(torch.nn.Linear(1000, 1000, bias=False), batch=64)
    expected = "64 snippets take 33.0 GB of the GPU's 80.0 GB, and Adam 0.008 GB more\n"
    assert capsys.readouterr().out == expected


# --------------------------------------------------------------------------------------------------
# Pictures
# --------------------------------------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    return saved


def titles_of(figure):
    assert all(axes.has_data() for axes in figure.axes)
    return [axes.get_title() for axes in figure.axes]


def test_what_was_never_measured_gets_no_axes(figures):
    """One held-out title has no pairs of two titles, so Equation 2 is not measured."""
    losses = [{"step": step, "loss": 5.0} for step in range(1, 10)]
    measured = [{"step": step, **dict.fromkeys(MEASURES, 0.1)} for step in (0, 9)]
    for log in ([], losses, measured[:1], [*losses, *measured]):
        draw("curves.png", {"k = 4": {0: summarise(log, MEASURES)}}, MEASURES)
    nothing, loss_alone, before_a_step, all_measured = map(titles_of, figures)
    titles = list(MEASURES.values())
    assert nothing == [] and before_a_step == titles
    assert loss_alone == ["training loss"] and all_measured == [*titles, "training loss"]


def test_a_picture_has_mean_and_range_over_the_seeds(figures):
    groups = {"k = 1": {}, "k = 4": {0: summarise([], MEASURES)}}
    for seed, gap in enumerate([1.0, 3.0, 8.0]):
        log = [{"step": step, "gap": gap} for step in (0, 5)]
        groups["k = 1"][seed] = summarise(log, MEASURES)

    def last_panel(axes):
        draw_histograms(axes, [0, 1, 2], {"same": [1, 3]}, title="last", xlabel="x")

    draw("curves.png", groups, MEASURES, last_panel, order=["k = 64", "k = 1"])
    [figure] = figures
    gap, last = figure.axes
    line, empty = gap.get_lines()
    assert line.get_ydata().tolist() == [4, 4] and line.get_color() == "C1"
    shade = gap.collections[0].get_paths()[0].vertices[:, 1]
    assert (shade.min(), shade.max()) == (1, 8)
    legend = [text.get_text() for text in gap.get_legend().get_texts()]
    assert legend == ["k = 1", "k = 4"] and not len(empty.get_ydata())
    assert last.get_title() == "last" and last.patches[0].get_data().values.tolist() == [0.25, 0.75]


def test_the_final_loss_is_the_mean_of_the_last_tenth():
    summary = summarise([{"step": step, "loss": step} for step in range(1, 101)], MEASURES)
    assert summary["final"]["loss"] == 95.5 and len(summary["curves"]["loss"][0]) == 40


def test_the_picture_of_k_and_w_is_what_the_sampler_draws(figures, tmp_path):
    lab.sampling.draw_sampling(tmp_path / "sampling.png")
    [figure] = figures
    headings = ["k = 1", "k = 4", "k = 4, w = 12", "k = w = 4"]
    assert titles_of(figure) == headings
    own = ["0 of", "6 of", "6 of", "6 of"]
    for axes, negatives in zip(figure.axes, own):
        assert f"{negatives} a snippet's 14 negatives" in axes.get_xlabel()
        widths = [round(bar.get_width(), 2) for bar in axes.patches]
        assert widths.count(0.8) == 8  # the snippets of the minibatch
    *_, window, adjacent = figure.axes
    assert [bar.get_width() for bar in window.patches].count(12) == 2
    assert [bar.get_width() for bar in adjacent.patches].count(4) == 2


def test_a_watched_sampler_draws_what_the_loop_draws():
    options = {"batch_size": 8, "k": 4, "w": 12}
    watched = lab.sampling.WatchedSampler(lab.sampling.COUNTS, **options)
    samples = watched.batch(step=0)
    assert samples == lab.sampling.HierarchicalSampler(lab.sampling.COUNTS, **options).batch(step=0)
    windows = {n: range(low, high) for n, low, high in watched.windows}
    assert len(windows) == 2 and all(m in windows[n] for n, m, _ in samples)
    assert contrast(LAB / "sampling.png") > 10


# --------------------------------------------------------------------------------------------------
# Runs compared
# --------------------------------------------------------------------------------------------------


def table_of(printed):
    """{label: cells} of the table that a comparison prints."""
    rows = [cells_of(line) for line in printed.splitlines() if line.startswith("| ")]
    return {cells[0]: cells for cells in rows}


def rows_in(path):
    return {row["run"]: row for row in json.loads(path.read_text())}


def test_runs_are_compared(run, toy, tmp_path):
    other, out = tmp_path / "other", tmp_path / "out"
    status, _, errors = run_script("pretrain.py", *pretraining_flags(toy, other, "--k", 2))
    assert not status, errors
    checkpoint = run / "checkpoint.pt"
    tuned, _ = fine_tune(toy, tmp_path / "tuned", "toy-sound", "--ckpt", checkpoint, "--probe")
    scratch, _ = fine_tune(toy, tmp_path / "scratch", "toy-sound", "--probe")
    (tmp_path / "half").mkdir()
    shutil.copy(checkpoint, tmp_path / "half")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.log").write_text("not a folder")

    folders = [run, *sorted(tmp_path.iterdir()), "nowhere"]
    status, printed, errors = run_script("lab.compare", *folders, "--out", out)
    assert not status, errors
    assert "4 runs" in printed
    for name in ("half", "empty", "a.log", "nowhere"):
        assert f"{name}: no finished run, skipped" in printed
    rows = rows_in(out / "findings.json")
    assert set(rows) == {"whole", "other", "tuned", "scratch"}
    assert rows["other"]["arguments"]["k"] == 2
    assert rows["whole"]["final"]["gap"] == read_log(run, "gap")[-1]
    assert rows["whole"]["final"]["loss"] == read_log(run)[-1]
    assert rows["tuned"]["pretraining"] == "whole" and rows["scratch"]["pretraining"] is None
    for row in rows.values():
        assert row["versions"].keys() >= {"torch", "av", "numpy", "commit"}

    table = table_of(printed)
    assert table["k = 4, w = 8"][-1] == f"{100 * tuned['accuracy']:.3g}"
    assert table["none"][-1] == f"{100 * scratch['accuracy']:.3g}"
    assert table["k = 2, w = 8"][1:3] == ["1", f"{read_log(other)[-1]:.3g}"]
    assert table["k = 2, w = 8"][-1] == ""

    again = tmp_path / "again"
    status, _, errors = run_script("lab.compare", out / "findings.json", "--out", again)
    assert not status, errors
    assert (again / "findings.json").read_bytes() == (out / "findings.json").read_bytes()


def test_two_runs_of_one_seed_count_as_one(run, tmp_path):
    shutil.copytree(run, tmp_path / "zz")
    _, printed, _ = run_script("lab.compare", run, tmp_path / "zz", "--out", tmp_path / "out")
    assert "zz: differs from whole in neither k, w" in printed
    assert table_of(printed)["k = 4, w = 8"][1] == "1"
    _, printed, _ = run_script("lab.compare", run, run, "--out", tmp_path / "out")
    assert "whole: given twice, the first one counts" in printed


def test_what_comparing_refuses(tmp_path):
    assert "no finished run of pretrain.py" in refused("lab.compare", tmp_path)
    for content in ('{"loss": 1}', '[{"loss": 1}]', "[1]", "1", "text"):
        (tmp_path / "foreign.json").write_text(content)
        assert "not what pretrain.py" in refused("lab.compare", tmp_path / "foreign.json")


def test_sweeps_are_drawn_over_seeds(run, tmp_path):
    """Rows as of three seeds, each with a world of its own, whose last figures differ by 1."""
    compare([run], tmp_path / "one")
    [row] = rows_in(tmp_path / "one" / "findings.json").values()
    rows = []
    for k, w, tau in [
        (1, None, None),
        (4, None, None),
        (4, 32, None),
        (4, "scene", None),
        (4, 4, None),
        (4, None, 0.07),
    ]:
        for seed in (1, 2, 3):
            changes = {"k": k, "w": w, "tau": tau, "data": f"datasets/toy-{seed}/films"}
            rows.append(
                {
                    **row,
                    "run": f"{k}{w}{tau}-{seed}",
                    "seed": seed,
                    "final": {**row["final"], "gap": 5.0 + seed},
                    "arguments": {**row["arguments"], **changes},
                }
            )
    (tmp_path / "three.json").write_text(json.dumps(rows))
    out = tmp_path / "out"
    status, printed, errors = run_script("lab.compare", tmp_path / "three.json", "--out", out)
    assert not status, errors
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures == {"toy-k.png", "toy-w.png", "toy-jitter-tau.png"}
    labels = [label for label in table_of(printed) if label.startswith("k")]
    one, whole, tau, *windows = labels
    assert (one, whole, tau) == ("k = 1", "k = 4", "k = 4, τ = 0.07")
    assert windows == ["k = 4, w = 32", "k = 4, w = 4", "k = 4, w = scene"]
    assert printed.count("| 7 ± 1 |") == 6  # gaps of 6, 7 and 8: mean and standard deviation
    groups = group(read_runs([tmp_path / "three.json"]))["toy"]
    expected = {"k": [one, whole], "w": [whole, *windows], "jitter-tau": [whole, tau]}
    assert sweeps(groups) == expected


STUB = """#!/bin/sh
echo "$OMP_NUM_THREADS $*" >> calls
"""


PARSERS = {"pretrain.py": pretrain.parse_args, "finetune.py": finetune.parse_args}


def test_the_shuffled_baseline_is_a_place_of_its_own_beside_k():
    rows = []
    for sampling, k, w in (
        ("hierarchical", 4, None),
        ("iid", 1, None),
        (None, 1, None),  # of a run that was made before there was a choice
        ("hierarchical", 4, 8),
    ):
        arguments = {"data": "datasets/tv", "k": k, "w": w, "jitter": 0.0, "tau": None, "seed": 0}
        if sampling is not None:
            arguments["sampling"] = sampling
        run = f"{sampling}-{k}-{w}"
        rows.append({"run": run, "seed": 0, "final": {}, "arguments": arguments})
    groups = group(rows)["tv"]
    assert list(groups) == ["i.i.d.", "k = 1", "k = 4", "k = 4, w = 8"]
    assert sweeps(groups) == {
        "k": ["i.i.d.", "k = 1", "k = 4"],
        "w": ["k = 4", "k = 4, w = 8"],
    }


def test_the_sweep_makes_each_run_once(tmp_path):
    """With a stub in place of python: the commands that lab/sweep.sh runs."""
    (tmp_path / "lab").mkdir()
    shutil.copy(LAB / "sweep.sh", tmp_path / "lab")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(STUB)
    (tmp_path / "bin" / "python").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def calls_of(*flags):
        (tmp_path / "calls").unlink(missing_ok=True)
        command = ["bash", tmp_path / "lab" / "sweep.sh", *flags]
        subprocess.run(command, env=environment, check=True)
        return (tmp_path / "calls").read_text().splitlines()

    calls = calls_of()
    assert all(call.startswith("1 ") for call in calls) and len(set(calls)) == len(calls)
    assert sum(" -m media toy " in call for call in calls) == 6
    assert sum(" pretrain.py --toy " in call for call in calls) == 36
    assert sum(" finetune.py " in call for call in calls) == 102
    assert sum(" -m lab.compare" in call for call in calls) == 1
    folders = {call.split()[-1] for call in calls if "--out" in call}
    rows = json.loads((LAB / "findings.json").read_text())
    assert folders == {f"runs/{row['run']}" for row in rows}
    for call in calls:
        _, script, *flags = call.split()
        if script in PARSERS:
            PARSERS[script](flags)  # which raises BadInput for a flag that is not there
    headline = calls_of("--headline")
    assert sum(" pretrain.py --toy " in call for call in headline) == 4
    assert sum(" --probe --split all " in call for call in headline) == 8


# --------------------------------------------------------------------------------------------------
# The findings
# --------------------------------------------------------------------------------------------------


def test_a_verdict_counts_seeds_and_means():
    good, mixed, bad = np.array([1.0, 2, 3]), np.array([-1.0, 2, 3]), np.array([1.0, -2, -3])
    assert verdict([good, good]) == "holds"
    assert verdict([good, mixed]) == "holds in the mean"
    assert verdict([good, mixed, bad]) == "in part, 2 of 3"
    assert verdict([bad]) == "does not hold"


# How hard the task of a made-up run is: what each finding asks follows from these, if all hold.
HARDNESS = {
    "k1": ({"k": 1}, 0),
    "k4": ({"k": 4}, 1),
    "k16": ({"k": 16}, 2),
    "k64": ({"k": 64}, 3),
    "k1-jitter1": ({"k": 1, "jitter": 1.0}, 0.5),
    "w32": ({"k": 16, "w": 32}, 2.5),
    "w16": ({"k": 16, "w": 16}, 4),
    "wscene": ({"k": 16, "w": "scene"}, 2.4),
    "tau0.07": ({"k": 16, "tau": 0.07}, 2),
    "tau0.3": ({"k": 16, "tau": 0.3}, 2),
}
STRENGTH = {"films": 2, "tv": 3}  # of the gain downstream
TEMPERATURE_LOSES = {("tau0.07", 1), ("tau0.3", 2)}  # Each is the worst in one seed.


def made_up_rows():
    """Rows of three seeds on which all findings hold."""
    rows = []
    for seed in (1, 2, 3):
        for collection in STRENGTH:
            for name in HARDNESS:
                rows += rows_of_a_run(collection, seed, name)
        for task in [*PROBED.values(), *TUNED.values()]:
            untrained = downstream_row(f"{seed}-none", None, task, 0.1, f"films-{seed}")
            rows.append({**untrained, "seed": seed})
    return rows


def rows_of_a_run(collection, seed, name):
    changes, hardness = HARDNESS[name]
    run = f"{collection}-{seed}-{name}"
    discrepancy = 1 - 0.2 * hardness
    row = {
        "run": run,
        "seed": seed,
        "arguments": {
            "w": None,
            "tau": None,
            "jitter": 0.0,
            **changes,
            "seed": seed,
            "data": f"datasets/{collection}-{seed}/films",
        },
        "final": {
            "loss": 3 + hardness,
            "kl_same_other": discrepancy,
            "kl_same_match": 1.0,
            "kl_other_match": 2.0,
            "gap": discrepancy,
        },
    }
    gain = -1 if name == "w16" else hardness
    accuracy = 0.5 + 0.03 * STRENGTH[collection] * gain
    if (name, seed) in TEMPERATURE_LOSES:
        accuracy -= 0.01
    rows = [row]
    for task in [*PROBED.values(), *TUNED.values()]:
        tested = downstream_row(run, run, task, accuracy, f"{collection}-{seed}")
        rows.append({**tested, "seed": seed})
    return rows


def downstream_row(run, pretraining, task, accuracy, data):
    return {
        "run": f"{run}-{task}",
        "task": task,
        "pretraining": pretraining,
        "accuracy": accuracy,
        "arguments": {"data": data},
    }


@pytest.fixture
def verdicts(tmp_path):
    """A function: rows -> {number of a finding: verdict}."""

    def ask_all(rows):
        path = tmp_path / "made-up.json"
        path.write_text(json.dumps(rows))
        figures = figures_of(path)
        return {number: verdict(ask(figures)) for number, ask in FINDINGS.items()}

    return ask_all


@pytest.fixture
def failing(verdicts):
    """A function: rows -> the findings that do not hold in each seed."""

    def fails(rows):
        return [number for number, found in verdicts(rows).items() if found != "holds"]

    return fails


def with_final(run, **final):
    """The made-up rows, with other final values for the runs whose names end in `run`."""
    rows = made_up_rows()
    for row in rows:
        if "final" in row and row["run"].endswith(run):
            row["final"].update(final)
    return rows


def with_worse(run):
    """The made-up rows, with a low accuracy for the downstream runs with this in their names."""
    rows = made_up_rows()
    for row in rows:
        if "accuracy" in row and run in row["run"]:
            row["accuracy"] = 0.05
    return rows


def test_all_findings_hold_of_runs_made_so(verdicts):
    assert verdicts(made_up_rows()) == dict.fromkeys(range(1, 9), "holds")


def test_the_findings_ask_what_they_say(failing):
    """One thing is turned round in the runs on which all findings hold."""
    assert failing(with_final("films-2-k64", kl_same_other=5)) == [1]
    assert failing(with_final("-k1", kl_same_match=3)) == [1]
    assert failing(with_final("films-2-w32", gap=5)) == [2]
    assert failing(with_final("films-1-w16", gap=0.9)) == [3]
    assert failing(with_worse("films-2-k4-")) == [4]
    assert failing(with_worse("tv-3-k16-")) == [4]
    assert failing(with_final("films-2-w32", loss=9)) == [5]
    assert failing(with_final("k1-jitter1", gap=0.1)) == [6]
    assert failing(with_worse("-tau0.07-")) == [7]
    assert failing(with_worse("films-1-tau0.07-")) == []  # It is the worst in this seed only.
    assert 8 in failing(with_worse("films-2-k16-toy-action, fine-tuned"))


def test_the_size_of_a_discrepancy_counts_and_not_its_sign(failing):
    assert failing(with_final("films-2-k64", gap=-5)) == [1]


def test_a_missing_seed_is_not_replaced_by_another(verdicts):
    rows = [row for row in made_up_rows() if row["run"] != "films-2-k4"]
    with pytest.raises(KeyError):
        verdicts(rows)


def test_the_verdicts_are_printed(tmp_path):
    status, printed, errors = run_script("lab.findings", LAB / "findings.json")
    assert not status, errors
    lines = printed.splitlines()
    assert len(lines) == 8 and lines[1].startswith("2  does not hold")
    rows = [row for row in made_up_rows() if row["run"] != "films-2-k4"]
    (tmp_path / "part.json").write_text(json.dumps(rows))
    _, printed, _ = run_script("lab.findings", tmp_path / "part.json")
    missing = 'lacks "kl_same_other" of "k = 4" on "films" in one seed or more'
    assert f"1  not asked: {tmp_path}/part.json {missing}" in printed and "3  holds" in printed
    assert "no finished run" in refused("lab.findings", tmp_path / "none.json")


# --------------------------------------------------------------------------------------------------
# The notebook
# --------------------------------------------------------------------------------------------------


def test_the_verdicts_in_the_notebook_follow_from_the_runs():
    figures = figures_of(LAB / "findings.json")
    rows = {}
    for line in NOTEBOOK.splitlines():
        if re.match(r"\| \d \|", line):
            number, *_, seeds, found = cells_of(line)
            rows[int(number)] = seeds, found
    assert rows.keys() == FINDINGS.keys()
    for number, ask in FINDINGS.items():
        margins = ask(figures)
        assert rows[number] == ("3", verdict(margins)), (number, margins)
        if number != 7:  # It has one margin for all seeds.
            assert all(len(margin) == 3 for margin in margins)


def test_the_tables_in_the_notebook_are_what_the_comparison_prints(tmp_path, capsys, figures):
    compare([LAB / "findings.json"], tmp_path)
    assert len(figures) == 4
    printed = capsys.readouterr().out
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(lines) == 10 + 2 + 2 * 3
    assert all(line in NOTEBOOK.splitlines() for line in lines)


def test_the_pictures_in_the_notebook_are_there():
    pictures = re.findall(r"\]\(([\w-]+\.png)\)", NOTEBOOK)
    assert len(pictures) == 5
    assert all((LAB / picture).exists() for picture in pictures)


def test_the_commands_in_the_notebook_are_understood():
    names = ("bench", "compare", "findings", "sampling", "show")
    modules = {name: getattr(lab, name) for name in names}
    texts = [NOTEBOOK, *(module.__doc__ for module in modules.values())]
    command = r"python -m lab\.(\w+)((?: [^ `\n]+)*)"
    found = re.findall(command, "\n".join(texts))
    assert {name for name, _ in found} == modules.keys() and len(found) > 15
    for name, flags in found:
        modules[name].parse_args(shlex.split(flags))
