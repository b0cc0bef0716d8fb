"""Scenes: where the place of a film and its ambience change.

Two things last through a scene, whatever people do and say in it: its place and its ambience.
The place that a snippet shows is measured as a picture of 16 x 16 pixels, the median of its
frames at each pixel. Its ambience is measured as a level for each mel filter, which the filter
exceeds for 95 % of the time.

A scene begins where the novelty has a peak, as in Foote (2000), "Automatic audio
segmentation using a measure of audio novelty", but measured on frames and sound together:
the snippets before it are alike, those after it are alike, and the two groups differ. REACH,
NOVEL and APART were chosen on the toy world of seed 0.

M is the number of snippets of a file, P that of mel filters, Q that of audio frames; c
snippets are read at a time, each of T frames and S samples.
"""

import contextlib
import itertools
from functools import partial

import numpy as np

from harness.errors import BadInput
from media.reader import Reader, read_film

REACH = 8  # snippets on each side of a boundary that are compared, near ones the most
NOVEL = 0.35  # least novelty of a boundary: 0 is no change, 2 is two opposite sides
APART = 3  # least snippets of a scene

SIDE = 16  # pixels, both ways, of the picture of a place


def find_scenes(path, start, count, fmt, log_mel, language=None):
    """Find the scenes of a file whose `count` snippets begin at `start` (s).

    log_mel  turns waveforms, float32 (c, S), into log-mel spectrograms, an array (c, P, Q)

    Returns (the scenes as ranges of snippets, the novelty (M,), a list of M pictures
    (16, 16, 3)). A snippet that cannot be read counts as the one before it. Raises BadInput
    if none can be read.
    """
    places, ambiences = describe_snippets(path, start, count, fmt, log_mel, language)
    novelty = measure_novelty(np.stack(places).reshape(count, -1), np.stack(ambiences))
    edges = [0, *pick_peaks(novelty), count]
    scenes = [range(first, last) for first, last in itertools.pairwise(edges)]
    return scenes, novelty, places


def describe_snippets(path, start, count, fmt, log_mel, language):
    """Return (M pictures of places (16, 16, 3), M ambiences (P,)), both as lists."""
    places = []
    ambiences = []
    unread = 0  # snippets before the first that can be read
    with contextlib.closing(Reader(path, language)) as reader:
        squeeze = partial(reader.squeeze, width=SIDE, height=SIDE)
        for images, waveform in read_film(reader, start, count, fmt, squeeze):
            if images is not None:
                places += places_of(images, fmt)
                ambiences += ambiences_of(waveform, fmt, log_mel)
            elif places:
                places.append(places[-1])
                ambiences.append(ambiences[-1])
            else:
                unread += 1
    if not places:
        raise BadInput(f"{path}: no snippet in it can be read; replace the file or remove it")
    # Nothing came before these, so the first snippet that can be read stands in for them.
    places = [places[0]] * unread + places
    ambiences = [ambiences[0]] * unread + ambiences
    return places, ambiences


def places_of(images, fmt):
    """Images of c * T frames -> the place of each snippet, c pictures (16, 16, 3)."""
    starts = range(0, len(images), fmt.frames)
    return [np.median(images[i : i + fmt.frames], axis=0) for i in starts]


def ambiences_of(waveform, fmt, log_mel):
    """Waveform (c * S,) -> the ambience of each snippet, c arrays (P,)."""
    spectrograms = log_mel(waveform.reshape(-1, fmt.samples))  # (c, P, Q)
    return list(np.quantile(spectrograms, 0.05, axis=2))


def measure_novelty(*features):
    """Arrays (M, d), one for each feature -> novelty (M,): how new is what begins at m.

    The similarity of two snippets is the cosine of their features, averaged over the features.
    The novelty at m is how much more similar the snippets around m are to those of their own
    side than to those of the other side. Snippets near m count more, by a Gaussian. This is
    Foote's checkerboard kernel.
    """
    features = [normalise(feature) for feature in features]
    M = len(features[0])
    novelty = np.zeros(M)
    for m in range(1, M):
        first = max(0, m - REACH)
        last = min(M, m + REACH) - 1
        near = np.arange(first, last + 1)
        offset = near + 0.5 - m  # of a snippet's middle from the boundary, in snippets
        weight = np.exp(-2 * (offset / REACH) ** 2)
        weights = np.outer(weight, weight)
        before = offset < 0
        same_side = np.equal.outer(before, before)
        cosines = sum(feature[near] @ feature[near].T for feature in features)
        similarity = cosines / len(features)  # (2 REACH, 2 REACH), less at the file's ends
        within = np.average(similarity, weights=weights * same_side)
        across = np.average(similarity, weights=weights * ~same_side)
        novelty[m] = within - across
    return novelty


def normalise(feature):
    """(M, d) -> (M, d): each column is standardised, then each row gets length 1.

    A small constant keeps a nearly constant column from being blown up.
    """
    spread = feature.std(0) + 1e-3 * feature.std() + 1e-9
    standardised = (feature - feature.mean(0)) / spread
    return standardised / (np.linalg.norm(standardised, axis=1, keepdims=True) + 1e-9)


def pick_peaks(novelty):
    """Novelty (M,) -> the snippets with which a scene begins, except for the file's first.

    A peak is NOVEL or higher, and no snippet nearer than APART is higher. Of equal ones that
    are nearer than APART the first counts.
    """
    peaks = []
    previous = 0
    for m in range(APART, len(novelty) - APART + 1):
        highest = novelty[m - APART + 1 : m + APART].max()
        is_peak = novelty[m] >= max(NOVEL, highest)
        if is_peak and m - previous >= APART:
            peaks.append(m)
            previous = m
    return peaks
