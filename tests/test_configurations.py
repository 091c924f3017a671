"""The comparison of training configurations of `make configurations`."""

import dataclasses

import pandas as pd
import pytest

import auxiliary as aux
from animals10.configurations import (
    PARTS,
    TUNED,
    Configuration,
    changes,
    compare_configurations,
    configuration_table,
    find_changes,
    notebook_configurations,
    paired_differences,
    store_differences,
)
from animals10.cross_validation import METRICS, CrossValidation
from animals10.finalists import compare_finalists
from animals10.planning import with_ancestors


def test_changes_have_names_of_their_own_and_differ_from_their_reference_in_one_thing():
    found = changes()
    assert len({configuration.title for configuration in found}) == len(found) == 30
    own = {configuration.experiment for configuration in found}
    own |= {ancestor for experiment in own for ancestor in with_ancestors(experiment)}
    assert len({experiment.key for experiment in own}) == len(own)
    for reference in PARTS.values():
        [base] = [configuration for configuration in found if configuration.title == reference]
        for configuration in found:
            experiment = configuration.experiment
            is_change = configuration.reference == reference and experiment.id.startswith(f"{reference}_")
            if is_change and experiment not in aux.CATALOGUE:
                changed = [
                    name
                    for name in ("model", "training", "init_from")
                    if getattr(experiment, name) != getattr(base.experiment, name)
                ]
                assert len(changed) == 1 or experiment.id.endswith(("_linear", "_from_probe")), configuration.title


def test_the_experiments_of_notebook_03_are_compared():
    configurations = notebook_configurations()
    assert len(configurations) == len({configuration.title for configuration in configurations}) == 14
    assert {configuration.reference for configuration in configurations} == {"", aux.find_experiment(TUNED).label}


@pytest.mark.slow
def test_configurations_are_cross_validated_and_nothing_is_trained_twice(prepared, capsys):
    training = aux.Training(learning_rate=1e-2, epochs=2)
    small = aux.Experiment("small", aux.CNN((4,), (4,), (8,)), training)
    slow = dataclasses.replace(small, id="slow", training=dataclasses.replace(training, learning_rate=1e-5))
    configurations = [
        Configuration("small", small),
        Configuration("small, mirrored", small, mirrored=True),
        Configuration("slow", slow),
        Configuration("small, cropped", small, resize="crop"),
    ]
    table = compare_configurations(prepared, configurations, n_folds=3, repetitions=1)
    said = capsys.readouterr().out
    assert len(table) == 12 and "45 images, 3 folds, 1 repetitions" in said and "small, mirrored" in said
    [first] = sorted((prepared.root / "cross-validation").glob("3-folds-*/repetition-1/fold-1"))
    run = next(run for run in aux.stored_runs(first) if run.model_id == "small")
    assert table.test_accuracy[0] == pytest.approx(run.row["accuracy"])
    assert table.val_accuracy[0] == pytest.approx(run.row["acc_val"])
    assert table.val_loss[0] == pytest.approx(run.history.val_loss.min(), rel=1e-3)
    assert table.test_loss[3] != table.test_loss[0]  # mirrored
    cropped = [
        path / fold / "data" / "test.csv"
        for fold in ("fold-1", "fold-3")
        for path in (first.parent, *(prepared.root / "resize-crop" / "cross-validation").glob("3-folds-*/repetition-1"))
    ]
    assert cropped[0].read_bytes() == cropped[1].read_bytes() and cropped[2].read_bytes() == cropped[3].read_bytes()
    assert not table.test_loss[:3].isin(table.test_loss[9:]).any()
    again = compare_configurations(prepared, configurations, n_folds=3, repetitions=1)
    pd.testing.assert_frame_equal(again, table)
    assert len(aux.stored_runs(first)) == 2 and not prepared.results.exists()
    # What is compared later neither replaces other rows, nor does a trial replace full runs.
    trial = prepared.model_copy(update={"max_epochs": 1})
    compare_configurations(trial, configurations[2:3], n_folds=3, repetitions=1)
    stored = aux.read_table(prepared.root / "cross-validation.csv")
    assert stored.value_counts(["configuration", "epochs_cap"], dropna=False).to_list() == [3] * 5 and len(stored) == 15
    with pytest.raises(aux.UserError, match="Two configurations are called 'slow'"):
        compare_configurations(prepared, configurations[2:3] * 2)


@pytest.mark.parametrize(("configurations", "n_folds", "said"), [((), 5, "Nothing"), (changes(), 2, "2 folds")])
def test_what_cannot_be_compared_is_one_clear_line(prepared, configurations, n_folds, said):
    with pytest.raises(aux.UserError, match=said):
        compare_configurations(prepared, configurations, n_folds)


def test_differences_are_stored_in_place_of_those_of_as_many_images(tmp_path):
    def result(experiment, accuracy):
        table = pd.DataFrame({"repetition": 1, "fold": range(1, 6), "n": 10, "n_train": 30})
        table[list(METRICS)] = accuracy
        return CrossValidation(experiment, 5, False, "same", table, table, aux.Runs([]))

    best = aux.find_experiment(TUNED)
    configurations = [Configuration("a", best), Configuration("a: b", best, reference="a"), Configuration("c", best)]
    results = {"a": result(best, 0.6), "a: b": result(best, 0.5), "c": result(best, 0.4)}
    [row] = paired_differences(configurations, results).to_dict("records")
    assert (row["reference"], row["change"]) == ("a", "b")
    assert [row["difference"], row["low"], row["high"]] == pytest.approx([-0.1] * 3)
    assert paired_differences(configurations[1:], {"a: b": results["a: b"]}).empty
    for images, difference in ((50, 0.1), (60, 0.2), (50, 0.3)):
        rows = pd.DataFrame([row | {"difference": difference, "images": images, "folds": 5 if images == 50 else None}])
        store_differences(rows, tmp_path / "configurations.csv")
    stored = aux.read_table(tmp_path / "configurations.csv")
    assert stored[["images", "difference"]].values.tolist() == [[60, 0.2], [50, 0.3]]
    shown = configuration_table(tmp_path / "configurations.csv")
    assert shown.columns.to_list() == ["50 images", "60 images, test set"]
    assert shown.loc[("a", "b")].to_list() == ["+30.0 (-10.0 to -10.0)", "+20.0 (-10.0 to -10.0)"]


def test_a_change_is_found_by_its_title_with_its_reference():
    found = find_changes(["mobnet2_best: its head alone"])
    assert [configuration.title for configuration in found] == [TUNED, "mobnet2_best: its head alone"]
    with pytest.raises(aux.UserError, match="There is no change 'no such': titles are 'mobnet2_best_head'"):
        find_changes(["no such"])


@pytest.mark.slow
def test_finalists_are_compared_on_the_test_set_over_seeds(prepared, tmp_path, capsys):
    good = aux.Experiment("good", aux.CNN((4,), (4,), (8,)), aux.Training(1e-2, epochs=4))
    poor = dataclasses.replace(good, id="poor", training=aux.Training(1e-6, epochs=1))
    configurations = [
        Configuration("good", good),
        Configuration("good: poor", poor, reference="good"),
        Configuration("good: mirrored", good, mirrored=True, reference="good"),
    ]
    table = compare_finalists(prepared, configurations, repetitions=2, store=tmp_path / "stored.csv")
    runs = {(run.model_id, run.row["repetition"]): run.row["accuracy"] for run in aux.stored_runs(prepared.root)}
    expected = sum(runs["poor", n] - runs["good", n] for n in (1, 2)) / 2
    assert table.change.to_list() == ["poor", "mirrored"] and table.difference[0] == pytest.approx(expected)
    assert expected < 0 and table.low[0] <= expected <= table.high[0]
    assert "poor minus good" in capsys.readouterr().out
    stored = aux.read_table(tmp_path / "stored.csv")
    assert stored.images.to_list() == [45, 45] and stored.folds.isna().all()
    with pytest.raises(aux.UserError, match="1 repetitions: give two"):
        compare_finalists(prepared, configurations, repetitions=1)
