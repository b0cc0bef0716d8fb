"""The picture of k and w: which snippets of eight films share a minibatch of eight.

    python -m lab.sampling    draws lab/sampling.png

Each mark is a snippet. Those in colour, and the shaded windows that they come from, are what
`sampler.HierarchicalSampler` draws at its first step.
"""

from pathlib import Path

from matplotlib.figure import Figure

from harness.errors import make_parser, one_line_errors
from sampler import HierarchicalSampler

COUNTS = [30, 22, 24, 26, 23, 31, 32, 27]  # M_n, the snippets of each film
BATCH = 8
CHOICES = [
    # k, w, and in words
    (1, None, "the baseline:\none snippet of each film"),
    (4, None, "four snippets of a film,\nfrom anywhere in it"),
    (4, 12, "four snippets of a film,\nfrom a window of 12"),
    (4, 4, "four adjacent snippets:\nnear-copies, too hard"),
]


class WatchedSampler(HierarchicalSampler):
    """A sampler that keeps the windows it draws: `windows` is [(title, low, high)]."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.windows = []

    def draw_window(self, n, rng):
        low, high = super().draw_window(n, rng)
        self.windows.append((n, int(low), int(high)))
        return low, high


def draw_sampling(out):
    """Draw a minibatch for each of CHOICES, side by side."""
    figure = Figure(figsize=(12.4, 4.4), layout="constrained")
    panels = figure.subplots(1, len(CHOICES), sharey=True)
    for axes, (k, w, words) in zip(panels, CHOICES):
        sampler = WatchedSampler(COUNTS, batch_size=BATCH, k=k, w=w)
        samples = sampler.batch(step=0)
        draw_films(axes)
        draw_windows(axes, sampler.windows)
        for n, m, _ in samples:
            draw_marks(axes, n, [m], width=0.8, height=0.36, color=f"C{n}")
        title_of_sample = [n for n, _, _ in samples]
        own = 2 * (title_of_sample.count(title_of_sample[0]) - 1)
        negatives = 2 * (len(samples) - 1)
        axes.set_title(heading(k, w), fontsize=17, fontweight="bold")
        note = f"{own} of a snippet's {negatives} negatives\nare of its own film"
        axes.set_xlabel(f"{words}\n\n{note}", fontsize=12, labelpad=8)
    figure.savefig(out, dpi=110, format="png")


def heading(k, w):
    if w is None:
        return f"k = {k}"
    if w == k:
        return f"k = w = {k}"
    return f"k = {k}, w = {w}"


def draw_films(axes):
    """A row of grey marks for each film, the first film on top."""
    for n, count in enumerate(COUNTS):
        draw_marks(axes, n, range(count), width=0.55, height=0.12, color="0.8")
    films = [f"film {n + 1}" for n in range(len(COUNTS))]
    axes.set_yticks(range(len(COUNTS)), films, fontsize=12)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.set_xlim(-2, max(COUNTS) + 1)
    axes.set_ylim(len(COUNTS) - 0.4, -0.6)
    axes.spines[:].set_visible(False)


def draw_marks(axes, n, snippets, width, height, color):
    left = [m - width / 2 for m in snippets]
    axes.barh([n] * len(left), width, left=left, height=height, color=color)


def draw_windows(axes, windows):
    """Shade the stretch of each drawn film from which its snippets come."""
    for n, low, high in windows:
        axes.barh(n, high - low, left=low - 0.5, height=0.7, color=f"C{n}", alpha=0.2)


def parse_args(argv=None):
    parser = make_parser(__doc__, "python -m lab.sampling")
    default = Path(__file__).with_name("sampling.png")
    parser.add_argument("--out", type=Path, default=default, help="the picture")
    return parser.parse_args(argv)


if __name__ == "__main__":
    with one_line_errors("python -m lab.sampling", "nothing is lost"):
        args = parse_args()
        draw_sampling(args.out)
        print(args.out)
