import csv
import dataclasses
import importlib.util
import io
import json
import sys

import numpy as np
import pytest

import auxiliary as aux
from networks import Progress

SMALL = aux.CNN((8, 8), (2, 2), (16,), (0.1,))
OPTIONS = {"learning_rate": 1e-2, "epochs": 8}
BOARD = importlib.util.find_spec("tensorboard") is not None  # `make extras` installs it


def rows(settings):
    with settings.results.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_run_learns_is_stored_whole_and_is_not_trained_twice(prepared):
    run = aux.train(prepared, "small", SMALL, **OPTIONS)
    row, history, predictions = run.record["row"], run.history, run.predictions
    assert row["accuracy"] >= 0.8  # red, green and blue
    assert row["accuracy"] == (predictions.category == predictions.predicted).mean()
    assert (
        row["best_epoch"] == history.val_loss.idxmin() + 1
        and row["acc_val"] == history.val_accuracy[row["best_epoch"] - 1]
    )
    assert list(rows(prepared)[0]) == list(aux.RESULT_COLUMNS)
    assert rows(prepared)[0]["run_id"] == row["run_id"] and len(rows(prepared)) == 1
    empty = [name for name, value in row.items() if value in (None, "")]
    assert set(empty) <= {"commit"}  # unknown only outside git
    assert sorted(path.name for path in run.path.iterdir()) == [
        "history.csv",
        "model.keras",
        "predictions.csv",
        "run.json",
    ]
    again = aux.train(prepared, "small", SMALL, **OPTIONS)
    assert again == run and len(rows(prepared)) == 1
    forced = aux.train(prepared.model_copy(update={"force": True, "tensorboard": BOARD}), "small", SMALL, **OPTIONS)
    assert forced.path != run.path and len(rows(prepared)) == 2
    assert np.array_equal(forced.predictions.p_red, run.predictions.p_red)  # the same seed, the same model
    other = aux.train(prepared, "small", SMALL, **OPTIONS, repetition=2)
    assert not np.array_equal(other.predictions.p_red, run.predictions.p_red)


def test_the_stored_weights_are_those_of_the_best_epoch(prepared):
    run = aux.train(prepared, "small", SMALL, learning_rate=3e-2, epochs=6, patience=2)
    model, names = aux.load_model(run.file("model.keras"))
    model.compile(loss="sparse_categorical_crossentropy")
    loss = model.evaluate(aux.batches(prepared, aux.load_splits(prepared).val), verbose=0)
    assert loss == pytest.approx(run.history.val_loss.min(), rel=1e-4)
    assert names == ("blue", "green", "red")


def test_fine_tuning_continues_the_stored_model(prepared):
    frozen = aux.Transfer("MobileNetV2", dense_units=(8,))
    logged = prepared.model_copy(update={"tensorboard": BOARD})  # of no consequence, with many steps at once as well
    head = aux.train(logged, "head", frozen, learning_rate=1e-2, epochs=1)
    assert aux.train(prepared, "head", frozen, learning_rate=1e-2, epochs=1) == head
    folders = {path.parent.name: path.parent.parent.name for path in prepared.root.glob("logs/*/*/events*")}
    assert folders.keys() == ({"train", "validation"} if BOARD else set())
    assert all(name.startswith("head-2") for name in folders.values())
    tuned = dataclasses.replace(frozen, unfreeze_last=5)
    run = aux.train(prepared, "tuned", tuned, learning_rate=1e-9, epochs=1, continues=head)
    assert run.record["spec"]["continues"]["model_id"] == "head"
    assert np.allclose(run.predictions.p_red, head.predictions.p_red, atol=1e-3)  # starts where the head ended
    assert run.record["row"]["trainable_params"] > head.record["row"]["trainable_params"]
    absent = aux.Run("other head", why="not yet.")
    with pytest.raises(aux.StudyError, match="tuned continues other head; train that first"):
        aux.train(prepared, "tuned", tuned, learning_rate=1e-9, epochs=1, continues=absent)


def test_only_trains_what_it_names_and_shows_what_is_stored(prepared, capsys):
    only = prepared.model_construct(**dict(prepared) | {"only": ("other",)})
    skipped = aux.train(only, "small", SMALL, **OPTIONS)
    assert skipped.path is None and "ANIMALS10_ONLY" in capsys.readouterr().out and not prepared.results.exists()
    aux.show_run(skipped)
    assert "not trained here" in capsys.readouterr().out
    stored = aux.train(prepared, "small", SMALL, **OPTIONS | {"epochs": 1})
    forced = prepared.model_construct(**dict(only) | {"force": True})
    assert aux.train(forced, "small", SMALL, **OPTIONS | {"epochs": 1}) == stored


def test_a_backbone_without_weights_is_skipped_aloud(prepared, capsys, tmp_path):
    settings = prepared.model_copy(update={"weights": str(tmp_path)})
    run = aux.train(settings, "resnet", aux.Transfer("ResNet50V2"), **OPTIONS)
    assert run.path is None and "there is no ResNet50V2.weights.h5" in capsys.readouterr().out
    assert not settings.results.exists()


def test_zero_epochs_judge_the_model_as_it_is(prepared):
    run = aux.train(prepared, "untrained", SMALL, learning_rate=1e-2, epochs=0)
    assert run.record["row"]["epochs_run"] == 0 and run.record["row"]["acc_val"] is None
    assert aux.plot_run(run).axes


def test_a_row_that_a_kill_lost_is_appended_from_the_folder(prepared):
    run = aux.train(prepared, "small", SMALL, **OPTIONS | {"epochs": 1})
    prepared.results.unlink()
    aux.train(prepared, "small", SMALL, **OPTIONS | {"epochs": 1})
    assert [row["run_id"] for row in rows(prepared)] == [run.record["row"]["run_id"]]


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_line_tells_how_far_training_is_to_whoever_sees_it(monkeypatch, ci):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.setenv("CI", ci)
    bar = Progress("[3/42] mobnet2_small", range(3, 5), steps=10)  # three epochs are done
    bar.on_train_begin()
    for epoch, calls in ((3, range(10)), (4, [9])):  # step by step, or all at once
        bar.on_epoch_begin(epoch)
        for batch in calls:
            bar.on_train_batch_end(batch)
        bar.on_epoch_end(epoch, {"val_accuracy": 0.944})
    assert bar.bar.n == (0 if ci else 20)
    bar.on_train_end()
    lines = [line.strip() for line in terminal.getvalue().split("\r")]
    assert (lines == [""]) if ci else ("[3/42] mobnet2_small  epoch 4/5  ? left at most" in lines)
    assert ci or lines[-1].startswith("[3/42] mobnet2_small  epoch 5/5  val accuracy 0.94  took 00:0")


def test_figures_of_known_predictions():
    table = aux.pd.DataFrame({"category": list("aaab"), "predicted": list("aabb")})
    found = aux.metrics(table)
    assert found["accuracy"] == found["recall"] == 0.75 and found["precision"] == pytest.approx(0.875)
    # Wilson's interval for 3 of 4, by its formula
    z, n, p = 1.959964, 4, 0.75
    centre, half = (p + z * z / 2 / n), z * ((p * (1 - p) + z * z / 4 / n) / n) ** 0.5
    assert found["accuracy_low"] == pytest.approx((centre - half) / (1 + z * z / n), abs=1e-6)
    assert found["accuracy_high"] == pytest.approx((centre + half) / (1 + z * z / n), abs=1e-6)
    assert json.dumps(found)


def test_a_recipe_is_part_of_a_run_and_the_studys_own_leaves_no_trace(prepared):
    recipe = aux.Recipe(upright=True, class_weights=True, label_smoothing=0.1, cosine=True)
    run = aux.train(prepared, "small", SMALL, **OPTIONS, class_balance="none", recipe=recipe)
    assert run.record["spec"]["recipe"]["upright"] and np.isfinite(run.history.val_loss).all()
    plain = aux.train(prepared, "small", SMALL, **OPTIONS, class_balance="none")
    assert plain != run and "recipe" not in plain.record["spec"]
    assert aux.train(prepared, "small", SMALL, **OPTIONS, class_balance="none", recipe=recipe) == run
