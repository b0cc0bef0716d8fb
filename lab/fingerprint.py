"""Robust fingerprinting: `python -m lab.evaluate fingerprint`.

The gallery is of clean clips. A query is one of these clips, distorted, and should find its own
(R@1, R@5). The abstract of the Temporal paper (Jenni, Black and Collomosse, 2023) names this test,
on VGG-Sound. All else is our choice:

    features    of the last maps of both backbones, averaged, as in the other evaluations. The heads
                are left out: a paper trains its heads for its own question, and papers differ.
    similarity  cosine; of sight and sound together, the sum of both. A tie counts against the
                network, so of identical clips none is found.
    beside it   an untrained network of the same shape, and what takes no network: the mean of the
                pixels over time in 4 x 4 fields, and the mean log-mel of each filter

`lab/distortions.py` has the distortions. A distortion of sight leaves the sound clean: then there
is no figure for sound alone, and that of both has a clean half.

N clips; V versions of a clip, each a distortion; D features; T frames; S samples of sound.
"""

import csv
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data import Titles, share_memory, stack_frames
from harness.errors import BadInput, drawable
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
from lab.distortions import BOTH, NAMES, SIGHT, SOUND, versions_of_sight, versions_of_sound
from lab.nearest import cosine_similarity, rank_of_match
from media.collection import files_below

KS = (1, 5)  # K of R@K
QUARTERS = 4  # A clip may begin at each quarter of a clip, so that one begins a quarter later.
FEWEST = 6  # clips of a gallery: of five, R@5 would find each

# The distortions that change each modality.
CHANGED = {
    "sight": ("none", *SIGHT, *BOTH),
    "sound": ("none", *SOUND, *BOTH),
    "both": NAMES,
}


def add_fingerprint_flags(parser):
    add = parser.add_argument
    add_checkpoint_flags(add)
    clips = "of each title, evenly spaced; default 8, and of VGG-Sound 1 (our choice)"
    add("--clips", type=int, help=clips)
    add("--seed", type=int, default=0, help="of the distortions, and of the untrained network")
    add_evaluation_flags(add)


def check_fingerprint_args(args):
    clips = ("clips", args.clips is None or args.clips >= 1, "1 or more")
    check_rules(args, [clips, *rules_of_evaluation(args)])


# -------------------------------------------------------------------------------------------------
# Clips of any folder, or of VGG-Sound
# -------------------------------------------------------------------------------------------------

VGGSOUND = "vggsound.csv"
TREE = f"""
  {VGGSOUND}                       no header: YouTube id, start in seconds, label, train or test
  video/---g-f_I2yQ_000001.mp4 ...   here or in any folder below: id, and start in six digits"""


def read_test_list(root):
    """The names, without extension, of the clips to test on: {"---g-f_I2yQ_000001"}."""
    names = set()
    try:
        with open(Path(root) / VGGSOUND, newline="") as file:
            for video, start, _, split in csv.reader(file):
                if split == "test":
                    names.add(f"{video}_{int(start):06d}")
    except (ValueError, csv.Error) as error:
        why = f"its list is not as published ({error})"
        raise BadInput(f"{root}: {why}. {root} should hold:{TREE}") from error
    return names


def clip_of(path):
    """ "video/---g-f_I2yQ_000001.mp4.mkv", which is prepared -> "---g-f_I2yQ_000001"."""
    return Path(path).name.split(".")[0]


def open_clips(args, fmt, report):
    """The titles to take clips of, and clips (n, m): of --data, or of VGG-Sound's test list.

    Raises BadInput where no clip of the test list is there.
    """
    root = Path(args.data)
    is_vggsound = (root / VGGSOUND).is_file()
    if is_vggsound:
        listed = read_test_list(root)
        present = listed.intersection(map(clip_of, files_below(args.data)))
        if not present:
            why = f"none of the {len(listed)} clips of its test list is there"
            raise BadInput(f"{args.data}: {why}. {args.data} should hold:{TREE}")
        gone = len(listed) - len(present)
        report(f"VGG-Sound: {gone} of the {len(listed)} clips of its test list are missing")
    titles = Titles(args.data, fmt, args.language, quiet=False, stride=fmt.seconds / QUARTERS)
    if is_vggsound:
        titles = titles.episodes()
        titles = titles.subset(
            [n for n, name in enumerate(titles.names) if clip_of(name) in listed]
        )
    titles = titles.subset(evenly(range(len(titles)), args.titles))
    clips = args.clips
    if clips is None:
        clips = 1 if is_vggsound else 8
    return titles, clips_of(titles, clips)


def clips_of(titles, number):
    """[(n, m)]: so many clips of each title, evenly spaced, of which no two overlap.

    m counts quarters of a clip. Each clip can also begin a quarter later, in the same file.
    """
    clips = []
    for n, part in enumerate(titles.parts):
        places = []
        first = 0
        for _, _, count in part:
            last = first + count - 1
            places += range(first, last, QUARTERS)
            first += count
        clips += [(n, m) for m in evenly(places, number)]
    return clips


class DistortedClips(Dataset):
    """Clip i in all its versions: a dict, or {"failure": why it cannot be read}.

    sight   {distortion: uint8 (3, T, crop, crop)}, of CHANGED["sight"]
    sound   {distortion: float (S,)}, of CHANGED["sound"]
    """

    def __init__(self, titles, clips, seed):
        self.titles = titles
        self.clips = clips
        self.seed = seed

    def __len__(self):
        return len(self.clips)

    def __getitem__(self, i):
        n, m = self.clips[i]
        try:
            crops, waveform = self.titles.read(n, m)
            later_crops, later_waveform = self.titles.read(n, m + 1)
        except BadInput as error:
            return {"failure": str(error).replace("\n", " ")}
        key = (self.seed, n, m)
        sound, later_sound = torch.from_numpy(waveform), torch.from_numpy(later_waveform)
        rate = self.titles.fmt.rate
        return {
            "sight": versions_of_sight(stack_frames(crops), stack_frames(later_crops), key),
            "sound": versions_of_sound(sound, later_sound, rate, key),
        }


# -------------------------------------------------------------------------------------------------
# Features, with and without networks
# -------------------------------------------------------------------------------------------------


def pooled_features(net, x):
    """The averaged last map of a backbone, in fp32: (V, ...) -> (V, D)."""
    return net.avgpool(net.features(x).float()).flatten(1)


def mean_pixels(video):
    """(V, 3, T, H, W) -> (V, 48): the mean colour of 4 x 4 fields."""
    return F.adaptive_avg_pool3d(video, (1, 4, 4)).flatten(1)


def mean_spectrum(audio):
    """(V, 1, P, Q) -> (V, P): the mean log-mel of each filter."""
    return audio.mean(3).flatten(1)


def extractors_of(sources, seed, device):
    """{what is compared: functions of what the front-ends give, of video and of audio}."""
    trained, untrained = [], []
    torch.manual_seed(seed)
    for source in sources:
        for nets, weights in ((untrained, {}), (trained, source.weights)):
            net = source.make_network()
            if weights:
                net.load_state_dict(weights)
            nets.append(partial(pooled_features, net.to(device).eval()))
    return {
        "checkpoint": trained,
        "untrained": untrained,
        "pixels and spectrum": (mean_pixels, mean_spectrum),
    }


@torch.no_grad()
def embed_clips(clips, extractors, fronts, processes, workers):
    """Each of the clips through all extractors.

    Returns (what `embed_versions` returns of each clip that can be read, in their order, and the
    failures of the others) on rank 0, and two empty lists on other ranks.
    """
    mine = range(processes.rank, len(clips), processes.world_size)
    loader = DataLoader(
        clips,
        batch_size=None,
        sampler=mine,
        collate_fn=share_memory,
        num_workers=workers,
        pin_memory=processes.on_gpu,
    )
    own = []  # (i, features or None, a failure or None)
    bar = tqdm(loader, "clips", disable=processes.rank > 0, mininterval=1)
    for i, versions in zip(mine, bar):
        if "failure" in versions:
            own.append((i, None, versions["failure"]))
        else:
            own.append((i, embed_versions(versions, extractors, fronts, processes), None))
    found = sorted(processes.collect_on_rank_0(own), key=lambda row: row[0])
    rows = [row for _, row, _ in found if row is not None]
    return rows, [failure for _, _, failure in found if failure is not None]


def embed_versions(versions, extractors, fronts, processes):
    """{(extractor, modality): (V, D)} of a clip, with V in the order of CHANGED."""
    features = {}
    for place, modality in enumerate(("sight", "sound")):
        batch = torch.stack([versions[modality][name] for name in CHANGED[modality]])
        x = fronts[place](batch.to(processes.device, non_blocking=True))
        for name, extract in extractors.items():
            with processes.autocast():
                features[name, modality] = extract[place](x).float().cpu()
    return features


def stack_clips(rows):
    """{extractor: {modality: {distortion: (N, D)}}} of the features of N clips."""
    features = {}
    for name, modality in rows[0]:
        of_clips = torch.stack([row[name, modality] for row in rows])  # (N, V, D)
        of_versions = dict(zip(CHANGED[modality], of_clips.unbind(1)))
        features.setdefault(name, {})[modality] = of_versions
    return features


# -------------------------------------------------------------------------------------------------
# What is found
# -------------------------------------------------------------------------------------------------


def recall_of(parts):
    """{K: the share of queries whose own entry is among the K most similar of the gallery}.

    parts  [(queries (N, D), gallery (N, D))], whose similarities are added up
    """
    first, _ = parts[0]
    own = torch.arange(len(first), device=first.device)
    ranks = []
    for rows in own.split(1024):  # All similarities at once may not fit into memory.
        similarity = sum(cosine_similarity(queries[rows], gallery) for queries, gallery in parts)
        ranks.append(rank_of_match(similarity, rows[:, None] == own[None, :]))
    ranks = torch.cat(ranks)
    return {K: (ranks <= K).double().mean().item() for K in KS}


def recalls_of(features, device):
    """{modality: {distortion, "mean" or "worst": {K: R@K}}} of one extractor.

    The mean and the worst are of the distortions, so without "none".
    """
    features = {
        modality: {name: x.to(device) for name, x in versions.items()}
        for modality, versions in features.items()
    }
    recalls = {}
    for modality, names in CHANGED.items():
        parts_used = ("sight", "sound") if modality == "both" else (modality,)
        found = {}
        for name in names:
            parts = []
            for part in parts_used:
                versions = features[part]
                # A distortion of sight leaves the sound clean, and the reverse.
                parts.append((versions.get(name, versions["none"]), versions["none"]))
            found[name] = recall_of(parts)
        distorted = [found[name] for name in names if name != "none"]
        found["mean"] = {K: sum(recall[K] for recall in distorted) / len(distorted) for K in KS}
        found["worst"] = {K: min(recall[K] for recall in distorted) for K in KS}
        recalls[modality] = found
    return recalls


ROWS = (*NAMES, "mean", "worst")


def table_of(recalls, K):
    """R@K in percent, (rows, columns): ROWS by extractor and modality; NaN where there is none."""
    columns = []
    for of_modality in recalls.values():
        for found in of_modality.values():
            columns.append([100 * found[row][K] if row in found else np.nan for row in ROWS])
    return np.array(columns).T


def lines_of(recalls, K):
    """The table as text."""
    wide = 3 * 7
    lines = [f"{f'R@{K}, %':<14}" + "".join(f"{name:>{wide}}" for name in recalls)]
    modalities = "".join(f"{modality:>7}" for modality in CHANGED)
    lines.append(" " * 14 + len(recalls) * modalities)
    for row, values in zip(ROWS, table_of(recalls, K)):
        cells = ["-" if np.isnan(value) else f"{value:.1f}" for value in values]
        lines.append(f"{row:<14}" + "".join(f"{cell:>7}" for cell in cells))
    return lines


def draw_recalls(recalls, title, path):
    """Write a PNG: a heat map for each K, with distortions by extractor and modality."""
    figure = Figure(figsize=(14, 7.5), layout="constrained")
    figure.suptitle(drawable(title))
    panels = figure.subplots(1, len(KS))
    for axes, K in zip(panels, KS):
        table = table_of(recalls, K)
        axes.imshow(table, vmin=0, vmax=160, cmap="Blues", aspect="auto")  # 100 % is not too dark
        for (y, x), value in np.ndenumerate(table):
            text = "–" if np.isnan(value) else f"{value:.0f}"
            axes.text(x, y, text, ha="center", va="center", fontsize=9)
        axes.set_yticks(range(len(ROWS)), ROWS)
        axes.set_xticks(range(table.shape[1]), len(recalls) * list(CHANGED), fontsize=9)
        axes.tick_params(length=0)
        for i, name in enumerate(recalls):
            middle = len(CHANGED) * i + (len(CHANGED) - 1) / 2
            axes.text(middle, -0.75, name, ha="center", va="bottom", fontweight="bold")
            if i > 0:
                axes.axvline(len(CHANGED) * i - 0.5, color="white", lw=4)
        for y in (1, 1 + len(SIGHT), 1 + len(SIGHT) + len(SOUND), len(NAMES)):
            axes.axhline(y - 0.5, color="white", lw=4)
        axes.set_title(f"R@{K}, % of the distorted clips that find their own", pad=26)
    figure.savefig(path, dpi=110, format="png")


# -------------------------------------------------------------------------------------------------
# The run
# -------------------------------------------------------------------------------------------------


def check_clips(args, fmt, clips):
    if len(clips) < FEWEST:
        raise BadInput(
            f"--data {args.data}: has {len(clips)} clips of {fmt.seconds:g} s that can also begin "
            f"{fmt.seconds / QUARTERS:g} s later; {FEWEST} or more are needed: raise --clips, or "
            "name a folder with more films"
        )


def report_fingerprint(titles, clips, sources, run, processes):
    """Print what is done, before it begins."""
    report = processes.report
    report_start("clips", len(clips), titles, sources, report)
    report(f"queries   {len(NAMES) - 1} distortions of each clip; by chance {1 / len(clips):.2%}")
    report(f"run       {run.out}, on {processes.world_size} x {processes.device.type}")


def finish_fingerprint(args, titles, rows, failures, device, run):
    """Write the picture. Returns what result.json has, and the lines to print.

    rows, failures  see `embed_clips`
    """
    clips = len(rows)
    if clips < FEWEST:
        raise BadInput(f"--data {args.data}: {len(failures)} clips cannot be read: {failures[0]}")
    recalls = {name: recalls_of(found, device) for name, found in stack_clips(rows).items()}
    summary = f"{clips} clips of {len(titles)} titles, of {titles.fmt.seconds:g} s"
    if failures:
        summary += f"; {len(failures)} more cannot be read, the first: {failures[0]}"
    run.write("fingerprint.png", partial(draw_recalls, recalls, f"{args.out}: {summary}"))
    result = {"clips": clips, "titles": len(titles), "failures": failures, "recall": recalls}
    return result, [*lines_of(recalls, 1), "", *lines_of(recalls, 5), summary]


def measure_fingerprint(args, run, processes, sources, fmt):
    """All that `run_once` leaves to this evaluation."""
    find = partial(open_clips, args, fmt, processes.report)
    titles, clips = processes.on_rank_0(find)
    check_clips(args, fmt, clips)
    run.begin()
    run.save({})  # From here on the folder is this run's.
    report_fingerprint(titles, clips, sources, run, processes)

    video, _ = sources
    device = processes.device
    fronts = fronts_of(video.front_end, fmt, device)
    extractors = extractors_of(sources, args.seed, device)
    dataset = DistortedClips(titles, clips, args.seed)
    rows, failures = embed_clips(dataset, extractors, fronts, processes, args.workers)
    finish = partial(finish_fingerprint, args, titles, rows, failures, device, run)
    return processes.on_rank_0(finish)


def run_fingerprint(args):
    check_fingerprint_args(args)
    sources = sources_of(args.ckpt)
    fmt = format_of(sources[0].front_end)
    run_once(args, sources, partial(measure_fingerprint, sources=sources, fmt=fmt))
