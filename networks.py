"""The networks of the study: what they are made of, which layers are trained, how they are kept, when training ends.

`auxiliary` hands on what notebooks need of it. Nothing here knows of photographs, tables or settings.
"""

import importlib.util
import json
import logging
import os
import sys
import time
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from IPython import get_ipython
from sklearn.utils.class_weight import compute_class_weight
from tqdm import tqdm

import activations
from storage import StudyError, whole_file


@dataclass(frozen=True)
class CNN:
    """A hand-built network: blocks of 3 × 3 convolution and max pooling, then dense layers.

    Attributes:
        filters: Filters of each convolution.
        pool_sizes: Edge of the max pooling after each convolution, in pixels.
        dense_units: Units of each dense layer before the output.
        dropout: Rate after each dense layer; 0 for none.
    """

    filters: tuple[int, ...]
    pool_sizes: tuple[int, ...]
    dense_units: tuple[int, ...] = (128,)
    dropout: tuple[float, ...] = (0.3,)

    def build(self, n_classes: int, image_size: int = 224) -> keras.Model:
        """Returns the untrained network, from pixels (0 to 255) to probabilities; StudyError for too few pixels."""
        edge = image_size
        for pool_size in self.pool_sizes:
            edge = (edge - 2) // pool_size
        if edge < 1:
            shrinking = f"{len(self.filters)} convolutions and poolings ({', '.join(map(str, self.pool_sizes))})"
            raise StudyError(
                f"Pictures of {image_size} pixels are too small for {shrinking}: set ANIMALS10_IMAGE_SIZE."
            )
        inputs = keras.Input((image_size, image_size, 3), name="pixels")
        x = keras.layers.Rescaling(1 / 255)(inputs)
        for filters, pool_size in zip(self.filters, self.pool_sizes, strict=True):
            x = keras.layers.Conv2D(filters, 3, activation="relu")(x)
            x = keras.layers.MaxPooling2D(pool_size)(x)
        return keras.Model(inputs, _head(keras.layers.Flatten()(x), self, n_classes))


# One pass over the photographs serves all runs of a backbone: activations are kept before the most layers that any run
# of the study trains, and after the pooling, where heads begin. A run that trains more has a store of its own.
STORED_BEFORE_LAST = {"MobileNetV2": 25, "ResNet50V2": 20, "EfficientNetV2S": 30}


@dataclass(frozen=True)
class Transfer:
    """A backbone of keras.applications, global average pooling and a dense head.

    Attributes:
        backbone: `MobileNetV2`, `ResNet50V2` or `EfficientNetV2S`.
        dense_units: Units of each dense layer before the output.
        dropout: Rate after each dense layer; 0 for none.
        unfreeze_last: How many of the backbone's last layers are trained along with the head.
        freeze_batch_norm: Whether batch normalisation keeps its ImageNet statistics, scales and shifts among them.
    """

    backbone: str
    dense_units: tuple[int, ...] = (128,)
    dropout: tuple[float, ...] = (0.0,)
    unfreeze_last: int = 0
    freeze_batch_norm: bool = True

    def build(self, n_classes: int, image_size: int = 224, weights: str | None = None) -> keras.Model:
        """Returns the network, its head untrained, from pixels (0 to 255) to probabilities.

        `weights` are what keras.applications takes: `imagenet`, the path of a weights file, or None for random ones.
        """
        inputs = keras.Input((image_size, image_size, 3), name="pixels")
        # The other two expect pixels from −1 to 1 and leave that to their caller.
        x = inputs if self.backbone == "EfficientNetV2S" else keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
        # Built on the input itself: one flat graph, in which a layer can be found, cut and frozen.
        options = {"include_top": False, "weights": weights, "input_shape": inputs.shape[1:], "input_tensor": x}
        backbone = getattr(keras.applications, self.backbone)(**options)
        x = keras.layers.GlobalAveragePooling2D(name="pooled")(backbone.output)
        model = keras.Model(inputs, _head(x, self, n_classes), name=self.backbone)
        self.set_trainable(model)
        return model

    def end(self, model: keras.Model) -> int:
        """Returns the position in `model.layers` of the pooling, which follows the backbone."""
        return [layer.name for layer in model.layers].index("pooled")

    def boundaries(self, model: keras.Model) -> dict[str, keras.Layer]:
        """Returns after which layers activations are stored: `cut`, before what may be trained, and `pooled`."""
        last = max(self.unfreeze_last, STORED_BEFORE_LAST[self.backbone])
        return {"cut": activations.cut_before(model, self.end(model) - last), "pooled": model.get_layer("pooled")}

    def set_trainable(self, model: keras.Model) -> None:
        """Freezes the backbone's layers but for the last `unfreeze_last`, and leaves the head trainable.

        Batch normalisation is frozen layer by layer: `fit` would run it in training mode, however it was called.
        """
        end = self.end(model)
        for index, layer in enumerate(model.layers):
            is_batch_norm = isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = index >= end - self.unfreeze_last and not (is_batch_norm and self.freeze_batch_norm)


def _head(x: keras.KerasTensor, architecture: CNN | Transfer, n_classes: int) -> keras.KerasTensor:
    for units, rate in zip(architecture.dense_units, architecture.dropout, strict=True):
        x = keras.layers.Dense(units, activation="relu")(x)
        x = keras.layers.Dropout(rate)(x) if rate else x
    # float32 also where the rest runs in float16: probabilities of many classes need the digits.
    return keras.layers.Dense(n_classes, activation="softmax", dtype="float32", name="probabilities")(x)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained, where that differs from what the original study did; as it stands, it does not.

    Attributes:
        upright: Training pictures are mirrored, but never turned upside down.
        class_weights: In the loss, all classes weigh the same, however many pictures they have.
        label_smoothing: Probability that the truth spreads over all classes (C. Szegedy et al., arXiv:1512.00567).
        cosine: The learning rate rises over the first tenth of all steps, and falls along half a cosine to zero
            (I. Loshchilov and F. Hutter, arXiv:1608.03983); else it is constant.
    """

    upright: bool = False
    class_weights: bool = False
    label_smoothing: float = 0.0
    cosine: bool = False

    def compile(self, model: keras.Model, learning_rate: float, steps: int, **options) -> None:
        """Compiles a model for so many steps in all with Adam, the cross-entropy and accuracy; labels are numbers."""
        rate: float | keras.optimizers.schedules.LearningRateSchedule = learning_rate
        if self.cosine:
            rising = steps // 10
            falling = max(steps - rising, 1)
            rate = keras.optimizers.schedules.CosineDecay(0.0, falling, warmup_target=rate, warmup_steps=rising)
        optimizer = keras.optimizers.Adam(rate)
        optimizer.build(model.trainable_variables)
        loss = "sparse_categorical_crossentropy"
        if self.label_smoothing:

            def loss(labels: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
                truth = tf.one_hot(tf.cast(tf.reshape(labels, [-1]), "int32"), probabilities.shape[-1])
                return keras.losses.categorical_crossentropy(truth, probabilities, label_smoothing=self.label_smoothing)

        model.compile(optimizer, loss, metrics=["accuracy"], **options)

    def weights_of(self, labels: Sequence[int]) -> dict[int, float] | None:
        """Returns what a picture of each class weighs in the loss, 1 on the average of all pictures, or None."""
        if not self.class_weights:
            return None
        classes = np.unique(labels)
        return dict(zip(map(int, classes), compute_class_weight("balanced", classes=classes, y=np.asarray(labels))))


def layer_table(model: keras.Model) -> pd.DataFrame:
    """Returns one row a layer, in order: `layer`, `type`, `output shape` (without the batch) and `parameters`.

    pandas writes it in other forms: `.to_latex(index=False, escape=True)` gives a table for LaTeX's booktabs.
    """
    rows = [
        (layer.name, type(layer).__name__, " × ".join(map(str, layer.output.shape[1:])), layer.count_params())
        for layer in model.layers
    ]
    return pd.DataFrame(rows, columns=["layer", "type", "output shape", "parameters"])


def save_model(model: keras.Model, path: Path, class_names: Sequence[str]) -> None:
    """Saves a model without its optimizer as `.keras` file, its class names in the archive as `class_names.json`."""
    with whole_file(path) as temporary:
        keras.Model(model.input, model.output, name=model.name).save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr("class_names.json", json.dumps(list(class_names), ensure_ascii=False))


def load_model(path: Path) -> tuple[keras.Model, tuple[str, ...]]:
    """Loads a model that `save_model` wrote (pixels to probabilities) and its class names, in Keras's safe mode."""
    with zipfile.ZipFile(path) as archive:
        class_names = tuple(json.loads(archive.read("class_names.json")))
    return keras.models.load_model(path, compile=False), class_names


def count(weights: Sequence[keras.Variable]) -> int:
    """Returns the number of values in a list of weights."""
    return int(sum(np.prod(weight.shape) for weight in weights))


WEIGHING = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.Dense)  # who multiplies with a kernel


def multiply_adds(model: keras.Model) -> int:
    """Returns how often a flat functional model multiplies and adds to judge one picture.

    Convolutions, depthwise ones and dense layers use each number of their kernel once for each place of their output.
    All else (biases, normalisation, activations, pooling) is left out, as in the figures of M. Sandler et al.,
    arXiv:1801.04381: 300 million for MobileNetV2 at 224 pixels.
    """
    layers = [layer for layer in model.layers if isinstance(layer, WEIGHING)]
    return sum(int(np.prod(layer.output.shape[1:-1])) * int(np.prod(layer.kernel.shape)) for layer in layers)


def efficiency(model: keras.Model, path: Path, rounds: int = 30) -> dict[str, float]:
    """Measures what it costs to keep a model and to ask it.

    A time is the median of several calls of the same graph, after three that warm it up. Compare only times that the
    same machine measured with nothing else to do.

    Args:
        model: Takes pixels, float32 (n, height, width, 3), 0 to 255.
        path: Its `.keras` file.
        rounds: Calls with a single picture; a third as many with 32.

    Returns:
        `model_mb`, the file in millions of bytes; `multiply_adds` of one picture, in millions; milliseconds a picture:
        `predict_ms`, asked one at a time, and `batch_ms`, 32 at a time.
    """
    rounds = {1: rounds, 32: -(-rounds // 3)}
    return {
        "model_mb": round(path.stat().st_size / 1e6, 3),
        "multiply_adds": round(multiply_adds(model) / 1e6, 3),
        "predict_ms": round(_milliseconds(model, 1, rounds[1]), 3),
        "batch_ms": round(_milliseconds(model, 32, rounds[32]) / 32, 3),
    }


def _milliseconds(model: keras.Model, n: int, rounds: int) -> float:
    """Returns how long a model takes for n pictures, their way to and from its device included."""
    signature = tf.TensorSpec((n, *model.input_shape[1:]), tf.float32)
    ask = tf.function(lambda pixels: model(pixels, training=False), autograph=False).get_concrete_function(signature)
    pixels = np.random.default_rng(5).uniform(0, 255, signature.shape).astype("float32")
    times = []
    for _ in range(3 + rounds):
        start = time.perf_counter()
        ask(tf.constant(pixels)).numpy()  # else a GPU would still be at work
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times[3:]))


def is_news(record: logging.LogRecord) -> bool:
    """Filters a log: TensorFlow takes it for a mistake that one process traces the graphs of many models."""
    return "triggered tf.function retracing" not in record.getMessage()


class ResumableStopping(keras.callbacks.EarlyStopping):
    """Early stopping on the validation loss whose training goes on after a kill as if nothing had happened.

    Weights, optimizer, random generators and its own state are kept in a file as often as a tenth of the time allows.
    `history` has a row an epoch; `seconds` counts the time of all epochs, those before a kill among them.
    """

    def __init__(self, path: Path, patience: int, first: int):
        """Reads what `path` holds of an earlier start; `first` is the first epoch, from 0."""
        super().__init__(patience=patience, restore_best_weights=True)
        self.path, self.first, self.history, self.seconds = path, first, [], 0.0
        self.saved = (time.perf_counter(), 0.0)  # when, and how long it took
        self.arrays = dict(np.load(path)) if path.exists() else {}
        self.state = json.loads(str(self.arrays.pop("state"))) if self.arrays else {}
        self.history = self.state.get("history", [])

    @property
    def next_epoch(self) -> int:
        """The epoch to go on with, from 0; a very late one if training had ended."""
        ended = self.state.get("wait", 0) >= self.patience
        return 10**9 if ended else self.first + len(self.history)

    def restore(self, model: keras.Model) -> None:
        """Gives a model the best weights of an earlier start, if there was one, where nothing is left to train."""
        if self.state:
            self.seconds = self.state["seconds"]
            model.set_weights([self.arrays[f"best_{index}"] for index in range(self.state["n_best"])])

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Restores the state of an earlier start."""
        super().on_train_begin(logs)
        self.started = time.perf_counter()
        if self.state:
            for name in ("wait", "best", "best_epoch", "seconds"):
                setattr(self, name, self.state[name])
            for index, variable in enumerate(self._variables()):
                variable.assign(self.arrays[f"variable_{index}"])
            self.best_weights = [self.arrays[f"best_{index}"] for index in range(self.state["n_best"])]

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Notes the epoch, decides whether to stop, and saves."""
        super().on_epoch_end(epoch, logs)
        self.history.append({"epoch": epoch + 1} | {name: float(value) for name, value in logs.items()})
        now = time.perf_counter()
        self.seconds, self.started = self.seconds + now - self.started, now
        if now - self.saved[0] < 9 * self.saved[1]:
            return
        state = {name: getattr(self, name) for name in ("wait", "best", "best_epoch", "seconds", "history")}
        state |= {"best": float(self.best), "n_best": len(self.best_weights or ())}
        arrays = {f"variable_{index}": variable.numpy() for index, variable in enumerate(self._variables())}
        arrays |= {f"best_{index}": values for index, values in enumerate(self.best_weights or ())}
        with whole_file(self.path) as temporary:
            np.savez(temporary, state=json.dumps(state), **arrays)
        self.saved = (time.perf_counter(), time.perf_counter() - now)

    def _variables(self) -> list[keras.Variable]:
        return self.model.variables + self.model.optimizer.variables


def if_installed(wanted: bool) -> bool:
    """Returns a setting as it is; raises ValueError if TensorBoard is wanted and is not installed."""
    if wanted and not importlib.util.find_spec("tensorboard"):
        raise ValueError("TensorBoard is not installed; `make extras` installs it")
    return wanted


def unwatched() -> bool:
    """Tells whether nobody sees a bar move: in CI, or where there is neither a terminal nor a notebook."""
    told = os.environ.get("CI") or os.environ.get("TQDM_DISABLE")  # tqdm's own word for it
    return bool(told) or not (get_ipython() or sys.stderr.isatty())


class Progress(keras.callbacks.Callback):
    """Shows in one line which run is trained, its epoch, its accuracy, and how long it takes at most."""

    def __init__(self, title: str, epochs: range, steps: int):
        """Takes what the line begins with, the epochs that are to come (from 0), and the steps of each."""
        super().__init__()
        self.title, self.epochs, self.steps, self.accuracy = title, epochs, steps, ""

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Draws the line."""
        look = {"bar_format": "{desc}  {remaining} left at most", "smoothing": 0, "disable": unwatched()}
        self.bar = tqdm(total=self.steps * len(self.epochs), desc=self.title, **look)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Shows the number of the epoch."""
        self.bar.set_description_str(f"{self.title}  epoch {epoch + 1}/{self.epochs.stop}{self.accuracy}")

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Counts steps; there may be many between two calls."""
        self.bar.update(batch + 1 - self.bar.n % self.steps)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Shows the accuracy on the validation pictures."""
        self.accuracy = f"  val accuracy {logs['val_accuracy']:.2f}"
        self.on_epoch_begin(epoch)

    def on_train_end(self, logs: dict | None = None) -> None:
        """Shows how long it took."""
        self.bar.bar_format = "{desc}  took {elapsed}"
        self.bar.close()
