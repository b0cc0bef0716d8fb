"""Tests of papers/avts.py, in the order of its file."""

import contextlib
import json

import pytest
import torch

import papers.avts as avts
from data import Titles, some_shares
from harness.errors import BadInput
from harness.fixtures import (
    assert_equal,
    load_checkpoint,
    read_log,
    refused,
    run_script,
    torchrun,
)
from harness.run import Processes
from media.format import Format

# One title of three snippets of 1 s, and two titles of one.
TITLE = torch.tensor([0, 0, 0, 1, 2])
BEGIN = torch.tensor([0.0, 1.5, 1.4, 0.0, 9.0], dtype=torch.double)


def random_embeddings(count=5, seed=0):
    torch.manual_seed(seed)
    z_v, z_a = torch.randn(2, count, 7, dtype=torch.double)
    return z_v.float().requires_grad_(), z_a.float().requires_grad_()


# --------------------------------------------------------------------------------------------------
# Distances, negatives, loss, curriculum
# --------------------------------------------------------------------------------------------------


def test_the_distance_is_half_of_that_at_unit_length():
    z_v, z_a = random_embeddings()
    d = avts.distance(z_v, z_a)
    for i in range(5):
        for j in range(5):
            apart = z_v[i] / z_v[i].norm() - z_a[j] / z_a[j].norm()
            assert d[i, j].item() == pytest.approx(apart.norm().item() / 2, rel=1e-5)
    assert torch.allclose(avts.distance(3 * z_v, 5 * z_a), d, atol=1e-6)
    assert avts.distance(z_v, -z_v).diagonal().tolist() == pytest.approx([1] * 5)


def test_equal_embeddings_have_a_distance_of_0_and_a_finite_gradient():
    z = torch.randn(4, 7, requires_grad=True)
    d = avts.distance(z, z)
    assert (d.diagonal() == 0).all()
    everything = torch.ones(4, 4, dtype=torch.bool)
    avts.margin_loss(d, everything, everything, 0.25).backward()
    assert z.grad.isfinite().all() and z.grad.abs().sum() > 0
    z.grad = None
    avts.distance(z, z).diagonal().sum().backward()
    assert (z.grad == 0).all()


def test_negatives_are_of_three_kinds_by_title_and_by_the_gap():
    kinds = avts.kinds_of_negatives(TITLE, BEGIN, seconds=1.0)
    pairs = {kind: [tuple(pair) for pair in of.nonzero().tolist()] for kind, of in kinds.items()}
    assert pairs["hard"] == [(0, 1), (1, 0)]  # 0.5 s between them; 0.4 s is neither
    assert pairs["superhard"] == [(1, 2), (2, 1)]  # they overlap by 0.9 s
    other_title = [(i, j) for i in range(5) for j in range(5) if TITLE[i] != TITLE[j]]
    assert pairs["easy"] == other_title
    barely = torch.tensor([0.0, 0.9], dtype=torch.double)
    kinds = avts.kinds_of_negatives(torch.tensor([0, 0]), barely, seconds=1.0)
    assert kinds["superhard"].sum() == 2 and kinds["hard"].sum() == 0
    twice = torch.tensor([3.0, 3.0], dtype=torch.double)  # It is no negative of itself.
    kinds = avts.kinds_of_negatives(torch.tensor([0, 0]), twice, seconds=1.0)
    assert not any(pairs.any() for pairs in kinds.values())
    touching = torch.tensor([0.0, 1.0], dtype=torch.double)
    kinds = avts.kinds_of_negatives(torch.tensor([0, 0]), touching, seconds=1.0)
    assert not any(pairs.any() for pairs in kinds.values())


@pytest.mark.parametrize("hard_share", [0.0, 0.25, 1.0])
def test_the_loss_is_that_of_a_double_loop(hard_share):
    kinds = avts.kinds_of_negatives(TITLE, BEGIN, seconds=1.0)
    found, expected = [], []
    for loss_of, into in ((vectorised, found), (double_loop, expected)):
        z_v, z_a = random_embeddings()
        loss = loss_of(avts.distance(z_v, z_a), kinds, hard_share)
        loss.backward()
        into += [loss.detach(), z_v.grad, z_a.grad]
    for ours, naive in zip(found, expected):
        assert torch.allclose(ours, naive, atol=1e-6)


MARGIN = 0.7  # of these pairs, some are farther apart and some are not


def vectorised(d, kinds, hard_share):
    is_far = d > MARGIN
    assert is_far[kinds["easy"]].any() and not is_far[kinds["easy"]].all()
    return avts.margin_loss(d, kinds["easy"], kinds["hard"], hard_share, MARGIN)


def double_loop(d, kinds, hard_share):
    positives, terms = [], {"easy": [], "hard": []}
    for i in range(len(d)):
        positives.append(d[i, i] ** 2)
        for j in range(len(d)):
            for kind, found in terms.items():
                if kinds[kind][i, j]:
                    found.append(torch.relu(MARGIN - d[i, j]) ** 2)
    mean = {kind: torch.stack(found).mean() for kind, found in terms.items()}
    negative = (1 - hard_share) * mean["easy"] + hard_share * mean["hard"]
    return (torch.stack(positives).mean() + negative) / 2


def test_without_hard_negatives_no_gradient_goes_through_pairs_of_one_title():
    kinds = avts.kinds_of_negatives(TITLE, BEGIN, seconds=1.0)
    d = torch.full((5, 5), 0.5, requires_grad=True)
    avts.margin_loss(d, kinds["easy"], kinds["hard"], 0.0).backward()
    same_title = TITLE[:, None] == TITLE[None, :]
    assert (d.grad[same_title & ~torch.eye(5, dtype=torch.bool)] == 0).all()
    assert (d.grad[~same_title] < 0).all() and (d.grad.diagonal() > 0).all()


def test_a_share_without_hard_pairs_has_no_such_term():
    d = torch.full((5, 5), 0.5, requires_grad=True)
    nothing = torch.zeros(5, 5, dtype=torch.bool)
    loss = avts.margin_loss(d, TITLE[:, None] != TITLE[None, :], nothing, 0.25)
    assert loss.item() == pytest.approx((0.25 + 0.75 * 0.49**2) / 2)
    loss.backward()
    assert d.grad.isfinite().all()


def test_a_network_that_tells_nothing_apart_has_a_quarter_of_the_squared_margin():
    kinds = avts.kinds_of_negatives(TITLE, BEGIN, seconds=1.0)
    losses = []
    for distance in (0.4, 0.99 / 2, 0.6):
        d = torch.full((5, 5), distance)
        losses.append(avts.margin_loss(d, kinds["easy"], kinds["hard"], 0.25).item())
    assert losses[1] == pytest.approx(0.99**2 / 4) == pytest.approx(0.245, abs=1e-3)
    assert losses[0] > losses[1] < losses[2]


def test_the_paper_is_the_run_without_flags():
    args = avts.parse_args([])
    paper = {"frames": 25, "fps": 25, "crop": 224, "mels": 40, "network": "mc3_18"}
    paper |= {"batch_size": 64, "share": 16, "epochs": 90, "hard_after": 50, "hard_share": 0.25}
    assert {name: getattr(args, name) for name in paper} == paper
    assert not args.superhard and args.out == "runs/avts-movies-25fps"
    avts.check_args(args, world_size=4)
    shares = [avts.hard_share_of(epoch, args) for epoch in (0, 49, 50, 89)]
    assert shares == [0, 0, 0.25, 0.25]


# --------------------------------------------------------------------------------------------------
# The run
# --------------------------------------------------------------------------------------------------


def flags_of(toy, out, *more):
    """Two epochs, of which the second has hard negatives, of nine steps each."""
    flags = """
        --toy --width 8 --short-side 40 --crop 24 --batch-size 32 --share 16 --w 8 --workers 0
        --held-out 0.25 --held-out-snippets 4 --warmup 0.5 --seed 1
    """.split()
    return [*flags, *map(str, ["--data", toy / "films", "--out", out, *more])]


@pytest.fixture(scope="module")
def whole(toy, tmp_path_factory):
    out = tmp_path_factory.mktemp("avts") / "whole"
    status, printed, errors = run_script("papers.avts", *flags_of(toy, out))
    assert not status, errors
    return out, printed


def test_a_run_follows_the_curriculum_and_measures_synchronisation(whole):
    out, printed = whole
    shares = read_log(out, "hard_share")
    half = len(shares) // 2
    assert shares == [0.0] * half + [0.25] * half and half > 0
    assert len(read_log(out, "sync_same")) == 5  # at each half of an epoch
    result = json.loads((out / "result.json").read_text())
    assert result["paper"] == "AVTS"  # as lab.compare names its rows
    assert {"loss", "sync_same", "sync_other"} == result["final"].keys()
    assert (out / "curves.png").exists()
    assert "chance is a loss of 0.245" in printed
    assert "25% of the negatives hard after 1 epochs" in printed
    checkpoint = load_checkpoint(out)
    assert checkpoint["networks"] == {"video": "mc3_18", "audio": "audio_resnet18"}
    assert {"video", "audio", "video_head", "audio_head", "front_end"} < checkpoint.keys()


@pytest.fixture
def without_pictures(monkeypatch):
    """A picture takes longer than a step."""
    monkeypatch.setattr(avts, "draw_run", lambda rows, args, path: path.touch())


class Killed(Exception):
    pass


def train_steps(args, steps):
    """Train so many steps, and be killed at the beginning of the next one."""
    loss_of_share, calls = avts.loss_of_share, []

    def killed(*inputs):
        calls.append(inputs)
        if len(calls) > 2 * steps:  # two shares a step
            raise Killed
        return loss_of_share(*inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(avts, "loss_of_share", killed)
        with pytest.raises(Killed):
            avts.main(args)


def test_the_first_epochs_are_those_of_easy_negatives_alone(whole, toy, tmp_path, without_pictures):
    out, _ = whole
    losses = read_log(out)
    half = len(losses) // 2
    args = avts.parse_args(flags_of(toy, tmp_path / "easy", "--hard-share", 0))
    train_steps(args, half + 1)
    losses_of_easy = read_log(tmp_path / "easy")
    assert losses[:half] == losses_of_easy[:half]
    assert losses[half] != losses_of_easy[half]


def test_an_interrupted_run_resumes_to_the_same_weights(whole, toy, tmp_path, without_pictures):
    """It is interrupted in the second epoch, whose negatives are partly hard."""
    out, _ = whole
    steps = len(read_log(out))
    args = avts.parse_args(flags_of(toy, tmp_path / "stopped", "--save-minutes", 0))
    train_steps(args, steps - 3)
    assert 0 < len(read_log(tmp_path / "stopped")) < steps
    avts.main(args)
    resumed = load_checkpoint(tmp_path / "stopped")
    for name in ("video", "audio", "video_head", "audio_head", "optimizer", "progress"):
        assert_equal(resumed[name], load_checkpoint(out)[name])
    assert read_log(tmp_path / "stopped", "hard_share") == read_log(out, "hard_share")


def test_two_processes_take_the_steps_of_one(whole, toy, tmp_path):
    out, _ = whole
    torchrun("papers/avts.py", *flags_of(toy, tmp_path / "two", "--epochs", 1))
    # Adam does not see the scale of a gradient, so the log has to show it.
    for name in ("loss", "grad_norm"):
        of_one, of_two = read_log(out, name), read_log(tmp_path / "two", name)
        assert of_two[:2] == pytest.approx(of_one[:2], rel=1e-3)


class Networks(torch.nn.Module):
    """In place of networks: what they were called with, and the same embeddings each time."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, video, audio):
        self.seen.append((len(video), len(audio)))
        z_v, z_a = random_embeddings(len(video))
        return z_v.detach(), z_a.detach()


def loss_of(begin, *flags):
    """The loss of a share of two titles, of two snippets each, that begin at these seconds."""
    batch = {"video": torch.zeros(4, 3), "waveform": torch.zeros(4, 3)}
    batch |= {"title": torch.tensor([0, 0, 1, 1])}
    batch |= {"begin": torch.tensor(begin, dtype=torch.double)}
    fronts = (torch.nn.Identity(), torch.nn.Identity())
    processes = Processes()
    processes.device = torch.device("cpu")
    networks = Networks()
    args = avts.parse_args(["--toy", *flags])
    return avts.loss_of_share(batch, 1.0, fronts, networks, args, processes).item(), networks.seen


def test_all_pairs_of_a_share_are_of_one_pass_through_the_networks():
    """Each snippet goes through the networks once, whatever it is paired with."""
    _, seen = loss_of([0.0, 1.6, 0.0, 1.6])
    assert seen == [(4, 4)]


def test_superhard_negatives_take_the_place_of_hard_ones():
    apart, overlapping = [0.0, 1.6, 0.0, 1.6], [0.0, 0.8, 0.0, 0.8]
    hard, _ = loss_of(apart)
    superhard, _ = loss_of(overlapping, "--superhard")
    neither, _ = loss_of(overlapping)
    none_of_superhard, _ = loss_of(apart, "--superhard")
    assert hard == superhard > neither == none_of_superhard


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--hard-share 1.5", "--hard-share 1.5: must be from 0 to 1"),
        ("--hard-share -0.1", "--hard-share -0.1: must be from 0 to 1"),
        ("--hard-share 0 --superhard", "--hard-share 0.0: must be above 0 with --superhard"),
        ("--superhard --hard-after 9 --epochs 9", "--hard-after 9.0: must be below --epochs, 9"),
        ("--w 2", "hard negatives are 0.5 s apart"),
        ("--stride 0.1 --w 10", "hard negatives are 0.5 s apart"),
        ("--superhard --stride 1", "--superhard needs overlapping ones"),
        ("--k 1", "hard ones need two"),
        ("--k 16", "easy negatives are of two titles"),
        ("--stride 0", "--stride 0.0: must be above 0"),
        ("--margin 2", "above 0, and 1 or less"),
    ],
)
def test_what_cannot_be_trained_is_refused(flags, message, tmp_path):
    out = tmp_path / "out"
    found = refused("papers.avts", "--toy", "--share", 16, "--out", out, *flags.split())
    assert message in found
    assert not out.exists()


def test_a_single_title_is_refused_since_it_has_no_easy_negatives(toy, tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    (films / "film.mp4").symlink_to(toy / "films" / "film000.mp4")
    flags = flags_of(toy, tmp_path / "out", "--data", films)
    status, _, errors = run_script("papers.avts", *flags)
    assert status == 2 and "Traceback" not in errors
    assert "one title to train on is long enough for --k 2, and negatives of other titles" in errors
    assert not (tmp_path / "out").exists()


def test_films_without_what_the_loss_needs_are_refused(toy):
    """Else all positives would be pulled together, and nothing pushed apart."""
    args = avts.parse_args(flags_of(toy, "unused", "--hard-after", 0))
    short = Titles(toy / "films", Format.of(args), stride=args.stride)
    avts.make_sampler(args, short)
    short.counts = [2] * len(short.counts)  # Snippets that begin 0.8 s apart overlap.
    with pytest.raises(BadInput, match="too short for hard negatives; take a smaller --stride"):
        avts.make_sampler(args, short)
    args.superhard = True
    avts.make_sampler(args, short)
    args.share, args.k, args.hard_share = 16, 8, 0.0
    args.superhard = False
    for number, is_refused in ((3, True), (4, False), (5, True)):
        some = Titles(toy / "films", Format.of(args), stride=args.stride).subset(range(number))
        args.batch_size = 64
        expected = pytest.raises(BadInput, match="some shares would hold one alone")
        with expected if is_refused else contextlib.nullcontext():
            sampler = avts.make_sampler(args, some)
            shares = [share for share in some_shares(sampler, args.share)]
            assert all(len({n for n, _, _ in share}) == 2 for share in shares)
