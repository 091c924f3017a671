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


def edited(prepared, part="test"):
    aux.load_splits(prepared)
    return aux.read_table(prepared.data / f"{part}.csv")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: table.drop(columns="label"), "test.csv lacks the column label"),
        (lambda table: table.assign(category=["gren", *table.category[1:]]), "of the class gren, none of blue, green"),
        (lambda table: table.assign(sha256=[None, *table.sha256[1:]]), "test.csv has a row without sha256"),
        (lambda table: table.assign(label=["x", *table.label[1:]]), "another label or checksum of"),
        (lambda table: table.assign(relpath=["red/no.jpg", *table.relpath[1:]]), "test.csv names red/no.jpg, which is"),
        (lambda table: pd.concat([table, table[:1]]), r"is in \S*test.csv and again in \S*test.csv"),
        (lambda table: table[:0], "test.csv holds no photographs"),
    ],
)
def test_a_table_that_was_edited_into_nonsense_is_one_clear_line(prepared, change, said):
    change(edited(prepared)).to_csv(prepared.data / "test.csv", index=False)
    with pytest.raises(aux.StudyError, match=said) as error:
        aux.load_splits(prepared)
    assert "\n" not in str(error.value) and "delete train.csv, val.csv and test.csv there" in str(error.value)


def test_a_photograph_in_two_parts_or_without_its_picture_is_one_clear_line(prepared):
    test = edited(prepared)
    val = aux.read_table(prepared.data / "val.csv")
    pd.concat([val, test[:1]]).to_csv(prepared.data / "val.csv", index=False)
    with pytest.raises(aux.StudyError, match=rf"{test.relpath[0]} is in \S*test.csv and again in \S*val.csv"):
        aux.load_splits(prepared)
    val.to_csv(prepared.data / "val.csv", index=False)
    aux.load_splits(prepared)
    (prepared.data / "processed" / test.relpath[0]).unlink()
    with pytest.raises(aux.StudyError, match=rf"test.csv names {test.relpath[0]}, which is missing in .*processed"):
        aux.load_splits(prepared)
    (prepared.data / "test.csv").write_text("")
    with pytest.raises(aux.StudyError, match=r"test.csv is no csv table"):
        aux.load_splits(prepared)


def test_a_hand_made_split_is_taken_as_it_is(prepared):
    test, train = edited(prepared), aux.read_table(prepared.data / "train.csv")
    pd.concat([test, train[:1]]).assign(remark="mine").to_csv(prepared.data / "test.csv", index=False)
    train[1:].to_csv(prepared.data / "train.csv", index=False)
    splits = aux.load_splits(prepared)
    assert len(splits.test) == len(test) + 1 and len(splits.train) == len(train) - 1


def test_without_duplicates_the_grouped_split_is_the_published_one(prepared):
    grouped = aux.load_splits(prepared)
    for part in ("train", "val", "test"):
        (prepared.data / f"{part}.csv").unlink()
    published = aux.load_splits(prepared.model_copy(update={"split": "published"}))
    assert published.sha256 == grouped.sha256


def test_what_shows_the_same_stays_in_one_part(settings):
    """Each green photograph has a copy, and the same as PNG among the blue; only the published split parts them."""
    for path in sorted((settings.raw / "green").iterdir()):
        (settings.raw / "green" / f"copy of {path.name}").write_bytes(path.read_bytes())
        with aux.Image.open(path) as picture:
            picture.save(settings.raw / "blue" / f"like {path.stem}.png")
    aux.resize_photographs(settings, aux.scan_photographs(settings))
    checks = aux.check_pictures(settings)
    assert checks.group.nunique() == 50
    for split in ("published", "grouped"):
        splits = aux.load_splits(settings.model_copy(update={"split": split}))
        parts = {"train": splits.train, "val": splits.val, "test": splits.test}
        assert sum(map(len, parts.values())) == 90 and pd.concat(parts.values()).relpath.is_unique
        crossing = aux.pictures.crossings(checks, parts)
        assert crossing.empty == (split == "grouped")
        for part in parts:
            (settings.data / f"{part}.csv").unlink()
    assert [part.groupby("category").ngroups for part in parts.values()] == [3, 3, 3]


def test_copies_do_not_count_towards_the_least_number_of_photographs(settings):
    red = sorted((settings.raw / "red").iterdir())
    for path in red[5:]:
        path.write_bytes(red[0].read_bytes())
    aux.resize_photographs(settings, aux.scan_photographs(settings))
    with pytest.raises(aux.StudyError, match=r"red has 5; .* not counting copies"):
        aux.load_splits(settings)
