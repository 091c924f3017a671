"""The same figures to the last digit in other processes, whatever ran before, and after a kill."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import auxiliary as aux

TRAINING = """
import sys
sys.path.insert(0, {repository!r})
import auxiliary as aux
raw, weights = {raw!r}, "random"
settings = aux.Settings(root={root!r}, raw=raw, image_size=32, weights=weights, views=2)
which, epochs = {which!r}, {epochs}
if not (settings.data / "train.csv").exists():
    aux.resize_photographs(settings, aux.scan_photographs(settings))
options = {{"learning_rate": 1e-3, "epochs": epochs}}
if "cnn" in which:
    aux.train(settings, "cnn", aux.CNN((8, 8), (2, 2), (16,), (0.3,)), **options)
if "head" in which:
    head = aux.train(settings, "head", aux.Transfer("MobileNetV2", (8,), (0.2,)), **options)
    tuned = aux.Transfer("MobileNetV2", (8,), (0.2,), unfreeze_last=20)
    aux.train(settings, "tuned", tuned, **options, continues=head)
"""


def script(settings, root, which, epochs=2):
    values = {"repository": str(aux.REPOSITORY), "raw": str(settings.raw), "root": str(root)}
    return [sys.executable, "-c", TRAINING.format(**values, which=which, epochs=epochs)]


def runs(root):
    folders = sorted((root / "models").glob("[!.]*"))
    return {folder.name.split("-")[0]: aux.Run(folder.name, folder) for folder in folders}


@pytest.fixture
def environment():
    return os.environ | {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "3"}


def test_two_processes_give_the_same_predictions_alone_or_in_a_row(settings, tmp_path, environment):
    first, second = tmp_path / "first", tmp_path / "second"
    subprocess.run(script(settings, first, "cnn head"), check=True, env=environment, capture_output=True)
    subprocess.run(script(settings, second, "head"), check=True, env=environment, capture_output=True)
    subprocess.run(script(settings, second, "cnn"), check=True, env=environment, capture_output=True)
    one, other = runs(first), runs(second)
    assert set(one) == set(other) == {"cnn", "head", "tuned"}
    for name in one:
        assert one[name].predictions.equals(other[name].predictions)
        assert one[name].history.equals(other[name].history)
        assert one[name].record["weights_sha256"] == other[name].record["weights_sha256"]


def test_a_killed_training_goes_on_and_ends_with_the_same_weights(settings, tmp_path, environment):
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    subprocess.run(script(settings, undisturbed, "cnn", 12), check=True, env=environment, capture_output=True)
    process = subprocess.Popen(script(settings, killed, "cnn", 12), env=environment, stderr=subprocess.DEVNULL)
    while not (states := list(killed.glob("models/.cnn-*/training.npz"))):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(aux.json.loads(str(np.load(states[0])["state"]))["history"])
    assert 0 < done < 12 and not (killed / "results.csv").exists()
    subprocess.run(script(settings, killed, "cnn", 12), check=True, env=environment, capture_output=True)
    one, other = runs(undisturbed)["cnn"], runs(killed)["cnn"]
    assert one.record["weights_sha256"] == other.record["weights_sha256"]
    assert one.history.equals(other.history) and one.predictions.equals(other.predictions)
    assert [path.name for path in (killed / "models").iterdir() if path.is_dir()] == [other.path.name]


def test_training_that_had_ended_is_not_trained_on(prepared):
    options = {"learning_rate": 3e-2, "epochs": 20, "patience": 1}
    network = aux.CNN((8, 8), (2, 2), (16,), (0.1,))
    run = aux.train(prepared, "small", network, **options)
    assert run.record["row"]["epochs_run"] < 20
    forced = prepared.model_copy(update={"force": True})

    def killed(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aux, "save_model", killed)  # after the last epoch
        with pytest.raises(KeyboardInterrupt):
            aux.train(forced, "small", network, **options)
    again = aux.train(forced, "small", network, **options)
    assert again.path != run.path and again.record["weights_sha256"] == run.record["weights_sha256"]
    assert again.history.equals(run.history)
