import pandas as pd
import pytest

import auxiliary as aux


def test_the_split_is_stratified_whole_and_written_once(prepared):
    splits = aux.load_splits(prepared)
    parts = [splits.train, splits.val, splits.test]
    assert [len(part) for part in parts] == [35, 10, 5]
    assert pd.concat(parts).relpath.is_unique and all(set(part.label) == {0, 1, 2} for part in parts)
    assert splits.class_names == ("blue", "green", "red")
    before = (prepared.data / "train.csv").read_bytes()
    again = aux.load_splits(prepared.model_copy(update={"seed": 99}))  # reused, not drawn again
    assert again.sha256 == splits.sha256 and (prepared.data / "train.csv").read_bytes() == before


def test_the_published_sizes():
    sizes = {"dog": 4863, "spider": 4821, "chicken": 3098, "horse": 2623, "butterfly": 2112, "cow": 1866}
    sizes |= {"squirrel": 1862, "sheep": 1820, "cat": 1668, "elephant": 1446}
    rows = [(f"{name}/{index:04}.jpg", name, name) for name, n in sizes.items() for index in range(n)]
    table = pd.DataFrame(rows, columns=["relpath", "category", "label"])
    parts = aux._split(table, 5, table.relpath)
    assert {name: len(part) for name, part in parts.items()} == {"train": 18_325, "val": 5_236, "test": 2_618}
    shuffled = aux._split(table.sample(frac=1, random_state=1), 5, table.relpath)
    assert list(parts["test"].relpath) == list(shuffled["test"].relpath)
    balanced = aux.balance(parts["train"], "mean", seed=5)
    assert set(balanced.label.value_counts()) == {1832}


def test_balancing(prepared):
    train = aux.load_splits(prepared).train
    counts = train.label.value_counts()
    assert aux.balance(train, "none", 5).equals(train)
    assert set(aux.balance(train, "min", 5).label.value_counts()) == {counts.min()}
    largest = aux.balance(train, "max", 5)
    assert set(largest.label.value_counts()) == {counts.max()}
    assert set(largest.relpath) == set(train.relpath)  # repeated, and none left out
    mean = aux.balance(train, "mean", 5)
    assert set(mean.label.value_counts()) == {int(counts.mean())}
    small = train[train.label.isin(counts[counts <= counts.mean()].index)]
    assert set(small.relpath) <= set(mean.relpath) and mean.equals(aux.balance(train, "mean", 5))


def test_too_few_photographs_of_a_class_is_one_clear_error(settings):
    for path in sorted((settings.raw / "red").iterdir())[9:]:
        path.unlink()
    aux.resize_photographs(settings, aux.scan_photographs(settings))
    with pytest.raises(aux.StudyError, match=r"red has 9.*at least 10"):
        aux.load_splits(settings)


def test_a_split_that_does_not_fit_the_photographs_is_refused(prepared, draw):
    aux.load_splits(prepared)
    test = aux.read_table(prepared.data / "test.csv")
    draw(prepared.raw / aux.Path(test.source[0]), (0, 0, 0))
    aux.resize_photographs(prepared, aux.scan_photographs(prepared))
    with pytest.raises(aux.StudyError, match="photographs have changed"):
        aux.load_splits(prepared)
    (prepared.data / "test.csv").unlink()
    with pytest.raises(aux.StudyError, match=r"test.csv is missing"):
        aux.load_splits(prepared)


def test_without_pictures_the_error_names_the_notebook_to_run(settings):
    with pytest.raises(aux.StudyError, match=r"run 01-preprocessing.ipynb first"):
        aux.load_splits(settings)
