"""Temporal: how fast, which way round, in which order? "Audio-Visual Contrastive Learning with
Temporal Self-Supervision" (Jenni, Black, Collomosse, 2023).

    python -m papers.temporal --toy                     the toy world, on a CPU, in minutes
    torchrun --nproc_per_node 8 -m papers.temporal      8 GPUs, datasets/movies
    python -m papers.temporal                           the same run on one GPU, share by share
    python -m papers.temporal --tasks none              its ablations: the contrast alone,
    python -m papers.temporal --tasks speed             one task beside the contrast,
    python -m papers.temporal --bank 0                  no mined pairs

The networks and their sampler, data, runs and checkpoints are those of pretrain.py. What differs:

    clips       Sight and sound are each played at a speed of their own, forward or backward.
    tasks       The network tells how fast, in which direction, and which of two clips of a title
                comes first, within sight, within sound and across both.
    contrast    Clips of a title belong together in sight, and sight and sound of a clip. These
                usual pairs are supplemented by pairs that are mined from the last embeddings.

Only the paper's abstract was at hand. Found in it are the tasks, the two contrasts, and that the
positives and negatives that supplement the usual pairs depend on the sample and on the evolving
feature space. Found in prior code of the first author are 16 frames, speeds of 1, 2, 4 and 8 of
the sight, the three classes of order, AdamW, its learning rate and weight decay, and the cosine.
All else is our choice.

B clips of a share; T frames of H x W pixels; P mel filters; Q audio frames; d = 512, the size of
an embedding; C = 8 * width, the channels of a network's last map; N mined negatives of a clip.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn
from torchaudio.functional import resample

from data import Titles, stack_frames
from harness.errors import BadInput
from media.format import PLAYBACK, SNIPPET_CROP, rng_of
from media.reader import CENTRE, check_whole
from models import AudioVisualModel

ROUNDING = 1e-6  # seconds

# -------------------------------------------------------------------------------------------------
# Samples: clips played at a speed and in a direction
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


# -------------------------------------------------------------------------------------------------
# Heads: which task has which, and the order of two clips
# -------------------------------------------------------------------------------------------------

# Of each task its heads: of sight and sound, and of pairs of two sights, two sounds, or a sight
# and a sound.
TASKS = {
    "speed": ("speed_video", "speed_audio"),
    "direction": ("direction_video", "direction_audio"),
    "order": ("order_vv", "order_aa", "order_va"),
}
OVERLAPPING, BEFORE, AFTER = range(3)  # the classes of order, as in prior code of the first author
UNKNOWN = -1  # the label of a pair that is none


def heads_of(tasks):
    """The names of the heads that these tasks ("speed,order", or "none") have."""
    return [head for task, heads in TASKS.items() if task in tasks.split(",") for head in heads]


class TemporalModel(AudioVisualModel):
    """The networks of pretrain.py, a head for each question, and the bank.

    heads   names of the heads, see TASKS
    speeds  (those of the sight, those of the sound)
    bank    entries of the bank; 0: no pairs are mined, and `bank` is None

    Speed and direction are linear in the pooled last map of their modality. Order is told by two
    layers from the concatenated maps of two clips. Fine-tuning uses neither heads nor bank.
    """

    def __init__(self, heads, speeds, bank=0, width=64, d=512):
        super().__init__(width, d)
        C = 8 * width
        classes = {"speed_video": len(speeds[0]), "speed_audio": len(speeds[1])}
        classes |= {"direction_video": 2, "direction_audio": 2}
        self.temporal_heads = nn.ModuleDict()
        for name in heads:
            if name in classes:
                self.temporal_heads[name] = nn.Linear(C, classes[name])
            else:
                self.temporal_heads[name] = nn.Sequential(
                    nn.Linear(2 * C, C),
                    nn.ReLU(inplace=True),
                    nn.Linear(C, 3),
                )
        self.bank = Bank(bank, d) if bank else None

    def forward(self, video, audio, following=None):
        """(B, 3, T, H, W), (B, 1, P, Q) -> z_v (B, d), z_a (B, d), and the logits of the heads.

        following  (B,) the place in the share of the clip that each is compared with, see
                   `next_of_title`; without it there are no logits, only z_v and z_a
        """
        map_v = self.video.features(video)  # (B, C, T/8, H/16, W/16)
        map_a = self.audio.features(audio)  # (B, C, P/32, Q/32)
        z_v, z_a = self.video_head(map_v), self.audio_head(map_a)
        if following is None:
            return z_v, z_a
        f_v, f_a = map_v.flatten(2).float().mean(2), map_a.flatten(2).float().mean(2)  # (B, C)
        features = {
            "speed_video": f_v,
            "speed_audio": f_a,
            "direction_video": f_v,
            "direction_audio": f_a,
            "order_vv": torch.cat([f_v, f_v[following]], 1),  # (B, 2 * C)
            "order_aa": torch.cat([f_a, f_a[following]], 1),
            "order_va": torch.cat([f_v, f_a[following]], 1),
        }
        logits = {name: head(features[name]) for name, head in self.temporal_heads.items()}
        return z_v, z_a, logits


def next_of_title(title):
    """The next clip of its title for each clip of a share: (B,) titles -> (B,) places.

    The next one of the last is the first, so that k = 2 gives both pairs (i, j) and (j, i). A clip
    is its own next one where no other of its title is there, since that could not be read.
    """
    B = len(title)
    place = torch.arange(B, device=title.device)
    ahead = (place[None, :] - place[:, None] - 1) % B  # (B, B), B - 1 for the clip itself
    other_title = title[:, None] != title[None, :]
    return ahead.masked_fill(other_title, B).argmin(1)


def order_of(begin, span, other_begin, other_span):
    """Whether a stretch of a title is OVERLAPPING, BEFORE or AFTER another one, in seconds: (B,).

    A stretch begins at `begin` and covers the `span` that its own speed gives it. One that begins
    where the other one ends is after it. All arguments are (B,), on the time axis of the title.
    """
    is_before = begin + span <= other_begin + ROUNDING
    is_after = other_begin + other_span <= begin + ROUNDING
    order = torch.full_like(is_before, OVERLAPPING, dtype=torch.long)
    return order.masked_fill(is_before, BEFORE).masked_fill(is_after, AFTER)


def labels_of(batch, following):
    """What each head has to tell of each clip of a batch: {name: (B,) of classes}."""
    begin, video, audio = batch["begin"], batch["span_video"], batch["span_audio"]
    labels = {
        "speed_video": batch["speed_video"],
        "speed_audio": batch["speed_audio"],
        "direction_video": batch["backward_video"],
        "direction_audio": batch["backward_audio"],
    }
    has_next = following != torch.arange(len(following))
    orders = {"order_vv": (video, video), "order_aa": (audio, audio), "order_va": (video, audio)}
    for name, (span, other_span) in orders.items():
        order = order_of(begin, span, begin[following], other_span[following])
        labels[name] = order.masked_fill(~has_next, UNKNOWN)
    return labels


# -------------------------------------------------------------------------------------------------
# Contrast: usual and mined pairs
# -------------------------------------------------------------------------------------------------

# Pairs of two sights, of a sight and a sound, and of a sound and a sight: the anchor comes first.
CONTRASTS = ("contrast_vv", "contrast_va", "contrast_av")


def contrast(anchor, others, usual, is_negative, tau, mined=None):
    """The contrast of each clip of a share, (B,).

                  1                            e^{s_ip}
        L_i = -  ---  sum_p  log ------------------------------------
                  2               e^{s_ip} + sum_{n negative} e^{s_in}

    s is the similarity at unit length over tau. p is the usual positive of i and the mined one,
    and both have the same negatives: those of the share and the mined ones. Without mined pairs p
    is the usual positive alone, and there is no 1/2. In fp32, also under autocast.

    anchor       (B, d) embeddings of one modality
    others       (B, d) embeddings of the share, of the modality of the positives and negatives
    usual        (B,) the place of the usual positive among them
    is_negative  (B, B) which of them are negatives of which anchor
    mined        None, or what `Bank.mine` has found: (entries (size, d), the place of the positive
                 (B,) and of the negatives (B, N) among them)
    """
    with torch.autocast(anchor.device.type, enabled=False):
        anchor = F.normalize(anchor.float(), dim=1) / tau
        s = anchor @ F.normalize(others.float(), dim=1).T  # (B, B)
        positive = s.gather(1, usual[:, None])  # (B, 1)
        negatives = s.masked_fill(~is_negative, -math.inf)
        if mined is None:
            return one_of(positive, negatives)
        entries, mined_positive, mined_negatives = mined
        s = anchor @ entries.T  # (B, size)
        negatives = torch.cat([negatives, s.gather(1, mined_negatives)], 1)  # (B, B + N)
        of_mined = one_of(s.gather(1, mined_positive[:, None]), negatives)
        return (one_of(positive, negatives) + of_mined) / 2


def one_of(positive, negatives):
    """-log softmax of the positive (B, 1) among itself and the negatives (B, N): (B,)."""
    return torch.cat([positive, negatives], 1).logsumexp(1) - positive.squeeze(1)


NEAREST = 5  # A mined positive is one of so many.
FIRST_NEGATIVE = 10  # Mined negatives have this rank or a higher one, counted from 0.


class Bank(nn.Module):
    """The last embeddings of training, first in, first out, from which pairs are mined.

    size  of the bank, in clips

    Entry (size, d) of sight and sound, at unit length and without gradient, and their titles. All
    processes hold the same bank, and a checkpoint keeps it. Our choice are its size, that its
    embeddings are those of the steps in which they were trained on, and the ranks.
    """

    def __init__(self, size, d):
        super().__init__()
        self.register_buffer("z_v", torch.zeros(size, d))
        self.register_buffer("z_a", torch.zeros(size, d))
        self.register_buffer("title", torch.full((size,), -1))
        self.added = 0  # clips so far

    def get_extra_state(self):
        return self.added

    def set_extra_state(self, added):
        self.added = added

    @property
    def is_full(self):
        return self.added >= len(self.title)

    @torch.no_grad()
    def add(self, z_v, z_a, title):
        """Put these clips in the place of the oldest. (b, d), (b, d), (b,)"""
        places = (self.added + torch.arange(len(title), device=title.device)) % len(self.title)
        self.z_v[places] = F.normalize(z_v.float(), dim=1)
        self.z_a[places] = F.normalize(z_a.float(), dim=1)
        self.title[places] = title
        self.added += len(title)

    @torch.no_grad()
    def mine(self, anchor, entries, title, rng, negatives):
        """The places of a positive (B,) and of N negatives (B, N) of each clip in the bank.

        All are of other titles, ranked by their similarity to the anchor, from 0. The positive is
        one of the NEAREST. The negatives are from rank FIRST_NEGATIVE to the median: of so many
        equal parts of these ranks, each gives one.

        anchor     (B, d) embeddings of one modality, and `entries`, z_v or z_a, of the same
        title      (B,) the title of each clip
        rng        a numpy generator
        negatives  N
        """
        draws = torch.from_numpy(rng.random((len(anchor), 1 + negatives)))
        draws = draws.to(anchor.device, non_blocking=True)
        own_title = title[:, None] == self.title[None, :]  # (B, size)
        similarity = F.normalize(anchor.float(), dim=1) @ entries.T  # (B, size)
        similarity = similarity.masked_fill(own_title, -math.inf)
        ranked = similarity.sort(dim=1, descending=True, stable=True).indices  # (B, size)
        median = (~own_title).sum(1, keepdim=True) // 2  # (B, 1)
        places = torch.arange(1 + negatives, device=anchor.device)
        edges = FIRST_NEGATIVE + places * (median - FIRST_NEGATIVE).clamp(min=1) // negatives
        of_negatives = edges[:, :-1] + (draws[:, 1:] * edges.diff(dim=1)).long()  # (B, N)
        of_positive = (draws[:, :1] * NEAREST).long()  # (B, 1)
        return ranked.gather(1, of_positive).squeeze(1), ranked.gather(1, of_negatives)


def contrasts_of(z_v, z_a, title, following, bank, rng, tau, negatives):
    """The three terms of a share: {name: scalar}, each the mean over its clips.

        contrast_vv   a clip and the next one of its title, both in sight
        contrast_va   the sight of a clip and its sound, among the sounds
        contrast_av   the sound of a clip and its sight, among the sights

    Negatives are of other titles. A mined pair is ranked in the modality of the anchor, and its
    other modality is taken where the positive's is the other one.
    """
    place = torch.arange(len(title), device=title.device)
    is_negative = title[:, None] != title[None, :]  # (B, B)
    mined = dict.fromkeys(CONTRASTS)
    if bank is not None and bank.is_full:
        of_v = bank.mine(z_v, bank.z_v, title, rng, negatives)
        of_a = bank.mine(z_a, bank.z_a, title, rng, negatives)
        mined["contrast_vv"] = (bank.z_v, *of_v)
        mined["contrast_va"] = (bank.z_a, *of_v)
        mined["contrast_av"] = (bank.z_v, *of_a)
    vv = contrast(z_v, z_v, following, is_negative, tau, mined["contrast_vv"])
    va = contrast(z_v, z_a, place, is_negative, tau, mined["contrast_va"])
    av = contrast(z_a, z_v, place, is_negative, tau, mined["contrast_av"])
    has_next = following != place
    return {
        "contrast_vv": (vv * has_next).sum() / has_next.sum().clamp(min=1),
        "contrast_va": va.mean(),
        "contrast_av": av.mean(),
    }
