"""What leakage is worth: how much near-duplicates in the training set raise the accuracy on test images.

It is measured in two parts. `observed`: stored runs are evaluated on the test images with and without a near-duplicate
in the training set. Images that have near-duplicates may be easier than others, so the gap between both need not come
from leakage. `retrained`: experiments are trained again without the training images that are near-duplicates of a test
image (their *partners*), and again without as many other images of the same classes. The difference between these two
is what the partners are worth, beyond the number of images.

`make leakage` prints both. `data/animals10-leakage.csv` holds what it measured on Animals-10.
"""

import hashlib
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import keras
import numpy as np
import pandas as pd

from animals10.catalogue import is_another_experiment
from animals10.cross_validation import corrected_interval
from animals10.data_preparation import PreparedData, prepare_data
from animals10.environment import git_commit
from animals10.evaluation import predict_table, wilson_interval
from animals10.execution import Job, build_model, evaluation_context, fit, garbage_collected
from animals10.experiments import Experiment
from animals10.files import UserError, display_path, read_table, write_table
from animals10.leakage_results import AS_IT_IS, DIFFERENCE, WITHOUT_OTHERS, WITHOUT_PARTNERS, summary
from animals10.model_files import save_model
from animals10.quality import check_images
from animals10.runs import Run, RunKey, stored_runs
from animals10.settings import Settings
from animals10.splits import Splits, resample
from animals10.workspace import Workspace

ROW = ["part", "split", *RunKey._fields, "condition", "test_images"]  # what tells the rows of the results apart
WHOLE_NUMBERS = dict.fromkeys(("repetition", "seeds", "removed"), "Int64")  # which may be missing
BOOTSTRAP_SAMPLES = 2000


def measure_leakage(
    settings: Settings, experiments: Sequence[Experiment], repetitions: int = 5, path: Path | None = None
) -> pd.DataFrame:
    """Measures both parts in a workspace, prints them, and writes them to a table; rows measured before are replaced.

    Retrained experiments are no runs: they are not in `results.csv`. What they predicted is kept in `leakage/`, so that
    a later call does not train them again.

    Args:
        settings: The settings; notebook 01 has run in their workspace.
        experiments: What to train again, if test images have near-duplicates in the training set.
        repetitions: Trainings per experiment and condition, each with a seed of its own; at least 2.
        path: Where the table is; `leakage.csv` in the workspace by default.

    Returns:
        One row per run or experiment, condition and part of the test set, see `observe` and `retrain`.

    Raises:
        UserError: The data are not ready, or there is nothing to measure.
    """
    if repetitions < 2:
        raise UserError(f"{repetitions} repetition has no variance: allowed is 2, 3, 4 …")
    workspace = Workspace(settings)
    splits, groups = workspace.splits, check_images(settings).set_index("relpath").group
    rows = [row for run in latest_runs(settings.root, splits) for row in observe(run, splits, groups)]
    has_leaked = bool(_near_duplicates_of(splits.train, splits.test, groups).any())
    if has_leaked:
        for experiment in experiments:
            rows += retrain(workspace, experiment, groups, repetitions)
    if not rows:
        where = display_path(settings.models)
        raise UserError(f"No test image leaks, and {where} has no trained runs on these data: train some first.")
    table = pd.DataFrame(rows).assign(split=splits.kind, data_share=splits.share, commit=git_commit())
    columns = [*ROW, "n", "accuracy", "low", "high", "seeds", "seeds_low", "seeds_high", "removed"]
    table = table.reindex(columns=[*columns, "data_share", "commit"]).round(6)
    table = table.astype(WHOLE_NUMBERS)
    for text in summary(table):
        print(text, end="\n\n")
    path = path or settings.root / "leakage.csv"
    known = [read_table(path).astype(WHOLE_NUMBERS)] if path.exists() else []
    merged = pd.concat([*known, table]).drop_duplicates(ROW, keep="last")
    write_table(merged.sort_values(["part", "split"], kind="stable"), path)
    print(f"These values are in {display_path(path)}.")
    return table


# ── Observed ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def latest_runs(root: Path, splits: Splits) -> list[Run]:
    """Returns the latest run of each experiment that was trained on these data, in the order of training.

    Full runs count before trials, and runs as the catalogue configures them before others of the same name.
    """
    runs = [run for run in stored_runs(root) if run.row["data_sha256"] == splits.sha256 and run.row["epochs_run"]]
    runs.sort(key=lambda run: (not is_another_experiment(run), run.row["epochs_cap"] is None))  # later ones count
    return list({RunKey(*(run.row[name] for name in RunKey._fields)): run for run in runs}.values())


def observe(run: Run, splits: Splits, groups: pd.Series) -> list[dict[str, Any]]:
    """Evaluates a stored run on parts of the test set.

    Args:
        run: The run.
        splits: The data that it was trained on.
        groups: The near-duplicate group of each image, by `relpath`.

    Returns:
        One row per part of the test set (see `TEST_IMAGES`) that holds images: `n`, `accuracy`, and the 95 % Wilson
        interval, `low` and `high`. For `distinct`, near-duplicates within the test set count once: the weights of a
        group's images sum to 1, and `n` is the number of groups.
    """
    predictions = run.predictions
    correct = (predictions.predicted == predictions.category).to_numpy(float)
    group, leaked = groups[predictions.relpath], _near_duplicates_of(splits.train, predictions, groups)
    weights = photograph_weights(group)
    found = {"all": (len(correct), correct.mean())}
    if leaked.any():
        found |= {"leaked": (int(leaked.sum()), correct[leaked].mean())}
        found |= {"others": (int((~leaked).sum()), correct[~leaked].mean())} if not leaked.all() else {}
    found["distinct"] = round(weights.sum()), weights @ correct / weights.sum()
    names = {name: run.row[name] for name in RunKey._fields} | {"part": "observed", "condition": AS_IT_IS}
    rows = []
    for name, (n, accuracy) in found.items():
        low, high = wilson_interval(accuracy, n)
        rows.append(names | {"test_images": name, "n": n, "accuracy": accuracy, "low": low, "high": high})
    return rows


def photograph_weights(groups: pd.Series) -> np.ndarray:
    """Returns a weight for each image so that the weights of each near-duplicate group sum to 1, float (n,)."""
    return 1 / groups.map(groups.value_counts()).to_numpy()


def _near_duplicates_of(images: pd.DataFrame, table: pd.DataFrame, groups: pd.Series) -> np.ndarray:
    """Tells for each row of a table whether it is a near-duplicate of one of some images, bool (n,)."""
    return groups[table.relpath].isin(set(groups[images.relpath])).to_numpy()


# ── Retrained ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def retrain(workspace: Workspace, experiment: Experiment, groups: pd.Series, repetitions: int) -> list[dict[str, Any]]:
    """Trains an experiment again with and without the partners of test images, and evaluates it.

    Images are removed after resampling, so that all others stay the same, and their cached features can be used.
    `leaked` are the test images with a near-duplicate among the images that are trained on. Validation and test images
    are always the same.

    Args:
        workspace: The workspace.
        experiment: The experiment. The one that it is initialised from is trained again in the same way.
        groups: The near-duplicate group of each image, by `relpath`.
        repetitions: Trainings per condition, each with a seed of its own. It also draws the other images.

    Returns:
        One row per condition and part of the test set: `n`, the mean `accuracy` over the seeds, with a 95 % interval
        over images and seeds (`low`, `high`, see `crossed_interval`), and `removed`, the number of training images left
        out. The condition `difference` is what the partners are worth: accuracy without as many others minus accuracy
        without partners. It also has the 95 % interval over seeds alone, `seeds_low` and `seeds_high`: Student's t of
        the paired differences, on these very test images.

    Raises:
        UserError: Weights are missing, or a class has too few other images.
    """
    settings, test = workspace.settings, workspace.splits.test
    table = resample(workspace.splits.train, experiment.training.class_balance, settings.seed)
    partners = set(table.relpath[_near_duplicates_of(test, table, groups)])
    leaked = _near_duplicates_of(table, test, groups)
    if not partners:  # resampling has left none
        return []
    correct: dict[str, Any] = {AS_IT_IS: [], WITHOUT_PARTNERS: [], WITHOUT_OTHERS: []}
    for repetition in range(1, repetitions + 1):
        others = draw_others(table, partners, settings.seed + repetition - 1)
        for condition, removed in zip(correct, (set(), partners, others)):
            prefix = f"[{repetition}/{repetitions}] {condition}: "
            again = replace(experiment, repetition=repetition)
            correct[condition].append(predict_without(workspace, again, removed, prefix))
    correct = {condition: np.array(values, float).T for condition, values in correct.items()}
    correct[DIFFERENCE] = correct[WITHOUT_OTHERS] - correct[WITHOUT_PARTNERS]
    group, rows = groups[test.relpath].to_numpy(), []
    names = experiment.key._asdict() | {"part": "retrained", "repetition": None, "seeds": repetitions}
    for condition, values in correct.items():
        for name, part in (("all", leaked | True), ("leaked", leaked), ("others", ~leaked)):
            if not part.any():
                continue
            low, high = crossed_interval(values[part], group[part])
            row = names | {"condition": condition, "test_images": name, "n": int(part.sum()), "low": low, "high": high}
            row |= {"accuracy": values[part].mean(), "removed": 0 if condition == AS_IT_IS else len(partners)}
            if condition == DIFFERENCE:
                seeds = corrected_interval(pd.Series(values[part].mean(axis=0)), test_ratio=0)
                row |= dict(zip(("seeds_low", "seeds_high"), seeds[1:]))
            rows.append(row)
    return rows


def draw_others(table: pd.DataFrame, partners: Collection[str], seed: int) -> set[str]:
    """Draws as many images as there are partners, none of them a partner: of the same classes, repeated as often.

    Args:
        table: The resampled training set.
        partners: The `relpath` of some of its images.
        seed: Decides the draw.

    Raises:
        UserError: A class has too few other images.
    """
    copies = table.groupby("relpath").relpath.transform("size")
    images = table.assign(copies=copies).drop_duplicates("relpath")
    is_partner, drawn = images.relpath.isin(partners), set[str]()
    pools = dict(list(images[~is_partner].groupby(["label", "copies"])))
    for kind, wanted in images[is_partner].groupby(["label", "copies"]):
        pool = pools.get(kind, images.head(0))
        if len(pool) < len(wanted):
            name = wanted.category.iloc[0]
            raise UserError(
                f"Of the class {name}, {len(wanted)} training images are near-duplicates of test images, and only "
                f"{len(pool)} others could be left out instead: too few to compare."
            )
        drawn |= set(pool.relpath.sample(len(wanted), random_state=seed))
    return drawn


def predict_without(
    workspace: Workspace, experiment: Experiment, removed: Collection[str], prefix: str = ""
) -> np.ndarray:
    """Trains an experiment without some training images, unless that was done before, and predicts the test images.

    Args:
        workspace: The workspace. What was predicted is kept in its folder `leakage/`.
        experiment: The experiment.
        removed: The `relpath` of the training images to leave out.
        prefix: Begins the line of progress.

    Returns:
        Whether each test image is predicted correctly, bool (n,), in the order of the test set.
    """
    identity = repr((workspace.digest(experiment), sorted(removed)))
    name = f"{experiment.id}-{hashlib.sha256(os.fsencode(identity)).hexdigest()[:12]}.csv"
    path, splits = workspace.settings.root / "leakage" / name, workspace.splits
    if not path.exists():
        with TemporaryDirectory() as folder:
            data = _train_without(workspace, experiment, removed, Path(folder), prefix)[1]
            predictions = predict_table(data.model, data.test, splits.test, splits.class_names)
        write_table(predictions, path)
    table = read_table(path)
    return (table.predicted == table.category).to_numpy()


def _train_without(
    workspace: Workspace, experiment: Experiment, removed: Collection[str], folder: Path, prefix: str
) -> tuple[keras.Model, PreparedData]:
    """Trains an experiment, and before it the one that it is initialised from, without some training images.

    Returns:
        The trained model, and its data.
    """
    settings, splits, start = workspace.settings, workspace.splits, experiment.parent
    if isinstance(start, Experiment):
        parent = _train_without(workspace, start, removed, folder, prefix)[0]
        start = folder / "parent.keras"
        save_model(parent, start, splits.class_names)
    weights, _, missing = workspace.weights(experiment)
    if missing:
        raise UserError(f"{experiment.id} cannot be trained: {missing}")
    context, digest = evaluation_context(workspace.context(experiment)), workspace.digest(experiment)  # in float32
    elsewhere = settings.model_copy(update={"root": folder})  # of checkpoints
    job = Job(elsewhere, splits, experiment, context, digest, weights, start, prefix)
    with garbage_collected():
        model = build_model(job)
        table = resample(splits.train, experiment.training.class_balance, settings.seed)
        kept = table[~table.relpath.isin(removed)].reset_index(drop=True)
        data = prepare_data(settings, splits, experiment, model, kept, context, cached=table)
        fit(job, data, kept.label)
    return model, data


def crossed_interval(values: np.ndarray, groups: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """Returns the 95 % interval of a mean over test images and seeds, by the pigeonhole bootstrap.

    All seeds share the test images, so groups of near-duplicates and seeds are drawn with replacement independently of
    each other (A. B. Owen, Annals of Applied Statistics 1, 2007). The interval is wide rather than narrow.

    Args:
        values: One value per test image and seed, float (images, seeds).
        groups: The near-duplicate group of each image, (images,).
        seed: Decides the draws.
    """
    number, rng = pd.factorize(groups)[0], np.random.default_rng(seed)
    sums = pd.DataFrame(values).groupby(number).sum().to_numpy()
    sizes, n_seeds = np.bincount(number), values.shape[1]
    drawn_groups = rng.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), BOOTSTRAP_SAMPLES)
    drawn_seeds = rng.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), BOOTSTRAP_SAMPLES)
    means = (drawn_groups @ sums * drawn_seeds).sum(axis=1) / (drawn_groups @ sizes * n_seeds)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
