"""What happens to a clip on its way through the world: the queries of `lab.evaluate fingerprint`.

Distortions are of the media: uint8 pixels and the waveform, in front of all that feeds a network.
Each has one strength (all of them our choice; a clip's side is that of its crop):

    sight           strength
    frozen frames   each frame but the first shows the one before it, with probability 1/2
    crop            the middle 80 % of the side, enlarged
    rotation        10 degrees anticlockwise; the corners are black
    gamma           1.5: c -> c^1.5 of a colour c from 0 to 1, which darkens
    blur            Gaussian, with a sigma of 1/40 of the side
    grain           Gaussian noise with a sigma of 15 of 255, new in each frame
    grey bar        a quarter of the height, across the whole width, anywhere; grey is 128
    JPEG            quality 10, frame by frame

    sound           strength
    reverb          a tail of noise that falls by 60 dB in 0.5 s, as loud as the direct sound
    low-pass        2 kHz, 12 dB an octave
    clipping        at the root mean square of the sound
    hiss            white noise, 20 dB below the sound
    mu-law          16 levels, 4 bits a sample

    both            strength
    shift           begun a quarter clip later
    all             begun a quarter clip later, and then all others, in the order of this list

What is random is drawn by `rng_of(key, DISTORTION)`, with a key for each clip and distortion.

T frames of H x W pixels, S samples of sound at `rate` Hz.
"""

import math

import torch
import torchaudio
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from media.format import DISTORTION, rng_of

# -------------------------------------------------------------------------------------------------
# Sight: uint8 (T, 3, H, W), and a random generator -> the same
# -------------------------------------------------------------------------------------------------


def freeze_frames(frames, rng):
    shown = [0]
    for t in range(1, len(frames)):
        shown.append(shown[-1] if rng.random() < 0.5 else t)
    return frames[shown]


def crop_middle(frames, rng):
    *_, H, W = frames.shape
    height, width = round(0.8 * H), round(0.8 * W)
    top, left = (H - height) // 2, (W - width) // 2
    return F.resized_crop(frames, top, left, height, width, [H, W], antialias=True)


def rotate(frames, rng):
    return F.rotate(frames, 10.0, interpolation=InterpolationMode.BILINEAR)


def darken(frames, rng):
    return F.adjust_gamma(frames, 1.5)


def blur(frames, rng):
    sigma = frames.shape[-1] / 40
    size = 2 * math.ceil(3 * sigma) + 1  # of the kernel: three sigmas on both sides
    return F.gaussian_blur(frames, [size, size], [sigma, sigma])


def add_grain(frames, rng):
    grain = torch.from_numpy(rng.standard_normal(frames.shape, "float32"))
    return (frames + 15 * grain).round().clamp(0, 255).to(torch.uint8)


def add_grey_bar(frames, rng):
    H = frames.shape[2]
    height = round(H / 4)
    top = int(rng.integers(H - height + 1))
    frames = frames.clone()
    frames[:, :, top : top + height] = 128
    return frames


def compress(frames, rng):
    return torch.stack([decode_jpeg(encode_jpeg(frame, quality=10)) for frame in frames])


# In the order of `all`: what a camera does, what is laid over the picture, and the codec.
SIGHT = {
    "frozen frames": freeze_frames,
    "crop": crop_middle,
    "rotation": rotate,
    "gamma": darken,
    "blur": blur,
    "grain": add_grain,
    "grey bar": add_grey_bar,
    "JPEG": compress,
}

# -------------------------------------------------------------------------------------------------
# Sound: float (S,), its rate in Hz, and a random generator -> the same
# -------------------------------------------------------------------------------------------------


def root_mean_square(sound):
    return sound.square().mean().sqrt()


def add_reverb(sound, rate, rng):
    seconds = torch.arange(round(0.5 * rate)) / rate
    noise = torch.from_numpy(rng.standard_normal(len(seconds), "float32"))
    tail = noise * 10 ** (-3 * seconds / 0.5)  # 60 dB is a factor of 10^3
    room = tail / tail.norm()
    room[0] += 1  # the direct sound
    return torchaudio.functional.fftconvolve(sound, room)[: len(sound)]


def muffle(sound, rate, rng):
    return torchaudio.functional.lowpass_biquad(sound, rate, 2000.0)


def clip_peaks(sound, rate, rng):
    limit = root_mean_square(sound)
    return sound.clamp(-limit, limit)


def add_hiss(sound, rate, rng):
    noise = torch.from_numpy(rng.standard_normal(len(sound), "float32"))
    return sound + 10 ** (-20 / 20) * root_mean_square(sound) * noise


def quantise(sound, rate, rng):
    levels = torchaudio.functional.mu_law_encoding(sound.clamp(-1, 1), 16)
    return torchaudio.functional.mu_law_decoding(levels, 16)


# In the order of `all`: the room, the microphone, and the codec.
SOUND = {
    "reverb": add_reverb,
    "low-pass": muffle,
    "clipping": clip_peaks,
    "hiss": add_hiss,
    "mu-law": quantise,
}

BOTH = ("shift", "all")
NAMES = ("none", *SIGHT, *SOUND, *BOTH)

# -------------------------------------------------------------------------------------------------
# A clip in all of its versions
# -------------------------------------------------------------------------------------------------


def versions_of_sight(video, later, key):
    """{distortion: uint8 (3, T, H, W)} of "none", all of SIGHT, and BOTH.

    video, later  uint8 (3, T, H, W): a clip, and the same begun a quarter clip later
    key           of the clip
    """
    frames, later_frames = video.transpose(0, 1), later.transpose(0, 1)  # (T, 3, H, W)
    versions = {"none": frames, "shift": later_frames, "all": later_frames}
    for i, (name, distort) in enumerate(SIGHT.items()):
        versions[name] = distort(frames, rng_of((*key, i), DISTORTION))
        versions["all"] = distort(versions["all"], rng_of((*key, i), DISTORTION))
    return {name: version.transpose(0, 1) for name, version in versions.items()}


def versions_of_sound(sound, later, rate, key):
    """{distortion: float (S,)} of "none", all of SOUND, and BOTH; as `versions_of_sight`."""
    versions = {"none": sound, "shift": later, "all": later}
    for i, (name, distort) in enumerate(SOUND.items(), len(SIGHT)):
        versions[name] = distort(sound, rate, rng_of((*key, i), DISTORTION))
        versions["all"] = distort(versions["all"], rate, rng_of((*key, i), DISTORTION))
    return versions
