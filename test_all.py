"""The pipeline, tested in its own order: sampler, loss, networks, reading, front-ends, labelled sets, pretraining, fine-tuning.

    python -m pytest -q test_all.py        no network, no GPU; under four minutes on two cores

Each idea of the paper has a test that fails when the idea is broken; media files are made here, by the toy world's renderer
or by FFmpeg's encoders, and read back through the real decoders.
"""

import collections
import contextlib
import copy
import doctest
import io
import json
import os
import pickle
import runpy
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
    """Names, shapes, outputs (in training and testing), gradients; weights both ways."""
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    for mode in (True, False):
        y, target = ours.train(mode)(x), theirs.train(mode)(x)
        assert torch.allclose(y, target, atol=1e-4)
    y.square().sum().backward()
    target.square().sum().backward()
    for (name, p), q in zip(ours.named_parameters(), dict(theirs.named_parameters()).values()):
        q = dict(theirs.named_parameters())[name]
        assert torch.allclose(p.grad, q.grad, rtol=1e-3, atol=1e-3 * q.grad.abs().max().item()), name


def test_video_network_is_torchvisions():
    torch.manual_seed(0)
    ours = models.r2plus1d_18(num_classes=400)
    assert sum(p.numel() for p in ours.parameters()) == 31_505_325
    assert sum(p.numel() for p in models.r2plus1d_18().parameters()) == 31_300_125
    assert_same_network(ours, torchvision.models.video.r2plus1d_18(), torch.randn(2, 3, 8, 32, 32))


def test_audio_network_is_torchvisions():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=50)
    theirs.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    assert_same_network(models.audio_resnet18(num_classes=50), theirs, torch.randn(2, 1, 96, 120))


@pytest.mark.parametrize("width", [4, 16])
def test_embeddings_and_maps_have_the_documented_shapes(width):
    model = models.AudioVisualModel(width)
    video, audio = torch.randn(2, 3, 16, 48, 48), torch.randn(2, 1, 96, 301)
    assert model.video.features(video).shape == (2, 8 * width, 2, 3, 3)
    assert model.audio.features(audio).shape == (2, 8 * width, 3, 10)
    z_v, z_a = model(video, audio)
    assert z_v.shape == z_a.shape == (2, 512) and z_v.dtype == z_a.dtype == torch.float32
    assert model.video(video).shape == model.audio(audio).shape == (2, 8 * width)


def test_heads_are_two_convolutions_of_kernel_1_then_the_average():
    head = models.AudioVisualModel(4).video_head.eval()
    x = torch.randn(2, 32, 2, 3, 3)
    first, norm, _, second = head.net
    by_hand = second(torch.relu(norm(first(x)))).mean((2, 3, 4))
    assert first.kernel_size == second.kernel_size == (1, 1, 1) and torch.allclose(head(x), by_hand, atol=1e-6)
