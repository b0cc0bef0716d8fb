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

import math

import torch
import torch.nn.functional as F
from torch import nn

from models import AudioVisualModel

ROUNDING = 1e-6  # seconds

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
