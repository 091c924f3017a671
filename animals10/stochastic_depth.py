"""Stochastic depth: residual branches of a network are skipped at random in training."""

from typing import Any

import keras

from animals10.files import UserError


def with_stochastic_depth(part: keras.Model, model: keras.Model, rate: float, seed: int) -> keras.Model:
    """Returns a network for training that skips its trained residual branches at random, each image on its own.

    The layers are shared. The network itself stays as it is: in inference, no branch is skipped.

    Args:
        part: What is trained: the whole network, or its end.
        model: The whole network, which must be a flat functional model.
        rate: Probability that the last branch is skipped, above 0. It falls linearly towards the first trained branch.
        seed: Of the random numbers.

    Raises:
        UserError: No residual branch is trained.
    """
    branches = trained_branches(model)
    if not branches:
        raise UserError(
            f"stochastic_depth is {rate:g}, but no residual branch of {model.name} is trained: set it to 0, or "
            "unfreeze blocks that have residual connections."
        )
    dropouts = {
        id(addition): keras.layers.Dropout(rate * number / len(branches), _per_image(addition), seed=seed + number)
        for number, addition in enumerate(branches, start=1)
    }

    def call(operation: Any, *arguments: Any, **options: Any) -> Any:
        if id(operation) in dropouts:
            tensors = list(keras.tree.flatten(arguments))
            branch = branches[operation]
            tensors[branch] = dropouts[id(operation)](tensors[branch])
            arguments = keras.tree.pack_sequence_as(arguments, tensors)
        return operation(*arguments, **options)

    return keras.models.clone_model(part, clone_function=lambda layer: layer, call_function=call)


def trained_branches(model: keras.Model) -> dict[keras.Operation, int]:
    """Returns the additions that end a trained residual branch, in order, and which of their two inputs is the branch.

    Of the two inputs, the branch is the one with more layers before it; the other is the shortcut.
    """
    before: dict[Any, set] = {}  # all operations on which an operation depends, itself included
    depth: dict[Any, int] = {}
    found = {}
    for operation in model.operations:
        inputs = [tensor._keras_history.operation for tensor in keras.tree.flatten(operation.input)]
        before[operation] = {operation}.union(*(before[one] for one in inputs if one in before))
        depth[operation] = 1 + max((depth[one] for one in inputs if one in depth), default=0)
        # Some networks add with an operation that is no layer.
        if type(operation).__name__ == "Add" and len(inputs) == 2 and depth[inputs[0]] != depth[inputs[1]]:
            shortcut, branch = sorted((0, 1), key=lambda index: depth[inputs[index]])
            own = before[inputs[branch]] - before[inputs[shortcut]]
            if any(getattr(one, "trainable_weights", ()) for one in own):
                found[operation] = branch
    return found


def _per_image(addition: keras.Operation) -> tuple[int | None, ...]:
    return (None, *[1] * (len(addition.output.shape) - 1))
