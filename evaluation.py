"""What runs are worth: predictions, their figures, and runs beside each other.

`auxiliary` hands these on to the notebooks. Nothing here knows of settings, or writes a file.
"""

from collections.abc import Sequence

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from scipy.stats import binomtest
from sklearn.metrics import accuracy_score, classification_report, precision_recall_fscore_support

from storage import Run, StudyError


def predict_table(
    model: keras.Model, pictures: tf.data.Dataset, table: pd.DataFrame, names: Sequence[str]
) -> pd.DataFrame:
    """Returns a model's opinion of the pictures of a table, given in its order, in the form of `Run.predictions`."""
    # Called as it is: for one pass, `predict` takes longer to build its graph than it saves.
    probabilities = np.concatenate([model(pixels, training=False).numpy() for pixels, _ in pictures])
    opinion = table[["relpath", "category"]].reset_index(drop=True)
    opinion["predicted"] = [names[label] for label in probabilities.argmax(axis=1)]
    opinion["confidence"] = probabilities.max(axis=1)
    return opinion.join(pd.DataFrame(probabilities, columns=[f"p_{name}" for name in names]))


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


def compare_runs(first: Run, second: Run) -> dict[str, float]:
    """Compares two stored runs on the same test pictures by McNemar's exact test.

    The pictures that one run alone gets right are like tosses of a coin if the runs are equally good (Q. McNemar,
    Psychometrika 12, 1947).

    Returns:
        `only_first` and `only_second`, numbers of pictures that this run alone got right, and the two-sided `p_value`.

    Raises:
        StudyError: The runs were judged on different pictures, or one is not there.
    """
    tables = [run.predictions.set_index("relpath").sort_index() for run in (first, second)]
    if not tables[0].index.equals(tables[1].index):
        raise StudyError(f"{first.model_id} and {second.model_id} were judged on different pictures: no comparison.")
    right = [table.category == table.predicted for table in tables]
    only = [int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())]
    p_value = binomtest(only[0], sum(only)).pvalue if sum(only) else 1.0
    return {"only_first": only[0], "only_second": only[1], "p_value": float(p_value)}


def parameter_table(runs: Sequence[Run], published: pd.DataFrame) -> pd.DataFrame:
    """Compares the parameters of stored runs with the published counts, by `run` and `epochs`.

    Args:
        runs: The runs; those that are not trained are left out.
        published: The published runs, see `auxiliary.published_runs`.

    Returns:
        `total` and `trained` as counted, `published total` and `published trained` (missing where the study gave none),
        and `equal`: whether all that was published agrees.
    """
    rows, columns = [run.record["row"] for run in runs if run.path], "model_id epochs params trainable_params".split()
    counted = pd.DataFrame(rows, columns=columns).drop_duplicates()
    published = published.query("image_size == 224").drop_duplicates(["model_id", "epochs"])
    table = counted.merge(published[counted.columns], "left", ["model_id", "epochs"], suffixes=("", "_published"))
    table.columns = ["run", "epochs", "total", "trained", "published total", "published trained"]
    table = table.astype(dict.fromkeys(table.columns[1:], "Int64"))
    pairs = [table[name].eq(table[f"published {name}"]).fillna(True) for name in ("total", "trained")]
    return table.assign(equal=(pairs[0] & pairs[1]).map({True: "yes", False: "no"}))
