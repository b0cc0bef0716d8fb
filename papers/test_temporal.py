"""Tests of papers/temporal.py, in the order of its file."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from torchaudio.functional import resample

import papers.temporal as temporal
from data import stack_frames
from harness.errors import BadInput
from harness.fixtures import damage
from media.format import Format
from media.prepare import write_media
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


def labels_of(item):
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
        assert labels == labels_of(item)
        assert item["span_video"] == pytest.approx(0.8 * [1, 2, 4, 8][labels[0]])
        assert item["span_audio"] == pytest.approx(0.8 * [1, 2][labels[1]])
        assert (item["title"], item["begin"]) == (n, pytest.approx(0.8 * m))
        drawn.add(tuple(labels))
    # Of 32 equally likely ways, 96 draws miss 1.5 on average.
    assert len(drawn) >= 28


def test_without_a_key_a_clip_is_as_it_was_filmed(numbered):
    titles = temporal.TemporalTitles(numbered, CLIP)
    item = titles[0, 2, None]
    assert [item[name] for name in LABELS] == [0, 0, 0, 0] == labels_of(item)
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
        assert labels == labels_of(item)
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
