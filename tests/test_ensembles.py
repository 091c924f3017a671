"""Ensembles: the mean of several runs as a run of its own, and what other commands do with it."""

import dataclasses
import json

import keras
import numpy as np
import pytest

import auxiliary as aux
from animals10.demo import predict_file, titled_models
from animals10.efficiency import multiply_adds
from animals10.ensembles import average
from animals10.inference import classify_files
from animals10.report import render
from animals10.verification import rebuild_results, verify_runs

SMALL = aux.Experiment("small", aux.CNN((4,), (4,), (8,)), aux.Training(learning_rate=1e-2, epochs=1))
WIDE = aux.Experiment("wide", aux.CNN((6,), (4,), (8,)), aux.Training(learning_rate=1e-2, epochs=1, batch_size=8))


def probabilities(run):
    return run.predictions.filter(regex="^p_").to_numpy()


def test_an_ensemble_is_a_run_like_any_other(prepared, capsys, tmp_path):
    members = aux.train_all(prepared, [SMALL, WIDE, dataclasses.replace(SMALL, repetition=2)])
    run = aux.ensemble(prepared, members, "three")
    mean = np.mean([probabilities(member) for member in members], axis=0)
    assert np.allclose(probabilities(run), mean, atol=1e-6)
    assert run.row["accuracy"] == (run.predictions.category == run.predictions.predicted).mean()
    assert run.row["accuracy_low"] < run.row["accuracy"] or run.row["accuracy"] == 0
    assert run.row["params"] == sum(member.row["params"] for member in members)
    table = aux.results_table(prepared)
    assert list(table.model_id).count("three") == 1 and table.acc_val.notna().all()
    assert run.record["spec"]["model"]["members"] == [member.path.name for member in members]

    nested = aux.ensemble(prepared, [run, members[0]], "nested")
    assert np.allclose(probabilities(nested), (mean + probabilities(members[0])) / 2, atol=1e-6)

    before = prepared.results.read_bytes()
    assert aux.ensemble(prepared, members[::-1], "three") == run and prepared.results.read_bytes() == before
    assert verify_runs(prepared, ["three"]) == 0
    prepared.results.unlink()
    assert rebuild_results(prepared) == (5, 5)
    assert set(aux.compare_runs(run, members[0])) == {"only_first", "only_second", "p_value"}
    assert "mean of 3 runs" in aux.plot_run(run).get_label()
    with pytest.raises(aux.UserError, match="the mean of several networks: Grad-CAM shows one"):
        aux.plot_grad_cam(run, prepared.data / "processed")
    assert "three 0." in aux.plot_comparison([*members, run], aux.published_runs(prepared)).get_label()
    assert "three" in render(prepared)

    image = prepared.raw / aux.load_splits(prepared).test.source[0]
    capsys.readouterr()
    assert classify_files(prepared, "three", [image]) == 0
    assert f"{100 * run.predictions.confidence[0]:.1f} %" in capsys.readouterr().out
    path = next(path for title, path in titled_models(prepared).items() if title.startswith("three"))
    top, _, heatmap, message = predict_file(image, "a.jpg", path, with_grad_cam=True)
    assert top[0][0] == run.predictions.predicted[0] and heatmap is None and "several networks" in message


@pytest.mark.slow
def test_the_runs_of_folds_form_an_ensemble_without_a_validation_accuracy(prepared):
    found = aux.cross_validate(prepared, SMALL, folds=3)
    run = aux.ensemble(prepared, found.runs, "folds", mirrored=True)
    splits, rows = aux.load_splits(prepared), []
    for member in found.runs:
        model, names = aux.load_model(member.file("model.keras"))
        rows.append(aux.predict_table(model, aux.batches(prepared, splits.test), splits.test, names, mirrored=True))
    assert np.allclose(run.predictions.p_red, np.mean([table.p_red for table in rows], axis=0), atol=1e-6)
    assert run.row["acc_val"] is None and run.row["n_test"] == len(splits.test) and run.row["split"] == "grouped"
    assert run.record["spec"]["model"]["mirrored"] and len(aux.results_table(prepared)) == 1
    [alone] = aux.train_all(prepared, [SMALL])
    nested = aux.ensemble(prepared, [run, alone], "nested")
    assert nested.row["acc_val"] is None
    for ensemble in (run, nested):
        with pytest.raises(aux.UserError, match="cannot be calibrated: its members were trained on the validation im"):
            aux.calibrate(prepared, ensemble)
    assert aux.calibrate(prepared, found.runs[0]).table.n[2] == found.table.n[0]
    mirrored = aux.ensemble(prepared, [alone], "mirrored", mirrored=True)
    assert mirrored.row["acc_val"] is not None and not np.allclose(probabilities(mirrored), probabilities(alone))


def test_heads_on_one_backbone_share_it_and_other_networks_do_not():
    def head(units, backbone_seed):
        keras.utils.set_random_seed(backbone_seed)
        inputs = keras.Input((32, 32, 3))
        x = keras.layers.Conv2D(8, 3, strides=4, activation="relu")(keras.layers.Rescaling(1 / 255)(inputs))
        x = keras.layers.GlobalAveragePooling2D(name="pooled")(x)
        x = keras.layers.Dense(units, activation="relu")(x)
        return keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))

    models = [head(4, 1), head(6, 1), head(4, 2)]
    pixels = np.random.default_rng(1).uniform(0, 255, (5, 32, 32, 3)).astype("float32")
    expected = np.mean([model(view) for model in models for view in (pixels, pixels[:, :, ::-1])], axis=0)
    sizes = [model.count_params() for model in models]
    backbone = models[0].layers[2].count_params()
    operations = [multiply_adds(model) for model in models]
    shared = multiply_adds(keras.Model(models[0].input, models[0].get_layer("pooled").output))
    network = average(models, mirrored=True)
    assert np.allclose(network(pixels), expected, atol=1e-6)
    assert network.count_params() == sum(sizes) - backbone
    assert multiply_adds(network) == 2 * (sum(operations) - shared)


def test_what_cannot_be_a_member_is_one_clear_line(prepared, settings, draw, tmp_path):
    run = aux.train(prepared, SMALL)

    def refused(runs, said, name="mean", **options):
        with pytest.raises(aux.UserError, match=said):
            aux.ensemble(prepared, runs, name, **options)

    refused([run], "An ensemble of 1 runs: there must be two or more, or one with mirrored=True")
    refused([], "An ensemble of 0 runs", mirrored=True)
    refused([run, run], "is given twice")
    refused([run], "small is the id of an experiment", "small", mirrored=True)
    refused([run], "mobnet2_best is the id of an experiment", "mobnet2_best", mirrored=True)
    refused([run], "file's name may not", "a/b", mirrored=True)
    untrained = aux.ensemble(prepared, [run, aux.Run("other", why="ANIMALS10_ONLY leaves it out.")], "mean")
    assert untrained.path is None and untrained.why.startswith("its member other is not trained: ANIMALS10_ONLY")
    record = run.record
    for change, said in (
        ({"class_names": ["ant", "bee"]}, r"knows 2 classes \(ant, bee\); the classes are 3 classes \(blue, green"),
        ({"row": record["row"] | {"image_size": 64}}, "takes images of 64 pixels; those of this workspace have 32"),
        ({"row": record["row"] | {"data_sha256": "0"}}, "members must share the test images"),
    ):
        other = aux.Run("other", tmp_path / "other-20260101T120000-aa")
        other.path.mkdir(exist_ok=True)
        (other.path / "run.json").write_text(json.dumps(record | change), encoding="utf-8")
        refused([run, other], said)
    (other.path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    refused([run, other], r"lacks its model\.keras")
    assert len(aux.stored_runs(prepared.root)) == 1
