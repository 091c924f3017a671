"""Keras callbacks: early stopping that resumes after a kill, and the progress of a training."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import psutil

from animals10.files import UserError, atomic_write, reading
from animals10.progress import Progress

TRAINING_PER_CHECKPOINT = 9  # seconds of training for each second of writing a checkpoint, at least


class ResumableEarlyStopping(keras.callbacks.EarlyStopping):
    """Early stopping on the validation loss that keeps the best weights and resumes after a kill.

    A checkpoint holds weights, optimizer, random generators and the callback's own state. It is written as often as a
    tenth of the training time allows. A resumed training gives the same numbers as one that was never interrupted.

    Where the optimizer keeps a moving average of the weights, the average is evaluated and kept. Training goes on with
    the weights themselves.

    Attributes:
        history: One dict per epoch: `epoch` (from 1), `accuracy`, `loss`, `val_accuracy`, `val_loss`.
        seconds: Training time of all epochs, those before a kill included.
    """

    def __init__(self, path: Path, patience: int, initial_epoch: int):
        """Reads the checkpoint at `path` if there is one; `initial_epoch` is the first epoch, from 0.

        A checkpoint that cannot be read is not used, with a message.
        """
        super().__init__(patience=patience, restore_best_weights=True)
        self.path, self.initial_epoch, self.seconds = path, initial_epoch, 0.0
        self.saved = (time.perf_counter(), 0.0)  # when the last checkpoint was written, and how long it took
        self.arrays, self.state = self._read() if path.exists() else ({}, {})
        self.history: list[dict[str, float]] = self.state.get("history", [])

    def _read(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Returns the arrays and the state of the checkpoint; nothing if it cannot be read."""
        try:
            with reading(self.path, "is damaged", "training starts anew"), self.path.open("rb") as file:
                arrays = dict(np.load(file))
                return arrays, json.loads(str(arrays.pop("state")))
        except UserError as error:
            print(error)
            return {}, {}

    @property
    def next_epoch(self) -> int:
        """The epoch to resume with, from 0; a very late one if training had ended."""
        ended = self.state.get("wait", 0) >= max(self.patience, 1)
        return 10**9 if ended else self.initial_epoch + len(self.history)

    def restore(self, model: keras.Model) -> None:
        """Gives a model the best weights of the checkpoint, if there is one, where no epoch is left to train."""
        if self.state:
            self.seconds = self.state["seconds"]
            model.set_weights([self.arrays[f"best_{index}"] for index in range(self.state["n_best"])])

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Restores the state of the checkpoint."""
        super().on_train_begin(logs)
        self.started = time.perf_counter()
        if self.state:
            for name in ("wait", "best", "best_epoch", "seconds"):
                setattr(self, name, self.state[name])
            for index, variable in enumerate(self._variables()):
                variable.assign(self.arrays[f"variable_{index}"])
            self.best_weights = [self.arrays[f"best_{index}"] for index in range(self.state["n_best"])]

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Puts the moving average into the model, if there is one; validation ends an epoch."""
        if self._optimizer().use_ema:
            self.trained = [variable.numpy() for variable in self.model.trainable_variables]
            self._optimizer().finalize_variable_values(self.model.trainable_variables)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Records the epoch, decides whether to stop, and writes a checkpoint if it is time for one."""
        super().on_epoch_end(epoch, logs)
        if self._optimizer().use_ema:
            for variable, values in zip(self.model.trainable_variables, self.trained, strict=True):
                variable.assign(values)
        self.history.append({"epoch": epoch + 1} | {name: float(value) for name, value in (logs or {}).items()})
        now = time.perf_counter()
        self.seconds, self.started = self.seconds + now - self.started, now
        if now - self.saved[0] < TRAINING_PER_CHECKPOINT * self.saved[1]:
            return
        state = {name: getattr(self, name) for name in ("wait", "best", "best_epoch", "seconds", "history")}
        state |= {"best": float(self.best), "n_best": len(self.best_weights or ())}
        arrays: dict[str, Any] = {f"variable_{i}": variable.numpy() for i, variable in enumerate(self._variables())}
        arrays |= {f"best_{index}": values for index, values in enumerate(self.best_weights or ())}
        with atomic_write(self.path) as temporary:
            np.savez(temporary, state=json.dumps(state), **arrays)
        self.saved = (time.perf_counter(), time.perf_counter() - now)

    def _optimizer(self) -> keras.optimizers.Optimizer:
        """Returns the optimizer that updates the weights; with mixed precision, another scales the loss around it."""
        return getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)

    def _variables(self) -> list[keras.Variable]:
        return self.model.variables + self.model.optimizer.variables


class PeakMemory(keras.callbacks.Callback):
    """Records the largest resident memory of this process at the ends of epochs, in `megabytes`."""

    def __init__(self) -> None:
        """Takes the memory before training as the first value."""
        super().__init__()
        self.process = psutil.Process()
        self.bytes = self.process.memory_info().rss

    @property
    def megabytes(self) -> int:
        """The largest value so far, in millions of bytes."""
        return round(self.bytes / 1e6)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Records the memory in use."""
        self.bytes = max(self.bytes, self.process.memory_info().rss)


class ProgressLine(keras.callbacks.Callback):
    """Shows one line per run: its title, the epoch, the validation accuracy and the longest time left.

    A log gets a line at the end of an epoch, every half a minute at most, and one at the end of the run.
    """

    def __init__(self, title: str, epochs: range, steps: int):
        """Takes the title, the epochs to train (from 0) and the steps per epoch."""
        super().__init__()
        self.title, self.epochs, self.steps, self.accuracy = title, epochs, steps, ""

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Draws the line."""
        look: dict[str, Any] = {"bar_format": "{desc}  {remaining} left at most", "smoothing": 0}
        self.bar = Progress(total=self.steps * len(self.epochs), desc=self.title, in_steps=True, **look)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Shows the number of the epoch."""
        text = f"{self.title}  epoch {epoch + 1}/{self.epochs.stop}{self.accuracy}"
        self.bar.set_description_str(text, refresh=self.bar.place in ("terminal", "notebook"))

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Counts steps; there may be many between two calls."""
        self.bar.update(batch + 1 - self.bar.n % self.steps)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Shows the validation accuracy."""
        self.accuracy = f"  val accuracy {(logs or {})['val_accuracy']:.2f}"
        self.on_epoch_begin(epoch)
        self.bar.refresh()

    def on_train_end(self, logs: dict | None = None) -> None:
        """Shows the time that training took."""
        self.bar.finish("{desc}  took {elapsed}")


@contextmanager
def dropout_in_inference_mode(layers: tuple[keras.layers.Dropout, ...]) -> Iterator[None]:
    """Switches the dropout of frozen layers off for a while: they compute what they will compute in inference."""
    rates = [layer.rate for layer in layers]
    for layer in layers:
        layer.rate = 0
    try:
        yield
    finally:
        for layer, rate in zip(layers, rates, strict=True):
            layer.rate = rate
