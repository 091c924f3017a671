"""Verification of stored runs, and results.csv restored from them."""

import json

import pytest

import auxiliary as aux
from animals10.verification import find_problems, rebuild_results, verify_runs

SMALL = aux.CNN((4,), (4,), (8,))
TRAINING = aux.Training(learning_rate=1e-3, epochs=1)


def test_a_run_that_changed_is_detected(prepared, capsys):
    run, other = aux.train_all(
        prepared, [aux.Experiment("small", SMALL, TRAINING), aux.Experiment("other", SMALL, TRAINING, repetition=2)]
    )
    table = aux.results_table(prepared)
    assert find_problems(prepared, run, table) == []
    assert "accuracy is 2" in find_problems(prepared, run, table.assign(accuracy=2))[0]
    assert "0 times" in find_problems(prepared, run, table.head(0))[0]
    other.file("model.keras").replace(run.file("model.keras"))
    assert find_problems(prepared, run, table) == ["model.keras is not the file that was stored"]
    record = run.record  # even if its checksum is right, the model must be the one that predicted
    record["files_sha256"] |= {"model.keras": other.record["files_sha256"]["model.keras"]}
    run.file("run.json").write_text(json.dumps(record), encoding="utf-8")
    [problem] = find_problems(prepared, run, table)
    assert problem.startswith("the model's probabilities differ by up to 0.")
    assert verify_runs(prepared, ["small"]) == 1
    assert "1 runs verified, 1 of them failed" in capsys.readouterr().out
    with pytest.raises(aux.UserError, match="There is no such run"):
        verify_runs(prepared, ["smal"])


def test_a_model_that_cannot_be_loaded_does_not_stop_the_others(prepared, capsys):
    first, second = aux.train_all(prepared, [aux.Experiment(name, SMALL, TRAINING) for name in ("first", "second")])
    first.file("model.keras").write_bytes(b"no model")
    record = first.record
    record["files_sha256"]["model.keras"] = "0" * 64
    assert verify_runs(prepared) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == f"{second.path.name}: verified" and lines[-3].startswith(f"{first.path.name}: model.keras is")


def test_a_file_that_cannot_be_read_fails_its_run_alone(prepared, capsys):
    runs = aux.train_all(prepared, [aux.Experiment(name, SMALL, TRAINING) for name in ("a", "b", "c")])
    runs[0].file("run.json").write_text("[]")
    runs[1].file("model.keras").unlink()
    assert verify_runs(prepared) == 2
    lines = capsys.readouterr().out.splitlines()[-4:]
    assert "run.json is damaged (its file holds list, not a mapping)" in lines[0]
    assert lines[1].endswith("model.keras is not the file that was stored") and lines[2].endswith(": verified")


def test_images_that_changed_are_named(prepared, draw):
    run = aux.train(prepared, aux.Experiment("small", SMALL, TRAINING))
    test = aux.read_table(prepared.data / "test.csv")
    draw(prepared.raw / test.source[0], (0, 0, 0))
    for part in ("train", "val", "test"):
        (prepared.data / f"{part}.csv").unlink()
    aux.resize_images(prepared, aux.scan_images(prepared))
    [problem] = find_problems(prepared, run, aux.results_table(prepared))
    assert "other images or splits" in problem


def test_results_are_restored_from_the_runs(prepared, capsys):
    runs = aux.train_all(prepared, [aux.Experiment(name, SMALL, TRAINING) for name in ("first", "second")])
    before = prepared.results.read_bytes()
    assert rebuild_results(prepared) == (2, 0) and prepared.results.read_bytes() == before
    prepared.results.write_bytes(b"".join(before.splitlines(keepends=True)[:2]))
    assert rebuild_results(prepared) == (2, 1) and prepared.results.read_bytes() == before
    assert "2 rows, 1 of them were missing" in capsys.readouterr().out
    for damage in ("no JSON", json.dumps({"spec": {}}), json.dumps([])):
        runs[0].file("run.json").write_text(damage, encoding="utf-8")
        with pytest.raises(aux.UserError, match=r"run\.json is damaged .*delete the run's folder"):
            rebuild_results(prepared)
        assert prepared.results.read_bytes() == before
