"""Training of experiments: each is trained once, stored, and gets its row of `results.csv`.

The notebooks call `train` and `train_all`. `workspace` knows what is finished, `planning` what has to be trained;
`execution` holds the steps of one run.
"""

import traceback
from collections.abc import Callable, Iterable, Mapping
from functools import partial

import keras

from animals10.cluster import train_on_cluster
from animals10.csv_append import check_table
from animals10.experiments import Experiment
from animals10.files import UserError, one_line
from animals10.planning import Task, append_result, plan, run_without_training, train_task
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
        callback: Takes part in the training of these experiments, not in that of their parents. With it, they are
            trained in this process, whatever the setting `cluster` says.
    """
    experiments, settings = list(experiments), workspace.settings
    tasks = plan(workspace, experiments)
    waiting = [task for task in tasks if task.will_train]
    if waiting:
        check_table(settings.results, RESULT_COLUMNS)  # before hours are spent
    runs: dict[str, Run] = {}
    failures: list[str] = []

    def attempt(task: Task, run: Callable[[], Run]) -> bool:
        try:
            runs[task.digest] = run()
            return True
        except Exception as error:
            if len(experiments) == 1:
                raise
            if not isinstance(error, UserError):
                traceback.print_exception(error)
            reason = str(error) if isinstance(error, UserError) else one_line(error)
            failures.append(f"{task.experiment.label}: {reason}")
            runs[task.digest] = Run(task.experiment.id, why=f"it failed: {reason}")
            return False

    if waiting and settings.cluster and callback is None:
        train_on_cluster(workspace, tasks, runs, attempt, title)
    else:
        for task in tasks:
            counter = f"[{waiting.index(task) + 1}/{len(waiting)}] " if task in waiting and len(waiting) > 1 else ""
            part = callback if task.requested else None
            attempt(task, partial(run_task, workspace, task, runs, title + counter, part))
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


def run_task(
    workspace: Workspace,
    task: Task,
    runs: Mapping[str, Run],
    prefix: str = "",
    callback: keras.callbacks.Callback | None = None,
) -> Run:
    """Returns the stored run of a task, with its row in `results.csv`; trains it first if it has to be.

    Args:
        workspace: The workspace.
        task: The task.
        runs: The runs of earlier tasks, by digest.
        prefix: Begins the line of progress.
        callback: Takes part in the training.

    Raises:
        UserError: The parent is not trained, or training failed for a reason that the user can act on.
    """
    run = run_without_training(workspace, task, runs)
    if run is None:
        return append_result(workspace, train_task(workspace, task, prefix, callback))
    return append_result(workspace, run) if task.requested else run  # a kill may have come before the row
