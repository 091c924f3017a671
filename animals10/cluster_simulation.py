"""How long the study takes on a cluster: tasks that wait instead of training, handed out as trainings are."""

import heapq
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from animals10.catalogue import CATALOGUE
from animals10.cluster import Driver
from animals10.cluster_connection import connected
from animals10.experiments import Experiment
from animals10.models import Transfer
from animals10.planning import Task, estimated_work, longest_chains, with_ancestors
from animals10.results import read_results
from animals10.runs import Run
from animals10.settings import Settings

LONG = 600.0  # seconds from which a recorded duration tells how fast the machine is
SHORTEST = 10.0  # seconds that a run takes at least


class StudyWorkspace:
    """What the order of runs depends on, for the images of Animals-10: a workspace without images."""

    def __init__(self, settings: Settings):
        """Takes the settings."""
        self.settings = settings
        self.splits = SimpleNamespace(train=range(18_170), class_names=range(10))

    def digest(self, experiment: Experiment) -> str:
        """Returns the experiment's label."""
        return experiment.label

    def context(self, experiment: Experiment) -> dict[str, Any]:
        """Returns the settings that decide how much work an experiment is."""
        is_cached = isinstance(experiment.model, Transfer)
        views = self.settings.views if is_cached and experiment.training.augmentation else None
        found = {"image_size": self.settings.image_size, "maximum_epochs": experiment.training.epochs, "views": views}
        return found | {"feature_cache": "float16" if is_cached else "off"}


class _Waiting(Driver):
    """Hands out tasks that wait for their durations."""

    def __init__(self, ray: Any, workspace: Any, tasks: list[Task], seconds: Mapping[str, float], n_workers: int):
        runs: dict[str, Run] = {}

        def attempt(task: Task, run: Callable[[], Run]) -> bool:
            runs[task.digest] = run()
            return True

        super().__init__(ray, workspace, tasks, runs, attempt, Path(), "")
        self.table.place = "log"  # no table of them
        self.seconds, self.n_workers, self.remote = seconds, n_workers, _waiting_task(ray)

    def _without_training(self, task: Task) -> Run | None:
        return None

    def _slots(self) -> int:
        return self.n_workers

    def _group(self, task: Task) -> str:
        return ""

    def _receive(self) -> None:
        pass

    def _update(self, task: Task, **values: Any) -> None:
        pass

    def _start(self, task: Task) -> Any:
        return self.remote.remote(self.seconds[task.digest])

    def _result(self, task: Task, reference: Any) -> Run:
        self.ray.get(reference)
        return Run(task.experiment.id)


def simulate(results: Path, workers: Sequence[int], seconds: float) -> pd.DataFrame:
    """Simulates the training of the catalogue on Ray, and prints a line for each number of workers.

    Args:
        results: A table of results, whose durations are waited for where it has them; others are estimated.
        workers: Numbers of workers.
        seconds: How long each simulation takes at least: all durations are scaled to that.

    Returns:
        One row per number of workers, in hours of the machine that recorded the durations: `workers`; `makespan`, from
        the start of the first run to the end of the last; `bound`, below which none can be: the critical path, or the
        work per worker; `order`, the makespan of the same order of runs without any overhead; and `ratio`, makespan
        divided by bound.
    """
    workspace: Any = StudyWorkspace(Settings(root=results.parent, cluster="local", cpus_per_run=1, gpus_per_run=0))
    tasks = [Task(one, one.label, True, True) for one in sorted(CATALOGUE, key=lambda one: len(with_ancestors(one)))]
    durations = task_durations(workspace, tasks, results)
    path, work, rows = max(longest_chains(tasks, durations).values()), sum(durations.values()), []
    hours = f"{len(tasks)} experiments, {work / 3600:.1f} hours of work, critical path {path / 3600:.1f} hours"
    print(f"{hours}\nworkers  makespan     bound     order  ratio", flush=True)
    with connected(workspace.settings, num_cpus=max(workers)) as ray:
        n_processes = min(len(tasks), max(workers))
        wait = _waiting_task(ray)
        ray.get([wait.remote(5) for _ in range(n_processes)])  # starts the processes, which are not measured
        for n in workers:
            bound = max(path, work / n)
            scaled = {digest: duration * seconds / bound for digest, duration in durations.items()}
            driver, start = _Waiting(ray, workspace, tasks, scaled, n), time.perf_counter()
            try:
                driver.train()
            finally:
                driver.end()
            makespan = (time.perf_counter() - start) * bound / seconds
            row = {"workers": n, "makespan": makespan / 3600, "bound": bound / 3600}
            row |= {"order": makespan_of_order(tasks, durations, driver.ahead, n) / 3600, "ratio": makespan / bound}
            rows.append(row)
            print("{workers:7}  {makespan:8.2f}  {bound:8.2f}  {order:8.2f}  {ratio:5.3f}".format(**row), flush=True)
    return pd.DataFrame(rows)


def _waiting_task(ray: Any) -> Any:
    # A function in a function reaches the workers by value: they need not import this module, and with it TensorFlow.
    def wait(seconds: float) -> None:
        time.sleep(seconds)

    return ray.remote(num_cpus=1)(wait)


def task_durations(workspace: Any, tasks: Sequence[Task], results: Path) -> dict[str, float]:
    """Returns the seconds of each task: the recorded ones, or estimates at the speed of the long recorded runs."""
    table = read_results(results)
    table = table[table.epochs_cap.isna() & (table.weights != "random") & table.device.str.startswith("CPU")]
    recorded = table.groupby(["model_id", "learning_rate", "epochs"]).train_seconds.median()
    work = {task.digest: estimated_work(workspace, task.experiment) for task in tasks}
    known = {task.digest: recorded.get(task.experiment.key[:3]) for task in tasks}
    speeds = [work[name] / seconds for name, seconds in known.items() if seconds is not None and seconds >= LONG]
    speed = pd.Series(speeds, dtype=float).median()
    return {name: max(known[name] or work[name] / speed, SHORTEST) for name in work}


def makespan_of_order(
    tasks: Sequence[Task], durations: Mapping[str, float], priorities: Mapping[str, float], n_workers: int
) -> float:
    """Returns the makespan if a free worker always takes the ready task of the highest priority."""
    done, running, clock = set[str](), list[tuple[float, str]](), 0.0
    waiting = sorted(tasks, key=lambda task: -priorities[task.digest])
    while waiting or running:
        for task in [task for task in waiting if _parent(task) in {"", *done}][: n_workers - len(running)]:
            waiting.remove(task)
            heapq.heappush(running, (clock + durations[task.digest], task.digest))
        clock, name = heapq.heappop(running)
        done.add(name)
    return clock


def _parent(task: Task) -> str:
    parent = task.experiment.parent
    return parent.label if isinstance(parent, Experiment) else ""
