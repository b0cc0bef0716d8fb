"""Both networks of a checkpoint, and the titles they look at: for `fingerprint` and `sync`."""

import argparse
import dataclasses

import numpy as np

import finetune
from data import AudioFrontEnd, VideoFrontEnd
from finetune import MAY_CHANGE, Source, repeat_exactly
from harness.run import Processes, Run
from media.format import Format


def add_checkpoint_flags(add):
    folder = "a folder of films and shows, or LIST.txt, as for pretraining"
    add("--data", required=True, metavar="DIR", help=folder)
    add("--ckpt", required=True, metavar="FILE", help="written by pretrain.py or one of papers/")
    add("--language", help="audio track to prefer, as files tag it: eng, deu")
    add("--titles", type=int, help="only so many titles, evenly spaced; default all")


def add_evaluation_flags(add):
    precision = "of the networks on a GPU; on a CPU they have fp32 (our choice)"
    add("--precision", choices=("bf16", "fp32"), default="bf16", help=precision)
    add("--out", metavar="DIR", help="default runs/COMMAND-COLLECTION-NAME, by the checkpoint")
    add("--workers", type=int, default=2, help="processes that read, for each process")


def rules_of_evaluation(args):
    """What must hold of the flags that both have: see `harness.flags.check_rules`."""
    return [
        ("titles", args.titles is None or args.titles >= 1, "1 or more"),
        ("seed", args.seed >= 0, "0 or more"),
        ("workers", args.workers >= 0, "0 or more"),
    ]


def evenly(items, number):
    """So many of these items, evenly spaced; all if the number is None, or more than there are."""
    if number is None:
        return list(items)
    places = np.linspace(0, len(items) - 1, min(len(items), number)).round().astype(int)
    return [items[place] for place in places]


def sources_of(path):
    """The Sources of a checkpoint's two backbones, video and audio.

    Raises BadInput for a file that is no checkpoint of a pretraining.
    """
    args = argparse.Namespace(ckpt=path, width=None)
    # A Source asks a task for nothing but whether its files are videos or sounds.
    return [Source(args, finetune.TASKS[task]) for task in ("toy-action", "toy-sound")]


def format_of(front_end):
    """What the snippets of pretraining were made of, from a checkpoint's `front_end`."""
    names = [field.name for field in dataclasses.fields(Format)]
    return Format(**{name: front_end[name] for name in names})


def fronts_of(front_end, fmt, device):
    """The two front-ends, of video and of audio, as in pretraining but without augmentation."""
    video = VideoFrontEnd(mean=front_end["video_mean"], std=front_end["video_std"])
    audio = AudioFrontEnd(fmt, mean=front_end["log_mel_mean"], std=front_end["log_mel_std"])
    return video.to(device), audio.to(device)


def weights_in_words(sources):
    """What result.json and the settings of a run say of the checkpoint."""
    return "; ".join(source.describe() for source in sources)


def report_start(what, number, titles, sources, report):
    """Print what is looked at, what of it cannot be used, and the weights, before it begins.

    what    clips or snippets, of which there are this number
    report  prints a line
    """
    report(f"{what:<9} {number} of {titles.fmt.seconds:g} s, of {len(titles)} titles")
    if titles.skipped:
        path, why = titles.skipped[0]
        report(f"skipped   {len(titles.skipped)} files, the first: {path}: {why}")
    report(f"weights   {weights_in_words(sources)}; frozen")


def run_once(args, sources, work):
    """Do what has no parts to resume from: a finished run prints its summary again.

    work  (args, run, processes) -> (what result.json has of it, the lines to print)
    """
    processes = Processes(args.precision)
    settings = {**vars(args), "weights": weights_in_words(sources)}
    settings["processes"] = processes.world_size
    older = {"digest": [source.digest() for source in sources]}  # What an older run lacks.
    settings |= older
    repeat_exactly()
    processes.start()
    run = Run(
        args.out, processes, settings, MAY_CHANGE, lambda _: older, file="last.pt", foreign="*"
    )
    summary = (run.checkpoint or {}).get("summary")
    if summary:
        processes.report("\n".join([f"{args.out} was finished before", *summary]))
        processes.end()
        return
    result, lines = work(args, run, processes)
    video, _ = sources
    common = {
        "evaluation": args.command,
        "summary": lines,
        "weights": run.settings["weights"],
        "pretraining_epoch": video.epoch,
        "pretraining_step": video.step,
        "settings": run.settings,
    }
    run.finish({**common, **result})
    run.save({"summary": lines})
    if processes.rank == 0:
        run.checkpoint_before.unlink(missing_ok=True)
    processes.report("\n".join(lines))
    processes.end()
