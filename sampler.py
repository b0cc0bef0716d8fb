"""Which snippets share a minibatch: the paper's idea (Section 3, "Sampling Policy").

    n        a title: a film, or a show, whose episodes are stitched together
    m        a snippet of a title, 0 .. M_n - 1, in temporal order
    k        the number of snippets that each title gives to a minibatch
    w        the window, in snippets, that those k come from: k <= max m - min m + 1 <= w <= M_n

Random snippets make the task too easy: nearly every negative is from another film, and its
palette or its music gives it away. So we first draw a title, n ~ U(1, N), and then k distinct
snippets of it. Each sample then has at least 2k - 2 negatives from its own film:

    k = 1             the baseline: each snippet from a title of its own
    k = 16            k snippets from anywhere in the title (w = M_n)
    k = 16, w = 64    k snippets from a stretch of 64 neighbours
    k = w = 16        16 adjacent snippets: too hard (4.2; worse in Table 1, but for ESC-50)
    k = 16, scenes    k snippets from one scene, or from as few neighbouring scenes as hold
                      16, which the paper leaves to "future iterations" (4.2)
    i.i.d.            snippets shuffled over all titles, the policy that Section 3 begins with

The paper's idea is `draw_titles`, `draw_snippets` and `draw_window`. The rest is scenes, i.i.d.
snippets and bookkeeping.

There is no media here: counts go in, indices come out. The seed to draw titles is (seed, epoch,
step of the epoch); for a title's snippets, its place in the minibatch is added. So a resumed run
repeats itself, and every process draws the same minibatch, of which it takes its shares: 64 samples
each, which are contrasted together.
"""

import numpy as np

# Each is appended to a generator's seed, so that no two kinds of draws share their random numbers.
# The others are in media/format.py.
TITLES = 1
SNIPPETS = 2
SHUFFLE = 6


class HierarchicalSampler:
    """A batch sampler: yields minibatches, lists of `batch_size` samples (title, snippet, key).

    >>> sampler = HierarchicalSampler([100, 50, 200], batch_size=6, k=3, w=8)
    >>> for n, m, key in sampler.batch(step=0): print(n, m, key)
    2 131 (0, 0, 0, 0)
    2 129 (0, 0, 0, 1)
    2 126 (0, 0, 0, 2)
    1 12 (0, 0, 0, 3)
    1 10 (0, 0, 0, 4)
    1 15 (0, 0, 0, 5)

    Two titles gave three snippets each, from windows of 8: any two of the same title are hard
    negatives. The key of a sample is (seed, epoch, step, place in the minibatch). Whatever is
    random when it is read, such as its crop, is drawn from this key.

    num_snippets  M_n of each title, a list or an array of integers
    batch_size    of all processes together, a multiple of k
    w             None for w = M_n; cut to M_n where a title is shorter
    scenes        instead of w: for each title the lengths of its scenes, in snippets and in
                  order; they add up to M_n

    A title with M_n < k is never drawn. The titles of a minibatch are distinct while there are
    enough of them. An epoch has sum(M_n) // batch_size steps, and at least one, whatever k and
    w are. Raises ValueError where no batch can be drawn.
    """

    def __init__(self, num_snippets, batch_size, k=16, w=None, seed=0, scenes=None):
        self.M = np.asarray(num_snippets)
        if k < 1 or batch_size < 1 or batch_size % k:
            raise ValueError(f"k = {k} must divide the batch, {batch_size}")
        if w is not None and w < k:
            raise ValueError(f"w = {w} must be k = {k} or more: a window holds k distinct snippets")
        if scenes is not None and w is not None:
            raise ValueError("scenes are used instead of a window w, not beside one")
        if scenes is not None and [sum(lengths) for lengths in scenes] != self.M.tolist():
            raise ValueError("the scenes of a title must add up to its snippets")
        longest = self.M.max(initial=0)
        if longest < k:
            raise ValueError(f"every title is shorter than k = {k} snippets (longest: {longest})")

        self.batch_size = batch_size
        self.k, self.w, self.scenes, self.seed = k, w, scenes, seed
        self.groups = batch_size // k  # groups of k snippets in a minibatch
        self.steps = max(1, int(self.M.sum(dtype=np.int64)) // batch_size)
        # Nearly always all titles are long enough, and a list of them would waste memory.
        self.titles = range(len(self.M))
        if self.M.min() < k:
            self.titles = np.flatnonzero(self.M >= k).astype(np.uint32)
        self.set_epoch(0)

    def __len__(self):
        """Steps in an epoch."""
        return self.steps

    def __iter__(self):
        return map(self.batch, range(self.steps))

    def set_epoch(self, epoch):
        """Each epoch draws other minibatches."""
        self.epoch = epoch

    def batch(self, step):
        """The minibatch of one step: [(n, m, key)] * batch_size, title by title."""
        samples = []
        taken = {}  # {title: its snippets so far}, since a title may come again
        for group, n in enumerate(self.draw_titles(step)):
            rng = np.random.default_rng((self.seed, self.epoch, step, group, SNIPPETS))
            snippets = self.draw_snippets(n, rng, taken.get(n, []))
            taken[n] = taken.get(n, []) + snippets
            for m in snippets:
                samples.append((n, m, (self.seed, self.epoch, step, len(samples))))
        return samples

    def draw_titles(self, step):
        """n ~ U(1, N): a title for each group of k snippets.

        They are distinct while there are enough (our choice).
        """
        rng = np.random.default_rng((self.seed, self.epoch, step, 0, TITLES))
        N = len(self.titles)
        if self.groups < N:
            drawn = rng.choice(N, self.groups, replace=False)
        else:  # rare: with too few titles, each comes equally often, or once more than another
            rounds = [rng.permutation(N) for _ in range(self.groups // N)]
            drawn = np.concatenate([*rounds, rng.choice(N, self.groups % N, replace=False)])
        return [int(self.titles[i]) for i in drawn]

    def draw_snippets(self, n, rng, taken):
        """k distinct snippets of title n inside a window: none of `taken`, if it has k others."""
        if self.scenes is None:
            low, high = self.draw_window(n, rng)
        else:
            low, high = self.draw_scenes(n, rng)
        if taken:
            free = np.setdiff1d(np.arange(low, high), taken)
            if len(free) >= self.k:
                return rng.choice(free, self.k, replace=False).tolist()
        return (low + rng.choice(high - low, self.k, replace=False)).tolist()

    def draw_window(self, n, rng):
        """[low, high): w neighbouring snippets, placed uniformly in title n.

        In a longer title, the ends are drawn rarely: of the M_n - w + 1 windows, the first snippet
        lies in one, and a snippet far from the ends in w.
        """
        w = self.M[n] if self.w is None else min(self.w, self.M[n])
        low = rng.integers(self.M[n] - w + 1)
        return low, low + w

    def draw_scenes(self, n, rng):
        """[low, high): the scene of a uniformly drawn snippet, and its neighbours if needed.

        Of the runs of neighbouring scenes that contain that snippet and have k snippets or more,
        those of the fewest scenes are taken, and one of them is drawn.
        """
        edges = np.cumsum([0, *self.scenes[n]])  # scene i is [edges[i], edges[i + 1])
        last = len(self.scenes[n]) - 1
        snippet = rng.integers(self.M[n])
        scene = np.searchsorted(edges, snippet, "right") - 1
        length = 1  # scenes in a run; all scenes of the title together hold k snippets
        while True:
            starts = np.arange(max(0, scene - length + 1), min(scene, last + 1 - length) + 1)
            starts = starts[edges[starts + length] - edges[starts] >= self.k]
            if len(starts):
                start = rng.choice(starts)
                return edges[start], edges[start + length]
            length += 1


class IidSampler(HierarchicalSampler):
    """The policy that Section 3 argues against: snippets shuffled over the union of all titles.

    Each snippet comes once an epoch, but for the last ones, which do not fill a batch. So a
    title is drawn in proportion to its length, and a long one may give several snippets to a
    minibatch, where k = 1 of the HierarchicalSampler takes each from a title of its own.

    The arguments and the samples are those of the HierarchicalSampler, without k, w and scenes.
    Raises ValueError for fewer snippets than a minibatch.
    """

    def __init__(self, num_snippets, batch_size, seed=0):
        super().__init__(num_snippets, batch_size, k=1, seed=seed)
        self.ends = np.cumsum(self.M, dtype=np.int64)  # of each title, in the union
        self.shuffled = None, None  # an epoch, and the union in its order
        if self.ends[-1] < batch_size:
            raise ValueError(
                f"all titles together have {self.ends[-1]} snippets, less than a batch"
            )

    def batch(self, step):
        """The minibatch of one step: [(n, m, key)] * batch_size, in shuffled order."""
        first = step * self.batch_size
        samples = []
        for place, snippet in enumerate(self.order()[first : first + self.batch_size].tolist()):
            n = int(np.searchsorted(self.ends, snippet, "right"))
            m = snippet - int(self.ends[n] - self.M[n])
            samples.append((n, m, (self.seed, self.epoch, step, place)))
        return samples

    def order(self):
        """The snippets of all titles, numbered one title after another, in this epoch's order."""
        epoch, order = self.shuffled
        if epoch != self.epoch:
            rng = np.random.default_rng((self.seed, self.epoch, 0, 0, SHUFFLE))
            order = rng.permutation(np.arange(self.ends[-1], dtype=np.uint32))
            self.shuffled = self.epoch, order
        return order
