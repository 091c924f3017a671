"""Checks of a network of anyone's own before it is trained: what would fail hours later, or silently, fails at once."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np

from animals10.files import UserError

TOLERANCE = 1e-3  # of the sum of probabilities, in float32


def check_model(model: Any, n_classes: int, image_size: int) -> keras.Model:
    """Checks that a network takes pixels and returns probabilities.

    Args:
        model: What an architecture's `build` returned.
        n_classes: Number of classes.
        image_size: Edge of the images in pixels.

    Returns:
        The network; a `Sequential` model as the equal functional model, which has a single input and a single output.

    Raises:
        UserError: It is no model built from `keras.Input`, does not take one input of shape (size, size, 3), does not
            return one output of shape (classes,), or its rows do not sum to 1.
    """
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not isinstance(model, keras.Model) or not inputs or not outputs:
        raise UserError(f"build returned {type(model).__name__}; it must return a keras.Model built from keras.Input.")
    subject = f"The network {model.name!r}"
    shapes = [tensor.shape for tensor in inputs], [tensor.shape for tensor in outputs]
    if shapes[0] != [(None, image_size, image_size, 3)]:
        raise UserError(
            f"{subject} takes {_words(shapes[0])}; it must take pixels of shape ({image_size}, {image_size}, 3)."
        )
    if shapes[1] != [(None, n_classes)]:
        raise UserError(f"{subject} returns {_words(shapes[1])}; it must return {n_classes} probabilities.")
    # Noise that leaves the global random state as it is.
    pixels = np.random.default_rng(5).uniform(0, 255, (2, image_size, image_size, 3)).astype("float32")
    rows = keras.ops.convert_to_numpy(model(pixels, training=False))
    if not np.allclose(rows.sum(axis=1), 1, atol=TOLERANCE) or rows.min() < 0:
        raise UserError(
            f"{subject} returns rows such as {', '.join(f'{value:.3g}' for value in rows[0][:4])} …, which are no "
            "probabilities: end it with a softmax activation."
        )
    if isinstance(model, keras.Sequential) or model.input is not inputs[0] or model.output is not outputs[0]:
        return keras.Model(inputs[0], outputs[0], name=model.name)
    return model


def _words(shapes: list[tuple]) -> str:
    return " and ".join(str(shape[1:]) for shape in shapes)


_LOAD = """
import sys
import keras
try:
    keras.models.load_model(sys.argv[1], compile=False)
except Exception as error:
    sys.exit(f"REASON {error or type(error).__name__}")
"""


def check_loads_in_fresh_process(model: keras.Model) -> None:
    """Checks that Keras alone can load the saved network, in a process that knows nothing of the user's classes.

    Keras imports no class that is not its own or KerasHub's, and runs no code from a file.

    Raises:
        UserError: The network cannot be saved or loaded.
    """
    subject = f"The network {model.name!r}"
    advice = "Build it from layers and operations of Keras: classes and functions of your own are not in its file."
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        try:
            model.save(path)
        except Exception as error:  # a layer's own get_config may raise anything
            raise UserError(f"{subject} cannot be saved ({_first_sentence(str(error))}). {advice}") from None
        environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [sys.executable, "-c", _LOAD, str(path)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode < 0:
        killed = (
            f"the process that loaded it was killed (signal {-done.returncode}), most likely because the memory ran out"
        )
        raise UserError(f"{subject} cannot be checked: {killed}. Close other programs, then run this again.")
    if done.returncode:
        reason = _first_sentence(done.stderr.rpartition("REASON ")[2])
        raise UserError(f"{subject} cannot be loaded in a fresh process ({reason}). {advice}")


def _first_sentence(message: str) -> str:
    """Returns the first sentence of an error of Keras, at most 200 characters; of the inner one if it wraps another."""
    inner = " ".join(message.rpartition("Exception encountered: ")[2].split())
    return inner.split(". ")[0].rstrip(".")[:200]
