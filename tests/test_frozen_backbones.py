"""Heads on a backbone that was built before: the same networks, weights and names as if it had been built again."""

import shutil
from dataclasses import replace

import keras
import numpy as np
import pytest

from animals10 import frozen_backbones
from animals10.experiments import Experiment, Training
from animals10.frozen_backbones import build_on_frozen_backbone
from animals10.models import Transfer, network_config
from animals10.training import train

SIZE = 32


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "MobileNetV2.weights.h5"
    keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3)).save_weights(path)
    return path


def built(build, architecture, weights):
    keras.backend.clear_session()
    keras.utils.set_random_seed(5)
    return build(architecture, 3, SIZE, str(weights))


def test_the_second_head_shares_the_backbone_and_has_the_weights_of_a_network_built_anew(weights):
    first = Transfer("MobileNetV2", (8,), (0.5,), feature_dropout=0.2)
    second = Transfer("MobileNetV2", (16, 8), (0.2, 0.0))
    one = built(build_on_frozen_backbone, first, weights)
    two = built(build_on_frozen_backbone, second, weights)
    again = built(build_on_frozen_backbone, first, weights)
    assert one.layers[5] is two.layers[5] is again.layers[5]
    for network, architecture in ((one, first), (two, second), (again, first)):
        expected = built(Transfer.build, architecture, weights)
        assert [layer.name for layer in network.layers] == [layer.name for layer in expected.layers]
        assert network_config(network, trainable=True) == network_config(expected, trainable=True)
        for mine, theirs in zip(network.get_weights(), expected.get_weights(), strict=True):
            assert np.array_equal(mine, theirs)
    assert len(again.get_layer("pooled").output._keras_history.operation._outbound_nodes) == 1  # older heads are freed


def test_a_backbone_is_not_shared_where_it_may_change(weights):
    frozen, tuned = Transfer("MobileNetV2", (8,)), Transfer("MobileNetV2", (8,), unfreeze_last=3)
    first = built(build_on_frozen_backbone, frozen, weights)
    assert built(build_on_frozen_backbone, tuned, weights).layers[5] is not first.layers[5]
    keras.applications.MobileNetV2(include_top=False, weights=None, input_shape=(SIZE, SIZE, 3)).save_weights(weights)
    other = built(build_on_frozen_backbone, frozen, weights)
    assert other.layers[5] is not first.layers[5]
    expected = built(Transfer.build, frozen, weights)
    assert all(np.array_equal(*pair) for pair in zip(other.get_weights(), expected.get_weights(), strict=True))


def test_the_same_head_keeps_its_graphs_and_gives_the_digits_of_a_new_process(prepared, weights, monkeypatch):
    settings = prepared.model_copy(update={"weights": str(weights.parent), "split": "published"})
    head = Transfer("MobileNetV2", (8,), (0.5,), feature_dropout=0.2)
    training = Training(0.01, 3, ema=0.9, optimizer="adamw", weight_decay=0.01)
    experiments = [Experiment("a", head, training), Experiment("b", head, replace(training, learning_rate=0.03))]

    def outcome(experiment, forget):
        if forget:
            frozen_backbones._latest.clear()  # as a new process has it
        run = train(settings, experiment)
        found = run.history, run.predictions, run.record["weights_sha256"]
        shutil.rmtree(run.path)
        return found

    expected = [outcome(experiment, forget=True) for experiment in experiments]
    frozen_backbones._latest.clear()
    compiled, compile_keras = [], keras.Model.compile

    def count(model, *args, **options):
        compiled.append(model)
        compile_keras(model, *args, **options)

    monkeypatch.setattr(keras.Model, "compile", count)
    for index in (0, 1, 0):
        history, predictions, sha256 = outcome(experiments[index], forget=False)
        assert history.equals(expected[index][0]) and predictions.equals(expected[index][1])
        assert sha256 == expected[index][2]
    assert len(compiled) == 1 and expected[0][2] != expected[1][2]
