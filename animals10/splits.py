"""Training, validation and test set: how they are drawn, checked and read, and how a training set is resampled."""

import csv
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from sklearn.model_selection import train_test_split

from animals10.class_sizes import DRAWN_SHARES, MIN_IMAGES, TO_SPLIT, check_sizes, to_draw
from animals10.corrections import EXCLUDE, RELABEL, read_corrections, tell_once
from animals10.files import UserError, display_path, read_json, read_table, reading, write_json, write_table
from animals10.layouts import in_words, readable
from animals10.preprocessing import read_overview
from animals10.quality import check_images
from animals10.reference import data_share, is_complete, match_reference
from animals10.settings import Settings

# Class sizes after resampling, and the file that holds the training set resampled to each.
CLASS_BALANCES = {
    "none": "train.csv",
    "min": "train-downsamp.csv",
    "mean": "train-midsamp.csv",
    "max": "train-upsamp.csv",
}
PARTS = ("test", "val", "train")
START_OVER = "delete train.csv, val.csv and test.csv there to split again"


@dataclass(frozen=True)
class Splits:
    """Training, validation and test set: tables with the columns of `data/processed-overview.csv`.

    Attributes:
        train: The training set, not resampled.
        val: The validation set.
        test: The test set.
        class_names: The class of each label, in order.
        dataset: `sample`, `animals10` (at least 99 % of it), `animals10-part`, or the name of the raw folder, or of the
            folder of the table; with `-corrected` at its end where labels are corrected.
        share: How many files of Animals-10 there are, in words; empty for other data.
        corrections: What is corrected, see `Corrections.summary`; empty if nothing is.
        kind: `grouped`, `published`, `given` where a split came with the images, or `own` where the tables were made
            by hand.
        sha256: Checksum over the image size and each image's part, label and source checksum.
    """

    train: pd.DataFrame
    val: pd.DataFrame
    test: pd.DataFrame
    class_names: tuple[str, ...]
    dataset: str
    share: str
    corrections: str
    kind: str
    sha256: str

    @property
    def images(self) -> pd.DataFrame:
        """All images of the split, with their `part`: `train`, `val` or `test`."""
        return pd.concat([getattr(self, part).assign(part=part) for part in reversed(PARTS)])


def load_splits(settings: Settings) -> Splits:
    """Reads the tables `data/train.csv`, `val.csv` and `test.csv`, and makes them first if there are none.

    70 % of the images are for training, 20 % for validation and 10 % for testing, stratified by class. They are drawn
    with the seed from the sorted table, so every machine gets the same split. Near-duplicates stay together: the first
    of each group is drawn and the others follow it. The files of Animals-10 have the parts of the reference split,
    whatever the seed and whichever files are missing. `ANIMALS10_SPLIT=published` draws each image on its own, as the
    original study did. A split that came with the images is used as it is; if it lacks a validation or a test set, a
    fifth or a tenth of its training images is drawn instead.

    The tables hold the labels that came with the images. `data/exclude.csv` and `data/relabel.csv` correct them here,
    see `corrections.read_corrections`: no image moves to another part.

    Raises:
        UserError: Notebook 01 has not run, a class has too few images, or a table is damaged or does not match the
            images.
    """
    overview = read_overview(settings)
    if set(overview.width) != {settings.image_size}:
        path = display_path(settings.data / "processed-overview.csv")
        raise UserError(f"{path} is of another size than ANIMALS10_IMAGE_SIZE={settings.image_size}.")
    paths = {part: settings.data / f"{part}.csv" for part in PARTS}
    kind_path = settings.data / "split.json"
    is_given = _came_with_split(settings)
    if not paths["train"].exists():  # it is written last
        write_json({"kind": "given" if is_given else settings.split}, kind_path)
        tables = complete_split(settings, overview) if is_given else split_images(settings, overview)
        for part, table in tables.items():
            write_table(table, paths[part])
    kind = "own"
    if kind_path.exists():
        with reading(kind_path, "is damaged", START_OVER):
            kind = read_json(kind_path, START_OVER)["kind"]
    if kind not in ("own", "given" if is_given else settings.split):
        found = "the images came with one" if is_given else f"ANIMALS10_SPLIT is {settings.split!r}"
        raise UserError(f"The split in {display_path(settings.data)} is {kind!r}, but {found}: {START_OVER}.")
    if missing := [path for path in paths.values() if not path.exists()]:
        raise UserError(f"{display_path(missing[0])} is missing beside the other splits: restore it, or {START_OVER}.")
    parts = {part: read_table(path) for part, path in paths.items()}
    _check_tables(parts, overview, settings.data)
    if unused := len(overview) - sum(map(len, parts.values())):
        print(f"{unused} images were added after the split and are not used; {START_OVER}.")
    corrections = read_corrections(settings, overview)
    summary = corrections.summary({relpath for table in parts.values() for relpath in table.relpath})
    if summary:
        parts = {part: corrections.apply(table) for part, table in parts.items()}
        _check_corrected(parts, overview, settings.data)
        tell_once(summary, settings.data)
    present = overview[~overview.relpath.isin(corrections.excluded)]
    rows = [(part, *row) for part, table in parts.items() for row in zip(table.relpath, table.label, table.sha256)]
    return Splits(
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        class_names=tuple(sorted(overview.category.unique())),
        dataset=_dataset_name(settings, overview) + "-corrected" * bool(summary),
        share=data_share(present) if settings.profile == "full" else "",
        corrections=summary,
        kind=kind,
        sha256=hashlib.sha256(os.fsencode(repr((settings.image_size, rows)))).hexdigest(),
    )


def split_images(settings: Settings, overview: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Splits the images of a workspace as the settings say; returns the tables by name, as `load_splits` reads them."""
    if settings.split == "published":
        return draw_split(overview, settings.seed, overview.relpath)
    groups, match = check_images(settings).group, match_reference(overview)
    if match is None:
        return draw_split(overview, settings.seed, groups)
    # Unknown files follow a known one of their group; those without one belong to training.
    part = match.part.fillna(match.part.groupby(groups).transform("first")).fillna("train")
    parts = {name: overview[part == name].sort_values("relpath") for name in PARTS}
    if all(set(table.category) == set(overview.category) for table in parts.values()):
        return parts
    print("Too few files of Animals-10 for its reference split: a part would lack a class. The split is drawn anew.")
    return draw_split(overview, settings.seed, groups)


def draw_split(overview: pd.DataFrame, seed: int, groups: pd.Series) -> dict[str, pd.DataFrame]:
    """Draws a stratified split.

    Args:
        overview: The images.
        seed: Decides the draw.
        groups: For each row the `relpath` of the image whose part it shares: its own if it is drawn itself.

    Raises:
        UserError: A class has too few images that are drawn themselves.
    """
    overview = overview.sort_values("relpath")
    groups = groups.loc[overview.index]
    drawn = overview[groups == overview.relpath]
    check_sizes(overview, drawn, MIN_IMAGES, TO_SPLIT)
    n_test, n_val = round(0.1 * len(drawn)), round(0.2 * len(drawn))
    train, rest = train_test_split(drawn, test_size=n_val + n_test, stratify=drawn.label, random_state=seed)
    val, test = train_test_split(rest, test_size=n_test, stratify=rest.label, random_state=seed)
    parts = {"test": test, "val": val, "train": train}
    return {part: overview[groups.isin(table.relpath)] for part, table in parts.items()}


def _came_with_split(settings: Settings) -> bool:
    """Tells whether the images came with a split, which `scan_images` has recorded."""
    path = settings.data / "overview.csv"
    if not path.exists():
        return False
    with reading(path, "is not a csv table"), path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return "part" in next(csv.reader(file), ())


def complete_split(settings: Settings, overview: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Returns the tables of a split that came with the images, and prints what a person should know about it.

    A missing validation or test set is drawn from the training set, stratified, as the setting `split` says.

    Raises:
        UserError: The training set is missing, or too small to draw from it.
    """
    scanned = read_table(settings.data / "overview.csv").drop_duplicates("relpath").set_index("relpath")
    part, groups = overview.source.map(scanned.part), check_images(settings).group
    if settings.split == "published":
        drawn_with = overview.relpath
    else:
        training = overview.relpath[part == "train"]
        drawn_with = training.groupby(groups).transform("min").reindex(overview.index)
    if not (part == "train").any():
        raise UserError(f"No training image is usable: {display_path(settings.data / 'rejected.csv')} tells why.")
    lines = ["The split that came with the images is used"]
    for name, (title, share) in DRAWN_SHARES.items():
        if (part == name).any():
            continue
        train = overview[part == "train"].sort_values("relpath")
        drawn = train[drawn_with[train.index] == train.relpath]
        check_sizes(train, drawn, round(1 / share), to_draw(title))
        options = {"test_size": round(share * len(drawn)), "stratify": drawn.label, "random_state": settings.seed}
        chosen = train_test_split(drawn, **options)[1]
        part = part.mask((part == "train") & drawn_with.isin(chosen.relpath), name)
        lines[0] += f"; it has no {title} set, so {100 * share:.0f} % of its training images are drawn as one"
    parts = {name: overview[part == name].sort_values("relpath") for name in PARTS}
    trained = groups.isin(groups[part == "train"])
    counts = [f"{(trained & (part == name)).sum():,} of {len(parts[name]):,} {name}" for name in ("val", "test")]
    lines[0] += f". {' and '.join(counts)} images have a near-duplicate among {len(parts['train']):,} in training."
    for name, table in parts.items():
        if lacking := sorted(set(overview.category) - set(table.category)):
            lines.append(f"There is no image of {in_words(lacking)} in {name}.")
    print(*lines, sep="\n")
    return parts


def _check_tables(parts: Mapping[str, pd.DataFrame], overview: pd.DataFrame, data: Path) -> None:
    """Checks the tables of a split, which the user may have edited.

    Args:
        parts: The tables by name: `train`, `val`, `test`.
        overview: All processed images.
        data: The folder of the tables, and of the images in `processed/`.

    Raises:
        UserError: A column, a value or an image is missing, a class is unknown, an image is in two places, or a row
            differs from the overview.
    """
    columns, classes = ["relpath", "category", "label", "sha256"], sorted(set(overview.category))
    known = set(zip(*(overview[name] for name in columns)))
    places: dict[str, Path] = {}
    for part, table in parts.items():
        path, advice = data / f"{part}.csv", f"Correct the table, or {START_OVER}."
        if missing := [name for name in columns if name not in table]:
            raise UserError(f"{path} lacks the column {missing[0]}. {advice}")
        if table.empty:
            raise UserError(f"{path} has no images. {advice}")
        if (empty := table[columns].isna().any()).any():
            raise UserError(f"{path} has a row without {empty.idxmax()}. {advice}")
        for row in zip(*(table[name] for name in columns)):
            relpath, category = row[:2]
            if category not in classes:
                raise UserError(
                    f"{path}: {relpath} has the class {category}, not one of {', '.join(classes)}. {advice}"
                )
            if relpath in places:
                raise UserError(f"{relpath} is in {places[relpath]} and again in {path}. {advice}")
            if not (data / "processed" / relpath).is_file():
                raise UserError(f"{path} names {relpath}, which is missing in {data / 'processed'}. {advice}")
            if row not in known:
                reason = "than processed-overview.csv: the table was edited, or the images have changed"
                raise UserError(f"{path} has another label or checksum of {relpath} {reason}. {advice}")
            places[relpath] = path


def _check_corrected(parts: Mapping[str, pd.DataFrame], overview: pd.DataFrame, data: Path) -> None:
    """Raises a `UserError` if corrections leave a part without images, or the training set without those of a class."""
    where = f"{EXCLUDE} and {RELABEL} in {display_path(data)} leave"
    if empty := [part for part, table in parts.items() if table.empty]:
        raise UserError(f"{where} no image in {empty[0]}: correct them.")
    if lacking := sorted(set(overview.category) - set(parts["train"].category)):
        raise UserError(f"{where} no training image of {in_words(lacking)}: correct them.")


def _dataset_name(settings: Settings, overview: pd.DataFrame) -> str:
    if settings.profile == "sample":
        return "sample"
    if is_complete(overview):
        return "animals10"
    folder = settings.raw_folder
    names = [path.name for path in (folder, *folder.parents) if path.name not in ("raw-img", "data", "")]
    name = readable(names[0] if names else folder.name) or "unnamed"
    return "animals10-part" if name == "animals10" else name


def resample(train: pd.DataFrame, class_balance: str, seed: int) -> pd.DataFrame:
    """Resamples a training set so that all classes have the same size.

    Undersampling draws images of a class at random. Oversampling keeps all images of a class and repeats each equally
    often; the remainder is drawn at random. (The original study drew with replacement when it oversampled, and so left
    out many of its images.)

    Args:
        train: The training set.
        class_balance: The size of each class: that of the smallest (`min`) or largest class (`max`), or the mean class
            size, rounded down (`mean`); `none` returns the table unchanged.
        seed: Decides the draws.

    Returns:
        A table with the same columns, sorted by label and `relpath`.

    Raises:
        ValueError: `class_balance` is none of these.
    """
    if class_balance not in CLASS_BALANCES:
        raise ValueError(f"class_balance is {class_balance!r}; allowed is {', '.join(CLASS_BALANCES)}")
    if class_balance == "none":
        return train
    size = int(train.label.value_counts().agg(class_balance))
    parts = []
    for _, images in train.groupby("label"):
        repeats, rest = divmod(size, len(images))
        parts += [images] * repeats + [images.sample(rest, random_state=seed)]
    return pd.concat(parts).sort_values(["label", "relpath"], ignore_index=True)
