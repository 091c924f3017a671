"""What the three notebooks share, in the order in which photographs flow through the study.

settings → photographs → splits → datasets → models → training → evaluation and results → figures

Importing this module starts nothing, reads no environment variable and changes no global of TensorFlow.
"""

import ast
import difflib
import hashlib
import json
import os
import platform
import re
import subprocess
import time
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import keras
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import psutil
import pydantic
import tensorflow as tf
from IPython.display import display
from PIL import Image
from scipy.stats import binomtest
from sklearn.metrics import (
    ConfusionMatrixDisplay,
    accuracy_score,
    classification_report,
    precision_recall_fscore_support,
)
from sklearn.model_selection import train_test_split
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map
from tqdm.keras import TqdmCallback

import pictures
from pictures import one_line, to_rgb
from storage import StudyError, append_row, check_parts, plainly, read_table, sweep, whole_file, write_table

# ── Settings ──────────────────────────────────────────────────────────────────────────────────────────────────────────

REPOSITORY = Path(__file__).resolve().parent
SAMPLE = REPOSITORY / "data" / "sample" / "raw-img"
NOTEBOOKS = ("01-preprocessing.ipynb", "02-CNN-modeltraining.ipynb", "03-transfer-learning.ipynb")


class Settings(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Everything that a run of the notebooks depends on besides the notebooks themselves.

    Attributes:
        root: The workspace: holds `data/` (tables, processed pictures), `models/` (a folder a run) and `results.csv`.
        raw: Folder of raw photographs, one folder a class. Never modified.
        profile: Whether these are a person's photographs or the shipped sample.
        image_size: Edge of the square pictures that the models see, in pixels.
        weights: `imagenet`, `random`, or a folder of `<backbone>.weights.h5`.
        only: The `model_id`s to train; empty for all.
        max_epochs: Cap on the epochs of every run; None for no cap.
        force: Whether to train again what is finished already.
        split: Whether pictures that show the same stay in one part of the split, or it is drawn as the study drew it.
        seed: The one seed of splits, balancing, initial weights, shuffling, dropout and augmentation.
    """

    root: Path
    raw: Path
    profile: Literal["full", "sample"] = "full"
    image_size: int = pydantic.Field(224, ge=32, le=1024)
    weights: str = "imagenet"
    only: tuple[str, ...] = ()
    max_epochs: int | None = pydantic.Field(None, ge=1)
    force: bool = False
    split: Literal["grouped", "published"] = "grouped"
    seed: int = pydantic.Field(5, ge=0, lt=2**31)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Reads the `ANIMALS10_*` variables; an empty one counts as unset.

        The profile is `full` where there are photographs or `ANIMALS10_RAW` is given, else `sample`, said aloud.

        Raises:
            StudyError: A value makes no sense; the message names the variable, the value and what is allowed.
        """
        prefix = "ANIMALS10_"
        given = {
            name.removeprefix(prefix).lower(): environment[name] for name in environment if name.startswith(prefix)
        }
        given = {name: text.strip() for name, text in given.items() if text.strip()}
        raw = Path(given.get("raw") or Path(given.get("root", REPOSITORY)) / "data" / "raw-img")
        profile = given.get("profile") or ("full" if "raw" in given or holds_photographs(raw) else "sample")
        if profile == "sample":
            if "profile" not in given:
                print(f"There are no photographs in {short(raw)}: this is the sample profile, on the shipped drawings.")
            sample = {"root": REPOSITORY / "build" / "sample", "raw": SAMPLE, "weights": "random", "max_epochs": 1}
            given = sample | given
        try:
            return cls(**{"root": REPOSITORY, "raw": raw} | given | {"profile": profile})
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            name = prefix + str(first["loc"][0]).upper()
            raise StudyError(f"{name} is {first['input']!r}: {first['msg'].removeprefix('Value error, ')}.") from None

    @pydantic.field_validator("root", "raw")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().resolve()

    @pydantic.field_validator("weights")
    @classmethod
    def _weights_exist(cls, text: str) -> str:
        if text in ("imagenet", "random"):
            return text
        if not Path(text).expanduser().is_dir():
            raise ValueError("allowed is imagenet, random or an existing folder of <backbone>.weights.h5 files")
        return str(Path(text).expanduser().resolve())

    @pydantic.field_validator("only", mode="before")
    @classmethod
    def _ids_exist(cls, ids: str | Sequence[str]) -> tuple[str, ...]:
        ids = tuple(re.split(r"[\s,]+", ids)) if isinstance(ids, str) else tuple(ids)
        known = model_ids()
        for unknown in [name for name in ids if known and name not in known]:
            nearest = difflib.get_close_matches(unknown, known, n=3, cutoff=0.3) or known
            raise ValueError(f"no notebook trains {unknown!r}; the nearest are {', '.join(nearest)}")
        return ids

    @property
    def data(self) -> Path:
        """Folder of all tables and of the processed pictures."""
        return self.root / "data"

    @property
    def results(self) -> Path:
        """The table of all runs."""
        return self.root / "results.csv"


def model_ids() -> list[str]:
    """Returns every `model_id` that the notebooks train, read from their cells: `aux.train(settings, "…", …)`."""
    paths = [REPOSITORY / name for name in NOTEBOOKS if (REPOSITORY / name).exists()]
    cells = [cell for path in paths for cell in nbformat.read(path, as_version=4).cells if "train(" in cell.source]
    nodes = [node for cell in cells if cell.cell_type == "code" for node in ast.walk(ast.parse(cell.source))]
    calls = [node for node in nodes if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "train"]
    return sorted({call.args[1].value for call in calls if len(call.args) > 1})


def holds_photographs(folder: Path) -> bool:
    """Tells whether a folder holds class folders that are not empty."""
    return folder.is_dir() and any(any(entry.iterdir()) for entry in folder.iterdir() if entry.is_dir())


def short(path: Path) -> str:
    """Returns a path as a person would type it in the repository."""
    return str(path.relative_to(REPOSITORY)) if path.is_relative_to(REPOSITORY) else str(path)


def use_device() -> str:
    """Sets mixed float16 where there is a GPU and float32 on a CPU; returns the device in words."""
    gpus = tf.config.list_physical_devices("GPU")
    keras.config.set_dtype_policy("mixed_float16" if gpus else "float32")
    if gpus:
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"CPU {found[1] if found else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


# ── Photographs ───────────────────────────────────────────────────────────────────────────────────────────────────────

ANIMALS10_SIZE = 26_179  # photographs in the download
ITALIAN = ("cane", "cavallo", "elefante", "farfalla", "gallina", "gatto", "mucca", "pecora", "ragno", "scoiattolo")
ENGLISH = ("dog", "horse", "elephant", "butterfly", "chicken", "cat", "cow", "sheep", "spider", "squirrel")
PUBLISHED = REPOSITORY / "data" / "published-results.csv"  # the original study's 42 runs, and 22 at 200 × 200


def scan_photographs(settings: Settings) -> pd.DataFrame:
    """Looks at every file in the raw folder and writes `data/overview.csv` and `data/rejected.csv`.

    Only headers are decoded here: a picture whose pixels are damaged is found by `resize_photographs`.

    Returns:
        One row a photograph, in the order of its relative path: `relpath` (below the raw folder), `name`, `format`
        (Pillow's name), `category`, `width` and `height` (pixels, as stored), `mode` (Pillow's), `channels`, `bytes`
        and `sha256` of the file.

    Raises:
        StudyError: The raw folder is missing, holds no photographs, or those of one class only.
    """
    for folder in (settings.root, settings.data):
        sweep(folder)
    with plainly(settings.raw, "read"):
        if not settings.raw.is_dir():
            raise StudyError(f"There is no folder {settings.raw}: it should hold the photographs, one folder a class.")
        entries = sorted(path for path in settings.raw.iterdir() if not path.name.startswith("."))
        folders = [path for path in entries if path.is_dir()]
    # Translated only where all are Italian: elsewhere a folder `cane` might hold sugar cane.
    categories = {folder.name: folder.name for folder in folders}
    if set(categories) <= set(ITALIAN):
        categories = dict(zip(ITALIAN, ENGLISH, strict=True))

    def look(path: Path) -> dict:
        row = {"relpath": path.relative_to(settings.raw).as_posix(), "name": path.name}
        if path.parent == settings.raw:
            return row | {"reason": "unreadable class folder" if path in folders else "lies in no class folder"}
        try:
            with pictures.open_photograph(path) as picture, path.open("rb") as file:
                row |= {"format": picture.format, "category": categories[path.parent.name]}
                row |= {"width": picture.width, "height": picture.height, "mode": picture.mode}
                row |= {"channels": len(picture.getbands()), "bytes": path.stat().st_size}
                return row | {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        except Exception as error:  # whatever is wrong with one file must not stop the others: it is recorded
            return row | {"reason": pictures.reason_of(error)}

    paths = [path for path in entries if path not in folders]
    paths += [path for folder in folders for path in pictures.files_in(folder)]
    columns = "relpath name format category width height mode channels bytes sha256 reason".split()
    table = pd.DataFrame(_on_all_cores(look, paths, "scan"), columns=columns).sort_values("relpath", ignore_index=True)
    rejected = table[table.reason.notna()].assign(stage="scan")[["relpath", "stage", "reason"]]
    overview = table[table.reason.isna()].drop(columns="reason").reset_index(drop=True)
    overview = overview.astype(dict.fromkeys(("width", "height", "channels", "bytes"), int))
    write_table(rejected, settings.data / "rejected.csv")
    if overview.category.nunique() < 2:
        raise StudyError(
            f"{settings.raw} holds {len(overview)} usable photographs of {overview.category.nunique()} classes (and "
            f"{len(rejected)} rejected files); it needs at least two folders, named after classes, with photographs."
        )
    return write_table(overview, settings.data / "overview.csv")


def resize_photographs(settings: Settings, overview: pd.DataFrame) -> pd.DataFrame:
    """Makes a square RGB JPEG of every photograph, on all cores, and writes `data/processed-overview.csv`.

    A picture carries its source's checksum as JPEG comment: what is there and up to date is not made again. Photographs
    that cannot be decoded are added to `data/rejected.csv`.

    Returns:
        One row a picture, in the order of `relpath`: `relpath` (below `data/processed`), `name`, `category`, `label`
        (position of the category in alphabetical order), `width`, `height`, `source` (below the raw folder) and
        `sha256` (of the source).

    Raises:
        StudyError: The workspace holds pictures of another size.
    """
    processed, size = settings.data / "processed", settings.image_size
    table_path = settings.data / "processed-overview.csv"
    if table_path.exists() and set(read_table(table_path).width) - {size}:
        where = f"{short(processed)} holds pictures of another size than ANIMALS10_IMAGE_SIZE={size}"
        raise StudyError(
            f"{where}: choose another workspace (ANIMALS10_ROOT), or delete it and the csv files beside it."
        )
    plan = overview.rename(columns={"relpath": "source"})
    plan["name"] = pictures.jpeg_names(overview)
    plan["relpath"] = plan.category + "/" + plan.name
    for category in plan.category.unique():
        sweep(processed / category)

    def make(row: tuple) -> str | None:
        target = processed / row.relpath
        if pictures.up_to_date(target, row.sha256, size):
            return None
        try:
            with pictures.open_photograph(settings.raw / row.source) as photograph:
                picture = to_rgb(photograph).resize((size, size), Image.Resampling.BILINEAR)
        except Exception as error:  # as in the scan
            return pictures.reason_of(error)
        with whole_file(target) as temporary:
            picture.save(temporary, "JPEG", quality=90, comment=row.sha256)
        return None

    plan["reason"] = _on_all_cores(make, list(plan.itertuples()), "resize")
    failed = plan[plan.reason.notna()].assign(stage="resize", relpath=lambda failed: failed.source)
    rejected = pd.concat([read_table(settings.data / "rejected.csv").query("stage == 'scan'"), failed])
    write_table(rejected[["relpath", "stage", "reason"]], settings.data / "rejected.csv")
    done = plan[plan.reason.isna()].sort_values("relpath", ignore_index=True).assign(width=size, height=size)
    done["label"] = done.category.rank(method="dense").astype(int) - 1
    return write_table(done["relpath name category label width height source sha256".split()], table_path)


def check_pictures(settings: Settings) -> pd.DataFrame:
    """Measures the processed pictures, groups those that show the same, and writes `data/checks.csv`.

    Pictures that were measured before, and have not changed, are not measured again.

    Returns:
        One row a picture, in the order of `data/processed-overview.csv`: its `relpath`, `category`, `source` and
        `sha256`; `phash`, `brightness` and `sharpness` (see `pictures.measure`); `group` (see `pictures.groups`).

    Raises:
        StudyError: Notebook 01 has not made the pictures yet, or one is gone or damaged.
    """
    overview_path, path, known = settings.data / "processed-overview.csv", settings.data / "checks.csv", {}
    if not overview_path.exists():
        raise StudyError(f"There is no {short(overview_path)}: run 01-preprocessing.ipynb first.")
    checks = read_table(overview_path)["relpath category source sha256".split()]
    if path.exists():
        stored = read_table(path).reindex(columns="relpath sha256 phash brightness sharpness".split()).dropna()
        known = stored.drop_duplicates(["relpath", "sha256"]).set_index(["relpath", "sha256"]).to_dict("index")
    todo = [row for row in checks.itertuples() if (row.relpath, row.sha256) not in known]

    def look(row: tuple) -> dict:
        picture = settings.data / "processed" / row.relpath
        try:
            return pictures.measure(picture)
        except Exception as error:
            what = f"{picture}: {pictures.reason_of(error)}"
            raise StudyError(f"{what}. Delete it and run 01-preprocessing.ipynb again.") from None

    for row, found in zip(todo, _on_all_cores(look, todo, "check")):
        known[row.relpath, row.sha256] = found
    figures = pd.DataFrame([known[key] for key in zip(checks.relpath, checks.sha256)])
    checks = checks.join(figures)
    return write_table(checks.assign(group=pictures.groups(checks)), path)


def _on_all_cores(function, items: Sequence, title: str) -> list:
    """Maps in threads, which Pillow lets run side by side while it decodes, resizes and encodes."""
    with warnings.catch_warnings():
        # Bombs are refused by their size; what else Pillow warns of (odd EXIF, palettes) does no harm here.
        warnings.filterwarnings("ignore", module="PIL")
        return thread_map(function, items, max_workers=os.cpu_count(), tqdm_class=tqdm, desc=title, unit="file")


# ── Splits ────────────────────────────────────────────────────────────────────────────────────────────────────────────

MIN_PHOTOGRAPHS = 10  # of a class, so that a tenth of it is one photograph
BALANCES = {"none": "train.csv", "min": "train-downsamp.csv", "mean": "train-midsamp.csv", "max": "train-upsamp.csv"}


@dataclass(frozen=True)
class Splits:
    """The photographs that models are trained, chosen and judged on: tables with the columns of the processed overview.

    `train` is not balanced yet; `class_names` follow the labels; `dataset` is `sample`, `animals10` (all of it) or
    is named after the raw folder; `sha256` is a fingerprint of photographs, parts and picture size.
    """

    train: pd.DataFrame
    val: pd.DataFrame
    test: pd.DataFrame
    class_names: tuple[str, ...]
    dataset: str
    sha256: str


def load_splits(settings: Settings) -> Splits:
    """Reads the tables `data/train.csv`, `val.csv` and `test.csv`; makes them first where there are none.

    70 % of the photographs train, 20 % validate and 10 % test, stratified by class, drawn with the seed from the sorted
    table, so that every machine gets the same split. Pictures that show the same stay together: the first of each is
    drawn, the others follow it. `ANIMALS10_SPLIT=published` draws all of them, as the original study did.

    Raises:
        StudyError: Notebook 01 has not run, a class has too few photographs, or a table is damaged (by hand, say) or
            does not fit the pictures.
    """
    overview_path = settings.data / "processed-overview.csv"
    if not overview_path.exists():
        raise StudyError(f"There is no {short(overview_path)}: run 01-preprocessing.ipynb first.")
    overview = read_table(overview_path)
    if set(overview.width) != {settings.image_size}:
        raise StudyError(f"{short(overview_path)} is of another size than ANIMALS10_IMAGE_SIZE={settings.image_size}.")
    paths = {part: settings.data / f"{part}.csv" for part in ("test", "val", "train")}
    anew = "delete train.csv, val.csv and test.csv there to split anew"
    if not paths["train"].exists():  # it is written last
        same = check_pictures(settings).group if settings.split == "grouped" else overview.relpath
        for part, table in _split(overview, settings.seed, same).items():
            write_table(table, paths[part])
    if gone := [path for path in paths.values() if not path.exists()]:
        raise StudyError(f"{short(gone[0])} is missing beside the other splits: restore it, or {anew}.")
    parts = {part: read_table(path) for part, path in paths.items()}
    check_parts(parts, overview, settings.data, f"or {anew}")
    if unused := len(overview) - sum(map(len, parts.values())):
        print(f"{unused} pictures came after the split and are in no part of it; {anew}.")
    rows = [(part, *row) for part, table in parts.items() for row in zip(table.relpath, table.label, table.sha256)]
    fingerprint = hashlib.sha256(os.fsencode(repr((settings.image_size, rows)))).hexdigest()
    folder = next(path for path in (settings.raw, *settings.raw.parents) if path.name not in ("raw-img", "data"))
    dataset = "animals10-part" if folder.name == "animals10" else folder.name
    dataset = "animals10" if len(overview) == ANIMALS10_SIZE else dataset
    dataset = "sample" if settings.profile == "sample" else dataset
    return Splits(**parts, class_names=tuple(sorted(overview.category.unique())), dataset=dataset, sha256=fingerprint)


def _split(overview: pd.DataFrame, seed: int, same: pd.Series) -> dict[str, pd.DataFrame]:
    """Splits a table; `same` names for each row the `relpath` whose part it shares, its own where it is drawn."""
    overview = overview.sort_values("relpath")
    same = same.loc[overview.index]
    drawn = overview[same == overview.relpath]
    counts = drawn.category.value_counts()
    if len(counts) < 2 or counts.min() < MIN_PHOTOGRAPHS:
        few = ", ".join(f"{name} has {n}" for name, n in counts[counts < MIN_PHOTOGRAPHS].items())
        raise StudyError(
            f"Too few photographs to split into train, validation and test: {few or 'one class only'}; a class needs "
            f"at least {MIN_PHOTOGRAPHS} usable ones, not counting copies. Add some or remove its folder, and run 01."
        )
    n_test, n_val = round(0.1 * len(drawn)), round(0.2 * len(drawn))
    train, rest = train_test_split(drawn, test_size=n_val + n_test, stratify=drawn.label, random_state=seed)
    val, test = train_test_split(rest, test_size=n_test, stratify=rest.label, random_state=seed)
    parts = {"test": test, "val": val, "train": train}
    return {part: overview[same.isin(table.relpath)] for part, table in parts.items()}


def balance(train: pd.DataFrame, how: str, seed: int) -> pd.DataFrame:
    """Evens out the classes of a training table.

    A class that is too large loses photographs drawn at random. One that is too small keeps all of its photographs and
    repeats them, each equally often but for the remainder, which is drawn at random. (The original study drew small
    classes with replacement and so left out many of the photographs it had.) `how` names the size that all classes get:
    `min` of them, `mean` (rounded down) or `max`; `none` leaves them as they are.
    """
    if how not in BALANCES:
        raise ValueError(f"how is {how!r}; allowed is {', '.join(BALANCES)}")
    if how == "none":
        return train
    size = int(train.label.value_counts().agg(how))
    parts = []
    for _, photographs in train.groupby("label"):
        repeats, rest = divmod(size, len(photographs))
        parts += [photographs] * repeats + [photographs.sample(rest, random_state=seed)]
    return pd.concat(parts).sort_values(["label", "relpath"], ignore_index=True)


# ── Datasets ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# On pixels from 0 to 1: brightness adds up to ±0.1; contrast and saturation are multiplied by a factor from the range;
# hue turns by up to ±0.02 of the colour circle; a crop keeps 85 to 100 % of each edge.
AUGMENTATION = {"brightness": 0.1, "contrast": (0.8, 1.2), "saturation": (0.8, 1.2), "hue": 0.02, "crop": (0.85, 1.0)}


def augment(picture: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Varies a picture: crop and resize, flips in both directions, hue, saturation, contrast, brightness.

    `picture` is float32, (size, size, 3), from 0 to 255, and so is what is returned; `seed` is int, (2,).
    """
    seeds = tf.unstack(tf.random.split(seed, 8))
    size = picture.shape[0]
    scale = tf.random.stateless_uniform([], seeds[0], *AUGMENTATION["crop"])
    edge = tf.cast(tf.round(scale * size), tf.int32)
    picture = tf.image.stateless_random_crop(picture / 255, [edge, edge, 3], seeds[1])
    picture = tf.image.resize(picture, [size, size])
    picture = tf.image.stateless_random_flip_left_right(picture, seeds[2])
    picture = tf.image.stateless_random_flip_up_down(picture, seeds[3])
    picture = tf.image.stateless_random_hue(picture, AUGMENTATION["hue"], seeds[4])
    picture = tf.image.stateless_random_saturation(picture, *AUGMENTATION["saturation"], seeds[5])
    picture = tf.image.stateless_random_contrast(picture, *AUGMENTATION["contrast"], seeds[6])
    picture = tf.image.stateless_random_brightness(picture, AUGMENTATION["brightness"], seeds[7])
    return 255 * tf.clip_by_value(picture, 0, 1)


def batches(settings: Settings, table: pd.DataFrame, batchsize: int = 32) -> tf.data.Dataset:
    """Returns the pictures of a table in its order: batches (n, size, size, 3), float32, 0 to 255, with labels."""
    dataset = tf.data.Dataset.from_tensor_slices(_files(settings, table))
    dataset = dataset.map(lambda *item: _read(*item, settings.image_size), num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batchsize).prefetch(2)


def training_batches(
    settings: Settings, table: pd.DataFrame, epochs: range, batchsize: int = 32, augmented: bool = True, seed: int = 5
) -> tf.data.Dataset:
    """Returns the pictures of all epochs, one epoch after the other, each in an order and a variation of its own.

    Order and variation depend on the seed, the epoch and the row of the table alone: they are the same in every run.
    File names are shuffled, not pixels: memory does not grow with the number of photographs.

    Returns:
        Batches as `batches` gives them; `ceil(len(table) / batchsize)` an epoch.
    """
    paths, labels = _files(settings, table)

    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        # Stateless throughout: a seeded `Dataset.shuffle` would depend on TensorFlow's global seed, too.
        key = tf.random.fold_in(tf.constant([seed, 0], tf.int64), epoch)
        order = tf.random.experimental.stateless_shuffle(tf.range(len(table)), key)

        def load(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            picture, label = _read(tf.gather(paths, index), tf.gather(labels, index), settings.image_size)
            return (augment(picture, tf.random.fold_in(key, index)) if augmented else picture), label

        dataset = tf.data.Dataset.from_tensor_slices(order).map(load, num_parallel_calls=tf.data.AUTOTUNE)
        return dataset.batch(batchsize)

    return tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(epoch_of).prefetch(2)


def _files(settings: Settings, table: pd.DataFrame) -> tuple[tf.Tensor, tf.Tensor]:
    paths = [os.fsencode(settings.data / "processed" / relpath) for relpath in table.relpath]
    return tf.constant(paths), tf.constant(table.label, tf.int32)


def _read(path: tf.Tensor, label: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    # The accurate method is the one that gives the same pixels on every machine.
    picture = tf.image.decode_jpeg(tf.io.read_file(path), channels=3, dct_method="INTEGER_ACCURATE")
    return tf.ensure_shape(tf.cast(picture, tf.float32), (size, size, 3)), label


# ── Models ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class CNN:
    """A hand-built network: blocks of 3 × 3 convolution and max pooling, then dense layers.

    Attributes:
        filters: Filters of each convolution.
        pool_sizes: Edge of the max pooling after each convolution, in pixels.
        dense_units: Units of each dense layer before the output.
        dropout: Rate after each dense layer; 0 for none.
    """

    filters: tuple[int, ...]
    pool_sizes: tuple[int, ...]
    dense_units: tuple[int, ...] = (128,)
    dropout: tuple[float, ...] = (0.3,)

    def build(self, n_classes: int, image_size: int = 224) -> keras.Model:
        """Returns the untrained network, from pixels (0 to 255) to probabilities."""
        inputs = keras.Input((image_size, image_size, 3), name="pixels")
        x = keras.layers.Rescaling(1 / 255)(inputs)
        for filters, pool_size in zip(self.filters, self.pool_sizes, strict=True):
            x = keras.layers.Conv2D(filters, 3, activation="relu")(x)
            x = keras.layers.MaxPooling2D(pool_size)(x)
        return keras.Model(inputs, _head(keras.layers.Flatten()(x), self, n_classes))


@dataclass(frozen=True)
class Transfer:
    """A backbone of keras.applications, global average pooling and a dense head.

    Attributes:
        backbone: `MobileNetV2`, `ResNet50V2` or `EfficientNetV2S`.
        dense_units: Units of each dense layer before the output.
        dropout: Rate after each dense layer; 0 for none.
        unfreeze_last: How many of the backbone's last layers are trained along with the head.
        freeze_batch_norm: Whether batch normalisation keeps its ImageNet statistics, scales and shifts among them.
    """

    backbone: str
    dense_units: tuple[int, ...] = (128,)
    dropout: tuple[float, ...] = (0.0,)
    unfreeze_last: int = 0
    freeze_batch_norm: bool = True

    def build(self, n_classes: int, image_size: int = 224, weights: str | None = None) -> keras.Model:
        """Returns the network, its head untrained, from pixels (0 to 255) to probabilities.

        `weights` are what keras.applications takes: `imagenet`, the path of a weights file, or None for random ones.
        """
        inputs = keras.Input((image_size, image_size, 3), name="pixels")
        # The other two expect pixels from −1 to 1 and leave that to their caller.
        x = inputs if self.backbone == "EfficientNetV2S" else keras.layers.Rescaling(1 / 127.5, offset=-1)(inputs)
        # Built on the input itself: one flat graph, in which a layer can be found, cut and frozen.
        options = {"include_top": False, "weights": weights, "input_shape": inputs.shape[1:], "input_tensor": x}
        backbone = getattr(keras.applications, self.backbone)(**options)
        x = keras.layers.GlobalAveragePooling2D(name="pooled")(backbone.output)
        model = keras.Model(inputs, _head(x, self, n_classes), name=self.backbone)
        self.set_trainable(model)
        return model

    def set_trainable(self, model: keras.Model) -> None:
        """Freezes the backbone's layers but for the last `unfreeze_last`, and leaves the head trainable.

        Batch normalisation is frozen layer by layer: `fit` would run it in training mode, however it was called.
        """
        end = [layer.name for layer in model.layers].index("pooled")
        for index, layer in enumerate(model.layers):
            is_batch_norm = isinstance(layer, keras.layers.BatchNormalization)
            layer.trainable = index >= end - self.unfreeze_last and not (is_batch_norm and self.freeze_batch_norm)


def _head(x: keras.KerasTensor, architecture: CNN | Transfer, n_classes: int) -> keras.KerasTensor:
    for units, rate in zip(architecture.dense_units, architecture.dropout, strict=True):
        x = keras.layers.Dense(units, activation="relu")(x)
        x = keras.layers.Dropout(rate)(x) if rate else x
    # float32 also where the rest runs in float16: probabilities of many classes need the digits.
    return keras.layers.Dense(n_classes, activation="softmax", dtype="float32", name="probabilities")(x)


def layer_table(model: keras.Model) -> pd.DataFrame:
    """Returns one row a layer, in order: `layer`, `type`, `output shape` (without the batch) and `parameters`.

    pandas writes it in other forms: `.to_latex(index=False, escape=True)` gives a table for LaTeX's booktabs.
    """
    rows = [
        (layer.name, type(layer).__name__, " × ".join(map(str, layer.output.shape[1:])), layer.count_params())
        for layer in model.layers
    ]
    return pd.DataFrame(rows, columns=["layer", "type", "output shape", "parameters"])


def save_model(model: keras.Model, path: Path, class_names: Sequence[str]) -> None:
    """Saves a model without its optimizer as `.keras` file, its class names in the archive as `class_names.json`."""
    with whole_file(path) as temporary:
        keras.Model(model.input, model.output, name=model.name).save(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.writestr("class_names.json", json.dumps(list(class_names), ensure_ascii=False))


def load_model(path: Path) -> tuple[keras.Model, tuple[str, ...]]:
    """Loads a model that `save_model` wrote (pixels to probabilities) and its class names, in Keras's safe mode."""
    with zipfile.ZipFile(path) as archive:
        class_names = tuple(json.loads(archive.read("class_names.json")))
    return keras.models.load_model(path, compile=False), class_names


# ── Training ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# The original study's columns first, under their names; code written for its table still reads this one.
RESULT_COLUMNS = tuple(
    """
    time model_id learning_rate epochs batchsize acc_train acc_val accuracy precision recall f1_score run_id dataset
    image_size repetition n_train n_val n_test class_balance weights params trainable_params epochs_run best_epoch
    accuracy_low accuracy_high train_seconds peak_memory_mb seed device tensorflow keras commit data_sha256
    """.split()
)


@dataclass(frozen=True)
class Run:
    """A run as it is stored in its folder, or one that is not there and the reason why.

    Its folder, `path`, holds `run.json`, `history.csv`, `predictions.csv` and `model.keras`; None if it is not trained.
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

    def file(self, name: str) -> Path:
        """Returns the path of a file in the run's folder, or raises StudyError if the run is not trained."""
        if self.path is None:
            raise StudyError(f"{self.model_id} is not trained here: {self.why}")
        return self.path / name


def train(
    settings: Settings,
    model_id: str,
    architecture: CNN | Transfer,
    *,
    learning_rate: float,
    epochs: int,
    initial_epoch: int = 0,
    patience: int = 5,
    class_balance: str = "mean",
    batchsize: int = 32,
    augmented: bool = True,
    continues: Run | None = None,
    repetition: int = 1,
) -> Run:
    """Trains, judges and stores a run and appends its row to `results.csv`, unless it is finished already.

    Adam on the cross-entropy, early stopping on the validation loss, the weights of the best epoch kept, judged on the
    test pictures. Finished means: the same specification, seed, weights and data, in the workspace's `models/`.

    Args:
        settings: The settings.
        model_id: The run's name.
        architecture: What to build.
        learning_rate: Adam's, constant.
        epochs: At the most; 0 judges the model as it is.
        initial_epoch: Epochs that count as done, by the run that this one continues.
        patience: Epochs without a lower validation loss after which training ends.
        class_balance: How the training set is balanced, see `balance`.
        batchsize: Pictures a step.
        augmented: Whether training pictures are varied, see `augment`.
        continues: The run whose stored model is the start; `architecture` then says which of its layers are trained.
        repetition: Tells runs apart that differ in nothing but chance; each has a seed of its own.

    Returns:
        The stored run; one without a folder where `ANIMALS10_ONLY` leaves it out or its ImageNet weights are missing.

    Raises:
        StudyError: The run that it continues is not there, the weights cannot be downloaded, or the data are not ready.
    """
    splits = load_splits(settings)
    kind = {"type": type(architecture).__name__}
    spec = {"model_id": model_id, "architecture": kind | asdict(architecture), "max_epochs": settings.max_epochs}
    spec |= {"learning_rate": learning_rate, "epochs": epochs, "initial_epoch": initial_epoch, "patience": patience}
    spec |= {"class_balance": class_balance, "batchsize": batchsize, "augmented": augmented, "repetition": repetition}
    spec |= {"image_size": settings.image_size, "seed": settings.seed + repetition - 1, "data_sha256": splits.sha256}
    weights, spec["weights"] = _weights(settings, architecture)
    left_out = bool(settings.only) and model_id not in settings.only
    why = "ANIMALS10_ONLY leaves it out." if left_out else spec["weights"] if weights == "missing" else ""
    if continues and continues.path:
        spec["continues"] = {"model_id": continues.model_id, "weights_sha256": continues.record["weights_sha256"]}
    elif continues and not why:
        raise StudyError(
            f"{model_id} continues {continues.model_id}; train that first. It is not there: {continues.why}"
        )
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]
    stored = sorted((settings.root / "models").glob(f"{model_id}-*-{digest}"))
    if stored and (left_out or not settings.force):
        run = Run(model_id, stored[-1])
        append_row(settings.results, run.record["row"], RESULT_COLUMNS)  # if a kill came between folder and row
        return run
    if why:
        print(f"{model_id} skipped: {why}")
        return Run(model_id, why=why)
    device = use_device()
    keras.backend.clear_session()
    keras.utils.set_random_seed(spec["seed"])
    if continues:
        model, _ = load_model(continues.file("model.keras"))
    elif isinstance(architecture, CNN):
        model = architecture.build(len(splits.class_names), settings.image_size)
    else:
        try:
            model = architecture.build(len(splits.class_names), settings.image_size, weights)
        except Exception as error:
            if "URL fetch failure" not in str(error):
                raise
            advice = "Connect this machine, or set ANIMALS10_WEIGHTS to a folder of <backbone>.weights.h5 or to random."
            raise StudyError(f"No ImageNet weights of {architecture.backbone}: {one_line(error)}. {advice}") from None
    if isinstance(architecture, Transfer):
        architecture.set_trainable(model)
    table = balance(splits.train, class_balance, settings.seed)
    if class_balance != "none":
        write_table(table, settings.data / BALANCES[class_balance])  # for people to open
    outcome, history = _fit(settings, splits, model, table, spec)
    predictions = predict_table(settings, model, splits.test, splits.class_names)
    now = datetime.now(UTC)
    run_id = f"{now:%Y%m%dT%H%M%S%f}-{digest}"
    outcome |= {"time": f"{now:%Y-%m-%d %H:%M:%S}", "run_id": run_id, "dataset": splits.dataset, "device": device}
    outcome |= {"n_train": len(table), "n_val": len(splits.val), "n_test": len(splits.test)}
    outcome |= {"trainable_params": count(model.trainable_weights), "commit": commit()} | metrics(predictions)
    outcome |= {"tensorflow": tf.__version__, "keras": keras.__version__, "params": model.count_params()}
    row = {name: (spec | outcome)[name] for name in RESULT_COLUMNS}
    weights_sha256 = hashlib.sha256(b"".join(value.tobytes() for value in model.get_weights())).hexdigest()
    record = {"spec": spec, "row": row, "class_names": splits.class_names, "weights_sha256": weights_sha256}
    folder = settings.root / "models" / f"{model_id}-{run_id}"
    aside = folder.with_name(f".{folder.name}")  # renamed when whole
    aside.mkdir(parents=True)
    save_model(model, aside / "model.keras", splits.class_names)
    write_table(history, aside / "history.csv")
    write_table(predictions, aside / "predictions.csv")
    (aside / "run.json").write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    aside.rename(folder)
    append_row(settings.results, row, RESULT_COLUMNS)
    return Run(model_id, folder)


def _fit(
    settings: Settings, splits: Splits, model: keras.Model, table: pd.DataFrame, spec: Mapping
) -> tuple[dict, pd.DataFrame]:
    """Trains a model in place; returns the figures of its training for `results.csv`, and its history."""
    first, batchsize = spec["initial_epoch"], spec["batchsize"]
    epochs = min(spec["epochs"], first + (settings.max_epochs or spec["epochs"]))
    jit_compile = "auto" if tf.config.list_physical_devices("GPU") else False  # XLA slows a CPU down many times
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(spec["learning_rate"]), loss, metrics=["accuracy"], jit_compile=jit_compile)
    training = training_batches(settings, table, range(first, epochs), batchsize, spec["augmented"], spec["seed"])
    process, memory = psutil.Process(), [psutil.Process().memory_info().rss]
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: memory.append(process.memory_info().rss))
    stopping = keras.callbacks.EarlyStopping(patience=spec["patience"], restore_best_weights=True)
    callbacks = [stopping, watch, TqdmCallback(verbose=0, tqdm_class=tqdm, desc=spec["model_id"])]
    options = {"epochs": epochs, "initial_epoch": first, "steps_per_epoch": -(-len(table) // batchsize), "verbose": 0}
    started = time.perf_counter()
    validation = batches(settings, splits.val, batchsize)
    fitted = model.fit(training, validation_data=validation, shuffle=False, callbacks=callbacks, **options)
    seconds = time.perf_counter() - started
    history = pd.DataFrame({"epoch": [epoch + 1 for epoch in fitted.epoch]} | fitted.history)
    outcome = {"epochs_run": len(history), "best_epoch": None, "acc_train": None, "acc_val": None}
    if len(history):
        best = history.loc[history.val_loss.idxmin()]
        outcome |= {"best_epoch": int(best.epoch), "acc_train": best.accuracy, "acc_val": best.val_accuracy}
    return outcome | {"train_seconds": round(seconds, 1), "peak_memory_mb": round(max(memory) / 1e6)}, history


def _weights(settings: Settings, architecture: CNN | Transfer) -> tuple[str | None, str]:
    """Returns what keras.applications takes as weights and their name in `results.csv`, or `missing` and why."""
    if isinstance(architecture, CNN):
        return None, "none"
    if settings.weights in ("random", "imagenet"):
        return (None if settings.weights == "random" else "imagenet"), settings.weights
    path = Path(settings.weights) / f"{architecture.backbone}.weights.h5"
    if not path.exists():
        return "missing", f"there is no {path.name} in {path.parent} (ANIMALS10_WEIGHTS)."
    with path.open("rb") as file:
        return str(path), f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"


def count(weights: Sequence[keras.Variable]) -> int:
    """Returns the number of values in a list of weights."""
    return int(sum(np.prod(weight.shape) for weight in weights))


def commit() -> str:
    """Returns the repository's commit, with `-dirty` where tracked files differ from it; nothing outside git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


# ── Evaluation and results ────────────────────────────────────────────────────────────────────────────────────────────


def predict_table(
    settings: Settings, model: keras.Model, table: pd.DataFrame, class_names: Sequence[str]
) -> pd.DataFrame:
    """Returns a model's opinion of each picture of a table in the form of `Run.predictions`."""
    probabilities = model.predict(batches(settings, table), verbose=0)
    opinion = table[["relpath", "category"]].reset_index(drop=True)
    opinion["predicted"] = [class_names[label] for label in probabilities.argmax(axis=1)]
    opinion["confidence"] = probabilities.max(axis=1)
    return opinion.join(pd.DataFrame(probabilities, columns=[f"p_{name}" for name in class_names]))


def metrics(predictions: pd.DataFrame) -> dict[str, float]:
    """Computes the figures of `results.csv`, from 0 to 1, from a table of predictions.

    Precision, recall and F1 are weighted by class size; `accuracy_low` and `accuracy_high` are the 95 % Wilson score
    interval (E. B. Wilson, JASA 22, 1927) over the pictures.
    """
    truth, predicted = predictions.category, predictions.predicted
    scores = precision_recall_fscore_support(truth, predicted, average="weighted", zero_division=0)[:3]
    interval = binomtest(int((truth == predicted).sum()), len(truth)).proportion_ci(method="wilson")
    names = ("accuracy", "precision", "recall", "f1_score", "accuracy_low", "accuracy_high")
    return dict(zip(names, map(float, (accuracy_score(truth, predicted), *scores, *interval)), strict=True))


def reports(*runs: Run) -> pd.DataFrame:
    """Returns precision, recall and F1 of each class, and their averages, of stored runs side by side.

    The last column, `pictures`, counts the test pictures of each class.
    """
    tables, trained = {}, [run for run in runs if run.path]
    for run in trained:
        columns = run.predictions.category, run.predictions.predicted
        report = pd.DataFrame(classification_report(*columns, output_dict=True, zero_division=0)).T.drop("accuracy")
        tables[f"{run.model_id}, {run.record['row']['epochs']} epochs"] = report.drop(columns="support")
    if not trained:
        return pd.DataFrame()
    return pd.concat(tables, axis=1).assign(pictures=report.support.astype(int))


def results_table(settings: Settings) -> pd.DataFrame:
    """Returns `results.csv`, best accuracy first; raises StudyError if there are no results yet."""
    if not settings.results.exists():
        raise StudyError(f"There is no {short(settings.results)} yet: run notebook 02 or 03 first.")
    return read_table(settings.results).sort_values(["accuracy", "time"], ascending=[False, True], ignore_index=True)


def published_table(settings: Settings) -> pd.DataFrame:
    """Joins the published runs of the workspace's image size with the latest measured run of each.

    Returns:
        One row a published run, in the order of publication, with the columns of `data/published-results.csv`, and of
        `results.csv` with the suffix `_measured` where both have them; then `difference` (of the accuracies, measured
        less published) and `verdict`: whether the published accuracy lies inside the 95 % interval of the measured one.
        Only runs on all of Animals-10 with trained weights are judged; of the others it says why they are not.
    """
    published = read_table(PUBLISHED).query(f"image_size == {settings.image_size}")
    key = ["image_size", "model_id", "learning_rate", "epochs", "repetition"]
    measured = results_table(settings).sort_values("time").drop_duplicates(key, keep="last")
    table = published.merge(measured, "left", key, suffixes=("", "_measured"))
    table["difference"] = table.accuracy_measured - table.accuracy
    inside = table.accuracy.between(table.accuracy_low, table.accuracy_high)
    table["verdict"] = inside.map({True: "inside the interval", False: "outside the interval"})
    table.loc[table.weights == "random", "verdict"] = "not judged: random weights"
    elsewhere = table.dataset != "animals10"
    table.loc[elsewhere, "verdict"] = "not judged: measured on " + table.dataset[elsewhere].astype("str")
    table.loc[table.dataset.isna(), "verdict"] = "not measured"
    return table


def parameter_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Compares the parameters of stored runs with the published counts, by `run` and `epochs`.

    Returns:
        `total` and `trained` as counted, `published total` and `published trained` (missing where the study gave none),
        and `equal`: whether all that was published agrees. Runs that are not trained are left out.
    """
    rows, columns = [run.record["row"] for run in runs if run.path], "model_id epochs params trainable_params".split()
    counted = pd.DataFrame(rows, columns=columns).drop_duplicates()
    published = read_table(PUBLISHED).query("image_size == 224").drop_duplicates(["model_id", "epochs"])
    table = counted.merge(published[counted.columns], "left", ["model_id", "epochs"], suffixes=("", "_published"))
    table.columns = ["run", "epochs", "total", "trained", "published total", "published trained"]
    table = table.astype(dict.fromkeys(table.columns[1:], "Int64"))
    pairs = [table[name].eq(table[f"published {name}"]).fillna(True) for name in ("total", "trained")]
    return table.assign(equal=(pairs[0] & pairs[1]).map({True: "yes", False: "no"}))


# ── Figures ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def plot_pictures(pictures: Sequence, titles: Sequence[str], columns: int = 5) -> plt.Figure:
    """Draws pictures (whatever `imshow` takes, or paths of files) in a grid, each under its title."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.2 * columns, 2.4 * rows), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, picture, title in zip(axes.flat, pictures, titles, strict=False):
        axis.imshow(plt.imread(picture) if isinstance(picture, Path) else picture)
        axis.set_title(title, fontsize=9)
    plt.close(figure)  # the notebook draws what the cell returns, and would draw an open figure again
    return figure


def plot_run(run: Run) -> plt.Figure:
    """Draws a run's learning curves, with the epoch that was kept, and its confusion matrix over the test pictures."""
    row, history, predictions = run.record["row"], run.history, run.predictions
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.8), width_ratios=(1, 1, 1.2), layout="constrained")
    for axis, name in zip(axes, ("accuracy", "loss"), strict=False):
        if len(history):
            axis.plot(history.epoch, history[name], "o-", color="#0072B2", markersize=3, label="training")
            axis.plot(history.epoch, history[f"val_{name}"], "s--", color="#D55E00", markersize=3, label="validation")
            axis.axvline(row["best_epoch"], color="grey", linewidth=1, linestyle=":", label="epoch kept")
            axis.legend()
            axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(title=name if len(history) else f"{name}: no training", xlabel="epoch")
    labels, options = run.record["class_names"], {"normalize": "true", "cmap": "Blues", "xticks_rotation": 90}
    options |= {"labels": labels, "values_format": ".0%", "colorbar": False, "text_kw": {"fontsize": 8}, "ax": axes[2]}
    drawn = ConfusionMatrixDisplay.from_predictions(predictions.category, predictions.predicted, **options)
    for text in drawn.text_.flat:  # zeros stay blank, so that mistakes stand out; past 20 classes colour must do
        text.set_visible(text.get_text() != "0%" and len(labels) <= 20)
    axes[2].set(title="share of each true class", ylabel="true", xlabel="predicted")
    name = f"{row['model_id']} on {row['dataset']}, weights: {row['weights']}"
    interval = f"{row['accuracy_low']:.3f} to {row['accuracy_high']:.3f}"
    figure.suptitle(f"{name}\ntest accuracy {row['accuracy']:.3f} (95 % interval {interval}, {row['n_test']} pictures)")
    plt.close(figure)
    return figure


def show_run(run: Run) -> None:
    """Shows a run's figure in a notebook, or says why the run is not there."""
    if run.path is None:
        return print(f"{run.model_id}: not trained here. {run.why}")
    display(plot_run(run))
