"""Files: atomic writes, csv tables, JSON, and the one-line error that a person can act on."""

import csv
import errno
import hashlib
import io
import json
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
# Columns that are read as text, whatever a value looks like.
TEXT_COLUMNS = tuple(
    """relpath name category source sha256 predicted model_id run_id dataset commit data_sha256
    filters pool_sizes dense_units dropout notebook backbone continues init_from remark phash group""".split()
)


class UserError(RuntimeError):
    """An error that the user can act on. Its message is one line: what was found, where, and what to do."""

    def _render_traceback_(self) -> list[str]:
        """IPython's hook: a notebook shows the line without the stack trace."""
        return [f"UserError: {self}"]


def display_path(path: Path) -> str:
    """Returns a path relative to the repository where it lies inside, else the path as it is."""
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)


def one_line(error: BaseException) -> str:
    """Returns the first line of an error's message, at most 160 characters, or the error's name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


# Errors of the operating system that a person can act on, and what to do about each.
OS_ERROR_ADVICE = {
    errno.ENOSPC: "the disk is full. Make room",
    errno.EDQUOT: "the disk quota is used up. Make room",
    errno.EFBIG: "the file is larger than this system allows. Raise the limit (ulimit -f)",
    errno.EROFS: "the disk is read-only. Choose another workspace (ANIMALS10_ROOT)",
    errno.EACCES: "permission denied. Give yourself access or choose another workspace (ANIMALS10_ROOT)",
    errno.EPERM: "not permitted. Give yourself access or choose another workspace (ANIMALS10_ROOT)",
}


@contextmanager
def user_facing_os_errors(path: Path, verb: str = "written") -> Iterator[None]:
    """Turns a full disk, a missing permission and the like into a `UserError` about `path`.

    Args:
        path: The file or folder that the message names.
        verb: What cannot be done with it, as a past participle: `written`, `read`, `deleted`.

    Raises:
        UserError: The operating system refused, for one of the reasons in `OS_ERROR_ADVICE`. Other errors pass through.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in OS_ERROR_ADVICE:
            raise
        raise UserError(f"{path} cannot be {verb}: {OS_ERROR_ADVICE[error.errno]}, then run this again.") from None


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, and moves that file to `path` after the block.

    Other processes see the old file or the new one, never half of it. If the block fails, the old file stays.

    Raises:
        UserError: The disk is full or read-only, or permission is missing.
    """
    temporary = path.with_name(f".{os.getpid()}-{uuid.uuid4().hex[:12]}{path.suffix}")
    with user_facing_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_stale_temporary_files(folder: Path) -> None:
    """Deletes the temporary files that a killed process left in a folder; subfolders are not searched.

    Raises:
        UserError: Permission is missing.
    """
    with user_facing_os_errors(folder, "cleared of temporary files"):
        for path in folder.iterdir() if folder.is_dir() else ():
            found = re.fullmatch(r"\.(\d+)-[0-9a-f]{12}(\..*)?", path.name)
            if found and path.is_file() and not _is_in_use(path, int(found[1])):
                path.unlink(missing_ok=True)


def _is_in_use(path: Path, process: int) -> bool:
    """Tells whether the process that wrote a temporary file is still running."""
    try:  # a process that started after the file was written has merely inherited the number of the killed one
        return psutil.Process(process).create_time() <= path.stat().st_mtime + 5
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False


def flush_to_disk(file: io.IOBase) -> None:
    """Waits until the contents of an open file are on the disk, so that a power cut cannot lose them."""
    file.flush()
    os.fsync(file.fileno())


def write_table(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Writes a table as csv, atomically, and returns it. File names that are not valid UTF-8 survive.

    Raises:
        UserError: The file cannot be written; an old one stays as it was.
    """
    options: dict[str, Any] = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
    with atomic_write(path) as temporary, temporary.open("w", **options) as file:
        texts = table.select_dtypes(exclude="number")
        # A reader takes a carriage return in a file name for a line break, unless the value is quoted.
        has_carriage_return = any("\r" in str(value) for name in texts for value in texts[name])
        quoting: Any = csv.QUOTE_NONNUMERIC if has_carriage_return else csv.QUOTE_MINIMAL
        table.to_csv(file, index=False, lineterminator="\n", quoting=quoting)
        flush_to_disk(file)
    return table


def read_table(path: Path) -> pd.DataFrame:
    """Reads a csv table of this study. The columns `TEXT_COLUMNS` stay text: a class may be named `NA`, `7` or `1e5`.

    Raises:
        UserError: The file is not a csv table, or permission is missing.
    """
    options: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "encoding_errors": "surrogateescape"}
    try:
        with user_facing_os_errors(path, "read"):
            return pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, "str"), **options)
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a csv table ({reason}): restore or delete it.") from None


def write_json(value: Any, path: Path) -> None:
    """Writes a value as JSON, atomically. File names that are not valid UTF-8 survive.

    Raises:
        UserError: The file cannot be written; an old one stays as it was.
    """
    options: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
    with atomic_write(path) as temporary, temporary.open("w", **options) as file:
        json.dump(value, file, indent=1, ensure_ascii=False)
        flush_to_disk(file)


def read_json(path: Path, advice: str = "") -> Any:
    """Reads a JSON file.

    Args:
        path: The file.
        advice: What to do if it is damaged, as the end of a sentence; by default to restore or delete it.

    Raises:
        UserError: The file is missing or damaged, or permission is missing.
    """
    advice = advice or "restore or delete it"
    try:
        with user_facing_os_errors(path, "read"):
            return json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {advice}.") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {one_line(error)}): {advice}.") from None


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 checksum of a file as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
