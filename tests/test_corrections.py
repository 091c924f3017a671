"""Label corrections: exclude.csv and relabel.csv reach training and results, and their faults are one clear line."""

import pandas as pd
import pytest

import auxiliary as aux
from animals10.adoption import find_problems
from animals10.runs import dataset_in_words, run_labels

SMALL = aux.Experiment("small", aux.CNN((4,), (4,), (8,)), aux.Training(learning_rate=1e-2, epochs=1))


def write(settings, name, text):
    (settings.data / name).write_text(text, encoding="utf-8")


def correct(settings):
    """Excludes a training image, and relabels one of training and one of test; returns the three."""
    splits = aux.load_splits(settings)
    excluded, relabelled = splits.train.relpath[splits.train.category == "red"][:2]
    tested = splits.test.relpath[splits.test.category == "blue"].iloc[0]
    write(settings, "exclude.csv", f"relpath,reason\n{excluded},no animal\n")
    write(settings, "relabel.csv", f"relpath,category\n{relabelled},green\n{tested},red\n")
    return excluded, relabelled, tested


def test_corrections_change_labels_and_names_but_no_part(prepared, capsys):
    before, (excluded, relabelled, tested) = aux.load_splits(prepared), correct(prepared)
    after = aux.load_splits(prepared)
    train, test = after.train.set_index("relpath"), after.test.set_index("relpath")
    assert set(before.train.relpath) - set(after.train.relpath) == {excluded}
    assert list(before.val.relpath) == list(after.val.relpath) and list(before.test.relpath) == list(after.test.relpath)
    assert (train.category[relabelled], train.label[relabelled]) == ("green", 1)
    assert (test.category[tested], test.label[tested]) == ("red", 2)
    assert after.sha256 != before.sha256 and (before.dataset, before.corrections) == ("raw", "")
    assert after.dataset == "raw-corrected" and after.corrections.startswith("1 excluded, 2 relabelled (")
    assert "Labels are corrected: 1 excluded, 2 relabelled" in capsys.readouterr().out
    write(prepared, "relabel.csv", f"relpath,category\n{relabelled},blue\n{tested},red\n")
    other = aux.load_splits(prepared)
    assert other.corrections != after.corrections and other.corrections[:26] == after.corrections[:26]
    for name in ("exclude.csv", "relabel.csv"):
        (prepared.data / name).unlink()
    assert aux.load_splits(prepared).sha256 == before.sha256


def test_what_corrects_nothing_is_plain_data(prepared):
    before = aux.load_splits(prepared)
    write(prepared, "exclude.csv", "relpath\n")
    write(prepared, "relabel.csv", f"relpath,category\n{before.train.relpath[0]},{before.train.category[0]}\n")
    after = aux.load_splits(prepared)
    assert (after.sha256, after.dataset, after.corrections) == (before.sha256, before.dataset, "")


def test_runs_folds_and_predictions_use_the_corrected_labels(prepared):
    plain = aux.train(prepared, SMALL)
    _, relabelled, tested = correct(prepared)
    run = aux.train(prepared, SMALL)
    assert run.path != plain.path and plain.row["corrections"] == ""
    assert run.predictions.set_index("relpath").category[tested] == "red"
    assert run.row["corrections"].startswith("1 excluded, 2 relabelled (")
    table = aux.results_table(prepared).set_index("run_id")
    assert table.corrections[run.row["run_id"]] == run.row["corrections"]
    labels = run_labels([plain.row, run.row])
    assert labels[0] != labels[1] and "corrected" in labels[1]
    assert "labels: 1 excluded, 2 relabelled" in dataset_in_words(run.row)
    assert any("labels are corrected" in problem for problem in find_problems(run))
    found = aux.cross_validate(prepared, SMALL, folds=3)
    assert found.predictions.set_index("relpath").category[relabelled] == "green"


def test_an_older_table_of_results_is_read_and_completed(prepared):
    aux.train(prepared, SMALL)
    old = aux.read_table(prepared.results).drop(columns="corrections")
    aux.write_table(old, prepared.results)
    assert aux.results_table(prepared).corrections.isna().all()
    correct(prepared)
    aux.train(prepared, SMALL)
    assert aux.read_table(prepared.results).corrections.notna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("exclude.csv", "file\nx\n", "is not a csv table with the column relpath: give it the columns relpath."),
        ("relabel.csv", "relpath,label\nx,1\n", "column category: give it the columns relpath, category."),
        ("relabel.csv", "", "relabel.csv is not a csv table (it is empty): give it the columns relpath, category."),
        ("exclude.csv", "relpath\nred/no.jpg\n", "line 2 of {} names red/no.jpg, which is no relpath of processed-ov"),
        ("exclude.csv", "relpath\n{source}\n", "but the raw file of {relpath}: correct or delete the line"),
        ("exclude.csv", "relpath\n{relpath}\n{relpath}\n", "line 3 of {} names {relpath} again, after line 2 of {}"),
        ("exclude.csv", 'relpath,reason\n{relpath},x\n"",y\n', "line 3 of {} lacks a relpath: complete or delete it"),
        ("relabel.csv", "relpath,category\n{relpath},\n", "line 2 of {} lacks a category: complete or delete it"),
        ("relabel.csv", "relpath,category\n{relpath},fox\n", "class fox, not one of blue, green, red: correct it"),
        ("relabel.csv", "relpath;category\n{relpath};red\n", "semicolons between its values: save it as csv with comm"),
    ],
)
def test_a_fault_in_the_files_is_one_clear_line(prepared, name, text, message):
    row = aux.load_splits(prepared).train.iloc[0]
    names = {"relpath": row.relpath, "source": row.source}
    write(prepared, name, text.format(**names))
    with pytest.raises(aux.UserError) as error:
        aux.load_splits(prepared)
    assert "\n" not in str(error.value)
    assert message.format(*[prepared.data / name] * 2, **names) in str(error.value)


def test_an_image_in_both_files_and_a_class_without_training_images_are_refused(prepared):
    train = aux.load_splits(prepared).train
    write(prepared, "exclude.csv", f"relpath\n{train.relpath[0]}\n")
    write(prepared, "relabel.csv", f"relpath,category\n{train.relpath[0]},red\n")
    with pytest.raises(aux.UserError, match=r"relabel.csv names .* again, after line 2 of .*exclude.csv: delete one"):
        aux.load_splits(prepared)
    (prepared.data / "relabel.csv").unlink()
    write(prepared, "exclude.csv", "\n".join(["relpath", *train.relpath[train.category == "red"]]))
    with pytest.raises(aux.UserError, match=r"leave no training image of red: correct them"):
        aux.load_splits(prepared)


def test_corrected_animals10_is_not_compared_with_published_runs(prepared, monkeypatch):
    monkeypatch.setattr("animals10.splits.is_complete", lambda overview: True)
    assert aux.load_splits(prepared).dataset == "animals10"
    correct(prepared)
    run = aux.train(prepared, SMALL)
    assert run.row["dataset"] == "animals10-corrected"
    known = aux.find_experiment("conv4dense2").key._asdict() | {"image_size": 224, "weights": "none"}
    rows = pd.DataFrame([run.row | known]).assign(run="x", significance="")
    table = aux.published_table(prepared.model_copy(update={"image_size": 224, "root": prepared.root / "other"}), rows)
    assert set(table.agreement) == {"not measured", "not compared: measured on animals10-corrected"}
