"""Appending to a csv table that several processes write, that crashes may cut, and that people edit by hand."""

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import filelock

from animals10.files import UserError, atomic_write, flush_to_disk, foreign_separator, reading, user_facing_os_errors

BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # which spreadsheets write in front of UTF-8


def append_row(path: Path, row: Mapping[str, Any], columns: Sequence[str]) -> None:
    """Appends a row to a csv table, under a lock and flushed to disk, unless its `run_id` is already in the table.

    Columns of the table beyond `columns` are kept and left empty. A table that lacks columns, or whose last line was
    cut by a crash, is repaired first, with a message; the old file is kept beside it as `<name>.<UTC time>.bak`.

    Raises:
        UserError: The file is not such a table, or cannot be written; it stays as it was.
    """
    with _locked(path):
        data = path.read_bytes() if path.exists() else b""
        table = _repaired(path, data, columns, row)
        if table.data != data:
            _replace(path, data, table.data, table.repairs)
        if str(row["run_id"]) in table.run_ids:
            return
        ending = "\r\n" if table.data.partition(b"\n")[0].endswith(b"\r") else "\n"  # a spreadsheet's, or ours
        header = table.header
        line = _encoded([row] if table.data else [dict(zip(header, header)), row], header, ending)
        with path.open("ab") as file:
            try:
                file.write(line)
                flush_to_disk(file)
            except OSError:  # a full disk may have taken half of the row
                os.truncate(path, len(table.data)) if table.data else path.unlink()
                raise


def check_table(path: Path, columns: Sequence[str]) -> None:
    """Checks that rows can be appended to a table, or that there is none yet; changes nothing.

    Raises:
        UserError: The file is not such a table, or cannot be read.
    """
    with reading(path, "is not a table of results", "move the file away"):
        _repaired(path, path.read_bytes() if path.exists() else b"", columns, {})


def rebuild_rows(path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> tuple[int, int]:
    """Writes a table of results anew from the rows of all runs; the old file is kept as `<name>.<UTC time>.bak`.

    Rows of the table with other `run_id`s are kept as they are, and so are columns beyond `columns`. All other values
    come from `rows`. The order of the table is kept; new rows follow in the order of their `time`.

    Args:
        path: The table.
        rows: One mapping per run, with at least `run_id` and `time`.
        columns: The columns that the table must have.

    Returns:
        The number of rows in the table now, and how many of them are new.

    Raises:
        UserError: The file is not such a table, or cannot be written; it stays as it was.
    """
    given = {row["run_id"]: row for row in rows}
    with _locked(path):
        data = path.read_bytes() if path.exists() else b""
        table = _repaired(path, data, columns, {})
        old: list[dict[Any, Any]] = list(csv.DictReader(_decoded_lines(table.data)))
        if too_long := [row for row in old if None in row]:
            extra = too_long[0][None]  # DictReader's key for values beyond the last column
            raise UserError(f"{path}: a row has more values than the table has columns (extra: {extra}). Correct it.")
        known = {row["run_id"] for row in old}
        added = sorted((row for run_id, row in given.items() if run_id not in known), key=lambda row: row["time"])
        merged = [row | dict(given.get(row["run_id"], {})) for row in old] + [dict(row) for row in added]
        header = table.header
        if (new := _encoded([dict(zip(header, header)), *merged], header)) != data:
            _replace(path, data, new, table.repairs)
    return len(merged), len(added)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with user_facing_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.with_name(f".{path.name}.lock")):
            yield


def _replace(path: Path, old: bytes, new: bytes, repairs: Sequence[str]) -> None:
    """Replaces the contents of a table, keeps the old file beside it, and prints what was repaired."""
    path = path.resolve()  # of a symbolic link, the file it points to
    if old:
        with atomic_write(path.with_name(f"{path.name}.{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}.bak")) as temporary:
            temporary.write_bytes(old)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(new)
        flush_to_disk(file)
    if repairs:
        print(f"{path} is repaired, and the old file kept beside it as .bak: {'; '.join(repairs)}.")


def _encoded(rows: Iterable[Mapping[str, Any]], header: Sequence[str], ending: str = "\n") -> bytes:
    lines = []
    for row in rows:
        line = io.StringIO()
        # With \r\n as terminator, the writer quotes values that contain either of the two.
        csv.DictWriter(line, header, lineterminator="\r\n", extrasaction="ignore").writerow(row)
        lines.append(line.getvalue().removesuffix("\r\n") + ending)
    return "".join(lines).encode("utf-8", "surrogateescape")


def _decoded_lines(data: bytes) -> list[str]:
    return list(io.StringIO(data.decode("utf-8-sig", "surrogateescape"), newline=""))


@dataclass
class _Table:
    """A table with a complete last line and all columns, and what had to be repaired for that.

    Attributes:
        data: Its bytes; empty if there is no table yet.
        header: Its columns.
        run_ids: The `run_id`s in it.
        repairs: What was wrong, in words.
    """

    data: bytes
    header: list[str]
    run_ids: set[str]
    repairs: list[str]


@dataclass
class _Record:
    """One record of a csv file: its values, and its text including the line break."""

    values: list[str]
    text: str


def _repaired(path: Path, data: bytes, columns: Sequence[str], row: Mapping[str, Any]) -> _Table:
    """Reads a table, completes its last line or leaves it out, and adds missing columns.

    Raises:
        UserError: The file is not such a table, or is damaged in a way that a person has to correct.
    """
    records, is_cut = _parse(path, data)
    repairs = []
    if is_cut or (records and not records[-1].text.endswith(("\n", "\r"))):
        last = records.pop()
        if not is_cut and _is_complete(last, records, columns, row):
            records.append(_Record(last.values, last.text + "\n"))
            repairs.append("the last line had no line break")
        else:
            repairs.append("the last line was cut and is left out (`make rebuild` restores rows of finished runs)")
    elif data.endswith(b"\0"):
        repairs.append("its end was filled with zeros")
    if not records:
        return _Table(b"", list(columns), set(), repairs)
    header = records[0].values
    if not set(columns) & set(header):
        if separator := foreign_separator(records[0].text):
            raise UserError(f"{path} has {separator}")
        raise UserError(f"{path} is not a table with columns {', '.join(columns[:3])} …: move the file away.")
    if missing := [name for name in columns if name not in header]:
        repairs.append(f"the columns {', '.join(missing)} were missing and are empty now")
        _add_columns(records, missing)
        header = header + missing
    position = header.index("run_id") if "run_id" in header else len(header)
    run_ids = {record.values[position] for record in records[1:] if len(record.values) > position}
    mark = BYTE_ORDER_MARK if data.startswith(BYTE_ORDER_MARK) else b""
    text = "".join(record.text for record in records)
    return _Table(mark + text.encode("utf-8", "surrogateescape"), header, run_ids, repairs)


def _parse(path: Path, data: bytes) -> tuple[list[_Record], bool]:
    """Splits a file into records, and tells whether the last one was cut inside quotes (then it has no values)."""
    lines, records, start = _decoded_lines(data.rstrip(b"\0")), [], 0
    reader = csv.reader(lines, strict=True)
    try:
        for values in reader:
            records.append(_Record(values, "".join(lines[start : reader.line_num])))
            start = reader.line_num
    except csv.Error as error:
        # Quotes that a crash left open contain the beginning of one row. If they contain complete rows, a person has
        # made a mistake.
        n_columns = len(records[0].values) if records else 0
        swallowed = [line for line in lines[start + 1 :] if records and len(next(csv.reader([line]))) == n_columns]
        if reader.line_num < len(lines) or swallowed:
            raise UserError(f"{path}, line {start + 1}: {error}. Correct it, or move the file away.") from None
        return [*records, _Record([], "".join(lines[start:]))], True
    return records, False


def _is_complete(last: _Record, others: Sequence[_Record], columns: Sequence[str], row: Mapping[str, Any]) -> bool:
    """Tells whether a last line without a line break is complete, as some editors leave it.

    Then its last value, a checksum as a rule, is no shorter than those of the other rows and of the new `row`.
    """
    if not others:
        return set(columns) <= set(last.values)
    header = others[0].values
    if not header or len(last.values) != len(header):
        return False
    lengths = [len(record.values[-1]) for record in others[1:] if record.values]
    lengths.append(len(str(row.get(header[-1], ""))))
    return len(last.values[-1]) >= max(lengths)


def _add_columns(records: list[_Record], missing: Sequence[str]) -> None:
    """Adds columns to the texts of all records, empty but for the header; short rows are filled up first."""
    n_columns = len(records[0].values)
    for number, record in enumerate(records):
        bare = record.text.rstrip("\r\n")
        commas = "," * (n_columns - len(record.values)) + "," * len(missing)
        added = commas if number else "," + ",".join(missing)
        record.text = bare + added * bool(record.values) + record.text[len(bare) :]
