"""What has to be trained of some experiments, in which order, and how one of them is trained."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import filelock
import keras

from animals10.csv_append import append_row
from animals10.efficiency import multiply_adds
from animals10.execution import Job, execute, garbage_collected
from animals10.experiments import Experiment
from animals10.files import UserError, user_facing_os_errors
from animals10.models import Architecture, feature_layers_of
from animals10.results import RESULT_COLUMNS
from animals10.runs import Run
from animals10.workspace import Workspace


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
        for ancestor in reversed(with_ancestors(experiment)):
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


def with_ancestors(experiment: Experiment) -> list[Experiment]:
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


# ── One task ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def run_without_training(workspace: Workspace, task: Task, runs: Mapping[str, Run]) -> Run | None:
    """Returns the run of a task that needs no training, or cannot be trained; None if it is to be trained.

    Args:
        workspace: The workspace.
        task: The task.
        runs: The runs of earlier tasks, by digest.

    Raises:
        UserError: The parent is not trained.
    """
    experiment = task.experiment
    may_train = workspace.is_selected(experiment) and (task.requested or task.will_train)
    if not may_train or (workspace.is_current(experiment) and not task.forced):
        settings = workspace.settings
        why = "no run of it is stored." if settings.publish else f"{settings.left_out_by} leaves it out."
        return workspace.latest_run(experiment) or Run(experiment.id, why=why)
    if missing := workspace.weights(experiment)[2]:
        print(f"{experiment.id} skipped: {missing}")
        return Run(experiment.id, why=missing)
    if experiment.parent is not None and workspace.initial_weights(experiment) is None:
        parent = runs.get(workspace.digest(experiment.parent)) if isinstance(experiment.parent, Experiment) else None
        raise workspace.missing_parent(experiment, parent.why if parent else "it is not stored.")
    return None


def train_task(
    workspace: Workspace,
    task: Task,
    prefix: str = "",
    callback: keras.callbacks.Callback | None = None,
    source: str | None = None,
) -> Run:
    """Trains, evaluates and stores a task, unless another process has just done so. `results.csv` stays as it is.

    Args:
        workspace: The workspace.
        task: The task.
        prefix: Begins the line of progress.
        callback: Takes part in the training.
        source: The source of the architecture's class, where this process cannot tell it.

    Raises:
        UserError: Training failed for a reason that the user can act on.
    """
    experiment, settings = task.experiment, workspace.settings
    weights, start = workspace.weights(experiment)[0], workspace.initial_weights(experiment)
    lock = filelock.FileLock(settings.models / f".{task.digest}.lock")  # two processes must not train the same run
    with user_facing_os_errors(settings.models):
        locked = lock.acquire()
    with locked:
        if not task.forced and workspace.is_current(experiment) and (run := workspace.latest_run(experiment)):
            return run
        context = workspace.context(experiment)
        given = settings, workspace.splits, experiment, context, task.digest, weights, start, prefix
        with garbage_collected():
            return execute(Job(*given, workspace.shared, callback, source))


def append_result(workspace: Workspace, run: Run) -> Run:
    """Appends the row of a run to `results.csv`, if it is trained and its row is not there; returns the run."""
    if run.path:
        append_row(workspace.settings.results, run.row, RESULT_COLUMNS)
    return run


# ── Order ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def work_ahead(workspace: Workspace, tasks: Sequence[Task]) -> dict[str, float]:
    """Estimates how much work must follow each other from each task on: its own, and that of its longest descendants.

    Args:
        workspace: The workspace.
        tasks: Tasks, parents before children; only those that will be trained are work.

    Returns:
        Multiply-adds, by digest; infinite where they cannot be counted, so that the unknown begins first.
    """
    work = {task.digest: estimated_work(workspace, task.experiment) if task.will_train else 0 for task in tasks}
    return longest_chains(tasks, work)


def longest_chains(tasks: Sequence[Task], work: Mapping[str, float]) -> dict[str, float]:
    """Returns for each task, by digest, the work of the longest chain of descendants that begins with it.

    Args:
        tasks: Tasks, parents before children.
        work: The work of each task alone, by digest.
    """
    ahead: dict[str, float] = {}
    for task in reversed(tasks):  # children before parents
        children = [ahead[other.digest] for other in tasks if other.experiment.parent == task.experiment]
        ahead[task.digest] = work[task.digest] + max(children, default=0)
    return ahead


def estimated_work(workspace: Workspace, experiment: Experiment) -> float:
    """Estimates the multiply-adds of a whole training; a backward pass counts as two forward passes."""
    context, splits = workspace.context(experiment), workspace.splits
    frozen, trained = _forward_passes(experiment.model, len(splits.class_names), context["image_size"])
    views, epochs = context["views"] or 1, context["maximum_epochs"] - experiment.initial_epoch
    if context["feature_cache"] == "off":
        views = epochs
    work = len(splits.train) * (epochs * 3 * trained + views * frozen)
    return math.inf if math.isnan(work) else work


@lru_cache(maxsize=256)
def _forward_passes(architecture: Architecture, n_classes: int, image_size: int) -> tuple[float, float]:
    """Returns the multiply-adds of the frozen and of the trained layers of a network for an image; nan if unknown."""
    try:
        model = architecture.build(n_classes, image_size)
        if set_trainable := getattr(architecture, "set_trainable", None):
            set_trainable(model)
        layers = feature_layers_of(architecture, model)
        trained = multiply_adds(keras.Model(layers.outputs[layers.start], model.output) if layers else model)
        return multiply_adds(model) - trained, trained
    except Exception:  # it fails when it is trained, and is told of then
        return math.nan, math.nan
