"""JupyterLab on working copies of the notebooks: whatever is changed or executed there reaches no tracked file."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat

from animals10.files import REPOSITORY, atomic_write, display_path
from animals10.notebook_files import STAMP, cells_sha256, read_notebook
from animals10.settings import NOTEBOOKS, Settings


def working_copies(settings: Settings) -> Path:
    """Writes working copies of the notebooks, without outputs, to the folder `notebooks` of the workspace.

    A copy that was changed or executed is kept. A line says so if the notebook of the repository is another one now.

    Returns:
        The folder.

    Raises:
        UserError: A notebook cannot be read or written.
    """
    folder = settings.root / "notebooks"
    for name in NOTEBOOKS:
        _copy(REPOSITORY / name, folder / name)
    return folder


def _copy(source: Path, target: Path) -> None:
    notebook = read_notebook(source)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    made_of = cells_sha256(notebook)
    if target.exists():
        stamp = read_notebook(target).metadata.get(STAMP, {})
        if stamp.get("cells_sha256") != cells_sha256(read_notebook(target)):
            if stamp.get("made_of") != made_of:
                print(f"{display_path(target)} is kept, since you changed it; rename it to get the present notebook.")
            return
    notebook.metadata[STAMP] = {"cells_sha256": made_of, "made_of": made_of}
    with atomic_write(target) as temporary:
        nbformat.write(notebook, temporary)


def open_lab(settings: Settings, arguments: Sequence[str] = ()) -> int:
    """Runs JupyterLab on the working copies until it is ended; kernels import the code of this repository.

    Args:
        settings: The settings, for the workspace; the notebooks read them anew.
        arguments: Of JupyterLab, such as `--no-browser`.

    Returns:
        Its exit status.
    """
    folder = working_copies(settings)
    paths = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "jupyter", "lab", f"--ServerApp.root_dir={folder}", *arguments]
    if not any("default_url" in argument for argument in arguments):
        command.append(f"--LabApp.default_url=/lab/tree/{NOTEBOOKS[0]}")
    try:
        return subprocess.run(command, env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, check=False).returncode
    except KeyboardInterrupt:  # JupyterLab has asked, and has ended
        return 0
