"""Files: atomic writes, csv tables, JSON, and the one-line error that a person can act on."""

import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import sys
import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import psutil

REPOSITORY = Path(__file__).resolve().parents[1]
WINDOWS = os.name == "nt"
# Names of devices of Windows, with any suffix: no file can be called so there.
WINDOWS_DEVICE = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³])\s*(\.|$)", re.IGNORECASE)
if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
    sys.stdout.reconfigure(errors="backslashreplace")  # a console of Windows lacks characters; names may be no Unicode
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


def expand_user(path: str | Path) -> Path:
    """Returns a path with a leading `~` replaced by the home folder. A name like `~nobody`, of no user, stays."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser fails for such a name


def one_line(error: BaseException, most: int | None = 160) -> str:
    """Returns the first line of an error's message, so many characters at most, or the error's name if it has none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:most]


# Errors of the operating system that a person can act on, and what to do about each.
OS_ERROR_ADVICE = {
    errno.EISDIR: "it is a folder, not a file. Move it away",
    errno.ENOTDIR: "a part of its path is a file, not a folder. Move that away",
    errno.EEXIST: "there is a file of that name already. Move it away",
    errno.ENAMETOOLONG: "its name is too long. Choose a shorter one",
    errno.EIO: "the disk reports an error. Check it",
    errno.ENOSPC: "the disk is full. Make room",
    errno.EDQUOT: "the disk quota is used up. Make room",
    errno.EFBIG: "the file is larger than this system allows. Raise the limit (ulimit -f)",
    errno.EROFS: "the disk is read-only. Choose another workspace (ANIMALS10_ROOT)",
    errno.EACCES: "permission denied. Give yourself access or choose another workspace (ANIMALS10_ROOT)",
    errno.EPERM: "not permitted. Give yourself access or choose another workspace (ANIMALS10_ROOT)",
}
OPEN_ON_WINDOWS = "another program has it open, or permission is missing. Close it there or give yourself access"


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
        advice = OPEN_ON_WINDOWS if WINDOWS and error.errno == errno.EACCES else OS_ERROR_ADVICE[error.errno]
        raise UserError(f"{path} cannot be {verb}: {advice}, then run this again.") from None


# What is often found in place of a file, by its first bytes, and what to do.
FOREIGN_CONTENTS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: run `git lfs pull`",
    b"/annex/objects/": "is a pointer of git-annex, not the file itself: run `git annex get`",
    b"<!doctype html": "is a web page, not the file itself: download it again",
    b"<html": "is a web page, not the file itself: download it again",
    b"\xff\xfe": "is text in UTF-16: save it as UTF-8",
    b"\xfe\xff": "is text in UTF-16: save it as UTF-8",
}
SPREADSHEETS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")  # first bytes of xlsx, ods and xls
RESTORE = "restore or delete it"


@contextmanager
def reading(path: Path, fault: str, advice: str = RESTORE) -> Iterator[None]:
    """Turns whatever goes wrong while a file is read into a `UserError`. All readers use it.

    Args:
        path: The file that is read in the block.
        fault: What is wrong with a file that is there but cannot be read, as the end of a sentence: `is damaged`.
        advice: What to do, as the end of a sentence.

    Raises:
        UserError: The file is missing, is something else, or cannot be read. Errors of this kind pass as they are.
    """
    head = _head(path)
    for start, words in FOREIGN_CONTENTS.items():
        if head.lstrip().lower().startswith(start):
            raise UserError(f"{display_path(path)} {words}.")
    try:
        with user_facing_os_errors(path, "read"):
            yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # readers of archives, models and tables let through whatever their libraries raise
        reason = f"{type(error).__name__}: {one_line(error)}"
        if path.exists() and not head.strip(b"\0"):
            reason = "it holds zeros alone, as after a power cut" if head else "it is empty"
        words = f"{fault} ({reason})"
        if not path.exists():
            words = "is a link to a file that is missing" if path.is_symlink() else "is missing"
        raise UserError(f"{display_path(path)} {words}: {advice}.") from None


def _head(path: Path, size: int = 64) -> bytes:
    """Returns the first bytes of a file; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError:
        return b""


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
            _replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _replace(temporary: Path, path: Path, waits: Sequence[float] = (0.05, 0.1, 0.2, 0.5, 1)) -> None:
    """Moves a file to a path. On Windows, a scanner may have either open for a moment: then this tries again."""
    for seconds in waits if WINDOWS else ():
        try:
            return os.replace(temporary, path)
        except PermissionError:
            time.sleep(seconds)
    os.replace(temporary, path)


def link_folder(source: Path, target: Path) -> None:
    """Makes a folder appear in another place: as a link, or else, as on Windows, with links to its files or copies.

    A relative `source` counts from the folder of `target`.
    """
    try:
        target.symlink_to(source, target_is_directory=True)
    except OSError:  # not every user may make links, and not every disk has them
        shutil.copytree(target.parent / source, target, copy_function=_link_or_copy)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def refuse_to_replace(path: Path, mark: str, made_by: str) -> None:
    """Keeps a command from replacing a file that it did not write.

    Args:
        path: The file that the command is about to write.
        mark: A text that each file of the command has among its first 4096 bytes.
        made_by: The command, for the message.

    Raises:
        UserError: There is a file without the mark.
    """
    if path.exists() and mark.encode() not in _head(path, 4096):
        raise UserError(f"{display_path(path)} was not written by {made_by}: move it away, or name another file.")


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


def read_table(path: Path, columns: Sequence[str] = (), advice: str = RESTORE) -> pd.DataFrame:
    """Reads a csv table of this study. The columns `TEXT_COLUMNS` stay text: a class may be named `NA`, `7` or `1e5`.

    Args:
        path: The table; one whose name ends in `.gz` is decompressed.
        columns: Columns that it must have, among others.
        advice: What to do if it cannot be read, as the end of a sentence.

    Raises:
        UserError: The file is missing, is not a csv table or lacks a column, or permission is missing.
    """
    options: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "encoding_errors": "surrogateescape"}
    fault = "is not a csv table"
    with reading(path, fault, advice):
        if _head(path).startswith(SPREADSHEETS):
            raise UserError(f"{display_path(path)} is a spreadsheet under the name of a csv table: save it as csv.")
        header = ",".join(map(str, pd.read_csv(path, nrows=0, **options)))
        if "\0" in header or not _head(path).strip(b"\0"):
            raise ValueError("it holds zeros, as after a power cut")
        if separator := foreign_separator(header):
            raise UserError(f"{display_path(path)} has {separator}")
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # values beyond the last column would be lost
            table = pd.read_csv(path, dtype=dict.fromkeys(TEXT_COLUMNS, "str"), index_col=False, **options)
        if missing := [name for name in columns if name not in table]:
            raise UserError(f"{display_path(path)} {fault} with the column {missing[0]}: {advice}.")
        return table


def foreign_separator(header: str) -> str:
    """Says what a spreadsheet has put between the values of a table instead of commas, and what to do; else nothing.

    Args:
        header: The first line of the table.
    """
    for character, name in {";": "semicolons", "\t": "tabs"}.items():
        if character in header and "," not in header:
            return f"{name} between its values: save it as csv with commas and decimal points, or move the file away."
    return ""


def write_json(value: Any, path: Path) -> None:
    """Writes a value as JSON, atomically. File names that are not valid UTF-8 survive.

    Raises:
        UserError: The file cannot be written; an old one stays as it was.
    """
    options: dict[str, Any] = {"newline": "\n", "encoding": "utf-8", "errors": "surrogateescape"}
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
    with reading(path, "is damaged", advice or RESTORE):
        return json.loads(path.read_text(encoding="utf-8", errors="surrogateescape"))


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 checksum of a file as 64 hexadecimal digits.

    Raises:
        UserError: Permission is missing, or it is a folder.
    """
    with user_facing_os_errors(path, "read"), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
