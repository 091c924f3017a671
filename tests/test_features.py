import json
import pickle

import keras
import numpy as np
import pytest

from animals10 import features, shards
from animals10.files import UserError
from animals10.models import Transfer
from animals10.settings import Settings


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


def compute(start, stop):
    for row in range(start, stop, 2):
        yield np.full((2, 3), row, "float32"), np.full((2, 1), -row, "float32")


SHAPES = {"split": (3,), "pooled": (1,)}
ROWS = [0, 0, 2, 2, 4, 4, 6, 6, 8, 8]


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    monkeypatch.setattr(shards, "FEWEST_ROWS", 3)  # of two batches: shards of 4, 4 and 2 rows


def make(folder, how=compute, key="a", dtype="float16", title="cache"):
    settings = Settings(root=folder, raw=folder)
    return features.cached_features(settings, title, {"key": key}, SHAPES, dtype, 10, 2, how)


def counting(calls, fails_at=None):
    """Returns `compute` that notes the rows of each call, and is interrupted before a row, the first time."""

    def count(start, stop):
        calls.append((start, stop))
        for row, batch in zip(range(start, stop, 2), compute(start, stop)):
            if row == fails_at and len(calls) == 1:
                raise KeyboardInterrupt
            yield batch

    return count


def in_a_new_process():
    shards._checksum.cache_clear()


def test_features_are_computed_once_and_an_interrupted_computation_resumes_by_shards(tmp_path):
    calls = []
    how = counting(calls, fails_at=6)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, how)
    arrays = make(tmp_path, how)
    assert calls == [(0, 10), (4, 10)]
    rows = np.array([9, 0, 5, 3, 3])
    assert arrays["split"][rows][:, 0].tolist() == [8, 0, 4, 2, 2] and arrays["split"][rows].dtype == "float16"
    assert np.asarray(arrays["split"])[:, 0].tolist() == ROWS and arrays["split"].shape == (10, 3)
    assert np.asarray(arrays["pooled"])[:, 0].tolist() == [-row for row in ROWS]
    make(tmp_path, how)
    make(tmp_path, how, key="b")
    make(tmp_path, how, dtype="float32")
    assert calls[2:] == [(0, 10)] * 2  # another key is another cache
    assert not list(tmp_path.glob("data/features/cache-*/.*"))


@pytest.mark.parametrize("damage", ["flipped bit", "truncated", "removed", "no array", "no checksum", "no mapping"])
def test_a_damaged_shard_is_recomputed_and_no_other(tmp_path, capsys, damage):
    make(tmp_path)
    (path,) = tmp_path.glob("data/features/cache-*/split-001.npy")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    sums = path.with_name("001.json")
    if damage == "removed":
        path.unlink()
    elif damage == "no checksum":
        sums.unlink()
    elif damage == "no mapping":
        sums.write_text("[]")
    elif damage == "no array":
        path.write_bytes(b"")
    else:
        path.write_bytes(data if damage == "flipped bit" else data[:-4])
    in_a_new_process()
    calls = []
    assert np.asarray(make(tmp_path, counting(calls))["split"])[:, 0].tolist() == ROWS
    assert calls == [(4, 8)]
    assert ("1 of its shards" in capsys.readouterr().out) == (damage != "no checksum")


@pytest.mark.parametrize("damage", ["other key", "no mapping", "of an earlier version"])
def test_a_cache_of_another_key_is_not_used(tmp_path, capsys, damage):
    make(tmp_path)
    (path,) = tmp_path.glob("data/features/cache-*/key.json")
    stored = json.loads(path.read_text())
    if damage == "of an earlier version":
        stored = {"key": stored["key"], "crc32": {"split": 1, "pooled": 2}}
        path.with_name("split.npy").write_bytes(b"large")
    else:
        stored = [] if damage == "no mapping" else stored | {"key": "other"}
    path.write_text(json.dumps(stored))
    calls = []
    make(tmp_path, counting(calls))
    assert calls == [(0, 10)] and "recomputed" in capsys.readouterr().out
    assert not path.with_name("split.npy").exists()


def test_a_network_may_be_called_as_in_a_hub(tmp_path):
    make(tmp_path, title="timm/tiny")
    assert [path.name.rpartition("-")[0] for path in tmp_path.glob("data/features/[!.]*")] == ["timm_tiny"]


def test_a_small_disk_and_large_values_are_clear_errors(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"beyond float16: set ANIMALS10_FEATURE_CACHE=float32"):
        make(tmp_path, lambda start, stop: iter([(np.full((2, 3), 1e6, "float32"), np.zeros((2, 1)))]))
    monkeypatch.setattr(shards, "SPARE_BYTES", 10**18)
    with pytest.raises(UserError, match=r"lower ANIMALS10_VIEWS, or set ANIMALS10_FEATURE_CACHE=off"):
        make(tmp_path, key="b")


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 32), (257, 32), (2_000, 64), (73_280, 32), (4_000_000, 64)])
def test_a_shard_is_a_whole_number_of_batches_and_there_are_not_too_many(rows, batch_size):
    size = shards.Shards.rows_per_shard(rows, batch_size)
    assert size % batch_size == 0 and -(-rows // size) <= 64


def test_another_process_computes_with_a_network_what_this_one_does():
    """It knows neither Keras's model nor the classes of the user's own."""

    class Own(keras.layers.Layer):
        def call(self, values):
            return keras.ops.sin(values)

    inputs = keras.Input((8, 8, 3))
    x = Own()(keras.layers.Conv2D(2, 3)(inputs))
    network = features.FrozenNetwork(keras.Model(inputs, [keras.layers.GlobalAveragePooling2D()(x), x]))
    pixels = keras.ops.convert_to_tensor(np.random.default_rng(1).uniform(0, 255, (3, 8, 8, 3)).astype("float32"))
    found, expected = pickle.loads(pickle.dumps(network))(pixels), network(pixels)
    assert len(found) == 2 and all(map(np.array_equal, found, expected))
