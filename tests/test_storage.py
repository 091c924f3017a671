import csv

import pytest

import auxiliary as aux
from storage import append_row


def rows(settings):
    with settings.results.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rows_survive_odd_values_and_other_peoples_columns(settings):
    row = dict.fromkeys(aux.RESULT_COLUMNS, "x") | {"run_id": "1", "dataset": 'a, "b"\nc'}
    append_row(settings.results, row, aux.RESULT_COLUMNS)
    append_row(settings.results, row, aux.RESULT_COLUMNS)
    assert [stored["dataset"] for stored in rows(settings)] == ['a, "b"\nc']
    text = settings.results.read_text().replace("time,", "mine,time,").replace("x,x", ",x,x", 1)
    settings.results.write_text(text)
    append_row(settings.results, row | {"run_id": "2"}, aux.RESULT_COLUMNS)
    assert [(stored["run_id"], stored["mine"]) for stored in rows(settings)] == [("1", ""), ("2", "")]
    settings.results.write_text("time,model_id\n1,2\n")
    with pytest.raises(aux.StudyError, match="lacks the columns learning_rate"):
        append_row(settings.results, row, aux.RESULT_COLUMNS)
