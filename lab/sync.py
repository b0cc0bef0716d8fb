"""Synchronisation on any folder: `python -m lab.evaluate sync`.

How often is the sound of a snippet more similar to its own video than to another one's, and the
reverse? This is `loss.synchronisation`, which a run measures on its held-out titles, for any
checkpoint and any folder, by the embeddings z_v and z_a of both heads.

    sync_same     against other snippets of its title
    sync_other    against snippets of other titles

In a toy world snippets of one shot repeat: some are in phase with their neighbours, so 100 % is
out of reach. Where truth.csv lies beside the folder, the pairs of one title are told apart:

    sync_same_shot      of one shot
    sync_same_scene     of one scene, and of two shots
    sync_other_scene    of two scenes

A snippet counts among these three if it lies in one shot as a whole. One that is longer than what
truth.csv counts in, or placed otherwise, may lie in two shots: it is left out of these three (our
choice).

Similarities are those of training: dot products where pretrain.py had no --tau, and else of unit
length. A paper's checkpoint without `tau` in its arguments, like that of AVTS, compares embeddings
of unit length too. The scale of a similarity changes nothing, so neither does the number of tau.

B snippets; d = 512, the size of an embedding.
"""

import csv
import math
from functools import partial
from pathlib import Path

import torch

from data import Titles, embed_snippets, even_samples
from finetune import load_checkpoint
from harness.errors import BadInput
from harness.flags import check_rules
from lab.checkpoint import (
    add_checkpoint_flags,
    add_evaluation_flags,
    evenly,
    format_of,
    fronts_of,
    report_start,
    rules_of_evaluation,
    run_once,
    sources_of,
)
from loss import CHANCE, fraction_of_wins, kinds_of_pairs
from media.toy import TOY_FORMAT
from models import AudioVisualModel

ROUNDING = 1e-6  # snippets
SHARE = 64  # snippets that go through the networks together; it changes no figure


def add_sync_flags(parser):
    add = parser.add_argument
    add_checkpoint_flags(add)
    snippets = "of each title, evenly spaced (our choice); the similarities of all pairs have to "
    snippets += "fit into memory: lower it, or --titles, for a large collection"
    add("--snippets", type=int, default=64, help=snippets)
    seed = "by which lab.compare sets this run beside others; it changes no figure"
    add("--seed", type=int, default=0, help=seed)
    add_evaluation_flags(add)


def check_sync_args(args):
    check_rules(args, [("snippets", args.snippets >= 1, "1 or more"), *rules_of_evaluation(args)])


# -------------------------------------------------------------------------------------------------
# Embeddings
# -------------------------------------------------------------------------------------------------


def load_model(path, sources):
    """Both backbones and both heads of a checkpoint, and the temperature of its similarities.

    That is None where the embeddings kept their length. Raises BadInput for other heads than ours.
    """
    checkpoint = load_checkpoint(path)
    video, audio = sources
    networks = {"video": video.network, "audio": audio.network}
    model = AudioVisualModel(video.width, networks=networks)
    for name, part in model.named_children():
        try:
            part.load_state_dict(checkpoint[name])
        except (KeyError, RuntimeError) as error:
            raise BadInput(
                f"--ckpt {path}: its {name} is missing or does not fit that of models.py; name a "
                "checkpoint.pt of pretrain.py or of one of papers/"
            ) from error
    return model, checkpoint["args"].get("tau", 1.0)


# -------------------------------------------------------------------------------------------------
# The truth of a toy world
# -------------------------------------------------------------------------------------------------


def read_truth(source, titles):
    """[[(scene, shot)]] of the snippets of each title, or None without a truth.csv that fits.

    As for `lab.show`, the file lies beside the folder of the films. It fits if there are as many
    titles, and each lasts as long, to the snippets that do not fill its files.
    """
    path = Path(source).parent / "truth.csv"
    if not path.exists():
        return None
    truth = {}
    try:
        with open(path) as file:
            for row in csv.DictReader(file):
                place = (int(row["scene"]), int(row["shot"]))
                truth.setdefault(int(row["title"]), []).append(place)
    except (KeyError, TypeError, ValueError, csv.Error):
        return None  # It is not of a toy world.
    truth = [truth[n] for n in sorted(truth)]
    if len(truth) != len(titles):
        return None
    for rows, part in zip(truth, titles.parts):
        seconds = len(rows) * TOY_FORMAT.seconds / len(part)  # of each file
        for _, _, count in part:
            if titles.fmt.whole_snippets(seconds) != count:
                return None
    return truth


def place_of(titles, truth, n, m):
    """The (scene, shot) of snippet m of title n, or None if it lies in two shots."""
    file, m = titles.file_of(n, m)
    # Of a show, truth.csv counts all that its files hold, and the last snippet may not be whole.
    begin = file * len(truth[n]) / len(titles.parts[n])  # in snippets of truth.csv
    ratio = titles.fmt.seconds / TOY_FORMAT.seconds
    first = math.floor(begin + m * ratio + ROUNDING)
    after = math.ceil(begin + (m + 1) * ratio - ROUNDING)
    places = set(truth[n][first:after])
    return places.pop() if len(places) == 1 else None


def kinds_in_truth(title, places):
    """Which pairs (i, j) of one title are of which kind: {same_shot, ...}, each (B, B) of bool.

    title   (B,)
    places  the (scene, shot) of each sample, or None
    """
    known = torch.tensor([place is not None for place in places])
    scene = torch.tensor([-1 if place is None else place[0] for place in places])
    shot = torch.tensor([-1 if place is None else place[1] for place in places])
    pairs = kinds_of_pairs(title)["same"] & known[:, None] & known[None, :]  # (B, B)
    same_scene = scene[:, None] == scene[None, :]
    same_shot = shot[:, None] == shot[None, :]
    return {
        "same_shot": pairs & same_shot,
        "same_scene": pairs & same_scene & ~same_shot,
        "other_scene": pairs & ~same_scene,
    }


# -------------------------------------------------------------------------------------------------
# The run
# -------------------------------------------------------------------------------------------------

WORDS = {
    "sync_same": "the same title",
    "sync_same_shot": "the same title, the same shot",
    "sync_same_scene": "the same title, the same scene, another shot",
    "sync_other_scene": "the same title, another scene",
    "sync_other": "other titles",
}


def kinds_to_compare(title, args):
    """The pairs of `loss.kinds_of_pairs`. Raises BadInput where there are none to compare."""
    try:
        return kinds_of_pairs(title)
    except ValueError as error:
        raise BadInput(
            f"--data {args.data}: there are no pairs to compare; take two titles or more, and of "
            "one of them --snippets 2 or more"
        ) from error


def report_sync(titles, samples, sources, truth, run, processes):
    """Print what is done, before it begins."""
    report = processes.report
    report_start("snippets", len(samples), titles, sources, report)
    if truth is not None:
        report("truth     shots and scenes are those of truth.csv, beside the folder")
    report(f"run       {run.out}, on {processes.world_size} x {processes.device.type}")


def finish_sync(args, titles, truth, tau, batches):
    """Measure. Returns what result.json has, and the lines to print.

    batches  of `data.embed_snippets`
    """
    z_v, z_a, title, begin, failures = zip(*batches)
    z_v, z_a, title, begin = (torch.cat(x) for x in (z_v, z_a, title, begin))
    failures = sum(failures, [])
    kinds = kinds_to_compare(title, args)
    pairs = {"same": kinds["same"], "other": kinds["other"]}
    lines = []
    if truth is not None:
        # Snippets follow each other without a gap, so that the time tells which of them it is.
        numbers = (begin / titles.fmt.seconds).round().long()
        samples = zip(title.tolist(), numbers.tolist())
        places = [place_of(titles, truth, n, m) for n, m in samples]
        pairs |= kinds_in_truth(title, places)
        if None in places:
            lines.append(f"{places.count(None)} of {len(places)} snippets lie in two shots")
    pairs = {name: of_kind for name, of_kind in pairs.items() if of_kind.any()}
    try:
        fractions = fraction_of_wins(z_v, z_a, pairs, tau)
    except ValueError as error:
        raise BadInput(f"{error}; name another --ckpt") from error
    found = {f"sync_{name}": fraction for name, fraction in fractions.items()}
    counts = {f"sync_{name}": of_kind.sum().item() for name, of_kind in pairs.items()}
    for name, words in WORDS.items():
        if name in found:
            lines.append(f"{name:<16} {found[name]:.3f}  {counts[name]:>8} pairs of {words}")
    chance = f"chance is {CHANCE['sync_same']:g}"
    lines.append(f"{len(title)} snippets of {len(titles)} titles; {chance}")
    if failures:
        lines[-1] += f"; {len(failures)} could not be read and were replaced: {failures[0]}"
    numbers = {"snippets": len(title), "titles": len(titles), "failures": failures}
    return {**found, "pairs": counts, **numbers}, lines


def measure_sync(args, run, processes, sources, fmt):
    """All that `run_once` leaves to this evaluation."""
    model, tau = load_model(args.ckpt, sources)

    def open_films():
        titles = Titles(args.data, fmt, args.language, quiet=False)
        truth = read_truth(args.data, titles)
        chosen = evenly(range(len(titles)), args.titles)
        if truth is not None:
            truth = [truth[n] for n in chosen]
        return titles.subset(chosen), truth

    titles, truth = processes.on_rank_0(open_films)
    samples = even_samples(titles, args.snippets)
    kinds_to_compare(torch.tensor([n for n, _, _ in samples]), args)
    run.begin()
    run.save({})  # From here on the folder is this run's.
    report_sync(titles, samples, sources, truth, run, processes)
    video, _ = sources
    fronts = fronts_of(video.front_end, fmt, processes.device)
    model.to(processes.device)
    batches = embed_snippets(titles, samples, SHARE, model, fronts, args, processes)
    return processes.on_rank_0(partial(finish_sync, args, titles, truth, tau, batches))


def run_sync(args):
    check_sync_args(args)
    sources = sources_of(args.ckpt)
    fmt = format_of(sources[0].front_end)
    run_once(args, sources, partial(measure_sync, sources=sources, fmt=fmt))
