"""Benchmark of the input: resizing of images, and the speed and memory of the input pipeline."""

import hashlib
import io
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
import pandas as pd
import psutil
import tensorflow as tf
from PIL import Image

from animals10.augmentation import Augmentation
from animals10.catalogue import find_experiment
from animals10.files import read_table, write_table
from animals10.hamming import pairs_within
from animals10.images import processed_names
from animals10.input_pipeline import training_batches
from animals10.preprocessing import OVERVIEW, read_overview, resize_images, scan_images
from animals10.quality import MAX_HAMMING_DISTANCE, check_images, leakage, near_duplicate_groups
from animals10.settings import Settings
from animals10.splits import draw_split, resample

CNNS = ("base_meansamp_augment+", "conv3_dense1", "conv4inv8to128_pool_dense196", "conv5invto128_dense1")
EPOCH_SIZES = (2_000, 18_320)  # images per epoch for which memory is measured

Result = TypeVar("Result")


def median_seconds(function: Callable[[], object], repeat: int = 5) -> float:
    """Returns the median duration of some calls, after one that does not count."""
    function()
    times = []
    for _ in range(repeat):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def in_new_process(function: Callable[..., Result], *arguments: Any, **options: Any) -> Result:
    """Calls a function in a process of its own: with memory and threads that nothing else uses."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments, **options).result()


def draw_images(folder: Path, n: int) -> None:
    """Draws n images of ten classes, in the usual size of Animals-10 (300 × 225), with some structure."""
    rng = np.random.default_rng(5)
    for index in range(n):
        coarse = rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((300, 225), Image.Resampling.BICUBIC)
        pixels = np.asarray(image) + rng.normal(0, 6, (225, 300, 1))
        path = folder / f"class {index % 10}" / f"{index:05}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=85)


def measure_hashes(n: int = 1_000_000, n_all_pairs: int = 20_000) -> None:
    """Prints how long it takes to find near-duplicates among random and perturbed hashes."""
    hashes = random_hashes(n)
    start = time.perf_counter()
    found = len(pairs_within(hashes, MAX_HAMMING_DISTANCE)[0])
    seconds = time.perf_counter() - start
    start = time.perf_counter()
    for block in np.array_split(hashes[:n_all_pairs], n_all_pairs // 256):
        np.nonzero(np.bitwise_count(block[:, None] ^ hashes[None, :n_all_pairs]) <= MAX_HAMMING_DISTANCE)
    all_pairs = (time.perf_counter() - start) / 2 * (n / n_all_pairs) ** 2
    print(f"\nnear-duplicates: {found:,} pairs of {n:,} hashes in {seconds:.1f} s; ", end="")
    print(f"comparing all pairs would take {all_pairs / 60:.0f} minutes, {all_pairs / seconds:.0f} times as long")


def measure_tables(sizes: tuple[int, int] = (100_000, 1_000_000)) -> None:
    """Prints the seconds of what is done with tables of so many images: a step that is linear has their ratio."""
    table = pd.DataFrame({f"{n:,} images": _seconds_of_tables(n) for n in sizes})
    table["ratio"] = table.iloc[:, 1] / table.iloc[:, 0]
    print("\nTables, seconds:")
    print(table.round(1).to_string())


def _seconds_of_tables(n: int) -> dict[str, float]:
    rng, seconds = np.random.default_rng(5), dict[str, float]()

    def timed(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start = time.perf_counter()
        found = function(*arguments)
        seconds[name] = time.perf_counter() - start
        return found

    table = pd.DataFrame({"name": [f"{index:07}.jpg" for index in range(n)], "label": np.arange(n) % 100})
    table["category"] = table.label.map("class {:03}".format)
    table = table.assign(relpath=table.category + "/" + table.name, width=224, height=224)
    table["source"], table["sha256"] = table.relpath, [f"{number:064x}" for number in rng.permutation(n)]
    table = table.sort_values("relpath", ignore_index=True)
    timed("name processed images", processed_names, table)
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(root=Path(folder), raw=Path(folder))
        timed("write a table", write_table, table[list(OVERVIEW)], settings.data / "processed-overview.csv")
        overview = timed("read a table", read_overview, settings)
    checks = overview.assign(phash=[f"{value:016x}" for value in random_hashes(n)])
    checks["group"] = timed("group near-duplicates", near_duplicate_groups, checks)
    parts = timed("split", draw_split, overview, 5, checks.group)
    timed("find leakage", leakage, checks, timed("split each image on its own", draw_split, overview, 5, table.relpath))
    for balance in ("min", "mean", "max"):
        timed(f"resample to the {balance} class size", resample, parts["train"], balance, 5)
    return seconds


def random_hashes(n: int) -> np.ndarray:
    """Returns random hashes, uint64 (n,), of which a tenth differ from others in one bit."""
    rng = np.random.default_rng(5)
    hashes = rng.integers(0, 2**64, n, dtype="uint64")
    hashes[: n // 10] = hashes[-(n // 10) :] ^ (np.uint64(1) << rng.integers(0, 64, n // 10, dtype="uint64"))
    return hashes


def measure_notebook_01(settings: Settings, overview: pd.DataFrame) -> None:
    """Prints how fast notebook 01 scans, resizes and checks images, beside a simple loop and bare calls on all cores.

    The bare calls read and hash a file, resize and save an image, or shrink a grey one for its perceptual hash.

    Args:
        settings: A workspace with processed images.
        overview: What `scan_images` returned.
    """
    raw = [settings.raw / path for path in overview.relpath]
    processed = [settings.data / "processed" / path for path in read_overview(settings).relpath]
    with tempfile.TemporaryDirectory() as folder:
        workspace = settings.model_copy(update={"root": Path(folder) / "work"})

        def scan(path: Path) -> tuple[str, tuple[int, int]]:
            with Image.open(path) as image:
                return hashlib.sha256(path.read_bytes()).hexdigest(), image.size

        def resize(path: Path) -> None:
            with Image.open(path) as image:
                small = image.convert("RGB").resize((224, 224), Image.Resampling.BILINEAR)
            small.save(f"{folder}/{path.stem}.jpg", quality=90)

        def shrink(path: Path) -> None:
            with Image.open(path) as image:
                image.convert("L").resize((32, 32), Image.Resampling.LANCZOS)

        def scan_all() -> None:
            scan_images(workspace)

        def resize_all() -> None:
            shutil.rmtree(workspace.data / "processed", ignore_errors=True)
            resize_images(workspace, overview)

        def check_all() -> None:
            (settings.data / "checks.csv").unlink(missing_ok=True)
            with redirect_stdout(io.StringIO()):
                check_images(settings)

        def in_a_loop(call: Callable[[Path], object], paths: list[Path]) -> None:
            for path in paths:
                call(path)

        def on_all_cores(call: Callable[[Path], object], paths: list[Path]) -> None:
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(pool.map(call, paths))

        rows = {}
        for name, call, paths, step in (
            ("scan", scan, raw, scan_all),
            ("resize", resize, raw, resize_all),
            ("check", shrink, processed, check_all),
        ):
            calls: dict[str, Callable[[], object]] = {
                "simple loop": partial(in_a_loop, call, paths),
                "bare calls on all cores": partial(on_all_cores, call, paths),
                "notebook 01": step,
            }
            rows[name] = {title: len(paths) / median_seconds(one, 3) for title, one in calls.items()}
    table = pd.DataFrame(rows).T
    for title in ("simple loop", "bare calls on all cores"):
        table[f"÷ {title}"] = table["notebook 01"] / table[title]
    print("\nNotebook 01, images per second:")
    print(table.round(2).to_string(float_format=lambda value: f"{value:,.0f}" if value >= 20 else f"{value:.2f}"))


def measure_cnns(settings: Settings, table: pd.DataFrame) -> None:
    """Prints where the time of notebook 02 goes: milliseconds per image of each step, and of training as a whole.

    Decoding, augmentation, the forward pass and a training step are timed alone. `backward` is the training step less
    the forward pass. `trained` is an epoch of the whole training, from files on disk.
    """

    def epoch(augmentation: Augmentation | None) -> list:
        return list(training_batches(settings, table, range(1), augmentation=augmentation))

    milliseconds = 1000 / len(table)
    decode, read = (median_seconds(partial(epoch, one), 3) * milliseconds for one in (None, Augmentation()))
    pixels, labels = np.random.default_rng(5).uniform(0, 255, (32, 224, 224, 3)).astype("float32"), np.arange(32) % 10
    rows = {}
    for name in CNNS:
        keras.backend.clear_session()
        model = find_experiment(name).model.build(10, 224)
        model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
        forward = median_seconds(partial(model.predict_on_batch, pixels)) / 32 * 1000
        step = median_seconds(partial(model.train_on_batch, pixels, labels)) / 32 * 1000

        def train(model: keras.Model = model) -> None:
            model.fit(training_batches(settings, table, range(1)), verbose=0)

        row = {"decode": decode, "augment": read - decode, "forward": forward, "backward": step - forward}
        row |= {"sum": read + step, "trained": median_seconds(train, 3) * milliseconds}
        rows[name] = row | {"images per second": 1000 / row["trained"], "trained ÷ step": row["trained"] / step}
    print("\nNotebook 02, milliseconds per image:")
    print(pd.DataFrame(rows).T.round(2).to_string())


def measure_memory(settings: Settings) -> None:
    """Prints the memory of one epoch of the input pipeline, and of one that shuffles decoded images."""
    for n in EPOCH_SIZES:
        decoded, ours = (in_new_process(peak_memory, settings, n, shuffles) for shuffles in (True, False))
        print(f"\nMemory of the input pipeline, {n:,} images: decoded and shuffled {decoded:,.0f} MB, ", end="")
        print(f"ours {ours:,.0f} MB, ratio {decoded / ours:.1f}")


def peak_memory(settings: Settings, n: int, shuffles_decoded: bool) -> float:
    """Returns the MB by which this process grows at most during an epoch of n images, repeated from the training set.

    `shuffles_decoded` measures a pipeline that shuffles decoded images, as the original study did, instead of ours.
    """
    table = read_table(settings.data / "train.csv")
    table = pd.concat([table] * -(-n // len(table))).head(n).reset_index(drop=True)
    process = psutil.Process()
    before = process.memory_info().rss
    if shuffles_decoded:

        def decode(path: tf.Tensor) -> tf.Tensor:
            return tf.cast(tf.io.decode_jpeg(tf.io.read_file(path), channels=3), tf.float32)

        paths = [str(settings.data / "processed" / path) for path in table.relpath]
        dataset = tf.data.Dataset.from_tensor_slices(paths).map(decode).shuffle(n).batch(32).prefetch(2)
    else:
        dataset = training_batches(settings, table, range(1))
    peak = before
    for index, _ in enumerate(dataset):
        if index % 10 == 0:
            peak = max(peak, process.memory_info().rss)
    return (peak - before) / 1e6
