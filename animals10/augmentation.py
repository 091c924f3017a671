"""Augmentation of training images: random changes that leave the label as it is.

To add an augmentation, give `Augmentation` a field whose default switches it off, and apply it in `augment`. Raise
`AUGMENTATION_VERSION` when images of unchanged fields come out differently.
"""

from dataclasses import dataclass

import tensorflow as tf

from animals10.files import UserError

AUGMENTATION_VERSION = 1  # part of each run's identity


@dataclass(frozen=True)
class Augmentation:
    """Strengths of the random changes, on pixels from 0 to 1. The defaults are those of the original study.

    Attributes:
        brightness: Largest value that is added to all pixels or subtracted from them.
        contrast: Range of the factor by which pixels move away from their mean.
        saturation: Range of the factor by which saturation is multiplied.
        hue: Largest shift of the hue, as a fraction of the colour circle.
        crop: Range of the fraction of each edge that a random crop keeps; the crop is resized to the full image.
        horizontal_flip: Whether half of the images are flipped from left to right.
        vertical_flip: Whether half of the images are flipped from top to bottom.

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

    def __post_init__(self) -> None:
        allowed = {
            "brightness": (0 <= self.brightness <= 1, "a number from 0 to 1"),
            "contrast": (0 <= self.contrast[0] <= self.contrast[1], "two numbers from 0, the smaller one first"),
            "saturation": (0 <= self.saturation[0] <= self.saturation[1], "two numbers from 0, the smaller one first"),
            "hue": (0 <= self.hue <= 0.5, "a number from 0 to 0.5"),
            "crop": (0 < self.crop[0] <= self.crop[1] <= 1, "two numbers above 0 and up to 1, the smaller one first"),
        }
        for name, (is_valid, expected) in allowed.items():
            if not is_valid:
                raise UserError(f"Augmentation: {name} is {getattr(self, name)!r}; allowed is {expected}.")


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
    image = tf.image.stateless_random_saturation(image, *augmentation.saturation, seeds[5])
    image = tf.image.stateless_random_contrast(image, *augmentation.contrast, seeds[6])
    image = tf.image.stateless_random_brightness(image, augmentation.brightness, seeds[7])
    return 255 * tf.clip_by_value(image, 0, 1)
