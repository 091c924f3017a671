"""What nbval does not show: how running the notebooks as a whole ends where a cell fails."""

import os
import subprocess
import sys

import auxiliary as aux


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
