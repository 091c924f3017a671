"""Files of notebooks: how they are read, and the mark by which a copy tells whether anybody has changed it."""

import hashlib
import json
from pathlib import Path

import nbformat

from animals10.files import reading

STAMP = "animals10"  # the metadata of a copy: `cells_sha256` is the checksum of its cells when it was written


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Reads a notebook.

    Raises:
        UserError: It is missing or no notebook.
    """
    with reading(path, "is not a notebook"):
        return nbformat.read(path, as_version=4)


def cells_sha256(notebook: nbformat.NotebookNode) -> str:
    """Returns a checksum of the texts and outputs of a notebook's cells, as 64 hexadecimal digits."""
    names = ("cell_type", "source", "outputs", "attachments")
    cells = [[cell.get(name) or None for name in names] for cell in notebook.cells]
    return hashlib.sha256(json.dumps(cells, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()
