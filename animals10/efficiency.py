"""Model size and speed: parameters on disk, multiply-adds, latency at batch size 1, throughput at batch size 32."""

import math
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from animals10.environment import configure_device
from animals10.files import UserError, display_path, write_json
from animals10.model_files import load_model
from animals10.runs import Run, run_labels, stored_runs
from animals10.settings import Settings


def multiply_adds(model: keras.Model) -> float:
    """Counts the multiply-adds of one forward pass for one image.

    Convolutions (also depthwise and separable ones) and dense layers use each value of their kernel once per position
    of their output. All else (biases, normalisation, activations, pooling) is left out, as in M. Sandler et al.,
    arXiv:1801.04381: 300 million for MobileNetV2 at 224 pixels.

    Args:
        model: A functional model; it may contain other models.

    Returns:
        The number; nan if the model has a layer with a kernel of another kind (attention, say), or one that is called
        more than once.
    """
    total = 0
    for layer, calls in _leaf_layers(model):
        kernels = [weight for weight in layer.weights if len(weight.shape) > 1]
        output = getattr(layer, "output", None)  # undefined if the layer is called more than once
        positions = output.shape[1:-1] if isinstance(output, keras.KerasTensor) else (None,)
        if kernels and (not _is_countable(layer) or None in positions):
            return math.nan
        if kernels:
            total += calls * math.prod(positions) * sum(math.prod(kernel.shape) for kernel in kernels)
    return total


def _leaf_layers(model: keras.Model, calls: int = 1) -> Iterator[tuple[keras.Layer, int]]:
    """Yields the layers of a model and of the models in it, with how often a forward pass calls the model."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _leaf_layers(layer, calls * max(len(layer._inbound_nodes), 1))
        else:
            yield layer, calls


def _is_countable(layer: keras.Layer) -> bool:
    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D, keras.layers.Dense)
    return isinstance(layer, kinds)


def measure_efficiency(model: keras.Model, path: Path, rounds: int = 30) -> dict[str, float]:
    """Measures the size and the speed of a model.

    A time is the median of several calls of one graph, after three calls to warm up. It includes the way of the images
    to the device and back. Compare only times from one machine that had nothing else to do.

    Args:
        model: Takes pixels, float32 (n, height, width, 3), 0 to 255.
        path: Its `.keras` file.
        rounds: Calls at batch size 1; a third as many at batch size 32.

    Returns:
        `model_mb`, size of the file in millions of bytes; `multiply_adds` per image in millions, see `multiply_adds`;
        in milliseconds per image `predict_ms`, the latency at batch size 1, and `batch_ms` at batch size 32.
    """
    return {
        "model_mb": round(path.stat().st_size / 1e6, 3),
        "multiply_adds": round(multiply_adds(model) / 1e6, 3),
        "predict_ms": round(_median_milliseconds(model, 1, rounds), 3),
        "batch_ms": round(_median_milliseconds(model, 32, -(-rounds // 3)) / 32, 3),
    }


def _median_milliseconds(model: keras.Model, batch_size: int, rounds: int) -> float:
    signature = tf.TensorSpec((batch_size, *model.input_shape[1:]), tf.float32)
    predict = tf.function(lambda pixels: model(pixels, training=False), autograph=False)
    predict = predict.get_concrete_function(signature)
    pixels = np.random.default_rng(5).uniform(0, 255, signature.shape).astype("float32")
    times = []
    for _ in range(3 + rounds):
        start = time.perf_counter()
        predict(tf.constant(pixels)).numpy()  # waits for the result: a GPU computes asynchronously
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times[3:]))


def measure_run(run: Run, device: str, rounds: int = 30) -> dict[str, float | str]:
    """Measures a stored run and writes its `efficiency.json`, atomically.

    Args:
        run: The run.
        device: The device in words, as `configure_device` returns it.
        rounds: See `measure_efficiency`.

    Returns:
        The values of `measure_efficiency`, and `device`, `time` (UTC), `tensorflow` and `keras` (versions).

    Raises:
        UserError: The run's model is missing or damaged, or the file cannot be written.
    """
    path = run.file("model.keras")
    model, _ = load_model(path)
    found: dict[str, float | str] = {**measure_efficiency(model, path, rounds)}
    found |= {"device": device, "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"}
    found |= {"tensorflow": tf.__version__, "keras": keras.__version__}
    write_json(found, run.file("efficiency.json"))
    return found


def measure_all(settings: Settings, rounds: int = 30) -> None:
    """Measures all stored runs of a workspace, one after the other in one process, and prints a line for each.

    A run that cannot be measured does not keep the others from being measured.

    Args:
        settings: The settings; their workspace holds the runs.
        rounds: See `measure_efficiency`.

    Raises:
        UserError: There are no runs, or one cannot be measured.
    """
    runs, device = stored_runs(settings.root), configure_device()
    if not runs:
        raise UserError(f"There are no runs in {display_path(settings.models)}: run a notebook first.")
    print(f"{'run':40} {'MB':>8} {'M mult-adds':>12} {'ms, 1':>8} {'ms, 32':>8}")
    failures = []
    for run, label in zip(runs, run_labels([_row(run) for run in runs]), strict=True):
        try:
            found = measure_run(run, device, rounds)
        except UserError as error:
            failures.append(str(error))
            print(f"{label:40} {error}", flush=True)
            continue
        values = f"{found['model_mb']:8.1f} {found['multiply_adds']:12.1f} {found['predict_ms']:8.2f}"
        print(f"{label:40} {values} {found['batch_ms']:8.2f}", flush=True)
        keras.backend.clear_session()
    print("Each is stored in its run's efficiency.json: `make report` and aux.results_table show them.")
    if failures:
        raise UserError(f"{len(failures)} of {len(runs)} runs could not be measured. {' '.join(failures)}")


def _row(run: Run) -> dict[str, Any]:
    """Returns a run's row, or its id alone if `run.json` cannot be read: its model can be measured all the same."""
    try:
        return run.row
    except UserError:
        return {"model_id": run.model_id}
