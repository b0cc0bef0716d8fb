"""The method, tested piece by piece: sampler, loss, networks, titles, front-ends, labelled sets,
pretraining, fine-tuning. media/, harness/, lab/ and papers/ have tests of their own.

    python -m pytest -q                      all tests, without network or GPU
    python -m pytest -q test_all.py          the method alone
    python -m pytest -q -k "loss or k_distinct"

Each idea has a test that turns red when the idea is broken on purpose:

    loss      positives off the diagonal; one direction of negatives dropped; CLIP's two softmaxes
                  test_loss_is_equation_1_value_and_gradient
              synchronisation in one direction only, or of same and other title swapped
                  test_synchronisation_is_the_fraction_of_pairs_in_both_directions
    sampler   k and w swapped
                  test_k_distinct_snippets_of_each_title_within_w
              titles drawn by length
                  test_titles_are_drawn_uniformly_not_by_length
              the order of epoch 0 in every epoch
                  test_epochs_differ_and_a_seed_repeats
              more scenes than hold k; scenes drawn as if all were of one length
                  test_scenes_are_the_fewest_around_a_snippet_that_hold_k
                  test_scenes_are_drawn_by_their_length
    titles    crops drawn from a worker's own state
                  test_crops_come_from_their_key_alone
              replacements drawn from no key
                  test_a_snippet_that_fails_is_replaced_from_its_title_by_its_key
              held-out titles trained on
                  test_held_out_titles_are_whole_and_never_trained_on
              a stride that counts places at which no whole snippet fits; one grid for all files
              of a show, or snippets of two files that overlap on its time axis
                  test_a_stride_counts_the_places_of_its_grid_that_hold_a_whole_snippet
                  test_the_files_of_a_show_have_a_grid_each_and_one_time_axis
              two draws from one stream of random numbers
                  test_no_two_streams_of_random_numbers_collide
    the loop  k and w swapped; the order of epoch 0 in every epoch
                  test_each_batch_of_the_loop_is_k_snippets_a_title_and_each_epoch_differs
              scenes ignored
                  test_the_loop_draws_from_the_scenes_that_the_collection_has
              nothing trained, or not by Adam
                  test_a_run_trains_every_weight_by_adam
              --tau or --jitter ignored
                  test_the_loss_and_the_gradient_of_a_step_are_the_means_of_its_shares
              gathered embeddings without their gradient, or with the mean of it instead of the sum
                  test_gather_contrasts_the_whole_batch_of_two_processes
              Equation 2 measured in training mode, on random crops, or on other snippets
                  test_held_out_titles_are_measured_evenly_central_clean_and_in_testing_mode
              a resumed run starts its epoch again
                  test_an_interrupted_run_resumes_to_the_same_weights
              replacements not counted; --max-bad ignored; a stopped run stops again though its
              files are fixed
                  test_a_run_counts_what_it_replaces_and_stops_when_it_is_too_much
    fine-     no weight decay, or no momentum
    tuning        test_fine_tuning_is_sgd_with_momentum_and_weight_decay
              no flip, no jitter; the augmentation of step 0 at every step
                  test_each_step_of_fine_tuning_flips_and_jitters_its_own_clips
                  test_each_step_of_fine_tuning_masks_its_own_sounds
              another network than the checkpoint names
                  test_fine_tuning_takes_the_network_from_the_checkpoint
              the logits of the views averaged, or their votes counted
                  test_an_answer_is_the_mean_of_the_views_softmax
              a probe on features that are not standardised
                  test_a_probe_is_the_logistic_regression_on_frozen_features
              --shots that misses a class, or takes others for a smaller N; files repeated
              class by class; a probe of few files that knows others
                  test_shots_are_so_many_files_of_each_class_and_those_of_fewer_are_among_them
                  test_few_files_are_repeated_evenly_to_the_length_of_all
                  test_a_probe_of_few_files_knows_no_others
    media/    sound cut 1 s late
                  test_every_kind_of_file_is_cut_in_step
              snippets that overlap read from the next group of pictures, or from another time
                  test_a_prepared_film_is_read_exactly_between_its_groups_of_pictures
                  test_snippets_that_overlap_stay_in_step
              headers believed; references to other files followed
                  test_a_film_cut_off_is_counted_by_what_is_there
                  test_a_text_that_refers_to_another_file_is_refused
              shows of a list prepared under the names of their episodes; a picture of another
              shape stretched; loud sound wrapped
                  test_prepared_titles_of_a_list_keep_its_order_and_stay_apart
                  test_a_picture_that_changes_shape_is_prepared_without_distortion
                  test_loud_sound_is_clipped_and_does_not_wrap
              prepare writes in place, or does everything again
                  test_a_kill_while_preparing_loses_nothing_and_nothing_is_done_again
                  test_preparing_again_does_nothing_over_and_shares_are_disjoint
              novelty without the cross terms; peaks side by side
                  test_novelty_peaks_where_a_scene_begins
    harness/  two runs in one folder
                  test_a_folder_is_of_one_run_at_a_time
              a folder that imports from one that builds on it
                  test_imports_go_down_the_house_only
    lab/      seeds paired by their order; the sign of a discrepancy counted
                  test_the_findings_ask_what_they_say
              C of the SVM chosen on test files, or on files that it was fitted to
                  test_c_does_not_know_the_test_files
                  test_no_file_stands_on_both_sides
              the classes of the SVM mixed up; votes of sub-clips, and not their scores
                  test_the_svm_is_that_of_each_class_against_the_others_solved_alone
                  test_scores_are_averaged_and_not_votes_nor_softmax
"""

import collections
import copy
import doctest
import itertools
import json
import math
import os
import pickle
import re
import shlex
import shutil
import sys
import tracemalloc
import types
import wave
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
import torchvision
from matplotlib.figure import Figure

import data
import finetune
import harness.curves
import harness.run
import lab.bench
import lab.compare
import lab.evaluate
import lab.findings
import lab.show
import loss
import media.__main__
import models
import papers.avts
import papers.temporal
import pretrain
import sampler
from data import ESC50, AudioFrontEnd, Labeled, LabeledVideos, Titles, VideoFrontEnd
from harness.errors import BadInput, moved
from harness.fixtures import (
    EVENT,
    PAGES,
    SMALL,
    assert_equal,
    damage,
    fine_tune,
    fine_tuning_flags,
    load_checkpoint,
    onset,
    pretraining_flags,
    read_log,
    refused,
    run_script,
    torchrun,
    write_film,
)
from harness.run import Processes, Run
from media import format as streams
from media.format import Format, rng_of
from media.labels import esc50, ucf101
from media.reader import CENTRE, crop
from sampler import HierarchicalSampler, IidSampler

# A snippet as the toy world's: 1.6 s, 8 frames of 40 x 40 pixels, 16 kHz.
TINY = Format(frames=8, fps=5, short_side=40, crop=24, rate=16000, n_fft=1024, hop=256, mels=64)
NETWORKS = ("video", "audio", "video_head", "audio_head")  # entries of the checkpoint


# --------------------------------------------------------------------------------------------
# Sampler
# --------------------------------------------------------------------------------------------


def pairs(batch):
    """The samples of a batch without their keys: [(title, snippet)]."""
    return [(n, m) for n, m, _ in batch]


def by_title(batch):
    """{title: its snippets} of a batch."""
    groups = collections.defaultdict(list)
    for n, m, _ in batch:
        groups[n].append(m)
    return groups


def batches_of_epochs(batches, epochs):
    """All batches of the first epochs, one behind the other."""
    for epoch in range(epochs):
        batches.set_epoch(epoch)
        yield from batches


def test_the_example_in_the_docstring():
    result = doctest.testmod(sampler)
    assert result.attempted and not result.failed


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
        assert max(groups[0]) < 20
        assert max(groups[1]) - min(groups[1]) < 100


def test_windows_are_placed_uniformly():
    seen = collections.Counter()
    for batch in batches_of_epochs(HierarchicalSampler([64] * 4, 8, 4, 4), 40):
        seen.update(m for _, m, _ in batch)
    assert len(seen) == 64
    # Away from the ends, each snippet lies in w windows.
    drawn = np.array([seen[m] for m in range(3, 61)])
    assert abs(drawn / drawn.mean() - 1).max() < 0.35


def test_titles_are_drawn_uniformly_not_by_length():
    counts = [16] * 20 + [1600] * 20
    drawn = collections.Counter()
    for batch in batches_of_epochs(HierarchicalSampler(counts, 16, 4), 3):
        drawn.update(by_title(batch).keys())
    short = sum(drawn[n] for n in range(20))
    long = sum(drawn[n] for n in range(20, 40))
    assert abs(short / long - 1) < 0.05
    assert min(drawn.values()) > 0.8 * max(drawn.values())


def test_the_titles_of_a_minibatch_are_distinct():
    for batch in HierarchicalSampler(list(range(50, 90)), 64, 4, 16):
        assert len(by_title(batch)) == 16


def test_the_key_of_a_sample_is_seed_epoch_step_and_place_in_the_minibatch():
    batches = HierarchicalSampler(list(range(50, 90)), 64, 4, 16, seed=7)
    batches.set_epoch(2)
    keys = [key for _, _, key in batches.batch(5)]
    assert keys == [(7, 2, 5, place) for place in range(64)]


def test_an_epoch_of_the_papers_collections_has_the_steps_of_its_280k_iterations():
    """4.1: 3.6K films of 105 min; 581 shows, 9.2K episodes of 42 min. 7.3: 280K iterations."""
    movie = 3600 * [105 * 60 / 3.2]
    tv = 581 * [9200 / 581 * 42 * 60 / 3.2]
    steps = {}
    for name, lengths, epochs in (("Movie", movie, 20), ("Movie + TV", movie + tv, 10)):
        # Whole snippets, whose sum is that of the average lengths.
        counts = np.diff(np.cumsum([0, *lengths]).round().astype(int))
        steps[name] = epochs * len(HierarchicalSampler(counts, 512, k=16))
    assert steps == {"Movie": 276_840, "Movie + TV": 279_930}


def test_too_few_titles_are_repeated_evenly_without_repeating_a_snippet():
    for batch in HierarchicalSampler([40, 40, 40], 32, k=4):
        assert len(set(pairs(batch))) == 32
        sizes = [len(snippets) for snippets in by_title(batch).values()]
        assert sorted(sizes) == [8, 12, 12]


def test_a_title_that_comes_again_has_a_window_again():
    drawn = set()
    for batch in HierarchicalSampler([40, 40, 40], 32, k=4, w=8):
        for first in range(0, 32, 4):
            snippets = [m for _, m, _ in batch[first : first + 4]]
            assert max(snippets) - min(snippets) < 8
            drawn.update(snippets)
    assert min(drawn) < 10 and max(drawn) > 30


def test_no_two_draws_share_their_numbers():
    """Title and window of a group were once drawn from one stream: keys are padded with zeros."""
    batches = HierarchicalSampler([1000] * 1000, 1, k=1)
    drawn = np.array([pairs(batches.batch(step))[0] for step in range(2000)])
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.1


def test_epochs_differ_and_a_seed_repeats():
    def epoch_of(seed=0, epoch=0, titles=10):
        batches = HierarchicalSampler([100] * titles, 16, 4, seed=seed)
        batches.set_epoch(epoch)
        return [pairs(batch) for batch in batches]

    def titles_of(batches):
        return [[n for n, _ in batch] for batch in batches]

    first, second = epoch_of(), epoch_of(epoch=1)
    assert first == epoch_of() != epoch_of(seed=1)
    assert not any(a == b for a, b in zip(first, second))
    assert len(first) == 1000 // 16
    # Other titles; and other snippets, where there is one title only.
    assert titles_of(first) != titles_of(second)
    assert epoch_of(titles=1) != epoch_of(titles=1, epoch=1)


def test_short_titles_are_never_drawn():
    drawn = set()
    for batch in HierarchicalSampler([3, 50, 2, 60], 8, k=4):
        drawn |= by_title(batch).keys()
    assert drawn == {1, 3}


def test_ten_million_titles_need_the_list_of_their_counts():
    counts = np.random.default_rng(0).integers(1000, 3000, 10_000_000)
    tracemalloc.start()
    batches = HierarchicalSampler(counts, 512, 16)
    batches.batch(0)
    batches.batch(len(batches) - 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e6  # the array is kept as it came


@pytest.mark.parametrize("k", [1, 4, 16])
def test_scenes_are_the_fewest_around_a_snippet_that_hold_k(k):
    scenes = [[4, 20, 3, 9, 16, 1, 1, 30, 2], [40], [3] * 20]
    counts = [sum(lengths) for lengths in scenes]
    in_one_scene, drawn = 0, set()
    batches = HierarchicalSampler(counts, 3 * k, k, scenes=scenes)
    for batch in batches_of_epochs(batches, 40):
        for n, group in by_title(batch).items():
            edges = np.cumsum([0, *scenes[n]])
            assert len(set(group)) == k
            assert 0 <= min(group) and max(group) < edges[-1]
            ends = [min(group), max(group)]
            first, last = np.searchsorted(edges, ends, "right") - 1
            # Without the scene at one of the ends, less than k are left: none can be spared.
            without_first = edges[last + 1] - edges[first + 1]
            without_last = edges[last] - edges[first]
            assert first == last or without_first < k or without_last < k
            if first == last:
                in_one_scene += 1
            if n == 0:
                drawn |= set(group)
    assert in_one_scene > 50
    assert len(drawn) > 75  # not the long scenes only


def test_scenes_are_drawn_by_their_length():
    batches = HierarchicalSampler([100], 10, 10, scenes=[[80, 20]])
    long = []
    for epoch in range(2000):
        batches.set_epoch(epoch)
        snippets = [m for _, m, _ in batches.batch(0)]
        long.append(max(snippets) < 80)
    assert np.mean(long) == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(k=3),
        dict(k=0),
        dict(k=4, w=3),
        dict(k=16),
        dict(scenes=[[3, 4], [8]]),
        dict(w=4, scenes=[[4, 6], [12]]),
        dict(batch_size=0),
    ],
)
def test_what_the_sampler_refuses(wrong):
    with pytest.raises(ValueError):
        HierarchicalSampler([10, 12], **{"batch_size": 16, "k": 4, **wrong})


# --------------------------------------------------------------------------------------------
# The shuffled baseline
# --------------------------------------------------------------------------------------------


def pairs_of(batches):
    return [(n, m) for batch in batches for n, m, _ in batch]


def test_shuffled_snippets_come_once_an_epoch_in_an_order_of_their_own():
    counts = [7, 100, 31, 1]
    sampler = IidSampler(counts, batch_size=16)
    first = pairs_of(sampler)
    assert len(sampler) == 139 // 16 and len(first) == len(set(first)) == 8 * 16
    assert all(0 <= m < counts[n] for n, m in first)
    assert first == pairs_of(IidSampler(counts, batch_size=16))
    assert first != pairs_of(IidSampler(counts, batch_size=16, seed=1))
    sampler.set_epoch(1)
    second = pairs_of(sampler)
    assert first != second
    # What the first epoch had left over comes in others: nothing is never drawn.
    drawn = set(first) | set(second)
    for epoch in range(2, 30):
        sampler.set_epoch(epoch)
        drawn |= set(pairs_of(sampler))
    assert len(drawn) == 139


def test_a_shuffled_batch_draws_titles_by_their_length():
    """Where k = 1 draws distinct titles uniformly: the two baselines are not the same."""
    counts = [10] * 50 + [500]
    long = sum(n == 50 for n, _ in pairs_of(IidSampler(counts, batch_size=20)))
    assert long == pytest.approx(500, abs=20)
    uniform = HierarchicalSampler(counts, batch_size=20, k=1)
    assert sum(n == 50 for n, _ in pairs_of(uniform)) < 50


def test_the_key_of_a_shuffled_sample_is_its_place_too():
    batches = list(IidSampler([30, 40, 50], batch_size=24))
    keys = [key for batch in batches for *_, key in batch]
    assert keys == [(0, 0, step, place) for step in range(5) for place in range(24)]


def test_the_shuffled_baseline_needs_a_batch_of_snippets():
    with pytest.raises(ValueError, match="less than a batch"):
        IidSampler([5, 6], batch_size=12)


# --------------------------------------------------------------------------------------------
# Loss
# --------------------------------------------------------------------------------------------


def equation_1(z_v, z_a):
    """As it is printed, one pair at a time; the mean over the batch."""
    B, total = len(z_v), 0
    for i in range(B):
        positive = (z_v[i] @ z_a[i]).exp()
        negatives = 0
        for j in range(B):
            if j != i:
                negatives += (z_v[i] @ z_a[j]).exp() + (z_v[j] @ z_a[i]).exp()
        total -= (positive / (positive + negatives)).log()
    return total / B


def embeddings(B=7, d=5):
    """z_v, z_a (B, d) in fp64."""
    g = torch.Generator().manual_seed(0)
    z_v = torch.randn(B, d, dtype=torch.float64, generator=g, requires_grad=True)
    z_a = torch.randn(B, d, dtype=torch.float64, generator=g, requires_grad=True)
    return z_v, z_a


@pytest.mark.parametrize("tau", [None, 0.07])
def test_loss_is_equation_1_value_and_gradient(tau):
    z_v, z_a = embeddings()
    if tau is None:
        naive = equation_1(z_v, z_a)
    else:
        unit_v = z_v / z_v.norm(dim=1, keepdim=True)
        unit_a = z_a / z_a.norm(dim=1, keepdim=True)
        naive = equation_1(unit_v / tau, unit_a)
    ours = loss.nce_loss(z_v, z_a, tau)
    assert torch.allclose(ours, naive, rtol=1e-12)
    our_gradients = torch.autograd.grad(ours, [z_v, z_a])
    naive_gradients = torch.autograd.grad(naive, [z_v, z_a])
    for a, b in zip(our_gradients, naive_gradients):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-12)


def test_loss_at_the_start_is_the_log_of_the_choices():
    z = torch.zeros(16, 8)
    assert loss.nce_loss(z, z).item() == pytest.approx(np.log(2 * 16 - 1))


def test_loss_holds_for_huge_similarities_and_for_bf16():
    z_v = (100 * torch.randn(8, 64)).requires_grad_()
    z_a = (100 * torch.randn(8, 64)).requires_grad_()
    value = loss.nce_loss(z_v, z_a)
    value.backward()
    assert value.isfinite()
    assert z_v.grad.isfinite().all() and z_a.grad.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        assert loss.nce_loss(z_v, z_a).item() == pytest.approx(value.item(), rel=1e-5)
    assert loss.nce_loss(z_v.bfloat16(), z_a.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("shapes", [((1, 4), (1, 4)), ((3, 4), (4, 4)), ((3, 4, 1), (3, 4, 1))])
def test_loss_refuses_what_is_not_a_batch_of_pairs(shapes):
    video, audio = shapes
    with pytest.raises(ValueError):
        loss.nce_loss(torch.zeros(video), torch.zeros(audio))


@pytest.mark.parametrize("tau", [None, 0.1])
def test_discrepancy_sorts_the_pairs_of_equation_2(tau):
    z_v, z_a = (z.detach() for z in embeddings(12))
    title = torch.tensor([0] * 5 + [1] * 4 + [2] * 3)
    found = loss.discrepancy(z_v, z_a, title, tau, bins=10, pseudo_count=0.5)
    if tau:
        z_v = z_v / z_v.norm(dim=1, keepdim=True) / tau
        z_a = z_a / z_a.norm(dim=1, keepdim=True)
    pairs_of = {"match": [], "same": [], "other": []}
    for i in range(12):
        for j in range(12):
            if i == j:
                kind = "match"
            elif title[i] == title[j]:
                kind = "same"
            else:
                kind = "other"
            pairs_of[kind].append((z_v[i] @ z_a[j]).item())
    assert found["counts"] == {kind: len(values) for kind, values in pairs_of.items()}

    everything = sum(pairs_of.values(), [])
    edges = np.linspace(min(everything), max(everything), 11)
    assert found["edges"] == pytest.approx(edges.tolist(), abs=1e-5)
    p = {}
    for kind, values in pairs_of.items():
        counts, _ = np.histogram(values, edges)
        assert found["histograms"][kind] == counts.tolist()
        p[kind] = (counts + 0.5) / (counts + 0.5).sum()

    def kl(a, b):
        return float((p[a] * np.log(p[a] / p[b])).sum())

    assert found["kl_same_other"] == pytest.approx(kl("same", "other"))
    assert found["kl_same_match"] == pytest.approx(kl("same", "match"))
    assert found["kl_other_match"] == pytest.approx(kl("other", "match"))
    assert found["gap"] == pytest.approx(kl("other", "match") - kl("same", "match"))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_not_measured(value):
    z_v, z_a = (z.detach() for z in embeddings(12))
    z_a[3, 0] = value
    title = torch.tensor([0] * 6 + [1] * 6)
    for measure in (loss.discrepancy, loss.synchronisation):
        with pytest.raises(ValueError, match="a similarity is not finite"):
            measure(z_v, z_a, title)


def test_discrepancy_tells_a_shortcut_from_a_correspondence():
    g = torch.Generator().manual_seed(0)
    title = torch.arange(20).repeat_interleave(20)
    film, snippet, rest = (torch.randn(400, 32, generator=g) for _ in range(3))
    film = film[title]  # what only the title knows
    shortcut = loss.discrepancy(film, film + 0.1 * rest, title)
    matched = loss.discrepancy(snippet, snippet + 0.1 * rest, title)
    assert shortcut["kl_same_other"] > 1 and shortcut["kl_same_match"] < 0.3
    assert shortcut["gap"] > 1
    assert matched["kl_same_other"] < 0.05 and matched["kl_same_match"] > 1
    assert abs(matched["gap"]) < 0.3


@pytest.mark.parametrize("measure", [loss.discrepancy, loss.synchronisation])
@pytest.mark.parametrize("title", [[0, 0, 0, 0], [0, 1, 2, 3]])
def test_what_is_measured_needs_all_three_kinds_of_pairs(measure, title):
    z = torch.randn(4, 8)
    with pytest.raises(ValueError, match="two titles or more, and two snippets of one of them"):
        measure(z, z, torch.tensor(title))


@pytest.mark.parametrize("tau", [None, 0.1])
def test_synchronisation_is_the_fraction_of_pairs_in_both_directions(tau):
    """Against a loop over the pairs, of whole numbers, so that there are ties."""
    g = torch.Generator().manual_seed(1)
    z_v, z_a = torch.randint(1, 4, (2, 9, 2), generator=g).double()
    title = torch.tensor([0, 1, 0, 2, 1, 0, 2, 0, 3])
    found = loss.synchronisation(z_v.float(), z_a.float(), title, tau)
    if tau:
        z_v, z_a = z_v / z_v.norm(dim=1, keepdim=True), z_a / z_a.norm(dim=1, keepdim=True)

    def point(positive, negative):
        """1 for a pair that is told apart, 0.5 for a tie."""
        if round(positive.item(), 9) == round(negative.item(), 9):
            return 0.5
        return float(positive > negative)

    points = {"sync_same": [], "sync_other": []}
    for i, j in itertools.permutations(range(9), 2):
        name = "sync_same" if title[i] == title[j] else "sync_other"
        positive = z_v[i] @ z_a[i]
        points[name] += [point(positive, z_v[i] @ z_a[j]), point(positive, z_v[j] @ z_a[i])]
    assert found == pytest.approx({name: np.mean(points[name]) for name in points})
    assert all(0.5 in points[name] for name in points)


def test_synchronisation_is_of_the_order_and_not_of_the_scale_of_the_similarities():
    z_v, z_a = (z.detach().float() for z in embeddings(12))
    title = torch.arange(12) // 3
    found = loss.synchronisation(z_v, z_a, title)
    assert found == loss.synchronisation(1e-3 * z_v, 1e-3 * z_a, title)
    assert found == loss.synchronisation(7 * z_v, 1e6 * z_a, title)


@pytest.mark.parametrize("B, d", [(7, 5), (37, 32)])
def test_a_network_that_tells_nothing_apart_is_synchronised_at_chance(B, d):
    """Exactly, though a matrix product may add up in another order in each of its entries."""
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        z_v, z_a = torch.randn(2, 1, d, generator=g).expand(2, B, d).contiguous()
        assert loss.synchronisation(z_v, z_a, torch.arange(B) // 2) == loss.CHANCE


def test_synchronisation_tells_a_shortcut_from_a_correspondence():
    title = torch.arange(4).repeat_interleave(3)
    film = torch.eye(4)[title]  # what only the title knows
    snippet = torch.eye(12)
    assert loss.synchronisation(film, film, title) == {"sync_same": 0.5, "sync_other": 1.0}
    assert loss.synchronisation(snippet, snippet, title) == {"sync_same": 1.0, "sync_other": 1.0}
    assert loss.synchronisation(snippet, -snippet, title) == {"sync_same": 0.0, "sync_other": 0.0}


# --------------------------------------------------------------------------------------------
# Networks
# --------------------------------------------------------------------------------------------


def shapes_of(network):
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def assert_same_network(ours, theirs, x):
    """Names, shapes, outputs in training and testing, gradients in training; weights go both ways.

    In fp64, so that rounding hides nothing.
    """
    assert shapes_of(ours) == shapes_of(theirs)
    theirs.load_state_dict(ours.state_dict())
    ours.load_state_dict(theirs.state_dict())
    ours, theirs, x = ours.double(), theirs.double(), x.double()
    y, target = ours.train()(x), theirs.train()(x)
    assert torch.allclose(y, target, rtol=1e-9, atol=1e-9)
    y.square().sum().backward()
    target.square().sum().backward()
    with torch.no_grad():  # by the running statistics, which the step has moved
        assert torch.allclose(ours.eval()(x), theirs.eval()(x), rtol=1e-9, atol=1e-9)
    for (name, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters()):
        tolerance = 1e-9 * q.grad.abs().max().item()
        assert torch.allclose(p.grad, q.grad, rtol=1e-6, atol=tolerance), name


def parameters_of(network):
    return sum(p.numel() for p in network.parameters())


def test_video_network_is_torchvisions():
    torch.manual_seed(0)
    ours = models.r2plus1d_18(num_classes=400)
    assert parameters_of(ours) == 31_505_325
    with torch.device("meta"):  # Names and shapes need no values.
        bare = models.r2plus1d_18()
        fit = torchvision.models.video.r2plus1d_18().load_state_dict(
            bare.state_dict(), strict=False
        )
    assert parameters_of(bare) == 31_300_125
    assert fit.missing_keys == ["fc.weight", "fc.bias"] and not fit.unexpected_keys
    theirs = torchvision.models.video.r2plus1d_18()
    assert_same_network(ours, theirs, torch.randn(2, 3, 5, 12, 20))


def test_the_video_network_of_mixed_convolutions_is_torchvisions():
    torch.manual_seed(0)
    ours = models.mc3_18(num_classes=400)
    assert parameters_of(ours) == 11_695_440
    with torch.device("meta"):
        bare = models.mc3_18().state_dict()
        fit = torchvision.models.video.mc3_18().load_state_dict(bare, strict=False)
    assert fit.missing_keys == ["fc.weight", "fc.bias"] and not fit.unexpected_keys
    theirs = torchvision.models.video.mc3_18()
    assert_same_network(ours, theirs, torch.randn(2, 3, 5, 20, 28))


def test_audio_network_is_torchvisions():
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=50)
    theirs.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    ours = models.audio_resnet18(num_classes=50)
    assert_same_network(ours, theirs, torch.randn(2, 1, 48, 70))


@pytest.mark.parametrize("width", [8, 16])
def test_embeddings_and_maps_have_the_documented_shapes(width):
    model = models.AudioVisualModel(width)
    video, audio = torch.randn(2, 3, 16, 48, 48), torch.randn(2, 1, 96, 301)
    assert model.video.features(video).shape == (2, 8 * width, 2, 3, 3)
    assert model.audio.features(audio).shape == (2, 8 * width, 3, 10)
    z_v, z_a = model(video, audio)
    assert z_v.shape == z_a.shape == (2, 512)
    assert z_v.dtype == z_a.dtype == torch.float32
    assert model.video(video).shape == model.audio(audio).shape == (2, 8 * width)


def test_a_model_has_the_networks_that_it_is_told_and_mc3_never_halves_time():
    networks = {"video": "mc3_18", "audio": "audio_resnet18"}
    model = models.AudioVisualModel(8, d=32, networks=networks)
    assert model.networks == networks and isinstance(model.video, models.MixedConv18)
    assert models.AudioVisualModel(8).networks == {**networks, "video": "r2plus1d_18"}
    video, audio = torch.randn(2, 3, 5, 48, 33), torch.randn(2, 1, 96, 301)
    assert model.video.features(video).shape == (2, 64, 5, 3, 3)
    z_v, z_a = model(video, audio)
    assert z_v.shape == z_a.shape == (2, 32)


@pytest.mark.parametrize("network", ["r2plus1d_18", "mc3_18"])
def test_the_largest_map_is_known_from_the_sizes(network):
    net, sizes = models.NETWORKS[network](16), []
    for module in net.modules():
        module.register_forward_hook(lambda _, inputs, output: sizes.append(output[0].numel()))
    net(torch.randn(2, 3, 6, 29, 29))
    assert max(sizes) == models.largest_map(16, frames=6, crop=29, network=network)


def test_heads_are_two_convolutions_of_kernel_1_then_the_average():
    head = models.AudioVisualModel(8).video_head.eval()
    x = torch.randn(2, 64, 2, 3, 3)
    first, norm, _, second = head.net
    by_hand = second(torch.relu(norm(first(x)))).mean((2, 3, 4))
    assert first.kernel_size == second.kernel_size == (1, 1, 1)
    assert torch.allclose(head(x), by_hand, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert head(x).dtype == torch.float32


# --------------------------------------------------------------------------------------------
# Data: random numbers, and the titles
# --------------------------------------------------------------------------------------------


OF_A_SNIPPET = (
    streams.SNIPPET_CROP,
    streams.REPLACEMENT,
    streams.PLAYBACK,
    sampler.TITLES,
    sampler.SNIPPETS,
    sampler.SHUFFLE,
    streams.HELD_OUT_CLIP,
)
OF_A_CLIP = (streams.CLIP_START, streams.CLIP_SCALE, streams.CLIP_CROP, streams.SHOTS)
OF_A_BATCH = (streams.COLOUR, streams.BANDS, streams.MINING)


@pytest.mark.parametrize("drawn", [OF_A_SNIPPET, OF_A_CLIP], ids=["pretraining", "fine-tuning"])
def test_no_two_streams_of_random_numbers_collide(drawn):
    """By what comes out, since numpy pads a key with zeros: no stream is the stream 0."""
    key = (3, 1, 4, 1)
    numbers = [rng_of(key, stream).random() for stream in (*drawn, *OF_A_BATCH)]
    assert len(set(numbers)) == len(numbers)


def test_a_snippet_is_16_frames_and_3_2_seconds_of_sound(tmp_path):
    write_film(tmp_path / "film.mp4", seconds=20)
    titles = Titles(tmp_path, Format())
    assert titles.names == ["film.mp4"] and titles.counts == [6]
    sample = titles[0, 2, (0, 0, 0, 0)]
    video, waveform = sample["video"], sample["waveform"]
    assert video.shape == (3, 16, 158, 158) and video.dtype == torch.uint8
    assert waveform.shape == (153600,) and waveform.dtype == torch.float32
    assert sample["title"] == 0 and sample["failures"] == []
    assert onset(waveform) == pytest.approx(8.0 - 6.4, abs=0.02)  # snippet 2 starts at 6.4 s


def test_a_show_is_its_files_stitched_in_name_order(tmp_path):
    show = tmp_path / "show"
    show.mkdir()
    for name, seconds in (("e2.mp4", 4), ("e1.mkv", 7), ("e3.mp4", 10)):
        write_film(show / name, seconds=seconds)
    (show / "notes.txt").write_text("not media")
    write_film(tmp_path / "film.mp4", seconds=4)
    titles = Titles(tmp_path, Format())
    assert titles.names == ["film.mp4", "show"]
    assert titles.counts == [1, 2 + 1 + 3]
    files = [Path(path).name for path, _, _ in titles.parts[1]]
    assert files == ["e1.mkv", "e2.mp4", "e3.mp4"]
    for m, name, begins in ((1, "e1.mkv", 3.2), (2, "e2.mp4", 0), (4, "e3.mp4", 3.2)):
        _, waveform = titles.read(1, m)
        assert Path(titles.reader.path).name == name
        next_beep = -(begins + 0.25) % EVENT
        assert onset(waveform[12000:]) == pytest.approx(next_beep, abs=0.02)


@pytest.mark.parametrize("stride", [0.1, 0.5, 1.0, 1.3, 4.0])
def test_a_stride_counts_the_places_of_its_grid_that_hold_a_whole_snippet(stride):
    fmt = Format(frames=25, fps=25)
    for seconds in np.arange(0.003, 12, 0.07):
        holds = [m for m in range(200) if m * stride + fmt.seconds <= seconds + streams.TOLERANCE]
        assert fmt.whole_snippets(seconds, stride) == len(holds)
        whole = int((seconds + streams.TOLERANCE) / fmt.seconds)
        assert fmt.whole_snippets(seconds) == whole == fmt.whole_snippets(seconds, fmt.seconds)


def test_the_files_of_a_show_have_a_grid_each_and_one_time_axis(tmp_path):
    show = tmp_path / "show"
    show.mkdir()
    write_film(show / "e1.mp4", seconds=7, start=5.0)
    write_film(show / "e2.mp4", seconds=5)
    fmt = Format(short_side=40, crop=32)
    titles = Titles(tmp_path, fmt, stride=1.0)
    assert titles.counts == [4 + 2]
    for m, (name, second) in enumerate([("e1", 5), ("e1", 6), ("e1", 7), ("e1", 8), ("e2", 0)]):
        path, start = titles.locate(0, m)
        assert Path(path).stem == name and start == pytest.approx(second, abs=0.05)
    # The last snippet of the first file begins at 3 s and ends at 6.2 s, where the second begins.
    begins = [titles.begin(0, m) for m in range(6)]
    assert begins == pytest.approx([0, 1, 2, 3, 6.2, 7.2])
    with pytest.raises(IndexError):
        titles.begin(0, 6)
    batch = data.collate([titles[0, m, None] for m in (5, 2)])
    assert batch["begin"].dtype == torch.float64
    assert batch["begin"].tolist() == [begins[5], begins[2]]
    # An episode is a title with an axis of its own.
    episodes = titles.episodes().subset([1])
    assert episodes.counts == [2] and episodes.begin(0, 1) == 1.0
    assert episodes.locate(0, 1) == titles.locate(0, 5)
    # Without a stride each snippet begins where the last one ends.
    titles = Titles(tmp_path, fmt)
    assert titles.counts == [2 + 1]
    assert [titles.begin(0, m) for m in range(3)] == pytest.approx([0, 3.2, 6.4])


def test_on_a_grid_finer_than_a_snippet_flashes_and_beeps_are_in_step(tmp_path):
    write_film(tmp_path / "film.mp4", seconds=8)
    titles = Titles(tmp_path, Format(frames=25, fps=25, short_side=40, crop=32), stride=0.3)
    with_event = 0
    for m in range(titles.counts[0]):
        crops, waveform = titles.read(0, m)
        event = -titles.begin(0, m) % EVENT  # seconds into the snippet
        if 0.1 < event < 0.9:
            with_event += 1
            lit = [crop.mean() > 140 for crop in crops]
            assert lit.index(True) / 25 == pytest.approx(event, abs=0.05)
            assert onset(waveform) == pytest.approx(event, abs=0.02)
    assert with_event > 5


@pytest.mark.parametrize("stride", [0, -0.5, math.inf, math.nan])
def test_a_stride_that_makes_no_grid_is_refused(toy, stride):
    with pytest.raises(BadInput, match=f"--stride {stride:g}: must be above 0, in seconds"):
        Titles(toy / "films", TINY, stride=stride)


def test_a_stride_is_refused_with_scenes(toy):
    with pytest.raises(BadInput, match="--stride 0.8: must be left out with scenes"):
        Titles(toy / "films", TINY, scenes=True, stride=0.8)


def test_crops_come_from_their_key_alone(tmp_path):
    ramp = np.add.outer(np.arange(60), 2 * np.arange(80)).astype(np.uint8)
    image = ramp[..., None].repeat(3, 2)
    write_film(tmp_path / "film.mp4", seconds=4, size=(80, 60), image=image)
    titles = Titles(tmp_path, Format(short_side=60, crop=32))
    clips = [titles[0, 0, (0, 0, 0, place)]["video"].int() for place in range(30)]
    corners = {clip[0, 0, 0, 0].item() for clip in clips}
    assert len(corners) > 15  # they vary ...
    again = titles[0, 0, (0, 0, 0, 7)]["video"].int()
    assert torch.equal(clips[7], again)  # ... and repeat
    for clip in clips:  # all frames at one position
        assert (clip - clip[:, :1]).abs().float().mean() < 1
    centre = image[14:46, 24:56].transpose(2, 0, 1)
    assert np.array_equal(crop(image, CENTRE, 32), centre)
    video = titles[0, 0, None]["video"]
    assert abs(video[:, 0].float().mean() - centre.mean()) < 3


def test_a_snippet_that_fails_is_replaced_from_its_title_by_its_key(tmp_path):
    first, second = tmp_path / "a\n.mkv", tmp_path / "b.mkv"
    write_film(first, seconds=40, audio="flac")
    write_film(second, seconds=40, audio="flac")
    titles = Titles(tmp_path, Format())
    damage(first)
    samples = [titles[0, m, (0, 0, 0, m)] for m in range(12)]
    assert all(sample["title"] == 0 for sample in samples)
    bad = [m for m in range(12) if samples[m]["failures"]]
    assert 2 <= len(bad) <= 8
    for m in bad:  # a line for each try, whatever the name of the file
        for line in samples[m]["failures"]:
            assert "a .mkv: " in line and " at " in line and "\n" not in line
        # It begins where what was read begins.
        begin = samples[m]["begin"]
        _, waveform = titles.read(0, round(begin / 3.2))
        assert begin != titles.begin(0, m) and np.array_equal(waveform, samples[m]["waveform"])
    m = bad[0]
    again = Titles(tmp_path, Format())[0, m, (0, 0, 0, m)]
    assert torch.equal(again["video"], samples[m]["video"])
    assert torch.equal(again["waveform"], samples[m]["waveform"])
    assert again["failures"] == samples[m]["failures"]
    # A whole title is lost: any other replaces it, and is named as what it is.
    first.unlink()
    titles.close()
    assert titles[0, 3, (0, 0, 0, 3)]["title"] == 1
    second.unlink()
    titles.close()
    with pytest.raises(BadInput, match="in a row cannot be read"):
        titles[0, 3, (0, 0, 0, 3)]


def test_a_batch_stacks_its_samples_and_keeps_a_list_of_failures_for_each(toy):
    titles = Titles(toy / "films", TINY)
    samples = [titles[n, 3, (0, 0, 0, n)] for n in (5, 2)]
    samples[1]["failures"].append("a.mkv: damaged at 3.2 s")
    video, waveform = samples[1]["video"], samples[1]["waveform"]
    batch = data.collate(samples)
    assert torch.equal(batch["video"][1], video)
    assert torch.equal(batch["waveform"][1], waveform)
    assert batch["title"].tolist() == [5, 2]
    assert batch["failures"] == [[], ["a.mkv: damaged at 3.2 s"]]


def test_held_out_titles_are_whole_and_never_trained_on(toy):
    titles, drawn = Titles(toy / "films", TINY), set()
    for seed in range(5):
        train, held_out = titles.split(0.25, seed)
        assert len(held_out) == 2
        assert sorted(train.names + held_out.names) == titles.names
        drawn.add(tuple(held_out.names))
    assert len(drawn) > 1
    train, held_out = titles.subset([0]).split(0.25, seed=0)
    assert (len(train), len(held_out)) == (1, 0)


# --------------------------------------------------------------------------------------------
# Front-ends
# --------------------------------------------------------------------------------------------


def test_video_front_end_normalises():
    video = torch.randint(0, 256, (2, 3, 4, 8, 8), dtype=torch.uint8)
    mean = torch.tensor(VideoFrontEnd.MEAN).view(1, 3, 1, 1, 1)
    std = torch.tensor(VideoFrontEnd.STD).view(1, 3, 1, 1, 1)
    normalised = (video / 255 - mean) / std
    assert torch.allclose(VideoFrontEnd()(video, batch_key=(0,)), normalised, atol=1e-6)


def test_jitter_is_brightness_contrast_saturation_one_draw_a_clip():
    front_end, adjust = VideoFrontEnd(jitter=0.5), torchvision.transforms.functional
    changes = (adjust.adjust_brightness, adjust.adjust_contrast, adjust.adjust_saturation)
    g = torch.Generator().manual_seed(0)
    video = torch.randint(0, 256, (4, 3, 2, 8, 8), dtype=torch.uint8, generator=g)
    video[:, :, 1] //= 3  # a dark second frame: the mean is the clip's
    jittered = front_end(video, batch_key=(0,)) * front_end.std + front_end.mean
    factors = rng_of((0,), streams.COLOUR).uniform(0.5, 1.5, (3, 4))
    for i in range(4):
        image = video[i].flatten(1, 2) / 255  # frames below one another: one picture, one mean
        for change, factor in zip(changes, factors[:, i].tolist()):
            image = change(image, factor)
        assert torch.allclose(jittered[i].flatten(1, 2), image, atol=1e-3)
    assert not torch.equal(front_end(video, batch_key=(0,)), front_end(video, batch_key=(1,)))
    assert torch.equal(front_end(video), VideoFrontEnd()(video))  # without a key, none


def test_flip_turns_half_of_the_samples():
    video = torch.arange(8, dtype=torch.uint8).expand(200, 3, 2, 8, 8)
    flipped = VideoFrontEnd(flip=True)(video, batch_key=(0,))[:, 0, 0, 0, 0]
    share = (flipped > VideoFrontEnd()(video)[:, 0, 0, 0, 0]).float().mean()
    assert 0.35 < share < 0.65


def test_log_mel_is_the_papers_and_standardised():
    front_end, x = AudioFrontEnd(Format()), 0.1 * torch.randn(3, 153600)
    mel = torchaudio.transforms.MelSpectrogram(48000, n_fft=2048, hop_length=512, n_mels=96)
    assert front_end(x).shape == (3, 1, 96, 301)
    assert torch.allclose(front_end(x)[:, 0], (mel(x) + 1e-6).log(), atol=1e-5)
    front_end.measure(x)
    assert abs(front_end(x).mean()) < 1e-3 and abs(front_end(x).std() - 1) < 1e-3


def assert_bands(band, size, share):
    """Each row of `band` (B, size) has one band at most, of width U(0, share), anywhere."""
    width = band.sum(1)
    assert 0.8 * share * size < width.max() <= share * size + 1
    assert (band.int().diff(dim=1).abs().sum(1) <= 2).all()  # a single band
    assert 0.35 < width[width > 0].float().mean() / (share * size) < 0.7
    assert band.any(0).float().mean() > 0.9


@pytest.mark.parametrize("both", [False, True])
def test_one_band_drops_out_of_one_axis_or_of_both(both):
    share = 0.5 if both else 0.25
    front_end, x = AudioFrontEnd(Format(), drop=share, both=both), 0.1 * torch.randn(200, 20000)
    clean, dropped = front_end(x), front_end(x, batch_key=(0, 0))
    gone = ((dropped == 0) & (clean != 0))[:, 0]  # (200, 96, Q)
    mels, frames = gone.all(2), gone.all(1)  # (200, 96), (200, Q)
    assert torch.equal(gone, mels[:, :, None] | frames[:, None, :])
    assert_bands(mels, 96, share)
    assert_bands(frames, clean.shape[3], share)
    has_mels, has_frames = mels.any(1), frames.any(1)
    if both:
        assert has_mels.float().mean() > 0.9 and has_frames.float().mean() > 0.9
    else:
        assert not (has_mels & has_frames).any()
        assert 0.35 < has_mels.float().mean() < 0.65
        assert 0.35 < has_frames.float().mean() < 0.65
    assert torch.equal(dropped, front_end(x, batch_key=(0, 0)))


# --------------------------------------------------------------------------------------------
# Labelled sets
# --------------------------------------------------------------------------------------------


def test_a_list_that_names_a_missing_file_is_refused(toy):
    items, _ = ucf101(toy / "action", 1, True)
    missing = toy / "action/UCF-101/v_None.mp4"
    with pytest.raises(BadInput, match="v_None"):
        LabeledVideos([*items, (missing, 0)], TINY)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    """A ramp from left to right, one from top to bottom, and flashes."""
    root = tmp_path_factory.mktemp("labelled")
    row = np.arange(0, 192, 2, dtype=np.uint8)[:, None]
    ramp = np.tile(row, (48, 1, 3))  # (48, 96, 3)
    wide, tall, flashes = root / "w.mp4", root / "t.mp4", root / "v.mp4"
    write_film(wide, 1, size=(96, 48), audio=None, image=ramp)
    write_film(tall, 1, size=(48, 96), audio=None, image=ramp.transpose(1, 0, 2).copy())
    write_film(flashes, 9, size=(96, 48), audio=None)
    return [(wide, 0), (tall, 1), (flashes, 5)]


CLIPS = Format(frames=8, fps=10, short_side=48, crop=40)


def test_test_views_are_10_clips_by_3_crops(labelled):
    videos = LabeledVideos(labelled, CLIPS)
    for i in (0, 1):  # left, centre, right; or top, centre, bottom
        views, _ = videos[i, None]
        means = views[:3].float().mean((1, 2, 3, 4)).tolist()
        assert means == pytest.approx([39, 95, 151], abs=3)
    views, label = videos[2, None]
    assert views.shape == (30, 3, 8, 40, 40) and label == 5
    times = np.linspace(0, 9 - 0.8, 10)[:, None] + np.arange(8) / 10
    frame_times = np.floor(25 * times + 0.02) / 25  # when the frame on screen began
    lit = (frame_times + 1e-6) % EVENT < 0.2  # (10, 8)
    white = (views.float().mean((1, 3, 4)) > 140).numpy().reshape(10, 3, 8)
    assert (white == lit[:, None]).all()


def test_training_clips_vary_in_time_place_and_scale_with_their_key(labelled):
    videos = LabeledVideos(labelled, CLIPS, scale=(44, 60))
    flashes = [videos[2, (0, 0, 0, place)][0] for place in range(12)]
    assert all(clip.shape == (3, 8, 40, 40) for clip in flashes)
    assert torch.equal(flashes[3], videos[2, (0, 0, 0, 3)][0])
    lit = {tuple((clip.float().mean((0, 2, 3)) > 140).tolist()) for clip in flashes}
    assert len(lit) > 3  # they begin at different times
    ramps = [videos[0, (0, 0, 0, place)][0] for place in range(12)]
    rows = [clip.float().mean((0, 1, 2)) for clip in ramps]
    # The steeper the ramp, the smaller the picture.
    sides = [96 * 39 / (row[-1] - row[0]).item() for row in rows]
    assert 42 < min(sides) and max(sides) < 62 and max(sides) - min(sides) > 8
    assert np.std([row[0].item() for row in rows]) > 10  # cut at different positions


def test_a_video_shorter_than_a_clip_starts_again(tmp_path):
    path = write_film(tmp_path / "v.mp4", seconds=1, audio=None)
    fmt = Format(frames=32, fps=10, short_side=48, crop=48)
    clip, _ = LabeledVideos([(path, 0)], fmt)[0, (0,)]
    lit = clip.float().mean((0, 2, 3)) > 140
    assert lit.tolist() == [i % 10 < 2 for i in range(32)]


def test_sound_clips_are_cut_from_the_file(tmp_path):
    rate = 44100
    time = np.arange(5 * rate) / rate
    tone = 20000 * np.sin(2 * np.pi * 1000 * time) * (time > 2.5)
    with wave.open(str(tmp_path / "s.wav"), "wb") as out:
        out.setparams((1, 2, rate, 0, "NONE", None))
        out.writeframes(tone.astype("<i2").tobytes())
    sounds = ESC50([(tmp_path / "s.wav", 3)], Format(frames=15, fps=5))  # 3 s
    views, label = sounds[0, None]
    assert views.shape == (10, 144000) and label == 3
    onsets = [onset(view) for view in views[[0, 9]]]
    assert onsets == pytest.approx([2.5, 0.5], abs=0.01)
    clip, _ = sounds[0, (1, 2)]
    assert clip.shape == (144000,)
    assert torch.equal(clip, sounds[0, (1, 2)][0])


# --------------------------------------------------------------------------------------------
# Pretraining: the real script, at toy size
# --------------------------------------------------------------------------------------------


def arguments(toy, out, *more):
    """9 steps of 16 snippets an epoch: titles of 24 snippets, 6 to train on."""
    return pretrain.parse_args(pretraining_flags(toy, out, *more))


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Half a second each: only those of `run`, and of a script, are looked at."""

    def draw(path, *args, **kwargs):
        Path(path).write_bytes(b"-")

    monkeypatch.setattr(pretrain, "draw", draw)


def test_bare_arguments_are_the_papers():
    args = pretrain.parse_args([])
    assert Format.of(args) == Format()
    assert (args.k, args.w, args.batch_size, args.epochs) == (16, None, 512, 10)
    assert (args.lr, args.tau, args.jitter, args.warmup) == (2e-3, None, 0, 1)
    assert (args.data, args.width) == ("datasets/movies", 64)
    assert (args.held_out, args.gather) == (0.1, False)


def test_the_schedule_of_section_7_2():
    args = pretrain.parse_args([])
    rates = [pretrain.learning_rate(args, step, 100) for step in range(1001)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates[100] == pytest.approx(2e-3) == max(rates)
    assert rates[550] == pytest.approx(1e-3)
    assert rates[1000] == pytest.approx(0)
    assert np.diff(rates[:100]).std() < 1e-9


# A value that differs from the default, for each flag that makes another run.
ANOTHER_RUN = """
    --data datasets/tv
    --sampling iid
    --title episode
    --k 4
    --w 64
    --w scene
    --batch-size 64
    --share 32
    --gather
    --tau 0.07
    --jitter 1
    --epochs 5
    --lr 0.001
    --warmup 2
    --width 32
    --precision fp32
    --frames 8
    --fps 10
    --short-side 224
    --crop 100
    --rate 16000
    --n-fft 1024
    --hop 256
    --mels 64
    --language deu
    --held-out 0.2
    --held-out-snippets 16
    --seed 1
    --toy
    --toy --data datasets/movies
"""
# What may differ when a run is resumed.
SAME_RUN = """
    --workers 1
    --compile
    --save-minutes 7
    --keep
    --max-bad 0.5
    --measure-every 2
    --share 64
"""


def test_the_default_folder_differs_for_any_flag_that_makes_another_run():
    commands = ["", *(line.strip() for line in ANOTHER_RUN.strip().splitlines())]
    folders = [pretrain.parse_args(command.split()).out for command in commands]
    assert len(set(folders)) == len(folders)
    assert all(Path(folder).parent == Path("runs") for folder in folders)
    same = [line.strip() for line in SAME_RUN.strip().splitlines()]
    for command in same:
        assert pretrain.parse_args(command.split()).out == folders[0]
    # No flag is forgotten here.
    tried = {command.split()[0] for command in [*commands[1:], *same]}
    flags = {f"--{name.replace('_', '-')}" for name in vars(pretrain.parse_args([]))}
    assert tried == flags - {"--out"}


def test_a_run_writes_its_folder(run):
    checkpoint = load_checkpoint(run)
    model = models.AudioVisualModel(8)
    for name in NETWORKS:
        getattr(model, name).load_state_dict(checkpoint[name])
    assert checkpoint["networks"] == {"video": "r2plus1d_18", "audio": "audio_resnet18"}
    assert checkpoint["front_end"]["rate"] == 16000
    assert checkpoint["front_end"]["log_mel_std"] > 0
    assert checkpoint["args"]["k"] == 4
    assert checkpoint["progress"]["step"] == 9 and checkpoint["progress"]["snippets"] == 144
    assert len(read_log(run)) == 9 and all(np.isfinite(read_log(run)))
    # On held-out titles: before, every half of 9 steps, and at the end.
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "gap" in row] == [0, 4, 8, 9]
    assert read_log(run, "counts")[0] == {"match": 8, "same": 24, "other": 32}
    result = json.loads((run / "result.json").read_text())
    for name in loss.MEASURES:
        assert result["curves"][name] == [[0, 4, 8, 9], read_log(run, name)]
        assert result["final"][name] == read_log(run, name)[-1]
    picture = torchvision.io.decode_image(str(run / "curves.png"))
    assert picture.shape[1] > 200 and picture.float().std() > 10
    hidden = [path.name for path in run.glob(".*")]
    assert hidden == [".lock"]  # no temporary file is left


def test_a_run_trains_every_weight_by_adam(run):
    checkpoint = load_checkpoint(run)
    torch.manual_seed(0)
    fresh = models.AudioVisualModel(8)
    for name in NETWORKS:
        for key, before in getattr(fresh, name).named_parameters():
            if before.dim() > 1:
                assert not torch.equal(before, checkpoint[name][key]), (name, key)
    assert "exp_avg_sq" in checkpoint["optimizer"]["state"][0]  # Adam's (7.2)


def loss_without_networks(batch, batch_key, fronts, parallel, *rest):
    """Stands for `loss_of_share` in tests of what is read and saved, of which it takes the most."""
    return sum(weights.mean() for weights in parallel.parameters())


@pytest.fixture
def samples(monkeypatch):
    """The samples (title, snippet, key) that are read to train on, in order."""
    monkeypatch.setattr(pretrain, "loss_of_share", loss_without_networks)
    read, samples = Titles.__getitem__, []

    def noted(self, sample):
        _, _, key = sample
        if key is not None:
            samples.append(sample)
        return read(self, sample)

    monkeypatch.setattr(Titles, "__getitem__", noted)
    return samples


def test_each_batch_of_the_loop_is_k_snippets_a_title_and_each_epoch_differs(
    toy, tmp_path, samples
):
    args = arguments(toy, tmp_path / "run", "--epochs", 2)
    pretrain.main(args)
    rates = [pretrain.learning_rate(args, step, 9) for step in range(18)]
    assert read_log(args.out, "lr") == rates
    [group] = load_checkpoint(args.out)["optimizer"]["param_groups"]
    assert group["lr"] == rates[-1]
    assert len(samples) == 2 * 9 * 16
    assert len({key for _, _, key in samples}) == len(samples)  # no key twice
    for start in range(0, len(samples), 16):
        groups = by_title(samples[start : start + 16]).values()
        assert [len(set(group)) for group in groups] == [4] * 4
        assert all(max(group) - min(group) < 8 for group in groups)
    first, second = pairs(samples[:144]), pairs(samples[144:])
    assert first != second
    assert {key[1] for _, _, key in samples[:144]} == {0}
    assert {key[1] for _, _, key in samples[144:]} == {1}


def test_the_loop_draws_from_the_scenes_that_the_collection_has(toy, tmp_path, samples):
    args = arguments(toy, tmp_path / "run", "--w", "scene")
    pretrain.main(args)
    titles = Titles(toy / "films", TINY, scenes=True)
    train, _ = titles.split(args.held_out, args.seed)
    batches = HierarchicalSampler(train.counts, 16, 4, scenes=train.scenes)
    assert load_checkpoint(args.out)["args"]["w"] == "scene"
    assert [sum(lengths) for lengths in train.scenes] == train.counts
    assert samples == sum((batches.batch(step) for step in range(9)), [])


def test_the_loop_draws_from_the_shuffled_union_where_it_is_asked_to(toy, tmp_path, samples):
    args = arguments(toy, tmp_path / "run", "--w", 4)
    args.sampling, args.k, args.w = "iid", 1, None  # as `parse_args` sets them
    pretrain.main(args)
    train, _ = Titles(toy / "films", TINY).split(args.held_out, args.seed)
    batches = IidSampler(train.counts, 16)
    assert samples == sum((batches.batch(step) for step in range(9)), [])
    assert load_checkpoint(args.out)["args"]["sampling"] == "iid"


def test_a_checkpoint_from_before_there_was_a_choice_is_of_the_default(run, toy, tmp_path):
    checkpoint = load_checkpoint(run)
    for flag in ("sampling", "title", "precision"):
        del checkpoint["args"][flag]
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    for flag, value, before in (
        ("sampling", "iid", "hierarchical"),
        ("title", "episode", "show"),
        ("precision", "fp32", "bf16"),
    ):
        args = arguments(toy, tmp_path)
        setattr(args, flag, value)
        with pytest.raises(BadInput, match=f"{flag} {before} and not {value}"):
            pretrain.main(args)


def test_the_shuffled_baseline_has_neither_k_nor_w():
    args = pretrain.parse_args(["--sampling", "iid"])
    assert (args.k, args.w, args.out) == (1, None, "runs/movies-iid")
    for flags in (["--k", "4"], ["--w", "64"], ["--w", "scene"], ["--title", "episode"]):
        with pytest.raises(BadInput, match="--sampling iid: has neither --title nor --k nor --w"):
            pretrain.parse_args(["--sampling", "iid", *flags])


def test_with_title_episode_each_file_is_a_title_and_a_show_is_held_out_whole(
    shows, tmp_path, samples, capsys
):
    """Footnote 9: "either all or none of its episodes are included in the held-out set"."""
    flags = ["--data", shows / "films", "--held-out", 0.4, "--title", "episode", "--w", 6]
    args = arguments(shows, tmp_path / "run", *flags)
    pretrain.main(args)
    titles = Titles(shows / "films", TINY)
    train, held_out = titles.split(0.4, seed=0)
    assert len(train) == 3 and len(held_out) == 2  # shows
    episodes = load_checkpoint(args.out)["progress"]["titles"]
    assert episodes == [path for part in train.parts for path, _, _ in part]
    # Nine titles of 8 snippets are drawn from, four of them in each batch, and no other show.
    batches = HierarchicalSampler([8] * 9, 16, 4, 6)
    assert samples == sum((batches.batch(step) for step in range(len(batches))), [])
    # Equation 2 calls two snippets of different episodes S-, as the show is the same: of 2 shows
    # x 4 snippets, 8 pairs match, 2 x 4 x 3 are of one show, and 2 x 4 x 4 of two.
    printed = capsys.readouterr().out
    assert "pairs {'match': 8, 'same': 24, 'other': 32}" in printed
    own = pretrain.own_negatives(batches, [n // 3 for n in range(9)], share=16)
    assert "6.00 of them of its own title, " in printed
    assert f"{own:.2f} of its own show" in printed and own > 6
    assert "passes over shows" in printed and "over films" not in printed


def test_an_episode_has_the_snippets_and_the_scenes_of_its_file(shows):
    titles = Titles(shows / "films", TINY, scenes=True)
    episodes = titles.episodes()
    assert len(episodes) == 15 and episodes.counts == [8] * 15
    assert episodes.shows == [f"show{n:03d}" for n in range(5) for _ in range(3)]
    for n, name in enumerate(titles.names):
        of_show = [i for i, show in enumerate(episodes.shows) if show == name]
        assert sum((episodes.scenes[i] for i in of_show), []) == titles.scenes[n]
    assert [sum(scenes) for scenes in episodes.scenes] == episodes.counts
    ours, stitched = episodes[4, 3, None], titles[1, 8 + 3, None]
    assert torch.equal(ours["video"], stitched["video"])
    assert torch.equal(ours["waveform"], stitched["waveform"])


def test_files_that_were_prepared_with_less_than_a_run_asks_for_are_refused(toy, tmp_path):
    films = tmp_path / "films"
    shutil.copytree(toy / "films", films)
    note = {"frames": 8, "fps": 5.0, "short_side": 30, "rate": 16000, "language": None}
    (films / ".prepared.json").write_text(json.dumps(note))
    flags = pretraining_flags(toy, tmp_path / "run", "--data", films)
    status, _, errors = run_script("pretrain.py", *flags)
    *_, error = errors.splitlines()
    assert status == 2 and error.startswith("pretrain.py: error: ")
    assert f"--short-side 40: {films} was prepared with --short-side 30" in error
    assert not (tmp_path / "run").exists()


def test_films_are_the_same_titles_with_title_episode(toy):
    titles = Titles(toy / "films", TINY)
    episodes = titles.episodes()
    assert (episodes.parts, episodes.counts) == (titles.parts, titles.counts)
    assert episodes.scenes is None


def test_a_run_reports_the_negatives_of_its_title_and_the_passes_over_films_and_shows(run, toy):
    args = arguments(toy, run)
    train, _ = Titles(toy / "films", TINY).split(args.held_out, args.seed)
    batches = HierarchicalSampler(train.counts, 16, 4)
    assert pretrain.own_negatives(batches, range(6), share=16) == 2 * 4 - 2
    # Contrasted two by two, a snippet has another of its title with it, and no other negative.
    assert pretrain.own_negatives(batches, range(6), share=2) == 2
    assert pretrain.describe_passes(args, train, batches) == "1.00 passes over films"
    # A short show and five long films, drawn alike: each gives a sixth of 9 batches of 16.
    path, start, _ = train.parts[0][0]
    train.parts[0], train.counts[0] = [(path, start, 3), (path, start, 3)], 6
    batches = HierarchicalSampler(train.counts, 16, 4)
    drawn = len(batches) * 16 / 6
    expected = f"{drawn / 24:.2f} passes over films, {drawn / 6:.2f} passes over shows"
    assert pretrain.describe_passes(args, train, batches) == expected
    args.sampling = "iid"
    shuffled = IidSampler(train.counts, 16)
    share = len(shuffled) * 16 / sum(train.counts)
    expected = f"{share:.2f} passes over films, {share:.2f} passes over shows"
    assert pretrain.describe_passes(args, train, shuffled) == expected
    # Of a batch of 16, each other sample is of the same title with the chance of its length.
    lengths = np.array(train.counts)
    chance = (lengths * (lengths - 1)).sum() / (lengths.sum() * (lengths.sum() - 1))
    shuffled = IidSampler([n * 50 for n in train.counts], 16)
    assert pretrain.own_negatives(shuffled, range(6), share=16) == pytest.approx(
        2 * 15 * chance, rel=0.3
    )


def test_held_out_titles_are_measured_evenly_central_clean_and_in_testing_mode(run, toy):
    checkpoint = load_checkpoint(run)
    _, held_out = Titles(toy / "films", TINY).split(0.25, seed=0)
    model, state = models.AudioVisualModel(8).eval(), checkpoint["front_end"]
    for name in NETWORKS:
        getattr(model, name).load_state_dict(checkpoint[name])
    items = [held_out[n, m, None] for n in (0, 1) for m in (0, 8, 15, 23)]
    video = torch.stack([item["video"] for item in items])
    waveform = torch.stack([item["waveform"] for item in items])
    audio_front = AudioFrontEnd(TINY, mean=state["log_mel_mean"], std=state["log_mel_std"])
    title = torch.tensor([0] * 4 + [1] * 4)
    with torch.no_grad():
        z_v, z_a = model(VideoFrontEnd()(video), audio_front(waveform))
        expected = loss.discrepancy(z_v, z_a, title)
        synchronised = loss.synchronisation(z_v, z_a, title)
    edges = read_log(run, "edges")[-1]
    assert edges == pytest.approx(expected["edges"], rel=1e-4, abs=1e-3)
    for name, value in synchronised.items():
        assert read_log(run, name)[-1] == pytest.approx(value)


def measured(held_out, toy, out, *flags):
    """The rows that a measurement of an untrained network logs."""
    processes = Processes()
    processes.start()
    run = Run(out, processes, settings={})
    run.begin()
    pretrain.measure_held_out(
        run,
        held_out,
        models.AudioVisualModel(8),
        (VideoFrontEnd(), AudioFrontEnd(TINY)),
        arguments(toy, out, *flags),
        processes,
        step=3,
    )
    return run.rows


def test_a_measurement_is_printed_and_has_the_temperature_of_the_run(
    toy, tmp_path, monkeypatch, capsys
):
    taus = []
    for measure in (loss.discrepancy, loss.synchronisation):

        def noted(*inputs, tau, measure=measure):
            taus.append(tau)
            return measure(*inputs, tau=tau)

        monkeypatch.setattr(pretrain, measure.__name__, noted)
    _, held_out = Titles(toy / "films", TINY).split(0.25, seed=0)
    [row] = measured(held_out, toy, tmp_path / "run", "--tau", 0.3)
    assert taus == [0.3, 0.3]
    assert [name for name, value in row.items() if isinstance(value, float)] == list(loss.MEASURES)
    synchronised = f"sync {row['sync_same']:.2f} same title, {row['sync_other']:.2f} other"
    printed = f"gap {row['gap']:.3f}  {synchronised}  pairs {row['counts']}"
    assert printed in capsys.readouterr().out


def test_the_picture_of_a_run_has_a_panel_of_each_measure(run, toy, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(pretrain, "draw", harness.curves.draw)  # `no_pictures` has replaced it.
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    pretrain.draw_run(rows, arguments(toy, run), tmp_path / "curves.png")
    [figure] = saved
    shown = [(axes.get_title(), axes.get_ylabel()) for axes in figure.axes]
    *measures, training_loss, similarities = shown
    assert measures == list(loss.MEASURES.values())
    assert training_loss == ("training loss (Equation 1)", "nats")
    assert similarities == ("similarities at step 9", "density")
    for name, axes in zip(loss.MEASURES, figure.axes):
        heights = [list(line.get_ydata()) for line in axes.get_lines()]
        assert heights[0] == read_log(run, name)
        assert heights[1:] == ([[0.5, 0.5]] if name in loss.CHANCE else [])


def test_one_held_out_title_is_not_measured_and_its_picture_has_no_empty_axes(toy, tmp_path):
    """Equation 2 needs two titles."""
    out = tmp_path / "run"
    flags = pretraining_flags(toy, out, "--held-out", 0.1)
    status, printed, errors = run_script("pretrain.py", *flags)
    assert not status, errors
    assert "1 held out" in printed and read_log(out, "gap") == []
    picture = torchvision.io.decode_image(str(out / "curves.png"))[:3].float()
    _, _, W = picture.shape
    halves = picture[:, :, : W // 2], picture[:, :, W // 2 :]
    assert min(half.std() for half in halves) > 10


def test_a_held_out_title_that_is_lost_does_not_end_the_run(toy, tmp_path, capsys):
    """Its snippets are replaced by those of the other one, and then Equation 2 has no pairs."""
    films = tmp_path / "films"
    films.mkdir()
    for name in ("film000.mp4", "film001.mp4"):
        shutil.copy(toy / "films" / name, films)
    held_out = Titles(films, TINY)
    (films / "film001.mp4").unlink()
    assert measured(held_out, toy, tmp_path / "run") == []
    assert "step      3  not measured: equation 2 needs two titles" in capsys.readouterr().out


class Stop(Exception):
    """Ends a run at a place that a test chose, as a kill would."""


def test_the_toy_world_is_made_where_it_is_not_there(toy, tmp_path, monkeypatch):
    def stop(*inputs):
        raise Stop

    def make_toy(root):
        shutil.copytree(toy, root)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "make_toy", make_toy)
    monkeypatch.setattr(pretrain, "nce_loss", stop)
    flags = "--toy --k 4 --seed 1 --width 8 --batch-size 16 --workers 0"
    args = pretrain.parse_args(flags.split())
    with pytest.raises(Stop):
        pretrain.main(args)
    assert Path(args.out).name.startswith("toy-k4") and "seed1" in args.out
    assert (Path(args.out) / "checkpoint.pt").exists()


def stop_after(steps, monkeypatch):
    """Let pretraining compute the loss of this many steps, and then raise Stop."""
    calls, nce_loss = itertools.count(), pretrain.nce_loss

    def limited(*inputs):
        if next(calls) == steps:
            raise Stop
        return nce_loss(*inputs)

    monkeypatch.setattr(pretrain, "nce_loss", limited)


def save_after(steps, monkeypatch):
    """Let a checkpoint be due after this step, and after no other."""
    monkeypatch.setattr(Run, "save_is_due", lambda run, _: run.rows[-1]["step"] == steps)


def test_an_interrupted_run_resumes_to_the_same_weights(run, toy, tmp_path, monkeypatch):
    """Also: the number of reading processes changes nothing."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(6, patch)  # a step past the checkpoint, which must be forgotten
        save_after(5, patch)
        with pytest.raises(Stop):
            pretrain.main(arguments(toy, out, "--workers", 0))
    assert load_checkpoint(out)["progress"]["step"] == 5
    assert len(read_log(out)) == 6
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 99, "lo')  # as a kill in the middle of a line leaves it
    pretrain.main(arguments(toy, out, "--workers", 2))
    assert read_log(out) == read_log(run)
    assert read_log(out, "gap") == read_log(run, "gap")
    resumed, whole = load_checkpoint(out), load_checkpoint(run)
    for name in (*NETWORKS, "optimizer", "progress", "front_end", "networks"):
        assert_equal(resumed[name], whole[name])


def saved_steps(toy, out, monkeypatch, *flags):
    """The steps after which a run of nine steps saves a checkpoint."""
    saved, save = [], torch.save

    def noted(state, path):
        if "optimizer" in state:
            saved.append(state["progress"]["step"])
        save(state, path)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", noted)
        patch.setattr(pretrain, "loss_of_share", loss_without_networks)
        pretrain.main(arguments(toy, out, *flags))
    return saved


def test_a_checkpoint_is_written_every_few_minutes_and_after_each_epoch(toy, tmp_path, monkeypatch):
    always = saved_steps(toy, tmp_path / "always", monkeypatch, "--save-minutes", 0)
    assert always == list(range(10))
    # A clock on which a minute passes whenever it is asked: after each step, and after saving.
    minutes = itertools.count(0, 60)
    clock = types.SimpleNamespace(monotonic=lambda: next(minutes))
    monkeypatch.setattr(harness.run, "time", clock)
    some = saved_steps(toy, tmp_path / "some", monkeypatch, "--save-minutes", 7, "--epochs", 2)
    assert some[0] == 0 and {9, 18} < set(some) and len(some) < 8


def test_an_old_checkpoint_that_lacks_arguments_resumes_with_the_meaning_of_before(
    run, toy, tmp_path, monkeypatch
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(4, patch)
        save_after(3, patch)
        with pytest.raises(Stop):
            pretrain.main(arguments(toy, out))
    checkpoint = load_checkpoint(out)
    del checkpoint["networks"]
    del checkpoint["progress"]["counts"]
    for name in ("bad", "skipped"):
        del checkpoint["progress"][name]
    for name in ("language", "max_bad", "share"):
        del checkpoint["args"][name]
    checkpoint["args"]["compare"] = None  # an argument that is gone
    torch.save(checkpoint, out / "checkpoint.pt")
    with pytest.raises(BadInput, match="language None and not deu"):
        pretrain.main(arguments(toy, out, "--language", "deu"))
    pretrain.main(arguments(toy, out))
    assert read_log(out, "gap") == read_log(run, "gap")  # It stopped before the first of the loop.
    resumed, whole = load_checkpoint(out), load_checkpoint(run)
    for name in (*NETWORKS, "optimizer", "progress", "front_end", "networks"):
        assert_equal(resumed[name], whole[name])


@pytest.mark.parametrize(
    "change", [dict(titles="another.mp4"), dict(counts=99)], ids=["titles", "counts"]
)
def test_a_run_does_not_go_on_with_other_titles(run, toy, tmp_path, change):
    args, checkpoint = arguments(toy, tmp_path), load_checkpoint(run)
    train, _ = Titles(args.data, TINY).split(args.held_out, args.seed)
    progress = checkpoint["progress"]
    assert progress["titles"] == train.names and progress["counts"] == train.counts
    for name, other in change.items():
        progress[name][0] = other
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with pytest.raises(BadInput, match=r"no longer .* the titles .*\(see (another|film000)"):
        pretrain.main(args)


def test_a_run_of_episodes_resumes_however_its_folder_is_spelled(
    shows, tmp_path, monkeypatch, capsys
):
    """An episode is called by its path."""
    monkeypatch.chdir(shows)
    flags = ["--held-out", 0.4, "--title", "episode", "--w", 6]
    for spelling in ("films", "./films/"):
        pretrain.main(arguments(shows, tmp_path / "run", *flags, "--data", spelling))
    assert "resumed after step 4" in capsys.readouterr().out


def test_a_run_does_not_go_on_with_its_titles_in_another_order(run, toy, tmp_path):
    """A title is known by its number, so the same names in another order are other titles."""
    args, checkpoint = arguments(toy, tmp_path), load_checkpoint(run)
    checkpoint["progress"]["titles"].reverse()
    checkpoint["progress"]["counts"].reverse()
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    with pytest.raises(BadInput, match="no longer holds the titles .* in the same order"):
        pretrain.main(args)


def test_a_finished_run_is_left_as_it_is(run, toy):
    before = (run / "checkpoint.pt").read_bytes(), (run / "log.jsonl").read_text()
    pretrain.main(arguments(toy, run))
    assert before == ((run / "checkpoint.pt").read_bytes(), (run / "log.jsonl").read_text())


def spoil_loss(z_v):
    return float("nan")


def spoil_gradient(z_v):
    return (0 * z_v).sqrt().sum()


@pytest.mark.parametrize("spoil", [spoil_loss, spoil_gradient])
def test_a_step_that_is_not_finite_is_skipped(toy, tmp_path, monkeypatch, spoil):
    """Neither weights, nor running statistics, nor Adam's moments get it, and it is counted."""
    calls, states = itertools.count(1), []

    def spoiled(z_v, z_a, tau):
        value = loss.nce_loss(z_v, z_a, tau)
        return value + spoil(z_v) if next(calls) == 3 else value

    def noted(run, state):
        states.append(copy.deepcopy(state))

    monkeypatch.setattr(pretrain, "nce_loss", spoiled)
    monkeypatch.setattr(Run, "save", noted)
    out = tmp_path / "run"
    pretrain.main(arguments(toy, out, "--save-minutes", 0))
    before, skipped, after = states[2:5]  # after two steps, three and four
    for name in NETWORKS:
        assert_equal(before[name], skipped[name])
    assert_equal(before["optimizer"]["state"], skipped["optimizer"]["state"])
    with pytest.raises(AssertionError):
        assert_equal(skipped["video"], after["video"])
    progress = states[-1]["progress"]
    assert (progress["skipped"], progress["snippets"], progress["step"]) == (1, 8 * 16, 9)
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    [row] = [row for row in rows if "not_finite" in row]
    assert row["step"] == 3 and "loss" not in row and row["skipped"] == 1
    assert len(read_log(out)) == 8 and all(np.isfinite(read_log(out)))


def test_ten_steps_in_a_row_that_are_not_finite_end_a_run(toy, tmp_path, monkeypatch, capsys):
    calls = itertools.count(1)

    def spoiled(*inputs):
        value = loss_without_networks(*inputs)
        return value * float("inf") if 3 <= next(calls) != 6 else value

    monkeypatch.setattr(pretrain, "loss_of_share", spoiled)
    out = tmp_path / "run"
    with pytest.raises(BadInput, match="10 steps in a row .* is sound"):
        pretrain.main(arguments(toy, out, "--epochs", 2))
    kept = load_checkpoint(out)
    assert kept["progress"]["step"] == 16  # three are skipped, the sixth is trained, ten more
    assert kept["progress"]["skipped"] == 13 and kept["progress"]["snippets"] == 3 * 16
    assert all(weight.isfinite().all() for weight in kept["video"].values())


def test_a_run_counts_what_it_replaces_and_stops_when_it_is_too_much(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "loss_of_share", loss_without_networks)
    films = tmp_path / "films"
    shutil.copytree(toy / "films", films)
    for path in films.iterdir():
        damage(path, (0.5, 0.6))
    lenient, strict = tmp_path / "lenient", tmp_path / "strict"
    pretrain.main(arguments(toy, lenient, "--data", films, "--max-bad", 1))
    bad = read_log(lenient, "bad")
    lines = (lenient / "bad.txt").read_text().splitlines()
    assert bad == sorted(bad)
    assert bad[-1] == load_checkpoint(lenient)["progress"]["bad"]
    assert 5 < bad[-1] <= len(lines)  # a line for each try
    assert all(line.startswith("epoch 1 step ") and "film0" in line for line in lines)

    with pytest.raises(BadInput, match=r"could not be read.* --max-bad 0.01"):
        pretrain.main(arguments(toy, strict, "--data", films))
    stopped = load_checkpoint(strict)["progress"]
    assert stopped["bad"] > 1 and stopped["step"] < 9
    assert (strict / "bad.txt").exists()
    for path in films.iterdir():  # fixed
        shutil.copy(toy / "films" / path.name, path)
    pretrain.main(arguments(toy, strict, "--data", films))
    assert load_checkpoint(strict)["progress"]["bad"] == stopped["bad"]
    assert len(read_log(strict)) == 9


def first_step(toy, args, gather):
    """Loss and gradient norm of step 0, as one process gets them from the two shares in turn."""
    titles, _ = Titles(toy / "films", TINY).split(args.held_out, args.seed)
    torch.manual_seed(args.seed)
    model = models.AudioVisualModel(args.width)
    video_front, audio_front = VideoFrontEnd(args.jitter), AudioFrontEnd(TINY)
    middles = [titles.read(n, titles.counts[n] // 2)[1] for n in range(len(titles))]
    audio_front.measure(torch.from_numpy(np.stack(middles)))
    z_v, z_a, losses = [], [], []
    samples = HierarchicalSampler(titles.counts, 16, args.k, args.w, args.seed).batch(0)
    for share in range(2):
        of_share = samples[8 * share : 8 * share + 8]
        batch = data.collate([titles[sample] for sample in of_share])
        key = (args.seed, 0, 0, share)
        v, a = model(video_front(batch["video"], key), audio_front(batch["waveform"], key))
        z_v.append(v)
        z_a.append(a)
        losses.append(loss.nce_loss(v, a, args.tau))
    if gather:
        total = loss.nce_loss(torch.cat(z_v), torch.cat(z_a), args.tau)
    else:
        total = sum(losses) / 2
    total.backward()
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), torch.inf)
    return total.item(), norm.item()


def test_the_loss_and_the_gradient_of_a_step_are_the_means_of_its_shares(
    toy, tmp_path, monkeypatch
):
    out = tmp_path / "one"
    flags = pretraining_flags(toy, out, "--tau", 0.3, "--jitter", 0.4, "--share", 8)
    args = pretrain.parse_args(flags)
    with monkeypatch.context() as patch, pytest.raises(Stop):
        stop_after(2, patch)  # after the first step, which has two shares
        pretrain.main(args)
    expected, norm = first_step(toy, args, gather=False)
    assert read_log(out)[0] == pytest.approx(expected, rel=1e-5)
    assert read_log(out, "grad_norm")[0] == pytest.approx(norm, rel=1e-4)


def test_gather_contrasts_the_whole_batch_of_two_processes(toy, tmp_path):
    out = tmp_path / "two"
    flags = pretraining_flags(toy, out, "--tau", 0.3, "--jitter", 0.4, "--share", 8, "--gather")
    printed = torchrun("pretrain.py", *flags)
    assert "batch     16 = 2 x 8, 16 contrasted together: k = 4" in printed
    expected, norm = first_step(toy, pretrain.parse_args(flags), gather=True)
    assert len(read_log(out)) == 9
    assert read_log(out, "counts")[0] == {"match": 8, "same": 24, "other": 32}
    assert read_log(out)[0] == pytest.approx(expected, rel=1e-5)
    assert read_log(out, "grad_norm")[0] == pytest.approx(norm, rel=1e-4)
    checkpoint = load_checkpoint(out)
    for name in NETWORKS:
        assert not any(key.startswith("module.") for key in checkpoint[name])


def test_what_pretraining_refuses(toy, run, tmp_path, monkeypatch):
    def refusal(*argv):
        flags = [*SMALL, "--data", toy / "films", "--out", tmp_path / "new"]
        return refused("pretrain.py", *flags, *argv)

    error = refusal("--k", 5, "--w", 5)
    assert "--k 5: must be a divisor of --share, 16, which is contrasted together" in error
    assert "--share 5: must be 2 or more, and a divisor of --batch-size, 16" in refusal(
        "--share", 5
    )
    assert "--share 1: must be 2 or more" in refusal("--share", 1, "--k", 1)
    assert "--share 32: must be" in refusal("--share", 32)
    error = refusal("--share", 8, "--gather")
    assert "--gather True: must be left out" in error and "none can wait for its turn" in error
    assert "--w 3: must be scene, or --k (4) or more" in refusal("--w", 3)
    assert "--w: x: must be scene, or a number" in refusal("--w", "x")
    assert "none: no such folder" in refusal("--data", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no media files" in refusal("--data", tmp_path / "empty")
    error = refusal("--k", 32, "--w", 32, "--batch-size", 32)
    assert "every title is shorter than k = 32" in error
    error = refusal("--out", run, "--lr", 0.1, "--epochs", 1)
    assert "holds a run of other arguments (lr 0.002 and not 0.1)" in error
    assert "--crop 64: must be above 0, and --short-side (40) or less" in refusal("--crop", 64)
    assert "--tau 0.0: must be above 0" in refusal("--tau", 0)
    for flag in ("--lr", "--jitter", "--fps"):
        for value in ("inf", "nan"):
            assert f"{flag} {value}: must be a finite number" in refusal(flag, value)
    assert "must be below 2 ** 63" in refusal("--seed", 2**63)
    error = refusal("--n-fft", 51200)
    assert "--n-fft 51200: must be less than twice the 8 / 5 s of a snippet at 16000 Hz" in error
    # 3 / 7 s have 6857.1 samples, of which 6857 are read: as many as half a window may not have.
    odd = ["--frames", 3, "--fps", 7, "--n-fft"]
    assert "--n-fft 13714: must be less" in refusal(*odd, 13714)
    assert "--fps 0.0: must be above 0" in refusal("--fps", 0)
    assert "--held-out-snippets 1: must be 2 or more" in refusal("--held-out-snippets", 1)
    assert "argument --k: invalid int value: 'many'" in refusal("--k", "many")

    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "checkpoint.pt").write_bytes(pickle.dumps(os.getcwd))
    assert "no checkpoint of ours in it (checkpoint.pt: " in refusal("--out", broken)
    (broken / "checkpoint.pt").rename(broken / "last.pt")
    assert "holds last.pt" in refusal("--out", broken)
    (tmp_path / "file").write_text("mine")
    assert "File exists" in refusal("--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"

    monkeypatch.setenv("WORLD_SIZE", "3")
    error = refusal("--share", 8)
    assert "--batch-size 16: must be 8 for each process or a multiple" in error
    # Nothing was left behind.
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "empty", "file"]


# --------------------------------------------------------------------------------------------
# Fine-tuning: the real script, at toy size
# --------------------------------------------------------------------------------------------


def test_fine_tuning_defaults_are_the_papers():
    for task, epochs in (("ucf101", 150), ("hmdb51", 200), ("esc50", 200)):
        args = finetune.parse_args(["--task", task])
        assert (args.epochs, args.batch_size, args.lr) == (epochs, 96, 0.2)
        assert (args.warmup, args.weight_decay, args.mask) == (25, 1e-4, 0.5)
        assert args.frames / args.fps == (3.0 if task == "esc50" else 3.2)
        assert finetune.TASKS[task]["width"] == 64
        finetune.set_sizes(args, finetune.TASKS[task], {"crop": 158})
        assert (args.crop, args.scale, args.short_side) == (158, [181, 226], 190)
    args = finetune.parse_args(["--task", "ucf101"])
    rates = [finetune.learning_rate(epoch, args) for epoch in range(151)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[25] == pytest.approx(0.2) == max(rates)
    assert rates[150] == pytest.approx(0)


@pytest.mark.parametrize("task, backbone", [("toy-action", "video"), ("toy-sound", "audio")])
def test_fine_tuning_takes_the_pretrained_weights_and_counts_each_test_file_once(
    run, toy, tmp_path, task, backbone
):
    out, ckpt = tmp_path / "run", run / "checkpoint.pt"
    result, printed = fine_tune(toy, out, task, "--ckpt", ckpt)
    assert f"weights: {backbone} of {ckpt} (epoch 1, step 9, k 4)" in printed
    assert (result["pretraining_epoch"], result["pretraining_step"]) == (1, 9)
    assert "new: fc.weight, fc.bias" in printed
    assert result["tests_of_split"] == {"1": 20} and len(result["accuracy_of_class"]) == 10
    right = result["accuracy"] * 20
    assert right == pytest.approx(round(right))
    files = {path.name for path in out.iterdir()}
    assert {"result.json", "confusion.png", "log.jsonl", "split1.pt"} <= files
    kept = torch.load(out / "split1.pt", weights_only=True)
    pretrained = load_checkpoint(run)["front_end"]
    assert kept["front_end"]["log_mel_mean"] == pretrained["log_mel_mean"]
    again, printed = fine_tune(toy, out, task, "--ckpt", ckpt)
    assert again == result and "was finished before" in printed


@pytest.fixture
def steps(monkeypatch):
    """What the loop of fine-tuning gives to the network, and the labels: [(x, labels)]."""
    steps, forward = [], models.Backbone.forward
    cross_entropy = torch.nn.functional.cross_entropy

    def noted_forward(self, x):
        if self.training:
            steps.append([x.clone()])
        return forward(self, x)

    def noted_loss(logits, labels):
        steps[-1].append(labels.clone())
        return cross_entropy(logits, labels)

    monkeypatch.setattr(models.Backbone, "forward", noted_forward)
    monkeypatch.setattr(torch.nn.functional, "cross_entropy", noted_loss)
    return steps


def fine_tuning_arguments(toy, out, task, *more):
    """Two epochs of two steps, from scratch, without warm-up."""
    return finetune.parse_args(fine_tuning_flags(toy, out, task, "--warmup", 0, *more))


def expected_inputs(train, args, front_end):
    """What each step should give to the network: its own clips, augmented by its own key."""
    for batch in finetune.own_shares(len(train), 0, args, Processes()):
        clips = torch.stack([train[item][0] for item in batch])
        labels = torch.tensor([train.items[i][1] for i, _ in batch])
        seed, epoch, step, _ = batch[0][1]
        yield front_end(clips, (seed, epoch, step, 0)), labels


def test_each_step_of_fine_tuning_flips_and_jitters_its_own_clips(toy, tmp_path, steps):
    args = fine_tuning_arguments(toy, tmp_path / "run", "toy-action")
    finetune.main(args)
    items, _ = ucf101(toy / "action", 1, True)
    train = LabeledVideos(items, TINY, scale=(36, 46))
    front_end = VideoFrontEnd(jitter=0.4, flip=True)
    expected = list(expected_inputs(train, args, front_end))
    assert len(steps) == len(expected) == 4
    for (x, labels), (right_x, right_labels) in zip(steps, expected):
        assert torch.equal(labels, right_labels)
        assert torch.allclose(x, right_x, atol=1e-5)


def test_each_step_of_fine_tuning_masks_its_own_sounds(toy, tmp_path, steps):
    args = fine_tuning_arguments(toy, tmp_path / "run", "toy-sound")
    finetune.main(args)
    items, _ = esc50(toy / "sound", 1, True)
    assert_steps_are_of(ESC50(items, TINY), args, steps)


def assert_steps_are_of(train, args, steps):
    """The four steps of a fine-tuning from scratch had the sounds of this set, with their masks."""
    front_end = AudioFrontEnd(TINY, drop=0.5, both=True)
    front_end.measure(torch.stack([train[i, (0, 0, 0, i)][0] for i in range(len(train))]))
    expected = list(expected_inputs(train, args, front_end))
    assert len(steps) == len(expected) == 4
    for (x, labels), (right_x, right_labels) in zip(steps, expected):
        assert torch.equal(labels, right_labels)
        assert torch.allclose(x, right_x, atol=1e-4)


def test_fine_tuning_is_sgd_with_momentum_and_weight_decay(toy, tmp_path, steps):
    """Against the update of section 7.2, written out by hand."""
    out, decay = tmp_path / "run", 0.1
    args = fine_tuning_arguments(
        toy, out, "toy-sound", "--epochs", 1, "--lr", 0.01, "--weight-decay", decay
    )
    finetune.main(args)
    torch.manual_seed(args.seed)
    net = models.audio_resnet18(8, 10).train()
    velocity = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    trained = list(steps)
    assert len(trained) == 2
    for step, (x, labels) in enumerate(trained):
        lr = finetune.learning_rate(step / 2, args)
        net.zero_grad()
        (-net(x).log_softmax(1)[range(len(x)), labels]).mean().backward()
        with torch.no_grad():
            for name, p in net.named_parameters():
                velocity[name] = 0.9 * velocity[name] + p.grad + decay * p
                p -= lr * velocity[name]
    kept = torch.load(out / "split1.pt", weights_only=True)["model"]
    for name, p in net.named_parameters():
        assert torch.allclose(kept[name], p, rtol=1e-3, atol=1e-5), name


def test_a_probe_is_the_logistic_regression_on_frozen_features():
    rng, train = np.random.default_rng(0), Labeled.__new__(Labeled)
    train.items = [(f"{i}", i % 3) for i in range(60)]
    spread = rng.normal(size=(60, 2, 5)) * [1, 10, 0.1, 1, 0]
    x = spread + np.arange(60)[:, None, None] % 3 * [1, 0, 0.1, 0, 0] + 7
    features = {f"{i}": torch.from_numpy(x[i]).float() for i in range(60)}
    fc = torch.nn.Linear(5, 3)
    finetune.fit_probe(fc, features, train.items)
    # At the minimum the gradient of mean cross-entropy is that of |W|^2 / 2N, for W on
    # standardised features.
    z, y = torch.from_numpy(x).flatten(0, 1), torch.arange(60).repeat_interleave(2) % 3
    mean, std = z.mean(0), z.std(0).clamp(min=1e-6)
    z = (z - mean) / std
    weight = fc.weight.detach().double() * std
    bias = fc.bias.detach() + fc.weight.detach().double() @ mean
    error = (z @ weight.T + bias).softmax(1) - torch.nn.functional.one_hot(y, 3)
    assert error.T @ z / 120 == pytest.approx(-weight / 60, abs=1e-4)
    assert weight.abs().max() > 0.5


NAMES = ["walk", "run", "jump"]


def test_shots_are_so_many_files_of_each_class_and_those_of_fewer_are_among_them():
    items = [(f"{i}", label) for label in range(3) for i in range(100 * label, 100 * label + 40)]
    items = [items[i] for i in np.random.default_rng(0).permutation(120)]

    def draw(shots, seed=0, split=1, draw=0):
        return finetune.draw_shots(items, NAMES, shots, seed, split, draw)

    five = draw(5)
    assert set(five) <= set(items) and len(set(five)) == len(five)
    assert [label for _, label in five] == 5 * [0, 1, 2]
    for shots in (1, 2, 5):
        assert draw(shots) == five[: 3 * shots]
    for other in (draw(5, seed=1), draw(5, split=2), draw(5, draw=1)):
        assert len(set(other) & set(five)) < 8
    # A class draws for itself: by the place in the list of its files, no two draw alike.
    files = [[item for item in items if item[1] == label] for label in range(3)]
    places = [[files[label].index(item) for item in five[label::3]] for label in range(3)]
    assert places[0] != places[1] != places[2]
    with pytest.raises(BadInput, match="--shots 3: in split 1, class jump has only 2 files"):
        finetune.draw_shots(files[0] + files[1] + files[2][:2], NAMES, 3, 0, 1)


@pytest.mark.parametrize("task, read", [("action", ucf101), ("sound", esc50)])
def test_few_files_are_repeated_evenly_to_the_length_of_all(toy, tmp_path, task, read):
    args = fine_tuning_arguments(toy, tmp_path, f"toy-{task}", "--shots", 3, "--split", 2)
    items, names = read(toy / task, 2, True)
    sets = finetune.read_splits(args, finetune.TASKS[args.task], TINY)
    train, test, _ = sets[2]
    drawn = finetune.draw_shots(items, names, 3, args.seed, 2)
    assert len(train) == len(items) and set(train.items) == set(drawn)
    times = collections.Counter(train.items).values()
    assert max(times) - min(times) == 1
    counts = collections.Counter(label for _, label in train.items)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert test.items == read(toy / task, 2, False)[0]
    # A probe draws from all files, many times.
    args = fine_tuning_arguments(toy, tmp_path, f"toy-{task}", "--shots", 1, 3, "--probe")
    train, *_ = finetune.read_splits(args, finetune.TASKS[args.task], TINY)[1]
    assert train.items == read(toy / task, 1, True)[0]


def test_with_few_files_an_epoch_keeps_its_steps_and_each_repetition_has_a_clip_of_its_own(
    toy, tmp_path, steps, capsys
):
    args = fine_tuning_arguments(toy, tmp_path / "run", "toy-sound", "--shots", 1)
    finetune.main(args)
    assert "train 10 of 40, test 20" in capsys.readouterr().out
    items, names = esc50(toy / "sound", 1, True)
    drawn = finetune.draw_shots(items, names, 1, args.seed, 1)
    train = ESC50(4 * drawn, TINY)
    assert_steps_are_of(train, args, steps)
    epoch = list(finetune.own_shares(40, 0, args, Processes()))[:2]
    clips = {i: train[i, key][0] for batch in epoch for i, key in batch}
    for i, j in itertools.combinations(range(0, 40, 10), 2):  # of the first file that was drawn
        assert not torch.equal(clips[i], clips[j])
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["summary"][0].startswith("toy-sound --shots 1 split 1: ")
    assert result["pretraining_epoch"] is result["pretraining_step"] is None
    with pytest.raises(BadInput, match="shots .1. and not .2."):
        finetune.main(fine_tuning_arguments(toy, tmp_path / "run", "toy-sound", "--shots", 2))


def few_shot_sets():
    """Of 3 classes 8 files to train on and 4 to test on, and features that tell them apart."""
    files = [
        (f"{half}{i}", i % 3) for half, number in (("a", 24), ("b", 12)) for i in range(number)
    ]
    train, test = Labeled.__new__(Labeled), Labeled.__new__(Labeled)
    train.items, test.items = files[:24], files[24:]
    rng = np.random.default_rng(0)
    features = {}
    for path, label in files:
        x = 3 * np.eye(3)[label] + 0.1 * rng.normal(size=(2, 3))
        features[path] = torch.from_numpy(x).float()
    return {1: (train, test, NAMES)}, features


def test_a_probe_of_few_files_knows_no_others(monkeypatch):
    args = types.SimpleNamespace(shots=[1, 2], seed=0)
    sets, features = few_shot_sets()
    train, test, _ = sets[1]
    processes = Processes()
    processes.start()

    def probe():
        return finetune.probe_shots(torch.nn.Linear(3, 3), features, 1, sets, args, processes)

    monkeypatch.setattr(finetune, "DRAWS", 2)
    assert probe() == {1: 1.0, 2: 1.0}
    draws = [finetune.draw_shots(train.items, NAMES, 2, 0, 1, draw) for draw in range(2)]
    assert set(draws[0][:3]) != set(draws[1][:3])
    undrawn = set(train.items) - {*draws[0], *draws[1]}
    assert len(undrawn) >= 12
    for path, _ in undrawn:
        features[path] = torch.full((2, 3), torch.nan)
    assert probe() == {1: 1.0, 2: 1.0}
    # The three files of the second draw of one file a class change their places.
    paths = [path for path, _ in draws[1][:3]]
    x = [features[path] for path in paths]
    features.update(zip(paths, x[1:] + x[:1]))
    assert probe()[1] == 0.5


def test_a_feature_that_few_files_do_not_show_does_not_decide():
    """It differs by 1e-5 in the files that are drawn, and by 1 elsewhere."""
    items = [("a", 0), ("b", 1)]
    features = {
        "a": torch.tensor([[0.0, 0.0], [0.1, 0.0]]),
        "b": torch.tensor([[1.0, 1e-5], [1.1, 1e-5]]),
    }
    fc = torch.nn.Linear(2, 2)
    finetune.fit_probe(fc, features, items)
    assert fc(torch.tensor([1.0, -1.0])).argmax() == 1


def test_a_probe_of_few_files_adds_to_the_result_of_all_and_resumes(
    run, toy, tmp_path, monkeypatch
):
    monkeypatch.setattr(finetune, "DRAWS", 2)
    monkeypatch.setattr(finetune, "draw_confusion", lambda *args: args[-1].write_bytes(b"-"))
    embed, features = finetune.embed, []

    def embed_once(*args):
        if not features:
            features.append(embed(*args))
        return features[0]

    monkeypatch.setattr(finetune, "embed", embed_once)

    def probe(name, *flags):
        ckpt = ["--ckpt", run / "checkpoint.pt", "--probe", "--split", "all"]
        finetune.main(fine_tuning_arguments(toy, tmp_path / name, "toy-sound", *ckpt, *flags))
        return json.loads((tmp_path / name / "result.json").read_text())

    few, plain = probe("few", "--shots", 2, 1, 2), probe("all")
    assert few["settings"]["shots"] == [1, 2] and plain["settings"]["shots"] is None
    assert few["accuracy_of_split"] == plain["accuracy_of_split"]
    assert few["summary"][2:] == plain["summary"]
    of_split = few["accuracy_of_shots_of_split"]
    assert list(of_split) == ["1", "2", "3", "4", "5"]
    for shots, line in zip(("1", "2"), few["summary"]):
        mean = np.mean([accuracy[shots] for accuracy in of_split.values()])
        assert few["accuracy_of_shots"][shots] == pytest.approx(mean)
        percent = f"{100 * mean:.1f} % top-1, the mean of 2 draws in each of 5 splits"
        assert line == f"toy-sound --shots {shots}: {percent}"
    # Interrupted in the third split.
    probe_shots, calls = finetune.probe_shots, itertools.count(1)

    def killed(*args):
        if next(calls) == 3:
            raise Stop
        return probe_shots(*args)

    with monkeypatch.context() as patch:
        patch.setattr(finetune, "probe_shots", killed)
        with pytest.raises(Stop):
            probe("half", "--shots", 1, 2)
    assert probe("half", "--shots", 1, 2)["accuracy_of_shots_of_split"] == of_split


def test_an_old_probe_that_knows_no_shots_resumes(run, toy, tmp_path):
    flags = ["--ckpt", run / "checkpoint.pt", "--probe"]
    result, _ = fine_tune(toy, tmp_path, "toy-sound", *flags)
    kept = torch.load(tmp_path / "last.pt", weights_only=True)
    del kept["args"]["shots"], kept["accuracy_of_shots"], kept["summary"]
    torch.save(kept, tmp_path / "last.pt")
    (tmp_path / "result.json").unlink()
    again, _ = fine_tune(toy, tmp_path, "toy-sound", *flags)
    assert again == result


def test_the_folder_of_a_fine_tuning_tells_its_checkpoint_and_its_shots():
    def folder(*flags):
        return finetune.parse_args(["--task", "toy-action", *flags]).out

    assert folder() == "runs/toy-action-scratch"
    assert folder("--ckpt", "runs/x/checkpoint.pt") == "runs/toy-action-x"
    of_epoch = folder("--ckpt", "runs/x/epoch2.pt", "--probe", "--shots", "5", "1")
    assert of_epoch == "runs/toy-action-x-epoch2-probe-shots1-5"


def test_an_answer_is_the_mean_of_the_views_softmax():
    test, fc, processes = Labeled.__new__(Labeled), torch.nn.Linear(2, 2, bias=False), Processes()
    test.items = [("a", 0), ("b", 0)]
    torch.nn.init.eye_(fc.weight)
    processes.start()
    views = {
        "a": torch.tensor([[9.0, 0], [0, 3], [0, 3]]),  # the mean of the logits would say 0
        "b": torch.tensor([[9.0, 0], [0, 0.1], [0, 0.1]]),  # a vote would say 1
    }
    predictions = finetune.predict_from_features(fc, views, test, processes)
    counts = finetune.evaluate(predictions, test, 2, processes)
    assert counts.tolist() == [[1, 1], [0, 0]]


def process(rank, world_size):
    """One of several processes, as torchrun would start it."""
    processes = Processes()
    processes.rank, processes.world_size = rank, world_size
    return processes


def test_processes_share_out_the_batches_of_fine_tuning():
    flags = "--task toy-sound --epochs 2 --batch-size 8 --share 2"
    args = finetune.parse_args(flags.split())

    def shares_of(rank, world_size, start=0):
        return list(finetune.own_shares(30, start, args, process(rank, world_size)))

    whole = shares_of(0, 1)
    assert len(whole) == 2 * 3 * 4 and all(len(share) == 2 for share in whole)
    first, second = shares_of(0, 2), shares_of(1, 2)
    for step in range(6):
        own = slice(2 * step, 2 * step + 2)
        assert first[own] + second[own] == whole[4 * step : 4 * step + 4]
    assert shares_of(0, 1, start=2) == whole[2 * 4 :]
    files = [[i for share in whole[12 * epoch :][:12] for i, _ in share] for epoch in range(2)]
    assert len(set(files[0])) == len(set(files[1])) == 24
    assert files[0] != files[1]
    keys = [key for share in whole for _, key in share]
    expected = itertools.product([0], range(2), range(3), range(8))
    assert keys == list(expected)


def test_a_frozen_network_does_not_move(run, toy, tmp_path):
    out, ckpt = tmp_path / "run", run / "checkpoint.pt"
    flags = ["--ckpt", ckpt, "--probe", "--split", "all"]
    result, printed = fine_tune(toy, out, "toy-sound", *flags)
    assert "logistic regression on frozen features" in printed
    assert result["tests_of_split"] == {"1": 20, "2": 10, "3": 10, "4": 10, "5": 10}
    kept = torch.load(out / "split1.pt", weights_only=True)["model"]
    pretrained = load_checkpoint(run)["audio"]
    assert all(torch.equal(kept[name], pretrained[name]) for name in pretrained)
    assert "fc.weight" in kept


def test_an_interrupted_fine_tuning_resumes_to_the_same_weights(toy, tmp_path, monkeypatch):
    whole, half = tmp_path / "whole", tmp_path / "half"
    fine_tune(toy, whole, "toy-sound")
    replace, saved = Path.replace, itertools.count(1)

    def killed(self, target):
        replace(self, target)
        if Path(target).name == "last.pt" and next(saved) == 2:  # the first epoch's
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(Stop):
            fine_tune(toy, half, "toy-sound")
    fine_tune(toy, half, "toy-sound")
    resumed = torch.load(half / "split1.pt", weights_only=True)
    assert_equal(resumed, torch.load(whole / "split1.pt", weights_only=True))


def test_fine_tuning_takes_the_width_from_the_checkpoint(run, toy, tmp_path):
    """As it takes the sizes; but a width that was typed, and differs, is refused."""
    ckpt = run / "checkpoint.pt"
    argv = ["--task", "toy-sound", "--data", toy / "sound", "--ckpt", ckpt, "--probe"]
    status, _, errors = run_script("finetune.py", *argv, "--out", tmp_path / "run")
    assert not status, errors
    kept = torch.load(tmp_path / "run" / "split1.pt", weights_only=True)["model"]
    assert kept["fc.weight"].shape == (10, 8 * 8)
    error = refused("finetune.py", *argv, "--width", 16, "--out", tmp_path / "new")
    assert "--width 16" in error and "8" in error


def test_fine_tuning_takes_the_network_from_the_checkpoint(run, toy, tmp_path, monkeypatch):
    checked = []
    monkeypatch.setattr(Processes, "check_gpu", lambda _, *sizes: checked.append(sizes))
    checkpoint = load_checkpoint(run)
    checkpoint["video"] = models.mc3_18(8).state_dict()
    checkpoint["networks"]["video"] = "mc3_18"
    torch.save(checkpoint, tmp_path / "mixed.pt")
    flags = ["--ckpt", tmp_path / "mixed.pt"]
    _, printed = fine_tune(toy, tmp_path / "mixed", "toy-action", *flags)
    tensors = len(checkpoint["video"])
    assert f"mixed.pt (epoch 1, step 9, k 4), mc3_18: {tensors} tensors, 0.2 M" in printed
    largest = models.largest_map(8, 8, 24, "mc3_18")
    assert checked == [(20, largest, 2)]
    kept = torch.load(tmp_path / "mixed" / "split1.pt", weights_only=True)
    assert kept["networks"] == {"video": "mc3_18"}
    models.mc3_18(8, 10).load_state_dict(kept["model"])
    # An old checkpoint names no network.
    checkpoint = load_checkpoint(run)
    del checkpoint["networks"]
    torch.save(checkpoint, tmp_path / "old.pt")
    args = finetune.parse_args(["--task", "toy-action", "--ckpt", str(tmp_path / "old.pt")])
    source = finetune.Source(args, finetune.TASKS["toy-action"])
    assert source.network == "r2plus1d_18" and "r2plus1d_18" not in source.describe()


def test_a_network_from_scratch_is_the_papers_or_the_one_that_is_asked_for(toy, tmp_path):
    for flags, network in (([], "r2plus1d_18"), (["--network", "mc3_18"], "mc3_18")):
        result, _ = fine_tune(toy, tmp_path / network, "toy-action", "--probe", *flags)
        kept = torch.load(tmp_path / network / "split1.pt", weights_only=True)
        assert kept["networks"] == {"video": network}
        assert ("mc3_18" in result["weights"]) == (network == "mc3_18")
    args = finetune.parse_args(["--task", "ucf101", "--network", "mc3_18"])
    assert args.out == "runs/ucf101-scratch-networkmc3_18"


def test_what_fine_tuning_refuses(run, toy, tmp_path):
    def refusal(*argv):
        return refused("finetune.py", *argv, "--out", tmp_path / "new")

    sound = ["--task", "toy-sound", "--data", toy / "sound", "--width", 8]
    checkpoint = load_checkpoint(run)
    without_audio = {name: value for name, value in checkpoint.items() if name != "audio"}
    torch.save(without_audio, tmp_path / "video-only.pt")
    first, *_ = checkpoint["audio"]
    del checkpoint["audio"][first]
    torch.save(checkpoint, tmp_path / "lost.pt")
    checkpoint["networks"] = {"audio": "vggish"}
    torch.save(checkpoint, tmp_path / "unknown.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(os.getcwd))
    before = sorted(tmp_path.iterdir())
    assert "lacks audio" in refusal(*sound, "--ckpt", tmp_path / "video-only.pt")
    error = refusal(*sound, "--ckpt", tmp_path / "lost.pt")
    assert "1 weights of audio are missing" in error
    error = refusal(*sound, "--ckpt", tmp_path / "unknown.pt")
    assert "its audio network is vggish, which models.py lacks; it has r2plus1d_18, mc3" in error
    mixed = ["--network", "mc3_18"]
    assert "--network mc3_18: must be left out: it sees no sound" in refusal(*sound, *mixed)
    action = ["--task", "toy-action", "--data", toy / "action", "--ckpt", run / "checkpoint.pt"]
    assert "--network mc3_18: must be left out: --ckpt names its own" in refusal(*action, *mixed)
    assert "not a checkpoint" in refusal(*sound, "--ckpt", tmp_path / "pickle.pt")
    assert "not a checkpoint" in refusal(*sound, "--ckpt", tmp_path / "none.pt")
    # A folder is named where its checkpoint is meant.
    assert f"{run / 'checkpoint.pt'}" in refusal(*sound, "--ckpt", run)
    assert "--split 6: must be 1 to 5, or all" in refusal(*sound, "--split", 6)
    assert "--shots [0, 1]: must be 1 or more" in refusal(*sound, "--probe", "--shots", 1, 0)
    assert "--shots [1, 2]: must be one number" in refusal(*sound, "--shots", 1, 2)
    for size in (0, -20):
        assert f"--batch-size {size}: must be above 0" in refusal(*sound, "--batch-size", size)
    assert "--share 1: must be 2 or more, and" in refusal(*sound, "--share", 1)
    assert "--width 0: must be a multiple of 8" in refusal(*sound[:-2], "--width", 0)
    # An environment variable that is not set: this is not training from scratch.
    assert "--ckpt : not a checkpoint" in refusal(*sound, "--ckpt", "")
    short = refusal(*sound, "--frames", 1, "--fps", 50)
    assert "--frames 1 --fps 50: a sound lasts frames / fps seconds, which must be more" in short
    small = [*sound, "--batch-size", 20, "--shots"]
    assert "class bounce has only 4 files to train on" in refusal(*small, 5)
    assert "class bounce has only 4 files" in refusal(*small, 1, 5, "--probe")
    # A set that is not there is answered with its layout, so in several lines.
    argv = ["--task", "ucf101", "--out", tmp_path / "new", "--data"]
    status, _, errors = run_script("finetune.py", *argv, tmp_path)
    assert status == 2
    assert "classInd.txt: No such file" in errors and "trainlist01.txt" in errors
    _, _, errors = run_script("finetune.py", *argv, tmp_path / "lost.pt")
    assert "lost.pt/ucfTrainTestlist/classInd.txt: Not a directory" in errors
    assert sorted(tmp_path.iterdir()) == before


def test_a_probe_asks_nothing_of_a_training():
    args = finetune.parse_args(["--task", "hmdb51", "--probe", "--epochs", "2"])
    args.crop, args.scale, args.short_side, args.width = 158, (181, 226), 190, 64
    finetune.check_args(args, finetune.TASKS["hmdb51"], world_size=3)
    args.probe = False
    with pytest.raises(BadInput, match="--batch-size 96: must be 12 for each process"):
        finetune.check_args(args, finetune.TASKS["hmdb51"], world_size=3)


def test_a_class_may_be_called_anything_in_the_picture_of_the_answers(tmp_path):
    """What is between two $ is mathematics to matplotlib, and this would be none."""
    picture = tmp_path / "confusion.png"
    finetune.draw_confusion(torch.eye(2), ["A$_$B", "C"], "2 sounds", picture)
    assert picture.stat().st_size > 1000


def test_weights_that_are_not_finite_have_no_accuracy(run, toy, tmp_path):
    """Else the first class would be the answer for each file, and 10 % of them right."""
    checkpoint = load_checkpoint(run)
    checkpoint["audio"]["conv1.weight"][0] = math.nan
    torch.save(checkpoint, tmp_path / "broken.pt")
    out = tmp_path / "out"
    for flags in (["--probe"], ["--probe", "--shots", 1], ["--epochs", 1, "--warmup", 0]):
        flags = fine_tuning_flags(toy, out, "toy-sound", "--ckpt", tmp_path / "broken.pt", *flags)
        status, printed, errors = run_script("finetune.py", *flags)
        assert status == 2 and "top-1" not in printed
        assert "not finite; name another --ckpt" in errors.splitlines()[-1]
        assert not (out / "result.json").exists()
        shutil.rmtree(out)


def test_a_finished_run_is_of_the_weights_that_it_had(run, toy, tmp_path):
    """A pretraining may be made again in the same folder, and end at the same step."""
    ckpt = tmp_path / "runs" / "checkpoint.pt"
    ckpt.parent.mkdir()
    checkpoint = load_checkpoint(run)
    torch.save(checkpoint, ckpt)
    out, flags = tmp_path / "probe", ["--probe", "--ckpt", ckpt]
    fine_tune(toy, out, "toy-sound", *flags)
    same = tmp_path / "runs" / "." / "checkpoint.pt"
    flags[-1] = str(same.parent) + "/./" + same.name
    assert "was finished before" in fine_tune(toy, out, "toy-sound", *flags)[1]
    checkpoint["audio"]["conv1.weight"] += 1
    torch.save(checkpoint, ckpt)
    again = fine_tuning_flags(toy, out, "toy-sound", *flags)
    assert "holds a run of other arguments (digest" in refused("finetune.py", *again)


def test_pixels_follow_the_crop_of_the_checkpoint_in_proportion():
    """7.2: "proportionally adjusted"; lab/README.md has both readings of it for Table 5."""
    task = finetune.TASKS["hmdb51"]
    for size, scale, short_side in ((158, [181, 226], 190), (200, [229, 286], 241)):
        args = finetune.parse_args(["--task", "hmdb51"])
        finetune.set_sizes(args, task, {"crop": size})
        assert (args.crop, args.scale, args.short_side) == (size, scale, short_side)
    flags = ["--scale", "213", "266", "--short-side", "224"]
    args = finetune.parse_args(["--task", "hmdb51", *flags])
    finetune.set_sizes(args, task, {"crop": 200})
    assert (args.crop, args.scale, args.short_side) == (200, [213, 266], 224)
    assert [round(side * 224 / 190) for side in (181, 226)] == args.scale


# --------------------------------------------------------------------------------------------
# README
# --------------------------------------------------------------------------------------------


PARSERS = {
    "pretrain.py": pretrain.parse_args,
    "finetune.py": finetune.parse_args,
    "-m media": media.__main__.parse_args,
    "-m lab.show": lab.show.parse_args,
    "-m lab.bench": lab.bench.parse_args,
    "-m lab.compare": lab.compare.parse_args,
    "-m lab.evaluate": lab.evaluate.parse_args,
    "-m lab.findings": lab.findings.parse_args,
    "-m papers.avts": papers.avts.parse_args,
    "-m papers.temporal": papers.temporal.parse_args,
}


def documents():
    """Every text that shows commands: the READMEs, and the docstrings of the scripts."""
    for path in PAGES:
        yield path.read_text()
    for parse in PARSERS.values():
        yield sys.modules[parse.__module__].__doc__


def test_the_commands_in_the_documents_are_understood():
    names = "|".join(re.escape(name) for name in PARSERS)
    start = rf"^ *(?:python|torchrun --nproc_per_node [48]) ({names})"
    command = re.compile(rf"{start}(?: ([^$\n]*?))?(?: {{2,}}[^$\n]*)?$", re.MULTILINE)
    found = command.findall("\n".join(documents()))
    assert {name for name, _ in found} == PARSERS.keys()
    assert len(found) > 20
    for name, flags in found:
        PARSERS[name](shlex.split(flags, comments=True))


if __name__ == "__main__":  # an old command: the verdicts on the runs of a findings.json
    moved("test_all.py", "python -m lab.findings FINDINGS.json")
