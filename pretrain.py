"""Audio-visual self-supervised pretraining from films: "Watching Too Much Television is Good".

    python pretrain.py --toy                                  the toy world, on a CPU, in minutes
    python pretrain.py --k 16 --batch-size 64                 one GPU with the share of one of the paper's eight
    torchrun --nproc_per_node 8 pretrain.py --k 16            the paper: 8 GPUs, films in datasets/movies
    torchrun --nproc_per_node 8 pretrain.py --k 64 --gather   each sample against the whole batch, not its GPU's share

The same command again goes on where the last one stopped. A run is a folder: checkpoint.pt, log.jsonl, curves.png, result.json.

    python pretrain.py --compare runs/*                       those of finetune.py too: pictures, a table, findings.json
"""

import argparse
import json
import math
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from tqdm import tqdm

from data import AudioFrontEnd, BadInput, Format, Titles, VideoFrontEnd, front_end_state, hold, make_toy, refuse, write_whole
from loss import discrepancy, gather, nce_loss
from models import AudioVisualModel
from sampler import HierarchicalSampler

# ---------------------------------------------------------------------------------------------------------------------
# Arguments: without flags, under torchrun on 8 GPUs, the paper's run
# ---------------------------------------------------------------------------------------------------------------------

TOY = dict(
    data="datasets/toy/films", frames=8, short_side=34, crop=28, rate=16000, n_fft=1024, hop=256, mels=64,
    width=16, batch_size=64, epochs=2, held_out_snippets=64, measure_every=0.5, workers=2,
)  # fmt: skip
MAY_CHANGE = {"out", "workers", "save_every", "max_bad", "measure_every", "compare"}  # between the two halves of an interrupted run
NETWORKS = ("video", "audio", "video_head", "audio_head")  # each an entry of the checkpoint


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = refuse
    add = parser.add_argument
    add("--toy", action="store_true", help="small settings, on the toy world, which is made if it is not there")
    add("--compare", nargs="+", metavar="RUN", help="train nothing: compare finished runs (Figures 1 to 3, Table 1)")
    add("--data", default="datasets/movies", help="a folder (file: film, folder: show), or LIST.txt (a path or URL a line)")
    add("--out", help="folder of the run (--compare: of the pictures); default runs/ and a name from the flags")
    add("--k", type=int, default=16, help="snippets a title gives to a minibatch; 1 is the baseline (Section 3, Table 1)")
    add("--w", type=window, help="window, in snippets, that they come from; default the whole title (Section 3, Table 1); "
        "scene: the scene of a snippet and as few beside it as hold k, which 4.2 leaves to the future")  # fmt: skip
    add("--batch-size", type=int, default=512, help="of all processes together; each contrasts its own share (4.1)")
    add("--gather", action="store_true", help="contrast over all processes' shares, with gradient (our choice: off)")
    add("--tau", type=float, help="l2-normalised embeddings over this temperature; default neither (4.2, Table 2)")
    add("--jitter", type=float, default=0.0, help="sigma of the colour jitter (4.2, Table 2); 0 is none")
    add("--epochs", type=int, default=10, help="of sum M_n / batch-size steps (7.2; their length is our choice)")
    add("--lr", type=float, default=2e-3, help="Adam's, from 1e-4 up to this over --warmup, then cosine to 0 (7.2)")
    add("--warmup", type=float, default=1.0, help="epochs of linear warm-up (7.2)")
    add("--width", type=int, default=64, help="channels of both networks' first stage; 64 is the paper's (Section 3)")
    Format.add_flags(parser)  # what a snippet is made of: --frames, --fps, --short-side, --crop, --rate, --n-fft, --hop, --mels
    add("--language", help="prefer the audio track of this language, as files tag it: eng, deu, ... (our choice: none)")
    add("--held-out", type=float, default=0.1, help="share of the titles for the discrepancy measures alone (4.2)")
    add("--held-out-snippets", type=int, default=32, help="of each held-out title, evenly spaced (our choice)")
    add("--measure-every", type=float, default=1.0, help="epochs between two measurements of the discrepancy (our choice)")
    add("--seed", type=int, default=0, help="of weights, sampling, crops and drop-out")
    add("--max-bad", type=float, default=0.01, help="stop when more than this share of the snippets cannot be read (our choice)")
    add("--workers", type=int, default=8, help="reading processes for each training process")
    add("--save-every", type=int, default=500, help="steps between checkpoints: what a kill loses at the most")
    if parser.parse_known_args(argv)[0].toy:
        parser.set_defaults(**TOY)
    args = parser.parse_args(argv)
    if args.compare:
        args.out = args.out or "runs/compare"
    elif args.out is None:
        marks = {"w": None, "tau": None, "jitter": 0.0, "seed": 0}
        marks = [f"-{name}{getattr(args, name)}" for name, usual in marks.items() if getattr(args, name) != usual]
        args.out = f"runs/{name_of(args.data)}-k{args.k}{''.join(marks)}"
    return args


def window(text):
    if text != "scene" and not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: must be scene, or a number of snippets")
    return text if text == "scene" else int(text)


def check_args(args, world_size):
    """Raises BadInput for what can be told from the flags alone."""
    share = args.batch_size // world_size
    above_0 = ("epochs", "lr", "fps", "frames", "rate", "n_fft", "hop", "mels", "held_out_snippets", "measure_every", "save_every")
    for flag, right, should in (
        ("batch_size", args.batch_size in range(2 * world_size, 10**9, world_size), f"a multiple of processes, {world_size}"),
        ("k", args.k > 0 and share % args.k == 0, f"a divisor of a process's batch, {share} = {args.batch_size} / {world_size}"),
        ("w", args.w in (None, "scene") or args.w >= args.k, f"scene, or --k ({args.k}) or more: they are distinct"),
        ("tau", args.tau is None or args.tau > 0, "above 0"),
        ("width", args.width in range(8, 10**4, 8), "a multiple of 8"),
        ("crop", 0 < args.crop <= args.short_side, f"above 0, and --short-side ({args.short_side}) or less"),
        ("held_out", 0 <= args.held_out < 1, "from 0 to below 1"),
        *((name, getattr(args, name) > 0, "above 0") for name in above_0),
        *((name, getattr(args, name) >= 0, "0 or more") for name in ("warmup", "jitter", "seed", "workers", "max_bad")),
    ):
        if not right:
            raise BadInput(f"--{flag.replace('_', '-')} {getattr(args, flag)}: must be {should}")


# ---------------------------------------------------------------------------------------------------------------------
# The run's folder
# ---------------------------------------------------------------------------------------------------------------------


def load_run(args, settings):
    """The checkpoint of a run that this command started, None where there is none; BadInput if another command did."""
    path = Path(args.out) / "checkpoint.pt"
    if not path.exists():
        if path.with_name("last.pt").exists():
            raise BadInput(f"--out {args.out}: holds a run of finetune.py; name another folder")
        return None
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        old = checkpoint["args"]
    except Exception as error:
        raise BadInput(f"--out {args.out}: its checkpoint.pt is not a checkpoint of ours; name another folder") from error
    differing = [name for name in settings if old.get(name) != settings[name] and name not in MAY_CHANGE]
    if differing:
        told = ", ".join(f"{name} {old.get(name)} and not {settings[name]}" for name in differing)
        raise BadInput(f"--out {args.out}: holds a run of other arguments ({told}); name another folder")
    return checkpoint


def read_log(path, last_step):
    """The rows of log.jsonl up to a step: what a killed run wrote past its checkpoint will be written again."""
    lines = path.read_text().split("\n")[:-1] if path.exists() else []  # without what a kill cut off
    return [row for row in map(json.loads, lines) if row["step"] <= last_step]


# ---------------------------------------------------------------------------------------------------------------------
# Pieces of the loop
# ---------------------------------------------------------------------------------------------------------------------


def with_keys(sampler):
    """The sampler's batches, each sample with the key of its crop: (seed, epoch, step, place in the global batch)."""
    seed, epoch, first = sampler.seed, sampler.epoch, sampler.rank * sampler.batch_size
    for step, batch in enumerate(sampler, start=sampler.step):
        yield [(n, m, (seed, epoch, step, first + i)) for i, (n, m) in enumerate(batch)]


def learning_rate(args, step, steps_per_epoch):
    """7.2: linear from 1e-4 to --lr over the warm-up, then a cosine to 0 (its end is our choice)."""
    warmup, total = args.warmup * steps_per_epoch, args.epochs * steps_per_epoch
    if step < warmup:
        return 1e-4 + (args.lr - 1e-4) * step / warmup
    return args.lr * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


def split_titles(titles, args):
    """Training and held-out titles: 10 % of the titles, never a part of one, drawn by the seed (4.2)."""
    order = np.random.default_rng((args.seed, len(titles))).permutation(len(titles))
    held_out = min(len(titles) - 1, round(len(titles) * args.held_out))
    return titles.subset(sorted(order[held_out:])), titles.subset(sorted(order[:held_out]))


@torch.no_grad()
def measure_held_out(model, held_out, video_front, audio_front, args, rank, world_size, device):
    """Equation 2 on held-out titles: central crops, no drop-out, evenly spaced snippets; None where it has no pairs."""
    items = [(n, int(m), None) for n, M in enumerate(held_out.counts)
             for m in np.unique(np.linspace(0, M - 1, min(M, args.held_out_snippets)).round())]  # fmt: skip
    if len(held_out) < 2 or len(items) == len(held_out):
        return None
    for buffer in model.buffers() if world_size > 1 else ():  # each has averaged its own batches: measure what is saved
        dist.broadcast(buffer, 0)
    model.eval()
    parts = []
    for video, audio, n, failures in DataLoader(held_out, args.batch_size // world_size, sampler=items[rank::world_size],
                                      num_workers=args.workers):  # fmt: skip
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            z_v, z_a = model(video_front(video.to(device)), audio_front(audio.to(device)))
        parts.append((z_v.cpu(), z_a.cpu(), n, list(filter(None, failures))))
    model.train()
    if world_size > 1:
        everyone = [None] * world_size if rank == 0 else None
        dist.gather_object(parts, everyone)
        parts = sum(everyone, []) if rank == 0 else []
    if rank == 0:
        *embeddings, failures = zip(*parts)
        measures = discrepancy(*(torch.cat(x).to(device) for x in embeddings), tau=args.tau)
        return {**measures, "replaced": sum(failures, [])}


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


def main(args):
    # Processes. Under torchrun each has a share of every batch; without it there is one.
    rank, local_rank, world_size = (int(os.environ.get(name, usual)) for name, usual in
                                    (("RANK", 0), ("LOCAL_RANK", 0), ("WORLD_SIZE", 1)))  # fmt: skip
    check_args(args, world_size)
    settings = {**vars(args), "processes": world_size}
    checkpoint = load_run(args, settings)
    device = torch.device("cuda", local_rank) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise BadInput(f"more processes than GPUs, of which there are {torch.cuda.device_count()}: start one for each GPU")
        torch.cuda.set_device(device)
        torch.backends.cudnn.benchmark = True
    if world_size > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    # The others wait while the first renders the toy world or reads a collection through for its scenes.
    waiting = dist.new_group(backend="gloo", timeout=timedelta(days=7)) if world_size > 1 else None

    def say(*words):
        if rank == 0:
            tqdm.write(" ".join(map(str, words)).encode(errors="backslashreplace").decode())  # a file's name need not be text

    # Data. The first process looks at the files, for all; what is wrong with them all raise.
    fmt, found = Format.of(args), [None]
    if rank == 0:
        try:
            if args.toy and args.data == TOY["data"] and not os.path.exists(args.data):
                say(f"no toy world at {Path(args.data).parent}: rendering it")
                make_toy(Path(args.data).parent)
            found = [Titles(args.data, fmt, args.language, quiet=False, scenes=args.w == "scene")]
        except BadInput as error:
            found = [error]
    if world_size > 1:
        dist.broadcast_object_list(found, group=waiting)
    if isinstance(titles := found[0], BadInput):
        raise titles
    train, held_out = split_titles(titles, args)
    share = args.batch_size // world_size
    try:
        w = None if args.w == "scene" else args.w
        sampler = HierarchicalSampler(train.counts, share, args.k, w, rank, world_size, args.seed, train.scenes)
    except ValueError as error:
        raise BadInput(f"--data {args.data}: {error}") from error

    # Model and optimiser.
    torch.manual_seed(args.seed)
    model = AudioVisualModel(args.width).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    video_front = VideoFrontEnd(args.jitter).to(device)
    audio_front = AudioFrontEnd(fmt).to(device)

    # Resume, or measure the constants of the log-mel on one snippet from the middle of up to 64 titles.
    epoch = step = bad = 0
    if checkpoint:
        progress = checkpoint["progress"]
        now, before = [*zip(train.names, train.counts)], [*zip(progress["titles"], progress.get("counts", train.counts))]
        if now != before:
            raise BadInput(f"--data {args.data}: no longer the titles that {args.out} trained on, of the same length (see "
                           f"{min({*now} ^ {*before})[0]}); name another --out")  # fmt: skip
        for name in NETWORKS:
            getattr(model, name).load_state_dict(checkpoint[name])
        optimizer.load_state_dict(checkpoint["optimizer"])
        audio_front.mean, audio_front.std = (checkpoint["front_end"][name] for name in ("log_mel_mean", "log_mel_std"))
        epoch, step, bad = *progress["sampler"].values(), progress.get("bad", 0)
    else:
        some = np.linspace(0, len(train) - 1, 64).round().astype(int)
        waveforms = [train[n, train.counts[n] // 2, None][1] for n in np.unique(some).tolist()]
        audio_front.measure(torch.stack(waveforms).to(device))
    resumed, checkpoint = bool(checkpoint), None  # half a gigabyte
    parallel = DistributedDataParallel(model, broadcast_buffers=False) if world_size > 1 else model

    # The truth about this run.
    short = [name for name, M in zip(train.names, train.counts) if M < args.k]
    again = f" (there are {len(sampler.titles)}: some come again, with other snippets)" * (args.batch_size > args.k * len(sampler.titles))
    say(f"titles    {len(train)} to train on ({sum(train.counts)} snippets of {fmt.seconds:g} s), {len(held_out)} held out"
        + " (Equation 2 needs two: not measured)" * (len(held_out) < 2))  # fmt: skip
    for i, (path, why) in enumerate(titles.skipped):
        say(f"          skipped {i + 1} of {len(titles.skipped)}: {path}: {why}")
    if short:
        say(f"          {len(short)} shorter than k = {args.k} snippets, never drawn: {', '.join(short)}")
    stretch = f"window {args.w or 'the whole title'}"
    if args.w == "scene":
        mean = sum(train.counts) / sum(map(len, train.scenes))
        stretch = f"as few neighbouring scenes as hold them, of {mean:.1f} snippets on average"
    say(f"batch     {args.batch_size} = {world_size} x {share}: k = {args.k} snippets from each of {share // args.k} titles{again}, "
        f"{stretch}; {2 * (args.batch_size if args.gather else share) - 2} negatives a sample")  # fmt: skip
    say(f"steps     {len(sampler)} an epoch, {args.epochs} epochs")
    say(f"run       {args.out}, on {world_size} x {device.type}, " + (f"resumed at epoch {epoch + 1} step {step}" if resumed else "new"))

    # Log and checkpoint.
    out, steps_per_epoch = Path(args.out), len(sampler)
    measure_every = max(1, round(min(args.measure_every, args.epochs) * steps_per_epoch))
    log = read_log(out / "log.jsonl", epoch * steps_per_epoch + step) if resumed and rank == 0 else []
    if rank == 0:
        hold(out)
        for name in () if resumed else ("result.json", "bad.txt"):  # of a run whose checkpoint was taken away
            (out / name).unlink(missing_ok=True)
        write_whole(out / "log.jsonl", lambda path: path.write_text("".join(json.dumps(row) + "\n" for row in log)))
        log_file = open(out / "log.jsonl", "a", buffering=1)  # a line at a time

    def write_log(**row):
        if rank == 0:
            log.append(row)
            log_file.write(json.dumps(row) + "\n")

    def save(epoch, step):
        if rank == 0:
            os.fsync(log_file.fileno())
            done = epoch * steps_per_epoch + step
            state = {name: getattr(model, name).state_dict() for name in NETWORKS}
            state["front_end"] = front_end_state(fmt, video_front, audio_front)
            state["args"] = settings
            state["optimizer"] = optimizer.state_dict()
            state["progress"] = {"epoch": epoch, "step": done, "sampler": {"epoch": epoch, "step": step},
                                 "snippets": done * args.batch_size, "bad": bad, "titles": train.names,
                                 "counts": train.counts}  # fmt: skip
            write_whole(out / "checkpoint.pt", lambda path: torch.save(state, path))
            measures = [row for row in log if "gap" in row]
            picture = lambda path: draw(path, {f"k = {args.k}": {args.seed: summarise(log)}}, measure=measures[-1] if measures else None)
            write_whole(out / "curves.png", picture)

    def measure(done):
        measures = measure_held_out(model, held_out, video_front, audio_front, args, rank, world_size, device)
        if measures:
            write_log(step=done, **measures)
            say("step {:>6}  KL(S-||S!=) {kl_same_other:.3f}  KL(S-||S+) {kl_same_match:.3f}  KL(S!=||S+) {kl_other_match:.3f}"
                "  gap {gap:.3f}  pairs {counts}".format(done, **measures))  # fmt: skip

    if not resumed:
        measure(0)
        save(0, 0)

    # The loop.
    began, steps_here, waited, bad_before = time.perf_counter(), 0, 0.0, bad
    while epoch < args.epochs:
        sampler.load_state_dict({"epoch": epoch, "step": step})
        batches = iter(DataLoader(train, batch_sampler=with_keys(sampler), num_workers=args.workers,
                                  pin_memory=device.type == "cuda"))  # fmt: skip
        bar = tqdm(range(step, steps_per_epoch), f"epoch {epoch + 1}/{args.epochs}", steps_per_epoch, initial=step,
                   disable=rank != 0, unit="step")  # fmt: skip
        for step in bar:
            tick = time.perf_counter()
            try:
                video, audio, _, replaced = next(batches)                    # uint8 (B, 3, T, H, W), float (B, S)
            except (BadInput, RuntimeError):                                 # the latter: a reading process that died
                save(epoch, step)
                raise
            wait = time.perf_counter() - tick
            replaced = [tries.split("\n") for tries in replaced if tries]     # of each snippet a line for each try
            if replaced:
                with open(out / "bad.txt", "a", errors="backslashreplace") as file:
                    file.writelines(f"epoch {epoch + 1} step {step}: {why}\n" for why in sum(replaced, []))

            key = (args.seed, epoch, step, rank)
            video = video_front(video.to(device, non_blocking=True), key)    # (B, 3, T, H, W)
            audio = audio_front(audio.to(device, non_blocking=True), key)    # (B, 1, P, Q)
            # On a CPU fp32: torch's bf16 convolutions there gave non-finite gradients now and then.
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                z_v, z_a = parallel(video, audio)                            # (B, d) both, fp32
            if args.gather and world_size > 1:
                z_v, z_a = gather(z_v), gather(z_a)                          # (W B, d)
            loss = nce_loss(z_v, z_a, args.tau)

            optimizer.zero_grad()
            (loss * world_size if args.gather else loss).backward()          # see `gather` for the factor
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), torch.inf)  # measured, not clipped
            totals = torch.stack([loss.detach(), torch.tensor(float(len(replaced)), device=device)])
            if world_size > 1:
                dist.all_reduce(totals)
            loss, bad = totals[0] / world_size, bad + int(totals[1])
            if not (loss.isfinite() and norm.isfinite()):
                sys.exit(f"pretrain.py: loss {loss:.3g}, gradient {norm:.3g} at epoch {epoch + 1} step {step}: stopped before "
                         f"they reach the weights; {out}/checkpoint.pt is sound. A lower --lr, with another --out, may help.")  # fmt: skip
            optimizer.param_groups[0]["lr"] = lr = learning_rate(args, epoch * steps_per_epoch + step, steps_per_epoch)
            optimizer.step()

            now, steps_here, waited = time.perf_counter(), steps_here + 1, waited + wait
            elapsed, done = now - began, epoch * steps_per_epoch + step + 1
            write_log(step=done, epoch=epoch, loss=loss.item(), grad_norm=norm.item(), lr=lr,
                      seconds=round(now - tick, 4), waited=round(wait, 4), bad=bad)  # fmt: skip
            rate = f"{steps_here * args.batch_size / elapsed:.1f} snippets/s, {waited / elapsed:.0%} of it waiting for data"
            rate += f", {bad} snippets replaced" * (bad > 0)
            bar.set_postfix_str(f"loss {loss:.3f}, {rate}", refresh=False)
            if done % measure_every == 0 or done == args.epochs * steps_per_epoch:
                paused = time.perf_counter()
                measure(done)
                began += time.perf_counter() - paused  # the rate is that of training
            too_bad = bad - bad_before > args.max_bad * args.batch_size * max(steps_here, steps_per_epoch)
            if too_bad or (step + 1) % args.save_every == 0 and step + 1 < steps_per_epoch:
                save(epoch, step + 1)
            if too_bad:
                if world_size > 1:
                    dist.barrier(waiting)  # torchrun ends all at the first exit, and rank 0 is writing the checkpoint
                sys.exit(f"pretrain.py: {bad - bad_before} snippets of {steps_here * args.batch_size} could not be read, more than --max-bad "
                         f"{args.max_bad} of them (or of an epoch's): see {out}/bad.txt. The same command, with the files mended "
                         "or a higher --max-bad, goes on from here.")  # fmt: skip
        epoch, step = epoch + 1, 0
        save(epoch, 0)

    if steps_here:
        say(f"trained   {steps_here} steps in {elapsed:.0f} s: {rate}")
    if rank == 0:
        result = {"arguments": settings, **summarise(log)}
        write_whole(out / "result.json", lambda path: path.write_text(json.dumps(result) + "\n"))
    say(f"finished  {out}/checkpoint.pt, log.jsonl, curves.png, result.json")
    if world_size > 1:
        dist.destroy_process_group()


# ---------------------------------------------------------------------------------------------------------------------
# After the run: its picture, and finished runs compared (Figures 1 to 3, Tables 1 and 2)
# ---------------------------------------------------------------------------------------------------------------------

MEASURES = dict(kl_same_other="KL(S⁻‖S≠)", kl_same_match="KL(S⁻‖S⁺)", kl_other_match="KL(S≠‖S⁺)", gap="KL(S≠‖S⁺) − KL(S⁻‖S⁺)")


def name_of(data):
    """Of a collection: its folder's, or that of the world whose films it is."""
    path = Path(data).resolve()
    return (path.parent if path.name == "films" else path).name.removesuffix(".txt")


def summarise(log):
    """{"curves": {name: ([step], [value])}, "final": {name: value}} of MEASURES and of the loss, whose curve is cut into up to 40
    means, and whose final value is the mean of the last tenth of the steps."""
    steps, measures = [row for row in log if "loss" in row], [row for row in log if "gap" in row]
    mean = lambda name, rows: float(np.mean([row[name] for row in rows]))
    edges = np.linspace(0, len(steps), min(40, len(steps)) + 1).astype(int)
    parts = [steps[low:high] for low, high in zip(edges, edges[1:])]
    curves = {"loss": ([mean("step", part) for part in parts], [mean("loss", part) for part in parts])}
    curves |= {name: ([row["step"] for row in measures], [row[name] for row in measures]) for name in MEASURES}
    final = {name: values[-1] for name, (_, values) in curves.items() if values}
    if steps:
        final["loss"] = mean("loss", steps[-max(1, len(steps) // 10):])
    return {"curves": curves, "final": final}


def draw(path, groups, results=None, measure=None, order=()):
    """groups {label: {seed: its summary}}: mean and range of Equation 2 and of the loss over training. In the last panel
    results {task: {label or "none": {seed: its row}}}, or else the similarities of one `measure`.

    order: the labels and tasks of all pictures that are drawn together, so that each looks the same in all of them.
    """
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    *panels, last = figure.subplots(2, 3).flat
    order = [*order, *groups, *(results or ())]
    whole = any("w =" in label for label in groups)  # then the others' window is worth a word
    for axes, (name, title) in zip(panels, [*MEASURES.items(), ("loss", "training loss (Equation 1)")]):
        for label, seeds in groups.items():
            curves = [curve for summary in seeds.values() if (curve := summary["curves"][name])[1]] or [([], [])]
            values = np.array(list(zip(*(values for _, values in curves)))).reshape(-1, len(curves))  # (steps, seeds)
            steps = curves[0][0][: len(values)]
            look = dict(color=f"C{order.index(label)}", label=label + ", w = $M_n$" * (whole and "w =" not in label))
            axes.plot(steps, values.mean(1), ".-" if name in MEASURES else "-", **look)
            axes.fill_between(steps, values.min(1), values.max(1), alpha=0.15, facecolor=look["color"])
        axes.set(title=title, xlabel="step", ylabel="nats")
    panels[0].legend()
    shared = {task: places for task, places in (results or {}).items() if len(places.keys() & groups.keys()) > 1}
    names = ["none", *groups]
    for i, (task, accuracy) in enumerate(shared.items()):
        places = [x for x, name in enumerate(names) if name in accuracy]
        percent = [100 * np.array([row["accuracy"] for row in accuracy[names[x]].values()]) for x in places]
        middle, low, high = np.array([(x.mean(), x.min(), x.max()) for x in percent]).T
        look = dict(color=f"{0.7 * i / len(shared):.2f}", marker="osD^v*"[order.index(task) % 6])  # grays: colours are the groups
        last.errorbar(np.add(places, 0.08 * i), middle, (middle - low, high - middle), ls="", label=task, **look)
        if "none" in accuracy:
            last.axhline(middle[0], ls=":", lw=0.8, color=look["color"])
    if shared:
        last.set(title="downstream (none: without pretraining)", ylabel="top-1 %")
        last.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names])
    elif measure:
        edges = np.array(measure["edges"])
        for counts, label in zip(measure["histograms"].values(), ("S⁺", "S⁻", "S≠")):
            last.stairs(np.array(counts) / sum(counts) / np.diff(edges), edges, label=label)
        last.set(title=f"similarities at step {measure['step']}", xlabel="of a video and an audio embedding", ylabel="density")
    else:
        last.axis("off")
    if shared or measure:
        last.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7)
    figure.savefig(path, dpi=110, format="png")


def read_runs(paths):
    """Folders of pretrain.py and finetune.py, or a findings.json -> a row each. What is left out is said."""
    rows = {}
    for path in map(Path, paths):
        try:
            found = json.loads(path.read_text()) if path.suffix == ".json" else [read_run(path)]
            for row in found:
                if row["run"] in rows:
                    print(f"{row['run']}: there twice, the last counts")
                rows[row["run"]] = row
        except (FileNotFoundError, NotADirectoryError):
            print(f"{path}: no finished run, left out")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInput(f"--compare {path}: not what pretrain.py, finetune.py or --compare writes ({error})") from error
    runs = {name for name, row in rows.items() if "final" in row}
    if not runs:
        raise BadInput(f"--compare {' '.join(map(str, paths))}: no finished run of pretrain.py among them")
    for name, row in rows.items():
        if row.get("pretraining") and row["pretraining"] not in runs:
            print(f"{name}: fine-tuned from {row['pretraining']}, which is not among the runs")
    return [rows[name] for name in sorted(rows)]


def read_run(path):
    """The result.json of a run's folder -> its row."""
    result = json.loads((path / "result.json").read_text())
    if "settings" in result:  # of finetune.py
        args = result["settings"]
        task = f"{args['task']}, {'probe' if args['probe'] else 'fine-tuned'}, split {args['split']}"
        pretraining = args["ckpt"] and Path(args["ckpt"]).resolve().parent.name
        result = {"task": task, "pretraining": pretraining, "accuracy": result["accuracy"], "arguments": args}
    return {"run": path.name, "seed": result["arguments"]["seed"], **result}


def add(seeds, row):
    """To {seed: row}, of which the first of a seed counts."""
    if seeds.setdefault(row["seed"], row) is not row:
        print(f"{row['run']}: differs from {seeds[row['seed']]['run']} in neither k, w, jitter, tau, task nor seed, left out")


def group(runs):
    """{collection: {label: {seed: its run}}}; a label says k and what else is not as usual: "k = 16, w = 32"."""
    signs = {"w": "w", "jitter": "σ", "tau": "τ"}

    def order(row):
        k, w, *others = (row["arguments"][name] or 0 for name in ("k", "w", "jitter", "tau", "seed"))
        return k, w != 0, 1 if w == "scene" else -w, *others  # fixed windows from the widest to the narrowest, then scenes

    collections = {}
    for row in sorted(runs, key=order):
        args = row["arguments"]
        collection = name_of(args["data"]).removesuffix(f"-{row['seed']}")  # a world made for each seed counts as one
        label = ", ".join([f"k = {args['k']}", *(f"{sign} = {args[name]}" for name, sign in signs.items() if args[name])])
        add(collections.setdefault(collection, {}).setdefault(label, {}), row)
    return collections


def sweeps(groups):
    """{name: labels}: k (Figures 1a, 3a), w at the k that has most of them (1b, 3b), jitter and tau beside neither (Table 2)."""
    args = {label: next(iter(seeds.values()))["arguments"] for label, seeds in groups.items()}
    changed = [label for label in groups if args[label]["jitter"] or args[label]["tau"]]
    plain = [label for label in groups if label not in changed]
    whole = [label for label in plain if args[label]["w"] is None]
    ks = [args[label]["k"] for label in plain]
    found = {
        "k": whole,
        "w": [label for label in plain if args[label]["k"] == max(ks, key=ks.count)],
        "jitter-tau": changed and [label for label in whole if args[label]["k"] in {args[c]["k"] for c in changed}] + changed,
    }
    return {name: labels for name, labels in found.items() if len(labels) > 1}


def downstream(rows, groups):
    """{task: {label, or "none" for no pretraining: {seed: its row}}} of these groups."""
    label = {row["run"]: label for label, seeds in groups.items() for row in seeds.values()} | {None: "none"}
    tested = [row for row in rows if "task" in row and row["pretraining"] in label]
    sets = {(row["task"], row["arguments"]["data"]) for row in tested if row["pretraining"]}
    results = {}
    for row in tested:
        if (row["task"], row["arguments"]["data"]) in sets:
            add(results.setdefault(row["task"], {}).setdefault(label[row["pretraining"]], {}), row)
    return results


def compare(paths, out):
    """findings.json with a row a run; for each collection a picture of each sweep, and a table: Table 1."""
    rows, out = read_runs(paths), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "findings.json", lambda path: path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n"))
    spread = lambda x: x and f"{np.mean(x):.3g}" + (f" ± {np.std(x, ddof=1):.2g}" if len(x) > 1 else "")
    collections = group([row for row in rows if "final" in row])
    results = {collection: downstream(rows, groups) for collection, groups in collections.items()}
    order = [*dict.fromkeys(name for of in (collections, results) for collection in of for name in of[collection])]
    for collection, groups in collections.items():
        tasks = results[collection]
        for sweep, labels in sweeps(groups).items():
            draw(out / f"{collection}-{sweep}.png", {label: groups[label] for label in labels}, tasks, order=order)
            print(out / f"{collection}-{sweep}.png")
        heads = [collection, "seeds", "loss", *MEASURES.values(), *tasks]
        print("", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", sep="\n")
        for label in [*groups, *["none"] * any("none" in places for places in tasks.values())]:
            seeds = groups.get(label, {})
            cells = [[row["final"][name] for row in seeds.values() if name in row["final"]] for name in ("loss", *MEASURES)]
            cells += [[100 * row["accuracy"] for row in tasks[task].get(label, {}).values()] for task in tasks]
            print(f"| {label} | {len(seeds) or ''} | {' | '.join(spread(cell) or '' for cell in cells)} |")
    print("", f"{out}/findings.json, {len(rows)} runs", sep="\n")


if __name__ == "__main__":
    try:
        args = parse_args()
        compare(args.compare, args.out) if args.compare else main(args)
    except (BadInput, OSError) as error:
        if os.environ.get("RANK", "0") != "0" and "Caught" not in str(error):
            time.sleep(10)  # torchrun ends all at the first exit: where all fail alike, the first process speaks
        message = str(error).split("data.BadInput: ")[-1].strip()  # around a reading process's error torch puts a page
        print(f"pretrain.py: error: {message}", file=sys.stderr)
        sys.exit(2)
    except torch.OutOfMemoryError:
        sys.exit("pretrain.py: error: a process's share of --batch-size is too large for its GPU; take less, or more GPUs")
    except KeyboardInterrupt:
        sys.exit("pretrain.py: interrupted; the same command goes on from the last checkpoint")
