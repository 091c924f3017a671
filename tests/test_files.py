import gzip
import io
import os
import subprocess
import sys
from pathlib import Path

import keras
import pandas as pd
import psutil
import pytest

from animals10.backbones import find_backbone
from animals10.csv_append import append_row
from animals10.files import (
    REPOSITORY,
    UserError,
    atomic_write,
    display_path,
    read_json,
    read_table,
    refuse_to_replace,
    remove_stale_temporary_files,
    write_json,
    write_table,
)
from animals10.model_files import load_model
from animals10.notebooks import read_notebook
from animals10.preprocessing import resize_images

COLUMNS = ("time", "model_id", "run_id")
PIXELS = keras.Input((32, 32, 3))
ROW = {"time": "t", "model_id": "m", "run_id": "1"}


def test_what_is_not_a_csv_table_is_refused_with_one_line(tmp_path):
    for text in ("", "a,b\n1,2\n1,2,3\n", "a,b\n1,2,3\n3,4,5\n"):
        (tmp_path / "table.csv").write_text(text)
        with pytest.raises(UserError, match="is not a csv table") as error:
            read_table(tmp_path / "table.csv")
        assert "\n" not in str(error.value)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
FOUND = {
    "a pointer of Git LFS": LFS,
    "a pointer of git-annex": b"/annex/objects/SHA256E-s1--0.csv\n",
    "a web page": b"<!DOCTYPE html><title>Sign in</title>",
    "text in UTF-16": "a,b\n1,2\n".encode("utf-16"),
    "it is empty": b"",
    "it holds zeros": b"\0" * 100,
    "is missing": None,
    "a link to a file that is missing": "link",
    "it is a folder": "folder",
}


@pytest.mark.parametrize("what", FOUND)
@pytest.mark.parametrize(
    "read",
    [
        read_table,
        read_json,
        load_model,
        read_notebook,
        lambda path: find_backbone("MobileNetV2").build(PIXELS, str(path)),
    ],
    ids=["table", "json", "model", "notebook", "weights"],
)
def test_what_lies_in_place_of_a_file_is_said_in_one_line(tmp_path, read, what):
    content, path = FOUND[what], tmp_path / "file.weights.h5"
    if content == "link":
        path.symlink_to(tmp_path / "nowhere")
    elif content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=what) as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_table_of_a_spreadsheet_is_named_as_such(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a;b\n1,5;2\n")
    with pytest.raises(UserError, match="has semicolons between its values: save it as csv with commas"):
        read_table(path)
    path.write_text("a\tb\n1\t2\n")
    with pytest.raises(UserError, match="has tabs between its values"):
        read_table(path)
    path.write_bytes(b"PK\x03\x04" + b"x" * 50)
    with pytest.raises(UserError, match="is a spreadsheet under the name of a csv table"):
        read_table(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="is not a csv table with the column c"):
        read_table(path, ["a", "c"])


def test_a_damaged_table_in_gzip_is_one_line(tmp_path):
    path = tmp_path / "table.csv.gz"
    packed = gzip.compress(b"a,b\n" + b"1,2\n" * 1000)
    for damaged in (packed[: len(packed) // 2], packed[:20] + b"?" + packed[21:], b"a,b\n1,2\n"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"table\.csv\.gz is not a csv table \(") as error:
            read_table(path)
        assert "\n" not in str(error.value)


def test_a_command_never_replaces_a_file_that_it_did_not_write(tmp_path):
    path = tmp_path / "page.html"
    refuse_to_replace(path, "<title>mine", "make page")  # there is none
    path.write_text("<title>mine</title>")
    refuse_to_replace(path, "<title>mine", "make page")
    path.write_text("<title>yours</title>")
    with pytest.raises(UserError, match=r"page\.html was not written by make page: move it away"):
        refuse_to_replace(path, "<title>mine", "make page")


def test_json_survives_a_round_trip_and_damage_is_one_line(tmp_path):
    path = tmp_path / "folder" / "a.json"
    value = {"class_names": ["NA", "Ünïcödé 🐶", "bad\udcff"], "n": 3, "p": 0.1}
    write_json(value, path)
    assert read_json(path) == value and "🐶" in path.read_text(errors="surrogateescape")
    path.write_text('{"class_names"')
    with pytest.raises(UserError, match=r"a.json is damaged \(JSONDecodeError: .*\): train it again\.$") as error:
        read_json(path, "train it again")
    assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(UserError, match=r"a.json is missing: restore or delete it\.$"):
        read_json(path)


def test_a_path_is_displayed_relative_to_the_repository_only_inside_it():
    assert display_path(REPOSITORY / "data" / "raw-img") == str(Path("data", "raw-img"))
    assert display_path(REPOSITORY.parent / "elsewhere") == str(REPOSITORY.parent / "elsewhere")


def test_temporary_files_of_killed_processes_are_removed_and_no_others(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = {f".{ended.pid}-0123456789ab.csv": False, f".{os.getpid()}-0123456789ab.jpg": True, ".git": True}
    for name in names:
        (tmp_path / name).touch()
    reused = tmp_path / f".{os.getpid()}-ba9876543210.csv"  # of an earlier process that had this one's number
    reused.touch()
    os.utime(reused, (psutil.Process().create_time() - 60,) * 2)
    remove_stale_temporary_files(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}
    remove_stale_temporary_files(tmp_path / "not there")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB; Linux lets root mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if os.name != "posix" or os.geteuid() or subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root on Linux")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_one_clear_line_and_leaves_what_was_there(small_disk, prepared):
    path = small_disk / "results.csv"
    append_row(path, ROW, COLUMNS)
    before = path.read_bytes()
    (small_disk / "filler").write_bytes(b"x" * (56 << 10))
    calls = [
        lambda: append_row(path, ROW | {"run_id": "2", "model_id": "x" * 20_000}, COLUMNS),
        lambda: write_table(pd.DataFrame({"a": ["x" * 1000] * 99}), small_disk / "table.csv"),
        lambda: write_json(["x" * 1000] * 99, small_disk / "value.json"),
        lambda: resize_images(
            prepared.model_copy(update={"root": small_disk}), read_table(prepared.data / "overview.csv")
        ),
    ]
    for call in calls:
        with pytest.raises(UserError, match=f"{small_disk}.*the disk is full. Make room") as error:
            call()
        assert "\n" not in str(error.value) and path.read_bytes() == before
        assert not [found for found in small_disk.rglob(".*") if found.name != ".results.csv.lock"]
    (small_disk / "filler").unlink()
    append_row(path, ROW | {"run_id": "2"}, COLUMNS)
    assert list(read_table(path).run_id) == ["1", "2"]


def test_a_read_only_disk_is_one_clear_line(small_disk):
    (small_disk / "results.csv").write_text("time,model_id,run_id\n")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for call in (
        lambda: append_row(small_disk / "results.csv", ROW, COLUMNS),
        lambda: write_table(pd.DataFrame({"a": [1]}), small_disk / "folder" / "table.csv"),
    ):
        with pytest.raises(UserError, match=r"the disk is read-only\. Choose another workspace"):
            call()


def test_a_folder_without_permission_is_one_clear_line(as_nobody):
    folder = as_nobody / "closed"
    append_row(folder / "results.csv", ROW, COLUMNS)
    (folder / "secret.csv").write_text("a\n1\n")
    (folder / "secret.csv").chmod(0)
    folder.chmod(0o500)
    (folder / "results.csv").chmod(0o400)
    for call in (
        lambda: append_row(folder / "results.csv", ROW | {"run_id": "2"}, COLUMNS),
        lambda: write_table(pd.DataFrame({"a": [1]}), folder / "table.csv"),
        lambda: read_table(folder / "secret.csv"),
        lambda: read_json(folder / "secret.csv"),
    ):
        with pytest.raises(UserError, match=r"permission denied\. Give yourself access") as error:
            call()
        assert str(folder) in str(error.value)
    assert len(read_table(folder / "results.csv")) == 1


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    (tmp_path / "table.csv").write_text("old")
    with pytest.raises(OSError, match="broken pipe"), atomic_write(tmp_path / "table.csv") as temporary:
        temporary.write_text("half")
        raise OSError("broken pipe")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_other_errors_pass_through(tmp_path):
    path = tmp_path / "a.csv"
    with pytest.raises(io.UnsupportedOperation), atomic_write(path) as temporary, temporary.open("w") as file:
        file.read()
    assert list(tmp_path.iterdir()) == []
