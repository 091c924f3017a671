import pandas as pd
import pytest
from PIL import Image

from animals10 import splits as splits_module
from animals10.files import UserError, read_table
from animals10.preprocessing import resize_images, scan_images
from animals10.quality import check_images, leakage
from animals10.splits import load_splits, resample


def resized(settings):
    return resize_images(settings, scan_images(settings))


def split_in_spite_of_the_scan(settings):
    resize_images(settings, scan_images(settings, allow_small_classes=True))
    load_splits(settings)


def test_the_split_is_stratified_complete_and_written_once(prepared):
    splits = load_splits(prepared)
    parts = [splits.train, splits.val, splits.test]
    assert [len(part) for part in parts] == [35, 10, 5]
    assert pd.concat(parts).relpath.is_unique and all(set(part.label) == {0, 1, 2} for part in parts)
    assert splits.class_names == ("blue", "green", "red")
    before = (prepared.data / "train.csv").read_bytes()
    again = load_splits(prepared.model_copy(update={"seed": 99}))  # read, not drawn again
    assert again.sha256 == splits.sha256 and (prepared.data / "train.csv").read_bytes() == before


def test_the_published_sizes():
    sizes = {"dog": 4863, "spider": 4821, "chicken": 3098, "horse": 2623, "butterfly": 2112, "cow": 1866}
    sizes |= {"squirrel": 1862, "sheep": 1820, "cat": 1668, "elephant": 1446}
    rows = [(f"{name}/{index:04}.jpg", name, name) for name, n in sizes.items() for index in range(n)]
    table = pd.DataFrame(rows, columns=["relpath", "category", "label"])
    parts = splits_module.draw_split(table, 5, table.relpath)
    assert {name: len(part) for name, part in parts.items()} == {"train": 18_325, "val": 5_236, "test": 2_618}
    shuffled = splits_module.draw_split(table.sample(frac=1, random_state=1), 5, table.relpath)
    assert list(parts["test"].relpath) == list(shuffled["test"].relpath)
    resampled = resample(parts["train"], "mean", seed=5)
    assert set(resampled.label.value_counts()) == {1832}


def test_resampling(prepared):
    train = load_splits(prepared).train
    counts = train.label.value_counts()
    assert resample(train, "none", 5).equals(train)
    assert set(resample(train, "min", 5).label.value_counts()) == {counts.min()}
    largest = resample(train, "max", 5)
    assert set(largest.label.value_counts()) == {counts.max()}
    assert set(largest.relpath) == set(train.relpath)  # repeated, and none left out
    mean = resample(train, "mean", 5)
    assert set(mean.label.value_counts()) == {int(counts.mean())}
    small = train[train.label.isin(counts[counts <= counts.mean()].index)]
    assert set(small.relpath) <= set(mean.relpath) and mean.equals(resample(train, "mean", 5))
    with pytest.raises(ValueError, match="'median'; allowed is none, min, mean, max"):
        resample(train, "median", 5)


def test_oversampling_repeats_each_image_equally_often():
    train = pd.DataFrame({"relpath": list("abcdefghij"), "label": [0] * 7 + [1] * 3})
    repeats = resample(train, "max", 5).relpath.value_counts()
    assert all(repeats[list("abcdefg")] == 1) and sorted(repeats[list("hij")]) == [2, 2, 3]


def test_too_few_images_of_a_class_is_one_clear_error(settings):
    for path in sorted((settings.raw / "red").iterdir())[9:]:
        path.unlink()
    with pytest.raises(UserError, match=r"red has 9.*at least 10"):
        scan_images(settings)
    assert not (settings.data / "processed").exists()  # before hours are spent on resizing
    with pytest.raises(UserError, match=r"red has 9.*at least 10"):
        split_in_spite_of_the_scan(settings)


def test_a_split_that_does_not_match_the_images_is_refused(prepared, draw):
    load_splits(prepared)
    test = read_table(prepared.data / "test.csv")
    draw(prepared.raw / test.source[0], (0, 0, 0))
    resized(prepared)
    with pytest.raises(UserError, match="images have changed"):
        load_splits(prepared)
    (prepared.data / "test.csv").unlink()
    with pytest.raises(UserError, match=r"test.csv is missing"):
        load_splits(prepared)


def test_without_processed_images_the_error_names_the_notebook_to_run(settings):
    with pytest.raises(UserError, match=r"run 01-preprocessing.ipynb first"):
        load_splits(settings)


def edited(prepared, part="test"):
    load_splits(prepared)
    return read_table(prepared.data / f"{part}.csv")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.drop(columns="label"), "test.csv lacks the column label"),
        (lambda table: table.assign(category=["gren", *table.category[1:]]), "class gren, not one of blue, green, red"),
        (lambda table: table.assign(sha256=[None, *table.sha256[1:]]), "test.csv has a row without sha256"),
        (lambda table: table.assign(label=["x", *table.label[1:]]), "another label or checksum of"),
        (lambda table: table.assign(relpath=["red/no.jpg", *table.relpath[1:]]), "test.csv names red/no.jpg, which is"),
        (lambda table: pd.concat([table, table[:1]]), r"is in \S*test.csv and again in \S*test.csv"),
        (lambda table: table[:0], "test.csv has no images"),
    ],
)
def test_a_wrongly_edited_table_is_one_clear_line(prepared, change, message):
    change(edited(prepared)).to_csv(prepared.data / "test.csv", index=False)
    with pytest.raises(UserError, match=message) as error:
        load_splits(prepared)
    assert "\n" not in str(error.value) and "delete train.csv, val.csv and test.csv there" in str(error.value)


def test_an_image_in_two_parts_or_without_its_file_is_one_clear_line(prepared):
    test = edited(prepared)
    val = read_table(prepared.data / "val.csv")
    pd.concat([val, test[:1]]).to_csv(prepared.data / "val.csv", index=False)
    with pytest.raises(UserError, match=rf"{test.relpath[0]} is in \S*test.csv and again in \S*val.csv"):
        load_splits(prepared)
    val.to_csv(prepared.data / "val.csv", index=False)
    load_splits(prepared)
    (prepared.data / "processed" / test.relpath[0]).unlink()
    with pytest.raises(UserError, match=rf"test.csv names {test.relpath[0]}, which is missing in .*processed"):
        load_splits(prepared)
    (prepared.data / "test.csv").write_text("")
    with pytest.raises(UserError, match=r"test.csv is not a csv table"):
        load_splits(prepared)


def test_a_split_made_by_hand_is_used_as_it_is(prepared):
    test, train = edited(prepared), read_table(prepared.data / "train.csv")
    pd.concat([test, train[:1]]).assign(remark="mine").to_csv(prepared.data / "test.csv", index=False)
    train[1:].to_csv(prepared.data / "train.csv", index=False)
    splits = load_splits(prepared)
    assert len(splits.test) == len(test) + 1 and len(splits.train) == len(train) - 1


def test_images_added_after_the_split_are_reported(prepared, draw, capsys):
    before = load_splits(prepared)
    draw(prepared.raw / "red" / "new.jpeg")
    resized(prepared)
    assert load_splits(prepared).sha256 == before.sha256
    assert "1 images were added after the split and are not used; delete train.csv" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("raw", "profile", "expected"),
    [
        ("raw", "sample", "sample"),
        ("animals10/data/raw-img", "full", "animals10-part"),
        ("mine/raw-img", "full", "mine"),
        ("/data/raw-img", "full", "raw-img"),
        ("/raw-img", "full", "raw-img"),
        ("/", "full", "unnamed"),
        ("NA/raw-img", "full", "NA"),
        ("7", "full", "7"),
        ("caf\udce9", "full", r"caf\xe9"),
    ],
)
def test_the_data_set_is_named(prepared, tmp_path, raw, profile, expected):
    renamed = prepared.model_copy(update={"raw": tmp_path / raw, "profile": profile})
    assert load_splits(renamed).dataset == expected


def test_without_near_duplicates_the_grouped_split_is_the_published_one(prepared):
    grouped = load_splits(prepared)
    for part in ("train", "val", "test"):
        (prepared.data / f"{part}.csv").unlink()
    published = load_splits(prepared.model_copy(update={"split": "published"}))
    assert published.sha256 == grouped.sha256


def test_near_duplicates_stay_in_one_part(settings):
    """Each green image has a copy, and the same as PNG among the blue ones; only the published split separates them."""
    for path in sorted((settings.raw / "green").iterdir()):
        (settings.raw / "green" / f"copy of {path.name}").write_bytes(path.read_bytes())
        with Image.open(path) as image:
            image.save(settings.raw / "blue" / f"like {path.stem}.png")
    resized(settings)
    checks = check_images(settings)
    assert checks.group.nunique() == 50
    for split in ("published", "grouped"):
        splits = load_splits(settings.model_copy(update={"split": split}))
        parts = {"train": splits.train, "val": splits.val, "test": splits.test}
        assert sum(map(len, parts.values())) == 90 and pd.concat(parts.values()).relpath.is_unique
        assert leakage(checks, parts).empty == (split == "grouped")
        for part in parts:
            (settings.data / f"{part}.csv").unlink()
    assert [part.groupby("category").ngroups for part in parts.values()] == [3, 3, 3]


def test_duplicates_do_not_count_towards_the_minimum_number_of_images(settings):
    red = sorted((settings.raw / "red").iterdir())
    for path in red[5:]:
        path.write_bytes(red[0].read_bytes())
    for refuse in (scan_images, split_in_spite_of_the_scan):
        with pytest.raises(UserError, match=r"red has 5; .* not counting duplicates"):
            refuse(settings)


def test_frames_of_one_camera_have_a_way_out(settings):
    """Too few groups of near-duplicates, but enough images: the error names what helps, and it does."""
    for name in ("red", "green"):
        first, *others = sorted((settings.raw / name).iterdir())[4:]
        for path in others:
            path.write_bytes(first.read_bytes())
    with pytest.raises(UserError) as error:
        scan_images(settings)
    message = str(error.value)
    assert "\n" not in message and "green has 5, red has 5;" in message and "14 of red" in message
    assert "ANIMALS10_SPLIT=published" in message and "as folders train, val and test" in message
    published = settings.model_copy(update={"split": "published"})
    resized(published)
    splits = load_splits(published)
    assert splits.kind == "published" and len(splits.test) == 5


def test_few_images_are_not_blamed_on_near_duplicates(settings):
    for path in sorted((settings.raw / "red").iterdir())[1:]:
        path.unlink()  # one image is left
    for refuse in (scan_images, split_in_spite_of_the_scan):
        with pytest.raises(UserError, match=r"red has 1; a class needs at least 10 .* remove its folder\. Then"):
            refuse(settings)


def test_a_split_of_ones_own_decides_how_many_images_a_class_needs(prepared):
    load_splits(prepared)
    for path in sorted((prepared.raw / "red").iterdir())[8:]:
        path.unlink()
    assert (scan_images(prepared).category == "red").sum() == 8  # the tables may be edited
