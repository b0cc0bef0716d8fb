"""Tests of lab/evaluate.py: the linear SVM, its C, sub-clips, retrieval, and both commands."""

import itertools
import json

import numpy as np
import pytest
import torch

import lab.evaluate as evaluate
from data import ESC50, AudioFrontEnd
from finetune import Source, make_set
from harness.errors import BadInput
from harness.fixtures import refused, run_script
from lab.compare import read_run
from lab.evaluate import GRID, TASKS, parse_args
from lab.nearest import cosine_similarity
from media.format import Format
from media.toy import write_wave
from models import NETWORKS, AudioResNet18, MixedConv18

RATE = 16000  # of the files that `write_wave` writes

# --------------------------------------------------------------------------------------------------
# The SVM, and its C, on features that are made up
# --------------------------------------------------------------------------------------------------


def files_of(items):
    """A labelled set of files that nobody opens."""
    files = ESC50.__new__(ESC50)
    files.items = items
    return files


def noisy_features(items, noise, size, views=2):
    """{path: (V, size)}: in the first three of its features, a file shows its class."""
    rng = np.random.default_rng(0)
    features = {}
    for path, label in items:
        x = noise * rng.normal(size=(views, size))
        x[:, :3] += np.eye(3)[label]
        features[path] = torch.from_numpy(x * np.arange(1, size + 1)).float()
    return features


def folds():
    """Sets of five folds, as ESC-50 has them, and their features."""
    items = [(f"{fold}-{i}", i % 3) for fold in range(1, 6) for i in range(9)]
    sets = {}
    for split in range(1, 6):
        fold = [(path, label) for path, label in items if path.startswith(f"{split}-")]
        train = [item for item in items if item not in fold]
        sets[split] = (files_of(train), files_of(fold), ["a", "b", "c"])
    return sets, noisy_features(items, noise=0.6, size=20)


def halves():
    """One split, as DCASE2014 has it, and its features."""
    items = [(f"{half}{i:02d}", i % 3) for half in ("train", "test") for i in range(30)]
    sets = {1: (files_of(items[:30]), files_of(items[30:]), ["a", "b", "c"])}
    return sets, noisy_features(items, noise=0.6, size=20)


def solve_alone(z, y, C):
    """Minimise |w|^2 / 2 + C * sum max(0, 1 - y (z w + b))^2 by plain gradient descent.

    z (N, D) and y (N,), of 1 and -1; returns w (D,) and b
    """
    padded = np.hstack([z, np.ones((len(z), 1))])
    penalty = np.append(np.ones(z.shape[1]), 0)
    steepest = 1 + 2 * C * np.linalg.eigvalsh(padded.T @ padded)[-1]
    weights = np.zeros(z.shape[1] + 1)
    for _ in range(20000):
        slack = np.maximum(0, 1 - y * (padded @ weights))
        weights -= (penalty * weights - 2 * C * padded.T @ (y * slack)) / steepest
    return weights[:-1], weights[-1]


@pytest.mark.parametrize("C", [0.001, 0.1])
def test_the_svm_is_that_of_each_class_against_the_others_solved_alone(C):
    items = [(f"{i}", i % 3) for i in range(24)]
    features = noisy_features(items, noise=0.5, size=8)
    svm = evaluate.fit_svm(features, items, C, 3, torch.device("cpu"))
    x = torch.cat([features[path] for path, _ in items]).double().numpy()  # (48, 8)
    labels = np.repeat([label for _, label in items], 2)
    z = (x - x.mean(0)) / x.std(0, ddof=1)
    expected = np.empty((len(x), 3))
    for label in range(3):
        w, b = solve_alone(z, np.where(labels == label, 1, -1), C)
        expected[:, label] = z @ w + b
    found = svm(torch.from_numpy(x).float()).detach().numpy()
    assert found == pytest.approx(expected, abs=1e-3)
    assert np.ptp(expected, axis=0).min() > 0.1


@pytest.mark.parametrize("make", [folds, halves])
def test_c_does_not_know_the_test_files(make):
    sets, features = make()
    for split in list(sets)[:2]:  # The others are made alike.
        train, test, names = sets[split]
        found = evaluate.svm_of_split(features, split, sets, torch.device("cpu"))
        assert 0.4 < found["accuracy"] and found["C"] in GRID
        assert len(set(found["accuracy_in_validation"].values())) > 1
        # Other labels of the test files change nothing but the accuracy.
        wrong = files_of([(path, (label + 1) % 3) for path, label in test.items])
        poisoned = {**sets, split: (train, wrong, names)}
        again = evaluate.svm_of_split(features, split, poisoned, torch.device("cpu"))
        assert again["C"] == found["C"]
        assert again["accuracy_in_validation"] == found["accuracy_in_validation"]
        assert again["accuracy"] != found["accuracy"]
        # Neither do other sounds in them.
        silent = {**features, **{path: torch.zeros(2, 20) for path, _ in test.items}}
        again = evaluate.svm_of_split(silent, split, sets, torch.device("cpu"))
        assert again["accuracy_in_validation"] == found["accuracy_in_validation"]


@pytest.mark.parametrize("make, parts", [(folds, 4), (halves, 3)])
def test_no_file_stands_on_both_sides(make, parts, monkeypatch):
    sets, features = make()
    fits, answers = [], []

    def noted_fit(features, items, C, *_):
        fits.append((C, items))
        return items

    def noted_count(fitted, features, items):
        assert not set(fitted) & set(items)
        answers.append(items)
        return len(items)

    monkeypatch.setattr(evaluate, "fit_svm", noted_fit)
    monkeypatch.setattr(evaluate, "count_right", noted_count)
    for split, (train, test, _) in sets.items():
        fits.clear()
        answers.clear()
        evaluate.svm_of_split(features, split, sets, torch.device("cpu"))
        *validated, tested = answers
        assert tested == test.items and sorted(fits[-1][1]) == sorted(train.items)
        assert len(validated) == parts * len(GRID)
        for C in GRID:
            of_c = [items for (fit, _), items in zip(fits, validated) if fit == C]
            # Each training file is answered once, and each part has all classes.
            assert sorted(itertools.chain(*of_c)) == sorted(train.items)
            assert all({label for _, label in items} == {0, 1, 2} for items in of_c)


def test_the_parts_are_the_other_folds_or_thirds_of_each_class_in_order():
    sets, _ = folds()
    names = [{path[0] for path, _ in part} for part in evaluate.parts_of(2, sets)]
    assert names == [{"1"}, {"3"}, {"4"}, {"5"}]
    sets, _ = halves()
    parts = evaluate.parts_of(1, sets)
    of_class = [[path for path, label in part if label == 1] for part in parts]
    assert [len(paths) for paths in of_class] == [4, 3, 3]
    assert sum(of_class, []) == [f"train{i:02d}" for i in range(1, 30, 3)]


def test_of_equal_c_the_smallest_is_taken():
    assert evaluate.best_c({1e-3: 5, 1e-2: 7, 1e-1: 7, 1.0: 6}) == 1e-2
    assert evaluate.best_c({1.0: 7, 1e-1: 7, 1e-2: 6}) == 1e-1


def test_scores_are_averaged_and_not_votes_nor_softmax():
    svm = torch.nn.Linear(2, 2)
    with torch.no_grad():
        svm.weight.copy_(torch.eye(2))
        svm.bias.zero_()
    # Two of three sub-clips, and the mean of the softmax, are for class 1.
    features = {"a": torch.tensor([[5.0, 0.0], [0.0, 2.0], [0.0, 2.0]])}
    assert evaluate.count_right(svm, features, [("a", 0)]) == 1
    assert evaluate.count_right(svm, features, [("a", 1)]) == 0


# --------------------------------------------------------------------------------------------------
# From files to features
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task, length, clips, seconds", [("esc50", 5, 10, 2), ("dcase2014", 30, 60, 2)]
)
def test_sub_clips_are_equally_spaced_from_the_beginning_to_the_end(
    tmp_path, task, length, clips, seconds
):
    clock = np.arange(length * RATE) / RATE
    write_wave(tmp_path / "clock.wav", (clock / length).astype(np.float32))  # it tells the time
    args = parse_args(["svm", "--task", task])
    fmt = evaluate.format_of(args, Source(args, TASKS[task]), TASKS[task])
    views, _ = make_set([(tmp_path / "clock.wav", 0)], fmt, args, TASKS[task])[0, None]
    assert views.shape == (clips, 48000 * seconds)
    middles = views[:, views.shape[1] // 2] * length  # where resampling has no edge
    begins = [i * (length - seconds) / (clips - 1) for i in range(clips)]
    assert (middles - seconds / 2).tolist() == pytest.approx(begins, abs=0.002)


def svm_flags(toy, out, *more):
    """The command line of the toy task on the small toy world. Flags in `more` win."""
    flags = ["--task", "toy-sound", "--data", toy / "sound", "--out", out, "--workers", 0]
    return ["svm", *map(str, [*flags, *more])]


def evaluate_here(toy, out, *more):
    """Run the command in this process, where its parts can be watched. Returns its result."""
    evaluate.run_svm(parse_args(svm_flags(toy, out, *more)))
    return json.loads((out / "result.json").read_text())


@pytest.fixture
def small_grid(monkeypatch):
    monkeypatch.setattr(evaluate, "GRID", [1e-4, 1e-2])


def test_features_are_those_of_the_frozen_network_that_the_checkpoint_names(
    run, toy, tmp_path, monkeypatch
):
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    checkpoint["networks"] = {"video": "r2plus1d_18", "audio": "of_a_paper"}
    torch.save(checkpoint, tmp_path / "paper.pt")
    made, seen = [], []

    def of_a_paper(width, classes):
        made.append((width, classes))
        return AudioResNet18(width, classes)

    monkeypatch.setitem(NETWORKS, "of_a_paper", of_a_paper)

    def noted(features, split, *_):
        seen.append(features)
        return {"C": 1.0, "accuracy": 0.5, "accuracy_in_validation": {}}

    monkeypatch.setattr(evaluate, "svm_of_split", noted)
    evaluate_here(toy, tmp_path / "run", "--ckpt", tmp_path / "paper.pt", "--clips", 3)
    assert set(made) == {(8, 0)}
    assert len(seen) == 5 and len(seen[0]) == 60
    assert all(features is seen[0] for features in seen)  # computed once for all splits
    net = AudioResNet18(width=8)
    net.load_state_dict(checkpoint["audio"])
    net.eval()
    state = checkpoint["front_end"]
    fmt = Format(8, 5, rate=16000, n_fft=1024, hop=256, mels=64)
    front_end = AudioFrontEnd(fmt, mean=state["log_mel_mean"], std=state["log_mel_std"])
    for path in list(seen[0])[::20]:
        views, _ = ESC50([(path, 0)], fmt, clips=3)[0, None]
        with torch.no_grad():
            expected = net.features(front_end(views)).mean((2, 3))
        assert torch.allclose(seen[0][path], expected, atol=1e-5)


def test_an_untrained_network_is_of_its_seed_and_its_sound_is_standardised_in_each_split(
    toy, tmp_path, monkeypatch
):
    measured, computed = [], []
    measure = AudioFrontEnd.measure

    def noted_measure(front_end, waveforms):
        measure(front_end, waveforms)
        measured.append((len(waveforms), front_end.mean))

    def noted_embed(net, front_end, *_):
        computed.append((front_end.mean, net.layer1[0].conv1.weight))
        return {}

    monkeypatch.setattr(AudioFrontEnd, "measure", noted_measure)
    monkeypatch.setattr(evaluate, "embed", noted_embed)
    found = {"C": 1.0, "accuracy": 0.5, "accuracy_in_validation": {}}
    monkeypatch.setattr(evaluate, "svm_of_split", lambda *_: found)
    for seed in (0, 1):
        flags = ["--width", 8, "--clips", 1, "--seed", seed]
        result = evaluate_here(toy, tmp_path / f"seed{seed}", *flags)
        assert result["weights"] == "random" and result["pretraining_step"] is None
    numbers, means = zip(*measured)
    train = [len(evaluate.read_lists(toy / "sound", "esc50", split)[0]) for split in range(1, 6)]
    assert list(numbers) == 2 * train and len(set(means[:5])) == 5
    assert [mean for mean, _ in computed] == list(means)
    weights = [weight for _, weight in computed]
    assert weights[0].shape[0] == 8 and torch.equal(weights[0], weights[4])
    assert torch.equal(weights[5], weights[9]) and not torch.equal(weights[0], weights[5])


# --------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------


def test_sounds_are_evaluated_from_a_checkpoint_to_a_result(run, toy, tmp_path, small_grid, capsys):
    checkpoint, out = run / "checkpoint.pt", tmp_path / "svm"
    flags = ["--ckpt", checkpoint, "--clips", 3]
    result = evaluate_here(toy, out, *flags)
    printed = capsys.readouterr().out
    assert result["evaluation"] == "svm" and result["task"] == "toy-sound"
    of_split = result["accuracy_of_split"]
    assert list(of_split) == list(result["C_of_split"]) == ["1", "2", "3", "4", "5"]
    assert result["accuracy"] == pytest.approx(np.mean(list(of_split.values())))
    assert result["accuracy"] > 0.3  # chance is 0.1
    assert set(result["C_of_split"].values()) <= set(evaluate.GRID)
    assert sum(result["tests_of_split"].values()) == 60
    assert result["pretraining_step"] == 9 and result["pretraining_epoch"] == 1
    assert result["settings"]["ckpt"] == str(checkpoint)
    assert result["settings"]["grid"] == evaluate.GRID
    assert result["settings"]["width"] == 8 and "torch" in result["versions"]
    lines = printed.strip().splitlines()
    assert lines[0] == "toy-sound: 10 classes, 60 sounds (3 views each) of 1.6 s, equally spaced"
    assert lines[-1] == f"toy-sound: {100 * result['accuracy']:.1f} %, the mean of 5 splits"
    assert lines[-6:] == result["summary"]
    # The same command again finds it finished; another one does not touch it.
    before = (out / "result.json").read_bytes()
    assert evaluate_here(toy, out, *flags) == result
    assert capsys.readouterr().out.splitlines()[1:] == result["summary"]
    other = r"holds a run of other arguments \(clips 3 and not 2\); name another folder"
    with pytest.raises(BadInput, match=other):
        evaluate_here(toy, out, "--ckpt", checkpoint, "--clips", 2)
    assert (out / "result.json").read_bytes() == before
    # It is a row of lab.compare.
    status, printed, errors = run_script("lab.compare", run, out, "--out", tmp_path / "compared")
    assert not status, errors
    assert " toy-sound, SVM |\n" in printed
    assert f" {100 * result['accuracy']:.3g} |\n" in printed


def test_an_interrupted_run_resumes_after_the_splits_that_are_done(
    run, toy, tmp_path, monkeypatch, small_grid
):
    flags = ["--ckpt", run / "checkpoint.pt", "--clips", 1]
    whole = evaluate_here(toy, tmp_path / "whole", *flags)
    svm_of_split, done = evaluate.svm_of_split, []

    def interrupted(features, split, *more):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(split)
        return svm_of_split(features, split, *more)

    monkeypatch.setattr(evaluate, "svm_of_split", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_here(toy, tmp_path / "killed", *flags)
    assert not (tmp_path / "killed" / "result.json").exists()

    def noted(features, split, *more):
        done.append(split)
        return svm_of_split(features, split, *more)

    monkeypatch.setattr(evaluate, "svm_of_split", noted)
    resumed = evaluate_here(toy, tmp_path / "killed", *flags)
    assert done == [1, 2, 3, 4, 5]
    for name in ("accuracy", "accuracy_of_split", "C_of_split", "summary"):
        assert resumed[name] == whole[name]
    assert not (tmp_path / "killed" / "last-before.pt").exists()


def write_tones(root, seconds=0.3):
    """Write DCASE2014, as it is published, of a tone for each class and a little noise."""
    rng = np.random.default_rng(0)
    time = np.arange(round(seconds * RATE)) / RATE
    for folder in ("scenes_stereo", "scenes_stereo_testset"):
        (root / folder).mkdir(parents=True)
        for label, name in enumerate("abcdefghij"):
            for number in range(1, 11):
                tone = 0.3 * np.sin(2 * np.pi * 200 * 1.4**label * time)
                sound = tone + 0.01 * rng.normal(size=len(time))
                write_wave(root / folder / f"{name}{number:02d}.wav", sound.astype(np.float32))


def test_dcase2014_is_evaluated_in_its_one_split(tmp_path, monkeypatch):
    write_tones(tmp_path / "dcase")
    monkeypatch.chdir(tmp_path)
    flags = "--task dcase2014 --data dcase --width 8 --clips 3 --seconds 0.1 --workers 0".split()
    status, printed, errors = run_script("lab.evaluate", "svm", *flags)
    assert not status, errors
    name = "svm-dcase2014-scratch-data-dcase-clips3-seconds0.1-width8"
    result = json.loads((tmp_path / "runs" / name / "result.json").read_text())
    assert result["tests_of_split"] == {"1": 100} and result["accuracy"] > 0.9
    assert len(result["summary"]) == 1
    assert "C of 1e-06 to 1, by tens, by cross-validation of thirds of each class" in printed


def test_what_evaluating_refuses(run, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refuse(task, *flags):
        return refused("lab.evaluate", "svm", "--task", task, *map(str, flags))

    for task in ("ucf101", "hmdb51", "toy-action"):
        message = refuse(task, "--ckpt", run / "checkpoint.pt")
        assert f"argument --task: {task}: its files are videos, and svm has the tasks" in message
        assert f"use python finetune.py --task {task} --probe" in message
    assert "argument --task: esc10: svm has the tasks esc50, dcase2014," in refuse("esc10")
    sound = ["--data", toy / "sound"]
    assert "--clips 0: must be 1 or more" in refuse("toy-sound", *sound, "--clips", 0)
    message = refuse("toy-sound", *sound, "--seconds", 0.05)
    assert "--seconds 0.05: must be 0.064 (an FFT window) or more" in message
    for seconds in ("nan", "inf"):
        message = refuse("toy-sound", *sound, "--seconds", seconds)
        assert f"--seconds {seconds}: must be a finite number" in message
    assert "--width 12: must be a multiple of 8" in refuse("toy-sound", *sound, "--width", 12)
    assert "nope.pt: not a checkpoint" in refuse("toy-sound", *sound, "--ckpt", "nope.pt")
    assert "the following arguments are required: command" in refused("lab.evaluate")
    # A set that is not there is answered with its layout, so in several lines.
    status, _, errors = run_script("lab.evaluate", "svm", "--task", "dcase2014", "--data", toy)
    assert status == 2 and "Traceback" not in errors
    assert f"{toy}/scenes_stereo: No such file or directory. {toy} should hold:" in errors
    assert "scenes_stereo_testset/bus01.wav ..." in errors
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------------------------------------
# Retrieval
# --------------------------------------------------------------------------------------------------


def made_up_retrieval(values):
    """Sets of 12 files that query 60, and features of 2 views, drawn from these values."""
    rng = np.random.default_rng(0)
    train = [(f"train{i}", i % 5) for i in range(60)]
    test = [(f"test{i}", i % 6) for i in range(12)]  # No file to train on has class 5.
    sets = {1: (files_of(train), files_of(test), list("abcdef"))}
    features = {}
    for path, _ in train + test:
        features[path] = torch.from_numpy(rng.choice(values, (2, 3))).float()
    return sets, features


@pytest.mark.parametrize(
    "values", [np.linspace(-1, 1, 1000), np.array([0.0, 1.0])], ids=["distinct", "ties"]
)
def test_recall_is_that_of_a_double_loop_in_which_ties_count_against_it(values):
    sets, features = made_up_retrieval(values)
    train, test, _ = sets[1]
    found = evaluate.retrieval_of_split(features, 1, sets, torch.device("cpu"))
    for K in (1, 5, 10, 20, 50):
        hits = 0
        for path, label in test.items:
            query = features[path].double().mean(0)
            neighbours = []
            for other, other_label in train.items:
                x = features[other].double().mean(0)
                norms = max(query.norm() * x.norm(), 1e-9)
                # The nearest is the least; of equals, one of another class.
                distance = round(float(-query @ x / norms), 6)
                neighbours.append((distance, other_label == label))
            hits += any(same for _, same in sorted(neighbours)[:K])
        assert found["recall"][K] == pytest.approx(hits / len(test))
    assert found["recall"][1] < found["recall"][5] < found["recall"][50] == 10 / 12


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value):
    """Else no other would be more similar, and every recall 100 %."""
    finite, damaged = torch.ones(2, 4), torch.full((2, 4), value)
    for queries, gallery in ((finite, damaged), (damaged, finite)):
        with pytest.raises(BadInput, match="the features are not finite; name another --ckpt"):
            cosine_similarity(queries, gallery)


def test_recall_of_chance_is_that_of_every_order_of_the_gallery():
    gallery, queries = [0, 0, 1, 2, 2], [0, 1, 1, 2, 3]
    for K in (1, 2, 4):
        hits = []
        for order in itertools.permutations(gallery):
            hits += [label in order[:K] for label in queries]
        assert evaluate.recall_of_chance(gallery, queries, K) == pytest.approx(np.mean(hits))


def checkpoint_of_a_paper(run, path):
    """A checkpoint that names another network of videos, as one of papers/ does."""
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    torch.manual_seed(0)
    checkpoint["video"] = MixedConv18(width=8).state_dict()
    checkpoint["networks"] = {"video": "mc3_18", "audio": "audio_resnet18"}
    torch.save(checkpoint, path)
    return path


def test_videos_are_retrieved_from_a_checkpoint_that_names_its_network(run, toy, tmp_path):
    checkpoint = checkpoint_of_a_paper(run, tmp_path / "paper.pt")
    out = tmp_path / "retrieve"
    flags = ["retrieve", "--task", "toy-action", "--data", toy / "action", "--out", out]
    flags += ["--ckpt", checkpoint, "--clips", 1, "--workers", 0]
    status, printed, errors = run_script("lab.evaluate", *flags)
    assert not status, errors
    result = json.loads((out / "result.json").read_text())
    assert result["evaluation"] == "retrieve" and "mc3_18" in result["weights"]
    assert result["tests_of_split"] == {"1": 20} and result["gallery_of_split"] == {"1": 40}
    assert list(result["recall"]) == ["1", "5", "10", "20"]  # 50 is more than there are
    assert result["recall"] == result["recall_of_split"]["1"]
    shares = list(result["recall"].values())
    assert 0 < shares[0] <= shares[1] <= shares[2] <= shares[3] <= 1
    assert result["chance"]["1"] == pytest.approx(0.1)
    assert result["settings"]["crop"] == 24 and result["settings"]["short_side"] == 29
    lines = printed.splitlines()
    assert lines[0] == "toy-action: 10 classes, 60 videos (3 views each)"
    assert "skipped: R@50, since a split has fewer than 50 files to train on" in lines
    assert lines[-2:] == result["summary"]
    assert lines[-2].startswith(f"toy-action split 1: R@1 {100 * shares[0]:.1f} %, R@5 ")
    assert lines[-2].endswith("; 20 videos (3 views each) among 40")
    row = read_run(out)
    assert row["pretraining"] == tmp_path.name and row["accuracies"] == {
        "toy-action, R@1, split 1": shares[0],
        "toy-action, R@5, split 1": shares[1],
    }
    # The same command again finds it finished.
    status, printed, _ = run_script("lab.evaluate", *flags)
    assert not status and printed.splitlines()[1:] == result["summary"]


def test_sounds_are_retrieved_in_all_splits_from_a_checkpoint_that_names_no_networks(
    run, toy, tmp_path
):
    checkpoint = torch.load(run / "checkpoint.pt", weights_only=True)
    del checkpoint["networks"]
    torch.save(checkpoint, tmp_path / "old.pt")
    flags = ["retrieve", "--task", "toy-sound", "--data", toy / "sound", "--split", "all"]
    flags += ["--ckpt", tmp_path / "old.pt", "--out", tmp_path / "run", "--clips", 1]
    args = parse_args([*map(str, flags), "--workers", "0"])
    evaluate.run_retrieve(args)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    of_split = [recall["1"] for recall in result["recall_of_split"].values()]
    assert len(of_split) == 5 and len(set(of_split)) > 1
    assert result["recall"]["1"] == pytest.approx(np.mean(of_split))
    assert result["recall"]["5"] > result["chance"]["5"]
    assert sum(result["tests_of_split"].values()) == 60
    assert set(result["gallery_of_split"].values()) == {40, 50}


def test_an_untrained_network_retrieves_by_its_name_and_seed(toy, tmp_path, monkeypatch):
    nets = []

    def noted_embed(net, front_end, files, *_):
        nets.append((net, front_end))
        return {path: torch.ones(3, 4) for path, _ in files.items}

    monkeypatch.setattr(evaluate, "embed", noted_embed)
    for flags in ([], ["--network", "mc3_18"], ["--seed", "1"]):
        out = str(tmp_path / f"run{len(nets)}")
        task = ["--task", "toy-action", "--data", str(toy / "action"), "--width", "8"]
        evaluate.run_retrieve(parse_args(["retrieve", *task, "--out", out, *flags]))
    names = [type(net).__name__ for net, _ in nets]
    assert names == ["R2Plus1D18", "MixedConv18", "R2Plus1D18"]
    assert not torch.equal(*[net.layer1[0].conv1[0][0].weight for net, _ in nets[::2]])
    assert all(type(front_end).__name__ == "VideoFrontEnd" for _, front_end in nets)
    # Features that tell nothing apart find nothing.
    result = json.loads((tmp_path / "run0" / "result.json").read_text())
    assert set(result["recall"].values()) == {0}


def test_a_run_is_named_after_what_it_is_of():
    ckpt = "--ckpt runs/a/checkpoint.pt"
    names = {
        "svm --task esc50 --clips 3": "svm-esc50-scratch-clips3",
        f"retrieve --task ucf101 {ckpt} --split all": "retrieve-ucf101-a-splitall",
        f"fingerprint --data toy/films {ckpt} --clips 4": "fingerprint-toy-a-clips4",
        "sync --data tv --ckpt runs/a/epoch2.pt --workers 9": "sync-tv-a-epoch2",
    }
    for command, name in names.items():
        assert parse_args(command.split()).out == f"runs/{name}"


def test_what_retrieving_refuses(run, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refuse(*flags):
        action = ["retrieve", "--task", "toy-action", "--data", toy / "action"]
        return refused("lab.evaluate", *map(str, [*action, *flags]))

    assert "argument --task: invalid choice: 'kinetics'" in refuse("--task", "kinetics")
    assert "--split 4: must be 1 to 3, or all" in refuse("--split", 4)
    assert "--clips 0: must be 1 or more" in refuse("--clips", 0)
    assert "--short-side 20: must be --crop 28 or more" in refuse("--short-side", 20)
    assert "--width 12: must be a multiple of 8" in refuse("--width", 12)
    named = ["--network", "mc3_18"]
    message = refuse(*named, "--ckpt", run / "checkpoint.pt")
    assert "--network mc3_18: must be left out: --ckpt names its own" in message
    sound = ["--task", "toy-sound", "--data", toy / "sound"]
    assert "--network mc3_18: must be left out: it sees no sound" in refuse(*sound, *named)
    assert "nope.pt: not a checkpoint" in refuse("--ckpt", "nope.pt")
    status, _, errors = run_script("lab.evaluate", "retrieve", "--task", "ucf101", "--data", toy)
    assert status == 2 and "Traceback" not in errors
    assert "classInd.txt: No such file or directory" in errors and "UCF-101/Archery" in errors
    assert not list(tmp_path.iterdir())
