"""Temporal: how fast, in what direction and order? "Audio-Visual Contrastive Learning with
Temporal Self-Supervision" (Jenni, Black, Collomosse, 2023).

    python -m papers.temporal --toy                     the toy world, on a CPU, in minutes
    torchrun --nproc_per_node 8 -m papers.temporal      8 GPUs, datasets/movies-12fps
    python -m papers.temporal                           the same run on one GPU, share by share
    python -m papers.temporal --tasks none              its ablations: the contrast alone,
    python -m papers.temporal --tasks speed             one task beside the contrast,
    python -m papers.temporal --bank 0                  no mined pairs

Prepare films first, with each frame a key frame: otherwise compression gives away the speed.

    python -m media prepare FILMS datasets/movies-12fps --fps 12 --gop 1 --short-side 128

That is for films of 24 frames a second. Those of 25 take `--fps 12.5` in both commands, and those
of 30 `--fps 10`: frames that are unevenly apart tell the speed, too.

Networks, sampler, data, runs and checkpoints are those of pretrain.py. What differs:

    clips       Sight (the video) and sound each have their own speed, forward or backward. No
                bands of the spectrogram drop out.
    tasks       The network tells how fast, in which direction, and which of two clips of a title
                comes first, within sight, within sound and across both.
    contrast    Two clips of a title are a positive pair in sight, and so are sight and sound of one
                clip. Further positives and negatives are mined from a bank of recent embeddings.

We had only the paper's abstract. It has the tasks and the two contrasts, and says that the
positives and negatives that supplement the usual pairs depend on the sample and on the evolving
feature space. Prior code of the first author has 16 frames, speeds of 1, 2, 4 and 8 of the sight,
the three classes of order, AdamW, its learning rate and weight decay, and the cosine. All else is
our choice: we know nothing else of the method.

B clips of a share; T frames of H x W pixels; P mel filters; Q audio frames; d = 512, the size of
an embedding; C = 8 * width, the channels of a network's last map; N mined negatives of a clip.
"""

import dataclasses
import math
import time
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import get_total_norm
from torchaudio.functional import resample

from data import (
    AudioFrontEnd,
    Titles,
    VideoFrontEnd,
    begin_or_resume,
    check_two_titles,
    embed_held_out,
    front_end_state,
    next_batch,
    open_titles,
    own_shares,
    read_shares,
    read_to_test,
    some_shares,
    stack_frames,
)
from harness.curves import draw, summarise
from harness.errors import BadInput, make_parser, one_line_errors
from harness.flags import MAY_CHANGE, add_run_flags, check_rules, names_of_flags, rules_of_run
from harness.run import (
    TOO_LARGE,
    Processes,
    Progress,
    Run,
    StopSignals,
    count,
    count_step,
    describe_groups,
    describe_rate,
    finish_run,
    log_step,
    reason_to_end,
    report_run,
    report_titles,
    restore_statistics,
    save_run,
    too_many_unreadable,
)
from loss import CHANCE, SYNCHRONISATION, gather, synchronisation
from media.collection import collection_name
from media.format import HELD_OUT_CLIP, MINING, PLAYBACK, SNIPPET_CROP, Format, rng_of
from media.reader import CENTRE, check_whole, has_key_frames_only
from models import AudioVisualModel, largest_map, update_statistics
from sampler import HierarchicalSampler

ROUNDING = 1e-6  # seconds
LEAK = 0.99  # Something else gives away a task whose accuracy is so high in the first epoch.

# -------------------------------------------------------------------------------------------------
# Samples: clips played at a speed and in a direction
#
# Artefacts that give away the speed or the direction would be learned in place of motion and sound.
# These are the leaks and what closes them; papers/test_leaks.py tests all:
#
#   the place in a file      All clips fit at every place, so no speed is drawn more often at some.
#   one tempo for both       Speeds and directions of sight and sound are four independent draws.
#   groups of pictures       Sharpness varies in a group, and one begins before a prepared snippet.
#                            So prepared files need `--gop 1`.
#   frames unevenly apart    At 10 frames a second those of a film of 24 are 2 or 3 apart, but at
#                            speed 8 they are 19 or 20. So `--fps` has to divide a film's rate.
#   skipped columns          Of a spectrogram, columns that are further apart correlate less. So the
#                            waveform is resampled.
#   the resampler            Every speed, 1 too, passes the same low-pass as it is heard, from sound
#                            at twice the rate, and its filter sees what lies beyond the ends.
#   codecs of sound          They drop detail above some frequency f; q times as fast, it is missing
#                            from q f on. So clips have a rate of 16 kHz at the most.
#   loudness                 Power at higher frequencies is less, so a faster sound may be softer. A
#                            random gain of up to 6 dB hides most of it.
#
# Reading cannot close these: groups of pictures, and frames that are unevenly apart, in files that
# were not prepared; a film whose sound ends below half of a clip's rate, or whose rate is no higher
# than a clip's, since played faster it fills the gap; and the first 5 ms of a prepared file, which
# are silent.
# -------------------------------------------------------------------------------------------------

SPEEDS = ((1, 2, 4, 8), (1, 2))  # of the sight, as in prior code of the first author; of the sound
HIGHEST_RATE = 16000  # Hz
GAIN = 6.0  # dB; sound is made louder or softer by this at the most (our choice)
MARGIN = 8  # samples of the sound as it is heard; the filter of `resample` reaches 6.1 of them


@dataclasses.dataclass(frozen=True)
class Playback:
    """How a clip is played; the defaults play it as it was filmed.

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
    that no speed depends on the place, and `counts` is the number of such places. `self.fmt` is the
    Format of such a place, `self.clip` that of a clip at speed 1.

    An item (n, m, key) is a dict:

        video           uint8 (3, T, crop, crop), from p T / fps seconds of the source
        waveform        float (S,), from q S / rate seconds of the source
        speed_video     index of p in the speeds of the sight
        speed_audio     index of q in the speeds of the sound
        backward_video  1 if the frames run from the last to the first, else 0
        backward_audio  the same of the sound
        span_video      seconds of the source that the frames cover, from `begin` on
        span_audio      seconds of the source that the sound covers, from `begin` on
        title, begin, failures  as in `Titles`

    The playback is drawn from the key of the sample; without one it is that of the source. Raises
    BadInput as `Titles` does, for a sample rate above HIGHEST_RATE, at which codecs give the speed
    away, and for films that were prepared with frames that are no key frames.
    """

    all_key_frames = True

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
            "span_audio": playback.speed_audio * self.clip.seconds,
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

# What each head of order compares: a clip in this modality, and the next one of its title in that.
PAIRS = {
    "order_vv": ("video", "video"),
    "order_aa": ("audio", "audio"),
    "order_va": ("video", "audio"),
}
# The heads of each task: one for video and one for audio; for order, one for each kind of pair.
TASKS = {
    "speed": ("speed_video", "speed_audio"),
    "direction": ("direction_video", "direction_audio"),
    "order": tuple(PAIRS),
}
OVERLAPPING, BEFORE, AFTER = range(3)  # the classes of order, as in prior code of the first author
UNKNOWN = -1  # the label of a clip that has no other one of its title to be compared with


def heads_of(tasks):
    """The names of the heads that these tasks ("speed,order", or "none") have."""
    return [head for task, heads in TASKS.items() if task in tasks.split(",") for head in heads]


def classes_of(head, speeds):
    """How many classes a head tells apart. speeds: (those of the sight, those of the sound)"""
    if head in PAIRS:
        return 3
    of_video, of_audio = speeds
    return {"speed_video": len(of_video), "speed_audio": len(of_audio)}.get(head, 2)


class TemporalModel(AudioVisualModel):
    """The networks of pretrain.py, a head for each question, and the bank.

    heads   names of the heads, see TASKS
    speeds  (those of the sight, those of the sound)
    bank    entries of the bank; 0: no pairs are mined, and `bank` is None

    Speed and direction are linear in the pooled last map of their modality. An MLP of two layers
    tells the order from the pooled maps of two clips. Fine-tuning uses neither heads nor bank.
    """

    def __init__(self, heads, speeds, bank=0, width=64, d=512):
        super().__init__(width, d)
        C = 8 * width
        self.temporal_heads = nn.ModuleDict()
        for name in heads:
            classes = classes_of(name, speeds)
            if name in PAIRS:
                self.temporal_heads[name] = nn.Sequential(
                    nn.Linear(2 * C, C),
                    nn.ReLU(inplace=True),
                    nn.Linear(C, classes),
                )
            else:
                self.temporal_heads[name] = nn.Linear(C, classes)
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
        maps = {"video": map_v, "audio": map_a}
        pooled = {modality: x.flatten(2).float().mean(2) for modality, x in maps.items()}  # (B, C)
        logits = {}
        for name, head in self.temporal_heads.items():
            if name in PAIRS:
                first, second = PAIRS[name]
                features = torch.cat([pooled[first], pooled[second][following]], 1)  # (B, 2 * C)
            else:
                _, modality = name.split("_")
                features = pooled[modality]
            logits[name] = head(features)
        return z_v, z_a, logits


def next_of_title(title, k):
    """The next clip of its title for each clip of a share: (B,) titles -> (B,) places.

    A share is made of groups of k clips, each from one window of a title. The next one of the last
    of a group is its first, so that k = 2 gives both pairs (i, j) and (j, i). A clip is its own
    next one if all others of its group could not be read and are of other titles now.
    """
    B = len(title)
    place = torch.arange(B, device=title.device)
    group = place // k
    ahead = (place[None, :] - place[:, None] - 1) % B  # (B, B), B - 1 for the clip itself
    is_pair = (title[:, None] == title[None, :]) & (group[:, None] == group[None, :])
    return ahead.masked_fill(~is_pair, B).argmin(1)


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
    begin = batch["begin"]
    labels = {
        "speed_video": batch["speed_video"],
        "speed_audio": batch["speed_audio"],
        "direction_video": batch["backward_video"],
        "direction_audio": batch["backward_audio"],
    }
    has_next = following != torch.arange(len(following))
    for name, (first, second) in PAIRS.items():
        span, other_span = batch[f"span_{first}"], batch[f"span_{second}"]
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


NEAREST = 5  # A mined positive is drawn from so many nearest entries (our choice).
FIRST_NEGATIVE = 10  # Mined negatives are drawn from this rank on; the nearest entry has rank 0.


class Bank(nn.Module):
    """The last embeddings of training, first in, first out, from which pairs are mined.

    size  of the bank, in clips

    It holds the embeddings (size, d) of sight and of sound, at unit length and without gradient, as
    they were in the step that trained on them, and the titles. All processes hold the same bank,
    and a checkpoint keeps it.
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
        """For each clip the places in the bank of a positive (B,) and N negatives (B, N).

        All are of other titles, ranked by their similarity to the anchor, from 0. The positive is
        one of the NEAREST. The ranks from FIRST_NEGATIVE to the median are cut into N equal parts,
        and each part gives one negative (the ranks: our choice).

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
        parts = torch.arange(1 + negatives, device=anchor.device)
        edges = FIRST_NEGATIVE + parts * (median - FIRST_NEGATIVE).clamp(min=1) // negatives
        of_negatives = edges[:, :-1] + (draws[:, 1:] * edges.diff(dim=1)).long()  # (B, N)
        of_positive = (draws[:, :1] * NEAREST).long()  # (B, 1)
        return ranked.gather(1, of_positive).squeeze(1), ranked.gather(1, of_negatives)


def contrasts_of(z_v, z_a, title, following, bank, rng, tau, negatives):
    """The three terms of a share: {name: scalar}, each the mean over its clips.

        contrast_vv   a clip and the next one of its title, both in sight
        contrast_va   the sight of a clip and its sound, among the sounds
        contrast_av   the sound of a clip and its sight, among the sights

    Negatives are of other titles. Mined entries are ranked in the modality of the anchor, and a
    term takes their embeddings in the modality that it contrasts the anchor with.
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


# -------------------------------------------------------------------------------------------------
# Loss: the sum of all terms
# -------------------------------------------------------------------------------------------------


def sum_of(terms, args):
    """The loss: the sum of {name: term}, in which each contrast has --contrast-weight."""
    weight = args.contrast_weight
    return sum(weight * term if name in CONTRASTS else term for name, term in terms.items())


def answers_of(logits, labels):
    """For each head: {name: (its cross entropy, how many answers are right, of how many)}."""
    answers = {}
    for name, of_head in logits.items():
        label = labels[name].to(of_head.device, non_blocking=True)
        asked = (label != UNKNOWN).sum()
        losses = F.cross_entropy(of_head.float(), label, ignore_index=UNKNOWN, reduction="sum")
        right = (of_head.argmax(1) == label).sum()
        answers[name] = losses / asked.clamp(min=1), right, asked
    return answers


def loss_of_share(batch, batch_key, fronts, parallel, bank, args, processes):
    """The loss of one share, and what it is made of.

    batch_key  (seed, epoch, step of the epoch, share)

    Returns (the loss, a scalar with its graph; numbers: each term's value, then of each head how
    many it has right, then of how many; the share's z_v, z_a and titles, for the bank).
    """
    device = processes.device
    video_front, audio_front = fronts
    video = video_front(batch["video"].to(device, non_blocking=True))  # (B, 3, T, H, W)
    audio = audio_front(batch["waveform"].to(device, non_blocking=True))  # (B, 1, P, Q)
    following = next_of_title(batch["title"], args.k)
    labels = labels_of(batch, following)
    title = batch["title"].to(device, non_blocking=True)
    following = following.to(device, non_blocking=True)
    with processes.autocast():
        z_v, z_a, logits = parallel(video, audio, following)  # (B, d), (B, d)
    rng = rng_of(batch_key, MINING)
    terms = contrasts_of(z_v, z_a, title, following, bank, rng, args.tau, args.mined_negatives)
    answers = answers_of(logits, labels)
    heads = heads_of(args.tasks)
    terms |= {name: answers[name][0] for name in heads}
    right = [answers[name][1] for name in heads]
    asked = [answers[name][2] for name in heads]
    terms_in_order = [terms[name] for name in (*CONTRASTS, *heads)]
    numbers = torch.stack([*terms_in_order, *right, *asked]).detach()
    return sum_of(terms, args), numbers, (z_v.detach(), z_a.detach(), title)


def describe_step(numbers, heads, shares, args):
    """(The loss of a step, what else the log says of it: each term, and each head's accuracy).

    numbers  as `loss_of_share` returns them, summed over all shares

    A term that is not finite is missing from what the log says: JSON has no NaN.
    """
    names = [*CONTRASTS, *heads]
    terms = {name: number / shares for name, number in zip(names, numbers)}
    loss = sum_of(terms, args)
    finite = {name: term for name, term in terms.items() if math.isfinite(term)}
    return loss, finite | accuracies("accuracy", heads, numbers[len(names) :])


def accuracies(prefix, heads, answers):
    """{prefix_head: the fraction that it has right}, of those heads that were asked.

    answers  of each head how many it has right, then of each of how many
    """
    right, asked = answers[: len(heads)], answers[len(heads) :]
    return {f"{prefix}_{head}": r / n for head, r, n in zip(heads, right, asked) if n > 0}


# -------------------------------------------------------------------------------------------------
# Arguments: without flags a run on 1, 2, 4 or 8 GPUs
# -------------------------------------------------------------------------------------------------

# 1.3 s at speed 1 and 10.7 s at speed 8; our choice but for the 16 frames. Most films have 24
# frames a second, and speed 1 shows every other one.
CLIP = {"frames": 16, "fps": 12.0, "short_side": 128, "crop": 112}
CLIP |= {"rate": 16000, "n_fft": 512, "hop": 160, "mels": 64}
# On the toy world of seed 0 this lr learned faster than the default, in as few steps.
TOY = {
    "data": "datasets/toy-time/films",
    "fps": 10.0,
    "short_side": 34,
    "crop": 28,
    "rate": 8000,
    "hop": 80,
    "speeds": "1,2,4/1,2",
    "w": 5,
    "width": 16,
    "batch_size": 64,
    "bank": 512,
    "mined_negatives": 64,
    "lr": 1e-3,
    "epochs": 2,
    "held_out_snippets": 32,
    "measure_every": 0.5,
    "workers": 2,
}
# The toy world of this paper has 10 frames a second, all of them key frames, and an arrow of time.
# Its sound has 16 kHz, twice the rate of a clip, so that no speed lacks high frequencies.
TOY_WORLD = {"fps": 10, "gop": 1, "tiring": 0.75}


def parse_args(argv=None):
    parser = make_parser(__doc__, "python -m papers.temporal")
    add_paper_flags(parser.add_argument)
    add_training_flags(parser.add_argument)
    Format.add_flags(parser, with_source=False)
    parser.set_defaults(**CLIP)
    add_run_flags(parser.add_argument, with_source=False)
    known, _ = parser.parse_known_args(argv)
    if known.toy:
        parser.set_defaults(**TOY)
    args = parser.parse_args(argv)
    if args.out is None:
        args.out = f"runs/{run_name(args, parser)}"
    return args


def add_paper_flags(add):
    add("--toy", action="store_true", help="small settings, on the toy world")
    add("--data", default="datasets/movies-12fps", help="a folder of films and shows, or LIST.txt")
    add("--out", help="folder of the run; default runs/temporal- and a name from the flags")
    title = "what a title is to the sampler: a show, or each of its files"
    add("--title", choices=("show", "episode"), default="show", help=title)
    tasks = "speed, direction and order, or some of them, with commas; none: the contrast alone"
    add("--tasks", default="speed,direction,order", help=tasks)
    speeds = "of the sight (prior code of the first author) / of the sound (our choice)"
    add("--speeds", default="1,2,4,8/1,2", help=speeds)
    bank = "last clips from which pairs are mined (our choice); 0: no mined pairs"
    add("--bank", type=int, default=4096, help=bank)
    add("--mined-negatives", type=int, default=256, help="of each clip, from the bank (our choice)")
    add("--tau", type=float, default=0.1, help="temperature of the contrast (our choice)")
    weight = "of each contrast in the loss; a task has 1. With 1, tasks of sight were not learned "
    weight += "(our choice, on the toy world of seed 0)"
    add("--contrast-weight", type=float, default=0.2, help=weight)


def add_training_flags(add):
    add("--batch-size", type=int, default=512, help="clips of a step, over all GPUs (our choice)")
    share = "clips that are contrasted together: 512 / 8 GPUs (our choice)"
    add("--share", type=int, default=64, help=share)
    add("--k", type=int, default=2, help="clips of a title in a share (our choice)")
    window = "window that they come from, in clips at speed 1; at 7, over the three kinds of pairs "
    window += "together, the classes of order are about equally frequent (our choice)"
    add("--w", type=int, default=7, help=window)
    add("--epochs", type=int, default=10, help="of snippets / batch steps (our choice)")
    lr = "of AdamW, after --warmup; then a cosine to 0, as in prior code of the first author"
    add("--lr", type=float, default=3e-4, help=lr)
    decay = "of AdamW, as in prior code of the first author"
    add("--weight-decay", type=float, default=1e-4, help=decay)
    add("--warmup", type=float, default=1.0, help="epochs of linear warm-up from 1e-4 (our choice)")
    add("--width", type=int, default=64, help="channels of the first stage")
    add("--precision", choices=("bf16", "fp32"), default="bf16", help="of networks on a GPU")


def run_name(args, parser):
    """The collection, and every flag that makes it another run: temporal-toy-time-bank0."""
    flags = names_of_flags(args, parser, ("toy", "data", *MAY_CHANGE))
    # The name is one folder, so the slash between the two lists of speeds becomes a hyphen.
    return f"temporal-{collection_name(args.data)}{flags.replace('/', '-')}"


def parse_speeds(text):
    """ "1,2,4,8/1,2" -> ((1, 2, 4, 8), (1, 2)), the speeds of the sight and of the sound."""
    lists = [part.split(",") for part in text.split("/")]
    are_numbers = all(speed.isdecimal() for part in lists for speed in part)
    speeds = ()
    if are_numbers:
        speeds = tuple(tuple(map(int, part)) for part in lists)
    # Synchronisation is measured at speed 1, so each list begins with 1.
    holds = all(part[0] == 1 and list(part) == sorted(set(part)) for part in speeds)
    if len(speeds) != 2 or not holds:
        raise BadInput(
            f"--speeds {text}: must be whole numbers of the sight, then of the sound, each list "
            "from 1 upwards: 1,2,4,8/1,2"
        )
    return speeds


def check_args(args, world_size):
    """Raise BadInput for every mistake that the flags alone show."""
    speeds = parse_speeds(args.speeds)
    check_rate_heard(args.rate)
    tasks = args.tasks.split(",")
    is_bank = args.bank > 0 and args.batch_size > 0 and args.bank % args.batch_size == 0
    # With two titles, half of the bank is of a clip's own, and of the rest the nearer half gives
    # negatives. So the bank holds four times as many.
    least = 4 * (FIRST_NEGATIVE + args.mined_negatives)
    rules = [
        *rules_of_run(args, world_size),
        (
            "tasks",
            tasks == ["none"] or (set(tasks) <= TASKS.keys() and len(set(tasks)) == len(tasks)),
            f"none, or some of {', '.join(TASKS)}, each once, with commas between them",
        ),
        (
            "speeds",
            "speed" not in tasks or all(len(of_one) > 1 for of_one in speeds),
            "two or more of each, or leave speed out of --tasks",
        ),
        (
            "k",
            args.k > 1 and args.share % args.k == 0 and args.k < args.share,
            f"2 or more, and a divisor of --share, {args.share}, and less: a clip needs another "
            "one of its title, and negatives of other titles",
        ),
        ("w", args.w >= args.k, f"--k ({args.k}) or more: a window holds k distinct clips"),
        ("tau", args.tau > 0, "above 0"),
        ("contrast_weight", args.contrast_weight > 0, "above 0"),
        ("weight_decay", args.weight_decay >= 0, "0 or more"),
        ("mined_negatives", args.mined_negatives > 0, "above 0 (--bank 0 mines none)"),
        (
            "bank",
            args.bank == 0 or (is_bank and args.bank >= least),
            f"0, or a multiple of --batch-size ({args.batch_size}) and {least} or more, 4 x ("
            f"{FIRST_NEGATIVE} + --mined-negatives)",
        ),
    ]
    check_rules(args, rules)


# -------------------------------------------------------------------------------------------------
# Pieces of the run, as those of pretrain.py
# -------------------------------------------------------------------------------------------------


def make_sampler(args, train):
    """Raises BadInput if there are too few titles, or none has room for k clips."""
    try:
        sampler = HierarchicalSampler(train.counts, args.batch_size, args.k, args.w, args.seed)
    except ValueError as error:
        remedy = "take lower --speeds, fewer --frames, a smaller --k, or longer films"
        raise BadInput(f"--data {args.data}: {error}; {remedy}") from error
    check_two_titles(sampler, args)
    return sampler


def learning_rate(args, step, steps_per_epoch):
    """That of pretrain.py: linear from 1e-4 to --lr over the warm-up, then a cosine to 0."""
    warmup = args.warmup * steps_per_epoch
    total = args.epochs * steps_per_epoch
    if step < warmup:
        return 1e-4 + (args.lr - 1e-4) * step / warmup
    return args.lr * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


def add_to_bank(bank, own, processes):
    """Add the clips of a step to the bank, if any: those of all processes, in order of the shares.

    own  (z_v, z_a, title) of each share of this process
    """
    if bank is None:
        return
    z_v, z_a, title = (torch.cat(part) for part in zip(*own))
    if processes.world_size > 1:
        z_v, z_a, title = gather(z_v), gather(z_a), gather(title)
    bank.add(z_v, z_a, title)


def chance_levels(sampler, train, args):
    """What guessing gives, {name: level}, counted over some minibatches.

        loss, contrast_x    that of a network that tells nothing apart, once pairs are mined
        unmined             its contrast before the bank is full
        accuracy_x          how often the commonest class occurs
        by_speed_order_x    the best accuracy of a guess from the speeds of both clips alone, since
                            faster clips overlap more

    Order is counted with all speeds that two clips can have.
    """
    heads = heads_of(args.tasks)
    spans = {
        modality: [speed * train.clip.seconds for speed in speeds]
        for modality, speeds in zip(("video", "audio"), train.speeds)
    }
    orders = {
        name: list(product(spans[first], spans[second])) for name, (first, second) in PAIRS.items()
    }
    counts = {name: torch.zeros(len(orders[name]), 3) for name in orders}  # (pairs of spans, 3)
    negatives = []  # of each clip, in its share
    for samples in some_shares(sampler, args.share):
        title = torch.tensor([n for n, _, _ in samples])
        begin = torch.tensor([train.begin(n, m) for n, m, _ in samples], dtype=torch.double)
        other_begin = begin[next_of_title(title, args.k)]
        for name, pairs in orders.items():
            for row, (span, other_span) in enumerate(pairs):
                order = order_of(begin, span, other_begin, other_span)
                counts[name][row] += order.bincount(minlength=3)
        negatives.append((title[:, None] != title[None, :]).sum(1))
    negatives = torch.cat(negatives)
    mined = args.mined_negatives if args.bank else 0
    level = (1 + negatives + mined).log().mean().item()
    chance = {"unmined": (1 + negatives).log().mean().item(), **dict.fromkeys(CONTRASTS, level)}
    chance["loss"] = 3 * args.contrast_weight * level
    for name in heads:
        classes = classes_of(name, train.speeds)
        chance["loss"] += math.log(classes)
        chance[f"accuracy_{name}"] = 1 / classes
        if name in orders:
            total = counts[name].sum()
            chance[f"accuracy_{name}"] = (counts[name].sum(0).max() / total).item()
            chance[f"by_speed_{name}"] = (counts[name].amax(1).sum() / total).item()
    return chance


def held_out_shares(held_out, args):
    """Shares of held-out clips that are played as in training: lists of (n, m, key).

    They are about as many clips as are measured for synchronisation, in whole shares.
    HELD_OUT_CLIP in their keys gives them speeds, directions and crops of their own. There are none
    where no title has k clips.
    """
    try:
        sampler = HierarchicalSampler(held_out.counts, args.share, args.k, args.w, args.seed)
    except ValueError:
        return []
    number = math.ceil(len(held_out) * args.held_out_snippets / args.share)
    shares = []
    for step in range(number):
        samples = sampler.batch(step)
        shares.append([(n, m, (*key, HELD_OUT_CLIP)) for n, m, key in samples])
    return shares


@torch.no_grad()
def measure_tasks(held_out, model, fronts, args, processes):
    """The accuracy of each head on held-out clips, on all ranks, and what was replaced.

    Returns ({held_out_x: accuracy}, a line for each clip that could not be read, on rank 0).
    """
    heads = heads_of(args.tasks)
    shares = held_out_shares(held_out, args)
    if not heads or not shares:
        return {}, []
    failures = []
    answers = torch.zeros(2, len(heads), device=processes.device)  # (right, asked)
    own = shares[processes.rank :: processes.world_size]
    for batch, video, audio in read_to_test(held_out, own, model, fronts, args, processes):
        following = next_of_title(batch["title"], args.k)
        with processes.autocast():
            _, _, logits = model(video, audio, following.to(processes.device))
        failures += sum(batch["failures"], [])
        found = answers_of(logits, labels_of(batch, following))
        for i, name in enumerate(heads):
            _, right, asked = found[name]
            answers[:, i] += torch.stack([right, asked])
    answers = processes.sum_over_ranks(*answers.flatten())
    return accuracies("held_out", heads, answers), processes.collect_on_rank_0(failures)


def measure_held_out(run, held_out, model, fronts, args, processes, step):
    """Log and print synchronisation, at speed 1, and each task's accuracy, on held-out titles."""
    measures, replaced = measure_tasks(held_out, model, fronts, args, processes)
    embedded = embed_held_out(held_out, model, fronts, args, processes)
    if embedded is not None:
        z_v, z_a, title, failures = embedded
        replaced = replaced + failures
        try:
            measures |= synchronisation(z_v, z_a, title, tau=args.tau)
        except ValueError as error:  # No pairs, or no finite similarities.
            processes.report(f"step {step:>6}  synchronisation not measured: {error}")
    if not measures:
        return
    run.log(step=step, **measures, replaced=replaced)
    words = [f"{name} {value:.2f}" for name, value in measures.items()]
    processes.report(f"step {step:>6}  held out: {', '.join(words).replace('held_out_', '')}")


def report_leaks(run, heads, step, steps_per_epoch, processes):
    """Warn of each head that is nearly always right at the end of the first epoch, and log it.

    Its task is trivial, or solved by what codecs or reading leave behind. Only the last tenth of
    the epoch's steps is counted.
    """
    if step != steps_per_epoch:
        return
    leaks = []
    for name in heads:
        values = [row[f"accuracy_{name}"] for row in run.rows if f"accuracy_{name}" in row]
        values = values[-max(1, steps_per_epoch // 10) :]
        mean = sum(values) / max(1, len(values))
        if mean >= LEAK:
            leaks.append(name)
            processes.report(
                f"warning   {name} is right in {mean:.1%} of the clips at the end of the first "
                "epoch: it is a leak or a triviality"
            )
    if leaks:
        run.log(step=step, leak_or_triviality=leaks)


def summary_of(rows, args):
    """The paper; the curves of all terms and accuracies, over the steps and on held-out titles."""
    heads = heads_of(args.tasks)
    of_steps = [*CONTRASTS, *(f"accuracy_{name}" for name in heads)]
    measures = [*SYNCHRONISATION, *(f"held_out_{name}" for name in heads)]
    return {"paper": "Temporal", **summarise(rows, measures, of_steps)}


# What the pictures show of each term and of each head: (title of its panel, unit).
PANELS = {
    "contrast_vv": ("contrast of sights", "nats"),
    "contrast_va": ("contrast, sight to sounds", "nats"),
    "contrast_av": ("contrast, sound to sights", "nats"),
    "speed_video": ("speed of the sight", "fraction right"),
    "speed_audio": ("speed of the sound", "fraction right"),
    "direction_video": ("direction of the sight", "fraction right"),
    "direction_audio": ("direction of the sound", "fraction right"),
    "order_vv": ("order of two sights", "fraction right"),
    "order_aa": ("order of two sounds", "fraction right"),
    "order_va": ("order of a sight and a sound", "fraction right"),
}


def draw_run(rows, args, path):
    """Every term and accuracy over the steps, those on held-out titles, and what guessing gives."""
    chance = dict(CHANCE)
    for row in rows:
        chance |= row.get("chance", {})
    panels = {name: PANELS[name] for name in CONTRASTS}
    curves = summary_of(rows, args)["curves"]
    held_out = {name: curves[name] for name in SYNCHRONISATION}
    for name in heads_of(args.tasks):
        panels[f"accuracy_{name}"] = PANELS[name]
        held_out[f"accuracy_{name}"] = curves[f"held_out_{name}"]
    training = {name: curves[name] for name in ("loss", *panels)}
    groups = {
        "training": {args.seed: {"curves": training}},
        "held out": {args.seed: {"curves": held_out}},
    }
    panels |= SYNCHRONISATION
    draw(path, groups, panels, loss_title="training loss (all terms)", chance=chance)


def report_start(run, args, titles, train, held_out, sampler, processes, resumed, step):
    """Print what this run is, before it begins; print and log what guessing gives."""
    report = processes.report
    chance = chance_levels(sampler, train, args)
    if not resumed:
        run.log(step=0, chance=chance)
    report_titles(titles, train, held_out, "synchronisation", args.k, processes)
    shares = args.batch_size // args.share
    report(
        f"batch     {args.batch_size} = {shares} x {args.share} contrasted together: k = {args.k}"
    )
    report(f"          clips from each of {describe_groups(sampler)}, window {args.w}")
    report_key_frames(train, processes)
    for name in CONTRASTS:
        report(f"term      {name}: a network that tells nothing apart has {chance[name]:.2f}")
    if args.bank:
        first = args.bank // args.batch_size + 1
        report(f"          with mined pairs, from step {first} on; before, {chance['unmined']:.2f}")
    for name in heads_of(args.tasks):
        classes = classes_of(name, train.speeds)
        line = f"task      {name}: {classes} classes, chance {chance[f'accuracy_{name}']:.2f}"
        if name in PAIRS:
            line += f", or {chance[f'by_speed_{name}']:.2f} if guessed from both speeds alone"
        report(line)
    report(f"steps     {len(sampler)} an epoch, {args.epochs} epochs")
    report_run(args, processes, resumed, step)


def report_key_frames(train, processes, number=16):
    """Warn if any of up to `number` evenly spaced files has frames that are not key frames.

    Prepared ones were refused before: this is for files that were not prepared.
    """

    def count_others():
        paths = [path for part in train.parts for path, _, _ in part if "://" not in path]
        some = paths[:: max(1, math.ceil(len(paths) / number))]
        return sum(not has_key_frames_only(path) for path in some), len(some)

    others, looked_at = processes.on_rank_0(count_others)
    if others:
        processes.report(
            f"warning   {others} of {looked_at} files looked at have frames other than key "
            "frames, and so tell the speed: prepare them with --gop 1"
        )


# -------------------------------------------------------------------------------------------------
# The run
# -------------------------------------------------------------------------------------------------


def main(args):
    # Processes. Under torchrun each takes some shares of every batch; without it there is one.
    processes = Processes(args.precision)
    world_size = processes.world_size
    check_args(args, world_size)
    processes.start()
    processes.check_gpu(args.share, largest_map(args.width, args.frames, args.crop))
    torch.backends.cudnn.benchmark = True
    run = Run(args.out, processes, {**vars(args), "processes": world_size}, MAY_CHANGE)

    # Data: at each place of the grid the longest clip fits.
    fmt = Format.of(args)
    speeds = parse_speeds(args.speeds)
    heads = heads_of(args.tasks)
    titles = open_titles(args, fmt, TOY, processes, TemporalTitles, TOY_WORLD, speeds=speeds)
    train, held_out = titles.split(args.held_out, args.seed)
    if args.title == "episode":
        train = train.episodes()
    sampler = make_sampler(args, train)
    steps_per_epoch = len(sampler)
    total_steps = args.epochs * steps_per_epoch
    steps_to_measure = max(1, round(min(args.measure_every, args.epochs) * steps_per_epoch))

    # Model and optimiser.
    torch.manual_seed(args.seed)
    model = TemporalModel(heads, speeds, args.bank, args.width).to(processes.device)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=args.lr, weight_decay=args.weight_decay, fused=processes.on_gpu
    )
    video_front = VideoFrontEnd().to(processes.device)
    audio_front = AudioFrontEnd(fmt).to(processes.device)

    # Begin, or resume after `start` steps, in which this much was done.
    start, done, resumed = begin_or_resume(
        run, model, optimizer, audio_front, train, args, processes
    )
    report_start(run, args, titles, train, held_out, sampler, processes, resumed, start)
    front_end = front_end_state(fmt, video_front, audio_front)
    fronts = (video_front, audio_front)
    measure = partial(measure_held_out, run, held_out, model, fronts, args, processes)
    save = partial(save_run, run, model, optimizer, front_end, sampler, train, args, draw_run)
    if not resumed:
        measure(0)
        save(0, done)
    elif start % steps_to_measure == 0 and not run.has_logged(start, "replaced"):
        measure(start)  # The run stopped before measuring.
    parallel = processes.parallel(model)

    # The loop.
    batches = read_shares(train, own_shares(sampler, start, args, processes), args, processes)
    shares = args.batch_size // args.share
    own = processes.own(shares)
    skipped_in_a_row = 0
    since_start = {"steps": 0, "seconds": 0.0, "waited": 0.0, "bad": 0}
    progress = Progress(processes, start, total_steps)
    with StopSignals() as signals:
        for step in range(start, total_steps):
            # Shares, one after another: a step takes the mean of their gradients.
            tick = time.perf_counter()
            epoch, step_of_epoch = divmod(step, steps_per_epoch)
            statistics = [buffer.clone() for buffer in model.buffers()]
            numbers = 0.0
            clips = []
            snippets = 0
            failures = []
            waited = 0.0
            optimizer.zero_grad()
            for share in own:
                save_before = partial(save, step, done, statistics)
                batch, problems, seconds = next_batch(batches, save_before)
                snippets += len(batch["video"])
                failures += problems
                waited += seconds
                batch_key = (args.seed, epoch, step_of_epoch, share)
                update_statistics(model, share == 0)
                with processes.accumulate(parallel, is_last=share == own[-1]):
                    part, found, clips_of_share = loss_of_share(
                        batch, batch_key, fronts, parallel, model.bank, args, processes
                    )
                    (part / len(own)).backward()
                numbers = numbers + found  # summed over the processes below
                clips.append(clips_of_share)
            # Step, unless a loss or a gradient is not finite. The host waits for the device once.
            norm = get_total_norm([weights.grad for weights in model.parameters()])
            not_finite = ~(numbers.isfinite().all() & norm.isfinite())
            asked_to_stop = signals.received is not None
            norm, not_finite, snippets, replaced, stop, *numbers = processes.sum_over_ranks(
                norm / world_size, not_finite, snippets, len(failures), asked_to_stop, *numbers
            )
            loss, also = describe_step(numbers, heads, shares, args)
            lr = learning_rate(args, step, steps_per_epoch)
            optimizer.param_groups[0]["lr"] = lr
            if not_finite:
                restore_statistics(model, statistics)
                skipped_in_a_row += 1
            else:
                optimizer.step()
                add_to_bank(model.bank, clips, processes)  # for the steps after this one
                skipped_in_a_row = 0
            # Log, measure and save.
            count(done, not_finite, snippets, replaced)
            if replaced:
                run.log_failures(f"epoch {epoch + 1} step {step_of_epoch}", sum(failures, []))
            seconds = time.perf_counter() - tick
            also |= {"seconds": seconds, "waited": waited}
            log_step(run, step, epoch, loss, norm, not_finite, lr, also, done)
            count_step(since_start, seconds, waited, replaced)
            progress.update(f"loss {loss:.3f}, {describe_rate(since_start, args)}")
            is_last = step + 1 == total_steps
            report_leaks(run, heads, step + 1, steps_per_epoch, processes)
            if is_last or ((step + 1) % steps_to_measure == 0 and not stop):
                measure(step + 1)
            end = reason_to_end(stop, skipped_in_a_row, signals, run, step + 1, total_steps)
            if end is None:
                end = too_many_unreadable(since_start, args, steps_per_epoch, run)
            ends_epoch = (step + 1) % steps_per_epoch == 0
            if end or ends_epoch or run.save_is_due(args.save_minutes):
                save(step + 1, done)
            if end:
                processes.end_together()
                raise end

    progress.close()
    summary = summary_of(run.rows, args)
    finish_run(run, summary, done, since_start, total_steps, args, processes)
    processes.end()


if __name__ == "__main__":
    with one_line_errors(
        "python -m papers.temporal",
        interrupted="the same command resumes from the last checkpoint",
        hints=TOO_LARGE,
    ):
        main(parse_args())
