"""Tests of the toy world's shows: what their episodes share, and what they do not."""

import json

import numpy as np

from media.collection import read_collection
from media.reader import Reader
from media.toy import TOY_FORMAT


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
