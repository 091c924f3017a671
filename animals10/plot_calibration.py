"""The figure of how honest the probabilities of runs are: reliability diagrams, and accuracy against coverage."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.gridspec import GridSpec

from animals10.calibration import (
    AS_TRAINED,
    CALIBRATED,
    DIAGRAM_BINS,
    accepted_metrics,
    by_kind,
    coverage_curve,
    expected_calibration_error,
    reliability,
)
from animals10.plot_runs import NONE_TRAINED, wrap
from animals10.plots import BLUE, GREY, LEFT_OUT, ORANGE, STYLE, finish, message_figure
from animals10.runs import Run, dataset_in_words, run_labels

LOOKS: dict[str, dict[str, Any]] = {
    AS_TRAINED: {"color": ORANGE, "marker": "s", "linestyle": "--"},
    CALIBRATED: {"color": BLUE, "marker": "o", "linestyle": "-"},
}
# Okabe and Ito's colours, of one run each; with other lines they begin again.
COLOURS, LINES = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9"), ("-", "--", ":", "-.")
MIN_ACCEPTED = 10  # images: the curve of fewer says little
MARKED = (0.5, 0.9, 0.99)  # thresholds


@STYLE
def plot_calibration(runs: Sequence[Run]) -> plt.Figure:
    """Draws reliability diagrams of runs, and their accuracy against coverage, on the test images.

    A reliability diagram shows the accuracy, with its 95 % Wilson interval, of the images in each of ten bins of
    confidence; below it stand their numbers. Points on the diagonal are right, points below it are too confident. Runs
    with a temperature, see `calibrate`, have both kinds of probabilities. The other panel shows the accuracy of the
    images that are accepted at each threshold, with calibrated probabilities where there are some.

    Args:
        runs: The runs, in the order of the panels. Those that are not trained are left out.
    """
    trained = [run for run in runs if run.path]
    if not trained:
        return message_figure(NONE_TRAINED, LEFT_OUT)
    rows, kinds = [run.row for run in trained], [by_kind(run.predictions, run.temperature) for run in trained]
    labels, n = run_labels(rows), len(trained)
    lines = math.ceil(n / 3)
    columns = math.ceil(n / lines)
    if n == 1:
        figure = plt.figure(figsize=(9.5, 4.8), layout="constrained")
        grid = GridSpec(2, 2, figure, height_ratios=(4, 1))
        curves = figure.add_subplot(grid[:, 1])
    else:
        figure = plt.figure(figsize=(9.5, 3.7 * lines + 3.6), layout="constrained")
        grid = GridSpec(2 * lines + 1, columns, figure, height_ratios=[4, 1] * lines + [5])
        curves = figure.add_subplot(grid[-1, :])
    texts = []
    for place, (label, tables) in enumerate(zip(labels, kinds, strict=True)):
        line, column = divmod(place, columns)
        diagram = figure.add_subplot(grid[2 * line, column])
        errors = _draw_reliability(diagram, figure.add_subplot(grid[2 * line + 1, column], sharex=diagram), tables)
        diagram.set_title(f"{wrap(label, 46 if n > 1 else 70)}\n{errors}", fontsize=8 if n > 1 else 9, loc="left")
        if column == 0:
            diagram.set_ylabel("accuracy")
        look = {"color": COLOURS[place % len(COLOURS)], "linestyle": LINES[place // len(COLOURS) % len(LINES)]}
        shown = tables.get(CALIBRATED, tables[AS_TRAINED])
        _draw_coverage(curves, shown, label if n > 1 else "", look)
        texts.append(f"{label}, {', '.join(errors.splitlines())}, {_coverage_in_words(shown)}")
    lowest = min(line.get_ydata().min() for line in curves.lines)
    curves.set_ylim(lowest - 0.08 * (1.01 - lowest), 1 + 0.08 * (1.01 - lowest))  # intervals of few images may be cut
    curves.set(xlabel="coverage: share of images that are accepted", ylabel="accuracy of accepted images", xlim=(0, 1))
    curves.set_title("accuracy against coverage" + "; marks: thresholds" * (n == 1), fontsize=9, loc="left")
    curves.grid(alpha=0.25)
    if n > 1:
        curves.legend(fontsize=8, framealpha=0.7, ncols=2 if n > 6 else 1)
    handles = [plt.Line2D([], [], label=kind, **LOOKS[kind]) for kind in LOOKS if any(kind in one for one in kinds)]
    handles.append(plt.Line2D([], [], color=GREY, linestyle=":", label="confidence = accuracy"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    data = dict.fromkeys(f"{row['n_test']:,} test images of {dataset_in_words(row)}" for row in rows)
    heading = f"Reliability on {' and '.join(data)}"
    figure.suptitle(wrap(heading, 105))
    return finish(figure, f"{heading}: {'; '.join(texts)}")


def _draw_reliability(axis: plt.Axes, below: plt.Axes, tables: dict[str, pd.DataFrame]) -> str:
    """Draws a reliability diagram, and below it the numbers of images per bin; returns the errors in words."""
    axis.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1.2)
    words = []
    for kind, table in tables.items():
        bins = reliability(table)
        spans = np.abs(bins[["low", "high"]].to_numpy().T - bins.accuracy.to_numpy())
        axis.errorbar(bins.confidence, bins.accuracy, spans, markersize=4, linewidth=1.2, elinewidth=0.8, **LOOKS[kind])
        is_correct = (table.category == table.predicted).to_numpy()
        ece, by_chance = expected_calibration_error(table.confidence.to_numpy("float64"), is_correct)
        words.append(f"{kind} {ece:.3f} (by chance up to {by_chance:.3f})")
    axis.set(xlim=(0, 1), ylim=(-0.02, 1.02))
    axis.tick_params(labelbottom=False)
    axis.grid(alpha=0.25)
    centres = (np.minimum((table.confidence * DIAGRAM_BINS).astype(int), DIAGRAM_BINS - 1) + 0.5) / DIAGRAM_BINS
    counts = centres.value_counts()
    bars = below.bar(counts.index, counts, width=0.8 / DIAGRAM_BINS, color=GREY)
    below.bar_label(bars, [f"{count:,}" for count in counts], fontsize=6.5, padding=1)
    below.set(ylim=(0, 1.35 * counts.max()), yticks=[], xlabel="confidence, and number of images")
    below.spines[["top", "right", "left"]].set_visible(False)
    return "ECE " + "\nECE ".join(words)


def _draw_coverage(axis: plt.Axes, table: pd.DataFrame, label: str, look: dict[str, Any]) -> None:
    """Draws accuracy against coverage; without a label also its interval, and the marked thresholds."""
    curve = coverage_curve(table)
    curve = curve[curve.coverage * len(table) >= min(MIN_ACCEPTED, len(table))]
    axis.plot(curve.coverage, curve.accuracy, linewidth=1.6, label=label, **look)
    if label:
        return
    some = curve.iloc[np.unique(np.linspace(0, len(curve) - 1, 60).astype(int))]
    spans = pd.DataFrame([accepted_metrics(table, threshold) for threshold in some.threshold])
    axis.fill_between(spans.coverage, spans.low, spans.high, color=look["color"], alpha=0.15, linewidth=0)
    for threshold in MARKED:
        found = accepted_metrics(table, threshold)
        if found["accepted"] >= MIN_ACCEPTED:
            axis.plot(found["coverage"], found["accuracy"], "o", color=look["color"], markersize=5)
            place: dict[str, Any] = {"textcoords": "offset points", "xytext": (-4, -12), "ha": "right", "fontsize": 8}
            axis.annotate(f"{threshold:g}", (found["coverage"], found["accuracy"]), **place)


def _coverage_in_words(table: pd.DataFrame) -> str:
    found = accepted_metrics(table, 0.9)
    if not found["accepted"]:
        return "no image reaches a probability of 0.9"
    return f"at a threshold of 0.9 a coverage of {found['coverage']:.3f} with an accuracy of {found['accuracy']:.3f}"
