"""Figures of runs: learning curves, confusion matrices, and the test accuracies of many runs side by side.

And what notebooks show of runs: `show_run` and `show_table`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import display
from pandas.io.formats.style import Styler
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

from animals10.catalogue import is_another_experiment
from animals10.embeddings import embedding_map
from animals10.files import UserError
from animals10.model_files import load_model
from animals10.models import layer_table
from animals10.plots import (
    BLUE,
    GREY,
    LEFT_OUT,
    NUMBERS,
    ORANGE,
    STYLE,
    finish,
    message_figure,
    plot_errors,
    plot_grad_cam,
    show,
)
from animals10.results import PUBLISHED_KEY
from animals10.runs import Run, dataset_in_words, run_labels
from animals10.settings import Settings
from animals10.similarity import BACKBONE

# Numbers of classes above which the cells of a confusion matrix hold one line only; no numbers; and its axes no names.
ONE_LINE_ABOVE, NO_NUMBERS_ABOVE, NO_NAMES_ABOVE = 12, 20, 60
CURVES = ("accuracy", "loss")
NONE_TRAINED = "None of these runs is trained here."


def show_run(run: Run, settings: Settings | None = None) -> None:
    """Shows a run in a notebook, or prints why it is not trained.

    It shows the table of layers and the figure of `plot_run`; with settings also the misclassified test images and
    Grad-CAM heatmaps.

    Args:
        run: The run.
        settings: The settings, whose workspace holds the processed images; None for the run alone.
    """
    if run.path is None:
        print(f"{run.model_id} is not trained here: {run.why}")
        return
    plots = [plot_errors, plot_grad_cam]
    try:
        display(layer_table(load_model(run.file("model.keras"))[0]))
    except UserError as error:  # it was adopted without its model, say
        print(error)
        plots = plots[:1]
    show(plot_run(run))
    if settings is None:
        return
    for plot in plots:
        try:
            show(plot(run, settings.data / "processed"))
        except UserError as error:  # a network without feature maps, say
            print(error)


def show_table(
    table: pd.DataFrame,
    message: str = "",
    formats: Mapping[str, str] | None = None,
    precision: int = 3,
    index: bool = False,
) -> None:
    """Shows a table in a notebook, or prints a message if it has no rows. Equal tables give equal outputs.

    Args:
        table: The table; missing values are shown as –.
        message: What to print if it has no rows; nothing if empty, as where `train_all` has said what is left out.
        formats: Formats of columns, such as `{"params": "{:,}"}`.
        precision: Decimals of all other numbers that are not whole.
        index: Whether to show the index.
    """
    if table.empty:
        if message:
            print(message)
        return
    formats = dict(formats or {})
    styled = Styler(table, uuid="table", cell_ids=False).format(formats, precision=precision, na_rep="–")
    styled.set_table_styles([{"selector": "td", "props": "white-space: nowrap"}])
    html = styled.to_html() if index else styled.hide().to_html()
    options: dict[str, Any] = {"formatters": {name: form.format for name, form in formats.items()}, "na_rep": "–"}
    text = table.to_string(index=index, float_format=f"{{:.{precision}f}}".format, **options)
    display({"text/html": html, "text/plain": text}, raw=True)


# ── One run ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@STYLE
def plot_run(run: Run) -> plt.Figure:
    """Draws a run's learning curves, with its best epoch, and its confusion matrix on the test images.

    The matrix shows the share of each true class and the number of images. Above 12 classes the share is shown by
    colour alone, above 20 there are no numbers, and above 60 no class names.

    Raises:
        UserError: The run is not trained.
    """
    row, history, predictions = run.row, run.history, run.predictions
    is_trained = len(history) > 0
    figure = plt.figure(figsize=(9.5 if is_trained else 7, 5.6), layout="constrained")
    mosaic = [["accuracy", "matrix"], ["loss", "matrix"]] if is_trained else [["matrix"]]
    axes = figure.subplot_mosaic(mosaic, width_ratios=(1, 1.45) if is_trained else None)
    if is_trained:
        for name in CURVES:
            _draw_curves(axes[name], name, history, row["best_epoch"])
            axes[name].set(title=name, xlim=(history.epoch.min() - 0.5, history.epoch.max() + 0.5))
        axes["accuracy"].legend(fontsize=8, framealpha=0.7)
        axes["loss"].set_xlabel("epoch")
    _draw_matrix(axes["matrix"], run.record["class_names"], predictions)
    name = f"{row['model_id']} on {dataset_in_words(row)}"
    cap = "" if row["epochs_cap"] is None else f" capped at {row['epochs_cap']}"
    key = f"learning rate {row['learning_rate']:g}, maximum epochs {row['epochs']}{cap}"
    key += f", repetition {row['repetition']}"
    members = run.record.get("spec", {}).get("model", {}).get("members", [])  # of an ensemble
    key = f"mean of {len(members)} run{'s' * (len(members) > 1)}{cap}" if members else key
    key += ", trained from scratch" if row["weights"] == "none" else f", weights: {row['weights']}"
    interval = f"{row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}"
    result = f"test accuracy {row['accuracy']:.3f} (95 % interval {interval}, {row['n_test']:,} test images)"
    lines = [wrap(text, 90 if is_trained else 65) for text in (name, key, result)]
    figure.suptitle("\n".join(lines) + "\nevaluated without training" * (not is_trained and not members))
    curves = f"learning curves over {len(history)} epochs, best epoch {row['best_epoch']}"
    curves = curves if is_trained else "no learning curves, since no epoch was trained"
    return finish(figure, f"{name}, {key}: {curves}, and the confusion matrix; {result}")


def _draw_curves(axis: plt.Axes, name: str, history: pd.DataFrame, best_epoch: int) -> None:
    """Draws the training and validation curves of one metric; markers show a single epoch, too."""
    size = 3 if len(history) > 2 else 6
    axis.plot(history.epoch, history[name], "o-", color=BLUE, markersize=size, label="training")
    axis.plot(history.epoch, history[f"val_{name}"], "s--", color=ORANGE, markersize=size, label="validation")
    axis.axvline(best_epoch, color=GREY, linewidth=1.2, linestyle=":", label=f"best epoch: {best_epoch}")
    axis.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axis.yaxis.get_major_formatter().set_useOffset(False)
    axis.grid(alpha=0.25)


def _draw_matrix(axis: plt.Axes, class_names: Sequence[str], predictions: pd.DataFrame) -> None:
    counts = confusion_matrix(predictions.category, predictions.predicted, labels=class_names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    n = len(class_names)
    one_line, no_numbers = n > ONE_LINE_ABOVE, n > NO_NUMBERS_ABOVE
    options: dict[str, Any] = {"ax": axis, "cmap": "Blues", "colorbar": one_line, "xticks_rotation": 90}
    options |= {"im_kw": {"vmin": 0, "vmax": 1, "gid": NUMBERS}, "include_values": not no_numbers}
    options |= {"text_kw": {"fontsize": 6.5 if one_line else 8}}
    drawn = ConfusionMatrixDisplay(shares, display_labels=class_names).plot(**options)
    for text, share, count in zip(drawn.text_.flat, shares.flat, counts.flat) if not no_numbers else ():
        label = f"{count}" if one_line else f"{100 * share:.0f} %\n{count}"
        text.set(text=label if count else "", color="white" if share > 0.7 else "black")  # empty cells stay blank
    if n > NO_NAMES_ABOVE:
        axis.set(xticks=[], yticks=[])
    axis.tick_params(labelsize=np.clip(180 / n, 3, 9))
    title = "colour: share of each true class" + "; numbers: images" * (not no_numbers)
    title = title if one_line else "share of each true class, and number of images"
    order = f", {n} classes in alphabetical order" if n > NO_NAMES_ABOVE else ""
    axis.set(title=title, ylabel=f"true{order}", xlabel=f"predicted{order}")


# ── Learning curves of many runs ──────────────────────────────────────────────────────────────────────────────────────


@STYLE
def plot_learning_curves(runs: Sequence[Run]) -> plt.Figure:
    """Draws the learning curves of runs as small multiples with shared axes.

    Each run has a panel for accuracy and, below it, one for loss: training and validation by epoch, with the best
    epoch marked. At most three runs are side by side. Runs evaluated without training are named in a caption. The
    axis of the loss ends at twice the loss of chance, so that a run that diverged does not flatten all others.

    Args:
        runs: The runs, in the order of the panels. Those that are not trained are left out.
    """
    trained = [run for run in runs if run.path]
    if not trained:
        return message_figure(NONE_TRAINED, LEFT_OUT)
    rows, histories = [run.row for run in trained], [run.history for run in trained]
    labels = run_labels(rows)
    drawn = [index for index, history in enumerate(histories) if len(history)]
    untrained = [label for label, history in zip(labels, histories, strict=True) if history.empty]
    notes = [f"Not shown: {', '.join(untrained)}: evaluated without training."] if untrained else []
    if not drawn:
        return message_figure(" ".join(notes))
    columns = math.ceil(len(drawn) / math.ceil(len(drawn) / 3))
    lines = math.ceil(len(drawn) / columns)
    width = {1: 4.8, 2: 7.2, 3: 9.5}[columns]
    limits, is_cut = _shared_limits([histories[index] for index in drawn], len(trained[drawn[0]].record["class_names"]))
    if is_cut:
        notes.append(f"The axis of the loss ends at {limits['loss'][1]:.1f}; higher values are not shown.")
    caption = "\n".join(wrap(note, int(13 * width)) for note in notes)
    figure = plt.figure(figsize=(width, 3.15 * lines + 0.7 + 0.15 * caption.count("\n")), layout="constrained")
    axes = figure.subplots(2 * lines, columns, squeeze=False)
    texts = []
    for place in range(lines * columns):
        line, column = divmod(place, columns)
        pair = axes[2 * line : 2 * line + 2, column]
        if place >= len(drawn):
            for axis in pair:
                axis.axis("off")
            continue
        label, row, history = labels[drawn[place]], rows[drawn[place]], histories[drawn[place]]
        validation = f"best epoch {row['best_epoch']}: validation accuracy {row['acc_val']:.3f}"
        has_none_below = place + columns >= len(drawn)
        for axis, name in zip(pair, CURVES, strict=True):
            _draw_curves(axis, name, history, row["best_epoch"])
            axis.set(xlim=limits["epoch"], ylim=limits[name])
            axis.tick_params(labelleft=column == 0, labelbottom=name == "loss" and has_none_below)
            if column == 0:
                axis.set_ylabel(name)
        pair[0].set_title(f"{wrap(label)}\n{validation}", fontsize=8, loc="left")
        if has_none_below:
            pair[1].set_xlabel("epoch")
        texts.append(f"{label}, {validation}")
    handles, names = axes[0, 0].get_legend_handles_labels()
    names[-1] = "best epoch (lowest validation loss)"
    figure.legend(handles, names, loc="outside upper center", ncols=2 if columns == 1 else 3, frameon=False)
    if caption:
        figure.supxlabel(caption, fontsize=8, color=GREY)
    heading = f"Learning curves of {len(drawn)} run{'s' * (len(drawn) > 1)}"
    return finish(figure, f"{heading}: {'; '.join(texts)}" + f". {caption}" * bool(caption))


def _shared_limits(histories: Sequence[pd.DataFrame], n_classes: int) -> tuple[dict[str, tuple[float, float]], bool]:
    """Returns the limits of the axes that all panels share, by `epoch`, `accuracy` and `loss`.

    And whether the axis of the loss is cut: it ends at twice the loss of chance, unless all values are above that.
    """
    together, limits, is_cut = pd.concat(histories), {}, False
    for name in ("epoch", *CURVES):
        values = together[["epoch"] if name == "epoch" else [name, f"val_{name}"]].to_numpy(float)
        values = values[np.isfinite(values)]  # a run that diverged has others
        low, high = (values.min(), values.max()) if len(values) else (0.0, 1.0)
        most = 2 * math.log(max(n_classes, 2))
        if name == "loss" and low < most < high:
            high, is_cut = most, True
        margin = max(0.05 * (high - low), 0.5 if name == "epoch" else 0.02)
        limits[name] = (low - margin, high + margin)
    return limits, is_cut


def wrap(text: str, width: int = 46) -> str:
    """Breaks a text into lines of at most `width` characters, after blanks, underscores and hyphens where possible."""
    lines = [""]
    for part in re.findall(rf"[^ _\-]{{1,{width}}}[ _\-]*|[ _\-]+", text):
        if lines[-1] and len(lines[-1]) + len(part.rstrip()) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.rstrip() for line in lines)


# ── Test accuracies of many runs ──────────────────────────────────────────────────────────────────────────────────────


@STYLE
def plot_comparison(
    runs: Sequence[Run], published: pd.DataFrame, earlier: Sequence[Run] = (), limits: tuple[float, float] = (0, 1)
) -> plt.Figure:
    """Draws the test accuracy of runs with its 95 % interval, and the published accuracy, one line per run.

    A trial, which a cap on epochs shortened, is drawn without the published accuracy, and so is a run that was
    configured in another way than the catalogue's experiment of its name.

    Args:
        runs: The runs, the first on top. Those that are not trained are left out.
        published: The published runs, see `results.published_runs`.
        earlier: Runs that an earlier figure showed: they come first, in grey.
        limits: Of the accuracies that are drawn; a run beyond them is a number at the edge.
    """
    trained = [run for run in runs if run.path]
    if not trained:
        return message_figure(NONE_TRAINED, LEFT_OUT)
    earlier = [run for run in earlier if run.path and run not in runs]
    runs = [*earlier, *trained]
    records, rows = [run.record for run in runs], [run.row for run in runs]
    table = pd.DataFrame(rows)
    key = list(PUBLISHED_KEY)
    table = table.merge(published[[*key, "accuracy"]], "left", key, suffixes=("", "_published"), validate="m:1")
    labels, classes = run_labels(rows), sorted({len(record["class_names"]) for record in records})
    is_comparable = [run.row["epochs_cap"] is None and not is_another_experiment(run) for run in runs]
    table["accuracy_published"] = table.accuracy_published.where(is_comparable)
    names = [wrap(label, 60) for label in labels]
    height = max(0.25, 0.15 * (1 + max(name.count("\n") for name in names)))  # of a line, in inches
    figure, axis = plt.subplots(figsize=(9.5, height * len(runs) + 1.5), layout="constrained")
    for line, row in enumerate(table.to_dict("records")):
        _draw_interval(axis, line, row, line < len(earlier), limits)
    axis.plot([], [], "o-", color=BLUE, linewidth=2.6, label="measured, with 95 % interval")
    if earlier:
        axis.plot([], [], "o-", color=GREY, linewidth=2, label="shown before")
    hollow = {"markerfacecolor": "none", "markeredgecolor": ORANGE, "markeredgewidth": 1.5, "markersize": 8}
    hollow |= {"zorder": 3, "label": "published: on all of Animals-10"}
    if table.accuracy_published.notna().any():
        axis.plot(table.accuracy_published, range(len(runs)), "D", linestyle="none", **hollow)
    for n in classes:
        if limits[0] <= 1 / n <= limits[1]:
            axis.axvline(1 / n, color="black", linewidth=1, linestyle=":", label=f"chance, {n} classes: {1 / n:.2g}")
    margin = 0.01 * (limits[1] - limits[0])  # for marks at the ends
    axis.set(ylim=(len(runs) - 0.5, -0.5), xlim=(limits[0] - margin, limits[1] + margin), xlabel="test accuracy")
    axis.set_yticks(range(len(runs)), names, fontsize=9)
    axis.grid(axis="x", alpha=0.25)
    axis.spines[["top", "right", "left"]].set_visible(False)
    axis.tick_params(left=False)
    data = dict.fromkeys(f"{row['n_test']:,} test images of {dataset_in_words(row)}" for row in rows)
    heading = " and ".join(data)
    heading = f"Test accuracy on {heading}" + ", backbones with random weights" * ("random" in set(table.weights))
    figure.suptitle(heading)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    texts = [_accuracy_in_words(name, row) for name, row in zip(labels, table.to_dict("records"), strict=True)]
    return finish(figure, f"{heading}: {', '.join(texts)}")


def _draw_interval(
    axis: plt.Axes, line: int, row: Mapping[str, Any], is_earlier: bool, limits: tuple[float, float]
) -> None:
    look = {"color": GREY if is_earlier else BLUE, "linewidth": 2 if is_earlier else 2.6}
    axis.plot([row["accuracy_low"], row["accuracy_high"]], [line, line], solid_capstyle="butt", alpha=0.55, **look)
    axis.plot(row["accuracy"], line, "o", color=look["color"], markersize=6)
    if not limits[0] <= row["accuracy"] <= limits[1]:
        is_low = row["accuracy"] < limits[0]
        place = {"ha": "left", "x": limits[0]} if is_low else {"ha": "right", "x": limits[1]}
        text = f"← {row['accuracy']:.3f}" if is_low else f"{row['accuracy']:.3f} →"
        axis.text(y=line, s=text, va="center", **place)


def _accuracy_in_words(label: str, row: Mapping[str, Any]) -> str:
    published = row["accuracy_published"]
    return f"{label} {row['accuracy']:.3f}" + ("" if pd.isna(published) else f" (published {published:.3f})")


@STYLE
def plot_embeddings(settings: Settings, run: Run, backbone: str = BACKBONE) -> plt.Figure:
    """Draws a map of the test images, coloured by class, with a ring around each one that a run misclassifies.

    Similar images lie close together: the axes are the first two principal components of pooled features. The map is
    kept in `data/embedding-map.json`, from which `make report` draws it with the file names.

    Args:
        settings: The settings.
        run: A run of the workspace; if it is not trained, the figure says why.
        backbone: A name in `BACKBONES`, whose features are mapped.

    Raises:
        UserError: The run was evaluated on other images, or the features cannot be computed.
    """
    if run.path is None:
        return message_figure(f"{run.model_id} is not trained here: {run.why}", LEFT_OUT)
    found = embedding_map(settings, run, backbone)
    points, classes = found.points, sorted(set(found.points.category))
    colours = plt.get_cmap("tab10" if len(classes) <= 10 else "tab20").colors
    figure, axis = plt.subplots(figsize=(9, 6), layout="constrained")
    colour = {name: colours[number % len(colours)] for number, name in enumerate(classes)}
    mixed = points.sample(frac=1, random_state=0)  # else the last class would lie on top
    # Sharp edges: many shades of crowded points would look like a photograph to `notebooks.looks_like_photograph`.
    look = {"s": 14, "linewidths": 0, "antialiased": False}
    axis.scatter(mixed.x, mixed.y, c=[colour[name] for name in mixed.category], **look)
    for name in classes:
        axis.scatter([], [], color=colour[name], label=name, **look)
    wrong = points[points.category != points.predicted]
    rings = {"s": 60, "facecolors": "none", "antialiased": False, "linewidths": 1.0}
    axis.scatter(wrong.x, wrong.y, edgecolors=["black"] * len(wrong), **rings)
    axis.scatter([], [], edgecolors="black", label="misclassified", **rings)
    axis.set(xlabel=found.axes[0], ylabel=found.axes[1], xticks=[], yticks=[])
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    heading = f"{backbone} features of {len(points):,} test images; {run.model_id} misclassifies {len(wrong):,} of them"
    heading += f"\n{found.sample}" * bool(found.sample)
    axis.set_title(heading)
    return finish(figure, f"Scatter plot. {heading}")
