"""What nbval does not show: a cell that fails, other people's classes, and what is stored of the notebooks."""

import base64
import io
import os
import subprocess
import sys

import nbformat
import numpy as np
from PIL import Image

import auxiliary as aux
from scripts import run_notebooks


def start(**changes):
    environment = {name: text for name, text in os.environ.items() if not name.startswith("ANIMALS10_")}
    environment |= {f"ANIMALS10_{name.upper()}": str(value) for name, value in changes.items()}
    command = [sys.executable, aux.REPOSITORY / "scripts" / "run_notebooks.py"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_failing_cell_ends_the_run_and_names_notebook_and_cell(tmp_path):
    (tmp_path / "raw").mkdir()
    done = start(root=tmp_path / "work", raw=tmp_path / "raw")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("01-preprocessing.ipynb, cell 4 (In [2]): StudyError:") and str(tmp_path / "raw") in last
    assert (tmp_path / "work" / "01-preprocessing.ipynb").exists()


def test_two_classes_of_any_name_go_through_all_notebooks(tmp_path, draw):
    classes = {"grüne Äpfel $5$": (40, 200, 40), "красный & co": (200, 40, 40)}
    for name, colour in classes.items():
        for index in range(14):
            draw(tmp_path / "raw" / name / f"{name} {index}.jpg", colour)
    only = {"only": "conv5small_dense1,mobnet2_small", "weights": "random", "max_epochs": 1, "views": 1}
    done = start(root=tmp_path / "work", raw=tmp_path / "raw", **only)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = aux.read_table(tmp_path / "work" / "results.csv")
    assert set(rows.model_id) == {"conv5small_dense1", "mobnet2_small"}
    run = next((tmp_path / "work" / "models").glob("mobnet2_small-*"))
    model, names = aux.load_model(run / "model.keras")
    assert set(names) == set(classes) and model.output_shape == (None, 2)
    cells = nbformat.read(tmp_path / "work" / aux.NOTEBOOKS[2], as_version=4).cells
    shown = "".join(str(cell.outputs) for cell in cells if cell.cell_type == "code")
    assert "test accuracy" in shown and "(published 0." not in shown and "published runs" not in done.stdout


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
    veiled = np.full((60, 60, 4), 100)
    for pixels in (chart, photograph, veiled):
        png = as_png(pixels)
        found = run_notebooks.smaller(png)
        loss = np.abs(pixels_of(found) - pixels).max()
        assert loss <= run_notebooks.LOSS if pixels is chart else loss == 0
        assert len(found) < len(png) or (pixels is veiled and found == png)
        assert run_notebooks.smaller(found) == found
    outputs = [nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(as_png(chart)).decode()})]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(outputs=outputs)])
    run_notebooks.shrink(notebook)
    assert np.abs(pixels_of(base64.b64decode(outputs[0].data["image/png"])) - chart).max() <= run_notebooks.LOSS
