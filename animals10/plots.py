"""Figures of images: grids, misclassified images, Grad-CAM heatmaps, predictions. Figures of runs are in `plot_runs`.

Each figure is about 900 pixels wide, as wide as a notebook is on GitHub, and carries a description in words as its
label (see `show`). To add a figure, write a function that returns `finish(figure, description)`.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import tensorflow as tf
from IPython.display import display
from matplotlib import font_manager
from matplotlib.image import AxesImage, BboxImage, FigureImage

from animals10.augmentation import Augmentation, augment, mixing
from animals10.decoding import open_image, to_rgb
from animals10.files import UserError
from animals10.grad_cam import grad_cam
from animals10.images import processed_pixels, rejection_reason
from animals10.inference import classify, probabilities_in_words
from animals10.model_files import load_model, resize_of
from animals10.runs import Run
from animals10.settings import hides_photographs

# Okabe and Ito's colours, which can be told apart with any colour vision.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#767676"
# Class names may be written in any script: fonts with more scripts, where they are installed.
SCRIPTS = {"Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Hiragino Sans", "Yu Gothic", "Microsoft YaHei"}
SCRIPTS |= {"Noto Sans Devanagari", "Noto Sans Thai", "Arial Unicode MS", "Segoe UI"}
FONTS = ["DejaVu Sans", *sorted(SCRIPTS & set(font_manager.get_font_names()))]
# A class may be called `$5$`, which is not a formula.
STYLE: Any = plt.rc_context(
    {"text.parse_math": False, "font.family": FONTS, "font.size": 9, "axes.titlesize": 10, "figure.titlesize": 11}
)


# The gid of what `imshow` draws if it is a matrix or a heatmap; any other image counts as a photograph.
NUMBERS = "numbers"
THUMBNAIL = 400  # pixels of the longer edge of an image in a grid
MESSAGE = "message"  # the gid of a figure that is a message
LEFT_OUT = "left out"  # and of one whose runs are not trained, as `train_all` has said already
HIDDEN = "Photographs are not published here: they appear when you run this notebook."


def show(figure: plt.Figure, description: str = "") -> None:
    """Shows a figure in a notebook, with an alternative text for readers who cannot see it.

    The text is stored where IPython keeps it; nbconvert's templates `classic` and `basic` put it into the page. A
    figure that only says why there is nothing to draw is printed, unless the reason is that none of its runs is
    trained: `train_all` has said so. With `ANIMALS10_PUBLISH`, photographs are replaced,
    see `hide_photographs`, and the output's metadata say so.

    Args:
        figure: The figure.
        description: The alternative text; the figure's own if empty.
    """
    plt.close(figure)  # a notebook would draw it again at the end of the cell
    metadata = {"alt": description or figure.get_label()}
    if figure.get_gid() == LEFT_OUT:
        return
    if figure.get_gid() == MESSAGE:
        print(metadata["alt"])
        return
    if hides_photographs():
        metadata["alt"] += f". {HIDDEN}" * hide_photographs(figure)
        metadata["photographs"] = "hidden"
    display(figure, metadata={"image/png": metadata})


@STYLE
def hide_photographs(figure: plt.Figure) -> bool:
    """Replaces the images in a figure by flat grey areas, which bear the names of their files, and says so below them.

    Matrices and heatmaps stay: images whose gid is `NUMBERS`. The name of a file is the image's label.

    Returns:
        Whether there were any.
    """
    images = figure.findobj(lambda artist: isinstance(artist, (AxesImage, BboxImage, FigureImage)))
    photographs = [image for image in images if image.get_gid() != NUMBERS]
    for image in photographs:
        image.set_data(np.full((*image.get_size(), 3), 232, "uint8"))
        axes = image.axes
        if axes is None or any(other.get_gid() == NUMBERS for other in axes.images):  # beneath a heatmap
            continue
        label = image.get_label()
        name = "image" if label.startswith("_child") else textwrap.fill(label, 20, break_on_hyphens=False)
        place = {"transform": axes.transAxes, "ha": "center", "va": "center"}
        axes.text(0.5, 0.5, name, fontsize=7, color="#555555", **place)
    if photographs:
        figure.text(0.5, -0.01, HIDDEN, ha="center", va="top", fontsize=8, color=GREY)
    return bool(photographs)


def finish(figure: plt.Figure, description: str) -> plt.Figure:
    """Gives a figure its description and closes it, so that a notebook draws it once; returns the figure."""
    figure.set_label(description)
    plt.close(figure)
    return figure


@STYLE
def message_figure(text: str, gid: str = MESSAGE) -> plt.Figure:
    """Returns a figure that says why there is nothing to draw; its gid tells `show` what to do with it."""
    lines = textwrap.wrap(text, 95, break_on_hyphens=False)
    figure = plt.figure(figsize=(9, 0.4 + 0.2 * len(lines)))
    figure.add_axes((0, 0, 1, 1)).axis("off")  # IPython shows no figure without axes
    figure.text(0.5, 0.5, "\n".join(lines), ha="center", va="center", fontsize=11)
    figure.set_gid(gid)
    return finish(figure, text)


@STYLE
def plot_images(
    images: Sequence, titles: Sequence[str], columns: int = 5, heading: str = "", colours: Sequence[str] = ()
) -> plt.Figure:
    """Draws images in a grid, each under its title.

    Args:
        images: Paths of image files of any format, or whatever `imshow` takes.
        titles: One per image.
        columns: Images per row.
        heading: Above all of them.
        colours: Of the titles; all black if empty.

    Raises:
        UserError: A file is missing or is not an image.
    """
    rows = -(-len(images) // columns)
    size = 9.5 / columns
    options = {"figsize": (9.5, rows * (size + 0.45) + 0.4 * bool(heading)), "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(rows, columns, **options)
    for axis in axes.flat:
        axis.axis("off")
    colours = colours or ["black"] * len(titles)
    for axis, image, title, colour in zip(axes.flat, images, titles, colours, strict=False):
        name = image.name if isinstance(image, Path) else ""
        axis.imshow(_read(image, THUMBNAIL) if isinstance(image, Path) else image, label=name)
        axis.set_title(title, fontsize=9, color=colour)
    figure.suptitle(textwrap.fill(heading, 95, break_on_hyphens=False))
    names = ", ".join(" ".join(title.split()) for title in titles)
    return finish(figure, f"{heading or 'Images'}: {names}")


def plot_gallery(table: pd.DataFrame, folder: Path, n: int = 10, heading: str = "") -> plt.Figure:
    """Draws the first images of a table, each under what the table says of it, such as `dog → cat` and a score.

    Args:
        table: One row per image with its `relpath` and `category`, as `label_issues` and `nearest_images` return it; of
            `suggested`, `score` and `cosine`, what there is stands in the titles.
        folder: The processed images: a workspace's `data/processed`.
        n: The maximum number of images.
        heading: Above all of them.

    Raises:
        UserError: An image is missing.
    """
    if table.empty:
        return message_figure("There are no such images.")
    shown, titles = table.head(n), []
    for row in shown.to_dict("records"):
        title = f"{row['category']} → {row['suggested']}" if "suggested" in row else str(row["category"])
        numbers = [f"{name} {row[name]:.2f}" for name in ("score", "cosine") if name in row]
        titles.append("\n".join([title, *numbers]))
    return plot_images([folder / relpath for relpath in shown.relpath], titles, heading=heading)


def plot_augmentations(image: Path, other: Path, seed: int = 5, size: int = 224) -> plt.Figure:
    """Draws what each augmentation does to one image: a row per augmentation, with the image and four random results.

    Args:
        image: An image file.
        other: Another one, with which MixUp and CutMix mix it.
        seed: Of the random numbers.
        size: Edge of the augmented images in pixels.

    Raises:
        UserError: A file is missing or is not an image.
    """
    files = tf.stack([tf.image.resize(_read(path), (size, size)) for path in (image, other)])
    keys = [tf.constant([seed, draw], tf.int64) for draw in range(4)]
    still = Augmentation(0.0, (1.0, 1.0), (1.0, 1.0), 0.0, (1.0, 1.0), horizontal_flip=False, vertical_flip=False)
    augmentations = {
        "standard": Augmentation(),
        "no vertical flip": Augmentation(vertical_flip=False),
        "RandAugment, strength 1": replace(still, rand_augment=1.0),
        "random erasing": replace(still, erasing=1.0),
    }
    rows = {name: [augment(files[0], key, one) for key in keys] for name, one in augmentations.items()}
    for name, mix in {"MixUp, alpha 1": mixing(1.0, 0.0), "CutMix, alpha 1": mixing(0.0, 1.0)}.items():
        pairs = tf.gather(files, [0, 1, 1, 1, 1, 1])  # partners are drawn from the batch, the image itself included
        mixed = [mix(key, pairs, tf.eye(6)) for key in keys]
        rows[name] = [pixels[0] for pixels, _ in mixed]
    images = [files[0] if draw is None else draw for draws in rows.values() for draw in (None, *draws)]
    titles = [name if draw == 0 else "" for name in rows for draw in range(5)]
    heading = f"{image.name} and four random results of each augmentation; MixUp and CutMix use {other.name}"
    figure = plot_images([pixels.numpy().astype("uint8") for pixels in images], titles, heading=heading)
    return finish(figure, f"{heading}. One row each: {', '.join(rows)}")


def _read(path: Path, longest: int | None = None) -> np.ndarray:
    """Returns the pixels of an image file, as RGB; shrunk where an edge is longer than `longest`."""
    try:
        with open_image(path) as image:
            rgb = to_rgb(image)
        if longest:
            rgb.thumbnail((longest, longest))
        return np.asarray(rgb)
    except (OSError, ValueError) as error:
        found = f"{path} cannot be drawn ({rejection_reason(error)})"
        raise UserError(f"{found}: run 01-preprocessing.ipynb again.") from None


def _errors(run: Run) -> pd.DataFrame:
    """Returns the predictions for the misclassified test images, highest confidence first."""
    table = run.predictions
    wrong = table[table.category != table.predicted]
    return wrong.sort_values("confidence", ascending=False, kind="stable", ignore_index=True)


def plot_errors(run: Run, folder: Path, n: int = 10) -> plt.Figure:
    """Draws the misclassified test images with the highest confidence: true class → prediction, and its probability.

    Args:
        run: A stored run; if it is not trained, the figure says why.
        folder: The processed images: a workspace's `data/processed`.
        n: The maximum number of images.

    Raises:
        UserError: An image is missing.
    """
    if run.path is None:
        return message_figure(f"{run.model_id} is not trained here: {run.why}")
    wrong, total = _errors(run), len(run.predictions)
    if wrong.empty:
        return message_figure(f"{run.model_id} classifies all of its {total} test images correctly.")
    worst = wrong.head(n)
    titles = [f"{row.category} → {row.predicted}\n{100 * row.confidence:.0f} %" for row in worst.itertuples()]
    heading = f"{run.model_id}: {len(wrong)} of {total} test images misclassified"
    heading += f", the {len(worst)} most confident" if len(worst) < len(wrong) else ", most confident first"
    return plot_images([folder / path for path in worst.relpath], titles, heading=heading)


@STYLE
def plot_grad_cam(run: Run, folder: Path, n: int = 3) -> plt.Figure:
    """Draws Grad-CAM heatmaps of correctly classified and of misclassified test images.

    It takes the images with the highest confidence of both kinds; of correct ones, different classes first. Beside
    each image is its heatmap for the predicted class, laid over the image in grey.

    Args:
        run: A stored run; if it is not trained, the figure says why.
        folder: The processed images: a workspace's `data/processed`.
        n: The maximum number of each kind.

    Raises:
        UserError: An image is missing or has another size than the model takes, or Grad-CAM does not fit the model.
    """
    if run.path is None:
        return message_figure(f"{run.model_id} is not trained here: {run.why}")
    table = run.predictions.sort_values("confidence", ascending=False, kind="stable")
    correct = table[table.category == table.predicted]
    repeated = correct.category.duplicated()
    kinds = [pd.concat([correct[~repeated], correct[repeated]]).head(n), _errors(run).head(n)]
    kinds = [rows for rows in kinds if len(rows)]
    chosen = pd.concat(kinds)
    model, class_names = load_model(run.file("model.keras"))
    pixels = np.stack([_read(folder / path) for path in chosen.relpath])
    if pixels.shape[1:] != model.input_shape[1:]:
        raise UserError(
            f"{folder} holds images of {pixels.shape[1]} pixels and {run.model_id} takes {model.input_shape[1]}: "
            "choose the workspace of the run (ANIMALS10_ROOT)."
        )
    heatmaps = grad_cam(model, pixels, [class_names.index(name) for name in chosen.predicted])
    size = 9.5 / (2 * n)
    options = {"figsize": (9.5, len(kinds) * (size + 0.35) + 0.8), "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(len(kinds), 2 * n, **options)
    for axis in axes.flat:
        axis.axis("off")
    pairs = [pair for line, rows in zip(axes, kinds) for pair in line.reshape(n, 2)[: len(rows)]]
    titles, shown = [], None
    for (left, right), row, image, heatmap in zip(pairs, chosen.itertuples(), pixels, heatmaps, strict=True):
        is_correct = row.category == row.predicted
        predicted = f"{row.category} → {row.predicted} ({100 * row.confidence:.0f} %)"
        titles.append(f"{'correct' if is_correct else 'wrong'}: {predicted}")
        left.imshow(image, label=Path(row.relpath).name)
        left.set_title(titles[-1], loc="left", color=BLUE if is_correct else ORANGE)
        shown = _draw_heatmap(right, image, heatmap)
    bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.4, aspect=40, ticks=[0, 1])
    bar.ax.set_xticklabels(["no evidence", "strongest evidence for the predicted class"])
    heading = f"{run.model_id}: Grad-CAM heatmaps for the predicted class"
    figure.suptitle(textwrap.fill(heading, 95, break_on_hyphens=False))
    return finish(figure, f"{heading}: {', '.join(titles)}")


def _draw_heatmap(axis: plt.Axes, image: np.ndarray, heatmap: np.ndarray) -> Any:
    """Draws a heatmap (0 to 1) over an image (0 to 255) in grey."""
    axis.imshow(image.mean(axis=-1), cmap="gray", vmin=0, vmax=255)
    return axis.imshow(heatmap, cmap="viridis", alpha=0.55, vmin=0, vmax=1, gid=NUMBERS)


@STYLE
def plot_predictions(
    model: keras.Model, class_names: Sequence[str], paths: Sequence[Path], top: int = 3, cam: bool = False
) -> plt.Figure:
    """Draws a model's predictions for images of any size: each image beside its most probable classes.

    Args:
        model: Maps pixels to probabilities, as `load_model` returns it.
        class_names: The classes in the order of its outputs.
        paths: Image files; for a file that is not usable the figure says why.
        top: Classes per image.
        cam: Whether to add the Grad-CAM heatmap for the top-1 class.

    Raises:
        UserError: Grad-CAM does not fit the model.
    """
    predictions = list(classify(model, class_names, paths))
    columns = 3 if cam else 2
    figure = plt.figure(figsize=(9.5, 1.75 * len(predictions) + 0.1), layout="constrained")
    axes = figure.subplots(len(predictions), columns, squeeze=False, width_ratios=(1, 1, 1.6)[-columns:])
    for line, prediction in zip(axes, predictions, strict=True):
        for axis in line[:-1]:
            axis.axis("off")
        line[0].set_title(prediction.path.name[-32:], loc="left", fontsize=8)
        if prediction.reason:
            line[-1].axis("off")
            line[0].text(0, 0.5, f"not classified: {prediction.reason}", va="center", fontsize=9)
            continue
        with open_image(prediction.path) as image:
            shown, pixels = to_rgb(image), processed_pixels(image, model.input_shape[1], resize_of(model))
        shown.thumbnail((THUMBNAIL, THUMBNAIL))
        line[0].imshow(shown, label=prediction.path.name)
        if cam:
            _draw_heatmap(line[1], pixels, grad_cam(model, pixels[None])[0])
            line[1].set_title("Grad-CAM, top-1 class", fontsize=9)
        names, shares = zip(*prediction.top(top), strict=True)
        bars = line[-1].barh(range(len(names)), shares, color=[BLUE] + [GREY] * (len(names) - 1), height=0.6)
        line[-1].bar_label(bars, [f"{100 * share:.1f} %" for share in shares], padding=4)
        line[-1].set(xlim=(0, 1.18), xticks=[])
        line[-1].set_yticks(range(len(names)), names)  # now, since `STYLE` does not reach what is made when drawn
        line[-1].invert_yaxis()
        line[-1].spines[["top", "right", "bottom"]].set_visible(False)
        line[-1].tick_params(left=False)
    texts = [f"{one.path.name}: {one.reason or probabilities_in_words(one.top(top))}" for one in predictions]
    return finish(figure, f"Predictions: {'; '.join(texts)}")
