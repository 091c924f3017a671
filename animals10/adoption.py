"""Runs from elsewhere: which experiments of the study are missing, and how runs of another workspace are adopted.

A run that was trained elsewhere, on a GPU say, is a folder of `models/`. After checks, its row goes to `results.csv`;
its record, history and predictions go to `study/`. Models stay behind: they are too large to be kept with the code.
"""

import gzip
import shutil
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from animals10.augmentation import AUGMENTATION_VERSION
from animals10.catalogue import CATALOGUE
from animals10.csv_append import append_row
from animals10.dataset import ENGLISH, ITALIAN
from animals10.evaluation import metric_problems
from animals10.experiments import Experiment, digest
from animals10.files import (
    REPOSITORY,
    UserError,
    display_path,
    expand_user,
    file_sha256,
    read_table,
    user_facing_os_errors,
)
from animals10.images import STRETCH, processed_names
from animals10.preprocessing import resize_images, scan_images
from animals10.reference import reference_files
from animals10.results import RESULT_COLUMNS, is_other, read_results
from animals10.runs import CALIBRATION, RUN_FILES, STUDY, Run, RunKey, Runs, run_in
from animals10.settings import Settings
from animals10.splits import load_splits
from animals10.training import train_all
from animals10.workspace import is_listed

RESULTS = REPOSITORY / "results.csv"  # of the study
DECIMALS = 6  # of the probabilities in study/


def missing_experiments(dataset: str, split: str, image_size: int, results: Path = RESULTS) -> list[Experiment]:
    """Returns the experiments of the catalogue that a table of results lacks.

    Trials, runs with random weights, and runs that were configured in another way do not count.

    Args:
        dataset: The name of the data set.
        split: `grouped` or `published`.
        image_size: Edge of the images in pixels.
        results: The table; by default that of this repository.
    """
    if not results.exists():
        return list(CATALOGUE)
    rows = read_results(results)
    rows = rows[(rows.dataset == dataset) & (rows.split == split) & (rows.image_size == image_size)]
    rows = rows[rows.epochs_cap.isna() & (rows.weights != "random")]
    rows = rows[~is_other(results.parent, rows)]
    measured = set(zip(*(rows[name] for name in RunKey._fields), strict=True))
    return [experiment for experiment in CATALOGUE if experiment.key not in measured]


def train_missing(settings: Settings, results: Path = RESULTS) -> Runs:
    """Prepares the images and trains the experiments that a table of results lacks for them, see `missing_experiments`.

    Returns:
        Their runs.

    Raises:
        UserError: The images cannot be used, or an experiment failed.
    """
    resize_images(settings, scan_images(settings))
    splits = load_splits(settings)
    missing = missing_experiments(splits.dataset, splits.kind, settings.image_size, results)
    chosen = [one for one in missing if not settings.only or is_listed(settings.only, one.id)]
    print(f"Experiments missing for {splits.dataset}, {splits.kind} split: {len(chosen)}")
    runs = train_all(settings, chosen)
    print(
        f"{len(runs.trained)} of them are in {display_path(settings.models)}: `make adopt RUNS=…` adds them to a study."
    )
    return runs


def adopt_runs(settings: Settings, folder: Path) -> int:
    """Checks the runs of a folder and adopts those that pass; prints a line for each.

    Args:
        settings: The settings; `root` is the workspace that adopts.
        folder: A run's folder, a folder of runs, or another workspace.

    Returns:
        The number of runs that were refused.

    Raises:
        UserError: There are no runs, or a file cannot be written.
    """
    folder = expand_user(folder)
    patterns = ("run.json", "[!.]*/run.json", "models/[!.]*/run.json")
    found = [path.parent for pattern in patterns for path in folder.glob(pattern)]
    if not found:
        raise UserError(
            f"There is no run in {folder}: name a folder of runs, such as the folder models/ of a workspace."
        )
    known = set(read_table(settings.results, ["run_id"]).run_id) if settings.results.exists() else set()
    refused = 0
    for path in sorted(found):
        run = run_in(path)
        try:
            problems = find_problems(run)
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as error:
            problems = [str(error) if isinstance(error, UserError) else f"its files are damaged ({error!r})"]
        if problems:
            refused += 1
            print(f"{path.name}: refused: {'; '.join(problems)}")
            continue
        _copy(run, settings.root / STUDY / path.name)
        append_row(settings.results, run.row, RESULT_COLUMNS)
        print(f"{path.name}: {'already there' if run.row['run_id'] in known else 'adopted'}")
    print(f"{len(found)} runs checked, {refused} of them refused ({display_path(settings.results)})")
    return refused


def _copy(run: Run, target: Path) -> None:
    """Copies a run without its model; the probabilities are rounded and compressed."""
    with user_facing_os_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        for name in ("run.json", "history.csv", CALIBRATION):
            if run.file(name).exists():  # the last one is there if it was calibrated
                shutil.copyfile(run.file(name), target / name)
        text = run.predictions.round(DECIMALS).to_csv(index=False, lineterminator="\n")
        (target / "predictions.csv.gz").write_bytes(gzip.compress(text.encode("utf-8", "surrogateescape"), mtime=0))


# ── Checks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def find_problems(run: Run) -> list[str]:
    """Checks a run that comes from elsewhere: its files, its digest, its metrics and the images that it was tested on.

    Args:
        run: The run. Its model may be missing.

    Returns:
        Its problems, one line each; empty if there are none.

    Raises:
        UserError: A file is missing or damaged.
    """
    record = run.record
    row, checksums = run.row, record["files_sha256"]
    if missing := [name for name in RESULT_COLUMNS if name not in row]:
        return [f"its row lacks {', '.join(missing)}: it was made by an older version"]
    for name in RUN_FILES:
        if not run.file(name).exists():
            if name == "model.keras":
                continue
            return [f"{name} is missing"]
        if run.file(name).name == name and file_sha256(run.file(name)) != checksums[name]:
            return [f"{name} is not the file that was stored"]
    problems = []
    if row["epochs_cap"] is not None:
        problems.append(f"it is a trial: ANIMALS10_MAX_EPOCHS shortened it to {row['epochs_cap']} epochs")
    if row["corrections"]:
        problems.append(f"its labels are corrected: {row['corrections']}")
    if row["resize"] != STRETCH:
        problems.append(f"its images were made square in another way: {row['resize']}")
    name = f"{row['model_id']}-{row['run_id']}"
    if run.file("run.json").parent.name != name or record["digest"] != row["run_id"][-12:]:
        problems.append("its folder, its row and its digest do not name the same run")
    expected = expected_digest(record)
    if expected and expected != record["digest"]:
        problems.append(f"its digest is {record['digest']}, and {expected} by the catalogue: it was another experiment")
    problems += metric_problems(row, run.predictions)
    if len(run.predictions) != row["n_test"] or run.predictions.relpath.duplicated().any():
        problems.append(f"predictions.csv does not hold {row['n_test']} different images")
    return problems + (_image_problems(run.predictions, row) if row["dataset"] == "animals10" else [])


def expected_digest(record: Mapping[str, Any]) -> str | None:
    """Returns the digest that an experiment of the catalogue has with a run's data and settings.

    Args:
        record: The run's `run.json`.

    Returns:
        12 hexadecimal digits; None if the catalogue does not hold the experiment.
    """
    row, resolved = record["row"], record["spec"]["settings"]
    key = tuple(row[name] for name in ("model_id", "learning_rate", "epochs"))
    same = [one for one in CATALOGUE if one.key[:3] == key]
    if not same:
        return None
    exact = [one for one in same if one.repetition == row["repetition"]]
    experiment = exact[0] if exact else replace(same[0], repetition=row["repetition"])
    first_seed = resolved["seed"] - experiment.repetition + 1

    def context(one: Experiment) -> dict[str, Any]:  # as `Workspace.context`
        augmented = one.training.augmentation is not None
        own = {"seed": first_seed + one.repetition - 1, "maximum_epochs": one.training.epochs}
        own |= {"augmentation_version": AUGMENTATION_VERSION if augmented else None}
        return {**resolved} | own | {"views": resolved["views"] if augmented else None}

    return digest(experiment, context, len(record["class_names"]))


def _image_problems(predictions: pd.DataFrame, row: Mapping[str, Any]) -> list[str]:
    """Checks the test images of a run on Animals-10: each is a file of its class and, if grouped, of the test part."""
    part = predictions.relpath.map(_reference_parts())
    problems = []
    if unknown := int(part.isna().sum()):
        problems.append(f"{unknown} of its test images are no files of Animals-10")
    if wrong := int((predictions.category != predictions.relpath.str.split("/").str[0]).sum()):
        problems.append(f"{wrong} of its test images are listed with another class than that of their folder")
    if row["split"] == "grouped" and (other := int((part != "test").sum())):
        problems.append(f"{other} of its test images are not in the test part of the reference split")
    return problems


@cache
def _reference_parts() -> pd.Series:
    """Returns the part of the reference split of each processed image of Animals-10."""
    files = reference_files().rename(columns={"file": "name"})
    files = files.assign(category=files["class"].map(dict(zip(ITALIAN, ENGLISH, strict=True))))
    files["relpath"] = files["class"] + "/" + files.name
    return files.set_index(files.category + "/" + processed_names(files)).part
