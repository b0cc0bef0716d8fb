"""Tests of the toy world: its shows, and its frame rate, key frames and arrow of time."""

import json

import av
import numpy as np
import pytest

from harness.fixtures import refused
from media.collection import read_collection
from media.reader import Reader
from media.toy import (
    ACTIONS,
    TOY_FORMAT,
    action_motion,
    make_title,
    make_toy,
    plan_film,
    render_film,
    rng_of_kind,
    toy_format,
)

# --------------------------------------------------------------------------------------------
# Shows
# --------------------------------------------------------------------------------------------


def mean_colours(path):
    """The mean colour (3,) of each of the 64 frames of an episode, as an array (64, 3)."""
    reader = Reader(path)
    images, _ = reader.read(np.arange(64) / 5, keep=lambda frame: reader.resize(frame, 40))
    reader.close()
    return np.mean(images, axis=(1, 2))


def test_each_folder_is_a_show_of_several_episodes(shows):
    collection = read_collection(shows / "films", TOY_FORMAT)
    assert collection.names == [f"show{n:03d}" for n in range(5)]
    assert collection.counts == [24] * 5
    assert [len(part) for part in collection.parts] == [3] * 5
    assert json.loads((shows / "world.json").read_text())["episodes"] == 3


def test_episodes_share_what_betrays_their_show(shows):
    """The colour grade is of the show; what happens, and where, is of the episode."""
    collection = read_collection(shows / "films", TOY_FORMAT)
    colours = []
    for part in collection.parts:
        colours.append([mean_colours(path) for path, _, _ in part])
    colours = np.array(colours)  # (shows, episodes, frames, 3)
    means = colours.mean(axis=2)  # (shows, episodes, 3)
    between_episodes = means.std(axis=1).mean()
    between_shows = means.mean(axis=1).std(axis=0).mean()
    assert between_shows > 2 * between_episodes
    first, second, third = colours[0]
    assert abs(first - second).mean() > 1 and abs(second - third).mean() > 1


def test_the_truth_of_a_show_goes_on_through_its_episodes(shows):
    rows = [line.split(",") for line in (shows / "truth.csv").read_text().splitlines()[1:]]
    of_first_show = [list(map(int, row[1:4])) for row in rows if row[0] == "0"]
    snippets, scenes, shots = zip(*of_first_show)
    assert snippets == tuple(range(24))
    assert list(scenes) == sorted(scenes) and list(shots) == sorted(shots)
    for episode in (1, 2):
        first = 8 * episode
        assert scenes[first] != scenes[first - 1] and shots[first] != shots[first - 1]


# --------------------------------------------------------------------------------------------
# Frame rate, key frames and an arrow of time
# --------------------------------------------------------------------------------------------


def test_the_first_film_is_what_it_was_in_the_first_world():
    """As numbers, since other encoders may write other bytes: draws in another order show."""
    rng = rng_of_kind(0, "film", 0)
    plan = plan_film(rng, 6)
    frames, sound = render_film(rng, make_title(rng), plan, 0.5)
    greys = [78.6, 78.6, 73.5, 69.6, 69.6, 69.6]
    loudness = [0.2379, 0.2414, 0.1427, 0.1305, 0.1282, 0.1275]
    assert frames.mean((1, 2, 3))[::8] == pytest.approx(greys, abs=0.1)
    assert sound.reshape(6, -1).std(1) == pytest.approx(loudness, abs=0.0005)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A world of two films of three snippets, with all options."""
    root = tmp_path_factory.mktemp("world") / "timely"
    make_toy(root, titles=2, snippets=3, clips=(1, 0), fps=10, gop=1, tiring=0.5)
    return root


def test_every_frame_of_a_world_can_be_a_key_frame_and_films_have_ten_a_second(world):
    arguments = json.loads((world / "world.json").read_text())
    assert arguments["fps"] == 10 and arguments["gop"] == 1 and arguments["tiring"] == 0.5
    snippets = {"films": 3, "action": 2}
    for path in world.rglob("*.mp4"):
        with av.open(str(path)) as file:
            packets = [packet for packet in file.demux(video=0) if packet.size]
            times = [float(packet.pts * packet.time_base) for packet in packets]
        assert all(packet.is_keyframe for packet in packets), path
        frames = 16 * snippets[path.relative_to(world).parts[0]]
        assert times == pytest.approx(np.arange(frames) / 10), path
    # A snippet lasts 1.6 s, so truth.csv is of the same ones at any frame rate.
    for fmt in (TOY_FORMAT, toy_format(10)):
        assert read_collection(world / "films", fmt).counts == [3, 3]
    assert len((world / "truth.csv").read_text().splitlines()) == 1 + 6


def shots(snippets, fps=5, tiring=0.0):
    """Render a shot of so many snippets of each action, without artefacts.

    Returns (frames (10, F, H, W, 3), sound (10, S)).
    """
    plan = np.repeat([(0, action, action) for action in range(10)], snippets, axis=0)
    rng = np.random.default_rng(0)
    frames, sound = render_film(rng, make_title(rng), plan, 0.0, toy_format(fps), tiring)
    return frames.reshape(10, -1, *frames.shape[1:]), sound.reshape(10, -1)


def test_a_film_shows_the_same_motion_at_any_frame_rate():
    """A frame shows its middle, so every third frame of 15 a second shows one of 5 a second."""
    for few, many in ((5, 15), (10, 30)):
        slow, sound = shots(1, few)
        fast, same_sound = shots(1, many)
        assert np.array_equal(sound, same_sound)
        difference = np.abs(fast[:, 1::3].astype(int) - slow)
        assert difference.max() <= 1, (few, many)


@pytest.mark.parametrize("fps, sides", [(5, [1, -1] * 4), (10, [1, 1, -1, -1] * 2)])
def test_shake_jumps_five_times_a_second_at_any_frame_rate(fps, sides):
    seconds = (np.arange(8) + 0.5) / fps
    pose = action_motion("Shake", np.full(8, 0.25), seconds, tilt=0)
    assert np.sign(pose.x).tolist() == sides


def motion_and_loudness(tiring):
    """How much the picture changes, and how loud it is, in each quarter of a shot: (10, 4) each."""
    frames, sound = shots(4, tiring=tiring)
    change = np.abs(np.diff(frames.astype(np.int16), axis=1, append=frames[:, -1:]))
    motion = change.mean((2, 3, 4)).reshape(10, 4, -1).mean(2)
    return motion, sound.reshape(10, 4, -1).std(2)


@pytest.fixture(scope="module")
def rested():
    return motion_and_loudness(tiring=0.0)


def test_an_actor_tires_over_a_shot_and_rests_before_the_next_one(rested):
    """Motion and loudness fall in a line. A turn has no size, so a tired Spin is only quieter."""
    motion, loudness = rested
    tired_motion, tired_loudness = motion_and_loudness(tiring=0.8)
    spin = ACTIONS.index("Spin")
    assert np.array_equal(tired_motion[spin], motion[spin])
    motion_left = np.delete(tired_motion / motion, spin, axis=0)
    for left in (motion_left, tired_loudness / loudness):
        assert (np.diff(left, axis=1) < 0).all()
        # Of the loudness a little more is left, since the place and the lead do not tire.
        assert left.mean(0) == pytest.approx([0.9, 0.7, 0.5, 0.3], abs=0.15)


def test_nobody_tires_unless_that_is_asked_for(rested):
    for measured in rested:
        first, _, _, last = measured.mean(0)
        assert last == pytest.approx(first, rel=0.1)


@pytest.mark.parametrize(
    "flags, problem",
    [
        ("--fps 7", "--fps 7: must be a multiple of 5, so that a snippet of 1.6 s has whole"),
        ("--fps 0", "--fps 0: must be above 0"),
        ("--gop 3", "--gop 3: must be one of 1, 2, 4, 8, so that a group of pictures begins"),
        ("--tiring 1.5", "--tiring 1.5: must be from 0 to 1"),
        ("--tiring nan", "--tiring nan: must be from 0 to 1"),
    ],
)
def test_what_the_toy_world_refuses(tmp_path, flags, problem):
    assert refused("media", "toy", tmp_path / "new", *flags.split()).startswith(problem)
    assert not list(tmp_path.iterdir())
