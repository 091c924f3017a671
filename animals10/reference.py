"""The reference for Animals-10: its files, their near-duplicate groups, and a split that is the same for everyone.

`data/animals10-files.csv.gz` lists all 26,179 files; `data/animals10.md` describes them. `make audit` made both.
"""

from functools import cache

import pandas as pd

from animals10.dataset import ANIMALS10_SIZE
from animals10.files import REPOSITORY, read_table

REFERENCE_FILES = REPOSITORY / "data" / "animals10-files.csv.gz"
MIN_KNOWN = 0.99  # share of a folder's images that are files of Animals-10, from which the reference is used


@cache
def reference_files() -> pd.DataFrame:
    """Returns one row per file of Animals-10, by `sha256`.

    Returns:
        `class` (the Italian folder), `file` (its name), `group` (number of its near-duplicate group; missing if it has
        none) and `part` of the reference split (`train`, `val` or `test`).
    """
    return read_table(REFERENCE_FILES).set_index("sha256")


def match_reference(images: pd.DataFrame) -> pd.DataFrame | None:
    """Looks images up in the reference by the checksum of their files.

    Args:
        images: One row per image, with the column `sha256`.

    Returns:
        One row per image, in the same order and with the same index: `known`, `group` and `part` (missing where it is
        unknown); None if fewer than 99 % are files of Animals-10.
    """
    known = images.sha256.isin(reference_files().index)
    if known.mean() < MIN_KNOWN:
        return None
    found = reference_files().reindex(images.sha256)[["group", "part"]].set_index(images.index)
    return found.assign(known=known)


def is_complete(images: pd.DataFrame) -> bool:
    """Tells whether images are Animals-10: all files are known, and at least 99 % of the 26,179 are there."""
    return bool(images.sha256.isin(reference_files().index).all()) and len(images) >= MIN_KNOWN * ANIMALS10_SIZE


def data_share(images: pd.DataFrame) -> str:
    """Returns how many of the files of Animals-10 there are, in words; empty if the images are of another data set."""
    match = match_reference(images)
    return "" if match is None else f"{int(match.known.sum()):,} of {ANIMALS10_SIZE:,}"


def compare_with_reference(overview: pd.DataFrame) -> pd.DataFrame:
    """Compares a folder with the reference, class by class.

    Args:
        overview: What `preprocessing.scan_images` returned.

    Returns:
        One row per Italian class: `expected`, `present` and `missing` files; a row `unknown` counts files that are not
        of Animals-10 in the column `present`. Empty if the folder is of another data set.
    """
    match = match_reference(overview)
    if match is None:
        return pd.DataFrame()
    files = reference_files()
    table = pd.DataFrame({"expected": files["class"].value_counts().sort_index()})
    present = files[files.index.isin(overview.sha256)]["class"].value_counts()
    table["present"] = present.reindex(table.index, fill_value=0)
    table["missing"] = table.expected - table.present
    if (unknown := int((~match.known).sum())) > 0:
        table.loc["unknown"] = [0, unknown, 0]
    return table
