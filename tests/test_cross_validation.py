"""Folds, the evaluation on them, and the interval of paired differences."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

import auxiliary as aux
from animals10 import cross_validation as cv


@pytest.fixture
def duplicated(settings):
    """A workspace in which each green image has an exact duplicate."""
    for path in sorted((settings.raw / "green").iterdir()):
        path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
    aux.resize_images(settings, aux.scan_images(settings))
    return settings


def test_folds_are_disjoint_stratified_and_keep_near_duplicates_together(duplicated):
    checks = aux.check_images(duplicated)
    assert len(checks) == 70 and checks.group.nunique() == 50
    drawn = list(cv.draw_folds(checks, 5, 2, duplicated.seed))
    assert len(drawn) == 2 and not np.array_equal(*drawn)
    for folds in drawn:
        assert set(folds) == set(range(5))
        assert (checks.assign(fold=folds).groupby("group").fold.nunique() == 1).all()
        sizes = pd.crosstab(checks.category, folds)
        assert sizes.to_numpy().min() >= 1 and (sizes.max(axis=1) - sizes.min(axis=1)).max() <= 4
    again = list(cv.draw_folds(checks, 5, 2, duplicated.seed))
    assert all(np.array_equal(first, second) for first, second in zip(drawn, again, strict=True))


def test_each_image_is_tested_once_per_repetition_and_never_trained_on_in_that_fold(duplicated):
    checks, tested = aux.check_images(duplicated), []
    [folds] = cv.draw_folds(checks, 5, 1, duplicated.seed)
    group = dict(zip(checks.relpath, checks.group, strict=True))
    for fold in range(5):
        splits = aux.load_splits(cv.fold_settings(duplicated, folds, 1, fold))
        parts = [{group[path] for path in part.relpath} for part in (splits.train, splits.val, splits.test)]
        assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
        assert len(splits.train) + len(splits.val) + len(splits.test) == len(checks)
        tested += list(splits.test.relpath)
    assert sorted(tested) == sorted(checks.relpath)


def test_folds_of_another_number_are_refused_in_the_same_workspace(prepared):
    checks = aux.check_images(prepared)
    for n_folds in (5, 5):
        [folds] = cv.draw_folds(checks, n_folds, 1, prepared.seed)
        cv.fold_settings(prepared, folds, 1, 0)
    [folds] = cv.draw_folds(checks, 3, 1, prepared.seed)
    with pytest.raises(aux.UserError, match="folds of other images or of another number"):
        cv.fold_settings(prepared, folds, 1, 0)


def test_the_interval_is_the_one_computed_by_hand():
    # Mean 0.02; variance (0.01² + 0.01² + 0.01² + 0.01²) / 3 = 1.3333e-4; times 1/4 + 1/3 = 0.58333: 7.7778e-5;
    # root 8.8192e-3; times Student's t for 97.5 % and 3 degrees of freedom, 3.182446: 0.028067.
    mean, low, high = cv.paired_interval(pd.Series([0.01, 0.03, 0.01, 0.03]), 1 / 3)
    assert mean == pytest.approx(0.02) and low == pytest.approx(-0.008067, abs=1e-6)
    assert high == pytest.approx(0.048067, abs=1e-6)


def test_the_ingredients_have_names_of_their_own_and_end_in_mobnet2_best():
    configurations = cv.ingredients()
    experiments = {configuration.experiment for configuration in configurations}
    experiments |= {experiment.init_from for experiment in experiments if experiment.init_from}
    assert len({experiment.key for experiment in experiments}) == len(experiments) and len(configurations) == 15
    best = aux.find_experiment("mobnet2_best")
    found = {configuration.title: configuration.experiment for configuration in configurations}["+ warm-up and cosine"]
    assert (found.model, found.training) == (best.model, best.training)
    assert (found.init_from.model, found.init_from.training) == (best.init_from.model, best.init_from.training)


def test_the_experiments_of_notebook_03_are_compared():
    configurations = cv.notebook_configurations()
    assert len(configurations) == len({configuration.title for configuration in configurations}) == 14
    assert aux.find_experiment(cv.REFERENCE).label in {configuration.title for configuration in configurations}


def test_configurations_are_trained_and_evaluated_on_all_folds(prepared, capsys):
    training = aux.Training(learning_rate=1e-2, epochs=2)
    small = aux.Experiment("small", aux.CNN((4,), (4,), (8,)), training)
    slow = dataclasses.replace(small, id="slow", training=dataclasses.replace(training, learning_rate=1e-5))
    configurations = [
        cv.Configuration("small", small),
        cv.Configuration("small, mirrored", small, mirrored=True),
        cv.Configuration("slow", slow),
    ]
    table = cv.compare_configurations(prepared, configurations, n_folds=3, repetitions=1)
    assert len(table) == 9 and (prepared.root / "cross-validation.csv").exists()
    workspace = prepared.model_copy(update={"root": prepared.root / "repetition 1, fold 0"})
    run = next(run for run in aux.stored_runs(workspace.root) if run.model_id == "small")
    assert table.test_accuracy[0] == pytest.approx(run.row["accuracy"])
    assert table.val_accuracy[0] == pytest.approx(run.row["acc_val"])
    assert table.val_loss[0] == pytest.approx(run.history.val_loss.min(), rel=1e-3)
    assert table.test_loss[1] != table.test_loss[0]
    assert len(aux.stored_runs(workspace.root)) == 2
    assert "50 images, 3 folds, 1 repetitions" in capsys.readouterr().out
    again = cv.compare_configurations(prepared, configurations, n_folds=3, repetitions=1)
    pd.testing.assert_frame_equal(again, table)
    assert len(aux.stored_runs(workspace.root)) == 2  # nothing was trained again
    # What is compared later neither replaces other rows, nor does a trial replace full runs.
    trial = prepared.model_copy(update={"max_epochs": 1})
    cv.compare_configurations(trial, configurations[2:], n_folds=3, repetitions=1)
    stored = aux.read_table(prepared.root / "cross-validation.csv")
    assert stored.value_counts(["configuration", "epochs_cap"], dropna=False).to_list() == [3] * 4 and len(stored) == 12
    with pytest.raises(aux.UserError, match="Two configurations are called 'slow'"):
        cv.compare_configurations(prepared, configurations[2:] * 2)


@pytest.mark.parametrize(("configurations", "n_folds", "said"), [((), 5, "Nothing"), (cv.ingredients(), 2, "2 folds")])
def test_what_cannot_be_compared_is_one_clear_line(prepared, configurations, n_folds, said):
    with pytest.raises(aux.UserError, match=said):
        cv.compare_configurations(prepared, configurations, n_folds)


def test_the_paired_comparison_names_the_reference():
    titles = [aux.find_experiment(cv.REFERENCE).label, "other"]
    rows = [
        {"repetition": 1, "fold": fold, "configuration": title, "test_accuracy": 0.5 + 0.1 * (title != "other")}
        for fold in range(5)
        for title in titles
    ]
    [line] = cv.paired_comparison(pd.DataFrame(rows), 5)
    assert line == "mobnet2_best minus other: +0.100 (95 % interval +0.100 to +0.100)"
    assert cv.paired_comparison(pd.DataFrame(rows).query("configuration == 'other'"), 5) == []
