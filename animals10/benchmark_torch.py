"""Training steps of the study's CNNs in PyTorch, for comparison. TensorFlow is not imported here."""

import os
import statistics
import time
from collections.abc import Sequence
from importlib.util import find_spec

BATCH = 32
STEPS = 8  # that are timed, after two that are not


def has_torch() -> bool:
    """Tells whether PyTorch is installed."""
    return find_spec("torch") is not None


def torch_rates(
    filters: Sequence[int],
    pool_sizes: Sequence[int],
    dense_units: Sequence[int],
    dropout: Sequence[float],
    bfloat16: bool,
) -> dict[str, float]:
    """Returns images per second of training steps on tensors in memory: in the usual format, and with channels last.

    The network is that of `models.CNN` with the same arguments, for ten classes and 224 × 224 pixels, with Adam.
    """
    import torch
    from torch import nn

    torch.set_num_threads(os.cpu_count() or 1)
    layers: list[nn.Module] = []
    channels, size = 3, 224
    for units, pool in zip(filters, pool_sizes, strict=True):
        layers += [nn.Conv2d(channels, units, 3), nn.ReLU(), nn.MaxPool2d(pool)]
        channels, size = units, (size - 2) // pool
    layers.append(nn.Flatten())
    inputs = channels * size * size
    for units, rate in zip(dense_units, dropout, strict=True):
        layers += [nn.Linear(inputs, units), nn.ReLU(), nn.Dropout(rate)]
        inputs = units
    network = nn.Sequential(*layers, nn.Linear(inputs, 10))
    labels, rates = torch.arange(BATCH) % 10, {}
    formats = {"PyTorch": torch.contiguous_format, "PyTorch, channels last": torch.channels_last}
    for name, memory_format in formats.items():
        network = network.to(memory_format=memory_format)
        pixels = torch.rand(BATCH, 3, 224, 224).to(memory_format=memory_format)
        optimizer, loss = torch.optim.Adam(network.parameters()), nn.CrossEntropyLoss()
        times = []
        for _ in range(STEPS + 2):
            start = time.perf_counter()
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
                outputs = network(pixels)
            loss(outputs.float(), labels).backward()
            optimizer.step()
            times.append(time.perf_counter() - start)
        rates[name] = BATCH / statistics.median(times[2:])
    return rates
