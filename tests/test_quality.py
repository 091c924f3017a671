import imagehash
import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageEnhance
from scipy.ndimage import laplace

from animals10 import quality
from animals10.files import UserError, read_table
from animals10.hamming import pairs_within
from animals10.preprocessing import resize_images, scan_images
from animals10.quality import MAX_HAMMING_DISTANCE, check_images, issues, leakage, measure, near_duplicates
from animals10.settings import Settings


@pytest.fixture
def processed_sample(sample, tmp_path):
    settings = Settings(root=tmp_path, raw=sample, image_size=224, weights="random")
    resize_images(settings, scan_images(settings))
    return settings


def table(hashes, sha256=None, categories=None):
    names = [f"{number:03}.jpg" for number in range(len(hashes))]
    checks = pd.DataFrame({"relpath": names, "phash": hashes, "sha256": sha256 or names})
    checks["category"] = categories or ["a"] * len(hashes)
    return checks.assign(group=quality.near_duplicate_groups(checks))


@pytest.mark.parametrize("distance", [0, 1, 4])
def test_hashes_within_a_distance_are_those_of_comparing_all_pairs(distance):
    rng = np.random.default_rng(5)
    distinct = rng.integers(0, 2**64, 400, dtype="uint64")
    near = rng.choice(distinct, 800)
    for _ in range(6):
        near ^= np.uint64(1) << rng.integers(0, 64, 800, dtype="uint64")
    hashes = rng.permutation(np.concatenate([distinct, near, distinct[:9]]))
    expected = np.nonzero(np.triu(np.bitwise_count(hashes[:, None] ^ hashes[None]) <= distance, 1))
    assert len(expected[0]) >= 9 and np.array_equal(pairs_within(hashes, distance), expected)


def test_the_duplicates_of_the_sample_are_found_and_nothing_else(processed_sample):
    pairs = near_duplicates(check_images(processed_sample))
    expected = [
        ("chicken/gallina-00.jpg", "chicken/gallina-11.jpg", True),
        ("horse/cavallo-05.jpg", "horse/cavallo-13.jpg", False),
    ]
    assert list(pairs[["first", "second", "exact"]].itertuples(index=False, name=None)) == expected


def test_altered_copies_are_near_duplicates_and_other_drawings_are_far_away(processed_sample):
    """Why MAX_HAMMING_DISTANCE is a fair limit."""
    originals = sorted((processed_sample.data / "processed").glob("*/*.jpg"))[::4]
    hashes = [values["phash"] for values in measure(originals)]
    altered = processed_sample.root / "altered.jpg"
    for path, phash in zip(originals, hashes):
        with Image.open(path) as image:
            copies = [image.resize((112, 112)), image.convert("L"), ImageEnhance.Contrast(image).enhance(0.7)]
        for copy in copies:
            copy.save(altered, quality=40)
            differing = int(measure([altered])[0]["phash"], 16) ^ int(phash, 16)
            assert differing.bit_count() <= MAX_HAMMING_DISTANCE, path
    values = [int(text, 16) for text in sorted(set(hashes))]
    distances = [(a ^ b).bit_count() for i, a in enumerate(values) for b in values[:i]]
    assert len(values) == len(originals) and min(distances) > 2 * MAX_HAMMING_DISTANCE


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
            if (a ^ b).bit_count() <= MAX_HAMMING_DISTANCE and names[a] is not names[b]:
                names[a] |= names[b]
                for value in names[b]:
                    names[value] = names[a]
    checks = table([f"{value:016x}" for value in values])
    expected = {}
    for value, relpath in zip(values, checks.relpath):
        expected.setdefault(id(names[value]), []).append(relpath)
    assert sorted(expected.values()) == sorted(checks.groupby("group").relpath.apply(list))
    assert checks.group.nunique() < 310


def test_hashes_and_sharpness_are_those_of_imagehash_and_scipy(processed_sample):
    paths = sorted((processed_sample.data / "processed").glob("*/*.jpg"))
    for path, values in zip(paths, measure(paths), strict=True):
        with Image.open(path) as image:
            assert values["phash"] == str(imagehash.phash(image)), path
            grey = np.asarray(image.convert("L"), dtype="float64")
        assert values["brightness"] == pytest.approx(grey.mean(), abs=0.051)
        assert values["sharpness"] == pytest.approx(laplace(grey).var(), abs=0.051)


def test_images_of_one_colour_are_duplicates_only_if_their_files_are_equal(tmp_path):
    for number, colour in enumerate(("white", "black", "#010101")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{number}.jpg")
    measured = measure(sorted(tmp_path.iterdir()))
    assert [values["phash"] for values in measured] == ["low information"] * 3 and measured[0]["brightness"] == 255
    checks = table(["low information"] * 3, sha256=["x", "y", "x"])
    assert checks.group.tolist() == ["000.jpg", "001.jpg", "000.jpg"]
    assert near_duplicates(checks).hamming_distance.isna().all()


def test_pairs_tell_how_they_differ_and_which_of_them_leak():
    near = ["0" * 16, "0" * 15 + "1", "f" * 16, "0" * 16, "f" * 14 + "fe"]
    checks = table(near, sha256=list("xyzxw"), categories=list("aaabb"))
    pairs = near_duplicates(checks)
    assert list(pairs) == ["first", "second", "category", "category_second", "exact", "hamming_distance", "method"]
    assert pairs[["first", "second", "exact", "hamming_distance", "method"]].values.tolist() == [
        ["000.jpg", "003.jpg", True, 0, "file"],
        ["000.jpg", "001.jpg", False, 1, "pHash"],
        ["002.jpg", "004.jpg", False, 1, "pHash"],
    ]
    assert pairs[pairs.category != pairs.category_second].second.tolist() == ["003.jpg", "004.jpg"]
    parts = {"train": checks.iloc[[1, 2]], "val": checks.iloc[[0]], "test": checks.iloc[[3, 4]]}
    leaks = leakage(checks, parts)
    assert set(zip(leaks["first"], leaks.second, leaks.part)) == {
        ("001.jpg", "000.jpg", "val"),
        ("001.jpg", "003.jpg", "test"),
        ("002.jpg", "004.jpg", "test"),
    }


def test_issues(settings):
    rng = np.random.default_rng(2)
    noise = rng.integers(0, 256, (120, 120), dtype="uint8")
    red = settings.raw / "red"
    Image.fromarray(noise // 8).save(red / "dark.png")
    Image.fromarray(230 + noise // 11).save(red / "light.png")
    Image.fromarray(np.tile(np.arange(120, dtype="uint8") * 2, (120, 1))).save(red / "blurry.png")
    Image.fromarray(noise[:40]).save(red / "odd aspect ratio.png")
    Image.fromarray(noise[:15, :15]).save(red / "upscaled.png")
    Image.fromarray(noise).save(red / "fine.png")
    overview = scan_images(settings)
    processed = resize_images(settings, overview)
    found = issues(check_images(settings), overview, 32).set_axis(processed.source)
    assert list(found) == ["dark", "light", "blurry", "upscaled", "odd aspect ratio"]
    for name in found:
        assert found.loc[f"red/{name}.png", name], name
    assert not found.loc["red/fine.png"].any()
    assert found["odd aspect ratio"].sum() == 1 and found.upscaled.sum() == 1


def test_images_are_measured_once_and_again_if_they_changed(prepared, draw, monkeypatch):
    first = check_images(prepared)
    draw(prepared.raw / "red" / "red 03.jpeg", (90, 90, 90))
    resize_images(prepared, scan_images(prepared))
    measured = []
    monkeypatch.setattr(quality, "measure", lambda paths: measured.extend(paths) or measure(paths))
    again = check_images(prepared)
    assert [path.name for path in measured] == ["red 03.jpg"]
    assert (again.phash != first.phash).sum() == 1 and read_table(prepared.data / "checks.csv").equals(again)
    (prepared.data / "processed" / "red" / "red 05.jpg").write_bytes(b"half an image")
    (prepared.data / "checks.csv").write_text("relpath,phash\nred/red 03.jpg,mine\n")
    with pytest.raises(UserError, match=r"red 05.jpg: not an image.*Run 01-preprocessing"):
        check_images(prepared)
