"""Equation 1, the contrastive loss, and Equation 2, the discrepancy measures.

B           samples that are contrasted together, each the video and the audio of one snippet
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
    shares = [torch.empty_like(z) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, z.detach().contiguous())
    shares[dist.get_rank()] = z
    return torch.cat(shares)


# The measures of `discrepancy` that pictures and tables show, with their captions.
MEASURES = {
    "kl_same_other": "KL(S⁻‖S≠)",
    "kl_same_match": "KL(S⁻‖S⁺)",
    "kl_other_match": "KL(S≠‖S⁺)",
    "gap": "KL(S≠‖S⁺) − KL(S⁻‖S⁺)",
}


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

    Raises ValueError where one of the three has no pair: two titles are needed, and two
    snippets of one of them.
    """
    s = similarity(z_v, z_a, tau)  # (B, B)
    same_title = title[:, None] == title[None, :]  # (B, B)
    same_snippet = torch.eye(len(s), dtype=torch.bool, device=s.device)
    pairs = {
        "match": s[same_snippet],
        "same": s[same_title & ~same_snippet],
        "other": s[~same_title],
    }
    if any(len(similarities) == 0 for similarities in pairs.values()):
        raise ValueError("equation 2 needs two titles or more, and two snippets of one of them")
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


def kl(p, q):
    """KL(p || q) in nats, of two distributions over the same bins, none of them empty."""
    return (p * (p / q).log()).sum().item()


def histogram(values, bins, low, high):
    """The number of values in each bin, fp64 (bins,)."""
    # histc counts in fp32, which cannot hold 2**24 + 1, so it counts one part at a time.
    return sum(torch.histc(part, bins, low, high).double() for part in values.split(2**24))
