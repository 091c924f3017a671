"""Architectures: CNNs trained from scratch, transfer learning, anyone's own.

An architecture is a frozen dataclass that builds a network: from pixels, (n, size, size, 3), 0 to 255, to the
probabilities of the classes, (n, classes).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import numpy as np
import pandas as pd

from animals10.backbones import find_backbone
from animals10.features import split_before
from animals10.files import UserError
from animals10.values import plain_number


class Architecture(Protocol):
    """What an experiment needs of an architecture. It must be a frozen dataclass: its fields are its specification.

    These attributes and methods are optional:
        backbone: The name of a pretrained network. With it, ANIMALS10_WEIGHTS decides which `weights` `build` gets.
        set_trainable(model): Freezes layers of a network that was loaded from a file, as `build` does for a new one.
        split_layer(model): Returns the name of the last layer whose outputs may be cached: everything passes through
            it, and all layers up to it are frozen. None for no feature cache.
        feature_layers(model): The same for several layers, see `FeatureLayers`.
    """

    def __hash__(self) -> int:
        """Equal specifications have equal hashes: a frozen dataclass has this."""
        ...

    def build(self, n_classes: int, image_size: int, weights: str | None = None) -> keras.Model:
        """Returns the network, untrained or with pretrained weights.

        Args:
            n_classes: Number of classes.
            image_size: Edge of the images in pixels.
            weights: `imagenet`, the path of a weights file, or None for random weights.
        """
        ...


@dataclass(frozen=True)
class FeatureLayers:
    """Layers of a network whose outputs can be cached.

    Attributes:
        outputs: Their outputs by name: `split` for the feature map at the split layer, `pooled` for pooled features.
        start: The name of the output with which the trained part of the network starts.
    """

    outputs: dict[str, keras.KerasTensor]
    start: str

    @property
    def layer_names(self) -> dict[str, str]:
        """The name of each output's layer."""
        return {name: output._keras_history.operation.name for name, output in self.outputs.items()}


@dataclass(frozen=True)
class CNN:
    """A network trained from scratch: blocks of 3 × 3 convolution and max pooling, then dense layers.

    Attributes:
        filters: Filters of each convolution.
        pool_sizes: Edge of the max pooling after each convolution, in pixels.
        dense_units: Units of each dense layer before the output.
        dropout: Dropout rate after each dense layer; 0 for none.

    Raises:
        UserError: The numbers of layers do not match.
    """

    filters: tuple[int, ...]
    pool_sizes: tuple[int, ...]
    dense_units: tuple[int, ...] = (128,)
    dropout: tuple[float, ...] = (0.3,)

    def __post_init__(self) -> None:
        _check_equal_length(self, "filters", "pool_sizes")
        _check_equal_length(self, "dense_units", "dropout")
        _check_rates(self, "dropout", self.dropout)

    def build(self, n_classes: int, image_size: int = 224, weights: str | None = None) -> keras.Model:
        """Returns the untrained network, see `Architecture`; there are no pretrained weights.

        Raises:
            UserError: The images are too small for its convolutions and pooling layers.
        """
        size = image_size
        for pool_size in self.pool_sizes:
            size = (size - 2) // pool_size
        if size < 1:
            blocks = f"{len(self.filters)} convolutions and pooling layers ({', '.join(map(str, self.pool_sizes))})"
            raise UserError(f"Images of {image_size} pixels are too small for {blocks}: set ANIMALS10_IMAGE_SIZE.")
        inputs = keras.Input((image_size, image_size, 3), name="pixels")
        x = keras.layers.Rescaling(1 / 255)(inputs)
        for filters, pool_size in zip(self.filters, self.pool_sizes, strict=True):
            x = keras.layers.Conv2D(filters, 3, activation="relu")(x)
            x = keras.layers.MaxPooling2D(pool_size)(x)
        return keras.Model(inputs, _classifier(keras.layers.Flatten()(x), self, n_classes))


@dataclass(frozen=True)
class Transfer:
    """Transfer learning: a pretrained backbone, global average pooling, and dense layers that are trained.

    Attributes:
        backbone: A name in `BACKBONES`.
        dense_units: Units of each dense layer before the output.
        dropout: Dropout rate after each dense layer; 0 for none.
        unfreeze_last: How many of the backbone's last layers are trained as well.
        freeze_batch_norm: Whether batch normalisation stays frozen in these layers, and keeps its ImageNet statistics.
        unfreeze_last_blocks: Instead of `unfreeze_last`: how many of the backbone's last blocks are trained as well,
            together with all layers after them.
        feature_dropout: Dropout rate of the pooled features; 0 for none.

    Raises:
        UserError: There is no such backbone, or values contradict each other.
    """

    backbone: str
    dense_units: tuple[int, ...] = (128,)
    dropout: tuple[float, ...] = (0.0,)
    unfreeze_last: int = 0
    freeze_batch_norm: bool = True
    unfreeze_last_blocks: int = 0
    feature_dropout: float = 0.0

    def __post_init__(self) -> None:
        find_backbone(self.backbone)
        _check_equal_length(self, "dense_units", "dropout")
        _check_rates(self, "dropout", self.dropout)
        _check_rates(self, "feature_dropout", (self.feature_dropout,))
        if min(self.unfreeze_last, self.unfreeze_last_blocks) < 0 or (self.unfreeze_last and self.unfreeze_last_blocks):
            raise UserError(
                f"Transfer: unfreeze_last is {self.unfreeze_last} and unfreeze_last_blocks is "
                f"{self.unfreeze_last_blocks}; give one of them, 1 or more."
            )

    def build(self, n_classes: int, image_size: int = 224, weights: str | None = None) -> keras.Model:
        """Returns the network with its backbone frozen, except for the last layers; see `Architecture`.

        Raises:
            UserError: The images are too small, or more layers are to be unfrozen than there are.
        """
        return self.build_head(*self.build_backbone(image_size, weights), n_classes)

    def build_backbone(self, image_size: int, weights: str | None) -> tuple[keras.KerasTensor, keras.KerasTensor]:
        """Returns the pixels that the backbone takes, (n, size, size, 3), and its pooled features, (n, channels)."""
        pixels = keras.Input((image_size, image_size, 3), name="pixels")
        # Built on the input itself: in one flat graph each layer can be found, split at and frozen.
        feature_map = find_backbone(self.backbone).build(pixels, weights)
        return pixels, keras.layers.GlobalAveragePooling2D(name="pooled")(feature_map)

    def build_head(self, pixels: keras.KerasTensor, pooled: keras.KerasTensor, n_classes: int) -> keras.Model:
        """Returns the network that ends with a new head; the tensors are those of `build_backbone`."""
        x = keras.layers.Dropout(self.feature_dropout)(pooled) if self.feature_dropout else pooled
        model = keras.Model(pixels, _classifier(x, self, n_classes), name=self.backbone)
        self.set_trainable(model)
        return model

    def set_trainable(self, model: keras.Model) -> None:
        """Freezes the backbone's layers, except for the last ones, and leaves the dense layers trainable.

        Batch normalisation is frozen layer by layer: `fit` would run it in training mode, however it was called.
        """
        first = len(self.frozen_layers(model))
        for position, layer in enumerate(model.layers):
            layer.trainable = position >= first and not (_is_batch_norm(layer) and self.freeze_batch_norm)

    def frozen_layers(self, model: keras.Model) -> list[keras.Layer]:
        """Returns all layers before the first one that is trained."""
        return model.layers[: self._end(model) - self.count_unfrozen(model)]

    def count_unfrozen(self, model: keras.Model) -> int:
        """Returns how many of the backbone's last layers are trained.

        Raises:
            UserError: The backbone has fewer layers or blocks.
        """
        end = self._end(model)
        if self.unfreeze_last_blocks:
            names = [layer.name for layer in model.layers[:end]]
            return find_backbone(self.backbone).count_last_layers(names, self.unfreeze_last_blocks)
        if self.unfreeze_last >= end:
            raise UserError(
                f"{self.backbone} has {end - 1} layers: unfreeze_last={self.unfreeze_last} is not possible."
            )
        return self.unfreeze_last

    def feature_layers(self, model: keras.Model) -> FeatureLayers | None:
        """Returns the layers whose outputs are cached: the split layer, and the pooling layer after the backbone.

        One pass over the images serves all experiments with a backbone: the split layer lies before the most layers
        that an experiment of this study trains. An experiment that trains more has a cache of its own.

        Returns:
            The layers; only the pooling layer where no single layer that everything passes through follows the
            backbone's first blocks (NASNetMobile), and None if the trained part would have to start there.
        """
        backbone, end, unfrozen = find_backbone(self.backbone), self._end(model), self.count_unfrozen(model)
        names = [layer.name for layer in model.layers[:end]]
        starts = backbone.block_starts(names)
        last = max(unfrozen, backbone.cache_before_last or backbone.count_last_layers(names, 2))
        split, pooled = split_before(model, model.layers[end - last]), model.layers[end]
        outputs = {"split": split.output, "pooled": pooled.output}
        first_block = model.operations.index(model.layers[min(starts.values())])
        if model.operations.index(split) < first_block:  # its output is about as large as the image: nothing is gained
            del outputs["split"]
        start = "split" if unfrozen else "pooled"
        return FeatureLayers(outputs, start) if start in outputs else None

    def _end(self, model: keras.Model) -> int:
        """Returns the position in `model.layers` of the pooling layer, which follows the backbone."""
        return [layer.name for layer in model.layers].index("pooled")


def _is_batch_norm(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.layers.BatchNormalization)


def _check_equal_length(architecture: CNN | Transfer, first: str, second: str) -> None:
    a, b = getattr(architecture, first), getattr(architecture, second)
    if len(a) != len(b):
        raise UserError(f"{type(architecture).__name__}: {first} {a} and {second} {b} must have the same length.")


def _check_rates(architecture: CNN | Transfer, name: str, rates: Sequence[float]) -> None:
    for rate in rates:
        if not 0 <= plain_number(f"{type(architecture).__name__}: {name}", rate) < 1:
            kind = type(architecture).__name__
            raise UserError(f"{kind}: {name} has the rate {rate!r}; allowed is a number from 0 to below 1.")


def _classifier(x: keras.KerasTensor, architecture: CNN | Transfer, n_classes: int) -> keras.KerasTensor:
    for units, rate in zip(architecture.dense_units, architecture.dropout, strict=True):
        x = keras.layers.Dense(units, activation="relu")(x)
        x = keras.layers.Dropout(rate)(x) if rate else x
    # float32 also where the rest runs in float16: probabilities of many classes need the digits.
    return keras.layers.Dense(n_classes, activation="softmax", dtype="float32", name="probabilities")(x)


# ── The feature cache ─────────────────────────────────────────────────────────────────────────────────────────────────


def feature_layers_of(architecture: Architecture, model: keras.Model) -> FeatureLayers | None:
    """Returns the layers of a network whose outputs can be cached, or None if the architecture names none.

    Raises:
        UserError: The split layer does not exist, not everything passes through it, or a layer up to it is trainable or
            random.
    """
    if hasattr(architecture, "feature_layers"):
        return architecture.feature_layers(model)
    name = architecture.split_layer(model) if hasattr(architecture, "split_layer") else None
    if name is None:
        return None
    subject = f"{type(architecture).__name__}: the split layer {name!r}"
    operations = {operation.name: operation for operation in model.operations}
    if name not in operations:
        raise UserError(f"{subject} does not exist. The network has {', '.join(layer.name for layer in model.layers)}.")
    output = keras.Operation.output.fget(operations[name])  # `.output` of a nested model is a tensor inside it
    try:
        upper = keras.Model(output, model.output).operations
        is_bypassed = sum(isinstance(operation, keras.layers.InputLayer) for operation in upper) > 1  # in Keras 3.13
    except ValueError:
        is_bypassed = True
    if is_bypassed:
        raise UserError(f"{subject} is bypassed by another connection: name a layer that everything passes.")
    for layer in keras.Model(model.input, output).layers:
        inner_layers = layer._flatten_layers()
        if layer.trainable_weights or any(inner.trainable and _is_batch_norm(inner) for inner in inner_layers):
            raise UserError(
                f"{subject} follows {layer.name!r}, which is trainable: freeze it or name an earlier layer."
            )
        if any(_is_random(inner) for inner in inner_layers):
            raise UserError(f"{subject} follows {layer.name!r}, which is random: name an earlier layer.")
    return FeatureLayers({"split": output}, "split")


def _is_random(layer: keras.Layer) -> bool:
    """Tells whether a layer draws random numbers in training; dropout does not count, see `frozen_dropouts`."""
    has_generator = any(isinstance(value, keras.random.SeedGenerator) for value in vars(layer).values())
    return has_generator and not isinstance(layer, keras.layers.Dropout)


def frozen_dropouts(architecture: Architecture, model: keras.Model) -> tuple[keras.layers.Dropout, ...]:
    """Returns the dropout layers among the layers that are not trained.

    They must be inactive in training, as they are in cached features: so training gives the same with and without the
    feature cache.
    """
    if isinstance(architecture, Transfer):
        layers = architecture.frozen_layers(model)
    else:
        found = feature_layers_of(architecture, model)
        layers = keras.Model(model.input, found.outputs[found.start]).layers if found else []
    inner = (inner for layer in layers for inner in layer._flatten_layers())
    return tuple(layer for layer in inner if isinstance(layer, keras.layers.Dropout))


# ── Configuration ─────────────────────────────────────────────────────────────────────────────────────────────────────


def network_config(model: keras.Model, trainable: bool = True) -> Any:
    """Returns the configuration of a network as JSON can hold it, without the names of its layers.

    Keras numbers names anew in each process and each build. Two builds of the same network have equal configurations,
    nested networks included.

    Args:
        model: The network.
        trainable: Whether the configuration says which layers are trainable.
    """
    left_out = {"name"} if trainable else {"name", "trainable"}
    config = json.loads(json.dumps(model.get_config()))
    return _without_names({key: part for key, part in config.items() if key not in left_out}, {}, left_out)


def _without_names(value: Any, positions: Mapping[str, int], left_out: set[str]) -> Any:
    """Returns a part of a configuration without names; where a connection names a layer, it has the position instead.

    Args:
        value: The part.
        positions: Position of each layer of the network that the part belongs to, by its name.
        left_out: Keys of a layer's configuration to leave out.
    """
    if isinstance(value, list):
        return [_without_names(part, positions, left_out) for part in value]
    if not isinstance(value, dict):
        return value
    if isinstance(layers := value.get("layers"), list):  # the configuration of a network
        names = [layer.get("name", layer["config"].get("name")) for layer in layers]
        positions = {name: position for position, name in enumerate(names)}
    is_object, found = "class_name" in value, {}
    for key, part in value.items():
        if key in ("keras_history", "input_layers", "output_layers"):
            found[key] = keras.tree.map_structure(lambda name: positions.get(name, name), part)
        elif is_object and key == "config" and isinstance(part, dict) and "DTypePolicy" not in value["class_name"]:
            part = {name: inner for name, inner in part.items() if name not in left_out}
            found[key] = _without_names(part, positions, left_out)
        elif not (is_object and key == "name"):
            found[key] = _without_names(part, positions, left_out)
    return found


def layer_table(model: keras.Model) -> pd.DataFrame:
    """Returns one row per layer, in order: `layer`, `type`, `output shape` (without the batch) and `parameters`.

    `.to_latex(index=False, escape=True)` turns it into a table for LaTeX's booktabs.
    """
    rows = [
        (layer.name, type(layer).__name__, " × ".join(map(str, layer.output.shape[1:])), layer.count_params())
        for layer in model.layers
    ]
    return pd.DataFrame(rows, columns=["layer", "type", "output shape", "parameters"])


def count_parameters(weights: Sequence[keras.Variable]) -> int:
    """Returns the number of values in a list of weights."""
    return int(sum(np.prod(weight.shape) for weight in weights))
