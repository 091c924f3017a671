import json

import numpy as np
import pytest

import activations
import auxiliary as aux

LAST = {"MobileNetV2": 20, "ResNet50V2": 20, "EfficientNetV2S": 30}
OPTIONS = {"learning_rate": 1e-3, "epochs": 2}


def with_(settings, **changes):
    return settings.model_copy(update=changes)


@pytest.mark.parametrize(
    ("backbone", "tuned"),
    # One head stands for all: pooled features come from the same pass as those that a fine-tuning is fed with.
    [("MobileNetV2", False), *((backbone, True) for backbone in LAST)],
    ids=["head", *LAST],
)
def test_training_through_the_store_is_training_the_whole_model(prepared, backbone, tuned):
    architecture = aux.Transfer(backbone, (8,), (0.2,), unfreeze_last=LAST[backbone] if tuned else 0)
    runs = [
        aux.train(with_(prepared, store=store), "run", architecture, **OPTIONS, augmented=False, batchsize=16)
        for store in ("float32", "off")
    ]
    losses = [run.history[["loss", "val_loss"]].to_numpy() for run in runs]
    assert losses[0].shape == (2, 2) and np.allclose(*losses, rtol=1e-4)
    probabilities = [run.predictions[["p_blue", "p_green", "p_red"]].to_numpy() for run in runs]
    assert np.allclose(*probabilities, atol=1e-4)


@pytest.mark.parametrize(
    ("backbone", "last", "cut"),
    [
        ("MobileNetV2", 20, "block_14_add"),
        ("MobileNetV2", 25, "block_13_project_BN"),
        ("ResNet50V2", 20, "conv5_block1_out"),
        ("EfficientNetV2S", 30, "block6m_add"),
    ],
)
def test_the_cut_is_the_last_layer_through_which_everything_passes(backbone, last, cut):
    architecture = aux.Transfer(backbone)
    model = architecture.build(3, 64)
    assert activations.cut_before(model, architecture.end(model) - last).name == cut
    inside = architecture.end(model) - last + 1  # within a block whose input is needed again after it
    assert activations.cut_before(model, inside).name == cut


def test_the_saved_model_says_what_its_end_said_of_stored_activations(prepared):
    run = aux.train(prepared, "run", aux.Transfer("MobileNetV2", (8,), unfreeze_last=20), **OPTIONS)  # float16 to train
    model, names = aux.load_model(run.file("model.keras"))
    test = aux.load_splits(prepared).test
    again = aux.predict_table(model, aux.batches(prepared, test), test, names)
    assert np.allclose(again.p_red, run.predictions.p_red, atol=1e-5)


def test_runs_of_one_backbone_share_a_store_and_a_repeated_photograph_is_computed_once(prepared, monkeypatch):
    rows = []
    stored = activations.stored

    def counting(*arguments):
        *most, compute = arguments
        return stored(*most, lambda start: (rows.append(len(batch[0])) or batch for batch in compute(start)))

    monkeypatch.setattr(activations, "stored", counting)
    splits = aux.load_splits(prepared)
    options = OPTIONS | {"epochs": 1, "class_balance": "max"}
    aux.train(prepared, "a", aux.Transfer("MobileNetV2", (8,)), **options)
    assert sum(rows) == prepared.views * len(splits.train) + len(splits.val) + len(splits.test)
    assert len(aux.balance(splits.train, "max", prepared.seed)) > len(splits.train)
    aux.train(prepared, "b", aux.Transfer("MobileNetV2", (4, 4), (0.1, 0)), **options)
    aux.train(prepared, "c", aux.Transfer("MobileNetV2", (8,), unfreeze_last=20), **options)
    assert sum(rows) == prepared.views * len(splits.train) + len(splits.val) + len(splits.test)


def test_each_epoch_sees_another_view(prepared):
    part = aux.load_splits(prepared).train.head(3)
    batches = aux.view_batches(prepared, part, views=2, augmented=True, batchsize=3)
    first, second = [pixels.numpy() for pixels, _ in batches]
    assert not np.array_equal(first, second)
    later = next(iter(aux.view_batches(prepared, part, 2, True, start=3, batchsize=3)))[0].numpy()
    assert np.array_equal(second, later)
    array = np.arange(8.0).reshape(8, 1)  # 2 views of 4 photographs
    epochs = [view * 4 + np.array([2, 0, 2]) for view in (0, 1)]
    fed = list(activations.batches(array, np.arange(4, dtype="int32"), lambda: epochs, batchsize=2))
    assert [pixels.numpy().ravel().tolist() for pixels, _ in fed] == [[2, 0], [2], [6, 4], [6]]
    assert [labels.numpy().tolist() for _, labels in fed] == [[2, 0], [2]] * 2


def compute(start):
    for row in range(start, 10, 2):
        yield np.full((2, 3), row, "float32"), np.full((2, 1), -row, "float32")


SHAPES = {"cut": (3,), "pooled": (1,)}


def make(folder, how=compute, key="a", dtype="float16"):
    return activations.stored(folder, "store", {"key": key}, SHAPES, dtype, 10, how)


def test_a_store_is_computed_once_and_goes_on_where_it_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(activations, "SECONDS_BETWEEN_FLUSHES", 0)
    starts = []

    def breaks(start):
        starts.append(start)
        for batch in compute(start):
            if batch[0][0, 0] == 6 and len(starts) == 1:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, breaks)
    assert not list(tmp_path.glob("store-*"))  # nothing that looks whole
    arrays = make(tmp_path, breaks)
    assert starts == [0, 6]
    assert arrays["cut"][:, 0].tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8] and arrays["cut"].dtype == "float16"
    make(tmp_path, breaks)
    make(tmp_path, breaks, key="b")
    make(tmp_path, breaks, dtype="float32")
    assert starts == [0, 6, 0, 0]  # another key is another store


@pytest.mark.parametrize("harm", ["flip", "cut", "key", "remove"])
def test_a_damaged_store_is_not_used(tmp_path, capsys, harm):
    make(tmp_path)
    (path,) = tmp_path.glob("store-*/cut.npy")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    key = path.with_name("key.json")
    if harm == "key":
        key.write_text(json.dumps(json.loads(key.read_text()) | {"key": "other"}))
    elif harm == "remove":
        path.unlink()
    else:
        path.write_bytes(data if harm == "flip" else data[:-4])
    activations._is_whole.cache_clear()  # as in a new process
    assert make(tmp_path)["cut"][-1, 0] == 8 and "computed anew" in capsys.readouterr().out


def test_too_little_disk_and_too_large_values_are_clear_errors(tmp_path, monkeypatch):
    with pytest.raises(aux.StudyError, match=r"beyond float16: set ANIMALS10_STORE=float32"):
        make(tmp_path, lambda start: [(np.full((2, 3), 1e6, "float32"), np.zeros((2, 1)))])
    monkeypatch.setattr(activations, "SPARE_BYTES", 10**18)
    with pytest.raises(aux.StudyError, match=r"lower ANIMALS10_VIEWS, or set ANIMALS10_STORE=off"):
        make(tmp_path, key="b")
