"""Honest probabilities: temperatures, calibration errors, rejection, and what uses them."""

import json
import os
import subprocess
import sys

import keras
import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

import auxiliary as aux
from animals10.adoption import adopt_runs
from animals10.calibration import (
    Calibration,
    accepted_metrics,
    calibration_metrics,
    coverage_curve,
    expected_calibration_error,
    fit_temperature,
    reliability,
    scaled,
    scaled_predictions,
    with_temperature,
)
from animals10.demo import predict_file
from animals10.export import export_model
from animals10.files import REPOSITORY
from animals10.inference import classify_files
from animals10.report import render
from animals10.verification import verify_runs

TINY = aux.Experiment("tiny", aux.CNN((4,), (4,), (8,)), aux.Training(learning_rate=1e-2, epochs=2))
CLASSES = ["blue", "green", "red"]


def drawn(n=4000, temperature=3.0, seed=1):
    """Probabilities that are too confident by a known temperature, and labels drawn from the right ones."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2.5, (n, 3))
    labels = (rng.random((n, 1)) > softmax(logits, axis=1).cumsum(axis=1)).sum(axis=1)
    return softmax(temperature * logits, axis=1), labels


def table(probabilities, labels):
    names = np.array(CLASSES)
    facts = {"relpath": [f"{i}.jpg" for i in range(len(labels))], "category": names[labels]}
    facts |= {"predicted": names[probabilities.argmax(axis=1)], "confidence": probabilities.max(axis=1)}
    return pd.DataFrame(facts).join(pd.DataFrame(probabilities, columns=[f"p_{name}" for name in CLASSES]))


@pytest.fixture
def run(prepared):
    """A stored run that is too confident: by 2.5, as its validation predictions say."""
    run = aux.train(prepared, TINY)
    aux.write_table(table(*drawn(500, 2.5)), run.file("validation.csv"))
    record = run.record
    del record["files_sha256"]["validation.csv"]
    run.file("run.json").write_text(json.dumps(record), encoding="utf-8")
    return run


def classified(settings, *words):
    command = [sys.executable, REPOSITORY / "scripts" / "classify.py", *map(str, words)]
    environment = {"ANIMALS10_ROOT": str(settings.root), "ANIMALS10_RAW": str(settings.raw), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, encoding="utf-8")


# ── Temperatures and errors ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("temperature", [0.5, 3.0])
def test_a_known_miscalibration_is_recovered_and_no_class_changes(temperature):
    probabilities, labels = drawn(temperature=temperature)
    found = fit_temperature(probabilities, labels)
    assert found == pytest.approx(temperature, rel=0.1)
    before, after = table(probabilities, labels), scaled_predictions(table(probabilities, labels), found)
    worse, better = calibration_metrics(before), calibration_metrics(after)
    assert worse["ece"] > worse["ece_by_chance"] and better["ece"] < better["ece_by_chance"]
    assert better["nll"] < worse["nll"] and better["brier"] < worse["brier"]
    assert better["accuracy"] == worse["accuracy"] and better["low"] < better["accuracy"] < better["high"]
    assert after.predicted.equals(before.predicted)
    assert (scaled(probabilities, found).argmax(axis=1) == probabilities.argmax(axis=1)).all()
    assert np.allclose(after.filter(like="p_").sum(axis=1), 1)


def test_saturated_probabilities_stay_numbers():
    probabilities = np.array([[1, 0, 0], [1, 0, 0], [0, 0.25, 0.75]], "float32")
    labels = np.array([0, 1, 2])  # one is certain and wrong
    temperature = fit_temperature(probabilities, labels)
    found = calibration_metrics(scaled_predictions(table(probabilities, labels), temperature))
    assert (
        np.isfinite(list(found.values())).all()
        and found["nll"] < calibration_metrics(table(probabilities, labels))["nll"]
    )


def test_metrics_are_those_of_their_definitions():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.3, 0.6, 0.1]])
    found = calibration_metrics(table(probabilities, np.array([0, 0])))
    assert found["nll"] == pytest.approx(-(np.log(0.8) + np.log(0.3)) / 2)
    assert found["brier"] == pytest.approx((0.04 + 0.01 + 0.01 + 0.49 + 0.36 + 0.01) / 2)
    assert found["ece"] == pytest.approx((0.2 + 0.6) / 2)  # each image has a bin of its own
    assert found["confidence"] == pytest.approx(0.7) and found["accuracy"] == 0.5
    # 15 bins of equal mass, in any order of the images; equal confidences share a bin.
    confidence = np.repeat(np.linspace(0.3, 0.99, 15), 20)
    correct = np.arange(300) % 2 == 0
    order = np.random.default_rng(1).permutation(300)
    ece = expected_calibration_error(confidence, correct)
    assert ece[0] == pytest.approx(np.abs(np.linspace(0.3, 0.99, 15) - 0.5).mean())
    assert expected_calibration_error(confidence[order], correct[order])[0] == pytest.approx(ece[0])
    assert expected_calibration_error(np.ones(40), np.arange(40) < 30)[0] == pytest.approx(0.25)


def test_chance_explains_the_error_of_right_probabilities_in_95_of_100_cases():
    rng = np.random.default_rng(2)
    above = []
    for _ in range(200):
        confidence = rng.uniform(0.4, 1, 300)
        ece, by_chance = expected_calibration_error(confidence, rng.random(300) < confidence, draws=200)
        above.append(ece > by_chance)
    assert 0.01 < np.mean(above) < 0.1


# ── Rejection ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def calibration_of(validation, test, temperature=1.0):
    tables = {"validation": validation, "test": test}
    kinds = {"as trained": 1.0, "calibrated": temperature}
    found = {(part, kind): scaled_predictions(tables[part], kinds[kind]) for part in tables for kind in kinds}
    return Calibration(aux.Run("tiny"), temperature, found)


def test_a_threshold_is_chosen_on_validation_and_reported_on_test():
    validation, test = table(*drawn(seed=1)), table(*drawn(1000, seed=2))
    found = calibration_of(validation, test, 3.0).rejection(accuracy=0.9)
    for row in found.to_dict("records"):
        kind = 3.0 if row["probabilities"] == "calibrated" else 1.0
        own, other = scaled_predictions(validation, kind), scaled_predictions(test, kind)
        chosen = accepted_metrics(own, row["threshold"])
        assert chosen["accuracy"] == pytest.approx(row["validation_accuracy"]) and chosen["accuracy"] >= 0.9
        assert chosen["coverage"] == pytest.approx(row["validation_coverage"])
        lower = coverage_curve(own)
        assert not (lower[lower.threshold < row["threshold"]].accuracy >= 0.9).any()  # as many as possible
        expected = accepted_metrics(other, row["threshold"])
        assert {name: row[name] for name in expected} == expected
        assert (
            row["low"] < row["accuracy"] < row["high"]
            and row["accepted"] == (other.confidence >= row["threshold"]).sum()
        )
    worse = calibration_of(validation, table(*drawn(1000, seed=3)), 3.0).rejection(accuracy=0.9)
    assert worse.threshold.equals(found.threshold) and not worse.accuracy.equals(found.accuracy)
    half = calibration_of(validation, test, 3.0).rejection(coverage=0.5)
    assert ((half.validation_coverage >= 0.5) & (half.validation_coverage < 0.51)).all()
    table_of_test = calibration_of(validation, test, 3.0).coverage
    assert table_of_test.coverage.is_monotonic_decreasing and table_of_test.accepted[0] == 1000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "Give either an accuracy or a coverage"),
        ({"accuracy": 0.9, "coverage": 0.9}, "Give either an accuracy or a coverage"),
        ({"accuracy": 1.5}, r"accuracy is 1\.5; allowed is a share above 0, up to 1"),
        ({"coverage": 0}, "coverage is 0; allowed"),
    ],
)
def test_what_cannot_be_chosen_is_one_clear_line(options, said):
    two = table(np.array([[0.9, 0.1, 0], [0.9, 0.1, 0]]), np.array([0, 1]))  # equally confident, one is wrong
    with pytest.raises(aux.UserError, match=said) as error:
        calibration_of(two, two).rejection(**options)
    assert "\n" not in str(error.value)


def test_an_accuracy_that_no_threshold_reaches_has_none():
    two = table(np.array([[0.9, 0.1, 0], [0.9, 0.1, 0]]), np.array([0, 1]))  # equally confident, one is wrong
    found = calibration_of(two, two).rejection(accuracy=0.99)
    assert found.threshold.isna().all() and found.accuracy.isna().all() and (found.accepted == 0).all()
    assert calibration_of(two, two).rejection(accuracy=0.5).threshold[0] == pytest.approx(0.9, abs=2e-6)


# ── Stored runs ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_temperature_is_stored_with_the_run_and_nothing_else_changes(prepared, run, tmp_path, capsys):
    before = prepared.results.read_bytes()
    found = aux.calibrate(prepared, run)
    assert found.temperature == pytest.approx(2.5, rel=0.2) and run.temperature == found.temperature
    assert list(found.table.images) == ["validation", "validation", "test", "test"]
    assert found.table.accuracy[0] == found.table.accuracy[1] and found.table.nll[1] < found.table.nll[0]
    assert found.table.accuracy[2] == found.table.accuracy[3] == run.row["accuracy"]
    assert str(found).startswith(f"tiny: temperature {found.temperature:.3f}, fitted on the validation images\n")
    stored = run.file("calibration.json").read_bytes()
    assert aux.calibrate(prepared, run).temperature == found.temperature
    assert run.file("calibration.json").read_bytes() == stored and prepared.results.read_bytes() == before
    assert aux.train(prepared, TINY) == run and verify_runs(prepared) == 0
    assert adopt_runs(prepared.model_copy(update={"root": tmp_path / "mine"}), prepared.root) == 0
    adopted = aux.Run("tiny", next((tmp_path / "mine" / "study").iterdir()))
    assert adopted.temperature == found.temperature and "calibrated" in aux.plot_calibration([adopted]).get_label()

    run.file("calibration.json").write_text('{"temperature": 1.0}')
    assert verify_runs(prepared) == 1
    assert f"its temperature is 1.0 in calibration.json but {found.temperature}" in capsys.readouterr().out
    for damage in ('{"temperature": -1}', "{}", "[", "[]", '{"temperature": "warm"}'):
        run.file("calibration.json").write_text(damage)
        with pytest.raises(aux.UserError, match=r"calibration\.json is damaged .*calibrate the run again"):
            _ = run.temperature


def test_validation_predictions_are_stored_after_training_and_made_for_older_runs(prepared, capsys):
    run = aux.train(prepared, TINY)
    stored, record = run.validation, run.record
    splits = aux.load_splits(prepared)
    assert list(stored.relpath) == list(splits.val.relpath)
    assert (stored.category == stored.predicted).mean() == pytest.approx(run.row["acc_val"])
    path = run.file("validation.csv")
    path.unlink()
    assert verify_runs(prepared) == 1 and "validation.csv is not the file" in capsys.readouterr().out

    del record["files_sha256"]["validation.csv"]  # as a version that did not store them left it
    run.file("run.json").write_text(json.dumps(record), encoding="utf-8")
    aux.calibrate(prepared, run)
    assert "predicting 10 validation images" in "".join(capsys.readouterr())
    pd.testing.assert_frame_equal(run.validation, stored, rtol=0, atol=1e-6)
    assert verify_runs(prepared) == 0
    aux.calibrate(prepared, run)
    assert "predicting" not in "".join(capsys.readouterr())

    path.unlink()
    record["row"]["data_sha256"] = "0" * 64
    run.file("run.json").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(aux.UserError, match="tiny cannot be calibrated: it was trained on other images or another spl"):
        aux.calibrate(prepared, run)
    run.file("model.keras").unlink()
    with pytest.raises(aux.UserError, match=r"holds neither validation\.csv nor model\.keras"):
        aux.calibrate(prepared, run)
    with pytest.raises(aux.UserError, match="gone is not trained here: ANIMALS10_ONLY leaves it out"):
        aux.calibrate(prepared, aux.Run("gone", why="ANIMALS10_ONLY leaves it out."))


def test_a_run_without_errors_keeps_its_probabilities(prepared, run, capsys):
    perfect = table(np.array([[0.9, 0.1, 0], [0.2, 0.8, 0]]), np.array([0, 1]))
    aux.write_table(perfect, run.file("validation.csv"))
    assert aux.calibrate(prepared, run).temperature == 1
    assert "all 2 validation images are classified correctly, so the temperature stays 1" in "".join(
        capsys.readouterr()
    )


def test_an_ensemble_is_calibrated_on_its_own_probabilities(prepared, run):
    other = aux.train(prepared, aux.Experiment("other", aux.CNN((4,), (4,), (4,)), aux.Training(1e-2, epochs=1)))
    both = aux.ensemble(prepared, [run, other], "both")
    assert (both.validation.category == both.validation.predicted).mean() == both.row["acc_val"]
    found = aux.calibrate(prepared, both)
    assert found.table.n[0] == 10 and verify_runs(prepared, ["both"]) == 0


# ── What uses them ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_networks_of_any_end_give_calibrated_probabilities():
    pixels = np.random.default_rng(1).uniform(0, 255, (8, 16, 16, 3)).astype("float32")
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    bias = {"bias_initializer": keras.initializers.RandomNormal(stddev=1, seed=1)}
    dense = keras.Model(inputs, keras.layers.Dense(3, activation="softmax", **bias)(x))
    softmax_layer = keras.Model(inputs, keras.layers.Softmax()(keras.layers.Dense(3, **bias)(x)))
    for model in (dense, softmax_layer):
        before = model(pixels).numpy()
        found = with_temperature(model, 2.0)
        assert np.allclose(found(pixels), scaled(before, 2.0), atol=1e-6)
        assert np.array_equal(model(pixels), before)  # the network itself is as it was
    assert with_temperature(dense, 2.0).count_params() == dense.count_params()


def test_the_command_gives_calibrated_probabilities_and_marks_rejected_files(prepared, run, tmp_path, capsys):
    test = aux.load_splits(prepared).test
    files = [prepared.raw / source for source in test.source]
    letter = tmp_path / "letter.jpg"
    letter.write_text("a letter")
    out = tmp_path / "out.csv", tmp_path / "out.json"
    temperature = aux.calibrate(prepared, run).temperature
    expected = scaled(run.predictions[[f"p_{name}" for name in CLASSES]].to_numpy(), temperature)
    confidence = np.sort(expected.max(axis=1))
    rejected = int(np.diff(confidence).argmax()) + 1
    threshold = float(confidence[rejected - 1 : rejected + 1].mean())
    words = ["--calibrated", "--reject", threshold, "--csv", out[0], "--json", out[1]]
    done = classified(prepared, "tiny", *files, letter, *words)
    assert done.returncode == 1 and f"{rejected} of 6 predictions were rejected: below 0." in done.stderr
    rows, found = aux.read_table(out[0]), json.loads(out[1].read_text(encoding="utf-8"))
    assert np.allclose(rows[[f"p_{name}" for name in CLASSES]][:5], expected, atol=1e-5)
    assert list(rows.rejected[:5]) == list(expected.max(axis=1) < threshold) and rows.rejected.sum() == rejected
    assert list(rows.predicted[:5]) == list(run.predictions.predicted)  # also of the rejected ones
    assert (rows.temperature == temperature).all() and not found["files"][5]["rejected"]
    assert found["temperature"] == temperature and found["threshold"] == pytest.approx(threshold)
    assert [file["rejected"] for file in found["files"][:5]] == list(rows.rejected[:5])
    assert sum(": rejected: " in line for line in done.stdout.splitlines()) == rejected

    run.file("calibration.json").unlink()  # fitted at the first use
    assert classify_files(prepared, "tiny", files[:1], calibrated=True) == 0 and run.temperature == temperature
    top, _, heatmap, _ = predict_file(files[0], "a.jpg", run.file("model.keras"), True, prepared)
    assert heatmap and top[0][1] == pytest.approx(expected[0].max(), abs=1e-5)
    plain, *_ = predict_file(files[0], "a.jpg", run.file("model.keras"), False)
    assert plain[0][1] == pytest.approx(run.predictions.confidence[0], abs=1e-5) and plain[0][1] != top[0][1]


@pytest.mark.parametrize("threshold", ["1.5", "-0.1", "90%", "nan", "high", "inf"])
def test_a_threshold_that_is_no_probability_is_one_line(prepared, threshold):
    with pytest.raises(aux.UserError, match=r"^REJECT is .*; allowed is a probability from 0 to 1, such as 0\.9\.$"):
        classify_files(prepared, "tiny", ["a.jpg"], reject=threshold)


def test_what_cannot_be_calibrated_is_one_line(prepared, run, tmp_path):
    image = prepared.raw / aux.load_splits(prepared).test.source[0]
    with pytest.raises(aux.UserError, match="MIRRORED and CALIBRATED cannot be combined"):
        classify_files(prepared, "tiny", [image], calibrated=True, mirrored=True)
    alone = tmp_path / "model.keras"
    alone.write_bytes(run.file("model.keras").read_bytes())
    with pytest.raises(aux.UserError, match="lies in no run's folder"):
        classify_files(prepared, str(alone), [image], calibrated=True)
    top, shown, _, message = predict_file(image, "a.jpg", alone, False, prepared)
    assert not top and shown is None and "lies in no run's folder" in message


@pytest.mark.slow
def test_exported_models_give_calibrated_probabilities_beside_the_others(prepared, run, capfd):
    for name in ("ai_edge_litert.interpreter", "onnx", "onnxruntime", "tf2onnx"):
        pytest.importorskip(name, reason=f"{name} is not installed: run `make extras`", exc_type=ImportError)
    from animals10.export_formats import FORMATS

    other = aux.train(prepared, aux.Experiment("other", aux.CNN((4,), (4,), (4,)), aux.Training(1e-2, epochs=1)))
    both = aux.ensemble(prepared, [run, other], "both")
    both.file("validation.csv").write_bytes(run.file("validation.csv").read_bytes())
    pixels = np.concatenate([batch for batch, _ in aux.batches(prepared, aux.load_splits(prepared).test)])
    assert export_model(prepared, "tiny", "litert", rounds=1) == 0
    for one, formats in ((run, ("litert", "litert8")), (both, ("onnx", "litert8"))):
        assert export_model(prepared, one.model_id, ",".join(formats), rounds=1, calibrated=True) == 0
        assert f"Probabilities are calibrated (temperature {one.temperature})" in capfd.readouterr().out
        folder = prepared.root / "exports" / f"{one.path.name}-calibrated"
        expected = scaled(one.predictions[[f"p_{name}" for name in CLASSES]].to_numpy(), one.temperature)
        for name in formats:
            about = json.loads((folder / f"{FORMATS[name].file}.json").read_text(encoding="utf-8"))
            assert about["temperature"] == one.temperature and about["output"]["meaning"].startswith("calibrated prob")
            found = FORMATS[name].load(folder / FORMATS[name].file)(pixels)
            np.testing.assert_allclose(found, expected, rtol=0, atol=0.1 if name == "litert8" else 1e-5)
    plain = FORMATS["litert"].load(prepared.root / "exports" / run.path.name / "model.tflite")(pixels)
    np.testing.assert_allclose(plain, run.predictions[[f"p_{name}" for name in CLASSES]], rtol=0, atol=1e-5)


def test_the_figure_and_the_report_show_bins_errors_and_coverage(prepared, run):
    found = aux.calibrate(prepared, run)
    figure = aux.plot_calibration([run])
    curves, diagram, counts = figure.axes
    assert sum(int(text.get_text().replace(",", "")) for text in counts.texts) == run.row["n_test"]
    for kind, table_of_kind in (
        ("as trained", run.predictions),
        ("calibrated", found.predictions["test", "calibrated"]),
    ):
        ece = calibration_metrics(table_of_kind)["ece"]
        assert f"ECE {kind} {ece:.3f} (by chance up to" in diagram.get_title(loc="left")
        points = [container.lines[0].get_xydata() for container in diagram.containers]
        expected = reliability(table_of_kind)[["confidence", "accuracy"]].to_numpy()
        assert any(len(one) == len(expected) and np.allclose(one, expected) for one in points)
    assert curves.lines[0].get_xydata()[-1] == pytest.approx([1, run.row["accuracy"]])
    uncalibrated = aux.train(prepared, aux.Experiment("other", aux.CNN((4,), (4,), (4,)), aux.Training(1e-2, epochs=1)))
    several = aux.plot_calibration([run, uncalibrated, aux.Run("gone", why="left out")])
    assert len(several.axes) == 5 and len(several.axes[0].lines) == 2 and "other, ECE as trained" in several.get_label()
    assert aux.plot_calibration([aux.Run("gone", why="left out")]).get_gid() == "left out"
    page = render(prepared)
    assert f"calibrated, temperature {found.temperature:.3g}: {calibration_metrics(table_of_kind)['ece']:.3f}" in page
    assert page.count('data-chart="reliability"') == 2
