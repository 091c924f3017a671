"""The connection to a Ray cluster, or Ray on this machine alone."""

import importlib
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from animals10.files import REPOSITORY, UserError, one_line, user_facing_os_errors
from animals10.machine import describe_machine, report_machines
from animals10.progress import tell
from animals10.settings import Settings
from animals10.tensorflow_start import THREADS

QUIET = {"log_to_driver": False, "logging_level": "ERROR"}
OBJECT_STORE = 100_000_000  # bytes of memory: tables of file names pass through it; what is larger, through a file
SECONDS_BETWEEN_POLLS = 0.5  # of what is running
PASSED_ON = ("TF_", "KERAS_", "XLA_")  # beginnings of variables that decide how TensorFlow computes


@contextmanager
def connected(settings: Settings, **options: Any) -> Iterator[Any]:
    """Connects to the cluster of the settings, or to the one that this process is connected to already.

    Args:
        settings: The settings.
        options: Of `ray.init`, where Ray is started here.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
    import ray

    if ray.is_initialized():
        yield ray
        return
    # Names of sockets must be short, so not in any temporary folder.
    folder = (
        ""
        if settings.cluster == "auto"
        else tempfile.mkdtemp(prefix="ray-", dir="/tmp" if os.name == "posix" else None)
    )
    # Whatever `log_to_driver` says, Ray prints pages about a machine that is lost; here it is a line.
    reports, ray._private.worker.print_to_stdstream = ray._private.worker.print_to_stdstream, lambda *_, **__: None
    try:
        dashboard = _start(ray, folder, options) if folder else _join(ray)
        if dashboard:
            tell(f"Ray's dashboard: http://{dashboard}")
        yield ray
    finally:
        ray.shutdown()
        ray._private.worker.print_to_stdstream = reports
        if folder:
            shutil.rmtree(folder, ignore_errors=True)


def _start(ray: Any, folder: str, options: dict[str, Any]) -> str:
    """Starts Ray on this machine alone, with its files in a folder; returns the address of its dashboard, if any."""
    options = options | {"address": "local", "_temp_dir": folder, "_node_ip_address": "127.0.0.1"}
    options |= {"object_store_memory": OBJECT_STORE, "include_dashboard": False}
    for may_try_again in (True, True, False):
        try:
            return ray.init(**options, **QUIET).dashboard_url
        except Exception as error:  # it allows itself 30 seconds, which a busy machine may exceed
            ray.shutdown()
            if not may_try_again:
                raise UserError(f"Ray cannot be started ({one_line(error)}) Is this machine too busy?") from None
    return ""


def _join(ray: Any) -> str:
    """Connects to a Ray cluster; returns the address of its dashboard, if there is one."""
    address = os.environ.get("RAY_ADDRESS", "").strip() or "auto"
    host, colon, port = address.rpartition(":")
    try:
        if colon and "/" not in host:  # Ray itself would wait for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        return ray.init(address=address, **QUIET).dashboard_url
    except Exception as error:  # of many kinds
        raise UserError(
            f"There is no Ray cluster to connect to ({address}: {one_line(error)}): start one (docs/cluster.md), name "
            "it by RAY_ADDRESS, or set ANIMALS10_CLUSTER=local."
        ) from None


def environment_of_workers(cpus: int, gpus: float) -> dict[str, str]:
    """Returns the variables of the environment of a worker's process that computes with so many threads and GPUs."""
    found = {name: text for name, text in os.environ.items() if name.startswith(PASSED_ON)}
    found |= dict.fromkeys(THREADS, str(cpus))
    found["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    if not gpus:
        found["CUDA_VISIBLE_DEVICES"] = "-1"
    return found


def in_environment(environment: Mapping[str, str], name: str) -> Callable[[list[Any]], Any]:
    """Returns a function for `ray.remote` that calls one of this package in a process with an environment.

    The variables are set before TensorFlow is imported. Ray's `runtime_env` does the same, but lets no process be used
    that waits already, which takes three seconds longer.

    Args:
        environment: The variables.
        name: Module and name of the function.

    Returns:
        Takes references to the arguments in a list: Ray does not look into it, and so does not import what they need.
    """
    module, _, function = name.rpartition(".")

    def call(references: list[Any]) -> Any:  # pickled by value, as every inner function
        import ray

        os.environ.update(environment)
        return getattr(importlib.import_module(module), function)(*ray.get(references))

    return call


def machines_of(ray: Any) -> list[dict[str, Any]]:
    """Returns id, CPUs and GPUs of each machine of the cluster."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [
        {"id": node["NodeID"]} | {name: node["Resources"].get(name, 0) for name in ("CPU", "GPU")} for node in nodes
    ]


def places(ray: Any, cpus: int, gpus: float) -> list[str]:
    """Returns the machine's id for each task that takes so many CPUs and GPUs and can run at the same time."""
    found: list[str] = []
    for machine in machines_of(ray):
        n = int(machine["CPU"] // cpus)
        found += [machine["id"]] * (min(n, int(machine["GPU"] / gpus + 1e-9)) if gpus else n)
    return found


def on_machine(ray: Any, id: str) -> Any:
    """Returns Ray's scheduling strategy for what has to be done on a certain machine."""
    return ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(id, soft=False)


def check_machines(ray: Any, settings: Settings, token: Path, machines: Iterable[str]) -> None:
    """Checks that machines of the cluster see the workspace and have this code; tells in which they differ.

    Args:
        ray: The module, connected.
        settings: The settings.
        token: A file in the workspace, see `token`.
        machines: The ids of the machines.

    Raises:
        UserError: One does not see the workspace, or cannot use the code.
    """
    environment = {"env_vars": environment_of_workers(1, 0)}
    remote = ray.remote(num_cpus=0, max_calls=1, runtime_env=environment)(describe_machine)
    asked = [remote.options(scheduling_strategy=on_machine(ray, id)).remote(token) for id in machines]
    try:
        found = ray.get(asked)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        raise UserError(
            f"A machine of the cluster cannot use the code in {REPOSITORY} ({one_line(cause)}): all machines need "
            "this checkout and its environment under the same paths, see docs/cluster.md."
        ) from None
    report_machines(found, settings.root)


@contextmanager
def token(settings: Settings) -> Iterator[Path]:
    """Leaves a file in the workspace that each machine must see."""
    path = settings.root / f".cluster-{uuid.uuid4().hex}"
    with user_facing_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)  # a new workspace
        path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
