"""The same numbers to the last digit in other processes, whatever ran before, and after a kill."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

import auxiliary as aux
from animals10 import execution

TRAINING = """
import auxiliary as aux
settings = aux.Settings(root={root!r}, raw={raw!r}, image_size=32, weights="random", views=2)
if not (settings.data / "train.csv").exists():
    aux.resize_images(settings, aux.scan_images(settings))
training = aux.Training(learning_rate=1e-3, epochs={epochs})
cnn = aux.Experiment("cnn", aux.CNN((8, 8), (2, 2), (16,), (0.3,)), training)
head = aux.Experiment("head", aux.Transfer("MobileNetV2", (8,), (0.2,)), training)
tuned = aux.Experiment("tuned", aux.Transfer("MobileNetV2", (8,), (0.2,), unfreeze_last=20), training, head)
aux.train_all(settings, [{which}])
"""


def script(settings, root, which, epochs=2):
    values = {"raw": str(settings.raw), "root": str(root), "which": which, "epochs": epochs}
    return [sys.executable, "-c", TRAINING.format(**values)]


def runs(root):
    return {run.model_id: run for run in aux.stored_runs(root)}


@pytest.fixture
def environment():
    return os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}


@pytest.mark.slow
def test_two_processes_give_the_same_predictions_in_any_order(settings, tmp_path, environment):
    first, second = tmp_path / "first", tmp_path / "second"
    subprocess.run(script(settings, first, "cnn, tuned"), check=True, env=environment, capture_output=True)
    subprocess.run(script(settings, second, "tuned"), check=True, env=environment, capture_output=True)
    subprocess.run(script(settings, second, "head, cnn"), check=True, env=environment, capture_output=True)
    one, other = runs(first), runs(second)
    assert set(one) == set(other) == {"cnn", "head", "tuned"}  # the parent is trained without being asked for
    for name in one:
        assert one[name].predictions.equals(other[name].predictions)
        assert one[name].history.equals(other[name].history)
        assert one[name].record["weights_sha256"] == other[name].record["weights_sha256"]


def test_a_killed_training_resumes_and_ends_with_the_same_weights(settings, tmp_path, environment):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(script(settings, undisturbed, "cnn", 12), check=True, env=environment, capture_output=True)
    process = subprocess.Popen(script(settings, killed, "cnn", 12), env=environment, stderr=subprocess.DEVNULL)
    while not (states := list(killed.glob("models/.cnn-*/training.npz"))):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    done = len(json.loads(str(np.load(states[0])["state"]))["history"])
    assert 0 < done < 12 and not (killed / "results.csv").exists()
    subprocess.run(script(settings, killed, "cnn", 12), check=True, env=environment, capture_output=True)
    one, other = runs(undisturbed)["cnn"], runs(killed)["cnn"]
    assert one.record["weights_sha256"] == other.record["weights_sha256"]
    assert one.history.equals(other.history) and one.predictions.equals(other.predictions)
    assert [path.name for path in (killed / "models").iterdir() if path.is_dir()] == [other.path.name]


@pytest.mark.slow
def test_a_training_that_had_ended_is_not_continued(prepared):
    training = aux.Training(learning_rate=3e-2, epochs=20, patience=1)
    experiment = aux.Experiment("small", aux.CNN((8, 8), (2, 2), (16,), (0.1,)), training)
    run = aux.train(prepared, experiment)
    assert run.row["epochs_run"] < 20
    forced = prepared.model_copy(update={"force": True})

    def killed(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(execution, "save_model", killed)  # after the last epoch
        with pytest.raises(KeyboardInterrupt):
            aux.train(forced, experiment)
    again = aux.train(forced, experiment)
    assert again.path != run.path and again.record["weights_sha256"] == run.record["weights_sha256"]
    assert again.history.equals(run.history)
