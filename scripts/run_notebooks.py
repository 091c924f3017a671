"""Runs the three notebooks in order with the settings of the environment and prints the results table.

The executed copies land in the workspace. With --store the outputs go into the repository's own notebooks instead,
without what changes from run to run: progress bars, times of execution, versions of the kernel.
"""

import argparse
import base64
import io
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from PIL import Image, ImageChops

import auxiliary as aux
from networks import unwatched

# Of `published_table` and of results beyond it, with the names that are printed.
COLUMNS = {"notebook": "notebook", "model_id": "model_id", "learning_rate": "rate", "epochs": "epochs"}
COLUMNS |= {"published": "published", "accuracy": "accuracy", "accuracy_low": "low", "accuracy_high": "high"}
COLUMNS |= {
    "epochs_run": "epochs run",
    "dataset": "dataset",
    "weights": "weights",
    "standing": "standing",
    "verdict": "verdict",
}


LOSS = 4  # levels of 255 by which a colour may move: nobody sees it


def smaller(png: bytes) -> bytes:
    """Returns a figure as a smaller PNG that looks the same.

    Charts get a palette. Where that would move a colour by more than `LOSS`, as in photographs and heat maps, every
    pixel stays as it is. A picture that is transparent, has a palette, or becomes no smaller is returned as it was.
    """
    with Image.open(io.BytesIO(png), formats=["PNG"]) as picture:
        transparent = picture.has_transparency_data and picture.convert("RGBA").getextrema()[3][0] < 255
        if transparent or picture.mode == "P":
            return png
        plain = picture.convert("RGB")
    palette = plain.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    moved = ImageChops.difference(plain, palette.convert("RGB")).getextrema()
    with io.BytesIO() as file:
        (palette if max(high for _, high in moved) <= LOSS else plain).save(file, "PNG", optimize=True)
        return min(png, file.getvalue(), key=len)


def shrink(notebook: nbformat.NotebookNode) -> None:
    """Makes the figures in a notebook's outputs smaller, in place; a second time changes nothing."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if text := output.get("data", {}).get("image/png"):
            output.data["image/png"] = base64.b64encode(smaller(base64.b64decode(text))).decode()


def store(executed: Path, target: Path) -> None:
    """Writes an executed notebook over the repository's, smaller and without volatile outputs and metadata."""
    notebook = nbformat.read(executed, as_version=4)
    for key in ("papermill", "language_info"):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    shrink(notebook)
    nbformat.write(notebook, target)


def print_results(settings: aux.Settings) -> None:
    """Prints the published runs with what was measured, in the order of publication, and then all other runs."""
    table = aux.published_table(settings)
    table = table.rename(columns={"accuracy": "published", "accuracy_measured": "accuracy"})
    done = table[table.run_id.notna()]
    results = aux.results_table(settings)
    other = results[~results.run_id.isin(done.run_id)]
    titles = {f"{len(done)} of {len(table)} published runs": done, "Other runs, best first": other}
    for title, rows in titles.items():
        if len(rows):
            rows = rows[[name for name in COLUMNS if name in rows]].rename(columns=COLUMNS)
            print(f"\n{title} ({aux.short(settings.results)}):\n")
            print(rows.to_string(index=False, float_format="{:.4g}".format))


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
    if unwatched():  # which the notebooks' kernels cannot see
        os.environ["TQDM_DISABLE"] = "1"
    for number, name in enumerate(aux.NOTEBOOKS, start=1):
        print(f"[{number}/{len(aux.NOTEBOOKS)}] {name} → {aux.short(folder / name)}", file=sys.stderr, flush=True)
        options = {"cwd": aux.REPOSITORY, "kernel_name": "python3", "stderr_file": sys.stderr, "progress_bar": False}
        options |= {"extra_arguments": ["--log-level=ERROR"]}  # else each kernel warns that it speaks TCP
        try:
            papermill.execute_notebook(aux.REPOSITORY / name, folder / name, **options)
        except PapermillExecutionError as error:
            sys.exit(f"\n{name}, cell {error.cell_index + 1} (In [{error.exec_count}]): {error.ename}: {error.evalue}")
        if arguments.store:
            store(folder / name, aux.REPOSITORY / name)
    print_results(settings)
    if settings.profile == "sample":
        print("\nSample and random weights: drawings and untrained backbones, to see that all works.")


if __name__ == "__main__":
    main()
