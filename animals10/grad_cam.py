"""Grad-CAM: a heatmap of the evidence that a network finds in an image for a class.

R. R. Selvaraju et al., Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization,
arXiv:1610.02391.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from animals10.files import UserError

# Layers whose output merely rearranges the feature map before it, or that compute none.
_SKIPPED = (
    keras.layers.MaxPooling2D,
    keras.layers.AveragePooling2D,
    keras.layers.ZeroPadding2D,
    keras.layers.Dropout,
    keras.layers.InputLayer,
    keras.layers.Rescaling,
    keras.layers.Normalization,
)


def last_feature_map(model: keras.Model) -> keras.Operation:
    """Returns the last operation whose output is a feature map of more than one position.

    That is, (batch, height, width, channels), computed by a layer with weights or after one. Pooling, padding and
    dropout layers are skipped. Most operations are layers, but some backbones hold others (additions, say).

    Args:
        model: A functional or sequential model.

    Raises:
        UserError: The model has none.
    """
    model = _functional(model)
    operations = model.operations
    first = next((index for index, one in enumerate(operations) if getattr(one, "weights", ())), len(operations))
    for operation in reversed(operations[first:]):
        shape = getattr(_output(model, operation), "shape", ())
        if len(shape) == 4 and min(size or 2 for size in shape[1:3]) > 1 and not isinstance(operation, _SKIPPED):
            return operation
    raise UserError(
        f"{model.name} has no feature map of more than one position, and Grad-CAM needs one: "
        "use it on networks with convolutions, or with larger images."
    )


def grad_cam(
    model: keras.Model,
    pixels: np.ndarray,
    class_index: int | Sequence[int] | None = None,
    layer: str | keras.Operation | None = None,
) -> np.ndarray:
    """Computes Grad-CAM heatmaps: where a network finds evidence for a class.

    Each channel of a feature map is weighted by the mean gradient of the class's score (before the softmax) with
    respect to it. The heatmap is the positive part of the weighted sum (equations 1 and 2 of the paper). The mean is
    taken over all positions, so a network that flattens its feature map, and thus weights each position on its own,
    may show evidence at positions that it ignores.

    Args:
        model: A functional or sequential model that ends in a dense layer with softmax, or in a softmax layer.
        pixels: (n, height, width, 3), 0 to 255.
        class_index: Index of the class, one for all images or one per image; None for the predicted classes.
        layer: The operation that computes the feature map, or its name; None for `last_feature_map`.

    Returns:
        float32, (n, height, width), 0 to 1. The maximum of each heatmap is 1, unless there is no evidence for the
        class: then it is 0 everywhere.

    Raises:
        UserError: The model has no such feature map or no softmax at its end.
    """
    functional = _functional(model)
    if isinstance(functional.operations[-1], keras.layers.Average):
        raise UserError(f"{model.name} is the mean of several networks: Grad-CAM shows one, so choose one of its runs.")
    operation = _find(functional, layer) if isinstance(layer, str) else layer or last_feature_map(functional)
    end, features = _before_softmax(functional)
    inner = keras.Model(functional.inputs, [_output(functional, operation), features])
    with tf.GradientTape() as tape:
        maps, values = inner(tf.convert_to_tensor(pixels, "float32"), training=False)
        scores = _scores(end, values)
        chosen = tf.argmax(scores, axis=1) if class_index is None else tf.broadcast_to(class_index, [len(pixels)])
        score = tf.gather(scores, chosen, axis=1, batch_dims=1)
    gradient = tape.gradient(score, maps, unconnected_gradients="zero")
    weights = tf.reduce_mean(tf.cast(gradient, "float32"), axis=(1, 2), keepdims=True)
    heat = tf.nn.relu(tf.reduce_sum(weights * tf.cast(maps, "float32"), axis=-1, keepdims=True))
    heat = tf.image.resize(heat, pixels.shape[1:3])[..., 0].numpy()
    highest = heat.max(axis=(1, 2), keepdims=True)
    return np.divide(heat, highest, out=np.zeros_like(heat), where=highest > 0)


def _functional(model: keras.Model) -> Any:
    """Returns the model as a functional one, whose `operations` include those that are not layers."""
    return model if hasattr(model, "operations") else keras.Model(model.inputs, model.outputs, name=model.name)


def _output(model: Any, operation: keras.Operation) -> Any:
    """Returns what an operation computes in a model; at its last call, if there are several.

    `operation.output` is another tensor if the operation is a model that is used as a layer.
    """
    calls = [node for depth in sorted(model._nodes_by_depth) for node in model._nodes_by_depth[depth]]
    return next(node.output_tensors[0] for node in calls if node.operation is operation)


def _find(model: Any, name: str) -> keras.Operation:
    found = [operation for operation in model.operations if operation.name == name]
    if not found:
        raise UserError(f"{model.name} has no layer {name!r}: its layers are listed by aux.layer_table(model).")
    return found[0]


def _before_softmax(model: Any) -> tuple[keras.Operation, keras.KerasTensor]:
    """Returns a model's last operation and what goes into it.

    Raises:
        UserError: The last operation is neither a dense layer with softmax nor a softmax.
    """
    end = model.operations[-1]
    is_softmax = isinstance(end, keras.layers.Softmax) or getattr(end, "activation", None) is keras.activations.softmax
    if not (is_softmax and isinstance(end, (keras.layers.Dense, keras.layers.Softmax, keras.layers.Activation))):
        raise UserError(
            f"{model.name} ends in {end.name} ({type(end).__name__}): Grad-CAM needs a dense layer with softmax there."
        )
    return end, end.input


def _scores(end: Any, values: tf.Tensor) -> tf.Tensor:
    """Returns the classes' scores, float32 (n, classes), from what goes into the last layer.

    The gradient of the probabilities themselves would vanish where the network is certain.
    """
    values = tf.cast(values, "float32")
    if not isinstance(end, keras.layers.Dense):
        return values
    scores = values @ tf.cast(end.kernel, "float32")
    return scores if end.bias is None else scores + tf.cast(end.bias, "float32")
