"""Batches of processed images for training and evaluation, as `tf.data` pipelines.

Order and augmentation depend on the seed, the epoch and the row of the table alone, so that every run is repeatable.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import tensorflow as tf

from animals10.augmentation import Augmentation, Mix, augment
from animals10.files import UserError, display_path
from animals10.settings import Settings


def batches(settings: Settings, table: pd.DataFrame, batch_size: int = 32) -> tf.data.Dataset:
    """Returns the images of a table in its order.

    Args:
        settings: The settings; their workspace holds the processed images.
        table: Images, with the columns `relpath` and `label`.
        batch_size: Images per batch; the last batch may be smaller.

    Returns:
        Batches of pixels, float32 (n, size, size, 3), 0 to 255, and labels, int32 (n,).
    """
    dataset = tf.data.Dataset.from_tensor_slices(_paths_and_labels(settings, table))
    dataset = dataset.map(
        lambda path, label: _read(path, label, settings.image_size), num_parallel_calls=os.cpu_count()
    )
    return without_autotune(dataset.batch(batch_size))


def training_batches(
    settings: Settings,
    table: pd.DataFrame,
    epochs: range,
    *,
    batch_size: int = 32,
    augmentation: Augmentation | None = Augmentation(),  # noqa: B008 - it is immutable
    seed: int = 5,
) -> tf.data.Dataset:
    """Returns the images of all epochs, one epoch after the other, shuffled and augmented anew in each.

    File names are shuffled, not pixels: memory does not grow with the number of images.

    Args:
        settings: The settings.
        table: Training images, as for `batches`.
        epochs: Numbers of the epochs, from 0.
        batch_size: Images per batch; the last batch of an epoch may be smaller.
        augmentation: The random changes; None for none.
        seed: Of order and augmentation.

    Returns:
        Batches as `batches` gives them; `ceil(len(table) / batch_size)` per epoch.
    """
    paths, labels = _paths_and_labels(settings, table)

    def epoch_dataset(epoch: tf.Tensor) -> tf.data.Dataset:
        key, order = shuffled_order(len(table), seed, epoch)

        def load(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            image, label = _read(tf.gather(paths, index), tf.gather(labels, index), settings.image_size)
            return (augment(image, tf.random.fold_in(key, index), augmentation) if augmentation else image), label

        dataset = tf.data.Dataset.from_tensor_slices(order).map(load, num_parallel_calls=os.cpu_count())
        return dataset.batch(batch_size)

    return without_autotune(tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(epoch_dataset))


def view_batches(
    settings: Settings,
    table: pd.DataFrame,
    views: int,
    augmentation: Augmentation | None,
    start: int = 0,
    stop: int | None = None,
    batch_size: int = 32,
    by_image: bool = False,
) -> tf.data.Dataset:
    """Returns augmented views for the feature cache: all images in a first view, then all in a second, and so on.

    A view depends on the settings' seed, its number and the row of the table alone.

    Args:
        settings: The settings.
        table: Images, as for `batches`.
        views: Views of each image.
        augmentation: The random changes; None for none.
        start: Position in the list of views × images at which to begin.
        stop: Position before which to end; None for all.
        batch_size: Images per batch.
        by_image: Whether a view depends on the image (its column `sha256`) instead of its row.

    Returns:
        Batches as `batches` gives them.
    """
    paths, labels = _paths_and_labels(settings, table)
    numbers = np.array([int(name[:15], 16) for name in table.sha256]) if by_image else np.arange(len(table))

    def load(row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        view, index = row // len(table), row % len(table)
        image, label = _read(tf.gather(paths, index), tf.gather(labels, index), settings.image_size)
        number = tf.gather(tf.constant(numbers, tf.int64), index)
        key = tf.random.fold_in(tf.random.fold_in(tf.constant([settings.seed, 1], tf.int64), view), number)
        return (augment(image, key, augmentation) if augmentation else image), label

    last = views * len(table) if stop is None else stop
    dataset = tf.data.Dataset.range(start, last).map(load, num_parallel_calls=os.cpu_count())
    return without_autotune(dataset.batch(batch_size))


def mixed_batches(dataset: tf.data.Dataset, n_classes: int, mix: Mix, seed: int, first_step: int) -> tf.data.Dataset:
    """Returns training batches whose images or features are mixed with others of the same batch.

    How a batch is mixed depends on the seed and the number of its training step alone.

    Args:
        dataset: Batches of values, float32 (n, …), and labels, int32 (n,).
        n_classes: Number of classes.
        mix: See `augmentation.mixing`.
        seed: Of the random numbers.
        first_step: The number of the first batch, from 0, counted over all epochs.

    Returns:
        Batches of mixed values, float32 (n, …), and the shares of the classes, float32 (n, classes).
    """

    def mixed(step: tf.Tensor, batch: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        values, labels = batch
        key = tf.random.fold_in(tf.constant([seed, 2], tf.int64), step)
        return mix(key, values, tf.one_hot(labels, n_classes))

    return without_autotune(dataset.enumerate(first_step).map(mixed))


def shuffled_order(n: int, seed: int, epoch: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns an epoch's key for random numbers, int64 (2,), and its order of n images, int32 (n,)."""
    # Stateless throughout: a seeded `Dataset.shuffle` would depend on TensorFlow's global seed as well.
    key = tf.random.fold_in(tf.constant([seed, 0], tf.int64), tf.cast(epoch, tf.int64))
    return key, tf.random.experimental.stateless_shuffle(tf.range(n), key)


def mirror_image(pixels: tf.Tensor) -> tf.Tensor:
    """Returns images flipped from left to right, (n, height, width, 3)."""
    return tf.reverse(pixels, [2])


def without_autotune(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Returns a dataset that prepares two batches ahead and does not tune itself.

    An iterator that tunes itself takes up to seconds to close, because its tuning thread has to end first.
    """
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)


@contextmanager
def damaged_images_named(settings: Settings, *tables: pd.DataFrame) -> Iterator[None]:
    """Says which image it was if TensorFlow could not read one; its own message does not name the file.

    Args:
        settings: The settings; their workspace holds the processed images.
        tables: The images that are read in the block, with the column `relpath`.

    Raises:
        UserError: An image is missing or damaged. Other errors pass through.
    """
    try:
        yield
    except tf.errors.OpError:
        for relpath in dict.fromkeys(relpath for table in tables for relpath in table.relpath):
            path = settings.data / "processed" / relpath
            try:
                _read(os.fsencode(path), 0, settings.image_size)
            except (tf.errors.OpError, ValueError):  # a ValueError if it has another size
                found = f"{display_path(path)} is missing or damaged"
                raise UserError(f"{found}: run 01-preprocessing.ipynb again, which makes it anew.") from None
        raise


def _paths_and_labels(settings: Settings, table: pd.DataFrame) -> tuple[tf.Tensor, tf.Tensor]:
    paths = [os.fsencode(settings.data / "processed" / relpath) for relpath in table.relpath]
    return tf.constant(paths), tf.constant(table.label, tf.int32)


def _read(path: tf.Tensor, label: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    # The accurate method is the one that gives the same pixels on every machine.
    image = tf.image.decode_jpeg(tf.io.read_file(path), channels=3, dct_method="INTEGER_ACCURATE")
    return tf.ensure_shape(tf.cast(image, tf.float32), (size, size, 3)), label
