"""What the three notebooks share, in the order in which photographs flow through the study.

settings → photographs → splits → datasets → training → evaluation and results → figures

Mechanisms that know nothing of settings have modules of their own: `storage` (files that survive a kill), `pictures`
(one file of a photograph), `networks` (what is trained), `activations` (what frozen layers say, kept on disk),
`evaluation` (what runs are worth), `figures` (what a reader sees), `classification` (other people's pictures).

Importing this module starts nothing, reads no environment variable and changes no global of TensorFlow.
"""

import difflib
import hashlib
import json
import os
import platform
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import filelock
import keras
import numpy as np
import pandas as pd
import psutil
import pydantic
import tensorflow as tf
from PIL import Image
from sklearn.model_selection import train_test_split

import activations
import pictures
import storage
from classification import classify, find_pictures  # noqa: F401 - handed on to the notebooks, as all of figures
from evaluation import compare_runs, metrics, parameter_table, predict_table, reports  # noqa: F401
from figures import (  # noqa: F401
    grad_cam,
    plot_classified,
    plot_comparison,
    plot_grad_cam,
    plot_mistakes,
    plot_pictures,
    plot_run,
    show,
)
from networks import CNN, Progress, Recipe, ResumableStopping, Transfer, count, if_installed, is_news, load_model
from networks import layer_table as layer_table  # handed on to the notebooks
from networks import save_model as save_model
from pictures import on_all_cores, one_line
from pictures import to_rgb as to_rgb
from storage import REPOSITORY, Run, StudyError, append_row, file_sha256, read_table, short, whole_file, write_table

# ── Settings ──────────────────────────────────────────────────────────────────────────────────────────────────────────

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
        store: Precision in which the answers of frozen layers are kept on disk; `off` asks them anew in every epoch.
        views: Augmented views of each training photograph in that store; epochs take turns with them.
        deterministic: Whether a GPU must repeat itself to the last digit (slower; a CPU always does).
        tensorboard: Whether each training writes a folder of `logs/` for TensorBoard.
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
    store: Literal["float16", "float32", "off"] = "float16"
    views: int = pydantic.Field(4, ge=1, le=100)
    deterministic: bool = False
    tensorboard: Annotated[bool, pydantic.AfterValidator(if_installed)] = False

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
            sample = {"root": REPOSITORY / "build" / "sample", "raw": SAMPLE, "weights": "random"}
            sample |= {"max_epochs": 1, "views": 1}
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
    """Returns every `model_id` that the notebooks train."""
    return sorted({model_id for model_id, *_ in storage.planned_runs(NOTEBOOKS)})


def holds_photographs(folder: Path) -> bool:
    """Tells whether a folder holds class folders that are not empty."""
    folders = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
    return any(any(pictures.files_in(path)) for path in folders)


def use_device(deterministic: bool = False) -> str:
    """Sets mixed float16 where there is a GPU and float32 on a CPU; returns the device in words."""
    if deterministic:
        tf.config.experimental.enable_op_determinism()
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
PREPROCESSING = "upright, on white, bilinear, JPEG quality 90"  # what `resize_photographs` does


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
        storage.sweep(folder)
    with storage.plainly(settings.raw, "read"):
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
            with pictures.open_photograph(path) as picture:
                row |= {"format": picture.format, "category": categories[path.parent.name]}
                row |= {"width": picture.width, "height": picture.height, "mode": picture.mode}
                row |= {"channels": len(picture.getbands()), "bytes": path.stat().st_size}
                return row | {"sha256": file_sha256(path)}
        except Exception as error:  # whatever is wrong with one file must not stop the others: it is recorded
            return row | {"reason": pictures.reason_of(error)}

    paths = [path for path in entries if path not in folders]
    paths += [path for folder in folders for path in pictures.files_in(folder)]
    columns = "relpath name format category width height mode channels bytes sha256 reason".split()
    table = pd.DataFrame(on_all_cores(look, paths, "scan"), columns=columns).sort_values("relpath", ignore_index=True)
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
        storage.sweep(processed / category)

    def make(row: tuple) -> str | None:
        target = processed / row.relpath
        if pictures.up_to_date(target, row.sha256, size):
            return None
        try:
            with pictures.open_photograph(settings.raw / row.source) as photograph:
                picture = pictures.square(photograph, size)
        except Exception as error:  # as in the scan
            return pictures.reason_of(error)
        with whole_file(target) as temporary:
            picture.save(temporary, "JPEG", quality=pictures.JPEG_QUALITY, comment=row.sha256)
        return None

    plan["reason"] = on_all_cores(make, list(plan.itertuples()), "resize")
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

    for row, found in zip(todo, on_all_cores(look, todo, "check")):
        known[row.relpath, row.sha256] = found
    figures = pd.DataFrame([known[key] for key in zip(checks.relpath, checks.sha256)])
    checks = checks.join(figures)
    return write_table(checks.assign(group=pictures.groups(checks)), path)


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
    storage.check_parts(parts, overview, settings.data, f"or {anew}")
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


def augment(picture: tf.Tensor, seed: tf.Tensor, upright: bool = False) -> tf.Tensor:
    """Varies a picture: crop and resize, flips (sideways only if `upright`), hue, saturation, contrast, brightness.

    `picture` is float32, (size, size, 3), from 0 to 255, and so is what is returned; `seed` is int, (2,).
    """
    seeds = tf.unstack(tf.random.split(seed, 8))
    size = picture.shape[0]
    scale = tf.random.stateless_uniform([], seeds[0], *AUGMENTATION["crop"])
    edge = tf.cast(tf.round(scale * size), tf.int32)
    picture = tf.image.stateless_random_crop(picture / 255, [edge, edge, 3], seeds[1])
    picture = tf.image.resize(picture, [size, size])
    picture = tf.image.stateless_random_flip_left_right(picture, seeds[2])
    picture = picture if upright else tf.image.stateless_random_flip_up_down(picture, seeds[3])
    picture = tf.image.stateless_random_hue(picture, AUGMENTATION["hue"], seeds[4])
    picture = tf.image.stateless_random_saturation(picture, *AUGMENTATION["saturation"], seeds[5])
    picture = tf.image.stateless_random_contrast(picture, *AUGMENTATION["contrast"], seeds[6])
    picture = tf.image.stateless_random_brightness(picture, AUGMENTATION["brightness"], seeds[7])
    return 255 * tf.clip_by_value(picture, 0, 1)


def batches(settings: Settings, table: pd.DataFrame, batchsize: int = 32) -> tf.data.Dataset:
    """Returns the pictures of a table in its order: batches (n, size, size, 3), float32, 0 to 255, with labels."""
    dataset = tf.data.Dataset.from_tensor_slices(_files(settings, table))
    dataset = dataset.map(lambda *item: _read(*item, settings.image_size), num_parallel_calls=os.cpu_count())
    return activations.steady(dataset.batch(batchsize))


def training_batches(
    settings: Settings,
    table: pd.DataFrame,
    epochs: range,
    batchsize: int = 32,
    augmented: bool = True,
    seed: int = 5,
    upright: bool = False,
) -> tf.data.Dataset:
    """Returns the pictures of all epochs, one epoch after the other, each in an order and a variation of its own.

    Order and variation depend on the seed, the epoch and the row of the table alone: they are the same in every run.
    File names are shuffled, not pixels: memory does not grow with the number of photographs.

    Returns:
        Batches as `batches` gives them; `ceil(len(table) / batchsize)` an epoch.
    """
    paths, labels = _files(settings, table)

    def epoch_of(epoch: tf.Tensor) -> tf.data.Dataset:
        key, order = _shuffled(len(table), seed, epoch)

        def load(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            picture, label = _read(tf.gather(paths, index), tf.gather(labels, index), settings.image_size)
            return (augment(picture, tf.random.fold_in(key, index), upright) if augmented else picture), label

        dataset = tf.data.Dataset.from_tensor_slices(order).map(load, num_parallel_calls=os.cpu_count())
        return dataset.batch(batchsize)

    return activations.steady(tf.data.Dataset.range(epochs.start, epochs.stop).flat_map(epoch_of))


def view_batches(
    settings: Settings,
    table: pd.DataFrame,
    views: int,
    augmented: bool,
    start: int = 0,
    batchsize: int = 32,
    upright: bool = False,
) -> tf.data.Dataset:
    """Returns all pictures of a table in a first view, then all in a second, and so on, from a row of that list on.

    A view is a variation of its own where `augmented`; it depends on the settings' seed, the view and the row alone.

    Returns:
        Batches as `batches` gives them.
    """
    paths, labels = _files(settings, table)

    def load(row: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        view, index = row // len(table), row % len(table)
        picture, label = _read(tf.gather(paths, index), tf.gather(labels, index), settings.image_size)
        key = tf.random.fold_in(tf.random.fold_in(tf.constant([settings.seed, 1], tf.int64), view), index)
        return (augment(picture, key, upright) if augmented else picture), label

    dataset = tf.data.Dataset.range(start, views * len(table)).map(load, num_parallel_calls=os.cpu_count())
    return activations.steady(dataset.batch(batchsize))


def _shuffled(n: int, seed: int, epoch: int | tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns an epoch's key for random numbers, (2,), and its order of n pictures, int32 (n,)."""
    # Stateless throughout: a seeded `Dataset.shuffle` would depend on TensorFlow's global seed, too.
    key = tf.random.fold_in(tf.constant([seed, 0], tf.int64), tf.cast(epoch, tf.int64))
    return key, tf.random.experimental.stateless_shuffle(tf.range(n), key)


def _files(settings: Settings, table: pd.DataFrame) -> tuple[tf.Tensor, tf.Tensor]:
    paths = [os.fsencode(settings.data / "processed" / relpath) for relpath in table.relpath]
    return tf.constant(paths), tf.constant(table.label, tf.int32)


def _read(path: tf.Tensor, label: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    # The accurate method is the one that gives the same pixels on every machine.
    picture = tf.image.decode_jpeg(tf.io.read_file(path), channels=3, dct_method="INTEGER_ACCURATE")
    return tf.ensure_shape(tf.cast(picture, tf.float32), (size, size, 3)), label


# ── Training ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# The original study's columns first, under their names; code written for its table still reads this one.
RESULT_COLUMNS = tuple(
    """
    time model_id learning_rate epochs batchsize acc_train acc_val accuracy precision recall f1_score run_id dataset
    image_size repetition n_train n_val n_test class_balance weights params trainable_params epochs_run best_epoch
    accuracy_low accuracy_high train_seconds peak_memory_mb seed device tensorflow keras commit data_sha256
    """.split()
)


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
    recipe: Recipe = Recipe(),  # noqa: B008 - it cannot be changed
) -> Run:
    """Trains, judges and stores a run and appends its row to `results.csv`, unless it is finished already.

    Adam on the cross-entropy, early stopping on the validation loss, the weights of the best epoch kept, judged on the
    test pictures. Finished means: the same specification, seed, weights and data, in the workspace's `models/`.

    Args:
        settings: The settings.
        model_id: The run's name.
        architecture: What to build.
        learning_rate: Adam's, the highest if it changes.
        epochs: At the most; 0 judges the model as it is.
        initial_epoch: Epochs that count as done, by the run that this one continues.
        patience: Epochs without a lower validation loss after which training ends.
        class_balance: How the training set is balanced, see `balance`.
        batchsize: Pictures a step.
        augmented: Whether training pictures are varied, see `augment`.
        continues: The run whose stored model is the start; `architecture` then says which of its layers are trained.
        repetition: Tells runs apart that differ in nothing but chance; each has a seed of its own.
        recipe: What is done otherwise than in the original study.

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
    spec |= {"recipe": asdict(recipe)} if recipe != Recipe() else {}
    weights, spec["weights"] = _weights(settings, architecture)
    if isinstance(architecture, Transfer):
        spec |= {"store": settings.store, "views": settings.views if augmented and settings.store != "off" else None}
    left_out = bool(settings.only) and model_id not in settings.only
    why = "ANIMALS10_ONLY leaves it out." if left_out else spec["weights"] if weights == "missing" else ""
    if continues and continues.path:
        spec["continues"] = {"model_id": continues.model_id, "weights_sha256": continues.record["weights_sha256"]}
    elif continues and not why:
        raise StudyError(
            f"{model_id} continues {continues.model_id}; train that first. It is not there: {continues.why}"
        )
    digest = hashlib.sha256(json.dumps(spec, sort_keys=True).encode()).hexdigest()[:12]
    models = settings.root / "models"
    models.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(models / f".{digest}.lock"):  # two processes must not train the same run
        stored = sorted(models.glob(f"{model_id}-*-{digest}"))
        if stored and (left_out or not settings.force):
            run = Run(model_id, stored[-1])
            append_row(settings.results, run.record["row"], RESULT_COLUMNS)  # if a kill came between folder and row
            return run
        if why:
            print(f"{model_id} skipped: {why}")
            return Run(model_id, why=why)
        run = _execute(settings, splits, spec, architecture, weights, continues, models / f".{model_id}-{digest}")
        append_row(settings.results, run.record["row"], RESULT_COLUMNS)
        return run


def _execute(
    settings: Settings,
    splits: Splits,
    spec: Mapping,
    architecture: CNN | Transfer,
    weights: str | None,
    continues: Run | None,
    work: Path,
) -> Run:
    """Builds, trains, judges and stores one run; in `work` it leaves what a later start goes on from."""
    clock = {"start": time.perf_counter()}
    storage.sweep(work)
    device = use_device(settings.deterministic)
    keras.backend.clear_session()
    keras.utils.set_random_seed(spec["seed"])
    model = load_model(continues.file("model.keras"))[0] if continues else None
    if model is None and isinstance(architecture, CNN):
        model = architecture.build(len(splits.class_names), settings.image_size)
    elif model is None:
        try:
            model = architecture.build(len(splits.class_names), settings.image_size, weights)
        except Exception as error:
            if "URL fetch failure" not in str(error):
                raise
            advice = "Connect this machine, or set ANIMALS10_WEIGHTS to a folder of <backbone>.weights.h5 or to random."
            raise StudyError(f"No ImageNet weights of {architecture.backbone}: {one_line(error)}. {advice}") from None
    if isinstance(architecture, Transfer):
        architecture.set_trainable(model)
    clock["build"] = time.perf_counter()
    table = balance(splits.train, spec["class_balance"], settings.seed)
    if spec["class_balance"] != "none":
        write_table(table, settings.data / BALANCES[spec["class_balance"]])  # for people to open
    inputs = _inputs(settings, splits, model, architecture, table, spec)
    clock["activations"] = time.perf_counter()
    outcome, history = _fit(settings, inputs, spec, table.label, work)
    clock["fit"] = time.perf_counter()
    predictions = predict_table(inputs.model, inputs.test, splits.test, splits.class_names)
    clock["predict"] = time.perf_counter()
    now = datetime.now(UTC)
    run_id = f"{now:%Y%m%dT%H%M%S%f}-{work.name.rpartition('-')[2]}"
    outcome |= {"time": f"{now:%Y-%m-%d %H:%M:%S}", "run_id": run_id, "dataset": splits.dataset, "device": device}
    outcome |= {"n_train": len(table), "n_val": len(splits.val), "n_test": len(splits.test)}
    outcome |= {"trainable_params": count(model.trainable_weights), "commit": storage.commit()} | metrics(predictions)
    outcome |= {"tensorflow": tf.__version__, "keras": keras.__version__, "params": model.count_params()}
    record = {"spec": spec, "row": {name: (spec | outcome)[name] for name in RESULT_COLUMNS}}
    record |= {"class_names": splits.class_names, "weights_sha256": activations.weights_sha256(model.layers)}
    work.mkdir(parents=True, exist_ok=True)
    save_model(model, work / "model.keras", splits.class_names)
    write_table(history, work / "history.csv")
    write_table(predictions, work / "predictions.csv")
    clock["save"] = time.perf_counter()
    steps = list(clock)
    record["seconds"] = {step: round(clock[step] - clock[before], 2) for before, step in pairwise(steps)}
    photographs = sorted(pd.concat([splits.train, splits.val, splits.test]).sha256)
    record["photographs_sha256"] = hashlib.sha256("".join(photographs).encode()).hexdigest()  # in whatever parts
    record["environment"] = environment() | {"deterministic": settings.deterministic}
    record["files_sha256"] = {name: file_sha256(work / name) for name in storage.RUN_FILES}
    with whole_file(work / "run.json") as temporary:
        temporary.write_text(json.dumps(record, indent=1, ensure_ascii=False), encoding="utf-8")
    (work / "training.npz").unlink(missing_ok=True)
    folder = work.with_name(f"{spec['model_id']}-{run_id}")
    work.rename(folder)  # from here on the run is there
    return Run(spec["model_id"], folder)


@dataclass(frozen=True)
class Inputs:
    """What `fit` trains and is fed with: a whole network and pixels, or its end and stored activations.

    `model` shares its layers with the whole network. `training` gives the batches from an epoch (from 0) on, `steps` of
    them an epoch; `frozen` are the dropouts among layers that are not trained. `light` says that a step takes less time
    than Python between two of them.
    """

    model: keras.Model
    training: Callable
    validation: tf.data.Dataset
    test: tf.data.Dataset
    steps: int
    frozen: tuple[keras.layers.Dropout, ...]
    light: bool = False


def _inputs(
    settings: Settings,
    splits: Splits,
    model: keras.Model,
    architecture: CNN | Transfer,
    table: pd.DataFrame,
    spec: dict,
) -> Inputs:
    batchsize, seed, augmented = spec["batchsize"], spec["seed"], spec["augmented"]
    upright = Recipe(**spec.get("recipe", {})).upright
    steps, transfer, frozen = -(-len(table) // batchsize), isinstance(architecture, Transfer), ()
    if transfer:
        layers = model.layers[: architecture.end(model) - architecture.unfreeze_last]
        frozen = tuple(layer for layer in layers if isinstance(layer, keras.layers.Dropout))
    if not transfer or settings.store == "off":

        def training(epoch: int) -> tf.data.Dataset:
            epochs = range(epoch, spec["epochs"])
            return training_batches(settings, table, epochs, batchsize, augmented, seed, upright)

        parts = [batches(settings, part) for part in (splits.val, splits.test)]
        return Inputs(model, training, *parts, steps, frozen)
    title, boundaries = architecture.backbone, architecture.boundaries(model)
    outputs = {name: layer.output for name, layer in boundaries.items()}
    bottom = keras.Model(model.input, list(outputs.values()))
    answer = cache(lambda: activations.inference(bottom))  # built when first needed
    network = {"backbone": title, "image_size": settings.image_size, "preprocessing": PREPROCESSING}
    network |= {"weights_sha256": activations.weights_sha256(model.layers[: architecture.end(model)])}
    network |= {"cut": boundaries["cut"].name, "policy": keras.config.dtype_policy().name, "device": use_device()}
    network |= {"tensorflow": tf.__version__, "keras": keras.__version__}

    def stored(part: pd.DataFrame, name: str, dtype: str, views: int = 1, augmented: bool = False) -> np.ndarray:
        def compute(start: int) -> Iterator[list[np.ndarray]]:
            for pixels, _ in view_batches(settings, part, views, augmented, start, upright=upright):
                yield [tf.cast(array, dtype).numpy() for array in answer()(pixels)]  # NumPy casts slowly

        photographs = hashlib.sha256(os.fsencode(repr([*zip(part.relpath, part.sha256)]))).hexdigest()
        key = network | {
            "photographs": photographs,
            "views": views,
            "augmentation": AUGMENTATION | ({"upright": True} if upright else {}) if augmented else None,
        }
        key |= {"seed": settings.seed if augmented else None}
        shapes = {name: output.shape[1:] for name, output in outputs.items()}
        where = settings.data / "activations", f"{title}-{name}"
        arrays = activations.stored(*where, key, shapes, dtype, views * len(part), compute)
        return arrays["cut" if architecture.unfreeze_last else "pooled"]

    def whole(part: pd.DataFrame, name: str) -> tf.data.Dataset:
        rows = np.arange(len(part))  # in float32: what is found here must hold for the whole model
        dataset = activations.batches(stored(part, name, "float32"), part.label.to_numpy("int32"), lambda: [rows])
        return dataset.apply(tf.data.experimental.assert_cardinality(-(-len(part) // 32)))  # which `fit` asks for

    views, distinct = spec["views"] or 1, table.drop_duplicates("relpath", ignore_index=True)
    position = pd.Series(distinct.index, distinct.relpath)[table.relpath].to_numpy()
    train = stored(distinct, "train", settings.store, views, augmented) if spec["epochs"] else None

    def rows_of(epoch: int) -> np.ndarray:
        return epoch % views * len(distinct) + position[_shuffled(len(table), seed, epoch)[1].numpy()]

    def training(first: int) -> tf.data.Dataset:
        labels = distinct.label.to_numpy("int32")
        return activations.batches(train, labels, lambda: map(rows_of, range(first, spec["epochs"])), batchsize)

    light = not architecture.unfreeze_last
    end = keras.Model(outputs["cut" if architecture.unfreeze_last else "pooled"], model.output)
    return Inputs(end, training, whole(splits.val, "val"), whole(splits.test, "test"), steps, frozen, light)


def _fit(settings: Settings, inputs: Inputs, spec: Mapping, labels: pd.Series, work: Path) -> tuple[dict, pd.DataFrame]:
    """Trains a model in place; returns the figures of its training for `results.csv`, and its history."""
    first, model = spec["initial_epoch"], inputs.model
    epochs = min(spec["epochs"], first + (spec["max_epochs"] or spec["epochs"]))
    jit_compile = "auto" if tf.config.list_physical_devices("GPU") else False  # XLA slows a CPU down many times
    recipe, at_once = Recipe(**spec.get("recipe", {})), inputs.steps if inputs.light else 1
    options = {"jit_compile": jit_compile, "steps_per_execution": at_once}
    recipe.compile(model, spec["learning_rate"], inputs.steps * (epochs - first), **options)
    tf.get_logger().addFilter(is_news)
    process, memory = psutil.Process(), [psutil.Process().memory_info().rss]
    watch = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: memory.append(process.memory_info().rss))
    stopping = ResumableStopping(work / "training.npz", spec["patience"], first)
    start = min(stopping.next_epoch, epochs)
    planned = [run for run in storage.planned_runs(NOTEBOOKS) if not settings.only or run[0] in settings.only]
    run = tuple(spec[name] for name in storage.RUN_KEY)
    place = f"[{planned.index(run) + 1}/{len(planned)}] " if run in planned else ""  # not of a reader's own cells
    bar = Progress(place + spec["model_id"], range(start, epochs), inputs.steps)
    options = {"epochs": epochs, "initial_epoch": start, "steps_per_epoch": inputs.steps, "shuffle": False}
    options |= {"class_weight": recipe.weights_of(labels)}
    rates = [layer.rate for layer in inputs.frozen]
    for layer in inputs.frozen:  # frozen layers answer as they will when the model is used
        layer.rate = 0
    options |= {"callbacks": [stopping, watch, bar], "verbose": 0}
    if settings.tensorboard:
        logs = settings.root / "logs" / f"{spec['model_id']}-{datetime.now(UTC):%Y%m%dT%H%M%S}"
        options["callbacks"].append(keras.callbacks.TensorBoard(logs, write_graph=False))
    if start < epochs:
        model.fit(inputs.training(start), validation_data=inputs.validation, **options)
    else:  # there is nothing to train, or a kill came after the last epoch
        stopping.restore(model)
    for layer, rate in zip(inputs.frozen, rates):
        layer.rate = rate
    history = pd.DataFrame(stopping.history, columns=["epoch", "accuracy", "loss", "val_accuracy", "val_loss"])
    outcome = {"epochs_run": len(history), "best_epoch": None, "acc_train": None, "acc_val": None}
    if len(history):
        best = history.loc[history.val_loss.idxmin()]
        outcome |= {"best_epoch": int(best.epoch), "acc_train": best.accuracy, "acc_val": best.val_accuracy}
    return outcome | {"train_seconds": round(stopping.seconds, 1), "peak_memory_mb": round(max(memory) / 1e6)}, history


def _weights(settings: Settings, architecture: CNN | Transfer) -> tuple[str | None, str]:
    """Returns what keras.applications takes as weights and their name in `results.csv`, or `missing` and why."""
    if isinstance(architecture, CNN):
        return None, "none"
    if settings.weights in ("random", "imagenet"):
        return (None if settings.weights == "random" else "imagenet"), settings.weights
    path = Path(settings.weights) / f"{architecture.backbone}.weights.h5"
    if not path.exists():
        return "missing", f"there is no {path.name} in {path.parent} (ANIMALS10_WEIGHTS)."
    return str(path), f"{path.name} {file_sha256(path)[:12]}"


def environment() -> dict:
    """Returns what besides the specification may move a figure's last digits: versions and thread counts."""
    versions = {"python": platform.python_version(), "numpy": np.__version__, "pillow": Image.__version__}
    versions |= {"tensorflow": tf.__version__, "keras": keras.__version__, "platform": platform.platform()}
    threads = {"cores": os.cpu_count(), "intra_op": tf.config.threading.get_intra_op_parallelism_threads()}
    threads |= {"inter_op": tf.config.threading.get_inter_op_parallelism_threads()}
    return versions | {"threads": threads}


# ── Evaluation and results ────────────────────────────────────────────────────────────────────────────────────────────


def results_table(settings: Settings) -> pd.DataFrame:
    """Returns `results.csv`, best accuracy first, with a column `standing` and what `make efficiency` has measured.

    Among the runs on the same test pictures (`data_sha256`), `standing` is `best` for the most accurate, `not worse`
    for those that `compare_runs` cannot tell from it (p ≥ 0.05, without correction for their number), and empty for
    others and for runs whose folders are not there. `model_mb`, `multiply_adds` (millions), `predict_ms` and `batch_ms`
    (milliseconds a picture, asked alone and 32 at a time) are missing where they were not measured.

    Raises:
        StudyError: There are no results yet.
    """
    if not settings.results.exists():
        raise StudyError(f"There is no {short(settings.results)} yet: run notebook 02 or 03 first.")
    table = read_table(settings.results).sort_values(["accuracy", "time"], ascending=[False, True], ignore_index=True)
    names = table.model_id + "-" + table.run_id
    runs = [Run(name, settings.root / "models" / name) for name in names]
    table["standing"], columns = "", list(storage.EFFICIENCY)
    table[columns] = pd.DataFrame([run.efficiency for run in runs], table.index, columns, float)
    for _, rows in table.groupby("data_sha256"):
        stored = [index for index in rows.index if (runs[index].path / "predictions.csv").exists()]
        for index in stored:
            equal = compare_runs(runs[stored[0]], runs[index])["p_value"] >= 0.05
            table.loc[index, "standing"] = "best" if index == stored[0] else "not worse" if equal else ""
    return table


def published_runs(settings: Settings) -> pd.DataFrame:
    """Returns the original study's runs; none where the workspace's classes are not its ten: they would say nothing."""
    published, path = read_table(PUBLISHED), settings.data / "processed-overview.csv"
    if path.exists() and set(read_table(path).category) != set(ENGLISH):
        return published.head(0)
    return published


def published_table(settings: Settings) -> pd.DataFrame:
    """Joins the published runs of the workspace's image size with the latest measured run of each.

    Returns:
        One row a published run, in the order of publication, with the columns of `data/published-results.csv`, and of
        `results.csv` with the suffix `_measured` where both have them; then `difference` (of the accuracies, measured
        less published) and `verdict`: whether the published accuracy lies inside the 95 % interval of the measured one.
        Only runs on all of Animals-10 with trained weights are judged; of the others it says why they are not.
    """
    published = published_runs(settings).query(f"image_size == {settings.image_size}")
    key = ["image_size", *storage.RUN_KEY]
    none = published.head(0).reindex(columns=[*RESULT_COLUMNS, "standing", *storage.EFFICIENCY])
    measured = results_table(settings) if settings.results.exists() else none
    measured = measured.sort_values("time").drop_duplicates(key, keep="last")
    table = published.merge(measured, "left", key, suffixes=("", "_measured"))
    table["difference"] = table.accuracy_measured - table.accuracy
    inside = table.accuracy.between(table.accuracy_low, table.accuracy_high)
    table["verdict"] = inside.map({True: "inside the interval", False: "outside the interval"})
    table.loc[table.weights == "random", "verdict"] = "not judged: random weights"
    elsewhere = table.dataset != "animals10"
    table.loc[elsewhere, "verdict"] = "not judged: measured on " + table.dataset[elsewhere].astype("str")
    table.loc[table.dataset.isna(), "verdict"] = "not measured"
    return table


# ── Figures ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def show_run(run: Run) -> None:
    """Shows a run's figure in a notebook, or says why the run is not there."""
    if run.path is None:
        return print(f"{run.model_id}: not trained here. {run.why}")
    show(plot_run(run))
