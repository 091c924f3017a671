"""Runs the three notebooks in order with the settings of the environment and prints the results table.

The executed copies land in the workspace. With --store the outputs go into the repository's own notebooks instead,
without what changes from run to run: progress bars, times of execution, versions of the kernel.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

import auxiliary as aux

COLUMNS = [
    "model_id",
    "learning_rate",
    "epochs",
    "accuracy",
    "accuracy_low",
    "accuracy_high",
    "epochs_run",
    "dataset",
    "weights",
]


def store(executed: Path, target: Path) -> None:
    """Writes an executed notebook over the repository's, without volatile outputs and metadata."""
    notebook = nbformat.read(executed, as_version=4)
    for key in ("papermill", "language_info"):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, target)


def main() -> None:
    """Runs the notebooks; ends with a line that names notebook and cell where one fails."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", action="store_true", help="store the outputs in the repository's notebooks")
    arguments = parser.parse_args()
    try:
        settings = aux.Settings.from_environment()
    except aux.StudyError as error:
        sys.exit(str(error))
    # In the repository itself an executed copy must not take the place of the notebook.
    folder = aux.REPOSITORY / "build" / "full" if settings.root == aux.REPOSITORY else settings.root
    folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(ANIMALS10_ROOT=str(settings.root), ANIMALS10_RAW=str(settings.raw))
    for number, name in enumerate(aux.NOTEBOOKS, start=1):
        print(f"[{number}/{len(aux.NOTEBOOKS)}] {name} → {aux.short(folder / name)}", file=sys.stderr, flush=True)
        options = {"cwd": aux.REPOSITORY, "kernel_name": "python3", "stderr_file": sys.stderr, "progress_bar": True}
        try:
            papermill.execute_notebook(aux.REPOSITORY / name, folder / name, **options)
        except PapermillExecutionError as error:
            sys.exit(f"\n{name}, cell {error.cell_index + 1} (In [{error.exec_count}]): {error.ename}: {error.evalue}")
        if arguments.store:
            store(folder / name, aux.REPOSITORY / name)
    results = aux.results_table(settings)[COLUMNS]
    print(f"\n{aux.short(settings.results)}, best first:\n")
    print(results.to_string(index=False, float_format="{:.4g}".format))
    if settings.profile == "sample":
        print("\nSample and random weights: drawings and untrained backbones, to see that all works.")


if __name__ == "__main__":
    main()
