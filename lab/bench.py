"""How fast this machine reads snippets and trains.

    python -m lab.bench read datasets/movies    what a snippet costs to read, part by part
    python -m lab.bench step                    the speed of a training step of the paper's size

README.md has the figures of the machine that this repository was written on.
"""

import argparse
import cProfile
import pstats
import resource
import sys
import time

import av
import numpy as np
import torch
from torch.utils.data import DataLoader

from data import Titles, collate
from harness.errors import BadInput, one_line_errors, refuse
from lab.show import check_format
from media.format import Format
from media.reader import AudioConsumer, Reader, VideoConsumer
from models import AudioVisualModel

BATCH = 16  # snippets of a batch of the DataLoader
PAPER_RATE = 59  # snippets/s of one of the paper's GPUs: 10 epochs of 3,600 films in 42 hours on 8
SIDE = 4096  # of the square matrices whose product measures the machine


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
    samples = []
    for i, n in enumerate(rng.integers(len(titles), size=count // k).tolist()):
        for j in range(k):
            m = int(rng.integers(titles.counts[n]))
            samples.append((n, m, (0, 0, i, j)))
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
    # {(file, line, name of a function): (_, _, _, seconds in it and in all that it calls, _)}
    spent = pstats.Stats(profile).stats

    def cost(function):
        code = function.__code__
        return 1000 / count * spent[code.co_filename, code.co_firstlineno, code.co_name][3]

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
    read = sum(len(batch["video"]) for batch in batches)
    rate = read / (time.perf_counter() - start)
    print(
        f"{workers} workers, {k} of a title at a time: {rate:.0f} snippets/s, "
        f"as many as {rate / PAPER_RATE:.1f} GPUs take at the paper's {PAPER_RATE} each"
    )


def peak_memory():
    """The most memory that this process has had, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)  # bytes on a Mac, else KB


# --------------------------------------------------------------------------------------------------
# A training step
# --------------------------------------------------------------------------------------------------


def bench_step(batch=2, steps=2):
    """Print the speed of a forward and backward pass of the paper's size.

    The limit is what the machine reaches in a large matrix product, in the same precision.
    """
    from torch.utils.flop_counter import FlopCounterMode

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = AudioVisualModel().to(device)
    square = torch.randn(SIDE, SIDE, device=device, dtype=dtype)
    video = torch.randn(batch, 3, 16, 158, 158, device=device)
    audio = torch.randn(batch, 1, 96, 301, device=device)

    def step():
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            z_v, z_a = model(video, audio)
        (z_v.square().mean() + z_a.square().mean()).backward()

    def multiply():
        return square @ square

    with FlopCounterMode(display=False) as counter:
        step()
    operations = counter.get_total_flops() / batch  # of a snippet
    before = seconds_of(multiply, steps)
    speed = batch / seconds_of(step, steps)  # snippets/s
    after = seconds_of(multiply, steps)
    # Twice measured, because the speed of a shared machine drifts. Operations a second.
    product = SIDE**3 / before + SIDE**3 / after
    print(
        f"{device.type}, {dtype}, {torch.get_num_threads()} threads: "
        f"{operations / 1e9:.0f} GFLOP a snippet, matrix product {product / 1e9:.0f} GFLOP/s"
    )
    limit = product / operations
    print(f"{speed:.2f} snippets/s of a limit of {limit:.2f}: {speed / limit:.0%}")


def seconds_of(work, steps):
    from torch.utils.benchmark import Timer  # It takes 90 MB, which `bench_read` should not count.

    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.timeit(steps).mean


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        "python -m lab.bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = refuse
    commands = parser.add_subparsers(dest="command", required=True)
    read = commands.add_parser("read", help="time the reading of snippets")
    read.error = refuse
    read.add_argument("source", help="a folder of films (files) and shows (folders), or LIST.txt")
    Format.add_flags(read)
    read.add_argument("--language", help="prefer the audio track of this language: eng, deu, ...")
    read.add_argument("--snippets", type=int, default=400, help="to read for each figure")
    read.add_argument("--workers", type=int, default=2, help="processes that read")
    step = commands.add_parser("step", help="time a training step of the paper's size")
    step.error = refuse
    return parser.parse_args(argv)


def main(args):
    if args.command == "step":
        bench_step()
        return
    check_format(args)
    for name in ("snippets", "workers"):
        if getattr(args, name) < 1:
            raise BadInput(f"--{name} {getattr(args, name)}: must be above 0")
    bench_read(args.source, Format.of(args), args.snippets, args.workers, args.language)


if __name__ == "__main__":
    fixable = (BadInput, OSError, av.error.FFmpegError)
    with one_line_errors("python -m lab.bench", "nothing is lost", fixable):
        main(parse_args())
