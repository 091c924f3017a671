"""Augmentation of training images: random changes of one image, and mixtures of the images of a batch.

To add an augmentation, give `Augmentation` a field whose default switches it off, and apply it in `augment`. Raise
`AUGMENTATION_VERSION` when images of unchanged fields come out differently.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import keras
import tensorflow as tf

from animals10.files import UserError
from animals10.values import check_values, plain_number

AUGMENTATION_VERSION = 1  # part of each run's identity


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the random changes, on pixels from 0 to 1. The defaults are those of the original study.

    RandAugment and random erasing come after the other changes.

    Attributes:
        brightness: Largest value that is added to all pixels or subtracted from them.
        contrast: Range of the factor by which pixels move away from their mean.
        saturation: Range of the factor by which saturation is multiplied.
        hue: Largest shift of the hue, as a fraction of the colour circle.
        crop: Range of the fraction of each edge that a random crop keeps; the crop is resized to the full image.
        horizontal_flip: Whether half of the images are flipped from left to right.
        vertical_flip: Whether half of the images are flipped from top to bottom.
        rand_augment: Strength of RandAugment, 0 to 1; 0 for none (E. D. Cubuk et al., arXiv:1909.13719). Two operations
            are drawn for each image, such as shear, rotation or contrast, with strengths up to this one.
        erasing: Probability that a rectangle of 2 to 33 % of the image becomes grey (Z. Zhong et al.,
            arXiv:1708.04896).

    Raises:
        UserError: A value is not allowed.
    """

    brightness: float = 0.1
    contrast: tuple[float, float] = (0.8, 1.2)
    saturation: tuple[float, float] = (0.8, 1.2)
    hue: float = 0.02
    crop: tuple[float, float] = (0.85, 1.0)
    horizontal_flip: bool = True
    vertical_flip: bool = True
    rand_augment: float = 0.0
    erasing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "hue", "rand_augment", "erasing"):
            object.__setattr__(self, name, plain_number(f"Augmentation: {name}", getattr(self, name)))
        for name in ("contrast", "saturation", "crop"):
            if not isinstance(pair := getattr(self, name), (tuple, list)) or len(pair) != 2:
                raise UserError(f"Augmentation: {name} is {pair!r}; allowed are two numbers, the smaller one first.")
            numbers = tuple(plain_number(f"Augmentation: {name}", number) for number in pair)
            object.__setattr__(self, name, numbers)
        check_values(
            self,
            {
                "brightness": (0 <= self.brightness <= 1, "a number from 0 to 1"),
                "contrast": (0 <= self.contrast[0] <= self.contrast[1], "two numbers from 0, the smaller one first"),
                "saturation": (0 <= self.saturation[0] <= self.saturation[1], "two numbers from 0, the smaller first"),
                "hue": (0 <= self.hue <= 0.5, "a number from 0 to 0.5"),
                "crop": (0 < self.crop[0] <= self.crop[1] <= 1, "two numbers above 0 and up to 1, the smaller first"),
                "horizontal_flip": (self.horizontal_flip in (True, False), "True or False"),
                "vertical_flip": (self.vertical_flip in (True, False), "True or False"),
                "rand_augment": (0 <= self.rand_augment <= 1, "a number from 0 to 1"),
                "erasing": (0 <= self.erasing <= 1, "a probability, from 0 to 1"),
            },
        )


def augment(image: tf.Tensor, seed: tf.Tensor, augmentation: Augmentation) -> tf.Tensor:
    """Returns an image with random changes that depend on the seed alone.

    Args:
        image: float32, (size, size, 3), 0 to 255.
        seed: int, (2,).
        augmentation: The strengths.

    Returns:
        float32, (size, size, 3), 0 to 255.
    """
    # Each change has a seed of its own, used or not: to switch one off leaves the others as they are.
    seeds = tf.unstack(tf.random.split(seed, 8))
    size = image.shape[0]
    scale = tf.random.stateless_uniform([], seeds[0], *augmentation.crop)
    edge = tf.cast(tf.round(scale * size), tf.int32)
    image = tf.image.stateless_random_crop(image / 255, [edge, edge, 3], seeds[1])
    image = tf.image.resize(image, [size, size])
    if augmentation.horizontal_flip:
        image = tf.image.stateless_random_flip_left_right(image, seeds[2])
    if augmentation.vertical_flip:
        image = tf.image.stateless_random_flip_up_down(image, seeds[3])
    image = tf.image.stateless_random_hue(image, augmentation.hue, seeds[4])
    # `stateless_random_contrast` refuses a range of one number.
    image = tf.image.adjust_saturation(image, tf.random.stateless_uniform([], seeds[5], *augmentation.saturation))
    image = tf.image.adjust_contrast(image, tf.random.stateless_uniform([], seeds[6], *augmentation.contrast))
    image = tf.image.stateless_random_brightness(image, augmentation.brightness, seeds[7])
    image = 255 * tf.clip_by_value(image, 0, 1)
    if augmentation.rand_augment:
        image = _rand_augment(image, KeySeeds(tf.random.fold_in(seed, 8)), augmentation.rand_augment)
    if augmentation.erasing:
        image = _applied(_erasing(augmentation.erasing), image, KeySeeds(tf.random.fold_in(seed, 9)))
    return image


class KeySeeds(keras.random.SeedGenerator):
    """Seeds that a key alone decides, for Keras's layers: their own generators have a state that no run resumes."""

    def __init__(self, key: tf.Tensor):
        """Takes a key, int (2,)."""
        self.key, self.drawn = key, 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        """Returns the next seed, int (2,)."""
        self.drawn += 1
        return tf.random.fold_in(self.key, self.drawn)


def _rand_augment(image: tf.Tensor, seeds: KeySeeds, strength: float) -> tf.Tensor:
    layers = _rand_augment_layers(strength)
    for _ in range(2):
        chosen = keras.random.randint((), 0, len(layers), seed=seeds)
        key = seeds.next()
        image = tf.switch_case(chosen, [partial(_applied, layer, image, KeySeeds(key)) for layer in layers])
    return image


def _applied(layer: keras.Layer, image: tf.Tensor, seeds: KeySeeds) -> tf.Tensor:
    """Applies one of Keras's layers to one image, (size, size, 3), 0 to 255."""
    batch = image[None]
    changed = layer.transform_images(batch, layer.get_random_transformation(batch, seed=seeds))[0]
    return tf.ensure_shape(tf.clip_by_value(changed, 0, 255), image.shape)


# `seed` keeps the layers from drawing one from Python's generator, which other parts of a run share. float32 also where
# the network computes in float16.
_KERAS: dict[str, Any] = {"seed": 0, "dtype": "float32"}


@lru_cache
def _rand_augment_layers(strength: float) -> tuple[keras.Layer, ...]:
    """Returns the operations of RandAugment, with torchvision's ranges, of which `strength` is a part.

    `keras.layers.RandAugment` holds the same layers, but a weak one posterises more than a strong one, rotates by up to
    half a turn, and runs every layer for every image.
    """
    layers, part = keras.layers, 0.9 * strength
    with tf.init_scope():
        return (
            layers.RandomShear(0.3 * strength, 0.0, **_KERAS),
            layers.RandomShear(0.0, 0.3 * strength, **_KERAS),
            layers.RandomTranslation(0.0, 0.45 * strength, **_KERAS),
            layers.RandomTranslation(0.45 * strength, 0.0, **_KERAS),
            layers.RandomRotation(strength * 30 / 360, **_KERAS),
            layers.RandomBrightness(0.4 * strength, **_KERAS),
            layers.RandomColorDegeneration(part, **_KERAS),
            layers.RandomContrast((part, part), **_KERAS),
            layers.RandomSharpness((0.5 - part / 2, 0.5 + part / 2), **_KERAS),
            layers.RandomPosterization((8 - round(4 * strength), 8), **_KERAS),
            layers.AutoContrast(dtype="float32"),
            layers.Equalization(dtype="float32"),
        )


@lru_cache
def _erasing(probability: float) -> keras.Layer:
    with tf.init_scope():
        return keras.layers.RandomErasing((probability, probability), fill_value=127.5, **_KERAS)


# ── Mixtures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


Mix = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


def mixing(mixup: float, cutmix: float) -> Mix:
    """Returns a function that mixes each image of a batch, or its features, with another one of the batch.

    Args:
        mixup: Alpha of MixUp's beta distribution; 0 for none.
        cutmix: Alpha of CutMix's beta distribution; 0 for none. With both, each batch takes one of them at random.

    Returns:
        A function of a key, int (2,), values, float32 (n, …), and labels, float32 (n, classes), that returns mixed
        values and labels. CutMix needs values of shape (n, height, width, channels).
    """
    layers: list[Any] = [keras.layers.MixUp(mixup, **_KERAS)] if mixup else []
    layers += [keras.layers.CutMix((cutmix, cutmix), **_KERAS)] if cutmix else []

    def mixed(layer: Any, seeds: KeySeeds, values: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # Keras's layers expect images.
        images = values if len(values.shape) == 4 else tf.reshape(values, (tf.shape(values)[0], 1, 1, -1))
        change = layer.get_random_transformation(images, seed=seeds)
        if "batch_masks" in change:  # the share in whole pixels, which matters in small feature maps
            change["mix_weight"] = 1 - tf.reduce_mean(tf.cast(change["batch_masks"], tf.float32), (1, 2, 3))
        images = tf.reshape(layer.transform_images(images, change), tf.shape(values))
        return tf.ensure_shape(images, values.shape), layer.transform_labels(labels, change)

    def mix(key: tf.Tensor, values: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        chosen = keras.random.randint((), 0, len(layers), seed=KeySeeds(key))
        seeds = tf.random.fold_in(key, 0)
        return tf.switch_case(chosen, [partial(mixed, layer, KeySeeds(seeds), values, labels) for layer in layers])

    return mix
