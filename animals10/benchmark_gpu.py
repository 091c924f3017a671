"""Benchmark of a GPU: float32 and mixed float16, each without and with XLA; CNNs, frozen passes and fine-tuning."""

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from animals10.benchmark_precision import BATCH, CNNS, frozen_pass
from animals10.catalogue import find_experiment
from animals10.compilation import scaled_optimizer
from animals10.environment import configure_device
from animals10.models import Transfer, feature_layers_of
from animals10.precision import FLOAT16, has_gpu, in_precision

STEPS = 50  # of a call: one alone would time Python and the wait for the GPU


def measure_gpu(backbones: Sequence[str], repeat: int = 5) -> None:
    """Prints images per second on a GPU, from arrays in memory.

    Args:
        backbones: Names in `BACKBONES`.
        repeat: Calls of each, after one that compiles; the median counts.
    """
    if not has_gpu():
        print("\nThere is no GPU: GPU is not measured.")
        return
    print(f"\n{configure_device()}, images per second; × is the gain over float32 without XLA:")
    for name in CNNS:
        _print_row(f"train {name}", find_experiment(name).model.build(10, 224), _training, repeat)
    for name in backbones:
        architecture = Transfer(name, unfreeze_last=20)
        work = {"fine-tune without cache": _training}
        if feature_layers_of(architecture, architecture.build(10)):
            work["frozen pass"] = partial(_pass, architecture)
            work["fine-tune last 20 layers"] = partial(_tuning, architecture)
        for title, prepare in work.items():
            _print_row(f"{title} {name}", architecture.build(10), prepare, repeat)


def _print_row(
    title: str, model: keras.Model, prepare: Callable[[keras.Model, bool], Callable[[], object]], repeat: int
) -> None:
    """Prints the rates of a kind of work; `prepare` gives a call of it, without or with XLA."""
    rates = {}
    for (name, policy), xla in product({"float32": "float32", "mixed float16": FLOAT16}.items(), (False, True)):
        call = prepare(model if policy == "float32" else in_precision(model, policy), xla)
        call()
        times = [time.perf_counter()]
        for _ in range(repeat):
            call()
            times.append(time.perf_counter())
        rates[name + " XLA" * xla] = STEPS * BATCH / statistics.median(np.diff(times))
    keras.backend.clear_session()
    row = pd.Series(rates)
    print(f"{title}: " + ", ".join(f"{name} {rate:.0f} (× {rate / row.iloc[0]:.2f})" for name, rate in row.items()))


def _pixels() -> np.ndarray:
    return np.random.default_rng(5).uniform(0, 255, (BATCH, 224, 224, 3)).astype("float32")


def _training(model: keras.Model, xla: bool, values: np.ndarray | None = None) -> Callable[[], object]:
    batch = (_pixels() if values is None else values), np.arange(BATCH) % 10
    dataset = tf.data.Dataset.from_tensors(batch).repeat().prefetch(2)
    optimizer = scaled_optimizer(keras.optimizers.Adam(), model)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=xla)
    return partial(model.fit, dataset, steps_per_epoch=STEPS, verbose=0)


def _tuning(architecture: Transfer, model: keras.Model, xla: bool) -> Callable[[], object]:
    _, features, end = frozen_pass(architecture, model, _pixels())
    return _training(end, xla, features)


def _pass(architecture: Transfer, model: keras.Model, xla: bool) -> Callable[[], object]:
    forward = frozen_pass(architecture, model, _pixels())[0]
    once = tf.function(forward, jit_compile=xla)

    def call() -> object:
        return [once() for _ in range(STEPS)][-1][0].numpy()  # the GPU computes one after the other

    return call
