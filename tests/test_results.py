import dataclasses

import pandas as pd
import pytest

import auxiliary as aux
from animals10.adoption import adopt_runs, missing_experiments
from animals10.csv_append import append_row
from animals10.dataset import PUBLISHED_RESULTS
from animals10.results import RESULT_COLUMNS, ResultRow, newcombe_interval
from animals10.runs import run_labels

PUBLISHED = aux.read_table(PUBLISHED_RESULTS)
TINY = aux.CNN((4,), (4,), (8,))


def add(settings, dataset="animals10", weights="none", **values):
    row = dict.fromkeys(RESULT_COLUMNS, 1) | {"dataset": dataset, "weights": weights, "image_size": 224} | values
    append_row(settings.results, row, RESULT_COLUMNS)


def test_the_published_runs_are_all_there():
    assert PUBLISHED.image_size.value_counts().to_dict() == {224: 42, 200: 22}
    runs = PUBLISHED.query("image_size == 224")
    assert runs.notebook.value_counts().to_dict() == {"02": 27, "03": 15}
    assert runs.loc[runs.accuracy.idxmax(), ["model_id", "accuracy"]].tolist() == ["effnet2S_small_finetune", 0.976699]


def test_the_published_columns_come_first_and_every_column_is_described():
    published = "time model_id learning_rate epochs batchsize acc_train acc_val accuracy precision recall f1_score"
    assert list(RESULT_COLUMNS[:11]) == published.split()
    for column in dataclasses.fields(ResultRow):
        assert column.metadata["title"] and column.metadata["description"] and column.metadata["format"].format(1)


def test_published_and_measured_are_joined_run_by_run(tmp_path):
    settings = aux.Settings(root=tmp_path, raw=tmp_path)
    assert set(aux.published_table(settings).agreement) == {"not measured"}  # before the first run
    cnn = {"model_id": "conv4invto128_dense1", "learning_rate": 5e-4, "epochs": 80, "n_test": 2597, "split": "grouped"}
    cnn |= {"epochs_cap": None}
    add(settings, **cnn, run_id="a", time="2026-01-01", accuracy=0.5)
    add(settings, **cnn, run_id="b", time="2026-01-02", accuracy=0.72)
    add(settings, **cnn | {"epochs_cap": 1}, run_id="trial", time="2026-01-03", accuracy=0.2)  # never displaces "b"
    short = cnn | {"epochs": 35}
    add(settings, **short | {"split": "published"}, run_id="c", time="2026-01-01", accuracy=0.74)
    add(settings, **short, run_id="later", time="2026-01-02", accuracy=0.67)  # on another split than the original
    mini = {"model_id": "mobnet2_dense256", "learning_rate": 5e-4, "epochs": 13, "accuracy": 0.9, "time": "2026-01-01"}
    add(settings, **mini, run_id="d", repetition=2, dataset="mini")
    add(settings, **mini, run_id="e", weights="random")
    table = aux.published_table(settings)
    assert len(table) == 42
    found = table[table.run_id.notna()].set_index("run_id")
    words = ["significantly higher", "not significantly different", "not compared: random weights"]
    expected = dict(zip("cbed", [*words, "not compared: measured on mini"], strict=True))
    assert found.agreement.to_dict() == expected
    assert found.difference["b"] == pytest.approx(0.72 - 0.710847) and found.accuracy["c"] == 0.678762
    assert found.difference_low["b"] < found.difference["b"] < found.difference_high["b"]
    assert set(table.agreement[table.run_id.isna()]) == {"not measured"}
    assert len(aux.published_table(settings.model_copy(update={"image_size": 200}))) == 22


def test_the_interval_of_a_difference_is_newcombes():
    # Example (a) of Newcombe (1998), Table II, method 10: 56/70 against 48/80
    assert newcombe_interval(56 / 70, 70, 48 / 80, 80) == pytest.approx([0.0524, 0.3339], abs=1e-4)


def stored_run(settings, name, correct, acc_val):
    """Writes a run on 20 test images; `correct` are the positions of those that it predicts correctly."""
    folder = settings.models / f"{name}-{name}"
    table = pd.DataFrame({"relpath": [f"{index}.jpg" for index in range(20)], "category": "a", "predicted": "b"})
    table.loc[list(correct), "predicted"] = "a"
    aux.write_table(table, folder / "predictions.csv")
    (folder / "model.keras").touch()
    values = {"accuracy": len(correct) / 20, "acc_val": acc_val, "data_sha256": "same", "time": name}
    add(settings, model_id=name, run_id=name, **values)
    return aux.Run(name, folder)


def test_the_best_run_is_chosen_on_validation_and_others_are_compared_with_it(tmp_path):
    settings = aux.Settings(root=tmp_path, raw=tmp_path)
    best = stored_run(settings, "best", range(18), acc_val=0.9)
    near = stored_run(settings, "near", range(20), acc_val=0.8)  # more accurate on the test images, by chance
    far = stored_run(settings, "far", range(8), acc_val=0.7)
    # 0 against 2 of 20: both tails of the binomial distribution hold 2 / 2**2; 10 against 0: 2 / 2**10
    assert aux.compare_runs(best, near) == {"only_first": 0, "only_second": 2, "p_value": 0.5}
    assert aux.compare_runs(far, best) == {"only_first": 0, "only_second": 10, "p_value": pytest.approx(2 / 2**10)}
    assert aux.compare_runs(best, best)["p_value"] == 1
    add(settings, model_id="gone", run_id="gone", accuracy=1.0, acc_val=1.0, data_sha256="same", time="gone")
    add(settings, model_id="untrained", run_id="untrained", accuracy=1.0, acc_val=None, data_sha256="same", time="x")
    table = aux.results_table(settings)
    assert table.model_id.tolist() == ["gone", "best", "near", "far", "untrained"]
    assert table.significance.tolist() == ["", "best", "not significantly different", "", ""]
    assert aux.best_run(settings) == best == aux.best_run(settings, "same")
    with pytest.raises(aux.UserError, match="no trained model"):
        aux.best_run(settings, "other data")
    aux.write_table(best.predictions.head(10), best.file("predictions.csv"))
    with pytest.raises(aux.UserError, match="different images"):
        aux.compare_runs(best, near)


def test_classification_reports_have_a_column_group_for_each_run(prepared):
    one = aux.Experiment("a", TINY, aux.Training(1e-3, 1))
    experiments = [one, dataclasses.replace(one, repetition=2), dataclasses.replace(one, id="b")]
    runs = aux.train_all(prepared, experiments)
    table = aux.classification_reports(*runs, aux.Run("absent", why="not yet."))
    assert table.columns.get_level_values(0).unique().tolist() == ["a, repetition 1", "a, repetition 2", "b", "images"]
    assert table.images[["blue", "green", "red"]].sum() == 5 and aux.classification_reports().empty
    assert table["b"].recall["weighted avg"] == pytest.approx(runs["b"].row["recall"])
    pairs = aux.comparison_table([(runs[0], runs[1]), (runs[0], aux.Run("absent"))])
    assert pairs[["first", "second"]].to_numpy().tolist() == [["a, repetition 1", "a, repetition 2"]]


def test_a_table_that_a_spreadsheet_changed_is_one_line(tmp_path):
    settings = aux.Settings(root=tmp_path, raw=tmp_path)
    add(settings, model_id="a", run_id="a", time="x", accuracy=0.5, acc_val=0.25)
    text = settings.results.read_text()
    readers = (aux.results_table, aux.best_run, missing_experiments_of, lambda settings: adopt_runs(settings, tmp_path))
    (tmp_path / "models" / "a-a").mkdir(parents=True)
    (tmp_path / "models" / "a-a" / "run.json").write_text("{}")
    for changed, message in (
        (text.replace(",", ";"), "has semicolons between its values"),
        (text.replace(",", ";").replace("0.25", "0,25").replace("0.5", "0,5"), "has semicolons between its values"),
        (text.replace("0.25", '"0,25"'), "holds '0,25' as acc_val, which is no number"),
    ):
        settings.results.write_text(changed)
        for read in readers if "semicolons" in message else readers[:3]:
            with pytest.raises(aux.UserError, match=message) as error:
                read(settings)
            assert "\n" not in str(error.value)


def missing_experiments_of(settings):
    return missing_experiments("animals10", "grouped", 224, settings.results)


def test_labels_of_runs_are_unique_and_say_what_differs():
    rows = [
        {"model_id": "a", "epochs": 5, "learning_rate": 1e-4, "repetition": 1},
        {"model_id": "a", "epochs": 5, "learning_rate": 1e-5, "repetition": 1},
        {"model_id": "a", "epochs": 9, "learning_rate": 1e-5, "repetition": 1},
        {"model_id": "b", "epochs": 5, "learning_rate": 1e-5, "repetition": 1},
    ]
    labels = ["a, 5 epochs, learning rate 0.0001", "a, 5 epochs, learning rate 1e-05", "a, 9 epochs", "b"]
    assert run_labels(rows) == labels
    assert run_labels([rows[0], rows[0]]) == ["a", "a (2)"]


def test_runs_are_found_by_id_position_and_experiment():
    one = aux.Experiment("a", TINY, aux.Training(1e-3, 1))
    two = dataclasses.replace(one, repetition=2)
    runs = aux.Runs([aux.Run("a", why="1"), aux.Run("a", why="2"), aux.Run("b")], [one, two, one])
    assert runs["b"] is runs[2] and runs[two].why == "2" and len(runs[:2] + runs) == 5
    with pytest.raises(aux.UserError, match="2 of these runs are called 'a'"):
        runs["a"]
    with pytest.raises(aux.UserError, match=r"called 'bb'; the nearest are b"):
        runs["bb"]


def test_layers_as_latex():
    latex = aux.layer_table(aux.CNN((8,), (2,), (16,)).build(3, 32)).assign(layer="50_%&")
    latex = latex.to_latex(index=False, escape=True)
    assert r"\toprule" in latex and r"50\_\%\& & Conv2D & 30 × 30 × 8 & 224 \\" in latex
