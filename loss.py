"""Equation 1, the contrastive loss, and what is measured: Equation 2, and synchronisation.

B           samples, each the video and the audio of one snippet: of a share in training, and all
            held-out ones in measuring
d           size of an embedding, 512
z_v, z_a    (B, d) embeddings of video and audio, fp32, not normalised
s           (B, B) similarities, s[i, j] = z_v[i]^T z_a[j]: positives on the diagonal
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F


def nce_loss(z_v, z_a, tau=None):
    """Equation 1, averaged over the batch instead of summed. (B, d), (B, d) -> ().

                                   e^{s_ii}
        L_i = - log -------------------------------------------
                    e^{s_ii} + sum_{j != i} (e^{s_ij} + e^{s_ji})

    There is one softmax a sample, over its positive and its 2B - 2 negatives: i's video with
    the other sounds (row i of s), and i's sound with the other videos (column i), together.
    This is not CLIP's loss, the mean of two cross-entropies, one over the row and one over the
    column: there the positive counts twice. A network that tells nothing apart, whose
    similarities are all alike, has a loss of ln(2B - 1).

    tau  None for the paper's unnormalised embeddings; a number for l2-normalised embeddings
         over this temperature (Table 2)

    Raises ValueError for shapes that differ and for a batch without negatives.
    """
    if z_v.shape != z_a.shape or z_v.dim() != 2 or len(z_v) < 2:
        shapes = f"{tuple(z_v.shape)} and {tuple(z_a.shape)}"
        raise ValueError(f"need two tensors of one shape (B, d) with B >= 2, not {shapes}")
    s = similarity(z_v, z_a, tau)  # (B, B)
    diagonal = torch.eye(len(s), dtype=torch.bool, device=s.device)
    positive = s.diagonal()  # (B,) s_ii
    row = s.logsumexp(dim=1)  # (B,) over the positive and the negatives s_ij
    column = s.masked_fill(diagonal, -torch.inf).logsumexp(dim=0)  # (B,) over the negatives s_ji
    return (torch.logaddexp(row, column) - positive).mean()


def similarity(z_v, z_a, tau=None):
    """s (B, B), in fp32 or better, also under autocast.

    A similarity is an exponent, and the significand of bf16 has only 8 bits.
    """
    with torch.autocast(z_v.device.type, enabled=False):
        precision = torch.promote_types(z_v.dtype, torch.float32)
        z_v, z_a = z_v.to(precision), z_a.to(precision)
        if tau is not None:
            return F.normalize(z_v, dim=1) @ F.normalize(z_a, dim=1).T / tau
        return z_v @ z_a.T


def gather(z):
    """The embeddings of all processes: (B, d) -> (world_size * B, d), in the order of the ranks.

    `--gather` contrasts each sample with the global batch. all_gather returns tensors without
    gradient, so each process puts its own embeddings back in, and its backward pass reaches
    its own B rows. All processes compute the same loss, so its gradient is the *sum* of what
    they find, but DDP takes the mean: the caller must multiply the loss by world_size.
    """
    parts = [torch.empty_like(z) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, z.detach().contiguous())
    parts[dist.get_rank()] = z
    return torch.cat(parts)


# The measures of `synchronisation`, and all measures that pictures and tables show, in this order:
# {name: (caption, unit)}.
SYNCHRONISATION = {
    "sync_same": ("P(sᵢᵢ > sᵢⱼ), same title", "fraction of pairs"),
    "sync_other": ("P(sᵢᵢ > sᵢⱼ), other titles", "fraction of pairs"),
}
MEASURES = {
    "kl_same_other": ("KL(S⁻‖S≠)", "nats"),
    "kl_same_match": ("KL(S⁻‖S⁺)", "nats"),
    "kl_other_match": ("KL(S≠‖S⁺)", "nats"),
    "gap": ("KL(S≠‖S⁺) − KL(S⁻‖S⁺)", "nats"),
    **SYNCHRONISATION,
}
# The values of a network that tells nothing apart, for measures where they are known.
CHANCE = {"sync_same": 0.5, "sync_other": 0.5}


def kinds_of_pairs(title):
    """Which pairs (i, j) are of which kind: (B,) titles -> {match, same, other}, each (B, B).

    Raises ValueError where one of the three has no pair: two titles are needed, and two
    snippets of one of them.
    """
    same_title = title[:, None] == title[None, :]  # (B, B)
    same_snippet = torch.eye(len(title), dtype=torch.bool, device=title.device)
    kinds = {"match": same_snippet, "same": same_title & ~same_snippet, "other": ~same_title}
    if not all(of_kind.any() for of_kind in kinds.values()):
        raise ValueError("equation 2 needs two titles or more, and two snippets of one of them")
    return kinds


@torch.no_grad()
def discrepancy(z_v, z_a, title, tau=None, bins=64, pseudo_count=0.5):
    """The similarity distributions of Equation 2, on held-out titles, and their divergences.

        S+   `match`   a video and an audio of the same snippet
        S-   `same`    of two snippets of one title
        S!=  `other`   of snippets of two titles

    z_v, z_a  (B, d)
    title     (B,) the title of each sample

    Each distribution is a histogram. The three share `bins` bins of equal width, from the
    least to the greatest similarity, with a pseudo-count in every bin, so that no divergence
    is infinite (our choice: the paper does not say how it estimates them). Returns plain
    numbers, in nats:

        kl_same_other    KL(S- || S!=), the first discrepancy measure: 0 if titles do not matter
        kl_same_match    KL(S- || S+), which should grow as correspondence is learned
        kl_other_match   KL(S!= || S+)
        gap              KL(S!= || S+) - KL(S- || S+), the second discrepancy measure
        counts           {match, same, other}: how many pairs each histogram holds
        edges            the bins + 1 edges of the bins
        histograms       {match, same, other}: the number of pairs in each bin

    Raises ValueError where one of the three has no pair, or a similarity is not finite.
    """
    s = check_finite(similarity(z_v, z_a, tau))  # (B, B)
    pairs = {name: s[of_kind] for name, of_kind in kinds_of_pairs(title).items()}
    low, high = s.min().item(), s.max().item()
    histograms = {name: histogram(pairs[name], bins, low, high) for name in pairs}
    density = {}
    for name, counts in histograms.items():
        density[name] = (counts + pseudo_count) / (counts + pseudo_count).sum()
    other_match = kl(density["other"], density["match"])
    same_match = kl(density["same"], density["match"])
    return {
        "kl_same_other": kl(density["same"], density["other"]),
        "kl_same_match": same_match,
        "kl_other_match": other_match,
        "gap": other_match - same_match,
        "counts": {name: len(similarities) for name, similarities in pairs.items()},
        "edges": torch.linspace(low, high, bins + 1).tolist(),
        "histograms": {name: counts.long().tolist() for name, counts in histograms.items()},
    }


def check_finite(s):
    """Return these similarities. Raises ValueError if one of them is not finite."""
    if not s.isfinite().all():
        raise ValueError("a similarity is not finite")
    return s


def kl(p, q):
    """KL(p || q) in nats, of two distributions over the same bins, with no empty bin."""
    return (p * (p / q).log()).sum().item()


def histogram(values, bins, low, high):
    """The number of values in each bin, fp64 (bins,)."""
    # histc counts in fp32, which cannot hold 2**24 + 1, so it counts one part at a time.
    return sum(torch.histc(part, bins, low, high).double() for part in values.split(2**24))


@torch.no_grad()
def synchronisation(z_v, z_a, title, tau=None):
    """How often what belongs together is more similar than what does not, on held-out titles.

        sync_same    P(s_ii > s_ij) for the other snippets j of the title of i
        sync_other   P(s_ii > s_ij) for the snippets j of other titles

    z_v, z_a  (B, d)
    title     (B,) the title of each sample

    Each pair (i, j) counts in both directions: the video of i with the sound of j, s_ij, and
    the sound of i with the video of j, s_ji. A tie counts half, so a network that tells nothing
    apart has 0.5. All pairs of a kind have equal weight, so a title counts by the number of its
    pairs. Only the order of the similarities matters, whatever the scale of the embeddings. The
    paper does not measure this (our choice). Returns plain numbers, from 0 to 1.

    Raises ValueError for what `discrepancy` refuses.
    """
    kinds = kinds_of_pairs(title)
    pairs = {"same": kinds["same"], "other": kinds["other"]}
    return {f"sync_{name}": x for name, x in fraction_of_wins(z_v, z_a, pairs, tau).items()}


@torch.no_grad()
def fraction_of_wins(z_v, z_a, pairs, tau=None):
    """P(s_ii > s_ij) over each kind of pairs, as `synchronisation` counts it: {name: fraction}.

    pairs  {name: (B, B) of bool}, which pairs (i, j) are of this kind; each has one or more

    Raises ValueError if a similarity is not finite.
    """
    # The order of a sum decides its last bits, and must not decide a tie. So the sums have fp64,
    # and are rounded to fp32 before they are compared.
    s = check_finite(similarity(z_v.double(), z_a.double(), tau).float())  # (B, B)
    positive = s.diagonal()[:, None]  # (B, 1) s_ii
    fractions = {}
    for name, of_kind in pairs.items():
        wins, ties = 0, 0
        for negative in (s, s.T):  # (B, B) s_ij, and s_ji
            wins += ((positive > negative) & of_kind).sum().item()
            ties += ((positive == negative) & of_kind).sum().item()
        fractions[name] = (wins + ties / 2) / (2 * of_kind.sum().item())
    return fractions
