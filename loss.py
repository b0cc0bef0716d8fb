"""Equation 1, the contrastive loss, and Equation 2, the discrepancy measures.

    B        samples in a minibatch, each a snippet's video and audio
    z_v, z_a (B, d) embeddings of video and audio, fp32, not normalised
    s        (B, B) similarities, s[i, j] = z_v[i]^T z_a[j]: positives on the diagonal, negatives off it
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F


def nce_loss(z_v, z_a, tau=None):
    """Equation 1, averaged over the batch instead of summed. (B, d), (B, d) -> ().

                                   e^{s_ii}
        L_i = - log -------------------------------------------
                    e^{s_ii} + sum_{j != i} (e^{s_ij} + e^{s_ji})

    One softmax a sample, over its positive and its 2B - 2 negatives: i's video with the other sounds (row i of s) and
    i's sound with the other videos (column i), together. Not CLIP's two softmaxes averaged, which would count
    the positive twice and let each direction be solved alone.

    tau: None for the paper's unnormalised embeddings; a number for l2-normalised ones over tau (Table 2).
    Raises ValueError for shapes that differ or for a batch without negatives.
    """
    if z_v.shape != z_a.shape or z_v.dim() != 2 or len(z_v) < 2:
        raise ValueError(f"need two (B, d) of one shape with B >= 2, not {tuple(z_v.shape)} and {tuple(z_a.shape)}")
    s = similarity(z_v, z_a, tau)                                            # (B, B)
    diagonal = torch.eye(len(s), dtype=torch.bool, device=s.device)
    positive = s.diagonal()                                                  # (B,) s_ii
    row = s.logsumexp(dim=1)                                                 # (B,) the positive and the negatives s_ij
    column = s.masked_fill(diagonal, -torch.inf).logsumexp(dim=0)            # (B,) the negatives s_ji alone
    return (torch.logaddexp(row, column) - positive).mean()


def similarity(z_v, z_a, tau=None):
    """s (B, B), in fp32 at least, whatever autocast says: bf16 keeps 8 bits, too few for an exponent."""
    with torch.autocast(z_v.device.type, enabled=False):
        exact = torch.promote_types(z_v.dtype, torch.float32)
        z_v, z_a = z_v.to(exact), z_a.to(exact)
        if tau is not None:
            return F.normalize(z_v, dim=1) @ F.normalize(z_a, dim=1).T / tau
        return z_v @ z_a.T


def gather(z):
    """Embeddings of all W processes, (B, d) -> (W * B, d): `--gather` contrasts each sample with the whole batch.

    A gathered tensor carries no gradient, so each process puts its own share back in. All compute the same loss, and the
    backward pass of each reaches its own B rows. The gradient is the *sum* over the processes, of which DDP takes the
    mean: the caller must multiply the loss by W before `backward`.
    """
    shares = [torch.empty_like(z) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, z.detach().contiguous())
    shares[dist.get_rank()] = z
    return torch.cat(shares)


@torch.no_grad()
def discrepancy(z_v, z_a, title, tau=None, bins=64, pseudo_count=0.5):
    """The similarity distributions of Equation 2 and the divergences between them, to be taken on held-out titles.

        S+   video and audio of the same snippet                 `match`
        S-   of two snippets of one title                        `same`
        S!=  of snippets of two titles                           `other`

    z_v, z_a (B, d); title (B,) the title of each sample. Each distribution is a histogram over `bins` bins of equal
    width that the three share, from the least to the greatest similarity, with a pseudo-count in every bin so that no
    divergence is infinite (the paper does not say how it estimates them). Returns plain numbers, in nats:

        kl_same_other    KL(S- || S!=)    first discrepancy measure; 0 if the title did not matter
        kl_same_match    KL(S- || S+)     should grow as correspondence is learned
        kl_other_match   KL(S!= || S+)
        gap              KL(S!= || S+) - KL(S- || S+)    second discrepancy measure
        counts           {match, same, other}: how many pairs each estimate stands on
        edges, histograms    bins + 1 edges; {match, same, other}: pairs in each bin
    Raises ValueError where one of the three has no pair: it takes two titles, one of them with two snippets.
    """
    s = similarity(z_v, z_a, tau)                                            # (B, B)
    same_title = title[:, None] == title[None, :]                            # (B, B)
    same_snippet = torch.eye(len(s), dtype=torch.bool, device=s.device)
    pairs = {"match": s[same_snippet], "same": s[same_title & ~same_snippet], "other": s[~same_title]}
    if not all(len(x) for x in pairs.values()):
        raise ValueError("equation 2 needs two titles or more, and two snippets or more of one of them")
    low, high = s.min().item(), s.max().item()
    # In parts, because histc counts in fp32, which has no 2**24 + 1.
    histograms = {name: sum(torch.histc(y, bins, low, high).double() for y in x.split(2**24)) for name, x in pairs.items()}
    p = {name: (counts + pseudo_count) / (counts + pseudo_count).sum() for name, counts in histograms.items()}

    def kl(a, b):
        return (p[a] * (p[a] / p[b]).log()).sum().item()

    return {
        "kl_same_other": kl("same", "other"),
        "kl_same_match": kl("same", "match"),
        "kl_other_match": kl("other", "match"),
        "gap": kl("other", "match") - kl("same", "match"),
        "counts": {name: len(x) for name, x in pairs.items()},
        "edges": torch.linspace(low, high, bins + 1).tolist(),
        "histograms": {name: counts.long().tolist() for name, counts in histograms.items()},
    }
