"""What tells the machines of a cluster apart, detected without TensorFlow."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

from numpy._core._multiarray_umath import __cpu_features__  # what np.show_runtime prints

from animals10.files import REPOSITORY, UserError
from animals10.progress import tell

PACKAGES = ("tensorflow", "keras", "numpy")  # whose versions can change the last digits
SECONDS_TO_APPEAR = 60  # until a file of another machine must be there: NFS keeps what a folder holds for so long


def instruction_set() -> tuple[str, ...]:
    """Returns the processor's extensions, lowest first, such as `AVX2` and `AVX512_ICL`.

    Kernels are chosen by them: on two machines with the same ones and as many threads, trainings give the same numbers.
    """
    return (platform.machine(), *(name for name, is_there in __cpu_features__.items() if is_there))


def available_threads() -> int:
    """Returns the number of threads that TensorFlow starts unless it is told otherwise."""
    affinity = getattr(os, "sched_getaffinity", None)  # on Linux alone
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def wait_for(path: Path, seconds: float = SECONDS_TO_APPEAR) -> bool:
    """Waits until a file that another machine has written is seen here; tells whether it is."""
    end = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def describe_machine(token: Path, seconds: float = SECONDS_TO_APPEAR) -> dict[str, Any]:
    """Describes the machine that runs this, for the one that has written `token` into the workspace.

    Returns:
        `name`; `sees_workspace`; `instructions`; `versions` of Python and of `PACKAGES` ("none" where one is missing);
        and `checkout`, the folder of the code.
    """
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "none"
    found = {"name": platform.node(), "sees_workspace": wait_for(token, seconds), "instructions": instruction_set()}
    return found | {"versions": versions, "checkout": str(REPOSITORY)}


def report_machines(machines: list[dict[str, Any]], root: Path) -> None:
    """Checks the descriptions of the machines, see `describe_machine`, and tells in a line in which they differ.

    Raises:
        UserError: One does not see the workspace, or has no TensorFlow.
    """
    for machine in machines:
        if not machine["sees_workspace"]:
            raise UserError(
                f"The machine {machine['name']} does not see the workspace {root}: all machines of a cluster need that "
                "folder under the same path, see docs/cluster.md."
            )
        if machine["versions"]["tensorflow"] == "none":
            raise UserError(f"The machine {machine['name']} lacks TensorFlow: all need the same environment.")
    groups: dict[Any, list[str]] = {}
    for machine in machines:
        versions = {**machine["versions"]}
        words = f"{machine['instructions'][-1]}, " + ", ".join(f"{name} {text}" for name, text in versions.items())
        groups.setdefault((tuple(machine["instructions"]), words), []).append(machine["name"])
    if len(groups) > 1:
        found = "; ".join(f"{', '.join(sorted(set(names)))}: {words}" for (_, words), names in groups.items())
        tell(f"The machines differ, and so will the last digits of results ({found}).")
