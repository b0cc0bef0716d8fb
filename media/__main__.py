"""Look at a collection of films, prepare it for fast reading, or render the toy world.

    python -m media toy datasets/toy                    render small films and two labelled sets
    python -m media check FILMS                         list titles, their lengths and problems
    python -m media prepare FILMS datasets/movies       transcode FILMS to what is read fastest
    python -m media prepare FILMS datasets/movies --shard 2/4    on the second of four machines

FILMS is a folder of films (files) and shows (folders), or LIST.txt with a title on each line:
a path or a URL, or several of a show, separated by tabs. A command has --help, too.
"""

import argparse
import os
import re

import av

from harness.errors import BadInput, moved, one_line_errors, refuse
from media.collection import check
from media.format import Format
from media.prepare import prepare
from media.toy import make_toy

COLLECTION = "a folder of films (files) and shows (folders), or LIST.txt"

# What Ctrl-C costs, for each command.
INTERRUPTED = {
    "toy": "nothing is kept, and the same command starts again",
    "check": "the files it has looked at are remembered, and the same command resumes",
    "prepare": "finished files are kept, and the same command resumes",
}

FROM_ZERO = ("seed", "artefacts")  # Flags that may be 0; other numbers are above 0.


def parse_args(argv=None):
    """Parse the command line. Raises BadInput for a flag that is unknown or malformed."""
    parser = argparse.ArgumentParser(
        prog="python -m media",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = refuse
    commands = parser.add_subparsers(dest="command", required=True)
    add_toy_flags(add_command(commands, "toy", "render the toy world"))
    add_check_flags(add_command(commands, "check", "list titles, their lengths and problems"))
    add_prepare_flags(add_command(commands, "prepare", "transcode to what is read fastest"))
    return parser.parse_args(argv)


def add_command(commands, name, help):
    command = commands.add_parser(name, help=help, description=help)
    command.error = refuse
    return command


def add_toy_flags(parser):
    add = parser.add_argument
    add("dir", help="a folder that does not exist yet, or is empty")
    add("--seed", type=int, default=0, help="the same seed gives the same bytes")
    artefacts = "strength of what betrays a title, 0 to 1 (default 0.5)"
    add("--artefacts", type=float, default=0.5, help=artefacts)
    add("--titles", type=int, default=64, help="number of films (default 64)")
    add("--snippets", type=int, default=128, help="of 1.6 s, in a film (default 128)")
    clips = "labelled clips of each class, to train and to test on (default 20 40)"
    add("--clips", type=int, nargs=2, metavar=("TRAIN", "TEST"), default=[20, 40], help=clips)


def add_check_flags(parser):
    parser.add_argument("source", help=COLLECTION)
    Format.add_flags(parser, "frames", "fps")
    add_language(parser)
    steps = "global batch size, for the number of steps an epoch (default 512)"
    parser.add_argument("--batch-size", type=int, default=512, help=steps)
    parser.add_argument("--scenes", action=ScenesMoved, nargs=0, help=argparse.SUPPRESS)


def add_prepare_flags(parser):
    parser.add_argument("source", help=COLLECTION)
    parser.add_argument("target", help="the folder to write")
    Format.add_flags(parser, "frames", "fps", "short_side", "rate")
    add_language(parser)
    workers = "files at a time (default: one a core)"
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help=workers)
    shard = "i/n: do the share of the i-th of n machines (default 1/1)"
    parser.add_argument("--shard", default="1/1", help=shard)


def add_language(parser):
    language = "prefer the audio track of this language, as the files tag it: eng, deu, ..."
    parser.add_argument("--language", help=language)


class ScenesMoved(argparse.Action):
    """Ends `check --scenes`, which was a flag once."""

    def __call__(self, *_):
        moved("media check --scenes", "python -m lab.show FOLDER --scenes")


def check_args(args):
    """Raise BadInput for a number out of range."""
    for name, value in vars(args).items():
        if type(value) not in (int, float):
            continue
        flag = "--" + name.replace("_", "-")
        if name in FROM_ZERO:
            if value < 0:
                refuse(f"{flag} {value}: must be 0 or more")
        elif value <= 0:
            refuse(f"{flag} {value}: must be above 0")
    if args.command == "toy":
        train, test = args.clips
        if train <= 0 or test < 0:
            refuse(f"--clips {train} {test}: TRAIN must be above 0, and TEST 0 or more")


def parse_shard(text):
    """ "2/4" -> (2, 4). Raises BadInput if that is not one of n shares."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if match:
        i = int(match[1])
        n = int(match[2])
        if 1 <= i <= n:
            return i, n
    raise BadInput(f"--shard {text}: must be i/n, the i-th of n, such as 1/4")


def main(args):
    check_args(args)
    if args.command == "toy":
        make_toy(
            args.dir,
            seed=args.seed,
            artefacts=args.artefacts,
            titles=args.titles,
            snippets=args.snippets,
            clips=tuple(args.clips),
        )
    elif args.command == "check":
        check(args.source, Format.of(args), args.language, args.batch_size)
    else:
        shard = parse_shard(args.shard)
        prepare(args.source, args.target, Format.of(args), args.language, args.workers, shard)


if __name__ == "__main__":
    with one_line_errors("python -m media", "nothing was done"):
        args = parse_args()
    fixable = (BadInput, OSError, av.error.FFmpegError)
    with one_line_errors("python -m media", INTERRUPTED[args.command], fixable):
        main(args)
