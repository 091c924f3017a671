import csv
import dataclasses
import importlib.util
import json
from contextlib import contextmanager

import keras
import numpy as np
import pandas as pd
import pytest

import auxiliary as aux
from animals10.compilation import compile_model
from animals10.execution import class_weights
from animals10.files import atomic_write
from animals10.results import RESULT_COLUMNS
from animals10.verification import verify_runs

SMALL = aux.CNN((8, 8), (2, 2), (16,), (0.1,))
TRAINING = aux.Training(learning_rate=1e-2, epochs=8)
SHORT = dataclasses.replace(TRAINING, epochs=1)
HEAD = aux.Experiment("head", aux.Transfer("MobileNetV2", (8,)), SHORT)
TUNED = aux.Experiment("tuned", aux.Transfer("MobileNetV2", (8,), unfreeze_last=5), aux.Training(1e-9, 1), HEAD)
BOARD = importlib.util.find_spec("tensorboard") is not None  # `make extras` installs it


def rows(settings):
    with settings.results.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def changed(settings, **changes):
    return settings.model_copy(update=changes)


def test_a_run_learns_is_stored_whole_and_is_not_trained_twice(prepared):
    small = aux.Experiment("small", SMALL, TRAINING)
    run = aux.train(prepared, small)
    row, history, predictions = run.row, run.history, run.predictions
    assert row["accuracy"] >= 0.8  # red, green and blue
    assert row["accuracy"] == (predictions.category == predictions.predicted).mean()
    assert row["best_epoch"] == history.val_loss.idxmin() + 1
    assert row["acc_val"] == history.val_accuracy[row["best_epoch"] - 1]
    assert list(rows(prepared)[0]) == list(RESULT_COLUMNS)
    assert rows(prepared)[0]["run_id"] == row["run_id"] and len(rows(prepared)) == 1
    empty = {name for name, value in row.items() if value in (None, "")}
    # Not Animals-10, not capped, nothing corrected; a commit only in git.
    assert empty - {"commit"} == {"data_share", "epochs_cap", "corrections"}
    files = ["history.csv", "model.keras", "predictions.csv", "run.json", "validation.csv"]
    assert sorted(path.name for path in run.path.iterdir()) == files
    assert aux.train(prepared, small) == run and len(rows(prepared)) == 1
    forced = aux.train(changed(prepared, force=True, tensorboard=BOARD), small)
    assert forced.path != run.path and len(rows(prepared)) == 2
    assert np.array_equal(forced.predictions.p_red, run.predictions.p_red)  # the same seed, the same model
    other = aux.train(prepared, dataclasses.replace(small, repetition=2))
    assert not np.array_equal(other.predictions.p_red, run.predictions.p_red)


def test_the_stored_weights_are_those_of_the_best_epoch(prepared):
    run = aux.train(prepared, aux.Experiment("small", SMALL, aux.Training(3e-2, 6, patience=2)))
    model, names = aux.load_model(run.file("model.keras"))
    model.compile(loss="sparse_categorical_crossentropy")
    loss = model.evaluate(aux.batches(prepared, aux.load_splits(prepared).val), verbose=0)
    assert loss == pytest.approx(run.history.val_loss.min(), rel=1e-4)
    assert names == ("blue", "green", "red")


# ── Experiments that start from others ────────────────────────────────────────────────────────────────────────────────


def test_fine_tuning_starts_from_the_stored_model_of_its_parent(prepared):
    logged = changed(prepared, tensorboard=BOARD)  # of no consequence, with many steps per execution as well
    runs = aux.train_all(logged, [TUNED, HEAD, TUNED])  # any order, duplicates once
    run, head = runs["head"], aux.train(prepared, HEAD)
    assert [one.model_id for one in runs] == ["tuned", "head", "tuned"] and len(rows(prepared)) == 2
    assert head == run == runs[HEAD] and runs[0] == runs[2] == runs[TUNED]
    folders = {path.parent.name: path.parent.parent.name for path in prepared.root.glob("logs/*/*/events*")}
    assert folders.keys() == ({"train", "validation"} if BOARD else set())
    tuned = runs[0]
    assert np.allclose(tuned.predictions.p_red, head.predictions.p_red, atol=1e-3)  # starts where the head ended
    assert tuned.row["trainable_params"] > head.row["trainable_params"]
    assert tuned.record["init_weights_sha256"] == head.record["weights_sha256"]


def test_a_cnn_continues_another_and_counts_its_epochs_on(prepared):
    first = aux.Experiment("first", SMALL, dataclasses.replace(TRAINING, epochs=np.int64(2)))
    more = aux.Experiment("more", SMALL, dataclasses.replace(TRAINING, epochs=4), first, initial_epoch=2)
    runs = aux.train_all(prepared, [more, first])
    assert runs["more"].history.epoch.tolist() == [3, 4] and runs["first"].row["epochs"] == 2
    assert runs["more"].history.loss[0] < runs["first"].history.loss[0]


def test_a_training_that_diverges_is_one_clear_line(prepared):
    with pytest.raises(aux.UserError, match=r"wild .*diverged.*Lower the learning rate"):
        aux.train(prepared, aux.Experiment("wild", SMALL, aux.Training(1e39, 2, optimizer="sgd")))


def test_a_table_of_results_to_which_nothing_can_be_appended_is_found_before_training(prepared):
    prepared.results.write_text("time;model_id\n1;a\n")
    with pytest.raises(aux.UserError, match="has semicolons between its values"):
        aux.train(prepared, HEAD)
    assert not list(prepared.models.glob("[!.]*"))


@pytest.mark.slow
def test_a_parent_without_its_model_is_one_line(prepared):
    aux.train(prepared, HEAD).file("model.keras").unlink()
    with pytest.raises(aux.UserError, match=r"model\.keras is missing: .*restore it"):
        aux.train(prepared, TUNED)


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\n",
        pytest.param(b"no HDF5", marks=pytest.mark.slow),
        pytest.param(b"\x89HDF\r\n\x1a\n", marks=pytest.mark.slow),
    ],
)
def test_weights_that_cannot_be_read_are_one_line(prepared, tmp_path, content):
    file = tmp_path / "MobileNetV2.weights.h5"
    file.write_bytes(content)
    with pytest.raises(
        aux.UserError, match=r"MobileNetV2\.weights\.h5 is (not a file of weights|a pointer of Git LFS)"
    ):
        aux.train(changed(prepared, weights=str(tmp_path)), HEAD)
    aux.Transfer("ResNet50V2").build(3, 32).save_weights(file)
    with pytest.raises(aux.UserError, match=r"does not hold weights of MobileNetV2 \(") as error:
        aux.train(changed(prepared, weights=str(tmp_path)), HEAD)
    assert "\n" not in str(error.value)


def test_a_damaged_checkpoint_is_not_used(prepared, monkeypatch, capsys):
    undisturbed = aux.train(prepared, aux.Experiment("small", SMALL, SHORT))
    job = prepared.models / f".small-{undisturbed.record['digest']}"
    job.mkdir()
    for content in (b"PK\x03\x04 half", b"", b"x" * 500):
        (job / "training.npz").write_bytes(content)
        run = aux.train(changed(prepared, force=True), aux.Experiment("small", SMALL, SHORT))
        assert np.array_equal(run.predictions.p_red, undisturbed.predictions.p_red)
        assert "training.npz is damaged" in (out := capsys.readouterr().out) and "training starts anew" in out
        job.mkdir(exist_ok=True)


def test_a_missing_parent_is_trained_first_or_named_where_only_leaves_it_out(prepared, capsys):
    with pytest.raises(aux.UserError, match=r"tuned is initialised from head, which is not.*Add head to ANIM"):
        aux.train(changed(prepared, only=("tuned",)), TUNED)
    assert not prepared.results.exists()
    aux.train(prepared, TUNED)
    assert [row["model_id"] for row in rows(prepared)] == ["head", "tuned"]
    capsys.readouterr()


def test_a_parent_that_is_trained_anew_makes_its_children_unfinished(prepared):
    tuned = aux.train(prepared, TUNED)
    head = aux.train(prepared, HEAD)
    later = head.path.with_name(head.path.name.replace("head-2", "head-3"))  # a later run of the same experiment
    later.mkdir()
    for file in head.path.iterdir():
        (later / file.name).write_bytes(file.read_bytes())
    assert aux.train(prepared, TUNED) == tuned  # its weights are the same
    record = head.record | {"weights_sha256": "other"}
    (later / "run.json").write_text(json.dumps(record))
    assert aux.train(prepared, TUNED) != tuned


def test_a_stored_run_and_a_file_can_be_the_start_and_must_fit(prepared, tmp_path):
    head = aux.train(prepared, HEAD)
    file = tmp_path / "mine.keras"
    file.write_bytes(head.file("model.keras").read_bytes())
    for start in (head, file, str(file)):
        run = aux.train(prepared, dataclasses.replace(TUNED, id=f"from {type(start).__name__}", init_from=start))
        assert np.allclose(run.predictions.p_red, head.predictions.p_red, atol=1e-3)
        assert run.record["init_weights_sha256"]
    with pytest.raises(aux.UserError, match=r"wide cannot be initialised from .*mine.keras: that holds another"):
        aux.train(prepared, aux.Experiment("wide", aux.Transfer("MobileNetV2", (9,)), SHORT, file))
    with pytest.raises(aux.UserError, match="there is no such file"):
        aux.train(prepared, dataclasses.replace(TUNED, init_from=tmp_path / "none.keras"))


# ── What is trained, and what is not ──────────────────────────────────────────────────────────────────────────────────


def test_only_trains_what_it_names_and_shows_what_is_stored(prepared, capsys):
    small = aux.Experiment("small", SMALL, SHORT)
    only = changed(prepared, only=("other",))
    skipped = aux.train(only, small)
    assert skipped.path is None and not prepared.results.exists()
    assert "Left out by ANIMALS10_ONLY: small." in capsys.readouterr().out
    aux.show_run(skipped)
    assert "ANIMALS10_ONLY leaves it out" in capsys.readouterr().out
    stored = aux.train(prepared, small)
    assert aux.train(changed(only, force=True), small) == stored


def test_publishing_shows_what_is_stored_and_trains_nothing(prepared, capsys):
    publish = changed(prepared, publish=True, force=True)
    small, head = aux.Experiment("small", SMALL, SHORT), dataclasses.replace(HEAD, repetition=2)
    stored = aux.train(prepared, small)
    capsys.readouterr()
    runs = aux.train_all(publish, [small, HEAD, head, TUNED])
    assert runs["small"] == stored and len(runs.trained) == len(aux.stored_runs(prepared.root)) == 1
    assert capsys.readouterr().out == f"Not measured: {HEAD.label}, {head.label}, tuned.\n"
    aux.show_run(runs[-1])
    assert capsys.readouterr().out == "tuned is not trained here: no run of it is stored.\n"


def test_one_failing_experiment_keeps_the_others_and_names_its_children(prepared, capsys):
    @dataclasses.dataclass(frozen=True)
    class Broken(aux.CNN):
        def build(self, n_classes, image_size, weights=None):
            raise RuntimeError("no such layer")

    broken = aux.Experiment("broken", aux.CNN((8, 8), (20, 20)), SHORT)  # too many pooling layers for 32 pixels
    child = aux.Experiment("child", aux.CNN((8, 8), (20, 20)), SHORT, broken)
    good = aux.Experiment("good", SMALL, SHORT)
    message = r"2 experiments failed.*broken .*too small.*child .*not trained: it failed"
    with pytest.raises(aux.UserError, match=message):
        aux.train_all(prepared, [broken, child, good])
    assert [row["model_id"] for row in rows(prepared)] == ["good"]
    with pytest.raises(RuntimeError, match="no such layer"):  # an error of one's own network keeps its stack trace
        aux.train(prepared, aux.Experiment("mine", Broken((4,), (2,)), SHORT))


def test_a_backbone_without_weights_is_skipped_with_a_message(prepared, capsys, tmp_path):
    settings = changed(prepared, weights=str(tmp_path))
    run = aux.train(settings, aux.Experiment("resnet", aux.Transfer("ResNet50V2"), SHORT))
    assert run.path is None and "there is no ResNet50V2.weights.h5" in capsys.readouterr().out
    assert not settings.results.exists()


def test_zero_epochs_evaluate_the_model_without_training(prepared):
    run = aux.train(prepared, aux.Experiment("untrained", SMALL, aux.Training(1e-2, 0)))
    assert run.row["epochs_run"] == 0 and run.row["acc_val"] is None and run.history.empty
    assert f"test accuracy {run.row['accuracy']:.3f}" in aux.plot_run(run).get_label()


def test_a_row_that_a_kill_lost_is_appended_from_the_folder(prepared):
    small = aux.Experiment("small", SMALL, SHORT)
    run = aux.train(prepared, small)
    prepared.results.unlink()
    aux.train(prepared, small)
    assert [row["run_id"] for row in rows(prepared)] == [run.row["run_id"]]


# ── Training configuration and progress ───────────────────────────────────────────────────────────────────────────────


def test_a_training_configuration_sets_rate_loss_and_weights():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dense(4, activation="softmax")(inputs))
    training = aux.Training(0.1, 10, label_smoothing=0.2, schedule="cosine", optimizer="sgd")
    compile_model(model, training, steps=100)
    assert isinstance(model.optimizer, keras.optimizers.SGD)
    rates = [float(model.optimizer._learning_rate(step)) for step in (0, 10, 55, 100)]
    assert np.allclose(rates, [0, 0.1, 0.05, 0], atol=1e-6)
    probabilities = np.array([[0.7, 0.1, 0.1, 0.1]], "float32")
    smoothed = np.array([0.85, 0.05, 0.05, 0.05])  # 0.2 spread over four classes
    loss = float(np.mean(model.loss(np.array([0]), probabilities)))
    assert loss == pytest.approx(-(smoothed * np.log(probabilities)).sum(), abs=1e-5)
    assert class_weights(pd.Series([0, 0, 0, 1])) == pytest.approx({0: 4 / 6, 1: 2})


def test_a_training_configuration_is_used_and_part_of_the_identity(prepared):
    better = aux.Training(
        1e-2, 3, class_balance="none", class_weights=True, label_smoothing=0.1, schedule="cosine", optimizer="adamw"
    )
    run = aux.train(prepared, aux.Experiment("small", SMALL, better))
    plain = aux.train(prepared, aux.Experiment("small", SMALL, aux.Training(1e-2, 3, class_balance="none")))
    assert plain != run and run.record["spec"]["training"]["class_weights"] and np.isfinite(run.history.val_loss).all()
    assert not np.array_equal(plain.history.loss, run.history.loss)


def test_a_training_in_mixed_precision_resumes(prepared, monkeypatch):
    """As on a GPU, whose loss scale is part of the optimizer's state."""
    monkeypatch.setattr("animals10.workspace.has_gpu", lambda: True)
    monkeypatch.setattr("animals10.callbacks.atomic_write", kill_after_first(atomic_write))
    experiment = aux.Experiment("small", SMALL, dataclasses.replace(TRAINING, epochs=3))
    with pytest.raises(KeyboardInterrupt):
        aux.train(prepared, experiment)
    run = aux.train(prepared, experiment)
    assert run.history.epoch.tolist() == [1, 2, 3] and run.record["spec"]["settings"]["precision"] == "mixed_float16"
    assert run.row["device"].endswith(", mixed float16")
    assert {layer.compute_dtype for layer in aux.load_model(run.file("model.keras"))[0].layers} == {"float32"}
    assert verify_runs(prepared) == 0


def kill_after_first(write):
    calls = []

    @contextmanager
    def writing(path):
        if len(calls) == 1:
            calls.append(path)
            raise KeyboardInterrupt
        calls.append(path)
        with write(path) as temporary:
            yield temporary

    return writing


def test_without_network_and_weights_the_message_is_whole_and_says_what_to_do(prepared, monkeypatch):
    def fail(**_):  # as Keras does
        raise Exception(f"URL fetch failure on https://storage.googleapis.com/{'x' * 200}.h5: None -- no route to host")

    monkeypatch.setattr("keras.applications.MobileNetV2", fail)
    settings = prepared.model_copy(update={"weights": "imagenet"})
    with pytest.raises(aux.UserError) as error:
        aux.train(settings, aux.Experiment("head", aux.Transfer("MobileNetV2"), aux.Training(1e-3, 1)))
    message = str(error.value)
    assert "xxx.h5: None -- no route to host. Without a network here: fetch that file" in message
    assert "~/.keras/models" in message and "ANIMALS10_WEIGHTS" in message and "\n" not in message


def test_metrics_of_known_predictions():
    table = pd.DataFrame({"category": list("aaab"), "predicted": list("aabb")})
    found = aux.metrics(table)
    assert found["accuracy"] == found["recall"] == 0.75 and found["precision"] == pytest.approx(0.875)
    # Wilson's interval for 3 of 4, by its formula
    z, n, p = 1.959964, 4, 0.75
    centre, half = (p + z * z / 2 / n), z * ((p * (1 - p) + z * z / 4 / n) / n) ** 0.5
    assert found["accuracy_low"] == pytest.approx((centre - half) / (1 + z * z / n), abs=1e-6)
    assert found["accuracy_high"] == pytest.approx((centre + half) / (1 + z * z / n), abs=1e-6)
    assert json.dumps(found)
