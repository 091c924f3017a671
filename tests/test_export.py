import dataclasses
import json
import sys

import keras
import numpy as np
import pandas as pd
import pytest

import auxiliary as aux
from animals10.export import as_float32, export_model, load_source
from animals10.export_check import reason_to_reject
from animals10.export_formats import FORMATS, draw_per_class
from animals10.files import file_sha256

EXTRAS = ("ai_edge_litert.interpreter", "onnx", "onnxruntime", "tf2onnx")


@pytest.fixture
def extras():
    for name in EXTRAS:
        pytest.importorskip(name, reason=f"{name} is not installed: run `make extras`", exc_type=ImportError)


@pytest.fixture
def run(prepared):
    return aux.train(prepared, aux.Experiment("tiny", aux.CNN((8,), (4,), (8,), (0.1,)), aux.Training(1e-2, epochs=15)))


def names_in(folder):
    return {path.name for path in folder.iterdir()}


def test_exported_models_agree_with_keras_and_say_how_to_use_them(extras, prepared, run, capfd):
    from ai_edge_litert.interpreter import Interpreter
    from onnxruntime import InferenceSession

    assert export_model(prepared, "tiny", "litert,onnx,litert8", rounds=2) == 0
    said, noise = capfd.readouterr()
    assert noise == "" and all(name in said for name in ("model.predict", "litert8", "onnx", "5 test images"))
    folder = prepared.root / "exports" / run.path.name
    files = {"model.tflite", "model-8bit.tflite", "model.onnx"}
    assert names_in(folder) == files | {f"{name}.json" for name in files}
    for name in files:
        about = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        assert about["class_names"] == ["blue", "green", "red"] and about["input"]["shape"] == ["n", 32, 32, 3]
        assert about["sha256"] == file_sha256(folder / name)
        assert about["source"]["sha256"] == run.record["files_sha256"]["model.keras"]
        assert about["check"]["n"] == 5 and about["check"]["keras_accuracy"] == run.record["row"]["accuracy"]
        assert name == "model-8bit.tflite" or about["check"]["top1_agreement"] == 5
        assert set(about["times"]["models"]) == {"model.predict", "tf.function", *FORMATS}

    # Loaded as their documentation says, they give the stored predictions of the test images.
    stored = run.predictions[[f"p_{name}" for name in about["class_names"]]].to_numpy()
    pixels = np.concatenate([batch for batch, _ in aux.batches(prepared, aux.load_splits(prepared).test)])
    for name, limit in (("model.tflite", 1e-5), ("model-8bit.tflite", 0.2)):
        predict = Interpreter(str(folder / name)).get_signature_runner()
        np.testing.assert_allclose(predict(pixels=pixels)["output_0"], stored, rtol=0, atol=limit)
    session = InferenceSession(folder / "model.onnx")
    np.testing.assert_allclose(session.run(None, {"pixels": pixels})[0], stored, rtol=0, atol=1e-5)
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == about["class_names"]

    # A model with other predictions is not kept, and does not appear in the table.
    changed = dataclasses.replace(FORMATS["onnx"], load=lambda path: lambda pixels: stored[: len(pixels), ::-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, "onnx", changed)
        (folder / "model.onnx").unlink()
        assert export_model(prepared, run.path.name, "onnx", rounds=2) == 1
    said = capfd.readouterr().out
    assert "onnx is not kept: its top-1 class differs for" in said and "\nonnx" not in said and "litert8" in said
    assert "model.onnx" not in names_in(folder) and not [name for name in names_in(folder) if name.startswith(".")]


@pytest.mark.slow
def test_an_ensemble_over_mirror_images_is_exported(extras, prepared, run, capfd):
    other = aux.train(prepared, aux.Experiment("other", aux.CNN((4,), (4,), (8,)), aux.Training(1e-2, epochs=1)))
    both = aux.ensemble(prepared, [run, other], "both", mirrored=True)
    assert export_model(prepared, "both", "litert,onnx", rounds=1) == 0  # the probabilities agree with Keras
    assert names_in(prepared.root / "exports" / both.path.name) >= {"model.tflite", "model.onnx"}


def test_a_file_of_ones_own_is_not_replaced(extras, tmp_path, capfd):
    path, settings = tmp_path / "mine.keras", aux.Settings(root=tmp_path / "empty", raw=tmp_path)
    aux.save_model(aux.CNN((4,), (4,), (8,), (0.1,)).build(2, 32), path, ("a", "b"))
    own = settings.root / "exports" / "mine" / "model.tflite"
    own.parent.mkdir(parents=True)
    own.write_text("mine")
    assert export_model(settings, str(path), rounds=1) == 1 and own.read_text() == "mine"
    assert "model.tflite was not written by make export: move it away." in capfd.readouterr().out
    (tmp_path / "run.json").write_text("[]")  # beside the model, but of no run
    own.unlink()
    assert export_model(settings, str(path), rounds=1) == 0 == export_model(settings, str(path), rounds=1)


def test_limits():
    found = {"n": 100, "largest_difference": 1e-3, "top1_agreement": 100, "accuracy": 0.9, "keras_accuracy": 0.9}
    assert reason_to_reject(found) == ""
    for worse in ({"largest_difference": 2e-3}, {"top1_agreement": 99}, {"largest_difference": float("nan")}):
        assert reason_to_reject(found | worse)
    rough = found | {"largest_difference": 0.3, "top1_agreement": 90}
    assert reason_to_reject(rough | {"accuracy": 0.85}, is_quantised=True) == ""
    reason = reason_to_reject(rough | {"accuracy": 0.84}, is_quantised=True)
    assert "its accuracy is 0.840, the Keras model's 0.900" in reason
    few = rough | {"n": 10, "accuracy": 0.7}
    assert reason_to_reject(few, True) == "" and reason_to_reject(few | {"accuracy": 0.6}, True)


def test_without_images_of_its_own_a_model_is_checked_on_the_sample(extras, tmp_path, capfd):
    path = tmp_path / "mine.keras"
    aux.save_model(aux.CNN((4,), (4,), (8,), (0.1,)).build(2, 32), path, ("a", "b"))
    settings = aux.Settings(root=tmp_path / "empty", raw=tmp_path)
    with pytest.raises(aux.UserError, match=r"litert8 needs training images .* run 01-preprocessing.ipynb first"):
        export_model(settings, str(path), "litert,litert8")
    assert not (settings.root / "exports").exists()
    assert export_model(settings, str(path), rounds=1) == 0
    about = json.loads((settings.root / "exports" / "mine" / "model.tflite.json").read_text(encoding="utf-8"))
    assert "drawings of the shipped sample" in about["check"]["images"] and about["check"]["accuracy"] is None
    assert "without an accuracy" in capfd.readouterr().out


def test_one_clear_line_for_what_is_missing(settings, tmp_path, monkeypatch):
    with pytest.raises(aux.UserError, match="FORMAT is 'tflite'; allowed is litert, litert8, onnx"):
        export_model(settings, "any", "litert, tflite")
    (tmp_path / "damaged.keras").write_text("")
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(aux.UserError, match=r"FORMAT=litert needs ai-edge-litert, .*: run `make extras`"):
        export_model(settings, "any")
    with pytest.raises(aux.UserError, match=r"damaged\.keras cannot be loaded \(it is empty\)"):
        load_source(settings, str(tmp_path / "damaged.keras"))


def test_a_model_trained_in_float16_is_exported_in_float32(capsys):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        mixed = aux.Transfer("MobileNetV2", dense_units=(8,)).build(3, 32)
    finally:
        keras.config.set_dtype_policy("float32")
    plain = aux.Transfer("MobileNetV2", dense_units=(8,)).build(3, 32)
    plain.set_weights(mixed.get_weights())
    copy = as_float32(mixed)
    assert "in float32" in capsys.readouterr().out and as_float32(plain) is plain
    pixels = np.random.default_rng(1).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
    np.testing.assert_array_equal(copy(pixels, training=False), plain(pixels, training=False))


def test_calibration_draws_the_same_number_of_each_class():
    table = pd.DataFrame({"relpath": map(str, range(60)), "label": [0] * 30 + [1] * 10 + [2] * 20})
    drawn = draw_per_class(table, seed=5, most=20)
    assert list(drawn.label.value_counts()) == [6, 6, 6] and drawn.relpath.is_unique
    assert drawn.equals(draw_per_class(table, seed=5, most=20))
    assert list(draw_per_class(table, seed=5).label.value_counts()) == [10, 10, 10]
