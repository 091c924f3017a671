import keras
import numpy as np
import pytest

from animals10.backbones import BACKBONES, IMAGENET_MEAN, IMAGENET_STANDARD_DEVIATION, find_backbone
from animals10.files import UserError
from animals10.model_files import load_model, save_model
from animals10.models import Transfer

QUICK = ("MobileNetV2", "MobileNetV3Small", "DenseNet121")  # one of each input contract
EACH = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in BACKBONES]


def random_pixels(model, n=2, seed=1):
    return np.random.default_rng(seed).uniform(0, 255, (n, *model.input.shape[1:])).astype("float32")


def outputs(model, pixels):
    return keras.tree.map_structure(keras.ops.convert_to_numpy, model(pixels, training=False))


def is_close(a, b):
    return a.shape == b.shape and np.abs(a - b).max() <= 1e-4 * np.abs(b).max()


@pytest.mark.parametrize("name", EACH)
def test_a_backbone_gets_the_pixels_that_keras_documents(name):
    backbone = BACKBONES[name]
    size = backbone.minimum_size
    model = Transfer(name).build(3, size)
    ours = keras.Model(model.input, model.get_layer("pooled").output)
    bare = getattr(keras.applications, name)(include_top=False, weights=None, input_shape=(size, size, 3))
    bare.set_weights(ours.get_weights())
    preprocess = getattr(keras.applications, backbone.module).preprocess_input
    pixels = random_pixels(model)
    expected = outputs(bare, preprocess(pixels.copy())).mean(axis=(1, 2))
    assert is_close(outputs(ours, pixels), expected)
    assert not is_close(outputs(ours, pixels / 2), expected)  # the features do depend on the scale


@pytest.mark.parametrize("name", EACH)
def test_the_trained_part_computes_from_cached_features_what_the_network_computes(name, tmp_path):
    keras.utils.set_random_seed(1)
    architecture = Transfer(name, (4,), unfreeze_last_blocks=2)
    model = architecture.build(3, BACKBONES[name].minimum_size)
    save_model(model, tmp_path / "model.keras", ("a", "b", "c"))
    loaded, _ = load_model(tmp_path / "model.keras")  # safe mode; a loaded network has the same layers
    pixels = random_pixels(model)
    expected = outputs(model, pixels)
    assert is_close(outputs(loaded, pixels), expected)
    for one, network, start in ((architecture, loaded, "split"), (Transfer(name), model, "pooled")):
        features = one.feature_layers(network)
        if name == "NASNetMobile" and start == "split":  # each of its cells sees the last two: no layer splits it
            assert features is None
            continue
        assert features.start == start
        cached = outputs(keras.Model(network.input, features.outputs[start]), pixels)
        trained_part = keras.Model(features.outputs[start], network.output)
        assert is_close(outputs(trained_part, cached), expected)
        if start == "split":  # all that is trained lies after the split layer
            assert len(trained_part.trainable_weights) == len(network.trainable_weights) > 4


@pytest.mark.parametrize("name", EACH)
def test_the_last_blocks_are_whole_blocks(name):
    backbone = BACKBONES[name]
    model = Transfer(name).build(3, backbone.minimum_size)
    layers = [layer.name for layer in model.layers]
    layers = layers[: layers.index("pooled")]
    for blocks in (1, 2, 3):
        last = layers[len(layers) - backbone.count_last_layers(layers, blocks) :]
        expected = list(backbone.block_starts(layers))[-blocks:]
        assert list(backbone.block_starts(last)) == expected  # no layer of an earlier block is among them
        assert backbone.block_starts(last)[expected[0]] == 0  # they begin with their first layer


@pytest.mark.parametrize(("name", "layers"), [("MobileNetV2", 20), ("ResNet50V2", 24), ("EfficientNetV2S", 33)])
def test_the_last_two_blocks_of_the_published_backbones(name, layers):
    architecture = Transfer(name, unfreeze_last_blocks=2)
    model = architecture.build(3, 32)
    assert architecture.count_unfrozen(model) == layers
    trainable = [layer.trainable for layer in model.layers]
    Transfer(name, unfreeze_last=layers).set_trainable(model)
    assert [layer.trainable for layer in model.layers] == trainable


@pytest.mark.parametrize("weights", ["file", pytest.param("imagenet", marks=pytest.mark.slow)])
def test_a_weights_file_of_efficientnet_b0_gets_the_pixels_of_the_imagenet_weights(tmp_path, monkeypatch, weights):
    keras.utils.set_random_seed(1)
    path = tmp_path / "EfficientNetB0.weights.h5"
    plain = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(32, 32, 3))
    normalization = next(layer for layer in plain.layers if isinstance(layer, keras.layers.Normalization))
    # so in Keras's file: the standard deviation stands for the variance
    normalization.set_weights([np.array(IMAGENET_MEAN), np.array(IMAGENET_STANDARD_DEVIATION), np.array(0)])
    plain.save_weights(path)
    monkeypatch.setattr("keras.src.applications.efficientnet.file_utils.get_file", lambda *_, **__: str(path))
    bare = keras.applications.EfficientNetB0(include_top=False, input_shape=(32, 32, 3))
    assert len(bare.layers) == len(plain.layers) + 1  # Keras's additional scaling
    pixels = random_pixels(bare)
    expected = outputs(bare, pixels).mean(axis=(1, 2))
    assert not is_close(outputs(plain, pixels).mean(axis=(1, 2)), expected)
    model = Transfer("EfficientNetB0").build(3, 32, str(path) if weights == "file" else weights)
    assert len(model.layers) == len(plain.layers) + 3  # pooling and head: the same layers for all weights
    assert is_close(outputs(keras.Model(model.input, model.get_layer("pooled").output), pixels), expected)
    save_model(model, tmp_path / "model.keras", ("a", "b", "c"))
    loaded, _ = load_model(tmp_path / "model.keras")
    assert is_close(outputs(keras.Model(loaded.input, loaded.get_layer("pooled").output), pixels), expected)


def test_what_a_backbone_cannot_do_is_a_clear_error():
    with pytest.raises(UserError, match=r"Xception needs images of at least 71 pixels, not 70: set ANIMALS10_IMAGE_SI"):
        Transfer("Xception").build(3, 70)
    with pytest.raises(UserError, match="no backbone 'effnetv2s'; did you mean EfficientNetV2S"):
        Transfer("effnetv2s")
    with pytest.raises(UserError, match="no backbone 'MobileNet3Small'; did you mean MobileNetV3Small"):
        find_backbone("MobileNet3Small")
    with pytest.raises(UserError, match="MobileNetV2 has 17 blocks: unfreeze_last_blocks=18 is not possible"):
        Transfer("MobileNetV2", unfreeze_last_blocks=18).build(3, 32)
    with pytest.raises(UserError, match="MobileNetV2 has 154 layers: unfreeze_last=155 is not possible"):
        Transfer("MobileNetV2", unfreeze_last=155).build(3, 32)
    with pytest.raises(UserError, match="give one of them"):
        Transfer("MobileNetV2", unfreeze_last=1, unfreeze_last_blocks=1)
    with pytest.raises(UserError, match=r"dense_units \(128,\) and dropout \(0.1, 0.2\) must have the same length"):
        Transfer("MobileNetV2", dropout=(0.1, 0.2))
