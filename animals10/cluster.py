"""Training on a Ray cluster: each run is a task in a process of its own, on whichever machine is free.

This process, the driver, decides what begins, checks what is stored, and alone writes `results.csv`. All machines see
the workspace, under the same path. A run whose process or machine dies begins again elsewhere and resumes from the
checkpoint in the workspace.
"""

import copyreg
import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from animals10.cluster_connection import (
    SECONDS_BETWEEN_POLLS,
    check_machines,
    connected,
    environment_of_workers,
    in_environment,
    machines_of,
    on_machine,
    places,
    token,
)
from animals10.cluster_progress import RunTable
from animals10.evaluation import metric_problems
from animals10.execution import source_of
from animals10.experiments import Experiment
from animals10.files import UserError, display_path, one_line
from animals10.machine import wait_for
from animals10.planning import Task, append_result, run_without_training, work_ahead
from animals10.progress import tell
from animals10.runs import Run, changed_files
from animals10.workspace import Workspace

CPUS_PER_RUN = 2  # unless the setting says otherwise
RETRIES = 3  # of a run whose process or machine died

# By name, as there is one: else the fields of a dataclass that a notebook defines would have another on a worker.
copyreg.pickle(type(dataclasses.MISSING), lambda _: "MISSING")

Attempt = Callable[[Task, Callable[[], Run]], bool]


def train_on_cluster(
    workspace: Workspace, tasks: list[Task], runs: Mapping[str, Run], attempt: Attempt, title: str = ""
) -> None:
    """Trains tasks at the same time as far as there are machines, the longest first, and a child after its parent.

    Args:
        workspace: The workspace; its setting `cluster` says which cluster.
        tasks: All tasks, parents before children.
        runs: The runs of tasks that have ended, by digest.
        attempt: Adds the run of a task that has ended to `runs`, by calling a function; where that fails, a run without
            a folder. Tells whether it did not fail.
        title: Begins the lines of progress.

    Raises:
        UserError: There is no such cluster, its machines are too small or do not see the workspace.
    """
    with connected(workspace.settings) as ray, token(workspace.settings) as file:
        driver = Driver(ray, workspace, tasks, runs, attempt, file, title)
        try:
            driver.prepare()
            driver.train()
        finally:
            driver.end()


# ── The driver ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Driver:
    """Begins tasks where machines are free, follows them, and stores their rows."""

    def __init__(
        self,
        ray: Any,
        workspace: Workspace,
        tasks: list[Task],
        runs: Mapping[str, Run],
        attempt: Attempt,
        token: Path,
        title: str,
    ):
        self.ray, self.workspace, self.runs, self.attempt, self.token = ray, workspace, runs, attempt, token
        settings, largest = workspace.settings, max((node["CPU"] for node in machines_of(ray)), default=1)
        self.cpus = settings.cpus_per_run or min(CPUS_PER_RUN, max(int(largest), 1))
        self.gpus = float(workspace.on_gpu) if settings.gpus_per_run is None else settings.gpus_per_run
        self.blocked, self.ready = list(tasks), list[Task]()
        self.running: dict[Any, Task] = {}
        self.preparing: dict[str, Task] = {}
        self.ahead = work_ahead(workspace, tasks) if len(tasks) > 1 else {tasks[0].digest: 0.0}
        self.table = RunTable([(task.digest, task.experiment.label) for task in tasks if task.will_train], title)
        self.queue: Any = None
        self.given: Any = None

    def prepare(self) -> None:
        """Checks the machines, and hands them what all runs need."""
        self._check_machines()
        here = on_machine(self.ray, self.ray.get_runtime_context().get_node_id())
        from ray.util.queue import Queue

        self.queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        workspace = self.workspace
        self.given = self.ray.put((workspace.settings, workspace.shared, workspace.fold_of, workspace.splits))

    def train(self) -> None:
        """Trains all tasks."""
        self._admit_unblocked()
        while self.ready or self.running:
            while (task := self._next()) and len(self.running) < self._slots():
                self._begin(task)
            if not self.running:
                time.sleep(SECONDS_BETWEEN_POLLS)
                continue
            done, _ = self.ray.wait([*self.running], timeout=SECONDS_BETWEEN_POLLS)
            self._receive()
            for reference in done:
                task = self.running.pop(reference)
                self._leave_preparation(task)
                self._settle(task, partial(self._result, task, reference))
                self._admit_unblocked()
            self.table.draw()

    def end(self) -> None:
        """Ends all that still runs; what is unfinished resumes when it is trained again."""
        with suppress(Exception):
            for reference in self.running:
                self.ray.cancel(reference, force=True)
            if self.running:
                self.ray.wait([*self.running], num_returns=len(self.running), timeout=10)
            if self.queue:
                self.queue.shutdown(force=True)
        self.table.close()

    def _slots(self) -> int:
        """Returns how many runs the machines can train at the same time."""
        return len(places(self.ray, self.cpus, self.gpus))

    def _check_machines(self) -> None:
        """Checks that machines are large enough, see the workspace, and have this code; tells in which they differ."""
        if not self._slots():
            raise UserError(
                f"No machine of the cluster has the {self.cpus} CPUs and {self.gpus:g} GPUs of a run: start machines, "
                "or lower ANIMALS10_CPUS_PER_RUN and ANIMALS10_GPUS_PER_RUN."
            )
        if not self.gpus and (n_gpus := sum(machine["GPU"] for machine in machines_of(self.ray))):
            tell(f"The cluster has {n_gpus:g} GPUs, which are not used: ANIMALS10_GPUS_PER_RUN=1 uses them.")
        if self.workspace.settings.cluster == "auto":
            used = dict.fromkeys(places(self.ray, self.cpus, self.gpus))
            check_machines(self.ray, self.workspace.settings, self.token, used)

    # ── Tasks ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _admit_unblocked(self) -> None:
        """Finds tasks whose parents have ended: they are ready, or end at once where there is nothing to train."""
        for task in [*self.blocked]:  # parents before children
            parent = task.experiment.parent
            name = self.workspace.digest(parent) if isinstance(parent, Experiment) else ""
            if name and name not in self.runs:
                continue
            self.blocked.remove(task)
            try:
                run = self._without_training(task)
            except UserError as error:
                self._settle(task, partial(_fail, error))
                continue
            if run is None:
                self.ready.append(task)
            else:
                append = partial(append_result, self.workspace, run)
                self._settle(task, append if task.requested else partial(lambda run: run, run))
        self.ready.sort(key=lambda task: -self.ahead[task.digest])

    def _without_training(self, task: Task) -> Run | None:
        return run_without_training(self.workspace, task, self.runs)

    def _next(self) -> Task | None:
        """Returns the task to begin. Of those that may compute the same cached features, one prepares at a time."""
        return next((task for task in self.ready if self._group(task) not in self.preparing), None)

    def _group(self, task: Task) -> str:
        """Names what a run prepares in files that others use: downloaded weights and cached features."""
        model = task.experiment.model
        is_cached = self.workspace.context(task.experiment)["feature_cache"] != "off"
        return getattr(model, "backbone", None) or (type(model).__name__ if is_cached else "")

    def _begin(self, task: Task) -> None:
        self.ready.remove(task)
        if group := self._group(task):
            self.preparing[group] = task
        self.running[self._start(task)] = task
        self._update(task, epochs=self.workspace.context(task.experiment)["maximum_epochs"])

    def _start(self, task: Task) -> Any:
        """Hands a task to Ray; returns the reference of its run."""
        options: dict[str, Any] = {"num_cpus": self.cpus, "num_gpus": self.gpus, "name": task.experiment.id}
        options |= {"max_retries": RETRIES, "retry_exceptions": False}
        environment = environment_of_workers(self.cpus, self.gpus)
        call = in_environment(environment, "animals10.cluster_worker.train_on_worker")
        remote = self.ray.remote(max_calls=1)(call).options(**options)  # a fresh process
        source = source_of(task.experiment)  # which the process of a worker cannot tell
        given = self.token, Path.cwd(), self.cpus, task, source, self.queue
        return remote.remote([self.given, *map(self.ray.put, given)])

    def _leave_preparation(self, task: Task) -> None:
        self.preparing = {group: other for group, other in self.preparing.items() if other is not task}

    def _receive(self) -> None:
        """Reads what the workers have sent."""
        running = {task.digest: task for task in self.running.values()}
        with suppress(self.ray.exceptions.RayError):
            for digest, values in self.queue.get_nowait_batch(self.queue.qsize()):
                if not (task := running.get(digest)):
                    continue
                if line := values.pop("line", ""):
                    self.table.say(f"{task.experiment.id}: {line}")
                row = self.table.rows.get(digest)
                if row and values.get("state") == "starting" and row.worker:
                    self.table.say(
                        f"{task.experiment.label}: its worker {row.worker} ended, {values['worker']} takes it over."
                    )
                if values.get("state") == "training":
                    self._leave_preparation(task)
                self._update(task, **values)

    def _update(self, task: Task, **values: Any) -> None:
        if task.digest in self.table.rows:
            self.table.update(task.digest, **values)

    def _settle(self, task: Task, run: Callable[[], Run]) -> None:
        self.table.pause()
        is_fine = self.attempt(task, run)
        is_stored = self.runs[task.digest].path is not None
        self._update(task, state="stored" if is_stored else "skipped" if is_fine else "failed")

    def _result(self, task: Task, reference: Any) -> Run:
        """Returns the run that a worker has stored, with its row in `results.csv`."""
        errors = self.ray.exceptions
        try:
            run = self.ray.get(reference)
        except errors.RayTaskError as error:
            raise (error.cause or RuntimeError(str(error))) from error
        except errors.RayError as error:
            raise UserError(
                f"its processes died {RETRIES + 1} times, most likely because the memory ran out "
                f"({type(error).__name__}: {one_line(error)})."
            ) from None
        if problems := find_problems(run, task.digest):
            raise UserError(f"{display_path(run.path)} cannot be used: {'; '.join(problems)}.")
        return append_result(self.workspace, run)


def _fail(error: Exception) -> Run:
    raise error


def find_problems(run: Run, digest: str) -> list[str]:
    """Checks the folder of a run that another machine has stored: its name, files, checksums, digest and metrics.

    Returns:
        Its problems, one line each; empty if there are none.
    """
    assert run.path is not None
    if not wait_for(run.path / "run.json"):
        return ["this machine does not see its run.json"]
    if problems := changed_files(run):
        return problems
    record, row = run.record, run.row
    if record["digest"] != digest or run.path.name != f"{row['model_id']}-{row['run_id']}":
        return ["its folder, its row and its digest do not name the same run"]
    return metric_problems(row, run.predictions)
