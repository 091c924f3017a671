"""Search: validation alone decides, an interruption leaves no trace, hopeless trials end early, faults are told."""

import sys

import pytest

import auxiliary as aux
from animals10.runs import VALIDATION

pytest.importorskip("optuna")


def experiment(rate, epochs=1, dense=8):
    return aux.Experiment("small", aux.CNN((4,), (4,), (dense,)), aux.Training(learning_rate=rate, epochs=epochs))


def space(trial):
    return experiment(trial.suggest_float("rate", 1e-4, 1e-2, log=True), dense=trial.suggest_int("dense", 2, 9))


def test_trials_are_evaluated_on_validation_images_and_the_best_is_an_experiment_to_train(prepared, capsys):
    found = aux.search(prepared, space, trials=3, name="widths")
    splits, table = aux.load_splits(prepared), found.table
    assert list(table.state) == ["complete"] * 3 and table.val_loss.is_monotonic_increasing
    assert "widths: 3 complete; best val_loss first" in str(found) and f"{table.dense[0]}" in str(found)
    runs = aux.stored_runs(prepared.root / "search" / "widths")
    assert len(runs) == 3 and not prepared.results.exists() and not aux.stored_runs(prepared.root)
    for run in runs:
        assert list(run.predictions.relpath) == list(splits.val.relpath)
        assert list(aux.read_table(run.file(VALIDATION)).relpath) == list(splits.val.relpath)

    capsys.readouterr()
    again = aux.search(prepared, space, trials=3, name="widths")
    assert again.table.equals(table) and "epoch" not in capsys.readouterr().out
    assert len(aux.search(prepared, space, trials=4, name="widths").table) == 4
    assert found.best == experiment(table.rate[0], dense=int(table.dense[0]))
    assert len(aux.train(prepared, found.best).predictions) == len(splits.test)
    with pytest.raises(aux.UserError, match=r"The search in .*widths was made with other seed: choose another name"):
        aux.search(prepared.model_copy(update={"seed": 6}), space, trials=4, name="widths")


def test_an_interrupted_search_ends_as_if_it_had_not_been(prepared):
    calls = []

    def space(trial):  # of four runs: trials with the same values are trained once
        return experiment(trial.suggest_categorical("rate", [1e-2, 1e-3]), dense=trial.suggest_int("dense", 2, 3))

    def interrupted(trial):
        found = space(trial)
        calls.append(trial.number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return found

    with pytest.raises(KeyboardInterrupt):
        aux.search(prepared, interrupted, trials=13, name="interrupted")
    columns = ["val_loss", "val_accuracy", "rate", "dense"]
    resumed = aux.search(prepared, space, trials=13, name="interrupted").table[columns]
    assert resumed.equals(aux.search(prepared, space, trials=13, name="whole").table[columns])


def test_hopeless_trials_end_early_and_failed_ones_are_recorded(prepared):
    rates = [1e-2] * 5 + [1e-12, 2.0]

    def in_turn(trial):
        rate = rates[trial.number]
        trial.suggest_float("rate", rate, rate)
        if rate == 2:
            aux.CNN((4, 8), (4,), (8,))
        return experiment(rate, epochs=9)

    found = aux.search(prepared, in_turn, trials=7, name="rates").table.set_index("trial")
    assert found.state.value_counts().to_dict() == {"complete": 5, "pruned": 1, "failed": 1}
    assert found.state[5] == "pruned" and found.state[6] == "failed" and "pool_sizes" in found.reason[6]
    assert len(aux.stored_runs(prepared.root / "search" / "rates")) == 1  # five of the trials are the same
    assert not list((prepared.root / "search" / "rates" / "models").glob(".small-*"))
    with pytest.raises(aux.UserError, match=r"No trial of the search none is complete; the last reason: CNN: .*"):
        aux.search(prepared, lambda trial: aux.CNN((4, 8), (4,), (8,)), trials=1, name="none")


def test_a_cross_validated_search_uses_the_folds_of_a_cross_validation(prepared, capsys):
    found = aux.search(prepared, space, trials=1, metric="val_accuracy", folds=3)
    capsys.readouterr()
    best = aux.cross_validate(prepared, found.best, folds=3)
    assert best.table.val_accuracy.mean() == found.table.val_accuracy[0]
    assert "epoch" not in capsys.readouterr().out  # nothing is trained again


def test_a_trial_that_falls_behind_after_a_fold_is_not_trained_on_the_others(prepared):
    rates = [1e-2] * 5 + [1e-12]

    def in_turn(trial):
        rate = rates[trial.number]
        trial.suggest_float("rate", rate, rate)
        return experiment(rate, epochs=2)

    found = aux.search(prepared, in_turn, trials=6, name="folds", folds=3)
    assert found.table.set_index("trial").state[5] == "pruned"
    folds = [path.parent for path in prepared.root.glob("cross-validation/*/*/fold-*/models/small-*/run.json")]
    assert len(folds) == 3 + 1  # five trials are the same


def test_a_search_says_what_it_needs(prepared, monkeypatch):
    with pytest.raises(aux.UserError, match="no metric 'accuracy' to search by: allowed are val_loss, val_accuracy"):
        aux.search(prepared, space, metric="accuracy")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(aux.UserError, match="A search needs Optuna, which is not installed: run `make extras`"):
        aux.search(prepared, space)


def test_the_space_of_classifiers_on_a_backbone_has_heads_and_fine_tunings():
    import optuna

    values = {"dense_units": 64, "dropout": 0.2, "feature_dropout": 0.1, "learning_rate": 1e-3, "weight_decay": 1e-3}
    values |= {"label_smoothing": 0.1, "mixup": 0.2, "unfreeze_last": 0, "tuning_rate": 1e-4}
    tuned = aux.transfer_space("MobileNetV2", unfreeze_last=(0, 20))
    head = tuned(optuna.trial.FixedTrial(values))
    assert head.init_from is None and head.model == aux.Transfer("MobileNetV2", (64,), (0.2,), feature_dropout=0.1)
    child = tuned(optuna.trial.FixedTrial(values | {"unfreeze_last": 20}))
    assert child.init_from == head and child.model.unfreeze_last == 20 and child.training.learning_rate == 1e-4
    linear = aux.transfer_space("MobileNetV2")(optuna.trial.FixedTrial(values | {"dense_units": 0}))
    assert linear.model.dense_units == () == linear.model.dropout
