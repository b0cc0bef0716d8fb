"""Audio-visual self-supervised pretraining from films: "Watching Too Much Television is Good".

    python pretrain.py --toy                              the toy world, on a CPU, in minutes
    torchrun --nproc_per_node 8 pretrain.py --k 16        the paper: 8 GPUs, datasets/movies
    python pretrain.py                                    the same run on one GPU, share by share
    torchrun --nproc_per_node 8 pretrain.py --gather      each sample against the whole minibatch

Repeating the command resumes the run where it stopped, on any number of GPUs that divides the
number of shares (with --gather, on one GPU per share). A run is a folder: checkpoint.pt,
log.jsonl, curves.png, result.json. `python -m lab.compare runs/*` compares finished runs.

A minibatch is cut into shares of 64 samples, what each of 8 GPUs would hold of it. Samples are
contrasted with those of their share, and normalised with them (our choice); with --gather they are
contrasted with the whole minibatch. What is random depends on the sample or its share, and not on
the process.

B samples of a share, each a snippet with its frames and sound; T frames of H x W pixels; S
samples of sound; P mel filters; Q audio frames; d = 512, the size of an embedding.
"""

import argparse
import math
import time
from collections import Counter
from functools import partial

import torch
from torch.nn.utils import get_total_norm

from data import (
    AudioFrontEnd,
    VideoFrontEnd,
    begin_or_resume,
    embed_held_out,
    front_end_state,
    next_batch,
    open_titles,
    own_shares,
    read_shares,
    some_shares,
)
from harness.curves import draw, draw_histograms, summarise
from harness.errors import BadInput, make_parser, moved, one_line_errors
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
from loss import CHANCE, MEASURES, discrepancy, gather, nce_loss, synchronisation
from media.collection import collection_name
from media.format import Format
from models import AudioVisualModel, largest_map, update_statistics
from sampler import HierarchicalSampler, IidSampler

# -------------------------------------------------------------------------------------------------
# Arguments: without flags, on 1, 2, 4 or 8 GPUs, the run of the paper's ablations (4.2)
# -------------------------------------------------------------------------------------------------

SHARE = 64  # snippets that are contrasted together: 512 / 8 GPUs (4.1; our choice)
TOY = {
    "data": "datasets/toy/films",
    "frames": 8,
    "short_side": 34,
    "crop": 28,
    "rate": 16000,
    "n_fft": 1024,
    "hop": 256,
    "mels": 64,
    "width": 16,
    "batch_size": 64,
    "epochs": 2,
    "held_out_snippets": 64,
    "measure_every": 0.5,
    "workers": 2,
}


def before(args):
    """The values that were in effect in an older run, for flags that it lacks."""
    share = args["batch_size"] // args.get("processes", 1)
    return {"sampling": "hierarchical", "title": "show", "precision": "bf16", "share": share}


def parse_args(argv=None):
    parser = make_parser(__doc__)
    parser.add_argument("--compare", nargs="*", help=argparse.SUPPRESS)
    add_sampling_flags(parser.add_argument)
    add_training_flags(parser.add_argument)
    Format.add_flags(parser)
    add_run_flags(parser.add_argument)
    known, _ = parser.parse_known_args(argv)
    if known.compare is not None:
        moved("pretrain.py --compare", "python -m lab.compare RUN ...")
    if known.toy:
        parser.set_defaults(**TOY)
    args = parser.parse_args(argv)
    del args.compare
    parser.set_defaults(share=min(SHARE, args.batch_size))
    if args.share is None:
        args.share = parser.get_default("share")
    if args.sampling == "iid":
        leave_out_k_and_w(args, parser)
    if args.out is None:
        args.out = f"runs/{run_name(args, parser)}"
    return args


def add_sampling_flags(add):
    add("--toy", action="store_true", help="small settings, on the toy world")
    add("--data", default="datasets/movies", help="a folder of films and shows, or LIST.txt")
    add("--out", help="folder of the run; default runs/ and a name from the flags")
    iid = "iid: snippets shuffled over all titles, each once an epoch (Section 3); k = 1 of Table "
    iid += "1 may have been this, or hierarchical with --k 1"
    add("--sampling", choices=("hierarchical", "iid"), default="hierarchical", help=iid)
    add(
        "--title",
        choices=("show", "episode"),
        default="show",
        help="what a title is to the sampler: a show is one long film (footnote 7), or each of its "
        "files is a title (4.1: episodes); a show is held out whole in both cases (footnote 9)",
    )
    add("--k", type=int, default=16, help="snippets of a title in a minibatch (Section 3, Table 1)")
    add(
        "--w",
        type=parse_window,
        help="window, in snippets, that the k snippets of a title come from; default the whole "
        "title (Section 3, Table 1); scene: one scene, or as few as hold k (4.2 leaves it to the "
        "future)",
    )
    add("--batch-size", type=int, default=512, help="snippets of a step, over all GPUs (4.1)")
    add(
        "--share",
        type=int,
        help="snippets of the batch that are contrasted together: 512 / 8 = 64 (our choice), or "
        "the batch if that is smaller; a process takes its shares one after another",
    )
    add("--gather", action="store_true", help="contrast the whole batch (our choice: off)")


def add_training_flags(add):
    add("--tau", type=float, help="temperature, with l2-normalised embeddings (4.2, Table 2)")
    add("--jitter", type=float, default=0.0, help="sigma of the colour jitter (4.2, Table 2)")
    add("--epochs", type=int, default=10, help="10 (7.2), of snippets / batch steps (our choice)")
    add("--lr", type=float, default=2e-3, help="of Adam, after --warmup; then a cosine (7.2), to 0")
    add("--warmup", type=float, default=1.0, help="epochs of linear warm-up from 1e-4 (7.2)")
    width = "channels of the first stage; 64 in the networks that Section 3 cites"
    add("--width", type=int, default=64, help=width)
    precision = "of the networks on a GPU; on a CPU they have fp32 (our choice)"
    add("--precision", choices=("bf16", "fp32"), default="bf16", help=precision)
    add("--compile", action="store_true", help="compile the networks (our choice: off)")


def leave_out_k_and_w(args, parser):
    """The shuffled baseline takes each snippet by itself, which is k = 1 in logs and files."""
    has_k = args.k not in (1, parser.get_default("k"))
    has_title = args.title != parser.get_default("title")
    if has_k or has_title or args.w is not None:
        raise BadInput("--sampling iid: has neither --title nor --k nor --w; leave them out")
    args.k = 1


def parse_window(text):
    if text == "scene":
        return text
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text}: must be scene, or a number of snippets")
    return int(text)


def run_name(args, parser):
    """The collection, k, and every other flag that makes it another run: toy-k16-w32-seed1."""
    name = f"{collection_name(args.data)}-k{args.k}"
    if args.sampling == "iid":
        name = f"{collection_name(args.data)}-iid"
    return name + names_of_flags(args, parser, ("toy", "data", "sampling", "k", *MAY_CHANGE))


def check_args(args, world_size):
    """Raise BadInput for every mistake that the flags alone show."""
    shares = args.batch_size // max(1, args.share)
    rules = [
        *rules_of_run(args, world_size),
        (
            "gather",
            not args.gather or shares == world_size,
            "left out, unless --share is a process's batch: it contrasts all shares at once, so "
            "none can wait for its turn",
        ),
        (
            "k",
            args.k > 0 and args.share % args.k == 0,
            f"a divisor of --share, {args.share}, which is contrasted together",
        ),
        (
            "w",
            args.w in (None, "scene") or args.w >= args.k,
            f"scene, or --k ({args.k}) or more, since a window holds k distinct snippets",
        ),
        ("tau", args.tau is None or args.tau > 0, "above 0"),
        ("jitter", args.jitter >= 0, "0 or more"),
    ]
    check_rules(args, rules)


# -------------------------------------------------------------------------------------------------
# Pieces of the run
# -------------------------------------------------------------------------------------------------


def make_sampler(args, train):
    w = None if args.w == "scene" else args.w
    try:
        if args.sampling == "iid":
            return IidSampler(train.counts, args.batch_size, args.seed)
        return HierarchicalSampler(
            train.counts, args.batch_size, args.k, w, args.seed, scenes=train.scenes
        )
    except ValueError as error:
        remedy = "take a smaller --k or --batch-size, or longer films"
        raise BadInput(f"--data {args.data}: {error}; {remedy}") from error


def learning_rate(args, step, steps_per_epoch):
    """7.2: linear from 1e-4 to --lr over the warm-up, then a cosine to 0 (its end: our choice)."""
    warmup = args.warmup * steps_per_epoch
    total = args.epochs * steps_per_epoch
    if step < warmup:
        return 1e-4 + (args.lr - 1e-4) * step / warmup
    return args.lr * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


MEASURED = (
    "step {step:>6}  KL(S-||S!=) {kl_same_other:.3f}  KL(S-||S+) {kl_same_match:.3f}  "
    "KL(S!=||S+) {kl_other_match:.3f}  gap {gap:.3f}  "
    "sync {sync_same:.2f} same title, {sync_other:.2f} other  pairs {counts}"
)


def measure_held_out(run, held_out, model, fronts, args, processes, step):
    """Log and print Equation 2 and synchronisation, on held-out titles.

    Nothing is measured without pairs: it takes two titles, and two snippets of one of them.
    """
    embedded = embed_held_out(held_out, model, fronts, args, processes)
    if embedded is None:
        return
    z_v, z_a, title, failures = embedded
    try:
        measures = discrepancy(z_v, z_a, title, tau=args.tau)
        measures |= synchronisation(z_v, z_a, title, tau=args.tau)
    except ValueError as error:  # No pairs, or no finite similarities.
        processes.report(f"step {step:>6}  not measured: {error}")
        return
    run.log(step=step, **measures, replaced=failures)
    processes.report(MEASURED.format(step=step, **measures))


def draw_run(rows, args, path):
    """The loss and all measures over the steps, and the similarities that were measured last."""
    measured = [row for row in rows if "gap" in row]
    last_panel = None
    if measured:
        counts = measured[-1]["histograms"]
        last_panel = partial(
            draw_histograms,
            edges=measured[-1]["edges"],
            histograms={"S⁺": counts["match"], "S⁻": counts["same"], "S≠": counts["other"]},
            title=f"similarities at step {measured[-1]['step']}",
            xlabel="of a video and an audio embedding",
        )
    label = "i.i.d." if args.sampling == "iid" else f"k = {args.k}"
    groups = {label: {args.seed: summarise(rows, MEASURES)}}
    loss_title = "training loss (Equation 1)"
    draw(path, groups, MEASURES, last_panel, loss_title=loss_title, chance=CHANCE)


def describe_sampling(args, train, sampler):
    """Where the snippets of a minibatch come from, in words."""
    if args.sampling == "iid":
        return "snippets shuffled over all titles"
    source = f"k = {args.k} snippets from each of {describe_groups(sampler)}"
    if args.w is None:
        window = "the whole title"
    elif args.w == "scene":
        mean = sum(train.counts) / sum(len(scenes) for scenes in train.scenes)
        window = f"as few neighbouring scenes as hold them, of {mean:.1f} snippets on average"
    else:
        window = str(args.w)
    return f"{source}, window {window}"


def own_negatives(sampler, group_of, share):
    """The negatives of a sample that are of its own group: the mean over some minibatches.

    group_of  group_of[n], what title n belongs to: its show, or just itself
    share     how many samples are contrasted together
    """
    found = []
    for samples in some_shares(sampler, share):
        groups = Counter(group_of[n] for n, _, _ in samples)
        found += [2 * (times - 1) for times in groups.values() for _ in range(times)]
    return sum(found) / len(found)


def describe_passes(args, train, sampler):
    """How often an epoch passes over the snippets of films and of shows.

    Titles are drawn uniformly, so an epoch passes less often over a kind that has longer ones.
    """
    drawn = len(sampler) * sampler.batch_size  # snippets an epoch
    files = Counter()  # of each show, and of each film
    for show, part in zip(train.shows, train.parts):
        files[show] += len(part)
    passes = []
    for kind, is_show in (("films", False), ("shows", True)):
        titles = [n for n in sampler.titles if (files[train.shows[n]] > 1) == is_show]
        if not titles:
            continue
        snippets = sum(train.counts[n] for n in titles)
        fraction = len(titles) / len(sampler.titles)
        if args.sampling == "iid":
            fraction = snippets / sum(train.counts)
        passes.append(f"{drawn * fraction / snippets:.2f} passes over {kind}")
    return ", ".join(passes)


def report_start(args, titles, train, held_out, sampler, processes, resumed, step):
    """Print what this run is, before it begins."""
    report = processes.report
    report_titles(titles, train, held_out, "Equation 2", args.k, processes)
    shares = args.batch_size // args.share
    sampling = describe_sampling(args, train, sampler)
    contrasted = args.batch_size if args.gather else args.share
    together = f"{shares} x {args.share}, {contrasted} contrasted together"
    report(f"batch     {args.batch_size} = {together}: {sampling}")
    negatives = 2 * contrasted - 2
    own = own_negatives(sampler, range(len(train)), contrasted)
    of_title = f"{own:.2f} of them of its own title"
    if args.title == "episode":
        of_title += f", {own_negatives(sampler, train.shows, contrasted):.2f} of its own show"
    chance = math.log(negatives + 1)
    report(f"          {negatives} negatives a sample, about {of_title};")
    report(f"          chance is a loss of {chance:.2f}")
    passes = describe_passes(args, train, sampler)
    report(f"steps     {len(sampler)} an epoch, {args.epochs} epochs; an epoch makes {passes}")
    report_run(args, processes, resumed, step)


def loss_of_share(batch, batch_key, fronts, parallel, args, processes):
    """Equation 1 of one share, or with --gather of the whole minibatch, in each process.

    It is a scalar on the device, with its graph.

    batch      uint8 video (B, 3, T, H, W) and float waveforms (B, S), as `Titles` reads them
    batch_key  (seed, epoch, step of the epoch, share)
    """
    # Front-ends: (B, 3, T, H, W) and (B, 1, P, Q).
    video_front, audio_front = fronts
    video = batch["video"].to(processes.device, non_blocking=True)
    audio = batch["waveform"].to(processes.device, non_blocking=True)
    video, audio = video_front(video, batch_key), audio_front(audio, batch_key)
    # Embeddings: (B, d), or with --gather (batch, d) of all processes.
    with processes.autocast():
        z_v, z_a = parallel(video, audio)
    if args.gather and processes.world_size > 1:
        z_v, z_a = gather(z_v), gather(z_a)
    return nce_loss(z_v, z_a, args.tau)


# -------------------------------------------------------------------------------------------------
# The run
# -------------------------------------------------------------------------------------------------


def main(args):
    # Processes. Under torchrun each takes some shares of every batch; without it there is one.
    processes = Processes(args.precision)
    world_size = processes.world_size
    check_args(args, world_size)
    processes.start()
    processes.check_gpu(args.share, largest_map(args.width, args.frames, args.crop))
    device = processes.device
    torch.backends.cudnn.benchmark = True
    run = Run(args.out, processes, {**vars(args), "processes": world_size}, MAY_CHANGE, before)

    # Data. All ranks get the same titles, or raise the same error.
    fmt = Format.of(args)
    titles = open_titles(args, fmt, TOY, processes, scenes=args.w == "scene")
    train, held_out = titles.split(args.held_out, args.seed)
    if args.title == "episode":
        train = train.episodes()
    sampler = make_sampler(args, train)
    steps_per_epoch = len(sampler)
    total_steps = args.epochs * steps_per_epoch
    steps_to_measure = max(1, round(min(args.measure_every, args.epochs) * steps_per_epoch))

    # Model and optimiser.
    torch.manual_seed(args.seed)
    model = AudioVisualModel(args.width).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, fused=processes.on_gpu)
    video_front = VideoFrontEnd(args.jitter).to(device)
    audio_front = AudioFrontEnd(fmt).to(device)

    # Begin, or resume after `start` steps. `done` counts what was trained in them, and skipped.
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
    elif start % steps_to_measure == 0 and not run.has_logged(start, "gap"):
        measure(start)  # A run that is told to stop saves, and is measured once it is resumed.
    if args.compile:
        model.compile(dynamic=False)
    parallel = processes.parallel(model)

    # The loop.
    batches = read_shares(train, own_shares(sampler, start, args, processes), args, processes)
    shares = args.batch_size // args.share
    own = processes.own(shares)
    gradient_scale = world_size if args.gather else 1  # `loss.gather` says why
    skipped_in_a_row = 0
    since_start = {"steps": 0, "seconds": 0.0, "waited": 0.0, "bad": 0}
    progress = Progress(processes, start, total_steps)
    with StopSignals() as signals:
        for step in range(start, total_steps):
            # Shares, one after another: a step takes the mean of their gradients.
            tick = time.perf_counter()
            epoch, step_of_epoch = divmod(step, steps_per_epoch)
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
                batch_key = (args.seed, epoch, step_of_epoch, share)
                # BatchNorm's running statistics are those of the first share, as on the first GPU.
                update_statistics(model, share == 0)
                # The processes average their gradients, and so does each over its own shares.
                with processes.accumulate(parallel, is_last=share == own[-1]):
                    part = loss_of_share(batch, batch_key, fronts, parallel, args, processes)
                    (part * gradient_scale / len(own)).backward()
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
            times = {"seconds": seconds, "waited": waited}
            log_step(run, step, epoch, loss, norm, not_finite, lr, times, done)
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
    summary = summarise(run.rows, MEASURES)
    finish_run(run, summary, done, since_start, total_steps, args, processes)
    processes.end()


if __name__ == "__main__":
    with one_line_errors(
        "pretrain.py",
        interrupted="the same command resumes from the last checkpoint",
        hints=TOO_LARGE,
    ):
        main(parse_args())
