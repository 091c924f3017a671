"""Files that are whole or not there: tables, rows of results; and the error that a person can put right.

`auxiliary` hands on what notebooks need of it. Nothing here knows of pictures, models or settings.
"""

import csv
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock
import pandas as pd

# Columns that stay text, whatever a value looks like.
TEXTS = tuple(
    """relpath name category source sha256 predicted model_id run_id dataset commit data_sha256
    filters pool_sizes dense_units dropout notebook backbone continues remark""".split()
)


class StudyError(RuntimeError):
    """Something the person at the keyboard can put right; its message is one line that says what, where and how."""

    def _render_traceback_(self) -> list[str]:  # IPython's hook: a notebook shows the line without the stack above it
        return [f"StudyError: {self}"]


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which it replaces after the block: no reader sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_table(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Writes a table as csv, whole or not at all, and returns it. File names that are no valid UTF-8 survive."""
    with whole_file(path) as temporary:
        table.to_csv(temporary, index=False, errors="surrogateescape")
    return table


def read_table(path: Path) -> pd.DataFrame:
    """Reads a csv table of this study; a class may be named `NA`, `7` or `1e5` and stays text."""
    options = {"keep_default_na": False, "na_values": [""], "encoding_errors": "surrogateescape"}
    return pd.read_csv(path, dtype=dict.fromkeys(TEXTS, "str"), **options)


def append_row(path: Path, row: Mapping, columns: Sequence[str]) -> None:
    """Appends a row to a csv table, under a lock and flushed to disk, unless its `run_id` is there already.

    Columns of the table beyond `columns` are kept and left empty; a StudyError says which of them the table lacks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock")), path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        reader = csv.DictReader(file)
        header = reader.fieldnames or columns
        if missing := [name for name in columns if name not in header]:
            raise StudyError(f"{path} lacks the columns {', '.join(missing)}: add them, or move the file away.")
        if any(stored["run_id"] == row["run_id"] for stored in reader):
            return
        writer = csv.DictWriter(file, header, lineterminator="\n")
        if not reader.fieldnames:
            writer.writeheader()
        writer.writerow(dict(row))
        file.flush()
        os.fsync(file.fileno())
