"""Tests of papers/temporal.py, in the order of its file."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import papers.temporal as temporal
from data import stack_frames
from media.format import MINING, Format, rng_of
from media.prepare import write_media

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
    def next_of(*title):
        return temporal.next_of_title(torch.tensor(title)).tolist()

    assert next_of(7, 7, 3, 3) == [1, 0, 3, 2]
    assert next_of(7, 7, 7, 3, 3, 3) == [1, 2, 0, 4, 5, 3]
    assert next_of(7, 3, 7, 3) == [2, 3, 0, 1]
    assert next_of(7, 9, 3, 3) == [0, 1, 3, 2]  # of two titles the second clip was replaced


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
    labels = temporal.labels_of(batch, temporal.next_of_title(batch["title"]))
    assert labels["order_vv"].tolist() == [temporal.BEFORE, temporal.AFTER, temporal.UNKNOWN]
    assert labels["order_aa"].tolist() == [temporal.BEFORE, temporal.AFTER, temporal.UNKNOWN]
    batch["span_video"][0] = 6.4  # the sight of the first one now reaches into the second one
    labels = temporal.labels_of(batch, temporal.next_of_title(batch["title"]))
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
    following = temporal.next_of_title(TITLE).tolist()
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
    following = temporal.next_of_title(TITLE)
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
        z_v, z_a, title, temporal.next_of_title(title), None, None, TAU, NEGATIVES
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
