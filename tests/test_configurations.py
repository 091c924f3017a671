"""The comparison of training configurations of `make recipes`."""

import dataclasses

import pandas as pd
import pytest

import auxiliary as aux
from animals10.configurations import (
    REFERENCE,
    Configuration,
    compare_configurations,
    ingredients,
    notebook_configurations,
    paired_comparison,
)
from animals10.cross_validation import METRICS, CrossValidation


def test_the_ingredients_have_names_of_their_own_and_end_in_mobnet2_best():
    configurations = ingredients()
    experiments = {configuration.experiment for configuration in configurations}
    experiments |= {experiment.init_from for experiment in experiments if experiment.init_from}
    assert len({experiment.key for experiment in experiments}) == len(experiments) and len(configurations) == 15
    best = aux.find_experiment("mobnet2_best")
    found = {configuration.title: configuration.experiment for configuration in configurations}["+ warm-up and cosine"]
    assert (found.model, found.training) == (best.model, best.training)
    assert (found.init_from.model, found.init_from.training) == (best.init_from.model, best.init_from.training)


def test_the_experiments_of_notebook_03_are_compared():
    configurations = notebook_configurations()
    assert len(configurations) == len({configuration.title for configuration in configurations}) == 14
    assert aux.find_experiment(REFERENCE).label in {configuration.title for configuration in configurations}


@pytest.mark.slow
def test_configurations_are_cross_validated_and_nothing_is_trained_twice(prepared, capsys):
    training = aux.Training(learning_rate=1e-2, epochs=2)
    small = aux.Experiment("small", aux.CNN((4,), (4,), (8,)), training)
    slow = dataclasses.replace(small, id="slow", training=dataclasses.replace(training, learning_rate=1e-5))
    configurations = [
        Configuration("small", small),
        Configuration("small, mirrored", small, mirrored=True),
        Configuration("slow", slow),
    ]
    table = compare_configurations(prepared, configurations, n_folds=3, repetitions=1)
    said = capsys.readouterr().out
    assert len(table) == 9 and "45 images, 3 folds, 1 repetitions" in said and "small, mirrored" in said
    [first] = sorted((prepared.root / "cross-validation").glob("3-folds-*/repetition-1/fold-1"))
    run = next(run for run in aux.stored_runs(first) if run.model_id == "small")
    assert table.test_accuracy[0] == pytest.approx(run.row["accuracy"])
    assert table.val_accuracy[0] == pytest.approx(run.row["acc_val"])
    assert table.val_loss[0] == pytest.approx(run.history.val_loss.min(), rel=1e-3)
    assert table.test_loss[3] != table.test_loss[0]  # mirrored
    again = compare_configurations(prepared, configurations, n_folds=3, repetitions=1)
    pd.testing.assert_frame_equal(again, table)
    assert len(aux.stored_runs(first)) == 2 and not prepared.results.exists()
    # What is compared later neither replaces other rows, nor does a trial replace full runs.
    trial = prepared.model_copy(update={"max_epochs": 1})
    compare_configurations(trial, configurations[2:], n_folds=3, repetitions=1)
    stored = aux.read_table(prepared.root / "cross-validation.csv")
    assert stored.value_counts(["configuration", "epochs_cap"], dropna=False).to_list() == [3] * 4 and len(stored) == 12
    with pytest.raises(aux.UserError, match="Two configurations are called 'slow'"):
        compare_configurations(prepared, configurations[2:] * 2)


@pytest.mark.parametrize(("configurations", "n_folds", "said"), [((), 5, "Nothing"), (ingredients(), 2, "2 folds")])
def test_what_cannot_be_compared_is_one_clear_line(prepared, configurations, n_folds, said):
    with pytest.raises(aux.UserError, match=said):
        compare_configurations(prepared, configurations, n_folds)


def test_the_paired_comparison_names_the_reference():
    def result(experiment, accuracy):
        table = pd.DataFrame({"repetition": 1, "fold": range(1, 6), "n": 10, "n_train": 30})
        table[list(METRICS)] = accuracy
        return CrossValidation(experiment, 5, False, "same", table, table, aux.Runs([]))

    best = aux.find_experiment(REFERENCE)
    results = {best.label: result(best, 0.6), "other": result(dataclasses.replace(best, id="other"), 0.5)}
    assert paired_comparison(results) == ["mobnet2_best minus other: +0.100 (95 % interval +0.100 to +0.100)"]
    assert paired_comparison({"other": results["other"]}) == []
