"""Tests of lab/bench.py: the reading of snippets is timed, and a training step in its variants."""

import contextlib
import itertools
import os
import tempfile
import types
from functools import partial

import av
import pytest
import torch
from torch import nn

import lab.bench as bench
from data import AudioFrontEnd
from harness.fixtures import refused, run_script, write_film
from lab.bench import Row, TrainingStep, build_model
from media.format import Format
from media.prepare import PREPARED
from models import AudioVisualModel, BatchNorm3d, R2Plus1D18, SpatialConv, TemporalConv

CPU = torch.device("cpu")
GPU = torch.device("cuda")  # Its name only: tests use no GPU.
SMALL = Format(short_side=20, crop=16)
SMALL_STEP = "--width 8 --short-side 20 --crop 16 --steps 2".split()


def cells_of(line):
    """The cells of a row of a Markdown table."""
    return [cell.strip() for cell in line.split("|")[1:-1]]


def table_in(printed):
    """The rows of the table that was printed, without its two lines of head: lists of cells."""
    return [cells_of(line) for line in printed.splitlines() if line.startswith("|")][2:]


@pytest.fixture(autouse=True)
def settings_of_cudnn():
    """A step sets them for the whole process."""
    tf32, benchmark = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = tf32, benchmark


@pytest.fixture(autouse=True)
def short_films(monkeypatch):
    """The snippets that a few steps draw from can be few."""
    monkeypatch.setattr(bench, "write_film", partial(bench.write_film, snippets=4))


def small_batch(share=2):
    with bench.made_up_batches(share, SMALL, CPU) as batches:
        return next(batches)


# --------------------------------------------------------------------------------------------------
# Reading
# --------------------------------------------------------------------------------------------------


def test_reading_is_timed(tmp_path):
    film = write_film(tmp_path / "film.mp4", seconds=40, size=(160, 120))
    sizes = ["--short-side", 60, "--crop", 48, "--snippets", 16]
    status, printed, errors = run_script("lab.bench", "read", film.parent, *sizes)
    assert not status, errors
    assert "decode video" in printed and printed.count("snippets/s") == 2
    assert "--workers 0: must be above 0" in refused(
        "lab.bench", "read", film.parent, "--workers", 0
    )
    assert "no such folder" in refused("lab.bench", "read", film.parent / "none")


# --------------------------------------------------------------------------------------------------
# A training step: the command
# --------------------------------------------------------------------------------------------------


def test_every_variant_has_its_row(monkeypatch, capsys):
    """At width 8, on small crops and beside a small product; the full size takes minutes.

    So does a compiler on a CPU, and what it is given runs uncompiled.
    """
    monkeypatch.setitem(bench.MATRIX_SIDES, "cpu", (256,))
    asked = leave_uncompiled(monkeypatch)
    variants = [bench.AS_TRAINED, *bench.CHANGES, "flat+padded"]
    step = ["step", *SMALL_STEP, "--workers", "1", "--variants", *variants]
    bench.main(bench.parse_args(step))
    printed = capsys.readouterr().out
    first, *_, last = printed.splitlines()
    assert first.startswith("CPU, threads: 1, torch 2.") and "TFLOP/s; a snippet takes" in first
    assert "snippets/s of a limit of" in last and "469 snippets/s" in last
    rows = table_in(printed)
    assert [(row[0], row[1]) for row in rows] == [(variant, "2") for variant in variants]
    for row in rows:
        median, low, high = row[2].replace(" to", "").replace("(", "").strip(")").split()
        assert 0 < float(low) <= float(median) <= float(high), row
        assert float(row[3]) > 0 and float(row[4].strip("%")) > 0, row
        assert row[5] == row[6] == "-", row  # A CPU has no memory of its own.
        assert float(row[7]) > 0 and 0 <= float(row[8].strip("%")) <= 100, row
    assert asked == [{"dynamic": False}]
    for name, meaning in bench.CHANGES.items():
        assert f"{name}: {meaning}" in printed


def leave_uncompiled(monkeypatch):
    """Let torch.compile do nothing. Returns the list of what it is asked."""
    asked = []
    monkeypatch.setattr(nn.Module, "compile", lambda _, **settings: asked.append(settings))
    return asked


def test_a_variant_that_fails_has_a_row_and_the_others_go_on(monkeypatch, capsys):
    monkeypatch.setitem(bench.MATRIX_SIDES, "cpu", (64,))

    def run_out(model):
        raise torch.OutOfMemoryError("tried to allocate 80 GiB")

    def find_no_compiler(model, dynamic):
        raise RuntimeError("no C compiler | found\nand a long story")

    monkeypatch.setattr(bench, "pad_midplanes", run_out)
    monkeypatch.setattr(nn.Module, "compile", find_no_compiler)
    variants = ["padded", "compiled", "as-trained"]
    bench.main(
        bench.parse_args(["step", *SMALL_STEP, "--share", "2", "4", "--variants", *variants])
    )
    rows = table_in(capsys.readouterr().out)
    assert rows[0] == ["padded", "2", "out of memory", *["-"] * 6]
    assert rows[2][2] == rows[3][2] == "RuntimeError: no C compiler / found"
    for share, row in (("2", rows[4]), ("4", rows[5])):
        assert row[:2] == ["as-trained", share] and row[4].endswith("%")
    assert {len(row) for row in rows} == {len(bench.COLUMNS)}


def test_the_model_of_a_failed_variant_is_not_kept(monkeypatch):
    """Its GPU memory has to be free for the next one."""
    monkeypatch.setitem(bench.MATRIX_SIDES, "cpu", (64,))
    alive = []

    class Model(nn.Linear):
        def __init__(self):
            super().__init__(1, 1)
            alive.append(1)

        def __del__(self):
            alive.pop()

    def fail(row, make_step, batches, warm_up, steps):
        model = Model()
        raise torch.OutOfMemoryError(str(model))

    monkeypatch.setattr(bench, "time_steps", fail)
    args = types.SimpleNamespace(width=8, steps=2, workers=1)
    row = Row("as-trained", 2)
    bench.measure(row, args, SMALL, CPU)
    assert row.problem == "out of memory" and not alive


def test_what_timing_a_step_refuses():
    assert "unrecognized arguments: --batch 2" in refused("lab.bench", "step", "--batch", 2)
    assert "--share 1: must be 2 or more" in refused(
        "lab.bench", "step", *SMALL_STEP, "--share", 4, 1
    )
    assert "--steps 0: must be above 0" in refused("lab.bench", "step", "--steps", 0)
    assert "--width 12: must be a multiple of 8" in refused("lab.bench", "step", "--width", 12)
    unknown = refused("lab.bench", "step", "--variants", "flat+fast")
    assert "flat+fast: must be as-trained, or + between: folded, " in unknown
    too_large = refused("lab.bench", "step", "--crop", 200)
    assert "--crop 200: must be --short-side (190) or less" in too_large


def test_a_cpu_times_few_variants_and_steps():
    args = bench.parse_args(["step"])
    bench.set_step_defaults(args, on_gpu=False)
    assert args.variants == ["as-trained", "folded", "films"]
    assert (args.share, args.steps) == ([2], 2)


def test_a_gpu_times_all_variants_and_the_share_of_the_paper():
    args = bench.parse_args(["step"])
    bench.set_step_defaults(args, on_gpu=True)
    assert args.share == [64] and args.steps == 20 and args.width == 64
    left_out = set(bench.CHANGES) - set().union(*map(bench.changes_of, args.variants))
    assert left_out == {"folded"}  # As trained, a GPU folds.
    given = bench.parse_args("step --share 8 --steps 3 --variants flat".split())
    bench.set_step_defaults(given, on_gpu=True)
    assert (given.share, given.steps, given.variants) == ([8], 3, ["flat"])


# --------------------------------------------------------------------------------------------------
# A training step: what is computed
# --------------------------------------------------------------------------------------------------


def test_a_step_trains_as_the_loop_does(monkeypatch):
    """Each step drops other bands, and moves all weights and running statistics."""
    heard = []
    drop_bands = AudioFrontEnd.drop_bands

    def listen(front, x, rng):
        heard.append(drop_bands(front, x, rng))
        return heard[-1]

    monkeypatch.setattr(AudioFrontEnd, "drop_bands", listen)
    torch.manual_seed(0)
    step = TrainingStep(set(), 8, SMALL, CPU)
    before = {name: values.clone() for name, values in step.model.state_dict().items()}
    batch = small_batch()
    step.run(batch)
    after = step.model.state_dict()
    assert not [name for name in before if torch.equal(before[name], after[name])]
    step.run(batch)
    assert len(heard) == 2 and not torch.equal(*heard)


def test_what_a_step_sets_for_cudnn():
    """As the loop does: cuDNN times its algorithms, and its TF32 is off for fp32 only."""
    found = {}
    for variant in ("as-trained", "untuned", "fp32"):
        TrainingStep(bench.changes_of(variant), 8, SMALL, CPU)
        found[variant] = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    assert found == {"as-trained": (True, True), "untuned": (False, True), "fp32": (True, False)}


def test_the_precision_of_a_step():
    assert bench.precision_of(set(), GPU) == torch.bfloat16
    assert bench.precision_of({"fp32"}, GPU) == torch.float32
    assert bench.precision_of(set(), CPU) == torch.float32
    step = TrainingStep(set(), 8, SMALL, CPU)
    found = []
    stem = step.model.video.stem[0]
    stem.register_forward_hook(lambda module, inputs, maps: found.append(maps.dtype))
    step.run(small_batch())
    step.precision = torch.bfloat16  # as on a GPU
    step.run(small_batch())
    assert found == [torch.float32, torch.bfloat16]


def test_adam_is_fused_on_a_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr(nn.Module, "to", lambda module, *_, **__: module)
    monkeypatch.setattr(torch.optim, "Adam", lambda _, lr, fused: asked.append(fused))
    for device, changes in ((GPU, set()), (GPU, {"unfused"}), (CPU, set())):
        TrainingStep(changes, 8, SMALL, device)
    assert asked == [True, False, False]


@pytest.mark.parametrize("changes, folded", [(set(), 0), ({"unfolded"}, 0), ({"folded"}, 1)])
def test_batchnorm_is_folded_where_the_variant_says_so(changes, folded, monkeypatch):
    axes = []
    normalise = nn.BatchNorm3d.forward

    def count(norm, x):
        axes.append(x.dim())
        return normalise(norm, x)

    monkeypatch.setattr(nn.BatchNorm3d, "forward", count)
    step = TrainingStep(changes, 8, SMALL, CPU)
    step.run(small_batch())
    norms = sum(isinstance(module, BatchNorm3d) for module in step.model.modules())
    assert axes == [4 if folded else 5] * norms and norms > 30


def test_unfolded_is_unfolded_on_a_gpu_too():
    folds = {module.fold for module in norms_of(build_model({"unfolded"}, 8))}
    assert folds == {False}
    assert {module.fold for module in norms_of(build_model(set(), 8))} == {None}


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, BatchNorm3d)]


def test_padded_midplanes_are_multiples_of_8():
    """At the full width, and no other channels change."""
    with torch.device("meta"):
        ours, padded = build_model(set(), 64), build_model({"padded"}, 64)
    planes = midplanes(ours.video)
    assert {45, 230, 460, 921} < set(planes)
    assert midplanes(padded.video) == [-(-channels // 8) * 8 for channels in planes]
    weights = dict(ours.named_parameters())
    for name, padded_weights in padded.named_parameters():
        sizes = zip(weights[name].shape, padded_weights.shape)
        changed = [pair for pair in sizes if pair[0] != pair[1]]
        assert all(small % 8 and large % 8 == 0 for small, large in changed), name
    video, audio = torch.empty(2, 3, 16, 158, 158), torch.empty(2, 1, 96, 301)
    z_v, z_a = padded(video.to("meta"), audio.to("meta"))
    assert z_v.shape == z_a.shape == (2, 512)


def midplanes(video):
    """The channels between each spatial convolution and its temporal one."""
    return [module.out_channels for module in video.modules() if isinstance(module, SpatialConv)]


@pytest.mark.parametrize("stride", [1, 2])
def test_a_flat_temporal_convolution_has_the_same_result(stride):
    torch.manual_seed(0)
    conv = TemporalConv(5, 7, stride).double()
    x = torch.randn(2, 5, 6, 4, 3, dtype=torch.double, requires_grad=True)
    found = []
    for kind in (TemporalConv, bench.FlatTemporalConv):
        conv.__class__ = kind
        y = conv(x)
        gradients = torch.autograd.grad(y.sin().sum(), [x, conv.weight])
        found.append([y, *gradients])
    for ours, flat in zip(*found):
        torch.testing.assert_close(flat, ours)


def test_flat_changes_every_temporal_convolution(monkeypatch):
    """One would not be seen in the figures."""
    kinds = {type(m) for m in build_model({"flat"}, 8).modules() if isinstance(m, TemporalConv)}
    assert kinds == {bench.FlatTemporalConv}
    assert not any(isinstance(m, bench.FlatTemporalConv) for m in R2Plus1D18(8).modules())


def test_channels_first_is_the_default_layout():
    model = build_model({"channels-first"}, 8)
    assert all(weights.is_contiguous() for weights in model.parameters())
    assert not all(weights.is_contiguous() for weights in AudioVisualModel(8).parameters())


def test_a_snippet_takes_495_gflop():
    assert bench.count_flop(64, Format()) == pytest.approx(495e9, rel=0.002)
    assert bench.count_flop(8, SMALL) < 1e9


# --------------------------------------------------------------------------------------------------
# A training step: batches
# --------------------------------------------------------------------------------------------------


def test_films_are_read_and_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache of the user"))
    with bench.film_batches(4, SMALL, CPU, workers=1, steps=3) as batches:
        assert len(list(tmp_path.glob("television-bench-*/films/*.mkv"))) == 8
        read = list(batches)
    assert list(tmp_path.iterdir()) == []  # neither films, nor an index of them
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path / "cache of the user")
    assert len(read) == 3
    for batch in read:
        assert batch["video"].shape == (4, 3, 16, 16, 16) and batch["video"].dtype == torch.uint8
        assert batch["waveform"].shape == (4, 153600)
        assert batch["failures"] == [[]] * 4
        assert len(set(batch["title"].tolist())) == 1  # k = 4, since a batch has no 16
    assert not torch.equal(read[0]["video"], read[1]["video"])


def test_films_are_removed_after_a_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with contextlib.suppress(torch.OutOfMemoryError):
        with bench.film_batches(4, SMALL, CPU, workers=1, steps=1):
            raise torch.OutOfMemoryError
    assert list(tmp_path.iterdir()) == []


def test_each_step_has_a_batch_of_its_own_from_films(monkeypatch):
    """Also in later epochs, since eight short films do not last for 25 steps of 64."""
    monkeypatch.setattr(bench, "write_film", lambda path, fmt, seed: None)
    titles = types.SimpleNamespace(counts=[20] * 8)
    monkeypatch.setattr(bench, "Titles", lambda films, fmt: titles)
    monkeypatch.setattr(bench, "DataLoader", lambda titles, batch_sampler, **_: batch_sampler)
    with bench.film_batches(64, SMALL, CPU, workers=1, steps=5) as batches:
        samples = list(batches)
    assert len({tuple(batch) for batch in samples}) == 5
    for batch in samples:
        places = [(n, m) for n, m, _ in batch]
        assert len(set(places)) == 64 and len({n for n, _ in places}) == 4  # k = 16


def test_a_film_is_like_a_prepared_one(tmp_path):
    """In its size and its shape; its content is noise."""
    bench.write_film(tmp_path / "film.mkv", Format(), snippets=3)
    kilobytes = (tmp_path / "film.mkv").stat().st_size / 3e3
    assert 90 < kilobytes < 160
    with av.open(str(tmp_path / "film.mkv")) as film:
        video, audio = film.streams.video[0], film.streams.audio[0]
        assert (video.width, video.height, video.average_rate) == (338, 190, 5)
        assert (audio.rate, audio.codec.canonical_name) == (48000, PREPARED["sound"][0])
        images = [frame.to_ndarray(format="rgb24") for frame in film.decode(video)]
    assert len(images) == 48
    assert abs(images[0].astype(float) - images[8]).mean() > 10  # The gradient moves.


# --------------------------------------------------------------------------------------------------
# A training step: timing
# --------------------------------------------------------------------------------------------------


class Clock:
    """Stands for `time` in lab/bench.py."""

    now = 0.0

    def perf_counter(self):
        return self.now


class SlowStep:
    """A step that takes 2 s, the first 10 s, and its batch 0.5 s."""

    device = CPU

    def __init__(self, clock):
        self.clock = clock
        self.done = 0

    def run(self, batch):
        self.clock.now += 2 if self.done else 10
        self.done += 1

    def batches(self):
        while True:
            self.clock.now += 0.5
            yield None


@pytest.mark.parametrize("steps, blocks", [(20, 4), (5, 4), (7, 4), (2, 2), (1, 1)])
def test_a_speed_is_that_of_blocks_of_steps_after_the_warm_up(steps, blocks, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(bench, "time", clock)
    step, row = SlowStep(clock), Row("as-trained", 5)
    bench.time_steps(row, lambda: step, step.batches(), warm_up=3, steps=steps)
    assert step.done == 3 + steps
    assert row.start == 10.5
    assert row.rates == [2.0] * blocks  # 5 snippets in 2.5 s
    assert row.waiting == pytest.approx(0.2)


@pytest.fixture
def made_up_gpu(monkeypatch):
    """A GPU whose readings are made up. Gives a list of what is asked of it."""
    asked = []
    gpu = types.SimpleNamespace(total_memory=80e9)
    readings = {
        "get_device_properties": lambda _: gpu,
        "get_device_name": lambda _: "NVIDIA H100",
        "synchronize": lambda: asked.append("synchronize"),
        "reset_peak_memory_stats": lambda: asked.append("reset"),
        "max_memory_allocated": lambda: 33e9,
        "max_memory_reserved": lambda: 41.26e9,
    }
    for name, reading in readings.items():
        monkeypatch.setattr(torch.cuda, name, reading)

    def product_speed(device, dtype):
        asked.append(dtype)
        return 700e12 if asked.count(dtype) == 1 else 800e12

    monkeypatch.setattr(bench, "product_speed", product_speed)
    monkeypatch.setattr(bench, "made_up_batches", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(bench, "film_batches", lambda *_: contextlib.nullcontext())
    return asked


def test_the_memory_of_a_gpu_is_that_of_the_timed_steps(made_up_gpu, monkeypatch):
    """It is reset once the warm-up is over, and then for each variant."""

    class Step:
        device = GPU

        def run(self, batch):
            made_up_gpu.append("step")

    row = Row("as-trained", 64)
    bench.time_steps(row, Step, itertools.repeat(None), warm_up=2, steps=1)
    steps = [name for name in made_up_gpu if name != "synchronize"]
    assert steps == ["step", "step", "reset", "step"]
    after_last_step = made_up_gpu[made_up_gpu.index("reset") :]
    assert after_last_step == ["reset", "synchronize", "step", "synchronize"]


@pytest.mark.parametrize(
    "variant, warm_up, dtype",
    [
        ("as-trained", 5, torch.bfloat16),
        ("fp32", 5, torch.float32),
        ("films+compiled", 5 + 2 * 8, torch.bfloat16),
    ],
)
def test_a_row_on_a_gpu(variant, warm_up, dtype, made_up_gpu, monkeypatch):
    """A limit is that of its own precision, timed before and after."""
    found = []

    def time_steps(row, make_step, batches, warm_up, steps):
        found.append((warm_up, steps))
        row.rates += [440.0, 470.0, 460.0]
        row.start, row.waiting = 61.23, 0.034

    monkeypatch.setattr(bench, "time_steps", time_steps)
    args = types.SimpleNamespace(width=64, steps=20, workers=8)
    row = Row(variant, 64)
    bench.measure(row, args, Format(), GPU)
    assert row.problem is None and found == [(warm_up, 20)]
    assert made_up_gpu.count(dtype) == 2
    assert row.cells(500e9) == [
        variant,
        "64",
        "460 (440 to 470)",
        "230",
        "31%",  # of 750 TFLOP/s
        "33.0",
        "41.3",
        "61.2",
        "3%",
    ]


@pytest.mark.parametrize("version, warned", [(91500, False), (91002, True), (91900, False)])
def test_an_old_cudnn_is_warned_of(version, warned, made_up_gpu, monkeypatch, capsys):
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: version)
    bench.print_machine(GPU, 495e9)
    printed = capsys.readouterr().out
    assert printed.startswith("warning: with cuDNN 9.10.2, which is older than 9.15") == warned
    expected = "a matrix product in bfloat16 at 700 TFLOP/s; a snippet takes 495 GFLOP\n"
    assert printed.splitlines()[-1].startswith("NVIDIA H100, 80 GB, torch 2.")
    assert printed.endswith(expected)


def test_the_limit_is_of_the_fastest_that_trains_the_same_network(capsys):
    rows = [
        Row("as-trained", 64, rates=[300.0], product=800e12),
        Row("compiled+padded", 64, rates=[500.0], product=800e12),
        Row("flat", 128, rates=[400.0], product=750e12),
        Row("fp32", 64, problem="out of memory"),
    ]
    bench.print_limit(rows, 500e9)
    assert capsys.readouterr().out == (
        "fastest: flat with 128 snippets a step, 400 snippets/s of a limit of 1500: 27%; "
        "the paper's 8 GPUs trained 469 snippets/s\n"
    )
    bench.print_limit(rows[-1:], 500e9)
    assert capsys.readouterr().out == ""


def test_a_matrix_product_is_as_fast_as_its_best_size(monkeypatch):
    """Of 2 n^3 FLOP: here the larger one takes 4 times as long, for 8 times the work."""
    clock = Clock()

    class Matrix:
        def __init__(self, side):
            self.side = side

        def __matmul__(self, other):
            clock.now += self.side**2

    monkeypatch.setattr(bench, "time", clock)
    monkeypatch.setattr(torch, "randn", lambda side, _, device, dtype: Matrix(side))
    monkeypatch.setitem(bench.MATRIX_SIDES, "cpu", (16, 32))
    assert bench.product_speed(CPU, torch.float32) == 64
