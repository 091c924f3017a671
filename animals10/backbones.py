"""Backbones: the networks of `keras.applications` that transfer learning starts from.

To add one, add a line to `BACKBONES`. `tests/test_backbones.py` compares it with what Keras documents.
"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import keras
import numpy as np

from animals10.files import UserError, one_line, reading

InputContract = Literal["-1 to 1", "ImageNet mean and standard deviation", "inside"]

# Of red, green and blue in all images of ImageNet, for pixels from 0 to 1; the numbers that keras.applications uses.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STANDARD_DEVIATION = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """One network of `keras.applications`.

    Attributes:
        name: Its function in `keras.applications`.
        module: The submodule of `keras.applications` that holds its `preprocess_input`.
        input_contract: The pixels that Keras's function expects. `-1 to 1` and `ImageNet mean and standard deviation`
            leave the scaling to the caller; `inside` means that the network scales pixels from 0 to 255 itself.
        default_size: Edge of the images that its ImageNet weights were trained on, in pixels.
        block_pattern: A regular expression that finds the block of a layer in the layer's name: its first group, or all
            that it matches. Layers that it does not match belong to no block.
        cache_before_last: Before how many of the last layers features are cached; None: before the last two blocks.
        minimum_size: Smallest edge of an image, in pixels.
    """

    name: str
    module: str
    input_contract: InputContract
    default_size: int
    block_pattern: str
    cache_before_last: int | None = None
    minimum_size: int = 32

    def build(self, pixels: keras.KerasTensor, weights: str | None = None) -> keras.KerasTensor:
        """Builds the backbone on an input, so that both form one flat graph.

        Args:
            pixels: The input, (n, size, size, 3), 0 to 255.
            weights: `imagenet`, the path of a weights file (`<name>.weights.h5`, without classifier), or None for
                random weights.

        Returns:
            The last feature map, (n, height, width, channels).

        Raises:
            UserError: The images are too small, or the weights file cannot be read.
        """
        size = min(pixels.shape[1:3])
        if size < self.minimum_size:
            raise UserError(
                f"{self.name} needs images of at least {self.minimum_size} pixels, not {size}: "
                "set ANIMALS10_IMAGE_SIZE."
            )
        if weights is None or weights == "imagenet":
            return self._built(pixels, weights)
        fault, advice = (
            f"does not hold weights of {self.name}",
            "restore it, or choose another folder (ANIMALS10_WEIGHTS)",
        )
        with reading(Path(weights), fault, advice):
            return self._built(pixels, weights)

    def _built(self, pixels: keras.KerasTensor, weights: str | None) -> keras.KerasTensor:
        options = {"include_top": False, "input_shape": pixels.shape[1:]}
        build = getattr(keras.applications, self.name)
        if self.name == "EfficientNetB0":
            return _build_efficientnet_b0(pixels, weights, options)
        return build(**options, weights=weights, input_tensor=self._scaled(pixels)).output

    def _scaled(self, pixels: keras.KerasTensor) -> keras.KerasTensor:
        if self.input_contract == "-1 to 1":
            return keras.layers.Rescaling(1 / 127.5, offset=-1)(pixels)
        if self.input_contract == "inside":
            return pixels
        scale = [1 / (255 * deviation) for deviation in IMAGENET_STANDARD_DEVIATION]
        offset = [-mean / deviation for mean, deviation in zip(IMAGENET_MEAN, IMAGENET_STANDARD_DEVIATION)]
        return keras.layers.Rescaling(scale, offset)(pixels)

    def block_starts(self, names: Sequence[str]) -> dict[str, int]:
        """Returns the position of each block's first layer, in the order of the network.

        Args:
            names: Names of the layers, in their order.
        """
        starts: dict[str, int] = {}
        for position, name in enumerate(names):
            if found := re.search(self.block_pattern, name):
                starts.setdefault(found[found.lastindex or 0], position)
        return starts

    def count_last_layers(self, names: Sequence[str], blocks: int) -> int:
        """Returns how many layers there are from the first one of the last so many blocks to the end.

        Args:
            names: Names of the layers of a network that ends with this backbone, in their order.
            blocks: Number of blocks, 1 or more.

        Raises:
            UserError: The backbone has fewer blocks.
        """
        starts = list(self.block_starts(names).values())
        if not 1 <= blocks <= len(starts):
            raise UserError(f"{self.name} has {len(starts)} blocks: unfreeze_last_blocks={blocks} is not possible.")
        return len(names) - starts[-blocks]


def _build_efficientnet_b0(pixels: keras.KerasTensor, weights: str | None, options: dict) -> keras.KerasTensor:
    """Builds EfficientNetB0 with the same layers for all weights.

    Its ImageNet weights hold the standard deviation where its `Normalization` layer expects the variance
    (https://github.com/tensorflow/tensorflow/issues/49930). Keras makes up for it with one more layer, but only where
    `weights` is `imagenet`: the same weights in a local file get other pixels. Here the variance is corrected instead.
    """
    model = keras.applications.EfficientNetB0(
        **options, weights=None if weights == "imagenet" else weights, input_tensor=pixels
    )
    if weights == "imagenet":
        model.set_weights(keras.applications.EfficientNetB0(**options, weights="imagenet").get_weights())
    (normalization,) = (layer for layer in model.layers if isinstance(layer, keras.layers.Normalization))
    mean, variance, count = normalization.get_weights()
    if np.allclose(variance, IMAGENET_STANDARD_DEVIATION):
        normalization.set_weights([mean, variance**2, count])
    normalization.finalize_state()  # it keeps what it computes from its weights
    return model.output


_MOBILENET_V2 = r"block_\d+|expanded_conv"
_MOBILENET_V3 = r"expanded_conv(?:_\d+)?"
_CONV_BLOCK = r"conv\d_block\d+"  # ResNet, DenseNet
_EFFICIENTNET = r"block\d[a-z]"
_CONVNEXT = r"stage_\d_block_\d+"
_NASNET = r"(?:normal|reduction|adjust).*?_((?:stem_|reduce_)?\d+)$"

# fmt: off
BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        #        name, module of keras.applications, input contract, default size, block pattern, …
        Backbone("MobileNetV2",      "mobilenet_v2",    "-1 to 1", 224, _MOBILENET_V2, cache_before_last=25),
        Backbone("MobileNetV3Small", "mobilenet_v3",    "inside",  224, _MOBILENET_V3),
        Backbone("MobileNetV3Large", "mobilenet_v3",    "inside",  224, _MOBILENET_V3),
        Backbone("ResNet50V2",       "resnet_v2",       "-1 to 1", 224, _CONV_BLOCK, cache_before_last=20),
        Backbone("EfficientNetB0",   "efficientnet",    "inside",  224, _EFFICIENTNET),
        Backbone("EfficientNetV2B0", "efficientnet_v2", "inside",  224, _EFFICIENTNET),
        Backbone("EfficientNetV2B1", "efficientnet_v2", "inside",  240, _EFFICIENTNET),
        Backbone("EfficientNetV2B2", "efficientnet_v2", "inside",  260, _EFFICIENTNET),
        Backbone("EfficientNetV2B3", "efficientnet_v2", "inside",  300, _EFFICIENTNET),
        Backbone("EfficientNetV2S",  "efficientnet_v2", "inside",  384, _EFFICIENTNET, cache_before_last=30),
        Backbone("EfficientNetV2M",  "efficientnet_v2", "inside",  480, _EFFICIENTNET),
        Backbone("ConvNeXtTiny",     "convnext",        "inside",  224, _CONVNEXT),
        Backbone("ConvNeXtSmall",    "convnext",        "inside",  224, _CONVNEXT),
        Backbone("DenseNet121",      "densenet", "ImageNet mean and standard deviation", 224, _CONV_BLOCK),
        Backbone("Xception",         "xception",        "-1 to 1", 299, r"block\d+", minimum_size=71),
        Backbone("NASNetMobile",     "nasnet",          "-1 to 1", 224, _NASNET),
    )
}
# fmt: on


def explained(error: Exception, name: str) -> Exception:
    """Returns the error of a network that cannot be built, as a `UserError` if its weights cannot be downloaded.

    Args:
        error: The error.
        name: The name of the network.
    """
    if "URL fetch failure" not in str(error):
        return error
    return UserError(
        f"There are no ImageNet weights of {name}: {one_line(error, most=None)}. Without a network here: fetch that "
        "file on another machine and put it into ~/.keras/models, or set ANIMALS10_WEIGHTS to a folder of "
        "<backbone>.weights.h5 files or to random."
    )


def find_backbone(name: str) -> Backbone:
    """Returns a backbone by its name.

    Raises:
        UserError: There is none of this name; the message suggests the nearest.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    by_lower = {known.lower(): known for known in BACKBONES}
    nearest = by_lower[difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0)[0]]
    raise UserError(f"There is no backbone {name!r}; did you mean {nearest}? All: {', '.join(BACKBONES)}.")
