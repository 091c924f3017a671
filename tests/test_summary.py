"""The table that is printed after the notebooks."""

import pandas as pd

import auxiliary as aux
from animals10.results import RESULT_COLUMNS
from animals10.summary import WIDTH, print_results


def rows_of(*changes):
    row = dict.fromkeys(RESULT_COLUMNS, 1) | {"dataset": "mine", "image_size": 224, "weights": "none"}
    row |= {"time": "2026-01-01", "n_test": 50, "accuracy_low": 0.5, "accuracy_high": 0.9, "epochs_cap": None}
    return pd.DataFrame([row | {"run_id": f"r{number}"} | change for number, change in enumerate(changes)])


def test_results_fit_a_terminal_best_first_with_interval_chance_and_how_to_read_them(prepared, capsys):
    print_results(prepared)
    assert "no run is trained yet" in capsys.readouterr().out
    run = aux.train(prepared, aux.Experiment("mine", aux.CNN((4,), (4,), (8,)), aux.Training(1e-3, 1)))
    key = {"model_id": "conv4invto128_pool_dense256_upsamp", "image_size": 224}
    names = ("first", "second, with a name that is far too long for one line of a table: " + 5 * "and so on ")
    rows = rows_of(
        key | {"acc_val": 0.3, "accuracy": 0.9, "learning_rate": 1e-4},
        key | {"acc_val": 0.4, "accuracy": 0.9, "learning_rate": 1e-5, "weights": f"MobileNetV2 {'0' * 60}"},
        {"model_id": names[1], "acc_val": 0.6, "accuracy": 0.7, "weights": "random"},
        {"model_id": names[0], "acc_val": 0.8, "accuracy": 0.6, "epochs_cap": 3},
        run.row,
    )
    aux.write_table(rows, prepared.results)
    capsys.readouterr()
    print_results(prepared)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert max(map(len, lines[:-1])) <= WIDTH  # the last names the workspace, wherever it is
    heading = next(number for number, line in enumerate(lines) if line.startswith("run "))
    assert "95 % interval lies above chance" in " ".join(lines[:heading])
    assert "random weights" in " ".join(lines[:heading])
    assert 0 < printed.index("first") < printed.index("\nsecond") < printed.index("0.400") < printed.index("0.300")
    mine = next(line for line in lines if line.startswith("mine"))
    assert "0.333" in mine and f"{run.row['accuracy_low']:.3f} to {run.row['accuracy_high']:.3f}" in mine
    assert lines[-1].startswith("Next: `make report ROOT=") and "published" not in lines[heading]


def test_published_accuracies_stand_beside_the_runs_that_they_are_compared_with(tmp_path, capsys):
    settings = aux.Settings(root=tmp_path, raw=tmp_path)
    key = {"model_id": "mobnet2_small", "learning_rate": 7e-4, "epochs": 15, "dataset": "animals10", "accuracy": 0.95}
    other = {"model_id": "mobnet2_2dense", "learning_rate": 5e-4, "epochs": 15}  # on another data set
    aux.write_table(rows_of(key | {"n_test": 2577, "weights": "imagenet"}, other), settings.results)
    print_results(settings)
    table = capsys.readouterr().out.split("\n\n")[1]
    assert "0.953" in table and "0.955" not in table


def test_after_the_sample_the_next_step_is_named(prepared, tmp_path, capsys):
    settings = prepared.model_copy(update={"profile": "sample"})
    aux.write_table(rows_of({"model_id": "a"}), settings.results)
    print_results(settings)
    last = capsys.readouterr().out.splitlines()[-1]
    assert "RAW=" in last and "make data" in last and "make quick" in last and len(last) <= WIDTH
