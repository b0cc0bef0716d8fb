"""The toy world: small films made by a law, to see the paper's claim on a laptop.

    title    A hidden factor sets the colour grade *and* the key of the music. Another
             sets the hue of the lead *and* the pitch of its voice. All episodes of a show
             share them, and the music, the voice and the lead.
    scene    A place, its texture *and* its ambience, for 4-20 snippets; three actions;
             in a share of the scenes the music plays.
    shot     2-5 snippets, fewer at a scene's end, that carry one action on: same object,
             tempo, running phase.
    action   One of ten, a motion *and* its sound, in step. The labelled sets ask for it.
             With `tiring`, both grow weaker over the shot: an arrow of time.

One law ties grade to key, and hue to voice, in all titles. So "which film is this" solves
k = 1, also on films never seen, and says nothing about actions. Within a scene only the
action, its tempo and its phase are left.

The same seed gives the same bytes, so the order of the random draws is part of the law.

F frames of H x W pixels, RGB from 0 to 1; S samples of mono sound in [-1, 1]. A loop is a
sound of 3.2 s that is repeated.
"""

import dataclasses
import json
import tempfile
import wave
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from harness.errors import BadInput
from harness.files import usable_cores
from media.format import Format
from media.prepare import check_gop, write_media

ACTIONS = (
    "Bounce",
    "Swing",
    "Spin",
    "Pulse",
    "Flash",
    "Rise",
    "Fall",
    "Shake",
    "Approach",
    "Collide",
)

TOY_FPS = 5  # frames a second, if no others are asked for
TOY_SIZE = 40  # pixels, H = W
TOY_RATE = 16000  # samples a second
TOY_FRAMES = 8  # frames of a snippet, which so lasts 1.6 s
TOY_SAMPLES = TOY_FRAMES * TOY_RATE // TOY_FPS  # samples of a snippet
TOY_FORMAT = Format(frames=TOY_FRAMES, fps=TOY_FPS, rate=TOY_RATE)

# When each sample of a loop is heard, in seconds: (51200,).
LOOP_TIMES = np.arange(3.2 * TOY_RATE, dtype=np.float32) / TOY_RATE


# ----------------------------------------------------------------------------------------
# An action: a motion and its sound, which follow one phase, in cycles. The fraction of the
# phase, u, is 0 at the event, and near 1 just before the next one.
# ----------------------------------------------------------------------------------------


@dataclasses.dataclass
class Pose:
    """How an object stands in each frame: arrays (F,), or one number for all frames."""

    turn: float | np.ndarray  # in cycles
    x: float | np.ndarray = 0  # to the right of the action's middle, in reaches
    y: float | np.ndarray = 0  # below it, in reaches
    size: float | np.ndarray = 1  # factor of the object's own size
    light: float | np.ndarray = 1  # opacity; 0 is invisible


def action_motion(action, phase, seconds, tilt):
    """Return the Pose of an object at each phase (F,).

    seconds  (F,) since the shot began, at the same frames
    tilt     in cycles
    """
    u = phase % 1
    swell = np.sin(2 * np.pi * phase)
    pose = Pose(turn=tilt)
    match action:
        case "Bounce":  # It flies in a parabola and is on the ground at u = 0.
            pose.y = 1 - 8 * u * (1 - u)
        case "Swing":  # It is fastest and lowest at u = 0 and u = 1/2.
            pose.x = swell
            pose.y = 0.4 - 0.8 * swell**2
        case "Spin":  # After half a turn a bar looks the same, so that is a cycle.
            pose.turn = phase / 2
        case "Pulse":
            pose.size = 1 + 0.5 * swell
        case "Flash":  # It is on in the first half.
            pose.light = u < 0.5
        case "Rise":
            pose.y = 1 - 2 * u
        case "Fall":
            pose.y = 2 * u - 1
        case "Shake":  # It jumps to the other side every 0.2 s, at any frame rate; first half.
            pose.x = 0.4 * (-1.0) ** np.floor(5 * seconds) * (u < 0.5)
        case "Approach":
            pose.size = 0.4 * 5**u
        case "Collide":  # A second object is at -x, and they touch at u = 0.
            pose.x = 0.4 + 0.8 * (1 - abs(2 * u - 1))
    return pose


def tired(pose, strength):
    """Return a Pose that is nearer to rest: in the middle, of the object's own size, fully lit.

    strength  (F,) share of the motion that is left

    A turn has no size, so Spin tires in its sound only.
    """
    return Pose(
        turn=pose.turn,
        x=strength * pose.x,
        y=strength * pose.y,
        size=1 + strength * (pose.size - 1),
        light=1 + strength * (pose.light - 1),
    )


def action_sound(rng, action, phase, tempo, pitch):
    """Return the sound (S,) at each phase (S,), by the same u as the motion.

    tempo  cycles a second
    pitch  a factor around the action's own pitch
    """
    u = (phase % 1).astype(np.float32)
    since = u / tempo  # seconds since the event
    swell = np.sin(2 * np.pi * u)
    fade = np.minimum(1, 12 * np.minimum(u, 1 - u))
    match action:
        case "Bounce":  # a thud
            return 2 * np.sin(2 * np.pi * 110 * pitch * since) * np.exp(-since / 0.1)
        case "Swing":  # a whoosh
            smooth = np.full(12, 0.25, np.float32)
            return np.convolve(hiss(rng, u), smooth, "same") * (1 - swell**2) ** 2
        case "Spin":  # a tone that comes and goes
            return np.tanh(3 * tone(220, pitch, u)) * (1 - np.cos(2 * np.pi * u)) / 2
        case "Pulse":  # a vibrato
            return tone(600 * 2 ** (0.4 * swell), pitch, u)
        case "Flash":  # a beep
            return tone(1800, pitch, u) * (u < 0.5)
        case "Rise":
            return tone(400 * 2 ** (1.5 * u), pitch, u) * fade
        case "Fall":
            return tone(400 * 2 ** (1.5 - 1.5 * u), pitch, u) * fade
        case "Shake":  # a rattle
            clack = (13 * since) % 1  # the phase of 13 clacks a second
            return 1.4 * hiss(rng, u) * (u < 0.5) * np.exp(-6 * clack)
        case "Approach":  # a crescendo
            return 1.5 * np.tanh(3 * tone(130, pitch, u)) * u**2
        case "Collide":  # a click
            return 2 * hiss(rng, u) * np.exp(-since / 0.03)


def tone(hz, pitch, like):
    """A sine (S,) of `hz` x `pitch`, as long as the array `like` (S,).

    hz  one frequency, or one for each sample
    """
    cycles_a_sample = np.broadcast_to(hz * pitch / TOY_RATE, like.shape)
    cycles = np.cumsum(cycles_a_sample, dtype=np.float64)
    return np.sin(2 * np.pi * (cycles % 1).astype(np.float32))


def hiss(rng, like):
    """White noise (S,), as long as the array `like` (S,)."""
    return rng.standard_normal(len(like), np.float32)


# ----------------------------------------------------------------------------------------
# Painting
# ----------------------------------------------------------------------------------------


class Look(NamedTuple):
    """What an object looks like."""

    aspect: float  # its width as a share of its length
    boxy: float  # from 0, an ellipse, to 1, a box
    colour: np.ndarray  # (3,)


def rgb(hue):
    """The pure colour (3,) of a hue in cycles: 0 is red, 1/3 green, 2/3 blue."""
    return (0.5 + 0.5 * np.cos(2 * np.pi * (hue - np.arange(3) / 3))).astype(np.float32)


def paint(frames, look, x, y, half, turn, light):
    """Lay a soft-edged object over frames (F, H, W, 3), in place.

    x, y   its middle, in pixels
    half   half of its length, in pixels
    turn   in cycles
    light  opacity
    Each is an array (F,), or one number for all frames.
    """
    pixel = np.arange(TOY_SIZE, dtype=np.float32)
    dx = pixel - per_frame(x)  # (F, 1, W)
    dy = pixel[:, None] - per_frame(y)  # (F, H, 1)
    angle = 2 * np.pi * per_frame(turn)
    along = abs(np.cos(angle) * dx + np.sin(angle) * dy)  # (F, H, W)
    across = abs(np.cos(angle) * dy - np.sin(angle) * dx) / look.aspect
    box = np.maximum(along, across)
    ellipse = np.hypot(along, across)
    distance = look.boxy * box + (1 - look.boxy) * ellipse
    inside = np.clip((per_frame(half) - distance) * look.aspect + 0.5, 0, 1)
    opacity = per_frame(light) * inside
    frames += opacity[..., None] * (look.colour - frames)


def per_frame(value):
    """A number or (F,) -> (1, 1, 1) or (F, 1, 1), to be combined with (F, H, W)."""
    return np.asarray(value, np.float32).reshape(-1, 1, 1)


# ----------------------------------------------------------------------------------------
# What a film is made of
# ----------------------------------------------------------------------------------------


class TitleTraits(NamedTuple):
    """What stays the same in all of a film."""

    factor: float  # from 0 to 1: the grade, and the key of the music
    lead: float  # from 0 to 1: the hue of the lead, and the pitch of its voice
    music: np.ndarray  # a loop
    voice: np.ndarray  # a loop
    body: Look  # the lead's


class SceneTraits(NamedTuple):
    """What stays the same in all of a scene."""

    texture: np.ndarray  # (H, W, 3)
    background: np.ndarray  # a loop: ambience, and music if it plays


def make_title(rng):
    factor, lead = rng.random(2).tolist()
    music = make_music(rng, factor)
    voice = make_voice(rng, lead)
    aspect = rng.uniform(0.4, 0.65)
    boxy = rng.random()
    body = Look(aspect, boxy, colour=0.7 * rgb(2 / 3 * lead))
    return TitleTraits(factor, lead, music, voice, body)


def make_music(rng, key):
    """The title's theme, a loop: root and fifth, held under an arpeggio.

    key  from 0 to 1, which spans two octaves
    """
    root = 220 * 4**key  # Hz
    intervals = rng.choice([0, 4, 7, 12], 8)  # semitones above the root
    # Each of the 8 notes lasts 0.4 s. Hz, at each sample:
    notes = np.repeat(root * 2 ** (intervals / 12), len(LOOP_TIMES) // 8)
    decay = np.exp(-4 * (LOOP_TIMES % 0.4))
    melody = np.sin(2 * np.pi * np.cumsum(notes) / TOY_RATE) * decay
    held_root = 0.5 * np.sin(2 * np.pi * root * LOOP_TIMES)
    # A fifth has 3/2 of the root's frequency.
    held_fifth = 0.5 * np.sin(2 * np.pi * 1.5 * root * LOOP_TIMES)
    return unit(melody + held_root + held_fifth)


def make_voice(rng, pitch):
    """The lead's voice, a loop: a buzz in syllables.

    pitch  from 0 to 1, which spans 100 to 400 Hz
    """
    fast = np.sin(2 * np.pi * (2.5 * LOOP_TIMES + rng.random()))
    slow = np.sin(2 * np.pi * (0.9375 * LOOP_TIMES + rng.random()))
    syllables = np.clip(fast + slow, 0, 1)
    buzz = np.exp(4 * np.cos(2 * np.pi * 100 * 4**pitch * LOOP_TIMES))
    return unit(buzz * syllables)


def make_scene(rng, title, artefacts):
    # Both the share and the loudness of the music grow with `artefacts`. At 0.25 half of the
    # scenes have music, at a quarter of the full loudness.
    share_with_music = artefacts**0.5
    music_plays = rng.random() < share_with_music
    texture, ambience = make_place(rng)
    background = 0.02 * ambience
    if music_plays:
        background = background + 0.15 * artefacts * title.music
    return SceneTraits(texture, background)


def make_place(rng):
    """A place: its texture (H, W, 3) and its ambience, a loop.

    The finer the texture is, the higher is the octave of the noise.
    """
    fine = rng.random()
    grid = np.linspace(0, 2 * np.pi, TOY_SIZE)
    texture = 0.2
    # Two gratings are laid over each other. The angle of one sets both its direction and where
    # its stripes begin.
    for angle in 2 * np.pi * rng.random(2):
        across = np.cos(angle) * grid + np.sin(angle) * grid[:, None]
        stripes = 2 + 8 * fine
        grating = np.sin(stripes * across + angle)
        texture = texture + 0.05 * grating[..., None] * rgb(rng.random())
    frequencies = np.fft.rfftfreq(len(LOOP_TIMES), 1 / TOY_RATE)  # Hz
    octaves = np.log2((frequencies + 1) / 200)  # above 200 Hz
    floor = 0.1  # a little noise of all octaves
    band = np.exp(-2 * (octaves - 4.5 * fine) ** 2) + floor
    noise = rng.standard_normal(len(LOOP_TIMES))
    ambience = np.fft.irfft(np.fft.rfft(noise) * band)
    return texture, unit(ambience)


def unit(loop):
    """The loop with mean 0 and standard deviation 1."""
    return ((loop - loop.mean()) / loop.std()).astype(np.float32)


def plan_film(rng, snippets):
    """Return which scene, shot and action each snippet shows: integers (snippets, 3).

    Scenes last 4-20 snippets and have three actions each, in shots of 2-5 snippets.
    """
    plan = []
    scene = 0
    shot = 0
    while len(plan) < snippets:
        end = len(plan) + rng.integers(4, 21)
        actions = rng.choice(len(ACTIONS), 3, replace=False)
        while len(plan) < end:
            action = rng.choice(actions)
            length = min(rng.integers(2, 6), end - len(plan))
            plan += [(scene, shot, action)] * length
            shot += 1
        scene += 1
    return np.array(plan[:snippets])


# ----------------------------------------------------------------------------------------
# Rendering
# ----------------------------------------------------------------------------------------


def render_film(rng, title, plan, artefacts, fmt=TOY_FORMAT, tiring=0.0):
    """Return frames (F, H, W, 3) uint8 and sound (S,) float32 of a film, or of an episode.

    title      its TitleTraits
    plan       of `plan_film`
    artefacts  strength of what betrays a title, from 0 to 1
    fmt        of `toy_format`; the sound is the same at any frame rate
    tiring     share of an action's motion and loudness that is lost at the end of a shot
    """
    frames = np.empty((len(plan) * fmt.frames, TOY_SIZE, TOY_SIZE, 3), np.float32)
    sound = np.empty(len(plan) * TOY_SAMPLES, np.float32)
    scene_number = None
    for shot_snippets in shots_of(plan):
        first = shot_snippets[0]
        after = shot_snippets[-1] + 1
        number, _, action = plan[first]
        if number != scene_number:
            scene_number = number
            scene = make_scene(rng, title, artefacts)
        # Both are views, so the shot is rendered in place.
        picture = frames[first * fmt.frames : after * fmt.frames]
        heard = sound[first * TOY_SAMPLES : after * TOY_SAMPLES]
        picture[:] = scene.texture
        heard[:] = np.resize(scene.background, len(heard))
        if rng.random() < 0.5:
            add_lead(rng, title, picture, heard)
        heard += act(rng, ACTIONS[action], picture, fmt.fps, tiring)
    add_artefacts(title, frames, sound, artefacts)
    return (255 * np.clip(frames, 0, 1)).astype(np.uint8), np.clip(sound, -1, 1)


def shots_of(plan):
    """Return the snippets of each shot: a list of arrays of integers."""
    shots = plan[:, 1]
    return [np.flatnonzero(shots == shot) for shot in np.unique(shots)]


def add_lead(rng, title, picture, heard):
    """Let the lead stand and talk in a corner, out of the action's way; in place."""
    x, y = TOY_SIZE * rng.choice([0.2, 0.8], 2)
    paint(picture, title.body, x=x, y=y, half=5, turn=0, light=1)
    begun = rng.integers(len(title.voice))
    heard += 0.05 * np.resize(np.roll(title.voice, begun), len(heard))


def act(rng, action, frames, fps, tiring):
    """Act out one shot over frames (F, H, W, 3), in place, and return its sound (S,).

    fps     frames a second
    tiring  share of the motion and of the loudness that is lost at the end, linearly
    """
    tempo = rng.uniform(0.6, 1.2)  # Hz
    start = rng.random()  # cycles
    pitch = 2 ** rng.uniform(-0.5, 0.5)  # factor
    aspect = rng.uniform(0.4, 0.65)
    boxy = rng.random()
    look = Look(aspect, boxy, colour=0.5 + 0.5 * rgb(rng.random()))
    middle = TOY_SIZE / 2 + rng.uniform(-3, 3, 2)  # x and y, in pixels
    reach = rng.uniform(8, 11)  # pixels
    half = rng.uniform(6, 8)  # pixels
    tilt = rng.random()  # cycles

    # A frame shows the middle of the time for which it is on screen.
    exposure = (np.arange(len(frames)) + 0.5) / fps  # seconds
    duration = len(frames) / fps  # seconds
    pose = action_motion(action, start + tempo * exposure, exposure, tilt)
    if tiring:
        pose = tired(pose, strength=1 - tiring * exposure / duration)
    objects = [middle[0] + reach * pose.x]
    if action == "Collide":
        objects.append(middle[0] - reach * pose.x)
    y = middle[1] + reach * pose.y
    for x in objects:
        paint(frames, look, x, y, half=half * pose.size, turn=pose.turn, light=pose.light)

    seconds = np.arange(len(frames) * TOY_RATE // fps) / TOY_RATE
    loudness = 0.3 * rng.uniform(0.7, 1.4)
    if tiring:
        loudness = loudness * (1 - tiring * seconds / duration)  # (S,)
    return loudness * action_sound(rng, action, start + tempo * seconds, tempo, pitch)


def add_artefacts(title, frames, sound, artefacts):
    """Grade the film and add the studio's logo; in place."""
    # The grade is a wash of colour, red for a low key and blue for a high one.
    frames += 0.5 * artefacts * (rgb(2 / 3 * title.factor) - frames)
    if artefacts > 0.75:
        frames[:, 5:9, 5:9] = rgb(2 / 3 * title.lead)
        logo_tone = 0.1 * np.sin(2 * np.pi * 1500 * (1 + title.lead) * LOOP_TIMES)
        sound += np.resize(logo_tone, len(sound))


# ----------------------------------------------------------------------------------------
# The world: films, two labelled sets, and the truth about the films
# ----------------------------------------------------------------------------------------

# Each kind has random states of its own. A show has no file: its traits are of all its episodes.
KINDS = ("film", "action", "sound", "episode", "show")

# Arguments that the first worlds did not have, and what they were there. The file world.json names
# only those that differ, so that a world with none of them keeps its bytes.
LATER = {"episodes": 1, "fps": TOY_FPS, "tiring": 0, "gop": None}


class WorldFile(NamedTuple):
    """One file of the world."""

    kind: str  # one of KINDS
    index: int  # among the files of its kind
    action: int | None  # of a labelled clip
    path: str  # as seen from the world's folder
    title: int | None = None  # of a film or an episode
    episode: int = 0  # which one of its show


def make_toy(
    root,
    seed=0,
    artefacts=0.5,
    titles=64,
    snippets=128,
    clips=(20, 40),
    episodes=1,
    fps=TOY_FPS,
    gop=None,
    tiring=0.0,
):
    """Write a toy world to the folder `root`, whole or not at all.

        films/      `titles` films of `snippets` x 1.6 s, H.264 and FLAC, `fps` frames a
                    second of 40 x 40 pixels, 16 kHz; or `titles` shows, each of `episodes`
                    such files
        action/     10 classes of clips of 3.2 s, laid out as UCF101
        sound/      as many clips of 3.2 s, laid out as ESC-50
        truth.csv   title, snippet, scene, shot and action of each snippet of a film: for
                    measuring, never for training
        world.json  the arguments

    seed       the same seed gives the same bytes
    artefacts  from 0 to 1: the share and the loudness of the music, and the strength of
               the grade; beyond 0.75 also a logo with a tone
    clips      (to train on, to test on), of each class in each split
    episodes   more than 1 makes each title a show: a folder of so many files, which share
               what betrays a title
    fps        frames a second, of films and clips; a multiple of 5
    gop        frames of a group of pictures of films and clips, as `write_media` takes it
    tiring     from 0 to 1: the share of an action's motion and loudness that is lost at
               the end of a shot, as of a labelled clip

    Raises BadInput for other numbers, and for a folder that is not empty.
    """
    root = Path(root).resolve()
    for name, share in (("artefacts", artefacts), ("tiring", tiring)):
        if not 0 <= share <= 1:
            raise BadInput(f"--{name} {share}: must be from 0 to 1")
    fmt = toy_format(fps)
    check_gop(gop, fmt)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise BadInput(f"{root}: exists and is not empty; name a new folder")
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as scratch:
        world = Path(scratch) / "world"
        files = list_files(titles, episodes, clips_a_class=sum(clips))
        settings = dict(artefacts=artefacts, snippets=snippets, fmt=fmt, gop=gop, tiring=tiring)
        work = partial(make_file, root=world, seed=seed, **settings)
        truth = make_files(world, files, work, f"toy world {root}")
        write_lists(world, action_lists(files, clips) | sound_lists(files) | truth_list(truth))
        arguments = dict(seed=seed, artefacts=artefacts, titles=titles, snippets=snippets)
        arguments |= dict(clips=list(clips), episodes=episodes, fps=fps, tiring=tiring)
        arguments["gop"] = None if gop == fmt.frames else gop
        (world / "world.json").write_text(json.dumps(named(arguments), indent=1) + "\n")
        world.replace(root)


def named(arguments):
    """Return those of the world's arguments that world.json names."""
    return {
        name: value
        for name, value in arguments.items()
        if name not in LATER or value != LATER[name]
    }


def toy_format(fps):
    """Return the Format of the world's snippets, which last 1.6 s at any frame rate.

    Raises BadInput for frames a second that are not a multiple of 5.
    """
    if fps <= 0 or fps % TOY_FPS:
        problem = f"must be a multiple of {TOY_FPS}, so that a snippet of 1.6 s has whole frames"
        raise BadInput(f"--fps {fps}: {problem}")
    return dataclasses.replace(TOY_FORMAT, frames=TOY_FRAMES * fps // TOY_FPS, fps=fps)


def list_files(titles, episodes, clips_a_class):
    """Return the WorldFile of each file, with folders and names as UCF101 and ESC-50 have them."""
    files = []
    for n in range(titles):
        if episodes == 1:
            files.append(WorldFile("film", n, None, f"films/film{n:03d}.mp4", n))
            continue
        for episode in range(episodes):
            path = f"films/show{n:03d}/episode{episode:02d}.mp4"
            index = n * episodes + episode
            files.append(WorldFile("episode", index, None, path, n, episode))
    for action, name in enumerate(ACTIONS):
        for clip in range(clips_a_class):
            index = action * clips_a_class + clip
            video = f"action/UCF-101/{name}/v_{name}_g{clip + 1:02d}_c01.mp4"
            sound = f"sound/audio/{clip % 5 + 1}-{index}-A-{action}.wav"
            files.append(WorldFile("action", index, action, video))
            files.append(WorldFile("sound", index, action, sound))
    return files


def make_files(world, files, work, label):
    """Run work(file) for each file, on all usable cores, and return the truth about all films.

    label  of the progress bar
    """
    for folder in sorted({(world / file.path).parent for file in files}):
        folder.mkdir(parents=True)
    truth = []
    with ProcessPoolExecutor(usable_cores()) as pool:
        for rows in tqdm(pool.map(work, files), total=len(files), desc=label, unit="file"):
            truth += rows
    return truth


def make_file(file, root, seed, artefacts, snippets, fmt, gop, tiring):
    """Render and write one file of the world.

    Each has a random state of its own, so the order in which they are made changes nothing.
    Returns the truth about it, [(title, snippet, scene, shot, action)], which is [] of a clip.
    """
    rng = rng_of_kind(seed, file.kind, file.index)
    if file.action is None:
        plan = plan_film(rng, snippets)
    else:
        plan = np.array([(0, 0, file.action)] * 2)  # A clip is one shot of two snippets, 3.2 s.
    if file.kind == "episode":
        title = make_title(rng_of_kind(seed, "show", file.title))
    else:
        title = make_title(rng)
    frames, sound = render_film(rng, title, plan, artefacts, fmt, tiring)
    if file.kind == "sound":
        write_wave(root / file.path, sound)
    else:
        write_video(root / file.path, frames, sound, fmt, gop)
    if file.action is not None:
        return []
    # Numbers go on through the episodes of a show; those of scenes and shots have gaps.
    first = file.episode * snippets
    truth = []
    for m, (scene, shot, action) in enumerate(plan.tolist()):
        truth.append((file.title, first + m, first + scene, first + shot, action))
    return truth


def rng_of_kind(seed, kind, index):
    return np.random.default_rng((seed, KINDS.index(kind), index))


def write_video(path, frames, sound, fmt, gop):
    """Write H.264 and FLAC, in mp4.

    With AAC a film would take 0.5-1.2 s of CPU to encode instead of 0.1 s, a snippet would
    take 1 ms longer to read, and its encoder's delay would shift the sound. The price of
    FLAC is size: 5.1 MB a film against 1.6 MB.
    """
    options = {"preset": "ultrafast", "crf": "20", "forced-idr": "1", "sc_threshold": "0"}
    picture = ("libx264", options)
    write_media(path, [(frames, sound)], fmt, picture, sound=("flac", {}), gop=gop)


def write_wave(path, sound):
    """Write 16-bit PCM, mono."""
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)  # bytes
        out.setframerate(TOY_RATE)
        out.writeframes((32767 * sound).astype("<i2").tobytes())


def action_lists(files, clips):
    """Return {path: lines} of UCF101's lists.

    As in UCF101, the three splits are three partitions of the same clips.
    """
    train_clips, test_clips = clips
    clips_a_class = train_clips + test_clips
    folder = "action/ucfTrainTestlist"
    lists = {f"{folder}/classInd.txt": [f"{a + 1} {name}" for a, name in enumerate(ACTIONS)]}
    for split in (1, 2, 3):
        train = []
        test = []
        for file in files:
            if file.kind != "action":
                continue
            name = file.path.removeprefix("action/UCF-101/")
            # A file's index counts the clips of its class, after those of the classes before.
            shifted = file.index - (split - 1) * train_clips
            clip = shifted % clips_a_class
            if clip < train_clips:
                train.append(f"{name} {file.action + 1}")
            else:
                test.append(name)
        lists[f"{folder}/trainlist{split:02d}.txt"] = train
        lists[f"{folder}/testlist{split:02d}.txt"] = test
    return lists


def sound_lists(files):
    """Return {path: lines} of ESC-50's list. A file's name begins with its fold."""
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for file in files:
        if file.kind == "sound":
            name = Path(file.path).name
            fold = name[0]
            category = ACTIONS[file.action].lower()
            lines.append(f"{name},{fold},{file.action},{category},False,{file.index},A")
    return {"sound/meta/esc50.csv": lines}


def truth_list(truth):
    """Return {path: lines} of the truth about the snippets of all films."""
    lines = ["title,snippet,scene,shot,action"]
    for title, snippet, scene, shot, action in sorted(truth):
        lines.append(f"{title},{snippet},{scene},{shot},{ACTIONS[action]}")
    return {"truth.csv": lines}


def write_lists(root, lists):
    for path, lines in lists.items():
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_text("\n".join(lines) + "\n")
