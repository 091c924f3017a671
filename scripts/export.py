"""Exports a stored model to LiteRT, to LiteRT in 8 bit, or to ONNX; checks it against Keras, and times both.

An exported model takes what the Keras model takes (plain RGB pixels) and gives what that gives (probabilities), without
Keras or TensorFlow. It is kept only if it answers as the Keras model does on real pictures. Beside it lies a json file
that says how to use it. Exit status 1 if a model does not hold.
"""

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

import auxiliary as aux
import pictures
import storage

MOST = 200  # pictures to check on, and photographs to calibrate on: enough, and quick
DIFFERENCE = 1e-3  # of probabilities: more than rounding in another order explains, and less than anyone would notice
# Eight bits cost convolutional networks about 0.02 of their accuracy (R. Krishnamoorthi, arXiv:1806.08342). More than
# twice that is a broken model; but of few pictures, two may be lost by chance.
FALL, FALL_PICTURES = 0.05, 2
MADE = (
    "turned upright by its EXIF orientation, put on white where it is transparent, converted to 8-bit RGB, resized to "
    "this square without keeping its shape (Pillow's BILINEAR, which averages where it shrinks); values stay 0 to 255"
)

Ask = Callable[[np.ndarray], np.ndarray]  # float32 (n, size, size, 3), 0 to 255 → float32 (n, classes), 0 to 1


@dataclass(frozen=True)
class Reference:
    """What exported models have to repeat.

    Attributes:
        name: The pictures, in words.
        batches: Pixels, float32 (n, size, size, 3), 0 to 255, and something beside them; can be gone through again.
        expected: The Keras model's probabilities, float32 (pictures, classes).
        labels: The true classes, int (pictures,); None where they are not the model's classes.
    """

    name: str
    batches: Iterable
    expected: np.ndarray
    labels: np.ndarray | None


@dataclass(frozen=True)
class Source:
    """A Keras model to export: its file, itself (in float32), its class names, and the workspace's photographs.

    `splits` is None where the workspace has no photographs that fit the model; `why` says so in words.
    """

    path: Path
    model: keras.Model
    class_names: tuple[str, ...]
    settings: aux.Settings
    splits: aux.Splits | None
    why: str

    @property
    def name(self) -> str:
        """The run's folder, or the file's name where that is not a run's."""
        return self.path.parent.name if self.path.name == "model.keras" else self.path.stem

    @property
    def folder(self) -> Path:
        """Where the exported models go."""
        return self.settings.root / "exports" / self.name


# ── Formats ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_litert(source: Source, path: Path, **options: object) -> None:
    """Writes a model for LiteRT, as Keras exports it; `options` are the converter's."""
    # Nothing but LiteRT's own operations: its runtime has no others.
    options |= {"target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}}
    source.model.export(path, format="litert", verbose=False, **options)


def write_litert8(source: Source, path: Path) -> None:
    """Writes a model for LiteRT whose weights and activations have 8 bits; input and output stay float32."""
    photographs = calibration(source.splits.train, source.settings.seed)

    def representative() -> Iterator[list[np.ndarray]]:
        for pixels, _ in aux.batches(source.settings, photographs, batchsize=1):
            yield [pixels.numpy()]

    write_litert(source, path, optimizations=[tf.lite.Optimize.DEFAULT], representative_dataset=representative)


def write_onnx(source: Source, path: Path) -> None:
    """Writes a model for ONNX, as Keras exports it, with `class_names` and `input` (both json) in its metadata."""
    import onnx

    source.model.export(path, format="onnx", verbose=False)
    model = onnx.load(path)
    texts = {"class_names": source.class_names, "input": describe_input(source.model)}
    onnx.helper.set_model_props(model, {key: json.dumps(text, ensure_ascii=False) for key, text in texts.items()})
    onnx.save(model, path)


def load_litert(path: Path) -> Ask:
    """Loads a LiteRT model, to be asked on all cores."""
    from ai_edge_litert.interpreter import Interpreter

    interpreters = {}  # by number of pictures: to change it takes longer than to ask

    def ask(pixels: np.ndarray) -> np.ndarray:
        if len(pixels) not in interpreters:
            interpreter = Interpreter(str(path), num_threads=os.cpu_count())
            interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], pixels.shape)
            interpreter.allocate_tensors()
            interpreters[len(pixels)] = interpreter
        interpreter = interpreters[len(pixels)]
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], pixels)
        interpreter.invoke()
        return interpreter.get_tensor(interpreter.get_output_details()[0]["index"])

    return ask


def load_onnx(path: Path) -> Ask:
    """Loads an ONNX model, to be asked on all cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # else it takes cores from who is next
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: session.run(None, {name: pixels})[0]


@dataclass(frozen=True)
class Format:
    """A format: its file's name, what it is in words, the packages it needs, how it is written and loaded."""

    file: str
    title: str
    needs: tuple[str, ...]
    write: Callable[[Source, Path], None]
    load: Callable[[Path], Ask]


LITERT = ("ai_edge_litert.interpreter",)
FORMATS = {
    "litert": Format("model.tflite", "LiteRT, float32", LITERT, write_litert, load_litert),
    "litert8": Format("model-8bit.tflite", "LiteRT, 8-bit inside, float32 outside", LITERT, write_litert8, load_litert),
    "onnx": Format("model.onnx", "ONNX, float32", ("onnx", "tf2onnx", "onnxruntime"), write_onnx, load_onnx),
}


def chosen_formats(text: str) -> list[str]:
    """Reads names of formats, with commas, each once.

    Raises:
        StudyError: There is no such format, or it needs a package that is not installed.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if unknown := [name for name in names or [text] if name not in FORMATS]:
        raise aux.StudyError(f"FORMAT is {unknown[0]!r}; allowed is {', '.join(FORMATS)}, or several with commas.")
    with quietly():
        missing = {name: gone for name in names for gone in map(missing_package, FORMATS[name].needs) if gone}
    for name, package in missing.items():
        raise aux.StudyError(f"FORMAT={name} needs {package}, which is not installed: run `make extras`.")
    return names


def missing_package(module: str) -> str:
    """Returns the package that is missing to import a module; nothing if it can be imported."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return (error.name or module).partition(".")[0].replace("_", "-")
    return ""


def calibration(train: pd.DataFrame, seed: int, most: int = MOST) -> pd.DataFrame:
    """Draws photographs of a training table, as many of each class, at most `most` (but one of each class at least)."""
    classes = [photographs for _, photographs in train.groupby("label")]
    n = min(max(most // len(classes), 1), *map(len, classes))
    return pd.concat([photographs.sample(n, random_state=seed) for photographs in classes], ignore_index=True)


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps back what libraries write to stdout and stderr, those in C++ among them; shows it if they fail."""
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
        except aux.StudyError:
            failed = False  # it says all there is to say
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


# ── Source and pictures ───────────────────────────────────────────────────────────────────────────────────────────────


def load_source(settings: aux.Settings, name: str) -> Source:
    """Finds and loads a model and the photographs of the workspace, where they fit it.

    Raises:
        StudyError: There is no such model, or it cannot be loaded, or it is not one of this study's kind.
    """
    path = storage.find_model(settings.root, name)
    try:
        model, class_names = aux.load_model(path)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise aux.StudyError(f"{aux.short(path)} cannot be loaded: {aux.one_line(error)}") from None
    shape = model.input_shape
    if len(model.inputs) != 1 or len(shape) != 4 or shape[1:] != (shape[1], shape[1], 3) or not shape[1]:
        raise aux.StudyError(f"{aux.short(path)} takes {shape}: pixels (None, size, size, 3) were expected.")
    settings = settings.model_copy(update={"image_size": shape[1]})
    splits, why = None, ""
    try:
        splits = aux.load_splits(settings)
    except aux.StudyError as error:
        why = str(error)
    if splits and splits.class_names != class_names:
        splits, why = None, f"The classes in {aux.short(settings.data)} are not the model's."
    return Source(path, as_float32(model), class_names, settings, splits, why)


def as_float32(model: keras.Model) -> keras.Model:
    """Returns a model that computes in float32; said aloud where it was trained in mixed float16, on a GPU."""
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model
    print("The model was trained in mixed float16: it is exported, checked and timed in float32.")

    def clone(layer: keras.Layer) -> keras.Layer:
        return type(layer).from_config(layer.get_config() | {"dtype": "float32"})

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def make_reference(source: Source, most: int = MOST) -> Reference:
    """Asks the Keras model about test pictures of the workspace, or about the shipped sample where there are none."""
    if source.splits:
        test, seed = source.splits.test, source.settings.seed
        table = test if len(test) <= most else test.sample(most, random_state=seed)
        of = f" of {len(test)}" if len(table) < len(test) else ""
        name = f"{len(table)}{of} test pictures in {aux.short(source.settings.data)}{_doubt(source)}"
        found, labels = aux.batches(source.settings, table), table.label.to_numpy()
    else:
        print(f"{source.why} So models are checked on drawings of the shipped sample, without an accuracy.")
        drawings = np.stack(list(_drawings(source.model.input_shape[1])))
        found, labels = [(drawings[start : start + 32], None) for start in range(0, len(drawings), 32)], None
        name = f"{len(drawings)} drawings of the shipped sample"
    expected = answers(lambda pixels: source.model(pixels, training=False).numpy(), found)
    return Reference(name, found, expected, labels)


def _doubt(source: Source) -> str:
    file = source.path.with_name("run.json")
    judged_on = json.loads(file.read_text(encoding="utf-8"))["row"]["data_sha256"] if file.exists() else None
    unknown = " (whether the model was trained on some of them is not known)"
    return "" if judged_on == source.splits.sha256 else unknown


def _drawings(size: int) -> Iterator[np.ndarray]:
    for path in sorted(aux.SAMPLE.glob("*/*"))[::3]:
        try:
            with pictures.open_photograph(path) as photograph:
                yield np.asarray(pictures.square(photograph, size), "float32")
        except (OSError, ValueError, SyntaxError):  # some are damaged on purpose
            continue


def answers(ask: Ask, batches: Iterable) -> np.ndarray:
    """Returns the probabilities of all pictures, float32 (pictures, classes)."""
    return np.concatenate([ask(np.asarray(pixels)) for pixels, _ in batches])


# ── Checks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def compare(ask: Ask, reference: Reference) -> dict:
    """Compares a model with the Keras model on the same pictures, asked in batches, and the first one alone as well.

    Returns:
        `pictures`, in words; `n`; `largest_difference` of two probabilities; `same_choice`, the number of pictures for
        which both put the same class first; `accuracy` and `keras_accuracy`, 0 to 1 (None where it is not known).
    """
    expected, labels = reference.expected, reference.labels
    found = answers(ask, reference.batches)
    alone = ask(np.asarray(next(iter(reference.batches))[0][:1]))
    difference = max(np.abs(found - expected).max(), np.abs(alone - expected[:1]).max())
    choices = found.argmax(axis=1), expected.argmax(axis=1)
    accuracies = [None if labels is None else float(np.mean(choice == labels)) for choice in choices]
    result = {"pictures": reference.name, "n": len(expected), "largest_difference": float(difference)}
    result |= {"same_choice": int(np.sum(choices[0] == choices[1]))}
    return result | dict(zip(("accuracy", "keras_accuracy"), accuracies))


def fault(format_name: str, check: Mapping) -> str:
    """Says why an exported model must not be kept, by what `compare` found; nothing if it may."""
    n, difference = check["n"], check["largest_difference"]
    if not np.isfinite(difference):
        return "its probabilities are no numbers"
    if format_name == "litert8":
        lost = 0 if check["accuracy"] is None else round((check["keras_accuracy"] - check["accuracy"]) * n)
        if lost <= max(FALL * n, FALL_PICTURES):
            return ""
        fall = f"its accuracy is {check['accuracy']:.3f}, the Keras model's {check['keras_accuracy']:.3f}"
        return f"{fall}; allowed is a fall of {FALL}, or of {FALL_PICTURES} pictures"
    if difference <= DIFFERENCE and check["same_choice"] == n:
        return ""
    differing = f"it puts another class first for {n - check['same_choice']} of {n} pictures"
    return f"{differing}, and probabilities differ by up to {difference:.2g}; allowed are 0 and {DIFFERENCE:g}"


def export(source: Source, format_name: str, reference: Reference) -> dict:
    """Writes a model in a format, with a json file beside it, if it passes its check; returns what the json says.

    Raises:
        StudyError: It does not, and is not kept; or the files cannot be written.
    """
    form = FORMATS[format_name]
    target = source.folder / form.file
    with aux.whole_file(target) as temporary:
        with quietly():
            form.write(source, temporary)
            check = compare(form.load(temporary), reference)
        if wrong := fault(format_name, check):
            raise aux.StudyError(f"{format_name} is not kept: {wrong}. Checked on {reference.name}.")
        about = describe(source, format_name, temporary) | {"check": check}
    write_about(target, about)
    return about


def describe_input(model: keras.Model) -> dict:
    """Says what a model takes."""
    found = {"name": model.inputs[0].name, "shape": ["n", *model.input_shape[1:]], "dtype": "float32"}
    return found | {"range": [0, 255], "channels": "RGB, last", "made_of_a_photograph": MADE}


def describe(source: Source, format_name: str, path: Path) -> dict:
    """Says all that a person needs who has the exported file and this: how to use it, and what it was made of."""
    form = FORMATS[format_name]
    about = {"file": form.file, "format": form.title, "bytes": path.stat().st_size, "sha256": aux.file_sha256(path)}
    about |= {"class_names": source.class_names, "input": describe_input(source.model)}
    output = {"shape": ["n", len(source.class_names)], "dtype": "float32", "range": [0, 1]}
    about["output"] = output | {"meaning": "probabilities, in the order of class_names"}
    if format_name == "litert8":
        photographs = len(calibration(source.splits.train, source.settings.seed))
        about["calibrated_on"] = f"{photographs} training photographs, as many of each class"
    about["source"] = {"run": source.name, "file": source.path.name, "sha256": aux.file_sha256(source.path)}
    versions = {"keras": keras.__version__, "tensorflow": tf.__version__}
    return about | {"made_with": versions, "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"}


def write_about(target: Path, about: Mapping) -> None:
    """Writes the json file beside an exported model, whole or not at all."""
    with aux.whole_file(target.with_name(f"{target.name}.json")) as temporary:
        temporary.write_text(json.dumps(about, indent=1, ensure_ascii=False), encoding="utf-8")


def stored(source: Source) -> dict[str, dict]:
    """Returns what the json files say of the models in the folder, by format, if they were made of this very model."""
    found, digest = {}, aux.file_sha256(source.path)
    for name, form in FORMATS.items():
        file = source.folder / form.file
        try:
            about = json.loads(file.with_name(f"{form.file}.json").read_text(encoding="utf-8"))
            if about["source"]["sha256"] == digest and about["sha256"] == aux.file_sha256(file):
                found[name] = about
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return found


# ── Times ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def side_by_side(askers: Mapping[str, Ask], pixels: np.ndarray, rounds: int) -> dict[str, float]:
    """Asks models in turn about the same pictures, round after round, so that what disturbs meets all of them.

    Returns:
        The median of the milliseconds that each took, after two rounds that warm up.
    """
    times = {name: [] for name in askers}
    for _ in range(2 + rounds):
        for name, ask in askers.items():
            start = time.perf_counter()
            ask(pixels)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(values[2:])) for name, values in times.items()}


def measure(source: Source, names: Sequence[str], reference: Reference, rounds: int = 30) -> dict[str, dict]:
    """Times the Keras model, called in two ways, and exported models, side by side in this process on all cores.

    Args:
        source: The model.
        names: Formats whose files lie in its folder.
        reference: Its pictures are those that models are asked about.
        rounds: Rounds with a single picture; a third as many with 32.

    Returns:
        For `model.predict`, `tf.function` and each format: `single_ms`, for one picture; `batch_ms`, a picture, asked
        32 at a time; `pictures_per_second`, asked so; `speed`, how many times faster than `model.predict` for one.
    """
    graph = tf.function(lambda pixels: source.model(pixels, training=False), autograph=False)
    askers = {"model.predict": lambda pixels: source.model.predict(pixels, verbose=0)}
    askers["tf.function"] = lambda pixels: graph(tf.constant(pixels)).numpy()
    first = np.asarray(next(iter(reference.batches))[0])
    with quietly():
        askers |= {name: FORMATS[name].load(source.folder / FORMATS[name].file) for name in names}
        single = side_by_side(askers, first[:1], rounds)
        batch = side_by_side(askers, np.resize(first, (32, *first.shape[1:])), -(-rounds // 3))
    return {
        name: {
            "single_ms": round(single[name], 3),
            "batch_ms": round(batch[name] / 32, 3),
            "pictures_per_second": round(32_000 / batch[name], 1),
            "speed": round(single["model.predict"] / single[name], 2),
        }
        for name in askers
    }


def table(source: Source, abouts: Mapping[str, Mapping], times: Mapping[str, Mapping], reference: Reference) -> str:
    """Draws sizes, times and checks of Keras and exported models as one table."""
    right = reference.labels is not None and np.mean(reference.expected.argmax(axis=1) == reference.labels)
    keras_accuracy = "–" if reference.labels is None else f"{right:.3f}"
    rows = []
    for name, found in times.items():
        about = abouts.get(name)
        size = about["bytes"] if about else source.path.stat().st_size
        checked, accuracy = ["–", "–"], keras_accuracy
        if about:
            check = about["check"]
            checked = [f"{check['largest_difference']:.1e}", f"{check['same_choice']} of {check['n']}"]
            accuracy = "–" if check["accuracy"] is None else f"{check['accuracy']:.3f}"
        figures = [f"{size / 1e6:.1f}", f"{found['single_ms']:.2f}", f"{found['batch_ms']:.2f}"]
        figures += [f"{found['pictures_per_second']:.0f}", f"{found['speed']:.1f} ×"]
        rows.append([name, *figures, *checked, accuracy])
    columns = ["", "MB", "ms, 1", "ms each, 32", "a second, 32", "speed, 1", "difference", "same choice", "accuracy"]
    return pd.DataFrame(rows, columns=columns).to_string(index=False)


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{number} is less than 1")
    return number


def main() -> None:
    """Exports the model that is named, for the workspace that the environment names (ANIMALS10_ROOT)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="", help="a .keras file, a run's folder in models/, or a model_id")
    parser.add_argument("--format", default="litert", help=f"{', '.join(FORMATS)}; several with commas (%(default)s)")
    parser.add_argument(
        "--pictures", type=_positive, default=MOST, help="test pictures to check, at most (%(default)s)"
    )
    parser.add_argument("--rounds", type=_positive, default=30, help="single pictures to time (%(default)s)")
    arguments = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"  # exported models are timed on the CPU, so Keras is as well
    try:
        settings = aux.Settings.from_environment()
        sys.exit(run(settings, arguments.model, arguments.format, arguments.pictures, arguments.rounds))
    except aux.StudyError as error:
        sys.exit(str(error))


def run(settings: aux.Settings, model: str, formats: str = "litert", most: int = MOST, rounds: int = 30) -> int:
    """Exports a model in all formats that are named, checks and times them, and prints what came of it.

    Returns:
        The exit status: 1 if a model did not pass its check and is not kept, else 0.

    Raises:
        StudyError: There is no such model or format, or something is missing that it needs.
    """
    names = chosen_formats(formats)
    with quietly():  # TensorFlow looks for a GPU
        device = aux.use_device()
    source = load_source(settings, model)
    if "litert8" in names and not source.splits:
        raise aux.StudyError(f"FORMAT=litert8 needs training photographs to calibrate on. {source.why}")
    storage.sweep(source.folder)
    reference, failed = make_reference(source, most), set()
    for name in names:
        try:
            about = export(source, name, reference)
            print(f"{name}: {about['format']}, in {aux.short(source.folder / about['file'])}", flush=True)
        except aux.StudyError as error:
            print(error, flush=True)
            failed.add(name)
    if abouts := {name: about for name, about in stored(source).items() if name not in failed}:
        times = measure(source, list(abouts), reference, rounds)
        conditions = {"device": device, "threads": os.cpu_count(), "rounds": rounds, "models": times}
        for name, about in abouts.items():
            write_about(source.folder / FORMATS[name].file, about | {"times": conditions})
        print(f"\nOn {reference.name}; timed side by side on {device}:\n")
        print(table(source, abouts, times, reference))
    return int(bool(failed))


if __name__ == "__main__":
    main()
