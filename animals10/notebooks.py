"""Execution of the notebooks as a whole, and the tables of results that follow."""

import base64
import difflib
import io
import os
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import papermill
from papermill.exceptions import PapermillExecutionError
from PIL import Image, ImageChops

from animals10.callbacks import is_unattended
from animals10.catalogue import CATALOGUE
from animals10.files import REPOSITORY, UserError, display_path, user_facing_os_errors
from animals10.results import published_table, results_table
from animals10.settings import NOTEBOOKS, Settings

TYPO_RATIO = 0.8  # from this similarity to an id of the catalogue on, an unknown id is taken for a typing error
COLOUR_TOLERANCE = 4  # largest change of a colour value (0 to 255) in a compressed figure: it cannot be seen

# Columns that are printed, and their titles.
_COLUMNS = {"notebook": "notebook", "model_id": "run", "learning_rate": "rate", "epochs": "epochs"}
_COLUMNS |= {"published": "published", "acc_val": "validation", "accuracy": "test"}
_COLUMNS |= {"accuracy_low": "low", "accuracy_high": "high", "epochs_run": "epochs run", "dataset": "data set"}
_COLUMNS |= {"weights": "weights", "significance": "significance", "agreement": "agreement"}


def run_notebooks(settings: Settings, store_outputs: bool = False) -> None:
    """Executes the three notebooks in order and prints the results.

    The executed copies are written to the workspace.

    Args:
        settings: The settings; `root` and `raw` reach the notebooks through the environment, like all others.
        store_outputs: Whether to store the outputs in the repository's notebooks as well, see `store_notebook`.

    Raises:
        UserError: `only` holds a typing error, or a cell fails; the message names notebook and cell.
    """
    check_only(settings.only)
    # In the repository's own workspace, an executed copy must not replace the notebook.
    folder = REPOSITORY / "build" / "full" if settings.root == REPOSITORY else settings.root
    with user_facing_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    os.environ.update(ANIMALS10_ROOT=str(settings.root), ANIMALS10_RAW=str(settings.raw))
    if is_unattended():  # the kernels of the notebooks cannot tell
        os.environ["TQDM_DISABLE"] = "1"
    for number, name in enumerate(NOTEBOOKS, start=1):
        target = folder / name
        print(f"[{number}/{len(NOTEBOOKS)}] {name} → {display_path(target)}", file=sys.stderr, flush=True)
        options = {"cwd": REPOSITORY, "kernel_name": "python3", "stderr_file": sys.stderr, "progress_bar": False}
        options |= {"extra_arguments": ["--log-level=ERROR"]}  # or each kernel warns about its TCP connection
        try:
            papermill.execute_notebook(REPOSITORY / name, target, **options)
        except PapermillExecutionError as error:
            cell = f"{name}, cell {error.cell_index + 1} (In [{error.exec_count}])"
            raise UserError(f"{cell}: {error.ename}: {error.evalue}") from None
        if store_outputs:
            store_notebook(target, REPOSITORY / name)
    print_results(settings)
    if settings.profile == "sample":
        print("\nThe sample: drawings and backbones with random weights. The metrics only show that everything works.")


def check_only(ids: tuple[str, ...]) -> None:
    """Checks the ids that the setting `only` names, before hours are spent.

    An id that neither the catalogue nor the text of a notebook holds may be that of an experiment which a notebook of
    one's own defines: it is accepted with a message, unless it looks like a typing error.

    Raises:
        UserError: An unknown id is similar to one of the catalogue.
    """
    known = {experiment.id for experiment in CATALOGUE}
    texts = [path.read_text(encoding="utf-8") for name in NOTEBOOKS if (path := REPOSITORY / name).exists()]
    for id in ids:
        as_word = rf"(?<![\w+-]){re.escape(id)}(?![\w+-])"
        if id in known or any(re.search(as_word, text) for text in texts):
            continue
        if nearest := difflib.get_close_matches(id, sorted(known), n=3, cutoff=TYPO_RATIO):
            names = ", ".join(nearest)
            raise UserError(f"ANIMALS10_ONLY is {id!r}, which no notebook trains; the nearest are {names}.")
        print(f"{id} is not in the catalogue: it is trained only where a notebook of your own defines it.")


def print_results(settings: Settings) -> None:
    """Prints the published runs in the order of publication with their measured runs, then all other measured runs.

    The other runs are in the order of `results.results_table`: best validation accuracy first.
    """
    if not settings.results.exists():
        print(f"There is no {display_path(settings.results)}: no run is trained yet.")
        return
    table = published_table(settings).drop(columns="acc_val")  # the published one
    table = table.rename(columns={"accuracy": "published", "accuracy_measured": "accuracy"})
    table = table.rename(columns={"acc_val_measured": "acc_val"})
    measured = table[table.run_id.notna()]
    results = results_table(settings)
    others = results[~results.run_id.isin(measured.run_id)]
    titles = {
        f"{len(measured)} of {len(table)} published runs": measured,
        "Other runs, best validation accuracy first": others,
    }
    for title, rows in titles.items():
        if len(rows):
            rows = rows[[name for name in _COLUMNS if name in rows]].rename(columns=_COLUMNS)
            print(f"\n{title} ({display_path(settings.results)}):\n")
            print(rows.to_string(index=False, float_format="{:.4g}".format))


# ── Stored outputs ────────────────────────────────────────────────────────────────────────────────────────────────────


def store_notebook(executed: Path, target: Path) -> None:
    """Writes an executed notebook to `target`, without outputs and metadata that change from run to run.

    These are progress bars, execution times and the kernel's version. Figures are compressed.
    """
    notebook = nbformat.read(executed, as_version=4)
    for key in ("papermill", "language_info"):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    compress_figures(notebook)
    nbformat.write(notebook, target)


def compress_figures(notebook: nbformat.NotebookNode) -> None:
    """Compresses the PNG figures in the outputs of a notebook, in place. A second call changes nothing."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if text := output.get("data", {}).get("image/png"):
            output.data["image/png"] = base64.b64encode(compress_png(base64.b64decode(text))).decode()


def compress_png(png: bytes) -> bytes:
    """Returns a PNG image as a smaller PNG that looks the same.

    Charts get a palette. Where that would change a colour value by more than `COLOUR_TOLERANCE`, as in photographs and
    Grad-CAM heatmaps, every pixel stays as it is. An image that is transparent, has a palette, or would not become
    smaller is returned unchanged.
    """
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        is_transparent = image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255
        if is_transparent or image.mode == "P":
            return png
        rgb = image.convert("RGB")
    palette = rgb.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    change = np.asarray(ImageChops.difference(rgb, palette.convert("RGB"))).max()
    with io.BytesIO() as file:
        chosen = palette if change <= COLOUR_TOLERANCE else rgb
        chosen.save(file, "PNG", optimize=True)
        return min(png, file.getvalue(), key=len)
