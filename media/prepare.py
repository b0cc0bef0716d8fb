"""Transcode a collection to files that read fast.

T is the number of frames of a snippet, S its samples of sound, and c a number of snippets that
are handled together. An image is RGB uint8 (H, W, 3), and images are a list of them or an array.
Sound is mono float32; what lies outside [-1, 1] is clipped. All times are in seconds.
"""

import contextlib
import dataclasses
import errno
import hashlib
import io
import json
import math
import multiprocessing
import os
import shlex
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.frame import PictureType
from tqdm import tqdm

from harness.errors import BadInput, printable
from harness.files import atomic_write, in_own_process, lock_folder, usable_cores
from media.collection import files_below, index_files, list_titles, stamp_files
from media.format import Format
from media.reader import LEAD, MARK, Reader, read_film

# The codecs of a prepared file, and their options. They were chosen by measurement, and all
# figures are of one snippet: the sound's of 76 snippets of speech, drums, instruments and
# ambience with frequencies up to 24 kHz (`natural`), and of 18 of white noise; the video's of
# 64 s of filmed footage and animation at 338 x 190 pixels.
#
#   natural, white  rms error of the log-mel, in its standard deviations
#   top filters     the largest mean error of one of the highest 6 of 96 mel filters, in nats,
#                   with white noise
#   speed           in how many of 100 clips of noise, pink to white and played once or twice as
#                   fast, logistic regression on the mean log-mel is right about the speed, if
#                   they are heard up to 8, 16 and 22 kHz. Of 1,600 clips, cross-validated, so
#                   the standard error is 1.2. Uncompressed sound has 50, 49 and 50.
#
#   sound                  KB  ms to decode  natural  white  top filters  speed
#   E-AC-3 140k, cutoff    56       1.4       0.045   0.07       0.0      52, 61, 70
#   E-AC-3 150k, cutoff    60       1.4       0.043   0.07      +0.1      51, 57, 61
#   AC-3 128k, cutoff      51       1.4       0.049   0.10      +0.1      53, 65, 74
#   AC-3 160k, cutoff      64       1.4       0.040   0.07      +0.1      51, 55, 76
#   AC-3 96k               38       1.2       0.224   2.53     -19.4      58, 65, 94
#   AAC 144k, cutoff       59       2.0       0.046   0.18      -0.1      70, 72, 72
#   Opus 144k              60       4.6       0.228   2.52     -19.0      51, 50, 100
#   MP3 160k               64       2.0       0.236   2.71     -19.4
#   MP2 160k               64       1.7       0.410   5.02     -17.7
#   FLAC                  131       1.5       0.021   0.00       0.0
#
# The video and the sound should take 150 KB at most, and the video takes up to 93. Without
# `cutoff`, which is in Hz, an encoder empties the highest filters. E-AC-3 betrays the speed of
# noise that is heard above 8 kHz; so does all else that fits and keeps these filters. AAC, besides,
# decoded a snippet a little differently after a seek.
#
#   video                      KB  ms to decode  PSNR in dB
#   MPEG-4, q 3                81       2.0      41.6
#   MPEG-4, q 4                59       1.8      40.0
#   H.264 veryfast, crf 23     69       3.3      42.4
#   H.264 veryfast, crf 26     47       2.8      40.2
#   MPEG-2, q 3               100       2.0      42.4
#
# H.264 was encoded with `fastdecode`; without it, decoding takes twice as long.
PREPARED = {
    "picture": ("mpeg4", {"qmin": "3", "qmax": "3"}),
    "sound": ("eac3", {"b": "140k", "cutoff": "24000"}),
}

# Samples by which an encoder's packets begin before the sound that it is given.
ENCODER_DELAY = {"ac3": 256, "eac3": 256}

SUFFIX = ".mkv"  # is added to the name of a source file

NAME_BYTES = 255  # the longest name of a file or a folder that usual file systems take
TEMPORARY_BYTES = len("..4194304")  # what `atomic_write` adds to a name, with Linux's highest PID

POOL = "prepare"  # what the names of the threads begin with that wait for processes

# Errors of the system that the next file would meet, too.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

NOTE = ".prepared.json"  # in a prepared folder: from which source it was made, and how

TIME_STEP = 2 * 10**9  # in ns: file systems round a file's time down, FAT to even seconds

# The numbers in a note, and what is wrong if a run asks for more.
NUMBERS = {
    "fps": "frames would be repeated",
    "short_side": "frames would be enlarged",
    "rate": "sound would be upsampled, so the highest mel filters would be empty",
}

# What the notes of earlier versions do not say. Their files have the times at which they were
# written, and not those of their sources.
EARLIER = {
    "keeps_times": False,
    "require_language": False,
    "video": "mpeg4 qmax=3 qmin=3",
    "sound": "ac3 b=96k",
}


# ----------------------------------------------------------------------------------------
# Writing one media file
# ----------------------------------------------------------------------------------------


def write_media(path, pieces, fmt, picture, sound, gop=None):
    """Write a media file of whole snippets; the same input gives the same bytes.

    pieces   [(c * T images, waveform (c * S,))] in order, each of any number c of snippets
    picture  (codec of the video, its options)
    sound    (codec of the sound, its options)
    gop      frames of a group of pictures: a divisor of T, by default T itself. With 1 every frame
             is a key frame.
    Raises av.error.FFmpegError and OSError.

    A group of pictures begins LEAD before each snippet, rounded up to whole frames: 0.2 s at 5
    frames a second. So one seek to it finds the beginning of the snippet's sound as well, which
    lies just before the snippet's pictures in the file. There are no B-frames.
    """
    if gop is None:
        gop = fmt.frames
    assert fmt.frames % gop == 0, "No group of pictures would begin before some snippets."
    container = "mp4" if sound[0] == "flac" else "matroska"
    lead = math.ceil(LEAD * fmt.fps)  # frames
    # FFmpeg's "bitexact" leaves out its version and the date.
    with av.open(str(path), "w", format=container, options={"fflags": "+bitexact"}) as out:
        video = add_video(out, fmt, *picture)
        audio = SoundTrack(out, fmt.rate, *sound)
        for m, (images, waveform) in enumerate(single_snippets(pieces, fmt)):
            if m == 0:
                video.height, video.width = images[0].shape[:2]
            for t, image in enumerate(images):
                number = m * fmt.frames + t
                frame = video_frame(image, number, video)
                if (number + lead) % gop == 0:
                    frame.pict_type = PictureType.I
                out.mux(video.encode(frame))
            end = round((m + 1) * fmt.frames * fmt.rate / frame_rate_of(fmt))
            audio.write(of_length(waveform, end - audio.written))
        out.mux(video.encode())
        audio.finish()


def frame_rate_of(fmt):
    """The frame rate of a file that is written, in 1/s: 29.97 is 30000/1001."""
    return Fraction(fmt.fps).limit_denominator(1001)


def of_length(waveform, samples):
    """Cut a waveform, or repeat its last sample.

    At 29.97 frames a second a snippet has no whole number of samples, and the sound would run away
    from the picture by 50 ms an hour.
    """
    missing = max(0, samples - len(waveform))
    return np.pad(waveform[:samples], (0, missing), mode="edge")


def add_video(out, fmt, codec, options):
    """Mark an open container as prepared, add a video stream to it, and return that."""
    out.metadata["COMMENT"] = MARK
    every_video = {
        "g": str(fmt.frames),
        "bf": "0",
        "sc_threshold": "1000000000",  # A cut to another scene starts no group of pictures.
        "threads": "1",
        "flags": "+bitexact",
    }
    video = out.add_stream(codec, rate=frame_rate_of(fmt), options=every_video | options)
    video.pix_fmt = "yuv420p"
    return video


class SoundTrack:
    """The mono sound of a media file that is being written, from 0 s on.

    (E-)AC-3 has a delay: the first packet begins 256 samples before the sound that the encoder
    is given. If the file says so, FFmpeg drops the first 256 samples that it decodes after
    opening the file, wherever it has been told to seek, and nothing after a later seek. As
    Matroska counts in milliseconds, one of the two is then 1/3 ms off. Besides, FFmpeg skips a
    packet that begins before the first frame. So 256 samples are cut off the beginning, the
    first packet begins at 0 s, and the file says nothing of a delay: 5 ms are silent there.
    """

    def __init__(self, out, rate, codec, options):
        self.out = out
        self.rate = rate
        self.delay = ENCODER_DELAY.get(codec, 0)  # samples
        self.written = 0  # samples
        options = {"flags": "+bitexact"} | options
        if self.delay == 0:
            self.stream = out.add_stream(codec, rate=rate, options=options, layout="mono")
            self.encoder = self.stream
        else:
            self.stream = add_stream_without_delay(out, rate, codec, options)
            self.encoder = make_encoder(rate, codec, options)

    def write(self, waveform):
        """Encode a waveform (n,), which follows on what was written before."""
        begin = self.written
        self.written += len(waveform)
        if begin == 0:
            waveform = waveform[self.delay :]
            begin = self.delay
        self.encode(audio_frame(waveform, begin, self.rate))

    def finish(self):
        """Write what the encoder still holds."""
        if self.delay:
            silence = np.zeros(self.delay, np.float32)
            self.encode(audio_frame(silence, self.written, self.rate))
        self.encode(None)

    def encode(self, frame):
        for packet in self.encoder.encode(frame):
            packet.stream = self.stream
            self.out.mux(packet)


def make_encoder(rate, codec, options):
    """Return an encoder of mono sound that belongs to no stream."""
    encoder = av.CodecContext.create(codec, "w")
    encoder.sample_rate = rate
    encoder.time_base = Fraction(1, rate)
    encoder.layout = "mono"
    encoder.format = encoder.codec.audio_formats[0]
    encoder.options = options
    return encoder


def add_stream_without_delay(out, rate, codec, options):
    """Add an audio stream for packets that are encoded elsewhere, and return it.

    Its header is that of a second of silence. (E-)AC-3 needs no container, in which a delay
    could be written, so there is none to copy.
    """
    encoder = make_encoder(rate, codec, options)
    silence = audio_frame(np.zeros(rate, np.float32), 0, rate)
    packets = [*encoder.encode(silence), *encoder.encode(None)]
    raw_file = io.BytesIO(b"".join(bytes(packet) for packet in packets))
    with av.open(raw_file, format=codec) as file:
        return out.add_stream_from_template(file.streams.audio[0])


def single_snippets(pieces, fmt):
    """Yield (T images, waveform (S,)) of each snippet in pieces of several.

    The frames and the sound of a snippet are written in turn, so that they lie side by side
    in the file.
    """
    for images, waveform in pieces:
        for m in range(len(images) // fmt.frames):
            yield (
                images[m * fmt.frames : (m + 1) * fmt.frames],
                waveform[m * fmt.samples : (m + 1) * fmt.samples],
            )


def video_frame(image, number, stream):
    """Return the av.VideoFrame of an image (H, W, 3), the `number`-th of its stream."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    frame.pts = number
    frame.time_base = 1 / stream.codec_context.framerate
    return frame


def audio_frame(waveform, first_sample, rate):
    """Return the 16-bit av.AudioFrame of a waveform (S,).

    first_sample  its number in the stream
    """
    sound = (32767 * waveform.clip(-1, 1)).round().astype(np.int16)
    frame = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
    frame.sample_rate = rate
    frame.pts = first_sample
    frame.time_base = Fraction(1, rate)
    return frame


# ----------------------------------------------------------------------------------------
# Preparing one file
# ----------------------------------------------------------------------------------------


class Unwritable(BadInput):
    """The folder takes no more files, so there is no sense in trying the next."""


def prepare_file(path, destination, extent, stamp, fmt, language, gop):
    """Transcode one file, whole or not at all, and give it the time of its source.

    extent  (start, end) of what its video and its sound both cover
    stamp   [size, time] of the source before that was found, as `stamp_files` has it; or None
    gop     frames of a group of pictures, as `write_media` takes it
    Returns (snippets written, damaged snippets skipped, bytes, frames a second of the file). Raises
    BadInput, and of that Unwritable where no other file could be written either.
    """
    remove_leftovers(destination)
    with contextlib.closing(Reader(path, language)) as reader:
        source = SourceFile(reader, extent, fmt)

        def write(temporary):
            write_media(temporary, pieces=source.pieces(), fmt=fmt, gop=gop, **PREPARED)
            if stamp_files([path]).get(path) != stamp:
                raise BadInput(f"{path}: changed while it was prepared; repeat the command")
            if stamp is not None:
                _, changed = stamp
                os.utime(temporary, ns=(changed, changed))

        try:
            atomic_write(destination, write, os.getpid())
        except (av.error.FFmpegError, OSError) as error:
            if error.errno in FULL:
                raise Unwritable(
                    f"{destination}: {error.strerror}; fix that and repeat the command, which "
                    "keeps the files that are finished"
                ) from error
            raise BadInput(f"{path}: {error.strerror or error}") from error
    written = source.count - source.damaged
    return written, source.damaged, destination.stat().st_size, source.rate


def divides(fps, rate):
    """Whether frames of `fps` a second are a whole number of a film's frames apart, to a hundredth.

    rate  of the film, in frames a second: 24 at an fps of 12; at 10 they are 2 or 3 apart.
    """
    apart = rate / fps
    return round(apart) >= 1 and abs(apart - round(apart)) < 0.01


def remove_leftovers(destination):
    """Make a file's folder, and remove from it what a killed run has left of the file."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    for name in os.listdir(destination.parent):
        if name.startswith(f".{destination.name}."):
            os.unlink(destination.parent / name)


class SourceFile:
    """The snippets of an open file, with all images of one shape, as `write_media` takes them.

    count    whole snippets in the file
    damaged  how many of them could not be read so far
    rate     frames a second, as the file says
    """

    def __init__(self, reader, extent, fmt):
        start, end = extent
        self.rate = float(reader.video.average_rate or 0)
        self.reader = reader
        self.start = start
        self.fmt = fmt
        self.count = fmt.whole_snippets(end - start)
        self.damaged = 0
        self.shape = None  # (H, W, 3) of the first image, and so of all

    def pieces(self):
        """Yield what can be read. Raises BadInput at the end if that was nothing."""
        for images, waveform in read_film(
            self.reader, self.start, self.count, self.fmt, keep=self.image_of
        ):
            if images is None:
                self.damaged += 1
            else:
                yield images, waveform
        if self.damaged == self.count:
            raise BadInput(f"{self.reader.path}: no snippet in it can be read")

    def image_of(self, frame):
        """Return an av.VideoFrame in the shape of the file's first image.

        Where a broadcast changes from 16:9 to 4:3, its new images are enlarged until they
        cover that shape, and what is too much is cut off at both sides. All sides are even,
        because yuv420p has one colour for 2 x 2 pixels.
        """
        image = self.reader.resize(frame, self.fmt.short_side, multiple=2)
        if self.shape is None:
            self.shape = image.shape
        height, width, _ = self.shape
        if image.shape != self.shape:
            enlarged = max(height / image.shape[0], width / image.shape[1])
            # Even, and up to 4 pixels more, so that no rounding makes a side too short.
            short_side = math.ceil(enlarged * self.fmt.short_side / 2 + 1) * 2
            image = self.reader.resize(frame, short_side, multiple=2)
        top = (image.shape[0] - height) // 2
        left = (image.shape[1] - width) // 2
        return image[top : top + height, left : left + width]


# ----------------------------------------------------------------------------------------
# Preparing a collection
# ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Job:
    """One file to transcode."""

    path: str
    destination: Path
    extent: tuple  # (start, end)
    stamp: list | None  # [size, time] of the source before it was probed; of a URL None
    fmt: Format
    language: str | None
    gop: int | None
    keeps_times: bool  # whether all files in the folder have the times of their sources

    @property
    def seconds(self):
        start, end = self.extent
        return end - start

    @property
    def snippets(self):
        return self.fmt.whole_snippets(self.seconds)

    def is_finished(self):
        """Whether an earlier call wrote the file, and its source has not changed since."""
        if not self.destination.exists():
            return False
        if self.stamp is None:
            return True
        _, changed = self.stamp
        kept = self.destination.stat().st_mtime_ns
        return is_kept(changed, kept) or (not self.keeps_times and changed <= kept)

    def run(self):
        """Run `prepare_file` in a process of its own, of which nothing is left if it dies."""
        try:
            return in_own_process(
                prepare_file,
                self.path,
                self.destination,
                self.extent,
                self.stamp,
                self.fmt,
                self.language,
                self.gop,
            )
        except BadInput:
            remove_leftovers(self.destination)
            raise


def is_kept(given, kept):
    """Whether a file that was given a time, in ns, may have kept this one: see TIME_STEP."""
    return 0 <= given - kept < TIME_STEP


@dataclasses.dataclass
class Summary:
    """What one call does, as it is known so far."""

    titles: int
    skipped: list  # (title or path, problem)
    files: int = 0  # to transcode
    done_before: int = 0  # files
    hours: float = 0.0  # of film
    written: int = 0  # snippets
    damaged: int = 0  # snippets
    size: int = 0  # bytes
    elapsed: float = 0.0  # seconds
    uneven: Counter = dataclasses.field(default_factory=Counter)  # {(rate, fps): files}

    def speed(self):
        """How many times faster than real time the film was transcoded."""
        return 3600 * self.hours / self.elapsed

    def print(self):
        for path, problem in self.skipped:
            print(f"skipped {printable(path)}: {problem}")
        print(
            f"{self.titles} titles: {self.files} files, and {self.done_before} done before; "
            f"{len(self.skipped)} skipped; {self.damaged} damaged snippets skipped"
        )
        if self.written:
            print(
                f"{self.hours:.2f} h of film in {self.elapsed:.0f} s: "
                f"{self.speed():.0f} x real time; {self.written} snippets, "
                f"{self.size / 1e6:.0f} MB, {self.size / self.written / 1e3:.0f} KB a snippet"
            )
        for (rate, fps), files in sorted(self.uneven.items()):
            print(
                f"warning: frames of {rate:g} a second ({files} files) are unevenly apart at --fps "
                f"{fps:g}, which tells how fast a clip is played; prepare them again with --fps "
                f"{rate / max(1, rate // fps):.5g}, and train with it"
            )


def prepare(
    source,
    target,
    fmt,
    language=None,
    workers=None,
    shard=(1, 1),
    require_language=False,
    gop=None,
):
    """Transcode a collection to the folder `target`, for fast reading, and print a summary.

    source   a folder or a list, as `list_titles` takes it; each title keeps its name
    workers  files at a time; by default one for each core that this process may use
    shard    (machine, machines): this machine's share of the files; machines count from 1
    require_language  whether to skip the files that have no audio track of `language`
    gop      frames of a group of pictures, as `write_media` takes it

    A file that an earlier call has finished is skipped, unless its source has changed since.
    Raises BadInput for a rate that the codec of the sound lacks, for groups of pictures of which
    a snippet does not hold a whole number, and for a target that lies in the source or holds a file
    of it, was prepared from another source or with other settings, has a broken note, or has files
    that belong to no title of the source.
    """
    source = os.fspath(source)
    target = Path(target)
    check_rate(fmt.rate)
    check_gop(gop, fmt)
    titles = list_titles(source)
    all_paths = [path for _, paths in titles for path in paths]
    check_apart(source, target, all_paths)
    note = check_target(source, target, fmt, language, require_language, gop)
    where = destinations(titles, source, target)
    check_no_others(source, target, where)
    stamps = stamp_files(all_paths)  # before the files are probed, so that a later change shows
    index = index_files(all_paths, source, language, quiet=False, require_language=require_language)
    machine, machines = shard
    # A second one would remove the files that the first has begun to write.
    lock_folder(target, f".lock-{machine}-of-{machines}")
    write_note(target, note)

    empty = [(name, "no media files in it") for name, paths in titles if not paths]
    summary = Summary(titles=len(titles), skipped=empty)
    jobs = []
    for path in all_paths[machine - 1 :: machines]:
        info = index[path]
        extent = (info.start, info.end)
        stamp = stamps.get(path)
        job = Job(path, where[path], extent, stamp, fmt, language, gop, note["keeps_times"])
        if job.snippets == 0:
            problem = info.problem or f"shorter than a snippet of {fmt.seconds:g} s"
            summary.skipped.append((path, problem))
        elif job.is_finished():
            summary.done_before += 1
        else:
            jobs.append(job)
    bar = progress_bar(jobs, f"prepare {target}")
    transcode(jobs, workers or usable_cores(), summary, bar)
    summary.print()


def destinations(titles, source, target):
    """Return {path: the Path of its prepared file}.

    A folder's titles are in the order of their names, so those of a list are numbered.
    """
    where = {}
    for n, (name, paths) in enumerate(titles):
        show = base_name(name.split("\t")[0].rstrip("/"))
        for episode, path in enumerate(paths):
            folder = ""
            if os.path.isdir(source):
                folder, file = os.path.split(os.path.relpath(path, source))
            elif len(paths) == 1:
                file = f"{n:04d} {base_name(path)}"
            else:
                folder = shortened(f"{n:04d} {show}", NAME_BYTES)
                file = f"{episode:03d} {base_name(path)}"
            file = shortened(file, NAME_BYTES - len(SUFFIX) - TEMPORARY_BYTES)
            where[path] = Path(target, folder, file + SUFFIX)
    return where


def base_name(path):
    """Return the last part of a path, or of a URL without its query, which may hold a signature."""
    if "://" in path:
        path = path.partition("?")[0]
    return os.path.basename(path)


def shortened(name, most):
    """Return a name; if it has too many bytes, its beginning and a hash, so it stays distinct."""
    raw = os.fsencode(name)
    if len(raw) <= most:
        return name
    digits = hashlib.sha256(raw).hexdigest()[:8]
    beginning = raw[: most - len(digits) - 1].decode(errors="ignore")
    return f"{beginning} {digits}"


def check_rate(rate):
    """Raise BadInput if the codec of the sound lacks this sample rate (Hz)."""
    codec, _ = PREPARED["sound"]
    rates = sorted(av.Codec(codec, "w").audio_rates)
    if rate not in rates:
        listed = ", ".join(str(possible) for possible in rates)
        raise BadInput(f"--rate {rate}: must be one of {listed}, which are the rates of {codec}")


def check_gop(gop, fmt):
    """Raise BadInput if a snippet does not hold a whole number of groups of `gop` pictures."""
    possible = [n for n in range(1, fmt.frames + 1) if fmt.frames % n == 0]
    if gop is not None and gop not in possible:
        listed = ", ".join(map(str, possible))
        raise BadInput(
            f"--gop {gop}: must be one of {listed}, so that a group of pictures begins before "
            f"each snippet of {fmt.frames} frames; with 1 every frame is a key frame"
        )


def check_apart(source, target, paths):
    """Raise BadInput if the target lies in the source, or holds one of its files (`paths`)."""
    there = target.resolve()
    remedy = "name a folder elsewhere"
    if os.path.isdir(source) and there.is_relative_to(os.path.realpath(source)):
        raise BadInput(f"{target}: lies in {source}, where it would be a title; {remedy}")
    for path in paths:
        if "://" not in path and Path(os.path.realpath(path)).is_relative_to(there):
            raise BadInput(
                f"{target}: holds {path}, a film of {source}; prepared, it would be there twice, "
                f"so {remedy}"
            )


def check_target(source, target, fmt, language, require_language=False, gop=None):
    """Return what the note in `target` has to say: the settings, the source, and `keeps_times`.

    A folder that has files and no note may be of an earlier version: its note is to be deleted if
    the source has moved.

    Raises BadInput if the note is broken or says something else.
    """
    here = os.path.realpath(source)
    settings = {
        "frames": fmt.frames,
        "fps": fmt.fps,
        "short_side": fmt.short_side,
        "rate": fmt.rate,
        "language": language,
        "require_language": require_language,
        "video": describe_codec(*PREPARED["picture"]),
        "sound": describe_codec(*PREPARED["sound"]),
        "gop": None if gop == fmt.frames else gop,  # None is the default.
    }
    path = target / NOTE
    # The files come first: another machine may be writing its note, and then its first file.
    keeps_times = not prepared_files(target)
    if path.exists():
        old_settings = EARLIER | read_note(path)
        old_source = old_settings.pop("source", here)  # Notes of earlier versions lack it.
        keeps_times = old_settings["keeps_times"]
        if any(old_settings.get(name) != settings[name] for name in settings):
            old_words, new_words = differences(old_settings, settings)
            raise BadInput(
                f"{target}: was prepared with {old_words} and not {new_words}; name another folder"
            )
        if old_source != here:
            raise BadInput(
                f"{target}: was prepared from {old_source} and not from {here}; name another "
                f"folder, or, if it is the same collection in a new place, delete {path} "
                "and repeat the command"
            )
    if settings["gop"] is None:
        del settings["gop"]  # So the note is what it was before there was a choice.
    return settings | {"source": here, "keeps_times": keeps_times}


def prepared_files(target):
    """Return the paths of the files in a folder that `prepare` wrote, as far as their names say."""
    if not target.exists():
        return []
    return [path for path in files_below(target) if path.endswith(SUFFIX)]


def check_no_others(source, target, where):
    """Raise BadInput if the target has prepared files that are of no file of the source any more.

    A film that was renamed, or that got another number in a list, would be there twice.

    where  as `destinations` gives it, of all machines
    """
    known = set(where.values())
    others = [path for path in prepared_files(target) if Path(path) not in known]
    if others:
        first = os.path.relpath(others[0], target)
        raise BadInput(
            f"{target}: {len(others)} prepared files in it belong to no title of {source} any "
            f"more, the first is {first}; if {source} is complete, delete them, or prepare into "
            "another folder"
        )


def describe_codec(codec, options):
    """Return a codec and its options in words, such as "mpeg4 qmax=3 qmin=3"."""
    pairs = [f"{name}={value}" for name, value in sorted(options.items())]
    return " ".join([codec, *pairs])


def differences(old, new):
    """Return in words (what only the old settings say, what only the new ones say)."""
    names = [name for name in new if old.get(name) != new[name]]
    old_words = json.dumps({name: old.get(name) for name in names})
    new_words = json.dumps({name: new[name] for name in names})
    return old_words, new_words


def read_note(path):
    """Return the dict in a note. Raises BadInput if it holds none, or lacks its numbers."""
    try:
        note = json.loads(path.read_text())
    except ValueError:
        note = None
    if not is_note(note):
        raise BadInput(
            f"{path}: is not the note that `prepare` wrote, which is a line of JSON; name another "
            "folder, or, if this one was prepared from the same source with the same flags, "
            "delete the note and repeat the command"
        )
    return note


def is_note(note):
    """Whether a note, as JSON has it, is a dict with the numbers that every version wrote."""
    if not isinstance(note, dict):
        return False
    return all(isinstance(note.get(name), (int, float)) for name in NUMBERS)


def write_note(target, note):
    """Write the note anew: notes of earlier versions say less."""
    target.mkdir(parents=True, exist_ok=True)
    text = json.dumps(note)
    atomic_write(target / NOTE, lambda temporary: temporary.write_text(text), os.getpid())


# ----------------------------------------------------------------------------------------
# Whether prepared files hold what a run asks for
# ----------------------------------------------------------------------------------------


def check_prepared(paths, fmt, language=None, all_key_frames=False):
    """Raise BadInput if files were prepared with less than this Format asks for.

    paths           of the files of all titles; URLs are skipped
    language        the audio track that is asked for, as the files tag it; None is any
    all_key_frames  whether to refuse, too, what was prepared without `--gop 1`: a key frame is
                    sharper than others, so it tells in which direction a clip is played; or with an
                    fps of which that of the Format is no divisor: frames that are unevenly apart
                    tell how fast it is

    A film lies beside the note of its prepared folder, and an episode of a show below it. So
    the nearest note counts, in the folder of a file or above it. Files without a note were not
    prepared, and are not refused. A broken note is refused as `read_note` does.
    """
    folders = {os.path.dirname(path) for path in map(os.fspath, paths) if "://" not in path}
    nearest = {}
    for folder in sorted(folders):
        find_note(Path(os.path.realpath(folder)), nearest)
    for path in dict.fromkeys(nearest.values()):
        if path is not None:
            check_note(path, fmt, language, all_key_frames)


def find_note(folder, nearest):
    """Return the path of the nearest note, in a folder or above it, or None.

    nearest  {folder: what was found for it}, so that each folder is looked up once
    """
    if folder not in nearest:
        path = folder / NOTE
        if path.exists():
            nearest[folder] = path
        elif folder.parent == folder:
            nearest[folder] = None
        else:
            nearest[folder] = find_note(folder.parent, nearest)
    return nearest[folder]


def check_note(path, fmt, language, all_key_frames):
    """Raise BadInput if the folder of a note was prepared with less than is asked for."""
    note = read_note(path)
    wanted = {}  # {name of a setting: the value that is asked for, where the folder has less}
    problems = []
    for name, problem in NUMBERS.items():
        value = getattr(fmt, name)
        if value > note[name]:
            wanted[name] = value
            problems.append(problem)
    if language is not None and language != note.get("language"):
        wanted["language"] = language
        problems.append("a prepared file has one audio track")
    needed = {**note, **wanted}  # the settings of a folder that would do
    lacks_key_frames = all_key_frames and note.get("gop", note.get("frames")) != 1
    if lacks_key_frames:
        needed["gop"] = 1
    if wanted:
        asked = " and ".join(flag_of(name, value) for name, value in wanted.items())
        fitting = " and ".join(flag_of(name, note.get(name)) for name in wanted)
        raise BadInput(
            f"{asked}: {path.parent} was prepared with {fitting}, and {'; '.join(problems)}. "
            f"Use {fitting}, or prepare again into another folder: {command_of(needed)}"
        )
    if lacks_key_frames:
        raise BadInput(
            f"{path.parent}: was prepared without --gop 1, so sharpness differs from frame to "
            "frame of a snippet, which tells in which direction a clip is played. "
            f"Prepare again into another folder: {command_of(needed)}"
        )
    if all_key_frames and not divides(fmt.fps, note["fps"]):
        raise BadInput(
            f"--fps {fmt.fps:g}: {path.parent} was prepared with --fps {note['fps']:g}, so frames "
            "would be unevenly apart, which tells how fast a clip is played; "
            f"use --fps {note['fps']:g}"
        )


def flag_of(name, value):
    """Return a flag and its value as they are typed, such as "--short-side 190"."""
    flag = f"--{name.replace('_', '-')}"
    if value is None:
        return f"no {flag}"
    if isinstance(value, str):
        return f"{flag} {shlex.quote(value)}"
    return f"{flag} {value:g}"


def command_of(note):
    """Return the command that prepares with the settings of a note, as it is typed."""
    words = ["python -m media prepare", shlex.quote(note.get("source", "FILMS")), "OTHER_FOLDER"]
    for name in ("frames", *NUMBERS, "language", "gop"):
        value = note.get(name)
        if value is not None and value != getattr(Format, name, None):
            words.append(flag_of(name, value))
    if note.get("require_language"):
        words.append("--require-language")
    return " ".join(words)


def progress_bar(jobs, title):
    """Return a bar in hours of film.

    It counts whole snippets, because integers add up exactly: a sum of hours depends on the
    order in which the files are finished, and could end beyond the total.
    """
    hours_a_snippet = 1.0
    if jobs:
        hours_a_snippet = jobs[0].fmt.seconds / 3600
    return tqdm(
        total=sum(job.snippets for job in jobs),
        unit_scale=hours_a_snippet,
        desc=title,
        bar_format="{desc}: {percentage:.0f}%|{bar}| {n:.2f}/{total:.2f} h "
        "[{elapsed}<{remaining}{postfix}]",
    )


def transcode(jobs, workers, summary, bar):
    """Run the jobs, `workers` at a time, and add what they did to the summary.

    Raises Unwritable, with all jobs stopped.
    """
    summary.files = len(jobs)
    # The longest files come first, so that no core waits for one of them at the end.
    jobs = sorted(jobs, key=lambda job: job.seconds, reverse=True)
    began = time.perf_counter()
    with ThreadPoolExecutor(workers, thread_name_prefix=POOL) as pool, bar:
        try:
            running = {pool.submit(job.run): job for job in jobs}
            for finished in as_completed(running):
                job = running[finished]
                summary.elapsed = time.perf_counter() - began
                try:
                    add_result(summary, job, finished.result())
                except Unwritable:
                    raise
                except BadInput as error:
                    problem = str(error).removeprefix(f"{job.path}: ")
                    summary.skipped.append((job.path, problem))
                bar.update(job.snippets)
                bar.set_postfix_str(f"{summary.speed():.0f} x real time")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop()
            raise


def stop():
    """End the processes of the jobs that have begun, and so the threads that wait for them."""
    # A job that is just beginning has no process yet, so look again.
    while any(thread.name.startswith(POOL) for thread in threading.enumerate()):
        for process in multiprocessing.active_children():
            process.terminate()
        time.sleep(0.05)


def add_result(summary, job, result):
    """Add to the summary what `prepare_file` returned for a job."""
    written, damaged, size, rate = result
    summary.hours += job.seconds / 3600
    summary.written += written
    summary.damaged += damaged
    summary.size += size
    if job.gop == 1 and rate > 0 and not divides(job.fmt.fps, rate):
        summary.uneven[round(rate, 3), job.fmt.fps] += 1
    if damaged:
        tqdm.write(f"{printable(job.path)}: {damaged} damaged snippets skipped, {written} written")
