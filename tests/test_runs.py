"""Runs are told apart by more than their id, trials never stand for full runs, and any legal id works everywhere."""

import json
import subprocess
import sys

import pandas as pd
import pytest

import auxiliary as aux
from animals10 import notebooks
from animals10.csv_append import append_row
from animals10.dataset import PUBLISHED_RESULTS
from animals10.demo import titled_models
from animals10.files import REPOSITORY
from animals10.readme import study_rows
from animals10.report import collect, render
from animals10.results import RESULT_COLUMNS
from animals10.runs import run_labels
from animals10.verification import verify_runs
from animals10.workspace import Workspace, is_listed

PUBLISHED = aux.read_table(PUBLISHED_RESULTS)
TINY, SHORT = aux.CNN((4,), (4,), (4,), (0.0,)), aux.Training(1e-2, 1)
SMALL = aux.find_experiment("mobnet2_small")


@pytest.fixture
def store(tmp_path):
    """Returns a function that stores a run of the catalogue's `mobnet2_small` on Animals-10; later ones are later."""
    settings, n = aux.Settings(root=tmp_path, raw=tmp_path), 0

    def _store(spec=None, **row):
        nonlocal n
        n += 1
        predictions = pd.DataFrame({"relpath": [f"{i}.jpg" for i in range(40)], "category": ["a", "b"] * 20})
        predictions["predicted"] = predictions.category.where(predictions.index >= n, "c")
        predictions["confidence"] = 0.5
        run_id, facts = f"2026010{n}T000000000000-{n:012}", dict.fromkeys(RESULT_COLUMNS, 1)
        facts |= SMALL.key._asdict() | {"dataset": "animals10", "split": "grouped", "weights": "imagenet"}
        facts |= {"image_size": 224, "epochs_cap": None, "n_test": 2597, "data_sha256": "same", "acc_val": 0.9}
        facts |= aux.metrics(predictions) | {"time": f"2026-01-0{n}", "run_id": run_id} | row
        folder = settings.models / f"{facts['model_id']}-{run_id}"
        history = {"epoch": [1, 2]} | {name: [0.5, 0.6] for name in ("accuracy", "loss", "val_accuracy", "val_loss")}
        for name, table in {"predictions": predictions, "history": pd.DataFrame(history)}.items():
            aux.write_table(table, folder / f"{name}.csv")
        record = {"row": facts, "class_names": ["a", "b", "c"], "spec": SMALL.specification() if spec is None else spec}
        (folder / "run.json").write_text(json.dumps(record))
        (folder / "model.keras").touch()
        append_row(settings.results, facts, RESULT_COLUMNS)
        return aux.Run(facts["model_id"], folder)

    return settings, _store


# ── Names as keys ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_each_run_has_a_column_or_row_of_its_own_in_every_table_and_figure(store):
    settings, add = store
    differences = [{}, {"learning_rate": 7e-5}, {"repetition": 2}, {"class_balance": "max"}, {"seed": 6}, {"params": 2}]
    runs = [add(**values) for values in [*differences, {}]]  # the last one was trained twice
    reports = aux.classification_reports(*runs)
    groups = reports.columns.get_level_values(0).unique()
    assert len(groups) == len(runs) + 1 and groups[-1] == "images"
    for label, run in zip(groups, runs, strict=False):
        assert reports[label].recall["weighted avg"] == pytest.approx(run.row["recall"])
    assert len(aux.parameter_table(runs, PUBLISHED)) == aux.parameter_table(runs, PUBLISHED).run.nunique() == len(runs)
    table = aux.results_table(settings)
    assert table.run.nunique() == table.run_id.nunique() == len(runs)
    figure = aux.plot_comparison(runs, PUBLISHED)
    assert len({label.get_text() for label in figure.axes[0].get_yticklabels()}) == len(runs)
    pairs = aux.comparison_table([(runs[0], run) for run in runs[1:]])
    assert pairs.second.nunique() == len(pairs) == len(runs) - 1
    page = collect(settings)
    page = page[page.measured]
    assert page.label.is_unique and page.id.is_unique and len(page) == len(runs)
    assert len(titled_models(settings)) == len(runs)


def test_no_label_is_equal_to_that_of_an_odd_id():
    rows = [{"model_id": "a", "epochs": 5}, {"model_id": "a", "epochs": 9}, {"model_id": "a, 5 epochs", "epochs": 1}]
    rows += [{"model_id": "b"}, {"model_id": "b"}, {"model_id": "b (2)"}]
    assert len(set(run_labels(rows))) == len(rows)
    assert run_labels(
        [{"model_id": "a", "epochs": 5.0, "params": 1e6}, {"model_id": "a", "epochs": 5, "params": None}]
    ) == ["a, 1,000,000 parameters", "a"]


def test_a_class_may_be_called_like_a_row_of_the_report(store):
    run = store[1]()
    table = run.predictions
    names = {"a": "accuracy", "b": "macro avg", "c": "x"}
    aux.write_table(table.replace({"category": names, "predicted": names}), run.file("predictions.csv"))
    report = aux.classification_reports(run)
    assert list(report.index) == ["accuracy", "macro avg", "x", "macro avg of all classes", "weighted avg"]
    assert report.images.tolist() == [20, 20, 0, 40, 40]


def test_runs_on_different_images_count_their_own(store):
    _, add = store
    runs = [add(), add(repetition=2)]
    aux.write_table(runs[1].predictions.tail(30), runs[1].file("predictions.csv"))
    report = aux.classification_reports(*runs)
    counts = {name: report[name].images["weighted avg"] for name in report.columns.get_level_values(0).unique()}
    assert counts == {"mobnet2_small, repetition 1": 40, "mobnet2_small, repetition 2": 30}


def test_rows_of_ones_own_are_kept_apart_without_ids(store):
    settings, add = store
    add()
    line = settings.results.read_text().splitlines()[1].split(",")
    line[RESULT_COLUMNS.index("run_id")] = ""
    repeated = settings.results.read_text().splitlines()[1]
    with settings.results.open("a") as file:
        file.write("\n".join([",".join(line)] * 2 + [repeated]) + "\n")
    table = collect(settings)
    table = table[table.measured]
    assert len(table) == 4 and table.id.is_unique and table.run_id.is_unique and table.label.is_unique
    assert render(settings).count('<script type="text/html"') == 4 + 41


def test_an_experiment_of_the_same_name_does_not_stand_for_the_published_one(store, capsys):
    settings, add = store
    published = add()
    changed = SMALL.specification()
    changed["training"] |= {"optimizer": "sgd"}
    other = add(changed)
    (row,) = aux.published_table(settings).query("model_id == 'mobnet2_small'").to_dict("records")
    assert row["run_id"] == published.row["run_id"] and "significantly" in row["agreement"]
    assert list(study_rows(settings).run_id) == [published.row["run_id"]]
    figure = aux.plot_comparison([other], PUBLISHED)
    assert "published" not in figure.get_label()
    published.file("run.json").unlink()
    aux.write_table(aux.read_table(settings.results).tail(1), settings.results)
    (row,) = aux.published_table(settings).query("model_id == 'mobnet2_small'").to_dict("records")
    assert row["agreement"] == "not compared: configured in another way" and pd.isna(row["difference"])
    assert study_rows(settings).empty


# ── Trials ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_later_trial_never_stands_for_the_full_run(store, capsys):
    settings, add = store
    full = add(acc_val=0.8)
    trial = add(acc_val=0.95, epochs_cap=1)
    for runs in (aux.Runs([full, trial]), aux.Runs([trial, full])):
        assert runs.best == full
    assert aux.best_run(settings) == full and aux.find_model(settings.root, "mobnet2_small").parent == full.path
    assert full.path.name in capsys.readouterr().err  # two runs bear that id: the one that is used is named
    table = aux.results_table(settings)
    assert table.run.tolist() == ["mobnet2_small", "mobnet2_small, capped at 1 epoch"]
    assert table.significance.tolist() == ["best", ""]
    published = aux.published_table(settings).set_index("model_id")
    assert published.run_id["mobnet2_small"] == full.row["run_id"]
    assert next(iter(titled_models(settings))).startswith("mobnet2_small: ")
    page = collect(settings)
    assert page.run_id[:2].tolist() == table.run_id.tolist() and page.setting[0] != page.setting[1]
    notebooks.print_results(settings)
    printed = capsys.readouterr().out
    rows = [line for line in printed.splitlines() if line.startswith("mobnet2_small")]
    assert len(rows) == 2 and "0.953" in rows[0] and "capped" in rows[1] and "0.953" not in rows[1]  # published


def test_a_trial_is_shown_as_such_and_not_beside_the_published_value(store):
    settings, add = store
    trial = add(epochs_cap=1)
    figure = aux.plot_comparison([trial], PUBLISHED)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["mobnet2_small, capped at 1 epoch"]
    assert "published" not in figure.get_label()
    assert "maximum epochs 15 capped at 1," in aux.plot_run(trial).get_label()
    assert aux.classification_reports(trial).columns[0][0] == "mobnet2_small, capped at 1 epoch"
    row = aux.published_table(settings).set_index("model_id").loc["mobnet2_small"]
    assert row.agreement == "not compared: maximum epochs capped" and pd.isna(row.difference)
    assert study_rows(settings).empty and aux.best_run(settings) == trial  # there is no other


def test_a_trial_of_an_older_version_is_recognised_by_its_specification(store):
    run = store[1](SMALL.specification() | {"settings": {"maximum_epochs": 2}})
    record = run.record
    del record["row"]["epochs_cap"]
    run.file("run.json").write_text(json.dumps(record))
    assert run.row["epochs_cap"] == 2 and run_labels([run.row]) == ["mobnet2_small, capped at 2 epochs"]


# ── Odd ids ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ODD = "~net [v2], it's {5} $x 100 % сеть"


def test_an_odd_id_works_in_every_command(prepared, monkeypatch):
    monkeypatch.setenv("ANIMALS10_ONLY", ODD)
    settings = prepared.model_copy(update={"only": aux.Settings.from_environment().only})
    runs = aux.train_all(settings, [aux.Experiment(name, TINY, SHORT) for name in (ODD, "left out")])
    assert runs[ODD].path and not runs["left out"].path
    assert aux.train(settings, aux.Experiment(ODD, TINY, SHORT)) == runs[ODD]  # it is found again
    assert aux.find_model(settings.root, ODD) == aux.find_model(settings.root, runs[ODD].path.name)
    assert verify_runs(settings, [ODD]) == 0
    assert ODD.replace("'", "&#39;") in render(settings)
    command = [sys.executable, REPOSITORY / "scripts" / "classify.py", ODD, str(settings.raw / "red" / "red 00.jpeg")]
    monkeypatch.setenv("ANIMALS10_ROOT", str(settings.root))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "red 00.jpeg: " in done.stdout


def test_the_longest_id_is_stored_and_drawn(prepared):
    run = aux.train(prepared, aux.Experiment("x" * 200, TINY, SHORT))
    assert run.path.name.startswith("x" * 200) and aux.find_model(prepared.root, "x" * 200).exists()
    processed = prepared.data / "processed"
    figures = [aux.plot_run(run), aux.plot_comparison([run], PUBLISHED), aux.plot_learning_curves([run])]
    for figure in [*figures, aux.plot_errors(run, processed), aux.plot_grad_cam(run, processed)]:
        figure.draw_without_rendering()  # no warning that there is no room


@pytest.mark.parametrize(
    ("text", "id", "is_named"),
    [
        ("a b, c", "b", True),
        ("my net, 2", "my net, 2", True),
        ("x,my net, 2", "my net, 2", True),
        ("my net 3", "my net, 2", False),
        ("a", ",", False),
        ("e\u0301", "\u00e9", True),  # one letter in two encodings
        ("ab", "a", False),
    ],
)
def test_only_names_ids_with_commas_and_blanks(text, id, is_named):
    settings = aux.Settings.from_environment({"ANIMALS10_PROFILE": "full", "ANIMALS10_ONLY": text})
    assert is_listed(settings.only, id) == is_named


def test_a_file_in_this_folder_is_not_taken_for_the_run_of_that_id(store, tmp_path, monkeypatch):
    settings, add = store
    run = add()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mobnet2_small").write_text("notes")
    assert aux.find_model(settings.root, "mobnet2_small").parent == run.path
    for name in ("~nobody", "x" * 5000):
        with pytest.raises(aux.UserError, match="There is no model"):
            aux.find_model(settings.root, name)


def test_letter_case_tells_runs_apart(prepared):
    workspace = Workspace(prepared)
    names = [workspace.digest(aux.Experiment(id, TINY, SHORT)) for id in ("net", "Net")]
    assert len(set(names)) == 2  # so their folders differ, also where letter case does not count


def test_make_verify_names_what_is_not_there(store):
    settings, add = store
    add()
    with pytest.raises(aux.UserError, match=r"no such run in .*models: typo\. "):
        verify_runs(settings, ["mobnet2_small", "typo"])
