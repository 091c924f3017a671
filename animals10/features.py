"""The feature cache: outputs of the frozen layers of a network, computed once per image and kept in files.

In transfer learning most layers do not change. The cache holds what they compute for each image (feature maps at the
split layer, pooled features), so that an epoch runs only the layers that are trained. A cache is a folder of
memory-mapped arrays in shards. It is used only if it is complete, undamaged and of the right key.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

import filelock
import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.eager.wrap_function import function_from_graph_def
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from animals10.cluster_shards import write_with_helpers
from animals10.files import user_facing_os_errors
from animals10.input_pipeline import without_autotune
from animals10.progress import Progress
from animals10.settings import Settings
from animals10.shards import Compute, ShardedArray, Shards
from animals10.tensorflow_start import filtered_stderr


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


class FrozenNetwork:
    """A model as `inference_function` returns it, made when it is first called. Other processes can load it."""

    def __init__(self, model: keras.Model):
        """Takes the model."""
        self.model = model

    def __call__(self, pixels: tf.Tensor) -> list[tf.Tensor]:
        """Returns the outputs of a batch of pixels, (n, height, width, 3)."""
        return self._function(pixels)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles the graph alone: so classes of the user's own need not be known where it is loaded."""
        names = ([tensor.name for tensor in end] for end in (self._function.inputs, self._function.outputs))
        return _load_function, (self._function.graph.as_graph_def().SerializeToString(), *names)

    @cached_property
    def _function(self) -> Any:
        return inference_function(self.model)


def _load_function(graph: bytes, inputs: list[str], outputs: list[str]) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    return function_from_graph_def(tf.compat.v1.GraphDef.FromString(graph), inputs, outputs)


def weights_sha256(layers: Sequence[keras.Layer]) -> str:
    """Returns the SHA-256 checksum of all weights of some layers, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for weight in (weight for layer in layers for weight in layer.weights):
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def feature_batches(
    array: np.ndarray | ShardedArray,
    labels: np.ndarray,
    epochs: Callable[[], Iterable[np.ndarray]],
    batch_size: int = 32,
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
    settings: Settings,
    title: str,
    key: Mapping,
    shapes: Mapping[str, Sequence[int]],
    dtype: str,
    rows: int,
    batch_size: int,
    compute: Compute,
) -> dict[str, ShardedArray]:
    """Returns cached features, computing the shards that are missing or damaged.

    An interrupted computation resumes with the shards that are missing. Workers of a cluster take a share of them.

    Args:
        settings: The settings; their workspace holds the feature cache.
        title: The beginning of the cache's name, and the name of the progress bar.
        key: Everything that the features depend on, as JSON can hold it.
        shapes: Shape of one row of each array, by the array's name.
        dtype: `float16` or `float32`.
        rows: Rows of each array.
        batch_size: Rows of a batch, except for the last one.
        compute: Yields, from a row to another one, batches of rows of the arrays, in the order of `shapes`.

    Returns:
        Read-only memory-mapped arrays, (rows, *shape), by name.

    Raises:
        UserError: The disk is too small, or a value is too large for the dtype.
    """
    cast_half_once()
    key = json.loads(json.dumps(dict(key) | {"dtype": dtype, "rows": rows, "shapes": dict(shapes)}))
    title = re.sub(r'[/\\<>:"|?*]', "_", title)  # a network may be called `organisation/name`
    name = f"{title}-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}"
    folder, size = settings.data / "features", Shards.rows_per_shard(rows, batch_size)
    shards = Shards(folder / name, title, {name: tuple(shape) for name, shape in shapes.items()}, dtype, rows, size)
    with user_facing_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with user_facing_os_errors(folder), filelock.FileLock(folder / f".{name}.lock"):
        shards.begin(key)
        if missing := shards.missing():
            shards.check_space(missing)
            n_done = rows - sum(map(shards.count, missing))
            with Progress(total=rows, initial=n_done, desc=f"{title}: cached features", unit="image") as bar:
                write_with_helpers(settings, shards, missing, compute, bar.update)
    return shards.arrays()
