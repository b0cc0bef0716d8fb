"""Temporal: how fast, in which direction and in which order? "Audio-Visual Contrastive Learning
with Temporal Self-Supervision" (Jenni, Black, Collomosse, 2023).

T frames of H x W pixels of a clip; S its samples of sound.
"""

import dataclasses

import torch
from torchaudio.functional import resample

from data import Titles, stack_frames
from harness.errors import BadInput
from media.format import PLAYBACK, SNIPPET_CROP, rng_of
from media.prepare import check_prepared
from media.reader import CENTRE, check_whole

# -------------------------------------------------------------------------------------------------
# Samples: clips played at a speed and in a direction
#
# Whatever else tells the speed or the direction is learned in place of what is seen and heard. The
# ways in which it could be told, and what closes each; papers/test_leaks.py is the guard:
#
#   the place in a file      All clips fit at every place, so no speed is drawn more often at some.
#   one tempo for both       Speeds and directions of sight and sound are four independent draws.
#   groups of pictures       Sharpness falls along a group, and one begins at each prepared snippet.
#                            So prepared files need `--gop 1`.
#   skipped columns          Of a spectrogram, columns that are further apart correlate less. So the
#                            waveform is resampled.
#   the resampler            Every speed, 1 too, passes the same low-pass as it is heard, from sound
#                            at twice the rate, and its filter sees what lies beyond the ends.
#   codecs of sound          Above some frequency they keep less, and at q times the speed that is
#                            heard from q times this frequency on. So clips have 16 kHz at the most.
#   loudness                 Power at higher frequencies is less, so a faster sound may be softer. A
#                            random gain of up to 6 dB hides most of it.
#
# What reading cannot close: groups of pictures in files that were not prepared, where grain may
# stay for longer than a frame; a film whose sound does not reach half of the rate of a clip, or has
# no more samples a second than a clip, since sound that is played faster has the frequencies that
# it lacks; and the first 5 ms of a prepared file, which are silent.
# -------------------------------------------------------------------------------------------------

SPEEDS = ((1, 2, 4, 8), (1, 2))  # of the sight, as in prior code of the first author; of the sound
HIGHEST_RATE = 16000  # Hz
GAIN = 6.0  # dB; sound is made louder or softer by this at the most (our choice)
MARGIN = 8  # samples of the sound as it is heard; the filter of `resample` reaches 6.1 of them


@dataclasses.dataclass(frozen=True)
class Playback:
    """How a clip is played. Each default is that of a clip as it was filmed.

    speed_video, speed_audio        p and q, how many times as fast
    backward_video, backward_audio  whether from its end to its beginning
    gain                            in dB, of the sound
    """

    speed_video: int = 1
    speed_audio: int = 1
    backward_video: bool = False
    backward_audio: bool = False
    gain: float = 0.0

    @classmethod
    def draw(cls, key, speeds):
        """How the clip of this key is played, where each field is drawn on its own.

        Sight and sound are drawn independently of each other: with one tempo for both, the two
        of a clip could be matched by that alone.

        speeds  (those of the sight, those of the sound), each equally likely
        """
        numbers = rng_of(key, PLAYBACK).random(5)
        of_video, of_audio = speeds
        return cls(
            speed_video=of_video[int(numbers[0] * len(of_video))],
            speed_audio=of_audio[int(numbers[1] * len(of_audio))],
            backward_video=bool(numbers[2] < 0.5),
            backward_audio=bool(numbers[3] < 0.5),
            gain=GAIN * (2 * numbers[4] - 1),
        )


class TemporalTitles(Titles):
    """The titles of a collection, and clips of them that are played at a speed and in a direction.

    source, language, quiet  as in `Titles`
    fmt     of a clip at speed 1: T frames at `fps`, S samples of sound at `rate`
    speeds  (those of the sight, those of the sound), whole numbers
    stride  seconds between the beginnings of neighbouring clips; default a clip at speed 1

    A place of the grid holds the longest clip, T / fps seconds times the highest speed of both, so
    that no speed depends on the place, and `counts` is the number of such places. `fmt` of the
    object is that of what is read of a place, and `clip` is that of a clip.

    An item (n, m, key) is a dict:

        video           uint8 (3, T, crop, crop), T / fps seconds times p of the source
        waveform        float (S,), S / rate seconds times q of the source
        speed_video     index of p in the speeds of the sight
        speed_audio     index of q in the speeds of the sound
        backward_video  1 if the frames run from the last to the first, else 0
        backward_audio  the same of the sound
        span_video      seconds of the source that the frames cover, from `begin` on
        span_audio      seconds of the source that the sound covers, from `begin` on
        title, begin, failures  as in `Titles`

    The playback is drawn from the key of the sample; without one it is that of the source. Raises
    BadInput as `Titles` does, and for a rate that betrays the speed.
    """

    def __init__(self, source, fmt, speeds=SPEEDS, language=None, quiet=True, stride=None):
        check_rate_heard(fmt.rate)
        fastest = max(max(of_one) for of_one in speeds)
        place = dataclasses.replace(fmt, frames=fmt.frames * fastest)
        stride = fmt.seconds if stride is None else stride
        super().__init__(source, place, language, quiet, stride=stride)
        paths = [path for part in self.parts for path, _, _ in part]
        check_prepared(paths, place, language, all_key_frames=True)
        self.clip = fmt
        self.speeds = speeds

    def content(self, n, m, key):
        playback = Playback()
        position = CENTRE
        if key is not None:
            playback = Playback.draw(key, self.speeds)
            position = rng_of(key, SNIPPET_CROP).random(2)
        crops, waveform = self.play(n, m, playback, position)
        of_video, of_audio = self.speeds
        return {
            "video": stack_frames(crops),
            "waveform": waveform,
            "speed_video": of_video.index(playback.speed_video),
            "speed_audio": of_audio.index(playback.speed_audio),
            "backward_video": int(playback.backward_video),
            "backward_audio": int(playback.backward_audio),
            "span_video": playback.speed_video * self.clip.seconds,
            "span_audio": playback.speed_audio * self.clip.samples / self.clip.rate,
        }

    def play(self, n, m, playback, position=CENTRE):
        """The clip at place m of title n: T crops (3, crop, crop), and its waveform (S,).

        The frames are those on screen at begin + p * i / fps, i = 0 .. T - 1. The sound is read at
        twice the rate, with a margin at both ends, for `resample_to_speed`.

        Raises BadInput, with the file and the time, if it cannot be read whole.
        """
        clip, p, q = self.clip, playback.speed_video, playback.speed_audio
        with self.opened(n, m) as (reader, start):
            crops, sound = reader.read(
                [start + p * i / clip.fps for i in range(clip.frames)],
                sound_from=start - q * MARGIN / clip.rate,
                samples=2 * q * (clip.samples + 2 * MARGIN),
                rate=2 * clip.rate,
                keep=self.cropper(reader, position),
            )
            check_whole(reader, start, crops, reader.lost)
        waveform = resample_to_speed(torch.from_numpy(sound), q)  # (S,)
        if playback.backward_video:
            crops = crops[::-1]
        if playback.backward_audio:
            waveform = waveform.flip(0)
        return crops, waveform * 10 ** (playback.gain / 20)


def resample_to_speed(sound, q):
    """Sound at twice the rate, (2 q (S + 2 MARGIN),) -> the same q times as fast, (S,).

    Every speed, 1 too, passes the same low-pass, at the same frequency as it is heard. The margins
    are what the filter sees beyond both ends.
    """
    return resample(sound, 2 * q, 1)[MARGIN:-MARGIN].contiguous()


def check_rate_heard(rate):
    """Raise BadInput for a rate (Hz) at which the codecs of sound betray how fast it is played."""
    if rate > HIGHEST_RATE:
        raise BadInput(
            f"--rate {rate}: must be {HIGHEST_RATE} at the most, since what codecs do to sound "
            f"above {HIGHEST_RATE // 2} Hz tells how fast it is played"
        )
