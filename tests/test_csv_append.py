import csv
import errno
import os

import pytest

from animals10 import csv_append
from animals10.csv_append import append_row, check_table, rebuild_rows
from animals10.files import UserError
from animals10.stress import append_together

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


def test_a_table_of_a_spreadsheet_keeps_its_line_endings(table):
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b"\n", b"\r\n"))
    before = table.read_bytes()
    append_row(table, row(3), COLUMNS)
    assert table.read_bytes() == before + b"t3,m3,3," + b"f" * 64 + b"\r\n"


def test_a_table_cut_anywhere_is_repaired_and_no_other_row_changed(tmp_path, table, capsys):
    append_row(table, row(3, model_id='odd, "quoted"\nname'), COLUMNS)
    complete = table.read_bytes()
    starts = [complete.index(f"t{number},".encode()) for number in range(4)] + [len(complete)]
    for cut in range(len(complete)):
        for tail in (b"", b"\0" * 40):
            path = tmp_path / f"{cut}-{len(tail)}" / "results.csv"
            path.parent.mkdir()
            path.write_bytes(complete[:cut] + tail)
            append_row(path, row(4), COLUMNS)
            printed = capsys.readouterr().out
            kept = sum(cut >= start - 1 for start in starts[1:])  # a row needs everything but its line break
            assert [stored["run_id"] for stored in rows(path)] == [str(number) for number in (*range(kept), 4)], cut
            assert path.read_bytes().startswith(complete[: starts[kept]])
            backups = [path.read_bytes() for path in path.parent.glob("results.csv.*.bak")]
            repaired = bool(tail) or cut not in (0, *starts)
            assert backups == ([complete[:cut] + tail] if repaired else []) and printed.count("\n") == repaired


def test_missing_columns_are_added_empty(table, capsys):
    old = 'run_id,mine,time\n1,"a,\nb",x\n2\n'
    table.write_text(old)
    append_row(table, row(3), COLUMNS)
    assert table.read_text().splitlines()[:4] == ["run_id,mine,time,model_id,data_sha256", '1,"a,', 'b",x,,', "2,,,,"]
    assert rows(table)[2] == row(3) | {"mine": ""}
    assert "model_id, data_sha256 were missing" in capsys.readouterr().out
    assert [path.read_text() for path in table.parent.glob("*.bak")] == [old]


@pytest.mark.parametrize(
    "text", ["a;b;c\n1;2;3\n", 'time,run_id\n"1"2,3\n4,5\n', 'time,run_id\n1,"2\n3,4\n5,6\n', "\na,b"]
)
def test_what_is_not_a_table_of_results_is_refused_untouched(table, text):
    table.write_text(text)
    with pytest.raises(UserError, match="move the file away") as error:
        append_row(table, row(3), COLUMNS)
    assert table.read_text() == text and "\n" not in str(error.value)


def test_a_table_with_semicolons_is_named_as_such_before_and_when_a_row_is_appended(table):
    table.write_text(table.read_text().replace(",", ";"))
    before = table.read_bytes()
    for call in (lambda: check_table(table, COLUMNS), lambda: append_row(table, row(3), COLUMNS)):
        with pytest.raises(UserError, match=r"has semicolons between its values: save it as csv with commas"):
            call()
    assert table.read_bytes() == before


@pytest.mark.slow
def test_eight_processes_append_a_hundred_rows_each(tmp_path):
    append_together(tmp_path / "results.csv", processes=8, each=100)
    names = [stored["run_id"] for stored in rows(tmp_path / "results.csv")]
    assert sorted(names) == sorted(f"{process}-{number}" for process in range(8) for number in range(100))


def test_rows_are_rebuilt_and_the_rows_and_columns_of_others_kept(tmp_path):
    path, columns = tmp_path / "results.csv", (*COLUMNS, "accuracy", "mine")
    full = [row(number, accuracy="1") for number in range(4)]
    for number in (3, 0):
        append_row(path, full[number] | {"mine": f"note {number}", "accuracy": "0.0"}, columns)
    by_hand = dict.fromkeys(columns, "7") | {"run_id": "by hand"}
    append_row(path, by_hand, columns)
    assert rebuild_rows(path, reversed(full), columns[:-1]) == (5, 2)
    expected = [full[3] | {"mine": "note 3"}, full[0] | {"mine": "note 0"}, by_hand]
    assert rows(path) == [*expected, full[1] | {"mine": ""}, full[2] | {"mine": ""}]
    assert len(list(tmp_path.glob("*.bak"))) == 1
    before = path.read_bytes()
    assert rebuild_rows(path, full, columns[:-1]) == (5, 0)
    assert path.read_bytes() == before and len(list(tmp_path.glob("*.bak"))) == 1  # nothing to do, nothing done
    path.write_text(path.read_text() + "8,8,8,8,8,8,8,8\n")
    with pytest.raises(UserError, match="more values than the table has columns"):
        rebuild_rows(path, full, columns[:-1])


def test_half_a_row_is_removed_if_the_disk_fills_up(table, monkeypatch):
    before = table.read_bytes()

    def fail(file):
        file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(csv_append, "flush_to_disk", fail)
    with pytest.raises(UserError, match="the disk is full"):
        append_row(table, row(3), COLUMNS)
    assert table.read_bytes() == before
    with pytest.raises(UserError, match="the disk is full"):
        append_row(table.with_name("new.csv"), row(3), COLUMNS)
    assert not table.with_name("new.csv").exists()
