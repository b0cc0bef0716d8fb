"""Fine-tune a pretrained network on a labelled set, and test it (Sections 4.1 and 7.2).

    python finetune.py --task toy-action --ckpt runs/toy-k16/checkpoint.pt    90 s on two CPU cores
    python finetune.py --task toy-action                                      from scratch
    python finetune.py --task hmdb51 --ckpt runs/movies-k16/checkpoint.pt   one GPU, share by share
    torchrun --nproc_per_node 8 finetune.py --task ucf101 --split all --ckpt FILE      Table 5
    python finetune.py --task hmdb51 --ckpt FILE --probe --shots 1 2 5    few labels of each class

A run is a folder: last.pt (to resume from), result.json, confusion.png, split1.pt (the classifier),
log.jsonl (not of a probe). The same command resumes: after Ctrl-C or SIGTERM where it stopped,
after a kill from the last full epoch; a probe computes its features again. The last epoch counts:
the test files are used once, at the end.

B clips; T frames of H x W pixels; S samples of sound; P mel filters; Q audio frames; C classes;
V views of a test file; D features.
"""

import itertools
import math
import os
import time
import zlib
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from matplotlib.figure import Figure
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader
from tqdm import tqdm

from data import (
    ESC50,
    AudioFrontEnd,
    LabeledVideos,
    VideoFrontEnd,
    front_end_state,
    share_memory,
)
from harness.errors import BadInput, drawable, make_parser, one_line_errors
from harness.flags import check_rules, names_of_flags, rule_of_window
from harness.run import (
    Processes,
    Progress,
    Run,
    StopSignals,
    load_plain,
    obey_parent_only,
    reason_to_end,
    restore_statistics,
    save_tensors,
)
from media.format import ORDER, SHOTS, Format, rng_of
from media.labels import LAYOUTS, SOUNDS
from models import NETWORKS, AudioVisualModel, largest_map, update_statistics

# -------------------------------------------------------------------------------------------------
# Arguments: a task is a row of defaults, which flags override
#
# sizes   crop, scale jitter, and shorter side in testing, in pixels; if a checkpoint has another
#         crop, they are scaled in proportion (7.2 for Table 5, our choice for others)
# sound   the sound of pretraining, for a network that is trained from scratch
# width   that of this network; a checkpoint brings its own
# -------------------------------------------------------------------------------------------------

PAPER = {
    "sizes": (158, (181, 226), 190),
    "sound": {"rate": 48000, "n_fft": 2048, "hop": 512, "mels": 96},
    "width": 64,
}
PAPER_FLAGS = {"warmup": 25, "batch_size": 96, "lr": 0.2, "workers": 8, "clips": 10}
PAPER_SHARE = 12  # clips that are normalised together: 96 on 8 GPUs (our choice)
TOY = {
    "sizes": (28, (32, 40), 34),
    "sound": {"rate": 16000, "n_fft": 1024, "hop": 256, "mels": 64},
    "width": 16,
}
TOY_FLAGS = {"warmup": 5, "lr": 0.05, "workers": 2, "clips": 2, "frames": 8, "fps": 5}
TASKS = {
    "ucf101": {
        **PAPER,
        "layout": "ucf101",
        "splits": 3,
        "share": PAPER_SHARE,
        "flags": {**PAPER_FLAGS, "data": "datasets/ucf101", "epochs": 150, "frames": 32, "fps": 10},
    },
    "hmdb51": {
        **PAPER,
        "layout": "hmdb51",
        "splits": 3,
        "share": PAPER_SHARE,
        "flags": {**PAPER_FLAGS, "data": "datasets/hmdb51", "epochs": 200, "frames": 32, "fps": 10},
    },
    "esc50": {
        **PAPER,
        "layout": "esc50",
        "splits": 5,
        "share": PAPER_SHARE,
        "flags": {**PAPER_FLAGS, "data": "datasets/esc50", "epochs": 200, "frames": 30, "fps": 10},
    },
    "toy-action": {
        **TOY,
        "layout": "ucf101",
        "splits": 3,
        "share": 40,
        "flags": {**TOY_FLAGS, "data": "datasets/toy/action", "epochs": 25, "batch_size": 40},
    },
    "toy-sound": {
        **TOY,
        "layout": "esc50",
        "splits": 5,
        "share": 48,
        "flags": {**TOY_FLAGS, "data": "datasets/toy/sound", "epochs": 20, "batch_size": 48},
    },
}

# What to do if memory is too small: see `harness.errors.one_line_errors`.
TOO_LARGE = {
    torch.OutOfMemoryError: "the memory of this GPU is too small: training takes about 1 GB a clip "
    "of 32 frames, so take a smaller --share; in a test or a probe take fewer --clips"
}
DRAWS = 10  # A probe takes the mean accuracy of this many draws of --shots (our choice).
MAY_CHANGE = ("out", "workers", "processes")  # settings that may differ when a run is resumed


def before(args, digest):
    """The values in effect in an older run, for settings that it lacks.

    It kept no digest: today's is assumed.
    """
    share = args["batch_size"] // args.get("processes", 1)
    return {"clips": 10, "precision": "bf16", "share": share, "digest": digest}


def parse_args(argv=None):
    parser = make_parser(__doc__)
    add_run_flags(parser.add_argument)
    add_training_flags(parser.add_argument)
    add_clip_flags(parser.add_argument)
    known, _ = parser.parse_known_args(argv)
    parser.set_defaults(**TASKS[known.task]["flags"])
    args = parser.parse_args(argv)
    parser.set_defaults(share=min(TASKS[args.task]["share"], args.batch_size))
    if args.share is None:
        args.share = parser.get_default("share")
    if args.shots is not None:
        args.shots = sorted(set(args.shots))  # in any order they make the same run
    if args.out is None:
        args.out = f"runs/{run_name(args, parser)}"
    return args


def add_run_flags(add):
    add("--task", required=True, choices=TASKS, help="4.1; the toy tasks are our choice")
    ckpt = "written by pretrain.py or one of papers/; default: train from scratch"
    add("--ckpt", metavar="FILE", help=ckpt)
    add("--data", metavar="DIR", help="the set as its authors publish it; default in datasets/")
    add(
        "--split",
        default="1",
        help="1, or all: the mean of 3 splits or 5 folds, as in Table 5 (4.1)",
    )
    probe = "leave the network as it is: logistic regression on its features (our choice)"
    add("--probe", action="store_true", help=probe)
    add(
        "--shots",
        type=int,
        nargs="+",
        metavar="N",
        help="train on N files of each class, drawn by the seed and the split; a larger N adds to "
        f"them; default all. A probe tests several N, each by the mean of {DRAWS} draws, and all "
        "files; fine-tuning takes one N, and repeats its files, so that an epoch keeps its steps "
        "(our choice)",
    )
    out = "default runs/TASK-NAME, by the checkpoint's folder and file, or scratch"
    add("--out", metavar="DIR", help=out)
    add("--seed", type=int, default=0, help="our choice, since the paper names none")
    add("--workers", type=int, help="processes that read, for each training process")


def add_training_flags(add):
    add(
        "--width",
        type=int,
        help="channels of the first stage; default the checkpoint's; from scratch 64, as in the "
        "networks that Section 3 cites; toy 16",
    )
    add(
        "--network",
        choices=("r2plus1d_18", "mc3_18"),
        help="the video network that is trained from scratch, as models.py names it; default "
        "R(2+1)D-18 (Section 3); a checkpoint names its own",
    )
    precision = "of the network on a GPU; on a CPU it has fp32 (our choice)"
    add("--precision", choices=("bf16", "fp32"), default="bf16", help=precision)
    add("--epochs", type=int, help="150 on UCF101, 200 on HMDB51, ESC-50 (7.2); toy: 25, 20")
    add(
        "--batch-size",
        type=int,
        help="96, of all processes together (7.2); the incomplete last one of an epoch is dropped",
    )
    add(
        "--share",
        type=int,
        help="clips of the batch that BatchNorm normalises together: 96 / 8 = 12 (our choice); "
        "toy: all; a process takes its shares one after another",
    )
    add("--lr", type=float, help="0.2, at the end of the warm-up, which starts at 0.001 (7.2)")
    add("--warmup", type=int, help="25 epochs, linear, then a cosine (7.2), to 0 (our choice)")
    add("--weight-decay", type=float, default=1e-4, help="1e-4, with momentum 0.9 (7.2)")


def add_clip_flags(add):
    add("--frames", type=int, help="of a clip, 32 (4.1); frames / fps is the length of a sound")
    add("--fps", type=float, help="10 (4.1)")
    add("--crop", type=int, help="158 pixels (4.1); default the checkpoint's own")
    add(
        "--scale",
        type=int,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="shorter side in training, 181 to 226 pixels (4.1); default in proportion to --crop",
    )
    short_side = "shorter side in testing, 190 pixels; default in proportion to --crop (our choice)"
    add("--short-side", type=int, help=short_side)
    clips = "10 of a test file, for a video each in 3 crops (4.1); toy: 2"
    add("--clips", type=int, help=clips)
    add("--jitter", type=float, default=0.4, help="sigma of the colour jitter (our choice)")
    add("--mask", type=float, default=0.5, help="widest dropped band, in time and in mels (4.1)")


def run_name(args, parser):
    """The task, the checkpoint, and every flag that makes it another run."""
    name = f"{args.task}-{name_of_weights(args.ckpt)}"
    if args.probe:
        name += "-probe"
    elsewhere = ("task", "ckpt", "probe", *MAY_CHANGE)
    return name + names_of_flags(args, parser, elsewhere)


def name_of_weights(ckpt):
    """The checkpoint's folder and file, or scratch."""
    if ckpt is None:
        return "scratch"
    checkpoint = Path(ckpt).resolve()
    if checkpoint.stem == "checkpoint":
        return checkpoint.parent.name
    return f"{checkpoint.parent.name}-{checkpoint.stem}"  # epoch2.pt, of pretrain.py --keep


def check_args(args, task, world_size):
    """Raise BadInput for every mistake that the flags and the checkpoint show."""
    low, high = args.scale
    shares = args.batch_size // max(1, args.share)
    shots = args.shots or []
    splits = [str(split) for split in range(1, task["splits"] + 1)]
    share = f"2 or more, and a divisor of --batch-size, {args.batch_size}"
    batch_size = f"{args.share} for each process or a multiple, since each of the {world_size} "
    batch_size += "takes whole shares (or lower --share)"
    epochs = f"more than --warmup {args.warmup}, which must be 0 or more"
    scale = f"ascending, from --crop {args.crop} or more, which must be positive"
    rules = [
        ("split", args.split in ["all", *splits], f"1 to {task['splits']}, or all"),
        ("shots", min(shots, default=1) >= 1, "1 or more"),
        ("shots", len(shots) <= 1 or args.probe, "one number, unless with --probe"),
        ("batch_size", args.batch_size > 0, "above 0"),
        ("share", args.share >= 2 and args.batch_size % args.share == 0, share),
        ("batch_size", args.probe or shares % world_size == 0, batch_size),
        ("epochs", args.probe or args.epochs > args.warmup >= 0, epochs),
        ("scale", 0 < args.crop <= low <= high, scale),
        ("short_side", args.crop <= args.short_side, f"--crop {args.crop} or more"),
        ("lr", args.lr > 0, "above 0"),
        ("weight_decay", args.weight_decay >= 0, "0 or more"),
        ("mask", 0 <= args.mask <= 1, "from 0 to 1"),
        ("width", args.width >= 8 and args.width % 8 == 0, "a multiple of 8"),
        ("network", args.network is None or args.ckpt is None, "left out: --ckpt names its own"),
        (
            "network",
            args.network is None or task["layout"] not in SOUNDS,
            "left out: it sees no sound",
        ),
        ("frames", args.frames >= 1, "1 or more"),
        ("fps", args.fps >= 0.1, "0.1 or more"),
        ("clips", args.clips >= 1, "1 or more"),
        ("jitter", args.jitter >= 0, "0 or more"),
        ("seed", args.seed >= 0, "0 or more"),
        ("workers", args.workers >= 0, "0 or more"),
    ]
    check_rules(args, rules)


def check_length(task, fmt):
    """Raise BadInput for sounds that are too short for a window of their spectrogram."""
    _, has_room, _ = rule_of_window(fmt)
    if task["layout"] in SOUNDS and not has_room:
        least = fmt.n_fft / 2 / fmt.rate
        raise BadInput(
            f"--frames {fmt.frames} --fps {fmt.fps:g}: a sound lasts frames / fps seconds, which "
            f"must be more than {least:.3g} s, half a window of its spectrogram"
        )


# -------------------------------------------------------------------------------------------------
# What is fine-tuned, and on what
# -------------------------------------------------------------------------------------------------


class Source:
    """Where the weights come from: a checkpoint of pretraining, or a random initialisation.

    backbone     "video" or "audio"
    network      its name in `models.NETWORKS`
    width        channels of its first stage
    weights      its state dict; empty from scratch
    front_end    what the front-ends must do, see `data.front_end_state`
    origin       where the weights come from, in words
    epoch, step  of pretraining, when they were saved; None from scratch
    standardise  whether sound is standardised by each training set: from scratch only
    """

    def __init__(self, args, task):
        self.backbone = "audio" if task["layout"] in SOUNDS else "video"
        self.standardise = self.backbone == "audio" and args.ckpt is None
        self.epoch, self.step = None, None
        if args.ckpt is not None:
            self.read(args.ckpt, args.width)
            return
        fmt = Format(crop=task["sizes"][0], **task["sound"])
        self.network = AudioVisualModel.networks[self.backbone]
        if self.backbone == "video" and args.network:
            self.network = args.network
        self.width = task["width"] if args.width is None else args.width
        self.weights = {}
        self.front_end = front_end_state(fmt, VideoFrontEnd(), AudioFrontEnd(fmt))
        self.origin = "random"

    def read(self, path, width):
        """Read a checkpoint. Raises BadInput unless every weight of the backbone is there."""
        checkpoint = load_checkpoint(path)
        missing = {"front_end", "args", "progress", self.backbone}.difference(checkpoint)
        if missing:
            raise BadInput(
                f"--ckpt {path}: lacks {', '.join(sorted(missing))}, which the task needs; it has "
                f"{', '.join(checkpoint)}. Name the checkpoint.pt of a pretraining"
            )
        # Older checkpoints do not name their networks, which were always these.
        networks = checkpoint.get("networks", AudioVisualModel.networks)
        self.network = networks.get(self.backbone)
        if self.network not in NETWORKS:
            raise BadInput(
                f"--ckpt {path}: its {self.backbone} network is {self.network}, which models.py "
                f"lacks; it has {', '.join(NETWORKS)}. Take the version of this code that wrote it"
            )
        self.weights = checkpoint[self.backbone]
        self.front_end = checkpoint["front_end"]
        self.width = checkpoint["args"]["width"]
        if width not in (None, self.width):
            raise BadInput(
                f"--width {width}: {path} was pretrained with --width {self.width}; leave the flag "
                "out, and it is taken from there"
            )
        self.check_shapes(path)
        progress, k = checkpoint["progress"], checkpoint["args"].get("k")
        self.epoch, self.step = progress["epoch"], progress["step"]
        when = f"epoch {self.epoch}, step {self.step}, k {k}"
        self.origin = f"{self.backbone} of {Path(path)} ({when})"

    def check_shapes(self, path):
        wanted = {name: x.shape for name, x in self.make_network().state_dict().items()}
        found = {name: x.shape for name, x in self.weights.items()}
        names = [*wanted, *(name for name in found if name not in wanted)]
        wrong = [name for name in names if wanted.get(name) != found.get(name)]
        if wrong:
            raise BadInput(
                f"--ckpt {path}: {len(wrong)} weights of {self.backbone} are missing, unknown or "
                f"of another shape: {', '.join(wrong[:3])}; was it written by this code?"
            )

    def digest(self):
        """A number of the weights, since a file at the same path may be another one later."""
        found = 0
        for name in sorted(self.weights):
            found = zlib.crc32(self.weights[name].contiguous().numpy().tobytes(), found)
        return found

    def make_network(self, classes=0):
        return NETWORKS[self.network](self.width, classes)

    def describe(self):
        """The origin, a network that is not the paper's, and the size where there are weights."""
        origin = self.origin
        if self.network != AudioVisualModel.networks[self.backbone]:
            origin += f", {self.network}"
        if not self.weights:
            return origin
        size = sum(x.numel() for x in self.make_network().parameters()) / 1e6
        return f"{origin}: {len(self.weights)} tensors, {size:.1f} M parameters"


def load_checkpoint(path):
    if os.path.isdir(path):
        raise BadInput(f"--ckpt {path}: is a folder; name the file in it, {path}/checkpoint.pt")
    try:
        return load_plain(path)
    except BadInput as error:
        raise BadInput(
            f"--ckpt {path}: not a checkpoint of a pretraining ({error}); name a checkpoint.pt"
        ) from error


def set_sizes(args, task, front_end):
    """Pixels that no flag gives follow the crop of pretraining, in proportion.

    The paper says so for Table 5 (7.2); for other crops it is our choice.
    """
    crop, scale, short_side = task["sizes"]
    if args.crop is None:
        args.crop = front_end["crop"]
    if args.scale is None:
        args.scale = [round(side * args.crop / crop) for side in scale]
    if args.short_side is None:
        args.short_side = round(short_side * args.crop / crop)


def make_set(items, fmt, args, task):
    if task["layout"] in SOUNDS:
        return ESC50(items, fmt, args.clips)
    return LabeledVideos(items, fmt, args.clips, scale=args.scale)


def draw_shots(items, names, shots, seed, split, draw=0):
    """This number of files of each class, drawn at random: [(path, label)].

    First comes one file of each class, then a second of each, and so on: a smaller number has the
    same files up to there. Raises BadInput for a class that has too few.
    """
    files_of_class = []
    for label, name in enumerate(names):
        files = [item for item in items if item[1] == label]
        if len(files) < shots:
            raise BadInput(
                f"--shots {shots}: in split {split}, class {name} has only {len(files)} files to "
                "train on; take no more than that"
            )
        order = rng_of((seed, split, draw, label), SHOTS).permutation(len(files))
        files_of_class.append([files[i] for i in order[:shots]])
    return [item for turn in zip(*files_of_class) for item in turn]


def read_splits(args, task, fmt):
    """{split: (training set, test set, class names)} of those that --split asks for.

    With --shots the training set of a fine-tuning has the drawn files alone, and that of a probe
    has all.
    """
    splits = [args.split]
    if args.split == "all":
        splits = range(1, task["splits"] + 1)
    sets = {}
    for split in map(int, splits):
        train, test, names = read_lists(args.data, task["layout"], split)
        if len(train) < args.batch_size and not args.probe:
            raise BadInput(
                f"--batch-size {args.batch_size}: {args.data} has only {len(train)} files to train "
                "on; take a smaller batch, or fetch the whole set"
            )
        if args.shots:
            drawn = draw_shots(train, names, max(args.shots), args.seed, split)
            if not args.probe:
                # An epoch has as many steps as with all files, since the schedule of 7.2 counts
                # epochs. Each repetition has a place in the epoch, and so a key, of its own.
                train = list(itertools.islice(itertools.cycle(drawn), len(train)))
        sets[split] = (make_set(train, fmt, args, task), make_set(test, fmt, args, task), names)
    return sets


def read_lists(root, layout, split):
    """The published lists of a split: what to train on and to test on, [(path, label)]; classes."""
    train, names = LAYOUTS[layout](root, split, True)
    test, _ = LAYOUTS[layout](root, split, False)
    if not test:
        raise BadInput(f"--data {root}: its lists name no file to test; fetch the whole set")
    return train, test, names


def unique_items(sets):
    """The items of all splits, each once: a probe embeds a file once for all of them."""
    labels = {}
    for train, test, _ in sets.values():
        labels.update(train.items)
        labels.update(test.items)
    return list(labels.items())


def make_front_ends(args, fmt, source, train):
    """Both front-ends. From scratch, sound is standardised by its training set.

    With --shots that is the drawn files, but in a probe all of them, whose labels it does not use:
    the features are computed once for all draws.
    """
    state = source.front_end
    video = VideoFrontEnd(args.jitter, flip=True, mean=state["video_mean"], std=state["video_std"])
    audio = AudioFrontEnd(
        fmt, args.mask, both=True, mean=state["log_mel_mean"], std=state["log_mel_std"]
    )
    if source.standardise:
        measure_sound(audio, train, args.seed)
    return video, audio


def measure_sound(audio, train, seed):
    """Standardise sound by a random clip of each of up to 256 files, evenly spaced."""
    every = math.ceil(len(train) / 256)
    clips = [train[i, (seed, 0, 0, i)][0] for i in range(0, len(train), every)]
    audio.measure(torch.stack(clips))


# -------------------------------------------------------------------------------------------------
# Training
# -------------------------------------------------------------------------------------------------


def own_shares(number_of_files, start, args, processes):
    """Yield the shares of this process, from step `start` on: lists of (file, key).

    They depend on (seed, epoch, step, place in the batch) alone. So neither workers nor a kill nor
    the number of processes change them.
    """
    steps = number_of_files // args.batch_size  # of an epoch
    own = processes.own(args.batch_size // args.share)
    first_epoch, first_step = divmod(start, steps)
    for epoch in range(first_epoch, args.epochs):
        order = rng_of((args.seed, epoch), ORDER).permutation(number_of_files)
        for step in range(first_step, steps):
            files = order[step * args.batch_size : (step + 1) * args.batch_size]
            batch = [(file, (args.seed, epoch, step, i)) for i, file in enumerate(files)]
            for share in own:
                yield batch[share * args.share : (share + 1) * args.share]
        first_step = 0


def learning_rate(epoch, args):
    """7.2, at a fraction of an epoch: linear from 0.001 to --lr, then a cosine to 0 (ours)."""
    if epoch < args.warmup:
        return 1e-3 + (args.lr - 1e-3) * epoch / args.warmup
    angle = math.pi * (epoch - args.warmup) / (args.epochs - args.warmup)
    return args.lr * (1 + math.cos(angle)) / 2


def resume_split(net, optimizer, state, split, steps, processes):
    """Load what an interrupted run has saved of this split.

    steps  of an epoch

    Returns the steps that are done, and the totals of the last epoch so far: see `means_of`.
    """
    totals = torch.zeros(5)
    if state["split"] != split:
        return 0, totals
    net.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    step = state.get("step", 0)  # of the epoch; older runs were saved between epochs only
    where = f"epoch {state['epoch']}" + (f" and step {step}" if step else "")
    processes.report(f"resumed after {where}")
    saved = torch.tensor(state.get("totals", []))  # older runs have fewer of them, or none
    totals[: len(saved)] = saved
    return state["epoch"] * steps + step, totals


def loss_of_share(clips, labels, batch_key, front_end, model, processes):
    """The cross-entropy of one share, with its graph, and the accuracy: scalars on the device.

    clips   uint8 (B, 3, T, H, W) or float (B, S), as the labelled sets read them
    labels  (B,)
    """
    labels = labels.to(processes.device, non_blocking=True)
    # Front-end: (B, 3, T, H, W) or (B, 1, P, Q).
    x = front_end(clips.to(processes.device, non_blocking=True), batch_key)
    # Logits (B, C).
    with processes.autocast():
        logits = model(x)
    loss = torch.nn.functional.cross_entropy(logits.float(), labels)
    return loss, (logits.argmax(1) == labels).float().mean()


def start_training(net, files, split, state, args, processes):
    """Return the optimiser, the steps done, their totals, the parallel model, and the shares."""
    optimizer = torch.optim.SGD(
        net.parameters(), args.lr, momentum=0.9, weight_decay=args.weight_decay
    )
    steps = len(files) // args.batch_size
    start, totals = resume_split(net, optimizer, state, split, steps, processes)
    model = processes.parallel(net)
    model.train()
    # One loader reads for all epochs, so that its workers do not stop between them.
    samples = own_shares(len(files), start, args, processes)
    loader = DataLoader(files, batch_sampler=samples, **loading(args, processes))
    return optimizer, start, totals, model, iter(loader)


def train(net, front_end, files, split, state, run, args, processes):
    """Fine-tune all layers with SGD (7.2), from where `state` has got to."""
    prepared = start_training(net, files, split, state, args, processes)
    optimizer, start, totals, model, batches = prepared
    steps = len(files) // args.batch_size  # of an epoch
    total_steps = args.epochs * steps
    shares = args.batch_size // args.share
    own = processes.own(shares)
    skipped_in_a_row = 0
    progress = Progress(processes, start, total_steps)
    with StopSignals() as signals:
        for number in range(start, total_steps):
            # Shares, one after another: a step takes the mean of their gradients.
            began, waited = time.perf_counter(), 0.0
            epoch, step = divmod(number, steps)
            statistics = [buffer.clone() for buffer in net.buffers()]
            sums = 0.0  # of loss and accuracy
            optimizer.zero_grad()
            for share in own:
                tick = time.perf_counter()
                clips, labels = next(batches)
                waited += time.perf_counter() - tick
                batch_key = (args.seed, epoch, step, share)
                update_statistics(net, share == 0)
                with processes.accumulate(model, is_last=share == own[-1]):
                    parts = loss_of_share(clips, labels, batch_key, front_end, model, processes)
                    (parts[0] / len(own)).backward()
                sums = sums + torch.stack([part.detach() for part in parts]) / shares
            # Step, unless a loss or a gradient is not finite. The host waits for the device once.
            norm = get_total_norm([weights.grad for weights in net.parameters()])
            not_finite = ~(sums[0].isfinite() & norm.isfinite())
            loss, accuracy, not_finite, stop = processes.sum_over_ranks(
                *sums, not_finite, signals.received is not None
            )
            optimizer.param_groups[0]["lr"] = learning_rate(epoch + step / steps, args)
            if not_finite:
                restore_statistics(net, statistics)
                skipped_in_a_row += 1
                state["skipped"] += 1
            else:
                optimizer.step()
                skipped_in_a_row = 0
                totals[:3] += torch.tensor([loss, accuracy, 1])
            totals[3:] += torch.tensor([time.perf_counter() - began, waited])
            progress.update(describe_totals(totals))
            # Log and save.
            ends_epoch = step + 1 == steps
            if ends_epoch:
                log_epoch(run, split, epoch, totals, optimizer, state)
                totals = torch.zeros(5)
            done = number + 1
            end = reason_to_end(
                stop, skipped_in_a_row, signals, run, done, total_steps, is_tested=True
            )
            if end or ends_epoch:
                save(run, state, split, done, steps, totals, net, optimizer)
            if end:
                processes.end_together()
                raise end
    progress.close()


def means_of(totals):
    """The mean loss and accuracy of the steps so far, and the fraction of the time spent waiting.

    totals  (5,) of an epoch so far: the sums of loss and accuracy, and the steps that they are of;
            its seconds, and those of waiting for data

    The first two are NaN if all steps were skipped.
    """
    loss, accuracy, steps, seconds, waited = totals
    return (loss / steps).item(), (accuracy / steps).item(), (waited / seconds).item()


def describe_totals(totals):
    loss, accuracy, waiting = means_of(totals)
    return f"loss {loss:.3f}, {accuracy:.0%} right, {waiting:.0%} waiting"


def log_epoch(run, split, epoch, totals, optimizer, state):
    """Log the means over the steps of an epoch: see `means_of`."""
    loss, accuracy, waiting = means_of(totals)
    row = {"split": split, "epoch": epoch + 1}
    if totals[2] > 0:
        row |= {"loss": loss, "accuracy": accuracy}
    times = {"seconds": totals[3].item(), "waiting": waiting}
    run.log(**row, lr=optimizer.param_groups[0]["lr"], **times, skipped=state["skipped"])


def save(run, state, split, number, steps, totals, net, optimizer):
    """Write last.pt: what resumes this split after so many steps."""
    epoch, step = divmod(number, steps)
    state.update(split=split, epoch=epoch, step=step, totals=totals.tolist(), log=run.rows)
    state.update(model=net.state_dict(), optimizer=optimizer.state_dict())
    run.save(state)


def loading(args, processes):
    return {
        "num_workers": args.workers,
        "pin_memory": processes.on_gpu,
        "worker_init_fn": obey_parent_only,
    }


# -------------------------------------------------------------------------------------------------
# Probe: logistic regression on the features of a network that stays as it is
# -------------------------------------------------------------------------------------------------


def own_files(files, processes):
    """The numbers of the files that this rank tests or embeds."""
    return range(processes.rank, len(files), processes.world_size)


def read_views(files, numbers, what, processes, workers):
    """Read all views of these files, one file after another: an iterator over (views, label)."""
    loader = DataLoader(
        files,
        batch_size=None,
        sampler=[(i, None) for i in numbers],
        collate_fn=share_memory,
        num_workers=workers,
        pin_memory=processes.on_gpu,
    )
    return tqdm(loader, what, disable=processes.rank > 0, mininterval=1)


@torch.no_grad()
def embed(net, front_end, files, processes, workers=0):
    """{path: (V, D)}: the averaged features of the views of all files, on every process.

    Raises BadInput if some are not finite.
    """
    net.eval()
    device = processes.device
    mine = own_files(files, processes)
    features = {}
    # Views x: uint8 (V, 3, T, H, W) or float (V, S).
    for i, (x, _) in zip(mine, read_views(files, mine, "features", processes, workers)):
        path, _ = files.items[i]
        with processes.autocast():
            x = net.features(front_end(x.to(device, non_blocking=True)))
        features[path] = net.avgpool(x.float()).flatten(1).cpu()
    if processes.world_size > 1:
        parts = [None] * processes.world_size
        dist.all_gather_object(parts, features)
        features = {path: x for part in parts for path, x in part.items()}
    not_finite = sum(not x.isfinite().all() for x in features.values())
    if not_finite:
        raise BadInput(
            f"features of {not_finite} of {len(files)} files are not finite; name another --ckpt"
        )
    return features


def fit_probe(fc, features, items):
    """Set fc to the logistic regression on standardised features of these files, [(path, label)].

    It minimises cross-entropy + |W|^2 / (2 * files).
    """
    fit_linear(fc, features, items, torch.nn.functional.cross_entropy, size=len(items))


def fit_linear(fc, features, items, loss, size):
    """Set fc to a linear classifier of standardised features of these files, [(path, label)].

    It minimises loss + |W|^2 / (2 * size), in fp64, with at most 1000 iterations of L-BFGS. The
    biases are free.

    loss  of scores (N * V, C) and labels (N * V,), a mean over the views
    """
    x = torch.stack([features[path] for path, _ in items]).to(fc.weight).double()  # (N, V, D)
    labels = torch.tensor([label for _, label in items], device=x.device)
    y = labels[:, None].expand(x.shape[:2]).flatten()  # (N * V,)
    mean = x.mean((0, 1))
    std = x.std((0, 1))
    # A few files may hardly differ in a feature in which others do: without a floor (our choice),
    # that difference would count a million times.
    std = std.clamp(min=0.01 * std.mean()).clamp(min=1e-6)
    x = ((x - mean) / std).flatten(0, 1)  # (N * V, D)
    weight = torch.zeros_like(fc.weight, dtype=torch.double, requires_grad=True)
    bias = torch.zeros_like(fc.bias, dtype=torch.double, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=1000, line_search_fn="strong_wolfe")

    def objective():
        optimizer.zero_grad()
        total = loss(x @ weight.T + bias, y) + weight.square().sum() / (2 * size)
        total.backward()
        return total

    optimizer.step(objective)
    with torch.no_grad():
        fc.weight.copy_(weight / std)
        fc.bias.copy_(bias - weight @ (mean / std))


def probe_shots(fc, features, split, sets, args, processes):
    """{shots: the mean accuracy, over DRAWS draws, of a probe of so few files of each class}."""
    train_files, test_files, names = sets[split]
    accuracy = {}
    for shots in args.shots:
        right = 0
        for draw in range(DRAWS):
            drawn = draw_shots(train_files.items, names, shots, args.seed, split, draw)
            fit_probe(fc, features, drawn)
            predictions = predict_from_features(fc, features, test_files, processes)
            right += evaluate(predictions, test_files, len(names), processes).trace().item()
        accuracy[shots] = right / (DRAWS * len(test_files))
    return accuracy


# -------------------------------------------------------------------------------------------------
# Testing
# -------------------------------------------------------------------------------------------------


@torch.no_grad()
def predict(net, front_end, files, processes, workers=0):
    """Yield (logits (V, C), label) of the test files of this rank."""
    processes.share_buffers(net)  # an answer must not depend on which rank gives it
    net.eval()
    mine = own_files(files, processes)
    for x, label in read_views(files, mine, "test", processes, workers):
        x = front_end(x.to(processes.device, non_blocking=True))  # (V, 3, T, H, W), (V, 1, P, Q)
        with processes.autocast():
            logits = net(x)
        yield logits.float(), label


@torch.no_grad()
def predict_from_features(fc, features, files, processes):
    """Yield (logits (V, C), label) of the test files of this rank, from what `embed` returned."""
    for path, label in files.items[processes.rank :: processes.world_size]:
        yield fc(features[path].to(processes.device)), label


def evaluate(predictions, files, classes, processes):
    """Count the answers: (C, C), true by predicted class.

    The answer for a file is the mean of the softmax of its views (our choice: 4.1 averages "the
    model predictions"). Each file counts once, on any number of processes.

    Raises BadInput if one of the answers is not finite: the highest of them means nothing.
    """
    counts = torch.zeros(classes, classes, dtype=torch.int64, device=processes.device)
    not_finite = torch.zeros((), dtype=torch.int64, device=processes.device)
    for logits, label in predictions:
        answer = logits.softmax(1).mean(0).argmax()
        counts[label, answer] += 1
        not_finite += ~logits.isfinite().all()
    if processes.world_size > 1:
        dist.all_reduce(counts)
        dist.all_reduce(not_finite)
    if not_finite > 0:
        raise BadInput(
            f"the network's answers for {not_finite} of {len(files)} test files are not finite; "
            "name another --ckpt, or take a lower --lr with another --out"
        )
    assert counts.sum() == len(files), "a test file was skipped, or counted twice"
    return counts.cpu()


def draw_confusion(counts, names, title, path):
    """Each row is a true class: the fraction of its test files taken for each class."""
    percent = 100 * counts / counts.sum(1, keepdim=True).clamp(min=1)
    few = len(names) < 30
    side = 3 + max(3.5, 0.14 * len(names))
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot(
        title=title, xlabel="predicted (% of the true class; darker is more)", ylabel="true"
    )
    axes.imshow(percent.numpy(), vmin=0, vmax=160, cmap="Blues")  # 100 % is not too dark to read on
    font = 9 if few else 7
    names = [drawable(name) for name in names]
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=font)
    axes.set_yticks(range(len(names)), names, fontsize=font)
    if few:
        for i, j in percent.round().nonzero().tolist():
            axes.text(j, i, f"{percent[i, j]:.0f}", ha="center", va="center")
    figure.savefig(path, format="png")


# -------------------------------------------------------------------------------------------------
# The run
# -------------------------------------------------------------------------------------------------


def views_of(args, source):
    """What is tested, in words."""
    if source.backbone == "audio":
        return f"sounds ({args.clips} views each)"
    return f"videos ({3 * args.clips} views each)"


def report_split(args, source, fmt, split, sets, out, processes):
    """Print what is done on a split, before it begins."""
    train_files, test_files, names = sets[split]
    report, world_size = processes.report, processes.world_size
    views = views_of(args, source)
    number = f"{len(train_files)}"
    if args.shots and not args.probe:
        number = f"{args.shots[0] * len(names)} of {number}"
    files = f"train {number}, test {len(test_files)} {views}"
    report(f"{args.task} split {split}: {len(names)} classes, {files}")
    new = "fc.weight, fc.bias" if source.weights else "all"
    report(f"weights: {source.describe()}; new: {new}")
    if args.probe:
        recipe = "recipe: logistic regression on frozen features"
        if args.shots:
            numbers = ", ".join(map(str, args.shots))
            recipe += f" of all files, and of {numbers} of each class ({DRAWS} draws)"
        report(recipe)
    else:
        steps = len(train_files) // args.batch_size
        lr = f"lr 0.001 to {args.lr:g} in {args.warmup}, then to 0"
        report(f"recipe: {args.epochs} epochs of {steps} steps, {lr}")
        clips = f"{args.batch_size // args.share} x {args.share} clips normalised together"
        report(f"batch: {args.batch_size} = {clips}, of {fmt.seconds:g} s")
    report(f"run: {out}, on {world_size} x {processes.device.type} in {processes.precision}")


def repeat_exactly():
    """Make the same command give the same weights again, as far as torch can."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS does not repeat
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # All of it is written to anyway.
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def summarise(args, source, state, sets):
    """The accuracies of the splits, a line for each, and their mean if there are several."""
    views = views_of(args, source)
    task = args.task
    if args.shots and not args.probe:
        task += f" --shots {args.shots[0]}"
    accuracy, lines = {}, []
    for split, counts in state["confusion"].items():
        accuracy[split] = counts.trace().item() / counts.sum().item()
        percent = f"{100 * accuracy[split]:.1f} % top-1"
        lines.append(f"{task} split {split}: {percent} of {len(sets[split][1])} {views}")
    mean = sum(accuracy.values()) / len(accuracy)
    if len(accuracy) > 1:
        lines.append(f"{task}: {100 * mean:.1f} %, the mean of {len(accuracy)} splits")
    return accuracy, mean, lines


def summarise_shots(args, state):
    """What result.json has of a probe of few files of each class, and a line for each number."""
    of_split = state["accuracy_of_shots"]
    accuracy, lines = {}, []
    for shots in args.shots:
        accuracy[shots] = sum(of_shots[shots] for of_shots in of_split.values()) / len(of_split)
        draws = f"the mean of {DRAWS} draws"
        if len(of_split) > 1:
            draws += f" in each of {len(of_split)} splits"
        lines.append(f"{args.task} --shots {shots}: {100 * accuracy[shots]:.1f} % top-1, {draws}")
    return {"accuracy_of_shots": accuracy, "accuracy_of_shots_of_split": of_split}, lines


def finish(args, source, state, sets, run):
    """Write confusion.png and result.json; return the lines to print."""
    accuracy, mean, lines = summarise(args, source, state, sets)
    few = {}
    if args.probe and args.shots:
        few, few_lines = summarise_shots(args, state)
        lines = few_lines + lines
    counts = sum(state["confusion"].values())
    *_, names = next(iter(sets.values()))
    right = counts.diag() / counts.sum(1).clamp(min=1)
    if state["skipped"]:
        problem = "a loss or a gradient was not finite"
        lines.insert(0, f"{args.task}: {state['skipped']} steps were skipped, since {problem}")
    run.write("confusion.png", partial(draw_confusion, counts, names, lines[-1]))
    run.finish(
        {
            "task": args.task,
            "accuracy": mean,
            "accuracy_of_split": accuracy,
            **few,
            "tests_of_split": {split: len(sets[split][1]) for split in accuracy},
            "summary": lines,
            "accuracy_of_class": dict(zip(names, right.tolist())),
            "weights": source.describe(),
            "pretraining_epoch": source.epoch,
            "pretraining_step": source.step,
            "skipped": state["skipped"],
            "training_seconds": sum(row["seconds"] for row in state["log"]),
            "settings": run.settings,
        }
    )
    run.save({**state, "summary": lines, "model": None, "optimizer": None})
    run.checkpoint_before.unlink(missing_ok=True)
    return lines


def main(args):
    # Arguments. Every process checks all of them before any work.
    processes = Processes(args.precision)
    rank, world_size = processes.rank, processes.world_size
    task = TASKS[args.task]
    source = Source(args, task)
    args.width = source.width
    set_sizes(args, task, source.front_end)
    check_args(args, task, world_size)
    sound = {name: source.front_end[name] for name in task["sound"]}
    fmt = Format(args.frames, args.fps, args.short_side, args.crop, **sound)
    check_length(task, fmt)
    sets = read_splits(args, task, fmt)
    settings = {**vars(args), "weights": source.describe(), "processes": world_size}
    settings["digest"] = source.digest()

    # Processes, and the folder of the run.
    repeat_exactly()
    processes.start()
    if source.backbone == "video":
        largest = largest_map(args.width, args.frames, args.crop, source.network)
        processes.check_gpu(0 if args.probe else args.share, largest, args.clips)
    older = partial(before, digest=settings["digest"])
    run = Run(args.out, processes, settings, MAY_CHANGE, older, file="last.pt", foreign="*")
    nothing = {"split": None, "epoch": 0, "log": [], "skipped": 0}
    nothing |= {"confusion": {}, "accuracy_of_shots": {}}  # of the splits that are tested
    state = nothing | (run.checkpoint or {})
    if state.get("summary"):
        processes.report("\n".join([f"{args.out} was finished before", *state["summary"]]))
        processes.end()
        return
    run.begin(state["log"])
    run.save(state)  # From here on the folder is this run's.

    features = None  # of the probe
    all_files = make_set(unique_items(sets), fmt, args, task)
    for split, (train_files, test_files, names) in sets.items():
        if split in state["confusion"]:
            continue
        # Data and model.
        video_front, audio_front = make_front_ends(args, fmt, source, train_files)
        front_end = {"video": video_front, "audio": audio_front}[source.backbone]
        front_end = front_end.to(processes.device)
        torch.manual_seed(args.seed)
        net = source.make_network(len(names))
        missing, unexpected = net.load_state_dict(source.weights, strict=False)
        if source.weights:
            assert missing == ["fc.weight", "fc.bias"] and not unexpected
        net.to(processes.device)
        report_split(args, source, fmt, split, sets, run.out, processes)

        # Train, and test.
        if args.probe:
            if features is None or source.standardise:
                features = embed(net, front_end, all_files, processes, args.workers)
            if args.shots:
                few = probe_shots(net.fc, features, split, sets, args, processes)
                state["accuracy_of_shots"][split] = few
            fit_probe(net.fc, features, train_files.items)
            predictions = predict_from_features(net.fc, features, test_files, processes)
        else:
            train(net, front_end, train_files, split, state, run, args, processes)
            predictions = predict(net, front_end, test_files, processes, args.workers)
        state["confusion"][split] = evaluate(predictions, test_files, len(names), processes)

        # Save.
        classifier = {
            "model": net.state_dict(),
            "classes": names,
            "networks": {source.backbone: source.network},
            "front_end": front_end_state(fmt, video_front, audio_front),
        }
        run.write(f"split{split}.pt", partial(save_tensors, classifier))
        run.save(state)

    if rank == 0:
        lines = finish(args, source, state, sets, run)
        processes.report("\n".join(lines))
    processes.end()


if __name__ == "__main__":
    with one_line_errors(
        "finetune.py",
        interrupted="the same command resumes from the last epoch; a probe begins again",
        hints=TOO_LARGE,
    ):
        main(parse_args())
