"""What the networks are fed, to look at: a snippet, or the scenes of a file or a collection.

    python -m lab.show FILE --at 00:31:00    snippet.png: frames above the log-mel, on one clock
    python -m lab.show FILE --scenes         snippet.png: novelty, and a row of pictures a scene
    python -m lab.show FOLDER --scenes       a table of the scenes of each title, printed

A file, or a folder, of the toy world needs the sizes of --toy: --frames 8 --short-side 34
--crop 28 --rate 16000 --n-fft 1024 --hop 256 --mels 64.
"""

# T frames, P mel filters, Q audio frames, S samples of sound of a snippet; M snippets of a file.

import argparse
import collections
import contextlib
import csv
import itertools
import math
import os
from functools import partial
from pathlib import Path

import av
import numpy as np
import torch
from matplotlib.figure import Figure

from data import AudioFrontEnd, Titles, log_mel_on_one_thread
from harness.errors import BadInput, drawable, make_parser, one_line_errors, printable
from harness.files import in_own_process
from harness.flags import check_rules, rule_of_window
from media.collection import probe
from media.format import TOLERANCE, Format
from media.reader import CENTRE, Reader, crop, read_snippets
from media.scenes import NOVEL, find_scenes
from media.toy import TOY_FPS, TOY_FRAMES

COLUMNS = 24  # pictures in the row of a scene, at most
DPI = 80


# --------------------------------------------------------------------------------------------------
# A snippet
# --------------------------------------------------------------------------------------------------


def show_snippet(path, at, fmt, out, language=None):
    """Draw the snippet that begins `at` seconds into a file, as the networks get it."""
    crops, waveform = read_snippet(path, at, fmt, language)
    log_mel = AudioFrontEnd(fmt).log_mel(torch.from_numpy(waveform))  # (P, Q)
    strip = np.concatenate(crops, axis=2).transpose(1, 2, 0)  # (crop, T * crop, 3)
    figure = Figure(figsize=(fmt.frames, 4), layout="constrained")
    frame_panel, sound_panel = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    end = at + fmt.seconds
    frame_panel.imshow(strip, extent=(at, end, 0, 1), aspect="auto")
    name = drawable(os.path.basename(path))
    title = f"{name}: {fmt.frames} frames of {fmt.crop} x {fmt.crop} pixels"
    frame_panel.set(yticks=[], title=title)
    extent = (at, end, 0, fmt.mels)
    sound_panel.imshow(log_mel.numpy(), extent=extent, origin="lower", aspect="auto", cmap="magma")
    sound_panel.set(xlabel="s", ylabel="mel filter")
    figure.savefig(out, dpi=DPI, format="png")


def read_snippet(path, at, fmt, language):
    """Return T central crops (3, crop, crop) and the waveform (S,).

    Raises BadInput for a file without frames or sound, and for a time that holds no snippet.
    """
    with contextlib.closing(Reader(path, language)) as reader:
        if reader.video is None or reader.audio is None:
            missing = "video" if reader.video is None else "audio"
            raise BadInput(f"{path}: no {missing} in it; a snippet needs frames and sound")
        start, end = reader.span(reader.video, reader.audio)
        last = end - start - fmt.seconds
        if last + TOLERANCE < 0:
            raise BadInput(f"{path}: shorter than {fmt.seconds:g} s, a snippet; name another file")
        if not 0 <= at <= last + TOLERANCE:
            raise BadInput(
                f"--at {at:g} s: must be from 0 to {max(last, 0):.1f} s, for a whole snippet"
            )

        def crop_middle(frame):
            return crop(reader.resize(frame, fmt.short_side), CENTRE, fmt.crop)

        return read_snippets(reader, start + at, 1, fmt, crop_middle)


# --------------------------------------------------------------------------------------------------
# The scenes of a file
# --------------------------------------------------------------------------------------------------


def show_scenes(path, fmt, out, language=None):
    """Draw the novelty over a file, and a row for each scene: what stays in its snippets."""
    info = probe(path, language)
    count = fmt.whole_snippets(info.end - info.start)
    if info.problem or count == 0:
        problem = info.problem or f"shorter than a snippet of {fmt.seconds:g} s"
        raise BadInput(f"{path}: {problem}; name another file")
    log_mel = partial(log_mel_on_one_thread, fmt=fmt)
    scenes, novelty, pictures = in_own_process(
        find_scenes, path, info.start, count, fmt, log_mel, language
    )
    figure = draw_scenes(scenes, novelty, pictures, fmt.seconds, os.path.basename(path))
    figure.savefig(out, dpi=DPI, format="png")


def draw_scenes(scenes, novelty, pictures, seconds, name):
    """Return a figure of the novelty (M,) above a row of pictures for each scene.

    scenes    ranges of snippets
    pictures  one of each snippet, RGB from 0 to 255
    seconds   that a snippet lasts
    """
    sheet, row_height = contact_sheet(scenes, pictures)
    sheet_height, sheet_width, _ = sheet.shape
    # Inches; the scale keeps the pixels of the sheet square.
    width = 14
    novelty_height = 2.5
    scenes_height = width * sheet_height / sheet_width
    figure = Figure(figsize=(width, novelty_height + scenes_height), layout="constrained")
    novelty_panel, scene_panel = figure.subplots(
        2, 1, height_ratios=(novelty_height, scenes_height)
    )

    starts = [scene[0] * seconds for scene in scenes]
    boundaries = [start / 60 for start in starts[1:]]  # minutes
    novelty_panel.plot(np.arange(len(novelty)) * seconds / 60, novelty, lw=0.8)
    novelty_panel.vlines(boundaries, 0, novelty.max(initial=NOVEL), color="red", lw=0.8)
    novelty_panel.axhline(NOVEL, ls=":", color="gray")
    title = f"{drawable(name)}: {len(scenes)} scenes"
    novelty_panel.set(title=title, xlabel="minutes", ylabel="novelty")

    scene_panel.imshow(sheet)
    middles = (np.arange(len(scenes)) + 0.5) * row_height - 0.5  # of the rows, in pixels
    scene_panel.set_yticks(middles, [clock_text(start) for start in starts])
    scene_panel.set(xticks=[], ylabel="scenes, from")
    return figure


def contact_sheet(scenes, pictures):
    """Return a row of pictures for each scene, RGB, and the height of a row in pixels.

    A scene of more than COLUMNS snippets shows every second, third, ... of them.
    """
    height, width, _ = pictures[0].shape
    # White lines of one pixel lie between the pictures.
    row_height = height + 1
    column_width = width + 1
    shape = (len(scenes) * row_height, COLUMNS * column_width, 3)
    sheet = np.full(shape, 255, np.uint8)
    for row, scene in enumerate(scenes):
        y = row * row_height
        step = math.ceil(len(scene) / COLUMNS)
        for column, m in enumerate(scene[::step]):
            x = column * column_width
            sheet[y : y + height, x : x + width] = pictures[m]
    return sheet, row_height


def clock_text(seconds):
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


# --------------------------------------------------------------------------------------------------
# The scenes of a collection
# --------------------------------------------------------------------------------------------------


def print_scenes(source, fmt, language=None):
    """Print the scenes of each title, and totals; how many are right, where the truth is known."""
    titles = Titles(source, fmt, language, quiet=False, scenes=True)
    print(f"{'scenes':>7} {'M_n':>6} {'mean':>6}  title")
    for name, lengths in zip(titles.names, titles.scenes):
        count = sum(lengths)
        mean = count / len(lengths)
        print(f"{len(lengths):7} {count:6} {mean:6.1f}  {printable(name)}")
    scenes = sum(len(lengths) for lengths in titles.scenes)
    total = sum(titles.counts)
    print(
        f"{len(titles)} titles, {total} snippets of {fmt.seconds:g} s; "
        f"{scenes} scenes of {total / scenes:.1f} snippets on average"
    )
    truth = Path(source).parent / "truth.csv"
    if truth.exists():
        print_precision(titles, truth)


def print_precision(titles, truth):
    """Compare the boundaries found with those that truth.csv of a toy world holds."""
    try:
        with open(truth) as file:
            rows = list(csv.DictReader(file))
        snippets = collections.Counter(int(row["title"]) for row in rows)
        true = true_boundaries(rows)
    except (KeyError, TypeError, ValueError, csv.Error):
        print(f"{printable(truth)}: is not of a toy world, not compared")
        return
    if [snippets[n] for n in sorted(snippets)] != titles.counts:
        sizes = f"--frames {TOY_FRAMES} --fps {TOY_FPS}"
        print(f"{truth}: has other snippets, not compared; those of the toy world need {sizes}")
        return
    found = found_boundaries(titles.scenes)
    right = len(found & true)
    precision = right / max(1, len(found))
    recall = right / max(1, len(true))
    print(
        f"boundaries: {len(found)} found of {len(true)}, {right} of them right: "
        f"precision {precision:.3f}, recall {recall:.3f}"
    )


def found_boundaries(scenes):
    """Return {(title, snippet)} of the snippets with which a scene begins.

    The first scene of a title is left out. scenes[n] has the lengths of the scenes of title n.
    """
    boundaries = set()
    for n, lengths in enumerate(scenes):
        first_snippets = np.cumsum(lengths)[:-1].tolist()
        boundaries.update((n, m) for m in first_snippets)
    return boundaries


def true_boundaries(rows):
    """Return the same of the rows of truth.csv."""
    boundaries = set()
    for before, row in itertools.pairwise(rows):
        if row["title"] == before["title"] and row["scene"] != before["scene"]:
            boundaries.add((int(row["title"]), int(row["snippet"])))
    return boundaries


# --------------------------------------------------------------------------------------------------
# Command line
# --------------------------------------------------------------------------------------------------


def parse_args(argv=None):
    parser = make_parser(__doc__, "python -m lab.show")
    add = parser.add_argument
    add("source", help="a media file, or its URL; for --scenes also a folder or LIST.txt")
    Format.add_flags(parser)
    add("--language", help="prefer the audio track of this language, as files tag it: eng, deu")
    add("--at", type=clock_time, default=0.0, help="where the snippet begins: 00:31:00, or seconds")
    add("--scenes", action="store_true", help="show all scenes, as --w scene finds them")
    add("--out", default="snippet.png", help="the picture to write, a PNG")
    return parser.parse_args(argv)


def clock_time(text):
    """Return the seconds of "00:31:00", "31:00" or "1860"."""
    try:
        total = 0.0
        for part in text.split(":"):
            total = 60 * total + float(part)
        return total
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text}: must be a time such as 00:31:00, 31:00 or 1860 (seconds)"
        ) from None


def check_format(args):
    """Raise BadInput for sizes that no snippet can have."""
    sizes = Format.of(args)
    rules = [(name, value > 0, "above 0") for name, value in vars(sizes).items()]
    fits = sizes.crop <= sizes.short_side
    rules.append(("crop", fits, f"--short-side ({sizes.short_side}) or less"))
    check_rules(sizes, [*rules, rule_of_window(sizes)])


def main(args):
    check_format(args)
    fmt = Format.of(args)
    if "://" not in args.source and not os.path.exists(args.source):
        raise BadInput(
            f"{args.source}: no such file or folder; name a media file, or its URL; "
            "with --scenes also a folder or LIST.txt"
        )
    is_collection = os.path.isdir(args.source) or args.source.endswith(".txt")
    if is_collection and not args.scenes:
        raise BadInput(
            f"{args.source}: not a media file; name one file of it, "
            "or add --scenes for the scenes of all its titles"
        )
    if is_collection:
        print_scenes(args.source, fmt, args.language)
        return
    if args.scenes:
        show_scenes(args.source, fmt, args.out, args.language)
    else:
        show_snippet(args.source, args.at, fmt, args.out, args.language)
    print(printable(args.out))


if __name__ == "__main__":
    fixable = (BadInput, OSError, av.error.FFmpegError)
    with one_line_errors("python -m lab.show", "run the same command again", fixable):
        main(parse_args())
