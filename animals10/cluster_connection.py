"""The connection to a Ray cluster, or Ray on this machine alone."""

import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from animals10.files import UserError, one_line, user_facing_os_errors
from animals10.progress import tell
from animals10.settings import Settings

QUIET = {"log_to_driver": False, "logging_level": "ERROR"}
OBJECT_STORE = 100_000_000  # bytes of memory: only tables of file names pass through it


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


@contextmanager
def token(settings: Settings) -> Iterator[Path]:
    """Leaves a file in the workspace that each machine must see."""
    path = settings.root / f".cluster-{uuid.uuid4().hex}"
    with user_facing_os_errors(path):
        path.touch()
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)
