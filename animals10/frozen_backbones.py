"""What a process builds once: the frozen backbone of several heads, and a head that is trained several times."""

import random
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import keras

from animals10.models import FeatureLayers, Transfer

MAX_DRAWS = 10_000  # random seeds of the layers of a backbone
NUMBERED = re.compile(r"(dense|dropout)(_\d+)?$")  # names that Keras gives to the layers of a head


@dataclass(frozen=True)
class _Built:
    pixels: keras.KerasTensor
    pooled: keras.KerasTensor
    draws: int
    heads: dict[Any, keras.Model] = field(default_factory=dict)


_latest: dict[Any, _Built] = {}
_trained_parts: "WeakKeyDictionary[keras.Model, keras.Model]" = WeakKeyDictionary()


def build_on_frozen_backbone(
    architecture: Transfer, n_classes: int, image_size: int, weights: str | None
) -> keras.Model:
    """Returns the network that `architecture.build` returns, with the same weights of the head from the same seed.

    The layers of a frozen backbone with pretrained weights are those of the network built before, if it had the same
    backbone: so nothing may train or change them. If it had the same head as well, it is the network itself, with new
    initial weights, so that what was traced for its training serves again.

    Args:
        architecture: The architecture.
        n_classes: Number of classes.
        image_size: Edge of the images in pixels.
        weights: `imagenet`, the path of a weights file, or None for random weights.

    Raises:
        UserError: The images are too small, or the weights file cannot be read.
    """
    if weights is None or architecture.unfreeze_last or architecture.unfreeze_last_blocks:
        return architecture.build(n_classes, image_size, weights)
    file = Path(weights).stat() if weights != "imagenet" else None
    state = (file.st_size, file.st_mtime_ns) if file else None
    key = (architecture.backbone, image_size, weights, state)
    if built := _latest.get(key):
        # Heads built before would otherwise stay in memory as what follows the backbone.
        built.pooled._keras_history.operation._outbound_nodes.clear()
        for _ in range(built.draws):  # Keras seeds each layer from this generator: the head's seeds come next
            _draw()
    else:
        before = random.getstate()
        built = _Built(*architecture.build_backbone(image_size, weights), _count_draws(before))
        _latest.clear()
        names = [layer.name for layer in keras.Model(built.pixels, built.pooled).layers]
        if built.draws <= MAX_DRAWS and not any(NUMBERED.match(name) for name in names):
            _latest[key] = built
    model = architecture.build_head(built.pixels, built.pooled, n_classes)
    kept = built.heads.get((architecture, n_classes))
    if kept is None:
        built.heads.clear()
        built.heads[architecture, n_classes] = model
        return model
    for variable, initial in zip(kept.variables, model.variables, strict=True):  # weights, and seeds of dropout
        if variable is not initial:
            variable.assign(initial)
    return kept


def trained_part(model: keras.Model, layers: FeatureLayers) -> keras.Model:
    """Returns the part of a network that is trained on cached features: from them to the probabilities.

    It is built once for a network, so that it keeps its graphs where the network is trained again.
    """
    if model not in _trained_parts:
        _trained_parts[model] = keras.Model(layers.outputs[layers.start], model.output)
    return _trained_parts[model]


def _draw() -> None:
    random.randint(1, int(1e9))  # as Keras's `make_default_seed` does


def _count_draws(before: Any) -> int:
    """Returns how many seeds were drawn since a state of the generator; more than `MAX_DRAWS` if that is unknown."""
    after, draws = random.getstate(), 0
    random.setstate(before)
    while random.getstate() != after and draws <= MAX_DRAWS:
        _draw()
        draws += 1
    random.setstate(after)
    return draws
