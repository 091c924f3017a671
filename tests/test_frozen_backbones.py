"""Heads on a backbone that was built before: the same networks, weights and names as if it had been built again."""

import keras
import numpy as np
import pytest

from animals10.frozen_backbones import build_on_frozen_backbone
from animals10.models import Transfer, network_config

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
