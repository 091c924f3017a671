import hashlib

import numpy as np
from PIL import Image

from animals10 import sample as module
from animals10.dataset import ITALIAN
from animals10.sample import CUT_OUTS, IMAGES_PER_CLASS, compose_sample

PIXELS = "93e984e007ecc236"  # of all decoded images


def test_every_machine_gets_the_same_pixels(sample):
    found = hashlib.sha256()
    for path in sorted(sample.glob("*/*")):
        try:
            with Image.open(path) as image:
                found.update(path.name.encode() + image.mode.encode() + np.asarray(image.convert("RGBA")).tobytes())
        except OSError:
            found.update(b"damaged")
    assert found.hexdigest()[:16] == PIXELS


def test_the_sample_has_the_issues_of_the_download(sample):
    paths = sorted(sample.glob("*/*"))
    assert {path.parent.name for path in paths} == set(ITALIAN) and len(paths) == 10 * IMAGES_PER_CLASS
    modes, turned, damaged, sizes = set(), [], [], []
    for path in paths:
        try:
            with Image.open(path) as image:
                image.load()
                modes.add(image.mode)
                sizes.append(image.size)
                turned += [path.name] if image.getexif() else []
        except OSError:
            damaged.append(path.name)
    assert modes == {"RGBA", "L", "P", "RGB"} and turned == ["pecora-02.png"] and damaged == ["ragno-09.png"]
    assert min(map(min, sizes)) == 90 and max(width / height for width, height in sizes) > 2
    assert {path.suffix for path in paths} == {".jpeg", ".jpg", ".png"}
    assert len({path.read_bytes() for path in paths}) == len(paths) - 1


def test_images_are_composed_once_and_again_where_another_version_or_a_kill_left_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(module, "_files", lambda folder: [(folder / "cane" / "a.png", Image.new("RGB", (2, 2)))])
    monkeypatch.setattr(module, "_damage", lambda folder: None)
    folder, drawn = tmp_path / "raw-img", tmp_path / "raw-img" / "cane" / "a.png"
    compose_sample(folder)
    first = drawn.read_bytes()
    assert "once" in capsys.readouterr().out
    drawn.write_text("kept")
    compose_sample(folder)
    assert drawn.read_text() == "kept" and not capsys.readouterr().out
    (folder / "cane" / "old.png").touch()
    (stamp,) = tmp_path.glob(".*made-of")
    stamp.write_text("another version")
    compose_sample(folder)
    assert [path.name for path in folder.rglob("*.*")] == ["a.png"] and drawn.read_bytes() == first
    stamp.unlink()  # as a kill leaves it
    drawn.write_text("half")
    compose_sample(folder)
    assert drawn.read_bytes() == first and stamp.exists()


def test_the_cut_outs_are_small_and_hold_an_animal_each():
    assert CUT_OUTS.stat().st_size < 200_000
    assert sum(len(animals) for animals in module._cut_outs().values()) == sum(map(len, module.GLYPHS.values()))
    assert all((animal[..., 3] > 0).mean() > 0.2 for animals in module._cut_outs().values() for animal in animals)
