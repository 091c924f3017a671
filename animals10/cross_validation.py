"""Cross-validation: an experiment is trained and evaluated on stratified folds of the training and validation images.

In each repetition every fold is held out once; the next fold is the validation set, which ends training, and the others
are the training set. Near-duplicates stay in one fold. The test set of the workspace stays untouched.

Each fold is a workspace of its own in `cross-validation/`, so finished folds are not trained again and `results.csv`
has no rows of them. All folds share one feature cache, in which a feature belongs to an image: no image passes the
frozen layers twice.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
from scipy import stats
from sklearn.model_selection import StratifiedGroupKFold

from animals10.data_preparation import SharedImages, evaluation_data
from animals10.evaluation import mean_predictions, metrics, predict_table
from animals10.execution import evaluation_context
from animals10.experiments import Experiment
from animals10.files import UserError, display_path, link_folder, read_table, user_facing_os_errors, write_table
from animals10.input_pipeline import damaged_images_named
from animals10.model_files import load_model
from animals10.planning import with_ancestors
from animals10.preprocessing import read_overview
from animals10.quality import check_images
from animals10.runs import Run, Runs
from animals10.settings import Settings
from animals10.splits import Splits, load_splits
from animals10.training import train_in
from animals10.workspace import Workspace

FOLDER = "cross-validation"  # in the workspace
MIN_FOLDS = 3  # one is held out, one validates, and one is left to train
METRICS = ("accuracy", "precision", "recall", "f1_score", "loss", "val_accuracy", "val_loss")


@dataclass(frozen=True, eq=False)
class CrossValidation:
    """The results of an experiment on all folds. As text it is the table `summary`, with a heading.

    Attributes:
        experiment: The experiment.
        folds: Number of folds.
        mirrored: Whether probabilities are the mean over an image and its mirror image.
        data: Names the images and their folds; equal for results on the same ones.
        table: One row per repetition and fold: `repetition`, `fold`; `n_train`, `n_val` and `n`, the numbers of
            training, validation and held-out images; on the held-out images `accuracy`, `precision`, `recall`,
            `f1_score` (as in `results.csv`) and `loss`, the mean cross-entropy; `val_accuracy` and `val_loss`; and
            `epochs_cap`, the cap on epochs of a trial.
        predictions: The probabilities of each image from the run that held it out: `repetition`, `fold`, and the
            columns of `Run.predictions`.
        runs: The runs, in the order of `table`. Each is stored in the workspace of its fold.
    """

    experiment: Experiment
    folds: int
    mirrored: bool
    data: str
    table: pd.DataFrame
    predictions: pd.DataFrame
    runs: Runs

    @property
    def summary(self) -> pd.DataFrame:
        """One row per metric: its `mean` and `std` over folds, and the mean's 95 % interval, `low` to `high`.

        The interval accounts for the overlap of the training sets, see `corrected_interval`.
        """
        rows = {}
        for name in METRICS:
            mean, low, high = corrected_interval(self.table[name], self.test_ratio)
            rows[name] = {"mean": mean, "std": self.table[name].std(), "low": low, "high": high}
        return pd.DataFrame.from_dict(rows, "index")

    @property
    def test_ratio(self) -> float:
        """Held-out images per training image."""
        return float(self.table.n.sum() / self.table.n_train.sum())

    def __repr__(self) -> str:
        n, repeats = self.table[self.table.repetition == 1].n.sum(), int(self.table.repetition.max())
        words = f"{self.experiment.label}: {n:,} images, {self.folds} folds"
        words += f", {repeats} repetitions" * (repeats > 1) + ", mean over the mirror image" * self.mirrored
        caps = self.table.epochs_cap.dropna().unique()
        words += f", a trial: maximum epochs capped at {caps[0]:.0f}" if len(caps) else ""
        return f"{words}\n{self.summary.to_string(float_format='{:.3f}'.format)}"


def cross_validate(
    settings: Settings, experiment: Experiment, folds: int = 5, repeats: int = 1, mirrored: bool = False
) -> CrossValidation:
    """Trains and evaluates an experiment on each fold of the training and validation images, unless that is done.

    The experiments that it is initialised from are trained on each fold as well.

    Args:
        settings: The settings; `only` is ignored.
        experiment: The experiment.
        folds: Number of folds, 3 or more.
        repeats: How often folds are drawn.
        mirrored: Whether to predict the mean over an image and its mirror image.

    Raises:
        UserError: There are too few folds, or images of a class; the experiment starts from a stored run; or it cannot
            be trained.
    """
    folded = FoldedImages(settings, folds, repeats)
    rows, predictions, runs = [], [], []
    for row, held_out, run in folded.train(experiment, mirrored):
        rows.append(row)
        predictions.append(held_out.assign(repetition=row["repetition"], fold=row["fold"]))
        runs.append(run)
    table = pd.concat(predictions, ignore_index=True)
    table = table[["repetition", "fold", *table.columns.drop(["repetition", "fold"])]]
    return CrossValidation(experiment, folds, mirrored, folded.data, pd.DataFrame(rows), table, Runs(runs))


class FoldedImages:
    """The training and validation images of a workspace in folds, each a workspace of its own.

    Attributes:
        settings: The settings of the common workspace.
        splits: Its data.
        folds: Number of folds.
        repeats: How often folds are drawn.
        data: Names the images and their folds.
    """

    def __init__(self, settings: Settings, folds: int, repeats: int = 1):
        """Reads the images.

        Raises:
            UserError: There are too few folds, or no splits.
        """
        if folds < MIN_FOLDS:
            raise UserError(f"{folds} folds: there must be {MIN_FOLDS} or more, to test, to validate and to train.")
        if repeats < 1:
            raise UserError(f"{repeats} repetitions of the folds: there must be 1 or more.")
        self.settings, self.folds, self.repeats = settings.model_copy(update={"only": ()}), folds, repeats
        self.splits = load_splits(self.settings)
        self.images = _images(self.splits)
        self.shared = SharedImages(self.settings, self.images)
        self.data = hashlib.sha256(repr((self.splits.sha256, folds, settings.seed)).encode()).hexdigest()[:8]
        self._workspace = cache(self._make_workspace)

    def train(
        self, experiment: Experiment, mirrored: bool = False, title: str = ""
    ) -> Iterator[tuple[dict[str, Any], pd.DataFrame, Run]]:
        """Trains an experiment on one fold after the other, unless that is done.

        Args:
            experiment: The experiment.
            mirrored: Whether to predict the mean over an image and its mirror image.
            title: Begins the lines of progress.

        Yields:
            The row of `CrossValidation.table`, the predictions for the held-out images, and the run.
        """
        _check_start(experiment)
        for repetition in range(1, self.repeats + 1):
            for fold in range(1, self.folds + 1):
                workspace = self._workspace(repetition, fold)
                place = f"fold {fold}/{self.folds}{f' of repetition {repetition}' if self.repeats > 1 else ''}"
                [run] = train_in(workspace, [experiment], f"{title}[{place}] ")
                if run.path is None:
                    raise UserError(f"{experiment.label} cannot be cross-validated: {run.why}")
                val, held_out = _fold_predictions(workspace, experiment, run, mirrored)
                parts = workspace.splits
                row = {"repetition": repetition, "fold": fold, "n_train": len(parts.train)}
                row |= {"n_val": len(parts.val), "n": len(parts.test)} | _fold_metrics(val, held_out)
                yield row | {"epochs_cap": run.row["epochs_cap"]}, held_out, run

    def _make_workspace(self, repetition: int, fold: int) -> Workspace:
        folder = self.settings.root / FOLDER / f"{self.folds}-folds-{self.data}" / f"repetition-{repetition}"
        fold_of_image = stored_folds(self.settings, self.images, self.folds, repetition, folder)
        settings = _fold_settings(self.settings, self.images, fold_of_image, folder, fold)
        return Workspace(settings, self.shared, self.splits.sha256)


def compare_cross_validated(
    first: CrossValidation, second: CrossValidation, metric: str = "accuracy"
) -> dict[str, float]:
    """Compares two experiments on the same folds.

    Args:
        first: Results of an experiment.
        second: Results of another one.
        metric: A column of `CrossValidation.table`.

    Returns:
        `difference`, the mean over folds of first minus second, and its 95 % interval, `low` to `high`, see
        `corrected_interval`.

    Raises:
        UserError: The folds differ, or there is no such metric.
    """
    names = [one.experiment.id for one in (first, second)]
    places = [list(zip(one.table.repetition, one.table.fold)) for one in (first, second)]
    if first.data != second.data or places[0] != places[1]:
        raise UserError(
            f"{names[0]} and {names[1]} were cross-validated on different folds: give both the same images, folds and "
            "repeats."
        )
    if metric not in METRICS:
        raise UserError(f"There is no metric {metric!r}: allowed are {', '.join(METRICS)}.")
    found = corrected_interval(first.table[metric] - second.table[metric], first.test_ratio)
    return dict(zip(("difference", "low", "high"), found, strict=True))


def corrected_interval(values: pd.Series, test_ratio: float) -> tuple[float, float, float]:
    """Returns the mean of a metric over folds, or of its paired differences, and the ends of its 95 % interval.

    The training sets of folds overlap, so the variance of the mean is corrected: (1/n + test_ratio) · variance
    (C. Nadeau and Y. Bengio, Machine Learning 52, 2003).

    Args:
        values: One per fold and repetition.
        test_ratio: Number of test images divided by the number of training images.
    """
    n, mean = len(values), float(values.mean())
    error = np.sqrt((1 / n + test_ratio) * values.var(ddof=1))
    half = float(stats.t.ppf(0.975, n - 1) * error)
    return mean, mean - half, mean + half


# ── Folds ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def _check_start(experiment: Experiment) -> None:
    oldest = with_ancestors(experiment)[-1]
    if isinstance(oldest.parent, Run):
        raise UserError(
            f"{oldest.id} is initialised from a stored run, which may have been trained on images that a fold holds "
            "out: give init_from the run's experiment instead, which each fold then trains."
        )
    if oldest.parent:
        print(f"{oldest.id} is initialised from {oldest.parent}, which must not know the images of this workspace.")


def _images(splits: Splits) -> pd.DataFrame:
    """Returns the training and validation images, in an order that does not depend on the split."""
    return pd.concat([splits.train, splits.val]).sort_values("relpath", ignore_index=True)


def draw_folds(images: pd.DataFrame, n_folds: int, seed: int) -> np.ndarray:
    """Returns the fold of each image, int (n,), from 1: stratified, near-duplicates together.

    Args:
        images: One row per image with its `category` and its `group` of near-duplicates, see `quality.check_images`.
        n_folds: Number of folds.
        seed: Decides the draw.

    Raises:
        UserError: A class has fewer images than folds.
    """
    counts = images.groupby("category").group.nunique()
    if counts.min() < n_folds:
        raise UserError(
            f"{counts.idxmin()} has {counts.min()} training and validation images, near-duplicates counted once: too "
            f"few for {n_folds} folds. Choose fewer folds, or add images."
        )
    folds = np.zeros(len(images), int)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(images, images.category, images.group), start=1):
        folds[held_out] = fold
    return folds


def stored_folds(settings: Settings, images: pd.DataFrame, n_folds: int, repetition: int, folder: Path) -> np.ndarray:
    """Returns the fold of each image as `draw_folds` drew it when it was first asked for.

    Near-duplicates that are found later do not move images between the folds that were trained.
    """
    path = folder / "folds.csv"
    if not path.exists():
        groups = check_images(settings).set_index("relpath").group
        drawn = images.assign(group=groups[images.relpath].to_numpy())
        with user_facing_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        folds = draw_folds(drawn, n_folds, settings.seed + repetition)
        write_table(drawn[["relpath", "group"]].assign(fold=folds), path)
    table, advice = read_table(path, ["relpath", "fold"]), f"delete the folder {display_path(folder)}"
    if list(table.relpath) != list(images.relpath) or set(table.fold) != set(range(1, n_folds + 1)):
        raise UserError(f"{display_path(path)} does not hold the folds of these images: {advice}.")
    return table.fold.to_numpy()


def _fold_settings(settings: Settings, images: pd.DataFrame, folds: np.ndarray, folder: Path, fold: int) -> Settings:
    """Makes the workspace of a fold: the images of the common workspace, and a split of its own."""
    held_out, val = folds == fold, folds == fold % folds.max() + 1
    parts = {"test": images[held_out], "val": images[val], "train": images[~held_out & ~val]}
    return derived_workspace(settings, parts, folder / f"fold-{fold}")


def derived_workspace(settings: Settings, parts: dict[str, pd.DataFrame], root: Path) -> Settings:
    """Makes a workspace with the images of another one and a split of its own, unless it is there.

    Args:
        settings: The settings of the other workspace.
        parts: The tables of the split: `test`, `val`, `train`. Their labels are those of the new workspace.
        root: Where to make it.

    Returns:
        The settings of the new workspace.
    """
    data, images = root / "data", pd.concat(parts.values()).sort_values("relpath", ignore_index=True)
    if not (data / "train.csv").exists():  # it is written last
        link_data(settings, data)
        overview = read_overview(settings).set_index("relpath", drop=False).loc[images.relpath]
        corrected = {name: images[name].to_numpy() for name in ("category", "label")}
        write_table(overview.assign(**corrected), data / "processed-overview.csv")
        for name, table in parts.items():
            write_table(table, data / f"{name}.csv")
    return settings.model_copy(update={"root": root})


def link_data(settings: Settings, data: Path, name: str = "processed") -> None:
    """Links a folder of the data of a workspace into the `data` folder of another one, which is made."""
    with user_facing_os_errors(data):
        data.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(data / name):
            target = os.path.relpath(settings.data / name, data)  # relative: the workspace may be moved
            link_folder(Path(target), data / name)


# ── Predictions ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _fold_predictions(workspace: Workspace, experiment: Experiment, run: Run, mirrored: bool) -> list[pd.DataFrame]:
    """Returns the predictions for the validation and for the held-out images."""
    tables = [run.validation, run.predictions]
    if not mirrored:
        return tables
    names = ("validation-mirrored.csv", "predictions-mirrored.csv")
    if not all(run.file(name).exists() for name in names):
        for name, table in zip(names, _predict_mirror_images(workspace, experiment, run)):
            write_table(table, run.file(name))
    mirror_images = [read_table(run.file(name)) for name in names]
    return [mean_predictions(pair) for pair in zip(tables, mirror_images, strict=True)]


def _predict_mirror_images(workspace: Workspace, experiment: Experiment, run: Run) -> Iterator[pd.DataFrame]:
    model, class_names = load_model(run.file("model.keras"))
    # A model that was trained in bfloat16 is stored in float32.
    splits, context = workspace.splits, evaluation_context(workspace.context(experiment))
    with damaged_images_named(workspace.settings, splits.val, splits.test):
        for part in (splits.val, splits.test):
            given = workspace.settings, experiment, model, context, part
            end, dataset = evaluation_data(*given, "mirrored", mirrored=True, shared=workspace.shared)
            yield predict_table(end, dataset, part, class_names)
    keras.backend.clear_session()


def _fold_metrics(val: pd.DataFrame, held_out: pd.DataFrame) -> dict[str, Any]:
    found = {name: value for name, value in metrics(held_out).items() if name in METRICS}
    found |= {"loss": cross_entropy(held_out), "val_accuracy": metrics(val)["accuracy"]}
    return found | {"val_loss": cross_entropy(val)}


def cross_entropy(predictions: pd.DataFrame) -> float:
    names = pd.Index([name for name in predictions if name.startswith("p_")])
    rows, labels = np.arange(len(predictions)), names.get_indexer("p_" + predictions.category)
    return float(-np.log(predictions[names].to_numpy()[rows, labels] + 1e-7).mean())
