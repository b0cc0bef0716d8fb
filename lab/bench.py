"""How fast this machine reads snippets and trains.

    python -m lab.bench read datasets/movies    what a snippet costs to read, part by part
    python -m lab.bench step                    the speed of a training step of the paper's size
    python -m lab.bench step --batch 64         the same, and whether 64 snippets fit in the GPU

lab/README.md has the figures of the machine that this repository was written on.
"""

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
from harness.errors import BadInput, HelpFormatter, make_parser, one_line_errors, refuse
from lab.show import check_format
from media.format import Format
from media.reader import AudioConsumer, Reader, VideoConsumer
from models import AudioVisualModel

BATCH = 16  # snippets of a batch of the DataLoader
PAPER_RATE = 59  # snippets/s of one of the paper's GPUs: 10 epochs of 3,600 films in 42 hours on 8
MATRIX_SIDE = 4096  # of the square matrices whose product measures the machine


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
# A training step
# --------------------------------------------------------------------------------------------------


def bench_step(batch=2, width=64, steps=2):
    """Print the speed of a forward and backward pass of the paper's size, and the GPU's memory.

    The limit is what the machine reaches in a large matrix product, in the same precision.
    """
    from torch.utils.flop_counter import FlopCounterMode

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = AudioVisualModel(width=width).to(device)
    matrix = torch.randn(MATRIX_SIDE, MATRIX_SIDE, device=device, dtype=dtype)
    video = torch.randn(batch, 3, 16, 158, 158, device=device)
    audio = torch.randn(batch, 1, 96, 301, device=device)

    def train():
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            z_v, z_a = model(video, audio)
        (z_v.square().mean() + z_a.square().mean()).backward()

    def multiply():
        return matrix @ matrix

    with FlopCounterMode(display=False) as counter:
        train()
    snippet_flop = counter.get_total_flops() / batch
    # The product is timed before and after, because the speed of a shared machine drifts.
    seconds_before = seconds_of(multiply, steps)
    speed = batch / seconds_of(train, steps)  # snippets/s
    seconds_after = seconds_of(multiply, steps)
    product_flop = 2 * MATRIX_SIDE**3  # multiplications and additions
    flop_per_second = (product_flop / seconds_before + product_flop / seconds_after) / 2
    print(
        f"{device.type}, {dtype}, {torch.get_num_threads()} threads: "
        f"{snippet_flop / 1e9:.0f} GFLOP a snippet, "
        f"matrix product {flop_per_second / 1e9:.0f} GFLOP/s"
    )
    limit = flop_per_second / snippet_flop
    print(f"{speed:.2f} snippets/s of a limit of {limit:.2f}: {speed / limit:.0%}")
    if device.type == "cuda":
        print_gpu_memory(model, batch)


def print_gpu_memory(model, batch):
    """Print the most GPU memory of the steps so far, and what Adam would take beside it."""
    peak = torch.cuda.max_memory_reserved()
    total = torch.cuda.get_device_properties(0).total_memory
    adam = 2 * 4 * sum(weights.numel() for weights in model.parameters())  # two fp32 moments
    print(
        f"{batch} snippets take {peak / 1e9:.1f} GB of the GPU's {total / 1e9:.1f} GB, "
        f"and Adam {adam / 1e9:.2g} GB more"
    )


def seconds_of(work, steps):
    from torch.utils.benchmark import Timer  # It takes 90 MB, which `bench_read` should not count.

    timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
    return timer.timeit(steps).mean


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


def parse_args(argv=None):
    parser = make_parser(__doc__, "python -m lab.bench")
    commands = parser.add_subparsers(dest="command", required=True)
    add_read_flags(add_command(commands, "read", "time the reading of snippets"))
    step = "time a training step of the paper's size; on a GPU, print the memory that it takes"
    add_step_flags(add_command(commands, "step", step))
    return parser.parse_args(argv)


def add_command(commands, name, help):
    command = commands.add_parser(name, help=help, description=help, formatter_class=HelpFormatter)
    command.error = refuse
    return command


def add_read_flags(parser):
    add = parser.add_argument
    add("source", help="a folder of films (files) and shows (folders), or LIST.txt")
    Format.add_flags(parser)
    add("--language", help="prefer the audio track of this language: eng, deu, ...")
    add("--snippets", type=int, default=400, help="to read for each figure")
    add("--workers", type=int, default=2, help="processes that read")


def add_step_flags(parser):
    add = parser.add_argument
    add(
        "--batch",
        type=int,
        default=2,
        help="snippets of a step; on a GPU, raise it to find what fits before a run",
    )
    add("--width", type=int, default=64, help="channels of the networks' first stage")


def main(args):
    if args.command == "step":
        check_above_0(args, "batch", "width")
        bench_step(args.batch, args.width)
        return
    check_format(args)
    check_above_0(args, "snippets", "workers")
    bench_read(args.source, Format.of(args), args.snippets, args.workers, args.language)


def check_above_0(args, *names):
    for name in names:
        value = getattr(args, name)
        if value < 1:
            raise BadInput(f"--{name} {value}: must be above 0")


if __name__ == "__main__":
    fixable = (BadInput, OSError, av.error.FFmpegError)
    hints = {torch.OutOfMemoryError: "the step needs more GPU memory; lower --batch or --width"}
    with one_line_errors("python -m lab.bench", "nothing is lost", fixable, hints):
        main(parse_args())
