"""From a media file to tensors.

    media file -> (title n, snippet m) -> worker: video uint8 (3, T, H, W), waveform float (S,)
               -> DataLoader (B, ...)  -> device: VideoFrontEnd (B, 3, T, H, W), AudioFrontEnd (B, 1, P, Q)

T frames at `fps`, cropped to H x W pixels; S samples at `rate`; P mel filters, Q audio frames. All times are in seconds
on the file's own presentation clock, which its video and its sound share.

    python data.py toy datasets/toy        render the toy world: small films, and two labelled sets
"""

import argparse
import contextlib
import copy
import csv
import dataclasses
import json
import multiprocessing
import os
import sys
import tempfile
import wave
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
import torchaudio
from av.video.reformatter import Interpolation, VideoReformatter
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm


MEDIA = {".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"}
CLOCK = 0.001    # s: containers round timestamps to a millisecond, so times closer than this are the same
RESYNC = 0.02    # s: sound further than this off its timestamp has a gap or an overlap; less is that rounding, added up
av.logging.set_level(av.logging.PANIC)  # what goes wrong is raised, and said once, by us


class BadInput(ValueError):
    """What a user can mend. The message is the one line to print: what is wrong, and what would be right."""


def refuse(message):
    raise BadInput(message)


@dataclasses.dataclass(frozen=True)
class Format:
    """What a snippet is made of: the paper's numbers (Section 4.1), kept in the checkpoint as `front_end`."""

    frames: int = 16
    fps: float = 5
    short_side: int = 190      # pixels, after resizing
    crop: int = 158            # pixels
    rate: int = 48000          # Hz
    n_fft: int = 2048          # samples
    hop: int = 512             # samples between audio frames
    mels: int = 96

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
    """An open media file, its first video and its first audio stream (None where there is none).

    Raises BadInput if FFmpeg cannot open the file; av.error.FFmpegError from `read` if it cannot decode it.
    """

    def __init__(self, path):
        self.path, self.process = str(path), os.getpid()
        try:
            self.container = av.open(self.path, metadata_errors="replace")
        except (av.error.FFmpegError, OSError) as error:
            raise BadInput(f"{path}: not a media file that can be read ({error.strerror or error})") from error
        usable = [s for s in self.container.streams if s.type in ("video", "audio") and s.codec_context]  # FFmpeg decodes it
        usable = [s for s in usable if not s.disposition & av.stream.Disposition.attached_pic]            # no cover art
        self.video, self.audio = (next((s for s in usable if s.type == kind), None) for kind in ("video", "audio"))
        self.reformatter = VideoReformatter()  # keeps swscale's tables from frame to frame
        for stream in filter(None, (self.video, self.audio)):
            stream.codec_context.thread_count = 1  # the workers are the parallelism; must be set before the codec opens

    def close(self):
        self.container.close()

    def span(self, stream):
        """(start, end) of a stream, from the headers; the container's where the stream does not say."""
        whole_start = (self.container.start_time or 0) / av.time_base
        start = whole_start if stream.start_time is None else float(stream.start_time * stream.time_base)
        if stream.duration:
            return start, start + float(stream.duration * stream.time_base)
        whole = (self.container.duration or 0) / av.time_base
        return start, whole if "matroska" in self.container.format.name else whole_start + whole  # there, it is the end

    def read(self, times=(), sound_from=0.0, samples=0, rate=48000):
        """Frames shown at `times` (ascending), and `samples` of mono sound at `rate` from `sound_from` on.

        Returns (a list of av.VideoFrame, one for each time; float32 array (samples,)). Both come from one seek and one
        pass. A seek lands where the container's index says, which may be after the sound that we want, so we look at what
        came and, if its head is missing, start further back. Past the end of a stream its last frame stays, and silence.
        """
        for preroll in (0.25, 2.0, 15.0):
            pictures, sound = Pictures(self.video, times), Sound(self.audio, sound_from, samples, rate)
            wanted = [consumer for consumer in (pictures, sound) if not consumer.done]
            start = min(consumer.start for consumer in wanted) - preroll
            self.container.seek(max(round(start * av.time_base), self.container.start_time or 0), backward=True)
            for packet in self.container.demux([consumer.stream for consumer in wanted]):
                (pictures if packet.stream is self.video else sound).take(packet)
                if pictures.done and sound.done:
                    break
            if all(consumer.complete() for consumer in wanted):
                break
        return pictures.frames, sound.samples

    def resize(self, frame, short_side):
        """av.VideoFrame -> RGB uint8 (H, W, 3), its shorter side (as displayed, with square pixels) `short_side`."""
        aspect = float(self.video.sample_aspect_ratio or 1)
        width, height = frame.width * aspect, frame.height
        scale = short_side / min(width, height)
        size = round(width * scale), round(height * scale)
        rgb = self.reformatter.reformat(frame, *size, format="rgb24", interpolation=Interpolation.BILINEAR, threads=1)
        return rgb.to_ndarray()


def seconds(item):
    """When a packet or a frame is due: by its decoding time where it has no other, as in AVI; -inf if it has none."""
    stamp = item.dts if item.pts is None else item.pts
    return float(stamp * item.time_base) if stamp is not None else -np.inf


class Pictures:
    """Takes video packets, decodes from the last key frame that is needed, and keeps the frame shown at each time."""

    def __init__(self, stream, times):
        self.stream, self.times = stream, list(times)
        self.start = self.times[0] if self.times else 0.0
        self.frames, self.pending, self.shown, self.first = [], [], None, None

    @property
    def done(self):
        return len(self.frames) == len(self.times)

    def complete(self):
        return self.done and self.first is not None and self.first <= max(self.start, self.stream_start()) + CLOCK

    def stream_start(self):
        return float((self.stream.start_time or 0) * self.stream.time_base)

    def take(self, packet):
        if not packet.size:                                 # the end: what the decoder still holds comes out
            self.decode([*(self.pending or []), packet])
            self.frames += [self.shown] * (len(self.times) - len(self.frames)) if self.shown else []
        elif self.pending is None:
            self.decode([packet])
        else:
            # Until a packet lies past the first time we only collect, and forget what precedes the last key frame:
            # reading a group of pictures that is not wanted costs little, decoding it would double the work.
            time = seconds(packet)
            if packet.is_keyframe and time <= self.start + CLOCK:
                self.pending = []
            self.pending.append(packet)
            if time > self.start + CLOCK:
                packets, self.pending = self.pending, None
                self.decode(packets)

    def decode(self, packets):
        for packet in packets:
            for frame in packet.decode():
                self.show(frame)
                if self.done:
                    return

    def show(self, frame):
        """A frame is shown until the next one's time; if it starts at the very time wanted there is no need to wait."""
        time = seconds(frame)
        self.first = time if self.first is None else self.first
        while not self.done and time > self.times[len(self.frames)] + CLOCK:
            self.frames.append(self.shown or frame)
        self.shown = frame
        while not self.done and abs(time - self.times[len(self.frames)]) <= CLOCK:
            self.frames.append(frame)


class Sound:
    """Takes audio packets and lays the decoded samples, mono at `rate`, where their timestamps say."""

    PREROLL = 0.1    # s: a lossy codec's first frames after a seek lack their overlap, so decoding starts before the cut

    def __init__(self, stream, start, samples, rate):
        self.stream, self.start, self.rate = stream, start, rate
        self.samples = np.zeros(samples, np.float32)
        self.position = self.first = None                   # sample index of the next sound; of the first that came
        self.ended = samples == 0
        self.resampler = None

    @property
    def done(self):
        return self.ended or (self.position or 0) >= len(self.samples)

    def complete(self):
        earliest = max(self.start, float((self.stream.start_time or 0) * self.stream.time_base))
        return self.first is not None and self.first / self.rate + self.start <= earliest + RESYNC

    def take(self, packet):
        if not packet.size:                                 # the end: the decoder's rest, then the resampler's
            self.lay(packet.decode())
            self.lay([None] if self.resampler else [])
            self.ended = True
        elif seconds(packet) + float((packet.duration or 0) * packet.time_base) > self.start - self.PREROLL:
            self.lay(packet.decode())

    def lay(self, frames):
        for frame in frames:
            for block in self.to_mono(frame):
                samples = block.to_ndarray()[0]
                if samples.dtype == np.int16:
                    samples = samples * np.float32(2**-15)
                time = seconds(block)                       # without one, sound goes on where it was
                position = round((time - self.start) * self.rate) if np.isfinite(time) else self.position or 0
                if self.position is None or abs(position - self.position) > RESYNC * self.rate:
                    self.position = position
                self.first = self.position if self.first is None else self.first
                low, high = max(self.position, 0), min(self.position + len(samples), len(self.samples))
                if low < high:
                    self.samples[low:high] = samples[low - self.position : high - self.position]
                self.position += len(samples)

    def to_mono(self, frame):
        """One frame, or None for the end -> blocks of mono sound at `rate`; what is that already goes straight through."""
        if frame and frame.rate == self.rate and frame.layout.name == "mono" and frame.format.name in ("fltp", "s16"):
            return [frame]
        self.resampler = self.resampler or av.AudioResampler("flt", "mono", self.rate)
        return self.resampler.resample(frame)


def crop_frames(images, top, left, size):
    """A list of T RGB images (H, W, 3) -> uint8 tensor (3, T, size, size), all cut at the same place."""
    cut = np.stack([image[top : top + size, left : left + size] for image in images])         # (T, size, size, 3)
    return torch.from_numpy(np.ascontiguousarray(cut.transpose(3, 0, 1, 2)))                  # (3, T, size, size)


# ---------------------------------------------------------------------------------------------------------------------
# Collections: films and shows, for pretraining
# ---------------------------------------------------------------------------------------------------------------------


class Titles(Dataset):
    """Every entry of a folder is a title n: a file is a film, a folder is a show, its files stitched in name order.

    `names[n]`, `counts[n]` = M_n: how many whole snippets its video and its sound both last. `skipped`: [(path, why)].
    Item (n, m, key) -> video uint8 (3, T, crop, crop), waveform float (S,), n. Snippet m of a file covers
    [start + m * seconds, start + (m + 1) * seconds). The crop is drawn from `key`, a tuple of integers; it is central
    if key is None. Raises BadInput for a folder that is not there or holds no title, and for a snippet that cannot be
    decoded.
    """

    def __init__(self, root, fmt):
        self.root, self.fmt, self.reader = Path(root), fmt, None
        if not self.root.is_dir():
            raise BadInput(f"{root}: no such folder; it should hold films (files) and shows (folders of files)")
        entries = sorted(entry for entry in self.root.iterdir() if not entry.name.startswith("."))
        files = [media_files(entry) for entry in entries]
        if not any(files):
            raise BadInput(f"{root}: no media files in it; it should hold films (files) and shows (folders of files)")
        with ThreadPoolExecutor() as pool:  # headers only; FFmpeg works outside the interpreter's lock
            parts = iter(list(pool.map(self.measure, [path for group in files for path in group])))
        self.names, self.parts, self.skipped = [], [], []
        for entry, group in zip(entries, files):
            group = [next(parts) for _ in group]
            self.skipped += [(path, why) for path, _, count, why in group if not count]
            if any(count for _, _, count, _ in group):
                self.names.append(entry.name)
                self.parts.append([(path, start, count) for path, start, count, _ in group if count])
        self.counts = [sum(count for _, _, count in part) for part in self.parts]
        if not self.names:
            path, why = self.skipped[0]
            raise BadInput(f"{root}: none of its {len(self.skipped)} files can be used; {path}: {why}")

    def measure(self, path):
        """(path, start, how many snippets, why none): both streams from the later start to the earlier end."""
        try:
            reader = Reader(path)
        except BadInput:
            return path, 0.0, 0, "not a media file that can be read"
        try:
            if reader.video is None or reader.audio is None:
                return path, 0.0, 0, "no video" if reader.video is None else "no sound"
            starts, ends = zip(reader.span(reader.video), reader.span(reader.audio))
            count = int((min(ends) - max(starts) + RESYNC) / self.fmt.seconds)
            return path, max(starts), max(count, 0), f"shorter than a snippet of {self.fmt.seconds:g} s"
        finally:
            reader.close()

    def subset(self, titles):
        """The same collection with these titles only, renumbered."""
        part = copy.copy(self)
        for name in ("names", "parts", "counts"):
            setattr(part, name, [getattr(self, name)[n] for n in titles])
        return part

    def __getstate__(self):
        return {**self.__dict__, "reader": None}  # an open file does not travel to a reading process

    def __len__(self):
        return len(self.names)

    def __getitem__(self, item):
        n, m, key = item
        frames, waveform = self.read(n, m)
        images = [self.reader.resize(frame, self.fmt.short_side) for frame in frames]
        (height, width, _), size = images[0].shape, self.fmt.crop
        if key is None:
            top, left = (height - size) // 2, (width - size) // 2
        else:
            top, left = rng_of(*key).integers((height - size + 1, width - size + 1))
        return crop_frames(images, top, left, size), torch.from_numpy(waveform), n

    def read(self, n, m):
        """Snippet m of title n -> (frames, waveform), through the reader, which stays open: neighbours share a file."""
        fmt = self.fmt
        for path, start, count in self.parts[n]:
            if m < count:
                break
            m -= count
        if self.reader is None or self.reader.path != path or self.reader.process != os.getpid():
            if self.reader:
                self.reader.close()
            self.reader = Reader(path)  # of this process: one that was open at a fork would share its place in the file
        start += m * fmt.seconds
        try:
            frames, waveform = self.reader.read(start + np.arange(fmt.frames) / fmt.fps, start, fmt.samples, fmt.rate)
        except av.error.FFmpegError as error:
            raise BadInput(f"{path}: the snippet at {start:.1f} s cannot be decoded ({error.strerror})") from error
        if not frames:
            raise BadInput(f"{path}: no frame can be decoded at {start:.1f} s")
        return frames, waveform


def media_files(entry):
    """The files of a title, in name order: one for a film, those below it for a show."""
    files = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
    return [str(file) for file in files if file.suffix.lower() in MEDIA and file.is_file()]


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


def read_lines(root, name, layout):
    """The lines of a list file that belongs to a published data set, or BadInput with the tree that is expected."""
    try:
        return [line.strip() for line in (Path(root) / name).read_text().splitlines() if line.strip()]
    except OSError:
        raise BadInput(f"{Path(root) / name}: not found. {root} should hold:{TREES[layout]}") from None


def ucf101(root, split, train):
    """[(path, label)], class names of UCF101, by the official list of split 1, 2 or 3."""
    names = [line.split()[1] for line in read_lines(root, "ucfTrainTestlist/classInd.txt", "ucf101")]
    lines = read_lines(root, f"ucfTrainTestlist/{'train' if train else 'test'}list{split:02d}.txt", "ucf101")
    files = [line.split()[0] for line in lines]
    return [(Path(root) / "UCF-101" / file, names.index(file.split("/")[0])) for file in files], names


def hmdb51(root, split, train):
    """[(path, label)], class names of HMDB51: 70 clips a class to train on and 30 to test, by split 1, 2 or 3."""
    folder, ending = Path(root) / "testTrainMulti_7030_splits", f"_test_split{split}.txt"
    names = sorted(path.name.removesuffix(ending) for path in folder.glob("*" + ending))
    items = []
    for label, name in enumerate(names or ["brush_hair"]):
        for line in read_lines(root, f"testTrainMulti_7030_splits/{name}{ending}", "hmdb51"):
            file, part = line.split()
            if part == ("1" if train else "2"):
                items.append((Path(root) / "hmdb51_org" / name / file, label))
    return items, names


def esc50(root, split, train):
    """[(path, label)], class names of ESC-50: fold `split` of five is for testing, the others for training."""
    rows = list(csv.DictReader(read_lines(root, "meta/esc50.csv", "esc50")))
    names = dict(sorted((int(row["target"]), row["category"]) for row in rows))
    rows = [row for row in rows if (int(row["fold"]) != split) == train]
    return [(Path(root) / "audio" / row["filename"], int(row["target"])) for row in rows], list(names.values())


@contextlib.contextmanager
def open_labeled(path, kind):
    """A Reader of a labelled file that must have a stream of this kind; what fails in it is said with its name."""
    reader = Reader(path)
    try:
        if getattr(reader, kind) is None:
            raise BadInput(f"{path}: no {kind} in it")
        yield reader
    except av.error.FFmpegError as error:
        raise BadInput(f"{path}: cannot be decoded ({error.strerror})") from error
    finally:
        reader.close()


class Labeled(Dataset):
    """What the labelled sets share: files, labels, and a clip drawn in training against ten taken in testing (4.1).

    Item (i, key): a clip drawn from `key` -> (tensor, label). Item (i, None): all test views -> ((V, ...), label).
    Raises BadInput, with the layout expected, for a file that the lists name and the folder lacks.
    """

    CLIPS = 10  # temporal clips of a test video, evenly spaced from its first to its last

    def __init__(self, items, fmt):
        self.items, self.fmt = items, fmt
        for path, _ in items:
            if not os.path.exists(path):
                raise BadInput(f"{path}: not found, though the set's lists name it")

    def __len__(self):
        return len(self.items)

    def starts(self, start, end, key):
        """Where clips begin: one at random, or ten evenly spaced. Files shorter than a clip begin at their start."""
        slack = max(0.0, end - start - self.fmt.seconds)
        if key is None:
            return start + slack * np.linspace(0, 1, self.CLIPS)
        return start + slack * rng_of(*key, 0).random(1)


class LabeledVideos(Labeled):
    """UCF101 or HMDB51: uint8 (3, T, crop, crop) in training, (30, 3, T, crop, crop) in testing.

    Training: scale jitter (the shorter side uniform in `scale`, a pair of pixels) and a random crop. Testing: 10 clips x
    3 crops (left, centre, right; of an upright video: top, centre, bottom) at the shorter side of `fmt`.
    A video shorter than a clip is shown again from its start.
    """

    def __init__(self, items, fmt, scale=(181, 226)):
        super().__init__(items, fmt)
        self.scale = scale

    def __getitem__(self, item):
        i, key = item
        path, label = self.items[i]
        with open_labeled(path, "video") as reader:
            clips = self.read(reader, key)
        size = self.fmt.crop
        height, width, _ = clips[0][0].shape
        if key is not None:
            top, left = rng_of(*key, 2).integers((height - size + 1, width - size + 1))
            return crop_frames(clips[0], top, left, size), label
        corners = [((height - size) * i // 2, (width - size) * i // 2) for i in range(3)]
        corners = [((height - size) // 2, left) if width >= height else (top, (width - size) // 2) for top, left in corners]
        return torch.stack([crop_frames(clip, *corner, size) for clip in clips for corner in corners]), label

    def read(self, reader, key):
        """-> clips, each a list of T images (H, W, 3), in one pass over the file; shared frames are resized once."""
        start, end = reader.span(reader.video)
        times = self.starts(start, end, key)[:, None] + np.arange(self.fmt.frames) / self.fmt.fps      # (clips, T)
        times = start + (times - start) % max(end - start, 1 / self.fmt.fps)
        wanted, where = np.unique(times, return_inverse=True)
        frames, _ = reader.read(wanted)
        if not frames:
            raise BadInput(f"{reader.path}: no frame in it can be decoded")
        low, high = self.scale
        short_side = self.fmt.short_side if key is None else int(rng_of(*key, 1).integers(low, high + 1))
        images = {id(frame): reader.resize(frame, short_side) for frame in {id(f): f for f in frames}.values()}
        return [[images[id(frames[j])] for j in clip] for clip in where.reshape(times.shape)]


class ESC50(Labeled):
    """ESC-50: waveform float (S,) in training, (10, S) in testing; clips of `fmt.seconds`, silence past the end."""

    def __getitem__(self, item):
        i, key = item
        path, label = self.items[i]
        with open_labeled(path, "audio") as reader:
            rate, (start, end) = self.fmt.rate, reader.span(reader.audio)
            _, whole = reader.read((), start, max(round((end - start) * rate), self.fmt.samples), rate)
        clips = [whole[(begin := round(t * rate)) : begin + self.fmt.samples] for t in self.starts(0, end - start, key)]
        return torch.from_numpy(clips[0] if key is not None else np.stack(clips)), label


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
        x = ((self.log_mel(waveform) - self.mean) / self.std).unsqueeze(1)   # (B, 1, P, Q)
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
    normalisation = {
        "video_mean": video.mean.flatten().tolist(),
        "video_std": video.std.flatten().tolist(),
        "log_mel_mean": audio.mean,
        "log_mel_std": audio.std,
    }
    return {**dataclasses.asdict(fmt), **normalisation}


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


def write_media(path, frames, sound):
    """frames (F, H, W, 3) uint8 and sound (S,) float in [-1, 1] -> one H.264 + FLAC file, the same bytes each time."""
    # FLAC, not AAC: 0.1 s of CPU a film to encode against 0.5-1.2 s, 1 ms less a snippet to read, no encoder's delay;
    # the price is size, 5.1 against 1.6 MB a film. One keyframe a snippet, no B-frames: a seek decodes nothing in vain.
    x264 = dict(preset="ultrafast", crf="20", g=str(TOY_FRAMES), bf="0", sc_threshold="0", threads="1")
    exact = dict(flags="+bitexact")                            # no versions, no dates
    pcm = (32767 * sound).astype(np.int16)[None]                                                    # (1, S)
    with av.open(str(path), "w", format="mp4", options=dict(fflags="+bitexact")) as out:
        video = out.add_stream("libx264", rate=TOY_FPS, options=x264 | exact)
        video.width, video.height, video.pix_fmt = TOY_SIZE, TOY_SIZE, "yuv420p"
        audio = out.add_stream("flac", rate=TOY_RATE, options=exact, layout="mono", format="s16")
        for m in range(len(frames) // TOY_FRAMES):
            for i in range(m * TOY_FRAMES, (m + 1) * TOY_FRAMES):
                picture = av.VideoFrame.from_ndarray(frames[i], format="rgb24")
                picture.pts, picture.time_base = i, Fraction(1, TOY_FPS)
                out.mux(video.encode(picture))
            piece = np.ascontiguousarray(pcm[:, m * TOY_SAMPLES:(m + 1) * TOY_SAMPLES])
            piece = av.AudioFrame.from_ndarray(piece, format="s16", layout="mono")
            piece.sample_rate, piece.pts, piece.time_base = TOY_RATE, m * TOY_SAMPLES, Fraction(1, TOY_RATE)
            out.mux(audio.encode(piece))
        out.mux(video.encode())
        out.mux(audio.encode())


def make_file(job, root, seed, artefacts, snippets):
    """One file of the world, from a random state of its own, so that the order of the work changes nothing."""
    kind, index, action, path = job
    rng = np.random.default_rng((seed, ("film", "action", "sound").index(kind), index))
    plan = plan_film(rng, snippets) if kind == "film" else np.array([(0, 0, action)] * 2)  # a clip: one shot, 3.2 s
    frames, sound = render_film(rng, plan, artefacts)
    if kind != "sound":
        write_media(root / path, frames, sound)
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
    for split in range(3):
        train = lists[f"action/ucfTrainTestlist/trainlist{split + 1:02d}.txt"] = []
        test = lists[f"action/ucfTrainTestlist/testlist{split + 1:02d}.txt"] = []
        for kind, index, a, path in jobs:
            if kind == "action":
                name = path.removeprefix("action/UCF-101/")
                in_train = (index - split * clips[0]) % sum(clips) < clips[0]
                train.append(f"{name} {a + 1}") if in_train else test.append(name)
    lists["sound/meta/esc50.csv"] = ["filename,fold,target,category,esc10,src_file,take"] + [
        f"{Path(path).name},{Path(path).name[0]},{a},{ACTIONS[a].lower()},False,{index},A"
        for kind, index, a, path in jobs if kind == "sound"]
    for name, lines in lists.items():
        (root / name).write_text("\n".join(lines) + "\n")


def make_toy(root, seed=0, artefacts=0.5, titles=64, snippets=128, clips=(20, 40), processes=None):
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
        with multiprocessing.Pool(processes or os.cpu_count()) as pool:
            for rows in tqdm(pool.imap_unordered(work, jobs), total=len(jobs), desc=f"toy world {root}", unit="file"):
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


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    toy = commands.add_parser("toy", help="render the toy world")
    toy.add_argument("dir", help="a folder that does not exist yet, or is empty")
    toy.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes")
    toy.add_argument("--artefacts", type=float, default=0.5, help="strength of what betrays a title, 0 to 1 (default 0.5)")
    toy.add_argument("--titles", type=int, default=64, help="films")
    toy.add_argument("--snippets", type=int, default=128, help="of 1.6 s, in a film")
    args = parser.parse_args(argv)
    make_toy(args.dir, args.seed, args.artefacts, args.titles, args.snippets)


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        print(f"data.py: error: {error}", file=sys.stderr)
        sys.exit(2)
