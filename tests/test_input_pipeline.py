import numpy as np
import pytest
import tensorflow as tf

import auxiliary as aux
from animals10.augmentation import augment


def images_of(dataset):
    return np.concatenate([images.numpy() for images, _ in dataset])


def test_batches_keep_the_order_of_the_table(prepared):
    table = aux.load_splits(prepared).val
    batches = list(aux.batches(prepared, table, batch_size=4))
    assert [images.shape for images, _ in batches] == [(4, 32, 32, 3), (4, 32, 32, 3), (2, 32, 32, 3)]
    assert np.concatenate([labels for _, labels in batches]).tolist() == table.label.tolist()
    assert batches[0][0].dtype == tf.float32 and 150 < batches[0][0].numpy().max() <= 255


def test_epochs_differ_and_runs_do_not(prepared):
    table = aux.load_splits(prepared).train
    options = {"batch_size": 16, "seed": 5}
    both = images_of(aux.training_batches(prepared, table, epochs=range(2), **options))
    assert len(both) == 2 * len(table)
    tf.random.set_seed(99)  # what else happens in the process must not matter
    assert np.array_equal(both, images_of(aux.training_batches(prepared, table, epochs=range(2), **options)))
    second = images_of(aux.training_batches(prepared, table, epochs=range(1, 2), **options))
    assert np.array_equal(both[len(table) :], second)
    assert not np.array_equal(both[: len(table)], both[len(table) :])
    other = images_of(aux.training_batches(prepared, table, epochs=range(1), batch_size=16, seed=6))
    assert not np.array_equal(both[: len(table)], other)


def test_without_augmentation_an_epoch_holds_each_image_unchanged(prepared):
    table = aux.load_splits(prepared).train
    plain = images_of(aux.batches(prepared, table))
    epoch = images_of(aux.training_batches(prepared, table, epochs=range(1), augmentation=None))
    assert not np.array_equal(plain, epoch)
    assert sorted(image.tobytes() for image in plain) == sorted(image.tobytes() for image in epoch)


def test_one_image_is_augmented_differently_in_each_epoch(prepared):
    one = aux.load_splits(prepared).train.head(1)
    views = images_of(aux.training_batches(prepared, one, epochs=range(6)))
    assert len({view.tobytes() for view in views}) == 6


def test_training_names_the_image_that_it_cannot_read_and_01_repairs_it(prepared):
    experiment = aux.Experiment("tiny", aux.CNN((4,), (4,), (4,), (0.0,)), aux.Training(1e-2, epochs=1))
    relpath = aux.load_splits(prepared).val.relpath[5]
    image = prepared.data / "processed" / relpath
    image.write_bytes(image.read_bytes()[:-99])
    with pytest.raises(aux.UserError, match=rf"{relpath} is missing or damaged: run 01-preprocessing.ipynb again"):
        aux.train(prepared, experiment)
    aux.resize_images(prepared, aux.scan_images(prepared))
    assert aux.train(prepared, experiment).path


def test_augmentation_has_the_strengths_of_its_fields():
    standard, grey = aux.Augmentation(), tf.fill((64, 64, 3), 127.5)
    means = [float(tf.reduce_mean(augment(grey, [seed, 1], standard))) for seed in range(200)]
    change = (np.array(means) - 127.5) / 255  # contrast, saturation and hue leave uniform grey unchanged
    assert 0.09 < change.max() <= 0.1001 and -0.1001 <= change.min() < -0.09
    still = augment(grey, [3, 1], aux.Augmentation(brightness=0.0)).numpy()
    assert np.allclose(still, 127.5, atol=0.01)
    half = tf.concat([tf.zeros((64, 32, 3)), tf.fill((64, 32, 3), 255.0)], axis=1)
    images = [augment(half, [seed, 2], standard).numpy() for seed in range(50)]
    assert {bool(image[:, :32].mean() > image[:, 32:].mean()) for image in images} == {True, False}  # flips
    assert min(image.min() for image in images) >= 0 and max(image.max() for image in images) <= 255


def test_a_flip_that_is_switched_off_never_happens():
    image = np.zeros((32, 32, 3), "float32")
    image[:16] = 200
    for vertical in (True, False):
        augmentation = aux.Augmentation(vertical_flip=vertical)
        images = [augment(tf.constant(image), tf.constant([5, seed]), augmentation).numpy() for seed in range(12)]
        assert any(pixels[:12].mean() < pixels[-12:].mean() for pixels in images) is vertical
