"""The picture of a run, or of several: what was measured, against the steps of training.

log       rows of a run: one for each step, with `step` and `loss`, and one for each
          measurement, with `step` and the measures
measures  {name of a measure in the log: (title of its panel, unit)}
summary   {"curves": {name: ([step], [value])}, "final": {name: value}} of one run
groups    {label: {seed: summary}}: runs that differ in nothing but their seed share a label
"""

import math
import textwrap

import numpy as np
from matplotlib.figure import Figure

POINTS = 40  # The curve of the loss has at most this many points, each the mean of some steps.
PANEL = (13 / 3, 3.2)  # Width and height of a panel, in inches.
ROW = 0.3  # Least height of a row in a wide panel, in inches.
WIDEST = 60  # A line of a label has at most this many characters, where labels are crowded.
# Matplotlib's cycle but for its grey, which is for networks that were not pretrained. When all of
# them are used, the next labels have the next kind of line.
COLOURS = ("C0", "C1", "C2", "C3", "C4", "C5", "C6", "C8", "C9")
LINES = ("-", "--", ":", "-.")


def summarise(log, measures, of_steps=()):
    """Return the summary of a run: the curves of the loss and of each measure, and where they end.

    of_steps  names of what else most steps have, with curves like that of the loss

    The final values of the loss and of these are the means of the last tenth of the steps.
    """
    steps = [row for row in log if "loss" in row]
    edges = np.linspace(0, len(steps), min(POINTS, len(steps)) + 1).astype(int)
    parts = [steps[low:high] for low, high in zip(edges, edges[1:])]
    curves = {}
    for name in ("loss", *of_steps):
        having = [[row for row in part if name in row] for part in parts]
        curves[name] = (
            [mean_of("step", part) for part in having if part],
            [mean_of(name, part) for part in having if part],
        )
    for name in measures:
        rows = [row for row in log if name in row]
        curves[name] = ([row["step"] for row in rows], [row[name] for row in rows])
    final = {name: values[-1] for name, (_, values) in curves.items() if values}
    if steps:
        tenth = max(1, len(steps) // 10)
        for name in ("loss", *of_steps):
            last = [row for row in steps[-tenth:] if name in row]
            if last:
                final[name] = mean_of(name, last)
    return {"curves": curves, "final": final}


def mean_of(name, rows):
    return float(np.mean([row[name] for row in rows]))


def draw(
    path,
    groups,
    measures,
    last_panel=None,
    order=(),
    loss_title="training loss",
    loss_unit="nats",
    chance=None,
    crowded=False,
    last_height=0,
    extra_panels=(),
):
    """Write a PNG with a panel for each measure and for the loss: mean and range over the seeds.

    What was never measured gets no panel.

    last_panel    a function of matplotlib's Axes that fills one more panel
    order         the labels of all pictures that belong together, so that each label looks the same
                  in all of them: see `looks_of`
    chance        {name of a measure: what guessing gives}, a dotted line in its panel
    crowded       whether the labels are many or long: then the legend has a panel of its own
    last_height   of the last panel, in inches, if it is to be as wide as the picture
    extra_panels  functions like last_panel; their panels come after those of the measures
    """
    panel_of = {**measures, "loss": (loss_title, loss_unit)}
    names = [name for name in panel_of if was_measured(name, groups)]
    count = len(names) + len(extra_panels)
    if crowded:
        count += 1
    if last_panel and not last_height:
        count += 1
    figure, panels = make_panels(count, last_height)
    looks = looks_of(groups, [*order, *groups])
    for name, axes in zip(names, panels):
        marker = "." if name in measures else ""
        for label, seeds in groups.items():
            colour, line = looks[label]
            draw_curve(axes, curves_of(name, seeds), label, colour, marker + line)
        if chance and name in chance:
            axes.axhline(chance[name], ls=":", lw=0.8, color="grey")
        title, unit = panel_of[name]
        axes.set(title=title, xlabel="step", ylabel=unit)
    for fill, axes in zip(extra_panels, panels[len(names) :]):
        fill(axes)
    if crowded:
        draw_legend(panels[len(names) + len(extra_panels)], panels[0])
    elif names:
        # A loss falls, so that its panel has room; elsewhere curves lie anywhere.
        place = names.index("loss") if "loss" in names else 0
        panels[place].legend(*panels[0].get_legend_handles_labels())
    elif not last_panel and not extra_panels:
        figure.suptitle("nothing is measured yet")
    if last_panel:
        last_panel(panels[-1])
    figure.savefig(path, dpi=110, format="png")


def looks_of(labels, order):
    """{label: (colour, kind of line)}, by the place of each label in the order of all labels.

    Where that gives two labels of a picture one colour, the later one gets a colour that is free.
    """
    looks = {}
    for label in labels:
        times_used, place = divmod(order.index(label), len(COLOURS))
        looks[label] = COLOURS[place], LINES[times_used % len(LINES)]
    taken = {colour for colour, _ in looks.values()}
    free = [colour for colour in COLOURS if colour not in taken]
    seen = set()
    for label, (colour, line) in looks.items():
        if colour in seen and free:
            looks[label] = free.pop(0), line
        seen.add(colour)
    return looks


def make_panels(count, wide_height=0):
    """A figure with `count` axes, in rows of at most three.

    wide_height  of one more below them, as wide as the figure, in inches; 0 for none
    """
    columns = max(1, min(3, count))
    rows = max(1, math.ceil(count / columns))
    width, height = PANEL
    height *= rows
    figure = Figure(figsize=(width * columns, height + wide_height), layout="constrained")
    upper = figure
    if wide_height:
        upper, lower = figure.subfigures(2, 1, height_ratios=(height, wide_height))
    axes = upper.subplots(rows, columns, squeeze=False).flatten()
    for unused in axes[count:]:
        unused.remove()
    panels = list(axes[:count])
    if wide_height:
        panels.append(lower.subplots())
    return figure, panels


def draw_legend(axes, labelled):
    """Fill a panel with the legend of another one, `labelled`."""
    handles, labels = labelled.get_legend_handles_labels()
    labels = [in_lines(label) for label in labels]
    lines = "\n".join(labels).count("\n") + 1
    axes.axis("off")
    axes.legend(handles, labels, loc="center", fontsize=min(8, 140 / lines))


def in_lines(label):
    """Break a long label after the commas between its arguments."""
    unbroken = label.replace(" ", "\N{NO-BREAK SPACE}").replace(",\N{NO-BREAK SPACE}", ", ")
    return textwrap.fill(unbroken, WIDEST).replace("\N{NO-BREAK SPACE}", " ")


def was_measured(name, groups):
    """Whether any run of any label has a value of `name`."""
    return any(curves_of(name, seeds) for seeds in groups.values())


def curves_of(name, seeds):
    """The curves ([step], [value]) of those seeds that have measured `name`.

    The summary of an older run may not know the name.
    """
    curves = [summary["curves"].get(name, ([], [])) for summary in seeds.values()]
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
