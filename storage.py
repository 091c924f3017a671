"""Files that are whole or not there: tables, rows of results, training that survives a kill; and the study's error.

`auxiliary` hands on what notebooks need of it. Nothing here knows of pictures or settings.
"""

import csv
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock
import keras
import numpy as np
import pandas as pd

REPOSITORY = Path(__file__).resolve().parent
# Columns that stay text, whatever a value looks like.
TEXTS = tuple(
    """relpath name category source sha256 predicted model_id run_id dataset commit data_sha256
    filters pool_sizes dense_units dropout notebook backbone continues remark""".split()
)


class StudyError(RuntimeError):
    """Something the person at the keyboard can put right; its message is one line that says what, where and how."""

    def _render_traceback_(self) -> list[str]:  # IPython's hook: a notebook shows the line without the stack above it
        return [f"StudyError: {self}"]


def short(path: Path) -> str:
    """Returns a path as a person would type it in the repository."""
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which it replaces after the block: no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_table(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Writes a table as csv, whole or not at all, and returns it. File names that are no valid UTF-8 survive."""
    with whole_file(path) as temporary:
        table.to_csv(temporary, index=False, errors="surrogateescape")
    return table


def read_table(path: Path) -> pd.DataFrame:
    """Reads a csv table of this study; a class may be named `NA`, `7` or `1e5` and stays text."""
    options = {"keep_default_na": False, "na_values": [""], "encoding_errors": "surrogateescape"}
    return pd.read_csv(path, dtype=dict.fromkeys(TEXTS, "str"), **options)


def append_row(path: Path, row: Mapping, columns: Sequence[str]) -> None:
    """Appends a row to a csv table, under a lock and flushed to disk, unless its `run_id` is there already.

    Columns of the table beyond `columns` are kept and left empty; a StudyError says which of them the table lacks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock")), path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        reader = csv.DictReader(file)
        header = reader.fieldnames or columns
        if missing := [name for name in columns if name not in header]:
            raise StudyError(f"{path} lacks the columns {', '.join(missing)}: add them, or move the file away.")
        if any(stored["run_id"] == row["run_id"] for stored in reader):
            return
        writer = csv.DictWriter(file, header, lineterminator="\n")
        if not reader.fieldnames:
            writer.writeheader()
        writer.writerow(dict(row))
        file.flush()
        os.fsync(file.fileno())


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
