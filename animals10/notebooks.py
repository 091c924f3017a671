"""Execution of the notebooks as a whole, and what is stored of their outputs."""

import base64
import difflib
import io
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import nbformat
import numpy as np
import papermill
from numpy.lib.stride_tricks import sliding_window_view
from papermill.exceptions import PapermillExecutionError
from PIL import Image, ImageChops

from animals10 import progress
from animals10.catalogue import CATALOGUE
from animals10.files import (
    REPOSITORY,
    UserError,
    atomic_write,
    display_path,
    one_line,
    remove_stale_temporary_files,
    user_facing_os_errors,
)
from animals10.notebook_files import STAMP, cells_sha256, read_notebook
from animals10.settings import NOTEBOOKS, Settings
from animals10.summary import print_results
from animals10.training import train_all

TYPO_RATIO = 0.8  # from this similarity to an id of the catalogue on, an unknown id is taken for a typing error
CHECKED = REPOSITORY / "tests" / "notebooks"  # what nbval executes: code cells, and the outputs that it compares
ERROR_MARKER = "papermill-error-cell-tag"
CHECK = "# NBVAL_CHECK_OUTPUT"  # nbval's mark of a cell whose outputs it compares
COLOUR_TOLERANCE = 4  # largest change of a colour value (0 to 255) in a compressed figure: it cannot be seen


def run_notebooks(
    settings: Settings, store: Literal["published", "checked"] | None = None, names: Sequence[str] = NOTEBOOKS
) -> None:
    """Executes notebooks in order and prints the results.

    The executed copies are written to the workspace.

    Args:
        settings: The settings; their paths reach the notebooks through the environment, like all others.
        store: Where outputs are stored as well, after the last notebook: `published` in the notebooks of the
            repository, with the setting `publish` and by `store_published`; `checked` in `tests/notebooks`, by
            `store_checked`.
        names: Their file names.

    Raises:
        UserError: `only` holds a typing error, the workspace holds a notebook of the user's own under a name of these,
            a cell fails or its kernel is killed (the message names notebook and cell), or an output may show a
            photograph and must not be published.
    """
    check_only(settings.only)
    # In the repository's own workspace, an executed copy must not replace the notebook.
    folder = REPOSITORY / "build" / "full" if settings.root == REPOSITORY else settings.root
    with user_facing_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    remove_stale_temporary_files(folder)
    for name in names:
        make_room(folder / name, REPOSITORY / name)
    # Kernels start in the repository, where a relative path would name something else.
    os.environ.update(ANIMALS10_ROOT=str(settings.root), ANIMALS10_RAW=str(settings.raw))
    os.environ["ANIMALS10_WEIGHTS"] = settings.weights
    if store == "published":
        os.environ["ANIMALS10_PUBLISH"] = "1"
    if progress.place() == "log":  # the kernels of the notebooks cannot tell
        os.environ[progress.AS_LOG] = "lines"
    for number, name in enumerate(names, start=1):
        target = folder / name
        if settings.cluster and number == 2 and tuple(names) == NOTEBOOKS and not settings.publish:
            # All at once, on images that are there now: the notebooks would train one section after the other.
            train_all(settings, CATALOGUE)
        print(f"[{number}/{len(names)}] {name} → {display_path(target)}", file=sys.stderr, flush=True)
        execute_notebook(REPOSITORY / name, target)
    for name in names if store else ():
        if store == "published":
            private = [settings.root, settings.raw, settings.raw_folder, Path(settings.weights)]
            private = [path for path in private if path.is_absolute() and path.name]
            store_published(folder / name, REPOSITORY / name, private)
        else:
            store_checked(folder / name, CHECKED / name)
    print_results(settings)


def execute_notebook(source: Path, target: Path) -> None:
    """Executes a notebook and writes the executed copy, also if a cell fails; in this repository's folder.

    Raises:
        UserError: The notebook cannot be read, a cell fails, or the kernel is killed.
    """
    read_notebook(source)
    options = {"cwd": REPOSITORY, "kernel_name": "python3", "stderr_file": sys.stderr, "progress_bar": False}
    options |= {"stdout_file": progress.PassedOnProgress()}
    options |= {"extra_arguments": ["--log-level=ERROR"]}  # or each kernel warns about its TCP connection
    failure = ""
    with atomic_write(target) as temporary:
        try:
            papermill.execute_notebook(_without_parameters(source), _without_parameters(temporary), **options)
        except PapermillExecutionError as error:
            cell = f"{source.name}, cell {error.cell_index + 1} (In [{error.exec_count}])"
            failure = f"{cell}: {error.ename}: {(error.evalue.splitlines() or [''])[0]}"
        except RuntimeError as error:  # of nbclient: the kernel died
            cells = read_notebook(temporary).cells
            n_begun = sum(bool(cell.metadata.get("papermill", {}).get("start_time")) for cell in cells)
            reason = "most likely because the memory ran out and the system killed it"
            failure = f"{source.name}, cell {n_begun}: the kernel ended ({one_line(error)}), {reason}. Close other "
            failure += "programs, then run this again; finished runs are kept."
        executed = read_notebook(temporary)
        progress.rewrite_stdout(executed, progress.last_progress)
        executed.metadata[STAMP] = {"cells_sha256": cells_sha256(executed)}
        nbformat.write(executed, temporary)
    if failure:
        raise UserError(failure)


def _without_parameters(path: Path) -> str:
    """Returns a path as papermill takes it, for which braces enclose parameters."""
    return str(path).replace("{", "{{").replace("}", "}}")


def make_room(path: Path, source: Path) -> None:
    """Checks that an executed copy of `source` may be written to a path: that nothing of the user's is lost.

    A copy that nobody has changed may be replaced. One that an older version of this study executed, of which this
    cannot be told, is renamed with a message.

    Raises:
        UserError: There is a notebook of the user's own, or a copy that was changed.
    """
    if not path.exists():
        return
    notebook = read_notebook(path)
    stamp = notebook.metadata.get(STAMP, {}).get("cells_sha256")
    if stamp == cells_sha256(notebook):
        return
    if stamp or "papermill" not in notebook.metadata:
        raise UserError(
            f"{display_path(path)} is a notebook of your own, or an executed copy that was changed: move it away, or "
            "choose another workspace (ANIMALS10_ROOT)."
        )
    if _sources(notebook) != _sources(read_notebook(source)):
        kept = path.with_name(f"{path.name}.{datetime.now(UTC):%Y%m%dT%H%M%SZ}.bak")
        with user_facing_os_errors(path):
            path.rename(kept)
        print(
            f"{display_path(path)} is of another version, or was changed: it is kept as {kept.name}.", file=sys.stderr
        )


def _sources(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """Returns type and text of a notebook's cells, without those in which papermill says that a cell failed."""
    cells = [cell for cell in notebook.cells if ERROR_MARKER not in cell.metadata.get("tags", ())]
    return [(cell.cell_type, cell.source) for cell in cells]


def check_only(ids: tuple[str, ...]) -> None:
    """Checks the ids that the setting `only` names, before hours are spent.

    An id that neither the catalogue nor the text of a notebook holds may be that of an experiment which a notebook of
    one's own defines: it is accepted with a message, unless it looks like a typing error.

    Raises:
        UserError: An unknown id is similar to one of the catalogue.
    """
    known = {experiment.id for experiment in CATALOGUE}
    paths = [REPOSITORY / name for name in NOTEBOOKS if (REPOSITORY / name).exists()]
    texts = [text for path in paths for _, text in _sources(read_notebook(path))]
    for id in ids:
        as_word = rf"(?<![\w+-]){re.escape(id)}(?![\w+-])"
        if id in known or any(re.search(as_word, text) for text in texts):
            continue
        if nearest := difflib.get_close_matches(id, sorted(known), n=3, cutoff=TYPO_RATIO):
            names = ", ".join(nearest)
            raise UserError(f"ANIMALS10_ONLY is {id!r}, which no notebook trains; the nearest are {names}.")
        print(f"{id} is not in the catalogue: it is trained only where a notebook of your own defines it.")


# ── Stored outputs ────────────────────────────────────────────────────────────────────────────────────────────────────


def store_published(executed: Path, target: Path, private: Iterable[Path] = ()) -> None:
    """Writes an executed notebook to `target`, without outputs and metadata that change from run to run.

    These are progress bars, execution times and the kernel's version. Figures are compressed.

    Args:
        executed: The executed notebook.
        target: The file to write.
        private: Folders of this machine. Of their paths only the last part is published, as in `…/raw-img`.

    Raises:
        UserError: An output may show a photograph, see `possible_photographs`, or `target` was edited meanwhile.
    """
    notebook = _without_noise(executed)
    if target.exists() and _sources(read_notebook(target)) != _sources(notebook):
        raise UserError(f"{display_path(target)} was edited while it was executed: run this again.")
    compress_figures(notebook)
    for cell in notebook.cells:
        text = json.dumps(cell.get("outputs", []), ensure_ascii=False)
        for path in sorted(private, key=lambda path: -len(path.parts)):  # a folder before those that it lies in
            text = text.replace(str(path), f"…/{path.name}")
        if cell.cell_type == "code":
            cell.outputs = nbformat.from_dict(json.loads(text))
    if found := possible_photographs(notebook):
        raise UserError(f"{display_path(executed)} must not be published: {'; '.join(found)}.")
    with atomic_write(target) as temporary:
        nbformat.write(notebook, temporary)


def store_checked(executed: Path, target: Path) -> None:
    """Writes the code cells of an executed notebook to `target`, and the outputs that nbval compares."""
    notebook = _without_noise(executed)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in notebook.cells:
        cell.outputs = cell.outputs if CHECK in cell.source else []
    with atomic_write(target) as temporary:
        nbformat.write(notebook, temporary)


def _without_noise(executed: Path) -> nbformat.NotebookNode:
    """Returns a notebook without progress bars, execution times and the kernel's version."""
    notebook = read_notebook(executed)
    for key in ("papermill", "language_info", STAMP):
        notebook.metadata.pop(key, None)
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    progress.rewrite_stdout(notebook, progress.without_progress)
    return notebook


def compress_figures(notebook: nbformat.NotebookNode) -> None:
    """Compresses the PNG figures in the outputs of a notebook, in place. A second call changes nothing."""
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        if text := output.get("data", {}).get("image/png"):
            output.data["image/png"] = base64.b64encode(compress_png(base64.b64decode(text))).decode()


def compress_png(png: bytes) -> bytes:
    """Returns a PNG image as a smaller PNG that looks the same.

    Charts get a palette. Where that would change a colour value by more than `COLOUR_TOLERANCE`, as in photographs and
    most Grad-CAM heatmaps, or make a heatmap so rough that it is taken for a photograph, every pixel stays as it is. An
    image that is transparent, has a palette, or would not become smaller is returned unchanged.
    """
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        is_transparent = image.has_transparency_data and np.asarray(image.convert("RGBA"))[..., 3].min() < 255
        if is_transparent or image.mode == "P":
            return png
        rgb = image.convert("RGB")
    palette = rgb.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    change = np.asarray(ImageChops.difference(rgb, palette.convert("RGB"))).max()
    with io.BytesIO() as exact, io.BytesIO() as reduced:
        rgb.save(exact, "PNG", optimize=True)
        palette.save(reduced, "PNG", optimize=True)
        found = [png, exact.getvalue()]
        if change <= COLOUR_TOLERANCE and not looks_like_photograph(reduced.getvalue()):
            found.append(reduced.getvalue())
        return min(found, key=len)


# ── Photographs in stored outputs ─────────────────────────────────────────────────────────────────────────────────────

# HTML that shows or loads something else than text.
NOT_TEXT = re.compile(r"<\s*(img|svg|canvas|picture|video|object|embed|iframe|script|link)\b|data:\w+/|url\s*\(", re.I)
SQUARE, STEP = 16, 8  # pixels: edge of the squares of a figure that are looked at, and their distance
MOST = 0.2  # share of a square above which a colour is its background
ROUGHNESS = 1.5  # grey values (0 to 255) by which pixels differ from the mean of their neighbours


def possible_photographs(notebook: nbformat.NotebookNode) -> list[str]:
    """Looks for photographs in a notebook.

    Text and tables are allowed, and PNG figures that `plots.show` made without photographs and that do not look like
    one either.

    Returns:
        A line for each output or attachment that is something else.
    """
    found = []
    for number, cell in enumerate(notebook.cells, start=1):
        if cell.get("attachments") or "data:image" in cell.source:
            found.append(f"cell {number} has an image attached")
        for output in cell.get("outputs", []):
            for kind, content in output.get("data", {}).items():
                if reason := _objection(kind, content, output.metadata):
                    found.append(f"cell {number} {reason}")
    return found


def _objection(kind: str, content: str, metadata: dict) -> str:
    """Says what is wrong with an output of the given MIME type; nothing if it is certain to show no photograph."""
    if kind == "text/plain":
        return ""
    if kind == "text/html":
        return "has HTML with more than text" if NOT_TEXT.search(content) else ""
    if kind != "image/png":
        return f"has an output of the type {kind}"
    if metadata.get("image/png", {}).get("photographs") != "hidden":
        return "has a figure that aux.show did not make with ANIMALS10_PUBLISH=1"
    return "has a figure that looks like a photograph" if looks_like_photograph(base64.b64decode(content)) else ""


def looks_like_photograph(png: bytes) -> bool:
    """Tells whether a photograph seems to be in a figure, in colour or in grey, also beneath a heatmap.

    A photograph has squares without a background colour whose pixels differ from their neighbours. Where charts have
    fine detail, as in texts, it is on a background. Heatmaps have no background, but they are smooth.
    """
    with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    colours, grey = pixels @ (65536, 256, 1), pixels.mean(axis=-1)
    # How far each pixel is from the mean of its two neighbours.
    horizontal = np.abs(grey[:, 1:-1] - (grey[:, :-2] + grey[:, 2:]) / 2)[1:-1]
    vertical = np.abs(grey[1:-1] - (grey[:-2] + grey[2:]) / 2)[:, 1:-1]
    roughness = np.minimum(*(np.median(_squares(bend), axis=1) for bend in (horizontal, vertical)))
    ordered = np.sort(_squares(colours[1:-1, 1:-1])[roughness >= ROUGHNESS], axis=1)
    most = int(MOST * SQUARE**2)
    has_background = (ordered[:, most:] == ordered[:, :-most]).any(axis=1)  # a colour has more than `most` pixels
    return bool((~has_background).any())


def _squares(values: np.ndarray) -> np.ndarray:
    """Returns the squares of an image, one per row."""
    windows = sliding_window_view(values, (SQUARE, SQUARE))[::STEP, ::STEP]
    return windows.reshape(-1, SQUARE**2)
