"""The machine and the software: the device that trains, versions, and the commit of the repository."""

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import PIL
import sklearn
import tensorflow as tf
from tensorflow.python.framework import test_util

from animals10.files import REPOSITORY, UserError
from animals10.machine import available_threads, instruction_set
from animals10.progress import tell_once
from animals10.tensorflow_start import THREADS


def configure_device(deterministic: bool = False, threads: int | None = None) -> str:
    """Sets how the device computes: see `without_tf32`, determinism on a GPU, and the number of threads.

    Args:
        deterministic: Whether a GPU must repeat results bit by bit, which is slower.
        threads: Number of TensorFlow's threads, which decides the last digits of results on a CPU; None for any.

    Returns:
        The name of the device, see `device_name`.

    Raises:
        UserError: TensorFlow has started with another number of threads.
    """
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    without_tf32()
    if threads and threads != count_threads():
        raise UserError(
            f"ANIMALS10_CPUS_PER_RUN is {threads}, but TensorFlow has started with {count_threads()} threads: set that "
            "variable of the environment before this program or kernel starts."
        )
    return device_name()


def without_tf32() -> None:
    """Switches TF32 off, the 10-bit mantissa in which a GPU computes float32: a CPU would predict otherwise."""
    tf.config.experimental.enable_tensor_float_32_execution(False)


def count_threads() -> int:
    """Returns the number of threads that share an operation of TensorFlow."""
    text = os.environ.get(THREADS[0], "")
    return tf.config.threading.get_intra_op_parallelism_threads() or int(text or 0) or available_threads()


def has_gpu() -> bool:
    """Tells whether TensorFlow sees a GPU."""
    return bool(tf.config.list_physical_devices("GPU"))


def numeric_device() -> Any:
    """Returns what of the device affects bitwise reproducibility, as JSON can hold it."""
    if has_gpu():
        return device_name()
    return {"instructions": instruction_set(), "threads": count_threads(), "onednn": test_util.IsMklEnabled()}


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
        "pandas": pd.__version__,
        "scikit-learn": sklearn.__version__,
        "pillow": PIL.__version__,
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "platform": platform.platform(),
        "onednn": test_util.IsMklEnabled(),
        "threads": {
            "cores": os.cpu_count(),
            "of_a_run": count_threads(),
            "intra_op": tf.config.threading.get_intra_op_parallelism_threads(),
            "inter_op": tf.config.threading.get_inter_op_parallelism_threads(),
        },
    }


# Variables of git that point to another repository; a git hook sets them for all that it starts.
POINTERS = "GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_COMMON_DIR GIT_OBJECT_DIRECTORY GIT_NAMESPACE GIT_PREFIX".split()


def git_commit() -> str:
    """Returns the commit of this code, with `-dirty` if tracked files were changed.

    Empty if there is none: without git, outside a repository, or where this code lies inside a repository of something
    else. Then a line says why, once per process.
    """
    commit, reason = _git("rev-parse", "--show-toplevel")
    if not reason and Path(commit).resolve() != REPOSITORY:
        reason = f"{REPOSITORY} lies inside another repository, {commit}"
    if not reason:
        commit, reason = _git("describe", "--always", "--dirty", "--exclude=*", "--abbrev=12")
    if reason:
        tell_once(f"The commit of this code is not recorded: {reason}.")
    return "" if reason else commit


def _git(*arguments: str) -> tuple[str, str]:
    """Runs git in this repository; returns its output, and the reason if it failed."""
    environment = {name: value for name, value in os.environ.items() if name not in POINTERS} | {"LC_ALL": "C"}
    options: dict[str, Any] = {"cwd": REPOSITORY, "env": environment, "capture_output": True, "check": False}
    try:
        done = subprocess.run(["git", *arguments], encoding="utf-8", errors="surrogateescape", **options)
    except OSError:
        return "", "git is not installed"
    reason = done.stderr.strip().partition("\n")[0].removeprefix("fatal: ") or f"git ended with {done.returncode}"
    return done.stdout.strip(), reason if done.returncode else ""
