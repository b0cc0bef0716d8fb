"""What is around any run: errors in one line, whole files, locks, the folder of a run;
and rules for the repository as a whole: who may import whom, and which commands there are.

    python -m pytest -q harness
"""

import ast
import errno
import io
import json
import multiprocessing
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import data
import finetune
import harness.run
import pretrain
from harness.curves import draw, summarise
from harness.errors import BadInput, one_line_errors, printable
from harness.files import atomic_write, in_own_process, one_at_a_time
from harness.fixtures import (
    CACHE,
    PAGES,
    ROOT,
    pretraining_flags,
    read_log,
    run_script,
    write_film,
)
from harness.run import Processes, Run, commit, processor, save_tensors, versions
from media.collection import read_collection
from media.format import Format

# --------------------------------------------------------------------------------------------
# Processes
# --------------------------------------------------------------------------------------------


def test_networks_run_in_bf16_on_a_gpu_unless_it_is_told_fp32_and_in_fp32_on_a_cpu(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "autocast", lambda *_, enabled: asked.append(enabled))
    for device in ("cuda", "cpu"):
        for precision in ("bf16", "fp32"):
            processes = Processes(precision)
            processes.device = torch.device(device)
            processes.autocast()
            asked.append(processes.precision)
    assert asked == [True, "bf16", False, "fp32", False, "fp32", False, "fp32"]


@pytest.mark.parametrize("script, flags", [(pretrain, []), (finetune, ["--task", "esc50"])])
def test_the_precision_of_a_command_line_reaches_its_processes(script, flags, monkeypatch):
    class Asked(Exception):
        pass

    def asked(precision):
        raise Asked(precision)

    monkeypatch.setattr(script, "Processes", asked)
    for more, precision in (([], "bf16"), (["--precision", "fp32"], "fp32")):
        with pytest.raises(Asked, match=precision):
            script.main(script.parse_args([*flags, *more]))


# --------------------------------------------------------------------------------------------
# Errors
# --------------------------------------------------------------------------------------------


def end_of(error, capsys, **options):
    """Exit status and standard error of a script that raises this error."""
    with pytest.raises(SystemExit) as stop, one_line_errors("x.py", "start again", **options):
        raise error
    return stop.value.code, capsys.readouterr().err


def test_what_a_user_can_fix_ends_in_one_line(capsys):
    status, printed = end_of(BadInput("--k 5: must be less"), capsys)
    assert status == 2 and printed == "x.py: error: --k 5: must be less\n"
    status, printed = end_of(FileNotFoundError(2, "No such file", "a.mp4"), capsys)
    assert status == 2 and "No such file" in printed and "a.mp4" in printed
    status, _ = end_of(KeyboardInterrupt(), capsys)
    assert status == "x.py: interrupted; start again"
    with pytest.raises(ZeroDivisionError), one_line_errors("x.py", "start again"):
        raise ZeroDivisionError  # our own fault, and so a traceback


def test_an_error_may_have_a_line_of_its_own(capsys):
    hints = {MemoryError: "take a smaller --batch-size"}
    status, printed = end_of(MemoryError("13 pages"), capsys, hints=hints)
    assert status == 2 and printed == "x.py: error: take a smaller --batch-size\n"


@pytest.fixture
def readers_end(monkeypatch):
    """End the reading processes that outlive an error: whoever finds them as garbage waits 5 s."""
    batches_of = torch.utils.data.dataloader._MultiProcessingDataLoaderIter
    begin, begun = batches_of.__init__, []

    def noted(batches, loader):
        begun.append(batches)
        begin(batches, loader)

    monkeypatch.setattr(batches_of, "__init__", noted)
    yield
    assert begun
    for batches in begun:
        batches._shutdown_workers()


class Broken(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, i):
        raise BadInput("a.mp4: damaged")


def test_an_error_of_a_reading_process_is_its_own_message(capsys, readers_end):
    """A DataLoader puts the traceback of its worker in front."""
    loader = torch.utils.data.DataLoader(Broken(), num_workers=1)
    with pytest.raises(SystemExit), one_line_errors("x.py", "start again"):
        next(iter(loader))
    assert capsys.readouterr().err == "x.py: error: a.mp4: damaged\n"


def test_a_terminal_without_the_characters_of_a_message_gets_them_as_numbers(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(SystemExit), one_line_errors("x.py", "start again"):
        raise BadInput("café.mp4: damaged")
    terminal.flush()
    assert terminal.buffer.getvalue() == b"x.py: error: caf\\xe9.mp4: damaged\n"


def test_any_name_of_a_file_can_be_printed():
    name = os.fsdecode(b"caf\xe9.mp4")
    assert printable(name) == "caf\\udce9.mp4"
    assert printable("千と千尋.mp4") == "千と千尋.mp4"


# --------------------------------------------------------------------------------------------
# The documents
# --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_a_file_and_to_one_of_its_headings(page):
    text = page.read_text()
    for target, heading in re.findall(r"\]\(([^()\s#]*)#?([^()\s]*)\)", text):
        if "://" in target:
            continue
        path = (page.parent / target) if target else page
        assert path.exists(), target
        if heading:
            assert heading in headings_of(path), (target, heading)


def headings_of(path):
    """What links call the headings of a page: in small letters, words joined by hyphens."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --------------------------------------------------------------------------------------------
# Files
# --------------------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "film.txt"
    atomic_write(path, lambda temporary: temporary.write_text("old"))

    def fail_midway(temporary):
        temporary.write_text("ne")
        assert path.read_text() == "old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        atomic_write(path, fail_midway)
    assert path.read_text() == "old"
    atomic_write(path, lambda temporary: temporary.write_text("new"))
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_named_as_such():
    """torch.save itself speaks of a position in a file."""
    with pytest.raises(OSError, match="No space left on device"):
        save_tensors({"weights": torch.zeros(2**20)}, Path("/dev/full"))


class Dying(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, i):
        os.kill(os.getpid(), signal.SIGKILL)


def test_where_a_reading_process_dies_the_run_is_saved_and_ends_in_one_line(monkeypatch, capsys):
    # PyTorch looks every 5 s whether it lives, if the signal of its death comes before it waits.
    look = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(look, "__defaults__", (0.1,))
    saved = []
    loader = torch.utils.data.DataLoader(Dying(), num_workers=1)
    with pytest.raises(SystemExit) as end, one_line_errors("x.py", "start again"):
        data.next_batch(iter(loader), lambda: saved.append(True))
    assert saved == [True] and end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("x.py: error: a reading process died (DataLoader worker (pid")
    assert line.endswith(
        "; run the command again with fewer --workers, or with more memory (shared, too)"
    )
    with pytest.raises(RuntimeError, match="a mistake"), one_line_errors("x.py", "start again"):
        raise RuntimeError("a mistake of ours")


def test_a_reading_process_without_shared_memory_ends_in_one_line(monkeypatch, capsys, readers_end):
    """By default what it read would be lost without a word, and the reader would wait for ever."""

    def share_memory_(tensor):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", share_memory_)
    files = [({"views": [torch.zeros(3)]}, 0)]
    processes = Processes()
    processes.start()
    with pytest.raises(SystemExit), one_line_errors("x.py", "start again"):
        next(iter(finetune.read_views(NoKeys(files), [0], "test", processes, workers=1)))
    assert "x.py: error: shared memory, /dev/shm, is full; make it larger (docker" in (
        capsys.readouterr().err
    )
    [item] = finetune.read_views(NoKeys(files), [0], "test", processes, workers=0)
    assert item is files[0]


class NoKeys(torch.utils.data.Dataset):
    """Items that are asked for as those of the labelled sets are: by (number, key)."""

    def __init__(self, items):
        self.items = items

    def __getitem__(self, place):
        number, _ = place
        return self.items[number]


# How Python starts a process by default: before 3.14, and from then on.
STARTS = ("fork", "forkserver")


@pytest.mark.parametrize("start", STARTS)
def test_a_decoder_that_crashes_takes_one_file_with_it(start):
    default = multiprocessing.get_start_method()
    multiprocessing.set_start_method(start, force=True)
    try:
        with pytest.raises(BadInput, match="the process that read it died"):
            in_own_process(os._exit, 1)
        assert in_own_process(str, "film") == "film"
    finally:
        multiprocessing.set_start_method(default, force=True)


DECODE = """
import multiprocessing, sys
from harness.files import in_own_process
multiprocessing.set_start_method(sys.argv[1])
in_own_process(exec, "import time; print('begun', flush=True); time.sleep(600)")
"""


@pytest.mark.parametrize("start", STARTS)
def test_a_decoder_ends_with_the_process_that_asked_for_it(start):
    command = [sys.executable, "-c", DECODE, start]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "begun\n"
        process.kill()
        # The decoder has this end of the pipe, too.
        assert process.communicate(timeout=60) == ("", None)


LOCK = """
import pathlib, sys
from harness.files import lock_folder
lock_folder(pathlib.Path(sys.argv[1]))
print(flush=True)
input()
"""


def test_a_folder_is_of_one_run_at_a_time(run, toy, tmp_path):
    run = shutil.copytree(run, tmp_path / "run")  # this process has the lock of the other
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", LOCK, run], cwd=ROOT, **pipes) as other:
        other.stdout.readline()  # it has the folder
        before = (run / "checkpoint.pt").read_bytes()
        with pytest.raises(BadInput, match="another run is using this folder"):
            pretrain.main(pretrain.parse_args(pretraining_flags(toy, run)))
        assert (run / "checkpoint.pt").read_bytes() == before
        other.communicate(b"\n")


WAIT = """
import pathlib, sys
from harness.files import one_at_a_time
print(flush=True)
with one_at_a_time(pathlib.Path(sys.argv[1])):
    print(sorted(path.name for path in pathlib.Path(sys.argv[1]).iterdir()))
"""


def test_a_folder_is_changed_by_one_process_at_a_time(tmp_path):
    command = [sys.executable, "-c", WAIT, tmp_path]
    with one_at_a_time(tmp_path):
        other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        other.stdout.readline()  # it is about to wait
        time.sleep(0.3)
        (tmp_path / "ours").touch()
    printed, _ = other.communicate(timeout=60)
    assert printed == "['ours']\n"


def test_a_folder_that_cannot_be_locked_is_refused(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", fail)
    with pytest.raises(BadInput, match="cannot be locked .No locks available.; name a folder on"):
        with one_at_a_time(tmp_path):
            raise AssertionError("This must not be reached.")


# --------------------------------------------------------------------------------------------
# The folder of a run
# --------------------------------------------------------------------------------------------


@pytest.fixture
def alone():
    """The processes of a run without torchrun."""
    processes = Processes()
    processes.start()
    return processes


def test_an_argument_that_an_old_checkpoint_lacks_means_what_it_meant_before(alone, tmp_path):
    """A run of before `sharpen` existed was not sharpened, unless k was 8."""

    def before(args):
        return {"sharpen": args["k"] == 8}

    Run(tmp_path, alone, {"k": 4}).save({})
    old = {"k": 4, "sharpen": False}
    assert Run(tmp_path, alone, old, before=before).checkpoint is not None
    with pytest.raises(BadInput, match="sharpen False and not True"):
        Run(tmp_path, alone, {"k": 4, "sharpen": True}, before=before)
    with pytest.raises(BadInput, match="k 4 and not 8"):
        Run(tmp_path, alone, {"k": 8, "sharpen": False}, before=before)


def test_a_log_is_cut_to_its_checkpoint(alone, tmp_path):
    first = Run(tmp_path, alone, {})
    first.begin()
    for step in (1, 2):
        first.log(step=step, loss=1.0)
    first.save({})
    first.log(step=3, loss=1.0)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 4, "lo')  # as a kill in the middle of a line leaves it
    second = Run(tmp_path, alone, {})
    second.begin(second.read_log(last_step=2))
    second.log(step=3, loss=2.0)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_a_log_is_cut_to_nothing_where_nothing_was_logged_before_the_checkpoint(alone, tmp_path):
    """As when a run without held-out titles is killed before its second checkpoint."""
    run = Run(tmp_path, alone, settings={})
    run.begin()
    run.save({"step": 0})
    run.log(step=1, loss=2.0)
    again = Run(tmp_path, alone, settings={})
    again.begin(again.read_log(last_step=0))
    again.log(step=1, loss=3.0)
    assert [row["loss"] for row in again.read_log(last_step=9)] == [3.0]


def test_the_result_names_the_seconds_the_versions_and_the_commit(run, monkeypatch):
    result = json.loads((run / "result.json").read_text())
    assert result["training_seconds"] == pytest.approx(sum(read_log(run, "seconds")))
    found = result["versions"]
    assert torch.__version__.startswith(found["torch"])
    assert found["av"] == av.__version__
    assert found["numpy"] == np.__version__
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if git.returncode == 0:
        assert found["commit"].startswith(git.stdout.strip())
    else:  # an archive without its history
        assert found["commit"] is None
    assert found["processor"] == processor() and found["device"] == "cpu"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    assert found.keys() == versions().keys() and versions()["threads"] == 7


def test_the_commit_tells_whether_the_code_is_that_of_the_commit(tmp_path, monkeypatch):
    def git(*command):
        as_somebody = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", tmp_path, *as_somebody, *command], check=True)

    monkeypatch.setattr(harness.run, "__file__", str(tmp_path / "harness" / "run.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() is None
    for name in ("code.py", "rows.json"):
        (tmp_path / name).write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "both")
    head = commit()
    assert len(head) == 40
    (tmp_path / "rows.json").write_text("2")
    (tmp_path / "untracked.py").write_text("2")
    assert commit() == head
    (tmp_path / "code.py").write_text("2")
    assert commit() == f"{head}+changes"


def test_a_processor_is_named_with_what_decides_on_its_sums(monkeypatch):
    cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC 9R14: 96 cores\nflags\t\t: fpu vme\n"
    read = {"/proc/cpuinfo": cpuinfo}
    monkeypatch.setattr(Path, "read_text", lambda path: read[str(path)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert processor() == "AMD EPYC 9R14: 96 cores, AVX512"
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    read["/proc/cpuinfo"] = "CPU implementer\t: 0x41\n"  # as Linux on ARM has it
    assert processor() == "arm, AVX512"

    def not_there(_):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", not_there)
    assert processor() == "arm, AVX512"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert processor() == "NVIDIA H100"


# --------------------------------------------------------------------------------------------
# Pictures
# --------------------------------------------------------------------------------------------


def test_each_panel_has_its_unit_and_the_line_of_chance(monkeypatch):
    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: saved.append(figure))
    measures = {"speed": ("how fast", "m/s"), "hits": ("what hits", "%"), "new": ("new", "bits")}
    log = [{"step": 1, "loss": 2.0}, {"step": 1, "speed": 3.0, "hits": 60}]
    summary = summarise(log, measures)
    del summary["curves"]["new"]  # as in the summary of an older run
    draw("curves.png", {"x": {0: summary}}, measures, loss_unit="dB", chance={"hits": 50, "new": 1})
    [figure] = saved
    shown = [(axes.get_title(), axes.get_ylabel()) for axes in figure.axes]
    assert shown == [("how fast", "m/s"), ("what hits", "%"), ("training loss", "dB")]
    lines = [[line.get_ydata() for line in axes.get_lines()] for axes in figure.axes]
    assert lines == [[[3.0]], [[60], [50, 50]], [[2.0]]]


def test_what_each_step_has_is_averaged_as_the_loss_is():
    log = [{"step": step, "loss": 2.0, "hits": step} for step in range(1, 81)]
    log += [{"step": 80, "not_finite": "loss nan", "hits": 1000}, {"step": 80, "speed": 3.0}]
    summary = summarise(log, ["speed"], of_steps=["hits"])
    steps, hits = summary["curves"]["hits"]
    assert len(steps) == 40 and steps == hits == [2 * i + 1.5 for i in range(40)]
    assert summary["final"] == {"loss": 2.0, "speed": 3.0, "hits": 76.5}


def test_steps_that_lack_a_number_leave_a_gap_in_its_curve():
    log = [{"step": step, "loss": 1.0} for step in range(1, 101)]
    log[0]["hits"], log[97]["hits"] = 0.25, 0.75  # as where no clip of a step was asked
    summary = summarise(log, [], of_steps=["hits", "never"])
    assert summary["curves"]["hits"] == ([1.0, 98.0], [0.25, 0.75])
    assert summary["final"] == {"loss": 1.0, "hits": 0.75}


# --------------------------------------------------------------------------------------------
# The user's cache
# --------------------------------------------------------------------------------------------


def test_no_test_writes_to_the_users_cache(tmp_path, monkeypatch):
    """The index of a collection and matplotlib's fonts go to a temporary folder in all tests."""
    home, films = tmp_path / "home", tmp_path / "films"
    home.mkdir()
    films.mkdir()
    write_film(films / "film.mp4", 4)
    monkeypatch.setenv("HOME", str(home))
    index = CACHE / "watching-television"
    before = set(index.glob("*"))
    read_collection(films, Format())
    check = [sys.executable, "-m", "media", "check", films]
    subprocess.run(check, cwd=ROOT, check=True, capture_output=True)
    draw = [sys.executable, "-c", "import matplotlib.font_manager"]
    subprocess.run(draw, check=True, capture_output=True)
    assert list(home.iterdir()) == []
    assert len(set(index.glob("*")) - before) == 1
    fonts = Path(matplotlib.get_cachedir())
    assert fonts == CACHE or CACHE in fonts.parents


# --------------------------------------------------------------------------------------------
# Import directions
# --------------------------------------------------------------------------------------------

BELOW = {"media", "harness"}
METHOD = {"sampler", "loss", "models", "data"}
OURS = {*METHOD, *BELOW, "pretrain", "finetune", "lab", "papers"}

# What each file, or each file of a folder, may import of ours, beside files of its own folder.
MAY_IMPORT = {
    "harness": set(),
    "media": {"harness"},
    "sampler": set(),
    "loss": set(),
    "models": set(),
    "data": BELOW,
    "pretrain": {*METHOD, *BELOW},
    "finetune": {"data", "models", *BELOW},
    "lab": {*METHOD, *BELOW, "finetune"},
    "papers": {*METHOD, *BELOW},
}


def python_files():
    """Every file of the repository that is not a test."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if git.returncode == 0:
        paths = [Path(line) for line in git.stdout.splitlines()]
    else:  # an archive without its history
        folders = [ROOT, *(ROOT / name for name in OURS)]
        paths = [path.relative_to(ROOT) for folder in folders for path in folder.glob("*.py")]
    return [path for path in paths if (ROOT / path).exists() and path.name[:5] != "test_"]


def imports_of(path):
    """The dotted names that a file imports anywhere in it, with who imports them."""
    package = ".".join(path.parent.parts)
    for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                module = f"{package}.{module}"
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_imports_go_down_the_house_only():
    files = python_files()
    owners = {path.parts[0].removesuffix(".py") for path in files}
    assert owners <= MAY_IMPORT.keys(), "a new file or folder needs a row in MAY_IMPORT"
    assert {*METHOD, *BELOW, "pretrain", "finetune", "lab"} <= owners
    wrong = []
    for path in files:
        owner = path.parts[0].removesuffix(".py")
        allowed = MAY_IMPORT[owner]
        if owner != "papers":  # each paper stands alone
            allowed = allowed | {owner}
        for name in imports_of(path):
            module = name.split(".")[0]
            if module in OURS and module not in allowed:
                wrong.append(f"{path} imports {name}")
            if owner == "media" and module in ("torch", "torchaudio", "torchvision"):
                wrong.append(f"{path} imports {name}: media/ has no tensors")
    assert not wrong


def test_media_is_read_without_torch():
    """A machine that only prepares films need not load it."""
    code = "import media.__main__, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --------------------------------------------------------------------------------------------
# Commands
# --------------------------------------------------------------------------------------------

MOVED = [
    ("data.py toy W", "python -m media toy"),
    ("data.py prepare FILMS OUT", "python -m media"),
    ("data.py show FILE --at 00:31:00", "python -m lab.show"),
    ("data.py bench FILMS", "python -m lab.bench"),
    ("data.py", "python -m media"),
    ("models.py", "python -m lab.bench step"),
    ("pretrain.py --compare runs/a runs/b", "python -m lab.compare"),
    ("test_all.py findings.json", "python -m lab.findings"),
]


@pytest.mark.parametrize("old, new", MOVED, ids=[old for old, _ in MOVED])
def test_an_old_command_names_the_new_one(old, new):
    name, *argv = old.split()
    status, printed, errors = run_script(name, *argv)
    assert status == 2 and printed == ""
    [line] = errors.splitlines()
    assert line.startswith(name) and ": error: " in line and new in line


def test_the_test_command_of_the_readme_is_what_ci_runs():
    command = "python -m pytest -q"
    assert re.search(rf"^ *{command} *(#.*)?$", (ROOT / "README.md").read_text(), re.M)
    ci = [line.strip() for line in (ROOT / ".ci" / "run").read_text().splitlines()]
    assert command in ci
