"""The data of one run: pixels for a whole network, or cached features for its trained part."""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from animals10.augmentation import AUGMENTATION_VERSION, Augmentation, mixing
from animals10.environment import numeric_device
from animals10.experiments import Experiment, Training
from animals10.features import FrozenNetwork, cached_features, feature_batches, weights_sha256
from animals10.files import UserError
from animals10.frozen_backbones import trained_part
from animals10.images import preprocessing_contract
from animals10.input_pipeline import (
    batches,
    mirror_image,
    mixed_batches,
    shuffled_order,
    training_batches,
    view_batches,
)
from animals10.models import FeatureLayers, feature_layers_of, frozen_dropouts, network_config
from animals10.preprocessing import resize_mode
from animals10.settings import Settings
from animals10.shards import ShardedArray
from animals10.splits import Splits
from animals10.stochastic_depth import with_stochastic_depth

BATCH = 32  # images that pass the frozen layers at once


@dataclass(frozen=True, eq=False)
class SharedImages:
    """Images whose features are cached for several workspaces at once, such as the folds of a cross-validation.

    A feature then belongs to an image, whatever table it stands in: no image passes the frozen layers twice.

    Attributes:
        settings: Their workspace holds the processed images and the feature cache.
        table: The images, each once.
    """

    settings: Settings
    table: pd.DataFrame


@dataclass(frozen=True)
class PreparedData:
    """What `fit` trains, and the data that it is given.

    Attributes:
        model: The whole network, which takes pixels, or its trained part, which takes cached features. It shares its
            layers with the whole network.
        training: Gives the training batches from an epoch (from 0) on. Labels of training and validation are int32
            (n,), or float32 (n, classes) where the training configuration mixes images.
        validation: The validation batches.
        test: The test batches; None where features are in 16-bit precision, in which none is evaluated.
        steps: Training steps per epoch.
        frozen_dropouts: Dropout layers that stay inactive in training, because nothing before them is trained.
        is_step_cheap: Whether a step takes less time than Python needs between two steps.
    """

    model: keras.Model
    training: Callable[[int], tf.data.Dataset]
    validation: tf.data.Dataset
    test: tf.data.Dataset | None
    steps: int
    frozen_dropouts: tuple[keras.layers.Dropout, ...] = ()
    is_step_cheap: bool = False


def prepare_data(
    settings: Settings,
    splits: Splits,
    experiment: Experiment,
    model: keras.Model,
    table: pd.DataFrame,
    context: Mapping[str, Any],
    cached: pd.DataFrame | None = None,
    shared: SharedImages | None = None,
    float32_model: keras.Model | None = None,
) -> PreparedData:
    """Prepares training, validation and test data; computes the features that are not cached yet.

    Args:
        settings: The settings.
        splits: The data.
        experiment: The experiment.
        model: Its model, with layers frozen as they will be in training.
        table: The resampled training set.
        context: The resolved settings.
        cached: The images whose features are cached, if they are more than those of `table`.
        shared: The images whose features other workspaces share, if they do: all of the splits are among them.
        float32_model: The model in float32, if the other one is in 16-bit precision. It computes the features where
            that is faster.

    Raises:
        UserError: The training configuration asks for what the trained layers or the feature cache do not allow.
    """
    training, steps = experiment.training, -(-len(table) // experiment.training.batch_size)
    frozen, last = frozen_dropouts(experiment.model, model), context["maximum_epochs"]
    layers = feature_layers_of(experiment.model, model) if context["feature_cache"] != "off" else None
    part = trained_part(model, layers) if layers else model
    if training.stochastic_depth:
        part = with_stochastic_depth(part, model, training.stochastic_depth, context["seed"])
    if training.cutmix and len(part.input.shape) != 4:
        advice = "use mixup, set ANIMALS10_FEATURE_CACHE=off, or unfreeze layers"
        raise UserError(
            f"{experiment.id}: CutMix mixes parts of images, and cached pooled features have none: {advice}."
        )
    if layers:
        given = model, layers, context
        if float32_model is not None and "frozen_precision" in context:
            float32_layers = feature_layers_of(experiment.model, float32_model)
            assert float32_layers, "the same network has feature layers in either precision"
            given = float32_model, float32_layers, {**context, "precision": context["frozen_precision"]}
        features = FeatureCache(settings, experiment, *given, shared)
        data = features.training_batches(table, training, context, table if cached is None else cached)
        # In 16-bit precision, test images pass the float32 model alone.
        test = features.evaluation_batches(splits.test, "test") if context["precision"] == "float32" else None
        parts = features.evaluation_batches(splits.val, "val"), test
        prepared = PreparedData(part, data, *parts, steps, frozen, is_step_cheap=layers.start == "pooled")
    else:
        options = {"batch_size": training.batch_size, "augmentation": training.augmentation, "seed": context["seed"]}
        data = lambda epoch: training_batches(settings, table, range(epoch, last), **options)  # noqa: E731
        parts = batches(settings, splits.val), batches(settings, splits.test)
        prepared = PreparedData(part, data, *parts, steps, frozen)
    return _mixed(prepared, training, len(splits.class_names), context["seed"]) if training.mixes else prepared


def _mixed(data: PreparedData, training: Training, n_classes: int, seed: int) -> PreparedData:
    """Returns the data with mixed training batches, and with the labels of training and validation as shares."""
    mix = mixing(training.mixup, training.cutmix)
    return replace(
        data,
        training=lambda epoch: mixed_batches(data.training(epoch), n_classes, mix, seed, epoch * data.steps),
        validation=data.validation.map(lambda values, labels: (values, tf.one_hot(labels, n_classes))),
    )


def evaluation_data(
    settings: Settings,
    experiment: Experiment,
    model: keras.Model,
    context: Mapping[str, Any],
    part: pd.DataFrame,
    name: str,
    mirrored: bool = False,
    shared: SharedImages | None = None,
) -> tuple[keras.Model, tf.data.Dataset]:
    """Returns what predicts the images of a table, and the batches to give it: cached features, or else pixels.

    Args:
        settings: The settings.
        experiment: The experiment.
        model: Its trained model.
        context: The resolved settings.
        part: The table.
        name: Its name, for people.
        mirrored: Whether the batches are of the mirror images.
        shared: The images whose features other workspaces share.
    """
    layers = feature_layers_of(experiment.model, model) if context["feature_cache"] != "off" else None
    if layers:
        features = FeatureCache(settings, experiment, model, layers, context, shared)
        dataset = features.evaluation_batches(part, name, mirrored)
        return trained_part(model, layers), dataset
    dataset = batches(settings, part)
    return model, dataset.map(lambda pixels, labels: (mirror_image(pixels), labels)) if mirrored else dataset


class FeatureCache:
    """The cached features of one network: what its frozen layers compute for each image, kept on disk."""

    def __init__(
        self,
        settings: Settings,
        experiment: Experiment,
        model: keras.Model,
        layers: FeatureLayers,
        context: Mapping[str, Any],
        shared: SharedImages | None = None,
    ):
        """Takes a network, the layers whose outputs are cached, and the images that other workspaces share."""
        self.settings, self.model, self.layers = shared.settings if shared else settings, model, layers
        self.shared = shared.table if shared else None
        self.title = getattr(experiment.model, "backbone", type(experiment.model).__name__)
        frozen = keras.Model(model.input, list(layers.outputs.values()))
        self.network = FrozenNetwork(frozen)
        config = json.dumps(network_config(frozen, trainable=False), sort_keys=True)
        self.key = {"network": self.title, "image_size": context["image_size"], "device": numeric_device()}
        self.key |= {"preprocessing": preprocessing_contract(resize_mode(settings))}
        self.key |= {"weights_sha256": weights_sha256(frozen.layers)}
        self.key |= {"config_sha256": hashlib.sha256(config.encode()).hexdigest(), "outputs": list(layers.outputs)}
        self.key |= {"precision": context["precision"]}
        self.key |= {"tensorflow": tf.__version__, "keras": keras.__version__}

    def features(
        self,
        part: pd.DataFrame,
        name: str,
        dtype: str,
        views: int = 1,
        augmentation: Augmentation | None = None,
        mirrored: bool = False,
    ) -> ShardedArray:
        """Returns the features of the images of a table, (views × images, …), computing what is not cached."""
        by_image, settings, network = self.shared is not None, self.settings, self.network

        def compute(start: int, stop: int) -> Iterator[list[np.ndarray]]:  # also on other machines: without `self`
            for pixels, _ in view_batches(settings, part, views, augmentation, start, stop, BATCH, by_image):
                pixels = mirror_image(pixels) if mirrored else pixels
                yield [tf.cast(array, dtype).numpy() for array in network(pixels)]  # NumPy casts slowly

        images = hashlib.sha256(os.fsencode(repr([*zip(part.relpath, part.sha256, strict=True)]))).hexdigest()
        key = self.key | {"images": images, "views": views, "seed": self.settings.seed if augmentation else None}
        key["augmentation"] = _augmentation_key(augmentation) if augmentation else None
        key |= ({"views_of": "images"} if by_image and augmentation else {}) | ({"mirrored": True} if mirrored else {})
        shapes = {name: tensor.shape[1:] for name, tensor in self.layers.outputs.items()}
        given = f"{self.title}-{name}", key, shapes, dtype, views * len(part), BATCH, compute
        return cached_features(settings, *given)[self.layers.start]

    def evaluation_batches(self, part: pd.DataFrame, name: str, mirrored: bool = False) -> tf.data.Dataset:
        """Returns the features of a table in its order, with labels: what is measured on them holds for the model.

        Args:
            part: The table.
            name: Its name, for people.
            mirrored: Whether to return the features of the mirror images.
        """
        table, name = (part, name) if self.shared is None else (self.shared, "images")
        rows, features = _positions(part, table), self.features(table, name, "float32", mirrored=mirrored)
        dataset = feature_batches(features, table.label.to_numpy("int32"), lambda: [rows])
        return dataset.apply(tf.data.experimental.assert_cardinality(-(-len(part) // 32)))  # which `fit` asks for

    def training_batches(
        self, table: pd.DataFrame, training: Training, context: Mapping[str, Any], cached: pd.DataFrame
    ) -> Callable[[int], tf.data.Dataset]:
        """Returns the training batches from an epoch on; repeated images share their features."""
        views, last = context["views"] or 1, context["maximum_epochs"]
        distinct = cached.drop_duplicates("relpath", ignore_index=True) if self.shared is None else self.shared
        position, labels = _positions(table, distinct), distinct.label.to_numpy("int32")
        features: np.ndarray | ShardedArray = np.empty(0)
        if last and self.shared is not None and not training.augmentation:  # the features of evaluation serve as well
            features = self.features(distinct, "images", "float32")
        elif last:  # else nothing is trained
            features = self.features(distinct, "train", context["feature_cache"], views, training.augmentation)

        def rows_of(epoch: int) -> np.ndarray:
            order = shuffled_order(len(table), context["seed"], epoch)[1].numpy()
            return epoch % views * len(distinct) + position[order]

        return lambda first: feature_batches(
            features, labels, lambda: map(rows_of, range(first, last)), training.batch_size
        )


def _positions(part: pd.DataFrame, table: pd.DataFrame) -> np.ndarray:
    """Returns the position of each image of a table in another one, which holds each image once."""
    return pd.Series(np.arange(len(table)), table.relpath)[part.relpath].to_numpy()


def _augmentation_key(augmentation: Augmentation) -> dict[str, Any]:
    """Returns what features depend on; fields that are off by default and not used leave earlier caches valid."""
    used = [column for column in fields(augmentation) if column.default or getattr(augmentation, column.name)]
    return {column.name: getattr(augmentation, column.name) for column in used} | {"version": AUGMENTATION_VERSION}
