"""A run: the processes it runs on, its folder, log and checkpoint, and how it resumes."""

import importlib.metadata
import json
import os
import subprocess
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from harness.errors import BadInput, printable
from harness.files import atomic_write, lock_folder

# -------------------------------------------------------------------------------------------------
# Processes
# -------------------------------------------------------------------------------------------------


class Processes:
    """The processes that torchrun has started, as one of them sees them.

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
        """Take a device and connect the processes. Raises BadInput for more processes than GPUs."""
        self.device = torch.device("cpu")
        if torch.cuda.is_available():
            gpus = torch.cuda.device_count()
            if self.local_rank >= gpus:
                raise BadInput(f"there are more processes than GPUs: start {gpus}, one for each")
            self.device = torch.device("cuda", self.local_rank)
            torch.cuda.set_device(self.device)
            # PyTorch's own default rounds what a convolution multiplies to TF32.
            torch.backends.cudnn.allow_tf32 = self.precision != "fp32"
        if self.world_size > 1:
            if not dist.is_initialized():
                dist.init_process_group("nccl" if self.on_gpu else "gloo")
            # Rank 0 may work for hours while the others wait, as on the scenes of a collection.
            self.slow_group = dist.new_group(backend="gloo", timeout=timedelta(days=7))

    @property
    def on_gpu(self):
        return self.device.type == "cuda"

    @property
    def precision(self):
        """In which networks run: fp32 on a CPU, where bf16 sometimes gave non-finite gradients."""
        return self.gpu_precision if self.on_gpu else "fp32"

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def report(self, *words):
        """Print a line, once for all ranks, above any progress bar."""
        if self.rank == 0:
            tqdm.write(printable(" ".join(map(str, words))))

    def on_rank_0(self, work):
        """Return work(), computed by rank 0 and sent to all; all ranks raise its BadInput."""
        found = [None]
        if self.rank == 0:
            try:
                found = [work()]
            except BadInput as error:
                found = [error]
        if self.world_size > 1:
            dist.broadcast_object_list(found, group=self.slow_group)
        if isinstance(found[0], BadInput):
            raise found[0]
        return found[0]

    def collect_on_rank_0(self, own):
        """The lists of all ranks as one list, on rank 0; an empty list elsewhere.

        own  a list of plain values and CPU tensors
        """
        if self.world_size == 1:
            return own
        lists = [None] * self.world_size if self.rank == 0 else None
        dist.gather_object(own, lists)
        return sum(lists or [], [])

    def sum_over_ranks(self, *values):
        """The sums of these numbers over all ranks: scalar fp32 tensors on the device."""
        totals = [torch.as_tensor(x, dtype=torch.float32, device=self.device) for x in values]
        totals = torch.stack(totals)
        if self.world_size > 1:
            dist.all_reduce(totals)
        return totals.unbind()

    def share_buffers(self, model):
        """Send the running BatchNorm statistics of rank 0 to all: each rank has kept its own."""
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


# -------------------------------------------------------------------------------------------------
# The folder of a run
# -------------------------------------------------------------------------------------------------


class Run:
    """The folder of a run: a checkpoint, log.jsonl, and result.json once the run is finished.

    out          the folder
    rank         only rank 0 writes
    settings     the arguments, plain values, which the checkpoint keeps under "args"
    may_change   names of settings that may differ when the run is resumed
    before       {name: value} of settings that older checkpoints lack, as it was at their time
    file         the name of the checkpoint
    foreign      glob of files of other scripts: a folder that has one and no checkpoint is theirs

    `checkpoint` is what this folder holds to resume from, None for a new run. Raises BadInput
    if the folder holds a run of other settings, or something else.
    """

    def __init__(
        self,
        out,
        rank,
        settings,
        may_change=(),
        before=None,
        file="checkpoint.pt",
        foreign="last.pt",
    ):
        self.out = Path(out)
        self.rank = rank
        self.settings = settings
        self.checkpoint_path = self.out / file
        self.rows = []
        self.log_file = None
        self.checkpoint = None
        if self.checkpoint_path.exists():
            self.checkpoint = self.load()
            self.compare_settings(may_change, before or {})
        else:
            found = sorted(path.name for path in self.out.glob(foreign) if path.name[0] != ".")
            if found:
                raise BadInput(
                    f"--out {out}: holds {found[0]} but no {file}, so it is of something else; "
                    "name another folder"
                )

    def load(self):
        try:
            checkpoint = load_plain(self.checkpoint_path)
            if "settings" in checkpoint:  # their name in older fine-tunings
                checkpoint["args"] = checkpoint.pop("settings")
            if "args" not in checkpoint:
                raise BadInput("it names no arguments")
        except BadInput as error:
            raise BadInput(
                f"--out {self.out}: its {self.checkpoint_path.name} is not a checkpoint of ours "
                f"({error}); name another folder"
            ) from error
        return checkpoint

    def compare_settings(self, may_change, before):
        then = {**before, **self.checkpoint["args"]}
        differing = [
            f"{name} {then.get(name)} and not {value}"
            for name, value in self.settings.items()
            if name not in may_change and then.get(name) != value
        ]
        if differing:
            raise BadInput(
                f"--out {self.out}: holds a run of other arguments ({', '.join(differing)}); "
                "name another folder"
            )

    def read_log(self, last_step):
        """The rows of log.jsonl up to a step. Steps past the checkpoint will be trained again."""
        path = self.out / "log.jsonl"
        if not path.exists():
            return []
        lines = path.read_text().split("\n")[:-1]  # A kill may have cut off the last line.
        rows = [json.loads(line) for line in lines]
        return [row for row in rows if row["step"] <= last_step]

    def begin(self, rows=()):
        """Lock the folder, and cut the log to these rows of the run so far.

        Raises BadInput if another process uses the folder.
        """
        if self.rank > 0:
            return
        lock_folder(self.out)
        self.rows = list(rows)
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
        """Append a line to bad.txt for each attempt to read a snippet that failed on this rank."""
        if failures:
            with open(self.out / "bad.txt", "a", errors="backslashreplace") as file:
                file.writelines(f"{when}: {failure}\n" for failure in failures)

    def save(self, state):
        """Write a checkpoint of this state. If it is interrupted, the one before stays."""
        if self.rank == 0:
            if self.log_file is not None:
                os.fsync(self.log_file.fileno())
            state = {**state, "args": self.settings}
            atomic_write(self.checkpoint_path, lambda path: torch.save(state, path))

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


def load_plain(path):
    """Load a file of torch.save that holds a dict of tensors and plain values, on the CPU.

    Raises BadInput with the reason for any other file.
    """
    warnings.filterwarnings("ignore", "Detected pickle protocol")  # We refuse such a file below.
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise BadInput(error.strerror) from error
    except Exception as error:  # A foreign file can make the unpickler raise nearly anything.
        raise BadInput("only tensors and plain values are read") from error
    if not isinstance(found, dict):
        raise BadInput("it holds no dict")
    return found


def versions():
    """The versions of the packages that decide on a result, and the commit of this repository."""
    packages = ("torch", "torchvision", "torchaudio", "av", "numpy")
    return {**{name: importlib.metadata.version(name) for name in packages}, "commit": commit()}


def commit():
    """The commit of this repository, "+changes" if files differ from it; None without git."""
    root = Path(__file__).parent.parent
    try:
        head = git(root, "rev-parse", "HEAD")
        changes = git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+changes" if changes else head


def git(root, *command):
    found = subprocess.run(
        ["git", "-C", root, *command], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()
