import json
import os
import subprocess
import sys

import numpy as np
import pytest

import auxiliary as aux

TINY = aux.CNN((4,), (4,), (4,), (0.0,))


@pytest.fixture
def trained(prepared):
    return prepared, aux.train(prepared, "tiny", TINY, learning_rate=1e-2, epochs=25, patience=25)


def classify(settings, *arguments):
    command = [sys.executable, aux.REPOSITORY / "scripts" / "classify.py", *map(str, arguments)]
    environment = os.environ | {"ANIMALS10_ROOT": str(settings.root), "ANIMALS10_PROFILE": "full"}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_raw_test_photographs_are_judged_as_in_the_study(trained):
    settings, run = trained
    model, names = aux.load_model(run.file("model.keras"))
    test = aux.load_splits(settings).test
    opinions = list(aux.classify(model, names, [settings.raw / path for path in test.source], batchsize=2))
    stored = run.predictions[[f"p_{name}" for name in names]].to_numpy()
    assert np.allclose(np.stack([opinion.probabilities for opinion in opinions]), stored, atol=1e-6)
    assert opinions[0].top(2)[0][0] == run.predictions.predicted[0]


def test_files_are_found_in_places_each_once(tmp_path, draw):
    for name in ("b.jpg", "sub/ä c.png", "sub/.hidden.png", ".cache/d.png", "a [1].jpg"):
        draw(tmp_path / name)
    names = [path.name for path in aux.find_pictures([tmp_path, tmp_path / "b.jpg"])]
    assert names == ["a [1].jpg", "b.jpg", "ä c.png"]
    assert [path.name for path in aux.find_pictures([f"{tmp_path}/**/*.png"])] == ["ä c.png"]
    assert aux.find_pictures([tmp_path / "a [1].jpg"])  # there, so it is no pattern
    with pytest.raises(aux.StudyError, match="There is no file or folder"):
        aux.find_pictures([tmp_path / "nothing*"])


def test_the_command_goes_on_after_bad_files_and_its_status_tells(trained, draw, tmp_path):
    settings, run = trained
    red, bad = draw(tmp_path / "in" / "a red.png", (200, 40, 40), (90, 60)), tmp_path / "in" / "bad.jpg"
    bad.write_text("a letter")
    good = classify(settings, "tiny", red, "--top", 1)
    assert good.returncode == 0 and good.stdout.startswith(f"{red}: red ") and good.stdout.count("%") == 1
    table, file = tmp_path / "out.csv", tmp_path / "out.json"
    both = classify(settings, run.file("model.keras"), tmp_path / "in", "--csv", table, "--json", file)
    assert both.returncode == 1 and "1 of 2 files were not classified" in both.stderr
    assert both.stdout.splitlines()[1] == f"{bad}: not classified: not a picture in a known format"
    rows = aux.read_table(table)
    assert rows.predicted[0] == "red" and rows.reason[1] == "not a picture in a known format"
    assert rows.filter(like="p_").iloc[0].sum() == pytest.approx(1)
    assert json.loads(file.read_text())["files"][0]["probabilities"]["red"] == pytest.approx(rows.p_red[0])
    nothing = classify(settings, "tiny", tmp_path / "nothing")
    assert nothing.returncode == 2 and nothing.stderr.splitlines()[-1].startswith("There is no file or folder")
    unknown = classify(settings, "tinny", red)
    assert unknown.returncode == 2 and "the nearest are tiny" in unknown.stderr.splitlines()[-1]


def test_the_figure_shows_every_file(trained, draw, tmp_path):
    run = trained[1]
    bad = tmp_path / "bad.jpg"
    bad.write_text("a letter")
    paths = [draw(tmp_path / "a.png", (40, 200, 40)), bad]
    figure = aux.plot_classified(*aux.load_model(run.file("model.keras")), paths, cam=True)
    assert "a.png: green" in figure.get_label() and "bad.jpg: not a picture" in figure.get_label()
    assert len(figure.axes[0].images) == 1 and len(figure.axes[1].images) == 2
