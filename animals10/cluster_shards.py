"""Shards on a cluster: other processes write a share of them, as far as machines are free.

The process that needs the shards takes part. So it never waits for machines, and does what a machine leaves undone that
is lost. Helpers compute with as many threads and GPUs as it does, on the same instruction set.
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import Lock, Thread
from typing import Any

import keras
import tensorflow as tf

from animals10.cluster_connection import (
    SECONDS_BETWEEN_POLLS,
    connected,
    environment_of_workers,
    in_environment,
    on_machine,
    places,
)
from animals10.environment import count_threads, has_gpu, numeric_device
from animals10.files import UserError, one_line
from animals10.machine import wait_for
from animals10.progress import tell
from animals10.settings import Settings
from animals10.shards import Compute, Shards

FEWEST_ROWS = 1_000  # for which helpers are started, which takes some seconds


def write_with_helpers(
    settings: Settings, shards: Shards, missing: Sequence[int], compute: Compute, report: Callable[[int], object]
) -> None:
    """Computes and writes shards, in this process and in those that help.

    Args:
        settings: The settings.
        shards: All shards.
        missing: The numbers of those to compute.
        compute: See `Shards.write`; it is pickled for the helpers.
        report: Takes numbers of rows that are computed.

    Raises:
        UserError: A value is too large for the dtype, or a file cannot be written.
    """
    with _cluster(settings, sum(map(shards.count, missing))) as ray:
        helpers = _start_helpers(ray, most=len(missing) - 1) if ray else []
        try:
            given = _hand_out(ray, shards, compute) if helpers else None  # meanwhile they import TensorFlow
            n_workers = 1 + len(helpers) if given else 1
            work = _Work(shards, missing, report, n_workers)
            threads = [Thread(target=_follow, args=(ray, one, given, work), daemon=True) for one in helpers if given]
            for thread in threads:
                thread.start()
            while part := work.take() or work.left_undone(threads):
                for _ in shards.write(part, compute, work.report):
                    pass
            if work.n_helped:
                tell(f"{shards.title}: other processes computed {work.n_helped} of {len(missing)} shards.")
        finally:
            for helper in helpers:
                ray.kill(helper)  # also one that has found no machine


class _Work:
    """The shards that nobody computes yet."""

    def __init__(self, shards: Shards, missing: Sequence[int], report: Callable[[int], object], n_workers: int):
        self.shards, self.remaining, self.n_workers = shards, [*missing], n_workers
        self.lock, self._report, self.n_helped = Lock(), report, 0

    def take(self) -> list[int]:
        """Returns shards that follow each other, fewer towards the end; none if none remain."""
        with self.lock:
            most = len(self.remaining) // (2 * self.n_workers) if self.n_workers > 1 else len(self.remaining)
            part, others = self.remaining[:1], self.remaining[1:]
            while others and len(part) < most and others[0] == part[-1] + 1:
                part.append(others.pop(0))
            self.remaining = others
            return part

    def left_undone(self, threads: Sequence[Thread]) -> list[int]:
        """Waits until all helpers have ended; returns shards that they have not written, if there are any."""
        for thread in threads:
            thread.join()
        return self.take()

    def give_back(self, part: Sequence[int]) -> None:
        """Takes back shards that are not written."""
        with self.lock:
            self.remaining = sorted([*self.remaining, *part])

    def report(self, n_rows: int) -> None:
        """Tells that rows are computed."""
        with self.lock:
            self._report(n_rows)

    def report_help(self, number: int) -> None:
        """Tells that another process has written a shard."""
        self.report(self.shards.count(number))
        with self.lock:
            self.n_helped += 1


def computes_like() -> Any:
    """Returns the device and software versions that affect bitwise reproducibility."""
    return numeric_device(), tf.__version__, keras.__version__


def write_shards(shards: Shards, compute: Compute, numbers: Sequence[int]) -> Iterator[int]:
    """Writes shards in a process that helps; yields the number of each that is written.

    Raises:
        UserError: This machine does not see the workspace, or the shards cannot be computed.
    """
    if not wait_for(shards.key_file):
        raise UserError(f"{shards.folder} is not seen")
    yield from shards.write(numbers, compute, lambda n: None)


def _helper_class(environment: Mapping[str, str]) -> type:
    call = in_environment(environment, f"{__name__}.computes_like")

    class Helper:  # pickled by value: this module imports TensorFlow, before which the environment must be set
        given: Any = None

        def computes_like(self) -> Any:
            return call([])

        def write(self, references: list[Any], numbers: Sequence[int]) -> Iterator[int]:
            import ray

            from animals10.cluster_shards import write_shards

            if self.given is None:
                self.given = ray.get(references[0])
            shards, compute = self.given
            yield from write_shards(shards, compute, numbers)

    return Helper


def _cluster(settings: Settings, n_rows: int) -> AbstractContextManager[Any]:
    """Connects to a cluster that may help; None in place of Ray if there is none."""
    ray = sys.modules.get("ray")
    if n_rows >= FEWEST_ROWS:
        if ray and ray.is_initialized():
            return nullcontext(ray)
        if settings.cluster == "auto":  # this process has all cores of its machine
            return connected(settings)
    return nullcontext()


def _start_helpers(ray: Any, most: int) -> list[Any]:
    """Asks for a helper wherever a machine has room beside this process; each starts when there is room."""
    context = ray.get_runtime_context()
    if context.get_task_id():  # this is a worker
        resources = context.get_assigned_resources()
        cpus, gpus = int(resources.get("CPU", 1)), resources.get("GPU", 0)
    else:
        cpus, gpus = count_threads(), float(has_gpu())
    free = places(ray, cpus, gpus)
    if context.get_node_id() in free:
        free.remove(context.get_node_id())  # the place of this process
    helper = ray.remote(_helper_class(environment_of_workers(cpus, gpus)))
    options = {"num_cpus": cpus, "num_gpus": gpus}
    return [helper.options(**options, scheduling_strategy=on_machine(ray, id)).remote() for id in free[:most]]


def _hand_out(ray: Any, shards: Shards, compute: Compute) -> Any:
    """Hands Ray what helpers need; None if it cannot be pickled: a graph has 2 GB at most."""
    try:
        return ray.put((shards, compute))
    except Exception as error:  # of many kinds
        tell(f"{shards.title}: no other process helps ({one_line(error)}).")
        return None


def _follow(ray: Any, helper: Any, given: Any, work: _Work) -> None:
    """Hands shards to a helper until none remain."""
    part: list[int] = []
    try:
        answer = helper.computes_like.remote()
        while not ray.wait([answer], timeout=SECONDS_BETWEEN_POLLS)[0]:
            if not work.remaining:
                return
        if ray.get(answer) != computes_like():
            return
        while part := work.take():
            for number in map(ray.get, helper.write.remote([given], part.copy())):
                if not wait_for(work.shards.sums_file(number)):
                    raise UserError(f"shard {number} is not seen")
                part.remove(number)
                work.report_help(number)
    except Exception:  # it is lost, or has failed: then this process does what it has left undone, and may fail itself
        work.give_back(part)
