"""Benchmark of the compute precision, float32 and bfloat16 timed in turn, and of oneDNN."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from unittest.mock import patch

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from animals10.benchmark_pipeline import in_new_process
from animals10.catalogue import find_experiment
from animals10.features import inference_function
from animals10.models import Transfer, feature_layers_of
from animals10.precision import BFLOAT16, in_precision, multiplies_in_bfloat16
from animals10.tensorflow_start import ONEDNN

CNNS = ("conv3_dense1", "conv4inv8to128_pool_dense196", "conv5invto128_dense1")
BATCH = 32


def measure_precision(backbones: Sequence[str], repeat: int = 9) -> None:
    """Prints images per second of both precisions: training steps of CNNs, frozen passes, and fine-tuning steps.

    Args:
        backbones: Names in `BACKBONES`.
        repeat: Calls of each, in turn; the median counts.
    """
    if not multiplies_in_bfloat16():
        print("\nThis machine does not multiply in bfloat16: precision is not measured.")
        return
    table = pd.DataFrame(_rates(backbones, repeat, ("float32", BFLOAT16)), ["float32", "bfloat16"]).T
    _print_rates("Precision", table)


def measure_onednn(backbones: Sequence[str], repeat: int = 9) -> None:
    """Prints images per second without and with oneDNN, in float32, for the same work as `measure_precision`.

    Args:
        backbones: Names in `BACKBONES`.
        repeat: Calls of each; the median counts.
    """
    table = pd.DataFrame()
    for title, value in {"without oneDNN": "0", "with oneDNN": "1"}.items():
        with patch.dict(os.environ, {ONEDNN: value}):  # TensorFlow reads it once per process
            table[title] = pd.DataFrame(in_new_process(_rates, backbones, repeat, ("float32",))).T[0]
    _print_rates("oneDNN", table)


def _rates(backbones: Sequence[str], repeat: int, precisions: Sequence[str]) -> dict[str, list[float]]:
    """Returns images per second in each precision, by the name of the work."""
    pixels = np.random.default_rng(5).uniform(0, 255, (BATCH, 224, 224, 3)).astype("float32")
    rows = {}
    for name in CNNS:
        keras.backend.clear_session()
        models = _in_each(find_experiment(name).model.build(10, 224), precisions)
        rows[f"train {name}"] = _in_turn([_training_step(one, pixels) for one in models], repeat)
    for name in backbones:
        keras.backend.clear_session()
        architecture = Transfer(name, unfreeze_last=20)
        models = _in_each(architecture.build(10), precisions)
        if feature_layers_of(architecture, models[0]):  # NASNetMobile has none where its last layers are trained
            passes, features, ends = zip(*(frozen_pass(architecture, one, pixels) for one in models), strict=True)
            steps = [_training_step(end, values) for end, values in zip(ends, features, strict=True)]
            rows[f"frozen pass {name}"] = _in_turn(passes, repeat)
            rows[f"fine-tune last 20 layers {name}"] = _in_turn(steps, repeat)
    return rows


def _print_rates(title: str, table: pd.DataFrame) -> None:
    """Prints two columns of rates with the ratio of the second to the first."""
    table = table.assign(ratio=table.iloc[:, 1] / table.iloc[:, 0])
    print(f"\n{title}, images per second:")
    print(table.to_string(formatters=[*["{:.0f}".format] * 2, "{:.2f}".format]))


def frozen_pass(
    architecture: Transfer, model: keras.Model, pixels: np.ndarray
) -> tuple[Callable[[], object], np.ndarray, keras.Model]:
    """Returns the pass of images through the frozen layers, its features, and the other layers as a network.

    Args:
        architecture: An architecture that has feature layers.
        model: Its network, in any precision.
        pixels: Images, (n, height, width, 3), float32, 0 to 255.

    Returns:
        A function without arguments; the features that enter the other layers, (n, …), float32; the network.
    """
    layers = feature_layers_of(architecture, model)
    assert layers, f"{architecture} has feature layers"
    forward = partial(inference_function(keras.Model(model.input, list(layers.outputs.values()))), tf.constant(pixels))
    features = tf.cast(forward()[list(layers.outputs).index(layers.start)], "float32").numpy()
    return forward, features, keras.Model(layers.outputs[layers.start], model.output)


def _in_each(model: keras.Model, precisions: Sequence[str]) -> list[keras.Model]:
    return [in_precision(model, BFLOAT16) if precision == BFLOAT16 else model for precision in precisions]


def _training_step(model: keras.Model, values: np.ndarray) -> Callable[[], object]:
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    return partial(model.train_on_batch, values, np.arange(BATCH) % 10)


def _in_turn(calls: Sequence[Callable[[], object]], repeat: int) -> list[float]:
    """Returns the images per second of each call."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(repeat + 2):
        for call, mine in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            mine += [time.perf_counter() - start] if number > 1 else []  # the first ones trace and warm up
    return [BATCH / statistics.median(mine) for mine in times]
