"""Work on many files: in threads of this process, or in chunks on the workers of a cluster."""

import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from animals10.cluster_connection import check_machines, connected, environment_of_workers, places, token
from animals10.files import UserError, one_line
from animals10.images import map_on_all_cores, without_image_warnings
from animals10.machine import wait_for
from animals10.progress import Progress
from animals10.settings import Settings

Item = TypeVar("Item")
Result = TypeVar("Result")

FEWEST_FILES = 2_000  # for which workers are started, which takes some seconds
CHUNK = 100  # files
CHUNKS_PER_CPU = 3  # that are handed to Ray at a time


def map_files(
    settings: Settings, function: Callable[[Item], Result], items: Sequence[Item], title: str, unit_scale: int = 1
) -> list[Result]:
    """Applies a function to all items and shows the progress: here, or on a cluster if one is set.

    Args:
        settings: The settings.
        function: Works on a file of the raw folder or of the workspace. It is pickled for a cluster.
        items: What it takes.
        title: Of the progress bar.
        unit_scale: Files to an item.

    Returns:
        The results, in the order of the items.

    Raises:
        UserError: The function raised it, or a machine of the cluster does not see the files.
    """
    n_files, chunk = len(items) * unit_scale, max(CHUNK // unit_scale, 1)
    if not settings.cluster or n_files < FEWEST_FILES:
        return map_on_all_cores(function, items, title, unit_scale)
    results: list[Any] = [None] * len(items)
    with connected(settings) as ray, token(settings) as file, Progress(total=n_files, desc=title, unit="file") as bar:
        if settings.cluster == "auto":
            check_machines(ray, settings, file, dict.fromkeys(places(ray, 1, 0)))
        remote = ray.remote(num_cpus=1, runtime_env={"env_vars": environment_of_workers(1, 0)})(apply_on_worker)
        paths = [file, *(path for path in (settings.raw_folder,) if path.exists())]
        given, starts, waiting = ray.put(function), iter(range(0, len(items), chunk)), dict[Any, int]()
        while True:
            n_cpus = max(len(places(ray, 1, 0)), 1)
            while len(waiting) < CHUNKS_PER_CPU * n_cpus and (start := next(starts, None)) is not None:
                waiting[remote.remote(paths, given, items[start : start + chunk])] = start
            if not waiting:
                return results
            for reference in ray.wait([*waiting])[0]:
                start, found = waiting.pop(reference), _result(ray, reference)
                results[start : start + len(found)] = found
                bar.update(len(found) * unit_scale)


def apply_on_worker(paths: Sequence[Path], function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Applies a function to items in the process of a worker.

    Args:
        paths: What this machine must see.
        function: The function.
        items: What it takes.

    Raises:
        UserError: This machine does not see the paths, or the function raised it.
    """
    for path in paths:
        if not wait_for(path):
            raise UserError(
                f"The machine {platform.node()} does not see {path}: all machines of a cluster need the workspace and "
                "the raw images under the same paths, see docs/cluster.md."
            )
    with without_image_warnings():
        return [function(item) for item in items]


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or RuntimeError(str(error))) from None
    except ray.exceptions.RayError as error:
        raise UserError(f"A worker of the cluster died several times ({one_line(error)}).") from None
