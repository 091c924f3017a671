import io
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from PIL import Image

import auxiliary
from animals10 import images
from animals10.files import REPOSITORY, UserError, file_sha256, read_json, read_table
from animals10.preprocessing import resize_images, scan_images
from animals10.quality import check_images
from animals10.settings import Settings
from animals10.splits import load_splits

pytestmark = pytest.mark.usefixtures("small_classes")


def process(settings):
    processed = resize_images(settings, scan_images(settings))
    rejected = read_table(settings.data / "rejected.csv").set_index("relpath").reason
    return processed.set_index("source"), rejected


def modification_times(settings):
    folder = settings.data / "processed"
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in folder.glob("*/*")}


def test_every_good_image_is_processed_and_every_bad_file_recorded(settings):
    red = settings.raw / "red"
    complete = (red / "red 00.jpeg").read_bytes()
    (red / "truncated.jpg").write_bytes(complete[: len(complete) // 2])
    (red / "zero.jpg").touch()
    (red / "text.jpg").write_text("not an image")
    (red / "folder.jpg").mkdir()
    (red / "dangling.jpg").symlink_to(red / "nowhere.jpg")
    (settings.raw / "stray.jpg").write_bytes(complete)
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    (red / "bomb.png").write_bytes(bomb.getvalue())
    Image.new("1", (10_000, 10_000)).save(red / "smaller bomb.png")
    Image.new("F", (8, 8), 0.5).save(red / "float.tiff")
    processed, rejected = process(settings)
    assert len(processed) == 50
    bad = "truncated.jpg zero.jpg text.jpg folder.jpg dangling.jpg bomb.png float.tiff".split()
    bad.append("smaller bomb.png")
    assert set(rejected.index) == {f"red/{name}" for name in bad} | {"stray.jpg"}
    assert rejected["red/zero.jpg"] == "zero bytes" and rejected["red/truncated.jpg"].startswith("damaged")
    assert "bomb" in rejected["red/bomb.png"] and "bomb" in rejected["red/smaller bomb.png"]
    assert "known format" in rejected["red/text.jpg"] and "a folder" in rejected["red/folder.jpg"]
    for relpath in processed.relpath:
        with Image.open(settings.data / "processed" / relpath) as image:
            assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))


def test_exif_orientation_is_applied(settings):
    image = Image.new("RGB", (60, 40), "white")
    image.paste("black", (0, 0, 60, 20))  # the upper half is black once the orientation is applied
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save(settings.raw / "red" / "turned.jpg", exif=exif)
    processed, _ = process(settings)
    pixels = np.asarray(Image.open(settings.data / "processed" / processed.relpath["red/turned.jpg"]).convert("L"))
    assert pixels[:12].max() < 50 and pixels[-12:].min() > 200


def test_sources_of_one_name_are_all_kept(settings, draw):
    draw(settings.raw / "red" / "a.jpeg")
    draw(settings.raw / "red" / "a.png", (9, 9, 9))
    draw(settings.raw / "red" / "A.jpg", (99, 9, 9))
    processed, _ = process(settings)
    names = processed.relpath[["red/a.jpeg", "red/a.png", "red/A.jpg"]]
    assert names.str.casefold().nunique() == 3
    assert np.asarray(Image.open(settings.data / "processed" / names["red/a.png"])).mean() < 20


def test_a_second_run_makes_only_what_is_new_or_changed(settings, draw):
    process(settings)
    before = modification_times(settings)
    draw(settings.raw / "red" / "red 03.jpeg", (90, 90, 90))
    draw(settings.raw / "red" / "new.jpeg")
    # as a crash of the machine may leave it
    (settings.data / "processed" / "red" / "red 05.jpg").write_bytes(b"half an image")
    process(settings)
    after = modification_times(settings)
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {"red/red 03.jpg", "red/new.jpg", "red/red 05.jpg"}


def test_damaged_processed_images_are_made_anew(settings):
    process(settings)
    folder = settings.data / "processed" / "red"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    whole = before["red 00.jpg"]
    tail = len(whole) - 60  # in the pixels, so that header, size and comment are those of a sound image
    damages = {
        "cut": whole[:tail],
        "garbled": whole[:tail] + bytes(60),
        "flipped": whole[:tail] + bytes([whole[tail] ^ 1]) + whole[tail + 1 :],
        "another": before["red 01.jpg"],
        "empty": b"",
    }
    for name, content in damages.items():
        (folder / "red 00.jpg").write_bytes(content)
        times = modification_times(settings)
        process(settings)
        changed = {path for path, time in modification_times(settings).items() if time != times[path]}
        assert changed == {"red/red 00.jpg"} and (folder / "red 00.jpg").read_bytes() == whole, name

    # Where no checksum is known, as after a kill, all pixels are decoded instead.
    table = settings.data / "processed-crc32.csv"
    for damage in (table.unlink, lambda: table.write_text("relpath"), lambda: table.write_bytes(b"\xff\0")):
        process(settings)
        damage()
        (folder / "red 00.jpg").write_bytes(whole[:tail])
        times = modification_times(settings)
        process(settings)
        changed = {path for path, time in modification_times(settings).items() if time != times[path]}
        assert changed == {"red/red 00.jpg"} and (folder / "red 00.jpg").read_bytes() == whole


def test_a_file_that_changes_after_the_scan_is_stored_under_its_own_checksum(settings, draw, capsys):
    overview = scan_images(settings)
    changed = draw(settings.raw / "red" / "red 00.jpeg", (40, 40, 200))
    (settings.raw / "red" / "red 01.jpeg").write_bytes(b"no image any more")
    (settings.raw / "red" / "red 02.jpeg").unlink()
    processed = resize_images(settings, overview).set_index("source")
    sha256 = processed.sha256["red/red 00.jpeg"]
    assert sha256 == file_sha256(changed) != overview.set_index("relpath").sha256["red/red 00.jpeg"]
    with Image.open(settings.data / "processed" / "red" / "red 00.jpg") as image:
        assert image.info["comment"].decode() == sha256 and image.getpixel((9, 9))[2] > 150
    assert "1 files have changed since the scan" in capsys.readouterr().out
    rejected = read_table(settings.data / "rejected.csv").set_index("relpath").reason
    assert set(rejected.index) == {"red/red 01.jpeg", "red/red 02.jpeg"}
    before = modification_times(settings)
    process(settings)
    assert modification_times(settings) == before and "changed" not in capsys.readouterr().out


def test_the_gallery_of_notebook_01_shows_processed_images(settings, monkeypatch):
    """A file whose pixels are damaged is found when it is resized, which is before the gallery."""
    whole = (settings.raw / "red" / "red 00.jpeg").read_bytes()
    for path in (settings.raw / "red").iterdir():
        path.write_bytes(whole[: len(whole) - 99])
    (settings.raw / "red" / "red 03.jpeg").write_bytes(whole)
    cells = [cell.source for cell in nbformat.read(REPOSITORY / "01-preprocessing.ipynb", 4).cells]
    (gallery,) = [source for source in cells if "aux.plot_images([" in source]
    shown = []
    monkeypatch.setattr("auxiliary.show", shown.append)
    exec(gallery, {"aux": auxiliary, "settings": settings, "processed": resize_images(settings, scan_images(settings))})
    assert shown[0].get_label() == "Images: blue, blue, green, green, red"
    assert not [source for source in cells if "settings.raw" in source]


def test_another_preprocessing_contract_makes_all_images_anew(prepared, monkeypatch, capsys):
    contract = prepared.data / "processed" / "preprocessing.json"
    assert read_json(contract) == images.preprocessing_contract()
    sharpness = check_images(prepared).sharpness
    before, bytes_before = modification_times(prepared), contract.read_bytes()
    capsys.readouterr()
    process(prepared)
    assert modification_times(prepared) == before and capsys.readouterr().out == ""

    monkeypatch.setattr(images, "JPEG_QUALITY", 30)
    process(prepared)
    after = modification_times(prepared)
    assert after.keys() == before.keys() and all(after[name] != before[name] for name in after)
    assert capsys.readouterr().out.splitlines() == [
        f"The preprocessing has changed: all images in {prepared.data / 'processed'} are made anew."
    ]
    assert read_json(contract)["jpeg_quality"] == 30 and contract.read_bytes() != bytes_before
    assert (check_images(prepared).sharpness != sharpness).any()  # measured anew as well
    capsys.readouterr()
    process(prepared)
    assert modification_times(prepared) == after and capsys.readouterr().out == ""


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_text('{"version"')])
def test_images_of_an_unknown_contract_are_made_anew(prepared, damage, capsys):
    before = modification_times(prepared)
    damage(prepared.data / "processed" / "preprocessing.json")
    process(prepared)
    after = modification_times(prepared)
    assert all(after[name] != before[name] for name in before) and "are made anew" in capsys.readouterr().out


def test_processed_images_may_be_deleted(prepared, capsys):
    shutil.rmtree(prepared.data / "processed")
    processed, _ = process(prepared)
    assert len(processed) == 50 and capsys.readouterr().out == ""


def test_a_class_cannot_have_the_name_of_the_contract(settings, draw):
    draw(settings.raw / "preprocessing.json" / "a.jpg")
    with pytest.raises(UserError, match=r"A class cannot be named preprocessing.json: rename its folder"):
        process(settings)


def test_what_a_killed_process_left_is_removed(prepared):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folders = [prepared.root, prepared.data, prepared.data / "processed" / "red"]
    for folder in folders:
        (folder / f".{ended.pid}-0123456789ab.jpg").write_bytes(b"half an image")
    process(prepared)
    assert not [path for path in prepared.root.rglob(".*") if path.is_file()]


def test_names_of_every_kind_are_kept(settings, draw):
    names = ["NA.jpg", 'quote".jpg', "comma, and\nnewline.jpg", "Ünïcödé 🐶.jpg", "x" * 250 + ".jpg", "bad\udcff.jpg"]
    names += ["return\r.jpg", "é" * 127, "é" * 126 + "x"]  # without a suffix: .jpg would make them too long
    for name in names:
        draw(settings.raw / "NA" / name, format="JPEG")
    processed, rejected = process(settings)
    assert {f"NA/{name}" for name in names} <= set(processed.index) and rejected.empty
    assert (processed.category == "NA").sum() == len(names)


def test_italian_names_are_translated_only_where_all_are_italian(settings, draw, tmp_path):
    draw(settings.raw / "cane" / "sugar.jpg")
    assert "cane" in set(scan_images(settings).category)
    for name in ("cane", "gatto"):
        draw(tmp_path / "italian" / name / "a.jpg")
    italian = settings.model_copy(update={"raw": tmp_path / "italian"})
    assert list(scan_images(italian).category) == ["dog", "cat"]


@pytest.mark.parametrize("classes", [(), ("one",)])
def test_no_images_or_one_class_only_is_one_clear_error(tmp_path, draw, classes):
    (tmp_path / "raw" / "empty").mkdir(parents=True)
    for name in classes:
        draw(tmp_path / "raw" / name / "a.jpg")
    with pytest.raises(UserError, match="at least two folders"):
        scan_images(Settings(root=tmp_path, raw=tmp_path / "raw"))


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_data_set_in_an_old_workspace_names_both_before_anything_is_written(prepared, draw, tmp_path):
    for name in ("rose", "tulip"):
        draw(tmp_path / "flowers" / name / "a.jpg")
    before = contents(prepared.root)
    flowers = prepared.model_copy(update={"raw": tmp_path / "flowers"})
    with pytest.raises(UserError) as error:
        scan_images(flowers)
    message = str(error.value)
    assert "\n" not in message and f"of {prepared.raw} (50 images of blue, green, red)" in message
    assert f"ANIMALS10_RAW is {flowers.raw} (2 images of rose, tulip)" in message and "(ANIMALS10_ROOT)" in message
    assert contents(prepared.root) == before

    moved = prepared.model_copy(update={"raw": prepared.raw.rename(tmp_path / "moved")})
    (moved.raw / "red" / "red 00.jpeg").unlink()
    draw(moved.raw / "red" / "new.jpg")
    assert len(scan_images(moved)) == 50  # the same data set: moved, with one image more and one less
    (prepared.data / "source.json").unlink()  # an older version has written none
    with pytest.raises(UserError, match=r"of an unknown folder \(50 images of blue, green, red\)"):
        scan_images(flowers)


def test_a_workspace_has_one_image_size(prepared):
    other = prepared.model_copy(update={"image_size": 48})
    with pytest.raises(UserError, match="another size"):
        scan_images(other)
    with pytest.raises(UserError, match="another size"):
        resize_images(other, scan_images(prepared))
    with pytest.raises(UserError, match="another size"):
        load_splits(other)
