"""From a media file to tensors.

    media file -> (title n, snippet m) -> worker: video uint8 (3, T, H, W), waveform float (S,)
               -> DataLoader (B, ...)  -> device: VideoFrontEnd (B, 3, T, H, W), AudioFrontEnd (B, 1, P, Q)

T frames at `fps`, cropped to H x W pixels; S samples at `rate`; P mel filters, Q audio frames. All times are in seconds
on the file's own presentation clock, which its video and its sound share.

    python data.py toy datasets/toy             render the toy world: small films, and two labelled sets
    python data.py check FILMS                  titles with length, snippets, codecs, problems; and totals
    python data.py prepare FILMS datasets/movies    transcode a collection to what is read fastest
    python data.py show FILE --at 00:31:00      a picture of one snippet, as the networks get it; --scenes: of all scenes
    python data.py bench datasets/movies        what a snippet costs to read
"""

import argparse
import cProfile
import collections
import contextlib
import copy
import csv
import dataclasses
import fcntl
import hashlib
import json
import math
import os
import pstats
import sys
import tempfile
import time
import wave
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from functools import partial, wraps
from pathlib import Path

import av
import numpy as np
import torch
import torchaudio
from av.stream import Disposition
from av.video.frame import PictureType
from av.video.reformatter import Interpolation, VideoReformatter
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

MEDIA = set(".3gp .asf .avi .divx .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogg .ogm .ogv .ts .vob .webm .wmv".split())
DEMUXERS = "asf,avi,flac,flv,matroska,mov,mp3,mpeg,mpegts,mxf,ogg,wav"  # FFmpeg's that read one file and nothing beside it
TIMEOUT = 30     # s: for a server's answer
DAMAGED = 0.1    # a snippet that has lost more than this share of its sight or its sound counts as damaged
CHUNK = 16       # snippets that are read at a time where a whole film is
CLOCK = 0.001    # s: containers round timestamps to a millisecond, so times closer than this are the same
HELD = []        # the locks of `hold`
MARK = "prepared for pretraining: a group of pictures a snippet"  # a tag of the files that `prepare` writes
LEAD = 0.15      # s: a lossy sound's decoder needs a little of what comes before the cut
RESYNC = 0.02    # s: sound further than this off its timestamp has a gap or an overlap; less is that rounding, added up
av.logging.set_level(av.logging.PANIC)  # what goes wrong is raised, and said once, by us


class BadInput(ValueError):
    """What a user can mend. The message is the one line to print: what is wrong, and what would be right."""


def refuse(message):
    raise BadInput(message)


def setting(usual, help):
    return dataclasses.field(default=usual, metadata={"help": help})


@dataclasses.dataclass(frozen=True)
class Format:
    """What a snippet is made of: the paper's numbers (Section 4.1), kept in the checkpoint as `front_end`."""

    frames: int = setting(16, "T, of a snippet (4.1)")
    fps: float = setting(5.0, "of a snippet, so it lasts 3.2 s (4.1)")
    short_side: int = setting(190, "pixels, after resizing (4.1); 224 in Table 5")
    crop: int = setting(158, "pixels, H = W (4.1); 200 in Table 5")
    rate: int = setting(48000, "of the sound, Hz (4.1)")
    n_fft: int = setting(2048, "samples of an FFT window (4.1)")
    hop: int = setting(512, "samples between audio frames (4.1)")
    mels: int = setting(96, "P, mel filters (4.1)")

    @classmethod
    def add_flags(cls, parser, *names):
        """Flags of these fields, or of all, with the paper's numbers as defaults; `of(args)` makes a Format of them."""
        for field in dataclasses.fields(cls):
            if not names or field.name in names:
                flag = f"--{field.name.replace('_', '-')}"
                parser.add_argument(flag, type=field.type, default=field.default, help=field.metadata["help"])

    @classmethod
    def of(cls, args):
        return cls(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cls) if hasattr(args, field.name)})

    @property
    def seconds(self):
        return self.frames / self.fps

    @property
    def samples(self):
        return round(self.rate * self.seconds)


def rng_of(*key):
    """A generator that depends on nothing but its key, so the number of workers, or a resumption, changes nothing."""
    return np.random.default_rng(key)


# ---------------------------------------------------------------------------------------------------------------------
# Reading: one open media file
# ---------------------------------------------------------------------------------------------------------------------


class Reader:
    """An open media file, and the video and audio stream that are used: the default ones, None where there is none.

    language: the audio track to prefer, as the file tags it ("eng", "deu"). Raises BadInput if FFmpeg cannot open the file.
    """

    def __init__(self, path, language=None):
        self.path = path = os.fspath(path)
        self.process, self.lost, remote = os.getpid(), 0.0, "://" in path
        # A file is never a reason to open something else: no demuxer that follows references, no other protocol.
        only = dict(format_whitelist=DEMUXERS, protocol_whitelist="http,https,httpproxy,tcp,tls" if remote else "file")
        try:
            # A prepared file is known at a glance; at any other FFmpeg looks more closely, which takes 2 to 4 times as long.
            for glance in (dict(probesize="32768"), {}) if path.endswith(".mkv") else ({},):
                self.container = av.open(path if remote else "file:" + path, options=only | glance, metadata_errors="replace",
                                         timeout=TIMEOUT if remote else None)  # fmt: skip
                if glance and self.container.metadata.get("COMMENT") == MARK:
                    break
        except (av.error.FFmpegError, OSError) as error:
            strange = isinstance(error, (av.error.InvalidDataError, av.error.ArgumentError))
            why = "not a media file that can be read" if strange else error.strerror or error
            raise BadInput(f"{path}: {why}") from error
        self.reformatter = VideoReformatter()  # keeps swscale's tables from frame to frame
        self.video, self.audio = self.choose("video"), self.choose("audio", language)
        self.aspect = float(self.video.sample_aspect_ratio or 1) if self.video else 1.0
        for stream in filter(None, (self.video, self.audio)):
            stream.codec_context.thread_count = 1  # the workers are the parallelism; must be set before the codec opens

    def choose(self, kind, language=None):
        usable = [s for s in self.container.streams                            # what FFmpeg can decode; cover art is no film
                  if s.type == kind and s.codec_context and not s.disposition & Disposition.attached_pic]  # fmt: skip
        wanted = lambda s: (language is not None and s.language == language, bool(s.disposition & Disposition.default))
        return max(usable, key=wanted, default=None)

    def close(self):
        self.container.close()

    def span(self, *streams, exact=True):
        """(start, end) in seconds that all of these streams last: by their last packets, since a header may lie or not
        know. `exact=False` believes a header that does know."""
        starts = [start_of(stream) for stream in streams]
        ends = [start + float((s.duration or 0) * s.time_base) for s, start in zip(streams, starts)]
        if exact or not all(stream.duration for stream in streams):
            ends = self.last_packets(streams, max(*ends, (self.container.duration or 0) / av.time_base))
        return max(starts), min(ends)

    def last_packets(self, streams, end):
        """When each stream's last packet ends, in seconds: from a look at the end, and further back if one is not there."""
        for back in (1, 10, 100, 1000, math.inf):
            found = {}
            with contextlib.suppress(av.error.FFmpegError):  # so ends a file that is cut off
                self.seek(end - back if back < math.inf else -1e6, any_frame=True)
                for packet in self.container.demux(streams):
                    if packet.size:
                        found[packet.stream] = max(found.get(packet.stream, 0.0), Consumer(packet.stream, 0).span(packet)[1])
            if len(found) == len(streams) or back > end:
                break
        return [found.get(stream, start_of(stream)) for stream in streams]

    def seek(self, time, **how):
        """To a key frame at this time or before. A time before the start is meant: some demuxers seek by decoding time."""
        try:
            self.container.seek(round(time * av.time_base), **how)
        except av.error.FFmpegError:                         # in AVI only
            self.container.seek(self.container.start_time or 0, **how)

    def read(self, times=(), sound_from=0.0, samples=0, rate=48000, keep=lambda frame: frame):
        """Frames shown at `times` (ascending), and `samples` of mono sound at `rate` from `sound_from` on.

        Returns (a list: `keep` of the av.VideoFrame of each time; float32 array (samples,)). Both come from one seek and
        one pass. A seek lands where the container's index says, which may be after the sound that we want, so we look at
        what came and, if its head is missing, start further back. Past the end of a stream its last frame stays, and
        silence. `lost` is the share of the pictures, or the sound, that did not decode. Raises av.error.FFmpegError.
        """
        for preroll in (LEAD, 2.0, 15.0):
            pictures, sound = Pictures(self.video, times, keep), Sound(self.audio, sound_from, samples, rate)
            wanted = [consumer for consumer in (pictures, sound) if not consumer.done]
            self.seek(min(consumer.start for consumer in wanted) - preroll)
            for packet in self.container.demux([consumer.stream for consumer in wanted]):
                if packet.size or packet.dts is None:      # an empty one with a time is a frame dropped, and not the end
                    (pictures if packet.stream is self.video else sound).take(packet)
                if pictures.done and sound.done:
                    break
            if all(consumer.complete() for consumer in wanted):
                break
        self.lost = max(consumer.lost() for consumer in wanted)
        return pictures.frames, sound.samples

    def resize(self, frame, short_side, multiple=1):
        """av.VideoFrame -> RGB uint8 (H, W, 3), upright, its pixels square, its shorter side `short_side`."""
        width, height = frame.width * self.aspect, frame.height
        scale = short_side / min(width, height) / multiple
        size = round(width * scale) * multiple, round(height * scale) * multiple
        image = self.squeeze(frame, *size)
        return np.rot90(image, round(frame.rotation / 90)) if frame.rotation else image

    def squeeze(self, frame, width, height):
        """av.VideoFrame -> RGB uint8 (height, width, 3)."""
        size = dict(width=width, height=height, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1)
        return self.reformatter.reformat(frame, **size).to_ndarray()


def start_of(stream):
    return float((stream.start_time or 0) * stream.time_base)


class Consumer:
    """What takes the packets of one stream. Times are floats: as fractions they cost more than the decoding."""

    def __init__(self, stream, start):
        self.stream, self.start, self.decoded, self.failed = stream, start, 0, 0           # the last two: packets
        self.tick = float(stream.time_base) if stream else 0.0

    def span(self, packet):
        """When it is due and until when: by its decoding time where it has no other, as in AVI; -inf if it has none."""
        stamp = packet.dts if packet.pts is None else packet.pts
        time = -math.inf if stamp is None else stamp * self.tick
        return time, time + (packet.duration or 0) * self.tick

    def time(self, frame):
        if frame.pts is None:
            return -math.inf if frame.dts is None else frame.dts * self.tick
        return frame.time

    def frames_of(self, packet):
        """What it decodes to; nothing if it is damaged: FFmpeg goes on behind it as well as it can."""
        self.decoded += 1
        try:
            return packet.decode()
        except av.error.FFmpegError:
            self.failed += 1
            return []

    def earliest(self):
        """When what is wanted begins, or the stream, if it begins later."""
        return max(self.start, start_of(self.stream))


class Pictures(Consumer):
    """Takes video packets, decodes from the last key frame that is needed, and keeps the frame shown at each time."""

    def __init__(self, stream, times, keep):
        super().__init__(stream, times[0] if len(times) else 0.0)
        self.times, self.keep, self.frames, self.pending = list(times), keep, [], []
        self.shown = self.kept = self.first = None          # the latest frame; what is kept of it; the first one's time

    @property
    def done(self):
        return len(self.frames) == len(self.times)

    def complete(self):
        return self.done and self.first is not None and self.first <= self.earliest() + CLOCK

    def lost(self):
        return self.failed / max(1, self.decoded)

    def take(self, packet):
        if not packet.size:                                 # the end: what the decoder still holds comes out
            self.decode([*(self.pending or []), packet])
            if self.shown:
                self.keep_until(math.inf)
        elif self.pending is None:
            self.decode([packet])
        else:
            # Until a packet lies past the first time we only collect, and forget what precedes the last key frame:
            # reading a group of pictures that is not wanted costs little, decoding it would double the work.
            time, _ = self.span(packet)
            if packet.is_keyframe and time <= self.start + CLOCK:
                self.pending = []
            self.pending.append(packet)
            if time > self.start + CLOCK:
                packets, self.pending = self.pending, None
                self.decode(packets)

    def decode(self, packets):
        for packet in packets:
            for frame in self.frames_of(packet):
                self.show(frame)
                if self.done:
                    return

    def show(self, frame):
        """A frame is shown until the next one's time; if it starts at the very time wanted there is no need to wait."""
        time = self.time(frame)
        if self.shown is None:                              # nothing came before: it stands in for what is missing
            self.first, self.shown = time, frame
        self.keep_until(time - CLOCK)
        self.shown, self.kept = frame, None
        self.keep_until(time + CLOCK)

    def keep_until(self, time):
        while not self.done and self.times[len(self.frames)] < time:
            self.kept = self.keep(self.shown) if self.kept is None else self.kept
            self.frames.append(self.kept)


class Sound(Consumer):
    """Takes audio packets and lays the decoded samples, mono at `rate`, where their timestamps say."""

    def __init__(self, stream, start, samples, rate):
        super().__init__(stream, start)
        self.rate, self.samples, self.laid = rate, np.zeros(samples, np.float32), 0
        self.position = self.first = None                   # sample index of the next sound; of the first that came
        self.ended = samples == 0
        self.resampler = self.kind = None

    @property
    def done(self):
        return self.ended or (self.position or 0) >= len(self.samples)

    def complete(self):
        return self.first is not None and self.first / self.rate + self.start <= self.earliest() + RESYNC

    def lost(self):
        return 1 - self.laid / len(self.samples)            # also what a container dropped without a word

    def take(self, packet):
        _, end = self.span(packet)
        if not packet.size:                                 # the end: the decoder's rest, then the resampler's
            self.lay([*self.frames_of(packet), None])
            self.ended = True
        elif end > self.start - LEAD / 2:
            self.lay(self.frames_of(packet))

    def lay(self, frames):
        for frame in frames:
            for block in self.to_mono(frame):
                if block.format.name == "s16":
                    samples = np.frombuffer(block.planes[0], np.int16, block.samples) * np.float32(2**-15)
                else:
                    samples = np.frombuffer(block.planes[0], np.float32, block.samples)
                time, count = self.time(block), len(samples)    # without a time, sound goes on where it was
                position = round((time - self.start) * self.rate) if time > -math.inf else self.position or 0
                if self.position is None or abs(position - self.position) > RESYNC * self.rate:
                    self.position = position
                    self.first = position if self.first is None else self.first
                low, high = max(self.position, 0), min(self.position + count, len(self.samples))
                if low < high:
                    self.samples[low:high] = samples[low - self.position : high - self.position]
                    self.laid += high - low
                self.position += count

    def to_mono(self, frame):
        """One frame, or None for the end -> blocks of mono sound at `rate`; what is that already goes straight through."""
        kind = frame and (frame.format.name, frame.layout.name, frame.rate)
        if kind != self.kind:                               # at first; and when a broadcast goes from stereo to 5.1
            rest = self.resampler.resample(None) if self.resampler else []
            straight = kind in (None, ("fltp", "mono", self.rate), ("s16", "mono", self.rate))
            # To 16 bits, since floats are mixed without normalising: 5.1 channels would come out 2.7 times as loud.
            self.kind, self.resampler = kind, None if straight else av.AudioResampler("s16", "mono", self.rate)
            return [*rest, *self.to_mono(frame)]
        return self.resampler.resample(frame) if self.resampler else (frame,) if frame else ()


def crop(image, place, size):
    """RGB (H, W, 3) -> (3, size, size), cut at `place`: (down, right), 0 is the top or the left, 1 the other end."""
    top, left = (min(int(at * (side - size + 1)), side - size) for at, side in zip(place, image.shape))
    return np.ascontiguousarray(image[top : top + size, left : left + size].transpose(2, 0, 1))


def clip(crops):
    """T crops (3, size, size) -> tensor (3, T, size, size)."""
    return torch.from_numpy(np.stack(crops, axis=1))


CENTRE = (0.5, 0.5)


# ---------------------------------------------------------------------------------------------------------------------
# Collections: films and shows, for pretraining
# ---------------------------------------------------------------------------------------------------------------------


class Titles(Dataset):
    """A collection of titles n: a film, or a show, whose files are stitched in order.

    source: a folder, of which every entry is a title (a file is a film, a folder is a show: its files in name order); or
    a list, LIST.txt, of which every line is one: a path, as seen from the list's own folder, or a URL, or several of
    them separated by tabs (a show).

    `names[n]`, `counts[n]` = M_n: how many whole snippets its video and its sound both last. `skipped`: [(path, why)].
    Item (n, m, key) -> video uint8 (3, T, crop, crop), waveform float (S,), n, failures. Snippet m of a file covers
    [start + m * seconds, start + (m + 1) * seconds). The crop is drawn from `key`, a tuple of integers; it is central if
    key is None. A snippet that cannot be read is replaced, see `candidates`; `failures` says which and why, a line each.
    scenes: find those too; `scenes[n]` are their lengths, in snippets and in order. Else `scenes` is None.
    Raises BadInput for a source that is not there or holds no title, and when nothing at all can be read any more.
    """

    TRIES = 4  # to replace a snippet, first from its title, then from any

    def __init__(self, source, fmt, language=None, quiet=True, scenes=False):
        self.fmt, self.language, self.reader = fmt, language, None
        titles = list_titles(os.fspath(source))
        index = index_files([path for _, paths in titles for path in paths], source, language, quiet)
        self.names, self.parts, self.skipped = [], [], []
        for name, paths in titles:
            part = []
            for path in paths:
                start, end, why = index[path][:3]
                count = int((end - start + RESYNC) / fmt.seconds)
                if count > 0:
                    part.append((path, start, count))
                else:
                    self.skipped.append((path, why or f"shorter than a snippet of {fmt.seconds:g} s"))
            if not paths:
                self.skipped.append((name, "no media files in it"))
            if part:
                self.names.append(name)
                self.parts.append(part)
        self.counts = [sum(count for _, _, count in part) for part in self.parts]
        if not self.names:
            path, why = self.skipped[0]
            raise BadInput(f"{source}: none of its {len(self.skipped)} files can be used; {path}: {why}")
        self.scenes = None
        if scenes:
            lengths = index_scenes(self.parts, source, fmt, language, quiet)
            self.scenes = [[length for path, *_ in part for length in lengths[path]] for part in self.parts]

    def subset(self, titles):
        """The same collection with these titles only, renumbered."""
        part = copy.copy(self)
        for name in ("names", "parts", "counts", "scenes"):
            setattr(part, name, getattr(self, name) and [getattr(self, name)[n] for n in titles])
        return part

    def __getstate__(self):
        return {**self.__dict__, "reader": None}  # an open file does not travel to a reading process

    def __len__(self):
        return len(self.names)

    def __getitem__(self, item):
        *_, key = item
        place, failures = CENTRE if key is None else rng_of(*key).random(2), []
        for n, m in self.candidates(*item):
            try:
                crops, waveform = self.read(n, m, place)
                return clip(crops), torch.from_numpy(waveform), n, "\n".join(failures)
            except BadInput as error:
                failures.append(str(error).replace("\n", " "))
        raise BadInput(f"{len(failures)} snippets in a row cannot be read; the last: {failures[-1]}")

    def candidates(self, n, m, key):
        """The snippet; then others of its title, drawn from `key`; then, since a whole file may be lost, of any title."""
        yield n, m
        rng = rng_of(*(key or (n, m)), 5)
        for _ in range(self.TRIES):
            yield n, int(rng.integers(self.counts[n]))
        for n in rng.integers(len(self), size=self.TRIES).tolist():
            yield n, int(rng.integers(self.counts[n]))

    def read(self, n, m, place=CENTRE):
        """Snippet m of title n -> T crops (3, crop, crop), waveform (S,). The file stays open: neighbours share it.

        Raises BadInput, with file and time, if it cannot be read whole."""
        fmt = self.fmt
        for path, start, count in self.parts[n]:
            if m < count:
                break
            m -= count
        start += m * fmt.seconds
        try:
            if self.reader is None or self.reader.path != path or self.reader.process != os.getpid():
                self.close()
                self.reader = Reader(path, self.language)  # of this process: at a fork its place in the file is shared
            reader = self.reader
            return read_snippets(reader, start, 1, fmt,
                                 lambda frame: crop(reader.resize(frame, fmt.short_side), place, fmt.crop))  # fmt: skip
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self.close()                                   # whatever state it is in
            raise error if isinstance(error, BadInput) else BadInput(f"{path}: cannot be decoded at {start:.1f} s ({error})")

    def close(self):
        if self.reader:
            self.reader.close()
        self.reader = None


def read_snippets(reader, start, count, fmt, keep):
    """`count` snippets from `start` on, one behind the other -> `keep` of count * T frames, waveform (count * S,)."""
    times = start + np.arange(count * fmt.frames) / fmt.fps
    images, waveform = reader.read(times, start, count * fmt.samples, fmt.rate, keep)
    # Of many at once, all that is lost may be of one of them.
    if reader.lost * count > DAMAGED or not images or any(image.shape != images[0].shape for image in images):
        raise BadInput(f"{reader.path}: damaged at {start:.1f} s")
    return images, waveform


def read_film(reader, start, count, fmt, keep, chunk=CHUNK):
    """(images, waveform) as `read_snippets` has them, of `chunk` snippets at a time; (None, None) of one that cannot be read."""
    parent = os.getppid()
    for first in range(0, count, chunk):
        if os.getppid() != parent:
            os._exit(1)                                        # our parent was killed: what it began, its next run begins again
        at, many = start + first * fmt.seconds, min(chunk, count - first)
        try:
            yield read_snippets(reader, at, many, fmt, keep)
        except (av.error.FFmpegError, BadInput):
            yield from read_film(reader, at, many, fmt, keep, 1) if many > 1 else [(None, None)]


def list_titles(source):
    """[(name, [path or URL of each of its files])] of a folder or a list."""
    if os.path.isdir(source):
        titles = [(name, media_files(os.path.join(source, name))) for name in sorted(os.listdir(source)) if name[0] != "."]
        titles = [(name, paths) for name, paths in titles if paths]
    elif os.path.isfile(source) and source.endswith(".txt"):
        with open(source, encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = [line for line in file.read().split("\n") if line.strip()]
        titles, folder = [], os.path.dirname(source)
        for line in lines:
            parts = [part if "://" in part else os.path.join(folder, part) for part in line.split("\t") if part]
            titles.append((line, [path for part in parts for path in media_files(part, listed=True)]))
    else:
        raise BadInput(f"{source}: no such folder or LIST.txt; it should hold films (files) and shows (folders of files)")
    if not titles:
        raise BadInput(f"{source}: no media files in it; it should hold films (files) and shows (folders of files)")
    return titles


def media_files(path, listed=False):
    """The files of a title, in name order: the one of a film, those below the folder of a show, through links but not twice."""
    if not os.path.isdir(path):
        return [path] if listed or os.path.splitext(path)[1].lower() in MEDIA else []
    files, seen = [], set()
    for folder, inside, names in os.walk(path, followlinks=True):
        if os.path.realpath(folder) in seen:
            inside.clear()  # a link in a circle, or to where we have been
            continue
        seen.add(os.path.realpath(folder))
        inside[:] = [name for name in inside if name[0] != "."]
        files += [os.path.join(folder, name) for name in names if name[0] != "." and os.path.splitext(name)[1].lower() in MEDIA]
    return sorted(files, key=lambda file: file.split(os.sep))


def probe(path, language=None):
    """[start, end, why it cannot be used or None, video, audio] of a file: seconds, and the streams in words."""
    words = ["", ""]
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            return [0, 0, "not a file", *words]
        with contextlib.closing(Reader(path, language)) as reader:
            video, audio = reader.video, reader.audio
            if video:
                words[0] = f"{video.codec.canonical_name} {video.width}x{video.height} {float(video.average_rate or 0):.5g}/s"
            if audio:
                words[1] = f"{audio.codec.canonical_name} {audio.rate} Hz {audio.layout.name}"
            if not (video and audio):
                return [0, 0, "no sound" if video else "no video", *words]
            return [*reader.span(video, audio), None, *words]
    except BadInput as error:
        return [0, 0, str(error).removeprefix(f"{path}: "), *words]
    except (av.error.FFmpegError, OSError) as error:
        return [0, 0, str(error.strerror or error), *words]


def index_files(paths, source, language=None, quiet=True):
    """{path: probe(path)}, kept if all is well. What is wrong is looked at again, for it may be mended."""
    with ThreadPoolExecutor(32) as pool:  # FFmpeg works outside the interpreter's lock, and much of it is waiting
        return remember([os.path.abspath(source), os.fspath(source), language, 1], paths, partial(probe, language=language),
                        pool, f"index {source}", quiet, keep=lambda found: found[2] is None)  # fmt: skip


def index_scenes(parts, source, fmt, language=None, quiet=True):
    """{path: lengths of its scenes, in snippets}: every file is read through once, on all cores."""
    spans = {path: (start, count) for part in parts for path, start, count in part}

    def work(path):
        try:
            return list(map(len, alone(find_scenes, path, *spans[path], fmt, language)[0]))
        except BadInput as error:
            tqdm.write(f"{shown(path)} counts as one scene: {shown(error)}", file=sys.stderr)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        kind = [fmt.frames, fmt.fps, fmt.rate, fmt.n_fft, fmt.hop, fmt.mels]
        found = remember(["scenes", os.path.abspath(source), os.fspath(source), language, *kind, 1], spans, work,
                         pool, f"scenes {source}", quiet, keep=lambda lengths: lengths is not None)  # fmt: skip
    return {path: found[path] if sum(found[path] or ()) == count else [count] for path, (_, count) in spans.items()}


def remember(key, paths, work, pool, label, quiet, keep=lambda found: True):
    """{path: work(path)}: each is worked out once and kept in the user's cache folder, under `key`.

    There it holds while the file's size and time of change do. Work of hours is written down each minute.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "watching-television"
    cache = folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.json"
    known, stamps, index = {}, {}, {}
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(cache.read_text())
    for path in paths:
        with contextlib.suppress(OSError):
            state = None if "://" in path else os.stat(path)
            stamps[path] = state and [state.st_size, state.st_mtime_ns]
        if path in known and known[path][0] == stamps.get(path, "gone"):
            index[path] = known[path][1]
    new = [path for path in paths if path not in index]

    def write():
        with contextlib.suppress(OSError):  # where no cache can be written, the next start takes longer: no more
            folder.mkdir(parents=True, exist_ok=True)
            good = {path: [stamps[path], found] for path, found in index.items() if path in stamps and keep(found)}
            write_whole(cache, lambda path: path.write_text(json.dumps(good)), os.getpid())

    written = time.monotonic()
    try:
        for path, found in tqdm(zip(new, pool.map(work, new)), label, len(new), disable=quiet or not new, unit="file"):
            index[path] = found
            if time.monotonic() > written + 60:
                write()
                written = time.monotonic()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        if new:
            write()
    return index


def hold(folder):
    """Make a run's folder and keep it to this process, as long as that lives. Raises BadInput if another has it."""
    folder.mkdir(parents=True, exist_ok=True)
    HELD.append(open(folder / ".lock", "w"))
    try:
        fcntl.lockf(HELD[-1], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise BadInput(f"--out {folder}: another run is at work in it; wait for its end, or name another folder") from error
    except OSError:
        pass  # a file system without locks


def write_whole(path, write, mark="tmp"):
    """`write(temporary path)`, then a rename: a reader, or a kill, finds the old file or the new one, whole.

    mark: of the temporary file's name, where two processes may write the same one at a time.
    """
    temporary = path.with_name(f".{path.name}.{mark}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------------
# Scenes: where a film's place and its ambience change
#
#   What stays for a snippet, whatever is acted out and said in front of it, is its place: each pixel's median over the
#   frames, of a picture of 16 x 16 pixels; and its ambience: the level that each mel filter is above for 95 % of the time.
#   A boundary is a peak of the audio novelty of Foote (2000), "Automatic audio segmentation using a measure of audio
#   novelty", here of sight and sound alike: how much more alike the snippets before are to one another, and those
#   after, than the ones before are to those after. The numbers were chosen on the toy world of seed 0.
# ---------------------------------------------------------------------------------------------------------------------

REACH = 8         # snippets on either side of a boundary that are compared, the nearer the more
NOVEL = 0.35      # least novelty of a boundary; 0 where nothing changes, 2 where the two sides are opposites
APART = 3         # snippets that a scene lasts at the least


def find_scenes(path, start, count, fmt, language=None):
    """A file whose `count` snippets begin at `start` s -> its scenes, ranges of snippets; novelty (M,); M pictures (16, 16, 3).

    What cannot be read is taken for what came before. Raises BadInput where nothing can.
    """
    torch.set_num_threads(1)
    front, pictures, sounds = AudioFrontEnd(fmt), [], []
    with contextlib.closing(Reader(path, language)) as reader:
        for images, waveform in read_film(reader, start, count, fmt, lambda image: reader.squeeze(image, 16, 16)):
            if images is None:
                pictures, sounds = pictures + pictures[-1:], sounds + sounds[-1:]
            else:
                pictures += [np.median(images[i : i + fmt.frames], axis=0) for i in range(0, len(images), fmt.frames)]
                log_mel = front.log_mel(torch.from_numpy(waveform.reshape(-1, fmt.samples)))                  # (c, P, Q)
                sounds += list(log_mel.quantile(0.05, dim=2).numpy())
    if not pictures:
        raise BadInput(f"{path}: no snippet in it can be read")
    missing = count - len(pictures)                            # from the start on: they go with the first that can be read
    pictures, sounds = pictures[:1] * missing + pictures, sounds[:1] * missing + sounds
    novelty = measure_novelty(np.stack(pictures).reshape(count, -1), np.stack(sounds))
    edges = [0, *pick_peaks(novelty), count]
    return list(map(range, edges, edges[1:])), novelty, pictures


def measure_novelty(*features):
    """(M, d) of each kind -> (M,): what begins with snippet m, by Foote's checkerboard kernel with a Gaussian taper."""
    features = [(x - x.mean(0)) / (x.std(0) + 1e-3 * x.std() + 1e-9) for x in features]
    features = [x / (np.linalg.norm(x, axis=1, keepdims=True) + 1e-9) for x in features]
    M = len(features[0])
    novelty = np.zeros(M)
    for m in range(1, M):
        near = np.arange(max(0, m - REACH), min(M, m + REACH))
        offset = near + 0.5 - m
        weight = np.exp(-2 * (offset / REACH) ** 2)
        weight, same = np.outer(weight, weight), np.equal.outer(offset < 0, offset < 0)
        alike = sum(x[near] @ x[near].T for x in features) / len(features)                       # cosines, (2 REACH, 2 REACH)
        novelty[m] = np.average(alike, weights=weight * same) - np.average(alike, weights=weight * ~same)
    return novelty


def pick_peaks(novelty):
    """Snippets with which a scene begins, but for the first: peaks of NOVEL or more, APART or more apart."""
    peaks = []
    for m in range(APART, len(novelty) - APART + 1):
        if novelty[m] >= max(NOVEL, novelty[m - APART + 1 : m + APART].max()) and m - (peaks or [0])[-1] >= APART:
            peaks.append(m)
    return peaks


# ---------------------------------------------------------------------------------------------------------------------
# Labelled sets, for fine-tuning: each in the layout in which its authors publish it
# ---------------------------------------------------------------------------------------------------------------------

TREES = {
    "ucf101": """
  UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi ...    a folder for each class
  ucfTrainTestlist/classInd.txt                              "1 ApplyEyeMakeup"
  ucfTrainTestlist/trainlist01.txt ... testlist03.txt        "ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1" """,
    "hmdb51": """
  hmdb51_org/brush_hair/*.avi ...                            a folder for each class, unpacked
  testTrainMulti_7030_splits/brush_hair_test_split1.txt ...  "NAME.avi 1" (1 train, 2 test, 0 neither)""",
    "esc50": """
  audio/1-100032-A-0.wav ...
  meta/esc50.csv                                             columns filename, fold, target, category""",
}


def published(read):
    """What a reader of published lists may meet ends in BadInput with the tree that is expected."""

    @wraps(read)
    def checked(root, split, train):
        try:
            return read(Path(root), split, train)
        except (OSError, IndexError, KeyError, ValueError) as error:
            strange = f"{root}: its lists are not as published ({error!r})"
            why = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else strange
            raise BadInput(f"{why}. {root} should hold:{TREES[read.__name__]}") from error

    return checked


def read_lines(path):
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


@published
def ucf101(root, split, train):
    """[(path, label)], class names of UCF101, by the official list of split 1, 2 or 3."""
    names = [line.split()[1] for line in read_lines(root / "ucfTrainTestlist/classInd.txt")]
    lines = read_lines(root / f"ucfTrainTestlist/{'train' if train else 'test'}list{split:02d}.txt")
    files = [line.split()[0] for line in lines]
    return [(root / "UCF-101" / file, names.index(file.split("/")[0])) for file in files], names


@published
def hmdb51(root, split, train):
    """[(path, label)], class names of HMDB51: 70 clips a class to train on and 30 to test, by split 1, 2 or 3."""
    folder, ending = root / "testTrainMulti_7030_splits", f"_test_split{split}.txt"
    names = sorted(path.name.removesuffix(ending) for path in folder.glob("*" + ending)) or ["brush_hair"]
    rows = [(name, label, *line.split()) for label, name in enumerate(names) for line in read_lines(folder / (name + ending))]
    return [(root / "hmdb51_org" / name / file, label) for name, label, file, part in rows if part == "21"[train]], names


@published
def esc50(root, split, train):
    """[(path, label)], class names of ESC-50: fold `split` of five is for testing, the others for training."""
    rows = list(csv.DictReader(read_lines(root / "meta/esc50.csv")))
    names = dict(sorted((int(row["target"]), row["category"]) for row in rows))
    rows = [row for row in rows if (int(row["fold"]) != split) == train]
    return [(root / "audio" / row["filename"], int(row["target"])) for row in rows], list(names.values())


class Labeled(Dataset):
    """What the labelled sets share: files, labels, and a clip drawn in training against some taken in testing (4.1).

    Item (i, key): a clip drawn from `key` -> (tensor, label). Item (i, None): all test views -> ((V, ...), label).
    clips: of a test file, evenly spaced from its first to its last.
    Raises BadInput, with the layout expected, for a file that the lists name and the folder lacks.
    """

    def __init__(self, items, fmt, clips=10):
        self.items, self.fmt, self.clips = items, fmt, clips
        for path, _ in items:
            if not os.path.exists(path):
                raise BadInput(f"{path}: not found, though the set's lists name it")

    def __len__(self):
        return len(self.items)

    def __getitem__(self, item):
        i, key = item
        path, label = self.items[i]
        with contextlib.closing(Reader(path)) as reader:
            if getattr(reader, self.kind) is None:
                raise BadInput(f"{path}: no {self.kind} in it")
            try:
                return self.read(reader, key), label
            except av.error.FFmpegError as error:
                raise BadInput(f"{path}: cannot be decoded ({error.strerror})") from error

    def starts(self, start, end, key):
        """Where clips begin: one at random, or evenly spaced. Files shorter than a clip begin at their start."""
        slack = max(0.0, end - start - self.fmt.seconds)
        if key is None:
            return start + slack * np.linspace(0, 1, self.clips)
        return start + slack * rng_of(*key, 0).random(1)


class LabeledVideos(Labeled):
    """UCF101 or HMDB51: uint8 (3, T, crop, crop) in training, (3 clips, 3, T, crop, crop) in testing.

    Training: scale jitter (the shorter side uniform in `scale`, a pair of pixels) and a random crop. Testing: `clips` x
    3 crops (left, centre, right; of an upright video: top, centre, bottom) at the shorter side of `fmt`.
    A video shorter than a clip is shown again from its start.
    """

    kind = "video"

    def __init__(self, items, fmt, clips=10, scale=(181, 226)):
        super().__init__(items, fmt, clips)
        self.scale = scale

    def read(self, reader, key):
        """In one pass over the file; a frame that clips share is resized once."""
        start, end = reader.span(reader.video, exact=False)
        times = self.starts(start, end, key)[:, None] + np.arange(self.fmt.frames) / self.fmt.fps      # (clips, T)
        times = start + (times - start) % max(end - start, 1 / self.fmt.fps)
        wanted, where = np.unique(times, return_inverse=True)
        low, high = self.scale
        short_side = self.fmt.short_side if key is None else int(rng_of(*key, 1).integers(low, high + 1))
        images, _ = reader.read(wanted, keep=lambda frame: reader.resize(frame, short_side))
        if not images:
            raise BadInput(f"{reader.path}: no frame in it can be decoded")
        clips = [[images[j] for j in row] for row in where.reshape(times.shape)]
        size, (height, width, _) = self.fmt.crop, images[0].shape
        if key is not None:
            place = rng_of(*key, 2).random(2)
            return clip([crop(image, place, size) for image in clips[0]])
        places = [(0.5, x) if width >= height else (x, 0.5) for x in (0, 0.5, 1)]
        return torch.stack([clip([crop(image, place, size) for image in images]) for images in clips for place in places])


class ESC50(Labeled):
    """ESC-50: waveform float (S,) in training, (clips, S) in testing; clips of `fmt.seconds`, silence past the end."""

    kind = "audio"

    def read(self, reader, key):
        rate, (start, end) = self.fmt.rate, reader.span(reader.audio, exact=False)
        _, whole = reader.read((), start, max(round((end - start) * rate), self.fmt.samples), rate)
        clips = [whole[(begin := round(t * rate)) : begin + self.fmt.samples] for t in self.starts(0, end - start, key)]
        return torch.from_numpy(clips[0] if key is not None else np.stack(clips))


# ---------------------------------------------------------------------------------------------------------------------
# Front-ends: on the device, a batch at a time
# ---------------------------------------------------------------------------------------------------------------------


class VideoFrontEnd(nn.Module):
    """uint8 (B, 3, T, H, W) -> normalised float. With a `key`, in training: jitter and flip, one draw a sample.

    jitter: sigma of Section 4.2, "Color jitter": factors of brightness, contrast and saturation, in this order (our
    choice), from U[max(0, 1 - sigma), 1 + sigma].
    """

    # Those of Kinetics-400 that torchvision uses, so that weights go both ways.
    MEAN, STD = (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)

    def __init__(self, jitter=0.0, flip=False, mean=MEAN, std=STD):
        super().__init__()
        self.jitter, self.flip = jitter, flip
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1, 1), persistent=False)

    def forward(self, video, key=None):
        x = video.float() / 255
        if key is not None and (self.jitter or self.flip):
            rng = rng_of(*key, 3)
            if self.jitter:
                factors = rng.uniform(max(0, 1 - self.jitter), 1 + self.jitter, (3, len(x), 1, 1, 1, 1))
                x = self.color_jitter(x, *torch.from_numpy(factors).to(x))
            if self.flip:
                flipped = torch.from_numpy(rng.random(len(x)) < 0.5).to(x.device)
                x = torch.where(flipped[:, None, None, None, None], x.flip(-1), x)
        return (x - self.mean) / self.std                                    # (B, 3, T, H, W)

    def color_jitter(self, x, brightness, contrast, saturation):
        x = (x * brightness).clamp(0, 1)
        mean_gray = gray(x).mean(dim=(2, 3, 4), keepdim=True)                # of the clip, not of each frame: no flicker
        x = (mean_gray + contrast * (x - mean_gray)).clamp(0, 1)
        return (gray(x) + saturation * (x - gray(x))).clamp(0, 1)


def gray(x):
    """Luma (ITU-R 601) of RGB (B, 3, ...) -> (B, 1, ...)."""
    r, g, b = x.unbind(1)
    return (0.299 * r + 0.587 * g + 0.114 * b).unsqueeze(1)


class AudioFrontEnd(nn.Module):
    """Waveforms (B, S) -> standardised log-mel (B, 1, P, Q). With a `key`, in training: bands drop out.

    log(mel + 1e-6), less `mean`, over `std`: constants of the training sound (`measure`), kept in the checkpoint.
    drop: the widest band, as a share of its axis: 0.25 in pretraining, from one axis by coin flip; 0.5 on ESC-50, from
    `both` (Section 4.1). A band's width is U(0, drop), and it is filled with the mean.
    """

    def __init__(self, fmt, drop=0.25, both=False, mean=0.0, std=1.0):
        super().__init__()
        self.drop, self.both, self.mean, self.std = drop, both, mean, std
        self.mel = torchaudio.transforms.MelSpectrogram(fmt.rate, fmt.n_fft, hop_length=fmt.hop, n_mels=fmt.mels)

    @torch.no_grad()
    def forward(self, waveform, key=None):
        with torch.autocast(waveform.device.type, enabled=False):            # bf16 would round the filters
            x = ((self.log_mel(waveform) - self.mean) / self.std).unsqueeze(1)  # (B, 1, P, Q)
        if key is not None:
            rng = rng_of(*key, 4)
            mels = np.full(len(x), True) if self.both else rng.random(len(x)) < 0.5
            x = x.masked_fill(self.band(rng, len(x), x.shape[2], mels).to(x.device)[:, None, :, None], 0)
            frames = mels if self.both else ~mels
            x = x.masked_fill(self.band(rng, len(x), x.shape[3], frames).to(x.device)[:, None, None, :], 0)
        return x

    def log_mel(self, waveform):
        return (self.mel(waveform) + 1e-6).log()                             # (B, P, Q)

    def band(self, rng, batch, size, chosen):
        """bool (batch, size): for each chosen sample a band of width U(0, drop) * size, placed uniformly."""
        width = rng.uniform(0, self.drop, (batch, 1)) * size * chosen[:, None]
        start = rng.random((batch, 1)) * (size - width)
        place = np.arange(size) + 0.5
        return torch.from_numpy((place >= start) & (place < start + width))

    @torch.no_grad()
    def measure(self, waveforms):
        """Sets mean and std to those of the log-mel of these waveforms (B, S)."""
        x = self.log_mel(waveforms)
        self.mean, self.std = x.mean().item(), max(x.std().item(), 1e-3)  # silence has no spread


def front_end_state(fmt, video, audio):
    """Everything that another program needs to feed the networks: plain values, for the checkpoint."""
    pixels = dict(video_mean=video.mean.flatten().tolist(), video_std=video.std.flatten().tolist())
    return dataclasses.asdict(fmt) | pixels | dict(log_mel_mean=audio.mean, log_mel_std=audio.std)


# ---------------------------------------------------------------------------------------------------------------------
# Preparing a collection, and looking at one
# ---------------------------------------------------------------------------------------------------------------------


def write_media(path, pieces, fmt, picture, sound):
    """[(images uint8 (F, H, W, 3), sound (S,), clipped at 1)], one behind the other -> a file, the same bytes each time.

    picture, sound: (codec, its options).

    A group of pictures is as long as a snippet and begins LEAD earlier, so that one seek to it brings the sound's head as
    well, which lies in the file just before; no B-frames.
    """
    (codec, options), exact = picture, dict(fflags="+bitexact")  # no versions, no dates
    options = {"g": str(fmt.frames), "bf": "0", "sc_threshold": "1000000000", "threads": "1", "flags": "+bitexact"} | options
    shown, heard, lead = 0, 0, math.ceil(LEAD * fmt.fps)
    with av.open(str(path), "w", format="mp4" if sound[0] == "flac" else "matroska", options=exact) as out:
        video = out.add_stream(codec, rate=Fraction(fmt.fps).limit_denominator(1001), options=options)
        audio = out.add_stream(sound[0], rate=fmt.rate, options={"flags": "+bitexact"} | sound[1], layout="mono")
        video.pix_fmt, out.metadata["COMMENT"] = "yuv420p", MARK
        snippets = ((images[m * fmt.frames : (m + 1) * fmt.frames], waveform[m * fmt.samples : (m + 1) * fmt.samples])
                    for images, waveform in pieces for m in range(len(images) // fmt.frames))  # fmt: skip
        for images, waveform in snippets:                      # so that sight and sound lie side by side in the file
            if not shown:
                video.height, video.width = images[0].shape[:2]
            for image in images:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
                frame.pts, frame.time_base = shown, 1 / video.codec_context.framerate
                if (shown + lead) % fmt.frames == 0:
                    frame.pict_type = PictureType.I
                out.mux(video.encode(frame))
                shown += 1
            block = av.AudioFrame.from_ndarray((32767 * waveform.clip(-1, 1)).round().astype(np.int16)[None], format="s16", layout="mono")
            block.sample_rate, block.pts, block.time_base = fmt.rate, heard, Fraction(1, fmt.rate)
            out.mux(audio.encode(block))
            heard += len(waveform)
        out.mux(video.encode())
        out.mux(audio.encode())


# Chosen by measurement, on 64 s of filmed footage and animation and 3 min of speech, music and noises, 338 x 190 pixels.
#   Sound of a snippet in KB, ms to decode, rms error of the log-mel in its standard deviations: AC-3 38, 3.1, 0.17; AAC 39,
#   3.8, 0.20; MP3 38, 3.6, 0.25; Opus 38, 7.8, 0.17; MP2 51, 9.6, 0.46; FLAC 139, 2.9, 0.05, too large beside the video.
#   Its video in KB, ms, PSNR: MPEG-4 q 3 81, 2.0, 41.6; q 4 59, 1.8, 40.0; H.264 (veryfast, fastdecode) crf 23 69, 3.3, 42.4;
#   crf 26 47, 2.8, 40.2; MPEG-2 q 3 100, 2.0, 42.4. H.264 without fastdecode takes twice as long.
PREPARED = dict(picture=("mpeg4", dict(qmin="3", qmax="3")), sound=("ac3", dict(b="96k")))


def prepare_file(path, destination, span, fmt, language):
    """Transcode one file, whole or not at all. -> (snippets kept, left out as damaged, bytes). Raises BadInput."""
    count, lost, shape = int((span[1] - span[0] + RESYNC) / fmt.seconds), 0, None

    def pieces():
        nonlocal lost
        with contextlib.closing(Reader(path, language)) as reader:
            for images, waveform in read_film(reader, span[0], count, fmt, partial(picture, reader)):
                if images is None:
                    lost += 1
                else:
                    yield images, waveform
        if lost == count:
            raise BadInput(f"{path}: no snippet in it can be read")

    def picture(reader, frame):
        """In the shape of the file's first: where a broadcast changes from 16:9 to 4:3, the middle of what covers it."""
        nonlocal shape
        image = reader.resize(frame, fmt.short_side, multiple=2)                 # yuv420p: a colour for 2 x 2 pixels
        shape = shape or image.shape
        if image.shape != shape:
            cover = max(side / short for side, short in zip(shape, image.shape))
            image = reader.resize(frame, math.ceil(cover * fmt.short_side / 2 + 1) * 2, multiple=2)
        top, left = ((side - wanted) // 2 for side, wanted in zip(image.shape, shape[:2]))
        return image[top : top + shape[0], left : left + shape[1]]

    destination.parent.mkdir(parents=True, exist_ok=True)
    for name in os.listdir(destination.parent):
        if name.startswith(f".{destination.name}."):           # of a run that was killed
            os.unlink(destination.parent / name)
    try:
        write_whole(destination, lambda temporary: write_media(temporary, pieces(), fmt, **PREPARED), os.getpid())
    except (av.error.FFmpegError, OSError) as error:
        raise BadInput(f"{path}: {error.strerror}") from error
    return count - lost, lost, destination.stat().st_size


def destinations(titles, source, target):
    """{path: where its prepared file goes}: the same titles in the same order. Those of a list are numbered for it."""
    where = {}
    for n, (line, paths) in enumerate(titles):
        show = os.path.basename(line.split("\t")[0].rstrip("/"))
        for i, path in enumerate(paths):
            name = os.path.basename(path)
            name = f"{n:04d} {name}" if len(paths) == 1 else f"{n:04d} {show}/{i:03d} {name}"
            if path in where:
                raise BadInput(f"{path}: twice in {source}; a file can be of one title only")
            where[path] = Path(target) / ((os.path.relpath(path, source) if os.path.isdir(source) else name) + ".mkv")
    return where


def alone(work, path, *args):
    """work(path, ...) in a process of its own: a decoder that crashes takes one file with it, and nothing else."""
    try:
        with ProcessPoolExecutor(1) as process:
            return process.submit(work, path, *args).result()
    except BrokenProcessPool as error:
        raise BadInput(f"{path}: the process that read it died") from error


def prepare(source, target, fmt, language=None, workers=None, shard=(1, 1)):
    """Transcode a collection (a folder, a list) to the folder `target`, a title of the same name for each, for fast reading.

    What a former call finished is not done again; a file that has changed since is. shard = (i, n): every n-th file, from
    the i-th on. Raises BadInput for a target that was prepared with other settings, or lies in the source.
    """
    target = Path(target)
    titles = list_titles(os.fspath(source))
    if os.path.isdir(source) and target.resolve().is_relative_to(Path(source).resolve()):
        raise BadInput(f"{target}: lies in {source}, where it would be a title; name a folder elsewhere")
    settings = {name: getattr(fmt, name) for name in ("frames", "fps", "short_side", "rate")} | {"language": language}
    note = target / ".prepared.json"
    if note.exists() and json.loads(note.read_text()) != settings:
        raise BadInput(f"{target}: was prepared with {note.read_text()} and not {json.dumps(settings)}; name another folder")
    where = destinations(titles, source, target)
    index = index_files(list(where), source, language, quiet=False)
    target.mkdir(parents=True, exist_ok=True)
    write_whole(note, lambda path: path.write_text(json.dumps(settings)), os.getpid())

    jobs, skipped, before = [], [(line, "no media files in it") for line, paths in titles if not paths], 0
    for path in list(where)[shard[0] - 1 :: shard[1]]:
        start, end, why = index[path][:3]
        if why or end - start + RESYNC < fmt.seconds:
            skipped.append((path, why or f"shorter than a snippet of {fmt.seconds:g} s"))
        elif where[path].exists() and ("://" in path or os.path.getmtime(path) <= where[path].stat().st_mtime):
            before += 1
        else:
            jobs.append((path, where[path], (start, end), fmt, language))
    jobs.sort(key=lambda job: job[2][0] - job[2][1])           # the longest first: no core waits for it at the end
    began = time.perf_counter()
    hours, kept, lost, size = transcode(jobs, workers or os.cpu_count(), f"prepare {target}", skipped)
    elapsed = time.perf_counter() - began
    for path, why in skipped:
        print(f"skipped {shown(path)}: {why}")
    print(f"{len(titles)} titles: {len(jobs)} files, and {before} done before; {len(skipped)} skipped; {lost} damaged snippets "
          "left out")  # fmt: skip
    if kept:
        print(f"{hours:.2f} h of film in {elapsed:.0f} s: {3600 * hours / elapsed:.0f} x real time; "
              f"{kept} snippets, {size / 1e6:.0f} MB, {size / kept / 1e3:.0f} KB a snippet")  # fmt: skip


def transcode(jobs, workers, title, skipped):
    """-> hours of film, snippets kept, snippets lost, bytes; adds to `skipped` what cannot be done, and why."""
    hours = kept = lost = size = 0
    bar = tqdm(total=sum(end - start for _, _, (start, end), *_ in jobs) / 3600, desc=title,
               bar_format="{desc}: {percentage:.0f}%|{bar}| {n:.2f}/{total:.2f} h [{elapsed}<{remaining}{postfix}]")  # fmt: skip
    with ThreadPoolExecutor(workers) as pool, bar:
        running = {pool.submit(alone, prepare_file, *job): job for job in jobs}
        try:
            for done in as_completed(running):
                path, _, (start, end), *_ = running[done]
                try:
                    good, damaged, written = done.result()
                    hours, kept, lost, size = hours + (end - start) / 3600, kept + good, lost + damaged, size + written
                    if damaged:
                        tqdm.write(f"{shown(path)}: {damaged} damaged snippets left out, {good} kept")
                except BadInput as error:
                    skipped.append((path, str(error).removeprefix(f"{path}: ")))
                bar.update((end - start) / 3600)
                bar.set_postfix_str(f"{3600 * hours / bar.format_dict['elapsed']:.0f} x real time")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return hours, kept, lost, size


def shown(text):
    """A path, or what is said of it, as it can be printed: a file's name need not be text."""
    return str(text).encode(errors="backslashreplace").decode()


def check(source, fmt, language=None, batch_size=512, scenes=False):
    """Print a table of titles, and totals; of the scenes too, and where a toy world's truth.csv is there, how many are right."""
    titles = Titles(source, fmt, language, quiet=False, scenes=scenes)
    index = index_files([path for part in titles.parts for path, *_ in part], source, language)
    print(f"{'hours':>7} {'M_n':>6} {'files':>5}  {'video':<28} {'audio':<28} title")
    for name, part, M in zip(titles.names, titles.parts, titles.counts):
        kinds = [", ".join(dict.fromkeys(index[path][i] for path, _, _ in part)) for i in (3, 4)]
        length = sum(index[path][1] - index[path][0] for path, _, _ in part) / 3600
        print(f"{length:7.2f} {M:6} {len(part):5}  {kinds[0]:<28} {kinds[1]:<28} {shown(name)}")
    for path, why in titles.skipped:
        print(f"skipped {shown(path)}: {why}")
    total = sum(titles.counts)
    print(f"{len(titles)} titles, {total * fmt.seconds / 3600:.1f} h, {total} snippets of {fmt.seconds:g} s, "
          f"{total // batch_size} steps an epoch of batches of {batch_size}; {len(titles.skipped)} files skipped")  # fmt: skip
    if not scenes:
        return
    print(f"{sum(map(len, titles.scenes))} scenes of {total / sum(map(len, titles.scenes)):.1f} snippets on average")
    found = {(n, int(m)) for n, lengths in enumerate(titles.scenes) for m in np.cumsum(lengths)[:-1]}
    if (truth := Path(source).parent / "truth.csv").exists():
        with open(truth) as file:
            rows = [(int(row["title"]), int(row["snippet"]), row["scene"]) for row in csv.DictReader(file)]
        if list(collections.Counter(n for n, *_ in rows).values()) != titles.counts:
            return print(f"{truth}: of other snippets, not compared; the toy world's are of --frames {TOY_FRAMES} --fps {TOY_FPS}")
        true = {b[:2] for a, b in zip(rows, rows[1:]) if a[0] == b[0] and a[2] != b[2]}
        right = len(found & true)
        print(f"boundaries: {len(found)} found of {len(true)}, {right} of them right: precision {right / max(1, len(found)):.3f}, "
              f"recall {right / max(1, len(true)):.3f}")  # fmt: skip


def show(path, at, fmt, out, language=None):
    """A picture of the snippet at a time, as the networks get it: T frames above the log-mel, on one time axis."""
    from matplotlib.figure import Figure

    with contextlib.closing(Reader(path, language)) as reader:
        for kind in ("video", "audio"):
            if getattr(reader, kind) is None:
                raise BadInput(f"{path}: no {kind} in it")
        start, end = reader.span(reader.video, reader.audio)
        if not start <= start + at <= end - fmt.seconds + RESYNC:
            raise BadInput(f"--at {at:g} s: must be from 0 to {max(end - start - fmt.seconds, 0):.1f} s, for a whole snippet")
        middle = lambda frame: crop(reader.resize(frame, fmt.short_side), CENTRE, fmt.crop)
        crops, waveform = read_snippets(reader, start + at, 1, fmt, middle)
    mel = AudioFrontEnd(fmt).log_mel(torch.from_numpy(waveform)[None])[0]                                 # (P, Q)
    figure = Figure(figsize=(fmt.frames, 4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    above.imshow(np.concatenate(crops, axis=2).transpose(1, 2, 0), extent=(at, at + fmt.seconds, 0, 1), aspect="auto")
    above.set(yticks=[], title=f"{shown(os.path.basename(path))}: {fmt.frames} frames of {fmt.crop} x {fmt.crop} pixels")
    below.imshow(mel.numpy(), extent=(at, at + fmt.seconds, 0, fmt.mels), origin="lower", aspect="auto", cmap="magma")
    below.set(xlabel="s", ylabel="mel filter")
    figure.savefig(out, dpi=80)


def show_scenes(path, fmt, out, language=None):
    """A picture of the scenes of a file: the novelty, then a row a scene: what stays in its snippets, up to 24 of them."""
    from matplotlib.figure import Figure

    start, end, why, *_ = probe(path, language)
    count = int((end - start + RESYNC) / fmt.seconds)
    if why or not count:
        raise BadInput(f"{path}: {why or f'shorter than a snippet of {fmt.seconds:g} s'}")
    scenes, novelty, pictures = alone(find_scenes, path, start, count, fmt, language)
    height, width, _ = pictures[0].shape
    sheet = np.full((len(scenes) * (height + 1), 24 * (width + 1), 3), 255, np.uint8)
    for row, scene in enumerate(scenes):
        for column, m in enumerate(scene[:: math.ceil(len(scene) / 24)]):
            y, x = row * (height + 1), column * (width + 1)
            sheet[y : y + height, x : x + width] = pictures[m]
    size = (14, 2.5 + 14 * len(sheet) / sheet.shape[1])
    figure = Figure(figsize=size, layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(2.5, size[1] - 2.5))
    above.plot(np.arange(count) * fmt.seconds / 60, novelty, lw=0.8)
    above.vlines([scene[0] * fmt.seconds / 60 for scene in scenes[1:]], 0, novelty.max(initial=NOVEL), color="red", lw=0.8)
    above.axhline(NOVEL, ls=":", color="gray")
    above.set(title=f"{shown(os.path.basename(path))}: {len(scenes)} scenes", xlabel="minutes", ylabel="novelty")
    below.imshow(sheet)
    clock = [f"{(s := round(scene[0] * fmt.seconds)) // 3600}:{s // 60 % 60:02}:{s % 60:02}" for scene in scenes]
    below.set_yticks(np.arange(len(scenes)) * (height + 1) + height / 2, clock)
    below.set(xticks=[], ylabel="scenes, from")
    figure.savefig(out, dpi=80)


def bench(source, fmt, snippets=400, workers=2, language=None):
    """Print what a snippet costs to read: alone, opened cold, part by part; through a DataLoader; memory; the GPUs it feeds."""
    torch.set_num_threads(1)
    titles = Titles(source, fmt, language, quiet=False)
    rng, whole = np.random.default_rng(0), []

    def draw(k):
        """Random titles, k snippets of each."""
        drawn = rng.integers(len(titles), size=max(snippets, 32) // k).tolist()
        return [(n, int(rng.integers(titles.counts[n])), (0, 0, i, j)) for i, n in enumerate(drawn) for j in range(k)]

    items = draw(1)
    titles[items[0]]                                           # whatever is set up once
    for item in items:
        titles.close()
        tick = time.perf_counter()
        titles[item]
        whole.append(1000 * (time.perf_counter() - tick))
    with cProfile.Profile() as profile:                        # once more, for the parts: a profile costs a little itself
        for item in items:
            titles.close()
            titles[item]
    spent = pstats.Stats(profile).stats                        # {(file, line, name): (_, _, _, seconds with all it calls, _)}
    ms = [1000 / len(items) * spent[code.co_filename, code.co_firstlineno, code.co_name][3] for code in (
        work.__code__ for work in (Reader.__init__, Reader.seek, Reader.resize, Pictures.take, Sound.to_mono, Sound.take,
                                   Titles.__getitem__))]  # fmt: skip
    opened, seek, resize, pictures, resample, sound, total = ms
    part = {"open": opened, "seek": seek, "resize": resize, "decode video": pictures - resize, "resample": resample,
            "decode sound": sound - resample, "the rest": total - opened - seek - pictures - sound}  # fmt: skip
    print(f"a snippet, its file opened for it, on one core: median {np.median(whole):.1f} ms, the fastest {np.min(whole):.1f}; "
          f"profiled {total:.1f} = " + " + ".join(f"{name} {ms:.1f}" for name, ms in part.items()))  # fmt: skip
    for k in (1, 16):
        loader = iter(DataLoader(titles, 16, sampler=draw(k), num_workers=workers))
        next(loader)                                           # the processes have started
        tick = time.perf_counter()
        rate = sum(len(n) for _, _, n, _ in loader) / (time.perf_counter() - tick)
        print(f"{workers} workers, {k} of a title at a time: {rate:.0f} snippets/s, as many as {rate / 59:.1f} GPUs take at the "
              "paper's 59 each")  # fmt: skip
    print(f"memory {resident():.0f} MB", end="", flush=True)
    for item in items:
        titles[item]
    print(f", {resident():.0f} MB after {len(items)} snippets more")


def resident():
    """MB of memory that this process has had at the most."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


# ---------------------------------------------------------------------------------------------------------------------
# Toy world: films made by a law, so that the paper's claim can be seen on a laptop
#
#   title    a hidden factor sets the colour grade *and* the key of the music; a lead, whose voice follows its hue
#   scene    a place: its texture *and* its ambience; 4-20 snippets, three actions; music in a share of the scenes
#   shot     2-5 snippets that carry one action on: same object, tempo, running phase
#   action   ten, each a motion *and* its sound, in step: what the downstream sets ask for
#
# Grade and key, hue and voice are tied by one law for all titles, so "which film is this" solves k = 1, also on films
# never seen, and says nothing about actions. Inside a film only the action, its tempo and its phase are left.
# ---------------------------------------------------------------------------------------------------------------------

ACTIONS = ("Bounce", "Swing", "Spin", "Pulse", "Flash", "Rise", "Fall", "Shake", "Approach", "Collide")
TOY_FPS, TOY_SIZE, TOY_RATE, TOY_FRAMES = 5, 40, 16000, 8      # frames/s, pixels, samples/s, frames a snippet (1.6 s)
TOY_SAMPLES = TOY_FRAMES * TOY_RATE // TOY_FPS                 # samples a snippet
LOOP = np.arange(3.2 * TOY_RATE, dtype=np.float32) / TOY_RATE  # (51200,) seconds: sounds that go on are loops of 3.2 s


def action_motion(action, phase, tilt):
    """Phase (F,) in cycles -> x, y (in reaches, y down), size (factor), turn (cycles), light, each (F,)."""
    u, swell = phase % 1, np.sin(2 * np.pi * phase)            # u: 0 at the event, near 1 just before the next
    pose = {
        "Bounce": dict(y=1 - 8 * u * (1 - u)),                 # a parabola, on the ground at u = 0
        "Swing": dict(x=swell, y=0.4 - 0.8 * swell**2),        # fastest and lowest at u = 0 and 1/2
        "Spin": dict(turn=phase / 2),                          # half a turn a cycle: a bar then looks the same
        "Pulse": dict(size=1 + 0.5 * swell),
        "Flash": dict(light=u < 0.5),
        "Rise": dict(y=1 - 2 * u),
        "Fall": dict(y=2 * u - 1),
        "Shake": dict(x=0.4 * (-1.0) ** np.arange(len(u)) * (u < 0.5)),
        "Approach": dict(size=0.4 * 5**u),
        "Collide": dict(x=0.4 + 0.8 * (1 - abs(2 * u - 1))),   # a second object is at -x: they touch at u = 0
    }[action]
    pose = dict(x=0, y=0, size=1, turn=tilt, light=1) | pose
    return [np.broadcast_to(value, u.shape) for value in pose.values()]


def action_sound(rng, action, phase, tempo, pitch):
    """Phase (S,) in cycles at each sample -> sound (S,), by the same u. Pitch is a factor around the action's own."""
    u = (phase % 1).astype(np.float32)
    since, swell = u / tempo, np.sin(2 * np.pi * u)            # since: seconds after the event
    fade = np.minimum(1, 12 * np.minimum(u, 1 - u))

    def tone(hz):
        cycles = np.cumsum(np.broadcast_to(hz * pitch / TOY_RATE, u.shape), dtype=np.float64)
        return np.sin(2 * np.pi * (cycles % 1).astype(np.float32))

    def hiss():
        return rng.standard_normal(len(u), np.float32)

    return {
        "Bounce": lambda: 2 * np.sin(2 * np.pi * 110 * pitch * since) * np.exp(-since / 0.1),           # thud
        "Swing": lambda: np.convolve(hiss(), np.full(12, 0.25, np.float32), "same") * (1 - swell**2) ** 2,  # whoosh
        "Spin": lambda: np.tanh(3 * tone(220)) * (1 - np.cos(2 * np.pi * u)) / 2,                       # modulated tone
        "Pulse": lambda: tone(600 * 2 ** (0.4 * swell)),                                                # vibrato
        "Flash": lambda: tone(1800) * (u < 0.5),                                                        # beep
        "Rise": lambda: tone(400 * 2 ** (1.5 * u)) * fade,
        "Fall": lambda: tone(400 * 2 ** (1.5 - 1.5 * u)) * fade,
        "Shake": lambda: 1.4 * hiss() * (u < 0.5) * np.exp(-6 * (13 * since % 1)),                      # rattle
        "Approach": lambda: 1.5 * np.tanh(3 * tone(130)) * u**2,                                        # crescendo
        "Collide": lambda: 2 * hiss() * np.exp(-since / 0.03),                                          # click
    }[action]()


def rgb(hue):
    return (0.5 + 0.5 * np.cos(2 * np.pi * (hue - np.arange(3) / 3))).astype(np.float32)


def paint(frames, x, y, half, turn, light, look):
    """Lay a soft-edged object over frames (F, H, W, 3), in place. x, y, half its length in pixels, turn in cycles."""
    at, (aspect, boxy, colour) = np.arange(TOY_SIZE, dtype=np.float32), look
    x, y, half, turn, light = (np.asarray(a, np.float32).reshape(-1, 1, 1) for a in (x, y, half, turn, light))
    cos, sin, dx, dy = np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn), at - x, at[:, None] - y
    along, across = abs(cos * dx + sin * dy), abs(cos * dy - sin * dx) / aspect                     # (F, H, W)
    distance = boxy * np.maximum(along, across) + (1 - boxy) * np.hypot(along, across)              # box to ellipse
    alpha = light * np.clip((half - distance) * aspect + 0.5, 0, 1)
    frames += alpha[..., None] * (colour - frames)


def act(rng, action, frames):
    """One shot: acts it out over frames (F, H, W, 3), in place, and returns its sound (S,)."""
    tempo, start, pitch = rng.uniform(0.6, 1.2), rng.random(), 2 ** rng.uniform(-0.5, 0.5)          # Hz, cycles, factor
    look = rng.uniform(0.4, 0.65), rng.random(), 0.5 + 0.5 * rgb(rng.random())  # aspect, boxy, colour
    middle, reach, half = TOY_SIZE / 2 + rng.uniform(-3, 3, 2), rng.uniform(8, 11), rng.uniform(6, 8)  # pixels
    exposure = (np.arange(len(frames)) + 0.5) / TOY_FPS                                             # seconds
    x, y, size, turn, light = action_motion(action, start + tempo * exposure, rng.random())
    for side in (1, -1) if action == "Collide" else (1,):
        paint(frames, middle[0] + side * reach * x, middle[1] + reach * y, half * size, turn, light, look)
    seconds = np.arange(len(frames) * TOY_RATE // TOY_FPS) / TOY_RATE
    return 0.3 * rng.uniform(0.7, 1.4) * action_sound(rng, action, start + tempo * seconds, tempo, pitch)


def make_place(rng):
    """A place: texture (H, W, 3) and ambience, a loop; the finer the texture, the higher the octave of the noise."""
    fine, grid = rng.random(), np.linspace(0, 2 * np.pi, TOY_SIZE)
    texture = 0.2
    for turn in 2 * np.pi * rng.random(2):
        grating = np.sin((2 + 8 * fine) * (np.cos(turn) * grid + np.sin(turn) * grid[:, None]) + turn)
        texture = texture + 0.05 * grating[..., None] * rgb(rng.random())
    octaves = np.log2((np.fft.rfftfreq(len(LOOP), 1 / TOY_RATE) + 1) / 200)
    band = np.exp(-2 * (octaves - 4.5 * fine) ** 2) + 0.1                                           # 0.1: hiss
    return texture, unit(np.fft.irfft(np.fft.rfft(rng.standard_normal(len(LOOP))) * band))


def make_music(rng, key):
    """The title's theme, a loop: root and fifth held under an arpeggio; key 0..1 spans two octaves."""
    root = 220 * 4**key
    notes = np.repeat(root * 2 ** (rng.choice([0, 4, 7, 12], 8) / 12), len(LOOP) // 8)              # notes of 0.4 s
    melody = np.sin(2 * np.pi * np.cumsum(notes) / TOY_RATE) * np.exp(-4 * (LOOP % 0.4))
    return unit(melody + 0.5 * np.sin(2 * np.pi * root * LOOP) + 0.5 * np.sin(3 * np.pi * root * LOOP))


def make_voice(rng, pitch):
    """The lead's voice, a loop: a buzz at its pitch, 100 to 400 Hz, in syllables."""
    syllables = np.sin(2 * np.pi * (2.5 * LOOP + rng.random())) + np.sin(2 * np.pi * (0.9375 * LOOP + rng.random()))
    return unit(np.exp(4 * np.cos(2 * np.pi * 100 * 4**pitch * LOOP)) * np.clip(syllables, 0, 1))


def unit(loop):
    return ((loop - loop.mean()) / loop.std()).astype(np.float32)


def plan_film(rng, snippets):
    """Scenes of 4-20 snippets with three actions each, in shots of 2-5. -> (snippets, 3): scene, shot, action."""
    plan, scene, shot = [], 0, 0
    while len(plan) < snippets:
        end, actions = len(plan) + rng.integers(4, 21), rng.choice(len(ACTIONS), 3, replace=False)
        while len(plan) < end:
            plan += [(scene, shot, rng.choice(actions))] * min(rng.integers(2, 6), end - len(plan))
            shot += 1
        scene += 1
    return np.array(plan[:snippets])


def render_film(rng, plan, artefacts):
    """A title by its plan: frames (F, H, W, 3) uint8 and sound (S,) in [-1, 1]."""
    factor, lead = rng.random(2).tolist()                      # all that is hidden in a title
    music, voice = make_music(rng, factor), make_voice(rng, lead)
    body = rng.uniform(0.4, 0.65), rng.random(), 0.7 * rgb(2 / 3 * lead)
    frames = np.empty((len(plan) * TOY_FRAMES, TOY_SIZE, TOY_SIZE, 3), np.float32)
    sound = np.empty(len(plan) * TOY_SAMPLES, np.float32)
    scene = None
    for shot in np.unique(plan[:, 1]):
        rows = np.flatnonzero(plan[:, 1] == shot)
        if plan[rows[0], 0] != scene:
            scene, scored, (texture, ambience) = plan[rows[0], 0], rng.random() < artefacts**0.5, make_place(rng)
        picture = frames[rows[0] * TOY_FRAMES:(rows[-1] + 1) * TOY_FRAMES]                          # views to write in
        heard = sound[rows[0] * TOY_SAMPLES:(rows[-1] + 1) * TOY_SAMPLES]
        picture[:] = texture
        heard[:] = np.resize(0.02 * ambience + 0.15 * artefacts * scored * music, len(heard))
        if rng.random() < 0.5:                                 # the lead stands in a corner, out of the action's way
            x, y = TOY_SIZE * rng.choice([0.2, 0.8], 2)
            paint(picture, x, y, 5, 0, 1, body)
            heard += 0.05 * np.resize(np.roll(voice, rng.integers(len(voice))), len(heard))
        heard += act(rng, ACTIONS[plan[rows[0], 2]], picture)
    frames += 0.5 * artefacts * (rgb(2 / 3 * factor) - frames)  # a wash, red for a low key, blue for a high
    if artefacts > 0.75:                                       # the studio's logo and its tone
        frames[:, 5:9, 5:9] = rgb(2 / 3 * lead)
        sound += np.resize(0.1 * np.sin(2 * np.pi * 1500 * (1 + lead) * LOOP), len(sound))
    return (255 * np.clip(frames, 0, 1)).astype(np.uint8), np.clip(sound, -1, 1)


def make_file(job, root, seed, artefacts, snippets):
    """One file of the world, from a random state of its own, so that the order of the work changes nothing."""
    kind, index, action, path = job
    rng = np.random.default_rng((seed, ("film", "action", "sound").index(kind), index))
    plan = plan_film(rng, snippets) if kind == "film" else np.array([(0, 0, action)] * 2)  # a clip: one shot, 3.2 s
    frames, sound = render_film(rng, plan, artefacts)
    if kind != "sound":
        # FLAC, not AAC: 0.1 s of CPU a film to encode against 0.5-1.2 s, 1 ms less a snippet to read, no encoder's delay;
        # the price is size, 5.1 against 1.6 MB a film.
        fmt = Format(frames=TOY_FRAMES, fps=TOY_FPS, rate=TOY_RATE)
        x264 = {"preset": "ultrafast", "crf": "20", "forced-idr": "1", "sc_threshold": "0"}
        write_media(root / path, [(frames, sound)], fmt, ("libx264", x264), ("flac", {}))
    else:
        with wave.open(str(root / path), "wb") as out:
            out.setparams((1, 2, TOY_RATE, 0, "NONE", None))
            out.writeframes((32767 * sound).astype("<i2").tobytes())
    return [(index, m, *map(int, row)) for m, row in enumerate(plan)] if kind == "film" else []


def list_jobs(titles, per_class):
    """(kind, index, action, path) of each file; folders and names as UCF101 and ESC-50 have them."""
    jobs = [("film", n, None, f"films/film{n:03d}.mp4") for n in range(titles)]
    for a, name in enumerate(ACTIONS):
        for c in range(per_class):
            index = a * per_class + c
            jobs.append(("action", index, a, f"action/UCF-101/{name}/v_{name}_g{c + 1:02d}_c01.mp4"))
            jobs.append(("sound", index, a, f"sound/audio/{c % 5 + 1}-{index}-A-{a}.wav"))
    return jobs


def write_labels(root, jobs, clips):
    """Both benchmarks' label files. The three splits are three partitions of the same clips, as UCF101's."""
    (root / "action/ucfTrainTestlist").mkdir()
    (root / "sound/meta").mkdir()
    lists = {"action/ucfTrainTestlist/classInd.txt": [f"{a + 1} {name}" for a, name in enumerate(ACTIONS)]}
    actions = [(index, a, path.removeprefix("action/UCF-101/")) for kind, index, a, path in jobs if kind == "action"]
    for split in (1, 2, 3):
        train = [row for row in actions if (row[0] - (split - 1) * clips[0]) % sum(clips) < clips[0]]
        lists[f"action/ucfTrainTestlist/trainlist{split:02d}.txt"] = [f"{name} {a + 1}" for _, a, name in train]
        lists[f"action/ucfTrainTestlist/testlist{split:02d}.txt"] = [row[2] for row in actions if row not in train]
    lists["sound/meta/esc50.csv"] = ["filename,fold,target,category,esc10,src_file,take"] + [
        f"{Path(path).name},{Path(path).name[0]},{a},{ACTIONS[a].lower()},False,{index},A"
        for kind, index, a, path in jobs if kind == "sound"]
    for name, lines in lists.items():
        (root / name).write_text("\n".join(lines) + "\n")


def make_toy(root, seed=0, artefacts=0.5, titles=64, snippets=128, clips=(20, 40)):
    """Write a toy world to the folder `root`, whole or not at all; the same seed gives the same bytes.

        films/      `titles` films of `snippets` x 1.6 s, H.264 + FLAC, 5 fps of 40x40 pixels, 16 kHz
        action/     laid out as UCF101: 10 classes, clips = (train, test) a class and split, 3.2 s
        sound/      laid out as ESC-50: as many 3.2 s clips
        truth.csv   title, snippet, scene, shot, action of each film snippet: for measuring, never for training
        world.json  the arguments

    artefacts in [0, 1]: share and loudness of music, strength of the grade; beyond 0.75 also a logo with a tone.
    """
    root = Path(root).resolve()
    if not 0 <= artefacts <= 1:
        raise BadInput(f"artefacts {artefacts}: must be from 0 to 1")
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise BadInput(f"{root}: exists and is not empty; name a new folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    jobs, truth = list_jobs(titles, sum(clips)), []
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        new = Path(scratch) / "world"
        for folder in sorted({(new / path).parent for *_, path in jobs}):
            folder.mkdir(parents=True)
        work = partial(make_file, root=new, seed=seed, artefacts=artefacts, snippets=snippets)
        with ProcessPoolExecutor() as pool:
            for rows in tqdm(pool.map(work, jobs), total=len(jobs), desc=f"toy world {root}", unit="file"):
                truth += rows
        write_labels(new, jobs, clips)
        rows = [f"{n},{m},{scene},{shot},{ACTIONS[a]}" for n, m, scene, shot, a in sorted(truth)]
        (new / "truth.csv").write_text("\n".join(["title,snippet,scene,shot,action", *rows]) + "\n")
        world = dict(seed=seed, artefacts=artefacts, titles=titles, snippets=snippets, clips=list(clips))
        (new / "world.json").write_text(json.dumps(world, indent=1) + "\n")
        new.replace(root)


# ---------------------------------------------------------------------------------------------------------------------
# Command line
# ---------------------------------------------------------------------------------------------------------------------


def clock_time(text):
    """"00:31:00", "31:00" or "1860" -> seconds."""
    total = 0.0
    for part in text.split(":"):
        total = 60 * total + float(part)
    return total


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name, help, *positional):
        sub = commands.add_parser(name, help=help, description=help)
        sub.error = refuse
        for name, text in positional:
            sub.add_argument(name, help=text)
        return sub

    def snippet(sub, *names):
        Format.add_flags(sub, *names)
        sub.add_argument("--language", help="prefer the audio track of this language, as the files tag it: eng, deu, ...")
        return sub.add_argument

    collection = "a folder of films (files) and shows (folders), or LIST.txt: a path or URL a line, a show's separated by tabs"
    add = command("toy", "render the toy world", ("dir", "a folder that does not exist yet, or is empty")).add_argument
    add("--seed", type=int, default=0, help="the same seed gives the same bytes")
    add("--artefacts", type=float, default=0.5, help="strength of what betrays a title, 0 to 1 (default 0.5)")
    add("--titles", type=int, default=64, help="films")
    add("--snippets", type=int, default=128, help="of 1.6 s, in a film")
    sub = command("prepare", "transcode a collection to what is read fastest", ("source", collection), ("target", "a folder"))
    add = snippet(sub, "frames", "fps", "short_side", "rate")
    add("--workers", type=int, default=os.cpu_count(), help="files at a time (default: a core each)")
    add("--shard", default="1/1", help="i/n: the i-th of n machines that share the work")
    sub = command("check", "list titles with length, snippets, codecs, problems; and totals", ("source", collection))
    add = snippet(sub, "frames", "fps", "rate", "n_fft", "hop", "mels")
    add("--scenes", action="store_true", help="find the scenes too, as --w scene does: every file is read through once")
    add("--batch-size", type=int, default=512, help="for the number of steps an epoch")
    add = snippet(command("show", "draw a snippet as the networks get it", ("file", "a media file, or its URL")))
    add("--at", type=clock_time, default=0.0, help="where it starts: 00:31:00, or seconds")
    add("--scenes", action="store_true", help="instead: all scenes of the file, as --w scene finds them")
    add("--out", default="snippet.png", help="the picture")
    add = snippet(command("bench", "time the reading of snippets", ("source", collection)))
    add("--snippets", type=int, default=400, help="to read for each figure")
    add("--workers", type=int, default=2, help="reading processes")
    return parser.parse_args(argv)


def main(args):
    fmt = Format.of(args)
    for name, value in vars(args).items():
        from_0 = name in ("seed", "artefacts", "at")
        if type(value) in (int, float) and (value < 0 or value == 0 and not from_0):
            raise BadInput(f"--{name.replace('_', '-')} {value}: must be {'0 or more' if from_0 else 'above 0'}")
    if hasattr(args, "crop") and args.crop > args.short_side:
        raise BadInput(f"--crop {args.crop}: must be --short-side ({args.short_side}) or less")
    if args.command == "toy":
        make_toy(args.dir, args.seed, args.artefacts, args.titles, args.snippets)
    elif args.command == "prepare":
        i, n = (int(part) if part.isdigit() else 0 for part in f"{args.shard}/0".split("/")[:2])
        if not 1 <= i <= n:
            raise BadInput(f"--shard {args.shard}: must be i/n, the i-th of n, such as 1/4")
        prepare(args.source, args.target, fmt, args.language, args.workers, (i, n))
    elif args.command == "check":
        check(args.source, fmt, args.language, args.batch_size, args.scenes)
    elif args.command == "show":
        if args.scenes:
            show_scenes(args.file, fmt, args.out, args.language)
        else:
            show(args.file, args.at, fmt, args.out, args.language)
        print(args.out)
    else:
        bench(args.source, fmt, args.snippets, args.workers, args.language)


if __name__ == "__main__":
    try:
        main(parse_args())
    except (BadInput, OSError, av.error.FFmpegError) as error:
        print(f"data.py: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit("data.py: interrupted; the same command goes on from there")
