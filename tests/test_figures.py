import json

import keras
import nbconvert
import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

import auxiliary as aux
import figures
import networks
import storage
from scripts import measure_efficiency

PUBLISHED = aux.read_table(aux.PUBLISHED)


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def write_run(folder, pairs, confidence=None, **row):
    """Writes a run whose test pictures have these pairs of true and predicted class."""
    folder.mkdir(parents=True)
    table = pd.DataFrame(pairs, columns=["category", "predicted"])
    table.insert(0, "relpath", [f"{name}/{index}.jpg" for index, name in enumerate(table.category)])
    table["confidence"] = confidence or 0.5
    aux.write_table(table, folder / "predictions.csv")
    history = pd.DataFrame({"epoch": [1, 2], "accuracy": [0.1, 0.2], "loss": [2.0, 1.0]})
    aux.write_table(history.assign(val_accuracy=0.1, val_loss=[1.5, 1.6]), folder / "history.csv")
    facts = {"model_id": folder.name, "dataset": "mini", "weights": "none", "image_size": 224, "epochs": 15}
    facts |= {"repetition": 1, "best_epoch": 1, "n_test": len(table), "learning_rate": 7e-4} | aux.metrics(table) | row
    names = sorted(set(table.category) | set(table.predicted))
    (folder / "run.json").write_text(json.dumps({"row": facts, "class_names": names}))
    return aux.Run(facts["model_id"], folder)


def test_figures_of_a_trained_run(prepared):
    network = aux.CNN((8, 8), (2, 2), (16,), (0.1,))
    run = aux.train(prepared, "small", network, learning_rate=1e-2, epochs=6)
    table, kept = run.predictions, run.record["row"]["best_epoch"]
    figure = aux.plot_run(run)
    curves = {axis.get_title(): axis for axis in figure.axes}["loss"].lines
    assert np.allclose(curves[0].get_ydata(), run.history.loss) and curves[2].get_xdata()[0] == kept
    assert f"epoch kept: {kept}" in texts(figure)
    # one picture taken for another, with less confidence than its first neighbour, which is right
    table.loc[0, "predicted"] = next(name for name in ("red", "blue") if name != table.category[0])
    aux.write_table(table, run.file("predictions.csv"))
    wrong = table[table.category != table.predicted]
    figure = aux.plot_mistakes(run, prepared.data / "processed")
    assert f"small: {len(wrong)} of {len(table)} test pictures are wrong, most confident first" in texts(figure)
    drawn = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    worst = wrong.sort_values("confidence", ascending=False).iloc[0]
    picture = np.asarray(aux.Image.open(prepared.data / "processed" / worst.relpath))
    assert len(drawn) == len(wrong) and np.array_equal(drawn[0], picture)
    figure = aux.plot_grad_cam(run, prepared.data / "processed", n=2)
    found = [text.split(":")[0] for text in texts(figure) if " → " in text]
    assert found == ["right"] * 2 + ["wrong"] * min(2, len(wrong))
    assert len([image for axis in figure.axes for image in axis.images]) == 3 * len(found)
    (prepared.data / "processed" / worst.relpath).unlink()
    with pytest.raises(aux.StudyError, match="cannot be drawn"):
        aux.plot_mistakes(run, prepared.data / "processed")
    measured = measure_efficiency.measure(run, "this one", rounds=2)
    assert json.loads(run.file("efficiency.json").read_text()) == measured and measured["device"] == "this one"
    assert storage.stored_runs(prepared.root) == [run]
    assert not list(run.path.glob(".*"))


def test_confusion_matrix_shows_shares_and_counts(tmp_path):
    pairs = [("cat", "cat")] * 4 + [("cat", "dog")] + [("dog", "dog")] * 2
    figure = aux.plot_run(write_run(tmp_path / "few", pairs))
    cells = [text for text in texts(figure) if "%\n" in text]
    assert cells == ["80 %\n4", "20 %\n1", "100 %\n2"]  # and none where there are no pictures
    several = aux.plot_run(write_run(tmp_path / "several", [(f"{index:02}", "00") for index in range(13)] * 7))
    assert texts(several).count("7") == 13 and not [text for text in texts(several) if "%\n" in text]
    many = aux.plot_run(write_run(tmp_path / "many", [(f"{index:02}", "00") for index in range(21)]))
    assert not [text for text in texts(many) if "%\n" in text]
    assert "<colorbar>" in [axis.get_label() for axis in many.axes]


def test_most_confident_mistakes_first_and_a_word_where_there_are_none(tmp_path, draw):
    pairs = [("cat", "dog"), ("dog", "cat"), ("cat", "$5$"), ("cat", "cat")]
    run = write_run(tmp_path / "run", pairs, confidence=[0.4, 0.9, 0.6, 1.0])
    for relpath in run.predictions.relpath:
        draw(tmp_path / relpath)
    figure = figures.plot_mistakes(run, tmp_path, n=2)
    assert [text for text in texts(figure) if "→" in text] == ["dog → cat\n90 %", "cat → $5$\n60 %"]
    assert "run: 3 of 4 test pictures are wrong, the 2 most confident" in texts(figure)
    figure.draw_without_rendering()
    perfect = write_run(tmp_path / "perfect", [("cat", "cat")] * 3)
    assert texts(figures.plot_mistakes(perfect, tmp_path)) == ["perfect makes no mistake on its 3 test pictures."]
    absent = aux.Run("absent", why="not yet.")
    for plot in (figures.plot_mistakes, figures.plot_grad_cam):
        assert texts(plot(absent, tmp_path)) == ["absent is not trained here: not yet."]


def test_runs_beside_each_other_and_the_published_ones(tmp_path):
    half, all_ = [("a", "a"), ("b", "a")] * 10, [("a", "a"), ("b", "b")] * 10
    first = write_run(tmp_path / "base_downsamp_augment+", half)
    again = write_run(tmp_path / "again", all_, model_id="conv4lesspoll_dense1", learning_rate=5e-4, epochs=35)
    longer = write_run(tmp_path / "longer", all_, model_id="conv4lesspoll_dense1", learning_rate=5e-4, epochs=80)
    own = write_run(tmp_path / "own", half)  # not among the published
    runs = [aux.Run("absent", why="not yet."), longer, again, own]
    figure = aux.plot_comparison(runs, PUBLISHED, earlier=[first])
    axis = figure.axes[0]
    names = ["base_downsamp_augment+", "conv4lesspoll_dense1, 80 epochs", "conv4lesspoll_dense1, 35 epochs", "own"]
    assert [label.get_text() for label in axis.get_yticklabels()] == names and axis.yaxis_inverted()
    lines = {line.get_label(): line for line in axis.lines}
    hollow = lines["published: on all of Animals-10"]
    ids = PUBLISHED.query("image_size == 224").set_index(["model_id", "epochs"]).accuracy
    expected = [ids["base_downsamp_augment+", 15], ids["conv4lesspoll_dense1", 80], ids["conv4lesspoll_dense1", 35]]
    assert np.allclose(hollow.get_xdata(), [*expected, np.nan], equal_nan=True)
    assert hollow.get_markerfacecolor() == "none"
    points = [(*line.get_xdata(), *line.get_ydata()) for line in axis.lines if line.get_marker() == "o"]
    assert [point for point in points if point] == [(0.5, 0), (1, 1), (1, 2), (0.5, 3)]  # and those of the legend
    spans = [line.get_xdata() for line in axis.lines if line.get_linestyle() == "-" and line.get_marker() == "None"]
    row = first.record["row"]
    assert np.allclose(spans[0], [row["accuracy_low"], row["accuracy_high"]])
    assert lines["chance, 2 classes: 0.5"].get_xdata() == [0.5, 0.5]
    assert "Test accuracy on mini (20 pictures)" in texts(figure) and "shown before" in texts(figure)
    near = texts(figures.plot_comparison([first, again], PUBLISHED, limits=(0.8, 1)))
    assert "← 0.500" in near and "← 1.000" not in near and "chance, 2 classes: 0.5" not in near
    assert texts(figures.plot_comparison(runs[:1], PUBLISHED)) == ["None of these runs is trained here."]
    random = write_run(tmp_path / "random", half, weights="random")
    assert "random weights" in figures.plot_comparison([random], PUBLISHED).get_label()


def test_the_description_reaches_the_page(monkeypatch):
    shown = {}
    monkeypatch.setattr(figures, "display", lambda figure, metadata: shown.update(metadata))
    figure = aux.plot_pictures([np.zeros((4, 4, 3))], ["dog\n→ cat"])
    aux.show(figure)
    assert shown == {"image/png": {"alt": "Pictures: dog → cat"}}
    output = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="}, metadata=shown)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])])
    page, _ = nbconvert.HTMLExporter(template_name="classic").from_notebook_node(notebook)
    assert 'alt="Pictures: dog → cat"' in page


def red_or_green(end) -> keras.Model:
    """A network that calls a picture red (0) or green (1), by how much of it is red or green."""
    inputs = keras.Input((24, 32, 3))
    x = keras.layers.Rescaling(1 / 255)(inputs)
    x = keras.layers.Conv2D(2, 1, use_bias=False, activation="relu", name="colours")(x)
    x = end(keras.layers.MaxPooling2D(2)(x))
    model = keras.Model(inputs, keras.layers.Dense(2, activation="softmax")(x))
    model.get_layer("colours").set_weights([np.array([[[[1.0, 0], [0, 1], [0, 0]]]])])  # the red, the green
    kernel = np.zeros(model.layers[-1].kernel.shape)
    kernel[0::2, 0] = kernel[1::2, 1] = 40 if len(kernel) == 2 else 0.2
    model.layers[-1].set_weights([kernel, np.zeros(2)])
    return model


@pytest.mark.parametrize("end", [keras.layers.GlobalAveragePooling2D(), keras.layers.Flatten()], ids=["mean", "flat"])
def test_heat_lies_where_the_decision_comes_from(end):
    model = red_or_green(end)
    pixels = np.zeros((2, 24, 32, 3), "uint8")
    pixels[0, :8, :8, 0] = 255  # much red above on the left
    pixels[0, 20:, 28:, 1] = 255  # a little green below on the right
    pixels[1] = pixels[0, ::-1, ::-1]  # the same, turned around
    assert figures.last_maps(model).name == "colours"
    heat = figures.grad_cam(model, pixels)
    assert heat.dtype == "float32" and heat.shape == (2, 24, 32)
    red = pixels[..., 0] / 255
    assert np.array_equal(heat, red)  # 1 in the red corner, and 0 in the green one: that speaks for the other class
    green = figures.grad_cam(model, pixels, class_index=1)
    assert np.array_equal(green, pixels[..., 1] / 255)
    assert np.array_equal(figures.grad_cam(model, pixels, [0, 1]), np.stack([red[0], green[1]]))
    assert model(pixels).numpy()[0].tolist() != [0.5, 0.5] and not figures.grad_cam(model, pixels * 0).any()
    coarse = figures.grad_cam(model, pixels, layer=figures.last_maps(model).name)
    assert np.array_equal(coarse, heat)


def test_heat_of_a_certain_network_does_not_vanish():
    """Where the softmax says 1 its gradient is 0; the score before it still has one."""
    model = red_or_green(keras.layers.GlobalAveragePooling2D())
    pixels = np.zeros((1, 24, 32, 3), "float32")
    pixels[0, :, :16, 0] = 255
    model.layers[-1].set_weights([np.array([[1e4, 0], [0, 1e4]]), np.zeros(2)])
    assert model(pixels).numpy()[0, 0] == 1 and figures.grad_cam(model, pixels)[0, 12, 4] == 1


@pytest.mark.parametrize(
    ("architecture", "size", "name"),
    [
        (aux.CNN((4, 4), (2, 2), (8,)), 32, "conv2d"),
        (aux.Transfer("MobileNetV2"), 96, "out_relu"),
        (aux.Transfer("MobileNetV2"), 32, "block_13_expand_relu"),  # what follows is one pixel, or padding
    ],
)
def test_the_layer_of_the_study_s_networks(architecture, size, name):
    model = architecture.build(3, size)
    layer = figures.last_maps(model)
    assert layer.name.startswith(name) and not isinstance(layer, keras.layers.MaxPooling2D)
    heat = figures.grad_cam(model, np.random.default_rng(1).uniform(0, 255, (1, size, size, 3)))
    assert heat.shape == (1, size, size) and heat.min() >= 0 and heat.max() in (0, 1)


def test_a_network_without_maps_has_no_heat():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    with pytest.raises(aux.StudyError, match="no layer with maps"):
        figures.grad_cam(model, np.zeros((1, 8, 8, 3)))


def test_multiplications_as_counted_by_hand():
    # The baseline: 222² places of 128 filters of 3 × 3 × 3, pooled by 3 to 74²; 72² places of 32 filters of 3 × 3 ×
    # 128, pooled by 2 to 36²; 36 · 36 · 32 values to 128 units; 128 to 10 classes.
    convolutions = 222**2 * 128 * 27 + 72**2 * 32 * 9 * 128
    expected = convolutions + 36 * 36 * 32 * 128 + 128 * 10
    baseline = aux.CNN((128, 32), (3, 2)).build(10)
    assert networks.multiply_adds(baseline) == expected == 366_738_176
    # As published: 300 million (M. Sandler et al., table 4), the head of ImageNet's 1,000 classes among them.
    head = 1280 * 128 + 128 * 10
    mobile = networks.multiply_adds(aux.Transfer("MobileNetV2").build(10)) - head + 1280 * 1000
    assert mobile == pytest.approx(300e6, rel=0.01)


def test_what_a_model_costs(tmp_path):
    model = aux.CNN((4,), (2,), (8,)).build(3, 32)
    aux.save_model(model, tmp_path / "model.keras", ("a", "b", "c"))
    found = networks.efficiency(model, tmp_path / "model.keras", rounds=2)
    assert found["model_mb"] == pytest.approx((tmp_path / "model.keras").stat().st_size / 1e6, abs=1e-3)
    # 30² places of 4 filters of 27; 15 · 15 · 4 values to 8 units; 8 to 3 classes
    assert found["multiply_adds"] == pytest.approx((30**2 * 4 * 27 + 900 * 8 + 24) / 1e6, abs=1e-3)
    assert min(found.values()) > 0 and json.dumps(found) and tuple(found) == aux.storage.EFFICIENCY
