"""Folders as people have them: split folders, folders below classes, what systems leave, links, odd names."""

import os
import unicodedata

import pytest

from animals10.files import UserError, read_table
from animals10.layouts import contains_images, find_in_folder, is_system_entry, part_of
from animals10.preprocessing import resize_images, scan_images
from animals10.quality import check_images, leakage
from animals10.settings import Settings
from animals10.splits import load_splits

pytestmark = pytest.mark.usefixtures("small_classes")

ITALIAN = ("cane", "cavallo", "elefante", "farfalla", "gallina", "gatto", "mucca", "pecora", "ragno", "scoiattolo")


@pytest.fixture
def raw(tmp_path):
    return tmp_path / "raw"


@pytest.fixture
def fill(draw):
    """Returns a function that draws some images into class folders."""

    def _fill(folder, n=1, names=("cat", "dog")):
        for place, name in enumerate(names):
            for index in range(n):
                draw(folder / name / f"{index:02}.jpg", (20 * place, 10 * index % 256, 200))

    return _fill


@pytest.fixture
def workspace(tmp_path, raw):
    return Settings(root=tmp_path / "work", raw=raw, image_size=32, weights="random")


def rejected(settings):
    return read_table(settings.data / "rejected.csv").set_index("relpath").reason.to_dict()


def prepare(settings):
    return resize_images(settings, scan_images(settings))


# ── Folders that are no class ─────────────────────────────────────────────────────────────────────────────────────────


def test_folders_without_images_leave_the_ten_classes_english(workspace, raw, fill, capsys):
    fill(raw, names=ITALIAN)
    for name in ("__MACOSX/cane/._00.jpg", "docs/readme.txt", "phone/1.mov", "phone/2.mov", ".git/config"):
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_text("no image")
    (raw / "empty").mkdir()
    overview = scan_images(workspace)
    assert overview.category.nunique() == 10 and {"dog", "cat", "squirrel"} < set(overview.category)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "2 hidden or system files and folders are skipped: .git, __MACOSX.",
        "docs is no class, since it has no usable image: 1 × not an image in a known format.",
        "empty is no class, since it has no usable image: 1 × a folder without files.",
        "phone is no class, since it has no usable image: 2 × not an image in a known format.",
    ]
    assert set(rejected(workspace)) == {"docs/readme.txt", "empty", "phone/1.mov", "phone/2.mov"}


def test_another_class_beside_the_ten_keeps_all_folder_names_with_a_message(workspace, raw, fill, capsys):
    fill(raw, names=(*ITALIAN, "dog"))
    assert set(scan_images(workspace).category) == {*ITALIAN, "dog"}  # `cane` and `dog` must not become one class
    assert "keep their Italian names, since others lie beside them: dog." in capsys.readouterr().out


def test_what_systems_leave_is_skipped_and_counted_in_one_line(workspace, raw, fill, capsys):
    fill(raw)
    left = ["cat/Thumbs.db", "cat/.DS_Store", "dog/desktop.ini", "dog/._00.jpg", "dog/@eaDir/00.jpg", "cat/Icon\r"]
    left += ["cat/.ipynb_checkpoints/00-checkpoint.jpg", "dog/00.jpg:Zone.Identifier", "DESKTOP.INI", ".hidden.jpg"]
    for name in left:
        (raw / name).parent.mkdir(exist_ok=True)
        (raw / name).write_bytes((raw / "cat" / "00.jpg").read_bytes())
    assert len(scan_images(workspace)) == 2 and not rejected(workspace)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("10 hidden or system files and folders are skipped: ") and line.endswith(", ….")
    assert not is_system_entry(".cat.jpg") and is_system_entry(".cats", is_folder=True)


def test_a_class_that_is_lost_when_its_pixels_are_decoded_is_named(workspace, raw, fill, draw, capsys):
    fill(raw)
    path = draw(raw / "cut" / "00.jpg", size=(90, 90))
    path.write_bytes(path.read_bytes()[:-100])
    overview = scan_images(workspace)
    assert "cut" not in capsys.readouterr().out
    assert set(resize_images(workspace, overview).category) == {"cat", "dog"}
    assert "cut is no class, since it has no usable image: 1 × damaged: " in capsys.readouterr().out


def test_many_lost_classes_take_few_lines(workspace, raw, fill, capsys):
    fill(raw)
    for number in range(40):
        (raw / f"empty {number}").mkdir()
    scan_images(workspace)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 11 and lines[-1] == "… and 30 more such folders or labels, see rejected.csv."


# ── Folders below classes, and around them ────────────────────────────────────────────────────────────────────────────


def test_files_in_folders_below_a_class_count_for_it(workspace, raw, fill, draw, capsys):
    fill(raw)
    draw(raw / "cat" / "2024" / "00.jpg")
    draw(raw / "cat" / "2024" / "May" / "00.jpg")
    processed = prepare(workspace).set_index("source")
    assert processed.category[["cat/00.jpg", "cat/2024/00.jpg", "cat/2024/May/00.jpg"]].tolist() == ["cat"] * 3
    assert processed.relpath.str.lower().is_unique
    line = "2 files in folders below class folders count for their class: cat/2024, cat/2024/May."
    assert capsys.readouterr().out.splitlines() == [line]


def test_class_folders_are_found_in_the_only_folder(workspace, raw, fill, capsys):
    fill(raw / "archive" / "raw-img")
    (raw / "archive" / "translate.py").write_text("pass")
    (raw / "__MACOSX").mkdir()
    assert list(scan_images(workspace).relpath) == ["archive/raw-img/cat/00.jpg", "archive/raw-img/dog/00.jpg"]
    assert rejected(workspace) == {"archive/translate.py": "not in a class folder"}
    assert "The class folders are those in archive/raw-img." in capsys.readouterr().out


def test_links_are_followed_once(workspace, raw, fill, tmp_path):
    fill(tmp_path / "elsewhere", 3)
    fill(raw, names=("cat",))
    (raw / "dog").symlink_to(tmp_path / "elsewhere" / "dog")
    (raw / "cat" / "link.jpg").symlink_to(tmp_path / "elsewhere" / "cat" / "01.jpg")
    (raw / "cat" / "a link").symlink_to(raw / "cat" / "below")
    fill(raw / "cat", names=("below",))
    (raw / "cat" / "loop").symlink_to(raw)
    (raw / "cat" / "itself").symlink_to(raw / "cat" / "itself")
    overview = scan_images(workspace)
    assert overview.category.value_counts().to_dict() == {"cat": 3, "dog": 3}
    assert rejected(workspace) == {
        "cat/a link": "a link to a folder that was read already",
        "cat/itself": "a broken link or special file",
        "cat/loop": "a link to a folder that was read already",
    }


def test_a_raw_folder_that_is_a_loop_of_links_ends_in_one_line(workspace, raw):
    raw.mkdir()
    (raw / "self").symlink_to(raw)
    with pytest.raises(UserError, match="at least two folders"):
        scan_images(workspace)


def test_a_folder_that_may_not_be_written_is_read(as_nobody, fill):
    fill(as_nobody / "raw", 2)
    for path in [as_nobody / "raw", *(as_nobody / "raw").rglob("*")]:
        path.chmod(0o500 if path.is_dir() else 0o400)
    settings = Settings(root=as_nobody / "work", raw=as_nobody / "raw", image_size=32, weights="random")
    assert len(prepare(settings)) == 4 and not rejected(settings)


def test_a_raw_folder_that_may_not_be_read_is_no_reason_for_the_sample(as_nobody, capsys):
    raw = as_nobody / "data" / "raw-img"
    raw.mkdir(parents=True)
    raw.chmod(0)
    settings = Settings.from_environment({"ANIMALS10_ROOT": str(as_nobody)})
    assert settings.profile == "full" and not capsys.readouterr().out
    with pytest.raises(UserError, match="raw-img cannot be read: permission denied"):
        scan_images(settings)


def test_a_class_name_that_is_not_utf_8_is_spelled_out(workspace, raw, fill):
    fill(raw, 12)
    folder = os.fsencode(raw) + b"/caf\xe9"
    os.mkdir(folder)  # noqa: PTH102
    for name in os.listdir(raw / "dog"):  # noqa: PTH208
        with open(os.path.join(folder, b"\xe9" + os.fsencode(name)), "wb") as file:  # noqa: PTH118, PTH123
            file.write((raw / "dog" / name).read_bytes() + b"another")
    processed = prepare(workspace)
    assert r"caf\xe9" in set(processed.category)
    texts = "".join(path.read_text(encoding="utf-8", errors="surrogateescape") for path in workspace.data.glob("*.csv"))
    assert r"caf\xe9/" in texts


def test_a_class_name_of_macos_and_the_same_of_linux_are_one_class(workspace, raw, fill):
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    fill(raw / "train", 3, names=("dog", composed))
    fill(raw / "test", 3, names=("dog", decomposed))
    processed = prepare(workspace)
    assert set(processed.category) == {"dog", composed} and len(processed) == 12 and processed.relpath.is_unique


def test_a_class_name_that_gets_too_long_is_shortened(workspace, raw, fill):
    fill(raw)
    for end in (b"1", b"2"):
        folder = os.fsencode(raw) + b"/" + b"\xe9" * 250 + end
        os.mkdir(folder)  # noqa: PTH102
        with open(folder + b"/a.jpg", "wb") as file:  # noqa: PTH123
            file.write((raw / "dog" / "00.jpg").read_bytes() + end)
    assert prepare(workspace).category.nunique() == 4


@pytest.mark.parametrize("name", ["NA", "nan", "7", "1e5", "None", "train"])
def test_classes_of_any_name_are_split(workspace, raw, fill, name):
    fill(raw, 12, names=("cat", name))
    prepare(workspace)
    splits = load_splits(workspace)
    assert set(splits.class_names) == {"cat", name} == set(splits.test.category)


def test_images_without_class_folders_are_the_persons_own_and_no_reason_for_the_sample(tmp_path, draw, capsys):
    assert not contains_images(tmp_path / "none")
    raw = tmp_path / "data" / "raw-img"
    (raw / "cat").mkdir(parents=True)
    (raw / ".ipynb_checkpoints").mkdir()
    (raw / ".ipynb_checkpoints" / "a.jpg").touch()
    (raw / "Thumbs.db").touch()
    assert not contains_images(raw)
    draw(raw / "a.jpg")
    assert contains_images(raw)
    (raw / "labels.csv").write_text("file,label\n")
    settings = Settings.from_environment({"ANIMALS10_ROOT": str(tmp_path)})
    assert settings.profile == "full" and not capsys.readouterr().out
    with pytest.raises(UserError, match=r"has 0 usable images of 0 classes.* name it: RAW=\S*/labels.csv"):
        scan_images(settings)


# ── A split that came with the images ─────────────────────────────────────────────────────────────────────────────────


def test_names_of_parts():
    names = {
        "train": "train Training train2017 seg_train TRAIN training_set TrainSet",
        "val": "val valid validation dev",
    }
    names |= {"test": "test Testing test-images testset", "": "trainval train_test trains device contest cat"}
    for part, words in names.items():
        assert {part_of(name) for name in words.split()} == {part}, part


@pytest.mark.parametrize("folders", [("train", "val", "test"), ("Training", "dev", "Testing")])
def test_split_folders_are_used_as_the_split(workspace, raw, fill, capsys, folders):
    for folder, n in zip(folders, (6, 2, 3), strict=True):
        fill(raw / folder, n)
    (raw / folders[0] / "cat" / "05.jpg").rename(raw / folders[0] / "cat" / "return\r.jpg")  # all values are quoted
    same = (raw / folders[0] / "cat" / "00.jpg").read_bytes()
    (raw / folders[2] / "cat" / "00.jpg").write_bytes(same)
    prepare(workspace)
    splits = load_splits(workspace)
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    assert splits.kind == "given" and splits.class_names == ("cat", "dog")
    for (part, table), folder in zip(parts.items(), folders, strict=True):
        assert set(table.source.str.split("/").str[0]) == {folder} and "part" not in table, part
    assert [len(table) for table in parts.values()] == [12, 4, 6]
    assert list(leakage(check_images(workspace), parts).part) == ["test"]  # reported, not moved
    lines = capsys.readouterr().out.splitlines()
    assert any(line.endswith("are the split that came with the images.") for line in lines)
    assert "0 of 4 val and 1 of 6 test images have a near-duplicate among 12 in training." in lines[-1]
    again = load_splits(workspace.model_copy(update={"split": "published"}))
    assert again.sha256 == splits.sha256 and not capsys.readouterr().out
    (raw / folders[1] / "cat" / "00.jpg").rename(raw / folders[0] / "cat" / "moved.jpg")
    for path in workspace.data.glob("*.csv"):
        path.unlink()
    prepare(workspace)
    assert load_splits(workspace).sha256 != splits.sha256  # the data checksum tells the split


@pytest.mark.parametrize(
    ("folders", "sizes", "message"),
    [
        (("train", "test"), (16, 4, 4), "it has no validation set, so 20 % of its training images"),
        (("train", "valid"), (18, 4, 2), "it has no test set, so 10 % of its training images"),
    ],
)
def test_a_missing_part_is_drawn_from_the_training_set(workspace, raw, fill, capsys, folders, sizes, message):
    fill(raw / folders[0], 10)
    fill(raw / folders[1], 2)
    prepare(workspace)
    splits = load_splits(workspace)
    assert (len(splits.train), len(splits.val), len(splits.test)) == sizes
    assert set(splits.val.category) == set(splits.test.category) == {"cat", "dog"}
    drawn = splits.val if folders[1] == "test" else splits.test
    assert set(drawn.source.str.split("/").str[0]) == {"train"} and message in capsys.readouterr().out


def test_near_duplicates_stay_together_when_a_part_is_drawn(workspace, raw, fill):
    fill(raw / "train", 12)
    fill(raw / "test", 2)
    for path in list((raw / "train").glob("*/*.jpg")):
        path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
    prepare(workspace)
    splits = load_splits(workspace)
    assert len(splits.val) == 2 * round(0.2 * 24) and not set(splits.val.sha256) & set(splits.train.sha256)


def test_a_training_set_too_small_to_draw_from_is_one_line(workspace, raw, fill):
    fill(raw / "train", 4)
    fill(raw / "test", 4)
    prepare(workspace)
    with pytest.raises(UserError, match=r"Too few images to draw a validation set .*: cat has 4, dog has 4; .*least 5"):
        load_splits(workspace)


def test_what_lies_beside_and_between_split_folders_is_recorded(workspace, raw, fill, draw, capsys):
    fill(raw / "training_set" / "training_set", 6)
    fill(raw / "test_set", 2, names=("cat", "dog", "extra"))
    fill(raw / "unlabelled", 3, names=("all",))
    draw(raw / "test_set" / "stray.jpg")
    (raw / "val").mkdir()
    overview = scan_images(workspace)
    assert overview.groupby("part").size().to_dict() == {"test": 6, "train": 12}
    found = rejected(workspace)
    assert found["val"] == "a folder without files"
    assert found["test_set/stray.jpg"] == "not in a class folder" and "beside the split" in found["unlabelled"]
    assert "no part of that split, and not used: unlabelled." in capsys.readouterr().out
    resize_images(workspace, overview)
    load_splits(workspace)
    lines = capsys.readouterr().out.splitlines()
    assert "There is no image of extra in train." in lines and "There is no image of extra in val." in lines


def test_folders_named_like_a_split_without_classes_are_never_taken_for_classes(workspace, raw, fill):
    fill(raw, 3, names=("train", "test"))
    with pytest.raises(UserError, match=r"folders test, train, which name a split, but no training folder with class"):
        scan_images(workspace)
    fill(raw, 3, names=("bus", "plane"))  # vehicles
    assert set(scan_images(workspace).category) == {"train", "test", "bus", "plane"}


def test_a_split_that_comes_later_is_not_ignored(workspace, raw, fill, tmp_path):
    table = tmp_path / "labels.csv"
    fill(raw, 12)
    rows = [(f"raw/{name}/{n:02}.jpg", name) for name in ("cat", "dog") for n in range(12)]
    table.write_text("file,label\n" + "".join(f"{file},{label}\n" for file, label in rows))
    settings = workspace.model_copy(update={"raw": table})
    prepare(settings)
    assert load_splits(settings).kind == "grouped"
    parts = ["train", "val", "test"] * 8
    lines = [f"{file},{label},{part}\n" for (file, label), part in zip(rows, parts, strict=True)]
    table.write_text("file,label,split\n" + "".join(lines))
    prepare(settings)
    with pytest.raises(UserError, match=r"is 'grouped', but the images came with one: delete train.csv"):
        load_splits(settings)


# ── One folder too high or too low ────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("place", ["cat", "cat/more", ".."])
def test_a_raw_folder_that_is_not_that_of_the_classes_names_the_likely_one(workspace, raw, fill, draw, place):
    raw = raw / "pictures"
    fill(raw, 2)
    (raw.parent / "notes").mkdir()
    (raw.parent / "notes" / "read me.txt").write_text("no image")
    draw(raw / "cat" / "more" / "a.jpg")
    settings = workspace.model_copy(update={"raw": raw / place})
    with pytest.raises(UserError, match=rf"needs at least two folders .* Most likely you mean RAW={raw}\.$"):
        scan_images(settings)


def test_the_folder_of_a_workspaces_data_is_not_taken_for_class_folders(workspace, raw, fill):
    fill(raw / "raw-img")
    fill(raw / "processed")
    with pytest.raises(UserError, match=rf"has one: name that, RAW={raw}/raw-img\.$"):
        scan_images(workspace)


def test_the_folder_of_a_split_is_named_where_its_classes_lie_deep(workspace, raw, fill):
    for part in ("train", "test"):
        fill(raw / "archive" / "images" / part)
    (raw / "archive" / "notes").mkdir()
    (raw / "archive" / "notes" / "read me.txt").write_text("no image")
    with pytest.raises(UserError, match=rf"Most likely you mean RAW={raw}/archive/images\.$"):
        scan_images(workspace)


def test_classes_that_may_lie_one_folder_deeper_are_named(workspace, raw, fill, capsys):
    fill(raw / "animals")
    fill(raw, names=("holiday",))
    assert set(scan_images(workspace).category) == {"animals", "holiday"}
    line = capsys.readouterr().out.splitlines()[-1]
    assert line == f"If those in animals are the classes, name it: RAW={raw}/animals."


def test_a_training_folder_alone_names_the_split_that_it_leaves_out(workspace, raw, fill, capsys):
    for part in ("train", "val", "test"):
        fill(raw / part)
    scan_images(workspace.model_copy(update={"raw": raw / "train"}))
    assert capsys.readouterr().out.splitlines() == [
        f"train is used without its split: test, val lie beside it. To use them, name the folder above: RAW={raw}."
    ]


def test_plain_class_folders_have_nothing_to_say(raw, fill):
    fill(raw, 2)
    found = find_in_folder(raw)
    assert not found.messages and not found.has_split and len(found.files) == 4
