"""Label errors: images whose labels a classifier that has not seen them contradicts, ranked by confident learning.

Each training and validation image gets probabilities from a run that held it out (see `cross_validation`). The method
is that of C. G. Northcutt, L. Jiang and I. L. Chuang (Confident Learning, Journal of Artificial Intelligence Research
70, 2021).
"""

import numpy as np
import pandas as pd

from animals10.cross_validation import cross_validate
from animals10.experiments import Experiment
from animals10.files import read_table, write_table
from animals10.settings import Settings
from animals10.splits import load_splits
from animals10.training import train

LABEL_ISSUES = "label-issues.csv"  # in data/


def label_issues(settings: Settings, experiment: Experiment, folds: int = 5, test: bool = False) -> pd.DataFrame:
    """Ranks images whose labels may be wrong, and writes `data/label-issues.csv`.

    Probabilities of training and validation images are out of fold: from the run of `cross_validate` that held the
    image out. An error there only says that the label is unusual: look at an image before you correct its label.

    Args:
        settings: The settings.
        experiment: What is trained on each fold. A linear probe is fast, and cannot memorise wrong labels.
        folds: Number of folds, 3 or more.
        test: Whether test images are ranked as well, by the probabilities of the experiment's run on the training set.
            Choose no experiment by them. Accuracies on test labels that were corrected where this experiment
            contradicts them favour it over others.

    Returns:
        What `rank_labels` returns, with `part` (`train`, `val` or `test`) and `source` (the raw file) after `relpath`.
        With `ANIMALS10_PUBLISH`, nothing is trained: then the stored table, or an empty one.

    Raises:
        UserError: The experiment cannot be cross-validated, or a file cannot be written.
    """
    columns = ["relpath", "part", "source", "category", "suggested", "score", "confident"]
    path = settings.data / LABEL_ISSUES
    if settings.publish:
        return read_table(path, columns) if path.exists() else pd.DataFrame(columns=columns)
    splits, held_out = load_splits(settings), cross_validate(settings, experiment, folds).predictions
    tested = [train(settings, experiment).predictions] if test else []
    ranked = rank_labels(held_out, *tested)
    ranked = ranked.merge(splits.images[["relpath", "part", "source"]], on="relpath")  # keeps the order of the ranking
    return write_table(ranked[columns], path)


def rank_labels(predictions: pd.DataFrame, *others: pd.DataFrame) -> pd.DataFrame:
    """Ranks images whose labels differ from the class that a classifier suggests, by confident learning.

    The threshold of a class is the mean probability of that class over the images with that label. The suggested class
    of an image is the most probable one that reaches its threshold, or the most probable one if none does.

    Args:
        predictions: Probabilities of images that the classifier was not trained on, as `Run.predictions` has them: they
            decide the thresholds.
        others: More such tables, whose images are ranked as well.

    Returns:
        One row per image whose suggested class is not its label: `relpath`, `category` (the label), `suggested`,
        `score` (1 minus the probability of the label: 0 to 1) and `confident` (whether the suggested class reaches its
        threshold: then the image counts as a label error). The highest score comes first.
    """
    names = [name.removeprefix("p_") for name in predictions if name.startswith("p_")]
    thresholds = predictions.groupby("category")[[f"p_{name}" for name in names]].mean()
    limits = np.array([thresholds[f"p_{name}"].get(name, np.inf) for name in names])  # no image has the label: never
    table = pd.concat([predictions, *others], ignore_index=True)
    probabilities = table[[f"p_{name}" for name in names]].to_numpy()
    reached = probabilities >= limits
    chosen = (probabilities + reached).argmax(axis=1)  # adding 1 puts those that reach their threshold first
    rows, label = np.arange(len(table)), pd.Index(names).get_indexer(table.category)
    found = table[["relpath", "category"]].assign(
        suggested=np.array(names, object)[chosen], score=1 - probabilities[rows, label], confident=reached[rows, chosen]
    )
    return found[chosen != label].sort_values(["score", "relpath"], ascending=[False, True], ignore_index=True)
