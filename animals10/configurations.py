"""The comparison of training configurations of `make configurations`: each is cross-validated on the same folds.

Choose between configurations by their validation metrics; the paired comparison on the held-out images then says how
much the choice is worth.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from animals10.augmentation import Augmentation
from animals10.catalogue import CATALOGUE, find_experiment
from animals10.cross_validation import CrossValidation, compare_cross_validated, cross_validate
from animals10.environment import git_commit
from animals10.experiments import Experiment
from animals10.files import REPOSITORY, UserError, read_table, write_table
from animals10.images import CROP, PAD
from animals10.models import Transfer
from animals10.preprocessing import resize_images, resize_mode, scan_images
from animals10.settings import Settings
from animals10.splits import load_splits

BACKBONE = "MobileNetV2"  # of all configurations: the only one that trains in minutes on a CPU
HEAD, TUNED = "mobnet2_best_head", "mobnet2_best"  # the experiments that others are compared with
PARTS = {"heads": HEAD, "fine-tuned": TUNED}  # of `changes`
SAME_TRAINING: dict[str, dict[str, Any]] = {  # changes that leave the training configuration as it is
    "mean over the mirror image": {"mirrored": True},
    "images cropped to a square": {"resize": CROP},
    "images padded to a square": {"resize": PAD},
}
METRICS = ("val_accuracy", "val_loss", "test_accuracy", "test_loss")
STORED_DIFFERENCES = REPOSITORY / "data" / "animals10-configurations.csv"


@dataclass(frozen=True)
class Configuration:
    """A row of the comparison.

    Attributes:
        title: Its name in the tables.
        experiment: What is trained.
        mirrored: Whether probabilities are the mean over an image and its mirror image.
        reference: The title of the configuration that it is compared with, if there is one.
        resize: How images are made square, if not as in the workspace, see `Settings.resize`.
    """

    title: str
    experiment: Experiment
    mirrored: bool = False
    reference: str = ""
    resize: str | None = None


def changes(parts: Sequence[str] = tuple(PARTS)) -> tuple[Configuration, ...]:
    """Returns `mobnet2_best_head` and `mobnet2_best`, and after each of them changes of it, one at a time.

    Args:
        parts: Names in `PARTS`.
    """
    head, tuned, probe = (find_experiment(id) for id in (HEAD, TUNED, "mobnet2_linear_probe"))

    def changed(base: Experiment, name: str, model: dict[str, Any] | None = None, **training: Any) -> Experiment:
        assert isinstance(base.model, Transfer)
        changed_model = replace(base.model, **(model or {}))
        return replace(base, id=f"{base.id}_{name}", model=changed_model, training=replace(base.training, **training))

    linear: dict[str, Any] = {"dense_units": (), "dropout": ()}
    of_heads = {
        HEAD: head,
        "linear probe, mobnet2_linear_probe": probe,
        "linear probe, rate 0.002, up to 200 epochs": changed(probe, "long", learning_rate=2e-3, epochs=200),
        "best published head, mobnet2_dense256": find_experiment("mobnet2_dense256", repetition=1),
        "vertical flips as well": changed(head, "flips", augmentation=Augmentation()),
        "no augmentation": changed(head, "unaugmented", augmentation=None),
        "no warm-up, no cosine decay": changed(head, "constant", schedule="constant"),
        "no class weights": changed(head, "unweighted", class_weights=False),
        "no hidden layer": changed(head, "linear", linear, learning_rate=2e-3, epochs=30),
        "label smoothing 0.1": changed(head, "smooth", label_smoothing=0.1),
        "weight decay 1 (AdamW)": changed(head, "decay", optimizer="adamw", weight_decay=1.0),
        "moving average of weights, 0.99": changed(head, "ema", ema=0.99),
        "MixUp of features, 0.2": changed(head, "mixup", mixup=0.2),
        "dropout 0.3": changed(head, "dropout", {"dropout": (0.3,)}),
        "dropout 0.2 of the pooled features": changed(head, "feature_dropout", {"feature_dropout": 0.2}),
        "mean over the mirror image": head,
        "images cropped to a square": head,
        "images padded to a square": head,
    }
    from_probe = changed(tuned, "from_probe", linear)
    of_tuned = {
        TUNED: tuned,
        "its head alone": head,
        "best published fine-tuning, mobnet2_small_tune20": find_experiment("mobnet2_small_tune20", learning_rate=1e-4),
        "last block alone, 9 layers": changed(tuned, "last9", {"unfreeze_last": 9}),
        "three blocks, 29 layers": changed(tuned, "last29", {"unfreeze_last": 29}),
        "a third of the learning rate": changed(tuned, "slow", learning_rate=tuned.training.learning_rate / 3),
        "learning rate falling by 0.7 from layer to layer": changed(tuned, "layers", layer_decay=0.7),
        "from the linear probe (LP-FT)": replace(from_probe, init_from=probe),
        "moving average of weights, 0.99": changed(tuned, "ema", ema=0.99),
        "weight decay 1 (AdamW)": changed(tuned, "decay", optimizer="adamw", weight_decay=1.0),
        "mean over the mirror image": tuned,
        "images cropped to a square": tuned,
    }
    found = []
    for part, experiments in {"heads": of_heads, "fine-tuned": of_tuned}.items():
        for title, experiment in experiments.items() if part in parts else ():
            reference = PARTS[part] if title != PARTS[part] else ""
            full = f"{reference}: {title}" if reference else title
            found.append(Configuration(full, experiment, reference=reference, **SAME_TRAINING.get(title, {})))
    return tuple(found)


def find_changes(titles: Sequence[str]) -> list[Configuration]:
    """Returns changes by their titles, such as `mobnet2_best: its head alone`, and their references.

    Raises:
        UserError: There is no such change.
    """
    known = {configuration.title: configuration for configuration in changes()}
    if unknown := [title for title in titles if title not in known]:
        raise UserError(f"There is no change {unknown[0]!r}: titles are {', '.join(map(repr, known))}.")
    names = dict.fromkeys(name for title in titles for name in (known[title].reference, title) if name)
    return [known[name] for name in names]


def notebook_configurations() -> tuple[Configuration, ...]:
    """Returns the experiments of notebook 03 on the backbone, those of the original study among them."""
    best = find_experiment(TUNED)
    return tuple(
        Configuration(experiment.label, experiment, reference="" if experiment == best else best.label)
        for experiment in CATALOGUE
        if isinstance(experiment.model, Transfer) and experiment.model.backbone == BACKBONE
    )


def workspace_of(settings: Settings, configuration: Configuration) -> Settings:
    """Returns the settings of the workspace in which a configuration is trained.

    Where images are made square in another way than in the workspace, it is a folder in it, with the same split.
    """
    if configuration.resize in (None, resize_mode(settings)):
        return settings
    root = settings.root / f"resize-{configuration.resize}"
    other = settings.model_copy(update={"root": root, "resize": configuration.resize})
    load_splits(settings)
    resize_images(other, scan_images(other))
    names = "checks.csv train.csv val.csv test.csv split.json exclude.csv relabel.csv"
    for path in [settings.data / name for name in names.split()]:  # near-duplicates, too, are those found before
        if path.exists():
            shutil.copy(path, other.data)
    return other


def compare_configurations(
    settings: Settings,
    configurations: Sequence[Configuration],
    n_folds: int = 5,
    repetitions: int = 2,
    store: Path | None = None,
) -> pd.DataFrame:
    """Cross-validates configurations, prints tables, and writes `cross-validation.csv` into the workspace.

    The file keeps the rows of other configurations that were compared before, and of a trial (`epochs_cap`) or of full
    runs of the same.

    Args:
        settings: The settings; `only` is ignored.
        configurations: What to compare.
        n_folds: Folds, 3 or more.
        repetitions: How often folds are drawn.
        store: A table to which the paired differences are added, in place of those of as many images.

    Returns:
        One row per fold and configuration: `repetition`, `fold`, `configuration`, `epochs_cap`; the accuracy and the
        mean cross-entropy on its validation images, `val_accuracy` and `val_loss`, and on its held-out images,
        `test_accuracy` and `test_loss`.

    Raises:
        UserError: There is nothing to compare, two configurations have the same title, there are too few folds or
            images, or a configuration cannot be trained.
    """
    if not configurations:
        raise UserError(
            "Nothing to compare: choose --changes, --published or both (make configurations CONFIGURATIONS=…)."
        )
    titles = [configuration.title for configuration in configurations]
    if repeated := [title for title in titles if titles.count(title) > 1]:
        raise UserError(f"Two configurations are called {repeated[0]!r}: give one another title.")
    resize_images(settings, scan_images(settings))
    path = settings.root / "cross-validation.csv"
    earlier = read_table(path, ["configuration"]) if path.exists() else pd.DataFrame({"configuration": []})
    results, tables = {}, []
    for configuration in configurations:
        where = workspace_of(settings, configuration)
        given = where, configuration.experiment, n_folds, repetitions, configuration.mirrored
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
    differences = paired_differences(configurations, results)
    for row in differences.itertuples():
        interval = f"95 % interval {row.low:+.3f} to {row.high:+.3f}"
        print(f"{row.change} minus {row.reference}: {row.difference:+.3f} ({interval})")
    if store:
        rows = differences.assign(images=n, folds=n_folds, repetitions=repetitions, **about_data(settings))
        store_differences(rows, store)
    return table


def about_data(settings: Settings) -> dict[str, Any]:
    """Returns what stored differences say of their data and code."""
    splits = load_splits(settings)
    found = {"dataset": splits.dataset, "data_share": splits.share, "commit": git_commit()}
    return found | {"epochs_cap": settings.max_epochs}


def store_differences(rows: pd.DataFrame, path: Path) -> None:
    """Adds differences to a stored table, in place of those of the same changes on as many images."""
    if path.exists():
        stored, key = read_table(path), ["reference", "change", "images"]
        is_other = ~pd.MultiIndex.from_frame(stored[key]).isin(pd.MultiIndex.from_frame(rows[key]))
        rows = pd.concat([stored[is_other], rows], ignore_index=True)
    write_table(rows, path)


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


def paired_differences(configurations: Sequence[Configuration], results: Mapping[str, CrossValidation]) -> pd.DataFrame:
    """Compares configurations with their references, fold by fold.

    Args:
        configurations: The configurations; those whose reference was not cross-validated are left out.
        results: What was cross-validated, by title.

    Returns:
        `reference`; `change`, the configuration's title without it; means over folds: `val_accuracy`, `val_loss`,
        `accuracy` and `loss` on held-out images; and how much more accurate it is there than its reference:
        `difference`, with its 95 % interval, `low` to `high`.
    """
    rows = []
    for one in configurations:
        if one.reference in results:
            result = results[one.title]
            row = {"reference": one.reference, "change": one.title.removeprefix(f"{one.reference}: ")}
            row |= {name: result.table[name].mean() for name in ("val_accuracy", "val_loss", "accuracy", "loss")}
            rows.append(row | compare_cross_validated(result, results[one.reference]))
    columns = "reference change val_accuracy val_loss accuracy loss difference low high".split()
    return pd.DataFrame(rows, columns=columns)


def configuration_table(path: Path = STORED_DIFFERENCES) -> pd.DataFrame:
    """Returns the stored differences: how much each change of a training configuration gains or loses.

    Returns:
        As text, one row per reference and change, in the order of `changes`, one column per number of training and
        validation images: the paired difference in accuracy on held-out images, or on the test set, with its 95 %
        interval, in percentage points.
    """
    rows = read_table(path)
    texts = [
        f"{100 * d:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        for d, low, high in zip(rows.difference, rows.low, rows.high)
    ]
    titles = [f"{n:,} images" + (", test set" if np.isnan(folds) else "") for n, folds in zip(rows.images, rows.folds)]
    rows = rows.assign(title=titles)
    known = [(one.reference, one.title.removeprefix(f"{one.reference}: ")) for one in changes() if one.reference]
    stored = list(rows[["reference", "change"]].drop_duplicates().itertuples(index=False, name=None))
    order = [pair for pair in known if pair in stored] + [pair for pair in stored if pair not in known]
    wide = rows.assign(text=texts).pivot(index=["reference", "change"], columns="title", values="text")
    columns = list(rows.sort_values("images").title.unique())
    index = pd.MultiIndex.from_tuples(order, names=wide.index.names)
    return wide.reindex(index)[columns].fillna("not measured").rename_axis(columns=None)
