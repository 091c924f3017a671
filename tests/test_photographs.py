import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import auxiliary as aux


def process(settings):
    processed = aux.resize_photographs(settings, aux.scan_photographs(settings))
    rejected = aux.read_table(settings.data / "rejected.csv").set_index("relpath").reason
    return processed.set_index("source"), rejected


def test_every_good_photograph_comes_out_and_every_bad_one_is_recorded(settings, draw):
    red = settings.raw / "red"
    whole = (red / "red 00.jpeg").read_bytes()
    (red / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (red / "zero.jpg").touch()
    (red / "text.jpg").write_text("no picture")
    (red / "folder.jpg").mkdir()
    (red / "dangling.jpg").symlink_to(red / "nowhere.jpg")
    (settings.raw / "stray.jpg").write_bytes(whole)
    bomb = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    (red / "bomb.png").write_bytes(bomb.getvalue())
    Image.new("1", (10_000, 10_000)).save(red / "smaller bomb.png")
    Image.new("F", (8, 8), 0.5).save(red / "float.tiff")
    processed, rejected = process(settings)
    assert len(processed) == 50
    bad = [
        "truncated.jpg",
        "zero.jpg",
        "text.jpg",
        "folder.jpg",
        "dangling.jpg",
        "bomb.png",
        "smaller bomb.png",
        "float.tiff",
    ]
    assert set(rejected.index) == {f"red/{name}" for name in bad} | {"stray.jpg"}
    assert rejected["red/zero.jpg"] == "zero bytes" and rejected["red/truncated.jpg"].startswith("damaged")
    assert "bomb" in rejected["red/bomb.png"] and "bomb" in rejected["red/smaller bomb.png"]
    assert "known format" in rejected["red/text.jpg"] and "a folder" in rejected["red/folder.jpg"]
    for relpath in processed.relpath:
        with Image.open(settings.data / "processed" / relpath) as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (32, 32))


def test_colour_modes_come_out_as_right_rgb():
    orange = (230, 140, 30)
    half = Image.new("RGBA", (4, 4), (0, 0, 255, 128))
    palette = Image.new("RGB", (4, 4), orange).quantize(4)
    palette.info["transparency"] = palette.getpixel((0, 0))
    rgb = {
        "CMYK": (Image.new("RGB", (4, 4), orange).convert("CMYK"), orange),
        "grey": (Image.new("L", (4, 4), 90), (90, 90, 90)),
        "16 bit": (Image.fromarray(np.full((4, 4), 40_000, "uint16")), (156, 156, 156)),
        "half transparent": (half, (127, 127, 255)),
        "grey, transparent": (Image.new("LA", (4, 4), (9, 0)), (255, 255, 255)),
        "palette": (Image.new("RGB", (4, 4), orange).quantize(4), orange),
        "palette, transparent": (palette, (255, 255, 255)),
    }
    for name, (picture, expected) in rgb.items():
        assert np.abs(np.asarray(aux.to_rgb(picture)).astype(int) - expected).max() <= 1, name


def test_16_bit_and_transparent_files_survive_the_way_through_a_file(tmp_path):
    Image.fromarray(np.full((9, 9), 40_000, "uint16")).save(tmp_path / "a.png")
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / "b.webp")
    assert aux.to_rgb(Image.open(tmp_path / "a.png")).getpixel((4, 4)) == (156, 156, 156)
    assert aux.to_rgb(Image.open(tmp_path / "b.webp")).getpixel((4, 4)) == (255, 255, 255)


def test_exif_orientation_is_honoured(settings):
    picture = Image.new("RGB", (60, 40), "white")
    picture.paste("black", (0, 0, 60, 20))  # the upper half is black, once upright
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(settings.raw / "red" / "turned.jpg", exif=exif)
    processed, _ = process(settings)
    upright = np.asarray(Image.open(settings.data / "processed" / processed.relpath["red/turned.jpg"]).convert("L"))
    assert upright[:12].max() < 50 and upright[-12:].min() > 200


def test_sources_of_one_name_both_survive(settings, draw):
    draw(settings.raw / "red" / "a.jpeg")
    draw(settings.raw / "red" / "a.png", (9, 9, 9))
    draw(settings.raw / "red" / "A.jpg", (99, 9, 9))
    processed, _ = process(settings)
    names = processed.relpath[["red/a.jpeg", "red/a.png", "red/A.jpg"]]
    assert names.str.casefold().nunique() == 3
    assert np.asarray(Image.open(settings.data / "processed" / names["red/a.png"])).mean() < 20


def test_a_second_run_makes_only_what_is_new_or_changed(settings, draw):
    process(settings)
    folder = settings.data / "processed" / "red"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    draw(settings.raw / "red" / "red 03.jpeg", (90, 90, 90))
    draw(settings.raw / "red" / "new.jpeg")
    (folder / "red 05.jpg").write_bytes(b"half a pic")  # as a crash of the machine may leave it
    process(settings)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {name for name in after if after[name] != before.get(name)} == {"red 03.jpg", "new.jpg", "red 05.jpg"}


def test_what_a_killed_process_left_is_cleared_away(prepared):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    folders = [prepared.root, prepared.data, prepared.data / "processed" / "red"]
    for folder in folders:
        (folder / f".{ended.pid}-0123456789ab.jpg").write_bytes(b"half a pic")
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
    assert "cane" in set(aux.scan_photographs(settings).category)
    for name in ("cane", "gatto"):
        draw(tmp_path / "italian" / name / "a.jpg")
    italian = settings.model_copy(update={"raw": tmp_path / "italian"})
    assert list(aux.scan_photographs(italian).category) == ["dog", "cat"]


@pytest.mark.parametrize("classes", [(), ("one",)])
def test_no_photographs_or_one_class_only_is_one_clear_error(tmp_path, draw, classes):
    (tmp_path / "raw" / "empty").mkdir(parents=True)
    for name in classes:
        draw(tmp_path / "raw" / name / "a.jpg")
    with pytest.raises(aux.StudyError, match="at least two folders"):
        aux.scan_photographs(aux.Settings(root=tmp_path, raw=tmp_path / "raw"))


def test_a_workspace_keeps_to_one_size(prepared):
    other = prepared.model_copy(update={"image_size": 48})
    with pytest.raises(aux.StudyError, match="another size"):
        aux.resize_photographs(other, aux.scan_photographs(other))
    with pytest.raises(aux.StudyError, match="another size"):
        aux.load_splits(other)


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "table.csv").write_text("old")
    with pytest.raises(OSError, match="disk full"), aux.whole_file(tmp_path / "table.csv") as temporary:
        temporary.write_text("half")
        raise OSError("disk full")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_the_sample_has_the_flaws_of_the_download():
    settings = aux.Settings(root="unused", raw=aux.SAMPLE)
    paths = sorted(settings.raw.glob("*/*"))
    assert {path.parent.name for path in paths} == set(aux.ITALIAN) and len(paths) == 120
    modes, turned = set(), []
    for path in paths:
        with Image.open(path) as picture:
            modes.add(picture.mode)
            turned += [path.name] if picture.getexif() else []
    assert modes == {"RGBA", "L", "P", "RGB"} and turned == ["pecora-02.jpeg"]
    assert {path.suffix for path in paths} == {".jpeg", ".jpg", ".png"}
    assert len({path.read_bytes() for path in paths}) == 119
