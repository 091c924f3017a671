"""The comparison of training configurations of `make recipes`: each is cross-validated on the same folds.

Choose between configurations by their validation metrics; the paired comparison on the held-out images then says how
much the choice is worth.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from animals10.augmentation import Augmentation
from animals10.catalogue import CATALOGUE, find_experiment
from animals10.cross_validation import CrossValidation, compare_cross_validated, cross_validate
from animals10.experiments import Experiment, Training
from animals10.files import UserError, read_table, write_table
from animals10.models import Transfer
from animals10.preprocessing import resize_images, scan_images
from animals10.settings import Settings
from animals10.training import train

BACKBONE = "MobileNetV2"  # of all configurations: the only one that trains in minutes on a CPU
REFERENCE = "mobnet2_best"  # the experiment that is compared with each of the others
METRICS = ("val_accuracy", "val_loss", "test_accuracy", "test_loss")


@dataclass(frozen=True)
class Configuration:
    """A row of the comparison.

    Attributes:
        title: Its name in the tables.
        experiment: What is trained.
        mirrored: Whether probabilities are the mean over an image and its mirror image.
    """

    title: str
    experiment: Experiment
    mirrored: bool = False


def ingredients() -> tuple[Configuration, ...]:
    """Returns the configurations that led to `mobnet2_best`: a plain head, then one change after the other.

    Titles that begin with "+" add to the row above, or, after "+ warm-up and cosine", to that row.
    """
    model, linear = Transfer(BACKBONE, (256,), (0.0,)), Transfer(BACKBONE, (), ())
    plain = Training(learning_rate=5e-4, epochs=15)
    weighted = replace(plain, class_balance="none", class_weights=True)
    no_flip = replace(weighted, augmentation=Augmentation(vertical_flip=False))
    cosine = replace(no_flip, schedule="cosine")
    smooth = replace(cosine, label_smoothing=0.1)

    def tuned(
        id: str, model: Transfer, head: Experiment, unfreeze_last: int = 20, learning_rate: float = 1e-4
    ) -> Experiment:
        training = replace(head.training, learning_rate=learning_rate, epochs=15)
        return Experiment(id, replace(model, unfreeze_last=unfreeze_last), training, init_from=head)

    no_flip_head = Experiment("no_flip_head", model, no_flip)
    cosine_head = Experiment("cosine_head", model, cosine)
    smooth_head = Experiment("smooth_head", model, smooth)
    dropout = replace(model, dropout=(0.3,))
    dropout_head = Experiment("dropout_head", dropout, cosine)
    linear_head = Experiment("linear_head", linear, replace(no_flip, learning_rate=2e-3, epochs=30))
    linear_cosine_head = Experiment("linear_cosine_head", linear, replace(cosine, learning_rate=2e-3, epochs=30))
    best = tuned("cosine", model, cosine_head)
    return (
        Configuration("head, resampled, all flips", Experiment("plain_head", model, plain)),
        Configuration("+ class weights, no resampling", Experiment("weighted_head", model, weighted)),
        Configuration("+ no vertical flip", no_flip_head),
        Configuration("+ last 20 layers (blocks 15, 16)", tuned("no_flip", model, no_flip_head)),
        Configuration("+ warm-up and cosine", best),
        Configuration("+ block 14", tuned("last29", model, cosine_head, unfreeze_last=29)),
        Configuration("+ blocks 13 and 14", tuned("last38", model, cosine_head, unfreeze_last=38)),
        Configuration("+ label smoothing 0.1", tuned("smooth", model, smooth_head)),
        Configuration("+ dropout 0.3", tuned("dropout", dropout, dropout_head)),
        Configuration("+ fine-tuning rate 0.0003", tuned("rate_3e-4", model, cosine_head, learning_rate=3e-4)),
        Configuration("+ fine-tuning rate 0.00003", tuned("rate_3e-5", model, cosine_head, learning_rate=3e-5)),
        Configuration("+ mean over the mirror image", best, mirrored=True),
        Configuration("no hidden layer, no vertical flip", linear_head),
        Configuration("no hidden layer, fine-tuned, cosine", tuned("linear", linear, linear_cosine_head)),
        Configuration(
            "no hidden layer, fine-tuning rate 0.00003",
            tuned("linear_rate_3e-5", linear, linear_cosine_head, learning_rate=3e-5),
        ),
    )


def notebook_configurations() -> tuple[Configuration, ...]:
    """Returns the experiments of notebook 03 on the backbone, those of the original study among them."""
    return tuple(
        Configuration(experiment.label, experiment)
        for experiment in CATALOGUE
        if isinstance(experiment.model, Transfer) and experiment.model.backbone == BACKBONE
    )


def compare_configurations(
    settings: Settings, configurations: Sequence[Configuration], n_folds: int = 5, repetitions: int = 2
) -> pd.DataFrame:
    """Cross-validates configurations, prints tables, and writes `cross-validation.csv` into the workspace.

    The file keeps the rows of other configurations that were compared before, and of a trial (`epochs_cap`) or of full
    runs of the same.

    Args:
        settings: The settings; `only` is ignored.
        configurations: What to compare.
        n_folds: Folds, 3 or more.
        repetitions: How often folds are drawn.

    Returns:
        One row per fold and configuration: `repetition`, `fold`, `configuration`, `epochs_cap`; the accuracy and the
        mean cross-entropy on its validation images, `val_accuracy` and `val_loss`, and on its held-out images,
        `test_accuracy` and `test_loss`.

    Raises:
        UserError: There is nothing to compare, two configurations have the same title, there are too few folds or
            images, or a configuration cannot be trained.
    """
    if not configurations:
        raise UserError("Nothing to compare: choose --ingredients, --published or both (make recipes RECIPES=…).")
    titles = [configuration.title for configuration in configurations]
    if repeated := [title for title in titles if titles.count(title) > 1]:
        raise UserError(f"Two configurations are called {repeated[0]!r}: give one another title.")
    resize_images(settings, scan_images(settings))
    path = settings.root / "cross-validation.csv"
    earlier = read_table(path, ["configuration"]) if path.exists() else pd.DataFrame({"configuration": []})
    results, tables = {}, []
    for configuration in configurations:
        given = settings, configuration.experiment, n_folds, repetitions, configuration.mirrored
        results[configuration.title] = result = cross_validate(*given)
        renamed = result.table.rename(columns={"accuracy": "test_accuracy", "loss": "test_loss"})
        renamed["configuration"] = configuration.title
        tables.append(renamed[["repetition", "fold", "configuration", "epochs_cap", *METRICS]])
        table = pd.concat(tables, ignore_index=True)
        write_table(_with_earlier(table, earlier), path)
    if table.epochs_cap.notna().any():
        print(f"\nTrials: the maximum epochs were capped (ANIMALS10_MAX_EPOCHS={settings.max_epochs}).")
    n = len(result.predictions) // repetitions
    print(f"\n{n} images, {n_folds} folds, {repetitions} repetitions; mean ± standard deviation over folds")
    print(summary(table).to_string())
    for line in paired_comparison(results):
        print(line)
    return table


def _with_earlier(table: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """Returns a table of folds, after the rows of an earlier one whose configuration or cap on epochs is another."""

    def names(rows: pd.DataFrame) -> pd.Series:
        caps = pd.to_numeric(rows.reindex(columns=["epochs_cap"]).epochs_cap).fillna(0).astype(int)
        return rows.configuration.astype("str") + "\n" + caps.astype("str")

    kept = earlier[~names(earlier).isin(names(table))]
    return pd.concat([kept, table], ignore_index=True) if len(kept) else table


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Returns each configuration's metrics as text, mean ± standard deviation over all folds."""
    metrics = (
        rows.drop(columns=["repetition", "fold", "epochs_cap"], errors="ignore")
        .groupby("configuration", sort=False)
        .agg(["mean", "std"])
    )
    texts = {
        name: [f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in metrics[name].to_numpy()]
        for name in metrics.columns.levels[0]
    }
    return pd.DataFrame(texts, index=metrics.index)


def paired_comparison(results: Mapping[str, CrossValidation]) -> list[str]:
    """Returns a line per configuration: how much more accurate `REFERENCE` is on held-out images, fold by fold.

    Args:
        results: By title. There are no lines if `REFERENCE` is not among them.
    """
    reference, lines = results.get(find_experiment(REFERENCE).label), []
    for title, result in results.items():
        if reference and result is not reference:
            found = compare_cross_validated(reference, result)
            interval = f"95 % interval {found['low']:+.3f} to {found['high']:+.3f}"
            lines.append(f"{REFERENCE} minus {title}: {found['difference']:+.3f} ({interval})")
    return lines


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
