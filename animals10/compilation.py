"""Compile a model for a training: optimizer, loss and metric. A model that was compiled before keeps its graphs."""

from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import keras
import tensorflow as tf

from animals10.environment import has_gpu
from animals10.experiments import Training

_compiled: "WeakKeyDictionary[keras.Model, Any]" = WeakKeyDictionary()  # what the graphs of a model were traced for


def compile_model(model: keras.Model, training: Training, steps: int, steps_per_execution: int = 1) -> None:
    """Compiles a model for a training of so many steps in all; the metric is accuracy.

    Labels are integers, or shares of all classes where the training configuration mixes images. A model that was
    compiled for the same before, but for the learning rate, gets a new state of its optimizer, and keeps its traced
    graphs.
    """
    rate: Any = training.learning_rate
    if training.schedule == "cosine":
        warmup = steps // 10
        decay = max(steps - warmup, 1)
        rate = keras.optimizers.schedules.CosineDecay(0.0, decay, warmup_target=rate, warmup_steps=warmup)
    options: dict[str, Any] = {} if training.weight_decay is None else {"weight_decay": training.weight_decay}
    options |= {"global_clipnorm": training.clip_norm} if training.clip_norm else {}
    options |= {"use_ema": True, "ema_momentum": training.ema} if training.ema else {}
    kind = type(keras.optimizers.get(training.optimizer))
    if training.layer_decay < 1:
        kind = _with_layer_decay(kind, model, training.layer_decay)
    optimizer = kind(rate, **options)
    optimizer = scaled_optimizer(optimizer, model)  # before its variables are built
    optimizer.build(model.trainable_variables)
    key = (training, steps) if training.schedule == "cosine" else replace(training, learning_rate=1.0)
    if _compiled.get(model) == (key, steps_per_execution):
        for variable, initial in zip(model.optimizer.variables, optimizer.variables, strict=True):
            variable.assign(initial)
        return
    loss: Any = "sparse_categorical_crossentropy"
    if training.mixes:
        loss = keras.losses.CategoricalCrossentropy(label_smoothing=training.label_smoothing)
    elif training.label_smoothing:
        smoothing = training.label_smoothing

        def loss(labels: tf.Tensor, probabilities: tf.Tensor) -> tf.Tensor:
            truth = tf.one_hot(tf.cast(tf.reshape(labels, [-1]), "int32"), probabilities.shape[-1])
            return keras.losses.categorical_crossentropy(truth, probabilities, label_smoothing=smoothing)

    # XLA makes training on a CPU many times slower.
    jit_compile = "auto" if has_gpu() else False
    model.compile(
        optimizer, loss, metrics=["accuracy"], jit_compile=jit_compile, steps_per_execution=steps_per_execution
    )
    _compiled[model] = key, steps_per_execution


def scaled_optimizer(optimizer: keras.optimizers.Optimizer, model: keras.Model) -> keras.optimizers.Optimizer:
    """Returns an optimizer that scales the loss of a model in float16, where small gradients would become 0."""
    is_half = any(layer.compute_dtype == "float16" for layer in model._flatten_layers(include_self=False))
    return keras.optimizers.LossScaleOptimizer(optimizer) if is_half else optimizer


def _with_layer_decay(
    kind: type[keras.optimizers.Optimizer], model: keras.Model, decay: float
) -> type[keras.optimizers.Optimizer]:
    """Returns a kind of optimizer whose learning rate falls by a factor from each trained layer to the one before it.

    The gradient could not be scaled in its place: Adam divides by its size.
    """
    layers = [layer for layer in model.layers if layer.trainable_weights]
    depths = {id(weight): depth for depth, layer in enumerate(layers[::-1]) for weight in layer.trainable_weights}
    factors = [decay ** depths[id(variable)] for variable in model.trainable_variables]

    class LayerDecay(kind):
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            factor = factors[self._get_variable_index(variable)]
            super().update_step(gradient, variable, learning_rate * factor)

    return LayerDecay
