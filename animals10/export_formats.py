"""Formats that models are exported to: LiteRT, LiteRT in 8 bit, ONNX. To add one, give `FORMATS` an entry."""

import importlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from animals10.export_check import PredictFn
from animals10.files import UserError
from animals10.images import RESIZE_MODES, STRETCH, preprocessing_contract
from animals10.input_pipeline import batches
from animals10.model_files import resize_of
from animals10.settings import Settings
from animals10.splits import Splits

MAX_CALIBRATION_IMAGES = 200
PREPROCESSING = (
    "EXIF orientation applied, composited on white where transparent, converted to 8-bit RGB, {} to this square "
    "(the aspect ratio is {}; Pillow's {}, which averages where it shrinks), compressed as JPEG of quality {} "
    "and decoded again; values stay 0 to 255. See docs/usage.md, Export"
)


@dataclass(frozen=True)
class Source:
    """A Keras model to export.

    Attributes:
        path: Its file.
        model: The model, in float32.
        class_names: The classes in the order of its outputs.
        settings: The settings, with the model's image size.
        splits: The workspace's images; None if it has none that fit the model.
        why: The reason if it has none.
        temperature: The temperature that is part of the model, if its probabilities are calibrated.
    """

    path: Path
    model: keras.Model
    class_names: tuple[str, ...]
    settings: Settings
    splits: Splits | None
    why: str
    temperature: float | None = None

    @property
    def name(self) -> str:
        """The run's folder, or the file's name if that is not a run's."""
        return self.path.parent.name if self.path.name == "model.keras" else self.path.stem

    @property
    def folder(self) -> Path:
        """Where the exported models go."""
        suffix = "" if self.temperature is None else "-calibrated"
        return self.settings.root / "exports" / f"{self.name}{suffix}"


@dataclass(frozen=True)
class Format:
    """A format.

    Attributes:
        file: Name of the exported file.
        title: The format in words.
        needs: Modules that must be importable.
        write: Writes a model to a path.
        load: Loads an exported file as a function from pixels to probabilities, which runs on all cores.
        is_quantised: Whether probabilities may differ noticeably from the Keras model's.
    """

    file: str
    title: str
    needs: tuple[str, ...]
    write: Callable[[Source, Path], None]
    load: Callable[[Path], PredictFn]
    is_quantised: bool = False


def describe_input(model: keras.Model) -> dict[str, Any]:
    """Returns name, shape, dtype and range of a model's input, and how it is made from an image file."""
    found = {"name": model.inputs[0].name, "shape": ["n", *model.input_shape[1:]], "dtype": "float32"}
    contract = preprocessing_contract()
    resize = resize_of(model)
    ratio = "changed" if resize == STRETCH else "preserved"
    made = PREPROCESSING.format(
        RESIZE_MODES[resize], ratio, str(contract["resampling"]).upper(), contract["jpeg_quality"]
    )
    return found | {"range": [0, 255], "channels": "RGB, last", "preprocessing": made}


def calibration_images(source: Source) -> pd.DataFrame:
    """Returns the training images of the workspace on which a quantised model is calibrated.

    Raises:
        UserError: The workspace has none that fit the model.
    """
    if source.splits is None:
        raise UserError(f"FORMAT=litert8 needs training images for calibration. {source.why}")
    return draw_per_class(source.splits.train, source.settings.seed)


def draw_per_class(train: pd.DataFrame, seed: int, most: int = MAX_CALIBRATION_IMAGES) -> pd.DataFrame:
    """Draws the same number of images of each class from a training table: at most `most`, but at least one each."""
    classes = [images for _, images in train.groupby("label")]
    n = min(max(most // len(classes), 1), *map(len, classes))
    return pd.concat([images.sample(n, random_state=seed) for images in classes], ignore_index=True)


def _write_litert(source: Source, path: Path, **options: object) -> None:
    """Writes a model for LiteRT; `options` are the converter's."""
    # LiteRT's own operations alone: its runtime has no others.
    options |= {"target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}}
    source.model.export(path, format="litert", verbose=False, **options)


def _write_litert8(source: Source, path: Path) -> None:
    """Writes a model for LiteRT with weights and activations in 8 bit; input and output stay float32."""
    images = calibration_images(source)

    def representative() -> Iterator[list[np.ndarray]]:
        for pixels, _ in batches(source.settings, images, batch_size=1):
            yield [pixels.numpy()]

    _write_litert(source, path, optimizations=[tf.lite.Optimize.DEFAULT], representative_dataset=representative)


def _write_onnx(source: Source, path: Path) -> None:
    """Writes a model for ONNX, with `class_names` and `input` (both as JSON) in its metadata."""
    import onnx

    source.model.export(path, format="onnx", verbose=False)
    model = onnx.load(path)
    texts = {"class_names": source.class_names, "input": describe_input(source.model)}
    onnx.helper.set_model_props(model, {key: json.dumps(text, ensure_ascii=False) for key, text in texts.items()})
    onnx.save(model, path)


def _load_litert(path: Path) -> PredictFn:
    from ai_edge_litert.interpreter import Interpreter

    interpreters: dict[int, Any] = {}  # by batch size: changing it takes longer than predicting

    def predict(pixels: np.ndarray) -> np.ndarray:
        if len(pixels) not in interpreters:
            interpreter = Interpreter(str(path), num_threads=os.cpu_count())
            interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], pixels.shape)
            interpreter.allocate_tensors()
            interpreters[len(pixels)] = interpreter
        interpreter = interpreters[len(pixels)]
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return predict


def _load_onnx(path: Path) -> PredictFn:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else idle threads slow other models
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})[0]


_LITERT = ("ai_edge_litert.interpreter",)
FORMATS = {
    "litert": Format("model.tflite", "LiteRT, float32", _LITERT, _write_litert, _load_litert),
    "litert8": Format(
        "model-8bit.tflite", "LiteRT, 8-bit inside, float32 outside", _LITERT, _write_litert8, _load_litert, True
    ),
    "onnx": Format("model.onnx", "ONNX, float32", ("onnx", "tf2onnx", "onnxruntime"), _write_onnx, _load_onnx),
}


def chosen_formats(text: str) -> list[str]:
    """Reads names of formats, separated by commas, each once.

    Raises:
        UserError: There is no such format, or it needs a package that is not installed.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names or [text] if name not in FORMATS]:
        raise UserError(f"FORMAT is {unknown[0]!r}; allowed is {', '.join(FORMATS)}, or several with commas.")
    with captured_output():
        missing = {name: gone for name in names for gone in map(_missing_package, FORMATS[name].needs) if gone}
    for name, package in missing.items():
        raise UserError(f"FORMAT={name} needs {package}, which is not installed: run `make extras`.")
    return names


def _missing_package(module: str) -> str:
    """Returns the package that is missing to import a module; empty if it can be imported."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return (error.name or module).partition(".")[0].replace("_", "-")
    return ""


@contextmanager
def captured_output() -> Iterator[None]:
    """Holds back what libraries (also in C++) write to stdout and stderr, and shows it only if they fail."""
    with tempfile.TemporaryFile() as log, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sys.stdout.flush()
        sys.stderr.flush()
        kept = [(number, os.dup(number)) for number in (1, 2)]
        for number, _ in kept:
            os.dup2(log.fileno(), number)
        failed = True
        try:
            yield
            failed = False
        except UserError:
            failed = False  # its message says all there is to say
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)
            if failed:
                log.seek(0)
                sys.stderr.write(log.read().decode(errors="replace"))
