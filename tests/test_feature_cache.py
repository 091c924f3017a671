"""Training on cached features: equal to training the whole model, and computed once for all experiments."""

import dataclasses

import keras
import numpy as np
import pytest

import auxiliary as aux
from animals10 import features
from animals10.input_pipeline import view_batches


@dataclasses.dataclass(frozen=True)
class OwnHead:
    """A frozen network of one's own with a split layer, so that its features are cached."""

    units: int = 8
    activation: str = "relu"

    def build(self, n_classes, image_size, weights=None):
        inputs = keras.Input((image_size, image_size, 3))
        x = keras.layers.Conv2D(8, 3, strides=4, activation=self.activation, trainable=False)(
            keras.layers.Rescaling(1 / 255)(inputs)
        )
        x = keras.layers.Dropout(0.5, trainable=False)(x)
        x = keras.layers.GlobalAveragePooling2D(name="split")(x)
        x = keras.layers.Dense(self.units, activation="relu")(x)
        return keras.Model(inputs, keras.layers.Dense(n_classes, activation="softmax")(x))

    def split_layer(self, model):
        return "split"


@pytest.mark.parametrize(
    "model",
    # One head stands for all: pooled features come from the same pass as the features of a split layer.
    [
        aux.Transfer("MobileNetV2", (8,), (0.2,)),
        pytest.param(aux.Transfer("MobileNetV2", (8,), (0.2,), unfreeze_last=20), marks=pytest.mark.slow),
        OwnHead(),
        pytest.param(aux.Transfer("EfficientNetV2S", (8,), (0.2,), unfreeze_last=30), marks=pytest.mark.slow),
        pytest.param(aux.Transfer("ResNet50V2", (8,), (0.2,), unfreeze_last=20), marks=pytest.mark.slow),
        pytest.param(aux.Transfer("ConvNeXtTiny", (8,), (0.2,), unfreeze_last_blocks=1), marks=pytest.mark.slow),
        pytest.param(aux.Transfer("MobileNetV3Small", (8,), (0.2,), unfreeze_last_blocks=2), marks=pytest.mark.slow),
        pytest.param(aux.Transfer("DenseNet121", (8,), (0.2,), unfreeze_last_blocks=2), marks=pytest.mark.slow),
    ],
    ids=lambda model: f"{getattr(model, 'backbone', 'own')}-{getattr(model, 'unfreeze_last', '')}",
)
def test_training_on_cached_features_is_training_the_whole_model(prepared, model):
    training = aux.Training(1e-3, 2, batch_size=16, augmentation=None)
    experiment = aux.Experiment("run", model, training)
    runs = [aux.train(prepared.model_copy(update={"feature_cache": cache}), experiment) for cache in ("float32", "off")]
    losses = [run.history[["loss", "val_loss"]].to_numpy() for run in runs]
    assert runs[0] != runs[1] and losses[0].shape == (2, 2) and np.allclose(*losses, rtol=1e-4)
    probabilities = [run.predictions[["p_blue", "p_green", "p_red"]].to_numpy() for run in runs]
    assert np.allclose(*probabilities, atol=1e-4)
    assert len(list((prepared.data / "features").glob("[!.]*"))) == 3  # training, validation, test


def test_the_saved_model_gives_the_predictions_of_its_trained_part(prepared):
    model = aux.Transfer("MobileNetV2", (8,), unfreeze_last=20)
    run = aux.train(prepared, aux.Experiment("run", model, aux.Training(1e-3, 2)))  # float16 features in training
    model, names = aux.load_model(run.file("model.keras"))
    test = aux.load_splits(prepared).test
    again = aux.predict_table(model, aux.batches(prepared, test), test, names)
    assert np.allclose(again.p_red, run.predictions.p_red, atol=1e-5)


def test_experiments_with_one_backbone_share_a_cache_and_a_repeated_image_is_computed_once(prepared, monkeypatch):
    computed, cached_features = [], features.cached_features

    def counting(*arguments):
        *most, compute = arguments
        return cached_features(*most, lambda *rows: (computed.append(len(part[0])) or part for part in compute(*rows)))

    monkeypatch.setattr("animals10.data_preparation.cached_features", counting)
    splits, training = aux.load_splits(prepared), aux.Training(1e-3, 1, class_balance="max")
    expected = prepared.views * len(splits.train) + len(splits.val) + len(splits.test)
    aux.train(prepared, aux.Experiment("a", aux.Transfer("MobileNetV2", (8,)), training))
    assert sum(computed) == expected and len(aux.resample(splits.train, "max", prepared.seed)) > len(splits.train)
    aux.train(prepared, aux.Experiment("b", aux.Transfer("MobileNetV2", (4, 4), (0.1, 0)), training))
    aux.train(prepared, aux.Experiment("c", aux.Transfer("MobileNetV2", (8,), unfreeze_last=20), training))
    assert sum(computed) == expected


def test_each_epoch_sees_another_view(prepared):
    part = aux.load_splits(prepared).train.head(3)
    batches = view_batches(prepared, part, views=2, augmentation=aux.Augmentation(), batch_size=3)
    first, second = [pixels.numpy() for pixels, _ in batches]
    assert not np.array_equal(first, second)
    later = next(iter(view_batches(prepared, part, 2, aux.Augmentation(), start=3, batch_size=3)))[0].numpy()
    assert np.array_equal(second, later)


def test_another_frozen_network_has_features_of_its_own(prepared):
    """Weights and shapes are equal; only the activation differs."""
    training = aux.Training(1e-3, 1, augmentation=None)
    runs = [aux.train(prepared, aux.Experiment(name, OwnHead(8, name), training)) for name in ("relu", "tanh")]
    assert not np.array_equal(runs[0].predictions.p_red, runs[1].predictions.p_red)
    model, names = aux.load_model(runs[1].file("model.keras"))
    test = aux.load_splits(prepared).test
    again = aux.predict_table(model, aux.batches(prepared, test), test, names)
    assert np.allclose(again.p_red, runs[1].predictions.p_red, atol=1e-5)
