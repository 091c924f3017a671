"""What leakage was found to be worth: the stored values of `make leakage`, as tables and sentences."""

import pandas as pd

from animals10.files import REPOSITORY, read_table
from animals10.runs import RunKey, run_labels

LEAKAGE_RESULTS = REPOSITORY / "data" / "animals10-leakage.csv"
# Conditions of training; the last one is the difference in accuracy, without others minus without partners.
AS_IT_IS, WITHOUT_PARTNERS, WITHOUT_OTHERS, DIFFERENCE = "as it is", "without partners", "without others", "difference"
TEST_IMAGES = {  # parts of the test set, and their titles
    "all": "all test images",
    "leaked": "with a near-duplicate in training",
    "others": "without one",
    "distinct": "each photograph once",
}


def leakage_results() -> pd.DataFrame:
    """Returns what was measured on Animals-10, see `observe` and `retrain`; `data_share` and `commit` tell on what."""
    return read_table(LEAKAGE_RESULTS)


def observed_leakage(results: pd.DataFrame, split: str) -> pd.DataFrame:
    """Returns the observed accuracies on one kind of split, as text with their 95 % intervals: one row per run."""
    rows = results.query("part == 'observed' and split == @split").astype({"repetition": "int64"})
    keys = rows[list(RunKey._fields)].drop_duplicates()
    titles = [f"{TEST_IMAGES[name]} (n = {n:,})" for name, n in zip(rows.test_images, rows.n)]
    wide = rows.assign(title=titles, text=_with_interval(rows)).pivot(index=[*keys], columns="title", values="text")
    wide = wide.reindex(pd.MultiIndex.from_frame(keys))[list(dict.fromkeys(titles))]
    return wide.set_axis(pd.Index(run_labels(keys), name="run")).rename_axis(columns=None)


def retrained_leakage(results: pd.DataFrame, split: str) -> pd.DataFrame:
    """Returns the mean accuracies of retrained experiments on one kind of split: one row per part of the test set."""
    rows, table = _retrained(results, split), []
    for (label, name), found in rows.groupby(["label", "test_images"], sort=False):
        values = found.set_index("condition")
        row = {"experiment": label, "seeds": int(found.seeds.iloc[0])}
        row |= {"test images": TEST_IMAGES[name], "n": found.n.iloc[0]}
        row |= {condition: f"{values.accuracy[condition]:.4f}" for condition in values.index if condition != DIFFERENCE}
        last = values.loc[[DIFFERENCE]]
        row |= {"difference (95 % interval)": _with_interval(last, "+.4f")[0]}
        row |= {"over seeds alone": "{:+.4f} to {:+.4f}".format(*last[["seeds_low", "seeds_high"]].iloc[0])}
        table.append(row)
    return pd.DataFrame(table).set_index("experiment")


def observed_sentence(results: pd.DataFrame, split: str) -> str:
    """Says in words how accurate runs are on test images with and without a near-duplicate in training."""
    rows = results.query("part == 'observed' and split == @split")
    accuracy = rows.pivot(index=list(RunKey._fields), columns="test_images", values="accuracy")
    n, change = rows.groupby("test_images").n.first(), accuracy.distinct - accuracy["all"]
    runs = "1 run" if len(accuracy) == 1 else f"{len(accuracy)} runs"
    leaked = "No test image has a near-duplicate in training."
    if "leaked" in accuracy:
        others = f", and {_range(accuracy.others)} on the {n.others:,} others" if "others" in n else ""
        leaked = (
            f"Accuracy is {_range(accuracy.leaked)} on the {n.leaked:,} test images with a near-duplicate in training"
            f"{others}."
        )
    return (
        f"Over {runs}: {leaked} If each photograph counts once, accuracy on the test set changes by "
        f"{_range(change, '+.4f')}."
    )


def retrained_sentences(results: pd.DataFrame, split: str) -> list[str]:
    """Says in words, for each retrained experiment, what the near-duplicates in training are worth."""
    sentences = []
    for label, rows in _retrained(results, split).groupby("label", sort=False):
        values = rows.set_index(["condition", "test_images"])
        accuracy, n = values.accuracy, values.n[DIFFERENCE]
        worth = values.loc[[(DIFFERENCE, "leaked")]]
        on_all = worth.accuracy.iloc[0] * n["leaked"] / n["all"]
        before, after = (
            " and ".join(f"{accuracy[condition][name]:.3f}" for name in ("leaked", "others") if name in n)
            for condition in (AS_IT_IS, WITHOUT_PARTNERS)
        )
        sentences.append(
            f"{label}, {worth.seeds.iloc[0]:.0f} seeds: {worth.removed.iloc[0]:.0f} near-duplicates in training change "
            f"the accuracy on the {n['leaked']:,} test images that have one by "
            f"{_with_interval(worth, '+.4f', '95 % interval ')[0]}, which is {on_all:+.4f} of the accuracy on all "
            f"{n['all']:,}. As it is, accuracy on those test images and on the others is {before}; trained without the "
            f"near-duplicates, it is {after}."
        )
    return sentences


def summary(results: pd.DataFrame) -> list[str]:
    """Returns the texts that `make leakage` prints: both tables, each with its conclusion."""
    texts = []
    for split in results.split.unique():
        parts = set(results.part[results.split == split])
        if "observed" in parts:
            texts.append(f"Observed test accuracy on the {split} split, with 95 % Wilson intervals")
            texts += [observed_leakage(results, split).to_string(), observed_sentence(results, split)]
        if "retrained" in parts:
            texts.append(
                f"Test accuracy on the {split} split, trained again: as it is, without the near-duplicates of test "
                "images (partners), and without as many other images. The difference between the last two is what the "
                "near-duplicates are worth."
            )
            texts += [retrained_leakage(results, split).to_string(), *retrained_sentences(results, split)]
    return texts


def _retrained(results: pd.DataFrame, split: str) -> pd.DataFrame:
    """Returns the retrained rows of one kind of split, with a `label` for each experiment."""
    rows = results.query("part == 'retrained' and split == @split")
    keys = rows[["model_id", "learning_rate", "epochs"]]
    distinct = keys.drop_duplicates()
    return rows.merge(distinct.assign(label=run_labels(distinct)), on=[*keys])


def _with_interval(rows: pd.DataFrame, form: str = ".3f", words: str = "") -> list[str]:
    cells = zip(rows.accuracy, rows.low, rows.high)
    return [f"{value:{form}} ({words}{low:{form}} to {high:{form}})" for value, low, high in cells]


def _range(values: pd.Series, form: str = ".3f") -> str:
    low, high = f"{values.min():{form}}", f"{values.max():{form}}"
    return low if low == high else f"{low} to {high}"
