"""Collections of films and shows: their titles, and what their files hold.

A source is a folder or a list. Every entry of a folder is a title: a file is a film, and a
folder is a show, whose files are stitched in name order. Every line of a list, LIST.txt, is
a title: a path, relative to the list's own folder, or a URL, or several of them separated by
tabs (a show).

n is a title, m a snippet in it, M_n the number of snippets of title n.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
from tqdm import tqdm

from harness.errors import BadInput, printable
from harness.files import atomic_write, in_own_process, usable_cores
from media.reader import Reader
from media.scenes import find_scenes

MEDIA = frozenset(
    ".3gp .asf .avi .divx .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf "
    ".ogg .ogm .ogv .ts .vob .webm .wmv".split()
)
CONTENTS = "films (files) and shows (folders of files)"  # for messages

# The problem of a file without packets for most of its time.
JUMPS = "its clock jumps; copy it with a new one: ffmpeg -fflags +genpts -i FILE -c copy NEW.mkv"

# A higher number makes results stale that earlier versions have stored.
INDEX_VERSION = 2
SCENES_VERSION = 1

# Files that are probed at a time: FFmpeg mostly waits, and it does not hold Python's lock.
PROBES = 32

# Seconds: results that take hours to work out are written this often.
WRITE_EVERY = 60

# `check` reports a show that loses this share of its hours because its files are short.
NOTABLE = 0.1


# -------------------------------------------------------------------------------------
# Titles
# -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Collection:
    """The titles of a source that can be used, and what was found in all its files.

    names    names[n]: the entry of the folder, or the line of the list
    parts    parts[n]: [(path, start in s, whole snippets)] of its usable files, in order; a snippet
             lies in one file
    skipped  [(path, problem)] of files, and of titles without files, that cannot be used

    all_titles  [(name, [path])] of all titles and files, usable or not
    index       {path: FileInfo} of all files
    """

    names: list
    parts: list
    skipped: list
    all_titles: list
    index: dict

    @property
    def counts(self):
        """M_n of each title: how many whole snippets its video and its sound both last."""
        return [sum(count for _, _, count in part) for part in self.parts]


def read_collection(source, fmt, language=None, quiet=True, require_language=False, stride=None):
    """Return the Collection of a folder or a list.

    language          the audio track to prefer, see `Reader`
    quiet             whether to hide the progress bar
    require_language  whether to skip the files that have no audio track of `language`
    stride            seconds between the beginnings of neighbouring snippets; default a snippet
    Raises BadInput if the source does not exist or no file in it can be used.
    """
    titles = list_titles(os.fspath(source))
    all_paths = [path for _, paths in titles for path in paths]
    index = index_files(all_paths, source, language, quiet, require_language)
    collection = Collection(names=[], parts=[], skipped=[], all_titles=titles, index=index)
    for name, paths in titles:
        if not paths:
            collection.skipped.append((name, "no media files in it"))
        part, skipped = split_files(paths, index, fmt, stride)
        collection.skipped += skipped
        if part:
            collection.names.append(name)
            collection.parts.append(part)
    if not collection.names:
        path, problem = collection.skipped[0]
        raise BadInput(
            f"{source}: nothing in it can be used, {len(collection.skipped)} skipped; "
            f"{path}: {problem}. A file needs video and sound of {fmt.seconds:g} s or more; "
            "join files that are shorter"
        )
    return collection


def split_files(paths, index, fmt, stride=None):
    """Return (the part of a title, [(path, problem)] of its files that cannot be used)."""
    part = []
    skipped = []
    for path in paths:
        info = index[path]
        count = fmt.whole_snippets(info.end - info.start, stride)
        if count > 0:
            part.append((path, info.start, count))
        elif info.problem is not None:
            skipped.append((path, info.problem))
        else:
            skipped.append((path, f"shorter than a snippet of {fmt.seconds:g} s"))
    return part, skipped


def list_titles(source):
    """Return [(name, [path or URL of each file])] of the titles of a folder or a list.

    Raises BadInput if the source is neither, holds no title, or has a file twice: a film could
    then be trained on and held out, and would be a negative of itself.
    """
    if os.path.isdir(source):
        titles = titles_of_folder(source)
    elif os.path.isfile(source) and source.endswith(".txt"):
        titles = titles_of_list(source)
    elif os.path.isfile(source) and has_media_extension(source):
        folder = os.path.dirname(source) or "."
        raise BadInput(
            f"{source}: is a file and not a collection; name its folder, {folder}, "
            f"or look at this file with: python -m lab.show {source}"
        )
    else:
        raise BadInput(
            f"{source}: no such folder or LIST.txt; name a folder that holds {CONTENTS}, "
            "or a list of their paths or URLs"
        )
    if not titles:
        raise BadInput(f"{source}: no media files in it; it should hold {CONTENTS}")
    check_distinct([path for _, paths in titles for path in paths], source)
    return titles


def check_distinct(paths, source):
    """Raise BadInput for the first path, or URL, that leads to the same file as one before it."""
    before = {}
    for path in paths:
        file = identity(path)
        if file in before:
            also = "" if before[file] == path else f" (also as {before[file]})"
            raise BadInput(
                f"{path}: twice in {source}{also}; a file can be of one title only, so remove one"
            )
        before[file] = path


def identity(path):
    """Return what is the same for two paths if they lead to one file, also by links of any kind."""
    if "://" in path:
        return path
    with contextlib.suppress(OSError):
        status = os.stat(path)
        if status.st_ino:  # Some file systems have no such number.
            return status.st_dev, status.st_ino
    return os.path.realpath(path)


def titles_of_folder(source):
    """Each entry that is a media file or has one below it is a title."""
    titles = []
    for name in sorted(os.listdir(source)):
        if name.startswith("."):
            continue
        paths = media_files(os.path.join(source, name))
        if paths:
            titles.append((name, paths))
    return titles


def titles_of_list(source):
    """Each line that is not blank is a title, even one that has no files."""
    folder = os.path.dirname(source)
    titles = []
    # An editor may have put a byte order mark in front, which is no part of the first path.
    # A path need not be valid UTF-8, and "surrogateescape" gives its bytes back to the system.
    with open(source, encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = file.read().split("\n")
    if any("\0" in line for line in lines):
        raise BadInput(f"{source}: is not a list in UTF-8; save it as UTF-8, not as UTF-16")
    for line in lines:
        if not line.strip():
            continue
        paths = []
        for entry in line.split("\t"):
            if "://" in entry:
                paths.append(entry)
            elif entry:
                paths += media_files(os.path.join(folder, entry), listed=True)
        titles.append((line, paths))
    return titles


def media_files(path, listed=False):
    """Return the files of a title in name order: a film, or all below a show's folder.

    listed  whether a list names the path: a film may then have any extension
    """
    if os.path.isdir(path):
        return files_below(path)
    if listed or may_be_film(path):
        return [path]
    return []


def files_below(folder):
    """Return the media files below a folder, in name order.

    Links are followed, but no folder is listed twice. A folder that cannot be read stands for what
    is in it, so that `probe` says why.
    """
    files = []
    seen = set()
    walk = os.walk(folder, followlinks=True, onerror=lambda error: files.append(error.filename))
    for path, subfolders, names in walk:
        real_path = os.path.realpath(path)
        if real_path in seen:
            # A link leads in a circle, or to a folder that we have listed already.
            subfolders.clear()
            continue
        seen.add(real_path)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            file = os.path.join(path, name)
            if not name.startswith(".") and may_be_film(file):
                files.append(file)
    return sorted(files, key=lambda file: file.split(os.sep))


def may_be_film(path):
    """Whether the extension says so; or a link to nothing, as to a show on a disc that is away."""
    return has_media_extension(path) or not os.path.exists(path)


def has_media_extension(path):
    return os.path.splitext(path)[1].lower() in MEDIA


def collection_name(data):
    """Return the name of a collection: its folder's or its list's.

    A folder called films is named after the folder that it is in, as in a toy world.
    """
    path = Path(data).resolve()
    if path.name == "films":
        path = path.parent
    return path.name.removesuffix(".txt")


# -------------------------------------------------------------------------------------
# The index: what is in each file
# -------------------------------------------------------------------------------------


class FileInfo(NamedTuple):
    """What `probe` found in a file. The index on disk has it as a list, in this order."""

    start: float  # seconds: when both the video and the sound have begun
    end: float  # seconds: when the first of the two ends
    problem: str | None  # why the file cannot be used
    video: str  # codec, size and frame rate in words; empty without video
    audio: str  # codec, rate and layout in words; empty without sound


def probe(path, language=None, require_language=False):
    """Return the FileInfo of a path or URL. Errors are not raised but reported in it.

    require_language  whether a file without an audio track of `language` has a problem
    """
    video = audio = ""
    try:
        if os.path.isdir(path):
            os.listdir(path)  # raises what keeps it from being read
        if os.path.exists(path) and not os.path.isfile(path):
            return FileInfo(0, 0, "not a file", video, audio)
        with contextlib.closing(Reader(path, language)) as reader:
            if reader.video is not None:
                video = describe_video(reader.video)
            if reader.audio is not None:
                audio = describe_audio(reader.audio)
            if reader.video is None:
                return FileInfo(0, 0, "no video", video, audio)
            if reader.audio is None:
                return FileInfo(0, 0, "no sound", video, audio)
            if require_language and reader.audio.language != language:
                tags = in_words(language_tags(reader))
                problem = f"no audio track tagged {language} (it has: {tags})"
                return FileInfo(0, 0, problem, video, audio)
            streams = (reader.video, reader.audio)
            start, end = reader.span(*streams)
            if reader.clock_jumps(streams, start, end):
                return FileInfo(0, 0, JUMPS, video, audio)
            return FileInfo(start, end, None, video, audio)
    except BadInput as error:
        problem = str(error).removeprefix(f"{path}: ")
    except (av.error.FFmpegError, OSError) as error:
        problem = str(error.strerror or error)
    except MemoryError:
        raise
    except Exception as error:
        # Nobody foresaw it, and one file should not keep all others from being used.
        problem = f"{type(error).__name__}: {error}"
    return FileInfo(0, 0, problem, video, audio)


def language_tags(reader):
    """Return the language that each audio track of an open file is tagged with, in order."""
    tags = []
    for stream in reader.usable_streams("audio"):
        tag = stream.language
        if tag in (None, "und"):  # "Undetermined", as mp4 says it.
            tag = "untagged"
        tags.append(tag)
    return tags


def describe_video(stream):
    frame_rate = float(stream.average_rate or 0)
    codec = stream.codec.canonical_name
    return f"{codec} {stream.width}x{stream.height} {frame_rate:.5g}/s"


def describe_audio(stream):
    return f"{stream.codec.canonical_name} {stream.rate} Hz {stream.layout.name}"


def index_files(paths, source, language=None, quiet=True, require_language=False):
    """Return {path: FileInfo}. A file with a problem is probed again at each call.

    Raises BadInput if a language is required and none is given.
    """
    depends_on = [*identify(source), language, INDEX_VERSION]
    if require_language:
        if language is None:
            raise BadInput("--require-language: which one? Add --language, as in --language eng")
        depends_on.append("require_language")
    results = cached(
        depends_on=depends_on,
        paths=paths,
        work=partial(probe, language=language, require_language=require_language),
        workers=PROBES,
        progress=partial(tqdm, desc=f"index {source}", disable=quiet, unit="file"),
        worth_keeping=lambda info: FileInfo(*info).problem is None,
    )
    return {path: FileInfo(*info) for path, info in results.items()}


def identify(source):
    """Return what tells this source, as it is given here, from others.

    Two folders may be given by the same relative path. And the paths of files, by which
    results are stored, begin with the source as it is given.
    """
    return [os.path.abspath(source), os.fspath(source)]


def index_scenes(parts, source, fmt, log_mel, language=None, quiet=True):
    """Return {path: lengths of its scenes, in snippets and in order} of all files in `parts`.

    log_mel  see `find_scenes`; it is sent to other processes, so it can be pickled

    Every file is read from start to end, on all cores that this process may use. One that cannot
    be read counts as a single scene.
    """
    snippets = {}  # {path: (when the first begins in s, how many there are)}
    for part in parts:
        for path, start, count in part:
            snippets[path] = (start, count)
    settings = [fmt.frames, fmt.fps, fmt.rate, fmt.n_fft, fmt.hop, fmt.mels]
    results = cached(
        depends_on=["scenes", *identify(source), language, *settings, SCENES_VERSION],
        paths=list(snippets),
        work=partial(scene_lengths, snippets=snippets, fmt=fmt, log_mel=log_mel, language=language),
        workers=usable_cores(),
        progress=partial(tqdm, desc=f"scenes {source}", disable=quiet, unit="file"),
        worth_keeping=lambda lengths: lengths is not None,
    )
    index = {}
    for path, (_, count) in snippets.items():
        lengths = results[path]
        if lengths is None or sum(lengths) != count:
            lengths = [count]
        index[path] = lengths
    return index


def scene_lengths(path, snippets, fmt, log_mel, language):
    """Return the lengths of a file's scenes, in snippets, or None if it cannot be read."""
    start, count = snippets[path]
    try:
        scenes, _, _ = in_own_process(find_scenes, path, start, count, fmt, log_mel, language)
    except BadInput as error:
        message = f"{printable(path)} counts as one scene: {printable(error)}"
        tqdm.write(message, file=sys.stderr)
        return None
    return [len(scene) for scene in scenes]


# -------------------------------------------------------------------------------------
# Results that stay valid until their file changes
# -------------------------------------------------------------------------------------


def cached(depends_on, paths, work, workers, progress, worth_keeping):
    """Return {path: work(path)}; each result is stored until its file changes.

    depends_on     JSON values: all that the results depend on besides the files
    workers        how many threads call `work`
    progress       tqdm, with the label of the bar
    worth_keeping  says whether to store a result; one that is not stored is worked out
                   again at the next call, when the user may have fixed the file
    """
    cache = cache_path(depends_on)
    # Stamps are taken before the work, so that a change during it is noticed next time.
    stamps = stamp_files(paths)
    results = load_results(cache, paths, stamps)
    new = [path for path in paths if path not in results]
    if not new:
        return results
    last_write = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        new_results = pool.map(work, new)  # in the order of `new`, as they come
        try:
            for path, result in progress(zip(new, new_results), total=len(new)):
                results[path] = result
                if time.monotonic() > last_write + WRITE_EVERY:
                    write_results(cache, results, stamps, worth_keeping)
                    last_write = time.monotonic()
        finally:
            # An interrupted call, too, stores what it has found.
            pool.shutdown(wait=False, cancel_futures=True)
            write_results(cache, results, stamps, worth_keeping)
    return results


def cache_path(depends_on):
    """Return the file in the user's cache folder that stores results with these inputs."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    name = hashlib.sha256(json.dumps(depends_on).encode()).hexdigest()[:16]
    return folder / "watching-television" / f"{name}.json"


def stamp_files(paths):
    """Return {path: [size, time of the last change]}, from which a change shows.

    A URL has None, and a file that is not there has no entry.
    """
    stamps = {}
    for path in paths:
        if "://" in path:
            stamps[path] = None
            continue
        with contextlib.suppress(OSError):
            status = os.stat(path)
            stamps[path] = [status.st_size, status.st_mtime_ns]
    return stamps


def load_results(cache, paths, stamps):
    """Return {path: stored result} of the files that have not changed since."""
    stored = {}
    with contextlib.suppress(OSError, ValueError):
        stored = json.loads(cache.read_text())
    results = {}
    for path in paths:
        if path in stored and path in stamps:
            stamp, result = stored[path]
            if stamp == stamps[path]:
                results[path] = result
    return results


def write_results(cache, results, stamps, worth_keeping):
    """Store {path: [stamp, result]}."""
    stored = {}
    for path, result in results.items():
        if path in stamps and worth_keeping(result):
            stored[path] = [stamps[path], result]
    text = json.dumps(stored)
    # If no cache can be written, the next start takes longer, but nothing is wrong.
    with contextlib.suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        # Two processes may write this file at the same time, so the temporary names differ.
        atomic_write(cache, lambda temporary: temporary.write_text(text), mark=os.getpid())


# -------------------------------------------------------------------------------------
# A look at a collection
# -------------------------------------------------------------------------------------


def check(source, fmt, language=None, batch_size=512, require_language=False):
    """Print a table of the titles, what is skipped and why, and totals.

    The hours are those of the files, so they are a little more than the whole snippets last.

    batch_size  the global one, for the number of steps of an epoch
    The other arguments, and what is raised, are those of `read_collection`.
    """
    collection = read_collection(
        source, fmt, language, quiet=False, require_language=require_language
    )
    print_titles(collection)
    for path, problem in collection.skipped:
        print(f"skipped {printable(path)}: {problem}")
    for name, paths in collection.all_titles:
        print_lost_share(name, [collection.index[path] for path in paths], fmt)
    hours = sum(hours_of(collection, part) for part in collection.parts)
    total = sum(collection.counts)
    print(
        f"{len(collection.names)} titles, {hours:.2f} h of files, "
        f"{total} whole snippets of {fmt.seconds:g} s ({total * fmt.seconds / 3600:.2f} h), "
        f"{len(collection.skipped)} skipped; {total // batch_size} steps an epoch in batches "
        f"of {batch_size}, if it trains on all titles (pretrain.py holds 10 % of them out)"
    )


def print_titles(collection):
    """Print a row for each title: its hours, snippets, files, codecs and sizes."""
    print(f"{'hours':>7} {'M_n':>6} {'files':>5}  {'video':<28} {'audio':<28} title")
    for name, part, count in zip(collection.names, collection.parts, collection.counts):
        files = [collection.index[path] for path, _, _ in part]
        hours = hours_of(collection, part)
        video = in_words([file.video for file in files])
        audio = in_words([file.audio for file in files])
        print(f"{hours:7.2f} {count:6} {len(part):5}  {video:<28} {audio:<28} {printable(name)}")


def hours_of(collection, part):
    """How long the files of a title last, as far as both the video and the sound do."""
    files = [collection.index[path] for path, _, _ in part]
    return sum(file.end - file.start for file in files) / 3600


def in_words(descriptions):
    """Each description once, in the order in which they first occur."""
    return ", ".join(dict.fromkeys(descriptions))


def print_lost_share(name, files, fmt):
    """Report a show of which much is lost because its files are short segments.

    Each file holds whole snippets only. In a segment of 5 s, as HLS has them, one snippet of
    3.2 s finds room, and the other 1.8 s are lost.
    """
    lengths = [file.end - file.start for file in files if file.problem is None]
    total = sum(lengths)
    snippets = sum(fmt.whole_snippets(seconds) for seconds in lengths)
    if fmt.whole_snippets(total) == snippets:
        return  # In one file, too, it would have no more.
    lost = 1 - snippets * fmt.seconds / total
    if lost < NOTABLE:
        return
    print(
        f"{printable(name)}: {100 * lost:.0f} % of its {total / 3600:.2f} h is lost, because its "
        f"{len(lengths)} files are short and each holds whole snippets of {fmt.seconds:g} s "
        "only; join them into one before you prepare or train: "
        "ffmpeg -f concat -safe 0 -i FILES.txt -c copy TITLE.mkv, "
        "where FILES.txt has a line for each: file 'PATH'"
    )
