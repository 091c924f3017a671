"""Tables of labels in place of folders: any csv that a person may have, and what is wrong with its rows."""

import pytest

from animals10.files import UserError, read_table
from animals10.label_tables import _names_folder
from animals10.preprocessing import resize_images, scan_images
from animals10.settings import Settings
from animals10.splits import load_splits

pytestmark = pytest.mark.usefixtures("small_classes")

LABELS = ("cat", "dog")


@pytest.fixture
def scan(tmp_path, draw):
    """Returns a function that writes a table beside six images, 0.jpg to 5.jpg in `img/`, and scans it."""
    for number in range(6):
        draw(tmp_path / "pets" / "img" / f"{number}.jpg", (40 * number, 100, 200))

    def _scan(content: str | bytes, columns=()):
        table = tmp_path / "pets" / "labels.csv"
        table.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
        options = {"image_size": 32, "weights": "random", "table_columns": columns}
        settings = Settings(root=tmp_path / "work", raw=table, **options)
        return settings, scan_images(settings)

    return _scan


def rejected(settings):
    table = read_table(settings.data / "rejected.csv")
    return sorted(zip(table.relpath, table.reason, strict=True))


def rows(separator=",", numbers=range(6), form="img/{}.jpg"):
    return "".join(f"{form.format(number)}{separator}{LABELS[number % 2]}\n" for number in numbers)


@pytest.mark.parametrize(
    "content",
    [
        "file,label\n" + rows(),
        "label,extra,File Name\n" + "".join(f"{LABELS[n % 2]},x,img/{n}.jpg\n" for n in range(6)),
        "\ufeffImage_Path;Class\n" + rows(";"),
        "sep=;\r\nfilepaths;labels\r\n" + rows(";").replace("\n", "\r\n"),
        "path\tcategory\n" + rows("\t"),
        ("filename,species\n" + rows()).encode("utf-16"),
        "image,label\n" + rows(form="./img//{}.jpg") + ",\n\n",
        "image,label\n" + rows(form=r"img\{}.jpg"),
        "image,label\n" + rows(",  ", form="  img/{}.jpg"),
        "path,class_id,label,class_name\n" + "".join(f"img/{n}.jpg,{n},{n % 2},{LABELS[n % 2]}\n" for n in range(6)),
    ],
)
def test_tables_of_any_make_are_read(scan, content):
    settings, overview = scan(content)
    assert list(overview.relpath) == [f"img/{n}.jpg" for n in range(6)]
    assert list(overview.category) == [*LABELS] * 3 and not rejected(settings)
    processed = resize_images(settings, overview)
    assert sorted(processed.source) == list(overview.relpath) and len(set(processed.relpath)) == 6


def test_columns_can_be_named_and_otherwise_the_choice_is_said(scan, capsys):
    content = "ours,label,theirs\n" + "".join(f"img/{n}.jpg,{n % 3},{LABELS[n % 2]}\n" for n in range(6))
    with pytest.raises(
        UserError, match=r"no column of files is recognised, its columns are ours, label, theirs.*TABLE_"
    ):
        scan(content)
    _, overview = scan(content, ("ours", "theirs"))
    assert set(overview.category) == {*LABELS}
    assert capsys.readouterr().out == "labels.csv names files in the column ours, labels in theirs.\n"
    with pytest.raises(UserError, match=r"has no column their \(ANIMALS10_TABLE_COLUMNS\): its columns are ours"):
        scan(content, ("ours", "their"))


def test_every_row_and_image_that_is_not_used_is_recorded(scan, tmp_path, capsys):
    bad = "img/0.jpg,cat\nimg/1.jpg,cat\nimg/9.jpg,cat\n,cat\nimg/5.jpg,\nimg/4.jpg,..\na,b.jpg,cat\nimg,cat\n"
    settings, overview = scan("file,label\n" + rows(numbers=range(4)) + bad)
    assert list(overview.relpath) == ["img/0.jpg", "img/2.jpg", "img/3.jpg"]
    assert rejected(settings) == [
        ("a", "more values than the header has columns (line 12 of labels.csv)"),
        ("img", "a folder, not a file"),
        ("img/0.jpg", "line 6 repeats line 2"),
        ("img/1.jpg", "contradictory labels: dog (line 3), cat (line 7)"),
        ("img/4.jpg", "the label cannot be the name of a folder (line 11 of labels.csv)"),
        ("img/5.jpg", "no label (line 10 of labels.csv)"),
        ("img/9.jpg", "no such file (line 8 of labels.csv)"),
        ("labels.csv", "no file is named (line 9 of labels.csv)"),
    ]
    (tmp_path / "pets" / "img" / "Thumbs.db").touch()
    settings, overview = scan("file,label\n" + rows(numbers=range(4)))
    assert len(overview) == 4 and rejected(settings) == [(f"img/{n}.jpg", "not in labels.csv") for n in (4, 5)]
    assert "2 images beside the others are not in labels.csv and not used." in capsys.readouterr().out


def test_files_may_lie_anywhere(scan, tmp_path, draw, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    outside = [draw(tmp_path / "a.jpg"), draw(tmp_path / "home" / "b.jpg"), draw(tmp_path / "c.jpg")]
    (tmp_path / "pets" / "link.jpg").symlink_to(outside[2])
    inside = tmp_path / "pets" / "img" / "0.jpg"
    settings, overview = scan(f"file,label\n../a.jpg,cat\n~/b.jpg,cat\nlink.jpg,dog\n{inside},dog\n", ())
    assert {*overview.relpath} == {"../a.jpg", str(outside[1]), "link.jpg", "img/0.jpg"}
    assert len(resize_images(settings, overview)) == 4


@pytest.mark.parametrize(
    "label", ["NA", "nan", "7", "1e5", "None", "two words", "comma, and\nline", "Ünïcödé 🐶", "$5$"]
)
def test_labels_stay_what_they_are(scan, label):
    quoted = f'"{label}"'
    settings, overview = scan("file,label\n" + rows().replace("dog", quoted))
    assert set(overview.category) == {"cat", label}
    assert set(resize_images(settings, overview).category) == {"cat", label}


def test_labels_with_a_slash_name_folders_with_a_message(scan, tmp_path, capsys):
    settings, overview = scan("file,label\n" + rows().replace("dog", "../dog/wild"))
    assert "Classes name folders, so that / in labels becomes _: ../dog/wild." in capsys.readouterr().out
    processed = resize_images(settings, overview)
    assert set(processed.category) == {"cat", ".._dog_wild"}
    assert not list(tmp_path.glob("work/data/*.jpg")) and not (tmp_path / "work" / "dog").exists()
    with pytest.raises(UserError, match="cat/dog and another label differ in / and _ alone"):
        scan("file,label\n" + rows() + "img/1.jpg,cat/dog\nimg/1.jpg,cat_dog\n")


def test_bytes_that_are_not_utf_8_are_kept_in_names_and_spelled_out_in_labels(scan, draw, tmp_path):
    draw(tmp_path / "pets" / "img" / "\udce9.jpg", format="JPEG")
    _, overview = scan("file,label\n" + rows() + "img/\udce9.jpg,caf\udce9\n")
    assert overview.set_index("relpath").category["img/\udce9.jpg"] == r"caf\xe9"


def test_a_split_in_the_table_is_used(scan, capsys):
    parts = ["train", "train", "Validation", "val", "TEST", "test"]
    lines = [f"{line},{part}" for line, part in zip(rows().splitlines(), parts, strict=True)]
    settings, overview = scan("\n".join(["file,label,data set", *lines, "img/0.jpg,cat,test"]))
    assert rejected(settings) == [("img/0.jpg", "contradictory parts: train (line 2), test (line 8)")]
    settings, overview = scan("\n".join(["file,label,data set", *lines]))
    assert "and the split that is used in data set." in capsys.readouterr().out
    resize_images(settings, overview)
    splits = load_splits(settings)
    assert splits.kind == "given" and splits.dataset == "pets"
    assert [sorted(table.source) for table in (splits.train, splits.val, splits.test)] == [
        [f"img/{n}.jpg" for n in pair] for pair in ((0, 1), (2, 3), (4, 5))
    ]
    settings, _ = scan("\n".join(["file,label,split", *lines[:5], "img/5.jpg,dog,extra"]))
    assert rejected(settings) == [("img/5.jpg", "'extra' is not train, val or test (line 7 of labels.csv)")]


def test_a_column_that_is_no_split_is_not_used_as_one(scan, capsys):
    content = "file,label,set\n" + "".join(f"img/{n}.jpg,{LABELS[n % 2]},{n % 3}\n" for n in range(6))
    _, overview = scan(content)
    assert "part" not in overview and len(overview) == 6
    assert "; set does not tell training from validation or test images." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column of files is recognised"),
        (b"PK\3\4\0\0", "is neither a folder of images nor a csv table: unpack it"),
        (b"\xff\xfea", "is not a csv table"),
        ("a.jpg,cat\nb.jpg,dog\n", "no column of files is recognised, its columns are a.jpg, cat"),
        ("file,label\n", "0 usable images of 0 classes .* needs at least two labels"),
        ("file,label\nimg/0.jpg,cat\nnone.jpg,dog\n", r"1 usable images of 1 classes .*rejected.csv names the others"),
    ],
)
def test_what_is_no_table_of_labels_is_one_clear_line(scan, content, message):
    with pytest.raises(UserError, match=message) as error:
        scan(content)
    assert "\n" not in str(error.value)


def test_a_table_that_is_missing_or_may_not_be_read_is_one_clear_line(as_nobody):
    table = as_nobody / "labels.csv"
    settings = Settings(root=as_nobody / "work", raw=table)
    with pytest.raises(UserError, match=r"There is no folder or table \S*labels.csv"):
        scan_images(settings)
    table.touch()
    table.chmod(0)
    with pytest.raises(UserError, match=r"labels.csv cannot be read: permission denied"):
        scan_images(settings)


@pytest.mark.parametrize(
    ("label", "windows", "usable"),
    [("a:b", True, False), ("a:b", False, True), ("Con", True, False), ("cat", True, True), ("..", False, False)],
)
def test_labels_that_no_folder_can_be_called(label, windows, usable):
    assert _names_folder(label, windows) is usable
