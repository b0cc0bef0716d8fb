"""Tests of a run as a whole: on several processes and nodes, stopped, killed and resumed.

    python -m pytest -q harness/test_run.py

All runs here are of nine steps an epoch, each of two shares of eight snippets.
"""

import contextlib
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch

import data
import finetune
import harness.curves
import harness.files
import harness.run
import loss
import models
import pretrain
from data import AudioFrontEnd, VideoFrontEnd
from harness.errors import BadInput, Stopped
from harness.fixtures import (
    Forked,
    assert_equal,
    execute,
    fine_tune,
    fine_tuning_flags,
    load_checkpoint,
    on_two_nodes,
    pretraining_flags,
    read_log,
    refused,
    run_script,
    torchrun,
)
from harness.run import (
    Processes,
    Progress,
    Run,
    StopSignals,
    obey_parent_only,
    reason_to_end,
)
from media.format import Format
from sampler import HierarchicalSampler, IidSampler

NETWORKS = ("video", "audio", "video_head", "audio_head")  # entries of a checkpoint
TRAINED = (*NETWORKS, "optimizer", "progress")


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """Drawing takes longer than the nine steps of a run."""

    def draw(path, *inputs, **named):
        path.write_bytes(b"")

    def draw_confusion(counts, names, title, path):
        path.write_bytes(b"")

    monkeypatch.setattr(pretrain, "draw", draw)
    monkeypatch.setattr(harness.curves, "draw", draw)  # for pretrain.py as a command
    monkeypatch.setattr(finetune, "draw_confusion", draw_confusion)


def flags_of(toy, out, *more):
    return pretraining_flags(toy, out, "--share", 8, *more)


def pretrain_alone(toy, out, *more):
    pretrain.main(pretrain.parse_args(flags_of(toy, out, *more)))


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    """A run of one process, which takes both shares of a step in turn, and keeps its epoch."""
    out = tmp_path_factory.mktemp("run") / "whole"
    pretrain_alone(toy, out, "--keep")
    return out


def assert_nearly_equal(found, expected):
    """The same weights and statistics, up to the order in which gradients are added up."""
    for name in NETWORKS:
        for key, value in expected[name].items():
            assert torch.allclose(found[name][key], value, rtol=1e-3, atol=1e-5), (name, key)


# --------------------------------------------------------------------------------------------
# One meaning on any number of processes
# --------------------------------------------------------------------------------------------


def test_two_processes_take_the_steps_of_one(toy, tmp_path):
    """Each takes two of four shares in turn. Later steps differ more and more, by rounding."""
    logs, statistics = [], []
    for out, start in ((tmp_path / "one", run_script), (tmp_path / "two", torchrun)):
        start("pretrain.py", *flags_of(toy, out, "--batch-size", 32))
        logs.append((read_log(out), read_log(out, "grad_norm")))
        statistics.append(load_checkpoint(out)["video"])
    (losses, norms), (losses_of_two, norms_of_two) = logs
    assert len(losses_of_two) == len(losses) == 4
    assert losses_of_two[:3] == pytest.approx(losses[:3], rel=1e-3)
    assert norms_of_two[0] == pytest.approx(norms[0], rel=1e-4)
    assert norms_of_two[1] == pytest.approx(norms[1], rel=1e-3)
    for video in statistics:
        assert video["stem.1.num_batches_tracked"] == 4
    mean, mean_of_two = (video["stem.1.running_mean"] for video in statistics)
    assert torch.allclose(mean_of_two, mean, rtol=1e-2, atol=1e-3)
    assert load_checkpoint(tmp_path / "two")["args"]["processes"] == 2


@pytest.mark.parametrize("sampling", ["hierarchical", "iid"])
def test_processes_share_out_the_shares_of_a_minibatch(sampling):
    args = types.SimpleNamespace(batch_size=16, share=4, epochs=2)

    def shares_of(rank, world_size, step=0):
        processes = Processes()
        processes.rank, processes.world_size = rank, world_size
        sampler = IidSampler([24] * 6, 16)
        if sampling == "hierarchical":
            sampler = HierarchicalSampler([24] * 6, 16, k=4)
        return list(data.own_shares(sampler, step, args, processes))

    whole, first, second = shares_of(0, 1), shares_of(0, 2), shares_of(1, 2)
    assert len(whole) == 2 * 9 * 4
    for step in range(18):
        own = slice(2 * step, 2 * step + 2)
        assert first[own] + second[own] == whole[4 * step : 4 * step + 4]
    # Resumed in the second epoch, and in the first one, which a second one follows.
    assert shares_of(1, 2, step=11) == second[22:]
    assert shares_of(1, 2, step=4) == second[8:]


def test_the_share_of_an_old_checkpoint_is_the_batch_of_one_of_its_processes():
    assert pretrain.before({"batch_size": 512, "processes": 8})["share"] == 64
    assert pretrain.before({"batch_size": 512})["share"] == 512
    assert finetune.before({"batch_size": 96, "processes": 8}, 0)["share"] == 12


def test_each_share_has_the_key_of_its_place_and_the_first_updates_the_statistics(
    toy, tmp_path, monkeypatch
):
    keys, moved, loss_of_share = [], [], pretrain.loss_of_share

    def noted(batch, batch_key, fronts, model, *rest):
        statistics = [buffer.clone() for buffer in model.buffers()]
        loss = loss_of_share(batch, batch_key, fronts, model, *rest)
        keys.append(batch_key)
        moved.append([not torch.equal(*pair) for pair in zip(statistics, model.buffers())])
        assert len(batch["video"]) == 8
        return loss

    checked = []
    monkeypatch.setattr(Processes, "check_gpu", lambda _, *sizes: checked.append(sizes))
    monkeypatch.setattr(pretrain, "loss_of_share", noted)
    pretrain_alone(toy, tmp_path / "run", "--seed", 3)
    assert checked == [(8, models.largest_map(width=8, frames=8, crop=24))]
    assert keys == list(itertools.product([3], [0], range(9), range(2)))
    assert all(all(first) for first in moved[::2])
    assert not any(any(second) for second in moved[1::2])


# --------------------------------------------------------------------------------------------
# Stopped, killed and resumed
# --------------------------------------------------------------------------------------------


def interrupt_after(losses, number, monkeypatch, module=pretrain):
    """Send the signal to this process at the n-th share."""
    calls, loss_of_share = itertools.count(1), module.loss_of_share

    def noted(*inputs):
        if next(calls) == losses:
            os.kill(os.getpid(), number)
        return loss_of_share(*inputs)

    monkeypatch.setattr(module, "loss_of_share", noted)


def test_a_run_that_is_told_to_stop_saves_the_step_and_resumes(toy, whole, tmp_path, monkeypatch):
    """Also one of a GPU on a CPU: there Adam is fused, and its checkpoint says so."""
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_after(7, signal.SIGTERM, patch)  # in the fourth step
        with pytest.raises(Stopped, match="SIGTERM, after step 4 of 9, which is saved"):
            pretrain_alone(toy, out)
    checkpoint = load_checkpoint(out)
    assert checkpoint["progress"]["step"] == 4 and len(read_log(out)) == 4
    # The measurement of step 4 was put off, so that nothing came before saving.
    assert len(read_log(out, "gap")) == 1
    [group] = checkpoint["optimizer"]["param_groups"]
    assert group["fused"] is False
    group["fused"] = True
    torch.save(checkpoint, out / "checkpoint.pt")
    pretrain_alone(toy, out)
    assert read_log(out) == read_log(whole) and read_log(out, "gap") == read_log(whole, "gap")
    for name in TRAINED:
        assert_equal(load_checkpoint(out)[name], load_checkpoint(whole)[name])


def test_the_command_that_is_stopped_says_so_in_a_line(toy, tmp_path):
    """From outside, as a terminal and Slurm stop the real script and its reading process."""
    out = tmp_path / "run"
    flags = flags_of(toy, out, "--epochs", 9, "--workers", 1)

    def work():
        sys.argv = ["pretrain.py", *map(str, flags)]
        execute("pretrain.py")

    with Forked(work) as script:
        wait_for_steps(out, 2)
        for number in (signal.SIGINT, signal.SIGTERM):  # at once, so the second is a repetition
            os.killpg(script.process.pid, number)
        status, _, errors = script.end()
    last = errors.strip().splitlines()[-1]
    step = load_checkpoint(out)["progress"]["step"]
    assert status == 1 and "Traceback" not in errors
    assert last == (
        f"pretrain.py: stopped by SIGINT, after step {step} of 81, which is saved; the same "
        "command resumes from there"
    )


def wait_for_steps(out, steps):
    """Wait until a run in another process has logged so many steps."""
    for _ in range(600):
        if (out / "log.jsonl").exists() and len(read_log(out)) >= steps:
            return
        signal.sigtimedwait([], 0.1)
    raise AssertionError(f"{out} has not come to step {steps}")


def test_a_second_signal_is_obeyed_once_it_cannot_be_a_repetition(monkeypatch):
    times = iter([100.0, 101.0, 107.0])
    monkeypatch.setattr(harness.run, "time", types.SimpleNamespace(monotonic=lambda: next(times)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # nohup ignores it
    try:
        with StopSignals() as signals:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # as torchrun repeats it
            assert signals.received == "SIGINT"
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_signal_in_the_last_step_ends_nothing_early():
    signals = types.SimpleNamespace(received="SIGTERM")
    assert isinstance(reason_to_end(True, 0, signals, None, 8, 9), Stopped)
    assert reason_to_end(True, 0, signals, None, 9, 9) is None
    assert reason_to_end(False, 9, signals, None, 8, 9) is None


def fine_tune_here(toy, out, *more):
    """As `fine_tune` does with the real script, but in this module, which a test may change."""
    finetune.main(finetune.parse_args(fine_tuning_flags(toy, out, "toy-sound", *more)))


def test_fine_tuning_that_is_told_to_stop_resumes_within_its_epoch(
    toy, tmp_path, monkeypatch, capsys
):
    whole, half = tmp_path / "whole", tmp_path / "half"
    flags = ["--share", 10]
    fine_tune_here(toy, whole, *flags)
    with monkeypatch.context() as patch:
        interrupt_after(5, signal.SIGTERM, patch, finetune)  # in the third step, the epoch's first
        with pytest.raises(Stopped, match="after step 3 of 4, which is saved"):
            fine_tune_here(toy, half, *flags)
    state = torch.load(half / "last.pt", weights_only=True)
    state["args"]["processes"] = 2  # as if it had been so, which does not matter
    torch.save(state, half / "last.pt")
    fine_tune_here(toy, half, *flags)
    assert "resumed after epoch 1 and step 1" in capsys.readouterr().out
    resumed = torch.load(half / "split1.pt", weights_only=True)
    assert_equal(resumed, torch.load(whole / "split1.pt", weights_only=True))
    assert read_log(half) == read_log(whole)
    assert not list(half.glob("*-before*"))


def test_fine_tuning_that_is_told_to_stop_in_its_last_step_is_not_tested(
    toy, tmp_path, monkeypatch
):
    """A test may take longer than the half minute before the process is killed."""
    flags = ["--share", 10, "--epochs", 1, "--warmup", 0]
    with monkeypatch.context() as patch:
        interrupt_after(4, signal.SIGTERM, patch, finetune)
        with pytest.raises(Stopped, match="after step 2 of 2, which is saved"):
            fine_tune_here(toy, tmp_path, *flags)
    assert not (tmp_path / "result.json").exists()
    fine_tune_here(toy, tmp_path, *flags)
    assert (tmp_path / "result.json").exists()


def test_the_seconds_of_fine_tuning_are_those_of_all_starts(toy, tmp_path, monkeypatch):
    ticks = itertools.count()
    clock = types.SimpleNamespace(perf_counter=lambda: float(next(ticks)))
    monkeypatch.setattr(finetune, "time", clock)
    flags = ["--share", 10, "--epochs", 1, "--warmup", 0]
    with monkeypatch.context() as patch:
        interrupt_after(2, signal.SIGTERM, patch, finetune)
        with pytest.raises(Stopped, match="after step 1 of 2"):
            fine_tune_here(toy, tmp_path, *flags)
    fine_tune_here(toy, tmp_path, *flags)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["training_seconds"] == 10
    assert len(read_log(tmp_path, "seconds")) == 1


def test_a_step_of_fine_tuning_that_is_not_finite_is_skipped(toy, tmp_path, monkeypatch):
    """The running statistics, too, are those of before; many such steps in a row end it."""
    keys, statistics, loss_of_share = [], [], finetune.loss_of_share
    spoiled = [3]  # the first share of the second step

    def noted(clips, labels, batch_key, front_end, model, processes):
        keys.append(batch_key)
        statistics.append([buffer.clone() for buffer in model.buffers()])
        loss, accuracy = loss_of_share(clips, labels, batch_key, front_end, model, processes)
        return loss * (float("nan") if len(keys) in spoiled else 1), accuracy

    monkeypatch.setattr(finetune, "loss_of_share", noted)
    fine_tune_here(toy, tmp_path / "one", "--share", 10)
    assert keys == list(itertools.product([0], range(2), range(2), range(2)))
    assert read_log(tmp_path / "one", "skipped") == [1, 1]
    assert np.isfinite(read_log(tmp_path / "one")).all()
    result = json.loads((tmp_path / "one" / "result.json").read_text())
    assert result["skipped"] == 1
    assert result["summary"][0] == (
        "toy-sound: 1 steps were skipped, since a loss or a gradient was not finite"
    )
    assert_equal(statistics[4], statistics[2])
    with pytest.raises(AssertionError):
        assert_equal(statistics[6], statistics[4])
    keys.clear()
    spoiled[:] = range(1, 5)  # all steps of the first epoch
    fine_tune_here(toy, tmp_path / "epoch", "--share", 10)
    assert len(read_log(tmp_path / "epoch")) == 1  # The first epoch has no loss.
    assert read_log(tmp_path / "epoch", "skipped") == [2, 2]
    keys.clear()
    spoiled[:] = range(1, 100)
    monkeypatch.setattr(harness.run, "SKIPS", 4)
    with pytest.raises(BadInput, match="4 steps in a row had a loss or a gradient"):
        fine_tune_here(toy, tmp_path / "all")


def test_a_killed_process_brings_all_back_to_the_last_checkpoint(toy, whole, tmp_path, monkeypatch):
    """At a random step, under `torchrun --max-restarts`."""
    step = int(np.random.default_rng().integers(2, 10))
    calls, nce_loss = itertools.count(1), loss.nce_loss

    def killed(*inputs):
        first_life = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if next(calls) == step and first_life and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        return nce_loss(*inputs)

    monkeypatch.setattr(loss, "nce_loss", killed)
    flags = flags_of(toy, tmp_path / "run", "--save-minutes", 0)
    printed = torchrun("pretrain.py", *flags, options=["--max-restarts=1"])
    assert f"resumed after step {step - 1}" in printed and "warning" not in printed
    assert read_log(tmp_path / "run") == pytest.approx(read_log(whole), rel=1e-3)
    assert_nearly_equal(load_checkpoint(tmp_path / "run"), load_checkpoint(whole))


def test_all_reading_processes_obey_their_parent_only(toy, tmp_path, monkeypatch):
    """Those of a measurement, too, and those of fine-tuning."""
    scripts = ((pretrain, data, pretrain_alone), (finetune, finetune, fine_tune_here))
    for script, reader, start in scripts:
        told, loader = [], reader.DataLoader

        def noted(*inputs, worker_init_fn=None, told=told, loader=loader, **options):
            told.append((options.get("batch_sampler") is not None, worker_init_fn))
            return loader(*inputs, worker_init_fn=worker_init_fn, **options)

        def stop(*inputs):
            raise Stopped

        monkeypatch.setattr(reader, "DataLoader", noted)
        monkeypatch.setattr(script, "loss_of_share", stop)
        with pytest.raises(Stopped):
            start(toy, tmp_path / script.__name__)
        assert (True, obey_parent_only) in told
        assert {init for _, init in told} == {obey_parent_only}
        if script is pretrain:  # a measurement before the first step, and the step
            assert len(told) == 2


READ = """
import pathlib, sys, time
from harness.run import obey_parent_only
obey_parent_only(0)
pathlib.Path({path!r}).touch()
time.sleep(600)
"""


@contextlib.contextmanager
def reading(path, start, first=""):
    """A process that does `first`, obeys its parent only, and then makes this file."""
    context = multiprocessing.get_context(start)
    reader = context.Process(target=exec, args=(first + READ.format(path=str(path)),))
    reader.start()
    try:
        while not path.exists():
            assert reader.is_alive()
            time.sleep(0.05)
        yield reader
    finally:
        reader.kill()


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_a_reading_process_ends_when_its_parent_says_so_and_nobody_else(tmp_path, start):
    """Its parent need not be the process that forked it: by default it is not in Python 3.14."""
    with reading(tmp_path / "begun", start) as reader:
        subprocess.run(["kill", "-TERM", f"{reader.pid}"], check=True)
        reader.join(timeout=0.3)
        assert reader.is_alive()
        reader.terminate()
        reader.join(timeout=30)
        assert reader.exitcode == 0


def test_where_a_signal_does_not_say_whom_it_is_from_a_reading_process_takes_any(tmp_path):
    as_on_macos = "import signal\ndel signal.sigwaitinfo\n"
    with reading(tmp_path / "begun", "fork", as_on_macos) as reader:
        reader.terminate()
        reader.join(timeout=30)
        assert reader.exitcode == -signal.SIGTERM


def test_gradients_are_averaged_with_the_last_share_only():
    parallel = types.SimpleNamespace(no_sync=lambda: "without")
    two, one = Processes(), Processes()
    two.world_size = 2
    assert two.accumulate(parallel, is_last=False) == "without"
    assert two.accumulate(parallel, is_last=True) != "without"
    assert one.accumulate(parallel, is_last=False) != "without"


def test_rank_0_alone_lists_what_could_not_be_read_on_any_rank(tmp_path, monkeypatch):
    processes = Processes()
    run = Run(tmp_path, processes, settings={})
    monkeypatch.setattr(processes, "collect_on_rank_0", lambda own: [*own, "b.mkv: damaged"])
    run.log_failures("step 1", ["a.mkv: damaged"])
    lines = (tmp_path / "bad.txt").read_text().splitlines()
    assert lines == ["step 1: a.mkv: damaged", "step 1: b.mkv: damaged"]
    monkeypatch.setattr(processes, "collect_on_rank_0", lambda own: [])  # as on other ranks
    run.log_failures("step 2", ["c.mkv: damaged"])
    assert len((tmp_path / "bad.txt").read_text().splitlines()) == 2


def test_a_run_warns_where_torchrun_cannot_restart_it(monkeypatch, capsys):
    """PyTorch's issue 167288: the store of all attempts is one, unless torchrun is told so."""
    processes = Processes()
    variables = {"TORCHELASTIC_MAX_RESTARTS": "3", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    processes.warn_of_restarts()
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    processes.warn_of_restarts()
    assert "set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1" in capsys.readouterr().out
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    processes.warn_of_restarts()
    assert capsys.readouterr().out == ""


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    toy, whole, tmp_path, monkeypatch, capsys
):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_after(9, signal.SIGTERM, patch)  # in the fifth step
        with pytest.raises(Stopped):
            pretrain_alone(toy, out, "--save-minutes", 0)
    last = out / "checkpoint.pt"
    last.write_bytes(last.read_bytes()[:100_000])
    pretrain_alone(toy, out)
    printed = capsys.readouterr().out
    assert "checkpoint.pt: " in printed and "resuming from checkpoint-before.pt" in printed
    assert "resumed after step 4" in printed
    for name in TRAINED:
        assert_equal(load_checkpoint(out)[name], load_checkpoint(whole)[name])
    assert read_log(out, "gap") == read_log(whole, "gap")
    for path in (last, out / "checkpoint-before.pt"):
        path.write_bytes(path.read_bytes()[:100_000])
    error = refused("pretrain.py", *flags_of(toy, out))
    assert "no checkpoint of ours in it (checkpoint.pt: it is damaged, or no file of" in error


def test_a_damaged_checkpoint_does_not_replace_the_sound_one_before(toy, tmp_path):
    run = new_run(tmp_path)
    for step in (1, 2):
        run.save({"step": step})
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    again = new_run(tmp_path)
    assert again.checkpoint["step"] == 1
    again.save({"step": 3})
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    assert new_run(tmp_path).checkpoint["step"] == 1
    for step in (4, 5):
        again.save({"step": step})
    (tmp_path / "checkpoint.pt").write_bytes(b"damaged")
    assert new_run(tmp_path).checkpoint["step"] == 4


def new_run(out):
    processes = Processes()
    processes.start()
    return Run(out, processes, settings={})


@pytest.mark.parametrize("steps_before", [0, 1])
def test_a_run_that_has_waited_does_not_undo_another(tmp_path, steps_before):
    """One has looked for a checkpoint, and finds its films; another begins, and saves."""
    first = new_run(tmp_path)
    for step in range(steps_before):
        first.begin()
        first.save({"step": step})
    waiting, other = new_run(tmp_path), new_run(tmp_path)
    other.begin()
    other.log(step=7, loss=1.0)
    other.save({"step": 7})
    with pytest.raises(BadInput, match="another run has written here meanwhile; repeat the"):
        waiting.begin()
    assert new_run(tmp_path).checkpoint["step"] == 7
    assert new_run(tmp_path).read_log(7) == [{"step": 7, "loss": 1.0}]
    new_run(tmp_path).begin()


def test_keep_keeps_the_weights_of_each_epoch(toy, whole, tmp_path):
    [path] = whole.glob("epoch*.pt")
    first = torch.load(path, weights_only=True)
    assert path.name == "epoch1.pt"
    assert "optimizer" not in first and first["progress"]["step"] == 9
    for name in NETWORKS:
        assert_equal(first[name], load_checkpoint(whole)[name])
    _, printed = fine_tune(toy, tmp_path / "tuned", "toy-sound", "--ckpt", path, "--probe")
    assert "(epoch 1, step 9, k 4)" in printed


# --------------------------------------------------------------------------------------------
# Several nodes
# --------------------------------------------------------------------------------------------


def is_rank_1():
    return os.environ["RANK"] == "1"


def make_nodes(folder):
    """The folders of two nodes, of which the second can have no folder `runs`."""
    nodes = [folder / "node0", folder / "node1"]
    for node in nodes:
        node.mkdir()
    (nodes[1] / "runs").write_text("a file, so that no folder can be made here")
    return nodes


def test_a_node_without_the_folder_of_the_run_takes_what_rank_0_has(
    toy, whole, tmp_path, monkeypatch
):
    """Rank 1 has no checkpoint to resume from, and cannot write; and it alone is told to stop."""
    nodes = make_nodes(tmp_path)
    monkeypatch.chdir(nodes[0])
    with monkeypatch.context() as patch:
        interrupt_after(4, signal.SIGTERM, patch)  # in the second step
        with pytest.raises(Stopped):
            pretrain_alone(toy, Path("runs/x"))
    harness.files.LOCKS.pop().close()  # so that another process may have the folder
    made = []

    class Noted(models.AudioVisualModel):
        def __init__(self, width):
            super().__init__(width)
            made.append(self)

    def two_steps():
        monkeypatch.setattr(pretrain, "AudioVisualModel", Noted)
        if is_rank_1():
            interrupt_after(2, signal.SIGTERM, monkeypatch)
        with pytest.raises(Stopped) as stop:
            pretrain_alone(toy, Path("runs/x"))
        print(stop.value)
        torch.save([weights.detach() for weights in made[0].parameters()], "weights.pt")

    printed = on_two_nodes(two_steps, nodes)
    assert "resumed on 2 processes; there were 1 before" in printed[0]
    assert "stopped by a signal to another process, after step 4 of 9" in printed[0]
    assert "stopped by SIGTERM, after step 4 of 9" in printed[1]
    weights = [torch.load(node / "weights.pt", weights_only=True) for node in nodes]
    assert_equal(weights[0], weights[1])
    assert sorted(path.name for path in nodes[1].iterdir()) == ["runs", "weights.pt"]
    pretrain_alone(toy, Path("runs/x"))  # on one process again
    rows = [json.loads(line) for line in Path("runs/x/log.jsonl").read_text().splitlines()]
    changes = [(row["processes_before"], row["processes"]) for row in rows if "processes" in row]
    assert changes == [(1, 2), (2, 1)]
    assert read_log("runs/x") == pytest.approx(read_log(whole), rel=1e-3)
    assert_nearly_equal(load_checkpoint("runs/x"), load_checkpoint(whole))


def test_fine_tuning_on_two_nodes_is_that_on_one_process(toy, tmp_path, monkeypatch):
    """The same weights and statistics, share by share; rank 1 cannot write.

    It alone is told to stop, in the first step, and all of them resume.
    """
    flags = "--width 8 --epochs 1 --warmup 0 --batch-size 20 --share 5 --out runs/x --workers 0"
    argv = ["--task", "toy-sound", "--data", str(toy / "sound"), *flags.split()]

    def tune():
        finetune.main(finetune.parse_args(argv))

    def tune_until_told_to_stop():
        if is_rank_1():
            interrupt_after(2, signal.SIGTERM, monkeypatch, finetune)
        with pytest.raises(Stopped) as stop:
            tune()
        print(stop.value)

    nodes = make_nodes(tmp_path)
    printed = on_two_nodes(tune_until_told_to_stop, nodes)
    assert "stopped by a signal to another process, after step 1 of 2" in printed[0]
    assert "stopped by SIGTERM, after step 1 of 2" in printed[1]
    printed = on_two_nodes(tune, nodes)
    assert "resumed after epoch 0 and step 1" in printed[0]
    monkeypatch.chdir(tmp_path)
    tune()
    results = [folder / "runs" / "x" for folder in (tmp_path, nodes[0])]
    for out in results:
        result = json.loads((out / "result.json").read_text())
        assert result["tests_of_split"] == {"1": 20} and len(result["accuracy_of_split"]) == 1
    one, two = (torch.load(out / "split1.pt", weights_only=True)["model"] for out in results)
    for name, value in one.items():
        assert torch.allclose(two[name], value, rtol=1e-3, atol=1e-5), name


# --------------------------------------------------------------------------------------------
# GPUs, as far as they can be tested without one
# --------------------------------------------------------------------------------------------


def on_gpu(monkeypatch, gpus=8, capability=(9, 0), precision="bf16", **variables):
    """A process of a machine with so many GPUs, whose CUDA is never called."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    processes = Processes(precision)
    processes.start()
    assert taken == [processes.device]
    return processes


def test_a_process_takes_its_own_gpu(monkeypatch):
    elastic = {"TORCHELASTIC_RUN_ID": "x"}
    assert on_gpu(monkeypatch, gpus=8, LOCAL_RANK="3", **elastic).device.index == 3
    with pytest.raises(BadInput, match="more processes than GPUs: start 1, one for each"):
        on_gpu(monkeypatch, gpus=1, LOCAL_RANK="3", **elastic)
    # `srun --gpus-per-task=1` shows each process one GPU, which is the first that it sees.
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert on_gpu(monkeypatch, gpus=1, LOCAL_RANK="3").device.index == 0


def test_a_gpu_without_bf16_is_refused_unless_fp32_is_asked_for(monkeypatch):
    """PyTorch would say that it supports bf16 there, and compute without cuDNN."""
    with pytest.raises(BadInput, match="this one has 7.5; take --precision fp32"):
        on_gpu(monkeypatch, capability=(7, 5))
    on_gpu(monkeypatch, capability=(7, 5), precision="fp32")
    on_gpu(monkeypatch, capability=(8, 0))


def test_a_driver_that_pytorch_cannot_use_is_no_reason_to_train_on_a_cpu(monkeypatch, tmp_path):
    """It finds no GPU then, and says so in a warning alone."""
    monkeypatch.setattr(harness.run, "NVIDIA_DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    processes = Processes()
    processes.start()
    assert not processes.on_gpu
    (tmp_path / "version").touch()
    with pytest.raises(BadInput, match="for CUDA 13.0, or set CUDA_VISIBLE_DEVICES= to train on"):
        processes.start()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    processes.start()
    assert not processes.on_gpu


def test_an_error_of_the_system_on_rank_0_is_raised_by_all_ranks(tmp_path):
    """Else the others would end in a traceback of a broken connection."""

    def fail():
        raise PermissionError(13, "Permission denied", "runs/k16")

    def work():
        processes = Processes()
        processes.start()
        try:
            processes.on_rank_0(fail)
        except PermissionError as error:
            print(f"rank {processes.rank}: {error}")
        processes.end()

    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        folder.mkdir()
    for rank, printed in enumerate(on_two_nodes(work, folders)):
        assert f"rank {rank}: [Errno 13] Permission denied: 'runs/k16'" in printed


def test_a_share_too_large_for_the_kernels_of_a_gpu_is_refused(monkeypatch, capsys):
    largest = models.largest_map(width=64, frames=16, crop=158)
    assert largest == 144 * 16 * 79 * 79
    processes = on_gpu(monkeypatch)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91500)
    processes.check_gpu(64, largest)
    assert capsys.readouterr().out == ""
    processes.check_gpu(149, largest)
    assert "--share 149 has maps above 2 GiB, which may be slow" in capsys.readouterr().out
    with pytest.raises(BadInput, match="--share 150: .* take 149 or less"):
        processes.check_gpu(150, largest)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: 91002)
    processes.check_gpu(64, largest)
    assert "warning   with cuDNN 9.10.2, which is older than 9.15, 3-D" in capsys.readouterr().out
    # A file is tested in all of its views together, of which a clip has three.
    processes.check_gpu(0, largest, clips=49)
    with pytest.raises(BadInput, match="--clips 50: its largest map .* take 49 or less"):
        processes.check_gpu(0, largest, clips=50)
    alone = Processes()
    alone.device = torch.device("cpu")
    alone.check_gpu(10_000, largest)


def fake_loss(fronts, batch, network, loss_of_share):
    """What `loss_of_share` gives for tensors that have a device and a shape, and no memory."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    shapes = []
    batch_norm = torch.nn.functional.batch_norm

    def noted(x, *rest):
        shapes.append(x)
        return batch_norm(x, *rest)

    with FakeTensorMode(allow_non_fake_inputs=True) as mode, pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "batch_norm", noted)
        weights = network.state_dict(keep_vars=True).items()
        weights = {name: mode.from_tensor(x).to("cuda") for name, x in weights}
        fronts = [front.to("cuda") for front in fronts]
        batch = [mode.from_tensor(x) for x in batch]

        def parallel(*inputs):
            return torch.func.functional_call(network, weights, inputs)

        return loss_of_share(batch, fronts, parallel), shapes


SMALL_SNIPPET = Format(frames=8, short_side=34, crop=28, rate=16000, n_fft=1024, hop=256, mels=64)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("video", ["r2plus1d_18", "mc3_18"])
def test_the_step_of_pretraining_leaves_nothing_on_the_cpu(video):
    processes = Processes()
    processes.device = torch.device("cuda")
    args = pretrain.parse_args(["--toy", "--tau", "0.1"])
    fronts = VideoFrontEnd(jitter=0.4, flip=True), AudioFrontEnd(SMALL_SNIPPET)
    batch = torch.zeros(4, 3, 8, 28, 28, dtype=torch.uint8), torch.zeros(4, 25600)

    def loss_of_share(batch, fronts, parallel):
        batch = dict(zip(("video", "waveform"), batch))
        return pretrain.loss_of_share(batch, (0, 0, 0, 0), fronts, parallel, args, processes)

    networks = {"video": video, "audio": "audio_resnet18"}
    model = models.AudioVisualModel(8, networks=networks)
    loss, maps = fake_loss(fronts, batch, model, loss_of_share)
    assert loss.device.type == "cuda" and loss.shape == ()
    # On a GPU every BatchNorm gets four axes, channels last: the layout of the fast kernel.
    assert all(x.dim() == 4 for x in maps)
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in maps)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("backbone", ["video", "audio"])
def test_the_step_of_fine_tuning_leaves_nothing_on_the_cpu(backbone):
    processes = Processes()
    processes.device = torch.device("cuda")
    if backbone == "video":
        front = VideoFrontEnd(jitter=0.4, flip=True)
        clips, network = torch.zeros(4, 3, 8, 28, 28, dtype=torch.uint8), models.r2plus1d_18(8, 10)
    else:
        front = AudioFrontEnd(SMALL_SNIPPET, drop=0.5, both=True)
        clips, network = torch.zeros(4, 25600), models.audio_resnet18(8, 10)

    def loss_of_share(batch, fronts, parallel):
        key = (0, 0, 0, 0)
        return finetune.loss_of_share(*batch, key, fronts[0], parallel, processes)

    batch = clips, torch.zeros(4, dtype=torch.int64)
    (loss, accuracy), _ = fake_loss([front], batch, network, loss_of_share)
    assert loss.device.type == accuracy.device.type == "cuda"


def test_a_folded_batch_norm_gives_the_same(monkeypatch):
    """Its output, its gradients and its statistics; the convolutions around it are the same."""
    outputs = []
    for fold in (False, True):
        monkeypatch.setattr(models.BatchNorm3d, "fold", fold)
        torch.manual_seed(0)
        norm = models.BatchNorm3d(5)
        x = torch.randn(2, 5, 4, 6, 7).to(memory_format=torch.channels_last_3d).requires_grad_()
        y = norm(x)
        (y**3).sum().backward()
        outputs.append([y, x.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()])
    for unfolded, folded in zip(*outputs):
        assert unfolded.shape == folded.shape and unfolded.stride() == folded.stride()
        assert torch.allclose(unfolded, folded, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------------------
# Progress
# --------------------------------------------------------------------------------------------


def test_a_log_file_gets_a_line_a_minute_and_no_bar(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(harness.run, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    processes = Processes()
    progress = Progress(processes, start=100, total=1000)
    for _ in range(10):
        now[0] += 20
        progress.update("loss 4.8")
    progress.close()
    printed = capsys.readouterr()
    assert printed.err == ""
    assert printed.out.splitlines() == [
        "step    104 of 1000, 4.98 h to go: loss 4.8",
        "step    108 of 1000, 4.96 h to go: loss 4.8",
    ]


def test_a_terminal_gets_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(Processes(), start=0, total=2)
    progress.update("loss 4.8")
    progress.next_line = 0.0  # when a log file would get a line
    progress.update("loss 4.7")
    progress.close()
    printed = capsys.readouterr()
    assert "2/2" in printed.err and "loss 4.7" in printed.err and printed.out == ""
