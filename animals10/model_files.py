"""Files of trained networks: save and load."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import keras

from animals10.environment import without_tf32
from animals10.files import atomic_write, reading
from animals10.images import STRETCH


def save_model(model: keras.Model, path: Path, class_names: Sequence[str]) -> None:
    """Saves a model as a `.keras` file, without its optimizer.

    The class names are in the same archive, as `class_names.json`, and what `resize_of` returns, as `resize.json`:
    Keras alone loads the file as well.

    Raises:
        UserError: The file cannot be written.
    """
    with atomic_write(path) as temporary:
        keras.Model(model.input, model.output, name=model.name).save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr("class_names.json", json.dumps(list(class_names), ensure_ascii=False))
            archive.writestr("resize.json", json.dumps(resize_of(model)))


def load_model(path: Path) -> tuple[keras.Model, tuple[str, ...]]:
    """Loads a model that `save_model` wrote, and its class names. Keras's safe mode refuses code in the file.

    The model's attribute `resize` says how its images are made square, see `resize_of`. On a GPU, TF32 is switched off.

    Raises:
        UserError: The file is missing, is no such model, is damaged, or holds code, as in a `Lambda` layer.
    """
    without_tf32()
    with reading(path, "cannot be loaded", "name a .keras file that this study saved, or restore it"):
        with zipfile.ZipFile(path) as archive:
            class_names = tuple(json.loads(archive.read("class_names.json")))
            is_older = "resize.json" not in archive.namelist()
            resize = STRETCH if is_older else json.loads(archive.read("resize.json"))
        model = keras.models.load_model(path, compile=False)
        model.resize = resize
        return model, class_names


def resize_of(model: keras.Model) -> str:
    """Returns how the images that a model is given are made square, a name in `RESIZE_MODES`."""
    return getattr(model, "resize", STRETCH)
