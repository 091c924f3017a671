"""What nbval does not show: running the notebooks as a whole where a cell fails, and on other people's classes."""

import os
import subprocess
import sys

import auxiliary as aux


def run_notebooks(**changes):
    environment = {name: text for name, text in os.environ.items() if not name.startswith("ANIMALS10_")}
    environment |= {f"ANIMALS10_{name.upper()}": str(value) for name, value in changes.items()}
    command = [sys.executable, aux.REPOSITORY / "scripts" / "run_notebooks.py"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_a_failing_cell_ends_the_run_and_names_notebook_and_cell(tmp_path):
    (tmp_path / "raw").mkdir()
    done = run_notebooks(root=tmp_path / "work", raw=tmp_path / "raw")
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
    done = run_notebooks(root=tmp_path / "work", raw=tmp_path / "raw", **only)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = aux.read_table(tmp_path / "work" / "results.csv")
    assert set(rows.model_id) == {"conv5small_dense1", "mobnet2_small"}
    run = next((tmp_path / "work" / "models").glob("mobnet2_small-*"))
    model, names = aux.load_model(run / "model.keras")
    assert set(names) == set(classes) and model.output_shape == (None, 2)
    notebook = (tmp_path / "work" / aux.NOTEBOOKS[2]).read_text(encoding="utf-8")
    assert "published runs" not in done.stdout and "(published 0." not in notebook
