"""Random folders of good and bad files: every good image is processed, every bad file is recorded."""

import tempfile
from pathlib import Path

import hypothesis
import pytest
from PIL import Image

from animals10.bad_input import (
    CLASS_NAMES,
    FOLDERS,
    LAYOUTS,
    LEFT_BY_SYSTEMS,
    OPTIONS,
    SIZE,
    File,
    check_folder,
    check_many_folders,
    encoded_image,
    process_folder,
)
from animals10.files import UserError, read_table
from animals10.preprocessing import resize_images, scan_images
from animals10.settings import Settings


@hypothesis.settings(max_examples=60, derandomize=True, **OPTIONS)
@hypothesis.given(CLASS_NAMES, FOLDERS, LAYOUTS, LEFT_BY_SYSTEMS)
def test_good_images_are_processed_and_bad_files_recorded(class_name, contents, layout, left):
    with tempfile.TemporaryDirectory() as folder:
        check_folder(Path(folder) / "case", class_name, contents, layout, left)


def test_the_stress_test_counts_its_cases_and_reports_a_failure(tmp_path, monkeypatch):
    tally = check_many_folders(tmp_path, cases=3, seed=1)
    assert tally.cases == 3 and tally.good >= 6 and tally.faults == ()
    monkeypatch.setattr("animals10.bad_input.check_images", lambda settings: 1 / 0)
    assert check_many_folders(tmp_path, cases=3, seed=1).faults == ("ZeroDivisionError: division by zero",)


def test_an_image_cut_at_every_length_is_recorded_or_processed(tmp_path):
    for mode, file_format in (("RGB", "JPEG"), ("P", "PNG")):
        complete = encoded_image(mode, file_format, 5)
        contents = [File(f"{length:04}.jpg", complete[:length], good=None) for length in range(len(complete))]
        done, bad = process_folder(tmp_path / file_format, "cut", contents)
        assert f"cut/{len(complete) // 2:04}.jpg" in bad and len(bad) > 0.9 * len(contents)
        assert len(done) + len(bad) == len(contents) + 2


def test_what_may_not_be_read_is_recorded(as_nobody, small_classes):
    closed, unlisted = as_nobody / "raw" / "closed", as_nobody / "raw" / "no entry"
    for name in ("closed", "no entry", "first", "second", "open"):
        (as_nobody / "raw" / name).mkdir(parents=True)
        (as_nobody / "raw" / name / "a.png").write_bytes(encoded_image("RGB", "PNG", 1))
    secret = as_nobody / "raw" / "open" / "secret.png"
    secret.write_bytes(encoded_image("RGB", "PNG", 2))
    secret.chmod(0)
    closed.chmod(0)
    unlisted.chmod(0o400)
    settings = Settings(root=as_nobody / "work", raw=as_nobody / "raw", image_size=SIZE)
    processed = resize_images(settings, scan_images(settings))
    rejected = read_table(settings.data / "rejected.csv").set_index("relpath").reason.to_dict()
    assert set(processed.category) == {"first", "second", "open"}
    assert rejected == {
        "closed": "unreadable class folder",
        "no entry/a.png": "unreadable: permission denied",
        "open/secret.png": "unreadable: permission denied",
    }
    (as_nobody / "raw").chmod(0)
    with pytest.raises(UserError, match=r"raw cannot be read: permission denied"):
        scan_images(settings)


def test_images_of_another_size_are_never_reused(settings):
    """A kill before the first table is written leaves images whose size no table tells."""
    overview = scan_images(settings)
    resize_images(settings, overview)
    (settings.data / "processed-overview.csv").unlink()
    other = settings.model_copy(update={"image_size": 48})
    for relpath in resize_images(other, overview).relpath:
        with Image.open(settings.data / "processed" / relpath) as image:
            assert image.size == (48, 48)
