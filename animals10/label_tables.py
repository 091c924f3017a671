"""Tables of labels: a csv file that names image files, the class of each, and perhaps its part of a split."""

import csv
import io
import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from animals10.files import WINDOWS, WINDOWS_DEVICE, UserError, one_line, user_facing_os_errors
from animals10.layouts import RawData, RawFile, class_name, in_words, is_image_name, is_system_entry, part_of

# Names by which columns are recognised, the clearest first; compared by their letters, in lower case.
FILE_COLUMNS = """file filename filepath files filenames filepaths path paths relpath imagepath imagepaths imgpath
    imagefile imagefilename imagename imgname imageid image images img""".split()
LABEL_COLUMNS = "label labels class classname classes classlabel category categoryname species breed target".split()
SPLIT_COLUMNS = "split splits part subset set dataset partition".split()
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class _Table:
    """A csv table: its path, the names of its columns, and its rows with the line on which each ends."""

    path: Path
    header: list[str]
    rows: list[tuple[int, dict[str, str]]]

    def values(self, column: str) -> set[str]:
        """Returns the different values of a column, without blanks around them."""
        return {row[column].strip() for _, row in self.rows}


def find_in_table(path: Path, columns: Sequence[str] = ()) -> RawData:
    """Finds the files that a table names, relative to the folder of the table.

    A row is rejected if its file or label cannot be used, or if it repeats another row. A file with two labels is
    rejected, and so are images in the folders of the named ones that the table does not name.

    Args:
        path: The table: csv with a header, and with commas, semicolons, tabs or vertical bars between values.
        columns: The names of the columns of files, of labels and, if there is one, of the split; empty to recognise
            them by their names.

    Raises:
        UserError: The file is no such table, it lacks a column, or different labels would name one class.
    """
    table = _read(path, columns)
    file_column, label_column, split_column = _find_columns(table, columns)
    data = RawData(messages=[f"{path.name} names files in the column {file_column}, labels in {label_column}"])
    if split_column:
        parts = {part_of(value) for value in table.values(split_column)} - {""}
        if "train" in parts and len(parts) > 1:
            data.messages[0] += f" and the split that is used in {split_column}"
        else:
            data.messages[0] += f"; {split_column} does not tell training from validation or test images"
            split_column = ""
    data.messages[0] += "."
    categories = {label: class_name(label).replace("/", "_") for label in table.values(label_column)}
    if changed := [label for label in categories if "/" in label]:
        used = Counter(categories.values())
        if doubled := [label for label in changed if used[categories[label]] > 1]:
            raise UserError(f"{path}: {in_words(doubled)} and another label differ in / and _ alone: rename one.")
        data.messages.append(f"Classes name folders, so that / in labels becomes _: {in_words(sorted(changed))}.")
    folder, named, usable = str(path.parent / "_")[:-1], set(), defaultdict[str, list[tuple[int, RawFile]]](list)
    for line, row in table.rows:
        relpath, reason = _find_file(folder, row[file_column])
        named.add(relpath)
        file = RawFile(relpath or path.name, categories[row[label_column].strip()])
        if split_column:
            file = replace(file, part=part_of(row[split_column]))
            reason = reason or ("" if file.part else f"{row[split_column]!r} is not train, val or test")
        if not file.category:
            reason = reason or "no label"
        elif not _names_folder(file.category):
            reason = reason or "the label cannot be the name of a folder"
        if None in row:
            reason = "more values than the header has columns"
        if reason:
            data.files.append(replace(file, reason=f"{reason} (line {line} of {path.name})"))
        else:
            usable[relpath].append((line, file))
    for rows in usable.values():
        data.files += _without_contradictions(rows)
    if unnamed := _unnamed_images(path, named):
        data.files += unnamed
        data.messages.append(f"{len(unnamed):,} images beside the others are not in {path.name} and not used.")
    return data


def _read(path: Path, columns: Sequence[str]) -> _Table:
    """Reads a table with the separator by which its columns are found."""
    with user_facing_os_errors(path, "read"), path.open("rb") as file:
        content = file.read(4096)
        if b"\0" in content and not content.startswith(UTF_16):
            raise UserError(f"{path} is neither a folder of images nor a csv table: unpack it, or save it as csv.")
        content += file.read()
    try:
        is_utf_16 = content.startswith(UTF_16)
        text = content.decode("utf-16") if is_utf_16 else content.decode("utf-8-sig", "surrogateescape")
        text = re.sub(r"\Asep=.\r?\n", "", text)  # the first line of some spreadsheets
        headers = {separator: _parse(text, separator).fieldnames or [] for separator in ",;\t|"}
        separator = max(headers, key=lambda separator: _fit(headers[separator], columns))
        reader = _parse(text, separator)
        rows = [(reader.line_num, row) for row in reader if any(row.values())]
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a csv table ({one_line(error)}): save it as csv in UTF-8.") from None
    return _Table(path, [*headers[separator]], rows)


def _parse(text: str, separator: str) -> csv.DictReader:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, restval="")
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    return reader


def _fit(header: Sequence[str], columns: Sequence[str]) -> tuple[bool, int]:
    """Tells how well a separator fits: whether the columns are found, and how many there are."""
    is_recognised = all(_recognise(header, names) for names in (FILE_COLUMNS, LABEL_COLUMNS))
    return set(columns) <= set(header) if columns else is_recognised, len(header)


def _recognise(header: Sequence[str], names: Sequence[str]) -> list[str]:
    """Returns the columns that have one of some names, in the order of these."""
    found = {re.sub(r"[^a-z]", "", column.lower()): column for column in reversed(header)}
    return [found[name] for name in names if name in found]


def _find_columns(table: _Table, columns: Sequence[str]) -> tuple[str, str, str]:
    """Returns the columns of files, labels and split; the last is empty if there is none."""
    there = f"its columns are {in_words(table.header, 12)}"
    if columns:
        if missing := [name for name in columns if name not in table.header]:
            raise UserError(f"{table.path} has no column {missing[0]} (ANIMALS10_TABLE_COLUMNS): {there}.")
        return columns[0], columns[1], (*columns, "")[2]
    files, labels, splits = (_recognise(table.header, names) for names in (FILE_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS))
    if not files or not labels:
        raise UserError(
            f"{table.path}: no column of {'labels' if files else 'files'} is recognised, {there}. Name the columns of "
            "files, of labels and, if there is one, of the split: TABLE_COLUMNS=file,label,split."
        )
    # `label` may hold the numbers of the classes in `class_name`.
    label = min(labels, key=lambda column: all(value.isdigit() for value in table.values(column)))
    return files[0], label, (*splits, "")[0]


def _names_folder(name: str, windows: bool = WINDOWS) -> bool:
    """Tells whether a folder of this system can have a name."""
    if windows and (WINDOWS_DEVICE.match(name) or set('<>:"|?*') & set(name) or name.endswith(".")):
        return False
    return name not in (".", "..") and "\0" not in name


def _find_file(folder: str, text: str) -> tuple[str, str]:
    """Returns a path of a table relative to its folder (with / at its end) if it lies below, and what is wrong."""
    stripped = text.strip()
    for name in dict.fromkeys((text, stripped, stripped.replace("\\", "/"), os.path.expanduser(stripped))):  # noqa: PTH111
        path = os.path.normpath(os.path.join(folder, name))  # noqa: PTH118 - a Path takes many times as long
        if name and os.path.lexists(path):
            found = path[len(folder) :] if path.startswith(folder) else os.path.normpath(name)
            return found.replace(os.sep, "/"), ""
    return stripped, "no such file" if stripped else "no file is named"


def _without_contradictions(rows: Sequence[tuple[int, RawFile]]) -> list[RawFile]:
    """Returns the file of some rows that name it, with the reason if they contradict, and those that repeat it."""
    (first_line, first), *others = rows
    for noun, values in (("labels", [file.category for _, file in rows]), ("parts", [file.part for _, file in rows])):
        if len(set(values)) > 1:
            found = ", ".join(f"{value} (line {line})" for value, (line, _) in zip(values, rows, strict=True))
            return [replace(first, reason=f"contradictory {noun}: {found}")]
    return [first, *(replace(file, reason=f"line {line} repeats line {first_line}") for line, file in others)]


def _unnamed_images(path: Path, named: set[str]) -> list[RawFile]:
    """Returns the images in the folders of the named ones that the table does not name."""
    found: list[str] = []
    for folder in sorted({relpath.rpartition("/")[0] for relpath in named}):
        with suppress(OSError):  # one may be allowed to read files of a folder, but not to list it
            names = [name for name in sorted(os.listdir(path.parent / folder)) if not is_system_entry(name)]  # noqa: PTH208
            found += [f"{folder}/{name}" if folder else name for name in names if is_image_name(name)]
    return [RawFile(relpath, reason=f"not in {path.name}") for relpath in found if relpath not in named]
