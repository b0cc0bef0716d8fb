"""A run: the processes it runs on, its folder, log and checkpoint, and how it stops and resumes.

It also has what training loops share: the account of their snippets, and their checkpoint.
"""

import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import pickle
import platform
import signal
import subprocess
import sys
import threading
import time
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from harness.errors import BadInput, Stopped, printable
from harness.files import atomic_write, lock_folder

# -------------------------------------------------------------------------------------------------
# Processes
# -------------------------------------------------------------------------------------------------


NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # It exists where that driver is loaded.


class Processes:
    """The processes that torchrun has started, on one node or several, as one of them sees them.

    gpu_precision       "bf16" or "fp32", in which networks run on a GPU
    rank, world_size    which of how many processes this is; 0 of 1 without torchrun
    device              its GPU, or the CPU where there is none; known after `start`
    """

    def __init__(self, gpu_precision="bf16"):
        self.gpu_precision = gpu_precision
        self.rank = int(os.environ.get("RANK", 0))
        self.local_rank = int(os.environ.get("LOCAL_RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.device = None
        self.slow_group = None  # of processes that may wait for hours

    def start(self):
        """Take a device and connect the processes.

        Raises BadInput for more processes than GPUs, and for a GPU that cannot be used.
        """
        self.device = torch.device("cpu")
        backend = {"backend": "gloo"}
        if not torch.cuda.is_available():
            check_driver()
        else:
            self.device = torch.device("cuda", self.choose_gpu(torch.cuda.device_count()))
            torch.cuda.set_device(self.device)
            self.check_capability(torch.cuda.get_device_capability(self.device))
            # PyTorch's own default rounds what a convolution multiplies to TF32.
            torch.backends.cudnn.allow_tf32 = self.precision != "fp32"
            backend = {"backend": "nccl", "device_id": self.device}
        if self.world_size > 1:
            if not dist.is_initialized():
                dist.init_process_group(**backend, timeout=timedelta(hours=1))
            # Rank 0 may work for hours while the others wait, as on the scenes of a collection.
            self.slow_group = dist.new_group(backend="gloo", timeout=timedelta(days=7))
            self.warn_of_restarts()

    def warn_of_restarts(self):
        """Report that torchrun may not be able to restart: its store still has old addresses."""
        restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0))
        shares_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        if restarts and shares_store:
            self.report(
                "warning   restarted processes may fail to connect; set "
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun"
            )

    def choose_gpu(self, gpus):
        """The index of this process's GPU, of those that it sees.

        torchrun shows all GPUs of a node to each process; `srun --gpus-per-task=1` shows one.
        """
        under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
        if gpus == 1 and not under_torchrun:
            return 0
        if self.local_rank >= gpus:
            raise BadInput(f"there are more processes than GPUs: start {gpus}, one for each")
        return self.local_rank

    def check_capability(self, capability):
        """Refuse bf16 on a GPU that has none: PyTorch would emulate it, without cuDNN."""
        if self.precision == "bf16" and capability < (8, 0):
            raise BadInput(
                "--precision bf16: takes a GPU of compute capability 8.0 (Ampere) or more, this "
                "one has {}.{}; take --precision fp32".format(*capability)
            )

    @property
    def on_gpu(self):
        return self.device.type == "cuda"

    @property
    def precision(self):
        """In which networks run: fp32 on a CPU, where bf16 sometimes gave non-finite gradients."""
        return self.gpu_precision if self.on_gpu else "fp32"

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def check_gpu(self, share, largest_map, clips=0):
        """Refuse, or warn of, what is known to go wrong on a GPU.

        share        samples that go through the networks together in training; 0 without it
        largest_map  elements of the largest map of one of them
        clips        of a test file, that go through the networks together, each in three crops

        Raises BadInput for a map that is too large for PyTorch's kernels.
        """
        if not self.on_gpu:
            return
        for flag, number, size in (
            ("share", share, largest_map),
            ("clips", clips, 3 * largest_map),
        ):
            most = (2**31 - 1) // size
            if number > most:
                raise BadInput(
                    f"--{flag} {number}: its largest map has more than 2^31 elements, to which GPU "
                    f"kernels count; take {most} or less"
                )
            if self.precision == "bf16" and 2 * number * size > 2**31:
                self.report(f"warning   --{flag} {number} has maps above 2 GiB, which may be slow")
        problem = cudnn_problem()
        if self.precision == "bf16" and problem:
            self.report(f"warning   {problem}")

    def own(self, number):
        """Of 0 .. number - 1, those of this process: neighbours, as many as any other has."""
        each = number // self.world_size
        return range(self.rank * each, (self.rank + 1) * each)

    def parallel(self, model):
        """The model, in DistributedDataParallel where there are several processes."""
        if self.world_size == 1:
            return model
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)

    def accumulate(self, parallel, is_last):
        """A context for one of the backward passes of a step, whose gradients add up.

        parallel  what `parallel` has returned
        is_last   whether this pass is the last: in it the processes average their gradients
        """
        if self.world_size == 1 or is_last:
            return contextlib.nullcontext()
        return parallel.no_sync()

    def report(self, *words):
        """Print a line, once for all ranks, above any progress bar."""
        if self.rank == 0:
            tqdm.write(printable(" ".join(map(str, words))))
            sys.stdout.flush()

    def on_rank_0(self, work):
        """Return work(), computed by rank 0 and sent to all; all ranks raise its BadInput."""
        found = [None]
        if self.rank == 0:
            try:
                found = [work()]
            except (BadInput, OSError) as error:
                found = [error]
        if self.world_size > 1:
            dist.broadcast_object_list(found, group=self.slow_group)
        if isinstance(found[0], (BadInput, OSError)):
            raise found[0]
        return found[0]

    def collect_on_rank_0(self, own):
        """The lists of all ranks as one list, on rank 0; an empty list elsewhere.

        own  a list of plain values and CPU tensors
        """
        if self.world_size == 1:
            return own
        lists = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(own, lists, group=self.slow_group)
        return sum(lists or [], [])

    def sum_over_ranks(self, *values):
        """The sums of these over all ranks, as floats: numbers, and scalar tensors on the device.

        This is the one place in a step where the host waits for the device.
        """
        numbers = [0.0 if torch.is_tensor(x) else float(x) for x in values]
        totals = torch.tensor(numbers, dtype=torch.float32).to(self.device, non_blocking=True)
        for i, x in enumerate(values):
            if torch.is_tensor(x):
                totals[i] = x
        if self.world_size > 1:
            dist.all_reduce(totals)
        return totals.tolist()

    def share_buffers(self, model):
        """Send the running BatchNorm statistics of rank 0 to all: the others keep none."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wait(self):
        """Wait until all ranks are here."""
        if self.world_size > 1:
            dist.barrier(self.slow_group)

    def end(self):
        if self.world_size > 1:
            dist.destroy_process_group()

    def end_together(self):
        """Wait for all ranks, and end: the first exit makes torchrun end all of them."""
        self.wait()
        self.end()


def check_driver():
    """Refuse to train on the CPU of a machine with an NVIDIA driver that PyTorch cannot use."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    if torch.version.cuda and NVIDIA_DRIVER.exists() and not hidden:
        raise BadInput(
            "PyTorch finds no GPU, though this machine has an NVIDIA driver: update it to one for "
            f"CUDA {torch.version.cuda}, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )


def cudnn_problem():
    """What is known to be wrong with bf16 on this version of cuDNN, or None."""
    version = torch.backends.cudnn.version()
    if version >= 91500:
        return None
    return (
        f"with cuDNN {dotted(version)}, which is older than 9.15, 3-D convolutions in bf16 may be "
        "slow, take much memory, or be wrong; update it"
    )


def dotted(version):
    """cuDNN's number of its version (91002) as people write it (9.10.2)."""
    return f"{version // 10000}.{version % 10000 // 100}.{version % 100}"


# -------------------------------------------------------------------------------------------------
# Stopping
# -------------------------------------------------------------------------------------------------


class StopSignals:
    """Within this context, Ctrl-C and SIGTERM are noted instead of obeyed.

    Slurm and torchrun send SIGTERM 30 s before they kill, which is time to save.

    received  the name of the first signal, or None
    """

    AGAIN = 5  # seconds: torchrun repeats a signal at once; a later one is from a user who insists

    def __init__(self):
        self.received = None
        self.time = None
        self.handlers = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            self.handlers[number] = signal.signal(number, self.note)
        return self

    def note(self, number, _):
        now = time.monotonic()
        if self.received is None:
            self.received, self.time = signal.Signals(number).name, now
        elif now > self.time + self.AGAIN:
            self.restore()
            signal.raise_signal(number)

    def __exit__(self, *_):
        self.restore()

    def restore(self):
        """Restore the handlers that the signals had before."""
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


def obey_parent_only(_):
    """For the reading processes of a DataLoader: only the training process decides when to stop.

    Ctrl-C and SIGTERM often go to all processes of a run. A reading process has to obey its
    parent's SIGTERM, or the parent would wait for it for ever. macOS does not tell who sent a
    signal, so there it obeys any.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=end_when_parent_says, daemon=True).start()


def end_when_parent_says():
    parent = multiprocessing.parent_process().pid
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


# What to do if a pretraining has too little memory: see `harness.errors.one_line_errors`.
TOO_LARGE = {
    torch.OutOfMemoryError: "a --share is too large for the memory of this GPU; take a smaller "
    "one, which --k has to divide"
}
SKIPS = 10  # steps in a row whose loss or gradient is not finite end a run


def reason_to_end(stop, skipped_in_a_row, signals, run, step, total_steps, is_tested=False):
    """The exception that ends a run after this step, which is to be saved first, or None.

    stop       whether any process was told to stop: a run that is at its end does not
    is_tested  whether a test follows the last step, so that the run is not at its end there
    """
    if stop and (step < total_steps or is_tested):
        name = signals.received or "a signal to another process"
        return Stopped(
            f"stopped by {name}, after step {step} of {total_steps}, which is saved; the same "
            "command resumes from there"
        )
    if skipped_in_a_row == SKIPS:
        return BadInput(
            f"{SKIPS} steps in a row had a loss or a gradient that is not finite; they changed no "
            f"weights, and {run.checkpoint_path} is sound. Try a lower --lr, with another "
            "--out"
        )
    return None


# -------------------------------------------------------------------------------------------------
# Progress
# -------------------------------------------------------------------------------------------------


class Progress:
    """How far a run is: a bar on a terminal, elsewhere a line a minute.

    start, total  the steps that are trained already, and those of the whole run
    """

    def __init__(self, processes, start, total):
        self.processes = processes
        self.start, self.step, self.total = start, start, total
        self.on_terminal = sys.stderr.isatty()
        self.began = time.monotonic()
        self.next_line = self.began + 60
        hidden = processes.rank > 0 or not self.on_terminal
        self.bar = tqdm(initial=start, total=total, disable=hidden, unit="step", mininterval=1)

    def update(self, text):
        """One more step is done. `text` is shown beside the number of steps."""
        self.step += 1
        self.bar.set_postfix_str(text, refresh=False)
        self.bar.update()
        now = time.monotonic()
        if not self.on_terminal and now > self.next_line:
            self.next_line = now + 60
            hours = (now - self.began) / 3600 * (self.total - self.step) / (self.step - self.start)
            self.processes.report(
                f"step {self.step:>6} of {self.total}, {hours:.2f} h to go: {text}"
            )

    def close(self):
        self.bar.close()


# -------------------------------------------------------------------------------------------------
# What a run is, in words, before it begins
# -------------------------------------------------------------------------------------------------


def report_titles(titles, train, held_out, measured, k, processes):
    """Report what is trained on, what is held out, what was skipped, and what is too short.

    measured  what held-out titles are for; two are needed
    k         snippets that a title gives to a minibatch: one that has fewer is never drawn
    """
    report = processes.report
    snippets = f"{sum(train.counts)} snippets of {train.fmt.seconds:g} s"
    if train.stride != train.fmt.seconds:
        snippets += f", {train.stride:g} s apart"
    few = "" if len(held_out) > 1 else f" ({measured} needs two: it is not measured)"
    report(f"titles    {len(train)} to train on ({snippets}), {len(held_out)} held out{few}")
    for i, (path, why) in enumerate(titles.skipped):
        report(f"          skipped {i + 1} of {len(titles.skipped)}: {path}: {why}")
    short = [name for name, M in zip(train.names, train.counts) if M < k]
    if short:
        report(f"          {len(short)} shorter than k = {k} snippets: {', '.join(short)}")


def describe_groups(sampler):
    """How many titles a minibatch takes k snippets from, in words."""
    words = f"{sampler.groups} titles"
    if sampler.groups > len(sampler.titles):
        words += f" (there are {len(sampler.titles)}: some come again)"
    return words


def report_run(args, processes, resumed, step):
    """Report where a run is written, on what it runs, and whether it is new."""
    world_size = processes.world_size
    device = f"{world_size} x {processes.device.type} in {processes.precision}"
    shares = args.batch_size // args.share
    turns = f", {shares // world_size} shares in turn" if shares > world_size else ""
    state = f"resumed after step {step}" if resumed else "new"
    processes.report(f"run       {args.out}, on {device}{turns}, {state}")


# -------------------------------------------------------------------------------------------------
# Accounting: where the snippets went, and how long they took
#
# done         of all steps of a run: NOTHING_DONE, counted up
# since_start  of the steps since this start: how many `steps`, their `seconds`, those that were
#              `waited` for data, and the snippets that were `bad`, since others replaced them
# -------------------------------------------------------------------------------------------------

# Snippets that were trained on, those of them that replaced others, and steps that were skipped.
NOTHING_DONE = {"snippets": 0, "bad": 0, "skipped": 0}


def count(done, not_finite, snippets, replaced):
    done["bad"] += int(replaced)
    if not_finite:
        done["skipped"] += 1
    else:
        done["snippets"] += int(snippets)


def count_step(since_start, seconds, waited, bad):
    since_start["steps"] += 1
    since_start["seconds"] += seconds
    since_start["waited"] += waited
    since_start["bad"] += bad


def describe_rate(since_start, args):
    """The speed since this start, for the progress bar."""
    seconds = since_start["seconds"]
    rate = since_start["steps"] * args.batch_size / seconds
    waiting = since_start["waited"] / seconds
    text = f"{rate:.1f} snippets/s, {waiting:.0%} of the time waiting for data"
    if since_start["bad"]:
        text += f", {since_start['bad']:.0f} snippets replaced"
    return text


def log_step(run, step, epoch, loss, norm, not_finite, lr, also, done):
    """Log a step, with what was replaced and skipped so far; JSON has no NaN.

    also  what else there is to log, such as the seconds that the step took
    """
    row = {"loss": loss, "grad_norm": norm}
    if not_finite:
        row = {"not_finite": f"loss {loss}, gradient {norm}"}
    so_far = {"bad": done["bad"], "skipped": done["skipped"]}
    run.log(step=step + 1, epoch=epoch, **row, lr=lr, **also, **so_far)


def too_many_unreadable(since_start, args, steps_per_epoch, run):
    """The error that ends a run in which more than --max-bad of the snippets were replaced.

    It is None if no more were. They are counted since this start; within an epoch of it, the limit
    is that fraction of a whole epoch.
    """
    bad, steps = since_start["bad"], since_start["steps"]
    if bad <= args.max_bad * args.batch_size * max(steps, steps_per_epoch):
        return None
    return BadInput(
        f"{bad:.0f} snippets could not be read in {steps} steps, more than --max-bad "
        f"{args.max_bad} of them (or of an epoch's): see {run.out}/bad.txt. The same command, with "
        "the files fixed or with a higher --max-bad, resumes from here"
    )


def report_totals(done, since_start, total_steps, args, processes):
    """Report where the snippets of all epochs went: they must add up."""
    if since_start["steps"] > 0:
        rate = describe_rate(since_start, args)
        steps, seconds = since_start["steps"], since_start["seconds"]
        processes.report(f"trained   {steps} steps in {seconds:.0f} s: {rate}")
    skipped = done["skipped"] * args.batch_size
    assert done["snippets"] + skipped == total_steps * args.batch_size
    processes.report(
        f"snippets  {done['snippets']} trained on, of which {done['bad']} replaced others that "
        f"could not be read; {skipped} skipped, in {done['skipped']} steps that were not finite"
    )


# -------------------------------------------------------------------------------------------------
# The folder of a run
# -------------------------------------------------------------------------------------------------


class Run:
    """The folder of a run: a checkpoint, log.jsonl, and result.json once the run is finished.

    Rank 0 alone looks into the folder and writes there, and all ranks get what it has found: on
    another node the folder may be missing. So the processes have to be started.

    out          the folder
    processes    the Processes of this run
    settings     the arguments, plain values, which the checkpoint keeps under "args"
    may_change   names of settings that may differ when the run is resumed
    before       a function of the arguments of an older checkpoint: {name: value} of those that it
                 lacks, as they were at its time
    file         the name of the checkpoint
    foreign      glob of files of other scripts: a folder that has one and no checkpoint is theirs

    `checkpoint` is what this folder holds to resume from, None for a new run. Raises BadInput
    if the folder holds a run of other settings, or something else.
    """

    def __init__(
        self,
        out,
        processes,
        settings,
        may_change=(),
        before=None,
        file="checkpoint.pt",
        foreign="last.pt",
    ):
        self.out = Path(out)
        self.processes = processes
        self.rank = processes.rank
        self.settings = settings
        self.checkpoint_path = self.out / file
        self.checkpoint_before = self.out / file.replace(".", "-before.")
        self.saved = time.monotonic()  # when the last checkpoint was written
        self.damaged = False  # whether the last checkpoint cannot be read
        self.found = None  # the state of the checkpoint's file when it was read, on rank 0
        self.rows = []
        self.log_file = None

        def find():
            return self.find_checkpoint(may_change, before, foreign)

        self.checkpoint = processes.on_rank_0(find)

    def find_checkpoint(self, may_change, before, foreign):
        self.found = state_of_file(self.checkpoint_path)
        paths = [self.checkpoint_path, self.checkpoint_before]
        problems = []
        for path in filter(Path.exists, paths):
            try:
                checkpoint = load_checkpoint(path)
            except BadInput as error:
                problems.append(f"{path.name}: {error}")
                continue
            self.compare_settings(checkpoint["args"], may_change, before)
            for problem in problems:
                self.damaged = True
                self.processes.report(f"{self.out}: {problem}; resuming from {path.name}")
            return checkpoint
        if problems:
            raise BadInput(
                f"--out {self.out}: no checkpoint of ours in it ({'; '.join(problems)}); name "
                "another folder"
            )
        found = sorted(path.name for path in self.out.glob(foreign) if path.name[0] != ".")
        if found:
            raise BadInput(
                f"--out {self.out}: holds {found[0]} but no {self.checkpoint_path.name}, so it is "
                "of something else; name another folder"
            )
        return None

    def compare_settings(self, then, may_change, before):
        if before is not None:
            then = {**before(then), **then}
        differing = [
            f"{name} {then.get(name)} and not {value}"
            for name, value in self.settings.items()
            if name not in may_change and not is_same_setting(name, then.get(name), value)
        ]
        if differing:
            raise BadInput(
                f"--out {self.out}: holds a run of other arguments ({', '.join(differing)}); "
                "name another folder"
            )

    def read_log(self, last_step):
        """The rows of log.jsonl up to a step. Steps past the checkpoint will be trained again."""
        path = self.out / "log.jsonl"
        if self.rank > 0 or not path.exists():
            return []
        lines = path.read_text().split("\n")[:-1]  # A kill may have cut off the last line.
        rows = [json.loads(line) for line in lines]
        return [row for row in rows if row["step"] <= last_step]

    def begin(self, rows=()):
        """Lock the folder, and cut the log to these rows of the run so far.

        Raises BadInput if another process uses the folder, or has used it since the checkpoint was
        read: indexing films takes time.
        """
        self.processes.on_rank_0(partial(self.begin_on_rank_0, list(rows)))

    def begin_on_rank_0(self, rows):
        lock_folder(self.out)
        if state_of_file(self.checkpoint_path) != self.found:
            raise BadInput(
                f"--out {self.out}: another run has written here meanwhile; repeat the command, "
                "which resumes it"
            )
        self.rows = rows
        if self.checkpoint is None:
            # A run whose checkpoint somebody has removed may have left these.
            for name in ("log.jsonl", "bad.txt", "result.json"):
                (self.out / name).unlink(missing_ok=True)
        elif self.rows or (self.out / "log.jsonl").exists():
            text = "".join(json.dumps(row) + "\n" for row in self.rows)
            self.write("log.jsonl", lambda path: path.write_text(text))

    def log(self, **row):
        """Append a row to the log."""
        if self.rank == 0:
            if self.log_file is None:
                self.log_file = open(self.out / "log.jsonl", "a", buffering=1)  # a line at a time
            self.rows.append(row)
            self.log_file.write(json.dumps(row) + "\n")

    def log_failures(self, when, failures):
        """Append a line to bad.txt for each attempt to read a snippet that failed, on any rank."""
        failures = self.processes.collect_on_rank_0(failures)
        if failures:
            with open(self.out / "bad.txt", "a", errors="backslashreplace") as file:
                file.writelines(f"{when}: {failure}\n" for failure in failures)

    def log_processes(self, step):
        """Report a change in the number of processes at a resume: it changes only the speed."""
        then, now = self.checkpoint["args"].get("processes", 1), self.processes.world_size
        if then != now:
            self.log(step=step, processes=now, processes_before=then)
            self.processes.report(f"run       resumed on {now} processes; there were {then} before")

    def has_logged(self, step, name):
        """Whether the log has a row of this step with this name. All ranks have to ask."""

        def find():
            return any(row["step"] == step and name in row for row in self.rows)

        return self.processes.on_rank_0(find)

    def save(self, state):
        """Write a checkpoint of this state; the one before is kept beside it."""
        if self.rank == 0:
            if self.log_file is not None:
                os.fsync(self.log_file.fileno())
            state = {**state, "args": self.settings}
            keep = None if self.damaged else self.checkpoint_before
            atomic_write(self.checkpoint_path, partial(save_tensors, state), keep=keep)
            self.damaged = False
        self.saved = time.monotonic()

    def keep_epoch(self, state, epoch):
        """Write the weights of a finished epoch, epochN.pt: a checkpoint without the optimiser."""
        kept = {name: part for name, part in state.items() if name != "optimizer"}
        kept["args"] = self.settings
        self.write(f"epoch{epoch}.pt", partial(save_tensors, kept))

    def save_is_due(self, minutes):
        """Whether the last checkpoint is that old; with 0 minutes, always."""
        return time.monotonic() - self.saved >= 60 * minutes

    def write(self, name, write_to):
        """Write another file of the folder, whole or not at all: write_to(temporary path)."""
        if self.rank == 0:
            atomic_write(self.out / name, write_to)

    def finish(self, result):
        """Write result.json, with the versions of what computed it."""
        if self.rank > 0:
            return
        text = json.dumps({**result, "versions": versions()}) + "\n"
        self.write("result.json", lambda path: path.write_text(text))


def state_of_file(path):
    """What differs once a file is written again; None where there is no file."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def save_tensors(state, path):
    """torch.save, which hides why it could not write: raise the OSError of a full disk as it is."""
    with open(path, "wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def checkpoint_of(model, optimizer, front_end, sampler, train, step, done):
    """All that is needed to resume after `step` steps, and to use the networks elsewhere.

    model  its children are what is trained, and `model.networks` names the backbones among them
    train  the titles, with their `names` and `counts`
    """
    epoch, step_of_epoch = divmod(step, len(sampler))
    progress = {
        "epoch": epoch,
        "step": step,
        "sampler": {"epoch": epoch, "step": step_of_epoch},
        **done,
        "titles": train.names,
        "counts": train.counts,
    }
    return {
        **{name: part.state_dict() for name, part in model.named_children()},
        "networks": model.networks,
        "front_end": front_end,
        "optimizer": optimizer.state_dict(),
        "progress": progress,
    }


def restore_statistics(model, statistics):
    """Set the buffers of a model to those before a step that was skipped or not finished."""
    for buffer, before in zip(model.buffers(), statistics):
        buffer.copy_(before)


def save_run(
    run, model, optimizer, front_end, sampler, train, args, draw, step, done, statistics=None
):
    """Write checkpoint.pt and curves.png, after `step` steps; with --keep the epoch's weights.

    draw        draw(rows of the log, args, path) writes the picture
    statistics  the buffers as they were after these steps, if another step was begun since
    """
    if statistics is not None:
        restore_statistics(model, statistics)
    state = checkpoint_of(model, optimizer, front_end, sampler, train, step, done)
    run.save(state)
    epoch, step_of_epoch = divmod(step, len(sampler))
    if args.keep and step > 0 and step_of_epoch == 0:
        run.keep_epoch(state, epoch)
    run.write("curves.png", lambda path: draw(run.rows, args, path))


def finish_run(run, summary, done, since_start, total_steps, args, processes):
    """Report where all snippets went, and write result.json.

    summary  what the run has measured

    The result also has the seconds that the steps took, of all starts of the run.
    """
    report_totals(done, since_start, total_steps, args, processes)
    seconds = sum(row.get("seconds", 0.0) for row in run.rows)
    result = {"arguments": run.settings, "done": done, "training_seconds": seconds, **summary}
    run.finish(result)
    processes.report(f"finished  {run.checkpoint_path}, log.jsonl, curves.png, result.json")


def resume(checkpoint, model, optimizer):
    """Load weights and optimiser; return the steps until then, and what was `done` in them."""
    for name, part in model.named_children():
        part.load_state_dict(checkpoint[name])
    for group in checkpoint["optimizer"]["param_groups"]:
        group["fused"] = optimizer.defaults["fused"]  # It may have been saved on another device.
    optimizer.load_state_dict(checkpoint["optimizer"])
    progress = checkpoint["progress"]
    return progress["step"], {name: progress.get(name, 0) for name in NOTHING_DONE}


def load_checkpoint(path):
    """Load a checkpoint of a run; its arguments are under "args". Raises BadInput."""
    checkpoint = load_plain(path)
    if "settings" in checkpoint:  # their name in older fine-tunings
        checkpoint["args"] = checkpoint.pop("settings")
    if "args" not in checkpoint:
        raise BadInput("it names no arguments")
    return checkpoint


def is_same_setting(name, then, now):
    """Whether the values are equal. A path may be spelled in several ways: runs/k1, ./runs/k1/."""
    if name in ("data", "ckpt") and isinstance(then, str) and isinstance(now, str):
        return Path(then) == Path(now)
    return then == now


def load_plain(path):
    """Load a file of torch.save that holds a dict of tensors and plain values, on the CPU.

    Raises BadInput with the reason for any other file.
    """
    warnings.filterwarnings("ignore", "Detected pickle protocol")  # We refuse such a file below.
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadInput(error.strerror) from error
    except pickle.UnpicklingError as error:
        raise BadInput("only tensors and plain values are read") from error
    except Exception as error:  # A foreign file can make torch raise nearly anything.
        raise BadInput("it is damaged, or no file of torch.save") from error
    if not isinstance(found, dict):
        raise BadInput("it holds no dict")
    return found


def versions():
    """What a result depends on besides its arguments: packages, this repository, the machine.

    Another kind of processor or another number of threads adds up in another order.
    """
    packages = ("torch", "torchvision", "torchaudio", "av", "numpy")
    return {
        **{name: importlib.metadata.version(name) for name in packages},
        "commit": commit(),
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "processor": processor(),
        "threads": torch.get_num_threads(),
    }


def processor():
    """The kind of processor that networks run on: a GPU by its name, a CPU as "AMD EPYC, AVX512".

    What follows a CPU's name is the instructions that PyTorch takes on it.
    """
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}"


def cpu_name():
    """The CPU's name, as Linux has it on most machines; elsewhere what Python knows of it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor()


def commit():
    """The commit of this repository, "+changes" if its code differs from it; None without git."""
    root = Path(__file__).parent.parent
    try:
        head = git(root, "rev-parse", "HEAD")
        # Results depend on code alone. A sweep changes the file that keeps its rows.
        changes = git(root, "status", "--porcelain", "--untracked-files=no", "--", "*.py")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+changes" if changes else head


def git(root, *command):
    found = subprocess.run(
        ["git", "-C", root, *command], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()
