"""Augmentation and regularisation: each value changes what is trained, is repeatable, and works on cached features."""

import dataclasses
from contextlib import contextmanager

import keras
import numpy as np
import pytest
import tensorflow as tf

import auxiliary as aux
from animals10.augmentation import augment, mixing
from animals10.callbacks import ResumableEarlyStopping
from animals10.compilation import compile_model
from animals10.data_preparation import _augmentation_key
from animals10.files import atomic_write
from animals10.stochastic_depth import trained_branches, with_stochastic_depth

PLAIN = aux.Training(1e-2, 2, batch_size=8, augmentation=None)
CNN = aux.CNN((4,), (8,), (8,))
HEAD = aux.Transfer("MobileNetV2", (8,))
STILL = aux.Augmentation(0.0, (1, 1), (1, 1), 0.0, (1, 1), horizontal_flip=False, vertical_flip=False)
STRONG = aux.Augmentation(rand_augment=0.7, erasing=0.5)
CUTMIX = {"mixup": 0.4, "cutmix": 1.0, "class_balance": "none", "class_weights": True, "label_smoothing": 0.1}


def photograph(size=64):
    """Returns pixels with edges and colours, (size, size, 3), 0 to 255."""
    ramp = np.linspace(0, 255, size)
    return tf.constant(np.stack([*np.meshgrid(ramp, ramp), np.full((size, size), 90.0)], axis=-1), tf.float32)


def key(number):
    return tf.constant([5, number], tf.int64)


@contextmanager
def killed_after_writing(path):
    with atomic_write(path) as temporary:
        yield temporary
    raise KeyboardInterrupt


# ── Each value in a training ──────────────────────────────────────────────────────────────────────────────────────────


@dataclasses.dataclass(frozen=True)
class Residual:
    """A network with three residual blocks, of which the first is frozen; feature maps are cached."""

    def build(self, n_classes, image_size, weights=None):
        inputs = keras.Input((image_size, image_size, 3))
        x = keras.layers.Rescaling(1 / 255)(inputs)
        for number in range(3):
            branch = keras.layers.Conv2D(3, 3, padding="same", activation="relu", trainable=number > 0)(x)
            # Shortcuts come first or second; some networks add with an operation that is no layer.
            x = keras.layers.Add(name="split" if number == 0 else None)([x, branch]) if number < 2 else branch + x
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, keras.layers.Dense(n_classes, activation="softmax")(x))

    def split_layer(self, model):
        return "split"


OPTIMIZER = {"optimizer": "adamw", "weight_decay": 0.5, "ema": 0.9, "clip_norm": 0.1, "schedule": "cosine"}
DEEP = {"stochastic_depth": 0.5, "cutmix": 1.0, "ema": 0.9}


@pytest.mark.parametrize(
    ("model", "values"),
    [
        pytest.param(CNN, {"augmentation": STRONG}, id="augmentation", marks=pytest.mark.slow),
        pytest.param(CNN, CUTMIX, id="mixtures", marks=pytest.mark.slow),
        pytest.param(CNN, OPTIMIZER, id="optimizer", marks=pytest.mark.slow),
        pytest.param(
            HEAD,
            {"augmentation": STRONG, "ema": 0.9, "mixup": 0.4},
            id="cached pooled features",
            marks=pytest.mark.slow,
        ),
        pytest.param(Residual(), DEEP, id="cached feature maps", marks=pytest.mark.slow),
    ],
)
def test_a_killed_training_resumes_to_the_last_digit(prepared, monkeypatch, model, values):
    experiment = aux.Experiment("run", model, dataclasses.replace(PLAIN, **values))
    with monkeypatch.context() as patch:
        patch.setattr("animals10.callbacks.atomic_write", killed_after_writing)
        with pytest.raises(KeyboardInterrupt):
            aux.train(prepared, experiment)
    resumed = aux.train(prepared, experiment)
    again = aux.train(prepared.model_copy(update={"force": True}), experiment)
    assert resumed.history.epoch.tolist() == [1, 2] and np.isfinite(resumed.history.val_loss).all()
    assert resumed.path != again.path and resumed.history.equals(again.history)
    assert resumed.record["weights_sha256"] == again.record["weights_sha256"]
    assert resumed.predictions.equals(again.predictions)
    if "ema" in values:  # the stored weights are those that were evaluated
        stored, _ = aux.load_model(again.file("model.keras"))
        stored.compile(loss="sparse_categorical_crossentropy")
        loss = stored.evaluate(aux.batches(prepared, aux.load_splits(prepared).val), verbose=0)
        assert loss == pytest.approx(again.history.val_loss.min(), rel=1e-3)


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (CNN, [{"augmentation": aux.Augmentation(rand_augment=0.5)}, {"augmentation": aux.Augmentation(erasing=1.0)}]),
        pytest.param(
            HEAD,
            [{"weight_decay": 1.0}, {"clip_norm": 1e-3}, {"ema": 0.5}, {"mixup": 0.4}, {"optimizer": "lion"}],
            marks=pytest.mark.slow,
        ),
        pytest.param(
            Residual(),
            [{"stochastic_depth": 0.5}, {"cutmix": 1.0}, {"cutmix": 1.0, "class_weights": True}, {"layer_decay": 0.5}],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["pixels", "cached pooled features", "cached feature maps"],
)
def test_each_value_alone_changes_the_training_on_one_cache(prepared, model, changes):
    standard = dataclasses.replace(
        PLAIN, epochs=1, augmentation=aux.Augmentation(), class_balance="none", optimizer="sgd"
    )
    models = [model] * (1 + len(changes))
    models += [dataclasses.replace(model, feature_dropout=0.5)] if model == HEAD else []
    trainings = [standard, *(dataclasses.replace(standard, **values) for values in changes), standard]
    runs = [aux.train(prepared, aux.Experiment("run", *pair)) for pair in zip(models, trainings, strict=False)]
    assert len({run.record["weights_sha256"] for run in runs}) == len(runs) == len(models)
    caches = [*(prepared.data / "features").glob("[!.]*")]
    assert len(caches) == (0 if model == CNN else 3)  # training, validation, test


# ── Augmentation ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", ["rand_augment", "erasing"])
def test_an_augmented_image_depends_on_its_key_alone(value):
    image, one = photograph(), dataclasses.replace(STILL, **{value: 1.0})
    first = [augment(image, key(number), one).numpy() for number in range(6)]
    keras.utils.set_random_seed(1)  # what else happens in the process must not matter
    keras.backend.clear_session()
    later = tf.data.Dataset.range(5, -1, -1).map(lambda number: augment(image, tf.stack([5, number]), one))
    assert all(np.array_equal(*pair) for pair in zip(first, [*later.as_numpy_iterator()][::-1], strict=True))
    assert len({pixels.tobytes() for pixels in first}) >= 4  # some operations change nothing in this image
    assert min(pixels.min() for pixels in first) >= 0 and max(pixels.max() for pixels in first) <= 255


def test_a_strong_randaugment_changes_an_image_more_than_a_weak_one():
    """Keras's own layer rotates by half a turn and posterises most where it should be weak."""
    image = photograph()
    assert np.allclose(augment(image, key(0), STILL), image, atol=1e-3)
    changes = [
        np.mean([np.abs(augment(image, key(n), dataclasses.replace(STILL, rand_augment=strength)) - image).mean()
                 for n in range(40)])
        for strength in (0.1, 0.5, 1.0)
    ]  # fmt: skip
    assert 0 < changes[0] < changes[1] < changes[2] < 64


def test_erasing_has_its_probability_and_a_grey_rectangle():
    grey = np.isclose(
        [augment(photograph(), key(n), aux.Augmentation(erasing=0.5)).numpy() for n in range(60)], 127.5
    ).all(axis=-1)
    shares = grey.mean(axis=(1, 2))
    assert 18 <= (shares > 0.01).sum() <= 42 and shares.max() < 0.4


def test_an_unused_augmentation_leaves_the_cache_valid():
    before = {"brightness": 0.1, "contrast": (0.8, 1.2), "saturation": (0.8, 1.2), "hue": 0.02, "crop": (0.85, 1.0)}
    before |= {"horizontal_flip": True, "vertical_flip": False, "version": 1}
    assert _augmentation_key(aux.Augmentation(vertical_flip=False)) == before
    assert _augmentation_key(aux.Augmentation(erasing=0.1)) == before | {"vertical_flip": True, "erasing": 0.1}


# ── Mixtures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("shape", [(6,), (8, 8, 6), (5, 6)])
@pytest.mark.parametrize("alphas", [(0.5, 0.0), (0.0, 1.0), (0.5, 1.0)])
def test_a_mixture_holds_as_much_of_each_image_as_its_label_says(shape, alphas):
    if len(shape) != 3 and alphas[1]:
        pytest.skip("CutMix needs images or feature maps")
    labels = tf.eye(6)
    values = tf.broadcast_to(tf.reshape(labels, (6, *[1] * (len(shape) - 1), 6)), (6, *shape))  # each shows its label
    mix, shares = mixing(*alphas), []
    for number in range(8):
        mixed, label = mix(key(number), values, labels)
        mean = tf.reduce_mean(mixed, axis=list(range(1, len(shape)))) if len(shape) > 1 else mixed
        assert np.allclose(mean, label, atol=1e-5) and np.allclose(tf.reduce_sum(label, 1), 1, atol=1e-5)
        assert np.array_equal(mixed, mix(key(number), values, labels)[0])
        shares.append(label.numpy())
    assert len({share.tobytes() for share in shares}) == 8 and np.min(np.max(shares, axis=2)) < 0.9
    if alphas == (0.5, 1.0):  # a batch takes one or the other
        whole = [bool(np.isin(mix(key(number), values, labels)[0], (0, 1)).all()) for number in range(8)]
        assert set(whole) == {True, False}


def test_cutmix_on_pooled_features_is_one_line_before_anything_is_computed(prepared):
    experiment = aux.Experiment("head", HEAD, dataclasses.replace(PLAIN, cutmix=1.0))
    with pytest.raises(aux.UserError, match=r"head: CutMix .* cached pooled features .*: use mixup, set") as error:
        aux.train(prepared, experiment)
    assert "\n" not in str(error.value) and not (prepared.data / "features").exists()


# ── Moving average of the weights ─────────────────────────────────────────────────────────────────────────────────────


def test_the_average_of_the_weights_is_evaluated_and_kept(tmp_path):
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(32, 3)).astype("float32"), rng.integers(0, 2, 32)

    def trained(ema, epochs):
        inputs = keras.Input((3,))
        outputs = keras.layers.Dense(2, "softmax", kernel_initializer="zeros")(inputs)
        model = keras.Model(inputs, outputs)
        compile_model(model, aux.Training(0.5, epochs, optimizer="sgd", ema=ema), epochs)
        stopping = ResumableEarlyStopping(tmp_path / f"{ema}-{epochs}.npz", 9, 0)
        data = {"batch_size": 32, "validation_data": (features, labels), "shuffle": False, "verbose": 0}
        model.fit(features, labels, epochs=epochs, callbacks=[stopping], **data)  # one step per epoch
        return model, stopping

    first, second, third = (trained(0.0, epochs)[0].get_weights()[0] for epochs in (1, 2, 3))
    model, stopping = trained(0.8, 3)
    average = 0.8 * (0.8 * first + 0.2 * second) + 0.2 * third
    assert np.allclose(model.get_weights()[0], average, atol=1e-6)
    assert model.evaluate(features, labels, verbose=0)[0] == pytest.approx(stopping.history[-1]["val_loss"], abs=1e-6)


# ── Layer-wise learning rates ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_learning_rate_falls_from_layer_to_layer(optimizer):
    rng = np.random.default_rng(1)
    features, labels = rng.normal(size=(32, 3)).astype("float32"), rng.integers(0, 2, 32)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4, "tanh", trainable=False)(inputs)
    for _ in range(2):
        x = keras.layers.Dense(4, "tanh")(x)
    model = keras.Model(inputs, keras.layers.Dense(2, "softmax")(x))
    initial, steps = model.get_weights(), []
    for decay in (1.0, 0.5):
        model.set_weights(initial)
        compile_model(model, aux.Training(0.01, 1, optimizer=optimizer, layer_decay=decay), 1)
        model.fit(features, labels, batch_size=32, verbose=0)  # one step
        steps.append([np.abs(after - before).sum() for before, after in zip(initial, model.get_weights(), strict=True)])
    assert steps[0][:2] == steps[1][:2] == [0, 0]  # frozen
    ratios = [with_decay / without for without, with_decay in zip(*(one[2:] for one in steps), strict=True)]
    assert ratios == pytest.approx([0.25, 0.25, 0.5, 0.5, 1, 1], rel=1e-3)


# ── Stochastic depth ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_stochastic_depth_skips_trained_branches_of_single_images():
    model = Residual().build(2, 32)
    assert list(trained_branches(model).values()) == [1, 0]
    deep = with_stochastic_depth(model, model, 0.8, seed=3)
    assert [layer.rate for layer in deep.layers if isinstance(layer, keras.layers.Dropout)] == [0.4, 0.8]
    images = 255 * tf.random.stateless_uniform((1, 32, 32, 3), (1, 2)) * tf.ones((64, 1, 1, 1))
    assert np.allclose(deep(images), model(images))  # in inference, nothing is skipped
    outputs = {output.tobytes() for output in np.round(deep(images, training=True).numpy(), 5)}
    assert len(outputs) == 4  # each of two branches is there or not
    assert model.count_params() == deep.count_params()


def test_stochastic_depth_without_a_trained_branch_is_one_line_before_anything_is_computed(prepared):
    for model in (HEAD, CNN):
        experiment = aux.Experiment("run", model, dataclasses.replace(PLAIN, stochastic_depth=0.1))
        with pytest.raises(aux.UserError, match=r"is 0.1, but no residual branch .* is trained") as error:
            aux.train(prepared, experiment)
        assert "\n" not in str(error.value) and not (prepared.data / "features").exists()


@pytest.mark.slow
def test_stochastic_depth_on_cached_features_is_that_of_the_whole_network_and_not_stored(prepared):
    experiment = aux.Experiment("run", Residual(), dataclasses.replace(PLAIN, stochastic_depth=0.5))
    runs = [aux.train(prepared.model_copy(update={"feature_cache": cache}), experiment) for cache in ("float32", "off")]
    assert np.allclose(runs[0].history.loss, runs[1].history.loss, rtol=1e-4)
    model, names = aux.load_model(runs[0].file("model.keras"))
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in model.layers)
    test = aux.load_splits(prepared).test
    again = aux.predict_table(model, aux.batches(prepared, test), test, names)
    assert np.allclose(again.p_red, runs[0].predictions.p_red, atol=1e-5)


# ── The figure ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_figure_shows_each_augmentation_and_can_be_repeated(draw, tmp_path):
    paths = draw(tmp_path / "a.png", (200, 40, 40)), draw(tmp_path / "b.png", (40, 40, 200), (60, 60))
    figures = [aux.plot_augmentations(*paths, seed=seed, size=48) for seed in (5, 5, 6)]
    images = [[axis.images[0].get_array() for axis in figure.axes] for figure in figures]
    assert len(images[0]) == 30 and all(np.array_equal(*pair) for pair in zip(images[0], images[1], strict=True))
    assert not all(np.array_equal(*pair) for pair in zip(images[0], images[2], strict=True))
    for row in range(6):
        original, *augmented = images[0][5 * row : 5 * row + 5]
        assert any(not np.array_equal(original, one) for one in augmented)
    assert all(name in figures[0].get_label() for name in ("RandAugment", "random erasing", "MixUp", "CutMix", "a.png"))
