"""Export of a stored model to LiteRT, LiteRT in 8 bit or ONNX, checked against Keras and timed beside it.

An exported model takes the same input as the Keras model (RGB pixels) and returns the same output (probabilities),
without Keras or TensorFlow. It is kept only if its predictions for real images agree with the Keras model's. A JSON
file beside it says how to use it.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from animals10.calibration import temperature_of, with_temperature
from animals10.environment import configure_device
from animals10.export_check import (
    PredictFn,
    Reference,
    compare,
    latency_and_throughput,
    predict_batches,
    reason_to_reject,
)
from animals10.export_formats import (
    FORMATS,
    Source,
    calibration_images,
    captured_output,
    chosen_formats,
    describe_input,
)
from animals10.files import (
    UserError,
    atomic_write,
    display_path,
    file_sha256,
    read_json,
    remove_stale_temporary_files,
    write_json,
)
from animals10.images import read_square
from animals10.input_pipeline import batches, damaged_images_named
from animals10.model_files import load_model, resize_of
from animals10.precision import in_precision
from animals10.preprocessing import resize_mode
from animals10.runs import Run, find_model
from animals10.sample import compose_sample
from animals10.settings import Settings
from animals10.splits import load_splits

MAX_TEST_IMAGES = 200


def export_model(
    settings: Settings,
    model: str,
    formats: str = "litert",
    most: int = MAX_TEST_IMAGES,
    rounds: int = 30,
    calibrated: bool = False,
) -> int:
    """Exports a model to all formats that are named, checks and times them, and prints the results.

    Args:
        settings: The settings; their workspace holds the models, and gets the folder `exports/<run>/`, or
            `exports/<run>-calibrated/`.
        model: As for `find_model`.
        formats: Names of `FORMATS`, separated by commas.
        most: The maximum number of test images to check on.
        rounds: Calls to time at batch size 1; a third as many at batch size 32.
        calibrated: Whether exported models give calibrated probabilities, see `calibration`.

    Returns:
        The number of exports that did not pass their check and are not kept.

    Raises:
        UserError: There is no such model or format, or something that it needs is missing.
    """
    names = chosen_formats(formats)
    device = configure_device()
    source = load_source(settings, model, calibrated)
    if any(FORMATS[name].is_quantised for name in names):
        calibration_images(source)  # before anything is written
    remove_stale_temporary_files(source.folder)
    reference, failed = make_reference(source, most), set()
    for name in names:
        try:
            about = write_export(source, name, reference)
            print(f"{name}: {about['format']}, in {display_path(source.folder / about['file'])}", flush=True)
        except UserError as error:
            print(error, flush=True)
            failed.add(name)
    if abouts := {name: about for name, about in stored_exports(source).items() if name not in failed}:
        times = measure_side_by_side(source, list(abouts), reference, rounds)
        conditions = {"device": device, "threads": os.cpu_count(), "rounds": rounds, "models": times}
        for name, about in abouts.items():
            _write_about(source.folder / FORMATS[name].file, about | {"times": conditions})
        kind = (
            "" if source.temperature is None else f"Probabilities are calibrated (temperature {source.temperature}). "
        )
        print(f"\n{kind}On {reference.name}; timed side by side on {device}:\n")
        print(_table(source, abouts, times, reference))
    return len(failed)


# ── The model and the images ──────────────────────────────────────────────────────────────────────────────────────────


def load_source(settings: Settings, name: str, calibrated: bool = False) -> Source:
    """Finds and loads a model, with its temperature if asked to, and the images of the workspace if they fit it.

    Raises:
        UserError: There is no such model, it cannot be loaded or calibrated, or its input is not of this study's kind.
    """
    path = find_model(settings.root, name)
    temperature = temperature_of(settings, path) if calibrated else None
    model, class_names = load_model(path)
    shape = model.input_shape
    if len(model.inputs) != 1 or len(shape) != 4 or shape[1:] != (shape[1], shape[1], 3) or not shape[1]:
        raise UserError(f"{display_path(path)} takes {shape}: pixels (None, size, size, 3) were expected.")
    settings = settings.model_copy(update={"image_size": shape[1], "resize": resize_of(model)})
    splits, why = None, ""
    try:
        splits, _ = load_splits(settings), resize_mode(settings)
    except UserError as error:
        why = str(error)
    if splits and splits.class_names != class_names:
        splits, why = None, f"The classes in {display_path(settings.data)} are not the model's."
    model = as_float32(model)
    model = model if temperature is None else with_temperature(model, temperature)
    return Source(path, model, class_names, settings, splits, why, temperature)


def as_float32(model: keras.Model) -> keras.Model:
    """Returns a model that computes in float32; prints a line if a layer has another precision."""
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model
    print("The model has layers in 16-bit precision: it is exported, checked and timed in float32.")
    return in_precision(model, "float32")


def make_reference(source: Source, most: int = MAX_TEST_IMAGES) -> Reference:
    """Predicts test images of the workspace with the Keras model, or the shipped sample where there are none."""
    if source.splits:
        test, seed = source.splits.test, source.settings.seed
        table = test if len(test) <= most else test.sample(most, random_state=seed)
        of = f" of {len(test)}" if len(table) < len(test) else ""
        name = f"{len(table)}{of} test images in {display_path(source.settings.data)}{_doubt(source)}"
        found, labels = batches(source.settings, table), table.label.to_numpy()
    else:
        print(f"{source.why} So the check uses drawings of the shipped sample, without an accuracy.")
        drawings = np.stack(list(_drawings(source.model)))
        found, labels = [(drawings[start : start + 32], None) for start in range(0, len(drawings), 32)], None
        name = f"{len(drawings)} drawings of the shipped sample"
    with damaged_images_named(source.settings, *([table] if source.splits else [])):
        expected = predict_batches(lambda pixels: source.model(pixels, training=False).numpy(), found)
    return Reference(name, found, expected, labels)


def _doubt(source: Source) -> str:
    """Says so if the model may have been trained on some of the test images."""
    try:
        evaluated_on = Run(source.name, source.path.parent).row.get("data_sha256")
    except UserError:  # it is the file of a model alone
        evaluated_on = None
    unknown = " (it is unknown whether the model was trained on some of them)"
    return "" if source.splits and evaluated_on == source.splits.sha256 else unknown


def _drawings(model: keras.Model) -> Iterator[np.ndarray]:
    for path in sorted(compose_sample().glob("*/*"))[::3]:
        try:
            yield np.asarray(read_square(path, model.input_shape[1], resize_of(model)), "float32")
        except (OSError, ValueError, SyntaxError):  # some are damaged on purpose
            continue


# ── Exports ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_export(source: Source, format_name: str, reference: Reference) -> dict[str, Any]:
    """Writes a model in a format, with a JSON file beside it, if it passes its check.

    Returns:
        The content of the JSON file.

    Raises:
        UserError: It does not pass and is not kept, a file cannot be written, or there is one that is no export.
    """
    form = FORMATS[format_name]
    target = source.folder / form.file
    if target.exists() and not _about_path(target).exists():
        raise UserError(f"{display_path(target)} was not written by make export: move it away.")
    with atomic_write(target) as temporary:
        with captured_output():
            form.write(source, temporary)
            check = compare(form.load(temporary), reference)
        if reason := reason_to_reject(check, form.is_quantised):
            raise UserError(f"{format_name} is not kept: {reason}. Checked on {reference.name}.")
        about = _describe(source, format_name, temporary) | {"check": check}
        _write_about(target, about)  # first: a model without it would count as someone else's
    return about


def _describe(source: Source, format_name: str, path: Path) -> dict[str, Any]:
    """Returns all that a person needs who has only the exported file: how to use it, and what it was made from."""
    form = FORMATS[format_name]
    about = {"file": form.file, "format": form.title, "bytes": path.stat().st_size, "sha256": file_sha256(path)}
    about |= {"class_names": source.class_names, "input": describe_input(source.model)}
    output = {"shape": ["n", len(source.class_names)], "dtype": "float32", "range": [0, 1]}
    meaning = "probabilities, in the order of class_names"
    if source.temperature is not None:
        meaning = f"calibrated {meaning}: the model divides the logits by the temperature"
        about["temperature"] = source.temperature
    about["output"] = output | {"meaning": meaning}
    if form.is_quantised:
        about["calibration"] = f"{len(calibration_images(source))} training images, the same number of each class"
    about["source"] = {"run": source.name, "file": source.path.name, "sha256": file_sha256(source.path)}
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
    return about | {"made_with": versions, "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"}


def _write_about(target: Path, about: Mapping[str, Any]) -> None:
    """Writes the JSON file beside an exported model."""
    write_json(about, _about_path(target))


def _about_path(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def stored_exports(source: Source) -> dict[str, dict[str, Any]]:
    """Returns the contents of the JSON files in the folder, by format, of exports that were made from this model."""
    found, digest = {}, file_sha256(source.path)
    for name, form in FORMATS.items():
        file = source.folder / form.file
        try:
            about = read_json(_about_path(file))
            is_same = about["source"]["sha256"] == digest and about.get("temperature") == source.temperature
            if is_same and about["sha256"] == file_sha256(file):
                found[name] = about
        except (UserError, OSError, KeyError, TypeError):
            continue
    return found


def measure_side_by_side(
    source: Source, names: Sequence[str], reference: Reference, rounds: int = 30
) -> dict[str, dict[str, float]]:
    """Times the Keras model, called in two ways, and exported models, side by side in this process on all cores.

    Args:
        source: The model.
        names: Formats whose files lie in its folder.
        reference: Its images are those that are predicted.
        rounds: Calls at batch size 1; a third as many at batch size 32.

    Returns:
        For `model.predict`, `tf.function` and each format the values of `latency_and_throughput`.
    """
    graph = tf.function(lambda pixels: source.model(pixels, training=False), autograph=False)
    models: dict[str, PredictFn] = {"model.predict": lambda pixels: source.model.predict(pixels, verbose=0)}
    models["tf.function"] = lambda pixels: graph(tf.constant(pixels)).numpy()
    with captured_output():
        models |= {name: FORMATS[name].load(source.folder / FORMATS[name].file) for name in names}
        return latency_and_throughput(models, np.asarray(next(iter(reference.batches))[0]), rounds)


def _table(
    source: Source,
    abouts: Mapping[str, Mapping[str, Any]],
    times: Mapping[str, Mapping[str, float]],
    reference: Reference,
) -> str:
    """Returns sizes, times and checks of the Keras model and of exported models as one table."""
    correct = reference.labels is not None and np.mean(reference.expected.argmax(axis=1) == reference.labels)
    keras_accuracy = "–" if reference.labels is None else f"{correct:.3f}"
    rows = []
    for name, found in times.items():
        about = abouts.get(name)
        size = about["bytes"] if about else source.path.stat().st_size
        checked, accuracy = ["–", "–"], keras_accuracy
        if about:
            check = about["check"]
            checked = [f"{check['largest_difference']:.1e}", f"{check['top1_agreement']} of {check['n']}"]
            accuracy = "–" if check["accuracy"] is None else f"{check['accuracy']:.3f}"
        values = [f"{size / 1e6:.1f}", f"{found['single_ms']:.2f}", f"{found['batch_ms']:.2f}"]
        values += [f"{found['images_per_second']:.0f}", f"{found['speed']:.1f} ×"]
        rows.append([name, *values, *checked, accuracy])
    columns = ["", "MB", "ms, 1", "ms each, 32", "a second, 32", "speed, 1", "difference", "same top-1", "accuracy"]
    return pd.DataFrame(rows, columns=columns).to_string(index=False)
