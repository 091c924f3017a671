import dataclasses
from dataclasses import dataclass

import keras
import numpy as np
import pytest
import tensorflow as tf

from animals10.files import UserError
from animals10.model_checks import check_loads_in_fresh_process, check_model
from animals10.model_files import load_model, save_model
from animals10.models import (
    CNN,
    Transfer,
    count_parameters,
    feature_layers_of,
    frozen_dropouts,
    layer_table,
    network_config,
)

BATCH_NORM = keras.layers.BatchNormalization


@dataclass(frozen=True)
class SmallResNet:
    """An architecture of one's own: residual blocks with batch normalisation."""

    filters: tuple[int, ...] = (8, 16)
    activation: str = "softmax"

    def build(self, n_classes, image_size, weights=None):
        inputs = keras.Input((image_size, image_size, 3))
        x = keras.layers.Rescaling(1 / 255)(inputs)
        for filters in self.filters:
            shortcut = keras.layers.Conv2D(filters, 1, strides=2)(x)
            x = keras.layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
            x = keras.layers.BatchNormalization()(x)
            x = keras.ops.relu(x + shortcut)  # operations that are no layers
        x = keras.layers.GlobalAveragePooling2D()(x)
        return keras.Model(inputs, keras.layers.Dense(n_classes, activation=self.activation)(x))


def dense_model(layers, outputs=3):
    """A network of one's own with some layers between pixels and a dense layer."""
    inputs = x = keras.Input((8, 8, 3))
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, keras.layers.Dense(outputs, activation="softmax")(keras.layers.Flatten()(x)))


# ── CNN and transfer learning ─────────────────────────────────────────────────────────────────────────────────────────


def test_images_too_small_for_a_network_are_a_clear_error():
    network = CNN((4, 4), (2, 3))
    pooled = [layer for layer in network.build(2, 12).layers if isinstance(layer, keras.layers.MaxPooling2D)]
    assert pooled[-1].output.shape[1:3] == (1, 1)
    with pytest.raises(UserError, match="Images of 11 pixels are too small"):
        network.build(2, 11)
    with pytest.raises(UserError, match=r"filters \(4, 4\) and pool_sizes \(2,\) must have the same length"):
        CNN((4, 4), (2,))


def test_the_last_layers_are_those_of_the_backbone():
    plain = keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(96, 96, 3))
    model = Transfer("MobileNetV2", unfreeze_last=20).build(10, 96)
    trained = [layer.name for layer in model.layers if layer.trainable and layer.weights]
    expected = [layer.name for layer in plain.layers[-20:] if layer.weights and not isinstance(layer, BATCH_NORM)]
    assert trained[:-2] == expected and trained[-1] == "probabilities"


def test_frozen_layers_and_batch_normalisation_do_not_change_in_training():
    architecture = Transfer("MobileNetV2", dense_units=(8,), unfreeze_last=20)
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


def test_dropout_among_frozen_layers_is_named():
    names = [f"block6{letter}_drop" for letter in "lm"]
    for unfreeze, expected in ((33, True), (0, False)):
        architecture = Transfer("EfficientNetV2S", (8,), (0.5,), unfreeze_last=unfreeze)
        model = architecture.build(2, 32)
        frozen = [layer.name for layer in frozen_dropouts(architecture, model)]
        assert set(names) <= set(frozen) and ("block6n_drop" not in frozen) is expected
        assert not any(name.startswith("dropout") for name in frozen)  # that of the head is active
    assert frozen_dropouts(CNN((4,), (2,)), CNN((4,), (2,)).build(2, 32)) == ()


def test_the_layers_of_a_network_as_a_table():
    model = CNN((4,), (2,), (8,), (0.0,)).build(3, 16)
    table = layer_table(model)
    assert table.type.tolist() == ["InputLayer", "Rescaling", "Conv2D", "MaxPooling2D", "Flatten", "Dense", "Dense"]
    assert table["output shape"].tolist()[2:5] == ["14 × 14 × 4", "7 × 7 × 4", "196"]
    assert table.parameters.sum() == count_parameters(model.weights) == 112 + 197 * 8 + 9 * 3


# ── Files ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_code_from_a_model_file_is_not_run(tmp_path):
    inputs = keras.Input((2,))
    save_model(keras.Model(inputs, keras.layers.Lambda(lambda x: x)(inputs)), tmp_path / "model.keras", ("a", "b"))
    with pytest.raises(UserError, match=r"cannot be loaded .*Lambda"):
        load_model(tmp_path / "model.keras")


def test_a_saved_model_takes_pixels_and_holds_its_class_names(tmp_path):
    keras.utils.set_random_seed(1)
    model = Transfer("MobileNetV2", dense_units=(8,)).build(3, 32)
    names = ("hot dog", "Löwe 🦁", "cat")
    save_model(model, tmp_path / "model.keras", names)
    pixels = np.random.default_rng(1).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    tf.config.experimental.enable_tensor_float_32_execution(True)
    loaded, loaded_names = load_model(tmp_path / "model.keras")
    assert not tf.config.experimental.tensor_float_32_execution_enabled()  # a GPU predicts what a CPU predicts
    assert loaded_names == names and np.array_equal(loaded.predict(pixels, verbose=0), model.predict(pixels, verbose=0))
    assert keras.models.load_model(tmp_path / "model.keras").output_shape == (None, 3)  # without this package, too
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]
    # the preprocessing is part of the model: it takes pixels, and scales them to −1…1 for MobileNetV2
    scaling = next(layer for layer in loaded.layers if isinstance(layer, keras.layers.Rescaling))
    assert np.allclose(scaling(np.array([0.0, 255.0])), [-1, 1])


# ── Networks of one's own ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_network_that_takes_pixels_and_returns_probabilities_passes():
    model = SmallResNet().build(3, 32)
    np.random.seed(1)
    state = np.random.get_state()[1].copy()
    assert check_model(model, 3, 32) is model
    assert np.array_equal(np.random.get_state()[1], state)  # the check does not change what is drawn later
    assert check_model(CNN((4,), (2,)).build(3, 32), 3, 32)


def test_a_sequential_model_becomes_a_functional_one():
    layers = [keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    sequential = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    model = check_model(sequential, 3, 8)
    pixels = np.ones((2, 8, 8, 3), "float32")
    assert model.input.shape == (None, 8, 8, 3) and np.array_equal(model(pixels), sequential(pixels))
    assert model.layers[-1] is layers[-1]


class Subclass(keras.Model):
    def call(self, pixels):
        return pixels


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SmallResNet(activation="linear").build(3, 32), r"no probabilities: end it with a softmax activation"),
        (lambda: SmallResNet(activation="sigmoid").build(3, 32), r"no probabilities: end it with a softmax"),
        (lambda: SmallResNet().build(3, 64), r"takes \(64, 64, 3\); it must take pixels of shape \(32, 32, 3\)"),
        (lambda: SmallResNet().build(4, 32), r"returns \(4,\); it must return 3 probabilities"),
        (
            lambda: keras.Model(x := keras.Input((32, 32, 3)), [keras.layers.Identity()(x) for _ in "ab"]),
            r"returns \(32, 32, 3\) and \(32, 32, 3\)",
        ),
        (Subclass, "build returned Subclass; it must return a keras.Model built from keras.Input"),
        (lambda: keras.Sequential([keras.layers.Dense(3)]), "build returned Sequential; it must"),
        (lambda: None, "build returned NoneType; it must return a keras.Model"),
    ],
    ids=["logits", "sigmoid", "image size", "classes", "two outputs", "subclass", "without input", "nothing"],
)
def test_a_network_that_would_train_wrongly_is_refused(build, message):
    with pytest.raises(UserError, match=message) as error:
        check_model(build(), 3, 32)
    assert "\n" not in str(error.value)


class Scale(keras.layers.Layer):
    """A layer of one's own, which Keras does not import when it loads a file."""

    def __init__(self, factor=1.0, **options):
        super().__init__(**options)
        self.factor = factor

    def call(self, pixels):
        return pixels * self.factor


def test_a_network_that_loads_in_a_fresh_process_passes():
    check_loads_in_fresh_process(SmallResNet().build(3, 32))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (lambda: keras.layers.Lambda(lambda x: x), "cannot be loaded in a fresh process .*Lambda"),
        (lambda: Scale(2.0), "cannot be loaded in a fresh process .*Scale"),
        (lambda: Scale(np.float32(2)), r"cannot be saved .*Scale"),
    ],
    ids=["lambda", "class of a test", "without get_config"],
)
def test_a_network_that_does_not_load_in_a_fresh_process_is_refused(layer, message):
    with pytest.raises(UserError, match=message) as error:
        check_loads_in_fresh_process(dense_model([layer()]))
    assert "\n" not in str(error.value) and "Build it from layers and operations of Keras" in str(error.value)


def with_nested(activation="relu"):
    inner = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, activation=activation)])
    return dense_model([inner, keras.layers.Dropout(0.5)])


BUILDS = {
    "CNN": lambda: CNN((4,), (2,)).build(3, 32),
    "operations": lambda: Transfer("MobileNetV3Small").build(3, 32),
    "residual": lambda: SmallResNet().build(3, 32),
    "nested": with_nested,
    "sequential": lambda: keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Dense(3)]),
}


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_two_builds_of_a_network_have_the_same_configuration(build, tmp_path):
    first, second = build(), build()
    assert [layer.name for layer in first.layers] != [layer.name for layer in second.layers]  # numbered on
    assert network_config(first) == network_config(second)
    if not isinstance(first, keras.Sequential):
        save_model(first, tmp_path / "model.keras", ("a",))
        assert network_config(load_model(tmp_path / "model.keras")[0]) == network_config(first)


def residual(order):
    inputs = keras.Input((8, 8, 3))
    a = keras.layers.Conv2D(3, 1, activation="relu")(inputs)
    b = keras.layers.Conv2D(3, 1)(a)
    return keras.Model(inputs, keras.layers.Add()([{"inputs": inputs, "a": a, "b": b}[name] for name in order]))


def test_another_network_has_another_configuration():
    networks = [
        CNN((4,), (2,)).build(3, 32),
        CNN((4,), (2,)).build(4, 32),
        CNN((4,), (2,)).build(3, 33),
        CNN((4,), (2,), dropout=(0.4,)).build(3, 32),
        SmallResNet().build(3, 32),
        SmallResNet(activation="sigmoid").build(3, 32),
        Transfer("MobileNetV3Small").build(3, 32),
        with_nested(),
        with_nested("gelu"),
        residual(("inputs", "b")),
        residual(("a", "b")),  # the same layers, connected otherwise
        dense_model([keras.layers.Dense(3, dtype="float32")]),
        dense_model([keras.layers.Dense(3, dtype="float16")]),
    ]
    configs = [network_config(network) for network in networks]
    assert all(a != b for position, a in enumerate(configs) for b in configs[:position])
    heads, tuned = Transfer("MobileNetV2").build(3, 32), Transfer("MobileNetV2", unfreeze_last=20).build(3, 32)
    assert network_config(heads) != network_config(tuned)
    assert network_config(heads, trainable=False) == network_config(tuned, trainable=False)


@dataclass(frozen=True)
class Frozen:
    """An architecture of one's own with a split layer; `bottom` are its layers up to there."""

    split: str | None
    bottom: tuple = ()
    trainable: bool = False
    skip: bool = False
    conv: bool = True

    def build(self, n_classes, image_size, weights=None):
        inputs = x = keras.Input((image_size, image_size, 3))
        conv = [keras.layers.Conv2D(3, 3, padding="same", name="conv")] if self.conv else []
        for layer in (*self.bottom, *conv):
            layer.trainable = self.trainable
            x = layer(x)
        x = keras.layers.Add()([x, inputs]) if self.skip else x
        x = keras.layers.Dense(n_classes, activation="softmax")(keras.layers.Flatten(name="flatten")(x))
        return keras.Model(inputs, x)

    def split_layer(self, model):
        return self.split


def test_a_network_of_ones_own_can_name_its_split_layer():
    keras.utils.set_random_seed(1)
    nested = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Dropout(0.9, name="inner"), keras.layers.Dense(3)])
    functional = keras.Model(nested.inputs[0], nested.outputs[0], name="backbone")
    pixels = np.random.default_rng(1).uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    for split in ("backbone", "conv"):
        architecture = Frozen(split, (functional,))
        model = architecture.build(3, 8)
        features = feature_layers_of(architecture, model)
        assert features.start == "split" and features.layer_names == {"split": split}
        cached = keras.Model(model.input, features.outputs["split"])(pixels, training=False)
        trained_part = keras.Model(features.outputs["split"], model.output)
        assert np.allclose(trained_part(cached, training=False), model(pixels, training=False), atol=1e-6)
        assert [layer.name for layer in frozen_dropouts(architecture, model)] == ["inner"]
    assert feature_layers_of(dataclasses.replace(architecture, split=None), model) is None
    assert feature_layers_of(SmallResNet(), SmallResNet().build(3, 32)) is None


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (
            Frozen("convolution"),
            r"Frozen: the split layer 'convolution' does not exist. The network has .*conv, flatten",
        ),
        (Frozen("conv", skip=True), "'conv' is bypassed by another connection"),
        (Frozen("conv", trainable=True), "'conv' follows 'conv', which is trainable: freeze it"),
        (Frozen("conv", (keras.layers.RandomFlip(name="flip"),)), "'conv' follows 'flip', which is random"),
        # it has no weights to train, but the mean of a batch depends on the other images
        (
            Frozen("flatten", (BATCH_NORM(center=False, scale=False, name="norm"),), trainable=True, conv=False),
            "'norm'",
        ),
    ],
    ids=["missing", "bypassed", "trainable", "random", "batch statistics"],
)
def test_a_split_layer_that_cannot_be_one_is_refused(architecture, message):
    with pytest.raises(UserError, match=message) as error:
        feature_layers_of(architecture, architecture.build(3, 8))
    assert "\n" not in str(error.value)
