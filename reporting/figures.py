"""The drawings of report.py. Every function takes plain data and returns a matplotlib Figure.

The losses are told apart by brightness, line style and marker, so the figures can be read in grey.
"""

import textwrap

import matplotlib
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, MultipleLocator

from losses import hinge_penalty, hinge_weight
from reporting.ranking import EDGES, RECALLS

# Text stays text in SVG: it can be searched and edited. The salt makes the same file every time.
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
matplotlib.rcParams.update(STYLE)
COLOURS = "#000000 #23238e #d6b832 #1a7a3c #8a6fd1 #4db3d9 #9e1237 #e8761a #777777".split()
COLOURS += ["#8c510a", "#c51b7d"]
DASHES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (6, 3))]
DASHES += [(0, (12, 2)), (0, (1, 1)), (0, (4, 1))]
MARGIN = 5.0  # of HingeABL, the default of losses.hinge_penalty
MARKERS = "osD^vPX<*hp>"  # 12, as coprime with the colours, so that few lines look alike


def save(figure, path):
    """Writes path.png and path.svg."""
    figure.savefig(f"{path}.png", dpi=150, bbox_inches="tight")
    figure.savefig(f"{path}.svg", bbox_inches="tight", metadata={"Date": None})


def panels(rows=1, columns=1, width=4.2, height=3.2, **more):
    """An empty figure and its axes, [rows, columns]."""
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **more)


def line_styles(labels):
    """label -> how its line is drawn; the first is black and solid."""
    return {
        label: {
            "color": COLOURS[i % len(COLOURS)],
            "linestyle": DASHES[i % len(DASHES)],
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 4,
            "linewidth": 1.5,
        }
        for i, label in enumerate(labels)
    }


def legend_below(figure, axes):
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, handlelength=3.5)


def hinge_weights():
    """Figure 3: the weight w_r against the distance d_r from the threshold."""
    distance = torch.linspace(-2 * MARGIN, 2 * MARGIN, 401)
    figure, ((axes,),) = panels()
    axes.plot(distance, hinge_weight(distance, MARGIN), color="black")
    axes.axvline(0, color="0.6", linewidth=0.8)
    axes.annotate(
        f"m = {MARGIN:g}: no weight beyond",
        (MARGIN, 0),
        (0.97, 0.35),
        textcoords="axes fraction",
        ha="right",
        arrowprops={"arrowstyle": "->", "relpos": (0.3, 0)},
    )
    axes.annotate("wrong side", (0.25, 1.01), xycoords="axes fraction", ha="center")
    axes.annotate("right side", (0.75, 1.01), xycoords="axes fraction", ha="center")
    axes.set_xlim(-2 * MARGIN, 2 * MARGIN)
    axes.xaxis.set_major_locator(MultipleLocator(MARGIN))
    axes.set_xlabel("distance $d_r$ from the threshold")
    axes.set_ylabel("hinge weight $w_r$")
    return figure


def penalties(distance):
    """name -> (penalty, slope) of one relation at these distances (Appendix E).

    The slope is the one the paper gives, by c_r = -d_r (Eq. 14 and 19). HingeABL is taken without
    the normalising of w (Eq. 17); AML's penalty is w itself (Eq. 12). The slope is autograd's.
    """

    def with_slope(function):
        d = distance.clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(d).sum(), d)
        return -slope

    found = {f"HingeABL, m = {MARGIN:g}": (hinge_penalty(distance), with_slope(hinge_penalty))}
    for m in (MARGIN, 1.0):
        penalty = hinge_weight(distance, m), with_slope(lambda d, m=m: hinge_weight(d, m))
        found[f"AML, m = {m:g}"] = penalty
    return found


def penalty_curves():
    """Appendix E: the penalty of a relation and its slope against d_r, for AML and HingeABL."""
    distance = torch.linspace(-2 * MARGIN, 1.6 * MARGIN, 400, dtype=torch.float64)
    figure, axes = panels(1, 2)
    curves = penalties(distance)
    styles = line_styles(list(curves))
    for name, both in curves.items():
        style = styles[name] | {"marker": ""}
        for panel, values in zip(axes[0], both, strict=True):
            panel.plot(distance, values, label=name, **style)
    titles = "penalty $L_r$", r"slope $-\partial L_r / \partial d_r$"
    for panel, title in zip(axes[0], titles, strict=True):
        panel.axvline(0, color="0.6", linewidth=0.8, zorder=0)
        panel.set_xlabel("distance $d_r$ from the threshold (below 0: wrong side)")
        panel.set_ylabel(title)
    legend_below(figure, axes[0, 0])
    return figure


CURVES = {  # title -> the score of dev, and what it is multiplied by
    "dev precision, %": ("precision", 100),
    "dev recall, %": ("recall", 100),
    "dev F1, %": ("f1", 100),
    "relations above the threshold,\nin dev pairs that have one": ("above_threshold", 1),
    "missed dev pairs that are ranked\nright (FN_CRK/FN), %": ("FN_CRK/FN", 100),
}


def training_curves(curves, styles):
    """Dev scores, number of relations above the threshold, and training loss against steps: the
    mean over seeds as a line, the range of the seeds as a pale band. A run of an older version may
    lack some scores.

    curves: label -> per seed a list of records of metrics.jsonl; styles: see `line_styles`.
    """
    figure, axes = panels(2, 3, width=3.6, height=2.9, sharex=True)
    for label, runs in curves.items():
        by_step = [{record["step"]: record for record in records} for records in runs]
        steps = sorted(set.intersection(*map(set, by_step)))
        drawn = []
        for key, unit in CURVES.values():
            known = [x for x in by_step if all(key in x[s]["dev"] for s in steps)]
            drawn.append([[unit * x[s]["dev"][key] for s in steps] for x in known])
        drawn.append([[x[s]["loss"] for s in steps] for x in by_step])
        style = styles[label]
        every = 1 + len(steps) // 15  # or the markers hide the line
        band = {"color": style["color"], "alpha": 0.12, "linewidth": 0}
        for panel, values in zip(axes.flat, map(np.array, drawn), strict=True):
            if len(values):
                panel.plot(steps, values.mean(0), label=label, markevery=every, **style)
                panel.fill_between(steps, values.min(0), values.max(0), **band)
    for panel, title in zip(axes.flat, [*CURVES, "loss"], strict=True):
        panel.set_title(title)
        panel.set_visible(bool(panel.lines))
    axes[1, 2].set_yscale("log")
    for panel in axes[1]:
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    legend_below(figure, axes[0, 0])
    return figure


def arrows(groups, styles):
    """Precision against recall: for each loss an arrow from its learned threshold (open marker) to
    the one that is best on dev (filled), means of the seeds, and a dot for each seed.

    groups: title of a panel -> label -> for each seed two pairs (precision, recall), in percent;
    styles: see `line_styles`.
    """
    figure, axes = panels(1, len(groups), width=4.6, height=4.2)
    for panel, (title, losses) in zip(axes[0], groups.items(), strict=True):
        points = np.concatenate([np.reshape(x, (-1, 2)) for x in losses.values()])
        (bottom, left), (top, right) = points.min(0) - 2, points.max(0) + 2
        panel.set(xlim=(left, right), ylim=(bottom, top), title=title)
        draw_equal_f1(panel, (left, right), (bottom, top))
        for label, seeds in losses.items():
            look = {"color": styles[label]["color"], "marker": styles[label]["marker"]}
            seeds = np.asarray(seeds)  # [seeds, 2, 2]
            for end, face in enumerate(("white", look["color"])):
                precision, recall = seeds[:, end].T
                dots = {"marker": ".", "s": 30, "alpha": 0.5, "linewidths": 0.7}
                panel.scatter(recall, precision, facecolors=face, edgecolors=look["color"], **dots)
                mean = [recall.mean()], [precision.mean()]
                name = label if end else None
                panel.plot(*mean, ls="", ms=6, mfc=face, label=name, zorder=3, **look)
            start, end = seeds.mean(0)[:, ::-1]
            line = {"arrowstyle": "-|>", "color": look["color"], "shrinkA": 3, "shrinkB": 4}
            panel.annotate("", end, start, arrowprops=line)
        panel.set(xlabel="recall, %", ylabel="precision, %")
        panel.grid(visible=False)
    legend_below(figure, axes[0, 0])
    return figure


def draw_equal_f1(panel, recalls, precisions):
    """Grey curves of equal F1 in this part of the plane, each with its F1 at its upper end."""
    recall = np.linspace(*recalls, 200)
    for f1 in range(2, 100, 2):
        with np.errstate(divide="ignore"):
            precision = f1 * recall / (2 * recall - f1)
        seen = (precision > precisions[0]) & (precision < precisions[1])
        panel.plot(recall[seen], precision[seen], color="0.85", linewidth=0.8, zorder=0)
        if seen.sum() > 20 and f1 % 4 == 0:
            first = recall[seen][0], precision[seen][0]
            look = {"textcoords": "offset points", "fontsize": 7, "color": "0.45"}
            panel.annotate(f"F1 {f1}", first, (2, -1), **look)


def ranking_curves(curves, styles):
    """Precision at every recall, and reliability: the share of right entries by their margin beside
    that of calibrated log-odds, 1 / (1 + e^-margin). curves: label -> per seed a pair, see
    `ranking.curves`."""
    figure, axes = panels(1, 2)
    margins = (EDGES[1:] + EDGES[:-1]) / 2
    for label, seeds in curves.items():
        style = styles[label] | {"markevery": 8}
        for panel, x, y in zip(axes[0], (RECALLS, margins), zip(*seeds, strict=True), strict=True):
            panel.plot(100 * x if x is RECALLS else x, 100 * np.mean(y, 0), label=label, **style)
    axes[0, 0].set(xlabel="recall, %", ylabel="precision, %")
    axes[0, 1].plot(margins, 100 / (1 + np.exp(-margins)), color="0.6", zorder=0)
    axes[0, 1].set(xlabel="margin $s_r - s_{TH}$", ylabel="right, % (grey: if calibrated)")
    legend_below(figure, axes[0, 0])
    return figure


def without_overlap(wanted, sizes):
    """Positions for labels of these sizes, so that none overlap, in the order of the wanted
    positions. Labels that would overlap form a block of touching labels, moved so that their
    positions have the mean of the wanted ones."""
    order = np.argsort(wanted, kind="stable")
    size = np.asarray(sizes, dtype=float)[order]
    start = np.append(0, (size[1:] + size[:-1]) / 2).cumsum()  # if all labels touched
    blocks = []
    for offset in np.asarray(wanted, dtype=float)[order] - start:
        blocks.append([offset])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    positions = np.empty(len(order))
    positions[order] = start + np.concatenate([np.full(len(b), np.mean(b)) for b in blocks])
    return positions


PAIR_MARKS = {  # of a relation -> how it is drawn
    "holds": {"marker": "D", "facecolor": "black", "s": 34},
    "above the threshold, but does not hold": {"marker": "^", "facecolor": "white", "s": 34},
    "other relations": {"marker": "o", "facecolor": "0.75", "s": 12},
}


def pair_scores(cases, names, title):
    """Figure 1b and 1c: the scores of all relations of one pair, the highest first, around the
    threshold. Relations that hold or lie above the threshold are named.

    cases: per loss a dict of title, scores [relations], threshold, labels [relations] bool;
    names: the relations' names.
    """
    figure, axes = panels(1, len(cases), width=5, height=3.8)
    for panel, case in zip(axes[0], cases, strict=True):
        draw_pair(panel, names, **case)
    figure.suptitle(title, fontsize=10, parse_math=False)
    legend_below(figure, axes[0, 0])
    return figure


def draw_pair(panel, names, title, scores, threshold, labels):
    order = np.argsort(-scores)
    rank = np.empty(len(order), dtype=int)
    rank[order] = np.arange(1, len(order) + 1)
    above = scores > threshold
    masks = labels, above & ~labels, ~above & ~labels
    for (label, mark), mask in zip(PAIR_MARKS.items(), masks, strict=True):
        look = mark | {"label": label, "zorder": 3, "edgecolor": "black", "linewidth": 0.6}
        panel.scatter(rank[mask], scores[mask], **look)
    panel.axhline(threshold, color="#c05000", linestyle="--")
    low, high = min(scores.min(), threshold), max(scores.max(), threshold)
    low, high = low - 0.06 * (high - low), high + 0.06 * (high - low)
    panel.set(xlim=(0, len(scores) + 1), ylim=(low, high))
    panel.set_title(title, parse_math=False)
    panel.set(xlabel="relations, the highest score first", ylabel="score")

    # The names are in a column on the right, moved apart where they would overlap.
    named = [r for r in order if labels[r] or above[r]]
    texts = [textwrap.fill(names[r], 26) for r in named] + [f"threshold {threshold:.2f}"]
    wanted = (np.append(scores[named], threshold) - low) / (high - low)
    heights = without_overlap(wanted, [0.02 + 0.045 * (1 + text.count("\n")) for text in texts])
    points = [(rank[r], scores[r]) for r in named] + [(len(scores) + 1, threshold)]
    for point, text, height in zip(points, texts, heights, strict=True):
        panel.annotate(
            text,
            point,
            (1.06, height),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            linespacing=1,
            parse_math=False,
            annotation_clip=False,
            color="#a04000" if text is texts[-1] else "black",
            arrowprops={"arrowstyle": "-", "color": "0.5", "linewidth": 0.6, "relpos": (0, 0.5)},
        )
