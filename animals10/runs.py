"""Stored runs: a folder per run, and collections of runs that are found by id or by experiment."""

import difflib
import os
import shlex
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import pandas as pd

from animals10.files import UserError, display_path, expand_user, file_sha256, read_json, read_table, reading
from animals10.images import STRETCH
from animals10.progress import tell

if TYPE_CHECKING:
    from animals10.experiments import Experiment


class RunKey(NamedTuple):
    """What names an experiment, and its run in `results.csv` and among the published runs."""

    model_id: str
    learning_rate: float
    epochs: int
    repetition: int


RUN_FILES = ("model.keras", "history.csv", "predictions.csv")  # beside run.json
VALIDATION = "validation.csv"  # predictions for the validation images
CALIBRATION = "calibration.json"  # see `calibration.calibrate`
STUDY = "study"  # folder of adopted runs, see `adoption`: all but the model
EFFICIENCY = ("model_mb", "multiply_adds", "predict_ms", "batch_ms")  # see `efficiency.measure_efficiency`
RESTORE_RUN = "restore it, or delete the run's folder"


class Record(dict[str, Any]):
    """The content of a `run.json`, or a part of it: a key that it lacks is a `UserError`."""

    def __init__(self, path: Path, values: Any, name: str = "file"):
        """Takes what the part `name` of the file `path` holds.

        Raises:
            UserError: It is no mapping.
        """
        if not isinstance(values, dict):
            what = f"its {name} holds {type(values).__name__}, not a mapping"
            raise UserError(f"{display_path(path)} is damaged ({what}): {RESTORE_RUN}.")
        super().__init__(values)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise UserError(f"{display_path(self.path)} cannot be read (KeyError: {key!r}): {RESTORE_RUN}.")


@dataclass(frozen=True)
class Run:
    """A run as it is stored in its folder, or one that is not trained and the reason why.

    Attributes:
        model_id: Its id.
        path: Its folder, with `run.json`, `history.csv`, `predictions.csv`, `validation.csv`, `model.keras`; after
            `make efficiency` also `efficiency.json`, and after `calibrate` `calibration.json`. None if it is not
            trained.
        why: The reason if it is not trained.
    """

    model_id: str
    path: Path | None = None
    why: str = ""

    @property
    def record(self) -> dict[str, Any]:
        """The content of `run.json`: `spec` (the full specification), `row` (of `results.csv`), checksums and more.

        Raises:
            UserError: The run is not trained, or the file is missing or damaged.
        """
        path = self.file("run.json")
        return Record(path, read_json(path, RESTORE_RUN))

    @property
    def row(self) -> dict[str, Any]:
        """The run's row of `results.csv`.

        Raises:
            UserError: As for `record`.
        """
        record = self.record
        row = Record(self.file("run.json"), record.get("row"), "row")
        if "epochs_cap" not in row:  # of a version that did not record it
            maximum = record.get("spec", {}).get("settings", {}).get("maximum_epochs", row.get("epochs"))
            row["epochs_cap"] = None if maximum == row.get("epochs") else maximum
        row.setdefault("corrections", "")
        row.setdefault("resize", STRETCH)
        return row

    @property
    def history(self) -> pd.DataFrame:
        """One row per epoch: `epoch` (from 1), `accuracy`, `loss`, `val_accuracy`, `val_loss`.

        Raises:
            UserError: The file is missing or damaged.
        """
        columns = ("epoch", "accuracy", "loss", "val_accuracy", "val_loss")
        return read_table(self.file("history.csv"), columns, RESTORE_RUN)

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per test image: `relpath`, `category`, `predicted`, `confidence`, and `p_<class>` per class.

        Raises:
            UserError: The file is missing or damaged.
        """
        return read_table(self.file("predictions.csv"), ("relpath", "category", "predicted"), RESTORE_RUN)

    @property
    def validation(self) -> pd.DataFrame:
        """The same for the validation images; runs of earlier versions lack it.

        Raises:
            UserError: The file is missing or damaged.
        """
        return read_table(self.file(VALIDATION), ("relpath", "category", "predicted"), RESTORE_RUN)

    @property
    def temperature(self) -> float | None:
        """The temperature that `calibrate` fitted; None where it did not.

        Raises:
            UserError: The file is damaged.
        """
        file, advice = self.file(CALIBRATION), "delete it, and calibrate the run again"
        if not file.exists():
            return None
        with reading(file, "is damaged", advice):
            temperature = float(read_json(file, advice)["temperature"])
            if not 0 < temperature < np.inf:
                raise ValueError(f"its temperature is {temperature}")
            return temperature

    @property
    def efficiency(self) -> dict[str, float]:
        """Model size and prediction times as `make efficiency` measured them; empty where it did not.

        Raises:
            UserError: The file is damaged.
        """
        file = self.file("efficiency.json")
        if not file.exists():
            return {}
        found = read_json(file, "run `make efficiency`")
        try:
            return {name: float(found[name]) for name in EFFICIENCY}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} is damaged ({type(error).__name__}: {error}): run `make efficiency`.") from None

    def file(self, name: str) -> Path:
        """Returns the path of a file in the run's folder; a table may be there as `<name>.gz`.

        Raises:
            UserError: The run is not trained.
        """
        if self.path is None:
            raise UserError(f"{self.model_id} is not trained here: {self.why}")
        packed = self.path / f"{name}.gz"
        return packed if packed.exists() else self.path / name


class Runs(Sequence[Run]):
    """Runs in the order of their experiments: `runs[0]`, `runs["mobnet2_small"]`, `runs[experiment]`, `runs + more`."""

    def __init__(self, runs: Iterable[Run], experiments: "Iterable[Experiment | None] | None" = None):
        """Takes the runs and, if they are known, the experiment of each."""
        self._runs = tuple(runs)
        self._experiments = (None,) * len(self._runs) if experiments is None else tuple(experiments)

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Run]:
        return iter(self._runs)

    @overload
    def __getitem__(self, key: "int | str | Experiment") -> Run: ...
    @overload
    def __getitem__(self, key: slice) -> "Runs": ...
    def __getitem__(self, key: "int | str | slice | Experiment") -> "Run | Runs":
        if isinstance(key, (int, np.integer)):
            return self._runs[key]
        if isinstance(key, slice):
            return Runs(self._runs[key], self._experiments[key])
        if not isinstance(key, str):
            if key in self._experiments:
                return self._runs[self._experiments.index(key)]
            raise UserError(f"None of these runs is of {getattr(key, 'id', repr(key))}.")
        found = [run for run in self._runs if run.model_id == key]
        if len(found) == 1:
            return found[0]
        ids = list(dict.fromkeys(run.model_id for run in self._runs))
        if not found:
            nearest = difflib.get_close_matches(key, ids, n=3, cutoff=0.3) or ids
            raise UserError(f"None of these runs is called {key!r}; the nearest are {', '.join(nearest)}.")
        raise UserError(f"{len(found)} of these runs are called {key!r}: choose by position or by experiment.")

    def __add__(self, other: Iterable[Run]) -> "Runs":
        more = other if isinstance(other, Runs) else Runs(other)
        return Runs((*self._runs, *more._runs), (*self._experiments, *more._experiments))

    def __repr__(self) -> str:
        words = [run.model_id if run.path else f"{run.model_id} (not trained: {run.why})" for run in self._runs]
        return f"Runs: {', '.join(words) or 'none'}"

    @property
    def trained(self) -> "Runs":
        """Those that are trained."""
        is_trained = [run.path is not None for run in self._runs]
        return Runs(compress(self._runs, is_trained), compress(self._experiments, is_trained))

    @property
    def best(self) -> Run:
        """The run with the highest validation accuracy, the first of equals; a trial (`epochs_cap`) if all are trials.

        Where no run was trained for an epoch, this is a run that is not trained, and its message says so.
        """
        rows = [(run, run.row) for run in self._runs if run.path]
        rows = [(run, row) for run, row in rows if row["acc_val"] is not None]
        best = max(rows, key=lambda pair: (pair[1]["epochs_cap"] is None, pair[1]["acc_val"]), default=None)
        return best[0] if best else Run("The best of these runs", why="none of them is.")


# What tells runs of one id apart, in the order in which it is used, and its words. All labels of trials name their cap.
_DIFFERENCES = {"epochs": "{} epochs", "learning_rate": "learning rate {}", "repetition": "repetition {}"}
_DIFFERENCES |= {"epochs_cap": "", "image_size": "{} pixels", "weights": "weights {}", "dataset": "{}"}
_DIFFERENCES |= {"corrections": "{}", "resize": "images made square by {}"}
_DIFFERENCES |= {"split": "{} split", "class_balance": "class balance {}", "batchsize": "batches of {}"}
_DIFFERENCES |= {"params": "{:,} parameters", "trainable_params": "{:,} of them trained", "seed": "seed {}"}
_DIFFERENCES |= {"run_id": "{}"}


def run_labels(rows: Sequence[Mapping[str, Any]] | pd.DataFrame) -> list[str]:
    """Names runs so that no two names are equal: by id, by what else tells those of one id apart, and by their cap.

    Args:
        rows: Rows of `results.csv`, with `model_id` and whatever of the other columns there is.

    Returns:
        One label per row, in their order.
    """
    records = rows.to_dict("records") if isinstance(rows, pd.DataFrame) else [dict(row) for row in rows]
    labels = []
    for row in records:
        namesakes = [other for other in records if other["model_id"] == row["model_id"]]
        parts = [str(row["model_id"])]
        for name, words in _DIFFERENCES.items():
            values = [_in_words("{}", other.get(name)) for other in namesakes]
            if len(set(values)) > 1:
                mine = _in_words("{}", row.get(name))
                parts.append(_in_words(words, row.get(name)))
                namesakes = [other for other, value in zip(namesakes, values, strict=True) if value == mine]
        if not pd.isna(cap := row.get("epochs_cap")):
            parts.append(f"capped at {cap:.0f} epoch{'s' * (cap != 1)}")
        labels.append(", ".join(filter(None, parts)))
    unique: dict[str, None] = {}
    for label in labels:  # the same run twice, or an id that looks like another's label
        number, name = 1, label
        while name in unique:
            number, name = number + 1, f"{label} ({number + 1})"
        unique[name] = None
    return list(unique)


def dataset_in_words(row: Mapping[str, Any]) -> str:
    """Names the data set of a row of `results.csv` with its share: `animals10 (25,949 of 26,179 files)`."""
    share = _in_words("{}", row.get("data_share") or None)
    corrections = _in_words("{}", row.get("corrections") or None)
    notes = [f"{share} files"] * bool(share) + [f"labels: {corrections}"] * bool(corrections)
    name = _in_words("{}", row["dataset"] or None) or "unnamed data"
    return name + (f" ({'; '.join(notes)})" if notes else "")


def _in_words(words: str, value: Any) -> str:
    """Puts a value into words; nothing if it is missing."""
    is_whole = isinstance(value, float) and value.is_integer()  # in a table in which others are missing
    return "" if pd.isna(value) else words.format(int(value) if is_whole else value)


def run_of_row(root: Path, model_id: str, run_id: str) -> Run:
    """Returns the run of a row of `results.csv`: from `models/`, else from `study/`, which holds runs without models.

    Args:
        root: The workspace.
        model_id: The row's id.
        run_id: The row's `run_id`.
    """
    name = f"{model_id}-{run_id}"
    adopted = root / STUDY / name
    is_adopted = adopted.exists() and not (root / "models" / name).exists()
    return Run(model_id, adopted if is_adopted else root / "models" / name)


def changed_files(run: Run) -> list[str]:
    """Returns a line for each file of a stored run that is not the one that was stored.

    Raises:
        UserError: `run.json` is missing or damaged, or a file cannot be read.
    """
    return [
        f"{name} is not the file that was stored"
        for name, sha256 in run.record["files_sha256"].items()
        if not run.file(name).exists() or file_sha256(run.file(name)) != sha256
    ]


def run_in(folder: Path) -> Run:
    """Returns the run of a folder, which is named after its id, the time and the digest."""
    return Run(folder.name.rsplit("-", 2)[0], folder)


def stored_runs(root: Path) -> Runs:
    """Returns the finished runs of a workspace, in the order in which they were trained."""
    folders = [path.parent for path in (root / "models").glob("[!.]*/run.json")]  # a dot marks unfinished ones
    return Runs(sorted(map(run_in, folders), key=lambda run: run.path.name.rsplit("-", 2)[1:] if run.path else []))


def example_model(root: Path) -> str:
    """Returns the id of the latest run of a workspace, or one of the study, as a word of a command that is shown."""
    return shlex.quote(next((run.model_id for run in reversed(list(stored_runs(root)))), "mobnet2_small"))


def is_called(id: str, name: str) -> bool:
    """Tells whether an id is a name that was typed: letters with accents have several encodings in Unicode."""
    return unicodedata.normalize("NFC", id) == unicodedata.normalize("NFC", name)


def find_model(root: Path, name: str) -> Path:
    """Finds the `.keras` file of a model.

    Args:
        root: The workspace, whose finished runs lie in `models/`.
        name: An id, which means the latest of its runs that no cap on epochs shortened; the name of a run's folder in
            the workspace's `models/`; or the path of a `.keras` file or of a run's folder.

    Raises:
        UserError: There is none; the message names the nearest.
    """
    given, models = expand_user(name), root / "models"
    runs = stored_runs(root)
    folders = {run.path.name: run.path for run in runs if run.path}
    namesakes = [run for run in runs if is_called(run.model_id, name)]
    chosen = ([run for run in namesakes if not _is_trial(run)] or namesakes or [Run(name)])[-1]
    if len(namesakes) > 1 and chosen.path:
        tell(f"{len(namesakes)} runs are called {name}: {chosen.path.name} is used.")
    folder = chosen.path or folders.get(name)
    if not folder and name and os.path.isfile(given):  # noqa: PTH113 - Path.is_file fails for a name that is too long
        return given.resolve()
    folder = folder or (given.resolve() if name else None)
    if folder and os.path.isfile(folder / "model.keras"):  # noqa: PTH113
        return folder / "model.keras"
    if folder and os.path.isfile(folder / "run.json"):  # noqa: PTH113
        raise UserError(f"{display_path(folder)} lacks its model.keras: restore it, or train that run again.")
    if given.suffix == ".keras":
        raise UserError(f"There is no file {name}.")
    where = f"in {display_path(models)}"
    if not folders:
        raise UserError(f"There are no runs {where}: train some first, or name their workspace (ANIMALS10_ROOT).")
    known = sorted({run.model_id for run in runs})
    nearest = difflib.get_close_matches(name, [*known, *folders], n=3, cutoff=0.3)
    there = f"the nearest are {', '.join(nearest)}" if nearest else f"there are {', '.join(known)}"
    raise UserError(f"{f'There is no model {name!r}' if name else 'No model is named'} {where}; {there}.")


def _is_trial(run: Run) -> bool:
    """Tells whether a cap on epochs shortened a run; not if its `run.json` cannot be read."""
    try:
        return run.row["epochs_cap"] is not None
    except UserError:
        return False
