import csv
import errno
import io
import json
import os
import subprocess
import sys

import pandas as pd
import psutil
import pytest

import auxiliary as aux
import storage
from scripts import rebuild_results
from scripts.soak import append_together
from storage import append_row

COLUMNS = ("time", "model_id", "run_id", "data_sha256")


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def row(run_id, **values):
    return {"time": f"t{run_id}", "model_id": f"m{run_id}", "run_id": str(run_id), "data_sha256": "f" * 64} | values


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "results.csv"
    for run_id in range(3):
        append_row(path, row(run_id), COLUMNS)
    return path


def test_rows_survive_odd_values_and_other_peoples_columns(table):
    odd = row(3, model_id='a, "b"\nc')
    append_row(table, odd, COLUMNS)
    append_row(table, odd, COLUMNS)
    assert [stored["run_id"] for stored in rows(table)] == list("0123") and rows(table)[3] == odd
    text = table.read_text().replace("time,", "mine,time,").replace("t1", "keep,t1").replace("t0,", ",t0,")
    table.write_text(text)
    append_row(table, row(4), COLUMNS)
    assert rows(table)[4] == row(4) | {"mine": ""} and rows(table)[1]["mine"] == "keep"
    assert table.read_text().startswith(text) and len(list(table.parent.glob("*.bak"))) == 0


def test_a_table_of_a_spreadsheet_goes_on_as_one(table):
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))
    before = table.read_bytes()
    append_row(table, row(3), COLUMNS)
    assert table.read_bytes() == before + b"t3,m3,3," + b"f" * 64 + b"\r\n"


def test_a_table_cut_anywhere_is_mended_and_no_other_row_touched(tmp_path, table, capsys):
    append_row(table, row(3, model_id='odd, "quoted"\nname'), COLUMNS)
    whole = table.read_bytes()
    starts = [whole.index(f"t{number},".encode()) for number in range(4)] + [len(whole)]
    for cut in range(len(whole)):
        for tail in (b"", b"\0" * 40):
            path = tmp_path / f"{cut}-{len(tail)}" / "results.csv"
            path.parent.mkdir()
            path.write_bytes(whole[:cut] + tail)
            append_row(path, row(4), COLUMNS)
            said = capsys.readouterr().out
            kept = sum(cut >= start - 1 for start in starts[1:])  # all but the line break is enough
            assert [stored["run_id"] for stored in rows(path)] == [str(number) for number in (*range(kept), 4)], cut
            assert path.read_bytes().startswith(whole[: starts[kept]])
            backups = [path.read_bytes() for path in path.parent.glob("results.csv.*.bak")]
            mended = bool(tail) or cut not in (0, *starts)
            assert backups == ([whole[:cut] + tail] if mended else []) and said.count("\n") == mended


def test_missing_columns_are_added_empty(table, capsys):
    old = 'run_id,mine,time\n1,"a,\nb",x\n2\n'
    table.write_text(old)
    append_row(table, row(3), COLUMNS)
    assert table.read_text().splitlines()[:4] == ["run_id,mine,time,model_id,data_sha256", '1,"a,', 'b",x,,', "2,,,,"]
    assert rows(table)[2] == row(3) | {"mine": ""}
    assert "model_id, data_sha256 were missing" in capsys.readouterr().out
    assert [path.read_text() for path in table.parent.glob("*.bak")] == [old]


def test_what_is_no_table_of_results_is_refused_untouched(table):
    for text in ("a;b;c\n1;2;3\n", 'time,run_id\n"1"2,3\n4,5\n', 'time,run_id\n1,"2\n3,4\n5,6\n'):
        table.write_text(text)
        with pytest.raises(aux.StudyError, match="move the file away") as error:
            append_row(table, row(3), COLUMNS)
        assert table.read_text() == text and "\n" not in str(error.value)
    for text in ("", "a,b\n1,2\n1,2,3\n"):
        table.write_text(text)
        with pytest.raises(aux.StudyError, match="is no csv table"):
            storage.read_table(table)


def test_eight_processes_append_a_hundred_rows_each(tmp_path):
    append_together(tmp_path / "results.csv", processes=8, each=100)
    names = [stored["run_id"] for stored in rows(tmp_path / "results.csv")]
    assert sorted(names) == sorted(f"{process}-{number}" for process in range(8) for number in range(100))


def test_results_are_rebuilt_from_the_runs(tmp_path, monkeypatch, capsys):
    path = tmp_path / "results.csv"
    columns = (*aux.RESULT_COLUMNS, "mine")
    full = [dict.fromkeys(aux.RESULT_COLUMNS, "1") | row(number) for number in range(4)]
    for number in (3, 0):
        append_row(path, full[number] | {"mine": f"note {number}", "accuracy": "0.0"}, columns)
    append_row(path, dict.fromkeys(columns, "7") | {"run_id": "by hand"}, columns)
    for number in (2, 1, 0, 3):
        (tmp_path / "models" / f"m-{number}").mkdir(parents=True)
        (tmp_path / "models" / f"m-{number}" / "run.json").write_text(json.dumps({"row": full[number]}))
    monkeypatch.setenv("ANIMALS10_ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["rebuild_results.py"])
    rebuild_results.main()
    assert "5 rows, 2 of them were missing" in capsys.readouterr().out
    expected = [full[3] | {"mine": "note 3"}, full[0] | {"mine": "note 0"}]
    expected += [dict.fromkeys(columns, "7") | {"run_id": "by hand"}, *({"mine": ""} | full[n] for n in (1, 2))]
    assert rows(path) == expected and len(list(tmp_path.glob("*.bak"))) == 1
    before = path.read_bytes()
    rebuild_results.main()
    assert path.read_bytes() == before and len(list(tmp_path.glob("*.bak"))) == 1  # nothing to do, nothing done
    (tmp_path / "models" / "m-2" / "run.json").write_text('{"row"')
    with pytest.raises(SystemExit, match=r"run.json is damaged"):
        rebuild_results.main()


def test_temporary_files_of_killed_processes_are_swept_and_no_others(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    names = {f".{ended.pid}-0123456789ab.csv": False, f".{os.getpid()}-0123456789ab.jpg": True, ".git": True}
    for name in names:
        (tmp_path / name).touch()
    reused = tmp_path / f".{os.getpid()}-ba9876543210.csv"  # of an earlier process that had this one's number
    reused.touch()
    os.utime(reused, (psutil.Process().create_time() - 60,) * 2)
    storage.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {name for name, stays in names.items() if stays}
    storage.sweep(tmp_path / "not there")


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


def test_a_full_disk_is_one_clear_line_and_leaves_what_was_there(small_disk, table, prepared):
    path = small_disk / "results.csv"
    path.write_bytes(table.read_bytes())
    before = path.read_bytes()
    (small_disk / "filler").write_bytes(b"x" * (56 << 10))
    calls = [
        lambda: append_row(path, row(3, model_id="x" * 20_000), COLUMNS),
        lambda: storage.write_table(pd.DataFrame({"a": ["x" * 1000] * 99}), small_disk / "table.csv"),
        lambda: aux.resize_photographs(
            prepared.model_copy(update={"root": small_disk}), storage.read_table(prepared.data / "overview.csv")
        ),
    ]
    for call in calls:
        with pytest.raises(aux.StudyError, match=f"{small_disk}.*the disk is full. Make room") as error:
            call()
        assert "\n" not in str(error.value) and path.read_bytes() == before
        assert not [found for found in small_disk.rglob(".*") if found.name != ".results.csv.lock"]
    (small_disk / "filler").unlink()
    append_row(path, row(3), COLUMNS)
    assert [stored["run_id"] for stored in rows(path)] == list("0123")


def test_half_a_row_is_taken_back_where_the_disk_fills_up(table, monkeypatch):
    before = table.read_bytes()

    def fail(file):
        file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage, "_to_disk", fail)
    with pytest.raises(aux.StudyError, match="the disk is full"):
        append_row(table, row(3), COLUMNS)
    assert table.read_bytes() == before
    with pytest.raises(aux.StudyError, match="the disk is full"):
        append_row(table.with_name("new.csv"), row(3), COLUMNS)
    assert not table.with_name("new.csv").exists()


def test_a_read_only_disk_is_one_clear_line(small_disk):
    (small_disk / "results.csv").write_text("time,model_id,run_id,data_sha256\n")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for call in (
        lambda: append_row(small_disk / "results.csv", row(3), COLUMNS),
        lambda: storage.write_table(pd.DataFrame({"a": [1]}), small_disk / "folder" / "table.csv"),
    ):
        with pytest.raises(aux.StudyError, match=r"the disk is read-only\. Choose another workspace"):
            call()


def test_a_folder_without_permission_is_one_clear_line(as_nobody):
    folder = as_nobody / "closed"
    append_row(folder / "results.csv", row(1), COLUMNS)
    (folder / "secret.csv").write_text("a\n1\n")
    (folder / "secret.csv").chmod(0)
    folder.chmod(0o500)
    (folder / "results.csv").chmod(0o400)
    for call in (
        lambda: append_row(folder / "results.csv", row(2), COLUMNS),
        lambda: storage.write_table(pd.DataFrame({"a": [1]}), folder / "table.csv"),
        lambda: storage.read_table(folder / "secret.csv"),
    ):
        with pytest.raises(aux.StudyError, match=r"permission denied\. Give yourself access") as error:
            call()
        assert str(folder) in str(error.value)
    assert len(rows(folder / "results.csv")) == 1


def test_other_errors_are_not_dressed_up(tmp_path):
    path = tmp_path / "a.csv"
    with pytest.raises(io.UnsupportedOperation), storage.whole_file(path) as temporary, temporary.open("w") as file:
        file.read()
    assert list(tmp_path.iterdir()) == []
