"""Tests of papers/temporal.py, in the order of its file."""

import numpy as np
import pytest
import torch

import papers.temporal as temporal
from data import stack_frames
from media.format import Format
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
