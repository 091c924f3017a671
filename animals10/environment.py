"""The machine and the software: the device that trains, versions, and the commit of the repository."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import PIL
import tensorflow as tf

from animals10.files import REPOSITORY


def configure_device(deterministic: bool = False) -> str:
    """Sets the compute precision for this machine: mixed float16 on a GPU, float32 on a CPU.

    Args:
        deterministic: Whether a GPU must repeat results bit by bit, which is slower.

    Returns:
        The name of the device, see `device_name`.
    """
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    keras.config.set_dtype_policy("mixed_float16" if tf.config.list_physical_devices("GPU") else "float32")
    return device_name()


def device_name() -> str:
    """Returns the name of the device that trains, for `results.csv`: of the first GPU, or of the CPU with its cores."""
    if gpus := tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return f"CPU {found[1] if found else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def software_versions() -> dict[str, Any]:
    """Returns the software versions and thread counts that can affect bitwise reproducibility."""
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "platform": platform.platform(),
        "threads": {
            "cores": os.cpu_count(),
            "intra_op": tf.config.threading.get_intra_op_parallelism_threads(),
            "inter_op": tf.config.threading.get_inter_op_parallelism_threads(),
        },
    }


def git_commit() -> str:
    """Returns the commit of the repository, with `-dirty` if tracked files were changed; "" outside git."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
