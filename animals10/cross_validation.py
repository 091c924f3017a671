"""Cross-validation: training configurations compared over repeated, stratified, grouped folds of the images.

In each repetition every fold is the test set once; the next fold is the validation set, and the others are the training
set. Near-duplicates stay in one fold. Choose between configurations by their validation metrics; the paired comparison
on the test images then says how much the choice is worth.

Each fold is a workspace of its own below the common one, so finished runs are not trained again.
"""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from scipy import stats
from sklearn.model_selection import StratifiedGroupKFold

from animals10.augmentation import Augmentation
from animals10.catalogue import CATALOGUE, find_experiment
from animals10.evaluation import predict_table
from animals10.experiments import Experiment, Training
from animals10.files import UserError, display_path, link_folder, read_table, write_table
from animals10.input_pipeline import batches
from animals10.models import Transfer, load_model
from animals10.preprocessing import read_overview, resize_images, scan_images
from animals10.quality import check_images
from animals10.runs import Run
from animals10.settings import Settings
from animals10.splits import load_splits
from animals10.training import train, train_all

BACKBONE = "MobileNetV2"  # of all configurations: the only one that trains in minutes on a CPU
REFERENCE = "mobnet2_best"  # the experiment that is compared with each of the others


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
    """Trains configurations on all folds, prints tables, and writes `cross-validation.csv` into the workspace.

    The file keeps the rows of other configurations that were compared before, and of a trial (`epochs_cap`) or of full
    runs of the same.

    Args:
        settings: The settings; `only` is ignored.
        configurations: What to compare.
        n_folds: Folds, 3 or more.
        repetitions: How often folds are drawn.

    Returns:
        One row per fold and configuration: `repetition`, `fold`, `configuration`, `epochs_cap`, and the metrics of
        `evaluate`.

    Raises:
        UserError: There is nothing to compare, two configurations have the same title, there are too few folds, the
            workspace holds other folds, or a configuration cannot be trained.
    """
    if not configurations:
        raise UserError("Nothing to compare: choose --ingredients, --published or both (make recipes RECIPES=…).")
    titles = [configuration.title for configuration in configurations]
    if repeated := [title for title in titles if titles.count(title) > 1]:
        raise UserError(f"Two configurations are called {repeated[0]!r}: give one another title.")
    if n_folds < 3:
        raise UserError(f"{n_folds} folds: there must be 3 or more, to test, to validate and to train.")
    settings = settings.model_copy(update={"only": ()})
    resize_images(settings, scan_images(settings))
    checks, rows = check_images(settings), []
    path = settings.root / "cross-validation.csv"
    earlier = read_table(path, ["configuration"]) if path.exists() else pd.DataFrame({"configuration": []})
    experiments = list(dict.fromkeys(configuration.experiment for configuration in configurations))
    for repetition, folds in enumerate(draw_folds(checks, n_folds, repetitions, settings.seed), start=1):
        for fold in range(n_folds):
            workspace = fold_settings(settings, folds, repetition, fold)
            runs = train_all(workspace, experiments)
            for configuration in configurations:
                run = runs[configuration.experiment]
                scores = evaluate(workspace, run, configuration.mirrored)
                place = {"repetition": repetition, "fold": fold, "configuration": configuration.title}
                rows.append(place | {"epochs_cap": run.row["epochs_cap"]} | scores)
            write_table(_with_earlier(pd.DataFrame(rows), earlier), path)
    table = pd.DataFrame(rows)
    if table.epochs_cap.notna().any():
        print(f"\nTrials: the maximum epochs were capped (ANIMALS10_MAX_EPOCHS={settings.max_epochs}).")
    print(f"\n{len(checks)} images, {n_folds} folds, {repetitions} repetitions; mean ± standard deviation over folds")
    print(summary(table).to_string())
    for line in paired_comparison(table, n_folds):
        print(line)
    return table


def _with_earlier(table: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """Returns a table of folds, after the rows of an earlier one whose configuration or cap on epochs is another."""

    def names(rows: pd.DataFrame) -> pd.Series:
        caps = pd.to_numeric(rows.reindex(columns=["epochs_cap"]).epochs_cap).fillna(0).astype(int)
        return rows.configuration.astype("str") + "\n" + caps.astype("str")

    kept = earlier[~names(earlier).isin(names(table))]
    return pd.concat([kept, table], ignore_index=True) if len(kept) else table


def draw_folds(checks: pd.DataFrame, n_folds: int, repetitions: int, seed: int) -> Iterator[np.ndarray]:
    """Yields the fold of each image, int (n,), from 0, once per repetition: stratified, near-duplicates together.

    `checks` holds one row per image with its `category` and its `group` of near-duplicates, see `quality.check_images`.
    """
    for repetition in range(1, repetitions + 1):
        splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed + repetition)
        folds = np.zeros(len(checks), int)
        for fold, (_, test) in enumerate(splitter.split(checks, checks.category, checks.group)):
            folds[test] = fold
        yield folds


def fold_settings(settings: Settings, folds: np.ndarray, repetition: int, fold: int) -> Settings:
    """Makes the workspace of a fold: the images of the common workspace, and a split of its own.

    Raises:
        UserError: The workspace holds another split already: of other images, or of another number of folds.
    """
    data = settings.root / f"repetition {repetition}, fold {fold}" / "data"
    overview = read_overview(settings)
    test, val = folds == fold, folds == (fold + 1) % (folds.max() + 1)
    parts = {"test": overview[test], "val": overview[val], "train": overview[~test & ~val]}
    if not (data / "train.csv").exists():  # it is written last
        data.mkdir(parents=True, exist_ok=True)
        if not (data / "processed").exists():
            link_folder(settings.data / "processed", data / "processed")
        write_table(overview, data / "processed-overview.csv")
        for name, table in parts.items():
            write_table(table, data / f"{name}.csv")
    for name, table in parts.items():
        stored = read_table(data / f"{name}.csv")
        if [*zip(stored.relpath, stored.sha256)] != [*zip(table.relpath, table.sha256)]:
            raise UserError(
                f"{display_path(data)} holds folds of other images or of another number: delete the folders "
                f"`repetition …` in {display_path(settings.root)}, or choose another workspace (ANIMALS10_ROOT)."
            )
    return settings.model_copy(update={"root": data.parent})


def evaluate(settings: Settings, run: Run, mirrored: bool = False) -> dict[str, float]:
    """Evaluates a stored run on the validation and the test images of its workspace.

    Args:
        settings: The settings of the workspace.
        run: The run.
        mirrored: Whether to predict the mean over an image and its mirror image.

    Returns:
        `val_accuracy` and `test_accuracy`, 0 to 1; `val_loss` and `test_loss`, the mean cross-entropy.

    Raises:
        UserError: The run is not trained.
    """
    model, class_names = load_model(run.file("model.keras"))
    splits, scores = load_splits(settings), {}
    for part in ("val", "test"):
        table = getattr(splits, part)
        datasets = [batches(settings, table)]
        if mirrored:
            datasets.append(datasets[0].map(lambda pixels, labels: (tf.reverse(pixels, [2]), labels)))
        predictions = [predict_table(model, dataset, table, class_names).filter(like="p_") for dataset in datasets]
        probabilities = np.mean([prediction.to_numpy() for prediction in predictions], axis=0)
        labels = table.label.to_numpy()
        scores[f"{part}_accuracy"] = float((probabilities.argmax(axis=1) == labels).mean())
        scores[f"{part}_loss"] = float(-np.log(probabilities[np.arange(len(labels)), labels] + 1e-7).mean())
    keras.backend.clear_session()
    return scores


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


def paired_comparison(rows: pd.DataFrame, n_folds: int) -> list[str]:
    """Returns a line per configuration: how much more accurate `REFERENCE` is on the test images, fold by fold.

    Empty if `REFERENCE` is not among the configurations.
    """
    wide = rows.pivot(index=["repetition", "fold"], columns="configuration", values="test_accuracy")
    reference, lines = find_experiment(REFERENCE).label, []
    if reference not in wide:
        return []
    for title in wide.columns.difference([reference]):
        mean, low, high = paired_interval(wide[reference] - wide[title], 1 / (n_folds - 2))
        lines.append(f"{REFERENCE} minus {title}: {mean:+.3f} (95 % interval {low:+.3f} to {high:+.3f})")
    return lines


def paired_interval(differences: pd.Series, test_ratio: float) -> tuple[float, float, float]:
    """Returns the mean of paired differences between folds, and the ends of its 95 % interval.

    The training sets of folds overlap, so the variance of the mean is corrected: (1/n + test_ratio) · variance
    (C. Nadeau and Y. Bengio, Machine Learning 52, 2003).

    Args:
        differences: One per fold and repetition.
        test_ratio: Number of test images divided by the number of training images.
    """
    n, mean = len(differences), float(differences.mean())
    error = np.sqrt((1 / n + test_ratio) * differences.var(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1) * error)
    return mean, mean - half, mean + half


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
