"""What a worker of a cluster does: it trains one run, and tells the driver where it is."""

import contextlib
import io
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras

from animals10.files import UserError
from animals10.machine import wait_for
from animals10.planning import Task, train_task
from animals10.progress import Progress
from animals10.runs import Run
from animals10.workspace import Workspace


def train_on_worker(
    given: Any, token: Path, folder: Path, threads: int, task: Task, source: str | None, queue: Any
) -> Run:
    """Trains a task in the process of a worker.

    Args:
        given: Settings, shared images, `fold_of` and splits of the workspace.
        token: A file of the driver in the workspace.
        folder: The current folder of the driver.
        threads: Number of TensorFlow's threads, which the environment of this process has set.
        task: The task.
        source: The source of the architecture's class.
        queue: Takes what the driver shows.

    Raises:
        UserError: This machine does not see the workspace, cannot compute as the driver expects, or training failed.
    """

    def send(**values: Any) -> None:
        queue.actor.put_nowait.remote((task.digest, values))  # without waiting

    worker = f"{platform.node()}/{os.getpid()}"
    send(state="starting", worker=worker, doing="", left=None)
    settings, shared, fold_of, splits = given
    if not wait_for(token):
        raise UserError(f"The machine {platform.node()} does not see the workspace {settings.root}.")
    with contextlib.suppress(OSError):  # paths of the user's own may be relative
        os.chdir(folder)
    Progress.listener = lambda bar: send(**_shown(bar))
    workspace = Workspace(settings.model_copy(update={"cluster": "", "cpus_per_run": threads}), shared, fold_of, splits)
    if workspace.digest(task.experiment) != task.digest:
        raise UserError(
            f"{task.experiment.id} would be another run on {platform.node()} (precision "
            f"{workspace.context(task.experiment)['precision']}): all machines need the same code and files, and "
            "ANIMALS10_GPUS_PER_RUN=1 where they have GPUs and this machine has none."
        )
    send(state="preparing")
    output = _Lines(send)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        return train_task(workspace, task, callback=_Reporter(send), source=source)


def _shown(bar: Progress) -> dict[str, Any]:
    """Returns what is shown of a progress bar."""
    done = bar.n - bar.initial
    values: dict[str, Any] = {}
    if bar.total and done:
        values["left"] = (bar.total - bar.n) * bar.format_dict["elapsed"] / done
        values["doing"] = f"{bar.desc.removesuffix(': ')} {bar.n / bar.total:.0%}"
    return values


class _Reporter(keras.callbacks.Callback):
    """Tells the driver where a training is."""

    def __init__(self, send: Callable[..., None]):
        super().__init__()
        self.send = send

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.send(left=None)  # what was left of preparing

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.send(state="training", epoch=epoch + 1)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.send(accuracy=(logs or {})["val_accuracy"])


class _Lines(io.TextIOBase):
    """A file whose lines the driver prints."""

    def __init__(self, send: Callable[..., None]):
        super().__init__()
        self.send, self.begun = send, ""

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text).split("\n")
        for line in filter(str.strip, lines):
            self.send(line=line)
        return len(text)
