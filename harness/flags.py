"""The flags that pretrainings share, what must hold of them, and how they name a run."""

import math
from pathlib import Path

from harness.errors import BadInput

# Settings that may differ when a run is resumed, since they change nothing that is trained.
MAY_CHANGE = ("out", "processes", "workers", "compile", "save_minutes", "keep", "max_bad")
MAY_CHANGE += ("measure_every",)


def add_run_flags(add, with_source=True):
    """Add the flags of all pretrainings that are not of a method. `add` is parser.add_argument.

    with_source  whether the help names the section of the paper of this repository
    """
    held_out = "fraction of the titles to measure on only"
    if with_source:
        held_out += " (4.2)"
    add("--language", help="audio track to prefer, as files tag it: eng, deu (our choice: none)")
    add("--held-out", type=float, default=0.1, help=held_out)
    add("--held-out-snippets", type=int, default=32, help="of each held-out title (our choice)")
    add("--measure-every", type=float, default=1.0, help="epochs between measurements (our choice)")
    add("--seed", type=int, default=0, help="of all that is drawn at random")
    max_bad = "stop when more than this fraction of the snippets cannot be read (our choice)"
    add("--max-bad", type=float, default=0.01, help=max_bad)
    add("--workers", type=int, default=8, help="processes that read, for each training process")
    add("--save-minutes", type=float, default=10, help="between checkpoints; 0: at each step")
    add("--keep", action="store_true", help="keep the weights of each epoch, as epochN.pt")


def rules_of_run(args, world_size):
    """What must hold of the flags that all pretrainings have: see `check_rules`."""
    shares = args.batch_size // max(1, args.share)
    rules = [
        ("batch_size", args.batch_size > 0, "above 0"),
        (
            "share",
            args.share >= 2 and args.batch_size % args.share == 0,
            f"2 or more, and a divisor of --batch-size, {args.batch_size}",
        ),
        (
            "batch_size",
            shares % world_size == 0,
            f"{args.share} for each process or a multiple, since each of the {world_size} takes "
            "whole shares (or lower --share)",
        ),
        (
            "crop",
            0 < args.crop <= args.short_side,
            f"above 0, and --short-side ({args.short_side}) or less",
        ),
        ("width", args.width >= 8 and args.width % 8 == 0, "a multiple of 8"),
        ("held_out", 0 <= args.held_out < 1, "from 0 to below 1"),
        ("held_out_snippets", args.held_out_snippets >= 2, "2 or more, of which to make pairs"),
    ]
    positive = ("epochs", "lr", "fps", "frames", "rate", "n_fft", "hop", "mels")
    for name in (*positive, "measure_every"):
        rules.append((name, getattr(args, name) > 0, "above 0"))
    for name in ("warmup", "seed", "workers", "max_bad", "save_minutes"):
        rules.append((name, getattr(args, name) >= 0, "0 or more"))
    return [*rules, rule_of_window(args)]


def rule_of_window(args):
    """What must hold of --n-fft: half a window has fewer samples than the sound of a snippet.

    A window of the spectrogram is centred on its time, so half of it is mirrored at each end.
    """
    # The samples of a snippet are rounded, and may be half a sample less than this.
    has_room = (args.n_fft // 2 + 0.5) * args.fps < args.rate * args.frames
    twice = f"less than twice the {args.frames} / {args.fps:g} s of a snippet at {args.rate} Hz"
    return "n_fft", has_room, twice


def check_rules(args, rules):
    """Raise BadInput for the first flag whose rule does not hold: (its name, whether, the rule).

    Each number has to be finite, and a seed one that torch takes.
    """
    rules_of_all = []
    for name, value in vars(args).items():
        if isinstance(value, float):
            rules_of_all.append((name, math.isfinite(value), "a finite number"))
    if hasattr(args, "seed"):
        rules_of_all.append(("seed", args.seed < 2**63, "below 2 ** 63"))
    for name, holds, rule in (*rules_of_all, *rules):
        if not holds:
            raise BadInput(f"--{name.replace('_', '-')} {getattr(args, name)}: must be {rule}")


def names_of_flags(args, parser, elsewhere):
    """What the name of a run says of flags that are not at their defaults: -seed1-gather.

    elsewhere  flags that the name has already, and those that make no other run of it

    Of a pretraining with --toy on films of its own it says that, too.
    """
    name = ""
    for flag, value in vars(args).items():
        if flag in elsewhere or value == parser.get_default(flag):
            continue
        name += f"-{flag.replace('_', '-')}"
        if flag == "data":
            name += f"-{Path(value).resolve().name}"
        elif isinstance(value, list):
            name += "-".join(map(str, value))
        elif value is not True:
            name += f"{value}"
    if getattr(args, "toy", False) and args.data != parser.get_default("data"):
        name += "-toy"
    return name
