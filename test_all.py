"""The pipeline, tested in its own order: sampler, loss, networks, reading, front-ends, labelled sets, pretraining, fine-tuning.

    python -m pytest -q test_all.py        no network, no GPU; under four minutes on two cores

Each idea of the paper has a test that fails when the idea is broken; media files are made here, by the toy world's renderer
or by FFmpeg's encoders, and read back through the real decoders.
"""

import collections
import contextlib
import doctest
import io
import json
import os
import pickle
import runpy
import shutil
import subprocess
import sys
import tracemalloc
import wave
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
import torchaudio
import torchvision

import data
import finetune
import loss
import models
import pretrain
import sampler
from data import ESC50, AudioFrontEnd, BadInput, Format, LabeledVideos, Reader, Titles, VideoFrontEnd
from sampler import HierarchicalSampler

HERE = Path(__file__).parent
TINY = Format(frames=8, fps=5, short_side=40, crop=32, rate=16000, n_fft=1024, hop=256, mels=64)  # as the toy world's


def run_script(name, *argv):
    """A script as its user runs it, but in this process: (exit code, standard output, standard error)."""
    out, err, old = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [name, *map(str, argv)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(HERE / name), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = old
    return code, out.getvalue(), err.getvalue()


def refused(name, *argv):
    """The one line on standard error of a script that must refuse its arguments, without its prefix."""
    code, _, err = run_script(name, *argv)
    lines = err.strip().splitlines()
    assert code == 2, err
    assert len(lines) == 1 and lines[0].startswith(f"{name}: error: "), err
    return lines[0].removeprefix(f"{name}: error: ")


# ---------------------------------------------------------------------------------------------------------------------
# Sampler
# ---------------------------------------------------------------------------------------------------------------------


def by_title(batch):
    groups = collections.defaultdict(list)
    for n, m in batch:
        groups[n].append(m)
    return groups


def test_the_example_in_the_docstring():
    assert doctest.testmod(sampler).attempted and not doctest.testmod(sampler).failed


@pytest.mark.parametrize("k, w", [(1, None), (4, None), (4, 4), (4, 16), (16, 64)])
def test_k_distinct_snippets_of_each_title_within_w(k, w):
    counts = [200, 70, 300, 64, 1000] * 8
    spans = []
    for batch in HierarchicalSampler(counts, 32, k, w):
        groups = by_title(batch)
        assert len(batch) == 32 and len(groups) == 32 // k
        for n, snippets in groups.items():
            assert len(set(snippets)) == len(snippets) == k
            assert 0 <= min(snippets) and max(snippets) < counts[n]
            spans.append(max(snippets) - min(snippets) + 1)
    if w:
        assert k <= min(spans) and max(spans) <= w
        assert max(spans) > 0.8 * w  # the window is used, not only its middle or its first k
    elif k > 1:
        assert np.mean(spans) > 100  # from the whole of each title


def test_a_window_is_cut_to_a_shorter_title():
    for batch in HierarchicalSampler([20, 500], 8, k=4, w=100):
        groups = by_title(batch)
        assert max(groups[0]) < 20 and max(groups[1]) - min(groups[1]) < 100


def test_windows_are_placed_uniformly():
    seen = collections.Counter(m for epoch in range(40) for batch in epoch_of(HierarchicalSampler([64] * 4, 8, 4, 4), epoch) for _, m in batch)
    starts = np.array([seen[m] for m in range(3, 61)])  # away from the ends, each snippet lies in w windows
    assert len(seen) == 64 and abs(starts / starts.mean() - 1).max() < 0.35


def epoch_of(batches, epoch):
    batches.set_epoch(epoch)
    return batches


def test_titles_are_drawn_uniformly_not_by_length():
    counts = [16] * 20 + [1600] * 20
    drawn = collections.Counter(n for epoch in range(3) for batch in epoch_of(HierarchicalSampler(counts, 16, 4), epoch) for n in by_title(batch))
    short, long = (sum(drawn[n] for n in half) for half in (range(20), range(20, 40)))
    assert abs(short / long - 1) < 0.05
    assert min(drawn.values()) > 0.8 * max(drawn.values())


def test_ranks_share_out_one_global_batch_of_distinct_titles():
    counts = list(range(50, 90))
    whole = list(HierarchicalSampler(counts, 64, 4, 16))
    shares = [list(HierarchicalSampler(counts, 16, 4, 16, rank, 4)) for rank in range(4)]
    assert [sum(parts, []) for parts in zip(*shares)] == whole
    assert all(len(by_title(batch)) == 16 for batch in whole)


def test_too_few_titles_are_repeated_evenly_without_repeating_a_snippet():
    for batch in HierarchicalSampler([40, 40, 40], 32, k=4):
        assert len(set(batch)) == 32
        assert sorted(len(snippets) for snippets in by_title(batch).values()) == [8, 12, 12]


def test_ranks_do_not_repeat_a_snippet_of_a_title_they_share():
    ranks = [HierarchicalSampler([40, 40], 16, 4, rank=rank, world_size=2).batch(0) for rank in range(2)]
    assert len(set(sum(ranks, []))) == 32


def test_no_two_draws_share_their_numbers():
    """Title and window of a group were once drawn from one stream: keys are padded with zeros."""
    batches = HierarchicalSampler([1000] * 1000, 1, k=1)
    drawn = np.array([batches.batch(step)[0] for step in range(2000)])
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.1


def test_epochs_differ_and_a_seed_repeats():
    make = lambda **kw: HierarchicalSampler([100] * 10, 16, 4, **kw)
    first = list(make())
    assert first == list(make()) != list(make(seed=1))
    second = list(epoch_of(make(), 1))
    assert not any(a == b for a, b in zip(first, second))
    assert len(first) == len(make()) == 1000 // 16


def test_the_position_is_saved_and_restored():
    a, b = (HierarchicalSampler([100] * 10, 16, 4) for _ in range(2))
    a.set_epoch(3)
    run = iter(a)
    whole = [next(run) for _ in range(5)]
    state = pickle.loads(pickle.dumps(a.state_dict()))
    b.load_state_dict(state)
    assert state == {"epoch": 3, "step": 5}
    assert list(run) == list(b) and len(whole) == 5
    assert len(list(a)) == len(a)  # a finished epoch starts again at its beginning


def test_short_titles_are_never_drawn():
    batches = HierarchicalSampler([3, 50, 2, 60], 8, k=4)
    assert {n for batch in batches for n, _ in batch} == {1, 3}


def test_ten_million_titles_need_the_list_of_their_counts():
    counts = np.random.default_rng(0).integers(1000, 3000, 10_000_000)
    tracemalloc.start()
    batches = HierarchicalSampler(counts, 64, 16, world_size=8)
    batches.batch(0), batches.batch(len(batches) - 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6  # the array is kept as it came


@pytest.mark.parametrize("wrong", [dict(k=3), dict(k=0), dict(k=4, w=3), dict(k=16), dict(rank=1)])
def test_what_the_sampler_refuses(wrong):
    with pytest.raises(ValueError):
        HierarchicalSampler([10, 12], 16, **{"k": 4, **wrong})


# ---------------------------------------------------------------------------------------------------------------------
# Loss
# ---------------------------------------------------------------------------------------------------------------------


def equation_1(z_v, z_a):
    """As it is printed, one pair at a time; the mean over the batch."""
    total = 0
    for i in range(len(z_v)):
        positive = (z_v[i] @ z_a[i]).exp()
        negatives = [(z_v[i] @ z_a[j]).exp() + (z_v[j] @ z_a[i]).exp() for j in range(len(z_v)) if j != i]
        total -= (positive / (positive + sum(negatives))).log()
    return total / len(z_v)


def embeddings(B=7, d=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.randn(B, d, dtype=torch.float64, generator=g, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("tau", [None, 0.07])
def test_loss_is_equation_1_value_and_gradient(tau):
    z_v, z_a = embeddings()
    if tau is None:
        naive = equation_1(z_v, z_a)
    else:
        unit = [z / z.norm(dim=1, keepdim=True) for z in (z_v, z_a)]
        naive = equation_1(unit[0] / tau, unit[1])
    ours = loss.nce_loss(z_v, z_a, tau)
    assert torch.allclose(ours, naive, rtol=1e-12)
    for a, b in zip(torch.autograd.grad(ours, [z_v, z_a]), torch.autograd.grad(naive, [z_v, z_a])):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_loss_at_the_start_is_the_log_of_the_choices():
    z = torch.zeros(16, 8)
    assert loss.nce_loss(z, z).item() == pytest.approx(np.log(2 * 16 - 1))


def test_loss_holds_for_huge_similarities_and_for_bf16():
    z_v, z_a = (100 * torch.randn(8, 64) for _ in range(2))
    z_v, z_a = z_v.requires_grad_(), z_a.requires_grad_()
    value = loss.nce_loss(z_v, z_a)
    value.backward()
    assert value.isfinite() and z_v.grad.isfinite().all() and z_a.grad.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert loss.nce_loss(z_v, z_a).item() == pytest.approx(value.item(), rel=1e-5)
    assert loss.nce_loss(z_v.bfloat16(), z_a.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("shapes", [((1, 4), (1, 4)), ((3, 4), (4, 4)), ((3, 4, 1), (3, 4, 1))])
def test_loss_refuses_what_is_not_a_batch_of_pairs(shapes):
    with pytest.raises(ValueError):
        loss.nce_loss(*(torch.zeros(shape) for shape in shapes))


def test_discrepancy_sorts_the_pairs_of_equation_2():
    z_v, z_a = (z.detach() for z in embeddings(12))
    title = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)
    found = loss.discrepancy(z_v, z_a, title, bins=10, pseudo_count=0.5)
    pairs = {"match": [], "same": [], "other": []}
    for i in range(12):
        for j in range(12):
            kind = "match" if i == j else "same" if title[i] == title[j] else "other"
            pairs[kind].append((z_v[i] @ z_a[j]).item())
    assert found["counts"] == {kind: len(x) for kind, x in pairs.items()}
    edges = np.linspace(*(f([x for xs in pairs.values() for x in xs]) for f in (min, max)), 11)
    counts = {kind: np.histogram(x, edges)[0] for kind, x in pairs.items()}
    assert found["histograms"] == {kind: c.tolist() for kind, c in counts.items()}
    p = {kind: (c + 0.5) / (c + 0.5).sum() for kind, c in counts.items()}
    kl = lambda a, b: float((p[a] * np.log(p[a] / p[b])).sum())
    assert found["kl_same_other"] == pytest.approx(kl("same", "other"))
    assert found["kl_same_match"] == pytest.approx(kl("same", "match"))
    assert found["kl_other_match"] == pytest.approx(kl("other", "match"))
    assert found["gap"] == pytest.approx(kl("other", "match") - kl("same", "match"))


def test_discrepancy_tells_a_shortcut_from_a_correspondence():
    g = torch.Generator().manual_seed(0)
    title = torch.arange(20).repeat_interleave(20)
    film, snippet, rest = (torch.randn(400, 32, generator=g) for _ in range(3))
    film = film[title]  # what only the title knows
    shortcut = loss.discrepancy(film, film + 0.1 * rest, title)
    matched = loss.discrepancy(snippet, snippet + 0.1 * rest, title)
    assert shortcut["kl_same_other"] > 1 and shortcut["kl_same_match"] < 0.3 and shortcut["gap"] > 1
    assert matched["kl_same_other"] < 0.05 and matched["kl_same_match"] > 1 and abs(matched["gap"]) < 0.3


def test_discrepancy_needs_all_three_kinds_of_pairs():
    z = torch.randn(4, 8)
    for title in ([0, 0, 0, 0], [0, 1, 2, 3]):
        with pytest.raises(ValueError):
            loss.discrepancy(z, z, torch.tensor(title))


# ---------------------------------------------------------------------------------------------------------------------
# Networks
# ---------------------------------------------------------------------------------------------------------------------


def assert_same_network(ours, theirs, x):
    """Names, shapes, outputs (in training and testing), gradients; weights both ways. In fp64, so that nothing blurs."""
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    ours, theirs, x = ours.double(), theirs.double(), x.double()
    for mode in (True, False):
        y, target = ours.train(mode)(x), theirs.train(mode)(x)
        assert torch.allclose(y, target, rtol=1e-9, atol=1e-9)
        y.square().sum().backward()
        target.square().sum().backward()
    gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, p in ours.named_parameters():
        assert torch.allclose(p.grad, gradients[name], rtol=1e-6, atol=1e-9 * gradients[name].abs().max().item()), name


def test_video_network_is_torchvisions():
    torch.manual_seed(0)
    ours = models.r2plus1d_18(num_classes=400)
    assert sum(p.numel() for p in ours.parameters()) == 31_505_325
    assert sum(p.numel() for p in models.r2plus1d_18().parameters()) == 31_300_125
    assert_same_network(ours, torchvision.models.video.r2plus1d_18(), torch.randn(2, 3, 8, 20, 28))


def test_audio_network_is_torchvisions():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=50)
    theirs.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    assert_same_network(models.audio_resnet18(num_classes=50), theirs, torch.randn(2, 1, 48, 70))


def test_pretrained_weights_go_to_torchvision_without_fc():
    pretrained = models.AudioVisualModel().video.state_dict()
    fit = torchvision.models.video.r2plus1d_18().load_state_dict(pretrained, strict=False)
    assert fit.missing_keys == ["fc.weight", "fc.bias"] and not fit.unexpected_keys


@pytest.mark.parametrize("width", [8, 16])
def test_embeddings_and_maps_have_the_documented_shapes(width):
    model = models.AudioVisualModel(width)
    video, audio = torch.randn(2, 3, 16, 48, 48), torch.randn(2, 1, 96, 301)
    assert model.video.features(video).shape == (2, 8 * width, 2, 3, 3)
    assert model.audio.features(audio).shape == (2, 8 * width, 3, 10)
    z_v, z_a = model(video, audio)
    assert z_v.shape == z_a.shape == (2, 512) and z_v.dtype == z_a.dtype == torch.float32
    assert model.video(video).shape == model.audio(audio).shape == (2, 8 * width)


def test_heads_are_two_convolutions_of_kernel_1_then_the_average():
    head = models.AudioVisualModel(8).video_head.eval()
    x = torch.randn(2, 64, 2, 3, 3)
    first, norm, _, second = head.net
    by_hand = second(torch.relu(norm(first(x)))).mean((2, 3, 4))
    assert first.kernel_size == second.kernel_size == (1, 1, 1) and torch.allclose(head(x), by_hand, atol=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------

EVENT = 2.0  # s between flashes, each with its beep, in the films below


def write_film(path, seconds=20, fps=25, rate=44100, video="libx264", audio="aac", size=(64, 48), start=0.0, gop=50, options={}):
    """White for the first 0.2 s of every EVENT, dark grey else; a tone of 1 kHz meanwhile. None leaves a stream out."""
    with av.open(str(path), "w") as out:
        v = a = None
        if video:
            v = out.add_stream(video, rate=fps, options={"g": str(gop), **options})
            v.width, v.height, v.pix_fmt = *size, "yuv420p"
        if audio:
            a = out.add_stream(audio, rate=rate, layout="stereo")
        t = np.arange(round(seconds * rate)) / rate
        tone = (0.8 * np.sin(2 * np.pi * 1000 * t) * (t % EVENT < 0.2)).astype(np.float32)
        laid = 0
        for i in range(round(seconds * fps)):
            if v:
                lit = (i / fps + 1e-6) % EVENT < 0.2
                frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), 255 if lit else 40, np.uint8))
                frame.pts, frame.time_base = i + round(start * fps), Fraction(1, fps)
                out.mux(v.encode(frame))
            while a and laid + 1024 <= min((i + 1) / fps, seconds) * rate:
                block = np.stack([tone[laid : laid + 1024]] * 2)
                block = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
                block.pts, block.sample_rate, block.time_base = laid + round(start * rate), rate, Fraction(1, rate)
                out.mux(a.encode(block))
                laid += 1024
        for stream in filter(None, (v, a)):
            out.mux(stream.encode())
    return path


def onset(waveform, rate=48000):
    """Seconds into the waveform at which the first tone begins, or None."""
    loud = np.flatnonzero(np.abs(np.asarray(waveform)) > 0.2)
    return loud[0] / rate if len(loud) else None


@pytest.mark.parametrize("name, video, audio, rate", [
    ("a.mp4", "libx264", "aac", 44100), ("b.mkv", "libx264", "libopus", 48000),
    ("c.mov", "libx264", "pcm_s16le", 48000), ("d.mkv", "mpeg4", "flac", 48000), ("e.webm", "libvpx-vp9", "libopus", 48000),
])  # fmt: skip
def test_video_and_sound_are_cut_at_the_same_time(tmp_path, name, video, audio, rate):
    """Fails when the sound is cut late, the frames are taken early, or a seek is trusted without a look."""
    path = write_film(tmp_path / name, video=video, audio=audio, rate=rate)
    reader = Reader(path)
    for t0 in np.random.default_rng(0).uniform(0.1, 16, 12).tolist() + [0.0, 2.0, 3.9]:
        times = t0 + np.arange(16) / 5
        frames, waveform = reader.read(times, t0, 153600, 48000)
        lit = [frame.to_ndarray(format="gray").mean() > 140 for frame in frames]
        shown = np.floor((times + 1e-3) * 25) / 25      # when the frame on screen at that time began
        assert lit == [bool((s + 1e-6) % EVENT < 0.2) for s in shown], t0
        assert waveform.shape == (153600,) and waveform.dtype == np.float32
        since = t0 % EVENT
        if since > 0.25:                                # else the cut falls into a tone
            assert onset(waveform) == pytest.approx(EVENT - since, abs=0.02), t0


def test_avi_with_b_frames_is_read_by_its_decoding_times(tmp_path):
    """The kind of file that UCF101 is published in; it says when to decode, a frame or two from when to show."""
    path = write_film(tmp_path / "v.avi", video="mpeg4", audio=None, options={"bf": "2"})
    times = 5.1 + np.arange(16) / 5
    lit = [frame.to_ndarray(format="gray").mean() > 140 for frame in Reader(path).read(times)[0]]
    assert lit == [bool((t + 1e-3) % EVENT < 0.2) for t in times] and sum(lit) == 2


def test_sound_without_a_time_goes_on_where_it_was():
    sound = data.Sound(None, 1.0, 48, 48000)
    for value, pts in ((0.25, 48000), (0.5, None)):
        block = av.AudioFrame.from_ndarray(np.full((1, 24), value, np.float32), format="fltp", layout="mono")
        block.sample_rate, block.time_base, block.pts = 48000, Fraction(1, 48000), pts
        sound.lay([block])
    assert sound.samples.tolist() == [0.25] * 24 + [0.5] * 24 and sound.done


def test_a_snippet_is_16_frames_and_3_2_seconds_of_sound(tmp_path):
    write_film(tmp_path / "film.mp4", seconds=20)
    titles = Titles(tmp_path, Format())
    assert titles.names == ["film.mp4"] and titles.counts == [6]
    video, waveform, n = titles[0, 2, (0, 0, 0, 0)]
    assert video.shape == (3, 16, 158, 158) and video.dtype == torch.uint8
    assert waveform.shape == (153600,) and waveform.dtype == torch.float32 and n == 0
    assert onset(waveform) == pytest.approx(8.0 - 6.4, abs=0.02)  # snippet 2 starts at 6.4 s


def test_a_late_start_shifts_both_streams(tmp_path):
    write_film(tmp_path / "film.mkv", seconds=20, start=5.0)
    titles = Titles(tmp_path, Format())
    assert titles.counts == [6]
    assert onset(titles[0, 2, None][1]) == pytest.approx(8.0 - 6.4, abs=0.02)


def test_a_show_is_its_files_stitched_in_name_order(tmp_path):
    show = tmp_path / "show"
    show.mkdir()
    for name, seconds in (("e2.mp4", 4), ("e1.mkv", 7), ("e3.mp4", 10)):
        write_film(show / name, seconds=seconds)
    (show / "notes.txt").write_text("not media")
    write_film(tmp_path / "film.mp4", seconds=4)
    titles = Titles(tmp_path, Format())
    assert titles.names == ["film.mp4", "show"] and titles.counts == [1, 2 + 1 + 3]
    assert [Path(path).name for path, _, _ in titles.parts[1]] == ["e1.mkv", "e2.mp4", "e3.mp4"]
    assert titles.read(1, 1)[0][0].time == pytest.approx(3.2, abs=0.041)  # e1's second
    assert titles.read(1, 2)[0][0].time == pytest.approx(0.0, abs=0.041)  # e2's first
    assert titles.read(1, 4)[0][0].time == pytest.approx(3.2, abs=0.041)  # e3's second


def test_crops_come_from_their_key_alone(tmp_path):
    write_film(tmp_path / "film.mp4", seconds=8, size=(80, 60))
    titles = Titles(tmp_path, Format(short_side=60, crop=32))
    gradient = np.broadcast_to(np.arange(80, dtype=np.uint8)[None, :, None] * 2 + np.arange(60, dtype=np.uint8)[:, None, None], (60, 80, 3))
    titles.read = lambda n, m: ([av.VideoFrame.from_ndarray(np.ascontiguousarray(gradient))] * 16, np.zeros(4, np.float32))
    titles.reader = Reader(tmp_path / "film.mp4")
    corners = {tuple(titles[0, 0, (0, 0, 0, place)][0][0, 0, [0, 0], [0, 1]].tolist()) for place in range(50)}
    assert len(corners) > 30                             # they vary ...
    again = [titles[0, 0, (0, 0, 0, 7)][0] for _ in range(2)]
    assert torch.equal(*again)                           # ... and repeat
    assert (again[0][:, 1:] == again[0][:, :1]).all()    # all frames of a snippet at the same place
    centre = titles[0, 0, None][0][0, 0]
    assert torch.equal(centre, torch.from_numpy(gradient[14:46, 24:56, 0].copy()))


def test_wide_pixels_are_shown_square(tmp_path):
    with av.open(str(tmp_path / "wide.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 72, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 9)
        for i in range(10):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((64, 72, 3), np.uint8))))
        out.mux(stream.encode())
    reader = Reader(tmp_path / "wide.mp4")
    frames, _ = reader.read([0.0])
    assert reader.resize(frames[0], 32).shape == (32, 64, 3)


def test_what_a_folder_of_films_must_be(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        Titles(tmp_path / "none", TINY)
    with pytest.raises(BadInput, match="no media files"):
        Titles(tmp_path, TINY)
    (tmp_path / "text.mp4").write_text("not a film")
    write_film(tmp_path / "mute.mp4", seconds=4, audio=None)
    write_film(tmp_path / "short.mp4", seconds=1)
    with pytest.raises(BadInput, match="none of its 3 files can be used"):
        Titles(tmp_path, TINY)
    write_film(tmp_path / "good.mp4", seconds=4)
    titles = Titles(tmp_path, TINY)
    assert titles.names == ["good.mp4"] and titles.counts == [2]
    reasons = {Path(path).name: why for path, why in titles.skipped}
    assert reasons["mute.mp4"] == "no sound" and "not a media file" in reasons["text.mp4"] and "shorter" in reasons["short.mp4"]


# ---------------------------------------------------------------------------------------------------------------------
# Front-ends
# ---------------------------------------------------------------------------------------------------------------------


def test_video_front_end_normalises():
    video = torch.randint(0, 256, (2, 3, 4, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1, 1) for x in (VideoFrontEnd.MEAN, VideoFrontEnd.STD))
    assert torch.allclose(VideoFrontEnd()(video, key=(0,)), (video / 255 - mean) / std, atol=1e-6)


def test_jitter_is_one_draw_a_sample_within_its_bounds():
    front = VideoFrontEnd(jitter=0.5)
    factors = np.stack([data.rng_of(seed, 3).uniform(0.5, 1.5, (3, 4, 1, 1, 1, 1)) for seed in range(2)])
    assert factors.min() >= 0.5 and factors.max() <= 1.5
    gray = torch.full((4, 3, 2, 8, 8), 100, dtype=torch.uint8)
    jittered = front(gray, key=(0,)) * front.std + front.mean
    expected = torch.from_numpy(np.clip(100 / 255 * factors[0][0], 0, 1)).float().expand(4, 3, 2, 8, 8)
    assert torch.allclose(jittered, expected, atol=1e-5)  # contrast and saturation leave an even grey alone
    assert torch.equal(front(gray, key=(0,)), front(gray, key=(0,))) and not torch.equal(front(gray, key=(0,)), front(gray, key=(1,)))
    assert torch.equal(front(gray), VideoFrontEnd()(gray))  # without a key, none


def test_flip_turns_half_of_the_samples():
    video = torch.arange(8, dtype=torch.uint8).expand(200, 3, 2, 8, 8)
    flipped = (VideoFrontEnd(flip=True)(video, key=(0,))[:, 0, 0, 0, 0] > VideoFrontEnd()(video)[:, 0, 0, 0, 0]).float()
    assert 0.35 < flipped.mean() < 0.65


def test_log_mel_is_the_papers_and_standardised():
    front, x = AudioFrontEnd(Format()), 0.1 * torch.randn(3, 153600)
    mel = torchaudio.transforms.MelSpectrogram(48000, n_fft=2048, hop_length=512, n_mels=96)(x)
    assert front(x).shape == (3, 1, 96, 301)
    assert torch.allclose(front(x)[:, 0], (mel + 1e-6).log(), atol=1e-5)
    front.measure(x)
    assert abs(front(x).mean()) < 1e-3 and abs(front(x).std() - 1) < 1e-3


@pytest.mark.parametrize("both", [False, True])
def test_one_band_drops_out_of_one_axis_or_of_both(both):
    share = 0.5 if both else 0.25
    front, x = AudioFrontEnd(Format(), drop=share, both=both), 0.1 * torch.randn(200, 20000)
    clean, dropped = front(x), front(x, key=(0, 0))
    gone = (dropped == 0) & (clean != 0)                     # (200, 1, 96, Q)
    mels, frames = gone[:, 0].all(2), gone[:, 0].all(1)      # (200, 96), (200, Q)
    assert torch.equal(gone[:, 0], mels[:, :, None] | frames[:, None, :])
    for band, size in ((mels, 96), (frames, clean.shape[3])):
        width = band.sum(1)
        assert width.max() <= share * size + 1 and width.max() > 0.8 * share * size
        assert ((band.int().diff(dim=1).abs().sum(1)) <= 2).all()  # a single band
    either = (mels.any(1).float().mean(), frames.any(1).float().mean())
    if both:
        assert min(either) > 0.9
    else:
        assert not (mels.any(1) & frames.any(1)).any() and all(0.35 < share < 0.65 for share in either)
    assert torch.equal(dropped, front(x, key=(0, 0)))


# ---------------------------------------------------------------------------------------------------------------------
# Toy world
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A small instance: 8 films of 24 snippets, 4 + 2 clips a class."""
    root = tmp_path_factory.mktemp("world") / "toy"
    data.make_toy(root, titles=8, snippets=24, clips=(4, 2))
    return root


def test_toy_world_is_media_files_in_the_published_layouts(toy):
    films = Titles(toy / "films", TINY)
    assert films.counts == [24] * 8 and not films.skipped
    reader = Reader(toy / "films" / f"{films.names[0]}")
    assert reader.video.codec_context.name == "h264" and reader.audio is not None
    for split in (1, 2, 3):
        train, names = data.ucf101(toy / "action", split, True)
        test, _ = data.ucf101(toy / "action", split, False)
        assert len(names) == 10 and len(train) == 40 and len(test) == 20 and not set(train) & set(test)
    for fold in range(1, 6):
        train, names = data.esc50(toy / "sound", fold, True)
        test, _ = data.esc50(toy / "sound", fold, False)
        assert len(names) == 10 and len(train) + len(test) == 60 and not set(train) & set(test)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    def digest(name, seed):
        data.make_toy(tmp_path / name, seed=seed, titles=2, snippets=6, clips=(1, 1))
        return {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}

    first, second, other = digest("a", 0), digest("b", 0), digest("c", 1)
    assert first == second
    films = [path for path in first if path.parts[0] == "films"]
    assert len(films) == 2 and all(first[path] != other[path] for path in films)


def test_an_occupied_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    assert "not empty" in refused("data.py", "toy", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


# ---------------------------------------------------------------------------------------------------------------------
# Labelled sets
# ---------------------------------------------------------------------------------------------------------------------


def test_missing_sets_are_answered_with_their_layout(tmp_path):
    for read, file in ((data.ucf101, "classInd.txt"), (data.hmdb51, "_test_split1.txt"), (data.esc50, "esc50.csv")):
        with pytest.raises(BadInput, match=file):
            read(tmp_path, 1, True)


def test_hmdb51_splits_are_read_as_published(tmp_path):
    splits = tmp_path / "testTrainMulti_7030_splits"
    splits.mkdir()
    for name in ("brush_hair", "wave"):
        (splits / f"{name}_test_split2.txt").write_text("".join(f"{name}_{i}.avi {i % 3} \n" for i in range(9)))
    train, names = data.hmdb51(tmp_path, 2, True)
    test, _ = data.hmdb51(tmp_path, 2, False)
    assert names == ["brush_hair", "wave"]
    assert train[:2] == [(tmp_path / "hmdb51_org/brush_hair" / f"brush_hair_{i}.avi", 0) for i in (1, 4)]
    assert [path.name for path, label in test if label == 1] == ["wave_2.avi", "wave_5.avi", "wave_8.avi"]


def test_a_list_that_names_a_missing_file_is_refused(toy):
    items, _ = data.ucf101(toy / "action", 1, True)
    with pytest.raises(BadInput, match="v_None"):
        LabeledVideos([*items, (toy / "action/UCF-101/v_None.mp4", 0)], TINY)


def test_test_views_are_10_clips_by_3_crops(tmp_path):
    path = write_film(tmp_path / "v.mp4", seconds=9, size=(96, 48), audio=None)
    videos = LabeledVideos([(path, 5)], Format(frames=8, fps=10, short_side=48, crop=40))
    views, label = videos[0, None]
    assert views.shape == (30, 3, 8, 40, 40) and label == 5
    frames, _ = Reader(path).read(np.arange(8) / 10)     # the first clip starts at 0 ...
    image = frames[3].to_ndarray(format="rgb24")
    for view, left in zip(views[:3], (0, 28, 56)):       # ... and is cut left, centre, right
        assert (view[:, 3].int() - torch.from_numpy(image[4:44, left : left + 40].copy()).permute(2, 0, 1).int()).abs().max() <= 1
    last = Reader(path).read(9 - 0.8 + np.arange(8) / 10)[0][0].to_ndarray(format="rgb24")
    assert abs(views[-2, :, 0].float().mean() - last.mean()) < 3


def test_training_clips_vary_in_place_and_scale_with_their_key(tmp_path):
    path = write_film(tmp_path / "v.mp4", seconds=9, size=(96, 48), audio=None)
    videos = LabeledVideos([(path, 0)], Format(frames=8, fps=10, short_side=48, crop=40), scale=(44, 60))
    clips = [videos[0, (0, 0, 0, place)][0] for place in range(12)]
    assert all(clip.shape == (3, 8, 40, 40) for clip in clips)
    assert torch.equal(clips[3], videos[0, (0, 0, 0, 3)][0])
    assert len({tuple((clip.float().mean((0, 2, 3)) > 140).tolist()) for clip in clips}) > 3  # flashes at different places


def test_a_video_shorter_than_a_clip_starts_again(tmp_path):
    path = write_film(tmp_path / "v.mp4", seconds=1, audio=None)
    clip, _ = LabeledVideos([(path, 0)], Format(frames=32, fps=10, short_side=48, crop=48))[0, (0,)]
    lit = clip.float().mean((0, 2, 3)) > 140
    assert lit.tolist() == [i % 10 < 2 for i in range(32)]


def test_sound_clips_are_cut_from_the_file(tmp_path):
    rate = 44100
    t = np.arange(5 * rate) / rate
    with wave.open(str(tmp_path / "s.wav"), "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", None))
        out.writeframes((20000 * np.sin(2 * np.pi * 1000 * t) * (t > 2.5)).astype("<i2").tobytes())
    sounds = ESC50([(tmp_path / "s.wav", 3)], Format(frames=15, fps=5))  # 3 s
    views, label = sounds[0, None]
    assert views.shape == (10, 144000) and label == 3
    assert [onset(view) for view in views[[0, 9]]] == pytest.approx([2.5, 0.5], abs=0.01)
    assert sounds[0, (1, 2)][0].shape == (144000,) and torch.equal(sounds[0, (1, 2)][0], sounds[0, (1, 2)][0])


# ---------------------------------------------------------------------------------------------------------------------
# Pretraining: the real script, at toy size
# ---------------------------------------------------------------------------------------------------------------------

SMALL = ["--toy", "--width", "8", "--short-side", "40", "--crop", "32", "--batch-size", "16", "--k", "4", "--w", "8",
         "--held-out", "0.25", "--held-out-snippets", "4",
         "--warmup", "0.5"]  # fmt: skip


def arguments(toy, out, *more):
    """9 steps of 16 snippets an epoch: titles of 24 snippets, 6 to train on."""
    return pretrain.parse_args([*SMALL, "--data", str(toy / "films"), "--out", str(out), "--epochs", "1", "--workers", "0",
                                *map(str, more)])  # fmt: skip


def load(out):
    return torch.load(Path(out) / "checkpoint.pt", weights_only=True)


def log_of(out, key="loss"):
    return [row[key] for row in map(json.loads, (Path(out) / "log.jsonl").read_text().splitlines()) if key in row]


def assert_equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.fixture(scope="session")
def run(toy, tmp_path_factory):
    """One finished run of nine steps."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    pretrain.main(arguments(toy, out, "--workers", "2"))
    return out


def test_bare_arguments_are_the_papers():
    args = pretrain.parse_args([])
    assert Format(**{name: getattr(args, name) for name in Format.__dataclass_fields__}) == Format()
    assert (args.k, args.w, args.batch_size, args.epochs, args.lr, args.tau, args.jitter) == (16, None, 512, 10, 2e-3, None, 0)
    assert (args.data, args.width, args.held_out, args.gather) == ("datasets/movies", 64, 0.1, False)


def test_the_schedule_of_section_7_2():
    args = pretrain.parse_args([])
    rate = [pretrain.learning_rate(args, step, 100) for step in range(1001)]
    assert rate[0] == pytest.approx(1e-4) and rate[100] == pytest.approx(2e-3) == max(rate) and rate[1000] == pytest.approx(0)
    assert np.diff(rate[:100]).std() < 1e-9 and rate[550] == pytest.approx(1e-3)


def test_a_run_writes_its_folder(run):
    checkpoint = load(run)
    model = models.AudioVisualModel(8)
    for name in ("video", "audio", "video_head", "audio_head"):
        getattr(model, name).load_state_dict(checkpoint[name])
    assert checkpoint["front_end"]["rate"] == 16000 and checkpoint["front_end"]["log_mel_std"] > 0
    assert checkpoint["args"]["k"] == 4 and checkpoint["progress"]["step"] == 9 and checkpoint["progress"]["snippets"] == 144
    assert len(log_of(run)) == 9 and all(np.isfinite(log_of(run)))
    assert len(log_of(run, "gap")) == 2                  # held-out titles: before, and after the epoch
    assert log_of(run, "counts")[0] == {"match": 8, "same": 24, "other": 32}
    picture = torchvision.io.decode_image(str(run / "curves.png"))
    assert picture.shape[1] > 200 and picture.float().std() > 10
    assert not list(run.glob(".*"))                      # no temporary file stays behind


def test_each_batch_of_the_loop_is_k_snippets_a_title_and_each_epoch_differs(toy, tmp_path, monkeypatch):
    read, items = Titles.__getitem__, []
    monkeypatch.setattr(Titles, "__getitem__", lambda self, item: (items.append(item), read(self, item))[1])
    pretrain.main(arguments(toy, tmp_path / "run", "--epochs", "2"))
    items = [item for item in items if item[2] is not None]          # those of training
    assert len(items) == 2 * 9 * 16 and len({key for _, _, key in items}) == len(items)  # no key twice
    for start in range(0, len(items), 16):
        groups = by_title([item[:2] for item in items[start : start + 16]])
        assert [len(set(g)) for g in groups.values()] == [4] * 4 and all(max(g) - min(g) < 8 for g in groups.values())
    epochs = [[item[:2] for item in items if item[2][1] == epoch] for epoch in (0, 1)]
    assert len(epochs[0]) == len(epochs[1]) == 144 and epochs[0] != epochs[1]


def test_held_out_titles_are_whole_and_never_trained_on(toy):
    titles = Titles(toy / "films", TINY)
    for seed in range(3):
        train, held_out = pretrain.split_titles(titles, arguments(toy, "unused", "--seed", seed))
        assert len(held_out) == 2 and sorted(train.names + held_out.names) == titles.names
    assert len(pretrain.split_titles(titles.subset([0]), arguments(toy, "unused"))[0]) == 1


@pytest.mark.parametrize("stop", [2, 5])
def test_an_interrupted_run_resumes_to_the_same_weights(run, toy, tmp_path, monkeypatch, stop):
    """Also: the number of reading processes changes nothing."""
    out, calls, real = tmp_path / "run", [], pretrain.nce_loss

    def killed(*inputs):
        calls.append(1)
        if len(calls) > stop + 1:  # a step past the checkpoint, which must be forgotten
            raise KeyboardInterrupt
        return real(*inputs)

    monkeypatch.setattr(pretrain, "nce_loss", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(arguments(toy, out, "--save-every", stop, "--workers", "0"))
    assert load(out)["progress"]["step"] == stop and len(log_of(out)) == stop + 1
    (out / "log.jsonl").open("a").write('{"step": 99, "lo')  # as a kill in the middle of a line leaves it
    monkeypatch.setattr(pretrain, "nce_loss", real)
    pretrain.main(arguments(toy, out, "--workers", "2"))
    assert log_of(out) == log_of(run) and log_of(out, "gap") == log_of(run, "gap")
    for name in ("video", "audio", "video_head", "audio_head", "optimizer", "progress", "front_end"):
        assert_equal(load(out)[name], load(run)[name])


def test_a_run_does_not_go_on_with_other_titles(toy, tmp_path):
    films = tmp_path / "films"
    shutil.copytree(toy / "films", films)
    pretrain.main(arguments(toy, tmp_path / "run", "--data", films))
    (films / "film000.mp4").rename(films / "another.mp4")
    with pytest.raises(BadInput, match="no longer the titles"):
        pretrain.main(arguments(toy, tmp_path / "run", "--data", films))


def test_a_finished_run_is_left_as_it_is(run, toy):
    before = (run / "checkpoint.pt").read_bytes(), (run / "log.jsonl").read_text()
    pretrain.main(arguments(toy, run))
    assert before == ((run / "checkpoint.pt").read_bytes(), (run / "log.jsonl").read_text())


def test_a_loss_that_is_not_finite_stops_before_the_weights(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "nce_loss", lambda *inputs: loss.nce_loss(*inputs) * float("nan"))
    with pytest.raises(SystemExit, match="is sound"):
        pretrain.main(arguments(toy, tmp_path / "run"))
    assert all(p.isfinite().all() for p in load(tmp_path / "run")["video"].values())


def torchrun(script, *argv):
    """Two gloo processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(HERE / script)]
    done = subprocess.run([*command, *map(str, argv)], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def first_step(toy, args, gather):
    """Loss and gradient norm of step 0, as one process gets them from the two shares one after the other."""
    titles, _ = pretrain.split_titles(Titles(toy / "films", TINY), args)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each of the two has, so that sums are taken in the same order
    torch.manual_seed(args.seed)
    model = models.AudioVisualModel(args.width)
    front = AudioFrontEnd(TINY)
    front.measure(torch.stack([torch.from_numpy(titles.read(n, titles.counts[n] // 2)[1]) for n in range(len(titles))]))
    embeddings = []
    for rank in range(2):
        batch = HierarchicalSampler(titles.counts, 8, args.k, args.w, rank, 2, args.seed).batch(0)
        samples = [titles[n, m, (args.seed, 0, 0, rank * 8 + i)] for i, (n, m) in enumerate(batch)]
        video, audio, _ = (torch.stack(x) if torch.is_tensor(x[0]) else x for x in zip(*samples))
        key = (args.seed, 0, 0, rank)
        embeddings.append(model(VideoFrontEnd()(video, key), front(audio, key)))
    z_v, z_a = zip(*embeddings)
    total = loss.nce_loss(torch.cat(z_v), torch.cat(z_a)) if gather else sum(map(loss.nce_loss, z_v, z_a)) / 2
    total.backward()
    torch.set_num_threads(threads)
    return total.item(), torch.nn.utils.clip_grad_norm_(model.parameters(), torch.inf).item()


@pytest.mark.parametrize("gather", [False, True])
def test_two_processes_are_one_that_takes_their_shares_in_turn(toy, tmp_path, gather):
    """The mean of the two losses and gradients; with --gather, the loss and the gradient of the whole batch."""
    argv = [*SMALL, "--data", toy / "films", "--out", tmp_path / "two", "--epochs", 1, "--workers", 0] + ["--gather"] * gather
    torchrun("pretrain.py", *argv)
    args = pretrain.parse_args([*map(str, argv)])
    expected, norm = first_step(toy, args, gather)
    assert len(log_of(tmp_path / "two")) == 9
    assert log_of(tmp_path / "two")[0] == pytest.approx(expected, rel=1e-5)
    assert log_of(tmp_path / "two", "grad_norm")[0] == pytest.approx(norm, rel=1e-4)
    assert not any(key.startswith("module.") for name in pretrain.NETWORKS for key in load(tmp_path / "two")[name])


def test_what_pretraining_refuses(toy, run, tmp_path):
    films = toy / "films"
    no = lambda *argv: refused("pretrain.py", *SMALL, "--data", films, "--out", tmp_path / "new", *argv)
    assert "--k 5: must be a divisor of a process's batch, 16" in no("--k", 5, "--w", 5)
    assert "--w 3: must be --k (4) or more" in no("--w", 3)
    assert "none: no such folder" in no("--data", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no media files" in no("--data", tmp_path / "empty")
    assert "every title is shorter than k = 32" in no("--k", 32, "--w", 32, "--batch-size", 32)
    assert "holds a run of other arguments (lr 0.002 and not 0.1)" in no("--out", run, "--lr", 0.1, "--epochs", 1)
    assert "--crop 64: must be above 0, and --short-side (40) or less" in no("--crop", 64)
    assert "--tau 0.0: must be above 0" in no("--tau", 0)
    assert "argument --k: invalid int value: 'many'" in no("--k", "many")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "checkpoint.pt").write_bytes(pickle.dumps(os.getcwd))
    assert "not a checkpoint" in no("--out", broken)
    os.environ["WORLD_SIZE"] = "3"
    try:
        assert "--batch-size 16: must be a multiple of processes, 3" in no()
    finally:
        del os.environ["WORLD_SIZE"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "empty"]  # nothing was left behind


# ---------------------------------------------------------------------------------------------------------------------
# Fine-tuning: the real script, at toy size
# ---------------------------------------------------------------------------------------------------------------------


def fine_tune(toy, out, task, *more):
    """Two epochs of the toy task at the sizes of `SMALL`; returns result.json."""
    code, said, err = run_script("finetune.py", "--task", task, "--data", toy / task.removeprefix("toy-"), "--out", out,
                                 "--width", 8, "--epochs", 2, "--warmup", 1, "--batch-size", 20, "--crop", 32, "--scale", 36, 46,
                                 "--short-side", 40, "--workers", 0, *more)  # fmt: skip
    assert not code, err
    return json.loads((Path(out) / "result.json").read_text()), said


def test_fine_tuning_defaults_are_the_papers():
    for task, epochs in (("ucf101", 150), ("hmdb51", 200), ("esc50", 200)):
        args = finetune.parse_arguments(["--task", task])
        assert (args.epochs, args.batch_size, args.lr, args.warmup, args.weight_decay, args.mask) == (epochs, 96, 0.2, 25, 1e-4, 0.5)
        assert args.frames / args.fps == (3.0 if task == "esc50" else 3.2) and args.sizes == (158, (181, 226), 190)
    rate = [finetune.learning_rate(epoch, finetune.parse_arguments(["--task", "ucf101"])) for epoch in range(151)]
    assert rate[0] == pytest.approx(1e-3) and rate[25] == pytest.approx(0.2) == max(rate) and rate[150] == pytest.approx(0)


@pytest.mark.parametrize("task, tests", [("toy-action", 20), ("toy-sound", 20)])
def test_fine_tuning_takes_the_pretrained_weights_and_counts_each_test_file_once(run, toy, tmp_path, task, tests):
    result, said = fine_tune(toy, tmp_path / "run", task, "--ckpt", run / "checkpoint.pt")
    backbone = "video" if task == "toy-action" else "audio"
    assert f"weights: {backbone} of {run / 'checkpoint.pt'} (epoch 1, k 4)" in said and "new: fc.weight, fc.bias" in said
    assert result["tests_of_split"] == {"1": tests} and len(result["accuracy_of_class"]) == 10
    assert result["accuracy"] * tests == pytest.approx(round(result["accuracy"] * tests))
    assert {"result.json", "confusion.png", "log.jsonl", "split1.pt"} <= {p.name for p in (tmp_path / "run").iterdir()}
    kept = torch.load(tmp_path / "run" / "split1.pt", weights_only=True)
    theirs, ours = load(run), kept["front_end"]
    assert ours["log_mel_mean"] == theirs["front_end"]["log_mel_mean"]
    again, said = fine_tune(toy, tmp_path / "run", task, "--ckpt", run / "checkpoint.pt")
    assert again == result and "was finished before" in said


def test_a_frozen_network_does_not_move(run, toy, tmp_path):
    fine_tune(toy, tmp_path / "run", "toy-sound", "--ckpt", run / "checkpoint.pt", "--probe")
    kept, pretrained = torch.load(tmp_path / "run" / "split1.pt", weights_only=True)["model"], load(run)["audio"]
    assert all(torch.equal(kept[name], pretrained[name]) for name in pretrained) and "fc.weight" in kept


def test_two_processes_fine_tune_and_count_as_one(toy, tmp_path):
    torchrun("finetune.py", "--task", "toy-sound", "--data", toy / "sound", "--out", tmp_path / "two", "--width", 8, "--epochs", 1,
             "--warmup", 0, "--batch-size", 20, "--workers", 0)  # fmt: skip
    result = json.loads((tmp_path / "two" / "result.json").read_text())
    assert result["tests_of_split"] == {"1": 20} and len(result["accuracy_of_split"]) == 1


def test_an_interrupted_fine_tuning_resumes_to_the_same_weights(toy, tmp_path, monkeypatch):
    fine_tune(toy, tmp_path / "whole", "toy-sound")
    real, saved = Path.replace, []

    def killed(self, target):
        real(self, target)
        if Path(target).name == "last.pt" and (saved.append(1) or len(saved) == 2):  # the first epoch's
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(toy, tmp_path / "half", "toy-sound")
    monkeypatch.setattr(Path, "replace", real)
    fine_tune(toy, tmp_path / "half", "toy-sound")
    assert_equal(*(torch.load(tmp_path / name / "split1.pt", weights_only=True) for name in ("half", "whole")))


def test_what_fine_tuning_refuses(run, toy, tmp_path):
    no = lambda task, *argv: refused("finetune.py", "--task", task, "--out", tmp_path / "new", *argv)
    sound = ["--data", toy / "sound", "--width", 8]
    checkpoint = load(run)
    torch.save({name: x for name, x in checkpoint.items() if name != "audio"}, tmp_path / "video-only.pt")
    torch.save({**checkpoint, "audio": dict(list(checkpoint["audio"].items())[1:])}, tmp_path / "lost.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(os.getcwd))
    before = sorted(tmp_path.iterdir())
    assert "lacks audio" in no("toy-sound", *sound, "--ckpt", tmp_path / "video-only.pt")
    assert "1 weights of audio are missing" in no("toy-sound", *sound, "--ckpt", tmp_path / "lost.pt")
    assert "not a checkpoint" in no("toy-sound", *sound, "--ckpt", tmp_path / "pickle.pt")
    assert "not a checkpoint" in no("toy-sound", *sound, "--ckpt", tmp_path / "none.pt")
    assert "--width 16" in no("toy-sound", "--data", toy / "sound", "--ckpt", run / "checkpoint.pt")
    assert "--split 6: must be 1 to 5, or all" in no("toy-sound", *sound, "--split", 6)
    code, _, err = run_script("finetune.py", "--task", "ucf101", "--data", tmp_path, "--out", tmp_path / "new")
    assert code == 2 and "classInd.txt: not found" in err and "trainlist01.txt" in err  # with the layout, so several lines
    assert sorted(tmp_path.iterdir()) == before
