import io
import json

import matplotlib.colors
import matplotlib.pyplot as plt
import nbconvert
import nbformat
import numpy as np
import pandas as pd
import pytest
from IPython.core.pylabtools import print_figure
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.text import Text
from PIL import Image

import auxiliary as aux
from animals10 import notebooks, plot_runs, plots
from animals10.dataset import PUBLISHED_RESULTS
from animals10.files import REPOSITORY

PUBLISHED = aux.read_table(PUBLISHED_RESULTS)
HALF, ALL = [("a", "a"), ("b", "a")] * 10, [("a", "a"), ("b", "b")] * 10  # true and predicted class


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def drawn(figure) -> bytes:
    """Returns the figure as a notebook stores it."""
    return print_figure(figure, "png")


def history_of(epochs, first=1):
    """A validation loss that is lowest in the second epoch, or in the only one."""
    epoch = np.arange(first, first + epochs)
    table = pd.DataFrame({"epoch": epoch, "accuracy": 0.1 * (epoch - first + 1), "loss": 2 / (epoch - first + 1)})
    return table.assign(val_accuracy=0.8 * table.accuracy, val_loss=1 + 0.1 * abs(epoch - first - 1))


def write_run(folder, pairs=HALF, confidence=0.5, history=None, **row):
    """Writes a run whose test images have these pairs of true and predicted class."""
    folder.mkdir(parents=True)
    table = pd.DataFrame(pairs, columns=["category", "predicted"])
    table.insert(0, "relpath", [f"{name}/{index}.jpg" for index, name in enumerate(table.category)])
    aux.write_table(table.assign(confidence=confidence), folder / "predictions.csv")
    history = aux.write_table(history_of(2) if history is None else history, folder / "history.csv")
    best = history.loc[history.val_loss.idxmin()] if len(history) else None
    facts = {"model_id": folder.name, "dataset": "mini", "weights": "none", "image_size": 224, "epochs": 15}
    facts |= {"repetition": 1, "n_test": len(table), "learning_rate": 7e-4} | aux.metrics(table)
    facts |= {"best_epoch": int(best.epoch), "acc_val": best.val_accuracy} if best is not None else {"best_epoch": None}
    names = sorted(set(table.category) | set(table.predicted))
    (folder / "run.json").write_text(json.dumps({"row": facts | row, "class_names": names}))
    return aux.Run((facts | row)["model_id"], folder)


def test_figures_of_a_trained_run(prepared, monkeypatch):
    experiment = aux.Experiment(
        "small", aux.CNN((8, 8), (2, 2), (16,), (0.1,)), aux.Training(learning_rate=1e-2, epochs=6)
    )
    run = aux.train(prepared, experiment)
    table, row = run.predictions, run.row
    figure = aux.plot_run(run)
    axes = {axis.get_title(): axis for axis in figure.axes}
    curves = axes["loss"].lines
    assert np.allclose(curves[0].get_ydata(), run.history.loss) and curves[2].get_xdata()[0] == row["best_epoch"]
    assert f"best epoch: {row['best_epoch']}" in texts(figure)
    assert (
        f"test accuracy {row['accuracy']:.3f}" in figure.get_suptitle()
        and "learning rate 0.01" in figure.get_suptitle()
    )
    matrix = axes["share of each true class, and number of images"]
    counts = [int(text.get_text().split("\n")[1]) for text in matrix.texts if text.get_text()]
    assert sum(counts) == row["n_test"] == 5

    # One image gets a wrong prediction; the figures of images show it.
    table.loc[0, "predicted"] = next(name for name in ("red", "blue") if name != table.category[0])
    aux.write_table(table, run.file("predictions.csv"))
    wrong = table[table.category != table.predicted].sort_values("confidence", ascending=False)
    processed = prepared.data / "processed"
    figure = aux.plot_errors(run, processed)
    assert f"small: {len(wrong)} of 5 test images misclassified, most confident first" in texts(figure)
    drawn = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(drawn) == len(wrong)
    assert np.array_equal(drawn[0], np.asarray(Image.open(processed / wrong.iloc[0].relpath)))
    figure = aux.plot_grad_cam(run, processed, n=2)
    found = [text.split(":")[0] for text in texts(figure) if " → " in text]
    assert found == ["correct"] * 2 + ["wrong"] * min(2, len(wrong))
    assert len([image for axis in figure.axes for image in axis.images]) == 3 * len(found)

    # show_run shows the layers and the run alone; with settings also the figures of images.
    shown = []
    monkeypatch.setattr(plots, "display", lambda figure, **_: shown.append(figure.get_label().split(":")[0]))
    monkeypatch.setattr(plot_runs, "display", lambda table: shown.append(list(table.columns)))
    aux.show_run(run)
    name = "small on raw, learning rate 0.01, maximum epochs 6, repetition 1, trained from scratch"
    assert shown == [["layer", "type", "output shape", "parameters"], name]
    shown.clear()
    aux.show_run(run, prepared)
    assert shown[1:] == [name, "small", "small"]
    (processed / wrong.iloc[0].relpath).unlink()
    with pytest.raises(aux.UserError, match="cannot be drawn"):
        aux.plot_errors(run, processed)


def test_runs_that_are_not_trained_say_why(tmp_path, capsys):
    absent = aux.Run("absent", why="not yet.")
    for plot in (aux.plot_errors, aux.plot_grad_cam):
        assert texts(plot(absent, tmp_path)) == ["absent is not trained here: not yet."]
    aux.show_run(absent)
    assert capsys.readouterr().out == "absent is not trained here: not yet.\n"
    assert texts(aux.plot_comparison([absent], PUBLISHED)) == ["None of these runs is trained here."]


def test_one_line_says_what_is_left_out_and_no_figure_or_table_says_it_again(tmp_path, capsys):
    absent, earlier = aux.Run("absent", why="not yet."), [write_run(tmp_path / "earlier")]
    aux.show(aux.plot_comparison([absent], PUBLISHED, earlier))
    aux.show(aux.plot_learning_curves([absent]))
    aux.show_table(aux.classification_reports(absent))
    assert not capsys.readouterr().out  # where `display` would print the figure
    aux.show_table(aux.classification_reports(absent), "a reason")
    untrained = write_run(tmp_path / "untrained", history=history_of(0))
    aux.show(aux.plot_learning_curves([untrained]))  # printed, since there is nothing to draw
    assert "a reason" in (printed := capsys.readouterr().out) and "evaluated without training" in printed


def test_the_best_run_has_the_highest_validation_accuracy(tmp_path, capsys):
    scores = {"untrained": None, "low": 0.5, "high": 0.75, "equal": 0.75}
    written = [write_run(tmp_path / name, acc_val=score) for name, score in scores.items()]
    runs = aux.Runs([aux.Run("absent", why="not yet."), *written])
    assert runs.best.model_id == "high"
    aux.show_run(runs[:2].best)
    assert capsys.readouterr().out == "The best of these runs is not trained here: none of them is.\n"


def test_equal_tables_give_equal_outputs(monkeypatch):
    shown = []
    monkeypatch.setattr(plot_runs, "display", lambda data, raw: shown.append(data))
    table = pd.DataFrame({"run": ["a", "<b>"], "accuracy": [0.12345, np.nan], "params": [12345, 6]})
    for _ in range(2):
        aux.show_table(table, formats={"params": "{:,}"})
    assert shown[0] == shown[1]
    html, text = shown[0]["text/html"], shown[0]["text/plain"]
    for value in ("0.123", "12,345", "–"):
        assert value in html and value in text


def test_the_confusion_matrix_shows_shares_and_counts(tmp_path):
    pairs = [("cat", "cat")] * 4 + [("cat", "dog")] + [("dog", "dog")] * 2
    figure = aux.plot_run(write_run(tmp_path / "few", pairs))
    cells = [text for text in texts(figure) if "%\n" in text]
    assert cells == ["80 %\n4", "20 %\n1", "100 %\n2"]  # empty cells stay blank
    several = aux.plot_run(write_run(tmp_path / "several", [(f"{index:02}", "00") for index in range(13)] * 7))
    assert texts(several).count("7") == 13 and not [text for text in texts(several) if "%\n" in text]
    many = aux.plot_run(write_run(tmp_path / "many", [(f"{index:02}", "00") for index in range(21)]))
    assert "1" not in texts(many) and "<colorbar>" in [axis.get_label() for axis in many.axes]


def test_large_images_are_drawn_as_thumbnails(tmp_path, draw):
    figure = aux.plot_images([draw(tmp_path / "large.jpg", size=(1200, 900))], ["large"])
    assert figure.axes[0].images[0].get_array().shape == (300, 400, 3)


def test_the_most_confident_errors_come_first(tmp_path, draw):
    pairs = [("cat", "dog"), ("dog", "cat"), ("cat", "$5$"), ("cat", "cat")]
    run = write_run(tmp_path / "run", pairs, confidence=[0.4, 0.9, 0.6, 1.0])
    for relpath in run.predictions.relpath:
        draw(tmp_path / relpath)
    figure = aux.plot_errors(run, tmp_path, n=2)
    assert [text for text in texts(figure) if "→" in text] == ["dog → cat\n90 %", "cat → $5$\n60 %"]
    assert "run: 3 of 4 test images misclassified, the 2 most confident" in texts(figure)
    figure.draw_without_rendering()  # `$5$` is not a formula
    perfect = write_run(tmp_path / "perfect", [("cat", "cat")] * 3)
    assert texts(aux.plot_errors(perfect, tmp_path)) == ["perfect classifies all of its 3 test images correctly."]


def panels(figure) -> list[list]:
    """Returns the panels of accuracy and of loss that show curves, in the order of the runs."""
    drawn = [axis for axis in figure.axes if axis.lines]
    rows = [axis.get_subplotspec().rowspan.start for axis in drawn]
    return [[axis for axis, row in zip(drawn, rows, strict=True) if row % 2 == part] for part in (0, 1)]


@pytest.mark.parametrize("n", [1, 4, 5, 10])
def test_learning_curves_are_small_multiples_with_shared_axes(tmp_path, n):
    runs = [write_run(tmp_path / f"net{index}", history=history_of(index + 3)) for index in range(n)]
    figure = aux.plot_learning_curves(runs)
    accuracy, loss = panels(figure)
    assert [axis.get_title("left").split("\n")[0] for axis in accuracy] == [run.model_id for run in runs]
    for axes, name in ((accuracy, "accuracy"), (loss, "loss")):
        assert len(axes) == n and len({(axis.get_xlim(), axis.get_ylim()) for axis in axes}) == 1
        for axis, run in zip(axes, runs, strict=True):
            training, validation, best = axis.lines
            assert np.allclose(training.get_ydata(), run.history[name])
            assert np.allclose(validation.get_ydata(), run.history[f"val_{name}"])
            assert best.get_xdata()[0] == run.row["best_epoch"] == 2
    assert max(axis.get_subplotspec().colspan.start for axis in accuracy) <= 2
    assert figure.get_figwidth() <= 9.5
    assert all(axis.get_title("left").endswith("\nbest epoch 2: validation accuracy 0.160") for axis in accuracy)
    assert all(f"{run.model_id}, best epoch 2: validation accuracy 0.160" in figure.get_label() for run in runs)
    figure.draw_without_rendering()  # no warning that there is no room


def test_learning_curves_name_namesakes_apart_and_what_is_left_out(tmp_path):
    short = write_run(tmp_path / "a", model_id="net", epochs=35)
    long = write_run(tmp_path / "b", model_id="net", epochs=80, history=history_of(3, first=36))
    once = write_run(tmp_path / "once", history=history_of(1))
    never = write_run(tmp_path / "never", history=history_of(0))
    diverged = write_run(tmp_path / "diverged", history=history_of(3).assign(val_loss=[1, np.nan, 90]))
    absent = aux.Run("absent", why="ANIMALS10_ONLY leaves it out.")  # `train_all` names it
    figure = aux.plot_learning_curves([short, never, long, absent, once, diverged])
    accuracy, loss = panels(figure)
    titles = [axis.get_title("left").split("\n")[0] for axis in accuracy]
    assert titles == ["net, 35 epochs", "net, 80 epochs", "once", "diverged"]
    low, high = accuracy[2].get_xlim()
    assert low < 1 and high > 38  # the marker of a single epoch lies inside
    (caption,) = [text for text in texts(figure) if text.startswith("Not shown: never: evaluated without training.")]
    assert loss[0].get_ylim()[1] < 3 and "The axis of the loss ends at 1.4" in caption
    single = aux.plot_learning_curves([once])
    (point,) = panels(single)[0][0].lines[:1]
    assert point.get_marker() == "o" and len(point.get_xdata()) == 1
    single.draw_without_rendering()


def test_comparison_of_runs_with_the_published_ones(tmp_path):
    first = write_run(tmp_path / "base_downsamp_augment+", HALF)
    again = write_run(tmp_path / "again", ALL, model_id="conv4lesspoll_dense1", learning_rate=5e-4, epochs=35)
    longer = write_run(tmp_path / "longer", ALL, model_id="conv4lesspoll_dense1", learning_rate=5e-4, epochs=80)
    own = write_run(tmp_path / "own", HALF)  # not among the published
    runs = [aux.Run("absent", why="not yet."), longer, again, own]
    figure = aux.plot_comparison(runs, PUBLISHED, earlier=[first])
    axis = figure.axes[0]
    names = ["base_downsamp_augment+", "conv4lesspoll_dense1, 80 epochs", "conv4lesspoll_dense1, 35 epochs", "own"]
    assert [label.get_text() for label in axis.get_yticklabels()] == names and axis.yaxis_inverted()
    lines = {line.get_label(): line for line in axis.lines}
    hollow = lines["published: on all of Animals-10"]
    ids = PUBLISHED.query("image_size == 224").set_index(["model_id", "epochs"]).accuracy.to_dict()
    expected = [ids["base_downsamp_augment+", 15], ids["conv4lesspoll_dense1", 80], ids["conv4lesspoll_dense1", 35]]
    assert np.allclose(hollow.get_xdata(), [*expected, np.nan], equal_nan=True)
    assert hollow.get_markerfacecolor() == "none"
    points = [line for line in axis.lines if line.get_marker() == "o" and len(line.get_xdata())]
    places = [(*line.get_xdata(), *line.get_ydata()) for line in points]
    assert places == [(0.5, 0), (1, 1), (1, 2), (0.5, 3)]
    colours = [matplotlib.colors.to_hex(line.get_color()).upper() for line in points]
    assert colours == [plots.GREY] + [plots.BLUE] * 3  # what an earlier figure showed is grey
    spans = [line.get_xdata() for line in axis.lines if line.get_linestyle() == "-" and line.get_marker() == "None"]
    assert np.allclose(spans[0], [first.row["accuracy_low"], first.row["accuracy_high"]])
    assert lines["chance, 2 classes: 0.5"].get_xdata() == [0.5, 0.5]
    assert "Test accuracy on 20 test images of mini" in texts(figure) and "shown before" in texts(figure)
    near = texts(aux.plot_comparison([first, again], PUBLISHED, limits=(0.8, 1)))
    assert "← 0.500" in near and "← 1.000" not in near and "chance, 2 classes: 0.5" not in near
    random = write_run(tmp_path / "random", weights="random")
    assert "random weights" in aux.plot_comparison([random], PUBLISHED).get_label()


def test_the_description_reaches_the_page(monkeypatch):
    shown = {}
    monkeypatch.setattr(plots, "display", lambda figure, metadata: shown.update(metadata))
    figure = aux.plot_images([np.zeros((4, 4, 3))], ["dog\n→ cat"])
    aux.show(figure)
    assert shown == {"image/png": {"alt": "Images: dog → cat"}}
    output = nbformat.v4.new_output("display_data", {"image/png": "iVBORw0KGgo="}, metadata=shown)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=[output])])
    page, _ = nbconvert.HTMLExporter(template_name="classic").from_notebook_node(notebook)
    assert 'alt="Images: dog → cat"' in page


# ── Published figures ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def published(monkeypatch):
    """Returns a function that shows a figure for publication, and returns its alternative text."""
    shown = []
    monkeypatch.setenv("ANIMALS10_PUBLISH", "1")
    monkeypatch.setattr(plots, "display", lambda figure, metadata: shown.append(metadata["image/png"]))

    def _show(figure):
        aux.show(figure)
        assert shown[-1]["photographs"] == "hidden"
        return shown[-1]["alt"]

    return _show


def test_published_figures_show_names_in_place_of_photographs(tmp_path, draw, published, monkeypatch):
    path = draw(tmp_path / "$dog$.jpg")
    figure = aux.plot_images([path, np.asarray(Image.open(path))], ["dog", "augmented"])
    assert published(figure) == f"Images: dog, augmented. {plots.HIDDEN}"
    assert {"dog", "$dog$.jpg", "augmented", "image", plots.HIDDEN} <= set(texts(figure))
    assert [np.ptp(axis.images[0].get_array()) for axis in figure.axes[:2]] == [0, 0]
    figure.draw_without_rendering()  # a name is not a formula
    # Whatever way an image gets into a figure of one's own, in colour or in grey.
    figure, (left, right) = plt.subplots(1, 2)
    pixels = np.random.default_rng(1).integers(0, 255, (64, 64, 3), "uint8")
    left.imshow(pixels[..., 0])
    right.add_artist(AnnotationBbox(OffsetImage(pixels), (0.5, 0.5)))
    figure.figimage(pixels)
    assert notebooks.looks_like_photograph(drawn(figure))
    published(figure)
    assert not notebooks.looks_like_photograph(drawn(figure))
    monkeypatch.setenv("ANIMALS10_PUBLISH", "0")
    figure = aux.plot_images([path], ["dog"])
    monkeypatch.setattr(plots, "display", lambda figure, metadata: None)
    aux.show(figure)
    assert np.ptp(figure.axes[0].images[0].get_array()) > 0


def test_published_figures_keep_matrices_and_heatmaps(prepared, published):
    run = aux.train(prepared, aux.Experiment("small", aux.CNN((8, 8), (2, 2), (16,)), aux.Training(1e-2, 1)))
    figure = aux.plot_run(run)
    (matrix,) = [image for axis in figure.axes for image in axis.images]
    before = matrix.get_array()
    assert plots.HIDDEN not in published(figure) and matrix.get_array() is before and np.ptp(before) > 0
    model, class_names = aux.load_model(run.file("model.keras"))
    paths = sorted((prepared.raw / "red").iterdir())[:2]
    for figure in (
        aux.plot_grad_cam(run, prepared.data / "processed"),
        aux.plot_predictions(model, class_names, paths, cam=True),
    ):
        assert published(figure).endswith(plots.HIDDEN)
        images = [image for axis in figure.axes for image in axis.images]
        kept = [image for image in images if image.get_gid() == plots.NUMBERS]
        assert len(images) == 3 * len(kept) and all(image.get_array().shape == (32, 32) for image in kept)
        assert not any(np.ptp(image.get_array()) for image in images if image not in kept)
        assert sum(text.endswith((".jpg", ".jpeg")) for text in texts(figure)) >= len(kept)


ODD_NAMES = [r"$\x$", "$5$ ^_{", "a$b$c"]


def drawn_texts(figure):
    """Returns the texts of a figure once it is drawn, after the style that it was made in; none may be a formula."""
    figure.savefig(io.BytesIO())
    found = figure.findobj(Text)
    assert not any(text.get_parse_math() and "$" in text.get_text() for text in found)
    return {text.get_text() for text in found}


def test_dollars_in_class_names_are_no_formulas(prepared):
    model = aux.CNN((4,), (4,), (8,)).build(3, 32)
    paths = sorted((prepared.raw / "red").iterdir())[:1]
    assert set(ODD_NAMES) <= drawn_texts(aux.plot_predictions(model, ODD_NAMES, paths))


def test_dollars_in_class_names_are_no_formulas_in_notebook_01(monkeypatch):
    cells = nbformat.read(REPOSITORY / aux.NOTEBOOKS[0], as_version=4).cells
    (chart,) = [cell.source for cell in cells if "Images per category" in cell.source]
    shown = []
    monkeypatch.setattr(aux, "show", lambda figure, description: shown.append(figure))
    with plt.rc_context():
        exec(chart, {"plt": plt, "aux": aux, "counts": pd.Series(2, ODD_NAMES), "overview": [1] * 6})
        assert set(ODD_NAMES) <= drawn_texts(*shown)
