"""Benchmark of growth: time and memory of the steps of notebook 01 and of cached training, for more and more images."""

import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import psutil

from animals10.benchmark_pipeline import draw_images, in_new_process
from animals10.experiments import Experiment, Training
from animals10.models import Transfer
from animals10.preprocessing import resize_images, scan_images
from animals10.quality import check_images
from animals10.settings import Settings
from animals10.splits import load_splits
from animals10.training import train

SIZES = (1_000, 4_000, 16_000)  # images
HEAD = Experiment("scale", Transfer("MobileNetV2", (128,)), Training(1e-4, epochs=5, patience=5))
SECONDS_BETWEEN_SAMPLES = 0.02  # of the memory

Result = TypeVar("Result")


def measure_scale(sizes: Sequence[int] = SIZES) -> None:
    """Prints seconds and peak memory of each step by number of images, and by which exponent they grow.

    The exponent is that between the two largest sizes: 1 is linear. Each size has a process of its own.
    """
    rows = {}
    for n in sizes:
        rows[n] = in_new_process(measure_steps, n)
        print(f"{n:,} images measured", flush=True)
    table = pd.DataFrame(rows).T.stack().apply(pd.Series).unstack(0)
    for name in ("seconds", "MB"):
        values = table[name]
        last, before = sizes[-1], sizes[-2]
        exponent = np.log(values[last] / values[before]) / np.log(last / before)
        shown = values.round(1 if name == "seconds" else 0).assign(exponent=exponent.round(2)).loc[[*rows[last]]]
        print(f"\n{name} by number of images:\n{shown.to_string(na_rep='')}")


def measure_steps(n: int) -> dict[str, dict[str, float]]:
    """Returns seconds and peak memory in MB of each step on n synthetic images, in the order of the steps."""
    found: dict[str, dict[str, float]] = {}

    def measured(name: str, step: Callable[[], Result]) -> Result:
        with Memory() as memory:
            start = time.perf_counter()
            result = step()
            found[name] = {"seconds": time.perf_counter() - start}
        found[name]["MB"] = memory.megabytes
        return result

    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        draw_images(raw, n)
        settings = Settings(root=Path(folder) / "work", raw=raw, weights="random", views=1)
        overview = measured("scan", lambda: scan_images(settings))
        measured("resize", lambda: resize_images(settings, overview))
        measured("check, near-duplicates", lambda: check_images(settings))
        measured("split", lambda: load_splits(settings))
        run = measured("cached training", lambda: train(settings, HEAD))
        seconds = run.record["seconds"]
        for step, name in {"features": "  of it the frozen pass", "fit": "  of it 5 epochs of a head"}.items():
            found[name] = {"seconds": seconds[step], "MB": np.nan}
    return found


class Memory:
    """Measures the largest resident memory of this process while a block runs, in `megabytes`."""

    def __enter__(self) -> "Memory":
        """Starts to sample."""
        self.megabytes, self.ended, process = 0.0, threading.Event(), psutil.Process()

        def sample() -> None:
            while not self.ended.wait(SECONDS_BETWEEN_SAMPLES):
                self.megabytes = max(self.megabytes, process.memory_info().rss / 1e6)

        self.thread = threading.Thread(target=sample)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Ends sampling."""
        self.ended.set()
        self.thread.join()
