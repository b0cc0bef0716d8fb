"""From the files of a title to the tensors that the networks get, in the order a sample takes.

    sample (title n, snippet m, key), from the sampler
      --> worker       Titles           video uint8 (3, T, H, W), waveform float (S,)
      --> DataLoader   collate          video (B, 3, T, H, W), waveform (B, S), begin (B,)
      --> device       VideoFrontEnd    video float (B, 3, T, H, W), normalised
                       AudioFrontEnd    audio float (B, 1, P, Q), standardised log-mel

    B    samples                          T       frames, at `fps` frames a second
    S    samples of sound, at `rate` Hz   H, W    pixels of the crop
    P    mel filters                      Q       audio frames, `hop` samples apart

Pixels are RGB, 0 to 255. A waveform is mono; its full scale is -1 to 1, which loud sound may
exceed. A spectrogram is of power, and its logarithm is natural. The networks get video of about
-1.9 to 2.9, and audio of mean 0 and spread 1 over the training titles. The paper's snippet has
T = 16, H = W = 158, P = 96, and so S = 153600 and, with centred frames (our choice), Q = 301; the
toy's has T = 8, H = W = 28, P = 64, S = 25600, Q = 101.

What is random is drawn by `rng_of(key, STREAM)`, a generator for this key and this purpose.
Reading a sample takes the sample's key: (seed, epoch, step, place in the minibatch). The
front-ends take the key of a share: (seed, epoch, step, share).

The labelled sets, for fine-tuning, are at the end. `media/` opens and decodes the files.
"""

import contextlib
import copy
import dataclasses
import functools
import math
import os
import sys
import time
from itertools import zip_longest
from pathlib import Path

import av
import numpy as np
import torch
import torchaudio
from torch import nn
from torch.utils.data import DataLoader, Dataset, default_collate

from harness.errors import BadInput, moved
from harness.run import NOTHING_DONE, obey_parent_only, resume
from media.collection import index_scenes, read_collection
from media.format import (
    BANDS,
    CLIP_CROP,
    CLIP_SCALE,
    CLIP_START,
    COLOUR,
    HELD_OUT,
    REPLACEMENT,
    SNIPPET_CROP,
    rng_of,
)
from media.prepare import check_prepared
from media.reader import CENTRE, Reader, crop, read_snippets
from media.toy import make_toy

# -------------------------------------------------------------------------------------------------
# Worker: one snippet of a title
# -------------------------------------------------------------------------------------------------


class Titles(Dataset):
    """The titles of a collection, and their snippets.

    source    a folder, or a list LIST.txt: see `media.collection.list_titles`
    fmt       what a snippet is made of, a `media.format.Format`
    language  the audio track to prefer, as the files tag it ("eng", "deu")
    scenes    whether to find the scenes of each title too
    stride    seconds between the beginnings of neighbouring snippets: below the length of a snippet
              they overlap, above it there are gaps; default that length, so that each begins where
              the last one ends

    names[n]    the name of title n
    shows[n]    the film or the show that it belongs to: itself, but for `episodes`
    counts[n]   M_n, the number of whole snippets that its video and its sound both cover; with a
                stride, of the places on its grid at which a whole snippet fits
    scenes[n]   the lengths of its scenes, in snippets and in order; `scenes` is None without them
    skipped     [(path, why)] of the files that cannot be used

    An item is asked for as (n, m, key), and is a dict:

        video      uint8 (3, T, crop, crop)
        waveform   float (S,)
        title      n, or another title where five snippets of n could not be read
        begin      the second at which the snippet begins, or its replacement: see `begin`
        failures   a line for each snippet that could not be read and was replaced

    The crop is drawn from the key of the sample, and is central if the key is None. Raises
    BadInput for a source without titles, or prepared with less than `fmt` asks for; for a stride
    that is not above 0, or is given together with scenes; and after nine snippets in a row that
    cannot be read.
    """

    RETRIES = 4  # this many snippets of the same title may replace one, then as many of any title
    all_key_frames = False  # whether films have to be prepared so, see `check_prepared`

    def __init__(self, source, fmt, language=None, quiet=True, scenes=False, stride=None):
        check_stride(stride, scenes)
        collection = read_collection(source, fmt, language, quiet, stride=stride)
        self.names = collection.names
        self.shows = collection.names
        self.parts = collection.parts  # parts[n]: [(path, start in seconds, snippets)]
        self.counts = collection.counts
        self.skipped = collection.skipped
        paths = [path for part in self.parts for path, _, _ in part]
        check_prepared(paths, fmt, language, self.all_key_frames)
        self.fmt = fmt
        self.stride = fmt.seconds if stride is None else stride
        self.language = language
        self.reader = None
        self.scenes = None
        if scenes:
            log_mel = functools.partial(log_mel_on_one_thread, fmt=fmt)
            self.scenes_of_file = index_scenes(self.parts, source, fmt, log_mel, language, quiet)
            self.scenes = [self.scenes_of(part) for part in self.parts]

    def scenes_of(self, part):
        """The lengths of the scenes of some files, one file after another."""
        return sum((self.scenes_of_file[path] for path, _, _ in part), [])

    def subset(self, titles):
        """The same collection with these titles only, renumbered from 0."""
        subset = copy.copy(self)
        for attribute in ("names", "shows", "parts", "counts", "scenes"):
            values = getattr(self, attribute)
            if values is not None:
                setattr(subset, attribute, [values[n] for n in titles])
        return subset

    def episodes(self):
        """The same snippets, with each file as a title: an episode of a show, or a film.

        The paper speaks of "episodes of TV shows" (4.1), where we stitch them together.
        """
        files = [(show, file) for show, part in zip(self.shows, self.parts) for file in part]
        episodes = copy.copy(self)
        episodes.names = [path for _, (path, _, _) in files]
        episodes.shows = [show for show, _ in files]
        episodes.parts = [[file] for _, file in files]
        episodes.counts = [count for _, (_, _, count) in files]
        if self.scenes is not None:
            episodes.scenes = [self.scenes_of(part) for part in episodes.parts]
        return episodes

    def split(self, held_out, seed):
        """(training titles, held-out titles): this fraction of the titles is held out.

        The paper holds out 10 % in its ablations, and of a show all episodes or none (4.2).
        """
        N = len(self)
        order = rng_of((seed, N), HELD_OUT).permutation(N)
        number = min(N - 1, round(N * held_out))
        held_out, training = sorted(order[:number]), sorted(order[number:])
        return self.subset(training), self.subset(held_out)

    def __len__(self):
        return len(self.names)

    def __getitem__(self, sample):
        n, m, key = sample
        failures = []
        for title, snippet in self.candidates(n, m, key):
            try:
                content = self.content(title, snippet, key)
            except BadInput as error:
                failures.append(str(error).replace("\n", " "))
                continue
            return {
                **content,
                "title": title,
                "begin": self.begin(title, snippet),
                "failures": failures,
            }
        raise BadInput(
            f"{len(failures)} snippets in a row cannot be read; the last: {failures[-1]}. "
            "Check that the files are still there (python -m media check)"
        )

    def candidates(self, n, m, key):
        """Yield the snippet, then its replacements, drawn from its key: first of its own title.

        The last ones are of any title, since a whole file may be lost.
        """
        yield n, m
        rng = rng_of((n, m) if key is None else key, REPLACEMENT)
        for _ in range(self.RETRIES):
            yield n, int(rng.integers(self.counts[n]))
        for other in rng.integers(len(self), size=self.RETRIES).tolist():
            yield other, int(rng.integers(self.counts[other]))

    def content(self, n, m, key):
        """What is seen and heard of snippet m of title n: the first entries of an item."""
        position = CENTRE
        if key is not None:
            position = rng_of(key, SNIPPET_CROP).random(2)
        crops, waveform = self.read(n, m, position)
        return {"video": stack_frames(crops), "waveform": torch.from_numpy(waveform)}

    def read(self, n, m, position=CENTRE):
        """Snippet m of title n: T crops (3, crop, crop), and its waveform (S,), as arrays.

        position  where the crop lies, see `media.reader.crop`

        Raises BadInput, with the file and the time, if it cannot be read whole.
        """
        with self.opened(n, m) as (reader, start):
            return read_snippets(reader, start, 1, self.fmt, self.cropper(reader, position))

    def cropper(self, reader, position):
        """The function that turns an av.VideoFrame of this file into a crop (3, crop, crop)."""

        def crop_frame(frame):
            return crop(reader.resize(frame, self.fmt.short_side), position, self.fmt.crop)

        return crop_frame

    @contextlib.contextmanager
    def opened(self, n, m):
        """Give (the reader of the file of snippet m of title n, the second at which it begins).

        Raises BadInput, with the file and the time, for what cannot be decoded within.
        """
        path, start = self.locate(n, m)
        try:
            yield self.open(path), start
        except BadInput:
            self.close()
            raise
        except (av.error.FFmpegError, OSError, ValueError) as error:
            self.close()
            raise BadInput(f"{path}: cannot be decoded at {start:.1f} s ({error})") from error

    def locate(self, n, m):
        """The file in which snippet m of title n lies, and the second of it at which it begins."""
        file, m = self.file_of(n, m)
        path, start, _ = self.parts[n][file]
        return path, start + m * self.stride

    def begin(self, n, m):
        """The second at which snippet m of title n begins, on the time axis of the title.

        The axis begins with the first snippet of the title. The first snippet of a later file
        begins where the last one of the file before ends, to rounding. So snippets of two files
        never overlap.
        """
        file, m = self.file_of(n, m)
        second = 0.0
        for _, _, count in self.parts[n][:file]:
            second += (count - 1) * self.stride + self.fmt.seconds
        return second + m * self.stride

    def file_of(self, n, m):
        """Which file of title n has its snippet m, and which snippet of that file it is."""
        for file, (_, _, count) in enumerate(self.parts[n]):
            if m < count:
                return file, m
            m -= count
        raise IndexError(f"title {n} has {self.counts[n]} snippets")

    def open(self, path):
        """The reader of a file. It stays open: the next snippet is often in the same file."""
        reader = self.reader
        # After a fork, two processes would share one position in the file.
        if reader is None or reader.path != path or reader.process != os.getpid():
            self.close()
            self.reader = Reader(path, self.language)
        return self.reader

    def close(self):
        if self.reader is not None:
            self.reader.close()
        self.reader = None

    def __getstate__(self):
        return {**self.__dict__, "reader": None}  # an open file cannot be sent to a worker


def open_titles(args, fmt, toy, processes, kind=Titles, world=None, **options):
    """The titles of --data; with --toy, the toy world is rendered first where it is missing.

    toy      the defaults of --toy, with the folder of its films
    kind     Titles, or a class that extends it
    world    options of `make_toy`
    options  of `kind`

    Rank 0 indexes the collection; all ranks get the same titles, or raise the same error.
    """

    def find():
        if args.toy and args.data == toy["data"] and not os.path.exists(args.data):
            folder = Path(args.data).parent
            processes.report(f"no toy world at {folder}: rendering it")
            make_toy(folder, **(world or {}))
        return kind(args.data, fmt, language=args.language, quiet=False, **options)

    return processes.on_rank_0(find)


def check_stride(stride, scenes):
    """Raise BadInput for a stride that makes no grid, or one that scenes are not counted in."""
    if stride is None:
        return
    if not 0 < stride < math.inf:
        raise BadInput(f"--stride {stride:g}: must be above 0, in seconds")
    if scenes:
        raise BadInput(
            f"--stride {stride:g}: must be left out with scenes, whose lengths are counted in "
            "snippets that begin where the last one ends"
        )


def check_titles(progress, train, args):
    """Raise BadInput unless these titles are those that a checkpoint was trained on."""
    # An episode is called by its path, which --data may spell in another way.
    now = list(zip(map(os.path.normpath, train.names), train.counts))
    names_then = map(os.path.normpath, progress["titles"])
    then = list(zip(names_then, progress.get("counts", train.counts)))
    for title_now, title_then in zip_longest(now, then):
        if title_now != title_then:
            name, _ = title_then or title_now
            raise BadInput(
                f"--data {args.data}: no longer holds the titles that {args.out} was trained on, "
                f"each of the same length and in the same order (see {name}); restore them, or "
                "name another --out"
            )


def stack_frames(crops):
    """T crops (3, size, size), arrays -> video uint8 (3, T, size, size)."""
    return torch.from_numpy(np.stack(crops, axis=1))


def collate(samples):
    """Samples of `Titles` -> a batch: tensors are stacked, `failures` is a list for each sample."""
    failures = [sample.pop("failures") for sample in samples]
    return {**default_collate(samples), "failures": failures}


# -------------------------------------------------------------------------------------------------
# DataLoader: the shares of a process, one after another
# -------------------------------------------------------------------------------------------------


def own_shares(sampler, step, args, processes):
    """The shares of this process, from this step of the run on: lists of --share samples."""
    own = processes.own(args.batch_size // args.share)
    first_epoch, first_step = divmod(step, len(sampler))
    for epoch in range(first_epoch, args.epochs):
        sampler.set_epoch(epoch)
        for batch in map(sampler.batch, range(first_step, len(sampler))):
            for share in own:
                yield batch[share * args.share : (share + 1) * args.share]
        first_step = 0


def some_shares(sampler, share, batches=20):
    """Yield the shares of some minibatches of an epoch, evenly spaced: lists of samples."""
    for i in range(batches):
        batch = sampler.batch(i * len(sampler) // batches)
        for place in range(0, len(batch), share):
            yield batch[place : place + share]


def check_two_titles(sampler, args):
    """Raise BadInput unless each share of a HierarchicalSampler holds two titles.

    The losses of the sibling papers need that; Equation 1 does not.

    Where titles come again, the last of one round and the first of the next may be the same. With
    two groups a share, and an odd number of titles, these two are in one share.
    """
    number = len(sampler.titles)
    problem = None
    if number == 1:
        problem = f"one title to train on is long enough for --k {args.k}"
    elif 2 * args.k == args.share and number % 2 == 1 and sampler.groups > number:
        problem = f"of {number} titles to train on some shares would hold one alone"
    if problem is not None:
        raise BadInput(
            f"--data {args.data}: {problem}, and negatives of other titles need two; add films, or "
            "take a smaller --k or --held-out"
        )


def even_samples(titles, number):
    """The samples (n, m, None) of so many snippets of each title, evenly spaced, or of all."""
    samples = []
    for n, M in enumerate(titles.counts):
        for m in np.unique(np.linspace(0, M - 1, min(M, number)).round()):
            samples.append((n, int(m), None))
    return samples


def read_shares(titles, shares, args, processes):
    """Yield a batch of each share. One loader reads for all epochs: its workers never stop.

    shares  lists of samples
    """
    loader = DataLoader(
        titles,
        batch_sampler=shares,
        collate_fn=collate,
        num_workers=args.workers,
        pin_memory=processes.on_gpu,
        worker_init_fn=obey_parent_only,
    )
    return iter(loader)


def share_memory(item):
    """Put the tensors of a dict, list or tuple into shared memory, in a process that reads.

    This is the collate_fn of fine-tuning, which collates nothing. By default a thread of the
    reading process would do it later; if there is no room, that thread drops the item, and the
    training process waits for ever. Here a lack of room is an error.
    """
    if torch.utils.data.get_worker_info() is not None:
        for tensor in tensors_of(item):
            tensor.share_memory_()
    return item


def tensors_of(item):
    """Yield the tensors of a dict, list or tuple, and of those inside it."""
    if torch.is_tensor(item):
        yield item
    elif isinstance(item, dict):
        yield from tensors_of(list(item.values()))
    elif isinstance(item, (list, tuple)):
        for part in item:
            yield from tensors_of(part)


def next_batch(batches, save):
    """Return (the next batch, its failures, the seconds spent waiting for it).

    failures  for each snippet of the batch that was replaced, the reasons

    `save` is called first if the batch cannot be read. It saves on rank 0 only, so a failure on
    another rank costs the time since the last checkpoint.
    """
    tick = time.perf_counter()
    try:
        batch = next(batches)
    except (BadInput, RuntimeError):  # RuntimeError: a reading process died, or lacks memory.
        save()
        raise
    failures = [lines for lines in batch["failures"] if lines]
    return batch, failures, time.perf_counter() - tick


# -------------------------------------------------------------------------------------------------
# Device: the front-ends, a batch at a time
# -------------------------------------------------------------------------------------------------


class VideoFrontEnd(nn.Module):
    """uint8 (B, 3, T, H, W) -> float (B, 3, T, H, W): RGB / 255, less MEAN, divided by STD.

    With a batch key, in training, each sample has its own jitter and its own flip.

    jitter  sigma of the colour jitter (4.2): brightness, contrast and saturation, in this order
            (our choice), are multiplied by factors from U[max(0, 1 - sigma), 1 + sigma]
    flip    mirror each sample with a probability of 1/2; pretraining does not
    """

    # Mean and spread of Kinetics-400, as in torchvision, so that weights fit both (our choice).
    MEAN = (0.43216, 0.394666, 0.37645)
    STD = (0.22803, 0.22145, 0.216989)

    def __init__(self, jitter=0.0, flip=False, mean=MEAN, std=STD):
        super().__init__()
        self.jitter = jitter
        self.flip = flip
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1, 1), persistent=False)

    def forward(self, video, batch_key=None):
        x = video.float() / 255  # (B, 3, T, H, W) in [0, 1]
        if batch_key is not None:
            x = self.augment(x, rng_of(batch_key, COLOUR))
        return (x - self.mean) / self.std

    def augment(self, x, rng):
        if self.jitter:
            low, high = max(0, 1 - self.jitter), 1 + self.jitter
            factors = rng.uniform(low, high, (3, len(x), 1, 1, 1, 1))
            brightness, contrast, saturation = torch.from_numpy(factors).to(x, non_blocking=True)
            x = self.color_jitter(x, brightness, contrast, saturation)
        if self.flip:
            flipped = torch.from_numpy(rng.random(len(x)) < 0.5).to(x.device, non_blocking=True)
            x = torch.where(flipped[:, None, None, None, None], x.flip(-1), x)
        return x

    def color_jitter(self, x, brightness, contrast, saturation):
        x = (x * brightness).clamp(0, 1)
        # The mean is of the clip and not of each frame, since a clip must not flicker.
        mean_gray = gray(x).mean(dim=(2, 3, 4), keepdim=True)  # (B, 1, 1, 1, 1)
        x = (mean_gray + contrast * (x - mean_gray)).clamp(0, 1)
        return (gray(x) + saturation * (x - gray(x))).clamp(0, 1)


def gray(x):
    """Luma (ITU-R 601) of RGB: (B, 3, ...) -> (B, 1, ...)."""
    r, g, b = x.unbind(1)
    return (0.299 * r + 0.587 * g + 0.114 * b).unsqueeze(1)


class AudioFrontEnd(nn.Module):
    """Waveforms (B, S) -> standardised log-mel (B, 1, P, Q).

    The log-mel is ln(mel + 1e-6) of the power spectrogram (our choice: the paper says mel). It
    is standardised by `mean` and `std`, constants of the training sound (`measure`) that the
    checkpoint keeps. With a batch key, in training, bands drop out: the mean fills them.

    drop  greatest width of a band, as a fraction of its axis; a width is U(0, drop) of the axis
    both  True: a band of each axis, as on ESC-50, where `drop` is 0.5 (4.1). False: a band of
          one axis, by coin flip, as in pretraining, where `drop` is 0.25 (our reading of "from
          either temporal or frequency axis", 4.1)
    """

    def __init__(self, fmt, drop=0.25, both=False, mean=0.0, std=1.0):
        super().__init__()
        self.drop = drop
        self.both = both
        self.mean = mean
        self.std = std
        self.mel = torchaudio.transforms.MelSpectrogram(
            fmt.rate, fmt.n_fft, hop_length=fmt.hop, n_mels=fmt.mels
        )

    @torch.no_grad()
    def forward(self, waveform, batch_key=None):
        with torch.autocast(waveform.device.type, enabled=False):  # bf16 would round the filters
            x = (self.log_mel(waveform) - self.mean) / self.std  # (B, P, Q)
        if batch_key is not None:
            x = self.drop_bands(x, rng_of(batch_key, BANDS))
        return x.unsqueeze(1)  # (B, 1, P, Q)

    def log_mel(self, waveform):
        """(..., S) -> (..., P, Q)."""
        return (self.mel(waveform) + 1e-6).log()

    def drop_bands(self, x, rng):
        B, P, Q = x.shape
        if self.both:
            drop_mels = drop_frames = np.full(B, True)
        else:
            drop_mels = rng.random(B) < 0.5
            drop_frames = ~drop_mels
        mel_mask = self.draw_bands(rng, P, drop_mels).to(x.device, non_blocking=True)  # (B, P)
        x = x.masked_fill(mel_mask[:, :, None], 0)
        frame_mask = self.draw_bands(rng, Q, drop_frames).to(x.device, non_blocking=True)  # (B, Q)
        return x.masked_fill(frame_mask[:, None, :], 0)

    def draw_bands(self, rng, size, chosen):
        """bool (B, size): for each `chosen` sample a band, placed uniformly; no band for others."""
        B = len(chosen)
        fraction = rng.uniform(0, self.drop, (B, 1))
        width = fraction * size * chosen[:, None]  # 0 where no band is dropped
        start = rng.random((B, 1)) * (size - width)
        centre = np.arange(size) + 0.5  # of each filter, or of each frame
        return torch.from_numpy((centre >= start) & (centre < start + width))

    @torch.no_grad()
    def measure(self, waveforms):
        """Set `mean` and `std` to those of the log-mel of these waveforms (B, S)."""
        x = self.log_mel(waveforms)
        self.mean = x.mean().item()
        self.std = max(x.std().item(), 1e-3)  # silence has no spread

    def restore(self, state):
        """Set `mean` and `std` to those that a checkpoint keeps, see `front_end_state`."""
        self.mean = state["log_mel_mean"]
        self.std = state["log_mel_std"]


def measure_log_mel(audio_front, train, processes):
    """Set the constants of the log-mel: from the middle snippet of each of up to 64 titles."""

    def measure():
        titles = np.unique(np.linspace(0, len(train) - 1, 64).round().astype(int)).tolist()
        waveforms = [train[n, train.counts[n] // 2, None]["waveform"] for n in titles]
        audio_front.measure(torch.stack(waveforms).to(processes.device))
        return audio_front.mean, audio_front.std

    audio_front.mean, audio_front.std = processes.on_rank_0(measure)


def begin_or_resume(run, model, optimizer, audio_front, train, args, processes):
    """Begin a run, or resume the one that its folder holds.

    A new one measures the constants of the log-mel. A resumed one gets back its weights, its
    optimiser, these constants and its log; BadInput is raised if it was trained on other titles.

    Returns (the steps until then, what was `done` in them, whether the run is resumed).
    """
    if run.checkpoint is None:
        measure_log_mel(audio_front, train, processes)
        run.begin()
        return 0, dict(NOTHING_DONE), False
    check_titles(run.checkpoint["progress"], train, args)
    start, done = resume(run.checkpoint, model, optimizer)
    audio_front.restore(run.checkpoint["front_end"])
    run.begin(run.read_log(start))
    run.log_processes(start)
    run.checkpoint = None  # frees half a gigabyte
    return start, done, True


def embed_held_out(held_out, model, fronts, args, processes):
    """Evenly spaced snippets of held-out titles, with central crops, through the networks.

    fronts  the two front-ends, of video and of audio

    Returns (z_v (B, d), z_a (B, d), title (B,), the failures of all that was read) on rank 0, and
    None on other ranks, or where there are no pairs: that takes two titles, and two snippets of
    one of them.
    """
    samples = even_samples(held_out, args.held_out_snippets)
    has_pairs = len(held_out) >= 2 and len(samples) > len(held_out)
    if not has_pairs:
        return None
    batches = embed_snippets(held_out, samples, args.share, model, fronts, args, processes)
    if processes.rank > 0:
        return None
    z_v, z_a, title, _, failures = zip(*batches)
    z_v, z_a, title = (torch.cat(x).to(processes.device) for x in (z_v, z_a, title))
    return z_v, z_a, title, sum(failures, [])


@torch.no_grad()
def embed_snippets(titles, samples, share, model, fronts, args, processes):
    """Samples through the networks, in testing mode, `share` of them at a time.

    Returns [(z_v (B, d), z_a (B, d), title (B,), begin (B,), failures)] of all batches on rank 0,
    on the CPU, and an empty list on other ranks.
    """
    samples = samples[processes.rank :: processes.world_size]
    shares = [samples[i : i + share] for i in range(0, len(samples), share)]
    own = []
    for batch, video, audio in read_to_test(titles, shares, model, fronts, args, processes):
        with processes.autocast():
            z_v, z_a = model(video, audio)
        failures = sum(batch["failures"], [])
        own.append((z_v.cpu(), z_a.cpu(), batch["title"], batch["begin"], failures))
    return processes.collect_on_rank_0(own)


def read_to_test(titles, shares, model, fronts, args, processes):
    """Yield each of these shares, while the model is in testing mode: (batch, video, audio).

    video  (B, 3, T, H, W) and audio (B, 1, P, Q), as the networks get them, without augmentation
    """
    video_front, audio_front = fronts
    processes.share_buffers(model)  # so that what is measured is what the checkpoint keeps
    model.eval()
    for batch in read_shares(titles, shares, args, processes):
        video = video_front(batch["video"].to(processes.device))
        audio = audio_front(batch["waveform"].to(processes.device))
        yield batch, video, audio
    model.train()


def front_end_state(fmt, video, audio):
    """All that another program needs to feed the networks, as plain values, for the checkpoint."""
    return {
        **dataclasses.asdict(fmt),
        "video_mean": video.mean.flatten().tolist(),
        "video_std": video.std.flatten().tolist(),
        "log_mel_mean": audio.mean,
        "log_mel_std": audio.std,
    }


def log_mel_on_one_thread(waveforms, fmt):
    """float32 (c, S) -> log-mel (c, P, Q), as arrays: for `media.scenes`, which has no tensors.

    It is called in one process for each core, so each process uses one thread.
    """
    torch.set_num_threads(1)
    return AudioFrontEnd(fmt).log_mel(torch.from_numpy(waveforms)).numpy()


# -------------------------------------------------------------------------------------------------
# Labelled sets, for fine-tuning
# -------------------------------------------------------------------------------------------------


class Labeled(Dataset):
    """What the labelled sets share: files, labels, and the clips that are cut from a file (4.1).

    items  [(path, label)], as `media.labels` reads them from the published lists
    fmt    what a clip is made of
    clips  the number of clips of a test file, evenly spaced from its beginning to its end

    A clip is a stretch of a file; a view is what a network gets of it: of a video, one of three
    crops. Item (i, key), to train on: one clip, drawn from the key -> (tensor, label). Item
    (i, None), to test: all V views of a file -> ((V, ...), label). Raises BadInput for a file
    that the lists name and that is not there, and for one that cannot be read.
    """

    kind = None  # "video" or "audio", the stream that is read

    def __init__(self, items, fmt, clips=10):
        self.items = items
        self.fmt = fmt
        self.clips = clips
        for path, _ in items:
            if not os.path.exists(path):
                raise BadInput(f"{path}: not found, though the lists of the set name it")

    def __len__(self):
        return len(self.items)

    def __getitem__(self, item):
        i, key = item
        path, label = self.items[i]
        with contextlib.closing(Reader(path)) as reader:
            if getattr(reader, self.kind) is None:
                raise BadInput(f"{path}: no {self.kind} in it; fetch this file of the set again")
            try:
                return self.read(reader, key), label
            except av.error.FFmpegError as error:
                raise BadInput(f"{path}: cannot be decoded ({error.strerror})") from error

    def clip_times(self, start, end, key):
        """The seconds at which clips begin: one at random, or `clips` of them, evenly spaced.

        In a file that is shorter than a clip, every clip begins at the start.
        """
        slack = max(0.0, end - start - self.fmt.seconds)
        if key is None:
            return start + slack * np.linspace(0, 1, self.clips)
        return start + slack * rng_of(key, CLIP_START).random(1)


class LabeledVideos(Labeled):
    """UCF101, HMDB51: uint8 (3, T, crop, crop) to train on, (3 * clips, 3, T, crop, crop) to test.

    In training, the shorter side is uniform between the two numbers of `scale`, in pixels, and
    the crop is random.
    In testing, each of the clips is cropped three times, at the shorter side of `fmt`: left,
    centre, right, or, if the video is upright, top, centre, bottom. A video that is shorter than
    a clip starts again from its beginning.
    """

    kind = "video"

    def __init__(self, items, fmt, clips=10, scale=(181, 226)):
        super().__init__(items, fmt, clips)
        self.scale = scale

    def read(self, reader, key):
        short_side = self.fmt.short_side
        if key is not None:
            low, high = self.scale
            short_side = int(rng_of(key, CLIP_SCALE).integers(low, high + 1))
        clips = self.read_clips(reader, short_side, key)
        if key is not None:
            position = rng_of(key, CLIP_CROP).random(2)
            return self.crop_clip(clips[0], position)
        height, width, _ = clips[0][0].shape
        positions = [(0.5, 0.0), (0.5, 0.5), (0.5, 1.0)]
        if height > width:
            positions = [(0.0, 0.5), (0.5, 0.5), (1.0, 0.5)]
        views = [self.crop_clip(clip, position) for clip in clips for position in positions]
        return torch.stack(views)  # (3 * clips, 3, T, crop, crop)

    def read_clips(self, reader, short_side, key):
        """For each clip its T images (H, W, 3), from one pass over the file.

        A frame that several clips show is decoded and resized once.
        """
        start, end = reader.span(reader.video, exact=False)
        offsets = np.arange(self.fmt.frames) / self.fmt.fps
        times = self.clip_times(start, end, key)[:, None] + offsets  # (clips, T)
        length = max(end - start, 1 / self.fmt.fps)
        times = start + (times - start) % length  # A short video starts again.
        shown, index = np.unique(times, return_inverse=True)

        def resize(frame):
            return reader.resize(frame, short_side)

        images, _ = reader.read(shown, keep=resize)
        if not images:
            raise BadInput(f"{reader.path}: no frame in it can be decoded")
        return [[images[i] for i in row] for row in index.reshape(times.shape)]

    def crop_clip(self, images, position):
        return stack_frames([crop(image, position, self.fmt.crop) for image in images])


class ESC50(Labeled):
    """ESC-50, DCASE2014: waveform float (S,) to train on, (clips, S) to test.

    Past a file's end there is silence.
    """

    kind = "audio"

    def read(self, reader, key):
        rate, samples = self.fmt.rate, self.fmt.samples
        start, end = reader.span(reader.audio, exact=False)
        length = max(round((end - start) * rate), samples)
        _, waveform = reader.read((), start, length, rate)
        clips = []
        for second in self.clip_times(0, end - start, key):
            first = round(second * rate)
            clips.append(waveform[first : first + samples])
        if key is not None:
            return torch.from_numpy(clips[0])
        return torch.from_numpy(np.stack(clips))


if __name__ == "__main__":
    command = " ".join(sys.argv[1:2])
    elsewhere = {"show": "python -m lab.show", "bench": "python -m lab.bench read"}
    moved(f"data.py {command}", elsewhere.get(command, f"python -m media {command}"))
