"""Evaluation of trained models: predictions on the test images, metrics, and comparisons between runs.

To add a metric, compute it in `metrics` and give `results.ResultRow` a field of the same name.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from animals10.files import UserError
from animals10.input_pipeline import mirror_image
from animals10.runs import Run, RunKey, run_labels


def predict_table(
    model: keras.Model,
    dataset: tf.data.Dataset,
    table: pd.DataFrame,
    class_names: Sequence[str],
    mirrored: bool = False,
) -> pd.DataFrame:
    """Predicts the images of a table.

    Args:
        model: Maps what `dataset` yields to probabilities, float32 (n, classes).
        dataset: Batches of inputs and labels, in the order of the table.
        table: The images, with the columns `relpath` and `category`.
        class_names: The classes in the order of the model's outputs.
        mirrored: Whether to predict the mean over each image and its mirror image; the inputs must then be pixels.

    Returns:
        One row per image in the form of `Run.predictions`: `relpath`, `category`, `predicted`, `confidence` (the
        probability of the predicted class, 0 to 1) and `p_<class>`, the probability of each class.
    """
    # Called directly: for one pass, `predict` takes longer to build its graph than it saves.
    parts = []
    for inputs, _ in dataset:
        found = [model(view, training=False) for view in ((inputs, mirror_image(inputs)) if mirrored else (inputs,))]
        parts.append(np.mean([part.numpy() for part in found], axis=0))
    return _as_table(np.concatenate(parts), table, class_names)


def mean_predictions(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Returns the predictions of the mean probabilities.

    Args:
        tables: Predictions for the same images in the same order, in the form of `predict_table`.
    """
    columns = [name for name in tables[0] if name.startswith("p_")]
    probabilities = np.mean([table[columns].to_numpy() for table in tables], axis=0)
    return _as_table(probabilities, tables[0], [name.removeprefix("p_") for name in columns])


def _as_table(probabilities: np.ndarray, table: pd.DataFrame, class_names: Sequence[str]) -> pd.DataFrame:
    """Returns probabilities in the form of `Run.predictions`."""
    predictions = table[["relpath", "category"]].reset_index(drop=True)
    predictions["predicted"] = [class_names[label] for label in probabilities.argmax(axis=1)]
    predictions["confidence"] = probabilities.max(axis=1)
    return predictions.join(pd.DataFrame(probabilities, columns=[f"p_{name}" for name in class_names]))


def wilson_interval(share: float, n: int, level: float = 0.05) -> tuple[float, float]:
    """Returns the Wilson score interval of a proportion (E. B. Wilson, JASA 22, 1927); missing values for n = 0.

    Args:
        share: The proportion, 0 to 1.
        n: Number of images it was measured on.
        level: Probability that the interval misses the true proportion.
    """
    if not n:
        return np.nan, np.nan
    interval = binomtest(round(share * n), n).proportion_ci(1 - level, method="wilson")
    return float(interval.low), float(interval.high)


def metrics(predictions: pd.DataFrame) -> dict[str, float]:
    """Computes the test metrics of `results.csv` from a table of predictions.

    Args:
        predictions: One row per image, with the columns `category` and `predicted`.

    Returns:
        Values from 0 to 1: `accuracy`; `precision`, `recall` and `f1_score`, weighted by class size; `accuracy_low` and
        `accuracy_high`, the 95 % Wilson score interval of the accuracy.
    """
    truth, predicted = predictions.category, predictions.predicted
    scores = precision_recall_fscore_support(truth, predicted, average="weighted", zero_division=0)[:3]
    accuracy = float(accuracy_score(truth, predicted))
    names = ("accuracy", "precision", "recall", "f1_score", "accuracy_low", "accuracy_high")
    return dict(zip(names, map(float, (accuracy, *scores, *wilson_interval(accuracy, len(truth)))), strict=True))


def metric_problems(row: Mapping[str, Any], predictions: pd.DataFrame, where: str = "its row") -> list[str]:
    """Returns a line for each metric of a row of results that is not the one of the run's predictions.

    Args:
        row: The row.
        predictions: The run's predictions.
        where: Names the row, for the lines.
    """
    return [
        f"{name} is {row[name]} in {where} but {value} by predictions.csv"
        for name, value in metrics(predictions).items()
        if not np.isclose(row[name], value, rtol=0, atol=1e-12)
    ]


def classification_reports(*runs: Run) -> pd.DataFrame:
    """Returns the classification reports of runs side by side.

    Args:
        *runs: Stored runs; those that are not trained are left out.

    Returns:
        One row per class, then `macro avg` and `weighted avg`; for each run a group of columns, named by `run_labels`,
        with `precision`, `recall` and `f1-score` from 0 to 1. The last column, `images`, counts the test images; where
        runs have different ones, each group has a column `images` of its own. Empty if no run is trained.
    """
    trained = [run for run in runs if run.path]
    if not trained:
        return pd.DataFrame()
    labels, reports = run_labels([run.row for run in trained]), [_report(run) for run in trained]
    if all(report.images.equals(reports[0].images) for report in reports):
        columns = {label: report.drop(columns="images") for label, report in zip(labels, reports, strict=True)}
        return pd.concat(columns, axis=1).assign(images=reports[0].images)
    classes = sorted({name for report in reports for name in report.index[:-2]})
    rows = list(dict.fromkeys([*classes, *(name for report in reports for name in report.index[-2:])]))
    return pd.concat(dict(zip(labels, reports, strict=True)), axis=1).reindex(rows)


def _report(run: Run) -> pd.DataFrame:
    """Returns precision, recall, F1 and number of images by class, then the averages of all classes."""
    predictions, options = run.predictions, {"zero_division": 0}
    pairs = predictions.category, predictions.predicted
    classes = sorted({*pairs[0], *pairs[1]})
    rows = {name: scores for name, *scores in zip(classes, *precision_recall_fscore_support(*pairs, **options))}
    for kind in ("macro", "weighted"):
        name = f"{kind} avg" + " of all classes" * (f"{kind} avg" in rows)  # a class may be called so
        rows[name] = [*precision_recall_fscore_support(*pairs, average=kind, **options)[:3], len(predictions)]
    table = pd.DataFrame.from_dict(rows, "index", columns=["precision", "recall", "f1-score", "images"])
    return table.astype({"images": int})


def compare_runs(first: Run, second: Run) -> dict[str, float]:
    """Compares two runs on the same test images by McNemar's exact test (Q. McNemar, Psychometrika 12, 1947).

    If both are equally good, the images that only one of them predicts correctly fall to either like tosses of a coin.

    Returns:
        `only_first` and `only_second`, the numbers of images that only this run predicts correctly, and the two-sided
        `p_value`.

    Raises:
        UserError: The runs were evaluated on different images, or one is not trained.
    """
    tables = [run.predictions.set_index("relpath").sort_index() for run in (first, second)]
    if not tables[0].index.equals(tables[1].index):
        raise UserError(
            f"{first.model_id} and {second.model_id} were evaluated on different images and cannot be compared: "
            "train both in one workspace."
        )
    correct = [table.category == table.predicted for table in tables]
    only = [int((correct[0] & ~correct[1]).sum()), int((correct[1] & ~correct[0]).sum())]
    p_value = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
    return {"only_first": only[0], "only_second": only[1], "p_value": float(p_value)}


def comparison_table(pairs: Iterable[tuple[Run, Run]]) -> pd.DataFrame:
    """Compares pairs of runs, each by `compare_runs`; pairs with a run that is not trained are left out.

    Returns:
        One row per pair: `first`, `second` (labels), `accuracy first`, `accuracy second`, `only_first`, `only_second`
        and `p_value`.
    """
    trained = [pair for pair in pairs if all(run.path for run in pair)]
    runs = list(dict.fromkeys(run for pair in trained for run in pair))
    labels = dict(zip(runs, run_labels([run.row for run in runs]), strict=True))
    rows = [
        {"first": labels[first], "second": labels[second]}
        | {"accuracy first": first.row["accuracy"], "accuracy second": second.row["accuracy"]}
        | compare_runs(first, second)
        for first, second in trained
    ]
    columns = ["first", "second", "accuracy first", "accuracy second", "only_first", "only_second", "p_value"]
    return pd.DataFrame(rows, columns=columns)


def parameter_table(runs: Iterable[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Compares the numbers of parameters of stored runs with the published ones.

    Args:
        runs: Stored runs; those that are not trained are left out.
        published: The published runs, see `results.published_runs`.

    Returns:
        One row per run: its label as `run`, `epochs`, `total` and `trained` as counted, `published total` and
        `published trained` (missing where the study gave none), and `equal`: whether all that was published agrees;
        missing where nothing was.
    """
    rows, key = [run.row for run in runs if run.path], ["image_size", *RunKey._fields]
    counts, names = ["params", "trainable_params"], ["total", "trained"]
    table = pd.DataFrame(rows, columns=[*key, *counts])
    table = table.merge(published[[*key, *counts]], "left", key, suffixes=("", "_published"), validate="m:1")
    found = table[counts].set_axis(names, axis=1)
    found[[f"published {name}" for name in names]] = table[[f"{name}_published" for name in counts]]
    found = found.astype("Int64")
    pairs = [found[name].eq(found[f"published {name}"]) for name in names]
    agrees = pairs[0].fillna(True) & pairs[1].fillna(True)
    is_known = pairs[0].notna() | pairs[1].notna()
    found.insert(0, "run", run_labels([row | {"epochs_cap": None} for row in rows]))  # a cap changes no network
    found.insert(1, "epochs", table.epochs)
    return found.assign(equal=agrees.map({True: "yes", False: "no"}).where(is_known))
