"""Corrections of labels: images that a person excludes, and images to which a person gives another label.

`data/exclude.csv` and `data/relabel.csv` of a workspace name them. `splits.load_splits` applies both to the split that
was drawn: each image keeps its part, its file and its checksum. Deleting the two files undoes everything.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

from animals10.files import UserError, display_path, read_table
from animals10.settings import Settings

EXCLUDE, RELABEL = "exclude.csv", "relabel.csv"  # in data/


@dataclass(frozen=True)
class Corrections:
    """What a person corrects, by the `relpath` of the image.

    Attributes:
        excluded: The images that are not used.
        categories: The class of each image that has another one than its folder says.
        labels: The label of each class.
    """

    excluded: frozenset[str]
    categories: dict[str, str]
    labels: dict[str, int]

    def apply(self, table: pd.DataFrame) -> pd.DataFrame:
        """Returns a table of images, with `relpath`, `category` and `label`, without the excluded ones, relabelled."""
        if not (self.excluded or self.categories):
            return table
        table = table[~table.relpath.isin(self.excluded)].reset_index(drop=True)
        category = table.relpath.map(self.categories).fillna(table.category)
        return table.assign(category=category, label=category.map(self.labels))

    def summary(self, relpaths: set[str]) -> str:
        """Says what is corrected among some images: `2 excluded, 1 relabelled (1a2b3c4d)`; empty if nothing is.

        The 8 hexadecimal digits are a checksum: equal for equal corrections.
        """
        excluded = sorted(self.excluded & relpaths)
        relabelled = sorted((relpath, name) for relpath, name in self.categories.items() if relpath in relpaths)
        if not (excluded or relabelled):
            return ""
        checksum = hashlib.sha256(os.fsencode(repr((excluded, relabelled)))).hexdigest()[:8]
        return f"{len(excluded)} excluded, {len(relabelled)} relabelled ({checksum})"


def read_corrections(settings: Settings, overview: pd.DataFrame) -> Corrections:
    """Reads `data/exclude.csv` (`relpath`) and `data/relabel.csv` (`relpath`, `category`), where they are.

    Other columns, such as a reason, are ignored. A new class that is the old one changes nothing.

    Args:
        settings: Their workspace holds the files.
        overview: All processed images, see `preprocessing.read_overview`.

    Raises:
        UserError: A file lacks a column, has a row without a value, or names an image or a class that is unknown; or an
            image is named twice.
    """
    paths, places = {name: settings.data / name for name in (EXCLUDE, RELABEL)}, dict[str, str]()
    tables = {EXCLUDE: pd.DataFrame({"relpath": []}), RELABEL: pd.DataFrame({"relpath": [], "category": []})}
    known = dict(zip(overview.relpath, overview.category, strict=True))
    labels = dict(zip(overview.category, overview.label.astype(int), strict=True))
    for name, path in paths.items():
        if not path.exists():
            continue
        columns = list(tables[name])
        tables[name] = table = read_table(path, columns, f"give it the columns {', '.join(columns)}")
        for line, row in enumerate(table[columns].itertuples(index=False, name=None), start=2):
            where = f"line {line} of {display_path(path)}"
            if any(pd.isna(value) for value in row):
                raise UserError(f"{where} lacks a {columns[[*map(pd.isna, row)].index(True)]}: complete or delete it.")
            if row[0] not in known:
                raise UserError(f"{where} names {row[0]}, {_unknown(row[0], overview)}: correct or delete the line.")
            if row[0] in places:
                raise UserError(f"{where} names {row[0]} again, after {places[row[0]]}: delete one of them.")
            places[row[0]] = where
            if name == RELABEL and row[1] not in labels:
                classes = ", ".join(sorted(labels))
                raise UserError(f"{where} gives {row[0]} the class {row[1]}, not one of {classes}: correct it.")
    relabelled = tables[RELABEL]
    categories = dict(zip(relabelled.relpath, relabelled.category, strict=True))
    changed = {relpath: category for relpath, category in categories.items() if known[relpath] != category}
    return Corrections(frozenset(tables[EXCLUDE].relpath), changed, labels)


def _unknown(relpath: str, overview: pd.DataFrame) -> str:
    """Says that there is no such image; if it is the raw file of one, which."""
    found = overview.relpath[overview.source == relpath]
    hint = f" but the raw file of {found.iloc[0]}" if len(found) else ""
    return f"which is no relpath of processed-overview.csv{hint}"


@cache
def tell_once(summary: str, data: Path) -> None:
    """Prints what is corrected, once per process."""
    print(f"Labels are corrected: {summary}, see {EXCLUDE} and {RELABEL} in {display_path(data)}.")
