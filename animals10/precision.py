"""The compute precision of a run: float32, or 16-bit precision with float32 weights where the device has it.

bfloat16 has the range of float32 and 8 of its 24 significant bits. float16, on a GPU, has 11 of them and less range, so
the loss is scaled. Weights, their updates, probabilities, the loss and the statistics of batch normalisation stay
float32. So does the stored model: its test predictions are computed in float32, also on a GPU.
"""

import platform
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from animals10.model_files import resize_of
from animals10.models import Architecture, Transfer
from animals10.progress import tell_once

FLOAT16, BFLOAT16 = "mixed_float16", "mixed_bfloat16"  # Keras's names of the policies
SUFFIXES = {FLOAT16: ", mixed float16", BFLOAT16: ", bfloat16"}  # of the device in results.csv
FLOAT32_LAYERS = (keras.layers.Rescaling, keras.layers.Normalization, keras.layers.Softmax)
# Backbones that are slower in bfloat16 on a CPU, as `make bench BENCH="--backbones …"` prints: in the frozen pass, and
# in fine-tuning. Others are faster, as far as they were measured.
SLOWER_PASS = ("MobileNet", "EfficientNetB0")
SLOWER_TUNING = ("MobileNetV3",)


@cache
def multiplies_in_bfloat16() -> bool:
    """Tells whether this machine multiplies matrices in bfloat16: AVX-512 BF16, AMX, Arm's BF16, or a GPU from 2020."""
    if gpus := tf.config.list_physical_devices("GPU"):
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability", (0, 0))
        return capability >= (8, 0)
    cpuinfo = Path("/proc/cpuinfo")
    flags = "avx512_bf16|amx_bf16" if platform.machine() in ("x86_64", "AMD64") else "bf16"
    return cpuinfo.exists() and bool(re.search(rf"\b({flags})\b", cpuinfo.read_text()))


def resolve_precision(setting: str, architecture: Architecture, on_gpu: bool) -> str:
    """Returns the Keras policy in which an architecture is trained; a line says what was decided, once per process.

    Args:
        setting: `default`: float32 on a CPU, mixed float16 on a GPU; `float32`; `bfloat16`; or `auto`: mixed float16 on
            a GPU, and bfloat16 on a CPU that multiplies in it, for architectures that gain by it.
        architecture: The architecture.
        on_gpu: Whether a GPU trains.
    """
    if on_gpu and setting in ("default", "auto"):
        return FLOAT16
    if setting in ("default", "float32"):
        return "float32"
    if not multiplies_in_bfloat16():
        tell_once(f"PRECISION={setting}: this machine does not multiply in bfloat16, so float32 is used.")
        return "float32"
    backbone = architecture.backbone if isinstance(architecture, Transfer) else ""
    is_tuned = isinstance(architecture, Transfer) and (architecture.unfreeze_last or architecture.unfreeze_last_blocks)
    if setting == "auto" and backbone.startswith(SLOWER_TUNING if is_tuned else SLOWER_PASS):
        tell_once(f"PRECISION=auto: {backbone} gains nothing by bfloat16, so float32 is used.")
        return "float32"
    note = "" if frozen_precision(BFLOAT16, architecture, on_gpu) == BFLOAT16 else ", after a frozen pass in float32"
    tell_once(f"PRECISION={setting}: {backbone or type(architecture).__name__} is trained in bfloat16{note}.")
    return BFLOAT16


def frozen_precision(policy: str, architecture: Architecture, on_gpu: bool) -> str:
    """Returns the Keras policy in which the frozen layers compute cached features; `policy` is that of the training."""
    backbone = architecture.backbone if isinstance(architecture, Transfer) else ""
    is_slower = backbone.startswith(SLOWER_PASS) and not on_gpu
    return "float32" if policy == BFLOAT16 and is_slower else policy


def in_precision(model: keras.Model, policy: str) -> keras.Model:
    """Returns a copy of a network that computes in another precision, with the same weights and frozen layers.

    The layers that scale pixels, and those that give probabilities, stay float32; so do layers inside wrapper layers
    such as `TimeDistributed`.

    Args:
        model: The network.
        policy: Name of a Keras policy: `float32`, `mixed_bfloat16` …
    """
    last = _last_layers(model.outputs)

    def clone(layer: Any) -> Any:
        if not isinstance(layer, keras.Layer):  # an operation such as a sum, which computes in the dtype of its input
            return type(layer).from_config(layer.get_config())
        gives_probabilities = layer.name in last or getattr(layer, "activation", None) is keras.activations.softmax
        stays = gives_probabilities or isinstance(layer, FLOAT32_LAYERS)
        return type(layer).from_config(layer.get_config() | {"dtype": "float32" if stays else policy})

    copy = keras.models.clone_model(model, clone_function=clone, recursive=True)
    for mine, original in zip(copy.layers, model.layers, strict=True):
        mine.trainable = original.trainable  # the layer of the input, which has no weights, would lose it
    copy.set_weights(model.get_weights())
    copy.resize = resize_of(model)
    return copy


def _last_layers(tensors: Sequence[Any]) -> set[str]:
    """Returns the names of the layers that give some tensors, also through operations that are no layers."""
    found: set[str] = set()
    for operation in (tensor._keras_history.operation for tensor in tensors):
        is_layer = isinstance(operation, keras.Layer)
        found |= {operation.name} if is_layer else _last_layers(keras.tree.flatten(operation.input))
    return found
