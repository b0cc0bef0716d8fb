"""Reading, collections, labels, the toy world, preparing, checking and scenes.

    python -m pytest -q media                      about a minute on two cores
    python -m pytest -q media -k "step or damaged"

The films are made here by FFmpeg's encoders (harness/fixtures.py) and read back through the
real decoders: they flash and beep together, so that frames and sound can be held against the
times at which they should come.
"""

import contextlib
import errno
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import warnings
from fractions import Fraction
from pathlib import Path
from time import sleep

import av
import numpy as np
import pytest
import torch
from tqdm import TqdmWarning

import media.__main__
import media.collection
import media.prepare
import media.reader
import media.toy
from data import AudioFrontEnd, Titles
from harness.errors import BadInput
from harness.files import in_own_process
from harness.fixtures import (
    EVENT,
    ROOT,
    RangeHandler,
    damage,
    is_lit,
    onset,
    refused,
    run_script,
    served,
    write_film,
)
from media.collection import collection_name, probe, read_collection
from media.format import Format
from media.labels import dcase2014, esc50, hmdb51, ucf101
from media.prepare import PREPARED, check_prepared, divides, write_media
from media.reader import (
    CENTRE,
    CLOCK,
    AudioConsumer,
    Consumer,
    Reader,
    VideoConsumer,
    crop,
    read_snippets,
)
from media.scenes import measure_novelty, pick_peaks

# A snippet as the toy world's: 1.6 s, 8 frames of 40 x 40 pixels, 16 kHz.
TINY = Format(frames=8, fps=5, short_side=40, crop=32, rate=16000, n_fft=1024, hop=256, mels=64)
TINY_FLAGS = "--frames 8 --rate 16000 --n-fft 1024 --hop 256 --mels 64".split()


# --------------------------------------------------------------------------------------------
# Reading: what a film of flashes and beeps should give
# --------------------------------------------------------------------------------------------


def is_white(frame):
    return frame.to_ndarray(format="gray").mean() > 140


class Timeline:
    """When each frame of a film of `write_film` is on screen, from its packets, which are sorted
    by time: without a seek and without decoding.

    zero  where the film's own 0 s lies on the file's clock
    """

    def __init__(self, path, fps=25, lead=0.0, times=None):
        due = []
        with av.open(str(path)) as file:
            for packet in file.demux(video=0):
                if packet.size:
                    stamp = packet.dts if packet.pts is None else packet.pts
                    due.append(float(stamp * packet.time_base))
        if times is None:
            written = np.arange(10**4) / float(fps)
        else:
            written = np.array(times) / 1000
        self.due = np.sort(due)
        self.written = written[written >= lead - 1e-9][: len(due)]
        assert len(self.due) == len(self.written), (len(self.due), len(self.written))
        self.zero = self.due[0] - self.written[0]

    def is_lit(self, time):
        """Whether the frame on screen at this time of the file's clock is white."""
        frame = np.searchsorted(self.due, time + CLOCK) - 1
        return is_lit(self.written[frame])


class EvenTimeline:
    """A film's timeline if each flash comes when it should: every 2 s from `zero` on."""

    def __init__(self, zero):
        self.zero = zero

    def is_lit(self, time):
        return is_lit(time - self.zero + CLOCK)


def assert_in_step(reader, cuts, timeline, seconds=20, loud=0.2, slack=(0.0, 0.02)):
    """Snippets cut anywhere show the frames of their times, and beeps begin when they should.

    cuts      seconds of the film
    timeline  where the film's own 0 s lies on the file's clock, and which frames are white
    seconds   length of the film
    loud      a beep is louder than this
    slack     seconds by which frames and sound may be off, where the format knows no better
    """
    flash_slack, beep_slack = slack
    wrong = []
    for cut in cuts:
        times = timeline.zero + cut + np.arange(16) / 5
        frames, waveform = reader.read(times, times[0], 153600, 48000)
        assert len(frames) == 16
        assert waveform.shape == (153600,) and waveform.dtype == np.float32
        missed = missed_flashes(frames, times, timeline, flash_slack)
        if missed:
            wrong.append((round(cut, 3), "flash", missed))
        since_beep = cut % EVENT
        until_beep = EVENT - since_beep
        # Skip cuts inside a beep, and beeps cut off by the end.
        if since_beep > 0.25 and cut + until_beep < seconds - 0.2:
            late = first_sound(waveform, loud) - until_beep
            if abs(late) > beep_slack:
                wrong.append((round(cut, 3), "beep", round(late, 3)))
    assert not wrong


def missed_flashes(frames, times, timeline, slack):
    """The numbers of the frames that are white and should be black, or the reverse."""
    missed = []
    for t, (frame, time) in enumerate(zip(frames, times)):
        near = [timeline.is_lit(time + shift) for shift in (0, -slack, slack)]
        if is_white(frame) not in near:
            missed.append(t)
    return missed


def first_sound(waveform, loud):
    """When a waveform at 48 kHz is first louder than `loud`, in seconds."""
    samples = np.flatnonzero(abs(waveform) > loud)
    if len(samples) == 0:
        return np.inf
    return float(samples[0] / 48000)


def overwrite(path, tag, skip, new):
    """Replace bytes `skip` after the (first) tag."""
    raw = bytearray(path.read_bytes())
    assert raw.count(tag) >= 1
    position = raw.index(tag) + skip
    raw[position : position + len(new)] = new
    path.write_bytes(raw)


# --------------------------------------------------------------------------------------------
# Reading: one file
# --------------------------------------------------------------------------------------------


def test_avi_with_b_frames_is_read_by_its_decoding_times(tmp_path):
    """UCF101 is published so. AVI says when to decode, a frame or two from when to show."""
    path = write_film(tmp_path / "v.avi", video="mpeg4", audio=None, options={"bf": "2"})
    times = 5.1 + np.arange(16) / 5
    frames, _ = Reader(path).read(times)
    lit = [is_white(frame) for frame in frames]
    assert lit == [bool((time + 1e-3) % EVENT < 0.2) for time in times]
    assert sum(lit) == 2


def test_sound_without_a_time_goes_on_where_it_was():
    consumer = AudioConsumer(None, 1.0, 48, 48000)
    for value, pts in ((0.25, 48000), (0.5, None)):
        samples = np.full((1, 24), value, np.float32)
        block = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        block.sample_rate, block.time_base, block.pts = 48000, Fraction(1, 48000), pts
        consumer.lay([block])
    assert consumer.sound.tolist() == [0.25] * 24 + [0.5] * 24
    assert consumer.done


def no_picture(frame):
    return np.zeros(1)


def test_a_tenth_of_the_sound_may_be_missing_and_no_more(tmp_path):
    path = write_film(tmp_path / "film.mkv", 8, lead=(0.0, 0.5), options={"bf": "0"})
    reader = Reader(path)
    with pytest.raises(BadInput, match="damaged at 0.0 s"):
        read_snippets(reader, 0.0, 1, Format(), no_picture)
    frames, _ = read_snippets(reader, 0.4, 1, Format(), no_picture)
    assert len(frames) == 16


def test_past_the_end_the_last_frame_stays_and_silence(tmp_path):
    reader = Reader(write_film(tmp_path / "film.mkv", 4.1, options={"bf": "0"}))
    frames, sound = reader.read([1.0, 9.0], 3.9, 48000)
    assert [is_white(frame) for frame in frames] == [False, True]
    assert abs(sound[:9600]).max() > 0.2
    assert not sound[24000:].any()


def test_wide_pixels_are_shown_square(tmp_path):
    black = np.zeros((64, 72, 3), np.uint8)
    with av.open(str(tmp_path / "wide.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 72, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(16, 9)
        for _ in range(10):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(black)))
        out.mux(stream.encode())
    reader = Reader(tmp_path / "wide.mp4")
    frames, _ = reader.read([0.0])
    assert reader.resize(frames[0], 32).shape == (32, 64, 3)


CUTS = [*np.random.default_rng(0).uniform(0.1, 8.7, 7).tolist(), 0.0, 2.0, 3.9]

# Milliseconds at which frames are shown: 15 to 70 between two of them, 11 s in all.
VARIABLE = np.cumsum([0, *np.random.default_rng(1).integers(15, 70, 270)]).tolist()

NTSC = Fraction(30000, 1001)
CINEMA = Fraction(24000, 1001)
CENTRE_ALONE = dict(layout="5.1", only="FC")
TEN_BITS = dict(pix_fmt="yuv420p10le", options={"x265-params": "bframes=3"})

FORMATS = [
    ("a.mp4", "libx264", "aac", dict(fps=CINEMA)),
    ("b.mp4", "libx265", "eac3", dict(rate=48000, fps=30, **CENTRE_ALONE)),
    ("c.mkv", "libx265", "ac3", dict(rate=48000, layout="5.1", **TEN_BITS)),
    ("d.mkv", "libsvtav1", "libopus", dict(rate=48000, layout="7.1", fps=30)),
    ("e.mp4", "libsvtav1", "aac", dict(rate=22050, layout="mono")),
    ("f.webm", "libvpx-vp9", "libopus", dict(rate=48000, **CENTRE_ALONE)),
    ("g.webm", "libvpx-vp9", "vorbis", dict(fps=60)),
    ("h.mov", "mpeg4", "pcm_s16le", dict(rate=22050, layout="mono", fps=60)),
    ("i.mov", "libx264", "aac", dict(rate=48000, layout="7.1", only="FC")),
    ("j.avi", "mpeg4", "libmp3lame", dict()),
    ("k.avi", "libx264", "ac3", dict(rate=48000, options={"bf": "0"}, **CENTRE_ALONE)),
    ("l.ts", "libx264", "aac", dict(rate=48000, fps=30)),
    ("m.ts", "mpeg2video", "ac3", dict(**CENTRE_ALONE)),
    ("n.ts", "libx265", "eac3", dict(rate=48000, layout="mono", fps=CINEMA)),
    ("o.mpg", "mpeg2video", "mp2", dict(rate=48000)),
    ("p.mpg", "mpeg2video", "ac3", dict(rate=48000, fps=NTSC)),
    ("q.mkv", "libx264", "flac", dict(layout="7.1", only="FC", times=VARIABLE)),
    ("r.mp4", "libx264", "libmp3lame", dict(times=VARIABLE)),
    ("s.mkv", "libx264", "pcm_s16le", dict(rate=48000, options={"bf": "3"}, **CENTRE_ALONE)),
    ("t.ogv", "libvpx", "vorbis", dict()),
    ("u.ogv", "libtheora", "vorbis", dict()),
    ("v.wmv", "wmv2", "wmav2", dict()),
    ("w.flv", "libx264", "libmp3lame", dict()),
]


def is_encoder(name):
    try:
        return bool(av.Codec(name, "w"))
    except ValueError:
        return False


@pytest.mark.parametrize(
    "name, video, audio, how", FORMATS, ids=[" ".join(row[:3]) for row in FORMATS]
)
def test_every_kind_of_file_is_cut_in_step(tmp_path, name, video, audio, how):
    """Containers, codecs, layouts, rates and frame rates that users have.

    A film's beep may sit in its centre channel alone.
    """
    missing = [codec for codec in (video, audio) if not is_encoder(codec)]
    if missing:
        pytest.skip(f"FFmpeg has no encoder of {missing[0]} here")
    path = write_film(tmp_path / name, seconds=11, video=video, audio=audio, **how)
    timeline = Timeline(path, how.get("fps", 25), times=how.get("times"))
    # AVI has no times of presentation: FFmpeg guesses them, a frame late. A program stream has
    # one for a group of frames.
    slack = {".avi": (0.0, 0.06), ".mpg": (0.02, 0.04)}.get(path.suffix, (0.0, 0.02))
    assert_in_step(Reader(path), CUTS, timeline, 11, loud=0.1, slack=slack)


@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1", "7.1"])
def test_a_film_is_as_loud_in_mono_whatever_its_channels(tmp_path, layout):
    """FFmpeg's own mix of floats adds up channels: the loudness would tell stereo from mono."""
    how = dict(video="mpeg4", audio="pcm_s16le", rate=48000, layout=layout)
    path = write_film(tmp_path / "film.mkv", 4, **how)
    _, sound = Reader(path).read((), 2.0, 9600, 48000)
    assert abs(sound).max() == pytest.approx(0.8, abs=0.05)


LATE = [
    dict(start=7.2),
    dict(lead=(0.0, 0.5)),
    dict(lead=(0.5, 0.0)),
    dict(start=100, lead=(0, 0.76)),
]


@pytest.mark.parametrize("name", ["a.mp4", "b.mkv", "c.ts", "e.webm"])
@pytest.mark.parametrize("how", LATE, ids=str)
def test_streams_that_begin_late_stay_in_step(tmp_path, name, how):
    """Both streams, or one alone: mp4 says so in its edit lists, others by first timestamps."""
    codecs = dict(video="libx264", audio="aac", rate=44100)
    if name == "e.webm":
        codecs = dict(video="libvpx-vp9", audio="libopus", rate=48000)
    lead = how.get("lead", (0, 0))
    path = write_film(tmp_path / name, 11, **codecs, **how)
    timeline = Timeline(path, lead=lead[0])
    cuts = [0.8, 1.3, 2.7, 3.9, 5.61, 7.0]
    assert_in_step(Reader(path), cuts, timeline, 11)
    collection = read_collection(tmp_path, TINY)
    [[(_, start, snippets)]] = collection.parts
    assert snippets == int((11 - max(lead)) / 1.6)
    assert start == pytest.approx(timeline.zero + max(lead), abs=0.05)


def test_a_clock_that_wraps_stays_in_step(tmp_path):
    """A transport stream counts to 2**33 / 90 kHz = 26.5 h and starts again at 0.

    Recordings of television do so.
    """
    path = write_film(tmp_path / "film.ts", 20, start=95430)
    timeline = Timeline(path)
    cuts = [0.5, 5, 9.5, 11.1, 12.3, 13.5, 16]
    assert_in_step(Reader(path), cuts, timeline)
    assert read_collection(tmp_path, TINY).counts == [12]


@pytest.fixture(scope="session")
def piece(tmp_path_factory):
    """16 s whose streams both last a whole number of packets, to be laid end to end."""
    path = tmp_path_factory.mktemp("piece") / "piece.mp4"
    return write_film(path, 16, fps=5, rate=8000, gop=20)


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.ts"])
def test_two_hours_stay_in_step(tmp_path, piece, name):
    """Rounded timestamps add up; an index may be coarse, or absent as in a transport stream."""
    repeat(piece, tmp_path / name, 450)
    reader = Reader(tmp_path / name)
    start, end = reader.span(reader.video)
    assert end - start == pytest.approx(7200, abs=0.5)

    cuts = [0.5, 3601.3, 7111.7, 7180.9, 7190.6, 7195.5]
    assert_in_step(reader, cuts, EvenTimeline(start), 7199)
    assert read_collection(tmp_path, TINY).counts == [4500]


def repeat(source, path, times, period=16):
    """Write a film several times over, one behind the other, without encoding it again."""
    with av.open(str(source)) as file, av.open(str(path), "w") as out:
        streams = [out.add_stream_from_template(stream) for stream in file.streams]
        packets = []
        for packet in file.demux():
            if packet.size and packet.pts >= 0:
                clock = packet.time_base
                stamps = (packet.pts * clock, packet.dts * clock)
                packets.append((packet, packet.stream.index, *stamps))
        for n in range(times):
            for packet, index, pts, dts in packets:
                clock = packet.time_base
                packet.stream = streams[index]
                packet.pts = round((pts + n * period) / clock)
                packet.dts = round((dts + n * period) / clock)
                out.mux(packet)


def test_key_frames_may_be_far_apart_where_there_is_no_index(tmp_path):
    """Those of x264 are 250 frames apart: 25 s of a broadcast of 10 frames a second."""
    path = write_film(tmp_path / "film.ts", 40, fps=10, gop=250, options={"bf": "0"})
    assert_in_step(Reader(path), [0.0, 17.1, 20.9, 24.3, 36.5], Timeline(path, 10), 40)


def test_a_snippet_whose_key_frame_is_too_far_away_is_damaged(tmp_path):
    """It would show a frame that comes up to a minute later."""
    path = write_film(tmp_path / "film.ts", 120, fps=5, gop=500, rate=8000, options={"bf": "0"})
    reader = Reader(path)
    begin, _ = reader.span(reader.video, reader.audio)
    for second in (0, 50, 101, 110):
        read_snippets(reader, begin + second, 1, Format(), no_picture)
    with pytest.raises(BadInput, match="damaged at"):
        read_snippets(reader, begin + 90, 1, Format(), no_picture)


@pytest.mark.parametrize("cut, is_damaged", [(0.05, True), (0.07, False)])
def test_a_recording_that_begins_between_key_frames_may_miss_little(tmp_path, cut, is_damaged):
    """Key frames are 1.6 s apart, and the recording begins 0.7 or 0.3 s before the second one."""
    path = write_film(tmp_path / "film.ts", 20, gop=40, options={"bf": "0"})
    content = path.read_bytes()
    packet = 188  # bytes
    path.write_bytes(content[int(cut * len(content)) // packet * packet :])
    reader = Reader(path)
    begin, _ = reader.span(reader.video, reader.audio)
    refusal = pytest.raises(BadInput, match="damaged at")
    with refusal if is_damaged else contextlib.nullcontext():
        read_snippets(reader, begin, 1, Format(), no_picture)
    read_snippets(reader, begin + 3.2, 1, Format(), no_picture)


CHANGES = [
    ({}, dict(layout="5.1")),
    (dict(layout="5.1"), dict(layout="mono", rate=44100)),
    ({}, dict(size=(128, 48))),
    (dict(size=(80, 60)), dict(size=(48, 128))),
]


@pytest.mark.parametrize("first, second", CHANGES, ids=str)
def test_a_recording_whose_format_changes_midway(tmp_path, first, second):
    """As television does at an advertisement: from stereo to 5.1, or from 16:9 to 4:3."""
    content = b""
    for how, start in ((first, 2), (second, 8)):
        settings = {"rate": 48000, **how}
        half = write_film(tmp_path / "half.ts", 6, audio="ac3", start=start, **settings)
        content += half.read_bytes()
        half.unlink()
    (tmp_path / "film.ts").write_bytes(content)
    titles = Titles(tmp_path, TINY)
    assert titles.counts == [7]
    [[(_, begin, _)]] = titles.parts
    for m in range(7):
        sample = titles[0, m, (m,)]
        assert sample["video"].shape == (3, 8, 32, 32)
        assert sample["waveform"].shape == (TINY.samples,)
        # The seam lies in snippet 3, and frames of the old format may be lost there.
        if m == 3:
            continue
        times = begin + m * TINY.seconds + np.arange(8) / 5
        lit = [is_lit(time + 0.02) for time in times]
        white = sample["video"].float().mean((0, 2, 3)) > 140  # (8,)
        assert white.tolist() == lit, m
        # Beside each frame lie 3200 samples; a beep may begin or end a little late in them.
        beside_frames = sample["waveform"].reshape(8, -1)[:, 500:-1200]
        assert (beside_frames.abs().amax() > 0.2).item() == any(lit), m


@pytest.mark.parametrize("matrix", ["YCgCo", "bt2020c", "ICtCp"])
def test_colours_that_ffmpeg_cannot_convert_are_taken_for_those_of_bt709(tmp_path, matrix):
    image = np.full((48, 64, 3), (200, 80, 40), np.uint8)
    for name in (matrix, "bt709"):
        options = {"x264-params": f"colormatrix={name}"}
        write_film(tmp_path / f"{name}.mkv", 4, image=image, options=options)
    titles = Titles(tmp_path, TINY)
    assert titles.counts == [2, 2]
    for m in (0, 1):
        assert titles[0, m, (m,)]["failures"] == titles[1, m, (m,)]["failures"] == []
        assert np.array_equal(titles.read(0, m)[0], titles.read(1, m)[0])


@pytest.mark.parametrize(
    "degrees, matrix", [(90, (0, 1, -1, 0)), (180, (-1, 0, 0, -1)), (270, (0, -1, 1, 0))]
)
def test_a_film_from_a_telephone_is_shown_upright(tmp_path, degrees, matrix):
    """A telephone records as its sensor lies; the file says by how much to turn it, clockwise."""
    picture = np.full((48, 64, 3), 40, np.uint8)
    picture[:24, :24] = 255  # as stored: the top left corner is bright
    path = write_film(tmp_path / "film.mp4", 1, audio=None, image=picture)
    a, b, c, d = (number << 16 for number in matrix)
    overwrite(path, b"tkhd", 44, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))
    reader = Reader(path)
    frames, _ = reader.read([0.1])
    image = reader.resize(frames[0], 48)
    assert image.shape == ((48, 64, 3) if degrees == 180 else (64, 48, 3))
    corners = {0: image[4, 4], 90: image[4, -4], 180: image[-4, -4], 270: image[-4, 4]}
    bright = [angle for angle, pixel in corners.items() if pixel.mean() > 140]
    assert bright == [degrees]


# --------------------------------------------------------------------------------------------
# Reading: the default track, and that of a language
# --------------------------------------------------------------------------------------------


def merge(path, video, *tracks):
    """Write the frames of one film with the sounds of others.

    tracks  (film, its language or None, is it the default)
    """
    default_bit = av.stream.Disposition.default
    sources = [(video, "video", None, True)]
    sources += [(film, "audio", language, default) for film, language, default in tracks]
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(av.open(str(path), "w"))
        copies = []
        for film, kind, language, default in sources:
            file = stack.enter_context(av.open(str(film)))
            stream = next(stream for stream in file.streams if stream.type == kind)
            copy = out.add_stream_from_template(stream)
            copy.disposition = default_bit if default else av.stream.Disposition(0)
            if language:
                copy.metadata["language"] = language
            copies.append((stream, copy))
        packets = []
        for stream, copy in copies:
            for packet in stream.container.demux(stream):
                packet.stream = copy
                if packet.size:
                    packets.append(packet)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            out.mux(packet)
    return path


def hertz(reader):
    """The pitch of the beep at 2.0 s."""
    _, sound = reader.read((), 2.05, 4800, 48000)
    if abs(sound).max() <= 0.1:
        return 0
    return round(np.abs(np.fft.rfft(sound)).argmax() * 10, -2)


@pytest.mark.parametrize("name", ["film.mkv", "film.mp4", "film.ts"])
def test_the_track_of_the_language_else_the_default_one(tmp_path, name):
    """Dubbed films: `language` if it is there, else the file's default, else the first."""
    folder = tmp_path / "parts"
    folder.mkdir()
    a, b, c = (write_film(folder / f"{hz}.mp4", 6, tone=hz) for hz in (1000, 1500, 2000))
    has_default = name != "film.ts"  # a transport stream has none
    tracks = [(a, "eng", not has_default), (b, "deu", False), (c, "fra", has_default)]
    path = merge(tmp_path / name, a, *tracks)
    shutil.rmtree(folder)
    default = 2000 if has_default else 1000
    assert hertz(Reader(path)) == default
    assert hertz(Reader(path, language="deu")) == 1500
    assert hertz(Reader(path, language="eng")) == 1000
    assert hertz(Reader(path, language="jpn")) == default
    titles = Titles(tmp_path, TINY, language="deu")
    titles.read(0, 1)
    assert hertz(titles.reader) == 1500


def test_of_two_tracks_the_default_one(tmp_path):
    a, b = (write_film(tmp_path / f"{hz}.mp4", 6, tone=hz) for hz in (1000, 1500))
    out = tmp_path / "film.mkv"
    assert hertz(Reader(merge(out, a, (a, None, False), (b, None, True)))) == 1500
    assert hertz(Reader(merge(out, a, (a, None, False), (b, "eng", True)))) == 1500
    assert hertz(Reader(merge(out, a, (a, None, True), (b, None, False)))) == 1000
    assert hertz(Reader(merge(out, a, (a, None, False), (b, None, False)))) == 1000


@pytest.fixture(scope="session")
def dubbed(tmp_path_factory):
    """A collection of three films: with an English track, with others only, with no sound."""
    root = tmp_path_factory.mktemp("dubbed")
    a, b = (write_film(root / f"{hz}.mp4", 6, tone=hz) for hz in (1000, 1500))
    films = root / "films"
    films.mkdir()
    merge(films / "english.mp4", a, (a, "deu", True), (b, "eng", False))
    merge(films / "german.mp4", a, (a, "deu", True), (b, None, False))
    write_film(films / "mute.mp4", 4, audio=None)
    return films


def test_a_required_language_skips_the_files_without_it(dubbed):
    """Otherwise it is preferred. Neither answer is taken for the other."""
    preferred = read_collection(dubbed, TINY, "eng")
    assert preferred.names == ["english.mp4", "german.mp4"]
    required = read_collection(dubbed, TINY, "eng", require_language=True)
    assert required.names == ["english.mp4"]
    assert reasons_of(required) == {
        "german.mp4": "no audio track tagged eng (it has: deu, untagged)",
        "mute.mp4": "no sound",
    }
    assert read_collection(dubbed, TINY, "eng").names == preferred.names
    both = read_collection(dubbed, TINY, "deu", require_language=True)
    assert both.names == ["english.mp4", "german.mp4"]


def test_the_commands_require_a_language(dubbed, tmp_path):
    flags = "--language eng --frames 8 --require-language".split()
    reason = "german.mp4: no audio track tagged eng (it has: deu, untagged)"
    _, printed, _ = run_script("media", "check", dubbed, *flags)
    assert reason in printed and "1 titles" in printed
    ready = tmp_path / "ready"
    assert reason in prepare(dubbed, ready, *flags, "--short-side", 40)
    assert [path.name for path in ready.glob("*.mkv")] == ["english.mp4.mkv"]
    assert hertz(Reader(ready / "english.mp4.mkv")) == 1500
    error = refused("media", "prepare", dubbed, ready, *flags[:-1], "--short-side", 40)
    assert '"require_language": true' in error and "name another folder" in error
    for command in (["check", dubbed], ["prepare", dubbed, tmp_path / "none"]):
        assert "Add --language" in refused("media", *command, "--require-language")
    assert not (tmp_path / "none").exists()


def test_a_cache_of_the_index_stays_valid_where_no_language_is_required(tmp_path, monkeypatch):
    """The name of its file is that of the versions that could not require one."""
    used = []
    monkeypatch.setattr(
        media.collection, "cached", lambda depends_on, **how: used.append(depends_on) or {}
    )
    for require in (False, True):
        media.collection.index_files([], "FILMS", "eng", require_language=require)
    before = [*media.collection.identify("FILMS"), "eng", 2]
    assert used == [before, [*before, "require_language"]]


# --------------------------------------------------------------------------------------------
# Collections: what is there, what can be used, and why the rest cannot
# --------------------------------------------------------------------------------------------


def reasons_of(collection):
    """{file name: why it was skipped}"""
    return {Path(path).name: why for path, why in collection.skipped}


def test_what_a_folder_of_films_must_be(tmp_path):
    with pytest.raises(BadInput, match="no such folder"):
        read_collection(tmp_path / "none", TINY)
    with pytest.raises(BadInput, match="no media files"):
        read_collection(tmp_path, TINY)
    (tmp_path / "text.mp4").write_text("not a film")
    write_film(tmp_path / "short.mp4", seconds=1)
    with pytest.raises(BadInput, match="nothing in it can be used, 2 skipped"):
        read_collection(tmp_path, TINY)


def last_moments(path):
    """Where frames and sound really end: what a player that reads to the end finds."""
    ends = {}
    with av.open(str(path)) as file, contextlib.suppress(av.error.FFmpegError):
        for packet in file.demux():
            if packet.size and packet.dts is not None:
                end = float((packet.dts + (packet.duration or 0)) * packet.time_base)
                ends[packet.stream.index] = max(end, ends.get(packet.stream.index, 0))
    return min(ends.values())


@pytest.mark.parametrize(
    "name, mux",
    [
        ("film.mkv", {}),
        ("film.mp4", {"movflags": "faststart"}),
        ("film.ts", {}),
        ("film.avi", {}),
        ("film.mpg", {}),
    ],
)
def test_a_film_cut_off_is_counted_by_what_is_there(tmp_path, name, mux):
    """A download that broke off: its header still promises the whole film."""
    codecs = {".avi": ("mpeg4", "libmp3lame"), ".mpg": ("mpeg2video", "mp2")}
    video, audio = codecs.get(Path(name).suffix, ("libx264", "aac"))
    how = dict(video=video, audio=audio, rate=48000, mux=mux, options={"bf": "0"})
    path = write_film(tmp_path / name, 20, **how)
    path.write_bytes(path.read_bytes()[: int(0.4 * path.stat().st_size)])
    reader = Reader(path)
    begin, _ = reader.span(reader.video, reader.audio)
    there = (last_moments(path) - begin) / TINY.seconds
    [count] = read_collection(tmp_path, TINY).counts
    assert int(there - 0.2) <= count <= int(there + 0.1)


@pytest.mark.parametrize("name", ["film.ts", "film.mkv"])
def test_a_film_that_ends_in_zeros_is_counted_by_what_is_there(tmp_path, name):
    """A download that has reserved its whole length."""
    path = write_film(tmp_path / name, 20, size=(320, 240), options={"bf": "0"})
    content = path.read_bytes()
    there = int(0.7 * len(content))
    path.write_bytes(content[:there] + bytes(len(content) - there))
    [count] = read_collection(tmp_path, TINY).counts
    assert 7 <= count <= 9


@pytest.mark.parametrize("name", ["film.ts", "film.mpg"])
@pytest.mark.parametrize(
    "starts, counted", [((2, 12), 12), ((2, 2), 6), ((100, 2), 0), ((2, 90), 0)]
)
def test_a_film_of_which_most_is_a_jump_of_its_clock_is_skipped(tmp_path, name, starts, counted):
    """Two recordings laid end to end: the second clock goes on, or is set back, or ahead.

    FFmpeg takes a step back of more than a minute for the end of a count of 26.5 hours.
    """
    films, content = tmp_path / "films", b""
    films.mkdir()
    write_film(films / "good.mp4", 4)
    for start in starts:
        how = dict(video="mpeg2video", audio="ac3", rate=48000, start=start)
        content += write_film(tmp_path / name, 10, **how).read_bytes()
    (films / name).write_bytes(content)
    collection = read_collection(films, TINY)
    if counted:
        counts = dict(zip(collection.names, collection.counts))
        assert counts == {name: counted, "good.mp4": 2}
    else:
        assert collection.names == ["good.mp4"]
        assert "its clock jumps" in reasons_of(collection)[name]


def test_a_film_that_lost_its_index_is_skipped_with_its_reason(tmp_path):
    """An mp4 whose recording was not ended has no index at its end: nothing can be found in it."""
    good = write_film(tmp_path / "good.mp4", 4)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a film\n" * 100)
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:10000])
    write_film(tmp_path / "mute.mp4", 4, audio=None)
    write_film(tmp_path / "radio.mp4", 4, video=None)
    write_film(tmp_path / "silent.mp4", 4, tone=0)
    collection = read_collection(tmp_path, TINY)
    reasons = reasons_of(collection)
    assert collection.names == ["good.mp4", "silent.mp4"]
    assert len(reasons) == 5
    assert reasons["mute.mp4"] == "no sound" and "no video" in reasons["radio.mp4"]
    for name in ("cut.mp4", "empty.mp4", "text.mp4"):
        assert "not a media file" in reasons[name]


def test_cover_art_is_no_video(tmp_path):
    cover = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8))
    radio_path, song_path = tmp_path / "radio.mka", tmp_path / "song.mp4"
    write_film(radio_path, 4, video=None)
    with av.open(str(radio_path)) as radio, av.open(str(song_path), "w") as out:
        art = out.add_stream("mjpeg", rate=1)
        art.width, art.height, art.pix_fmt = 64, 48, "yuvj420p"
        art.disposition = av.stream.Disposition.attached_pic
        sound = out.add_stream_from_template(radio.streams.audio[0])
        for packet in [*art.encode(cover), *art.encode()]:
            out.mux(packet)
        for packet in radio.demux():
            packet.stream = sound
            out.mux(packet)
    radio_path.unlink()
    write_film(tmp_path / "good.mp4", 4)
    collection = read_collection(tmp_path, TINY)
    assert collection.names == ["good.mp4"]
    assert collection.skipped == [(str(song_path), "no video")]


@pytest.mark.parametrize(
    "name, video, audio",
    [
        ("film.mp4", "libx264", "aac"),
        ("film.mkv", "libx264", "ac3"),
        ("film.ts", "libx264", "aac"),
        ("film.avi", "mpeg4", "libmp3lame"),
        ("film.webm", "libvpx-vp9", "libopus"),
    ],
)
def test_a_scratch_costs_the_snippets_it_lies_in_and_no_other(tmp_path, capfd, name, video, audio):
    """Random bytes in the middle: what lies there may be refused, in one line, or be damaged.

    The rest is as it was.
    """
    how = dict(video=video, audio=audio, rate=48000, gop=10, options={"bf": "0"})
    path = write_film(tmp_path / name, 20, **how)
    timeline = Timeline(path)
    damage(path, (0.4, 0.5))
    titles, right = Titles(tmp_path, TINY), set()
    assert titles.counts == [12]
    [[(_, begin, _)]] = titles.parts
    for m in range(12):
        try:
            crops, waveform = titles.read(0, m)
        except BadInput as error:
            assert str(error).startswith(f"{path}: damaged at ") and "\n" not in str(error)
            continue
        assert len(crops) == TINY.frames
        assert waveform.shape == (TINY.samples,) and np.isfinite(waveform).all()
        times = begin + m * TINY.seconds + np.arange(TINY.frames) / TINY.fps
        white = [crop.mean() > 140 for crop in crops]
        if white == [timeline.is_lit(time) for time in times]:
            right.add(m)
    assert {0, 1, 2, 8, 9, 10, 11} <= right
    assert capfd.readouterr().err == ""  # no decoder prints anything


def test_a_header_that_lies_is_not_believed(tmp_path):
    """Ten times the duration in a header: what is not there is not a snippet."""
    matroska = write_film(tmp_path / "film.mkv", 8)
    tag, raw = b"\x44\x89\x88", matroska.read_bytes()
    (duration,) = struct.unpack_from(">d", raw, raw.index(tag) + 3)
    overwrite(matroska, tag, 3, struct.pack(">d", 10 * duration))
    mp4 = write_film(tmp_path / "film.mp4", 8)
    raw = bytearray(mp4.read_bytes())
    for tag, skip in ((b"mvhd", 20), (b"mdhd", 20), (b"tkhd", 24), (b"elst", 12)):
        found = raw.find(tag)
        while found >= 0:
            (duration,) = struct.unpack_from(">I", raw, found + skip)
            struct.pack_into(">I", raw, found + skip, 10 * duration)
            found = raw.find(tag, found + 1)
    mp4.write_bytes(raw)
    assert set(read_collection(tmp_path, TINY).counts) <= {4, 5}


@pytest.mark.parametrize(
    "name, mux",
    [
        ("film.mkv", {"live": "1"}),
        ("film.webm", {"live": "1"}),
        ("film.ts", {}),
        ("film.mpg", {}),
    ],
)
def test_a_film_without_a_duration_in_its_header_is_counted(tmp_path, name, mux):
    """Programs that stream, or record to a pipe, write so; a transport stream has no header."""
    codecs = {".webm": ("libvpx-vp9", "libopus"), ".mpg": ("mpeg2video", "mp2")}
    video, audio = codecs.get(Path(name).suffix, ("libx264", "aac"))
    slack = (0.02, 0.04) if name == "film.mpg" else (0.0, 0.02)
    path = write_film(tmp_path / name, 20, video=video, audio=audio, rate=48000, mux=mux)
    timeline = Timeline(path)
    assert read_collection(tmp_path, TINY).counts == [12]
    cuts = [0.5, 5, 9.5, 14.3, 16.5]
    assert_in_step(Reader(path), cuts, timeline, slack=slack)


STRANGE_NAMES = [
    b"caf\xe9.mp4",
    b"Alien: Covenant.mp4",
    b"concat:x.mp4",
    b"100%d %s.mp4",
    b"-y.mp4",
    b"file:z.mp4",
    b"a\nb.mp4",
    "千と千尋.mp4".encode(),
]


def test_names_that_are_not_utf_8_and_names_that_look_like_addresses(tmp_path, monkeypatch):
    """Old discs have the first. FFmpeg takes what precedes a colon for a protocol, if it may."""
    write_film(tmp_path / "x.mp4", 4)
    for name in STRANGE_NAMES:
        shutil.copy(tmp_path / "x.mp4", os.fsencode(tmp_path) + b"/" + name)
    assert read_collection(tmp_path, TINY).counts == [2] * 9
    monkeypatch.chdir(tmp_path)
    titles = Titles(".", TINY)
    assert titles.counts == [2] * 9 and not titles.skipped
    for n in range(9):
        assert titles[n, 1, None]["failures"] == []
    (tmp_path / "x.mp4").unlink()
    assert read_collection(".", TINY).counts == [2] * 8


def test_links(tmp_path):
    """A link to a film or a show elsewhere is that film; one that leads in a circle is nothing."""
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "films"
    root.mkdir()
    for name in ("film.mp4", "whole/season/e1.mp4", "season/e1.mp4"):
        (elsewhere / name).parent.mkdir(parents=True, exist_ok=True)
        write_film(elsewhere / name, 4)
    (root / "film.mp4").symlink_to(elsewhere / "film.mp4")
    (root / "linked").symlink_to(elsewhere / "whole")
    (root / "show").mkdir()
    (root / "show" / "s1").symlink_to(elsewhere / "season")
    (root / "show" / "again").symlink_to(root / "show")
    (root / "show" / "self.mp4").symlink_to("self.mp4")
    (root / "gone.mp4").symlink_to("nothing.mp4")
    collection = read_collection(root, TINY)
    assert collection.names == ["film.mp4", "linked", "show"]
    assert collection.counts == [2, 2, 2]


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    """Else a show would be missing, and nobody would know."""
    write_film(tmp_path / "film.mp4", 4)
    (tmp_path / "show" / "season").mkdir(parents=True)
    for link in (tmp_path / "away", tmp_path / "show" / "season2"):
        link.symlink_to(tmp_path / "unmounted" / link.name)
    for name in ("scandir", "listdir"):
        read = getattr(os, name)

        def refuse(path, read=read):
            if str(path).endswith("season"):
                raise PermissionError(errno.EACCES, "Permission denied", path)
            return read(path)

        monkeypatch.setattr(os, name, refuse)
    collection = read_collection(tmp_path, TINY)
    assert collection.names == ["film.mp4"]
    reasons = reasons_of(collection)
    assert "No such file" in reasons["away"] and "No such file" in reasons["season2"]
    assert "Permission denied" in reasons["season"]


def test_a_list_that_is_not_in_utf8_is_refused(tmp_path):
    source = tmp_path / "LIST.txt"
    source.write_text("films/a.mkv\n", encoding="utf-16")
    with pytest.raises(BadInput, match="LIST.txt: is not a list in UTF-8; save it as UTF-8"):
        paths_of(source)


def test_a_file_that_cannot_be_read_is_skipped(tmp_path):
    """A broken disc answers like a process's memory at address 0. Root may read a locked file."""
    write_film(tmp_path / "good.mp4", 4)
    locked = write_film(tmp_path / "locked.mp4", 4)
    locked.chmod(0)
    (tmp_path / "broken.mp4").symlink_to("/proc/self/mem")
    os.mkfifo(tmp_path / "pipe.mp4")
    collection = read_collection(tmp_path, TINY)
    reasons = reasons_of(collection)
    if os.access(locked, os.R_OK):
        assert collection.names == ["good.mp4", "locked.mp4"]
    else:
        assert collection.names == ["good.mp4"] and "denied" in reasons["locked.mp4"]
    assert reasons["pipe.mp4"] == "not a file"
    assert reasons["broken.mp4"]


def test_a_track_that_appears_near_the_end_of_a_film_does_no_harm(tmp_path):
    """A program stream names its tracks nowhere, so one may have its first packet there."""
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    how = dict(video="mpeg2video", audio="mp2", rate=48000, gop=1)
    # So many bytes that the track is found neither at the beginning nor at the end.
    how |= dict(size=(320, 240), image=noise, options={"b": "20M"})
    content = b""
    for start, seconds, tracks in ((0, 4, 1), (4, 0.3, 2), (4.3, 0.5, 1)):
        part = write_film(tmp_path / "part.mpg", seconds, start=start, **how)
        if tracks == 2:
            part = merge(tmp_path / "two.mpg", part, (part, None, True), (part, None, False))
        content += part.read_bytes()
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "film.mpg").write_bytes(content)
    titles = Titles(tmp_path / "films", TINY)
    assert titles.names == ["film.mpg"] and titles.counts == [2]
    assert titles[0, 1, (0,)]["failures"] == []


def test_an_error_that_nobody_foresaw_costs_one_file(tmp_path, monkeypatch):
    for name in ("good.mp4", "odd.mp4"):
        write_film(tmp_path / name, 4)
    span = Reader.span

    def odd(reader, *streams):
        if reader.path.endswith("odd.mp4"):
            raise IndexError("list index out of range")
        return span(reader, *streams)

    monkeypatch.setattr(Reader, "span", odd)
    collection = read_collection(tmp_path, TINY)
    assert collection.names == ["good.mp4"]
    assert reasons_of(collection) == {"odd.mp4": "IndexError: list index out of range"}


REFERENCES = {
    "playlist.mp4": "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:5\n#EXTINF:4,\n"
    "{there}\n#EXT-X-ENDLIST\n",
    "playlist.ts": "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:4,\n{there}\n#EXT-X-ENDLIST\n",
    "script.mkv": "ffconcat version 1.0\nfile '{there}'\n",
    "session.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "a=control:{there}\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
    "dash.mp4": '<?xml version="1.0"?>\n'
    '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
    "<BaseURL>{there}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "asx.wmv": "[Reference]\nRef1={there}\n",
    "rtsp.mp4": "RTSPtext\nrtsp://127.0.0.1/x\n",
    "image.mkv": "<svg xmlns='http://www.w3.org/2000/svg' width='64' height='48'>"
    "<image href='{there}'/></svg>",
}


@pytest.fixture(scope="session")
def other_film(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("other") / "other.ts", 4)


@pytest.mark.parametrize("where", ["file", "path", "http"])
@pytest.mark.parametrize("name", REFERENCES)
def test_a_text_that_refers_to_another_file_is_refused(tmp_path, other_film, name, where):
    """A film must not make its reader fetch another: of this machine's, or of the network's."""
    other = shutil.copy(other_film, tmp_path / "other.ts")
    with served(tmp_path) as (url, asked):
        there = {"file": "other.ts", "path": str(other), "http": f"{url}/other.ts"}[where]
        (tmp_path / name).write_text(REFERENCES[name].format(there=there))
        with pytest.raises(BadInput, match="not a media file"):
            Reader(tmp_path / name)
        collection = read_collection(tmp_path, TINY)
        assert collection.names == ["other.ts"] and len(collection.skipped) == 1
        assert not asked


def test_a_list_names_paths_and_urls_and_a_show_is_a_line(tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    for name, seconds in (("a.mp4", 7), ("b.mkv", 4), ("c.mp4", 10)):
        write_film(films / name, seconds=seconds)
    with served(films) as (url, asked):
        lines = ["films/a.mp4", "", f"films/b.mkv\t{url}/c.mp4"]
        lines += [f"{url}/none.mp4", "films/none.mp4", ""]
        (tmp_path / "LIST.txt").write_text("\n".join(lines))
        titles = Titles(tmp_path / "LIST.txt", Format())
        assert titles.names == ["films/a.mp4", f"films/b.mkv\t{url}/c.mp4"]
        assert titles.counts == [2, 1 + 3]
        assert [Path(path).name for path, _ in titles.skipped] == ["none.mp4"] * 2
        assert "No such file" in titles.skipped[1][1]
        assert onset(titles[1, 3, None]["waveform"]) == pytest.approx(8.0 - 6.4, abs=0.02)
        remote, local = titles[1, 2, None], Titles(films, Format())[2, 1, None]
        assert remote["video"].equal(local["video"])
        assert remote["waveform"].equal(local["waveform"])
        assert "/c.mp4" in asked


class BusyHandler(RangeHandler):
    """A server that is busy until `fault` is None: it has the beginning of a file, and no more.

    fault  "503" or "close": what it answers if it is asked for more; "part": it breaks off, too
    """

    fault = None

    def do_GET(self):
        if self.fault is None:
            super().do_GET()
        elif self.headers.get("Range", "bytes=0-") == "bytes=0-":
            self.send_beginning()
        elif self.fault == "close":
            self.connection.close()
        else:
            self.send_error(503)

    def send_beginning(self):
        content = (self.root / self.path.strip("/")).read_bytes()
        self.send_response(206)
        self.send_header("Content-Range", f"bytes 0-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.fault == "part":
            content = content[: len(content) // 3]
        with contextlib.suppress(ConnectionError):  # the reader has gone elsewhere
            self.wfile.write(content)
        self.close_connection = True


# The name of a film, what is the matter, and the size of its frames: of small ones the beginning
# holds a few.
FAULTS = [
    ("film.ts", "503", (320, 240)),
    ("film.mkv", "503", (320, 240)),
    ("film.mkv", "close", (320, 240)),
    ("film.mkv", "part", (64, 48)),
]


@pytest.mark.parametrize("name, fault, size", FAULTS)
def test_a_film_whose_server_was_busy_is_probed_again(tmp_path, monkeypatch, name, fault, size):
    """It could be opened, and then nothing was found at its end. It is not shorter for that."""
    films = tmp_path / "films"
    films.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    options = {"bf": "0", "crf": "1"}  # many bytes, so that a look at the end asks for it
    write_film(films / name, 32, size=size, gop=5, options=options, image=noise)
    write_film(tmp_path / "good.mp4", 4)
    monkeypatch.setattr(BusyHandler, "fault", fault)
    with served(films, BusyHandler) as (url, _):
        source = tmp_path / "LIST.txt"
        source.write_text(f"good.mp4\n{url}/{name}\n")
        # How much is found depends on what has arrived.
        assert None not in [probe(f"{url}/{name}").problem for _ in range(8)]
        assert read_collection(source, TINY).counts == [2]
        monkeypatch.setattr(BusyHandler, "fault", None)
        assert read_collection(source, TINY).counts == [2, 20]


def test_a_collection_has_the_name_of_its_folder_its_list_or_its_world(tmp_path):
    assert collection_name(tmp_path / "world" / "films") == "world"
    assert collection_name(tmp_path / "movies") == "movies"
    assert collection_name(tmp_path / "mine.txt") == "mine"


def test_the_index_probes_a_file_once_until_it_changes(tmp_path, monkeypatch):
    for name in ("a.mp4", "b.mp4"):
        write_film(tmp_path / name, seconds=4)
    (tmp_path / "text.mp4").write_text("not a film")
    probed, probe = [], media.collection.probe

    def noted(path, **how):
        probed.append(Path(path).name)
        return probe(path, **how)

    monkeypatch.setattr(media.collection, "probe", noted)
    first = read_collection(tmp_path, TINY)
    assert sorted(probed) == ["a.mp4", "b.mp4", "text.mp4"]
    again = read_collection(tmp_path, TINY)
    assert probed[3:] == ["text.mp4"]  # what failed may be fixed by now
    assert again.parts == first.parts
    write_film(tmp_path / "b.mp4", seconds=8)
    assert read_collection(tmp_path, TINY).counts == [2, 5]
    assert sorted(probed[4:]) == ["b.mp4", "text.mp4"]


# --------------------------------------------------------------------------------------------
# Labels: the lists that the labelled sets are published with
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "read, file",
    [
        (ucf101, "classInd.txt"),
        (hmdb51, "_test_split1.txt"),
        (esc50, "esc50.csv"),
        (dcase2014, "scenes_stereo"),
    ],
)
def test_missing_sets_are_answered_with_their_layout(tmp_path, read, file):
    with pytest.raises(BadInput, match=file):
        read(tmp_path, 1, True)


def test_hmdb51_splits_are_read_as_published(tmp_path):
    splits = tmp_path / "testTrainMulti_7030_splits"
    splits.mkdir()
    for name in ("brush_hair", "wave"):
        lines = [f"{name}_{i}.avi {i % 3} \n" for i in range(9)]
        (splits / f"{name}_test_split2.txt").write_text("".join(lines))
    train, names = hmdb51(tmp_path, 2, True)
    test, _ = hmdb51(tmp_path, 2, False)
    assert names == ["brush_hair", "wave"]
    folder = tmp_path / "hmdb51_org/brush_hair"
    assert train[:2] == [(folder / f"brush_hair_{i}.avi", 0) for i in (1, 4)]
    waves = [path.name for path, label in test if label == 1]
    assert waves == ["wave_2.avi", "wave_5.avi", "wave_8.avi"]


def test_names_with_spaces_and_a_byte_order_mark_are_read(tmp_path):
    lists = tmp_path / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Bounce\r\n2 Bounce Up\r\n", encoding="utf-8-sig")
    (lists / "trainlist01.txt").write_text("Bounce/a b.avi 1\nBounce Up/c.avi 2\n")
    (lists / "testlist01.txt").write_text("Bounce Up/d e.avi\n")
    train, names = ucf101(tmp_path, 1, True)
    assert names == ["Bounce", "Bounce Up"]
    videos = tmp_path / "UCF-101"
    assert train == [(videos / "Bounce/a b.avi", 0), (videos / "Bounce Up/c.avi", 1)]
    assert ucf101(tmp_path, 1, False) == ([(videos / "Bounce Up/d e.avi", 1)], names)


@pytest.mark.parametrize(
    "row, problem", [("a.wav,6,0,dog", "fold 6, of 1 to 5"), ("a.wav,1,10,dog", "a target is miss")]
)
def test_sounds_that_are_not_those_of_esc50_are_refused_with_its_layout(tmp_path, row, problem):
    """Ten of its classes have targets of their own, between which others are missing."""
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/esc50.csv").write_text(f"filename,fold,target,category\n{row}\n")
    with pytest.raises(BadInput, match=f"not as published .*{problem}.* should hold:\n"):
        esc50(tmp_path, 1, True)


SCENES = "bus busystreet office openairmarket park quietstreet restaurant supermarket tube"
SCENES = [*SCENES.split(), "tubestation"]


def write_scenes(root):
    """Write empty files as DCASE2014 has them: the numbers of a class have gaps."""
    for folder in ("scenes_stereo", "scenes_stereo_testset"):
        (root / folder).mkdir()
        for name in SCENES:
            for number in (*range(1, 5), *range(9, 15)):
                (root / folder / f"{name}{number:02d}.wav").touch()


def test_the_scenes_of_dcase2014_are_two_folders_and_a_class_is_a_name_without_its_digits(tmp_path):
    write_scenes(tmp_path)
    for stray in ("README.txt", "._bus01.wav", "readme.wav"):
        (tmp_path / "scenes_stereo" / stray).touch()
    train, names = dcase2014(tmp_path, 1, True)
    test, same_names = dcase2014(tmp_path, 1, False)
    assert names == same_names == SCENES
    assert len(train) == len(test) == 100
    for items, folder in ((train, "scenes_stereo"), (test, "scenes_stereo_testset")):
        assert all(path.parent == tmp_path / folder for path, _ in items)
        assert all(path.stem[:-2] == SCENES[label] for path, label in items)
    assert train[9] == (tmp_path / "scenes_stereo/bus14.wav", 0)
    assert train[10] == (tmp_path / "scenes_stereo/busystreet01.wav", 1)


def test_scenes_that_lack_a_file_or_a_folder_are_refused_with_their_layout(tmp_path):
    write_scenes(tmp_path)
    (tmp_path / "scenes_stereo_testset/tube09.wav").unlink()
    assert len(dcase2014(tmp_path, 1, True)[0]) == 100
    with pytest.raises(BadInput, match="scenes_stereo_testset has .* 9 tube, .* should hold:\n"):
        dcase2014(tmp_path, 1, False)
    shutil.rmtree(tmp_path / "scenes_stereo_testset")
    with pytest.raises(BadInput, match="scenes_stereo_testset: No such file .* should hold:\n"):
        dcase2014(tmp_path, 1, False)
    for path in (tmp_path / "scenes_stereo").glob("bus[0-9]*"):
        path.unlink()
    with pytest.raises(BadInput, match="scenes_stereo has 10 busystreet, .* should hold:\n"):
        dcase2014(tmp_path, 1, True)


# --------------------------------------------------------------------------------------------
# Toy world
# --------------------------------------------------------------------------------------------


def test_toy_world_is_media_files_in_the_published_layouts(toy):
    films = read_collection(toy / "films", TINY)
    assert films.counts == [24] * 8 and not films.skipped
    reader = Reader(toy / "films" / films.names[0])
    assert reader.video.codec_context.name == "h264" and reader.audio is not None
    for split in (1, 2, 3):
        train, names = ucf101(toy / "action", split, True)
        test, _ = ucf101(toy / "action", split, False)
        assert (len(names), len(train), len(test)) == (10, 40, 20)
        assert not set(train) & set(test)
        assert all(path.parent.name == names[label] for path, label in train + test)
    for fold in range(1, 6):
        train, names = esc50(toy / "sound", fold, True)
        test, _ = esc50(toy / "sound", fold, False)
        assert len(names) == 10 and len(train) + len(test) == 60
        assert not set(train) & set(test)
        assert all(path.stem.endswith(f"-A-{label}") for path, label in train + test)


def make_small_toy(root, seed, **options):
    """Render a world of two films. Returns {path in it: its bytes}."""
    media.toy.make_toy(root, seed=seed, titles=2, snippets=6, clips=(1, 1), **options)
    files = [path for path in root.rglob("*") if path.is_file()]
    return {path.relative_to(root): path.read_bytes() for path in files}


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first = make_small_toy(tmp_path / "a", seed=0)
    # Naming the options that came later, with their defaults, changes nothing, as in world.json.
    second = make_small_toy(tmp_path / "b", seed=0, episodes=1, fps=5, gop=8, tiring=0.0)
    other = make_small_toy(tmp_path / "c", seed=1)
    assert first == second
    arguments = json.loads(first[Path("world.json")])
    assert list(arguments) == ["seed", "artefacts", "titles", "snippets", "clips"]
    films = [path for path in first if path.parts[0] == "films"]
    assert len(films) == 2
    assert all(first[path] != other[path] for path in films)


def spread_of_colours(plan, strength):
    """How much the mean colours of six films of one plan differ."""
    colours = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        frames, _ = media.toy.render_film(rng, media.toy.make_title(rng), plan, strength)
        colours.append(frames.mean((0, 1, 2)))
    return np.std(colours, axis=0).mean()


def test_artefacts_are_what_betrays_a_title():
    plan = media.toy.plan_film(np.random.default_rng(0), 16)
    assert spread_of_colours(plan, 0.7) > 2 * spread_of_colours(plan, 0.0)


def test_the_command_line_of_the_toy_world_reaches_its_renderer(monkeypatch):
    made = []

    def noted(root, **arguments):
        made.append((root, arguments))

    monkeypatch.setattr(media.__main__, "make_toy", noted)
    flags = "--seed 3 --artefacts 0.7 --titles 2 --snippets 5 --clips 4 2 --episodes 3".split()
    flags += "--fps 10 --gop 1 --tiring 0.6".split()
    for argv in (["W"], ["W", *flags]):
        media.__main__.main(media.__main__.parse_args(["toy", *argv]))
    default = dict(seed=0, artefacts=0.5, titles=64, snippets=128, clips=(20, 40), episodes=1)
    chosen = dict(seed=3, artefacts=0.7, titles=2, snippets=5, clips=(4, 2), episodes=3)
    default |= dict(fps=5, gop=None, tiring=0)
    chosen |= dict(fps=10, gop=1, tiring=0.6)
    assert made == [("W", default), ("W", chosen)]


def test_an_occupied_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    assert "not empty" in refused("media", "toy", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# --------------------------------------------------------------------------------------------
# Preparing a collection
# --------------------------------------------------------------------------------------------


def prepare(source, target, *flags):
    """Run the command, which must succeed. Returns what it printed."""
    status, printed, errors = run_script("media", "prepare", source, target, *flags)
    assert not status, errors
    return printed


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """(a collection of three files in two titles, the same prepared, what was printed)."""
    root = tmp_path_factory.mktemp("prepare")
    raw, show = root / "raw", root / "raw" / "show"
    show.mkdir(parents=True)
    size = (160, 120)
    write_film(raw / "film.mp4", seconds=40, size=size, start=1.0)
    write_film(show / "e1.mkv", seconds=11, size=size, audio="libopus", rate=48000)
    write_film(show / "e2.avi", seconds=15, size=size, video="mpeg4", audio="libmp3lame")
    write_film(show / "e3.mp4", seconds=1)
    (raw / "text.mp4").write_text("not a film")
    printed = prepare(raw, root / "ready", "--short-side", 60, "--workers", 2)
    return raw, root / "ready", printed


def test_prepared_titles_are_the_same_snippets(prepared):
    raw, ready, printed = prepared
    fmt = Format(short_side=60, crop=60)
    before, after = Titles(raw, fmt), Titles(ready, fmt)
    assert after.names == ["film.mp4.mkv", "show"]
    assert after.counts == before.counts == [12, 3 + 4]
    assert f"skipped {raw}/text.mp4: not a media file" in printed
    assert "e3.mp4: shorter than a snippet of 3.2 s" in printed
    front_end = AudioFrontEnd(fmt)
    late, alike = [], []
    for n, M in enumerate(before.counts):
        for m in range(M):
            a, b = before[n, m, None], after[n, m, None]
            assert (a["video"].float() - b["video"].float()).abs().mean() < 1, (n, m)
            late.append(abs(onset(a["waveform"]) - onset(b["waveform"])))
            log_mels = [front_end.log_mel(x["waveform"][None]).flatten() for x in (a, b)]
            alike.append(np.corrcoef(*log_mels)[0, 1])
    assert np.median(late) < 0.001 and np.median(alike) > 0.99
    # The first 5 ms of a file are silent.
    assert max(late) < 0.006 and min(alike) > 0.98


def key_frames(path):
    """When each key frame of a file is shown, in seconds, and how many frames there are."""
    with av.open(str(path)) as file:
        packets = [packet for packet in file.demux(video=0) if packet.size]
        keys = [float(p.pts * p.time_base) for p in packets if p.is_keyframe]
        return keys, len(packets)


def test_a_prepared_file_has_a_group_of_pictures_a_snippet(prepared):
    _, ready, _ = prepared
    keys, _ = key_frames(ready / "film.mp4.mkv")
    assert np.diff(keys[1:]) == pytest.approx(3.2)
    assert "gop" not in json.loads((ready / ".prepared.json").read_text())


@pytest.fixture(scope="session")
def all_key_frames(tmp_path_factory):
    """(a collection of one film, the same prepared with --gop 1)."""
    root = tmp_path_factory.mktemp("all-key-frames")
    (root / "raw").mkdir()
    write_film(root / "raw" / "film.mkv", seconds=7, rate=48000)
    prepare(root / "raw", root / "ready", "--short-side", 48, "--gop", 1)
    return root / "raw", root / "ready"


def test_frames_that_are_unevenly_apart_are_reported_where_each_is_a_key_frame(tmp_path):
    """A film that is played at several speeds betrays them so."""
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, fps in (("a.mkv", 24), ("b.mkv", 24), ("c.mkv", 30)):
        write_film(raw / name, seconds=4, fps=fps, rate=48000)
    flags = "--short-side 48 --frames 16 --gop 1".split()
    warning = "warning: frames of 24 a second (2 files) are unevenly apart at --fps 10, which"
    said = prepare(raw, tmp_path / "ready10", *flags, "--fps", 10)
    assert warning in said and "again with --fps 12, and train with it" in said
    assert said.count("warning") == 1
    said = prepare(raw, tmp_path / "ready6", *flags, "--fps", 6)
    assert "warning" not in said
    assert "warning" not in prepare(raw, tmp_path / "ready", "--short-side", 48)
    assert [divides(fps, 23.976) for fps in (12, 11.988, 10, 25)] == [True, True, False, False]


def test_every_frame_is_a_key_frame_where_that_is_asked_for(all_key_frames, tmp_path):
    raw, ready = all_key_frames
    keys, frames = key_frames(ready / "film.mkv.mkv")
    assert len(keys) == frames == 32
    assert json.loads((ready / ".prepared.json").read_text())["gop"] == 1
    # Groups of a quarter of a snippet, of which one begins a frame before each snippet.
    write_noise(tmp_path / "noise.mkv", Format(), gop=4)
    keys, frames = key_frames(tmp_path / "noise.mkv")
    assert frames == 64 and np.round(np.multiply(keys, 5)).tolist() == [0, *range(3, 64, 4)]


def sharpness(frame):
    """How much neighbouring pixels of an av.VideoFrame differ."""
    return np.abs(np.diff(frame.to_ndarray(format="gray").astype(float))).mean()


def test_film_grain_is_as_sharp_in_all_frames_only_if_all_are_key_frames(tmp_path):
    """Else the last frame of a snippet is the sharpest, since it is the key frame of the next."""
    fmt = Format()
    grain = np.random.default_rng(0).normal(128, 8, (64, 48, 64, 1)).astype(np.uint8)
    images = np.broadcast_to(grain, (64, 48, 64, 3))
    last = []
    for gop in (None, 1):
        path = tmp_path / f"{gop}.mkv"
        write_media(
            path, [(images, np.zeros(4 * fmt.samples, np.float32))], fmt, **PREPARED, gop=gop
        )
        sharp, _ = Reader(path).read(np.arange(64) / 5, keep=sharpness)
        first_to_last = np.reshape(sharp, (4, 16))[:3].mean(0)
        last.append(first_to_last[-1] / first_to_last[:-1].mean())
    assert last[0] > 1.1 and last[1] == pytest.approx(1, abs=0.02)


def test_a_folder_keeps_its_groups_of_pictures(prepared, all_key_frames, tmp_path):
    raw, ready = all_key_frames
    before = times_of(ready)
    assert "1 done before" in prepare(raw, ready, "--short-side", 48, "--gop", 1)
    error = refused("media", "prepare", raw, ready, "--short-side", 48)
    assert 'was prepared with {"gop": 1} and not {"gop": null}; name another folder' in error
    error = refused("media", "prepare", raw, ready, "--short-side", 48, "--gop", 8)
    assert 'was prepared with {"gop": 1} and not {"gop": 8}' in error
    assert times_of(ready) == before
    raw, ready, _ = prepared
    error = refused("media", "prepare", raw, ready, "--short-side", 60, "--gop", 1)
    assert 'was prepared with {"gop": null} and not {"gop": 1}' in error
    # A group of 16 pictures is a snippet, so it is the default.
    assert "3 done before" in prepare(raw, ready, "--short-side", 60, "--gop", 16)
    assert "gop" not in json.loads((ready / ".prepared.json").read_text())
    error = refused("media", "prepare", raw, tmp_path / "new", "--gop", 5)
    assert error.startswith("--gop 5: must be one of 1, 2, 4, 8, 16, so that")
    assert not (tmp_path / "new").exists()


def times_of(folder, pattern="*.mkv"):
    """{path: when it was written} of the files below a folder. Its st_mtime is its source's."""
    return {path: path.stat().st_ctime_ns for path in folder.rglob(pattern)}


def test_preparing_again_does_nothing_over_and_shares_are_disjoint(prepared, tmp_path):
    raw, ready, _ = prepared
    before = times_of(ready)
    assert "0 files, and 3 done before" in prepare(raw, ready, "--short-side", 60)
    assert times_of(ready) == before and len(before) == 3
    shares = []
    for i in (1, 2):
        prepare(raw, tmp_path, "--short-side", 60, "--shard", f"{i}/2")
        shares.append({path.relative_to(tmp_path) for path in tmp_path.rglob("*.mkv")})
    assert len(shares[0]) in (1, 2) and shares[0] < shares[1]
    assert shares[1] == {path.relative_to(ready) for path in before}


def test_what_preparing_refuses(prepared, tmp_path):
    raw, ready, _ = prepared
    before = times_of(ready)
    error = refused("media", "prepare", raw, ready, "--short-side", 120)
    assert "was prepared with" in error and "name another folder" in error
    assert "lies in" in refused("media", "prepare", raw, raw / "ready")
    error = refused("media", "prepare", raw, tmp_path, "--shard", "3/2")
    assert "--shard 3/2: must be i/n" in error
    # A second source would mix its titles with those of the first, under the same names.
    (tmp_path / "second").mkdir()
    write_film(tmp_path / "second" / "film.mp4", seconds=4)
    error = refused("media", "prepare", tmp_path / "second", ready, "--short-side", 60)
    assert str(raw) in error and "name another folder" in error
    assert times_of(ready) == before


def test_originals_and_copies_do_not_share_a_folder(tmp_path):
    """Each film would be there twice."""
    nest, source, films = tmp_path / "nest", tmp_path / "LIST.txt", tmp_path / "films"
    (nest / "originals").mkdir(parents=True)
    write_film(nest / "originals" / "film.mkv", 4)
    source.write_text("nest/originals/film.mkv\n")
    films.mkdir()
    (films / "link.mkv").symlink_to(nest / "originals" / "film.mkv")
    for originals in (nest / "originals", source, films):
        error = refused("media", "prepare", originals, nest)
        assert error.startswith(f"{nest}: holds ") and f", a film of {originals}; " in error
    source.write_text("nest/originals/film.mkv\nhttp://127.0.0.1:9/film.mkv\n")
    assert "1 files" in prepare(source, tmp_path / "ready", "--short-side", 40)
    assert os.listdir(nest) == ["originals"]


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_broken_note_of_a_prepared_folder_is_refused(prepared, tmp_path, text):
    raw, _, _ = prepared
    (tmp_path / ".prepared.json").write_text(text)
    error = refused("media", "prepare", raw, tmp_path)
    assert ".prepared.json: is not the note" in error and "delete the note" in error
    assert len(error.splitlines()) == 1


NOTE_OF_BEFORE = {"frames": 16, "fps": 5.0, "short_side": 60, "rate": 48000, "language": None}


def write_note(folder, **settings):
    """Write the note of a prepared folder, as versions before this one did."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(NOTE_OF_BEFORE | settings)
    (folder / ".prepared.json").write_text(text)
    return folder


def test_a_folder_prepared_with_other_codecs_is_refused(prepared, tmp_path):
    """Before, the note said nothing of them: they were MPEG-4 and AC-3 at 96 kbit/s."""
    raw, ready, _ = prepared
    note = json.loads((ready / ".prepared.json").read_text())
    assert note["video"] == "mpeg4 qmax=3 qmin=3"
    assert note["sound"] == "eac3 b=140k cutoff=24000"
    write_note(tmp_path)
    error = refused("media", "prepare", raw, tmp_path, "--short-side", 60)
    assert 'was prepared with {"sound": "ac3 b=96k"}' in error and "name another folder" in error
    assert [path.name for path in tmp_path.iterdir()] == [".prepared.json"]
    # Where only older names for the same are missing, there is no complaint.
    note.pop("require_language")
    (tmp_path / ".prepared.json").write_text(json.dumps(note))
    prepare(raw, tmp_path, "--short-side", 60)


def complaint(paths, fmt, language=None, **asked):
    """The one line with which `check_prepared` refuses, or None."""
    try:
        check_prepared(paths, fmt, language, **asked)
    except BadInput as error:
        assert len(str(error).splitlines()) == 1
        return str(error)
    return None


def paths_of(folder):
    return [path for _, paths in media.collection.list_titles(str(folder)) for path in paths]


FITTING = dict(short_side=60, crop=48)


@pytest.mark.parametrize("too_much", [dict(short_side=61), dict(fps=10.0), dict(rate=96000)])
def test_more_than_was_prepared_is_refused(prepared, too_much):
    """Frames would be enlarged or repeated, or the highest mel filters would be empty."""
    raw, ready, _ = prepared
    assert complaint(paths_of(ready), Format(**FITTING)) is None
    assert complaint(paths_of(ready), Format(frames=8, fps=2.5, short_side=48, rate=16000)) is None
    error = complaint(paths_of(ready), Format(**FITTING | too_much))
    [(name, value)] = too_much.items()
    flag = "--" + name.replace("_", "-")
    fitting = {"short_side": 60, "fps": 5, "rate": 48000}[name]
    assert error.startswith(f"{flag} {value:g}: {ready} was prepared with {flag} {fitting}, ")
    assert f"Use {flag} {fitting}, or prepare again into another folder: " in error
    assert f"python -m media prepare {raw} OTHER_FOLDER" in error
    assert error.count(f"{flag} {value:g}") == 2


def test_the_command_of_the_remedy_is_one_that_works(prepared, tmp_path):
    raw, ready, _ = prepared
    error = complaint(paths_of(ready), Format(**FITTING | dict(short_side=64, fps=10.0)))
    _, command = error.split("python -m ")
    argv = command.replace("OTHER_FOLDER", str(tmp_path / "other")).split()
    status, _, errors = run_script(*argv)
    assert not status, errors
    assert complaint(paths_of(tmp_path / "other"), Format(short_side=64, crop=48, fps=10)) is None


def test_a_prepared_file_has_the_track_of_its_note_only(prepared, tmp_path):
    _, ready, _ = prepared
    error = complaint(paths_of(ready), Format(**FITTING), "eng")
    assert error.startswith(f"--language eng: {ready} was prepared with no --language, ")
    assert error.endswith("--short-side 60 --language eng")
    german = write_note(tmp_path, language="deu", source="/my films") / "film.mkv"
    assert complaint([german], Format(**FITTING), "deu") is None
    assert complaint([german], Format(**FITTING)) is None
    error = complaint([german], Format(**FITTING), "eng")
    assert "--language eng: " in error and "was prepared with --language deu" in error
    assert "prepare '/my films' OTHER_FOLDER --short-side 60 --language eng" in error


def test_who_needs_all_key_frames_refuses_a_folder_without_them(all_key_frames, tmp_path):
    """The answer is a command with which the folder that it writes would do."""
    _, ready = all_key_frames
    fmt = Format(short_side=48, crop=48)
    assert complaint(paths_of(ready), fmt, all_key_frames=True) is None
    assert complaint([tmp_path / "raw" / "film.mp4"], fmt, all_key_frames=True) is None
    folder = write_note(tmp_path / "ready", source="/films")
    paths = [ready / "film.mkv.mkv", folder / "show" / "e1.mkv"]
    assert complaint(paths, fmt) is None
    error = complaint(paths, fmt, all_key_frames=True)
    assert error.startswith(f"{folder}: was prepared without --gop 1, so sharpness differs")
    command = "python -m media prepare /films OTHER_FOLDER --short-side 60 --gop 1"
    assert error.endswith(f": {command}")
    error = complaint(paths, Format(fps=10, short_side=48, crop=48), all_key_frames=True)
    assert error.startswith("--fps 10: ") and error.endswith("--gop 1")
    faster = write_note(tmp_path / "faster", fps=12, gop=1)
    error = complaint([faster / "film.mkv"], Format(fps=10, short_side=48), all_key_frames=True)
    assert error.startswith(f"--fps 10: {faster} was prepared with --fps 12, so frames would be")
    half = Format(fps=6, short_side=48)
    assert complaint([faster / "film.mkv"], half, all_key_frames=True) is None
    for note, fits in ((dict(gop=4), False), (dict(frames=1), True)):
        folder = write_note(tmp_path / "other", **note)
        assert (complaint([folder / "film.mkv"], fmt, all_key_frames=True) is None) == fits


def test_the_nearest_note_counts_and_each_folder_is_looked_up_once(tmp_path, monkeypatch):
    small = write_note(tmp_path / "small")
    large = write_note(tmp_path / "large", short_side=190)
    write_note(large / "inner")
    (large / "show" / "season").mkdir(parents=True)
    fmt = Format()
    episodes = [f"{large}/show/season/e{i}.mkv" for i in range(100)]
    assert complaint([*episodes, large / "film.mkv"], fmt) is None
    assert complaint([tmp_path / "raw" / "film.mp4"], fmt) is None
    assert f": {small} was prepared" in complaint([small / "show" / "season" / "e.mkv"], fmt)
    # A URL is no path below the folder in which the command was typed.
    with monkeypatch.context() as patch:
        patch.chdir(small)
        assert complaint(["https://host/film.mkv"], fmt) is None
        assert complaint(["film.mkv"], fmt)
    # A list whose files lie in two folders, of which one does not fit.
    assert f": {small} was prepared" in complaint([*episodes, small / "film.mkv"], fmt)
    assert f": {large}/inner was prepared" in complaint([large / "inner" / "film.mkv"], fmt)
    looked_up, exists = [], Path.exists

    def noted(path):
        looked_up.append(path)
        return exists(path)

    monkeypatch.setattr(Path, "exists", noted)
    assert complaint([*episodes, large / "film.mkv", large / "show" / "e.mkv"], fmt) is None
    assert sorted(looked_up) == [
        large / ".prepared.json",
        large / "show" / ".prepared.json",
        large / "show" / "season" / ".prepared.json",
    ]


@pytest.mark.parametrize("text", ["{", "[]", "", "{}", '{"fps": "5", "short_side": 9}'])
def test_a_broken_note_is_refused_wherever_it_is_read(tmp_path, text):
    (tmp_path / ".prepared.json").write_text(text)
    error = complaint([tmp_path / "film.mkv"], Format())
    assert ".prepared.json: is not the note" in error and "delete the note" in error


def test_a_kill_while_preparing_loses_nothing_and_nothing_is_done_again(tmp_path):
    raw, ready = tmp_path / "raw", tmp_path / "ready"
    raw.mkdir()
    write_film(raw / "f0.mkv", seconds=66, fps=5, gop=5)
    for i in (1, 2):
        shutil.copy(raw / "f0.mkv", raw / f"f{i}.mkv")
    flags = ["--workers", "1", "--short-side", "40"]
    command = [sys.executable, "-m", "media", "prepare", raw, ready, *flags]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    while not list(ready.glob(".f*.mkv.mkv.*")) or not list(ready.glob("f*.mkv")):
        assert process.poll() is None  # it is in the middle of the second file
        sleep(0.005)
    process.kill()
    process.communicate(timeout=60)  # ends when its reading process, too, is gone
    finished = times_of(ready, "f*.mkv")
    assert 1 <= len(finished) <= 2
    prepare(raw, ready, *flags)
    after = times_of(ready, "f*.mkv")
    assert len(after) == 3 and finished.items() <= after.items()
    assert not list(ready.glob(".f*"))
    assert read_collection(ready, Format()).counts == [20] * 3
    assert read_collection(raw, Format()).counts == [20] * 3


# The command, if writing a film took ten minutes longer.
PREPARE_SLOWLY = """
import multiprocessing, runpy, signal, time
from media import prepare

def write_slowly(path, **how):
    write(path, **how)
    time.sleep(600)

multiprocessing.set_start_method("fork")
write, prepare.write_media = prepare.write_media, write_slowly
signal.signal(signal.SIGINT, signal.default_int_handler)  # A job in the background ignores it.
"""
# The same, if the first film is begun while others are still lined up.
PREPARE_MANY = """
class Pool(prepare.ThreadPoolExecutor):
    def submit(self, work):
        super().submit(work)
        time.sleep(600)

prepare.ThreadPoolExecutor = Pool
"""
RUN = 'runpy.run_module("media", run_name="__main__")'


@pytest.mark.parametrize("many", ["", PREPARE_MANY], ids=["one", "many"])
def test_an_interrupted_command_stops_its_films_and_leaves_nothing_of_them(tmp_path, many):
    """Also where the processes that transcode do not get the signal, as they do from a terminal."""
    raw, ready = tmp_path / "raw", tmp_path / "ready"
    raw.mkdir()
    write_film(raw / "film.mkv", seconds=4, fps=5, gop=5)
    command = [sys.executable, "-c", PREPARE_SLOWLY + many + RUN, "prepare", raw, ready]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not list(ready.glob(".film.mkv.mkv.*")):
        assert process.poll() is None
        sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "interrupted; finished files are kept" in errors
    assert sorted(os.listdir(ready)) == [".lock-1-of-1", ".prepared.json"]


@pytest.fixture
def download(tmp_path):
    """(a folder with half of a film of 16 s, the whole film): a transport stream has no header."""
    whole = write_film(tmp_path / "whole.ts", 16, fps=5, rate=48000)
    (tmp_path / "raw").mkdir()
    content = whole.read_bytes()
    (tmp_path / "raw" / "film.ts").write_bytes(content[: len(content) // 2])
    return tmp_path / "raw", whole


def test_a_file_that_grows_while_it_is_prepared_is_left_for_the_next_call(
    download, tmp_path, monkeypatch
):
    """It was probed when it was short, hours before its turn came."""
    (raw, whole), ready = download, tmp_path / "ready"
    transcode = media.prepare.transcode

    def finish_download(*args):
        shutil.copyfile(whole, raw / "film.ts")
        transcode(*args)

    with monkeypatch.context() as patch:
        patch.setattr(media.prepare, "transcode", finish_download)
        printed = prepare(raw, ready)
    assert f"skipped {raw}/film.ts: changed while it was prepared; repeat the command" in printed
    assert not times_of(ready, "*film*")
    prepare(raw, ready)
    assert read_collection(ready, Format()).counts == [5]


def test_a_file_that_was_replaced_is_prepared_again_whatever_its_time(download, tmp_path):
    (raw, whole), ready = download, tmp_path / "ready"
    prepare(raw, ready)
    assert read_collection(ready, Format()).counts == [2]
    os.utime(whole, (1.5e9, 1.5e9))
    shutil.copy2(whole, raw / "film.ts")  # as rsync -t and cp -p do, with its time
    assert "1 files, and 0 done before" in prepare(raw, ready)
    assert read_collection(ready, Format()).counts == [5]
    os.utime(raw / "film.ts", (4e9, 4e9))
    assert "1 files, and 0 done before" in prepare(raw, ready)
    assert "0 files, and 1 done before" in prepare(raw, ready)


def test_a_file_system_may_keep_coarser_times():
    """FAT keeps even seconds; that is no reason to prepare all files at each call."""
    time = 1_600_000_001_123_456_789
    for step in (1, 100, 10**9, 2 * 10**9):
        assert media.prepare.is_kept(time, time // step * step)
    assert not media.prepare.is_kept(time, time + 1)
    assert not media.prepare.is_kept(time, time - 2 * 10**9)


@pytest.mark.parametrize("with_note", [True, False], ids=["with its note", "without"])
def test_a_folder_of_before_is_not_prepared_again(download, tmp_path, with_note):
    """Its files have the times at which they were written."""
    (raw, whole), ready = download, tmp_path / "ready"
    prepare(raw, ready)
    note = json.loads((ready / ".prepared.json").read_text())
    assert note.pop("keeps_times")
    (ready / ".prepared.json").write_text(json.dumps(note))
    os.utime(raw / "film.ts", (1_600_000_000, 1_600_000_000))
    os.utime(ready / "film.ts.mkv", (1_600_000_060, 1_600_000_060))
    if not with_note:  # It is to be deleted if the source has moved.
        (ready / ".prepared.json").unlink()
    for _ in range(2):
        assert "0 files, and 1 done before" in prepare(raw, ready)
    shutil.copyfile(whole, raw / "film.ts")
    assert "1 files, and 0 done before" in prepare(raw, ready)
    assert "0 files, and 1 done before" in prepare(raw, ready)
    assert read_collection(ready, Format()).counts == [5]


def lost_of(titles):
    """How many snippets of the only title cannot be read."""
    lost = [m for m in range(titles.counts[0]) if titles[0, m, (m,)]["failures"]]
    return len(lost)


@pytest.mark.parametrize("share", [(0.5, 0.6), (0.52, 0.55)])
def test_damage_is_left_out_of_what_is_prepared(tmp_path, share):
    """Also that of one snippet, which is little beside the many that are read at a time."""
    raw, ready = tmp_path / "raw", tmp_path / "ready"
    raw.mkdir()
    damage(write_film(raw / "film.mkv", seconds=60, audio="flac"), share)
    printed = prepare(raw, ready)
    before, after = Titles(raw, Format()), Titles(ready, Format())
    lost = lost_of(before)
    assert 1 <= lost <= 6 and f"{lost} damaged snippets skipped" in printed
    assert after.counts == [before.counts[0] - lost]
    assert lost_of(after) == 0


def test_prepared_titles_of_a_list_keep_its_order_and_stay_apart(tmp_path):
    """Two shows whose episodes have the same names, a film, and a folder with nothing in it."""
    source, ready = tmp_path / "LIST.txt", tmp_path / "ready"
    for name in ("Lost/e1.mp4", "Lost/e2.mp4", "Alf/e1.mkv", "Alf/e2.mkv", "Zulu.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_film(tmp_path / name, seconds=8 if "Lost" in name else 4)
    (tmp_path / "empty").mkdir()
    source.write_text("Zulu.mp4\nLost/e1.mp4\tLost/e2.mp4\nempty\nAlf\n")
    printed = prepare(source, ready, "--short-side", 40)
    assert "skipped empty: no media files in it" in printed
    collection = read_collection(ready, Format())
    assert collection.names == ["0000 Zulu.mp4.mkv", "0001 e1.mp4", "0003 Alf"]
    assert collection.counts == [1, 2 + 2, 1 + 1]
    assert read_collection(source, Format()).counts == collection.counts
    source.write_text("Alf\nAlf/e1.mkv\n")
    error = refused("media", "prepare", source, tmp_path / "other", "--short-side", 40)
    assert f"Alf/e1.mkv: twice in {source}; a file can be of one title only" in error


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_film_is_in_a_collection_once(tmp_path, link):
    """It could be trained on and held out, and would be a negative of itself."""
    films, source = tmp_path / "films", tmp_path / "LIST.txt"
    films.mkdir()
    first, second = films / "a.mkv", films / "b.mkv"
    first.touch()
    link(second, first)
    with pytest.raises(BadInput) as refusal:
        paths_of(films)
    assert str(refusal.value).startswith(f"{second}: twice in {films} (also as {first}); ")
    for name in ("films/a.mkv", "http://x.com/a.mp4"):
        source.write_text(f"{name}\n")
        assert len(paths_of(source)) == 1
        source.write_text(f"{name}\n{name}\n")
        with pytest.raises(BadInput, match=f"{name}: twice in {source}; "):
            paths_of(source)


PREPARE = """
import sys
from media import prepare
prepare.transcode = lambda *_: (print("begun", flush=True), input())
prepare.prepare(*sys.argv[1:], prepare.Format())
"""


def test_a_folder_is_prepared_by_one_process_at_a_time(tmp_path):
    raw, ready = tmp_path / "raw", tmp_path / "ready"
    raw.mkdir()
    write_film(raw / "film.mkv", 4)
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    command = [sys.executable, "-c", PREPARE, raw, ready]
    with subprocess.Popen(command, cwd=ROOT, **pipes) as other:
        assert b"begun" in other.stdout.readline()
        assert "another run is using this folder" in refused("media", "prepare", raw, ready)
        other.communicate(b"\n")


# b.mkv is written to a disk that is full, as soon as a.mkv has been begun, which takes for ever.
PREPARE_ON_A_FULL_DISK = """
import multiprocessing, sys, time
from pathlib import Path
from harness.errors import one_line_errors
from media import prepare

def write_one(path, **how):
    if path.name.startswith(".a"):
        write(path, **how)
        time.sleep(600)
    while not list(path.parent.glob(".a*")):
        time.sleep(0.01)
    write(Path("/dev/full"), **how)

multiprocessing.set_start_method("fork")
write, prepare.write_media = prepare.write_media, write_one
with one_line_errors("prepare", "interrupted"):
    prepare.prepare(*sys.argv[1:], prepare.Format(), workers=2)
"""


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no disk that is full")
def test_a_full_disk_ends_preparing_at_once_and_leaves_no_half_file(tmp_path):
    """Else all other films would be transcoded up to there, one by one, and skipped."""
    raw, ready = tmp_path / "raw", tmp_path / "ready"
    raw.mkdir()
    for name, seconds in (("a", 30), ("b", 20), ("c", 8), ("d", 7)):
        write_film(raw / f"{name}.mkv", seconds, fps=5)
    command = [sys.executable, "-c", PREPARE_ON_A_FULL_DISK, raw, ready]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and not ended.stdout
    last = ended.stderr.splitlines()[-1]
    assert last.startswith(f"prepare: error: {ready}/b.mkv.mkv: No space left on device; ")
    assert "Traceback" not in ended.stderr
    assert sorted(os.listdir(ready)) == [".lock-1-of-1", ".prepared.json"]


def test_what_is_no_longer_in_a_list_has_to_leave_its_prepared_folder(tmp_path):
    """A film would be there twice: as a title to train on, and as one that is held out."""
    source, ready = tmp_path / "LIST.txt", tmp_path / "ready"
    film = write_film(tmp_path / "a.mkv", 4)
    for name in "bc":
        shutil.copyfile(film, tmp_path / f"{name}.mkv")
    source.write_text("a.mkv\nb.mkv\nc.mkv\n")
    prepare(source, ready, "--short-side", 40)
    before = times_of(ready)
    source.write_text("b.mkv\nc.mkv\n")
    for shard in ("1/1", "2/2"):
        error = refused("media", "prepare", source, ready, "--short-side", 40, "--shard", shard)
        assert error == (
            f"{ready}: 3 prepared files in it belong to no title of {source} any more, the first "
            f"is 0000 a.mkv.mkv; if {source} is complete, delete them, or prepare into another "
            "folder"
        )
    assert times_of(ready) == before
    for path in before:
        path.unlink()
    prepare(source, ready, "--short-side", 40)
    assert read_collection(ready, Format()).names == ["0000 b.mkv.mkv", "0001 c.mkv.mkv"]
    source.write_text("b.mkv\ta.mkv\nc.mkv\n")  # A film becomes a show.
    error = refused("media", "prepare", source, ready, "--short-side", 40)
    assert ": 1 prepared files in it" in error and "is 0000 b.mkv.mkv;" in error


def test_what_is_no_longer_in_a_folder_has_to_leave_its_prepared_folder(tmp_path):
    raw, ready = tmp_path / "raw", tmp_path / "ready"
    (raw / "show").mkdir(parents=True)
    film = write_film(raw / "film.mkv", 4)
    for name in ("e1.mkv", "e2.mkv"):
        shutil.copyfile(film, raw / "show" / name)
    prepare(raw, ready, "--short-side", 40)
    # A damaged film is of the source, and other files are none of `prepare`.
    film.write_text("not a film")
    (ready / "notes.txt").touch()
    (ready / "show" / ".e3.mkv.mkv.1234").touch()  # Another machine may be writing it.
    assert "0 files, and 2 done before; 1 skipped" in prepare(raw, ready, "--short-side", 40)
    (raw / "show" / "e1.mkv").rename(raw / "show" / "e3.mkv")
    error = refused("media", "prepare", raw, ready, "--short-side", 40)
    assert ": 1 prepared files in it" in error and "is show/e1.mkv.mkv;" in error
    (ready / "show" / "e1.mkv.mkv").unlink()
    assert "1 files, and 1 done before; 1 skipped" in prepare(raw, ready, "--short-side", 40)


def test_long_names_are_prepared_under_shorter_ones_that_stay_distinct(tmp_path):
    """A file system takes names of 255 bytes, and the temporary file's is longer."""
    raw, ready = tmp_path / "raw", tmp_path / "ready"
    (raw / "show").mkdir(parents=True)
    film = write_film(tmp_path / "film.mkv", 4)
    # Names of 248 bytes, which differ at their ends, of 252 and of 242; the last one just fits.
    names = ["я" * 120 + "1234.mkv", "я" * 120 + "5678.mkv", "show/" + "я" * 124 + ".mkv"]
    names += ["b" * 238 + ".mkv"]
    for name in names:
        shutil.copyfile(film, raw / name)
    assert "4 titles: 4 files, and 0 done before; 0 skipped" in prepare(raw, ready)
    prepared = read_collection(ready, Format()).names
    assert len(prepared) == 4 and prepared[0] == names[3] + ".mkv"
    assert all(name.startswith("я" * 110) for name in prepared[2:])
    assert "0 files, and 4 done before" in prepare(raw, ready)


def test_what_a_url_asks_for_is_no_part_of_a_prepared_name(tmp_path):
    """It may be a signature, which is long, a secret, and another one tomorrow."""
    source, ready = tmp_path / "LIST.txt", tmp_path / "ready"
    signature = "X-Amz-Credential=AKIA%2Fus-east-1/s3&X-Amz-Signature=" + "a" * 300
    address = "http://x.com/bucket"
    source.write_text(
        f"{address}/film%231.mp4?{signature}\n"
        f"{address}/a.mp4?{signature}\t{address}/b.mp4?{signature}\n"
        f"{address}/film.mp4\t{address}/#1 of 2.mp4\n"
        f"{address}/{'я' * 130}\t{address}/b.mp4\n"
    )
    where = media.prepare.destinations(media.collection.list_titles(str(source)), source, ready)
    names = [str(path.relative_to(ready)) for path in where.values()]
    assert len(names) == 7
    assert names[:5] == [
        "0000 film%231.mp4.mkv",
        "0001 a.mp4/000 a.mp4.mkv",
        "0001 a.mp4/001 b.mp4.mkv",
        "0002 film.mp4/000 film.mp4.mkv",
        "0002 film.mp4/001 #1 of 2.mp4.mkv",
    ]
    for name in names:
        (ready / name).parent.mkdir(parents=True, exist_ok=True)
        (ready / name).with_name(f".{Path(name).name}.4194304").touch()


@pytest.mark.parametrize("fps", [5, 29.97])
def test_the_sound_of_a_prepared_file_keeps_pace_with_its_picture(tmp_path, fps):
    """At 29.97 frames a second 16 frames are 25,625.6 samples."""
    fmt = Format(fps=fps, short_side=8, crop=8)
    images = np.zeros((fmt.frames, 8, 8, 3), np.uint8)
    pieces = [(images, np.zeros(fmt.samples, np.float32))] * 300
    film = tmp_path / "film.mp4"
    write_media(film, pieces, fmt, PREPARED["picture"], ("flac", {}))
    with av.open(str(film)) as file:
        spans = {"video": 0.0, "audio": 0.0}
        for packet in file.demux():
            if packet.pts is not None:
                end = float((packet.pts + packet.duration) * packet.time_base)
                spans[packet.stream.type] = max(spans[packet.stream.type], end)
    assert spans["audio"] == pytest.approx(spans["video"], abs=1e-4)


def squares(height, width):
    """A chessboard of 8 x 8 pixels, RGB (height, width, 3)."""
    board = np.add.outer(np.arange(height) // 8, np.arange(width) // 8) % 2
    return np.uint8(255 * board)[..., None].repeat(3, 2)


def test_a_picture_that_changes_shape_is_prepared_without_distortion(tmp_path):
    """Squares of a broadcast that goes from 16:9 to 4:3 stay squares, and are larger there."""
    raw, ready = tmp_path / "raw", tmp_path / "ready"
    raw.mkdir()
    content = b""
    for width, start in ((320, 2), (240, 18)):
        how = dict(size=(width, 180), image=squares(180, width), start=start)
        part = write_film(tmp_path / "part.ts", 16, audio="ac3", rate=48000, **how)
        content += part.read_bytes()
    (raw / "film.ts").write_bytes(content)
    prepare(raw, ready, "--short-side", 120)
    titles = Titles(ready, Format(short_side=120, crop=120))
    cycles = []  # in 120 pixels, down and across
    for m in (1, titles.counts[0] - 2):
        sample = titles[0, m, None]
        picture = sample["video"].float().mean((0, 1))
        spectrum = np.abs(np.fft.fft2(picture - picture.mean()))[1:30, 1:30]
        down, across = np.unravel_index(spectrum.argmax(), spectrum.shape)
        cycles.append((down + 1, across + 1))
        assert not sample["failures"]
    (high, wide), (higher, wider) = cycles
    assert high == wide and abs(higher - wider) <= 1 and wider < wide


def test_loud_sound_is_clipped_and_does_not_wrap(tmp_path):
    """A decoder's floats go beyond 1 where a recording is loud."""
    path, fmt = tmp_path / "film.mp4", Format(frames=16, rate=16000)
    time = np.arange(2 * fmt.samples) / fmt.rate
    sound = 1.5 * np.sin(2 * np.pi * 440 * time).astype(np.float32)
    pieces = [(np.zeros((32, 40, 40, 3), np.uint8), sound)]
    write_media(path, pieces, fmt, ("libx264", {}), ("flac", {}))
    _, heard = Reader(path).read((), 0.0, len(sound), 16000)
    assert np.abs(heard - sound.clip(-1, 1)).max() < 1e-3


def write_noise(path, fmt, snippets=4, power=0.01, gop=None):
    """Write white noise as a prepared file, and beside it grey frames. Returns the noise."""
    sound = np.random.default_rng(0).normal(0, power**0.5, snippets * fmt.samples)
    sound = sound.clip(-1, 1).astype(np.float32)
    greys = np.arange(snippets * fmt.frames, dtype=np.uint8) * 2
    images = greys[:, None, None, None] + np.zeros((1, 48, 64, 3), np.uint8)
    write_media(path, [(images, sound)], fmt, **PREPARED, gop=gop)
    return sound


def test_prepared_sound_keeps_every_mel_filter(tmp_path):
    """The paper trains on "high audio fidelity", and ESC-50 is not prepared.

    An encoder cuts off the highest frequencies by default: AC-3 at 96 kbit/s leaves nothing in
    the highest three of the 96 filters, which are 14 to 19 nats too low.
    """
    fmt = Format()
    sound = write_noise(tmp_path / "noise.mkv", fmt)
    _, heard = Reader(tmp_path / "noise.mkv").read((), 0.0, len(sound))
    front_end = AudioFrontEnd(fmt)
    snippets = [torch.from_numpy(x.reshape(4, -1)) for x in (sound, heard)]
    before, after = (front_end.log_mel(x) for x in snippets)  # (4, P, Q)
    error = (after - before)[1:].mean((0, 2))
    assert len(error) == 96 and error.abs().max() < 0.15
    assert (after - before)[1:].std() < 0.3


def mean_grey(frame):
    return frame.to_ndarray(format="gray").mean()


def lag_of(heard, sound):
    """How many samples later `heard` is than `sound`, both (n,): the cross-correlation's peak."""
    n = len(sound)
    spectrum = np.fft.rfft(heard, 2 * n) * np.conj(np.fft.rfft(sound, 2 * n))
    lag = np.fft.irfft(spectrum).argmax()
    return lag if lag < n else lag - 2 * n


@pytest.mark.parametrize("rate, slack", [(48000, 0), (44100, 25), (32000, 0)])
def test_prepared_sound_is_exactly_in_time_and_whole(tmp_path, rate, slack):
    """To the sample, whatever was read before. Matroska rounds the packets' times at 44.1 kHz.

    Of the first snippet 256 samples are silent.
    """
    fmt = Format(rate=rate)
    sound = write_noise(tmp_path / "noise.mkv", fmt, snippets=7).reshape(7, -1)
    used = Reader(tmp_path / "noise.mkv")
    assert used.span(used.video, used.audio) == pytest.approx((0, 7 * 3.2), abs=0.001)
    for m in (3, 0, 6, 1, 3):
        fresh = Reader(tmp_path / "noise.mkv")
        start = m * fmt.seconds
        heard, again = (read_snippets(r, start, 1, fmt, mean_grey) for r in (fresh, used))
        assert np.array_equal(heard[1], again[1]) and heard[0] == again[0]
        assert heard[0] == pytest.approx(2 * np.arange(m * 16, (m + 1) * 16), abs=1)
        assert abs(lag_of(heard[1], sound[m])) <= slack
        begin = 256 + slack if m == 0 else 0
        assert abs(heard[1][begin:][:200]).max() > 0.1
        assert abs(heard[1][-100:]).max() > 0.1


@pytest.mark.parametrize("gop", [None, 1])
def test_a_prepared_snippet_costs_one_seek_and_its_own_pictures(tmp_path, monkeypatch, gop):
    """The first one, too: a packet of sound before the first frame would be skipped."""
    seeks, decoded = [], []
    seek = Reader.seek

    def noted(reader, time, **options):
        seeks.append(time)
        return seek(reader, time, **options)

    class Noted(VideoConsumer):
        def frames_of(self, packet):
            decoded.append(packet)
            return super().frames_of(packet)

    write_noise(tmp_path / "noise.mkv", Format(), gop=gop)
    monkeypatch.setattr(Reader, "seek", noted)
    monkeypatch.setattr(media.reader, "VideoConsumer", Noted)
    for m in (0, 2, 1, 3):
        seeks.clear()
        decoded.clear()
        read_snippets(Reader(tmp_path / "noise.mkv"), m * 3.2, 1, Format(), mean_grey)
        assert len(seeks) == 1
        # A group begins a frame before its snippet, unless that is one of every frame.
        assert 16 <= len(decoded) <= (17 if gop is None else 16)


@pytest.mark.parametrize("gop", [None, 1])
def test_of_key_frames_and_of_sound_only_what_is_wanted_is_decoded(tmp_path, monkeypatch, gop):
    """Frames far apart, and little sound. Within a group of pictures each needs those before it."""
    decoded = []
    frames_of = Consumer.frames_of

    def noted(consumer, packet):
        decoded.append(consumer.stream.type)
        return frames_of(consumer, packet)

    monkeypatch.setattr(Consumer, "frames_of", noted)
    sound = write_noise(tmp_path / "noise.mkv", Format(), gop=gop)
    reader = Reader(tmp_path / "noise.mkv")
    for first, step in ((3, 8), (0, 5), (20, 3)):
        decoded.clear()
        numbers = first + step * np.arange(5)
        images, heard = reader.read(numbers / 5, first / 5, 4800, keep=mean_grey)
        assert images == pytest.approx(2 * numbers, abs=1)
        begin = round(first / 5 * 48000)
        assert lag_of(heard, sound[begin : begin + 4800]) == 0
        if gop == 1:
            assert decoded.count("video") == len(numbers)
        # A packet holds 32 ms. Some come before the wanted sound, for the decoder's sake.
        assert decoded.count("audio") <= 8


# A snippet of 25 frames and 1 s, and the flags that prepare films for it.
SECOND = Format(frames=25, fps=25, short_side=48, crop=48)
SECOND_FLAGS = "--frames 25 --fps 25 --short-side 48".split()


def test_a_prepared_film_is_read_exactly_between_its_groups_of_pictures(tmp_path):
    """The frames as in one pass over the film, to the pixel, and the sound in time to the sample.

    E-AC-3 fills in noise, another one where the decoder begins elsewhere, so the sound is as near
    to the original as in one pass, but not the same.
    """
    sound = write_noise(tmp_path / "noise.mkv", SECOND, snippets=5)
    titles = Titles(tmp_path, SECOND, stride=0.5)
    assert titles.counts == [9]
    reader = Reader(tmp_path / "noise.mkv")

    def keep(frame):
        return crop(reader.resize(frame, 48), CENTRE, 48)

    frames, in_one_pass = read_snippets(reader, 0.0, 5, SECOND, keep)
    for m in (3, 0, 8, 1, 2, 7, 3):
        sample = titles[0, m, None]
        first = 25 * m // 2  # A snippet may begin in the middle of a frame.
        assert np.array_equal(sample["video"], np.stack(frames[first : first + 25], axis=1))
        heard, second = sample["waveform"].numpy(), slice(24000 * m, 24000 * m + 48000)
        assert lag_of(heard, sound[second]) == 0
        error = np.square(heard - sound[second]).mean()
        assert error == pytest.approx(np.square(in_one_pass - sound)[second].mean(), rel=0.05)
        again = Titles(tmp_path, SECOND, stride=0.5)[0, m, None]["waveform"]
        assert np.array_equal(heard, again)


@pytest.mark.parametrize("is_prepared", [False, True], ids=["as it came", "prepared"])
def test_snippets_that_overlap_stay_in_step(tmp_path, is_prepared):
    """On a grid of half a snippet: flashes and beeps of each snippet, and when it begins."""
    films = tmp_path / "films"
    (films / "show").mkdir(parents=True)
    write_film(films / "show" / "e1.mp4", seconds=7.3, start=1.0)
    write_film(films / "show" / "e2.mkv", seconds=5, audio="flac", rate=48000)
    if is_prepared:
        prepare(films, tmp_path / "ready", *SECOND_FLAGS)
        films = tmp_path / "ready"
    titles = Titles(films, SECOND, stride=0.5)
    assert titles.counts == [13 + 9]
    begins = [0.5 * m for m in range(13)] + [7 + 0.5 * m for m in range(9)]
    flashes = 0
    for m, begin in enumerate(begins):
        path, second = titles.locate(0, m)
        sample = titles[0, m, None]
        assert sample["begin"] == begin
        # Seconds of the film itself at which its frames are shown.
        times = second - Timeline(path).zero + np.arange(25) / 25
        assert times[0] == pytest.approx(begin - 7 * (m >= 13), abs=0.002)
        is_white = sample["video"].float().mean((0, 2, 3)) > 140
        assert is_white.tolist() == [is_lit(time + CLOCK) for time in times], m
        flashes += is_white.any().item()
        # The middle half of what is heard while a frame is on screen, unless a beep begins there.
        loudness = sample["waveform"].view(25, -1)[:, 480:1440].abs().amax(1)
        for time, loud in zip(times, loudness):
            if is_lit(time + 0.009) == is_lit(time + 0.031):
                assert (loud > 0.2) == is_lit(time + 0.02), (m, time)
    assert flashes == 4 + 3 + 3 + 2


def test_the_same_film_is_prepared_to_the_same_bytes(tmp_path):
    """Also by another process."""
    fmt = Format(short_side=48, crop=48)
    paths = [tmp_path / f"{name}.mkv" for name in "abc"]
    for path in paths[:2]:
        write_noise(path, fmt)
    in_own_process(write_noise, paths[2], fmt)
    first, *others = [path.read_bytes() for path in paths]
    assert others == [first, first]


def test_preparing_ends_at_all_of_its_hours_without_a_warning(tmp_path):
    """Hours of film that are added one by one may end a little above their sum."""
    (tmp_path / "raw").mkdir()
    for i in range(6):
        write_film(tmp_path / "raw" / f"f{i}.mkv", seconds=3.3 + i / 7, fps=7, rate=8000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        prepare(tmp_path / "raw", tmp_path / "ready", "--short-side", 40)
    assert not [warning for warning in caught if issubclass(warning.category, TqdmWarning)]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system gives no cores out")
def test_a_job_on_one_core_prepares_one_file_at_a_time(tmp_path, monkeypatch):
    """The machine may have more cores than the job may use."""
    (tmp_path / "raw").mkdir()
    write_film(tmp_path / "raw" / "film.mkv", 4)
    asked = []
    monkeypatch.setattr(media.prepare, "transcode", lambda jobs, workers, *_: asked.append(workers))
    cores = os.sched_getaffinity(0)
    for allowed in ({min(cores)}, cores):
        os.sched_setaffinity(0, allowed)
        try:
            prepare(tmp_path / "raw", tmp_path / "ready")
        finally:
            os.sched_setaffinity(0, cores)
    prepare(tmp_path / "raw", tmp_path / "ready", "--workers", 7)
    assert asked == [1, len(cores), 7]


# --------------------------------------------------------------------------------------------
# Checking a collection
# --------------------------------------------------------------------------------------------


def test_check_reports_what_is_there(prepared):
    raw, _, _ = prepared
    status, printed, errors = run_script("media", "check", raw, "--batch-size", 4)
    assert not status, errors
    assert "h264 160x120 25/s" in printed and "aac 44100 Hz stereo" in printed
    assert "text.mp4: not a media file" in printed
    # Files of 40, 11 and 15 s hold 12, 3 and 4 snippets.
    assert "2 titles, 0.02 h of files, 19 whole snippets of 3.2 s (0.02 h), 2 skipped" in printed
    assert "4 steps an epoch in batches of 4, if it trains on all titles" in printed


def test_check_reports_what_short_segments_lose(tmp_path):
    """Of segments of 5 s, as HLS has them, a third is lost: a snippet lasts 3.2 s."""
    show = tmp_path / "films" / "show"
    show.mkdir(parents=True)
    write_film(show / "s0.ts", seconds=5)
    for i in (1, 2, 3):
        shutil.copy(show / "s0.ts", show / f"s{i}.ts")
    _, printed, _ = run_script("media", "check", tmp_path / "films")
    [line] = [line for line in printed.splitlines() if "is lost" in line]
    # Of 20 s, 4 snippets of 3.2 s are left.
    assert line.startswith("show: 36 %") and "join them" in line
    write_film(tmp_path / "films" / "film.mp4", seconds=64)
    shutil.rmtree(show)
    _, printed, _ = run_script("media", "check", tmp_path / "films")
    assert "is lost" not in printed


def test_check_refuses_a_list_of_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "LIST.txt").write_text("empty\n")
    error = refused("media", "check", tmp_path / "LIST.txt")
    assert "nothing in it can be used, 1 skipped; empty: no media files in it" in error


# --------------------------------------------------------------------------------------------
# Scenes
# --------------------------------------------------------------------------------------------


def true_scenes(world):
    """For each film of a toy world the snippets with which a scene begins, but for the first."""
    begins, before = {}, (None, None)
    for line in (world / "truth.csv").read_text().splitlines()[1:]:
        title, snippet, scene = (int(cell) for cell in line.split(",")[:3])
        begins.setdefault(title, set())
        if before[0] == title and before[1] != scene:
            begins[title].add(snippet)
        before = (title, scene)
    return [begins[title] for title in sorted(begins)]


def test_scenes_of_the_toy_world_are_found(tmp_path):
    media.toy.make_toy(tmp_path / "toy", seed=7, titles=6, snippets=96, clips=(1, 0))
    titles = Titles(tmp_path / "toy" / "films", TINY, scenes=True)
    found = [set(np.cumsum(lengths)[:-1].tolist()) for lengths in titles.scenes]
    true = true_scenes(tmp_path / "toy")
    right = sum(len(a & b) for a, b in zip(found, true))
    there, drawn = sum(map(len, true)), sum(map(len, found))
    assert there > 30 and right >= 0.85 * drawn and right >= 0.85 * there
    assert [sum(lengths) for lengths in titles.scenes] == titles.counts
    assert titles.subset([2, 4]).scenes[1] == titles.scenes[4]
    assert Titles(tmp_path / "toy" / "films", TINY).subset([0]).scenes is None


@pytest.fixture
def searched(monkeypatch):
    """The names of the files that were searched for scenes, in order."""
    names, in_own_process = [], media.collection.in_own_process

    def noted(work, path, *args):
        names.append(Path(path).name)
        return in_own_process(work, path, *args)

    monkeypatch.setattr(media.collection, "in_own_process", noted)
    return names


def test_scenes_are_found_once_until_the_file_changes(tmp_path, searched):
    films = tmp_path / "films"
    (films / "show").mkdir(parents=True)
    for i, name in enumerate(("film.mp4", "show/e1.mp4", "show/e2.mp4")):
        write_film(films / name, seconds=8 + i)
    first = Titles(films, TINY, scenes=True)
    assert sorted(searched) == ["e1.mp4", "e2.mp4", "film.mp4"]
    assert first.counts == [5, 5 + 6]
    assert [sum(lengths) for lengths in first.scenes] == first.counts
    assert len(first.scenes[1]) >= 2  # an episode ends a scene
    write_film(films / "film.mp4", seconds=12)
    assert sum(Titles(films, TINY, scenes=True).scenes[0]) == 7
    assert searched[3:] == ["film.mp4"]


def test_scenes_found_before_an_interruption_are_kept(tmp_path, monkeypatch, searched):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_film(tmp_path / name, seconds=7)
    search = media.collection.in_own_process

    def interrupted(work, path, *args):
        if path.endswith("c.mp4"):
            raise KeyboardInterrupt
        return search(work, path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(media.collection, "in_own_process", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Titles(tmp_path, TINY, scenes=True)
    assert sorted(searched) == ["a.mp4", "b.mp4"]
    assert Titles(tmp_path, TINY, scenes=True).scenes == [[4]] * 3
    assert searched[2:] == ["c.mp4"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="No job is limited here.")
def test_scenes_are_searched_on_the_cores_that_a_job_may_use(monkeypatch):
    """A job on a shared machine may have a few of its cores."""
    used = []
    monkeypatch.setattr(
        media.collection, "cached", lambda workers, **how: used.append(workers) or {}
    )
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        media.collection.index_scenes([], "FILMS", TINY, log_mel=None)
    finally:
        os.sched_setaffinity(0, cores)
    assert used == [1]


def test_scenes_of_a_damaged_film_still_add_up(tmp_path):
    damage(write_film(tmp_path / "film.mkv", seconds=60, audio="flac"), (0.5, 0.6))
    titles = Titles(tmp_path, TINY, scenes=True)
    assert sum(titles.scenes[0]) == titles.counts[0] == 37
    assert lost_of(titles) > 0


def test_novelty_peaks_where_a_scene_begins():
    rng = np.random.default_rng(0)
    places, lengths = rng.normal(size=(4, 2, 20)), [12, 5, 30, 9]
    features = []
    for kind in (0, 1):
        scenes = np.repeat(places[:, kind], lengths, axis=0)
        features.append(scenes + 0.3 * rng.normal(size=(56, 20)))
    novelty = measure_novelty(*features)
    assert pick_peaks(novelty) == [12, 17, 47]
    assert novelty[[12, 17, 47]].min() > 2 * novelty[30]
    plateau = np.array([0, 0, 0, 0.5, 0.5, 0.5, 0.1, 0, 0])
    assert pick_peaks(plateau) == [3]  # of equals the first
    assert pick_peaks(measure_novelty(np.ones((20, 3)), np.zeros((20, 2)))) == []
    assert pick_peaks(measure_novelty(np.ones((1, 3)), np.zeros((1, 2)))) == []
