"""Look at a collection of films, prepare it for fast reading, or render the toy world.

    python -m media toy datasets/toy                    render small films and two labelled sets
    python -m media check FILMS                         list titles, their lengths and problems
    python -m media prepare FILMS datasets/movies       transcode FILMS to files that read fast
    python -m media prepare FILMS datasets/movies --shard 2/4    on the second of four machines

FILMS is a folder of films (files) and shows (folders), or LIST.txt with a title on each line:
a path or a URL, or several of a show, separated by tabs. A command has --help, too.
"""

import argparse
import re

import av

from harness.errors import BadInput, add_command, make_parser, moved, one_line_errors, refuse
from media.collection import check
from media.format import Format
from media.prepare import prepare
from media.toy import TOY_FPS, make_toy

COLLECTION = "a folder of films (files) and shows (folders), or LIST.txt"

# What Ctrl-C costs, for each command.
INTERRUPTED = {
    "toy": "nothing is kept, and the same command starts again",
    "check": "the files it has looked at are remembered, and the same command resumes",
    "prepare": "finished files are kept, and the same command resumes",
}

FROM_ZERO = ("seed", "artefacts", "tiring")  # Flags that may be 0; other numbers are above 0.


def parse_args(argv=None):
    """Parse the command line. Raises BadInput for a flag that is unknown or malformed."""
    parser = make_parser(__doc__, prog="python -m media")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help, add_flags in (
        ("toy", "render the toy world", add_toy_flags),
        ("check", "list titles, their lengths and problems", add_check_flags),
        ("prepare", "transcode to files that read fast", add_prepare_flags),
    ):
        add_flags(add_command(commands, name, help))
    return parser.parse_args(argv)


def add_toy_flags(parser):
    add = parser.add_argument
    add("dir", help="a folder that does not exist yet, or is empty")
    add("--seed", type=int, default=0, help="the same seed gives the same bytes")
    artefacts = "strength of what betrays a title, 0 to 1"
    add("--artefacts", type=float, default=0.5, help=artefacts)
    add("--titles", type=int, default=64, help="number of films, or of shows")
    add("--snippets", type=int, default=128, help="length of a file, in snippets of 1.6 s")
    episodes = "files of a title: above 1, each is a show whose episodes share what betrays it"
    add("--episodes", type=int, default=1, help=episodes)
    clips = "labelled clips of each class, to train and to test on"
    add("--clips", type=int, nargs=2, metavar=("TRAIN", "TEST"), default=[20, 40], help=clips)
    fps = "frames a second, a multiple of 5; snippets last 1.6 s at any"
    add("--fps", type=int, default=TOY_FPS, help=fps)
    add_gop(add)
    tiring = "share of an action's motion and loudness that is lost at the end of a shot, 0 to 1"
    add("--tiring", type=float, default=0.0, help=tiring)


def add_check_flags(parser):
    parser.add_argument("source", help=COLLECTION)
    Format.add_flags(parser, "frames", "fps")
    add_language(parser)
    steps = "global batch size, for the number of steps an epoch"
    parser.add_argument("--batch-size", type=int, default=512, help=steps)
    parser.add_argument("--scenes", action=ScenesMoved, nargs=0, help=argparse.SUPPRESS)


def add_prepare_flags(parser):
    parser.add_argument("source", help=COLLECTION)
    parser.add_argument("target", help="the folder to write")
    Format.add_flags(parser, "frames", "fps", "short_side", "rate")
    add_language(parser)
    workers = "files at a time; one for each core that the job may use if not given"
    parser.add_argument("--workers", type=int, help=workers)
    add_gop(parser.add_argument)
    shard = "i/n: do the share of the i-th of n machines"
    parser.add_argument("--shard", default="1/1", help=shard)


def add_gop(add):
    gop = "frames of a group of pictures: 1 makes each a key frame; a snippet's if not given"
    add("--gop", type=int, help=gop)


def add_language(parser):
    add = parser.add_argument
    language = "prefer the audio track of this language, as the files tag it: eng, deu, ..."
    add("--language", help=language)
    require = "skip files without an audio track of --language (the paper's are all English, 4.1)"
    add("--require-language", action="store_true", help=require)


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
    """ "2/4" -> (2, 4): (machine, machines). Raises BadInput for what is no such share."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if match:
        machine = int(match[1])
        machines = int(match[2])
        if 1 <= machine <= machines:
            return machine, machines
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
            episodes=args.episodes,
            fps=args.fps,
            gop=args.gop,
            tiring=args.tiring,
        )
    elif args.command == "check":
        check(
            args.source,
            Format.of(args),
            language=args.language,
            batch_size=args.batch_size,
            require_language=args.require_language,
        )
    else:
        prepare(
            args.source,
            args.target,
            Format.of(args),
            language=args.language,
            workers=args.workers,
            shard=parse_shard(args.shard),
            require_language=args.require_language,
            gop=args.gop,
        )


if __name__ == "__main__":
    with one_line_errors("python -m media", "nothing was done"):
        args = parse_args()
    fixable = (BadInput, OSError, av.error.FFmpegError)
    with one_line_errors("python -m media", INTERRUPTED[args.command], fixable):
        main(args)
