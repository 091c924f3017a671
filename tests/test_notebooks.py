"""What nbval does not test: failing cells, any class names, notebooks of one's own, ANIMALS10_ONLY, stored outputs."""

import base64
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import papermill
import pytest
from IPython.core.pylabtools import print_figure
from PIL import Image
from scipy.ndimage import zoom

import auxiliary as aux
from animals10 import notebooks
from animals10.files import REPOSITORY
from animals10.sample import SAMPLE


def run_all(**settings):
    environment = {name: text for name, text in os.environ.items() if not name.startswith("ANIMALS10_")}
    environment |= {f"ANIMALS10_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, REPOSITORY / "scripts" / "run_notebooks.py"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_failing_cell_ends_the_run_and_names_notebook_and_cell(tmp_path):
    (tmp_path / "raw").mkdir()
    done = run_all(root=tmp_path / "work", raw=tmp_path / "raw")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert re.match(r"01-preprocessing\.ipynb, cell \d+ \(In \[\d+\]\): UserError:", last)
    assert str(tmp_path / "raw") in last
    assert (tmp_path / "work" / "01-preprocessing.ipynb").exists()


@pytest.mark.slow
def test_two_classes_of_any_name_go_through_all_notebooks(tmp_path, draw):
    classes = {"grüne Äpfel $5$": (40, 200, 40), "красный & co": (200, 40, 40)}
    for name, colour in classes.items():
        for index in range(14):
            draw(tmp_path / "raw" / name / f"{name} {index}.jpg", colour)
    only = {"only": "conv5small_dense1,mobnet2_linear_probe", "weights": "random", "max_epochs": 1, "views": 1}
    done = run_all(root=tmp_path / "work", raw=tmp_path / "raw", **only)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = aux.read_table(tmp_path / "work" / "results.csv")
    assert set(rows.model_id) == {"conv5small_dense1", "mobnet2_linear_probe"}
    run = next((tmp_path / "work" / "models").glob("mobnet2_linear_probe-*"))
    model, class_names = aux.load_model(run / "model.keras")
    assert set(class_names) == set(classes) and model.output_shape == (None, 2)
    cells = nbformat.read(tmp_path / "work" / aux.NOTEBOOKS[2], as_version=4).cells
    shown = "".join(str(cell.outputs) for cell in cells if cell.cell_type == "code")
    assert "(published 0." not in shown and "published runs" not in done.stdout
    # The best run is shown in detail, wherever it is the only one.
    for figure in ("mobnet2_linear_probe on raw, learning rate", "mobnet2_linear_probe: Grad-CAM heatmaps"):
        assert shown.count(f"'alt': '{figure}") == 2


# ── Executed copies ───────────────────────────────────────────────────────────────────────────────────────────────────

NAME = aux.NOTEBOOKS[0]


def write_notebook(path: Path, *cells: str, **metadata) -> Path:
    own = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in cells])
    own.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    own.metadata |= metadata
    nbformat.write(own, path)
    return path


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    """A workspace beside a repository whose first notebook is small; braces are no parameters of papermill."""
    repository, root = tmp_path / "repository {a}", tmp_path / "root {b}"
    for folder in (repository, root):
        folder.mkdir()
    write_notebook(repository / NAME, "print(1)")
    monkeypatch.setattr(notebooks, "REPOSITORY", repository)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return aux.Settings(root=root, raw=root)


def test_an_untouched_copy_is_replaced_and_whatever_is_ones_own_is_kept(workspace):
    target = workspace.root / NAME
    for _ in range(2):
        notebooks.run_notebooks(workspace, names=[NAME])
    assert nbformat.read(target, as_version=4).cells[0].outputs[0].text == "1\n"
    assert [path.name for path in workspace.root.iterdir()] == [NAME]
    changed = nbformat.read(target, as_version=4)
    changed.cells.append(nbformat.v4.new_markdown_cell("a note of mine"))
    nbformat.write(changed, target)
    for write in (lambda: None, lambda: write_notebook(target, "mine = 1"), lambda: target.write_text("{")):
        write()
        before = target.read_bytes()
        with pytest.raises(aux.UserError, match=r"01-preprocessing\.ipynb is (a notebook of your own|not a notebook)"):
            notebooks.run_notebooks(workspace, names=[NAME])
        assert target.read_bytes() == before


def test_a_copy_of_an_older_version_is_replaced_or_kept_under_another_name(workspace, capsys):
    source, target = notebooks.REPOSITORY / NAME, workspace.root / NAME
    write_notebook(target, "print(1)", papermill={})
    notebooks.make_room(target, source)
    assert target.exists() and not capsys.readouterr().err
    write_notebook(target, "print(1)", "print('a cell of mine')", papermill={})
    before = target.read_bytes()
    notebooks.make_room(target, source)
    (kept,) = workspace.root.iterdir()
    assert kept.name.endswith(".bak") and kept.read_bytes() == before and kept.name in capsys.readouterr().err


def test_a_notebook_that_was_edited_while_it_ran_is_not_overwritten(tmp_path):
    source, copy = write_notebook(tmp_path / "source.ipynb", "1"), write_notebook(tmp_path / "copy.ipynb", "1")
    notebooks.store_published(copy, source)
    write_notebook(source, "1", "2")
    with pytest.raises(aux.UserError, match="was edited while it was executed"):
        notebooks.store_published(copy, source)
    assert len(nbformat.read(source, as_version=4).cells) == 2


def test_a_kernel_that_is_killed_is_one_line_that_says_what_probably_happened(workspace):
    write_notebook(notebooks.REPOSITORY / NAME, "1", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "2")
    with pytest.raises(aux.UserError, match=r"cell 2: the kernel ended .* the memory ran out") as error:
        notebooks.run_notebooks(workspace, names=[NAME])
    assert "\n" not in str(error.value) and (workspace.root / NAME).exists()
    write_notebook(notebooks.REPOSITORY / NAME, "raise ValueError('one line\\nand another')")
    with pytest.raises(aux.UserError, match=r"cell 1 \(In \[1\]\): ValueError: one line$"):
        notebooks.run_notebooks(workspace, names=[NAME])  # the copy of before was nobody's


def test_paths_reach_the_kernels_as_absolute_ones(tmp_path, monkeypatch):
    for name in ("ROOT", "RAW", "WEIGHTS"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"ANIMALS10_{name}", name)
    seen = {}

    def execute(source, target, **options):
        seen.update(os.environ)
        write_notebook(Path(target))

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    monkeypatch.setenv("NOTEBOOK_PROGRESS", "lines")  # which is set for the kernels
    monkeypatch.chdir(tmp_path)  # kernels start in the repository
    notebooks.run_notebooks(aux.Settings.from_environment())
    for name in ("ROOT", "RAW", "WEIGHTS"):
        assert seen[f"ANIMALS10_{name}"] == str(tmp_path / name)


# ── Notebooks of one's own ────────────────────────────────────────────────────────────────────────────────────────────

OWN_CELLS = [
    "import auxiliary as aux\nsettings = aux.Settings.from_environment()\nsmall = aux.CNN((4,), (4,), (8,))",
    "for rate in (1e-3, 1e-2):\n    aux.train(settings, aux.Experiment(f'mine_{rate}', small, aux.Training(rate, 1)))",
    "%%time\ntimed = aux.train(settings, aux.Experiment('timed', small, aux.Training(1e-3, 1)))",
    "%time aux.train(settings, aux.Experiment('timed too', small, aux.Training(1e-3, 1)))",
    "def fit(id, **changes):\n"
    "    training = aux.Training(**{'learning_rate': 1e-3, 'epochs': 1} | changes)\n"
    "    return aux.train(settings, aux.Experiment(id, small, training))\n"
    "runs = [fit(f'batches of {size}', batch_size=size) for size in (8, 16)]",
    "!echo a shell command",
]
OWN_IDS = ["mine_0.001", "mine_0.01", "timed", "timed too", "batches of 8", "batches of 16"]


def test_on_a_cluster_all_sections_are_trained_at_once_before_the_notebooks_show_them(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(notebooks, "execute_notebook", lambda source, target: done.append(source.name))
    monkeypatch.setattr(notebooks, "train_all", lambda settings, experiments: done.append(len(experiments)))
    monkeypatch.setattr(notebooks, "print_results", lambda settings: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    settings = aux.Settings(root=tmp_path)
    notebooks.run_notebooks(settings)
    assert done == [*aux.NOTEBOOKS]
    done.clear()
    notebooks.run_notebooks(settings.model_construct(**dict(settings) | {"cluster": "local"}))  # also without Ray
    assert done == [aux.NOTEBOOKS[0], len(aux.CATALOGUE), *aux.NOTEBOOKS[1:]]


def test_a_notebook_of_ones_own_trains_in_loops_magics_and_functions(prepared, tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"  # not in the repository: the package is installed
    folder.mkdir()
    write_notebook(folder / "own.ipynb", *OWN_CELLS)
    for name in ("root", "raw", "image_size", "weights"):
        monkeypatch.setenv(f"ANIMALS10_{name.upper()}", str(getattr(prepared, name)))
    papermill.execute_notebook(folder / "own.ipynb", folder / "done.ipynb", cwd=folder, progress_bar=False)
    assert aux.read_table(prepared.results).model_id.tolist() == OWN_IDS
    # The same experiment is finished, whoever asks for it; another one trains as ever.
    finished = aux.train(prepared, aux.Experiment("timed", aux.CNN((4,), (4,), (8,)), aux.Training(1e-3, 1)))
    assert len(aux.stored_runs(prepared.root)) == len(OWN_IDS) and finished.path
    assert aux.train(prepared, aux.find_experiment("mobnet2_small_notraining")).path
    assert len(aux.stored_runs(prepared.root)) == len(OWN_IDS) + 1


def test_cells_of_ones_own_in_a_notebook_of_the_study_disturb_no_training(prepared, tmp_path, monkeypatch, capsys):
    for name in aux.NOTEBOOKS:
        text = "%time aux.train(settings, mine)\nfor rate in rates:\n    aux.train(settings, !broken\n'own_id'"
        write_notebook(tmp_path / name, text)
    monkeypatch.setattr(notebooks, "REPOSITORY", tmp_path)
    notebooks.check_only(("own_id", "mobnet2_small"))
    assert not capsys.readouterr().out
    own = aux.Experiment("own_id", aux.CNN((4,), (4,), (8,)), aux.Training(1e-3, 1))
    assert aux.train(prepared, own).path


# ── ANIMALS10_ONLY ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_typing_error_in_only_is_one_line_that_names_the_nearest(capsys):
    notebooks.check_only(())
    notebooks.check_only(("mobnet2_small", "base_meansamp_augment+"))
    assert not capsys.readouterr().out
    for wrong in ("mobnet2_smal", "resnet2_smalll", "conv4dens2"):
        with pytest.raises(aux.UserError, match=rf"ANIMALS10_ONLY is '{wrong}'.*nearest are \w+") as error:
            notebooks.check_only(("mobnet2_small", wrong))
        assert "\n" not in str(error.value)
    with pytest.raises(aux.UserError, match=r"nearest are mobnet2_small"):
        notebooks.check_only(("mobnet2_smal",))


def test_an_id_of_ones_own_in_only_is_accepted_with_a_message(capsys):
    notebooks.check_only(("my_little_network",))
    assert capsys.readouterr().out.startswith("my_little_network is not in the catalogue: ")


# ── Stored outputs ────────────────────────────────────────────────────────────────────────────────────────────────────


def as_png(pixels: np.ndarray) -> bytes:
    with io.BytesIO() as file:
        Image.fromarray(pixels.astype("uint8")).save(file, "PNG")
        return file.getvalue()


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA")).astype(int)


def test_stored_figures_are_smaller_and_look_the_same():
    rng = np.random.default_rng(1)
    chart = np.full((120, 160, 4), 255)
    chart[40:80, 20:140, :3] = rng.integers(0, 120, (40, 120, 1))  # opaque, of few colours
    photograph = rng.integers(0, 256, (60, 60, 4))
    photograph[..., 3] = 255
    transparent = np.full((60, 60, 4), 100)
    for pixels in (chart, photograph, transparent):
        png = as_png(pixels)
        found = notebooks.compress_png(png)
        change = np.abs(pixels_of(found) - pixels).max()
        assert change <= notebooks.COLOUR_TOLERANCE if pixels is chart else change == 0
        assert len(found) < len(png) or (pixels is transparent and found == png)
        assert notebooks.compress_png(found) == found
    outputs = [nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(as_png(chart)).decode()})]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=outputs)])
    notebooks.compress_figures(notebook)
    stored = pixels_of(base64.b64decode(outputs[0].data["image/png"]))
    assert np.abs(stored - chart).max() <= notebooks.COLOUR_TOLERANCE


def executed(path: Path, *outputs: nbformat.NotebookNode, source: str = "1") -> Path:
    """Writes an executed notebook with a text and one cell."""
    cell = nbformat.v4.new_code_cell(
        source, outputs=list(outputs), execution_count=1, metadata={"execution": {"iopub": "now"}}
    )
    metadata = {"papermill": {}, "language_info": {"name": "python"}}
    text = nbformat.v4.new_markdown_cell("a text")
    nbformat.write(nbformat.v4.new_notebook(cells=[text, cell], metadata=metadata), path)
    return path


def test_a_stored_notebook_keeps_nothing_that_changes_from_run_to_run_or_is_private(tmp_path):
    outputs = [nbformat.v4.new_output("stream", name=name, text=f"in {tmp_path}/raw") for name in ("stdout", "stderr")]
    path = executed(tmp_path / "executed.ipynb", *outputs)
    notebooks.store_published(path, tmp_path / "stored.ipynb", [tmp_path, tmp_path / "raw"])
    stored = nbformat.read(tmp_path / "stored.ipynb", as_version=4)
    assert not stored.metadata and not stored.cells[1].metadata
    assert [(output.name, output.text) for output in stored.cells[1].outputs] == [("stdout", "in …/raw")]


def test_copies_for_nbval_hold_code_and_what_is_compared(tmp_path):
    output = nbformat.v4.new_output("stream", name="stdout", text="1")
    for source, outputs in {"print(1)": [], f"{notebooks.CHECK}\nprint(1)": [output]}.items():
        path = executed(tmp_path / "executed.ipynb", output, source=source)
        notebooks.store_checked(path, tmp_path / "copies" / "stored.ipynb")
        (cell,) = nbformat.read(tmp_path / "copies" / "stored.ipynb", as_version=4).cells
        assert cell.source == source and cell.outputs == outputs and cell.execution_count == 1


@pytest.mark.parametrize("name", aux.NOTEBOOKS)
def test_copies_for_nbval_have_the_code_of_the_notebooks(name):
    first, second = (nbformat.read(folder / name, as_version=4).cells for folder in (REPOSITORY, notebooks.CHECKED))
    if [cell.source for cell in first if cell.cell_type == "code"] != [cell.source for cell in second]:
        pytest.fail(f"tests/notebooks/{name} has other code than {name}: run `make sample-notebooks`.", pytrace=False)


def test_each_notebook_begins_with_the_same_settings_and_uses_them(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("ANIMALS10_")]:
        monkeypatch.delenv(name)
    given = {"RAW": str(tmp_path), "WORKSPACE": str(tmp_path), "IMAGE_SIZE": 96, "WEIGHTS": "random", "ONLY": "a"}
    cells = set()
    for name in aux.NOTEBOOKS:
        sources = [cell.source for cell in nbformat.read(REPOSITORY / name, as_version=4).cells]
        place = next(number for number, source in enumerate(sources) if "WORKSPACE = None" in source)
        cells.add(sources[place])
        (line,) = (line for line in sources[place + 1].splitlines() if line.startswith("settings = "))
        settings = eval(line.removeprefix("settings = "), {"aux": aux} | given)
        assert (settings.raw, settings.root, settings.image_size) == (tmp_path, tmp_path, 96)
        assert (settings.weights, settings.only) == ("random", ("a",))
    assert len(cells) == 1 and re.findall(r"^(\w+) = None", cells.pop(), re.M) == list(given)


# ── No photographs ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("folder", [REPOSITORY, notebooks.CHECKED], ids=lambda folder: folder.name)
@pytest.mark.parametrize("name", aux.NOTEBOOKS)
def test_no_photograph_is_in_a_committed_notebook(folder, name):
    notebook = nbformat.read(folder / name, as_version=4)
    assert notebooks.possible_photographs(notebook) == []
    notebooks.compress_figures(notebook)  # which makes no heatmap so rough that it could not be published again
    assert notebooks.possible_photographs(notebook) == []


def drawn(*, photograph: bool, heatmap: bool, is_grey: bool = False) -> bytes:
    """Returns a figure with bars, texts and a Grad-CAM heatmap over a photograph, each only if it is wanted."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.24), layout="constrained")
    left.barh(["cat", "dog"], [3, 1])
    left.set_title("a title of many words, and one more line\n" * 3, fontsize=7)
    right.axis("off")
    pixels = aux.to_rgb(aux.open_image(SAMPLE / "gatto" / "gatto-01.png")).resize((224, 224))
    noise = np.random.default_rng(2).normal(0, 4, (224, 224, 1))  # that a camera adds
    pixels = Image.fromarray(np.clip(np.asarray(pixels) + noise, 0, 255).astype("uint8"))
    if photograph or heatmap:
        pixels = pixels if photograph else Image.new("RGB", (224, 224), "lightgrey")
        right.imshow(pixels.convert("L"), cmap="gray", vmin=0, vmax=255) if is_grey else right.imshow(pixels)
    if heatmap:
        evidence = np.random.default_rng(1).random((7, 7))
        right.imshow(zoom(evidence, 32, order=1), alpha=0.55)
    plt.close(figure)
    return print_figure(figure, "png")


@pytest.mark.parametrize("is_grey", [False, True])
@pytest.mark.parametrize("heatmap", [False, True])
def test_a_photograph_in_a_figure_is_detected(heatmap, is_grey):
    for photograph in (False, True):
        png = drawn(photograph=photograph, heatmap=heatmap, is_grey=is_grey)
        assert notebooks.looks_like_photograph(notebooks.compress_png(png)) == photograph


def test_only_texts_tables_and_figures_without_photographs_are_published(tmp_path):
    pngs = [drawn(photograph=photograph, heatmap=False) for photograph in (False, True)]
    chart, photograph = (base64.b64encode(png).decode() for png in pngs)
    hidden = {"image/png": {"alt": "a chart", "photographs": "hidden"}}
    for kind, content, metadata, objection in (
        ("image/png", chart, hidden, ""),
        ("text/html", "<table><td>data: 1 < 2</td></table>", {}, ""),
        ("image/png", chart, {}, "aux.show did not make"),
        ("image/png", photograph, hidden, "looks like a photograph"),
        ("text/html", '<IMG src="x.jpg">', {}, "more than text"),
        ("text/html", "<p style='background: URL(x.jpg)'>", {}, "more than text"),
        ("image/jpeg", photograph, hidden, "image/jpeg"),
        ("image/svg+xml", "<svg/>", {}, "image/svg"),
        ("text/markdown", "![](x.jpg)", {}, "text/markdown"),
    ):
        target = tmp_path / "stored.ipynb"
        target.unlink(missing_ok=True)
        output = nbformat.v4.new_output("display_data", {kind: content}, metadata=metadata)
        path = executed(tmp_path / "executed.ipynb", output)
        if not objection:
            notebooks.store_published(path, target)
            continue
        with pytest.raises(aux.UserError, match=rf"must not be published: cell 2 has .*{re.escape(objection)}"):
            notebooks.store_published(path, target)
        assert not target.exists()
    attached = nbformat.v4.new_markdown_cell("![a](attachment:a.png)", attachments={"a.png": {"image/png": chart}})
    assert notebooks.possible_photographs(nbformat.v4.new_notebook(cells=[attached]))
