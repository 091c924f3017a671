"""The stress test of training on a cluster: at random moments a worker is killed, and a machine is lost."""

import importlib.util
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from animals10.cluster_connection import OBJECT_STORE
from animals10.experiments import Experiment, Training
from animals10.files import UserError
from animals10.models import CNN, Transfer
from animals10.preprocessing import resize_images, scan_images
from animals10.settings import Settings
from animals10.stress import KillTally, training_fingerprint
from animals10.training import train_all

PREFIX = "cluster-"  # of ids, by which the processes of workers are found
LATEST = 20.0  # seconds from the start of a worker to a kill, at most
LONGEST = 600.0  # seconds for a machine to have something to train


def train_six(raw: Path, workspace: Path, cluster: str = "") -> None:
    """Trains a parent with two children, two heads on cached features, and a CNN, each with one thread."""
    settings = Settings(root=workspace, raw=raw, image_size=64, weights="random", views=1, cpus_per_run=1)
    if not (settings.data / "processed-overview.csv").exists():
        resize_images(settings, scan_images(settings))
    training = Training(learning_rate=1e-3, epochs=20, patience=20)
    parent = Experiment(f"{PREFIX}parent", CNN((8, 8), (2, 2), (64,), (0.3,)), training)
    children = [
        Experiment(f"{PREFIX}{name}", parent.model, Training(rate, 20, patience=20), parent)
        for name, rate in (("low", 1e-4), ("high", 1e-3))
    ]
    heads = [Experiment(f"{PREFIX}head{n}", Transfer("MobileNetV2", (n,), (0.2,)), training) for n in (16, 64)]
    other = Experiment(f"{PREFIX}cnn", CNN((4, 8), (2, 2), (64,), (0.3,)), training)
    train_all(settings.model_copy(update={"cluster": cluster}), [parent, *children, *heads, other])


def kill_on_cluster(workspace: Path, raw: Path, *, rounds: int, seed: int) -> KillTally:
    """Trains on a cluster of two machines that this one plays, and compares with an undisturbed process.

    In each round a worker gets SIGKILL and a machine is removed, at random moments while something is trained.

    Args:
        workspace: Folder for the workspaces.
        raw: The raw images.
        rounds: Number of rounds; none where Ray is not installed.
        seed: Decides the moments.
    """
    tally = KillTally()
    if not importlib.util.find_spec("ray"):
        print("cluster: Ray is not installed (`make cluster`), so nothing is tried")
        return tally
    undisturbed = workspace / "undisturbed"
    undisturbed.mkdir(parents=True)
    program = f"import pathlib, sys; from {__name__} import train_six; train_six(*map(pathlib.Path, sys.argv[1:]))"
    environment = os.environ | {"ANIMALS10_CPUS_PER_RUN": "1"}
    subprocess.run([sys.executable, "-c", program, str(raw), str(undisturbed)], env=environment, check=True)
    expected = training_fingerprint(undisturbed)
    for number in range(1, rounds + 1):
        disturbed = workspace / f"disturbed-{number}"
        shutil.copytree(undisturbed / "data", disturbed / "data", ignore=shutil.ignore_patterns("features"))
        killed = _train_disturbed(raw, disturbed, random.Random(seed + number))
        tally.starts, tally.kills = tally.starts + 1, tally.kills + killed
        found = training_fingerprint(disturbed)
        differing = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name))
        if differing:
            tally.faults += (f"{disturbed}: differing: {', '.join(differing[:5])}",)
        if killed < 2:
            tally.faults += (f"{disturbed}: {killed} kills instead of 2",)
        print(f"cluster, round {number}: {killed} kills, {len(differing)} differences", flush=True)
    return tally


def _train_disturbed(raw: Path, workspace: Path, moments: random.Random) -> int:
    """Trains once under kills; returns how many there were."""
    from ray.cluster_utils import Cluster

    machine: dict[str, Any] = {"num_cpus": 1, "object_store_memory": OBJECT_STORE}
    cluster = Cluster(initialize_head=True, head_node_args=machine)
    second, done = cluster.add_node(**machine), []

    def disturb() -> None:
        raylet = second.all_processes["raylet"][0].process.pid
        if worker := _wait_for_worker(moments.uniform(0, LATEST)):
            worker.kill()
            done.append(worker.pid)
        if _wait_for_worker(moments.uniform(0, LATEST), raylet, worker):
            cluster.remove_node(second, allow_graceful=False)
            done.append(raylet)

    thread = threading.Thread(target=disturb, daemon=True)
    os.environ["RAY_ADDRESS"] = cluster.address
    try:
        thread.start()
        train_six(raw, workspace, "auto")
        thread.join(LATEST)
    except UserError as error:  # the comparison tells what is missing
        print(error, file=sys.stderr)
    finally:
        del os.environ["RAY_ADDRESS"]
        cluster.shutdown()
    return len(done)


def _wait_for_worker(
    delay: float, raylet: int | None = None, but: psutil.Process | None = None
) -> psutil.Process | None:
    """Waits until there is a worker, of a machine if its raylet is given, and for so many seconds more."""
    end = time.monotonic() + LONGEST
    while time.monotonic() < end:
        for process in psutil.process_iter():
            try:
                is_one = process.cmdline()[:1] and process.cmdline()[0].startswith(f"ray::{PREFIX}")
                if is_one and process != but and (raylet is None or process.ppid() == raylet):
                    time.sleep(delay)
                    if process.is_running():
                        return process
            except psutil.Error:  # it has just ended
                continue
        time.sleep(0.2)
    return None
