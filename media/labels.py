"""The labelled sets, each read in the layout in which its authors publish it.

Each function takes (root, split, train): the folder, the number of the split, and True for
the half to train on or False for the half to test on. It returns [(path, label)] and the
names of the classes. It raises BadInput, with the layout that it expects, for a list that
is missing or not as published. Whether the listed clips exist is not checked here. A set that is
published without lists has its folders instead, and they must be whole.
"""

import collections
import contextlib
import csv
import re
from pathlib import Path

from harness.errors import BadInput

TREES = {
    "ucf101": """
  UCF-101/Archery/v_Archery_g01_c01.avi ...              a folder for each class
  ucfTrainTestlist/classInd.txt                          "3 Archery"
  ucfTrainTestlist/trainlist01.txt ... testlist03.txt    "Archery/v_Archery_g08_c01.avi 3"
""",
    "hmdb51": """
  hmdb51_org/brush_hair/*.avi ...                        a folder for each class, unpacked
  testTrainMulti_7030_splits/*_test_split1.txt ...       "NAME.avi 1": 1 train, 2 test, 0 neither
""",
    "esc50": """
  audio/1-100032-A-0.wav ...
  meta/esc50.csv                                         columns filename, fold, target, category
""",
    "dcase2014": """
  scenes_stereo/bus01.wav ...                            to train on: 10 of each of 10 classes
  scenes_stereo_testset/bus01.wav ...                    to test on: as many; CLASS and two digits
""",
}


@contextlib.contextmanager
def published(name, root):
    """Turn whatever is missing or unexpected in a set's lists into BadInput with its tree."""
    expected = f"{root} should hold:{TREES[name].rstrip()}"
    try:
        yield
    except OSError as error:
        raise BadInput(f"{error.filename}: {error.strerror}. {expected}") from error
    except (IndexError, KeyError, ValueError) as error:
        why = f"{root}: its lists are not as published ({error!r})"
        raise BadInput(f"{why}. {expected}") from error


def read_lines(path):
    """The lines of a file that are not blank, without the space around them."""
    # A byte order mark is no part of the first line.
    lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    return [line for line in lines if line]


def ucf101(root, split, train):
    """Return [(path, label)] and class names of UCF101, by the official split 1, 2 or 3."""
    root = Path(root)
    half = "train" if train else "test"
    with published("ucf101", root):
        class_lines = read_lines(root / "ucfTrainTestlist/classInd.txt")
        names = [line.split(maxsplit=1)[1] for line in class_lines]  # "3 Archery"
        items = []
        for file in read_lines(root / f"ucfTrainTestlist/{half}list{split:02d}.txt"):
            if train:
                file, _ = file.rsplit(maxsplit=1)  # The label follows the file.
            label = names.index(file.split("/")[0])
            items.append((root / "UCF-101" / file, label))
    return items, names


def hmdb51(root, split, train):
    """Return [(path, label)] and class names of HMDB51, by the official split 1, 2 or 3.

    Of each class 70 clips are to train on and 30 to test on.
    """
    root = Path(root)
    folder = root / "testTrainMulti_7030_splits"
    ending = f"_test_split{split}.txt"
    half = "1" if train else "2"  # as the lists mark it
    with published("hmdb51", root):
        names = sorted(path.name.removesuffix(ending) for path in folder.glob("*" + ending))
        if not names:
            # No list is there. This class is published, so the error below names its list.
            names = ["brush_hair"]
        items = []
        for label, name in enumerate(names):
            for line in read_lines(folder / (name + ending)):
                file, mark = line.rsplit(maxsplit=1)
                if mark == half:
                    items.append((root / "hmdb51_org" / name / file, label))
    return items, names


def esc50(root, split, train):
    """Return [(path, label)] and class names of ESC-50.

    Of its five folds number `split` is to test on, and the others are to train on.
    """
    root = Path(root)
    with published("esc50", root):
        items = []
        name_of = {}
        for row in csv.DictReader(read_lines(root / "meta/esc50.csv")):
            label = int(row["target"])
            name_of[label] = row["category"]
            fold = int(row["fold"])
            if not 1 <= fold <= 5:
                raise ValueError(f"fold {fold}, of 1 to 5")
            for_training = fold != split
            if for_training == train:
                items.append((root / "audio" / row["filename"], label))
        if sorted(name_of) != list(range(len(name_of))):
            raise ValueError("a target is missing, of those from 0 to the highest")
    return items, [name_of[label] for label in sorted(name_of)]


def dcase2014(root, split, train):
    """Return [(path, label)] and class names of DCASE2014: the scenes of the challenge of 2013.

    It has one split, 1: a folder to train on, and a folder to test on.
    """
    root = Path(root)
    folder = "scenes_stereo" if train else "scenes_stereo_testset"
    with published("dcase2014", root):
        names = sorted({name for _, name in read_scenes(root / "scenes_stereo")})
        items = [(path, names.index(name)) for path, name in read_scenes(root / folder)]
    return items, names


def read_scenes(folder):
    """Return [(path, class)] of a folder of DCASE2014, by name: "bus01.wav" is a bus.

    Raises ValueError unless it has 10 sounds of each of 10 classes, since no list tells whether
    one is missing.
    """
    items = []
    for path in sorted(folder.iterdir()):
        found = re.fullmatch("([a-z]+)[0-9]{2}[.]wav", path.name)
        if found:
            items.append((path, found[1]))
    counts = collections.Counter(name for _, name in items)
    if len(counts) != 10 or set(counts.values()) != {10}:
        found = ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
        raise ValueError(f"{folder.name} has {found}")
    return items


LAYOUTS = {"ucf101": ucf101, "hmdb51": hmdb51, "esc50": esc50, "dcase2014": dcase2014}
SOUNDS = ("esc50", "dcase2014")  # sets of sounds; the others are sets of videos
