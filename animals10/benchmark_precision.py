"""Benchmark of the compute precision, on a CPU and on a GPU, there also of XLA; and of oneDNN."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from unittest.mock import patch

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from animals10.benchmark_pipeline import in_new_process
from animals10.catalogue import find_experiment
from animals10.compilation import scaled_optimizer
from animals10.environment import configure_device, has_gpu
from animals10.features import inference_function
from animals10.models import Transfer, feature_layers_of
from animals10.precision import BFLOAT16, FLOAT16, in_precision, multiplies_in_bfloat16
from animals10.tensorflow_start import ONEDNN

CNNS = ("conv3_dense1", "conv4inv8to128_pool_dense196", "conv5invto128_dense1")
BATCH = 32
GPU_STEPS = 50  # of a call: one alone would time Python and the wait for the GPU
Variant = tuple[str, bool]  # the Keras policy, and whether XLA compiles


def measure_precision(backbones: Sequence[str], repeat: int = 9) -> None:
    """Prints images per second of both precisions: training steps of CNNs, frozen passes, and fine-tuning steps.

    Args:
        backbones: Names in `BACKBONES`.
        repeat: Calls of each, in turn; the median counts.
    """
    if not multiplies_in_bfloat16():
        print("\nThis machine does not multiply in bfloat16: precision is not measured.")
        return
    variants = {"float32": ("float32", False), "bfloat16": (BFLOAT16, False)}
    table = pd.DataFrame(_rates(backbones, repeat, [*variants.values()]), [*variants]).T
    _print_rates("Precision", table)


def measure_gpu(backbones: Sequence[str], repeat: int = 5) -> None:
    """Prints images per second on a GPU for the same work, in float32 and mixed float16, without and with XLA.

    Args:
        backbones: Names in `BACKBONES`.
        repeat: Calls of each, in turn; the median counts.
    """
    if not has_gpu():
        print("\nThere is no GPU, so none is measured.")
        return
    policies = {"float32": "float32", "mixed float16": FLOAT16}
    variants = {name + ", XLA" * xla: (policies[name], xla) for name, xla in product(policies, (False, True))}
    table = pd.DataFrame(_rates(backbones, repeat, [*variants.values()], GPU_STEPS), [*variants]).T
    _print_rates(configure_device(), table)


def measure_onednn(backbones: Sequence[str], repeat: int = 9) -> None:
    """Prints images per second without and with oneDNN, in float32, for the same work as `measure_precision`.

    Args:
        backbones: Names in `BACKBONES`.
        repeat: Calls of each; the median counts.
    """
    table = pd.DataFrame()
    for title, value in {"without oneDNN": "0", "with oneDNN": "1"}.items():
        with patch.dict(os.environ, {ONEDNN: value}):  # TensorFlow reads it once per process
            table[title] = pd.DataFrame(in_new_process(_rates, backbones, repeat, [("float32", False)])).T[0]
    _print_rates("oneDNN", table)


def _rates(
    backbones: Sequence[str], repeat: int, variants: Sequence[Variant], steps: int = 1
) -> dict[str, list[float]]:
    """Returns images per second in each variant, by the name of the work; a call has so many steps."""
    pixels = np.random.default_rng(5).uniform(0, 255, (BATCH, 224, 224, 3)).astype("float32")
    rows = {}
    for name in CNNS:
        keras.backend.clear_session()
        models = _in_each(find_experiment(name).model.build(10, 224), variants)
        calls = [_training(one, pixels, xla, steps) for one, (_, xla) in zip(models, variants, strict=True)]
        rows[f"train {name}"] = _in_turn(calls, repeat, steps)
    for name in backbones:
        keras.backend.clear_session()
        architecture = Transfer(name, unfreeze_last=20)
        models = _in_each(architecture.build(10), variants)
        if feature_layers_of(architecture, models[0]):  # NASNetMobile has none where its last layers are trained
            passes, features, ends = zip(*(frozen_pass(architecture, one, pixels) for one in models), strict=True)
            calls = [_inference(one, xla, steps) for one, (_, xla) in zip(passes, variants, strict=True)]
            rows[f"frozen pass {name}"] = _in_turn(calls, repeat, steps)
            parts = zip(ends, features, variants, strict=True)
            calls = [_training(end, values, xla, steps) for end, values, (_, xla) in parts]
            rows[f"fine-tune last 20 layers {name}"] = _in_turn(calls, repeat, steps)
    return rows


def _print_rates(title: str, table: pd.DataFrame) -> None:
    """Prints columns of rates with the ratio of the last to the first."""
    table = table.assign(ratio=table.iloc[:, -1] / table.iloc[:, 0])
    print(f"\n{title}, images per second:")
    print(table.to_string(formatters=[*["{:.0f}".format] * (table.shape[1] - 1), "{:.2f}".format]))


def frozen_pass(
    architecture: Transfer, model: keras.Model, pixels: np.ndarray
) -> tuple[Callable[[], Sequence[tf.Tensor]], np.ndarray, keras.Model]:
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


def _in_each(model: keras.Model, variants: Sequence[Variant]) -> list[keras.Model]:
    """Returns a copy of a network for each variant, which is compiled in its own way."""
    return [in_precision(model, policy) for policy, _ in variants]


def _training(model: keras.Model, values: np.ndarray, xla: bool, steps: int) -> Callable[[], object]:
    optimizer, labels = scaled_optimizer(keras.optimizers.Adam(), model), np.arange(BATCH) % 10
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=xla)
    if steps == 1:  # `fit` would take longer to begin
        return partial(model.train_on_batch, values, labels)
    dataset = tf.data.Dataset.from_tensors((values, labels)).repeat().prefetch(2)
    return partial(model.fit, dataset, steps_per_epoch=steps, verbose=0)


def _inference(forward: Callable[[], Sequence[tf.Tensor]], xla: bool, steps: int) -> Callable[[], object]:
    once = tf.function(forward, jit_compile=True) if xla else forward
    return lambda: [once() for _ in range(steps)][-1][0].numpy()  # waits for the result: a GPU computes asynchronously


def _in_turn(calls: Sequence[Callable[[], object]], repeat: int, steps: int) -> list[float]:
    """Returns the images per second of each call of so many steps."""
    times: list[list[float]] = [[] for _ in calls]
    for number in range(repeat + 2):
        for call, mine in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            mine += [time.perf_counter() - start] if number > 1 else []  # the first ones trace and warm up
    return [steps * BATCH / statistics.median(mine) for mine in times]
