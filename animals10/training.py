"""Training of experiments: each is trained once, stored, and gets its row of `results.csv`.

The notebooks call `train` and `train_all`; `execution` holds the steps of one run.
"""

import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import keras

from animals10.augmentation import AUGMENTATION_VERSION
from animals10.csv_append import append_row
from animals10.environment import configure_device
from animals10.execution import Job, execute
from animals10.experiments import Experiment, digest
from animals10.files import UserError, file_sha256, one_line
from animals10.images import preprocessing_contract
from animals10.results import RESULT_COLUMNS
from animals10.runs import Run, Runs
from animals10.settings import Settings
from animals10.splits import load_splits


def train(settings: Settings, experiment: Experiment) -> Run:
    """Trains, evaluates and stores an experiment, and appends its row to `results.csv`, unless it is finished.

    Early stopping watches the validation loss; the weights of the best epoch are stored and evaluated on the test
    images. A finished run has the same specification, data and settings, and started from the weights that its parent
    has now. A parent that is missing is trained first.

    Args:
        settings: The settings.
        experiment: The experiment.

    Returns:
        The stored run; one without a folder if `ANIMALS10_ONLY` leaves it out or its ImageNet weights are missing.

    Raises:
        UserError: The data are not ready, weights cannot be downloaded, or the parent is left out.
    """
    return train_all(settings, [experiment])[0]


def train_all(settings: Settings, experiments: Iterable[Experiment]) -> Runs:
    """Trains several experiments as `train` does, parents first, each one once.

    An experiment that fails does not keep the others from being trained.

    Returns:
        A run for each experiment, in their order.

    Raises:
        UserError: Two different experiments have the same name, or some failed; the message says which and why.
    """
    experiments = list(experiments)
    workspace = Workspace(settings)
    tasks = workspace.plan(experiments)
    n_left, number, failures = sum(task.wanted for task in tasks), 0, {}
    runs: dict[str, Run] = {}
    for task in tasks:
        if task.wanted:
            number += 1
            place = f"[{number}/{n_left}] " if n_left > 1 else ""
        else:
            place = ""
        try:
            runs[task.digest] = workspace.run(task, place, runs)
        except Exception as error:
            if len(experiments) == 1:
                raise
            if not isinstance(error, UserError):
                traceback.print_exception(error)
            reason = str(error) if isinstance(error, UserError) else one_line(error)
            failures[task.experiment.label] = reason
            runs[task.digest] = Run(task.experiment.id, why=f"it failed: {reason}")
    left_out = [task.experiment.id for task in tasks if task.listed and workspace.is_left_out(task, runs)]
    if left_out:
        print(f"Left out by ANIMALS10_ONLY and not trained: {', '.join(left_out)}.")
    if failures:
        reasons = "; ".join(f"{label}: {reason}" for label, reason in failures.items())
        raise UserError(f"{len(failures)} experiments failed, the others are stored. {reasons}")
    return Runs([runs[workspace.digest(experiment)] for experiment in experiments], experiments)


@dataclass
class Task:
    """An experiment in a plan.

    Attributes:
        experiment: The experiment.
        digest: Names its run.
        listed: Whether it was asked for; otherwise it is the parent of one that was.
        wanted: Whether it has to be trained, as far as can be told before its parent is trained.
        forced: Whether it is trained although it is finished.
    """

    experiment: Experiment
    digest: str
    listed: bool
    wanted: bool = False
    forced: bool = False


class Workspace:
    """Experiments in one workspace: their identities, and which of them are finished."""

    def __init__(self, settings: Settings):
        """Reads the splits and sets the compute precision of this machine."""
        self.settings, self.splits = settings, load_splits(settings)
        configure_device(settings.deterministic)
        settings.models.mkdir(parents=True, exist_ok=True)

    def context(self, experiment: Experiment) -> dict[str, Any]:
        """Returns the data and the resolved settings that can change the result of an experiment."""
        settings, training = self.settings, experiment.training
        cap = settings.max_epochs or training.epochs
        offers = hasattr(experiment.model, "feature_layers") or hasattr(experiment.model, "split_layer")
        cached = offers and settings.feature_cache != "off"
        contract = {name: value for name, value in preprocessing_contract().items() if name != "description"}
        return {
            "data_sha256": self.splits.sha256,
            "preprocessing": contract,
            "augmentation_version": AUGMENTATION_VERSION if training.augmentation else None,
            "image_size": settings.image_size,
            "seed": settings.seed + experiment.repetition - 1,
            "maximum_epochs": min(training.epochs, experiment.initial_epoch + cap),
            "weights": self.weights(experiment)[1],
            "feature_cache": settings.feature_cache if cached else "off",
            "views": settings.views if cached and training.augmentation else None,
            "precision": keras.config.dtype_policy().name,
        }

    def weights(self, experiment: Experiment) -> tuple[str | None, str, str]:
        """Returns the weights that `build` takes, their name in `results.csv`, and why they are missing if they are."""
        backbone, chosen = getattr(experiment.model, "backbone", None), self.settings.weights
        if backbone is None:
            return None, "none", ""
        if chosen in ("random", "imagenet"):
            return (None if chosen == "random" else chosen), chosen, ""
        path = Path(chosen) / f"{backbone}.weights.h5"
        if not path.exists():
            return None, "missing", f"there is no {path.name} in {path.parent} (ANIMALS10_WEIGHTS)."
        return str(path), f"{path.name} {file_sha256(path)[:12]}", ""

    def digest(self, experiment: Experiment) -> str:
        """Returns the digest that names the experiment's run in this workspace."""
        return digest(experiment, self.context, len(self.splits.class_names))

    def plan(self, experiments: Iterable[Experiment]) -> list[Task]:
        """Returns the tasks, parents before children, each once, with those that will be trained marked.

        Raises:
            UserError: Two different experiments have the same name.
        """
        tasks: dict[str, Task] = {}

        def add(experiment: Experiment, listed: bool) -> None:
            if isinstance(experiment.parent, Experiment):
                add(experiment.parent, False)
            name = self.digest(experiment)
            task = tasks.setdefault(name, Task(experiment, name, listed))
            task.listed |= listed

        for experiment in experiments:
            add(experiment, True)
        names: dict[tuple, Experiment] = {}
        for task in tasks.values():
            other = names.setdefault(task.experiment.key, task.experiment)
            if other is not task.experiment:
                raise UserError(
                    f"Two different experiments are called {other.label}: give one another id, learning rate, "
                    "maximum epochs or repetition."
                )
        for task in reversed(list(tasks.values())):  # children before parents
            selected, experiment = self._selected(task.experiment), task.experiment
            if task.listed:
                task.forced = selected and self.settings.force
                task.wanted = selected and (task.forced or not self._is_current(experiment, {}))
            else:
                children = [child for child in tasks.values() if child.experiment.parent == experiment]
                needed = any(child.wanted for child in children)
                task.wanted = selected and needed and not self._is_current(experiment, {})
        return list(tasks.values())

    def run(self, task: Task, place: str, done: dict[str, Run]) -> Run:
        """Returns the stored run of a task, training it first if it has to be.

        Args:
            task: The task.
            place: Begins the line of progress.
            done: Runs of earlier tasks, by digest.
        """
        experiment, settings = task.experiment, self.settings
        may_train = self._selected(experiment) and (task.listed or task.wanted)
        if not may_train or (self._is_current(experiment, done) and not task.forced):
            return self._stored(task)
        weights, _, missing = self.weights(experiment)
        if missing:
            print(f"{experiment.id} skipped: {missing}")
            return Run(experiment.id, why=missing)
        start = self._start(experiment, done)
        if experiment.parent is not None and start is None:
            raise self._without_parent(experiment, done)
        with filelock.FileLock(settings.models / f".{task.digest}.lock"):  # two processes must not train the same run
            if self._is_current(experiment, done) and not task.forced:  # another process has just trained it
                return self._stored(task)
            job = Job(settings, self.splits, experiment, self.context(experiment), task.digest, weights, start, place)
            run = execute(job)
            append_row(settings.results, run.row, RESULT_COLUMNS)
            return run

    def _stored(self, task: Task) -> Run:
        stored = self.finished(task.digest)
        if stored and task.listed:
            append_row(self.settings.results, stored.row, RESULT_COLUMNS)  # a kill may have come before the row
        return stored or Run(task.experiment.id, why="ANIMALS10_ONLY leaves it out.")

    def finished(self, name: str | None) -> Run | None:
        """Returns the latest stored run of a digest, or None."""
        found = [path.parent for path in self.settings.models.glob(f"[!.]*-{name}/run.json")] if name else []
        folder = max(found, key=lambda path: path.name.rsplit("-", 2)[1:], default=None)
        return Run(folder.name.rsplit("-", 2)[0], folder) if folder else None

    def is_left_out(self, task: Task, runs: dict[str, Run]) -> bool:
        """Tells whether a task has no run because `ANIMALS10_ONLY` leaves it out."""
        return not self._selected(task.experiment) and runs[task.digest].path is None

    def _selected(self, experiment: Experiment) -> bool:
        only = self.settings.only
        return not only or experiment.id in ((only,) if isinstance(only, str) else only)

    def _is_current(self, experiment: Experiment, done: dict[str, Run]) -> bool:
        """Tells whether an experiment is finished, and started from the weights that its parent has now."""
        stored, start = self.finished(self.digest(experiment)), self._start(experiment, done)
        if stored is None or start is None:
            return stored is not None
        parent = experiment.parent
        if isinstance(parent, Experiment) and self._selected(parent) and not self._is_current(parent, done):
            return False
        weights = start.record["weights_sha256"] if isinstance(start, Run) else file_sha256(start)
        return stored.record["init_weights_sha256"] == weights

    def _start(self, experiment: Experiment, done: dict[str, Run]) -> Run | Path | None:
        """Returns the run or file whose weights an experiment starts from; None if it has none or it is missing."""
        parent = experiment.parent
        if not isinstance(parent, Experiment):
            return parent
        name = self.digest(parent)
        return done[name] if name in done and done[name].path else self.finished(name)

    def _without_parent(self, experiment: Experiment, done: dict[str, Run]) -> UserError:
        parent = experiment.parent
        assert isinstance(parent, Experiment)
        name = self.digest(parent)
        why = done[name].why if name in done else "it is not stored."
        advice = "" if self._selected(parent) else f" Add {parent.id} to ANIMALS10_ONLY."
        return UserError(f"{experiment.id} is initialised from {parent.id}, which is not trained: {why}{advice}")
