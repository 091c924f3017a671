"""Training in bfloat16: the stored model is float32 and gives the stored probabilities; one line where it cannot be."""

import dataclasses

import keras
import numpy as np
import pytest

import auxiliary as aux
from animals10 import precision
from animals10.input_pipeline import batches
from animals10.precision import frozen_precision, in_precision, resolve_precision
from animals10.progress import tell_once

CNN = aux.Experiment("cnn", aux.CNN((4, 8), (2, 2), (8,)), aux.Training(1e-3, 2))
HEAD = aux.Experiment("head", aux.Transfer("MobileNetV2", (8,)), aux.Training(1e-3, 2))
TUNED = aux.Experiment("tuned", aux.Transfer("MobileNetV2", (8,), unfreeze_last=20), aux.Training(1e-4, 1), HEAD)


@pytest.fixture
def in_bfloat16(prepared, monkeypatch):
    monkeypatch.setattr(precision, "multiplies_in_bfloat16", lambda: True)  # every processor can, some slowly
    tell_once.cache_clear()
    return prepared.model_copy(update={"precision": "bfloat16"})


@pytest.mark.parametrize(
    "experiment", [pytest.param(CNN, id="cnn"), pytest.param(TUNED, id="tuned", marks=pytest.mark.slow)]
)
def test_a_bfloat16_training_stores_a_float32_model_that_gives_the_stored_probabilities(in_bfloat16, experiment):
    run = aux.train(in_bfloat16, experiment)
    assert run.record["spec"]["settings"]["precision"] == "mixed_bfloat16" and run.row["device"].endswith(", bfloat16")
    model, names = aux.load_model(run.file("model.keras"))
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    stored = run.predictions[[f"p_{name}" for name in names]].to_numpy()
    probabilities = model.predict(batches(in_bfloat16, aux.load_splits(in_bfloat16).test), verbose=0)
    assert np.allclose(stored, probabilities, atol=2e-6)

    caches = sorted((in_bfloat16.data / "features").glob("[!.]*"))
    plain = aux.train(in_bfloat16.model_copy(update={"precision": "float32"}), experiment)
    assert sorted((in_bfloat16.data / "features").glob("[!.]*")) == caches  # the frozen pass was in float32 already
    assert plain.record["digest"] != run.record["digest"] and "bfloat16" not in plain.row["device"]
    if experiment is CNN:  # the features of a random MobileNetV2 are 0 here, in both precisions
        assert not plain.history.equals(run.history)
    assert plain.history.val_loss.to_numpy() == pytest.approx(run.history.val_loss.to_numpy(), rel=0.2)


@pytest.mark.slow
def test_fine_tunings_in_bfloat16_share_the_features_of_their_test_predictions(in_bfloat16):
    tuned = aux.Experiment("tuned", aux.Transfer("ResNet50V2", (8,), unfreeze_last=20), aux.Training(1e-3, 1))
    for rate in (1e-3, 1e-4):
        run = aux.train(in_bfloat16, dataclasses.replace(tuned, training=aux.Training(rate, 1)))
    caches = (in_bfloat16.data / "features").glob("[!.]*")
    # In bfloat16 for training and validation, in float32 for the stored predictions.
    assert sorted(path.name.split("-")[1] for path in caches) == ["test", "train", "val", "val"]
    model, names = aux.load_model(run.file("model.keras"))
    stored = run.predictions[[f"p_{name}" for name in names]].to_numpy()
    probabilities = model.predict(batches(in_bfloat16, aux.load_splits(in_bfloat16).test), verbose=0)
    assert np.allclose(stored, probabilities, atol=2e-6)


@pytest.mark.parametrize("half", ["bfloat16", "float16"])
def test_scaling_and_probabilities_stay_float32_and_layers_stay_frozen(half):
    keras.backend.clear_session()  # which numbers layers anew
    model = aux.Transfer("MobileNetV2", (8,)).build(3, 32)
    copy = in_precision(model, f"mixed_{half}")
    kinds = {layer.name: layer.compute_dtype for layer in copy.layers}
    assert kinds["Conv1"] == kinds["bn_Conv1"] == kinds["dense"] == half
    assert kinds["rescaling"] == kinds[copy.layers[-1].name] == "float32" and copy.output.dtype == "float32"
    assert {weight.dtype for weight in copy.weights} == {"float32"}
    assert [layer.trainable for layer in copy.layers] == [layer.trainable for layer in model.layers]


def test_a_network_with_operations_beside_layers_is_copied():
    model = aux.Transfer("MobileNetV3Small", (8,)).build(3, 32)
    copy, pixels = in_precision(model, "mixed_bfloat16"), np.full((2, 32, 32, 3), 90.0, "float32")
    assert copy.get_layer("conv").compute_dtype == "bfloat16"
    assert np.allclose(model(pixels), copy(pixels), atol=0.02)


def test_probabilities_that_an_operation_gives_stay_float32():
    pixels = keras.Input((8, 8, 3))
    logits = keras.layers.Dense(3)(keras.layers.Flatten()(pixels))
    copy = in_precision(keras.Model(pixels, keras.ops.softmax(logits)), "mixed_float16")
    assert copy.output.dtype == "float32" and copy.layers[1].compute_dtype == "float16"


def test_the_setting_is_resolved_by_machine_and_architecture_with_one_line(in_bfloat16, monkeypatch, capsys):
    assert resolve_precision("auto", CNN.model, False) == "mixed_bfloat16"
    assert resolve_precision("bfloat16", HEAD.model, False) == "mixed_bfloat16"
    assert resolve_precision("auto", aux.Transfer("ResNet50V2"), False) == "mixed_bfloat16"
    assert resolve_precision("auto", HEAD.model, False) == resolve_precision("float32", CNN.model, False) == "float32"
    assert "PRECISION=auto: MobileNetV2 gains nothing by bfloat16, so float32 is used." in capsys.readouterr().err
    assert resolve_precision("auto", TUNED.model, False) == "mixed_bfloat16"
    assert "MobileNetV2 is trained in bfloat16, after a frozen pass in float32." in capsys.readouterr().err
    assert resolve_precision("auto", aux.Transfer("MobileNetV3Large", unfreeze_last=20), False) == "float32"
    assert {resolve_precision(one, HEAD.model, True) for one in ("auto", "default")} == {"mixed_float16"}
    assert resolve_precision("default", CNN.model, False) == resolve_precision("float32", CNN.model, True) == "float32"
    assert frozen_precision("mixed_bfloat16", TUNED.model, False) == "float32"
    assert frozen_precision("mixed_bfloat16", aux.Transfer("ResNet50V2"), False) == "mixed_bfloat16"

    monkeypatch.setattr(precision, "multiplies_in_bfloat16", lambda: False)
    settings = in_bfloat16.model_copy(update={"precision": "float32"})
    expected = aux.train(settings, dataclasses.replace(CNN, training=aux.Training(1e-3, 1)))
    capsys.readouterr()
    run = aux.train(in_bfloat16, dataclasses.replace(CNN, training=aux.Training(1e-3, 1)))
    assert run.path == expected.path
    assert capsys.readouterr().err.count("this machine does not multiply in bfloat16, so float32 is used") == 1
    assert keras.config.dtype_policy().name == "float32"
