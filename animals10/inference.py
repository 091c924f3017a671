"""Predictions of a stored model for image files of any size and format, one or ten thousand."""

import csv
import glob
import os
import sys
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from animals10.calibration import temperature_of, with_temperature
from animals10.decoding import open_image
from animals10.files import UserError, atomic_write, write_json
from animals10.images import processed_pixels, rejection_reason
from animals10.input_pipeline import mirror_image
from animals10.model_files import load_model, resize_of
from animals10.progress import Progress
from animals10.runs import find_model
from animals10.settings import Settings


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one file.

    Attributes:
        path: The file.
        class_names: The classes that the model knows.
        probabilities: Of the classes, float32 (classes,), 0 to 1; empty if the file is not a usable image.
        reason: Why the file is not usable; empty if it is.
    """

    path: Path
    class_names: Sequence[str]
    probabilities: np.ndarray
    reason: str = ""

    def top(self, n: int = 3) -> list[tuple[str, float]]:
        """Returns the n most probable classes with their probabilities, highest first; none if there are none."""
        best = np.argsort(-self.probabilities, kind="stable")[:n]
        return [(self.class_names[index], float(self.probabilities[index])) for index in best]

    @property
    def by_class(self) -> dict[str, float]:
        """The probability of each class by its name; empty if the file is not a usable image."""
        return dict(zip(self.class_names, map(float, self.probabilities), strict=False))

    def line(self, n: int = 3, threshold: float = 0.0) -> str:
        """Returns the path and the n most probable classes, or the reason why there are none, as one line.

        A prediction whose highest probability is below the threshold is marked as rejected.
        """
        rejected = "rejected: " * self.is_rejected(threshold)
        return f"{self.path}: {rejected}{probabilities_in_words(self.top(n)) or f'not classified: {self.reason}'}"

    def is_rejected(self, threshold: float) -> bool:
        """Tells whether the highest probability is below a threshold; not if the file is not a usable image."""
        return bool(len(self.probabilities)) and float(self.probabilities.max()) < threshold


def probabilities_in_words(top: Sequence[tuple[str, float]]) -> str:
    """Returns classes and probabilities as text: `dog 93.1 %, cat 4.0 %`."""
    return ", ".join(f"{name} {100 * probability:.1f} %" for name, probability in top)


def find_images(places: Sequence[str | Path]) -> list[Path]:
    """Finds files, each once, in the order of the places and by name within a place.

    Args:
        places: Files; folders, for all files in them and in their subfolders; patterns with `*`, `?`, `[…]` or `**`.
            Hidden files in folders are left out.

    Raises:
        UserError: There is nothing at a place.
    """
    found: list[Path] = []
    for place in map(str, places):
        path = Path(place).expanduser()
        if path.is_dir():
            files = sorted(file for file in path.rglob("[!.]*") if not file.is_dir())
            files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
        elif path.exists():
            files = [path]
        else:
            names = glob.glob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            files = sorted(Path(name) for name in names if not Path(name).is_dir())
        if not files:
            raise UserError(f"{place} holds no files." if path.is_dir() else f"There is no file or folder {place}.")
        found += files
    return list(dict.fromkeys(found))


def classify(
    model: keras.Model, class_names: Sequence[str], paths: Sequence[Path], batch_size: int = 32, mirrored: bool = False
) -> Iterator[Prediction]:
    """Classifies files batch by batch, in their order; memory does not grow with their number.

    Each image is processed like the training images: EXIF orientation applied, composited on white, made square in the
    same way, compressed and decoded as JPEG. While a batch is predicted, the next ones are read. A file that is not a
    usable image gets a reason instead of probabilities, and the others go on.

    Args:
        model: Maps pixels, float32 (n, size, size, 3), 0 to 255, to probabilities, (n, classes).
        class_names: The classes in the order of the model's outputs.
        paths: The files.
        batch_size: Images per batch.
        mirrored: Whether to predict the mean over each image and its mirror image (test-time augmentation).

    Yields:
        One prediction per file.
    """
    size, resize = model.input_shape[1], resize_of(model)
    signature = tf.TensorSpec((None, size, size, 3), tf.float32)

    def probabilities(pixels: tf.Tensor) -> tf.Tensor:
        found = model(pixels, training=False)
        return (found + model(mirror_image(pixels), training=False)) / 2 if mirrored else found

    predict = tf.function(probabilities, input_signature=[signature], autograph=False)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ahead: deque[list[Future]] = deque()
        for start in range(0, len(paths) + 2 * batch_size, batch_size):
            ahead.append([pool.submit(_read, path, size, resize) for path in paths[start : start + batch_size]])
            if len(ahead) > 2:
                batch = [future.result() for future in ahead.popleft()]
                yield from _predict_batch(predict, class_names, batch)


def _read(path: Path, size: int, resize: str) -> tuple[Path, np.ndarray | str]:
    """Returns an image's pixels, uint8 (size, size, 3), or the reason why there are none."""
    try:
        with open_image(path) as image:
            return path, processed_pixels(image, size, resize)
    except Exception as error:  # whatever is wrong with one file must not stop the others
        return path, rejection_reason(error)


def _predict_batch(
    predict: tf.types.experimental.PolymorphicFunction,
    class_names: Sequence[str],
    batch: Sequence[tuple[Path, np.ndarray | str]],
) -> Iterator[Prediction]:
    usable = [pixels for _, pixels in batch if not isinstance(pixels, str)]
    probabilities = iter(predict(tf.constant(np.stack(usable), tf.float32)).numpy() if usable else ())
    for path, found in batch:
        if isinstance(found, str):
            yield Prediction(path, class_names, np.empty(0, "float32"), found)
        else:
            yield Prediction(path, class_names, next(probabilities))


@dataclass(frozen=True)
class Options:
    """How files are classified.

    Attributes:
        mirrored: Whether probabilities are the mean over each image and its mirror image.
        temperature: The temperature of calibrated probabilities; None if they are those of the network.
        threshold: Probability below which predictions are rejected; None for none.
    """

    mirrored: bool = False
    temperature: float | None = None
    threshold: float | None = None


def write_predictions_csv(
    predictions: Sequence[Prediction], class_names: Sequence[str], path: Path, options: Options
) -> None:
    """Writes predictions as a table, one row per file: path, predicted class, its probability, reason, `p_<class>`.

    Options other than the default add columns: `mirrored`, `temperature`, and `rejected` for the threshold.

    Raises:
        UserError: The file cannot be written.
    """
    given: dict[str, object] = {"mirrored": True} if options.mirrored else {}
    given |= {"temperature": options.temperature} if options.temperature is not None else {}
    rejected = ["rejected"] if options.threshold is not None else []
    columns = ["path", "predicted", "confidence", "reason", *rejected, *given, *(f"p_{name}" for name in class_names)]
    encoding: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "backslashreplace"}
    with atomic_write(path) as temporary, temporary.open("w", **encoding) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for prediction in predictions:
            row: dict[str, object] = given | {"path": str(prediction.path), "reason": prediction.reason}
            for predicted, confidence in prediction.top(1):
                row |= {"predicted": predicted, "confidence": confidence}
            if options.threshold is not None:
                row["rejected"] = prediction.is_rejected(options.threshold)
            writer.writerow(row | {f"p_{name}": value for name, value in prediction.by_class.items()})


def write_predictions_json(predictions: Sequence[Prediction], model: Path, path: Path, options: Options) -> None:
    """Writes the model's path, the options, and the probabilities of each file; with a threshold also `rejected`.

    Raises:
        UserError: The file cannot be written.
    """
    files: list[dict[str, Any]] = [
        {"path": _printable(one.path), "probabilities": one.by_class, "reason": one.reason} for one in predictions
    ]
    if options.threshold is not None:
        for file, one in zip(files, predictions, strict=True):
            file["rejected"] = one.is_rejected(options.threshold)
    write_json({"model": _printable(model)} | asdict(options) | {"files": files}, path)


def _printable(path: Path) -> str:
    """Returns a path as text that can be encoded: bytes of a file name that are not UTF-8 are escaped."""
    return str(path).encode("utf-8", "backslashreplace").decode("utf-8")


def _threshold(text: str | float) -> float:
    """Returns the threshold that a person gave as REJECT, if it is a number from 0 to 1."""
    try:
        threshold = float(text)
    except ValueError:
        threshold = np.nan
    if not 0 <= threshold <= 1:
        raise UserError(f"REJECT is {text}; allowed is a probability from 0 to 1, such as 0.9.")
    return threshold


def classify_files(
    settings: Settings,
    model: str,
    places: Sequence[str | Path],
    top: int = 3,
    csv_path: Path | None = None,
    json_path: Path | None = None,
    mirrored: bool = False,
    calibrated: bool = False,
    reject: str | float | None = None,
) -> int:
    """Classifies files with a stored model, prints one line per file, and writes all probabilities if asked to.

    Args:
        settings: The settings; their workspace holds the models.
        model: As for `find_model`.
        places: As for `find_images`.
        top: Classes per line.
        csv_path: Where to write a table of all probabilities.
        json_path: Where to write them as JSON.
        mirrored: Whether to predict the mean over each image and its mirror image.
        calibrated: Whether to divide the logits by the temperature of the model's run, which is fitted if need be.
        reject: A probability, 0 to 1: predictions below it are marked as rejected.

    Returns:
        The number of files that are not usable images; their lines say why.

    Raises:
        UserError: There is no such model or file, a result cannot be written, the threshold is out of range, or the
            model cannot be calibrated.
    """
    threshold = None if reject is None else _threshold(reject)
    if mirrored and calibrated:
        raise UserError(
            "MIRRORED and CALIBRATED cannot be combined: the temperature was fitted without mirror images. Make an "
            "ensemble of the run with mirrored=True, and classify with that."
        )
    paths, path = find_images(places), find_model(settings.root, model)
    temperature = temperature_of(settings, path) if calibrated else None
    loaded, class_names = load_model(path)
    loaded = loaded if temperature is None else with_temperature(loaded, temperature)
    options = Options(mirrored, temperature, threshold)
    predictions = []
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")  # odd EXIF data and palettes do not matter
        found = classify(loaded, class_names, paths, mirrored=mirrored)
        # On stderr, since results are on stdout; not where that is no terminal.
        bar: dict[str, Any] = {"total": len(paths), "unit": "image", "file": sys.stderr, "disable": None}
        for prediction in Progress(found, **bar):
            predictions.append(prediction)
            Progress.write(prediction.line(top, threshold or 0.0))
    if csv_path:
        write_predictions_csv(predictions, class_names, csv_path, options)
    if json_path:
        write_predictions_json(predictions, path, json_path, options)
    if threshold is not None:
        rejected = sum(prediction.is_rejected(threshold) for prediction in predictions)
        print(f"{rejected} of {len(predictions)} predictions were rejected: below {threshold:g}.", file=sys.stderr)
    failed = sum(bool(prediction.reason) for prediction in predictions)
    if failed:
        print(f"{failed} of {len(predictions)} files were not classified.", file=sys.stderr)
    return failed
