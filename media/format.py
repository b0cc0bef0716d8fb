"""What a snippet is made of, and the named streams of random numbers."""

import dataclasses

import numpy as np

# Seconds. Containers round timestamps, and the rounding adds up. Sound that is further than this
# off its timestamp has a gap or an overlap. A file that is shorter than a snippet by less than
# this still holds the snippet.
TOLERANCE = 0.02


def setting(default, help, source):
    return dataclasses.field(default=default, metadata={"help": help, "source": source})


@dataclasses.dataclass(frozen=True)
class Format:
    """What a snippet is made of: the paper's numbers (Section 4.1).

    A checkpoint keeps them in its `front_end`.
    """

    frames: int = setting(16, "T, frames of a snippet", "4.1")
    fps: float = setting(5.0, "frames a second of a snippet", "4.1: it lasts 3.2 s")
    short_side: int = setting(190, "pixels of the shorter side", "4.1; Table 5 has 224")
    crop: int = setting(158, "pixels of the crop, H = W", "4.1; Table 4 has 112, Table 5 200")
    rate: int = setting(48000, "sample rate of the sound, Hz", "4.1")
    n_fft: int = setting(2048, "samples of an FFT window", "4.1")
    hop: int = setting(512, "samples between audio frames", "4.1")
    mels: int = setting(96, "P, mel filters", "4.1")

    @classmethod
    def add_flags(cls, parser, *names, with_source=True):
        """Add a flag for each of these fields, or for all, with the paper's numbers as defaults.

        with_source  whether the help says where the paper has them; other papers have other numbers
        """
        for field in dataclasses.fields(cls):
            if not names or field.name in names:
                flag = f"--{field.name.replace('_', '-')}"
                help = field.metadata["help"]
                if with_source:
                    help += f" ({field.metadata['source']})"
                parser.add_argument(flag, type=field.type, default=field.default, help=help)

    @classmethod
    def of(cls, args):
        """The Format of these flags; a field without a flag keeps the paper's number."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: getattr(args, name) for name in names if hasattr(args, name)})

    @property
    def seconds(self):
        return self.frames / self.fps

    @property
    def samples(self):
        """S, samples of sound in a snippet."""
        return round(self.rate * self.seconds)

    def whole_snippets(self, seconds, stride=None):
        """How many whole snippets a stretch of film holds.

        stride  seconds between the beginnings of neighbours; default a snippet, so that each begins
                where the last one ends
        """
        if stride is None:
            stride = self.seconds
        # Neighbours overlap by what a snippet is longer than the stride.
        overlap = self.seconds - stride
        return max(0, int((seconds + TOLERANCE - overlap) / stride))


# -------------------------------------------------------------------------------------------------
# Random streams
#
# What is random when a sample is read is drawn from its key, (seed, epoch, step, place in the
# global batch), and from one of these streams. So the number of workers changes nothing, and a
# resumed run repeats itself. The front-ends draw for a share, from (seed, epoch, step, share). In
# pretraining, `sampler.py` keeps streams 1 and 2 for titles and snippets, and 6 for the shuffled
# baseline; in fine-tuning there is no sampler. With a stream of None the key alone seeds the
# generator; numpy pads it with zeros, so HELD_OUT shares its numbers with one crop of epoch N,
# which does no harm.
# -------------------------------------------------------------------------------------------------

# In pretraining.
HELD_OUT = None  # which titles are held out; its key is (seed, number of titles)
SNIPPET_CROP = None  # where the crop of a snippet lies
REPLACEMENT = 5  # which snippet replaces one that cannot be read
PLAYBACK = 8  # how fast, in which direction and how loud a clip is played (papers/temporal.py)
MINING = 9  # which entries of the bank are mined for the clips of a share (papers/temporal.py)
HELD_OUT_CLIP = 11  # appended to the key of a clip that is drawn from held-out titles

# In fine-tuning.
ORDER = None  # the order of the files in an epoch; its key is (seed, epoch)
CLIP_START = 0  # when a clip begins
CLIP_SCALE = 1  # the shorter side that a clip is resized to
CLIP_CROP = 2  # where the crop of a clip lies
SHOTS = 7  # which files of a class are trained on; its key is (seed, split, draw, label)

# In lab.evaluate fingerprint, which draws nothing else.
DISTORTION = 10  # what is random in a distortion; its key is (seed, title, snippet, distortion)

# In both, of a batch.
COLOUR = 3  # the colour jitter, and which samples are flipped
BANDS = 4  # which bands of the spectrograms drop out


def rng_of(key, stream):
    """A random generator that depends on the key and on the stream, and on nothing else."""
    if stream is None:
        return np.random.default_rng(key)
    return np.random.default_rng((*key, stream))
