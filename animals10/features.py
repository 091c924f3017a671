"""The feature cache: outputs of the frozen layers of a network, computed once per image and kept in files.

In transfer learning most layers do not change. The cache holds what they compute for each image (feature maps at the
split layer, pooled features), so that an epoch runs only the layers that are trained. A cache is a folder of
memory-mapped arrays. It is used only if it is complete, undamaged and of the right key.
"""

import hashlib
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path

import filelock
import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from animals10.files import UserError, display_path, reading, user_facing_os_errors
from animals10.input_pipeline import without_autotune
from animals10.progress import Progress, tell
from animals10.quiet import filtered_stderr

SPARE_BYTES = 500_000_000  # free space that a cache leaves on the disk
SECONDS_BETWEEN_FLUSHES = 10  # an interrupted computation loses no more than this


def split_before(model: keras.Model, layer: keras.Layer) -> keras.Operation:
    """Returns the last operation before a layer through which everything passes: the split layer.

    The operations after the split layer see the input only through its output. It need not be a layer: some networks
    hold operations, such as an addition, that are none.

    Args:
        model: A flat functional model that calls each of its layers once.
        layer: A layer of the model; the split layer lies before it.
    """
    operations = model.operations
    last_use: dict[int, int] = {}
    for position, operation in enumerate(operations):
        last_use |= {id(tensor): position for tensor in keras.tree.flatten(operation.input)}
    split, furthest = operations[0], 0
    for position, operation in enumerate(operations[: operations.index(layer)]):
        if furthest <= position:  # no later operation uses an output of an earlier one
            split = operation
        furthest = max(furthest, last_use[id(operation.output)])
    return split


def inference_function(model: keras.Model) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Returns a model in inference mode as a function of a batch of pixels, (n, height, width, 3), of any n.

    The model's weights are constants of the graph, so that TensorFlow can fuse convolutions with the operations that
    follow them. This makes MobileNetV2 1.5 times as fast on a CPU. Outputs are those of the model, in their order.
    """
    signature = tf.TensorSpec((None, *model.input.shape[1:]), tf.float32)  # any n: traced once
    function = tf.function(lambda pixels: model(pixels, training=False), input_signature=[signature], autograph=False)
    return convert_variables_to_constants_v2(function.get_concrete_function())


def weights_sha256(layers: Sequence[keras.Layer]) -> str:
    """Returns the SHA-256 checksum of all weights of some layers, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for weight in (weight for layer in layers for weight in layer.weights):
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def feature_batches(
    array: np.ndarray, labels: np.ndarray, epochs: Callable[[], Iterable[np.ndarray]], batch_size: int = 32
) -> tf.data.Dataset:
    """Returns cached features as batches for training.

    Args:
        array: Cached features, (views × images, …), view after view.
        labels: Labels of the images, int32 (images,).
        epochs: Gives for each epoch the rows of `array`, in order.
        batch_size: Rows per batch; the last batch of an epoch may be smaller.

    Returns:
        Batches of features, float32 (n, …), and labels, int32 (n,).
    """

    def generate() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in epochs():
            for start in range(0, len(rows), batch_size):
                batch = rows[start : start + batch_size]
                yield array[batch], labels[batch % len(labels)]

    signature = tf.TensorSpec((None, *array.shape[1:]), array.dtype), tf.TensorSpec((None,), tf.int32)
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature)
    # Cast by TensorFlow: NumPy takes many times longer.
    return without_autotune(dataset.map(lambda values, labels: (tf.cast(values, tf.float32), labels)))


@cache
def cast_half_once() -> None:
    """Casts a float16 number, once: on most CPUs TensorFlow then logs an error that is none."""
    with filtered_stderr():
        tf.cast(tf.zeros(1, tf.float16), tf.float32)


def cached_features(
    folder: Path,
    title: str,
    key: Mapping,
    shapes: Mapping[str, Sequence[int]],
    dtype: str,
    rows: int,
    compute: Callable[[int], Iterator[Sequence[np.ndarray]]],
) -> dict[str, np.ndarray]:
    """Returns cached features, computing them first unless a complete cache of this key exists.

    An interrupted computation resumes. It works in a hidden folder, which is renamed when it is complete.

    Args:
        folder: The folder of all caches.
        title: The beginning of the cache's name, and the name of the progress bar.
        key: Everything that the features depend on, as JSON can hold it.
        shapes: Shape of one row of each array, by the array's name.
        dtype: `float16` or `float32`.
        rows: Rows of each array.
        compute: Yields, from a row on, batches of rows of the arrays, in the order of `shapes`.

    Returns:
        Read-only memory-mapped arrays, (rows, *shape), by name.

    Raises:
        UserError: The disk is too small, or a value is too large for the dtype.
    """
    cast_half_once()
    key = json.loads(json.dumps(dict(key) | {"dtype": dtype, "rows": rows, "shapes": dict(shapes)}))
    title = re.sub(r'[/\\<>:"|?*]', "_", title)  # a network may be called `organisation/name`
    name = f"{title}-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}"
    path, work = folder / name, folder / f".{name}"
    with user_facing_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with user_facing_os_errors(folder), filelock.FileLock(folder / f".{name}.lock"):
        if path.exists() and not _is_complete(path, json.dumps(key), path.stat().st_mtime_ns):
            print(f"{display_path(path)} is damaged or incomplete and is not used; its features are recomputed.")
            shutil.rmtree(path)
        if not path.exists():
            _compute(work, title, shapes, dtype, rows, compute)
            sums = {name: _checksum(np.load(work / f"{name}.npy", mmap_mode="r")) for name in shapes}
            (work / "progress").unlink()
            (work / "key.json").write_text(json.dumps({"key": key, "crc32": sums}, indent=1), encoding="utf-8")
            work.rename(path)
    return {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in shapes}


def _compute(work: Path, title: str, shapes: Mapping, dtype: str, rows: int, compute: Callable) -> None:
    progress = work / "progress"
    try:
        done = int(progress.read_text(encoding="ascii"))
        arrays = [np.lib.format.open_memmap(work / f"{name}.npy", "r+") for name in shapes]
    except (OSError, ValueError):  # nothing was begun, or it is damaged
        _allocate(work, title, shapes, dtype, rows)
        progress.write_text("0", encoding="ascii")
        done, arrays = 0, [np.lib.format.open_memmap(work / f"{name}.npy", "r+") for name in shapes]
    flushed = time.monotonic()
    with Progress(total=rows, initial=done, desc=f"{title}: cached features", unit="image") as bar:
        for batch in compute(done) if done < rows else ():
            n = len(batch[0])
            for array, values in zip(arrays, batch, strict=True):
                with np.errstate(over="ignore"):  # the next line detects it
                    array[done : done + n] = values
                if not np.isfinite(array[done : done + n]).all():
                    raise UserError(f"{title} has features beyond {dtype}: set ANIMALS10_FEATURE_CACHE=float32.")
            done += n
            bar.update(n)
            if time.monotonic() - flushed > SECONDS_BETWEEN_FLUSHES or done == rows:
                for array in arrays:
                    array.flush()
                progress.with_suffix(".new").write_text(str(done), encoding="ascii")
                progress.with_suffix(".new").replace(progress)  # only after the rows that it counts
                flushed = time.monotonic()


def _allocate(work: Path, title: str, shapes: Mapping, dtype: str, rows: int) -> None:
    """Creates the arrays of a cache at their full size, or raises UserError if the disk is too small."""
    size = rows * np.dtype(dtype).itemsize * sum(int(np.prod(shape)) for shape in shapes.values())
    shutil.rmtree(work, ignore_errors=True)
    free = shutil.disk_usage(work.parent).free
    where = f"{display_path(work.parent)} ({_gigabytes(free)} free)"
    tell(f"{title}: caching features of {rows:,} images, {_gigabytes(size)} in {where}.")
    if size + SPARE_BYTES > free:
        raise UserError(
            f"{display_path(work.parent)} has {_gigabytes(free)} free, and the cached features of {title} need "
            f"{_gigabytes(size)}: make room (make clean-cache), lower ANIMALS10_VIEWS, or set "
            "ANIMALS10_FEATURE_CACHE=off."
        )
    work.mkdir()
    for name, shape in shapes.items():
        np.lib.format.open_memmap(work / f"{name}.npy", "w+", dtype, (rows, *shape)).flush()
        with (work / f"{name}.npy").open("r+b") as file:  # else a disk that fills up later would kill the process
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)


@lru_cache(maxsize=256)
def _is_complete(path: Path, key: str, _changed: int) -> bool:
    """Tells whether a cache is complete, undamaged and of this key. It is read in full once per process."""
    try:
        with reading(path / "key.json", "is damaged"):
            stored = json.loads((path / "key.json").read_text(encoding="utf-8"))
            arrays = {name: np.load(path / f"{name}.npy", mmap_mode="r") for name in stored["crc32"]}
            sums = {name: _checksum(array) for name, array in arrays.items()}
            return stored["key"] == json.loads(key) and sums == stored["crc32"]
    except UserError:
        return False


def _checksum(array: np.ndarray) -> int:
    value, flat = 0, array.reshape(-1).view("uint8")
    for start in range(0, len(flat), 1 << 24):  # in pieces, so that memory use stays constant
        value = zlib.crc32(flat[start : start + (1 << 24)].data, value)
    return value


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
