"""Figures: pictures in a grid, a run's curves and mistakes, where a network looks, and all runs beside each other.

`auxiliary` hands them on to the notebooks. Nothing here knows of settings, or writes a file. Each figure is about 900
pixels wide, which is what a notebook has on GitHub, and carries its description in words as its label (see `show`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tensorflow as tf
from IPython.display import display
from matplotlib import font_manager
from sklearn.metrics import ConfusionMatrixDisplay, confusion_matrix

from classification import classify
from networks import load_model
from pictures import as_processed, open_photograph, to_rgb
from storage import RUN_KEY, Run, StudyError

# Okabe and Ito's colours, which people of all kinds of sight can tell apart.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"
# Classes, past which the cells of a confusion matrix have room for one line only, and for none; and its edge for names.
SEVERAL, MANY, NAMELESS = 12, 20, 60
# Names of classes may be written in any script: fonts that have more of them, where they are installed.
SCRIPTS = {"Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Hiragino Sans", "Yu Gothic", "Microsoft YaHei"}
SCRIPTS |= {"Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS", "Segoe UI"}
FONTS = ["DejaVu Sans", *sorted(SCRIPTS & set(font_manager.get_font_names()))]
# A class may be called `$5$`, which is no formula.
STYLE = plt.rc_context(
    {"text.parse_math": False, "font.family": FONTS, "font.size": 9, "axes.titlesize": 10, "figure.titlesize": 11}
)


def show(figure: plt.Figure, description: str = "") -> None:
    """Shows a figure in a notebook, with a description for those who cannot see it; as a rule its own.

    It goes where IPython keeps alternative text: nbconvert's templates `classic` and `basic` put it into the page.
    """
    display(figure, metadata={"image/png": {"alt": description or figure.get_label()}})


def _finished(figure: plt.Figure, description: str) -> plt.Figure:
    figure.set_label(description)
    plt.close(figure)  # the notebook draws what the cell returns, and would draw an open figure again
    return figure


@STYLE
def _words(text: str) -> plt.Figure:
    """Says in a figure why there is nothing to draw."""
    figure = plt.figure(figsize=(9, 0.6))
    figure.text(0.5, 0.5, text, ha="center", va="center", fontsize=11)
    return _finished(figure, text)


@STYLE
def plot_pictures(
    pictures: Sequence, titles: Sequence[str], columns: int = 5, heading: str = "", colours: Sequence[str] = ()
) -> plt.Figure:
    """Draws pictures (whatever `imshow` takes, or paths of files) in a grid, each under its title.

    Raises:
        StudyError: A file is missing or no picture.
    """
    rows = -(-len(pictures) // columns)
    size = 9.5 / columns
    options = {"figsize": (9.5, rows * (size + 0.45) + 0.4 * bool(heading)), "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(rows, columns, **options)
    for axis in axes.flat:
        axis.axis("off")
    colours = colours or ["black"] * len(titles)
    for axis, picture, title, colour in zip(axes.flat, pictures, titles, colours, strict=False):
        axis.imshow(_read(picture) if isinstance(picture, Path) else picture)
        axis.set_title(title, fontsize=9, color=colour)
    figure.suptitle(heading)
    names = ", ".join(" ".join(title.split()) for title in titles)
    return _finished(figure, f"{heading or 'Pictures'}: {names}")


def _read(path: Path) -> np.ndarray:
    try:
        return plt.imread(path)
    except (OSError, ValueError) as error:
        what = f"{path} cannot be drawn ({type(error).__name__})"
        raise StudyError(f"{what}: run 01-preprocessing.ipynb again.") from None


# ── One run ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@STYLE
def plot_run(run: Run) -> plt.Figure:
    """Draws a run's learning curves, with the epoch that was kept, and its confusion matrix over the test pictures.

    The matrix shows the share of each true class and the number of pictures; past 12 classes colour alone tells the
    share, past 20 there are no numbers, and past 60 no names.
    """
    row, history, predictions = run.record["row"], run.history, run.predictions
    trained = len(history) > 0
    figure = plt.figure(figsize=(9.5 if trained else 7, 5.6), layout="constrained")
    curves = [["accuracy", "matrix"], ["loss", "matrix"]] if trained else [["matrix"]]
    axes = figure.subplot_mosaic(curves, width_ratios=(1, 1.45) if trained else None)
    for name in ("accuracy", "loss") if trained else ():
        _draw_curves(axes[name], name, history, row["best_epoch"])
    _draw_matrix(axes["matrix"], run.record["class_names"], predictions)
    name = f"{row['model_id']} on {row['dataset']}, weights: {row['weights']}"
    interval = f"{row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}"
    judged = f"test accuracy {row['accuracy']:.3f} (95 % interval {interval}, {row['n_test']} pictures)"
    figure.suptitle(f"{name}\n{judged}" + "\njudged as it was: no epoch was trained" * (not trained))
    curves = f"learning curves over {len(history)} epochs, of which the weights of number {row['best_epoch']} were kept"
    curves = curves if trained else "no learning curves, since no epoch was trained"
    return _finished(figure, f"{name}: {curves}, and the confusion matrix; {judged}")


def _draw_curves(axis: plt.Axes, name: str, history: pd.DataFrame, kept: int) -> None:
    axis.plot(history.epoch, history[name], "o-", color=BLUE, markersize=3, label="training")
    axis.plot(history.epoch, history[f"val_{name}"], "s--", color=ORANGE, markersize=3, label="validation")
    axis.axvline(kept, color=GREY, linewidth=1.2, linestyle=":", label=f"epoch kept: {kept}")
    axis.set(title=name, xlim=(history.epoch.min() - 0.5, history.epoch.max() + 0.5))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.25)
    if name == "accuracy":
        axis.legend(fontsize=8, framealpha=0.7)
    else:
        axis.set_xlabel("epoch")


def _draw_matrix(axis: plt.Axes, names: Sequence[str], predictions: pd.DataFrame) -> None:
    counts = confusion_matrix(predictions.category, predictions.predicted, labels=names)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    several, many = len(names) > SEVERAL, len(names) > MANY
    options = {"ax": axis, "cmap": "Blues", "colorbar": several, "im_kw": {"vmin": 0, "vmax": 1}}
    options |= {"xticks_rotation": 90, "include_values": not many, "text_kw": {"fontsize": 6.5 if several else 8}}
    drawn = ConfusionMatrixDisplay(shares, display_labels=names).plot(**options)
    for text, share, count in zip(drawn.text_.flat, shares.flat, counts.flat, strict=True) if not many else ():
        label = f"{count}" if several else f"{100 * share:.0f} %\n{count}"
        text.set(text=label if count else "", color="white" if share > 0.7 else "black")  # mistakes stand out
    if len(names) > NAMELESS:
        axis.set(xticks=[], yticks=[])
    axis.tick_params(labelsize=np.clip(180 / len(names), 3, 9))
    title = "colour: share of each true class" + "; numbers: pictures" * (not many)
    title = title if several else "share of each true class, and how many pictures"
    order = f", {len(names)} classes in alphabetical order" if len(names) > NAMELESS else ""
    axis.set(title=title, ylabel=f"true{order}", xlabel=f"predicted{order}")


def _mistakes(run: Run) -> pd.DataFrame:
    table = run.predictions
    wrong = table[table.category != table.predicted]
    return wrong.sort_values("confidence", ascending=False, kind="stable", ignore_index=True)


def plot_mistakes(run: Run, folder: Path, n: int = 10) -> plt.Figure:
    """Draws the test pictures that a run got wrong with most confidence: truth → prediction, and its probability.

    Args:
        run: A stored run; of one that is not there it says why.
        folder: Holds the pictures: a workspace's `data/processed`.
        n: How many at the most.

    Raises:
        StudyError: A picture is missing.
    """
    if run.path is None:
        return _words(f"{run.model_id} is not trained here: {run.why}")
    wrong, total = _mistakes(run), len(run.predictions)
    if wrong.empty:
        return _words(f"{run.model_id} makes no mistake on its {total} test pictures.")
    worst = wrong.head(n)
    titles = [f"{row.category} → {row.predicted}\n{100 * row.confidence:.0f} %" for row in worst.itertuples()]
    heading = f"{run.model_id}: {len(wrong)} of {total} test pictures are wrong"
    heading += f", the {len(worst)} most confident" if len(worst) < len(wrong) else ", most confident first"
    return plot_pictures([folder / path for path in worst.relpath], titles, heading=heading)


# ── Where a network looks ─────────────────────────────────────────────────────────────────────────────────────────────

NO_MAPS = (
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
    keras.layers.ZeroPadding2D,
    keras.layers.Dropout,
    keras.layers.InputLayer,
    keras.layers.Rescaling,
)


def last_maps(model: keras.Model) -> keras.Layer:
    """Returns the last layer that computes maps of more than one pixel, (batch, height, width, channels).

    Raises:
        StudyError: There is none.
    """
    for layer in reversed(model.layers):
        shape = getattr(layer.output, "shape", ())
        if len(shape) == 4 and min(shape[1:3]) > 1 and not isinstance(layer, NO_MAPS):
            return layer
    raise StudyError(f"{model.name} has no layer with maps of more than one pixel: Grad-CAM needs one.")


def grad_cam(
    model: keras.Model,
    pixels: np.ndarray,
    class_index: int | Sequence[int] | None = None,
    layer: str | keras.Layer | None = None,
) -> np.ndarray:
    """Computes where in pictures a network finds what speaks for a class (R. R. Selvaraju et al., arXiv:1610.02391).

    Each map of a layer is weighted with the mean gradient of the class's score before the softmax, and what is left
    above zero of their sum is the heat (equations 1 and 2 there). The mean is taken over the whole map: a network that
    flattens its maps may look at one place alone, and still be shown all places with the same answer.

    Args:
        model: A flat functional model that ends in a dense layer with softmax, as all of this study do.
        pixels: (n, height, width, 3), 0 to 255.
        class_index: Of the class, one for all pictures or one each; the predicted ones if None.
        layer: The layer or its name; `last_maps` if None.

    Returns:
        float32, (n, height, width), 0 to 1: of the hottest place of each picture; 0 throughout where nothing speaks
        for the class.

    Raises:
        StudyError: The model has no such maps.
    """
    layer = last_maps(model) if layer is None else model.get_layer(layer) if isinstance(layer, str) else layer
    end = model.layers[-1]
    inner = keras.Model(model.input, [layer.output, end.input])
    with tf.GradientTape() as tape:
        maps, features = inner(tf.convert_to_tensor(pixels, "float32"), training=False)
        # Probabilities near 1 hardly move any more: the gradient is that of what goes into the softmax.
        scores = tf.cast(features, "float32") @ tf.cast(end.kernel, "float32") + tf.cast(end.bias, "float32")
        chosen = tf.argmax(scores, axis=1) if class_index is None else tf.broadcast_to(class_index, [len(pixels)])
        score = tf.gather(scores, chosen, axis=1, batch_dims=1)
    weights = tf.reduce_mean(tf.cast(tape.gradient(score, maps), "float32"), axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * tf.cast(maps, "float32"), axis=-1, keepdims=True))
    heat = tf.image.resize(heat, pixels.shape[1:3])[..., 0].numpy()
    highest = heat.max(axis=(1, 2), keepdims=True)
    return np.divide(heat, highest, out=np.zeros_like(heat), where=highest > 0)


@STYLE
def plot_grad_cam(run: Run, folder: Path, n: int = 3) -> plt.Figure:
    """Draws where a run looked in test pictures that it got right, and in those that it got wrong.

    The most confident ones of both kinds, right ones of different classes first: each beside its Grad-CAM for the
    predicted class, laid over the grey picture.

    Args:
        run: A stored run; of one that is not there it says why.
        folder: Holds the pictures: a workspace's `data/processed`.
        n: How many of each kind.

    Raises:
        StudyError: A picture is missing, or of another size than the network takes.
    """
    if run.path is None:
        return _words(f"{run.model_id} is not trained here: {run.why}")
    table = run.predictions.sort_values("confidence", ascending=False, kind="stable")
    right = table[table.category == table.predicted]
    again = right.category.duplicated()
    kinds = {"right": pd.concat([right[~again], right[again]]).head(n), "wrong": _mistakes(run).head(n)}
    kinds = {kind: rows for kind, rows in kinds.items() if len(rows)}
    chosen = pd.concat(kinds.values())
    model, names = load_model(run.file("model.keras"))
    pixels = np.stack([_read(folder / path) for path in chosen.relpath])
    if pixels.shape[1:] != model.input_shape[1:]:
        raise StudyError(f"{folder} holds pictures of another size than {run.model_id} takes: choose its workspace.")
    heat = grad_cam(model, pixels, [names.index(name) for name in chosen.predicted])
    size = 9.5 / (2 * n)
    options = {"figsize": (9.5, len(kinds) * (size + 0.35) + 0.8), "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(len(kinds), 2 * n, **options)
    for axis in axes.flat:
        axis.axis("off")
    places = [place for line, rows in zip(axes, kinds.values()) for place in line.reshape(n, 2)[: len(rows)]]
    titles = []
    for (left, over), row, picture, warm in zip(places, chosen.itertuples(), pixels, heat, strict=True):
        is_right = row.category == row.predicted
        confident = f"{row.category} → {row.predicted} ({100 * row.confidence:.0f} %)"
        titles.append(f"{'right' if is_right else 'wrong'}: {confident}")
        left.imshow(picture)
        left.set_title(titles[-1], loc="left", color=BLUE if is_right else ORANGE)
        over.imshow(picture.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
        shown = over.imshow(warm, cmap="viridis", alpha=0.55, vmin=0, vmax=1)
    bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.4, aspect=40, ticks=[0, 1])
    bar.ax.set_xticklabels(["says nothing", "speaks most for the prediction"])
    heading = f"{run.model_id}: where it looked, by Grad-CAM"
    figure.suptitle(heading)
    return _finished(figure, f"{heading}: {', '.join(titles)}")


@STYLE
def plot_classified(
    model: keras.Model, class_names: Sequence[str], paths: Sequence[Path], top: int = 3, cam: bool = False
) -> plt.Figure:
    """Draws what a model says of pictures of any size: each beside its most probable classes.

    Args:
        model: Pixels to probabilities, as `load_model` returns it.
        class_names: Of its outputs.
        paths: Files; one that is no usable picture has the reason in its place.
        top: How many classes.
        cam: Whether to add where the model looked, by Grad-CAM for its first choice.
    """
    opinions = list(classify(model, class_names, paths))
    columns = 3 if cam else 2
    figure = plt.figure(figsize=(9.5, 1.75 * len(opinions) + 0.1), layout="constrained")
    axes = figure.subplots(len(opinions), columns, squeeze=False, width_ratios=(1, 1, 1.6)[-columns:])
    for line, opinion in zip(axes, opinions, strict=True):
        for axis in line[:-1]:
            axis.axis("off")
        line[0].set_title(opinion.path.name[-40:], loc="left", fontsize=9)
        if opinion.reason:
            line[-1].axis("off")
            line[0].text(0, 0.5, f"not classified: {opinion.reason}", va="center", fontsize=9)
            continue
        with open_photograph(opinion.path) as photograph:
            shown, pixels = to_rgb(photograph), as_processed(photograph, model.input_shape[1])
        shown.thumbnail((400, 400))
        line[0].imshow(shown)
        if cam:
            line[1].imshow(pixels.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
            line[1].imshow(grad_cam(model, pixels[None])[0], cmap="viridis", alpha=0.55, vmin=0, vmax=1)
            line[1].set_title("where it looked", fontsize=9)
        names, shares = zip(*opinion.top(top), strict=True)
        bars = line[-1].barh(names, shares, color=[BLUE] + [GREY] * (len(names) - 1), height=0.6)
        line[-1].bar_label(bars, [f"{100 * share:.1f} %" for share in shares], padding=4)
        line[-1].set(xlim=(0, 1.18), xticks=[])
        line[-1].invert_yaxis()
        line[-1].spines[["top", "right", "bottom"]].set_visible(False)
        line[-1].tick_params(left=False)
    said = [f"{one.path.name}: {one.reason or _said(one.top(top))}" for one in opinions]
    return _finished(figure, f"Classified pictures: {'; '.join(said)}")


def _said(top: Sequence[tuple[str, float]]) -> str:
    return ", ".join(f"{name} {100 * share:.1f} %" for name, share in top)


# ── All runs ──────────────────────────────────────────────────────────────────────────────────────────────────────────

KEY = ["image_size", *RUN_KEY]  # by which published runs are found again


@STYLE
def plot_comparison(
    runs: Sequence[Run], published: pd.DataFrame, earlier: Sequence[Run] = (), limits: tuple[float, float] = (0, 1)
) -> plt.Figure:
    """Draws the test accuracy of runs with its 95 % interval, and the published one, a line a run.

    Args:
        runs: In the order in which they were trained, the first on top. Those that are not there are left out.
        published: The published runs: `data/published-results.csv`.
        earlier: Runs that an earlier chart has shown: they come first, and paler.
        limits: Of the accuracies that are drawn; a run beyond them is a number at the edge.
    """
    old = [run for run in earlier if run.path and run not in runs]
    runs = old + [run for run in runs if run.path]
    if not runs:
        return _words("None of these runs is trained here.")
    records = [run.record for run in runs]
    table = pd.DataFrame([record["row"] for record in records])
    table = table.merge(published[[*KEY, "accuracy"]], "left", KEY, suffixes=("", "_published"), validate="m:1")
    names, classes = _names(table), sorted({len(record["class_names"]) for record in records})
    figure, axis = plt.subplots(figsize=(9.5, 0.25 * len(runs) + 1.5), layout="constrained")
    for line, row in enumerate(table.itertuples()):
        look = {"color": GREY if line < len(old) else BLUE, "linewidth": 2 if line < len(old) else 2.6}
        axis.plot([row.accuracy_low, row.accuracy_high], [line, line], solid_capstyle="butt", alpha=0.55, **look)
        axis.plot(row.accuracy, line, "o", color=look["color"], markersize=6)
        if not limits[0] <= row.accuracy <= limits[1]:
            lower = row.accuracy < limits[0]
            where = {"ha": "left", "x": limits[0]} if lower else {"ha": "right", "x": limits[1]}
            axis.text(y=line, s=f"← {row.accuracy:.3f}" if lower else f"{row.accuracy:.3f} →", va="center", **where)
    axis.plot([], [], "o-", color=BLUE, linewidth=2.6, label="measured, with 95 % interval")
    if old:
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
    data = table[["dataset", "n_test"]].drop_duplicates()
    heading = " and ".join(f"{name} ({n:,} pictures)" for name, n in zip(data.dataset, data.n_test))
    heading = f"Test accuracy on {heading}" + ", backbones with random weights" * ("random" in set(table.weights))
    figure.suptitle(heading)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    shown = [_in_words(name, row) for name, row in zip(names, table.to_dict("records"))]
    return _finished(figure, f"{heading}: {', '.join(shown)}")


def _in_words(name: str, row: Mapping) -> str:
    published = row["accuracy_published"]
    return f"{name} {row['accuracy']:.3f}" + ("" if pd.isna(published) else f" (published {published:.3f})")


def _names(table: pd.DataFrame) -> list[str]:
    """Names runs so that all differ: by their `model_id`, and by what else tells those apart that share one."""
    parts = {"epochs": "{} epochs", "learning_rate": "rate {:g}", "repetition": "no. {}"}
    names = []
    for row in table.itertuples():
        same = table[table.model_id == row.model_id]
        differing = [text.format(getattr(row, part)) for part, text in parts.items() if same[part].nunique() > 1]
        names.append(", ".join([row.model_id, *differing]))
    return names
