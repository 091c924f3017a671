"""Networks of one's own: trained, stored and found again like any other."""

import dataclasses

import keras
import pytest

import auxiliary as aux

TRAINING = aux.Training(learning_rate=1e-2, epochs=8)


@dataclasses.dataclass(frozen=True)
class SmallResNet:
    filters: int = 8
    blocks: int = 2
    logits: bool = False

    def build(self, n_classes, image_size, weights=None):
        inputs = keras.Input((image_size, image_size, 3))
        x = keras.layers.Conv2D(self.filters, 3, strides=2, padding="same")(keras.layers.Rescaling(1 / 255)(inputs))
        for _ in range(self.blocks):
            y = keras.layers.BatchNormalization()(x)
            y = keras.layers.Conv2D(self.filters, 3, padding="same", activation="relu")(y)
            x = x + y
        x = keras.layers.GlobalAveragePooling2D()(x)
        outputs = keras.layers.Dense(n_classes, activation=None if self.logits else "softmax")(x)
        return keras.Model(inputs, outputs)


def test_a_network_of_ones_own_is_trained_like_any_other(prepared):
    mine = aux.Experiment("mine", SmallResNet(), TRAINING)
    run = aux.train(prepared, mine)
    assert aux.train(prepared, mine) == run and run.row["weights"] == "none"
    assert run.record["spec"]["model"] == {"type": "SmallResNet", "filters": 8, "blocks": 2, "logits": False}
    assert "class SmallResNet" in run.record["source"]
    assert aux.train(prepared, dataclasses.replace(mine, model=SmallResNet(blocks=1))) != run
    with pytest.raises(aux.UserError, match="no probabilities: end it with a softmax"):
        aux.train(prepared, dataclasses.replace(mine, id="logits", model=SmallResNet(logits=True)))
    assert aux.results_table(prepared).model_id.tolist() == ["mine", "mine"]
