"""Comparisons over several seeds: numbers of augmented views, and compute precisions."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from scipy import stats

from animals10.catalogue import find_experiment
from animals10.experiments import Experiment, Training
from animals10.features import inference_function
from animals10.files import UserError
from animals10.input_pipeline import batches
from animals10.models import Transfer, feature_layers_of
from animals10.precision import BFLOAT16, in_precision, multiplies_in_bfloat16
from animals10.preprocessing import resize_images, scan_images
from animals10.settings import Settings
from animals10.similarity import unit_length
from animals10.splits import load_splits
from animals10.training import train
from animals10.workspace import Workspace

PRECISIONS = ("float32", "bfloat16")


def compare_precisions(settings: Settings, experiments: Sequence[Experiment], seeds: Sequence[int]) -> pd.DataFrame:
    """Trains experiments in float32 and in bfloat16 with the same seeds, and prints what that changes.

    What is trained is kept in the workspace, so that it resumes. The split is the same for all seeds.

    Args:
        settings: The settings.
        experiments: The experiments.
        seeds: Seeds of the runs, at least two.

    Returns:
        One row per experiment and metric: mean ± standard deviation over the seeds in each precision; the paired
        difference, bfloat16 minus float32, with its 95 % interval (Student's t over seeds). It is printed as well, and
        for each backbone the cosine similarity of its pooled features of validation images.

    Raises:
        UserError: This machine does not multiply in bfloat16, there are too few seeds, or a training fails.
    """
    if not multiplies_in_bfloat16():
        raise UserError("This machine does not multiply in bfloat16: compare precisions on one that does.")
    if len(seeds) < 2:
        raise UserError(f"{len(seeds)} seeds: give two or more, so that the spread is known.")
    resize_images(settings, scan_images(settings))
    splits, rows = load_splits(settings), []
    for experiment in experiments:
        for seed in seeds:
            for precision in PRECISIONS:
                run = train(settings.model_copy(update={"seed": seed, "precision": precision}), experiment)
                if run.path is None:
                    raise UserError(f"{experiment.label} was not trained: {run.why}")
                row = {"experiment": experiment.label, "precision": precision, "seed": seed}
                row |= {"validation accuracy": run.row["acc_val"], "validation loss": run.history.val_loss.min()}
                rows.append(row | {"test accuracy": run.row["accuracy"]})
    table = precision_table(pd.DataFrame(rows))
    print(f"{splits.dataset}, {len(splits.train):,} training images, seeds {', '.join(map(str, seeds))}")
    print(table.to_string())
    for backbone in dict.fromkeys(e.model.backbone for e in experiments if isinstance(e.model, Transfer)):
        similarity = feature_similarity(settings, backbone)
        print(
            f"{backbone}: pooled features of {len(similarity):,} validation images in bfloat16 and float32 have a "
            f"cosine similarity of {similarity.mean():.5f} on average, {similarity.min():.5f} at least"
        )
    return table


def precision_table(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns the table of `compare_precisions`.

    Args:
        rows: One row per run: `experiment`, `precision`, `seed`, and a column per metric.
    """
    found = {}
    for name in rows.columns.drop(["experiment", "precision", "seed"]):
        for experiment, values in rows.groupby("experiment", sort=False):
            wide = values.pivot(index="seed", columns="precision", values=name)[list(PRECISIONS)]
            row = {one: f"{wide[one].mean():.4g} ± {wide[one].std():.2g}" for one in PRECISIONS}
            difference = wide[PRECISIONS[1]] - wide[PRECISIONS[0]]
            half = stats.t.ppf(0.975, len(wide) - 1) * difference.sem()
            mean = difference.mean()
            row["difference (95 % interval)"] = f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"
            found[experiment, name] = row
    return pd.DataFrame(found).T.rename_axis(["experiment", "metric"])


def feature_similarity(settings: Settings, backbone: str) -> np.ndarray:
    """Returns the cosine similarity of each validation image's pooled features in float32 and bfloat16.

    Raises:
        UserError: The weights are missing.
    """
    architecture = Transfer(backbone)
    weights, _, missing = Workspace(settings).weights(Experiment("similarity", architecture, Training(1e-3, 1)))
    if missing:
        raise UserError(f"{backbone}: {missing}")
    model = architecture.build(len(load_splits(settings).class_names), settings.image_size, weights)
    pooled = []
    for one in (model, in_precision(model, BFLOAT16)):
        layers = feature_layers_of(architecture, one)
        assert layers, "a frozen backbone has pooled features"
        forward = inference_function(keras.Model(one.input, layers.outputs["pooled"]))
        dataset = batches(settings, load_splits(settings).val)
        features = [np.asarray(forward(pixels)[0], dtype="float32") for pixels, _ in dataset]
        pooled.append(unit_length(np.concatenate(features)))
    keras.backend.clear_session()
    return (pooled[0] * pooled[1]).sum(axis=1)


def compare_views(settings: Settings, views: Sequence[int | str], seeds: Sequence[int]) -> pd.DataFrame:
    """Compares numbers of augmented views in the feature cache by training `mobnet2_small` with several seeds.

    The split stays the same. Where images are few, the validation loss is more telling than the accuracy.

    Args:
        settings: The settings; the runs are trained in a temporary workspace.
        views: Numbers of views; `off` trains without a feature cache, with new augmentation in each epoch.
        seeds: Seeds of the runs.

    Returns:
        One row per number of views: means and standard deviations over the seeds. It is printed as well.
    """
    experiment = find_experiment("mobnet2_small")
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        settings = settings.model_copy(update={"root": Path(folder), "only": ()})
        resize_images(settings, scan_images(settings))
        for seed in seeds:
            for number in views:
                change = {"feature_cache": "off"} if number == "off" else {"views": int(number)}
                run = train(settings.model_copy(update=change | {"seed": seed}), experiment)
                row, history, seconds = run.row, run.history, run.record["seconds"]
                rows.append({"views": number, "accuracy": row["accuracy"], "acc_val": row["acc_val"]})
                rows[-1] |= {"val_loss": history.val_loss.min(), "loss": history.loss.iloc[row["best_epoch"] - 1]}
                rows[-1] |= {"epochs": row["epochs_run"], "seconds": seconds["features"] + seconds["fit"]}
    table = pd.DataFrame(rows).groupby("views", sort=False).agg(["mean", "std"]).round(4)
    print(f"{experiment.id} on {row['dataset']}, weights {row['weights']}, seeds {', '.join(map(str, seeds))}")
    print(table.to_string())
    return table
