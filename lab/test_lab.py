"""Tests of lab/: looking at files, runs compared, the findings, and the notebook of them."""

import json
import re
import shlex
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

import lab.bench
import lab.compare
import lab.evaluate
import lab.findings
import lab.sampling
import lab.show
import papers.avts
import pretrain
from data import Titles
from harness.curves import draw, draw_histograms, in_lines, looks_of, summarise
from harness.fixtures import (
    fine_tune,
    load_checkpoint,
    read_log,
    refused,
    run_script,
    write_film,
)
from lab.compare import (
    add_rows,
    base_of,
    compare,
    downstream,
    group,
    learning_curves,
    read_runs,
    sweeps,
    with_window,
)
from loss import MEASURES, SYNCHRONISATION
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
# Looking at files
# --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("films") / "film.mp4", seconds=40, size=(160, 120))


def test_a_snippet_is_drawn(film, tmp_path):
    """Whatever its film is called: between two $ matplotlib would look for mathematics."""
    film = shutil.copy(film, tmp_path / "A$AP_$.mp4")
    picture = tmp_path / "snippet"  # It is a PNG, whatever it is called.
    status, printed, errors = run_script("lab.show", film, "--at", "00:00:10", "--out", picture)
    assert not status, errors
    assert str(picture) in printed and contrast(picture) > 10


def test_what_showing_a_snippet_refuses(film, tmp_path):
    assert "--at 39 s: must be from 0 to 36.8 s" in refused("lab.show", film, "--at", 39)
    assert "must be a time such as 00:31:00" in refused("lab.show", film, "--at", "xx")
    crop_too_large = refused("lab.show", film, "--short-side", 100)
    assert "--crop 158: must be --short-side (100) or less" in crop_too_large
    assert "--fps 0.0: must be above 0" in refused("lab.show", film, "--fps", 0)
    assert "--fps inf: must be a finite number" in refused("lab.show", film, "--fps", "inf")
    assert "--n-fft 400000: must be less" in refused("lab.show", film, "--n-fft", 400_000)
    short = write_film(tmp_path / "short.mp4", seconds=2)
    assert "short.mp4: shorter than 3.2 s, a snippet; name" in refused("lab.show", short)
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


def test_a_truth_that_is_not_of_a_toy_world_is_not_compared(toy, tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "film.mp4").symlink_to(toy / "films" / "film000.mp4")
    (tmp_path / "truth.csv").write_text("video,label\na,b\n")
    status, printed, errors = run_script("lab.show", tmp_path / "films", "--scenes", *TOY_SIZES)
    assert not status, errors
    assert printed.endswith("truth.csv: is not of a toy world, not compared\n")


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
    titles = [title for title, _ in MEASURES.values()]
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
    shutil.copytree(run, other)
    result = json.loads((other / "result.json").read_text())
    result["arguments"]["k"] = 2
    result["final"]["loss"] += 1
    (other / "result.json").write_text(json.dumps(result))
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
    assert table["k = 4, w = 8"][1:3] == ["1", f"{read_log(run)[-1]:.3g}"]
    assert table["k = 4, w = 8"][-1] == f"{100 * tuned['accuracy']:.3g}"
    assert table["none"][-1] == f"{100 * scratch['accuracy']:.3g}"
    assert table["k = 2, w = 8"][1:3] == ["1", f"{read_log(run)[-1] + 1:.3g}"]
    assert table["k = 2, w = 8"][-1] == ""

    again = tmp_path / "again"
    status, _, errors = run_script("lab.compare", out / "findings.json", "--out", again)
    assert not status, errors
    assert (again / "findings.json").read_bytes() == (out / "findings.json").read_bytes()


def test_kept_checkpoints_are_a_learning_curve_and_few_shots_are_tasks(run, toy, tmp_path):
    """From the scripts to the rows of a file, and to its table and its picture.

    A deaf checkpoint stands for one that --keep has kept after four of nine steps.
    """
    whole, rows = tmp_path / "whole", tmp_path / "rows.json"
    shutil.copytree(run, whole)
    kept = load_checkpoint(whole)
    kept["progress"].update(step=4, epoch=0)
    kept["audio"]["conv1.weight"].zero_()  # Then all sounds are the same to it.
    torch.save(kept, whole / "epoch1.pt")
    results = {}
    for name, checkpoint, flags in (
        ("early", "epoch1.pt", ["--probe", "--shots", 1, 2]),
        ("end", "checkpoint.pt", ["--probe", "--shots", 1, 2]),
        ("tuned", "checkpoint.pt", ["--shots", 1]),
    ):
        flags += ["--ckpt", whole / checkpoint]
        results[name], _ = fine_tune(toy, tmp_path / name, "toy-sound", *flags)
    for folders in (["early", "end"], ["tuned", "whole"]):
        paths = [tmp_path / name for name in folders]
        status, _, errors = run_script("lab.compare", "--add", rows, *paths)
        assert not status, errors
    steps = {name: row.get("pretraining_step") for name, row in rows_in(rows).items()}
    assert steps == {"early": 4, "end": 9, "tuned": 9, "whole": None}

    status, printed, errors = run_script("lab.compare", rows, "--out", tmp_path / "out")
    assert not status, errors
    assert contrast(tmp_path / "out" / "toy-learning.png") > 10
    table = table_of(printed)
    few = results["end"]["accuracy_of_shots"]
    assert results["early"]["accuracy"] != results["end"]["accuracy"]
    expected = {
        "toy-sound, probe, split 1": results["end"]["accuracy"],
        "toy-sound, probe, 1 shot, split 1": few["1"],
        "toy-sound, probe, 2 shots, split 1": few["2"],
        "toy-sound, fine-tuned, 1 shot, split 1": results["tuned"]["accuracy"],
    }
    assert table["toy"][-4:] == list(expected)
    percents = [f"{100 * accuracy:.3g}" for accuracy in expected.values()]
    assert table["k = 4, w = 8"][-4:] == percents


def test_two_runs_of_one_seed_count_as_one(run, tmp_path):
    shutil.copytree(run, tmp_path / "zz")
    _, printed, _ = run_script("lab.compare", run, tmp_path / "zz", "--out", tmp_path / "out")
    assert "zz: the same arguments and seed as whole, skipped" in printed
    assert table_of(printed)["k = 4, w = 8"][1] == "1"
    _, printed, _ = run_script("lab.compare", run, run, "--out", tmp_path / "out")
    assert "whole: given twice, the first one counts" in printed


def test_what_comparing_refuses(tmp_path):
    assert "no finished run of pretrain.py" in refused("lab.compare", tmp_path)
    for content in ('{"loss": 1}', '[{"loss": 1}]', "[1]", "1", "text"):
        (tmp_path / "foreign.json").write_text(content)
        assert "not what pretrain.py" in refused("lab.compare", tmp_path / "foreign.json")


def write_result(folder, result):
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_rows_are_added_to_a_file(tmp_path):
    """Also to one without a run of pretrain.py, which cannot be compared."""
    results = {
        "b": result_of_probe(),
        "c": {"arguments": {"seed": 3}, "final": {}, "curves": {}},
        "a": result_of_probe(ckpt=None),
    }
    b, c, a = [write_result(tmp_path / name, result) for name, result in results.items()]
    file = tmp_path / "new" / "rows.json"
    status, printed, errors = run_script("lab.compare", "--add", file, b)
    assert (status, printed, errors) == (0, f"{file}: 1 added, 1 in all\n", "")
    kept = file.read_text()
    (b / "result.json").write_text(json.dumps({**results["b"], "accuracy": 0.1}))
    status, printed, errors = run_script("lab.compare", "--add", file, c, b, a)
    assert (status, printed, errors) == (0, f"{file}: 2 added, 3 in all\n", "")
    assert list(rows_in(file)) == ["a", "b", "c"]
    lines = file.read_text().splitlines()
    assert len(lines) == 5 and lines[2].removesuffix(",") == kept.splitlines()[1]
    assert rows_in(file)["c"] == {"run": "c", "seed": 3, **results["c"]}
    assert [path.name for path in file.parent.iterdir()] == ["rows.json"]  # and no picture
    other = tmp_path / "other.json"
    run_script("lab.compare", "--add", other, file)
    assert other.read_text() == file.read_text()


def test_a_run_that_is_not_finished_is_an_error_after_the_others_are_added(tmp_path):
    file = tmp_path / "rows.json"
    (tmp_path / "half").mkdir()
    halves = tmp_path / "half", tmp_path / "nowhere"
    both = f"{halves[0]} {halves[1]}: no finished run; name folders with a result.json"
    assert refused("lab.compare", "--add", tmp_path / "new" / "rows.json", *halves) == both
    assert not (tmp_path / "new").exists()
    probe = write_result(tmp_path / "probe", result_of_probe())
    assert "half: no finished run" in refused("lab.compare", "--add", file, halves[0], probe)
    assert list(rows_in(file)) == ["probe"]


def test_what_adding_rows_refuses(tmp_path):
    probe = write_result(tmp_path / "probe", result_of_probe())
    assert "must be the name of a findings.json" in refused("lab.compare", "--add", probe, "a.json")
    file = tmp_path / "rows.json"
    file.write_text('{"a": 1}')
    assert "; name another file" in refused("lab.compare", "--add", file, probe)
    assert file.read_text() == '{"a": 1}'
    (probe / "result.json").write_text("{")
    assert "; leave it out" in refused("lab.compare", "--add", tmp_path / "new.json", probe)
    both = refused("lab.compare", "--add", file, "--out", tmp_path, probe)
    assert "not allowed with" in both


def test_rows_that_are_added_at_the_same_time_are_all_kept(tmp_path, monkeypatch):
    def write_slowly(path, rows, write=lab.compare.write_rows):
        time.sleep(0.05)
        write(path, rows)

    monkeypatch.setattr(lab.compare, "write_rows", write_slowly)
    folders = [write_result(tmp_path / f"run{i}", result_of_probe()) for i in range(8)]
    with ThreadPoolExecutor(8) as threads:
        for added in [threads.submit(add_rows, tmp_path / "rows.json", [run]) for run in folders]:
            added.result()
    assert list(rows_in(tmp_path / "rows.json")) == [run.name for run in folders]


def test_the_row_of_the_current_folder_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(write_result(tmp_path / "probe", result_of_probe()))
    add_rows(tmp_path / "rows.json", ["."])
    assert list(rows_in(tmp_path / "rows.json")) == ["probe"]


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


def test_a_picture_is_of_the_seeds_that_all_its_labels_have(tmp_path, monkeypatch, capsys):
    """Another seed may be another collection, on which all labels do worse."""
    drawn = []

    def noted(path, groups, measures, last_panel, *_, **__):
        drawn.append((groups, last_panel.keywords["results"]))

    monkeypatch.setattr(lab.compare, "draw", noted)

    def draw_seeds(seeds_of):
        rows = []
        for label, seeds in seeds_of.items():
            k = label.removeprefix("k = ")
            for seed in seeds:
                row = row_of_flags(f"tv --k {k} --seed {seed}")
                test = downstream_row(row["run"], row["run"], "hmdb51", seed / 10, "datasets/hmdb")
                rows += [row, {**test, "seed": seed}]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        drawn.clear()
        compare([tmp_path / "rows.json"], tmp_path)
        [(groups, results)] = drawn
        [accuracies] = results.values()
        for label, seeds in groups.items():
            assert accuracies[label] == {seed: seed / 10 for seed in seeds}
        [line] = [line for line in capsys.readouterr().out.splitlines() if ".png" in line]
        return {label: list(seeds) for label, seeds in groups.items()}, line

    picture = str(tmp_path / "tv-k.png")
    groups, line = draw_seeds({"k = 1": [1, 2], "k = 4": [1, 2, 3], "k = 16": [5, 2, 1]})
    assert groups == {"k = 1": [1, 2], "k = 4": [1, 2], "k = 16": [1, 2]}
    assert line == f"{picture} (without seeds that not all runs have: 3, 5)"
    same = {"k = 1": [1, 2], "k = 4": [1, 2]}
    assert draw_seeds(same) == (same, picture)
    none_in_common = {"k = 1": [1], "k = 4": [2, 3]}
    assert draw_seeds(none_in_common) == (none_in_common, picture)


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


# Tables 1, 2 and 5: the collection, the flags of pretrain.py, top-1 on HMDB51, ESC-50 and UCF101.
PAPER = """
movies     --k 1             60.32 86.50 85.69
movies     --k 4             61.37 89.91 85.38
movies     --k 8             62.09 88.75 86.06
movies     --k 16            62.92 88.33 86.30
movies     --k 32            61.04 88.00 85.98
movies     --k 64            61.30 86.83 85.43
movies     --k 16 --w 64     60.26 87.00 83.61
movies     --k 16 --w 128    60.58 86.50 85.30
movies     --k 16 --w 256    62.02 87.75 84.85
movies     --k 16 --w 512    61.30 87.08 85.38
movies     --k 16 --w 1024   60.65 86.16 84.61
movies     --k 16 --w 2048   61.83 87.66 85.11
movies     --k 4 --w 4       60.19 88.00 84.66
movies     --k 16 --w 16     56.86 88.75 82.71
movies     --k 64 --w 64     57.45 84.58 82.68
tv         --k 1             56.40 85.50 84.37
tv         --k 8             61.50 87.50 85.96
tv         --k 16            61.69 89.00 85.64
tv         --k 8 --w 64      60.58 88.00 85.96
tv         --k 8 --w 128     60.00 85.66 85.77
tv         --k 16 --w 256    61.30 86.41 85.01
movies     --k 1 --jitter 1  60.45 87.66 84.82
movies     --jitter 0.5      60.13 87.75 85.98
movies     --jitter 1        61.11 88.33 85.93
movies     --tau 0.07        60.78 87.08 86.86
movies     --tau 0.3         60.78 89.25 85.72
movies     --short-side 224 --crop 200 --held-out 0 --epochs 20 64.5 88.8 87.9
movies-tv  --k 8 --short-side 224 --crop 200 --held-out 0       65.0 89.1 87.7
movies-tv  --k 16 --short-side 224 --crop 200 --held-out 0      65.1 89.1 88.5
movies-tv  --k 32 --short-side 224 --crop 200 --held-out 0      65.6 88.2 88.7
"""
TABLE_5 = "k = 16, epochs = 20, short side = 224, crop = 200, held out = 0.0"


def downstream_row(run, pretraining, task, accuracy, data):
    return {
        "run": f"{run}-{task}",
        "task": task,
        "pretraining": pretraining,
        "accuracy": accuracy,
        "arguments": {"data": data},
    }


def row_of_flags(line, hardness=0.0, processes=8):
    """The row of a run of pretrain.py by its name and flags there, with curves made up."""
    collection, *flags = line.split()
    args = vars(pretrain.parse_args(["--data", f"datasets/{collection}", *flags]))
    log = []
    for step in range(0, 101, 10):
        log.append({"step": step, "loss": 5 + hardness - step / 50})
        if args["held_out"] > 0:
            log.append({"step": step, **dict.fromkeys(MEASURES, step * (1 - hardness))})
    return {
        "run": Path(args["out"]).name,
        "seed": args["seed"],
        "arguments": {**args, "processes": processes},
        **summarise(log, MEASURES),
    }


def rows_of_the_paper():
    """Its runs and their downstream results, and an untrained network; and a run with --gather."""
    rows = [row_of_flags("movies --gather")]
    lines = PAPER.strip().splitlines()
    for i, line in enumerate(lines):
        *flags, hmdb51, esc50, ucf101 = line.split()
        row = row_of_flags(" ".join(flags), hardness=i / len(lines))
        rows.append(row)
        split = "1" if row["arguments"]["held_out"] > 0 else "all"
        for name, accuracy in (("hmdb51", hmdb51), ("esc50", esc50), ("ucf101", ucf101)):
            task = f"{name}, fine-tuned, split {split}"
            rows.append(downstream_row(row["run"], row["run"], task, float(accuracy) / 100, name))
    rows.append(downstream_row("none", None, "hmdb51, fine-tuned, split 1", 0.4, "hmdb51"))
    return [{"seed": 0, **row} for row in rows]


def tables_of(printed):
    """{collection: the labels of its rows} of all tables that a comparison prints."""
    tables = {}
    for part in printed.split("\n\n"):
        lines = [line for line in part.splitlines() if line.startswith("| ")]
        if lines:
            collection, *labels = [cells_of(line)[0] for line in lines]
            tables[collection] = labels
    return tables


def labels_in(figure):
    """The labels of the curves in a figure; no two of them look the same."""
    panel = figure.axes[0]
    curves, labels = panel.get_legend_handles_labels()
    assert len({(curve.get_color(), curve.get_linestyle()) for curve in curves}) == len(labels)
    legends = [axes.get_legend() for axes in figure.axes if axes.get_legend()]
    shown = [[text.get_text() for text in legend.get_texts()] for legend in legends]
    assert [in_lines(label) for label in labels] in shown
    return labels


def test_the_figures_of_the_paper_are_drawn_from_its_runs(tmp_path, capsys, figures):
    (tmp_path / "paper.json").write_text(json.dumps(rows_of_the_paper()))
    compare([tmp_path / "paper.json"], tmp_path)
    printed = capsys.readouterr().out
    assert "skipped" not in printed
    names = re.findall(r"/([\w-]+)\.png", printed)
    drawn = {name: labels_in(figure) for name, figure in zip(names, figures, strict=True)}
    whole = [f"k = {k}" for k in (1, 4, 8, 16, 32, 64)]
    windows = [f"k = 16, w = {w}" for w in (2048, 1024, 512, 256, 128, 64, 16)]
    tau = ["k = 16, τ = 0.07", "k = 16, τ = 0.3"]
    jitter = ["k = 16, σ = 0.5", "k = 16, σ = 1.0"]
    windows_of_8 = ["k = 8, w = 128", "k = 8, w = 64"]
    assert drawn == {
        "movies-k": whole,  # Figures 1a and 3a
        "movies-w": ["k = 16, w = $M_n$", *windows],  # Figures 1b and 3b
        "movies-w-is-k": ["k = 1, w = $M_n$", "k = 4, w = 4", windows[-1], "k = 64, w = 64"],
        "movies-jitter-tau": ["k = 1", "k = 16", "k = 1, σ = 1.0", *tau, *jitter],
        "movies-settings": ["k = 16", "k = 16, gather", TABLE_5],
        "tv-k": ["k = 1", "k = 8", "k = 16"],
        "tv-w": ["k = 8, w = $M_n$", *windows_of_8],
        "tv-k-w": [  # Figure 1d
            "k = 1, w = $M_n$",
            "k = 8, w = $M_n$",
            *windows_of_8,
            "k = 16, w = $M_n$",
            "k = 16, w = 256",
        ],
        "movies-tv-k": ["k = 8", "k = 16", "k = 32"],
    }

    one, four, eight, sixteen, thirty_two, sixty_four = whole
    assert tables_of(printed) == {
        "movies": [
            *[one, "k = 1, σ = 1.0", four, "k = 4, w = 4", eight],
            *[sixteen, "k = 16, gather", TABLE_5, *tau, *jitter, *windows],
            *[thirty_two, sixty_four, "k = 64, w = 64", "none"],
        ],
        "tv": [one, eight, *windows_of_8, sixteen, "k = 16, w = 256", "none"],
        "movies-tv": [eight, sixteen, thirty_two],
    }
    assert table_of(printed)[TABLE_5][-3:] == ["88.8", "64.5", "87.9"]
    base = "no gather, epochs = 10, short side = 190, crop = 158, held out = 0.1"
    assert printed.count("Unless") == 1
    assert f"\n\nUnless a label says otherwise: {base}.\n" in printed


def grouped(rows):
    """{label: the seeds of its runs} of rows of one collection."""
    [groups] = group(rows).values()
    return {label: list(seeds) for label, seeds in groups.items()}


def test_a_label_names_what_is_not_at_the_base():
    old = {"batch_size": 64, "processes": 4}
    assert lab.compare.settings_of({"arguments": old}) == {**pretrain.before(old), **old}
    assert set(pretrain.MAY_CHANGE) < lab.compare.NOT_COMPARED
    lines = [
        "tv --k 4 --w 8 --tau 0.07 --batch-size 64 --lr 7e-4",
        "tv --title episode --seed 1",
        "tv --title episode --seed 2",
        "tv --language eng",
        "tv --gather",
        "tv --gather --epochs 20",
        "tv --gather --epochs 5",
    ]
    rows = [row_of_flags(line) for line in lines]
    rows.append(row_of_flags("tv --k 1 --share 32", processes=1))
    seeds_of = grouped(rows)
    assert list(seeds_of) == [
        "k = 1, share = 32",
        "k = 4, w = 8, τ = 0.07, batch size = 64, lr = 0.0007",
        "k = 16, gather",
        "k = 16, language = eng",
        "k = 16, title = episode",
        "k = 16, gather, epochs = 5",
        "k = 16, gather, epochs = 20",
    ]
    assert seeds_of["k = 16, title = episode"] == [1, 2]
    english = [row_of_flags(f"tv --gather --language eng --seed {seed}") for seed in (1, 2)]
    assert list(grouped([row_of_flags("tv"), *english])) == [
        "k = 16",
        "k = 16, no gather, no language",
    ]


def test_the_base_is_the_most_common_value():
    lines = ["tv --batch-size 64", "tv --batch-size 64 --seed 1", "tv", "tv --gather"]
    rows = [row_of_flags(line) for line in lines]
    for ordered in (rows, rows[::-1]):
        # Two runs have either batch size, and then the run with the shortest name decides.
        assert base_of(ordered) == {"batch_size": 512, "gather": False}
        assert base_of(ordered[:3]) != base_of(ordered[1:])
    assert base_of(rows[:3]) == {"batch_size": 64}
    assert base_of(rows[:2]) == {}
    assert base_of([rows[0], row_of_flags("tv --crop 99")]) == {"batch_size": 512, "crop": 99}
    for run, batch_size in (("a", 64), ("c", 512)):
        renamed = [{**rows[0], "run": run}, {**rows[2], "run": "b"}]
        assert base_of(renamed) == {"batch_size": batch_size}


def test_runs_that_lack_an_argument_have_it_as_it_was(capsys):
    new = row_of_flags("tv --seed 1")
    old = row_of_flags("tv --seed 2")
    for name in ("sampling", "title", "precision"):
        del old["arguments"][name]
    assert grouped([new, old]) == {"k = 16": [1, 2]} and base_of([new, old]) == {}
    episodes = [row_of_flags(f"tv --title episode --seed {seed}") for seed in (3, 4)]
    assert grouped([old, *episodes]) == {"k = 16": [3, 4], "k = 16, title = show": [2]}
    changed = row_of_flags("tv --title episode --precision fp32 --gather --seed 3")
    *_, named = grouped([old, new, changed])
    assert named == "k = 16, title = episode, gather, precision = fp32"
    del old["arguments"]["gather"]
    others = [row_of_flags(f"tv --gather --seed {seed}") for seed in (3, 4)]
    assert grouped([new, old, *others]) == {"k = 16": [2, 3, 4], "k = 16, no gather": [1]}
    assert capsys.readouterr().out == ""


def test_runs_made_again_are_compared_with_the_first(tmp_path):
    """Machine, versions and time may differ; of what was measured nothing may."""
    rows = [row_of_flags("tv --k 1"), row_of_flags("tv")]
    rows.append(row_of_probe("probe", ckpt=f"runs/{rows[0]['run']}/checkpoint.pt"))
    (tmp_path / "first.json").write_text(json.dumps(rows))
    for row in rows:
        row["versions"] = {"processor": "another"}
        row["training_seconds"] = 9.0
    again = [*rows, row_of_flags("tv --k 4")]

    def run_again():
        (tmp_path / "again.json").write_text(json.dumps(again))
        flags = ("--against", tmp_path / "first.json", tmp_path / "again.json")
        status, printed, _ = run_script("lab.compare", *flags)
        return status, printed.splitlines()

    assert run_again() == (0, ["3 runs made again, 0 of them with another result"])
    rows[0]["arguments"]["newer"] = None  # Of a flag that the first row did not know yet.
    rows[2]["arguments"]["digest"] = 1  # Of weights of which the first row has none.
    assert run_again() == (0, ["3 runs made again, 0 of them with another result"])
    first = json.loads((tmp_path / "first.json").read_text())
    first[2]["arguments"]["digest"] = 2
    (tmp_path / "first.json").write_text(json.dumps(first))
    [differs, _] = run_again()[1]
    assert differs == "probe: differs in argument digest"
    rows[2]["arguments"]["digest"] = 2
    rows[1]["arguments"]["k"] = 8
    rows[0]["final"]["gap"] += 1e-9
    rows[2]["accuracy"] = 0.81
    assert run_again() == (
        1,
        [
            f"{rows[0]['run']}: differs in final",
            f"{rows[1]['run']}: differs in argument k",
            "probe: differs in accuracy",
            "3 runs made again, 3 of them with another result",
        ],
    )
    del again[:3]
    flags = ("--against", tmp_path / "first.json", tmp_path / "again.json")
    (tmp_path / "again.json").write_text(json.dumps(again))
    assert "has none of these runs" in refused("lab.compare", *flags)
    assert not (tmp_path / "runs").exists()


def test_seeds_of_the_same_arguments_are_one_curve(capsys):
    """Whatever else changes nothing that is trained."""
    elsewhere = "--workers 2 --save-minutes 9 --keep --compile --max-bad 0.5 --measure-every 0.5"
    elsewhere += " --out runs/other"
    rows = [row_of_flags("tv"), row_of_flags(f"tv --seed 1 {elsewhere}")]
    assert grouped(rows) == {"k = 16": [0, 1]}
    worlds = [row_of_flags(f"films-{seed} --seed {seed}") for seed in (1, 11)]
    assert list(group(worlds)) == ["films"]
    assert capsys.readouterr().out == ""
    groups = group([*rows, row_of_flags(f"tv {elsewhere}")])["tv"]
    assert capsys.readouterr().out == "other: the same arguments and seed as tv-k16, skipped\n"
    assert [row["run"] for row in groups["k = 16"].values()] == ["tv-k16", "other"]
    tested = downstream_row("tv-k16", "tv-k16", "hmdb51", 0.5, "hmdb51")
    tests = [{**tested, "seed": 0}, {**tested, "run": "again", "seed": 0}]
    results = downstream(tests, groups)
    assert results == {"hmdb51": {"k = 16": {0: 0.5}}}
    printed = capsys.readouterr().out
    assert printed == "again: the same label, task and seed as tv-k16-hmdb51, skipped\n"


def result_of_probe(ckpt="runs/tv-k16/checkpoint.pt", seed=0, **settings):
    """A result.json of finetune.py, of a probe without few shots."""
    settings = {"task": "toy-action", "probe": True, "split": "all", "shots": None, **settings}
    return {
        "task": "toy-action",
        "accuracy": 0.8,
        "pretraining_step": None,
        "settings": {**settings, "ckpt": ckpt, "seed": seed, "data": f"datasets/tv-{seed}/action"},
    }


def test_what_a_row_keeps_of_few_shots_and_of_the_step(tmp_path):
    probe = result_of_probe(shots=[1, 5])
    probe |= {"accuracy_of_shots": {"1": 0.2, "5": 0.4}, "pretraining_step": 9}
    row = lab.compare.downstream_row(probe)
    assert row["task"] == "toy-action, probe, split all" and row["pretraining_step"] == 9
    assert row["accuracy_of_shots"] == {"1": 0.2, "5": 0.4}
    old = lab.compare.downstream_row(result_of_probe(ckpt=None))
    assert old.keys() == {"task", "pretraining", "accuracy", "arguments"}
    for shots, words in (([1], "1 shot, "), ([5], "5 shots, "), (None, "")):
        tuned = result_of_probe(probe=False, split="1", shots=shots)
        row = lab.compare.downstream_row(tuned)
        assert row["task"] == f"toy-action, fine-tuned, {words}split 1"
        assert "accuracy_of_shots" not in row


def row_of_probe(run, **changes):
    """The row of `result_of_probe` with these arguments, or with these values of the result."""
    of_result = {"accuracy", "accuracy_of_shots", "pretraining_step"} & changes.keys()
    values = {name: changes.pop(name) for name in of_result}
    result = {**result_of_probe(**changes), **values}
    row = lab.compare.downstream_row(result)
    return {"run": run, "seed": result["settings"]["seed"], **row}


def test_few_shots_are_tasks_of_their_own(capsys):
    """Those of a probe come after its accuracy with all clips, in the order of their number."""
    groups = group([row_of_flags("tv")])["tv"]
    few = {"10": 0.5, "5": 0.4, "1": 0.2}
    rows = [
        row_of_probe("probe", accuracy_of_shots=few),
        row_of_probe("probe-again", accuracy_of_shots={"1": 0.1, "2": 0.3}),
        row_of_probe("tuned", probe=False, split="1", shots=[5], accuracy=0.6),
        row_of_probe("untrained", ckpt=None, accuracy_of_shots={"1": 0.1, "7": 0.3}),
    ]
    assert list(downstream(rows, groups).items()) == [
        ("toy-action, probe, split all", {"k = 16": {0: 0.8}, "none": {0: 0.8}}),
        ("toy-action, probe, 1 shot, split all", {"k = 16": {0: 0.2}, "none": {0: 0.1}}),
        ("toy-action, probe, 5 shots, split all", {"k = 16": {0: 0.4}}),
        ("toy-action, probe, 10 shots, split all", {"k = 16": {0: 0.5}}),
        ("toy-action, fine-tuned, 5 shots, split 1", {"k = 16": {0: 0.6}}),
    ]
    printed = capsys.readouterr().out
    assert printed == "probe-again: the same label, task and seed as probe, skipped\n"


def test_a_checkpoint_inside_a_run_is_no_result_of_it(capsys):
    pretrained = row_of_flags("tv --batch-size 64")  # whose curves end at step 100
    counted = {**pretrained, "done": {"snippets": 64 * 120, "bad": 0, "skipped": 5}}
    for row, last in ((pretrained, 100), (counted, 125)):
        groups = group([row])["tv"]
        rows = [
            row_of_probe("epoch1", ckpt="runs/tv-k16-batch-size64/epoch1.pt", accuracy=0.3),
            row_of_probe("epoch2", ckpt="runs/tv-k16-batch-size64/epoch2.pt", accuracy=0.4),
            row_of_probe("final", ckpt="runs/tv-k16-batch-size64/checkpoint.pt", accuracy=0.5),
        ]
        for tested, step in zip(rows, (1, last - 1, last)):
            tested["pretraining_step"] = step
        [accuracies] = downstream(rows, groups).values()
        assert accuracies == {"k = 16": {0: 0.5}}
        del rows[0]["pretraining_step"]  # An older row has none, and counts as of the end.
        [accuracies] = downstream(rows[:2], groups).values()
        assert accuracies == {"k = 16": {0: 0.3}}
        untrained = row_of_probe("untrained", ckpt=None)
        assert downstream([rows[1], untrained], groups) == {}
    assert capsys.readouterr().out == ""


ACTION = "toy-action, probe, split all"


def rows_of_learning(run, seed, accuracy_at):
    """Rows of probes of a run after these steps: {step: accuracy}."""
    values = {"seed": seed, "ckpt": f"runs/{run}/checkpoint.pt"}
    rows = []
    for step, accuracy in accuracy_at.items():
        probe = row_of_probe(f"{run}-{step}", **values, pretraining_step=step, accuracy=accuracy)
        rows.append(probe)
    return rows


def test_a_learning_curve_goes_from_the_untrained_network_to_the_end_of_the_run(capsys):
    lines = ["tv --k 1", "tv --k 4", "tv --k 16", "tv --k 16 --seed 1"]
    groups = group([row_of_flags(line) for line in lines])["tv"]  # each of 100 steps
    rows = [
        *rows_of_learning("tv-k4", 0, {100: 0.6}),
        *rows_of_learning("tv-k16", 0, {60: 0.4, 30: 0.2, 100: 0.8}),
        *rows_of_learning("tv-k16-seed1", 1, {50: 0.5, 30: 0.3}),
        *rows_of_learning("tv-k1", 0, {30: 0.1}),
        row_of_probe("untrained", ckpt=None, accuracy=0.15, accuracy_of_shots={"1": 0.12}),
    ]
    for row in rows:
        row["arguments"]["data"] = "datasets/tv/action"
    assert learning_curves(rows, groups) == {
        ACTION: {
            "k = 16": {0: ([0, 30, 60, 100], [0.15, 0.2, 0.4, 0.8]), 1: ([30, 50], [0.3, 0.5])}
        }
    }
    rows[1]["accuracy_of_shots"] = {"1": 0.3}  # after step 60
    rows[3]["accuracy_of_shots"] = {"1": 0.4}  # at the end
    few = learning_curves(rows, groups)["toy-action, probe, 1 shot, split all"]
    assert few == {"k = 16": {0: ([0, 60, 100], [0.12, 0.3, 0.4])}}
    rows[-1]["arguments"]["data"] = "datasets/other/action"
    assert learning_curves(rows, groups)[ACTION]["k = 16"][0][0] == [30, 60, 100]
    assert capsys.readouterr().out == ""


def test_an_older_probe_of_the_end_ends_a_learning_curve():
    groups = group([row_of_flags("tv")])["tv"]
    rows = rows_of_learning("tv-k16", 0, {30: 0.2, 100: 0.8})
    del rows[1]["pretraining_step"]
    assert learning_curves(rows, groups) == {ACTION: {"k = 16": {0: ([30, 100], [0.2, 0.8])}}}


def test_a_run_of_unknown_length_has_no_learning_curve():
    """Its row has neither counts nor a measurement after its last step."""
    groups = group([row_of_flags("tv --held-out 0")])["tv"]
    rows = rows_of_learning("tv-k16-held-out0.0", 0, {30: 0.2, 100: 0.8})
    assert learning_curves(rows, groups) == {}
    assert downstream(rows, groups) == {ACTION: {"k = 16": {0: 0.2}}}


def test_a_learning_curve_is_of_one_run(capsys):
    """Both runs are tested with seed 0, though they were pretrained with seeds of their own."""
    groups = group([row_of_flags("tv"), row_of_flags("tv --seed 1")])["tv"]
    rows = [
        *rows_of_learning("tv-k16", 0, {30: 0.2, 100: 0.8}),
        *rows_of_learning("tv-k16-seed1", 0, {20: 0.1, 30: 0.3, 100: 0.7}),
    ]
    curve = [30, 100], [0.2, 0.8]
    assert learning_curves(rows, groups) == {ACTION: {"k = 16": {0: curve}}}
    repeated = "tv-k16-seed1-30: the same label, task, seed and step as tv-k16-30, skipped\n"
    assert capsys.readouterr().out == repeated
    # That which was tested at its end first.
    rows = [rows[0], rows[4], rows[2], rows[1]]
    assert learning_curves(rows, groups) == {ACTION: {"k = 16": {0: ([20, 100], [0.1, 0.7])}}}


def test_learning_is_drawn_over_the_snippets_seen(tmp_path, capsys, figures):
    """A seed whose checkpoints are of other steps has a line of its own."""
    lines = ["tv", "tv --seed 1", "tv --seed 2", "tv --k 4", "tv --k 1"]
    rows = [row_of_flags(f"{line} --batch-size 64") for line in lines]
    one, two, other, four, single = [row["run"] for row in rows]
    rows += [
        *rows_of_learning(one, 0, {30: 0.2, 100: 0.8}),
        *rows_of_learning(two, 1, {30: 0.4, 100: 0.6}),
        *rows_of_learning(other, 2, {40: 0.1, 100: 0.9}),
        *rows_of_learning(four, 0, {30: 0.3, 100: 0.5}),
        *rows_of_learning(single, 0, {100: 0.5}),
    ]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    compare([tmp_path / "rows.json"], tmp_path)
    printed = capsys.readouterr().out
    names = re.findall(r"/([\w-]+)\.png", printed)
    figure = figures[names.index("tv-learning")]
    [axes] = figure.axes
    assert axes.get_title() == ACTION and axes.get_xlabel() == "snippets seen"
    title = "runs of 100 steps; points before the end are checkpoints inside a run"
    assert figure.get_suptitle() == title
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["k = 4", "k = 16"]
    drawn = [
        (line.get_color(), line.get_xdata().tolist(), line.get_ydata().round(9).tolist())
        for line in axes.get_lines()
        if len(line.get_xdata())
    ]
    assert drawn == [
        ("C1", [1920, 6400], [30, 50]),
        ("C2", [1920, 6400], [30, 70]),
        ("C2", [2560, 6400], [10, 90]),
    ]
    shade = axes.collections[1].get_paths()[0].vertices[:, 1].round(9)
    assert (shade.min(), shade.max()) == (20, 80)
    # k = 1 was tested at its end alone, and no checkpoint inside a run is in the table.
    cells = table_of(printed)
    assert cells["k = 1"][-1] == "50" and cells["k = 16"][-1] == "76.7 ± 15"


def test_runs_of_other_lengths_and_many_labels_are_drawn_together(tmp_path, figures):
    lines = [f"tv --k {k}" for k in (1, 2, 4, 8, 16)] + ["tv --k 16 --w 32"]
    rows = [row_of_flags(line) for line in lines]
    for row in list(rows):
        rows += rows_of_learning(row["run"], 0, {30: 0.2, 100: 0.8})
    rows[0]["done"] = {"snippets": 512 * 400, "bad": 0, "skipped": 0}
    [row] = rows_of_learning(rows[0]["run"], 0, {400: 0.9})
    (tmp_path / "rows.json").write_text(json.dumps([*rows, row]))
    compare([tmp_path / "rows.json"], tmp_path)
    [figure] = [figure for figure in figures if figure.get_suptitle()]
    assert figure.get_suptitle().startswith("runs of 100 to 400 steps; ")
    labels = [f"k = {k}, w = $M_n$" for k in (1, 2, 4, 8, 16)] + ["k = 16, w = 32"]
    assert labels_in(figure) == labels
    panel, legend = figure.axes
    assert panel.get_legend() is None and legend.get_legend()


def test_several_kinds_of_processor_are_named_below_the_table(tmp_path, capsys):
    def printed_for(*processors):
        rows = [row_of_flags("tv"), row_of_flags("tv --seed 1")]
        probe = row_of_probe("probe", ckpt=f"runs/{rows[0]['run']}/checkpoint.pt")
        inside = rows_of_learning(rows[0]["run"], 0, {30: 0.2})
        other = row_of_probe("other", ckpt="runs/elsewhere/checkpoint.pt")
        rows = [*rows, probe, *inside, other]
        for row, processor in zip(rows, processors):
            row["versions"] = {"processor": processor}
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        compare([tmp_path / "rows.json"], tmp_path)
        return capsys.readouterr().out

    both = printed_for("EPYC, AVX2", "Xeon, AVX512", "EPYC, AVX2", "Xeon, AVX512", "Xeon, AVX512")
    assert "\n\nRuns on each kind of processor: EPYC, AVX2: 2; Xeon, AVX512: 1.\n" in both
    assert "kind of processor: Xeon: 1; not recorded: 2.\n" in printed_for("Xeon")
    assert "kind of processor" not in printed_for("Xeon", "Xeon", "Xeon")
    assert "kind of processor" not in printed_for()


def test_only_base_labels_are_in_the_sweeps_of_k_w_jitter_and_tau():
    lines = [
        "tv --sampling iid",
        "tv --k 1",
        "tv --k 1 --gather",
        "tv --k 4 --w 4",
        "tv --k 16",
        "tv --k 16 --w 16",
        "tv --k 16 --w 64 --crop 100",
        "tv --k 16 --w scene",
        "tv --k 16 --tau 0.07",
        "tv --k 16 --tau 0.07 --gather",
    ]
    rows = [row_of_flags(line) for line in lines]
    assert sweeps(group(rows)["tv"]) == {
        "k": ["i.i.d.", "k = 1", "k = 16"],
        "w": ["k = 16", "k = 16, w = 16", "k = 16, w = scene"],
        "w-is-k": ["k = 1", "k = 4, w = 4", "k = 16, w = 16"],
        "jitter-tau": ["k = 16", "k = 16, τ = 0.07"],
        "settings": [
            "k = 1",
            "k = 1, gather",
            "k = 16, τ = 0.07",
            "k = 16, τ = 0.07, gather",
            "k = 16, w = 64, crop = 100",
        ],
    }
    rows += [row_of_flags(f"tv {flags}") for flags in ("--k 16 --w 64", "--k 4 --w 64")]
    with_windows = ["i.i.d.", "k = 1", "k = 4, w = 64", "k = 16", "k = 16, w = 64"]
    assert sweeps(group(rows)["tv"])["k-w"] == with_windows


def test_a_crowded_picture_has_the_labels_of_a_task_in_their_colours(tmp_path, figures):
    """Its legend has a panel of its own. The shuffled baseline has no window."""
    flags = ["--sampling iid", "--k 1", "--k 4", "--k 4 --w 8", "--k 16", "--k 16 --w 32"]
    rows = [row_of_flags(f"tv {each}") for each in flags]
    for i, row in enumerate(list(rows)):
        accuracy = 0.5 + 0.01 * i
        row_downstream = downstream_row(row["run"], row["run"], "hmdb51", accuracy, "hmdb51")
        rows.append({**row_downstream, "seed": 0})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    compare([tmp_path / "rows.json"], tmp_path)
    [k, w, both] = figures
    labels = ["i.i.d.", "k = 1", "k = 4", "k = 4, w = 8", "k = 16", "k = 16, w = 32"]
    whole = [f"k = {k}, w = $M_n$" for k in (1, 4, 16)]
    named = ["i.i.d.", whole[0], whole[1], labels[3], whole[2], labels[5]]
    assert labels_in(both) == named
    # The picture of k is not crowded: its legend stands where the loss falls.
    assert [axes.get_title() for axes in k.axes if axes.get_legend()] == [
        "training loss (Equation 1)"
    ]
    *curves, legend, downstream = both.axes
    assert len(curves) == len(MEASURES) + 1 and not legend.has_data() and legend.get_legend()
    assert [text.get_text() for text in downstream.get_yticklabels()] == ["hmdb51"]
    assert downstream.get_ylim() == (0.5, -0.5)
    curves_of = {line.get_label(): line.get_color() for line in curves[0].get_lines()}
    markers = [container[0] for container in downstream.containers]
    # Labels without further arguments have the first colours.
    assert [curves_of[label] for label in named] == ["C0", "C1", "C2", "C4", "C3", "C5"]
    found = [(round(marker.get_xdata().item(), 9), marker.get_color()) for marker in markers]
    assert found == [(50 + i, curves_of[label]) for i, label in enumerate(named)]
    heights = [marker.get_ydata().item() for marker in markers]
    assert heights == sorted(heights) and -0.5 < heights[0] and heights[-1] < 0.5
    assert both.get_figheight() > w.get_figheight()  # It has more labels.
    assert labels_in(k) == [*labels[:3], labels[4]]
    assert len(w.axes) == len(MEASURES) + 2


def test_a_picture_of_many_tasks_has_room_for_each(tmp_path, figures):
    """Each has a row."""
    heights = []
    for count in (1, 18):
        rows = [row_of_flags("tv --k 1"), row_of_flags("tv")]
        for row in list(rows):
            for i in range(count):
                found = downstream_row(row["run"], row["run"], f"task {i}", 0.5, "hmdb51")
                rows.append({**found, "seed": 0})
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        compare([tmp_path / "rows.json"], tmp_path)
        heights.append(figures[-1].get_figheight())
    low, high = heights
    assert high - low == pytest.approx(17 * lab.compare.ROW)
    tasks = sorted(f"task {i}" for i in range(18))
    assert [text.get_text() for text in figures[-1].axes[-1].get_yticklabels()] == tasks


def test_labels_have_looks_of_their_own_and_none_is_grey():
    """Grey is for networks that were not pretrained."""
    order = [f"k = {k}" for k in range(30)]
    looks = looks_of(order, order)
    assert len(set(looks.values())) == len(order)
    grey = to_rgb("C7")
    assert all(to_rgb(colour) != grey for colour, _ in looks.values())
    # In a picture of few labels none has the colour of another, wherever they are in the order.
    few = [order[0], order[9], order[18], order[1]]
    first, second, third, fourth = looks_of(few, order).values()
    assert (first, fourth) == (looks[order[0]], looks[order[1]])
    assert len({colour for colour, _ in (first, second, third, fourth)}) == len(few)


def test_probes_of_few_labelled_files_have_a_panel(tmp_path, figures):
    """Each number of files has the mean of the seeds that had as many; the baseline is dotted."""
    lines = [f"tv --k {k} --seed {seed}" for k in (1, 16) for seed in range(3)]
    few = [{"2": 0.3, "1": 0.2}] * 3
    few += [{"1": 0.4, "2": 0.5}, {"1": 0.6, "2": 0.7}, {"1": 0.9}]
    rows = [row_of_flags(line) for line in lines]
    for row, shots in zip(list(rows), few):
        ckpt = f"runs/{row['run']}/checkpoint.pt"
        changes = {"accuracy_of_shots": shots, "accuracy": 0.8, "seed": row["seed"]}
        rows.append(row_of_probe(f"{row['run']}-probe", ckpt=ckpt, **changes))
        tuned = downstream_row(row["run"], row["run"], "hmdb51", 0.5, "hmdb51")
        rows.append({**tuned, "seed": row["seed"]})
    shots = {"1": 0.1, "2": 0.2}
    rows.append(row_of_probe("none", ckpt=None, accuracy_of_shots=shots, accuracy=0.3))
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    compare([tmp_path / "rows.json"], tmp_path)
    [figure] = figures
    curves = figure.axes[0].get_lines()
    *_, panel, downstream = figure.axes
    assert panel.get_title() == "toy-action, probe, split all"
    assert panel.get_xlabel() == "labelled files of each class"
    assert [text.get_text() for text in panel.get_xticklabels()] == ["1", "2", "all"]
    drawn = {line.get_color(): line.get_ydata().round(9).tolist() for line in panel.get_lines()}
    one, sixteen = (line.get_color() for line in curves)
    assert drawn == {one: [20, 30, 80], sixteen: [round(190 / 3, 9), 60, 80], "grey": [10, 20, 30]}
    shade = panel.collections[1].get_paths()[0].vertices[:, 1].round(9)
    assert (shade.min(), shade.max()) == (40, 90)
    [legend] = panel.get_legend().get_texts()
    assert legend.get_text() == "without pretraining"
    # The others stay together: a row each.
    assert [text.get_text() for text in downstream.get_yticklabels()] == ["hmdb51"]


def test_the_window_of_a_label_is_named_after_k():
    assert with_window("k = 16, σ = 1.0, gather") == "k = 16, w = $M_n$, σ = 1.0, gather"
    assert with_window("k = 16, w = 32, gather") == "k = 16, w = 32, gather"


def test_a_long_label_is_broken_after_a_comma():
    broken = "k = 16, epochs = 20, short side = 224, crop = 200,\nheld out = 0.0"
    assert in_lines(TABLE_5) == broken
    assert in_lines("k = 16, w = scene") == "k = 16, w = scene"


# --------------------------------------------------------------------------------------------------
# Runs of sibling papers
# --------------------------------------------------------------------------------------------------

ARMS = {
    "": "AVTS",
    "--superhard": "AVTS, superhard",
    "--hard-after 0": "AVTS, hard after = 0.0",
    "--hard-share 0": "AVTS, hard share = 0.0",
    "--hard-share 1 --hard-after 0": "AVTS, hard share = 1.0, hard after = 0.0",
}


def row_of_avts(flags, seed=0):
    """The row of a run of papers/avts.py, of 100 steps, with curves made up."""
    args = vars(papers.avts.parse_args(["--data", "datasets/tv", *flags.split()]))
    log = [{"step": step, "loss": 0.2} for step in range(1, 101)]
    log += [{"step": step, "sync_same": 0.6, "sync_other": 0.9} for step in (0, 100)]
    return {
        "run": f"avts-{flags}-{seed}",
        "seed": seed,
        "paper": "AVTS",
        "arguments": {**args, "seed": seed, "processes": 1},
        "done": {"snippets": 64 * 97, "bad": 0, "skipped": 3},
        **summarise(log, SYNCHRONISATION),
    }


def rows_of_papers():
    """Runs of two sibling papers beside those of pretrain.py, each with arguments of its own."""
    rows = [row_of_flags(f"tv {flags}") for flags in ("--sampling iid", "--k 1", "--k 4", "")]
    rows += [row_of_avts(flags, seed) for flags in ARMS for seed in (0, 1)]
    arguments = {"data": "datasets/tv", "seed": 0, "batch_size": 32, "k": 2, "tau": 0.1}
    row = {"seed": 0, "paper": "Temporal", "final": {"loss": 9}, "curves": rows[-1]["curves"]}
    rows += [
        {**row, "run": "temporal", "arguments": {**arguments, "tasks": "all"}},
        {**row, "run": "temporal-tau", "arguments": {**arguments, "tasks": "all", "tau": 0.2}},
        {**row, "run": "temporal-none", "arguments": {**arguments, "tasks": "none"}},
    ]
    return rows


TEMPORAL = ["Temporal", "Temporal, τ = 0.2", "Temporal, tasks = none"]


def test_runs_of_sibling_papers_have_labels_and_sweeps_of_their_own():
    rows = rows_of_papers()
    television = ["i.i.d.", "k = 1", "k = 4", "k = 16"]
    groups = group(rows[::-1])["tv"]
    assert list(groups) == [*television, *ARMS.values(), *TEMPORAL]
    assert sorted(groups["AVTS, superhard"]) == [0, 1]
    # Their bases do not differ from those of the same runs alone.
    assert list(group(rows[4:])["tv"]) == [*ARMS.values(), *TEMPORAL]
    assert list(group(rows[:4])["tv"]) == television
    assert sweeps(groups) == {
        "k": television,
        "papers": ["i.i.d.", "k = 1", "k = 16", "AVTS", "Temporal"],
        "avts": list(ARMS.values()),
        "temporal": TEMPORAL,
    }
    # Without the other papers there is nothing to set beside them, ...
    assert sweeps(group(rows[:4])["tv"]).keys() == {"k"}
    # ... and k = 16 with another batch size is no base label.
    changed = [row_of_flags(f"tv --batch-size {size}") for size in (64, 128)]
    mixed = group([*changed, row_of_avts("")])["tv"]
    assert list(mixed) == ["k = 16", "k = 16, batch size = 128", "AVTS"]
    assert sweeps(mixed)["papers"] == ["k = 16", "AVTS"] and "avts" not in sweeps(mixed)


def test_the_losses_of_two_papers_are_not_drawn_in_one_panel(tmp_path, capsys, figures):
    rows = rows_of_papers()
    for row in list(rows):
        row_downstream = downstream_row(row["run"], row["run"], "hmdb51", 0.5, "hmdb51")
        rows.append({**row_downstream, "seed": row["seed"]})
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    compare([tmp_path / "rows.json"], tmp_path)
    printed = capsys.readouterr().out
    names = re.findall(r"/([\w-]+)\.png", printed)
    drawn = dict(zip(names, figures, strict=True))
    assert names == ["tv-k", "tv-papers", "tv-avts", "tv-temporal"]
    together = [axes.get_title() for axes in drawn["tv-papers"].axes]
    assert together == [*(title for title, _ in MEASURES.values()), "downstream"]
    *curves, _, downstream = [axes.get_title() for axes in drawn["tv-avts"].axes]
    measured = [title for title, _ in SYNCHRONISATION.values()]
    assert curves == [*measured, "training loss of AVTS"] and downstream == "downstream"
    assert labels_in(drawn["tv-avts"]) == list(ARMS.values())
    avts = "hard share = 0.25, hard after = 50.0, no superhard"
    assert f"\n\nUnless a label of AVTS says otherwise: {avts}.\n" in printed
    assert "\n\nUnless a label of Temporal says otherwise: τ = 0.1, tasks = all.\n" in printed
    assert "Unless a label says" not in printed
    assert "\n\nThe losses of different papers cannot be compared.\n" in printed
    cells = table_of(printed)["AVTS, superhard"]
    assert cells[1:3] == ["2", "0.2 ± 0"] and cells[3:7] == 4 * [""]


def test_a_run_of_a_sibling_paper_is_tested_as_others_are():
    row = row_of_avts("--superhard")
    groups = group([row, row_of_flags("tv")])["tv"]
    assert lab.compare.last_step(row) == 100
    rows = rows_of_learning(row["run"], 0, {50: 0.3, 100: 0.6})
    for tested in rows:
        tested["pretraining"] = row["run"]
    assert downstream(rows, groups) == {ACTION: {"AVTS": {0: 0.6}}}
    assert learning_curves(rows, groups) == {ACTION: {"AVTS": {0: ([50, 100], [0.3, 0.6])}}}


# --------------------------------------------------------------------------------------------------
# Evaluations
# --------------------------------------------------------------------------------------------------


def result_of_evaluation(kind, ckpt="runs/tv-k16/checkpoint.pt", step=100, seed=0, **settings):
    """A result.json of lab.evaluate."""
    found = {
        "svm": {"accuracy": 0.7},
        "retrieve": {"recall": {"1": 0.3, "5": 0.6, "10": 0.9}},
        "fingerprint": {
            "recall": {
                "checkpoint": recalls_of_fingerprint(0.8),
                "untrained": recalls_of_fingerprint(0.4),
                "pixels and spectrum": recalls_of_fingerprint(0.6),
            }
        },
        "sync": {"sync_same": 0.6, "sync_other": 0.9},
        "other": {},
    }
    settings = {"data": f"datasets/tv-{seed}/films", "ckpt": ckpt, "seed": seed, **settings}
    common = {"evaluation": kind, "pretraining_step": step, "settings": settings}
    return {**common, **found[kind], "versions": {"torch": "2"}}


def recalls_of_fingerprint(value):
    """{modality: {distortion, mean or worst: {K: R@K}}}."""
    recalls = {}
    for i, modality in enumerate(("sight", "sound", "both")):
        mean = {"1": value - 0.1 * i, "5": 0.9}
        recalls[modality] = {"none": {"1": 1.0, "5": 1.0}, "mean": mean, "worst": {"1": 0, "5": 0}}
    return recalls


def rows_of_evaluations(folder, **changes):
    """Rows of all kinds of evaluations, through the result.json of each."""
    tasks = {
        "svm": {"task": "toy-sound", "data": "datasets/tv-0/sound"},
        "retrieve": {"task": "toy-action", "split": "all", "data": "datasets/tv-0/action"},
        "fingerprint": {},
        "sync": {},
    }
    folders = []
    for kind, settings in tasks.items():
        result = result_of_evaluation(kind, **settings, **changes)
        folders.append(write_result(folder / kind, result))
    return [lab.compare.read_run(path) for path in folders]


def test_evaluations_are_tests_of_a_pretraining(tmp_path):
    groups = group([row_of_flags("tv")])["tv"]  # of 100 steps
    rows = rows_of_evaluations(tmp_path)
    keys = {"run", "seed", "task", "pretraining", "pretraining_step", "accuracies", "arguments"}
    beside = [row.keys() - keys - {"versions"} for row in rows]
    assert beside == [set(), set(), {"untrained"}, set()]
    found = {
        "toy-sound, SVM": {"k = 16": {0: 0.7}},
        "toy-action, R@1, split all": {"k = 16": {0: 0.3}},
        "toy-action, R@5, split all": {"k = 16": {0: 0.6}},
    }
    for part, (recall, untrained) in {
        "sight": (0.8, 0.4),
        "sound": (0.7, 0.3),
        "both": (0.6, 0.2),
    }.items():
        task = f"fingerprint of tv, R@1 mean, {part}"
        found[task] = {"k = 16": {0: pytest.approx(recall)}, "none": {0: pytest.approx(untrained)}}
    found["synchronisation of tv, same title"] = {"k = 16": {0: 0.6}}
    found["synchronisation of tv, other titles"] = {"k = 16": {0: 0.9}}
    assert downstream(rows, groups) == found
    assert list(downstream(rows, groups)) == list(found)
    # Of an untrained network, the first counts; it is beside a pretrained one only.
    again = rows_of_evaluations(tmp_path / "again", ckpt="runs/elsewhere/checkpoint.pt")
    assert downstream(again, groups) == {}
    fingerprint = {**again[2], "pretraining": "tv-k16", "untrained": {task: 0.9}, "task": "another"}
    assert downstream([*rows, fingerprint], groups)[task]["none"] == found[task]["none"]


def test_evaluations_of_other_networks_are_told_apart(tmp_path):
    """Those of a checkpoint inside a run, and of one that was not pretrained."""
    groups = group([row_of_flags("tv")])["tv"]
    rows = rows_of_evaluations(tmp_path / "end")[:2]
    inside = rows_of_evaluations(tmp_path / "inside", step=50)[:2]
    untrained = rows_of_evaluations(tmp_path / "none", ckpt=None, step=None)[:2]
    for row in untrained:
        row["accuracies"] = {task: 0.1 for task in row["accuracies"]}
    assert [row["pretraining"] for row in untrained] == [None, None]
    found = downstream([*rows, *inside, *untrained], groups)
    assert found["toy-sound, SVM"] == {"k = 16": {0: 0.7}, "none": {0: 0.1}}
    curve = learning_curves([*rows, *inside, *untrained], groups)["toy-action, R@5, split all"]
    assert curve == {"k = 16": {0: ([0, 50, 100], [0.1, 0.6, 0.6])}}


def test_an_evaluation_without_a_row_is_skipped(tmp_path, capsys):
    other = write_result(tmp_path / "other", result_of_evaluation("other"))
    svm = write_result(tmp_path / "svm", result_of_evaluation("svm", task="toy-sound"))
    pretrained = row_of_flags("tv")
    (tmp_path / "rows.json").write_text(json.dumps([pretrained]))
    rows = read_runs([other, svm, tmp_path / "rows.json"])
    assert {row["run"] for row in rows} == {"svm", pretrained["run"]}
    assert capsys.readouterr().out == f"{other}: a run of lab.evaluate without a row, skipped\n"
    refusal = refused("lab.compare", "--add", tmp_path / "new.json", svm, other)
    assert refusal == f"{other}: a run of lab.evaluate without a row; leave it out"


def test_evaluations_are_drawn_in_percent(tmp_path, figures):
    rows = [row_of_flags("tv --k 1"), row_of_flags("tv")]
    for name in ("tv-k1", "tv-k16"):
        row = {"seed": 0, "pretraining": name, "arguments": {"data": "datasets/tv/action"}}
        tuned = {"task": "hmdb51", "accuracy": 0.5}
        found = {"task": "retrieval", "accuracies": {"toy-action, R@1, split 1": 0.5}}
        synchronised = {"task": "sync", "accuracies": {"synchronisation of tv, same title": 0.5}}
        for test in (tuned, found, synchronised):
            rows.append({**row, "run": f"{name}-{test['task']}", **test})
    units = {(2, 5): "top-1 %", (3, 6): "%", (4, 7): "%", (2, 3, 5, 6): "%"}
    for tests, unit in units.items():
        used = [0, 1, *tests]
        (tmp_path / "rows.json").write_text(json.dumps([rows[i] for i in used]))
        compare([tmp_path / "rows.json"], tmp_path)
        assert figures[-1].axes[-1].get_xlabel() == unit


# --------------------------------------------------------------------------------------------------
# The notebook
# --------------------------------------------------------------------------------------------------


def test_each_picture_is_shown():
    shown = re.findall(r"\]\(([\w-]+\.png)\)", NOTEBOOK)
    shown += re.findall(r"\]\(lab/([\w-]+\.png)\)", (LAB.parent / "README.md").read_text())
    assert set(shown) == {path.name for path in LAB.glob("*.png")}


def test_the_commands_in_the_notebook_are_understood():
    names = ("bench", "compare", "evaluate", "findings", "sampling", "show")
    modules = {name: getattr(lab, name) for name in names}
    texts = [NOTEBOOK, *(module.__doc__ for module in modules.values())]
    command = r"python -m lab\.(\w+)((?: [^ `\n]+)*)"
    found = re.findall(command, "\n".join(texts))
    assert {name for name, _ in found} == modules.keys() and len(found) > 15
    for name, flags in found:
        modules[name].parse_args(shlex.split(flags))
