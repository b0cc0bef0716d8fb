"""Tests of lab/fingerprint.py and lab/distortions.py: strengths, clips, and what is found."""

import itertools
import json
import math
import shutil

import numpy as np
import pytest
import torch

import lab.checkpoint as checkpoint
import lab.distortions as distortions
import lab.fingerprint as fingerprint
import sampler
from data import Titles
from harness.errors import BadInput
from harness.fixtures import refused, run_script
from harness.run import Processes
from lab.compare import read_run
from lab.distortions import NAMES, SIGHT, SOUND
from lab.evaluate import parse_args
from lab.fingerprint import CHANGED
from media import format as streams
from media.format import DISTORTION, Format, rng_of
from media.toy import TOY_FORMAT

CPU = torch.device("cpu")

# --------------------------------------------------------------------------------------------------
# Distortions: each has the strength that the table says
# --------------------------------------------------------------------------------------------------


def rng():
    return np.random.default_rng(0)


def grey_frames(level, frames=4, side=80):
    return torch.full((frames, 3, side, side), level, dtype=torch.uint8)


def test_frozen_frames_show_the_one_before():
    numbered = torch.arange(200, dtype=torch.uint8)[:, None, None, None].expand(200, 3, 2, 2)
    shown = SIGHT["frozen frames"](numbered, rng())[:, 0, 0, 0].tolist()
    assert shown[0] == 0
    for t, (before, now) in enumerate(itertools.pairwise(shown), 1):
        assert now in (before, t)
    assert 80 < len(set(shown)) < 120


def test_a_crop_shows_the_middle_and_a_rotation_has_black_corners():
    frames = grey_frames(100)
    frames[:, :, 8:72, 8:72] = 200
    assert (SIGHT["crop"](frames, rng()) == 200).all()
    white = grey_frames(255)
    white[:, :, 39:41] = 0  # a level line
    turned = SIGHT["rotation"](white, rng())[0, 0].float()
    assert turned[0, 0] == turned[-1, -1] == 0
    ends = [int(turned[20:60, x].argmin()) for x in (10, 69)]
    slope = (ends[0] - ends[1]) / 59  # It rises to the right.
    assert math.degrees(math.atan(slope)) == pytest.approx(10, abs=1.5)


def test_gamma_blur_grain_and_the_grey_bar_have_their_strength():
    assert SIGHT["gamma"](grey_frames(128), rng()).float().mean() == pytest.approx(
        255 * (128 / 255) ** 1.5, abs=1
    )
    point = grey_frames(0)
    point[:, :, 39:42, 39:42] = 255
    blurred = SIGHT["blur"](point, rng())[0, 0].double().sum(0)
    x = torch.arange(80) - 40
    spread = (blurred * x**2).sum() / blurred.sum()  # sigma is 2 pixels; the point adds 2 / 3
    assert spread == pytest.approx(2**2 + 2 / 3, rel=0.1)
    grain = SIGHT["grain"](grey_frames(128), rng()).float() - 128
    assert grain.std() == pytest.approx(15, rel=0.02) and abs(grain.mean()) < 0.5
    assert not torch.equal(grain[0], grain[1])
    black = grey_frames(0)
    tops = set()
    for seed in range(5):
        bar = SIGHT["grey bar"](black, np.random.default_rng(seed))[0, 0].double().mean(1)
        rows = bar.nonzero().flatten().tolist()
        assert (bar[rows] == 128).all() and rows == list(range(rows[0], rows[0] + 20))
        tops.add(rows[0])
    assert len(tops) > 2 and black.max() == 0


def test_jpeg_is_a_real_codec():
    """It keeps the mean of a block, and little that is fine."""
    noise = torch.from_numpy(rng().integers(108, 148, (2, 3, 64, 64), dtype="uint8"))
    found = SIGHT["JPEG"](noise, rng()).float()
    blocks = torch.nn.functional.avg_pool2d
    assert (blocks(found, 16) - blocks(noise.float(), 16)).abs().max() < 8
    assert found.std() < 0.6 * noise.float().std()


def test_reverb_falls_by_60_db_in_half_a_second_and_is_as_loud_as_the_sound():
    rate = 8000
    click = torch.zeros(rate)
    click[0] = 1
    tail = SOUND["reverb"](click, rate, rng())
    assert len(tail) == rate and tail[0] == pytest.approx(1, abs=0.2)
    assert tail[1:].square().sum() == pytest.approx(1, rel=0.1)
    first, last = tail[1:401].square().sum(), tail[3200:3600].square().sum()
    # Between their middles lie 0.4 s, of 120 dB a second.
    assert 10 * math.log10(first / last) == pytest.approx(0.4 * 120, abs=2)


def test_distortions_of_sound_have_their_strength():
    rate = 16000
    time = torch.arange(rate) / rate
    for hz, least, most in ((500, 0.95, 1.05), (4000, 0.1, 0.3)):
        tone = 0.5 * torch.sin(2 * torch.pi * hz * time)
        gain = SOUND["low-pass"](tone, rate, rng())[1000:].std() / tone.std()
        assert least < gain < most
    sound = 0.1 * torch.from_numpy(rng().standard_normal(rate, "float32"))
    assert SOUND["clipping"](sound, rate, rng()).abs().max() == pytest.approx(0.1, rel=0.02)
    hiss = SOUND["hiss"](sound, rate, np.random.default_rng(1)) - sound
    assert 20 * torch.log10(sound.std() / hiss.std()) == pytest.approx(20, abs=0.2)
    levels = SOUND["mu-law"](sound, rate, rng())
    assert 5 < len(levels.unique()) <= 16 and (levels - sound).std() < sound.std()
    silence = torch.zeros(rate)
    for distort in SOUND.values():
        assert distort(silence, rate, rng()).abs().max() < 0.02


def clip_and_later(seed):
    """Two made-up clips: of sight uint8 (3, T, H, W), of sound float (S,)."""
    noise = np.random.default_rng(seed)
    sight = torch.from_numpy(noise.integers(0, 256, (2, 3, 6, 24, 24), dtype="uint8"))
    sound = torch.from_numpy(0.1 * noise.standard_normal((2, 3200), "float32"))
    return sight, sound


def versions_of(sight, sound, key):
    versions = distortions.versions_of_sound(*sound, 16000, key)
    found = {("sound", name): x for name, x in versions.items()}
    versions = distortions.versions_of_sight(*sight, key)
    return found | {("sight", name): x for name, x in versions.items()}


def test_each_version_differs_from_all_others_and_is_of_its_key():
    sight, sound = clip_and_later(0)
    before = sight.clone(), sound.clone()
    versions = versions_of(sight, sound, (0, 1, 2))
    assert torch.equal(sight, before[0]) and torch.equal(sound, before[1])
    for modality, clip in (("sight", sight), ("sound", sound)):
        assert {name for of, name in versions if of == modality} == set(CHANGED[modality])
        assert torch.equal(versions[modality, "none"], clip[0])
        assert torch.equal(versions[modality, "shift"], clip[1])
        for a, b in itertools.combinations(CHANGED[modality], 2):
            assert not torch.equal(versions[modality, a], versions[modality, b])
    for x in versions.values():
        assert x.dtype in (torch.uint8, torch.float32)
        assert x.shape in (sight[0].shape, sound[0].shape)
    again, other = (versions_of(sight, sound, (0, 1, m)) for m in (2, 4))
    assert all(torch.equal(x, again[name]) for name, x in versions.items())
    drawn = {version[1] for version, x in versions.items() if not torch.equal(x, other[version])}
    assert drawn == {"frozen frames", "grain", "grey bar", "reverb", "hiss", "all"}


def test_all_begins_later_and_applies_every_distortion_in_turn():
    sight, sound = clip_and_later(1)
    versions = versions_of(sight, sound, (5, 0, 0))
    frames, waveform = sight[1].transpose(0, 1), sound[1]
    for i, name in enumerate([*SIGHT, *SOUND]):
        random = rng_of((5, 0, 0, i), DISTORTION)
        if name in SIGHT:
            frames = SIGHT[name](frames, random)
        else:
            waveform = SOUND[name](waveform, 16000, random)
    assert torch.equal(versions["sight", "all"], frames.transpose(0, 1))
    assert torch.equal(versions["sound", "all"], waveform)


def test_the_stream_of_the_distortions_is_nobody_elses():
    constants = {name: x for name, x in vars(streams).items() if name.isupper()}
    numbers = [x for x in constants.values() if isinstance(x, int)]
    numbers += [sampler.TITLES, sampler.SNIPPETS, sampler.SHUFFLE]
    assert len(numbers) >= 10 and numbers.count(DISTORTION) == 1


# --------------------------------------------------------------------------------------------------
# Clips
# --------------------------------------------------------------------------------------------------


class MadeUpTitles:
    """Titles with files of so many places each, of which place 9 of title 0 is damaged."""

    fmt = Format(frames=4, fps=4, rate=2000)

    def __init__(self, parts):
        self.parts = [[(None, 0, count) for count in part] for part in parts]

    def read(self, n, m):
        if (n, m) == (0, 9):
            raise BadInput("film: damaged\nat 9 s")
        noise = np.random.default_rng((n, m))
        crops = [noise.integers(0, 256, (3, 8, 8), dtype="uint8") for _ in range(4)]
        return crops, 0.1 * noise.standard_normal(2000, "float32")


def test_clips_are_evenly_spaced_and_can_begin_a_quarter_later():
    titles = MadeUpTitles([[5], [6, 4, 1, 18], [1], [41]])
    assert fingerprint.clips_of(titles, 99)[:3] == [(0, 0), (1, 0), (1, 4)]
    of_title = [
        [m for n, m in fingerprint.clips_of(titles, 99) if n == title] for title in range(4)
    ]
    # The later clip of place 4 of six is place 5; a file of four or fewer holds one clip or none.
    assert of_title == [[0], [0, 4, 6, 11, 15, 19, 23, 27], [], list(range(0, 40, 4))]
    assert [m for n, m in fingerprint.clips_of(titles, 3) if n == 3] == [0, 16, 36]
    assert checkpoint.evenly("abcde", 3) == ["a", "c", "e"]
    assert checkpoint.evenly("abc", 9) == checkpoint.evenly("abc", None) == ["a", "b", "c"]


def test_a_quarter_later_is_a_quarter_of_a_clip(toy):
    """In a film of the toy world, whose snippets last 1.6 s."""
    titles = Titles(toy / "films", TOY_FORMAT, stride=TOY_FORMAT.seconds / fingerprint.QUARTERS)
    clips = fingerprint.clips_of(titles, 4)
    assert len(clips) == 4 * 8
    begins = []
    for n, m in clips[:4]:
        path, begin = titles.locate(n, m)
        later_path, later = titles.locate(n, m + 1)
        assert path == later_path and later - begin == pytest.approx(0.4)
        begins.append(begin / 1.6)
    assert begins == pytest.approx([round(begin) for begin in begins])
    assert begins[0] == 0 and 20 < begins[-1] <= 22  # of 24, the last has no later one


def embed_here(dataset, monkeypatch, ranks=1):
    """The rows of the gallery by mean pixels and spectrum, on so many ranks."""
    extractors = {"means": (fingerprint.mean_pixels, fingerprint.mean_spectrum)}
    fronts = (lambda video: video.float(), lambda sound: sound[:, None, None])
    own = []
    for rank in range(ranks):
        processes = Processes()
        processes.device, processes.rank, processes.world_size = CPU, rank, ranks
        monkeypatch.setattr(processes, "collect_on_rank_0", lambda part: own.extend(part) or own)
        found = fingerprint.embed_clips(dataset, extractors, fronts, processes, workers=0)
    return found


def test_clips_of_two_processes_are_put_in_order_and_damaged_ones_left_out(monkeypatch):
    titles = MadeUpTitles([[18], [14]])
    clips = [(0, 0), (0, 4), (0, 8), (0, 12), (1, 0), (1, 8), (1, 12)]
    dataset = fingerprint.DistortedClips(titles, clips, seed=3)
    rows, failures = embed_here(dataset, monkeypatch)
    assert failures == ["film: damaged at 9 s"] and len(rows) == 6
    both, failures_of_both = embed_here(dataset, monkeypatch, ranks=2)
    assert failures_of_both == failures
    features, of_both = fingerprint.stack_clips(rows), fingerprint.stack_clips(both)
    for modality in ("sight", "sound"):
        assert list(features["means"][modality]) == list(CHANGED[modality])
        for name, x in features["means"][modality].items():
            assert torch.equal(x, of_both["means"][modality][name])
    # Row 2 is clip (0, 12): (0, 8) is not there, since its later clip is damaged.
    crops, waveform = titles.read(0, 12)
    expected = torch.from_numpy(np.stack(crops, 1)).float().reshape(3, 4, 4, 2, 4, 2)
    found = features["means"]["sight"]["none"][2]
    assert torch.allclose(found, expected.mean((1, 3, 5)).flatten(), atol=1e-3)
    later = features["means"]["sight"]["shift"][2]
    crops, _ = titles.read(0, 13)
    expected = torch.from_numpy(np.stack(crops, 1)).float().reshape(3, 4, 4, 2, 4, 2)
    assert torch.allclose(later, expected.mean((1, 3, 5)).flatten(), atol=1e-3)


# --------------------------------------------------------------------------------------------------
# What is found
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [np.linspace(-1, 1, 999), np.array([0.0, 1.0])])
def test_recall_of_a_clip_is_that_of_a_double_loop(values):
    clips, noise = torch.from_numpy(rng().choice(values, (2, 2, 40, 4))).float()
    queries = clips
    if len(values) > 2:
        queries = clips + noise
    found = fingerprint.recall_of(list(zip(queries, clips)))
    for K in (1, 5):
        hits = 0
        for i in range(40):
            scores = []
            for j in range(40):
                score = 0.0
                for query, gallery in zip(queries[:, i].double(), clips[:, j].double()):
                    norms = max(float(query.norm() * gallery.norm()), 1e-9)
                    score += float(query @ gallery) / norms
                scores.append((-round(score, 5), i == j))
            hits += any(own for _, own in sorted(scores)[:K])
        assert found[K] == pytest.approx(hits / 40)
    assert found[1] < found[5] < 1


def test_a_clean_half_a_mean_and_a_worst_are_reported():
    """In a made-up world in which JPEG makes sight blind, and hiss and shift make sound deaf."""
    gallery = torch.eye(10)
    features = {}
    for modality, deaf in (("sight", "JPEG"), ("sound", "hiss")):
        features[modality] = {name: gallery for name in CHANGED[modality]}
        features[modality][deaf] = torch.ones(10, 10)
    features["sound"]["shift"] = torch.ones(10, 10)
    recalls = fingerprint.recalls_of(features, CPU)
    assert list(recalls) == ["sight", "sound", "both"]
    for modality, names in CHANGED.items():
        assert list(recalls[modality]) == [*names, "mean", "worst"]
        assert recalls[modality]["none"] == {1: 1.0, 5: 1.0}
    assert recalls["sight"]["JPEG"] == {1: 0.0, 5: 0.0} == recalls["sight"]["worst"]
    assert recalls["both"]["JPEG"] == {1: 1.0, 5: 1.0} == recalls["both"]["worst"]
    assert recalls["sight"]["mean"][1] == pytest.approx(9 / 10)  # of 8 distortions, and BOTH
    assert recalls["sound"]["mean"][5] == pytest.approx(5 / 7)
    table = fingerprint.table_of({"checkpoint": recalls}, 1)
    assert table.shape == (len(NAMES) + 2, 3)
    assert np.isnan(table[NAMES.index("JPEG"), 1]) and np.isnan(table[NAMES.index("hiss"), 0])
    lines = fingerprint.lines_of({"checkpoint": recalls}, 1)
    assert lines[2 + NAMES.index("JPEG")].split() == ["JPEG", "0.0", "-", "100.0"]


def test_identical_clips_do_not_find_their_own():
    clips = torch.eye(4)[[0, 0, 1, 2, 3]]
    assert fingerprint.recall_of([(clips, clips)]) == {1: 3 / 5, 5: 1.0}


# --------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------


def fingerprint_flags(run, data, out, *more):
    flags = ["--data", data, "--ckpt", run / "checkpoint.pt", "--out", out, "--workers", 0]
    return ["fingerprint", *map(str, [*flags, *more])]


def test_clips_are_found_again_from_a_checkpoint_to_a_picture(run, toy, tmp_path):
    out = tmp_path / "found"
    flags = fingerprint_flags(run, toy / "films", out, "--titles", 2, "--clips", 4)
    status, printed, errors = run_script("lab.evaluate", *flags)
    assert not status, errors
    result = json.loads((out / "result.json").read_text())
    assert result["evaluation"] == "fingerprint" and result["clips"] == 8
    assert list(result["recall"]) == ["checkpoint", "untrained", "pixels and spectrum"]
    for recalls in result["recall"].values():
        for modality, names in CHANGED.items():
            assert recalls[modality]["none"] == {"1": 1.0, "5": 1.0}
            assert set(recalls[modality]) == {*names, "mean", "worst"}
            shares = [recalls[modality][name]["1"] for name in names if name != "none"]
            assert recalls[modality]["mean"]["1"] == pytest.approx(np.mean(shares))
            assert recalls[modality]["worst"]["1"] == min(shares)
    assert result["recall"]["checkpoint"] != result["recall"]["untrained"]
    means = result["recall"]["pixels and spectrum"]["sight"]
    assert means["blur"]["1"] == 1 and means["grain"]["1"] == 1
    assert result["pretraining_step"] == 9 and "video of " in result["weights"]
    lines = printed.splitlines()
    assert lines[0] == "clips     8 of 1.6 s, of 2 titles"
    assert lines[-1] == "8 clips of 2 titles, of 1.6 s" == result["summary"][-1]
    assert lines[-len(result["summary"]) :] == result["summary"]
    assert (out / "fingerprint.png").read_bytes().startswith(b"\x89PNG")
    row = read_run(out)
    for name, accuracies in (("checkpoint", row["accuracies"]), ("untrained", row["untrained"])):
        recalls = result["recall"][name]
        assert accuracies == {
            f"fingerprint of toy, R@1 mean, {modality}": recalls[modality]["mean"]["1"]
            for modality in CHANGED
        }
    # The same command again finds it finished.
    status, printed, _ = run_script("lab.evaluate", *flags)
    assert not status and printed.splitlines()[1:] == result["summary"]


def test_the_features_are_those_of_the_two_backbones(run):
    checkpoint = run / "checkpoint.pt"
    sources = fingerprint.sources_of(checkpoint)
    weights = torch.load(checkpoint, weights_only=True)
    extractors = fingerprint.extractors_of(sources, seed=1, device=CPU)
    torch.manual_seed(0)
    inputs = torch.randn(2, 3, 8, 24, 24), torch.randn(2, 1, 64, 101)
    for place, source in enumerate(sources):
        net = source.make_network()
        net.load_state_dict(weights[source.backbone])
        expected = net.eval()(inputs[place])
        with torch.no_grad():
            found = extractors["checkpoint"][place](inputs[place])
            untrained = extractors["untrained"][place](inputs[place])
        assert torch.allclose(found, expected) and found.shape == untrained.shape == (2, 64)
        assert not torch.allclose(found, untrained)


@pytest.fixture
def vggsound(toy, tmp_path):
    """A test list of three clips, of which two are there, and one clip to train on."""
    rows = ['---g-f_I2yQ,1,"people, marching",test', "abc,30,dog,test", "gone,200,cat,test"]
    (tmp_path / "vggsound.csv").write_text("\n".join([*rows, "abc,90,dog,train"]) + "\n")
    folder = tmp_path / "scratch" / "video"
    folder.mkdir(parents=True)
    for name in ("---g-f_I2yQ_000001", "abc_000030", "abc_000090"):
        shutil.copy(toy / "films" / "film000.mp4", folder / f"{name}.mp4")
    return tmp_path


def test_of_vggsound_the_clips_of_the_test_list_are_taken(vggsound, run):
    args = parse_args(fingerprint_flags(run, vggsound, "out"))
    printed = []
    titles, clips = fingerprint.open_clips(args, TOY_FORMAT, printed.append)
    names = [path.split("/")[-1] for path in titles.names]
    assert names == ["---g-f_I2yQ_000001.mp4", "abc_000030.mp4"]
    assert clips == [(0, 0), (1, 0)] and not titles.skipped
    assert titles.stride == pytest.approx(0.4)  # a quarter of a clip
    assert printed == ["VGG-Sound: 1 of the 3 clips of its test list are missing"]
    args.clips, args.titles = 2, 1
    titles, clips = fingerprint.open_clips(args, TOY_FORMAT, printed.append)
    assert len(titles) == 1 and len(clips) == 2
    # `media prepare` adds an extension of its own.
    assert fingerprint.clip_of("video/abc_000030.mp4.mkv") == "abc_000030"


def test_what_fingerprinting_refuses(vggsound, run, toy, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def refuse(data, *flags):
        return refused("lab.evaluate", *fingerprint_flags(run, data, out, *flags))

    films = toy / "films"
    assert "--clips 0: must be 1 or more" in refuse(films, "--clips", 0)
    assert "--titles 0: must be 1 or more" in refuse(films, "--titles", 0)
    message = refuse(films, "--titles", 1, "--clips", 5)
    assert "has 5 clips of 1.6 s that can also begin 0.4 s later; 6 or more are needed" in message
    assert "no such folder or LIST.txt" in refuse(tmp_path / "nowhere")
    message = refuse(films, "--ckpt", films / "film000.mp4")
    assert "not a checkpoint of a pretraining" in message
    message = refused("lab.evaluate", "fingerprint", "--data", str(films))
    assert "the following arguments are required: --ckpt" in message
    # A set that is not there is answered with its layout, so in several lines.
    shutil.rmtree(vggsound / "scratch")
    unclosed = '"' + 200_000 * "x"
    for line, words in (
        ("abc,30,dog,test", "none of the 1 clips"),
        ("abc,x", "not as published"),
        (unclosed, "not as published"),
    ):
        (vggsound / "vggsound.csv").write_text(line + "\n")
        status, _, errors = run_script("lab.evaluate", *fingerprint_flags(run, vggsound, out))
        assert status == 2 and "Traceback" not in errors
        assert words in errors and "video/---g-f_I2yQ_000001.mp4 ..." in errors
    assert not out.exists()


def test_films_that_cannot_be_read_are_reported(toy, run, tmp_path, monkeypatch):
    read = Titles.read

    def read_but_one(titles, n, m, *more):
        if n == 0 and m < 10:
            raise BadInput("film000.mp4: damaged")
        return read(titles, n, m, *more)

    def read_none(titles, n, m, *more):
        raise BadInput("film000.mp4: gone")

    def find(out):
        flags = ["--titles", 2, "--clips", 4]
        fingerprint.run_fingerprint(parse_args(fingerprint_flags(run, toy / "films", out, *flags)))

    monkeypatch.setattr(Titles, "read", read_but_one)
    find(tmp_path / "found")
    result = json.loads((tmp_path / "found" / "result.json").read_text())
    assert result["clips"] == 7 and result["failures"] == ["film000.mp4: damaged"]
    monkeypatch.setattr(Titles, "read", read_none)
    with pytest.raises(BadInput, match="8 clips cannot be read: film000.mp4: gone"):
        find(tmp_path / "none")
