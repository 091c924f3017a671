"""The last step of a comparison of training configurations: a few are trained in full and meet the test set."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from animals10.configurations import Configuration, about_data, store_differences, workspace_of
from animals10.cross_validation import cross_entropy
from animals10.ensembles import ensemble
from animals10.files import UserError
from animals10.leakage import crossed_interval
from animals10.preprocessing import resize_images, scan_images
from animals10.quality import check_images
from animals10.runs import Run
from animals10.settings import Settings
from animals10.splits import load_splits
from animals10.training import train_all


def compare_finalists(
    settings: Settings, configurations: Sequence[Configuration], repetitions: int = 3, store: Path | None = None
) -> pd.DataFrame:
    """Trains configurations with several seeds, and prints how much more accurate than their references they are.

    Choose them before by cross-validation: whoever chooses by the test set overestimates.

    Args:
        settings: The settings.
        configurations: What to compare, the references among them.
        repetitions: Runs of each, with different seeds; two or more.
        store: A table to which the differences are added.

    Returns:
        One row per configuration with a reference: the columns of `configurations.paired_differences`, with means over
        runs. The interval is over test images, near-duplicates together, and seeds, see `leakage.crossed_interval`.

    Raises:
        UserError: There are too few repetitions, or a configuration cannot be trained.
    """
    if repetitions < 2:
        raise UserError(f"{repetitions} repetitions: give two or more, so that the spread is known.")
    resize_images(settings, scan_images(settings))
    splits = load_splits(settings)
    groups = check_images(settings).set_index("relpath").group[splits.test.relpath].to_numpy()
    runs = {configuration.title: _trained(settings, configuration, repetitions) for configuration in configurations}
    correct = {title: np.stack([_is_correct(run) for run in ran], axis=1) for title, ran in runs.items()}
    rows = []
    for configuration in configurations:
        title, reference = configuration.title, configuration.reference
        accuracies = correct[title].mean(axis=0)
        values = ", ".join(f"{value:.4f}" for value in accuracies)
        print(f"{title}: test accuracy {accuracies.mean():.4f} ({values})")
        if reference in runs:
            difference = correct[title] - correct[reference]
            low, high = crossed_interval(difference, groups)
            row: dict[str, Any] = {"reference": reference, "change": title.removeprefix(f"{reference}: ")}
            row |= {"val_accuracy": np.mean([run.row["acc_val"] for run in runs[title]]), "val_loss": None}
            row |= {"accuracy": accuracies.mean(), "loss": np.mean([cross_entropy(r.predictions) for r in runs[title]])}
            rows.append(row | {"difference": difference.mean(), "low": low, "high": high})
    table = pd.DataFrame(rows)
    for one in table.itertuples():
        interval = f"95 % interval {one.low:+.4f} to {one.high:+.4f}"
        print(f"{one.change} minus {one.reference}: {one.difference:+.4f} on {len(groups):,} test images ({interval})")
    if store:
        n = len(splits.train) + len(splits.val)
        store_differences(table.assign(images=n, folds=None, repetitions=repetitions, **about_data(settings)), store)
    return table


def _trained(settings: Settings, configuration: Configuration, repetitions: int) -> list[Run]:
    experiment, settings = configuration.experiment, workspace_of(settings, configuration)
    runs = train_all(settings, [replace(experiment, repetition=number + 1) for number in range(repetitions)])
    if missing := [run for run in runs if run.path is None]:
        raise UserError(f"{configuration.title} was not trained: {missing[0].why}")
    if not configuration.mirrored:
        return [*runs]
    names = [f"{experiment.id}_mirrored{number + 1}" for number in range(repetitions)]
    return [ensemble(settings, [run], name, mirrored=True) for run, name in zip(runs, names, strict=True)]


def _is_correct(run: Run) -> np.ndarray:
    return (run.predictions.category == run.predictions.predicted).to_numpy("float64")
