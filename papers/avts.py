"""AVTS: is this sound in sync with this video? "Cooperative Learning of Audio and Video Models from
Self-Supervised Synchronization" (Korbar, Tran, Torresani, 2018).

    python -m papers.avts --toy                           the toy world, on a CPU, in minutes
    python -m media prepare FILMS datasets/movies-25fps --frames 25 --fps 25 --short-side 224
    torchrun --nproc_per_node 4 -m papers.avts            the paper: 4 GPUs, datasets/movies-25fps
    python -m papers.avts                                 the same run on one GPU, share by share
    python -m papers.avts --hard-share 0                  its ablations: easy negatives only,
    python -m papers.avts --hard-share 1 --hard-after 0   hard ones only,
    python -m papers.avts --hard-after 0                  both from the start,
    python -m papers.avts --superhard                     overlapping ones in place of hard ones

Sampler, data, runs and checkpoints are those of pretrain.py, and so is the audio network. What
differs:

    network     That of the video is MC3-18, unless --network r2plus1d_18 takes pretrain.py's.
    question    Each pair of a video and a sound is in sync or not, by its distance alone, where
                pretrain.py asks which sound of a share is that of a video.
    negatives   Easy ones are of other titles. Hard ones are of the same title, 0.5 s or more away.
    curriculum  Easy ones alone at first; after 50 epochs a quarter of the negatives are hard.
    snippets    They overlap, on a grid finer than a snippet. Nothing but the crop is random in
                them: no bands of the spectrogram drop out.

We had only the paper's abstract, which has the task, a contrastive loss, a curriculum and a choice
of negatives. We remember, unverified, the loss and its margin, the kinds of negatives, the epochs
and fractions of the curriculum, MC3-18, 25 frames at 25 fps of 224 pixels, 1 s of sound in 40 mel
filters every 10 ms with an FFT of 1024, and 4 GPUs with 16 each. A public fork of SlowFast has
this loss, on halved embeddings of unit length. Our choices are two snippets of a window of 10 s of
film, where the paper has clips of 10 s; the audio ResNet-18 and the cosine of pretrain.py with
Adam, since we know neither the layers of the paper's VGG-like network nor its learning rate; and
what is marked so below.

An epoch passes over each second twice. The 90 epochs are for clips; on 100 films of 105 min they
would be 1.6 million steps, so films take fewer --epochs and an earlier --hard-after.

B samples of a share, each a snippet with its frames and sound; T frames of H x W pixels; S samples
of sound; P mel filters; Q audio frames; d = 512, the size of an embedding.
"""

import math
import time
from functools import partial

import torch
import torch.nn.functional as F
from torch.nn.utils import get_total_norm

from data import (
    AudioFrontEnd,
    VideoFrontEnd,
    begin_or_resume,
    check_two_titles,
    embed_held_out,
    front_end_state,
    next_batch,
    open_titles,
    own_shares,
    read_shares,
    some_shares,
)
from harness.curves import draw, summarise
from harness.errors import BadInput, make_parser, one_line_errors
from harness.flags import MAY_CHANGE, add_run_flags, check_rules, names_of_flags, rules_of_run
from harness.run import (
    TOO_LARGE,
    Processes,
    Progress,
    Run,
    StopSignals,
    count,
    count_step,
    describe_groups,
    describe_rate,
    finish_run,
    log_step,
    reason_to_end,
    report_run,
    report_titles,
    restore_statistics,
    save_run,
    too_many_unreadable,
)
from loss import CHANCE, SYNCHRONISATION, synchronisation
from media.collection import collection_name
from media.format import Format
from models import AudioVisualModel, largest_map, update_statistics
from sampler import HierarchicalSampler

# Seconds, at least, from the end of the earlier one of a snippet and a hard negative to the
# beginning of the later one (our choice: the paper's 0.5 s may be from beginning to beginning).
GAP = 0.5
ROUNDING = 1e-6  # seconds

# -------------------------------------------------------------------------------------------------
# The paper: distances, negatives, loss, curriculum
# -------------------------------------------------------------------------------------------------


def distance(z_v, z_a):
    """Half of the distance of the embeddings at unit length, (B, d), (B, d) -> (B, B), 0 to 1.

    d[i, j] = |z_v[i] / |z_v[i]| - z_a[j] / |z_a[j]|| / 2, in fp32. Its gradient at 0 is 0.
    """
    with torch.autocast(z_v.device.type, enabled=False):
        z_v, z_a = F.normalize(z_v.float(), dim=1), F.normalize(z_a.float(), dim=1)
        squared = (z_v[:, None] - z_a[None, :]).square().sum(2)  # (B, B)
        # The slope of a root at 0 is infinite, and infinity times 0 is not a number.
        is_zero = squared == 0
        return squared.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0) / 2


def kinds_of_negatives(title, begin, seconds):
    """Which pairs (i, j) are which negatives: {easy, hard, superhard}, each (B, B) of bool.

        easy        of two titles
        hard        of one title, GAP seconds or more apart
        superhard   of one title, overlapping

    Snippets of one title that do not overlap, and are less than GAP apart, are none of these.

    title    (B,) the title of each sample
    begin    (B,) the second at which it begins, on the time axis of its title
    seconds  the length of a snippet
    """
    same_title = title[:, None] == title[None, :]  # (B, B)
    apart = (begin[:, None] - begin[None, :]).abs()  # (B, B), in seconds
    same_snippet = apart < ROUNDING  # A share with few titles may have a snippet twice.
    gap = apart - seconds  # below 0 where they overlap
    return {
        "easy": ~same_title,
        "hard": same_title & (gap >= GAP - ROUNDING),
        "superhard": same_title & ~same_snippet & (gap < -ROUNDING),
    }


def margin_loss(d, easy, hard, hard_share, margin=0.99):
    """The contrastive margin loss, with a weight h of the hard negatives among all negatives.

        E(h) = 1/2 [ mean_i d_ii^2 + (1 - h) mean_easy max(m - d_ij, 0)^2
                                   +      h  mean_hard max(m - d_ij, 0)^2 ]

    The paper draws one negative for each positive, of which a fraction h is hard. This is the
    expectation of that over all pairs of a share that has both kinds (our choice): the same without
    the noise of the draw. Every embedding is in positives and in negatives, so the statistics of
    BatchNorm cannot tell the network which of them a pair is. A network that tells nothing apart
    does best with all distances at m / 2, and has a loss of m^2 / 4 = 0.245.

    d           (B, B) distances, from 0 to 1
    easy, hard  (B, B) which pairs are such negatives; without any, their term is 0
    hard_share  h, from 0 to 1
    margin      m; a negative that is as far away is far enough
    """
    positive = d.diagonal().square().mean()
    hinge = (margin - d).clamp(min=0).square()  # (B, B)
    easy_term = (hinge * easy).sum() / easy.sum().clamp(min=1)
    hard_term = (hinge * hard).sum() / hard.sum().clamp(min=1)
    return (positive + (1 - hard_share) * easy_term + hard_share * hard_term) / 2


def hard_share_of(epochs, args):
    """The curriculum: the fraction of the negatives that is hard after so many epochs."""
    return args.hard_share if epochs >= args.hard_after else 0.0


def loss_of_share(batch, hard_share, fronts, parallel, args, processes):
    """The loss of one share, a scalar on the device, with its graph."""
    device = processes.device
    video_front, audio_front = fronts
    video = video_front(batch["video"].to(device, non_blocking=True))  # (B, 3, T, H, W)
    audio = audio_front(batch["waveform"].to(device, non_blocking=True))  # (B, 1, P, Q)
    with processes.autocast():
        z_v, z_a = parallel(video, audio)  # (B, d)
    title = batch["title"].to(device, non_blocking=True)  # (B,)
    begin = batch["begin"].to(device, non_blocking=True)  # (B,) in s
    kinds = kinds_of_negatives(title, begin, args.frames / args.fps)
    hard = kinds["superhard"] if args.superhard else kinds["hard"]
    return margin_loss(distance(z_v, z_a), kinds["easy"], hard, hard_share, args.margin)


# -------------------------------------------------------------------------------------------------
# Arguments: without flags, on 1, 2 or 4 GPUs, the paper's recipe as it is remembered, on films
# -------------------------------------------------------------------------------------------------

PAPER = {"frames": 25, "fps": 25.0, "short_side": 224, "crop": 224}
PAPER |= {"n_fft": 1024, "hop": 480, "mels": 40}
TOY = {
    "data": "datasets/toy/films",
    "frames": 5,
    "fps": 5.0,
    "short_side": 34,
    "crop": 28,
    "rate": 16000,
    "n_fft": 512,
    "hop": 160,
    "stride": 0.8,
    "w": 13,
    "width": 16,
    "share": 64,
    "epochs": 2,
    "hard_after": 1.0,
    "held_out_snippets": 64,
    "measure_every": 0.5,
    "workers": 2,
}


def parse_args(argv=None):
    parser = make_parser(__doc__, "python -m papers.avts")
    add_paper_flags(parser.add_argument)
    Format.add_flags(parser, with_source=False)
    parser.set_defaults(**PAPER)
    add_run_flags(parser.add_argument, with_source=False)
    known, _ = parser.parse_known_args(argv)
    if known.toy:
        parser.set_defaults(**TOY)
    args = parser.parse_args(argv)
    if args.out is None:
        args.out = f"runs/{run_name(args, parser)}"
    return args


def add_paper_flags(add):
    add("--toy", action="store_true", help="small settings, on the toy world")
    add("--data", default="datasets/movies-25fps", help="a folder of films and shows, or LIST.txt")
    add("--out", help="folder of the run; default runs/avts- and a name from the flags")
    title = "what a title is to the sampler: a show, or each of its files, which then are easy "
    title += "negatives of one another"
    add("--title", choices=("show", "episode"), default="show", help=title)
    hard_share = "h, the fraction of hard negatives after --hard-after; 0: easy ones alone"
    add("--hard-share", type=float, default=0.25, help=hard_share)
    add("--hard-after", type=float, default=50.0, help="epochs of easy negatives alone")
    superhard = "overlapping snippets in place of hard ones (remembered: that does not help)"
    add("--superhard", action="store_true", help=superhard)
    add("--margin", type=float, default=0.99, help="m; distances go from 0 to 1")
    network = "video network, as models.py names it; the paper's is MC3-18"
    add("--network", choices=("mc3_18", "r2plus1d_18"), default="mc3_18", help=network)
    add("--batch-size", type=int, default=64, help="snippets of a step, over all GPUs")
    add("--share", type=int, default=16, help="snippets that are paired together: 64 / 4 GPUs")
    add("--k", type=int, default=2, help="snippets of a title in a share (our choice)")
    add("--w", type=int, default=19, help="window, in places of --stride (our choice: 10 s)")
    stride = "seconds between the beginnings of neighbouring snippets (our choice)"
    add("--stride", type=float, default=0.5, help=stride)
    add("--epochs", type=int, default=90, help="of snippets / batch steps (the steps: our choice)")
    add("--lr", type=float, default=1e-3, help="of Adam, after --warmup; then a cosine to 0 (ours)")
    add("--warmup", type=float, default=1.0, help="epochs of linear warm-up from 1e-4 (our choice)")
    add("--width", type=int, default=64, help="channels of the first stage")
    add("--precision", choices=("bf16", "fp32"), default="bf16", help="of networks on a GPU")


def run_name(args, parser):
    """The collection, and every flag that makes it another run: avts-toy-hard-share0.0."""
    flags = names_of_flags(args, parser, ("toy", "data", *MAY_CHANGE))
    return f"avts-{collection_name(args.data)}{flags}"


def has_hard_negatives(args):
    """Whether hard negatives, or super-hard ones in their place, are asked for at all."""
    return args.hard_share > 0 and args.hard_after < args.epochs


def check_args(args, world_size):
    """Raise BadInput for every mistake that the flags alone show."""
    asks_for_hard = has_hard_negatives(args)
    seconds = args.frames / max(args.fps, 1e-9)
    reach = (args.w - 1) * args.stride  # between the beginnings of two snippets of a window
    rules = [
        *rules_of_run(args, world_size),
        ("stride", args.stride > 0, "above 0"),
        ("hard_share", 0 <= args.hard_share <= 1, "from 0 to 1"),
        ("hard_after", args.hard_after >= 0, "0 or more"),
        (
            "hard_share",
            args.hard_share > 0 or not args.superhard,
            "above 0 with --superhard, which replaces hard negatives",
        ),
        (
            "hard_after",
            args.hard_after < args.epochs or not args.superhard,
            f"below --epochs, {args.epochs}, with --superhard, which replaces hard negatives",
        ),
        ("margin", 0 < args.margin <= 1, "above 0, and 1 or less"),
        (
            "k",
            args.k > 0 and args.share % args.k == 0 and args.k < args.share,
            f"a divisor of --share, {args.share}, and less, since easy negatives are of two titles",
        ),
        ("k", args.k > 1 or not asks_for_hard, "2 or more, or --hard-share 0: hard ones need two"),
        ("w", args.w >= args.k, f"--k ({args.k}) or more: a window holds k distinct snippets"),
        (
            "w",
            not asks_for_hard or args.superhard or reach >= seconds + GAP - ROUNDING,
            f"so large that (w - 1) x --stride is {seconds + GAP:g} s or more: hard negatives are "
            f"{GAP:g} s apart, or take --hard-share 0",
        ),
        (
            "stride",
            not asks_for_hard or not args.superhard or args.stride < seconds - ROUNDING,
            f"below {seconds:g} s, the length of a snippet: --superhard needs overlapping ones",
        ),
    ]
    check_rules(args, rules)


# -------------------------------------------------------------------------------------------------
# Pieces of the run, as those of pretrain.py
# -------------------------------------------------------------------------------------------------


def make_sampler(args, train):
    """Raises BadInput if there are too few titles, or none is long enough for what is asked."""
    try:
        sampler = HierarchicalSampler(train.counts, args.batch_size, args.k, args.w, args.seed)
    except ValueError as error:
        remedy = "take a smaller --k or --stride, or longer films"
        raise BadInput(f"--data {args.data}: {error}; {remedy}") from error
    check_two_titles(sampler, args)
    _, hard, superhard = mean_negatives(sampler, train, args.share)
    if has_hard_negatives(args) and (superhard if args.superhard else hard) == 0:
        raise BadInput(
            f"--data {args.data}: the films are too short for hard negatives; take a smaller "
            "--stride, longer films, or --hard-share 0"
        )
    return sampler


def learning_rate(args, step, steps_per_epoch):
    """That of pretrain.py: linear from 1e-4 to --lr over the warm-up, then a cosine to 0."""
    warmup = args.warmup * steps_per_epoch
    total = args.epochs * steps_per_epoch
    if step < warmup:
        return 1e-4 + (args.lr - 1e-4) * step / warmup
    return args.lr * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


def measure_held_out(run, held_out, model, fronts, args, processes, step):
    """Log and print synchronisation on held-out titles: how often d_ii is below d_ij."""
    embedded = embed_held_out(held_out, model, fronts, args, processes)
    if embedded is None:
        return
    z_v, z_a, title, failures = embedded
    try:
        # Of embeddings of unit length, those that are closer are more similar.
        measures = synchronisation(z_v, z_a, title, tau=1.0)
    except ValueError as error:  # No pairs, or no finite similarities.
        processes.report(f"step {step:>6}  not measured: {error}")
        return
    run.log(step=step, **measures, replaced=failures)
    same, other = measures["sync_same"], measures["sync_other"]
    processes.report(f"step {step:>6}  sync {same:.3f} same title, {other:.3f} other titles")


def draw_run(rows, args, path):
    """The loss, beside that of a network that tells nothing apart, and synchronisation."""
    groups = {"AVTS": {args.seed: summarise(rows, SYNCHRONISATION)}}
    chance = {**CHANCE, "loss": args.margin**2 / 4}
    loss_title = "training loss (margin)"
    draw(path, groups, SYNCHRONISATION, loss_title=loss_title, loss_unit="", chance=chance)


def report_start(args, titles, train, held_out, sampler, processes, resumed, step):
    """Print what this run is, before it begins."""
    report = processes.report
    report_titles(titles, train, held_out, "synchronisation", args.k, processes)
    shares = args.batch_size // args.share
    report(f"batch     {args.batch_size} = {shares} x {args.share} paired together: k = {args.k}")
    report(f"          snippets from each of {describe_groups(sampler)}, window {args.w}")
    easy, hard, superhard = mean_negatives(sampler, train, args.share)
    report(f"          {args.share} positives in a share; {easy:.1f} easy negatives,")
    report(f"          {hard:.1f} hard ones, {superhard:.1f} super-hard ones")
    report(f"          chance is a loss of {args.margin**2 / 4:.3f}")
    kind = "super-hard" if args.superhard else "hard"
    negatives = f"{args.hard_share:.0%} of the negatives {kind} after {args.hard_after:g} epochs"
    if args.hard_share == 0 or args.hard_after >= args.epochs:
        negatives = "easy negatives alone"
    report(f"steps     {len(sampler)} an epoch, {args.epochs} epochs; {negatives}")
    report_run(args, processes, resumed, step)


def mean_negatives(sampler, train, share):
    """How many pairs of a share are (easy, hard, super-hard) negatives: means over minibatches."""
    counts = []
    for samples in some_shares(sampler, share):
        title = torch.tensor([n for n, _, _ in samples])
        begin = torch.tensor([train.begin(n, m) for n, m, _ in samples], dtype=torch.double)
        kinds = kinds_of_negatives(title, begin, train.fmt.seconds)
        counts.append([pairs.sum().item() for pairs in kinds.values()])
    return torch.tensor(counts, dtype=torch.double).mean(0).tolist()


# -------------------------------------------------------------------------------------------------
# The run
# -------------------------------------------------------------------------------------------------


def main(args):
    # Processes. Under torchrun each takes some shares of every batch; without it there is one.
    processes = Processes(args.precision)
    world_size = processes.world_size
    check_args(args, world_size)
    processes.start()
    largest = largest_map(args.width, args.frames, args.crop, args.network)
    processes.check_gpu(args.share, largest)
    device = processes.device
    torch.backends.cudnn.benchmark = True
    run = Run(args.out, processes, {**vars(args), "processes": world_size}, MAY_CHANGE)

    # Data: a grid finer than a snippet, so that some snippets of a title overlap.
    fmt = Format.of(args)
    titles = open_titles(args, fmt, TOY, processes, stride=args.stride)
    train, held_out = titles.split(args.held_out, args.seed)
    if args.title == "episode":
        train = train.episodes()
    sampler = make_sampler(args, train)
    steps_per_epoch = len(sampler)
    total_steps = args.epochs * steps_per_epoch
    steps_to_measure = max(1, round(min(args.measure_every, args.epochs) * steps_per_epoch))

    # Model and optimiser.
    torch.manual_seed(args.seed)
    networks = {"video": args.network, "audio": "audio_resnet18"}
    model = AudioVisualModel(args.width, networks=networks).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=processes.on_gpu)
    video_front = VideoFrontEnd().to(device)
    audio_front = AudioFrontEnd(fmt).to(device)

    # Begin, or resume after `start` steps, in which this much was done.
    start, done, resumed = begin_or_resume(
        run, model, optimizer, audio_front, train, args, processes
    )
    report_start(args, titles, train, held_out, sampler, processes, resumed, start)
    front_end = front_end_state(fmt, video_front, audio_front)
    fronts = (video_front, audio_front)
    measure = partial(measure_held_out, run, held_out, model, fronts, args, processes)
    save = partial(save_run, run, model, optimizer, front_end, sampler, train, args, draw_run)
    if not resumed:
        measure(0)
        save(0, done)
    elif start % steps_to_measure == 0 and not run.has_logged(start, "sync_same"):
        measure(start)  # The run stopped before measuring.
    parallel = processes.parallel(model)

    # The loop.
    batches = read_shares(train, own_shares(sampler, start, args, processes), args, processes)
    shares = args.batch_size // args.share
    own = processes.own(shares)
    skipped_in_a_row = 0
    since_start = {"steps": 0, "seconds": 0.0, "waited": 0.0, "bad": 0}
    progress = Progress(processes, start, total_steps)
    with StopSignals() as signals:
        for step in range(start, total_steps):
            # Shares, one after another: a step takes the mean of their gradients.
            tick = time.perf_counter()
            epoch, step_of_epoch = divmod(step, steps_per_epoch)
            hard_share = hard_share_of(step / steps_per_epoch, args)
            statistics = [buffer.clone() for buffer in model.buffers()]
            loss = 0.0
            snippets = 0
            failures = []
            waited = 0.0
            optimizer.zero_grad()
            for share in own:
                save_before = partial(save, step, done, statistics)
                batch, problems, seconds = next_batch(batches, save_before)
                snippets += len(batch["video"])
                failures += problems
                waited += seconds
                update_statistics(model, share == 0)
                with processes.accumulate(parallel, is_last=share == own[-1]):
                    part = loss_of_share(batch, hard_share, fronts, parallel, args, processes)
                    (part / len(own)).backward()
                loss = loss + part.detach() / shares  # summed over the processes below
            # Step, unless a loss or a gradient is not finite. The host waits for the device once.
            norm = get_total_norm([weights.grad for weights in model.parameters()])
            not_finite = ~(loss.isfinite() & norm.isfinite())
            asked_to_stop = signals.received is not None
            loss, norm, not_finite, snippets, replaced, stop = processes.sum_over_ranks(
                loss, norm / world_size, not_finite, snippets, len(failures), asked_to_stop
            )
            lr = learning_rate(args, step, steps_per_epoch)
            optimizer.param_groups[0]["lr"] = lr
            if not_finite:
                restore_statistics(model, statistics)
                skipped_in_a_row += 1
            else:
                optimizer.step()
                skipped_in_a_row = 0
            # Log, measure and save.
            count(done, not_finite, snippets, replaced)
            if replaced:
                run.log_failures(f"epoch {epoch + 1} step {step_of_epoch}", sum(failures, []))
            seconds = time.perf_counter() - tick
            also = {"hard_share": hard_share, "seconds": seconds, "waited": waited}
            log_step(run, step, epoch, loss, norm, not_finite, lr, also, done)
            count_step(since_start, seconds, waited, replaced)
            progress.update(f"loss {loss:.3f}, {describe_rate(since_start, args)}")
            is_last = step + 1 == total_steps
            if is_last or ((step + 1) % steps_to_measure == 0 and not stop):
                measure(step + 1)
            end = reason_to_end(stop, skipped_in_a_row, signals, run, step + 1, total_steps)
            if end is None:
                end = too_many_unreadable(since_start, args, steps_per_epoch, run)
            ends_epoch = (step + 1) % steps_per_epoch == 0
            if end or ends_epoch or run.save_is_due(args.save_minutes):
                save(step + 1, done)
            if end:
                processes.end_together()
                raise end

    progress.close()
    summary = {"paper": "AVTS", **summarise(run.rows, SYNCHRONISATION)}
    finish_run(run, summary, done, since_start, total_steps, args, processes)
    processes.end()


if __name__ == "__main__":
    with one_line_errors(
        "python -m papers.avts",
        interrupted="the same command resumes from the last checkpoint",
        hints=TOO_LARGE,
    ):
        main(parse_args())
