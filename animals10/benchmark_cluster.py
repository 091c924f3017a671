"""Benchmark of a cluster on this machine: the frozen pass in two processes, and what Ray adds to each experiment."""

import importlib.util
import os
import shutil
import statistics
import time
from unittest.mock import patch

from animals10.augmentation import Augmentation
from animals10.benchmark_pipeline import in_new_process
from animals10.cluster_connection import connected
from animals10.data_preparation import FeatureCache
from animals10.experiments import Experiment, Training
from animals10.models import CNN, Transfer, feature_layers_of
from animals10.preprocessing import read_overview
from animals10.settings import Settings
from animals10.tensorflow_start import THREADS
from animals10.training import train_all
from animals10.workspace import Workspace

BACKBONE = "MobileNetV2"  # the fastest: what the other process needs to start counts most
ROWS = 2_000  # images that pass the frozen layers
MOST_TIMES, MOST_SECONDS = 1.15, 5.0  # the targets


def measure_cluster(settings: Settings, repeat: int = 3) -> None:
    """Prints both: how long the pass takes in two single-core processes, and the overhead per experiment.

    Args:
        settings: A prepared workspace.
        repeat: Passes of each kind, in turn; the median counts.
    """
    if not importlib.util.find_spec("ray"):
        print("\ncluster: skipped, since Ray is not installed: `make cluster` installs it.")
        return
    times = [[_pass_seconds_with(settings, threads) for threads in (2, 1)] for _ in range(repeat)]
    one, two = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"\ncluster: frozen pass of {ROWS:,} images, {BACKBONE}: one process with two threads {one:.1f} s, ", end="")
    print(f"two with one thread each {two:.1f} s, {two / one:.2f} times as long (at most {MOST_TIMES})", flush=True)
    seconds = seconds_per_experiment(settings)
    print(f"cluster: two single-core workers add {seconds:.1f} s to each experiment (at most {MOST_SECONDS:g} s)")


def _pass_seconds_with(settings: Settings, threads: int) -> float:
    variables = dict.fromkeys(THREADS, str(threads))
    with patch.dict(os.environ, variables):
        return in_new_process(pass_seconds, settings, threads)


def pass_seconds(settings: Settings, threads: int) -> float:
    """Returns the seconds of a frozen pass of augmented images into an empty feature cache.

    Args:
        settings: A prepared workspace.
        threads: Of this process; with one, another process is started that helps, and its start counts.
    """
    table, experiment = read_overview(settings), Experiment("pass", Transfer(BACKBONE, (128,)), Training(1e-4, 1))
    context, model = Workspace(settings).context(experiment), experiment.model.build(10, settings.image_size)
    layers = feature_layers_of(experiment.model, model)
    assert layers, "backbones have feature layers"
    shutil.rmtree(settings.data / "features", ignore_errors=True)
    cache = FeatureCache(settings, experiment, model, layers, context)
    views = -(-ROWS // len(table))
    given = table.head(ROWS // views), "pass", "float16", views, Augmentation()
    if threads > 1:
        start = time.perf_counter()
        cache.features(*given)
        return time.perf_counter() - start
    with connected(settings.model_copy(update={"cluster": "local"}), num_cpus=2):
        start = time.perf_counter()
        cache.features(*given)
        return time.perf_counter() - start


def seconds_per_experiment(settings: Settings, n: int = 4) -> float:
    """Returns how much longer an experiment takes on two single-core workers than in this process.

    The time of some experiments is divided by their number: two at a time on workers, one after the other here.

    Args:
        settings: A prepared workspace.
        n: Experiments of each kind, as small as can be.
    """

    def train(name: str, cluster: str = "", cpus: int | None = None) -> float:
        model, training = CNN((8,), (4,), (8,)), Training(1e-3, epochs=1)
        experiments = [Experiment(f"{name}{number}", model, training) for number in range(n)]
        start = time.perf_counter()
        train_all(settings.model_copy(update={"cluster": cluster, "cpus_per_run": cpus}), experiments)
        return time.perf_counter() - start

    train("first")  # what happens once per process does not count
    here = train("here")
    with connected(settings.model_copy(update={"cluster": "local"}), num_cpus=2):
        return (train("there", "local", 1) - here) / n
