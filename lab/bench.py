"""How fast this machine reads snippets and trains.

    python -m lab.bench read datasets/movies        what a snippet costs to read, part by part
    python -m lab.bench step                        a training step of the paper's size, in a table
    python -m lab.bench step --share 32 64 128      the same, for steps of these many snippets
    python -m lab.bench step --variants as-trained compiled+padded

lab/README.md has the figures of the machine that this repository was written on.
"""

import argparse
import contextlib
import cProfile
import dataclasses
import gc
import itertools
import math
import os
import pstats
import resource
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader

from data import AudioFrontEnd, Titles, VideoFrontEnd, collate
from harness.errors import BadInput, add_command, make_parser, one_line_errors
from harness.run import cudnn_problem, dotted
from lab.compare import table_head, table_row
from lab.show import check_format
from loss import nce_loss
from media.format import Format
from media.prepare import PREPARED, write_media
from media.reader import AudioConsumer, Reader, VideoConsumer
from models import AudioVisualModel, BatchNorm3d, SpatialConv, TemporalConv
from sampler import HierarchicalSampler

BATCH = 16  # snippets of a batch of the DataLoader
NODE_RATE = 469  # snippets/s of the paper's 8 GPUs: 10 epochs of 3,600 films in 42 hours (4.1)
PAPER_RATE = 59  # snippets/s of one of them
# Of the square matrices whose product measures a machine.
MATRIX_SIDES = {"cuda": (4096, 8192), "cpu": (2048,)}


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


def bench_read(source, fmt, snippets=400, workers=2, language=None):
    """Print what a snippet costs to read: alone and part by part; in a DataLoader; in memory."""
    torch.set_num_threads(1)
    titles = Titles(source, fmt, language, quiet=False)
    count = max(snippets, 2 * BATCH)
    rng = np.random.default_rng(0)
    samples = draw_samples(titles, rng, count, k=1)
    print_cost(titles, samples)
    for k in (1, 16):
        print_rate(titles, draw_samples(titles, rng, count, k), k, workers)
    before = peak_memory()
    for sample in samples:
        titles[sample]
    after = peak_memory()
    print(f"memory {before:.0f} MB, {after:.0f} MB after {len(samples)} snippets more")


def draw_samples(titles, rng, count, k):
    """Draw random titles, and k random snippets of each: [(n, m, key)]."""
    drawn_titles = rng.integers(len(titles), size=count // k).tolist()
    samples = []
    for i, n in enumerate(drawn_titles):
        for j in range(k):
            m = int(rng.integers(titles.counts[n]))
            key = (0, 0, i, j)
            samples.append((n, m, key))
    return samples


def print_cost(titles, samples):
    """Print the milliseconds of a snippet whose file is opened for it, on one core."""
    titles[samples[0]]  # Whatever is set up once is not timed.
    times = []
    for sample in samples:
        titles.close()
        start = time.perf_counter()
        titles[sample]
        times.append(1000 * (time.perf_counter() - start))
    # Once more for the parts, because the profiler costs a little itself.
    with cProfile.Profile() as profile:
        for sample in samples:
            titles.close()
            titles[sample]
    total, parts = split_cost(profile, len(samples))
    in_words = " + ".join(f"{name} {cost:.1f}" for name, cost in parts.items())
    print(
        f"a snippet, its file opened for it, on one core: median {np.median(times):.1f} ms, "
        f"the fastest {np.min(times):.1f}; profiled {total:.1f} = {in_words}"
    )


def split_cost(profile, count):
    """Return the milliseconds of one of `count` snippets, and of each part of its reading."""
    stats = pstats.Stats(profile).stats

    def cost(function):
        """Milliseconds that a snippet spends in the function and in all that it calls."""
        code = function.__code__
        _, _, _, seconds, _ = stats[code.co_filename, code.co_firstlineno, code.co_name]
        return 1000 * seconds / count

    total = cost(Titles.__getitem__)
    parts = {
        "open": cost(Reader.__init__),
        "seek": cost(Reader.seek),
        "resize": cost(Reader.resize),
        "decode video": cost(VideoConsumer.take) - cost(Reader.resize),
        "resample": cost(AudioConsumer.to_mono),
        "decode sound": cost(AudioConsumer.take) - cost(AudioConsumer.to_mono),
    }
    parts["the rest"] = total - sum(parts.values())
    return total, parts


def print_rate(titles, samples, k, workers):
    """Print how many snippets/s a DataLoader reads, with k of a title at a time."""
    loader = DataLoader(titles, BATCH, sampler=samples, num_workers=workers, collate_fn=collate)
    batches = iter(loader)
    next(batches)  # The workers have started.
    start = time.perf_counter()
    count = sum(len(batch["video"]) for batch in batches)
    rate = count / (time.perf_counter() - start)
    print(
        f"{workers} workers, {k} of a title at a time: {rate:.0f} snippets/s, "
        f"as many as {rate / PAPER_RATE:.1f} GPUs take at the paper's {PAPER_RATE} each"
    )


def peak_memory():
    """The most memory that this process has had, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":
        return peak / 1e6  # A Mac counts bytes.
    return peak / 1e3  # Linux counts KB.


# --------------------------------------------------------------------------------------------------
# A training step, and what can be changed in it
# --------------------------------------------------------------------------------------------------

# A variant is "as-trained", or the names of its changes, joined by "+".
AS_TRAINED = "as-trained"
CHANGES = {
    "folded": "BatchNorm takes time and height as one axis, as it does in training on a GPU",
    "unfolded": "BatchNorm takes time and height as two axes, as it does in training on a CPU",
    "flat": "temporal convolutions are computed in 2-D, with height and width as one axis",
    "channels-first": "weights, and so the maps, are in PyTorch's default layout",
    "padded": "another network: its midplanes are rounded up to multiples of 8",
    "untuned": "cuDNN chooses its algorithms without timing them",
    "unfused": "a GPU runs Adam as PyTorch's default, and not as one fused kernel",
    "fp32": "a GPU computes in fp32, with neither bf16 nor TF32, as a CPU always does",
    "films": "snippets are read from films by a DataLoader, and not made up",
    "compiled": "torch.compile compiles the networks for their one shape, which takes minutes",
}
ON_GPU = [AS_TRAINED, *(name for name in CHANGES if name != "folded"), "compiled+flat"]
ON_CPU = [AS_TRAINED, "folded", "films"]


def changes_of(variant):
    """The names of a variant's changes, a set."""
    return set(variant.split("+")) - {AS_TRAINED}


def precision_of(changes, device):
    """In which the networks run: as in training, but for a change."""
    if device.type == "cuda" and "fp32" not in changes:
        return torch.bfloat16
    return torch.float32


class TrainingStep:
    """One step of the loop of pretrain.py, on one process, with some changes.

    changes  names of CHANGES
    device   where the networks are
    """

    def __init__(self, changes, width, fmt, device):
        self.device = device
        self.precision = precision_of(changes, device)
        torch.backends.cudnn.allow_tf32 = "fp32" not in changes
        torch.backends.cudnn.benchmark = "untuned" not in changes
        self.video_front = VideoFrontEnd().to(device)
        self.audio_front = AudioFrontEnd(fmt).to(device)
        self.model = build_model(changes, width).to(device)
        fused = device.type == "cuda" and "unfused" not in changes
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4, fused=fused)
        self.steps = 0

    def run(self, batch):
        """Train on a batch of video uint8 (B, 3, T, H, W) and waveforms float (B, S)."""
        batch_key = (0, 0, self.steps, 0)
        # The loop keeps BatchNorm's statistics until it knows that the gradients are finite.
        statistics = [buffer.clone() for buffer in self.model.buffers()]
        self.optimizer.zero_grad()
        video = batch["video"].to(self.device, non_blocking=True)
        video = self.video_front(video, batch_key)  # (B, 3, T, H, W)
        waveform = batch["waveform"].to(self.device, non_blocking=True)
        audio = self.audio_front(waveform, batch_key)  # (B, 1, P, Q)
        half = self.precision == torch.bfloat16
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            z_v, z_a = self.model(video, audio)  # (B, d)
        loss = nce_loss(z_v, z_a)
        loss.backward()
        norm = get_total_norm([weights.grad for weights in self.model.parameters()])
        # As in the loop, the host waits here for the device, and updates the weights after it.
        torch.stack([loss.detach(), norm]).tolist()
        self.optimizer.step()
        del statistics
        self.steps += 1


def build_model(changes, width):
    """The networks of pretrain.py, in training mode, with those of the changes that are theirs."""
    model = AudioVisualModel(width)
    if "padded" in changes:
        pad_midplanes(model)
    if "channels-first" in changes:
        model.to(memory_format=torch.contiguous_format)
    for module in model.modules():
        if isinstance(module, BatchNorm3d) and "folded" in changes:
            module.fold = True
        if isinstance(module, BatchNorm3d) and "unfolded" in changes:
            module.fold = False
        if isinstance(module, TemporalConv) and "flat" in changes:
            module.__class__ = FlatTemporalConv  # It keeps its weights.
    if "compiled" in changes:
        model.compile(dynamic=False)
    return model


def pad_midplanes(model):
    """Round the midplanes of the video network up to multiples of 8, which suit a GPU better.

    At width 64 those of 45, 230, 460 and 921 channels get 48, 232, 464 and 928. This is another
    network than the paper's, and it has more weights.
    """
    for module in model.modules():
        is_factored = isinstance(module, nn.Sequential) and isinstance(module[0], SpatialConv)
        if is_factored:
            spatial, temporal = module[0], module[3]
            midplanes = 8 * math.ceil(spatial.out_channels / 8)
            size, stride = spatial.kernel_size[1], spatial.stride[1]
            module[0] = SpatialConv(spatial.in_channels, midplanes, size, stride)
            module[1] = BatchNorm3d(midplanes)
            module[3] = TemporalConv(midplanes, temporal.out_channels, temporal.stride[0])
    model.video.to(memory_format=torch.channels_last_3d)


class FlatTemporalConv(TemporalConv):
    """A TemporalConv, with the same result, that is computed in 2-D: over time, and all pixels."""

    def forward(self, x):
        height_and_width = x.shape[3:]
        weight = self.weight[..., 0]  # (C', C, 3, 1)
        maps = F.conv2d(x.flatten(3), weight, None, self.stride[:2], self.padding[:2])
        return maps.unflatten(3, height_and_width)  # (B, C', T', H, W)


# --------------------------------------------------------------------------------------------------
# The batches of a training step
# --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def made_up_batches(share, fmt, device):
    """Give an endless iterator over one random batch."""
    batch = {
        "video": torch.randint(256, (share, 3, fmt.frames, fmt.crop, fmt.crop), dtype=torch.uint8),
        "waveform": 0.1 * torch.randn(share, fmt.samples),
    }
    if device.type == "cuda":
        batch = {name: values.pin_memory() for name, values in batch.items()}
    yield itertools.repeat(batch)


@contextlib.contextmanager
def film_batches(share, fmt, device, workers, steps):
    """Give an iterator over the batches of `steps` steps, which a DataLoader reads from films.

    The films are written here, to a temporary folder, and are removed at the end.
    """
    with tempfile.TemporaryDirectory(prefix="television-bench-") as folder:
        films = Path(folder, "films")
        films.mkdir()
        for i in range(8):
            write_film(films / f"{i}.mkv", fmt, seed=i)
        # The index of these films is not kept in the user's own cache.
        with patch.dict(os.environ, XDG_CACHE_HOME=folder):
            titles = Titles(films, fmt)
        sampler = HierarchicalSampler(titles.counts, share, k=math.gcd(16, share))
        batches = []
        for step in range(steps):
            epoch, step_of_epoch = divmod(step, len(sampler))
            sampler.set_epoch(epoch)
            batches.append(sampler.batch(step_of_epoch))
        pinned = device.type == "cuda"
        yield iter(
            DataLoader(
                titles,
                batch_sampler=batches,
                collate_fn=collate,
                num_workers=workers,
                pin_memory=pinned,
            )
        )


def write_film(path, fmt, snippets=20, seed=0):
    """Write a prepared film, 16:9: noise over a moving gradient, and noise as its sound.

    The noise is so strong that a snippet takes as many bytes as one of natural footage, about
    140 KB, and as long to decode.
    """
    rng = np.random.default_rng(seed)
    height = fmt.short_side - fmt.short_side % 2
    width = 2 * round(height * 16 / 9 / 2)
    noise = rng.normal(0, 5.5, (2 * height, 2 * width, 3)).astype(np.float32)
    place = np.add.outer(np.arange(height), np.arange(width))[:, :, None]

    def image(t):
        gradient = 128 + 100 * np.sin((place + 4 * t) * np.float32([0.01, 0.015, 0.02]))
        top, left = rng.integers(height), rng.integers(width)
        pixels = gradient + noise[top : top + height, left : left + width]
        return pixels.clip(0, 255).astype(np.uint8)

    def pieces():
        for m in range(snippets):
            images = [image(m * fmt.frames + t) for t in range(fmt.frames)]
            yield images, rng.normal(0, 0.1, fmt.samples).astype(np.float32)

    write_media(path, pieces(), fmt, **PREPARED)


# --------------------------------------------------------------------------------------------------
# Timing
# --------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Row:
    """What was measured of a variant, a row of the table."""

    variant: str
    share: int  # snippets of a step
    problem: str | None = None  # why there are no figures
    rates: list = dataclasses.field(default_factory=list)  # snippets/s of each block of steps
    product: float = math.nan  # FLOP/s of a matrix product in the same precision
    allocated: float | None = None  # the most bytes of tensors on the GPU, in the timed steps
    reserved: float | None = None  # the most bytes that PyTorch took from the GPU for them
    start: float = math.nan  # seconds until the first step was done
    waiting: float = math.nan  # of the time of the steps, the part spent waiting for a batch

    @property
    def rate(self):
        return statistics.median(self.rates)

    def cells(self, snippet_flop):
        """The cells of this row, as text.

        snippet_flop  the FLOP of a snippet in the paper's networks, also where they are padded
        """
        if self.problem is not None:
            return [self.variant, str(self.share), self.problem, *["-"] * (len(COLUMNS) - 3)]
        return [
            self.variant,
            str(self.share),
            f"{figure(self.rate)} ({figure(min(self.rates))} to {figure(max(self.rates))})",
            figure(self.rate * snippet_flop / 1e12),
            f"{self.rate * snippet_flop / self.product:.0%}",
            gigabytes(self.allocated),
            gigabytes(self.reserved),
            f"{self.start:.1f}",
            f"{self.waiting:.0%}",
        ]


COLUMNS = (
    "variant",
    "snippets a step",
    "snippets/s",
    "TFLOP/s",
    "of the matrix product",
    "memory of tensors, GB",
    "memory taken, GB",
    "first step, s",
    "waiting for data",
)


def figure(value):
    """Three digits, and never an exponent for large numbers."""
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def gigabytes(count):
    return "-" if count is None else f"{count / 1e9:.1f}"


def bench_step(args, device):
    """Print a table of the speed of a training step: a row for each variant and number of snippets.

    The limit is what the machine reaches in a large matrix product, in the same precision.
    """
    fmt = Format.of(args)
    snippet_flop = count_flop(args.width, fmt)
    print_machine(device, snippet_flop)
    print("\n".join(table_head(COLUMNS)), flush=True)
    rows = []
    for variant in args.variants:
        for share in args.share:
            row = Row(variant, share)
            measure(row, args, fmt, device)
            rows.append(row)
            print(table_row(row.cells(snippet_flop)), flush=True)
    print_legend(args.variants, args.workers)
    print_limit(rows, snippet_flop)


def count_flop(width, fmt):
    """The FLOP of a snippet in the networks, forward and backward. No device computes them."""
    # It takes 50 MB, which `bench_read` should not count.
    from torch.utils.flop_counter import FlopCounterMode

    B = 2
    with torch.device("meta"):
        model = AudioVisualModel(width)
        video = torch.empty(B, 3, fmt.frames, fmt.crop, fmt.crop)
        audio = torch.empty(B, 1, fmt.mels, fmt.samples // fmt.hop + 1)
    with FlopCounterMode(display=False) as counter:
        z_v, z_a = model(video, audio)
        (z_v.sum() + z_a.sum()).backward()
    return counter.get_total_flops() / B


def measure(row, args, fmt, device):
    """Fill in a row. What goes wrong becomes its problem, because the other rows still count."""
    changes = changes_of(row.variant)
    try:
        time_variant(row, changes, args, fmt, device)
    except Exception as error:
        row.problem = problem_of(error)
    # Nothing refers to the model any more, since the exception is forgotten.
    if "compiled" in changes:
        torch.compiler.reset()
    gc.collect()
    if device.type == "cuda":
        with contextlib.suppress(RuntimeError):  # A GPU that has failed fails here too.
            torch.cuda.empty_cache()


def problem_of(error):
    """What went wrong, in one short line that fits into a table."""
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:100]}".replace("|", "/")


def time_variant(row, changes, args, fmt, device):
    """Fill in a row. The product is timed before and after: a shared machine's speed drifts."""
    on_gpu = device.type == "cuda"
    warm_up = 5 if on_gpu else 1
    batches_of = made_up_batches(row.share, fmt, device)
    if "films" in changes:
        if on_gpu:
            warm_up += 2 * args.workers  # A DataLoader has read so many batches ahead by then.
        batches_of = film_batches(row.share, fmt, device, args.workers, warm_up + args.steps)
    precision = precision_of(changes, device)
    before = product_speed(device, precision)
    make_step = partial(TrainingStep, changes, args.width, fmt, device)
    with batches_of as batches:
        time_steps(row, make_step, batches, warm_up, args.steps)
    if on_gpu:
        row.allocated = torch.cuda.max_memory_allocated()
        row.reserved = torch.cuda.max_memory_reserved()
    row.product = (before + product_speed(device, precision)) / 2


def time_steps(row, make_step, batches, warm_up, steps):
    """Fill in the speed of a variant: of up to four blocks of steps, after some to warm up."""
    start = time.perf_counter()
    step = make_step()
    step.run(next(batches))
    synchronize(step.device)
    row.start = time.perf_counter() - start
    for _ in range(warm_up - 1):
        step.run(next(batches))
    if step.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()  # cuDNN takes more while it times its algorithms.
    total, waited = 0.0, 0.0
    for block in np.array_split(range(steps), min(4, steps)):
        synchronize(step.device)
        start = time.perf_counter()
        for _ in block:
            tick = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - tick
            step.run(batch)
        synchronize(step.device)
        seconds = time.perf_counter() - start
        total += seconds
        row.rates.append(len(block) * row.share / seconds)
    row.waiting = waited / total


def product_speed(device, dtype):
    """The FLOP/s of the product of two square matrices, of the size that does best."""
    repeats = 20 if device.type == "cuda" else 4
    best = 0.0
    for side in MATRIX_SIDES[device.type]:
        matrix = torch.randn(side, side, device=device, dtype=dtype)
        matrix @ matrix
        synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats):
            matrix @ matrix
        synchronize(device)
        seconds = (time.perf_counter() - start) / repeats
        best = max(best, 2 * side**3 / seconds)  # multiplications and additions
    return best


def synchronize(device):
    """Wait until the device has done all that it was given. A CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize()


# --------------------------------------------------------------------------------------------------
# What is printed around the table
# --------------------------------------------------------------------------------------------------


def print_machine(device, snippet_flop):
    """Print the device and its software, what it has to compute, and how fast it multiplies."""
    words = [f"CPU, threads: {torch.get_num_threads()}", f"torch {torch.__version__}"]
    precision = torch.float32
    if device.type == "cuda":
        version = torch.backends.cudnn.version()
        memory = torch.cuda.get_device_properties(device).total_memory
        words[0] = f"{torch.cuda.get_device_name(device)}, {memory / 1e9:.0f} GB"
        words += [f"CUDA {torch.version.cuda}", f"cuDNN {dotted(version)}"]
        precision = torch.bfloat16
        problem = cudnn_problem()
        if problem:
            print(f"warning: {problem}")
    speed = product_speed(device, precision) / 1e12
    name = str(precision).removeprefix("torch.")
    words.append(f"a matrix product in {name} at {figure(speed)} TFLOP/s")
    print(f"{', '.join(words)}; a snippet takes {figure(snippet_flop / 1e9)} GFLOP")


def print_legend(variants, workers):
    print()
    print(f"{AS_TRAINED}: the step of pretrain.py, on a made-up batch")
    named = set().union(*(changes_of(variant) for variant in variants))
    for name, meaning in CHANGES.items():
        if name in named:
            print(f"{name}: {meaning}")
    if "films" in named:
        print(f"The DataLoader of films has {workers} workers, and the films are new on the disk.")


def print_limit(rows, snippet_flop):
    """Print how near the fastest row comes to a matrix product, and to the paper's speed."""
    rows = [row for row in rows if row.problem is None and "padded" not in changes_of(row.variant)]
    if not rows:
        return
    fastest = max(rows, key=lambda row: row.rate)
    limit = fastest.product / snippet_flop
    print(
        f"fastest: {fastest.variant} with {fastest.share} snippets a step, "
        f"{figure(fastest.rate)} snippets/s of a limit of {figure(limit)}: "
        f"{fastest.rate / limit:.0%}; the paper's 8 GPUs trained {NODE_RATE} snippets/s"
    )


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


def parse_args(argv=None):
    parser = make_parser(__doc__, "python -m lab.bench")
    commands = parser.add_subparsers(dest="command", required=True)
    add_read_flags(add_command(commands, "read", "time the reading of snippets"))
    step = "time a training step of the paper's size, computed in several ways"
    add_step_flags(add_command(commands, "step", step))
    return parser.parse_args(argv)


def add_read_flags(parser):
    add = parser.add_argument
    add("source", help="a folder of films (files) and shows (folders), or LIST.txt")
    Format.add_flags(parser)
    add("--language", help="prefer the audio track of this language: eng, deu, ...")
    add("--snippets", type=int, default=400, help="to read for each figure")
    add("--workers", type=int, default=2, help="processes that read")


def add_step_flags(parser):
    add = parser.add_argument
    names = ", ".join(CHANGES)
    add(
        "--variants",
        nargs="+",
        type=parse_variant,
        help=f"{AS_TRAINED}, or changes joined by +, of {names}; default on a GPU nearly all, on "
        f"a CPU {' '.join(ON_CPU)}",
    )
    add("--share", nargs="+", type=int, help="snippets of a step; default on a GPU 64, on a CPU 2")
    add("--steps", type=int, help="that are timed; default on a GPU 20, on a CPU 2")
    add("--width", type=int, default=64, help="channels of the networks' first stage")
    add("--workers", type=int, help="processes that read films; default one a core, at most 8")
    Format.add_flags(parser, "short_side", "crop")


def parse_variant(text):
    unknown = changes_of(text) - set(CHANGES)
    if unknown:
        names = ", ".join(CHANGES)
        raise argparse.ArgumentTypeError(f"{text}: must be {AS_TRAINED}, or + between: {names}")
    return text


def set_step_defaults(args, on_gpu):
    """Fill in what was not given, which depends on the device: a step on a CPU takes seconds."""
    defaults = {
        "variants": ON_GPU if on_gpu else ON_CPU,
        "share": [64] if on_gpu else [2],
        "steps": 20 if on_gpu else 2,
        "workers": min(8, os.cpu_count()),
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def main(args):
    check_format(args)
    if args.command == "step":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        set_step_defaults(args, on_gpu=device.type == "cuda")
        check_step(args)
        bench_step(args, device)
        return
    check_above_0(args, "snippets", "workers")
    bench_read(args.source, Format.of(args), args.snippets, args.workers, args.language)


def check_step(args):
    check_above_0(args, "steps", "workers")
    if min(args.share) < 2:
        raise BadInput(f"--share {min(args.share)}: must be 2 or more, since one has no negatives")
    if args.width < 8 or args.width % 8:
        raise BadInput(f"--width {args.width}: must be a multiple of 8")


def check_above_0(args, *names):
    for name in names:
        value = getattr(args, name)
        if value < 1:
            raise BadInput(f"--{name} {value}: must be above 0")


if __name__ == "__main__":
    fixable = (BadInput, OSError, av.error.FFmpegError)
    with one_line_errors("python -m lab.bench", "nothing is lost", fixable):
        main(parse_args())
