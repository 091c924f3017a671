"""Adoption of runs that were trained in another workspace, on a GPU elsewhere say."""

import json
from dataclasses import replace

import pandas as pd
import pytest

import auxiliary as aux
from animals10 import adoption
from animals10.adoption import adopt_runs, expected_digest, missing_experiments, train_missing
from animals10.reference import reference_files
from animals10.workspace import Workspace

OWN = aux.Experiment("own", aux.CNN((4,), (4,), (8,)), aux.Training(learning_rate=1e-3, epochs=1))


def test_rows_and_files_of_another_workspace_are_adopted_once(prepared, tmp_path, capsys):
    untrained = aux.find_experiment("mobnet2_small_notraining")
    runs = aux.train_all(prepared, [OWN, untrained])
    mine = prepared.model_copy(update={"root": tmp_path / "mine"})
    assert adopt_runs(mine, prepared.root) == 0
    runs[0].file("model.keras").unlink()  # models need not travel
    assert adopt_runs(mine, prepared.models) == 0 == adopt_runs(mine, runs[0].path)
    assert capsys.readouterr().out.count("already there") == 3
    table, original = aux.results_table(mine), aux.results_table(prepared)
    pd.testing.assert_frame_equal(table, original)  # the test between runs reads the predictions
    adopted = next((mine.root / "study").glob("own-*"))
    assert sorted(path.name for path in adopted.iterdir()) == ["history.csv", "predictions.csv.gz", "run.json"]
    copy = aux.Run("own", adopted)
    assert copy.record == runs[0].record and copy.history.equals(runs[0].history)
    pd.testing.assert_frame_equal(copy.predictions, runs[0].predictions, rtol=0, atol=1e-6)
    aux.plot_run(copy)  # curves and confusion matrix need no model
    assert len(aux.stored_runs(mine.root)) == 0  # a run without a model is not finished: it would be trained again


def test_a_run_that_was_changed_is_refused_with_the_reason(prepared, tmp_path, capsys):
    run = aux.train(prepared, OWN)
    mine = prepared.model_copy(update={"root": tmp_path / "mine"})
    record, predictions = run.record, run.file("predictions.csv").read_bytes()

    def refusal(**changes):
        changed = record | changes
        run.file("run.json").write_text(json.dumps(changed), encoding="utf-8")
        assert adopt_runs(mine, run.path) == 1 and not mine.results.exists() and not (mine.root / "study").exists()
        return capsys.readouterr().out

    assert "accuracy is 2 in its row but" in refusal(row=record["row"] | {"accuracy": 2})
    assert "it is a trial" in refusal(row=record["row"] | {"epochs_cap": 1})
    assert "lacks split" in refusal(row={name: value for name, value in record["row"].items() if name != "split"})
    assert "do not name the same run" in refusal(digest="0" * 12)
    assert "does not hold 7 different images" in refusal(row=record["row"] | {"n_test": 7})
    assert "damaged" in refusal(row=None)
    run.file("predictions.csv").write_bytes(predictions.replace(b"red", b"tan"))
    assert "predictions.csv is not the file that was stored" in refusal()
    run.file("predictions.csv").unlink()
    assert "predictions.csv is missing" in refusal()
    with pytest.raises(aux.UserError, match="There is no run in"):
        adopt_runs(mine, tmp_path)


def test_test_images_of_animals10_must_be_those_of_the_reference_split():
    files = reference_files()
    names = pd.Series(adoption._reference_parts().index, files.index)
    table = pd.DataFrame({"relpath": names, "category": names.str.split("/").str[0]})
    test, row = table[files.part == "test"], {"split": "grouped"}
    assert adoption._image_problems(test, row) == []
    assert adoption._image_problems(table, row)[0].startswith("23602 of its test images are not in the test part")
    assert adoption._image_problems(table, {"split": "published"}) == []
    assert "1 of its test images are listed with another class" in str(
        adoption._image_problems(test.assign(category=["cat", *test.category[1:]]), row)
    )
    unknown = test.assign(relpath=["cat/unknown.jpg", *test.relpath[1:]])
    assert "1 of its test images are no files of Animals-10" in adoption._image_problems(unknown, row)[0]


def test_the_digest_of_an_experiment_follows_from_its_record_alone(prepared):
    workspace = Workspace(prepared)
    experiments = [*aux.CATALOGUE, replace(aux.find_experiment("mobnet2_best"), repetition=3)]
    for experiment in experiments:
        record = {
            "row": experiment.key._asdict(),
            "spec": {"settings": json.loads(json.dumps(workspace.context(experiment)))},
            "class_names": workspace.splits.class_names,
        }
        assert expected_digest(record) == workspace.digest(experiment), experiment.label
    record["spec"]["settings"]["image_size"] = 48
    assert expected_digest(record) != workspace.digest(experiments[-1])
    assert expected_digest(record | {"row": OWN.key._asdict()}) is None


def test_only_the_experiments_are_trained_that_the_study_lacks(settings, tmp_path, capsys):
    results = tmp_path / "study.csv"
    names = ("mobnet2_small_notraining", "mobnet2_small")
    one = settings.model_copy(update={"only": names, "max_epochs": 1})
    runs = train_missing(one, results)
    assert [run.model_id for run in runs] == [*names]
    row = runs[0].row | {"weights": "imagenet"}
    rows = [row, row | {"split": "published"}, row | {"weights": "random"}, row | {"epochs_cap": 1}]
    for index, changes in enumerate(rows):
        aux.write_table(pd.DataFrame([row | changes]), results)
        missing = missing_experiments(row["dataset"], "grouped", 32, results)
        assert len(missing) == len(aux.CATALOGUE) - (index == 0)
    aux.write_table(pd.DataFrame(rows), results)
    assert [run.model_id for run in train_missing(one, results)] == ["mobnet2_small"]
    assert "missing for raw, grouped split: 1" in capsys.readouterr().out
