import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance

import auxiliary as aux
from auxiliary import pictures


@pytest.fixture
def sample(tmp_path):
    settings = aux.Settings(root=tmp_path, raw=aux.SAMPLE, image_size=224)
    return settings, aux.resize_photographs(settings, aux.scan_photographs(settings))


def table(hashes, sha256=None, categories=None):
    names = [f"{number:03}.jpg" for number in range(len(hashes))]
    checks = pd.DataFrame({"relpath": names, "phash": hashes, "sha256": sha256 or names})
    checks["category"] = categories or ["a"] * len(hashes)
    return checks.assign(group=pictures.groups(checks))


def test_the_duplicate_of_the_sample_is_found_and_nothing_else(sample):
    checks = aux.check_pictures(sample[0])
    found = pictures.duplicates(checks)
    assert found[["first", "second"]].values.tolist() == [["chicken/gallina-00.jpg", "chicken/gallina-11.jpg"]]
    assert found.exact.all() and (found.bits == 0).all()


def test_altered_copies_are_found(sample):
    """What makes SAME_BITS a fair limit: a copy keeps below it, another drawing does not come near."""
    settings, _ = sample
    originals = sorted((settings.data / "processed").glob("*/*.jpg"))
    hashes = [pictures.measure(path)["phash"] for path in originals]
    other = settings.root / "altered.jpg"
    for path, phash in zip(originals, hashes):
        with Image.open(path) as picture:
            copies = [picture.resize((112, 112)), picture.convert("L"), ImageEnhance.Contrast(picture).enhance(0.7)]
        for copy in copies:
            copy.save(other, quality=40)
            bits = int(pictures.measure(other)["phash"], 16) ^ int(phash, 16)
            assert bits.bit_count() <= pictures.SAME_BITS, path
    values = [int(text, 16) for text in sorted(set(hashes))]
    distances = [(a ^ b).bit_count() for i, a in enumerate(values) for b in values[:i]]
    assert len(values) == len(originals) - 1 and min(distances) > 2 * pictures.SAME_BITS


def test_groups_agree_with_a_comparison_of_all_pairs():
    """Over more than one block of rows, and with chains."""
    rng = np.random.default_rng(3)
    seeds = rng.integers(0, 2**64, 300, dtype="uint64")
    values = [int(value) for value in seeds]
    for value in values[:200]:
        for _ in range(2):
            value ^= sum(1 << int(bit) for bit in rng.choice(64, 4, replace=False))
            values.append(value)
    values = [values[index] for index in rng.permutation(len(values))]
    names = {value: {value} for value in values}
    for a in values:
        for b in values:
            if (a ^ b).bit_count() <= pictures.SAME_BITS and names[a] is not names[b]:
                names[a] |= names[b]
                for value in names[b]:
                    names[value] = names[a]
    checks = table([f"{value:016x}" for value in values])
    expected = {}
    for value, relpath in zip(values, checks.relpath):
        expected.setdefault(id(names[value]), []).append(relpath)
    assert sorted(expected.values()) == sorted(checks.groupby("group").relpath.apply(list))
    assert checks.group.nunique() < 310


def test_plain_pictures_are_the_same_only_byte_by_byte(tmp_path):
    for number, colour in enumerate(("white", "black", "#010101")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{number}.jpg")
    measured = [pictures.measure(path) for path in sorted(tmp_path.iterdir())]
    assert [found["phash"] for found in measured] == ["plain"] * 3 and measured[0]["brightness"] == 255
    checks = table(["plain"] * 3, sha256=["x", "y", "x"])
    assert checks.group.tolist() == ["000.jpg", "001.jpg", "000.jpg"]
    assert pictures.duplicates(checks).bits.isna().all()


def test_pairs_say_what_differs_and_what_crosses():
    near = ["0" * 16, "0" * 15 + "1", "f" * 16, "0" * 16, "f" * 14 + "fe"]
    checks = table(near, sha256=list("xyzxw"), categories=list("aaabb"))
    pairs = pictures.duplicates(checks)
    assert pairs[["first", "second", "exact", "bits"]].values.tolist() == [
        ["000.jpg", "003.jpg", True, 0],
        ["000.jpg", "001.jpg", False, 1],
        ["002.jpg", "004.jpg", False, 1],
    ]
    assert pairs[pairs.category != pairs.category_second].second.tolist() == ["003.jpg", "004.jpg"]
    parts = {"train": checks.iloc[[1, 2]], "val": checks.iloc[[0]], "test": checks.iloc[[3, 4]]}
    found = pictures.crossings(checks, parts)
    assert set(zip(found["first"], found.second, found.part)) == {
        ("001.jpg", "000.jpg", "val"),
        ("001.jpg", "003.jpg", "test"),
        ("002.jpg", "004.jpg", "test"),
    }


def test_flaws(settings, draw):
    rng = np.random.default_rng(2)
    noise = rng.integers(0, 256, (120, 120), dtype="uint8")
    red = settings.raw / "red"
    Image.fromarray(noise // 8).save(red / "dark.png")
    Image.fromarray(230 + noise // 11).save(red / "light.png")
    Image.fromarray(np.tile(np.arange(120, dtype="uint8") * 2, (120, 1))).save(red / "blurry.png")
    Image.fromarray(noise[:40]).save(red / "odd.png")
    Image.fromarray(noise[:15, :15]).save(red / "small.png")
    Image.fromarray(noise).save(red / "fine.png")
    overview = aux.scan_photographs(settings)
    processed = aux.resize_photographs(settings, overview)
    found = pictures.flaws(aux.check_pictures(settings), overview, 32).set_axis(processed.source)
    names = {"dark": {"dark"}, "light": {"light"}, "blurry": {"blurry"}, "odd": {"odd shape"}, "small": {"small"}}
    for name, expected in (names | {"fine": set()}).items():
        row = found.loc[f"red/{name}.png"]
        assert expected <= set(row.index[row]) and (name != "fine" or not row.any()), name
    assert found["odd shape"].sum() == 1 and found.small.sum() == 1


def test_checks_are_measured_once_and_again_where_a_picture_changed(prepared, draw, monkeypatch):
    first = aux.check_pictures(prepared)
    draw(prepared.raw / "red" / "red 03.jpeg", (90, 90, 90))
    aux.resize_photographs(prepared, aux.scan_photographs(prepared))
    measured, measure = [], pictures.measure
    monkeypatch.setattr(pictures, "measure", lambda path: measured.append(path.name) or measure(path))
    again = aux.check_pictures(prepared)
    assert measured == ["red 03.jpg"]
    assert (again.phash != first.phash).sum() == 1 and aux.read_table(prepared.data / "checks.csv").equals(again)
    (prepared.data / "processed" / "red" / "red 05.jpg").write_bytes(b"half a picture")
    (prepared.data / "checks.csv").write_text("relpath,phash\nred/red 03.jpg,mine\n")
    with pytest.raises(aux.StudyError, match=r"red 05.jpg: not a picture.*Delete it and run 01-preprocessing"):
        aux.check_pictures(prepared)
