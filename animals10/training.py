"""Training of experiments: each is trained once, stored, and gets its row of `results.csv`.

The notebooks call `train` and `train_all`. `workspace` knows what is finished; `execution` holds the steps of one run.
"""

import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import filelock
import keras

from animals10.csv_append import append_row, check_table
from animals10.execution import Job, execute
from animals10.experiments import Experiment
from animals10.files import UserError, one_line, user_facing_os_errors
from animals10.results import RESULT_COLUMNS
from animals10.runs import Run, Runs
from animals10.settings import Settings
from animals10.workspace import Workspace


def train(settings: Settings, experiment: Experiment) -> Run:
    """Trains, evaluates and stores an experiment, and appends its row to `results.csv`, unless it is finished.

    Early stopping watches the validation loss; the weights of the best epoch are stored and evaluated on the test
    images. A finished run has the same specification, data and settings, and started from the weights that its parent
    has now. A parent that is missing is trained first.

    Args:
        settings: The settings.
        experiment: The experiment.

    Returns:
        The stored run. One without a folder if there is none and it must not be trained (`ANIMALS10_ONLY` leaves it
        out, or `ANIMALS10_PUBLISH` is set), or if its ImageNet weights are missing.

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
        UserError: Two different experiments have the same name, `results.csv` is no such table, or some experiments
            failed; the message says which and why.
    """
    return train_in(Workspace(settings), experiments)


def train_in(
    workspace: Workspace,
    experiments: Iterable[Experiment],
    title: str = "",
    callback: keras.callbacks.Callback | None = None,
) -> Runs:
    """Trains several experiments in a workspace, as `train_all` does.

    Args:
        workspace: The workspace.
        experiments: The experiments.
        title: Begins the lines of progress.
        callback: Takes part in the training of these experiments, not in that of their parents.
    """
    experiments, settings = list(experiments), workspace.settings
    tasks = plan(workspace, experiments)
    waiting = [task for task in tasks if task.will_train]
    if waiting:
        check_table(settings.results, RESULT_COLUMNS)  # before hours are spent
    runs: dict[str, Run] = {}
    failures: list[str] = []
    for task in tasks:
        counter = f"[{waiting.index(task) + 1}/{len(waiting)}] " if task in waiting and len(waiting) > 1 else ""
        prefix = title + counter
        try:
            runs[task.digest] = run_task(workspace, task, runs, prefix, callback if task.requested else None)
        except Exception as error:
            if len(experiments) == 1:
                raise
            if not isinstance(error, UserError):
                traceback.print_exception(error)
            reason = str(error) if isinstance(error, UserError) else one_line(error)
            failures.append(f"{task.experiment.label}: {reason}")
            runs[task.digest] = Run(task.experiment.id, why=f"it failed: {reason}")
    left_out = [task.experiment for task in tasks if task.requested and runs[task.digest].path is None]
    if left_out := [experiment for experiment in left_out if not workspace.is_selected(experiment)]:
        ids = [experiment.id for experiment in experiments]
        names = [one.id if ids.count(one.id) == 1 else one.label for one in left_out]
        words = "Not measured" if settings.publish else f"Left out by {settings.left_out_by}"
        is_short = settings.publish or len(names) <= 3
        print(f"{words}: {', '.join(names) if is_short else f'{len(names)} of {len(experiments)} experiments'}.")
    if failures:
        raise UserError(f"{len(failures)} experiments failed, the others are stored. {'; '.join(failures)}")
    return Runs([runs[workspace.digest(experiment)] for experiment in experiments], experiments)


@dataclass
class Task:
    """An experiment in a plan.

    Attributes:
        experiment: The experiment.
        digest: Names its run.
        requested: Whether it was asked for; otherwise it is the parent of one that was.
        will_train: Whether it has to be trained, as far as can be told before its parent is trained.
        forced: Whether it is trained although it is finished.
    """

    experiment: Experiment
    digest: str
    requested: bool
    will_train: bool = False
    forced: bool = False


def plan(workspace: Workspace, experiments: Sequence[Experiment]) -> list[Task]:
    """Returns the tasks, parents before children, each once, with those that will be trained marked.

    Raises:
        UserError: Two different experiments have the same name.
    """
    tasks: dict[str, Task] = {}
    for experiment in experiments:
        for ancestor in reversed(_with_ancestors(experiment)):
            name = workspace.digest(ancestor)
            tasks.setdefault(name, Task(ancestor, name, False)).requested |= ancestor is experiment
    _check_names([task.experiment for task in tasks.values()])
    for task in reversed(list(tasks.values())):  # children before parents
        is_needed = task.requested or any(
            child.will_train for child in tasks.values() if child.experiment.parent == task.experiment
        )
        is_selected = workspace.is_selected(task.experiment)
        task.forced = workspace.settings.force and task.requested and is_selected
        task.will_train = is_needed and is_selected and (task.forced or not workspace.is_current(task.experiment))
    return list(tasks.values())


def _with_ancestors(experiment: Experiment) -> list[Experiment]:
    """Returns an experiment, its parent, the parent's parent, and so on."""
    found = [experiment]
    while isinstance(parent := found[-1].parent, Experiment):
        found.append(parent)
    return found


def _check_names(experiments: Sequence[Experiment]) -> None:
    named: dict[tuple, Experiment] = {}
    for experiment in experiments:
        if named.setdefault(experiment.key, experiment) is not experiment:
            raise UserError(
                f"Two different experiments are called {experiment.label}: give one another id, learning rate, "
                "maximum epochs or repetition."
            )


def run_task(
    workspace: Workspace,
    task: Task,
    runs: Mapping[str, Run],
    prefix: str = "",
    callback: keras.callbacks.Callback | None = None,
) -> Run:
    """Returns the stored run of a task, training it first if it has to be.

    Args:
        workspace: The workspace.
        task: The task.
        runs: The runs of earlier tasks, by digest.
        prefix: Begins the line of progress.
        callback: Takes part in the training.

    Raises:
        UserError: The parent is not trained, or training failed for a reason that the user can act on.
    """
    experiment, settings = task.experiment, workspace.settings
    may_train = workspace.is_selected(experiment) and (task.requested or task.will_train)
    if not may_train or (workspace.is_current(experiment) and not task.forced):
        return _stored_run(workspace, task)
    weights, _, missing = workspace.weights(experiment)
    if missing:
        print(f"{experiment.id} skipped: {missing}")
        return Run(experiment.id, why=missing)
    start = workspace.initial_weights(experiment)
    if experiment.parent is not None and start is None:
        parent = runs.get(workspace.digest(experiment.parent)) if isinstance(experiment.parent, Experiment) else None
        raise workspace.missing_parent(experiment, parent.why if parent else "it is not stored.")
    lock = filelock.FileLock(settings.models / f".{task.digest}.lock")  # two processes must not train the same run
    with user_facing_os_errors(settings.models):
        locked = lock.acquire()
    with locked:
        if workspace.is_current(experiment) and not task.forced:  # another process has just trained it
            return _stored_run(workspace, task)
        context = workspace.context(experiment)
        given = settings, workspace.splits, experiment, context, task.digest, weights, start, prefix
        run = execute(Job(*given, workspace.shared, callback))
        append_row(settings.results, run.row, RESULT_COLUMNS)
        return run


def _stored_run(workspace: Workspace, task: Task) -> Run:
    run = workspace.latest_run(task.experiment)
    if run and task.requested:
        append_row(workspace.settings.results, run.row, RESULT_COLUMNS)  # a kill may have come before the row
    settings = workspace.settings
    why = "no run of it is stored." if settings.publish else f"{settings.left_out_by} leaves it out."
    return run or Run(task.experiment.id, why=why)
