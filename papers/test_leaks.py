"""Does anything but the film tell how a clip is played? The guard of the samples of temporal.py.

A film here is a still picture with fresh grain on every frame, and its sound is pink noise, which
is the same at every speed. So nothing in it tells the speed or the direction of a clip, and what a
classifier learns to tell was added by the file or by its reading. Without grain the classifier
would not see what an encoder does. The codecs are those of `media prepare`.

The classifier is a logistic regression on simple statistics of what the networks would get. It is
fitted on the clips of one half of the films and tested on those of the other half. Each leak that
is closed is opened once, and has to be found.

With 20 seeds the right answers were within 2.8 standard errors of chance, and each leak was found
with all of 8 seeds. Of more clips, 6,000 of sight and 15,000 of sound, 24.5 % of the speeds and
48.9 % of the directions of sight were told, and 50.4 % and 50.3 % of those of sound.
"""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import papers.temporal as temporal
from data import AudioFrontEnd, VideoFrontEnd, collate
from media.format import Format
from media.prepare import PREPARED, prepare, write_media

# Clips are short and frames are many, so that 100 clips that share nothing take 64 s of film. At
# most a clip takes a PLACE: that is of sight at 8 times the speed, and of sound at twice the speed.
OF_SIGHT = Format(frames=8, fps=100, short_side=32, crop=24, rate=16000)
OF_SOUND = Format(frames=8, fps=25, short_side=32, crop=24, rate=16000, n_fft=512, hop=160, mels=40)
SOUND_ALONE = ((1,), (1, 2))  # speeds
AS_FILMED = ((1,), (1,))

PLACE = 0.64  # seconds, for one clip
PLACES = 100  # of a film
# A film that pans has 32 pixels, of which at most 4 pass from frame to frame, and 15 at speed 4.
PANNING = Format(frames=8, fps=10, short_side=32, crop=32, rate=16000, n_fft=512, hop=160, mels=40)
PAN = 4.0  # seconds, for one clip
PANS = 16  # of a film

GRAIN = 3.0  # levels, rms: the steps of the encoder are 6 levels
LOUDNESS = 0.1  # rms
FIRST_CODEC = ("ac3", {"b": "96k"})  # what `media prepare` wrote at first


# --------------------------------------------------------------------------------------------------
# Films of noise
# --------------------------------------------------------------------------------------------------


def write_films(folder, count, fmt, seed=0, gop=1, sound=PREPARED["sound"], cut=None):
    """Write films of noise into a folder, with the frames a second of `fmt`, and return it.

    gop    frames of a group of pictures; None is the default of `media prepare`
    sound  its codec and options
    cut    Hz; the noise has nothing above
    """
    film = Format(frames=8, fps=fmt.fps, rate=48000)
    snippets = round(PLACES * PLACE / film.seconds)
    folder.mkdir(exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        images = grainy_still(rng, snippets * film.frames)
        noise = pink_noise(rng, snippets * film.samples, film.rate, cut)
        path = folder / f"{number}.mkv"
        write_media(path, [(images, noise)], film, PREPARED["picture"], sound, gop)
    return folder


def grainy_still(rng, count):
    """uint8 (count, 32, 32, 3): one picture of 8 x 8 tiles, with the grain of each frame."""
    tiles = rng.uniform(40, 215, (8, 8, 3)).repeat(4, axis=0).repeat(4, axis=1)
    grain = GRAIN * rng.standard_normal((count, 32, 32, 1), np.float32)
    return (tiles.round().astype(np.int16) + grain.round().astype(np.int16)).astype(np.uint8)


def pink_noise(rng, samples, rate, cut):
    """float32 (samples,) whose power falls as 1 / f: twice as fast, it has the same spectrum.

    It does so down to the lowest frequency of all: noise that does so from 20 Hz on tells its speed
    in the lowest mel filter.
    """
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hz = np.fft.rfftfreq(samples, 1 / rate)
    spectrum[1:] /= np.sqrt(hz[1:])
    spectrum[0] = 0
    if cut is not None:
        spectrum[hz > cut] = 0
    noise = np.fft.irfft(spectrum, samples)
    return (LOUDNESS * noise / noise.std()).astype(np.float32)


# --------------------------------------------------------------------------------------------------
# Statistics of what the networks would get
# --------------------------------------------------------------------------------------------------


def statistics_of_video(video):
    """(B, 3, T, H, W) -> (B, 6 T - 3): along the clip, and in the order of their size."""
    grey = video.mean(1)  # (B, T, H, W)
    level = grey.mean((2, 3))
    spread = log_of(grey.std((2, 3)))
    sharpness = log_of(grey.diff(dim=3).abs().mean((2, 3)) + grey.diff(dim=2).abs().mean((2, 3)))
    change = log_of(grey.diff(dim=1).abs().mean((2, 3)))  # (B, T - 1)
    # A sawtooth has a few large steps in one direction, wherever its teeth are.
    steps = sharpness.diff(dim=1).sort(dim=1).values
    level = level - level.mean(1, keepdim=True)
    changes = change.sort(dim=1).values
    return torch.cat([level, spread, sharpness, change, steps, changes], dim=1)


def log_of(amounts):
    return (amounts + 1e-3).log()  # A frame may equal the one before.


def statistics_of_audio(audio):
    """(B, 1, P, Q) -> (B, 7 P + 8): of each filter, and along the clip."""
    audio = audio.squeeze(1)  # (B, P, Q)
    mean = audio.mean(2, keepdim=True)  # (B, P, 1)
    rest = audio - mean
    with_next = (rest[:, :, 1:] * rest[:, :, :-1]).mean(2) / rest.square().mean(2)
    parts = rest.mean(1).tensor_split(8, dim=1)
    along = torch.stack([part.mean(1) for part in parts], dim=1)  # (B, 8)
    ends = rest[:, :, [0, 1, -2, -1]].flatten(1)  # (B, 4 P)
    return torch.cat([mean.flatten(1), rest.std(2), with_next, along, ends], dim=1)


def read_clips(folder, fmt, speeds, seed=0, gap=0.0):
    """Read a clip at each place of the films.

    Clips that share frames or sound would be right or wrong together. So these share nothing.

    gap  seconds between two places

    Returns a dict of their `video` (B, 3, T, H, W) and `audio` (B, 1, P, Q) as the networks get
    them, their labels (B,) and `title` (B,).
    """
    titles = temporal.TemporalTitles(folder, fmt, speeds, stride=PLACE + gap)
    places = [(n, m) for n, count in enumerate(titles.counts) for m in range(count)]
    clips = collate([titles[n, m, (seed, 0, 0, i)] for i, (n, m) in enumerate(places)])
    assert not any(clips.pop("failures"))
    clips["video"] = VideoFrontEnd()(clips["video"])
    clips["audio"] = AudioFrontEnd(fmt)(clips.pop("waveform"))
    return clips


def told(x, labels, title):
    """The share of clips of every second film of which a logistic regression knows the label.

    It is fitted on those of the other films.

    x  (B, number of statistics)
    """
    half = title % 2 == 0
    mean, std = x[half].mean(0), x[half].std(0)
    x = ((x - mean) / (std + 1e-6)).clamp(-5, 5)
    weight = torch.zeros(x.shape[1], int(labels.max()) + 1, requires_grad=True)
    bias = torch.zeros(weight.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(x[half] @ weight + bias, labels[half])
        loss = loss + 0.02 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    right = (x @ weight + bias).argmax(1) == labels
    return right[~half].double().mean().item()


# --------------------------------------------------------------------------------------------------
# The guard
# --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Six films, prepared with every frame a key frame."""
    return write_films(tmp_path_factory.mktemp("leaks") / "films", 6, OF_SIGHT)


@pytest.fixture(scope="module")
def seen(films):
    clips = read_clips(films, OF_SIGHT, temporal.SPEEDS)
    return clips | {"statistics": statistics_of_video(clips["video"])}


@pytest.fixture(scope="module")
def heard(films):
    clips = read_clips(films, OF_SOUND, SOUND_ALONE)
    return clips | {"statistics": statistics_of_audio(clips["audio"])}


@pytest.mark.parametrize(
    "clips, label, chance",
    [
        ("seen", "speed_video", 1 / 4),
        ("seen", "backward_video", 1 / 2),
        ("heard", "speed_audio", 1 / 2),
        ("heard", "backward_audio", 1 / 2),
    ],
)
def test_nothing_but_the_film_tells_how_a_clip_is_played(request, clips, label, chance):
    """Of 300 clips, a standard error is 2.5 % of the four speeds, and 2.9 % of the others."""
    clips = request.getfixturevalue(clips)
    assert len(clips["title"]) == 600
    error = (chance * (1 - chance) / 300) ** 0.5
    right = told(clips["statistics"], clips[label], clips["title"])
    assert abs(right - chance) < 3 * error


# --------------------------------------------------------------------------------------------------
# Each leak, opened once
# --------------------------------------------------------------------------------------------------

FOUND = 0.9


@pytest.fixture(scope="module")
def two_films(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("leaks") / "films", 2, OF_SOUND)


@pytest.fixture(scope="module")
def grouped(tmp_path_factory):
    """Four films with the groups of pictures that `media prepare` makes by default."""
    return write_films(tmp_path_factory.mktemp("leaks") / "films", 4, OF_SIGHT, gop=None)


def told_of_sight(folder, speeds, label, gap=0.0):
    clips = read_clips(folder, OF_SIGHT, speeds, gap=gap)
    return told(statistics_of_video(clips["video"]), clips[label], clips["title"])


def told_of_speed(folder, fmt=OF_SOUND):
    clips = read_clips(folder, fmt, SOUND_ALONE)
    return told(statistics_of_audio(clips["audio"]), clips["speed_audio"], clips["title"])


def test_groups_of_pictures_tell_the_direction_and_the_speed(grouped):
    """The direction at speed 1: at speed 8, every frame has the same place in its group."""
    assert told_of_sight(grouped, AS_FILMED, "backward_video") > FOUND
    assert told_of_sight(grouped, temporal.SPEEDS, "speed_video") > FOUND


def test_groups_of_pictures_tell_the_speed_wherever_a_clip_begins_in_them(grouped):
    """So files that were not prepared leak: grain stays for longer than a frame in them."""
    assert told_of_sight(grouped, temporal.SPEEDS, "speed_video", gap=0.01) > 0.6  # 0.25 by chance


@pytest.mark.parametrize("rate, at_least, at_most", [(24, FOUND, 1), (30, 0.3, 0.7)])
def test_frames_that_are_unevenly_apart_tell_the_speed(tmp_path, rate, at_least, at_most):
    """At 10 frames a second those of a film of 24 are 2 or 3 apart, but 9 or 10 at speed 4.

    Of a film of 30 they are 3 apart. Half of the clips have speed 1; a standard error is 6 %.
    """
    source, folder = tmp_path / "source", tmp_path / "films"
    write_pans(source, 4, rate)
    prepare(source, folder, dataclasses.replace(PANNING, rate=48000), gop=1)
    titles = temporal.TemporalTitles(folder, PANNING, ((1, 4), (1,)), stride=PAN)
    places = [(n, m) for n, count in enumerate(titles.counts) for m in range(count)]
    clips = collate([titles[n, m, (0, 0, 0, i)] for i, (n, m) in enumerate(places)])
    uneven = unevenness(VideoFrontEnd()(clips["video"]))
    assert at_least < told(uneven, clips["speed_video"], clips["title"]) <= at_most


def write_pans(folder, count, fps):
    """Write films whose camera pans over one wave, PANS times, each time as fast as it likes."""
    folder.mkdir()
    film = Format(frames=8, fps=fps, rate=48000)
    times = np.arange(int(PANS * PAN * fps) // 8 * 8) / fps
    for number in range(count):
        rng = np.random.default_rng(number)
        # No pan begins or ends in a clip.
        pan = (times / PAN + 0.1).astype(int)
        velocity = rng.uniform(18, 36, PANS + 1)[pan]  # pixels a second
        phase = 2 * np.pi / 32 * (np.arange(32) - (velocity * times)[:, None])  # (frames, 32)
        wave = (128 + 100 * np.sin(phase)).round().astype(np.uint8)
        images = np.broadcast_to(wave[:, None, :, None], (len(times), 32, 32, 3))
        silence = np.zeros(len(times) // 8 * film.samples, np.float32)
        write_media(folder / f"{number}.mkv", [(images, silence)], film, **PREPARED)


def unevenness(video):
    """(B, 3, T, H, W) -> (B, T - 1): by how much each step of a pan differs from their mean.

    In the order of their size. What differs by less than an eighth may be the codec's noise.
    """
    phase = torch.fft.rfft(video.mean((1, 3)), dim=2)[:, :, 1].angle()  # (B, T), of the wave
    step = phase.diff(dim=1).remainder(2 * torch.pi)
    step = torch.minimum(step, 2 * torch.pi - step)
    difference = step / step.mean(1, keepdim=True) - 1
    return torch.where(difference.abs() > 0.12, difference, 0).sort(dim=1).values


def test_skipped_columns_of_the_spectrogram_tell_the_speed(two_films):
    """Neighbouring columns share most of their samples, and every second ones share fewer."""
    clips = read_clips(two_films, OF_SOUND, AS_FILMED)
    faster = torch.from_numpy(np.random.default_rng(0).integers(2, size=len(clips["title"])))
    audio = clips["audio"]  # (B, 1, P, Q)
    Q = audio.shape[-1] // 2
    skipped, kept = audio[..., : 2 * Q : 2], audio[..., :Q]
    audio = torch.where(faster.bool()[:, None, None, None], skipped, kept)
    assert told(statistics_of_audio(audio), faster, clips["title"]) > FOUND


def test_another_low_pass_at_speed_1_tells_the_speed(films, monkeypatch):
    resample_to_speed = temporal.resample_to_speed

    def leaking(sound, q):
        if q == 1:  # Every second sample, without a low-pass.
            return sound[::2][temporal.MARGIN : -temporal.MARGIN]
        return resample_to_speed(sound, q)

    monkeypatch.setattr(temporal, "resample_to_speed", leaking)
    assert told_of_speed(films) > FOUND


@pytest.mark.parametrize(
    "what, at_least",
    [({"cut": 15000}, FOUND), ({"sound": FIRST_CODEC}, FOUND), ({}, 0.65)],
    ids=["cut at 15 kHz", "AC-3", "as prepared"],
)
def test_above_8_khz_a_codec_tells_the_speed(tmp_path, monkeypatch, what, at_least):
    """What a codec cuts off or makes coarse from a frequency on is heard from twice that frequency
    on at twice the speed. So the rate of a clip is limited, and that is lifted here.
    """
    monkeypatch.setattr(temporal, "HIGHEST_RATE", 48000)
    fmt = dataclasses.replace(OF_SOUND, rate=48000, n_fft=2048, hop=480, mels=96)
    write_films(tmp_path, 2, OF_SOUND, **what)
    assert told_of_speed(tmp_path, fmt) > at_least


def test_a_source_without_high_frequencies_tells_the_speed(tmp_path):
    """Reading cannot close this leak: the sound of a film has to reach 8 kHz."""
    write_films(tmp_path, 2, OF_SOUND, cut=7000)
    assert told_of_speed(tmp_path) > FOUND
