"""The picture of a run, or of several: what was measured, against the steps of training.

log       rows of a run: one for each step, with `step` and `loss`, and one for each
          measurement, with `step` and the measures
measures  {name of a measure in the log: title of its panel}
summary   {"curves": {name: ([step], [value])}, "final": {name: value}} of one run
groups    {label: {seed: summary}}: runs that differ in nothing but their seed share a label
"""

import math

import numpy as np
from matplotlib.figure import Figure

POINTS = 40  # The curve of the loss has at most this many points, each the mean of some steps.
PANEL = (13 / 3, 3.2)  # Width and height of a panel, in inches.


def summarise(log, measures):
    """Return the summary of a run: the curves of the loss and of each measure, and where they end.

    The final value of the loss is the mean of the last tenth of the steps.
    """
    steps = [row for row in log if "loss" in row]
    edges = np.linspace(0, len(steps), min(POINTS, len(steps)) + 1).astype(int)
    parts = [steps[low:high] for low, high in zip(edges, edges[1:])]
    curves = {
        "loss": (
            [mean_of("step", part) for part in parts],
            [mean_of("loss", part) for part in parts],
        )
    }
    for name in measures:
        rows = [row for row in log if name in row]
        curves[name] = ([row["step"] for row in rows], [row[name] for row in rows])
    final = {name: values[-1] for name, (_, values) in curves.items() if values}
    if steps:
        tenth = max(1, len(steps) // 10)
        final["loss"] = mean_of("loss", steps[-tenth:])
    return {"curves": curves, "final": final}


def mean_of(name, rows):
    return float(np.mean([row[name] for row in rows]))


def draw(
    path, groups, measures, last_panel=None, order=(), loss_title="training loss", unit="nats"
):
    """Write a PNG with a panel for each measure and for the loss: mean and range over the seeds.

    What was never measured gets no panel.

    last_panel  a function of matplotlib's Axes that fills one more panel
    order       the labels of all pictures that belong together, so that each label has the same
                colour in all of them
    unit        of the measures and of the loss
    """
    titles = {**measures, "loss": loss_title}
    names = [name for name in titles if was_measured(name, groups)]
    count = len(names)
    if last_panel:
        count += 1
    figure, panels = make_panels(count)
    order = [*order, *groups]
    for name, axes in zip(names, panels):
        style = ".-" if name in measures else "-"
        for label, seeds in groups.items():
            draw_curve(axes, curves_of(name, seeds), label, f"C{order.index(label)}", style)
        axes.set(title=titles[name], xlabel="step", ylabel=unit)
    if names:
        panels[0].legend()
    elif not last_panel:
        figure.suptitle("nothing is measured yet")
    if last_panel:
        last_panel(panels[-1])
    figure.savefig(path, dpi=110, format="png")


def make_panels(count):
    """A figure with `count` axes, in rows of at most three."""
    columns = max(1, min(3, count))
    rows = max(1, math.ceil(count / columns))
    width, height = PANEL
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def was_measured(name, groups):
    """Whether any run of any label has a value of `name`."""
    return any(curves_of(name, seeds) for seeds in groups.values())


def curves_of(name, seeds):
    """The curves ([step], [value]) of those seeds that have measured `name`."""
    curves = [summary["curves"][name] for summary in seeds.values()]
    return [(steps, values) for steps, values in curves if values]


def draw_curve(axes, curves, label, colour, style):
    """The mean of the seeds' curves, and their range, up to where the shortest of them ends."""
    if not curves:
        axes.plot([], [], style, color=colour, label=label)  # an empty line, for the legend
        return
    length = min(len(values) for _, values in curves)
    steps, _ = curves[0]
    steps = steps[:length]
    values = np.array([values[:length] for _, values in curves])  # (seeds, steps)
    axes.plot(steps, values.mean(0), style, color=colour, label=label)
    axes.fill_between(steps, values.min(0), values.max(0), alpha=0.15, facecolor=colour)


def draw_histograms(axes, edges, histograms, title, xlabel):
    """Fill a panel with densities. edges (bins + 1,); histograms {label: counts (bins,)}."""
    edges = np.array(edges)
    for label, counts in histograms.items():
        axes.stairs(np.array(counts) / sum(counts) / np.diff(edges), edges, label=label)
    axes.set(title=title, xlabel=xlabel, ylabel="density")
    legend_below(axes)


def legend_below(axes):
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=7)
