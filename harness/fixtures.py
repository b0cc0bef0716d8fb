"""What the tests of all folders share: ways to run a script, films made here, a toy world, a run.

.pytest.ini loads this file as a plugin, before pytest imports a test:

    python -m pytest -q                        all tests: no network, no GPU
    python -m pytest -q media -k scratch       one folder, and the tests with that word

The files under test are run here and not imported, since nothing in harness/ imports from above.
"""

import contextlib
import gc
import http.server
import io
import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import sys
import tempfile
import threading
import warnings
from fractions import Fraction
from pathlib import Path

# Before torch and matplotlib look: tests use the CPU, one thread, since networks as small as
# these wait longer for a second one than it saves, and no cache of the user's.
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="television-tests-")
os.environ["MPLCONFIGDIR"] = os.environ["XDG_CACHE_HOME"]
os.environ["NO_PROXY"] = "127.0.0.1"
os.environ["no_proxy"] = "127.0.0.1"

import av
import numpy as np
import pytest
import torch
import torch.distributed.run
from matplotlib.figure import Figure

from harness.files import end_with_parent

ROOT = Path(__file__).parent.parent
# The documents of this repository. A folder such as .pytest_cache may have pages of its own.
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md")])
CACHE = Path(os.environ["XDG_CACHE_HOME"])


def pytest_configure():
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)


def pytest_collection_finish():
    """No garbage is among what is imported, and looking through it takes 0.2 s each time."""
    gc.freeze()


def pytest_unconfigure():
    shutil.rmtree(CACHE, ignore_errors=True)


# --------------------------------------------------------------------------------------------
# Running what a user runs
# --------------------------------------------------------------------------------------------


def run_script(name, *argv):
    """Run a script ("pretrain.py") or a module ("lab.show") as its user does, in this process.

    Returns (exit status, standard output, standard error).
    """
    output, errors, argv_before = io.StringIO(), io.StringIO(), sys.argv
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    sys.argv = [name, *map(str, argv)]
    status = 0
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
            execute(name)
    except SystemExit as stop:
        status = stop.code
    finally:
        sys.argv = argv_before
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    return status, output.getvalue(), errors.getvalue()


def execute(name):
    if name.endswith(".py"):
        runpy.run_path(str(ROOT / name), run_name="__main__")
        return
    with warnings.catch_warnings():
        # A test may have imported the module already.
        warnings.filterwarnings("ignore", ".* found in sys.modules", RuntimeWarning)
        runpy.run_module(name, run_name="__main__")


def refused(name, *argv):
    """The one line on standard error of a command that must refuse its arguments.

    Returned is what follows the command's name.
    """
    status, _, errors = run_script(name, *argv)
    lines = errors.strip().splitlines()
    assert status == 2, errors
    command = name if name.endswith(".py") else f"python -m {name}"
    prefix = f"{command}: error: "
    assert len(lines) == 1 and lines[0].startswith(prefix), errors
    return lines[0].removeprefix(prefix)


class Forked:
    """A process that is forked from this one and calls work(): importing torch takes 2 s.

    It has all that a test has changed until now. It leads a session of its own, and a `with` leaves
    nothing of it.
    """

    def __init__(self, work, folder=".", **variables):
        self.output = tempfile.TemporaryFile("w+")
        self.errors = tempfile.TemporaryFile("w+")
        fork = multiprocessing.get_context("fork")
        self.process = fork.Process(target=self.begin, args=(work, folder, variables))
        self.process.start()

    def begin(self, work, folder, variables):
        end_with_parent()
        os.setsid()
        os.chdir(folder)
        os.environ.update(variables)
        os.dup2(self.output.fileno(), 1)
        os.dup2(self.errors.fileno(), 2)
        sys.stdout, sys.stderr = (open(stream, "w", buffering=1) for stream in (1, 2))
        work()

    def end(self):
        """Wait until it ends. Returns (exit status, standard output, standard error)."""
        self.process.join(60)
        printed = []
        for file in (self.output, self.errors):
            file.seek(0)
            printed.append(file.read())
        return self.process.exitcode, *printed

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()  # if it has no session yet
        self.process.join()
        self.output.close()
        self.errors.close()


def torchrun(script, *argv, options=()):
    """Run a script in two gloo processes of torchrun on this machine; all are forked from this one.

    options  torchrun's own

    Returns what was printed.
    """
    command = ["--standalone", "--nproc_per_node=2", "--run-path", "--start-method=fork", *options]
    command += [str(ROOT / script), *map(str, argv)]
    # Without this, restarted processes sometimes read the addresses of those before them.
    variables = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with Forked(lambda: torch.distributed.run.main(command), **variables) as agent:
        status, printed, errors = agent.end()
    assert status == 0, errors[-3000:]
    return printed


def on_two_nodes(work, folders):
    """Call work() in two gloo processes, each as on a node of its own, in a folder of its own.

    Returns what each has printed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    variables |= {"WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    with contextlib.ExitStack() as stack:
        nodes = [Forked(work, folder, RANK=str(i), **variables) for i, folder in enumerate(folders)]
        for node in nodes:
            stack.enter_context(node)
        ends = [node.end() for node in nodes]
    assert [status for status, _, _ in ends] == [0, 0], ends
    return [printed for _, printed, _ in ends]


# --------------------------------------------------------------------------------------------
# A toy world and a run, made once a session
# --------------------------------------------------------------------------------------------

# Small networks and small snippets: nine steps an epoch on six of the toy world's eight films.
SMALL = """
    --toy --width 8 --short-side 40 --crop 24 --batch-size 16 --k 4 --w 8
    --held-out 0.25 --held-out-snippets 4 --warmup 0.5
""".split()


def pretraining_flags(toy, out, *more):
    """The command line of a run of one epoch, nine steps of 16 snippets. Flags in `more` win."""
    flags = ["--data", toy / "films", "--out", out, "--epochs", 1, "--workers", 0, *more]
    return [*SMALL, *map(str, flags)]


def fine_tuning_flags(toy, out, task, *more):
    """The command line of two epochs of a toy task, at the sizes of `SMALL`. `more` wins."""
    flags = """
        --width 8 --epochs 2 --warmup 1 --batch-size 20 --crop 24 --scale 36 46 --short-side 40
        --workers 0
    """.split()
    folder = toy / task.removeprefix("toy-")
    return [*flags, *map(str, ["--task", task, "--data", folder, "--out", out, *more])]


def fine_tune(toy, out, task, *more):
    """Run the script, whose picture is left empty. Returns (result.json, what was printed)."""
    flags = fine_tuning_flags(toy, out, task, *more)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, path, **_: Path(path).touch())
        status, printed, errors = run_script("finetune.py", *flags)
    assert not status, errors
    return json.loads((Path(out) / "result.json").read_text()), printed


def load_checkpoint(out):
    return torch.load(Path(out) / "checkpoint.pt", weights_only=True)


def read_log(out, name="loss"):
    """The values of one name in log.jsonl, row by row, where a row has it."""
    lines = (Path(out) / "log.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [row[name] for row in rows if name in row]


def render(root, flags):
    """Render a toy world, and return its folder."""
    status, _, errors = run_script("media", "toy", root, *flags.split())
    assert not status, errors
    return root


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A small toy world: 8 films of 24 snippets, and 4 + 2 clips a class."""
    root = tmp_path_factory.mktemp("world") / "toy"
    return render(root, "--titles 8 --snippets 24 --clips 4 2")


@pytest.fixture(scope="session")
def shows(tmp_path_factory):
    """A toy world of 5 shows, each of 3 episodes of 8 snippets."""
    root = tmp_path_factory.mktemp("world") / "shows"
    return render(root, "--titles 5 --episodes 3 --snippets 8 --clips 1 1")


def assert_equal(a, b):
    """Two entries of checkpoints are the same, down to their types and to the last bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list):
        assert len(a) == len(b)
        for x, y in zip(a, b):
            assert_equal(x, y)
    else:
        assert a == b


@pytest.fixture(scope="session")
def run(toy, tmp_path_factory):
    """The folder of one finished run of nine steps."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    status, _, errors = run_script("pretrain.py", *pretraining_flags(toy, out, "--workers", 2))
    assert not status, errors
    return out


# --------------------------------------------------------------------------------------------
# Films: flashes and beeps, through FFmpeg's encoders
# --------------------------------------------------------------------------------------------

EVENT = 2.0  # seconds between two flashes, each with its beep
LIT = 0.2  # seconds that a flash and its beep last
BLOCK = 1024  # samples of sound in a block

# What makes slow encoders fast; all others take ultrafast.
ENCODERS = {
    "libsvtav1": {"preset": "12"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "wmv2": {},
}


def write_film(
    path,
    seconds=20,
    fps=25,
    rate=44100,
    video="libx264",
    audio="aac",
    size=(64, 48),
    start=0.0,
    gop=50,
    options=None,
    pix_fmt="yuv420p",
    layout="stereo",
    only=None,
    tone=1000,
    lead=(0.0, 0.0),
    times=None,
    mux=None,
    image=None,
):
    """Write a film that flashes and beeps for the first LIT seconds of every EVENT.

    video, audio  codecs; None leaves the stream out
    start         of the file's clock, in seconds
    only          the one channel that sounds
    tone          pitch of the beep in Hz; 0 is silence
    lead          seconds that the frames and the sound lack at their beginnings
    times         when each frame is shown, in whole milliseconds, instead of `fps`
    mux           options of the container
    image         RGB (H, W, 3), shown all the time
    """
    if times is None:
        clock, stamps = 1 / Fraction(fps), range(round(seconds * fps))
    else:
        clock, stamps = Fraction(1, 1000), times
    with av.open(str(path), "w", container_options=mux or {}) as out:
        streams = []
        if video:
            pictures = PictureTrack(out, video, fps, size, pix_fmt, gop, options or {}, image)
            if times is not None:
                pictures.stream.codec_context.time_base = clock
            streams.append(pictures.stream)
        if audio:
            sound = SoundTrack(out, audio, rate, layout, only, tone, seconds)
            sound.written = round(lead[1] * rate)
            streams.append(sound.stream)
        for stamp in stamps:
            if video and stamp * clock >= lead[0]:
                pictures.write(stamp, clock, start)
            if audio:
                sound.write_until(min((stamp + 1) * clock, seconds), start)
        for stream in streams:
            out.mux(stream.encode())
    return path


def is_lit(time):
    """Whether a flash is on at this time of a film."""
    return (time + 1e-6) % EVENT < LIT


class PictureTrack:
    """The frames of a film that is being written."""

    def __init__(self, out, codec, fps, size, pix_fmt, gop, options, image):
        usual = ENCODERS.get(codec, {"preset": "ultrafast", "bf": "2"})
        self.out, self.size, self.image = out, size, image
        self.stream = out.add_stream(codec, rate=fps, options={"g": str(gop), **usual, **options})
        self.stream.width, self.stream.height = size
        self.stream.pix_fmt = pix_fmt

    def write(self, stamp, clock, start):
        """Write the frame that is due `stamp` ticks of the `clock` after `start`."""
        image = self.image
        if image is None:
            grey = 255 if is_lit(float(stamp * clock)) else 40
            image = np.full((self.size[1], self.size[0], 3), grey, np.uint8)
        frame = av.VideoFrame.from_ndarray(image)
        frame.pts, frame.time_base = stamp + round(start / clock), clock
        self.out.mux(self.stream.encode(frame))


class SoundTrack:
    """The sound of a film that is being written."""

    def __init__(self, out, codec, rate, layout, only, tone, seconds):
        options = {"strict": "-2", "b": "192000"}
        self.out, self.rate, self.layout, self.only = out, rate, layout, only
        self.stream = out.add_stream(codec, rate=rate, layout=layout, options=options)
        time = np.arange(round(seconds * rate)) / rate
        beeps = 0.8 * np.sin(2 * np.pi * tone * time) * (time % EVENT < LIT)
        self.waveform = beeps.astype(np.float32)
        self.written = 0  # samples

    def write_until(self, time, start):
        """Write the whole blocks that end by this time of the film; its clock begins at `start`."""
        while self.written + BLOCK <= time * self.rate:
            sound = self.waveform[self.written : self.written + BLOCK]
            channels = []
            for channel in av.AudioLayout(self.layout).channels:
                heard = self.only in (None, channel.name)
                channels.append(sound if heard else 0 * sound)
            packed = np.stack(channels, 1).reshape(1, -1)
            block = av.AudioFrame.from_ndarray(packed, format="flt", layout=self.layout)
            block.sample_rate, block.time_base = self.rate, Fraction(1, self.rate)
            block.pts = self.written + round(start * self.rate)
            self.out.mux(self.stream.encode(block))
            self.written += BLOCK


def onset(waveform, rate=48000):
    """Seconds into the waveform at which the first tone begins, or None."""
    loud = np.flatnonzero(np.abs(np.asarray(waveform)) > 0.2)
    return loud[0] / rate if len(loud) else None


def damage(path, share=(0.3, 0.6)):
    """Write random bytes over a part of a file."""
    content = bytearray(Path(path).read_bytes())
    low, high = (int(len(content) * end) for end in share)
    content[low:high] = np.random.default_rng(0).bytes(high - low)
    Path(path).write_bytes(content)


# --------------------------------------------------------------------------------------------
# A server on loopback
# --------------------------------------------------------------------------------------------


class RangeHandler(http.server.BaseHTTPRequestHandler):
    """Serves the files of `root`, whole or from a byte on. `asked` lists the paths asked for."""

    def do_GET(self):
        self.asked.append(self.path)
        content = (self.root / self.path.strip("/")).read_bytes()
        wanted = self.headers.get("Range", "bytes=0-")
        first = int(wanted.removeprefix("bytes=").split("-")[0])
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the reader has what it wanted
            self.wfile.write(content[first:])

    def log_message(self, *words):
        pass


@contextlib.contextmanager
def served(root, answers=RangeHandler):
    """Serve a folder. Gives (its address, the list of paths asked for so far).

    answers  the class of the handler
    """
    handler = type("Handler", (answers,), {"root": Path(root), "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", handler.asked
        finally:
            server.shutdown()
