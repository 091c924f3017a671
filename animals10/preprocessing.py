"""From raw to processed images: scan every file, then make a square RGB JPEG of each image."""

import hashlib
import io
import shutil
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from animals10.class_sizes import check_scanned_sizes
from animals10.cluster_files import map_files
from animals10.dataset import ENGLISH, ITALIAN
from animals10.decoding import open_image, read_file
from animals10.files import (
    UserError,
    atomic_write,
    display_path,
    file_sha256,
    read_json,
    read_table,
    remove_stale_temporary_files,
    user_facing_os_errors,
    write_json,
    write_table,
)
from animals10.images import (
    STRETCH,
    crc32_if_up_to_date,
    preprocessing_contract,
    processed_names,
    read_square,
    rejection_reason,
    save_processed,
)
from animals10.label_tables import find_in_table
from animals10.layouts import RawFile, find_in_folder, in_words, likely_folder
from animals10.settings import Settings

MOST_LINES = 10  # that are printed about lost classes
OVERVIEW = ("relpath", "name", "category", "label", "width", "height", "source", "sha256")  # of processed images
SOURCE_FILE = "source.json"  # in data: the raw folder or table of the processed images
SAME_DATA_SET = 0.1  # share of the smaller one's images that two states of one data set have in common at least
ANOTHER_WORKSPACE = "choose another workspace (ANIMALS10_ROOT), or delete data/processed and the csv files beside it"
CONTRACT_FILE = "preprocessing.json"  # in data/processed: the contract under which the images there were made


def scan_images(settings: Settings, allow_small_classes: bool = False) -> pd.DataFrame:
    """Opens every file of the raw folder or table, and writes `data/overview.csv` and `data/rejected.csv`.

    Only headers are decoded here. Images with damaged pixels are detected by `resize_images`. What a person should know
    about the layout is printed, one line each; for plain class folders there is nothing to say.

    Args:
        settings: The settings.
        allow_small_classes: Whether a class may have too few images to be split.

    Returns:
        One row per image, in the order of its relative path: `relpath` (below `settings.raw_folder`), `name`, `format`
        (Pillow's name), `category`, `width` and `height` (pixels, as stored), `mode` (Pillow's), `channels`, `bytes`
        and `sha256` of the file; `part` (`train`, `val` or `test`) if the images came with a split.

    Raises:
        UserError: The raw folder or table is missing or unusable, it has images of fewer than two classes, or a class
            has too few; the workspace holds another data set, or images of another size. Nothing is overwritten then.
    """
    _check_image_size(settings)
    resize_mode(settings)
    for folder in (settings.root, settings.data):
        remove_stale_temporary_files(folder)
    with user_facing_os_errors(settings.raw, "read"):
        if not settings.raw.exists():
            what = "folder" if settings.raw.suffix != ".csv" else "folder or table"
            raise UserError(f"There is no {what} {settings.raw}: put the images there, one folder per class.")
        is_table = settings.raw.is_file()
        found = find_in_table(settings.raw, settings.table_columns) if is_table else find_in_folder(settings.raw)
    raw_folder, usable = settings.raw_folder, [file for file in found.files if not file.reason]
    if usable and not is_table and len({file.category for file in usable}) < 2:  # known before a file is opened
        raise _too_few_classes(settings, f"{len(usable):,} files of one class, {in_words([usable[0].category])}")

    def inspect(file: RawFile) -> dict[str, Any]:
        path, row = raw_folder / file.relpath, dict(vars(file))
        if file.reason:
            return row
        try:
            with open_image(path) as image:
                row |= {"name": path.name, "format": image.format}
                row |= {"width": image.width, "height": image.height, "mode": image.mode}
                row |= {"channels": len(image.getbands()), "bytes": path.stat().st_size}
                return row | {"sha256": file_sha256(path)}
        except Exception as error:  # one bad file must not stop the scan: it is recorded
            return row | {"reason": rejection_reason(error)}

    columns = "relpath name format category width height mode channels bytes sha256 part reason".split()
    rows = map_files(settings, inspect, found.files, "scan")
    table = pd.DataFrame(rows, columns=columns).sort_values("relpath", kind="stable", ignore_index=True)
    is_usable = table.reason == ""
    rejected, overview = table[~is_usable].assign(stage="scan"), table[is_usable].reset_index(drop=True)
    overview = overview.drop(columns="reason" if found.has_split else ["part", "reason"])
    overview = overview.astype(dict.fromkeys(("width", "height", "channels", "bytes"), int))
    _check_data_set(settings, overview)
    write_table(rejected[["relpath", "stage", "reason"]], settings.data / "rejected.csv")
    for line in [*found.messages, *_lost_classes(rejected, overview)]:
        print(line)
    classes = set(overview.category)
    if len(classes) < 2:
        words = f"{len(overview)} usable images of {len(classes)} classes (and {len(rejected)} rejected files)"
        raise _too_few_classes(settings, words)
    if CONTRACT_FILE in classes:
        raise UserError(f"A class cannot be named {CONTRACT_FILE}: rename its folder in {settings.raw}.")
    # Translated only if all names are Italian ones of Animals-10: elsewhere a folder `cane` might hold sugar cane.
    if classes <= set(ITALIAN):
        overview["category"] = overview.category.map(dict(zip(ITALIAN, ENGLISH, strict=True)))
    elif classes > set(ITALIAN):
        others = in_words(sorted(classes - set(ITALIAN)))
        print(f"The classes of Animals-10 keep their Italian names, since others lie beside them: {others}.")
    if not allow_small_classes:
        check_scanned_sizes(settings, overview)
    write_json({"raw": str(settings.raw)}, settings.data / SOURCE_FILE)
    return write_table(overview, settings.data / "overview.csv")


def _check_image_size(settings: Settings) -> None:
    """Raises a `UserError` if the workspace has processed images of another size."""
    exists = (settings.data / "processed-overview.csv").exists()
    if exists and set(read_overview(settings).width) - {settings.image_size}:
        raise UserError(
            f"{display_path(settings.data / 'processed')} has images of another size than "
            f"ANIMALS10_IMAGE_SIZE={settings.image_size}: {ANOTHER_WORKSPACE}."
        )


def resize_mode(settings: Settings) -> str:
    """Returns how the images of a workspace are made square, a name in `RESIZE_MODES`.

    Processed images decide; where there are none yet, the settings do.

    Raises:
        UserError: The processed images were made square by another method than `Settings.resize`.
    """
    contract = _stored_contract(settings.data / "processed" / CONTRACT_FILE)
    if contract is None:
        return settings.resize or STRETCH
    found = str(contract.get("resize", STRETCH))
    if settings.resize not in (None, found):
        raise UserError(
            f"The images in {display_path(settings.data / 'processed')} were made with ANIMALS10_RESIZE={found}, not "
            f"{settings.resize}. Leave that setting out, or {ANOTHER_WORKSPACE}."
        )
    return found


def _check_data_set(settings: Settings, overview: pd.DataFrame) -> None:
    """Raises a `UserError` that names both data sets if the workspace has the processed images of another one."""
    if overview.empty or not (settings.data / "processed-overview.csv").exists():
        return
    processed = read_overview(settings)
    before, now = set(processed.sha256), set(overview.sha256)
    if len(before & now) >= SAME_DATA_SET * min(len(before), len(now)):
        return
    raw = "an unknown folder"
    with suppress(UserError, KeyError, TypeError):  # an older version has not recorded it
        raw = read_json(settings.data / SOURCE_FILE)["raw"]
    old, new = (
        f"{len(table):,} images of {in_words(sorted(table.category.unique()))}" for table in (processed, overview)
    )
    raise UserError(
        f"{display_path(settings.root)} is the workspace of another data set: its processed images are those of "
        f"{raw} ({old}), and ANIMALS10_RAW is {settings.raw} ({new}). For the new one, {ANOTHER_WORKSPACE}."
    )


def _lost_classes(rejected: pd.DataFrame, images: pd.DataFrame) -> list[str]:
    """Returns a line for each class that has rejected files and no image."""
    lost = rejected[(rejected.category != "") & ~rejected.category.isin(images.category)]
    lines = []
    for category, files in lost.groupby("category"):
        counts = files.reason.str.replace(r" \(line \d+ of .*", "", regex=True).value_counts()
        reasons = ", ".join([f"{n} × {reason}" for reason, n in counts[:3].items()] + ["…"] * (len(counts) > 3))
        lines.append(f"{in_words([category])} is no class, since it has no usable image: {reasons}.")
    more = [f"… and {len(lines) - MOST_LINES} more such folders or labels, see rejected.csv."]
    return lines[:MOST_LINES] + more * (len(lines) > MOST_LINES)


def _too_few_classes(settings: Settings, words: str) -> UserError:
    found = f"{settings.raw} has {words}; it needs at least two "
    if settings.raw.is_file():
        return UserError(f"{found}labels with images. {display_path(settings.data / 'rejected.csv')} names the others.")
    tables = sorted(settings.raw.glob("*.csv"))
    hint = f" If {tables[0].name} holds their labels, name it: RAW={tables[0]}." if tables else ""
    if likely := likely_folder(settings.raw):
        hint = f" Most likely you mean RAW={likely}.{hint}"
    return UserError(f"{found}folders with images, named after their classes.{hint}")


def resize_images(settings: Settings, overview: pd.DataFrame) -> pd.DataFrame:
    """Makes a square RGB JPEG of every image, on all cores, and writes `data/processed-overview.csv`.

    A processed image carries the checksum of its source as JPEG comment; images that are up to date are not made again.
    `data/processed-crc32.csv` has the CRC-32 of each processed file, by which damaged ones are found and made anew. If
    the preprocessing contract has changed, all images are made anew. Images that cannot be decoded are added to
    `data/rejected.csv`.

    Args:
        settings: The workspace, the raw folder and the image size.
        overview: What `scan_images` returned.

    Returns:
        One row per processed image, in the order of `relpath`: `relpath` (below `data/processed`), `name`, `category`,
        `label` (position of the category in alphabetical order), `width`, `height`, `source` (below
        `settings.raw_folder`) and `sha256` (of the bytes from which it was made, also if the source has changed since
        the scan).

    Raises:
        UserError: The workspace has processed images of another size, or made square in another way.
    """
    processed, size, resize = settings.data / "processed", settings.image_size, resize_mode(settings)
    table_path, crc32_path = settings.data / "processed-overview.csv", settings.data / "processed-crc32.csv"
    _check_image_size(settings)
    plan = overview.rename(columns={"relpath": "source"})
    plan["name"] = processed_names(overview)
    plan["relpath"] = plan.category + "/" + plan.name
    _apply_contract(settings.data, resize)
    known = _known_crc32(crc32_path)
    plan["known"] = np.array([known.get(key) for key in zip(plan.relpath, plan.sha256)], object)  # None stays None
    for category in plan.category.unique():
        remove_stale_temporary_files(processed / category)

    raw_folder = settings.raw_folder

    def make(row: Any) -> dict[str, Any]:
        """Makes one processed image unless it is up to date; returns checksums, or the reason if it could not."""
        target = processed / row.relpath
        crc32 = crc32_if_up_to_date(target, row.sha256, size, row.known)
        if crc32 is not None:
            return {"crc32": crc32}
        try:
            content = read_file(raw_folder / row.source)
            sha256 = hashlib.sha256(content).hexdigest()
            image = read_square(content, size, resize)
        except Exception as error:  # as in the scan
            return {"reason": rejection_reason(error)}
        file = io.BytesIO()
        save_processed(image, file, comment=sha256)
        with atomic_write(target) as temporary:
            temporary.write_bytes(file.getvalue())
        return {"sha256": sha256, "crc32": zlib.crc32(file.getvalue())}

    made = pd.DataFrame(map_files(settings, make, list(plan.itertuples()), "resize"), index=plan.index)
    made = made.reindex(columns=["reason", "sha256", "crc32"])
    plan["reason"], plan["crc32"], scanned = made.reason, made.crc32, plan.sha256
    plan["sha256"] = made.sha256.fillna(scanned)
    if changed := (plan.sha256 != scanned).sum():
        print(f"{changed} files have changed since the scan; run this again to update data/overview.csv.")
    failed = plan[plan.reason.notna()].assign(stage="resize", relpath=lambda failed: failed.source)
    rejected = pd.concat([read_table(settings.data / "rejected.csv", ["stage"]).query("stage == 'scan'"), failed])
    write_table(rejected[["relpath", "stage", "reason"]], settings.data / "rejected.csv")
    for line in _lost_classes(failed, plan[plan.reason.isna()]):
        print(line)
    done = plan[plan.reason.isna()].sort_values("relpath", ignore_index=True).assign(width=size, height=size)
    done["label"] = done.category.rank(method="dense").astype(int) - 1
    write_table(done[["relpath", "sha256", "crc32"]].astype({"crc32": int}), crc32_path)
    return write_table(done[list(OVERVIEW)], table_path)


def read_overview(settings: Settings) -> pd.DataFrame:
    """Reads the table of processed images, `data/processed-overview.csv`, as `resize_images` wrote it.

    Raises:
        UserError: There is none yet, or it cannot be read.
    """
    path = settings.data / "processed-overview.csv"
    if not path.exists():
        raise UserError(f"There is no {display_path(path)}: run 01-preprocessing.ipynb first.")
    return read_table(path, OVERVIEW, "delete it and run 01-preprocessing.ipynb again")


def _known_crc32(path: Path) -> dict[tuple[str, str], int]:
    """Returns the CRC-32 of processed files by relpath and checksum of the source; empty if there is no sound table."""
    with suppress(UserError, FileNotFoundError, AttributeError, ValueError):
        table = read_table(path)
        return dict(zip(zip(table.relpath, table.sha256), map(int, table.crc32)))
    return {}


def _apply_contract(data: Path, resize: str) -> None:
    """Deletes processed images and their checks if they were made under another contract, and records this one."""
    processed, contract = data / "processed", preprocessing_contract(resize)
    # Listed before the contract is read: another process may record it and start to make images in between.
    entries = [path for path in processed.iterdir() if path.name != CONTRACT_FILE] if processed.is_dir() else []
    if _stored_contract(processed / CONTRACT_FILE) == contract:
        return
    if entries:
        print(f"The preprocessing has changed: all images in {display_path(processed)} are made anew.")
        with user_facing_os_errors(processed, "deleted"):
            for path in [*entries, data / "checks.csv"]:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    write_json(contract, processed / CONTRACT_FILE)


def _stored_contract(path: Path) -> dict[str, Any] | None:
    try:
        return read_json(path)
    except UserError:  # missing or damaged: nobody knows how the images were made
        return None
