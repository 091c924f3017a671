"""Benchmark of training from scratch: this project, bare Keras and PyTorch, side by side."""

from dataclasses import asdict
from functools import partial

import keras
import numpy as np
import pandas as pd
from scipy.stats import gmean

from animals10.benchmark_pipeline import in_new_process, median_seconds
from animals10.benchmark_torch import BATCH, has_torch, torch_rates
from animals10.catalogue import CATALOGUE
from animals10.input_pipeline import training_batches
from animals10.models import CNN
from animals10.precision import BFLOAT16, in_precision, multiplies_in_bfloat16
from animals10.settings import Settings

NETWORKS = ("conv4invto128_dense1", "conv5invto128_dense1", "conv3_dense1")
MOST_IMAGES = 640  # of an epoch


def measure_frameworks(settings: Settings, table: pd.DataFrame) -> None:
    """Prints images per second of training: networks, batches and threads are the same.

    This project trains an epoch from files, with decoding and augmentation. Keras and PyTorch train on arrays in
    memory, without augmentation.

    Args:
        settings: A workspace with processed images.
        table: Images to train on.
    """
    precisions = ["float32"] + [BFLOAT16] * multiplies_in_bfloat16()
    table = table.head(MOST_IMAGES // BATCH * BATCH)
    rows = {
        (name, precision): _rates(settings, table, name, precision) for name in NETWORKS for precision in precisions
    }
    found = pd.DataFrame(rows).T
    columns = ["Keras"]
    if has_torch():
        found["PyTorch's best"] = found[["PyTorch", "PyTorch, channels last"]].max(axis=1)
        columns.append("PyTorch's best")
    for column in columns:
        found[f"÷ {column}"] = found["this project"] / found[column]
    ratios = [f"÷ {column}" for column in columns]
    print("\nTraining from scratch, images per second; from files with augmentation, against arrays in memory:")
    shown = found.drop(columns="PyTorch's best", errors="ignore")
    print(shown.to_string(formatters={name: ("{:.2f}" if name in ratios else "{:.0f}").format for name in shown}))
    for precision in precisions:
        means = found.xs(precision, level=1)[ratios].apply(gmean)
        print(f"geometric means, {precision}: " + ", ".join(f"{name} {mean:.2f}" for name, mean in means.items()))
    if not has_torch():
        print("PyTorch is not installed, so there is no comparison with it: pip install torch")


def _rates(settings: Settings, table: pd.DataFrame, name: str, precision: str) -> dict[str, float]:
    """Returns images per second of each framework."""
    architecture = next(experiment.model for experiment in CATALOGUE if experiment.id == name)
    assert isinstance(architecture, CNN)
    keras.backend.clear_session()
    model = architecture.build(10, 224)
    model = in_precision(model, BFLOAT16) if precision == BFLOAT16 else model
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    pixels = np.random.default_rng(5).uniform(0, 255, (BATCH, 224, 224, 3)).astype("float32")
    step = partial(model.train_on_batch, pixels, np.arange(BATCH) % 10)
    epoch = lambda: model.fit(training_batches(settings, table, range(1)), verbose=0)  # noqa: E731
    rates = {"this project": len(table) / median_seconds(epoch, 3), "Keras": BATCH / median_seconds(step, 9)}
    if has_torch():
        # In one process, the threads of two frameworks would wait for each other.
        rates |= in_new_process(torch_rates, **asdict(architecture), bfloat16=precision == BFLOAT16)
    return rates
