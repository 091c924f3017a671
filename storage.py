"""Files that are whole or not there: tables, rows of results, stored runs; and the error that a person can put right.

`auxiliary` hands on what notebooks need of it. Nothing here knows of pictures, models or settings.
"""

import ast
import csv
import difflib
import errno
import hashlib
import io
import json
import os
import re
import subprocess
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import filelock
import nbformat
import pandas as pd
import psutil

REPOSITORY = Path(__file__).resolve().parent
# Columns that stay text, whatever a value looks like.
TEXTS = tuple(
    """relpath name category source sha256 predicted model_id run_id dataset commit data_sha256
    filters pool_sizes dense_units dropout notebook backbone continues remark phash group""".split()
)


class StudyError(RuntimeError):
    """Something the person at the keyboard can put right; its message is one line that says what, where and how."""

    def _render_traceback_(self) -> list[str]:  # IPython's hook: a notebook shows the line without the stack above it
        return [f"StudyError: {self}"]


def short(path: Path) -> str:
    """Returns a path as a person would type it in the repository."""
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)


# What the disk may refuse, and what a person can do about it.
REFUSALS = {
    errno.ENOSPC: "the disk is full. Make room",
    errno.EDQUOT: "the disk quota is used up. Make room",
    errno.EFBIG: "the file is larger than this system allows. Raise the limit (ulimit -f)",
    errno.EROFS: "the disk is read-only. Choose another workspace (ANIMALS10_ROOT)",
    errno.EACCES: "permission denied. Give yourself access or choose another workspace (ANIMALS10_ROOT)",
    errno.EPERM: "not permitted. Give yourself access or choose another workspace (ANIMALS10_ROOT)",
}


@contextmanager
def plainly(path: Path, verb: str = "written") -> Iterator[None]:
    """Turns what the disk refuses while `path` is written (or read, deleted) into a StudyError."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise StudyError(f"{path} cannot be {verb}: {REFUSALS[error.errno]}, then run this again.") from None


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, which it replaces after the block: no reader sees half a file.

    Raises:
        StudyError: The disk is full or read-only, or there is no permission; what was at `path` is as it was.
    """
    temporary = path.with_name(f".{os.getpid()}-{uuid.uuid4().hex[:12]}{path.suffix}")
    with plainly(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Deletes the temporary files that `whole_file` left in a folder (not below it) when its process was killed."""
    with plainly(folder, "swept"):
        for path in folder.iterdir() if folder.is_dir() else ():
            found = re.fullmatch(r"\.(\d+)-[0-9a-f]{12}(\..*)?", path.name)
            if found and path.is_file() and not _writes(int(found[1]), path):
                path.unlink(missing_ok=True)


def _writes(process: int, path: Path) -> bool:
    try:  # one that began after the file was written only has the number of the one that was killed
        return psutil.Process(process).create_time() <= path.stat().st_mtime + 5
    except (psutil.NoSuchProcess, FileNotFoundError):
        return False


def write_table(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Writes a table as csv, whole or not at all, and returns it. File names that are no valid UTF-8 survive."""
    options = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
    with whole_file(path) as temporary, temporary.open("w", **options) as file:
        texts = table.select_dtypes(exclude="number")
        # A carriage return in a file name is a line break to whoever reads it, unless it is quoted.
        odd = any("\r" in str(value) for name in texts for value in texts[name])
        quoting = csv.QUOTE_NONNUMERIC if odd else csv.QUOTE_MINIMAL
        table.to_csv(file, index=False, lineterminator="\n", quoting=quoting)
        _to_disk(file)
    return table


def read_table(path: Path) -> pd.DataFrame:
    """Reads a csv table of this study; a class may be named `NA`, `7` or `1e5` and stays text.

    Raises:
        StudyError: The file is no table or may not be read.
    """
    options = {"keep_default_na": False, "na_values": [""], "encoding_errors": "surrogateescape"}
    try:
        with plainly(path, "read"):
            return pd.read_csv(path, dtype=dict.fromkeys(TEXTS, "str"), **options)
    except (pd.errors.EmptyDataError, pd.errors.ParserError) as error:
        raise StudyError(f"{path} is no csv table ({' '.join(str(error).split())}): restore or delete it.") from None


def check_parts(parts: Mapping[str, pd.DataFrame], overview: pd.DataFrame, folder: Path, advice: str) -> None:
    """Checks the tables of a split, which a person may edit.

    Args:
        parts: The tables by name: `train`, `val`, `test`.
        overview: All processed pictures.
        folder: Holds the tables, and the pictures in `processed/`.
        advice: What to do if a table cannot be corrected.

    Raises:
        StudyError: A column, a value, a picture is missing, a class is unknown, a photograph has two places, or a row
            differs from the overview.
    """
    columns, classes = ["relpath", "category", "label", "sha256"], sorted(set(overview.category))
    known, places = set(zip(*(overview[name] for name in columns))), {}
    for part, table in parts.items():
        where, correct = folder / f"{part}.csv", f"Correct the table, {advice}."
        if missing := [name for name in columns if name not in table]:
            raise StudyError(f"{where} lacks the column {missing[0]}. {correct}")
        if table.empty:
            raise StudyError(f"{where} holds no photographs. {correct}")
        if (empty := table[columns].isna().any()).any():
            raise StudyError(f"{where} has a row without {empty.idxmax()}. {correct}")
        for row in zip(*(table[name] for name in columns)):
            relpath, category = row[:2]
            if category not in classes:
                raise StudyError(
                    f"{where}: {relpath} is of the class {category}, none of {', '.join(classes)}. {correct}"
                )
            if relpath in places:
                raise StudyError(f"{relpath} is in {places[relpath]} and again in {where}. {correct}")
            if not (folder / "processed" / relpath).is_file():
                raise StudyError(f"{where} names {relpath}, which is missing in {folder / 'processed'}. {correct}")
            if row not in known:
                changed = "than processed-overview.csv: it was edited, or the photographs have changed"
                raise StudyError(f"{where} has another label or checksum of {relpath} {changed}. {correct}")
            places[relpath] = where


def file_sha256(path: Path) -> str:
    """Returns the checksum of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def append_row(path: Path, row: Mapping, columns: Sequence[str]) -> None:
    """Appends a row to a csv table, under a lock and flushed to disk, unless its `run_id` is there already.

    Columns of the table beyond `columns` are kept and left empty. A table that lacks columns, or whose last line was
    cut by a crash, is mended first: one line says so, and what was there stays beside it as `<name>.<UTC time>.bak`.

    Raises:
        StudyError: The file is no such table, or cannot be written; it is as it was.
    """
    with _locked(path):
        data = path.read_bytes() if path.exists() else b""
        text, header, found, faults = _mended(path, data, columns, row)
        if text != data:
            _replace(path, data, text, faults)
        if str(row["run_id"]) in found:
            return
        ending = "\r\n" if text.partition(b"\n")[0].endswith(b"\r") else "\n"  # a spreadsheet's, or ours
        line = _csv_lines([row] if text else [dict(zip(header, header)), row], header, ending)
        with path.open("ab") as file:
            try:
                file.write(line)
                _to_disk(file)
            except OSError:  # half a row on a full disk
                os.truncate(path, len(text)) if text else path.unlink()
                raise


def rebuild_rows(path: Path, models: Path, columns: Sequence[str]) -> tuple[int, int]:
    """Writes a table of results anew from the `run.json` of all runs; what was there stays as `<name>.<UTC time>.bak`.

    A row without a `run.json` is kept as it is, and so are columns beyond `columns`; all else comes from `run.json`.
    Rows stay in their order; those that the table lacked follow in the order of their `time`.

    Returns:
        How many rows the table has now, and how many of them it lacked.

    Raises:
        StudyError: A `run.json` is damaged, or the table is none or cannot be written; it is as it was.
    """
    stored = {row["run_id"]: row for row in _stored_rows(models)}
    with _locked(path):
        data = path.read_bytes() if path.exists() else b""
        text, header, _, faults = _mended(path, data, columns, {})
        rows = list(csv.DictReader(_lines(text)))
        if long := [row for row in rows if None in row]:
            raise StudyError(f"{path}: a row has more values than columns ({long[0][None]} are beyond). Correct it.")
        known = {row["run_id"] for row in rows}
        added = sorted((row for name, row in stored.items() if name not in known), key=lambda row: row["time"])
        rows = [row | stored.get(row["run_id"], {}) for row in rows] + added
        if (new := _csv_lines([dict(zip(header, header)), *rows], header)) != data:
            _replace(path, data, new, faults)
    return len(rows), len(added)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with plainly(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f".{path.name}.lock")):
            yield


def _to_disk(file: io.IOBase) -> None:
    file.flush()
    os.fsync(file.fileno())


def _replace(path: Path, old: bytes, new: bytes, faults: Sequence[str]) -> None:
    """Writes a table anew, and what was there beside it; says what was wrong with that."""
    path = path.resolve()  # of a link, what it points to
    if old:
        with whole_file(path.with_name(f"{path.name}.{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.bak")) as temporary:
            temporary.write_bytes(old)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        file.write(new)
        _to_disk(file)
    if faults:
        print(f"{path} is mended, and the old file kept beside it as .bak: {'; '.join(faults)}.")


def _csv_lines(rows: Sequence[Mapping], header: Sequence[str], ending: str = "\n") -> bytes:
    lines = []
    for row in rows:
        line = io.StringIO()
        csv.DictWriter(line, header, lineterminator="\r\n", extrasaction="ignore").writerow(row)  # so both are quoted
        lines.append(line.getvalue().removesuffix("\r\n") + ending)
    return "".join(lines).encode("utf-8", "surrogateescape")


def _lines(data: bytes) -> list[str]:
    return list(io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline=""))


def _mended(
    path: Path, data: bytes, columns: Sequence[str], row: Mapping
) -> tuple[bytes, list[str], set[str], list[str]]:
    """Returns a table with a whole last line and all columns, its header, the `run_id`s in it, and what was wrong."""
    lines, records, start, faults, inside = _lines(data.rstrip(b"\0")), [], 0, [], False
    reader = csv.reader(lines, strict=True)
    try:
        for fields in reader:
            records.append((fields, "".join(lines[start : reader.line_num])))
            start = reader.line_num
    except csv.Error as error:
        # Quotes that a crash left open hold the beginning of one row; those that hold whole rows are a slip of the pen.
        swallowed = [
            line for line in lines[start + 1 :] if records and len(next(csv.reader([line]))) == len(records[0][0])
        ]
        if reader.line_num < len(lines) or swallowed:
            raise StudyError(f"{path}, line {start + 1}: {error}. Correct it, or move the file away.") from None
        records.append(([], "".join(lines[start:])))
        inside = True
    if inside or (records and not records[-1][1].endswith(("\n", "\r"))):
        fields, raw = records.pop()
        # Perhaps only the line break is missing, as some editors leave it: then the last value, a checksum as a rule,
        # is no shorter than those of the other rows and of the new one.
        others = [record[0][-1] for record in records[1:] if record[0]]
        others += [str(row.get(records[0][0][-1], ""))] if records else []
        whole = records and len(fields) == len(records[0][0]) and len(fields[-1]) >= max(map(len, others))
        if whole or (not records and set(columns) <= set(fields)):
            records.append((fields, raw + "\n"))
            faults.append("the last line had no line break")
        else:
            faults.append("the last line was cut and is left out (`make rebuild` restores rows of finished runs)")
    elif data.endswith(b"\0"):
        faults.append("its end was filled with zeros")
    if not records:
        return b"", list(columns), set(), faults
    header = records[0][0]
    if not set(columns) & set(header):
        raise StudyError(f"{path} is no table with columns {', '.join(columns[:3])} …: move the file away.")
    if missing := [name for name in columns if name not in header]:
        faults.append(f"the columns {', '.join(missing)} were missing and are empty now")
        for number, (fields, raw) in enumerate(records):
            bare = raw.rstrip("\r\n")
            extra = "," * (len(header) - len(fields)) + "," * len(missing) if number else "," + ",".join(missing)
            records[number] = (fields, bare + extra * bool(fields) + raw[len(bare) :])
        header = header + missing
    place = header.index("run_id") if "run_id" in header else len(header)
    found = {fields[place] for fields, _ in records[1:] if len(fields) > place}
    mark = b"\xef\xbb\xbf" if data.startswith(b"\xef\xbb\xbf") else b""
    return mark + "".join(raw for _, raw in records).encode("utf-8", "surrogateescape"), header, found, faults


def _stored_rows(models: Path) -> Iterator[dict]:
    for file in sorted(models.glob("[!.]*/run.json")):  # with a dot: not whole
        try:
            row = json.loads(file.read_text(encoding="utf-8"))["row"]
            yield {"run_id": row["run_id"], "time": row["time"]} | row
        except (ValueError, KeyError, TypeError) as error:
            what = f"{type(error).__name__}: {error}"
            raise StudyError(f"{file} is damaged ({what}): delete the run's folder, or restore it.") from None


RUN_FILES = ("model.keras", "history.csv", "predictions.csv")
EFFICIENCY = ("model_mb", "multiply_adds", "predict_ms", "batch_ms")  # see `networks.efficiency`


@dataclass(frozen=True)
class Run:
    """A run as it is stored in its folder, or one that is not there and the reason why.

    Its folder, `path`, holds `run.json`, `history.csv`, `predictions.csv`, `model.keras` and, after `make efficiency`,
    `efficiency.json`; None if it is not trained.
    """

    model_id: str
    path: Path | None = None
    why: str = ""

    @property
    def record(self) -> dict:
        """What `run.json` says: `spec` (all that the run depends on), `row` (of `results.csv`), `weights_sha256`."""
        return json.loads(self.file("run.json").read_text(encoding="utf-8"))

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch: `epoch` (from 1), `accuracy`, `loss`, `val_accuracy`, `val_loss`."""
        return read_table(self.file("history.csv"))

    @property
    def predictions(self) -> pd.DataFrame:
        """One row a test picture: `relpath`, `category`, `predicted`, `confidence`, and `p_<class>` for each class."""
        return read_table(self.file("predictions.csv"))

    @property
    def efficiency(self) -> dict:
        """What it costs to keep and to ask, as `make efficiency` measured it; empty where that was not done.

        Raises:
            StudyError: The file is damaged.
        """
        file = self.file("efficiency.json")
        if not file.exists():
            return {}
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            return {name: float(found[name]) for name in EFFICIENCY}
        except (ValueError, KeyError, TypeError) as error:
            raise StudyError(f"{file} is damaged ({type(error).__name__}: {error}): run `make efficiency`.") from None

    def file(self, name: str) -> Path:
        """Returns the path of a file in the run's folder, or raises StudyError if the run is not trained."""
        if self.path is None:
            raise StudyError(f"{self.model_id} is not trained here: {self.why}")
        return self.path / name


def stored_runs(root: Path) -> list[Run]:
    """Returns the finished runs of a workspace, in the order in which they were trained."""
    folders = [path.parent for path in (root / "models").glob("[!.]*/run.json")]
    runs = [Run(folder.name.rsplit("-", 2)[0], folder) for folder in folders]
    return sorted(runs, key=lambda run: run.path.name.rsplit("-", 2)[1:])


def find_model(root: Path, name: str) -> Path:
    """Finds the `.keras` file of a model.

    Args:
        root: The workspace, whose finished runs lie in `models/`.
        name: The path of a `.keras` file or of a run's folder, the name of such a folder in the workspace's `models/`,
            or a `model_id`, which means the latest of its runs.

    Raises:
        StudyError: There is none; the message names the nearest.
    """
    given, models = Path(name).expanduser(), root / "models"
    if name and given.is_file():
        return given.resolve()
    runs = stored_runs(root)
    folders = {run.path.name: run.path for run in runs}
    latest = [run.path.name for run in runs if run.model_id == name] or [name]
    folder = folders.get(latest[-1], given.resolve() if name else None)
    if folder and (folder / "model.keras").is_file():
        return folder / "model.keras"
    if folder and (folder / "run.json").is_file():
        raise StudyError(f"{short(folder)} lacks its model.keras: restore it, or train that run again.")
    if given.suffix == ".keras":
        raise StudyError(f"There is no file {name}.")
    where = f"in {short(models)}"
    if not folders:
        raise StudyError(f"There are no runs {where}: train some first, or name their workspace (ANIMALS10_ROOT).")
    known = sorted({run.model_id for run in runs})
    nearest = difflib.get_close_matches(name, [*known, *folders], n=3, cutoff=0.3)
    there = f"the nearest are {', '.join(nearest)}" if nearest else f"there are {', '.join(known)}"
    raise StudyError(f"{f'There is no model {name!r}' if name else 'No model is named'} {where}; {there}.")


RUN_KEY = ("model_id", "learning_rate", "epochs", "repetition")  # by which the runs of the notebooks differ


@cache
def planned_runs(notebooks: tuple[str, ...]) -> list[tuple]:
    """Returns `RUN_KEY` of all runs that notebooks train, in the order of their cells.

    They are read from the calls `aux.train(settings, "…", …)`; what is no plain number there is None. A notebook
    that is not in the repository has no runs.
    """
    paths = [REPOSITORY / name for name in notebooks if (REPOSITORY / name).exists()]
    cells = [cell for path in paths for cell in nbformat.read(path, as_version=4).cells if "train(" in cell.source]
    nodes = [node for cell in cells if cell.cell_type == "code" for node in ast.walk(ast.parse(cell.source))]
    calls = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "train"]
    runs = []
    for call in (call for call in calls if len(call.args) > 1):
        given = {word.arg: getattr(word.value, "value", None) for word in call.keywords}
        given = {"model_id": call.args[1].value, "repetition": 1} | given
        runs.append(tuple(map(given.get, RUN_KEY)))
    return runs


def commit() -> str:
    """Returns the repository's commit, with `-dirty` where tracked files differ from it; nothing outside git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
