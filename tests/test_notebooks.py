"""What nbval does not show: how running the notebooks ends where a cell fails, and what is stored of them."""

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


def test_a_failing_cell_ends_the_run_and_names_notebook_and_cell(tmp_path):
    (tmp_path / "raw").mkdir()
    environment = {name: text for name, text in os.environ.items() if not name.startswith("ANIMALS10_")}
    environment |= {"ANIMALS10_ROOT": str(tmp_path / "work"), "ANIMALS10_RAW": str(tmp_path / "raw")}
    command = [sys.executable, aux.REPOSITORY / "scripts" / "run_notebooks.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("01-preprocessing.ipynb, cell 4 (In [2]): StudyError:") and str(tmp_path / "raw") in last
    assert (tmp_path / "work" / "01-preprocessing.ipynb").exists()


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
