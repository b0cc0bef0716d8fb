"""Fine-tune a pretrained network on a labelled set, and count what it gets right (Sections 4.1 and 7.2).

    python finetune.py --task toy-action --ckpt runs/toy-k16/checkpoint.pt    about a minute and a half on two CPU cores
    python finetune.py --task toy-action                                      the same from scratch, to compare with
    python finetune.py --task hmdb51 --ckpt runs/movies-k16/checkpoint.pt     one GPU of 100 GB; split 1, as in Tables 1 to 4
    torchrun --nproc_per_node 8 finetune.py --task ucf101 --split all --ckpt runs/movies-k16/checkpoint.pt     Table 5

A run is a folder: result.json, confusion.png, split1.pt (the classifier), log.jsonl (not of a probe). The same command
goes on after a kill, which costs an epoch at most. The last epoch counts: the test videos are looked at once, at the end.

B clips, T frames of H x W pixels, S samples of sound, P mel filters, Q audio frames; C classes, V views of a test file.
"""

import argparse
import json
import math
import os
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch.utils.data import DataLoader
from tqdm import tqdm

import data
import models

# A task is a row of defaults that flags override. `sizes`: crop, scale jitter, shorter side in testing, in proportion
# for a checkpoint of another crop (7.2). `sound`: that of pretraining; a checkpoint brings its own.
PAPER = dict(width=64, warmup=25, batch_size=96, lr=0.2, workers=8, clips=10, sizes=(158, (181, 226), 190),
             sound=dict(rate=48000, n_fft=2048, hop=512, mels=96))  # fmt: skip
TOY = dict(width=16, warmup=5, lr=0.05, workers=2, clips=2, sizes=(28, (32, 40), 34), frames=8, fps=5,
           sound=dict(rate=16000, n_fft=1024, hop=256, mels=64))  # fmt: skip
TASKS = {
    "ucf101": dict(PAPER, data="datasets/ucf101", layout="ucf101", splits=3, epochs=150, frames=32, fps=10),
    "hmdb51": dict(PAPER, data="datasets/hmdb51", layout="hmdb51", splits=3, epochs=200, frames=32, fps=10),
    "esc50": dict(PAPER, data="datasets/esc50", layout="esc50", splits=5, epochs=200, frames=30, fps=10),
    "toy-action": dict(TOY, data="datasets/toy/action", layout="ucf101", splits=3, epochs=25, batch_size=40),
    "toy-sound": dict(TOY, data="datasets/toy/sound", layout="esc50", splits=5, epochs=20, batch_size=48),
}
NETWORKS = {"video": models.r2plus1d_18, "audio": models.audio_resnet18}


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = fail
    add = parser.add_argument
    add("--task", required=True, choices=TASKS, help="Section 4.1; the toy tasks, and their recipes, are our choice")
    add("--ckpt", metavar="FILE", help="written by pretrain.py; without it the network is trained from scratch")
    add("--data", metavar="DIR", help="the set as its authors publish it (default: datasets/TASK)")
    add("--split", default="1", help="4.2: 1 in the ablations; all: the mean of the 3 splits, or 5 folds (Table 5)")
    add("--probe", action="store_true", help="our choice: the network stays as it is; logistic regression on its features")
    add("--out", metavar="DIR", help="default: runs/TASK-NAME, NAME the folder of the checkpoint, or `scratch`")
    add("--seed", type=int, default=0, help="our choice, as the paper names none")
    add("--workers", type=int, help="processes that read, for each GPU; they change the speed and nothing else")
    add("--width", type=int, help="channels of the first stage: 64 (4.1); the toy's 16 is our choice")
    add("--epochs", type=int, help="7.2: 150 on UCF101, 200 on HMDB51 and ESC-50")
    add("--batch-size", type=int, help="7.2: 96, of all processes together; an epoch's incomplete last one is dropped")
    add("--lr", type=float, help="7.2: 0.2, at the end of the warm-up, which starts at 0.001")
    add("--warmup", type=int, help="7.2: 25 epochs, linear; then cosine, to 0 (our choice)")
    add("--weight-decay", type=float, default=1e-4, help="7.2: 1e-4; and momentum 0.9")
    add("--frames", type=int, help="4.1: 32 frames at 10 fps; a sound lasts frames / fps too: 3 s on ESC-50 (4.1)")
    add("--fps", type=float, help="4.1: 10")
    add("--crop", type=int, help="4.1: 158 pixels; a checkpoint's own (7.2); the next two follow in proportion")
    add("--scale", type=int, nargs=2, metavar=("LOW", "HIGH"), help="4.1: shorter side in training, 181 to 226 pixels")
    add("--short-side", type=int, help="our choice: shorter side in testing, 190 pixels as in pretraining (4.1)")
    add("--clips", type=int, help="4.1: 10 of a test file, each of a video in 3 crops; the toy's 2 cover its files")
    add("--jitter", type=float, default=0.4, help="our choice: sigma of the colour jitter; 4.1 does not say how strong")
    add("--mask", type=float, default=0.5, help="4.1: the longest mask of a sound, in time and in frequency")
    parser.set_defaults(**TASKS[parser.parse_known_args(argv)[0].task])
    return parser.parse_args(argv)


def fail(message):
    """One line for what a user can mend. All processes fail a check alike: one speaks; later, the one it happens to."""
    if os.environ.get("RANK", "0") == "0" or dist.is_initialized():
        tqdm.write(f"finetune.py: error: {message}", file=sys.stderr)  # on a line of its own, though a bar be there
    else:
        time.sleep(10)  # torchrun ends all at the first exit, and the one that speaks may be the last to fail
    sys.exit(2)


def check(args, processes):
    low, high = args.scale
    for flag, right, should in (
        ("split", args.split in ["all", *map(str, range(1, args.splits + 1))], f"1 to {args.splits}, or all"),
        ("batch-size", args.batch_size in range(processes, 10**6, processes), f"a multiple of processes, {processes}"),
        ("epochs", args.epochs > args.warmup >= 0, f"more than --warmup {args.warmup}, which must be 0 or more"),
        ("scale", 0 < args.crop <= low <= high, f"ascending, from --crop {args.crop} or more, which must be positive"),
        ("short-side", args.crop <= args.short_side, f"--crop {args.crop} or more"),
        ("mask", 0 <= args.mask <= 1, "from 0 to 1"),
        ("width", args.width in range(8, 10**6, 8), "a multiple of 8"),
        *((name, getattr(args, name) >= least, f"{least} or more") for name, least in
          dict(frames=1, fps=0.1, clips=1, jitter=0, seed=0, workers=0).items()),
    ):
        if not right:
            fail(f"--{flag} {getattr(args, flag.replace('-', '_'))}: must be {should}")


def read_checkpoint(path, backbone, width, constants):
    """-> (weights, front_end, their origin), or one line, unless all the backbone's weights are there and fit."""
    warnings.filterwarnings("ignore", "Detected pickle protocol")  # of a foreign file, which we refuse in our own words
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what foreign bytes do to an unpickler has many names
        why = error.strerror if isinstance(error, OSError) else "only tensors and plain values are read"
        fail(f"--ckpt {path}: not a checkpoint of pretrain.py ({why})")
    has = list(checkpoint) if isinstance(checkpoint, dict) else [type(checkpoint).__name__]
    if lacks := {"front_end", "args", "progress", backbone}.difference(has):
        fail(f"--ckpt {path}: lacks {', '.join(sorted(lacks))}, which the task needs; it has {has}")
    weights, front_end, made = checkpoint[backbone], checkpoint["front_end"], checkpoint["args"]
    if lacks := constants - front_end.keys():
        fail(f"--ckpt {path}: its front_end lacks {', '.join(sorted(lacks))}")
    if width != made["width"]:
        fail(f"--width {width}: {path} was pretrained with --width {made['width']}")
    fits = {name: tensor.shape for name, tensor in NETWORKS[backbone](width).state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    if wrong := [name for name in {**fits, **shapes} if fits.get(name) != shapes.get(name)]:
        fail(f"--ckpt {path}: {len(wrong)} weights of {backbone} are missing, unknown or of another shape: {wrong[:3]}")
    size = sum(weight.numel() for weight in NETWORKS[backbone](width).parameters()) / 1e6
    origin = f"{backbone} of {path} (epoch {checkpoint['progress']['epoch']}, step {checkpoint['progress']['step']}, k {made.get('k')})"
    return weights, front_end, f"{origin}: {len(weights)} tensors, {size:.1f} M parameters"


def open_run(out, settings):
    """-> the state to go on from; fails if the folder holds anything else."""
    state = dict(settings=settings, split=None, epoch=0, log=[], confusion={}, summary=None)
    if (out / "last.pt").exists():
        state = torch.load(out / "last.pt", map_location="cpu", weights_only=True)
    elif out.exists() and (not out.is_dir() or any(path.name[0] != "." for path in out.iterdir())):
        fail(f"--out {out}: exists, and holds no run of finetune.py; name another folder")
    for name, value in settings.items():
        if state["settings"].get(name) != value:
            fail(f"--out {out}: holds a run of {name} {state['settings'].get(name)}, not {value}; name another folder")
    return state


def training_batches(count, args, start, rank, processes):
    """Lists of (i, key) for one rank, from epoch `start` on, by (seed, epoch, step, place in the global batch) alone.

    So neither workers nor a kill change them, and any number of processes share out the same global batch.
    """
    share = args.batch_size // processes
    for epoch in range(start, args.epochs):
        order = data.rng_of(args.seed, epoch).permutation(count)
        for step in range(count // args.batch_size):
            places = range(rank * share, (rank + 1) * share)
            yield [(order[step * args.batch_size + place], (args.seed, epoch, step, place)) for place in places]


def learning_rate(epoch, args):
    """At a fraction of an epoch: linear from 0.001 to lr, then cosine to 0 (7.2)."""
    if epoch < args.warmup:
        return 1e-3 + (args.lr - 1e-3) * epoch / args.warmup
    return args.lr * (1 + math.cos(math.pi * (epoch - args.warmup) / (args.epochs - args.warmup))) / 2


@torch.no_grad()
def embed(net, front_end, files, rank, processes, loading):
    """-> {path: (V, D)}: the averaged features of each file's test views, of all files on every process."""
    net.eval()
    device, mine = net.fc.weight.device, range(rank, len(files), processes)
    views = DataLoader(files, None, sampler=[(i, None) for i in mine], **loading)
    features = {}
    for i, (x, _) in zip(mine, tqdm(views, "features", disable=rank > 0, mininterval=1)):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            x = net.features(front_end(x.to(device, non_blocking=True)))
        features[files.items[i][0]] = net.avgpool(x.float()).flatten(1).cpu()
    everyone = [features]
    if processes > 1:
        dist.all_gather_object(everyone := [None] * processes, features)
    return {path: x for part in everyone for path, x in part.items()}


def fit_probe(fc, features, train):
    """Sets fc to the logistic regression on standardised features that minimises cross-entropy + |W|^2 / (2 files)."""
    x = torch.stack([features[path] for path, _ in train.items]).to(fc.weight).double()                  # (N, V, D)
    y = torch.tensor([label for _, label in train.items], device=x.device)[:, None].expand(x.shape[:2]).flatten()
    mean, std = x.mean((0, 1)), x.std((0, 1)).clamp(min=1e-6)
    x = ((x - mean) / std).flatten(0, 1)
    weight, bias = (torch.zeros_like(p, dtype=torch.double, requires_grad=True) for p in fc.parameters())
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=1000, line_search_fn="strong_wolfe")

    def objective():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(x @ weight.T + bias, y) + weight.square().sum() / (2 * len(train))
        loss.backward()
        return loss

    optimizer.step(objective)
    with torch.no_grad():
        fc.weight.copy_(weight / std)
        fc.bias.copy_(bias - weight @ (mean / std))


@torch.no_grad()
def evaluate(net, front_end, test, classes, rank, processes, loading, features=None):
    """-> (C, C) counts, true by predicted. The answer for a video: its views' softmax, averaged (our choice in 4.1).

    features: of `embed`, where they are known already.
    """
    net.eval()
    if processes > 1:  # BN kept statistics of each process's own clips, and an answer must not depend on who gives it
        for buffer in net.buffers():
            dist.broadcast(buffer, 0)
    device = net.fc.weight.device
    counts = torch.zeros(classes, classes, dtype=torch.int64, device=device)
    mine = [(i, None) for i in range(rank, len(test), processes)]            # no padding: each video once
    known = features and ((features[test.items[i][0]], test.items[i][1]) for i, _ in mine)
    views = known or DataLoader(test, None, sampler=mine, **loading)
    for x, label in tqdm(views, "test", len(mine), disable=rank > 0 or bool(known), mininterval=1):
        x = x.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and not known):
            logits = net.fc(x) if known else net(front_end(x))               # (V, C) of (V, 3, T, H, W) or (V, 1, P, Q)
        counts[label, logits.float().softmax(1).mean(0).argmax()] += 1
    if processes > 1:
        dist.all_reduce(counts)
    assert counts.sum() == len(test), "a test video was left out, or counted twice"
    return counts.cpu()


def draw_confusion(counts, names, title):
    """Each row is a true class: what share of its test videos was taken for what."""
    percent = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
    few, side = len(names) < 30, 3 + max(3.5, 0.14 * len(names))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="predicted (% of the true class; darker is more)", ylabel="true")
    axes.imshow(percent.numpy(), vmin=0, vmax=160, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=9 if few else 7)
    axes.set_yticks(range(len(names)), names, fontsize=9 if few else 7)
    for i, j in percent.round().nonzero().tolist() if few else ():
        axes.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="center")
    return figure


def main(args):
    # Arguments: all that can be wrong is found here, by every process, before any work
    usual = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
    rank, local, processes = (int(os.environ.get(name, value)) for name, value in usual.items())
    backbone = "audio" if args.layout == "esc50" else "video"
    unit = f"sounds ({args.clips} views" if backbone == "audio" else f"videos ({3 * args.clips} views"
    crop, scale, short_side = args.sizes
    fmt = data.Format(crop=crop, **args.sound)
    weights, source, origin = {}, data.front_end_state(fmt, data.VideoFrontEnd(), data.AudioFrontEnd(fmt)), "random"
    if args.ckpt:
        weights, source, origin = read_checkpoint(args.ckpt, backbone, args.width, source.keys())
    args.crop = args.crop or source["crop"]
    args.scale = args.scale or [round(side * args.crop / crop) for side in scale]
    args.short_side = args.short_side or round(short_side * args.crop / crop)
    check(args, processes)
    fmt = data.Format(args.frames, args.fps, args.short_side, args.crop, **{name: source[name] for name in args.sound})
    splits = range(1, args.splits + 1) if args.split == "all" else [int(args.split)]
    kind = data.ESC50 if args.layout == "esc50" else partial(data.LabeledVideos, scale=args.scale)
    sets, features = {}, None
    for split in splits:
        (train, names), (test, _) = (getattr(data, args.layout)(args.data, split, part) for part in (True, False))
        if len(train) < args.batch_size and not args.probe or not test:
            fail(f"--batch-size {args.batch_size}: {args.data} has only {len(train)} to train on, {len(test)} to test")
        sets[split] = kind(train, fmt), kind(test, fmt, args.clips), names
    name = Path(args.ckpt).resolve().parent.name if args.ckpt else "scratch"
    name += "-probe" * args.probe + f"-split{args.split}" * (args.split != "1") + f"-seed{args.seed}" * (args.seed > 0)
    out = Path(args.out or f"runs/{args.task}-{name}")
    settings = {name: value for name, value in vars(args).items() if name not in ("workers", "out")}
    settings = json.loads(json.dumps({**settings, "weights": origin, "processes": processes}))
    state = open_run(out, settings)
    if state["summary"]:
        return print(f"{out} was finished before", *state["summary"], sep="\n") if rank == 0 else None

    # Processes
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS repeats itself only with this
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            fail(f"more processes than GPUs, of which there are {torch.cuda.device_count()}: start one for each GPU")
        torch.cuda.set_device(device)
    if processes > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    loading = dict(num_workers=args.workers, pin_memory=device.type == "cuda")
    if rank == 0:
        data.hold(out)
        data.write_whole(out / "last.pt", partial(torch.save, state))  # from here on the folder is this run's

    for split in [split for split in splits if split not in state["confusion"]]:
        # Data; from scratch, sound is standardised by up to 256 of its training clips
        train, test, names = sets[split]
        steps = len(train) // args.batch_size
        video = data.VideoFrontEnd(args.jitter, flip=True, mean=source["video_mean"], std=source["video_std"])
        audio = data.AudioFrontEnd(fmt, args.mask, both=True, mean=source["log_mel_mean"], std=source["log_mel_std"])
        if backbone == "audio" and not weights:
            some = range(0, len(train), -(-len(train) // 256))
            audio.measure(torch.stack([train[i, (args.seed, 0, 0, i)][0] for i in some]))
        front_end = {"video": video, "audio": audio}[backbone].to(device)

        # Model
        torch.manual_seed(args.seed)
        net = NETWORKS[backbone](args.width, len(names))
        new, unexpected = net.load_state_dict(weights, strict=False)
        assert not unexpected and (not weights or new == ["fc.weight", "fc.bias"])
        net.to(device)
        model = torch.nn.parallel.DistributedDataParallel(net, broadcast_buffers=False) if processes > 1 else net
        # Optimiser
        optimizer = torch.optim.SGD(net.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay)
        # Resume
        start = args.epochs if args.probe else state["epoch"] if state["split"] == split else 0
        if start and not args.probe:
            net.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
        if rank == 0:
            print(f"{args.task} split {split}: {len(names)} classes, train {len(train)}, test {len(test)} {unit} each)",
                  f"weights: {origin}; new: {', '.join(new) if weights else 'all'}",
                  "recipe: logistic regression on frozen features" if args.probe else
                  f"recipe: {args.epochs} epochs of {steps} steps, lr 0.001 to {args.lr:g} in {args.warmup}, then to 0\n"
                  f"batch: {args.batch_size} = {processes} x {args.batch_size // processes} clips of {fmt.seconds:g} s",
                  f"run: {out}, on {device}" + f", from epoch {start} on" * (not args.probe), sep="\n", flush=True)  # fmt: skip

        # Loop: one loader for all epochs, so that its workers read on where one ends
        mine = training_batches(len(train), args, start, rank, processes)
        batches = None if args.probe else iter(DataLoader(train, batch_sampler=mine, **loading))
        bar = tqdm(total=args.epochs * steps, initial=start * steps, unit="step", disable=rank > 0 or args.probe, mininterval=1)
        for epoch in range(start, args.epochs):
            model.train()
            begun, waited, totals = time.perf_counter(), 0.0, torch.zeros(2, device=device)
            for step in range(steps):
                asked = time.perf_counter()
                clips, labels = next(batches)                                # uint8 (B, 3, T, H, W) or float (B, S)
                waited += time.perf_counter() - asked
                clips, labels = clips.to(device, non_blocking=True), labels.to(device)
                x = front_end(clips, (args.seed, epoch, step, rank))         # (B, 3, T, H, W) or (B, 1, P, Q)
                optimizer.param_groups[0]["lr"] = learning_rate(epoch + step / steps, args)
                with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                    logits = model(x)                                        # (B, C)
                loss = torch.nn.functional.cross_entropy(logits.float(), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                totals += torch.stack([loss.detach(), (logits.argmax(1) == labels).float().mean()])
                mean, right = (totals / (step + 1)).tolist()  # waits for the device, so that `waited` is its idle time
                if not math.isfinite(mean):
                    fail(f"--lr {args.lr:g}: the loss is {mean} in epoch {epoch + 1}, step {step + 1}; take a smaller")
                waiting = waited / (time.perf_counter() - begun)
                bar.set_postfix_str(f"loss {mean:.3f}, {right:.0%} right, {waiting:.0%} waiting", refresh=False)
                bar.update()
            if processes > 1:
                dist.all_reduce(totals)
            mean, right = (totals / steps / processes).tolist()
            row = dict(split=split, epoch=epoch + 1, loss=mean, accuracy=right, lr=optimizer.param_groups[0]["lr"])
            state["log"].append({**row, "seconds": time.perf_counter() - begun, "waiting": waiting})
            state.update(split=split, epoch=epoch + 1, model=net.state_dict(), optimizer=optimizer.state_dict())
            if rank == 0:
                data.write_whole(out / "last.pt", partial(torch.save, state))
                data.write_whole(out / "log.jsonl", partial(Path.write_text, data="\n".join(map(json.dumps, state["log"])) + "\n"))
        bar.close()
        del batches  # ends its workers

        # Evaluate
        if args.probe:
            files = dict(item for sets_of in sets.values() for part in sets_of[:2] for item in part.items)
            if features is None or backbone == "audio" and not weights:  # from scratch each split standardises sound by its own training clips
                features = embed(net, front_end, kind(list(files.items()), fmt, args.clips), rank, processes, loading)
            fit_probe(net.fc, features, train)
        state["confusion"][split] = evaluate(net, front_end, test, len(names), rank, processes, loading, features)
        if rank == 0:
            kept = dict(model=net.state_dict(), classes=names, front_end=data.front_end_state(fmt, video, audio))
            data.write_whole(out / f"split{split}.pt", partial(torch.save, kept))
            data.write_whole(out / "last.pt", partial(torch.save, state))

    # Save
    if rank == 0:
        accuracy = {split: c.trace().item() / c.sum().item() for split, c in state["confusion"].items()}
        counts, mean = sum(state["confusion"].values()), sum(accuracy.values()) / len(accuracy)
        right, tests = counts.diag() / counts.sum(1).clamp(min=1), {split: len(sets[split][1]) for split in splits}
        summary = [f"{args.task} split {split}: {100 * accuracy[split]:.1f} % top-1 of {tests[split]} {unit} each)"
                   for split in splits]  # fmt: skip
        summary += [f"{args.task}: {100 * mean:.1f} %, the mean of {len(splits)} splits"] * (len(splits) > 1)
        result = dict(task=args.task, accuracy=mean, accuracy_of_split=accuracy, tests_of_split=tests, summary=summary,
                      accuracy_of_class=dict(zip(names, right.tolist())), weights=origin, torch=torch.__version__,
                      training_seconds=sum(row["seconds"] for row in state["log"]), settings=settings)  # fmt: skip
        data.write_whole(out / "confusion.png", partial(draw_confusion(counts, names, summary[-1]).savefig, format="png"))
        data.write_whole(out / "result.json", partial(Path.write_text, data=json.dumps(result, indent=1) + "\n"))
        data.write_whole(out / "last.pt", partial(torch.save, {**state, "summary": summary, "model": None, "optimizer": None}))
        print(*summary, sep="\n")
    if processes > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main(parse_arguments())
    except (data.BadInput, OSError) as error:  # out of a worker it comes with the worker's traceback in front
        fail(str(error).split("data.BadInput: ")[-1].strip())
    except torch.OutOfMemoryError:
        fail("--batch-size: a process's share is too large for its GPU (about 1 GB a clip of 32 frames); take less, or more GPUs")
