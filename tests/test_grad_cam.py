import keras
import numpy as np
import pytest

import auxiliary as aux
from animals10.grad_cam import last_feature_map


def red_or_green(end, as_operations=False, nested=False, **options) -> keras.Model:
    """A network that predicts whether an image is red (0) or green (1), by how much of it is red or green."""
    inputs = keras.Input((24, 32, 3))
    x = inputs / 255 if as_operations else keras.layers.Rescaling(1 / 255)(inputs)
    convolution = keras.layers.Conv2D(2, 1, use_bias=False, activation="relu", name="colours")
    if nested:
        inner = keras.Input((24, 32, 3))
        x = keras.Model(inner, convolution(inner), name="body")(x)
    else:
        x = convolution(x)
    x = end(keras.layers.MaxPooling2D(2)(x + 0 if as_operations else x))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax", **options)(x))
    convolution.set_weights([np.array([[[[1.0, 0], [0, 1], [0, 0]]]])])  # the red, the green
    kernel = np.zeros(model.layers[-1].kernel.shape)
    kernel[0::2, 0] = kernel[1::2, 1] = 40 if len(kernel) == 2 else 0.2
    model.layers[-1].set_weights([kernel, np.zeros(2)][: 1 + options.get("use_bias", True)])
    return model


@pytest.fixture
def pixels():
    """An image with much red at the top left and a little green at the bottom right, and the same turned around."""
    pixels = np.zeros((2, 24, 32, 3), "uint8")
    pixels[0, :8, :8, 0] = 255
    pixels[0, 20:, 28:, 1] = 255
    pixels[1] = pixels[0, ::-1, ::-1]
    return pixels


@pytest.mark.parametrize("end", [keras.layers.GlobalAveragePooling2D(), keras.layers.Flatten()], ids=["mean", "flat"])
def test_the_heatmap_shows_the_evidence_for_the_class(end, pixels):
    model = red_or_green(end)
    assert last_feature_map(model).name == "colours"
    heat = aux.grad_cam(model, pixels)
    assert heat.dtype == "float32" and heat.shape == (2, 24, 32)
    red, green = pixels[..., 0] / 255, pixels[..., 1] / 255
    assert np.array_equal(heat, red)  # 1 in the red corner, and 0 in the green one: evidence for the other class
    assert np.array_equal(aux.grad_cam(model, pixels, class_index=1), green)
    assert np.array_equal(aux.grad_cam(model, pixels, [0, 1]), np.stack([red[0], green[1]]))
    assert not aux.grad_cam(model, pixels * 0).any()  # no evidence
    assert np.array_equal(aux.grad_cam(model, pixels, layer="colours"), heat)
    with pytest.raises(aux.UserError, match="has no layer 'color'"):
        aux.grad_cam(model, pixels, layer="color")


@pytest.mark.parametrize("options", [{"as_operations": True}, {"nested": True}, {"use_bias": False}], ids=str)
def test_any_network_that_ends_in_a_dense_softmax_layer(options, pixels):
    """Operations that are not layers, a network inside a network, a dense layer without bias."""
    model = red_or_green(keras.layers.GlobalAveragePooling2D(), **options)
    assert np.array_equal(aux.grad_cam(model, pixels), pixels[..., 0] / 255)


def test_sequential_models_and_a_softmax_of_its_own(pixels):
    layers = [keras.layers.Conv2D(2, 1, use_bias=False), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((24, 32, 3)), *layers, keras.layers.Activation("softmax", dtype="float32")])
    model.set_weights([np.array([[[[1.0, 0], [0, 1], [0, 0]]]])])
    assert np.array_equal(aux.grad_cam(model, pixels), pixels[..., 0] / 255)


def test_the_heatmap_of_a_certain_network_does_not_vanish():
    """The gradient of a softmax of 1 is 0; that of the score before it is not."""
    model = red_or_green(keras.layers.GlobalAveragePooling2D())
    pixels = np.zeros((1, 24, 32, 3), "float32")
    pixels[0, :, :16, 0] = 255
    model.layers[-1].set_weights([np.array([[1e4, 0], [0, 1e4]]), np.zeros(2)])
    assert model(pixels).numpy()[0, 0] == 1 and aux.grad_cam(model, pixels)[0, 12, 4] == 1


@pytest.mark.parametrize(
    ("architecture", "size", "name"),
    [
        (aux.CNN((4, 4), (2, 2), (8,)), 32, "conv2d"),
        (aux.Transfer("MobileNetV2"), 96, "out_relu"),
        (aux.Transfer("MobileNetV2"), 32, "block_13_expand_relu"),  # what follows is one position, or padding
        (aux.Transfer("MobileNetV3Small"), 64, "activation"),  # holds operations that are not layers
    ],
)
def test_the_feature_map_of_the_study_s_networks(architecture, size, name):
    model = architecture.build(3, size)
    assert last_feature_map(model).name.startswith(name)
    model.layers[-1].kernel.assign(np.abs(model.layers[-1].kernel))  # so that there is evidence for some class
    pixels = np.random.default_rng(1).uniform(0, 255, (1, size, size, 3))
    heat = np.concatenate([aux.grad_cam(model, pixels, index) for index in range(3)])
    assert heat.shape == (3, size, size) and heat.min() >= 0 and heat.max() == 1


def test_one_clear_line_for_networks_without_feature_map_or_softmax(pixels):
    inputs = keras.Input((24, 32, 3))
    flat = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(keras.layers.Flatten()(inputs / 255)))
    with pytest.raises(aux.UserError, match="has no feature map of more than one position"):
        aux.grad_cam(flat, pixels)
    logits = keras.Model(inputs, keras.layers.GlobalAveragePooling2D(name="end")(keras.layers.Conv2D(2, 1)(inputs)))
    with pytest.raises(aux.UserError, match=r"ends in end \(GlobalAveragePooling2D\).* needs a dense layer"):
        aux.grad_cam(logits, pixels)
