import json

import keras
import numpy as np
import pytest

from animals10 import features
from animals10.files import UserError
from animals10.models import Transfer


@pytest.mark.parametrize(
    ("backbone", "last", "split"),
    [
        ("MobileNetV2", 20, "block_14_add"),
        ("MobileNetV2", 25, "block_13_project_BN"),
        ("ResNet50V2", 20, "conv5_block1_out"),
        ("EfficientNetV2S", 30, "block6m_add"),
    ],
)
def test_the_split_layer_is_the_last_one_through_which_everything_passes(backbone, last, split):
    architecture = Transfer(backbone, unfreeze_last=last)
    model = architecture.build(3, 32)
    position = model.layers.index(model.get_layer("pooled")) - last
    assert features.split_before(model, model.layers[position]).name == split
    # the next layer lies within a block whose input is needed again after it
    assert features.split_before(model, model.layers[position + 1]).name == split
    expected = "block_13_project_BN" if backbone == "MobileNetV2" else split  # cached before the last 25 at least
    assert architecture.feature_layers(model).layer_names == {"split": expected, "pooled": "pooled"}


def test_a_model_in_inference_mode_takes_any_number_of_images():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Dropout(0.9)(keras.layers.Conv2D(2, 3)(inputs))
    model = keras.Model(inputs, [x, keras.layers.GlobalAveragePooling2D()(x)])
    function = features.inference_function(model)
    for n in (1, 3):
        pixels = np.random.default_rng(n).uniform(0, 255, (n, 8, 8, 3)).astype("float32")
        found, expected = function(keras.ops.convert_to_tensor(pixels)), model(pixels, training=False)
        assert [array.shape for array in found] == [(n, 6, 6, 2), (n, 2)]
        assert all(np.allclose(a, b, rtol=1e-4, atol=1e-3) for a, b in zip(found, expected))


def test_the_checksum_depends_on_every_weight():
    layers = [keras.layers.Dense(2), keras.layers.BatchNormalization()]
    for layer in layers:
        layer.build((None, 2))
    before = features.weights_sha256(layers)
    assert features.weights_sha256(layers) == before
    layers[1].moving_mean.assign([0.0, 1.0])
    assert features.weights_sha256(layers) != before


def test_each_epoch_is_fed_its_own_view():
    array = np.arange(8.0).reshape(8, 1)  # 2 views of 4 images
    epochs = [view * 4 + np.array([2, 0, 2]) for view in (0, 1)]
    found = list(features.feature_batches(array, np.arange(4, dtype="int32"), lambda: epochs, batch_size=2))
    assert [values.numpy().ravel().tolist() for values, _ in found] == [[2, 0], [2], [6, 4], [6]]
    assert [labels.numpy().tolist() for _, labels in found] == [[2, 0], [2]] * 2
    assert found[0][0].dtype == "float32"


def compute(start):
    for row in range(start, 10, 2):
        yield np.full((2, 3), row, "float32"), np.full((2, 1), -row, "float32")


SHAPES = {"split": (3,), "pooled": (1,)}


def make(folder, how=compute, key="a", dtype="float16"):
    return features.cached_features(folder, "cache", {"key": key}, SHAPES, dtype, 10, how)


def test_features_are_computed_once_and_an_interrupted_computation_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SECONDS_BETWEEN_FLUSHES", 0)
    starts = []

    def interrupted(start):
        starts.append(start)
        for batch in compute(start):
            if batch[0][0, 0] == 6 and len(starts) == 1:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, interrupted)
    assert not list(tmp_path.glob("cache-*"))  # nothing that looks complete
    arrays = make(tmp_path, interrupted)
    assert starts == [0, 6]
    assert arrays["split"][:, 0].tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8] and arrays["split"].dtype == "float16"
    make(tmp_path, interrupted)
    make(tmp_path, interrupted, key="b")
    make(tmp_path, interrupted, dtype="float32")
    assert starts == [0, 6, 0, 0]  # another key is another cache


@pytest.mark.parametrize("damage", ["a word", "no arrays"])
def test_a_damaged_beginning_of_a_cache_is_begun_anew(tmp_path, damage):
    with pytest.raises(ZeroDivisionError):
        make(tmp_path, lambda start: 1 // 0)
    (work,) = tmp_path.glob(".cache-*[!k]")
    if damage == "a word":
        (work / "progress").write_text("half")
    else:
        (work / "split.npy").write_bytes(b"")
    assert make(tmp_path)["split"][:, 0].tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]


def test_a_network_may_be_called_as_in_a_hub(tmp_path):
    features.cached_features(tmp_path, "timm/tiny", {}, SHAPES, "float16", 10, compute)
    assert [path.name.rpartition("-")[0] for path in tmp_path.glob("[!.]*")] == ["timm_tiny"]


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "other key", "removed", "no mapping", "no array"])
def test_a_damaged_cache_is_not_used(tmp_path, capsys, damage):
    make(tmp_path)
    (path,) = tmp_path.glob("cache-*/split.npy")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    key = path.with_name("key.json")
    if damage == "other key":
        key.write_text(json.dumps(json.loads(key.read_text()) | {"key": "other"}))
    elif damage == "removed":
        path.unlink()
    elif damage == "no mapping":
        key.write_text("[]")
    elif damage == "no array":
        path.write_bytes(b"")
    else:
        path.write_bytes(data if damage == "flipped bit" else data[:-4])
    features._is_complete.cache_clear()  # as in a new process
    assert make(tmp_path)["split"][-1, 0] == 8 and "recomputed" in capsys.readouterr().out


def test_a_small_disk_and_large_values_are_clear_errors(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"beyond float16: set ANIMALS10_FEATURE_CACHE=float32"):
        make(tmp_path, lambda start: [(np.full((2, 3), 1e6, "float32"), np.zeros((2, 1)))])
    monkeypatch.setattr(features, "SPARE_BYTES", 10**18)
    with pytest.raises(UserError, match=r"lower ANIMALS10_VIEWS, or set ANIMALS10_FEATURE_CACHE=off"):
        make(tmp_path, key="b")
