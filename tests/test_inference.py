import json
import os
import subprocess
import sys

import numpy as np
import pytest

import auxiliary as aux
from animals10.calibration import with_temperature
from animals10.export_formats import describe_input
from animals10.files import REPOSITORY
from animals10.inference import classify_files
from animals10.precision import in_precision
from animals10.preprocessing import resize_images, scan_images


@pytest.fixture
def trained(prepared):
    experiment = aux.Experiment("tiny", aux.CNN((4,), (4,), (4,), (0.0,)), aux.Training(1e-2, epochs=25, patience=25))
    return prepared, aux.train(prepared, experiment)


def classify(settings, *arguments):
    command = [sys.executable, REPOSITORY / "scripts" / "classify.py", *map(str, arguments)]
    environment = os.environ | {"ANIMALS10_ROOT": str(settings.root), "ANIMALS10_PROFILE": "full"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_raw_test_images_are_classified_as_in_the_evaluation(trained, draw, tmp_path):
    settings, run = trained
    model, names = aux.load_model(run.file("model.keras"))
    test = aux.load_splits(settings).test
    predictions = list(aux.classify(model, names, [settings.raw / path for path in test.source], batch_size=2))
    stored = run.predictions[[f"p_{name}" for name in names]].to_numpy()
    assert np.allclose(np.stack([prediction.probabilities for prediction in predictions]), stored, atol=1e-6)
    assert predictions[0].top(2)[0][0] == run.predictions.predicted[0]

    paths = [settings.raw / path for path in test.source]
    mirrored = list(aux.classify(model, names, paths, batch_size=2, mirrored=True))
    expected = aux.predict_table(model, aux.batches(settings, test), test, names, mirrored=True)
    found = [prediction.by_class["red"] for prediction in mirrored]
    assert np.allclose(found, expected.p_red, atol=1e-6) and not np.allclose(found, run.predictions.p_red, atol=1e-6)

    bad = tmp_path / "bad.jpg"
    bad.write_text("a letter")
    figure = aux.plot_predictions(model, names, [draw(tmp_path / "a.png", (40, 200, 40)), bad], cam=True)
    assert "a.png: green" in figure.get_label() and "bad.jpg: not an image" in figure.get_label()
    assert len(figure.axes[0].images) == 1 and len(figure.axes[1].images) == 2


def test_a_model_is_given_all_images_in_the_way_in_which_it_was_trained(settings, capsys):
    cropped = settings.model_copy(update={"resize": "crop"})
    resize_images(cropped, scan_images(cropped))
    experiment = aux.Experiment("tiny", aux.CNN((4,), (4,), (4,), (0.0,)), aux.Training(1e-2, epochs=2))
    run = aux.train(settings, experiment)  # the workspace knows how its images were made
    assert aux.train(cropped, experiment).path == run.path
    assert run.row["resize"] == aux.results_table(settings).resize[0] == "crop"
    model, names = aux.load_model(run.file("model.keras"))
    paths = [settings.raw / path for path in aux.load_splits(settings).test.source]
    stored = run.predictions[[f"p_{name}" for name in names]].to_numpy()

    def probabilities(network):
        return np.stack([prediction.probabilities for prediction in aux.classify(network, names, paths)])

    assert np.allclose(probabilities(model), stored, atol=1e-6)
    assert np.allclose(probabilities(with_temperature(model, 1.0)), stored, atol=1e-6)
    assert np.allclose(probabilities(in_precision(model, "float32")), stored, atol=1e-6)
    together = aux.ensemble(settings, [run], "both", mirrored=True)
    assert together.row["resize"] == aux.load_model(together.file("model.keras"))[0].resize == "crop"
    assert "cropped to the largest square" in describe_input(model)["preprocessing"]
    aux.save_model(model, settings.root / "again.keras", names)
    assert aux.load_model(settings.root / "again.keras")[0].resize == "crop"
    model.resize = "stretch"
    assert not np.allclose(probabilities(model), stored, atol=1e-5)
    for call in (scan_images, lambda other: aux.train(other, experiment)):
        with pytest.raises(aux.UserError, match=r"made with ANIMALS10_RESIZE=crop, not pad. Leave .* out") as error:
            call(settings.model_copy(update={"resize": "pad"}))
        assert "\n" not in str(error.value)


def test_files_are_found_in_places_each_once(tmp_path, draw):
    for name in ("b.jpg", "sub/ä c.png", "sub/.hidden.png", ".cache/d.png", "a [1].jpg"):
        draw(tmp_path / name)
    names = [path.name for path in aux.find_images([tmp_path, tmp_path / "b.jpg"])]
    assert names == ["a [1].jpg", "b.jpg", "ä c.png"]
    assert [path.name for path in aux.find_images([f"{tmp_path}/**/*.png"])] == ["ä c.png"]
    assert aux.find_images([tmp_path / "a [1].jpg"])  # it exists, so it is not a pattern
    with pytest.raises(aux.UserError, match="There is no file or folder"):
        aux.find_images([tmp_path / "nothing*"])


def test_the_command_goes_on_after_bad_files_and_its_status_tells(trained, draw, tmp_path, capsys):
    settings, run = trained
    red, bad = draw(tmp_path / "in" / "a red.png", (200, 40, 40), (90, 60)), tmp_path / "in" / "bad.jpg"
    bad.write_text("a letter")
    assert classify_files(settings, "tiny", [red], top=1) == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{red}: red ") and line.count("%") == 1
    table, file = tmp_path / "out.csv", tmp_path / "out.json"
    both = classify(settings, run.file("model.keras"), tmp_path / "in", "--mirrored", "--csv", table, "--json", file)
    assert both.returncode == 1 and "1 of 2 files were not classified" in both.stderr
    assert both.stdout.splitlines()[1] == f"{bad}: not classified: not an image in a known format"
    rows = aux.read_table(table)
    assert rows.predicted[0] == "red" and rows.reason[1] == "not an image in a known format"
    assert rows.filter(like="p_").iloc[0].sum() == pytest.approx(1)
    found = json.loads(file.read_text())
    assert found["files"][0]["probabilities"]["red"] == pytest.approx(rows.p_red[0])
    assert found["mirrored"] and rows.mirrored.all()
    assert classify_files(settings, str(run.file("model.keras")), [red], csv_path=table) == 0
    plain = aux.read_table(table)
    assert "mirrored" not in plain and plain.p_red[0] != rows.p_red[0]
    nothing = classify(settings, "tiny", tmp_path / "nothing")
    assert nothing.returncode == 2 and nothing.stderr.splitlines()[-1].startswith("There is no file or folder")


@pytest.mark.parametrize("script", ["classify", "export"])
def test_without_arguments_an_example_is_shown(settings, monkeypatch, script):
    folder = settings.models / "my head-20260101T120000-bb"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{}")
    monkeypatch.setenv("ANIMALS10_ROOT", str(settings.root))
    command = [sys.executable, REPOSITORY / "scripts" / f"{script}.py", ""]  # as make calls it
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and not done.stdout and done.stderr.count("\n") == 1
    assert f"make {script} MODEL='my head' " in done.stderr and f"scripts/{script}.py 'my head'" in done.stderr


def test_models_are_found_by_path_run_and_id(tmp_path):
    with pytest.raises(aux.UserError, match=r"There are no runs in .*models"):
        aux.find_model(tmp_path, "tiny")
    models = tmp_path / "models"
    early, late, other = "tiny-20260101T120000-bb", "tiny-20260102T120000-aa", "tiny-wide-20260103T120000-cc"
    files = {name: models / name / "model.keras" for name in (early, late, other, ".tiny-unfinished")}
    for file in files.values():
        file.parent.mkdir(parents=True)
        for name in ("model.keras", "run.json"):
            file.with_name(name).write_text("{}")
    assert aux.find_model(tmp_path, "tiny") == files[late]
    assert aux.find_model(tmp_path, "tiny-wide") == files[other]
    assert aux.find_model(tmp_path, early) == files[early]
    for given in (files[early], files[early].parent):
        assert aux.find_model(tmp_path / "elsewhere", str(given)) == files[early]
    for unknown, message in {
        "tny": r"There is no model 'tny' in .*models; the nearest are tiny",
        "": r"No model is named in .*; there are tiny, tiny-wide",
        "gone.keras": r"There is no file gone\.keras",
    }.items():
        with pytest.raises(aux.UserError, match=message):
            aux.find_model(tmp_path, unknown)
    files[late].unlink()
    with pytest.raises(aux.UserError, match=r"lacks its model\.keras"):
        aux.find_model(tmp_path, "tiny")
