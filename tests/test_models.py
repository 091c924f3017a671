import keras
import numpy as np
import pytest

import auxiliary as aux

BATCH_NORM = keras.layers.BatchNormalization


def test_too_few_pixels_for_a_network_are_a_clear_error():
    network = aux.CNN((4, 4), (2, 3))
    pooled = [layer for layer in network.build(2, 12).layers if isinstance(layer, keras.layers.MaxPooling2D)]
    assert pooled[-1].output.shape[1:3] == (1, 1)
    with pytest.raises(aux.StudyError, match="Pictures of 11 pixels are too small"):
        network.build(2, 11)


def test_code_from_a_model_file_is_not_run(tmp_path):
    inputs = keras.Input((2,))
    aux.save_model(keras.Model(inputs, keras.layers.Lambda(lambda x: x)(inputs)), tmp_path / "model.keras", ("a", "b"))
    with pytest.raises(ValueError, match="safe_mode"):
        aux.load_model(tmp_path / "model.keras")


def test_the_last_layers_are_those_of_the_backbone():
    plain = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(96, 96, 3))
    model = aux.Transfer("MobileNetV2", unfreeze_last=20).build(10, 96)
    trained = [layer.name for layer in model.layers if layer.trainable and layer.weights]
    expected = [layer.name for layer in plain.layers[-20:] if layer.weights and not isinstance(layer, BATCH_NORM)]
    assert trained[:-2] == expected and trained[-1] == "probabilities"


def test_frozen_layers_and_batch_normalisation_stay_as_they_are_in_training():
    architecture = aux.Transfer("MobileNetV2", dense_units=(8,), unfreeze_last=20)
    model = architecture.build(2, 32)
    before = {weight.path: weight.numpy().copy() for weight in model.weights}
    optimizer = keras.optimizers.Adam(0.1, epsilon=1e-30)  # random weights give tiny gradients
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    rng = np.random.default_rng(1)
    model.fit(rng.uniform(0, 255, (8, 32, 32, 3)), rng.integers(0, 2, 8), verbose=0)
    changed = {
        weight.path.split("/")[-2] for weight in model.weights if not np.array_equal(before[weight.path], weight)
    }
    assert changed and changed <= {
        layer.name for layer in model.layers if layer.trainable and not isinstance(layer, BATCH_NORM)
    }
    assert "Conv_1" in changed


def test_a_saved_model_takes_pixels_and_knows_its_class_names(tmp_path):
    keras.utils.set_random_seed(1)
    model = aux.Transfer("MobileNetV2", dense_units=(8,)).build(3, 32)
    names = ("hot dog", "Löwe 🦁", "cat")
    aux.save_model(model, tmp_path / "model.keras", names)
    pixels = np.random.default_rng(1).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    loaded, loaded_names = aux.load_model(tmp_path / "model.keras")
    assert loaded_names == names and np.array_equal(loaded.predict(pixels, verbose=0), model.predict(pixels, verbose=0))
    assert keras.models.load_model(tmp_path / "model.keras").output_shape == (None, 3)  # without this module, too
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    # its preprocessing is inside: pixels as they come, scaled to −1…1 for MobileNetV2
    scaling = next(layer for layer in loaded.layers if isinstance(layer, keras.layers.Rescaling))
    assert np.allclose(scaling(np.array([0.0, 255.0])), [-1, 1])


def test_on_a_gpu_the_probabilities_stay_float32():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = aux.CNN((4,), (2,), (4,)).build(3, 32)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.layers[2].compute_dtype == "float16" and model.layers[-1].compute_dtype == "float32"


def test_a_recipe_sets_rate_loss_and_weights():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(inputs))
    recipe = aux.Recipe(class_weights=True, label_smoothing=0.2, cosine=True)
    recipe.compile(model, 0.1, steps=100, jit_compile=False)
    rates = [float(model.optimizer.learning_rate.numpy())] + [
        float(model.optimizer._learning_rate(n)) for n in (10, 55, 100)
    ]
    assert np.allclose(rates, [0, 0.1, 0.05, 0], atol=1e-6)
    probabilities = np.array([[0.7, 0.1, 0.1, 0.1]], "float32")
    spread = np.array([0.85, 0.05, 0.05, 0.05])  # 0.2 of the truth on four classes
    assert float(np.mean(model.loss(np.array([0]), probabilities))) == pytest.approx(
        -(spread * np.log(probabilities)).sum(), abs=1e-5
    )
    assert recipe.weights_of([0, 0, 0, 1]) == pytest.approx({0: 4 / 6, 1: 2})
    assert aux.Recipe().weights_of([0, 1]) is None
