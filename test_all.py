"""The pipeline, tested in its own order: sampler, loss, networks, reading, front-ends, labelled sets, pretraining, fine-tuning.

    python -m pytest -q test_all.py        no network, no GPU; under four minutes on two cores

Each idea of the paper has a test that fails when the idea is broken; media files are made here, by the toy world's renderer
or by FFmpeg's encoders, and read back through the real decoders.
"""

import collections
import contextlib
import doctest
import http.server
import io
import json
import os
import pickle
import re
import runpy
import shlex
import shutil
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import wave
from fractions import Fraction
from pathlib import Path

os.environ.update(CUDA_VISIBLE_DEVICES="", no_proxy="127.0.0.1", NO_PROXY="127.0.0.1")  # before torch looks: tests are of the CPU
for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
    os.environ.pop(name, None)

import av
import matplotlib
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
from data import ESC50, Labeled, AudioFrontEnd, BadInput, Format, LabeledVideos, Reader, Titles, VideoFrontEnd
from sampler import HierarchicalSampler

HERE = Path(__file__).parent
TINY = Format(frames=8, fps=5, short_side=40, crop=32, rate=16000, n_fft=1024, hop=256, mels=64)  # as the toy world's


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """The index of a collection is cached in the user's cache folder: not in mine, please."""
    os.environ.setdefault("MPLCONFIGDIR", matplotlib.get_cachedir())
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


def run_script(name, *argv):
    """A script as its user runs it, but in this process: (exit code, standard output, standard error)."""
    out, err, old = io.StringIO(), io.StringIO(), sys.argv
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    sys.argv = [name, *map(str, argv)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(str(HERE / name), run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = old
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
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


@pytest.mark.parametrize("k", [1, 4, 16])
def test_scenes_are_the_fewest_around_a_snippet_that_hold_k(k):
    scenes = [[4, 20, 3, 9, 16, 1, 1, 30, 2], [40], [3] * 20]
    sampler, alone, drawn = HierarchicalSampler([sum(x) for x in scenes], 3 * k, k, scenes=scenes), 0, []
    for epoch, step in [(epoch, step) for epoch in range(40) for step in range(len(sampler))]:
        sampler.set_epoch(epoch)
        for n, group in by_title(sampler.batch(step)).items():
            edges = np.cumsum([0, *scenes[n]])
            first, last = np.searchsorted(edges, [min(group), max(group)], "right") - 1
            assert len(set(group)) == k and 0 <= min(group) and max(group) < edges[-1]
            # The scenes between the ends hold less than k without one of the two: none of them could have been spared.
            assert first == last or edges[last + 1] - edges[first + 1] < k or edges[last] - edges[first] < k
            alone += first == last
            drawn += group if n == 0 else []
    assert alone > 50 and len(set(drawn)) > 75           # not the long scenes only


def test_scenes_are_drawn_by_their_length():
    sampler = HierarchicalSampler([100], 10, 10, scenes=[[80, 20]])
    long = [max(sampler.batch(0)[i][1] for i in range(10)) < 80 for epoch in range(2000) if sampler.set_epoch(epoch) is None]
    assert np.mean(long) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize("wrong", [dict(k=3), dict(k=0), dict(k=4, w=3), dict(k=16), dict(rank=1), dict(scenes=[[3, 4], [8]]),
                                   dict(w=4, scenes=[[4, 6], [12]]), dict(batch_size=0)])  # fmt: skip
def test_what_the_sampler_refuses(wrong):
    with pytest.raises(ValueError):
        HierarchicalSampler([10, 12], **{"batch_size": 16, "k": 4, **wrong})


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


@pytest.mark.parametrize("tau", [None, 0.1])
def test_discrepancy_sorts_the_pairs_of_equation_2(tau):
    z_v, z_a = (z.detach() for z in embeddings(12))
    title = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)
    found = loss.discrepancy(z_v, z_a, title, tau, bins=10, pseudo_count=0.5)
    if tau:
        z_v, z_a = z_v / z_v.norm(dim=1, keepdim=True) / tau, z_a / z_a.norm(dim=1, keepdim=True)
    pairs = {"match": [], "same": [], "other": []}
    for i in range(12):
        for j in range(12):
            kind = "match" if i == j else "same" if title[i] == title[j] else "other"
            pairs[kind].append((z_v[i] @ z_a[j]).item())
    assert found["counts"] == {kind: len(x) for kind, x in pairs.items()}
    edges = np.linspace(*(f([x for xs in pairs.values() for x in xs]) for f in (min, max)), 11)
    counts = {kind: np.histogram(x, edges)[0] for kind, x in pairs.items()}
    assert found["edges"] == pytest.approx(edges.tolist(), abs=1e-5)
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
    bare = models.r2plus1d_18()
    assert sum(p.numel() for p in bare.parameters()) == 31_300_125
    fit = torchvision.models.video.r2plus1d_18().load_state_dict(bare.state_dict(), strict=False)
    assert fit.missing_keys == ["fc.weight", "fc.bias"] and not fit.unexpected_keys
    assert_same_network(ours, torchvision.models.video.r2plus1d_18(), torch.randn(2, 3, 8, 20, 28))


def test_audio_network_is_torchvisions():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=50)
    theirs.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    assert_same_network(models.audio_resnet18(num_classes=50), theirs, torch.randn(2, 1, 48, 70))


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
    with torch.autocast("cpu", torch.bfloat16):
        assert head(x).dtype == torch.float32


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------

EVENT = 2.0  # s between flashes, each with its beep, in the films below


def write_film(path, seconds=20, fps=25, rate=44100, video="libx264", audio="aac", size=(64, 48), start=0.0, gop=50, options={},
               pix_fmt="yuv420p", layout="stereo", only=None, tone=1000, lead=(0.0, 0.0), times=None, mux={}, image=None):  # fmt: skip
    """White for the first 0.2 s of every EVENT, dark grey else; a tone meanwhile (silence at 0 Hz). None leaves a stream out.

    `only`: the one channel that sounds. `lead`: seconds that the picture and the sound lack at their beginnings. `times`: when
    each frame is shown, in whole milliseconds, instead of `fps`. `mux`: options of the container. `image`: shown all the time.
    """
    with av.open(str(path), "w", container_options=mux) as out:
        v = a = None
        if video:
            speed = {"libsvtav1": {"preset": "12"}, "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"}, "wmv2": {}}
            usual = speed.get(video, {"preset": "ultrafast", "bf": "2"})
            v = out.add_stream(video, rate=fps, options={"g": str(gop), **usual, **options})
            v.width, v.height, v.pix_fmt = *size, pix_fmt
            if times is not None:
                v.codec_context.time_base = Fraction(1, 1000)
        if audio:
            a = out.add_stream(audio, rate=rate, layout=layout, options={"strict": "-2", "b": "192000"})
        clock = Fraction(1, 1000) if times is not None else 1 / Fraction(fps)
        stamps = times if times is not None else range(round(seconds * fps))
        channels = [c.name for c in av.AudioLayout(layout).channels]
        t = np.arange(round(seconds * rate)) / rate
        sound = (0.8 * np.sin(2 * np.pi * tone * t) * (t % EVENT < 0.2)).astype(np.float32)
        laid = round(lead[1] * rate)
        for stamp in stamps:
            if v and stamp * clock >= lead[0]:
                lit = (float(stamp * clock) + 1e-6) % EVENT < 0.2
                plain = np.full((size[1], size[0], 3), 255 if lit else 40, np.uint8)
                frame = av.VideoFrame.from_ndarray(plain if image is None else image)
                frame.pts, frame.time_base = stamp + round(start / clock), clock
                out.mux(v.encode(frame))
            while a and laid + 1024 <= min((stamp + 1) * clock, seconds) * rate:
                block = np.stack([sound[laid : laid + 1024] * (only in (None, c)) for c in channels], 1).reshape(1, -1)
                block = av.AudioFrame.from_ndarray(block, format="flt", layout=layout)
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
    video, waveform, n, failures = titles[0, 2, (0, 0, 0, 0)]
    assert video.shape == (3, 16, 158, 158) and video.dtype == torch.uint8
    assert waveform.shape == (153600,) and waveform.dtype == torch.float32 and (n, failures) == (0, "")
    assert onset(waveform) == pytest.approx(8.0 - 6.4, abs=0.02)  # snippet 2 starts at 6.4 s


def test_a_tenth_of_the_sound_may_be_missing_and_no_more(tmp_path):
    reader = Reader(write_film(tmp_path / "film.mkv", 8, lead=(0.0, 0.5), options={"bf": "0"}))
    keep = lambda frame: np.zeros(1)
    with pytest.raises(BadInput, match="damaged at 0.0 s"):
        data.read_snippets(reader, 0.0, 1, Format(), keep)
    assert len(data.read_snippets(reader, 0.4, 1, Format(), keep)[0]) == 16


def test_past_the_end_the_last_frame_stays_and_silence(tmp_path):
    reader = Reader(write_film(tmp_path / "film.mkv", 4.1, options={"bf": "0"}))
    frames, sound = reader.read([1.0, 9.0], 3.9, 48000)
    assert [frame.to_ndarray(format="gray").mean() > 140 for frame in frames] == [False, True]
    assert abs(sound[:9600]).max() > 0.2 and not sound[24000:].any()


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
    for m, name, begins in ((1, "e1.mkv", 3.2), (2, "e2.mp4", 0), (4, "e3.mp4", 3.2)):
        waveform = titles.read(1, m)[1]
        assert Path(titles.reader.path).name == name and onset(waveform[12000:]) == pytest.approx(-(begins + 0.25) % EVENT, abs=0.02)


def test_crops_come_from_their_key_alone(tmp_path):
    gradient = np.add.outer(np.arange(60), 2 * np.arange(80)).astype(np.uint8)[..., None].repeat(3, 2)
    write_film(tmp_path / "film.mp4", seconds=4, size=(80, 60), image=gradient)
    titles = Titles(tmp_path, Format(short_side=60, crop=32))
    clips = [titles[0, 0, (0, 0, 0, place)][0].int() for place in range(30)]
    assert len({clip[0, 0, 0, 0].item() for clip in clips}) > 15                              # they vary ...
    assert torch.equal(clips[7], titles[0, 0, (0, 0, 0, 7)][0].int())                         # ... and repeat
    assert all((clip - clip[:, :1]).abs().float().mean() < 1 for clip in clips)               # all frames at one place
    centre = gradient[14:46, 24:56].transpose(2, 0, 1)
    assert np.array_equal(data.crop(gradient, data.CENTRE, 32), centre)
    assert abs(titles[0, 0, None][0][:, 0].float().mean() - centre.mean()) < 3


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
    write_film(tmp_path / "short.mp4", seconds=1)
    with pytest.raises(BadInput, match="none of its 2 files can be used"):
        Titles(tmp_path, TINY)


def shown_at(path, fps=25, lead=0.0, times=None, start=0):
    """(zero, lit): where the film's own 0 s lies on the file's clock, and a function time -> is the frame on screen white.

    By the packets in the order of their times, without a seek and without decoding: the nth frame is known, as is its light.
    """
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        due = np.sort([float((p.dts if p.pts is None else p.pts) * p.time_base) for p in file.demux(stream) if p.size])
    clock = np.array(times) / 1000 if times is not None else np.arange(10**4) / float(fps)
    clock = clock[clock >= lead - 1e-9][: len(due)]
    assert len(due) == len(clock), (len(due), len(clock))
    return due[0] - clock[0], lambda t: bool((clock[np.searchsorted(due, t + data.CLOCK) - 1] + 1e-6) % EVENT < 0.2)


def white(frame):
    return frame.to_ndarray(format="gray").mean() > 140


def assert_in_step(path, cuts, zero, lit, seconds=20, loud=0.2, slack=(0.0, 0.02), reader=None):
    """A snippet cut at any of the film's seconds shows the frames of those times, and its beep begins when it should.

    `slack`: seconds by which the picture and the sound may be off, where the format knows no better.
    """
    reader, wrong = reader or Reader(path), []
    for cut in cuts:
        times = zero + cut + np.arange(16) / 5
        frames, waveform = reader.read(times, times[0], 153600, 48000)
        assert len(frames) == 16 and waveform.shape == (153600,) and waveform.dtype == np.float32
        missed = [i for i, t in enumerate(times) if white(frames[i]) not in (lit(t), lit(t - slack[0]), lit(t + slack[0]))]
        wrong += [(round(cut, 3), "flash", missed)] if missed else []
        since = cut % EVENT
        if 0.25 < since and cut + EVENT - since < seconds - 0.2:  # else the cut falls into a tone
            beep = np.flatnonzero(abs(waveform) > loud)
            late = beep[0] / 48000 - (EVENT - since) if len(beep) else np.inf
            if abs(late) > slack[1]:
                wrong.append((round(cut, 3), "beep", round(float(late), 3)))
    assert not wrong


CUTS = np.random.default_rng(0).uniform(0.1, 8.7, 7).tolist() + [0.0, 2.0, 3.9]
VARIABLE = np.cumsum([0, *np.random.default_rng(1).integers(15, 70, 270)]).tolist()  # ms: 15 to 70 between frames, 11 s in all

FORMATS = [
    ("a.mp4", "libx264", "aac", dict(fps=Fraction(24000, 1001))),
    ("b.mp4", "libx265", "eac3", dict(rate=48000, layout="5.1", only="FC", fps=30)),
    ("c.mkv", "libx265", "ac3", dict(rate=48000, layout="5.1", pix_fmt="yuv420p10le", options={"x265-params": "bframes=3"})),
    ("d.mkv", "libsvtav1", "libopus", dict(rate=48000, layout="7.1", fps=30)),
    ("e.mp4", "libsvtav1", "aac", dict(rate=22050, layout="mono")),
    ("f.webm", "libvpx-vp9", "libopus", dict(rate=48000, layout="5.1", only="FC")),
    ("g.webm", "libvpx-vp9", "vorbis", dict(fps=60)),
    ("h.mov", "mpeg4", "pcm_s16le", dict(rate=22050, layout="mono", fps=60)),
    ("i.mov", "libx264", "aac", dict(rate=48000, layout="7.1", only="FC")),
    ("j.avi", "mpeg4", "libmp3lame", dict()),
    ("k.avi", "libx264", "ac3", dict(rate=48000, layout="5.1", only="FC", options={"bf": "0"})),
    ("l.ts", "libx264", "aac", dict(rate=48000, fps=30)),
    ("m.ts", "mpeg2video", "ac3", dict(layout="5.1", only="FC")),
    ("n.ts", "libx265", "eac3", dict(rate=48000, layout="mono", fps=Fraction(24000, 1001))),
    ("o.mpg", "mpeg2video", "mp2", dict(rate=48000)),
    ("p.mpg", "mpeg2video", "ac3", dict(rate=48000, fps=Fraction(30000, 1001))),
    ("q.mkv", "libx264", "flac", dict(layout="7.1", only="FC", times=VARIABLE)),
    ("r.mp4", "libx264", "libmp3lame", dict(times=VARIABLE)),
    ("s.mkv", "libx264", "pcm_s16le", dict(layout="5.1", only="FC", rate=48000, options={"bf": "3"})),
    ("t.ogv", "libvpx", "vorbis", dict()),
    ("u.ogv", "libtheora", "vorbis", dict()),
    ("v.wmv", "wmv2", "wmav2", dict()),
    ("w.flv", "libx264", "libmp3lame", dict()),
]  # fmt: skip


@pytest.mark.parametrize("name, video, audio, how", FORMATS, ids=[" ".join(row[:3]) for row in FORMATS])
def test_every_kind_of_file_is_cut_in_step(tmp_path, name, video, audio, how):
    """Containers, codecs, layouts, rates, frame rates: what users have. A film's beep may sit in its centre channel alone."""
    if missing := [codec for codec in (video, audio) if not is_encoder(codec)]:
        pytest.skip(f"FFmpeg has no encoder of {missing[0]} here")
    path = write_film(tmp_path / name, seconds=11, video=video, audio=audio, **how)
    zero, lit = shown_at(path, how.get("fps", 25), times=how.get("times"))
    # AVI has no times of presentation: FFmpeg guesses them, a frame late; a program stream has one for a group of frames.
    slack = {".avi": (0.0, 0.06), ".mpg": (0.02, 0.04)}.get(path.suffix, (0.0, 0.02))
    assert_in_step(path, CUTS, zero, lit, 11, loud=0.1, slack=slack)


def is_encoder(name):
    try:
        return bool(av.Codec(name, "w"))
    except ValueError:
        return False


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1", "7.1"])
def test_a_film_is_as_loud_in_mono_whatever_its_channels(tmp_path, layout):
    """FFmpeg's own mix of floats adds up channels, so that the loudness would tell a stereo film from a mono one."""
    path = write_film(tmp_path / "film.mkv", 4, video="mpeg4", audio="pcm_s16le", rate=48000, layout=layout)
    sound = Reader(path).read((), 2.0, 9600, 48000)[1]
    assert abs(sound).max() == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "c.ts", "e.webm"])
@pytest.mark.parametrize("how", [
    dict(start=7.2), dict(lead=(0.0, 0.5)), dict(lead=(0.5, 0.0)), dict(start=100, lead=(0, 0.76)),
], ids=str)  # fmt: skip
def test_streams_that_begin_late_stay_in_step(tmp_path, name, how):
    """Both streams, or one alone: a mp4 says so by its edit lists, the others by their first timestamps."""
    codecs = ("libvpx-vp9", "libopus", 48000) if name == "e.webm" else ("libx264", "aac", 44100)
    path = write_film(tmp_path / name, 11, video=codecs[0], audio=codecs[1], rate=codecs[2], **how)
    zero, lit = shown_at(path, lead=how.get("lead", (0, 0))[0])
    assert_in_step(path, [0.8, 1.3, 2.7, 3.9, 5.61, 7.0], zero, lit, 11)
    titles = Titles(path.parent, TINY)
    begin = max(how.get("lead", (0, 0)))
    assert titles.counts == [int((11 - begin) / 1.6)] and titles.parts[0][0][1] == pytest.approx(zero + begin, abs=0.05)


def test_a_clock_that_wraps_stays_in_step(tmp_path):
    """A transport stream counts to 2**33 / 90 kHz = 26.5 h and starts again at 0, which recordings of television do."""
    path = write_film(tmp_path / "film.ts", 20, start=95430)
    zero, lit = shown_at(path)
    assert_in_step(path, [0.5, 5, 9.5, 11.1, 12.3, 13.5, 16], zero, lit)
    assert Titles(tmp_path, TINY).counts == [12]


@pytest.fixture(scope="session")
def piece(tmp_path_factory):
    """16 s whose streams both last a whole number of packets, to be laid end to end."""
    return write_film(tmp_path_factory.mktemp("piece") / "piece.mp4", 16, fps=5, rate=8000, gop=20)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts"])
def test_two_hours_stay_in_step(tmp_path, piece, name):
    """Timestamps that are rounded add up; an index may be coarse, or absent, as in a transport stream."""
    repeat(piece, tmp_path / name, 450)
    reader = Reader(tmp_path / name)
    start, end = reader.span(reader.video)
    assert end - start == pytest.approx(7200, abs=0.5)
    cuts = [0.5, 3601.3, 7111.7, 7180.9, 7190.6, 7195.5]
    assert_in_step(None, cuts, start, lambda t: (t - start + data.CLOCK) % EVENT < 0.2, 7199, reader=reader)
    assert Titles(tmp_path, TINY).counts == [4500]


def repeat(source, path, times, period=16):
    with av.open(str(source)) as file, av.open(str(path), "w") as out:
        streams = [out.add_stream_from_template(s) for s in file.streams]
        packets = [(p, p.stream.index, p.pts * p.time_base, p.dts * p.time_base) for p in file.demux() if p.size and p.pts >= 0]
        for n in range(times):
            for packet, index, pts, dts in packets:
                clock = packet.time_base
                packet.stream = streams[index]
                packet.pts, packet.dts = (round((time + n * period) / clock) for time in (pts, dts))
                out.mux(packet)


@pytest.mark.parametrize("first, second", [
    ({}, dict(layout="5.1")), (dict(layout="5.1"), dict(layout="mono", rate=44100)),
    ({}, dict(size=(128, 48))), (dict(size=(80, 60)), dict(size=(48, 128))),
], ids=str)  # fmt: skip
def test_a_recording_whose_format_changes_midway(tmp_path, first, second):
    """As television does at an advertisement: from stereo to 5.1, or from 16:9 to 4:3."""
    parts = [tmp_path / "1.part.ts", tmp_path / "2.part.ts"]
    for part, how, start in zip(parts, (first, second), (2, 8)):
        write_film(part, 6, audio="ac3", start=start, **{"rate": 48000, **how})
    (tmp_path / "film.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    for part in parts:
        part.unlink()
    titles = Titles(tmp_path, TINY)
    assert titles.counts == [7]
    for m in range(titles.counts[0]):
        video, waveform, _, _ = titles[0, m, (m,)]
        start = titles.parts[0][0][1] + m * TINY.seconds
        assert video.shape == (3, 8, 32, 32) and waveform.shape == (TINY.samples,)
        if m != 3:                                       # the seam lies in it, and frames of the old format may be lost there
            lit = [(start + i / 5 + 0.02) % EVENT < 0.2 for i in range(8)]
            assert (video.float().mean((0, 2, 3)) > 140).tolist() == lit, m
            beeps = waveform.abs().reshape(8, -1)[:, 500:-1200].amax(1) > 0.2
            assert beeps.any().item() == any(lit), m


@pytest.mark.parametrize("degrees, matrix", [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))])
def test_a_film_from_a_telephone_is_shown_upright(tmp_path, degrees, matrix):
    """A telephone records as its sensor lies and says in the file by how much to turn it, clockwise."""
    picture = np.full((48, 64, 3), 40, np.uint8)
    picture[:24, :24] = 255                              # as stored: the top left corner is bright
    write_film(tmp_path / "film.mp4", 1, audio=None, image=picture)
    a, b, c, d = (x << 16 for x in matrix)
    overwrite(tmp_path / "film.mp4", b"tkhd", 44, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))
    reader = Reader(tmp_path / "film.mp4")
    image = reader.resize(reader.read([0.1])[0][0], 48)
    assert image.shape == ((48, 64, 3) if degrees == 180 else (64, 48, 3))
    corners = {0: image[4, 4], 90: image[4, -4], 180: image[-4, -4], 270: image[-4, 4]}
    assert {angle for angle, pixel in corners.items() if pixel.mean() > 140} == {degrees}


def overwrite(path, tag, skip, new):
    """Replaces bytes `skip` after the (only) tag."""
    raw = bytearray(path.read_bytes())
    assert raw.count(tag) >= 1
    at = raw.index(tag) + skip
    raw[at : at + len(new)] = new
    path.write_bytes(raw)


def last_moments(path):
    """Where the picture and the sound really end: what a player that reads to the end finds."""
    ends = {}
    with av.open(str(path)) as file, contextlib.suppress(av.error.FFmpegError):
        for packet in file.demux():
            if packet.size and packet.dts is not None:
                end = float((packet.dts + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream.index] = max(end, ends.get(packet.stream.index, 0))
    return min(ends.values())


@pytest.mark.parametrize("name, mux", [
    ("film.mkv", {}), ("film.mp4", {"movflags": "faststart"}), ("film.ts", {}), ("film.avi", {}), ("film.mpg", {}),
])  # fmt: skip
def test_a_film_cut_off_is_counted_by_what_is_there(tmp_path, name, mux):
    """A download that broke off: its header still promises the whole film."""
    video, audio = {"avi": ("mpeg4", "libmp3lame"), "mpg": ("mpeg2video", "mp2")}.get(name[5:], ("libx264", "aac"))
    path = write_film(tmp_path / name, 20, video=video, audio=audio, rate=48000, mux=mux, options={"bf": "0"})
    path.write_bytes(path.read_bytes()[: int(0.4 * path.stat().st_size)])
    reader = Reader(path)
    begin, _ = reader.span(reader.video, reader.audio)
    there = (last_moments(path) - begin) / TINY.seconds
    titles = Titles(tmp_path, TINY)
    assert int(there - 0.2) <= titles.counts[0] <= int(there + 0.1)


def test_a_film_that_lost_its_index_is_skipped_with_its_reason(tmp_path):
    """An mp4 whose recording was not ended; without the index at its end nothing in it can be found."""
    write_film(tmp_path / "good.mp4", 4)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a film\n" * 100)
    (tmp_path / "cut.mp4").write_bytes((tmp_path / "good.mp4").read_bytes()[:10000])
    write_film(tmp_path / "mute.mp4", 4, audio=None)
    write_film(tmp_path / "radio.mp4", 4, video=None)
    write_film(tmp_path / "silent.mp4", 4, tone=0)
    titles = Titles(tmp_path, TINY)
    reasons = {Path(path).name: why for path, why in titles.skipped}
    assert titles.names == ["good.mp4", "silent.mp4"] and len(reasons) == 5
    assert reasons["mute.mp4"] == "no sound" and "no video" in reasons["radio.mp4"]
    assert all("not a media file" in reasons[name] for name in ("cut.mp4", "empty.mp4", "text.mp4"))


def test_cover_art_is_no_video(tmp_path):
    cover = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))
    write_film(tmp_path / "radio.mka", 4, video=None)
    with av.open(str(tmp_path / "radio.mka")) as radio, av.open(str(tmp_path / "song.mp4"), "w") as out:
        art = out.add_stream("mjpeg", rate=1)
        art.width, art.height, art.pix_fmt, art.disposition = 64, 48, "yuvj420p", av.stream.Disposition.attached_pic
        sound = out.add_stream_from_template(radio.streams.audio[0])
        for packet in [*art.encode(cover), *art.encode()]:
            out.mux(packet)
        for packet in radio.demux():
            packet.stream = sound
            out.mux(packet)
    (tmp_path / "radio.mka").unlink()
    write_film(tmp_path / "good.mp4", 4)
    titles = Titles(tmp_path, TINY)
    assert titles.names == ["good.mp4"] and titles.skipped == [(str(tmp_path / "song.mp4"), "no video")]


DAMAGED = [
    ("film.mp4", "libx264", "aac"), ("film.mkv", "libx264", "ac3"), ("film.ts", "libx264", "aac"),
    ("film.avi", "mpeg4", "libmp3lame"), ("film.webm", "libvpx-vp9", "libopus"),
]  # fmt: skip


@pytest.mark.parametrize("name, video, audio", DAMAGED)
def test_a_scratch_costs_the_snippets_it_lies_in_and_no_other(tmp_path, capfd, name, video, audio):
    """Random bytes in the middle: what lies there may be refused, in one line, or come out damaged; the rest is as it was."""
    path = write_film(tmp_path / name, 20, video=video, audio=audio, rate=48000, gop=10, options={"bf": "0"})
    zero, lit = shown_at(path)
    damage(path, (0.4, 0.5))
    titles, right = Titles(tmp_path, TINY), []
    assert titles.counts == [12]
    for m in range(titles.counts[0]):
        try:
            crops, waveform = titles.read(0, m)
            assert len(crops) == TINY.frames and waveform.shape == (TINY.samples,) and np.isfinite(waveform).all()
            start = titles.parts[0][0][1] + m * TINY.seconds
            if [crop.mean() > 140 for crop in crops] == [lit(start + i / TINY.fps) for i in range(TINY.frames)]:
                right.append(m)
        except BadInput as error:
            assert str(error).startswith(f"{path}: damaged at ") and "\n" not in str(error)
    assert {0, 1, 2, 8, 9, 10, 11} <= set(right)
    assert capfd.readouterr().err == ""                  # no decoder has its say on the screen


def test_a_header_that_lies_is_not_believed(tmp_path):
    """Ten times the duration in a header: what is not there is not a snippet."""
    write_film(tmp_path / "film.mkv", 8)
    raw = (tmp_path / "film.mkv").read_bytes()
    at = raw.index(b"\x44\x89\x88") + 3
    overwrite(tmp_path / "film.mkv", b"\x44\x89\x88", 3, struct.pack(">d", 10 * struct.unpack(">d", raw[at : at + 8])[0]))
    write_film(tmp_path / "film.mp4", 8)
    raw = bytearray((tmp_path / "film.mp4").read_bytes())
    for tag, skip in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24), (b"elst", 12)):
        at = raw.find(tag)
        while at >= 0:
            raw[at + skip : at + skip + 4] = struct.pack(">I", 10 * struct.unpack(">I", raw[at + skip : at + skip + 4])[0])
            at = raw.find(tag, at + 1)
    (tmp_path / "film.mp4").write_bytes(raw)
    titles = Titles(tmp_path, TINY)
    assert titles.counts in ([5, 5], [4, 4], [4, 5], [5, 4])


@pytest.mark.parametrize("name, mux", [
    ("film.mkv", {"live": "1"}), ("film.webm", {"live": "1"}), ("film.ts", {}), ("film.mpg", {}),
])  # fmt: skip
def test_a_film_without_a_duration_in_its_header_is_counted(tmp_path, name, mux):
    """As programs write it that stream, or record to a pipe; a transport stream has no header at all."""
    slack = (0.02, 0.04) if name == "film.mpg" else (0.0, 0.02)
    how = dict(webm=("libvpx-vp9", "libopus"), mpg=("mpeg2video", "mp2")).get(name[5:], ("libx264", "aac"))
    path = write_film(tmp_path / name, 20, video=how[0], audio=how[1], rate=48000, mux=mux)
    zero, lit = shown_at(path)
    assert Titles(tmp_path, TINY).counts == [12]
    assert_in_step(path, [0.5, 5, 9.5, 14.3, 16.5], zero, lit, slack=slack)


def test_names_that_are_not_utf_8_and_names_that_look_like_addresses(tmp_path, monkeypatch):
    """Old discs have the first; FFmpeg takes what precedes a colon for a protocol, unless it is told that this is a file."""
    write_film(tmp_path / "x.mp4", 4)
    names = [b"caf\xe9.mp4", b"Alien: Covenant.mp4", b"concat:x.mp4", b"100%d %s.mp4", b"-y.mp4", b"file:z.mp4", b"a\nb.mp4"]
    names += ["千と千尋.mp4".encode()]
    for name in names:
        shutil.copy(tmp_path / "x.mp4", os.fsencode(tmp_path) + b"/" + name)
    assert Titles(tmp_path, TINY).counts == [2] * 9
    monkeypatch.chdir(tmp_path)
    titles = Titles(".", TINY)
    assert titles.counts == [2] * 9 and not titles.skipped
    assert all(titles[n, 1, None][3] == "" for n in range(9))
    (tmp_path / "x.mp4").unlink()
    assert Titles(".", TINY).counts == [2] * 8


def test_links(tmp_path):
    """A link to a film or a show elsewhere is that film; one that leads in a circle is nothing, and no endless search."""
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "films"
    (elsewhere / "season").mkdir(parents=True)
    root.mkdir()
    write_film(elsewhere / "season" / "e1.mp4", 4)
    (root / "film.mp4").symlink_to(elsewhere / "season" / "e1.mp4")
    (root / "linked").symlink_to(elsewhere)
    (root / "show").mkdir()
    (root / "show" / "s1").symlink_to(elsewhere / "season")
    (root / "show" / "again").symlink_to(root / "show")
    (root / "show" / "self.mp4").symlink_to("self.mp4")
    (root / "gone.mp4").symlink_to("nothing.mp4")
    titles = Titles(root, TINY)
    assert titles.names == ["film.mp4", "linked", "show"] and titles.counts == [2, 2, 2]


def test_a_file_that_cannot_be_read_is_skipped(tmp_path):
    """A broken disc answers so, as does a process's memory at address 0; and root, for one, may read what is locked."""
    write_film(tmp_path / "good.mp4", 4)
    write_film(tmp_path / "locked.mp4", 4).chmod(0)
    (tmp_path / "broken.mp4").symlink_to("/proc/self/mem")
    os.mkfifo(tmp_path / "pipe.mp4")
    titles, readable = Titles(tmp_path, TINY), os.access(tmp_path / "locked.mp4", os.R_OK)
    reasons = {Path(path).name: why for path, why in titles.skipped}
    assert titles.names == ["good.mp4"] + ["locked.mp4"] * readable and reasons["pipe.mp4"] == "not a file"
    assert reasons["broken.mp4"] and (readable or "denied" in reasons["locked.mp4"])


def merge(path, video, *tracks):
    """A file of the picture of one film and the sounds of others: (film, language or None, is it the default)."""
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(av.open(str(path), "w"))
        sources = [(video, "video", None, True), *((film, "audio", language, default) for film, language, default in tracks)]
        copies = []
        for film, kind, language, default in sources:
            stream = next(s for s in stack.enter_context(av.open(str(film))).streams if s.type == kind)
            copy = out.add_stream_from_template(stream)
            copy.disposition = av.stream.Disposition.default if default else av.stream.Disposition(0)
            if language:
                copy.metadata["language"] = language
            copies.append((stream, copy))
        packets = []
        for stream, copy in copies:
            for packet in stream.container.demux(stream):
                packet.stream = copy
                packets += [packet] if packet.size else []
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            out.mux(packet)
    return path


def hertz(reader):
    """The pitch of the beep at 2.0 s."""
    sound = reader.read((), 2.05, 4800, 48000)[1]
    return round(np.abs(np.fft.rfft(sound)).argmax() * 10, -2) if abs(sound).max() > 0.1 else 0


@pytest.mark.parametrize("name", ["film.mkv", "film.mp4", "film.ts"])
def test_the_track_of_the_language_else_the_default_one(tmp_path, name):
    """Dubbed films: `language` if there is such a track, else what the file says, else the first."""
    folder = tmp_path / "parts"
    folder.mkdir()
    a, b, c = (write_film(folder / f"{hz}.mp4", 6, tone=hz) for hz in (1000, 1500, 2000))
    path = merge(tmp_path / name, a, (a, "eng", name == "film.ts"), (b, "deu", False), (c, "fra", name != "film.ts"))
    assert hertz(Reader(path)) == (1000 if name == "film.ts" else 2000)   # a transport stream has no default
    shutil.rmtree(folder)
    assert hertz(Reader(path, language="deu")) == 1500 and hertz(Reader(path, language="eng")) == 1000
    assert hertz(Reader(path, language="jpn")) == (1000 if name == "film.ts" else 2000)
    titles = Titles(tmp_path, TINY, language="deu")
    titles.read(0, 1)
    assert hertz(titles.reader) == 1500


def test_of_two_tracks_the_default_one(tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    a, b = (write_film(folder / f"{hz}.mp4", 6, tone=hz) for hz in (1000, 1500))
    assert hertz(Reader(merge(tmp_path / "second.mkv", a, (a, None, False), (b, None, True)))) == 1500
    assert hertz(Reader(merge(tmp_path / "tagged.mkv", a, (a, None, False), (b, "eng", True)))) == 1500
    assert hertz(Reader(merge(tmp_path / "first.mkv", a, (a, None, True), (b, None, False)))) == 1000
    assert hertz(Reader(merge(tmp_path / "none.mkv", a, (a, None, False), (b, None, False)))) == 1000


REFERENCES = {
    "playlist.mp4": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXTINF:4,\n{there}\n#EXT-X-ENDLIST\n",
    "playlist.ts": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:4,\n{there}\n#EXT-X-ENDLIST\n",
    "script.mkv": "ffconcat version 1.0\nfile '{there}'\n",
    "session.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{there}\n"
                   "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "dash.mp4": '<?xml version="1.0"?>\n<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
                '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{there}</BaseURL>'
                '</Representation></AdaptationSet></Period></MPD>',
    "asx.wmv": "[Reference]\nRef1={there}\n",
    "rtsp.mp4": "RTSPtext\nrtsp://127.0.0.1/x\n",
    "image.mkv": "<svg xmlns='http://www.w3.org/2000/svg' width='64' height='48'><image href='{there}'/></svg>",
}  # fmt: skip


@pytest.fixture(scope="session")
def other_film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("other") / "other.ts", 4)


@pytest.mark.parametrize("where", ["file", "path", "http"])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_text_that_refers_to_another_file_is_refused(tmp_path, other_film, name, where):
    """A file in a folder of films must not make its reader fetch another: of this machine's, or of the network's."""
    other = shutil.copy(other_film, tmp_path / "other.ts")
    with served(tmp_path) as (url, asked):
        there = {"file": "other.ts", "path": str(other), "http": f"{url}/other.ts"}[where]
        (tmp_path / name).write_text(REFERENCES[name].format(there=there))
        with pytest.raises(BadInput, match="not a media file"):
            Reader(tmp_path / name)
        titles = Titles(tmp_path, TINY)
        assert titles.names == ["other.ts"] and len(titles.skipped) == 1 and not asked


# ---------------------------------------------------------------------------------------------------------------------
# Front-ends
# ---------------------------------------------------------------------------------------------------------------------


def test_video_front_end_normalises():
    video = torch.randint(0, 256, (2, 3, 4, 8, 8), dtype=torch.uint8)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1, 1) for x in (VideoFrontEnd.MEAN, VideoFrontEnd.STD))
    assert torch.allclose(VideoFrontEnd()(video, key=(0,)), (video / 255 - mean) / std, atol=1e-6)


def test_jitter_is_brightness_contrast_saturation_one_draw_a_clip():
    front, adjust = VideoFrontEnd(jitter=0.5), torchvision.transforms.functional
    video = torch.randint(0, 256, (4, 3, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    video[:, :, 1] //= 3                                 # a dark second frame: the mean is the clip's
    ours = front(video, key=(0,)) * front.std + front.mean
    for clip, got, factors in zip(video, ours, data.rng_of(0, 3).uniform(0.5, 1.5, (3, 4)).T.tolist()):
        image = clip.flatten(1, 2) / 255                 # frames below one another: one picture, one mean
        for change, factor in zip((adjust.adjust_brightness, adjust.adjust_contrast, adjust.adjust_saturation), factors):
            image = change(image, factor)
        assert torch.allclose(got.flatten(1, 2), image, atol=1e-3)
    assert not torch.equal(front(video, key=(0,)), front(video, key=(1,)))
    assert torch.equal(front(video), VideoFrontEnd()(video))                                  # without a key, none


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
        assert 0.35 < width[width > 0].float().mean() / (share * size) < 0.7 and band.any(0).float().mean() > 0.9  # U(0, drop), anywhere
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
        assert all(path.parent.name == names[label] for path, label in train + test)
    for fold in range(1, 6):
        train, names = data.esc50(toy / "sound", fold, True)
        test, _ = data.esc50(toy / "sound", fold, False)
        assert len(names) == 10 and len(train) + len(test) == 60 and not set(train) & set(test)
        assert all(path.stem.endswith(f"-A-{label}") for path, label in train + test)


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    def digest(name, seed):
        data.make_toy(tmp_path / name, seed=seed, titles=2, snippets=6, clips=(1, 1))
        return {p.relative_to(tmp_path / name): p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()}

    first, second, other = digest("a", 0), digest("b", 0), digest("c", 1)
    assert first == second
    films = [path for path in first if path.parts[0] == "films"]
    assert len(films) == 2 and all(first[path] != other[path] for path in films)


def test_artefacts_are_what_betrays_a_title(monkeypatch):
    plan = data.plan_film(np.random.default_rng(0), 16)
    shade = lambda strength: np.std([data.render_film(np.random.default_rng(seed), plan, strength)[0].mean((0, 1, 2))
                                     for seed in range(6)], axis=0).mean()  # fmt: skip
    assert shade(0.7) > 2 * shade(0.0)
    made = []
    monkeypatch.setattr(data, "make_toy", lambda *given: made.append(given))
    data.main(data.parse_args("toy W --seed 3 --artefacts 0.7 --titles 2 --snippets 5".split()))
    assert made == [("W", 3, 0.7, 2, 5)]


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


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """A ramp from left to right, one from top to bottom, and flashes."""
    root, ramp = tmp_path_factory.mktemp("labelled"), np.tile(np.arange(0, 192, 2, dtype=np.uint8)[:, None], (48, 1, 3))
    wide = write_film(root / "w.mp4", 1, size=(96, 48), audio=None, image=ramp)
    tall = write_film(root / "t.mp4", 1, size=(48, 96), audio=None, image=ramp.transpose(1, 0, 2).copy())
    return [(wide, 0), (tall, 1), (write_film(root / "v.mp4", 9, size=(96, 48), audio=None), 5)]


def test_test_views_are_10_clips_by_3_crops(labelled):
    videos = LabeledVideos(labelled, Format(frames=8, fps=10, short_side=48, crop=40))
    for i in (0, 1):                                     # left, centre, right; or top, centre, bottom
        assert videos[i, None][0][:3].float().mean((1, 2, 3, 4)).tolist() == pytest.approx([39, 95, 151], abs=3)
    views, label = videos[2, None]
    assert views.shape == (30, 3, 8, 40, 40) and label == 5
    times = np.linspace(0, 9 - 0.8, 10)[:, None] + np.arange(8) / 10
    lit = (np.floor(25 * times + 0.02) / 25 + 1e-6) % EVENT < 0.2        # by the frame on screen
    assert ((views.float().mean((1, 3, 4)) > 140).numpy().reshape(10, 3, 8) == lit[:, None]).all()


def test_training_clips_vary_in_time_place_and_scale_with_their_key(labelled):
    videos = LabeledVideos(labelled, Format(frames=8, fps=10, short_side=48, crop=40), scale=(44, 60))
    clips = [videos[2, (0, 0, 0, place)][0] for place in range(12)]
    assert all(clip.shape == (3, 8, 40, 40) for clip in clips) and torch.equal(clips[3], videos[2, (0, 0, 0, 3)][0])
    assert len({tuple((clip.float().mean((0, 2, 3)) > 140).tolist()) for clip in clips}) > 3
    rows = [videos[0, (0, 0, 0, place)][0].float().mean((0, 1, 2)) for place in range(12)]
    sides = [96 * 39 / (row[-1] - row[0]).item() for row in rows]        # the steeper the ramp, the smaller the picture
    assert 42 < min(sides) and max(sides) < 62 and max(sides) - min(sides) > 8
    assert np.std([row[0].item() for row in rows]) > 10                  # cut at different places


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


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Half a second each: only those of `run`, and of a script, are looked at."""
    monkeypatch.setattr(pretrain, "draw", lambda path, *args, **how: Path(path).write_bytes(b"-"))


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
    measured = [row["step"] for row in map(json.loads, (run / "log.jsonl").read_text().splitlines()) if "gap" in row]
    assert measured == [0, 4, 8, 9]                      # on held-out titles: before, every half of 9 steps, and at the end
    assert log_of(run, "counts")[0] == {"match": 8, "same": 24, "other": 32}
    picture = torchvision.io.decode_image(str(run / "curves.png"))
    assert picture.shape[1] > 200 and picture.float().std() > 10
    assert [path.name for path in run.glob(".*")] == [".lock"]  # no temporary file stays behind
    torch.manual_seed(0)
    fresh = models.AudioVisualModel(8)
    for name in pretrain.NETWORKS:                       # every weight has moved
        before = getattr(fresh, name).named_parameters()
        assert not any(torch.equal(p, checkpoint[name][key]) for key, p in before if p.dim() > 1), name
    assert "exp_avg_sq" in checkpoint["optimizer"]["state"][0]           # Adam's (7.2)


@pytest.fixture
def items(monkeypatch):
    """What is read to train on: (title, snippet, key)."""
    read, items = Titles.__getitem__, []
    monkeypatch.setattr(Titles, "__getitem__", lambda self, item: (item[2] and items.append(item), read(self, item))[1])
    return items


def test_each_batch_of_the_loop_is_k_snippets_a_title_and_each_epoch_differs(toy, tmp_path, items):
    args = arguments(toy, tmp_path / "run", "--epochs", "2")
    pretrain.main(args)
    rates = [pretrain.learning_rate(args, step, 9) for step in range(18)]
    assert log_of(args.out, "lr") == rates and load(args.out)["optimizer"]["param_groups"][0]["lr"] == rates[-1]
    assert len(items) == 2 * 9 * 16 and len({key for _, _, key in items}) == len(items)  # no key twice
    for start in range(0, len(items), 16):
        groups = by_title([item[:2] for item in items[start : start + 16]])
        assert [len(set(g)) for g in groups.values()] == [4] * 4 and all(max(g) - min(g) < 8 for g in groups.values())
    epochs = [[item[:2] for item in items if item[2][1] == epoch] for epoch in (0, 1)]
    assert len(epochs[0]) == len(epochs[1]) == 144 and epochs[0] != epochs[1]


def test_the_loop_draws_from_the_scenes_that_the_collection_has(toy, tmp_path, items):
    args = arguments(toy, tmp_path / "run", "--w", "scene")
    pretrain.main(args)
    train, _ = pretrain.split_titles(Titles(toy / "films", TINY, scenes=True), args)
    sampler = HierarchicalSampler(train.counts, 16, 4, scenes=train.scenes)
    assert load(tmp_path / "run")["args"]["w"] == "scene" and [sum(scenes) for scenes in train.scenes] == train.counts
    assert [item[:2] for item in items] == sum((sampler.batch(step) for step in range(9)), [])
    assert "--w: x: must be scene, or a number" in refused("pretrain.py", "--toy", "--w", "x") and "--w 3: must be scene, or" in refused("pretrain.py", "--w", "3")


def test_held_out_titles_are_whole_and_never_trained_on(toy):
    titles, drawn = Titles(toy / "films", TINY), set()
    for seed in range(5):
        train, held_out = pretrain.split_titles(titles, arguments(toy, "unused", "--seed", seed))
        assert len(held_out) == 2 and sorted(train.names + held_out.names) == titles.names
        drawn.add(tuple(held_out.names))
    assert len(drawn) > 1
    assert len(pretrain.split_titles(titles.subset([0]), arguments(toy, "unused"))[0]) == 1


def test_held_out_titles_are_measured_evenly_central_clean_and_in_testing_mode(run, toy):
    checkpoint, (_, held_out) = load(run), pretrain.split_titles(Titles(toy / "films", TINY), arguments(toy, run))
    model, state = models.AudioVisualModel(8).eval(), checkpoint["front_end"]
    for name in pretrain.NETWORKS:
        getattr(model, name).load_state_dict(checkpoint[name])
    items = [held_out[n, m, None] for n in (0, 1) for m in (0, 8, 15, 23)]
    video, audio = (torch.stack([item[i] for item in items]) for i in (0, 1))
    front = AudioFrontEnd(TINY, mean=state["log_mel_mean"], std=state["log_mel_std"])
    with torch.no_grad():
        expected = loss.discrepancy(*model(VideoFrontEnd()(video), front(audio)), torch.tensor([0] * 4 + [1] * 4))
    assert log_of(run, "edges")[-1] == pytest.approx(expected["edges"], rel=1e-4, abs=1e-3)


def test_the_toy_world_is_made_where_it_is_not_there(toy, tmp_path, monkeypatch):
    def stop(*inputs):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain, "make_toy", lambda root: shutil.copytree(toy, root))
    monkeypatch.setattr(pretrain, "nce_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        pretrain.main(pretrain.parse_args("--toy --k 4 --seed 1 --width 8 --batch-size 16 --workers 0".split()))
    assert Path("runs/toy-k4-seed1/checkpoint.pt").exists()


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


@pytest.mark.parametrize("change", [dict(titles="another.mp4"), dict(counts=99)], ids=["titles", "counts"])
def test_a_run_does_not_go_on_with_other_titles(run, toy, tmp_path, change):
    args, checkpoint = arguments(toy, tmp_path), load(run)
    train, _ = pretrain.split_titles(Titles(args.data, TINY), args)
    assert checkpoint["progress"]["titles"] == train.names and checkpoint["progress"]["counts"] == train.counts
    for name, other in change.items():
        checkpoint["progress"][name][0] = other
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with pytest.raises(BadInput, match=r"no longer the titles .* \(see (another|film000)"):
        pretrain.main(args)


def test_a_finished_run_is_left_as_it_is(run, toy):
    before = (run / "checkpoint.pt").read_bytes(), (run / "log.jsonl").read_text()
    pretrain.main(arguments(toy, run))
    assert before == ((run / "checkpoint.pt").read_bytes(), (run / "log.jsonl").read_text())


@pytest.mark.parametrize("spoil", [lambda z: float("nan"), lambda z: (0 * z).sqrt().sum()], ids=["loss", "gradient"])
def test_a_loss_that_is_not_finite_stops_before_the_weights(toy, tmp_path, monkeypatch, spoil):
    calls = []
    monkeypatch.setattr(pretrain, "nce_loss", lambda z_v, z_a, tau: loss.nce_loss(z_v, z_a, tau)
                        + (spoil(z_v) if calls.append(1) or len(calls) == 3 else 0))
    with pytest.raises(SystemExit, match="is sound"):
        pretrain.main(arguments(toy, tmp_path / "run", "--save-every", 1))
    kept = load(tmp_path / "run")
    assert kept["progress"]["step"] == 2 and all(p.isfinite().all() for p in kept["video"].values())


def torchrun(script, *argv):
    """Two gloo processes on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(HERE / script)]
    done = subprocess.run([*command, *map(str, argv)], capture_output=True, text=True, timeout=200,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
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
        video, audio, *_ = (torch.stack(x) if torch.is_tensor(x[0]) else x for x in zip(*samples))
        key = (args.seed, 0, 0, rank)
        embeddings.append(model(VideoFrontEnd(args.jitter)(video, key), front(audio, key)))
    z_v, z_a = zip(*embeddings)
    total = (loss.nce_loss(torch.cat(z_v), torch.cat(z_a), args.tau) if gather else
             sum(loss.nce_loss(v, a, args.tau) for v, a in embeddings) / 2)  # fmt: skip
    total.backward()
    torch.set_num_threads(threads)
    return total.item(), torch.nn.utils.clip_grad_norm_(model.parameters(), torch.inf).item()


@pytest.mark.parametrize("gather", [False, True])
def test_two_processes_are_one_that_takes_their_shares_in_turn(toy, tmp_path, gather):
    """The mean of the two losses and gradients; with --gather, the loss and the gradient of the whole batch."""
    argv = [*SMALL, "--tau", 0.3, "--jitter", 0.4, "--data", toy / "films", "--out", tmp_path / "two", "--epochs", 1, "--workers", 0]
    argv += ["--gather"] * gather
    torchrun("pretrain.py", *argv)
    args = pretrain.parse_args([*map(str, argv)])
    expected, norm = first_step(toy, args, gather)
    assert len(log_of(tmp_path / "two")) == 9
    assert log_of(tmp_path / "two", "counts")[0] == {"match": 8, "same": 24, "other": 32}
    assert log_of(tmp_path / "two")[0] == pytest.approx(expected, rel=1e-5)
    assert log_of(tmp_path / "two", "grad_norm")[0] == pytest.approx(norm, rel=1e-4)
    assert not any(key.startswith("module.") for name in pretrain.NETWORKS for key in load(tmp_path / "two")[name])


def test_what_pretraining_refuses(toy, run, tmp_path, monkeypatch):
    films = toy / "films"
    no = lambda *argv: refused("pretrain.py", *SMALL, "--data", films, "--out", tmp_path / "new", *argv)
    assert "--k 5: must be a divisor of a process's batch, 16" in no("--k", 5, "--w", 5)
    assert "--w 3: must be scene, or --k (4) or more" in no("--w", 3)
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
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "processes 1 and not 2" in no("--out", run, "--epochs", 1)
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert "--batch-size 16: must be a multiple of processes, 3" in no()
    monkeypatch.delenv("WORLD_SIZE")
    (broken / "checkpoint.pt").rename(broken / "last.pt")
    assert "holds a run of finetune.py" in no("--out", broken)
    (tmp_path / "file").write_text("mine")
    assert "File exists" in no("--out", tmp_path / "file") and (tmp_path / "file").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["broken", "empty", "file"]  # nothing was left behind


def test_a_folder_is_of_one_run_at_a_time(run, toy, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")
    hold = "import data, pathlib, sys; data.hold(pathlib.Path(sys.argv[1])); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold, run], cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        before = (run / "checkpoint.pt").read_bytes()
        with pytest.raises(BadInput, match="another run is at work in it"):
            pretrain.main(arguments(toy, run))
        assert (run / "checkpoint.pt").read_bytes() == before
        other.communicate(b"\n")


# ---------------------------------------------------------------------------------------------------------------------
# Collections: lists, the index, what fails while training; preparing and looking
# ---------------------------------------------------------------------------------------------------------------------


class RangeServer(http.server.BaseHTTPRequestHandler):
    """Serves the files of `root`, also a part of one, as a bucket does; `asked` are the paths that were asked for."""

    def do_GET(self):
        self.asked.append(self.path)
        content = (self.root / self.path.strip("/")).read_bytes()
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        with contextlib.suppress(ConnectionError):      # the reader has what it wanted
            self.wfile.write(content[first:])

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def served(root):
    """(address, paths asked for) of a server on loopback."""
    handler = type("Handler", (RangeServer,), dict(root=Path(root), asked=[]))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler.asked
        finally:
            server.shutdown()


def test_a_list_names_paths_and_urls_and_a_show_is_a_line(tmp_path):
    (tmp_path / "films").mkdir()
    for name, seconds in (("a.mp4", 7), ("b.mkv", 4), ("c.mp4", 10)):
        write_film(tmp_path / "films" / name, seconds=seconds)
    with served(tmp_path / "films") as (url, asked):
        (tmp_path / "LIST.txt").write_text(f"films/a.mp4\n\nfilms/b.mkv\t{url}/c.mp4\n{url}/none.mp4\nfilms/none.mp4\n")
        titles = Titles(tmp_path / "LIST.txt", Format())
        assert titles.names == ["films/a.mp4", f"films/b.mkv\t{url}/c.mp4"] and titles.counts == [2, 1 + 3]
        assert [Path(path).name for path, _ in titles.skipped] == ["none.mp4"] * 2 and "No such file" in titles.skipped[1][1]
        assert onset(titles[1, 3, None][1]) == pytest.approx(8.0 - 6.4, abs=0.02)
        remote, local = titles[1, 2, None], Titles(tmp_path / "films", Format())[2, 1, None]
        assert torch.equal(remote[0], local[0]) and torch.equal(remote[1], local[1]) and "/c.mp4" in asked


def test_the_index_probes_a_file_once_until_it_changes(tmp_path, monkeypatch):
    for name in ("a.mp4", "b.mp4"):
        write_film(tmp_path / name, seconds=4)
    (tmp_path / "text.mp4").write_text("not a film")
    probed, probe = [], data.probe
    monkeypatch.setattr(data, "probe", lambda path, language: (probed.append(Path(path).name), probe(path, language))[1])
    first = Titles(tmp_path, TINY)
    assert sorted(probed) == ["a.mp4", "b.mp4", "text.mp4"]
    again = Titles(tmp_path, TINY)
    assert probed[3:] == ["text.mp4"] and again.parts == first.parts      # what failed may be mended
    write_film(tmp_path / "b.mp4", seconds=8)
    assert Titles(tmp_path, TINY).counts == [2, 5] and sorted(probed[4:]) == ["b.mp4", "text.mp4"]


def damage(path, share=(0.3, 0.6)):
    """Random bytes over a part of a file."""
    content = bytearray(Path(path).read_bytes())
    low, high = (int(len(content) * at) for at in share)
    content[low:high] = np.random.default_rng(0).bytes(high - low)
    Path(path).write_bytes(content)


def test_a_snippet_that_fails_is_replaced_from_its_title_by_its_key(tmp_path):
    for name in ("a\n.mkv", "b.mkv"):
        write_film(tmp_path / name, seconds=40, audio="flac")
    titles = Titles(tmp_path, Format())
    damage(tmp_path / "a\n.mkv")
    items = [titles[0, m, (0, 0, 0, m)] for m in range(12)]
    failures = [failed.splitlines() for *_, failed in items]
    assert 2 <= sum(map(bool, failures)) <= 8 and all(n == 0 for _, _, n, _ in items)
    assert all("a .mkv: " in line and " at " in line for lines in failures for line in lines)  # a line each, whatever its name
    bad = next(m for m in range(12) if failures[m])
    again = Titles(tmp_path, Format())[0, bad, (0, 0, 0, bad)]
    assert torch.equal(again[0], items[bad][0]) and torch.equal(again[1], items[bad][1]) and again[3] == items[bad][3]
    (tmp_path / "a\n.mkv").unlink()                      # a whole title lost: any other stands in, and is called so
    titles.close()
    assert titles[0, 3, (0, 0, 0, 3)][2] == 1
    (tmp_path / "b.mkv").unlink()
    titles.close()
    with pytest.raises(BadInput, match="in a row cannot be read"):
        titles[0, 3, (0, 0, 0, 3)]


def test_a_run_counts_what_it_replaces_and_stops_when_it_is_too_much(toy, tmp_path):
    films = tmp_path / "films"
    shutil.copytree(toy / "films", films)
    for path in films.iterdir():
        damage(path, (0.5, 0.6))
    train = arguments(toy, tmp_path / "run", "--data", films, "--max-bad", 1)
    pretrain.main(train)
    bad = log_of(tmp_path / "run", "bad")
    lines = (tmp_path / "run" / "bad.txt").read_text().splitlines()
    assert bad == sorted(bad) and 5 < bad[-1] == load(tmp_path / "run")["progress"]["bad"] <= len(lines)  # a line for each try
    assert all(line.startswith("epoch 1 step ") and "film0" in line for line in lines)
    with pytest.raises(SystemExit, match=r"could not be read, more than --max-bad 0.01"):
        pretrain.main(arguments(toy, tmp_path / "strict", "--data", films))
    stopped = load(tmp_path / "strict")["progress"]
    assert stopped["bad"] > 1 and stopped["step"] < 9 and (tmp_path / "strict" / "bad.txt").exists()
    for path in films.iterdir():                         # mended
        shutil.copy(toy / "films" / path.name, path)
    pretrain.main(arguments(toy, tmp_path / "strict", "--data", films))
    assert load(tmp_path / "strict")["progress"]["bad"] == stopped["bad"] and len(log_of(tmp_path / "strict")) == 9


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """(a collection of three files in two titles, the same prepared, what was said)."""
    root = tmp_path_factory.mktemp("prepare")
    (root / "raw" / "show").mkdir(parents=True)
    write_film(root / "raw" / "film.mp4", seconds=40, size=(160, 120), start=1.0)
    write_film(root / "raw" / "show" / "e1.mkv", seconds=11, size=(160, 120), audio="libopus", rate=48000)
    write_film(root / "raw" / "show" / "e2.avi", seconds=15, size=(160, 120), video="mpeg4", audio="libmp3lame")
    write_film(root / "raw" / "show" / "e3.mp4", seconds=1)
    (root / "raw" / "text.mp4").write_text("not a film")
    code, said, err = run_script("data.py", "prepare", root / "raw", root / "ready", "--short-side", 60, "--workers", 2)
    assert not code, err
    return root / "raw", root / "ready", said


def test_prepared_titles_are_the_same_snippets(prepared):
    raw, ready, said = prepared
    fmt = Format(short_side=60, crop=60)
    before, after = Titles(raw, fmt), Titles(ready, fmt)
    assert after.names == ["film.mp4.mkv", "show"] and after.counts == before.counts == [12, 3 + 4]
    assert f"skipped {raw}/text.mp4: not a media file" in said and "e3.mp4: shorter than a snippet of 3.2 s" in said
    late, alike = [], []
    for n, m in [(n, m) for n, M in enumerate(before.counts) for m in range(M)]:
        a, b = before[n, m, None], after[n, m, None]
        assert (a[0].float() - b[0].float()).abs().mean() < 1, (n, m)
        late.append(abs(onset(a[1]) - onset(b[1])))
        alike.append(np.corrcoef(*(AudioFrontEnd(fmt).log_mel(x[1][None]).flatten() for x in (a, b)))[0, 1])
    assert np.median(late) < 0.001 and np.median(alike) > 0.99
    assert max(late) < 0.035 and min(alike) > 0.9        # a file's very first block of sound lies before its first key frame
    with av.open(str(ready / "film.mp4.mkv")) as file:
        keys = [packet.pts * packet.time_base for packet in file.demux(video=0) if packet.size and packet.is_keyframe]
    assert np.diff([float(key) for key in keys[1:]]) == pytest.approx(3.2)  # one group of pictures a snippet


def test_preparing_again_does_nothing_over_and_shares_are_disjoint(prepared, tmp_path):
    raw, ready, _ = prepared
    times = {path: path.stat().st_mtime_ns for path in ready.rglob("*.mkv")}
    assert "0 files, and 3 done before" in run_script("data.py", "prepare", raw, ready, "--short-side", 60)[1]
    assert times == {path: path.stat().st_mtime_ns for path in ready.rglob("*.mkv")} and len(times) == 3
    shares = []
    for i in (1, 2):
        assert not run_script("data.py", "prepare", raw, tmp_path, "--short-side", 60, "--shard", f"{i}/2")[0]
        shares.append({path.relative_to(tmp_path) for path in tmp_path.rglob("*.mkv")})
    assert len(shares[0]) in (1, 2) and shares[0] < shares[1] == {path.relative_to(ready) for path in times}
    assert "was prepared with" in refused("data.py", "prepare", raw, ready, "--short-side", 120)
    assert "lies in" in refused("data.py", "prepare", raw, raw / "ready")
    assert "--shard 3/2: must be i/n" in refused("data.py", "prepare", raw, tmp_path, "--shard", "3/2")


def test_a_kill_while_preparing_loses_nothing_and_nothing_is_done_again(tmp_path):
    raw, ready = tmp_path / "raw", tmp_path / "ready"
    raw.mkdir()
    write_film(raw / "f0.mkv", seconds=66, fps=5, gop=5)
    for i in (1, 2):
        os.link(raw / "f0.mkv", raw / f"f{i}.mkv")
    argv = ["prepare", raw, ready, "--workers", "1", "--short-side", "40"]
    process = subprocess.Popen([sys.executable, HERE / "data.py", *argv], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while not list(ready.glob(".f*.mkv.mkv.*")) or not list(ready.glob("f*.mkv")):
        assert process.poll() is None                    # it is in the middle of the second file
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=60)                      # ends when its reading process, too, is gone
    done = {path.name: path.stat().st_mtime_ns for path in ready.glob("f*.mkv")}
    assert 1 <= len(done) <= 2
    assert not run_script("data.py", *argv)[0]
    after = {path.name: path.stat().st_mtime_ns for path in ready.glob("f*.mkv")}
    assert len(after) == 3 and done.items() <= after.items() and not list(ready.glob(".f*"))
    assert Titles(ready, Format()).counts == Titles(raw, Format()).counts == [20] * 3


@pytest.mark.parametrize("share", [(0.5, 0.6), (0.52, 0.55)])
def test_damage_is_left_out_of_what_is_prepared(tmp_path, share):
    """Also that of one snippet, which is little beside the many that are read at a time."""
    (tmp_path / "raw").mkdir()
    write_film(tmp_path / "raw" / "film.mkv", seconds=60, audio="flac")
    damage(tmp_path / "raw" / "film.mkv", share)
    _, said, _ = run_script("data.py", "prepare", tmp_path / "raw", tmp_path / "ready")
    raw, ready = (Titles(tmp_path / name, Format()) for name in ("raw", "ready"))
    lost = sum(bool(raw[0, m, (m,)][3]) for m in range(raw.counts[0]))
    assert 1 <= lost <= 6 and ready.counts == [raw.counts[0] - lost] and f"{lost} damaged snippets left out" in said
    assert not any(ready[0, m, (m,)][3] for m in range(ready.counts[0]))


def test_prepared_titles_of_a_list_keep_its_order_and_stay_apart(tmp_path):
    """Two shows whose episodes have the same names, a film, and a folder in which there is nothing."""
    for name in ("Lost/e1.mp4", "Lost/e2.mp4", "Alf/e1.mkv", "Alf/e2.mkv", "Zulu.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_film(tmp_path / name, seconds=4 + 4 * ("Lost" in name))
    (tmp_path / "empty").mkdir()
    (tmp_path / "LIST.txt").write_text("Zulu.mp4\nLost/e1.mp4\tLost/e2.mp4\nempty\nAlf\n")
    code, said, err = run_script("data.py", "prepare", tmp_path / "LIST.txt", tmp_path / "ready", "--short-side", 40)
    assert not code and "skipped empty: no media files in it" in said, err
    titles = Titles(tmp_path / "ready", Format())
    assert titles.names == ["0000 Zulu.mp4.mkv", "0001 e1.mp4", "0003 Alf"] and titles.counts == [1, 2 + 2, 1 + 1]
    assert Titles(tmp_path / "LIST.txt", Format()).counts == titles.counts
    (tmp_path / "LIST.txt").write_text("empty\n")
    assert "none of its 1 files can be used; empty: no media files in it" in refused("data.py", "check", tmp_path / "LIST.txt")
    (tmp_path / "LIST.txt").write_text("Alf\nAlf/e1.mkv\n")
    assert "e1.mkv: twice in " in refused("data.py", "prepare", tmp_path / "LIST.txt", tmp_path / "ready", "--short-side", 40)


def test_a_picture_that_changes_shape_is_prepared_without_distortion(tmp_path):
    """Squares of a broadcast that goes from 16:9 to 4:3 stay squares, and are larger there."""
    squares = lambda height, width: np.uint8(255 * (np.add.outer(np.arange(height) // 8, np.arange(width) // 8) % 2))
    (tmp_path / "raw").mkdir()
    with open(tmp_path / "raw" / "film.ts", "wb") as film:
        for i, (width, start) in enumerate(((320, 2), (240, 18))):
            image = squares(180, width)[..., None].repeat(3, 2)
            part = write_film(tmp_path / f"{i}.ts", 16, size=(width, 180), image=image, audio="ac3", rate=48000, start=start)
            film.write(part.read_bytes())
    assert not run_script("data.py", "prepare", tmp_path / "raw", tmp_path / "ready", "--short-side", 120)[0]
    titles = Titles(tmp_path / "ready", Format(short_side=120, crop=120))
    sides = []
    for m in (1, titles.counts[0] - 2):
        video, _, _, failures = titles[0, m, None]
        spectrum = np.abs(np.fft.fft2(video.float().mean((0, 1)) - video.float().mean()))[1:30, 1:30]
        sides.append(np.add(np.unravel_index(spectrum.argmax(), spectrum.shape), 1).tolist())
        assert not failures
    (high, wide), (higher, wider) = sides
    assert high == wide and abs(higher - wider) <= 1 and wider < wide   # cycles in 120 pixels, down and across


def test_loud_sound_is_clipped_and_does_not_wrap(tmp_path):
    """A decoder's floats go beyond 1 where a recording is loud."""
    sound = 1.5 * np.sin(2 * np.pi * 440 * np.arange(2 * 51200) / 16000).astype(np.float32)
    fmt = Format(frames=16, rate=16000)
    data.write_media(tmp_path / "film.mp4", [(np.zeros((32, 40, 40, 3), np.uint8), sound)], fmt, ("libx264", {}), ("flac", {}))
    _, heard = Reader(tmp_path / "film.mp4").read((), 0.0, len(sound), 16000)
    assert np.abs(heard - sound.clip(-1, 1)).max() < 1e-3


def test_a_decoder_that_crashes_takes_one_file_with_it():
    with pytest.raises(BadInput, match="the process that read it died"):
        data.alone(os._exit, 1)
    assert data.alone(str, "film") == "film"


def test_check_show_and_bench_say_what_is_there(prepared, tmp_path):
    raw, ready, _ = prepared
    code, said, _ = run_script("data.py", "check", raw, "--batch-size", 4)
    assert not code and "h264 160x120 25/s" in said and "aac 44100 Hz stereo" in said and "text.mp4: not a media file" in said
    assert "2 titles, 0.0 h, 19 snippets of 3.2 s, 4 steps an epoch" in said and "2 files skipped" in said
    picture = tmp_path / "snippet.png"
    assert not run_script("data.py", "show", raw / "film.mp4", "--at", "00:00:10", "--out", picture)[0]
    assert torchvision.io.decode_image(str(picture)).float().std() > 10
    assert "--at 39 s: must be from 0 to" in refused("data.py", "show", raw / "film.mp4", "--at", 39)
    assert "--crop 158: must be --short-side (100) or less" in refused("data.py", "show", raw / "film.mp4", "--short-side", 100)
    assert "none/x.png" in refused("data.py", "show", raw / "film.mp4", "--out", tmp_path / "none" / "x.png")
    code, said, err = run_script("data.py", "bench", ready, "--short-side", 60, "--crop", 48, "--snippets", 16)
    assert not code and "decode video" in said and said.count("snippets/s") == 2, err


# ---------------------------------------------------------------------------------------------------------------------
# Scenes
# ---------------------------------------------------------------------------------------------------------------------


def true_scenes(world):
    """For each film of a toy world the snippets with which a scene begins, but for the first."""
    rows = [[int(cell) for cell in line.split(",")[:3]] for line in (world / "truth.csv").read_text().splitlines()[1:]]
    return [{b[1] for a, b in zip(rows, rows[1:]) if a[0] == b[0] == n and a[2] != b[2]} for n in range(rows[-1][0] + 1)]


TOY_SIZES = ["--frames", 8, "--rate", 16000, "--n-fft", 1024, "--hop", 256, "--mels", 64]  # on data.py's command line


def test_scenes_of_the_toy_world_are_found(tmp_path):
    data.make_toy(tmp_path / "toy", seed=7, titles=6, snippets=96, clips=(1, 0))
    titles = Titles(tmp_path / "toy" / "films", TINY, scenes=True)
    found, true = [set(np.cumsum(scenes)[:-1].tolist()) for scenes in titles.scenes], true_scenes(tmp_path / "toy")
    right = sum(len(a & b) for a, b in zip(found, true))
    assert sum(map(len, true)) > 30 and right >= 0.85 * sum(map(len, found)) and right >= 0.85 * sum(map(len, true))
    assert [sum(scenes) for scenes in titles.scenes] == titles.counts and titles.subset([2, 4]).scenes[1] == titles.scenes[4]
    assert Titles(tmp_path / "toy" / "films", TINY).subset([0]).scenes is None
    _, said, _ = run_script("data.py", "check", tmp_path / "toy" / "films", "--scenes", *TOY_SIZES)
    precision, recall = right / sum(map(len, found)), right / sum(map(len, true))
    assert f"{right} of them right: precision {precision:.3f}, recall {recall:.3f}" in said


def test_scenes_are_found_once_until_the_file_changes(tmp_path, monkeypatch):
    films = tmp_path / "films"
    (films / "show").mkdir(parents=True)
    for i, name in enumerate(("film.mp4", "show/e1.mp4", "show/e2.mp4")):
        write_film(films / name, seconds=8 + i)
    found, alone = [], data.alone
    monkeypatch.setattr(data, "alone", lambda work, path, *args: (found.append(Path(path).name), alone(work, path, *args))[1])
    first = Titles(films, TINY, scenes=True)
    assert sorted(found) == ["e1.mp4", "e2.mp4", "film.mp4"] and first.counts == [5, 5 + 6]
    assert [sum(scenes) for scenes in first.scenes] == first.counts and len(first.scenes[1]) >= 2  # an episode ends a scene
    write_film(films / "film.mp4", seconds=12)
    assert sum(Titles(films, TINY, scenes=True).scenes[0]) == 7 and found[3:] == ["film.mp4"]


def test_scenes_found_before_an_interruption_are_kept(tmp_path, monkeypatch):
    found, alone = [], data.alone
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_film(tmp_path / name, seconds=7)

    def interrupted(work, path, *args):
        found.append(Path(path).name)
        if len(found) <= 3 and path.endswith("c.mp4"):
            raise KeyboardInterrupt
        return alone(work, path, *args)

    monkeypatch.setattr(data, "alone", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Titles(tmp_path, TINY, scenes=True)
    assert Titles(tmp_path, TINY, scenes=True).scenes == [[4]] * 3 and found[3:] == ["c.mp4"]


def test_scenes_of_a_damaged_film_still_add_up(tmp_path):
    write_film(tmp_path / "film.mkv", seconds=60, audio="flac")
    damage(tmp_path / "film.mkv", (0.5, 0.6))
    titles = Titles(tmp_path, TINY, scenes=True)
    assert sum(titles.scenes[0]) == titles.counts[0] == 37
    assert any(titles[0, m, (m,)][3] for m in range(37))  # there are snippets that cannot be read


def test_novelty_peaks_where_a_scene_begins():
    rng = np.random.default_rng(0)
    places, lengths = rng.normal(size=(4, 2, 20)), [12, 5, 30, 9]
    features = [np.repeat(places[:, kind], lengths, axis=0) + 0.3 * rng.normal(size=(56, 20)) for kind in (0, 1)]
    novelty = data.measure_novelty(*features)
    assert data.pick_peaks(novelty) == [12, 17, 47] and novelty[[12, 17, 47]].min() > 2 * novelty[30]
    assert data.pick_peaks(np.array([0, 0, 0, 0.5, 0.5, 0.5, 0.1, 0, 0])) == [3]  # of equals the first
    assert data.pick_peaks(data.measure_novelty(np.ones((20, 3)), np.zeros((20, 2)))) == []
    assert data.pick_peaks(data.measure_novelty(np.ones((1, 3)), np.zeros((1, 2)))) == []


def test_scenes_can_be_looked_at(toy, tmp_path):
    code, _, err = run_script("data.py", "show", toy / "films/film000.mp4", "--scenes", *TOY_SIZES, "--out", tmp_path / "s.png")
    assert not code and torchvision.io.decode_image(str(tmp_path / "s.png")).float().std() > 10, err
    (tmp_path / "text.mp4").write_text("not a film")
    assert "not a media file" in refused("data.py", "show", tmp_path / "text.mp4", "--scenes")


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
    assert f"weights: {backbone} of {run / 'checkpoint.pt'} (epoch 1, step 9, k 4)" in said and "new: fc.weight, fc.bias" in said
    assert result["tests_of_split"] == {"1": tests} and len(result["accuracy_of_class"]) == 10
    assert result["accuracy"] * tests == pytest.approx(round(result["accuracy"] * tests))
    assert {"result.json", "confusion.png", "log.jsonl", "split1.pt"} <= {p.name for p in (tmp_path / "run").iterdir()}
    kept = torch.load(tmp_path / "run" / "split1.pt", weights_only=True)
    theirs, ours = load(run), kept["front_end"]
    assert ours["log_mel_mean"] == theirs["front_end"]["log_mel_mean"]
    again, said = fine_tune(toy, tmp_path / "run", task, "--ckpt", run / "checkpoint.pt")
    assert again == result and "was finished before" in said


def test_a_probe_is_the_logistic_regression_on_frozen_features():
    rng, train = np.random.default_rng(0), Labeled.__new__(Labeled)
    train.items = [(f"{i}", i % 3) for i in range(60)]
    x = rng.normal(size=(60, 2, 5)) * [1, 10, 0.1, 1, 0] + np.arange(60)[:, None, None] % 3 * [1, 0, 0.1, 0, 0] + 7
    fc = torch.nn.Linear(5, 3)
    finetune.fit_probe(fc, {f"{i}": torch.from_numpy(x[i]).float() for i in range(60)}, train)
    # At the minimum the gradient of mean cross-entropy is that of |W|^2 / 2N, for W on standardised features.
    z, y = torch.from_numpy(x).flatten(0, 1), torch.arange(60).repeat_interleave(2) % 3
    mean, std = z.mean(0), z.std(0).clamp(min=1e-6)
    weight = fc.weight.detach().double() * std
    error = ((z - mean) / std @ weight.T + fc.bias.detach() + fc.weight.detach().double() @ mean).softmax(1)
    error -= torch.nn.functional.one_hot(y, 3)
    assert error.T @ ((z - mean) / std) / 120 == pytest.approx(-weight / 60, abs=1e-4) and weight.abs().max() > 0.5


def test_an_answer_is_the_mean_of_the_views_softmax():
    test, net = Labeled.__new__(Labeled), torch.nn.Module()
    test.items, net.fc = [("a", 0), ("b", 0)], torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.eye_(net.fc.weight)
    views = {"a": torch.tensor([[9.0, 0], [0, 3], [0, 3]]),       # by the mean of the logits it were 0
             "b": torch.tensor([[9.0, 0], [0, 0.1], [0, 0.1]])}   # by vote it were 1
    assert finetune.evaluate(net, None, test, 2, 0, 1, {}, views).tolist() == [[1, 1], [0, 0]]


def test_processes_share_out_the_batches_of_fine_tuning():
    args = finetune.parse_arguments(["--task", "toy-sound", "--epochs", "2", "--batch-size", "8"])
    batches = lambda start=0, rank=0, processes=1: list(finetune.training_batches(30, args, start, rank, processes))
    whole = batches()
    assert [a + b for a, b in zip(batches(rank=0, processes=2), batches(rank=1, processes=2))] == whole
    assert whole[3:] == batches(start=1) and len(whole) == 2 * 3
    first, second = ([i for batch in whole[at : at + 3] for i, _ in batch] for at in (0, 3))
    assert len(set(first)) == len(set(second)) == 24 and first != second


def test_a_frozen_network_does_not_move(run, toy, tmp_path):
    result, said = fine_tune(toy, tmp_path / "run", "toy-sound", "--ckpt", run / "checkpoint.pt", "--probe", "--split", "all")
    assert "logistic regression on frozen features" in said and result["tests_of_split"] == {"1": 20, "2": 10, "3": 10, "4": 10, "5": 10}
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
    assert code == 2 and "classInd.txt: No such file" in err and "trainlist01.txt" in err  # with the layout, so several lines
    assert "lost.pt/ucfTrainTestlist/classInd.txt: Not a directory" in run_script(
        "finetune.py", "--task", "ucf101", "--data", tmp_path / "lost.pt", "--out", tmp_path / "new")[2]  # fmt: skip
    assert sorted(tmp_path.iterdir()) == before


# ---------------------------------------------------------------------------------------------------------------------
# Runs compared, and the findings
# ---------------------------------------------------------------------------------------------------------------------


def test_runs_are_compared(run, toy, tmp_path):
    pretrain.main(arguments(toy, tmp_path / "other", "--k", "2"))
    fine_tune(toy, tmp_path / "tuned", "toy-sound", "--ckpt", run / "checkpoint.pt", "--probe")
    fine_tune(toy, tmp_path / "scratch", "toy-sound", "--probe")
    (tmp_path / "half").mkdir()
    shutil.copy(run / "checkpoint.pt", tmp_path / "half")
    (tmp_path / "empty").mkdir()
    (tmp_path / "a.log").write_text("not a folder")
    code, said, err = run_script("pretrain.py", "--compare", run, *sorted(tmp_path.iterdir()), "nowhere", "--out", tmp_path / "out")
    assert not code, err
    assert all(f"{name}: no finished run, left out" in said for name in ("half", "empty", "nowhere")) and "4 runs" in said
    rows = {row["run"]: row for row in json.loads((tmp_path / "out" / "findings.json").read_text())}
    assert set(rows) == {"whole", "other", "tuned", "scratch"} and rows["other"]["arguments"]["k"] == 2
    assert rows["whole"]["final"]["gap"] == log_of(run, "gap")[-1] and rows["whole"]["final"]["loss"] == log_of(run)[-1]
    assert rows["tuned"]["pretraining"] == "whole" and rows["scratch"]["pretraining"] is None
    accuracy = [100 * json.loads((tmp_path / name / "result.json").read_text())["accuracy"] for name in ("tuned", "scratch")]
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in said.splitlines() if line.startswith("| ")]
    table = {cells[0]: cells for cells in lines}
    assert table["k = 4, w = 8"][-1] == f"{accuracy[0]:.3g}" and table["none"][-1] == f"{accuracy[1]:.3g}"
    assert table["k = 2, w = 8"][1:3] == ["1", f"{log_of(tmp_path / 'other')[-1]:.3g}"] and table["k = 2, w = 8"][-1] == ""
    shutil.copytree(run, tmp_path / "zz")
    code, again, _ = run_script("pretrain.py", "--compare", run, tmp_path / "zz", "--out", tmp_path / "out")
    assert "zz: differs from whole in neither k, w" in again and "| k = 4, w = 8 | 1 |" in again  # one seed is one seed
    assert "no finished run" in refused("pretrain.py", "--compare", tmp_path / "half")
    (tmp_path / "foreign.json").write_text('{"loss": 1}')
    assert "not what pretrain.py" in refused("pretrain.py", "--compare", tmp_path / "foreign.json")
    again = run_script("pretrain.py", "--compare", tmp_path / "out" / "findings.json", "--out", tmp_path / "again")
    assert (tmp_path / "again" / "findings.json").read_text() == (tmp_path / "out" / "findings.json").read_text() and not again[0]


def test_the_final_loss_is_the_mean_of_the_last_tenth():
    summary = pretrain.summarise([dict(step=i, loss=i) for i in range(1, 101)])
    assert summary["final"]["loss"] == 95.5 and len(summary["curves"]["loss"][0]) == 40


def seeds_of(rows):
    """Rows as of three seeds, each with a world of its own, whose last figures differ by 1."""
    return [{**row, "run": f"{row['run']}-{seed}", "seed": seed, "final": {**row["final"], "gap": 5.0 + seed},
             "arguments": {**row["arguments"], "data": f"datasets/toy-{seed}/films"}} for row in rows for seed in (1, 2, 3)]  # fmt: skip


def test_sweeps_are_drawn_over_seeds(run, toy, tmp_path):
    pretrain.compare([run], tmp_path / "one")
    row, = json.loads((tmp_path / "one" / "findings.json").read_text())
    rows = [{**row, "run": f"{k}{w}{tau}", "arguments": {**row["arguments"], "k": k, "w": w, "tau": tau}}
            for k, w, tau in [(1, None, None), (4, None, None), (4, 32, None), (4, "scene", None), (4, 4, None), (4, None, 0.07)]]
    (tmp_path / "three.json").write_text(json.dumps(seeds_of(rows)))
    code, said, err = run_script("pretrain.py", "--compare", tmp_path / "three.json", "--out", tmp_path / "out")
    assert not code and {path.name for path in (tmp_path / "out").glob("*.png")} == {"toy-k.png", "toy-w.png", "toy-jitter-tau.png"}, err
    labels = [line.split("|")[1].strip() for line in said.splitlines() if line.startswith("| k")]
    assert labels == ["k = 1", "k = 4", "k = 4, τ = 0.07", "k = 4, w = 32", "k = 4, w = 4", "k = 4, w = scene"]
    assert said.count("| 7 ± 1 |") == 6                   # gaps of 6, 7 and 8: mean and standard deviation
    groups = pretrain.group(pretrain.read_runs([tmp_path / "three.json"]))["toy"]
    assert pretrain.sweeps(groups) == {"k": labels[:2], "w": [labels[i] for i in (1, 3, 4, 5)], "jitter-tau": labels[1:3]}


# The findings, and what each asks: r(collection, label, figure) is an array over the seeds, and every difference should be
# above 0. Verdicts: "holds", each in every seed; "holds in the mean", each mean of the seeds; "in part", some of the means;
# "does not hold", none. Written down before a result was seen; while the runs were made, three things changed: a discrepancy's size
# counts, not its sign; w = k is held against w = M_n too; a third, weaker world for finding 4 was given up, before it was seen.

FIGURES = {name: f"toy-{task}, {how}" for task in ("action", "sound") for name, how in
           ((task, "probe, split all"), (f"{task} tuned", "fine-tuned, split 1"))}  # fmt: skip
DISCREPANCIES, TASKS = ("kl_same_other", "gap"), ("action", "sound")


def ascending(r, figures, *runs):
    """By how much each run is above the one before it, for each figure; of a discrepancy the size counts."""
    size = lambda run, figure: abs(r("films", run, figure))
    return [size(high, figure) - size(low, figure) for low, high in zip(runs, runs[1:]) for figure in figures]


def no_clear_loser(r, *runs):
    """1 where no run is the worst in every seed, -1 where one is, for each task."""
    worst = [np.argmin([r("films", run, task) for run in runs], axis=0) for task in TASKS]
    return [np.array([1.0 if len(set(runs)) > 1 else -1.0]) for runs in worst]


def gain(r, collection, task):
    return r(collection, "k = 16", task) - r(collection, "k = 1", task)


FINDINGS = {
    1: lambda r: [r("films", "k = 1", "kl_other_match") - r("films", "k = 1", "kl_same_match"),
                  *ascending(r, DISCREPANCIES, "k = 64", "k = 16", "k = 4", "k = 1")],
    2: lambda r: ascending(r, DISCREPANCIES, "k = 16, w = 32", "k = 16"),
    3: lambda r: ascending(r, DISCREPANCIES, "k = 16, w = 16", "k = 16, w = 32")
        + ascending(r, (*DISCREPANCIES, *TASKS), "k = 16, w = 16", "k = 16"),
    4: lambda r: [m for k in (4, 16, 64) for m in ascending(r, TASKS, "k = 1", f"k = {k}")]
        + [gain(r, "tv", task) - gain(r, "films", task) for task in TASKS],
    5: lambda r: ascending(r, ["loss"], "k = 1", "k = 4", "k = 16", "k = 64")
        + ascending(r, ["loss"], "k = 16", "k = 16, w = 32", "k = 16, w = 16") + ascending(r, ["loss"], "k = 64", "k = 16, w = 16"),
    6: lambda r: ascending(r, DISCREPANCIES, "k = 16", "k = 1, σ = 1.0", "k = 1"),
    7: lambda r: no_clear_loser(r, "k = 16", "k = 16, τ = 0.07", "k = 16, τ = 0.3"),
    8: lambda r: ascending(r, ["action tuned", "sound tuned"], "none", "k = 16") + ascending(r, TASKS, "none", "k = 16"),
}  # fmt: skip


def verdict(margins):
    if all((margin > 0).all() for margin in margins):
        return "holds"
    right = sum(margin.mean() > 0 for margin in margins)
    return "holds in the mean" if right == len(margins) else f"in part, {right} of {len(margins)}" if right else "does not hold"


def figures_of(path):
    """r(collection, label, figure) of a findings.json: an array over its seeds, in order. Raises KeyError for what it lacks."""
    rows = pretrain.read_runs([path])
    seeds, found = sorted({row["seed"] for row in rows}), {}
    for collection, groups in pretrain.group([row for row in rows if "final" in row]).items():
        results = pretrain.downstream(rows, groups)
        for label, runs in groups.items():
            for name in ("loss", *pretrain.MEASURES):
                found[collection, label, name] = {seed: row["final"][name] for seed, row in runs.items() if name in row["final"]}
        for name, task in FIGURES.items():
            for label, tested in results.get(task, {}).items():
                found[collection, label, name] = {seed: row["accuracy"] for seed, row in tested.items()}
    return lambda *which: np.array([found[which][seed] for seed in seeds])


def test_a_verdict_counts_seeds_and_means():
    good, mixed, bad = np.array([1.0, 2, 3]), np.array([-1.0, 2, 3]), np.array([1.0, -2, -3])
    assert [verdict(m) for m in ([good, good], [good, mixed], [good, mixed, bad], [bad])] == [
        "holds", "holds in the mean", "in part, 2 of 3", "does not hold"]  # fmt: skip


def test_the_findings_ask_what_they_say(run, tmp_path):
    """On rows made up so that all hold, and on the same with one thing turned round."""
    pretrain.compare([run], tmp_path)
    row, = json.loads((tmp_path / "findings.json").read_text())
    rows, hard = [], {"1": 0, "4": 1, "16": 2, "64": 3, "1 1.0": 0.5, "16 32": 2.5, "16 16": 4, "16 scene": 2.4, "16 0.07": 2, "16 0.3": 2}
    for seed, (collection, strength), (name, level) in [(s, c, h) for s in (1, 2, 3)
                                                        for c in (("films", 2), ("tv", 3)) for h in hard.items()]:
        k, how = (name.split() + [None])[:2]
        args = {**row["arguments"], "k": int(k), "seed": seed, "data": f"datasets/{collection}-{seed}/films", "jitter": 0.0}
        args |= {"w": int(how) if how in ("32", "16") else "scene" if how == "scene" else None}
        args |= {"tau": float(how) if how in ("0.07", "0.3") else None} | ({"jitter": 1.0} if how == "1.0" else {})
        right = 0.5 + 0.03 * strength * (level if how != "16" else -1) - 0.01 * ((how, seed) in (("0.07", 1), ("0.3", 2)))
        kl = dict(kl_same_other=1 - 0.2 * level, kl_same_match=1.0, kl_other_match=2.0, gap=1 - 0.2 * level)
        rows.append({**row, "run": f"{collection}-{seed}-{name}", "seed": seed, "final": {"loss": 3 + level, **kl}, "arguments": args})
        rows += [{"run": f"{collection}-{seed}-{name}-{task}", "seed": seed, "pretraining": f"{collection}-{seed}-{name}", "task": task,
                  "accuracy": right, "arguments": {"data": f"{collection}-{seed}"}} for task in FIGURES.values()]
        rows += [{"run": f"{seed}-none-{task}", "seed": seed, "pretraining": None, "task": task, "accuracy": 0.1,
                  "arguments": {"data": f"films-{seed}"}} for task in FIGURES.values() if name == "1" and collection == "films"]

    def verdicts(change=lambda row: row):
        (tmp_path / "made-up.json").write_text(json.dumps([change(row) for row in rows]))
        r = figures_of(tmp_path / "made-up.json")
        return {number: verdict(ask(r)) for number, ask in FINDINGS.items()}

    assert verdicts() == dict.fromkeys(range(1, 9), "holds")
    turned = lambda test, **final: lambda row: {**row, "final": {**row["final"], **final}} if row["run"].endswith(test) and "final" in row else row
    worse = lambda test: lambda row: {**row, "accuracy": 0.05} if test in row["run"] and "accuracy" in row else row
    fails = lambda change: [number for number, said in verdicts(change).items() if said != "holds"]
    assert fails(turned("films-2-64", kl_same_other=5)) == [1] and fails(turned("-1", kl_same_match=3)) == [1]
    assert fails(turned("films-2-64", gap=-5)) == [1]    # a discrepancy the other way round is one
    assert fails(turned("films-2-16 32", gap=5)) == [2] and fails(turned("films-2-16 32", loss=9)) == [5]
    assert fails(worse("films-2-4")) == fails(worse("tv-3-16")) == [4] and fails(worse("films-1-16 0.07")) == []
    assert fails(turned("1 1.0", gap=0.1)) == [6] and fails(turned("films-1-16 16", gap=0.9)) == [3]
    assert fails(worse("-16 0.07")) == [7] and 8 in fails(worse("films-2-16-toy-action, fine"))
    rows[:] = [row for row in rows if row["run"] != "films-2-4"]
    with pytest.raises(KeyError):                        # a seed that is missing is no seed of another
        verdicts()


def test_the_commands_in_the_readme_are_understood():
    parse = {"pretrain": pretrain.parse_args, "finetune": finetune.parse_arguments, "data": data.parse_args}
    text = "\n".join([(HERE / "README.md").read_text(), data.__doc__, pretrain.__doc__, finetune.__doc__])
    command = r"^ *(?:python|torchrun --nproc_per_node 8) (pretrain|finetune|data)\.py ([^$\n]*?)(?: {2,}[^$\n]*)?$"
    found = re.findall(command, text, re.M)
    assert len(found) > 20
    for name, flags in found:
        parse[name](shlex.split(flags, comments=True))


def test_the_verdicts_in_the_readme_follow_from_the_runs():
    r = figures_of(HERE / "assets" / "findings.json")
    rows = {line.split("|")[1].strip(): line for line in (HERE / "README.md").read_text().splitlines() if line.startswith("| ")}
    for number, ask in FINDINGS.items():
        cells = [cell.strip() for cell in rows[str(number)].split("|")[1:-1]]
        assert all(len(margin) >= 3 for margin in ask(r) if number != 7)
        assert cells[-2:] == ["3", verdict(ask(r))], (number, [margin.round(3).tolist() for margin in ask(r)])


def test_the_table_in_the_readme_is_what_the_comparison_prints(tmp_path, capsys):
    pretrain.compare([HERE / "assets" / "findings.json"], tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    text = (HERE / "README.md").read_text()
    assert len(lines) == 10 + 2 + 2 * 3 and all(line in text for line in lines)


if __name__ == "__main__":  # python test_all.py findings.json: the verdicts on runs of your own
    for number, ask in FINDINGS.items():
        try:
            margins = ask(figures_of(sys.argv[1]))
            print(f"{number}  {verdict(margins):20} margins in each seed: {[margin.round(3).tolist() for margin in margins]}")
        except KeyError as error:
            print(f"{number}  not asked: no {error} in {sys.argv[1]}")
