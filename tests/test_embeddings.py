"""Embeddings: features of any images, the nearest images, and the map in figure and report page."""

import json

import keras
import numpy as np
import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

import auxiliary as aux
from animals10 import embeddings
from animals10.report import render
from animals10.similarity import pooling_network

SMALL = aux.Experiment("small", aux.CNN((4,), (4,), (8,)), aux.Training(learning_rate=1e-4, epochs=1))


@pytest.fixture
def colour_features(monkeypatch):
    """The mean colour of an image takes the place of a backbone's features: a network that is built in no time."""
    inputs = keras.Input((32, 32, 3))
    network = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(inputs))
    monkeypatch.setattr(embeddings, "pooling_network", lambda settings, backbone: network)


@pytest.fixture
def mapped(prepared, colour_features):
    """A workspace with a run that misclassifies some test images, and the map of it."""
    run = aux.train(prepared, SMALL)
    figure = aux.plot_embeddings(prepared, run)
    return prepared, run, figure


def test_features_belong_to_images_whether_tables_or_files_name_them(prepared):
    everything = aux.embed(prepared)
    overview = aux.read_table(prepared.data / "processed-overview.csv")
    assert list(everything.index) == list(overview.relpath) and everything.shape == (50, 1280)
    assert (everything.dtypes == "float32").all()
    part = aux.embed(prepared, images=aux.load_splits(prepared).test)
    assert np.allclose(part, everything.loc[part.index], atol=1e-5)
    # The raw file, which is processed as the images of the workspace were.
    source = overview.set_index("relpath").source[part.index[0]]
    file = aux.embed(prepared, images=[prepared.raw / source])
    assert list(file.index) == [str(prepared.raw / source)] and np.allclose(file, part[:1], atol=1e-3)


def test_what_cannot_be_embedded_is_one_clear_line(prepared, colour_features):
    (prepared.root / "notes.txt").write_text("notes")
    with pytest.raises(aux.UserError, match=r"notes.txt cannot be embedded \(not an image in a known format\)"):
        aux.embed(prepared, images=[prepared.root / "notes.txt"])
    with pytest.raises(aux.UserError, match="MobileNetV2"):
        pooling_network(prepared, "MobileNetV9")
    folder = prepared.root / "weights"
    folder.mkdir()
    with pytest.raises(aux.UserError, match=r"There is no .*MobileNetV2.weights.h5 \(ANIMALS10_WEIGHTS\)"):
        pooling_network(prepared.model_copy(update={"weights": str(folder)}), "MobileNetV2")


def test_the_nearest_images_have_the_most_similar_features(prepared, colour_features):
    red = aux.load_splits(prepared).train.query("category == 'red'").relpath.iloc[0]
    found = aux.nearest_images(prepared, red, n=4)
    assert red not in set(found.relpath) and len(found) == 4 and found.cosine.is_monotonic_decreasing
    assert set(found.part) <= {"train", "val", "test"} and set(found.category) == {"red"}
    features = aux.embed(prepared)
    unit = features.div(np.linalg.norm(features, axis=1), axis=0)
    expected = (unit @ unit.loc[red]).drop(red).nlargest(4)
    assert list(found.relpath) == list(expected.index) and np.allclose(found.cosine, expected, atol=1e-6)
    file = prepared.data / "processed" / red  # as a file of its own, which is an image of its own
    assert aux.nearest_images(prepared, file, 1, embeddings=features).cosine.item() > 0.9999
    assert f"cosine {found.cosine[0]:.2f}" in aux.plot_gallery(found, prepared.data / "processed").axes[0].get_title()
    with pytest.raises(aux.UserError, match=r"There is no image red/no.jpg: name a relpath"):
        aux.nearest_images(prepared, "red/no.jpg", embeddings=features)


def test_the_map_shows_every_test_image_and_rings_the_errors(mapped):
    settings, run, figure = mapped
    wrong = (run.predictions.category != run.predictions.predicted).sum()
    dots, *_, rings, _ = figure.axes[0].collections  # the others are those of the legend
    assert len(dots.get_offsets()) == 5 and len(rings.get_offsets()) == wrong > 0
    assert f"misclassifies {wrong} of them" in figure.get_label()
    stored = json.loads((settings.data / "embedding-map.json").read_text(encoding="utf-8"))
    assert stored["points"]["relpath"] == list(run.predictions.relpath) and stored["run"] == run.path.name
    aux.write_table(run.predictions[1:], run.file("predictions.csv"))
    with pytest.raises(aux.UserError, match="small was evaluated on other images than the test set"):
        aux.plot_embeddings(settings, run)


def test_a_large_map_keeps_the_errors_and_says_what_it_leaves_out(prepared, colour_features, monkeypatch):
    run = aux.train(prepared, SMALL)
    wrong = run.predictions.query("category != predicted").relpath
    monkeypatch.setattr(embeddings, "MOST_POINTS", len(wrong))
    figure = aux.plot_embeddings(prepared, run)
    assert f"{len(wrong)} of 5 test images are shown, errors first" in figure.get_label()
    stored = json.loads((prepared.data / "embedding-map.json").read_text(encoding="utf-8"))
    assert set(stored["points"]["relpath"]) == set(wrong)
    assert f"{len(wrong)} of 5 test images are shown, errors first." in render(prepared)


def test_the_report_shows_the_map_and_names_images(mapped, browser, tmp_path):
    settings, run, _ = mapped
    page = tmp_path / "report.html"
    page.write_text(render(settings), encoding="utf-8")
    browser.get(page.as_uri())
    text = browser.find_element(By.ID, "map").text
    assert "features of 5 test images" in text and "that small misclassifies" in text and "are shown" not in text
    browser.execute_script("document.getElementById('map').scrollIntoView()")
    points = "#map .layer_0_marks path"
    WebDriverWait(browser, 20).until(lambda _: len(browser.find_elements(By.CSS_SELECTOR, points)) == 5)
    rings = browser.find_elements(By.CSS_SELECTOR, "#map .layer_1_marks path")
    wrong = run.predictions.query("category != predicted")
    assert len(rings) == len(wrong)
    labels = {ring.get_attribute("aria-label") for ring in rings}
    assert {
        f"image: {row.relpath}; label: {row.category}; predicted: {row.predicted}" in "".join(labels)
        for row in wrong.itertuples()
    } == {True}
    (settings.data / "embedding-map.json").write_text("{}")
    with pytest.raises(aux.UserError, match=r"embedding-map.json is damaged \(KeyError\): delete it, or run"):
        render(settings)
    (settings.data / "embedding-map.json").unlink()
    assert 'id="map"' not in render(settings)
