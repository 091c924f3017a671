import numpy as np
import tensorflow as tf

import auxiliary as aux


def pictures_of(dataset):
    return np.concatenate([pictures.numpy() for pictures, _ in dataset])


def test_batches_keep_the_order_of_the_table(prepared):
    table = aux.load_splits(prepared).val
    batches = list(aux.batches(prepared, table, batchsize=4))
    assert [pictures.shape for pictures, _ in batches] == [(4, 32, 32, 3), (4, 32, 32, 3), (2, 32, 32, 3)]
    assert np.concatenate([labels for _, labels in batches]).tolist() == table.label.tolist()
    assert batches[0][0].dtype == tf.float32 and 150 < batches[0][0].numpy().max() <= 255


def test_epochs_differ_and_runs_do_not(prepared):
    table = aux.load_splits(prepared).train
    options = {"batchsize": 16, "seed": 5}
    both = pictures_of(aux.training_batches(prepared, table, epochs=range(2), **options))
    assert len(both) == 2 * len(table)
    tf.random.set_seed(99)  # what else happens in the process must not matter
    assert np.array_equal(both, pictures_of(aux.training_batches(prepared, table, epochs=range(2), **options)))
    assert np.array_equal(
        both[len(table) :], pictures_of(aux.training_batches(prepared, table, epochs=range(1, 2), **options))
    )
    assert not np.array_equal(both[: len(table)], both[len(table) :])
    other = pictures_of(aux.training_batches(prepared, table, epochs=range(1), batchsize=16, seed=6))
    assert not np.array_equal(both[: len(table)], other)


def test_without_augmentation_an_epoch_holds_each_picture_as_it_is(prepared):
    table = aux.load_splits(prepared).train
    plain = pictures_of(aux.batches(prepared, table))
    epoch = pictures_of(aux.training_batches(prepared, table, epochs=range(1), augmented=False))
    assert not np.array_equal(plain, epoch)
    assert sorted(picture.tobytes() for picture in plain) == sorted(picture.tobytes() for picture in epoch)


def test_one_picture_is_varied_differently_in_each_epoch(prepared):
    one = aux.load_splits(prepared).train.head(1)
    views = pictures_of(aux.training_batches(prepared, one, epochs=range(6)))
    assert len({view.tobytes() for view in views}) == 6


def test_augmentation_does_what_its_strengths_say():
    grey = tf.fill((64, 64, 3), 127.5)
    means = [float(tf.reduce_mean(aux.augment(grey, [seed, 1]))) for seed in range(200)]
    change = (np.array(means) - 127.5) / 255  # contrast, saturation and hue leave plain grey as it is
    assert 0.09 < change.max() <= 0.1001 and -0.1001 <= change.min() < -0.09
    half = tf.concat([tf.zeros((64, 32, 3)), tf.fill((64, 32, 3), 255.0)], axis=1)
    varied = [aux.augment(half, [seed, 2]).numpy() for seed in range(50)]
    assert {bool(picture[:, :32].mean() > picture[:, 32:].mean()) for picture in varied} == {True, False}  # flips
    assert min(picture.min() for picture in varied) >= 0 and max(picture.max() for picture in varied) <= 255


def test_upright_pictures_are_never_turned_upside_down():
    picture = np.zeros((32, 32, 3), "float32")
    picture[:16] = 200
    for upright in (True, False):
        seeds = [aux.tf.constant([5, number]) for number in range(12)]
        varied = [aux.augment(aux.tf.constant(picture), seed, upright).numpy() for seed in seeds]
        turned = [pixels[:12].mean() < pixels[-12:].mean() for pixels in varied]
        assert any(turned) is not upright
