"""Verification of stored runs, and `results.csv` restored from them.

A run passes if its files are those that were stored, its row of `results.csv` agrees with its predictions, its
temperature, if it was calibrated, fits its validation predictions, and its model, loaded in Keras's safe mode, predicts
the same probabilities for the test images.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from animals10.calibration import fitted_temperature
from animals10.csv_append import rebuild_rows
from animals10.evaluation import metric_problems, predict_table
from animals10.files import UserError, display_path
from animals10.input_pipeline import batches, damaged_images_named
from animals10.model_files import load_model
from animals10.results import RESULT_COLUMNS, read_results
from animals10.runs import CALIBRATION, VALIDATION, Run, changed_files, is_called, stored_runs
from animals10.settings import Settings
from animals10.splits import load_splits

# Largest difference between stored and new probabilities. Stored ones were predicted from cached features, which are
# computed in another order than the loaded model computes: with the 500 layers of EfficientNetV2S, 0.0003 apart.
TOLERANCE = 1e-3


def verify_runs(settings: Settings, names: Sequence[str] = ()) -> int:
    """Verifies stored runs and prints a line for each.

    Args:
        settings: The settings; `root` is the workspace.
        names: Ids, or names of folders in `models/`; empty for all runs.

    Returns:
        The number of runs that failed.

    Raises:
        UserError: There is no such run, or results.csv is missing or cannot be read.
    """
    stored = stored_runs(settings.root)
    runs = [run for run in stored if not names or any(_is_named(run, name) for name in names)]
    unknown = [name for name in names if not any(_is_named(run, name) for run in runs)]
    if unknown or not runs:
        where, words = display_path(settings.models), f": {', '.join(unknown)}" * bool(unknown)
        raise UserError(f"There is no such run in {where}{words}. Its folders show what there is.")
    rows, failed = read_results(settings.results), 0
    for run in runs:
        try:
            problems = find_problems(settings, run, rows)
        except UserError as error:  # a file cannot be read
            problems = [str(error)]
        failed += bool(problems)
        print(f"{run.path.name if run.path else run.model_id}: {'; '.join(problems) or 'verified'}", flush=True)
    print(f"{len(runs)} runs verified, {failed} of them failed")
    return failed


def _is_named(run: Run, name: str) -> bool:
    """Tells whether a name is a run's id or that of its folder."""
    return is_called(run.model_id, name) or (run.path is not None and run.path.name == name)


def find_problems(settings: Settings, run: Run, rows: pd.DataFrame) -> list[str]:
    """Verifies a stored run.

    Args:
        settings: The settings.
        run: The run.
        rows: `results.csv`, see `results.read_results`.

    Returns:
        Its problems, one line each; empty if there are none.

    Raises:
        UserError: A file of the run, or of the workspace's images, cannot be read.
    """
    record = run.record
    if changed := changed_files(run):
        return changed
    row = rows[rows.run_id == record["row"]["run_id"]]
    if len(row) != 1:
        return [f"{display_path(settings.results)} holds its row {len(row)} times"]
    problems = metric_problems(row.iloc[0], run.predictions, settings.results.name)
    return problems + _calibration_problems(run) + _prediction_problems(settings, run)


def _calibration_problems(run: Run) -> list[str]:
    """Compares the stored temperature, if there is one, with that which fits the predictions for validation images."""
    stored = run.temperature
    if stored is None:
        return []
    fitted = fitted_temperature(run.model_id, run.validation)
    if np.isclose(stored, fitted, rtol=0.01):
        return []
    return [f"its temperature is {stored} in {CALIBRATION} but {fitted} by {VALIDATION}"]


def _prediction_problems(settings: Settings, run: Run) -> list[str]:
    """Compares the stored probabilities with those that the stored model predicts now."""
    splits = load_splits(settings)
    if splits.sha256 != run.row["data_sha256"]:
        return ["it was evaluated on other images or splits than the workspace holds now"]
    model, class_names = load_model(run.file("model.keras"))
    with damaged_images_named(settings, splits.test):
        predictions = predict_table(model, batches(settings, splits.test), splits.test, class_names)
    columns = [f"p_{name}" for name in class_names]
    difference = float(np.abs(predictions[columns].to_numpy() - run.predictions[columns].to_numpy()).max())
    if difference > TOLERANCE:
        return [f"the model's probabilities differ by up to {difference:.2g} from predictions.csv"]
    return []


def rebuild_results(settings: Settings) -> tuple[int, int]:
    """Restores `results.csv` from the `run.json` of every stored run; rows and columns of other origin are kept.

    Returns:
        The number of rows, and how many of them were missing.

    Raises:
        UserError: A `run.json` is damaged, or the table is no table or cannot be written; it stays as it was.
    """
    total, added = rebuild_rows(settings.results, _stored_rows(settings), RESULT_COLUMNS)
    print(f"{display_path(settings.results)}: {total} rows, {added} of them were missing.")
    return total, added


def _stored_rows(settings: Settings) -> Iterator[dict[str, Any]]:
    for run in stored_runs(settings.root):
        row = run.row
        yield {"run_id": row["run_id"], "time": row["time"], **row}
