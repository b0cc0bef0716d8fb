"""Who is most similar to whom, for `lab.evaluate retrieve` and `fingerprint`.

Q queries; N entries of the gallery; D features.
"""

import torch
import torch.nn.functional as F

from harness.errors import BadInput


def cosine_similarity(queries, gallery):
    """Features (Q, D), (N, D) -> (Q, N), from -1 to 1; a vector of zeros is similar to none.

    The order of a sum decides its last bits, and must not decide a tie. So the sums have fp64, and
    are rounded to seven decimals. Raises BadInput for features that are not finite, since nothing
    could be ranked before them.
    """
    for features in (queries, gallery):
        if not features.isfinite().all():
            raise BadInput("the features are not finite; name another --ckpt")
    queries = F.normalize(queries.double(), dim=1)
    gallery = F.normalize(gallery.double(), dim=1)
    return (queries @ gallery.T).round(decimals=7)


def rank_of_match(similarity, is_match):
    """The rank, from 1 on, of the most similar match of each query: (Q, N), bool (Q, N) -> (Q,).

    What is no match and just as similar comes first, so that a network that tells nothing apart
    finds nothing. Without any match the rank is N + 1.
    """
    best = similarity.masked_fill(~is_match, -torch.inf).amax(1, keepdim=True)  # (Q, 1)
    return 1 + ((similarity >= best) & ~is_match).sum(1)
