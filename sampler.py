"""Which snippets share a minibatch: the paper's idea on one screen (Section 3, "Sampling Policy").

    n        title (a film, or a show: its episodes stitched together)
    m        snippet of a title, 0 .. M_n - 1, in temporal order
    k        snippets that each title gives to a minibatch
    w        window, in snippets, that those k come from: k <= max - min + 1 <= w <= M_n

Random snippets make the task too easy: nearly every negative is from another film, and its palette or its
music gives it away. So we first draw a title, n ~ U(1, N), and then k distinct snippets of it, so that each
sample has at least 2k - 2 negatives from its own film:

    k = 1             the baseline: every snippet from a title of its own, while there are enough
    k = 16            k snippets from anywhere in the title (w = M_n)
    k = 16, w = 64    ... from a stretch of 64 neighbours
    k = w = 16        ... from 16 adjacent ones: too hard, it costs accuracy (Table 1)
    k = 16, scenes    ... from the scene around a snippet, and as few of its neighbours as hold 16 ("future iterations")

No media here: indices in, indices out. Each group of k is a function of (seed, epoch, step, place in the global
batch) alone, so a resumed run repeats itself, and any number of processes share out the same global batch.
"""

import numpy as np

TITLES, SNIPPETS = 1, 2  # the last word of a key, so that no two draws share a stream of numbers

class HierarchicalSampler:
    """A batch sampler: yields, for one rank, lists of `batch_size` pairs `(title, snippet)`.

    >>> sampler = HierarchicalSampler([100, 50, 200], batch_size=6, k=3, w=8)
    >>> for batch in sampler: print(batch); break
    [(2, 131), (2, 129), (2, 126), (1, 12), (1, 10), (1, 15)]

    Two titles gave three snippets each, within 8 of one another: any two of the same title are hard negatives.

    num_snippets  M_n of each title: a list or an array of integers, kept as an array and nothing more
    batch_size    of this rank; k must divide it. The global batch is world_size times as large.
    w             None for w = M_n; cut to M_n where a title is shorter. A title with M_n < k is never drawn.
    scenes        instead of w: of each title the lengths of its scenes, in snippets and in order; they add up to M_n.

    The titles of a global batch are distinct while there are enough of them; beyond that each gives as many groups as
    any other, or one more, whose snippets stay distinct as long as the windows hold enough. An epoch has as many steps
    as all snippets fill, sum(M_n) / global batch, whatever k and w are.
    Raises ValueError where no batch can be drawn.
    """

    def __init__(self, num_snippets, batch_size, k=16, w=None, rank=0, world_size=1, seed=0, scenes=None):
        self.M = np.asarray(num_snippets)
        if k < 1 or batch_size < 1 or batch_size % k:
            raise ValueError(f"k = {k} must divide the batch of a process, {batch_size}")
        if w is not None and w < k:
            raise ValueError(f"k = {k} distinct snippets do not fit in a window of w = {w}: w must be k or more")
        if scenes is not None and (w is not None or [sum(lengths) for lengths in scenes] != self.M.tolist()):
            raise ValueError("scenes stand instead of a window w, and those of a title must add up to its snippets")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank = {rank} must be at least 0 and below world_size = {world_size}")
        if self.M.size == 0 or self.M.max() < k:
            raise ValueError(f"every title is shorter than k = {k} snippets (the longest: {self.M.max(initial=0)})")
        self.batch_size, self.k, self.w, self.scenes = batch_size, k, w, scenes
        self.rank, self.world_size, self.seed = rank, world_size, seed
        # The titles that can give k snippets: all of them, as a rule, and then a list of them would be waste.
        self.titles = range(len(self.M)) if self.M.min() >= k else np.flatnonzero(self.M >= k).astype(np.uint32)
        self.steps = max(1, int(self.M.sum(dtype=np.int64)) // (batch_size * world_size))
        self.set_epoch(0)

    def __len__(self):
        """Steps in a whole epoch, also when iteration starts in the middle of one."""
        return self.steps

    def __iter__(self):
        while self.step < len(self):
            self.step += 1  # before the yield: the position is the number of batches that have left
            yield self.batch(self.step - 1)
        self.step = 0

    def set_epoch(self, epoch):
        """Another epoch draws other batches; iteration starts at its first step."""
        self.epoch, self.step = epoch, 0

    def state_dict(self):
        """The position. A loop behind a DataLoader that reads ahead must save the `step` that it has trained on."""
        return {"epoch": self.epoch, "step": self.step}

    def load_state_dict(self, state):
        self.epoch, self.step = state["epoch"], state["step"]

    def batch(self, step):
        """This rank's share of the global batch of one step: [(title, snippet)] * batch_size, title by title."""
        titles, groups = self.draw_titles(step), self.batch_size // self.k
        batch, taken = [], {}
        for place, n in enumerate(titles[: (self.rank + 1) * groups]):  # the lower ranks' too: what they took is taken
            rng = np.random.default_rng((self.seed, self.epoch, step, place, SNIPPETS))
            snippets = self.draw_snippets(n, rng, taken.get(n, ()))
            taken[n] = [*taken.get(n, ()), *snippets]
            if place >= self.rank * groups:
                batch += [(n, m) for m in snippets]
        return batch

    def draw_titles(self, step):
        """n ~ U(1, N), without replacement: the titles of all ranks, so that ranks differ without a word exchanged."""
        rng = np.random.default_rng((self.seed, self.epoch, step, 0, TITLES))
        need, N = self.batch_size // self.k * self.world_size, len(self.titles)
        rounds = [rng.permutation(N) for _ in range(need // N)]  # only where a batch needs more titles than there are
        return [int(self.titles[i]) for i in np.concatenate([*rounds, rng.choice(N, need % N, replace=False)])]

    def draw_snippets(self, n, rng, taken=()):
        """k distinct snippets of title n inside a window; none `taken`, if that leaves k."""
        low, high = self.draw_window(n, rng) if self.scenes is None else self.draw_scenes(n, rng)
        window = np.arange(low, high)
        free = np.setdiff1d(window, taken)
        return rng.choice(free if len(free) >= self.k else window, self.k, replace=False).tolist()

    def draw_window(self, n, rng):
        """[low, high): w snippets, placed uniformly."""
        w = min(self.w or self.M[n], self.M[n])
        low = rng.integers(self.M[n] - w + 1)
        return low, low + w

    def draw_scenes(self, n, rng):
        """[low, high): the scene of a snippet drawn uniformly, with as few of the scenes beside it as hold k snippets."""
        edges = np.cumsum([0, *self.scenes[n]])                              # scene i is [edges[i], edges[i + 1])
        scene = np.searchsorted(edges, rng.integers(self.M[n]), "right") - 1
        for few in range(1, len(edges)):
            first = np.arange(max(0, scene - few + 1), min(scene, len(edges) - 1 - few) + 1)  # of each run that holds it
            first = first[edges[first + few] - edges[first] >= self.k]
            if len(first):                                                   # several runs may be as short
                i = rng.choice(first)
                return edges[i], edges[i + few]
