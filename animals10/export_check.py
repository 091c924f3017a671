"""Checks of exported models against the Keras model, and times of both side by side."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

PredictFn = Callable[[np.ndarray], np.ndarray]  # float32 (n, size, size, 3), 0 to 255 → float32 (n, classes), 0 to 1

MAX_DIFFERENCE = 1e-3  # of probabilities: more than another order of rounding explains, and too small to matter
# 8-bit quantisation costs convolutional networks about 0.02 of their accuracy (R. Krishnamoorthi, arXiv:1806.08342).
# More than twice that is a broken model; but with few test images, two may be lost by chance.
MAX_ACCURACY_LOSS, MAX_IMAGES_LOST = 0.05, 2


@dataclass(frozen=True)
class Reference:
    """Predictions of the Keras model that exported models must reproduce.

    Attributes:
        name: The images, in words.
        batches: Pixels, float32 (n, size, size, 3), 0 to 255, each with something beside them; can be iterated again.
        expected: The Keras model's probabilities, float32 (images, classes).
        labels: The true classes, int (images,); None if they are unknown.
    """

    name: str
    batches: Iterable
    expected: np.ndarray
    labels: np.ndarray | None


def predict_batches(predict: PredictFn, batches: Iterable) -> np.ndarray:
    """Returns the probabilities of all images, float32 (images, classes)."""
    return np.concatenate([predict(np.asarray(pixels)) for pixels, _ in batches])


def compare(predict: PredictFn, reference: Reference) -> dict[str, Any]:
    """Compares a model with the Keras model on the same images, in batches, and the first image also on its own.

    Returns:
        `images`, in words; `n`; `largest_difference` between two probabilities; `top1_agreement`, the number of images
        for which both predict the same class; `accuracy` and `keras_accuracy`, 0 to 1 (None if unknown).
    """
    expected, labels = reference.expected, reference.labels
    found = predict_batches(predict, reference.batches)
    alone = predict(np.asarray(next(iter(reference.batches))[0][:1]))
    difference = max(np.abs(found - expected).max(), np.abs(alone - expected[:1]).max())
    predicted = found.argmax(axis=1), expected.argmax(axis=1)
    accuracies = [None if labels is None else float(np.mean(classes == labels)) for classes in predicted]
    result = {"images": reference.name, "n": len(expected), "largest_difference": float(difference)}
    result |= {"top1_agreement": int(np.sum(predicted[0] == predicted[1]))}
    return result | dict(zip(("accuracy", "keras_accuracy"), accuracies, strict=True))


def reason_to_reject(check: Mapping[str, Any], is_quantised: bool = False) -> str:
    """Says why an exported model must not be kept, given the result of `compare`; empty if it may.

    A quantised model is held to the Keras model's accuracy, any other one to its probabilities.
    """
    n, difference = check["n"], check["largest_difference"]
    if not np.isfinite(difference):
        return "its probabilities are not finite numbers"
    if is_quantised:
        lost = 0 if check["accuracy"] is None else round((check["keras_accuracy"] - check["accuracy"]) * n)
        if lost <= max(MAX_ACCURACY_LOSS * n, MAX_IMAGES_LOST):
            return ""
        found = f"its accuracy is {check['accuracy']:.3f}, the Keras model's {check['keras_accuracy']:.3f}"
        return f"{found}; a loss of {MAX_ACCURACY_LOSS}, or of {MAX_IMAGES_LOST} images, is allowed"
    if difference <= MAX_DIFFERENCE and check["top1_agreement"] == n:
        return ""
    differing = f"its top-1 class differs for {n - check['top1_agreement']} of {n} images"
    return f"{differing}, and probabilities differ by up to {difference:.2g}; allowed are 0 and {MAX_DIFFERENCE:g}"


def median_milliseconds(models: Mapping[str, PredictFn], pixels: np.ndarray, rounds: int) -> dict[str, float]:
    """Times models on the same images, in turn and round after round, so that disturbances meet all of them.

    Returns:
        The median time per call of each model in milliseconds, after two rounds to warm up.
    """
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(2 + rounds):
        for name, predict in models.items():
            start = time.perf_counter()
            predict(pixels)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(values[2:])) for name, values in times.items()}


def latency_and_throughput(
    models: Mapping[str, PredictFn], pixels: np.ndarray, rounds: int = 30
) -> dict[str, dict[str, float]]:
    """Measures models side by side in this process.

    Args:
        models: By name; `model.predict` must be one of them.
        pixels: At least one image, float32 (n, size, size, 3).
        rounds: Calls at batch size 1; a third as many at batch size 32.

    Returns:
        For each model: `single_ms`, the latency at batch size 1; `batch_ms`, milliseconds per image at batch size 32;
        `images_per_second` at batch size 32; `speed`, how many times faster than `model.predict` at batch size 1.
    """
    single = median_milliseconds(models, pixels[:1], rounds)
    batch = median_milliseconds(models, np.resize(pixels, (32, *pixels.shape[1:])), -(-rounds // 3))
    return {
        name: {
            "single_ms": round(single[name], 3),
            "batch_ms": round(batch[name] / 32, 3),
            "images_per_second": round(32_000 / batch[name], 1),
            "speed": round(single["model.predict"] / single[name], 2),
        }
        for name in models
    }
