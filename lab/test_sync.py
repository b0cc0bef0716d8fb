"""Tests of lab/sync.py: the pairs of a toy world's truth, and synchronisation on any folder."""

import json
import shutil

import numpy as np
import pytest
import torch

import lab.sync as sync
from data import AudioFrontEnd, Titles, VideoFrontEnd, collate, even_samples
from harness.fixtures import refused, run_script
from lab.checkpoint import sources_of
from lab.compare import read_run
from lab.evaluate import parse_args
from loss import fraction_of_wins, synchronisation
from media.format import Format
from media.toy import TOY_FORMAT
from models import AudioVisualModel

# --------------------------------------------------------------------------------------------------
# Pairs
# --------------------------------------------------------------------------------------------------


def titles_of(fmt, rows, files):
    """One title, of so many files that hold this many snippets of truth.csv together."""
    titles = Titles.__new__(Titles)
    titles.fmt = fmt
    titles.stride = fmt.seconds
    count = fmt.whole_snippets(rows * TOY_FORMAT.seconds / files)
    titles.parts = [[(f"file{file}", 0.0, count) for file in range(files)]]
    titles.counts = [files * count]
    return titles


@pytest.mark.parametrize("frames, fps", [(8, 5), (5, 5), (12, 5), (16, 5), (1, 6.25)])
def test_a_snippet_has_the_shot_in_which_it_lies_as_a_whole(frames, fps):
    """Against a look at every hundredth of a second."""
    rows = [(0, 0), (0, 0), (0, 1), (0, 1), (0, 1), (5, 5), (5, 5), (5, 6), (5, 6), (7, 7)]
    fmt = Format(frames=frames, fps=fps)
    places = []
    for files in (1, 2):
        titles = titles_of(fmt, len(rows), files)
        file_seconds = len(rows) * 1.6 / files
        found = [sync.place_of(titles, [rows], 0, m) for m in range(titles.counts[0])]
        expected = []
        for m in range(titles.counts[0]):
            file, m_of_file = divmod(m, titles.counts[0] // files)
            begin = file * file_seconds + m_of_file * fmt.seconds
            times = begin + np.arange(0.005, fmt.seconds, 0.01)
            seen = {rows[int(time / 1.6)] for time in times}
            expected.append(seen.pop() if len(seen) == 1 else None)
        assert found == expected
        places += found
    divides = frames in (1, 8)  # the 1.6 s that truth.csv counts in
    assert (None in places) == (not divides) and len(set(places)) > 3


def test_pairs_of_one_title_are_told_apart_by_shot_and_scene():
    title = torch.tensor([0, 0, 0, 0, 0, 1, 1])
    places = [(0, 0), (0, 0), (0, 1), (2, 3), None, (0, 0), (0, 0)]
    kinds = sync.kinds_in_truth(title, places)
    upper = {name: pairs.triu().nonzero().tolist() for name, pairs in kinds.items()}
    assert upper["same_shot"] == [[0, 1], [5, 6]]
    assert upper["same_scene"] == [[0, 2], [1, 2]]
    assert upper["other_scene"] == [[0, 3], [1, 3], [2, 3]]
    assert all(torch.equal(pairs, pairs.T) for pairs in kinds.values())


@pytest.mark.parametrize("tau", [None, 0.07])
def test_the_fraction_of_wins_is_that_of_a_double_loop(tau):
    rng = np.random.default_rng(0)
    z_v, z_a = torch.from_numpy(rng.integers(1, 3, (2, 12, 3))).float()
    pairs = {name: torch.from_numpy(rng.random((12, 12)) < 0.4) for name in "ab"}
    found = fraction_of_wins(z_v, z_a, pairs, tau)
    s = z_v @ z_a.T
    if tau is not None:
        norms = z_v.norm(dim=1, keepdim=True) * z_a.norm(dim=1)
        s = (s / norms).double().round(decimals=5)
    for name, of_kind in pairs.items():
        wins = []
        for i, j in of_kind.nonzero().tolist():
            for negative in (s[i, j], s[j, i]):
                wins.append(float(s[i, i] > negative) + float(s[i, i] == negative) / 2)
        assert found[name] == pytest.approx(np.mean(wins))
    assert found["a"] != found["b"]


# --------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------


def sync_flags(run, data, out, *more):
    flags = ["--data", data, "--ckpt", run / "checkpoint.pt", "--out", out, "--workers", 0]
    return ["sync", *map(str, [*flags, *more])]


def embeddings_of(run, films, snippets):
    """z_v, z_a (B, d) and titles (B,), as pretraining would have them, in one batch."""
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    model = AudioVisualModel(8)
    for name, part in model.named_children():
        part.load_state_dict(checkpoint[name])
    fmt = Format(8, 5, 40, 24, rate=16000, n_fft=1024, hop=256, mels=64)
    titles = Titles(films, fmt)
    batch = collate([titles[sample] for sample in even_samples(titles, snippets)])
    audio_front = AudioFrontEnd(fmt)
    audio_front.restore(checkpoint["front_end"])
    with torch.no_grad():
        z_v, z_a = model.eval()(VideoFrontEnd()(batch["video"]), audio_front(batch["waveform"]))
    return z_v, z_a, batch["title"]


def test_synchronisation_is_measured_from_a_checkpoint_to_a_result(run, toy, tmp_path):
    out = tmp_path / "sync"
    flags = sync_flags(run, toy / "films", out, "--snippets", 12)
    status, printed, errors = run_script("lab.evaluate", *flags)
    assert not status, errors
    result = json.loads((out / "result.json").read_text())
    assert result["evaluation"] == "sync" and result["snippets"] == 8 * 12
    expected = synchronisation(*embeddings_of(run, toy / "films", 12))
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-3)
    pairs = result["pairs"]
    assert pairs["sync_same"] == 8 * 12 * 11 and pairs["sync_other"] == 8 * 7 * 12 * 12
    kinds = ["sync_same_shot", "sync_same_scene", "sync_other_scene"]
    assert sum(pairs[name] for name in kinds) == pairs["sync_same"]
    assert min(pairs[name] for name in kinds) > 0
    accuracies = read_run(out)["accuracies"]
    assert list(accuracies.values()) == [
        result[name] for name in ("sync_same", *kinds, "sync_other")
    ]
    assert "synchronisation of toy, another scene" in accuracies
    # The figure of the title is the mean of those of its kinds, weighted by their pairs.
    total = sum(result[name] * pairs[name] for name in kinds)
    assert result["sync_same"] == pytest.approx(total / pairs["sync_same"])
    lines = printed.splitlines()
    assert lines[0] == "snippets  96 of 1.6 s, of 8 titles"
    assert lines[-6:] == result["summary"]
    first = f"sync_same {result['sync_same']:.3f} 1056 pairs of the same title"
    assert lines[-6].split() == first.split()
    # The same command again finds it finished.
    status, printed, _ = run_script("lab.evaluate", *flags)
    assert not status and printed.splitlines()[1:] == result["summary"]


def test_shots_and_scenes_are_those_of_a_truth_that_fits(run, toy, tmp_path, capsys):
    fmt = Format(8, 5, 40, 24, rate=16000, n_fft=1024, hop=256, mels=64)
    titles = Titles(toy / "films", fmt)
    truth = sync.read_truth(toy / "films", titles)
    assert len(truth) == 8 and {len(rows) for rows in truth} == {24}
    # Of other films there is none, and neither is there of fewer.
    films = tmp_path / "films"
    shutil.copytree(toy / "films", films)
    assert sync.read_truth(films, Titles(films, fmt)) is None
    shutil.copy(toy / "truth.csv", tmp_path)
    assert sync.read_truth(films, Titles(films, fmt)) == truth
    (films / "film007.mp4").unlink()
    assert sync.read_truth(films, Titles(films, fmt)) is None
    lines = (toy / "truth.csv").read_text().splitlines()
    shorter = [line for line in lines if not line.startswith("7,") and not line.startswith("0,23,")]
    (tmp_path / "truth.csv").write_text("\n".join(shorter) + "\n")
    assert sync.read_truth(films, Titles(films, fmt)) is None
    for foreign in ("video,label\na,b\n", "title,scene,shot\na;b\n", '"' + 200_000 * "x"):
        (tmp_path / "truth.csv").write_text(foreign)
        assert sync.read_truth(films, Titles(films, fmt)) is None
    # Without truth the figures of titles are left, here of some titles only.
    (tmp_path / "truth.csv").unlink()
    (films / "zero.mp4").write_text("no film")
    flags = sync_flags(run, films, tmp_path / "out", "--snippets", 2, "--titles", 2)
    sync.run_sync(parse_args(flags))
    assert f"skipped   1 files, the first: {films}/zero.mp4: " in capsys.readouterr().out
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["pairs"] == {"sync_same": 4, "sync_other": 8} and result["titles"] == 2


def test_the_similarity_is_that_of_training(run, tmp_path):
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    taus = []
    for arguments in ({"tau": None}, {"tau": 0.07}, {}):
        kept = {name: x for name, x in checkpoint["args"].items() if name != "tau"}
        torch.save({**checkpoint, "args": kept | arguments}, tmp_path / "checkpoint.pt")
        _, tau = sync.load_model(tmp_path / "checkpoint.pt", sources_of(run / "checkpoint.pt"))
        taus.append(tau)
    assert taus == [None, 0.07, 1.0]


def test_what_sync_refuses(run, toy, tmp_path):
    out = tmp_path / "out"

    def refuse(data, *flags):
        return refused("lab.evaluate", *sync_flags(run, data, out, *flags))

    films = toy / "films"
    assert "--snippets 0: must be 1 or more" in refuse(films, "--snippets", 0)
    assert "--titles 0: must be 1 or more" in refuse(films, "--titles", 0)
    assert "no such folder or LIST.txt" in refuse(tmp_path / "nowhere")
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    del checkpoint["audio_head"]["net.0.weight"]
    torch.save(checkpoint, tmp_path / "headless.pt")
    message = refuse(films, "--ckpt", tmp_path / "headless.pt")
    assert "its audio_head is missing or does not fit that of models.py" in message
    assert "there are no pairs to compare" in refuse(films, "--titles", 1)
    assert not out.exists()
