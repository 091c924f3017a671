"""What the frozen part of a network says of each photograph, computed once and kept in files.

An epoch of transfer learning pushes every photograph through layers that do not change. Here they are asked once; after
that, only what follows them is trained. `auxiliary.train` decides what is computed; this module cuts the network and
keeps the answers in stores: folders of memory-mapped arrays, used only when whole, undamaged and of the right key.
"""

import hashlib
import json
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import filelock
import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tqdm import tqdm

from storage import StudyError, plainly, short

SPARE_BYTES = 500_000_000  # what a computation leaves free on the disk
SECONDS_BETWEEN_FLUSHES = 10  # an interrupted computation loses no more


def cut_before(model: keras.Model, index: int) -> keras.Layer:
    """Returns the last layer before position `index` whose output is all that the layers after it see of the input.

    Args:
        model: A flat functional model; each layer is called once.
        index: Position in `model.layers`, 1 or more, of the first layer that must lie after the cut.
    """
    last_use = {}
    for position, layer in enumerate(model.layers):
        last_use |= {id(tensor): position for tensor in keras.tree.flatten(layer.input)}
    best, furthest = model.layers[0], 0
    for position, layer in enumerate(model.layers[:index]):
        if furthest <= position:  # nothing from before this layer is used after it
            best = layer
        furthest = max(furthest, last_use[id(layer.output)])
    return best


def inference(model: keras.Model) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Returns a model in inference mode as a function of a batch of pixels, (n, height, width, 3), of any n.

    Its weights are constants of the graph, so that TensorFlow joins convolutions with what follows them: half as fast
    again for MobileNetV2 on a CPU. Outputs are those of the model, in their order.
    """
    signature = tf.TensorSpec((None, *model.input.shape[1:]), tf.float32)  # any n: traced once
    function = tf.function(lambda pixels: model(pixels, training=False), input_signature=[signature], autograph=False)
    return convert_variables_to_constants_v2(function.get_concrete_function())


def weights_sha256(layers: Sequence[keras.Layer]) -> str:
    """Returns a fingerprint of all weights of some layers."""
    digest = hashlib.sha256()
    for weight in (weight for layer in layers for weight in layer.weights):
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def batches(
    array: np.ndarray, labels: np.ndarray, epochs: Callable[[], Iterable[np.ndarray]], batchsize: int = 32
) -> tf.data.Dataset:
    """Returns stored activations as `fit` takes them: batches (n, …), float32, with labels int32 (n,).

    Args:
        array: Activations, (views × photographs, …), view after view.
        labels: Of the photographs, int32 (photographs,).
        epochs: Gives for each epoch the rows of `array`, in order; the last batch of an epoch may be smaller.
        batchsize: Rows a batch.
    """

    def generate() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in epochs():
            for start in range(0, len(rows), batchsize):
                batch = rows[start : start + batchsize]
                yield array[batch], labels[batch % len(labels)]

    signature = tf.TensorSpec((None, *array.shape[1:]), array.dtype), tf.TensorSpec((None,), tf.int32)
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    # Cast here: NumPy takes many times longer for it.
    return steady(dataset.map(lambda values, labels: (tf.cast(values, tf.float32), labels)))


def steady(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a dataset that prepares two batches ahead and does not tune itself.

    Giving up an iterator that does takes up to seconds: its tuner has to come to an end first.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)


def stored(
    folder: Path,
    title: str,
    key: Mapping,
    shapes: Mapping[str, Sequence[int]],
    dtype: str,
    rows: int,
    compute: Callable[[int], Iterator[Sequence[np.ndarray]]],
) -> dict[str, np.ndarray]:
    """Returns the arrays of a store, computing them first unless a whole one of this key is there.

    A computation that was interrupted goes on where it stopped. It works in a hidden folder, renamed when whole.

    Args:
        folder: Where stores lie.
        title: Begins the store's name, and names the progress bar.
        key: All that the numbers depend on, as JSON can hold it.
        shapes: Of one row of each array, by the array's name.
        dtype: `float16` or `float32`.
        rows: Of each array.
        compute: Yields, from a row on, batches of rows of the arrays, in the order of `shapes`.

    Returns:
        Read-only memory-mapped arrays, (rows, *shape), by name.

    Raises:
        StudyError: The disk is too small, or a value is too large for the dtype.
    """
    key = json.loads(json.dumps(dict(key) | {"dtype": dtype, "rows": rows, "shapes": dict(shapes)}))
    name = f"{title}-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}"
    path, aside = folder / name, folder / f".{name}"
    with plainly(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with plainly(folder), filelock.FileLock(folder / f".{name}.lock"):
        if path.exists() and not _is_whole(path, json.dumps(key), path.stat().st_mtime_ns):
            print(f"{short(path)} is damaged or incomplete and is not used; its activations are computed anew.")
            shutil.rmtree(path)
        if not path.exists():
            _compute(aside, title, shapes, dtype, rows, compute)
            sums = {name: _checksum(np.load(aside / f"{name}.npy", mmap_mode="r")) for name in shapes}
            (aside / "progress").unlink()
            (aside / "key.json").write_text(json.dumps({"key": key, "crc32": sums}, indent=1), encoding="utf-8")
            aside.rename(path)
    return {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in shapes}


def _compute(aside: Path, title: str, shapes: Mapping, dtype: str, rows: int, compute: Callable) -> None:
    size = rows * np.dtype(dtype).itemsize * sum(int(np.prod(shape)) for shape in shapes.values())
    progress, done = aside / "progress", 0
    if progress.exists():
        done = int(progress.read_text())
    else:
        shutil.rmtree(aside, ignore_errors=True)
        free = shutil.disk_usage(aside.parent).free
        where = f"{short(aside.parent)} ({_words(free)} free)"
        print(f"{title}: activations of {rows:,} pictures, {_words(size)} in {where}.", file=sys.stderr)
        if size + SPARE_BYTES > free:
            raise StudyError(
                f"{short(aside.parent)} has {_words(free)} free, and the activations of {title} need {_words(size)}: "
                "make room (make clean-cache), lower ANIMALS10_VIEWS, or set ANIMALS10_STORE=off."
            )
        aside.mkdir()
        for name, shape in shapes.items():
            np.lib.format.open_memmap(aside / f"{name}.npy", "w+", dtype, (rows, *shape)).flush()
            with (aside / f"{name}.npy").open("r+b") as file:  # else a disk that fills up later would end the process
                if hasattr(os, "posix_fallocate"):
                    os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        progress.write_text("0")
    arrays = [np.lib.format.open_memmap(aside / f"{name}.npy", "r+") for name in shapes]
    flushed = time.monotonic()
    with tqdm(total=rows, initial=done, desc=f"{title}: activations", unit="photo") as bar:
        for batch in compute(done) if done < rows else ():
            n = len(batch[0])
            for array, values in zip(arrays, batch, strict=True):
                with np.errstate(over="ignore"):  # it shows in the next line
                    array[done : done + n] = values
                if not np.isfinite(array[done : done + n]).all():
                    raise StudyError(f"{title} gives activations beyond {dtype}: set ANIMALS10_STORE=float32.")
            done += n
            bar.update(n)
            if time.monotonic() - flushed > SECONDS_BETWEEN_FLUSHES or done == rows:
                for array in arrays:
                    array.flush()
                progress.with_suffix(".new").write_text(str(done))
                progress.with_suffix(".new").replace(progress)  # after the rows that it counts
                flushed = time.monotonic()


@lru_cache(maxsize=256)
def _is_whole(path: Path, key: str, _changed: int) -> bool:
    """Tells whether a store is complete, undamaged and of this key; read in full once a process."""
    try:
        stored = json.loads((path / "key.json").read_text(encoding="utf-8"))
        arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in stored["crc32"]}
        sums = {name: _checksum(array) for name, array in arrays.items()}
    except (OSError, ValueError, KeyError):
        return False
    return stored["key"] == json.loads(key) and sums == stored["crc32"]


def _checksum(array: np.ndarray) -> int:
    value, flat = 0, array.reshape(-1).view("uint8")
    for start in range(0, len(flat), 1 << 24):  # in pieces, so that memory stays flat
        value = zlib.crc32(flat[start : start + (1 << 24)], value)
    return value


def _words(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
