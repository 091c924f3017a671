"""Near-duplicates by features: crops, mirror images and images with writing, which a perceptual hash misses.

Two images are compared by the cosine similarity of their pooled MobileNetV2 features, the mirror image included.
"""

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from animals10.backbones import explained, find_backbone
from animals10.features import FrozenNetwork, cached_features, weights_sha256
from animals10.files import UserError
from animals10.images import preprocessing_contract
from animals10.input_pipeline import batches, mirror_image
from animals10.models import Transfer
from animals10.preprocessing import resize_mode
from animals10.settings import Settings

BACKBONE = "MobileNetV2"
# Chosen on inspected pairs of Animals-10 (data/animals10-pairs.csv; `make audit` prints the precision by similarity).
MIN_COSINE_SIMILARITY = 0.91
PLAIN, MIRRORED = "plain", "mirrored"
BATCH = 64  # images that pass the network at once
BLOCK = 1024  # images compared at once with all others: 110 MB for 26,179 images


def similar_pairs(settings: Settings, table: pd.DataFrame, minimum: float = MIN_COSINE_SIMILARITY) -> pd.DataFrame:
    """Finds pairs of images with similar features.

    Args:
        settings: The settings; their weights decide the features, and their workspace holds the processed images.
        table: The images, with the columns `relpath`, `sha256` and the index 0, 1, 2 …
        minimum: Smallest cosine similarity of a pair, -1 to 1.

    Returns:
        One row per pair, most similar first: `first` and `second` (positions in the table, first < second), `cosine`
        and `mirrored` (whether the mirror image of the second is the more similar one).

    Raises:
        UserError: The settings name no trained weights of the backbone, or they cannot be downloaded.
    """
    plain, mirrored = pooled_features(settings, table)
    found = []
    for start in range(0, len(plain), BLOCK):
        block = plain[start : start + BLOCK]
        similarities = block @ plain[start:].T, block @ mirrored[start:].T
        best = np.maximum(*similarities)
        rows, columns = np.nonzero(best >= minimum)
        is_pair = rows < columns  # both count from `start`
        rows, columns = rows[is_pair], columns[is_pair]
        by_mirror = similarities[1][rows, columns] > similarities[0][rows, columns]
        values = {"first": rows + start, "second": columns + start, "cosine": best[rows, columns]}
        found.append(pd.DataFrame(values | {"mirrored": by_mirror}))
    pairs = pd.concat(found)
    return pairs.sort_values(["cosine", "first", "second"], ascending=[False, True, True], ignore_index=True)


def pooled_features(settings: Settings, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pooled features of images and of their mirror images, float32 (images, 1280), of unit length.

    They are kept in the feature cache of the workspace.

    Raises:
        UserError: The settings name no trained weights of the backbone, or they cannot be downloaded.
    """
    if settings.weights == "random":
        raise UserError("The weights are random (ANIMALS10_WEIGHTS).")
    arrays = cached_pooled_features(settings, table, pooling_network(settings, BACKBONE), f"{BACKBONE}-similarity")
    return unit_length(arrays[PLAIN]), unit_length(arrays[MIRRORED])


def unit_length(features: np.ndarray) -> np.ndarray:
    """Returns the features of each image, (images, features), at unit length."""
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def cached_pooled_features(
    settings: Settings, table: pd.DataFrame, outputs: keras.Model, title: str, views: Sequence[str] = (PLAIN, MIRRORED)
) -> dict[str, np.ndarray]:
    """Returns the pooled features of images of the workspace by view, float32 (images, …), from the feature cache.

    Args:
        settings: The settings; their workspace holds the processed images.
        table: The images, with the columns `relpath` and `sha256`.
        outputs: What `pooling_network` returned.
        title: The beginning of the cache's name.
        views: `plain` for the image as it is, `mirrored` for its mirror image.
    """
    images = hashlib.sha256(os.fsencode(repr([*zip(table.relpath, table.sha256, strict=True)]))).hexdigest()
    key = {"images": images, "image_size": settings.image_size, "weights_sha256": weights_sha256(outputs.layers)}
    key |= {"preprocessing": preprocessing_contract(resize_mode(settings))}
    key |= {"tensorflow": tf.__version__, "keras": keras.__version__}
    shape, n = outputs.output.shape[1:], len(table)
    network = FrozenNetwork(outputs)

    def compute(start: int, stop: int) -> Iterator[list[np.ndarray]]:
        rows = table.iloc[start:stop].assign(label=0)
        for pixels, _ in batches(settings, rows, BATCH):
            yield [np.asarray(network(mirror_image(pixels) if view == MIRRORED else pixels)[0]) for view in views]

    arrays = cached_features(settings, title, key, dict.fromkeys(views, shape), "float32", n, BATCH, compute)
    return {view: np.asarray(array) for view, array in arrays.items()}


def pooling_network(settings: Settings, backbone: str) -> keras.Model:
    """Returns a network from pixels, (n, size, size, 3), to the pooled features of a backbone, (n, features).

    Raises:
        UserError: There is no such backbone, or its weights are missing or cannot be downloaded.
    """
    find_backbone(backbone)
    weights: str | None = settings.weights
    if weights == "random":
        keras.utils.set_random_seed(settings.seed)
        weights = None
    elif weights != "imagenet":
        path = Path(settings.weights) / f"{backbone}.weights.h5"
        if not path.exists():
            raise UserError(f"There is no {path} (ANIMALS10_WEIGHTS).")
        weights = str(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`input_shape` is undefined or non-square")  # the weights fit any size
            model = Transfer(backbone).build(2, settings.image_size, weights)
    except Exception as error:
        raise explained(error, backbone) from None
    return keras.Model(model.input, model.get_layer("pooled").output)
