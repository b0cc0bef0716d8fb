"""Tests of papers/temporal.py, in the order of its file."""

import dataclasses
import json
import math
import shutil
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torchaudio.functional import resample

import harness.curves
import papers.temporal as temporal
from data import stack_frames
from harness.errors import BadInput
from harness.fixtures import (
    assert_equal,
    damage,
    fine_tune,
    load_checkpoint,
    on_two_nodes,
    read_log,
    refused,
    render,
    run_script,
)
from media.format import MINING, Format, rng_of
from media.prepare import PREPARED, write_media
from media.reader import Reader

# --------------------------------------------------------------------------------------------------
# Samples
# --------------------------------------------------------------------------------------------------

CLIP = Format(frames=8, fps=10, short_side=16, crop=16, rate=16000)
FILM = Format(frames=8, fps=10, rate=32000)
CLICK = 0.002  # seconds
SUM = CLICK * CLIP.rate / 200  # of the samples of the first click, if it is played once as fast


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A folder with a film of 12 s and one of 9.6 s, see `write_numbered_film`."""
    folder = tmp_path_factory.mktemp("numbered")
    write_numbered_film(folder / "a.mp4", snippets=15)
    write_numbered_film(folder / "b.mp4", snippets=12)
    return folder


def write_numbered_film(path, snippets):
    """A film in which the grey of a frame is twice its number, and clicks count the tenths."""
    numbers = np.arange(snippets * FILM.frames)
    images = np.broadcast_to(2 * numbers[:, None, None, None], (len(numbers), 16, 16, 3))
    time = np.arange(snippets * FILM.samples) / FILM.rate
    # Each click is louder than the one before. It is in the middle of its tenth of a second.
    tenth, since = np.divmod(time + 1e-9, 0.1)
    sound = (tenth + 1) / 200 * ((since >= 0.05) & (since < 0.05 + CLICK))
    pieces = [(images.astype(np.uint8), sound.astype(np.float32))]
    write_media(path, pieces, FILM, ("ffv1", {"g": "1"}), ("flac", {}))


def numbers_seen(video):
    """uint8 (3, T, H, W) -> [T] the numbers of the frames."""
    greys = video.float().mean((0, 2, 3))
    return ((greys + 0.5) / 2).round().int().tolist()  # yuv420p makes some darker by 1


def numbers_heard(waveform, q, gain=0.0):
    """float (S,) -> the numbers of the tenths of a second."""
    sums = waveform.view(8 * q, -1).sum(1) * 10 ** (-gain / 20)
    return (sums * q / SUM - 1).round().int().tolist()


LABELS = ("speed_video", "speed_audio", "backward_video", "backward_audio")


def labels_shown_by(item):
    """The four labels that the frames and the sound of an item of a numbered film show."""
    seen = numbers_seen(item["video"])
    p = abs(seen[1] - seen[0])
    sums = item["waveform"].view(16, -1).sum(1)
    q = 2 if sums.min() > 0.04 * sums.max() else 1  # at speed 1, half of the 16 have no click
    backward_audio = sums[:2].sum() > sums[-2:].sum()
    return [[1, 2, 4, 8].index(p), [1, 2].index(q), int(seen[0] > seen[-1]), int(backward_audio)]


@pytest.mark.parametrize("p", [1, 2, 4, 8])
@pytest.mark.parametrize("backward", [False, True])
def test_frames_are_those_of_the_speed_and_the_direction(numbered, p, backward):
    titles = temporal.TemporalTitles(numbered, CLIP)
    for m in (0, 1, titles.counts[0] - 1):
        playback = temporal.Playback(speed_video=p, backward_video=backward)
        crops, waveform = titles.play(0, m, playback)
        expected = [8 * m + p * i for i in range(8)]
        if backward:
            expected.reverse()
        assert numbers_seen(stack_frames(crops)) == expected
        assert numbers_heard(waveform, q=1) == [8 * m + i for i in range(8)]


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("backward", [False, True])
def test_sound_is_that_of_the_speed_and_the_direction(numbered, q, backward):
    titles = temporal.TemporalTitles(numbered, CLIP)
    for m in (0, 1, titles.counts[0] - 1):
        playback = temporal.Playback(speed_audio=q, backward_audio=backward, gain=6.0)
        crops, waveform = titles.play(0, m, playback)
        expected = [8 * m + i for i in range(8 * q)]
        if backward:
            expected.reverse()
        assert waveform.shape == (CLIP.samples,) and waveform.dtype == torch.float32
        assert numbers_heard(waveform, q, gain=6.0) == expected
        assert numbers_seen(stack_frames(crops)) == [8 * m + i for i in range(8)]
        # To the sample: a click lasts CLICK / q seconds, from the middle of its tenth on.
        loudest = waveform.view(8 * q, -1)[expected.index(max(expected))]
        loud = (loudest > loudest.max() / 2).nonzero()
        first, last = loud.min().item(), loud.max().item()
        middle = 800 / q
        if backward:
            middle -= CLICK * CLIP.rate / q
        assert abs(first - middle) <= 1 and abs(last - first + 1 - 32 / q) <= 2


def test_labels_are_drawn_one_by_one_and_are_those_of_what_was_read(numbered):
    titles = temporal.TemporalTitles(numbered, CLIP)
    drawn = set()
    for i in range(96):
        n, m = i % 2, i % 5
        item = titles[n, m, (0, 0, 0, i)]
        labels = [item[name] for name in LABELS]
        assert labels == labels_shown_by(item)
        assert item["span_video"] == pytest.approx(0.8 * [1, 2, 4, 8][labels[0]])
        assert item["span_audio"] == pytest.approx(0.8 * [1, 2][labels[1]])
        assert (item["title"], item["begin"]) == (n, pytest.approx(0.8 * m))
        drawn.add(tuple(labels))
    # Of 32 equally likely ways, 96 draws miss 1.5 on average.
    assert len(drawn) >= 28


def test_without_a_key_a_clip_is_as_it_was_filmed(numbered):
    titles = temporal.TemporalTitles(numbered, CLIP)
    item = titles[0, 2, None]
    assert [item[name] for name in LABELS] == [0, 0, 0, 0] == labels_shown_by(item)
    assert numbers_seen(item["video"]) == list(range(16, 24))
    assert numbers_heard(item["waveform"], q=1) == list(range(16, 24))


def test_the_gain_is_drawn_between_half_and_double():
    """6 dB are a factor of 2."""
    gains = [temporal.Playback.draw((0, 0, 0, i), temporal.SPEEDS).gain for i in range(200)]
    assert -6 <= min(gains) < -5.5 and 5.5 < max(gains) <= 6
    assert abs(np.mean(gains)) < 1


def test_every_place_of_the_grid_holds_the_longest_clip(numbered):
    """At speed 8 it takes 6.4 s of 12 s or 9.6 s, so the last ones begin at 5.6 s and at 3.2 s."""
    assert temporal.TemporalTitles(numbered, CLIP).counts == [8, 5]
    assert temporal.TemporalTitles(numbered, CLIP, stride=1.6).counts == [4, 3]
    titles = temporal.TemporalTitles(numbered, CLIP, speeds=((1, 2), (1, 4)))
    assert titles.counts == [12, 9]
    assert titles.subset([1]).counts == [9]
    _, waveform = titles.play(0, 11, temporal.Playback(speed_audio=4))
    assert numbers_heard(waveform, q=4) == list(range(88, 120))


def test_a_clip_that_cannot_be_read_is_replaced_with_its_labels(numbered, tmp_path):
    """The sound of the first clip is lost. What was read instead has its own begin."""
    damage(shutil.copy(numbered / "a.mp4", tmp_path), (0.01, 0.04))
    titles = temporal.TemporalTitles(tmp_path, CLIP)
    for i in range(16):
        item = titles[0, 0, (0, 0, 0, i)]
        assert item["failures"] and item["begin"] > 0.7
        assert min(numbers_seen(item["video"])) == round(10 * item["begin"])
        labels = [item[name] for name in LABELS]
        assert labels == labels_shown_by(item)
        assert item["span_video"] == pytest.approx(0.8 * [1, 2, 4, 8][labels[0]])


@pytest.mark.parametrize("q", [1, 2])
def test_the_ends_of_a_clip_sound_as_in_the_whole_film(tmp_path, q):
    """The filter of the resampler does not see silence beyond them, which would tell them apart."""
    noise = np.random.default_rng(0).normal(0, 0.1, 2 * FILM.samples).astype(np.float32)
    images = np.zeros((2 * FILM.frames, 16, 16, 3), np.uint8)
    pieces = [(images, noise)]
    write_media(tmp_path / "noise.mp4", pieces, FILM, ("ffv1", {"g": "1"}), ("flac", {}))
    clip = dataclasses.replace(CLIP, frames=2)
    titles = temporal.TemporalTitles(tmp_path, clip, speeds=((1,), (1, 2)))
    _, waveform = titles.play(0, 1, temporal.Playback(speed_audio=q))
    whole = resample(torch.from_numpy(noise), 2 * q, 1)
    begin = clip.samples // q  # as it is heard
    assert torch.allclose(waveform, whole[begin : begin + clip.samples], atol=1e-4)


def test_a_clip_is_one_read_of_its_file(numbered, monkeypatch):
    reads = []
    read = Reader.read

    def noted(reader, *what, **named):
        reads.append(reader.path)
        return read(reader, *what, **named)

    monkeypatch.setattr(Reader, "read", noted)
    titles = temporal.TemporalTitles(numbered, CLIP)
    for i in range(4):
        titles[0, i, (0, 0, 0, i)]
    assert len(reads) == 4


def test_what_tells_the_speed_or_the_direction_is_refused(numbered, tmp_path):
    with pytest.raises(BadInput, match="--rate 22050: must be 16000 at the most, since what"):
        temporal.TemporalTitles(numbered, dataclasses.replace(CLIP, rate=22050))
    shutil.copy(numbered / "a.mp4", tmp_path)
    note = {"frames": 8, "fps": 10.0, "short_side": 16, "rate": 32000, "language": None}
    (tmp_path / ".prepared.json").write_text(json.dumps(note))
    with pytest.raises(BadInput, match="was prepared without --gop 1, so sharpness differs"):
        temporal.TemporalTitles(tmp_path, CLIP)
    (tmp_path / ".prepared.json").write_text(json.dumps(note | {"gop": 1}))
    assert temporal.TemporalTitles(tmp_path, CLIP).counts == [8]


def test_films_that_were_not_prepared_are_warned_about(numbered, tmp_path):
    """Their groups of pictures tell the speed, wherever a clip begins."""
    shutil.copy(numbered / "a.mp4", tmp_path)
    images = np.zeros((120, 16, 16, 3), np.uint8)
    pieces = [(images, np.zeros(15 * FILM.samples, np.float32))]
    write_media(tmp_path / "c.mkv", pieces, FILM, PREPARED["picture"], PREPARED["sound"])
    for folder, printed in ((numbered, []), (tmp_path, ["warning   1 of 2 files looked at have"])):
        rows = Rows()
        titles = temporal.TemporalTitles(folder, CLIP)
        temporal.report_key_frames(titles, rows)
        assert [line[: len(printed[0])] for line in rows.printed] == printed


def test_of_many_films_at_most_sixteen_are_looked_at(monkeypatch):
    looked_at = []
    monkeypatch.setattr(temporal, "has_key_frames_only", looked_at.append)  # None: it has others
    rows = Rows()
    titles = types.SimpleNamespace(parts=[[(f"{n}.mkv", 0, 8)] for n in range(31)])
    temporal.report_key_frames(titles, rows)
    assert looked_at == [f"{n}.mkv" for n in range(0, 31, 2)]
    assert "16 of 16 files looked at" in rows.printed[0]


# --------------------------------------------------------------------------------------------------
# Heads, and the order of two clips
# --------------------------------------------------------------------------------------------------


def test_the_order_of_two_clips_is_told_in_seconds_of_each_ones_own_span():
    table = [
        # begin, span, of the other one
        ((0.0, 1.6), (1.6, 1.6), temporal.BEFORE),  # it ends where the other one begins
        ((1.6, 1.6), (0.0, 1.6), temporal.AFTER),
        ((0.0, 3.2), (1.6, 1.6), temporal.OVERLAPPING),  # twice as fast, it covers the other one
        ((1.6, 1.6), (0.0, 3.2), temporal.OVERLAPPING),
        ((0.0, 1.6), (1.5, 1.6), temporal.OVERLAPPING),
        ((4.8, 1.6), (4.8, 12.8), temporal.OVERLAPPING),  # both begin together
        ((0.0, 12.8), (14.4, 1.6), temporal.BEFORE),
        ((14.4, 1.6), (0.0, 12.8), temporal.AFTER),
        ((3 * 1.6, 1.6), (4 * 1.6, 1.6), temporal.BEFORE),  # 6.4 and 6.4, but for rounding
        ((0.1 + 0.2, 1.0), (1.3 - 1e-9, 1.0), temporal.BEFORE),
    ]
    columns = [torch.tensor(column, dtype=torch.double) for column in zip(*table)]
    stretch, other, expected = columns
    order = temporal.order_of(stretch[:, 0], stretch[:, 1], other[:, 0], other[:, 1])
    assert order.tolist() == expected.tolist()


def test_each_clip_is_compared_with_the_next_one_of_its_title():
    def next_of(k, *title):
        return temporal.next_of_title(torch.tensor(title), k).tolist()

    assert next_of(2, 7, 7, 3, 3) == [1, 0, 3, 2]
    assert next_of(3, 7, 7, 7, 3, 3, 3) == [1, 2, 0, 4, 5, 3]
    # With few titles one comes again, but from another window.
    assert next_of(2, 7, 7, 3, 3, 7, 7) == [1, 0, 3, 2, 5, 4]
    # Clips were replaced by those of other titles.
    assert next_of(2, 7, 9, 3, 3) == [0, 1, 3, 2]
    assert next_of(3, 7, 9, 7) == [2, 1, 0]


def batch_of(title, begin, span_video, span_audio):
    B = len(title)
    return {
        "title": torch.tensor(title),
        "begin": torch.tensor(begin, dtype=torch.double),
        "span_video": torch.tensor(span_video, dtype=torch.double),
        "span_audio": torch.tensor(span_audio, dtype=torch.double),
        "speed_video": torch.arange(B) % 4,
        "speed_audio": torch.arange(B) % 2,
        "backward_video": torch.arange(B) % 2,
        "backward_audio": 1 - torch.arange(B) % 2,
    }


def test_the_labels_of_order_take_the_spans_of_what_is_compared():
    batch = batch_of([0, 0, 1], [0.0, 3.2, 0.0], [1.6, 12.8, 1.6], [3.2, 1.6, 1.6])
    labels = temporal.labels_of(batch, temporal.next_of_title(batch["title"], 2))
    assert labels["order_vv"].tolist() == [temporal.BEFORE, temporal.AFTER, temporal.UNKNOWN]
    assert labels["order_aa"].tolist() == [temporal.BEFORE, temporal.AFTER, temporal.UNKNOWN]
    batch["span_video"][0] = 6.4  # the sight of the first one now reaches into the second one
    labels = temporal.labels_of(batch, temporal.next_of_title(batch["title"], 2))
    assert labels["order_vv"].tolist() == [temporal.OVERLAPPING] * 2 + [temporal.UNKNOWN]
    # The sight of a clip is compared with the sound of the next one.
    assert labels["order_va"].tolist() == [
        temporal.OVERLAPPING,
        temporal.AFTER,
        temporal.UNKNOWN,
    ]
    assert labels["speed_video"] is batch["speed_video"]
    assert labels["direction_audio"] is batch["backward_audio"]


@pytest.mark.parametrize(
    "tasks, heads",
    [
        ("none", []),
        ("direction", ["direction_video", "direction_audio"]),
        ("order,speed", ["speed_video", "speed_audio", "order_vv", "order_aa", "order_va"]),
    ],
)
def test_a_network_has_the_heads_of_its_tasks_only(tasks, heads):
    assert temporal.heads_of(tasks) == heads
    model = temporal.TemporalModel(temporal.heads_of(tasks), ((1, 2, 4), (1, 2)), width=8, d=16)
    video, audio = torch.zeros(2, 3, 2, 16, 16), torch.zeros(2, 1, 32, 32)
    _, _, logits = model(video, audio, torch.tensor([1, 0]))
    classes = {"speed_video": 3, "speed_audio": 2, "direction_video": 2, "direction_audio": 2}
    expected = {name: (2, classes.get(name, 3)) for name in heads}
    assert {name: tuple(of_head.shape) for name, of_head in logits.items()} == expected


def test_order_is_told_from_a_clip_and_the_next_one():
    """The sight of a clip with the sound of the next one: it moves with both, and no other."""
    torch.manual_seed(0)
    model = temporal.TemporalModel(temporal.heads_of("order"), ((1, 2), (1, 2)), width=8, d=16)
    model.eval()
    video, audio = torch.randn(3, 3, 2, 16, 16), torch.randn(3, 1, 32, 32)
    following = torch.tensor([1, 2, 0])
    video.requires_grad_()
    audio.requires_grad_()
    _, _, logits = model(video, audio, following)
    moved_by = {}
    for name, of_head in logits.items():
        grads = torch.autograd.grad(
            of_head[0].sum(), (video, audio), retain_graph=True, allow_unused=True
        )
        of_each = []
        for grad in grads:
            moved = [] if grad is None else grad.flatten(1).abs().sum(1).nonzero().flatten()
            of_each.append(list(map(int, moved)))
        moved_by[name] = of_each
    assert moved_by["order_vv"] == [[0, 1], []]
    assert moved_by["order_aa"] == [[], [0, 1]]
    assert moved_by["order_va"] == [[0], [1]]


# --------------------------------------------------------------------------------------------------
# Contrast: usual and mined pairs
# --------------------------------------------------------------------------------------------------

TITLE = torch.tensor([4, 4, 2, 2, 9])  # of the last one no other clip could be read
TAU, NEGATIVES, SIZE, D = 0.1, 6, 40, 7


def embeddings(seed=0):
    torch.manual_seed(seed)
    z_v, z_a = torch.randn(2, len(TITLE), D)
    return z_v.requires_grad_(), z_a.requires_grad_()


def full_bank(size=SIZE):
    torch.manual_seed(1)
    bank = temporal.Bank(size, D)
    z_v, z_a = torch.randn(2, size, D)
    bank.add(z_v, z_a, torch.arange(size) % 10)
    return bank


def mined_by_loops(anchor, entries, bank, draws):
    """For each anchor (the place of its positive, those of its negatives): `Bank.mine` in loops."""
    found = []
    for i in range(len(anchor)):
        others = [j for j in range(len(entries)) if bank.title[j] != TITLE[i]]
        similarity = F.normalize(anchor.detach(), dim=1) @ entries.T
        others.sort(key=lambda j: -similarity[i, j].item())
        ranks = range(10, len(others) // 2)
        chosen = []
        for n in range(NEGATIVES):
            low, high = (m * len(ranks) // NEGATIVES for m in (n, n + 1))
            part = ranks[low:high]
            chosen.append(others[part[int(draws[i, 1 + n] * len(part))]])
        found.append((others[int(draws[i, 0] * 5)], chosen))
    return found


def contrasts_by_loops(z_v, z_a, bank):
    """The three terms, one clip and one negative at a time."""
    following = temporal.next_of_title(TITLE, 2).tolist()
    mined_v = mined_a = None
    if bank is not None and bank.is_full:
        draws = rng_of((0, 1), MINING)
        mined_v, mined_a = (
            mined_by_loops(z, entries, bank, draws.random((len(TITLE), 1 + NEGATIVES)))
            for z, entries in ((z_v, bank.z_v), (z_a, bank.z_a))
        )
    terms = {}
    for name, anchor, others, entries, mined in (
        ("contrast_vv", z_v, z_v, bank and bank.z_v, mined_v),
        ("contrast_va", z_v, z_a, bank and bank.z_a, mined_v),
        ("contrast_av", z_a, z_v, bank and bank.z_v, mined_a),
    ):
        losses = []
        for i in range(len(TITLE)):
            usual = following[i] if name == "contrast_vv" else i
            if name == "contrast_vv" and usual == i:
                continue
            positives = [others[usual]]
            negatives = [others[j] for j in range(len(TITLE)) if TITLE[j] != TITLE[i]]
            if mined is not None:
                place, places = mined[i]
                positives.append(entries[place])
                negatives += [entries[j] for j in places]
            parts = []
            for positive in positives:
                s = [F.cosine_similarity(anchor[i], z, dim=0) / TAU for z in [positive, *negatives]]
                parts.append(-torch.stack(s).log_softmax(0)[0])
            losses.append(sum(parts) / len(parts))
        terms[name] = sum(losses) / len(losses)
    return terms


def contrasts(z_v, z_a, bank):
    following = temporal.next_of_title(TITLE, 2)
    rng = rng_of((0, 1), MINING)
    return temporal.contrasts_of(z_v, z_a, TITLE, following, bank, rng, TAU, NEGATIVES)


@pytest.mark.parametrize("bank", ["none", "empty", "full"])
def test_the_contrasts_are_those_of_a_double_loop(bank):
    banks = {"none": None, "empty": temporal.Bank(SIZE, D), "full": full_bank()}
    found = []
    for terms_of in (contrasts, contrasts_by_loops):
        z_v, z_a = embeddings()
        terms = terms_of(z_v, z_a, banks[bank])
        grads = {}
        for name in temporal.CONTRASTS:
            grads[name] = torch.autograd.grad(
                terms[name], (z_v, z_a), retain_graph=True, allow_unused=True
            )
        found.append((terms, grads))
    (ours, our_grads), (naive, naive_grads) = found
    for name in temporal.CONTRASTS:
        assert ours[name].item() == pytest.approx(naive[name].item(), rel=1e-5)
        for grad, naive_grad in zip(our_grads[name], naive_grads[name]):
            assert (grad is None) == (naive_grad is None)
            assert grad is None or torch.allclose(grad, naive_grad, atol=1e-5)


def test_a_title_of_which_one_clip_is_left_has_no_pair_in_sight():
    z_v, z_a = embeddings()
    title = torch.arange(len(TITLE))
    terms = temporal.contrasts_of(
        z_v, z_a, title, temporal.next_of_title(title, 2), None, None, TAU, NEGATIVES
    )
    assert terms["contrast_vv"].item() == 0 and terms["contrast_va"].item() > 0
    sum(terms.values()).backward()
    assert z_v.grad.isfinite().all()


def test_mined_pairs_are_of_other_titles_near_and_from_the_nearer_half():
    bank = full_bank(size=100)
    z_v, _ = embeddings()
    similarity = F.normalize(z_v, dim=1) @ bank.z_v.T
    positions, ranks = set(), set()
    for seed in range(200):
        rng = np.random.default_rng(seed)
        positive, negatives = bank.mine(z_v, bank.z_v, TITLE, rng, NEGATIVES)
        places = torch.cat([positive[:, None], negatives], 1)
        assert (bank.title[places] != TITLE[:, None]).all()
        assert all(len(set(of_clip)) == NEGATIVES for of_clip in negatives.tolist())
        others = similarity.masked_fill(bank.title == TITLE[:, None], -math.inf)
        rank = (others[:, :, None] > similarity.gather(1, places)[:, None, :]).sum(1)
        positions |= set(rank[:, 0].tolist())
        ranks |= set(rank[:, 1:].flatten().tolist())
    assert positions == set(range(5))
    assert ranks == set(range(10, 45))  # of 90 entries of other titles


def test_nothing_is_mined_before_the_bank_is_full():
    bank = temporal.Bank(SIZE, D)
    z_v, z_a = embeddings()
    without = contrasts(z_v, z_a, None)
    for step in range(SIZE // 5):
        terms = contrasts(z_v, z_a, bank)
        assert all(terms[name] == without[name] for name in temporal.CONTRASTS), step
        bank.add(*torch.randn(2, 5, D), torch.arange(5))
    assert bank.is_full
    terms = contrasts(z_v, z_a, bank)
    assert all(terms[name] != without[name] for name in temporal.CONTRASTS)


def test_the_bank_is_first_in_first_out_at_unit_length_and_without_gradient():
    bank = temporal.Bank(6, D)
    everything = []
    for step in range(5):  # 20 clips, across the end of the bank and over it
        z_v, z_a = torch.randn(2, 4, D, requires_grad=True)
        title = torch.arange(4) + 4 * step
        bank.add(z_v, z_a, title)
        assert bank.added == 4 * (step + 1) and bank.is_full == (step >= 1)
        everything += zip(title.tolist(), z_v, z_a)
        last = {title: (z_v, z_a) for title, z_v, z_a in everything[-6:]}
        held = [n for n in bank.title.tolist() if n >= 0]
        assert sorted(held) == sorted(last)
        for place, n in enumerate(held):
            z_v, z_a = last[n]
            assert torch.allclose(bank.z_v[place], z_v / z_v.norm())
            assert torch.allclose(bank.z_a[place], z_a / z_a.norm())
    assert not bank.z_v.requires_grad
    again = temporal.Bank(6, D)
    again.load_state_dict(bank.state_dict())
    assert again.added == 20 and torch.equal(again.title, bank.title)


# --------------------------------------------------------------------------------------------------
# Loss, and what guessing gives
# --------------------------------------------------------------------------------------------------


def test_a_head_is_asked_about_pairs_only():
    logits = {"order_vv": torch.tensor([[9.0, 0, 0], [0, 9.0, 0], [0, 0, 9.0], [0, 0, 9.0]])}
    labels = {"order_vv": torch.tensor([0, 2, 2, temporal.UNKNOWN]), "speed_video": None}
    loss, right, asked = temporal.answers_of(logits, labels)["order_vv"]
    assert (right, asked) == (2, 3)
    few = F.cross_entropy(logits["order_vv"][:3], labels["order_vv"][:3])
    assert loss.item() == pytest.approx(few.item())
    nothing = torch.full((4,), temporal.UNKNOWN)
    loss, right, asked = temporal.answers_of(logits, {"order_vv": nothing})["order_vv"]
    assert (loss, right, asked) == (0, 0, 0)


def test_the_log_of_a_step_has_the_means_of_the_shares_and_no_nan():
    heads = ["speed_video", "order_vv"]
    numbers = [2.0, 4.0, 6.0, 1.0, math.nan, 30.0, 0.0, 64.0, 0.0]
    args = temporal.parse_args(["--contrast-weight", "0.5"])
    loss, row = temporal.describe_step(numbers, heads, 2, args)
    assert math.isnan(loss)
    assert row == {
        "contrast_vv": 1.0,
        "contrast_va": 2.0,
        "contrast_av": 3.0,
        "speed_video": 0.5,
        "accuracy_speed_video": 30 / 64,
    }  # and no accuracy of a head that was asked nothing


def test_the_loss_is_the_sum_of_all_terms_and_the_contrasts_have_a_weight():
    terms = {"contrast_vv": 1.0, "contrast_va": 2.0, "contrast_av": 3.0, "order_vv": 4.0}
    args = temporal.parse_args(["--contrast-weight", "0.5"])
    assert temporal.sum_of(terms, args) == 0.5 * (1.0 + 2.0 + 3.0) + 4.0


class Counted:
    """In place of TemporalTitles: long titles of which nothing is read."""

    clip = Format(frames=16, fps=10)
    speeds = temporal.SPEEDS

    def begin(self, n, m):
        return 1.6 * m


def test_chance_is_what_guessing_gives_without_flags():
    """In the window of 7 overlapping, before and after are as frequent, taken over all pairs."""
    args = temporal.parse_args([])
    sampler = temporal.HierarchicalSampler([500] * 300, args.batch_size, args.k, args.w)
    chance = temporal.chance_levels(sampler, Counted(), args)
    assert chance["contrast_vv"] == pytest.approx(math.log(1 + 62 + 256))
    assert chance["unmined"] == pytest.approx(math.log(1 + 62))
    assert chance["accuracy_speed_video"] == 1 / 4 and chance["accuracy_direction_audio"] == 1 / 2
    # By hand, of all places i != j in the window and all speeds: half of the pairs of sights
    # overlap, a seventh of those of sounds, and of a sight and a sound 0.32.
    expected = {"order_vv": 0.50, "order_aa": 0.43, "order_va": 0.43}
    knowing_the_speeds = {"order_vv": 0.60, "order_aa": 0.46, "order_va": 0.50}
    for name in expected:
        assert chance[f"accuracy_{name}"] == pytest.approx(expected[name], abs=0.02)
        assert chance[f"by_speed_{name}"] == pytest.approx(knowing_the_speeds[name], abs=0.02)
    others = 2 * math.log(2) + math.log(4) + math.log(2) + 3 * math.log(3)
    assert chance["loss"] == pytest.approx(0.2 * 3 * chance["contrast_vv"] + others)
    args.bank = 0
    chance = temporal.chance_levels(sampler, Counted(), args)
    assert chance["contrast_av"] == pytest.approx(math.log(63))


class Rows:
    """In place of a run and of its processes: what was logged and printed."""

    def __init__(self, *values):
        self.rows = [{"step": 0}] + [{"accuracy_speed_audio": value} for value in values]
        self.printed = []

    def log(self, **row):
        self.rows.append(row)

    def report(self, text):
        self.printed.append(text)

    def on_rank_0(self, work):
        return work()


def test_a_task_that_is_all_right_in_the_first_epoch_is_reported_once():
    """It is the last tenth of the epoch that counts: here two steps of 20."""
    heads = ["speed_video", "speed_audio"]
    for values, is_leak in (((0.5, 0.99, 1.0), True), ((0.99, 0.96, 1.0), False)):
        run = Rows(*[0.5] * 17, *values)
        for step in range(25):
            temporal.report_leaks(run, heads, step, 20, run)
        assert len(run.printed) == is_leak
        assert ({"step": 20, "leak_or_triviality": ["speed_audio"]} in run.rows) == is_leak
        assert not is_leak or "speed_audio is right in 99.5% of the clips" in run.printed[0]


# --------------------------------------------------------------------------------------------------
# The run
# --------------------------------------------------------------------------------------------------


def test_the_run_without_flags_is_the_documented_one():
    args = temporal.parse_args([])
    found = {"frames": 16, "speeds": "1,2,4,8/1,2", "lr": 3e-4, "weight_decay": 1e-4}
    ours = {"fps": 12, "crop": 112, "batch_size": 512, "share": 64, "k": 2, "w": 7, "bank": 4096}
    assert {name: getattr(args, name) for name in found | ours} == found | ours
    assert args.tasks == "speed,direction,order" and args.out == "runs/temporal-movies-12fps"
    assert temporal.parse_speeds(args.speeds) == temporal.SPEEDS
    temporal.check_args(args, world_size=8)
    args = temporal.parse_args(["--speeds", "1,2/1,4", "--bank", "0", "--tasks", "order"])
    assert args.out == "runs/temporal-movies-12fps-tasksorder-speeds1,2-1,4-bank0"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six films of 12.8 s at 10 frames a second, each frame a key frame."""
    root = tmp_path_factory.mktemp("world") / "time"
    return render(root, "--titles 6 --snippets 8 --clips 1 1 --fps 10 --gop 1")


def flags_of(world, out, *more):
    """Two epochs of seven steps, each of two shares. The bank is full after four steps."""
    flags = """
        --toy --frames 4 --width 8 --crop 16 --short-side 20 --speeds 1,3/1,2 --batch-size 16
        --share 8 --bank 64 --mined-negatives 4 --workers 0 --held-out 0.34 --held-out-snippets 4
        --epochs 2 --warmup 0.5 --measure-every 1 --seed 1
    """.split()
    return [*flags, *map(str, ["--data", world / "films", "--out", out, *more])]


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """A run whose picture is empty, since one of 13 panels takes longer than a step."""
    out = tmp_path_factory.mktemp("temporal") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(harness.curves, "draw", lambda path, *_, **__: path.touch())
        status, printed, errors = run_script("papers.temporal", *flags_of(world, out))
    assert not status, errors
    return out, printed


def test_a_run_logs_each_term_and_each_tasks_accuracy_and_what_guessing_gives(whole):
    out, printed = whole
    heads = temporal.heads_of("speed,direction,order")
    terms = {name: read_log(out, name) for name in [*temporal.CONTRASTS, *heads]}
    losses = read_log(out)
    assert len(losses) == 14
    weights = [0.2] * len(temporal.CONTRASTS) + [1] * len(heads)
    for loss, *of_step in zip(losses, *terms.values()):
        assert loss == pytest.approx(sum(w * term for w, term in zip(weights, of_step)))
    (chance,) = read_log(out, "chance")
    for name in heads:
        accuracies = read_log(out, f"accuracy_{name}")
        assert len(accuracies) == 14
        assert all(0 <= 16 * accuracy == round(16 * accuracy) <= 16 for accuracy in accuracies)
        assert len(read_log(out, f"held_out_{name}")) == 3  # at the beginning, and each epoch
        assert f"task      {name}: " in printed
        assert f"chance {chance[f'accuracy_{name}']:.2f}" in printed
    result = json.loads((out / "result.json").read_text())
    assert result["paper"] == "Temporal"  # as lab.compare names its rows
    assert {"loss", "contrast_vv", "accuracy_order_vv", "held_out_order_vv", "sync_same"} <= set(
        result["final"]
    )
    assert result["training_seconds"] > 0
    assert read_log(out, "replaced") == [[], [], []]
    assert (out / "curves.png").exists()


def test_the_picture_of_a_run_has_a_panel_of_each_term_task_and_measure(
    whole, world, tmp_path, monkeypatch
):
    saved = []
    savefig = Figure.savefig

    def noted(figure, path, **options):
        saved.append(figure)
        savefig(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", noted)
    out, _ = whole
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    args = temporal.parse_args(flags_of(world, out))
    temporal.draw_run(rows, args, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000
    [figure] = saved
    # Of each panel: its title and unit, and what the log calls its two curves.
    panels = [(temporal.PANELS[name], name, None) for name in temporal.CONTRASTS]
    for name in temporal.heads_of(args.tasks):
        panels.append((temporal.PANELS[name], f"accuracy_{name}", f"held_out_{name}"))
    panels += [(words, None, name) for name, words in temporal.SYNCHRONISATION.items()]
    panels.append((("training loss (all terms)", "nats"), "loss", None))
    assert len(figure.axes) == len(panels) == 13
    (chance,) = read_log(out, "chance")
    chance |= temporal.CHANCE
    for (words, in_training, held_out), axes in zip(panels, figure.axes):
        assert (axes.get_title(), axes.get_ylabel()) == words
        heights = [list(line.get_ydata()) for line in axes.get_lines()]
        guessing = [chance.get(in_training, chance.get(held_out))] * 2
        assert heights == [read_log(out, in_training), read_log(out, held_out), guessing]


def test_pairs_are_mined_once_the_bank_is_full(whole):
    """Before, a clip has 6 negatives, ln 7 = 1.95; then 4 mined ones more, ln 11 = 2.40."""
    out, _ = whole
    losses = read_log(out, "contrast_va")
    assert max(losses[:4]) < 2.1 < 2.25 < min(losses[4:])
    bank = load_checkpoint(out)["bank"]
    assert bank["_extra_state"] == 14 * 16
    # The title of each clip of the last four steps, the oldest of which lies in the middle.
    args = temporal.parse_args(flags_of(out, out))
    counts = load_checkpoint(out)["progress"]["counts"]
    sampler = temporal.HierarchicalSampler(counts, args.batch_size, args.k, args.w, args.seed)
    sampler.set_epoch(1)
    titles = [[n for n, _, _ in sampler.batch(step)] for step in (5, 6, 3, 4)]
    assert bank["title"].tolist() == sum(titles, [])


@pytest.fixture
def without_pictures(monkeypatch):
    """A picture of 13 panels takes longer than a step."""
    monkeypatch.setattr(temporal, "draw_run", lambda rows, args, path: path.touch())


class Killed(Exception):
    pass


def test_a_killed_run_resumes_to_the_same_weights_and_the_same_bank(
    whole, world, tmp_path, monkeypatch, without_pictures
):
    """It is killed in its ninth step, between the two shares; the seventh was saved."""
    out, _ = whole
    loss_of_share, added = temporal.loss_of_share, []

    def killed(batch, batch_key, fronts, parallel, bank, *rest):
        added.append(bank.added)
        if len(added) == 18:
            raise Killed
        return loss_of_share(batch, batch_key, fronts, parallel, bank, *rest)

    args = temporal.parse_args(flags_of(world, tmp_path / "killed"))
    with monkeypatch.context() as patch:
        patch.setattr(temporal, "loss_of_share", killed)
        with pytest.raises(Killed):
            temporal.main(args)
    assert len(read_log(tmp_path / "killed")) == 8
    # No clip of a step is in the bank before all shares of the step have been mined for.
    assert added == [16 * (share // 2) for share in range(18)]
    temporal.main(args)
    resumed = load_checkpoint(tmp_path / "killed")
    parts = ("video", "audio", "video_head", "audio_head", "temporal_heads", "bank")
    for name in (*parts, "optimizer", "progress"):
        assert_equal(resumed[name], load_checkpoint(out)[name])
    for name in ("loss", "contrast_vv", "accuracy_speed_video", "held_out_order_va"):
        assert read_log(tmp_path / "killed", name) == read_log(out, name)


def test_a_run_that_ends_inside_a_step_resumes_to_the_same_weights(
    whole, world, tmp_path, monkeypatch, without_pictures
):
    """The second share of step 13 cannot be read. The first one has moved BatchNorm's means."""
    out, _ = whole
    next_batch, asked = temporal.next_batch, []

    def broken(batches, save):
        asked.append(save)
        if len(asked) == 26:
            save()
            raise BadInput("the storage is gone")
        return next_batch(batches, save)

    args = temporal.parse_args(flags_of(world, tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(temporal, "next_batch", broken)
        with pytest.raises(BadInput, match="the storage is gone"):
            temporal.main(args)
    assert load_checkpoint(tmp_path)["progress"]["step"] == 12
    temporal.main(args)
    for name in ("video", "audio", "bank"):
        assert_equal(load_checkpoint(tmp_path)[name], load_checkpoint(out)[name])


def test_two_processes_take_the_steps_of_one_and_hold_one_bank(
    whole, world, tmp_path, monkeypatch, without_pictures
):
    out, _ = whole
    args = temporal.parse_args(flags_of(world, tmp_path / "two"))
    add_to_bank = temporal.add_to_bank

    def add_and_keep(bank, *rest):
        add_to_bank(bank, *rest)
        torch.save(bank.state_dict(), "bank.pt")

    monkeypatch.setattr(temporal, "add_to_bank", add_and_keep)
    folders = [tmp_path / "node0", tmp_path / "node1"]
    for folder in folders:
        folder.mkdir()
    on_two_nodes(lambda: temporal.main(args), folders)
    of_nodes = [torch.load(folder / "bank.pt", weights_only=True) for folder in folders]
    assert_equal(*of_nodes)
    alone = load_checkpoint(out)["bank"]
    assert torch.equal(of_nodes[0]["title"], alone["title"])
    # Six steps, of which two mine pairs; the rounding of sums grows from step to step.
    losses, losses_of_two = read_log(out), read_log(tmp_path / "two")
    assert losses_of_two[:6] == pytest.approx(losses[:6], rel=1e-3)


def test_a_step_that_is_not_finite_adds_nothing_to_the_bank(
    world, tmp_path, monkeypatch, without_pictures
):
    """A run of one epoch without tasks: it has no heads, and its loss is that of the contrasts."""
    loss_of_share, calls = temporal.loss_of_share, []

    def damaged(*args):
        loss, numbers, clips = loss_of_share(*args)
        calls.append(loss)
        if len(calls) == 3:  # the second step
            return loss * math.nan, numbers * math.nan, clips
        return loss, numbers, clips

    monkeypatch.setattr(temporal, "loss_of_share", damaged)
    flags = flags_of(world, tmp_path, "--tasks", "none", "--epochs", 1)
    temporal.main(temporal.parse_args(flags))
    checkpoint = load_checkpoint(tmp_path)
    assert checkpoint["temporal_heads"] == {}
    assert checkpoint["progress"]["skipped"] == 1
    assert checkpoint["bank"]["_extra_state"] == 16 * 6
    terms = [read_log(tmp_path, name) for name in temporal.CONTRASTS]
    assert read_log(tmp_path) == pytest.approx([0.2 * sum(of_step) for of_step in zip(*terms)])
    assert "NaN" not in (tmp_path / "log.jsonl").read_text().replace("loss nan", "")


def test_fine_tuning_takes_the_networks_and_neither_heads_nor_bank(whole, toy, tmp_path):
    out, _ = whole
    ckpt = out / "checkpoint.pt"
    _, printed = fine_tune(toy, tmp_path, "toy-action", "--ckpt", ckpt, "--probe", "--frames", 4)
    assert f"weights: video of {ckpt} (epoch 2, step 14, k 2)" in printed


def test_held_out_clips_are_played_at_all_speeds_and_keyed_apart_from_training(world):
    args = temporal.parse_args(flags_of(world, "unused"))
    fmt = Format.of(args)
    titles = temporal.TemporalTitles(world / "films", fmt, temporal.parse_speeds(args.speeds))
    shares = temporal.held_out_shares(titles, args)
    assert [len(share) for share in shares] == [8, 8, 8]  # 4 snippets of 6 titles
    keys = {key for share in shares for _, _, key in share}
    assert len(keys) == 24 and {len(key) for key in keys} == {5}
    labels = [titles[sample] for sample in shares[0] + shares[1]]
    assert {item["speed_video"] for item in labels} == {0, 1}
    assert {item["backward_audio"] for item in labels} == {0, 1}
    args.w = args.k = 100
    assert temporal.held_out_shares(titles, args) == []


def test_one_title_or_too_short_ones_are_refused(world):
    args = temporal.parse_args(flags_of(world, "unused", "--k", 8, "--w", 12))
    titles = temporal.TemporalTitles(world / "films", Format.of(args), ((1,), (1,)))
    alone = titles.subset([0, 1])
    alone.counts[1] = 7  # no place for k clips
    with pytest.raises(BadInput, match="one title to train on is long enough for --k 8, and neg"):
        temporal.make_sampler(args, alone)
    args.k = args.w = 500
    args.batch_size = 1000
    with pytest.raises(BadInput, match="take lower --speeds, fewer --frames, a smaller --k, or"):
        temporal.make_sampler(args, titles)
    args.k, args.w, args.share, args.batch_size = 8, 12, 16, 64
    with pytest.raises(BadInput, match="of 3 titles to train on some shares would hold one alone"):
        temporal.make_sampler(args, titles.subset([0, 1, 2]))


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--speeds 1,2,4", "--speeds 1,2,4: must be whole numbers of the sight, then of the sound"),
        ("--speeds 1,x/1,2", "from 1 upwards: 1,2,4,8/1,2"),
        ("--speeds 2,4/1,2", "from 1 upwards"),
        ("--speeds 1,2,2/1,2", "from 1 upwards"),
        ("--speeds 1/1,2", "two or more of each, or leave speed out of --tasks"),
        ("--tasks speed,pitch", "none, or some of speed, direction, order, each once"),
        ("--tasks none,speed", "none, or some of speed, direction, order, each once"),
        ("--rate 22050", "--rate 22050: must be 16000 at the most"),
        ("--bank 100", "--bank 100: must be 0, or a multiple of --batch-size (64) and 296 or more"),
        ("--bank 256", "296 or more, 4 x (10 + --mined-negatives)"),
        ("--mined-negatives 0", "above 0 (--bank 0 mines none)"),
        ("--k 1", "a clip needs another one of its title"),
        ("--k 64", "and negatives of other titles"),
        ("--k 8", "--w 5: must be --k (8) or more"),
        ("--tau 0", "--tau 0.0: must be above 0"),
    ],
)
def test_what_cannot_be_trained_is_refused(flags, message, tmp_path, monkeypatch):
    """And nothing is left behind: neither the folder of a run nor a toy world."""
    monkeypatch.chdir(tmp_path)
    assert message in refused("papers.temporal", "--toy", *flags.split())
    assert not list(tmp_path.iterdir())
