"""The table of results: what a row holds, the runs of a workspace, and the published runs beside them.

To add a column, give `ResultRow` a field and set it in `execution.result_row`.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pandas as pd

from animals10.catalogue import is_another_experiment
from animals10.dataset import ENGLISH, PUBLISHED_RESULTS
from animals10.evaluation import compare_runs, wilson_interval
from animals10.files import UserError, display_path, read_table
from animals10.images import STRETCH
from animals10.runs import EFFICIENCY, Run, RunKey, run_labels, run_of_row
from animals10.settings import Settings

PUBLISHED_TEST_IMAGES = 2_618  # of the original study
PUBLISHED_KEY = ("image_size", *RunKey._fields)  # by which a run finds its published counterpart


def _column(title: str, description: str, form: str = "{}") -> dict[str, str]:
    return {"title": title, "description": description, "format": form}


@dataclass(frozen=True)
class ResultRow:
    """A row of `results.csv`: the summary of one run. The columns of the original study come first.

    The metadata of each field hold its `title` and `description`, and the `format` of its values in tables.
    """

    time: str = field(metadata=_column("time (UTC)", "when the run ended"))
    model_id: str = field(metadata=_column("run", "the experiment's id"))
    learning_rate: float = field(metadata=_column("learning rate", "the highest if it follows a schedule", "{:g}"))
    epochs: int = field(metadata=_column("maximum epochs", "early stopping may end training before"))
    batchsize: int = field(metadata=_column("batch size", "images per training step"))
    acc_train: float | None = field(metadata=_column("training accuracy", "at the best epoch", "{:.3f}"))
    acc_val: float | None = field(metadata=_column("validation accuracy", "at the best epoch", "{:.3f}"))
    accuracy: float = field(metadata=_column("test accuracy", "of the best epoch's weights", "{:.3f}"))
    precision: float = field(metadata=_column("precision", "on the test images, weighted by class size", "{:.3f}"))
    recall: float = field(metadata=_column("recall", "on the test images, weighted by class size", "{:.3f}"))
    f1_score: float = field(metadata=_column("F1", "on the test images, weighted by class size", "{:.3f}"))
    run_id: str = field(metadata=_column("run id", "time and digest; ends the name of the run's folder"))
    dataset: str = field(metadata=_column("data set", "the images that the run was trained and evaluated on"))
    image_size: int = field(metadata=_column("image size", "edge of the square images, pixels"))
    repetition: int = field(metadata=_column("repetition", "runs that differ in their seed alone"))
    n_train: int = field(metadata=_column("training images", "per epoch, after resampling", "{:,}"))
    n_val: int = field(metadata=_column("validation images", "choose the best epoch", "{:,}"))
    n_test: int = field(metadata=_column("test images", "evaluate the best epoch", "{:,}"))
    class_balance: str = field(metadata=_column("class balance", "size to which all classes are resampled"))
    weights: str = field(metadata=_column("weights", "the backbone's initial weights"))
    params: int = field(metadata=_column("parameters", "of the whole model", "{:,}"))
    trainable_params: int = field(metadata=_column("trainable parameters", "of these", "{:,}"))
    epochs_run: int = field(metadata=_column("epochs run", "until early stopping or the maximum"))
    best_epoch: int | None = field(metadata=_column("best epoch", "lowest validation loss; its weights are stored"))
    accuracy_low: float = field(metadata=_column("low", "lower end of the 95 % Wilson interval", "{:.3f}"))
    accuracy_high: float = field(metadata=_column("high", "upper end of the 95 % Wilson interval", "{:.3f}"))
    train_seconds: float = field(metadata=_column("training time, s", "of all epochs", "{:.1f}"))
    peak_memory_mb: int = field(metadata=_column("peak memory, MB", "resident memory during training", "{:,}"))
    seed: int = field(metadata=_column("seed", "of this run: the settings' seed + repetition - 1"))
    device: str = field(metadata=_column("device", "that the run was trained on"))
    tensorflow: str = field(metadata=_column("TensorFlow", "version"))
    keras: str = field(metadata=_column("Keras", "version"))
    commit: str = field(metadata=_column("commit", "of this repository"))
    data_sha256: str = field(metadata=_column("data checksum", "of the images and their split"))
    split: str = field(
        metadata=_column("split", "grouped: near-duplicates together; published: as the original; given; own")
    )
    data_share: str = field(metadata=_column("share of Animals-10", "files of Animals-10 that were there; else empty"))
    epochs_cap: int | None = field(metadata=_column("cap on epochs", "of a trial that ANIMALS10_MAX_EPOCHS shortened"))
    corrections: str = field(metadata=_column("label corrections", "by exclude.csv and relabel.csv, with a checksum"))
    resize: str = field(metadata=_column("resizing", "how images are made square: stretch, crop or pad"))


RESULT_COLUMNS = tuple(column.name for column in fields(ResultRow))
NUMBERS = tuple(column.name for column in fields(ResultRow) if column.type is not str)


TABLE_COLUMNS = (*RESULT_COLUMNS, "run", "significance", *EFFICIENCY)  # of `results_table`, besides one's own


def read_results(path: Path) -> pd.DataFrame:
    """Reads a table of results as it is: the columns of `ResultRow` and any others, in the order of the file.

    Raises:
        UserError: There is no such table, it lacks a column, or a value is no number where one belongs.
    """
    where = display_path(path)
    if not path.exists():
        raise UserError(f"There is no {where} yet: run notebook 02 or 03 first.")
    table = read_table(path)
    if "run_id" in table:  # of a version that had fewer columns
        table = table.assign(**{name: None for name in ("corrections", "resize") if name not in table})
        table["resize"] = table.resize.fillna(STRETCH)
    if missing := [name for name in RESULT_COLUMNS if name not in table]:
        raise UserError(f"{where} lacks the columns {', '.join(missing)}: restore them with `make rebuild`.")
    for name in NUMBERS:
        values = pd.to_numeric(table[name], errors="coerce")
        if (is_wrong := values.isna() & table[name].notna()).any():
            value = table[name][is_wrong].iloc[0]
            raise UserError(
                f"{where} holds {value!r} as {name}, which is no number: correct it, or run `make rebuild`."
            )
        table[name] = values
    return table


def results_table(settings: Settings) -> pd.DataFrame:
    """Returns `results.csv`, best validation accuracy first; trials, which a cap on epochs shortened, come last.

    Returns:
        The columns of `ResultRow`, and:
        `run`: a label that no other row has, see `run_labels`. Where a row lacks its `run_id`, or repeats that of
        another, its `run_id` here names its line of the file, so that each row has its own.
        `significance`: among the stored runs on the same test images (`data_sha256`), `best` for the one with the
        highest validation accuracy, and `not significantly different` for those whose test predictions `compare_runs`
        cannot tell from it (p ≥ 0.05, not corrected for the number of comparisons). Empty for others, for trials where
        there is a full run, and for runs whose folders are missing.
        `model_mb`, `multiply_adds` (millions), `predict_ms` and `batch_ms` (milliseconds per image, at batch sizes 1
        and 32): missing where `make efficiency` has not measured them.

    Raises:
        UserError: There are no results yet, or they cannot be read.
    """
    table = _rows(settings)
    runs = [run_of_row(settings.root, *names) for names in zip(table.model_id, table.run_id, strict=True)]
    table["run"], table["significance"], columns = run_labels(table), "", list(EFFICIENCY)
    table[columns] = pd.DataFrame([run.efficiency for run in runs], table.index, columns, float)
    for _, rows in table.groupby("data_sha256"):
        stored = [index for index in rows.index if runs[index].file("predictions.csv").exists()]
        full = [index for index in stored if pd.isna(table.epochs_cap[index])]
        for index in full or stored:
            best = (full or stored)[0]
            similar = compare_runs(runs[best], runs[index])["p_value"] >= 0.05
            table.loc[index, "significance"] = (
                "best" if index == best else "not significantly different" if similar else ""
            )
    return table


def no_results() -> pd.DataFrame:
    """Returns what `results_table` would be without rows."""
    return pd.DataFrame(columns=TABLE_COLUMNS)


def _rows(settings: Settings) -> pd.DataFrame:
    """Returns `results.csv`, best validation accuracy first, trials last; each row with a `run_id` of its own."""
    table = read_results(settings.results)
    table["model_id"] = table.model_id.fillna("unnamed")  # a row of one's own may have neither id
    line = pd.Series([f"line-{index + 2}" for index in table.index], table.index, dtype="str")
    table["run_id"] = table.run_id.fillna(line)
    is_repeated = table.run_id.duplicated()
    table.loc[is_repeated, "run_id"] += "-" + line[is_repeated]
    order = {"by": ["acc_val", "time"], "ascending": [False, True], "na_position": "last"}
    full = table.epochs_cap.isna()
    return pd.concat([table[part].sort_values(**order) for part in (full, ~full)], ignore_index=True)


def best_run(settings: Settings, data_sha256: str | None = None) -> Run:
    """Returns the stored run with the highest validation accuracy, for all data or those of one checksum.

    A trial, which a cap on epochs shortened, is returned only where all runs are trials.

    Raises:
        UserError: There is none.
    """
    table = _rows(settings)
    table = table[table.acc_val.notna() & (table.data_sha256.eq(data_sha256) if data_sha256 else True)]
    for row in table.itertuples():
        run = run_of_row(settings.root, str(row.model_id), str(row.run_id))
        if run.file("model.keras").exists():
            return run
    raise UserError(f"There is no trained model in {display_path(settings.models)}: run notebook 02 or 03 first.")


def published_runs(settings: Settings) -> pd.DataFrame:
    """Returns the original study's runs; none if the workspace's classes are not its ten."""
    published, path = read_table(PUBLISHED_RESULTS), settings.data / "processed-overview.csv"
    if path.exists() and set(read_table(path, ["category"]).category) != set(ENGLISH):
        return published.head(0)
    return published


def published_table(settings: Settings, measured: pd.DataFrame | None = None) -> pd.DataFrame:
    """Joins the published runs of the workspace's image size with the latest measured run of each.

    Args:
        settings: The settings.
        measured: The rows of `results_table` to choose from; None for all.

    Returns:
        One row per published run, in the order of publication: the columns of `data/published-results.csv`, and those
        of `results_table`, with the suffix `_measured` where both have them; then `difference` (measured minus
        published accuracy) with its 95 % interval, `difference_low` and `difference_high` (see `newcombe_interval`),
        and `agreement`: `not significantly different`, `significantly higher` or `significantly lower`, at a level of
        0.05 divided by the number of runs compared (Bonferroni). Only trained runs on Animals-10 are compared, without
        random weights, without a cap on epochs, and configured as the catalogue says; for others it says why not, and
        there is no difference. Where there are several runs, such runs count first, and of these the one on the
        published split.
    """
    published, key = published_runs(settings).query(f"image_size == {settings.image_size}"), list(PUBLISHED_KEY)
    if measured is None:
        measured = results_table(settings) if settings.results.exists() else no_results()
    measured = measured.reindex(columns=TABLE_COLUMNS)  # a column of one's own may bear any name
    known = measured.set_index(key).index.isin(published.set_index(key).index)
    measured = measured[known]
    other = is_other(settings.root, measured)
    order = {"other": other, "capped": measured.epochs_cap.notna()}
    order |= {"untrained": measured.weights == "random", "elsewhere": measured.dataset != "animals10"}
    order |= {"own": measured.split != "published"}
    preferred = measured.assign(**order).sort_values([*order, "time"], ascending=[False] * len(order) + [True])
    measured = preferred.drop_duplicates(key, keep="last")
    table = published.merge(measured, how="left", on=key, suffixes=("", "_measured"))
    table[["difference", "difference_low", "difference_high", "agreement"]] = np.nan, np.nan, np.nan, ""
    table.loc[table.epochs_cap.notna(), "agreement"] = "not compared: maximum epochs capped"
    table.loc[table.other.eq(True), "agreement"] = "not compared: configured in another way"
    table.loc[table.epochs == 0, "agreement"] = "not compared: evaluated without training"
    table.loc[table.weights == "random", "agreement"] = "not compared: random weights"
    elsewhere, names = table.dataset.ne("animals10"), table.dataset.fillna("unnamed data").astype("str")
    table.loc[elsewhere, "agreement"] = "not compared: measured on " + names[elsewhere]
    table.loc[table.run_id.isna(), "agreement"] = "not measured"
    table = table.drop(columns=[*order])
    compared = table.index[table.agreement == ""]
    for row in compared:
        values = table.accuracy_measured[row], int(table.n_test[row]), table.accuracy[row], PUBLISHED_TEST_IMAGES
        table.loc[row, "difference"] = table.accuracy_measured[row] - table.accuracy[row]
        table.loc[row, ["difference_low", "difference_high"]] = newcombe_interval(*values)
        low, high = newcombe_interval(*values, level=0.05 / len(compared))
        words = "significantly higher" if low > 0 else "significantly lower" if high < 0 else ""
        table.loc[row, "agreement"] = words or "not significantly different"
    return table


def is_other(root: Path, rows: pd.DataFrame) -> pd.Series:
    """Tells for each row of results whether its run was configured in another way than the catalogue's experiment.

    Where a run's files are missing, nothing is known against it.

    Args:
        root: The workspace.
        rows: Rows of `results.csv`.
    """
    runs = [run_of_row(root, str(row.model_id), str(row.run_id)) for row in rows.itertuples()]
    found = [run.file("run.json").exists() and is_another_experiment(run) for run in runs]
    return pd.Series(found, rows.index, bool)


def newcombe_interval(first: float, n_first: int, second: float, n_second: int, level: float = 0.05) -> list[float]:
    """Returns the interval of the difference of two proportions, first minus second.

    It combines the Wilson intervals of both (method 10 of R. G. Newcombe, Statistics in Medicine 17, 1998).

    Args:
        first: A proportion, 0 to 1.
        n_first: Number of images it was measured on.
        second: Another proportion, measured on other images.
        n_second: Their number.
        level: Probability that the interval misses the true difference.
    """
    (low_1, high_1), (low_2, high_2) = wilson_interval(first, n_first, level), wilson_interval(second, n_second, level)
    difference = first - second
    low = difference - ((first - low_1) ** 2 + (high_2 - second) ** 2) ** 0.5
    return [low, difference + ((high_1 - first) ** 2 + (second - low_2) ** 2) ** 0.5]
